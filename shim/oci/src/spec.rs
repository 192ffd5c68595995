//! The command `spec`: a bundle's config.json to begin with, the same that runc and crun write.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// The name of a bundle's configuration.
pub const CONFIG: &str = "config.json";

/// Why there is no new configuration.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// One is there.
    #[error("{} exists; remove it first, or choose another directory with --bundle", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// It could not be written.
    #[error("could not write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// Writes the configuration into a bundle. With ids, that of a container which this user can start without root.
///
/// # Errors
/// A configuration is there already, whatever it is, or the directory cannot be written.
pub fn write(bundle: &Path, rootless: Option<(u32, u32)>) -> Result<(), SpecError> {
    let path = bundle.join(CONFIG);
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AlreadyExists => SpecError::Exists { path: path.clone() },
        _ => SpecError::Write { path: path.clone(), source },
    };
    // Exclusively: nothing is replaced, and no link in its place is followed.
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o666).open(&path).map_err(failed)?;
    let text = format!("{:#}\n", rootless.map_or_else(config, rootless_config));
    file.write_all(text.as_bytes()).map_err(failed)
}

/// The configuration of a container that root starts. A cgroup namespace is part of it where all cgroups are v2, as with runc: with v1, programs in
/// older images look for their cgroup by the host's paths.
pub fn config() -> Value {
    let mut namespaces = vec!["pid", "network", "ipc", "uts", "mount"];
    namespaces.extend(has_unified_cgroups().then_some("cgroup"));
    let kept = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": crate::features::SPEC_VERSIONS.1,
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": kept, "effective": kept, "permitted": kept},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "apex",
        "mounts": mounts(),
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": namespaces.iter().map(|kind| json!({"type": kind})).collect::<Value>(),
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}

fn has_unified_cgroups() -> bool {
    let found = nix::sys::statfs::statfs("/sys/fs/cgroup");
    found.is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC)
}

fn mounts() -> Value {
    json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
    ])
}

/// The same for a user: a user namespace with the own ids as root's, the host's network, and no limits, which only an owner of cgroups can set.
fn rootless_config((uid, gid): (u32, u32)) -> Value {
    let mut config = config();
    let linux = &mut config["linux"];
    if let Some(linux) = linux.as_object_mut() {
        linux.remove("resources");
    }
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({"type": "user"}));
    }
    linux["uidMappings"] = json!([{"containerID": 0, "hostID": uid, "size": 1}]);
    linux["gidMappings"] = json!([{"containerID": 0, "hostID": gid, "size": 1}]);
    let mounts = config["mounts"].as_array_mut();
    for mount in mounts.into_iter().flatten() {
        match mount["destination"].as_str() {
            // A group that is not mapped.
            Some("/dev/pts") => {
                if let Some(options) = mount["options"].as_array_mut() {
                    options.retain(|option| option != "gid=5");
                }
            }
            // A fresh one belongs to the owner of the network namespace.
            Some("/sys") => {
                *mount = json!({"destination": "/sys", "type": "none", "source": "/sys",
                    "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]});
            }
            _ => {}
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("apex-oci-spec-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        path
    }

    #[test]
    fn both_configurations_are_bundles() {
        let dir = dir("both");
        for rootless in [None, Some((1000, 1001))] {
            write(&dir, rootless).unwrap();
            let spec = oci_spec::runtime::Spec::load(dir.join(CONFIG)).unwrap();
            let linux = spec.linux().as_ref().unwrap();
            assert_eq!(linux.uid_mappings().is_some(), rootless.is_some());
            assert_eq!(linux.resources().is_some(), rootless.is_none());
            assert!(spec.process().as_ref().unwrap().no_new_privileges().unwrap());
            std::fs::remove_file(dir.join(CONFIG)).unwrap();
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn nothing_is_overwritten_and_no_link_followed() {
        let dir = dir("there");
        std::os::unix::fs::symlink(dir.join("elsewhere"), dir.join(CONFIG)).unwrap();
        let error = write(&dir, None).unwrap_err();
        assert!(error.to_string().contains("exists"), "{error}");
        assert!(!dir.join("elsewhere").exists());
        assert!(matches!(write(&dir.join("nowhere"), None), Err(SpecError::Write { .. })));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

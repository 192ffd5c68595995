//! Bundles, and children that are put into them.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use apex_oci::init::rootfs::{self, Cgroups, Context, Rootfs, RootfsError};
use apex_sys::process::{self, Ended, Side};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

pub const NEWNS: u64 = 0x0002_0000;
pub const NEWPID: u64 = 0x2000_0000;
pub const NEWNET: u64 = 0x4000_0000;
pub const NEWUSER: u64 = 0x1000_0000;
pub const NEWIPC: u64 = 0x0800_0000;

/// A bundle in a directory of its own, removed at the end.
pub struct Bundle {
    /// It.
    pub dir: PathBuf,
}

impl Bundle {
    pub fn new() -> Bundle {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("apex-oci-rootfs-{}-{count}", std::process::id()));
        fs::create_dir_all(dir.join("rootfs")).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["proc", "sys", "dev", "etc", "tmp", "data"] {
            fs::create_dir(dir.join("rootfs").join(name)).unwrap();
        }
        fs::write(dir.join("rootfs/etc/name"), "inside").unwrap();
        Bundle { dir }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.join("rootfs")
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// What every image expects.
pub fn ordinary() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": {"cwd": "/", "args": ["true"], "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs", "readonly": false},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}
        ],
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "network"}, {"type": "ipc"}],
            "maskedPaths": ["/proc/version", "/proc/kcore", "/proc/keys", "/proc/acpi", "/sys/firmware", "/no/such/path"],
            "readonlyPaths": ["/proc/sys", "/proc/bus", "/no/such/path"]
        }
    })
}

pub fn with_mounts(mut spec: Value, more: &[Value]) -> Value {
    spec["mounts"].as_array_mut().unwrap().extend_from_slice(more);
    spec
}

/// Runs `body` in a child that is in new namespaces; its panic is ours.
pub fn inside(namespaces: u64, maps: Option<&str>, body: impl FnOnce()) {
    let (mut wait, mut go) = std::io::pipe().unwrap();
    match process::clone_into(namespaces, None).unwrap() {
        Side::Child => {
            let done = catch_unwind(AssertUnwindSafe(move || {
                drop(go);
                let mut byte = [0];
                let _ = wait.read(&mut byte);
                if maps.is_some() {
                    process::set_gid(0).unwrap();
                    process::set_uid(0).unwrap();
                    // A change of the user makes the files of /proc/self the host root's (proc(5)).
                    apex_sys::prctl::set_dumpable(true).unwrap();
                }
                body();
            }));
            process::exit_now(i32::from(done.is_err()));
        }
        Side::Parent { pid, .. } => {
            if let Some(map) = maps {
                if !nix::unistd::geteuid().is_root() {
                    fs::write(format!("/proc/{pid}/setgroups"), "deny").unwrap();
                }
                fs::write(format!("/proc/{pid}/uid_map"), map).unwrap();
                fs::write(format!("/proc/{pid}/gid_map"), map).unwrap();
            }
            go.write_all(b"x").unwrap();
            drop(go);
            let ended = process::wait(pid, 0).unwrap().map(|(_, ended)| ended);
            assert_eq!(ended, Some(Ended::Code(0)), "the child failed");
        }
    }
}

pub const USUAL: u64 = NEWNS | NEWPID | NEWNET | NEWIPC;

/// The whole way; then `check` inside.
pub fn run(bundle: &Bundle, spec: &Value, check: impl FnOnce(&Rootfs<'_>)) {
    run_in(bundle, spec, USUAL, None, false, check);
}

pub fn run_in(
    bundle: &Bundle,
    spec: &Value,
    namespaces: u64,
    maps: Option<&str>,
    no_pivot: bool,
    check: impl FnOnce(&Rootfs<'_>),
) {
    let spec: Spec = serde_json::from_value(spec.clone()).unwrap();
    let outside = rootfs::outside(&spec, &bundle.dir).unwrap();
    inside(namespaces, maps, || {
        let cgroups = Cgroups::default();
        let context = Context::new(&spec, &bundle.dir, &cgroups);
        let mut rootfs = Rootfs::prepare(&context, outside).unwrap_or_else(|error| panic!("{}", words(&error)));
        rootfs.enter(no_pivot).unwrap_or_else(|error| panic!("{}", words(&error)));
        rootfs.seal().unwrap_or_else(|error| panic!("{}", words(&error)));
        check(&rootfs);
    });
}

/// Prepares only, and gives the error to `check`.
pub fn refused(bundle: &Bundle, spec: &Value, check: impl FnOnce(RootfsError)) {
    let spec: Spec = serde_json::from_value(spec.clone()).unwrap();
    let outside = rootfs::outside(&spec, &bundle.dir).unwrap();
    inside(USUAL, None, || {
        let cgroups = Cgroups::default();
        let context = Context::new(&spec, &bundle.dir, &cgroups);
        check(Rootfs::prepare(&context, outside).map(drop).unwrap_err());
    });
}

pub fn words(error: &dyn std::error::Error) -> String {
    let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
    format!("{error}{source}")
}

/// Mount point, options of the mount, optional fields, type, options of the file system.
pub fn table() -> Vec<(String, String, String, String, String)> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = |line: &str| {
        let (before, after) = line.split_once(" - ").unwrap();
        let before: Vec<_> = before.split(' ').collect();
        let after: Vec<_> = after.split(' ').collect();
        (before[4].into(), before[5].into(), before[6..].join(" "), after[0].into(), after[2].into())
    };
    text.lines().map(line).collect()
}

pub fn options_of(path: &str) -> String {
    let all = table();
    all.iter().rfind(|it| it.0 == path).unwrap_or_else(|| panic!("nothing is mounted at {path}: {all:?}")).1.clone()
}

/// The same with something in between: after the root was built, before it is entered.
pub fn run_with(bundle: &Bundle, spec: &Value, between: impl FnOnce(&Rootfs<'_>), check: impl FnOnce(&Rootfs<'_>)) {
    let spec: Spec = serde_json::from_value(spec.clone()).unwrap();
    let outside = rootfs::outside(&spec, &bundle.dir).unwrap();
    inside(USUAL, None, || {
        let cgroups = Cgroups::default();
        let context = Context::new(&spec, &bundle.dir, &cgroups);
        let mut rootfs = Rootfs::prepare(&context, outside).unwrap_or_else(|error| panic!("{}", words(&error)));
        between(&rootfs);
        rootfs.enter(false).unwrap_or_else(|error| panic!("{}", words(&error)));
        rootfs.seal().unwrap_or_else(|error| panic!("{}", words(&error)));
        check(&rootfs);
    });
}

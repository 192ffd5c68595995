//! What this host and this user can have, found out by really trying it in children that are gone at once.
//!
//! Input: nothing. Output: a [`Diagnosis`]. Nothing is left behind: namespaces and mounts end with the child that made them.

use std::os::fd::AsFd;

use apex_core::doctor::{Diagnosis, Finding};
use apex_core::host::CgroupSupport;
use apex_core::layer::Layer;
use apex_core::planner::LANDLOCK_ALONE;
use apex_core::seccomp::bpf;
use apex_sys::mount::{self, attr};
use apex_sys::probe::{self, Call, Entry};
use apex_sys::process::{self, Ended, Pid, Side};
use apex_sys::seccomp::{self, Filter};
use apex_sys::{Errno, fs, prctl};

use crate::ahead::Ahead;
use crate::cgroup::{self, Controller};
use crate::launch::{write_map, write_proc};

/// Version of the shape of [`Diagnosis`].
const DIAGNOSIS_VERSION: u32 = 1;
/// The newest Landlock ABI whose rights Apex asks for.
const LANDLOCK_ABI_WANTED: u32 = 6;
/// What each Landlock ABI brought (landlock(7)).
const LANDLOCK_GAINS: [(u32, &str); 5] = [
    (2, "renames between directories"),
    (3, "truncation"),
    (4, "TCP ports"),
    (5, "device ioctls"),
    (6, "signals and abstract sockets"),
];
/// CLONE_NEWTIME, which libc has as another type on some targets.
const CLONE_NEWTIME: i32 = 0x80;

/// Looks at everything that a sandbox is made of. The caller must have a single thread, since children are cloned.
pub fn examine() -> Diagnosis {
    let mut findings = vec![cgroups()];
    let userns = userns();
    let usable = userns.available;
    findings.push(userns);
    findings.extend(namespaces(usable));
    findings.extend([mount_api(usable), procfs(usable), devpts(usable), idmap()]);
    findings.extend([rlimits(), capabilities(usable), no_new_privs(), landlock()]);
    findings.extend(filters());
    findings.extend(processes());
    let partial = level_partial(&findings);
    findings.push(partial);
    Diagnosis {
        version: DIAGNOSIS_VERSION,
        kernel: read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned()),
        uid: nix::unistd::geteuid().as_raw(),
        findings,
    }
}

fn found(layer: Option<Layer>, facility: &str, detail: impl Into<String>) -> Finding {
    Finding { layer, facility: facility.to_owned(), available: true, detail: detail.into(), remedy: None }
}

fn missing(layer: Option<Layer>, facility: &str, detail: impl Into<String>, remedy: &str) -> Finding {
    Finding {
        layer,
        facility: facility.to_owned(),
        available: false,
        detail: detail.into(),
        remedy: (!remedy.is_empty()).then(|| remedy.to_owned()),
    }
}

fn tried(layer: Option<Layer>, facility: &str, result: Result<(), Errno>, works: &str, remedy: &str) -> Finding {
    match result {
        Ok(()) => found(layer, facility, works),
        Err(errno) => missing(layer, facility, format!("{errno:?}: {}", errno.desc()), remedy),
    }
}

fn cgroups() -> Finding {
    let layer = Some(Layer::Cgroup);
    let name = Layer::Cgroup.name();
    let wanted: Vec<String> = Controller::ALL.iter().map(|controller| controller.name().to_owned()).collect();
    let judge = |detail: String, have: &[String]| {
        let lacking: Vec<&str> = wanted.iter().filter(|name| !have.contains(name)).map(String::as_str).collect();
        if lacking.is_empty() {
            return found(layer, name, detail);
        }
        let remedy =
            "delegate the missing controllers to this user (systemd: `Delegate=memory pids cpu`), or drop their limits";
        missing(layer, name, format!("{detail}; without {}", lacking.join(", ")), remedy)
    };
    match cgroup::support(&Controller::ALL) {
        CgroupSupport::V2 { parent, controllers } => {
            judge(format!("v2, below {}: {}", parent.display(), controllers.join(", ")), &controllers)
        }
        CgroupSupport::V1 { controllers } => {
            judge(format!("v1 hierarchies that may be written: {}", controllers.join(", ")), &controllers)
        }
        CgroupSupport::SystemdUser => found(layer, name, "a scope from the systemd user manager"),
        CgroupSupport::Missing { reason, remedy } => missing(layer, name, reason, &remedy),
    }
}

/// A namespace alone proves little: Ubuntu's AppArmor switch lets it be made and takes its capabilities.
fn userns() -> Finding {
    let (layer, name) = (Some(Layer::Userns), Layer::Userns.name());
    match in_namespaces(nix::libc::CLONE_NEWUTS, || process::set_hostname(b"doctor")) {
        Ok(()) => found(layer, name, "made, and its capabilities work"),
        Err(errno) => {
            let (detail, remedy) = userns_blocker(errno, read);
            missing(layer, name, detail, &remedy)
        }
    }
}

/// What usually stands in the way of a user namespace. `read` gives the value of a file.
fn userns_blocker(errno: Errno, read: impl Fn(&str) -> Option<String>) -> (String, String) {
    let is = |path: &str, value: &str| read(path).is_some_and(|text| text == value);
    let detail = format!("{errno:?}: {}", errno.desc());
    let sysctl =
        |name: &str, value: &str| (format!("{detail}; {name} is {value}"), format!("as root: sysctl -w {name}="));
    if is("/proc/sys/user/max_user_namespaces", "0") {
        let (detail, remedy) = sysctl("user.max_user_namespaces", "0");
        return (detail, remedy + "15000");
    }
    if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        let (detail, remedy) = sysctl("kernel.unprivileged_userns_clone", "0");
        return (detail, remedy + "1");
    }
    if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        let (detail, remedy) = sysctl("kernel.apparmor_restrict_unprivileged_userns", "1");
        let remedy = remedy + "0, or give apex-run an AppArmor profile with the rule `userns,`";
        return (detail, remedy);
    }
    match errno {
        Errno::ENOSPC | Errno::EUSERS => (
            format!("{detail}; too many, or too deep (32 levels)"),
            "run fewer sandboxes at once, or raise user.max_user_namespaces".to_owned(),
        ),
        _ => (
            format!("{detail}; no sysctl forbids it, so a filter around this process does (a container's seccomp profile)"),
            "in a container: give it a seccomp profile that allows clone3 and unshare (docker: --security-opt seccomp=FILE)"
                .to_owned(),
        ),
    }
}

fn namespaces(usable: bool) -> Vec<Finding> {
    [
        (Layer::Pidns, nix::libc::CLONE_NEWPID),
        (Layer::Mountns, nix::libc::CLONE_NEWNS),
        (Layer::Netns, nix::libc::CLONE_NEWNET),
        (Layer::Ipcns, nix::libc::CLONE_NEWIPC),
        (Layer::Utsns, nix::libc::CLONE_NEWUTS),
        (Layer::Cgroupns, nix::libc::CLONE_NEWCGROUP),
        (Layer::Timens, CLONE_NEWTIME),
    ]
    .into_iter()
    .map(|(layer, flag)| {
        let result = needs(usable, || in_namespaces(flag, || Ok(())));
        tried(Some(layer), layer.name(), result, "made", "boot a kernel that is built with it; see also `userns`")
    })
    .collect()
}

/// Without the user namespace nothing that stands on it needs trying.
fn needs(usable: bool, work: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    if usable { work() } else { Err(Errno::EPERM) }
}

fn mount_api(usable: bool) -> Finding {
    let result = needs(usable, || {
        in_namespaces(nix::libc::CLONE_NEWNS, || {
            mount::new_filesystem(c"tmpfs", &[(c"size", c"4k")], attr::NOSUID)?;
            let tree = mount::clone_tree(fs::cwd(), c"/")?;
            mount::set_attributes(tree.as_fd(), attr::RDONLY, true)
        })
    });
    let works = "fsopen, open_tree, mount_setattr (on everything that is mounted)";
    tried(
        Some(Layer::Mountns),
        "new mount API",
        result,
        works,
        "boot Linux 5.12 or newer, outside of a filter that refuses it",
    )
}

/// No layer's own: a policy can do without. Where another mount covers a part of /proc, the kernel lets no user namespace have a /proc that shows it.
fn procfs(usable: bool) -> Finding {
    let fresh = |options: &'static [(&'static std::ffi::CStr, &'static std::ffi::CStr)]| {
        needs(usable, || {
            in_namespaces(nix::libc::CLONE_NEWNS | nix::libc::CLONE_NEWPID, || {
                mount::new_filesystem(c"proc", options, attr::NOSUID).map(drop)
            })
        })
    };
    let (layer, name) = (None, "fresh procfs");
    let remedy =
        "in a container: unmask /proc (docker: --security-opt systempaths=unconfined), or give `proc = \"none\"`";
    match (fresh(&[(c"hidepid", c"invisible")]), fresh(&[(c"subset", c"pid")])) {
        (Ok(()), Ok(())) => found(layer, name, "whole and processes only"),
        (Ok(()), Err(errno)) => missing(layer, name, format!("no `subset=pid`: {errno:?}"), "boot Linux 5.8 or newer"),
        (Err(errno), Ok(())) => {
            let detail = format!("processes only; whole (`proc = \"masked\"`): {errno:?}");
            missing(layer, name, detail, "give `proc = \"pid\"` in a policy, or unmask /proc around this container")
        }
        (Err(errno), Err(_)) => missing(layer, name, format!("{errno:?}: {}", errno.desc()), remedy),
    }
}

fn devpts(usable: bool) -> Finding {
    let result = needs(usable, || {
        in_namespaces(nix::libc::CLONE_NEWNS, || {
            mount::new_filesystem(c"devpts", &[(c"newinstance", c"")], attr::NOSUID).map(drop)
        })
    });
    tried(None, "private devpts", result, "made", "boot a kernel with CONFIG_UNIX98_PTYS")
}

/// Only root can translate owners of the host's files, and only root needs it.
fn idmap() -> Finding {
    let (layer, name) = (None, "idmapped mounts");
    if !nix::unistd::geteuid().is_root() {
        return found(layer, name, "not needed: the sandbox's user is the caller");
    }
    let result = Ahead::start(false).and_then(|ahead| ahead.idmap((0, 0), 1)).and_then(|userns| {
        let tree = mount::clone_tree(fs::cwd(), c"/")?;
        mount::set_idmap(tree.as_fd(), userns.as_fd())
    });
    let remedy = "grants of writable directories then belong to nobody inside; use a file system that can (ext4, xfs, btrfs, tmpfs)";
    tried(layer, name, result, "the root file system can", remedy)
}

fn rlimits() -> Finding {
    found(Some(Layer::Rlimits), Layer::Rlimits.name(), "part of every kernel")
}

fn capabilities(usable: bool) -> Finding {
    let result = needs(usable, || {
        in_namespaces(0, || {
            prctl::drop_bounding(0)?;
            prctl::lock_securebits()?;
            prctl::set_capabilities(0, 0)
        })
    });
    tried(Some(Layer::Capabilities), Layer::Capabilities.name(), result, "every set can be emptied", "see `userns`")
}

fn no_new_privs() -> Finding {
    let result = in_child(|| {
        prctl::set_no_new_privs()?;
        if prctl::no_new_privs() { Ok(()) } else { Err(Errno::EINVAL) }
    });
    tried(Some(Layer::NoNewPrivs), Layer::NoNewPrivs.name(), result, "set and read back", "boot Linux 3.5 or newer")
}

fn landlock() -> Finding {
    let (layer, name) = (Some(Layer::Landlock), Layer::Landlock.name());
    let abi = prctl::landlock_abi();
    if abi == 0 {
        let remedy = "boot Linux 5.13 or newer with `landlock` in its lsm= list, or give --optional landlock";
        return missing(layer, name, "the kernel has none, or it is not switched on", remedy);
    }
    let lacking = landlock_lacks(abi);
    if lacking.is_empty() {
        return found(layer, name, format!("ABI {abi}"));
    }
    // It works, so it is there; what is missing is said.
    Finding {
        remedy: Some(format!("for ABI {LANDLOCK_ABI_WANTED}, boot Linux 6.12 or newer")),
        ..found(layer, name, format!("ABI {abi}, which does not restrict {}", lacking.join(", ")))
    }
}

fn landlock_lacks(abi: u32) -> Vec<&'static str> {
    LANDLOCK_GAINS.iter().filter(|(since, _)| *since > abi).map(|(_, gain)| *gain).collect()
}

/// What isolation level partial stands on: all that needs no mount.
fn level_partial(findings: &[Finding]) -> Finding {
    let name = "isolation level partial";
    let stands_on = |layer: Layer| {
        layer.is_foundation() && layer != Layer::Mountns || matches!(layer, Layer::Landlock | Layer::Seccomp)
    };
    let is_lacking = |finding: &&Finding| {
        !finding.available && finding.layer.is_some_and(|layer| stands_on(layer) && finding.facility == layer.name())
    };
    if let Some(lacking) = findings.iter().find(is_lacking) {
        return missing(None, name, format!("it stands on {}", lacking.facility), "");
    }
    let abi = prctl::landlock_abi();
    if abi < LANDLOCK_ALONE {
        let detail = format!("it stands on Landlock ABI {LANDLOCK_ALONE} or newer, and this is {abi}");
        return missing(None, name, detail, "boot Linux 6.2 or newer, or take level full");
    }
    found(None, name, "the layers that it stands on are there")
}

fn filters() -> [Finding; 3] {
    let allow = [Filter { code: 0x06, jt: 0, jf: 0, k: bpf::RET_ALLOW }];
    let to_errno = |error: std::io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    let layer = Some(Layer::Seccomp);
    let filter = probe::try_calls(&allow, &[]).map(drop).map_err(to_errno);
    let getpid = Call { entry: Entry::Native, nr: nix::libc::SYS_getpid as u32, args: [0; 6] };
    let listener = seccomp::check_sizes().and_then(|()| {
        let (listener, pid) = probe::call_under_listener(&allow, getpid).map_err(to_errno)?;
        drop(listener);
        process::wait(pid, 0).map(drop)
    });
    let killable = if probe::has_wait_killable() { Ok(()) } else { Err(Errno::EINVAL) };
    [
        tried(layer, Layer::Seccomp.name(), filter, "a filter was loaded", "boot a kernel with CONFIG_SECCOMP_FILTER"),
        tried(
            layer,
            "seccomp listener",
            listener,
            "a listener was made",
            "boot Linux 5.5 or newer; without it --why records nothing",
        ),
        tried(
            layer,
            "killable notifications",
            killable,
            "signals do not interrupt a call that the listener has seen",
            "boot Linux 5.19 or newer; without it signals can make a recorded call run twice",
        ),
    ]
}

fn processes() -> [Finding; 3] {
    let newer = "boot Linux 5.9 or newer, outside of a filter that refuses it";
    [
        tried(None, "clone3", in_child(|| Ok(())), "a child was made", newer),
        tried(None, "pidfd", process::pidfd_open(process_id()).map(drop), "pidfd_open", newer),
        tried(None, "close_range", in_child(|| process::close_from(3, u32::MAX, true)), "works", newer),
    ]
}

fn process_id() -> Pid {
    nix::unistd::getpid().as_raw()
}

/// Does `work` in a child; its errno comes back as the child's exit code.
fn in_child(work: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    match process::clone_into(0, None)? {
        Side::Child => end(work()),
        Side::Parent { pid, .. } => result_of(pid),
    }
}

/// The same in a user namespace with one id, and further namespaces.
fn in_namespaces(flags: i32, work: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    let to_errno = |error: std::io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    let (mapped, mapping) = std::io::pipe().map_err(to_errno)?;
    match process::clone_into((nix::libc::CLONE_NEWUSER | flags) as u64, None)? {
        Side::Child => {
            drop(mapping);
            // The end of the pipe: the parent has written the maps.
            let ready = fs::read(mapped.as_fd(), &mut [0]);
            end(ready.and_then(|_| work()))
        }
        Side::Parent { pid, .. } => {
            let maps = write_maps(pid);
            drop(mapping);
            let result = result_of(pid);
            maps.and(result)
        }
    }
}

fn write_maps(pid: Pid) -> Result<(), Errno> {
    write_map(pid, "uid_map", 0, nix::unistd::geteuid().as_raw())?;
    write_proc(pid, "setgroups", "deny")?;
    write_map(pid, "gid_map", 0, nix::unistd::getegid().as_raw())
}

fn end(result: Result<(), Errno>) -> ! {
    process::exit_now(result.map_or_else(|errno| errno as i32, |()| 0))
}

fn result_of(pid: Pid) -> Result<(), Errno> {
    match process::wait(pid, 0)? {
        Some((_, Ended::Code(0))) => Ok(()),
        Some((_, Ended::Code(errno))) => Err(Errno::from_raw(errno)),
        Some((_, Ended::Signal(_))) | None => Err(Errno::EINTR),
    }
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(errno: Errno, sysctl: Option<(&str, &str)>, detail: &str, remedy: &str) {
        let read = |path: &str| sysctl.filter(|(name, _)| *name == path).map(|(_, value)| value.to_owned());
        let (found_detail, found_remedy) = userns_blocker(errno, read);
        assert!(found_detail.contains(detail), "{found_detail}");
        assert!(found_remedy.contains(remedy), "{found_remedy}");
    }

    #[test]
    fn the_blocker_of_user_namespaces_is_named() {
        let max = ("/proc/sys/user/max_user_namespaces", "0");
        check(Errno::ENOSPC, Some(max), "user.max_user_namespaces is 0", "sysctl -w user.max_user_namespaces=15000");
        let clone = ("/proc/sys/kernel/unprivileged_userns_clone", "0");
        check(Errno::EPERM, Some(clone), "unprivileged_userns_clone is 0", "unprivileged_userns_clone=1");
        let apparmor = ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1");
        check(Errno::EPERM, Some(apparmor), "is 1", "userns,");
        check(Errno::EPERM, None, "seccomp profile", "--security-opt");
        check(Errno::ENOSPC, None, "too many", "run fewer");
    }

    #[test]
    fn what_an_old_landlock_lacks_is_said() {
        assert_eq!(landlock_lacks(6), Vec::<&str>::new());
        assert_eq!(landlock_lacks(4), ["device ioctls", "signals and abstract sockets"]);
        assert_eq!(landlock_lacks(1).len(), 5);
    }
}

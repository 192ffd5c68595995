//! One look at the host: which cgroup hierarchies are mounted, where we are in them, which of them we may write.
//!
//! Stands on the start-up path of every run. System calls: on the usual v1 host three for /proc/self/cgroup (one record: open, read,
//! close), one for the namespace, one for each controller and one more where our cgroup is not the root. Elsewhere /proc/self/mountinfo is read too. v2 costs eight for each
//! level that is looked at (usually one or two), and four more where controllers are not yet switched on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use super::dir::{read_control, read_list};
use super::{Controller, Place, v1, v2};

/// A mounted cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mounted {
    /// The part of the hierarchy that the mount shows.
    root: String,
    /// Where.
    point: PathBuf,
    /// `None` for v2, else the controllers of v1 that a plan can ask for.
    v1: Option<Vec<Controller>>,
}

/// Our cgroup in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Own {
    /// `None` for v2.
    v1: Option<Vec<Controller>>,
    path: String,
}

/// See [`super::Site::find`].
pub(super) fn find(wanted: &[Controller]) -> Place {
    if let Some(hierarchies) = standard_v1(wanted) {
        return Place::V1(hierarchies);
    }
    let (mountinfo, own) =
        match (read_list(Path::new("/proc/self/mountinfo")), read_control(Path::new("/proc/self/cgroup"))) {
            (Ok(mountinfo), Ok(own)) => (mountinfo, own),
            (Err(error), _) | (_, Err(error)) => {
                return Place::Missing {
                    reason: format!("/proc/self/mountinfo and /proc/self/cgroup cannot be read: {error}"),
                    remedy: "mount /proc, or give --optional cgroup".to_owned(),
                };
            }
        };
    let mounts = parse_mountinfo(&mountinfo);
    let own = parse_own(&own);
    let v2_mount = mounts.iter().find(|mount| mount.v1.is_none());

    // A controller lives in one hierarchy only: where v1 has all of them, v2 need not be asked.
    let all_on_v1 =
        wanted.iter().all(|controller| own.iter().any(|own| own.v1.as_ref().is_some_and(|v1| v1.contains(controller))));
    let v2 = v2_mount.filter(|_| !all_on_v1).and_then(|mount| v2_parent(mount, &own, wanted));
    if let Some(parent) = &v2
        && covers(&parent.controllers, wanted)
    {
        return Place::V2(parent.clone());
    }
    let v1 = v1_hierarchies(&mounts, &own, wanted);
    let v1_controllers = super::controllers_of(&v1);
    let v2_count = v2.as_ref().map_or(0, |parent| parent.controllers.len());
    if !v1_controllers.is_empty() && v1_controllers.len() >= v2_count {
        return Place::V1(v1);
    }
    if let Some(parent) = v2
        && v2_count > 0
    {
        return Place::V2(parent);
    }
    if let Some(mount) = v2_mount.filter(|_| !all_on_v1)
        && let Some(bus) = user_bus()
    {
        return Place::SystemdUser { mount: mount.point.clone(), bus };
    }
    missing(&mounts, &own)
}

/// Inode number of the first cgroup namespace (`PROC_CGROUP_INIT_INO` in the kernel's proc_ns.h).
const FIRST_NAMESPACE: u64 = 0xEFFF_FFFB;

/// Every wanted controller on v1 and mounted where it usually is: the answer without mountinfo, which the kernel takes long to write.
///
/// What must not happen is that a mount of a part of a hierarchy passes for the whole, since a cgroup would then be made outside our own.
/// `release_agent` stands only in the very root of a hierarchy (cgroups(7)), and in the first cgroup namespace paths begin
/// there. Whatever is not so, or not writable for us, is left to mountinfo.
fn standard_v1(wanted: &[Controller]) -> Option<Vec<v1::Hierarchy>> {
    let own = parse_own(&read_control(Path::new("/proc/self/cgroup")).ok()?);
    let namespace = nix::sys::stat::stat("/proc/self/ns/cgroup").ok()?;
    if wanted.is_empty() || namespace.st_ino != FIRST_NAMESPACE {
        return None;
    }
    let mut found: Vec<v1::Hierarchy> = Vec::new();
    for controller in wanted {
        if found.iter().any(|hierarchy| hierarchy.controllers.contains(controller)) {
            continue;
        }
        let own = own.iter().find(|own| own.v1.as_ref().is_some_and(|v1| v1.contains(controller)))?;
        let point = Path::new("/sys/fs/cgroup").join(controller.name());
        access(&point.join("release_agent"), AccessFlags::W_OK).ok()?;
        let mount = Mounted { root: "/".to_owned(), point, v1: own.v1.clone() };
        let parent = directory(&mount, &own.path)?;
        // Who may write the agent is root, on a mount that may be written: then that holds for the root directory too.
        if parent != mount.point {
            access(&parent, AccessFlags::W_OK).ok()?;
        }
        found.push(v1::Hierarchy { controllers: own.v1.clone()?, parent, path: own.path.clone() });
    }
    found.sort_by(|a, b| a.controllers.cmp(&b.controllers));
    Some(found)
}

/// Where a v2 directory without limits can be made: our own cgroup, or the nearest above it that we may write.
pub(super) fn writable_v2() -> Option<v2::Bare> {
    let mounts = parse_mountinfo(&read_list(Path::new("/proc/self/mountinfo")).ok()?);
    let own = parse_own(&read_control(Path::new("/proc/self/cgroup")).ok()?);
    let own = own.iter().find(|own| own.v1.is_none())?;
    let mount = mounts.iter().find(|mount| mount.v1.is_none())?;
    v2::find_bare(&mount.point, &directory(mount, &own.path)?, &own.path)
}

fn covers(have: &[Controller], wanted: &[Controller]) -> bool {
    !have.is_empty() && wanted.iter().all(|controller| have.contains(controller))
}

fn v2_parent(mount: &Mounted, own: &[Own], wanted: &[Controller]) -> Option<v2::Parent> {
    let own = own.iter().find(|own| own.v1.is_none())?;
    let dir = directory(mount, &own.path)?;
    v2::find_parent(&mount.point, &dir, &own.path, wanted)
}

fn v1_hierarchies(mounts: &[Mounted], own: &[Own], wanted: &[Controller]) -> Vec<v1::Hierarchy> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for mount in mounts {
        let Some(controllers) = &mount.v1 else {
            continue;
        };
        let Some(group) = own.iter().find(|own| own.v1.as_ref() == Some(controllers)) else {
            continue;
        };
        let useful = controllers.iter().any(|controller| wanted.contains(controller));
        let Some(parent) = directory(mount, &group.path) else {
            continue;
        };
        if useful && !seen.contains(controllers) && access(&parent, AccessFlags::W_OK).is_ok() {
            seen.insert(controllers.clone());
            found.push(v1::Hierarchy { controllers: controllers.clone(), parent, path: group.path.clone() });
        }
    }
    found.sort_by(|a, b| a.controllers.cmp(&b.controllers));
    found
}

/// The directory of the cgroup `path`, when the mount shows it.
fn directory(mount: &Mounted, path: &str) -> Option<PathBuf> {
    // A path with `..` is outside our cgroup namespace, and what it names here would be another cgroup.
    if path.split('/').any(|part| part == "..") {
        return None;
    }
    let below = Path::new(path).strip_prefix(&mount.root).ok()?;
    Some(if below.as_os_str().is_empty() { mount.point.clone() } else { mount.point.join(below) })
}

/// The cgroup mounts of proc_pid_mountinfo(5), v1 only those with a controller that a plan can ask for.
fn parse_mountinfo(text: &str) -> Vec<Mounted> {
    text.lines().filter_map(parse_mount).collect()
}

fn parse_mount(line: &str) -> Option<Mounted> {
    let (mount, device) = line.split_once(" - ")?;
    let mut device = device.split(' ');
    let kind = device.next()?;
    if !kind.starts_with("cgroup") {
        return None;
    }
    let options = device.nth(1).unwrap_or_default();
    let mut mount = mount.split(' ').skip(3);
    let root = unescape(mount.next()?);
    let point = PathBuf::from(unescape(mount.next()?));
    let v1 = match kind {
        "cgroup2" => None,
        _ => Some(known(options).filter(|controllers| !controllers.is_empty())?),
    };
    Some(Mounted { root, point, v1 })
}

/// Our cgroups, from proc_pid_cgroup(5).
fn parse_own(text: &str) -> Vec<Own> {
    text.lines().filter_map(parse_own_line).collect()
}

fn parse_own_line(line: &str) -> Option<Own> {
    let mut fields = line.splitn(3, ':');
    let number = fields.next()?;
    let controllers = fields.next()?;
    let path = fields.next()?.to_owned();
    let v1 = match (number, controllers) {
        ("0", "") => None,
        _ => Some(known(controllers)?),
    };
    Some(Own { v1, path })
}

fn known(words: &str) -> Option<Vec<Controller>> {
    let words: Vec<&str> = words.split(',').collect();
    Some(Controller::ALL.into_iter().filter(|controller| words.contains(&controller.name())).collect())
}

/// Undoes the octal escapes of mountinfo (space, tab, newline, backslash).
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// The address of our session bus, when a systemd user manager is there to ask: its private socket stands in the same place.
fn user_bus() -> Option<String> {
    let runtime = PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR")?);
    if !runtime.join("systemd/private").exists() {
        return None;
    }
    if let Ok(address) = std::env::var("DBUS_SESSION_BUS_ADDRESS") {
        return Some(address);
    }
    let bus = runtime.join("bus");
    bus.exists().then(|| format!("unix:path={}", bus.display()))
}

/// The answer when nothing can be had: what stands in the way on this very host, and what to do.
fn missing(mounts: &[Mounted], own: &[Own]) -> Place {
    let uid = nix::unistd::geteuid();
    let ours = mounts.iter().find_map(|mount| {
        let own = own.iter().find(|own| own.v1 == mount.v1)?;
        directory(mount, &own.path)
    });
    let reason = match ours {
        None if mounts.is_empty() => "no cgroup hierarchy is mounted here".to_owned(),
        None => "the mounted cgroup hierarchies do not show the cgroup that this process is in".to_owned(),
        Some(dir) if access(&dir, AccessFlags::W_OK).is_err() => {
            format!("uid {uid} may not make a cgroup in {}: that directory is not delegated to it", dir.display())
        }
        Some(dir) => format!(
            "no controller of memory, pids and cpu can be enabled below {}: other processes are in that cgroup, or it was not given the controllers",
            dir.display()
        ),
    };
    let remedy = if mounts.is_empty() {
        "mount cgroup2 on /sys/fs/cgroup, or give --optional cgroup to run without limits on memory, CPU and tasks"
    } else if !Path::new("/run/systemd/system").exists() {
        "let root delegate a cgroup to this user (mkdir, chown it and its cgroup.procs) and start apex-run in it, or give --optional cgroup to run without limits on memory, CPU and tasks"
    } else if uid.is_root() {
        "start it as `systemd-run --scope -p Delegate=yes apex-run ...`, or give --optional cgroup to run without limits on memory, CPU and tasks"
    } else {
        "start it as `systemd-run --user --scope -p Delegate=yes apex-run ...` (without a session: `loginctl enable-linger` first), or give --optional cgroup to run without limits on memory, CPU and tasks"
    };
    Place::Missing { reason, remedy: remedy.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /box /sys/fs/cgroup/my\\040memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate";

    #[test]
    fn mountinfo_keeps_the_hierarchies_that_limit() {
        let mounts = parse_mountinfo(HYBRID);
        let seen: Vec<_> =
            mounts.iter().map(|mount| (mount.root.as_str(), mount.point.to_str().unwrap(), mount.v1.clone())).collect();
        assert_eq!(
            seen,
            [
                ("/", "/sys/fs/cgroup/cpu,cpuacct", Some(vec![Controller::Cpu])),
                ("/box", "/sys/fs/cgroup/my memory", Some(vec![Controller::Memory])),
                ("/", "/sys/fs/cgroup/unified", None),
            ]
        );
    }

    #[test]
    fn own_cgroups_match_their_mounts() {
        let own = parse_own("4:memory:/box/a:b\n2:cpu,cpuacct:/\n1:name=systemd:/x\n0::/user\n");
        assert_eq!(own[0].path, "/box/a:b");
        assert_eq!(own[1].v1, Some(vec![Controller::Cpu]));
        assert_eq!(own[2].v1, Some(vec![]));
        assert_eq!(own[3].v1, None);
    }

    #[test]
    fn a_cgroup_outside_the_mount_has_no_directory() {
        let mount = |root: &str| Mounted { root: root.to_owned(), point: PathBuf::from("/m"), v1: None };
        let check = |root: &str, path: &str, expected: Option<&str>| {
            assert_eq!(directory(&mount(root), path), expected.map(PathBuf::from), "{root} {path}");
        };
        check("/", "/", Some("/m"));
        check("/", "/a/b", Some("/m/a/b"));
        check("/a", "/a/b", Some("/m/b"));
        check("/a", "/ab", None);
        check("/a", "/", None);
        check("/", "/../x", None);
    }

    #[test]
    fn malformed_lines_are_passed_over() {
        assert_eq!(parse_mountinfo("\n - \n1 2 3 - cgroup\nx - cgroup2 y z"), []);
        assert_eq!(parse_own("\n0:\nx"), []);
    }
}

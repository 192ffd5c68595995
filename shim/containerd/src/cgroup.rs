//! Where the cgroups of a container are, asked of the kernel: v1, v2, or v1 with an empty v2 beside it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// The directories that count for a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// Of v1, by controller.
    pub v1: BTreeMap<String, PathBuf>,
    /// Of v2, when it has the controllers.
    pub v2: Option<PathBuf>,
}

/// A mounted hierarchy.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    /// What of it is mounted.
    root: PathBuf,
    at: PathBuf,
    /// Controllers of v1; none is v2.
    controllers: Option<Vec<String>>,
}

impl Cgroup {
    /// Those of a process (cgroups(7)).
    pub fn of(pid: i32) -> io::Result<Self> {
        let memberships = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        Ok(Self::parse(&memberships, &mounts))
    }

    fn parse(memberships: &str, mounts: &str) -> Self {
        let hierarchies = mounts.lines().filter_map(hierarchy).collect::<Vec<_>>();
        let mut cgroup = Cgroup::default();
        for line in memberships.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            if controllers.is_empty() {
                let mut v2 = hierarchies.iter().filter(|hierarchy| hierarchy.controllers.is_none());
                cgroup.v2 = v2.find_map(|hierarchy| hierarchy.place(path));
            }
            for controller in controllers.split(',').filter(|controller| !controller.is_empty()) {
                let has = |hierarchy: &&Hierarchy| {
                    hierarchy.controllers.iter().flatten().any(|mounted| mounted == controller)
                };
                if let Some(place) = hierarchies.iter().filter(has).find_map(|hierarchy| hierarchy.place(path)) {
                    cgroup.v1.insert(controller.to_owned(), place);
                }
            }
        }
        // With v1 beside it, v2 has no controller of use.
        if cgroup.v1.contains_key("memory") || cgroup.v1.contains_key("cpu") {
            cgroup.v2 = None;
        }
        cgroup
    }
}

impl Hierarchy {
    fn place(&self, path: &str) -> Option<PathBuf> {
        let within = Path::new(path).strip_prefix(&self.root).ok()?;
        // A path out of the namespace starts with `..` and is not below the mount.
        let is_below = within.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        is_below.then(|| self.at.join(within))
    }
}

/// One line of mountinfo (proc_pid_mountinfo(5)), when it is of cgroups.
fn hierarchy(line: &str) -> Option<Hierarchy> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(3);
    let (root, at) = (front.next()?, front.next()?);
    let mut back = back.split(' ');
    let controllers = match back.next()? {
        "cgroup2" => None,
        "cgroup" => Some(back.nth(1)?.split(',').map(str::to_owned).collect()),
        _ => return None,
    };
    // Escapes for spaces do not occur in mounts of cgroups that anybody has.
    Some(Hierarchy { root: PathBuf::from(root), at: PathBuf::from(at), controllers })
}

/// Puts a process into a cgroup that is there already, by its path in each hierarchy.
pub fn enter(path: &str, pid: u32) -> io::Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut entered = 0;
    for place in mounts.lines().filter_map(hierarchy).filter_map(|hierarchy| hierarchy.place(path)) {
        if place.is_dir() {
            std::fs::write(place.join("cgroup.procs"), pid.to_string())?;
            entered += 1;
        }
    }
    if entered == 0 {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no such cgroup in any hierarchy"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
30 29 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
31 29 0:27 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
32 29 0:28 /outer /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 29 0:29 / /tmp rw - tmpfs tmpfs rw
";

    #[test]
    fn v1_has_a_directory_for_each_controller() {
        let cgroup = Cgroup::parse("5:memory:/a/b\n4:cpu,cpuacct:/outer/a\n3:pids:/a\n0::/x\n", V1);
        assert_eq!(cgroup.v1["memory"], Path::new("/sys/fs/cgroup/memory/a/b"));
        assert_eq!(cgroup.v1["cpuacct"], Path::new("/sys/fs/cgroup/cpu,cpuacct/a"));
        assert_eq!((cgroup.v1.get("pids"), cgroup.v2), (None, None));
    }

    #[test]
    fn v2_is_one_directory() {
        let mounts = "30 29 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let cgroup = Cgroup::parse("0::/system.slice/x\n", mounts);
        assert_eq!(cgroup.v2.as_deref(), Some(Path::new("/sys/fs/cgroup/system.slice/x")));
        assert_eq!(Cgroup::parse("0::/../x\n", mounts), Cgroup::default());
    }
}

//! What the planner needs to know about a host. The jail looks; the planner only asks.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use crate::plan::CgroupPlan;

/// What stands at a path of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathFact {
    /// Nothing.
    Missing,
    /// A directory.
    Dir,
    /// A regular file, device, socket or FIFO.
    File,
    /// A symbolic link, with its literal target. Reported for system paths only; a grant by the user is followed.
    Symlink(PathBuf),
    /// It exists and must not or cannot be used; the reason is for people.
    Refused(String),
}

/// How limits on groups of processes can be set here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupSupport {
    /// cgroup v2, at a directory in which we may make children with these controllers.
    V2 {
        /// The directory under which the sandbox gets its own.
        parent: PathBuf,
        /// Controllers that a child can use.
        controllers: Vec<String>,
    },
    /// cgroup v1 hierarchies that we may write.
    V1 {
        /// Controllers that are mounted and writable.
        controllers: Vec<String>,
    },
    /// A scope from the systemd user manager is needed and can be had.
    SystemdUser,
    /// None; the reason and the remedy are for people.
    Missing {
        /// What stands in the way.
        reason: String,
        /// What to do.
        remedy: String,
    },
}

/// A look at the host. Implemented by the jail on the real one and by tests on an invented one.
pub trait Host {
    /// What stands at `path`. `follow` says whether a link at the end is followed (grants of the user) or shown (system paths).
    fn path(&self, path: &Path, follow: bool) -> PathFact;
    /// The path with every link resolved. For a path that does not exist: what exists of it, resolved, with the rest behind it.
    fn real(&self, path: &Path) -> PathBuf;
    /// The names in a directory, `None` when it cannot be read.
    fn names(&self, dir: &Path) -> Option<Vec<OsString>>;
    /// Landlock ABI, 0 when the kernel has none.
    fn landlock_abi(&self) -> u32;
    /// How cgroup limits can be had.
    fn cgroup(&self, plan: &CgroupPlan) -> CgroupSupport;
    /// Whether the kernel has time namespaces.
    fn has_time_namespaces(&self) -> bool;
    /// Effective user and group of the caller.
    fn caller(&self) -> (u32, u32);
    /// Whether the caller may give the sandbox host ids of its own: root of the host, with its capabilities. Root of a rootless
    /// container is not.
    fn gives_host_ids(&self) -> bool;
    /// The value of one variable of the caller's environment.
    fn env(&self, name: &str) -> Option<String>;
    /// The caller's working directory.
    fn cwd(&self) -> PathBuf;
}

/// Links on the way of one path that are followed, as in the kernel (path_resolution(7)).
pub const LINKS_MAX: usize = 40;

/// A symbolic link on the way of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Where it lies; no link leads there.
    pub place: PathBuf,
    /// What the whole path is once it is followed.
    pub leads_to: PathBuf,
}

/// The links on the way of an absolute path, in their order, at most [`LINKS_MAX`]. `target` tells where one leads, and `None` of what is none.
pub fn links(path: &Path, target: impl Fn(&Path) -> Option<PathBuf>) -> Vec<Link> {
    let mut found = Vec::new();
    let mut at = PathBuf::from("/");
    let mut pending = names_backwards(path);
    while let Some(name) = pending.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        let place = at.join(&name);
        let Some(target) = target(&place) else {
            at = place;
            continue;
        };
        if found.len() == LINKS_MAX {
            break;
        }
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        pending.extend(names_backwards(&target));
        let leads_to = pending.iter().rev().fold(at.clone(), |path, name| path.join(name));
        found.push(Link { place, leads_to });
    }
    found
}

/// The names of a path, last first.
pub fn names_backwards(path: &Path) -> Vec<OsString> {
    let name = |part: Component<'_>| {
        matches!(part, Component::Normal(_) | Component::ParentDir).then(|| part.as_os_str().to_owned())
    };
    path.components().rev().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_on_the_way_is_found_and_a_circle_ends() {
        let target = |place: &Path| match place.to_str()? {
            "/a/one" => Some("../b/two/c".into()),
            "/b/two" => Some("/d".into()),
            "/round" => Some("round".into()),
            _ => None,
        };
        let link = |place: &str, leads_to: &str| Link { place: place.into(), leads_to: leads_to.into() };
        let found = links(Path::new("/a/one/x"), target);
        assert_eq!(found, [link("/a/one", "/a/../b/two/c/x"), link("/b/two", "/d/c/x")]);
        assert_eq!(links(Path::new("/b/plain/x"), target), []);
        assert_eq!(links(Path::new("/round"), target).len(), LINKS_MAX);
    }
}

//! A watch over the names of denied paths.
//!
//! A mask is a mount on the file that bears the name. When somebody on the host removes that file or renames another over it, the
//! kernel takes the mask away with it (the mount was on the file, not on the name), and what comes next under the name
//! would be open to the sandbox. So the launcher watches each directory on the way to a denied path, and ends the sandbox as soon as
//! the name changes hands. Between the two lies the time that a wake-up takes: `docs/THREAT-MODEL.md` says so.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use apex_core::host::Host;
use apex_core::plan::{Mount, Plan};
use apex_core::planner::mount_dest;
use apex_sys::{Errno, fs};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use crate::host::LiveHost;
use crate::step::{Failure, Step};

/// The watched names of one sandbox.
pub struct Guard {
    inotify: Inotify,
    names: Vec<(WatchDescriptor, OsString, PathBuf)>,
}

impl Guard {
    /// Watches every name of the plan that needs it; `None` when the plan denies nothing of the host.
    pub fn set(plan: &Plan, host: &LiveHost) -> Result<Option<Guard>, Failure> {
        let mut guard = None;
        for (index, mount) in plan.mounts.iter().enumerate() {
            let Mount::Deny { dest, source, .. } = mount else { continue };
            let Some(grants) = grants_around(&plan.mounts, dest, source) else { continue };
            let failed = Failure::at(Step::Placeholder, index);
            if guard.is_none() {
                let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
                guard = Some(Guard { inotify: Inotify::init(flags).map_err(&failed)?, names: Vec::new() });
            }
            if let Some(guard) = &mut guard {
                guard.watch(&grants, source, host).map_err(&failed)?;
            }
        }
        Ok(guard)
    }

    /// Watches each directory from the grant down to the denied name for the next name on the way.
    fn watch(&mut self, grants: &Grants, denied: &Path, host: &LiveHost) -> Result<(), Errno> {
        const CHANGES_HANDS: AddWatchFlags = AddWatchFlags::IN_MOVE
            .union(AddWatchFlags::IN_CREATE)
            .union(AddWatchFlags::IN_DELETE)
            .union(AddWatchFlags::IN_ONLYDIR);
        let on_the_way = denied.ancestors().take_while(|path| *path != grants.outermost);
        for path in on_the_way {
            let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { continue };
            host.path(dir, true);
            let held = host.held(dir).ok_or(Errno::ENOENT)?;
            let watch = match self.inotify.add_watch(fs::own_name(held.fd.as_fd()).as_c_str(), CHANGES_HANDS) {
                Err(Errno::EACCES) if is_out_of_reach(dir, held.stat.uid, host.caller().0, grants) => continue,
                other => other?,
            };
            self.names.push((watch, name.to_owned(), path.to_owned()));
        }
        Ok(())
    }

    /// What to wait for.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// A watched name that changed hands, when one did. A lost event counts as one.
    pub fn changed(&self) -> Result<Option<PathBuf>, Errno> {
        let events = match self.inotify.read_events() {
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            other => other?,
        };
        let hit = |event: &nix::sys::inotify::InotifyEvent| {
            let is_lost = event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
            self.names
                .iter()
                .find(|(watch, name, _)| is_lost || (*watch == event.wd && event.name.as_ref() == Some(name)))
                .map(|(_, _, path)| path.clone())
        };
        Ok(events.iter().find_map(hit))
    }
}

/// The grants through which a denied path shows, one within the other.
#[derive(Debug, PartialEq, Eq)]
struct Grants {
    outermost: PathBuf,
    innermost: PathBuf,
}

/// A bind within another, such as the policy's own, stands on a directory of the host: moved away it takes the mask along, and the outer grant
/// shows what comes next under its name.
fn grants_around(mounts: &[Mount], denied: &Path, source: &Path) -> Option<Grants> {
    let is_around = |mount: &&Mount| {
        matches!(mount, Mount::Bind { .. } | Mount::Tmpfs { .. }) && denied.starts_with(mount_dest(mount))
    };
    let base = |mount: &Mount| match mount {
        Mount::Bind { source: base, dest, .. } => {
            let (inside, outside) = (denied.strip_prefix(dest).ok()?, source.strip_prefix(base).ok()?);
            (inside == outside).then(|| base.clone())
        }
        _ => None,
    };
    // In the plan a mount stands before those within it.
    let mut bases = mounts.iter().rev().filter(is_around).map_while(base);
    let innermost = bases.next()?;
    Some(Grants { outermost: bases.last().unwrap_or_else(|| innermost.clone()), innermost })
}

/// Whether a directory that the caller may not read is left unwatched: one of somebody else above what was granted, such as a /home of mode 0711.
fn is_out_of_reach(dir: &Path, owner: u32, caller: u32, grants: &Grants) -> bool {
    owner != caller && !dir.starts_with(&grants.innermost)
}

#[cfg(test)]
mod tests {
    use apex_core::plan::{BindAccess, Kind};
    use apex_core::policy::Origin;

    use super::*;

    fn bind(source: &str, dest: &str) -> Mount {
        Mount::Bind {
            source: source.into(),
            dest: dest.into(),
            access: BindAccess::Write,
            exec: false,
            kind: Kind::Dir,
            idmap: false,
            reason: String::new(),
            origin: Origin::flag("test"),
        }
    }

    #[test]
    fn the_watch_begins_at_the_outermost_grant_that_shows_the_same() {
        let tmpfs =
            |dest: &str| Mount::Tmpfs { dest: dest.into(), size_bytes: 1, exec: false, origin: Origin::flag("test") };
        let check = |mounts: &[Mount], denied: &str, source: &str, expected: Option<(&str, &str)>| {
            let expected = expected
                .map(|(outermost, innermost)| Grants { outermost: outermost.into(), innermost: innermost.into() });
            assert_eq!(grants_around(mounts, Path::new(denied), Path::new(source)), expected, "{denied}");
        };
        let nested = [bind("/", "/"), bind("/a", "/a"), bind("/a/b", "/a/b")];
        check(&nested, "/a/b/x", "/a/b/x", Some(("/", "/a/b")));
        check(&nested[1..], "/a/b", "/a/b", Some(("/a", "/a/b")));
        // Under a private directory the host moves no mount point, and another tree shows something else.
        check(&[bind("/", "/"), tmpfs("/a"), bind("/a/b", "/a/b")], "/a/b/x", "/a/b/x", Some(("/a/b", "/a/b")));
        check(&[bind("/o", "/d"), bind("/p", "/d/e")], "/d/e/x", "/p/x", Some(("/p", "/p")));
        check(&[tmpfs("/a")], "/a/x", "", None);
    }

    #[test]
    fn only_a_directory_of_somebody_else_above_the_grant_stays_unwatched() {
        let grants = Grants { outermost: "/".into(), innermost: "/home/ann/job".into() };
        let check = |dir: &str, owner| is_out_of_reach(Path::new(dir), owner, 1001, &grants);
        assert!(check("/home", 0));
        assert!(!check("/home/ann", 1001), "its owner can let it be read");
        assert!(!check("/home/ann/job", 0) && !check("/home/ann/job/keys", 0), "a denied name in it would be open");
    }
}

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
            let Some(base) = base_of(plan, dest, source) else { continue };
            let failed = Failure::at(Step::Placeholder, index);
            if guard.is_none() {
                let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
                guard = Some(Guard { inotify: Inotify::init(flags).map_err(&failed)?, names: Vec::new() });
            }
            if let Some(guard) = &mut guard {
                guard.watch(&base, source, host).map_err(&failed)?;
            }
        }
        Ok(guard)
    }

    /// Watches each directory from the grant down to the denied name for the next name on the way.
    fn watch(&mut self, base: &Path, denied: &Path, host: &LiveHost) -> Result<(), Errno> {
        const CHANGES_HANDS: AddWatchFlags = AddWatchFlags::IN_MOVE
            .union(AddWatchFlags::IN_CREATE)
            .union(AddWatchFlags::IN_DELETE)
            .union(AddWatchFlags::IN_ONLYDIR);
        let on_the_way = denied.ancestors().take_while(|path| *path != base);
        for path in on_the_way {
            let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { continue };
            host.path(dir, true);
            let held = host.held(dir).ok_or(Errno::ENOENT)?;
            let watch = self.inotify.add_watch(fs::own_name(held.fd.as_fd()).as_c_str(), CHANGES_HANDS)?;
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

/// The outermost grant through which a denied path shows. A bind within another, such as the policy's own, stands on a directory of the host:
/// moved away it takes the mask along, and the outer grant shows what comes next under its name.
fn base_of(plan: &Plan, denied: &Path, source: &Path) -> Option<PathBuf> {
    let shows = |mount: &&Mount| match mount {
        Mount::Bind { source: base, dest, .. } => {
            matches!((denied.strip_prefix(dest), source.strip_prefix(base)), (Ok(inside), Ok(outside)) if inside == outside)
        }
        _ => false,
    };
    let is_around = |mount: &&Mount| {
        matches!(mount, Mount::Bind { .. } | Mount::Tmpfs { .. }) && denied.starts_with(mount_dest(mount))
    };
    // In the plan a mount stands before those within it.
    let chain = plan.mounts.iter().rev().filter(is_around).take_while(shows);
    chain.last().and_then(|mount| match mount {
        Mount::Bind { source, .. } => Some(source.clone()),
        _ => None,
    })
}

//! Detached copies of the granted trees, ready to be put into the new root.
//!
//! Root takes them before the sandbox exists: it needs its own rights on the host to reach and to idmap them. Everybody else takes them
//! inside the new mount namespace, where alone an unprivileged process may; the path is then opened a second time and must
//! still be the very file that the launcher holds.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use apex_core::plan::{BindAccess, Mount, OverlayPlan, Plan};
use apex_sys::mount::{self, attr};
use apex_sys::{Errno, fs};

use crate::host::{Held, LiveHost, c_path, name_of};
use crate::step::{Failure, Step};

/// One tree for each bind of the plan, at the index of its mount, and the directory that keeps the layers of an overlay.
pub struct Trees {
    binds: Vec<Option<OwnedFd>>,
    store: Option<OwnedFd>,
}

impl Trees {
    /// Takes every tree. `idmap` is the user namespace through which owners are translated.
    pub fn take(plan: &Plan, host: &LiveHost, again: bool, idmap: Option<BorrowedFd<'_>>) -> Result<Trees, Failure> {
        let mut trees = Vec::with_capacity(plan.mounts.len());
        for (index, step) in plan.mounts.iter().enumerate() {
            trees.push(match step {
                Mount::Bind { source, access, exec, idmap: translate, .. } => {
                    let held = host.held(source).ok_or_else(|| Failure::at(Step::CloneTree, index)(Errno::ENOENT))?;
                    let tree =
                        take(&held, again, attributes(*access, *exec)).map_err(Failure::at(Step::CloneTree, index))?;
                    if let Some(userns) = idmap.filter(|_| *translate) {
                        mount::set_idmap(tree.as_fd(), userns).map_err(Failure::at(Step::Idmap, index))?;
                    }
                    Some(tree)
                }
                _ => None,
            });
        }
        Ok(Trees { binds: trees, store: take_store(plan, host, again, idmap)? })
    }

    /// The tree of the mount at this index, for the one who attaches it.
    pub fn give(&mut self, index: usize) -> Option<OwnedFd> {
        self.binds.get_mut(index).and_then(Option::take)
    }

    /// The tree that keeps the layers, when they are kept.
    pub fn give_store(&mut self) -> Option<OwnedFd> {
        self.store.take()
    }
}

fn take_store(
    plan: &Plan,
    host: &LiveHost,
    again: bool,
    idmap: Option<BorrowedFd<'_>>,
) -> Result<Option<OwnedFd>, Failure> {
    let Some(OverlayPlan::Kept { dir, idmap: translate }) = &plan.overlay else { return Ok(None) };
    let failed = Failure::at(Step::Layers, 0);
    let held = host.held(dir).ok_or_else(|| failed(Errno::ENOENT))?;
    let tree = take(&held, again, attr::NOSUID | attr::NODEV).map_err(&failed)?;
    if let Some(userns) = idmap.filter(|_| *translate) {
        mount::set_idmap(tree.as_fd(), userns).map_err(&failed)?;
    }
    Ok(Some(tree))
}

/// Whether the plan has trees whose owners are translated.
pub fn wants_idmap(plan: &Plan) -> bool {
    matches!(plan.overlay, Some(OverlayPlan::Kept { idmap: true, .. }))
        || plan.mounts.iter().any(|step| matches!(step, Mount::Bind { idmap: true, .. }))
}

fn attributes(access: BindAccess, exec: bool) -> u64 {
    let write = if access == BindAccess::Write { 0 } else { attr::RDONLY };
    let exec = if exec { 0 } else { attr::NOEXEC };
    attr::NOSUID | attr::NODEV | write | exec
}

fn take(held: &Held, again: bool, attributes: u64) -> Result<OwnedFd, Errno> {
    if !again {
        return mount::clone_tree_with(held.fd.as_fd(), c"", attributes);
    }
    let name = c_path(&name_of(&held.fd)?)?;
    let fd = fs::open(fs::cwd(), &name, nix::libc::O_PATH, fs::resolve::NO_SYMLINKS).map_err(swapped)?;
    let now = fs::stat(fd.as_fd(), c"")?;
    if (now.device, now.inode) != (held.stat.device, held.stat.inode) {
        return Err(Errno::ESTALE);
    }
    mount::clone_tree_with(fd.as_fd(), c"", attributes)
}

/// The launcher could open it: when it is gone or became a link now, it was replaced.
fn swapped(errno: Errno) -> Errno {
    match errno {
        Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR => Errno::ESTALE,
        other => other,
    }
}

//! What mounts and unmounts are told between the container and the host (mount_namespaces(7), `linux.rootfsPropagation`).

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use apex_sys::{Errno, fs, mount};
use nix::libc;
use oci_spec::runtime::Spec;

use super::{Propagation, RootfsError};

/// Hears of the host's mounts, tells of none.
pub const SLAVE: Propagation = Propagation { flag: libc::MS_SLAVE, recursive: true };
/// Hears of nothing, tells of nothing.
const PRIVATE: Propagation = Propagation { flag: libc::MS_PRIVATE, recursive: true };

/// What the configuration asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted(Option<Propagation>);

impl Wanted {
    /// Reads `linux.rootfsPropagation`.
    pub fn of(spec: &Spec) -> Result<Wanted, RootfsError> {
        let word = spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().as_deref()).unwrap_or_default();
        if word.is_empty() {
            return Ok(Wanted(None));
        }
        let wanted = Propagation::parse(word).ok_or_else(|| RootfsError::UnknownPropagation(word.to_owned()))?;
        Ok(Wanted(Some(wanted)))
    }

    /// Whether mounts of the container may reach the host.
    pub fn is_shared(self) -> bool {
        self.0.is_some_and(|wanted| wanted.flag == libc::MS_SHARED)
    }

    /// What becomes of copies of the host's mounts; `None` when they stay as they are.
    ///
    /// An unbindable mount could not be copied at all: that is for the finished root.
    pub fn of_copies(self) -> Option<Propagation> {
        match self.0.map(|wanted| wanted.flag) {
            Some(libc::MS_SHARED) => None,
            Some(libc::MS_PRIVATE | libc::MS_UNBINDABLE) => Some(PRIVATE),
            _ => Some(SLAVE),
        }
    }

    /// The first step: nothing that is mounted from here on reaches the host, but through binds that are to.
    pub fn apply_to_host(self, root: &Path, dir: BorrowedFd<'_>) -> Result<(), RootfsError> {
        match self.of_copies() {
            Some(copies) => {
                mount::change_at(fs::cwd(), c"/", copies.change(), true).map_err(failed(Path::new("/"), copies))
            }
            None => make_parent_private(dir).map_err(failed(root, PRIVATE)),
        }
    }

    /// The last step.
    pub fn apply_to_root(self, root: BorrowedFd<'_>) -> Result<(), RootfsError> {
        let Some(wanted) = self.0 else { return Ok(()) };
        mount::change(root, wanted.change(), wanted.recursive).map_err(failed(Path::new("/"), wanted))
    }
}

fn failed(path: &Path, propagation: Propagation) -> impl FnOnce(Errno) -> RootfsError {
    let propagation = match propagation.flag {
        libc::MS_SHARED => "shared",
        libc::MS_SLAVE => "a slave",
        libc::MS_UNBINDABLE => "unbindable",
        _ => "private",
    };
    move |source| RootfsError::Propagation { path: path.to_owned(), propagation: propagation.to_owned(), source }
}

/// The mount that the root lies on becomes private, so that the root, a copy of a piece of it, tells the host of nothing. It is found by going up: only the
/// top of a mount can be changed.
fn make_parent_private(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    /// Deeper than any path can be.
    const DEPTH_MAX: usize = 4096;
    let mut here = dir.try_clone_to_owned().map_err(|_| Errno::EMFILE)?;
    for _ in 0..DEPTH_MAX {
        match mount::change(here.as_fd(), PRIVATE.change(), false) {
            Err(Errno::EINVAL) => here = fs::open(here.as_fd(), c"..", libc::O_PATH, 0)?,
            other => return other,
        }
    }
    Err(Errno::ELOOP)
}

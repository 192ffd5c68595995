//! Where a cgroup v2 directory stands in its hierarchy.
//!
//! The kernel's side compares the ancestor of a process's cgroup at one level with the sandbox's id, so that nested cgroups need no list.
//! Input: the directory's descriptor. Output: its level and id. It must not use a path: names may change meanwhile.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};

/// Deepest directory that is looked at.
const LEVELS_MAX: u32 = 256;
/// Inode of the root of every cgroup hierarchy.
const ROOT_INODE: u64 = 1;

/// A place in the hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The cgroup's id, which is its directory's inode.
    pub id: u64,
    /// Directories between it and the root; the root itself has 0.
    pub level: u32,
}

/// Why a place could not be told.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The directory could not be looked at.
    #[error("cannot look at the cgroup directory {level} levels above the sandbox's")]
    Look {
        /// How far above.
        level: u32,
        /// Why.
        source: Errno,
    },
    /// The root of the hierarchy is not in sight.
    #[error("the root of the cgroup hierarchy is not in sight: the prober must run outside of any cgroup namespace")]
    Hidden,
}

/// Counts the steps from the directory to the root.
pub fn place(directory: BorrowedFd<'_>) -> Result<Place, PlaceError> {
    let look = |fd: BorrowedFd<'_>, level| fstat(fd).map_err(|source| PlaceError::Look { level, source });
    let first = look(directory, 0)?;
    let (mut inode, mut above): (u64, Option<OwnedFd>) = (first.st_ino, None);
    for level in 0..LEVELS_MAX {
        if inode == ROOT_INODE {
            return Ok(Place { id: first.st_ino, level });
        }
        let here = above.as_ref().map_or(directory, |fd| fd.as_fd());
        let up = openat(here, "..", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|source| PlaceError::Look { level: level + 1, source })?;
        let seen = look(up.as_fd(), level + 1)?;
        // Another file system: a mount of a part of the hierarchy ends here.
        if seen.st_dev != first.st_dev {
            return Err(PlaceError::Hidden);
        }
        inode = seen.st_ino;
        above = Some(up);
    }
    Err(PlaceError::Hidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_another_file_system_has_no_place() {
        let root = std::fs::File::open("/proc").expect("it is there");
        // /proc's own inode is 1, as a hierarchy's root is; one below it is not in a hierarchy of cgroups but ends there all the same.
        assert_eq!(place(root.as_fd()).expect("a root").level, 0);
        let shared = std::fs::File::open("/usr/bin").expect("it is there");
        assert!(matches!(place(shared.as_fd()), Err(PlaceError::Hidden)));
    }
}

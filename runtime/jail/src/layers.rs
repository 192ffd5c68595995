//! The layers of an overlay: what the sandbox writes lands in them, and the host below stays as it is (overlayfs, since Linux 5.11 for
//! user namespaces).
//!
//! Input: a plan whose writable pieces are overlaid, and the new root. Output: mounts for the root. The store of the layers is parked in
//! the new /dev while the root is built, since the kernel wants layers that are mounted; it is gone before the command starts, and what
//! is mounted keeps it alive.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use apex_core::plan::{OverlayPlan, Plan};
use apex_sys::mount::{self, attr};
use apex_sys::{Errno, fs};
use nix::unistd::{Whence, ftruncate, lseek};

use crate::root::{leave, private_tmpfs};
use crate::step::{Failure, Step};
use crate::trees::Trees;

/// Where the store is parked, in the new root.
const PLACE: &CStr = c"dev/.layers";
/// Bytes that are copied at once.
const CHUNK: usize = 64 << 10;
/// Permission bits of st_mode.
/// Of a mode, what passes: no set-id and no sticky bit.
pub(crate) const PERMISSIONS: u32 = 0o777;

/// The store, and how many layers it has.
pub struct Layers {
    store: OwnedFd,
    /// Whether the launcher made the directories.
    is_ready: bool,
    count: u32,
}

impl Layers {
    /// Parks the store.
    pub fn start(plan: &Plan, trees: &mut Trees, root: BorrowedFd<'_>) -> Result<Layers, Failure> {
        let failed = Failure::at(Step::Layers, 0);
        let kept = trees.give_store();
        let is_ready = kept.is_some();
        let store = match (&plan.overlay, kept) {
            (Some(OverlayPlan::Discarded { size_bytes }), _) => {
                private_tmpfs(*size_bytes, attr::NOSUID | attr::NODEV).map_err(&failed)?
            }
            (Some(OverlayPlan::Kept { .. }), Some(tree)) => tree,
            (Some(OverlayPlan::Kept { .. }) | None, _) => return Err(failed(Errno::EBADF)),
        };
        fs::mkdir(root, PLACE, 0o700).map_err(&failed)?;
        mount::attach(store.as_fd(), root, PLACE).map_err(&failed)?;
        Ok(Layers { store, is_ready, count: 0 })
    }

    /// A mount that shows `lower` and takes the writes.
    pub fn merge(&mut self, lower: BorrowedFd<'_>, exec: bool) -> Result<OwnedFd, Errno> {
        let number = self.next();
        if !self.is_ready {
            let mode = top_mode(fs::stat(lower, c"")?, own_id());
            for (name, mode) in [("", 0o700), ("/upper", mode), ("/work", 0o700)] {
                fs::mkdir(self.store.as_fd(), &text(&format!("{number}{name}")), 0o700)?;
                fs::chmod(self.store.as_fd(), &text(&format!("{number}{name}")), mode)?;
            }
        }
        let layer = |name: &str| text(&format!("/proc/self/fd/{}/{number}/{name}", self.store.as_raw_fd()));
        let lower = fs::own_name(lower);
        let (upper, work) = (layer("upper"), layer("work"));
        // In a user namespace the kernel wants its notes in user.overlay.*; trusted.* is for root of the host alone.
        let options: [(&CStr, &CStr); 4] =
            [(c"lowerdir", &lower), (c"upperdir", &upper), (c"workdir", &work), (c"userxattr", c"")];
        mount::new_filesystem(c"overlay", &options, attributes(exec))
    }

    /// A mount of a copy of a single file: no overlay stands on a file.
    pub fn copy(&mut self, file: BorrowedFd<'_>, exec: bool) -> Result<OwnedFd, Errno> {
        let number = self.next();
        let name = text(&format!("{number}/file"));
        let mode = fs::stat(file, c"")?.mode & PERMISSIONS;
        if !self.is_ready {
            fs::mkdir(self.store.as_fd(), &text(&number.to_string()), 0o700)?;
        }
        let from = fs::open(fs::cwd(), &fs::own_name(file), nix::libc::O_RDONLY, 0)?;
        let flags = nix::libc::O_WRONLY | nix::libc::O_CREAT | nix::libc::O_EXCL;
        let to = fs::create(self.store.as_fd(), &name, flags, 0o600, fs::resolve::NO_SYMLINKS)?;
        copy_all(from.as_fd(), to.as_fd())?;
        drop(to);
        fs::chmod(self.store.as_fd(), &name, mode)?;
        mount::clone_tree_with(self.store.as_fd(), &name, attributes(exec))
    }

    /// Takes the store out of the root.
    pub fn let_go(self, root: BorrowedFd<'_>) -> Result<(), Failure> {
        let failed = Failure::at(Step::Layers, 0);
        fs::enter(self.store.as_fd()).map_err(&failed)?;
        mount::detach_here().map_err(&failed)?;
        leave(self.store);
        fs::enter(root).map_err(&failed)?;
        fs::rmdir(root, PLACE).map_err(&failed)
    }

    fn next(&mut self) -> u32 {
        self.count += 1;
        self.count - 1
    }
}

/// Permissions of the topmost directory of a layer, which are those that the merged directory shows. The layer's is the sandbox's own: where
/// the host's belongs to somebody else, the owner may do what others may there.
pub(crate) fn top_mode(lower: fs::Stat, own: u32) -> u32 {
    let others = lower.mode & 0o7;
    if lower.uid == own { lower.mode & PERMISSIONS } else { others * 0o111 }
}

fn own_id() -> u32 {
    nix::unistd::geteuid().as_raw()
}

fn attributes(exec: bool) -> u64 {
    attr::NOSUID | attr::NODEV | if exec { 0 } else { attr::NOEXEC }
}

/// The content of a file into an empty one. What was never written takes no place there either: a file of a terabyte of nothing would
/// fill the disk.
pub(crate) fn copy_all(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let size = i64::try_from(fs::stat(from, c"")?.size).map_err(|_| Errno::EFBIG)?;
    let mut at = 0;
    while at < size {
        let (data, hole) = match piece(from, at) {
            Ok(piece) => piece,
            // Nothing but a hole is left.
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(errno),
        };
        lseek(from, data, Whence::SeekSet)?;
        lseek(to, data, Whence::SeekSet)?;
        copy_piece(from, to, hole - data)?;
        at = hole;
    }
    ftruncate(to, size)
}

/// Where the next content from `at` on begins and ends (lseek(2), `SEEK_DATA`); a file system that knows no holes has one piece.
fn piece(from: BorrowedFd<'_>, at: i64) -> Result<(i64, i64), Errno> {
    let data = lseek(from, at, Whence::SeekData)?;
    Ok((data, lseek(from, data, Whence::SeekHole)?))
}

fn copy_piece(from: BorrowedFd<'_>, to: BorrowedFd<'_>, mut length: i64) -> Result<(), Errno> {
    let mut bytes = vec![0; CHUNK];
    while length > 0 {
        let most = usize::try_from(length).unwrap_or(CHUNK).min(CHUNK);
        let count = fs::read(from, &mut bytes[..most])?;
        if count == 0 {
            return Ok(());
        }
        let mut rest = &bytes[..count];
        while !rest.is_empty() {
            let written = fs::write(to, rest)?;
            rest = &rest[written..];
        }
        length -= i64::try_from(count).unwrap_or(length);
    }
    Ok(())
}

/// Digits and fixed words.
fn text(words: &str) -> CString {
    CString::new(words).expect("digits and fixed words hold no NUL")
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn holes_stay_holes() {
        let dir = std::env::temp_dir().join(format!("apex-holes-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let from = File::options().read(true).write(true).create_new(true).open(dir.join("from")).unwrap();
        from.write_at(b"begin", 0).unwrap();
        from.write_at(b"middle", 32 << 20).unwrap();
        from.set_len(64 << 20).unwrap();
        let to = File::options().read(true).write(true).create_new(true).open(dir.join("to")).unwrap();
        copy_all(from.as_fd(), to.as_fd()).unwrap();
        let (about, old) = (to.metadata().unwrap(), from.metadata().unwrap());
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(about.size(), 64 << 20);
        assert!(about.blocks() <= old.blocks() + 64, "{} blocks of {}", about.blocks(), old.blocks());
        let mut text = [0; 6];
        to.read_exact_at(&mut text, 32 << 20).unwrap();
        assert_eq!(&text, b"middle");
        to.read_exact_at(&mut text, 0).unwrap();
        assert_eq!(&text, b"begin\0");
    }
}

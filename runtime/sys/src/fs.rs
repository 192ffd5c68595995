//! Files by descriptor: openat2(2), statx(2), mkdirat(2), mknodat(2), symlinkat(2), fchdir(2).

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::{Errno, check, signal};

/// The working directory, as a descriptor argument.
pub fn cwd() -> BorrowedFd<'static> {
    // SAFETY: AT_FDCWD is not a descriptor that could be closed; every *at call accepts it for the life of the process.
    unsafe { BorrowedFd::borrow_raw(libc::AT_FDCWD) }
}

/// How names are resolved (openat2(2)).
pub mod resolve {
    /// Nothing on another mount.
    pub const NO_XDEV: u64 = 0x01;
    /// No magic links of /proc.
    pub const NO_MAGICLINKS: u64 = 0x02;
    /// No symbolic links at all.
    pub const NO_SYMLINKS: u64 = 0x04;
    /// Nothing above the directory.
    pub const BENEATH: u64 = 0x08;
    /// The directory is the root.
    pub const IN_ROOT: u64 = 0x10;
}

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// Opens a file (openat2(2)); always close-on-exec.
pub fn open(dir: BorrowedFd<'_>, path: &CStr, flags: i32, resolve: u64) -> Result<OwnedFd, Errno> {
    create(dir, path, flags, 0, resolve)
}

/// Opens or creates a file (openat2(2)); always close-on-exec.
pub fn create(dir: BorrowedFd<'_>, path: &CStr, flags: i32, mode: u32, resolve: u64) -> Result<OwnedFd, Errno> {
    let how = OpenHow { flags: (flags | libc::O_CLOEXEC) as u64, mode: mode.into(), resolve };
    // SAFETY: `path` is NUL-terminated, `how` is a valid open_how of the stated size; both outlive the call.
    let fd = check(unsafe {
        libc::syscall(libc::SYS_openat2, dir.as_raw_fd(), path.as_ptr(), &raw const how, size_of::<OpenHow>())
    })?;
    // SAFETY: a fresh descriptor from the kernel.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// What identifies a file, and its owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Device.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Links.
    pub links: u64,
    /// Bytes.
    pub size: u64,
    /// Seconds of the last change of the content.
    pub modified_s: i64,
}

impl Stat {
    /// Whether it is of this type (`S_IF*`).
    pub const fn is(&self, kind: u32) -> bool {
        self.mode & libc::S_IFMT == kind
    }

    /// Whether it is a regular file.
    pub const fn is_regular(&self) -> bool {
        self.is(libc::S_IFREG)
    }
}

/// Looks at `path` under `dir`, at `dir` itself when empty; links are not followed (fstatat(2)).
pub fn stat(dir: BorrowedFd<'_>, path: &CStr) -> Result<Stat, Errno> {
    stat_with(dir, path, libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW)
}

/// Looks at what `path` leads to (fstatat(2)).
pub fn stat_followed(path: &CStr) -> Result<Stat, Errno> {
    stat_with(cwd(), path, 0)
}

fn stat_with(dir: BorrowedFd<'_>, path: &CStr, flags: i32) -> Result<Stat, Errno> {
    // SAFETY: stat is plain data; all zeroes is a valid value.
    let mut raw: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is NUL-terminated; `raw` outlives the call.
    check(unsafe { libc::fstatat(dir.as_raw_fd(), path.as_ptr(), &raw mut raw, flags) }.into())?;
    Ok(Stat {
        device: raw.st_dev,
        inode: raw.st_ino,
        mode: raw.st_mode,
        uid: raw.st_uid,
        links: raw.st_nlink,
        size: raw.st_size as u64,
        modified_s: raw.st_mtime,
    })
}

/// When an open file came into being, in seconds and nanoseconds since 1970; `None` where the file system does not know (statx(2)).
pub fn born(fd: BorrowedFd<'_>) -> Result<Option<(i64, i64)>, Errno> {
    // SAFETY: statx is plain data; all zeroes is a valid value.
    let mut raw: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_EMPTY_PATH;
    // SAFETY: the path is NUL-terminated; `raw` outlives the call.
    let result = unsafe { libc::statx(fd.as_raw_fd(), c"".as_ptr(), flags, libc::STATX_BTIME, &raw mut raw) };
    check(result.into())?;
    let is_known = raw.stx_mask & libc::STATX_BTIME != 0;
    Ok(is_known.then_some((raw.stx_btime.tv_sec, raw.stx_btime.tv_nsec.into())))
}

/// Looks at an open descriptor by number; `EBADF` when it is closed (fstat(2)).
pub fn stat_number(number: RawFd) -> Result<Stat, Errno> {
    // SAFETY: the borrow lasts for the call only, and the call reports a closed descriptor.
    stat(unsafe { BorrowedFd::borrow_raw(number) }, c"")
}

/// Creates a directory (mkdirat(2)).
pub fn mkdir(dir: BorrowedFd<'_>, path: &CStr, mode: u32) -> Result<(), Errno> {
    // SAFETY: `path` is NUL-terminated and outlives the call.
    check(unsafe { libc::mkdirat(dir.as_raw_fd(), path.as_ptr(), mode) }.into()).map(drop)
}

/// Sets the permission bits of a file that the caller made itself: a link at the end would be followed (fchmodat(2)).
pub fn chmod(dir: BorrowedFd<'_>, path: &CStr, mode: u32) -> Result<(), Errno> {
    // SAFETY: `path` is NUL-terminated and outlives the call.
    check(unsafe { libc::fchmodat(dir.as_raw_fd(), path.as_ptr(), mode, 0) }.into()).map(drop)
}

/// Creates an empty regular file without opening it (mknodat(2)).
pub fn mkfile(dir: BorrowedFd<'_>, path: &CStr, mode: u32) -> Result<(), Errno> {
    // SAFETY: `path` is NUL-terminated and outlives the call.
    check(unsafe { libc::mknodat(dir.as_raw_fd(), path.as_ptr(), libc::S_IFREG | mode, 0) }.into()).map(drop)
}

/// Creates a symbolic link (symlinkat(2)).
pub fn symlink(target: &CStr, dir: BorrowedFd<'_>, path: &CStr) -> Result<(), Errno> {
    // SAFETY: both are NUL-terminated and outlive the call.
    check(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), path.as_ptr()) }.into()).map(drop)
}

/// The name by which this process reaches what it has opened, whatever stands under the old name by now (proc_pid_fd(5)).
pub fn own_name(fd: BorrowedFd<'_>) -> CString {
    CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("digits hold no NUL")
}

/// Gives an open file without a name (`O_TMPFILE`) its name (linkat(2) through /proc/self/fd); `EEXIST` when the name is taken.
pub fn link_open(file: BorrowedFd<'_>, dir: BorrowedFd<'_>, path: &CStr) -> Result<(), Errno> {
    let own = own_name(file);
    // SAFETY: both paths are NUL-terminated and outlive the call.
    check(
        unsafe { libc::linkat(libc::AT_FDCWD, own.as_ptr(), dir.as_raw_fd(), path.as_ptr(), libc::AT_SYMLINK_FOLLOW) }
            .into(),
    )
    .map(drop)
}

/// Removes a name (unlinkat(2)).
pub fn unlink(dir: BorrowedFd<'_>, path: &CStr) -> Result<(), Errno> {
    // SAFETY: `path` is NUL-terminated and outlives the call.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), path.as_ptr(), 0) }.into()).map(drop)
}

/// Removes an empty directory (unlinkat(2), `AT_REMOVEDIR`).
pub fn rmdir(dir: BorrowedFd<'_>, path: &CStr) -> Result<(), Errno> {
    // SAFETY: `path` is NUL-terminated and outlives the call.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), path.as_ptr(), libc::AT_REMOVEDIR) }.into()).map(drop)
}

/// Enters a directory (fchdir(2)).
pub fn enter(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: no pointers.
    check(unsafe { libc::fchdir(dir.as_raw_fd()) }.into()).map(drop)
}

/// Enters a directory by name (chdir(2)).
pub fn chdir(path: &CStr) -> Result<(), Errno> {
    // SAFETY: `path` is NUL-terminated and outlives the call.
    check(unsafe { libc::chdir(path.as_ptr()) }.into()).map(drop)
}

/// Writes to a descriptor once (write(2)).
pub fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    // SAFETY: pointer and length describe `bytes`.
    check(unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) } as libc::c_long)
        .map(|count| count as usize)
}

/// Writes what finds room without waiting for it, whatever the flags of the open file are, which others may share (pwritev2(2), `RWF_NOWAIT`). What knows no
/// such write, terminals and pipes before Linux 6.4 among them, is asked whether it is ready, and gets no more than a pipe that is has room for (pipe(7),
/// `PIPE_BUF`); a regular file always is.
pub fn write_at_once(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    let piece = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    if stat(fd, c"")?.is_regular() {
        return write(fd, bytes);
    }
    // SAFETY: `piece` describes `bytes`, which the call only reads; both outlive it. An offset of -1 stands for that of the open file.
    let written =
        check(unsafe { libc::pwritev2(fd.as_raw_fd(), &raw const piece, 1, -1, libc::RWF_NOWAIT) } as libc::c_long);
    match written {
        Ok(count) => Ok(count as usize),
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::ESPIPE) => {
            let mut room = [signal::Interest { fd, write: true, ready: false }];
            let certain = &bytes[..bytes.len().min(libc::PIPE_BUF)];
            if signal::poll(&mut room, Some(0))? { write(fd, certain) } else { Err(Errno::EAGAIN) }
        }
        Err(errno) => Err(errno),
    }
}

/// Reads from a descriptor once (read(2)).
pub fn read(fd: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: pointer and length describe `bytes`.
    check(unsafe { libc::read(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) } as libc::c_long)
        .map(|count| count as usize)
}

/// Sets the time stamps of an open file, in seconds since the epoch (futimens(2)).
pub fn set_modified(fd: BorrowedFd<'_>, seconds: i64) -> Result<(), Errno> {
    let stamp = libc::timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = [stamp, stamp];
    // SAFETY: `times` has the two entries that the call reads.
    check(unsafe { libc::futimens(fd.as_raw_fd(), times.as_ptr()) }.into()).map(drop)
}

/// Reads an extended attribute of an open file (fgetxattr(2)).
pub fn attribute(fd: BorrowedFd<'_>, name: &CStr, value: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: `name` is NUL-terminated, pointer and length describe `value`; both outlive the call.
    check(unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) }
        as libc::c_long)
    .map(|count| count as usize)
}

/// Lists the names of an open file's extended attributes, each with a NUL behind it (flistxattr(2)).
pub fn attributes(fd: BorrowedFd<'_>, names: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: pointer and length describe `names`, which outlives the call.
    check(unsafe { libc::flistxattr(fd.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) } as libc::c_long)
        .map(|count| count as usize)
}

/// Sets an extended attribute of an open file (fsetxattr(2)).
pub fn set_attribute(fd: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    // SAFETY: `name` is NUL-terminated, pointer and length describe `value`; both outlive the call.
    check(unsafe { libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) }.into())
        .map(drop)
}

/// Removes an extended attribute of an open file (fremovexattr(2)).
pub fn remove_attribute(fd: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    // SAFETY: `name` is NUL-terminated and outlives the call.
    check(unsafe { libc::fremovexattr(fd.as_raw_fd(), name.as_ptr()) }.into()).map(drop)
}

/// Takes a lock on an open file without waiting (flock(2)); `exclusive` fails while anybody else holds it.
pub fn try_lock(fd: BorrowedFd<'_>, exclusive: bool) -> Result<(), Errno> {
    let kind = if exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
    // SAFETY: no pointers.
    check(unsafe { libc::flock(fd.as_raw_fd(), kind | libc::LOCK_NB) }.into()).map(drop)
}

/// The descriptors 0, 1 and 2, and others that the caller was given by number.
pub fn borrow(number: RawFd) -> Result<BorrowedFd<'static>, Errno> {
    // SAFETY: no pointers; fcntl only reports.
    check(unsafe { libc::fcntl(number, libc::F_GETFD) }.into())?;
    // SAFETY: it is open, and the jail never closes a descriptor that it was given by number.
    Ok(unsafe { BorrowedFd::borrow_raw(number) })
}

/// How a descriptor was opened: its file status flags (fcntl(2), `F_GETFL`).
pub fn status_flags(number: RawFd) -> Result<i32, Errno> {
    // SAFETY: no pointers; fcntl only reports.
    check(unsafe { libc::fcntl(number, libc::F_GETFL) }.into()).map(|flags| flags as i32)
}

/// Such a descriptor that was looked at before; calls on one that was closed since report `EBADF`.
pub fn borrow_known(number: RawFd) -> BorrowedFd<'static> {
    // SAFETY: the jail never closes a descriptor that it was given by number.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Lets a descriptor survive exec, or not (fcntl(2), `F_SETFD`).
pub fn set_inherited(number: RawFd, inherited: bool) -> Result<(), Errno> {
    let flags = if inherited { 0 } else { libc::FD_CLOEXEC };
    // SAFETY: no pointers.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, flags) }.into()).map(drop)
}

/// A copy of a descriptor with the least free number from `least` on, closed on exec (fcntl(2), `F_DUPFD_CLOEXEC`).
pub fn copy_from(fd: BorrowedFd<'_>, least: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes no pointer.
    let number = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) }.into())?;
    // SAFETY: the kernel has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number as RawFd) })
}

/// Makes `number` a copy of `fd` (dup2(2)).
pub fn place(fd: BorrowedFd<'_>, number: RawFd) -> Result<(), Errno> {
    // SAFETY: no pointers. The callers replace the standard streams of a process that is about to call exec.
    check(unsafe { libc::dup2(fd.as_raw_fd(), number) }.into()).map(drop)
}

/// Whether the mount on which an open file lies, or its file system, refuses writes (fstatvfs(3)).
pub fn is_read_only_mount(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    nix::sys::statvfs::fstatvfs(fd).map(|facts| facts.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY))
}

/// No write changes the file (memfd_create(2), `F_SEAL_WRITE`).
pub const SEAL_WRITE: i32 = libc::F_SEAL_WRITE;

/// The seals of a file in memory (fcntl(2), `F_GET_SEALS`); `None` for a file that can have none.
pub fn seals(path: &CStr) -> Option<i32> {
    let file = open(cwd(), path, libc::O_RDONLY | libc::O_CLOEXEC, 0).ok()?;
    // SAFETY: no pointers.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) }.into()).ok().map(|seals| seals as i32)
}

/// A copy of a file in memory that nobody can change any more (memfd_create(2), `MFD_ALLOW_SEALING`).
pub fn sealed_copy(name: &CStr, file: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    const SEALS: libc::c_int = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: `name` is NUL-terminated and outlives the call.
    let copy = check(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) }.into())?;
    // SAFETY: a fresh descriptor from the kernel.
    let copy = unsafe { OwnedFd::from_raw_fd(copy as RawFd) };
    loop {
        let (from, to) = (file.as_raw_fd(), copy.as_raw_fd());
        // SAFETY: without an offset there is no pointer.
        let count = unsafe { libc::sendfile(to, from, std::ptr::null_mut(), 1 << 30) };
        if check(count as libc::c_long)? == 0 {
            break;
        }
    }
    // SAFETY: no pointers.
    check(unsafe { libc::fcntl(copy.as_raw_fd(), libc::F_ADD_SEALS, SEALS) }.into())?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// Pipes come full from everywhere; a wait for one would be for ever here, since nobody reads.
    #[test]
    fn a_write_at_once_never_waits() {
        let (_reader, writer) = std::io::pipe().unwrap();
        let block = [b'x'; 4096];
        let mut written = 0;
        loop {
            match write_at_once(writer.as_fd(), &block) {
                Ok(count) => written += count,
                Err(errno) => break assert_eq!(errno, Errno::EAGAIN),
            }
        }
        assert!(written >= block.len());
        let file = std::fs::File::create("/dev/null").unwrap();
        assert_eq!(write_at_once(file.as_fd(), &block), Ok(block.len()));
    }

    /// A terminal knows no write that does not wait.
    #[test]
    fn who_is_asked_whether_it_is_ready_gets_no_more_than_a_pipe_has_room_for() {
        let terminal = nix::pty::openpty(None, None).unwrap();
        assert_eq!(write_at_once(terminal.slave.as_fd(), &[b'x'; 2 * libc::PIPE_BUF]), Ok(libc::PIPE_BUF));
    }
}

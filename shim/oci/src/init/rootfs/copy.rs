//! A directory's content copied into the tmpfs that is to stand over it (the option tmpcopyup).

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use apex_sys::fs;
use nix::fcntl::{AtFlags, readlinkat};
use nix::libc;
use nix::sys::stat::{Mode, SFlag, fstat, mknodat};
use nix::unistd::fchownat;

/// Deeper directories are refused: each level holds two descriptors.
const DEPTH_MAX: usize = 128;

/// Copies what is in one directory to another: files, directories, links and nodes, with modes and owners. No link is followed.
pub(super) fn contents(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let from = fs::open(from, c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
    let to = fs::open(to, c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
    level(from.as_fd(), to.as_fd(), 0)
}

fn level(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::Error::from_raw_os_error(libc::ELOOP));
    }
    // The name is that of the held descriptor, whatever the directory is called by now.
    let own = fs::own_name(from);
    let names: Vec<OsString> = std::fs::read_dir(std::ffi::OsStr::from_bytes(own.as_bytes()))?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<io::Result<_>>()?;
    for name in names {
        let name = CString::new(name.as_bytes())?;
        entry(from, to, &name, depth)?;
    }
    Ok(())
}

fn entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CString, depth: usize) -> io::Result<()> {
    let held = fs::open(from, name, libc::O_PATH | libc::O_NOFOLLOW, fs::resolve::BENEATH)?;
    let stat = fstat(&held)?;
    let mode = stat.st_mode & 0o7777;
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFDIR => {
            fs::mkdir(to, name, mode)?;
            let flags = libc::O_RDONLY | libc::O_DIRECTORY;
            let below = fs::open(held.as_fd(), c".", flags, 0)?;
            let made = fs::open(to, name, flags, fs::resolve::NO_SYMLINKS | fs::resolve::BENEATH)?;
            level(below.as_fd(), made.as_fd(), depth + 1)?;
        }
        libc::S_IFLNK => {
            let target = CString::new(readlinkat(&held, c"")?.as_bytes())?;
            fs::symlink(&target, to, name)?;
        }
        libc::S_IFREG => file(&held, to, name, mode)?,
        kind => {
            mknodat(to, name.as_c_str(), SFlag::from_bits_truncate(kind), Mode::from_bits_truncate(mode), stat.st_rdev)?
        }
    }
    let (uid, gid) = (stat.st_uid.into(), stat.st_gid.into());
    fchownat(to, name.as_c_str(), Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    // A change of the owner takes the set-user-ID bit away.
    if mode & 0o6000 != 0 && stat.st_mode & libc::S_IFMT != libc::S_IFLNK {
        let made = fs::open(to, name, libc::O_PATH, fs::resolve::NO_SYMLINKS | fs::resolve::BENEATH)?;
        fs::chmod(fs::cwd(), &fs::own_name(made.as_fd()), mode)?;
    }
    Ok(())
}

fn file(held: &impl AsFd, to: BorrowedFd<'_>, name: &CString, mode: u32) -> io::Result<()> {
    let own = fs::own_name(held.as_fd());
    let mut source = std::fs::File::open(std::ffi::OsStr::from_bytes(own.as_bytes()))?;
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
    let made = fs::create(to, name, flags, mode, fs::resolve::NO_SYMLINKS | fs::resolve::BENEATH)?;
    io::copy(&mut source, &mut std::fs::File::from(made)).map(drop)
}

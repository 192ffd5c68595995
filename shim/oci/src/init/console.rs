//! The container's terminal: a pseudoterminal of its own devpts, shown at /dev/console.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use apex_sys::{Errno, fs, mount, terminal};
use nix::libc;
use nix::sys::stat::fstat;
use nix::sys::statfs::fstatfs;

use super::rootfs::place;
use super::rootfs::{Rootfs, RootfsError};

/// `DEVPTS_SUPER_MAGIC` (statfs(2)).
const DEVPTS: i64 = 0x1cd1;

/// Both ends.
#[derive(Debug)]
pub struct Console {
    /// For the one who shows it.
    pub master: OwnedFd,
    /// For the container's program.
    pub slave: OwnedFd,
}

/// Opens a pseudoterminal of the container's devpts and shows its end at /dev/console. After [`Rootfs::prepare`], before [`Rootfs::seal`].
///
/// Both ends come from a file that was looked at: a devpts that is none, or a link in its place, would hand the terminal to someone else, and a file put at
/// /dev/console is never opened, only mounted upon.
///
/// # Errors
/// The step that failed, `ENODEV` when what is at /dev/pts is no devpts.
pub fn console(rootfs: &Rootfs<'_>) -> Result<Console, RootfsError> {
    let failed = |step| move |source| RootfsError::Console { step, source };
    let Console { master, slave } = terminal(rootfs.root())?;
    let tree = mount::clone_mount(slave.as_fd(), c"").map_err(failed("take the other end for /dev/console"))?;
    let place = place_of_console(rootfs).map_err(failed("open or make /dev/console"))?;
    mount::attach(tree.as_fd(), place.as_fd(), c"").map_err(failed("mount the other end at /dev/console"))?;
    Ok(Console { master, slave })
}

/// Opens a pseudoterminal of the devpts below a container's root, for one more process in it.
///
/// # Errors
/// The step that failed, `ENODEV` when what is at /dev/pts is no devpts.
pub fn terminal(root: BorrowedFd<'_>) -> Result<Console, RootfsError> {
    let failed = |step| move |source| RootfsError::Console { step, source };
    let master = open_master(root).map_err(failed("open /dev/pts/ptmx: see that a devpts is mounted at /dev/pts"))?;
    terminal::unlock(&master).map_err(failed("unlock the other end"))?;
    let slave = terminal::peer(master.as_fd()).map_err(failed("open the other end"))?;
    Ok(Console { master, slave })
}

fn open_master(root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let dir = place::open_plain(root, Path::new("/dev/pts"))?;
    if fstatfs(&dir)?.filesystem_type().0 != DEVPTS {
        return Err(Errno::ENODEV);
    }
    let resolve = fs::resolve::BENEATH | fs::resolve::NO_SYMLINKS | fs::resolve::NO_XDEV;
    let master = fs::open(dir.as_fd(), c"ptmx", libc::O_RDWR | libc::O_NOCTTY, resolve)?;
    let stat = fstat(&master)?;
    let is_ptmx = stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == libc::makedev(5, 2);
    if is_ptmx { Ok(master) } else { Err(Errno::ENODEV) }
}

/// A file to mount upon; never a link.
fn place_of_console(rootfs: &Rootfs<'_>) -> Result<OwnedFd, Errno> {
    const NAME: &CStr = c"console";
    let (dir, _) = place::parent(rootfs.root(), Path::new("/dev/console"))?;
    match fs::mkfile(dir.as_fd(), NAME, 0o620) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno),
    }
    // With O_NOFOLLOW a link would be opened itself (openat2(2)).
    fs::open(dir.as_fd(), NAME, libc::O_PATH, fs::resolve::BENEATH | fs::resolve::NO_SYMLINKS)
}

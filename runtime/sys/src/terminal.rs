//! Terminals: pseudoterminals (pty(7)), window sizes and raw mode (termios(3), ioctl_tty(2)).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::{Errno, check};

/// Whether a descriptor is a terminal (isatty(3)).
pub fn is_terminal(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: no pointers of ours.
    unsafe { libc::isatty(fd.as_raw_fd()) == 1 }
}

/// Unlocks the other end of a pseudoterminal and returns its number under /dev/pts (ioctl_tty(2), `TIOCSPTLCK`, `TIOCGPTN`).
pub fn unlock(master: &OwnedFd) -> Result<u32, Errno> {
    let locked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads an int, which outlives the call.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const locked) }.into())?;
    let mut number: libc::c_uint = 0;
    // SAFETY: TIOCGPTN writes an unsigned int, which outlives the call.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &raw mut number) }.into())?;
    Ok(number)
}

/// The other end of a pseudoterminal, without a look at any path (ioctl_tty(2), `TIOCGPTPEER`).
pub fn peer(master: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes an integer.
    let number = check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) }.into())?;
    // SAFETY: the kernel has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number as RawFd) })
}

/// Makes a terminal the controlling one of this session (ioctl_tty(2), `TIOCSCTTY`).
pub fn set_controlling(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: TIOCSCTTY takes an integer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) }.into()).map(drop)
}

/// Gives one terminal the window size of another (ioctl_tty(2), `TIOCGWINSZ`, `TIOCSWINSZ`).
pub fn copy_size(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: winsize is plain data.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ writes a winsize, which outlives the call.
    check(unsafe { libc::ioctl(from.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) }.into())?;
    // SAFETY: TIOCSWINSZ reads a winsize, which outlives the call.
    check(unsafe { libc::ioctl(to.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }.into()).map(drop)
}

/// Gives a terminal a window size (ioctl_tty(2), `TIOCSWINSZ`).
pub fn set_size(fd: BorrowedFd<'_>, rows: u16, columns: u16) -> Result<(), Errno> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a winsize, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }.into()).map(drop)
}

/// A terminal in raw mode; dropping it restores what was there.
#[derive(Debug)]
pub struct Raw<'a> {
    fd: BorrowedFd<'a>,
    saved: libc::termios,
}

impl<'a> Raw<'a> {
    /// Switches to raw mode (termios(3), `cfmakeraw`).
    pub fn enter(fd: BorrowedFd<'a>) -> Result<Self, Errno> {
        // SAFETY: termios is plain data.
        let mut saved: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: `saved` outlives the call.
        check(unsafe { libc::tcgetattr(fd.as_raw_fd(), &raw mut saved) }.into())?;
        let mut raw = saved;
        // SAFETY: `raw` is a valid termios and outlives the call.
        unsafe { libc::cfmakeraw(&raw mut raw) };
        // SAFETY: as above.
        check(unsafe { libc::tcsetattr(fd.as_raw_fd(), libc::TCSADRAIN, &raw const raw) }.into())?;
        Ok(Raw { fd, saved })
    }
}

impl Drop for Raw<'_> {
    fn drop(&mut self) {
        // SAFETY: `saved` is what tcgetattr gave. A terminal that is gone needs no restoring, so the result does not matter.
        unsafe { libc::tcsetattr(self.fd.as_raw_fd(), libc::TCSADRAIN, &raw const self.saved) };
    }
}

/// Makes reads and writes return instead of waiting (fcntl(2), `O_NONBLOCK`).
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: no pointers.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) }.into())?;
    // SAFETY: no pointers.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags as libc::c_int | libc::O_NONBLOCK) }.into())
        .map(drop)
}

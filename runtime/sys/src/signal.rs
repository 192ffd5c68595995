//! Signals: sigprocmask(2), signalfd(2), sigaction(2).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::{Errno, check};

/// A set of signals.
#[derive(Clone, Copy)]
pub struct Set(libc::sigset_t);

impl std::fmt::Debug for Set {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("signal::Set")
    }
}

impl Set {
    /// The set of these signals.
    pub fn of(signals: &[i32]) -> Self {
        // SAFETY: sigset_t is plain data; sigemptyset initialises it, sigaddset only touches it.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in signals {
                libc::sigaddset(&raw mut set, *signal);
            }
            Set(set)
        }
    }
}

/// Blocks the signals and returns the mask that was in force (sigprocmask(2)).
pub fn block(set: &Set) -> Result<Set, Errno> {
    let mut old = Set::of(&[]);
    // SAFETY: both sets outlive the call.
    check(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set.0, &raw mut old.0) }.into())?;
    Ok(old)
}

/// Puts a mask in force (sigprocmask(2)).
pub fn set_mask(set: &Set) -> Result<(), Errno> {
    // SAFETY: the set outlives the call.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set.0, std::ptr::null_mut()) }.into()).map(drop)
}

/// A descriptor that yields blocked signals (signalfd(2)), non-blocking.
pub fn descriptor(set: &Set) -> Result<OwnedFd, Errno> {
    // SAFETY: the set outlives the call.
    let fd = check(unsafe { libc::signalfd(-1, &raw const set.0, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) }.into())?;
    // SAFETY: a fresh descriptor from the kernel.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// The next signal from such a descriptor; `None` when there is none.
pub fn next(fd: BorrowedFd<'_>) -> Result<Option<i32>, Errno> {
    // SAFETY: signalfd_siginfo is plain data.
    let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: `info` has `size` bytes and outlives the call.
    match check(unsafe { libc::read(fd.as_raw_fd(), (&raw mut info).cast(), size) } as libc::c_long) {
        Ok(_) => Ok(Some(info.ssi_signo as i32)),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// One descriptor to wait for, and whether it was found readable (hang-up included) or writable.
#[derive(Debug)]
pub struct Interest<'a> {
    /// The descriptor.
    pub fd: BorrowedFd<'a>,
    /// Whether to wait for room to write instead of for something to read.
    pub write: bool,
    /// Whether it is ready now.
    pub ready: bool,
}

/// Waits until one of them is ready or `timeout_ms` has passed (poll(2)); `None` waits for ever. At most 64 are looked at.
pub fn poll(interests: &mut [Interest<'_>], timeout_ms: Option<u64>) -> Result<bool, Errno> {
    let mut list = [libc::pollfd { fd: -1, events: 0, revents: 0 }; 64];
    for (slot, interest) in list.iter_mut().zip(interests.iter()) {
        slot.fd = interest.fd.as_raw_fd();
        slot.events = if interest.write { libc::POLLOUT } else { libc::POLLIN };
    }
    let timeout = timeout_ms.map_or(-1, |ms| i32::try_from(ms).unwrap_or(i32::MAX));
    let count = interests.len().min(list.len());
    // SAFETY: `list` has at least `count` entries and outlives the call.
    match check(unsafe { libc::poll(list.as_mut_ptr(), count as libc::nfds_t, timeout) }.into()) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(errno),
    }
    for (slot, interest) in list.iter().zip(interests.iter_mut()) {
        interest.ready = slot.revents != 0;
    }
    Ok(interests.iter().any(|interest| interest.ready))
}

/// Ignores a signal (sigaction(2), `SIG_IGN`). Programs that are executed inherit it.
pub fn ignore(signal: i32) -> Result<(), Errno> {
    // SAFETY: sigaction is plain data; all zeroes but for the handler is valid.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = libc::SIG_IGN;
        check(libc::sigaction(signal, &raw const action, std::ptr::null_mut()).into()).map(drop)
    }
}

/// Gives every signal that can be caught its default action: what the caller ignored, a program would inherit.
pub fn all_by_default() {
    for signal in 1..=64 {
        // KILL, STOP and the two that the C library keeps for itself have no other.
        let _ = by_default(signal);
    }
}

extern "C" fn nothing(_: libc::c_int) {}

/// The signal that tells of a child's end.
pub const SIGCHLD: i32 = libc::SIGCHLD;

/// Gives a signal its default action (sigaction(2)).
pub fn by_default(signal: i32) -> Result<(), Errno> {
    // SAFETY: sigaction is plain data; all zeroes is SIG_DFL without flags.
    unsafe {
        let action: libc::sigaction = std::mem::zeroed();
        check(libc::sigaction(signal, &raw const action, std::ptr::null_mut()).into()).map(drop)
    }
}

/// Makes a signal end a blocked system call with EINTR and do nothing else (sigaction(2), without `SA_RESTART`).
pub fn interrupts_calls(signal: i32) -> Result<(), Errno> {
    // SAFETY: sigaction is plain data; the handler touches nothing, so it may run at any instruction.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        check(libc::sigaction(signal, &raw const action, std::ptr::null_mut()).into()).map(drop)
    }
}

/// Sends a signal to one thread of the calling process (tgkill(2)).
pub fn to_own_thread(thread: crate::process::Pid, signal: i32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal) }).map(drop)
}

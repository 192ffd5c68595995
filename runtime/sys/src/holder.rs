//! A short-lived process that sits in new namespaces for as long as others need to get at them (namespaces(7)).
//!
//! It shares the caller's memory, which spares the copy of the page tables, and runs beside the caller, which does other work
//! meanwhile. So it runs no code but its own few system calls, made without the C library: that one keeps errno, and what its allocator knows, in
//! places that both would write.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use crate::process::{self, ChildStack, Pid};
use crate::{Errno, check};

/// Bytes of its stack: a few frames of integers.
const STACK_BYTES: usize = 8 * 1024;

/// Its work takes less than a millisecond on an idle machine; it can wait long for a processor on another.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The process. Dropped, it is ended and reaped.
#[derive(Debug)]
pub struct Holder {
    pid: Pid,
    /// Left open: the caller ends with what it started, and closing would cost it a call.
    pidfd: ManuallyDrop<OwnedFd>,
    shared: Box<Shared>,
    _stack: ChildStack,
}

/// What both sides see.
#[derive(Debug)]
struct Shared {
    /// Pid of the caller, without whom the process must not stay.
    parent: Pid,
    with_network: bool,
    /// One of the states below.
    state: AtomicI32,
}

const AT_WORK: i32 = 0;
/// The same, and the caller sleeps until it is done.
const AWAITED: i32 = 1;
const DONE: i32 = 2;
/// Less the errno.
const FAILED: i32 = -1;

impl Holder {
    /// Starts the process in a user namespace of its own, which has no maps yet, and lets it make a network namespace with loopback up
    /// when asked for.
    pub fn start(with_network: bool) -> Result<Holder, Errno> {
        let mut stack = ChildStack::with_bytes(STACK_BYTES);
        let parent = std::process::id() as Pid;
        let state = AtomicI32::new(if with_network { AT_WORK } else { DONE });
        let shared = Box::new(Shared { parent, with_network, state });
        let mut pidfd: RawFd = -1;
        let flags = libc::CLONE_VM | libc::CLONE_NEWUSER | libc::CLONE_PIDFD | libc::SIGCHLD;
        let argument = (&raw const *shared).cast_mut().cast();
        // SAFETY: the stack and `shared` live in the value that is returned, and `Drop` ends the process before it lets go of them; the kernel stores
        // the pidfd before the call returns.
        let pid = unsafe { libc::clone(hold, stack.top(), flags, argument, &raw mut pidfd) };
        let pid = check(pid.into())? as Pid;
        // SAFETY: the kernel stored a fresh descriptor in `pidfd`, and nobody else owns it.
        let pidfd = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(pidfd) });
        Ok(Holder { pid, pidfd, shared, _stack: stack })
    }

    /// Its pid, by which its maps are written.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// By which its namespaces are entered (setns(2)).
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Waits until it has made what was asked for.
    ///
    /// # Errors
    /// What stood in its way; `ETIMEDOUT` when it did not say anything.
    pub fn wait(&self) -> Result<(), Errno> {
        let state = &self.shared.state;
        let _ = state.compare_exchange(AT_WORK, AWAITED, Ordering::AcqRel, Ordering::Acquire);
        loop {
            match state.load(Ordering::Acquire) {
                DONE => return Ok(()),
                AT_WORK | AWAITED => sleep_while(state, AWAITED)?,
                failed => return Err(Errno::from_raw(FAILED - failed)),
            }
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        use std::os::fd::AsRawFd;
        let _ = process::pidfd_signal(self.pidfd.as_raw_fd(), libc::SIGKILL)
            .or_else(|_| process::kill(self.pid, libc::SIGKILL));
        let _ = process::wait(self.pid, 0);
    }
}

/// futex(2), `FUTEX_WAIT`: sleeps while `state` is `value`, at most [`WAIT_MAX`].
fn sleep_while(state: &AtomicI32, value: i32) -> Result<(), Errno> {
    let timeout = libc::timespec { tv_sec: WAIT_MAX.as_secs() as libc::time_t, tv_nsec: 0 };
    // SAFETY: `state` is an aligned word and `timeout` a valid timespec; both outlive the call.
    let woken = check(unsafe {
        libc::syscall(libc::SYS_futex, state.as_ptr(), libc::FUTEX_WAIT, value, &raw const timeout, 0, 0)
    });
    match woken {
        Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// The life of the process. Ends by SIGKILL, or by itself when the caller was gone before the first call.
extern "C" fn hold(argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `Holder::start` passes a pointer that stays valid until this process has ended.
    let shared = unsafe { &*argument.cast::<Shared>() };
    // What is sent to the caller's group is for the caller, who waits for us: first of all.
    let every_signal = u64::MAX;
    // SAFETY: `every_signal` is a signal set of the size that is told, and outlives the call.
    unsafe { raw(libc::SYS_rt_sigprocmask, [libc::SIG_BLOCK as usize, &raw const every_signal as usize, 0, 8]) };
    // SAFETY: integers only.
    let parent = unsafe {
        raw(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as usize, libc::SIGKILL as usize, 0, 0]);
        raw(libc::SYS_getppid, [0; 4])
    };
    if parent != shared.parent as isize {
        return 0;
    }
    if shared.with_network {
        let errno = make_network();
        let state = if errno == 0 { DONE } else { FAILED - errno };
        if shared.state.swap(state, Ordering::AcqRel) == AWAITED {
            // SAFETY: the word outlives the call.
            unsafe { raw(libc::SYS_futex, [shared.state.as_ptr() as usize, libc::FUTEX_WAKE as usize, 1, 0]) };
        }
    }
    loop {
        // With a short list of arguments: pause(2) is not on every architecture.
        // SAFETY: no descriptors and no timeout: sleeps until a signal.
        unsafe { raw(libc::SYS_ppoll, [0; 4]) };
    }
}

/// A network namespace of its own, loopback up (netdevice(7)). Gives the errno, 0 for none.
fn make_network() -> i32 {
    // SAFETY: integers only.
    let unshared = unsafe { raw(libc::SYS_unshare, [libc::CLONE_NEWNET as usize, 0, 0, 0]) };
    if unshared < 0 {
        return -unshared as i32;
    }
    // SAFETY: integers only. The descriptor is this process's own and ends with it.
    let socket = unsafe {
        raw(libc::SYS_socket, [libc::AF_INET as usize, (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as usize, 0, 0])
    };
    if socket < 0 {
        return -socket as i32;
    }
    let request = crate::net::loopback_request();
    // SAFETY: `request` is a valid ifreq and outlives the call.
    let raised =
        unsafe { raw(libc::SYS_ioctl, [socket as usize, libc::SIOCSIFFLAGS as usize, &raw const request as usize, 0]) };
    if raised < 0 { -raised as i32 } else { 0 }
}

/// A system call without the C library; the negative errno when it fails (syscall(2), "Architecture calling conventions").
///
/// # Safety
/// As for the call itself.
#[cfg(target_arch = "x86_64")]
unsafe fn raw(number: libc::c_long, arguments: [usize; 4]) -> isize {
    let result;
    // SAFETY: the instruction changes the named registers only; r8, the fifth argument, is zero.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") arguments[0], in("rsi") arguments[1], in("rdx") arguments[2], in("r10") arguments[3], in("r8") 0,
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    result
}

/// See above.
///
/// # Safety
/// As for the call itself.
#[cfg(target_arch = "aarch64")]
unsafe fn raw(number: libc::c_long, arguments: [usize; 4]) -> isize {
    let result;
    // SAFETY: the instruction changes the named registers only; x4, the fifth argument, is zero.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") arguments[0] as isize => result,
            in("x1") arguments[1], in("x2") arguments[2], in("x3") arguments[3], in("x4") 0,
            options(nostack)
        );
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(pid: Pid, kind: &str) -> std::io::Result<std::path::PathBuf> {
        std::fs::read_link(format!("/proc/{pid}/ns/{kind}"))
    }

    #[test]
    fn a_holder_has_namespaces_of_its_own_and_ends_with_its_value() {
        let own = std::process::id() as Pid;
        // Where user namespaces are not given there is nothing to hold.
        let Ok(holder) = Holder::start(true) else { return };
        holder.wait().unwrap();
        let pid = holder.pid();
        for kind in ["user", "net"] {
            assert_ne!(namespace(pid, kind).unwrap(), namespace(own, kind).unwrap(), "{kind}");
        }
        assert_eq!(namespace(pid, "mnt").unwrap(), namespace(own, "mnt").unwrap());
        let devices = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
        assert!(devices.contains("lo:"), "{devices}");
        assert!(!devices.contains("eth"), "{devices}");
        drop(holder);
        assert_eq!(namespace(pid, "user").unwrap_err().kind(), std::io::ErrorKind::NotFound);
    }

    #[test]
    fn without_a_network_there_is_nothing_to_wait_for() {
        let Ok(holder) = Holder::start(false) else { return };
        assert_eq!(holder.wait(), Ok(()));
        let own = std::process::id() as Pid;
        assert_eq!(namespace(holder.pid(), "net").unwrap(), namespace(own, "net").unwrap());
    }
}

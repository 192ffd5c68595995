//! ptrace(2): being told of calls, births and ends of other threads, and waiting for them.
//!
//! Signals are numbers here, not names: a tracer that cannot pass a real-time signal on breaks whoever uses one.
//! A tracer is one thread: whatever is called here about a tracee comes from the thread that seized it.

use crate::process::Pid;
use crate::{Errno, check};

/// What a seized thread is stopped for, beside signals (`PTRACE_O_*`).
pub mod option {
    /// Syscall-stops are told apart from SIGTRAP.
    pub const TRACESYSGOOD: i32 = libc::PTRACE_O_TRACESYSGOOD;
    /// Children by fork are seized.
    pub const TRACEFORK: i32 = libc::PTRACE_O_TRACEFORK;
    /// Children by vfork are seized.
    pub const TRACEVFORK: i32 = libc::PTRACE_O_TRACEVFORK;
    /// Children and threads by clone are seized.
    pub const TRACECLONE: i32 = libc::PTRACE_O_TRACECLONE;
    /// Stops once a program has been executed.
    pub const TRACEEXEC: i32 = libc::PTRACE_O_TRACEEXEC;
    /// Stops where a filter says `SECCOMP_RET_TRACE`.
    pub const TRACESECCOMP: i32 = libc::PTRACE_O_TRACESECCOMP;
    /// All tracees are killed when the tracer ends.
    pub const EXITKILL: i32 = libc::PTRACE_O_EXITKILL;
}

/// Which event a stop tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A child or thread was born; [`message`] is its number.
    Born,
    /// A program was executed; [`message`] is the number that the thread had before.
    Exec,
    /// A filter said `SECCOMP_RET_TRACE`; the call has not been carried out.
    Seccomp,
    /// The group was stopped by this signal, the thread is new, or it was interrupted (then the signal is SIGTRAP).
    Stop,
    /// Another one.
    Other(i32),
}

/// What a wait found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Ended with this code.
    Exited(i32),
    /// Ended by this signal.
    Killed(i32),
    /// Stopped before or after a system call (see [`call`]).
    Call,
    /// Stopped for an event; the signal means something for [`Event::Stop`].
    Event(Event, i32),
    /// Stopped before this signal is delivered.
    Signal(i32),
}

/// How a stopped thread goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Go {
    /// Until the next event.
    On,
    /// Until the next event, or the begin or end of a system call.
    ToCall,
}

/// What the kernel tells about the call at which a thread is stopped (`PTRACE_GET_SYSCALL_INFO`, Linux 5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Stopped for something else.
    None,
    /// Before the call.
    Entry {
        /// `AUDIT_ARCH_*` of the ABI.
        arch: u32,
        /// Number.
        nr: u64,
        /// Argument registers.
        args: [u64; 6],
    },
    /// After the call.
    Exit {
        /// What it returned; a negative errno when it failed.
        value: i64,
    },
}

/// `struct ptrace_syscall_info` with the union as words: entry and seccomp begin with the number, exit with the value.
#[repr(C)]
#[derive(Default)]
struct Info {
    op: u8,
    pad: [u8; 3],
    arch: u32,
    instruction_pointer: u64,
    stack_pointer: u64,
    words: [u64; 8],
}

const INFO_ENTRY: u8 = 1;
const INFO_EXIT: u8 = 2;
const INFO_SECCOMP: u8 = 3;

fn request(request: libc::c_uint, pid: Pid, address: usize, data: usize) -> Result<(), Errno> {
    // SAFETY: the requests that come here take integers only.
    check(unsafe { libc::ptrace(request, pid, address, data) }).map(drop)
}

/// Traces a thread without stopping it (`PTRACE_SEIZE`).
///
/// # Errors
/// EPERM when the caller may not (ptrace(2), "Ptrace access mode checking") or it is traced already, ESRCH.
pub fn seize(pid: Pid, options: i32) -> Result<(), Errno> {
    request(libc::PTRACE_SEIZE, pid, 0, options as usize)
}

/// Lets a stopped thread go on, with a signal or 0 (`PTRACE_CONT`, `PTRACE_SYSCALL`).
///
/// # Errors
/// ESRCH when it is gone or not stopped.
pub fn resume(pid: Pid, go: Go, signal: i32) -> Result<(), Errno> {
    let how = match go {
        Go::On => libc::PTRACE_CONT,
        Go::ToCall => libc::PTRACE_SYSCALL,
    };
    request(how, pid, 0, signal as usize)
}

/// Leaves a thread in the stop of its group, listening for the end of that stop (`PTRACE_LISTEN`).
///
/// # Errors
/// ESRCH when it is gone, EIO when it is not in such a stop.
pub fn listen(pid: Pid) -> Result<(), Errno> {
    request(libc::PTRACE_LISTEN, pid, 0, 0)
}

/// Stops a seized thread (`PTRACE_INTERRUPT`).
///
/// # Errors
/// ESRCH when it is gone.
pub fn interrupt(pid: Pid) -> Result<(), Errno> {
    request(libc::PTRACE_INTERRUPT, pid, 0, 0)
}

/// What the event of a stop says beside its kind (`PTRACE_GETEVENTMSG`).
///
/// # Errors
/// ESRCH when the thread is gone.
pub fn message(pid: Pid) -> Result<u64, Errno> {
    let mut message: libc::c_ulong = 0;
    // SAFETY: the kernel writes one unsigned long, which outlives the call.
    check(unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG, pid, 0usize, &raw mut message) })?;
    Ok(message)
}

/// The call at which a thread is stopped (`PTRACE_GET_SYSCALL_INFO`).
///
/// # Errors
/// ESRCH when it is gone, EIO where the kernel is older than 5.3.
pub fn call(pid: Pid) -> Result<Call, Errno> {
    let mut info = Info::default();
    let size = size_of::<Info>();
    // SAFETY: the kernel writes at most `size` bytes to `info`, which is plain data and outlives the call.
    check(unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, pid, size, &raw mut info) })?;
    let [first, a, b, c, d, e, f, _] = info.words;
    Ok(match info.op {
        INFO_ENTRY | INFO_SECCOMP => Call::Entry { arch: info.arch, nr: first, args: [a, b, c, d, e, f] },
        INFO_EXIT => Call::Exit { value: first.cast_signed() },
        _ => Call::None,
    })
}

/// Waits for any tracee or child of the calling thread (wait4(2) with `__WALL` and `__WNOTHREAD`); `None` when `block` is false and
/// nothing happened.
///
/// # Errors
/// ECHILD when there is none, EINTR.
pub fn wait(block: bool) -> Result<Option<(Pid, Status)>, Errno> {
    let mut status = 0;
    let flags = libc::__WALL | libc::__WNOTHREAD | if block { 0 } else { libc::WNOHANG };
    // SAFETY: `status` outlives the call.
    let pid = check(unsafe { libc::waitpid(-1, &raw mut status, flags) }.into())? as Pid;
    Ok((pid != 0).then(|| (pid, read(status))))
}

fn read(status: i32) -> Status {
    if libc::WIFEXITED(status) {
        return Status::Exited(libc::WEXITSTATUS(status));
    }
    if libc::WIFSIGNALED(status) {
        return Status::Killed(libc::WTERMSIG(status));
    }
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        0 if signal == libc::SIGTRAP | 0x80 => Status::Call,
        0 => Status::Signal(signal),
        libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => {
            Status::Event(Event::Born, signal)
        }
        libc::PTRACE_EVENT_EXEC => Status::Event(Event::Exec, signal),
        libc::PTRACE_EVENT_SECCOMP => Status::Event(Event::Seccomp, signal),
        libc::PTRACE_EVENT_STOP => Status::Event(Event::Stop, signal),
        other => Status::Event(Event::Other(other), signal),
    }
}

/// The calling thread, as the kernel numbers it.
pub fn own_thread() -> Pid {
    // SAFETY: no arguments.
    unsafe { libc::gettid() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_are_told_apart() {
        assert_eq!(read(0x0300), Status::Exited(3));
        assert_eq!(read(9), Status::Killed(9));
        assert_eq!(read(0x0080 << 8 | 5 << 8 | 0x7f), Status::Call);
        assert_eq!(read(34 << 8 | 0x7f), Status::Signal(34));
        assert_eq!(read(5 << 8 | 0x7f), Status::Signal(5));
        assert_eq!(read(128 << 16 | 19 << 8 | 0x7f), Status::Event(Event::Stop, 19));
        assert_eq!(read(7 << 16 | 5 << 8 | 0x7f), Status::Event(Event::Seccomp, 5));
        assert_eq!(read(2 << 16 | 5 << 8 | 0x7f), Status::Event(Event::Born, 5));
    }

    #[test]
    fn a_thread_that_is_no_tracee_cannot_be_resumed() {
        assert_eq!(resume(own_thread(), Go::On, 0), Err(Errno::ESRCH));
        assert_eq!(call(own_thread()), Err(Errno::ESRCH));
    }
}

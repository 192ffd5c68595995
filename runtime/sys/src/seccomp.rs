//! seccomp(2): loading a filter, and the listener of user notifications (seccomp_unotify(2)).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// One instruction of classic BPF: `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Operation.
    pub code: u16,
    /// Instructions skipped when the comparison holds.
    pub jt: u8,
    /// Instructions skipped when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

const _: () = assert!(size_of::<Filter>() == size_of::<libc::sock_filter>());

/// Puts the filter on every thread of the process, or on none (seccomp(2)).
pub const FLAG_TSYNC: u64 = libc::SECCOMP_FILTER_FLAG_TSYNC;
/// Has the kernel log what the filter does not allow.
pub const FLAG_LOG: u64 = libc::SECCOMP_FILTER_FLAG_LOG;
/// Leaves the Speculative Store Bypass mitigation off.
pub const FLAG_SPEC_ALLOW: u64 = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
/// Makes a listener for notified calls.
pub const FLAG_NEW_LISTENER: u64 = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
/// With [`FLAG_TSYNC`], a thread that does not follow is an error and not a number that looks like a descriptor.
pub const FLAG_TSYNC_ESRCH: u64 = libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
/// Since Linux 5.19: a notified call that the listener has seen is only interrupted by a fatal signal (linux/seccomp.h).
pub const FLAG_WAIT_KILLABLE_RECV: u64 = 1 << 5;
/// A response: the kernel carries the call out as if it had not been notified.
const NOTIF_FLAG_CONTINUE: u32 = 1;
/// Sets the number of the descriptor that ADDFD makes.
const ADDFD_FLAG_SEND: u32 = 1 << 1;

/// Puts a filter on the calling thread, which must have no_new_privs or CAP_SYS_ADMIN in its user namespace.
///
/// With `listener`, returns the descriptor on which notified calls arrive; it is closed on exec. Allocates nothing, so it may stand between
/// fork and exec. Speculation barriers are left as they are (no SPEC_ALLOW).
///
/// # Errors
/// EINVAL when the kernel refuses the program, EACCES without no_new_privs, EBUSY when a filter with a listener is there already, ENOMEM.
pub fn load(program: &[Filter], listener: bool) -> Result<Option<OwnedFd>, Errno> {
    load_marked(program, listener, 0)
}

/// As [`load`], with a value in the sixth argument, which the kernel ignores and a filter that is in force already can see.
///
/// # Errors
/// Those of [`load`].
pub fn load_marked(program: &[Filter], listener: bool, mark: u64) -> Result<Option<OwnedFd>, Errno> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?,
        filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    if !listener {
        return set_filter(0, &program, mark).map(|_| None);
    }
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    let raw = match set_filter(flags | FLAG_WAIT_KILLABLE_RECV, &program, mark) {
        // Before Linux 5.19 the second flag is unknown.
        Err(Errno::EINVAL) => set_filter(flags, &program, mark)?,
        other => other?,
    };
    // SAFETY: seccomp(2) with NEW_LISTENER just returned this descriptor, and nothing else owns it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(raw) }))
}

/// Puts a filter on the calling thread with exactly these flags (`FLAG_*`); the descriptor is there with [`FLAG_NEW_LISTENER`]. Allocates nothing.
///
/// # Errors
/// Those of [`load`]; EINVAL also for a flag that the kernel does not know, ESRCH when a thread does not follow [`FLAG_TSYNC`].
pub fn load_flagged(program: &[Filter], flags: u64) -> Result<Option<OwnedFd>, Errno> {
    // Without the flag a thread that does not follow is answered by its id, which a caller could take for success or for a descriptor.
    let flags = if flags & FLAG_TSYNC != 0 { flags | FLAG_TSYNC_ESRCH } else { flags };
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?,
        filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    let raw = set_filter(flags, &program, 0)?;
    if flags & FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    // SAFETY: seccomp(2) with NEW_LISTENER just returned this descriptor, and nothing else owns it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(raw) }))
}

/// Whether the kernel knows these flags together. It looks at them before it looks at the program, of which there is none.
pub fn knows_flags(flags: u64) -> bool {
    // SAFETY: a null program is never read through: the kernel answers EFAULT.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, std::ptr::null::<u8>()) };
    result == -1 && Errno::last() == Errno::EFAULT
}

/// Whether the kernel knows an action (`SECCOMP_RET_*`, without data).
pub fn knows_action(action: u32) -> bool {
    let place: *const u32 = &action;
    // SAFETY: `place` points to a readable u32 that outlives the call.
    unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, place) == 0 }
}

fn set_filter(flags: libc::c_ulong, program: &libc::sock_fprog, mark: u64) -> Result<RawFd, Errno> {
    let program: *const libc::sock_fprog = program;
    // SAFETY: `program` points to a sock_fprog whose `filter` holds `len` instructions; the kernel copies both before it returns.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, program, 0, 0, mark) };
    Errno::result(result).map(|raw| RawFd::try_from(raw).unwrap_or(-1))
}

/// `struct seccomp_notif`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Notification {
    /// Cookie of the notification.
    pub id: u64,
    /// Thread that called, as the listener's pid namespace numbers it; 0 when it does not see it.
    pub pid: u32,
    /// Always 0.
    pub flags: u32,
    /// Number of the call.
    pub nr: i32,
    /// `AUDIT_ARCH_*` of the ABI.
    pub arch: u32,
    /// Address of the calling instruction.
    pub instruction_pointer: u64,
    /// The argument registers, as the kernel copied them.
    pub args: [u64; 6],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
struct Response {
    id: u64,
    val: i64,
    error: i32,
    flags: u32,
}

/// `struct seccomp_notif_addfd`.
#[repr(C)]
struct AddFd {
    id: u64,
    flags: u32,
    srcfd: u32,
    newfd: u32,
    newfd_flags: u32,
}

/// What the listener answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The call fails with this errno, a positive number.
    Refuse(i32),
    /// The call seems to have been carried out and returned this.
    Return(i64),
    /// The kernel carries the call out. Never after judging memory: the sandbox can change it in between.
    Continue,
}

/// Sizes that the kernel uses; larger than ours when it is newer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sizes {
    notif: u16,
    response: u16,
    data: u16,
}

/// Checks that the kernel's notifications have the size that [`receive`] and [`send`] use. The ioctl numbers hold the size, so a kernel with
/// another one answers ENOTTY to every one of them.
///
/// # Errors
/// ENOSYS when the kernel has no notifications, EPROTO when their size differs.
pub fn check_sizes() -> Result<(), Errno> {
    let mut sizes = Sizes::default();
    let place: *mut Sizes = &mut sizes;
    // SAFETY: `place` points to a writable struct seccomp_notif_sizes that outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_NOTIF_SIZES, 0, place) };
    Errno::result(result)?;
    let fits =
        usize::from(sizes.notif) <= size_of::<Notification>() && usize::from(sizes.response) <= size_of::<Response>();
    if fits { Ok(()) } else { Err(Errno::EPROTO) }
}

mod ioctl {
    use super::{AddFd, Notification, Response};

    nix::ioctl_readwrite!(notif_recv, b'!', 0, Notification);
    nix::ioctl_readwrite!(notif_send, b'!', 1, Response);
    nix::ioctl_write_ptr!(notif_id_valid, b'!', 2, u64);
    nix::ioctl_write_ptr!(notif_addfd, b'!', 3, AddFd);
}

/// What a listener has to say at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// A notification waits: [`receive`] does not block.
    Call,
    /// Nothing waits.
    Nothing,
    /// Nobody under the filter is left.
    Nobody,
}

/// Looks whether a notification waits, without waiting (poll(2)).
///
/// # Errors
/// EINTR, ENOMEM.
pub fn waiting(listener: BorrowedFd<'_>) -> Result<Waiting, Errno> {
    let mut slot = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: `slot` is one pollfd and outlives the call.
    Errno::result(unsafe { libc::poll(&raw mut slot, 1, 0) })?;
    Ok(if slot.revents & libc::POLLIN != 0 {
        Waiting::Call
    } else if slot.revents != 0 {
        Waiting::Nobody
    } else {
        Waiting::Nothing
    })
}

/// Waits for the next notification.
///
/// # Errors
/// ENOENT when the caller was killed meanwhile (look for the next one), EINTR.
pub fn receive(listener: BorrowedFd<'_>) -> Result<Notification, Errno> {
    // The kernel insists on zeroes.
    let mut notification = Notification::default();
    // SAFETY: `notification` is a zeroed, writable struct seccomp_notif that outlives the call.
    unsafe { ioctl::notif_recv(listener.as_raw_fd(), &mut notification) }?;
    Ok(notification)
}

/// Answers a notification.
///
/// # Errors
/// ENOENT when the caller is gone or the notification was answered.
pub fn send(listener: BorrowedFd<'_>, id: u64, reply: Reply) -> Result<(), Errno> {
    let mut response = match reply {
        Reply::Refuse(errno) => Response { id, val: 0, error: -errno, flags: 0 },
        Reply::Return(val) => Response { id, val, error: 0, flags: 0 },
        Reply::Continue => Response { id, val: 0, error: 0, flags: NOTIF_FLAG_CONTINUE },
    };
    // SAFETY: `response` is an initialised struct seccomp_notif_resp that outlives the call.
    unsafe { ioctl::notif_send(listener.as_raw_fd(), &mut response) }?;
    Ok(())
}

/// Whether the notification still waits for an answer: what was read through /proc/PID before this said yes belongs to the caller, and not
/// to a later process with its number.
pub fn id_valid(listener: BorrowedFd<'_>, id: u64) -> bool {
    // SAFETY: the kernel reads one u64, which outlives the call.
    unsafe { ioctl::notif_id_valid(listener.as_raw_fd(), &id) }.is_ok()
}

/// Puts a copy of `fd` into the caller, which gets its new number as the result of the call; it is closed on exec if `cloexec`. Adding and
/// answering are one step, so the caller never has a descriptor that it was not told of.
///
/// # Errors
/// ENOENT when the caller is gone, EMFILE when its table is full; the notification then still waits for an answer.
pub fn add_fd_and_reply(listener: BorrowedFd<'_>, id: u64, fd: BorrowedFd<'_>, cloexec: bool) -> Result<i32, Errno> {
    let request = AddFd {
        id,
        flags: ADDFD_FLAG_SEND,
        srcfd: u32::try_from(fd.as_raw_fd()).map_err(|_| Errno::EBADF)?,
        newfd: 0,
        newfd_flags: if cloexec { libc::O_CLOEXEC.unsigned_abs() } else { 0 },
    };
    // SAFETY: `request` is an initialised struct seccomp_notif_addfd that outlives the call.
    unsafe { ioctl::notif_addfd(listener.as_raw_fd(), &request) }
}

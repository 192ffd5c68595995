//! Processes: clone3(2), a vfork-like child, pidfds, exec (execve(2)), exit.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::{Errno, check};

/// A pid as seen by the caller.
pub type Pid = libc::pid_t;

/// Which side of a clone one is on.
#[derive(Debug)]
pub enum Side {
    /// The parent, with the child's pid and pidfd.
    Parent {
        /// Pid in the parent's namespace.
        pid: Pid,
        /// Descriptor that refers to the child for as long as it is held.
        pidfd: OwnedFd,
    },
    /// The child.
    Child,
}

/// The argument block of clone3(2).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks into new namespaces (clone3(2)); `namespaces` are `CLONE_NEW*` flags, `cgroup` a cgroup v2 directory to be born in.
///
/// The child continues on a copy of the memory, as after fork(2). The caller must have a single thread: in a child of a
/// threaded process any lock may be held for ever.
pub fn clone_into(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Side, Errno> {
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: namespaces | libc::CLONE_PIDFD as u64,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(dir) = cgroup {
        args.flags |= 0x2_0000_0000; // CLONE_INTO_CGROUP
        args.cgroup = dir.as_raw_fd() as u64;
    }
    // SAFETY: `args` is a valid clone_args of the stated size and outlives the call; without CLONE_VM the child has its own
    // copy of the stack, so returning from this frame twice is sound.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) })?;
    if pid == 0 {
        return Ok(Side::Child);
    }
    // SAFETY: the kernel stored a fresh descriptor in `pidfd`, and nobody else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Side::Parent { pid: pid as Pid, pidfd })
}

/// The same, but the child's parent is the caller's (`CLONE_PARENT`): whoever started the caller waits for it.
pub fn clone_sibling(namespaces: u64) -> Result<Side, Errno> {
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        // The signal at its end is that of the caller; clone3(2) wants none named here.
        flags: namespaces | (libc::CLONE_PIDFD | libc::CLONE_PARENT) as u64,
        pidfd: &raw mut pidfd as u64,
        ..CloneArgs::default()
    };
    // SAFETY: as in `clone_into`.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) })?;
    if pid == 0 {
        return Ok(Side::Child);
    }
    // SAFETY: the kernel stored a fresh descriptor in `pidfd`, and nobody else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Side::Parent { pid: pid as Pid, pidfd })
}

/// A stack for children that share our memory. Large enough for the sealing steps, which do not recurse.
#[derive(Debug)]
pub struct ChildStack(Box<[MaybeUninit<u8>]>);

impl ChildStack {
    /// Allocates the stack: small enough to come from the heap that is there, and not cleared, so that untouched pages cost nothing.
    pub fn new() -> Self {
        Self::with_bytes(32 * 1024)
    }

    /// The same with so many bytes.
    pub fn with_bytes(bytes: usize) -> Self {
        ChildStack(Box::new_uninit_slice(bytes))
    }

    /// Where it begins: stacks grow downwards.
    pub(crate) fn top(&mut self) -> *mut libc::c_void {
        let top = self.0.as_mut_ptr_range().end;
        top.wrapping_sub(top as usize % 16).cast()
    }
}

impl Default for ChildStack {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs `body` in a child that shares this process's memory while the caller sleeps until it has called exec or ended
/// (`CLONE_VM | CLONE_VFORK`), which spares the copy of the page tables. The value that `body` returns is its exit code.
pub fn vfork(stack: &mut ChildStack, body: &mut dyn FnMut() -> i32) -> Result<Pid, Errno> {
    shared_memory_child(stack, libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD, body)
}

extern "C" fn trampoline(argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `shared_memory_child` passes a pointer to a live `&mut dyn FnMut`, and its frame stays alive: with CLONE_VFORK the
    // parent sleeps in the call, and for the other caller the borrow lasts until the child has been reaped.
    let body = unsafe { &mut *argument.cast::<&mut dyn FnMut() -> i32>() };
    body()
}

fn shared_memory_child(
    stack: &mut ChildStack,
    flags: libc::c_int,
    mut body: &mut dyn FnMut() -> i32,
) -> Result<Pid, Errno> {
    // SAFETY: the stack is exclusively borrowed and 16-byte aligned at its top; the trampoline gets a pointer to `body`.
    let pid = unsafe { libc::clone(trampoline, stack.top(), flags, (&raw mut body).cast()) };
    check(pid.into()).map(|pid| pid as Pid)
}

/// Sends a signal through a pidfd (pidfd_send_signal(2)).
pub fn pidfd_signal(pidfd: RawFd, signal: i32) -> Result<(), Errno> {
    // SAFETY: no pointers but a null siginfo.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal, std::ptr::null::<u8>(), 0) }).map(drop)
}

/// Opens a pidfd (pidfd_open(2)).
pub fn pidfd_open(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: a fresh descriptor from the kernel.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Takes a copy of a descriptor of another process (pidfd_getfd(2)).
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) })?;
    // SAFETY: a fresh descriptor from the kernel.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Bytes of a page: a read that ends at the end of one fails as a whole or not at all.
const PAGE_BYTES: u64 = 4096;

/// Reads from the memory of another process until `bytes` is full or the memory ends (process_vm_readv(2)); returns how many came.
///
/// # Errors
/// EFAULT when nothing is there, EPERM when the caller may not trace the process, ESRCH when it is gone.
pub fn read_memory(pid: Pid, address: u64, bytes: &mut [u8]) -> Result<usize, Errno> {
    let mut done = 0;
    while done < bytes.len() {
        let from = address.checked_add(done as u64).ok_or(Errno::EFAULT)?;
        let to_page_end = (PAGE_BYTES - from % PAGE_BYTES) as usize;
        let part = bytes.len().min(done + to_page_end);
        match read_vector(pid, from, &mut bytes[done..part]) {
            Ok(0) | Err(Errno::EFAULT) if done > 0 => break,
            Ok(0) => return Err(Errno::EFAULT),
            Ok(count) => done += count,
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

fn read_vector(pid: Pid, address: u64, bytes: &mut [u8]) -> Result<usize, Errno> {
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: bytes.len() };
    // SAFETY: `local` describes `bytes`, which outlives the call; `remote` is an address of the other process and never used as a pointer here.
    let count = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    check(count as libc::c_long).map(|count| count as usize)
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By exit, with this code.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

/// Waits for a child (waitpid(2)); `None` when `WNOHANG` is given and none has ended.
pub fn wait(pid: Pid, flags: i32) -> Result<Option<(Pid, Ended)>, Errno> {
    let mut status = 0;
    loop {
        // SAFETY: `status` outlives the call.
        match check(unsafe { libc::waitpid(pid, &raw mut status, flags) }.into()) {
            Ok(0) => return Ok(None),
            Ok(pid) if libc::WIFEXITED(status) => {
                return Ok(Some((pid as Pid, Ended::Code(libc::WEXITSTATUS(status)))));
            }
            Ok(pid) if libc::WIFSIGNALED(status) => {
                return Ok(Some((pid as Pid, Ended::Signal(libc::WTERMSIG(status)))));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Pointers to NUL-terminated strings with a null at the end, as execve(2) wants them.
pub struct CStrings {
    pointers: Vec<*const libc::c_char>,
    _strings: Vec<std::ffi::CString>,
    /// For words that come later.
    bytes: Vec<u8>,
}

impl CStrings {
    /// Takes the strings; they live as long as this does.
    pub fn new(strings: Vec<std::ffi::CString>) -> Self {
        let mut pointers: Vec<_> = strings.iter().map(|string| string.as_ptr()).collect();
        pointers.push(std::ptr::null());
        CStrings { pointers, _strings: strings, bytes: Vec::new() }
    }

    /// With room for words that [`CStrings::fill`] brings. Memory that is not filled is not touched.
    pub fn with_room(bytes: usize, words: usize) -> Self {
        let mut pointers = Vec::with_capacity(words + 1);
        pointers.push(std::ptr::null());
        // One more, by which words that fill the room are told from those that do not fit.
        CStrings { pointers, _strings: Vec::new(), bytes: vec![0; bytes + 1] }
    }

    /// Takes words that end with a NUL each, which `read` writes into the room, and tells how many bytes they are. Allocates nothing.
    ///
    /// # Errors
    /// What `read` says; `E2BIG` for what is larger than the room, `EINVAL` for what does not end with a NUL.
    pub fn fill(&mut self, read: impl FnOnce(&mut [u8]) -> Result<usize, Errno>) -> Result<(), Errno> {
        let count = read(&mut self.bytes)?;
        let words = self.bytes.get(..count).ok_or(Errno::E2BIG)?;
        if count == self.bytes.len() {
            return Err(Errno::E2BIG);
        }
        if words.last() != Some(&0) {
            return Err(Errno::EINVAL);
        }
        self.pointers.clear();
        for word in words.split_inclusive(|byte| *byte == 0) {
            if self.pointers.len() + 1 == self.pointers.capacity() {
                return Err(Errno::E2BIG);
            }
            self.pointers.push(word.as_ptr().cast());
        }
        self.pointers.push(std::ptr::null());
        Ok(())
    }
}

/// Replaces the program (execve(2)). Returns only on failure. Allocates nothing.
pub fn exec(path: &CStr, argv: &CStrings, env: &CStrings) -> Errno {
    // SAFETY: `path` is NUL-terminated, both arrays end with a null pointer and own their strings.
    unsafe { libc::execve(path.as_ptr(), argv.pointers.as_ptr(), env.pointers.as_ptr()) };
    Errno::last()
}

/// Replaces the program by an open one (execveat(2), `AT_EMPTY_PATH`). Returns only on failure. Scripts cannot be had this way.
pub fn exec_open(program: BorrowedFd<'_>, argv: &CStrings, env: &CStrings) -> Errno {
    let (number, flags) = (program.as_raw_fd(), libc::AT_EMPTY_PATH);
    // SAFETY: the path is NUL-terminated, both arrays end with a null pointer and own their strings.
    unsafe {
        libc::syscall(libc::SYS_execveat, number, c"".as_ptr(), argv.pointers.as_ptr(), env.pointers.as_ptr(), flags)
    };
    Errno::last()
}

/// Ends the process at once, without running destructors or flushing (_exit(2)).
pub fn exit_now(code: i32) -> ! {
    // SAFETY: never returns, touches no memory.
    unsafe { libc::_exit(code) }
}

/// Marks every descriptor from `first` on close-on-exec, or closes it (close_range(2)).
pub fn close_from(first: u32, last: u32, only_on_exec: bool) -> Result<(), Errno> {
    let flags: u32 = if only_on_exec { 4 } else { 0 }; // CLOSE_RANGE_CLOEXEC
    // SAFETY: no pointers. Callers own every descriptor of the range; the jail calls this where nothing else is held.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(drop)
}

/// Leaves namespaces for new ones (unshare(2)).
pub fn unshare(flags: i32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    check(unsafe { libc::unshare(flags) }.into()).map(drop)
}

/// Enters the namespaces of these kinds (`CLONE_NEW*`) that `target` is in, a process by its pidfd, or the one that it is (setns(2)).
pub fn enter_namespaces(target: BorrowedFd<'_>, kinds: i32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    check(unsafe { libc::setns(target.as_raw_fd(), kinds) }.into()).map(drop)
}

/// Sets all user ids, then nothing of the old id is left (setresuid(2)). The raw call: glibc's would signal threads.
pub fn set_uid(uid: u32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// Sets all group ids (setresgid(2)).
pub fn set_gid(gid: u32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map(drop)
}

/// Gives up every supplementary group (setgroups(2)).
pub fn clear_groups() -> Result<(), Errno> {
    // SAFETY: an empty list needs no memory.
    check(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()) }).map(drop)
}

/// Starts a session of its own (setsid(2)).
pub fn new_session() -> Result<(), Errno> {
    // SAFETY: no arguments.
    check(unsafe { libc::setsid() }.into()).map(drop)
}

/// Sends a signal by pid (kill(2)).
pub fn kill(pid: Pid, signal: i32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    check(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// Sets the host name of this UTS namespace (sethostname(2)).
pub fn set_hostname(name: &[u8]) -> Result<(), Errno> {
    // SAFETY: pointer and length describe `name`.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }.into()).map(drop)
}

/// Sets the NIS domain name of this UTS namespace (setdomainname(2)).
pub fn set_domainname(name: &[u8]) -> Result<(), Errno> {
    // SAFETY: pointer and length describe `name`.
    check(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }.into()).map(drop)
}

/// Sets the supplementary groups (setgroups(2)).
pub fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: pointer and count describe `groups`, which outlives the call.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// Leaves the session keyring for a fresh one of this name (keyctl(2), `KEYCTL_JOIN_SESSION_KEYRING`).
pub fn new_session_keyring(name: &CStr) -> Result<(), Errno> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: `name` is NUL-terminated and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) }).map(drop)
}

impl std::fmt::Debug for CStrings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self._strings).finish()
    }
}

//! Tries system calls under a filter, in a child that is gone afterwards: what the kernel answers, and not what a table says.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::process::Pid;
use crate::seccomp::{self, Filter};

/// The door through which a call enters the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The native instruction; x32 numbers enter here too.
    Native,
    /// `int 0x80`, the i386 door of x86-64 kernels. Arguments are cut to 32 bits.
    Int80,
}

/// One call to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// How it enters.
    pub entry: Entry,
    /// Its number in the ABI of the entry.
    pub nr: u32,
    /// Its arguments. Addresses mean nothing in the child; numbers that fault or fail are what a probe wants.
    pub args: [u64; 6],
}

/// Calls that one probe takes.
pub const CALLS_MAX: usize = 256;

/// What the child sends when it cannot even load the filter; no call answers it.
const NOT_LOADED: i64 = i64::MIN;

/// Forks, loads `program` in the child after no_new_privs, makes the calls there and returns what each gave: a result, or a negative errno.
/// The calls run in a copy of this process, so they can harm the machine no more than this process can: try none that would.
///
/// # Errors
/// Too many calls, no child, a filter that does not load, or a child that a call killed.
pub fn try_calls(program: &[Filter], calls: &[Call]) -> io::Result<Vec<i64>> {
    if calls.len() > CALLS_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "more calls than one probe takes"));
    }
    let (mut reader, writer) = io::pipe()?;
    // SAFETY: between fork and _exit the child makes raw system calls on memory of its own stack and allocates nothing.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        child(program, calls, writer.as_raw_fd());
    }
    let pid = Errno::result(pid)?;
    drop(writer);
    let mut bytes = Vec::new();
    // Bounded: the child writes one buffer of CALLS_MAX answers.
    let read = reader.read_to_end(&mut bytes);
    let mut status = 0;
    // SAFETY: `status` is writable, and `pid` is our child, which nothing else reaps.
    Errno::result(unsafe { libc::waitpid(pid, &mut status, 0) })?;
    read?;
    let answers: Vec<i64> =
        bytes.chunks_exact(8).map(|answer| i64::from_ne_bytes(answer.try_into().expect("chunks of eight"))).collect();
    match answers.as_slice() {
        [NOT_LOADED, errno] => Err(io::Error::from_raw_os_error(i32::try_from(*errno).unwrap_or(0))),
        _ if answers.len() == calls.len() => Ok(answers),
        _ => Err(io::Error::other(format!("the probing child ended with wait status {status:#x} before it answered"))),
    }
}

/// The right to make raw calls: held only by a child that exists to try them, so whatever a call does to memory, nobody else uses it.
#[derive(Debug)]
pub struct Probing(());

impl Probing {
    /// Makes one call.
    ///
    /// # Errors
    /// The kernel's or the filter's answer.
    pub fn call(&self, call: &Call) -> Result<i64, Errno> {
        let result = make(call);
        // The kernel's errors are the highest 4095 numbers; a mapping's address may look negative too.
        if (-4095..0).contains(&result) {
            return Err(Errno::from_raw(i32::try_from(-result).unwrap_or(0)));
        }
        Ok(result)
    }
}

/// Forks a child that does `work` and ends with its value as exit code, without running anything else of the caller's.
///
/// The caller must have a single thread, since the child may allocate, and must wait for the child.
///
/// # Errors
/// No child: a limit, or a filter that refuses it.
pub fn spawn(work: &mut dyn FnMut(&Probing) -> i32) -> Result<Pid, Errno> {
    // SAFETY: the caller has a single thread, so the copy holds no lock that nobody releases; it never returns from here.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        crate::process::exit_now(work(&Probing(())));
    }
    Errno::result(pid)
}

/// Whether the kernel knows a listener flag of seccomp(2) that keeps other signals from interrupting a notified call (Linux 5.19).
pub fn has_wait_killable() -> bool {
    seccomp::knows_flags(seccomp::FLAG_NEW_LISTENER | seccomp::FLAG_WAIT_KILLABLE_RECV)
}

fn child(program: &[Filter], calls: &[Call], pipe: i32) -> ! {
    let mut answers = [0i64; CALLS_MAX];
    let mut count = calls.len();
    match load(program) {
        Ok(()) => {
            for (answer, call) in answers.iter_mut().zip(calls) {
                *answer = make(call);
            }
        }
        Err(errno) => {
            answers[..2].copy_from_slice(&[NOT_LOADED, i64::from(errno as i32)]);
            count = 2;
        }
    }
    // SAFETY: `answers` holds `count` initialised numbers; the descriptor is the child's copy of the pipe.
    unsafe {
        libc::write(pipe, answers.as_ptr().cast(), count * size_of::<i64>());
        libc::_exit(0)
    }
}

fn load(program: &[Filter]) -> Result<(), Errno> {
    // SAFETY: PR_SET_NO_NEW_PRIVS takes integers only.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    seccomp::load(program, false).map(drop)
}

fn make(call: &Call) -> i64 {
    match call.entry {
        Entry::Native => native(call),
        Entry::Int80 => int80(call),
    }
}

fn native(call: &Call) -> i64 {
    let [a, b, c, d, e, f] = call.args;
    // SAFETY: the child is a copy that ends right after; whatever the call does to its memory, nobody else uses it.
    let result = unsafe { libc::syscall(i64::from(call.nr), a, b, c, d, e, f) };
    if result == -1 { -i64::from(Errno::last_raw()) } else { result }
}

#[cfg(target_arch = "x86_64")]
fn int80(call: &Call) -> i64 {
    let result: u64;
    // SAFETY: as in `native`. rbx is reserved by the compiler, so it is exchanged around the call; the i386 entry keeps all registers but
    // rax, and clears r8 to r11.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {first}",
            "int 0x80",
            "xchg rbx, {first}",
            first = inout(reg) call.args[0] => _,
            inlateout("rax") u64::from(call.nr) => result,
            in("rcx") call.args[1],
            in("rdx") call.args[2],
            in("rsi") call.args[3],
            in("rdi") call.args[4],
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    // The result is a 32-bit number in a 64-bit register.
    i64::from(result as u32 as i32)
}

#[cfg(not(target_arch = "x86_64"))]
fn int80(_: &Call) -> i64 {
    -i64::from(libc::ENOSYS)
}

/// A listener for tests of a supervisor: forks a child that loads `program` with a listener, hands the listener out and makes `call`.
/// Returns the listener and the child, which ends with the low 8 bits of the answer's errno as its exit code (0 for success).
///
/// # Errors
/// No child, or a filter that does not load.
pub fn call_under_listener(program: &[Filter], call: Call) -> io::Result<(OwnedFd, i32)> {
    let (mut reader, writer) = io::pipe()?;
    let clone_files = u64::try_from(libc::CLONE_FILES | libc::SIGCHLD).expect("positive flags");
    // SAFETY: as in `try_calls`; the child shares the descriptor table, so the number that it writes is ours too.
    let pid = unsafe { libc::syscall(libc::SYS_clone, clone_files, 0, 0, 0, 0) };
    if pid == 0 {
        child_with_listener(program, &call, writer.as_raw_fd());
    }
    let pid = i32::try_from(Errno::result(pid)?).expect("a pid has 32 bits");
    let mut bytes = [0u8; 8];
    reader.read_exact(&mut bytes)?;
    let raw = i64::from_ne_bytes(bytes);
    if raw < 0 {
        return Err(io::Error::from_raw_os_error(i32::try_from(-raw).unwrap_or(0)));
    }
    // SAFETY: the child made this descriptor in the shared table and gave it up.
    let listener = unsafe { OwnedFd::from_raw_fd(i32::try_from(raw).expect("a descriptor has 32 bits")) };
    Ok((listener, pid))
}

fn child_with_listener(program: &[Filter], call: &Call, pipe: i32) -> ! {
    use std::os::fd::IntoRawFd;
    // SAFETY: PR_SET_NO_NEW_PRIVS takes integers only.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    let answer = match seccomp::load(program, true) {
        Ok(Some(listener)) => i64::from(listener.into_raw_fd()),
        Ok(None) => -i64::from(libc::EPROTO),
        Err(errno) => -i64::from(errno as i32),
    };
    let bytes = answer.to_ne_bytes();
    // SAFETY: `bytes` holds eight initialised bytes.
    unsafe { libc::write(pipe, bytes.as_ptr().cast(), bytes.len()) };
    let result = make(call);
    let code = i32::try_from(result.min(0).unsigned_abs() & 0xff).unwrap_or(255);
    // SAFETY: ends the child without running anything of the parent's.
    unsafe { libc::_exit(code) }
}

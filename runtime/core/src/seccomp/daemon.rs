//! The filter that the daemon's own API process puts on itself: the calls that a server of unix sockets with threads, files and SQLite makes, and no other.
//!
//! Not from the groups of policies: those are for programs that nobody knows, and `base` has execve. Whatever is not listed is EPERM; clone3, whose flags
//! no filter sees, is ENOSYS, so that the C library takes clone(2). Calls that are allowed whatever their arguments are known to the
//! kernel as such, which does not run the program for them; so their order costs nothing.

use super::bpf::{self, Insn};
use super::{Abi, ENOSYS, EPERM, X32_BIT};

/// Allowed whatever their arguments. Of a call that an ABI lacks there is a newer one in the list.
const ALLOWED: &[&str] = &[
    // Memory and threads.
    "brk",
    "munmap",
    "mremap",
    "madvise",
    "futex",
    "set_robust_list",
    "get_robust_list",
    "rseq",
    "set_tid_address",
    "sched_yield",
    "sched_getaffinity",
    "gettid",
    "getpid",
    "getppid",
    "exit",
    "exit_group",
    "membarrier",
    // Signals, of which those of the runtime come over a pipe; how the warden ended.
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sigaltstack",
    "restart_syscall",
    "wait4",
    "waitid",
    "pidfd_open",
    // Files. Which of them, Landlock and the file's owner decide.
    "read",
    "write",
    "readv",
    "writev",
    "pread64",
    "pwrite64",
    "preadv",
    "pwritev",
    "open",
    "openat",
    "openat2",
    "close",
    "close_range",
    "fstat",
    "stat",
    "lstat",
    "newfstatat",
    "statx",
    "lseek",
    "getdents64",
    "ftruncate",
    "fsync",
    "fdatasync",
    "fallocate",
    "fcntl",
    "flock",
    "dup",
    "dup2",
    "dup3",
    "pipe2",
    "access",
    "faccessat",
    "faccessat2",
    "readlink",
    "readlinkat",
    "getcwd",
    "mkdir",
    "mkdirat",
    "unlink",
    "unlinkat",
    "rmdir",
    "rename",
    "renameat",
    "renameat2",
    "chmod",
    "fchmod",
    "fchmodat",
    "fchown",
    "umask",
    "statfs",
    "fstatfs",
    "utimensat",
    "copy_file_range",
    "sendfile",
    "splice",
    // What the runtime waits with.
    "epoll_create1",
    "epoll_ctl",
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "poll",
    "ppoll",
    "eventfd2",
    "timerfd_create",
    "timerfd_settime",
    "timerfd_gettime",
    "inotify_init1",
    "inotify_add_watch",
    "inotify_rm_watch",
    "signalfd4",
    // Sockets, once they are there.
    "connect",
    "bind",
    "listen",
    "accept",
    "accept4",
    "sendmsg",
    "recvmsg",
    "sendto",
    "recvfrom",
    "shutdown",
    "getsockname",
    "getpeername",
    "getsockopt",
    "setsockopt",
    // What time it is, who and where one is.
    "clock_gettime",
    "clock_getres",
    "clock_nanosleep",
    "nanosleep",
    "gettimeofday",
    "time",
    "getuid",
    "geteuid",
    "getgid",
    "getegid",
    "getgroups",
    "getresuid",
    "getresgid",
    "capget",
    "uname",
    "sysinfo",
    "getrusage",
    "getrlimit",
    "times",
    "getrandom",
];

/// What an argument must be.
#[derive(Clone, Copy)]
enum Test {
    /// Its low half is one of these: the kernel takes an `int`.
    OneOf(u8, &'static [u32]),
    /// Its low half is the caller's own pid.
    OwnPid(u8),
    /// Its low half is 0.
    Zero(u8),
    /// All of these bits are set, and none of those.
    Bits(u8, u32, u32),
}

const AF_UNIX: u32 = 1;
const CLONE_THREAD: u32 = 0x0001_0000;
const PROT_EXEC: u32 = 4;
const PR_SET_NAME: u32 = 15;
/// Names for mappings, which the C library gives where it can.
const PR_SET_VMA: u32 = 0x5356_4d41;
/// FIONBIO, FIOCLEX, FIONREAD; what a terminal is and how large (asm-generic/ioctls.h).
const IOCTLS: &[u32] = &[0x5421, 0x5451, 0x541b, 0x5401, 0x5413, 0x5414];

/// Allowed when the test holds.
const JUDGED: &[(&str, Test)] = &[
    ("socket", Test::OneOf(0, &[AF_UNIX])),
    ("socketpair", Test::OneOf(0, &[AF_UNIX])),
    // A thread and nothing else: no process, no namespace.
    ("clone", Test::Bits(0, CLONE_THREAD, super::trace::NEW_NAMESPACES)),
    // Nothing that is written becomes a program.
    ("mmap", Test::Bits(2, 0, PROT_EXEC)),
    ("mprotect", Test::Bits(2, 0, PROT_EXEC)),
    ("prctl", Test::OneOf(0, &[PR_SET_NAME, PR_SET_VMA])),
    ("ioctl", Test::OneOf(1, IOCTLS)),
    // How abort(3) ends the process.
    ("tgkill", Test::OwnPid(0)),
    ("prlimit64", Test::Zero(0)),
];

/// The program, for the process of this pid.
pub fn program(abi: Abi, pid: u32) -> Vec<Insn> {
    let mut program = vec![load(bpf::OFFSET_ARCH), jump(bpf::JEQ_K, abi.audit_arch(), 1, 0), ret(REFUSED)];
    program.push(load(bpf::OFFSET_NR));
    program.extend([jump(bpf::JGE_K, X32_BIT, 0, 1), ret(REFUSED)]);
    for (call, test) in JUDGED {
        let Some(nr) = abi.call_number(call) else { continue };
        let body = judge(*test, pid);
        let past = u8::try_from(body.len()).expect("the longest body has fewer instructions than a jump reaches");
        program.push(jump(bpf::JEQ_K, nr, 0, past));
        program.extend(body);
    }
    for nr in ALLOWED.iter().filter_map(|call| abi.call_number(call)) {
        program.extend([jump(bpf::JEQ_K, nr, 0, 1), ret(bpf::RET_ALLOW)]);
    }
    if let Some(nr) = abi.call_number("clone3") {
        program.extend([jump(bpf::JEQ_K, nr, 0, 1), ret(bpf::RET_ERRNO | ENOSYS as u32)]);
    }
    program.push(ret(REFUSED));
    program
}

const REFUSED: u32 = bpf::RET_ERRNO | EPERM as u32;

/// Answers in any case: what comes after it is about other calls.
fn judge(test: Test, pid: u32) -> Vec<Insn> {
    let among = |values: &[u32]| -> Vec<Insn> {
        values.iter().flat_map(|value| [jump(bpf::JEQ_K, *value, 0, 1), ret(bpf::RET_ALLOW)]).collect()
    };
    let (argument, mut body) = match test {
        Test::OneOf(argument, values) => (argument, among(values)),
        Test::OwnPid(argument) => (argument, among(&[pid])),
        Test::Zero(argument) => (argument, among(&[0])),
        Test::Bits(argument, set, clear) => {
            let mut body = vec![jump(bpf::JSET_K, clear, 0, 1), ret(REFUSED)];
            if set != 0 {
                body.extend([jump(bpf::JSET_K, set, 1, 0), ret(REFUSED)]);
            }
            body.push(ret(bpf::RET_ALLOW));
            (argument, body)
        }
    };
    body.insert(0, load(bpf::OFFSET_ARGS + 8 * u32::from(argument)));
    body.push(ret(REFUSED));
    body
}

const fn load(offset: u32) -> Insn {
    Insn { code: bpf::LD_W_ABS, jt: 0, jf: 0, k: offset }
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Insn {
    Insn { code, jt, jf, k }
}

const fn ret(k: u32) -> Insn {
    Insn { code: bpf::RET_K, jt: 0, jf: 0, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PID: u32 = 77;
    const ARGS: [u64; 6] = [0; 6];

    fn answer(abi: Abi, call: &str, args: [u64; 6]) -> u32 {
        let nr = abi.call_number(call).unwrap_or_else(|| panic!("{call} is no call of {}", abi.name()));
        bpf::run(&program(abi, PID), abi.audit_arch(), nr, &args)
    }

    #[track_caller]
    fn check(call: &str, args: [u64; 6], allowed: bool) {
        for abi in [Abi::X86_64, Abi::Aarch64] {
            let expected = if allowed { bpf::RET_ALLOW } else { REFUSED };
            assert_eq!(answer(abi, call, args), expected, "{call} {args:?} of {}", abi.name());
        }
    }

    #[test]
    fn every_name_is_a_call() {
        for call in ALLOWED.iter().chain(JUDGED.iter().map(|(call, _)| call)) {
            assert!(Abi::X86_64.call_number(call).is_some(), "{call}");
        }
    }

    #[test]
    fn what_a_server_needs_passes_and_what_an_intruder_wants_does_not() {
        for call in ["read", "accept4", "openat", "futex", "epoll_pwait", "fdatasync", "exit_group"] {
            check(call, ARGS, true);
        }
        for call in [
            "execve",
            "execveat",
            "ptrace",
            "mount",
            "unshare",
            "setns",
            "bpf",
            "kill",
            "setresuid",
            "capset",
            "chroot",
            "process_vm_readv",
            "pidfd_getfd",
            "pidfd_send_signal",
            "memfd_create",
            "io_uring_setup",
            "keyctl",
            "perf_event_open",
            "userfaultfd",
            "linkat",
            "symlinkat",
            "mknodat",
            "seccomp",
            "pivot_root",
            "open_by_handle_at",
        ] {
            check(call, ARGS, false);
        }
    }

    #[test]
    fn arguments_decide() {
        check("socket", [1, 1, 0, 0, 0, 0], true);
        for family in [2, 10, 16, 17, 40] {
            check("socket", [family, 1, 0, 0, 0, 0], false);
        }
        check("clone", [0x003d_0f00, 0, 0, 0, 0, 0], true);
        check("clone", [17, 0, 0, 0, 0, 0], false);
        check("clone", [0x003d_0f00 | 0x1000_0000, 0, 0, 0, 0, 0], false);
        check("mprotect", [0, 4096, 3, 0, 0, 0], true);
        check("mprotect", [0, 4096, 7, 0, 0, 0], false);
        check("mmap", [0, 4096, 5, 2, 3, 0], false);
        check("tgkill", [PID.into(), 78, 6, 0, 0, 0], true);
        check("tgkill", [1, 1, 9, 0, 0, 0], false);
        check("ioctl", [3, 0x5421, 0, 0, 0, 0], true);
        // TIOCSTI types into a terminal.
        check("ioctl", [0, 0x5412, 0, 0, 0, 0], false);
        check("prctl", [23, 0, 0, 0, 0, 0], false);
        assert_eq!(answer(Abi::X86_64, "clone3", ARGS), bpf::RET_ERRNO | u32::from(ENOSYS));
    }

    #[test]
    fn other_abis_get_nothing() {
        let program = program(Abi::X86_64, PID);
        assert_eq!(bpf::run(&program, Abi::I386.audit_arch(), 3, &ARGS), REFUSED);
        assert_eq!(bpf::run(&program, Abi::X86_64.audit_arch(), X32_BIT, &ARGS), REFUSED);
        assert!(program.len() < bpf::INSNS_MAX);
    }
}

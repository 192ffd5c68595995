//! Attempts at system calls: the dangerous ones one by one, then every call that the table refuses, through each ABI.

use apex_core::layer::Layer;
use apex_core::seccomp::{Abi, ENOSYS, Table, Verdict, X32_BIT};
use apex_sys::Errno;
use apex_sys::probe::{Call, Entry, Probing};

use super::{Got, Trials};

/// A call with arguments that a policy may judge. `group` is what a policy names to allow it.
struct Forbidden {
    attempt: &'static str,
    call: &'static str,
    args: [u64; 6],
    group: &'static str,
}

const fn call(attempt: &'static str, call: &'static str, group: &'static str, args: [u64; 6]) -> Forbidden {
    Forbidden { attempt, call, args, group }
}

/// As an argument: -1, which is a bad descriptor, a bad address and no process.
const BAD: u64 = u64::MAX;
const CLONE_NEWUSER: u64 = 0x1000_0000;
/// A child that shares nothing needs SIGCHLD as its exit signal, so that it can be waited for.
const SIGCHLD: u64 = 17;
const TIOCSTI: u64 = 0x5412;
/// The kernel looks at 32 bits of a request: this one is the same to it (CVE-2019-10063).
const HIGH_BIT: u64 = 1 << 32;
const SET_USER_ID: u64 = 0o4755;
const READ_IMPLIES_EXEC: u64 = 0x0040_0000;

/// The arguments are such that, without the filter, most would give another answer than the filter's.
const FORBIDDEN: [Forbidden; 36] = [
    call("mount()", "mount", "mount", [BAD; 6]),
    call("umount2()", "umount2", "mount", [BAD; 6]),
    call("pivot_root()", "pivot_root", "mount", [BAD; 6]),
    call("fsopen()", "fsopen", "mount", [BAD; 6]),
    call("open_tree()", "open_tree", "mount", [BAD; 6]),
    call("unshare(CLONE_NEWUSER)", "unshare", "namespaces", [CLONE_NEWUSER, 0, 0, 0, 0, 0]),
    call("clone(CLONE_NEWUSER)", "clone", "namespaces", [CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0, 0]),
    call("clone3()", "clone3", "namespaces", [0; 6]),
    call("setns()", "setns", "namespaces", [BAD, 0, 0, 0, 0, 0]),
    call("ptrace(PTRACE_ATTACH, 1)", "ptrace", "ptrace", [16, 1, 0, 0, 0, 0]),
    call("process_vm_readv(1)", "process_vm_readv", "pidfd-steal", [1, 0, 0, 0, 0, 0]),
    call("process_vm_writev(1)", "process_vm_writev", "pidfd-steal", [1, 0, 0, 0, 0, 0]),
    call("pidfd_getfd()", "pidfd_getfd", "pidfd-steal", [BAD, 0, 0, 0, 0, 0]),
    call("bpf(BPF_PROG_LOAD)", "bpf", "bpf", [5, 0, 0, 0, 0, 0]),
    call("perf_event_open()", "perf_event_open", "perf", [0, 0, BAD, BAD, 0, 0]),
    call("io_uring_setup()", "io_uring_setup", "io-uring", [1, 0, 0, 0, 0, 0]),
    call("userfaultfd()", "userfaultfd", "userfaultfd", [BAD, 0, 0, 0, 0, 0]),
    call("add_key()", "add_key", "keyrings", [0; 6]),
    call("keyctl(KEYCTL_GET_KEYRING_ID)", "keyctl", "keyrings", [0, (-4i64) as u64, 0, 0, 0, 0]),
    call("init_module()", "init_module", "module", [0; 6]),
    call("finit_module()", "finit_module", "module", [BAD, 0, 0, 0, 0, 0]),
    call("kexec_load()", "kexec_load", "reboot", [0, 0, 0, BAD, 0, 0]),
    call("reboot() with a bad magic", "reboot", "reboot", [0; 6]),
    call("settimeofday()", "settimeofday", "clock-set", [BAD, BAD, 0, 0, 0, 0]),
    call("swapon()", "swapon", "swap", [BAD, 0, 0, 0, 0, 0]),
    call("open_by_handle_at()", "open_by_handle_at", "handles", [BAD, BAD, 0, 0, 0, 0]),
    call("fanotify_init()", "fanotify_init", "fanotify", [BAD, 0, 0, 0, 0, 0]),
    call("syslog()", "syslog", "kernel-log", [BAD, 0, 0, 0, 0, 0]),
    call("iopl(3)", "iopl", "admin", [3, 0, 0, 0, 0, 0]),
    call("socket(AF_ALG)", "socket", "rare-sockets", [38, 5, 0, 0, 0, 0]),
    call("socket(AF_PACKET)", "socket", "rare-sockets", [17, 3, 0, 0, 0, 0]),
    call("socket(AF_VSOCK)", "socket", "rare-sockets", [40, 1, 0, 0, 0, 0]),
    call("socket(AF_NETLINK, NETLINK_AUDIT)", "socket", "rare-sockets", [16, 3, 9, 0, 0, 0]),
    call("ioctl(TIOCSTI)", "ioctl", "terminal-injection", [0, TIOCSTI, BAD, 0, 0, 0]),
    call("ioctl(TIOCSTI) with a high bit set", "ioctl", "terminal-injection", [0, TIOCSTI | HIGH_BIT, BAD, 0, 0, 0]),
    call("personality(READ_IMPLIES_EXEC)", "personality", "obsolete", [READ_IMPLIES_EXEC, 0, 0, 0, 0, 0]),
];

/// What only a tree of the sandbox's own makes harmless.
const UNIX_SOCKET: Forbidden = call("socket(AF_UNIX)", "socket", "sockets", [1, 1, 0, 0, 0, 0]);

/// Numbers that a broken filter must not let a sweep run into: they would end, copy or stop the process that sweeps, or take away the
/// alarm that ends it when a call blocks.
const NOT_SWEPT: [&str; 30] = [
    "exit",
    "exit_group",
    "fork",
    "vfork",
    "clone",
    "clone3",
    "execve",
    "execveat",
    "pause",
    "select",
    "_newselect",
    "pselect6",
    "ppoll",
    "ppoll_time64",
    "pselect6_time64",
    "sigsuspend",
    "rt_sigsuspend",
    "sigreturn",
    "rt_sigreturn",
    "restart_syscall",
    "alarm",
    "setitimer",
    "signal",
    "sigaction",
    "rt_sigaction",
    "sigprocmask",
    "rt_sigprocmask",
    "ssetmask",
    "kill",
    "uprobe",
];

impl Trials<'_> {
    pub(super) fn calls(&mut self) {
        let Some(table) = &self.plan.seccomp else {
            return self.skip(Layer::Seccomp, "system calls", &[Got::Errno(Errno::EPERM)], "the plan has no filter");
        };
        for forbidden in &FORBIDDEN {
            self.call(table, forbidden);
        }
        if !self.plan.level.is_full() {
            self.call(table, &UNIX_SOCKET);
        }
        // A real file: the name is all that the filter cannot see.
        self.set_user_id(table);
        self.sweep_native(table);
        self.sweep_i386(table);
        self.x32();
    }

    fn call(&mut self, table: &Table, forbidden: &Forbidden) {
        let abi = table.arch().abi();
        let Some(nr) = abi.call_number(forbidden.call) else {
            return self.skip(Layer::Seccomp, forbidden.attempt, &[], "this machine has no such call");
        };
        let call = Call { entry: Entry::Native, nr, args: forbidden.args };
        match table.judge(abi, nr, &forbidden.args) {
            Verdict::Refuse(errno) => {
                let expected = [Got::Errno(Errno::from_raw(errno.into()))];
                self.attempt(Layer::Seccomp, forbidden.attempt, &expected, move |probing| made(probing, &call));
            }
            granted => {
                let expected = [Got::Errno(Errno::EPERM)];
                self.skip(Layer::Seccomp, forbidden.attempt, &expected, reason(granted, forbidden.group));
            }
        }
    }

    fn set_user_id(&mut self, table: &Table) {
        let abi = table.arch().abi();
        let args = [0, 0, SET_USER_ID, 0, 0, 0];
        let attempt = "fchmodat() to set-user-ID";
        let Some(nr) = abi.call_number("fchmodat") else { return };
        match table.judge(abi, nr, &args) {
            Verdict::Refuse(errno) => {
                let expected = [Got::Errno(Errno::from_raw(errno.into()))];
                self.attempt(Layer::Seccomp, attempt, &expected, move |probing| {
                    let here = c".";
                    let args = [(-100i64) as u64, here.as_ptr() as u64, SET_USER_ID, 0, 0, 0];
                    made(probing, &Call { entry: Entry::Native, nr, args })
                });
            }
            granted => {
                self.skip(Layer::Seccomp, attempt, &[Got::Errno(Errno::EPERM)], reason(granted, "setuid-bits"));
            }
        }
    }

    /// Every call that the table refuses, with arguments that mean nothing.
    fn sweep_native(&mut self, table: &Table) {
        const ARGS: [u64; 6] = [BAD; 6];
        let abi = table.arch().abi();
        let refused: Vec<(Call, Errno)> = (0..table.numbers(abi))
            .filter(|nr| abi.call_name(*nr).is_none_or(|name| !NOT_SWEPT.contains(&name)))
            .filter_map(|nr| match table.judge(abi, nr, &ARGS) {
                Verdict::Refuse(errno) => {
                    Some((Call { entry: Entry::Native, nr, args: ARGS }, Errno::from_raw(errno.into())))
                }
                Verdict::Allow | Verdict::Report => None,
            })
            .collect();
        let attempt = format!("{} refused {} calls, those that are answered otherwise", refused.len(), abi.name());
        self.attempt(Layer::Seccomp, attempt, &[Got::Seen(0)], move |probing| sweep(probing, &refused));
    }

    /// The 32-bit door of x86-64: `int 0x80`.
    fn sweep_i386(&mut self, table: &Table) {
        if table.arch().abi() != Abi::X86_64 {
            return;
        }
        let expected = [Got::Errno(Errno::ENOSYS), Got::Signal(nix::libc::SIGSEGV)];
        if table.abis().any(|abi| abi == Abi::I386) {
            return self.skip(
                Layer::Seccomp,
                "getpid() by int 0x80",
                &expected,
                "the policy grants 32-bit programs (`compat`)",
            );
        }
        let entry = |nr| Call { entry: Entry::Int80, nr, args: [0; 6] };
        let getpid = Abi::I386.call_number("getpid").map(entry);
        if let Some(getpid) = getpid {
            // Where the kernel has no such door, the instruction itself is refused.
            self.attempt(Layer::Seccomp, "getpid() by int 0x80", &expected, move |probing| made(probing, &getpid));
        }
        let all: Vec<(Call, Errno)> = (0..512)
            .filter(|nr| Abi::I386.call_name(*nr).is_some_and(|name| !NOT_SWEPT.contains(&name)))
            .map(|nr| (entry(nr), Errno::from_raw(ENOSYS.into())))
            .collect();
        let attempt = format!("{} i386 calls by int 0x80, those that are answered otherwise", all.len());
        let expected = [Got::Seen(0), Got::Signal(nix::libc::SIGSEGV)];
        self.attempt(Layer::Seccomp, attempt, &expected, move |probing| sweep(probing, &all));
    }

    fn x32(&mut self) {
        if cfg!(target_arch = "x86_64")
            && let Some(nr) = Abi::X86_64.call_number("getpid")
        {
            let call = Call { entry: Entry::Native, nr: nr | X32_BIT, args: [0; 6] };
            let expected = [Got::Errno(Errno::ENOSYS)];
            self.attempt(Layer::Seccomp, "getpid() by its x32 number", &expected, move |probing| made(probing, &call));
        }
    }
}

fn reason(verdict: Verdict, group: &str) -> String {
    match verdict {
        Verdict::Report => format!("the policy lets `{group}` through and records it"),
        Verdict::Allow | Verdict::Refuse(_) => format!("the policy grants `{group}`"),
    }
}

fn made(probing: &Probing, call: &Call) -> Got {
    Got::of(probing.call(call))
}

fn sweep(probing: &Probing, calls: &[(Call, Errno)]) -> Got {
    let other = calls.iter().filter(|(call, errno)| probing.call(call) != Err(*errno)).count();
    Got::Seen(u32::try_from(other).unwrap_or(u32::MAX))
}

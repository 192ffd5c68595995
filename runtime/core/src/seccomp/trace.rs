//! The filter that stops a process at the calls of interest, for a tracer (`SECCOMP_RET_TRACE`).
//!
//! Input: the ABIs of a policy and a [`Scope`]. Output: a program that is loaded beside the policy's own. It answers "carry out" or "stop for the
//! tracer", and refuses a birth that would leave the tracer behind. The kernel takes the strictest answer of all filters: what the policy
//! refuses or notifies is never stopped at, and nothing is widened. Without a tracer a call that is stopped at answers ENOSYS, so the tracer
//! is there before the command.
//!
//! Numbers are looked up in a tree, and arguments are only loaded for calls whose answer depends on them: the kernel then knows all others to
//! be always allowed and does not run the program for them.

use std::collections::BTreeMap;

use super::bpf::{self, Insn};
use super::{Abi, ENOSYS, X32_BIT, groups};

/// How much is stopped at. Births, programs and ends come from the tracer itself and need no filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Network and privilege.
    Default,
    /// Files and names as well.
    Full,
    /// Every call but those of the group that each sandbox has: the set of calls that a program makes becomes known.
    Every,
}

impl Scope {
    /// The scope of a watched run: to learn from it, the set of its calls must be known.
    pub const fn of_run(begin: &crate::watch::Begin) -> Option<Scope> {
        match (Scope::of(begin.start.level), &begin.learn) {
            (Some(_), Some(_)) => Some(Scope::Every),
            (scope, _) => scope,
        }
    }

    /// The scope of a level of watching.
    pub const fn of(level: crate::watch::Level) -> Option<Scope> {
        match level {
            crate::watch::Level::Off => None,
            crate::watch::Level::Default => Some(Scope::Default),
            crate::watch::Level::Full => Some(Scope::Full),
        }
    }
}

/// Value of the sixth argument of a seccomp(2) call that is not stopped at, which the kernel ignores: the loading of the policy's filter,
/// which comes after this one and before the tracer.
pub const UNTRACED_MARK: u64 = 0x6170_6578_7472_6163;

/// Calls of the network.
const NETWORK: &[&str] = &["socket", "connect", "bind", "sendmsg", "sendmmsg"];

/// Calls that change what a process is or may do, or reach into another.
const PRIVILEGE: &[&str] = &[
    "setuid",
    "setgid",
    "setreuid",
    "setregid",
    "setresuid",
    "setresgid",
    "setfsuid",
    "setfsgid",
    "setgroups",
    "setuid32",
    "setgid32",
    "setreuid32",
    "setregid32",
    "setresuid32",
    "setresgid32",
    "setfsuid32",
    "setfsgid32",
    "setgroups32",
    "capset",
    "unshare",
    "setns",
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "bpf",
    "init_module",
    "finit_module",
    "delete_module",
    "kexec_load",
    "kexec_file_load",
    "memfd_create",
    "mount",
    "umount",
    "umount2",
    "move_mount",
    "open_tree",
    "fsmount",
    "fsopen",
    "mount_setattr",
    "pivot_root",
    "kill",
    "tkill",
    "tgkill",
    "pidfd_send_signal",
    "rt_sigqueueinfo",
    "rt_tgsigqueueinfo",
    "chroot",
];

/// Calls without a shape of their own that are told with their registers: rare in honest programs.
pub const CHOSEN: &[&str] = &[
    "acct",
    "add_key",
    "adjtimex",
    "clock_adjtime",
    "clock_settime",
    "fanotify_init",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "keyctl",
    "lookup_dcookie",
    "memfd_secret",
    "mknod",
    "mknodat",
    "name_to_handle_at",
    "open_by_handle_at",
    "perf_event_open",
    "personality",
    "pidfd_getfd",
    "quotactl",
    "reboot",
    "request_key",
    "sethostname",
    "setdomainname",
    "settimeofday",
    "swapoff",
    "swapon",
    "syslog",
    "userfaultfd",
    "vhangup",
];

/// Calls on files and names, and those that execute a program: of them the failures are told.
const FILES: &[&str] = &[
    "execve",
    "execveat",
    "open",
    "openat",
    "openat2",
    "creat",
    "truncate",
    "truncate64",
    "ftruncate",
    "ftruncate64",
    "mkdir",
    "mkdirat",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "rmdir",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "chmod",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "chown",
    "fchown",
    "lchown",
    "fchownat",
    "chown32",
    "fchown32",
    "lchown32",
];

/// Calls that look at a name: stopped at as what they are, and not as one of all calls, to learn from a run.
pub const LOOKS: &[&str] = &[
    "stat",
    "stat64",
    "oldstat",
    "lstat",
    "lstat64",
    "oldlstat",
    "newfstatat",
    "fstatat64",
    "statx",
    "access",
    "faccessat",
    "faccessat2",
    "readlink",
    "readlinkat",
    "statfs",
    "statfs64",
    "chdir",
];

/// A condition on one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    /// Any of these bits is set.
    Any(u8, u32),
    /// The low half is one of these.
    OneOf(u8, &'static [u32]),
    /// It is not this.
    Not(u8, u64),
}

const PROT_EXEC: u32 = 4;
const MAP_ANONYMOUS: u32 = 0x20;
/// `CLONE_NEW*` as clone(2) and unshare(2) take them.
pub(crate) const NEW_NAMESPACES: u32 = 0x7e02_0000;
const PR_SET_NAME: u32 = 15;
/// A child with this flag is not traced, whatever the tracer asked for (clone(2)).
const CLONE_UNTRACED: u32 = 0x0080_0000;
const EINVAL: u16 = 22;

/// Calls that are stopped at when all of the conditions hold.
const JUDGED: &[(&str, &[Test])] = &[
    ("mmap", &[Test::Any(2, PROT_EXEC), Test::Any(3, MAP_ANONYMOUS)]),
    ("mmap2", &[Test::Any(2, PROT_EXEC), Test::Any(3, MAP_ANONYMOUS)]),
    ("mprotect", &[Test::Any(2, PROT_EXEC)]),
    ("pkey_mprotect", &[Test::Any(2, PROT_EXEC)]),
    // The name of a process is part of every event.
    ("prctl", &[Test::OneOf(0, &[PR_SET_NAME])]),
    // socket, bind, connect, send, sendto, sendmsg, sendmmsg (linux/net.h).
    ("socketcall", &[Test::OneOf(0, &[1, 2, 3, 9, 11, 16, 20])]),
];

/// Bytes of a datagram to a connected socket that is stopped at, as it may be a question to a name server: from header, root, type and class to
/// the most that goes over UDP by itself (RFC 1035, 2.3.4). Such calls are too frequent to be stopped at whatever they send.
const QUESTION_BYTES: (u32, u32) = (17, 512);

/// The one judged call of i386 whose arguments stand in memory, so that no filter sees them.
const I386_MMAP: u32 = 90;

/// What is answered for a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaf {
    Allow,
    Trace,
    Args(&'static [Test]),
    /// clone(2): a child that the tracer would not get is refused, one in new namespaces is stopped at.
    Birth,
    /// sendto(2): to an address, or so few bytes that they can be a question to a name server.
    Datagram,
    /// clone3(2), whose flags no filter sees: C libraries take clone(2) instead.
    Missing,
}

/// The program that stops at the calls of `scope` in these ABIs, and at every call of any other ABI: the policy's filter refuses those, and
/// where there is none they are not to be a way around the watch.
pub fn filter(abis: impl Iterator<Item = Abi>, scope: Scope) -> Vec<Insn> {
    let mut program = vec![load(bpf::OFFSET_ARCH)];
    for abi in abis {
        let section = section(abi, scope);
        program.push(Insn { code: bpf::JEQ_K, jt: 1, jf: 0, k: abi.audit_arch() });
        program.push(ja(section.len()));
        program.extend(section);
    }
    program.push(ret(bpf::RET_TRACE));
    program
}

fn section(abi: Abi, scope: Scope) -> Vec<Insn> {
    let mut section = vec![load(bpf::OFFSET_NR)];
    tree(&runs(abi, scope), &mut section);
    section
}

/// The leaf of each number, as the first number of each run of equal leaves.
fn runs(abi: Abi, scope: Scope) -> Vec<(u32, Leaf)> {
    let known = u32::try_from(abi.calls().len()).unwrap_or(u32::MAX);
    let rest = if scope == Scope::Every { Leaf::Trace } else { Leaf::Allow };
    let stopped = stopped(abi, scope);
    let mut runs: Vec<(u32, Leaf)> = Vec::new();
    let leaves = (0..known).map(|nr| (nr, stopped.get(&nr).copied().unwrap_or(Leaf::Allow)));
    for (nr, leaf) in leaves.chain([(known, rest), (X32_BIT, Leaf::Trace)]) {
        if runs.last().is_none_or(|(_, last)| *last != leaf) {
            runs.push((nr, leaf));
        }
    }
    runs
}

/// Every number that is not always carried out.
fn stopped(abi: Abi, scope: Scope) -> BTreeMap<u32, Leaf> {
    let mut stopped = BTreeMap::new();
    if scope == Scope::Every {
        let is_base = |nr: &u32| groups::of_call(abi, *nr).is_none_or(|group| group.name == groups::BASE);
        let known = u32::try_from(abi.calls().len()).unwrap_or(u32::MAX);
        stopped.extend((0..known).filter(|nr| !is_base(nr)).map(|nr| (nr, Leaf::Trace)));
        stopped.extend(LOOKS.iter().filter_map(|name| abi.call_number(name)).map(|nr| (nr, Leaf::Trace)));
        let mark: &'static [Test] = &[Test::Not(5, UNTRACED_MARK)];
        stopped.extend(abi.call_number("seccomp").map(|nr| (nr, Leaf::Args(mark))));
    }
    let files: &[&str] = if scope == Scope::Default { &[] } else { FILES };
    let names = NETWORK.iter().chain(PRIVILEGE).chain(CHOSEN).chain(files);
    stopped.extend(names.filter_map(|name| abi.call_number(name)).map(|nr| (nr, Leaf::Trace)));
    for (name, tests) in JUDGED {
        // Stopped at as a whole by a wider scope.
        stopped.extend(abi.call_number(name).filter(|nr| !stopped.contains_key(nr)).map(|nr| (nr, Leaf::Args(tests))));
    }
    stopped.extend(abi.call_number("clone").map(|nr| (nr, Leaf::Birth)));
    if scope != Scope::Every {
        stopped.extend(abi.call_number("sendto").map(|nr| (nr, Leaf::Datagram)));
    }
    stopped.extend(abi.call_number("clone3").map(|nr| (nr, Leaf::Missing)));
    if abi == Abi::I386 {
        stopped.insert(I386_MMAP, Leaf::Trace);
    }
    stopped
}

/// A search for the run that holds the number.
fn tree(runs: &[(u32, Leaf)], program: &mut Vec<Insn>) {
    let (low, high) = runs.split_at(runs.len() / 2);
    let (Some((first, _)), false) = (high.first(), low.is_empty()) else {
        runs.iter().for_each(|(_, leaf)| block(*leaf, program));
        return;
    };
    let mut below = Vec::new();
    tree(low, &mut below);
    match u8::try_from(below.len()) {
        Ok(jt) => program.push(Insn { code: bpf::JGE_K, jt, jf: 0, k: *first }),
        Err(_) => {
            program.push(Insn { code: bpf::JGE_K, jt: 0, jf: 1, k: *first });
            program.push(ja(below.len()));
        }
    }
    program.extend(below);
    tree(high, program);
}

fn block(leaf: Leaf, program: &mut Vec<Insn>) {
    match leaf {
        Leaf::Allow => program.push(ret(bpf::RET_ALLOW)),
        Leaf::Trace => program.push(ret(bpf::RET_TRACE)),
        Leaf::Missing => program.push(refuse(ENOSYS)),
        Leaf::Birth => program.extend([
            load(word(0, 0)),
            Insn { code: bpf::JSET_K, jt: 0, jf: 1, k: CLONE_UNTRACED },
            refuse(EINVAL),
            Insn { code: bpf::JSET_K, jt: 0, jf: 1, k: NEW_NAMESPACES },
            ret(bpf::RET_TRACE),
            ret(bpf::RET_ALLOW),
        ]),
        Leaf::Datagram => program.extend([
            load(word(4, 0)),
            Insn { code: bpf::JEQ_K, jt: 0, jf: 5, k: 0 },
            load(word(4, 1)),
            Insn { code: bpf::JEQ_K, jt: 0, jf: 3, k: 0 },
            load(word(2, 0)),
            Insn { code: bpf::JGE_K, jt: 0, jf: 2, k: QUESTION_BYTES.0 },
            Insn { code: bpf::JGE_K, jt: 1, jf: 0, k: QUESTION_BYTES.1 + 1 },
            ret(bpf::RET_TRACE),
            ret(bpf::RET_ALLOW),
        ]),
        Leaf::Args(tests) => {
            // Built from its end, so that each comparison knows how far its ways out are.
            let mut tail = vec![ret(bpf::RET_TRACE), ret(bpf::RET_ALLOW)];
            for test in tests.iter().rev() {
                let mut head = comparison(*test, tail.len());
                head.append(&mut tail);
                tail = head;
            }
            program.extend(tail);
        }
    }
}

/// The instructions of a condition before a tail of `tail` ones, of which the last answers for a condition that does not hold.
fn comparison(test: Test, tail: usize) -> Vec<Insn> {
    let jump = |code, jt: usize, jf: usize, k| {
        let short = |distance| u8::try_from(distance).expect("a call has a handful of conditions");
        Insn { code, jt: short(jt), jf: short(jf), k }
    };
    let out = tail - 1;
    let half = |value: u64, half: u32| (value >> (32 * half)) as u32;
    match test {
        Test::Any(arg, bits) => vec![load(word(arg, 0)), jump(bpf::JSET_K, 0, out, bits)],
        Test::Not(arg, value) => vec![
            load(word(arg, 0)),
            jump(bpf::JEQ_K, 0, 2, half(value, 0)),
            load(word(arg, 1)),
            jump(bpf::JEQ_K, out, 0, half(value, 1)),
        ],
        Test::OneOf(arg, values) => {
            let mut list = vec![load(word(arg, 0))];
            for (index, value) in values.iter().enumerate() {
                let left = values.len() - 1 - index;
                list.push(jump(bpf::JEQ_K, left, if left == 0 { out } else { 0 }, *value));
            }
            list
        }
    }
}

fn word(arg: u8, half: u32) -> u32 {
    bpf::OFFSET_ARGS + 8 * u32::from(arg) + 4 * half
}

fn load(offset: u32) -> Insn {
    Insn { code: bpf::LD_W_ABS, jt: 0, jf: 0, k: offset }
}

fn ret(answer: u32) -> Insn {
    Insn { code: bpf::RET_K, jt: 0, jf: 0, k: answer }
}

fn refuse(errno: u16) -> Insn {
    ret(bpf::RET_ERRNO | u32::from(errno))
}

fn ja(distance: usize) -> Insn {
    Insn { code: bpf::JA, jt: 0, jf: 0, k: u32::try_from(distance).expect("a program has some thousand instructions") }
}

#[cfg(test)]
mod tests;

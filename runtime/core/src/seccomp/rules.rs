//! Calls that are judged by their arguments, and why.
//!
//! A filter sees registers, never memory. So a call whose dangerous argument stands in memory (clone3, openat2) is refused as a whole with
//! ENOSYS, and libraries fall back to the call that shows it. Where the kernel truncates an argument to 32 bits the rule looks at the low
//! 32 bits alone: a filter that compared all 64 was walked around with a high bit set (CVE-2019-10063).

use super::{DONE, EAFNOSUPPORT, ENOSYS, EPERM};

/// What a program answers without looking further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// Carried out.
    Allow,
    /// Refused with this errno.
    Errno(u16),
    /// Put before the listener.
    Notify,
}

impl Answer {
    /// The value that a seccomp program returns for it.
    pub const fn action(self) -> u32 {
        match self {
            Answer::Allow => super::bpf::RET_ALLOW,
            Answer::Errno(errno) => super::bpf::RET_ERRNO | errno as u32,
            Answer::Notify => super::bpf::RET_USER_NOTIF,
        }
    }
}

/// `argument & mask == value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Condition {
    /// Which argument, from 0.
    pub arg: u8,
    /// The bits that are looked at.
    pub mask: u64,
    /// What they must be.
    pub value: u64,
}

impl Condition {
    /// Whether it holds for these arguments.
    pub const fn holds(&self, args: &[u64; 6]) -> bool {
        args[self.arg as usize] & self.mask == self.value
    }
}

/// A disjunction of conjunctions.
pub type Cases = &'static [&'static [Condition]];

/// An answer that depends on arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ArgRules<A = Answer> {
    /// Any of these, all conditions of which hold.
    pub cases: Cases,
    /// The answer when one of the cases holds.
    pub matched: A,
    /// Further cases, looked at when none of the first holds, and the answer for these.
    pub second: Option<(Cases, A)>,
    /// The answer otherwise.
    pub otherwise: A,
}

impl<A: Copy> ArgRules<A> {
    /// The answer for these arguments.
    pub fn judge(&self, args: &[u64; 6]) -> A {
        let holds = |cases: Cases| cases.iter().any(|case| case.iter().all(|condition| condition.holds(args)));
        match self.second {
            _ if holds(self.cases) => self.matched,
            Some((cases, answer)) if holds(cases) => answer,
            _ => self.otherwise,
        }
    }

    /// Everything that decides.
    pub fn all_cases(&self) -> impl Iterator<Item = &'static [Condition]> {
        self.cases.iter().chain(self.second.map_or(&[][..], |(cases, _)| cases)).copied()
    }
}

/// A rule about arguments. Which calls it is for stands in [`CALLS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// `clone` without a new namespace.
    Clone,
    /// `clone3`: its flags are in memory.
    Clone3,
    /// `openat2`: its mode is in memory.
    Openat2,
    /// Common socket families.
    Socket,
    /// No terminal injection, no line discipline.
    Ioctl,
    /// Harmless personalities.
    Personality,
    /// No forged process image, no securebits.
    Prctl,
    /// Mode without set-id bits, in argument 1.
    Mode1,
    /// The same in argument 2.
    Mode2,
    /// Flags in argument 1, mode in 2; the mode only counts when a file may be made.
    Open,
    /// Flags in argument 2, mode in 3.
    Openat,
    /// Mode with file type in argument 1.
    Mknod,
    /// The same in argument 2.
    Mknodat,
    /// No other core limit than the one that the sandbox began with.
    Setrlimit,
    /// The same; a call that only asks is carried out.
    Prlimit64,
}

/// Which calls have a rule.
#[cfg_attr(not(test), expect(dead_code, reason = "read by the generator, which is a test"))]
pub(super) const CALLS: &[(&str, Rule)] = &[
    ("clone", Rule::Clone),
    ("clone3", Rule::Clone3),
    ("openat2", Rule::Openat2),
    ("socket", Rule::Socket),
    ("socketpair", Rule::Socket),
    ("ioctl", Rule::Ioctl),
    ("personality", Rule::Personality),
    ("prctl", Rule::Prctl),
    ("chmod", Rule::Mode1),
    ("fchmod", Rule::Mode1),
    ("fchmodat", Rule::Mode2),
    ("fchmodat2", Rule::Mode2),
    ("creat", Rule::Mode1),
    ("mkdir", Rule::Mode1),
    ("mkdirat", Rule::Mode2),
    ("open", Rule::Open),
    ("openat", Rule::Openat),
    ("mknod", Rule::Mknod),
    ("mknodat", Rule::Mknodat),
    ("setrlimit", Rule::Setrlimit),
    ("prlimit64", Rule::Prlimit64),
];

/// Calls with a path or an address: what `--why` watches.
#[cfg_attr(not(test), expect(dead_code, reason = "read by the generator, which is a test"))]
pub(super) const PATH_CALLS: &str = "open openat openat2 creat stat lstat stat64 lstat64 oldstat oldlstat newfstatat fstatat fstatat64 statx \
    access faccessat faccessat2 readlink readlinkat execve execveat unlink unlinkat rename renameat renameat2 mkdir mkdirat rmdir \
    link linkat symlink symlinkat mknod mknodat chmod fchmodat fchmodat2 chown lchown fchownat chown32 lchown32 truncate truncate64 \
    chdir statfs statfs64 utime utimes futimesat utimensat utimensat_time64 connect bind";

/// How a rule reads for the groups that a policy grants.
pub(super) enum Reading {
    /// Nothing to judge: every group that could object is granted.
    Plain,
    /// Refused whatever the arguments.
    Whole(u16),
    /// Judged.
    Judged {
        /// The cases.
        cases: Cases,
        /// Whether the cases are the good ones; otherwise they are the bad ones.
        cases_are_good: bool,
        /// What is bad and answered with another errno than the rest.
        second: Option<(Cases, u16)>,
        /// The errno of what is bad.
        errno: u16,
        /// The groups that would allow it.
        governors: &'static [&'static str],
    },
}

impl Rule {
    /// Reads the rule; `granted` tells whether a group is granted.
    pub(super) fn read(self, granted: impl Fn(&str) -> bool) -> Reading {
        let (cases, cases_are_good, errno, governors): (Cases, bool, u16, &'static [&'static str]) = match self {
            Rule::Clone3 if granted("namespaces") => return Reading::Plain,
            Rule::Openat2 if granted("setuid-bits") => return Reading::Plain,
            Rule::Clone3 | Rule::Openat2 => return Reading::Whole(ENOSYS),
            Rule::Clone => (NO_NEW_NAMESPACE, true, EPERM, &["namespaces"]),
            Rule::Socket => (COMMON_FAMILIES, true, EAFNOSUPPORT, &["rare-sockets"]),
            Rule::Ioctl => (TERMINAL_REQUESTS, false, EPERM, &["terminal-injection"]),
            Rule::Personality => (PERSONALITIES, true, EPERM, &["obsolete"]),
            Rule::Prctl => (PRIVILEGED_PRCTL, false, EPERM, &["privilege"]),
            Rule::Mode1 => (MODE_1, true, EPERM, &["setuid-bits"]),
            Rule::Mode2 => (MODE_2, true, EPERM, &["setuid-bits"]),
            Rule::Open => (OPEN, true, EPERM, &["setuid-bits"]),
            Rule::Openat => (OPENAT, true, EPERM, &["setuid-bits"]),
            Rule::Setrlimit => (CORE_LIMIT, false, DONE, &["core-dumps"]),
            Rule::Prlimit64 => (NO_CORE_LIMIT, true, EPERM, &["core-dumps"]),
            Rule::Mknod | Rule::Mknodat => return self.read_mknod(granted),
        };
        if governors.iter().all(|governor| granted(governor)) {
            return Reading::Plain;
        }
        let second = (self == Rule::Prlimit64).then_some((OWN_PROCESS, DONE));
        Reading::Judged { cases, cases_are_good, second, errno, governors }
    }

    /// Device nodes are for `admin`, set-id bits for `setuid-bits`.
    fn read_mknod(self, granted: impl Fn(&str) -> bool) -> Reading {
        let second = self == Rule::Mknodat;
        let (cases, governors): (Cases, &'static [&'static str]) = match (granted("admin"), granted("setuid-bits")) {
            (true, true) => return Reading::Plain,
            (true, false) if second => (MODE_2, &["setuid-bits"]),
            (true, false) => (MODE_1, &["setuid-bits"]),
            (false, true) if second => (MKNODAT_TYPES, &["admin"]),
            (false, true) => (MKNOD_TYPES, &["admin"]),
            (false, false) if second => (MKNODAT_PLAIN, &["admin", "setuid-bits"]),
            (false, false) => (MKNOD_PLAIN, &["admin", "setuid-bits"]),
        };
        Reading::Judged { cases, cases_are_good: true, second: None, errno: EPERM, governors }
    }
}

const LOW_WORD: u64 = 0xffff_ffff;
/// CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET (linux/sched.h).
const NEW_NAMESPACE: u64 = 0x7e02_0080;
/// S_ISUID and S_ISGID.
const SET_ID: u64 = 0o6000;
/// O_CREAT and __O_TMPFILE, the same on x86 and arm64.
const MAKES_FILE: u64 = 0o100 | 0o20_000_000;
/// S_IFMT.
const FILE_TYPE: u64 = 0o170_000;

const fn clear(arg: u8, mask: u64) -> Condition {
    Condition { arg, mask, value: 0 }
}

const fn is(arg: u8, value: u64) -> Condition {
    Condition { arg, mask: LOW_WORD, value }
}

const fn masked(arg: u8, mask: u64, value: u64) -> Condition {
    Condition { arg, mask, value }
}

const NO_NEW_NAMESPACE: Cases = &[&[clear(0, NEW_NAMESPACE)]];

const MODE_1: Cases = &[&[clear(1, SET_ID)]];
const MODE_2: Cases = &[&[clear(2, SET_ID)]];
const OPEN: Cases = &[&[clear(2, SET_ID)], &[clear(1, MAKES_FILE)]];
const OPENAT: Cases = &[&[clear(3, SET_ID)], &[clear(2, MAKES_FILE)]];

/// AF_UNIX; AF_INET and AF_INET6 for TCP, UDP, UDP-Lite (the same code) and echo requests, since other protocols (SCTP, DCCP) are as little tested as rare families and
/// the kernel loads their modules for whoever asks; AF_NETLINK for routing alone, since getaddrinfo and if_nameindex of glibc ask it for the interfaces.
const COMMON_FAMILIES: Cases = &[
    &[is(0, 1)],
    &[INET, STREAM, is(2, 0)],
    &[INET, STREAM, is(2, 6)],
    &[INET, DATAGRAM, is(2, 0)],
    &[INET, DATAGRAM, is(2, 17)],
    &[INET, DATAGRAM, is(2, 136)],
    &[INET, DATAGRAM, is(2, 1)],
    &[INET, DATAGRAM, is(2, 58)],
    &[is(0, 16), is(2, 0)],
];
/// The same without AF_UNIX.
pub(super) const INTERNET_FAMILIES: Cases = COMMON_FAMILIES.split_at(1).1;
/// AF_INET and AF_INET6, which differ in one bit.
const INET: Condition = masked(0, LOW_WORD ^ 8, 2);
/// SOCK_STREAM; the flags stand above the type.
const STREAM: Condition = masked(1, 0xf, 1);
/// SOCK_DGRAM.
const DATAGRAM: Condition = masked(1, 0xf, 2);

/// TIOCSTI and TIOCLINUX type into a terminal (the second as a paste), TIOCCONS diverts the console, TIOCSETD loads line disciplines, a
/// steady source of kernel bugs.
const TERMINAL_REQUESTS: Cases = &[&[is(1, 0x5412)], &[is(1, 0x541c)], &[is(1, 0x541d)], &[is(1, 0x5423)]];

/// Linux, its 32-bit name (setarch), without address randomisation (debuggers, benchmarks), and the question which one it is. Others turn
/// off protections (READ_IMPLIES_EXEC, MMAP_PAGE_ZERO) or stand for systems that are gone.
const PERSONALITIES: Cases = &[&[is(0, 0)], &[is(0, 8)], &[is(0, 0x0004_0000)], &[is(0, LOW_WORD)]];

/// PR_SET_MM forges what /proc tells about a process; PR_SET_SECUREBITS changes what being root means.
const PRIVILEGED_PRCTL: Cases = &[&[is(0, 35)], &[is(0, 28)]];

/// What mknod may make without a device: a file (two spellings), a FIFO, a socket.
const MKNOD_PLAIN: Cases = &[
    &[masked(1, FILE_TYPE | SET_ID, 0)],
    &[masked(1, FILE_TYPE | SET_ID, 0o100_000)],
    &[masked(1, FILE_TYPE | SET_ID, 0o010_000)],
    &[masked(1, FILE_TYPE | SET_ID, 0o140_000)],
];
const MKNODAT_PLAIN: Cases = &[
    &[masked(2, FILE_TYPE | SET_ID, 0)],
    &[masked(2, FILE_TYPE | SET_ID, 0o100_000)],
    &[masked(2, FILE_TYPE | SET_ID, 0o010_000)],
    &[masked(2, FILE_TYPE | SET_ID, 0o140_000)],
];
const MKNOD_TYPES: Cases = &[
    &[masked(1, FILE_TYPE, 0)],
    &[masked(1, FILE_TYPE, 0o100_000)],
    &[masked(1, FILE_TYPE, 0o010_000)],
    &[masked(1, FILE_TYPE, 0o140_000)],
];
const MKNODAT_TYPES: Cases = &[
    &[masked(2, FILE_TYPE, 0)],
    &[masked(2, FILE_TYPE, 0o100_000)],
    &[masked(2, FILE_TYPE, 0o010_000)],
    &[masked(2, FILE_TYPE, 0o140_000)],
];

/// RLIMIT_CORE.
const CORE_LIMIT: Cases = &[&[is(0, 4)]];
/// No new limit, or one of the bits by which the other fifteen limits differ from RLIMIT_CORE (asm-generic/resource.h).
const NO_CORE_LIMIT: Cases =
    &[&[clear(2, u64::MAX)], &[clear(1, 4)], &[masked(1, 1, 1)], &[masked(1, 2, 2)], &[masked(1, 8, 8)]];
/// Pid 0. A limit of another process is refused as such: setrlimit(2) of a C library names none.
const OWN_PROCESS: Cases = &[&[is(0, 0)]];

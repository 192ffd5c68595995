//! Which system calls are recorded at level `full`, and how.
//!
//! One row for one call: what its arguments are, and when it is worth a record. The kernel's side knows no call by number; it gets these rows as
//! shapes (`ebpf/shaped.h`) for both ABIs of the machine. What a recorded call means is said in [`super::meaning`].

use apex_core::seccomp::Abi;
use apex_core::watch::Family;

/// Numbers of one ABI; those of i386 follow those of x86-64.
const ABI_CALLS: u32 = 512;
/// Entries of the tables by call.
pub const CALLS: u32 = 2 * ABI_CALLS;

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWTIME.
pub const NAMESPACES: u32 = 0x7e02_0080;
const PROT_EXEC: u32 = 4;

/// An argument that leads somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operand {
    None,
    /// A path, and the argument with its directory.
    Path(u8, u8),
    /// A descriptor.
    Fd(u8),
    /// The returned descriptor; when the call failed, a path and its directory.
    Result(u8, u8),
    /// A string.
    Text(u8),
    /// Memory: where, how much at most, and the argument that says how much.
    Bytes(u8, u8, u8),
    /// The arguments of a program.
    Argv(u8),
    /// The returned descriptor and the path with its directory.
    Asked(u8, u8),
}

/// No argument: the working directory, or no length.
const CWD: u8 = 0xff;

impl Operand {
    /// As `struct operand` has it.
    const fn word(self) -> u32 {
        let (kind, arg, dir, bytes) = match self {
            Operand::None => (0, 0, 0, 0),
            Operand::Path(arg, dir) => (1, arg, dir, 0),
            Operand::Fd(arg) => (2, arg, 0, 0),
            Operand::Result(arg, dir) => (3, arg, dir, 0),
            Operand::Text(arg) => (4, arg, 0, 0),
            Operand::Bytes(arg, bytes, length) => (5, arg, length, bytes),
            Operand::Argv(arg) => (6, arg, 0, 0),
            Operand::Asked(arg, dir) => (7, arg, dir, 0),
        };
        u32::from_le_bytes([kind, arg, dir, bytes])
    }
}

/// When a call is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Always,
    /// The argument has one of the bits.
    Arg(u8, u32),
    /// mmap of anonymous executable memory.
    AnonymousExecutable,
    /// Argument 0 is another process than the caller.
    Other,
    /// What argument 0 points to has one of the bits.
    Pointed(u32),
    /// The address at argument 1 is of no internet family.
    LocalAddress,
    /// The family in argument 0 is no internet family.
    LocalFamily,
    /// It failed.
    Failed,
    /// It succeeded, by a name that is not empty.
    Named,
}

impl Condition {
    /// As `struct shape` has it.
    const fn words(self) -> (u32, u32) {
        match self {
            Condition::Always => (0, 0),
            Condition::Arg(arg, mask) => (1 + arg as u32, mask),
            Condition::AnonymousExecutable => (7, 0),
            Condition::Other => (8, 0),
            Condition::Pointed(mask) => (9, mask),
            Condition::LocalAddress => (10, 0),
            Condition::LocalFamily => (11, 0),
            Condition::Failed => (12, 0),
            Condition::Named => (13, 0),
        }
    }
}

/// One call.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// The family whose program records it.
    pub family: Family,
    operands: [Operand; 2],
    condition: Condition,
    /// `mmap` of i386 has its arguments in memory and none of this meaning.
    abis: &'static [Abi],
}

impl Row {
    /// As the kernel's side has it.
    pub fn shape(&self) -> [u64; 2] {
        let (condition, mask) = self.condition.words();
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        [pair(self.operands[0].word(), self.operands[1].word()), pair(condition, mask)]
    }

    /// As it is in a run that is learned from: what is opened is told by the name that was asked for as well.
    pub fn asked(&self) -> Row {
        match self.operands[0] {
            Operand::Result(arg, dir) => Row { operands: [Operand::Asked(arg, dir), self.operands[1]], ..*self },
            _ => *self,
        }
    }

    /// The indices of the call in the tables.
    pub fn indices(&self) -> impl Iterator<Item = u32> {
        self.abis.iter().filter_map(|abi| {
            let number = abi.call_number(self.name).filter(|number| *number < ABI_CALLS)?;
            Some(if *abi == Abi::I386 { ABI_CALLS + number } else { number })
        })
    }
}

/// ABI and name of the call at an index.
pub fn name_of(index: u32) -> Option<(Abi, &'static str)> {
    let (abi, number) = if index < ABI_CALLS { (Abi::X86_64, index) } else { (Abi::I386, index - ABI_CALLS) };
    Some((abi, abi.call_name(number)?))
}

const BOTH: &[Abi] = &[Abi::X86_64, Abi::I386];

const fn row(family: Family, name: &'static str, first: Operand, second: Operand) -> Row {
    Row { name, family, operands: [first, second], condition: Condition::Always, abis: BOTH }
}

const fn file(name: &'static str, first: Operand, second: Operand) -> Row {
    row(Family::File, name, first, second)
}

const fn privilege(name: &'static str, first: Operand) -> Row {
    row(Family::Privilege, name, first, Operand::None)
}

impl Row {
    const fn when(self, condition: Condition) -> Row {
        Row { condition, ..self }
    }

    const fn only(self, abis: &'static [Abi]) -> Row {
        Row { abis, ..self }
    }
}

use Operand::{Argv, Bytes, Fd, None as No, Path, Result as Opened, Text};

/// Every recorded call.
#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    file("open", Opened(0, CWD), No),
    file("openat", Opened(1, 0), No),
    file("openat2", Opened(1, 0), Bytes(2, 24, 3)),
    file("creat", Opened(0, CWD), No),
    file("mkdir", Path(0, CWD), No),
    file("mkdirat", Path(1, 0), No),
    file("rename", Path(0, CWD), Path(1, CWD)),
    file("renameat", Path(1, 0), Path(3, 2)),
    file("renameat2", Path(1, 0), Path(3, 2)),
    file("unlink", Path(0, CWD), No),
    file("unlinkat", Path(1, 0), No),
    file("rmdir", Path(0, CWD), No),
    file("link", Path(0, CWD), Path(1, CWD)),
    file("linkat", Path(1, 0), Path(3, 2)),
    file("symlink", Text(0), Path(1, CWD)),
    file("symlinkat", Text(0), Path(2, 1)),
    file("chmod", Path(0, CWD), No),
    file("fchmod", Fd(0), No),
    file("fchmodat", Path(1, 0), No),
    file("fchmodat2", Path(1, 0), No),
    file("chown", Path(0, CWD), No),
    file("chown32", Path(0, CWD), No),
    file("lchown", Path(0, CWD), No),
    file("lchown32", Path(0, CWD), No),
    file("fchown", Fd(0), No),
    file("fchown32", Fd(0), No),
    file("fchownat", Path(1, 0), No),
    file("truncate", Path(0, CWD), No),
    file("truncate64", Path(0, CWD), No),
    file("ftruncate", Fd(0), No),
    file("ftruncate64", Fd(0), No),
    // The cgroup's programs see internet addresses only.
    file("socket", No, No).when(Condition::LocalFamily),
    file("connect", Bytes(1, 110, 2), No).when(Condition::LocalAddress),
    file("bind", Bytes(1, 110, 2), No).when(Condition::LocalAddress),

    // What succeeds is told by family process.
    row(Family::Privilege, "execve", Path(0, CWD), Argv(1)).when(Condition::Failed),
    row(Family::Privilege, "execveat", Path(1, 0), Argv(2)).when(Condition::Failed),
    privilege("setuid", No),
    privilege("setuid32", No),
    privilege("setgid", No),
    privilege("setgid32", No),
    privilege("setreuid", No),
    privilege("setreuid32", No),
    privilege("setregid", No),
    privilege("setregid32", No),
    privilege("setresuid", No),
    privilege("setresuid32", No),
    privilege("setresgid", No),
    privilege("setresgid32", No),
    privilege("setfsuid", No),
    privilege("setfsuid32", No),
    privilege("setfsgid", No),
    privilege("setfsgid32", No),
    privilege("setgroups", No),
    privilege("setgroups32", No),
    privilege("capset", Bytes(1, 24, CWD)),
    privilege("unshare", No),
    privilege("setns", No),
    privilege("clone", No).when(Condition::Arg(0, NAMESPACES)),
    privilege("clone3", Bytes(0, 8, CWD)).when(Condition::Pointed(NAMESPACES)),
    privilege("ptrace", No),
    privilege("process_vm_readv", No),
    privilege("process_vm_writev", No),
    privilege("bpf", No),
    privilege("init_module", No),
    privilege("finit_module", No),
    privilege("delete_module", No),
    privilege("kexec_load", No),
    privilege("kexec_file_load", No),
    privilege("memfd_create", Text(0)),
    privilege("memfd_secret", No),
    privilege("mmap", No).when(Condition::AnonymousExecutable).only(&[Abi::X86_64]),
    privilege("mmap2", No).when(Condition::AnonymousExecutable),
    privilege("mprotect", No).when(Condition::Arg(2, PROT_EXEC)),
    privilege("pkey_mprotect", No).when(Condition::Arg(2, PROT_EXEC)),
    privilege("mount", Path(1, CWD)),
    privilege("umount", Path(0, CWD)).only(&[Abi::I386]),
    privilege("umount2", Path(0, CWD)),
    privilege("pivot_root", Path(0, CWD)),
    privilege("chroot", Path(0, CWD)),
    privilege("open_tree", Path(1, 0)),
    privilege("move_mount", Path(3, 2)),
    privilege("mount_setattr", Path(1, 0)),
    privilege("fsopen", Text(0)),
    privilege("fsmount", No),
    privilege("kill", No).when(Condition::Other),
    privilege("tkill", No).when(Condition::Other),
    privilege("tgkill", No).when(Condition::Other),
    privilege("pidfd_send_signal", No),
    privilege("rt_sigqueueinfo", No).when(Condition::Other),
    privilege("keyctl", No),
    privilege("add_key", No),
    privilege("request_key", No),
    privilege("perf_event_open", No),
    privilege("userfaultfd", No),
    privilege("io_uring_setup", No),
    privilege("open_by_handle_at", No),
    privilege("pidfd_getfd", No),
    privilege("iopl", No),
    privilege("ioperm", No),
    privilege("reboot", No),
    privilege("swapon", No),
    privilege("swapoff", No),
    privilege("acct", No),
    privilege("syslog", No),
    privilege("personality", No),
    privilege("clock_settime", No),
    privilege("settimeofday", No),
    privilege("sethostname", No),
    privilege("setdomainname", No),
    privilege("mknod", Path(0, CWD)),
    privilege("mknodat", Path(1, 0)),
];

const fn look(name: &'static str, path: Operand) -> Row {
    file(name, path, No).when(Condition::Named)
}

/// Calls that look at a name, recorded in a run that is learned from: programs make them by the thousand.
#[rustfmt::skip]
pub const LOOKS: &[Row] = &[
    look("stat", Path(0, CWD)),
    look("stat64", Path(0, CWD)),
    look("oldstat", Path(0, CWD)),
    look("lstat", Path(0, CWD)),
    look("lstat64", Path(0, CWD)),
    look("oldlstat", Path(0, CWD)),
    look("newfstatat", Path(1, 0)),
    look("fstatat64", Path(1, 0)),
    look("statx", Path(1, 0)),
    look("access", Path(0, CWD)),
    look("faccessat", Path(1, 0)),
    look("faccessat2", Path(1, 0)),
    look("readlink", Path(0, CWD)),
    look("readlinkat", Path(1, 0)),
    look("statfs", Path(0, CWD)),
    look("statfs64", Path(0, CWD)),
    look("chdir", Path(0, CWD)),
];

/// The row of a name.
pub fn row_of(name: &str) -> Option<&'static Row> {
    ROWS.iter().chain(LOOKS).find(|row| row.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_row_names_a_call_once() {
        let mut seen = BTreeSet::new();
        for row in ROWS.iter().chain(LOOKS) {
            let indices: Vec<u32> = row.indices().collect();
            assert!(!indices.is_empty(), "{} is no call", row.name);
            for index in indices {
                assert!(index < CALLS && seen.insert(index), "{} twice", row.name);
                assert_eq!(name_of(index).map(|(_, name)| name), Some(row.name));
            }
        }
    }

    #[test]
    fn both_sources_look_at_the_same_calls() {
        let own: BTreeSet<&str> = LOOKS.iter().map(|row| row.name).collect();
        assert_eq!(own, apex_core::seccomp::trace::LOOKS.iter().copied().collect());
    }

    #[test]
    fn shapes_are_laid_out_as_the_kernels_side_has_them() {
        let shape = row_of("openat2").expect("it is there").shape();
        assert_eq!(shape, [u64::from_le_bytes([3, 1, 0, 0, 5, 2, 3, 24]), 0]);
        let shape = row_of("mprotect").expect("it is there").shape();
        assert_eq!(shape, [0, 3 | 4 << 32]);
    }

    #[test]
    fn calls_of_both_abis_have_names() {
        assert_eq!(name_of(39), Some((Abi::X86_64, "getpid")));
        assert_eq!(name_of(512 + 20), Some((Abi::I386, "getpid")));
        assert_eq!(name_of(511), None);
    }
}

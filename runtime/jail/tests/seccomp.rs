//! Filters: compiled, proved, cached, and tried on the kernel.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use apex_core::policy::{Origin as RuleOrigin, SyscallDefault, Syscalls};
use apex_core::seccomp::bpf::{INSNS_MAX, Insn};
use apex_core::seccomp::{Abi, Arch, Notify, Table, verify};
use apex_jail::seccomp::{CacheDir, Origin, Program, program};
use apex_sys::probe::{self, Call, Entry};
use apex_sys::seccomp::{self as listener, Reply};

const USUAL: &[&str] = &[
    "files",
    "dirs",
    "fs-change",
    "time",
    "signals",
    "threads",
    "process",
    "ipc",
    "sockets",
    "polling",
    "terminal",
    "identity-read",
    "scheduling",
    "memory-advice",
    "random",
    "xattr",
    "system-info",
];

fn policy(default: SyscallDefault, allow: &[&str], compat: bool) -> Syscalls {
    let allow = allow.iter().map(|name| ((*name).to_owned(), RuleOrigin::flag("--test")));
    Syscalls { default, allow: allow.collect(), deny: BTreeMap::new(), compat }
}

fn isolation(compat: bool, notify: Notify) -> Table {
    let policy = policy(SyscallDefault::Deny, USUAL, compat);
    Table::build(&policy, Arch::native().unwrap(), notify).unwrap()
}

fn insns(program: &Program) -> Vec<Insn> {
    let insn = |f: &listener::Filter| Insn { code: f.code, jt: f.jt, jf: f.jf, k: f.k };
    program.filter().iter().map(insn).collect()
}

/// A cache directory that is removed with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("apex-seccomp-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Scratch(std::env::temp_dir().join(name))
    }

    fn cache(&self) -> CacheDir {
        CacheDir::at(self.0.join("seccomp"))
    }

    /// The one file of the cache.
    fn file(&self) -> PathBuf {
        let files: Vec<_> = fs::read_dir(self.0.join("seccomp")).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn every_kind_of_table_compiles_to_what_it_says() {
    for arch in [Arch::X86_64, Arch::Aarch64] {
        for default in [SyscallDefault::Deny, SyscallDefault::Report, SyscallDefault::Allow] {
            for allow in
                [&[][..], USUAL, &["threads", "namespaces"], &["fs-change", "admin"], &["fs-change", "setuid-bits"]]
            {
                for notify in [Notify::default(), Notify::RECORD, Notify { refusals: false, paths: true }] {
                    for compat in [false, true] {
                        if compat && arch == Arch::Aarch64 {
                            continue;
                        }
                        let table = Table::build(&policy(default, allow, compat), arch, notify).unwrap();
                        let program = program(&table, None).unwrap_or_else(|err| {
                            panic!("{arch:?} {default:?} {allow:?} {notify:?} compat {compat}: {err}")
                        });
                        assert!(program.filter().len() < INSNS_MAX);
                    }
                }
            }
        }
    }
}

#[test]
fn a_hit_equals_what_was_compiled() {
    let (scratch, table) = (Scratch::new(), isolation(true, Notify::default()));
    let fresh = program(&table, Some(&scratch.cache())).unwrap();
    let hit = program(&table, Some(&scratch.cache())).unwrap();
    assert_eq!((fresh.origin(), hit.origin()), (Origin::Compiled, Origin::Cached));
    assert_eq!(fresh.filter(), hit.filter());
    assert_eq!(fs::metadata(scratch.file()).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(fs::metadata(scratch.cache().path()).unwrap().permissions().mode() & 0o7777, 0o700);
}

/// Spoils the cache; the next start must compile, and the one after must find it healed unless the place itself is spoilt.
fn check_never_loaded(spoil: impl FnOnce(&Path), heals: bool) {
    let (scratch, table) = (Scratch::new(), isolation(false, Notify::default()));
    let fresh = program(&table, Some(&scratch.cache())).unwrap();
    spoil(&scratch.file());
    let again = program(&table, Some(&scratch.cache())).unwrap();
    assert_eq!(again.origin(), Origin::Compiled);
    assert_eq!(again.filter(), fresh.filter());
    let healed = program(&table, Some(&scratch.cache())).unwrap();
    assert_eq!(healed.origin() == Origin::Cached, heals);
    assert_eq!(healed.filter(), fresh.filter());
}

#[test]
fn a_damaged_file_is_replaced() {
    check_never_loaded(
        |file| {
            let mut bytes = fs::read(file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
            bytes[middle + 4] ^= 0x10;
            fs::write(file, bytes).unwrap();
        },
        true,
    );
}

#[test]
fn a_truncated_file_is_replaced() {
    for keep in [0, 1, 8, 801] {
        check_never_loaded(
            |file| {
                let bytes = fs::read(file).unwrap();
                fs::write(file, &bytes[..keep]).unwrap();
            },
            true,
        );
    }
}

#[test]
fn a_huge_file_is_replaced() {
    check_never_loaded(|file| fs::write(file, vec![0; INSNS_MAX * 8 + 8]).unwrap(), true);
}

#[test]
fn a_planted_program_is_replaced() {
    // `return ALLOW`, which the kernel would take gladly.
    check_never_loaded(|file| fs::write(file, [6, 0, 0, 0, 0, 0, 0xff, 0x7f]).unwrap(), true);
}

#[test]
fn the_program_of_another_policy_is_replaced() {
    let lax =
        Table::build(&policy(SyscallDefault::Allow, &[], false), Arch::native().unwrap(), Notify::default()).unwrap();
    let other = Scratch::new();
    program(&lax, Some(&other.cache())).unwrap();
    check_never_loaded(|file| assert!(fs::copy(other.file(), file).unwrap() > 0), true);
}

#[test]
fn a_symlink_is_replaced() {
    check_never_loaded(
        |file| {
            let aside = file.with_file_name("../aside");
            fs::rename(file, &aside).unwrap();
            symlink(&aside, file).unwrap();
        },
        true,
    );
}

#[test]
fn a_hard_link_is_replaced() {
    check_never_loaded(|file| fs::hard_link(file, file.with_file_name("../other")).unwrap(), true);
}

#[test]
fn a_file_that_others_may_write_is_replaced() {
    check_never_loaded(|file| fs::set_permissions(file, fs::Permissions::from_mode(0o622)).unwrap(), true);
}

#[test]
fn a_fifo_does_not_hold_the_start_up() {
    check_never_loaded(
        |file| {
            fs::remove_file(file).unwrap();
            nix::unistd::mkfifo(file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        },
        true,
    );
}

#[test]
fn a_file_of_another_owner_is_replaced() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can give a file away");
        return;
    }
    check_never_loaded(|file| std::os::unix::fs::chown(file, Some(12345), None).unwrap(), true);
}

#[test]
fn nothing_is_written_where_others_may_write() {
    check_never_loaded(
        |file| {
            fs::remove_file(file).unwrap();
            fs::set_permissions(file.parent().unwrap(), fs::Permissions::from_mode(0o777)).unwrap();
        },
        false,
    );
}

#[test]
fn a_cache_that_cannot_be_made_costs_nothing_but_time() {
    let table = isolation(false, Notify::default());
    let nowhere = CacheDir::at(PathBuf::from("/proc/self/nothing"));
    assert_eq!(program(&table, Some(&nowhere)).unwrap().origin(), Origin::Compiled);
}

#[test]
fn the_place_of_the_cache_follows_the_environment() {
    let locate = |euid, pairs: &'static [(&str, &str)]| {
        let env = |name: &str| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into());
        CacheDir::locate(euid, env).map(|dir| dir.path().to_owned())
    };
    assert_eq!(locate(0, &[("XDG_RUNTIME_DIR", "/tmp/x")]), Some("/run/apex/seccomp".into()));
    assert_eq!(
        locate(7, &[("XDG_RUNTIME_DIR", "/run/user/7"), ("HOME", "/h")]),
        Some("/run/user/7/apex/seccomp".into())
    );
    assert_eq!(locate(7, &[("XDG_RUNTIME_DIR", "x"), ("HOME", "/h")]), Some("/h/.cache/apex/seccomp".into()));
    assert_eq!(locate(7, &[("HOME", "")]), None);
}

fn native(name: &str, args: &[u64]) -> Call {
    let nr = Arch::native().unwrap().abi().call_number(name).unwrap();
    with(Entry::Native, nr, args)
}

fn i386(name: &str, args: &[u64]) -> Call {
    with(Entry::Int80, Abi::I386.call_number(name).unwrap(), args)
}

fn with(entry: Entry, nr: u32, args: &[u64]) -> Call {
    let mut six = [0; 6];
    six[..args.len()].copy_from_slice(args);
    Call { entry, nr, args: six }
}

const EPERM: i64 = -1;
const EBADF: i64 = -9;
const EFAULT: i64 = -14;
const ENOSYS: i64 = -38;
const EAFNOSUPPORT: i64 = -97;
/// The most significant half of a register, which the kernel ignores in 32-bit arguments.
const HIGH: u64 = 0xdead_beef_0000_0000;
const NOBODY_FD: u64 = 1023;

fn check_answers(table: &Table, expected: &[(Call, i64)]) {
    let calls: Vec<Call> = expected.iter().map(|(call, _)| *call).collect();
    let answers = probe::try_calls(program(table, None).unwrap().filter(), &calls).unwrap();
    for ((call, wanted), found) in expected.iter().zip(answers) {
        assert_eq!(found, *wanted, "{call:?}");
    }
}

#[test]
fn the_kernel_refuses_what_the_table_refuses() {
    let mut expected = vec![
        (native("close", &[NOBODY_FD]), EBADF),
        (native("unshare", &[0x1000_0000]), EPERM),
        (native("bpf", &[0, 0, 0]), EPERM),
        (native("io_uring_setup", &[1, 0]), EPERM),
        (native("userfaultfd", &[0]), EPERM),
        (native("perf_event_open", &[0]), EPERM),
        (native("keyctl", &[0, 0]), EPERM),
        (native("ptrace", &[0]), EPERM),
        (native("setuid", &[0]), EPERM),
        (native("clone3", &[0, 0]), ENOSYS),
        (native("openat2", &[0, 0, 0, 0]), ENOSYS),
        (native("clone", &[0x1000_0000]), EPERM),
        (native("clone", &[HIGH | 0x0002_0000]), EPERM),
        (native("socket", &[38, 5, 0]), EAFNOSUPPORT),
        (native("socket", &[HIGH | 38, 5, 0]), EAFNOSUPPORT),
        (native("socket", &[16, 3, 9]), EAFNOSUPPORT),
        // SCTP by name and as the only sequenced packets of the family, DCCP, raw packets.
        (native("socket", &[2, 1, 132]), EAFNOSUPPORT),
        (native("socket", &[2, 5, 0]), EAFNOSUPPORT),
        (native("socket", &[2, 6, 33]), EAFNOSUPPORT),
        (native("socket", &[10, 3, 255]), EAFNOSUPPORT),
        (native("socket", &[HIGH | 1, 0xffff, 0]), -22),
        (native("ioctl", &[NOBODY_FD, 0x5412, 0]), EPERM),
        (native("ioctl", &[NOBODY_FD, HIGH | 0x5412, 0]), EPERM),
        (native("ioctl", &[NOBODY_FD, 0x541c, 0]), EPERM),
        (native("ioctl", &[NOBODY_FD, 0x5401, 0]), EBADF),
        (native("fchmod", &[NOBODY_FD, 0o4755]), EPERM),
        (native("fchmod", &[NOBODY_FD, HIGH | 0o2755]), EPERM),
        (native("fchmod", &[NOBODY_FD, 0o755]), EBADF),
        (native("openat", &[NOBODY_FD, 0, 0o101, 0o4700]), EPERM),
        (native("openat", &[NOBODY_FD, 0, 0o20_200_000, 0o2700]), EPERM),
        (native("openat", &[NOBODY_FD, 0, 0, 0o4700]), EFAULT),
        (native("mknodat", &[NOBODY_FD, 0, 0o020_644, 0x103]), EPERM),
        (native("mknodat", &[NOBODY_FD, 0, 0o010_644, 0]), EFAULT),
        (native("personality", &[0x0040_0000]), EPERM),
        (native("personality", &[0xffff_ffff]), 0),
        (native("prctl", &[HIGH | 35, 0]), EPERM),
        (with(Entry::Native, 1_000_000, &[]), ENOSYS),
        (with(Entry::Native, u32::MAX, &[]), ENOSYS),
    ];
    if cfg!(target_arch = "x86_64") {
        let getpid = Abi::X86_64.call_number("getpid").unwrap();
        expected.push((with(Entry::Native, getpid | apex_core::seccomp::X32_BIT, &[]), ENOSYS));
        expected.push((with(Entry::Native, 512 | apex_core::seccomp::X32_BIT, &[]), ENOSYS));
        expected.push((i386("getpid", &[]), ENOSYS));
        expected.push((i386("bpf", &[]), ENOSYS));
    }
    check_answers(&isolation(false, Notify::default()), &expected);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn with_compat_the_i386_door_is_as_narrow() {
    let table = isolation(true, Notify::default());
    check_answers(
        &table,
        &[
            (i386("close", &[NOBODY_FD]), EBADF),
            (i386("unshare", &[0x1000_0000]), EPERM),
            (i386("clone", &[0x1000_0000]), EPERM),
            (i386("clone3", &[0, 0]), ENOSYS),
            (i386("socketcall", &[1, 0]), ENOSYS),
            (i386("ipc", &[0]), ENOSYS),
            (i386("socket", &[38, 5, 0]), EAFNOSUPPORT),
            (i386("ioctl", &[NOBODY_FD, 0x5412, 0]), EPERM),
            (i386("ioctl", &[NOBODY_FD, 0x5401, 0]), EBADF),
            (i386("fchmod", &[NOBODY_FD, 0o4755]), EPERM),
            (i386("fchmodat2", &[NOBODY_FD, 0, 0o4755]), EPERM),
            (native("unshare", &[0x1000_0000]), EPERM),
            (with(Entry::Native, 39 | apex_core::seccomp::X32_BIT, &[]), ENOSYS),
        ],
    );
}

#[test]
fn recorded_refusals_come_to_the_listener() {
    listener::check_sizes().unwrap();
    let table = isolation(false, Notify::RECORD);
    let filter = program(&table, None).unwrap();
    let (fd, child) =
        probe::call_under_listener(filter.filter(), native("ioctl", &[NOBODY_FD, HIGH | 0x5412, 7])).unwrap();
    use std::os::fd::AsFd;
    let notification = listener::receive(fd.as_fd()).unwrap();
    assert_eq!(Abi::from_audit_arch(notification.arch), Some(Arch::native().unwrap().abi()));
    assert_eq!(notification.args[..3], [NOBODY_FD, HIGH | 0x5412, 7]);
    assert!(listener::id_valid(fd.as_fd(), notification.id));
    listener::send(fd.as_fd(), notification.id, Reply::Refuse(13)).unwrap();
    assert!(!listener::id_valid(fd.as_fd(), notification.id));
    let status = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child), None).unwrap();
    assert!(matches!(status, nix::sys::wait::WaitStatus::Exited(_, 13)), "{status:?}");
}

#[test]
fn observed_paths_are_carried_out() {
    use std::os::fd::AsFd;
    let table = isolation(false, Notify::RECORD);
    let filter = program(&table, None).unwrap();
    let (fd, child) = probe::call_under_listener(filter.filter(), native("openat", &[NOBODY_FD, 0, 0, 0])).unwrap();
    let notification = listener::receive(fd.as_fd()).unwrap();
    listener::send(fd.as_fd(), notification.id, Reply::Continue).unwrap();
    let status = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child), None).unwrap();
    assert!(matches!(status, nix::sys::wait::WaitStatus::Exited(_, 14)), "{status:?}");
}

/// Every change of one instruction is found out, or changes nothing: then a simulation of the program agrees with the table all the same.
#[test]
fn changed_programs_are_rejected_or_mean_the_same() {
    let table = isolation(false, Notify::default());
    let original = insns(&program(&table, None).unwrap());
    let inputs = inputs(&table);
    let mut accepted = 0;
    for at in 0..original.len() {
        for change in 0..7 {
            let mut changed = original.clone();
            let insn = &mut changed[at];
            match change {
                0 => insn.k ^= 1,
                1 => insn.k = insn.k.wrapping_add(0x0100_0000),
                2 => insn.jt = insn.jt.wrapping_add(1),
                3 => insn.jf = insn.jf.wrapping_add(1),
                4 => std::mem::swap(&mut insn.jt, &mut insn.jf),
                5 => *insn = Insn { code: 6, jt: 0, jf: 0, k: 0x7fff_0000 },
                _ => insn.code ^= 0x10,
            }
            if changed == original || verify(&changed, &table).is_err() {
                continue;
            }
            accepted += 1;
            for (abi, nr, args) in &inputs {
                assert_eq!(
                    simulate(&changed, *abi, *nr, args),
                    simulate(&original, *abi, *nr, args),
                    "{at} {change} {abi:#x} {nr}"
                );
            }
        }
    }
    // Jump offsets that an instruction without a jump ignores, and little else.
    assert!(accepted < original.len() * 2, "{accepted} changes of {} instructions were accepted", original.len());
}

fn inputs(table: &Table) -> Vec<(u32, u32, [u64; 6])> {
    let abi = table.arch().abi().audit_arch();
    let words = [0, 1, 2, 10, 16, 35, 0x5412, 0x541c, 0o4755, 0o020_000, 0x1000_0000, HIGH | 0x5412, HIGH, u64::MAX];
    let mut inputs = Vec::new();
    for nr in (0..480).chain([1 << 30, (1 << 30) | 39, u32::MAX]) {
        inputs.push((Abi::I386.audit_arch(), nr, [0; 6]));
        inputs.extend(words.iter().map(|word| (abi, nr, [*word; 6])));
        inputs.extend(words.iter().map(|word| (abi, nr, [*word, *word, 0, 0o4000, 0, 0])));
    }
    inputs
}

/// Classic BPF as the kernel runs it, as far as filters use it.
fn simulate(program: &[Insn], abi: u32, nr: u32, args: &[u64; 6]) -> u32 {
    let (mut pc, mut acc) = (0usize, 0u32);
    loop {
        let insn = program[pc];
        pc += 1;
        let jump = |holds: bool| usize::from(if holds { insn.jt } else { insn.jf });
        match insn.code {
            0x20 => {
                acc = match insn.k {
                    0 => nr,
                    4 => abi,
                    k => (args[(k as usize - 16) / 8] >> (8 * (k % 8))) as u32,
                }
            }
            0x54 => acc &= insn.k,
            0x05 => pc += insn.k as usize,
            0x15 => pc += jump(acc == insn.k),
            0x25 => pc += jump(acc > insn.k),
            0x35 => pc += jump(acc >= insn.k),
            0x45 => pc += jump(acc & insn.k != 0),
            0x06 => return insn.k,
            code => panic!("instruction {code:#x}"),
        }
    }
}

use super::*;
use crate::seccomp::Arch;

const ABIS: [Abi; 3] = [Abi::X86_64, Abi::I386, Abi::Aarch64];
const SCOPES: [Scope; 3] = [Scope::Default, Scope::Full, Scope::Every];

fn program(scope: Scope) -> Vec<Insn> {
    filter(ABIS.into_iter(), scope)
}

fn answer(scope: Scope, abi: Abi, call: &str, args: [u64; 6]) -> u32 {
    let nr = abi.call_number(call).unwrap_or_else(|| panic!("{} has no {call}", abi.name()));
    bpf::run(&program(scope), abi.audit_arch(), nr, &args)
}

fn stops(scope: Scope, call: &str, args: [u64; 6]) -> bool {
    answer(scope, Abi::X86_64, call, args) == bpf::RET_TRACE
}

/// The kernel takes the lowest action of all filters, compared as signed numbers (seccomp(2), kernel/seccomp.c).
fn strictest(answers: [u32; 2]) -> u32 {
    answers.into_iter().min_by_key(|answer| rank(*answer)).unwrap()
}

fn rank(answer: u32) -> i32 {
    (answer & 0xffff_0000).cast_signed()
}

#[test]
fn every_number_gets_an_answer_and_the_program_fits() {
    for scope in SCOPES {
        let program = program(scope);
        assert!(program.len() < bpf::INSNS_MAX, "{}", program.len());
        for abi in ABIS {
            for nr in (0..700).chain([X32_BIT - 1, X32_BIT, X32_BIT + 59, u32::MAX]) {
                for args in [[0; 6], [u64::MAX; 6]] {
                    let answer = bpf::run(&program, abi.audit_arch(), nr, &args);
                    let refused =
                        Some(nr) == abi.call_number("clone3") || (Some(nr) == abi.call_number("clone") && args[0] != 0);
                    let is_known = if refused {
                        answer & 0xffff_0000 == bpf::RET_ERRNO
                    } else {
                        matches!(answer, bpf::RET_ALLOW | bpf::RET_TRACE)
                    };
                    assert!(is_known, "{answer:#x} to {nr}");
                }
            }
        }
    }
}

#[test]
fn a_stacked_filter_never_weakens_an_answer() {
    const KILL_PROCESS: u32 = 0x8000_0000;
    const KILL_THREAD: u32 = 0;
    const TRAP: u32 = 0x0003_0000;
    const LOG: u32 = 0x7ffc_0000;
    let refusals = [KILL_PROCESS, KILL_THREAD, TRAP, bpf::RET_ERRNO | 1, bpf::RET_ERRNO | 38, bpf::RET_USER_NOTIF];
    let program = program(Scope::Every);
    for nr in 0..600 {
        let traced = bpf::run(&program, Abi::X86_64.audit_arch(), nr, &[u64::MAX; 6]);
        for policy in refusals {
            // The kernel asks the newest filter first, and of equals the first one stands.
            let answer = strictest([policy, traced]);
            assert!(rank(answer) <= rank(policy), "call {nr}");
            assert!(answer == policy || rank(traced) < rank(policy), "call {nr}");
        }
        // Beside "carry out" the tracer is asked first, which is not weaker.
        assert_eq!(strictest([bpf::RET_ALLOW, traced]), traced);
        assert_eq!(strictest([bpf::RET_TRACE, LOG]), bpf::RET_TRACE);
    }
}

#[test]
fn the_default_scope_leaves_files_and_hot_calls_alone() {
    for call in ["read", "write", "futex", "openat", "close", "epoll_wait", "clock_gettime", "wait4", "execve"] {
        assert!(!stops(Scope::Default, call, [0; 6]), "{call}");
    }
    for call in ["connect", "bind", "setuid", "unshare", "ptrace", "memfd_create", "mount", "io_uring_setup"] {
        assert!(stops(Scope::Default, call, [0; 6]), "{call}");
    }
    for call in ["openat", "unlink", "renameat2", "chmod", "connect", "execve", "execveat"] {
        assert!(stops(Scope::Full, call, [0; 6]), "{call}");
    }
}

#[test]
fn arguments_decide_where_they_can() {
    let map = |prot, flags| stops(Scope::Default, "mmap", [0, 4096, prot, flags, 0, 0]);
    assert!(map(5, 0x22) && map(7, 0x21));
    assert!(!map(3, 0x22) && !map(5, 2));
    assert!(stops(Scope::Default, "mprotect", [0, 4096, 5, 0, 0, 0]));
    assert!(!stops(Scope::Default, "mprotect", [0, 4096, 3, 0, 0, 0]));
    assert!(stops(Scope::Default, "clone", [0x1000_0011, 0, 0, 0, 0, 0]));
    assert_eq!(answer(Scope::Full, Abi::I386, "clone", [0x0080_0011, 0, 0, 0, 0, 0]), bpf::RET_ERRNO | 22);
    assert_eq!(answer(Scope::Every, Abi::X86_64, "clone", [0x1080_0011, 0, 0, 0, 0, 0]), bpf::RET_ERRNO | 22);
    assert_eq!(answer(Scope::Default, Abi::X86_64, "clone3", [0x1000, 88, 0, 0, 0, 0]), bpf::RET_ERRNO | 38);
    assert!(!stops(Scope::Default, "clone", [0x003d_0f00, 0, 0, 0, 0, 0]));
    assert!(stops(Scope::Default, "sendto", [3, 0, 0, 0, 0x1000, 16]));
    // An address whose low half is zero is an address.
    assert!(stops(Scope::Default, "sendto", [3, 0, 0, 0, 0x1_0000_0000, 16]));
    // Without one, what can be a question to a name server.
    let sends = |bytes| stops(Scope::Default, "sendto", [3, 0, bytes, 0, 0, 0]);
    assert_eq!([0, 16, 17, 512, 513, 65536].map(sends), [false, false, true, true, false, false]);
    assert!(stops(Scope::Default, "prctl", [15, 0, 0, 0, 0, 0]));
    assert!(!stops(Scope::Default, "prctl", [4, 0, 0, 0, 0, 0]));
}

#[test]
fn i386_and_arm_have_the_same_and_their_own() {
    assert_eq!(answer(Scope::Default, Abi::I386, "socketcall", [3, 0, 0, 0, 0, 0]), bpf::RET_TRACE);
    assert_eq!(answer(Scope::Default, Abi::I386, "socketcall", [20, 0, 0, 0, 0, 0]), bpf::RET_TRACE);
    assert_eq!(answer(Scope::Default, Abi::I386, "socketcall", [9, 0, 0, 0, 0, 0]), bpf::RET_TRACE);
    assert_eq!(answer(Scope::Default, Abi::I386, "socketcall", [10, 0, 0, 0, 0, 0]), bpf::RET_ALLOW);
    assert_eq!(answer(Scope::Default, Abi::I386, "setuid32", [0; 6]), bpf::RET_TRACE);
    assert_eq!(answer(Scope::Default, Abi::I386, "mmap", [0; 6]), bpf::RET_TRACE);
    assert_eq!(answer(Scope::Default, Abi::Aarch64, "connect", [0; 6]), bpf::RET_TRACE);
    assert_eq!(answer(Scope::Default, Abi::Aarch64, "read", [0; 6]), bpf::RET_ALLOW);
}

#[test]
fn other_abis_are_no_way_around() {
    for scope in SCOPES {
        let native = filter([Abi::X86_64].into_iter(), scope);
        for (arch, nr) in [(Abi::I386.audit_arch(), 11), (0xdead_beef, 0), (Abi::X86_64.audit_arch(), X32_BIT | 1)] {
            assert_eq!(bpf::run(&native, arch, nr, &[0; 6]), bpf::RET_TRACE, "{arch:#x} {nr:#x}");
        }
    }
}

#[test]
fn every_leaves_out_what_each_sandbox_has_and_the_marked_call() {
    for call in ["read", "write", "close", "futex", "exit_group", "brk"] {
        assert!(!stops(Scope::Every, call, [0; 6]), "{call}");
    }
    for call in ["openat", "getdents64", "clock_nanosleep", "epoll_wait", "sched_setaffinity", "sendto", "seccomp"] {
        assert!(stops(Scope::Every, call, [0; 6]), "{call}");
    }
    assert!(!stops(Scope::Every, "seccomp", [1, 0, 0x1000, 0, 0, UNTRACED_MARK]));
    assert!(stops(Scope::Every, "seccomp", [1, 0, 0x1000, 0, 0, UNTRACED_MARK ^ 1]));
    assert!(stops(Scope::Every, "seccomp", [1, 0, 0x1000, 0, 0, UNTRACED_MARK ^ 1 << 40]));
    // A number that no table knows yet.
    assert_eq!(bpf::run(&program(Scope::Every), Abi::X86_64.audit_arch(), 600, &[0; 6]), bpf::RET_TRACE);
    assert_eq!(bpf::run(&program(Scope::Full), Abi::X86_64.audit_arch(), 600, &[0; 6]), bpf::RET_ALLOW);
}

/// What comes between the loading of this filter and the tracer, and needs an answer (see `apex-jail`'s seal). The exec comes after.
#[test]
fn the_start_itself_is_never_stopped_at() {
    for scope in SCOPES {
        for (call, first) in [("write", 4), ("read", 4), ("prctl", 4), ("exit_group", 1)] {
            assert!(!stops(scope, call, [first, 0, 0, 0, 0, 0]), "{scope:?} {call}");
        }
        assert!(!stops(scope, "seccomp", [1, 0, 0x1000, 0, 0, UNTRACED_MARK]), "{scope:?}");
    }
}

#[test]
fn every_name_is_a_call_of_some_abi() {
    let judged = JUDGED.iter().map(|(name, _)| name);
    for name in NETWORK.iter().chain(PRIVILEGE).chain(CHOSEN).chain(FILES).chain(judged) {
        assert!(ABIS.into_iter().any(|abi| abi.call_number(name).is_some()), "{name}");
    }
    assert_eq!(Abi::I386.call_name(I386_MMAP), Some("mmap"));
    assert!(Arch::X86_64.compat_abi().is_some());
}

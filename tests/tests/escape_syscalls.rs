//! System calls that a sandbox refuses, attempted natively and by every other door of an x86-64 kernel, in every mode.

use apex_tests::attack::{self, Abi, Attack, Attempt};
use apex_tests::{Mode, Output, armed, each_mode, skip};

/// Whether the mode promises to refuse it.
fn promised(attempt: &Attempt, mode: Mode) -> bool {
    match mode {
        Mode::Isolation => attempt.is("always") || attempt.is("strict") || attempt.is("lone"),
        Mode::Hybrid => attempt.is("always") || attempt.is("strict"),
        Mode::Development => attempt.is("always"),
    }
}

/// Every promised refusal of `group` was given: by an errno, or by ending the process that tried.
#[track_caller]
fn check_group(output: &Output, group: &str, mode: Mode, abi: Abi) {
    let answers = attack::verdicts(&output.out());
    assert!(answers.contains_key("group"), "{mode:?} {abi:?} {group} did not end\n{}\n{}", output.out(), output.err());
    let mut holes = Vec::new();
    for attempt in attack::table().iter().filter(|it| it.group == group && promised(it, mode)) {
        if abi != Abi::X64 && abi != Abi::I386 && !attempt.is("abis") {
            continue;
        }
        let answer = answers.get(&attempt.name).unwrap_or_else(|| panic!("no answer to {}", attempt.name));
        let word = attack::word(answer);
        if !(word.starts_with('E') || word.starts_with("SIG") || word == "n/a") {
            holes.push(format!("{} {answer}", attempt.name));
        }
    }
    assert!(holes.is_empty(), "{} mode through {abi:?} lets through: {holes:#?}", mode.name());
}

fn check_native(group: &str) {
    each_mode(|mode| {
        let output = armed!().mode(mode).attack(Abi::X64, &["group", group]).expect_code(0);
        check_group(&output, group, mode, Abi::X64);
    });
}

#[test]
fn namespaces_and_mounts() {
    check_native("ns");
}

#[test]
fn other_processes() {
    check_native("proc");
}

#[test]
fn rare_parts_of_the_kernel() {
    check_native("kernel");
}

#[test]
fn administration() {
    check_native("admin");
}

#[test]
fn ids_and_capabilities() {
    check_native("cred");
}

#[test]
fn set_id_bits() {
    check_native("setid");
}

#[test]
fn socket_families() {
    check_native("net");
}

const GROUPS: [&str; 7] = ["ns", "proc", "kernel", "admin", "cred", "setid", "net"];

/// Where i386 is not granted, no number of it does anything; where it is, it is judged as the native one.
fn check_int80(mode: Mode) {
    let sandbox = armed!().mode(mode);
    for group in GROUPS {
        let output = sandbox.attack(Abi::Int80, &["group", group]);
        if mode == Mode::Development {
            check_group(&output, group, mode, Abi::Int80);
            continue;
        }
        for (name, answer) in attack::verdicts(&output.out()) {
            let word = attack::word(&answer);
            let nothing_happened = word.starts_with('E') || word.starts_with("SIG") || word == "n/a" || name == "group";
            assert!(nothing_happened, "{} mode through int 0x80: {name} {answer}", mode.name());
        }
    }
}

#[test]
fn int80_in_isolation() {
    check_int80(Mode::Isolation);
}

#[test]
fn int80_in_hybrid() {
    check_int80(Mode::Hybrid);
}

#[test]
fn int80_in_development() {
    check_int80(Mode::Development);
}

/// x32 is refused in every mode, also where i386 is granted.
#[test]
fn x32_numbers() {
    each_mode(|mode| {
        let sandbox = armed!().mode(mode);
        for group in GROUPS {
            let output = sandbox.attack(Abi::X32, &["group", group]).expect_code(0);
            for (name, answer) in attack::verdicts(&output.out()) {
                let word = attack::word(&answer);
                // setfsuid answers the id that is in force, which -1 (no such call) is not: its attempt judges that itself.
                let refused = matches!(word, "ENOSYS" | "n/a")
                    || name == "group"
                    || name == "setfsuid_0"
                    || word == "EPERM"
                    || !is_raw(&name);
                assert!(refused, "{} mode through x32: {name} {answer}", mode.name());
            }
        }
    });
}

fn is_raw(name: &str) -> bool {
    attack::table().iter().any(|it| it.name == name && it.is("abis"))
}

#[test]
fn a_32_bit_program_does_nothing_where_it_is_not_granted() {
    if !Attack::has_32() {
        skip!("no 32-bit C compiler (apt install gcc-multilib)");
    }
    for mode in [Mode::Isolation, Mode::Hybrid] {
        let output = armed!().mode(mode).attack(Abi::I386, &["group", "ns"]);
        assert_ne!(output.code, 0, "a 32-bit program ran in {}: {}", mode.name(), output.out());
        assert!(output.stdout.is_empty(), "a 32-bit program wrote: {}", output.out());
    }
}

#[test]
fn a_32_bit_program_is_confined_where_it_is_granted() {
    if !Attack::has_32() {
        skip!("no 32-bit C compiler (apt install gcc-multilib)");
    }
    let sandbox = armed!().mode(Mode::Development);
    for group in GROUPS {
        let output = sandbox.attack(Abi::I386, &["group", group]).expect_code(0);
        check_group(&output, group, Mode::Development, Abi::I386);
    }
}

/// Every number of a foreign ABI, and numbers that no kernel has yet, are answered ENOSYS.
#[test]
fn no_number_of_a_foreign_abi_is_served() {
    let sandbox = armed!().mode(Mode::Isolation);
    for (abi, from, to) in [(Abi::X32, "0", "600"), (Abi::Int80, "0", "500")] {
        let output = sandbox.attack(abi, &["sweep", from, to]).expect_code(0);
        assert_eq!(output.out(), "sweep done\n", "through {abi:?}");
    }
}

/// 512 to 547 are the x32 entries of the native table; before Linux 5.4 they could be called without the bit.
#[test]
fn unknown_numbers_are_refused() {
    let sandbox = armed!().mode(Mode::Isolation);
    for (from, to) in [("480", "700"), ("1000", "1100")] {
        let output = sandbox.attack(Abi::X64, &["sweep", from, to]).expect_code(0);
        assert_eq!(output.out(), "sweep done\n");
    }
}

//! Proof that the escape tests can fail: outside a sandbox the same attempts succeed.
//!
//! Root's attempts run in namespaces of their own, and those that would hurt the host (`inside` in the table) are left out.

use apex_tests::attack::{self, Abi, Attack};
use apex_tests::{as_root, skip};

const GROUPS: [&str; 7] = ["ns", "proc", "kernel", "admin", "cred", "setid", "net"];

fn check(abi: Abi) {
    let Some(attack) = Attack::get() else { skip!("no C compiler with static libraries to build the attack program") };
    if abi == Abi::I386 && !Attack::has_32() {
        skip!("no 32-bit C compiler (apt install gcc-multilib)");
    }
    if !attack.kernel_serves(abi) {
        skip!(format!("this kernel does not serve {abi:?}"));
    }
    let mut failed = Vec::new();
    let mut succeeded = 0;
    for group in GROUPS {
        let answers = attack::verdicts(&attack.outside(abi, &["group", group]));
        for attempt in attack::table().iter().filter(|it| it.group == group && !it.is("inside")) {
            let Some(answer) = answers.get(&attempt.name) else {
                assert!(
                    abi != Abi::X64 && !attempt.is("abis") || attempt.is("rare"),
                    "{} gave no answer",
                    attempt.name
                );
                continue;
            };
            let word = attack::word(answer);
            succeeded += u32::from(word == "ok");
            let may_fail = attempt.is("rare") || word == "n/a" || (attempt.is("root") && !as_root());
            if word != "ok" && !may_fail {
                failed.push(format!("{} {answer}", attempt.name));
            }
        }
    }
    assert!(failed.is_empty(), "these attempts prove nothing, since they fail outside a sandbox too: {failed:#?}");
    assert!(succeeded > 20, "only {succeeded} attempts succeeded outside a sandbox");
}

#[test]
fn native() {
    check(Abi::X64);
}

#[test]
fn int80() {
    check(Abi::Int80);
}

#[test]
fn i386() {
    check(Abi::I386);
}

#[test]
fn x32() {
    check(Abi::X32);
}

//! Receipts of children that were given, or not given, what a bundle asks for.

use apex_sys::process::{self, Ended};
use apex_sys::{net, prctl, probe};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::os::fd::AsFd;

use super::*;

fn spec(change: impl Fn(&mut serde_json::Value)) -> Spec {
    let mut spec = crate::spec::config();
    spec["process"]["capabilities"] = serde_json::json!({"bounding": ["CAP_KILL"], "effective": [], "permitted": []});
    spec["process"]["rlimits"] = serde_json::json!([]);
    spec["linux"]["namespaces"] = serde_json::json!([{"type": "uts"}, {"type": "mount"}]);
    spec["linux"]["maskedPaths"] = serde_json::json!(["/proc/uptime", "/no/such/thing"]);
    spec["linux"]["readonlyPaths"] = serde_json::json!([]);
    spec["root"]["readonly"] = false.into();
    change(&mut spec);
    serde_json::from_value(spec).unwrap()
}

/// The receipt of a child that does `work` and then waits.
fn receipt_of(spec: &Spec, work: &dyn Fn() -> nix::Result<()>) -> Receipt {
    let (ours, theirs) = net::pair().unwrap();
    let pid = probe::spawn(&mut |_| {
        let answer: &[u8] = if work().is_ok() { b"y" } else { b"n" };
        let _ = net::send(theirs.as_fd(), answer, &[]);
        i32::from(net::receive(theirs.as_fd(), &mut [0; 1]).is_err())
    })
    .unwrap();
    let mut word = [0; 1];
    net::receive(ours.as_fd(), &mut word).unwrap();
    let receipt = read(&Subject { id: "c1", pid, spec, narrowing: None, cgroup: None });
    net::send(ours.as_fd(), b"x", &[]).unwrap();
    assert_eq!(process::wait(pid, 0).unwrap().unwrap().1, Ended::Code(0));
    assert_eq!(word, *b"y", "the child could not do its part");
    receipt
}

fn confine() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
    mount(Some("/dev/null"), "/proc/uptime", none, MsFlags::MS_BIND, none)?;
    for capability in (0..=40).filter(|capability| *capability != 5) {
        prctl::drop_bounding(capability)?;
    }
    prctl::set_capabilities(0, 0)?;
    prctl::set_no_new_privs()
}

#[track_caller]
fn state(receipt: &Receipt, what: &str) -> State {
    receipt.lines.iter().find(|line| line.what == what).unwrap_or_else(|| panic!("no line {what}")).state
}

#[test]
fn what_is_in_force_is_confirmed() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let receipt = receipt_of(&spec(|_| {}), &confine);
    assert_eq!(receipt.mismatch(), None);
    for what in ["namespace uts", "namespace mnt", "CapBnd", "CapEff", "no_new_privs", "masked paths"] {
        assert_eq!(state(&receipt, what), State::InForce, "{what}");
    }
    assert_eq!(state(&receipt, "namespace net"), State::Off);
    let bounding = receipt.lines.iter().find(|line| line.what == "CapBnd").unwrap();
    assert_eq!(bounding.effective, "CAP_KILL");
    let told = serde_json::to_value(&receipt).unwrap();
    assert_eq!(told["lines"][0]["state"], "off");
    assert!(receipt.to_string().contains("masked paths           in force  1 of 2 have a mount"), "{receipt}");
}

#[test]
fn what_is_missing_is_a_mismatch() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let asked = spec(|spec| {
        spec["root"]["readonly"] = true.into();
        spec["linux"]["seccomp"] = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW"});
        spec["process"]["oomScoreAdj"] = 7.into();
        spec["process"]["rlimits"] = serde_json::json!([{"type": "RLIMIT_NOFILE", "soft": 3, "hard": 3}]);
    });
    let receipt = receipt_of(&asked, &|| Ok(()));
    let wrong = ["namespace uts", "namespace mnt", "CapBnd", "CapEff", "no_new_privs", "seccomp", "masked paths"];
    for what in wrong.into_iter().chain(["Max open files", "oom_score_adj"]) {
        assert_eq!(state(&receipt, what), State::Mismatch, "{what}");
    }
    let words = receipt.mismatch().unwrap();
    assert!(words.contains("nothing is over /proc/uptime"), "{words}");
}

#[test]
fn a_process_that_is_gone_confirms_nothing() {
    let spec = spec(|_| {});
    let receipt = read(&Subject { id: "c1", pid: i32::MAX, spec: &spec, narrowing: None, cgroup: Some("/c1") });
    for what in ["namespace uts", "CapEff", "no_new_privs", "cgroups", "masked paths"] {
        assert_eq!(state(&receipt, what), State::Mismatch, "{what}");
    }
}

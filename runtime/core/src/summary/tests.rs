use std::collections::BTreeMap;

use super::*;
use crate::event::{Address, Errno};
use crate::finding::Detector;
use crate::watch::Level;

/// A recorded run: one line of JSON an event, as `--events` writes them.
const STREAM: &str = include_str!("stream.jsonl");

fn of_stream(stream: &str) -> Summary {
    let mut summary = Summary::default();
    for line in stream.lines() {
        summary.observe(&serde_json::from_str(line).expect("a recorded line"));
    }
    summary
}

fn event(pid: u32, what: What, error: Option<Errno>) -> Event {
    Event { time_ns: 5, sandbox: 7, pid, ppid: 1, uid: 1000, comm: "job".to_owned(), what, error }
}

fn exec(path: &str) -> What {
    What::program(path.to_owned(), Vec::new(), false)
}

#[test]
fn a_recorded_run_is_told_as_committed() {
    let mut summary = of_stream(STREAM);
    summary.found(&Finding {
        time_ns: 9,
        sandbox: 7,
        detector: Detector::Rule { id: "x".to_owned(), origin: "built-in x".to_owned() },
        title: "A download was executed".to_owned(),
        explanation: String::new(),
        severity: Severity::High,
        techniques: Vec::new(),
        ancestry: Vec::new(),
        evidence: Vec::new(),
        count: 1,
    });
    let text = summary.account().text();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/summary/stream.txt");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(path, &text).expect("the snapshot can be written");
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(committed == text, "stream.txt is stale: run once with UPDATE_SNAPSHOTS=1\n{text}");
}

#[test]
fn programs_stand_below_the_one_that_started_them() {
    let mut summary = Summary::default();
    summary.observe(&event(2, exec("/bin/sh"), None));
    for child in [3, 4] {
        summary.observe(&event(2, What::Fork { child }, None));
        summary.observe(&event(child, exec("/bin/ls"), None));
    }
    // A chain without births: each program was started by the one before.
    summary.observe(&event(2, exec("/bin/env"), None));
    let account = summary.account();
    let tree: Vec<_> =
        account.programs.iter().map(|program| (program.path.as_str(), program.count, program.parent)).collect();
    assert_eq!(tree, [("/bin/sh", 1, None), ("/bin/ls", 2, Some(0)), ("/bin/env", 1, Some(0))]);
}

#[test]
fn memory_is_bounded_and_the_rest_is_counted() {
    let mut summary = Summary::default();
    for number in 0..KINDS_MAX as u64 + 9 {
        let what = What::Unlink { path: format!("/tmp/{number}") };
        summary.observe(&event(2, what, None));
    }
    for number in 0..PROGRAMS_MAX + 3 {
        summary.observe(&event(2000 + number as u32, exec(&format!("/bin/{number}")), None));
    }
    for child in 0..2 * PROCESSES_MAX as u32 {
        summary.observe(&event(2000, What::Fork { child: 10_000 + child }, None));
    }
    let account = summary.account();
    assert_eq!((account.removed.counts.len(), account.removed.more), (KINDS_MAX, 9));
    assert_eq!((account.programs.len(), account.programs_more), (PROGRAMS_MAX, 3));
    assert!(summary.runs.len() <= PROCESSES_MAX);
    assert!(account.text().lines().count() < 100, "long lists are cut");
}

#[test]
fn a_deep_chain_of_programs_is_a_tree_of_bounded_depth() {
    let mut summary = Summary::default();
    for number in 0..10 * DEPTH_MAX {
        summary.observe(&event(2, exec(&format!("/bin/{number}")), None));
    }
    let programs = summary.account().programs;
    let depth = |index: usize| {
        std::iter::successors(Some(index), |index| programs.get(*index).and_then(|program| program.parent)).count()
    };
    assert_eq!((0..programs.len()).map(depth).max(), Some(DEPTH_MAX));
}

#[test]
fn hostile_names_do_not_reach_a_terminal() {
    let mut summary = Summary::default();
    summary.observe(&event(2, What::Mkdir { path: "/tmp/\u{1b}[2J\nforged".to_owned() }, None));
    let text = summary.account().text();
    assert!(!text.contains('\u{1b}') && !text.contains("\nforged"), "{text}");
}

#[test]
fn what_failed_was_not_done() {
    let mut summary = Summary::default();
    let address: Address = "inet:192.0.2.1:80".parse().expect("an address");
    summary.observe(&event(2, What::Connect { address: address.clone() }, Some(Errno::EPERM)));
    summary.observe(&event(2, What::Unlink { path: "/x".to_owned() }, Some(Errno::ENOENT)));
    let account = summary.account();
    assert!(account.peers.is_empty() && account.removed.is_empty());
    assert_eq!(account.denied.counts, BTreeMap::from([(format!("connect to {address}"), 1)]));
}

#[test]
fn families_that_are_not_watched_are_told() {
    let mut summary = Summary::default();
    let start = Start {
        version: 1,
        wall_time_ns: 0,
        mode: "isolation".to_owned(),
        profile: None,
        plan_sha256: String::new(),
        command: vec!["true".to_owned()],
        level: Level::Default,
        sources: BTreeMap::from([(Family::File, Source::Missing { reason: "no probes here".to_owned() })]),
    };
    summary.observe(&event(0, What::Start(Box::new(start)), None));
    assert!(summary.account().text().contains("not watched: file: no probes here"));
}

#[test]
fn what_probes_cost_is_told_for_each() {
    let mut summary = Summary::default();
    assert!(!summary.account().text().contains("cost of the probes"), "nothing was measured");
    let cost = ProbeCost { name: "on_exec".to_owned(), family: Family::Process, run_count: 4, run_time_ns: 2000 };
    summary.cost(vec![cost]);
    assert!(summary.account().text().ends_with("  cost of the probes\n    on_exec (process): 4 runs, 500 ns each\n"));
}

//! Baselines over synthetic runs: drawn from one distribution by a fixed seed, and from others.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::summary::{NAMES_MAX, Recorder};
use super::*;
use crate::event::{Address, Event, Start, What};
use crate::finding::{Detector, EVIDENCE_MAX, Finding, Severity};
use crate::refusal::Access;
use crate::watch::Level;

/// Random numbers of a fixed seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Low numbers far more often than high ones.
    fn skewed(&mut self, bound: u64) -> u64 {
        let part = self.next() as f64 / u64::MAX as f64;
        (part.powi(3) * bound as f64) as u64
    }
}

fn key() -> Key {
    Key { profile: "python".to_owned(), plan_sha256: "ab".repeat(32) }
}

fn event(time_ns: u64, pid: u32, what: What) -> Event {
    Event { time_ns, sandbox: 7, pid, ppid: 1, uid: 1000, comm: "job".to_owned(), what, error: None }
}

fn start(seed: u64) -> Event {
    let start = Start {
        version: 1,
        wall_time_ns: 1_700_000_000_000_000_000 + seed * 60_000_000_000,
        mode: "isolation".to_owned(),
        profile: Some("python".to_owned()),
        plan_sha256: "ab".repeat(32),
        command: vec!["job".to_owned()],
        level: Level::Full,
        sources: BTreeMap::new(),
    };
    event(1_000_000_000, 0, What::Start(Box::new(start)))
}

fn exec(path: &str) -> What {
    What::program(path.to_owned(), vec![path.to_owned()], false)
}

fn open(path: String, access: Access) -> What {
    What::Open { path, access, create: access == Access::Write, truncate: false }
}

fn connect(address: &str) -> What {
    What::Connect { address: address.parse::<Address>().expect("an address") }
}

/// A run of a job that varies: how much it does, where, sometimes a rare directory, sometimes a second program.
fn run(seed: u64) -> Vec<Event> {
    let mut dice = Dice(seed.wrapping_mul(7919).wrapping_add(13));
    let mut events = vec![start(seed)];
    let mut time = 1_000_000_000;
    let mut push = |dice: &mut Dice, pid: u32, what: What| {
        time += dice.below(20_000_000);
        events.push(event(time, pid, what));
    };
    push(&mut dice, 10, exec("/usr/bin/python3"));
    if dice.below(4) == 0 {
        push(&mut dice, 10, What::Fork { child: 11 });
        push(&mut dice, 11, exec("/usr/bin/git"));
    }
    for _ in 0..100 + dice.below(100) {
        let what = match dice.below(10) {
            0 => open(format!("/srv/out/{}/x", dice.skewed(5)), Access::Write),
            1 => connect("inet:192.0.2.1:443"),
            2 => What::Unlink { path: format!("/tmp/x{}", dice.below(9)) },
            _ => {
                open(format!("/usr/lib/mod-{}/f.py", ["a", "b", "c", "d", "e"][dice.skewed(5) as usize]), Access::Read)
            }
        };
        push(&mut dice, 10, what);
    }
    if dice.below(10) == 0 {
        let rare = char::from(b'a' + dice.below(26) as u8);
        push(&mut dice, 10, open(format!("/srv/rare-{rare}/x"), Access::Read));
    }
    let names = ["read", "write", "openat", "mmap", "close", "futex"];
    let counts =
        names.iter().enumerate().map(|(at, name)| ((*name).to_owned(), 500 / (at as u64 + 1) + dice.below(90)));
    let counts = counts.collect();
    push(&mut dice, 0, What::Calls { counts });
    events
}

fn sum_up(events: &[Event]) -> RunSummary {
    let mut recorder = Recorder::new(key());
    events.iter().for_each(|event| recorder.observe(event));
    recorder.summary()
}

fn model(seeds: std::ops::Range<u64>) -> Model {
    Model::learn(&seeds.map(|seed| sum_up(&run(seed))).collect::<Vec<_>>()).expect("runs of one key")
}

fn watch(model: &Model, events: &[Event]) -> Vec<Finding> {
    let mut observer = Observer::new(Some(model), key());
    let mut findings: Vec<Finding> = events.iter().flat_map(|event| observer.observe(event)).collect();
    findings.extend(observer.finish().0);
    findings
}

fn with(mut events: Vec<Event>, more: impl IntoIterator<Item = What>) -> Vec<Event> {
    let mut time = events.last().map_or(0, |event| event.time_ns);
    for what in more {
        time += 1_000_000;
        events.push(event(time, 10, what));
    }
    events
}

fn moved(finding: &Finding) -> &[crate::finding::Moved] {
    match &finding.detector {
        Detector::Baseline { moved, .. } => moved,
        Detector::Rule { .. } => panic!("no rule here"),
    }
}

#[test]
fn runs_like_those_of_the_model_alarm_no_oftener_than_stated() {
    const POOL: u64 = 300;
    const TRIALS: u64 = 300;
    let pool: Vec<RunSummary> = (0..POOL).map(|seed| sum_up(&run(seed))).collect();
    let mut dice = Dice(4711);
    let mut alarms = 0;
    let mut stated = 0.0;
    for _ in 0..TRIALS {
        // Drawn without replacement, the last of them is the new run.
        let mut order: Vec<usize> = (0..pool.len()).collect();
        for at in 0..31 {
            let other = at + dice.below((order.len() - at) as u64) as usize;
            order.swap(at, other);
        }
        let drawn: Vec<RunSummary> = order[..30].iter().map(|index| pool[*index].clone()).collect();
        let model = Model::learn(&drawn).expect("runs of one key");
        let judge = Judge::new(&model).expect("enough runs");
        stated = judge.false_alarms_max();
        alarms += u64::from(judge.score(&pool[order[30]], true).value > 1.0);
    }
    let rate = alarms as f64 / TRIALS as f64;
    // Three standard deviations of a share of TRIALS.
    let slack = 3.0 * (stated * (1.0 - stated) / TRIALS as f64).sqrt();
    assert!((stated - 1.0 / 21.0).abs() < 1e-9, "{stated}");
    assert!(rate <= stated + slack, "{rate} of runs alarmed, {stated} stated");
    println!("false alarms: {rate:.4} seen, at most {stated:.4} stated");
}

#[test]
fn shifted_runs_are_found_and_the_moved_feature_is_named() {
    let model = model(0..30);
    let steal = [exec("/usr/bin/nc"), connect("inet:203.0.113.9:4444")];
    let many = (0..3000).map(|at| What::Unlink { path: format!("/srv/out/{}/{at}", at % 5) });
    let scan = (1..200).map(|port| connect(&format!("inet:192.0.2.7:{port}")));
    let sweep = (0..60u8).map(|at| {
        let (one, two) = (char::from(b'a' + at % 26), char::from(b'a' + at / 26));
        open(format!("/home/u/{one}{two}/key"), Access::Read)
    });
    let calls = BTreeMap::from([("ptrace".to_owned(), 400), ("process_vm_writev".to_owned(), 90)]);
    let cases: [(&str, Vec<What>, Severity); 5] = [
        ("new programs", steal.to_vec(), Severity::High),
        ("unlink", many.collect(), Severity::Medium),
        ("new peers", scan.collect(), Severity::Medium),
        ("new directories", sweep.collect(), Severity::Medium),
        ("new system calls", vec![What::Calls { counts: calls }], Severity::Medium),
    ];
    for (feature, more, severity) in cases {
        for seed in 1000..1020 {
            let findings = watch(&model, &with(run(seed), more.clone()));
            let last = findings.last().unwrap_or_else(|| panic!("{feature} of run {seed} is not found"));
            assert!(moved(last).iter().any(|moved| moved.feature.starts_with(feature)), "{feature}: {:?}", moved(last));
            assert!(last.severity >= severity, "{feature}: {:?}", last.severity);
            let weights: f64 = moved(last).iter().map(|moved| moved.weight).sum();
            assert!(weights > 0.0 && weights <= 1.0 + 1e-9, "{weights}");
            assert!(!last.evidence.is_empty() && last.evidence.len() <= EVIDENCE_MAX);
        }
    }
}

#[test]
fn the_furthest_feature_comes_first_with_what_was_expected_and_seen() {
    let model = model(0..30);
    let findings = watch(&model, &with(run(2000), (0..9000).map(|_| What::Fork { child: 99 })));
    let last = findings.last().expect("a fork storm is unusual");
    let first = &moved(last)[0];
    assert!(first.feature.starts_with("fork"), "{first:?}");
    assert!(last.title.contains("fork") && last.explanation.contains("4.8%"), "{}", last.explanation);
    assert_eq!(last.severity, Severity::High, "far beyond the threshold");
}

#[test]
fn an_alarm_comes_while_the_run_goes_on() {
    let model = model(0..30);
    let mut observer = Observer::new(Some(&model), key());
    for event in run(1000) {
        assert_eq!(observer.observe(&event), Vec::new());
    }
    let time = 10_000_000_000;
    let mut findings = observer.observe(&event(time, 10, exec("/usr/bin/nc")));
    findings.extend(observer.observe(&event(time + 1, 10, connect("inet:203.0.113.9:4444"))));
    // No event comes any more, but time goes on.
    findings.extend(observer.tick(time + 1_100_000_000));
    let last = findings.last().expect("told before the end");
    assert_eq!(last.severity, Severity::High);
    assert_eq!(last.ancestry[0].exe, "/usr/bin/nc");
    let told = findings.len();
    findings.extend(observer.finish().0);
    assert_eq!(findings.len(), told, "told once");
}

#[test]
fn a_part_of_a_run_never_scores_above_the_whole() {
    let model = model(0..20);
    let judge = Judge::new(&model).expect("enough runs");
    for seed in 3000..3010 {
        let events = with(run(seed), (0..50).map(|at| exec(&format!("/opt/p{}", at % 7))));
        let mut recorder = Recorder::new(key());
        let mut before = 0.0;
        for event in &events {
            recorder.observe(event);
            let score = judge.score(&recorder.summary(), false).value;
            assert!(score >= before, "{score} after {before}");
            before = score;
        }
        assert!(judge.score(&recorder.summary(), true).value >= before);
    }
}

#[test]
fn too_few_runs_judge_nothing_and_say_so() {
    let few = model(0..RUNS_MIN as u64 - 1);
    assert_eq!(few.false_alarms_max(), None);
    let events = with(run(1), (0..5000).map(|at| exec(&format!("/opt/p{at}"))));
    assert_eq!(watch(&few, &events), Vec::new());
    let words = Observer::new(Some(&few), key()).mute().expect("mute");
    assert!(words.contains("14 of the 15 runs"), "{words}");
    assert_eq!(Observer::new(Some(&model(0..RUNS_MIN as u64)), key()).mute(), None);
}

#[test]
fn a_model_of_another_policy_is_not_asked() {
    let other = Key { plan_sha256: "cd".repeat(32), ..key() };
    assert!(Observer::new(Some(&model(0..15)), other.clone()).mute().is_some());
    let mut summary = sum_up(&run(1));
    summary.key = other;
    assert!(matches!(model(0..2).absorb(summary), Err(ModelError::OtherKey { .. })));
}

#[test]
fn identical_runs_make_a_model_that_still_takes_one_of_them_for_usual() {
    let twin = |seed| {
        let mut events = run(5);
        events[0] = start(seed);
        events
    };
    let runs: Vec<RunSummary> = (0..20).map(|seed| sum_up(&twin(seed))).collect();
    let model = Model::learn(&runs).expect("runs of one key");
    assert_eq!(model.runs.len(), 20, "the same behaviour, but other runs");
    assert_eq!(watch(&model, &twin(99)), Vec::new());
    let alarm = watch(&model, &with(twin(99), [exec("/usr/bin/nc")]));
    assert_eq!(alarm.len(), 1, "one program that none of twenty equal runs had");
}

#[test]
fn a_hostile_run_is_summed_up_in_bounds() {
    let mut recorder = Recorder::new(key());
    recorder.observe(&start(1));
    for at in 0..300_000u64 {
        let (one, two) = (at % 26, at / 26);
        let path =
            format!("/{}{}/{}/{}/x", char::from(b'a' + one as u8), "q".repeat((two % 200) as usize), two % 971, at);
        recorder.observe(&event(at * 1000, at as u32, open(path, Access::Read)));
        recorder.observe(&event(at * 1000, at as u32, exec(&format!("/opt/{}", "p".repeat((at % 3000) as usize)))));
        recorder.fresh();
    }
    let calls = (0..5000).map(|at| (format!("call{at}"), u64::MAX)).collect::<BTreeMap<_, _>>();
    recorder.observe(&event(9, 0, What::Calls { counts: calls.clone() }));
    recorder.observe(&event(9, 0, What::Calls { counts: calls }));
    let summary = recorder.summary();
    assert!(Class::ALL.iter().all(|class| summary.of(*class).count() <= NAMES_MAX));
    assert!(summary.overflow > 1000);
    let bytes: usize = Class::ALL.iter().flat_map(|class| summary.of(*class)).map(String::len).sum();
    assert!(bytes < 2 << 20, "{bytes}");
    let hostile = Model::learn(std::slice::from_ref(&summary)).expect("within the bounds of a model");
    assert_eq!(hostile.clone().checked(), Ok(hostile));
    assert!(Judge::new(&model(0..15)).expect("enough").score(&summary, true).value.is_finite());
}

fn text(model: &Model) -> String {
    serde_json::to_string(model).expect("representable")
}

#[test]
fn a_model_comes_back_from_its_text_and_a_changed_one_is_refused() {
    let model = model(0..16);
    let back: Model = serde_json::from_str(&text(&model)).expect("own text");
    assert_eq!(back.checked(), Ok(model.clone()));
    for (from, to) in [
        ("/usr/bin/python3\"", "/usr/bin/python4\""),
        ("\"absorbed\":16", "\"absorbed\":17"),
        ("\"profile\":\"python\"", "\"profile\":\"pythom\""),
    ] {
        let changed = text(&model).replacen(from, to, 1);
        assert_ne!(changed, text(&model), "{from}");
        let changed: Model = serde_json::from_str(&changed).expect("still a model in shape");
        let error = changed.checked().expect_err("changed");
        assert!(matches!(error, ModelError::Changed { .. }) && error.to_string().contains("reset"), "{error}");
    }
}

#[test]
fn a_sealed_model_beyond_its_bounds_is_refused() {
    let check = |change: fn(&mut Model)| {
        let mut model = model(0..3);
        change(&mut model);
        model.sha256 = model.digest();
        model.checked().expect_err("malformed")
    };
    assert_eq!(check(|model| model.version = 2), ModelError::Version(2));
    let malformed: [fn(&mut Model); 7] = [
        |model| model.runs.swap(0, 1),
        |model| model.runs[0].key.profile.push('x'),
        |model| model.runs[0].id.push('0'),
        |model| model.absorbed = 1,
        |model| {
            model.runs[1].tallies.insert("open".to_owned(), Tally { total: 1, peak: 2 });
        },
        |model| {
            model.runs[0].calls = (0..=NAMES_MAX).map(|at| (at.to_string(), 1)).collect();
        },
        |model| {
            model.runs[0].transitions.insert("x".repeat(1000), 1);
        },
    ];
    for change in malformed {
        assert!(matches!(check(change), ModelError::Malformed(_)));
    }
}

#[test]
fn more_runs_than_are_kept_are_drawn_from() {
    let model = model(0..RUNS_MAX as u64 + 20);
    assert_eq!((model.runs.len(), model.absorbed), (RUNS_MAX, RUNS_MAX as u64 + 20));
    assert_eq!(model.clone().checked(), Ok(model));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_order_of_runs_does_not_matter(mut seeds in proptest::collection::vec(0u64..200, 1..90), swaps in any::<u64>()) {
        seeds.sort_unstable();
        seeds.dedup();
        let runs: Vec<RunSummary> = seeds.iter().map(|seed| sum_up(&run(*seed))).collect();
        let mut shuffled = runs.clone();
        let mut dice = Dice(swaps);
        for at in 0..shuffled.len() {
            shuffled.swap(at, dice.below(runs.len() as u64) as usize);
        }
        prop_assert_eq!(Model::learn(&runs), Model::learn(&shuffled));
    }

    #[test]
    fn a_run_absorbed_twice_changes_nothing(seed in 0u64..100) {
        let once = model(0..20);
        let mut twice = once.clone();
        twice.absorb(sum_up(&run(seed % 20))).expect("the same key");
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn no_text_is_read_as_a_model_that_is_not_one(text in ".{0,200}") {
        prop_assert!(serde_json::from_str::<Model>(&text).is_err());
    }
}

//! Rules of the controller one by one, then for any sequence of wishes.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::finding::Severity;
use crate::policy::{Flags, Inputs, IsolationLevel, Mode, Network, resolve};
use crate::seccomp::groups;
use crate::summary::Account;

const PERSON: Asker = Asker { is_operator_allowed_to_relax: false, automatic: false };
const OPERATOR: Asker = Asker { is_operator_allowed_to_relax: true, automatic: false };
const PROGRAM: Asker = Asker { is_operator_allowed_to_relax: true, automatic: true };
const UNLIMITED: Limits = Limits { memory_bytes: None, tasks: None, cpu_percent: None };

fn defaults(mode: Mode) -> ModeDefaults {
    let limits = |megabytes: u64, tasks, cpu| Limits {
        memory_bytes: Some(megabytes << 20),
        tasks: Some(tasks),
        cpu_percent: Some(cpu),
    };
    match mode {
        Mode::Isolation => ModeDefaults { limits: limits(512, 64, 100), network: Network::None },
        Mode::Hybrid => ModeDefaults { limits: limits(2048, 256, 200), network: Network::None },
        Mode::Development => ModeDefaults { limits: UNLIMITED, network: Network::Host },
    }
}

/// A sandbox of mode development with everything that can be turned.
fn developing() -> Facts {
    Facts {
        born: Mode::Development,
        mode: Mode::Development,
        level: IsolationLevel::Full,
        network_born: Network::Host,
        network_cut: false,
        shut: Shut::default(),
        has_network_dial: true,
        has_reported: false,
        limits_born: UNLIMITED,
        limits: UNLIMITED,
        has_limits: true,
        frozen: false,
        tightened_by: None,
        hold_until_ms: 0,
        tightened_times: 0,
        state: State::Running,
    }
}

fn ask(facts: &Facts, wish: &Wish, asker: &Asker) -> Result<Transition, Refusal> {
    plan(facts, wish, asker, &defaults, 1000)
}

#[track_caller]
fn done(facts: &Facts, wish: Wish, asker: Asker) -> Facts {
    let transition = ask(facts, &wish, &asker).unwrap_or_else(|refusal| panic!("{refusal}"));
    facts.after(&transition, &asker)
}

#[track_caller]
fn refused(facts: &Facts, wish: Wish, asker: Asker, words: &[&str]) -> Refusal {
    let refusal = ask(facts, &wish, &asker).expect_err("is to be refused");
    let text = refusal.to_string();
    for part in words {
        assert!(text.contains(part), "{text}\nlacks {part}");
    }
    refusal
}

#[test]
fn the_built_in_modes_are_what_these_tests_take_them_for() {
    let groups: Vec<&str> = groups::iter().map(|group| group.name).collect();
    for mode in [Mode::Isolation, Mode::Hybrid, Mode::Development] {
        let inputs = Inputs {
            mode: Some(mode),
            profile: None,
            policy_file: None,
            flags: Flags::default(),
            home: Some("/home/u".into()),
            cwd: "/job".into(),
            tmpdir: None,
            system_config: None,
            user_config: None,
            groups: &groups,
        };
        let policy = resolve(&inputs, &mut |_: &Path| Ok(None)).expect("built in");
        assert_eq!(ModeDefaults::from(&policy), defaults(mode), "{}", mode.name());
    }
}

#[test]
fn a_stricter_mode_cuts_the_network_and_lowers_limits_for_anybody() {
    let facts = developing();
    let transition = ask(&facts, &Wish::Mode(Mode::Isolation), &PERSON).expect("tightening needs nothing");
    let low = defaults(Mode::Isolation).limits;
    assert_eq!(transition.steps, [Step::Network { cut: true }, Step::Limits { from: UNLIMITED, to: low }]);
    assert!(!transition.relaxes);
    let after = facts.after(&transition, &PERSON);
    assert_eq!((after.mode, after.limits, after.network_cut), (Mode::Isolation, low, true));
}

#[test]
fn limits_of_birth_below_those_of_a_mode_stay() {
    let born = Limits { memory_bytes: Some(1 << 20), tasks: None, cpu_percent: Some(500) };
    let facts = Facts { limits_born: born, limits: born, ..developing() };
    let after = done(&facts, Wish::Mode(Mode::Isolation), PERSON);
    assert_eq!(after.limits, Limits { memory_bytes: Some(1 << 20), tasks: Some(64), cpu_percent: Some(100) });
    assert_eq!(done(&after, Wish::Mode(Mode::Development), OPERATOR).limits, born);
}

#[test]
fn a_stricter_mode_gives_nothing_back_that_was_taken() {
    let low = Limits { memory_bytes: Some(1 << 20), tasks: Some(8), cpu_percent: Some(10) };
    let facts = Facts { network_cut: true, limits: low, ..developing() };
    let after = done(&facts, Wish::Mode(Mode::Hybrid), PERSON);
    assert_eq!((after.limits, after.network_cut), (low, true));
}

#[test]
fn a_laxer_mode_needs_permission_and_gives_back_last_the_network() {
    let facts = done(&developing(), Wish::Mode(Mode::Isolation), PERSON);
    refused(&facts, Wish::Mode(Mode::Development), PERSON, &["switch to mode development", "mode-relax"]);
    let transition = ask(&facts, &Wish::Mode(Mode::Development), &OPERATOR).expect("permitted");
    assert!(transition.relaxes);
    assert_eq!(transition.steps.last(), Some(&Step::Network { cut: false }));
    assert_eq!(facts.after(&transition, &OPERATOR), developing());
    let hybrid = done(&facts, Wish::Mode(Mode::Hybrid), OPERATOR);
    assert!(hybrid.network_cut, "hybrid has no network by default");
    assert!(!done(&hybrid, Wish::Network { cut: false }, OPERATOR).network_cut, "and can be given it");
}

#[test]
fn nothing_gets_beyond_birth() {
    let born = defaults(Mode::Isolation);
    let facts = Facts {
        born: Mode::Isolation,
        mode: Mode::Isolation,
        level: IsolationLevel::Full,
        network_born: Network::None,
        limits_born: born.limits,
        limits: born.limits,
        ..developing()
    };
    let words = ["hybrid --successor", "nothing in memory are carried over"];
    let refusal = refused(&facts, Wish::Mode(Mode::Hybrid), OPERATOR, &words);
    assert!(matches!(refusal, Refusal::BeyondCeiling { .. }));
    refused(&facts, Wish::Limits(UNLIMITED), OPERATOR, &["memory 512M, tasks 64, cpu 100%", "ceiling"]);
    refused(&facts, Wish::Network { cut: false }, OPERATOR, &["without a network", "--net host"]);
}

#[test]
fn what_cannot_be_turned_is_refused_with_its_remedy() {
    let facts = Facts { has_network_dial: false, ..developing() };
    for wish in [Wish::Mode(Mode::Isolation), Wish::Network { cut: true }] {
        assert!(matches!(refused(&facts, wish, PERSON, &["--watch", "kernel probes"]), Refusal::NoDial { .. }));
    }
    let facts = Facts { has_limits: false, ..developing() };
    for wish in [Wish::Mode(Mode::Hybrid), Wish::Limits(defaults(Mode::Hybrid).limits)] {
        assert!(matches!(refused(&facts, wish, PERSON, &["no cgroup"]), Refusal::NoLimits { .. }));
    }
    // Nothing would change, so nothing is missing.
    let limits = defaults(Mode::Isolation).limits;
    let bare =
        Facts { has_limits: false, has_network_dial: false, network_born: Network::None, limits, ..developing() };
    assert_eq!(ask(&bare, &Wish::Mode(Mode::Hybrid), &PERSON).expect("as it is").steps, []);
    refused(&developing(), Wish::Limits(Limits { tasks: Some(0), ..UNLIMITED }), PERSON, &["tasks 0", "freeze"]);
}

#[test]
fn a_gate_of_the_mode_holds_for_operators_too() {
    let facts = done(&developing(), Wish::Mode(Mode::Isolation), PERSON);
    refused(&facts, Wish::Network { cut: false }, OPERATOR, &["mode isolation", "the network of the host"]);
    refused(&facts, Wish::Limits(UNLIMITED), OPERATOR, &["memory and tasks without a limit"]);
    let more = Limits { memory_bytes: Some(1 << 40), tasks: Some(1 << 20), cpu_percent: None };
    assert_eq!(done(&facts, Wish::Limits(more), OPERATOR).limits, more);
}

#[test]
fn gates_close_and_never_open_as_modes_get_stricter() {
    for feature in Feature::ALL {
        let gates = [Mode::Development, Mode::Hybrid, Mode::Isolation].map(|mode| gate(mode, feature));
        assert!(gates.is_sorted_by(|laxer, stricter| laxer >= stricter), "{feature:?}: {gates:?}");
    }
}

#[test]
fn who_froze_by_hand_may_thaw_by_hand_but_not_after_a_finding() {
    let frozen = done(&developing(), Wish::Freeze, PERSON);
    assert_eq!((frozen.state, frozen.frozen), (State::Frozen, true));
    assert_eq!(done(&frozen, Wish::Thaw, PERSON), developing());
    let found = Facts { tightened_by: Some("shell in a job".to_owned()), ..frozen };
    refused(&found, Wish::Thaw, PERSON, &["thaw the sandbox", "shell in a job"]);
    assert_eq!(done(&found, Wish::Thaw, OPERATOR).tightened_by, None);
}

#[test]
fn states_without_processes_are_refused_each_in_its_words() {
    for (state, words) in [
        (State::Ended, "start a new one"),
        (State::Failed, "why it failed"),
        (State::Lost, "remove it"),
        (State::Creating, "when it runs"),
    ] {
        let facts = Facts { state, ..developing() };
        refused(&facts, Wish::Freeze, OPERATOR, &[state.name(), words]);
        assert_eq!(ask(&facts, &Wish::Kill, &PERSON).is_ok(), state == State::Creating, "{state:?}");
    }
}

const REACTIONS: Reactions = Reactions {
    medium: Reaction::CutNetwork,
    high: Reaction::Freeze,
    critical: Reaction::Isolate,
    hold_down_ms: 5000,
    flaps_max: 3,
};

fn found(facts: &Facts, severity: Severity, now_ms: u64) -> Option<Answer> {
    on_finding(facts, Found { severity, title: "odd" }, &REACTIONS, &defaults, now_ms)
}

#[test]
fn a_finding_tightens_once_and_a_worse_one_tightens_more() {
    let facts = developing();
    assert_eq!(found(&facts, Severity::Low, 0), None);
    let answer = found(&facts, Severity::Medium, 1000).expect("cut");
    assert_eq!((&answer.transition.steps[..], answer.hold_until_ms), (&[Step::Network { cut: true }][..], 6000));
    let facts = facts.after_finding(&answer);
    assert_eq!((facts.tightened_by.as_deref(), facts.tightened_times), (Some("odd"), 1));
    assert_eq!(found(&facts, Severity::Medium, 2000), None, "it is cut");
    let answer = found(&facts, Severity::Critical, 2000).expect("isolate");
    assert_eq!(answer.transition.to, Mode::Isolation);
    let facts = facts.after_finding(&answer);
    assert_eq!(found(&facts, Severity::Critical, 2000), None);
    assert_eq!(found(&Facts { state: State::Ended, ..facts }, Severity::High, 2000), None);
}

#[test]
fn switches_are_turned_off_by_anybody_and_on_again_by_permission() {
    let off = Shut { connect: true, devices: true, ..Shut::default() };
    let transition = ask(&developing(), &Wish::Shut(off), &PERSON).expect("tightening needs nothing");
    assert_eq!(transition.steps, [Step::Shut { from: Shut::default(), to: off }]);
    let facts = developing().after(&transition, &PERSON);
    assert_eq!(facts.shut, off);
    // One off and one on relaxes.
    let other = Shut { bind: true, connect: false, ..off };
    refused(&facts, Wish::Shut(other), PERSON, &["bind, devices off", "mode-relax"]);
    assert_eq!(done(&facts, Wish::Shut(other), OPERATOR).shut, other);
    let isolated = done(&facts, Wish::Mode(Mode::Isolation), PERSON);
    assert_eq!(isolated.shut, off, "a stricter mode gives nothing back");
    assert_eq!(done(&isolated, Wish::Mode(Mode::Hybrid), OPERATOR).shut, off);
    let back = ask(&isolated, &Wish::Mode(Mode::Development), &OPERATOR).expect("permitted");
    assert_eq!(back.steps.last(), Some(&Step::Network { cut: false }), "{back:?}");
    assert_eq!(isolated.after(&back, &OPERATOR), developing());
    assert_eq!(facts.settled(&developing()), facts, "what was broken off stays off");
    let blind = Facts { has_network_dial: false, ..developing() };
    assert!(matches!(
        refused(&blind, Wish::Shut(off), PERSON, &["connect, devices off", "--watch"]),
        Refusal::NoSwitches { .. }
    ));
}

#[test]
fn reported_calls_are_refused_by_switch_and_by_a_stricter_mode() {
    let facts = Facts { has_reported: true, has_network_dial: false, network_born: Network::None, ..developing() };
    let reported = Shut { reported: true, ..Shut::default() };
    assert_eq!(done(&facts, Wish::Shut(reported), PERSON).shut, reported, "it needs no probes");
    let isolated = done(&facts, Wish::Mode(Mode::Isolation), PERSON);
    assert_eq!(isolated.shut, reported, "isolation refuses what development reports");
    refused(&isolated, Wish::Shut(Shut::default()), PERSON, &["every switch on", "mode-relax"]);
    assert_eq!(done(&isolated, Wish::Mode(Mode::Hybrid), OPERATOR).shut, reported, "hybrid too");
    assert_eq!(done(&isolated, Wish::Mode(Mode::Development), OPERATOR), facts);
    let silent = Facts { has_reported: false, ..facts.clone() };
    assert!(matches!(refused(&silent, Wish::Shut(reported), PERSON, &["reports no"]), Refusal::NoReports { .. }));
    assert!(ask(&silent, &Wish::Mode(Mode::Isolation), &PERSON).is_ok_and(|change| change.steps.len() == 1));
    // A finding that turns every switch off has nothing to do there.
    let reactions = Reactions { high: Reaction::Shut(Shut::ALL), ..REACTIONS };
    let high = Found { severity: Severity::High, title: "odd" };
    let answer = on_finding(&developing(), high, &reactions, &defaults, 0).expect("the others");
    assert_eq!(developing().after_finding(&answer).shut, Shut::ALL.of_probes());
}

#[test]
fn a_finding_turns_switches_off_and_leaves_those_that_are() {
    let reactions = Reactions { high: Reaction::Shut(Shut { sendmsg: true, ..Shut::default() }), ..REACTIONS };
    let facts = Facts { shut: Shut { bind: true, ..Shut::default() }, ..developing() };
    let high = Found { severity: Severity::High, title: "odd" };
    let answer = on_finding(&facts, high, &reactions, &defaults, 0).expect("a switch");
    let after = facts.after_finding(&answer);
    assert_eq!(after.shut, Shut { bind: true, sendmsg: true, ..Shut::default() });
    refused(&after, Wish::Shut(Shut::default()), PERSON, &["odd"]);
}

#[test]
fn where_a_reaction_cannot_be_carried_out_the_sandbox_is_frozen() {
    let facts = Facts { has_network_dial: false, ..developing() };
    let answer = found(&facts, Severity::Medium, 0).expect("something is done");
    assert_eq!(answer.transition.steps, [Step::Freeze]);
    assert!(matches!(answer.instead_of, Some(Refusal::NoDial { .. })));
    let facts = facts.after_finding(&answer);
    assert_eq!(found(&facts, Severity::Medium, 0), None, "once");
}

#[test]
fn limits_are_tightened_never_raised() {
    let limits = Limits { memory_bytes: Some(1 << 30), tasks: Some(4), cpu_percent: None };
    let reactions = Reactions { high: Reaction::Tighten(limits), ..REACTIONS };
    let low = Limits { memory_bytes: Some(1 << 20), tasks: Some(100), cpu_percent: Some(50) };
    let facts = Facts { limits: low, ..developing() };
    let high = Found { severity: Severity::High, title: "odd" };
    let answer = on_finding(&facts, high, &reactions, &defaults, 0).expect("lower");
    let after = facts.after_finding(&answer);
    assert_eq!(after.limits, Limits { tasks: Some(4), ..low });
    assert_eq!(on_finding(&after, high, &reactions, &defaults, 0), None);
}

#[test]
fn nothing_automatic_relaxes_before_the_hold_ends_and_not_at_all_after_repeated_findings() {
    let mut facts = developing();
    for time in 1..=3_u32 {
        let answer = found(&facts, Severity::Medium, 1000).expect("cut");
        facts = facts.after_finding(&answer);
        assert_eq!(facts.tightened_times, time);
        let refusal = refused(&facts, Wish::Network { cut: false }, PROGRAM, &["nothing automatic", "\"odd\""]);
        let Refusal::HeldDown { until_ms, .. } = refusal else { panic!("{refusal:?}") };
        let last = time == REACTIONS.flaps_max;
        assert_eq!(until_ms, if last { u64::MAX } else { 6000 });
        if !last {
            assert!(refusal.to_string().contains("another 5s"), "{refusal}");
            let later = plan(&facts, &Wish::Network { cut: false }, &PROGRAM, &defaults, 6000).expect("held no more");
            facts = facts.after(&later, &PROGRAM);
        }
    }
    let forgiven = done(&facts, Wish::Network { cut: false }, OPERATOR);
    assert_eq!((forgiven.tightened_times, forgiven.hold_until_ms), (0, 0));
}

#[test]
fn relaxing_something_else_does_not_make_the_thaw_free() {
    let frozen = developing().after_finding(&found(&developing(), Severity::High, 0).expect("freeze"));
    let low = done(&frozen, Wish::Limits(defaults(Mode::Isolation).limits), PERSON);
    let raised = done(&low, Wish::Limits(UNLIMITED), OPERATOR);
    refused(&raised, Wish::Thaw, PERSON, &["odd"]);
}

#[test]
fn reactions_are_read_from_toml() {
    let text = "high = { tighten = { tasks = 8 } }\nmedium = { shut = { connect = true } }\ncritical = \"cut-network\"\nhold_down_ms = 1";
    let reactions: Reactions = toml::from_str(text).expect("reads");
    assert_eq!(reactions.to(Severity::High), Reaction::Tighten(Limits { tasks: Some(8), ..UNLIMITED }));
    assert_eq!((reactions.to(Severity::Critical), reactions.flaps_max), (Reaction::CutNetwork, 3));
    assert!(toml::from_str::<Reactions>("hihg = \"warn\"").is_err());
}

#[test]
fn the_strictest_mode_that_has_what_was_used_is_suggested() {
    let check = |usage: Usage, mode: Mode, reasons: usize| {
        let suggestion = suggest(&usage);
        assert_eq!((suggestion.mode, suggestion.because.len()), (mode, reasons), "{usage:?}");
    };
    let network = Usage { used_network: true, ..Usage::default() };
    check(Usage::default(), Mode::Isolation, 1);
    check(network, Mode::Hybrid, 1);
    check(Usage { written_outside: 2, ..network }, Mode::Hybrid, 2);
    check(Usage { written_outside: 2, refused_calls: 1, ..network }, Mode::Development, 3);
    check(Usage { findings: 1, written_outside: 2, refused_calls: 1, ..network }, Mode::Isolation, 1);
}

fn a_mode() -> impl Strategy<Value = Mode> {
    prop::sample::select(vec![Mode::Isolation, Mode::Hybrid, Mode::Development])
}

fn a_limit() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![Just(None), (1_u64..4).prop_map(Some), (1_u64..1 << 33).prop_map(Some)]
}

prop_compose! {
    fn some_limits()(memory_bytes in a_limit(), tasks in a_limit(), cpu_percent in a_limit()) -> Limits {
        Limits { memory_bytes, tasks, cpu_percent }
    }
}

prop_compose! {
    fn some_shut()(connect in any::<bool>(), bind in any::<bool>(), sendmsg in any::<bool>(), devices in any::<bool>(), reported in any::<bool>()) -> Shut {
        Shut { connect, bind, sendmsg, devices, reported }
    }
}

fn a_wish() -> impl Strategy<Value = Wish> {
    prop_oneof![
        a_mode().prop_map(Wish::Mode),
        some_limits().prop_map(Wish::Limits),
        any::<bool>().prop_map(|cut| Wish::Network { cut }),
        some_shut().prop_map(Wish::Shut),
        Just(Wish::Freeze),
        Just(Wish::Thaw),
    ]
}

prop_compose! {
    fn some_facts()(
        mode in a_mode(), born in a_mode(), has_network in any::<bool>(), network_cut in any::<bool>(), dial in any::<bool>(),
        limits in some_limits(), limits_born in some_limits(), has_limits in any::<bool>(), frozen in any::<bool>(),
        found in any::<bool>(), hold_until_ms in 0_u64..3000, shut in some_shut(), has_reported in any::<bool>(),
    ) -> Facts {
        let born = if strictness(born) > strictness(mode) { mode } else { born };
        Facts {
            born,
            mode,
            level: IsolationLevel::Full,
            network_born: if has_network { Network::Host } else { Network::None },
            network_cut: network_cut && has_network && dial,
            shut: Shut { reported: shut.reported && has_reported, ..if dial { shut } else { Shut::default() } },
            has_network_dial: dial,
            has_reported,
            limits_born,
            limits: limits.lowered_to(limits_born),
            has_limits,
            frozen,
            tightened_by: found.then(|| "odd".to_owned()),
            hold_until_ms,
            tightened_times: u32::from(found),
            state: if frozen { State::Frozen } else { State::Running },
        }
    }
}

/// Whether nothing of `next` is laxer than `facts`. A thaw counts where a finding stands.
fn is_no_laxer(next: &Facts, facts: &Facts) -> bool {
    strictness(next.mode) >= strictness(facts.mode)
        && next.limits.is_within(facts.limits)
        && (next.network_cut || !facts.network_cut)
        && next.shut.covers(facts.shut)
        && (next.is_frozen() || !facts.is_frozen() || facts.tightened_by.is_none())
        && (next.tightened_by.is_some() || facts.tightened_by.is_none())
}

proptest! {
    #[test]
    fn without_permission_nothing_becomes_laxer(mut facts in some_facts(), wishes in prop::collection::vec((a_wish(), any::<bool>()), 1..12)) {
        for (wish, automatic) in wishes {
            let asker = Asker { is_operator_allowed_to_relax: false, automatic };
            if let Ok(transition) = ask(&facts, &wish, &asker) {
                let next = facts.after(&transition, &asker);
                prop_assert!(!transition.relaxes);
                prop_assert!(is_no_laxer(&next, &facts), "{wish:?}: {facts:?} to {next:?}");
                facts = next;
            }
        }
    }

    #[test]
    fn what_becomes_laxer_is_said_to(facts in some_facts(), wish in a_wish()) {
        if let Ok(transition) = ask(&facts, &wish, &OPERATOR) {
            let next = facts.after(&transition, &OPERATOR);
            prop_assert!(transition.relaxes || is_no_laxer(&next, &facts), "{wish:?}: {facts:?} to {next:?}");
        }
    }

    #[test]
    fn nothing_exceeds_birth(mut facts in some_facts(), wishes in prop::collection::vec(a_wish(), 1..12)) {
        for wish in wishes {
            if let Ok(transition) = ask(&facts, &wish, &OPERATOR) {
                facts = facts.after(&transition, &OPERATOR);
                prop_assert!(strictness(facts.mode) >= strictness(facts.born));
                prop_assert!(facts.limits.is_within(facts.limits_born));
            }
        }
    }

    #[test]
    fn steps_taken_back_leave_everything_as_it_was(facts in some_facts(), wish in a_wish(), part in 0_usize..4) {
        if let Ok(transition) = ask(&facts, &wish, &OPERATOR) {
            let done = part.min(transition.steps.len());
            let mut changed = facts.clone();
            transition.steps[..done].iter().for_each(|step| changed.apply(step));
            transition.rollback(done).iter().for_each(|step| changed.apply(step));
            prop_assert_eq!(changed, facts);
        }
    }

    #[test]
    fn what_was_done_needs_no_doing(facts in some_facts(), wish in a_wish()) {
        if let Ok(transition) = ask(&facts, &wish, &OPERATOR) {
            let next = facts.after(&transition, &OPERATOR);
            let again = ask(&next, &wish, &PERSON).expect("as it is, for anybody");
            prop_assert!(again.is_empty(), "{again:?}");
        }
    }

    #[test]
    fn a_finding_never_relaxes_and_is_answered_once(
        facts in some_facts(), limits in some_limits(), shut in some_shut(), which in 0_usize..6, now_ms in any::<u64>(),
    ) {
        let tighten = Reaction::Tighten(limits);
        let all = [Reaction::Freeze, Reaction::CutNetwork, Reaction::Shut(shut), tighten, Reaction::Isolate, Reaction::Kill];
        let reactions = Reactions { high: all[which], ..REACTIONS };
        let high = Found { severity: Severity::High, title: "odd" };
        if let Some(answer) = on_finding(&facts, high, &reactions, &defaults, now_ms) {
            prop_assert!(!answer.transition.relaxes && !answer.transition.is_empty());
            let next = facts.after_finding(&answer);
            prop_assert!(next.state == State::Ended || is_no_laxer(&next, &facts));
            prop_assert!(next.hold_until_ms >= facts.hold_until_ms);
            prop_assert_eq!(on_finding(&next, high, &reactions, &defaults, now_ms), None);
        }
    }

    #[test]
    fn refusals_have_all_three_parts(facts in some_facts(), wish in a_wish(), asker in prop::sample::select(vec![PERSON, OPERATOR, PROGRAM])) {
        if let Err(refusal) = ask(&facts, &wish, &asker) {
            let text = refusal.to_string();
            let tried = format!("cannot {}: ", wish.words());
            prop_assert!(text.starts_with(&tried) && text.contains("; ") && !text.contains("  "), "{text}");
        }
    }
}

#[test]
fn what_was_broken_off_settles_at_the_tighter_place() {
    let born = developing();
    let frozen = done(&born, Wish::Freeze, PERSON);
    assert_eq!(born.settled(&frozen), frozen, "a freeze is carried through");
    assert_eq!(frozen.settled(&born), frozen, "a thaw is not");
    let isolated = done(&born, Wish::Mode(Mode::Isolation), PERSON);
    assert_eq!(born.settled(&isolated), isolated);
    assert_eq!(isolated.settled(&born), isolated);
    let limits = |memory, tasks| Limits { memory_bytes: Some(memory), tasks: Some(tasks), cpu_percent: None };
    let (one, other) = (Facts { limits: limits(1, 9), ..born.clone() }, Facts { limits: limits(2, 8), ..born });
    assert_eq!(one.settled(&other).limits, limits(1, 8), "each limit by itself");
}

#[test]
fn what_is_written_and_reached_far_away_counts_as_used() {
    let mut account = Account::default();
    let mut usage = |written: &[&str], peers: &[&str], cwd: &str| {
        account.written.counts = written.iter().map(|path| ((*path).to_owned(), 1)).collect();
        account.peers.counts = peers.iter().map(|peer| ((*peer).to_owned(), 1)).collect();
        Usage::of(&account, cwd, 0)
    };
    assert_eq!(
        usage(&["/srv/job/out", "/tmp/x", "/dev/null"], &["inet:127.0.0.1:80", "unix:/run/s"], "/srv/job"),
        Usage::default()
    );
    assert_eq!(usage(&["/srv/jobs/out", "/etc/x"], &[], "/srv/job").written_outside, 2);
    assert_eq!(usage(&["/srv/out"], &[], "/").written_outside, 1);
    assert!(usage(&[], &["inet:192.0.2.1:53"], "/").used_network);
    assert!(usage(&[], &["inet6:[2001:db8::1]:443"], "/").used_network);
    assert!(!usage(&[], &["inet6:[::1]:443"], "/").used_network);
}

#[test]
fn a_mode_that_promises_every_layer_is_not_for_a_lesser_level() {
    for (level, modes) in [
        (IsolationLevel::Partial, &[Mode::Isolation][..]),
        (IsolationLevel::None, &[Mode::Hybrid, Mode::Isolation][..]),
    ] {
        let facts = Facts { level, ..developing() };
        for mode in modes {
            let words = format!("isolation level {level}");
            refused(&facts, Wish::Mode(*mode), OPERATOR, &[&words, "start a new sandbox"]);
        }
        // A finding holds it all the same.
        let answer = found(&facts, Severity::Critical, 0).expect("it is frozen");
        assert_eq!(answer.transition.steps, [Step::Freeze]);
        assert!(answer.instead_of.is_some());
    }
    let partial = Facts { level: IsolationLevel::Partial, ..developing() };
    assert_eq!(done(&partial, Wish::Mode(Mode::Hybrid), PERSON).mode, Mode::Hybrid);
}

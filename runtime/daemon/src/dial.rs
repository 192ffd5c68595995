//! Changes of a sandbox that runs: planned by [`apex_core::control`], carried out by its keeper, taken back when a step fails, written down.

use std::sync::Arc;
use std::time::{Duration, Instant};

use apex_api::v1;
use apex_api::{Error, Kind};
use apex_core::access::Operation;
use apex_core::audit::Outcome;
use apex_core::control::{self, Answer, Asker, Found, Reached, Refusal, Step, Transition, Wish};
use apex_core::finding::Severity;
use apex_core::keep::ToKeeper;
use serde_json::{Value, json};

use crate::ask::Asked;
use crate::clock::now_ms;
use crate::metrics;
use crate::record::Record;
use crate::registry::Daemon;
use crate::sandbox::Sandbox;
use crate::say;
use crate::settle;

/// What became of the steps of a transition.
struct Carried {
    steps: Vec<v1::Step>,
    error: Option<String>,
    took: Duration,
}

/// Does what somebody wishes, if it may be.
pub async fn wish(
    daemon: &Daemon,
    sandbox: &Arc<Sandbox>,
    wish: Wish,
    asker: Asker,
    asked: &Asked,
    reason: &str,
) -> Result<v1::Transition, Error> {
    let _turn = sandbox.turn.lock().await;
    let facts = sandbox.record().facts;
    let transition = match control::plan(&facts, &wish, &asker, &|mode| daemon.defaults(mode), now_ms()) {
        Ok(transition) => transition,
        Err(refusal) => return refused(daemon, sandbox, &facts, &wish, asked, &refusal),
    };
    // Taken before it is used, and given back after it is not.
    if facts.has_limits
        && let Err(words) = sandbox.room_for(facts.after(&transition, &asker).limits)
    {
        let words = format!("cannot {}: {words}", wish.words());
        daemon.metrics.count(&metrics::TRANSITIONS, &[wish.kind(), "refused"]);
        daemon.write_down(asked, &sandbox.record(), Outcome::Refused, &words, json!(null), json!(null))?;
        return Err(Error::new(Kind::Exhausted, words));
    }
    let before = told(&facts);
    // Its end is told by the keeper, with how it ended.
    let is_end = matches!(wish, Wish::Kill);
    let wanted = facts.after(&transition, &asker);
    if !is_end && let Err(error) = settle::begin(daemon, sandbox, &wanted) {
        // What cannot be noted is not relaxed; what makes a sandbox do less needs no room on a disk.
        if transition.relaxes {
            return Err(Error::new(Kind::Unavailable, format!("{error:#}; nothing was changed")));
        }
        say::about(&sandbox.id, "dial", format_args!("{error:#}"));
    }
    let carried = carry_out(sandbox, &transition).await;
    tell(daemon, wish.kind(), &carried);
    let after = if carried.error.is_none() { wanted } else { facts.clone() };
    settle_room(sandbox, &after);
    let now_in_force = Some(&after).filter(|_| carried.error.is_none());
    let stored = if is_end { Ok(()) } else { settle::end(daemon, sandbox, now_in_force) };
    let outcome = if carried.error.is_none() { Outcome::Allowed } else { Outcome::Failed };
    let words = carried.error.clone().unwrap_or_else(|| reason.to_owned());
    daemon.write_down(asked, &sandbox.record(), outcome, &words, before, told(&after))?;
    stored.map_err(|error| Error::new(Kind::Internal, format!("it is in force, but not kept: {error:#}")))?;
    Ok(v1::Transition {
        from: transition.from.name().to_owned(),
        to: transition.to.name().to_owned(),
        applied: carried.error.is_none(),
        steps: carried.steps,
        words: carried.error.unwrap_or_default(),
        ..Default::default()
    })
}

fn refused(
    daemon: &Daemon,
    sandbox: &Sandbox,
    facts: &control::Facts,
    wish: &Wish,
    asked: &Asked,
    refusal: &Refusal,
) -> Result<v1::Transition, Error> {
    let words = refusal.to_string();
    daemon.metrics.count(&metrics::TRANSITIONS, &[wish.kind(), "refused"]);
    daemon.write_down(asked, &sandbox.record(), Outcome::Refused, &words, json!(null), json!(null))?;
    if let (Refusal::BeyondCeiling { .. }, Wish::Mode(mode)) = (refusal, wish) {
        return Ok(v1::Transition {
            from: facts.mode.name().to_owned(),
            to: mode.name().to_owned(),
            applied: false,
            steps: Vec::new(),
            successor_needed: true,
            words,
            ..Default::default()
        });
    }
    let kind = match refusal {
        Refusal::NotPermitted { .. } | Refusal::HeldDown { .. } | Refusal::Gated { .. } => Kind::Denied,
        Refusal::ZeroLimit { .. } => Kind::Invalid,
        Refusal::NotRunning { .. }
        | Refusal::BeyondCeiling { .. }
        | Refusal::NoDial { .. }
        | Refusal::NoSwitches { .. }
        | Refusal::NoReports { .. }
        | Refusal::NoLimits { .. } => Kind::Conflict,
    };
    Err(Error::new(kind, words))
}

/// Answers a finding, by what was configured for this sandbox.
pub async fn react(daemon: &Daemon, sandbox: &Arc<Sandbox>, severity: Severity, title: &str) {
    let _turn = sandbox.turn.lock().await;
    let record = sandbox.record();
    let found = Found { severity, title };
    let defaults = |mode| daemon.defaults(mode);
    let Some(answer) = control::on_finding(&record.facts, found, &record.reactions, &defaults, now_ms()) else {
        return;
    };
    carry_answer(daemon, sandbox, &record, &answer, ("finding", Operation::ModeTighten)).await;
}

/// Answers a limit that was reached, by what was configured for this sandbox. What is only told is written down as well.
pub async fn react_to_limit(daemon: &Daemon, sandbox: &Arc<Sandbox>, reached: &Reached) {
    let _turn = sandbox.turn.lock().await;
    let record = sandbox.record();
    let defaults = |mode| daemon.defaults(mode);
    let hold_down_ms = record.reactions.hold_down_ms;
    if let Some(answer) = control::on_limit(&record.facts, reached, hold_down_ms, &defaults, now_ms()) {
        return carry_answer(daemon, sandbox, &record, &answer, ("limit", Operation::Limits)).await;
    }
    let words = format!("{} ({}: nothing more is done)", reached.words, reached.action.name());
    let asked = Asked::by_itself(Operation::Limits);
    if let Err(error) = daemon.write_down(&asked, &record, Outcome::Allowed, &words, json!(null), json!(null)) {
        say::about(&sandbox.id, "dial", format_args!("{error}"));
    }
}

async fn carry_answer(
    daemon: &Daemon,
    sandbox: &Arc<Sandbox>,
    record: &Record,
    answer: &Answer,
    (kind, operation): (&str, Operation),
) {
    let after = record.facts.after_finding(answer);
    let is_end = answer.transition.steps.contains(&Step::Kill);
    // A finding that a dying daemon has not answered to the end is answered anew by the next: it needs no note, and must wait for no disk.
    let is_finding = kind == "finding";
    if !is_end
        && !is_finding
        && let Err(error) = settle::begin(daemon, sandbox, &after)
    {
        say::about(&sandbox.id, "dial", format_args!("{error:#}"));
    }
    let carried = carry_out(sandbox, &answer.transition).await;
    tell(daemon, kind, &carried);
    settle_room(sandbox, if carried.error.is_none() { &after } else { &record.facts });
    let outcome = if carried.error.is_none() { Outcome::Allowed } else { Outcome::Failed };
    let instead = answer.instead_of.as_ref().map(|refusal| format!(" (frozen instead: {refusal})")).unwrap_or_default();
    let words = format!(
        "{kind}: {}{instead}{}",
        answer.because,
        carried.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default()
    );
    let in_force = Some(&after).filter(|_| carried.error.is_none());
    // How it ended is told by the keeper; that a finding ended it is known here alone.
    let note = |record: &mut Record| record.facts.tightened_by.clone_from(&after.tightened_by);
    let stored = match (is_end, in_force) {
        (false, _) => settle::end(daemon, sandbox, in_force),
        (true, Some(_)) => sandbox.update(&daemon.store, note),
        (true, None) => Ok(()),
    };
    if let Err(error) = stored {
        say::about(&sandbox.id, "dial", format_args!("{error:#}"));
    }
    let before = told(&record.facts);
    let mut now = told(&after);
    now["steps"] = json!(answer.transition.steps);
    if let Err(error) = daemon.write_down(&Asked::by_itself(operation), record, outcome, &words, before, now) {
        say::about(&sandbox.id, "dial", format_args!("{error}"));
    }
}

/// Where the dials stand, for the audit log.
pub fn told(facts: &control::Facts) -> Value {
    json!({"mode": facts.mode, "limits": facts.limits, "network_cut": facts.network_cut, "frozen": facts.frozen, "shut": facts.shut})
}

fn tell(daemon: &Daemon, kind: &str, carried: &Carried) {
    let outcome = if carried.error.is_none() { "applied" } else { "failed" };
    daemon.metrics.count(&metrics::TRANSITIONS, &[kind, outcome]);
    daemon.metrics.observe(&metrics::TRANSITION_SECONDS, &[kind], carried.took);
}

/// What is not in force gives its room back: that always works.
fn settle_room(sandbox: &Sandbox, facts: &control::Facts) {
    if facts.has_limits
        && let Err(words) = sandbox.room_for(facts.limits)
    {
        say::about(&sandbox.id, "dial", format_args!("{words}"));
    }
}

async fn carry_out(sandbox: &Sandbox, transition: &Transition) -> Carried {
    let began = Instant::now();
    let mut steps = Vec::new();
    for (done, step) in transition.steps.iter().enumerate() {
        match follow(sandbox, step).await {
            Ok(words) => steps.push(v1::Step { what: what(step), done: true, words }),
            Err(words) => {
                steps.push(v1::Step { what: what(step), done: false, words: words.clone() });
                let mut error = format!("{}: {words}", what(step));
                for back in transition.rollback(done) {
                    match follow(sandbox, &back).await {
                        Ok(words) => {
                            steps.push(v1::Step { what: format!("taken back: {}", what(&back)), done: true, words })
                        }
                        Err(words) => {
                            error = format!("{error}; and taking back: {}: {words}", what(&back));
                            steps.push(v1::Step { what: what(&back), done: false, words });
                        }
                    }
                }
                return Carried { steps, error: Some(error), took: began.elapsed() };
            }
        }
    }
    Carried { steps, error: None, took: began.elapsed() }
}

/// Has the keeper carry out one step.
pub async fn follow(sandbox: &Sandbox, step: &Step) -> Result<String, String> {
    let said = match step {
        Step::Limits { to, .. } => ToKeeper::Limit { limits: *to },
        Step::Network { cut } => ToKeeper::Cut { cut: *cut },
        Step::Shut { to, .. } => ToKeeper::Shut { shut: *to },
        Step::Freeze => ToKeeper::Freeze { frozen: true },
        Step::Thaw => ToKeeper::Freeze { frozen: false },
        Step::Kill => ToKeeper::Kill,
    };
    match sandbox.ask(&said).await? {
        apex_core::keep::FromKeeper::Done { words } => Ok(words),
        other => Err(format!("its keeper answered {other:?}")),
    }
}

fn what(step: &Step) -> String {
    match step {
        Step::Limits { to, .. } => format!("limits: {to}"),
        Step::Network { cut: true } => "cut the network off".to_owned(),
        Step::Network { cut: false } => "give the network back".to_owned(),
        Step::Shut { to, .. } => format!("switches: {to}"),
        Step::Freeze => "freeze".to_owned(),
        Step::Thaw => "thaw".to_owned(),
        Step::Kill => "end".to_owned(),
    }
}

//! Changes of a sandbox that runs: planned by [`apex_core::control`], carried out by its keeper, taken back when a step fails, written down.

use std::sync::Arc;

use apex_api::v1;
use apex_api::{Error, Kind};
use apex_core::access::Operation;
use apex_core::audit::Outcome;
use apex_core::control::{self, Asker, Found, Refusal, Step, Transition, Wish};
use apex_core::finding::Severity;
use apex_core::keep::ToKeeper;
use serde_json::json;

use crate::ask::Asked;
use crate::clock::now_ms;
use crate::registry::Daemon;
use crate::sandbox::Sandbox;
use crate::say;

/// What became of the steps of a transition.
struct Carried {
    steps: Vec<v1::Step>,
    error: Option<String>,
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
    let before =
        json!({"mode": facts.mode, "limits": facts.limits, "network_cut": facts.network_cut, "frozen": facts.frozen});
    let carried = carry_out(sandbox, &transition).await;
    let after = if carried.error.is_none() { facts.after(&transition, &asker) } else { facts.clone() };
    // Its end is told by the keeper, with how it ended.
    let is_end = matches!(wish, Wish::Kill);
    let stored = if carried.error.is_none() && !is_end {
        sandbox.update(&daemon.store, |record| record.facts = after.clone())
    } else {
        Ok(())
    };
    let outcome = if carried.error.is_none() { Outcome::Allowed } else { Outcome::Failed };
    let words = carried.error.clone().unwrap_or_else(|| reason.to_owned());
    let now =
        json!({"mode": after.mode, "limits": after.limits, "network_cut": after.network_cut, "frozen": after.frozen});
    daemon.write_down(asked, &sandbox.record(), outcome, &words, before, now)?;
    stored.map_err(|error| Error::new(Kind::Internal, format!("{error:#}")))?;
    Ok(v1::Transition {
        from: transition.from.name().to_owned(),
        to: transition.to.name().to_owned(),
        applied: carried.error.is_none(),
        steps: carried.steps,
        successor_needed: false,
        words: carried.error.unwrap_or_default(),
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
    daemon.write_down(asked, &sandbox.record(), Outcome::Refused, &words, json!(null), json!(null))?;
    if let (Refusal::BeyondCeiling { .. }, Wish::Mode(mode)) = (refusal, wish) {
        return Ok(v1::Transition {
            from: facts.mode.name().to_owned(),
            to: mode.name().to_owned(),
            applied: false,
            steps: Vec::new(),
            successor_needed: true,
            words,
        });
    }
    let kind = match refusal {
        Refusal::NotPermitted { .. } | Refusal::HeldDown { .. } | Refusal::Gated { .. } => Kind::Denied,
        Refusal::ZeroLimit { .. } => Kind::Invalid,
        Refusal::NotRunning { .. }
        | Refusal::BeyondCeiling { .. }
        | Refusal::NoDial { .. }
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
    let carried = carry_out(sandbox, &answer.transition).await;
    let after = record.facts.after_finding(&answer);
    let outcome = if carried.error.is_none() { Outcome::Allowed } else { Outcome::Failed };
    let instead = answer.instead_of.as_ref().map(|refusal| format!(" (frozen instead: {refusal})")).unwrap_or_default();
    let words = format!(
        "finding: {title}{instead}{}",
        carried.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default()
    );
    if carried.error.is_none()
        && !answer.transition.steps.contains(&Step::Kill)
        && let Err(error) = sandbox.update(&daemon.store, |record| record.facts = after.clone())
    {
        say::about(&sandbox.id, "store", format_args!("{error:#}"));
    }
    let before =
        json!({"mode": record.facts.mode, "frozen": record.facts.frozen, "network_cut": record.facts.network_cut});
    let now = json!({"mode": after.mode, "frozen": after.frozen, "network_cut": after.network_cut, "steps": answer.transition.steps});
    if let Err(error) =
        daemon.write_down(&Asked::by_itself(Operation::ModeTighten), &record, outcome, &words, before, now)
    {
        say::about(&sandbox.id, "audit", format_args!("{error}"));
    }
}

async fn carry_out(sandbox: &Sandbox, transition: &Transition) -> Carried {
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
                return Carried { steps, error: Some(error) };
            }
        }
    }
    Carried { steps, error: None }
}

async fn follow(sandbox: &Sandbox, step: &Step) -> Result<String, String> {
    let said = match step {
        Step::Limits { to, .. } => ToKeeper::Limit { limits: *to },
        Step::Network { cut } => ToKeeper::Cut { cut: *cut },
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
        Step::Freeze => "freeze".to_owned(),
        Step::Thaw => "thaw".to_owned(),
        Step::Kill => "end".to_owned(),
    }
}

//! What becomes of a transition in whose middle a daemon ended.
//!
//! A transition is noted in the record before its first step, and taken out with its last. The next daemon finds the note of one that was broken off, and settles it:
//! each dial at the tighter of its two places ([`Facts::settled`]), so that the record says again what is in force.

use std::sync::Arc;

use apex_core::access::Operation;
use apex_core::audit::Outcome;
use apex_core::control::Facts;
use apex_core::keep::ToKeeper;

use crate::ask::Asked;
use crate::dial;
use crate::registry::Daemon;
use crate::sandbox::Sandbox;
use crate::say;

/// Notes what a sandbox is about to become.
pub fn begin(daemon: &Daemon, sandbox: &Sandbox, after: &Facts) -> anyhow::Result<()> {
    sandbox.update(&daemon.store, |record| record.under_way = Some(after.clone()))
}

/// Notes what it has become; `None` when that is what it was. One that has ended meanwhile stays what it is.
pub fn end(daemon: &Daemon, sandbox: &Sandbox, after: Option<&Facts>) -> anyhow::Result<()> {
    sandbox.update(&daemon.store, |record| {
        record.under_way = None;
        if let Some(after) = after.filter(|_| !record.is_over()) {
            record.facts = after.clone();
        }
    })
}

/// Settles what was broken off, if anything was.
pub async fn settle(daemon: &Daemon, sandbox: &Arc<Sandbox>) {
    let _turn = sandbox.turn.lock().await;
    let record = sandbox.record();
    let Some(after) = record.under_way.as_ref().filter(|_| !record.is_over()) else { return };
    let settled = record.facts.settled(after);
    let mut error = String::new();
    for said in dials(&record.facts, after, &settled) {
        if let Err(words) = sandbox.ask(&said).await {
            error = format!("; one dial did not turn: {words}");
            say::about(&sandbox.id, "settle", format_args!("settling what was broken off: {words}"));
        }
    }
    let outcome = if error.is_empty() { Outcome::Allowed } else { Outcome::Failed };
    let words =
        format!("apexd ended in the middle of a change; each dial stands at the tighter of its two places now{error}");
    let asked = Asked::by_itself(Operation::ModeTighten);
    let written = daemon.write_down(&asked, &record, outcome, &words, dial::told(&record.facts), dial::told(&settled));
    let stored = end(daemon, sandbox, Some(&settled));
    if error.is_empty() && settled.has_limits {
        // They are in force: where the budget has shrunk meanwhile, it is what is short.
        let _ = sandbox.room_for(settled.limits);
    }
    let errors = [written.err().map(|error| error.to_string()), stored.err().map(|error| format!("{error:#}"))];
    for error in errors.into_iter().flatten() {
        say::about(&sandbox.id, "settle", format_args!("{error}"));
    }
}

/// The dials that may stand anywhere, and what they are told.
fn dials(before: &Facts, after: &Facts, settled: &Facts) -> Vec<ToKeeper> {
    let mut said = Vec::new();
    if before.limits != after.limits {
        said.push(ToKeeper::Limit { limits: settled.limits });
    }
    if before.network_cut != after.network_cut {
        said.push(ToKeeper::Cut { cut: settled.network_cut });
    }
    if before.shut != after.shut {
        said.push(ToKeeper::Shut { shut: settled.shut });
    }
    if before.is_frozen() != after.is_frozen() {
        said.push(ToKeeper::Freeze { frozen: settled.is_frozen() });
    }
    said
}

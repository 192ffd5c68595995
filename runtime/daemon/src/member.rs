//! The sandboxes of a member of a group: started, ended and cleared away, each act in the name of the group's owner and written down.

use std::sync::Arc;
use std::time::Duration;

use apex_api::Peer;
use apex_core::access::Operation;
use apex_core::audit::Outcome;
use apex_core::control::State;
use apex_core::keep::ToKeeper;
use serde_json::json;

use crate::ask::Asked;
use crate::group::Group;
use crate::record::Record;
use crate::registry::Daemon;
use crate::sandbox::Sandbox;
use crate::say;
use crate::start::{self, Input};

/// Sandboxes of a member that have ended and are kept, with their logs.
pub const ENDED_KEPT: usize = 3;
/// Between two attempts to end one.
const KILL_AGAIN: Duration = Duration::from_secs(30);
const SIGTERM: i32 = 15;

/// The sandboxes of a member that there are, oldest first. Names alone do not make one: somebody else's are not meant.
pub fn all(daemon: &Daemon, group: &Group, member: usize) -> Vec<Arc<Sandbox>> {
    let name = group.member_name(member);
    let is_meant = |sandbox: &Arc<Sandbox>| {
        let record = sandbox.record();
        (record.group == group.asked.name) && record.member == name && record.uid == group.asked.uid
    };
    let mut found: Vec<_> = daemon.all().into_iter().filter(is_meant).collect();
    // Whatever the clock says: what lives is the newest.
    found.sort_by_key(|sandbox| !sandbox.record().is_over());
    found
}

/// Whether it ended as a program does that has done its work.
pub fn is_well(record: &Record) -> bool {
    record.facts.state == State::Ended && record.exit_code == Some(0) && record.ending == "exited"
}

/// How it ended, in words; nothing while it runs.
pub fn how(record: &Record) -> String {
    match (record.is_over(), &record.error, record.exit_code) {
        (false, ..) => String::new(),
        (true, error, _) if !error.is_empty() => error.clone(),
        (true, _, Some(code)) => format!("{}, code {code}", record.ending),
        (true, _, None) => record.ending.clone(),
    }
}

/// Starts one; its id once it runs, or has failed to.
pub async fn start(daemon: Arc<Daemon>, group: Arc<Group>, member: usize) -> Result<String, String> {
    let _starting = group.starting[member].lock().await;
    let begun = begin(&daemon, &group, member).await;
    if begun.is_err() {
        // One that did not stand in time may yet: it must not be one that nobody knows.
        for sandbox in all(&daemon, &group, member) {
            end(&daemon, &sandbox).await;
        }
    }
    begun
}

async fn begin(daemon: &Arc<Daemon>, group: &Group, member: usize) -> Result<String, String> {
    let request = &group.asked.members[member].sandbox;
    let state = group.state();
    let owner = Peer { uid: group.asked.uid, gid: group.asked.gid, pid: 0 };
    let words = |error: apex_api::Error| error.words;
    refuse_tightened(daemon, &state.members[member].sandbox).await?;
    let mut record = start::record_of(daemon, owner, request).map_err(words)?;
    record.group.clone_from(&group.asked.name);
    record.member = group.member_name(member);
    record.predecessor.clone_from(&state.members[member].sandbox);
    // The owner must be allowed to; who acts is the daemon.
    daemon.judge_making(owner, Operation::Create, &record).map_err(words)?;
    let mut asked = Asked::by_itself(Operation::Create);
    let (name, restarts) = (&record.member, state.machine.restarts(member));
    asked.reason = match restarts {
        0 => format!("group {}: start of {name}", group.asked.name),
        _ => {
            let (before, how) = (&record.predecessor, &state.members[member].words);
            format!("group {}: restart {restarts} of {name} in the place of {before}: {how}", group.asked.name)
        }
    };
    let sandbox = start::start_as(daemon, owner, request, record, &asked, Input::None).await.map_err(words)?;
    Ok(sandbox.id.clone())
}

/// A new sandbox in the place of one that a finding tightened would be laxer than that, and nothing relaxes it but somebody who may.
async fn refuse_tightened(daemon: &Daemon, before: &str) -> Result<(), String> {
    let Some(sandbox) = daemon.get(before) else { return Ok(()) };
    // Whoever answers a finding holds it: what ended it may not be written down yet.
    let _turn = sandbox.turn.lock().await;
    match sandbox.record().facts.tightened_by {
        Some(finding) => Err(format!(
            "not started anew: {before} was tightened by a finding ({finding}); look at it (`apex findings {before}`), then bring the group down, remove it, and bring the group up"
        )),
        None => Ok(()),
    }
}

/// Asks one to end, and ends it when it does not.
pub async fn stop(daemon: Arc<Daemon>, group: Arc<Group>, member: usize) {
    let id = group.state().members[member].sandbox.clone();
    let Some(sandbox) = daemon.get(&id) else { return };
    let within = Duration::from_millis(group.asked.members[member].stop_within_ms);
    // One that cannot be asked is ended.
    let asked = sandbox.ask(&ToKeeper::Signal { number: SIGTERM }).await;
    let reason = format!("group {}: end of {}", group.asked.name, group.member_name(member));
    write_down(&daemon, &sandbox, Operation::Signal, &reason);
    if asked.is_err() || tokio::time::timeout(within, sandbox.until(Record::is_over)).await.is_err() {
        end(&daemon, &sandbox).await;
    }
}

/// Ends one, and does not give up.
async fn end(daemon: &Daemon, sandbox: &Sandbox) {
    if !sandbox.record().is_over() {
        write_down(daemon, sandbox, Operation::Kill, "it did not end when it was asked to");
    }
    // Without an end: while something of it lives, it cannot have a successor.
    while !sandbox.record().is_over() {
        // An error means that it is about to be gone, or that its keeper does not listen: then again.
        let _ = sandbox.ask(&ToKeeper::Kill).await;
        let _ = tokio::time::timeout(KILL_AGAIN, sandbox.until(Record::is_over)).await;
    }
}

/// Forgets those that ended long ago.
pub fn clear_away(daemon: &Daemon, group: &Group, member: usize) {
    let current = group.state().members[member].sandbox.clone();
    let ended: Vec<_> = all(daemon, group, member)
        .into_iter()
        .filter(|sandbox| sandbox.id != current && sandbox.record().is_over())
        .collect();
    for sandbox in &ended[..ended.len().saturating_sub(ENDED_KEPT)] {
        let reason = format!("group {}: the last {ENDED_KEPT} that ended are kept", group.asked.name);
        if !write_down(daemon, sandbox, Operation::Remove, &reason) {
            continue;
        }
        if let Err(error) = daemon.forget(sandbox) {
            say::about(&sandbox.id, "group", format_args!("{error:#}"));
        }
    }
}

fn write_down(daemon: &Daemon, sandbox: &Sandbox, operation: Operation, reason: &str) -> bool {
    let asked = Asked::by_itself(operation);
    let written = daemon.write_down(&asked, &sandbox.record(), Outcome::Allowed, reason, json!(null), json!(null));
    if let Err(error) = &written {
        say::about(&sandbox.id, "group", format_args!("{error}"));
    }
    written.is_ok()
}

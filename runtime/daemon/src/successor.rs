//! A successor: a new sandbox in the place of one whose ceiling is too low, made from the same request in another mode.
//!
//! Order: who asks is judged as for a new sandbox in that mode; the old one is frozen; the new one is started; the old one is ended. When the new one does not come to be, it is
//! forgotten and the old one goes on. What is the host's is as it was; what was the old sandbox's alone ends with it, and the answer says both. A daemon that
//! dies in between leaves the old one frozen: nothing goes on twice.

use std::sync::Arc;
use std::time::Duration;

use apex_api::v1::{self, CreateRequest};
use apex_api::{Error, Kind, Peer};
use apex_core::access::Operation;
use apex_core::audit::Outcome;
use apex_core::control::{Asker, Facts, State, Step, Transition};
use apex_core::keep::ToKeeper;
use apex_core::policy::Mode;
use serde_json::json;

use crate::ask::Asked;
use crate::dial;
use crate::record::Record;
use crate::registry::Daemon;
use crate::sandbox::Sandbox;
use crate::say;
use crate::settle;
use crate::start::{self, Input};

/// How long one that is ended may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(30);
/// What the successor has.
const CARRIED: [&str; 3] = [
    "the files of the host that it was granted, its working directory among them, as they are now",
    "the request that it was made from: command, policy, profile, grants, variables, limits, watching and reactions",
    "its name and labels",
];
/// What it has not.
const LEFT: [&str; 4] = [
    "processes, memory, open files and connections: the command starts anew",
    "private directories (/tmp and what else is in memory)",
    "standard input, terminal and whoever is attached; output, events and findings stay with the predecessor until that is removed",
    "limits, switches and a tightening that were set since the start",
];

/// What both parts of the change are about.
struct Change<'c> {
    daemon: &'c Arc<Daemon>,
    old: &'c Arc<Sandbox>,
    before: Record,
    mode: Mode,
    steps: Vec<v1::Step>,
}

/// Puts a successor in the place of `old`, for somebody who may relax it. Holds the turn of `old`.
pub async fn succeed(
    daemon: &Arc<Daemon>,
    peer: Peer,
    old: &Arc<Sandbox>,
    mode: Mode,
    asked: &Asked,
    reason: &str,
) -> Result<v1::Transition, Error> {
    let _turn = old.turn.lock().await;
    let before = old.record();
    let request = request_of(daemon, peer, &before, mode)?;
    let mut record = start::record_of(daemon, peer, &request)?;
    record.predecessor.clone_from(&before.id);
    let as_new = daemon.judge_making(peer, Operation::Create, &record)?;
    let mut change = Change { daemon, old, before, mode, steps: Vec::new() };
    let id = record.id.clone();
    let outcome = match change.freeze().await {
        Ok(()) => change.start(peer, &request, record, &as_new).await,
        Err(words) => Err(words),
    };
    let words = match outcome {
        Ok(()) => change.end(&id).await,
        Err(words) => Some(change.take_back(&id, words).await),
    };
    // One that did not come to be was forgotten.
    let is_applied = daemon.get(&id).is_some();
    let outcome = if is_applied { Outcome::Allowed } else { Outcome::Failed };
    let told = words.clone().unwrap_or_else(|| reason.to_owned());
    let after = json!({"successor": if is_applied { id.as_str() } else { "" }, "mode": mode.name()});
    daemon.write_down(asked, &change.before, outcome, &told, dial::told(&change.before.facts), after)?;
    Ok(change.answer(is_applied.then_some(id), words.unwrap_or_default()))
}

/// What the old one was made from, in the new mode.
fn request_of(daemon: &Daemon, peer: Peer, before: &Record, mode: Mode) -> Result<CreateRequest, Error> {
    let conflict = |words: &str| Err(Error::new(Kind::Conflict, format!("cannot start a successor: {words}")));
    if !before.is_alive() {
        return conflict("the sandbox does not run; start a new one");
    }
    if !before.group.is_empty() {
        return conflict("it is a member of a group, which would start it anew; change the mode in the group's file");
    }
    // As somebody else it would have that one's files; as the asker it would have theirs.
    if before.uid != peer.uid {
        let words = "a successor is started as whoever asks, and the sandbox is another user's; have its owner ask";
        return Err(Error::new(Kind::Denied, format!("cannot start a successor: {words}")));
    }
    let made_from =
        daemon.store.request(&before.id).map_err(|error| Error::new(Kind::Internal, format!("{error:#}")))?;
    let Some(request) = made_from else {
        return conflict("what it was made from is not known, since an earlier apexd made it; start a new one");
    };
    Ok(CreateRequest {
        name: before.name.clone(),
        mode: mode.name().to_owned(),
        pool: false,
        warm: false,
        // Not while the old one stands still.
        wait_for_room: String::new(),
        ..request
    })
}

impl Change<'_> {
    fn note(&mut self, what: &str, outcome: Result<String, String>) -> Result<(), String> {
        let (done, words) = match &outcome {
            Ok(words) => (true, words.clone()),
            Err(words) => (false, words.clone()),
        };
        self.steps.push(v1::Step { what: what.to_owned(), done, words });
        outcome.map(drop).map_err(|words| format!("{what}: {words}"))
    }

    /// So that nothing of it goes on beside its successor, in the same files.
    async fn freeze(&mut self) -> Result<(), String> {
        if self.before.facts.is_frozen() {
            return Ok(());
        }
        let frozen = turn(self.daemon, self.old, &self.before.facts, Step::Freeze).await;
        self.note("freeze the predecessor", frozen)
    }

    async fn start(
        &mut self,
        peer: Peer,
        request: &CreateRequest,
        record: Record,
        asked: &Asked,
    ) -> Result<(), String> {
        let what = format!("start the successor {} in mode {}", record.id, self.mode.name());
        let started = start::start_as(self.daemon, peer, request, record, asked, Input::None).await;
        let outcome = match started {
            Ok(new) => {
                let record = new.record();
                // A command that has ended by now did run.
                match matches!(record.facts.state, State::Failed | State::Lost) {
                    true => Err(record.error),
                    false => Ok(format!("it is {}", record.facts.state.name())),
                }
            }
            Err(error) => Err(error.words),
        };
        self.note(&what, outcome)
    }

    /// The old one has a successor: it ends. What of that does not work is said.
    async fn end(&mut self, id: &str) -> Option<String> {
        let noted = self.old.update(&self.daemon.store, |record| record.successor = id.to_owned());
        if let Err(error) = noted {
            say::about(&self.old.id, "successor", format_args!("{error:#}"));
        }
        let killed = self.old.ask(&ToKeeper::Kill).await.map(drop);
        let gone = tokio::time::timeout(GONE_WITHIN, self.old.until(Record::is_over)).await;
        let outcome = match (gone, killed) {
            (Ok(_), _) => Ok("it is ended".to_owned()),
            (Err(_), Err(words)) => Err(words),
            (Err(_), Ok(())) => Err("it is killed and not gone yet".to_owned()),
        };
        self.note("end the predecessor", outcome).err()
    }

    /// The new one did not come to be: the old one goes on.
    async fn take_back(&mut self, id: &str, mut words: String) -> String {
        if let Some(new) = self.daemon.get(id) {
            if !new.record().is_over() {
                let _ = new.ask(&ToKeeper::Kill).await;
                let _ = tokio::time::timeout(GONE_WITHIN, new.until(Record::is_over)).await;
            }
            let _ = tokio::time::timeout(GONE_WITHIN, new.until_gone()).await;
            self.daemon.discard(&new);
        }
        let facts = self.old.record().facts;
        if facts.is_frozen() && !self.before.facts.is_frozen() {
            let thawed = turn(self.daemon, self.old, &facts, Step::Thaw).await;
            if let Err(error) = self.note("taken back: thaw the predecessor", thawed) {
                words = format!("{words}; and {error}");
            }
        }
        words
    }

    fn answer(self, successor: Option<String>, words: String) -> v1::Transition {
        let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
        let (carried_over, left_behind) = match &successor {
            Some(_) => (lines(&CARRIED), lines(&LEFT)),
            None => (Vec::new(), Vec::new()),
        };
        v1::Transition {
            from: self.before.facts.mode.name().to_owned(),
            to: self.mode.name().to_owned(),
            applied: successor.is_some(),
            steps: self.steps,
            successor_needed: false,
            words,
            successor: successor.unwrap_or_default(),
            carried_over,
            left_behind,
        }
    }
}

/// One step of the old one's dial, noted in its record.
async fn turn(daemon: &Daemon, sandbox: &Sandbox, facts: &Facts, step: Step) -> Result<String, String> {
    let transition = Transition { from: facts.mode, to: facts.mode, steps: vec![step], relaxes: false };
    let after = facts.after(&transition, &Asker::AUTOMATIC);
    settle::begin(daemon, sandbox, &after).map_err(|error| format!("{error:#}"))?;
    let done = dial::follow(sandbox, &step).await;
    let in_force = Some(&after).filter(|_| done.is_ok());
    settle::end(daemon, sandbox, in_force).map_err(|error| format!("{error:#}"))?;
    done
}

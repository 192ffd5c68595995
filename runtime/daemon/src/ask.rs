//! Who asks, and whether they may ([`apex_core::access`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use apex_api::{Error, Kind, Peer};
use apex_core::access::{self, Caller, Operation, Question, Role};
use apex_core::audit::{Actor, Outcome, Record as Line, Target, only_reads};
use apex_core::policy::Mode;
use serde_json::{Value, json};

use crate::clock::now_ms;
use crate::record::Record;
use crate::registry::{Daemon, nobody};
use crate::sandbox::Sandbox;
use crate::who;

/// A question that was allowed, with who asked it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub operation: Operation,
    pub peer: Peer,
    pub roles: BTreeSet<Role>,
    /// The rule that allowed it.
    pub reason: String,
}

impl Asked {
    /// By the daemon itself, on a finding.
    pub fn by_itself(operation: Operation) -> Asked {
        let uid = nix::unistd::geteuid().as_raw();
        Asked { operation, peer: Peer { uid, gid: 0, pid: 0 }, roles: BTreeSet::new(), reason: String::new() }
    }
}

/// What the answer may depend on.
#[derive(Default)]
pub struct About<'a> {
    pub record: Option<&'a Record>,
    /// The mode that is asked for, where that is another.
    pub mode: Option<Mode>,
}

impl Daemon {
    /// Judges, and writes a refusal down.
    pub fn judge(&self, peer: Peer, operation: Operation, about: About<'_>) -> Result<Asked, Error> {
        let roles = self.roles(peer);
        let (decision, words) = self.decide(peer, &roles, operation, &about);
        let asked = Asked { operation, peer, roles, reason: words };
        if decision {
            self.make_room(operation)?;
            return Ok(asked);
        }
        let stranger = Record::new(String::new(), peer.uid, Mode::Isolation, 0);
        let words = asked.reason.clone();
        self.write_down(&asked, about.record.unwrap_or(&stranger), Outcome::Refused, &words, json!(null), json!(null))?;
        Err(Error::new(Kind::Denied, words))
    }

    /// Judges the making of a sandbox, which at less than the full isolation level takes a permission more.
    pub fn judge_making(&self, peer: Peer, operation: Operation, record: &Record) -> Result<Asked, Error> {
        let about = || About { record: Some(record), mode: None };
        let asked = self.judge(peer, operation, about())?;
        if let Some(level) = Operation::of_level(record.facts.level) {
            self.judge(peer, level, about())?;
        }
        Ok(asked)
    }

    /// The sandbox that somebody means, of those that they see. Else any, so that their attempt is judged and written down; they are told that it is not there.
    pub fn find_for(&self, peer: Peer, word: &str) -> Result<Arc<Sandbox>, Error> {
        match self.find_among(word, &self.may_of(peer, Operation::List)) {
            Err(error) if error.kind == Kind::NotFound => self.find(word).map_err(|_| nobody(word)),
            found => found,
        }
    }

    /// Judges what is asked about one sandbox. To whoever may not see it, it is not there.
    pub fn judge_about(
        &self,
        peer: Peer,
        word: &str,
        record: &Record,
        operation: Operation,
        mode: Option<Mode>,
    ) -> Result<Asked, Error> {
        let judged = self.judge(peer, operation, About { record: Some(record), mode });
        judged.map_err(|error| if self.may(peer, Operation::List, record) { error } else { nobody(word) })
    }

    /// What changes something is written down when it is done: room for that is made before. Without it nothing is changed, but for what makes a
    /// sandbox do less: a full disk must not be a way to go on.
    fn make_room(&self, operation: Operation) -> Result<(), Error> {
        if only_reads(operation) {
            return Ok(());
        }
        let room = self.audit.make_room();
        if matches!(operation, Operation::Kill | Operation::Down | Operation::Pause | Operation::ModeTighten) {
            return Ok(());
        }
        room.map_err(|error| Error::new(Kind::Unavailable, format!("{error:#}; nothing was done; make room there")))
    }

    /// As [`Daemon::judge`] about a group, which has an owner and neither a mode nor labels.
    pub fn judge_group(&self, peer: Peer, operation: Operation, owner: u32, name: &str) -> Result<Asked, Error> {
        let roles = self.roles(peer);
        let decision = self.question(peer, &roles, operation, (owner, None, &BTreeMap::new()));
        let asked = Asked { operation, peer, roles, reason: decision.1.clone() };
        if decision.0 {
            self.make_room(operation)?;
            return Ok(asked);
        }
        self.write_down_group(&asked, name, owner, Outcome::Refused, &decision.1, json!(null))?;
        Err(Error::new(Kind::Denied, decision.1))
    }

    /// The same without a trace.
    pub fn may_group(&self, peer: Peer, operation: Operation, owner: u32) -> bool {
        self.question(peer, &self.roles(peer), operation, (owner, None, &BTreeMap::new())).0
    }

    /// Writes down what was done with a group.
    pub fn write_down_group(
        &self,
        asked: &Asked,
        name: &str,
        owner: u32,
        outcome: Outcome,
        reason: &str,
        after: Value,
    ) -> Result<(), Error> {
        let mut about = Record::new(String::new(), owner, Mode::Isolation, 0);
        about.name = name.to_owned();
        self.write_down(asked, &about, outcome, reason, json!(null), after)
    }

    /// The same without a trace.
    pub fn may(&self, peer: Peer, operation: Operation, record: &Record) -> bool {
        self.may_of(peer, operation)(record)
    }

    /// The same for many: for lists, of which somebody sees what they may see. Who asks is looked up once.
    pub fn may_of(&self, peer: Peer, operation: Operation) -> impl Fn(&Record) -> bool {
        let roles = self.roles(peer);
        move |record| self.decide(peer, &roles, operation, &About { record: Some(record), mode: None }).0
    }

    fn roles(&self, peer: Peer) -> BTreeSet<Role> {
        let user = who::look_up(peer.uid, peer.gid);
        let is_daemon = peer.uid == nix::unistd::geteuid().as_raw();
        self.access().roles(&Caller { uid: peer.uid, user: user.name.as_deref(), groups: &user.groups, is_daemon })
    }

    fn decide(&self, peer: Peer, roles: &BTreeSet<Role>, operation: Operation, about: &About<'_>) -> (bool, String) {
        let none = BTreeMap::new();
        let owner = about.record.map_or(peer.uid, |record| record.uid);
        let mode = about.mode.or(about.record.map(|record| record.facts.mode));
        self.question(peer, roles, operation, (owner, mode, about.record.map_or(&none, |record| &record.labels)))
    }

    /// About something of this owner, mode and labels.
    fn question(
        &self,
        peer: Peer,
        roles: &BTreeSet<Role>,
        operation: Operation,
        (owner, mode, labels): (u32, Option<Mode>, &BTreeMap<String, String>),
    ) -> (bool, String) {
        let now = now_ms();
        // In UTC: a static program does not read the host's time zone.
        let (minute_of_day, weekday) = access::moment(now, 0);
        let decision = access::decide(
            &self.access(),
            &Question {
                roles,
                operation,
                owner_is_asker: owner == peer.uid,
                mode,
                labels,
                environment: self.options.environment.as_deref(),
                minute_of_day,
                weekday,
            },
        );
        (decision.allowed, decision.words)
    }

    /// Writes an operation down; what cannot be written down is an error of the operation.
    pub fn write_down(
        &self,
        asked: &Asked,
        record: &Record,
        outcome: Outcome,
        reason: &str,
        before: Value,
        after: Value,
    ) -> Result<(), Error> {
        let mut reason = if reason.is_empty() { asked.reason.clone() } else { reason.to_owned() };
        if outcome == Outcome::Refused {
            let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
            match refusals.take(asked.peer.uid, now_ms()) {
                None => return Ok(()),
                Some(0) => {}
                Some(more) => reason.push_str(&format!(
                    " (and {more} refusals of this user before, which were too many to be written down)"
                )),
            }
        }
        let line = Line {
            time_ms: now_ms(),
            actor: Actor { uid: asked.peer.uid, pid: asked.peer.pid, roles: asked.roles.iter().copied().collect() },
            operation: asked.operation,
            target: Target { id: record.id.clone(), name: record.name.clone() },
            outcome,
            reason,
            before,
            after,
        };
        self.audit.add(&line).map_err(|error| Error::new(Kind::Internal, format!("{error:#}")))
    }
}

//! Who asks, and whether they may ([`apex_core::access`]).

use std::collections::{BTreeMap, BTreeSet};

use apex_api::{Error, Kind, Peer};
use apex_core::access::{self, Caller, Operation, Question, Role};
use apex_core::audit::{Actor, Outcome, Record as Line, Target};
use apex_core::policy::Mode;
use serde_json::{Value, json};

use crate::clock::now_ms;
use crate::record::Record;
use crate::registry::Daemon;
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
            return Ok(asked);
        }
        let stranger = Record::new(String::new(), peer.uid, Mode::Isolation, 0);
        let words = asked.reason.clone();
        self.write_down(&asked, about.record.unwrap_or(&stranger), Outcome::Refused, &words, json!(null), json!(null))?;
        Err(Error::new(Kind::Denied, words))
    }

    /// The same without a trace: for lists, of which somebody sees what they may see.
    pub fn may(&self, peer: Peer, operation: Operation, record: &Record) -> bool {
        self.decide(peer, &self.roles(peer), operation, &About { record: Some(record), mode: None }).0
    }

    fn roles(&self, peer: Peer) -> BTreeSet<Role> {
        let user = who::look_up(peer.uid, peer.gid);
        let is_daemon = peer.uid == nix::unistd::geteuid().as_raw();
        self.access().roles(&Caller { uid: peer.uid, user: user.name.as_deref(), groups: &user.groups, is_daemon })
    }

    fn decide(&self, peer: Peer, roles: &BTreeSet<Role>, operation: Operation, about: &About<'_>) -> (bool, String) {
        let none = BTreeMap::new();
        let now = now_ms();
        // In UTC: a static program does not read the host's time zone.
        let (minute_of_day, weekday) = access::moment(now, 0);
        let decision = access::decide(
            &self.access(),
            &Question {
                roles,
                operation,
                owner_is_asker: about.record.is_none_or(|record| record.uid == peer.uid),
                mode: about.mode.or(about.record.map(|record| record.facts.mode)),
                labels: about.record.map_or(&none, |record| &record.labels),
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
        let reason = if reason.is_empty() { &asked.reason } else { reason };
        let line = Line {
            time_ms: now_ms(),
            actor: Actor { uid: asked.peer.uid, pid: asked.peer.pid, roles: asked.roles.iter().copied().collect() },
            operation: asked.operation,
            target: Target { id: record.id.clone(), name: record.name.clone() },
            outcome,
            reason: reason.to_owned(),
            before,
            after,
        };
        self.audit.add(&line).map_err(|error| Error::new(Kind::Internal, format!("{error:#}")))
    }
}

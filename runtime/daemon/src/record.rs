//! What the daemon knows of one sandbox, as it is stored and as it is told.

use std::collections::BTreeMap;

use apex_api::v1;
use apex_core::control::{Facts, Limits, OnLimits, Reactions, Seen, Shut, State};
use apex_core::mail::Rule;
use apex_core::policy::{IsolationLevel, Mode, Network};
use serde::{Deserialize, Serialize};

/// Bytes of a command in a list.
const ROW_COMMAND_BYTES_MAX: usize = 4096;

/// One sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    /// Empty for none.
    pub name: String,
    /// Whose it is.
    pub uid: u32,
    pub command: Vec<String>,
    /// Where whoever asked for it was.
    #[serde(default)]
    pub cwd: String,
    pub labels: BTreeMap<String, String>,
    /// Whether its command has a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Level of watching.
    pub watch: String,
    /// What is done on findings.
    pub reactions: Reactions,
    pub facts: Facts,
    /// What it is about to become, while a transition is carried out.
    #[serde(default)]
    pub under_way: Option<Facts>,
    /// What is done at limits.
    #[serde(default)]
    pub on_limits: OnLimits,
    /// What of them was seen.
    #[serde(default)]
    pub seen: Seen,
    /// The last that was reached, with what was done; empty for none.
    #[serde(default)]
    pub limit_reached: String,
    /// What it asked for of the budget, before it stood.
    #[serde(default)]
    pub claim: Limits,
    /// Its init, as the host numbers it.
    pub pid: u32,
    pub created_ms: u64,
    pub started_ms: u64,
    pub ended_ms: u64,
    pub exit_code: Option<i32>,
    pub ending: String,
    pub error: String,
    pub findings: u64,
    /// Bytes of the findings file that were counted.
    #[serde(default)]
    pub findings_counted: u64,
    /// Bytes of it that were answered.
    pub findings_read: u64,
    /// The group and the member that it is; empty for none.
    #[serde(default)]
    pub group: String,
    #[serde(default)]
    pub member: String,
    /// The one in whose place it stands; empty for none.
    #[serde(default)]
    pub predecessor: String,
    /// The one that stands in its place; empty for none.
    #[serde(default)]
    pub successor: String,
    /// Mailboxes of its policy, as its keeper told them when it stood.
    #[serde(default)]
    pub mailboxes: Vec<Rule>,
}

impl Record {
    /// Of a sandbox that is about to be made in this mode.
    pub fn new(id: String, uid: u32, mode: Mode, now_ms: u64) -> Record {
        let facts = Facts {
            born: mode,
            mode,
            level: IsolationLevel::Full,
            network_born: Network::None,
            network_cut: false,
            shut: Shut::default(),
            has_network_dial: false,
            has_reported: false,
            limits_born: Limits::default(),
            limits: Limits::default(),
            has_limits: false,
            frozen: false,
            tightened_by: None,
            hold_until_ms: 0,
            tightened_times: 0,
            state: State::Creating,
        };
        Record {
            id,
            name: String::new(),
            uid,
            command: Vec::new(),
            cwd: String::new(),
            labels: BTreeMap::new(),
            tty: false,
            watch: "off".to_owned(),
            reactions: Reactions::default(),
            facts,
            under_way: None,
            on_limits: OnLimits::default(),
            seen: Seen::default(),
            limit_reached: String::new(),
            claim: Limits::default(),
            pid: 0,
            created_ms: now_ms,
            started_ms: 0,
            ended_ms: 0,
            exit_code: None,
            ending: String::new(),
            error: String::new(),
            findings: 0,
            findings_counted: 0,
            findings_read: 0,
            group: String::new(),
            member: String::new(),
            predecessor: String::new(),
            successor: String::new(),
            mailboxes: Vec::new(),
        }
    }

    /// Whether nothing more will happen to it.
    pub fn is_over(&self) -> bool {
        matches!(self.facts.state, State::Ended | State::Failed | State::Lost)
    }

    /// The same in a list of many, where a command of 100 KiB would be in the way.
    pub fn row(&self) -> v1::Sandbox {
        let mut row = self.wire();
        let mut room = ROW_COMMAND_BYTES_MAX;
        let fits = row.command.iter().take_while(|word| {
            let is_in = word.len() < room;
            room = room.saturating_sub(word.len() + 1);
            is_in
        });
        let count = fits.count();
        if count < row.command.len() {
            row.command.truncate(count);
            row.command.push("...".to_owned());
        }
        row
    }

    /// Whether its command runs, or stands still.
    pub fn is_alive(&self) -> bool {
        matches!(self.facts.state, State::Running | State::Frozen)
    }

    /// Whether it may have the other one's name: that one was in its place before, as the same member of the same owner's group or by a change of mode,
    /// or has left the name to a successor of its own.
    pub fn succeeds(&self, other: &Record) -> bool {
        let is_member = !self.group.is_empty()
            && other.is_over()
            && (&self.group, &self.member, self.uid) == (&other.group, &other.member, other.uid);
        let is_next = self.predecessor == other.id && self.uid == other.uid;
        is_member || is_next || (other.is_over() && !other.successor.is_empty())
    }

    /// As the API tells it.
    pub fn wire(&self) -> v1::Sandbox {
        let facts = &self.facts;
        let limits = |limits: Limits| {
            Some(v1::LimitsInForce {
                memory_bytes: limits.memory_bytes,
                tasks: limits.tasks,
                cpu_percent: limits.cpu_percent,
            })
        };
        let network = match (facts.network_born, facts.network_cut) {
            (Network::None, _) => "none",
            (Network::Host, false) => "host",
            (Network::Host, true) => "cut",
        };
        v1::Sandbox {
            id: self.id.clone(),
            name: self.name.clone(),
            mode: facts.mode.name().to_owned(),
            born_mode: facts.born.name().to_owned(),
            state: facts.state.name().to_owned(),
            pid: if self.is_over() { 0 } else { self.pid },
            uid: self.uid,
            command: self.command.clone(),
            created_ms: self.created_ms,
            started_ms: self.started_ms,
            ended_ms: self.ended_ms,
            exit_code: self.exit_code,
            ending: self.ending.clone(),
            error: self.error.clone(),
            limits: limits(facts.limits),
            limits_born: limits(facts.limits_born),
            watch: self.watch.clone(),
            labels: self.labels.clone().into_iter().collect(),
            tightened_by: facts.tightened_by.clone().unwrap_or_default(),
            findings: self.findings,
            network: network.to_owned(),
            switched_off: facts.shut.names().into_iter().map(str::to_owned).collect(),
            usage: None,
            limit_reached: self.limit_reached.clone(),
            group: self.group.clone(),
            member: self.member.clone(),
            predecessor: self.predecessor.clone(),
            successor: self.successor.clone(),
            level: facts.level.name().to_owned(),
            mailboxes: self.mailboxes.iter().map(mailbox).collect(),
        }
    }
}

fn mailbox(rule: &Rule) -> v1::MailboxRule {
    let Rule { name, send, receive, control, max_bytes, rate, schema, .. } = rule;
    v1::MailboxRule {
        name: name.clone(),
        send: *send,
        receive: *receive,
        control: control.name().to_owned(),
        max_bytes: *max_bytes,
        rate: *rate,
        has_schema: schema.is_some(),
    }
}

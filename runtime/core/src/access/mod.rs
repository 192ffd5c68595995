//! Who may do what: roles, operations, rules. Denied by default.
//!
//! Input: policy texts (the built-in `policies/access.toml`, then the administrator's file) and a [`Question`], for which the daemon brings the
//! facts: the caller's roles, whose sandbox it is, the time. Output: a [`Decision`] that names the rule and has words for a refusal.
//!
//! A deny wins over everything. Without one, a rule that allows or audits is needed; audit allows and has the operation written down whatever else
//! is. What is not known counts against the asker. This module looks nobody up and must not decide what a sandbox can become: that is `control`.

mod decide;
mod file;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::policy::{IsolationLevel, Mode, Origin, PolicyError};

pub use decide::{Cited, Decision, Question, decide};
pub use file::{MEMBERS_MAX, RULES_MAX};

/// Text of the built-in policy.
pub const BUILT_IN: &str = include_str!("../../../../policies/access.toml");
/// Its name in messages.
pub const BUILT_IN_NAME: &str = "policies/access.toml";

/// What somebody is to Apex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Answers for the host.
    Admin,
    /// Makes sandboxes and looks inside.
    Developer,
    /// Runs what is not trusted.
    Tester,
    /// Looks.
    Viewer,
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 4] = [Role::Admin, Role::Developer, Role::Tester, Role::Viewer];

    /// The name in files and output.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Admin => "admin",
            Role::Developer => "developer",
            Role::Tester => "tester",
            Role::Viewer => "viewer",
        }
    }
}

/// What can be asked of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Build a sandbox.
    Create,
    /// Build one of isolation level partial; create is needed too.
    LevelPartial,
    /// Build one of isolation level none, which nothing confines; create is needed too.
    LevelNone,
    /// Start its command.
    Run,
    /// Run a second command in it.
    Exec,
    /// Join its terminal.
    Attach,
    /// See its policy, plan and receipt.
    Inspect,
    /// See that it is there.
    List,
    /// Read what its command wrote.
    Logs,
    /// Read what it did.
    Events,
    /// Read what detectors concluded.
    Findings,
    /// Make it stricter.
    ModeTighten,
    /// Make it laxer, within its ceiling: a laxer mode, higher limits, the network back, a thaw after a finding.
    ModeRelax,
    /// Change its limits; raising them needs mode-relax too.
    Limits,
    /// Freeze it.
    Pause,
    /// Thaw it; after a finding that needs mode-relax too.
    Resume,
    /// Send a signal to its command.
    Signal,
    /// End it.
    Kill,
    /// Forget it, with what is kept of it.
    Remove,
    /// Read the audit records.
    Audit,
    /// See what it uses.
    Stats,
    /// See its processes.
    Tree,
    /// Read the figures of the whole daemon.
    Metrics,
    /// Have a group of sandboxes kept running; each of them needs create too.
    Up,
    /// End a group.
    Down,
    /// See groups.
    Groups,
    /// See mailboxes.
    MailList,
    /// Send a message from the host.
    MailSend,
    /// Receive and acknowledge one there.
    MailReceive,
    /// Empty a mailbox.
    MailRemove,
    /// Read the rules of access anew. The daemon is asked by a signal, which the kernel lets nobody send but root and the daemon's own user.
    Reload,
}

impl Operation {
    /// What it takes beside create to build a sandbox of this isolation level; nothing for full.
    pub const fn of_level(level: IsolationLevel) -> Option<Operation> {
        match level {
            IsolationLevel::Full => None,
            IsolationLevel::Partial => Some(Operation::LevelPartial),
            IsolationLevel::None => Some(Operation::LevelNone),
        }
    }

    /// All of them.
    pub const ALL: [Operation; 31] = [
        Operation::Create,
        Operation::LevelPartial,
        Operation::LevelNone,
        Operation::Run,
        Operation::Exec,
        Operation::Attach,
        Operation::Inspect,
        Operation::List,
        Operation::Logs,
        Operation::Events,
        Operation::Findings,
        Operation::ModeTighten,
        Operation::ModeRelax,
        Operation::Limits,
        Operation::Pause,
        Operation::Resume,
        Operation::Signal,
        Operation::Kill,
        Operation::Remove,
        Operation::Audit,
        Operation::Stats,
        Operation::Tree,
        Operation::Metrics,
        Operation::Up,
        Operation::Down,
        Operation::Groups,
        Operation::MailList,
        Operation::MailSend,
        Operation::MailReceive,
        Operation::MailRemove,
        Operation::Reload,
    ];

    /// The name in files and output.
    pub const fn name(self) -> &'static str {
        match self {
            Operation::Create => "create",
            Operation::LevelPartial => "level-partial",
            Operation::LevelNone => "level-none",
            Operation::Run => "run",
            Operation::Exec => "exec",
            Operation::Attach => "attach",
            Operation::Inspect => "inspect",
            Operation::List => "list",
            Operation::Logs => "logs",
            Operation::Events => "events",
            Operation::Findings => "findings",
            Operation::ModeTighten => "mode-tighten",
            Operation::ModeRelax => "mode-relax",
            Operation::Limits => "limits",
            Operation::Pause => "pause",
            Operation::Resume => "resume",
            Operation::Signal => "signal",
            Operation::Kill => "kill",
            Operation::Remove => "remove",
            Operation::Audit => "audit",
            Operation::Stats => "stats",
            Operation::Tree => "tree",
            Operation::Metrics => "metrics",
            Operation::Up => "up",
            Operation::Down => "down",
            Operation::Groups => "groups",
            Operation::MailList => "mail-list",
            Operation::MailSend => "mail-send",
            Operation::MailReceive => "mail-receive",
            Operation::MailRemove => "mail-remove",
            Operation::Reload => "reload",
        }
    }
}

/// Whose sandboxes a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// The asker's own.
    Own,
    /// Everybody's.
    All,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Lets it be done.
    Allow,
    /// Refuses it, whatever allows it.
    Deny,
    /// Lets it be done and has it written down.
    Audit,
}

/// A day of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weekday {
    /// Monday.
    Mon,
    /// Tuesday.
    Tue,
    /// Wednesday.
    Wed,
    /// Thursday.
    Thu,
    /// Friday.
    Fri,
    /// Saturday.
    Sat,
    /// Sunday.
    Sun,
}

impl Weekday {
    /// All of them, Monday first.
    pub const ALL: [Weekday; 7] =
        [Weekday::Mon, Weekday::Tue, Weekday::Wed, Weekday::Thu, Weekday::Fri, Weekday::Sat, Weekday::Sun];

    /// The name in files and output.
    pub const fn name(self) -> &'static str {
        match self {
            Weekday::Mon => "mon",
            Weekday::Tue => "tue",
            Weekday::Wed => "wed",
            Weekday::Thu => "thu",
            Weekday::Fri => "fri",
            Weekday::Sat => "sat",
            Weekday::Sun => "sun",
        }
    }
}

/// Minute of the day and day of the week at a wall time (milliseconds since 1970 UTC) in a place `utc_offset_s` seconds east of Greenwich.
pub fn moment(unix_ms: u64, utc_offset_s: i32) -> (u16, Weekday) {
    let seconds = i64::try_from(unix_ms / 1000).unwrap_or(i64::MAX).saturating_add(i64::from(utc_offset_s));
    let minutes = seconds.div_euclid(60);
    let (day, minute) = (minutes.div_euclid(24 * 60), minutes.rem_euclid(24 * 60));
    // 1 January 1970 was a Thursday, which is number 3 from Monday.
    let weekday = usize::try_from((day + 3).rem_euclid(7)).ok().and_then(|at| Weekday::ALL.get(at).copied());
    (u16::try_from(minute).unwrap_or(0), weekday.unwrap_or(Weekday::Thu))
}

/// Whom a member line is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// A user id.
    Uid(u32),
    /// A user's name.
    User(String),
    /// Everybody in a group, by its name.
    Group(String),
    /// Whoever the daemon runs as.
    Daemon,
}

/// A caller as the daemon knows it from the socket and the user database.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// Its user id.
    pub uid: u32,
    /// Its name, where it has one.
    pub user: Option<&'a str>,
    /// Names of its groups.
    pub groups: &'a [String],
    /// Whether the daemon runs as the same user.
    pub is_daemon: bool,
}

/// Somebody with a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Whom it is about.
    pub who: Who,
    /// The role.
    pub role: Role,
    /// Where it stands.
    pub origin: Origin,
}

impl Member {
    fn is(&self, caller: &Caller<'_>) -> bool {
        match &self.who {
            Who::Uid(uid) => *uid == caller.uid,
            Who::User(user) => caller.user == Some(user),
            Who::Group(group) => caller.groups.contains(group),
            Who::Daemon => caller.is_daemon,
        }
    }
}

/// One rule. Every condition that it has must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// For whom; `None` for every role.
    pub role: Option<Role>,
    /// About what.
    pub operations: BTreeSet<Operation>,
    /// About whose sandboxes.
    pub scope: Scope,
    /// What it does.
    pub effect: Effect,
    /// In which modes of the sandbox; empty for all.
    pub modes: Vec<Mode>,
    /// From which minute of the day until before which; over midnight when the first is the later one.
    pub minutes: Option<(u16, u16)>,
    /// On which days; empty for all.
    pub days: BTreeSet<Weekday>,
    /// In which environment of the daemon.
    pub environment: Option<String>,
    /// With which labels of the sandbox, all of them.
    pub label: BTreeMap<String, String>,
    /// Why, for people.
    pub reason: String,
    /// Where it stands.
    pub origin: Origin,
}

/// Members and rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Who has which role.
    pub members: Vec<Member>,
    /// What the roles may do.
    pub rules: Vec<Rule>,
}

impl Policy {
    /// The built-in policy.
    ///
    /// # Errors
    /// None in a build that passed its tests: the text is embedded.
    pub fn built_in() -> Result<Policy, PolicyError> {
        Policy::default().with(BUILT_IN, BUILT_IN_NAME)
    }

    /// With what a file adds; `inherit = false` in it forgets what was there before.
    ///
    /// # Errors
    /// Text that is no policy, with file, line and what is accepted there.
    pub fn with(self, text: &str, file: &str) -> Result<Policy, PolicyError> {
        file::read(self, text, file)
    }

    /// The roles of a caller; empty for a stranger.
    pub fn roles(&self, caller: &Caller<'_>) -> BTreeSet<Role> {
        self.members.iter().filter(|member| member.is(caller)).map(|member| member.role).collect()
    }
}

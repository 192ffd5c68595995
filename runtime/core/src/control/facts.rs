//! What is known of a sandbox, and how a transition changes it. Input: facts and a transition that was carried out; output: the facts that
//! hold afterwards. Must not decide whether a transition is allowed: that is `plan`.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Answer, Asker, Shut, Step, Transition, strictness};
use crate::amount;
use crate::policy::{IsolationLevel, Mode, Network, Policy, Resources};

/// Limits that can be moved while a sandbox runs. `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Memory of the whole sandbox, in bytes.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub tasks: Option<u64>,
    /// CPU time, in percent of one core.
    pub cpu_percent: Option<u64>,
}

impl Limits {
    /// Each limit at the lower of both values.
    pub fn lowered_to(self, other: Limits) -> Limits {
        Limits {
            memory_bytes: lower(self.memory_bytes, other.memory_bytes),
            tasks: lower(self.tasks, other.tasks),
            cpu_percent: lower(self.cpu_percent, other.cpu_percent),
        }
    }

    /// Whether no limit is above that of `bound`.
    pub fn is_within(self, bound: Limits) -> bool {
        self.lowered_to(bound) == self
    }
}

/// The lower of two limits, of which an absent one is above every number.
fn lower(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

impl From<&Resources> for Limits {
    fn from(resources: &Resources) -> Self {
        Limits {
            memory_bytes: resources.memory_bytes,
            tasks: resources.tasks,
            cpu_percent: resources.cpu_percent.map(u64::from),
        }
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = |limit: Option<String>| limit.unwrap_or_else(|| "unlimited".to_owned());
        write!(
            f,
            "memory {}, tasks {}, cpu {}",
            words(self.memory_bytes.map(amount::size)),
            words(self.tasks.map(|tasks| tasks.to_string())),
            words(self.cpu_percent.map(|percent| format!("{percent}%"))),
        )
    }
}

/// Where a sandbox is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is being built; its command does not run yet.
    Creating,
    /// Its command runs.
    Running,
    /// Its processes stand still.
    Frozen,
    /// Its command ended, or it was ended.
    Ended,
    /// It could not be built.
    Failed,
    /// The daemon started anew and did not find it again.
    Lost,
}

impl State {
    /// The name in output.
    pub const fn name(self) -> &'static str {
        match self {
            State::Creating => "creating",
            State::Running => "running",
            State::Frozen => "frozen",
            State::Ended => "ended",
            State::Failed => "failed",
            State::Lost => "lost",
        }
    }
}

/// What is known of one sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The mode it was born in: the ceiling.
    pub born: Mode,
    /// The mode it is in.
    pub mode: Mode,
    /// The isolation level that it was born at.
    #[serde(default)]
    pub level: IsolationLevel,
    /// The network it was born with.
    pub network_born: Network,
    /// Whether that network is cut off.
    pub network_cut: bool,
    /// What it is refused beside that.
    #[serde(default)]
    pub shut: Shut,
    /// Whether kernel probes watch it, by which its network can be cut and given back and its switches be turned.
    pub has_network_dial: bool,
    /// Whether its policy has system calls that are carried out and reported.
    #[serde(default)]
    pub has_reported: bool,
    /// The limits it was born with: the ceiling.
    pub limits_born: Limits,
    /// The limits in force.
    pub limits: Limits,
    /// Whether it has a cgroup whose limits can be written.
    pub has_limits: bool,
    /// Whether its processes are held.
    pub frozen: bool,
    /// Title of the finding that last tightened it, until that is taken back.
    pub tightened_by: Option<String>,
    /// Until when nothing automatic may relax it; 0 for never held.
    pub hold_until_ms: u64,
    /// How often findings tightened it since an operator last relaxed it.
    pub tightened_times: u32,
    /// Where it is in its life.
    pub state: State,
}

impl Facts {
    /// Whether its processes stand still. The store keeps state and freezer apart; either says so.
    pub fn is_frozen(&self) -> bool {
        self.frozen || self.state == State::Frozen
    }

    /// Where each dial stands for sure when a transition from here to `after` was broken off and nobody knows how far it had come: at the tighter of its
    /// two places. What a finding was about to do is done, and what somebody was about to be given is not.
    #[must_use]
    pub fn settled(&self, after: &Facts) -> Facts {
        let frozen = self.is_frozen() || after.is_frozen();
        Facts {
            mode: if strictness(after.mode) > strictness(self.mode) { after.mode } else { self.mode },
            network_cut: self.network_cut || after.network_cut,
            shut: self.shut.and(after.shut),
            limits: self.limits.lowered_to(after.limits),
            frozen,
            state: if frozen { State::Frozen } else { self.state },
            tightened_by: after.tightened_by.clone().or_else(|| self.tightened_by.clone()),
            hold_until_ms: self.hold_until_ms.max(after.hold_until_ms),
            tightened_times: self.tightened_times.max(after.tightened_times),
            ..self.clone()
        }
    }

    /// The facts after one step was carried out.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Limits { to, .. } => self.limits = *to,
            Step::Network { cut } => self.network_cut = *cut,
            Step::Shut { to, .. } => self.shut = *to,
            Step::Freeze => (self.frozen, self.state) = (true, State::Frozen),
            Step::Thaw => (self.frozen, self.state) = (false, State::Running),
            Step::Kill => (self.frozen, self.state) = (false, State::Ended),
        }
    }

    /// The facts after a whole transition that `asker` wished for. What a finding did counts as taken back when the sandbox was relaxed and
    /// goes on; an operator's doing so also forgives earlier findings.
    pub fn after(&self, transition: &Transition, asker: &Asker) -> Facts {
        let mut next = self.clone();
        next.mode = transition.to;
        for step in &transition.steps {
            next.apply(step);
        }
        if transition.relaxes && !next.is_frozen() {
            next.tightened_by = None;
            next.hold_until_ms = 0;
            if !asker.automatic {
                next.tightened_times = 0;
            }
        }
        next
    }

    /// The facts after the answer to a finding was carried out.
    pub fn after_finding(&self, answer: &Answer) -> Facts {
        let mut next = self.after(&answer.transition, &Asker::AUTOMATIC);
        next.tightened_by = Some(answer.because.clone());
        next.hold_until_ms = self.hold_until_ms.max(answer.hold_until_ms);
        next.tightened_times = self.tightened_times.saturating_add(1);
        next
    }
}

/// What a mode gives by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModeDefaults {
    /// Its limits.
    pub limits: Limits,
    /// Its network.
    pub network: Network,
}

impl From<&Policy> for ModeDefaults {
    /// Of a policy that was resolved from the mode alone.
    fn from(policy: &Policy) -> Self {
        ModeDefaults { limits: Limits::from(&policy.resources), network: policy.network }
    }
}

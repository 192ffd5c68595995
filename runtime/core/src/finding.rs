//! What a detector concluded from events.
//!
//! A [`Finding`] is made by a rule or by a learned baseline; its public form is an OCSF
//! Detection Finding. It carries its evidence and acts on nothing: what is done about it is the reader's choice ([`crate::watch::Reaction`]).

use serde::{Deserialize, Serialize};

use crate::event::Event;

/// Most events that a finding keeps as evidence; `count` tells of the rest.
pub const EVIDENCE_MAX: usize = 16;
/// Most ancestors of a process that a finding tells.
pub const ANCESTRY_MAX: usize = 16;

/// How bad it is (the names and order of OCSF `severity_id` 1 to 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Informational,
    /// Unusual.
    Low,
    /// Suspicious.
    Medium,
    /// Hostile in all likelihood.
    High,
    /// Hostile, with damage under way.
    Critical,
}

impl Severity {
    /// The name in output.
    pub const fn name(self) -> &'static str {
        match self {
            Severity::Informational => "informational",
            Severity::Low => "low",
            Severity::Medium => "medium",
            Severity::High => "high",
            Severity::Critical => "critical",
        }
    }
}

/// What drew the conclusion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum Detector {
    /// A rule.
    Rule {
        /// Its id.
        id: String,
        /// Where it stands, `file:line`, or `built-in FILE`.
        origin: String,
    },
    /// A learned baseline.
    Baseline {
        /// Content hash of the model.
        model: String,
        /// How unusual, against the threshold 1.
        score: f64,
        /// Which features moved, the furthest first: name, expected, seen.
        moved: Vec<Moved>,
    },
}

/// One feature of a baseline that moved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// Name of the feature.
    pub feature: String,
    /// What the model expects, in words.
    pub expected: String,
    /// What was seen, in words.
    pub seen: String,
    /// Its part of the score.
    pub weight: f64,
}

/// A process of the ancestry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// As the host numbers it.
    pub pid: u32,
    /// Its parent.
    pub ppid: u32,
    /// User id as the host numbers it.
    pub uid: u32,
    /// Name.
    pub comm: String,
    /// Program, when its exec was seen.
    pub exe: String,
    /// Arguments of that exec.
    pub args: Vec<String>,
}

/// A conclusion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// `time_ns` of the event that completed it.
    pub time_ns: u64,
    /// The sandbox.
    pub sandbox: u64,
    /// What drew the conclusion.
    pub detector: Detector,
    /// One line: what it is.
    pub title: String,
    /// What it means and what to look at, in plain words.
    pub explanation: String,
    /// How bad.
    pub severity: Severity,
    /// MITRE ATT&CK technique ids, such as `T1059.004`.
    pub techniques: Vec<String>,
    /// The process that completed it first, then its parents, at most [`ANCESTRY_MAX`].
    pub ancestry: Vec<Process>,
    /// The events it rests on, oldest first, at most [`EVIDENCE_MAX`].
    pub evidence: Vec<Event>,
    /// How many events it rests on.
    pub count: u64,
}

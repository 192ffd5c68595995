//! Which features each mode has. Input: mode and feature; output: whether it is open. A gate says what a mode can give at all; who may
//! use it is `access`, what one sandbox was born with is [`super::Facts`].
//!
//! | feature | development | hybrid | isolation | why |
//! | --- | --- | --- | --- | --- |
//! | attach | open | by policy | by policy | whoever is at its terminal types into the sandbox |
//! | exec | open | by policy | by policy | a second command was not in the plan that was judged, and is confined as the first is |
//! | debug | open | by policy | closed | a debugger reads and writes all memory |
//! | trace | open | open | open | looking from outside changes nothing inside |
//! | network-host | open | by policy | closed | the ceiling of isolation is no network |
//! | write-host | open | by policy | by policy | only paths that the policy grants; a mode's ceiling names what it cannot |
//! | level-partial | open | by policy | closed | isolation is every layer; at partial there is no root of its own |
//! | level-none | open | closed | closed | nothing is confined |
//! | unlimited | open | closed | closed | their ceilings want memory and tasks to be finite |

use serde::{Deserialize, Serialize};

use crate::policy::{IsolationLevel, Mode};

/// What a mode may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feature {
    /// Join the terminal of a running sandbox.
    Attach,
    /// Run a second command in it.
    Exec,
    /// Attach a debugger.
    Debug,
    /// Watch it from outside.
    Trace,
    /// The network of the host.
    NetworkHost,
    /// Files of the host, writable.
    WriteHost,
    /// Isolation level partial.
    LevelPartial,
    /// Isolation level none.
    LevelNone,
    /// Memory or tasks without a limit.
    Unlimited,
}

/// Whether a mode has a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    /// Never.
    Closed,
    /// When the sandbox's policy, or an access rule, says so.
    ByPolicy,
    /// By itself.
    Open,
}

impl Feature {
    /// All of them.
    pub const ALL: [Feature; 9] = [
        Feature::Attach,
        Feature::Exec,
        Feature::Debug,
        Feature::Trace,
        Feature::NetworkHost,
        Feature::WriteHost,
        Feature::LevelPartial,
        Feature::LevelNone,
        Feature::Unlimited,
    ];

    /// What a sandbox of this isolation level needs of its mode; nothing for full.
    pub const fn of_level(level: IsolationLevel) -> Option<Feature> {
        match level {
            IsolationLevel::Full => None,
            IsolationLevel::Partial => Some(Feature::LevelPartial),
            IsolationLevel::None => Some(Feature::LevelNone),
        }
    }

    /// In words, to end the sentence "the mode has ... closed".
    pub const fn words(self) -> &'static str {
        match self {
            Feature::Attach => "joining the terminal",
            Feature::Exec => "running a second command",
            Feature::Debug => "debugging",
            Feature::Trace => "watching from outside",
            Feature::NetworkHost => "the network of the host",
            Feature::WriteHost => "writing files of the host",
            Feature::LevelPartial => "isolation level partial",
            Feature::LevelNone => "isolation level none",
            Feature::Unlimited => "memory and tasks without a limit",
        }
    }
}

/// Whether `mode` has `feature`.
pub const fn gate(mode: Mode, feature: Feature) -> Gate {
    match (feature, mode) {
        (Feature::Trace, Mode::Development | Mode::Hybrid | Mode::Isolation) => Gate::Open,
        (Feature::WriteHost, Mode::Hybrid | Mode::Isolation) => Gate::ByPolicy,
        (Feature::LevelPartial, Mode::Hybrid) => Gate::ByPolicy,
        (Feature::Unlimited | Feature::LevelNone, Mode::Hybrid | Mode::Isolation) => Gate::Closed,
        (Feature::Attach | Feature::Exec | Feature::Debug | Feature::NetworkHost, Mode::Hybrid) => Gate::ByPolicy,
        (Feature::Attach | Feature::Exec, Mode::Isolation) => Gate::ByPolicy,
        (Feature::Debug | Feature::NetworkHost | Feature::LevelPartial, Mode::Isolation) => Gate::Closed,
        (
            Feature::Attach
            | Feature::Exec
            | Feature::Debug
            | Feature::NetworkHost
            | Feature::WriteHost
            | Feature::LevelPartial
            | Feature::LevelNone
            | Feature::Unlimited,
            Mode::Development,
        ) => Gate::Open,
    }
}

//! Bodies of requests that say less than the message which is made from them: the rest stands in the path.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::v1::Limits;

/// Body of PUT .../mode.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModeBody {
    /// "isolation", "development" or "hybrid".
    pub mode: String,
    /// For the audit log.
    #[serde(default)]
    pub reason: String,
    /// Beyond what it was born with: put a new sandbox in its place, made from the same request in that mode.
    #[serde(default)]
    pub successor: bool,
}

/// Body of PUT .../limits.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LimitsBody {
    /// Those that are given; the others stay.
    pub limits: Limits,
    /// For the audit log.
    #[serde(default)]
    pub reason: String,
}

/// Body of PUT .../switches.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SwitchesBody {
    /// Those that are given, such as "connect=off"; the others stay.
    pub switches: Vec<String>,
    /// For the audit log.
    #[serde(default)]
    pub reason: String,
}

/// Body of POST .../signal.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignalBody {
    /// Its number, such as 15.
    pub signal: i32,
    /// The number of a command that was started later; 0 for the sandbox's own.
    #[serde(default)]
    pub exec: i32,
}

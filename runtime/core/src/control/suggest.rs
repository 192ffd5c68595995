//! Which mode would suit what a run was seen to do. Input: observed facts; output: the strictest mode that has what was used, with reasons. A
//! suggestion only: it changes nothing, and a mode is never suggested without a reason.

use serde::{Deserialize, Serialize};

use crate::amount::count;
use crate::policy::Mode;

/// What was seen of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Whether it reached for a network beyond its own loopback.
    pub used_network: bool,
    /// Files that it wrote outside of its working directory and its private places.
    pub written_outside: u64,
    /// System calls that the filter refused or reported.
    pub refused_calls: u64,
    /// Findings of severity high or above.
    pub findings: u64,
}

/// A mode and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suggestion {
    /// The mode.
    pub mode: Mode,
    /// The reasons, one sentence each; never empty.
    pub because: Vec<String>,
}

/// The mode that suits `usage`.
pub fn suggest(usage: &Usage) -> Suggestion {
    if usage.findings > 0 {
        let because =
            format!("{} of severity high or above: confine first, then look", count(usage.findings, "finding"));
        return Suggestion { mode: Mode::Isolation, because: vec![because] };
    }
    let mut because = Vec::new();
    if usage.used_network {
        because.push("it used the network, which isolation never has".to_owned());
    }
    if usage.written_outside > 0 {
        let files = count(usage.written_outside, "file");
        because.push(format!("it wrote {files} outside of its working directory"));
    }
    if usage.refused_calls > 0 {
        let calls = count(usage.refused_calls, "system call");
        because.push(format!("{calls} met the filter, and a laxer mode may allow them"));
    }
    let mode = match because.len() {
        0 => Mode::Isolation,
        // One or two things can be switched on by a policy each. Who needs all of them is developing.
        1 | 2 => Mode::Hybrid,
        _ => Mode::Development,
    };
    if because.is_empty() {
        because.push("it used no network, wrote only in its working directory and no call was refused".to_owned());
    }
    Suggestion { mode, because }
}

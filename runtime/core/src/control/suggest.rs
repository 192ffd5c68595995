//! Which mode would suit what a run was seen to do. Input: observed facts; output: the strictest mode that has what was used, with reasons. A
//! suggestion only: it changes nothing, and a mode is never suggested without a reason.

use serde::{Deserialize, Serialize};

use crate::amount::count;
use crate::event::Address;
use crate::policy::Mode;
use crate::summary::Account;

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

/// Where a run writes for itself.
const PRIVATE: [&str; 5] = ["/tmp", "/var/tmp", "/dev", "/proc", "/run"];

impl Usage {
    /// From what a run in `cwd` did, and how many findings of severity high or above there are about it.
    pub fn of(account: &Account, cwd: &str, findings: u64) -> Usage {
        let is_beneath = |path: &str, dir: &str| {
            path.strip_prefix(dir.trim_end_matches('/')).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        // In the root directory everything would be beneath it.
        let own = [cwd].into_iter().filter(|cwd| cwd.len() > 1).chain(PRIVATE);
        let is_outside = |path: &str| path.starts_with('/') && !own.clone().any(|dir| is_beneath(path, dir));
        let is_far = |peer: &str| match peer.parse() {
            Ok(Address::Inet(address)) => !address.ip().is_loopback(),
            Ok(_) | Err(_) => false,
        };
        Usage {
            used_network: account.peers.counts.keys().any(|peer| is_far(peer)),
            written_outside: account.written.counts.keys().filter(|path| is_outside(path)).count() as u64,
            refused_calls: account.refused.counts.values().sum(),
            findings,
        }
    }
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

//! Audit records: who did what to which sandbox, in a trail whose tampering shows.
//!
//! Input: a [`Record`] of each operation, refused ones included. Output: one line of JSON each, an event of the Open Cybersecurity Schema Framework
//! (API Activity, class 6003, schema 1.8.0: `events/application/api_activity.json` and what it includes), sealed to the line before it. What
//! has no place in the schema stands in `unmapped`. Secrets are masked and sizes bounded before a line is sealed.
//!
//! # What is hashed
//!
//! A line ends `,"prev_sha256":"P","sha256":"H"}}`, the two last keys of `unmapped`. P is the H of the line before, or 64 zeros in the first line ever.
//! H is the SHA-256, in lower case hex, of the bytes of the line from its first brace up to and without `,"sha256":`. P is among them, and so is
//! every other byte of the event. Nothing has to be parsed or sorted to check it:
//!
//! ```sh
//! sed 's/,"sha256":"[0-9a-f]*"}}$//' line | tr -d '\n' | sha256sum
//! ```
//!
//! # What it shows, and what not
//!
//! A line that was edited, removed, put elsewhere or added breaks the chain where it stands. There is no key: whoever can write the whole file can
//! build another chain, or cut off its end. Against both, note the head ([`Chain::head`]) where that somebody cannot write (the journal, another host)
//! and give it to [`verify`].
//!
//! This module must not read a clock, write a file, or leave out a record.

mod chain;
mod event;
mod mask;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::access::{Operation, Role};

pub use chain::{Anchors, Broken, Chain, GENESIS, Head, LINE_BYTES_MAX, Verdict, goes_on_after, verify};
pub use event::{CLASS_UID, only_reads};
pub use mask::{MASK, mask, mask_value, mask_words};

/// Who did it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// User id, as the kernel told it of the socket's peer.
    pub uid: u32,
    /// Process id, likewise; 0 for the daemon itself.
    pub pid: u32,
    /// The roles by which it was judged; empty for a stranger.
    pub roles: Vec<Role>,
}

/// To what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Id of the sandbox; empty where none is concerned.
    pub id: String,
    /// Its name.
    pub name: String,
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was allowed, and done.
    Allowed,
    /// It was refused, and nothing was done.
    Refused,
    /// It was allowed and could not be done, or only in part.
    Failed,
}

impl Outcome {
    /// The name in output.
    pub const fn name(self) -> &'static str {
        match self {
            Outcome::Allowed => "allowed",
            Outcome::Refused => "refused",
            Outcome::Failed => "failed",
        }
    }
}

/// One operation. Its number in the trail is given by the [`Chain`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When, in milliseconds since 1970 UTC.
    pub time_ms: u64,
    /// Who.
    pub actor: Actor,
    /// What.
    pub operation: Operation,
    /// To what.
    pub target: Target,
    /// How it went.
    pub outcome: Outcome,
    /// Why: the rule that allowed, the words of the refusal or of the failure.
    pub reason: String,
    /// What was in force before; null where that says nothing.
    pub before: Value,
    /// What is in force after.
    pub after: Value,
}

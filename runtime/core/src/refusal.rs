//! Why something was refused: what the sandbox tried, which layer and rule stood in the way, and the smallest safe change.

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::layer::Layer;
use crate::policy::Origin;

/// What a file system call wanted to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Look at it: stat, access, readlink.
    Look,
    /// Open for reading, list a directory.
    Read,
    /// Open for writing, create, remove, rename, change attributes.
    Write,
    /// Execute.
    Exec,
}

/// One thing that the sandbox tried and did not get, as the jail saw it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Attempt {
    /// A system call that the filter refused.
    Syscall {
        /// Its name, or its number when it has none here.
        name: String,
        /// `x86_64`, `i386`, `x32`, `aarch64`, `arm`.
        abi: String,
        /// The six argument registers.
        args: [u64; 6],
    },
    /// A path, as the sandbox named it, made absolute.
    Path {
        /// The path inside. A sandbox may choose a name that is no UTF-8: that must not stop the report.
        #[serde(serialize_with = "lossy")]
        path: PathBuf,
        /// What it wanted.
        access: Access,
        /// Whether the path exists inside the sandbox.
        exists_inside: bool,
        /// Whether it exists outside.
        exists_outside: bool,
    },
    /// An address, as text (`inet:192.0.2.1:80`, `unix:/run/x.sock`, `abstract:@x`).
    Address {
        /// `connect`, `bind` or `sendto`.
        call: String,
        /// The address.
        address: String,
    },
    /// A limit that was reached.
    Limit {
        /// `memory`, `tasks`, `wall-time`, `tmpfs`, `file-size`, `open-files`.
        resource: String,
        /// The limit, as a person would write it.
        limit: String,
    },
}

/// An attempt and how often it was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// What was tried.
    #[serde(flatten)]
    pub attempt: Attempt,
    /// Name of the process (`/proc/PID/comm`) that tried it first.
    pub comm: String,
    /// Its pid inside the sandbox, 0 when not known.
    pub pid: i32,
    /// How often.
    pub count: u64,
    /// The error it got (errno name), or `reported` when it was let through and recorded.
    pub outcome: String,
}

/// A refusal in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The refusal.
    #[serde(flatten)]
    pub refusal: Refusal,
    /// What was tried, in one line.
    pub tried: String,
    /// The layer that refused.
    pub layer: Option<Layer>,
    /// What stood in the way, in one line.
    pub because: String,
    /// The rule, when one rule decided.
    pub rule: Option<Origin>,
    /// The smallest safe change that allows it, as flags; `None` when nothing safe does.
    pub change: Option<String>,
    /// What to think of before making that change.
    pub caution: Option<String>,
}

fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

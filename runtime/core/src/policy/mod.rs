//! What a sandbox may do. [`Policy`] is the merged and checked result; the file format and the merge live beside it.

mod ceiling;
mod embedded;
mod error;
mod file;
mod flags;
#[cfg(test)]
mod generate;
mod generated;
mod level;
mod merge;
pub(crate) mod path;
mod resolve;
#[cfg(feature = "schema")]
mod schema;
mod source;
#[cfg(test)]
mod tests;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::layer::{Layer, Requirement};

pub use ceiling::Bounds;
pub use error::PolicyError;
pub(crate) use error::nearest;
pub use file::FILE_SIZE_MAX;
pub(crate) use file::Lines;
pub(crate) use file::{LearnedTable, SeenTable, shaped};
pub use flags::{Flags, time_ms};
pub use level::IsolationLevel;
pub use merge::PATH_RULES_MAX;
pub use path::is_within;
pub(crate) use path::normalise;
pub use resolve::{
    DEPTH_MAX, FILES_MAX, Inputs, LEARNING, PROFILES, Sources, mode_text, modes_allowing, resolve, resolve_for_learning,
};
#[cfg(feature = "schema")]
pub use schema::json_schema;
pub(crate) use value::Millis;

/// What a policy file says about the runs that it was learned from. Reads the whole file: what is no policy is refused.
pub(crate) fn learned_table(text: &str, file: &str) -> Result<Option<LearnedTable>, PolicyError> {
    let lines = file::Lines::new(file.to_owned(), text);
    Ok(file::parse(text, &lines)?.learned)
}

/// A named set of defaults and of features that are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Everything on, nothing granted that is not needed to run a program.
    Isolation,
    /// Readable host, writable working directory, dangerous operations reported where the kernel allows that.
    Development,
    /// Between the two, each feature switched by the policy.
    Hybrid,
}

impl Mode {
    /// The name in flags and files.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Isolation => "isolation",
            Mode::Development => "development",
            Mode::Hybrid => "hybrid",
        }
    }
}

/// Where a rule was written: a file with its line, or a flag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// `modes/isolation.toml` for what is embedded, an absolute path for files, `--ro` for flags.
    pub source: String,
    /// Line in that file, from 1; 0 for flags.
    pub line: u32,
}

impl Origin {
    /// A rule that came from a command line flag.
    pub fn flag(name: &str) -> Self {
        Origin { source: name.to_owned(), line: 0 }
    }

    /// Whether it is a built-in mode or profile.
    pub(crate) fn is_embedded(&self) -> bool {
        self.source.starts_with("modes/") || self.source.starts_with("profiles/")
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 { f.write_str(&self.source) } else { write!(f, "{}:{}", self.source, self.line) }
    }
}

/// One path that the policy speaks of. Paths are absolute; variables are already expanded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Grant {
    /// Path on the host.
    pub path: PathBuf,
    /// Path in the sandbox.
    pub dest: PathBuf,
    /// Why it is granted, in a few words.
    pub reason: String,
    /// Whether a host that lacks the path may go without it.
    pub optional: bool,
    /// Where the rule stands.
    pub origin: Origin,
}

/// A private, empty, memory-backed directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TmpfsGrant {
    /// Path in the sandbox.
    pub dest: PathBuf,
    /// Bytes; `None` takes `resources.tmp_size`.
    pub size_bytes: Option<u64>,
    /// Where the rule stands.
    pub origin: Origin,
}

/// How much of /proc the sandbox sees. Always a fresh procfs of its own pid namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ProcView {
    /// No /proc.
    None,
    /// Its own processes only (`subset=pid,hidepid=invisible`).
    Pid,
    /// System files too, read-only, with the revealing ones masked.
    Masked,
}

/// Files and directories.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Filesystem {
    /// Readable.
    pub read: Vec<Grant>,
    /// Readable and writable.
    pub write: Vec<Grant>,
    /// Where files may be executed (mapped PROT_EXEC too); does not make anything visible by itself.
    pub exec: Vec<Grant>,
    /// Names that stand inside without what is behind them: a symbolic link as it is, a directory as an empty one.
    pub names: Vec<Grant>,
    /// Shown as empty.
    pub hide: Vec<Grant>,
    /// Refused under every name, also before the file exists. Always wins.
    pub deny: Vec<Grant>,
    /// Private memory-backed directories.
    pub tmpfs: Vec<TmpfsGrant>,
    /// How much of /proc.
    pub proc: ProcView,
}

/// Network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// An empty network namespace; its loopback is up.
    None,
    /// The network of the host.
    Host,
}

/// What happens to a system call that no allowed group holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum SyscallDefault {
    /// Refused.
    Deny,
    /// Carried out and recorded, except what the kernel cannot let through safely.
    Report,
    /// Carried out.
    Allow,
}

/// System calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Syscalls {
    /// For a call in no group that is allowed or denied.
    pub default: SyscallDefault,
    /// Allowed groups (see [`crate::seccomp`]), with the place of the rule.
    pub allow: BTreeMap<String, Origin>,
    /// Groups refused whatever allows them.
    pub deny: BTreeMap<String, Origin>,
    /// Whether 32-bit programs (i386 on x86-64, arm on arm64) may run.
    pub compat: bool,
}

/// Limits. `None` is unlimited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Resources {
    /// Memory of the whole sandbox, tmpfs included, in bytes.
    pub memory_bytes: Option<u64>,
    /// Swap on top of it, in bytes.
    pub swap_bytes: Option<u64>,
    /// CPU time, in percent of one core.
    pub cpu_percent: Option<u32>,
    /// Processes and threads.
    pub tasks: Option<u64>,
    /// Open descriptors of one process.
    pub open_files: Option<u64>,
    /// Largest file, in bytes.
    pub file_size_bytes: Option<u64>,
    /// Size of each tmpfs, in bytes.
    pub tmp_size_bytes: u64,
    /// Life of the sandbox, in milliseconds.
    pub wall_time_ms: Option<u64>,
}

/// Environment variables: only these go in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Environment {
    /// Passed from the caller when set there.
    pub pass: Vec<String>,
    /// Set to a value.
    pub set: BTreeMap<String, String>,
}

/// Who the program seems to be. `None` takes the default: the caller's own id, or 1000 for root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// User id inside.
    pub uid: Option<u32>,
    /// Group id inside.
    pub gid: Option<u32>,
    /// Host name inside.
    pub hostname: String,
}

/// Whether the program gets a terminal of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Tty {
    /// When standard input and output are one.
    Auto,
    /// Always.
    Yes,
    /// Never.
    No,
}

/// A policy: merged, checked against the ceiling of its mode, every variable expanded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// The mode whose defaults it stands on.
    pub mode: Mode,
    /// How many layers the sandbox has.
    pub level: IsolationLevel,
    /// Everything merged, in order: `modes/isolation.toml`, `profiles/python.toml`, `/home/u/job.toml`, `flags`.
    pub sources: Vec<String>,
    /// The administrator's and the user's directory of modes, profiles and rules, whether they are there or not: later runs go by what is in them.
    #[serde(skip)]
    pub config: Vec<PathBuf>,
    /// Files and directories.
    pub filesystem: Filesystem,
    /// Network.
    pub network: Network,
    /// System calls.
    pub syscalls: Syscalls,
    /// Capabilities kept inside the user namespace, by name (`CAP_...`); empty by default.
    pub capabilities: Vec<String>,
    /// Limits.
    pub resources: Resources,
    /// Environment.
    pub environment: Environment,
    /// Identity.
    pub identity: Identity,
    /// Terminal.
    pub tty: Tty,
    /// Requirement of each layer; every layer is present.
    pub layers: BTreeMap<Layer, Requirement>,
    /// Mailboxes that it may use.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mailboxes: Vec<crate::mail::Rule>,
}

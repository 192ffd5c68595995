//! A policy fully resolved against a host: the explicit steps, nothing left implied.
//!
//! Input: a [`Policy`](crate::policy::Policy), a [`Request`] and a [`Host`](crate::host::Host). Output: a [`Plan`] that the jail carries
//! out in the order in which its fields stand, or a [`PlanError`]. The plan names everything it wants; it opens nothing.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

use crate::layer::{Layer, Requirement};
use crate::policy::{IsolationLevel, Mode, Network, Origin, ProcView};
use crate::watch::Level;

/// What the command line asks for beside the policy.
#[derive(Clone, Debug)]
pub struct Request {
    /// The command and its arguments; the first is looked up in the sandbox's PATH unless it holds a slash.
    pub argv: Vec<OsString>,
    /// Working directory inside, when asked for.
    pub workdir: Option<PathBuf>,
    /// Descriptors above 2 that are passed.
    pub fds: Vec<i32>,
    /// Whether standard input and output are a terminal.
    pub on_terminal: bool,
    /// Whether refusals are recorded (`--why`): refused calls go to a listener, and path calls are observed.
    pub record: bool,
    /// How much of it is watched: unless nothing, refused calls go to a listener.
    pub watch: Level,
    /// The directory in which apexd listens for its messages.
    pub mail: Option<PathBuf>,
}

/// The plan of one sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Version of this shape.
    pub version: u32,
    /// Mode.
    pub mode: Mode,
    /// How many layers the sandbox has; `layers` has those that it leaves out as off.
    pub level: IsolationLevel,
    /// What the policy says by default and the level has no layer for, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub given_up: Vec<String>,
    /// What was merged into the policy, in order.
    pub sources: Vec<String>,
    /// What rules deny or hide in what they grant, at a level where nothing is mounted over it: no Landlock rule gives it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub withheld: Vec<PathBuf>,
    /// Requirement of each layer, after what the host lacks was taken out (see `skipped`).
    pub layers: BTreeMap<Layer, Requirement>,
    /// Optional layers that this host cannot give, with the reason.
    pub skipped: BTreeMap<Layer, String>,
    /// Limits of the whole sandbox.
    pub cgroup: Option<CgroupPlan>,
    /// Ids.
    pub identity: IdentityPlan,
    /// Network namespace.
    pub network: Network,
    /// What is put into the new root, in this order.
    pub mounts: Vec<Mount>,
    /// Limits of each process.
    pub rlimits: Vec<Rlimit>,
    /// Capabilities kept, by name.
    pub capabilities: Vec<String>,
    /// Landlock rules.
    pub landlock: Option<LandlockPlan>,
    /// System call filter.
    pub seccomp: Option<crate::seccomp::Table>,
    /// Whether refused system calls and path calls go to the recording listener.
    pub record: bool,
    /// How much is watched; with [`Level::Off`] nothing of the watch exists.
    #[serde(skip_serializing_if = "Level::is_off")]
    pub watch: Level,
    /// Where writes go when they do not reach the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlay: Option<OverlayPlan>,
    /// The program.
    pub command: CommandPlan,
    /// Milliseconds until the sandbox is ended.
    pub wall_time_ms: Option<u64>,
    /// Whether the program gets a terminal of its own.
    pub tty: bool,
    /// Descriptors above 2 that are passed.
    pub fds: Vec<i32>,
    /// Mailboxes that it may use, over the socket in [`crate::planner::MAIL_DIR`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mailboxes: Vec<crate::mail::Rule>,
}

impl Plan {
    /// SHA-256 of the plan, in hexadecimal: two runs with the same one had the same confinement.
    pub fn digest(&self) -> String {
        use sha2::{Digest, Sha256};
        // The derived form names every field, so it changes whenever the plan does.
        let bytes = Sha256::digest(format!("{self:?}").as_bytes());
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether a layer is to be put in force.
    pub fn has(&self, layer: Layer) -> bool {
        self.layers.get(&layer) != Some(&Requirement::Off) && !self.skipped.contains_key(&layer)
    }
}

/// Limits on groups of processes (cgroups(7)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CgroupPlan {
    /// Bytes.
    pub memory_bytes: Option<u64>,
    /// Bytes on top of it.
    pub swap_bytes: Option<u64>,
    /// Percent of one core.
    pub cpu_percent: Option<u32>,
    /// Processes and threads.
    pub tasks: Option<u64>,
}

/// Ids inside and outside (user_namespaces(7)). Exactly one id of each kind is mapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IdentityPlan {
    /// User id inside.
    pub uid: u32,
    /// Group id inside.
    pub gid: u32,
    /// The caller's ids: files of this owner appear as `uid`.
    pub caller_uid: u32,
    /// The caller's group.
    pub caller_gid: u32,
    /// Whether the sandbox gets host ids of its own (root can give them; binds are then idmapped).
    pub own_host_ids: bool,
    /// Host name.
    pub hostname: String,
}

/// The layers on top of writable pieces of the host ([`BindAccess::Overlay`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum OverlayPlan {
    /// In memory, gone with the sandbox.
    Discarded {
        /// Bytes.
        size_bytes: u64,
    },
    /// In a directory of the host. Layer N lies in `N/`, where N counts the overlaid mounts of the plan.
    Kept {
        /// The directory.
        dir: PathBuf,
        /// Whether its owners are translated.
        idmap: bool,
    },
}

/// What may be done with a bind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BindAccess {
    /// Read only.
    Read,
    /// Read and write.
    Write,
    /// Read, and write to a layer on top: nothing reaches the piece of the host.
    Overlay,
}

/// Kind of a mount point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Directory.
    Dir,
    /// Anything else.
    File,
}

/// One step of building the new root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "step")]
pub enum Mount {
    /// A piece of the host.
    Bind {
        /// Path on the host.
        source: PathBuf,
        /// Path inside.
        dest: PathBuf,
        /// Read or write.
        access: BindAccess,
        /// Whether files may be executed.
        exec: bool,
        /// Kind of what is there.
        kind: Kind,
        /// Whether owners are translated so that the caller's files belong to the sandbox's user.
        idmap: bool,
        /// Why.
        reason: String,
        /// The rule.
        origin: Origin,
    },
    /// A symbolic link, as on the host.
    Symlink {
        /// Path inside.
        dest: PathBuf,
        /// Its target.
        target: PathBuf,
    },
    /// An empty directory.
    Dir {
        /// Path inside.
        dest: PathBuf,
    },
    /// A small read-only file made by Apex (`/etc/passwd`).
    File {
        /// Path inside.
        dest: PathBuf,
        /// What it says.
        content: String,
    },
    /// A private memory-backed directory.
    Tmpfs {
        /// Path inside.
        dest: PathBuf,
        /// Bytes.
        size_bytes: u64,
        /// Whether files may be executed.
        exec: bool,
        /// The rule.
        origin: Origin,
    },
    /// Fresh procfs.
    Proc {
        /// How much of it.
        view: ProcView,
    },
    /// Minimal /dev: null, zero, full, random, urandom, tty, a private devpts, a private shm.
    Dev {
        /// Bytes of /dev/shm.
        shm_size_bytes: u64,
    },
    /// An empty read-only thing over a hidden path.
    Hide {
        /// Path inside.
        dest: PathBuf,
        /// Kind of what is there.
        kind: Kind,
        /// The rule.
        origin: Origin,
    },
    /// An unreadable thing over a denied path. Its ancestors within the same bind are pinned, so that no rename moves it away.
    Deny {
        /// Path inside.
        dest: PathBuf,
        /// Path on the host; empty for a path in a tmpfs of the sandbox.
        source: PathBuf,
        /// Kind of what is there; `None` when nothing is there yet and a placeholder must hold the name.
        kind: Option<Kind>,
        /// Directories inside, outermost first, that must not be renamed.
        pins: Vec<PathBuf>,
        /// The rule.
        origin: Origin,
    },
}

/// One limit of setrlimit(2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rlimit {
    /// `nofile`, `fsize`, `nproc`, `core`, `memlock`.
    pub name: &'static str,
    /// Soft and hard limit.
    pub value: u64,
}

/// Landlock rules (landlock(7)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LandlockPlan {
    /// ABI of the host; rights above it are not handled.
    pub abi: u32,
    /// Rules by path inside; what no rule grants is refused.
    pub rules: Vec<LandlockRule>,
    /// Whether TCP bind and connect are refused.
    pub tcp_refused: bool,
    /// Whether signals and abstract sockets stay inside.
    pub scoped: bool,
}

/// Rights beneath one path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LandlockRule {
    /// Path inside.
    pub path: PathBuf,
    /// List directories.
    pub list: bool,
    /// Read files.
    pub read: bool,
    /// Write, create, remove, rename, truncate.
    pub write: bool,
    /// Execute.
    pub exec: bool,
    /// ioctl on devices.
    pub ioctl: bool,
}

/// The program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CommandPlan {
    /// Paths to try, in order; more than one when PATH is searched.
    pub candidates: Vec<PathBuf>,
    /// Arguments, the name first.
    #[serde(serialize_with = "lossy")]
    pub argv: Vec<OsString>,
    /// Environment as `K=V`.
    #[serde(serialize_with = "lossy")]
    pub env: Vec<OsString>,
    /// Directories to try for the working directory, the last of which always exists (`/`), unless one was asked for.
    pub workdir: Vec<PathBuf>,
}

fn lossy<S: Serializer>(words: &[OsString], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(words.iter().map(|word| word.to_string_lossy()))
}

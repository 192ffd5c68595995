//! What can go wrong with a cgroup, one variant per step.

use std::io;
use std::path::PathBuf;

/// A step on a cgroup that failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// There is no way to limits here.
    #[error("cannot limit the sandbox: {reason}; {remedy}")]
    Unavailable {
        /// What stands in the way.
        reason: String,
        /// What to do.
        remedy: String,
    },
    /// Some controllers that the plan needs are not there.
    #[error(
        "cannot limit the sandbox: the controllers {controllers} are not available in {place}; delegate them, leave their limits out, or give --optional cgroup"
    )]
    Lacks {
        /// Their names.
        controllers: String,
        /// Where they were looked for.
        place: String,
    },
    /// The directory exists already, and what somebody else made is never adopted.
    #[error("cannot make the cgroup {path}: the name is taken, although it is random; see who makes cgroups there", path = path.display())]
    NameTaken {
        /// The directory.
        path: PathBuf,
    },
    /// The directory cannot be made.
    #[error("cannot make the cgroup {path}", path = path.display())]
    Make {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A controller cannot be switched on for children.
    #[error("cannot enable {controllers} for the children of {dir}; cgroup v2 allows it only while no process is in that directory itself", dir = dir.display())]
    Enable {
        /// What was written.
        controllers: String,
        /// The parent directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A limit was not taken by the kernel.
    #[error("cannot set {file} to {value}", file = file.display())]
    Limit {
        /// The control file.
        file: PathBuf,
        /// The value.
        value: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The host swaps and does not count it.
    #[error(
        "cannot limit swap: this kernel swaps but does not account for it; boot with swapaccount=1, turn swap off, or leave the swap limit out"
    )]
    SwapUncounted,
    /// v1 limits only the sum of memory and swap.
    #[error("cannot limit swap without memory: cgroup v1 limits only the sum of both; give a memory limit too")]
    SwapAlone,
    /// A process cannot be put into the cgroup.
    #[error("cannot put process {pid} into the cgroup {dir}", dir = dir.display())]
    Attach {
        /// The process.
        pid: i32,
        /// The cgroup.
        dir: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file through which a process enters cannot be opened.
    #[error("cannot open {file}, through which the sandbox enters its cgroup", file = file.display())]
    Door {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the kernel cannot be read.
    #[error("cannot read {file}", file = file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the kernel says something unexpected.
    #[error("cannot understand {file}: it says {text:?}", file = file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// The beginning of what it says.
        text: String,
    },
    /// The processes cannot be killed or frozen.
    #[error("cannot write {value:?} to {file}", file = file.display())]
    Write {
        /// The control file.
        file: PathBuf,
        /// The value.
        value: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Some processes were still there after the last round of kills.
    #[error("{left} processes of the cgroup {dir} did not die of SIGKILL in time; they may hang in the kernel", dir = dir.display())]
    Unkillable {
        /// How many.
        left: usize,
        /// The cgroup.
        dir: PathBuf,
    },
    /// The directory cannot be removed.
    #[error("cannot remove the cgroup {path}", path = path.display())]
    Remove {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// v1 freezes in a hierarchy of its own, which a sandbox does not enter.
    #[error(
        "cannot freeze the sandbox: its cgroup is of v1, and only v2 freezes; mount cgroup2, or run as an ordinary user, whose tracer can hold it"
    )]
    FreezeUnsupported,
    /// A limit is to be changed that was never set.
    #[error(
        "cannot change the limit of {resource}: the sandbox was made without one, so its cgroup has no such controller; set one at its start"
    )]
    NoDial {
        /// Of what.
        resource: &'static str,
    },
    /// The systemd user manager did not do what was asked.
    #[error(
        "cannot start the scope {unit} through the systemd user manager; see `systemctl --user status`, or give --optional cgroup"
    )]
    Bus {
        /// The unit.
        unit: String,
        /// Why.
        source: Box<zbus::Error>,
    },
    /// The systemd user manager agreed, and the process is still elsewhere.
    #[error(
        "the systemd user manager started the scope {unit} but process {pid} is still in {found}; see `systemctl --user status {unit}`"
    )]
    NotPlaced {
        /// The unit.
        unit: String,
        /// The process.
        pid: i32,
        /// Its cgroup.
        found: String,
    },
    /// Asked for before `attach`.
    #[error("the scope {unit} does not exist yet: it starts with its first process")]
    NotStarted {
        /// The unit.
        unit: String,
    },
}

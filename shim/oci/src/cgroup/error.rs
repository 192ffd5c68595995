//! What can go wrong with a container's cgroup, one variant per step.

use std::io;
use std::path::PathBuf;

/// A step on a container's cgroup that failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The look at the host.
    #[error("cannot see which cgroups this host has: reading {file} failed; mount /proc", file = file.display())]
    Look {
        /// The file of /proc.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No cgroup file system at all.
    #[error("no cgroup hierarchy is mounted here; mount cgroup2 on /sys/fs/cgroup")]
    NoHierarchy,
    /// The path that the bundle names is none.
    #[error("linux.cgroupsPath {path:?} cannot be used: {reason}")]
    Path {
        /// As the bundle has it.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A directory cannot be made.
    #[error("cannot make the cgroup {dir}; give a linux.cgroupsPath below a cgroup that this user may write", dir = dir.display())]
    Make {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A user without a delegated cgroup.
    #[error(
        "cannot make the cgroup {dir} for uid {uid}: that directory is not delegated to it (rootless needs no limits + no cgrouppath when no permission is granted for cgroups); delegate one (`systemd-run --user --scope -p Delegate=yes`), use --systemd-cgroup, or leave linux.resources and linux.cgroupsPath out",
        dir = dir.display()
    )]
    NotDelegated {
        /// The directory.
        dir: PathBuf,
        /// Who asked.
        uid: u32,
        /// Why.
        source: io::Error,
    },
    /// The cgroup exists and is frozen: whoever enters it never runs.
    #[error("the container's cgroup unexpectedly frozen: {dir} exists and is frozen; thaw it, or give another linux.cgroupsPath", dir = dir.display())]
    Frozen {
        /// The directory.
        dir: PathBuf,
    },
    /// A value that the kernel or the specification does not know.
    #[error("linux.resources.{field} is {value}: {reason}")]
    Invalid {
        /// The field, as the specification names it.
        field: String,
        /// As the bundle has it.
        value: String,
        /// What is allowed.
        reason: &'static str,
    },
    /// A limit of a controller that is not there.
    #[error(
        "cannot set {controller} limit: container could not join or create cgroup: the {controller} controller is not available here, so {value:?} cannot be written to {file}; enable the controller or leave the limit out"
    )]
    NoController {
        /// The controller.
        controller: String,
        /// The file that would have been written.
        file: String,
        /// What would have been written.
        value: String,
    },
    /// A limit that the kernel refuses.
    #[error("cannot set the {controller} limit: writing {value:?} to {file} failed{hint}", file = file.display())]
    Set {
        /// The controller.
        controller: String,
        /// The file.
        file: PathBuf,
        /// What was written.
        value: String,
        /// What it usually means, or nothing.
        hint: &'static str,
        /// Why.
        source: io::Error,
    },
    /// `checkBeforeUpdate` stood in the way.
    #[error(
        "rejecting memory limit {limit}: the container already uses {usage} bytes; give more, or leave checkBeforeUpdate out"
    )]
    BelowUsage {
        /// Bytes asked for.
        limit: i64,
        /// Bytes in use.
        usage: u64,
    },
    /// Raw files of v2 were asked for on v1.
    #[error(
        "invalid configuration: linux.resources.unified cannot be used on cgroup v1; use memory, cpu and their like"
    )]
    UnifiedOnV1,
    /// A device rule that the allow list of cgroup v1 cannot say.
    #[error(
        "the device rule {rule} cannot be kept on cgroup v1: it would cut a hole into what {wider} allows; allow the single devices instead"
    )]
    DeviceHole {
        /// The rule that denies.
        rule: String,
        /// The rule that allows more.
        wider: String,
    },
    /// A device rule that says nothing valid.
    #[error("the device rule {rule} is malformed: {reason}")]
    DeviceRule {
        /// The rule.
        rule: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The kernel does not take the device program.
    #[error("cannot load the program that guards the container's devices; the kernel says: {log}")]
    DeviceProgram {
        /// The verifier's words.
        log: String,
        /// Why.
        source: io::Error,
    },
    /// The device program cannot be tied to the cgroup.
    #[error("cannot attach the program that guards the container's devices to {dir}", dir = dir.display())]
    DeviceAttach {
        /// The cgroup.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the cgroup cannot be read.
    #[error("cannot read {file}", file = file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the cgroup says what it never says.
    #[error("{file} is malformed: {text:?}", file = file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// The part that cannot be read.
        text: String,
    },
    /// The way in cannot be opened.
    #[error("cannot open {file}, the way into the container's cgroup", file = file.display())]
    Door {
        /// The file or directory.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no such cgroup.
    #[error(
        "no way for adding pid of the new process to {dir}/cgroup.procs: no such file or directory; a cgroup below the container's is made first, in the container",
        dir = dir.display()
    )]
    NoDoor {
        /// The cgroup.
        dir: PathBuf,
    },
    /// A process cannot go in by itself.
    #[error("the container's first process cannot enter its cgroup (way {number} of {count})")]
    Enter {
        /// Which of the files, from 1.
        number: usize,
        /// Of how many.
        count: usize,
        /// Why.
        source: io::Error,
    },
    /// A process cannot be put in.
    #[error("cannot put process {pid} into the cgroup {dir}", dir = dir.display())]
    Attach {
        /// The process.
        pid: i32,
        /// The cgroup.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing to freeze with.
    #[error("cannot {verb} the container: its cgroup has no freezer; mount the freezer hierarchy, or use cgroup v2")]
    NoFreezer {
        /// What was asked for.
        verb: &'static str,
    },
    /// The kernel did not come to the state in time.
    #[error(
        "cannot {verb} the container: {dir} is not there after {seconds} s, a process in it sleeps uninterruptibly; what was asked for is taken back",
        dir = dir.display()
    )]
    FreezeTimeout {
        /// What was asked for.
        verb: &'static str,
        /// The cgroup.
        dir: PathBuf,
        /// How long it was waited.
        seconds: u64,
    },
    /// A process could not be signalled.
    #[error("cannot send signal {signal} to process {pid} of the container")]
    Signal {
        /// The signal.
        signal: i32,
        /// The process.
        pid: i32,
        /// Why.
        source: io::Error,
    },
    /// Processes outlive SIGKILL.
    #[error("{left} processes in {dir} do not end after SIGKILL; they wait in the kernel (see /proc/PID/stack)", dir = dir.display())]
    Unkillable {
        /// How many.
        left: usize,
        /// The cgroup.
        dir: PathBuf,
    },
    /// A directory cannot be removed.
    #[error("cannot remove the cgroup {dir}; processes are still in it: `kill` the container with --all first", dir = dir.display())]
    Remove {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The container was started without a cgroup.
    #[error(
        "the container has no cgroup, so it cannot {verb}; it was started without one: rootless and without limits, or with --cgroup-manager=disabled"
    )]
    None {
        /// What was asked for.
        verb: &'static str,
    },
    /// A sub path that is none.
    #[error("the cgroup {path:?} below the container's own cannot be used: {reason}")]
    SubPath {
        /// As it was given.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// OOM notifications cannot be had.
    #[error("cannot watch for OOM kills in {dir}", dir = dir.display())]
    Watch {
        /// The cgroup.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `--systemd-cgroup` with a path that is no triple.
    #[error("with --systemd-cgroup linux.cgroupsPath is slice:prefix:name, not {path:?}: {reason}")]
    Triple {
        /// As the bundle has it.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An annotation that is no property.
    #[error("the annotation {key} = {value:?} is no systemd property: {reason}")]
    Annotation {
        /// Its key.
        key: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// systemd said no.
    #[error(transparent)]
    Systemd(#[from] apex_jail::cgroup::unit::UnitError),
}

impl CgroupError {
    /// An unreadable file.
    pub(super) fn read(file: PathBuf, source: impl Into<io::Error>) -> CgroupError {
        CgroupError::Read { file, source: source.into() }
    }

    /// A file in words that are not the kernel's.
    pub(super) fn malformed(file: PathBuf, text: &str) -> CgroupError {
        CgroupError::Malformed { file, text: text.chars().take(80).collect() }
    }

    /// A value out of its range.
    pub(super) fn invalid(field: impl Into<String>, value: impl ToString, reason: &'static str) -> CgroupError {
        CgroupError::Invalid { field: field.into(), value: value.to_string(), reason }
    }
}

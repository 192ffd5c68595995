//! What a run that is learned from had, and what its learned policy will stand on. Input: two resolved policies and the ceiling. Output: a
//! [`Setting`], which crosses from `apex-run` to the prober as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::needs::leads_to;
use crate::policy::{Bounds, Filesystem, Grant, Mode, Network, Policy, ProcView, SyscallDefault};
use crate::seccomp::groups;

/// Most pieces that are handed on: with more the setting would not fit into a packet.
const PIECES_MAX: usize = 256;

/// What a learned policy depends on beside the events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Mode.
    pub mode: Mode,
    /// Profile that the learned policy extends.
    pub profile: Option<String>,
    /// Home directory of the caller, for `~`.
    pub home: Option<PathBuf>,
    /// Working directory, for `${CWD}`.
    pub cwd: PathBuf,
    /// What mode and profile grant by themselves.
    pub base: Granted,
    /// What the run had.
    pub run: Granted,
    /// What the ceiling forbids.
    pub bounds: Bounds,
    /// What is denied or hidden, on the host.
    pub refused: Vec<PathBuf>,
    /// What the command line or a policy file gave to the run beside files, calls and network: it is repeated.
    pub given: Given,
}

/// Grants of a policy, as far as learning compares them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// Pieces of the host.
    pub pieces: Vec<Piece>,
    /// Where files may be executed.
    pub exec: Vec<PathBuf>,
    /// Private directories in memory.
    pub tmpfs: Vec<PathBuf>,
    /// Groups of system calls that are carried out.
    pub groups: BTreeSet<String>,
    /// Whether there is the network of the host.
    pub has_network: bool,
}

/// A piece of the host in the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Path inside.
    pub dest: PathBuf,
    /// Path on the host.
    pub source: PathBuf,
    /// Whether it is writable.
    pub write: bool,
}

/// What else the run was given beyond mode and profile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// Variables passed.
    pub pass: Vec<String>,
    /// Variables set, without their values: what is learned is read by others.
    pub set: Vec<String>,
    /// Capabilities kept.
    pub capabilities: Vec<String>,
    /// View of /proc, when it differs.
    pub proc: Option<ProcView>,
    /// What was denied by a flag or a policy file of the run.
    #[serde(default)]
    pub deny: Vec<PathBuf>,
    /// Limits that differ, by key of `[resources]`; `None` is unlimited. Bytes, counts, percents and milliseconds as they stand.
    pub limits: BTreeMap<String, Option<u64>>,
}

impl Setting {
    /// `base` is the policy of mode and profile alone, `run` the one that the command runs under.
    pub fn new(place: Place, base: &Policy, run: &Policy, bounds: Bounds) -> Setting {
        let refused = run.filesystem.deny.iter().chain(&run.filesystem.hide).map(|grant| grant.path.clone());
        Setting {
            mode: run.mode,
            profile: place.profile,
            home: place.home,
            cwd: place.cwd,
            base: Granted::of(base),
            run: Granted::of(run),
            bounds,
            refused: refused.collect(),
            given: Given::of(base, run, &place.config),
        }
    }

    /// The path on the host behind a path inside.
    pub(super) fn source(&self, path: &Path) -> PathBuf {
        match self.run.top(path) {
            Some(Top::Piece(piece)) => leads_to(piece, path),
            Some(Top::Tmpfs(_)) | None => path.to_owned(),
        }
    }

    /// Whether the learned policy starts from nothing in `[filesystem]`: a mode that reads the whole host leaves nothing to learn.
    pub fn starts_bare(&self) -> bool {
        self.base.pieces.iter().any(|piece| piece.dest == Path::new("/"))
    }
}

/// Who learns, and where.
#[derive(Clone, Debug)]
pub struct Place {
    /// `--profile`.
    pub profile: Option<String>,
    /// Home directory of the caller.
    pub home: Option<PathBuf>,
    /// Working directory.
    pub cwd: PathBuf,
    /// Directories of the administrator's and the user's own profiles.
    pub config: Vec<PathBuf>,
}

impl Granted {
    fn of(policy: &Policy) -> Granted {
        let Filesystem { read, write, exec, tmpfs, .. } = &policy.filesystem;
        let piece =
            |write: bool| move |grant: &Grant| Piece { dest: grant.dest.clone(), source: grant.path.clone(), write };
        let mut pieces: Vec<Piece> = write.iter().map(piece(true)).chain(read.iter().map(piece(false))).collect();
        pieces.truncate(PIECES_MAX);
        Granted {
            pieces,
            exec: exec.iter().map(|grant| grant.dest.clone()).take(PIECES_MAX).collect(),
            tmpfs: tmpfs.iter().map(|tmpfs| tmpfs.dest.clone()).take(PIECES_MAX).collect(),
            groups: groups::iter()
                .map(|group| group.name)
                .filter(|name| carries_out(policy, name))
                .map(str::to_owned)
                .collect(),
            has_network: policy.network == Network::Host,
        }
    }

    /// The deepest piece or private directory over a path.
    pub fn top(&self, path: &Path) -> Option<Top<'_>> {
        let depth = |path: &Path| path.components().count();
        let piece = self.pieces.iter().filter(|piece| path.starts_with(&piece.dest)).max_by_key(|p| depth(&p.dest));
        let tmpfs = self.tmpfs.iter().filter(|dest| path.starts_with(dest)).max_by_key(|dest| depth(dest));
        match (piece, tmpfs) {
            (Some(piece), Some(tmpfs)) if depth(tmpfs) >= depth(&piece.dest) => Some(Top::Tmpfs(tmpfs)),
            (Some(piece), _) => Some(Top::Piece(piece)),
            (None, Some(tmpfs)) => Some(Top::Tmpfs(tmpfs)),
            (None, None) => None,
        }
    }

    /// Whether files may be executed there.
    pub fn executes(&self, path: &Path) -> bool {
        self.exec.iter().any(|exec| path.starts_with(exec))
    }
}

/// What a path inside lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Top<'a> {
    /// A piece of the host.
    Piece(&'a Piece),
    /// A private directory.
    Tmpfs(&'a Path),
}

fn carries_out(policy: &Policy, group: &str) -> bool {
    let calls = &policy.syscalls;
    if group == groups::BASE {
        return true;
    }
    if calls.deny.contains_key(group) {
        return false;
    }
    calls.allow.contains_key(group)
        || match calls.default {
            SyscallDefault::Deny => false,
            SyscallDefault::Report => groups::find(group).is_some_and(|group| group.report),
            SyscallDefault::Allow => true,
        }
}

/// Whether mode, profile or the list of secrets denies it, which the learned policy stands on. That list is the built-in one or an own one.
fn is_built_in(base: &Policy, deny: &Grant, config: &[PathBuf]) -> bool {
    let source = &deny.origin.source;
    let is_secrets = |place: &Path| Path::new(source) == place.join("profiles/secrets.toml");
    base.sources.contains(source) || is_secrets(Path::new("")) || config.iter().any(|dir| is_secrets(dir))
}

impl Given {
    fn of(base: &Policy, run: &Policy, config: &[PathBuf]) -> Given {
        let old = &base.environment;
        let new = &run.environment;
        let limits = |policy: &Policy| {
            let resources = &policy.resources;
            [
                ("memory", resources.memory_bytes),
                ("swap", resources.swap_bytes),
                ("cpu", resources.cpu_percent.map(u64::from)),
                ("tasks", resources.tasks),
                ("open_files", resources.open_files),
                ("file_size", resources.file_size_bytes),
                ("tmp_size", Some(resources.tmp_size_bytes)),
                ("wall_time", resources.wall_time_ms),
            ]
        };
        let changed = new.set.iter().filter(|(name, value)| old.set.get(*name) != Some(value));
        let limits = limits(base).into_iter().zip(limits(run)).filter(|(old, new)| old != new);
        Given {
            pass: new.pass.iter().filter(|name| !old.pass.contains(name)).cloned().collect(),
            set: changed.map(|(name, _)| name.clone()).collect(),
            capabilities: run.capabilities.iter().filter(|name| !base.capabilities.contains(name)).cloned().collect(),
            deny: run
                .filesystem
                .deny
                .iter()
                .filter(|deny| !is_built_in(base, deny, config))
                .map(|deny| deny.path.clone())
                .collect(),
            proc: (base.filesystem.proc != run.filesystem.proc).then_some(run.filesystem.proc),
            limits: limits.map(|(_, (key, value))| (key.to_owned(), value)).collect(),
        }
    }
}

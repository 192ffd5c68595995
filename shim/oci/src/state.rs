//! What is known of a container between commands: a directory `ROOT/ID` with a record, the bundle's configuration and, until it is started, the
//! socket on which its init waits.
//!
//! Making the directory is what makes an id taken, so two creates of one id cannot both succeed. Its lock is held by whoever changes the
//! container; a directory without a whole record whose lock is free is what a killed create left behind.

use std::ffi::{CStr, CString};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use apex_sys::{Errno, fs, process};
use oci_spec::runtime::{Hooks, Spec};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;

/// The version of the specification that is spoken.
pub const OCI_VERSION: &str = "1.2.1";
/// The socket of a container that waits for its start.
pub const START: &CStr = c"start";
/// The bundle's configuration as it was when the container was created.
const CONFIG: &str = "config.json";
const RECORD: &str = "state.json";
const RECORD_NEW: &str = "state.json.new";
/// Bytes of an id: it becomes a name of directories.
const ID_BYTES_MAX: usize = 255;
/// Bytes of a record.
const RECORD_BYTES_MAX: u64 = 16 << 20;
/// How long a command waits for another that works on the same container, in steps of 10 ms.
const LOCK_TRIES_MAX: u32 = 1000;

/// What is wrong with an id or what is known of a container.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// An id that cannot be a name.
    #[error(
        "{0:?} cannot be a container's id: 1 to 255 letters, digits, `_`, `+`, `-` and `.` can, but not `.` or `..`"
    )]
    Id(String),
    /// The directory of all containers.
    #[error("cannot make or open the directory of containers {0}; --root names another")]
    Root(PathBuf, #[source] std::io::Error),
    /// The id is taken.
    #[error("container {0:?} exists already; delete it first or take another id")]
    Exists(String),
    /// There is no such container.
    #[error("container {id:?} does not exist in {}", root.display())]
    Missing {
        /// The id.
        id: String,
        /// Where it was looked for.
        root: PathBuf,
    },
    /// The directory of a container.
    #[error("cannot {0} the state of container {1:?}")]
    Directory(&'static str, String, #[source] std::io::Error),
    /// A record that is not one.
    #[error("the state of container {0:?} is damaged; `delete --force` removes what can be found of it")]
    Damaged(String, #[source] serde_json::Error),
    /// Another command is at it.
    #[error("another command has been working on container {0:?} for 10 s; try again when it is done")]
    Busy(String),
}

/// What is written down of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The version of the specification that the bundle names.
    pub oci_version: String,
    /// Its id.
    pub id: String,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// Absolute path of the root file system.
    pub rootfs: PathBuf,
    /// When it was created (RFC 3339, UTC).
    pub created: String,
    /// The user who created it.
    pub owner: u32,
    /// Its first process; 0 while there is none.
    pub pid: i32,
    /// When that process started, in clock ticks since boot: a pid alone may be another's by now.
    pub pid_started: u64,
    /// Its cgroup.
    pub cgroup: Option<Cgroup>,
    /// Of the bundle.
    #[serde(default)]
    pub annotations: std::collections::BTreeMap<String, String>,
    /// Hooks that run after this record was written: poststart and poststop.
    pub hooks: Option<Hooks>,
    /// Whether the first process is the first of a pid namespace, whose end is the end of all.
    pub has_own_pid_namespace: bool,
    /// Whether the mount namespace is the container's.
    pub has_own_mount_namespace: bool,
}

/// What a container is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// A create is under way.
    Creating,
    /// It waits for its start.
    Created,
    /// Its program runs.
    Running,
    /// Its program is frozen.
    Paused,
    /// Its program has ended.
    Stopped,
}

impl Status {
    /// As `state` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

/// The directory of all containers.
#[derive(Clone, Debug)]
pub struct Root {
    path: PathBuf,
}

impl Root {
    /// The directory that was asked for, or the usual one of this user: `/run/apex-oci`, without root of the machine `$XDG_RUNTIME_DIR/apex-oci`.
    pub fn new(asked: Option<&Path>) -> Root {
        let usual = || match std::env::var_os("XDG_RUNTIME_DIR") {
            Some(dir) if crate::caller::is_rootless() => PathBuf::from(dir).join("apex-oci"),
            _ => PathBuf::from("/run/apex-oci"),
        };
        Root { path: asked.map_or_else(usual, Path::to_path_buf) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes an id: makes its directory and locks it.
    ///
    /// # Errors
    /// The id is none or is taken.
    pub fn take(&self, id: &str) -> Result<Entry, StateError> {
        check_id(id)?;
        let root = |source| StateError::Root(self.path.clone(), source);
        std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&self.path).map_err(root)?;
        let path = self.path.join(id);
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return self.take_over(id),
            Err(error) => return Err(root(error)),
        }
        let entry = self.entry(id)?;
        // Nobody else can have it yet but one who takes it for a leftover; then it is theirs.
        match fs::try_lock(entry.dir.as_fd(), true) {
            Ok(()) if entry.is_current() => Ok(entry),
            Ok(()) | Err(_) => Err(StateError::Exists(id.to_owned())),
        }
    }

    /// Takes an id of which a killed create left only the directory.
    fn take_over(&self, id: &str) -> Result<Entry, StateError> {
        let exists = || StateError::Exists(id.to_owned());
        let entry = self.entry(id).map_err(|_| exists())?;
        let has_record = entry.path.join(RECORD).exists();
        if has_record || fs::try_lock(entry.dir.as_fd(), true).is_err() || !entry.is_current() {
            return Err(exists());
        }
        Ok(entry)
    }

    /// The container of an id.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, id: &str) -> Result<Entry, StateError> {
        check_id(id)?;
        self.entry(id)
    }

    fn entry(&self, id: &str) -> Result<Entry, StateError> {
        let path = self.path.join(id);
        let flags = nix::libc::O_RDONLY | nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW;
        match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Ok(dir) => Ok(Entry { id: id.to_owned(), path, dir: dir.into() }),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(StateError::Missing { id: id.to_owned(), root: self.path.clone() })
            }
            Err(error) => Err(StateError::Directory("open", id.to_owned(), error)),
        }
    }

    /// Every id, sorted.
    ///
    /// # Errors
    /// The directory is there and cannot be listed.
    pub fn ids(&self) -> Result<Vec<String>, StateError> {
        let failed = |source| StateError::Root(self.path.clone(), source);
        let entries = match std::fs::read_dir(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            if let (Ok(id), true) = (entry.file_name().into_string(), entry.path().is_dir())
                && check_id(&id).is_ok()
            {
                ids.push(id);
            }
        }
        ids.sort();
        Ok(ids)
    }
}

fn check_id(id: &str) -> Result<(), StateError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    let is_name = !id.is_empty() && id.len() <= ID_BYTES_MAX && id.bytes().all(fits) && id != "." && id != "..";
    if is_name { Ok(()) } else { Err(StateError::Id(id.to_owned())) }
}

/// The directory of one container.
#[derive(Debug)]
pub struct Entry {
    id: String,
    path: PathBuf,
    dir: OwnedFd,
}

impl Entry {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The directory, opened.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Waits until nobody else works on the container, at most 10 s, and keeps others from it.
    ///
    /// # Errors
    /// Somebody does for longer, or has removed it meanwhile.
    pub fn lock(&self) -> Result<(), StateError> {
        for _ in 0..LOCK_TRIES_MAX {
            if fs::try_lock(self.dir.as_fd(), true).is_ok() {
                if self.is_current() {
                    return Ok(());
                }
                let root = self.path.parent().unwrap_or(&self.path).to_path_buf();
                return Err(StateError::Missing { id: self.id.clone(), root });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(StateError::Busy(self.id.clone()))
    }

    /// Whether the directory that is held still has its name: between opening and locking it, others may have removed it and taken the id again.
    fn is_current(&self) -> bool {
        let held = nix::sys::stat::fstat(self.dir.as_fd());
        let named = self.path.symlink_metadata();
        matches!((held, named), (Ok(held), Ok(named)) if (held.st_dev, held.st_ino) == (named.dev(), named.ino()))
    }

    /// A name in the directory that works whatever its length: names of sockets are short.
    pub fn short_name(&self, name: &CStr) -> CString {
        let name = format!("/proc/self/fd/{}/{}", self.dir.as_raw_fd(), name.to_string_lossy());
        CString::new(name).expect("a number and a name of ours have no NUL")
    }

    /// Writes the record, whole or not at all.
    ///
    /// # Errors
    /// The directory cannot be written, or its disk is full.
    pub fn write(&self, record: &Record) -> Result<(), StateError> {
        let bytes = serde_json::to_vec(record).map_err(|error| StateError::Damaged(self.id.clone(), error))?;
        let fail = |error| StateError::Directory("write", self.id.clone(), error);
        self.write_file(RECORD_NEW, &bytes).map_err(fail)?;
        std::fs::rename(self.path.join(RECORD_NEW), self.path.join(RECORD)).map_err(fail)
    }

    /// Keeps the configuration for later commands, since the bundle may change.
    ///
    /// # Errors
    /// The directory cannot be written, or its disk is full.
    pub fn keep_config(&self, bytes: &[u8]) -> Result<(), StateError> {
        self.write_file(CONFIG, bytes).map_err(|error| StateError::Directory("write", self.id.clone(), error))
    }

    fn write_file(&self, name: &str, bytes: &[u8]) -> std::io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW);
        options.open(self.path.join(name))?.write_all(bytes)
    }

    /// The configuration as it was at the create.
    ///
    /// # Errors
    /// It is gone or damaged.
    pub fn config(&self) -> Result<Spec, StateError> {
        let bytes = self.read_file(CONFIG)?;
        let (spec, _) = crate::bundle::parse(&bytes).map_err(|error| StateError::Damaged(self.id.clone(), error))?;
        Ok(spec)
    }

    /// The record; `None` while there is none: the create is under way or was killed.
    ///
    /// # Errors
    /// It cannot be read or is damaged.
    pub fn read(&self) -> Result<Option<Record>, StateError> {
        match self.read_file(RECORD) {
            Err(StateError::Directory(_, _, error)) if error.kind() == ErrorKind::NotFound => Ok(None),
            other => {
                serde_json::from_slice(&other?).map(Some).map_err(|error| StateError::Damaged(self.id.clone(), error))
            }
        }
    }

    /// The record of a container whose create is done.
    ///
    /// # Errors
    /// As [`Entry::read`], or it is not done.
    pub fn record(&self) -> Result<Record, StateError> {
        let missing = || std::io::Error::other("its create is not done, or was killed");
        self.read()?.ok_or_else(|| StateError::Directory("read", self.id.clone(), missing()))
    }

    fn read_file(&self, name: &str) -> Result<Vec<u8>, StateError> {
        let read = || {
            let mut bytes = Vec::new();
            File::open(self.path.join(name))?.take(RECORD_BYTES_MAX).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(|error| StateError::Directory("read", self.id.clone(), error))
    }

    /// What the container is doing.
    pub fn status(&self, record: &Record) -> Status {
        if record.pid == 0 {
            // Whoever makes it holds the lock; the lock that this takes is let go with the descriptor.
            return if fs::try_lock(self.dir.as_fd(), false).is_ok() { Status::Stopped } else { Status::Creating };
        }
        if started(record.pid) != Some(record.pid_started) {
            return Status::Stopped;
        }
        if self.path.join("start").symlink_metadata().is_ok() {
            return Status::Created;
        }
        let is_frozen = record.cgroup.as_ref().is_some_and(|cgroup| cgroup.is_frozen().unwrap_or(false));
        if is_frozen { Status::Paused } else { Status::Running }
    }

    /// The first process, held; `None` when it has ended.
    pub fn process(&self, record: &Record) -> Option<OwnedFd> {
        let pidfd = process::pidfd_open(record.pid).ok().filter(|_| record.pid != 0)?;
        // Read after it is held: the pid cannot become another's any more.
        (started(record.pid) == Some(record.pid_started)).then_some(pidfd)
    }

    /// Removes a file of the directory; what is not there is fine.
    pub fn forget(&self, name: &CStr) {
        match fs::unlink(self.dir.as_fd(), name) {
            Ok(()) | Err(Errno::ENOENT) => {}
            // The directory is removed as a whole at the end, which then says what is wrong.
            Err(_) => {}
        }
    }

    /// Removes the directory: the id is free again.
    ///
    /// # Errors
    /// Something of it cannot be removed.
    pub fn remove(&self) -> Result<(), StateError> {
        for name in [START, c"config.json", c"state.json.new", c"state.json"] {
            self.forget(name);
        }
        match std::fs::remove_dir(&self.path) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => std::fs::remove_dir_all(&self.path),
            other => other,
        }
        .map_err(|error| StateError::Directory("remove", self.id.clone(), error))
    }
}

/// When a process started, in clock ticks since boot (proc_pid_stat(5), field 22); `None` when there is none or it is a zombie.
pub fn started(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, also a closing parenthesis: the last one ends it.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Whether a process has been killed or exits, but is still there (proc_pid_stat(5), field 9; proc_pid_status(5)).
pub fn is_ending(pid: i32) -> bool {
    const PF_EXITING: u64 = 0x4;
    const KILL: u64 = 1 << (nix::libc::SIGKILL - 1);
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let stat = read("stat");
    let flags =
        stat.rsplit_once(')').and_then(|(_, fields)| fields.split_ascii_whitespace().nth(6)?.parse::<u64>().ok());
    let is_pending = |line: &str| {
        let set = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(set.trim(), 16).ok().map(|set| set & KILL != 0)
    };
    flags.is_some_and(|flags| flags & PF_EXITING != 0)
        || read("status").lines().any(|line| is_pending(line) == Some(true))
}

/// The state as hooks and `state` have it (runtime-spec, "State"), in the order of runc's.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    oci_version: String,
    /// The id.
    pub id: String,
    /// The first process; 0 or none when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// A paused container runs, in the words of the specification; runc and its callers know better.
    pub status: &'static str,
    /// Absolute path.
    pub bundle: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    rootfs: Option<PathBuf>,
    /// When it was created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    annotations: std::collections::BTreeMap<String, String>,
    /// The name of the user who created it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

impl State {
    /// As one line of JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers are JSON")
    }
}

/// What hooks and agents are told.
pub fn state(record: &Record, status: Status) -> State {
    State {
        oci_version: record.oci_version.clone(),
        id: record.id.clone(),
        pid: (status != Status::Stopped && record.pid != 0).then_some(record.pid),
        status: status.name(),
        bundle: record.bundle.clone(),
        rootfs: None,
        created: None,
        annotations: record.annotations.clone(),
        owner: None,
    }
}

/// What `state` and `list` print: the state and what runc adds to it.
pub fn state_for_people(record: &Record, status: Status) -> State {
    let state = state(record, status);
    State {
        pid: state.pid.or(Some(0)),
        rootfs: Some(record.rootfs.clone()),
        created: Some(record.created.clone()),
        owner: Some(owner(record.owner)),
        ..state
    }
}

/// The name of a user; empty for one without.
pub fn owner(uid: u32) -> String {
    let named = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let of = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse::<u32>().ok()? == uid).then(|| name.to_owned())
    };
    named.lines().find_map(of).unwrap_or_default()
}

/// The time (RFC 3339, UTC, nanoseconds).
pub fn now() -> String {
    let ns = apex_sys::clock::wall_ns();
    let (seconds, fraction) = (ns / 1_000_000_000, ns % 1_000_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z")
}

/// The date of a day since 1970, in the Gregorian calendar.
fn date(mut days: u64) -> (u64, u64, u64) {
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month as u64 + 1, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_names() {
        for id in ["a", "web-1", "a.b_c+d", "0", &"x".repeat(255)] {
            assert!(check_id(id).is_ok(), "{id}");
        }
        for id in ["", ".", "..", "a/b", "../x", "a b", "ä", "a\nb", "a\0", &"x".repeat(256)] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
    }

    #[test]
    fn days_become_dates() {
        let check = |days, expected| assert_eq!(date(days), expected);
        check(0, (1970, 1, 1));
        check(59, (1970, 3, 1));
        check(11_016, (2000, 2, 29));
        check(20_784, (2026, 11, 27));
    }

    #[test]
    fn an_id_is_taken_once_and_a_leftover_is_taken_over() {
        let dir = std::env::temp_dir().join(format!("apex-oci-state-{}", std::process::id()));
        let root = Root::new(Some(&dir));
        let first = root.take("one").expect("free");
        assert!(matches!(root.take("one"), Err(StateError::Exists(_))));
        drop(first);
        // The directory without a record and without a lock: its create was killed.
        let again = root.take("one").expect("left behind");
        again.remove().expect("removable");
        assert!(matches!(root.find("one"), Err(StateError::Missing { .. })));
        std::fs::remove_dir(&dir).expect("empty");
    }

    #[test]
    fn who_was_killed_is_ending_even_while_it_cannot() {
        let own = std::process::id() as i32;
        assert!(!is_ending(own));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let pid = child.id() as i32;
        assert!(!is_ending(pid));
        child.kill().expect("ours");
        // A zombie has exited, and is not reaped before the next line.
        while started(pid).is_some() {
            std::thread::yield_now();
        }
        assert!(is_ending(pid));
        child.wait().expect("ours");
        assert!(!is_ending(pid));
    }

    #[test]
    fn this_process_started_and_no_other_has_its_pid() {
        assert!(started(std::process::id() as i32).is_some());
        assert_eq!(started(i32::MAX), None);
    }
}

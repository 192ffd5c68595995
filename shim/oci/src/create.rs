//! `create`: a bundle to a container that waits for its start.
//!
//! The work outside, step by step; the one inside is [`crate::init`]. Whatever fails, everything that was made is taken back: the init is killed and
//! reaped, then the cgroup goes, then the directory of the id. Who kills this process leaves at most a cgroup and a directory, which `delete --force`
//! and a create of the same id find; the init ends by itself when it sees that nobody made a record of it.

mod ids;

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use apex_sys::process::{self, Side};
use apex_sys::{Errno, fs, net, signal};
use oci_spec::runtime::LinuxNamespaceType as Kind;

use crate::bundle::Bundle;
use crate::caller;
use crate::cgroup::{Cgroup, Doors, Wanted};
use crate::hooks::{self, Phase};
use crate::init::namespaces::Namespaces;
use crate::init::{self, Inheritance, Inside, Sealing, identity, rootfs, sysctl};
use crate::journal::Journal;
use crate::policy::{self, Narrowing};
use crate::seccomp::{self, Compiled};
use crate::state::{Entry, Record, Root, START, Status, now, started, state};
use crate::wire::{Message, Wire, WireError};

/// What the caller wants beside the bundle.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The id.
    pub id: String,
    /// The directory of the bundle.
    pub bundle: PathBuf,
    /// Another configuration than the `config.json` in it.
    pub config: Option<PathBuf>,
    /// Where the pid of the first process is written.
    pub pid_file: Option<PathBuf>,
    /// The socket that gets the terminal.
    pub console_socket: Option<PathBuf>,
    /// Whether the root is changed by moving a mount instead of pivot_root(2).
    pub no_pivot: bool,
    /// Whether the caller's session keyring is kept.
    pub keeps_keyring: bool,
    /// Whether systemd makes the cgroup.
    pub systemd_cgroup: bool,
    /// Whether there is none: the container stays in the caller's.
    pub is_without_cgroup: bool,
    /// What else the program gets.
    pub inheritance: Inheritance,
}

/// A terminal's destination, connected.
pub type Console = OwnedFd;

/// Makes the container.
///
/// # Errors
/// A step that failed; then nothing of it is left.
pub fn create(root: &Root, options: &Options, console: Option<Console>, journal: &Journal) -> Result<Entry> {
    let mut bundle = Bundle::load(&options.bundle, options.config.as_deref())?;
    bundle.notes.iter().for_each(|note| journal.warning(note));
    let narrowing = policy::resolve(&bundle.spec, &bundle.path)?;
    if let Some(narrowing) = &narrowing {
        narrowing.narrow(&mut bundle.spec);
        narrowing
            .given_up()
            .iter()
            .for_each(|what| journal.warning(&format!("the policy's mode also has {what}, which is not held here")));
    }
    check_terminal(&bundle, options, console.is_some())?;
    let console = match (&options.console_socket, console) {
        (Some(path), _) => Some(connect_console(path)?),
        (None, console) => console,
    };
    let entry = root.take(&options.id)?;
    let mut undo = Undo { entry: Some(entry), cgroup: None, init: None, record: None };
    match build(&bundle, narrowing.as_ref(), options, console, &mut undo, journal) {
        Ok(()) => Ok(undo.keep()),
        Err(error) => {
            let stopped = undo.undo();
            // The lifecycle goes on where hooks have begun: who set something up there takes it down here.
            let failed = stopped.iter().flat_map(|record| {
                hooks::run_all(bundle.spec.hooks().as_ref(), Phase::Poststop, &state(record, Status::Stopped).to_json())
            });
            failed.for_each(|error| journal.warning(&error.to_string()));
            Err(error)
        }
    }
}

fn check_terminal(bundle: &Bundle, options: &Options, has_console: bool) -> Result<()> {
    let is_terminal = bundle.process().terminal().unwrap_or(false);
    let has_console = has_console || options.console_socket.is_some();
    match (is_terminal, has_console) {
        (true, false) => {
            bail!("cannot allocate tty if the container is detached and no --console-socket says where it goes")
        }
        (false, true) => {
            bail!("cannot use --console-socket: process.terminal is false, so there is no terminal to send")
        }
        _ => Ok(()),
    }
}

/// Connects the socket that gets a terminal.
///
/// # Errors
/// Nobody listens there.
pub fn connect_console(path: &Path) -> Result<Console> {
    let socket = UnixStream::connect(path)
        .with_context(|| format!("cannot connect to the console socket {}", path.display()))?;
    Ok(socket.into())
}

/// What was made so far.
struct Undo {
    entry: Option<Entry>,
    cgroup: Option<Cgroup>,
    init: Option<(i32, OwnedFd)>,
    /// Of a container whose hooks may have begun.
    record: Option<Record>,
}

impl Undo {
    fn entry(&self) -> &Entry {
        self.entry.as_ref().expect("there until it is kept or undone")
    }

    fn keep(mut self) -> Entry {
        self.entry.take().expect("there until it is kept or undone")
    }

    /// Takes everything back. What cannot be is left to `delete --force`, for which the directory then stays. Returns what the container was, if it was one.
    fn undo(self) -> Option<Record> {
        if let Some((pid, pidfd)) = &self.init {
            // Gone already, mostly: it ends when it has told what failed.
            let _ = process::pidfd_signal(pidfd.as_raw_fd(), nix::libc::SIGKILL);
            let _ = process::wait(*pid, 0);
        }
        let removed = self.cgroup.as_ref().is_none_or(|cgroup| {
            // Where others were in it before, it is theirs.
            !cgroup.notes().is_empty() || cgroup.kill_all().and_then(|()| cgroup.remove()).is_ok()
        });
        if let (true, Some(entry)) = (removed, self.entry) {
            let _ = entry.remove();
        }
        self.record
    }
}

fn build(
    bundle: &Bundle,
    narrowing: Option<&Narrowing>,
    options: &Options,
    console: Option<Console>,
    undo: &mut Undo,
    journal: &Journal,
) -> Result<()> {
    let spec = &bundle.spec;
    let namespaces = Namespaces::of(bundle.linux())?;
    let seccomp = compile(bundle)?;
    let mut record = record(bundle, options, &namespaces);
    let mut cgroup = make_cgroup(bundle, options, &mut record, undo, journal)?;
    let entry = undo.entry();
    let cgroups = rootfs::Cgroups::from(cgroup.views());
    sysctl::validate(spec)?;
    let trees = rootfs::outside(spec, &bundle.path)?;
    let (wire, inner) = Wire::pair().context("cannot make the socket to the init")?;
    let is_limited_outside = namespaces.has(Kind::User);
    let inside = Inside {
        sealing: Sealing {
            process: bundle.process(),
            spec,
            seccomp: seccomp.as_ref(),
            narrowing,
            seccomp_socket: seccomp.as_ref().map_or(Ok(None), Compiled::connect)?,
            inheritance: &options.inheritance,
        },
        is_limited_outside,
        record: &record,
        bundle: &bundle.path,
        namespaces: &namespaces,
        is_staged: namespaces.need_stage(),
        doors: Some(cgroup.doors()?),
        cgroups: &cgroups,
        trees,
        // Behind a stage the init waits too: its words must not come before the stage has told of it.
        awaits_admission: is_limited_outside
            || namespaces.need_stage()
            || cgroup.needs_admission()
            || init::wants_pid(spec)
            || seccomp.as_ref().is_some_and(|filter| filter.listener().is_some()),
        no_pivot: options.no_pivot,
        keeps_keyring: options.keeps_keyring,
        outside: [entry.dir().as_raw_fd(), wire.socket().as_raw_fd()],
        wire: inner,
        start: listen(entry)?,
        console,
    };
    let awaits_admission = inside.awaits_admission;
    let (pid, pidfd) = bear(inside, &wire)?;
    undo.init = Some((pid, pidfd));
    record.pid = pid;
    record.pid_started = started(pid).unwrap_or(0);
    if awaits_admission {
        admit(bundle, &namespaces, &mut cgroup, pid)?;
        record.cgroup = Some(cgroup.clone());
        undo.cgroup = Some(cgroup);
        wire.say(&Message::Admitted(pid))?;
    }
    undo.record = Some(record.clone());
    settle(bundle, &wire, &record)?;
    undo.entry().write(&record)?;
    if let Some(path) = &options.pid_file {
        write_pid(path, pid)?;
    }
    wire.say(&Message::Recorded).context("the init ended before its start")
}

/// Makes the cgroup, which is written down first: a create that is killed leaves nothing that a delete would not find.
fn make_cgroup(
    bundle: &Bundle,
    options: &Options,
    record: &mut Record,
    undo: &mut Undo,
    journal: &Journal,
) -> Result<Cgroup> {
    let linux = bundle.linux();
    let wanted = Wanted {
        id: &options.id,
        path: linux.cgroups_path().as_deref(),
        systemd: options.systemd_cgroup,
        resources: linux.resources().as_ref(),
        is_rootless: caller::is_rootless(),
        annotations: bundle.spec.annotations().as_ref(),
    };
    let planned = if options.is_without_cgroup { Cgroup::none(&wanted)? } else { Cgroup::plan(&wanted)? };
    record.cgroup = Some(planned.clone());
    undo.entry().keep_config(&bundle.text)?;
    undo.entry().write(record)?;
    let cgroup = planned.realise(&wanted)?;
    cgroup.notes().iter().for_each(|note| journal.warning(note));
    record.cgroup = Some(cgroup.clone());
    undo.cgroup = Some(cgroup.clone());
    Ok(cgroup)
}

fn compile(bundle: &Bundle) -> Result<Option<Compiled>> {
    let Some(wanted) = bundle.linux().seccomp() else { return Ok(None) };
    let cache = seccomp::CacheDir::find();
    Ok(Some(seccomp::compile(wanted, cache.as_ref())?))
}

fn record(bundle: &Bundle, options: &Options, namespaces: &Namespaces) -> Record {
    let spec = &bundle.spec;
    let annotations = spec.annotations().iter().flatten().map(|(key, value)| (key.clone(), value.clone()));
    let later = spec.hooks().as_ref().filter(|hooks| {
        [Phase::Poststart, Phase::Poststop].iter().any(|phase| !hooks::of(Some(hooks), *phase).is_empty())
    });
    Record {
        oci_version: spec.version().clone(),
        id: options.id.clone(),
        bundle: bundle.path.clone(),
        rootfs: bundle.rootfs.clone(),
        created: now(),
        owner: nix::unistd::geteuid().as_raw(),
        pid: 0,
        pid_started: 0,
        cgroup: None,
        annotations: annotations.collect(),
        hooks: later.cloned(),
        has_own_pid_namespace: namespaces.makes(Kind::Pid),
        has_own_mount_namespace: namespaces.has(Kind::Mount),
    }
}

/// The socket on which the init waits for its start.
fn listen(entry: &Entry) -> Result<OwnedFd> {
    net::listen_for_messages(&entry.short_name(START))
        .context("cannot make the socket on which the container's start is awaited")
}

/// Starts the init, by a stage where its namespaces need one. Returns its pid, as seen from here, and a descriptor of it.
fn bear(inside: Inside<'_>, wire: &Wire) -> Result<(i32, OwnedFd)> {
    let flags = inside.namespaces.at_birth();
    if !inside.is_staged {
        let birth = birth(inside.doors.as_ref())?;
        let side = process::clone_into(flags, birth.as_ref().map(AsFd::as_fd));
        return match side
            .context("cannot start the init in its new namespaces (clone3(2)); may this user make them?")?
        {
            Side::Child => process::exit_now(init::run(inside)),
            Side::Parent { pid, pidfd } => Ok((pid, pidfd)),
        };
    }
    let birth = birth(inside.doors.as_ref())?;
    match process::clone_into(0, birth.as_ref().map(AsFd::as_fd)).context("cannot start the stage of the namespaces")? {
        Side::Child => process::exit_now(stage(inside, flags)),
        Side::Parent { pid: stage, .. } => {
            drop(inside);
            let born = wire.next();
            let _ = process::wait(stage, 0);
            match born? {
                Some(Message::Born(pid)) => Ok((pid, process::pidfd_open(pid).context("cannot hold the init")?)),
                Some(Message::Failed(words)) => Err(WireError::Failed(words).into()),
                Some(other) => Err(WireError::Turn(other).into()),
                None => Err(WireError::Closed.into()),
            }
        }
    }
}

/// The directory of cgroup v2 that a process is born into; a copy, as the way in goes to the child.
fn birth(doors: Option<&Doors>) -> Result<Option<OwnedFd>> {
    let dir = doors.and_then(Doors::birth).map(|dir| dir.try_clone_to_owned());
    dir.transpose().context("cannot hold the container's cgroup")
}

/// Joins namespaces and makes the init in them, as a child of the runtime.
fn stage(inside: Inside<'_>, flags: u64) -> i32 {
    let tell = |wire: &Wire, message: &Message| if wire.say(message).is_ok() { 0 } else { 1 };
    // The cgroup first: a joined user namespace may not be allowed to enter it.
    let entered = inside.doors.as_ref().map_or(Ok(()), Doors::walk_in);
    let hidden = entered.context("cannot enter the container's cgroup").and_then(|()| {
        // Where it is born, somebody may be waiting for it; in a user namespace it hides itself once its ids are mapped.
        if inside.namespaces.has(Kind::User) { Ok(()) } else { init::hide() }
    });
    let staged = hidden.and_then(|()| Ok(inside.namespaces.stage()?));
    let born = staged.and_then(|()| {
        process::clone_sibling(flags)
            .context("cannot start the init in its new namespaces (clone3(2)); may this user make them?")
    });
    match born {
        Ok(Side::Child) => process::exit_now(init::run(Inside { doors: None, ..inside })),
        Ok(Side::Parent { pid, .. }) => tell(&inside.wire, &Message::Born(pid)),
        Err(error) => tell(&inside.wire, &Message::Failed(format!("{error:#}"))),
    }
}

/// What only the outside can do for an init that waits: its ids, its cgroup, its limits.
fn admit(bundle: &Bundle, namespaces: &Namespaces, cgroup: &mut Cgroup, pid: i32) -> Result<()> {
    if namespaces.makes(Kind::User) {
        ids::map(bundle.linux(), pid)?;
    }
    cgroup.admit(pid)?;
    if namespaces.has(Kind::User) {
        identity::limit(pid, bundle.process().rlimits().as_ref())?;
        identity::set_oom_score(&pid.to_string(), bundle.process().oom_score_adj())?;
    }
    Ok(())
}

/// Runs the hooks that are due outside and waits until the init is ready.
fn settle(bundle: &Bundle, wire: &Wire, record: &Record) -> Result<()> {
    let hooks = bundle.spec.hooks().as_ref();
    if [Phase::Prestart, Phase::CreateRuntime].iter().any(|phase| !hooks::of(hooks, *phase).is_empty()) {
        wire.expect(&Message::Mounted)?;
        let state = state(record, Status::Creating).to_json();
        hooks::run(hooks, Phase::Prestart, &state)?;
        hooks::run(hooks, Phase::CreateRuntime, &state)?;
        wire.say(&Message::Hooked)?;
    }
    Ok(wire.expect(&Message::Ready)?)
}

/// Writes the pid, whole or not at all: callers watch for the file.
///
/// # Errors
/// The file cannot be written.
pub fn write_pid(path: &Path, pid: i32) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let write = || {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o644);
        options.open(&new)?.write_all(pid.to_string().as_bytes())?;
        std::fs::rename(&new, path)
    };
    write().with_context(|| format!("cannot write the pid to {}", path.display()))
}

/// Descriptors that the caller did not mean to pass on must not reach the container, nor may signals that it blocks.
///
/// # Errors
/// The kernel refuses.
pub fn forget_caller(preserved: u32) -> Result<()> {
    // The first that is not open ends it, so a number beyond all descriptors costs nothing.
    let end = preserved.saturating_add(3);
    for number in 3..end {
        let number = i32::try_from(number).unwrap_or(i32::MAX);
        if matches!(fs::stat_number(number), Err(Errno::EBADF)) {
            bail!("--preserve-fds or LISTEN_FDS promises descriptor {number}, which is not open");
        }
    }
    process::close_from(end, u32::MAX, true).context("cannot close the caller's descriptors on exec")?;
    signal::all_by_default();
    // A hook that does not read its input, or a caller that reads no more, is an error to be told, not the end of this process.
    signal::ignore(nix::libc::SIGPIPE).context("cannot ignore SIGPIPE")?;
    signal::set_mask(&signal::Set::of(&[])).context("cannot unblock signals")
}

/// A path as the kernel takes it.
///
/// # Errors
/// It holds a NUL byte.
pub fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_encoded_bytes()).with_context(|| format!("{:?} holds a NUL byte", path.display()))
}

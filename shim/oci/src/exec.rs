//! `exec`: one more process in a container that runs.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use apex_sys::process::{self, Side};
use apex_sys::{Errno, fs, schedule};
use oci_spec::runtime::{LinuxNamespaceType as Kind, Process, Spec};

use crate::bundle;
use crate::cgroup::{Cgroup, Doors, SubPath};
use crate::create::{connect_console, write_pid};
use crate::foreground;
use crate::init::identity::{self, Labels};
use crate::init::{Inheritance, Sealing, console, forget, hide, take_terminal};
use crate::numbers;
use crate::policy::{self, Narrowing};
use crate::seccomp::{self, Compiled};
use crate::state::{Entry, Record, Status, state};
use crate::wire::{Message, Wire, WireError};

/// What the caller wants.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether the command returns once the process runs.
    pub is_detached: bool,
    /// Where the pid is written.
    pub pid_file: Option<PathBuf>,
    /// The socket that gets the terminal.
    pub console_socket: Option<PathBuf>,
    /// Cgroups below the container's; none is the container's own.
    pub cgroups: Vec<String>,
    /// Whether a paused container is entered.
    pub ignores_paused: bool,
    /// What else the program gets.
    pub inheritance: Inheritance,
}

/// Runs a process; the value is its exit code, 0 when it is detached.
///
/// # Errors
/// The container does not run, or a step failed.
pub fn exec(entry: &Entry, process: &Process, options: &Options) -> Result<i32> {
    bundle::check_process(process, "process")?;
    let record = entry.record()?;
    match entry.status(&record) {
        Status::Running | Status::Created => {}
        Status::Paused if options.ignores_paused => {}
        Status::Paused => {
            bail!("cannot exec in a paused container ({:?}): resume it, or use --ignore-paused", entry.id())
        }
        _ => bail!("cannot exec in container {:?}: it is not running", entry.id()),
    }
    let spec = entry.config()?;
    let target = entry.process(&record).with_context(|| format!("container {:?} is not running", entry.id()))?;
    let (console, own_end) = terminal_sockets(process, options)?;
    let narrowing = policy::resolve(&spec, &record.bundle)?;
    let mut narrowed = process.clone();
    if let Some(narrowing) = &narrowing {
        narrowing.narrow_process(&mut narrowed);
    }
    let process = &narrowed;
    let wanted = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let seccomp = wanted.map(|wanted| seccomp::compile(wanted, seccomp::CacheDir::find().as_ref())).transpose()?;
    let (wire, inner) = Wire::pair().context("cannot make the socket to the new process")?;
    let seccomp_socket = seccomp.as_ref().map_or(Ok(None), Compiled::connect)?;
    let joining = Joining {
        spec: &spec,
        process,
        record: &record,
        target: &target,
        seccomp: seccomp.as_ref(),
        narrowing: narrowing.as_ref(),
        seccomp_socket,
        console,
        options,
    };
    set_affinity(process.exec_cpu_affinity().as_ref().and_then(|affinity| affinity.initial().as_deref()))?;
    let (pid, pidfd) = enter(joining, inner, &wire)?;
    if let Some(path) = &options.pid_file
        && let Err(error) = write_pid(path, pid)
    {
        end(pid, &pidfd);
        return Err(error);
    }
    wire.say(&Message::Recorded)?;
    // The socket closes by itself when the program is executed.
    match wire.next()? {
        None => {}
        Some(Message::Failed(words)) => return Err(WireError::Failed(words).into()),
        Some(other) => return Err(WireError::Turn(other).into()),
    }
    if options.is_detached {
        return Ok(0);
    }
    let terminal = own_end.map(|socket| foreground::receive_terminal(&socket)).transpose()?;
    foreground::wait(pid, &pidfd, terminal)
}

/// Where the master of the terminal goes, and this process's end of it, when it is the one that takes it.
fn terminal_sockets(process: &Process, options: &Options) -> Result<(Option<OwnedFd>, Option<OwnedFd>)> {
    let is_terminal = process.terminal().unwrap_or(false);
    Ok(match (&options.console_socket, is_terminal, options.is_detached) {
        (Some(path), true, _) => (Some(connect_console(path)?), None),
        (Some(_), false, _) => bail!("cannot use --console-socket: the process has no terminal to send"),
        (None, true, true) => {
            bail!("cannot allocate tty if the process is detached and no --console-socket says where it goes")
        }
        (None, true, false) => {
            let (own, other) = foreground::terminal_socket()?;
            (Some(other), Some(own))
        }
        (None, false, _) => (None, None),
    })
}

/// Lets this process and its children to come run on some processors only: before the container's cgroup is entered, and after it
/// (`execCPUAffinity`). No list, no change.
fn set_affinity(list: Option<&str>) -> Result<()> {
    let Some(text) = list.filter(|text| !text.is_empty()) else { return Ok(()) };
    let processors =
        numbers::list(text, bundle::CPU_MAX).with_context(|| format!("{text:?} is no list of processors"))?;
    schedule::set_affinity(&processors)
        .with_context(|| format!("cannot run on the processors {text} of execCPUAffinity; may the container use them?"))
}

/// Everything that the new process has from outside.
struct Joining<'a> {
    spec: &'a Spec,
    process: &'a Process,
    record: &'a Record,
    target: &'a OwnedFd,
    seccomp: Option<&'a Compiled>,
    narrowing: Option<&'a Narrowing>,
    seccomp_socket: Option<OwnedFd>,
    console: Option<OwnedFd>,
    options: &'a Options,
}

/// Starts the process by a stage, which joins the container: a pid namespace takes only children in.
fn enter(joining: Joining<'_>, inner: Wire, wire: &Wire) -> Result<(i32, OwnedFd)> {
    let cgroup = joining.record.cgroup.as_ref();
    let doors = cgroup.map(|cgroup| doors(cgroup, joining.record.pid, joining.options)).transpose()?;
    let kinds = kinds(&joining)?;
    let root = fs::open(
        fs::cwd(),
        &crate::create::c_path(format!("/proc/{}/root", joining.record.pid).as_ref())?,
        nix::libc::O_PATH,
        0,
    )
    .context("cannot open the container's root")?;
    match process::clone_into(0, doors.as_ref().and_then(Doors::birth))
        .context("cannot start the stage of the new process")?
    {
        Side::Child => {
            // Held here, the end of the runtime would not be seen by the new process.
            let code = match forget(wire.socket().as_raw_fd()) {
                Ok(()) => stage(joining, &inner, doors.as_ref(), kinds, &root),
                Err(_) => 1,
            };
            process::exit_now(code)
        }
        Side::Parent { pid: stage, .. } => {
            drop(inner);
            let born = wire.next();
            let _ = process::wait(stage, 0);
            let pid = match born? {
                Some(Message::Born(pid)) => pid,
                Some(Message::Failed(words)) => return Err(WireError::Failed(words).into()),
                Some(other) => return Err(WireError::Turn(other).into()),
                None => return Err(WireError::Closed.into()),
            };
            let pidfd = process::pidfd_open(pid).context("cannot hold the new process")?;
            let settled = settle(wire, pid);
            if settled.is_err() {
                // It ends by itself where it told of a failure; otherwise it must not go on.
                end(pid, &pidfd);
            }
            settled.map(|()| (pid, pidfd))
        }
    }
}

/// Ends a process that was started and must not go on.
fn end(pid: i32, pidfd: &OwnedFd) {
    // It may have ended by itself.
    let _ = process::pidfd_signal(pidfd.as_raw_fd(), nix::libc::SIGKILL);
    let _ = process::wait(pid, 0);
}

fn doors(cgroup: &Cgroup, pid: i32, options: &Options) -> Result<Doors> {
    if options.cgroups.is_empty() {
        return Ok(cgroup.doors_beside(pid)?);
    }
    let below = options.cgroups.iter().map(|text| SubPath::parse(text)).collect::<Result<Vec<_>, _>>()?;
    Ok(cgroup.doors_below(&below)?)
}

/// Lets the process go on, once it is known, and waits until it is ready.
fn settle(wire: &Wire, pid: i32) -> Result<()> {
    wire.say(&Message::Admitted(pid))?;
    Ok(wire.expect(&Message::Ready)?)
}

fn is_in_user_namespace(spec: &Spec) -> bool {
    spec.linux().as_ref().is_some_and(|linux| bundle::has_namespace(linux, Kind::User))
}

/// `CLONE_NEW*` of the container's namespaces that are not this process's.
fn kinds(joining: &Joining<'_>) -> Result<i32> {
    const ALL: [(&str, Kind); 8] = [
        ("user", Kind::User),
        ("mnt", Kind::Mount),
        ("pid", Kind::Pid),
        ("net", Kind::Network),
        ("ipc", Kind::Ipc),
        ("uts", Kind::Uts),
        ("cgroup", Kind::Cgroup),
        ("time", Kind::Time),
    ];
    let mut kinds = 0;
    for (name, kind) in ALL {
        let of = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/{name}"));
        let own = of("self").with_context(|| format!("cannot read the own {name} namespace"))?;
        let theirs = of(&joining.record.pid.to_string())
            .with_context(|| format!("cannot read the container's {name} namespace"))?;
        if own != theirs {
            kinds |= kind as i32;
        }
    }
    Ok(kinds)
}

fn stage(joining: Joining<'_>, wire: &Wire, doors: Option<&Doors>, kinds: i32, root: &OwnedFd) -> i32 {
    let tell = |message: &Message| if wire.say(message).is_ok() { 0 } else { 1 };
    let join = || -> Result<Side> {
        if let Some(doors) = doors {
            doors.walk_in().context("cannot enter the container's cgroup")?;
        }
        // After the cgroup: the kernel widens it again to what that allows.
        let affinity = joining.process.exec_cpu_affinity().as_ref();
        set_affinity(affinity.and_then(|affinity| affinity.cpu_affinity_final().as_deref()))?;
        // Here the host's /proc and privileges are still there; limits, score and labels are inherited by the child.
        identity::limit(0, joining.process.rlimits().as_ref())?;
        identity::set_oom_score("self", joining.process.oom_score_adj())?;
        Labels::open(joining.process)?.write()?;
        // A program of the container must not look into this process before it is sealed.
        hide()?;
        if kinds != 0 {
            process::enter_namespaces(joining.target.as_fd(), kinds)
                .context("cannot join the container's namespaces")?;
        }
        if !joining.record.has_own_mount_namespace {
            fs::enter(root.as_fd())
                .and_then(|()| nix::unistd::chroot("."))
                .context("cannot enter the container's root")?;
        }
        process::clone_sibling(0).map_err(|errno| anyhow::Error::new(errno).context(unborn(errno)))
    };
    match join() {
        Ok(Side::Child) => process::exit_now(inside(joining, wire)),
        Ok(Side::Parent { pid, .. }) => {
            // The pid that counts is the one outside, which the descriptor of the child tells where the stage itself has no pid there.
            tell(&Message::Born(pid))
        }
        Err(error) => tell(&Message::Failed(format!("{error:#}"))),
    }
}

/// What a refused clone means in a container.
fn unborn(errno: Errno) -> &'static str {
    match errno {
        Errno::EAGAIN => {
            "cannot start a process in the container: its limit of tasks or its user's is reached; wait for some to end, or raise it with `apex-oci update --pids-limit`"
        }
        _ => "cannot start a process in the container",
    }
}

fn inside(joining: Joining<'_>, wire: &Wire) -> i32 {
    let error = match become_process(joining, wire) {
        Ok(never) => never,
        Err(error) => error,
    };
    let _ = wire.say(&Message::Failed(format!("{error:#}")));
    1
}

/// Returns only what failed.
fn become_process(joining: Joining<'_>, wire: &Wire) -> Result<anyhow::Error> {
    let Joining {
        spec, process, seccomp, narrowing, seccomp_socket, console: joining_console, options, record, ..
    } = joining;
    let pid = wire.admitted()?;
    process::new_session().context("cannot start a session")?;
    if is_in_user_namespace(spec) {
        process::set_gid(0)
            .and_then(|()| process::set_uid(0))
            .context("cannot become root of the container's user namespace")?;
        hide()?;
    }
    let sealing = Sealing { process, spec, seccomp, narrowing, seccomp_socket, inheritance: &options.inheritance };
    if process.terminal().unwrap_or(false) {
        let socket = joining_console.context("there is no socket for the terminal")?;
        let root = fs::open(fs::cwd(), c"/", nix::libc::O_PATH, 0).context("cannot open the container's root")?;
        take_terminal(process, &console::terminal(root.as_fd())?, &socket)?;
    }
    let (program, rules) = sealing.become_user(&Labels::default())?;
    sealing.seal_early(rules.as_ref(), || state(&Record { pid, ..record.clone() }, Status::Running))?;
    wire.say(&Message::Ready)?;
    wire.expect(&Message::Recorded)?;
    Ok(sealing.finish(&program, rules.as_ref(), || Ok(()), || Ok(())))
}

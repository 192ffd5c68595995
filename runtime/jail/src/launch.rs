//! The launcher: everything outside the sandbox, before, around and after it.
//!
//! Input: a plan and the host on which it was made. Output: an [`Outcome`]. Whatever fails, nothing is left behind: the init is
//! killed and reaped, the cgroup and placeholders are removed when their owners here are dropped.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use apex_core::layer::Layer;
use apex_core::plan::{IdentityPlan, Plan};
use apex_core::policy::Network;
use apex_core::receipt::Receipt;
use apex_core::refusal::Refusal;
use apex_sys::process::{self, Pid, Side};
use apex_sys::signal::{self, Set};
use apex_sys::{Errno, fs, terminal};

use crate::ahead::Ahead;
use crate::cgroup::{self, Beside, Cgroup, CgroupError, Site};
use crate::control::Control;
use crate::guard::Guard;
use crate::host::{LiveHost, launcher_pid};
use crate::init::Init;
use crate::placeholder::Placeholders;
use crate::readback;
pub use crate::seal::Payload;
use crate::seccomp::{self, CacheDir, Program, SeccompError};
use crate::step::{Failure, Step};
use crate::streams::Streams;
use crate::supervise::{self, Running};
use crate::trees::{self, Trees};
use crate::watch::{self, Watch, Watcher};
use crate::wire::{Domain, End, Order};

/// First host id of the sandboxes that root starts; the launcher's pid is added, so that no two live sandboxes share one. The range
/// above 0x6fffffff is used by nobody (systemd's UIDS-GIDS document).
const HOST_ID_BASE: u32 = 0x7000_0000;

/// Why a sandbox did not come to be, or could not be watched to its end.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A step failed.
    #[error("{0}")]
    Step(String),
    /// The cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The system call filter.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// The command is not there (exit 127).
    #[error("{0}")]
    NotFound(String),
    /// The command cannot be executed (exit 126).
    #[error("{0}")]
    NotExecutable(String),
    /// The kernel's answers differ from the plan.
    #[error("the kernel did not put in force what was asked for: {0}; the sandbox was not started")]
    Mismatch(String),
    /// The proof did not come to its end.
    #[error("the proof was not finished: {0}")]
    Proof(String),
    /// A denied name changed hands on the host.
    #[error(
        "{}: its file was removed or replaced on the host while the sandbox ran, and the mask went with it; the sandbox was ended. \
         Deny its directory instead, or change the file in place",
        .0.display()
    )]
    Unmasked(std::path::PathBuf),
    /// It could not be watched, or not any more.
    #[error("{0}; what is to be watched does not run unwatched")]
    Watch(String),
    /// The receipt could not be handed over.
    #[error("writing the receipt: {0}; the sandbox was not started")]
    Receipt(String),
}

impl JailError {
    /// In the words of the plan.
    pub fn from_failure(failure: Failure, plan: &Plan) -> JailError {
        let words = failure.explain(plan);
        match (failure.step, failure.errno) {
            (Step::Exec, Errno::ENOENT) => JailError::NotFound(format!(
                "{words}; the file, or the interpreter or loader that it names, is not in the sandbox: `--why` tells which"
            )),
            (Step::Exec, _) => JailError::NotExecutable(words),
            _ => JailError::Step(words),
        }
    }
}

/// How a sandbox ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The command exited.
    Code(i32),
    /// The command was ended by a signal.
    Signal(i32),
    /// The wall time was over.
    TimedOut,
    /// The kernel killed it at its memory limit.
    OutOfMemory,
    /// Whoever watched it asked for its end.
    Caught,
    /// Its init was ended by this signal, from inside or by somebody outside, and the command with it.
    Vanished(i32),
}

/// What is known after the end.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub ending: Ending,
    /// What was refused, when that was recorded, and limits that were reached.
    pub refusals: Vec<Refusal>,
    /// What the cgroup counted.
    pub usage: Option<cgroup::Outcome>,
}

/// What to do beside running.
pub struct Options<'a> {
    /// Gets the receipt before the command starts.
    pub receipt: Deliver<'a>,
    /// Watches the sandbox.
    pub watcher: Option<&'a mut dyn Watcher>,
    /// Keeps the sandbox, and gives orders while it runs.
    pub control: Option<&'a mut dyn Control>,
    /// The descriptors of the command.
    pub streams: &'a Streams,
    /// What runs in the sandbox.
    pub payload: Payload<'a>,
}

/// Runs a plan to its end.
pub fn run(plan: &Plan, host: &LiveHost, options: Options<'_>) -> Result<Outcome, JailError> {
    run_recording(plan, host, options, &mut Vec::new())
}

/// Runs a plan to its end. When that fails, `refusals` gets what was recorded until then: it may tell why.
pub fn run_recording(
    plan: &Plan,
    host: &LiveHost,
    options: Options<'_>,
    refusals: &mut Vec<Refusal>,
) -> Result<Outcome, JailError> {
    let explain = |failure: Failure| JailError::from_failure(failure, plan);
    // First, so that any failure ends it.
    let mut ahead = host.take_ahead();
    let program = compile(plan)?;
    let site = plan.cgroup.as_ref().and_then(|_| host.site());
    let cgroup = create_cgroup(plan, site.as_deref().filter(|site| site.is_entered_by_clone()))?;
    // After the v2 cgroup, before which the launcher must be alone in its own; the watcher gets ready beside everything that follows.
    let watch = match options.watcher {
        Some(watcher) => Some(Watch::begin(watcher)?),
        None => None,
    };
    let defers = options.control.as_ref().map(|control| control.defers());
    let is_attended = watch.is_some() || defers.is_some();
    let beside = if is_attended { make_beside(site.as_deref(), cgroup.as_ref())? } else { None };
    let placeholders = Placeholders::hold(plan, host).map_err(explain)?;
    // After the placeholders: making one is no change of hands.
    let guard = Guard::set(plan, host).map_err(explain)?;
    let trees = take_trees(plan, host, &mut ahead).map_err(explain)?;
    let mask = block_signals().map_err(explain)?;
    let (outer, inner) = End::pair().map_err(Failure::at(Step::Handshake, 0)).map_err(explain)?;
    let pause = options.receipt.is_some() || is_attended;
    let into = cgroup.as_ref().and_then(Cgroup::clone_into_fd).or(beside.as_ref().map(Beside::fd));
    let has_network = ahead.as_mut().map_or(Ok(false), |ahead| ahead.enter_network(plan)).map_err(explain)?;
    match process::clone_into(namespaces(plan, has_network), into)
        .map_err(Failure::at(Step::CreateNamespaces, 0))
        .map_err(explain)?
    {
        Side::Child => {
            drop(outer);
            let init = Init {
                plan,
                host,
                socket: inner,
                trees,
                has_network,
                program: program.as_ref(),
                pause,
                defers,
                ruleset: None,
                streams: options.streams,
                streams_on_terminal: streams_on_terminal(plan, defers.is_some()),
                mask,
                payload: options.payload,
            };
            init.run()
        }
        Side::Parent { pid, pidfd } => {
            drop(inner);
            // Closing them one by one would cost a system call each; this process ends with the sandbox.
            std::mem::forget(trees);
            let mut running = Running::new(plan, pid, pidfd, outer, cgroup, (placeholders, guard), mask);
            running.watch = watch;
            running.beside = beside;
            running.control = options.control.map(|control| control as &mut dyn Control);
            running.attach(|running| attach(plan, site.as_deref(), ahead, running))?;
            // Before the receipt, for which a proof waits: one attempt is to exceed the memory, and the others go on.
            if let (Payload::Function { .. }, Some(cgroup)) = (&options.payload, &running.cgroup) {
                cgroup.kill_singly().map_err(JailError::from)?;
            }
            let sealed = |running: &Running<'_>, pid, domain| deliver(options.receipt, plan, running, pid, domain);
            supervise::to_the_end(&mut running, sealed).inspect_err(|_| refusals.extend(running.take_refusals()))
        }
    }
}

fn compile(plan: &Plan) -> Result<Option<Program>, SeccompError> {
    let cache = CacheDir::locate(plan.identity.caller_uid, |name| std::env::var_os(name));
    plan.seccomp.as_ref().map(|table| seccomp::program(table, cache.as_ref())).transpose()
}

/// Those that the launcher passes on, and SIGCHLD for the init, which inherits the mask.
fn block_signals() -> Result<Set, Failure> {
    let blocked: Vec<i32> = supervise::WATCHED.into_iter().chain([nix::libc::SIGCHLD]).collect();
    signal::block(&Set::of(&blocked)).map_err(Failure::at(Step::Supervise, 0))
}

/// Where the limits are not on v2. The systemd manager would move the sandbox out again.
fn make_beside(site: Option<&Site>, cgroup: Option<&Cgroup>) -> Result<Option<Beside>, CgroupError> {
    if cgroup.is_some() || site.is_some_and(Site::is_by_manager) { Ok(None) } else { Beside::make() }
}

/// Maps first, since the init waits for them to begin; the cgroup while it builds its root: joining one on v1 may wait for the kernel.
fn attach(plan: &Plan, site: Option<&Site>, ahead: Option<Ahead>, running: &mut Running<'_>) -> Result<(), JailError> {
    let explain = |failure: Failure| JailError::from_failure(failure, plan);
    write_id_maps(running.init, &plan.identity).map_err(Failure::at(Step::WriteIdMaps, 0)).map_err(explain)?;
    running.socket.order(Order::Mapped).map_err(Failure::at(Step::Handshake, 0)).map_err(explain)?;
    if let Some(mut ahead) = ahead {
        ahead.leave_network().map_err(explain)?;
    }
    if running.cgroup.is_none() {
        // v1 is made while the init builds its root, on the other processor; nothing but the init is charged elsewhere till then.
        running.cgroup = create_cgroup(plan, site)?;
    }
    let mut doors = Vec::new();
    if let Some(cgroup) = &mut running.cgroup {
        doors = cgroup.doors()?;
        if doors.is_empty() {
            cgroup.attach(running.init)?;
        }
    }
    // The command has not started: a name that changed hands while the root was built need not be shown to it at all.
    running.check_guard()?;
    let trace = watch::prepare(running)?;
    let lent: Vec<BorrowedFd<'_>> = doors.iter().map(AsFd::as_fd).collect();
    let count = u8::try_from(lent.len()).expect("there are three controllers");
    let ordered = running.socket.order_with(Order::Attached { trace, doors: count }, &lent);
    // As with the trees.
    doors.into_iter().for_each(std::mem::forget);
    ordered.map_err(Failure::at(Step::Handshake, 0)).map_err(explain)
}

/// Who gets the receipt; an error keeps the command from starting.
pub type Deliver<'a> = Option<&'a mut dyn FnMut(&Receipt) -> Result<(), String>>;

/// Reads the receipt while the sealed process waits, and only lets it go on when the kernel confirms the plan.
fn deliver(
    receipt: Deliver<'_>,
    plan: &Plan,
    running: &Running<'_>,
    sealed: Pid,
    domain: Domain,
) -> Result<(), JailError> {
    let Some(deliver) = receipt else { return Ok(()) };
    let receipt = readback::read(plan, running.init, sealed, domain, running.cgroup.as_ref());
    deliver(&receipt).map_err(JailError::Receipt)?;
    match readback::mismatch(&receipt) {
        Some(words) => Err(JailError::Mismatch(words)),
        None => Ok(()),
    }
}

fn create_cgroup(plan: &Plan, site: Option<&Site>) -> Result<Option<Cgroup>, JailError> {
    match (&plan.cgroup, site) {
        (Some(limits), Some(site)) => Ok(Some(Cgroup::create(limits, site)?)),
        _ => Ok(None),
    }
}

/// Only root may take and idmap trees before the namespaces exist; for others the init does it (see [`trees`]).
fn take_trees(plan: &Plan, host: &LiveHost, ahead: &mut Option<Ahead>) -> Result<Option<Trees>, Failure> {
    if !plan.identity.own_host_ids {
        return Ok(None);
    }
    let userns = trees::wants_idmap(plan).then(|| idmap(&plan.identity, ahead)).transpose();
    let userns = ManuallyDrop::new(userns.map_err(Failure::at(Step::Idmap, 0))?);
    Trees::take(plan, host, false, userns.as_ref().map(AsFd::as_fd)).map(Some)
}

/// A user namespace in which the caller's files belong to the sandbox's host id.
fn idmap(identity: &IdentityPlan, ahead: &mut Option<Ahead>) -> Result<OwnedFd, Errno> {
    if ahead.is_none() {
        *ahead = Some(Ahead::start(false)?);
    }
    ahead.as_ref().map_or(Err(Errno::ESRCH), |ahead| ahead.idmap((identity.caller_uid, identity.caller_gid), host_id()))
}

fn host_id() -> u32 {
    HOST_ID_BASE + launcher_pid()
}

fn write_id_maps(init: Pid, identity: &IdentityPlan) -> Result<(), Errno> {
    let own = identity.own_host_ids.then(host_id);
    write_map(init, "uid_map", identity.uid, own.unwrap_or(identity.caller_uid))?;
    if !identity.own_host_ids {
        // Without privilege the kernel wants setgroups given up first (user_namespaces(7)).
        write_proc(init, "setgroups", "deny")?;
    }
    write_map(init, "gid_map", identity.gid, own.unwrap_or(identity.caller_gid))
}

pub(crate) fn write_map(pid: Pid, file: &str, inside: u32, outside: u32) -> Result<(), Errno> {
    write_proc(pid, file, &format!("{inside} {outside} 1"))
}

pub(crate) fn write_proc(pid: Pid, file: &str, text: &str) -> Result<(), Errno> {
    let name = crate::host::c_path(format!("/proc/{pid}/{file}").as_ref())?;
    let file = fs::open(fs::cwd(), &name, nix::libc::O_WRONLY, 0)?;
    let written = fs::write(file.as_fd(), text.as_bytes()).map(drop);
    // As with the trees.
    std::mem::forget(file);
    written
}

/// The cgroup namespace is entered later, from within the cgroup.
fn namespaces(plan: &Plan, has_network: bool) -> u64 {
    const NEWTIME: i32 = 0x80;
    let mut flags = nix::libc::CLONE_NEWUSER | nix::libc::CLONE_NEWPID;
    let optional = [
        (Layer::Mountns, nix::libc::CLONE_NEWNS),
        (Layer::Ipcns, nix::libc::CLONE_NEWIPC),
        (Layer::Utsns, nix::libc::CLONE_NEWUTS),
        (Layer::Timens, NEWTIME),
    ];
    for (layer, flag) in optional {
        if plan.has(layer) {
            flags |= flag;
        }
    }
    if plan.network == Network::None && !has_network {
        flags |= nix::libc::CLONE_NEWNET;
    }
    flags as u64
}

/// All of them where somebody keeps the sandbox: the launcher's own are pipes then, which the terminal takes the place of.
fn streams_on_terminal(plan: &Plan, is_kept: bool) -> [bool; 3] {
    let is_terminal = |number| fs::borrow(number).is_ok_and(|fd: BorrowedFd<'_>| terminal::is_terminal(fd));
    if plan.tty { [true, true, is_kept || is_terminal(2)] } else { [false; 3] }
}

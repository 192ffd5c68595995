//! A sandbox that is watched: what the jail tells whoever watches it, and what it does when asked.
//!
//! Input: a [`Watcher`], which stands for the prober, a process of its own. Output: a sandbox whose command does not start before it is
//! watched and does not go on when it no longer is. The jail acts and never decides: what is seen, and what is to be done about it, is
//! the watcher's. Without a watcher nothing here costs a system call.

use std::os::fd::{AsRawFd, BorrowedFd};

use apex_core::control::Shut;
use apex_core::event::{Errno, Refused};
use apex_core::seccomp::trace::Scope;
use apex_core::summary::ProbeCost;
use apex_core::watch::Reaction;
use apex_sys::fs;
use apex_sys::process::Pid;

use crate::cgroup::{Beside, Cgroup, CgroupError};
use crate::launch::JailError;
use crate::supervise::Running;

/// How to come by a cgroup v2 directory.
const GET_CGROUP: &str =
    "mount cgroup2, or have a cgroup delegated (`systemd-run --scope -p Delegate=yes apex-run ...`)";

/// What a watcher needs of the sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// A cgroup v2 directory of its own.
    pub cgroup: bool,
    /// What the filter that stops the command for a tracer is to stop at.
    pub trace: Option<Scope>,
}

/// A sandbox that stands and whose command waits.
#[derive(Clone, Copy, Debug)]
pub struct Standing<'s> {
    /// Id of its cgroup v2 directory, else the pid of its init.
    pub id: u64,
    /// That directory, when it has one of its own.
    pub cgroup: Option<BorrowedFd<'s>>,
    /// Its init, as the host numbers it.
    pub init: Pid,
    /// The process that becomes the command.
    pub command: Pid,
    /// Whether the filter that stops for a tracer is in force.
    pub traced: bool,
}

/// A call that the filter's listener refused or reported.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// The caller, as the host numbers it; 0 when it was gone before it could be looked at.
    pub pid: u32,
    /// Its parent.
    pub ppid: u32,
    /// Its user.
    pub uid: u32,
    /// Its name.
    pub comm: String,
    /// The call.
    pub refused: Refused,
    /// What it was answered; `None` when it was carried out.
    pub error: Option<Errno>,
}

/// What a watcher asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Act {
    /// What to do.
    pub reaction: Reaction,
    /// The finding behind it.
    pub because: String,
}

/// Somebody who watches a sandbox. An error of any of these ends the sandbox: what was to be watched does not run unwatched.
pub trait Watcher {
    /// The sandbox is about to be built: get ready beside that, without being waited for.
    fn begin(&mut self) -> Result<(), String>;
    /// Waits, bounded, until it is ready.
    fn prepared(&mut self) -> Result<Needs, String>;
    /// The sandbox stands. Returns, bounded, once everything that will be seen of it is seen.
    fn attach(&mut self, standing: &Standing<'_>) -> Result<(), String>;
    /// A call was refused. Must not wait: what cannot be told now is counted.
    fn refused(&mut self, told: Told);
    /// Readable when [`Watcher::next`] has something.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
    /// What it asks for; an error when it is gone.
    fn next(&mut self) -> Result<Option<Act>, String>;
    /// Whether it asks for more than its descriptor tells of.
    fn has_more(&self) -> bool;
    /// What was asked for was done, in words, or was not, and why.
    fn acted(&mut self, act: &Act, outcome: Result<&str, &str>);
    /// A frozen sandbox goes on.
    fn thawed(&mut self);
    /// Has every process of a traced sandbox stand still, or go on.
    fn hold(&mut self, frozen: bool) -> Result<(), String>;
    /// Refuses every packet of the sandbox, or lets them pass; bounded. Only asked of a watcher that needed a cgroup.
    fn cut(&mut self, cut: bool) -> Result<(), String>;
    /// Refuses these calls, and no others; as [`Watcher::cut`].
    fn shut(&mut self, shut: Shut) -> Result<(), String>;
    /// What the probes have cost; bounded. Only asked of a watcher that needed a cgroup.
    fn costs(&mut self) -> Result<Vec<ProbeCost>, String>;
    /// Ends the watcher at once: a tracer that reaps nobody keeps a killed sandbox from its end.
    fn abandon(&mut self);
}

/// The watch over one sandbox.
pub(crate) struct Watch<'w> {
    pub watcher: &'w mut dyn Watcher,
    traced: bool,
    /// Whether probes watch it, which can refuse its connections.
    probed: bool,
}

/// What an act leaves of the sandbox.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// It lives.
    Alive,
    /// It is to be ended.
    Kill,
}

impl<'w> Watch<'w> {
    /// Starts the watcher.
    pub fn begin(watcher: &'w mut dyn Watcher) -> Result<Watch<'w>, JailError> {
        watcher.begin().map_err(JailError::Watch)?;
        Ok(Watch { watcher, traced: false, probed: false })
    }

    /// Whether kernel probes watch it.
    pub fn is_probed(&self) -> bool {
        self.probed
    }

    /// Whether its processes have a tracer, without which none of them is reaped.
    pub fn is_traced(&self) -> bool {
        self.traced
    }
}

/// Waits for the watcher; what the command is to stop at for a tracer.
pub(crate) fn prepare(running: &mut Running<'_>) -> Result<Option<Scope>, JailError> {
    let Some(watch) = &mut running.watch else { return Ok(None) };
    let needs = watch.watcher.prepared().map_err(JailError::Watch)?;
    let has_cgroup = directory(running.beside.as_ref(), running.cgroup.as_ref()).is_some();
    if needs.cgroup && !has_cgroup {
        return Err(JailError::Watch(format!(
            "probes recognise a sandbox by its cgroup v2 directory, and none can be made here: {GET_CGROUP}"
        )));
    }
    watch.probed = needs.cgroup;
    watch.traced = needs.trace.is_some();
    Ok(needs.trace)
}

/// Has the sandbox watched while its command waits, sealed.
pub(crate) fn attach(running: &mut Running<'_>, command: Pid) -> Result<(), JailError> {
    let Some(watch) = &mut running.watch else { return Ok(()) };
    let cgroup = directory(running.beside.as_ref(), running.cgroup.as_ref());
    let id = match cgroup {
        // A cgroup's id is its inode in cgroupfs.
        Some(dir) => fs::stat_number(dir.as_raw_fd()).map_err(|errno| {
            JailError::Watch(format!("the id of the sandbox's cgroup could not be read: {}", errno.desc()))
        })?,
        None => fs::Stat { inode: running.init.unsigned_abs().into(), ..fs::Stat::default() },
    };
    let standing = Standing { id: id.inode, cgroup, init: running.init, command, traced: watch.traced };
    watch.watcher.attach(&standing).map_err(JailError::Watch)
}

/// Does what the watcher asks for.
pub(crate) fn serve(running: &mut Running<'_>) -> Result<After, JailError> {
    let Some(watch) = &mut running.watch else { return Ok(After::Alive) };
    let Some(act) = watch.watcher.next().map_err(JailError::Watch)? else { return Ok(After::Alive) };
    let outcome = match act.reaction {
        Reaction::Warn => return Ok(After::Alive),
        Reaction::Kill => return Ok(After::Kill),
        Reaction::Freeze => set_frozen(running, true).map(str::to_owned),
        Reaction::Tighten => tighten(running),
    };
    if let Some(watch) = &mut running.watch {
        watch.watcher.acted(&act, outcome.as_deref().map_err(String::as_str));
    }
    match (act.reaction, outcome) {
        // It was to stop and goes on: that must not be.
        (Reaction::Freeze, Err(words)) => Err(JailError::Watch(format!("the sandbox could not be frozen: {words}"))),
        _ => Ok(After::Alive),
    }
}

/// Lets a frozen sandbox go on.
pub(crate) fn thaw(running: &mut Running<'_>) -> Result<(), JailError> {
    set_frozen(running, false)
        .map(drop)
        .map_err(|words| JailError::Watch(format!("the sandbox could not be thawed: {words}")))?;
    if let Some(watch) = &mut running.watch {
        watch.watcher.thawed();
    }
    Ok(())
}

/// By the cgroup where there is one, else by the tracer: nobody inside escapes or notices either. SIGSTOP is no way: any SIGCONT from inside would undo it.
/// In words, what is done when they are to stop.
pub(crate) fn set_frozen(running: &mut Running<'_>, frozen: bool) -> Result<&'static str, String> {
    let by_cgroup = match (&running.beside, &running.cgroup) {
        (Some(beside), _) => Some(beside.freeze(frozen)),
        (None, Some(cgroup)) => match cgroup.freeze(frozen) {
            Err(CgroupError::FreezeUnsupported) => None,
            other => Some(other),
        },
        (None, None) => None,
    };
    let done = match (by_cgroup, running.watch.as_mut().filter(|watch| watch.traced)) {
        (Some(done), _) => {
            done.map_err(|error| error.to_string())?;
            if frozen { "every process of the sandbox is stopped" } else { "every process of the sandbox goes on" }
        }
        (None, Some(watch)) => {
            // Who traces has its own time, and ends the sandbox when it takes too long.
            watch.watcher.hold(frozen)?;
            "every process of the sandbox is being stopped by its tracer"
        }
        (None, None) => return Err(format!("it has no cgroup with a freezer, and nobody traces it; {GET_CGROUP}")),
    };
    running.frozen = frozen;
    Ok(done)
}

/// Whether [`set_frozen`] has a way.
pub(crate) fn has_freezer(running: &Running<'_>) -> bool {
    let by_limits = running.cgroup.as_ref().is_some_and(|cgroup| cgroup.clone_into_fd().is_some() || cgroup.is_scope());
    running.beside.is_some() || by_limits || running.watch.as_ref().is_some_and(Watch::is_traced)
}

fn tighten(running: &Running<'_>) -> Result<String, String> {
    // The probes' part is done by the watcher, before it asks for this.
    let is_cut_off = running.watch.as_ref().is_some_and(|watch| watch.probed);
    let Some(cgroup) = &running.cgroup else {
        let what = if is_cut_off { "tasks and CPU" } else { "network, tasks and CPU" };
        return Err(format!("it has no cgroup with limits, so {what} stay as they are"));
    };
    let done = cgroup.tighten().map_err(|error| error.to_string())?;
    match is_cut_off {
        true => Ok(done),
        false => Ok(format!("{done}; its network stays as it is, since only kernel probes cut it off")),
    }
}

fn directory<'c>(beside: Option<&'c Beside>, cgroup: Option<&'c Cgroup>) -> Option<BorrowedFd<'c>> {
    beside.map(Beside::fd).or_else(|| cgroup.and_then(Cgroup::clone_into_fd))
}

//! Somebody who keeps a sandbox and turns its dial while it runs: the daemon, through the keeper's socket.
//!
//! Input: orders of a [`Control`], already judged. Output: what was done, in words. The jail acts and never decides; nothing here goes beyond what was
//! sealed. Without a control nothing here costs a system call.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use apex_core::control::{Limits, Shut};
use apex_core::keep::{Standing, Usage};
use apex_core::planner::command;
use apex_core::seccomp::Table;
use apex_core::summary::ProbeCost;
use apex_sys::Errno;
use apex_sys::process::Ended;

use crate::seal::{ARGUMENT_BYTES_MAX, ARGUMENTS_MAX};
use crate::step::{Failure, Step};
use crate::supervise::Running;
use crate::{spawn, supervise, usage, watch, wire};

/// As a shell has them.
const CODE_NOT_EXECUTABLE: i32 = 126;
const CODE_NOT_FOUND: i32 = 127;

/// What can be asked of a sandbox that runs.
#[derive(Debug)]
pub enum Order {
    /// Start the command that was put off, with these arguments, its name the first.
    Start(Vec<Vec<u8>>),
    /// Start one more command.
    Spawn(Spawn),
    /// Pass a signal to one of those.
    SignalSpawned {
        /// Which.
        number: i32,
        /// The signal.
        signal: i32,
    },
    /// Pass a signal to the command.
    Signal(i32),
    /// Stop every process, or let them go on.
    Freeze(bool),
    /// Change limits.
    Limit(Limits),
    /// Cut the network off, or give it back.
    Cut(bool),
    /// Refuse these calls, and no others.
    Shut(Shut),
    /// End it.
    Kill,
    /// Tell what it uses.
    Use,
    /// Tell what each kernel probe has cost.
    Costs,
    /// Nothing of the jail: the turn of an answer that the control gives by itself.
    Own,
}

/// One more command in a sandbox.
#[derive(Debug)]
pub struct Spawn {
    /// What it is called from now on.
    pub number: i32,
    /// Its arguments, its name the first.
    pub arguments: Vec<OsString>,
    /// Variables beside and instead of those that the sandbox's command got, `K=V`.
    pub environment: Vec<OsString>,
    /// Where it starts, instead of where the command did.
    pub workdir: Option<PathBuf>,
    /// Its standard streams.
    pub streams: Vec<OwnedFd>,
    /// Rows and columns of the terminal that it gets instead, if it does; none of them is no size.
    pub terminal: Option<(u16, u16)>,
}

/// What became of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was done.
    Done(String),
    /// What it uses.
    Used(Box<Usage>),
    /// What its probes have cost.
    Costs(Vec<ProbeCost>),
}

/// Whoever gives the orders. Nothing of it may wait: the sandbox is supervised beside it.
pub trait Control {
    /// Descriptors that are readable when [`Control::next`] should be asked.
    fn fds(&self) -> Vec<BorrowedFd<'_>>;
    /// Whether the command is put off until [`Order::Start`].
    fn defers(&self) -> Defers;
    /// Every layer is in force; the command starts when this returns, unless it is put off.
    fn standing(&mut self, standing: &Standing);
    /// The next order.
    fn next(&mut self) -> Option<Order>;
    /// The command has ended with this exit code, and no process is left but the init; the sandbox is taken down next.
    fn exited(&mut self, code: i32);
    /// The sandbox's end of a terminal: the command's, or that of one of those that were started later.
    fn terminal(&mut self, spawned: Option<i32>, master: OwnedFd);
    /// One of those has ended; with words when it was never executed.
    fn spawned_ended(&mut self, number: i32, ended: Ended, words: Option<String>);
    /// The turn of [`Order::Own`].
    fn own(&mut self);
    /// What became of the last one.
    fn done(&mut self, outcome: Result<Answer, String>);
}

/// Until [`Order::Start`] comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defers {
    /// Nothing is put off.
    No,
    /// The command waits, sealed, for its arguments.
    Sealed,
    /// The command is an interpreter that was started and waits by itself for what it is to run: only its time begins.
    Warm,
}

/// What an order leaves of the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    Alive,
    Kill,
}

/// Tells who keeps the sandbox that it stands.
pub(crate) fn tell_standing(running: &mut Running<'_>) {
    let limits = running.plan.cgroup.as_ref().map(|cgroup| Limits {
        memory_bytes: cgroup.memory_bytes,
        tasks: cgroup.tasks,
        cpu_percent: cgroup.cpu_percent.map(u64::from),
    });
    let standing = Standing {
        init: running.init.unsigned_abs(),
        limits: limits.unwrap_or_default(),
        has_limits: running.cgroup.is_some(),
        has_network: running.plan.network == apex_core::policy::Network::Host,
        has_network_dial: running.watch.as_ref().is_some_and(watch::Watch::is_probed),
        has_reported: running.plan.seccomp.as_ref().is_some_and(Table::has_reported),
        has_freezer: watch::has_freezer(running),
        mode: running.plan.mode.name().to_owned(),
        mailboxes: running.plan.mailboxes.clone(),
    };
    if let Some(control) = &mut running.control {
        control.standing(&standing);
    }
}

/// When the command was the last of the sandbox, and nothing but its exit code will be told, whoever keeps it need not wait until the sandbox is taken down.
pub(crate) fn tell_ended(running: &mut Running<'_>, ended: Ended, alone: bool) {
    if let (Ended::Code(code), Some(control)) = (ended, &mut running.control)
        && alone
        && supervise::is_plain(ended)
        && running.watch.is_none()
        && !running.plan.record
        && running.plan.overlay.is_none()
    {
        control.exited(code);
    }
}

/// Follows the orders that are there.
pub(crate) fn serve(running: &mut Running<'_>) -> After {
    while let Some(late) = next(running) {
        let (outcome, is_last) = match late {
            Late::Followed(outcome) => (outcome, false),
            // Answered when it is over.
            Late::Order(Order::Spawn(spawn)) => match begin_spawn(running, &spawn) {
                Ok(()) => continue,
                Err(words) => (Err(words), false),
            },
            Late::Order(Order::Own) => {
                if let Some(control) = &mut running.control {
                    control.own();
                }
                continue;
            }
            Late::Order(order) => {
                let is_last = matches!(order, Order::Kill);
                (follow(running, order), is_last)
            }
        };
        answer(running, outcome);
        if is_last {
            return After::Kill;
        }
    }
    After::Alive
}

fn answer(running: &mut Running<'_>, outcome: Result<Answer, String>) {
    if let Some(control) = &mut running.control {
        control.done(outcome);
    }
}

/// What waits until a command is started.
#[derive(Debug)]
pub(crate) enum Late {
    /// To be followed.
    Order(Order),
    /// Followed already, to be answered in its turn.
    Followed(Result<Answer, String>),
}

/// Answers come in the order of the questions, so while a command is being started, of which the answer is not known, all others wait. What the init has no
/// part in is done at once all the same: the new command may be stopped by those that run there, and must not hold the dial up.
fn next(running: &mut Running<'_>) -> Option<Late> {
    if running.spawning.is_none()
        && let Some(late) = running.late.pop_front()
    {
        return Some(late);
    }
    loop {
        let order = running.control.as_mut()?.next()?;
        if running.spawning.is_none() {
            return Some(Late::Order(order));
        }
        let late = match order {
            Order::Kill => {
                let ended = || Err("it is ended".to_owned());
                answer(running, ended());
                for late in std::mem::take(&mut running.late) {
                    match late {
                        Late::Followed(outcome) => answer(running, outcome),
                        Late::Order(_) => answer(running, ended()),
                    }
                }
                return Some(Late::Order(order));
            }
            Order::Freeze(_) | Order::Limit(_) | Order::Cut(_) | Order::Shut(_) | Order::Use | Order::Costs => {
                Late::Followed(follow(running, order))
            }
            order => Late::Order(order),
        };
        running.late.push_back(late);
    }
}

fn follow(running: &mut Running<'_>, order: Order) -> Result<Answer, String> {
    let done = |words: &str| Ok(Answer::Done(words.to_owned()));
    match order {
        Order::Spawn(_) | Order::Own => unreachable!("serve has its own way with them"),
        Order::SignalSpawned { .. } if running.frozen => Err("it is frozen; let it go on first".to_owned()),
        Order::SignalSpawned { number, signal } => {
            let sent = running.socket.order(wire::Order::SignalSpawned { number, signal });
            sent.map_err(|errno| format!("passing signal {signal} on: {}", errno.desc()))?;
            done("passed on")
        }
        Order::Start(arguments) => start(running, &arguments),
        Order::Signal(_) if running.waits => Err("its command has not started; start it first".to_owned()),
        Order::Signal(number) => {
            running.signal(number).map_err(|errno| format!("passing signal {number} on: {}", errno.desc()))?;
            done("passed on")
        }
        Order::Freeze(frozen) => watch::set_frozen(running, frozen).map(|words| Answer::Done(words.to_owned())),
        Order::Limit(limits) => {
            let cgroup = running.cgroup.as_ref().ok_or("it has no cgroup with limits")?;
            cgroup.change(&limits).map(Answer::Done).map_err(|error| chain(&error))
        }
        Order::Cut(cut) => {
            let watch = running.watch.as_mut().filter(|watch| watch.is_probed());
            let watch = watch.ok_or("only kernel probes cut a network off, and none watch it")?;
            watch.watcher.cut(cut)?;
            done(if cut { "every packet is refused" } else { "packets pass" })
        }
        Order::Shut(shut) => {
            if shut.of_probes() != running.shut.of_probes() {
                let watch = running.watch.as_mut().filter(|watch| watch.is_probed());
                let watch = watch.ok_or("only kernel probes refuse calls one by one, and none watch it")?;
                watch.watcher.shut(shut.of_probes())?;
            }
            // Asked by each listener before it answers.
            running.shut = shut;
            done(&shut.to_string())
        }
        Order::Kill => done("it is ended"),
        Order::Costs => {
            let watch = running.watch.as_mut().filter(|watch| watch.is_probed());
            watch.map_or(Ok(Vec::new()), |watch| watch.watcher.costs()).map(Answer::Costs)
        }
        Order::Use => usage::of(running).map(Box::new).map(Answer::Used).map_err(|error| chain(&error)),
    }
}

fn start(running: &mut Running<'_>, arguments: &[Vec<u8>]) -> Result<Answer, String> {
    if !running.waits {
        return Err("its command was started before, or is not sealed yet".to_owned());
    }
    if running.control.as_ref().is_some_and(|control| control.defers() == Defers::Warm) {
        running.begin();
        return Ok(Answer::Done("started".to_owned()));
    }
    let words = words(arguments)?;
    let failed = |errno: Errno| format!("telling the sandbox to start: {}", errno.desc());
    running.socket.order(wire::Order::GoWith).map_err(failed)?;
    running.socket.words(&words).map_err(failed)?;
    running.begin();
    Ok(Answer::Done("started".to_owned()))
}

/// The arguments of a command that was put off as a message: a NUL behind every word.
///
/// # Errors
/// In words, what cannot be sent.
pub fn words(arguments: &[Vec<u8>]) -> Result<Vec<u8>, String> {
    if arguments.is_empty() || arguments.iter().any(|word| word.contains(&0)) {
        return Err("there is no argument, or one holds a NUL byte".to_owned());
    }
    let words: Vec<u8> = arguments.iter().flat_map(|word| word.iter().copied().chain([0])).collect();
    if words.len() > ARGUMENT_BYTES_MAX || arguments.len() > ARGUMENTS_MAX {
        return Err(format!(
            "its arguments come to {} bytes in {} words; at most {ARGUMENT_BYTES_MAX} in {ARGUMENTS_MAX} go: pass less, or by a file",
            words.len(),
            arguments.len()
        ));
    }
    Ok(words)
}

/// One at a time: until the init says that it is over, whatever else was sent to it could be read by the new command's process.
fn begin_spawn(running: &mut Running<'_>, spawn: &Spawn) -> Result<(), String> {
    if running.waits {
        return Err("its command has not started; start it first".to_owned());
    }
    if running.frozen {
        return Err("it is frozen; let it go on first".to_owned());
    }
    if running.watch.as_ref().is_some_and(watch::Watch::is_traced) {
        return Err(
            "a tracer watches it, which follows its first command only; kernel probes, which root can load, follow all"
                .to_owned(),
        );
    }
    let has_listener = running.plan.seccomp.as_ref().is_some_and(Table::needs_listener);
    if has_listener && !nix::unistd::geteuid().is_root() {
        return Err(
            "its filter reports calls, and only root's keeper can take the listener of a second command".to_owned()
        );
    }
    if spawn.streams.len() != 3 {
        return Err(format!("{} streams came along instead of 3", spawn.streams.len()));
    }
    let first = &running.plan.command;
    let command = command::another(first, &spawn.arguments, &spawn.environment, spawn.workdir.as_deref());
    let words = spawn::encode(&command.ok_or("there is no command; give one")?)?;
    let failed = |errno: Errno| format!("asking the sandbox's init: {}", errno.desc());
    let streams: Vec<BorrowedFd<'_>> = spawn.streams.iter().map(AsFd::as_fd).collect();
    let order = wire::Order::Spawn { number: spawn.number, terminal: spawn.terminal };
    running.socket.order_with(order, &streams).map_err(failed)?;
    running.socket.words(&words).map_err(failed)?;
    let name = spawn.arguments.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    running.spawning = Some(Spawning { number: spawn.number, name, failure: None });
    Ok(())
}

/// One of the commands that were started later has ended.
pub(crate) fn spawned_ended(running: &mut Running<'_>, number: i32, ended: Ended) {
    let at = running.not_executed.iter().position(|(one, ..)| *one == number);
    let failed = at.map(|at| running.not_executed.swap_remove(at));
    let (ended, words) = match failed {
        Some((_, Errno::ENOENT, words)) => (Ended::Code(CODE_NOT_FOUND), Some(words)),
        Some((_, _, words)) => (Ended::Code(CODE_NOT_EXECUTABLE), Some(words)),
        None => (ended, None),
    };
    if let Some(control) = &mut running.control {
        control.spawned_ended(number, ended, words);
    }
}

/// A command that is being started.
pub(crate) struct Spawning {
    pub number: i32,
    name: String,
    pub failure: Option<Failure>,
}

/// The init says that it is over.
pub(crate) fn spawned(running: &mut Running<'_>, number: i32) -> After {
    let Some(spawning) = running.spawning.take().filter(|spawning| spawning.number == number) else {
        return After::Alive;
    };
    let outcome = match spawning.failure {
        None => Ok(Answer::Done("started".to_owned())),
        // As with the sandbox's own command, it is the command that failed: its end comes next.
        Some(failure) if failure.step == Step::Exec => {
            let words = format!("executing `{}` in the sandbox: {}", spawning.name, failure.errno.desc());
            running.not_executed.push((number, failure.errno, words));
            Ok(Answer::Done("not executed".to_owned()))
        }
        Some(failure) => Err(failure.explain(running.plan)),
    };
    answer(running, outcome);
    for number in std::mem::take(&mut running.late_signals) {
        // One whose command has just ended needs it no more.
        let _ = running.signal(number);
    }
    serve(running)
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

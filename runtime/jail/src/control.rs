//! Somebody who keeps a sandbox and turns its dial while it runs: the daemon, through the keeper's socket.
//!
//! Input: orders of a [`Control`], already judged. Output: what was done, in words. The jail acts and never decides; nothing here goes beyond what was
//! sealed. Without a control nothing here costs a system call.

use std::os::fd::BorrowedFd;

use apex_core::control::Limits;
use apex_core::keep::{Standing, Usage};
use apex_sys::Errno;

use crate::seal::{ARGUMENT_BYTES_MAX, ARGUMENTS_MAX};
use crate::supervise::Running;
use crate::{watch, wire};

/// What can be asked of a sandbox that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Start the command that was put off, with these arguments, its name the first.
    Start(Vec<Vec<u8>>),
    /// Pass a signal to the command.
    Signal(i32),
    /// Stop every process, or let them go on.
    Freeze(bool),
    /// Change limits.
    Limit(Limits),
    /// Cut the network off, or give it back.
    Cut(bool),
    /// End it.
    Kill,
    /// Tell what it uses.
    Use,
}

/// What became of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was done.
    Done(String),
    /// What it uses.
    Used(Usage),
}

/// Whoever gives the orders. Nothing of it may wait: the sandbox is supervised beside it.
pub trait Control {
    /// Descriptors that are readable when [`Control::next`] should be asked.
    fn fds(&self) -> Vec<BorrowedFd<'_>>;
    /// Whether the command is put off until [`Order::Start`] brings its arguments.
    fn defers(&self) -> bool;
    /// Every layer is in force; the command starts when this returns, unless it is put off.
    fn standing(&mut self, standing: &Standing);
    /// The next order.
    fn next(&mut self) -> Option<Order>;
    /// What became of the last one.
    fn done(&mut self, outcome: Result<Answer, String>);
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
        has_freezer: watch::has_freezer(running),
        mode: running.plan.mode.name().to_owned(),
    };
    if let Some(control) = &mut running.control {
        control.standing(&standing);
    }
}

/// Follows the orders that are there.
pub(crate) fn serve(running: &mut Running<'_>) -> After {
    while let Some(order) = running.control.as_mut().and_then(|control| control.next()) {
        let is_last = order == Order::Kill;
        let outcome = follow(running, order);
        if let Some(control) = &mut running.control {
            control.done(outcome);
        }
        if is_last {
            return After::Kill;
        }
    }
    After::Alive
}

fn follow(running: &mut Running<'_>, order: Order) -> Result<Answer, String> {
    let done = |words: &str| Ok(Answer::Done(words.to_owned()));
    match order {
        Order::Start(arguments) => start(running, &arguments),
        Order::Signal(_) if running.waits => Err("its command has not started".to_owned()),
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
        Order::Kill => done("it is ended"),
        Order::Use => {
            let usage = running.cgroup.as_ref().map(|cgroup| cgroup.usage()).transpose();
            usage.map(|usage| Answer::Used(usage.unwrap_or_default())).map_err(|error| chain(&error))
        }
    }
}

fn start(running: &mut Running<'_>, arguments: &[Vec<u8>]) -> Result<Answer, String> {
    if !running.waits {
        return Err("its command was started before, or is not sealed yet".to_owned());
    }
    let is_whole = |word: &Vec<u8>| !word.contains(&0);
    if arguments.is_empty() || !arguments.iter().all(is_whole) {
        return Err("there is no argument, or one holds a NUL byte".to_owned());
    }
    let words: Vec<u8> = arguments.iter().flat_map(|word| word.iter().copied().chain([0])).collect();
    if words.len() > ARGUMENT_BYTES_MAX || arguments.len() > ARGUMENTS_MAX {
        return Err(format!(
            "its arguments come to {} bytes in {} words; at most {ARGUMENT_BYTES_MAX} in {ARGUMENTS_MAX} go",
            words.len(),
            arguments.len()
        ));
    }
    let failed = |errno: Errno| format!("telling the sandbox to start: {}", errno.desc());
    running.socket.order(wire::Order::GoWith).map_err(failed)?;
    running.socket.words(&words).map_err(failed)?;
    running.begin();
    Ok(Answer::Done("started".to_owned()))
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

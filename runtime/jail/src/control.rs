//! Somebody who keeps a sandbox and turns its dial while it runs: the daemon, through the keeper's socket.
//!
//! Input: orders of a [`Control`], already judged. Output: what was done, in words. The jail acts and never decides; nothing here goes beyond what was
//! sealed. Without a control nothing here costs a system call.

use std::os::fd::BorrowedFd;

use apex_core::control::Limits;
use apex_core::keep::{Standing, Usage};

use crate::supervise::Running;
use crate::{usage, watch};

/// What can be asked of a sandbox that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
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
    Used(Box<Usage>),
}

/// Whoever gives the orders. Nothing of it may wait: the sandbox is supervised beside it.
pub trait Control {
    /// Descriptors that are readable when [`Control::next`] should be asked.
    fn fds(&self) -> Vec<BorrowedFd<'_>>;
    /// Every layer is in force; the command starts when this returns.
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
        let outcome = follow(running, order);
        if let Some(control) = &mut running.control {
            control.done(outcome);
        }
        if order == Order::Kill {
            return After::Kill;
        }
    }
    After::Alive
}

fn follow(running: &mut Running<'_>, order: Order) -> Result<Answer, String> {
    let done = |words: &str| Ok(Answer::Done(words.to_owned()));
    match order {
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
        Order::Use => usage::of(running).map(Box::new).map(Answer::Used).map_err(|error| chain(&error)),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

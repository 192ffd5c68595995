//! Watching over a running sandbox: its reports, signals to pass on, its terminal, its time, its refused calls; and the end.

use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use apex_core::amount;
use apex_core::control::Shut;
use apex_core::plan::Plan;
use apex_core::refusal::{Attempt, Refusal};
use apex_sys::Errno;
use apex_sys::memory;
use apex_sys::process::{self, Ended, Pid};
use apex_sys::signal::{self, Interest, Set};
use nix::libc::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGSTOP, SIGTERM, SIGTSTP, SIGWINCH};

use crate::cgroup::{self, Beside, Cgroup};
use crate::control::{self, Control, Defers, Spawning};
use crate::guard::Guard;
use crate::launch::{Ending, JailError, Outcome};
use crate::listen::Listener;
use crate::placeholder::Placeholders;
use crate::relay::Relay;
use crate::step::{Failure, Step};
use crate::watch::{self, After, Watch};
use crate::wire::{Domain, End, Order, Report};

/// Signals that the launcher passes on to the command.
pub const WATCHED: [i32; 11] = [
    nix::libc::SIGHUP,
    nix::libc::SIGINT,
    nix::libc::SIGQUIT,
    nix::libc::SIGTERM,
    nix::libc::SIGUSR1,
    nix::libc::SIGUSR2,
    nix::libc::SIGALRM,
    nix::libc::SIGCONT,
    nix::libc::SIGTSTP,
    nix::libc::SIGWINCH,
    nix::libc::SIGPIPE,
];

/// A sandbox that lived so long is worth some calls to hold less memory: its launcher and its init then give back what they need no more.
pub const GIVE_BACK_MS: u64 = 1000;

/// How long the end of a sandbox waits for a tracer that must reap its processes.
const END_WITHIN: Duration = Duration::from_secs(15);

/// What a shell exits with when the kernel killed its last command for memory.
const CODE_OF_SIGKILL: i32 = 128 + nix::libc::SIGKILL;

/// A sandbox that lives. Dropping it ends it: the init is killed and reaped, then cgroup and placeholders are removed.
pub struct Running<'a> {
    pub plan: &'a Plan,
    pub init: Pid,
    /// Closed, like the pidfd, by the end of the process, which comes with that of the sandbox.
    pub socket: ManuallyDrop<End>,
    pub cgroup: Option<Cgroup>,
    pidfd: ManuallyDrop<OwnedFd>,
    reaped: bool,
    started: Instant,
    relay: Option<Relay>,
    /// Of the command, and of those that were started later.
    listeners: Vec<Listener>,
    /// One more command that is being started.
    pub spawning: Option<Spawning>,
    /// What waits until it is: orders, and signals from outside.
    pub late: VecDeque<control::Late>,
    /// Commands that were started later and not executed, whose end is still to come.
    pub not_executed: Vec<(i32, Errno, String)>,
    pub late_signals: Vec<i32>,
    /// What is refused below the ceiling.
    pub shut: Shut,
    pub watch: Option<Watch<'a>>,
    /// The v2 directory beside the limits, where those are not on v2 and somebody watches or keeps the sandbox: it is recognised and frozen by it.
    pub beside: Option<Beside>,
    /// Who keeps it.
    pub control: Option<&'a mut dyn Control>,
    /// Whether every process is stopped.
    pub frozen: bool,
    /// Whether the command's process waits, sealed, for its arguments. Its time has not begun.
    pub waits: bool,
    mask: Set,
    has_given_back: bool,
    guard: Option<Guard>,
    _placeholders: Placeholders,
}

impl<'a> Running<'a> {
    pub fn new(
        plan: &'a Plan,
        init: Pid,
        pidfd: OwnedFd,
        socket: End,
        cgroup: Option<Cgroup>,
        held: (Placeholders, Option<Guard>),
        mask: Set,
    ) -> Self {
        Running {
            plan,
            init,
            socket: ManuallyDrop::new(socket),
            cgroup,
            beside: None,
            pidfd: ManuallyDrop::new(pidfd),
            reaped: false,
            started: Instant::now(),
            relay: None,
            listeners: Vec::new(),
            spawning: None,
            late: VecDeque::new(),
            not_executed: Vec::new(),
            late_signals: Vec::new(),
            shut: Shut::default(),
            watch: None,
            control: None,
            frozen: false,
            waits: false,
            mask,
            has_given_back: false,
            guard: held.1,
            _placeholders: held.0,
        }
    }

    /// Runs the launcher's part of the start. When it fails because the init has ended, the init's own report is the better reason.
    pub fn attach(&mut self, work: impl FnOnce(&mut Self) -> Result<(), JailError>) -> Result<(), JailError> {
        let Err(error) = work(self) else { return Ok(()) };
        self.kill();
        while let Ok(Some((report, _))) = self.socket.next_report() {
            if let Report::Failed(failure) = report
                && failure.step != Step::Handshake
            {
                return Err(JailError::from_failure(failure, self.plan));
            }
        }
        Err(error)
    }

    /// Fails when a denied name has changed hands.
    pub fn check_guard(&self) -> Result<(), JailError> {
        let changed = self.guard.as_ref().map(Guard::changed).transpose().map_err(self.failed(Step::Placeholder))?;
        changed.flatten().map_or(Ok(()), |path| Err(JailError::Unmasked(path)))
    }

    /// What was refused up to now; the end of the record.
    pub fn take_refusals(&mut self) -> Vec<Refusal> {
        std::mem::take(&mut self.listeners).into_iter().flat_map(Listener::into_refusals).collect()
    }

    /// Passes a signal to the command.
    pub fn signal(&mut self, number: i32) -> Result<(), Errno> {
        if self.spawning.is_some() {
            // As the kernel has it: one that waits is not counted twice.
            if !self.late_signals.contains(&number) {
                self.late_signals.push(number);
            }
            return Ok(());
        }
        match self.socket.order(Order::Signal(number)) {
            // It is ending by itself; its report is next.
            Err(Errno::EPIPE) => Ok(()),
            other => other,
        }
    }

    fn failed(&self, step: Step) -> impl Fn(Errno) -> JailError + use<'a> {
        let plan = self.plan;
        move |errno| JailError::from_failure(Failure { step, index: 0, errno }, plan)
    }

    /// Ends every process of the sandbox and waits for the last of them.
    fn kill(&mut self) {
        if !self.reaped {
            use std::os::fd::AsRawFd;
            // Its pid is not free for anybody else until it is reaped.
            let _ = process::pidfd_signal(self.pidfd.as_raw_fd(), nix::libc::SIGKILL)
                .or_else(|_| process::kill(self.init, nix::libc::SIGKILL));
            let _ = self.reap();
        }
    }

    /// The init is the last process of its pid namespace to be reaped (pid_namespaces(7)).
    fn reap(&mut self) -> Result<Option<Ended>, Errno> {
        self.reaped = true;
        // A tracer that somebody stopped, or that hangs, reaps nobody, and the init waits for all. With the tracer gone the kernel does it.
        if let Some(watch) = self.watch.as_mut().filter(|watch| watch.is_traced())
            && !ends_within(self.pidfd.as_fd(), END_WITHIN)
        {
            watch.watcher.abandon();
        }
        process::wait(self.init, 0).map(|ended| ended.map(|(_, ended)| ended))
    }

    /// The command that was put off starts: its time begins.
    pub fn begin(&mut self) {
        self.waits = false;
        self.started = Instant::now();
    }

    fn remaining_ms(&self) -> Option<u64> {
        if self.waits {
            return None;
        }
        let limit = Duration::from_millis(self.plan.wall_time_ms?);
        // Rounded up: a wait must not end before the time is over.
        let left = limit.saturating_sub(self.started.elapsed());
        Some(u64::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u64::MAX))
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether a process ends in that time. One that cannot be waited for so is waited for without a bound.
fn ends_within(pidfd: BorrowedFd<'_>, patience: Duration) -> bool {
    let until = Instant::now() + patience;
    let mut end = [Interest { fd: pidfd, write: false, ready: false }];
    while !end[0].ready {
        let left_ms = u64::try_from(until.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(u64::MAX);
        if left_ms == 0 {
            return false;
        }
        if signal::poll(&mut end, Some(left_ms)).is_err() {
            return true;
        }
    }
    true
}

/// What one round of waiting found.
enum Event {
    Report(Report, Option<OwnedFd>),
    Gone,
    Unmasked(PathBuf),
    TimedOut,
    /// The watcher asks for the end.
    Caught,
    /// The caller ends a frozen sandbox, which could not obey.
    Ended(i32),
    Handled,
}

/// Watches a sandbox until it has ended. `sealed` is called when the command's process waits with every layer in force.
pub fn to_the_end(
    running: &mut Running<'_>,
    sealed: impl FnOnce(&Running<'_>, Pid, Domain) -> Result<(), JailError>,
) -> Result<Outcome, JailError> {
    let signals = ManuallyDrop::new(signal::descriptor(&Set::of(&WATCHED)).map_err(running.failed(Step::Supervise))?);
    let mut sealed = Some(sealed);
    let ended = loop {
        match next_event(running, &signals)? {
            Event::Handled => {}
            Event::TimedOut => break Err(Ending::TimedOut),
            Event::Caught => break Err(Ending::Caught),
            Event::Ended(signal) => break Err(Ending::Signal(signal)),
            Event::Unmasked(path) => return Err(JailError::Unmasked(path)),
            Event::Gone => break Err(vanished(running)?),
            Event::Report(Report::Failed(failure), _) => return Err(JailError::from_failure(failure, running.plan)),
            Event::Report(Report::Terminal, Some(master)) if running.control.is_some() => {
                let spawned = running.spawning.as_ref().map(|spawning| spawning.number);
                if let Some(control) = &mut running.control {
                    control.terminal(spawned, master);
                }
            }
            Event::Report(Report::Terminal, master) => {
                running.relay = master.map(Relay::start).transpose().map_err(running.failed(Step::OpenTerminal))?;
            }
            Event::Report(Report::Sealed { pid, listener, domain }, _) => {
                let outside = outside_pid(running.init, pid);
                let Some(sealed) = sealed.take() else {
                    go_on_with_another(running, outside, listener).map_err(running.failed(Step::Handshake))?;
                    continue;
                };
                let pid = outside.map_err(running.failed(Step::Handshake))?;
                let taken = Listener::take(running.plan, pid, listener).map_err(running.failed(Step::SealSeccomp))?;
                running.listeners.extend(taken);
                sealed(running, pid, domain)?;
                watch::attach(running, pid)?;
                let defers = running.control.as_ref().map_or(Defers::No, |control| control.defers());
                running.waits = defers != Defers::No;
                control::tell_standing(running);
                if defers == Defers::Sealed {
                    continue;
                }
                running.socket.order(Order::Go).map_err(running.failed(Step::Handshake))?;
            }
            Event::Report(Report::Ended { ended, alone }, _) => {
                control::tell_ended(running, ended, alone);
                break Ok(ended);
            }
            Event::Report(Report::SpawnFailed(failure), _) => {
                if let Some(spawning) = &mut running.spawning {
                    spawning.failure = Some(failure);
                }
            }
            Event::Report(Report::Spawned { number }, _) => {
                if control::spawned(running, number) == control::After::Kill {
                    break Err(Ending::Signal(nix::libc::SIGKILL));
                }
            }
            Event::Report(Report::SpawnedEnded { number, ended }, _) => {
                control::spawned_ended(running, number, ended);
            }
        }
    };
    finish(running, ended)
}

/// One more command is sealed: probes see it where it is, in the sandbox's cgroup. It may be gone already, which is not the sandbox's failure.
fn go_on_with_another(running: &mut Running<'_>, pid: Result<Pid, Errno>, listener: i32) -> Result<(), Errno> {
    let order = match pid.and_then(|pid| Listener::take(running.plan, pid, listener)) {
        Ok(taken) => {
            running.listeners.extend(taken);
            Order::Go
        }
        // Without its listener it must not run: any other order ends it, and the init ignores one that comes too late.
        Err(_) => Order::Mapped,
    };
    running.socket.order(order)
}

fn next_event(running: &mut Running<'_>, signals: &OwnedFd) -> Result<Event, JailError> {
    let failed = running.failed(Step::Supervise);
    let limit = running.remaining_ms();
    if limit == Some(0) {
        return Ok(Event::TimedOut);
    }
    let timeout =
        if running.has_given_back { limit } else { Some(limit.map_or(GIVE_BACK_MS, |ms| ms.min(GIVE_BACK_MS))) };
    let ready = wait(running, signals, timeout).map_err(&failed)?;
    if !ready.any && !running.has_given_back {
        memory::give_back();
        running.has_given_back = true;
        return Ok(Event::Handled);
    }
    if ready.guard
        && let Some(guard) = &running.guard
        && let Some(path) = guard.changed().map_err(&failed)?
    {
        // At once: what stands under the name now is not masked.
        running.kill();
        return Ok(Event::Unmasked(path));
    }
    for (listener, _) in running.listeners.iter_mut().zip(&ready.listeners).filter(|(_, is_ready)| **is_ready) {
        listener.serve(running.watch.as_mut().map(|watch| &mut *watch.watcher), running.shut.reported);
    }
    running.listeners.retain(|listener| listener.fd().is_some() || listener.is_recording());
    if ready.watcher && watch::serve(running)? == After::Kill {
        return Ok(Event::Caught);
    }
    if ready.control && control::serve(running) == control::After::Kill {
        return Ok(Event::Ended(nix::libc::SIGKILL));
    }
    // What the watcher said while an order was followed.
    while running.watch.as_ref().is_some_and(|watch| watch.watcher.has_more()) {
        if watch::serve(running)? == After::Kill {
            return Ok(Event::Caught);
        }
    }
    if let Some(relay) = &mut running.relay {
        relay.serve(&ready.relay).map_err(&failed)?;
    }
    if ready.signals {
        while let Some(number) = signal::next(signals.as_fd()).map_err(&failed)? {
            if running.waits {
                // Nobody is there yet who could get it.
                match number {
                    SIGHUP | SIGINT | SIGQUIT | SIGTERM => return Ok(Event::Ended(number)),
                    _ => continue,
                }
            }
            if running.frozen {
                match number {
                    SIGCONT => watch::thaw(running)?,
                    SIGHUP | SIGINT | SIGQUIT | SIGTERM => return Ok(Event::Ended(number)),
                    // It would wait inside until the thaw and surprise then.
                    _ => continue,
                }
            }
            pass_on(running, number).map_err(&failed)?;
        }
    }
    if !ready.socket {
        return Ok(Event::Handled);
    }
    Ok(match running.socket.next_report().map_err(&failed)? {
        Some((report, fd)) => Event::Report(report, fd),
        None => Event::Gone,
    })
}

/// What a wait found ready.
struct Ready {
    any: bool,
    socket: bool,
    signals: bool,
    guard: bool,
    /// One for each.
    listeners: Vec<bool>,
    watcher: bool,
    control: bool,
    /// As [`Relay::serve`] takes it.
    relay: Vec<bool>,
}

fn wait(running: &Running<'_>, signals: &OwnedFd, timeout: Option<u64>) -> Result<Ready, Errno> {
    let interest = |fd| Interest { fd, write: false, ready: false };
    let guard = running.guard.as_ref().map(Guard::fd);
    let watcher = running.watch.as_ref().and_then(|watch| watch.watcher.fd());
    let control = running.control.as_ref().map(|control| control.fds()).unwrap_or_default();
    let mut interests = vec![interest(running.socket.0.as_fd()), interest(signals.as_fd())];
    interests.extend([guard, watcher].into_iter().flatten().map(interest));
    let controls = control.len();
    interests.extend(control.into_iter().map(interest));
    interests.extend(running.listeners.iter().filter_map(Listener::fd).map(interest));
    interests.extend(running.relay.iter().flat_map(Relay::interests));
    let any = signal::poll(&mut interests, timeout)?;
    let mut ready = interests.iter().map(|interest| interest.ready);
    let mut next = |is_there: bool| is_there && ready.next() == Some(true);
    Ok(Ready {
        any,
        socket: next(true),
        signals: next(true),
        guard: next(guard.is_some()),
        watcher: next(watcher.is_some()),
        control: (0..controls).fold(false, |any, _| next(true) || any),
        listeners: running.listeners.iter().map(|listener| next(listener.fd().is_some())).collect(),
        relay: ready.collect(),
    })
}

/// Sends a signal on to the command. Stop and continue are done to the launcher too, so that the caller's shell sees them.
fn pass_on(running: &mut Running<'_>, number: i32) -> Result<(), Errno> {
    match (number, &running.relay) {
        (SIGWINCH, Some(relay)) => relay.resize(),
        (SIGTSTP, _) => {
            // The command's group is an orphan, for which SIGTSTP means nothing.
            running.signal(SIGSTOP)?;
            process::kill(std::process::id() as Pid, SIGSTOP)?;
            running.signal(SIGCONT)
        }
        _ => running.signal(number),
    }
}

/// The init is gone without a word: somebody killed it, the kernel for memory or a person.
fn vanished(running: &mut Running<'_>) -> Result<Ending, JailError> {
    match running.reap() {
        Ok(Some(Ended::Signal(number))) => Ok(Ending::Vanished(number)),
        Ok(_) => Err(running.failed(Step::Handshake)(Errno::EPIPE)),
        Err(errno) => Err(running.failed(Step::Supervise)(errno)),
    }
}

/// Whether no limit can have had a part in it.
pub fn is_plain(ended: Ended) -> bool {
    matches!(ended, Ended::Code(code) if code != CODE_OF_SIGKILL)
}

/// `ended` is how the command ended, or why it is to be ended now.
fn finish(running: &mut Running<'_>, ended: Result<Ended, Ending>) -> Result<Outcome, JailError> {
    if ended.is_err() {
        running.kill();
    } else if !running.reaped {
        running.reap().map_err(running.failed(Step::Supervise))?;
    }
    if let Some(relay) = running.relay.take() {
        relay.drain();
    }
    let _ = signal::set_mask(&running.mask);
    // The counters cost a dozen system calls: they are read when something can have been refused.
    let is_plain = ended.is_ok_and(is_plain) && !running.plan.record;
    let usage = running.cgroup.as_ref().filter(|_| !is_plain).map(Cgroup::outcome).transpose()?;
    if let Some(cgroup) = running.cgroup.take() {
        cgroup.remove()?;
    }
    if let Some(beside) = running.beside.take() {
        beside.remove()?;
    }
    let was_oom = usage.as_ref().is_some_and(|usage| usage.oom_kills.unwrap_or(0) > 0);
    let ending = match ended {
        Err(Ending::Vanished(nix::libc::SIGKILL)) if was_oom => Ending::OutOfMemory,
        Err(ending) => ending,
        Ok(Ended::Signal(nix::libc::SIGKILL)) if was_oom => Ending::OutOfMemory,
        Ok(Ended::Signal(number)) => Ending::Signal(number),
        Ok(Ended::Code(code)) => Ending::Code(code),
    };
    let mut refusals = running.take_refusals();
    refusals.extend(limits_reached(running.plan, ending, usage.as_ref()));
    Ok(Outcome { ending, refusals, usage })
}

/// Limits are refusals too: the kernel counts them whether or not calls are recorded.
fn limits_reached(plan: &Plan, ending: Ending, usage: Option<&cgroup::Outcome>) -> Vec<Refusal> {
    let mut reached = Vec::new();
    let mut push = |resource: &str, limit: Option<String>, count: u64, outcome: &str| {
        if count > 0 {
            reached.push(Refusal {
                attempt: Attempt::Limit { resource: resource.to_owned(), limit: limit.unwrap_or_default() },
                comm: String::new(),
                pid: 0,
                count,
                outcome: outcome.to_owned(),
            });
        }
    };
    let limits = plan.cgroup.as_ref();
    if let Some(usage) = usage {
        let memory = limits.and_then(|limits| limits.memory_bytes).map(|bytes| format!("{bytes} bytes"));
        push("memory", memory, usage.oom_kills.unwrap_or(0), "SIGKILL");
        let tasks = limits.and_then(|limits| limits.tasks).map(|tasks| tasks.to_string());
        push("tasks", tasks, usage.tasks_refused.unwrap_or(0), "EAGAIN");
    }
    if ending == Ending::Signal(nix::libc::SIGXFSZ) {
        let fsize = plan.rlimits.iter().find(|limit| limit.name == "fsize").map(|limit| amount::size(limit.value));
        push("file-size", fsize, 1, "SIGXFSZ");
    }
    if ending == Ending::TimedOut {
        push("wall-time", plan.wall_time_ms.map(|ms| format!("{ms} ms")), 1, "SIGKILL");
    }
    reached
}

/// The pid out here of a child of the init.
fn outside_pid(init: Pid, inside: Pid) -> Result<Pid, Errno> {
    let text = std::fs::read_to_string(format!("/proc/{init}/task/{init}/children")).map_err(|_| Errno::ESRCH)?;
    let is_it = |pid: &Pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let own =
            status.lines().find_map(|line| line.strip_prefix("NSpid:")).and_then(|line| line.split_whitespace().last());
        own == Some(inside.to_string().as_str())
    };
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).find(is_it).ok_or(Errno::ESRCH)
}

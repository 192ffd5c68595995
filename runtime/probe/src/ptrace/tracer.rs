//! The loop over stops: each is looked at, told of and ended. A thread that is not let go on hangs the sandbox, so every path through here
//! ends in [`Tracer::resume`], and when the loop itself ends the kernel kills whoever is left.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use apex_core::event::{Errno as Error, Event, Loss, What};
use apex_core::observe::decode::{self, Call};
use apex_core::seccomp::trace::Scope;
use apex_core::seccomp::{Abi, X32_BIT};
use apex_sys::Errno;
use apex_sys::process::Pid;
use apex_sys::ptrace::{self, Go, Status, option};
use nix::libc;
use nix::time::{ClockId, clock_gettime};

use super::task::{self, Identity, Stopped};
use super::{Shared, Target, order};
use crate::source::{BATCH_EVENTS_MAX, Batch, Looks};

const OPTIONS: i32 = option::TRACESYSGOOD
    | option::TRACEFORK
    | option::TRACEVFORK
    | option::TRACECLONE
    | option::TRACEEXEC
    | option::TRACESECCOMP
    | option::EXITKILL;

/// Children that stopped before their parent told of them, and whose parent may have been killed before it could.
const EARLY_MAX: usize = 4096;
/// How often the counts of calls are told.
const COUNTS_EVERY: Duration = Duration::from_secs(1);

/// What the kernel returns inside for a call that a signal interrupted (linux/errno.h): it is begun again, or fails with EINTR.
const RESTARTS: [i64; 4] = [-512, -513, -514, -516];
/// What a failed call returns: minus an errno.
const FAILURES: std::ops::RangeInclusive<i64> = -4095..=-1;

/// A traced thread.
#[derive(Default)]
struct Thread {
    process: Pid,
    /// What it is about to do, told when the call has its result.
    pending: Vec<What>,
    /// Whether that result is a descriptor of the file that it names.
    opens: bool,
    /// The name that it looks at or opens, where that is to be told.
    look: Option<What>,
    /// How it goes on once the sandbox is thawed.
    held: Option<Resume>,
}

#[derive(Clone, Copy)]
enum Resume {
    /// With this signal, or 0.
    On(i32),
    /// It stays in the stop of its group.
    Listen,
}

/// A process, as it was when it was last looked up.
struct Process {
    identity: Identity,
    is_stale: bool,
}

/// A sandbox under trace.
pub struct Tracer {
    target: Target,
    to: SyncSender<Batch>,
    shared: Arc<Shared>,
    threads: HashMap<Pid, Thread>,
    processes: HashMap<Pid, Process>,
    early: HashSet<Pid>,
    batch: Batch,
    is_frozen: bool,
    counts: BTreeMap<String, u64>,
    counted: Instant,
    looks: Looks,
}

/// The pipeline is gone: nobody hears what is told.
struct Unheard;

impl Tracer {
    /// Seizes the process that becomes the command; the caller is the tracer from here on.
    pub fn seize(target: Target, to: SyncSender<Batch>, shared: Arc<Shared>) -> Result<Tracer, Errno> {
        let command = Pid::try_from(target.command).map_err(|_| Errno::ESRCH)?;
        ptrace::seize(command, OPTIONS)?;
        let identity = task::identity(command).ok_or(Errno::ESRCH)?;
        let process = Process { identity, is_stale: false };
        Ok(Tracer {
            target,
            to,
            shared,
            threads: HashMap::from([(command, Thread { process: command, ..Thread::default() })]),
            processes: HashMap::from([(command, process)]),
            early: HashSet::new(),
            batch: Batch::default(),
            is_frozen: false,
            counts: BTreeMap::new(),
            counted: Instant::now(),
            looks: Looks::default(),
        })
    }

    /// Until the last thread is gone.
    pub fn run(mut self) {
        // Whoever is left when this returns is killed by the kernel.
        let _ = self.follow();
        self.tell_counts();
        let _ = self.flush();
    }

    fn follow(&mut self) -> Result<(), Unheard> {
        loop {
            if self.take_orders() {
                return Ok(());
            }
            // What is known is sent before the wait for more.
            let found = match ptrace::wait(false) {
                Ok(None) => {
                    self.flush()?;
                    ptrace::wait(true)
                }
                found => found,
            };
            match found {
                Ok(Some((pid, status))) => self.stopped(pid, status),
                Ok(None) | Err(Errno::EINTR) => {}
                Err(_) => return Ok(()),
            }
            if self.batch.events.len() >= BATCH_EVENTS_MAX {
                self.flush()?;
            }
        }
    }

    /// Returns whether to end.
    fn take_orders(&mut self) -> bool {
        let wanted = self.shared.wanted.load(Ordering::SeqCst);
        if self.shared.obeyed.load(Ordering::SeqCst) == wanted {
            return false;
        }
        match wanted {
            order::FREEZE => {
                self.is_frozen = true;
                for pid in self.threads.iter().filter(|(_, thread)| thread.held.is_none()).map(|(pid, _)| *pid) {
                    // ESRCH: it is ending.
                    let _ = ptrace::interrupt(pid);
                }
            }
            order::RUN => {
                self.is_frozen = false;
                let held: Vec<(Pid, Resume)> =
                    self.threads.iter_mut().filter_map(|(pid, thread)| Some((*pid, thread.held.take()?))).collect();
                for (pid, how) in held {
                    self.resume(pid, how);
                }
            }
            _ => {}
        }
        self.shared.obeyed.store(wanted, Ordering::SeqCst);
        wanted == order::END
    }

    fn stopped(&mut self, pid: Pid, status: Status) {
        match status {
            Status::Exited(code) => return self.gone(pid, What::Exit { code: Some(code), signal: None }),
            Status::Killed(signal) => return self.gone(pid, What::Exit { code: None, signal: Some(signal) }),
            _ => {}
        }
        if !self.threads.contains_key(&pid) {
            if self.early.len() == EARLY_MAX {
                self.early.clear();
            }
            self.early.insert(pid);
            self.born(pid, None);
        }
        let how = match status {
            Status::Event(ptrace::Event::Stop, libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU) => {
                Resume::Listen
            }
            Status::Event(event, _) => {
                self.event(pid, event);
                Resume::On(0)
            }
            Status::Call => {
                self.returned(pid);
                Resume::On(0)
            }
            Status::Signal(signal) => Resume::On(signal),
            Status::Exited(_) | Status::Killed(_) => return,
        };
        self.resume(pid, how);
    }

    fn event(&mut self, pid: Pid, event: ptrace::Event) {
        match event {
            ptrace::Event::Born => {
                let child = ptrace::message(pid).ok().and_then(|child| Pid::try_from(child).ok());
                if let Some(child) = child
                    && !self.early.remove(&child)
                {
                    self.born(child, Some(pid));
                }
            }
            ptrace::Event::Exec => self.executed(pid),
            ptrace::Event::Seccomp => self.called(pid),
            ptrace::Event::Stop | ptrace::Event::Other(_) => {}
        }
    }

    /// Lets a stopped thread go on, or notes how it will.
    fn resume(&mut self, pid: Pid, how: Resume) {
        let thread = self.threads.entry(pid).or_default();
        if self.is_frozen {
            thread.held = Some(how);
            return;
        }
        let go = if thread.pending.is_empty() && thread.look.is_none() { Go::On } else { Go::ToCall };
        // ESRCH: it was killed while it was stopped, and its end is on the way.
        let _ = match how {
            Resume::On(signal) => ptrace::resume(pid, go, signal),
            Resume::Listen => ptrace::listen(pid),
        };
    }

    /// A thread or process that was not there before. Its first stop and its parent's event come in either order; without the event the
    /// parent that the kernel names stands for it.
    fn born(&mut self, child: Pid, by: Option<Pid>) {
        let Some(identity) = task::identity(child) else { return };
        let process = identity.process;
        if self.target.scope == Scope::Every {
            // The filter judges clone(2) and does not stop at it: this is how it is known to have been called.
            *self.counts.entry("clone".to_owned()).or_default() += 1;
        }
        self.threads.insert(child, Thread { process, ..Thread::default() });
        if process != child {
            return;
        }
        let parent = by.and_then(|thread| self.threads.get(&thread)).map_or(identity.parent, |thread| thread.process);
        self.processes.insert(child, Process { identity, is_stale: false });
        self.tell(parent, What::Fork { child: child.cast_unsigned() }, None);
    }

    /// All other threads are gone, and the one that called has the number of the process now.
    fn executed(&mut self, pid: Pid) {
        self.threads.retain(|other, thread| thread.process != pid || *other == pid);
        self.threads.insert(pid, Thread { process: pid, ..Thread::default() });
        self.refresh(pid);
        match task::program(pid) {
            Some(program) => self.tell(pid, program, None),
            None => self.lose(Loss::Unreadable),
        }
    }

    /// Stopped before a call of interest.
    fn called(&mut self, pid: Pid) {
        let Ok(ptrace::Call::Entry { arch, nr, args }) = ptrace::call(pid) else { return };
        let Some(process) = self.threads.get(&pid).map(|thread| thread.process) else { return };
        let abi = Abi::from_audit_arch(arch).filter(|_| nr < u64::from(X32_BIT));
        let name = abi.and_then(|abi| Some((abi, abi.call_name(u32::try_from(nr).ok()?)?)));
        // Every sandbox has execve: it is stopped at for its failures alone.
        if self.target.scope == Scope::Every && name.is_none_or(|(_, name)| name != "execve") {
            let name = name.map_or_else(|| format!("number {nr}"), |(_, name)| name.to_owned());
            *self.counts.entry(name).or_default() += 1;
        }
        let Some((abi, name)) = name else {
            let name = format!("number {nr} of ABI {arch:#x}");
            return self.tell(process, What::Call { name, args }, None);
        };
        if name == "prctl" {
            // Its name is about to change.
            return self.mark_stale(process);
        }
        let own_pid = self.processes.get(&process).map_or(0, |process| process.identity.own_pid);
        let mut events = Vec::new();
        let (call, mut caller) = (Call { abi, name, args }, Stopped { thread: pid, own_pid });
        // Whoever learns wants to know by which names files are reached.
        let look = match self.target.scope {
            Scope::Every => decode::look(&call, &mut caller).ok().flatten().filter(|look| self.looks.is_new(look)),
            Scope::Default | Scope::Full => None,
        };
        let decoded = decode::decode(&call, &mut caller, &mut events);
        if decoded.is_err() {
            self.lose(Loss::Unreadable);
        }
        if events.iter().any(is_told_at_once) {
            return events.into_iter().for_each(|what| self.tell(process, what, None));
        }
        if let Some(thread) = self.threads.get_mut(&pid) {
            thread.pending = events;
            thread.look = look;
            thread.opens = matches!(name, "open" | "openat" | "openat2" | "creat");
        }
    }

    /// Stopped after a call whose result was waited for.
    fn returned(&mut self, pid: Pid) {
        let value = match ptrace::call(pid) {
            Ok(ptrace::Call::Exit { value }) => value,
            // Before the call: its end is still to come.
            Ok(ptrace::Call::Entry { .. }) => return,
            Ok(ptrace::Call::None) | Err(_) => 0,
        };
        let Some(thread) = self.threads.get_mut(&pid) else { return };
        let (process, opens, pending) = (thread.process, thread.opens, std::mem::take(&mut thread.pending));
        let mut look = thread.look.take();
        let error = match value {
            value if RESTARTS.contains(&value) => Some(Error(libc::EINTR)),
            value if FAILURES.contains(&value) => i32::try_from(-value).ok().map(Error),
            _ => None,
        };
        for mut what in pending {
            // The program that came of it was told.
            if matches!(what, What::Exec { .. }) && error.is_none() {
                continue;
            }
            if error.is_none() {
                decode::complete(&mut what, value.cast_unsigned());
                if let What::Open { path, .. } = &mut what
                    && opens
                    && let Some(real) = task::opened(pid, value)
                {
                    look = look.filter(|look| !matches!(look, What::Look { path, .. } if *path == real));
                    *path = real;
                }
            }
            if matches!(what, What::SetIds { .. }) {
                self.mark_stale(process);
            }
            self.tell(process, what, error);
        }
        if let Some(look) = look.filter(|look| self.looks.take(look, error)) {
            self.tell(process, look, None);
        }
    }

    /// Of a thread nothing is told; the process ends when its first thread is reported, which is after all others.
    fn gone(&mut self, pid: Pid, exit: What) {
        if let Some(thread) = self.threads.remove(&pid) {
            // Nobody knows what became of a program that was about to be executed.
            for what in thread.pending.into_iter().filter(|what| !matches!(what, What::Exec { .. })) {
                self.tell(thread.process, what, None);
            }
        }
        if !self.processes.contains_key(&pid) {
            return;
        }
        self.tell(pid, exit, None);
        self.processes.remove(&pid);
        for process in self.processes.values_mut().filter(|process| process.identity.parent == pid) {
            process.is_stale = true;
        }
    }

    fn mark_stale(&mut self, process: Pid) {
        if let Some(process) = self.processes.get_mut(&process) {
            process.is_stale = true;
        }
    }

    fn refresh(&mut self, process: Pid) {
        if let Some(identity) = task::identity(process) {
            self.processes.insert(process, Process { identity, is_stale: false });
        }
    }

    fn tell(&mut self, process: Pid, what: What, error: Option<Error>) {
        if self.processes.get(&process).is_none_or(|process| process.is_stale) {
            self.refresh(process);
        }
        let known = self.processes.get(&process).map(|process| process.identity.clone()).unwrap_or_default();
        self.batch.events.push(Event {
            time_ns: now_ns(),
            sandbox: self.target.sandbox,
            pid: process.cast_unsigned(),
            ppid: known.parent.cast_unsigned(),
            uid: known.uid,
            comm: known.comm,
            what,
            error,
        });
    }

    fn lose(&mut self, loss: Loss) {
        *self.batch.lost.entry(loss).or_default() += 1;
    }

    fn tell_counts(&mut self) {
        self.counted = Instant::now();
        let counts = std::mem::take(&mut self.counts);
        if !counts.is_empty() {
            let init = Pid::try_from(self.target.init).unwrap_or(0);
            self.tell(init, What::Calls { counts }, None);
        }
    }

    /// Waits for room: the sandbox waits with us, and nothing is lost.
    fn flush(&mut self) -> Result<(), Unheard> {
        if !self.counts.is_empty() && self.counted.elapsed() > COUNTS_EVERY {
            self.tell_counts();
        }
        if self.batch.events.is_empty() && self.batch.lost.is_empty() {
            return Ok(());
        }
        self.to.send(std::mem::take(&mut self.batch)).map_err(|_| Unheard)
    }
}

/// Attempts that may wait for long, or whose result says little: a connection to another host is told of when it is asked for.
fn is_told_at_once(what: &What) -> bool {
    match what {
        What::Connect { address } | What::Bind { address } => address.inet().is_some(),
        What::Send { .. } | What::Dns { .. } | What::Signal { .. } => true,
        _ => false,
    }
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("every kernel has it");
    u64::try_from(now.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0)
}

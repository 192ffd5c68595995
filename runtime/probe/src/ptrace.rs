//! Events by ptrace(2), for callers that may not load probes: a filter stops the sandbox's processes at the calls of interest, and a thread
//! here looks at each stop, tells of it and lets them go on.
//!
//! Input: the pids of a sandbox whose command waits, sealed, with the filter of [`apex_core::seccomp::trace`] in force. Output: the same events
//! as from the kernel's probes. The tracer only looks: it changes no register and no memory, delivers every signal as it came, and what it
//! reads never becomes an answer. When it ends, for whatever reason, the kernel kills what it traced (`PTRACE_O_EXITKILL`): nothing
//! that was to be watched runs unwatched.

mod task;
mod tracer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use apex_core::seccomp::trace::Scope;
use apex_core::watch::{Family, Source};
use apex_sys::{Errno, ptrace, signal};

use crate::source::Batch;
use crate::sources::Listener;
use tracer::Tracer;

/// Wakes the tracer from its wait. Ignored by default, so that it does no harm where it comes late.
const BELL: i32 = nix::libc::SIGURG;
/// How long an order to the tracer may take.
pub const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(1);

/// What is traced.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Id of the sandbox in its events.
    pub sandbox: u64,
    /// The init, which is not traced: orphans become its children.
    pub init: u32,
    /// The process that becomes the command.
    pub command: u32,
    /// What its filter stops at.
    pub scope: Scope,
}

/// Why a sandbox cannot be traced.
#[derive(Debug, thiserror::Error)]
pub enum PtraceError {
    /// The kernel refused.
    #[error("tracing process {pid} was refused ({errno}); {}", remedy(*.errno))]
    Seize {
        /// The process that becomes the command.
        pid: u32,
        /// The kernel's answer.
        errno: Errno,
    },
    /// No thread.
    #[error("starting the tracer's thread")]
    Thread(#[source] std::io::Error),
    /// The tracer does not answer.
    #[error("the tracer did not take the order to end within {PATIENCE:?}")]
    Silent,
}

fn remedy(errno: Errno) -> String {
    match (obstacle(), errno) {
        (Some(words), _) => words,
        (None, Errno::ESRCH) => "it has ended already".to_owned(),
        (None, _) => "a security module or another tracer stands in the way; run as root so that kernel probes \
                      can be loaded, or without --watch"
            .to_owned(),
    }
}

/// Why nothing can be traced on this host, as far as that can be told without a process to trace.
pub fn obstacle() -> Option<String> {
    let yama = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    // Up to 2 it asks for CAP_SYS_PTRACE in the namespace of the traced, which its owner has.
    if yama.trim() == "3" {
        return Some(
            "kernel.yama.ptrace_scope is 3, which refuses all tracing until the next boot; boot with a lower value, or run as root \
             so that kernel probes can be loaded"
                .to_owned(),
        );
    }
    // Nobody can trace itself: only a filter or a missing call answers anything but "no such tracee".
    match ptrace::interrupt(ptrace::own_thread()) {
        Err(Errno::ESRCH | Errno::EIO) => None,
        answer => Some(format!(
            "ptrace(2) is refused around this process ({}), as by a container's system call filter; let it through, or run where \
             kernel probes can be loaded",
            answer.err().unwrap_or(Errno::EPERM)
        )),
    }
}

/// Why a tracer sees neither files nor connections beside a recording listener.
const OUTRANKED: &str = "with --why each call with a path or an address goes to the listener of the system call filter, which outranks the tracer; \
                         leave --why out, or run as root";

/// Where the families come from when this is the source; `None` as scope where nothing is watched.
pub fn sources(scope: Option<Scope>, listener: Listener) -> BTreeMap<Family, Source> {
    let missing = |reason: &str| Source::Missing { reason: reason.to_owned() };
    let obstacle = obstacle();
    let traced = || obstacle.as_deref().map_or(Source::Ptrace, missing);
    Family::ALL
        .into_iter()
        .map(|family| {
            let source = match family {
                _ if scope.is_none() => missing("nothing is watched at level off"),
                Family::File | Family::Network if listener == Listener::Paths => missing(OUTRANKED),
                Family::Process | Family::Network | Family::Privilege => traced(),
                Family::File if scope >= Some(Scope::Full) => traced(),
                Family::Syscall if scope == Some(Scope::Every) => traced(),
                Family::File => missing("files are watched at level full"),
                Family::Refusal if listener != Listener::None => Source::Listener,
                Family::Refusal => missing("no system call filter is in force"),
                Family::Syscall => {
                    missing("without kernel probes, counting every call would stop the program at each; run as root")
                }
                Family::Lsm => missing("hooks of the security modules need kernel probes; run as root"),
            };
            (family, source)
        })
        .collect()
}

/// Orders to the tracer, by number.
mod order {
    pub const RUN: u8 = 0;
    pub const FREEZE: u8 = 1;
    pub const END: u8 = 2;
}

/// What the tracer and whoever holds its [`Running`] share.
struct Shared {
    wanted: AtomicU8,
    obeyed: AtomicU8,
    thread: AtomicI32,
}

/// A tracer at work.
pub struct Running {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Traces a sandbox whose command waits, sealed. When this returns, nothing of it escapes the tracer.
///
/// # Errors
/// The kernel does not let the caller trace it.
pub fn start(target: Target, to: SyncSender<Batch>) -> Result<Running, PtraceError> {
    let shared = Arc::new(Shared {
        wanted: AtomicU8::new(order::RUN),
        obeyed: AtomicU8::new(order::RUN),
        thread: AtomicI32::new(0),
    });
    let refused = |errno| PtraceError::Seize { pid: target.command, errno };
    signal::interrupts_calls(BELL).map_err(refused)?;
    let (seized, answer) = sync_channel(1);
    let for_tracer = Arc::clone(&shared);
    // A tracer is a thread: it must be the one that seizes.
    let body = move || {
        for_tracer.thread.store(ptrace::own_thread(), Ordering::SeqCst);
        let tracer = Tracer::seize(target, to, for_tracer);
        let (answer, tracer) = match tracer {
            Ok(tracer) => (Ok(()), Some(tracer)),
            Err(errno) => (Err(errno), None),
        };
        if seized.send(answer).is_ok()
            && let Some(tracer) = tracer
        {
            tracer.run();
        }
    };
    let thread = std::thread::Builder::new().name("ptrace".to_owned()).spawn(body).map_err(PtraceError::Thread)?;
    match answer.recv() {
        Ok(Ok(())) => Ok(Running { shared, thread: Some(thread) }),
        Ok(Err(errno)) => Err(refused(errno)),
        Err(_) => Err(refused(Errno::ECHILD)),
    }
}

impl Running {
    /// Asks for every process of the sandbox to be stopped at the next instruction that it would execute, or to go on. Does not wait: the
    /// tracer may itself be waiting for room in its channel.
    pub fn ask(&self, frozen: bool) {
        self.shared.wanted.store(if frozen { order::FREEZE } else { order::RUN }, Ordering::SeqCst);
    }

    /// Whether the tracer took its last order, or is gone; otherwise it is rung for again, since the bell may ring just before a wait begins.
    pub fn has_obeyed(&self) -> bool {
        let shared = &self.shared;
        if shared.obeyed.load(Ordering::SeqCst) == shared.wanted.load(Ordering::SeqCst) || self.has_ended() {
            return true;
        }
        // ESRCH: it has just ended.
        let _ = signal::to_own_thread(shared.thread.load(Ordering::SeqCst), BELL);
        false
    }

    /// Waits until the last event of a sandbox that has ended is sent. One that has not is killed.
    ///
    /// # Errors
    /// The tracer does not answer.
    pub fn stop(mut self) -> Result<(), PtraceError> {
        let end = Instant::now() + PATIENCE;
        while !self.has_ended() && Instant::now() < end {
            std::thread::sleep(POLL);
        }
        self.shared.wanted.store(order::END, Ordering::SeqCst);
        let end = Instant::now() + PATIENCE;
        while !self.has_obeyed() {
            if Instant::now() > end {
                return Err(PtraceError::Silent);
            }
            std::thread::sleep(POLL);
        }
        if let Some(thread) = self.thread.take() {
            // Its panic was printed where it happened, and the sandbox was killed with it.
            let _ = thread.join();
        }
        Ok(())
    }

    /// Whether the last process is gone and the tracer with it.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

#[cfg(test)]
impl Running {
    /// In place of a tracer: who sends so many batches, whatever the time, before it looks at its orders, obeys one and ends.
    pub fn busy(to: SyncSender<Batch>, batches: usize) -> Running {
        let shared = Arc::new(Shared {
            wanted: AtomicU8::new(order::RUN),
            obeyed: AtomicU8::new(order::RUN),
            thread: AtomicI32::new(0),
        });
        let own = Arc::clone(&shared);
        let body = move || {
            own.thread.store(ptrace::own_thread(), Ordering::SeqCst);
            for _ in 0..batches {
                to.send(Batch::default()).expect("somebody hears it");
            }
            while own.wanted.load(Ordering::SeqCst) == order::RUN {
                std::thread::sleep(POLL);
            }
            own.obeyed.store(own.wanted.load(Ordering::SeqCst), Ordering::SeqCst);
        };
        Running { shared, thread: Some(std::thread::spawn(body)) }
    }
}

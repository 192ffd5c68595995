//! One process of a container, the first or a later one: what is known of it, from its request to its end.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use apex_sys::Errno;
use containerd_shim_protos::types::task::Status;
use tokio::sync::{oneshot, watch};

use crate::bundle;
use crate::console::{Console, ConsoleSocket};
use crate::error::Error;
use crate::io::{self, Kept, Places, Setting};
use crate::reaper::Exit;
use crate::runtime::{Making, Runtime};

/// Where a process stands. It goes down this list, and between running and paused both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Asked for, and the first one of a container made; it does not run.
    Created,
    /// It runs.
    Running,
    /// It is frozen with its container.
    Paused,
    /// It has ended, and everybody was told.
    Ended(Exit),
}

impl Phase {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Created => "created",
            Phase::Running => "running",
            Phase::Paused => "paused",
            Phase::Ended(_) => "stopped",
        }
    }

    /// For containerd.
    pub fn status(self) -> Status {
        match self {
            Phase::Created => Status::CREATED,
            Phase::Running => Status::RUNNING,
            Phase::Paused => Status::PAUSED,
            Phase::Ended(_) => Status::STOPPED,
        }
    }
}

/// Its streams, as far as the shim has a part in them.
#[derive(Debug, Default)]
pub enum Streams {
    /// None yet, or none any more.
    #[default]
    None,
    /// Past the shim.
    Direct(Kept),
    /// A terminal.
    Terminal(Console),
}

/// What is guarded while a process is started: its end is told only when this is free again.
#[derive(Debug, Default)]
pub struct Guarded {
    /// Its streams.
    pub streams: Streams,
    /// Containerd closed the input, perhaps before there was one.
    pub is_input_closed: bool,
}

/// What a request says of a process.
#[derive(Debug)]
pub struct Process {
    /// The container.
    pub container: String,
    /// The exec; empty for the first process.
    pub exec: String,
    /// Where its streams lead.
    pub places: Places,
    /// Of an exec: the process as JSON.
    pub spec: Vec<u8>,
    /// Held while it is started.
    pub gate: tokio::sync::Mutex<Guarded>,
    known: Mutex<Known>,
    end: watch::Sender<Option<Exit>>,
}

#[derive(Debug)]
struct Known {
    phase: Phase,
    pid: i32,
    handle: Option<OwnedFd>,
}

/// How a process is made.
#[derive(Debug)]
pub enum Way<'a> {
    /// With its container.
    Create,
    /// In one that runs, as this file describes.
    Exec(&'a Path),
}

/// A process that was made.
#[derive(Debug)]
pub struct Made {
    /// Its pid.
    pub pid: i32,
    /// Where its end arrives.
    pub end: oneshot::Receiver<Exit>,
    /// Its streams.
    pub streams: Streams,
}

impl Process {
    /// As it is asked for.
    pub fn new(container: &str, exec: &str, places: Places, spec: Vec<u8>) -> Arc<Self> {
        let (end, _) = watch::channel(None);
        let known = Mutex::new(Known { phase: Phase::Created, pid: 0, handle: None });
        let gate = tokio::sync::Mutex::default();
        let (container, exec) = (container.to_owned(), exec.to_owned());
        Arc::new(Process { container, exec, places, spec, gate, known, end })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For people.
    pub fn name(&self) -> String {
        if self.exec.is_empty() {
            format!("container {}", self.container)
        } else {
            format!("exec {} of container {}", self.exec, self.container)
        }
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        self.known().phase
    }

    /// Its pid; zero before it was made.
    pub fn pid(&self) -> u32 {
        self.known().pid.cast_unsigned()
    }

    /// Takes note that it is somewhere else now. An end is the end.
    pub fn set_phase(&self, phase: Phase) {
        let mut known = self.known();
        if !matches!(known.phase, Phase::Ended(_)) {
            known.phase = phase;
        }
    }

    /// Takes note of its pid. Call it before any wait since its end was claimed: until then only an end that is there already was reaped.
    fn set_pid(&self, pid: i32, end: &oneshot::Receiver<Exit>) {
        // The pid of one that was reaped may be another's by now.
        let handle = if end.is_empty() { apex_sys::process::pidfd_open(pid).ok() } else { None };
        let mut known = self.known();
        known.pid = pid;
        known.handle = handle;
    }

    /// Refuses unless it stands there.
    pub fn require(&self, intent: &'static str, is_well: impl Fn(Phase) -> bool) -> Result<(), Error> {
        let phase = self.phase();
        if is_well(phase) { Ok(()) } else { Err(Error::State { intent, name: self.name(), state: phase.name() }) }
    }

    /// Sends a signal to this process and no other.
    pub fn signal(&self, signal: u32) -> Result<(), Error> {
        let known = self.known();
        let finished = || Error::Finished(self.name());
        match known.phase {
            Phase::Created => {
                return Err(Error::State { intent: "signal", name: self.name(), state: known.phase.name() });
            }
            Phase::Ended(_) => return Err(finished()),
            Phase::Running | Phase::Paused => {}
        }
        let handle = known.handle.as_ref().ok_or_else(finished)?;
        let signal = signal.cast_signed();
        match apex_sys::process::pidfd_signal(handle.as_raw_fd(), signal) {
            Ok(()) => Ok(()),
            Err(Errno::ESRCH) => Err(finished()),
            Err(errno) => Err(Error::Signal { signal, pid: known.pid, source: errno.into() }),
        }
    }

    /// Tells everybody who waits that it has ended.
    pub fn set_ended(&self, exit: Exit) {
        let mut known = self.known();
        known.phase = Phase::Ended(exit);
        known.handle = None;
        drop(known);
        self.end.send_replace(Some(exit));
    }

    /// Waits for its end.
    pub async fn ended(&self) -> Exit {
        let mut end = self.end.subscribe();
        match end.wait_for(Option::is_some).await {
            Ok(exit) => exit.unwrap_or_else(Exit::unknown),
            Err(_) => Exit::unknown(),
        }
    }

    /// Makes it by the runtime. What was made is ended again when its terminal does not arrive.
    pub async fn make(
        &self,
        runtime: &Runtime,
        way: Way<'_>,
        pid_file: &Path,
        setting: &Setting<'_>,
    ) -> Result<Made, Error> {
        let birth = setting.reaper.expect();
        if !self.places.terminal {
            let (ends, mut kept) = io::open(&self.places, setting).await?;
            let made = run(runtime, &way, Making { pid_file, console: None, ends: Some(ends) }).await;
            let pid = match made.and_then(|()| bundle::read_pid(pid_file)) {
                Ok(pid) => pid,
                Err(error) => {
                    kept.release().await;
                    return Err(error);
                }
            };
            let end = birth.claim(pid);
            self.set_pid(pid, &end);
            return Ok(Made { pid, end, streams: Streams::Direct(kept) });
        }
        let socket = ConsoleSocket::bind()?;
        run(runtime, &way, Making { pid_file, console: Some(socket.path()), ends: None }).await?;
        let pid = bundle::read_pid(pid_file)?;
        let end = birth.claim(pid);
        self.set_pid(pid, &end);
        let console = match socket.receive().await {
            Ok(master) => Console::start(master, &self.places, setting).await,
            Err(error) => Err(error),
        };
        match console {
            Ok(console) => Ok(Made { pid, end, streams: Streams::Terminal(console) }),
            Err(error) => {
                self.end_at_once();
                Err(error.into())
            }
        }
    }

    fn end_at_once(&self) {
        if let Some(handle) = &self.known().handle
            && let Err(errno) = apex_sys::process::pidfd_signal(handle.as_raw_fd(), nix::libc::SIGKILL)
        {
            log::debug!("cannot end {}: {errno}", self.name());
        }
    }

    /// Containerd gives no more input.
    pub async fn close_input(&self) {
        let mut guarded = self.gate.lock().await;
        guarded.is_input_closed = true;
        guarded.streams.close_input();
    }

    /// Sets the size of its terminal.
    pub async fn resize(&self, columns: u32, rows: u32) -> Result<(), Error> {
        let guarded = self.gate.lock().await;
        let clamp = |size: u32| u16::try_from(size).unwrap_or(u16::MAX);
        match &guarded.streams {
            Streams::Terminal(console) => console
                .resize(clamp(columns), clamp(rows))
                .map_err(|source| Error::Resize { name: self.name(), source }),
            Streams::None | Streams::Direct(_) => {
                Err(Error::State { intent: "resize", name: self.name(), state: "without a terminal" })
            }
        }
    }
}

async fn run(runtime: &Runtime, way: &Way<'_>, making: Making<'_>) -> Result<(), Error> {
    match way {
        Way::Create => Ok(runtime.create(making).await?),
        Way::Exec(process) => Ok(runtime.exec(process, making).await?),
    }
}

impl Streams {
    /// Containerd gives no more input.
    pub fn close_input(&mut self) {
        match self {
            Streams::None => {}
            Streams::Direct(kept) => kept.close_input(),
            Streams::Terminal(console) => console.close_input(),
        }
    }

    /// The process has ended: what a terminal still has goes out.
    pub async fn finish(&mut self) {
        if let Streams::Terminal(_) = self
            && let Streams::Terminal(console) = std::mem::take(self)
        {
            console.finish().await;
        }
    }

    /// Lets go of everything.
    pub async fn release(&mut self) {
        match std::mem::take(self) {
            Streams::None => {}
            Streams::Direct(mut kept) => kept.release().await,
            Streams::Terminal(console) => console.finish().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn process() -> Arc<Process> {
        Process::new("c", "", Places::default(), Vec::new())
    }

    #[test]
    fn an_end_is_the_end() {
        let process = process();
        let exit = Exit { status: 3, at: SystemTime::UNIX_EPOCH };
        process.set_ended(exit);
        process.set_phase(Phase::Running);
        assert_eq!(process.phase(), Phase::Ended(exit));
        assert!(matches!(process.signal(9), Err(Error::Finished(_))));
    }

    #[test]
    fn a_process_that_was_not_started_takes_no_signal() {
        assert!(matches!(process().signal(9), Err(Error::State { .. })));
        assert!(process().require("start", |phase| phase == Phase::Created).is_ok());
        let error = process().require("pause", |phase| phase == Phase::Running).unwrap_err();
        assert_eq!(error.to_string(), "cannot pause container c: it is created");
    }

    #[tokio::test]
    async fn whoever_waits_late_hears_the_end_as_well() {
        let process = process();
        let exit = Exit { status: 3, at: SystemTime::UNIX_EPOCH };
        process.set_ended(exit);
        assert_eq!(process.ended().await, exit);
    }
}

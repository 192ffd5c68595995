//! The kernel's probes as a source of events.
//!
//! Programs of `ebpf/` are loaded by family ([`Probes::load`]), attached while a sandbox is watched ([`Probes::start`]) and detached with it
//! ([`Running::stop`]). Input: the sandbox's cgroup. Output: batches of events, counters, and what the programs cost. Nothing is left in
//! the kernel when the process ends, however it ends: programs, maps and links live by their descriptors.

mod btf;
mod calls;
mod cgroup;
mod decode;
mod lsm;
mod maps;
mod meaning;
mod objects;
mod reader;
mod record;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::SyncSender;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use apex_core::watch::{Family, Level, Source};
use aya::maps::{MapError, RingBuf};
use aya::programs::ProgramError;
use aya::sys::{Stats, SyscallError};

use crate::privilege;
use crate::source::{Batch, Looks};
use cgroup::{Place, PlaceError};
pub use maps::Deny;
use maps::Dial;
use objects::Loaded;
use reader::Reader;

/// The sandbox to watch.
#[derive(Debug)]
pub struct Sandbox {
    /// Its id, the inode of its cgroup v2 directory.
    pub id: u64,
    /// That directory.
    pub cgroup: OwnedFd,
    /// Pid of its init as the host numbers it: ours, so what it does itself is not told. 0 when there is none.
    pub init: u32,
}

/// Why a sandbox cannot be watched or its dial not be moved.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The cgroup's place in the hierarchy.
    #[error("cannot recognise the sandbox's processes by their cgroup")]
    Place(#[from] PlaceError),
    /// Id and directory do not belong together.
    #[error("the cgroup directory has the id {found}, not {expected}: it was replaced after the sandbox was made")]
    Replaced {
        /// Id that was told.
        expected: u64,
        /// Id of the directory.
        found: u64,
    },
    /// A map could not be read or written.
    #[error("cannot use the maps of the {family} probes")]
    Map {
        /// Name of the family.
        family: &'static str,
        /// Why.
        source: MapError,
    },
    /// A program could not be attached.
    #[error("cannot attach the program {program} of the {family} probes")]
    Attach {
        /// Name of the family.
        family: &'static str,
        /// Name of the program.
        program: &'static str,
        /// Why.
        source: ProgramError,
    },
    /// The thread that reads, or the pipe that ends it.
    #[error("cannot start the reader of the probes' records")]
    Reader(#[source] std::io::Error),
    /// The kernel does not measure.
    #[error("cannot let the kernel measure what BPF programs cost")]
    Measure(#[source] SyscallError),
    /// The kernel did not tell what a program cost.
    #[error("cannot read what the program {program} has cost")]
    Stats {
        /// Name of the program.
        program: &'static str,
        /// Why.
        source: ProgramError,
    },
}

/// What a program has cost while it was measured, see [`Running::measure`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramStats {
    /// Name of the program.
    pub name: &'static str,
    /// Its family.
    pub family: Family,
    /// Nanoseconds of CPU, of all processes of the host that met it.
    pub run_time_ns: u64,
    /// How often it ran.
    pub run_count: u64,
}

/// Programs that the kernel has verified, attached to nothing.
#[derive(Debug)]
pub struct Probes {
    objects: Vec<Loaded>,
    learns: bool,
}

impl Probes {
    /// Loads what a level needs and the kernel grants, and says of each family where its events come from. `None` when there is nothing.
    pub fn load(level: Level) -> (Option<Probes>, BTreeMap<Family, Source>) {
        Probes::load_for(level, false)
    }

    /// The same; a run that is learned from also tells of the names that it looks at and opens.
    pub fn load_for(level: Level, learns: bool) -> (Option<Probes>, BTreeMap<Family, Source>) {
        let (objects, sources) = objects::load(level, learns);
        ((!objects.is_empty()).then_some(Probes { objects, learns }), sources)
    }

    /// Attaches every program; when it returns, nothing of the sandbox goes unseen.
    pub fn start(mut self, sandbox: Sandbox, to: SyncSender<Batch>) -> Result<Running, ProbeError> {
        let place = cgroup::place(sandbox.cgroup.as_fd())?;
        if place.id != sandbox.id {
            return Err(ProbeError::Replaced { expected: sandbox.id, found: place.id });
        }
        let (told, stop) =
            nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|errno| ProbeError::Reader(errno.into()))?;
        let mut reader = Reader {
            rings: Vec::new(),
            losses: Vec::new(),
            counters: Vec::new(),
            looks: self.learns.then(Looks::default),
            sandbox: place.id,
            to,
            stop: told,
        };
        let mut dials = Vec::new();
        // System calls tell of files and privileges already.
        let has = |family| self.objects.iter().any(|object| object.family == family);
        let has_calls = has(Family::Syscall);
        let is_quiet = has(Family::File) && has(Family::Privilege);
        for object in &mut self.objects {
            let dial = prepare(object, place, sandbox.init, is_quiet, &mut reader)
                .map_err(|source| ProbeError::Map { family: object.family.name(), source })?;
            dials.push(dial);
        }
        for object in &mut self.objects {
            for program in object.programs.iter().filter(|program| !program.is_called) {
                let code = object.ebpf.program_mut(program.name).expect("it was loaded");
                objects::attach(code, sandbox.cgroup.as_fd()).map_err(|source| ProbeError::Attach {
                    family: object.family.name(),
                    program: program.name,
                    source,
                })?;
            }
        }
        let reader = std::thread::Builder::new()
            .name("apex-rings".to_owned())
            .spawn(move || {
                privilege::give_up_or_panic();
                reader.run();
            })
            .map_err(ProbeError::Reader)?;
        let running =
            Running { objects: self.objects, dials: Mutex::new(dials), stats: Mutex::new(None), stop, reader };
        // Little beside an exec or a packet, more than the hook itself on every system call of the host.
        if !has_calls {
            // Without the right to measure the figures stay 0.
            let _ = running.measure();
        }
        Ok(running)
    }
}

fn prepare(
    object: &mut Loaded,
    place: Place,
    init: u32,
    is_quiet: bool,
    reader: &mut Reader,
) -> Result<Dial, MapError> {
    let dial = maps::admit(object, place, init, is_quiet)?;
    reader.losses.push(maps::Losses::take(&mut object.ebpf, place.id)?);
    reader.counters.extend(maps::Counter::take(&mut object.ebpf)?);
    if let Some(ring) = object.ebpf.take_map("ring") {
        reader.rings.push(RingBuf::try_from(ring)?);
    }
    Ok(dial)
}

/// Programs at work for one sandbox. Dropped without [`Running::stop`] it detaches them as well, and the reader ends by itself.
#[derive(Debug)]
pub struct Running {
    objects: Vec<Loaded>,
    dials: Mutex<Vec<Dial>>,
    /// The kernel measures as long as it is open.
    stats: Mutex<Option<OwnedFd>>,
    stop: OwnedFd,
    reader: JoinHandle<()>,
}

impl Running {
    /// Whether a family's programs are attached.
    pub fn has(&self, family: Family) -> bool {
        self.objects.iter().any(|object| object.family == family)
    }

    /// Sets the dial: these are refused with EPERM from now on, and nothing else. What the attached programs cannot refuse is left: see [`Deny`].
    pub fn deny(&self, denied: &[Deny]) -> Result<(), ProbeError> {
        let mut dials = self.dials.lock().unwrap_or_else(PoisonError::into_inner);
        for dial in dials.iter_mut() {
            dial.deny(denied).map_err(|source| ProbeError::Map { family: dial.family.name(), source })?;
        }
        Ok(())
    }

    /// Lets the kernel measure every BPF program of the host from now on, for two readings of the clock each run. At level `default` it does from the
    /// start.
    pub fn measure(&self) -> Result<(), ProbeError> {
        let measured = aya::sys::enable_stats(Stats::RunTime).map_err(ProbeError::Measure)?;
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = Some(measured);
        Ok(())
    }

    /// What each program has cost while it was measured.
    pub fn stats(&self) -> Result<Vec<ProgramStats>, ProbeError> {
        let mut all = Vec::new();
        for object in &self.objects {
            for program in &object.programs {
                let name = program.name;
                let code = object.ebpf.program(name).expect("it was loaded");
                let info = code.info().map_err(|source| ProbeError::Stats { program: name, source })?;
                let run_time_ns = u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX);
                all.push(ProgramStats { name, family: object.family, run_time_ns, run_count: info.run_count() });
            }
        }
        Ok(all)
    }

    /// Detaches everything, reads what is left and sends the last counts. The channel is closed when it returns.
    pub fn stop(self) {
        let Running { objects, dials, stats, stop, reader } = self;
        drop((objects, dials));
        drop(stats);
        drop(stop);
        // A reader that panicked has told so on standard error; what it had is lost with it.
        let _ = reader.join();
    }
}

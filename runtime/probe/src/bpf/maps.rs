//! The maps that the prober and the programs share.
//!
//! Layouts are those of `ebpf/sandbox.h` and `ebpf/emit.h`, as words: the first number of a pair is the lower half.

use std::collections::BTreeMap;
use std::fmt;

use apex_core::event::{Loss, What};
use apex_core::seccomp::Abi;
use apex_core::watch::Family;
use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues, ProgramArray};
use aya::programs::Program;

use super::calls::{self, CALLS, LOOKS, ROWS};
use super::cgroup::Place;
use super::objects::Loaded;

/// Ordinary records of one sandbox and family in a window of 134 ms that are let through: some 200 000 a second.
const WINDOW_RECORDS_MAX: u64 = 27_000;

/// Why the kernel's side could not send a record, by its number there.
const LOSSES: [Loss; 4] = [Loss::RingFull, Loss::RateLimited, Loss::RingFull, Loss::Unreadable];

/// What the dial can refuse, as a bit of a sandbox's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Deny {
    /// Connections, binds and datagrams, and every packet of those that there are already.
    Network = 1,
    /// Further programs. Needs family `lsm`, as all that follow.
    Exec = 2,
    /// Opening for writing, and every change of names and attributes.
    Write = 4,
    /// Attaching to another process.
    Ptrace = 8,
    /// Ids, mounts, user namespaces, bpf(2).
    Privilege = 16,
    /// Connections. As all that follow it needs family `network`, and takes nothing from what is there.
    Connect = 32,
    /// Binds.
    Bind = 64,
    /// Datagrams.
    Sendmsg = 128,
    /// Opening and making devices, but for those without which hardly a program runs.
    Devices = 256,
}

/// Tells one object's programs whom to watch. Quiet hooks of the security module record refusals alone.
pub fn admit(object: &mut Loaded, place: Place, init: u32, is_quiet: bool) -> Result<Dial, MapError> {
    let ebpf = &mut object.ebpf;
    let sandboxes = HashMap::try_from(ebpf.take_map("sandboxes").expect("every object has the shared maps"))?;
    let cut = ebpf.take_map(".data.cut").map(Array::try_from).transpose()?;
    let mut dial = Dial { family: object.family, sandboxes, cut, id: place.id, init };
    dial.deny(&[])?;
    let mut losses: PerCpuHashMap<_, [u64; 2], u64> = PerCpuHashMap::try_from(map(ebpf, "losses"))?;
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| MapError::IoError(error))?;
    for reason in 0..LOSSES.len() as u64 {
        let zero = PerCpuValues::try_from(vec![0; cpus]).map_err(MapError::IoError)?;
        losses.insert([place.id, reason], zero, 0)?;
    }
    // The last: from here on processes are let through the filter.
    let mut filter: Array<_, [u64; 4]> = Array::try_from(map(ebpf, ".data.filter"))?;
    filter.set(
        0,
        [place.id, place.id, u64::from(place.level) | 1 << 32, u64::from(init) | u64::from(is_quiet) << 32],
        0,
    )?;
    Ok(dial)
}

/// A sandbox's entry in one object's map.
pub struct Dial {
    /// Family of the object.
    pub family: Family,
    sandboxes: HashMap<MapData, u64, [u64; 4]>,
    /// Of family `network`: whether packets are asked whose they are.
    cut: Option<Array<MapData, u32>>,
    id: u64,
    init: u32,
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dial").field("family", &self.family).field("id", &self.id).finish_non_exhaustive()
    }
}

impl Dial {
    /// Says what is refused from now on, and reads it back. The window of the rate limit begins anew.
    pub fn deny(&mut self, denied: &[Deny]) -> Result<(), MapError> {
        let deny = denied.iter().fold(0, |bits, deny| bits | *deny as u32);
        self.sandboxes.insert(self.id, [u64::from(self.init) | u64::from(deny) << 32, WINDOW_RECORDS_MAX, 0, 0], 0)?;
        if let Some(cut) = &mut self.cut {
            cut.set(0, deny & Deny::Network as u32, 0)?;
        }
        let [who, ..] = self.sandboxes.get(&self.id, 0)?;
        if who >> 32 != u64::from(deny) {
            return Err(MapError::IoError(std::io::Error::other("what was written is not what is there")));
        }
        Ok(())
    }
}

fn map<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut aya::maps::Map {
    ebpf.map_mut(name).expect("every object has the shared maps")
}

/// Lets the hook on system calls reach one family's program for the calls that it wants, and tells that program their shapes. Whoever learns wants
/// the names that are looked at as well.
pub fn connect(hook: &mut Ebpf, object: &mut Loaded, learns: bool) -> Result<(), MapError> {
    let called =
        object.programs.iter().find(|program| program.is_called).expect("only families with one are connected");
    let Some(Program::BtfTracePoint(program)) = object.ebpf.program(called.name) else {
        unreachable!("the hook calls programs of its own type");
    };
    let program = program.fd().expect("it was loaded").try_clone().map_err(MapError::IoError)?;
    let mut shapes: Array<_, [u64; 2]> = Array::try_from(map(&mut object.ebpf, "shapes"))?;
    let mut wanted = ProgramArray::try_from(map(hook, "wanted"))?;
    let looks = if learns { LOOKS } else { &[] };
    for row in ROWS.iter().chain(looks).filter(|row| row.family == object.family) {
        let row = if learns { row.asked() } else { *row };
        for index in row.indices() {
            shapes.set(index, row.shape(), 0)?;
            wanted.set(index, &program, 0)?;
        }
    }
    Ok(())
}

/// A counter that becomes an event from time to time.
pub enum Counter {
    /// Bytes received and sent.
    Traffic {
        /// By direction.
        map: PerCpuArray<MapData, u64>,
        /// What was told before.
        told: [u64; 2],
    },
    /// Calls.
    Calls {
        /// By index.
        map: PerCpuArray<MapData, u64>,
        /// What was told before.
        told: Vec<u64>,
    },
}

impl Counter {
    /// Takes an object's counter out of it, where it has one.
    pub fn take(ebpf: &mut Ebpf) -> Result<Option<Counter>, MapError> {
        if let Some(map) = ebpf.take_map("traffic") {
            return Ok(Some(Counter::Traffic { map: PerCpuArray::try_from(map)?, told: [0; 2] }));
        }
        let Some(map) = ebpf.take_map("counts") else { return Ok(None) };
        Ok(Some(Counter::Calls { map: PerCpuArray::try_from(map)?, told: vec![0; CALLS as usize + 1] }))
    }

    /// What was counted since the call before; `None` when that is nothing.
    pub fn since(&mut self) -> Option<What> {
        match self {
            Counter::Traffic { map, told } => {
                let [received, sent] = [0, 1].map(|direction| difference(map, direction, told));
                (received + sent > 0).then_some(What::Traffic { received_bytes: received, sent_bytes: sent })
            }
            Counter::Calls { map, told } => {
                let mut counts = BTreeMap::new();
                for index in 0..=CALLS {
                    let count = difference(map, index, told);
                    if count > 0 {
                        *counts.entry(call_name(index)).or_default() += count;
                    }
                }
                (!counts.is_empty()).then_some(What::Calls { counts })
            }
        }
    }
}

fn difference(map: &PerCpuArray<MapData, u64>, index: u32, told: &mut [u64]) -> u64 {
    let told = &mut told[index as usize];
    // An array has all its entries; should the kernel have no memory for the copy, the next call tells it.
    let count = map.get(&index, 0).map_or(*told, |counts| counts.iter().sum());
    let difference = count.saturating_sub(*told);
    *told = count;
    difference
}

/// As in events: calls of 32-bit programs say so.
fn call_name(index: u32) -> String {
    match calls::name_of(index) {
        Some((Abi::I386, name)) => format!("i386:{name}"),
        Some((_, name)) => name.to_owned(),
        None if index < CALLS => format!("number {index}"),
        None => "unknown".to_owned(),
    }
}

/// Counters of what one object's programs could not send.
pub struct Losses {
    map: PerCpuHashMap<MapData, [u64; 2], u64>,
    sandbox: u64,
    told: [u64; LOSSES.len()],
}

impl Losses {
    /// Takes the map out of its object.
    pub fn take(ebpf: &mut Ebpf, sandbox: u64) -> Result<Losses, MapError> {
        let map = PerCpuHashMap::try_from(ebpf.take_map("losses").expect("every object has the shared maps"))?;
        Ok(Losses { map, sandbox, told: [0; LOSSES.len()] })
    }

    /// Adds what was lost since the call before.
    pub fn add_to(&mut self, lost: &mut BTreeMap<Loss, u64>) {
        for (reason, told) in self.told.iter_mut().enumerate() {
            // Inserted at the start; only the kernel's memory pressure could refuse the copy, and then the next call tells it.
            let Ok(counts) = self.map.get(&[self.sandbox, reason as u64], 0) else { continue };
            let count = counts.iter().sum::<u64>();
            if count > *told {
                *lost.entry(LOSSES[reason]).or_default() += count - *told;
                *told = count;
            }
        }
    }
}

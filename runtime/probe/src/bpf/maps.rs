//! The maps that the prober and the programs share.
//!
//! Layouts are those of `ebpf/sandbox.h` and `ebpf/emit.h`, as words: the first number of a pair is the lower half.

use std::collections::BTreeMap;

use apex_core::event::Loss;
use apex_core::watch::Family;
use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuHashMap, PerCpuValues};

use super::cgroup::Place;
use super::objects::Loaded;

/// Ordinary records of one sandbox and family in a window of 134 ms that are let through: some 200 000 a second.
const WINDOW_RECORDS_MAX: u64 = 27_000;

/// Why the kernel's side could not send a record, by its number there.
const LOSSES: [Loss; 4] = [Loss::RingFull, Loss::RateLimited, Loss::RingFull, Loss::Unreadable];

/// Flag: connections, binds and datagrams are refused.
pub const DENY_NETWORK: u32 = 1;

/// Tells one object's programs whom to watch.
pub fn admit(object: &mut Loaded, place: Place, init: u32) -> Result<Dial, MapError> {
    let ebpf = &mut object.ebpf;
    let sandboxes = HashMap::try_from(ebpf.take_map("sandboxes").expect("every object has the shared maps"))?;
    let mut dial = Dial { family: object.family, sandboxes, id: place.id, init };
    dial.deny(0)?;
    let mut losses: PerCpuHashMap<_, [u64; 2], u64> = PerCpuHashMap::try_from(map(ebpf, "losses"))?;
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| MapError::IoError(error))?;
    for reason in 0..LOSSES.len() as u64 {
        let zero = PerCpuValues::try_from(vec![0; cpus]).map_err(MapError::IoError)?;
        losses.insert([place.id, reason], zero, 0)?;
    }
    // The last: from here on processes are let through the filter.
    let mut filter: Array<_, [u64; 3]> = Array::try_from(map(ebpf, ".data.filter"))?;
    filter.set(0, [place.id, place.id, u64::from(place.level) | 1 << 32], 0)?;
    Ok(dial)
}

/// A sandbox's entry in one object's map.
#[derive(Debug)]
pub struct Dial {
    /// Family of the object.
    pub family: Family,
    sandboxes: HashMap<MapData, u64, [u64; 4]>,
    id: u64,
    init: u32,
}

impl Dial {
    /// Says what is refused from now on. The window of the rate limit begins anew.
    pub fn deny(&mut self, deny: u32) -> Result<(), MapError> {
        self.sandboxes.insert(self.id, [u64::from(self.init) | u64::from(deny) << 32, WINDOW_RECORDS_MAX, 0, 0], 0)
    }
}

fn map<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut aya::maps::Map {
    ebpf.map_mut(name).expect("every object has the shared maps")
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

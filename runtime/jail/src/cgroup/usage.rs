//! What a cgroup says about use, while the sandbox runs. Input: the files of whichever controllers are there. Output: [`Usage`], with nothing where a host does
//! not count. What no cgroup counts is [`crate::usage`]'s. Each look reads at most nine small files.

use apex_core::keep::Usage;

use super::dial::SUM;
use super::dir::Dir;
use super::effective::{self, Keyed};
use super::error::CgroupError;
use super::{Beside, Cgroup, Controller, Kind};

impl Cgroup {
    /// What is used at this moment.
    pub fn usage(&self) -> Result<Usage, CgroupError> {
        let mut usage = Usage::default();
        let is_v1 = matches!(self.kind, Kind::V1(_));
        if let Some(dir) = self.dir_if_any(Controller::Memory) {
            let is_at_sum = self.plan.swap_bytes == Some(0) && dir.has(SUM);
            if is_v1 { memory_v1(dir, is_at_sum, &mut usage)? } else { memory_v2(dir, &mut usage)? }
        }
        if let Some(dir) = self.dir_if_any(Controller::Pids) {
            usage.tasks = number(dir, "pids.current")?;
            usage.tasks_refused = keyed(dir, "pids.events", "max")?;
        }
        if let Some(dir) = self.dir_if_any(Controller::Cpu) {
            cpu(dir, is_v1, &mut usage)?;
        }
        if let Kind::V2(group) = &self.kind {
            io(&group.dir, &mut usage)?;
        }
        Ok(usage)
    }

    /// Every process inside that can be seen from here.
    pub fn members(&self) -> Result<Vec<i32>, CgroupError> {
        let dir = match &self.kind {
            Kind::V1(groups) => groups.first().map(|group| &group.dir),
            Kind::V2(group) => Some(&group.dir),
            Kind::Scope(scope) => scope.dir(),
        };
        dir.map_or_else(|| Ok(Vec::new()), Dir::procs)
    }
}

impl Beside {
    /// Microseconds of CPU: v2 counts them also where no controller is on (cgroup-v2, cpu.stat).
    pub fn cpu_us(&self) -> Result<Option<u64>, CgroupError> {
        keyed(self.dir(), "cpu.stat", "usage_usec")
    }
}

fn memory_v1(dir: &Dir, is_at_sum: bool, usage: &mut Usage) -> Result<(), CgroupError> {
    usage.memory_bytes = number(dir, "memory.usage_in_bytes")?;
    usage.memory_peak_bytes = number(dir, "memory.max_usage_in_bytes")?;
    usage.memory_shared_bytes = keyed(dir, "memory.stat", "shmem")?;
    // Where the sum with swap has the same limit, a charge fails at that one, which Linux 6.18 does not count.
    usage.memory_limit_hits = if is_at_sum { None } else { number(dir, "memory.failcnt")? };
    usage.oom_kills = keyed(dir, "memory.oom_control", "oom_kill")?;
    Ok(())
}

fn memory_v2(dir: &Dir, usage: &mut Usage) -> Result<(), CgroupError> {
    usage.memory_bytes = number(dir, "memory.current")?;
    usage.memory_peak_bytes = number(dir, "memory.peak")?;
    usage.memory_shared_bytes = keyed(dir, "memory.stat", "shmem")?;
    if dir.has("memory.events") {
        let events = Keyed::read(dir, "memory.events")?;
        (usage.memory_limit_hits, usage.oom_kills) = (events.get("max")?, events.get("oom_kill")?);
    }
    Ok(())
}

fn cpu(dir: &Dir, is_v1: bool, usage: &mut Usage) -> Result<(), CgroupError> {
    let stat = Keyed::read(dir, "cpu.stat")?;
    (usage.cpu_periods, usage.cpu_throttled_periods) = (stat.get("nr_periods")?, stat.get("nr_throttled")?);
    if is_v1 {
        usage.cpu_throttled_us = stat.get("throttled_time")?.map(|ns| ns / 1000);
        // Only where it is mounted together with cpu, as systemd does.
        usage.cpu_us = number(dir, "cpuacct.usage")?.map(|ns| ns / 1000);
    } else {
        usage.cpu_throttled_us = stat.get("throttled_usec")?;
        usage.cpu_us = stat.get("usage_usec")?;
    }
    Ok(())
}

/// A line for each device: `8:0 rbytes=1 wbytes=2 ...`. The file is there only where somebody above turned the controller on.
fn io(dir: &Dir, usage: &mut Usage) -> Result<(), CgroupError> {
    if !dir.has("io.stat") {
        return Ok(());
    }
    let text = dir.read("io.stat")?;
    (usage.io_read_bytes, usage.io_written_bytes) = (Some(sum(&text, "rbytes=")), Some(sum(&text, "wbytes=")));
    Ok(())
}

fn sum(text: &str, key: &str) -> u64 {
    let numbers = text.split_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok());
    numbers.fold(0, u64::saturating_add)
}

fn number(dir: &Dir, file: &str) -> Result<Option<u64>, CgroupError> {
    dir.has(file).then(|| effective::number(dir, file)).transpose()
}

fn keyed(dir: &Dir, file: &str, key: &str) -> Result<Option<u64>, CgroupError> {
    if dir.has(file) { Keyed::read(dir, file)?.get(key) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_summed_up() {
        let text =
            "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n259:0 rbytes=1 wbytes=2 rios=1 wios=1\n7:0\n";
        assert_eq!((sum(text, "rbytes="), sum(text, "wbytes=")), (4097, 8194));
        assert_eq!(sum("", "rbytes="), 0);
    }
}

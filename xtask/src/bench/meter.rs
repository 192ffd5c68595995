//! The processor time of the whole machine, and statistics over samples.
//!
//! A launcher that does not wait for its payload, and kernel workers that take namespaces apart, escape the accounting of
//! children. So the machine is metered, and what it does when idle is subtracted.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How long the machine is watched doing nothing, once a round.
const IDLE: Duration = Duration::from_millis(100);
/// What a launch left to the kernel is finished within this time, and counted.
const SETTLE: Duration = Duration::from_millis(30);
/// Ticks of /proc/stat in a second (`USER_HZ`), the same on every architecture that Apex runs on.
const TICK_NS: u64 = 10_000_000;

/// Where the processor time is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The root of the v1 hierarchy cpuacct, in nanoseconds.
    Cpuacct,
    /// /proc/schedstat: the time that tasks ran on each processor, in nanoseconds.
    Schedstat,
    /// /proc/stat, in ticks: coarse, usable only because rounds are many.
    Stat,
}

const CPUACCT: &str = "/sys/fs/cgroup/cpuacct/cpuacct.usage";
const SCHEDSTAT: &str = "/proc/schedstat";

impl Source {
    /// The finest one here.
    pub fn find() -> Self {
        match () {
            () if Path::new(CPUACCT).exists() => Source::Cpuacct,
            () if Path::new(SCHEDSTAT).exists() => Source::Schedstat,
            () => Source::Stat,
        }
    }

    /// Nanoseconds of processor time since boot.
    fn busy_ns(self) -> Result<u64> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
        match self {
            Source::Cpuacct => read(CPUACCT)?.trim().parse().with_context(|| format!("{CPUACCT} holds no number")),
            Source::Schedstat => {
                // "cpuN" and nine fields, of which the seventh is the time spent running.
                let text = read(SCHEDSTAT)?;
                let lines = text.lines().filter(|line| line.starts_with("cpu"));
                Ok(lines.filter_map(|line| line.split_whitespace().nth(7)?.parse::<u64>().ok()).sum())
            }
            Source::Stat => {
                let text = read("/proc/stat")?;
                let fields: Vec<u64> = text
                    .lines()
                    .next()
                    .unwrap_or_default()
                    .split_whitespace()
                    .filter_map(|field| field.parse().ok())
                    .collect();
                // user nice system idle iowait irq softirq steal: all but the two idle ones and what others stole.
                Ok([0, 1, 2, 5, 6].iter().filter_map(|at| fields.get(*at)).sum::<u64>() * TICK_NS)
            }
        }
    }
}

/// Processor time and wall time of some stretch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stretch {
    busy_ns: f64,
    wall_ns: f64,
}

impl Stretch {
    /// Adds another one.
    pub fn add(&mut self, other: Stretch) {
        self.busy_ns += other.busy_ns;
        self.wall_ns += other.wall_ns;
    }

    /// The share of one processor that was busy.
    pub fn share(self) -> f64 {
        self.busy_ns / self.wall_ns.max(1.0)
    }

    /// Processor time above what an idle machine would have used, in milliseconds.
    pub fn above_ms(self, idle: Stretch) -> f64 {
        (self.busy_ns - idle.share() * self.wall_ns) / 1e6
    }
}

/// Meters `work` and what it leaves to the kernel.
pub fn metered(source: Source, work: impl FnOnce() -> Result<()>) -> Result<Stretch> {
    let (from, begin) = (source.busy_ns()?, Instant::now());
    work()?;
    std::thread::sleep(SETTLE);
    let wall_ns = begin.elapsed().as_nanos() as f64;
    Ok(Stretch { busy_ns: source.busy_ns()?.saturating_sub(from) as f64, wall_ns })
}

/// Meters the machine doing nothing of ours.
pub fn idle(source: Source) -> Result<Stretch> {
    metered(source, || {
        std::thread::sleep(IDLE);
        Ok(())
    })
}

/// The value below which `percent` of the samples lie; they need not be sorted. Zero samples give NaN.
pub fn percentile(samples: &[f64], percent: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((last * percent + 50) / 100).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let samples = [5.0, 1.0, 4.0, 2.0, 3.0];
        let found = [0, 10, 50, 90, 100].map(|percent| percentile(&samples, percent));
        assert_eq!(found, [1.0, 1.0, 3.0, 5.0, 5.0]);
    }

    #[test]
    fn the_idle_share_is_taken_off() {
        let idle = Stretch { busy_ns: 10.0, wall_ns: 100.0 };
        let busy = Stretch { busy_ns: 1e6 + 10.0, wall_ns: 100.0 };
        assert!((busy.above_ms(idle) - 1.0).abs() < 1e-9);
    }
}

//! Limits that are changed, and use that is read, while the sandbox runs.
//!
//! Input: which limits, already judged. What a limit cannot be set to stays as it was, and what was changed before it is told with the error. Must not go
//! beyond what the sandbox was planned with: whoever asks has seen to that.

use apex_core::keep::{Limits, Usage};

use super::dir::Dir;
use super::effective::{self, Keyed};
use super::error::CgroupError;
use super::v1::PERIOD_US;
use super::{Cgroup, Controller, Kind};

/// Bytes of memory, and of memory and swap together.
const MEMORY: &str = "memory.limit_in_bytes";
const SUM: &str = "memory.memsw.limit_in_bytes";

impl Cgroup {
    /// Sets what is given. Tells what was set, in words.
    pub fn change(&self, limits: &Limits) -> Result<String, CgroupError> {
        let mut done = Vec::new();
        if let Some(bytes) = limits.memory_bytes {
            self.set_memory(bytes)?;
            done.push(format!("memory {bytes} bytes"));
        }
        if let Some(tasks) = limits.tasks {
            self.dir_of(Controller::Pids, "tasks")?.limit("pids.max", &tasks.to_string())?;
            done.push(format!("tasks {tasks}"));
        }
        if let Some(percent) = limits.cpu_percent {
            let dir = self.dir_of(Controller::Cpu, "CPU")?;
            let quota_us = percent.saturating_mul(PERIOD_US) / 100;
            match self.kind {
                Kind::V1(_) => dir.limit("cpu.cfs_quota_us", &quota_us.to_string())?,
                Kind::V2(_) | Kind::Scope(_) => dir.limit("cpu.max", &format!("{quota_us} {PERIOD_US}"))?,
            }
            done.push(format!("CPU {percent}%"));
        }
        Ok(done.join(", "))
    }

    /// What is used at this moment.
    pub fn usage(&self) -> Result<Usage, CgroupError> {
        let number = |controller, file: &str| match self.dir_if_any(controller) {
            Some(dir) if dir.has(file) => effective::number(dir, file).map(Some),
            _ => Ok(None),
        };
        Ok(match &self.kind {
            Kind::V1(_) => Usage {
                memory_bytes: number(Controller::Memory, "memory.usage_in_bytes")?,
                tasks: number(Controller::Pids, "pids.current")?,
                cpu_us: number(Controller::Cpu, "cpuacct.usage")?.map(|ns| ns / 1000),
            },
            Kind::V2(_) | Kind::Scope(_) => Usage {
                memory_bytes: number(Controller::Memory, "memory.current")?,
                tasks: number(Controller::Pids, "pids.current")?,
                cpu_us: match self.dir_if_any(Controller::Cpu) {
                    Some(dir) => Keyed::read(dir, "cpu.stat")?.get("usage_usec")?,
                    None => None,
                },
            },
        })
    }

    /// The kernel insists that the sum never falls below memory alone: whichever way both move, one of the two orders does it.
    fn set_memory(&self, bytes: u64) -> Result<(), CgroupError> {
        let dir = self.dir_of(Controller::Memory, "memory")?;
        if matches!(self.kind, Kind::V2(_) | Kind::Scope(_)) {
            return dir.limit("memory.max", &bytes.to_string());
        }
        let Some(swap) = self.plan.swap_bytes.filter(|_| dir.has(SUM)) else {
            return dir.limit(MEMORY, &bytes.to_string());
        };
        let sum = bytes.saturating_add(swap).to_string();
        if effective::number(dir, MEMORY)? < bytes {
            dir.limit(SUM, &sum)?;
            return dir.limit(MEMORY, &bytes.to_string());
        }
        dir.limit(MEMORY, &bytes.to_string())?;
        dir.limit(SUM, &sum)
    }

    fn dir_of(&self, controller: Controller, resource: &'static str) -> Result<&Dir, CgroupError> {
        self.dir_if_any(controller).ok_or(CgroupError::NoDial { resource })
    }

    fn dir_if_any(&self, controller: Controller) -> Option<&Dir> {
        let file = match controller {
            Controller::Memory => "memory.max",
            Controller::Pids => "pids.max",
            Controller::Cpu => "cpu.max",
        };
        match &self.kind {
            Kind::V1(groups) => groups.iter().find(|group| group.holds(controller)).map(|group| &group.dir),
            Kind::V2(group) => Some(&group.dir).filter(|dir| dir.has(file)),
            Kind::Scope(scope) => scope.dir().filter(|dir| dir.has(file)),
        }
    }
}

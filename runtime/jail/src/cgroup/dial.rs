//! Limits that are changed while the sandbox runs.
//!
//! Input: which limits, already judged. One that cannot be set stays as it was, and so do those after it. Must not go
//! beyond what the sandbox was planned with: whoever asks has seen to that.

use apex_core::control::Limits;

use super::dir::Dir;
use super::effective;
use super::error::CgroupError;
use super::v1::PERIOD_US;
use super::{Cgroup, Controller, Kind};

/// Bytes of memory, and of memory and swap together.
const MEMORY: &str = "memory.limit_in_bytes";
pub(super) const SUM: &str = "memory.memsw.limit_in_bytes";

impl Cgroup {
    /// Sets all of them; what is absent is unlimited from now on. Tells what was set, in words.
    pub fn change(&self, limits: &Limits) -> Result<String, CgroupError> {
        self.set_memory(limits.memory_bytes)?;
        let number =
            |value: Option<u64>, unlimited: &str| value.map_or(unlimited.to_owned(), |value| value.to_string());
        if let Some(dir) = self.dir_for(Controller::Pids, "tasks", limits.tasks)? {
            dir.limit("pids.max", &number(limits.tasks, "max"))?;
        }
        if let Some(dir) = self.dir_for(Controller::Cpu, "CPU", limits.cpu_percent)? {
            let quota_us = limits.cpu_percent.map(|percent| percent.saturating_mul(PERIOD_US) / 100);
            match self.kind {
                Kind::V1(_) => dir.limit("cpu.cfs_quota_us", &number(quota_us, "-1"))?,
                Kind::V2(_) | Kind::Scope(_) => {
                    dir.limit("cpu.max", &format!("{} {PERIOD_US}", number(quota_us, "max")))?;
                }
            }
        }
        Ok(limits.to_string())
    }

    /// The kernel insists that the sum never falls below memory alone: whichever way both move, one of the two orders does it.
    fn set_memory(&self, bytes: Option<u64>) -> Result<(), CgroupError> {
        let Some(dir) = self.dir_for(Controller::Memory, "memory", bytes)? else { return Ok(()) };
        if matches!(self.kind, Kind::V2(_) | Kind::Scope(_)) {
            return dir.limit("memory.max", &bytes.map_or("max".to_owned(), |bytes| bytes.to_string()));
        }
        let words = |value: Option<u64>| value.map_or("-1".to_owned(), |bytes| bytes.to_string());
        let memory = words(bytes);
        let Some(swap) = self.plan.swap_bytes.filter(|_| dir.has(SUM)) else {
            return dir.limit(MEMORY, &memory);
        };
        let sum = words(bytes.map(|bytes| bytes.saturating_add(swap)));
        let rises = match bytes {
            Some(bytes) => effective::number(dir, MEMORY)? < bytes,
            None => true,
        };
        if rises {
            dir.limit(SUM, &sum)?;
            return dir.limit(MEMORY, &memory);
        }
        dir.limit(MEMORY, &memory)?;
        dir.limit(SUM, &sum)
    }

    /// Where a limit is written; `None` where there is nothing to be lifted.
    fn dir_for(
        &self,
        controller: Controller,
        resource: &'static str,
        value: Option<u64>,
    ) -> Result<Option<&Dir>, CgroupError> {
        match (self.dir_if_any(controller), value) {
            (None, Some(_)) => Err(CgroupError::NoDial { resource }),
            (dir, _) => Ok(dir),
        }
    }

    pub(super) fn dir_if_any(&self, controller: Controller) -> Option<&Dir> {
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

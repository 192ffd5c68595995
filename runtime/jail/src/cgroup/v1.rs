//! cgroup v1: a directory in each hierarchy, entered by writing a pid.
//!
//! Limits and membership are written through cgroups-rs, one controller at a time. Its builder is not used: it reads
//! /proc again and makes a directory in every hierarchy that is mounted (twelve here), of which a sandbox needs three; neither
//! are its statistics, which read eleven files of `memory` for the two numbers of an [`Outcome`]. Its `create` adopts an
//! existing directory, which must never happen here. What is read back is read directly.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use apex_core::plan::CgroupPlan;
use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::dir::{self, Dir};
use super::effective::{self, Effective, EffectiveLimit, Keyed, Outcome};
use super::error::CgroupError;
use super::{Controller, Tight, require};

/// Microseconds over which a CPU quota is counted, the kernel's default.
pub(super) const PERIOD_US: u64 = 100_000;

/// Rounds of kills, a millisecond apart.
pub(super) const KILL_ROUNDS_MAX: u32 = 1000;

/// A v1 hierarchy that we may write.
#[derive(Clone, Debug)]
pub(super) struct Hierarchy {
    pub(super) controllers: Vec<Controller>,
    /// The directory of our own cgroup in it.
    pub(super) parent: PathBuf,
    /// Our own cgroup, as /proc/self/cgroup names it.
    pub(super) path: String,
}

/// A sandbox's directory in one hierarchy.
#[derive(Debug)]
pub(super) struct Group {
    controllers: Vec<Controller>,
    parent: PathBuf,
    path: String,
    pub(super) dir: Dir,
}

/// Makes the directories that the plan needs and sets the limits. A plan without limits gets `memory`, to measure.
pub(super) fn create(plan: &CgroupPlan, hierarchies: &[Hierarchy], name: &str) -> Result<Vec<Group>, CgroupError> {
    let mut wanted = Controller::wanted(plan);
    require(&wanted, &super::controllers_of(hierarchies), || {
        "the cgroup v1 hierarchies that this user may write".to_owned()
    })?;
    if wanted.is_empty() {
        wanted.push(Controller::Memory);
    }
    let mut groups = Vec::with_capacity(wanted.len());
    for hierarchy in hierarchies {
        if !hierarchy.controllers.iter().any(|controller| wanted.contains(controller)) {
            continue;
        }
        let group = Group {
            controllers: hierarchy.controllers.clone(),
            parent: hierarchy.parent.clone(),
            path: effective::child_path(&hierarchy.path, name),
            dir: Dir::make(&hierarchy.parent, name)?,
        };
        group.limit(plan)?;
        groups.push(group);
    }
    Ok(groups)
}

impl Group {
    fn limit(&self, plan: &CgroupPlan) -> Result<(), CgroupError> {
        for controller in &self.controllers {
            match controller {
                Controller::Memory => self.limit_memory(plan)?,
                Controller::Pids => self.limit_pids(plan)?,
                Controller::Cpu => self.limit_cpu(plan)?,
            }
        }
        Ok(())
    }

    fn limit_memory(&self, plan: &CgroupPlan) -> Result<(), CgroupError> {
        let memory = match (plan.memory_bytes, plan.swap_bytes) {
            (Some(memory), _) => memory,
            (None, Some(_)) => return Err(CgroupError::SwapAlone),
            (None, None) => return Ok(()),
        };
        let controller = MemController::new(self.dir.path().to_owned(), self.parent.clone(), false);
        controller.set_limit(signed(memory)).map_err(|source| self.refused("memory.limit_in_bytes", memory, source))?;
        let Some(swap) = plan.swap_bytes else {
            return Ok(());
        };
        // The sum counts both, and the kernel insists that it never falls below the first: hence the order.
        const SUM: &str = "memory.memsw.limit_in_bytes";
        let sum = memory.saturating_add(swap);
        // Not through cgroups-rs, which asks to create the file: here its absence is an answer.
        match self.dir.write_once(SUM, &signed(sum).to_string()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => effective::host_without_swap(),
            other => other.map_err(|source| self.refused(SUM, sum, source)),
        }
    }

    fn limit_pids(&self, plan: &CgroupPlan) -> Result<(), CgroupError> {
        let Some(tasks) = plan.tasks else {
            return Ok(());
        };
        PidController::new(self.dir.path().to_owned(), self.parent.clone(), false)
            .set_pid_max(MaxValue::Value(signed(tasks)))
            .map_err(|source| self.refused("pids.max", tasks, source))
    }

    fn limit_cpu(&self, plan: &CgroupPlan) -> Result<(), CgroupError> {
        let Some(percent) = plan.cpu_percent else {
            return Ok(());
        };
        let quota = u64::from(percent) * PERIOD_US / 100;
        // The period of a new cgroup is the kernel's default, so it is read back but not written.
        CpuController::new(self.dir.path().to_owned(), self.parent.clone(), false)
            .set_cfs_quota(signed(quota))
            .map_err(|source| self.refused("cpu.cfs_quota_us", quota, source))
    }

    fn refused(&self, file: &str, value: u64, source: impl std::error::Error + Send + Sync + 'static) -> CgroupError {
        CgroupError::Limit { file: self.dir.path().join(file), value: value.to_string(), source: source.into() }
    }

    /// The file through which a process enters by itself: see [`super::Cgroup::doors`].
    pub(super) fn door(&self) -> Result<OwnedFd, CgroupError> {
        self.dir
            .open_for_writing("tasks")
            .map_err(|source| CgroupError::Door { file: self.dir.path().join("tasks"), source })
    }

    /// The first write waits for an RCU period (cgroup_threadgroup_rwsem), those right after it do not.
    pub(super) fn attach(&self, pid: i32) -> Result<(), CgroupError> {
        // Not through cgroups-rs: it walks the absolute path and asks to create and truncate the file, while the start waits.
        self.dir.write_once("cgroup.procs", &pid.to_string()).map_err(|source| CgroupError::Attach {
            pid,
            dir: self.dir.path().to_owned(),
            source: source.into(),
        })
    }

    pub(super) fn holds(&self, controller: Controller) -> bool {
        self.controllers.contains(&controller)
    }

    fn number(&self, file: &str) -> Result<u64, CgroupError> {
        effective::number(&self.dir, file)
    }
}

/// The kernel's numbers are signed; what does not fit is as good as no limit and reads back as such.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Limits read back; the membership of every hierarchy in one read.
pub(super) fn effective(groups: &[Group], plan: &CgroupPlan, pid: i32) -> Result<Effective, CgroupError> {
    let mut limits = Vec::new();
    for group in groups {
        for controller in &group.controllers {
            match controller {
                Controller::Memory => memory_effective(group, plan, &mut limits)?,
                Controller::Pids => limits.push(EffectiveLimit {
                    resource: "tasks",
                    requested: plan.tasks,
                    value: effective::max_or_number(&group.dir, "pids.max")?,
                    file: group.dir.path().join("pids.max"),
                }),
                Controller::Cpu => limits.push(EffectiveLimit {
                    resource: "cpu-percent",
                    requested: plan.cpu_percent.map(u64::from),
                    value: quota_percent(group)?,
                    file: group.dir.path().join("cpu.cfs_quota_us"),
                }),
            }
        }
    }
    let paths: Vec<&str> = groups.iter().map(|group| group.path.as_str()).collect();
    let controllers: Vec<&[Controller]> = groups.iter().map(|group| group.controllers.as_slice()).collect();
    Ok(Effective {
        version: "v1",
        limits,
        member: effective::is_member_v1(pid, &controllers, &paths)?,
        membership_file: effective::membership_file(pid),
    })
}

/// "No limit" is the largest page-aligned number there is.
const UNLIMITED_MIN: u64 = i64::MAX as u64 - 65535;

fn memory_effective(group: &Group, plan: &CgroupPlan, limits: &mut Vec<EffectiveLimit>) -> Result<(), CgroupError> {
    const MEMORY: &str = "memory.limit_in_bytes";
    const SUM: &str = "memory.memsw.limit_in_bytes";
    let memory = group.number(MEMORY)?;
    limits.push(EffectiveLimit {
        resource: "memory-bytes",
        requested: plan.memory_bytes,
        value: (memory < UNLIMITED_MIN).then_some(memory),
        file: group.dir.path().join(MEMORY),
    });
    limits.push(if group.dir.has(SUM) {
        let sum = group.number(SUM)?;
        EffectiveLimit {
            resource: "swap-bytes",
            requested: plan.swap_bytes,
            value: (sum < UNLIMITED_MIN).then(|| sum.saturating_sub(memory)),
            file: group.dir.path().join(SUM),
        }
    } else {
        effective::swap_absent(plan)?
    });
    Ok(())
}

fn quota_percent(group: &Group) -> Result<Option<u64>, CgroupError> {
    let text = group.dir.read("cpu.cfs_quota_us")?;
    if text.trim() == "-1" {
        return Ok(None);
    }
    let quota = group.number("cpu.cfs_quota_us")?;
    let period = group.number("cpu.cfs_period_us")?.max(1);
    Ok(Some(quota.saturating_mul(100) / period))
}

/// What happened, from at most four files.
pub(super) fn outcome(groups: &[Group]) -> Result<Outcome, CgroupError> {
    let mut outcome = Outcome::default();
    for group in groups {
        if group.holds(Controller::Memory) {
            outcome.oom_kills = Keyed::read(&group.dir, "memory.oom_control")?.get("oom_kill")?;
            outcome.peak_memory_bytes = Some(group.number("memory.max_usage_in_bytes")?);
        }
        if group.holds(Controller::Pids) {
            outcome.tasks_refused = Keyed::read(&group.dir, "pids.events")?.get("max")?;
        }
        if group.holds(Controller::Cpu) {
            let stat = Keyed::read(&group.dir, "cpu.stat")?;
            outcome.throttled_periods = stat.get("nr_throttled")?;
            outcome.throttled_us = stat.get("throttled_time")?.map(|ns| ns / 1000);
        }
        // Only where cpuacct is mounted together with another hierarchy of ours, as systemd does with cpu.
        if group.holds(Controller::Cpu) && group.dir.has("cpuacct.usage") {
            outcome.cpu_time_us = Some(group.number("cpuacct.usage")? / 1000);
        }
    }
    Ok(outcome)
}

/// See [`super::Cgroup::tighten`].
pub(super) fn tighten(groups: &[Group], tight: &Tight) -> Result<String, CgroupError> {
    let (mut tasks, mut has_cpu) = (None, false);
    for group in groups {
        if group.holds(Controller::Pids) {
            let present = group.number("pids.current")?.min(tight.tasks);
            group.dir.limit("pids.max", &present.to_string())?;
            tasks = Some(present);
        }
        if group.holds(Controller::Cpu) {
            group.dir.limit("cpu.cfs_quota_us", &tight.quota_us(PERIOD_US).to_string())?;
            has_cpu = true;
        }
    }
    Ok(tight.words(tasks, has_cpu))
}

/// SIGKILL until nobody is left. New forks are stopped first where `pids` is ours, so that one round is enough.
pub(super) fn kill_all(groups: &[Group]) -> Result<(), CgroupError> {
    if let Some(group) = groups.iter().find(|group| group.holds(Controller::Pids)) {
        group.dir.write("pids.max", "0").map_err(|source| CgroupError::Write {
            file: group.dir.path().join("pids.max"),
            value: "0",
            source,
        })?;
    }
    match groups.first() {
        Some(group) => kill_rounds(&group.dir),
        None => Ok(()),
    }
}

/// Reads cgroup.procs and kills, until it is empty. Also for v2 kernels before 5.14, which have no cgroup.kill.
pub(super) fn kill_rounds(dir: &Dir) -> Result<(), CgroupError> {
    let me = std::process::id();
    let mut left = BTreeSet::new();
    for _ in 0..KILL_ROUNDS_MAX {
        // 0 is a process that our pid namespace does not show; signalling it would hit our own process group.
        left = dir.procs()?.into_iter().filter(|pid| *pid > 1 && pid.unsigned_abs() != me).collect();
        if left.is_empty() {
            return Ok(());
        }
        for pid in &left {
            // ESRCH: it was quicker. A pid comes back only after all others were used, not between this read and this call.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(CgroupError::Unkillable { left: left.len(), dir: dir.path().to_owned() })
}

/// One run in so many sweeps: listing a busy hierarchy costs more than removing a directory of our own.
const SWEEP_EVERY: usize = 8;

/// Removes every directory, the rest also when one refuses. Now and then sweeps beside one of them, chosen by chance.
pub(super) fn remove(groups: Vec<Group>) -> Result<(), CgroupError> {
    let swept = groups
        .first()
        .and_then(|group| dir::random_part(&group.path))
        .filter(|random| random % SWEEP_EVERY == 0)
        .and_then(|random| groups.get(random / SWEEP_EVERY % groups.len()))
        .map(|group| group.parent.clone());
    let mut first_error = None;
    for group in groups {
        if let Err(error) = group.dir.remove() {
            first_error.get_or_insert(error);
        }
    }
    if let Some(parent) = swept {
        dir::sweep(&parent, dir::SWEEP_AGE_MIN);
    }
    first_error.map_or(Ok(()), Err)
}

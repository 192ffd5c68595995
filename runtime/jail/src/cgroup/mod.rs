//! The sandbox's own cgroup: limits on memory, swap, tasks and CPU (cgroups(7)).
//!
//! Input: a [`CgroupPlan`] and a [`Site`], which is one look at what this host and user can have. Output: a [`Cgroup`] that
//! exists before the sandbox does, and what the kernel says about it ([`Effective`], [`Outcome`]). A cgroup is always made below
//! the caller's own, so limits that stand outside keep holding. This module must not adopt a directory that it did not make,
//! change a mount, or leave a directory behind: an error half way and a drop both remove what was made.
//!
//! Order, and why: on v2 `create` comes before the clone, which enters the cgroup itself ([`Cgroup::clone_into_fd`]). Into v1 the child goes by itself
//! ([`Cgroup::doors`]); systemd needs [`Cgroup::attach`] while it is alone and single-threaded. For both `create` may come after the clone too, beside the child's
//! own work, as long as the child starts nothing before it is inside. The cgroup namespace is unshared by the child *after* it is inside: its root is the cgroup
//! of the process that unshares, and with CLONE_INTO_CGROUP in the same clone it would be the parent's.
//!
//! Which way, in this order: v2 with every wanted controller, v1 with every one, whichever of the two has the most, a scope
//! from the systemd user manager.
//!
//! # What a start costs
//!
//! Measured on v1 with memory, swap, tasks and CPU limited, two cores, 10th percentile, debug build:
//!
//! | step | system calls | µs |
//! | --- | --- | --- |
//! | [`Site::find`] | 10 | 120 |
//! | [`Cgroup::create`]: mkdir, open, flock for three directories, four limits | 23 | 170 |
//! | [`Cgroup::doors`], and the child's three writes | 6 | 60 |
//! | [`Cgroup::attach`]: three writes | 6 | 65, and 15 000 at p90 |
//! | [`Cgroup::effective`] | 26 | 75 |
//! | [`Cgroup::outcome`] | 13 | 55 |
//! | [`Cgroup::remove`], without the sweep that one run in eight makes | 3 | 80 |
//!
//! The attach is the dear one, and no start uses it on v1: the first write of another's pid to any cgroup.procs waits for an RCU period unless another did
//! just before. v2 enters with the clone and has no such wait: find 7 plus 8 a level, create 18, attach 0.

mod beside;
mod dial;
mod dir;
mod effective;
mod error;
mod look;
mod systemd;
pub mod unit;
mod usage;
mod v1;
mod v2;

#[cfg(test)]
mod tests;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use apex_core::host::CgroupSupport;
use apex_core::plan::CgroupPlan;

pub use beside::Beside;
pub use effective::{Effective, EffectiveLimit, Outcome};
pub use error::CgroupError;

/// A resource controller that a plan can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Controller {
    /// Memory and swap.
    Memory,
    /// Processes and threads.
    Pids,
    /// CPU bandwidth.
    Cpu,
}

impl Controller {
    /// Every controller that a plan can ask for.
    pub const ALL: [Controller; 3] = [Controller::Memory, Controller::Pids, Controller::Cpu];

    /// The kernel's name.
    pub const fn name(self) -> &'static str {
        match self {
            Controller::Memory => "memory",
            Controller::Pids => "pids",
            Controller::Cpu => "cpu",
        }
    }

    /// The controllers that the limits of `plan` need.
    pub fn wanted(plan: &CgroupPlan) -> Vec<Controller> {
        Controller::ALL
            .into_iter()
            .filter(|controller| match controller {
                Controller::Memory => plan.memory_bytes.is_some() || plan.swap_bytes.is_some(),
                Controller::Pids => plan.tasks.is_some(),
                Controller::Cpu => plan.cpu_percent.is_some(),
            })
            .collect()
    }
}

/// Where a sandbox's cgroup can be made: one look at the host, used by every [`Cgroup::create`] after it.
#[derive(Debug)]
pub struct Site {
    place: Place,
}

#[derive(Debug)]
enum Place {
    V2(v2::Parent),
    V1(Vec<v1::Hierarchy>),
    SystemdUser { mount: PathBuf, bus: String },
    Missing { reason: String, remedy: String },
}

impl Site {
    /// Looks at the host for `wanted` controllers. Changes nothing; what cannot be had is an answer, not an error.
    pub fn find(wanted: &[Controller]) -> Site {
        Site { place: look::find(wanted) }
    }

    /// Whether the sandbox is born into its cgroup, which then must exist before: v2. Elsewhere it joins after the clone.
    pub fn is_entered_by_clone(&self) -> bool {
        matches!(self.place, Place::V2(_))
    }

    /// Whether a systemd manager makes it: the sandbox is moved into it after the clone.
    pub fn is_by_manager(&self) -> bool {
        matches!(self.place, Place::SystemdUser { .. })
    }

    /// The answer in the words of the planner.
    pub fn support(&self) -> CgroupSupport {
        match &self.place {
            Place::V2(parent) => {
                CgroupSupport::V2 { parent: parent.dir.clone(), controllers: names(&parent.controllers) }
            }
            Place::V1(hierarchies) => CgroupSupport::V1 { controllers: names(&controllers_of(hierarchies)) },
            Place::SystemdUser { .. } => CgroupSupport::SystemdUser,
            Place::Missing { reason, remedy } => {
                CgroupSupport::Missing { reason: reason.clone(), remedy: remedy.clone() }
            }
        }
    }
}

/// How limits can be had here: [`Site::find`] for the planner.
pub fn support(wanted: &[Controller]) -> CgroupSupport {
    Site::find(wanted).support()
}

/// The cgroup of one sandbox. Dropped, it is removed.
///
/// A forked copy of the process must not drop it: end such a copy with `_exit` or exec.
#[derive(Debug)]
pub struct Cgroup {
    name: String,
    plan: CgroupPlan,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    V1(Vec<v1::Group>),
    V2(v2::Group),
    Scope(systemd::Scope),
}

impl Cgroup {
    /// Makes the cgroup and sets its limits; nobody is in it yet. What an error leaves half done is removed again.
    pub fn create(plan: &CgroupPlan, site: &Site) -> Result<Cgroup, CgroupError> {
        let mut attempts = 0;
        loop {
            let name = dir::fresh_name();
            let made = match &site.place {
                Place::V1(hierarchies) => v1::create(plan, hierarchies, &name).map(Kind::V1),
                Place::V2(parent) => v2::create(plan, parent, &name).map(Kind::V2),
                Place::SystemdUser { mount, bus } => Ok(Kind::Scope(systemd::Scope::new(&name, plan, mount, bus))),
                Place::Missing { reason, remedy } => {
                    Err(CgroupError::Unavailable { reason: reason.clone(), remedy: remedy.clone() })
                }
            };
            attempts += 1;
            match made {
                Ok(kind) => {
                    return Ok(Cgroup { name, plan: plan.clone(), kind });
                }
                Err(CgroupError::NameTaken { .. }) if attempts < NAME_ATTEMPTS_MAX => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The directory's name, the same in every hierarchy.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// v2: the directory to clone into (`CLONE_INTO_CGROUP`). `None` where [`Cgroup::attach`] is the way.
    pub fn clone_into_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            Kind::V2(group) => Some(group.dir.fd()),
            Kind::V1(_) | Kind::Scope(_) => None,
        }
    }

    /// Whether a systemd manager made it.
    pub fn is_scope(&self) -> bool {
        matches!(self.kind, Kind::Scope(_))
    }

    /// v1: files, each of which takes a process in that writes `0` to it. Empty where [`Cgroup::attach`] or the clone is the way.
    ///
    /// A thread that moves itself alone needs no lock on all forks and exits of the machine, and so none of the RCU period that comes before that lock (the
    /// kernel's `cgroup_attach_lock`). The kernel judges the write by who opened the file: the sandbox's user need not own it.
    pub fn doors(&self) -> Result<Vec<OwnedFd>, CgroupError> {
        match &self.kind {
            Kind::V1(groups) => groups.iter().map(v1::Group::door).collect(),
            Kind::V2(_) | Kind::Scope(_) => Ok(Vec::new()),
        }
    }

    /// Puts `pid` in, which must still be alone, single-threaded and waiting. With v1 this waits for an RCU period, once.
    pub fn attach(&mut self, pid: i32) -> Result<(), CgroupError> {
        match &mut self.kind {
            Kind::V1(groups) => groups.iter().try_for_each(|group| group.attach(pid)),
            Kind::V2(group) => group.attach(pid),
            Kind::Scope(scope) => scope.attach(pid),
        }
    }

    /// The limits in force and whether `pid` is inside, as the kernel tells it.
    pub fn effective(&self, pid: i32) -> Result<Effective, CgroupError> {
        match &self.kind {
            Kind::V1(groups) => v1::effective(groups, &self.plan, pid),
            Kind::V2(group) => v2::effective(&group.dir, &group.path, &self.plan, pid),
            Kind::Scope(scope) => scope.effective(&self.plan, pid),
        }
    }

    /// What happened so far; call it before [`Cgroup::remove`].
    pub fn outcome(&self) -> Result<Outcome, CgroupError> {
        match &self.kind {
            Kind::V1(groups) => v1::outcome(groups),
            Kind::V2(group) => v2::outcome(&group.dir),
            Kind::Scope(scope) => scope.outcome(),
        }
    }

    /// At the limit of memory one process is killed instead of all, as it always is on v1: a proof goes on after such an attempt.
    pub fn kill_singly(&self) -> Result<(), CgroupError> {
        match &self.kind {
            Kind::V1(_) => Ok(()),
            Kind::V2(group) => v2::kill_singly(&group.dir),
            Kind::Scope(scope) => scope.kill_singly(),
        }
    }

    /// Stops every process inside (`true`) or lets them go on (`false`). v2 and systemd only.
    pub fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        match &self.kind {
            Kind::V1(_) => Err(CgroupError::FreezeUnsupported),
            Kind::V2(group) => v2::freeze(&group.dir, frozen),
            Kind::Scope(scope) => scope.freeze(frozen),
        }
    }

    /// Cuts the limits down to what is used: no task more than there are now, and little CPU. Returns what was cut, in words.
    pub fn tighten(&self) -> Result<String, CgroupError> {
        let tight = Tight::below(&self.plan);
        match &self.kind {
            Kind::V1(groups) => v1::tighten(groups, &tight),
            Kind::V2(group) => v2::tighten(&group.dir, &tight),
            Kind::Scope(scope) => scope.tighten(&tight),
        }
    }

    /// Kills every process inside, also those that fork meanwhile.
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        match &self.kind {
            Kind::V1(groups) => v1::kill_all(groups),
            Kind::V2(group) => v2::kill_all(&group.dir),
            Kind::Scope(scope) => scope.kill_all(),
        }
    }

    /// Removes the directories, and with them a few that killed runs left beside them.
    pub fn remove(self) -> Result<(), CgroupError> {
        match self.kind {
            Kind::V1(groups) => v1::remove(groups),
            Kind::V2(group) => group.remove(),
            Kind::Scope(_) => Ok(()), // systemd collects a scope when its last process is gone
        }
    }
}

/// What a tightened sandbox may have at most, and never more than its plan gave it.
struct Tight {
    cpu_percent: u64,
    tasks: u64,
}

impl Tight {
    fn below(plan: &CgroupPlan) -> Tight {
        let planned = plan.cpu_percent.map_or(u64::MAX, u64::from);
        Tight { cpu_percent: planned.min(TIGHT_CPU_PERCENT), tasks: plan.tasks.unwrap_or(u64::MAX) }
    }

    /// Microseconds of CPU in one period.
    fn quota_us(&self, period_us: u64) -> u64 {
        self.cpu_percent * period_us / 100
    }

    /// What [`Cgroup::tighten`] says.
    fn words(&self, tasks: Option<u64>, cpu: bool) -> String {
        let tasks = tasks.map(|tasks| format!("tasks cut to the {tasks} that there are"));
        let cpu = cpu.then(|| format!("CPU cut to {}% of one core", self.cpu_percent));
        let words: Vec<String> = tasks.into_iter().chain(cpu).collect();
        if words.is_empty() {
            "its cgroup limits neither tasks nor CPU, so these stay".to_owned()
        } else {
            words.join(", ")
        }
    }
}

/// Percent of one core.
const TIGHT_CPU_PERCENT: u64 = 10;

/// Random names do not collide by chance; a second and third miss mean that something is wrong.
const NAME_ATTEMPTS_MAX: u32 = 8;

fn names(controllers: &[Controller]) -> Vec<String> {
    controllers.iter().map(|controller| controller.name().to_owned()).collect()
}

fn controllers_of(hierarchies: &[v1::Hierarchy]) -> Vec<Controller> {
    hierarchies.iter().flat_map(|hierarchy| hierarchy.controllers.iter().copied()).collect()
}

/// The wanted controllers that `have` lacks, as an error.
fn require(wanted: &[Controller], have: &[Controller], place: impl FnOnce() -> String) -> Result<(), CgroupError> {
    let missing: Vec<Controller> = wanted.iter().copied().filter(|controller| !have.contains(controller)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(CgroupError::Lacks { controllers: names(&missing).join(", "), place: place() })
}

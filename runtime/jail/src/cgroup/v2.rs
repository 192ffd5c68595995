//! cgroup v2: one directory, entered by the clone itself (CLONE_INTO_CGROUP), so a start waits for nothing.
//!
//! A parent for the sandbox's directory is the nearest cgroup, from our own upwards, that we may write and whose children
//! get the controllers. "May write" includes cgroup.procs: it is the common ancestor of us and the sandbox, and the kernel
//! asks there. Processes and controllers for children exclude each other in one cgroup ("no internal processes"),
//! and our own has at least us in it. Where we are alone in it (`systemd-run -p Delegate=yes apex-run`, a service with
//! Delegate=yes) we step aside into a leaf beside the sandbox, so that the limits of that scope keep holding for both;
//! otherwise an ancestor is taken, which leaves only those limits that the caller could have changed anyway.

use std::path::{Path, PathBuf};

use apex_core::plan::CgroupPlan;
use nix::unistd::{AccessFlags, access};

use super::dir::{self, Dir, read_control};
use super::effective::{self, Effective, EffectiveLimit, Keyed, Outcome};
use super::error::CgroupError;
use super::v1::{PERIOD_US, kill_rounds};
use super::{Controller, Tight, require};

/// Levels that are looked at, from our own upwards.
const LEVELS_MAX: usize = 16;

/// A cgroup below which a sandbox can have its own.
#[derive(Clone, Debug)]
pub(super) struct Parent {
    pub(super) dir: PathBuf,
    /// As /proc/self/cgroup names it.
    pub(super) path: String,
    /// What its children have, or can have once `enable` is written.
    pub(super) controllers: Vec<Controller>,
    /// What has to be switched on for its children first.
    enable: Vec<Controller>,
    /// Whether it is our own cgroup, out of which we must step first.
    step_aside: bool,
}

/// See the module's header. `mount` is where the hierarchy is mounted, `own` our directory in it and `path` its name.
pub(super) fn find_parent(mount: &Path, own: &Path, path: &str, wanted: &[Controller]) -> Option<Parent> {
    let mut best: Option<Parent> = None;
    let mut path = path;
    for dir in own.ancestors().take(LEVELS_MAX) {
        if let Some(parent) = usable(dir, dir == own, path) {
            if wanted.iter().all(|controller| parent.controllers.contains(controller)) {
                return Some(parent);
            }
            if best.as_ref().is_none_or(|best| parent.controllers.len() > best.controllers.len()) {
                best = Some(parent);
            }
        }
        if dir == mount {
            break;
        }
        path = path.rsplit_once('/').map_or("", |(above, _)| above);
    }
    best
}

fn usable(dir: &Path, own: bool, path: &str) -> Option<Parent> {
    let procs = dir.join("cgroup.procs");
    let writable = |path: &Path| access(path, AccessFlags::W_OK).is_ok();
    if !writable(dir) || !writable(&procs) {
        return None;
    }
    let available = controllers(&dir.join("cgroup.controllers"))?;
    let on = controllers(&dir.join("cgroup.subtree_control"))?;
    let off: Vec<Controller> = available.iter().copied().filter(|controller| !on.contains(controller)).collect();
    let parent = |enable: Vec<Controller>, step_aside| Parent {
        dir: dir.to_owned(),
        path: if path.is_empty() { "/".to_owned() } else { path.to_owned() },
        controllers: on.iter().chain(&enable).copied().collect(),
        enable,
        step_aside,
    };
    if off.is_empty() {
        return Some(parent(off, false));
    }
    // The root of the hierarchy is exempt from the rule; it alone has no cgroup.type.
    if !dir.join("cgroup.type").exists() {
        return Some(parent(off, false));
    }
    let inside = dir::procs(dir).ok()?;
    let alone = own && inside.len() == 1;
    if inside.is_empty() || alone {
        return Some(parent(off, alone));
    }
    Some(parent(Vec::new(), false))
}

fn controllers(file: &Path) -> Option<Vec<Controller>> {
    let text = read_control(file).ok()?;
    Some(
        Controller::ALL
            .into_iter()
            .filter(|controller| text.split_whitespace().any(|word| word == controller.name()))
            .collect(),
    )
}

/// A sandbox's directory.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) dir: Dir,
    /// As /proc/PID/cgroup names it.
    pub(super) path: String,
    parent: PathBuf,
    /// Undone after the sandbox's directory is gone, hence last.
    aside: Option<Aside>,
}

/// Makes the directory and sets the limits.
pub(super) fn create(plan: &CgroupPlan, parent: &Parent, name: &str) -> Result<Group, CgroupError> {
    let wanted = Controller::wanted(plan);
    require(&wanted, &parent.controllers, || parent.dir.display().to_string())?;
    // A plan without limits is measured all the same, where memory can be had.
    let used: &[Controller] = if wanted.is_empty() { &[Controller::Memory] } else { &wanted };
    let needs_enabling = used.iter().any(|controller| parent.enable.contains(controller));
    let aside = if needs_enabling { prepare(parent, name)? } else { None };
    let group = Group {
        dir: Dir::make(&parent.dir, name)?,
        path: effective::child_path(&parent.path, name),
        parent: parent.dir.clone(),
        aside,
    };
    limit(&group.dir, plan)?;
    Ok(group)
}

/// Makes a directory that limits nothing: no controller is needed, so none is switched on and nobody steps aside.
pub(super) fn create_bare(parent: &Bare, name: &str) -> Result<Group, CgroupError> {
    Ok(Group {
        dir: Dir::make(&parent.dir, name)?,
        path: effective::child_path(&parent.path, name),
        parent: parent.dir.clone(),
        aside: None,
    })
}

/// A cgroup that takes children, whatever controllers it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bare {
    dir: PathBuf,
    path: String,
}

/// The nearest one from our own upwards that we may write; arguments as of [`find_parent`].
pub(super) fn find_bare(mount: &Path, own: &Path, path: &str) -> Option<Bare> {
    let mut path = path;
    for dir in own.ancestors().take(LEVELS_MAX) {
        let writable = |path: &Path| access(path, AccessFlags::W_OK).is_ok();
        if writable(dir) && writable(&dir.join("cgroup.procs")) {
            let path = if path.is_empty() { "/" } else { path };
            return Some(Bare { dir: dir.to_owned(), path: path.to_owned() });
        }
        if dir == mount {
            break;
        }
        path = path.rsplit_once('/').map_or("", |(above, _)| above);
    }
    None
}

/// Switches the controllers on for the children of `parent`; when it is our own cgroup, out of the way first.
fn prepare(parent: &Parent, name: &str) -> Result<Option<Aside>, CgroupError> {
    let mut aside = match parent.step_aside {
        true => Some(Aside::step(&parent.dir, name)?),
        false => None,
    };
    let words = signed_words('+', &parent.enable);
    write_file(&parent.dir.join(SUBTREE_CONTROL), &words).map_err(|source| CgroupError::Enable {
        controllers: words.clone(),
        dir: parent.dir.clone(),
        source,
    })?;
    if let Some(aside) = &mut aside {
        aside.enabled = parent.enable.clone();
    }
    Ok(aside)
}

const SUBTREE_CONTROL: &str = "cgroup.subtree_control";

fn signed_words(sign: char, controllers: &[Controller]) -> String {
    let words: Vec<String> = controllers.iter().map(|controller| format!("{sign}{}", controller.name())).collect();
    words.join(" ")
}

fn write_file(path: &Path, value: &str) -> std::io::Result<()> {
    let flags = nix::fcntl::OFlag::O_WRONLY | nix::fcntl::OFlag::O_CLOEXEC;
    let fd = nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty())?;
    nix::unistd::write(&fd, value.as_bytes())?;
    Ok(())
}

/// We, in a leaf of what was our own cgroup. Dropped, we are back and the leaf is gone.
#[derive(Debug)]
struct Aside {
    own: PathBuf,
    leaf: Option<Dir>,
    enabled: Vec<Controller>,
}

impl Aside {
    fn step(own: &Path, name: &str) -> Result<Aside, CgroupError> {
        let leaf = Dir::make(own, &format!("{name}-outside"))?;
        leaf.write("cgroup.procs", "0").map_err(|source| CgroupError::Attach {
            pid: nix::unistd::getpid().as_raw(),
            dir: leaf.path().to_owned(),
            source: source.into(),
        })?;
        Ok(Aside { own: own.to_owned(), leaf: Some(leaf), enabled: Vec::new() })
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // Best effort, in this order: processes may come back only once no child has controllers. What fails leaves us in
        // the leaf, under the same limits, and the leaf to whoever delegated the cgroup.
        if !self.enabled.is_empty() {
            let _ = write_file(&self.own.join(SUBTREE_CONTROL), &signed_words('-', &self.enabled));
        }
        let _ = write_file(&self.own.join("cgroup.procs"), "0");
        drop(self.leaf.take());
    }
}

fn limit(dir: &Dir, plan: &CgroupPlan) -> Result<(), CgroupError> {
    if let Some(memory) = plan.memory_bytes {
        dir.limit("memory.max", &memory.to_string())?;
        // One process of the sandbox killed and the others left is a state that no program expects.
        dir.limit("memory.oom.group", "1")?;
    }
    if let Some(swap) = plan.swap_bytes {
        if dir.has("memory.swap.max") {
            dir.limit("memory.swap.max", &swap.to_string())?;
        } else {
            effective::host_without_swap()?;
        }
    }
    if let Some(tasks) = plan.tasks {
        dir.limit("pids.max", &tasks.to_string())?;
    }
    if let Some(percent) = plan.cpu_percent {
        let quota_us = u64::from(percent) * PERIOD_US / 100;
        dir.limit("cpu.max", &format!("{quota_us} {PERIOD_US}"))?;
    }
    Ok(())
}

/// Undoes `memory.oom.group`, where there is one.
pub(super) fn kill_singly(dir: &Dir) -> Result<(), CgroupError> {
    if dir.has("memory.oom.group") { dir.limit("memory.oom.group", "0") } else { Ok(()) }
}

impl Group {
    /// For callers that cannot clone into the cgroup; waits for an RCU period.
    pub(super) fn attach(&self, pid: i32) -> Result<(), CgroupError> {
        self.dir.write("cgroup.procs", &pid.to_string()).map_err(|source| CgroupError::Attach {
            pid,
            dir: self.dir.path().to_owned(),
            source: source.into(),
        })
    }

    pub(super) fn remove(self) -> Result<(), CgroupError> {
        self.dir.remove()?;
        drop(self.aside);
        dir::sweep(&self.parent, dir::SWEEP_AGE_MIN);
        Ok(())
    }
}

/// Limits read back from `dir`, membership of `pid` in `path`.
pub(super) fn effective(dir: &Dir, path: &str, plan: &CgroupPlan, pid: i32) -> Result<Effective, CgroupError> {
    let mut limits = Vec::new();
    if dir.has("memory.max") {
        limits.push(max_limit(dir, "memory-bytes", "memory.max", plan.memory_bytes)?);
        limits.push(if dir.has("memory.swap.max") {
            max_limit(dir, "swap-bytes", "memory.swap.max", plan.swap_bytes)?
        } else {
            effective::swap_absent(plan)?
        });
    }
    if dir.has("pids.max") {
        limits.push(max_limit(dir, "tasks", "pids.max", plan.tasks)?);
    }
    if dir.has("cpu.max") {
        let text = dir.read("cpu.max")?;
        let file = dir.path().join("cpu.max");
        limits.push(EffectiveLimit {
            resource: "cpu-percent",
            requested: plan.cpu_percent.map(u64::from),
            value: percent(&text).ok_or_else(|| effective::malformed(&file, &text))?,
            file,
        });
    }
    Ok(Effective {
        version: "v2",
        limits,
        member: effective::path_v2(pid)? == path,
        membership_file: effective::membership_file(pid),
    })
}

fn max_limit(
    dir: &Dir,
    resource: &'static str,
    file: &str,
    requested: Option<u64>,
) -> Result<EffectiveLimit, CgroupError> {
    Ok(EffectiveLimit { resource, requested, value: effective::max_or_number(dir, file)?, file: dir.path().join(file) })
}

/// `QUOTA PERIOD` as percent of one core; the inner `None` is `max`.
fn percent(text: &str) -> Option<Option<u64>> {
    let (quota, period) = text.trim().split_once(' ')?;
    if quota == "max" {
        return Some(None);
    }
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    Some(Some(quota.checked_mul(100)?.checked_div(period)?))
}

/// What happened, from at most four files.
pub(super) fn outcome(dir: &Dir) -> Result<Outcome, CgroupError> {
    let stat = Keyed::read(dir, "cpu.stat")?;
    let mut outcome = Outcome {
        cpu_time_us: stat.get("usage_usec")?,
        throttled_periods: stat.get("nr_throttled")?,
        throttled_us: stat.get("throttled_usec")?,
        ..Outcome::default()
    };
    if dir.has("memory.events") {
        outcome.oom_kills = Keyed::read(dir, "memory.events")?.get("oom_kill")?;
    }
    if dir.has("memory.peak") {
        outcome.peak_memory_bytes = Some(effective::number(dir, "memory.peak")?);
    }
    if dir.has("pids.events") {
        outcome.tasks_refused = Keyed::read(dir, "pids.events")?.get("max")?;
    }
    Ok(outcome)
}

pub(super) fn freeze(dir: &Dir, frozen: bool) -> Result<(), CgroupError> {
    write_named(dir, "cgroup.freeze", if frozen { "1" } else { "0" })
}

/// See [`super::Cgroup::tighten`].
pub(super) fn tighten(dir: &Dir, tight: &Tight) -> Result<String, CgroupError> {
    let mut tasks = None;
    if dir.has("pids.current") {
        let present = effective::number(dir, "pids.current")?.min(tight.tasks);
        dir.limit("pids.max", &present.to_string())?;
        tasks = Some(present);
    }
    let has_cpu = dir.has("cpu.max");
    if has_cpu {
        dir.limit("cpu.max", &format!("{} {PERIOD_US}", tight.quota_us(PERIOD_US)))?;
    }
    Ok(tight.words(tasks, has_cpu))
}

/// One write kills all, atomically against forks.
pub(super) fn kill_all(dir: &Dir) -> Result<(), CgroupError> {
    if dir.has("cgroup.kill") {
        return write_named(dir, "cgroup.kill", "1");
    }
    kill_rounds(dir)
}

fn write_named(dir: &Dir, file: &str, value: &'static str) -> Result<(), CgroupError> {
    dir.write(file, value).map_err(|source| CgroupError::Write { file: dir.path().join(file), value, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_max_is_a_percentage() {
        let check = |text, expected| assert_eq!(percent(text), expected, "{text}");
        check("max 100000\n", Some(None));
        check("50000 100000\n", Some(Some(50)));
        check("300000 100000\n", Some(Some(300)));
        check("1 0\n", None);
        check("1\n", None);
    }

    #[test]
    fn controllers_are_switched_by_sign() {
        assert_eq!(signed_words('+', &[Controller::Memory, Controller::Cpu]), "+memory +cpu");
    }
}

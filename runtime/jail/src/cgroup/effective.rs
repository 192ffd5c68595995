//! What the kernel says about a cgroup: limits in force, membership, and what happened in it.

use std::path::{Path, PathBuf};

use apex_core::plan::CgroupPlan;

use super::Controller;
use super::dir::{Dir, read_control, read_list};
use super::error::CgroupError;

/// One limit, requested and in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectiveLimit {
    /// `memory-bytes`, `swap-bytes` (on top of it), `tasks`, `cpu-percent` (of one core).
    pub resource: &'static str,
    /// What the plan asks for.
    pub requested: Option<u64>,
    /// What the kernel enforces; `None` is no limit.
    pub value: Option<u64>,
    /// The file that says so.
    pub file: PathBuf,
}

impl EffectiveLimit {
    /// Whether what is in force is at least as strict as what was asked for (the kernel rounds down to pages).
    pub fn holds(&self) -> bool {
        match (self.requested, self.value) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(requested), Some(value)) => value <= requested,
        }
    }
}

/// Limits and membership of a sandbox, read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// `v1`, `v2` or `systemd` (v2 in a scope of the user manager).
    pub version: &'static str,
    /// Every limit that a controller of this cgroup can have.
    pub limits: Vec<EffectiveLimit>,
    /// Whether the process is in the cgroup, in every hierarchy of it.
    pub member: bool,
    /// Where that was read.
    pub membership_file: PathBuf,
}

impl Effective {
    /// What differs from the plan, in words; `None` when all of it is in force.
    pub fn mismatch(&self) -> Option<String> {
        if !self.member {
            return Some(format!("the process is not in its cgroup, says {}", self.membership_file.display()));
        }
        let limit = self.limits.iter().find(|limit| !limit.holds())?;
        let words = |value: Option<u64>| value.map_or("no limit".to_owned(), |value| value.to_string());
        Some(format!(
            "{}: {} was asked for, {} is in force, says {}",
            limit.resource,
            words(limit.requested),
            words(limit.value),
            limit.file.display()
        ))
    }
}

impl Effective {
    /// Adds the limits of `plan` for which the cgroup has no file at all: a manager may leave out a controller in silence.
    pub(super) fn expect_all(&mut self, plan: &CgroupPlan, dir: &Path) {
        let requested = [
            ("memory-bytes", plan.memory_bytes),
            ("swap-bytes", plan.swap_bytes),
            ("tasks", plan.tasks),
            ("cpu-percent", plan.cpu_percent.map(u64::from)),
        ];
        for (resource, requested) in requested {
            if requested.is_some() && !self.limits.iter().any(|limit| limit.resource == resource) {
                self.limits.push(EffectiveLimit {
                    resource,
                    requested,
                    value: None,
                    file: dir.join("cgroup.controllers"),
                });
            }
        }
    }
}

/// What happened in a cgroup. `None` is what its controllers do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Processes that the kernel killed because the memory limit was reached.
    pub oom_kills: Option<u64>,
    /// Forks and clones refused because the tasks limit was reached.
    pub tasks_refused: Option<u64>,
    /// Most memory that was ever charged.
    pub peak_memory_bytes: Option<u64>,
    /// CPU time of all processes.
    pub cpu_time_us: Option<u64>,
    /// Periods in which the CPU quota ran out.
    pub throttled_periods: Option<u64>,
    /// Time that processes waited for the next period.
    pub throttled_us: Option<u64>,
}

pub(super) fn membership_file(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/cgroup"))
}

/// `parent/name`, as /proc/PID/cgroup spells it.
pub(super) fn child_path(parent: &str, name: &str) -> String {
    format!("{}/{name}", parent.trim_end_matches('/'))
}

fn membership(pid: i32) -> Result<String, CgroupError> {
    let file = membership_file(pid);
    read_control(&file).map_err(|source| CgroupError::Read { file, source })
}

/// The v2 cgroup of `pid`.
pub(super) fn path_v2(pid: i32) -> Result<String, CgroupError> {
    let text = membership(pid)?;
    text.lines()
        .find_map(|line| line.strip_prefix("0::"))
        .map(str::to_owned)
        .ok_or_else(|| malformed(&membership_file(pid), &text))
}

/// Whether `pid` is in `paths[i]` of the hierarchy with `controllers[i]`, for every one.
pub(super) fn is_member_v1(pid: i32, controllers: &[&[Controller]], paths: &[&str]) -> Result<bool, CgroupError> {
    let text = membership(pid)?;
    Ok(controllers.iter().zip(paths).all(|(controllers, path)| {
        text.lines().any(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let words = fields.next().unwrap_or_default();
            controllers.iter().all(|controller| words.split(',').any(|word| word == controller.name()))
                && fields.next() == Some(path)
        })
    }))
}

pub(super) fn malformed(file: &Path, text: &str) -> CgroupError {
    CgroupError::Malformed { file: file.to_owned(), text: text.chars().take(80).collect() }
}

/// A file that holds one number.
pub(super) fn number(dir: &Dir, file: &str) -> Result<u64, CgroupError> {
    let text = dir.read(file)?;
    text.trim().parse().map_err(|_| malformed(&dir.path().join(file), &text))
}

/// A file that holds one number or `max`.
pub(super) fn max_or_number(dir: &Dir, file: &str) -> Result<Option<u64>, CgroupError> {
    let text = dir.read(file)?;
    match text.trim() {
        "max" => Ok(None),
        word => word.parse().map(Some).map_err(|_| malformed(&dir.path().join(file), &text)),
    }
}

/// A file of `key value` lines, read once.
pub(super) struct Keyed {
    file: PathBuf,
    text: String,
}

impl Keyed {
    pub(super) fn read(dir: &Dir, file: &str) -> Result<Keyed, CgroupError> {
        Ok(Keyed { file: dir.path().join(file), text: dir.read(file)? })
    }

    /// One entry; `None` when this kernel does not have the key.
    pub(super) fn get(&self, key: &str) -> Result<Option<u64>, CgroupError> {
        keyed_in(&self.text, key).map_err(|()| malformed(&self.file, &self.text))
    }
}

fn keyed_in(text: &str, key: &str) -> Result<Option<u64>, ()> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
        .map(|value| value.trim().parse().map_err(|_| ()))
        .transpose()
}

/// A host that does not account for swap is fine as long as it has none.
pub(super) fn host_without_swap() -> Result<(), CgroupError> {
    const SWAPS: &str = "/proc/swaps";
    match read_list(Path::new(SWAPS)) {
        Ok(text) if text.lines().count() <= 1 => Ok(()),
        Ok(_) => Err(CgroupError::SwapUncounted),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()), // a kernel without swap
        Err(source) => Err(CgroupError::Read { file: SWAPS.into(), source }),
    }
}

/// The swap limit of a host that does not account for swap: nothing can be swapped, and that was checked.
pub(super) fn swap_absent(plan: &CgroupPlan) -> Result<EffectiveLimit, CgroupError> {
    let value = match host_without_swap() {
        Ok(()) => Some(0),
        Err(CgroupError::SwapUncounted) => None,
        Err(error) => return Err(error),
    };
    Ok(EffectiveLimit { resource: "swap-bytes", requested: plan.swap_bytes, value, file: "/proc/swaps".into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_whole_words() {
        let text = "oom_kill_disable 0\nunder_oom 1\noom_kill 7\n";
        assert_eq!(keyed_in(text, "oom_kill"), Ok(Some(7)));
        assert_eq!(keyed_in(text, "oom"), Ok(None));
        assert_eq!(keyed_in("max x\n", "max"), Err(()));
    }

    #[test]
    fn a_weaker_limit_is_a_mismatch() {
        let check = |requested, value, member, expected: Option<&str>| {
            let effective = Effective {
                version: "v2",
                limits: vec![EffectiveLimit { resource: "tasks", requested, value, file: "/cg/pids.max".into() }],
                member,
                membership_file: "/proc/7/cgroup".into(),
            };
            assert_eq!(effective.mismatch().as_deref(), expected);
        };
        check(Some(5), Some(5), true, None);
        check(Some(5), Some(4), true, None);
        check(None, None, true, None);
        check(Some(5), None, true, Some("tasks: 5 was asked for, no limit is in force, says /cg/pids.max"));
        check(Some(5), Some(5), false, Some("the process is not in its cgroup, says /proc/7/cgroup"));
    }

    #[test]
    fn paths_of_children_have_one_slash() {
        assert_eq!(child_path("/", "a"), "/a");
        assert_eq!(child_path("/b", "a"), "/b/a");
    }
}

//! A scope from the systemd user manager, for a user whose session cgroup belongs to root.
//!
//! The scope starts with the sandbox's init already in it (`PIDs`), so the call comes after the clone, in the caller, while
//! the init waits: zbus starts threads, and the caller must be single-threaded when it clones, not later. A separate process
//! for the call would cost a fork and a way to report errors, for nothing. That the init is really inside, and under
//! which limits, is read from the kernel and not from the answer: the manager moves it in a job, after it answered.
//! The manager of a user makes the scope's directory as that user, so reading, killing and freezing go directly.
//!
//! [`Controller`](super::Controller)s that the user manager was not given (`Delegate=` of user@.service) are ignored by it in
//! silence; the missing limit shows in [`Scope::effective`].

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use apex_core::plan::CgroupPlan;
use zbus::zvariant::Value;

use super::dir::Dir;
use super::effective::{self, Effective, Outcome};
use super::error::CgroupError;
use super::v2;

const MANAGER: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER_INTERFACE: &str = "org.freedesktop.systemd1.Manager";

/// For the answer, and again for the move.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Between two looks at the init's cgroup.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// A scope: asked for in `attach`, removed by systemd when it is empty.
#[derive(Debug)]
pub(super) struct Scope {
    unit: String,
    plan: CgroupPlan,
    mount: PathBuf,
    placed: Option<(Dir, String)>,
}

impl Scope {
    pub(super) fn new(name: &str, plan: &CgroupPlan, mount: &Path) -> Scope {
        Scope {
            unit: format!("{name}.scope"),
            plan: plan.clone(),
            mount: mount.to_owned(),
            placed: None,
        }
    }

    pub(super) fn attach(&mut self, pid: i32) -> Result<(), CgroupError> {
        start_scope(&self.unit, properties(&self.plan, pid)).map_err(|source| {
            CgroupError::Bus {
                unit: self.unit.clone(),
                source: Box::new(source),
            }
        })?;
        let path = self.wait_until_inside(pid)?;
        let dir = Dir::open_foreign(&self.mount.join(path.trim_start_matches('/')))?;
        if self.plan.memory_bytes.is_some() {
            // Not a property of old managers. Without it the kernel kills one process of the sandbox, not all: no weaker.
            let _ = dir.write("memory.oom.group", "1");
        }
        self.placed = Some((dir, path));
        Ok(())
    }

    fn wait_until_inside(&self, pid: i32) -> Result<String, CgroupError> {
        let until = Instant::now() + WAIT_MAX;
        loop {
            let path = effective::path_v2(pid)?;
            if path.rsplit('/').next() == Some(self.unit.as_str()) {
                return Ok(path);
            }
            if Instant::now() >= until {
                return Err(CgroupError::NotPlaced {
                    unit: self.unit.clone(),
                    pid,
                    found: path,
                });
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    fn placed(&self) -> Result<&(Dir, String), CgroupError> {
        self.placed.as_ref().ok_or_else(|| CgroupError::NotStarted {
            unit: self.unit.clone(),
        })
    }

    pub(super) fn effective(&self, plan: &CgroupPlan, pid: i32) -> Result<Effective, CgroupError> {
        let (dir, path) = self.placed()?;
        let mut effective = v2::effective(dir, path, plan, pid)?;
        effective.version = "systemd";
        effective.expect_all(plan, dir.path());
        Ok(effective)
    }

    pub(super) fn outcome(&self) -> Result<Outcome, CgroupError> {
        v2::outcome(&self.placed()?.0)
    }

    pub(super) fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        v2::freeze(&self.placed()?.0, frozen)
    }

    pub(super) fn kill_all(&self) -> Result<(), CgroupError> {
        v2::kill_all(&self.placed()?.0)
    }
}

/// The scope's properties (org.freedesktop.systemd1(5), systemd.resource-control(5)).
fn properties(plan: &CgroupPlan, pid: i32) -> Vec<(&'static str, Value<'static>)> {
    let mut properties = vec![
        ("Description", Value::from("Apex sandbox")),
        ("PIDs", Value::from(vec![pid.unsigned_abs()])),
        ("Delegate", Value::from(true)),
        // A scope that ended by an OOM kill would otherwise stay as `failed` until somebody resets it.
        ("CollectMode", Value::from("inactive-or-failed")),
    ];
    if let Some(memory) = plan.memory_bytes {
        properties.push(("MemoryMax", Value::from(memory)));
    }
    if let Some(swap) = plan.swap_bytes {
        properties.push(("MemorySwapMax", Value::from(swap)));
    }
    if let Some(tasks) = plan.tasks {
        properties.push(("TasksMax", Value::from(tasks)));
    }
    if let Some(percent) = plan.cpu_percent {
        let us_per_s = u64::from(percent) * 10_000;
        properties.push(("CPUQuotaPerSecUSec", Value::from(us_per_s)));
    }
    properties
}

fn start_scope(unit: &str, properties: Vec<(&'static str, Value<'static>)>) -> zbus::Result<()> {
    let auxiliary: Vec<(&str, Vec<(&str, Value<'_>)>)> = Vec::new();
    let bus = zbus::blocking::connection::Builder::session()?
        .method_timeout(WAIT_MAX)
        .build()?;
    // `fail`: a unit of this name that is there already is not ours.
    bus.call_method(
        Some(MANAGER),
        MANAGER_PATH,
        Some(MANAGER_INTERFACE),
        "StartTransientUnit",
        &(unit, "fail", properties, auxiliary),
    )?;
    Ok(())
}

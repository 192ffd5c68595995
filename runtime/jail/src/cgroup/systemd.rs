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
use super::{Tight, v2};

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
    /// Address of the user's bus.
    bus: String,
    placed: Option<(Dir, String)>,
}

impl Scope {
    pub(super) fn new(name: &str, plan: &CgroupPlan, mount: &Path, bus: &str) -> Scope {
        Scope {
            unit: format!("{name}.scope"),
            plan: plan.clone(),
            mount: mount.to_owned(),
            bus: bus.to_owned(),
            placed: None,
        }
    }

    pub(super) fn attach(&mut self, pid: i32) -> Result<(), CgroupError> {
        start_scope(&self.bus, &self.unit, properties(&self.plan, pid))
            .map_err(|source| CgroupError::Bus { unit: self.unit.clone(), source: Box::new(source) })?;
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
                return Err(CgroupError::NotPlaced { unit: self.unit.clone(), pid, found: path });
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    fn placed(&self) -> Result<&(Dir, String), CgroupError> {
        self.placed.as_ref().ok_or_else(|| CgroupError::NotStarted { unit: self.unit.clone() })
    }

    /// The scope's directory, once it is placed.
    pub(super) fn dir(&self) -> Option<&Dir> {
        self.placed.as_ref().map(|(dir, _)| dir)
    }

    pub(super) fn effective(&self, plan: &CgroupPlan, pid: i32) -> Result<Effective, CgroupError> {
        let (dir, path) = self.placed()?;
        let mut effective = v2::effective(dir, path, plan, pid)?;
        effective.version = "systemd";
        effective.expect_all(plan, dir.path());
        Ok(effective)
    }

    /// The manager removes a scope in which nobody is left, perhaps before this look: nothing is known of it then, and that is no failure of the run.
    pub(super) fn outcome(&self) -> Result<Outcome, CgroupError> {
        match v2::outcome(&self.placed()?.0) {
            Err(CgroupError::Read { source, .. }) if is_gone(&source) => Ok(Outcome::default()),
            other => other,
        }
    }

    pub(super) fn kill_singly(&self) -> Result<(), CgroupError> {
        v2::kill_singly(&self.placed()?.0)
    }

    pub(super) fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        v2::freeze(&self.placed()?.0, frozen)
    }

    pub(super) fn tighten(&self, tight: &Tight) -> Result<String, CgroupError> {
        v2::tighten(&self.placed()?.0, tight)
    }

    pub(super) fn kill_all(&self) -> Result<(), CgroupError> {
        v2::kill_all(&self.placed()?.0)
    }
}

fn is_gone(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ENODEV)
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

fn start_scope(bus: &str, unit: &str, properties: Vec<(&'static str, Value<'static>)>) -> zbus::Result<()> {
    let auxiliary: Vec<(&str, Vec<(&str, Value<'_>)>)> = Vec::new();
    let bus = zbus::blocking::connection::Builder::address(bus)?.method_timeout(WAIT_MAX).build()?;
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

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use zbus::zvariant::OwnedValue;

    use super::super::tests::{TURN, go, pid_of, skip, waiting_shell};
    use super::super::{Cgroup, Place, Site};
    use super::*;

    const PLAN: CgroupPlan =
        CgroupPlan { memory_bytes: Some(32 << 20), swap_bytes: Some(0), cpu_percent: Some(150), tasks: Some(20) };

    #[test]
    fn a_plan_becomes_properties() {
        let properties = properties(&PLAN, 7);
        let check = |name: &str, expected: Value<'_>| {
            let found = properties.iter().find(|(key, _)| *key == name);
            assert_eq!(found.map(|(_, value)| value), Some(&expected), "{name}");
        };
        check("PIDs", Value::from(vec![7u32]));
        check("Delegate", Value::from(true));
        check("MemoryMax", Value::from(33_554_432u64));
        check("MemorySwapMax", Value::from(0u64));
        check("TasksMax", Value::from(20u64));
        check("CPUQuotaPerSecUSec", Value::from(1_500_000u64));
        assert_eq!(properties.len(), 8);
    }

    /// The manager's side: makes the directory and moves the process, as a manager without controllers would.
    struct FakeManager {
        parent: PathBuf,
    }

    #[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
    impl FakeManager {
        fn start_transient_unit(
            &self,
            unit: &str,
            mode: &str,
            properties: Vec<(String, OwnedValue)>,
            auxiliary: Vec<(String, Vec<(String, OwnedValue)>)>,
        ) -> zbus::fdo::Result<zbus::zvariant::OwnedObjectPath> {
            assert_eq!((mode, auxiliary.len()), ("fail", 0));
            let (_, pids) = properties.iter().find(|(key, _)| key == "PIDs").unwrap();
            let pids: Vec<u32> = pids.try_clone().unwrap().try_into().unwrap();
            let dir = self.parent.join(unit);
            std::fs::create_dir(&dir).map_err(|error| zbus::fdo::Error::Failed(error.to_string()))?;
            std::fs::write(dir.join("cgroup.procs"), pids[0].to_string())
                .map_err(|error| zbus::fdo::Error::Failed(error.to_string()))?;
            Ok(zbus::zvariant::OwnedObjectPath::try_from("/org/freedesktop/systemd1/job/1").unwrap())
        }
    }

    /// A private bus, which ends with its value.
    struct Bus {
        daemon: Child,
        address: String,
        dir: PathBuf,
    }

    impl Bus {
        fn start() -> std::io::Result<Bus> {
            let dir = std::env::temp_dir().join(format!("apex-bus-{}", std::process::id()));
            std::fs::create_dir(&dir)?;
            let daemon = Command::new("dbus-daemon")
                .args(["--session", "--nofork", "--print-address"])
                .arg(format!("--address=unix:tmpdir={}", dir.display()))
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .inspect_err(|_| std::fs::remove_dir(&dir).unwrap())?;
            let mut bus = Bus { daemon, address: String::new(), dir };
            BufReader::new(bus.daemon.stdout.take().unwrap()).read_line(&mut bus.address)?;
            bus.address.truncate(bus.address.trim_end().len());
            Ok(bus)
        }
    }

    impl Drop for Bus {
        fn drop(&mut self) {
            // Also when the test fails, which has its own words by then.
            let _ = self.daemon.kill();
            let _ = self.daemon.wait();
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }

    /// Whom the kill found beside the process that was waited for may still be on the way out.
    fn remove(scope: &Path) {
        let until = Instant::now() + WAIT_MAX;
        while let Err(error) = std::fs::remove_dir(scope) {
            assert!(Instant::now() < until, "{}: {error}", scope.display());
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    #[test]
    fn a_scope_is_asked_for_over_the_bus() {
        let name = "cgroup::systemd::tests::a_scope_is_asked_for_over_the_bus";
        let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mount = PathBuf::from("/sys/fs/cgroup/unified");
        if nix::unistd::access(&mount.join("cgroup.procs"), nix::unistd::AccessFlags::W_OK).is_err() {
            return skip(name, "needs a writable cgroup v2 at /sys/fs/cgroup/unified");
        }
        let own = effective::path_v2(std::process::id().cast_signed()).unwrap();
        let parent = mount.join(own.trim_start_matches('/'));
        let bus = match Bus::start() {
            Ok(bus) => bus,
            Err(error) => return skip(name, &format!("needs dbus-daemon: {error}")),
        };
        let manager = zbus::blocking::connection::Builder::address(bus.address.as_str())
            .unwrap()
            .name(MANAGER)
            .unwrap()
            .serve_at(MANAGER_PATH, FakeManager { parent: parent.clone() })
            .unwrap()
            .build()
            .unwrap();
        let site = Site { place: Place::SystemdUser { mount, bus: bus.address.clone() } };

        let mut cgroup = Cgroup::create(&PLAN, &site).unwrap();
        assert!(matches!(cgroup.kill_all(), Err(CgroupError::NotStarted { .. })));
        let mut child = waiting_shell("sleep 60");
        cgroup.attach(pid_of(&child)).unwrap();
        let effective = cgroup.effective(pid_of(&child)).unwrap();
        assert!(effective.member);
        // The fake gives no controllers, and that does not go unnoticed.
        let mismatch = effective.mismatch().unwrap();
        assert!(mismatch.starts_with("memory-bytes: 33554432 was asked for, no limit"), "{mismatch}");
        let again = cgroup.attach(pid_of(&child));
        assert!(matches!(again, Err(CgroupError::Bus { .. })), "{again:?}");
        go(&mut child);
        cgroup.kill_all().unwrap();
        assert!(!child.wait().unwrap().success());
        let scope = parent.join(format!("{}.scope", cgroup.name()));
        cgroup.remove().unwrap();
        remove(&scope);
        drop(manager);
    }

    #[test]
    fn a_real_user_manager_limits_the_scope() {
        let name = "cgroup::systemd::tests::a_real_user_manager_limits_the_scope";
        let site = Site::find(&super::super::Controller::ALL);
        if !matches!(site.place, Place::SystemdUser { .. }) {
            return skip(name, "needs a systemd user manager");
        }
        let mut cgroup = Cgroup::create(&PLAN, &site).unwrap();
        let mut child = waiting_shell("exec tail /dev/zero");
        cgroup.attach(pid_of(&child)).unwrap();
        let mut effective = cgroup.effective(pid_of(&child)).unwrap();
        // The user manager is given cpu on newer systemd only; that it is missing must then be seen.
        effective.limits.retain(|limit| limit.resource != "cpu-percent" || limit.value.is_some());
        assert_eq!(effective.mismatch(), None);
        go(&mut child);
        assert!(!child.wait().unwrap().success());
        cgroup.remove().unwrap();
    }
}

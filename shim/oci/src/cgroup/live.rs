//! Work on a cgroup that lives: freeze, signal, list, remove; and what has to be set up around it.

use std::path::Path;
use std::time::{Duration, Instant};

use apex_sys::{Errno, process};
use nix::libc::SIGKILL;
use oci_spec::runtime::LinuxResources;

use super::dir::{self, Dir};
use super::error::CgroupError;
use super::{Cgroup, Place, Version};

/// How long a freeze may take, and what was killed may take to end.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// Looks at a v1 freezer that hangs in FREEZING, before it is thawed for a moment: tasks that fork meanwhile keep it there.
const LOOKS_BEFORE_THAW: u32 = 50;

/// Whoever enters a frozen cgroup never runs.
pub(super) fn refuse_frozen(place: &Place, made: &[std::path::PathBuf]) -> Result<(), CgroupError> {
    if made.last() == Some(&place.dir) {
        return Ok(());
    }
    let frozen = Freezer { place }.is_frozen()?;
    if frozen { Err(CgroupError::Frozen { dir: place.dir.clone() }) } else { Ok(()) }
}

/// A cpuset of v1 takes nobody before it has CPUs and memory nodes; a fresh one has none and gets those of the one above, as runc does it.
pub(super) fn inherit_cpuset(path: &Path, point: &Path, is_fresh: bool) -> Result<(), CgroupError> {
    let open = |path: &Path| Dir::open(path).map_err(|errno| CgroupError::read(path.to_owned(), errno));
    if path == point || !path.starts_with(point) {
        return Ok(());
    }
    let dir = open(path)?;
    let mut missing = Vec::new();
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if is_fresh || dir.read(file)?.trim().is_empty() {
            missing.push(file);
        }
    }
    let Some(parent) = path.parent().filter(|_| !missing.is_empty()) else {
        return Ok(());
    };
    // The one above may be fresh too.
    inherit_cpuset(parent, point, false)?;
    let parent = open(parent)?;
    for file in missing {
        let value = parent.read(file)?;
        dir.write(file, value.trim()).map_err(|errno| CgroupError::Set {
            controller: "cpuset".to_owned(),
            file: dir.path().join(file),
            value: value.trim().to_owned(),
            hint: "",
            source: errno.into(),
        })?;
    }
    Ok(())
}

/// v2: switches on, in each cgroup above `dir`, the controllers that it has itself. What cannot be switched on shows when a limit needs it.
pub(super) fn hand_down(point: &Path, dir: &Path) {
    let mut above: Vec<&Path> = dir.ancestors().skip(1).take_while(|above| above.starts_with(point)).collect();
    above.reverse();
    for path in above {
        let Ok(dir) = Dir::open(path) else {
            continue;
        };
        let (Ok(all), Ok(on)) = (dir.read("cgroup.controllers"), dir.read("cgroup.subtree_control")) else {
            continue;
        };
        let on: Vec<&str> = on.split_whitespace().collect();
        let missing: Vec<String> =
            all.split_whitespace().filter(|name| !on.contains(name)).map(|name| format!("+{name}")).collect();
        if missing.is_empty() || dir.write("cgroup.subtree_control", &missing.join(" ")).is_ok() {
            continue;
        }
        // One that refuses (cpu beside realtime tasks) must not keep the others out.
        for name in missing {
            let _ = dir.write("cgroup.subtree_control", &name);
        }
    }
}

/// v2 has one file for what the specification has two fields for: an update of one takes the other from the file.
pub(super) fn complete(cgroup: &Cgroup, resources: &LinuxResources) -> Result<LinuxResources, CgroupError> {
    let mut resources = resources.clone();
    let (Version::V2, Some(place)) = (cgroup.version, cgroup.v2()) else {
        return Ok(resources);
    };
    let first_number = |file: &str| -> Result<Option<i64>, CgroupError> {
        let text = place.open()?.read_if_there(file)?.unwrap_or_default();
        Ok(text.split_whitespace().next().and_then(|word| word.parse().ok()))
    };
    if let Some(memory) = resources.memory_mut()
        && memory.swap().is_some_and(|swap| swap > 0)
        && memory.limit().unwrap_or(0) == 0
    {
        memory.set_limit(first_number("memory.max")?);
    }
    if let Some(cpu) = resources.cpu_mut()
        && cpu.period().is_some_and(|period| period > 0)
        && cpu.quota().unwrap_or(0) == 0
    {
        cpu.set_quota(first_number("cpu.max")?);
    }
    Ok(resources)
}

/// v1's freezer, or that of v2.
struct Freezer<'a> {
    place: &'a Place,
}

impl Freezer<'_> {
    fn is_frozen(&self) -> Result<bool, CgroupError> {
        let dir = self.place.open()?;
        if self.place.is_v2() {
            let Some(events) = dir.read_if_there("cgroup.events")? else {
                return Ok(false);
            };
            return Ok(events.lines().any(|line| line == "frozen 1"));
        }
        Ok(dir.read("freezer.state")?.trim() == "FROZEN")
    }

    fn write(&self, frozen: bool) -> Result<(), CgroupError> {
        let (file, value) = match (self.place.is_v2(), frozen) {
            (true, true) => ("cgroup.freeze", "1"),
            (true, false) => ("cgroup.freeze", "0"),
            (false, true) => ("freezer.state", "FROZEN"),
            (false, false) => ("freezer.state", "THAWED"),
        };
        let dir = self.place.open()?;
        dir.write(file, value).map_err(|errno| CgroupError::Set {
            controller: "freezer".to_owned(),
            file: dir.path().join(file),
            value: value.to_owned(),
            hint: "",
            source: errno.into(),
        })
    }

    fn turn(&self, frozen: bool) -> Result<(), CgroupError> {
        let verb = if frozen { "pause" } else { "resume" };
        let until = Instant::now() + WAIT_MAX;
        self.write(frozen)?;
        for looks in 1_u32.. {
            if self.is_frozen()? == frozen {
                return Ok(());
            }
            if Instant::now() >= until {
                break;
            }
            std::thread::sleep(LOOK_INTERVAL);
            if frozen && !self.place.is_v2() {
                if looks.is_multiple_of(LOOKS_BEFORE_THAW) {
                    self.write(false)?;
                    std::thread::sleep(LOOK_INTERVAL);
                }
                self.write(true)?;
            }
        }
        if frozen {
            // Half a container frozen is worse than none.
            self.write(false)?;
        }
        Err(CgroupError::FreezeTimeout { verb, dir: self.place.dir.clone(), seconds: WAIT_MAX.as_secs() })
    }
}

impl Cgroup {
    fn freezer(&self) -> Option<Freezer<'_>> {
        let place = self.places.iter().find(|place| place.has("freezer"));
        place.or_else(|| self.v2()).map(|place| Freezer { place })
    }

    /// Stops everybody inside: `pause`. Waits until they stand.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        self.freezer().ok_or(CgroupError::NoFreezer { verb: "pause" })?.turn(true)
    }

    /// Lets them go on: `resume`.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.freezer().ok_or(CgroupError::NoFreezer { verb: "resume" })?.turn(false)
    }

    /// Whether they stand. A cgroup that is gone, or that has no freezer, is not frozen.
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        let frozen = self.freezer().map_or(Ok(false), |freezer| freezer.is_frozen());
        match frozen {
            Err(CgroupError::Read { source, .. }) if is_gone(&source) => Ok(false),
            other => other,
        }
    }

    /// Where processes are listed: in the hierarchy that freezes them.
    fn listed(&self) -> Option<&Place> {
        self.freezer().map(|freezer| freezer.place).or_else(|| self.places.first())
    }

    /// Every process inside, also in cgroups that the container made, without those of other pid namespaces. A cgroup that is gone is empty.
    pub fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        let Some(place) = self.listed() else {
            return Err(CgroupError::None { verb: "tell its processes" });
        };
        let mut pids = dir::procs(&place.dir)?;
        for child in dir::children(&place.dir) {
            pids.extend(dir::procs(&child)?);
        }
        pids.retain(|pid| *pid > 0);
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Whether nobody is inside.
    pub fn is_empty(&self) -> Result<bool, CgroupError> {
        if self.version == Version::None {
            return Ok(true);
        }
        Ok(self.pids()?.is_empty())
    }

    /// Sends a signal to everybody inside. Nobody escapes by forking: with v2 the kernel kills them all, elsewhere they are frozen meanwhile.
    ///
    /// A frozen container is thawed for SIGKILL on v1, where the frozen do not die.
    pub fn kill(&self, signal: i32) -> Result<(), CgroupError> {
        if signal == SIGKILL
            && let Some(place) = self.v2()
            && let Ok(dir) = place.open()
        {
            // Since 5.14. Those whom it did not reach are signalled one by one below.
            let _ = dir.write("cgroup.kill", "1");
        }
        let pids = self.pids()?;
        if pids.len() <= 1 && signal != SIGKILL {
            return signal_all(&pids, signal);
        }
        let was_frozen = self.is_frozen()?;
        // Who cannot be frozen can still be signalled: it is the race with forks that is lost then.
        let is_held =
            !pids.is_empty() && !was_frozen && self.freezer().is_some_and(|freezer| freezer.turn(true).is_ok());
        let sent = self.pids().and_then(|pids| signal_all(&pids, signal));
        if is_held || (was_frozen && signal == SIGKILL) {
            self.freezer().map_or(Ok(()), |freezer| freezer.write(false))?;
        }
        sent
    }

    /// Kills everybody inside and waits, bounded, until they are gone. Zombies that nobody reaps do not count. Nobody is in what there is not.
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        if self.version == Version::None {
            return Ok(());
        }
        let until = Instant::now() + WAIT_MAX;
        loop {
            self.kill(SIGKILL)?;
            let left = self.pids()?;
            let (Some(place), false) = (self.listed(), left.iter().all(|pid| is_dead(*pid))) else {
                return Ok(());
            };
            if Instant::now() >= until {
                return Err(CgroupError::Unkillable { left: left.len(), dir: place.dir.clone() });
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Removes the directories, and those that the container made below. Kills nobody, waits a bounded while for the dying; the rest is removed when one refuses.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let mut first_error = None;
        // One wait for all: who keeps one hierarchy busy is in the others too.
        let deadline = Instant::now() + WAIT_MAX;
        for place in &self.places {
            if let Err(error) = dir::remove_tree(&place.dir, deadline) {
                first_error.get_or_insert(error);
            }
        }
        if let Some(scope) = &self.scope {
            scope.forget();
        }
        first_error.map_or(Ok(()), Err)
    }
}

fn is_gone(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::ENOENT | Errno::ENODEV))
}

/// Ended, perhaps not yet waited for: state Z or X behind the name in proc_pid_stat(5), whose last parenthesis is the name's end.
fn is_dead(pid: i32) -> bool {
    match dir::read_path(Path::new(&format!("/proc/{pid}/stat"))) {
        Ok(stat) => stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])),
        Err(errno) => matches!(errno, Errno::ENOENT | Errno::ESRCH),
    }
}

fn signal_all(pids: &[i32], signal: i32) -> Result<(), CgroupError> {
    let me = std::process::id();
    // Neither the machine's first process nor this one: where they share the cgroup, it was not made for the container.
    for &pid in pids.iter().filter(|pid| **pid > 1 && pid.unsigned_abs() != me) {
        match process::kill(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(CgroupError::Signal { signal, pid, source: errno.into() }),
        }
    }
    Ok(())
}

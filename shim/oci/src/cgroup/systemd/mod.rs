//! `--systemd-cgroup`: a scope of a systemd manager holds the container.
//!
//! The manager makes the scope with the container's first process in it, so that comes after the clone, in the caller, while the process waits. The manager answers before it
//! moves; where the process is, is read from the kernel. What the properties cannot say is written to the files afterwards, which `Delegate=yes` leaves to us; what they can say
//! is said there too, since the manager writes its own idea of the limits again when it reloads.

mod annotation;
mod name;
mod properties;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use apex_jail::cgroup::unit::{Manager, Property, UnitError, Units};
use apex_sys::Errno;
use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use super::error::CgroupError;
use super::host::{self, CgroupPath, Hierarchy};
use super::{Cgroup, Pending, Place, Version, Wanted, dir, doors, live};

/// Names and values of a unit's properties.
pub(super) type Properties = Vec<(String, Property)>;

/// For the move, which a busy manager makes late.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Between two looks at the process.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// A scope, and whose manager made it.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub(super) struct Scope {
    unit: String,
    is_user: bool,
}

impl Scope {
    fn units(&self) -> Result<Units, UnitError> {
        Units::of(if self.is_user { Manager::User } else { Manager::System })
    }

    /// Ends the scope, which may be gone already: the manager collects it when nobody is left inside.
    pub(super) fn forget(&self) {
        if let Ok(units) = self.units() {
            // Both fail when there is nothing to do, which is the rule.
            let _ = units.stop(&self.unit);
            let _ = units.reset_failed(&self.unit);
        }
    }

    /// Tells the manager of new limits.
    pub(super) fn update(&self, resources: &LinuxResources, version: Version) -> Result<(), CgroupError> {
        let mut properties = Properties::new();
        properties::push_limits(&mut properties, resources, version);
        if properties.is_empty() { Ok(()) } else { Ok(self.units()?.set(&self.unit, &properties)?) }
    }
}

/// Computes what [`admit`] is to do, and where the cgroup will be. Asks the manager, changes nothing.
pub(super) fn prepare(
    wanted: &Wanted<'_>,
    hierarchies: &[Hierarchy],
    version: Version,
    resources: LinuxResources,
) -> Result<Cgroup, CgroupError> {
    let triple = name::Triple::parse(wanted.path, wanted.id, wanted.is_rootless)?;
    let slice = name::slice_path(&triple.slice)?;
    let unit = triple.unit();
    let scope = Scope { unit: unit.clone(), is_user: wanted.is_rootless };
    let properties = properties::of(&triple, wanted, &resources, version)?;
    let root = scope.units()?.root()?;
    let path = CgroupPath::absolute(&format!("{root}{slice}/{unit}"));
    let mut cgroup = Cgroup {
        version,
        places: hierarchies.iter().map(|hierarchy| Place::new(hierarchy, &path)).collect(),
        scope: Some(scope),
        pending: None,
        notes: Vec::new(),
    };
    // A limit that cannot be must fail here, before there is a process.
    let mut notes = Vec::new();
    cgroup.steps(&resources, &mut notes)?;
    cgroup.notes = notes;
    cgroup.pending = Some(std::sync::Arc::new(Pending { resources, is_rootless: wanted.is_rootless, properties }));
    Ok(cgroup)
}

/// Starts the scope with `pid` in it, then sets the limits. An error ends the scope again; the process is the caller's to kill.
pub(super) fn admit(cgroup: &mut Cgroup, pending: &Pending, pid: i32) -> Result<(), CgroupError> {
    let Some(scope) = cgroup.scope.clone() else {
        return Ok(());
    };
    let mut properties = pending.properties.clone();
    properties.push(("PIDs".to_owned(), Property::Uint32s(vec![pid.unsigned_abs()])));
    scope.units()?.start(&scope.unit, &properties)?;
    let mut made = Vec::new();
    let done = place(cgroup, pending, &scope.unit, pid, &mut made);
    if done.is_err() {
        scope.forget();
        for dir in made.iter().rev() {
            let _ = dir::remove_empty(dir);
        }
    }
    done
}

/// v2: the manager has put the process where it belongs. v1: it did so in its own hierarchy and in those of controllers that it thinks are needed; the rest is done here.
fn place(
    cgroup: &mut Cgroup,
    pending: &Pending,
    unit: &str,
    pid: i32,
    made: &mut Vec<PathBuf>,
) -> Result<(), CgroupError> {
    let path = wait_until_inside(unit, pid)?;
    if cgroup.version == Version::V2 {
        for place in &mut cgroup.places {
            // The kernel's word counts, also where the manager has another idea of its slices than its documentation.
            place.dir = place.point.join(host::clean(Path::new(&path)));
        }
    } else {
        for place in &cgroup.places {
            dir::make(&place.dir, made).map_err(|(dir, errno)| CgroupError::Make { dir, source: errno.into() })?;
            if place.has("cpuset") {
                live::inherit_cpuset(&place.dir, &place.point, false)?;
            }
        }
    }
    let mut notes = std::mem::take(&mut cgroup.notes);
    cgroup.set(&pending.resources)?;
    cgroup.notes.clear();
    cgroup.notes.append(&mut notes);
    cgroup.set_devices(&pending.resources, pending.is_rootless)?;
    if cgroup.version == Version::V1 {
        for place in &cgroup.places {
            doors::attach_to(&place.dir, pid)?;
        }
    }
    Ok(())
}

/// The cgroup of the process, once its last part is the unit: on v2, or in the manager's own hierarchy.
fn wait_until_inside(unit: &str, pid: i32) -> Result<String, CgroupError> {
    let file = PathBuf::from(format!("/proc/{pid}/cgroup"));
    let until = Instant::now() + WAIT_MAX;
    loop {
        let text = dir::read_path(&file).map_err(|errno: Errno| CgroupError::read(file.clone(), errno))?;
        if let Some(path) = inside(&text, unit) {
            return Ok(path);
        }
        if Instant::now() >= until {
            let found = text.lines().last().unwrap_or_default().to_owned();
            return Err(UnitError::NotPlaced { unit: unit.to_owned(), pid, found, seconds: WAIT_MAX.as_secs() }.into());
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// The path that ends with `unit` in proc_pid_cgroup(5), of v2 or the hierarchy `name=systemd`.
fn inside(text: &str, unit: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (hierarchy, path) = line.split_once(':')?.1.split_once(':')?;
        let is_managers = hierarchy.is_empty() || hierarchy == "name=systemd";
        (is_managers && path.rsplit('/').next() == Some(unit)).then(|| path.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_who_is_inside() {
        let text = "4:memory:/x/a.scope\n1:name=systemd:/system.slice/a.scope\n0::/system.slice/a.scope\n";
        assert_eq!(inside(text, "a.scope").as_deref(), Some("/system.slice/a.scope"));
        assert_eq!(inside("0::/user.slice\n4:memory:/x/a.scope\n", "a.scope"), None);
        assert_eq!(inside("", "a.scope"), None);
    }
}

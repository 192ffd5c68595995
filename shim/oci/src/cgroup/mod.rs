//! The container's cgroup: made and limited before anybody enters it, entered by the container's first process itself, and worked on by every later command.
//!
//! Input: [`Wanted`], what the bundle and the command line say. Output: a [`Cgroup`], which goes into the container's state file and says all that a later
//! command needs. This module starts no process and changes no mount.
//!
//! On v1 the container has a directory in every hierarchy that is mounted, also in the named ones and in a v2 hierarchy beside them, as runc has it: tools look for
//! `linux.cgroupsPath` there. The first process enters by writing `0` to the `tasks` file of each: a thread that moves itself alone does not take the
//! lock on all forks and exits of the machine, and so does not wait for the RCU period before that lock, up to 14 ms. Into v2 it is born (`CLONE_INTO_CGROUP`).
//!
//! With `--systemd-cgroup` a manager of systemd makes the directories, and it wants a process for that: [`Cgroup::make`] then only computes where they will
//! be, and [`Cgroup::admit`] does the rest while the first process waits.

mod device_program;
mod devices;
mod dir;
mod doors;
mod error;
mod host;
mod limits;
mod live;
mod oom;
mod stats;
mod step;
mod systemd;
mod v1;
mod v2;

#[cfg(test)]
mod tests;

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use apex_sys::Errno;
use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use dir::Dir;
use host::{CgroupPath, Hierarchy};
use step::Step;

pub use doors::{Doors, SubPath};
pub use error::CgroupError;
pub use oom::{OomWord, Ooms};
pub use stats::{Blkio, BlkioEntry, Cpu, CpuSet, CpuUsage, Hugetlb, Memory, MemoryEntry, Pids, Stats, Throttling};

/// What the bundle and the command line want.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The container's id.
    pub id: &'a str,
    /// `linux.cgroupsPath`.
    pub path: Option<&'a Path>,
    /// `--systemd-cgroup`: the path is `slice:prefix:name`.
    pub systemd: bool,
    /// `linux.resources`.
    pub resources: Option<&'a LinuxResources>,
    /// Whether the caller is not root of the machine.
    pub is_rootless: bool,
    /// The bundle's annotations, of which `org.systemd.property.*` are read.
    pub annotations: Option<&'a HashMap<String, String>>,
}

/// Which interface limits.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// A hierarchy for each controller, and perhaps a v2 one beside them.
    V1,
    /// One hierarchy.
    V2,
    /// Rootless and unlimited, or not wanted: there is no cgroup.
    None,
}

/// The container's directory in one hierarchy.
#[derive(Serialize, Deserialize, Clone, Debug)]
struct Place {
    /// Controllers, or `name=...`; empty for v2.
    names: Vec<String>,
    /// Where the hierarchy is mounted.
    point: PathBuf,
    /// The directory.
    dir: PathBuf,
    #[serde(skip)]
    open: OnceCell<Arc<Dir>>,
}

impl Place {
    fn new(hierarchy: &Hierarchy, path: &CgroupPath) -> Place {
        Place {
            names: hierarchy.names.clone(),
            point: hierarchy.point.clone(),
            dir: hierarchy.dir(path),
            open: OnceCell::new(),
        }
    }

    fn is_v2(&self) -> bool {
        self.names.is_empty()
    }

    fn has(&self, controller: &str) -> bool {
        self.names.iter().any(|name| name == controller)
    }

    fn open(&self) -> Result<&Arc<Dir>, CgroupError> {
        if let Some(dir) = self.open.get() {
            return Ok(dir);
        }
        let dir = Dir::open(&self.dir).map_err(|errno| CgroupError::read(self.dir.clone(), errno))?;
        Ok(self.open.get_or_init(|| Arc::new(dir)))
    }
}

/// The cgroup of a container, as its state file keeps it.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Cgroup {
    version: Version,
    places: Vec<Place>,
    /// The scope of a systemd manager.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<systemd::Scope>,
    /// What `admit` is to do; not known to later commands.
    #[serde(skip)]
    pending: Option<Arc<Pending>>,
    #[serde(skip)]
    notes: Vec<String>,
}

/// What waits for systemd.
#[derive(Debug)]
struct Pending {
    resources: LinuxResources,
    is_rootless: bool,
    properties: systemd::Properties,
}

/// For `cgroup` mounts inside the container: one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Whether it is v2: then it is the only one, and is mounted at the destination itself.
    pub is_v2: bool,
    /// v1: the directory's name below the destination, that of the mount on the host.
    pub name: String,
    /// Further names, each a symbolic link to `name`: `cpu` and `cpuacct` for `cpu,cpuacct`.
    pub links: Vec<String>,
    /// Where the host has the hierarchy mounted.
    pub host_mount: PathBuf,
    /// The container's directory on the host: what a bind mount shows.
    pub dir: PathBuf,
    /// The options of a fresh mount of the hierarchy in the container's cgroup namespace; empty for v2.
    pub options: String,
}

impl Cgroup {
    /// [`Cgroup::plan`] and [`Cgroup::realise`] in one.
    ///
    /// # Errors
    /// As theirs.
    pub fn make(wanted: &Wanted<'_>) -> Result<Cgroup, CgroupError> {
        Cgroup::plan(wanted)?.realise(wanted)
    }

    /// Where the directories will be. It can be written down before anything is made, so that whoever comes after a killed create finds them.
    ///
    /// # Errors
    /// The path is none, the host has no cgroups, or systemd does not answer.
    pub fn plan(wanted: &Wanted<'_>) -> Result<Cgroup, CgroupError> {
        let is_limited = wanted.resources.is_some_and(limits::is_limited);
        if wanted.is_rootless && wanted.path.is_none() && !wanted.systemd && !is_limited {
            return Cgroup::none(wanted);
        }
        let hierarchies = host::look()?;
        let version = if host::is_unified(&hierarchies) { Version::V2 } else { Version::V1 };
        if wanted.systemd {
            return systemd::prepare(wanted, &hierarchies, version, wanted.resources.cloned().unwrap_or_default());
        }
        let path = CgroupPath::parse(wanted.path, wanted.id)?;
        let places = hierarchies.iter().map(|hierarchy| Place::new(hierarchy, &path)).collect();
        Ok(Cgroup { version, places, scope: None, pending: None, notes: Vec::new() })
    }

    /// Makes the directories and writes the limits, before anybody enters. An error removes what was made. What systemd makes waits for its process.
    ///
    /// A directory that is there already is used, as runc 1.1 does; not when it is frozen, and with a note when processes are in it.
    ///
    /// # Errors
    /// A directory or a limit is refused.
    pub fn realise(mut self, wanted: &Wanted<'_>) -> Result<Cgroup, CgroupError> {
        if self.version == Version::None || self.pending.is_some() {
            return Ok(self);
        }
        let resources = wanted.resources.cloned().unwrap_or_default();
        let mut made = Vec::new();
        let done = self.build(wanted.is_rootless, &mut made).and_then(|()| {
            self.set(&resources)?;
            self.set_devices(&resources, wanted.is_rootless)
        });
        if let Err(error) = done {
            // Deepest first; the error that is returned says more than a second one would.
            for dir in made.iter().rev() {
                let _ = dir::remove_empty(dir);
            }
            return Err(error);
        }
        Ok(self)
    }

    /// No cgroup: the container stays in that of its caller. Limits are refused; rules on devices have nobody to hold them, which who asks for no
    /// cgroup has to know.
    pub fn none(wanted: &Wanted<'_>) -> Result<Cgroup, CgroupError> {
        if wanted.resources.is_some_and(limits::is_limited) {
            return Err(CgroupError::None { verb: "be limited" });
        }
        Ok(Cgroup { version: Version::None, places: Vec::new(), scope: None, pending: None, notes: Vec::new() })
    }

    /// Makes the directories; those that are there are looked at.
    fn build(&mut self, is_rootless: bool, made: &mut Vec<PathBuf>) -> Result<(), CgroupError> {
        let mut refused = None;
        let mut kept = Vec::with_capacity(self.places.len());
        let mut is_checked = false;
        for place in std::mem::take(&mut self.places) {
            match dir::make(&place.dir, made) {
                Ok(true) => {}
                Ok(false) if !is_checked => {
                    is_checked = true;
                    self.look_at_existing(&place)?;
                }
                Ok(false) => {}
                Err((dir, Errno::EACCES | Errno::EPERM | Errno::EROFS)) if is_rootless => {
                    refused.get_or_insert(dir);
                    continue;
                }
                Err((dir, errno)) => return Err(CgroupError::Make { dir, source: errno.into() }),
            }
            if place.has("freezer") || place.is_v2() {
                live::refuse_frozen(&place, made)?;
            }
            if place.has("cpuset") {
                live::inherit_cpuset(&place.dir, &place.point, made.last() == Some(&place.dir))?;
            }
            if place.is_v2() && self.version == Version::V2 {
                live::hand_down(&place.point, &place.dir);
            }
            kept.push(place);
        }
        self.places = kept;
        match refused {
            Some(dir) if self.places.iter().all(|place| self.version == Version::V1 && place.is_v2()) => {
                let uid = nix::unistd::geteuid().as_raw();
                Err(CgroupError::NotDelegated { dir, uid, source: Errno::EACCES.into() })
            }
            Some(_) | None => Ok(()),
        }
    }

    fn look_at_existing(&mut self, place: &Place) -> Result<(), CgroupError> {
        let inside = dir::procs(&place.dir)?.len();
        if inside > 0 {
            self.notes.push(format!(
                "container's cgroup is not empty: {inside} process(es) found in {}; they share its limits, and `kill --all` and `delete --force` reach them",
                place.dir.display()
            ));
        }
        Ok(())
    }

    /// Things a person should know that are no failure: limits without effect here, a cgroup that others use.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Which interface limits the container.
    pub fn version(&self) -> Version {
        self.version
    }

    fn steps(&self, resources: &LinuxResources, notes: &mut Vec<String>) -> Result<Vec<Step>, CgroupError> {
        match self.version {
            Version::V1 => v1::steps(resources, notes),
            Version::V2 => v2::steps(resources, notes),
            Version::None if limits::is_limited(resources) => Err(CgroupError::None { verb: "be limited" }),
            Version::None => Ok(Vec::new()),
        }
    }

    fn set(&mut self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let mut notes = Vec::new();
        self.carry_out(&self.steps(resources, &mut notes)?)?;
        self.notes.append(&mut notes);
        Ok(())
    }

    fn carry_out(&self, steps: &[Step]) -> Result<(), CgroupError> {
        for step in steps {
            match self.place_of(step.controller()) {
                Some(place) => step.carry_out(place.open()?)?,
                None if step.is_optional() => {}
                None => {
                    let (file, value) = step.words();
                    let controller = step.controller().to_owned();
                    return Err(CgroupError::NoController { controller, file, value });
                }
            }
        }
        Ok(())
    }

    /// Where a controller is.
    fn place_of(&self, controller: &str) -> Option<&Place> {
        self.places.iter().find(|place| match self.version {
            Version::V2 => place.is_v2(),
            Version::V1 | Version::None => place.has(controller),
        })
    }

    fn v2(&self) -> Option<&Place> {
        self.places.iter().find(|place| place.is_v2())
    }

    /// A rootless caller may not say which devices; the kernel lets it make none, and there the permissions of the files hold.
    fn set_devices(&self, resources: &LinuxResources, is_rootless: bool) -> Result<(), CgroupError> {
        if is_rootless {
            return Ok(());
        }
        let rules = devices::rules(resources.devices().as_deref().unwrap_or_default())?;
        match (self.version, self.place_of("devices")) {
            (Version::None, _) => Ok(()),
            (Version::V2, Some(place)) => device_program::set(place.open()?, &rules),
            (Version::V1, Some(place)) => devices::set_v1(place.open()?, &rules),
            // A v1 host may leave its devices hierarchy out; the v2 one beside it can ask a program all the same.
            (Version::V1 | Version::V2, None) => match self.v2() {
                Some(place) => device_program::set(place.open()?, &rules),
                None => Err(CgroupError::NoController {
                    controller: "devices".to_owned(),
                    file: "devices.deny".to_owned(),
                    value: "a".to_owned(),
                }),
            },
        }
    }

    /// Whether [`Cgroup::admit`] has something to do, for which the first process must wait.
    pub fn needs_admission(&self) -> bool {
        self.pending.is_some()
    }

    /// What only the outside can do for a first process that waits: the scope of systemd, and then its limits. Nothing otherwise.
    pub fn admit(&mut self, pid: i32) -> Result<(), CgroupError> {
        let Some(pending) = self.pending.take() else {
            return Ok(());
        };
        systemd::admit(self, &pending, pid)
    }

    /// Changes limits: `update`. Device rules stay as they are.
    pub fn limit(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let resources = &live::complete(self, resources)?;
        let steps = self.steps(resources, &mut Vec::new())?;
        if let Some(scope) = &self.scope {
            // The manager writes its own idea of the limits when it reloads: it is told first.
            scope.update(resources, self.version)?;
        }
        self.carry_out(&steps)
    }

    /// For a mount of type `cgroup` inside the container: v1 without a v2 hierarchy beside it, which runc shows neither.
    pub fn views(&self) -> Vec<View> {
        self.places.iter().filter(|place| place.is_v2() == (self.version == Version::V2)).map(view).collect()
    }

    /// The last name of its directories, the same in each hierarchy; `None` where there are none.
    pub fn name(&self) -> Option<String> {
        let dir = &self.places.first()?.dir;
        dir.file_name().map(|name| name.to_string_lossy().into_owned())
    }

    /// The container's directory for each controller (`cgroup_paths` in runc's state); v2 stands under the empty name.
    pub fn paths(&self) -> BTreeMap<String, PathBuf> {
        let of = |place: &Place| {
            let names = if place.is_v2() { vec![String::new()] } else { place.names.clone() };
            names.into_iter().map(|name| (name, place.dir.clone())).collect::<Vec<_>>()
        };
        self.places.iter().flat_map(of).collect()
    }
}

fn view(place: &Place) -> View {
    let name = place.point.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let short = place.names.iter().map(|it| it.strip_prefix("name=").unwrap_or(it));
    let links =
        if place.names.len() > 1 { short.filter(|it| *it != name).map(str::to_owned).collect() } else { Vec::new() };
    let joined = place.names.join(",");
    let options = if joined.starts_with("name=") { format!("none,{joined}") } else { joined };
    View { is_v2: place.is_v2(), name, links, host_mount: place.point.clone(), dir: place.dir.clone(), options }
}

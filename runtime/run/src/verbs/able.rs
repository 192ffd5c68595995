//! A host that lacks no layer, for verbs that plan and run nothing: what a policy says does not depend on who asks.
//!
//! Input: the real host, for paths, variables and ids. Output: the same, with every facility to be had.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use apex_core::host::{CgroupSupport, Host, PathFact};
use apex_core::plan::CgroupPlan;
use apex_core::planner::LANDLOCK_SCOPES;

/// See the module.
pub struct Able<'h>(pub &'h dyn Host);

impl Host for Able<'_> {
    fn path(&self, path: &Path, follow: bool) -> PathFact {
        self.0.path(path, follow)
    }

    fn real(&self, path: &Path) -> PathBuf {
        self.0.real(path)
    }

    fn names(&self, dir: &Path) -> Option<Vec<OsString>> {
        self.0.names(dir)
    }

    fn landlock_abi(&self) -> u32 {
        self.0.landlock_abi().max(LANDLOCK_SCOPES)
    }

    fn cgroup(&self, _: &CgroupPlan) -> CgroupSupport {
        CgroupSupport::SystemdUser
    }

    fn has_time_namespaces(&self) -> bool {
        true
    }

    fn caller(&self) -> (u32, u32) {
        self.0.caller()
    }

    fn gives_host_ids(&self) -> bool {
        self.0.gives_host_ids()
    }

    fn env(&self, name: &str) -> Option<String> {
        self.0.env(name)
    }

    fn cwd(&self) -> PathBuf {
        self.0.cwd()
    }
}

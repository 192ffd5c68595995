//! A cgroup v2 directory without limits, by which a watched sandbox is recognised and can be frozen. It stands beside the limits where
//! those are on v1 or where a plan has none.

use std::os::fd::BorrowedFd;

use super::error::CgroupError;
use super::{dir, look, v2};

/// The directory. Dropped, it is removed; the rules of [`super::Cgroup`] hold: made, locked, swept and removed in the same way.
#[derive(Debug)]
pub struct Beside(v2::Group);

impl Beside {
    /// Makes it in our own v2 cgroup or the nearest one above it that we may write. `None` when this host or user has none.
    pub fn make() -> Result<Option<Beside>, CgroupError> {
        let Some(parent) = look::writable_v2() else { return Ok(None) };
        let mut attempts = 0;
        loop {
            attempts += 1;
            match v2::create_bare(&parent, &dir::fresh_name()) {
                Err(CgroupError::NameTaken { .. }) if attempts < super::NAME_ATTEMPTS_MAX => {}
                made => return made.map(|group| Some(Beside(group))),
            }
        }
    }

    /// The directory: to clone into, and to attach programs to.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.dir.fd()
    }

    pub(super) fn dir(&self) -> &dir::Dir {
        &self.0.dir
    }

    /// Stops every process inside, or lets them go on.
    pub fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        v2::freeze(&self.0.dir, frozen)
    }

    /// Removes it, and a few that killed runs left beside it.
    pub fn remove(self) -> Result<(), CgroupError> {
        self.0.remove()
    }
}

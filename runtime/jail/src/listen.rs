//! The listener of a recording sandbox.
use apex_core::plan::Plan;
use apex_core::refusal::Refusal;
use apex_sys::Errno;
use apex_sys::process::Pid;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub struct Listener {
    fd: OwnedFd,
}
impl Listener {
    pub fn take(_plan: &Plan, _pid: Pid, _number: i32) -> Result<Option<Listener>, Errno> {
        Ok(None)
    }
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
    pub fn serve(&mut self) -> bool {
        false
    }
    pub fn close(self) -> Listener {
        self
    }
    pub fn into_refusals(self) -> Vec<Refusal> {
        Vec::new()
    }
}

//! Namespaces that are made ahead, by a process of their own, while the launcher still plans: the network namespace, the dearest step of a start, and
//! the user namespace through which the owners of granted files are translated.
//!
//! Only for root with host ids to give: it may enter a namespace that another process made. The network namespace then belongs to the
//! translating user namespace instead of the sandbox's own, so that no capability inside means anything to it; a policy that keeps capabilities
//! gets one of its own in the usual way. Nothing is weaker when this fails: the start ends with the reason.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, OwnedFd};

use apex_core::plan::Plan;
use apex_core::policy::{Network, Policy};
use apex_sys::holder::Holder;
use apex_sys::{Errno, fs, process};
use nix::libc::{CLONE_NEWNET, O_RDONLY};

use crate::host::c_path;
use crate::launch::write_map;
use crate::step::{Failure, Step};

/// The process and what it holds. Dropped, it is ended; the namespaces last as long as they are used.
#[derive(Debug)]
pub struct Ahead {
    holder: Holder,
    has_network: bool,
    /// The launcher's own network namespace, while it is in the other.
    own_network: Option<OwnedFd>,
}

impl Ahead {
    /// Begins what a plan of this policy will want.
    pub(crate) fn of_policy(policy: &Policy) -> Result<Ahead, Errno> {
        Self::start(policy.network == Network::None && policy.capabilities.is_empty())
    }

    pub(crate) fn start(has_network: bool) -> Result<Ahead, Errno> {
        Ok(Ahead { holder: Holder::start(has_network)?, has_network, own_network: None })
    }

    /// The user namespace, in which files of the user and group `from` belong to the host id `to`.
    pub fn idmap(&self, from: (u32, u32), to: u32) -> Result<OwnedFd, Errno> {
        let pid = self.holder.pid();
        write_map(pid, "uid_map", from.0, to)?;
        write_map(pid, "gid_map", from.1, to)?;
        fs::open(fs::cwd(), &c_path(format!("/proc/{pid}/ns/user").as_ref())?, O_RDONLY, 0)
    }

    /// Takes the launcher into the network namespace, so that the sandbox is born in it. `false` when there is none for this plan.
    pub fn enter_network(&mut self, plan: &Plan) -> Result<bool, Failure> {
        if !self.has_network || plan.network != Network::None || !plan.capabilities.is_empty() {
            return Ok(false);
        }
        let failed = Failure::at(Step::CreateNamespaces, 0);
        self.holder.wait().map_err(&failed)?;
        let own = fs::open(fs::cwd(), c"/proc/self/ns/net", O_RDONLY, 0).map_err(&failed)?;
        process::enter_namespaces(self.holder.pidfd(), CLONE_NEWNET).map_err(&failed)?;
        self.own_network = Some(own);
        Ok(true)
    }

    /// Takes the launcher back.
    pub fn leave_network(&mut self) -> Result<(), Failure> {
        // Left open, like the trees.
        let Some(own) = self.own_network.take().map(ManuallyDrop::new) else { return Ok(()) };
        process::enter_namespaces(own.as_fd(), CLONE_NEWNET).map_err(Failure::at(Step::CreateNamespaces, 0))
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // On error paths only, where a second error helps nobody.
        let _ = self.leave_network();
    }
}

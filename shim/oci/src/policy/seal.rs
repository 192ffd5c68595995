//! The part of a narrowing that the init puts on itself.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use apex_core::host::Host;
use apex_core::layer::{Layer, Requirement};
use apex_core::plan::LandlockPlan;
use apex_core::planner::{LANDLOCK_ALONE, LANDLOCK_SCOPES, tree_rules};
use apex_core::policy::Network;
use apex_jail::host::LiveHost;
use apex_jail::seccomp::Program;
use apex_sys::{Errno, prctl};

use super::{Narrowing, PolicyError, network};

/// What is ready to be put in force.
#[derive(Debug)]
pub struct Prepared<'a> {
    landlock: Option<OwnedFd>,
    program: Option<&'a Program>,
}

impl Narrowing {
    /// Makes the rules, in the container's own tree: after the change of root and the last mount, while the init may still look everywhere. `program` is the
    /// absolute path of the file that will be executed.
    ///
    /// # Errors
    /// A rule that the tree or Landlock has nothing for, and a network where the policy has none.
    pub fn prepare(&self, program: &Path) -> Result<Prepared<'_>, PolicyError> {
        if self.policy.network == Network::None {
            network::check_empty()?;
        }
        let landlock = if self.policy.layers.get(&Layer::Landlock) == Some(&Requirement::Off) {
            None
        } else {
            Some(self.ruleset(program)?)
        };
        Ok(Prepared { landlock, program: self.program.as_ref() })
    }

    fn ruleset(&self, program: &Path) -> Result<OwnedFd, PolicyError> {
        let host = LiveHost::at("/".into());
        let abi = host.landlock_abi();
        if abi < LANDLOCK_ALONE {
            return Err(PolicyError::Landlock { needed: LANDLOCK_ALONE, found: abi });
        }
        let files = &self.policy.filesystem;
        // The kernel's names of what is open tell where links lead, and a denied path must not be reached over another.
        let keeps = !files.deny.is_empty() || !files.hide.is_empty();
        if keeps && !has_proc() {
            return Err(PolicyError::NoProc);
        }
        let rules = tree_rules(&self.policy, program, &host)?;
        let plan = LandlockPlan { abi, rules, tcp_refused: false, scoped: self.scoped && abi >= LANDLOCK_SCOPES };
        apex_jail::landlock::ruleset(&plan, &[], true).map_err(|failure| {
            let rule = plan.rules.get(failure.index).map_or_else(|| "/".into(), |rule| rule.path.clone());
            PolicyError::Rule { rule, source: failure.errno }
        })
    }
}

fn has_proc() -> bool {
    let found = nix::sys::statfs::statfs("/proc");
    found.is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::PROC_SUPER_MAGIC)
}

impl Prepared<'_> {
    /// Puts it in force on the calling process, which has no_new_privs ([`Narrowing::narrow`] sees to that). Right before the bundle's own filter and exec: nothing that the
    /// policy does not grant can be opened any more. Allocates nothing.
    ///
    /// # Errors
    /// The kernel's answer; nothing may be executed then.
    pub fn enforce(&self) -> Result<(), Errno> {
        if let Some(ruleset) = &self.landlock {
            prctl::landlock_restrict(ruleset.as_fd())?;
        }
        if let Some(program) = self.program {
            apex_jail::seccomp::load(program, false)?;
        }
        Ok(())
    }
}

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
use apex_jail::streams::StreamFile;
use apex_sys::{Errno, fs, prctl};
use nix::libc::{S_IFCHR, S_IFIFO, S_IFREG};

use super::{Narrowing, PolicyError, network};

/// What is ready to be put in force.
#[derive(Debug)]
pub struct Prepared<'a> {
    landlock: Option<OwnedFd>,
    program: Option<&'a Program>,
}

impl Narrowing {
    /// Makes the rules, in the container's own tree: after the change of root and the last mount, while the init may still look everywhere, and with the container's
    /// standard streams in their places. `program` is the absolute path of the file that will be executed.
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
        apex_jail::landlock::ruleset(&plan, &streams(), true).map_err(|failure| {
            let rule = plan.rules.get(failure.index).map_or_else(|| "/".into(), |rule| rule.path.clone());
            PolicyError::Rule { rule, source: failure.errno }
        })
    }
}

/// The standard streams that are files, devices or FIFOs with a name: programs open them anew by their names in /dev and /proc, as they were opened. Pipes are in
/// no tree, and nothing is asked of Landlock about them.
fn streams() -> Vec<StreamFile> {
    let file = |number: i32| {
        let stat = fs::stat_number(number).ok()?;
        let is_named = || std::fs::read_link(format!("/proc/self/fd/{number}")).is_ok_and(|name| name.is_absolute());
        let is_file = stat.is(S_IFREG) || stat.is(S_IFCHR) || (stat.is(S_IFIFO) && is_named());
        let mode = fs::status_flags(number).ok()?;
        is_file.then_some(StreamFile { number, file: (stat.device, stat.inode), mode })
    };
    (0..=2).filter_map(file).collect()
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

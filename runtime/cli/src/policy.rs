//! `apex policy check`: a policy resolved here, as `apex-run` would. Input: a file. Output: what it is merged from, or why it is refused. Asks no daemon and looks
//! at no host beyond the files that the policy is made of.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use apex_core::policy::{self, Flags, Inputs, Mode, Policy};
use apex_core::seccomp::groups;

use crate::request::load;

/// What the administrator adds.
const SYSTEM_CONFIG: &str = "/etc/apex";

/// The policy that the file comes to, on top of mode and profile.
///
/// # Errors
/// Those of the resolution: each names the rule with its file and line.
pub fn resolve(file: &Path, mode: Option<&str>, profile: Option<String>) -> Result<Policy> {
    let cwd = std::env::current_dir().context("looking up the working directory; change to one that exists")?;
    let is_absolute = |dir: &PathBuf| dir.is_absolute();
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(is_absolute);
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(is_absolute);
    let config = config.or_else(|| home.as_ref().map(|home| home.join(".config")));
    let groups: Vec<&str> = groups::iter().map(|group| group.name).collect();
    let modes = [Mode::Isolation, Mode::Development, Mode::Hybrid];
    let inputs = Inputs {
        mode: modes.into_iter().find(|known| Some(known.name()) == mode),
        profile,
        policy_file: Some(file.to_owned()),
        flags: Flags::default(),
        home,
        cwd,
        tmpdir: std::env::var_os("TMPDIR").map(PathBuf::from),
        system_config: Some(PathBuf::from(SYSTEM_CONFIG)),
        user_config: config.map(|dir| dir.join("apex")),
        groups: &groups,
    };
    Ok(policy::resolve(&inputs, &mut |path: &Path| load(path))?)
}

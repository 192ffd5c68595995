//! `--learn`: the policy of a run that is learned from, and what the prober needs to know about it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use apex_core::learn::{Place, Previous, Setting};
use apex_core::policy::{self, Flags, Inputs, Policy, Sources};
use apex_core::watch::Learn;

/// The policy that the command runs under, and the way to what is learned.
pub fn resolve(inputs: &Inputs<'_>, file: &Path, load: &mut dyn Sources) -> Result<(Policy, Option<Learn>)> {
    let (run, bounds) = policy::resolve_for_learning(inputs, load)?;
    // What the learned policy stands on: its mode and profile, nothing of this command line.
    let alone = Inputs { mode: Some(run.mode), policy_file: None, flags: Flags::default(), ..inputs.clone() };
    let base = policy::resolve(&alone, load)?;
    let place = Place { profile: inputs.profile.clone(), home: inputs.home.clone(), cwd: inputs.cwd.clone() };
    let setting = Setting::new(place, &base, &run, bounds);
    let file: PathBuf = inputs.cwd.join(file);
    // Before anything runs: a file that cannot be merged into would be found out at the end.
    if let Some(text) = load.load(&file).with_context(|| format!("reading {}", file.display()))? {
        Previous::read(&text, &file.to_string_lossy(), &setting)?;
    }
    let name = file.to_str().with_context(|| format!("{}: the name of the policy is not UTF-8", file.display()))?;
    Ok((run, Some(Learn { file: name.to_owned(), setting: Box::new(setting) })))
}

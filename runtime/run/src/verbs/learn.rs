//! `--learn`: the policy of a run that is learned from, and what the prober needs to know about it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use apex_core::learn::{Place, Previous, Setting};
use apex_core::policy::{self, Flags, Inputs, LEARNING, Policy, PolicyError, Sources};
use apex_core::watch::Learn;
use apex_jail::launch::Ending;
use apex_run::escape;

/// The policy that the command runs under, and the way to what is learned.
pub fn resolve(inputs: &Inputs<'_>, file: &Path, load: &mut dyn Sources) -> Result<(Policy, Option<Learn>)> {
    let file: PathBuf = inputs.cwd.join(file);
    let name = file.to_str().with_context(|| format!("{}: the name of the policy is not UTF-8", file.display()))?;
    let text = load.load(&file).map_err(|error| anyhow!("{name}: {error}; learn into another file"))?;
    // A run that names no profile is one more of the profile that the file was learned with.
    let learned = text.as_deref().map(|text| Previous::profile(text, name)).transpose()?.flatten();
    let profile = inputs.profile.clone().or(learned);
    let (run, bounds) = policy::resolve_for_learning(inputs, load).map_err(|error| elsewhere(error, &inputs.cwd))?;
    if !run.level.is_full() {
        bail!(
            "--learn learns in a root that shows all and keeps nothing, which isolation level {} has not; leave --level out",
            run.level
        );
    }
    // What the learned policy stands on: its mode and profile, nothing of this command line.
    let alone = Inputs {
        mode: Some(run.mode),
        profile: profile.clone(),
        policy_file: None,
        flags: Flags::default(),
        ..inputs.clone()
    };
    let base = policy::resolve(&alone, load)?;
    let config = [&inputs.system_config, &inputs.user_config].into_iter().flatten().cloned().collect();
    let place = Place { profile, home: inputs.home.clone(), cwd: inputs.cwd.clone(), config };
    let setting = Setting::new(place, &base, &run, bounds);
    // Before anything runs: a file that cannot be merged into would be found out at the end.
    if let Some(text) = text {
        Previous::read(&text, name, &setting)?;
    }
    Ok((run, Some(Learn { file: name.to_owned(), setting: Box::new(setting) })))
}

/// What is said at the end. A run that failed has shown the way to its failure.
pub fn told(learn: &Learn, ending: Ending) -> String {
    let file = escape::text(&learn.file);
    let end = match ending {
        Ending::Code(0) => return format!("learned into {file}; try it with --policy {file}"),
        Ending::Code(code) => format!("the command ended with {code}"),
        Ending::Signal(signal) => format!("the command was ended by signal {signal}"),
        Ending::Vanished(_) | Ending::TimedOut | Ending::Caught | Ending::OutOfMemory => {
            "the command was ended before it was through".to_owned()
        }
    };
    format!("learned into {file}, but {end}: the policy may lack what a good run needs")
}

/// The rules of learning are nobody's to edit: what they grant too much of is the directory that the run starts in.
fn elsewhere(error: PolicyError, cwd: &Path) -> anyhow::Error {
    match &error {
        PolicyError::Ceiling { at, limit, mode, .. } if at.source == LEARNING => anyhow!(
            "--learn shows the working directory to the command, writable on an overlay, and {} cannot be: {limit} (ceiling of mode {}); start from another directory",
            cwd.display(),
            mode.name()
        ),
        _ => error.into(),
    }
}

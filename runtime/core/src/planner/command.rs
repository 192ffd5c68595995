//! The program: where it is, with what environment and in which directory it starts.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{PlanError, shown};
use crate::host::{Host, PathFact};
use crate::plan::{CommandPlan, Request};
use crate::policy::{Environment, normalise};

/// Where programs are looked for when the environment says nothing (execvp(3)).
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// What of the host a sandbox sees.
pub(super) trait View {
    /// Whether a path of the host is visible under the same name.
    fn shows(&self, path: &Path) -> bool;
    /// Whether a path inside is for something of the host to fill.
    fn binds(&self, path: &Path) -> bool;
    /// Whether a program can start in this directory.
    fn has(&self, path: &Path) -> bool;
    /// Grants the command's own file, which no rule covers.
    fn grant_command(&mut self, file: &Path) -> Result<(), PlanError>;
}

/// The variables that go in, as `K=V`, sorted by name.
pub(super) fn environment(wanted: &Environment, host: &dyn Host) -> Vec<OsString> {
    let passed = wanted.pass.iter().filter(|name| !wanted.set.contains_key(*name));
    let passed = passed.filter_map(|name| host.env(name).map(|value| format!("{name}={value}")));
    let set = wanted.set.iter().map(|(name, value)| format!("{name}={value}"));
    let mut all: Vec<OsString> = passed.chain(set).map(OsString::from).collect();
    all.sort();
    all.dedup();
    all
}

/// Sets a variable of Apex's own, whatever the policy says of it.
pub(super) fn set(env: &mut Vec<OsString>, (name, value): (&str, &str)) {
    env.retain(|pair| !pair.as_bytes().starts_with(format!("{name}=").as_bytes()));
    env.push(OsString::from(format!("{name}={value}")));
    env.sort();
}

/// Paths to try for the command. A command that no rule shows is granted as a single file.
pub(super) fn locate(
    request: &Request,
    env: &[OsString],
    mounts: &mut impl View,
    host: &dyn Host,
) -> Result<Vec<PathBuf>, PlanError> {
    let name = request.argv.first().ok_or(PlanError::NoCommand)?;
    if name.as_bytes().contains(&b'/') {
        // Like a shell that stands in the directory where the program will start.
        let start = request.workdir.as_ref().map_or_else(|| host.cwd(), |dir| absolute(dir, host));
        let path = absolute(&start.join(name), host);
        if !mounts.binds(&path) && host.path(&path, true) == PathFact::File {
            mounts.grant_command(&path)?;
        }
        return Ok(vec![path]);
    }
    let search = variable(env, "PATH").unwrap_or_else(|| DEFAULT_PATH.to_owned());
    let is_file = |path: &PathBuf| host.path(path, true) == PathFact::File;
    if let Some(found) = beneath(&search, name).filter(|path| mounts.shows(path)).find(is_file) {
        return Ok(vec![found]);
    }
    let outside = host.env("PATH").unwrap_or_default();
    if let Some(found) = beneath(&outside, name).find(is_file) {
        if !mounts.shows(&found) {
            mounts.grant_command(&found)?;
        }
        return Ok(vec![found]);
    }
    Err(PlanError::CommandNotFound { name: name.to_string_lossy().into_owned(), path: search })
}

/// Puts the pieces together; the mounts tell which directory the program can start in.
pub(super) fn finish(
    candidates: Vec<PathBuf>,
    request: &Request,
    env: Vec<OsString>,
    mounts: &impl View,
    host: &dyn Host,
) -> Result<CommandPlan, PlanError> {
    let workdir = match &request.workdir {
        Some(asked) => {
            let path = absolute(asked, host);
            if !mounts.has(&path) {
                return Err(PlanError::WorkdirNotGranted { path: shown(&path) });
            }
            vec![path]
        }
        None => {
            let home = variable(&env, "HOME").map(PathBuf::from);
            let mut wanted: Vec<PathBuf> =
                [Some(host.cwd()), home].into_iter().flatten().filter(|dir| mounts.has(dir)).collect();
            wanted.truncate(1);
            wanted.push(PathBuf::from("/"));
            wanted
        }
    };
    Ok(CommandPlan { candidates, argv: request.argv.clone(), env, workdir })
}

/// One more command in the sandbox of `first`: its words, its variables over those of the first, where it starts. `None` without a word.
pub fn another(
    first: &CommandPlan,
    argv: &[OsString],
    environment: &[OsString],
    workdir: Option<&Path>,
) -> Option<CommandPlan> {
    let name_of = |pair: &OsString| pair.as_bytes().split(|byte| *byte == b'=').next().unwrap_or_default().to_vec();
    let is_replaced = |pair: &&OsString| environment.iter().any(|other| name_of(other) == name_of(pair));
    let mut env: Vec<OsString> = first.env.iter().filter(|pair| !is_replaced(pair)).cloned().collect();
    env.extend(environment.iter().cloned());
    let start = first.workdir.first().map_or(Path::new("/"), PathBuf::as_path);
    let start = workdir.map_or(start.to_owned(), |dir| normalise(&start.join(dir)));
    let name = argv.first()?;
    let candidates = if name.as_bytes().contains(&b'/') {
        vec![normalise(&start.join(name))]
    } else {
        let search = variable(&env, "PATH").unwrap_or_else(|| DEFAULT_PATH.to_owned());
        beneath(&search, name).collect()
    };
    let workdir = if workdir.is_some() { vec![start] } else { first.workdir.clone() };
    Some(CommandPlan { candidates, argv: argv.to_vec(), env, workdir })
}

fn beneath<'a>(search: &'a str, name: &'a OsStr) -> impl Iterator<Item = PathBuf> + 'a {
    search.split(':').filter(|dir| dir.starts_with('/')).map(move |dir| Path::new(dir).join(name))
}

fn variable(env: &[OsString], name: &str) -> Option<String> {
    env.iter().find_map(|pair| pair.to_str()?.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
}

/// Absolute and without `.` and `..`, by the letters alone: the sandbox has no view in which to follow links.
fn absolute(path: &Path, host: &dyn Host) -> PathBuf {
    normalise(&host.cwd().join(path))
}

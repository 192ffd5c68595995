//! Everything that concludes from events: the detectors' rules, built-in, of the administrator and of the user, and the baseline of the
//! run's profile and policy.
//!
//! Input: events in the order in which they were read. Output: findings. Rules are read before the sandbox stands; one that cannot be read
//! stops the start, since somebody counts on it.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use apex_core::detect::{Engine, FILE_SIZE_MAX, Forgotten, Rules};
use apex_core::event::Event;
use apex_core::finding::Finding;
use apex_core::watch::Begin;

use crate::model::watched::Watched;

/// Files of rules in one directory.
const FILES_MAX: usize = 256;

/// The engines of one sandbox.
pub struct Engines {
    detectors: Engine,
    baseline: Option<Watched>,
}

impl Engines {
    /// Reads what they need.
    pub fn new(begin: &Begin) -> Result<Engines> {
        let mut rules = Rules::built_in();
        for directory in &begin.rules {
            add_directory(&mut rules, Path::new(directory))?;
        }
        let detectors = Engine::new(rules, begin.start.profile.as_deref());
        Ok(Engines { detectors, baseline: Watched::open(begin)? })
    }

    /// What they conclude from an event.
    pub fn observe(&mut self, event: &Event) -> Vec<Finding> {
        let mut findings = self.detectors.observe(event);
        if let Some(baseline) = &mut self.baseline {
            findings.iter().for_each(|finding| baseline.found(finding));
            findings.extend(baseline.observe(event));
        }
        findings
    }

    /// What they conclude from the time that passes without an event: `now_ns` is the time since boot.
    pub fn tick(&mut self, now_ns: u64) -> Vec<Finding> {
        self.baseline.as_mut().map(|baseline| baseline.tick(now_ns)).unwrap_or_default()
    }

    /// What they conclude from the end of the run, and what people are to be told of it.
    pub fn finish(&mut self) -> (Vec<Finding>, Option<String>) {
        self.baseline.take().map(Watched::finish).unwrap_or_default()
    }

    /// What was forgotten for want of room, in words; `None` when nothing was.
    pub fn forgotten(&self) -> Option<String> {
        let Forgotten { processes, sequences, windows, holds } = self.detectors.forgotten();
        (processes + sequences + windows + holds > 0).then(|| {
            format!(
                "detectors had to forget {processes} processes, {sequences} sequences, {windows} counts and {holds} holds: what rests on \
                 them was not found"
            )
        })
    }
}

/// Adds the rules of a directory, in the order of the names; a directory that is not there has none.
fn add_directory(rules: &mut Rules, directory: &Path) -> Result<()> {
    for path in files(directory).with_context(|| format!("listing the rules in {}", directory.display()))? {
        let name = path.display().to_string();
        let text = read(&path).with_context(|| format!("reading the rules of {name}"))?;
        rules.add(Rules::parse(&name, &text)?)?;
    }
    Ok(())
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        // The cases of rules stand beside them.
        let is_cases = path.as_os_str().as_encoded_bytes().ends_with(b".cases.toml");
        if !is_cases && path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
        if files.len() > FILES_MAX {
            bail!("there are more than {FILES_MAX} files; put rules together");
        }
    }
    files.sort();
    Ok(files)
}

/// A regular file of bounded size.
fn read(path: &Path) -> Result<String> {
    // Before it is opened: opening a FIFO would wait for somebody to write.
    if !fs::metadata(path)?.is_file() {
        bail!("it is no regular file");
    }
    let mut text = String::new();
    fs::File::open(path)?.take(FILE_SIZE_MAX as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

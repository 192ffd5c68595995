//! What `apex-run` does beside running a command: the first word names it. A command of such a name is run behind `--`.
//!
//! The words that follow are those of the command line: the same options shape the policy, and what would be the command are the files.

pub mod able;
mod backtest;
mod export;
mod files;
pub mod learn;
pub mod overlay;

use std::ffi::{OsStr, OsString};

use anyhow::{Result, bail};
use apex_core::planner::PlanError;
use apex_run::options::{self, Options};

/// A verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// What a run left in its overlay.
    Diff,
    /// Applies it.
    Commit,
    /// Recorded events against a policy.
    Backtest,
    /// A policy in the words of others.
    Export,
    /// The words of others as a policy.
    Import,
}

impl Verb {
    /// The verb of this name.
    pub fn named(word: &OsStr) -> Option<Verb> {
        let verbs = [
            ("diff", Verb::Diff),
            ("commit", Verb::Commit),
            ("backtest", Verb::Backtest),
            ("export", Verb::Export),
            ("import", Verb::Import),
        ];
        verbs.into_iter().find(|(name, _)| word == *name).map(|(_, verb)| verb)
    }
}

/// A hint for who meant a verb and wrote options before it.
pub fn meant(error: anyhow::Error, command: &[OsString]) -> anyhow::Error {
    let first = command.first().map(OsString::as_os_str);
    match (error.downcast_ref(), first.filter(|first| Verb::named(first).is_some())) {
        (Some(PlanError::CommandNotFound { .. }), Some(verb)) => {
            let verb = verb.to_string_lossy().into_owned();
            error.context(format!(
                "`{verb}` is a verb as the first word only: apex-run {verb} [OPTIONS] ..; as a command"
            ))
        }
        _ => error,
    }
}

/// Does it.
pub fn run(verb: Verb, words: impl Iterator<Item = OsString>) -> Result<u8> {
    let words: Vec<OsString> = words.collect();
    match verb {
        Verb::Diff => overlay::diff(&options_of(words, "diff DIR [--json]")?),
        Verb::Commit => overlay::commit(&options_of(words, "commit DIR [PATH..] [--json]")?),
        Verb::Backtest => backtest::run(&options_of(words, "backtest --policy FILE EVENTS..")?),
        Verb::Export => export::export(words),
        Verb::Import => export::import(words),
    }
}

/// Options with at least one word behind them.
fn options_of(words: Vec<OsString>, usage: &str) -> Result<Options> {
    // `--json` may stand behind the files as well.
    let (flags, mut rest): (Vec<OsString>, Vec<OsString>) = words.into_iter().partition(|word| word == "--json");
    rest.splice(0..0, flags.into_iter().take(1));
    match options::parse(rest) {
        Err(options::OptionError::MissingCommand) => bail!("a file is missing; write apex-run {usage}"),
        other => Ok(other?),
    }
}

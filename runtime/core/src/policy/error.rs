//! Why a policy cannot be used. Every message names the rule, what is wrong with it and what is accepted instead.

use std::fmt;
use std::path::PathBuf;

use super::{IsolationLevel, Mode, Origin};

/// A policy that cannot be read, merged or allowed.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// A file that a flag or another file names is not there.
    #[error("{by}: cannot read policy `{}`: there is no such file; give a path that exists{}", path.display(), relative_hint(by))]
    Missing {
        /// The file.
        path: PathBuf,
        /// What names it.
        by: Origin,
    },
    /// A file is there and cannot be read.
    #[error("cannot read policy `{}`: {why}; make it readable for the caller or take it away", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says. Not named the source: whoever prints the chain of errors would say it twice.
        why: std::io::Error,
    },
    /// More text than a policy can sensibly have.
    #[error("{file}: the policy has {bytes} bytes; at most {max} are accepted")]
    TooLarge {
        /// The file.
        file: String,
        /// Its size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// A profile that is neither embedded nor in a configuration directory.
    #[error(
        "{by}: there is no profile `{name}`{} (built in: {}; others are read from {places})",
        did_you_mean(nearest),
        built_in_profiles()
    )]
    UnknownProfile {
        /// Its name.
        name: String,
        /// What names it.
        by: Origin,
        /// The embedded one with the most similar name.
        nearest: Option<String>,
        /// Where else was looked.
        places: String,
    },
    /// The text is not TOML.
    #[error("{at}: not valid TOML: {message}")]
    Syntax {
        /// Where.
        at: Origin,
        /// What the parser says.
        message: String,
    },
    /// A key that does not exist there.
    #[error("{at}: unknown key `{key}`{} (accepted here: {})", did_you_mean(nearest), listed(accepted))]
    UnknownKey {
        /// Where.
        at: Origin,
        /// The key.
        key: String,
        /// The valid key with the most similar name.
        nearest: Option<String>,
        /// All valid keys.
        accepted: Vec<String>,
    },
    /// A word that is not one of a fixed set.
    #[error("{at}: unknown value `{value}`{} (accepted here: {})", did_you_mean(nearest), listed(accepted))]
    UnknownWord {
        /// Where.
        at: Origin,
        /// The word.
        value: String,
        /// The valid word with the most similar name.
        nearest: Option<String>,
        /// All valid words.
        accepted: Vec<String>,
    },
    /// A group of system calls that does not exist.
    #[error(
        "{at}: there is no system call group `{group}`{} (policies/syscalls.toml lists them)",
        did_you_mean(nearest)
    )]
    UnknownGroup {
        /// Where.
        at: Origin,
        /// The group.
        group: String,
        /// The group with the most similar name.
        nearest: Option<String>,
    },
    /// A value of the wrong type, form or range.
    #[error("{at}: {message}")]
    Value {
        /// Where.
        at: Origin,
        /// What was found and what is accepted.
        message: String,
    },
    /// A rule that the isolation level has no layer for.
    #[error("{at}: asks for {asked}, which isolation level {level} cannot give: {why}; leave the rule out, or {}", stricter(*level))]
    AtLevel {
        /// Where.
        at: Origin,
        /// The level.
        level: IsolationLevel,
        /// What was asked for.
        asked: String,
        /// What is missing.
        why: &'static str,
    },
    /// A level that confines less than what was said before.
    #[error(
        "{at}: asks for isolation level {asked}, but {wider} says {level}, and a later rule can only ask for more; leave it out, or change that rule"
    )]
    LevelLowered {
        /// Where.
        at: Origin,
        /// What was asked for.
        asked: IsolationLevel,
        /// The rule before.
        wider: Origin,
        /// What it says.
        level: IsolationLevel,
    },
    /// Files that extend each other in a circle.
    #[error("{at}: `extends` leads in a circle: {}; remove one of these links", chain.join(" -> "))]
    Cycle {
        /// The link that closes the circle.
        at: Origin,
        /// The files, the first one also at the end.
        chain: Vec<String>,
    },
    /// More levels, files or rules than a policy can sensibly have.
    #[error("{at}: more than {max} {what}; merge or remove some")]
    TooMany {
        /// Where the bound was passed.
        at: Origin,
        /// Of what.
        what: &'static str,
        /// The bound.
        max: usize,
    },
    /// A rule that asks for more than its mode can ever give.
    #[error("{at}: asks for {asked}, but {limit} (ceiling of mode {}, {ceiling}); {}", mode.name(), remedy(*mode))]
    Ceiling {
        /// The rule.
        at: Origin,
        /// What it asks for.
        asked: String,
        /// What the ceiling says.
        limit: String,
        /// The mode.
        mode: Mode,
        /// The file that holds the ceiling.
        ceiling: String,
    },
    /// A layer that every sandbox stands on is not required.
    #[error("{at}: layer {layer} cannot be {asked}: no sandbox exists without it, in any mode; remove the rule")]
    Foundation {
        /// The rule.
        at: Origin,
        /// The layer.
        layer: crate::layer::Layer,
        /// `optional` or `off`.
        asked: &'static str,
    },
}

impl PolicyError {
    pub(crate) fn value(at: &Origin, message: impl fmt::Display) -> Self {
        PolicyError::Value { at: at.clone(), message: message.to_string() }
    }
}

/// The name of `known` that is most like `word`, when one is like it at all.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    // A typing error, not another word: at least 0.7 of the letters in place (Jaro-Winkler).
    const SIMILAR: f64 = 0.7;
    let mut best: Option<(f64, &str)> = None;
    for name in known {
        let score = strsim::jaro_winkler(word, name);
        if score >= SIMILAR && best.is_none_or(|(found, _)| score > found) {
            best = Some((score, name));
        }
    }
    best.map(|(_, name)| name.to_owned())
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!(", did you mean `{name}`?")).unwrap_or_default()
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        return "nothing".to_owned();
    }
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn built_in_profiles() -> String {
    listed(&super::PROFILES.map(|(name, _)| name.to_owned()))
}

fn relative_hint(by: &Origin) -> &'static str {
    if by.line == 0 { "" } else { " (a relative one starts at the directory of this file)" }
}

fn remedy(mode: Mode) -> &'static str {
    match mode {
        Mode::Isolation => "remove the rule or take a wider mode (`--mode hybrid` or `--mode development`)",
        Mode::Hybrid => "remove the rule or take a wider mode (`--mode development`)",
        Mode::Development => "remove the rule; no mode is wider",
    }
}

/// The levels that may be able to.
fn stricter(level: IsolationLevel) -> &'static str {
    match level {
        IsolationLevel::None => "take `--level partial` or `--level full`",
        IsolationLevel::Partial | IsolationLevel::Full => "take `--level full`",
    }
}

//! The command line: words to [`Options`].
//!
//! Input: the arguments after the program's name. Output: [`Options`], or an [`OptionError`] that ends `apex-run` with code 125.
//! Sizes, durations, limits and grants stay as they were written, since `apex_core::policy` parses them the same way for files.
//! Nothing here looks at the host.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use apex_core::layer::Layer;
use apex_core::policy::{Flags, IsolationLevel, Mode, Network, Tty};
use apex_core::watch::{self, Baseline, Level, Reaction};
use lexopt::{Arg, Parser};
use thiserror::Error;

mod values;

use values::{bad, descriptor, kept, layer, number, path, shown, sink, text, tty_size, variable, variable_name, word};

use crate::table::{Kind, Row, Switch, TABLE, Value};

/// What a command line asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// What to do.
    pub action: Action,
    /// `--json`.
    pub json: bool,
    /// `--why`.
    pub why: bool,
    /// `--receipt`.
    pub receipt: Option<Sink>,
    /// `--watch`; see [`Options::level`].
    pub watch: Option<Level>,
    /// `--events`, in order.
    pub events: Vec<watch::Sink>,
    /// `--findings`, in order.
    pub findings: Vec<watch::Sink>,
    /// `--on-finding`.
    pub on_finding: Option<Reaction>,
    /// `--baseline`.
    pub baseline: Option<Baseline>,
    /// `--summary`.
    pub summary: bool,
    /// `--learn`.
    pub learn: Option<PathBuf>,
    /// `--overlay`.
    pub overlay: Option<PathBuf>,
    /// `--mode`.
    pub mode: Option<Mode>,
    /// `--level`.
    pub isolation: Option<IsolationLevel>,
    /// `--profile`.
    pub profile: Option<String>,
    /// `--policy`.
    pub policy: Option<PathBuf>,
    /// `--optional`, in order.
    pub optional: Vec<Layer>,
    /// `--ro`, in order.
    pub ro: Vec<OsString>,
    /// `--rw`, in order.
    pub rw: Vec<OsString>,
    /// `--tmpfs`, in order.
    pub tmpfs: Vec<OsString>,
    /// `--deny`, in order.
    pub deny: Vec<OsString>,
    /// `--net`.
    pub net: Option<Network>,
    /// `--env`, in order.
    pub env: Vec<(String, String)>,
    /// `--pass-env`, in order.
    pub pass_env: Vec<String>,
    /// `--workdir`.
    pub workdir: Option<PathBuf>,
    /// `--uid`.
    pub uid: Option<u32>,
    /// `--gid`.
    pub gid: Option<u32>,
    /// `--hostname`.
    pub hostname: Option<String>,
    /// `--fd`, in order.
    pub fds: Vec<i32>,
    /// `--tty`.
    pub tty: Option<Tty>,
    /// `--memory`, as written.
    pub memory: Option<String>,
    /// `--cpu`, as written.
    pub cpu: Option<String>,
    /// `--tasks`, as written.
    pub tasks: Option<String>,
    /// `--nofile`, as written.
    pub nofile: Option<String>,
    /// `--tmp-size`, as written.
    pub tmp_size: Option<String>,
    /// `--time`, as written.
    pub time: Option<String>,
    /// `--keep`.
    pub keep: Vec<i32>,
    /// `--mail`.
    pub mail: Option<PathBuf>,
    /// `--tty-size`, rows and columns.
    pub tty_size: Option<(u16, u16)>,
    /// `--defer`.
    pub defer: bool,
    /// `--warm`.
    pub warm: bool,
    /// The command and its arguments.
    pub command: Vec<OsString>,
}

impl Options {
    /// How much is watched: what `--watch` says, else the default when something was asked for that needs watching.
    pub fn level(&self) -> Level {
        if self.learn.is_some() {
            // What is not seen is not granted.
            return Level::Full;
        }
        self.watch.unwrap_or(if self.needs_watch().is_some() { Level::Default } else { Level::Off })
    }

    /// The first option that needs watching.
    pub fn needs_watch(&self) -> Option<&'static str> {
        let given = [
            (!self.events.is_empty(), "events"),
            (!self.findings.is_empty(), "findings"),
            (self.on_finding.is_some(), "on-finding"),
            (self.baseline.is_some_and(|baseline| baseline != Baseline::Off), "baseline"),
            (self.summary, "summary"),
            (self.learn.is_some(), "learn"),
        ];
        given.into_iter().find(|(is_given, _)| *is_given).map(|(_, name)| name)
    }

    /// The first option that needs `--keep`.
    fn needs_keep(&self) -> Option<&'static str> {
        let given = [
            (self.defer, "defer"),
            (self.warm, "warm"),
            (self.mail.is_some(), "mail"),
            (self.tty_size.is_some(), "tty-size"),
        ];
        given.into_iter().find(|(is_given, _)| *is_given).map(|(_, name)| name)
    }

    /// The part that shapes the policy, for the last step of its merge.
    pub fn flags(&self) -> Flags {
        let network = |network| match network {
            Network::None => "none".to_owned(),
            Network::Host => "host".to_owned(),
        };
        let tty = |tty| match tty {
            Tty::Auto => "auto".to_owned(),
            Tty::Yes => "yes".to_owned(),
            Tty::No => "no".to_owned(),
        };
        Flags {
            level: self.isolation.map(|level| level.name().to_owned()),
            ro: self.ro.clone(),
            rw: self.rw.clone(),
            tmpfs: self.tmpfs.clone(),
            deny: self.deny.clone(),
            net: self.net.map(network),
            env: self.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            pass_env: self.pass_env.clone(),
            uid: self.uid.map(|id| id.to_string()),
            gid: self.gid.map(|id| id.to_string()),
            hostname: self.hostname.clone(),
            memory: self.memory.clone(),
            cpu: self.cpu.clone(),
            tasks: self.tasks.clone(),
            nofile: self.nofile.clone(),
            tmp_size: self.tmp_size.clone(),
            time: self.time.clone(),
            tty: self.tty.map(tty),
            optional: self.optional.iter().map(|layer| layer.name().to_owned()).collect(),
        }
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// Run the command in a sandbox.
    #[default]
    Run,
    /// Print the plan.
    Plan,
    /// Attempt the forbidden things.
    Prove,
    /// Tell which layers can be had.
    Doctor,
    /// Print completions.
    Completions(Shell),
    /// Print the help.
    Help,
    /// Print the version.
    Version,
}

/// A shell with completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "names of shells")]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Where the receipt goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Standard output.
    Stdout,
    /// A file, replaced when it exists.
    File(PathBuf),
}

/// Why a command line was refused. Each is shown behind `apex-run: ` and ends it with code 125.
#[derive(Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the message of each says it")]
pub enum OptionError {
    #[error(
        "unknown option `{given}`; the nearest is `--{nearest}` (put `--` before a command that begins with a dash)"
    )]
    UnknownNear { given: String, nearest: &'static str },
    #[error(
        "unknown option `{given}`; `apex-run --help` lists all (put `--` before a command that begins with a dash)"
    )]
    Unknown { given: String },
    #[error("--{option} needs a value: --{option} {value}")]
    MissingValue { option: &'static str, value: &'static str },
    #[error("--{option} needs a value, but `{given}` follows it; write --{option}={given} if that is meant")]
    OptionAsValue { option: &'static str, given: String },
    #[error("--{option} takes no value, but `{given}` was given; remove `={given}`")]
    UnwantedValue { option: &'static str, given: String },
    #[error("--{option} was given twice; keep one of them")]
    Twice { option: &'static str },
    #[error("--{option} does not know `{given}`; {remedy}")]
    UnknownWord { option: &'static str, given: String, remedy: String },
    #[error("--{option} got `{given}`, which {problem}; {remedy}")]
    BadValue { option: &'static str, given: String, problem: &'static str, remedy: &'static str },
    #[error("--{first} and --{second} each do something of their own; run them one after the other")]
    Conflict { first: &'static str, second: &'static str },
    #[error("--{option} reports on a command that runs, and --{action} runs none; leave one of them out")]
    NothingToReport { option: &'static str, action: &'static str },
    #[error("--{option} is for sandboxes that apexd keeps; leave it out")]
    Unkept { option: &'static str },
    #[error("--{option} needs watching, and --watch=off turns it off; leave one of them out")]
    Unwatched { option: &'static str },
    #[error(
        "no command was given; put it behind the options: apex-run --profile shell -- ls -l (or see --help, --doctor)"
    )]
    MissingCommand,
    #[error("the command is an empty word; put the name or the path of a program there")]
    EmptyCommand,
}

/// Parses the arguments that follow the program's name.
///
/// # Errors
/// The first thing that is wrong, from left to right; a missing command last.
pub fn parse<I>(args: I) -> Result<Options, OptionError>
where
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    let mut parser = Parser::from_args(args);
    let mut options = Options::default();
    let mut seen: Vec<&str> = Vec::new();
    while let Some(row) = next_row(&mut parser, &mut options)? {
        if seen.contains(&row.long) && !row.repeatable {
            return Err(OptionError::Twice { option: row.long });
        }
        seen.push(row.long);
        match row.kind {
            Kind::Switch(switch) => {
                check_bare(&mut parser, row)?;
                set_switch(&mut options, switch)?;
            }
            Kind::May { value, absent, .. } => {
                let given = parser.optional_value().unwrap_or_else(|| absent.into());
                set_value(&mut options, row, value, given)?;
            }
            Kind::Takes { value, name, .. } => {
                let given = take_value(&mut parser, row, name)?;
                set_value(&mut options, row, value, given)?;
            }
        }
        // These answer at once, as they do everywhere: what follows may be half a command line.
        if matches!(options.action, Action::Help | Action::Version) {
            return Ok(options);
        }
    }
    check_whole(&options)?;
    Ok(options)
}

/// The row of the next option; at the first other word the rest becomes the command and `None` ends the options.
fn next_row(parser: &mut Parser, options: &mut Options) -> Result<Option<&'static Row>, OptionError> {
    // `lexopt` fails here only on a value for an option that takes none, which `check_bare` has already ruled out.
    let row = match parser.next().map_err(|error| OptionError::Unknown { given: error.to_string() })? {
        None => return Ok(None),
        Some(Arg::Long(name)) => TABLE.iter().find(|row| row.long == name).ok_or_else(|| unknown(name))?,
        Some(Arg::Short(letter)) => {
            TABLE.iter().find(|row| row.short == Some(letter)).ok_or_else(|| unknown_short(letter))?
        }
        Some(Arg::Value(first)) => {
            options.command.push(first);
            let rest = parser.raw_args().expect("no value is pending behind a word");
            options.command.extend(rest);
            return Ok(None);
        }
    };
    Ok(Some(row))
}

fn unknown(name: &str) -> OptionError {
    let given = format!("--{}", crate::escape::text(name));
    match nearest(name, TABLE.iter().map(|row| row.long)) {
        Some(nearest) => OptionError::UnknownNear { given, nearest },
        None => OptionError::Unknown { given },
    }
}

/// The word that a person most likely meant, if any is near.
fn nearest<'w>(given: &str, words: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    words
        .map(|word| (strsim::jaro_winkler(given, word), word))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, word)| word)
}

fn unknown_short(letter: char) -> OptionError {
    OptionError::Unknown { given: format!("-{}", crate::escape::text(letter.encode_utf8(&mut [0; 4]))) }
}

fn check_bare(parser: &mut Parser, row: &'static Row) -> Result<(), OptionError> {
    match parser.optional_value() {
        // Behind a short option this is a further one (`-hV`); none of ours can sensibly be followed by another.
        Some(given) => Err(OptionError::UnwantedValue { option: row.long, given: shown(&given) }),
        None => Ok(()),
    }
}

fn take_value(parser: &mut Parser, row: &'static Row, name: &'static str) -> Result<OsString, OptionError> {
    if let Some(value) = parser.optional_value() {
        return Ok(value);
    }
    let value = parser.value().map_err(|_| OptionError::MissingValue { option: row.long, value: name })?;
    // `--ro --rw /x` would otherwise grant a path called `--rw` and run `/x`.
    if value.len() > 1 && value.as_bytes().starts_with(b"-") {
        return Err(OptionError::OptionAsValue { option: row.long, given: shown(&value) });
    }
    Ok(value)
}

fn set_switch(options: &mut Options, switch: Switch) -> Result<(), OptionError> {
    match switch {
        Switch::Why => options.why = true,
        Switch::Json => options.json = true,
        Switch::Summary => options.summary = true,
        Switch::Defer => options.defer = true,
        Switch::Warm => options.warm = true,
        Switch::Plan => set_action(options, Action::Plan)?,
        Switch::Prove => set_action(options, Action::Prove)?,
        Switch::Doctor => set_action(options, Action::Doctor)?,
        // At once, whatever stands before it.
        Switch::Help => options.action = Action::Help,
        Switch::Version => options.action = Action::Version,
    }
    Ok(())
}

fn set_value(options: &mut Options, row: &'static Row, option: Value, value: OsString) -> Result<(), OptionError> {
    match option {
        Value::Mode => options.mode = Some(word(row, &value, MODES)?),
        Value::Level => options.isolation = Some(word(row, &value, ISOLATION)?),
        Value::Profile => options.profile = Some(text(row, value)?),
        Value::Policy => options.policy = Some(path(row, value)?),
        Value::Optional => options.optional.push(layer(row, &value)?),
        Value::Ro => options.ro.push(path(row, value)?.into()),
        Value::Rw => options.rw.push(path(row, value)?.into()),
        Value::Tmpfs => options.tmpfs.push(path(row, value)?.into()),
        Value::Deny => options.deny.push(path(row, value)?.into()),
        Value::Net => options.net = Some(word(row, &value, &[("none", Network::None), ("host", Network::Host)])?),
        Value::Env => options.env.push(variable(row, value)?),
        Value::PassEnv => options.pass_env.push(variable_name(row, text(row, value)?)?),
        Value::Workdir => options.workdir = Some(path(row, value)?),
        Value::Uid => options.uid = Some(number(row, &value, 0)?),
        Value::Gid => options.gid = Some(number(row, &value, 0)?),
        Value::Hostname => options.hostname = Some(text(row, value)?),
        Value::Fd => options.fds.push(descriptor(row, &value)?),
        Value::Tty => {
            options.tty = Some(word(row, &value, &[("auto", Tty::Auto), ("yes", Tty::Yes), ("no", Tty::No)])?)
        }
        Value::Memory => options.memory = Some(text(row, value)?),
        Value::Cpu => options.cpu = Some(text(row, value)?),
        Value::Tasks => options.tasks = Some(text(row, value)?),
        Value::Nofile => options.nofile = Some(text(row, value)?),
        Value::TmpSize => options.tmp_size = Some(text(row, value)?),
        Value::Time => options.time = Some(text(row, value)?),
        Value::Receipt if value == "-" => options.receipt = Some(Sink::Stdout),
        Value::Receipt => options.receipt = Some(Sink::File(path(row, value)?)),
        Value::Watch => options.watch = Some(word(row, &value, LEVELS)?),
        Value::Events => options.events.push(sink(row, value)?),
        Value::Findings => options.findings.push(sink(row, value)?),
        Value::Baseline => options.baseline = Some(word(row, &value, BASELINES)?),
        Value::OnFinding => options.on_finding = Some(word(row, &value, REACTIONS)?),
        Value::Learn if value == "-" => {
            return Err(bad(row, &value, "is no file", "name the file that the policy is written to and merged into"));
        }
        Value::Learn => options.learn = Some(path(row, value)?),
        Value::Overlay => options.overlay = Some(path(row, value)?),
        Value::Keep => options.keep = kept(row, &value)?,
        Value::Mail => options.mail = Some(path(row, value)?),
        Value::TtySize => options.tty_size = Some(tty_size(row, &value)?),
        Value::Completions => {
            let shells = [("bash", Shell::Bash), ("zsh", Shell::Zsh), ("fish", Shell::Fish)];
            set_action(options, Action::Completions(word(row, &value, &shells)?))?;
        }
    }
    Ok(())
}

const MODES: &[(&str, Mode)] =
    &[("isolation", Mode::Isolation), ("development", Mode::Development), ("hybrid", Mode::Hybrid)];

const ISOLATION: &[(&str, IsolationLevel)] =
    &[("full", IsolationLevel::Full), ("partial", IsolationLevel::Partial), ("none", IsolationLevel::None)];

const LEVELS: &[(&str, Level)] = &[("off", Level::Off), ("default", Level::Default), ("full", Level::Full)];

const BASELINES: &[(&str, Baseline)] =
    &[("alert", Baseline::Alert), ("learn", Baseline::Learn), ("off", Baseline::Off)];
const REACTIONS: &[(&str, Reaction)] =
    &[("warn", Reaction::Warn), ("freeze", Reaction::Freeze), ("kill", Reaction::Kill), ("tighten", Reaction::Tighten)];

fn set_action(options: &mut Options, action: Action) -> Result<(), OptionError> {
    if options.action != Action::Run {
        return Err(OptionError::Conflict { first: action_name(options.action), second: action_name(action) });
    }
    options.action = action;
    Ok(())
}

const fn action_name(action: Action) -> &'static str {
    match action {
        Action::Run => "run",
        Action::Plan => "plan",
        Action::Prove => "prove",
        Action::Doctor => "doctor",
        Action::Completions(_) => "completions",
        Action::Help => "help",
        Action::Version => "version",
    }
}

fn check_whole(options: &Options) -> Result<(), OptionError> {
    if options.action != Action::Run {
        let action = action_name(options.action);
        if options.why {
            return Err(OptionError::NothingToReport { option: "why", action });
        }
        if options.receipt.is_some() {
            return Err(OptionError::NothingToReport { option: "receipt", action });
        }
        // A plan tells what watching would need.
        if options.action != Action::Plan {
            let watches = options.needs_watch().or_else(|| options.watch.map(|_| "watch"));
            if let Some(option) = watches {
                return Err(OptionError::NothingToReport { option, action });
            }
        }
    }
    if options.watch == Some(Level::Off)
        && let Some(option) = options.needs_watch()
    {
        return Err(OptionError::Unwatched { option });
    }
    if options.keep.is_empty()
        && let Some(option) = options.needs_keep()
    {
        return Err(OptionError::Unkept { option });
    }
    match (options.action, options.command.first()) {
        (Action::Run | Action::Plan, None) => Err(OptionError::MissingCommand),
        (_, Some(command)) if command.is_empty() => Err(OptionError::EmptyCommand),
        _ => Ok(()),
    }
}

//! The command line that runc and crun have, parsed once: global options, a command, its options.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use lexopt::prelude::{Long, Short, Value, ValueExt};
use lexopt::{Arg, Parser};

use crate::journal::Format;
use crate::update;
use interval::interval;

pub mod help;
mod interval;
#[cfg(test)]
mod tests;

/// What is wrong with a command line.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// The parser's words.
    #[error("{0}; `apex-oci --help` lists commands and options")]
    Parse(#[from] lexopt::Error),
    /// No such command.
    #[error("there is no command {0:?}{1}; `apex-oci --help` lists them")]
    Command(String, String),
    /// Help on what is no command, in the words of other runtimes, whose callers look for them.
    #[error("No help topic for '{0}'{1}; `apex-oci --help` lists the commands")]
    Topic(String, String),
    /// No failure: the help of the command is asked for.
    #[error("help is asked for")]
    Help,
    /// No command.
    #[error("no command; `apex-oci --help` lists them")]
    Missing,
    /// An argument that is missing.
    #[error("`{0}` needs {1}")]
    Needs(&'static str, &'static str),
    /// A value that is none.
    #[error("{0}: {1:?} is not {2}")]
    Value(&'static str, String, &'static str),
}

/// Options before the command.
#[derive(Clone, Debug, Default)]
pub struct Global {
    /// `--root`.
    pub root: Option<PathBuf>,
    /// `--log`.
    pub log: Option<PathBuf>,
    /// `--log-format`.
    pub log_format: Format,
    /// `--debug`.
    pub is_verbose: bool,
    /// `--receipt`: a file, or `-`.
    pub receipt: Option<PathBuf>,
    /// `--systemd-cgroup`, or `--cgroup-manager=systemd`.
    pub systemd_cgroup: bool,
    /// `--cgroup-manager=disabled`.
    pub is_without_cgroup: bool,
}

/// The options of `create` and `run`.
#[derive(Clone, Debug, Default)]
pub struct Make {
    /// The id.
    pub id: String,
    /// `--bundle`.
    pub bundle: PathBuf,
    /// `--config` of crun: instead of the bundle's own configuration.
    pub config: Option<PathBuf>,
    /// `--console-socket`.
    pub console_socket: Option<PathBuf>,
    /// `--pid-file`.
    pub pid_file: Option<PathBuf>,
    /// `--no-pivot`.
    pub no_pivot: bool,
    /// `--no-new-keyring`.
    pub keeps_keyring: bool,
    /// `--preserve-fds`.
    pub preserved: u32,
    /// `--detach` of `run`.
    pub is_detached: bool,
    /// `--keep` of `run`.
    pub is_kept: bool,
}

/// The options of `exec`.
#[derive(Clone, Debug, Default)]
pub struct Exec {
    /// The id.
    pub id: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// `--process`.
    pub process: Option<PathBuf>,
    /// `--console-socket`.
    pub console_socket: Option<PathBuf>,
    /// `--pid-file`.
    pub pid_file: Option<PathBuf>,
    /// `--cwd`.
    pub cwd: Option<PathBuf>,
    /// `--env`.
    pub env: Vec<String>,
    /// `--tty`.
    pub is_terminal: bool,
    /// `--user`, as `uid[:gid]`.
    pub user: Option<(u32, Option<u32>)>,
    /// `--additional-gids`.
    pub groups: Vec<u32>,
    /// `--detach`.
    pub is_detached: bool,
    /// `--process-label`.
    pub selinux: Option<String>,
    /// `--apparmor`.
    pub apparmor: Option<String>,
    /// `--no-new-privs`.
    pub no_new_privs: bool,
    /// `--cap`.
    pub capabilities: Vec<String>,
    /// `--preserve-fds`.
    pub preserved: u32,
    /// `--cgroup`, once for all hierarchies or once for some.
    pub cgroups: Vec<String>,
    /// `--ignore-paused`.
    pub ignores_paused: bool,
}

/// How a list is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// A command.
#[derive(Clone, Debug)]
pub enum Command {
    /// Makes a container that waits for its start.
    Create(Make),
    /// Starts one.
    Start(String),
    /// Makes, starts and waits for one.
    Run(Make),
    /// One more process in one.
    Exec(std::boxed::Box<Exec>),
    /// What is known of one.
    State(String),
    /// A signal to one.
    Kill {
        /// The id.
        id: String,
        /// The signal.
        signal: String,
        /// Whether every process gets it.
        to_all: bool,
    },
    /// Removes one.
    Delete {
        /// The id.
        id: String,
        /// Whether it is killed first.
        is_forced: bool,
    },
    /// All of them.
    List {
        /// How.
        shape: Shape,
        /// Whether only the ids.
        is_quiet: bool,
    },
    /// The processes of one.
    Ps {
        /// The id.
        id: String,
        /// How.
        shape: Shape,
        /// Options of ps(1).
        options: Vec<String>,
    },
    /// Freezes one.
    Pause(String),
    /// Thaws one.
    Resume(String),
    /// Changes the limits of one.
    Update {
        /// The id.
        id: String,
        /// What shall hold.
        limits: std::boxed::Box<update::Options>,
    },
    /// Use of resources of one.
    Events {
        /// The id.
        id: String,
        /// Milliseconds between two.
        interval_ms: u64,
        /// Whether only once.
        is_once: bool,
    },
    /// Writes a configuration to begin with.
    Spec {
        /// Where.
        bundle: PathBuf,
        /// Whether for users without privileges.
        is_rootless: bool,
    },
    /// What this runtime can do.
    Features,
    /// The help text, of the program or of a command.
    Help(Option<&'static str>),
    /// The version.
    Version,
}

/// Commands and what each is for.
pub const COMMANDS: [(&str, &str); 15] = [
    ("create", "make a container from a bundle; it waits for its start"),
    ("start", "start a created container"),
    ("run", "create and start a container, and wait for its end"),
    ("exec", "run one more process in a container"),
    ("state", "print the state of a container as JSON"),
    ("kill", "send a signal to a container"),
    ("delete", "remove a container that has ended"),
    ("list", "list containers"),
    ("ps", "list the processes of a container"),
    ("pause", "freeze all processes of a container"),
    ("resume", "thaw all processes of a container"),
    ("update", "change the limits of a container"),
    ("events", "print what a container uses as JSON"),
    ("spec", "write a config.json to begin with"),
    ("features", "print what this runtime supports as JSON"),
];

/// Parses the words after the program's name.
///
/// # Errors
/// They are no command line.
pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<(Global, Command), UsageError> {
    let mut parser = Parser::from_args(arguments);
    let mut global = Global::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("root") => global.root = Some(parser.value()?.into()),
            Long("log") => {
                global.log = Some(parser.value()?.into()).filter(|path: &PathBuf| !path.as_os_str().is_empty())
            }
            Long("log-format") => global.log_format = log_format(&parser.value()?)?,
            Long("debug") => global.is_verbose = true,
            Long("receipt") => global.receipt = Some(parser.value()?.into()),
            Long("systemd-cgroup") => global.systemd_cgroup = switch(&mut parser, "--systemd-cgroup")?,
            Long("cgroup-manager") => cgroup_manager(&mut global, &parser.value()?)?,
            // Whether it is rootless is seen from who calls.
            Long("rootless" | "criu") => drop(parser.value()?),
            Long("help") | Short('h') => return Ok((global, Command::Help(None))),
            Long("version") | Short('v') => return Ok((global, Command::Version)),
            Value(word) => {
                let word = word.string()?;
                return match command(&word, &mut parser) {
                    Err(UsageError::Help) => Ok((global, Command::Help(Some(topic(&word)?)))),
                    other => Ok((global, other?)),
                };
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Err(UsageError::Missing)
}

/// A flag that may have `=true` or `=false`.
fn switch(parser: &mut Parser, name: &'static str) -> Result<bool, UsageError> {
    match parser.optional_value() {
        None => Ok(true),
        Some(value) => match value.to_str() {
            Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            _ => Err(UsageError::Value(name, value.to_string_lossy().into_owned(), "true or false")),
        },
    }
}

/// crun's word for who makes the cgroup, or that nobody does.
fn cgroup_manager(global: &mut Global, value: &OsString) -> Result<(), UsageError> {
    (global.systemd_cgroup, global.is_without_cgroup) = match value.to_str() {
        Some("cgroupfs") => (false, false),
        Some("systemd") => (true, false),
        Some("disabled") => (false, true),
        _ => {
            let value = value.to_string_lossy().into_owned();
            return Err(UsageError::Value("--cgroup-manager", value, "cgroupfs, systemd or disabled"));
        }
    };
    Ok(())
}

fn log_format(value: &OsString) -> Result<Format, UsageError> {
    match value.to_str() {
        Some("json") => Ok(Format::Json),
        Some("text" | "") => Ok(Format::Text),
        _ => Err(UsageError::Value("--log-format", value.to_string_lossy().into_owned(), "text or json")),
    }
}

fn command(word: &str, parser: &mut Parser) -> Result<Command, UsageError> {
    Ok(match word {
        "create" => Command::Create(make("create", parser)?),
        "run" => Command::Run(make("run", parser)?),
        "start" => Command::Start(only_id("start", parser)?),
        "state" => Command::State(only_id("state", parser)?),
        "pause" => Command::Pause(only_id("pause", parser)?),
        "resume" => Command::Resume(only_id("resume", parser)?),
        "exec" => Command::Exec(std::boxed::Box::new(exec(parser)?)),
        "kill" => kill(parser)?,
        "delete" => delete(parser)?,
        "list" => list(parser)?,
        "ps" => ps(parser)?,
        "update" => update(parser)?,
        "events" => events(parser)?,
        "spec" => spec(parser)?,
        "features" => match parser.next()? {
            None => Command::Features,
            Some(other) => return Err(unexpected(other)),
        },
        "help" => Command::Help(parser.next()?.map(|argument| asked(argument)).transpose()?),
        "checkpoint" | "restore" => {
            return Err(UsageError::Command(
                word.to_owned(),
                " in this runtime: it saves and restores no process images".to_owned(),
            ));
        }
        other => match parser.next()? {
            Some(Long("help") | Short('h')) => return Err(UsageError::Help),
            _ => return Err(UsageError::Command(other.to_owned(), nearest(other))),
        },
    })
}

/// An option that the command does not have, unless it is that of every command.
fn unexpected(argument: Arg<'_>) -> UsageError {
    match argument {
        Long("help") | Short('h') => UsageError::Help,
        other => other.unexpected().into(),
    }
}

/// What `help` is asked about.
fn asked(argument: Arg<'_>) -> Result<&'static str, UsageError> {
    match argument {
        Value(word) => topic(&text(word, "help")?),
        other => Err(other.unexpected().into()),
    }
}

fn topic(word: &str) -> Result<&'static str, UsageError> {
    let known = COMMANDS.iter().find(|(name, _)| *name == word);
    known.map(|(name, _)| *name).ok_or_else(|| UsageError::Topic(word.to_owned(), nearest(word)))
}

fn nearest(word: &str) -> String {
    let near = COMMANDS.iter().map(|(name, _)| (strsim::damerau_levenshtein(word, name), name)).min();
    near.filter(|(distance, _)| *distance <= 2).map(|(_, name)| format!(", perhaps {name:?}")).unwrap_or_default()
}

fn text(value: OsString, name: &'static str) -> Result<String, UsageError> {
    value.into_string().map_err(|word| UsageError::Value(name, word.to_string_lossy().into_owned(), "UTF-8 text"))
}

fn number<T: FromStr>(value: &OsString, name: &'static str) -> Result<T, UsageError> {
    let parsed = value.to_str().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| UsageError::Value(name, value.to_string_lossy().into_owned(), "a number"))
}

fn id(found: Option<String>, command: &'static str) -> Result<String, UsageError> {
    found.ok_or(UsageError::Needs(command, "the id of a container"))
}

/// Takes the one argument that may stand alone.
fn one(slot: &mut Option<String>, value: OsString, name: &'static str) -> Result<(), UsageError> {
    if slot.is_some() {
        return Err(Arg::Value(value).unexpected().into());
    }
    *slot = Some(text(value, name)?);
    Ok(())
}

fn only_id(name: &'static str, parser: &mut Parser) -> Result<String, UsageError> {
    let mut found = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Value(value) => one(&mut found, value, name)?,
            other => return Err(unexpected(other)),
        }
    }
    id(found, name)
}

fn make(name: &'static str, parser: &mut Parser) -> Result<Make, UsageError> {
    let mut make = Make { bundle: PathBuf::from("."), ..Make::default() };
    let mut found = None;
    let is_run = name == "run";
    while let Some(argument) = parser.next()? {
        match argument {
            Long("bundle") | Short('b') => make.bundle = parser.value()?.into(),
            Long("config") | Short('f') => make.config = path(parser)?.filter(|path| path != Path::new("config.json")),
            Long("console-socket") => make.console_socket = path(parser)?,
            Long("pid-file") => make.pid_file = path(parser)?,
            Long("no-pivot") => make.no_pivot = switch(parser, "--no-pivot")?,
            Long("no-new-keyring") => make.keeps_keyring = switch(parser, "--no-new-keyring")?,
            Long("preserve-fds") => make.preserved = number(&parser.value()?, "--preserve-fds")?,
            Long("detach") | Short('d') if is_run => make.is_detached = switch(parser, "--detach")?,
            Long("keep") if is_run => make.is_kept = switch(parser, "--keep")?,
            Long("no-subreaper") if is_run => drop(switch(parser, "--no-subreaper")?),
            Value(value) => one(&mut found, value, name)?,
            other => return Err(unexpected(other)),
        }
    }
    make.id = id(found, name)?;
    Ok(make)
}

/// A path; an empty one is none, as callers write it.
fn path(parser: &mut Parser) -> Result<Option<PathBuf>, UsageError> {
    Ok(Some(PathBuf::from(parser.value()?)).filter(|path| !path.as_os_str().is_empty()))
}

fn exec(parser: &mut Parser) -> Result<Exec, UsageError> {
    let mut exec = Exec::default();
    let mut found = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("console-socket") => exec.console_socket = path(parser)?,
            Long("pid-file") => exec.pid_file = path(parser)?,
            Long("process") | Short('p') => exec.process = path(parser)?,
            Long("cwd") => exec.cwd = path(parser)?,
            Long("env") | Short('e') => exec.env.push(text(parser.value()?, "--env")?),
            Long("tty") | Short('t') => exec.is_terminal = switch(parser, "--tty")?,
            Long("user") | Short('u') => exec.user = Some(user(&text(parser.value()?, "--user")?)?),
            Long("additional-gids") | Short('g') => exec.groups.push(number(&parser.value()?, "--additional-gids")?),
            Long("detach") | Short('d') => exec.is_detached = switch(parser, "--detach")?,
            Long("process-label") => exec.selinux = Some(text(parser.value()?, "--process-label")?),
            Long("apparmor") => exec.apparmor = Some(text(parser.value()?, "--apparmor")?),
            Long("no-new-privs") => exec.no_new_privs = switch(parser, "--no-new-privs")?,
            Long("cap") | Short('c') => exec.capabilities.push(text(parser.value()?, "--cap")?),
            Long("preserve-fds") => exec.preserved = number(&parser.value()?, "--preserve-fds")?,
            Long("cgroup") => exec.cgroups.push(text(parser.value()?, "--cgroup")?),
            Long("ignore-paused") => exec.ignores_paused = switch(parser, "--ignore-paused")?,
            Long("no-subreaper") => drop(switch(parser, "--no-subreaper")?),
            Value(value) if found.is_none() => {
                found = Some(text(value, "exec")?);
                // What follows is the command's own, its options too.
                let words = parser.raw_args()?.map(|word| text(word, "exec"));
                exec.command = words.collect::<Result<_, _>>()?;
                if exec.command.first().is_some_and(|word| word == "--") {
                    exec.command.remove(0);
                }
                break;
            }
            other => return Err(unexpected(other)),
        }
    }
    exec.id = id(found, "exec")?;
    if exec.process.is_none() && exec.command.is_empty() {
        return Err(UsageError::Needs("exec", "a command after the id, or --process FILE"));
    }
    Ok(exec)
}

fn user(word: &str) -> Result<(u32, Option<u32>), UsageError> {
    let wrong = || UsageError::Value("--user", word.to_owned(), "UID or UID:GID in numbers");
    let (uid, gid) = word.split_once(':').map_or((word, None), |(uid, gid)| (uid, Some(gid)));
    let gid = gid.map(str::parse).transpose().map_err(|_| wrong())?;
    Ok((uid.parse().map_err(|_| wrong())?, gid))
}

fn kill(parser: &mut Parser) -> Result<Command, UsageError> {
    let (mut found, mut signal, mut to_all) = (None, None, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("all") | Short('a') => to_all = switch(parser, "--all")?,
            Value(value) if found.is_none() => found = Some(text(value, "kill")?),
            Value(value) => one(&mut signal, value, "kill")?,
            other => return Err(unexpected(other)),
        }
    }
    Ok(Command::Kill { id: id(found, "kill")?, signal: signal.unwrap_or_else(|| "TERM".to_owned()), to_all })
}

fn delete(parser: &mut Parser) -> Result<Command, UsageError> {
    let (mut found, mut is_forced) = (None, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("force") | Short('f') => is_forced = switch(parser, "--force")?,
            Value(value) => one(&mut found, value, "delete")?,
            other => return Err(unexpected(other)),
        }
    }
    Ok(Command::Delete { id: id(found, "delete")?, is_forced })
}

fn shape(value: &OsString) -> Result<Shape, UsageError> {
    match value.to_str() {
        Some("json") => Ok(Shape::Json),
        Some("table") => Ok(Shape::Table),
        _ => Err(UsageError::Value("--format", value.to_string_lossy().into_owned(), "table or json")),
    }
}

fn list(parser: &mut Parser) -> Result<Command, UsageError> {
    let (mut form, mut is_quiet) = (Shape::Table, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("format") | Short('f') => form = shape(&parser.value()?)?,
            Long("quiet") | Short('q') => is_quiet = switch(parser, "--quiet")?,
            other => return Err(unexpected(other)),
        }
    }
    Ok(Command::List { shape: form, is_quiet })
}

fn ps(parser: &mut Parser) -> Result<Command, UsageError> {
    let (mut found, mut form, mut options) = (None, Shape::Table, Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Long("format") | Short('f') => form = shape(&parser.value()?)?,
            Value(value) if found.is_none() => {
                found = Some(text(value, "ps")?);
                options = parser.raw_args()?.map(|word| text(word, "ps")).collect::<Result<_, _>>()?;
                break;
            }
            other => return Err(unexpected(other)),
        }
    }
    Ok(Command::Ps { id: id(found, "ps")?, shape: form, options })
}

fn update(parser: &mut Parser) -> Result<Command, UsageError> {
    let (mut found, mut limits) = (None, update::Options::default());
    while let Some(argument) = parser.next()? {
        let slot = match argument {
            Long("resources") | Short('r') => {
                limits.resources = path(parser)?;
                continue;
            }
            Long("memory") => &mut limits.memory,
            Long("memory-swap") => &mut limits.memory_swap,
            Long("memory-reservation") => &mut limits.memory_reservation,
            Long("kernel-memory") => &mut limits.kernel_memory,
            Long("kernel-memory-tcp") => &mut limits.kernel_memory_tcp,
            Long("cpu-share" | "cpu-shares") => &mut limits.cpu_shares,
            Long("cpu-quota") => &mut limits.cpu_quota,
            Long("cpu-period") => &mut limits.cpu_period,
            Long("cpu-burst") => &mut limits.cpu_burst,
            Long("cpu-idle") => &mut limits.cpu_idle,
            Long("cpu-rt-runtime") => &mut limits.cpu_rt_runtime,
            Long("cpu-rt-period") => &mut limits.cpu_rt_period,
            Long("cpuset-cpus") => &mut limits.cpuset_cpus,
            Long("cpuset-mems") => &mut limits.cpuset_mems,
            Long("pids-limit") => &mut limits.pids_limit,
            Long("blkio-weight") => &mut limits.blkio_weight,
            Long("l3-cache-schema") => &mut limits.l3_cache_schema,
            Long("mem-bw-schema") => &mut limits.mem_bw_schema,
            Value(value) => {
                one(&mut found, value, "update")?;
                continue;
            }
            other => return Err(unexpected(other)),
        };
        *slot = Some(text(parser.value()?, "update")?);
    }
    Ok(Command::Update { id: id(found, "update")?, limits: std::boxed::Box::new(limits) })
}

fn events(parser: &mut Parser) -> Result<Command, UsageError> {
    let (mut found, mut interval_ms, mut is_once) = (None, 5000, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("interval") => interval_ms = interval(&text(parser.value()?, "--interval")?)?,
            Long("stats") => is_once = switch(parser, "--stats")?,
            Value(value) => one(&mut found, value, "events")?,
            other => return Err(unexpected(other)),
        }
    }
    Ok(Command::Events { id: id(found, "events")?, interval_ms, is_once })
}

fn spec(parser: &mut Parser) -> Result<Command, UsageError> {
    let (mut bundle, mut is_rootless) = (PathBuf::from("."), false);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("bundle") | Short('b') => bundle = parser.value()?.into(),
            Long("rootless") => is_rootless = switch(parser, "--rootless")?,
            other => return Err(unexpected(other)),
        }
    }
    Ok(Command::Spec { bundle, is_rootless })
}

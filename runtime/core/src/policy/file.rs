//! The text of one mode, profile or policy file. Input: TOML; output: a [`File`] whose rules know their line, or an error with file and line.
//!
//! Only the shape is judged here. What a path or a name means is decided when files are merged.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::Spanned;

use super::error::{PolicyError, nearest};
use super::value::{Bytes, Count, Entry, FiniteBytes, Millis, PathTable, Percent, TmpfsTable};
use super::{IsolationLevel, Mode, Network, Origin, ProcView, SyscallDefault, Tty};
use crate::layer::{Layer, Requirement};
use crate::mail::Control;

/// Bytes of text that one file may have.
pub const FILE_SIZE_MAX: usize = 1 << 20;

/// One file. Everything is optional; what is absent says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct File {
    /// What it is for, in one line.
    pub description: Option<String>,
    /// The mode it is meant for; `--mode` wins. Only in policy files.
    #[cfg_attr(feature = "schema", schemars(with = "Option<Mode>"))]
    pub mode: Option<Spanned<Mode>>,
    /// How many layers the sandbox has. A later file can only name a level that confines as much or more.
    #[cfg_attr(feature = "schema", schemars(with = "Option<IsolationLevel>"))]
    pub level: Option<Spanned<IsolationLevel>>,
    /// What is merged before this file, in order: `profile:NAME` or a path. Not in mode files.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub extends: Vec<Spanned<String>>,
    /// Files and directories.
    pub filesystem: FilesystemTable,
    /// Network.
    pub network: NetworkTable,
    /// System calls.
    pub syscalls: SyscallsTable,
    /// Capabilities.
    pub capabilities: CapabilitiesTable,
    /// Limits.
    pub resources: ResourcesTable,
    /// Environment variables.
    pub environment: EnvironmentTable,
    /// Who the program seems to be.
    pub identity: IdentityTable,
    /// Terminal.
    pub terminal: TerminalTable,
    /// Mailboxes that the sandbox may use; needs apexd.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<MailboxTable>"))]
    pub mailboxes: Vec<Spanned<MailboxTable>>,
    /// Whether each layer is required.
    #[cfg_attr(feature = "schema", schemars(with = "BTreeMap<Layer, Requirement>"))]
    pub layers: BTreeMap<Layer, Spanned<Requirement>>,
    /// What no later layer may exceed. Only in mode files.
    #[cfg_attr(feature = "schema", schemars(with = "Option<CeilingTable>"))]
    pub ceiling: Option<Spanned<CeilingTable>>,
    /// What `apex-run --learn` counted. A file that has it grants nothing by `${CWD}` where that is a shared place. Only in policy files.
    pub learned: Option<LearnedTable>,
}

/// `[learned]`: the counters behind a learned policy, so that later runs can be merged into it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default, expecting = "the table `[learned]`")]
pub struct LearnedTable {
    /// Version of this table.
    pub version: u32,
    /// Runs that were learned from.
    pub runs: u64,
    /// By kind and name, such as `read ~/data`: how often it was used.
    pub seen: BTreeMap<String, SeenTable>,
}

/// One line of `[learned.seen]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct SeenTable {
    /// How often, over all runs.
    pub times: u64,
    /// In how many runs.
    pub runs: u64,
    /// Names of the programs that used it, the first few.
    pub by: Vec<String>,
    /// Whether it is a directory of which the names alone were read.
    pub listed: bool,
    /// Whether it was only looked at, and never opened.
    pub looked: bool,
}

/// `[filesystem]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default, expecting = "the table `[filesystem]`")]
pub struct FilesystemTable {
    /// `false` forgets what earlier layers put in `read`, `write`, `exec`, `names` and `tmpfs`; their `hide` and `deny` stay.
    pub inherit: Option<bool>,
    /// Readable.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<super::schema::PathOrTable>"))]
    pub read: Vec<Spanned<Entry<PathTable>>>,
    /// Readable and writable.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<super::schema::PathOrTable>"))]
    pub write: Vec<Spanned<Entry<PathTable>>>,
    /// Where files may be executed; makes nothing visible by itself.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<super::schema::PathOrTable>"))]
    pub exec: Vec<Spanned<Entry<PathTable>>>,
    /// Names that stand inside without what is behind them: a symbolic link as it is, a directory as an empty one.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<super::schema::PathOrTable>"))]
    pub names: Vec<Spanned<Entry<PathTable>>>,
    /// Shown as empty.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<super::schema::PathOrTable>"))]
    pub hide: Vec<Spanned<Entry<PathTable>>>,
    /// Refused under every name, also before it exists.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<super::schema::PathOrTable>"))]
    pub deny: Vec<Spanned<Entry<PathTable>>>,
    /// Private memory-backed directories.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<super::schema::TmpfsOrTable>"))]
    pub tmpfs: Vec<Spanned<Entry<TmpfsTable>>>,
    /// How much of /proc.
    #[cfg_attr(feature = "schema", schemars(with = "Option<ProcView>"))]
    pub proc: Option<Spanned<ProcView>>,
}

/// `[network]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default, expecting = "the table `[network]`")]
pub struct NetworkTable {
    /// Which network the sandbox has.
    #[cfg_attr(feature = "schema", schemars(with = "Option<Network>"))]
    pub access: Option<Spanned<Network>>,
}

/// `[syscalls]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default, expecting = "the table `[syscalls]`")]
pub struct SyscallsTable {
    /// `false` forgets which groups earlier layers allowed; their `deny` stays.
    pub inherit: Option<bool>,
    /// For a call in no group that is allowed or denied.
    #[cfg_attr(feature = "schema", schemars(with = "Option<SyscallDefault>"))]
    pub default: Option<Spanned<SyscallDefault>>,
    /// Groups that are allowed.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub allow: Vec<Spanned<String>>,
    /// Groups that are refused whatever allows them.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub deny: Vec<Spanned<String>>,
    /// Whether 32-bit programs may run.
    #[cfg_attr(feature = "schema", schemars(with = "Option<bool>"))]
    pub compat: Option<Spanned<bool>>,
}

/// `[capabilities]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default, expecting = "the table `[capabilities]`")]
pub struct CapabilitiesTable {
    /// Names (`CAP_...`) of those that the program keeps inside its user namespace.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub keep: Vec<Spanned<String>>,
}

/// `[resources]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default, expecting = "the table `[resources]`")]
pub struct ResourcesTable {
    /// Memory of the whole sandbox.
    #[cfg_attr(feature = "schema", schemars(with = "Option<super::schema::SizeOrNumber>"))]
    pub memory: Option<Spanned<Bytes<1>>>,
    /// Swap on top of it.
    #[cfg_attr(feature = "schema", schemars(with = "Option<super::schema::SizeOrNumber>"))]
    pub swap: Option<Spanned<Bytes<0>>>,
    /// Percent of one core.
    #[cfg_attr(feature = "schema", schemars(with = "Option<super::schema::NumberOrUnlimited>"))]
    pub cpu: Option<Spanned<Percent>>,
    /// Processes and threads.
    #[cfg_attr(feature = "schema", schemars(with = "Option<super::schema::NumberOrUnlimited>"))]
    pub tasks: Option<Spanned<Count>>,
    /// Open descriptors of one process.
    #[cfg_attr(feature = "schema", schemars(with = "Option<super::schema::NumberOrUnlimited>"))]
    pub open_files: Option<Spanned<Count>>,
    /// Largest file.
    #[cfg_attr(feature = "schema", schemars(with = "Option<super::schema::SizeOrNumber>"))]
    pub file_size: Option<Spanned<Bytes<0>>>,
    /// Size of each tmpfs that names none.
    #[cfg_attr(feature = "schema", schemars(with = "Option<super::schema::SizeOrNumber>"))]
    pub tmp_size: Option<Spanned<FiniteBytes>>,
    /// Life of the sandbox.
    #[cfg_attr(feature = "schema", schemars(with = "Option<super::schema::Time>"))]
    pub wall_time: Option<Spanned<Millis>>,
}

/// `[environment]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default, expecting = "the table `[environment]`")]
pub struct EnvironmentTable {
    /// Names that are passed from the caller when set there.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub pass: Vec<Spanned<String>>,
    /// Names with the value that they get, taken as it stands.
    #[cfg_attr(feature = "schema", schemars(with = "BTreeMap<String, String>"))]
    pub set: BTreeMap<String, Spanned<String>>,
}

/// `[identity]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default, expecting = "the table `[identity]`")]
pub struct IdentityTable {
    /// User id inside.
    #[cfg_attr(feature = "schema", schemars(with = "Option<u32>"))]
    pub uid: Option<Spanned<u32>>,
    /// Group id inside.
    #[cfg_attr(feature = "schema", schemars(with = "Option<u32>"))]
    pub gid: Option<Spanned<u32>>,
    /// Host name inside.
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    pub hostname: Option<Spanned<String>>,
}

/// `[terminal]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default, expecting = "the table `[terminal]`")]
pub struct TerminalTable {
    /// Whether the program gets a terminal of its own.
    #[cfg_attr(feature = "schema", schemars(with = "Option<Tty>"))]
    pub tty: Option<Tty>,
}

/// `[[mailboxes]]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, expecting = "a table `[[mailboxes]]`")]
pub struct MailboxTable {
    /// Its name, among the mailboxes of the same user.
    pub name: String,
    /// Whether the sandbox may send to it.
    #[serde(default)]
    pub send: bool,
    /// Whether it may receive from it.
    #[serde(default)]
    pub receive: bool,
    /// What becomes of what it sends; `filtered` by default.
    pub control: Option<Control>,
    /// Largest message as JSON without blanks, at most 64K, which is the default.
    #[cfg_attr(feature = "schema", schemars(with = "Option<super::schema::SizeOrNumber>"))]
    pub max_size: Option<FiniteBytes>,
    /// Messages in a second, at most 1000; 100 by default.
    pub rate: Option<u32>,
    /// Text of a JSON Schema that every message must meet. Only with control `filtered`.
    pub schema: Option<String>,
    /// Why, in a few words.
    pub reason: Option<String>,
}

/// A limit that a ceiling can demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum LimitName {
    /// `resources.memory`
    Memory,
    /// `resources.swap`
    Swap,
    /// `resources.cpu`
    Cpu,
    /// `resources.tasks`
    Tasks,
    /// `resources.open_files`
    OpenFiles,
    /// `resources.file_size`
    FileSize,
    /// `resources.wall_time`
    WallTime,
}

/// `[ceiling]`: what nothing in a mode can exceed. A key that is absent takes the value of the built-in mode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default, expecting = "the table `[ceiling]`")]
pub struct CeilingTable {
    /// The least confining isolation level.
    pub level: Option<IsolationLevel>,
    /// The widest network.
    pub network: Option<Network>,
    /// The widest default for system calls.
    pub syscalls_default: Option<SyscallDefault>,
    /// Groups of system calls that cannot be allowed.
    pub syscalls_forbidden: Option<Vec<String>>,
    /// Whether 32-bit programs can be allowed.
    pub compat: Option<bool>,
    /// Capabilities that can be kept.
    pub capabilities: Option<Vec<String>>,
    /// Paths of which nothing can be granted: neither they, nor what is beneath, nor what contains them.
    pub grant_forbidden: Option<Vec<PathBuf>>,
    /// Paths that cannot be granted for writing, in the same sense.
    pub write_forbidden: Option<Vec<PathBuf>>,
    /// The laxest control of a mailbox. A mode file of an administrator can make it stricter than that of the built-in mode, and not laxer.
    pub mailboxes: Option<Control>,
    /// Limits that must be finite.
    pub finite: Option<Vec<LimitName>>,
    /// Layers that a file can make optional. `--optional` can name others, since it is explicit and the receipt shows it.
    pub optional_layers: Option<Vec<Layer>>,
    /// Layers that can be turned off.
    pub off_layers: Option<Vec<Layer>>,
}

/// Line numbers of a text, and the name under which its rules are known.
#[derive(Clone, Debug)]
pub(crate) struct Lines {
    source: String,
    /// `None` when places are line numbers already.
    newlines: Option<Vec<usize>>,
}

impl Lines {
    pub fn new(source: String, text: &str) -> Self {
        let newlines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect();
        Lines { source, newlines: Some(newlines) }
    }

    /// For rules whose span starts at the number of their line (see `embedded`).
    pub fn numbered(source: String) -> Self {
        Lines { source, newlines: None }
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    pub fn into_source(self) -> String {
        self.source
    }

    /// Where the piece of text at `span` stands.
    pub fn origin(&self, span: &Range<usize>) -> Origin {
        let line = match &self.newlines {
            Some(newlines) => newlines.partition_point(|newline| *newline < span.start) + 1,
            None => span.start,
        };
        Origin { source: self.source.clone(), line: u32::try_from(line).unwrap_or(u32::MAX) }
    }
}

/// Reads one file.
pub(super) fn parse(text: &str, lines: &Lines) -> Result<File, PolicyError> {
    shaped(text, lines)
}

/// Reads a text of any shape that refuses unknown keys, with errors that name line and nearest key.
pub(crate) fn shaped<T: DeserializeOwned>(text: &str, lines: &Lines) -> Result<T, PolicyError> {
    if text.len() > FILE_SIZE_MAX {
        return Err(PolicyError::TooLarge { file: lines.source.clone(), bytes: text.len(), max: FILE_SIZE_MAX });
    }
    let deserializer = toml::Deserializer::parse(text).map_err(|error| PolicyError::Syntax {
        at: lines.origin(&error.span().unwrap_or(0..0)),
        message: error.message().to_owned(),
    })?;
    T::deserialize(deserializer).map_err(|error| shape_error(&error, lines))
}

/// Gives the error of the deserializer its structure back. serde hands unknown names over as text only (`serde::de::Error`);
/// were that text ever to change, the message would still stand as it is, with file and line.
fn shape_error(error: &toml::de::Error, lines: &Lines) -> PolicyError {
    let at = lines.origin(&error.span().unwrap_or(0..0));
    let message = error.message();
    if let Some((key, accepted)) = unknown_name(message, "unknown field ") {
        let nearest = nearest(&key, accepted.iter().map(String::as_str));
        return PolicyError::UnknownKey { at, key, nearest, accepted };
    }
    if let Some((value, accepted)) = unknown_name(message, "unknown variant ") {
        let nearest = nearest(&value, accepted.iter().map(String::as_str));
        return PolicyError::UnknownWord { at, value, nearest, accepted };
    }
    // The words of TOML and of this format instead of those of serde.
    const WORDS: [(&str, &str); 4] = [
        ("expected a sequence", "expected a list in `[ ]`"),
        ("expected a map", "expected a table"),
        ("expected u32", "expected an id from 0 to 4294967294"),
        ("wanted string or table", "not a text, expected one of the words that this key takes, in quotes"),
    ];
    let message = WORDS.iter().fold(message.to_owned(), |text, (from, to)| text.replace(from, to));
    PolicyError::Value { at, message }
}

/// Splits "unknown field `x`, expected one of `a`, `b`" into the name and what is accepted.
fn unknown_name(message: &str, start: &str) -> Option<(String, Vec<String>)> {
    let (name, rest) = message.strip_prefix(start)?.strip_prefix('`')?.split_once("`, expected ")?;
    // Names stand between backticks: every second piece.
    Some((name.to_owned(), rest.split('`').skip(1).step_by(2).map(str::to_owned).collect()))
}

//! The built-in modes and profiles as tables, so that a start without policy files reads no TOML: parsing it cost more than the rest of
//! the planning. Input: the tables of [`super::generated`]; output: the same [`File`] that parsing the text gives, which the
//! tests beside the generator check, and which takes the same way through the merge.
//!
//! A place is a line number here: [`Lines::numbered`] turns it into an origin.

use std::path::PathBuf;

use toml::Spanned;

use super::file::{
    CapabilitiesTable, CeilingTable, EnvironmentTable, File, FilesystemTable, IdentityTable, LimitName, Lines,
    NetworkTable, ResourcesTable, SyscallsTable, TerminalTable,
};
use super::generated;
use super::resolve::{PROFILES, mode_text};
use super::value::{Bytes, Count, Entry, FiniteBytes, Millis, PathTable, Percent, TmpfsTable};
use super::{IsolationLevel, Mode, Network, ProcView, SyscallDefault, Tty};
use crate::layer::{Layer, Requirement};
use crate::mail::Control;

/// A table older than its text would put another policy in force than the one that people read: then nothing is built. The test that
/// writes the tables anew must build, and checks more.
#[cfg(not(test))]
const _: () = assert!(
    sum_of_texts() == generated::SUM,
    "policy/generated.rs is older than policies/: APEX_BLESS=1 cargo test -p apex-core --lib generate"
);

/// FNV-1a over the texts of all modes and profiles: against forgetting, not against malice.
pub(super) const fn sum_of_texts() -> u64 {
    let mut sum = 0xcbf2_9ce4_8422_2325;
    sum = add(sum, mode_text(Mode::Isolation));
    sum = add(sum, mode_text(Mode::Development));
    sum = add(sum, mode_text(Mode::Hybrid));
    let mut index = 0;
    while index < PROFILES.len() {
        sum = add(add(sum, PROFILES[index].0), PROFILES[index].1);
        index += 1;
    }
    sum
}

const fn add(mut sum: u64, text: &str) -> u64 {
    let bytes = text.as_bytes();
    let mut index = 0;
    while index < bytes.len() {
        sum = (sum ^ bytes[index] as u64).wrapping_mul(0x0100_0000_01b3);
        index += 1;
    }
    sum
}

/// A value and the line that it stands on.
pub(super) type At<T> = (u32, T);
type Names = &'static [At<&'static str>];

/// One entry of a list of paths.
pub(super) struct PathRow {
    pub line: u32,
    pub path: &'static str,
    pub dest: Option<&'static str>,
    pub reason: Option<&'static str>,
    pub optional: Option<bool>,
}

/// One file.
pub(super) struct Embedded {
    pub description: Option<&'static str>,
    pub extends: Names,
    pub inherit: Option<bool>,
    pub read: &'static [PathRow],
    pub write: &'static [PathRow],
    pub exec: &'static [PathRow],
    pub hide: &'static [PathRow],
    pub deny: &'static [PathRow],
    pub tmpfs: &'static [At<(&'static str, Option<u64>)>],
    pub proc: Option<At<ProcView>>,
    pub network: Option<At<Network>>,
    pub syscalls_default: Option<At<SyscallDefault>>,
    pub syscalls_allow: Names,
    pub syscalls_deny: Names,
    pub compat: Option<At<bool>>,
    pub capabilities: Names,
    pub memory: Option<At<Option<u64>>>,
    pub swap: Option<At<Option<u64>>>,
    pub cpu: Option<At<Option<u32>>>,
    pub tasks: Option<At<Option<u64>>>,
    pub open_files: Option<At<Option<u64>>>,
    pub file_size: Option<At<Option<u64>>>,
    pub tmp_size: Option<At<u64>>,
    pub wall_time: Option<At<Option<u64>>>,
    pub pass: Names,
    pub set: &'static [(&'static str, At<&'static str>)],
    pub uid: Option<At<u32>>,
    pub gid: Option<At<u32>>,
    pub hostname: Option<At<&'static str>>,
    pub tty: Option<Tty>,
    pub layers: &'static [(Layer, At<Requirement>)],
    pub ceiling: Option<At<EmbeddedCeiling>>,
}

/// `[ceiling]`
#[derive(Clone, Copy)]
pub(super) struct EmbeddedCeiling {
    pub level: Option<IsolationLevel>,
    pub network: Option<Network>,
    pub syscalls_default: Option<SyscallDefault>,
    pub syscalls_forbidden: Option<&'static [&'static str]>,
    pub compat: Option<bool>,
    pub capabilities: Option<&'static [&'static str]>,
    pub grant_forbidden: Option<&'static [&'static str]>,
    pub write_forbidden: Option<&'static [&'static str]>,
    pub mailboxes: Option<Control>,
    pub finite: Option<&'static [LimitName]>,
    pub optional_layers: Option<&'static [Layer]>,
    pub off_layers: Option<&'static [Layer]>,
}

/// A built-in mode.
pub(super) fn mode(mode: Mode) -> (File, Lines) {
    let table = match mode {
        Mode::Isolation => &generated::ISOLATION,
        Mode::Development => &generated::DEVELOPMENT,
        Mode::Hybrid => &generated::HYBRID,
    };
    (table.file(), Lines::numbered(format!("modes/{}.toml", mode.name())))
}

/// A built-in profile, when there is one of that name.
pub(super) fn profile(name: &str) -> Option<(File, Lines)> {
    let (_, table) = generated::PROFILES.iter().find(|(known, _)| *known == name)?;
    Some((table.file(), Lines::numbered(format!("profiles/{name}.toml"))))
}

impl Embedded {
    fn file(&self) -> File {
        File {
            description: self.description.map(str::to_owned),
            mode: None,
            level: None,
            extends: names(self.extends),
            filesystem: self.filesystem(),
            network: NetworkTable { access: self.network.map(at) },
            syscalls: SyscallsTable {
                // No built-in file forgets what another one allowed.
                inherit: None,
                default: self.syscalls_default.map(at),
                allow: names(self.syscalls_allow),
                deny: names(self.syscalls_deny),
                compat: self.compat.map(at),
            },
            capabilities: CapabilitiesTable { keep: names(self.capabilities) },
            resources: self.resources(),
            environment: EnvironmentTable {
                pass: names(self.pass),
                set: self.set.iter().map(|(name, value)| ((*name).to_owned(), text(*value))).collect(),
            },
            identity: IdentityTable { uid: self.uid.map(at), gid: self.gid.map(at), hostname: self.hostname.map(text) },
            terminal: TerminalTable { tty: self.tty },
            // No built-in file knows a mailbox.
            mailboxes: Vec::new(),
            layers: self.layers.iter().map(|(layer, requirement)| (*layer, at(*requirement))).collect(),
            ceiling: self.ceiling.map(|(line, ceiling)| at((line, ceiling.table()))),
            learned: None,
        }
    }

    fn filesystem(&self) -> FilesystemTable {
        let tmpfs = |(line, (path, size)): &At<(&str, Option<u64>)>| {
            at((*line, Entry(TmpfsTable { path: (*path).to_owned(), size: size.map(FiniteBytes) })))
        };
        FilesystemTable {
            inherit: self.inherit,
            read: paths(self.read),
            write: paths(self.write),
            exec: paths(self.exec),
            // No built-in file knows a name that matters by itself.
            names: Vec::new(),
            hide: paths(self.hide),
            deny: paths(self.deny),
            tmpfs: self.tmpfs.iter().map(tmpfs).collect(),
            proc: self.proc.map(at),
        }
    }

    fn resources(&self) -> ResourcesTable {
        ResourcesTable {
            memory: self.memory.map(|(line, limit)| at((line, Bytes(limit)))),
            swap: self.swap.map(|(line, limit)| at((line, Bytes(limit)))),
            cpu: self.cpu.map(|(line, limit)| at((line, Percent(limit)))),
            tasks: self.tasks.map(|(line, limit)| at((line, Count(limit)))),
            open_files: self.open_files.map(|(line, limit)| at((line, Count(limit)))),
            file_size: self.file_size.map(|(line, limit)| at((line, Bytes(limit)))),
            tmp_size: self.tmp_size.map(|(line, size)| at((line, FiniteBytes(size)))),
            wall_time: self.wall_time.map(|(line, limit)| at((line, Millis(limit)))),
        }
    }
}

impl EmbeddedCeiling {
    fn table(&self) -> CeilingTable {
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<PathBuf>>();
        CeilingTable {
            level: self.level,
            network: self.network,
            syscalls_default: self.syscalls_default,
            syscalls_forbidden: self.syscalls_forbidden.map(words),
            compat: self.compat,
            capabilities: self.capabilities.map(words),
            grant_forbidden: self.grant_forbidden.map(paths),
            write_forbidden: self.write_forbidden.map(paths),
            mailboxes: self.mailboxes,
            finite: self.finite.map(<[_]>::to_vec),
            optional_layers: self.optional_layers.map(<[_]>::to_vec),
            off_layers: self.off_layers.map(<[_]>::to_vec),
        }
    }
}

fn at<T>((line, value): At<T>) -> Spanned<T> {
    let line = line as usize;
    Spanned::new(line..line, value)
}

fn text((line, text): At<&str>) -> Spanned<String> {
    at((line, text.to_owned()))
}

fn names(list: &[At<&str>]) -> Vec<Spanned<String>> {
    list.iter().copied().map(text).collect()
}

fn paths(list: &[PathRow]) -> Vec<Spanned<Entry<PathTable>>> {
    let entry = |row: &PathRow| {
        let table = PathTable {
            path: row.path.to_owned(),
            dest: row.dest.map(str::to_owned),
            reason: row.reason.map(str::to_owned),
            optional: row.optional,
        };
        at((row.line, Entry(table)))
    };
    list.iter().map(entry).collect()
}

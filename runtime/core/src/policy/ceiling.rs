//! What a mode can never exceed. Input: `[ceiling]` tables and a merged draft; output: nothing, or the rule that asks for too much.
//!
//! The check looks at the result of the merge, not at each layer, so no order of layers gets around it. Paths are compared
//! as they are written: a symbolic link that leads elsewhere is for the planner and the jail, which see the host.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::PolicyError;
use super::file::{CeilingTable, LimitName, Lines};
use super::flags::OPTIONAL;
use super::merge::{Access, Draft, Place, Rule};
use super::path::{self, is_within};
use super::{Grant, IsolationLevel, Mode, Network, Origin, SyscallDefault};
use crate::layer::{Layer, Requirement};
use crate::mail::Control;

/// The bounds of a mode. The default is the narrowest.
#[derive(Clone, Debug)]
pub(super) struct Ceiling {
    /// The files it comes from, for people.
    source: String,
    level: IsolationLevel,
    network: Network,
    syscalls_default: SyscallDefault,
    syscalls_forbidden: Vec<String>,
    compat: bool,
    capabilities: Vec<String>,
    grant_forbidden: Vec<PathBuf>,
    write_forbidden: Vec<PathBuf>,
    mailboxes: Control,
    finite: Vec<LimitName>,
    optional_layers: Vec<Layer>,
    off_layers: Vec<Layer>,
}

/// What of a ceiling a learned policy must keep below.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// The widest network.
    pub network: Network,
    /// Groups of system calls that cannot be allowed.
    pub syscalls_forbidden: Vec<String>,
    /// Paths of which nothing can be granted.
    pub grant_forbidden: Vec<PathBuf>,
    /// Paths that cannot be granted for writing.
    pub write_forbidden: Vec<PathBuf>,
}

impl Ceiling {
    pub fn bounds(self) -> Bounds {
        Bounds {
            network: self.network,
            syscalls_forbidden: self.syscalls_forbidden,
            grant_forbidden: self.grant_forbidden,
            write_forbidden: self.write_forbidden,
        }
    }

    /// The ceiling of a built-in mode. What the table does not name is as narrow as it can be, or not restricted for want of a list.
    pub fn built_in(table: CeilingTable, source: &str) -> Self {
        Ceiling {
            source: source.to_owned(),
            level: table.level.unwrap_or(IsolationLevel::Full),
            network: table.network.unwrap_or(Network::None),
            syscalls_default: table.syscalls_default.unwrap_or(SyscallDefault::Deny),
            syscalls_forbidden: table.syscalls_forbidden.unwrap_or_default(),
            compat: table.compat.unwrap_or(false),
            capabilities: table.capabilities.unwrap_or_default(),
            grant_forbidden: table.grant_forbidden.unwrap_or_default(),
            write_forbidden: table.write_forbidden.unwrap_or_default(),
            mailboxes: table.mailboxes.unwrap_or(Control::Filtered),
            finite: table.finite.unwrap_or_default(),
            optional_layers: table.optional_layers.unwrap_or_default(),
            off_layers: table.off_layers.unwrap_or_default(),
        }
    }

    /// The ceiling of a file that replaces the mode: what it does not name stays.
    pub fn replaced(self, table: Option<CeilingTable>, source: &str) -> Self {
        let Some(table) = table else { return self };
        Ceiling {
            source: source.to_owned(),
            level: table.level.unwrap_or(self.level),
            network: table.network.unwrap_or(self.network),
            syscalls_default: table.syscalls_default.unwrap_or(self.syscalls_default),
            syscalls_forbidden: table.syscalls_forbidden.unwrap_or(self.syscalls_forbidden),
            compat: table.compat.unwrap_or(self.compat),
            capabilities: table.capabilities.unwrap_or(self.capabilities),
            grant_forbidden: table.grant_forbidden.unwrap_or(self.grant_forbidden),
            write_forbidden: table.write_forbidden.unwrap_or(self.write_forbidden),
            // apexd holds every sandbox to that of the built-in mode.
            mailboxes: table.mailboxes.map_or(self.mailboxes, |control| control.max(self.mailboxes)),
            finite: table.finite.unwrap_or(self.finite),
            optional_layers: table.optional_layers.unwrap_or(self.optional_layers),
            off_layers: table.off_layers.unwrap_or(self.off_layers),
        }
    }

    /// The narrower of both, key by key.
    pub fn narrowed(mut self, other: Option<CeilingTable>, source: &str) -> Self {
        let Some(other) = other else { return self };
        let own = self.clone();
        let other = own.replaced(Some(other), source);
        self.source = format!("{} narrowed by {source}", self.source);
        self.level = self.level.max(other.level);
        if other.network == Network::None {
            self.network = Network::None;
        }
        if width(other.syscalls_default) < width(self.syscalls_default) {
            self.syscalls_default = other.syscalls_default;
        }
        self.compat &= other.compat;
        self.mailboxes = self.mailboxes.max(other.mailboxes);
        self.capabilities.retain(|name| other.capabilities.contains(name));
        self.optional_layers.retain(|layer| other.optional_layers.contains(layer));
        self.off_layers.retain(|layer| other.off_layers.contains(layer));
        unite(&mut self.syscalls_forbidden, other.syscalls_forbidden);
        unite(&mut self.grant_forbidden, other.grant_forbidden);
        unite(&mut self.write_forbidden, other.write_forbidden);
        unite(&mut self.finite, other.finite);
        self
    }

    /// Finds the first rule of `draft` that asks for more.
    pub fn check(&self, mode: Mode, draft: &Draft) -> Result<(), PolicyError> {
        let refuse = |at: &Origin, asked: String, limit: String| {
            Err(PolicyError::Ceiling { at: at.clone(), asked, limit, mode, ceiling: self.source.clone() })
        };
        if let Some(rule) = &draft.level
            && rule.value < self.level
        {
            let [asked, least] = [rule.value, self.level].map(|level| format!("isolation level {level}"));
            return refuse(&rule.origin, asked, format!("the least is {least}"));
        }
        if let Some(rule) = &draft.network
            && rule.value == Network::Host
            && self.network == Network::None
        {
            return refuse(&rule.origin, "the network of the host".to_owned(), "no network can be given".to_owned());
        }
        if let Some(rule) = &draft.syscalls_default
            && width(rule.value) > width(self.syscalls_default)
        {
            let [asked, limit] = [rule.value, self.syscalls_default].map(default_name);
            return refuse(
                &rule.origin,
                format!("system calls to be `{asked}` by default"),
                format!("the widest default is `{limit}`"),
            );
        }
        if let Some(rule) = &draft.compat
            && rule.value
            && !self.compat
        {
            return refuse(
                &rule.origin,
                "32-bit programs".to_owned(),
                "only the ABI of the machine can be used".to_owned(),
            );
        }
        for (group, origin) in &draft.syscalls_allow {
            if self.syscalls_forbidden.contains(group) {
                return refuse(
                    origin,
                    format!("the system call group `{group}`"),
                    "it can never be allowed".to_owned(),
                );
            }
        }
        for rule in &draft.capabilities {
            if !self.capabilities.contains(&rule.value) {
                return refuse(&rule.origin, format!("capability {}", rule.value), "it cannot be kept".to_owned());
            }
        }
        if let Some(rule) = draft.mailboxes.iter().find(|rule| rule.value.control < self.mailboxes) {
            let (name, control) = (&rule.value.name, rule.value.control.name());
            let limit = format!("the laxest control is `{}`", self.mailboxes.name());
            return refuse(&rule.origin, format!("mailbox `{name}` to be `{control}`"), limit);
        }
        self.check_paths(draft, &refuse)?;
        self.check_limits(draft, &refuse)?;
        self.check_layers(draft, &refuse)
    }

    fn check_paths<F>(&self, draft: &Draft, refuse: &F) -> Result<(), PolicyError>
    where
        F: Fn(&Origin, String, String) -> Result<(), PolicyError>,
    {
        let binds = draft.places.iter().filter_map(|place| match place {
            Place::Bind(access, grant) => Some((*access, grant)),
            Place::Tmpfs(_) => None,
        });
        let others = draft.exec.iter().chain(&draft.names).map(|grant| (Access::Read, grant));
        for (access, grant) in binds.chain(others) {
            let Grant { path, dest, origin, .. } = grant;
            for name in [path, dest] {
                if let Some(forbidden) = overlap(&self.grant_forbidden, name) {
                    return refuse(origin, shown(name), limit(name, forbidden, "granted"));
                }
            }
            if access == Access::Write
                && let Some(forbidden) = overlap(&self.write_forbidden, path)
            {
                let limit = limit(path, forbidden, "granted for writing");
                return refuse(origin, format!("{} writable", shown(path)), limit);
            }
        }
        Ok(())
    }

    fn check_limits<F>(&self, draft: &Draft, refuse: &F) -> Result<(), PolicyError>
    where
        F: Fn(&Origin, String, String) -> Result<(), PolicyError>,
    {
        let mode_file = Origin::flag(&self.source);
        for name in &self.finite {
            let limits = &draft.limits;
            let (key, origin) = match name {
                LimitName::Memory => ("memory", unlimited(&limits.memory)),
                LimitName::Swap => ("swap", unlimited(&limits.swap)),
                LimitName::Cpu => ("cpu", unlimited(&limits.cpu)),
                LimitName::Tasks => ("tasks", unlimited(&limits.tasks)),
                LimitName::OpenFiles => ("open_files", unlimited(&limits.open_files)),
                LimitName::FileSize => ("file_size", unlimited(&limits.file_size)),
                LimitName::WallTime => ("wall_time", unlimited(&limits.wall_time)),
            };
            if let Some(origin) = origin {
                return refuse(
                    origin.unwrap_or(&mode_file),
                    format!("no limit for `{key}`"),
                    "it must be finite".to_owned(),
                );
            }
        }
        Ok(())
    }

    fn check_layers<F>(&self, draft: &Draft, refuse: &F) -> Result<(), PolicyError>
    where
        F: Fn(&Origin, String, String) -> Result<(), PolicyError>,
    {
        for (layer, rule) in &draft.layers {
            let at = &rule.origin;
            let (asked, allowed) = match rule.value {
                Requirement::Required => continue,
                // A flag is explicit, and the receipt shows what was skipped.
                Requirement::Optional => {
                    let by_flag = *at == Origin::flag(OPTIONAL);
                    ("optional", by_flag || self.optional_layers.contains(layer))
                }
                Requirement::Off => ("off", self.off_layers.contains(layer)),
            };
            if layer.is_foundation() {
                return Err(PolicyError::Foundation { at: at.clone(), layer: *layer, asked });
            }
            if !allowed {
                let limit = match rule.value {
                    Requirement::Optional => "a file cannot do that (`--optional` on the command line can)",
                    Requirement::Required | Requirement::Off => "it cannot be turned off",
                };
                return refuse(at, format!("layer {layer} to be {asked}"), limit.to_owned());
            }
        }
        Ok(())
    }
}

/// Refuses paths in a ceiling that would silently match nothing.
pub(super) fn check_table(
    table: &CeilingTable,
    lines: &Lines,
    span: &std::ops::Range<usize>,
) -> Result<(), PolicyError> {
    for path in table.grant_forbidden.iter().chain(&table.write_forbidden).flatten() {
        if !path.is_absolute() || path::normalise(path).as_os_str() != path.as_os_str() {
            let message = format!(
                "path `{}` in [ceiling] is not absolute and plain; write it without `.`, `..` or variables",
                path.display()
            );
            return Err(PolicyError::value(&lines.origin(span), message));
        }
    }
    Ok(())
}

/// `Some` when there is no limit, with the rule that says so when there is one.
fn unlimited<T>(limit: &Option<Rule<Option<T>>>) -> Option<Option<&Origin>> {
    match limit {
        None => Some(None),
        Some(rule) if rule.value.is_none() => Some(Some(&rule.origin)),
        Some(_) => None,
    }
}

fn shown(path: &Path) -> String {
    format!("`{}`", path.display())
}

/// Why a path is too much: it lies in a forbidden one, or holds one.
fn limit(path: &Path, forbidden: &Path, verb: &str) -> String {
    if is_within(path, forbidden) {
        format!("nothing of {} can be {verb}", shown(forbidden))
    } else {
        format!("it contains {}, of which nothing can be {verb}", shown(forbidden))
    }
}

/// The forbidden path that `path` is, lies beneath or contains.
fn overlap<'a>(forbidden: &'a [PathBuf], path: &Path) -> Option<&'a Path> {
    forbidden.iter().map(PathBuf::as_path).find(|other| is_within(path, other) || is_within(other, path))
}

fn unite<T: PartialEq>(list: &mut Vec<T>, more: Vec<T>) {
    for item in more {
        if !list.contains(&item) {
            list.push(item);
        }
    }
}

const fn width(default: SyscallDefault) -> u8 {
    match default {
        SyscallDefault::Deny => 0,
        SyscallDefault::Report => 1,
        SyscallDefault::Allow => 2,
    }
}

const fn default_name(default: SyscallDefault) -> &'static str {
    match default {
        SyscallDefault::Deny => "deny",
        SyscallDefault::Report => "report",
        SyscallDefault::Allow => "allow",
    }
}

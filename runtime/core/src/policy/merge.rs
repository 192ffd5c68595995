//! Layers of a policy put on top of each other. Input: files and flags in order; output: a [`Policy`].
//!
//! Lists are united, a later scalar wins, `hide` and `deny` never vanish, and one path inside holds one thing: the later rule.
//! Every rule keeps its origin until the ceiling was checked. The rules are documented in docs/reference/policy.md.

use std::collections::BTreeMap;
use std::path::Path;

use toml::Spanned;

use super::ceiling::Ceiling;
use super::error::PolicyError;
use super::file::{File, FilesystemTable, MailboxTable, ResourcesTable};
use super::level;
use super::source::{NO_REASON, Source};
use super::value::{Entry, TmpfsTable};
use super::{
    Environment, Filesystem, Grant, Identity, IsolationLevel, Mode, Network, Origin, Policy, ProcView, Resources,
    SyscallDefault, Syscalls, TmpfsGrant, Tty,
};
use crate::layer::{Layer, Requirement};
use crate::mail;

/// Path rules that one policy may have: each becomes a mount or a Landlock rule.
pub const PATH_RULES_MAX: usize = 1024;

/// Largest user or group id; the one above means "no change" to the kernel.
pub(super) const ID_MAX: u32 = u32::MAX - 1;

const TMP_SIZE_DEFAULT: u64 = 64 << 20;
const HOSTNAME_DEFAULT: &str = "sandbox";

/// A value and the rule that gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule<T> {
    pub value: T,
    pub origin: Origin,
}

impl<T> Rule<T> {
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Rule<U> {
        Rule { value: change(self.value), origin: self.origin }
    }
}

/// What a grant lets the sandbox do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// What stands at one path inside.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Bind(Access, Grant),
    Tmpfs(TmpfsGrant),
}

impl Place {
    fn dest(&self) -> &Path {
        match self {
            Place::Bind(_, grant) => &grant.dest,
            Place::Tmpfs(tmpfs) => &tmpfs.dest,
        }
    }
}

/// Limits so far; an inner `None` is unlimited.
#[derive(Debug, Default)]
pub(super) struct Limits {
    pub memory: Option<Rule<Option<u64>>>,
    pub swap: Option<Rule<Option<u64>>>,
    pub cpu: Option<Rule<Option<u32>>>,
    pub tasks: Option<Rule<Option<u64>>>,
    pub open_files: Option<Rule<Option<u64>>>,
    pub file_size: Option<Rule<Option<u64>>>,
    pub tmp_size: Option<Rule<u64>>,
    pub wall_time: Option<Rule<Option<u64>>>,
}

/// The policy so far.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub level: Option<Rule<IsolationLevel>>,
    pub places: Vec<Place>,
    pub exec: Vec<Grant>,
    pub names: Vec<Grant>,
    pub hide: Vec<Grant>,
    pub deny: Vec<Grant>,
    pub proc: Option<Rule<ProcView>>,
    pub network: Option<Rule<Network>>,
    pub syscalls_default: Option<Rule<SyscallDefault>>,
    pub syscalls_allow: BTreeMap<String, Origin>,
    pub syscalls_deny: BTreeMap<String, Origin>,
    pub compat: Option<Rule<bool>>,
    pub capabilities: Vec<Rule<String>>,
    pub limits: Limits,
    pub pass: Vec<String>,
    pub set: BTreeMap<String, String>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub hostname: Option<Rule<String>>,
    pub tty: Option<Tty>,
    pub layers: BTreeMap<Layer, Rule<Requirement>>,
    pub mailboxes: Vec<Rule<mail::Rule>>,
}

impl Draft {
    /// Puts `file` on top.
    pub fn apply(&mut self, file: File, source: &Source<'_>) -> Result<(), PolicyError> {
        if let Some(level) = file.level.map(|level| source.rule(level)) {
            self.set_level(level)?;
        }
        self.apply_filesystem(file.filesystem, source)?;
        self.apply_resources(file.resources, source);
        replace(&mut self.network, file.network.access.map(|access| source.rule(access)));
        replace(&mut self.syscalls_default, file.syscalls.default.map(|default| source.rule(default)));
        replace(&mut self.compat, file.syscalls.compat.map(|compat| source.rule(compat)));
        if file.syscalls.inherit == Some(false) {
            self.syscalls_allow.clear();
        }
        for name in file.syscalls.allow {
            let group = source.group(name)?;
            self.syscalls_allow.entry(group.value).or_insert(group.origin);
        }
        for name in file.syscalls.deny {
            let group = source.group(name)?;
            self.syscalls_deny.entry(group.value).or_insert(group.origin);
        }
        for name in file.capabilities.keep {
            self.keep_capability(source.rule(name))?;
        }
        for name in file.environment.pass {
            let name = source.rule(name);
            self.pass_env(&name.value, &name.origin)?;
        }
        for (name, value) in file.environment.set {
            let value = source.rule(value);
            self.set_env(&name, &value.value, &value.origin)?;
        }
        if let Some(uid) = file.identity.uid.map(|uid| source.rule(uid)) {
            self.uid = Some(checked_id(uid.value, &uid.origin)?);
        }
        if let Some(gid) = file.identity.gid.map(|gid| source.rule(gid)) {
            self.gid = Some(checked_id(gid.value, &gid.origin)?);
        }
        if let Some(hostname) = file.identity.hostname.map(|hostname| source.rule(hostname)) {
            self.set_hostname(hostname.value, &hostname.origin)?;
        }
        replace(&mut self.tty, file.terminal.tty);
        self.apply_mailboxes(file.mailboxes, source)?;
        for (layer, requirement) in file.layers {
            self.layers.insert(layer, source.rule(requirement));
        }
        Ok(())
    }

    fn apply_filesystem(&mut self, table: FilesystemTable, source: &Source<'_>) -> Result<(), PolicyError> {
        if table.inherit == Some(false) {
            self.places.clear();
            self.exec.clear();
            self.names.clear();
        }
        for entry in table.tmpfs {
            let Rule { value: Entry(TmpfsTable { path, size }), origin } = source.rule(entry);
            let dest = source.dest(&path, &origin)?;
            self.add_tmpfs(TmpfsGrant { dest, size_bytes: size.map(|size| size.0), origin })?;
        }
        for entry in table.read {
            self.add_grant(Access::Read, source.grant(entry)?)?;
        }
        for entry in table.write {
            self.add_grant(Access::Write, source.grant(entry)?)?;
        }
        for entry in table.exec {
            self.add_exec(source.grant(entry)?)?;
        }
        for entry in table.names {
            self.add_name(source.refusal("names", entry)?)?;
        }
        for entry in table.hide {
            let grant = source.refusal("hide", entry)?;
            add_refusal(&mut self.hide, grant)?;
        }
        for entry in table.deny {
            self.add_deny(source.refusal("deny", entry)?)?;
        }
        replace(&mut self.proc, table.proc.map(|proc| source.rule(proc)));
        Ok(())
    }

    /// One name, one rule: what two files say of a mailbox must both allow it.
    fn apply_mailboxes(&mut self, tables: Vec<Spanned<MailboxTable>>, source: &Source<'_>) -> Result<(), PolicyError> {
        let before = self.mailboxes.len();
        for table in tables {
            let Rule { value, origin } = source.rule(table);
            let wrong = |message: String| PolicyError::value(&origin, message);
            let rule = mailbox(value).map_err(wrong)?;
            match self.mailboxes.iter().position(|other| other.value.name == rule.name) {
                Some(at) if at >= before => {
                    return Err(wrong(format!("mailbox `{}` is named twice; write one table for it", rule.name)));
                }
                Some(at) => {
                    let both = self.mailboxes[at].value.clone().and(rule).map_err(wrong)?;
                    both.check().map_err(wrong)?;
                    self.mailboxes[at] = Rule { value: both, origin };
                }
                None => self.mailboxes.push(Rule { value: rule, origin }),
            }
        }
        let rules: Vec<mail::Rule> = self.mailboxes.iter().map(|rule| rule.value.clone()).collect();
        match self.mailboxes.last() {
            Some(last) => mail::check(&rules).map_err(|message| PolicyError::value(&last.origin, message)),
            None => Ok(()),
        }
    }

    fn apply_resources(&mut self, table: ResourcesTable, source: &Source<'_>) {
        let limits = &mut self.limits;
        let raise = source.raise_limits;
        limit(&mut limits.memory, table.memory.map(|limit| source.rule(limit).map(|bytes| bytes.0)), raise);
        limit(&mut limits.swap, table.swap.map(|limit| source.rule(limit).map(|bytes| bytes.0)), raise);
        limit(&mut limits.cpu, table.cpu.map(|limit| source.rule(limit).map(|percent| percent.0)), raise);
        limit(&mut limits.tasks, table.tasks.map(|limit| source.rule(limit).map(|count| count.0)), raise);
        limit(&mut limits.open_files, table.open_files.map(|limit| source.rule(limit).map(|count| count.0)), raise);
        limit(&mut limits.file_size, table.file_size.map(|limit| source.rule(limit).map(|bytes| bytes.0)), raise);
        limit(&mut limits.wall_time, table.wall_time.map(|limit| source.rule(limit).map(|time| time.0)), raise);
        if let Some(size) = table.tmp_size.map(|size| source.rule(size).map(|bytes| bytes.0)) {
            let lower = limits.tmp_size.as_ref().is_some_and(|old| old.value >= size.value);
            if !(raise && lower) {
                limits.tmp_size = Some(size);
            }
        }
    }

    pub fn add_grant(&mut self, access: Access, grant: Grant) -> Result<(), PolicyError> {
        self.add_place(Place::Bind(access, grant))
    }

    pub fn add_tmpfs(&mut self, tmpfs: TmpfsGrant) -> Result<(), PolicyError> {
        if tmpfs.dest == Path::new("/") {
            return Err(PolicyError::value(
                &tmpfs.origin,
                "`/` is the root of the sandbox, which Apex builds; put the tmpfs beneath it",
            ));
        }
        self.add_place(Place::Tmpfs(tmpfs))
    }

    /// One path inside holds one thing. The later rule takes the end of the line, so that order is order of writing.
    fn add_place(&mut self, place: Place) -> Result<(), PolicyError> {
        // Both are normal already: comparing bytes is enough, and this runs at every start.
        self.places.retain(|other| other.dest().as_os_str() != place.dest().as_os_str());
        if self.places.len() == PATH_RULES_MAX {
            let at = match &place {
                Place::Bind(_, grant) => &grant.origin,
                Place::Tmpfs(tmpfs) => &tmpfs.origin,
            };
            return Err(too_many(at));
        }
        self.places.push(place);
        Ok(())
    }

    pub fn add_exec(&mut self, grant: Grant) -> Result<(), PolicyError> {
        self.exec.retain(|other| other.dest.as_os_str() != grant.dest.as_os_str());
        if self.exec.len() == PATH_RULES_MAX {
            return Err(too_many(&grant.origin));
        }
        self.exec.push(grant);
        Ok(())
    }

    fn add_name(&mut self, grant: Grant) -> Result<(), PolicyError> {
        self.names.retain(|other| other.dest.as_os_str() != grant.dest.as_os_str());
        if self.names.len() == PATH_RULES_MAX {
            return Err(too_many(&grant.origin));
        }
        self.names.push(grant);
        Ok(())
    }

    pub fn add_deny(&mut self, grant: Grant) -> Result<(), PolicyError> {
        add_refusal(&mut self.deny, grant)
    }

    pub fn pass_env(&mut self, name: &str, at: &Origin) -> Result<(), PolicyError> {
        check_env_name(name, at)?;
        // One name, one rule: the later.
        self.set.remove(name);
        if !self.pass.iter().any(|other| other == name) {
            self.pass.push(name.to_owned());
        }
        Ok(())
    }

    pub fn set_env(&mut self, name: &str, value: &str, at: &Origin) -> Result<(), PolicyError> {
        check_env_name(name, at)?;
        if value.contains('\0') {
            return Err(PolicyError::value(at, format!("the value of `{name}` holds a NUL byte; no environment can")));
        }
        self.pass.retain(|other| other != name);
        self.set.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    pub fn set_hostname(&mut self, hostname: String, at: &Origin) -> Result<(), PolicyError> {
        // HOST_NAME_MAX of Linux is 64 (gethostname(2)).
        let fits = (1..=64).contains(&hostname.len());
        if !fits || !hostname.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.') {
            return Err(PolicyError::value(
                at,
                format!("`{hostname}` is not a host name; write 1 to 64 letters, digits, `-` or `.`"),
            ));
        }
        self.hostname = Some(Rule { value: hostname, origin: at.clone() });
        Ok(())
    }

    /// What was said before binds: a later rule asks for as much confinement or more.
    pub fn set_level(&mut self, level: Rule<IsolationLevel>) -> Result<(), PolicyError> {
        match &self.level {
            Some(wider) if level.value < wider.value => Err(PolicyError::LevelLowered {
                at: level.origin,
                asked: level.value,
                wider: wider.origin.clone(),
                level: wider.value,
            }),
            _ => {
                self.level = Some(level);
                Ok(())
            }
        }
    }

    fn keep_capability(&mut self, name: Rule<String>) -> Result<(), PolicyError> {
        let known = name.value.strip_prefix("CAP_").is_some_and(|rest| {
            !rest.is_empty()
                && rest.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
        });
        if !known {
            return Err(PolicyError::value(
                &name.origin,
                format!(
                    "`{}` is not a capability; write its name as in capabilities(7), such as `CAP_NET_RAW`",
                    name.value
                ),
            ));
        }
        if !self.capabilities.iter().any(|other| other.value == name.value) {
            self.capabilities.push(name);
        }
        Ok(())
    }

    /// Checks the ceiling and gives the policy. What nothing has set takes the strictest value.
    /// `defaults` are the sources of the mode.
    pub fn finish(
        self,
        mode: Mode,
        sources: Vec<String>,
        defaults: &[String],
        ceiling: &Ceiling,
    ) -> Result<Policy, PolicyError> {
        ceiling.check(mode, &self)?;
        let level = self.level.as_ref().map_or(IsolationLevel::Full, |rule| rule.value);
        level::check(&self, level, defaults)?;
        let mut filesystem = Filesystem {
            read: Vec::with_capacity(self.places.len()),
            write: Vec::new(),
            exec: self.exec,
            names: self.names,
            hide: self.hide,
            deny: self.deny,
            tmpfs: Vec::new(),
            proc: self.proc.map_or(ProcView::Pid, |rule| rule.value),
        };
        for place in self.places {
            match place {
                Place::Bind(Access::Read, grant) => filesystem.read.push(grant),
                Place::Bind(Access::Write, grant) => filesystem.write.push(grant),
                Place::Tmpfs(tmpfs) => filesystem.tmpfs.push(tmpfs),
            }
        }
        let mut layers: BTreeMap<Layer, Requirement> =
            Layer::ALL.into_iter().map(|layer| (layer, Requirement::Required)).collect();
        layers.extend(self.layers.into_iter().map(|(layer, rule)| (layer, rule.value)));
        Ok(Policy {
            mode,
            level,
            sources,
            config: Vec::new(),
            filesystem,
            network: self.network.map_or(Network::None, |rule| rule.value),
            syscalls: Syscalls {
                default: self.syscalls_default.map_or(SyscallDefault::Deny, |rule| rule.value),
                allow: self.syscalls_allow,
                deny: self.syscalls_deny,
                compat: self.compat.is_some_and(|rule| rule.value),
            },
            capabilities: self.capabilities.into_iter().map(|rule| rule.value).collect(),
            resources: self.limits.finish(),
            environment: Environment { pass: self.pass, set: self.set },
            identity: Identity {
                uid: self.uid,
                gid: self.gid,
                hostname: self.hostname.map_or_else(|| HOSTNAME_DEFAULT.to_owned(), |rule| rule.value),
            },
            tty: self.tty.unwrap_or(Tty::Auto),
            layers,
            mailboxes: self.mailboxes.into_iter().map(|rule| rule.value).collect(),
        })
    }
}

impl Limits {
    fn finish(self) -> Resources {
        fn value<T>(rule: Option<Rule<Option<T>>>) -> Option<T> {
            rule.and_then(|rule| rule.value)
        }
        Resources {
            memory_bytes: value(self.memory),
            swap_bytes: value(self.swap),
            cpu_percent: value(self.cpu),
            tasks: value(self.tasks),
            open_files: value(self.open_files),
            file_size_bytes: value(self.file_size),
            tmp_size_bytes: self.tmp_size.map_or(TMP_SIZE_DEFAULT, |rule| rule.value),
            wall_time_ms: value(self.wall_time),
        }
    }
}

/// Keeps the first rule on a path: it stands whatever comes later.
fn add_refusal(refusals: &mut Vec<Grant>, grant: Grant) -> Result<(), PolicyError> {
    if refusals.iter().any(|other| other.path == grant.path && (!other.optional || grant.optional)) {
        return Ok(());
    }
    refusals.retain(|other| other.path != grant.path);
    if refusals.len() == PATH_RULES_MAX {
        return Err(too_many(&grant.origin));
    }
    refusals.push(grant);
    Ok(())
}

fn replace<T>(old: &mut Option<T>, new: Option<T>) {
    if new.is_some() {
        *old = new;
    }
}

/// Puts a limit in the place of an older one. What a profile names is what its kind of work needs: it raises, and never lowers.
fn limit<T: PartialOrd>(old: &mut Option<Rule<Option<T>>>, new: Option<Rule<Option<T>>>, raise: bool) {
    let Some(new) = new else { return };
    let enough = old.as_ref().is_some_and(|old| match (&old.value, &new.value) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(old), Some(new)) => old >= new,
    });
    if !(raise && enough) {
        *old = Some(new);
    }
}

/// A table with what it leaves open.
fn mailbox(table: MailboxTable) -> Result<mail::Rule, String> {
    let MailboxTable { name, send, receive, control, max_size, rate, schema, reason } = table;
    if !send && !receive {
        return Err(format!(
            "mailbox `{}` is for nothing; write `send = true`, `receive = true` or both",
            name.escape_default()
        ));
    }
    let rule = mail::Rule {
        name,
        send,
        receive,
        control: control.unwrap_or(mail::Control::Filtered),
        max_bytes: max_size.map_or(mail::BODY_BYTES_MAX, |size| size.0),
        rate: rate.unwrap_or(mail::RATE_DEFAULT),
        schema,
        reason: reason.unwrap_or_else(|| NO_REASON.to_owned()),
    };
    rule.check()?;
    Ok(rule)
}

fn too_many(at: &Origin) -> PolicyError {
    PolicyError::TooMany { at: at.clone(), what: "path rules of one kind", max: PATH_RULES_MAX }
}

pub(super) fn checked_id(id: u32, at: &Origin) -> Result<u32, PolicyError> {
    if id > ID_MAX {
        return Err(PolicyError::value(at, format!("{id} is not an id; write a number from 0 to {ID_MAX}")));
    }
    Ok(id)
}

fn check_env_name(name: &str, at: &Origin) -> Result<(), PolicyError> {
    if name.is_empty() || name.contains(['=', '\0', '*']) {
        let message = format!(
            "`{}` is not the name of a variable; write each name by itself, without `=` or `*`",
            name.escape_default()
        );
        return Err(PolicyError::value(at, message));
    }
    Ok(())
}

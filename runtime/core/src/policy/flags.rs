//! What the command line says about the policy. Input: the words as they were typed; output: the last layer of the merge.
//!
//! The words are kept as they are until here, so that a flag and a file have one syntax and one set of messages.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as WordError, StrDeserializer};

use super::error::{PolicyError, nearest};
use super::merge::{Access, Draft, Rule};
use super::path::{self, Context};
use super::value::{Amount, Bytes, Count, FiniteBytes, Millis, Percent};
use super::{Grant, IsolationLevel, Origin, TmpfsGrant};
use crate::layer::{Layer, Requirement};

/// The flags that shape a policy, as they were typed. An absent flag says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--ro PATH[:DEST]`: readable and executable.
    pub ro: Vec<OsString>,
    /// `--rw PATH[:DEST]`: readable, writable and executable.
    pub rw: Vec<OsString>,
    /// `--tmpfs DEST[:SIZE]`.
    pub tmpfs: Vec<OsString>,
    /// `--deny PATH`.
    pub deny: Vec<OsString>,
    /// `--level full|partial|none`.
    pub level: Option<String>,
    /// `--net none|host`.
    pub net: Option<String>,
    /// `--env K=V`.
    pub env: Vec<String>,
    /// `--pass-env K`.
    pub pass_env: Vec<String>,
    /// `--uid`.
    pub uid: Option<String>,
    /// `--gid`.
    pub gid: Option<String>,
    /// `--hostname`.
    pub hostname: Option<String>,
    /// `--memory`.
    pub memory: Option<String>,
    /// `--cpu`, percent of one core.
    pub cpu: Option<String>,
    /// `--tasks`.
    pub tasks: Option<String>,
    /// `--nofile`.
    pub nofile: Option<String>,
    /// `--tmp-size`.
    pub tmp_size: Option<String>,
    /// `--time`.
    pub time: Option<String>,
    /// `--tty auto|yes|no`.
    pub tty: Option<String>,
    /// `--optional LAYER`.
    pub optional: Vec<String>,
}

/// A time as `--time` takes it, in milliseconds; `None` is unlimited. `option` is where it was given.
pub fn time_ms(option: &'static str, text: &str) -> Result<Option<u64>, PolicyError> {
    Ok(amount::<Millis>(option, text)?.value.0)
}

impl Flags {
    /// Limits of a sandbox that runs, with those that are given in the place of those in force.
    pub fn limits_over(&self, now: crate::control::Limits) -> Result<crate::control::Limits, PolicyError> {
        let mut limits = now;
        if let Some(text) = &self.memory {
            limits.memory_bytes = amount::<Bytes<1>>("--memory", text)?.value.0;
        }
        if let Some(text) = &self.tasks {
            limits.tasks = amount::<Count>("--tasks", text)?.value.0;
        }
        if let Some(text) = &self.cpu {
            limits.cpu_percent = amount::<Percent>("--cpu", text)?.value.0.map(u64::from);
        }
        Ok(limits)
    }

    /// Whether no flag was given.
    pub fn is_empty(&self) -> bool {
        *self == Flags::default()
    }

    pub(super) fn apply(&self, draft: &mut Draft, context: &Context<'_>) -> Result<(), PolicyError> {
        self.apply_paths(draft, context)?;
        self.apply_limits(draft)?;
        if let Some(text) = &self.level {
            draft.set_level(word("--level", text, &IsolationLevel::ALL.map(IsolationLevel::name))?)?;
        }
        if let Some(text) = &self.net {
            draft.network = Some(word("--net", text, &["none", "host"])?);
        }
        if let Some(text) = &self.tty {
            draft.tty = Some(word("--tty", text, &["auto", "yes", "no"])?.value);
        }
        for text in &self.env {
            let at = Origin::flag("--env");
            let (name, value) = text
                .split_once('=')
                .ok_or_else(|| PolicyError::value(&at, format!("`{text}` has no `=`; write NAME=VALUE")))?;
            draft.set_env(name, value, &at)?;
        }
        for name in &self.pass_env {
            draft.pass_env(name, &Origin::flag("--pass-env"))?;
        }
        if let Some(text) = &self.uid {
            draft.uid = Some(draft_id("--uid", text)?);
        }
        if let Some(text) = &self.gid {
            draft.gid = Some(draft_id("--gid", text)?);
        }
        if let Some(text) = &self.hostname {
            draft.set_hostname(text.clone(), &Origin::flag("--hostname"))?;
        }
        for name in &self.optional {
            let at = Origin::flag(OPTIONAL);
            let layer =
                Layer::ALL.into_iter().find(|layer| layer.name() == name).ok_or_else(|| PolicyError::UnknownWord {
                    nearest: nearest(name, Layer::ALL.map(Layer::name)),
                    at: at.clone(),
                    value: name.clone(),
                    accepted: Layer::ALL
                        .iter()
                        .filter(|layer| !layer.is_foundation())
                        .map(|layer| layer.name().to_owned())
                        .collect(),
                })?;
            draft.layers.insert(layer, Rule { value: Requirement::Optional, origin: at });
        }
        Ok(())
    }

    fn apply_paths(&self, draft: &mut Draft, context: &Context<'_>) -> Result<(), PolicyError> {
        for (flag, access, texts) in [("--ro", Access::Read, &self.ro), ("--rw", Access::Write, &self.rw)] {
            for text in texts {
                let grant = path_and_dest(flag, text, context)?;
                draft.add_exec(grant.clone())?;
                draft.add_grant(access, grant)?;
            }
        }
        for text in &self.tmpfs {
            let at = Origin::flag("--tmpfs");
            let (dest, size) = split(text);
            let size = size.map(|size| amount::<FiniteBytes>("--tmpfs", &size.to_string_lossy())).transpose()?;
            let dest = absolute("--tmpfs", Path::new(dest))?;
            draft.add_tmpfs(TmpfsGrant { dest, size_bytes: size.map(|size| size.value.0), origin: at })?;
        }
        for text in &self.deny {
            let path = non_empty("--deny", text).map(|text| path::in_flag(Path::new(text), context))?;
            draft.add_deny(flag_grant("--deny", path.clone(), path))?;
        }
        Ok(())
    }

    fn apply_limits(&self, draft: &mut Draft) -> Result<(), PolicyError> {
        let limits = &mut draft.limits;
        if let Some(text) = &self.memory {
            limits.memory = Some(amount::<Bytes<1>>("--memory", text)?.map(|bytes| bytes.0));
        }
        if let Some(text) = &self.cpu {
            limits.cpu = Some(amount::<Percent>("--cpu", text)?.map(|percent| percent.0));
        }
        if let Some(text) = &self.tasks {
            limits.tasks = Some(amount::<Count>("--tasks", text)?.map(|count| count.0));
        }
        if let Some(text) = &self.nofile {
            limits.open_files = Some(amount::<Count>("--nofile", text)?.map(|count| count.0));
        }
        if let Some(text) = &self.tmp_size {
            limits.tmp_size = Some(amount::<FiniteBytes>("--tmp-size", text)?.map(|bytes| bytes.0));
        }
        if let Some(text) = &self.time {
            limits.wall_time = Some(amount::<Millis>("--time", text)?.map(|time| time.0));
        }
        Ok(())
    }
}

/// The flag whose rules may name any layer but a foundation.
pub(super) const OPTIONAL: &str = "--optional";

fn amount<T: Amount>(flag: &str, text: &str) -> Result<Rule<T>, PolicyError> {
    let origin = Origin::flag(flag);
    match T::from_text(text) {
        Some(value) => Ok(Rule { value, origin }),
        None => Err(PolicyError::value(&origin, format!("`{text}` is not accepted, expected {}", T::ACCEPTED))),
    }
}

/// One word of a fixed set, read by the same rules as in files.
fn word<'a, T: Deserialize<'a>>(flag: &str, text: &'a str, accepted: &[&str]) -> Result<Rule<T>, PolicyError> {
    let deserializer: StrDeserializer<'a, WordError> = text.into_deserializer();
    let origin = Origin::flag(flag);
    match T::deserialize(deserializer) {
        Ok(value) => Ok(Rule { value, origin }),
        Err(_) => Err(PolicyError::UnknownWord {
            at: origin,
            value: text.to_owned(),
            nearest: nearest(text, accepted.iter().copied()),
            accepted: accepted.iter().map(|word| (*word).to_owned()).collect(),
        }),
    }
}

fn draft_id(flag: &str, text: &str) -> Result<u32, PolicyError> {
    let at = Origin::flag(flag);
    let id = text.parse().map_err(|_| {
        PolicyError::value(&at, format!("`{text}` is not an id; write a number from 0 to {}", super::merge::ID_MAX))
    })?;
    super::merge::checked_id(id, &at)
}

/// Splits at the last colon: a path that holds a colon itself is written in a policy file.
fn split(text: &OsStr) -> (&OsStr, Option<&OsStr>) {
    let bytes = text.as_bytes();
    match bytes.iter().rposition(|byte| *byte == b':') {
        Some(at) => (OsStr::from_bytes(&bytes[..at]), Some(OsStr::from_bytes(&bytes[at + 1..]))),
        None => (text, None),
    }
}

fn path_and_dest(flag: &str, text: &OsStr, context: &Context<'_>) -> Result<Grant, PolicyError> {
    let (source, dest) = split(text);
    let path = path::in_flag(Path::new(non_empty(flag, source)?), context);
    let dest = match dest {
        Some(dest) => absolute(flag, Path::new(dest))?,
        None => path.clone(),
    };
    Ok(flag_grant(flag, path, dest))
}

fn flag_grant(flag: &str, path: PathBuf, dest: PathBuf) -> Grant {
    Grant {
        path,
        dest,
        reason: "asked for on the command line".to_owned(),
        optional: false,
        origin: Origin::flag(flag),
    }
}

fn non_empty<'a>(flag: &str, text: &'a OsStr) -> Result<&'a OsStr, PolicyError> {
    if text.is_empty() {
        return Err(PolicyError::value(&Origin::flag(flag), "an empty path; name the file or directory that is meant"));
    }
    Ok(text)
}

fn absolute(flag: &str, dest: &Path) -> Result<PathBuf, PolicyError> {
    if !dest.is_absolute() {
        let message =
            format!("`{}` is not a path inside the sandbox; write an absolute one after the last `:`", dest.display());
        return Err(PolicyError::value(&Origin::flag(flag), message));
    }
    Ok(path::normalise(dest))
}

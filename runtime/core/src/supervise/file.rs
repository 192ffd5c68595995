//! A group as people write it. Input: TOML; output: what it asks for, in the words in which the API takes it, or an error that names file, line and the nearest valid
//! key. Must not judge what a sandbox may have: that is the policy's, and the daemon's.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use toml::Spanned;

use super::{BackOff, Draft, Intensity, Restart, Spec, SpecError, Strategy, spec};
use crate::policy::{Lines, Millis, Origin, PolicyError, shaped};

/// A group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupFile {
    /// Its name.
    pub name: String,
    /// Who is started anew with whom.
    pub strategy: Strategy,
    /// How many restarts are borne.
    pub intensity: Intensity,
    /// How long restarts wait.
    pub back_off: BackOff,
    /// As they stand in the file.
    pub members: Vec<MemberFile>,
}

/// A member: options of a sandbox by their names, and when it is started and ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "the table `[[member]]`")]
pub struct MemberFile {
    /// Its name within the group.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// When it is started anew.
    pub restart: Restart,
    /// Names of the members that must run for it to run.
    pub after: Vec<String>,
    /// Between being asked to end and being ended.
    pub stop_within: Time,
    /// What tells whether it is well.
    pub health: Option<HealthFile>,
    /// A mode.
    pub mode: String,
    /// An isolation level.
    pub level: String,
    /// A profile.
    pub profile: String,
    /// Path of a policy file.
    pub policy: String,
    /// Directory of the host for what a policy calls `${CWD}`.
    pub cwd: String,
    /// Directory inside.
    pub workdir: String,
    /// Grants to read.
    pub ro: Vec<String>,
    /// Grants to write.
    pub rw: Vec<String>,
    /// Private directories.
    pub tmpfs: Vec<String>,
    /// Paths that are refused.
    pub deny: Vec<String>,
    /// Layers that may be missing.
    pub optional: Vec<String>,
    /// The network.
    pub net: String,
    /// Variables.
    pub env: BTreeMap<String, String>,
    /// Limits.
    pub limits: LimitsFile,
    /// Level of watching.
    pub watch: String,
    /// What is done on findings.
    pub on_finding: String,
    /// What is done at limits, `KIND=ACTION`.
    pub on_limit: Vec<String>,
    /// How long a start waits for room in the budget.
    pub wait_for_room: String,
    /// Words that go along.
    pub labels: BTreeMap<String, String>,
}

/// A command that is run in a member's sandbox and tells by its exit code whether that is well.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "the table `[member.health]`")]
pub struct HealthFile {
    /// Program and arguments.
    pub command: Vec<String>,
    /// From one to the next.
    pub interval: Time,
    /// How long one may take.
    pub timeout: Time,
    /// How many may fail in a row before it counts as ill.
    pub retries: Option<u32>,
}

/// Limits of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "the table `[member.limits]`")]
pub struct LimitsFile {
    /// Such as "512M".
    pub memory: Word,
    /// Such as 64.
    pub tasks: Word,
    /// Such as "150%".
    pub cpu: Word,
    /// Such as "10m".
    pub time: Word,
}

/// A text, or a number as one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word(pub String);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Word;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text such as \"512M\", or a number")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Word, E> {
                Ok(Word(text.to_owned()))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Word, E> {
                Ok(Word(number.to_string()))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// Milliseconds; `None` is not given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time(pub Option<u64>);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Millis::deserialize(deserializer)? {
            Millis(Some(ms)) => Ok(Time(Some(ms))),
            Millis(None) => Err(de::Error::custom("`unlimited` is no time here; give one such as \"10s\"")),
        }
    }
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    group: Option<Spanned<GroupTable>>,
    member: Vec<Spanned<MemberFile>>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "the table `[group]`")]
struct GroupTable {
    name: Option<String>,
    strategy: Strategy,
    intensity: IntensityTable,
    back_off: BackOffTable,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table such as { restarts = 5, within = \"60s\" }")]
struct IntensityTable {
    restarts: Option<u32>,
    within: Time,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table such as { first = \"100ms\", max = \"30s\" }")]
struct BackOffTable {
    first: Time,
    max: Time,
}

/// Reads and checks a group.
///
/// # Errors
/// Text that is no group, with file, line and what is accepted there.
pub fn read(text: &str, file: &str) -> Result<GroupFile, PolicyError> {
    let lines = Lines::new(file.to_owned(), text);
    let File { group, member } = shaped(text, &lines)?;
    let Some(group) = group else {
        return Err(PolicyError::value(&lines.origin(&(0..0)), "the table `[group]` is missing; it takes a `name`"));
    };
    let at = lines.origin(&group.span());
    let GroupTable { name, strategy, intensity, back_off } = group.into_inner();
    let Some(name) = name else {
        return Err(PolicyError::value(&at, "the key `name` is missing; `apex down` takes it"));
    };
    spec::check_name("group", &name).map_err(|error| PolicyError::value(&at, error))?;
    let spans: Vec<Range<usize>> = member.iter().map(Spanned::span).collect();
    let members: Vec<MemberFile> = member.into_iter().map(Spanned::into_inner).collect();
    let (usual, slow) = (Intensity::default(), BackOff::default());
    let group = GroupFile {
        name,
        strategy,
        intensity: Intensity {
            restarts: intensity.restarts.unwrap_or(usual.restarts),
            within_ms: intensity.within.0.unwrap_or(usual.within_ms),
        },
        back_off: BackOff {
            first_ms: back_off.first.0.unwrap_or(slow.first_ms),
            max_ms: back_off.max.0.unwrap_or(slow.max_ms.max(back_off.first.0.unwrap_or(0))),
        },
        members,
    };
    for (member, span) in group.members.iter().zip(&spans) {
        if member.command.is_empty() {
            let words = "the key `command` is missing; it takes the program and its arguments, as a list";
            return Err(PolicyError::value(&lines.origin(span), words));
        }
        if member.health.as_ref().is_some_and(|health| health.command.is_empty()) {
            let words = "`health` has no `command`; it takes the program and its arguments, as a list";
            return Err(PolicyError::value(&lines.origin(span), words));
        }
    }
    let checked = Spec::new(group.strategy, group.intensity, group.back_off, &group.drafts());
    match checked {
        Ok(_) => Ok(group),
        Err(error) => Err(PolicyError::value(&place(&error, &group, &spans, &lines).unwrap_or(at), error)),
    }
}

impl GroupFile {
    fn drafts(&self) -> Vec<Draft> {
        let draft = |member: &MemberFile| Draft {
            name: member.name.clone(),
            restart: member.restart,
            after: member.after.clone(),
            is_probed: member.health.is_some(),
        };
        self.members.iter().map(draft).collect()
    }
}

/// The table of the member that an error is about.
fn place(error: &SpecError, group: &GroupFile, spans: &[Range<usize>], lines: &Lines) -> Option<Origin> {
    let name = match error {
        SpecError::Name { name, .. } | SpecError::Twice { name } => name,
        SpecError::Unknown { member, .. } => member,
        SpecError::Circle { chain } => chain.first()?,
        SpecError::Count { .. } | SpecError::Number { .. } => return None,
    };
    // Of two with one name, the second.
    let at = group.members.iter().rposition(|member| member.name == *name)?;
    spans.get(at).map(|span| lines.origin(span))
}

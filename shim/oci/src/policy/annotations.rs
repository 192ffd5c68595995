//! The annotations by which a bundle asks for a policy. One that is not known is refused: a misspelt one would confine nothing.

use std::path::{Path, PathBuf};

use apex_core::policy::Mode;
use oci_spec::runtime::Spec;

use super::PolicyError;

/// What the names have in common.
const PREFIX: &str = "dev.apex.";
/// `isolation`, `development` or `hybrid`.
pub const MODE: &str = "dev.apex.mode";
/// A policy file by its absolute path, or a profile by its name.
pub const POLICY: &str = "dev.apex.policy";
/// How much is watched.
pub const WATCH: &str = "dev.apex.watch";
pub(super) const NAMES: [&str; 3] = [MODE, POLICY, WATCH];

/// What is asked for.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub mode: Option<Mode>,
    pub profile: Option<String>,
    pub file: Option<PathBuf>,
}

pub(super) fn read(spec: &Spec) -> Result<Option<Asked>, PolicyError> {
    let Some(annotations) = spec.annotations() else { return Ok(None) };
    let mut ours: Vec<_> = annotations.iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
    ours.sort();
    let mut asked = Asked::default();
    let mut is_asked = false;
    for (name, value) in ours {
        match name.as_str() {
            MODE => asked.mode = Some(mode(value)?),
            POLICY if Path::new(value).is_absolute() => asked.file = Some(PathBuf::from(value)),
            POLICY if !value.is_empty() && !value.contains('/') => asked.profile = Some(value.clone()),
            POLICY => return refuse(POLICY, value, "an absolute path of a policy file or the name of a profile"),
            WATCH => match value.as_str() {
                "off" => continue,
                "default" | "full" => return Err(PolicyError::Watch),
                _ => return refuse(WATCH, value, "off, default or full"),
            },
            _ => return Err(PolicyError::UnknownAnnotation { name: name.clone() }),
        }
        is_asked = true;
    }
    Ok(is_asked.then_some(asked))
}

fn mode(value: &str) -> Result<Mode, PolicyError> {
    let known = [Mode::Isolation, Mode::Development, Mode::Hybrid].into_iter().find(|mode| mode.name() == value);
    known.map_or_else(|| refuse(MODE, value, "isolation, development or hybrid"), Ok)
}

fn refuse<T>(name: &'static str, value: &str, wanted: &'static str) -> Result<T, PolicyError> {
    Err(PolicyError::Value { name, value: value.to_owned(), wanted })
}

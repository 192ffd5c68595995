//! The rules of one file, with their place and their paths made absolute. Input: the shape of a file; output: rules.

use std::path::{Path, PathBuf};

use toml::Spanned;

use super::error::{PolicyError, nearest};
use super::file::Lines;
use super::merge::Rule;
use super::path::{self, Context};
use super::value::{Entry, PathTable};
use super::{Grant, Origin};

pub(super) const NO_REASON: &str = "no reason given";

/// How the rules of one file are to be read.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub lines: &'a Lines,
    /// Where relative paths start.
    pub dir: Option<&'a Path>,
    pub context: &'a Context<'a>,
    /// The system call groups that exist.
    pub groups: &'a [&'a str],
    /// Whether limits only raise what is there.
    pub raise_limits: bool,
}

impl Source<'_> {
    pub fn rule<T>(&self, spanned: Spanned<T>) -> Rule<T> {
        let origin = self.lines.origin(&spanned.span());
        Rule { value: spanned.into_inner(), origin }
    }

    fn path(&self, text: &str, origin: &Origin) -> Result<PathBuf, PolicyError> {
        path::in_file(text, self.dir, self.context).map_err(|message| PolicyError::value(origin, message))
    }

    pub fn dest(&self, text: &str, origin: &Origin) -> Result<PathBuf, PolicyError> {
        path::in_file(text, None, self.context).map_err(|message| PolicyError::value(origin, message))
    }

    pub fn grant(&self, entry: Spanned<Entry<PathTable>>) -> Result<Grant, PolicyError> {
        let Rule { value: Entry(table), origin } = self.rule(entry);
        let path = self.path(&table.path, &origin)?;
        let dest = match &table.dest {
            Some(dest) => self.dest(dest, &origin)?,
            None => path.clone(),
        };
        let reason = table.reason.unwrap_or_else(|| NO_REASON.to_owned());
        Ok(Grant { path, dest, reason, optional: table.optional.unwrap_or(false), origin })
    }

    /// A rule that takes away: it speaks of a path, wherever that is shown.
    pub fn refusal(&self, key: &str, entry: Spanned<Entry<PathTable>>) -> Result<Grant, PolicyError> {
        let table = &entry.get_ref().0;
        let has_dest = table.dest.is_some();
        // A denial that could be left out would not be one.
        let has_optional = key == "deny" && table.optional.is_some();
        let grant = self.grant(entry)?;
        for (name, found) in [("dest", has_dest), ("optional", has_optional)] {
            if found {
                let message = format!("`{name}` means nothing in `{key}`; remove it");
                return Err(PolicyError::value(&grant.origin, message));
            }
        }
        Ok(grant)
    }

    pub fn group(&self, name: Spanned<String>) -> Result<Rule<String>, PolicyError> {
        let Rule { value: group, origin: at } = self.rule(name);
        if self.groups.contains(&group.as_str()) {
            return Ok(Rule { value: group, origin: at });
        }
        let nearest = nearest(&group, self.groups.iter().copied());
        Err(PolicyError::UnknownGroup { at, group, nearest })
    }
}

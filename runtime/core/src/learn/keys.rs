//! Keys in what is granted. Input: grants, what of them was used, and the host. Output: what to deny, by its path on the host.
//!
//! A directory is granted for what was used of it, and may hold keys that nobody touched: those are found by their names and denied.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::needs::{Wanted, is_below};
use super::{Outside, Right, Setting, Stands};
use crate::explain::sensitive;

/// Keys that are denied: with those of the run fewer than a policy may deny (`PATH_RULES_MAX`).
pub const DENIED_MAX: usize = 512;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// To be denied, with what they are.
    pub denied: BTreeMap<PathBuf, &'static str>,
    /// Directories that were not searched to their end.
    pub unsearched: BTreeSet<PathBuf>,
}

/// Keys within `files`, of which `used` was used.
pub(super) fn within(files: &Wanted, used: &BTreeSet<PathBuf>, setting: &Setting, outside: &dyn Outside) -> Keys {
    let used: BTreeSet<PathBuf> = used.iter().map(|path| setting.source(path)).collect();
    let names: Vec<&str> = sensitive::kept_names().map(|(name, _)| name).collect();
    let mut keys = Keys::default();
    let granted = files.keys().filter(|(right, _)| matches!(right, Right::Read | Right::Write));
    for dir in granted.map(|(_, path)| setting.source(path)).filter(|path| outside.stands(path) == Stands::Dir) {
        let search = outside.named_below(&dir, &names);
        if search.is_cut {
            keys.unsearched.insert(dir.clone());
        }
        for path in search.found {
            if keys.denied.len() >= DENIED_MAX {
                keys.unsearched.insert(dir);
                break;
            }
            if let Some((_, why)) = sensitive::kept_names().find(|(name, _)| path.ends_with(name)) {
                keys.deny(path, why, &used, outside);
            }
        }
    }
    keys
}

impl Keys {
    /// As a whole; where something of it was used (`known_hosts`, public keys), the rest by itself: a grant in what is denied stops the start.
    fn deny(&mut self, path: PathBuf, why: &'static str, used: &BTreeSet<PathBuf>, outside: &dyn Outside) {
        if !is_below(used, &path) {
            self.denied.insert(path, why);
            return;
        }
        let search = outside.entries(&path);
        for entry in search.found.into_iter().filter(|entry| !sensitive::is_public(entry)) {
            // No deeper than what was used.
            self.deny(entry, why, used, outside);
        }
        if search.is_cut {
            self.unsearched.insert(path);
        }
    }
}

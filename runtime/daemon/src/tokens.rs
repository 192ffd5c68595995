//! What the warden vouched for, kept by the daemon: a token for each user and group that asked, handed back with every start as that user.
//!
//! In a file, so that a sandbox is started anew after a restart of apexd as well. A token of a key that is gone is refused by the warden; the next connection of
//! its user brings a new one.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::say::{self, Level};

/// Identities that are remembered: everybody may connect.
const TOKENS_MAX: usize = 4096;

/// The tokens.
pub struct Tokens {
    path: PathBuf,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    tokens: BTreeMap<(u32, u32), String>,
    /// Those that this warden gave, whose key is the one that counts.
    fresh: HashSet<(u32, u32)>,
}

impl Tokens {
    /// With what is in this file. One that cannot be read holds none: everybody who connects is vouched for anew.
    pub fn open(path: PathBuf) -> Tokens {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let tokens = text.lines().filter_map(parse).take(TOKENS_MAX).collect();
        Tokens { path, known: Mutex::new(Known { tokens, fresh: HashSet::new() }) }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token of an identity.
    pub fn of(&self, uid: u32, gid: u32) -> Option<String> {
        self.known().tokens.get(&(uid, gid)).cloned()
    }

    /// Whether the warden need not be asked.
    pub fn is_fresh(&self, uid: u32, gid: u32) -> bool {
        self.known().fresh.contains(&(uid, gid))
    }

    /// Notes one that the warden gave.
    pub fn note(&self, uid: u32, gid: u32, token: String) {
        let mut known = self.known();
        let is_new = known.tokens.get(&(uid, gid)) != Some(&token);
        if known.tokens.len() >= TOKENS_MAX && !known.tokens.contains_key(&(uid, gid)) {
            // The highest uid: root and the system's own users come first.
            if let Some((forgotten, _)) = known.tokens.pop_last() {
                known.fresh.remove(&forgotten);
            }
        }
        known.tokens.insert((uid, gid), token);
        known.fresh.insert((uid, gid));
        if is_new && let Err(error) = self.write(&known) {
            // It counts as long as this daemon lives.
            say::line(Level::Warning, "tokens", None, format_args!("writing {}: {error}", self.path.display()));
        }
    }

    fn write(&self, known: &Known) -> std::io::Result<()> {
        let mut text = String::new();
        for ((uid, gid), token) in &known.tokens {
            // A String takes everything.
            let _ = writeln!(text, "{uid} {gid} {token}");
        }
        let new = self.path.with_extension("new");
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        std::fs::rename(new, &self.path)
    }
}

fn parse(line: &str) -> Option<((u32, u32), String)> {
    let mut words = line.split(' ');
    let (uid, gid) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(((uid, gid), words.next()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_outlive_the_daemon_and_are_asked_for_again() {
        let path = std::env::temp_dir().join(format!("apexd-tokens-{}", std::process::id()));
        let tokens = Tokens::open(path.clone());
        tokens.note(1000, 100, "one".to_owned());
        tokens.note(0, 0, "two".to_owned());
        assert!(tokens.is_fresh(0, 0) && !tokens.is_fresh(0, 1));
        let again = Tokens::open(path.clone());
        assert_eq!((again.of(1000, 100).as_deref(), again.of(0, 0).as_deref()), (Some("one"), Some("two")));
        assert_eq!(again.of(1000, 0), None);
        assert!(!again.is_fresh(1000, 100), "its warden may have another key");
        again.note(1000, 100, "three".to_owned());
        assert_eq!(Tokens::open(path.clone()).of(1000, 100).as_deref(), Some("three"));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn there_is_a_bound() {
        let path = std::env::temp_dir().join(format!("apexd-tokens-many-{}", std::process::id()));
        let many = (0..TOKENS_MAX).map(|uid| format!("{uid} 1 token\n")).collect::<String>();
        std::fs::write(&path, many).unwrap();
        let tokens = Tokens::open(path.clone());
        tokens.note(70_000, 1, "last".to_owned());
        assert_eq!(tokens.known().tokens.len(), TOKENS_MAX);
        assert_eq!(tokens.of(70_000, 1).as_deref(), Some("last"));
        assert!(tokens.of(0, 1).is_some(), "root is not what gives way");
        // One that is there already takes nobody's place.
        tokens.note(0, 1, "anew".to_owned());
        assert_eq!(tokens.known().tokens.len(), TOKENS_MAX);
        assert_eq!(tokens.of(70_000, 1).as_deref(), Some("last"));
        std::fs::remove_file(path).unwrap();
    }
}

//! One run in numbers and names, bounded whatever the sandbox does.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::place;
use crate::event::{Event, Start, What};
use crate::refusal::Access;

/// Most names of one class that a summary keeps; the rest is counted.
pub const NAMES_MAX: usize = 1024;
/// Most processes whose last event is remembered.
const PROCESSES_MAX: usize = 8192;
/// Most paths that are known to bring nothing new.
const PATHS_MAX: usize = 1 << 16;
/// The time over which the busiest moment is counted.
pub const WINDOW_NS: u64 = 1_000_000_000;

/// Whose behaviour a model describes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Profile, or the mode where no profile was named.
    pub profile: String,
    /// SHA-256 of the plan.
    pub plan_sha256: String,
}

impl Key {
    /// That of a run.
    pub fn of(start: &Start) -> Key {
        Key {
            profile: start.profile.clone().unwrap_or_else(|| start.mode.clone()),
            plan_sha256: start.plan_sha256.clone(),
        }
    }
}

/// What a name is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// A program that was executed.
    Program,
    /// A directory in which something was read or changed.
    Place,
    /// An address that was connected, sent to or bound.
    Peer,
    /// A system call that was counted or recorded.
    Call,
    /// A system call that was refused.
    Refusal,
    /// One event of a process and the one after it.
    Transition,
}

impl Class {
    /// All of them.
    pub const ALL: [Class; 6] =
        [Class::Program, Class::Place, Class::Peer, Class::Call, Class::Refusal, Class::Transition];

    /// The plural in output.
    pub const fn words(self) -> &'static str {
        match self {
            Class::Program => "programs",
            Class::Place => "directories",
            Class::Peer => "peers",
            Class::Call => "system calls",
            Class::Refusal => "refused calls",
            Class::Transition => "transitions",
        }
    }
}

/// A count over the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tally {
    /// In all.
    pub total: u64,
    /// In the busiest second.
    pub peak: u64,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSummary {
    /// Hash of when and where it ran: the same run is the same id.
    pub id: String,
    /// Whose run.
    pub key: Key,
    /// Events by kind, bytes by direction.
    pub tallies: BTreeMap<String, Tally>,
    /// System calls by name.
    pub calls: BTreeMap<String, u64>,
    /// Transitions, `A>B`; `!` marks an event that failed.
    pub transitions: BTreeMap<String, u64>,
    /// Programs, places, peers, refusals.
    pub names: BTreeMap<Class, BTreeSet<String>>,
    /// Names that did not fit.
    pub overflow: u64,
}

impl RunSummary {
    /// The names of a class.
    pub fn of(&self, class: Class) -> Box<dyn Iterator<Item = &String> + '_> {
        match class {
            Class::Call => Box::new(self.calls.keys()),
            Class::Transition => Box::new(self.transitions.keys()),
            Class::Program | Class::Place | Class::Peer | Class::Refusal => {
                Box::new(self.names.get(&class).into_iter().flatten())
            }
        }
    }
}

type Token = (&'static str, bool);

/// Sums up a run as it goes.
#[derive(Debug)]
pub struct Recorder {
    key: Key,
    id: String,
    tallies: BTreeMap<&'static str, (Tally, u64)>,
    calls: BTreeMap<String, u64>,
    transitions: BTreeMap<(Token, Token), u64>,
    names: BTreeMap<Class, BTreeSet<String>>,
    overflow: u64,
    last: HashMap<u32, Token>,
    /// Hashes of paths that were looked at: making a path general is the dearest part, and most paths come again.
    seen: HashSet<u64>,
    hasher: RandomState,
    window_ns: u64,
    /// Names that came since they were last asked for.
    fresh: Vec<(Class, String)>,
}

impl Recorder {
    /// Of a run of `key`. Its id is made of the first event.
    pub fn new(key: Key) -> Recorder {
        Recorder {
            key,
            id: String::new(),
            tallies: BTreeMap::new(),
            calls: BTreeMap::new(),
            transitions: BTreeMap::new(),
            names: BTreeMap::new(),
            overflow: 0,
            last: HashMap::new(),
            seen: HashSet::new(),
            hasher: RandomState::new(),
            window_ns: 0,
            fresh: Vec::new(),
        }
    }

    /// Takes an event.
    pub fn observe(&mut self, event: &Event) {
        if self.id.is_empty() {
            self.id = id(event);
        }
        self.turn_window(event.time_ns);
        match &event.what {
            // Runs that are learned from are no others for being looked at more closely.
            What::Start(_) | What::End(_) | What::Lost { .. } | What::Look { .. } => return,
            What::Calls { counts } => return counts.iter().for_each(|(name, count)| self.call(name, *count)),
            What::Traffic { received_bytes, sent_bytes } => {
                self.count("bytes received", *received_bytes);
                return self.count("bytes sent", *sent_bytes);
            }
            _ => {}
        }
        let token = (event.what.name(), event.error.is_some());
        self.count(token.0, 1);
        self.step(event, token);
        self.name(event);
    }

    /// Names that came since the last time.
    pub fn fresh(&mut self) -> Vec<(Class, String)> {
        std::mem::take(&mut self.fresh)
    }

    /// The run so far.
    pub fn summary(&self) -> RunSummary {
        let token = |(name, failed): &Token| format!("{name}{}", if *failed { "!" } else { "" });
        RunSummary {
            id: self.id.clone(),
            key: self.key.clone(),
            tallies: self.tallies.iter().map(|(name, (tally, _))| ((*name).to_owned(), *tally)).collect(),
            calls: self.calls.clone(),
            transitions: self
                .transitions
                .iter()
                .map(|((from, to), count)| (format!("{}>{}", token(from), token(to)), *count))
                .collect(),
            names: self.names.clone(),
            overflow: self.overflow,
        }
    }

    fn turn_window(&mut self, time_ns: u64) {
        let window = time_ns / WINDOW_NS;
        if window > self.window_ns {
            self.window_ns = window;
            self.tallies.values_mut().for_each(|(_, now)| *now = 0);
        }
    }

    fn count(&mut self, name: &'static str, count: u64) {
        let (tally, now) = self.tallies.entry(name).or_default();
        *now = now.saturating_add(count);
        tally.total = tally.total.saturating_add(count);
        tally.peak = tally.peak.max(*now);
    }

    fn call(&mut self, name: &str, count: u64) {
        if let Some(known) = self.calls.get_mut(name) {
            *known = known.saturating_add(count);
        } else if self.calls.len() < NAMES_MAX && name.len() <= place::NAME_BYTES_MAX {
            self.calls.insert(name.to_owned(), count);
            self.fresh.push((Class::Call, name.to_owned()));
        } else {
            self.overflow += 1;
        }
    }

    fn step(&mut self, event: &Event, token: Token) {
        if event.pid == 0 {
            return;
        }
        let before = match event.what {
            What::Exit { .. } => self.last.remove(&event.pid),
            _ if self.last.len() < PROCESSES_MAX || self.last.contains_key(&event.pid) => {
                self.last.insert(event.pid, token)
            }
            _ => None,
        };
        if let Some(before) = before {
            // Bounded by the square of the number of kinds.
            *self.transitions.entry((before, token)).or_insert_with(|| {
                let mark = |failed| if failed { "!" } else { "" };
                let words = format!("{}{}>{}{}", before.0, mark(before.1), token.0, mark(token.1));
                self.fresh.push((Class::Transition, words));
                0
            }) += 1;
        }
    }

    fn name(&mut self, event: &Event) {
        match &event.what {
            What::Exec { path, fileless, .. } if event.error.is_none() => {
                let name = if *fileless { "(no file)".to_owned() } else { place::program(path) };
                self.add(Class::Program, name);
            }
            What::Connect { address } | What::Send { address, .. } => {
                self.add(Class::Peer, format!("to {}", place::peer(address, false)));
            }
            What::Bind { address } => self.add(Class::Peer, format!("bind {}", place::peer(address, true))),
            What::Open { path, access, create, truncate } => {
                let is_change = *create || *truncate || *access == Access::Write;
                self.place(if is_change { "change" } else { "read" }, path);
            }
            What::Mkdir { path } | What::Unlink { path } | What::Chmod { path, .. } | What::Chown { path, .. } => {
                self.place("change", path);
            }
            What::Symlink { path, .. } => self.place("change", path),
            What::Rename { from, to } | What::Link { from, to } => {
                self.place("change", from);
                self.place("change", to);
            }
            What::Call { name, .. } => self.call(name, 1),
            What::Refused(refused) => self.add(Class::Refusal, refused.call.chars().take(64).collect()),
            _ => {}
        }
    }

    fn place(&mut self, verb: &'static str, path: &str) {
        let hash = self.hasher.hash_one((verb, path));
        if self.seen.contains(&hash) {
            return;
        }
        if self.seen.len() < PATHS_MAX {
            self.seen.insert(hash);
        }
        self.add(Class::Place, format!("{verb} {}", place::directory(path)));
    }

    fn add(&mut self, class: Class, name: String) {
        let names = self.names.entry(class).or_default();
        if names.contains(&name) {
            return;
        }
        if names.len() >= NAMES_MAX {
            self.overflow += 1;
            return;
        }
        names.insert(name.clone());
        self.fresh.push((class, name));
    }
}

fn id(first: &Event) -> String {
    let mut hash = Sha256::new();
    hash.update(first.time_ns.to_le_bytes());
    hash.update(first.sandbox.to_le_bytes());
    if let What::Start(start) = &first.what {
        hash.update(start.wall_time_ns.to_le_bytes());
        hash.update(start.plan_sha256.as_bytes());
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

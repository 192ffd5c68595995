//! From uses to grants: what nothing gives yet, lifted from names that change, joined where many siblings are used.
//!
//! The rules, with their thresholds:
//! - What mode and profile grant, and what is private to the sandbox, is left out.
//! - A name that changes (see `name`) is granted through the directory that holds it, or, where that one is shared by others, as a tree
//!   of its own.
//! - [`SIBLINGS_MIN`] grants in one directory become the directory; so do [`TREE_MIN`] grants below it in [`SUBTREES_MIN`] subdirectories.
//! - What is made needs its directory; what is moved or linked needs one directory around both ends, since a mount has no way into another.
//! - Links that were passed and what was only looked at are granted narrower, see `looks`, as long as there is room.
//! - Nothing becomes a grant that is shared by others (`name::is_shared`), holds a secret, is denied, or lies where the ceiling forbids it.

mod joins;
mod looks;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::name;
use super::setting::{Setting, Top};
use super::text::Previous;
use super::{Learner, Outside, PROGRAMS_MAX, Stands, Use};
use crate::amount::count;
use crate::explain::sensitive;
use crate::planner::MADE_FILES;
use crate::refusal::Access;

/// Grants in one directory that make the directory the grant.
pub const SIBLINGS_MIN: usize = 8;
/// Grants below a directory that make it the grant, when they lie in [`SUBTREES_MIN`] of its subdirectories.
pub const TREE_MIN: usize = 24;
/// See [`TREE_MIN`].
pub const SUBTREES_MIN: usize = 3;
pub(super) use joins::is_below;
pub use looks::LOOKS_MAX;
/// Grants for reading or executing what was opened: with those of mode, profile and looks fewer than a policy may have (`PATH_RULES_MAX`).
pub const GRANTS_MAX: usize = 512;
/// The same of writing.
pub const WRITES_MAX: usize = 128;

/// Notes that a reason tells.
pub(super) const NOTES_MAX: usize = 6;

/// Note on a directory that was opened itself: its names were listed, as far as anybody saw.
pub(super) const LISTED: &str = "listed";
/// Note on what was used otherwise.
pub(super) const CONTENT: &str = "content";

/// Why nothing is granted anew that a person took out.
const REMOVED: &str = "its line was removed by hand";

/// What a path is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Right {
    /// Reading.
    Read,
    /// Writing, and reading.
    Write,
    /// Executing.
    Exec,
    /// A private directory.
    Tmpfs,
    /// A name without what is behind it: a link, an empty directory.
    Name,
}

impl Right {
    /// The word in `[learned.seen]`, and the key in `[filesystem]`.
    pub const fn name(self) -> &'static str {
        match self {
            Right::Read => "read",
            Right::Write => "write",
            Right::Exec => "exec",
            Right::Tmpfs => "tmpfs",
            Right::Name => "names",
        }
    }

    /// All of them.
    pub const ALL: [Right; 5] = [Right::Read, Right::Write, Right::Exec, Right::Tmpfs, Right::Name];
}

/// One thing that is needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// How often and by whom, over all runs.
    pub seen: Use,
    /// In how many runs.
    pub runs: u64,
    /// A few details for people.
    pub notes: BTreeSet<String>,
    /// Of reading: whether it was opened, and not only looked at.
    pub is_opened: bool,
}

impl Need {
    fn join(&mut self, other: Need) {
        self.seen.times = self.seen.times.saturating_add(other.seen.times);
        self.seen.by.extend(other.seen.by);
        self.runs = self.runs.max(other.runs);
        self.notes.extend(other.notes);
        self.is_opened |= other.is_opened;
        self.trim();
    }

    /// Whether nothing but the names of a directory was asked for.
    pub(super) fn is_listing(&self) -> bool {
        self.notes.len() == 1 && self.notes.contains(LISTED)
    }

    pub(super) fn trim(&mut self) {
        while self.seen.by.len() > PROGRAMS_MAX {
            self.seen.by.pop_last();
        }
        // One more, which tells that there are more.
        while self.notes.len() > NOTES_MAX + 1 {
            self.notes.pop_last();
        }
    }
}

pub(super) type Wanted = BTreeMap<(Right, PathBuf), Need>;

/// What is wanted, by a right and a path alone.
type Places = BTreeSet<(Right, PathBuf)>;

/// Needs of one run, on their way.
pub(super) struct Needs<'a> {
    learner: &'a Learner,
    setting: &'a Setting,
    outside: &'a dyn Outside,
    previous: Option<&'a Previous>,
    /// Names that the run made, and did not find.
    made: BTreeSet<PathBuf>,
    /// What links of the host say, once asked.
    links: RefCell<BTreeMap<PathBuf, Option<PathBuf>>>,
    wanted: Wanted,
    asked: BTreeMap<String, String>,
    /// What the run looked for in vain although the host has it.
    pub unseen: Vec<PathBuf>,
}

/// What the needs come to.
pub(super) struct Found {
    /// Grants.
    pub files: Wanted,
    /// What they are granted for, over all runs.
    pub used: BTreeSet<PathBuf>,
    /// What was asked for and is not granted, with the reason.
    pub asked: BTreeMap<String, String>,
}

impl<'a> Needs<'a> {
    pub fn new(learner: &'a Learner, outside: &'a dyn Outside, previous: Option<&'a Previous>) -> Needs<'a> {
        let mut needs = Needs {
            learner,
            setting: &learner.setting,
            outside,
            previous,
            made: learner.made.clone(),
            links: RefCell::default(),
            wanted: Wanted::new(),
            asked: BTreeMap::new(),
            unseen: Vec::new(),
        };
        let is_new = |path: &&PathBuf| !matches!(needs.stands(path), Stands::File | Stands::Dir);
        let created: Vec<PathBuf> = learner.creates.keys().filter(is_new).cloned().collect();
        needs.made.extend(created);
        needs
    }

    /// What stood at a path inside before the run.
    fn stands(&self, path: &Path) -> Stands {
        match self.setting.run.top(path) {
            Some(Top::Piece(piece)) => self.outside.stands(&leads_to(piece, path)),
            Some(Top::Tmpfs(own)) if own == path => Stands::Dir,
            Some(Top::Tmpfs(_)) => Stands::Nothing,
            // A record of a run under another policy may tell of more.
            None => self.outside.stands(path),
        }
    }

    pub fn read(&mut self, path: &Path, seen: &Use) {
        if is_own_file(path) || self.is_made(path) || self.is_private(path, seen) {
            return;
        }
        if !self.was_shown(Right::Read, path, seen) || self.stands(path) == Stands::Nothing {
            return;
        }
        if !self.base_shows(path) {
            self.want(Right::Read, path, seen);
        }
        // The loader maps a library for execution.
        if is_library(path) && !self.base_executes(path) {
            self.want(Right::Exec, path, seen);
        }
    }

    pub fn exec(&mut self, path: &Path, seen: &Use) {
        if self.is_made(path) {
            // Made and then executed: the directory that it is made in must let it.
            let place = self.place_of(path);
            let may = self.setting.run.executes(&place) && self.may_be_granted(&place, Right::Write);
            if !self.base_executes(&place) && may {
                self.add(Right::Exec, place, seen);
            }
            return;
        }
        if self.is_private(path, seen) || self.stands(path) == Stands::Nothing {
            return;
        }
        if !self.was_shown(Right::Exec, path, seen) {
            return;
        }
        if !self.base_executes(path) {
            self.want(Right::Exec, path, seen);
        }
        if !self.base_shows(path) {
            self.want(Right::Read, path, seen);
        }
    }

    /// A change of what is there.
    pub fn edit(&mut self, path: &Path, seen: &Use) {
        if self.is_made(path) {
            return;
        }
        let path = &self.real(path, seen);
        if self.is_private(path, seen) || self.base_writes(path) {
            return;
        }
        if self.was_shown(Right::Write, path, seen) && self.stands(path) != Stands::Nothing {
            self.want(Right::Write, path, seen);
        }
    }

    /// Whether a piece of the host was there. A record of a run under another policy may tell of more.
    fn was_shown(&mut self, right: Right, path: &Path, seen: &Use) -> bool {
        let run = &self.setting.run;
        if matches!(run.top(path), Some(Top::Piece(_))) {
            return true;
        }
        let leads_on = run.pieces.iter().map(|piece| &piece.dest).chain(&run.tmpfs).any(|dest| dest.starts_with(path));
        if !leads_on {
            self.ask(right.name(), path, "the run that is learned from does not show it", seen);
        }
        false
    }

    fn ask(&mut self, verb: &str, path: &Path, otherwise: &str, seen: &Use) {
        let why = self.why_not(path).unwrap_or(otherwise);
        let by = seen.by.iter().next().map(|by| format!(" by {by}")).unwrap_or_default();
        self.asked.insert(format!("{verb} {}", path.display()), format!("{why}; {}{by}", count(seen.times, "time")));
    }

    /// An open that makes what is missing.
    pub fn create(&mut self, path: &Path, seen: &Use) {
        if self.is_made(path) { self.name(path, seen) } else { self.edit(path, seen) }
    }

    /// A name that comes or goes.
    pub fn name(&mut self, path: &Path, seen: &Use) {
        let place = self.place_of(path);
        let place = self.real(&place, seen);
        self.write_in(&place, path, seen);
    }

    pub fn move_between(&mut self, from: &Path, to: &Path) {
        let (one, other) = (self.place_of(from), self.place_of(to));
        let (one, other) = (self.real(&one, &Use::default()), self.real(&other, &Use::default()));
        let around = common(&one, &other);
        if one != other && !self.base_writes(&around) && !self.setting_is_private(&around) {
            let same_piece = self.setting.run.top(&one) == self.setting.run.top(&other);
            if same_piece && self.may_be_granted(&around, Right::Write) {
                self.add(Right::Write, around, &Use::default());
            } else {
                let what = format!("move {} to {}", from.display(), to.display());
                self.asked.insert(what, "no directory around both can be granted".to_owned());
            }
        }
    }

    pub fn refused(&mut self, access: Access, path: &Path, seen: &Use) {
        let verb = match access {
            Access::Look => "look at",
            Access::Read => "read",
            Access::Write => "write",
            Access::Exec => "execute",
        };
        self.ask(verb, path, "refused while it was learned from", seen);
    }

    /// Looked for and not found. Where the host has it, nothing showed it to the run.
    pub fn missing(&mut self, path: &Path, seen: &Use) {
        if matches!(self.setting.run.top(path), Some(Top::Piece(_)))
            || matches!(self.outside.stands(path), Stands::Nothing | Stands::Unknown)
        {
            return;
        }
        self.ask("read", path, "it is there outside and was not shown inside; --ro shows it", seen);
        if self.why_not(path).is_none() {
            self.unseen.push(path.to_owned());
        }
    }

    fn write_in(&mut self, place: &Path, path: &Path, seen: &Use) {
        if self.is_private(place, seen) || self.base_writes(place) {
            return;
        }
        if self.may_be_granted(place, Right::Write) {
            self.add(Right::Write, place.to_owned(), seen);
            return;
        }
        let why = match self.setting.run.top(place) {
            Some(_) => "its directory is shared by others and never granted as a whole",
            None => "the run that is learned from does not show its directory",
        };
        let why = self.why_not(place).unwrap_or(why);
        self.asked.insert(format!("make {}", path.display()), why.to_owned());
    }

    /// The directory of a name that is there without the run.
    fn place_of(&self, path: &Path) -> PathBuf {
        let mut place = path.parent().unwrap_or(path);
        while self.made.contains(place) || self.stands(place) == Stands::Nothing {
            match place.parent() {
                Some(parent) => place = parent,
                None => break,
            }
        }
        place.to_owned()
    }

    fn is_made(&self, path: &Path) -> bool {
        self.made.contains(path) || path.ancestors().any(|above| self.learner.made_dirs.contains(above))
    }

    fn setting_is_private(&self, path: &Path) -> bool {
        matches!(self.setting.run.top(path), Some(Top::Tmpfs(_)))
    }

    /// Whether it lies in a private directory of the run; one that the base lacks becomes a need.
    fn is_private(&mut self, path: &Path, seen: &Use) -> bool {
        let Some(Top::Tmpfs(tmpfs)) = self.setting.run.top(path) else { return false };
        let tmpfs = tmpfs.to_owned();
        if !matches!(self.setting.base.top(path), Some(Top::Tmpfs(own)) if own == tmpfs) {
            self.add(Right::Tmpfs, tmpfs, seen);
        }
        true
    }

    fn base_shows(&self, path: &Path) -> bool {
        if self.setting.starts_bare() {
            return self.is_seed(path);
        }
        match (self.setting.base.top(path), self.setting.run.top(path)) {
            (Some(Top::Piece(base)), Some(Top::Piece(run))) => leads_to(base, path) == leads_to(run, path),
            _ => false,
        }
    }

    fn base_executes(&self, path: &Path) -> bool {
        let is_system = || super::SEEDS[..super::SEEDS_EXEC].iter().any(|seed| path.starts_with(seed));
        if self.setting.starts_bare() { is_system() } else { self.setting.base.executes(path) }
    }

    fn base_writes(&self, path: &Path) -> bool {
        if self.setting.starts_bare() {
            return false;
        }
        match (self.setting.base.top(path), self.setting.run.top(path)) {
            (Some(Top::Piece(base)), Some(Top::Piece(run))) => {
                base.write && leads_to(base, path) == leads_to(run, path)
            }
            _ => false,
        }
    }

    fn is_seed(&self, path: &Path) -> bool {
        super::SEEDS.iter().any(|seed| path.starts_with(seed))
    }

    /// Takes a use in, lifted from a name that changes.
    fn want(&mut self, right: Right, path: &Path, seen: &Use) {
        match self.lift(right, path) {
            Some(lifted) if lifted == path && self.stands(path) == Stands::Dir => {
                self.add_noted(right, lifted, seen, LISTED);
            }
            Some(lifted) => self.add(right, lifted, seen),
            None => self.ask(right.name(), path, "it is shared by others and never granted as a whole", seen),
        }
    }

    fn lift(&self, right: Right, path: &Path) -> Option<PathBuf> {
        let anchor = self.anchor(path);
        let rest = path.strip_prefix(&anchor).unwrap_or(path);
        if let Some((before, through)) = name::cut(rest) {
            let (before, through) = (join(&anchor, &before), anchor.join(through));
            if self.may_be_granted(&before, right) {
                return Some(before);
            }
            if through != path && self.may_be_granted(&through, right) {
                return Some(through);
            }
        }
        self.may_be_granted(path, right).then(|| path.to_owned())
    }

    /// Where the names begin that belong to what is learned: names above it were chosen by whoever started the run.
    fn anchor(&self, path: &Path) -> PathBuf {
        let places = [Some(&self.setting.cwd), self.setting.home.as_ref()];
        let deepest =
            places.into_iter().flatten().filter(|place| path.starts_with(place)).max_by_key(|p| p.components().count());
        deepest.cloned().unwrap_or_else(|| PathBuf::from("/"))
    }

    fn add(&mut self, right: Right, path: PathBuf, seen: &Use) {
        self.add_noted(right, path, seen, CONTENT);
    }

    fn add_noted(&mut self, right: Right, path: PathBuf, seen: &Use, note: &str) {
        let need = self.wanted.entry((right, path)).or_default();
        let notes = BTreeSet::from([note.to_owned()]);
        need.join(Need { seen: seen.clone(), is_opened: true, notes, ..Need::default() });
    }

    /// Why nothing may be granted at `path`, as far as that is known.
    fn why_not(&self, path: &Path) -> Option<&'static str> {
        let setting = self.setting;
        if let Some(why) = sensitive::secret(path, setting.home.as_deref()) {
            return Some(why);
        }
        if setting.refused.iter().any(|refused| path.starts_with(refused)) {
            return Some("a rule denies it");
        }
        if setting.refused.iter().any(|refused| refused.starts_with(path)) {
            return Some("it holds something that a rule denies");
        }
        if overlaps(&setting.bounds.grant_forbidden, path) {
            return Some("the ceiling of the mode forbids it");
        }
        if path
            .to_str()
            .is_none_or(|text| text.chars().any(|c| c.is_control() || c == '\u{fffd}') || text.contains("${"))
        {
            return Some("its name cannot stand in a policy");
        }
        let previous = self.previous?;
        if previous.denies(path) {
            return Some("the file denies it");
        }
        previous.was_removed(path).then_some(REMOVED)
    }

    fn may_be_granted(&self, path: &Path, right: Right) -> bool {
        let setting = self.setting;
        let Some(Top::Piece(piece)) = setting.run.top(path) else { return false };
        let source = leads_to(piece, path);
        let is_good = |path: &Path| {
            self.why_not(path).is_none()
                && !name::is_shared(path, setting.home.as_deref())
                && !(setting.cwd.starts_with(path) && setting.cwd != path)
        };
        let may_write = || piece.write && !overlaps(&setting.bounds.write_forbidden, &source);
        is_good(path) && is_good(&source) && (right != Right::Write || may_write())
    }
}

/// The path on the host behind a path inside.
pub(super) fn leads_to(piece: &super::Piece, path: &Path) -> PathBuf {
    let rest = path.strip_prefix(&piece.dest).unwrap_or(Path::new(""));
    join(&piece.source, rest)
}

/// `base.join("")` would end in a slash.
fn join(base: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() { base.to_owned() } else { base.join(rest) }
}

/// Made by Apex, in each sandbox.
fn is_own_file(path: &Path) -> bool {
    MADE_FILES.iter().any(|file| path == Path::new(file))
}

fn overlaps(list: &[PathBuf], path: &Path) -> bool {
    list.iter().any(|other| path.starts_with(other) || other.starts_with(path))
}

fn common(one: &Path, other: &Path) -> PathBuf {
    one.components().zip(other.components()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect()
}

fn is_library(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    let versioned =
        || name.split_once(".so.").is_some_and(|(_, rest)| rest.bytes().all(|b| b.is_ascii_digit() || b == b'.'));
    name.ends_with(".so") || name.ends_with(".node") || versioned()
}

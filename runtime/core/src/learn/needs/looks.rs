//! Names as they were asked for: the links on their way, where they end, and what a look at that end needs.
//!
//! A link is granted as a name of its own, which gives nothing but what stands in it. A file that was looked at is granted by itself, never through
//! its directory: the look at one says nothing about the next. Where there are more than a policy has room for, directories are granted after
//! all, since a program may take what it does not find for deleted. A directory that was looked at or entered becomes an empty one.

use std::ffi::OsString;
use std::ops::Bound;
use std::path::{Component, Path, PathBuf};

use super::joins::{dirs_above, drop_covered, has_below};
use super::{LISTED, Need, Needs, Places, REMOVED, Right, Stands, Top, Use, Wanted, is_own_file, leads_to};
use crate::learn::{SEEDS, is_of_the_kernel};

/// Files that were only looked at, and names, that are granted; a policy has room for some more.
pub const LOOKS_MAX: usize = 256;
/// As in the kernel (path_resolution(7)).
const LINKS_MAX: usize = 40;
/// Interpreters behind each other that the kernel takes (`exec_binprm`).
const INTERPRETERS_MAX: usize = 5;

/// Where a name leads.
struct Way {
    /// Links that were passed, each by a path free of links.
    links: Vec<PathBuf>,
    /// Directories that were left by `..`, likewise: they had to be there.
    left: Vec<PathBuf>,
    /// A path free of links, but for its end where that is not followed.
    end: PathBuf,
}

impl Needs<'_> {
    /// A file that was asked to be executed. The interpreter that a script names is no more than a name either, and may be a script.
    pub fn asked(&mut self, name: &Path, seen: &Use) {
        let mut name = name.to_owned();
        for _ in 0..INTERPRETERS_MAX {
            let end = self.real(&name, seen);
            // A program is told of by its own path too, and counted there.
            if !self.learner.execs.contains_key(&end) {
                self.exec(&end, seen);
            }
            let Some(Top::Piece(piece)) = self.setting.run.top(&end) else { return };
            if self.is_made(&end) || self.why_not(&end).is_some() {
                return;
            }
            match self.outside.interpreter(&leads_to(piece, &end)) {
                Some(next) => name = next,
                None => return,
            }
        }
    }

    /// A name that was looked at.
    pub fn look(&mut self, name: &Path, follow: bool, seen: &Use) {
        let end = self.walk(name, follow, seen);
        if is_own_file(&end)
            || is_of_the_kernel(&end)
            || self.is_made(&end)
            || self.is_private(&end, seen)
            || self.base_shows(&end)
        {
            return;
        }
        if !matches!(self.setting.run.top(&end), Some(Top::Piece(_))) {
            // The way to what is shown; nothing of the host stands there.
            return;
        }
        if self.link(&end).is_some() {
            return self.pass(&end, seen);
        }
        match self.stands(&end) {
            Stands::Nothing => {}
            Stands::Dir => self.enter(&end, seen),
            Stands::File if self.may_be_granted(&end, Right::Read) => {
                let look = Need { seen: seen.clone(), ..Need::default() };
                self.wanted.entry((Right::Read, end)).or_default().join(look);
            }
            Stands::File => self.ask("look at", &end, "it is shared by others", seen),
            Stands::Unknown => self.ask("look at", &end, "what it is cannot be told", seen),
        }
    }

    /// The path without links behind a name; the links become needs.
    pub(super) fn real(&mut self, name: &Path, seen: &Use) -> PathBuf {
        self.walk(name, true, seen)
    }

    fn walk(&mut self, name: &Path, follow: bool, seen: &Use) -> PathBuf {
        let way = self.way(name, follow);
        for link in &way.links {
            self.pass(link, seen);
        }
        for dir in &way.left {
            let is_there = is_of_the_kernel(dir) || self.is_made(dir) || self.base_shows(dir);
            if !is_there && matches!(self.setting.run.top(dir), Some(Top::Piece(_))) {
                self.enter(dir, seen);
            }
        }
        way.end
    }

    fn pass(&mut self, link: &Path, seen: &Use) {
        if self.base_shows(link) {
            return;
        }
        match self.why_not_named(link) {
            None => self.add(Right::Name, link.to_owned(), seen),
            Some(why) => self.ask("follow the link", link, why, seen),
        }
    }

    fn enter(&mut self, dir: &Path, seen: &Use) {
        let base = &self.setting.base;
        let leads_on = match self.setting.starts_bare() {
            true => SEEDS.iter().map(Path::new).any(|seed| seed.starts_with(dir)),
            false => base.pieces.iter().any(|piece| piece.dest.starts_with(dir)),
        };
        if leads_on || base.tmpfs.iter().any(|tmpfs| tmpfs.starts_with(dir)) {
            return;
        }
        match self.why_not_named(dir) {
            None => self.add(Right::Name, dir.to_owned(), seen),
            Some(why) => self.ask("look at", dir, why, seen),
        }
    }

    /// Why a path may not stand inside as a name: it holds no place for another source.
    fn why_not_named(&self, path: &Path) -> Option<&'static str> {
        if self.previous.is_some_and(|previous| previous.was_name_removed(path)) {
            return Some(REMOVED);
        }
        let is_itself = matches!(self.setting.run.top(path), Some(Top::Piece(piece)) if leads_to(piece, path) == path);
        self.why_not(path).or((!is_itself).then_some("it is shown under another name"))
    }

    fn way(&self, name: &Path, follow: bool) -> Way {
        let mut rest: Vec<OsString> = Vec::new();
        push(name, &mut rest);
        let mut way = Way { links: Vec::new(), left: Vec::new(), end: PathBuf::from("/") };
        while let Some(part) = rest.pop() {
            if part == ".." {
                let left = way.end.clone();
                if way.end.pop() {
                    way.left.push(left);
                }
                continue;
            }
            let next = way.end.join(part);
            match self.link(&next).filter(|_| (follow || !rest.is_empty()) && way.links.len() < LINKS_MAX) {
                Some(target) => {
                    if target.is_absolute() {
                        way.end = PathBuf::from("/");
                    }
                    push(&target, &mut rest);
                    way.links.push(next);
                }
                None => way.end = next,
            }
        }
        way
    }

    /// What a link of the host says. What the run made, and what is private to it, is no link of the host.
    fn link(&self, path: &Path) -> Option<PathBuf> {
        let Some(Top::Piece(piece)) = self.setting.run.top(path) else { return None };
        if is_of_the_kernel(path) || self.made.contains(path) {
            return None;
        }
        if let Some(known) = self.links.borrow().get(path) {
            return known.clone();
        }
        let target = self.outside.link(&leads_to(piece, path));
        self.links.borrow_mut().insert(path.to_owned(), target.clone());
        target
    }

    /// Leaves out looks that have no room, and names that stand by what is granted.
    pub(super) fn settle_looks(&mut self, wanted: &mut Wanted) {
        self.make_room(wanted);
        let is_look = |right: Right, need: &Need| right == Right::Read && !need.is_opened;
        self.limit(wanted, LOOKS_MAX, "look at more files", is_look);
        let keys: Places = wanted.keys().cloned().collect();
        let has = |right: Right, path: &Path| keys.contains(&(right, path.to_owned()));
        let is_shown = |name: &Path| {
            name.ancestors().any(|above| has(Right::Read, above) || has(Right::Write, above))
                || [Right::Read, Right::Write, Right::Tmpfs]
                    .iter()
                    .any(|right| has_below(&keys, *right, Bound::Included(name)))
                || has_below(&keys, Right::Name, Bound::Excluded(name))
        };
        wanted.retain(|(right, path), _| *right != Right::Name || !is_shown(path));
        self.limit(wanted, LOOKS_MAX, "show more names", |right, _| right == Right::Name);
    }

    /// Grants directories of files that were looked at, the deepest first, until the others have room. They are told as listed.
    fn make_room(&self, wanted: &mut Wanted) {
        let is_look = |need: &Need| !need.is_opened;
        let mut looks = wanted.iter().filter(|((of, _), need)| *of == Right::Read && is_look(need)).count();
        if looks <= LOOKS_MAX {
            return;
        }
        for dir in dirs_above(wanted, Right::Read, &is_look) {
            if looks <= LOOKS_MAX {
                break;
            }
            let Some(below) = self.siblings(wanted, (Right::Read, &dir), &is_look) else { continue };
            looks -= below.len();
            let mut listed = Need { is_opened: true, notes: [LISTED.to_owned()].into(), ..Need::default() };
            for path in below {
                listed.join(wanted.remove(&(Right::Read, path)).unwrap_or_default());
            }
            wanted.entry((Right::Read, dir)).or_default().join(listed);
        }
        self.join_siblings(wanted, Right::Read);
        drop_covered(wanted);
    }
}

/// The parts of a path, its first on top.
fn push(path: &Path, rest: &mut Vec<OsString>) {
    let parts = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    rest.extend(parts.rev().map(|part| part.as_os_str().to_owned()));
}

//! Names as they were asked for: the links on their way, where they end, and what a look at that end needs.
//!
//! A link is granted as a name of its own, which gives nothing but what stands in it. A file that was looked at is granted by itself, never through
//! its directory: the look at one says nothing about the next. A directory that was looked at or entered becomes an empty one.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use super::{Needs, Right, Stands, Top, Use, Wanted, leads_to};
use crate::learn::{MADE_FILES, SEEDS, is_of_the_kernel};

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
    /// A path free of links, but for its end where that is not followed.
    end: PathBuf,
}

impl Needs<'_> {
    /// A file that was asked to be executed. The interpreter that a script names is no more than a name either, and may be a script.
    pub fn asked(&mut self, name: &Path, seen: &Use) {
        let mut name = name.to_owned();
        for _ in 0..INTERPRETERS_MAX {
            let end = self.real(&name, seen);
            self.exec(&end, seen);
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
        let way = self.way(name, follow);
        for link in &way.links {
            self.pass(link, seen);
        }
        let end = way.end;
        let is_own = MADE_FILES.iter().any(|file| end == Path::new(file)) || is_of_the_kernel(&end);
        if is_own || self.is_made(&end) || self.is_private(&end, seen) || self.base_shows(&end) {
            return;
        }
        if !matches!(self.setting.run.top(&end), Some(Top::Piece(_))) {
            // The way to what is shown; nothing of the host stands there.
            return;
        }
        if self.link(&end).is_some() {
            return self.pass(&end, seen);
        }
        match self.outside.stands(&end) {
            Stands::Nothing => {}
            Stands::Dir => self.enter(&end, seen),
            Stands::File if self.may_be_granted(&end, Right::Read) => {
                let need = self.wanted.entry((Right::Read, end)).or_default();
                need.seen.times = need.seen.times.saturating_add(seen.times);
                need.seen.by.extend(seen.by.iter().cloned());
                need.trim();
            }
            Stands::File => self.ask("look at", &end, "it is shared by others", seen),
            Stands::Unknown => self.ask("look at", &end, "what it is cannot be told", seen),
        }
    }

    /// The path without links behind a name; the links become needs.
    pub(super) fn real(&mut self, name: &Path, seen: &Use) -> PathBuf {
        let way = self.way(name, true);
        for link in &way.links {
            self.pass(link, seen);
        }
        way.end
    }

    fn pass(&mut self, link: &Path, seen: &Use) {
        if self.base_shows(link) {
            return;
        }
        match self.may_be_named(link) {
            true => self.add(Right::Name, link.to_owned(), seen),
            false => self.ask("follow the link", link, "it is shown under another name", seen),
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
        match self.may_be_named(dir) {
            true => self.add(Right::Name, dir.to_owned(), seen),
            false => self.ask("look at", dir, "it is shown under another name", seen),
        }
    }

    /// A name holds no place for another source.
    fn may_be_named(&self, path: &Path) -> bool {
        let is_itself = matches!(self.setting.run.top(path), Some(Top::Piece(piece)) if leads_to(piece, path) == path);
        is_itself && self.why_not(path).is_none()
    }

    fn way(&self, name: &Path, follow: bool) -> Way {
        let mut rest: Vec<OsString> = Vec::new();
        push(name, &mut rest);
        let mut way = Way { links: Vec::new(), end: PathBuf::from("/") };
        while let Some(part) = rest.pop() {
            if part == ".." {
                way.end.pop();
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

    /// Leaves out names that stand by what is granted, and what is more than a policy should hold.
    pub(super) fn settle_looks(&mut self, wanted: &mut Wanted) {
        let shown: Vec<(Right, PathBuf)> = wanted.keys().cloned().collect();
        let stands = |name: &Path| {
            shown.iter().any(|(right, path)| match right {
                Right::Read | Right::Write => name.starts_with(path) || path.starts_with(name),
                Right::Tmpfs => path.starts_with(name),
                Right::Name => path != name && path.starts_with(name),
                Right::Exec => false,
            })
        };
        wanted.retain(|(right, path), _| *right != Right::Name || !stands(path));
        for (right, words) in [(Right::Read, "look at more files"), (Right::Name, "show more names")] {
            let mut room = LOOKS_MAX;
            let mut more = 0;
            wanted.retain(|(of, _), need| {
                if *of != right || need.is_opened {
                    return true;
                }
                let fits = room > 0;
                room = room.saturating_sub(1);
                more += usize::from(!fits);
                fits
            });
            if more > 0 {
                self.asked.insert(words.to_owned(), format!("{more} beyond {LOOKS_MAX}"));
            }
        }
    }
}

/// The parts of a path, its first on top.
fn push(path: &Path, rest: &mut Vec<OsString>) {
    let parts = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    rest.extend(parts.rev().map(|part| part.as_os_str().to_owned()));
}

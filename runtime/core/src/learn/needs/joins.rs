//! From what is wanted to grants: joined where many siblings are wanted, without what something wider gives, and no more than a policy may hold.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use super::{
    CONTENT, Found, GRANTS_MAX, Need, Needs, Places, Right, SIBLINGS_MIN, SUBTREES_MIN, TREE_MIN, Top, WRITES_MAX,
    Wanted, leads_to,
};

impl Needs<'_> {
    /// What the needs of all runs come to.
    pub fn finish(mut self) -> Found {
        let now: Places = self.wanted.keys().cloned().collect();
        let opened = self.wanted.iter().filter(|(_, need)| need.is_opened).map(|(key, _)| key.clone()).collect();
        let mut wanted = std::mem::take(&mut self.wanted);
        for (key, old) in self.previous.iter().flat_map(|previous| &previous.files) {
            wanted.entry(key.clone()).or_default().join(old.clone());
        }
        self.drop_denied(&mut wanted);
        let used = wanted.keys().map(|(_, path)| path.clone()).collect();
        for right in [Right::Read, Right::Write, Right::Exec] {
            self.join_siblings(&mut wanted, right);
        }
        lift_executable(&mut wanted);
        drop_covered(&mut wanted);
        self.settle_looks(&mut wanted);
        let is_opened = |right: Right, need: &Need| right == Right::Read && need.is_opened;
        self.limit(&mut wanted, GRANTS_MAX, "read in more places", is_opened);
        self.limit(&mut wanted, WRITES_MAX, "write in more places", |right, _| right == Right::Write);
        self.limit(&mut wanted, GRANTS_MAX, "execute in more places", |right, _| right == Right::Exec);
        count_runs(&mut wanted, &now, &opened);
        if let Some(previous) = self.previous {
            wanted.retain(|(right, path), _| !previous.hand_covers(*right, path));
        }
        Found { files: wanted, used, asked: self.asked }
    }

    /// Leaves out what an earlier run was granted and this one or the file denies: a grant below a deny stops the start.
    fn drop_denied(&self, wanted: &mut Wanted) {
        let setting = self.setting;
        let denies = |path: &Path| {
            setting.given.deny.iter().any(|denied| path.starts_with(denied))
                || self.previous.is_some_and(|previous| previous.denies(path))
        };
        wanted.retain(|(right, path), _| *right == Right::Tmpfs || !denies(path) && !denies(&setting.source(path)));
    }

    /// Leaves out what is more than a policy should hold.
    pub(super) fn limit(
        &mut self,
        wanted: &mut Wanted,
        max: usize,
        words: &str,
        is_one: impl Fn(Right, &Need) -> bool,
    ) {
        let mut count = 0;
        wanted.retain(|(right, _), need| {
            let is_one = is_one(*right, need);
            count += usize::from(is_one);
            !is_one || count <= max
        });
        if let more @ 1.. = count.saturating_sub(max) {
            self.asked.insert(words.to_owned(), format!("{more} beyond {max}"));
        }
    }

    /// Directories from the deepest up: each joins what lies below it once there is enough.
    pub(super) fn join_siblings(&self, wanted: &mut Wanted, right: Right) {
        // One look at a file says nothing about the next.
        let is_joined = |need: &Need| need.is_opened;
        for dir in dirs_above(wanted, right, &is_joined) {
            let Some(below) = self.siblings(wanted, (right, &dir), &is_joined) else { continue };
            let mut joined = wanted.remove(&(right, dir.clone())).unwrap_or_default();
            for path in below {
                joined.join(wanted.remove(&(right, path)).unwrap_or_default());
            }
            wanted.insert((right, dir), joined);
        }
    }

    /// What lies below a directory, where it is enough to be joined and that may be.
    pub(super) fn siblings(
        &self,
        wanted: &Wanted,
        (right, dir): (Right, &Path),
        is_joined: &dyn Fn(&Need) -> bool,
    ) -> Option<Vec<PathBuf>> {
        let below: Vec<PathBuf> = wanted
            .range((right, dir.to_owned())..)
            .take_while(|((of, path), _)| *of == right && path.starts_with(dir))
            .filter(|((_, path), need)| path != dir && is_joined(need))
            .map(|((_, path), _)| path.clone())
            .collect();
        let direct = below.iter().filter(|path| path.parent() == Some(dir)).count();
        let subtrees: BTreeSet<&std::ffi::OsStr> = below
            .iter()
            .filter_map(|path| Some(path.strip_prefix(dir).ok()?.components().next()?.as_os_str()))
            .collect();
        let is_enough = direct >= SIBLINGS_MIN || below.len() >= TREE_MIN && subtrees.len() >= SUBTREES_MIN;
        (is_enough && self.may_be_granted(dir, right) && self.is_one_piece(dir, &below)).then_some(below)
    }

    /// Whether what is joined would come from where it came from.
    fn is_one_piece(&self, dir: &Path, below: &[PathBuf]) -> bool {
        let Some(Top::Piece(piece)) = self.setting.run.top(dir) else { return false };
        below.iter().all(|path| match self.setting.run.top(path) {
            Some(Top::Piece(other)) => leads_to(piece, path) == leads_to(other, path),
            _ => false,
        })
    }
}

/// Whether one of the paths is `dir` or lies below it.
pub(in crate::learn) fn is_below(paths: &BTreeSet<PathBuf>, dir: &Path) -> bool {
    // What lies in a directory follows it in the order of paths.
    paths.range::<Path, _>((Bound::Included(dir), Bound::Unbounded)).next().is_some_and(|path| path.starts_with(dir))
}

/// The same of one right; an excluded bound leaves out the directory itself.
pub(super) fn has_below(keys: &Places, right: Right, from: Bound<&Path>) -> bool {
    let (Bound::Included(dir) | Bound::Excluded(dir)) = from else { return false };
    let next = keys.range((from.map(|dir| (right, dir.to_owned())), Bound::Unbounded)).next();
    next.is_some_and(|(of, path)| *of == right && path.starts_with(dir))
}

/// Counts this run at what it used. After the joining: one name of a directory was used in the runs before, and another one in this run.
fn count_runs(wanted: &mut Wanted, now: &Places, opened: &Places) {
    for ((right, path), need) in wanted {
        let rights = if *right == Right::Write { &[Right::Write, Right::Read][..] } else { &[*right] };
        let has = |keys: &Places, from: Bound<&Path>| rights.iter().any(|right| has_below(keys, *right, from));
        need.runs = need.runs.saturating_add(u64::from(has(now, Bound::Included(path))));
        if has(opened, Bound::Excluded(path)) {
            need.notes.insert(CONTENT.to_owned());
        }
    }
}

/// The directories above what is wanted, deepest first.
pub(super) fn dirs_above(wanted: &Wanted, right: Right, is_joined: &dyn Fn(&Need) -> bool) -> Vec<PathBuf> {
    let mut dirs: BTreeSet<(Reverse<usize>, &Path)> = BTreeSet::new();
    for ((_, path), _) in wanted.iter().filter(|((of, _), need)| *of == right && is_joined(need)) {
        for dir in path.ancestors().skip(1) {
            dirs.insert((Reverse(dir.components().count()), dir));
        }
    }
    dirs.into_iter().map(|(_, dir)| dir.to_owned()).collect()
}

/// An executable place within a writable one would be a mount of its own: its name could not be removed, and nothing be moved into or
/// out of it. So the writable place becomes executable as a whole.
fn lift_executable(wanted: &mut Wanted) {
    let above = |path: &Path, wanted: &Wanted| {
        let writes = |dir: &&Path| wanted.contains_key(&(Right::Write, (*dir).to_owned()));
        // The outermost: what it covers is left out afterwards.
        path.ancestors().skip(1).filter(writes).last().map(Path::to_owned)
    };
    let inner: Vec<(PathBuf, PathBuf)> = wanted
        .keys()
        .filter(|(right, _)| *right == Right::Exec)
        .filter_map(|(_, path)| Some((path.clone(), above(path, wanted)?)))
        .collect();
    for (path, dir) in inner {
        let need = wanted.remove(&(Right::Exec, path)).unwrap_or_default();
        wanted.entry((Right::Exec, dir)).or_default().join(need);
    }
}

/// Leaves out what a wider need of the same kind gives, and reading where there is writing.
pub(super) fn drop_covered(wanted: &mut Wanted) {
    let keys: BTreeSet<(Right, PathBuf)> = wanted.keys().cloned().collect();
    wanted.retain(|(right, path), _| {
        let gives = |other: Right, path: &Path| keys.contains(&(other, path.to_owned()));
        let above = || path.ancestors().skip(1);
        match right {
            Right::Read => {
                !above().any(|dir| gives(Right::Read, dir)) && !path.ancestors().any(|dir| gives(Right::Write, dir))
            }
            Right::Write | Right::Exec | Right::Tmpfs => !above().any(|dir| gives(*right, dir)),
            // Judged when all that is granted is known.
            Right::Name => true,
        }
    });
}

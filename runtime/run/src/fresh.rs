//! Whether a sandbox that was built ahead is still what it would be built as now.
//!
//! Input: what was read and bound when it was planned. Output: the first of it that is another one now. Contents of directories are not looked at: they are
//! bound, not copied, so what changes in them changes inside as well.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use apex_core::plan::{Mount, Plan};

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Missing,
    /// Device and inode: what is bound.
    Piece(u64, u64),
    /// The same, size, and the times of the last change of content and of inode, in nanoseconds: what was read.
    Content(u64, u64, u64, (i64, i64), (i64, i64)),
}

impl Mark {
    fn of_piece(path: &Path) -> Mark {
        std::fs::metadata(path).map_or(Mark::Missing, |about| Mark::Piece(about.dev(), about.ino()))
    }

    fn of_content(path: &Path) -> Mark {
        let content = |about: Metadata| {
            let times = ((about.mtime(), about.mtime_nsec()), (about.ctime(), about.ctime_nsec()));
            Mark::Content(about.dev(), about.ino(), about.size(), times.0, times.1)
        };
        std::fs::metadata(path).map_or(Mark::Missing, content)
    }

    fn again(self, path: &Path) -> Mark {
        match self {
            Mark::Piece(..) => Mark::of_piece(path),
            // What was not there was looked for to be read.
            Mark::Missing | Mark::Content(..) => Mark::of_content(path),
        }
    }
}

/// What a sandbox was made from.
#[derive(Clone, Debug, Default)]
pub struct Fresh(Vec<(PathBuf, Mark)>);

impl Fresh {
    /// Notes a file that is about to be read, or that may not be there.
    pub fn note(&mut self, path: &Path) {
        self.0.push((path.to_owned(), Mark::of_content(path)));
    }

    /// Notes what a plan takes from the host.
    pub fn note_plan(&mut self, plan: &Plan) {
        let sources = plan.mounts.iter().filter_map(|mount| match mount {
            Mount::Bind { source, .. } => Some(source),
            _ => None,
        });
        self.0.extend(sources.map(|source| (source.clone(), Mark::of_piece(source))));
        if plan.level.is_full() {
            return;
        }
        // Nothing is bound: a rule is about the piece that it was made on, and what lies around what is withheld was granted name by name.
        let rules = plan.landlock.iter().flat_map(|landlock| &landlock.rules).map(|rule| &rule.path);
        self.0.extend(rules.map(|path| (path.clone(), Mark::of_piece(path))));
        plan.withheld.iter().flat_map(|path| path.ancestors().skip(1)).for_each(|dir| self.note(dir));
    }

    /// The first that is another one now.
    pub fn changed(&self) -> Option<&Path> {
        self.0.iter().find(|(path, mark)| mark.again(path) != *mark).map(|(path, _)| path.as_path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_replaced_removed_or_made_is_noticed() {
        let dir = std::env::temp_dir().join(format!("apex-fresh-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (there, missing) = (dir.join("there"), dir.join("missing"));
        std::fs::write(&there, "one").unwrap();
        let seen = || {
            let mut fresh = Fresh::default();
            fresh.note(&there);
            fresh.note(&missing);
            fresh
        };
        let fresh = seen();
        assert_eq!(fresh.changed(), None);
        std::fs::write(&there, "two").unwrap();
        assert_eq!(fresh.changed(), Some(there.as_path()));
        let fresh = seen();
        std::fs::write(dir.join("other"), "two").unwrap();
        std::fs::rename(dir.join("other"), &there).unwrap();
        assert_eq!(fresh.changed(), Some(there.as_path()));
        let fresh = seen();
        std::fs::write(&missing, "").unwrap();
        assert_eq!(fresh.changed(), Some(missing.as_path()));
        let fresh = seen();
        std::fs::remove_file(&there).unwrap();
        assert_eq!(fresh.changed(), Some(there.as_path()));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_is_only_bound_may_change_in_itself() {
        let dir = std::env::temp_dir().join(format!("apex-fresh-piece-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let fresh = Fresh(vec![(dir.clone(), Mark::of_piece(&dir))]);
        std::fs::write(dir.join("new"), "").unwrap();
        assert_eq!(fresh.changed(), None);
        std::fs::rename(&dir, dir.with_extension("old")).unwrap();
        std::fs::create_dir_all(&dir).unwrap();
        assert_eq!(fresh.changed(), Some(dir.as_path()));
        std::fs::remove_dir_all(&dir).unwrap();
        std::fs::remove_dir_all(dir.with_extension("old")).unwrap();
    }
}

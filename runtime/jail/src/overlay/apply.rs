//! Puts changes of a layer into the host: one file at a time, each whole or not at all, and only where the host is as the run left it.
//!
//! Set-user-id bits, devices, FIFOs and sockets never pass, and nothing is written over a link or out of the piece that was granted. What
//! the host has already counts as done, so that a commit that was killed can be repeated.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use apex_core::overlay::{Change, ChangeKind, FileKind, Identity, Manifest, Stamp};
use apex_sys::{Errno, fs};
use nix::fcntl::{RenameFlags, renameat2};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::fsync;

use super::keep::keep;
use super::look::{kind_of, link, same_content, stamp, stat};
use super::piece::{Piece, holder};
use super::{BENEATH, OverlayError, Store, below, identity, open_file};
use crate::layers::{PERMISSIONS, copy_all};

/// What the owner of a directory needs to fill it.
const FILLABLE: u32 = 0o700;

/// What came of one change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deed {
    /// Where the change stands among those of the manifest.
    pub index: usize,
    /// The path of the host.
    pub place: PathBuf,
    /// Why it was not applied.
    pub refused: Option<String>,
}

/// Applies the changes that `wanted` picks by their path on the host, in their order.
pub fn apply(
    store: &Store,
    manifest: &Manifest,
    wanted: &dyn Fn(&Path, &Change) -> bool,
) -> Result<Vec<Deed>, OverlayError> {
    store.lock()?;
    let changes = manifest.changes.as_deref().unwrap_or_default();
    let part = part(store, manifest)?;
    let mut commit = Commit {
        manifest,
        part,
        links: links(changes),
        closing: Vec::new(),
        deeds: Vec::new(),
        cleared: HashSet::new(),
    };
    let mut pieces: HashMap<usize, Result<Piece, String>> = HashMap::new();
    for (index, change) in changes.iter().enumerate() {
        let place = manifest.place(change);
        if !wanted(&place, change) {
            continue;
        }
        commit.close_before(Some(change));
        // Once for a layer: no name on the way to it is looked up again while its changes are applied.
        let piece = pieces.entry(change.layer).or_insert_with(|| match manifest.layers.get(change.layer) {
            Some(layer) => Piece::open(store, change.layer, layer),
            None => Err("the manifest names no such layer".to_owned()),
        });
        let result = match piece {
            Ok(piece) => commit.one(piece, change, changes.get(index + 1)),
            Err(why) => Err(why.clone()),
        };
        commit.deeds.push(Deed { index, place, refused: result.err() });
    }
    commit.close_before(None);
    Ok(commit.deeds)
}

/// The name of what is not whole yet. It belongs to this overlay, whose commits run one by one: whatever has it is left from one that was killed.
fn part(store: &Store, manifest: &Manifest) -> Result<CString, OverlayError> {
    let failed = OverlayError::at("looking at", store.path());
    let inode = store.identity().map_err(&failed)?.inode;
    let name = format!(".apex-commit-{inode:x}-{:x}-{:x}", manifest.started.s, manifest.started.ns);
    CString::new(name).map_err(|_| failed(Errno::EINVAL))
}

/// Where the run made links.
fn links(changes: &[Change]) -> HashSet<(usize, &Path)> {
    let is_link = |change: &&Change| change.kind == FileKind::Link && change.change == ChangeKind::Added;
    changes.iter().filter(is_link).map(|change| (change.layer, change.path.as_path())).collect()
}

struct Commit<'a> {
    manifest: &'a Manifest,
    part: CString,
    links: HashSet<(usize, &'a Path)>,
    /// Directories that are being filled, each within the one before.
    closing: Vec<Closing<'a>>,
    deeds: Vec<Deed>,
    /// Directories without anything that a killed commit did not finish: device and inode.
    cleared: HashSet<(u64, u64)>,
}

/// A directory that gets its permissions when everything in it is in its place.
struct Closing<'a> {
    change: &'a Change,
    fd: OwnedFd,
    /// What is told of it.
    deed: usize,
}

impl Closing<'_> {
    fn holds(&self, change: &Change) -> bool {
        self.change.layer == change.layer && change.path.starts_with(&self.change.path)
    }
}

impl<'a> Commit<'a> {
    fn one(&mut self, piece: &Piece, change: &'a Change, next: Option<&Change>) -> Result<(), String> {
        self.judge(change)?;
        let (path, from) = piece.paths(change);
        let target = match Target::open(piece, path, &self.part) {
            Ok(target) => target,
            Err(errno) if self.is_gone(change, errno) => return Ok(()),
            Err(Errno::ENOENT) if change.before.is_some() => return Err("it is gone from the host since".to_owned()),
            Err(errno) => return Err(words(errno)),
        };
        // What a killed commit left there, once for a directory.
        if self.cleared.insert((target.at.device, target.at.inode)) {
            target.clear_part();
        }
        let now = target.stamp().map_err(words)?;
        if let Some(why) = change.stale(now.as_ref(), target.at.inode, self.manifest.started) {
            let next = next.filter(|next| (next.layer, &next.path) == (change.layer, &change.path));
            if !target.has(piece, change, next, now.as_ref()) {
                return Err(why.to_owned());
            }
            if let (FileKind::Dir, Some(now)) = (change.kind, &now) {
                return self.fill(&target, change, now);
            }
            return Ok(());
        }
        match (change.change, change.kind) {
            (ChangeKind::Removed, FileKind::Dir) => fs::rmdir(target.dir.as_fd(), &target.name).map_err(words),
            (ChangeKind::Removed, _) => fs::unlink(target.dir.as_fd(), &target.name).map_err(words),
            (ChangeKind::Mode, kind) => match now {
                Some(now) if kind == FileKind::Dir => self.fill(&target, change, &now),
                now => target.mode(change.mode, now.as_ref()).map_err(words),
            },
            (ChangeKind::Added | ChangeKind::Changed, FileKind::Dir) => {
                target.make_dir(change).map_err(words)?;
                self.finish(&target, change)
            }
            (ChangeKind::Added | ChangeKind::Changed, FileKind::Link) => {
                target.link(piece, from, change).map_err(words)
            }
            (ChangeKind::Added | ChangeKind::Changed, FileKind::File) => target.file(piece, from, now.as_ref(), change),
            (ChangeKind::Added | ChangeKind::Changed, FileKind::Other) => Err(words(Errno::EINVAL)),
        }
    }

    /// What is refused whatever the host looks like.
    fn judge(&self, change: &Change) -> Result<(), String> {
        if self.manifest.denies(change) {
            return Err("a rule of the run denies it, or it is a file of its policy".to_owned());
        }
        if change.change == ChangeKind::Removed {
            return Ok(());
        }
        match change.kind {
            FileKind::Link if self.manifest.leads_to_denied(change) => {
                Err("it is a link on the way to what a rule of the run denies".to_owned())
            }
            FileKind::Other => Err("it is a FIFO, a socket or a device, which are never applied".to_owned()),
            FileKind::Link | FileKind::File | FileKind::Dir => Ok(()),
        }
    }

    /// Whether what was to be removed went with a directory above it, which may be a link of the run by now.
    fn is_gone(&self, change: &Change, errno: Errno) -> bool {
        let is_under_link = || change.path.ancestors().any(|above| self.links.contains(&(change.layer, above)));
        change.change == ChangeKind::Removed
            && match errno {
                Errno::ENOENT | Errno::ENOTDIR => true,
                Errno::ELOOP => is_under_link(),
                _ => false,
            }
    }

    /// Lets the owner of a directory that is there fill it, as long as its content is applied.
    fn fill(&mut self, target: &Target, change: &'a Change, now: &Stamp) -> Result<(), String> {
        if change.change == ChangeKind::Removed {
            return Ok(());
        }
        let mode = change.mode | FILLABLE;
        if now.mode != mode {
            target.mode(mode, Some(now)).map_err(words)?;
        }
        self.finish(target, change)
    }

    /// Keeps in mind what a directory may not be before it is filled.
    fn finish(&mut self, target: &Target, change: &'a Change) -> Result<(), String> {
        if change.mode & FILLABLE == FILLABLE {
            return Ok(());
        }
        let fd = fs::open(target.dir.as_fd(), &target.name, nix::libc::O_DIRECTORY, BENEATH).map_err(words)?;
        self.closing.push(Closing { change, fd, deed: self.deeds.len() });
        Ok(())
    }

    /// Closes the directories in which `next` does not lie: what a run changed in one stands together.
    fn close_before(&mut self, next: Option<&Change>) {
        while let Some(done) = self.closing.pop_if(|last| !next.is_some_and(|next| last.holds(next))) {
            if let Err(errno) = fchmod(&done.fd, Mode::from_bits_truncate(done.change.mode & PERMISSIONS))
                && let Some(deed) = self.deeds.get_mut(done.deed)
            {
                deed.refused = Some(format!("its permissions could not be set: {}", errno.desc()));
            }
        }
    }
}

fn words(errno: Errno) -> String {
    match errno {
        Errno::ELOOP | Errno::EXDEV => {
            "the way to it leads over a symbolic link or out of the granted piece".to_owned()
        }
        Errno::ENOTEMPTY => "it holds files that the run did not see".to_owned(),
        Errno::EEXIST => "it came into being on the host since".to_owned(),
        Errno::ESTALE => "it became another while it was looked at; commit again when it is at rest".to_owned(),
        errno => errno.desc().to_owned(),
    }
}

/// Where a change goes: a directory of the host, and a name in it.
struct Target {
    dir: OwnedFd,
    at: Identity,
    name: CString,
    part: CString,
}

impl Target {
    fn open(piece: &Piece, path: &Path, part: &CStr) -> Result<Target, Errno> {
        let (dir, name) = holder(piece.host.as_fd(), path)?;
        let at = identity(&fs::stat(dir.as_fd(), c"")?);
        Ok(Target { dir, at, name: below(Path::new(name))?, part: part.to_owned() })
    }

    fn path(&self) -> &Path {
        Path::new(OsStr::from_bytes(self.name.as_bytes()))
    }

    fn stamp(&self) -> Result<Option<Stamp>, Errno> {
        match stat(self.dir.as_fd(), self.path()) {
            Ok(about) => Ok(Some(stamp(&about))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Removes what a killed commit did not finish.
    fn clear_part(&self) {
        if let Err(Errno::EISDIR) = fs::unlink(self.dir.as_fd(), &self.part) {
            let _ = fs::rmdir(self.dir.as_fd(), &self.part);
        }
    }

    /// Whether the host is as the change wants it. `next` takes the place of what is removed.
    fn has(&self, piece: &Piece, change: &Change, next: Option<&Change>, now: Option<&Stamp>) -> bool {
        let Some(now) = now else { return change.change == ChangeKind::Removed };
        if change.change == ChangeKind::Removed {
            return next.is_some_and(|next| next.change == ChangeKind::Added && self.has(piece, next, None, Some(now)));
        }
        let is_kind = now.kind == change.kind;
        // A commit that was killed may have left a directory open.
        let is_mode = [change.mode, change.mode | FILLABLE].contains(&now.mode);
        if change.change == ChangeKind::Mode {
            let is_dir = is_kind && now.kind == FileKind::Dir;
            return change.before.is_some_and(|before| {
                Stamp { mode: change.mode, changed: now.changed, ..before } == *now
                    || is_dir && is_mode && before.inode == now.inode
            });
        }
        let (_, from) = piece.paths(change);
        is_kind
            && match change.kind {
                FileKind::Dir => is_mode,
                FileKind::Link => link(self.dir.as_fd(), self.path()).ok() == change.target,
                FileKind::File => {
                    now.mode == change.mode
                        && holder(piece.upper.as_fd(), from)
                            .and_then(|(dir, name)| {
                                same_content((dir.as_fd(), Path::new(name)), (self.dir.as_fd(), self.path()))
                            })
                            .unwrap_or(false)
                }
                FileKind::Other => false,
            }
    }

    /// Sets the permissions of the very file that was looked at, whoever may read it.
    fn mode(&self, mode: u32, now: Option<&Stamp>) -> Result<(), Errno> {
        let file = fs::open(self.dir.as_fd(), &self.name, nix::libc::O_PATH | nix::libc::O_NOFOLLOW, BENEATH)?;
        let about = stamp(&fstat(&file)?);
        if Some(&about) != now || about.kind == FileKind::Link {
            return Err(Errno::ESTALE);
        }
        fs::chmod(fs::cwd(), &fs::own_name(file.as_fd()), mode & PERMISSIONS)
    }

    fn make_dir(&self, change: &Change) -> Result<(), Errno> {
        let dir = self.dir.as_fd();
        fs::mkdir(dir, &self.part, FILLABLE)?;
        let done = fs::open(dir, &self.part, nix::libc::O_DIRECTORY, BENEATH)
            .and_then(|fd| fchmod(fd, Mode::from_bits_truncate(change.mode & PERMISSIONS | FILLABLE)))
            .and_then(|()| self.put(&self.part, RenameFlags::RENAME_NOREPLACE));
        done.inspect_err(|_| self.clear_part())
    }

    fn link(&self, piece: &Piece, from: &Path, change: &Change) -> Result<(), Errno> {
        let (holder, name) = holder(piece.upper.as_fd(), from)?;
        if kind_of(&stat(holder.as_fd(), Path::new(name))?) != FileKind::Link {
            return Err(Errno::ESTALE);
        }
        let target = below(&link(holder.as_fd(), Path::new(name))?)?;
        fs::symlink(&target, self.dir.as_fd(), &self.part)?;
        self.put(&self.part, flags(change)).inspect_err(|_| self.clear_part())
    }

    fn file(&self, piece: &Piece, from: &Path, now: Option<&Stamp>, change: &Change) -> Result<(), String> {
        let (holder, name) = holder(piece.upper.as_fd(), from).map_err(words)?;
        let source = open_file(holder.as_fd(), &below(Path::new(name)).map_err(words)?).map_err(words)?;
        let about = fs::stat(source.as_fd(), c"").map_err(words)?;
        if !about.is_regular() {
            return Err(words(Errno::ESTALE));
        }
        let old = now.map(|now| self.old(now)).transpose().map_err(words)?;
        let (file, is_named) = self.blank().map_err(words)?;
        let filled = copy_all(source.as_fd(), file.as_fd())
            .map_err(words)
            .and_then(|()| keep(old.as_ref().map(AsFd::as_fd), &file, change.mode))
            .and_then(|()| fs::set_modified(file.as_fd(), about.modified_s).map_err(words))
            .and_then(|()| fsync(&file).map_err(words))
            .and_then(|()| self.give_name(&file, is_named, change).map_err(words));
        filled.inspect_err(|_| self.clear_part())
    }

    /// What the new file takes the place of.
    fn old(&self, now: &Stamp) -> Result<OwnedFd, Errno> {
        let file = open_file(self.dir.as_fd(), &self.name)?;
        if stamp(&fstat(&file)?) == *now { Ok(file) } else { Err(Errno::ESTALE) }
    }

    /// An empty file, without a name where the file system has such: of one that is killed nothing stays.
    fn blank(&self) -> Result<(OwnedFd, bool), Errno> {
        let dir = self.dir.as_fd();
        match fs::create(dir, c".", nix::libc::O_WRONLY | nix::libc::O_TMPFILE, 0o600, BENEATH) {
            Err(Errno::EOPNOTSUPP | Errno::EISDIR) => {
                let flags = nix::libc::O_WRONLY | nix::libc::O_CREAT | nix::libc::O_EXCL | nix::libc::O_NOFOLLOW;
                fs::create(dir, &self.part, flags, 0o600, BENEATH).map(|file| (file, true))
            }
            other => other.map(|file| (file, false)),
        }
    }

    fn give_name(&self, file: &OwnedFd, is_named: bool, change: &Change) -> Result<(), Errno> {
        let dir = self.dir.as_fd();
        match (is_named, change.change) {
            // The name is free, or the kernel says that it is not.
            (false, ChangeKind::Added) => fs::link_open(file.as_fd(), dir, &self.name),
            (false, _) => {
                fs::link_open(file.as_fd(), dir, &self.part)?;
                self.put(&self.part, flags(change))
            }
            (true, _) => self.put(&self.part, flags(change)),
        }
    }

    /// Gives what is whole its place, which holds the old or the new and never a part.
    fn put(&self, from: &CStr, flags: RenameFlags) -> Result<(), Errno> {
        renameat2(self.dir.as_fd(), from, self.dir.as_fd(), self.name.as_c_str(), flags)
    }
}

/// What was not there must not be there now either; what was there was looked at a moment ago.
fn flags(change: &Change) -> RenameFlags {
    match change.change {
        ChangeKind::Added => RenameFlags::RENAME_NOREPLACE,
        ChangeKind::Changed | ChangeKind::Removed | ChangeKind::Mode => RenameFlags::empty(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    /// A name that changes hands between the look and the call, for another file or a link, keeps its permissions.
    #[test]
    fn permissions_are_set_on_what_was_looked_at_alone() {
        let place = std::env::temp_dir().join(format!("apex-mode-{}", std::process::id()));
        std::fs::create_dir(&place).unwrap();
        let at = |name: &str| place.join(name);
        for name in ["looked-at", "other"] {
            std::fs::write(at(name), "").unwrap();
            std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(0o200)).unwrap();
        }
        let dir = fs::open(fs::cwd(), &below(&place).unwrap(), nix::libc::O_DIRECTORY, 0).unwrap();
        let target = Target {
            dir,
            at: Identity { device: 0, inode: 0 },
            name: c"looked-at".to_owned(),
            part: c"part".to_owned(),
        };
        let now = target.stamp().unwrap();
        let first = target.mode(0o4600, now.as_ref());
        let mode = std::fs::metadata(at("looked-at")).unwrap().mode() & 0o7777;
        let now = target.stamp().unwrap();
        std::fs::rename(at("other"), at("looked-at")).unwrap();
        let exchanged = target.mode(0o666, now.as_ref());
        std::fs::rename(at("looked-at"), at("other")).unwrap();
        std::os::unix::fs::symlink("other", at("looked-at")).unwrap();
        let linked = target.mode(0o666, target.stamp().unwrap().as_ref());
        let other = std::fs::metadata(at("other")).unwrap().mode() & 0o7777;
        std::fs::remove_dir_all(&place).unwrap();
        assert_eq!((first, mode), (Ok(()), 0o600), "also where nobody may read it");
        assert_eq!((exchanged, linked, other), (Err(Errno::ESTALE), Err(Errno::ESTALE), 0o200));
    }

    /// Through a descriptor that only names it, nothing can be set.
    #[test]
    fn permissions_that_could_not_be_set_are_told_of_their_directory() {
        let change = |path: &str| Change {
            layer: 0,
            path: path.into(),
            change: ChangeKind::Added,
            kind: FileKind::Dir,
            mode: 0o500,
            size: 0,
            target: None,
            before: None,
            holder: None,
            moved: false,
        };
        let started = apex_core::overlay::Moment { s: 0, ns: 0 };
        let (layers, denied, unseen) = (Vec::new(), Vec::new(), Vec::new());
        let manifest = Manifest { version: 1, started, layers, denied, changes: None, more: 0, unseen };
        let (outer, inner, beside) = (change("a"), change("a/b"), change("ab"));
        let closing = |change, deed| {
            let fd = fs::open(fs::cwd(), c"/", nix::libc::O_PATH, 0).unwrap();
            Closing { change, fd, deed }
        };
        let deed = |index| Deed { index, place: "/a".into(), refused: None };
        let mut commit = Commit {
            manifest: &manifest,
            part: c"part".to_owned(),
            links: HashSet::new(),
            closing: vec![closing(&outer, 0), closing(&inner, 1)],
            deeds: vec![deed(0), deed(1)],
            cleared: HashSet::new(),
        };
        commit.close_before(Some(&change("a/b/x")));
        assert_eq!(commit.closing.len(), 2);
        commit.close_before(Some(&change("a/c")));
        let told: Vec<bool> = commit.deeds.iter().map(|deed| deed.refused.is_some()).collect();
        assert_eq!(told, [false, true]);
        commit.close_before(Some(&beside));
        assert!(commit.closing.is_empty() && commit.deeds.iter().all(|deed| deed.refused.is_some()));
    }
}

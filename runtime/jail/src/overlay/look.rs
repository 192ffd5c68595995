//! What the layers say was changed, held against the host.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use apex_core::overlay::{CHANGES_MAX, Change, ChangeKind, FileKind, Manifest, Moment, Stamp, UNSEEN_MAX, Unseen};
use apex_sys::{Errno, fs};
use nix::sys::stat::FileStat;

use super::piece::{COPY, Piece};
use super::{BENEATH, Store, below, open_file};
use crate::layers::PERMISSIONS;

/// Directories within each other that are looked through.
const DEPTH_MAX: usize = 256;
/// Bytes that are compared at once.
const CHUNK: usize = 64 << 10;

/// Looks through every layer. Layers and host must be at rest. What cannot be looked at is told in the manifest, and ends nothing: it is
/// the sandbox that names and closes what lies there.
pub fn look(store: &Store, manifest: &mut Manifest) {
    let mut walk = Walk { layer: 0, started: manifest.started, changes: Vec::new(), unseen: Vec::new(), more: 0 };
    for (number, layer) in manifest.layers.iter().enumerate() {
        walk.layer = number;
        let piece = match Piece::open(store, number, layer) {
            Ok(piece) => piece,
            Err(why) => {
                walk.unseen(PathBuf::new(), why);
                continue;
            }
        };
        let host = Beside { inode: Some(layer.identity.inode), moved: false, fd: Some(piece.host) };
        let looked = match &piece.name {
            Some(name) => walk.file(piece.upper.as_fd(), &host, name),
            None => walk.directory(piece.upper.as_fd(), &host, Path::new(""), 0),
        };
        if let Err(errno) = looked {
            walk.unseen(PathBuf::new(), errno.desc().to_owned());
        }
    }
    (manifest.changes, manifest.unseen, manifest.more) = (Some(walk.changes), walk.unseen, walk.more);
}

struct Walk {
    layer: usize,
    started: Moment,
    changes: Vec<Change>,
    unseen: Vec<Unseen>,
    more: u64,
}

/// The directory of the host beside one of a layer.
struct Beside {
    /// `None` when there is none.
    fd: Option<OwnedFd>,
    inode: Option<u64>,
    /// Whether it, or one above it, was moved or got other permissions during the run.
    moved: bool,
}

impl Beside {
    /// What stands under a name.
    fn stamp(&self, name: &OsStr) -> Result<Option<Stamp>, Errno> {
        let Some(fd) = &self.fd else { return Ok(None) };
        match stat(fd.as_fd(), Path::new(name)) {
            Ok(stat) => Ok(Some(stamp(&stat))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// The directory under a name; `before` is what stands there.
    fn child(&self, name: &OsStr, before: Option<&Stamp>, started: Moment) -> Result<Beside, Errno> {
        let (Some(fd), Some(before)) = (&self.fd, before.filter(|before| before.kind == FileKind::Dir)) else {
            return Ok(Beside { fd: None, inode: None, moved: self.moved });
        };
        let flags = nix::libc::O_PATH | nix::libc::O_DIRECTORY;
        let fd = fs::open(fd.as_fd(), &below(Path::new(name))?, flags, BENEATH)?;
        // What is made or removed in a directory changes both stamps alike; a rename of itself only the second. One that is younger than
        // the run is not the one that the run saw either.
        let is_young = fs::born(fd.as_fd())?.is_some_and(|(s, ns)| Moment { s, ns } > started);
        let is_moved = is_young || before.changed > started && before.changed != before.modified;
        Ok(Beside { inode: Some(fs::stat(fd.as_fd(), c"")?.inode), fd: Some(fd), moved: self.moved || is_moved })
    }
}

impl Walk {
    /// A piece that is a file: its copy against it.
    fn file(&mut self, own: BorrowedFd<'_>, host: &Beside, name: &Path) -> Result<(), Errno> {
        let after = stat(own, Path::new(COPY))?;
        let before = host.stamp(name.as_os_str())?;
        let theirs = host.fd.as_ref().map(|fd| (fd.as_fd(), name));
        let is_same = theirs.is_some_and(|theirs| same_content((own, Path::new(COPY)), theirs).unwrap_or(false));
        self.compared(PathBuf::new(), &after, (before, host), is_same, None);
        Ok(())
    }

    /// A directory of the layer, and the one of the host that shows through it.
    fn directory(&mut self, dir: BorrowedFd<'_>, host: &Beside, path: &Path, depth: usize) -> Result<(), Errno> {
        if depth == DEPTH_MAX {
            return Err(Errno::ELOOP);
        }
        let names = names(dir)?;
        if is_opaque(dir) {
            self.hidden(host, path, &names, depth)?;
        }
        for name in names {
            let path = path.join(&name);
            if let Err(errno) = self.entry(dir, host, &name, &path, depth) {
                self.unseen(path, why(errno));
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        dir: BorrowedFd<'_>,
        host: &Beside,
        name: &OsStr,
        path: &Path,
        depth: usize,
    ) -> Result<(), Errno> {
        let after = stat(dir, Path::new(name))?;
        let before = host.stamp(name)?;
        if is_whiteout(&after) {
            self.removed(host, name, path, depth)?;
            return Ok(());
        }
        let kind = kind_of(&after);
        if before.is_some_and(|before| before.kind != kind) {
            self.removed(host, name, path, depth)?;
        }
        let before = before.filter(|before| before.kind == kind);
        let theirs = host.fd.as_ref().filter(|_| before.is_some()).map(|fd| (fd.as_fd(), Path::new(name)));
        let about = (before, host);
        match kind {
            FileKind::Dir => {
                self.compared(path.to_owned(), &after, about, true, None);
                // Where its owner closed it, what is in it cannot be told.
                let fd = fs::open(dir, &below(Path::new(name))?, nix::libc::O_DIRECTORY, BENEATH)?;
                let beside = host.child(name, before.as_ref(), self.started)?;
                return self.directory(fd.as_fd(), &beside, path, depth + 1);
            }
            FileKind::File => {
                let own = (dir, Path::new(name));
                let is_same = theirs.is_some_and(|theirs| same_content(own, theirs).unwrap_or(false));
                self.compared(path.to_owned(), &after, about, is_same, None);
            }
            FileKind::Link => {
                let target = link(dir, Path::new(name))?;
                let old = theirs.and_then(|(dir, name)| link(dir, name).ok());
                self.compared(path.to_owned(), &after, about, old.as_ref() == Some(&target), Some(target));
            }
            FileKind::Other => self.compared(path.to_owned(), &after, about, false, None),
        }
        Ok(())
    }

    fn compared(
        &mut self,
        path: PathBuf,
        after: &FileStat,
        (before, host): (Option<Stamp>, &Beside),
        is_same: bool,
        target: Option<PathBuf>,
    ) {
        let mode = after.st_mode & PERMISSIONS;
        let change = match &before {
            None => ChangeKind::Added,
            Some(_) if !is_same => ChangeKind::Changed,
            Some(before) if before.mode != mode && before.kind != FileKind::Link => ChangeKind::Mode,
            Some(_) => return,
        };
        let size = u64::try_from(after.st_size).unwrap_or(0);
        let (layer, kind) = (self.layer, kind_of(after));
        let (holder, moved) = (host.inode, host.moved);
        self.push(Change { layer, path, change, kind, mode, size, target, before, holder, moved });
    }

    /// Something of the host that the layer hides, with all that lies in it, the innermost first.
    fn removed(&mut self, host: &Beside, name: &OsStr, path: &Path, depth: usize) -> Result<(), Errno> {
        let Some(before) = host.stamp(name)? else { return Ok(()) };
        if before.kind == FileKind::Dir {
            let inner = host
                .child(name, Some(&before), self.started)
                .and_then(|inner| self.hidden(&inner, path, &[], depth + 1));
            if let Err(errno) = inner {
                self.unseen(path.to_owned(), why(errno));
            }
        }
        self.push(Change {
            layer: self.layer,
            path: path.to_owned(),
            change: ChangeKind::Removed,
            kind: before.kind,
            mode: before.mode,
            size: before.size,
            target: None,
            before: Some(before),
            holder: host.inode,
            moved: host.moved,
        });
        Ok(())
    }

    /// What a directory of the host holds beside `shown`, which is sorted.
    fn hidden(&mut self, host: &Beside, path: &Path, shown: &[OsString], depth: usize) -> Result<(), Errno> {
        if depth >= DEPTH_MAX {
            return Err(Errno::ELOOP);
        }
        let Some(dir) = &host.fd else { return Ok(()) };
        for name in names(dir.as_fd())? {
            if shown.binary_search(&name).is_err() {
                let path = path.join(&name);
                if let Err(errno) = self.removed(host, &name, &path, depth) {
                    self.unseen(path, why(errno));
                }
            }
        }
        Ok(())
    }

    fn unseen(&mut self, path: PathBuf, why: String) {
        if self.unseen.len() < UNSEEN_MAX {
            self.unseen.push(Unseen { layer: self.layer, path, why });
        } else {
            self.more += 1;
        }
    }

    fn push(&mut self, change: Change) {
        if self.changes.len() < CHANGES_MAX {
            self.changes.push(change);
        } else {
            self.more += 1;
        }
    }
}

fn why(errno: Errno) -> String {
    match errno {
        Errno::ELOOP => format!("it lies deeper than {DEPTH_MAX} directories, or a link stands there by now"),
        errno => errno.desc().to_owned(),
    }
}

/// The state of a file.
pub(super) fn stamp(stat: &FileStat) -> Stamp {
    Stamp {
        kind: kind_of(stat),
        inode: stat.st_ino,
        mode: stat.st_mode & PERMISSIONS,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        modified: Moment { s: stat.st_mtime, ns: stat.st_mtime_nsec },
        changed: Moment { s: stat.st_ctime, ns: stat.st_ctime_nsec },
    }
}

pub(super) fn stat(dir: BorrowedFd<'_>, name: &Path) -> Result<FileStat, Errno> {
    nix::sys::stat::fstatat(dir, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)
}

pub(super) fn kind_of(stat: &FileStat) -> FileKind {
    match stat.st_mode & nix::libc::S_IFMT {
        nix::libc::S_IFREG => FileKind::File,
        nix::libc::S_IFDIR => FileKind::Dir,
        nix::libc::S_IFLNK => FileKind::Link,
        _ => FileKind::Other,
    }
}

/// The sign of overlayfs that a name is gone: a character device 0/0.
fn is_whiteout(stat: &FileStat) -> bool {
    stat.st_mode & nix::libc::S_IFMT == nix::libc::S_IFCHR && stat.st_rdev == 0
}

/// The sign of overlayfs that nothing of the host shows through a directory.
fn is_opaque(dir: BorrowedFd<'_>) -> bool {
    let mut value = [0; 8];
    fs::attribute(dir, c"user.overlay.opaque", &mut value).is_ok_and(|count| value[..count] == *b"y")
}

/// The names in a directory, sorted.
pub(super) fn names(dir: BorrowedFd<'_>) -> Result<Vec<OsString>, Errno> {
    let copy = fs::open(dir, c".", nix::libc::O_DIRECTORY, 0)?;
    let mut list = Vec::new();
    for entry in nix::dir::Dir::from_fd(copy)?.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            list.push(OsString::from_vec(name.to_vec()));
        }
    }
    list.sort();
    Ok(list)
}

pub(super) fn link(dir: BorrowedFd<'_>, name: &Path) -> Result<PathBuf, Errno> {
    nix::fcntl::readlinkat(dir, name).map(PathBuf::from)
}

/// A name in a directory.
pub(super) type Place<'a> = (BorrowedFd<'a>, &'a Path);

/// Whether two regular files hold the same.
pub(super) fn same_content(one: Place<'_>, other: Place<'_>) -> Result<bool, Errno> {
    let open = |(dir, path): Place<'_>| open_file(dir, &below(path)?);
    let (one, other) = (open(one)?, open(other)?);
    let (about, against) = (fs::stat(one.as_fd(), c"")?, fs::stat(other.as_fd(), c"")?);
    if !about.is_regular() || !against.is_regular() || about.size != against.size {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; CHUNK], vec![0; CHUNK]);
    loop {
        let (a, b) = (fill(&one, &mut left)?, fill(&other, &mut right)?);
        if left[..a] != right[..b] {
            return Ok(false);
        }
        if a == 0 {
            return Ok(true);
        }
    }
}

fn fill(file: &OwnedFd, bytes: &mut [u8]) -> Result<usize, Errno> {
    let mut count = 0;
    while count < bytes.len() {
        match fs::read(file.as_fd(), &mut bytes[count..])? {
            0 => break,
            more => count += more,
        }
    }
    Ok(count)
}

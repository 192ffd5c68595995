//! What the layers say was changed, held against the host.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use apex_core::overlay::{CHANGES_MAX, Change, ChangeKind, FileKind, Layer, Manifest, Moment, Stamp};
use apex_sys::{Errno, fs};
use nix::sys::stat::FileStat;

use super::{BENEATH, OverlayError, below, open_dir};

/// Directories within each other that are looked through.
const DEPTH_MAX: usize = 256;
/// Bytes that are compared at once.
const CHUNK: usize = 64 << 10;
const PERMISSIONS: u32 = 0o777;

/// Looks through every layer. Layers and host must be at rest.
pub fn look(dir: &Path, manifest: &mut Manifest) -> Result<(), OverlayError> {
    let mut changes = Vec::new();
    let mut more = 0;
    for (number, layer) in manifest.layers.iter().enumerate() {
        let mut walk = Walk { layer: number, changes: &mut changes, more: &mut more, host: None };
        let place = dir.join(number.to_string());
        if layer.is_dir {
            let upper = place.join("upper");
            let fd = open_dir(&upper).map_err(OverlayError::at("opening", &upper))?;
            walk.host = Some(open_dir(&layer.source).map_err(OverlayError::at("opening", &layer.source))?);
            walk.directory(fd.as_fd(), Path::new(""), false, 0).map_err(OverlayError::at("looking through", &upper))?;
        } else {
            walk.file(&place, layer)?;
        }
    }
    manifest.changes = Some(changes);
    manifest.more = more;
    Ok(())
}

struct Walk<'a> {
    layer: usize,
    changes: &'a mut Vec<Change>,
    more: &'a mut u64,
    host: Option<OwnedFd>,
}

impl Walk<'_> {
    /// A piece that is a file: its copy against it.
    fn file(&mut self, place: &Path, layer: &Layer) -> Result<(), OverlayError> {
        let failed = OverlayError::at("comparing", &layer.source);
        let (own, theirs) = (open_dir(place).map_err(&failed)?, parent(&layer.source).map_err(&failed)?);
        let Some(name) = layer.source.file_name().map(Path::new) else { return Ok(()) };
        let after = stat(own.as_fd(), Path::new("file")).map_err(&failed)?;
        let before = stamp_at(theirs.as_fd(), name).map_err(&failed)?;
        let same = same_content((own.as_fd(), Path::new("file")), (theirs.as_fd(), name)).unwrap_or(false);
        self.compared(PathBuf::new(), &after, before, same, None);
        Ok(())
    }

    /// A directory of the layer. `is_new` says that the host's shows nothing through.
    fn directory(&mut self, dir: BorrowedFd<'_>, path: &Path, is_new: bool, depth: usize) -> Result<(), Errno> {
        if depth == DEPTH_MAX {
            *self.more += 1;
            return Ok(());
        }
        let names = names(dir)?;
        if is_new || is_opaque(dir) {
            self.hidden(path, &names, depth)?;
        }
        for name in names {
            self.entry(dir, &name, path.join(&name), depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, dir: BorrowedFd<'_>, name: &OsStr, path: PathBuf, depth: usize) -> Result<(), Errno> {
        let after = stat(dir, Path::new(name))?;
        let before = self.before(&path)?;
        if is_whiteout(&after) {
            return self.removed(&path, before, depth);
        }
        let kind = kind_of(&after);
        let replaced = before.filter(|before| before.kind != kind);
        if let Some(old) = replaced {
            self.removed(&path, Some(old), depth)?;
        }
        let before = before.filter(|before| before.kind == kind);
        match kind {
            FileKind::Dir => {
                let fd = fs::open(dir, &below(Path::new(name))?, nix::libc::O_DIRECTORY, BENEATH);
                self.compared(path.clone(), &after, before, true, None);
                match fd {
                    Ok(fd) => self.directory(fd.as_fd(), &path, before.is_none(), depth + 1),
                    // Its owner closed it: what is in it cannot be told.
                    Err(_) => {
                        *self.more += 1;
                        Ok(())
                    }
                }
            }
            FileKind::File => {
                let host = self.host.as_ref().map(AsFd::as_fd);
                let same = before.is_some()
                    && host.is_some_and(|host| same_content((dir, Path::new(name)), (host, &path)).unwrap_or(false));
                self.compared(path, &after, before, same, None);
                Ok(())
            }
            FileKind::Link => {
                let target = link(dir, Path::new(name))?;
                let old = self.host.as_ref().and_then(|host| link_at(host.as_fd(), &path).ok());
                let same = before.is_some() && old.as_ref() == Some(&target);
                self.compared(path, &after, before, same, Some(target));
                Ok(())
            }
            FileKind::Other => {
                self.compared(path, &after, before, false, None);
                Ok(())
            }
        }
    }

    fn compared(
        &mut self,
        path: PathBuf,
        after: &FileStat,
        before: Option<Stamp>,
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
        self.push(Change { layer: self.layer, path, change, kind: kind_of(after), mode, size, target, before });
    }

    /// Something of the host that the layer hides, with all that lies in it, the innermost first.
    fn removed(&mut self, path: &Path, before: Option<Stamp>, depth: usize) -> Result<(), Errno> {
        let Some(before) = before else { return Ok(()) };
        if before.kind == FileKind::Dir {
            self.hidden(path, &[], depth + 1)?;
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
        });
        Ok(())
    }

    /// What a directory of the host holds beside `shown`.
    fn hidden(&mut self, path: &Path, shown: &[OsString], depth: usize) -> Result<(), Errno> {
        if depth >= DEPTH_MAX {
            *self.more += 1;
            return Ok(());
        }
        let Some(host) = &self.host else { return Ok(()) };
        let dir = match fs::open(host.as_fd(), &below(path)?, nix::libc::O_DIRECTORY, BENEATH) {
            Ok(dir) => dir,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        for name in names(dir.as_fd())? {
            if !shown.contains(&name) {
                let path = path.join(&name);
                let before = self.before(&path)?;
                self.removed(&path, before, depth)?;
            }
        }
        Ok(())
    }

    fn before(&self, path: &Path) -> Result<Option<Stamp>, Errno> {
        match &self.host {
            Some(host) => stamp_at(host.as_fd(), path),
            None => Ok(None),
        }
    }

    fn push(&mut self, change: Change) {
        if self.changes.len() < CHANGES_MAX {
            self.changes.push(change);
        } else {
            *self.more += 1;
        }
    }
}

/// The state of a file of the host below `dir`, `None` when there is none or the way to it leads over a link.
pub(super) fn stamp_at(dir: BorrowedFd<'_>, path: &Path) -> Result<Option<Stamp>, Errno> {
    let parent = path.parent().unwrap_or(Path::new(""));
    let Some(name) = path.file_name() else { return Ok(None) };
    let holder = match fs::open(dir, &below(parent)?, nix::libc::O_PATH | nix::libc::O_DIRECTORY, BENEATH) {
        Ok(holder) => holder,
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    match stat(holder.as_fd(), Path::new(name)) {
        Ok(stat) => Ok(Some(stamp(&stat))),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn stamp(stat: &FileStat) -> Stamp {
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

fn names(dir: BorrowedFd<'_>) -> Result<Vec<OsString>, Errno> {
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

fn parent(path: &Path) -> Result<OwnedFd, Errno> {
    open_dir(path.parent().unwrap_or(Path::new("/")))
}

pub(super) fn link(dir: BorrowedFd<'_>, name: &Path) -> Result<PathBuf, Errno> {
    nix::fcntl::readlinkat(dir, name).map(PathBuf::from)
}

fn link_at(dir: BorrowedFd<'_>, path: &Path) -> Result<PathBuf, Errno> {
    let parent = path.parent().unwrap_or(Path::new(""));
    let holder = fs::open(dir, &below(parent)?, nix::libc::O_PATH | nix::libc::O_DIRECTORY, BENEATH)?;
    link(holder.as_fd(), Path::new(path.file_name().unwrap_or(OsStr::from_bytes(b"."))))
}

type Place<'a> = (BorrowedFd<'a>, &'a Path);

fn same_content(one: Place<'_>, other: Place<'_>) -> Result<bool, Errno> {
    let open = |(dir, path): Place<'_>| {
        fs::open(dir, &below(path)?, nix::libc::O_RDONLY | nix::libc::O_NONBLOCK | nix::libc::O_NOFOLLOW, BENEATH)
    };
    let (one, other) = (open(one)?, open(other)?);
    if fs::stat(one.as_fd(), c"")?.size != fs::stat(other.as_fd(), c"")?.size {
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

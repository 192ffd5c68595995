//! Puts changes of a layer into the host: one file at a time, each whole or not at all, and only where the host is as the run left it.
//!
//! Set-user-id bits, devices, FIFOs and sockets never pass, and nothing is written over a link or out of the piece that was granted.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use apex_core::overlay::{Change, ChangeKind, FileKind, Layer, Manifest};
use apex_sys::{Errno, fs};
use nix::fcntl::{RenameFlags, renameat2};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, fchown, fsync};

use super::look::{kind_of, link, stamp_at, stat};
use super::{BENEATH, below, open_dir};
use crate::layers::copy_all;

const PERMISSIONS: u32 = 0o777;
/// Names that are tried for the file that takes a place at the end.
const NAMES_MAX: u32 = 100;

/// What came of one change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deed {
    /// The path of the host.
    pub place: PathBuf,
    /// The change.
    pub change: ChangeKind,
    /// Why it was not applied.
    pub refused: Option<String>,
}

/// Applies the changes that `wanted` picks by their path on the host, in their order.
pub fn apply(dir: &Path, manifest: &Manifest, wanted: &dyn Fn(&Path, &Change) -> bool) -> Vec<Deed> {
    let mut deeds = Vec::new();
    let mut modes = Vec::new();
    for change in manifest.changes.iter().flatten() {
        let place = manifest.place(change);
        if !wanted(&place, change) {
            continue;
        }
        let result = match manifest.layers.get(change.layer) {
            Some(layer) => Piece::open(dir, change.layer, layer)
                .map_err(words)
                .and_then(|piece| one(&piece, change, manifest, &place, &mut modes)),
            None => Err("the manifest names no such layer".to_owned()),
        };
        deeds.push(Deed { place, change: change.change, refused: result.err() });
    }
    // The innermost first: a directory that may not be written any more still had to be filled.
    for (fd, mode) in modes.into_iter().rev() {
        let _ = fchmod(fd, Mode::from_bits_truncate(mode));
    }
    deeds
}

/// A piece of the host and its layer.
struct Piece {
    host: OwnedFd,
    upper: OwnedFd,
    /// Of a piece that is a file.
    name: Option<PathBuf>,
}

impl Piece {
    fn open(dir: &Path, number: usize, layer: &Layer) -> Result<Piece, Errno> {
        let place = dir.join(number.to_string());
        if layer.is_dir {
            return Ok(Piece { host: open_dir(&layer.source)?, upper: open_dir(&place.join("upper"))?, name: None });
        }
        let parent = layer.source.parent().ok_or(Errno::EINVAL)?;
        let name = layer.source.file_name().map(PathBuf::from);
        Ok(Piece { host: open_dir(parent)?, upper: open_dir(&place)?, name })
    }

    /// Path below the host's directory, and below the layer.
    fn paths<'a>(&'a self, change: &'a Change) -> (&'a Path, &'a Path) {
        match &self.name {
            Some(name) => (name, Path::new("file")),
            None => (&change.path, &change.path),
        }
    }
}

fn one(
    piece: &Piece,
    change: &Change,
    manifest: &Manifest,
    place: &Path,
    modes: &mut Vec<(OwnedFd, u32)>,
) -> Result<(), String> {
    if manifest.denies(place) {
        return Err("a rule of the run denies it".to_owned());
    }
    if change.kind == FileKind::Other && change.change != ChangeKind::Removed {
        return Err("it is a FIFO, a socket or a device, which are never applied".to_owned());
    }
    let (path, from) = piece.paths(change);
    let now = stamp_at(piece.host.as_fd(), path).map_err(words)?;
    // A name that was removed in an earlier step makes room for what takes its place.
    let stale = change.stale(now.as_ref(), manifest.started);
    if let Some(why) = stale {
        return Err(why.to_owned());
    }
    let target = Target::open(piece, path).map_err(words)?;
    let done = match (change.change, change.kind) {
        (ChangeKind::Removed, FileKind::Dir) => fs::rmdir(target.dir.as_fd(), &target.name),
        (ChangeKind::Removed, _) => fs::unlink(target.dir.as_fd(), &target.name),
        (ChangeKind::Mode, _) => target.mode(change.mode),
        (ChangeKind::Added | ChangeKind::Changed, FileKind::Dir) => {
            target.make_dir().map(|fd| modes.push((fd, change.mode)))
        }
        (ChangeKind::Added | ChangeKind::Changed, FileKind::Link) => target.link(piece, from, change),
        (ChangeKind::Added | ChangeKind::Changed, FileKind::File) => target.file(piece, from, change),
        (ChangeKind::Added | ChangeKind::Changed, FileKind::Other) => Err(Errno::EINVAL),
    };
    done.map_err(words)
}

fn words(errno: Errno) -> String {
    match errno {
        Errno::ELOOP | Errno::EXDEV => {
            "the way to it leads over a symbolic link or out of the granted piece".to_owned()
        }
        Errno::ENOTEMPTY => "it holds files that the run did not see".to_owned(),
        Errno::EEXIST => "it came into being on the host since".to_owned(),
        errno => errno.desc().to_owned(),
    }
}

/// Where a change goes: a directory of the host, and a name in it.
struct Target {
    dir: OwnedFd,
    name: CString,
}

impl Target {
    fn open(piece: &Piece, path: &Path) -> Result<Target, Errno> {
        let parent = path.parent().unwrap_or(Path::new(""));
        let name = path.file_name().ok_or(Errno::EINVAL)?;
        let dir = fs::open(piece.host.as_fd(), &below(parent)?, nix::libc::O_DIRECTORY, BENEATH)?;
        Ok(Target { dir, name: below(Path::new(name))? })
    }

    fn path(&self) -> &Path {
        Path::new(OsStr::from_bytes(self.name.as_bytes()))
    }

    fn mode(&self, mode: u32) -> Result<(), Errno> {
        let flags = nix::libc::O_RDONLY | nix::libc::O_NONBLOCK | nix::libc::O_NOFOLLOW;
        let file = fs::open(self.dir.as_fd(), &self.name, flags, BENEATH)?;
        fchmod(file, Mode::from_bits_truncate(mode & PERMISSIONS))
    }

    fn make_dir(&self) -> Result<OwnedFd, Errno> {
        fs::mkdir(self.dir.as_fd(), &self.name, 0o700)?;
        fs::open(self.dir.as_fd(), &self.name, nix::libc::O_DIRECTORY, BENEATH)
    }

    fn link(&self, piece: &Piece, from: &Path, change: &Change) -> Result<(), Errno> {
        let (holder, name) = holder(piece.upper.as_fd(), from)?;
        if kind_of(&stat(holder.as_fd(), &name)?) != FileKind::Link {
            return Err(Errno::ESTALE);
        }
        let target = below(&link(holder.as_fd(), &name)?)?;
        self.by_another_name(change, |dir, name| fs::symlink(&target, dir, name))
    }

    fn file(&self, piece: &Piece, from: &Path, change: &Change) -> Result<(), Errno> {
        let flags = nix::libc::O_RDONLY | nix::libc::O_NONBLOCK | nix::libc::O_NOFOLLOW;
        let source = fs::open(piece.upper.as_fd(), &below(from)?, flags, BENEATH)?;
        let about = fs::stat(source.as_fd(), c"")?;
        if !about.is(nix::libc::S_IFREG) {
            return Err(Errno::ESTALE);
        }
        let old = stat(self.dir.as_fd(), self.path()).ok();
        self.by_another_name(change, |dir, name| {
            let flags = nix::libc::O_WRONLY | nix::libc::O_CREAT | nix::libc::O_EXCL | nix::libc::O_NOFOLLOW;
            let file = fs::create(dir, name, flags, 0o600, BENEATH)?;
            copy_all(source.as_fd(), file.as_fd())?;
            if let Some(old) = &old {
                // Root keeps the owner; anybody else owns what it replaces, or may not.
                let _ = fchown(&file, Some(Uid::from_raw(old.st_uid)), Some(Gid::from_raw(old.st_gid)));
            }
            // After the owner, whose change clears bits. Set-user-id bits never pass.
            fchmod(&file, Mode::from_bits_truncate(change.mode & PERMISSIONS))?;
            fs::set_modified(file.as_fd(), about.modified_s)?;
            fsync(&file)
        })
    }

    /// Makes it under another name first, so that the place holds the old or the new and never a part.
    fn by_another_name(
        &self,
        change: &Change,
        make: impl Fn(BorrowedFd<'_>, &std::ffi::CStr) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let dir = self.dir.as_fd();
        for number in 0..NAMES_MAX {
            let name = CString::new(format!(".apex-commit-{}-{number}", std::process::id())).expect("no NUL in it");
            match make(dir, &name) {
                Err(Errno::EEXIST) => continue,
                Err(errno) => {
                    let _ = fs::unlink(dir, &name);
                    return Err(errno);
                }
                Ok(()) => {}
            }
            // What was not there must not be there now either; what was there was looked at a moment ago.
            let flags = match change.change {
                ChangeKind::Added => RenameFlags::RENAME_NOREPLACE,
                ChangeKind::Changed | ChangeKind::Removed | ChangeKind::Mode => RenameFlags::empty(),
            };
            return renameat2(dir, name.as_c_str(), dir, self.name.as_c_str(), flags).inspect_err(|_| {
                let _ = fs::unlink(dir, &name);
            });
        }
        Err(Errno::EEXIST)
    }
}

fn holder(dir: BorrowedFd<'_>, path: &Path) -> Result<(OwnedFd, PathBuf), Errno> {
    let parent = path.parent().unwrap_or(Path::new(""));
    let name = path.file_name().map(PathBuf::from).ok_or(Errno::EINVAL)?;
    Ok((fs::open(dir, &below(parent)?, nix::libc::O_PATH | nix::libc::O_DIRECTORY, BENEATH)?, name))
}

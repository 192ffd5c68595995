//! A piece of the host beside its layer, each opened once and worked beneath.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use apex_core::overlay::{Change, Layer};
use apex_sys::{Errno, fs};

use super::store::{Store, open_dir};
use super::{BENEATH, below, identity};

/// Name of the copy of a file in its layer.
pub(super) const COPY: &str = "file";

/// A piece of the host and its layer.
pub(super) struct Piece {
    /// The directory that the run was given, or that holds the file that it was given.
    pub host: OwnedFd,
    /// What the sandbox wrote.
    pub upper: OwnedFd,
    /// Of a piece that is a file.
    pub name: Option<PathBuf>,
}

impl Piece {
    /// Opens both. Whoever owns a directory above can put another one, or a link, under the name of the piece: that is refused.
    pub fn open(store: &Store, number: usize, layer: &Layer) -> Result<Piece, String> {
        let (at, name) = match layer.is_dir {
            true => (layer.real.as_path(), None),
            false => (layer.real.parent().unwrap_or(Path::new("/")), layer.real.file_name().map(PathBuf::from)),
        };
        let host = open_dir(at, true).map_err(|why| why.words())?;
        let now = fs::stat(host.as_fd(), c"").map_err(|errno| errno.desc().to_owned())?;
        if identity(&now) != layer.identity {
            return Err("it is another directory than the one that the run was given".to_owned());
        }
        let upper = store.layer(number, layer).map_err(|errno| format!("its layer: {}", errno.desc()))?;
        Ok(Piece { host, upper, name })
    }

    /// Path below the host's directory, and below the layer.
    pub fn paths<'a>(&'a self, change: &'a Change) -> (&'a Path, &'a Path) {
        match &self.name {
            Some(name) => (name, Path::new(COPY)),
            None => (&change.path, &change.path),
        }
    }
}

/// Opens the directory that holds what `path` names below `dir`, over no link.
pub(super) fn holder<'p>(dir: BorrowedFd<'_>, path: &'p Path) -> Result<(OwnedFd, &'p OsStr), Errno> {
    let name = path.file_name().ok_or(Errno::EINVAL)?;
    Ok((enter(dir, path.parent().unwrap_or(Path::new("")))?, name))
}

/// Opens a directory below another, over no link, however long its path is.
fn enter(dir: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    match fs::open(dir, &below(path)?, nix::libc::O_PATH | nix::libc::O_DIRECTORY, BENEATH) {
        Err(Errno::ENAMETOOLONG) => {}
        other => return other,
    }
    let names: Vec<&OsStr> = path.iter().collect();
    if names.len() < 2 {
        return Err(Errno::ENAMETOOLONG);
    }
    let (head, tail) = names.split_at(names.len() / 2);
    let middle = enter(dir, &head.iter().collect::<PathBuf>())?;
    enter(middle.as_fd(), &tail.iter().collect::<PathBuf>())
}

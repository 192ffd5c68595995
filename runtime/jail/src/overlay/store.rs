//! The directory that keeps an overlay, opened once: whoever can exchange a name on the way to it decides nothing afterwards.

use std::ffi::CString;
use std::fs::Permissions;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use apex_core::host::{Host, PathFact};
use apex_core::overlay::{Identity, Layer};
use apex_sys::{Errno, fs};
use nix::fcntl::renameat;
use nix::sys::stat::{Mode, fchmod};

use super::look::names;
use super::{BENEATH, OverlayError, identity, open_file};
use crate::host::{LiveHost, c_path};

/// Directories above the one that keeps an overlay: no path is longer.
const ABOVE_MAX: usize = 4096;
/// Who else may write.
const WRITE_OF_OTHERS: u32 = 0o022;

/// The directory, held.
pub struct Store {
    fd: OwnedFd,
    path: PathBuf,
    owner: u32,
}

impl Store {
    /// Makes it, or takes an empty one of the caller's own. Nothing is made that lies in one of `layers`, or beyond another user's link.
    pub(super) fn make(path: &Path, layers: &[Layer]) -> Result<Store, OverlayError> {
        let failed = OverlayError::at("making", path);
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Err(failed(Errno::EINVAL)) };
        let name = c_path(Path::new(name)).map_err(&failed)?;
        let above = open_dir(above, true).map_err(|why| why.at("making", path))?;
        outside(above.as_fd(), path, layers)?;
        let is_new = match fs::mkdir(above.as_fd(), &name, 0o700) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(errno) => return Err(failed(errno)),
        };
        let fd = fs::open(above.as_fd(), &name, nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW, BENEATH).map_err(
            |errno| match errno {
                Errno::ENOTDIR | Errno::ELOOP => {
                    let why = "it is a symbolic link or no directory; name the directory itself".to_owned();
                    OverlayError::Refused { dir: path.to_owned(), why }
                }
                errno => OverlayError::at("opening", path)(errno),
            },
        )?;
        let about = fs::stat(fd.as_fd(), c"").map_err(OverlayError::at("looking at", path))?;
        if about.uid != own() {
            return Err(OverlayError::Foreign { dir: path.to_owned(), owner: about.uid });
        }
        if !is_new {
            within(path, identity(&about), layers)?;
            if !names(fd.as_fd()).map_err(OverlayError::at("listing", path))?.is_empty() {
                return Err(OverlayError::NotEmpty(path.to_owned()));
            }
        }
        // Nobody else looks at what the sandbox wrote, and the start of the run shows in the time stamp.
        fchmod(&fd, Mode::S_IRWXU).map_err(OverlayError::at("closing", path))?;
        Ok(Store { fd, path: path.to_owned(), owner: about.uid })
    }

    /// Opens one that a run has left. What it says is believed, so nobody but the caller, or root, can have written it.
    pub fn open(path: &Path) -> Result<Store, OverlayError> {
        let fd = open_dir(path, false).map_err(|why| why.at("opening", path))?;
        let fd =
            fs::open(fd.as_fd(), c".", nix::libc::O_DIRECTORY, BENEATH).map_err(OverlayError::at("opening", path))?;
        let about = fs::stat(fd.as_fd(), c"").map_err(OverlayError::at("looking at", path))?;
        if about.uid != own() && about.uid != 0 {
            return Err(OverlayError::Foreign { dir: path.to_owned(), owner: about.uid });
        }
        if about.mode & WRITE_OF_OTHERS != 0 {
            return Err(OverlayError::Open(path.to_owned()));
        }
        Ok(Store { fd, path: path.to_owned(), owner: about.uid })
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A text in it that its owner wrote and nobody else can, of at most `most` bytes.
    pub fn read(&self, name: &str, most: u64) -> Result<String, OverlayError> {
        let place = self.path.join(name);
        let failed = OverlayError::at("reading", &place);
        let file = c_path(Path::new(name)).and_then(|name| open_file(self.fd(), &name)).map_err(&failed)?;
        let about = fs::stat(file.as_fd(), c"").map_err(&failed)?;
        if about.uid != self.owner {
            return Err(OverlayError::Foreign { dir: place.clone(), owner: about.uid });
        }
        if !about.is_regular() {
            return Err(failed(Errno::EINVAL));
        }
        if about.mode & WRITE_OF_OTHERS != 0 {
            return Err(OverlayError::Open(place.clone()));
        }
        let mut text = String::new();
        std::fs::File::from(file).take(most + 1).read_to_string(&mut text).map_err(super::io("reading", &place))?;
        if text.len() as u64 > most { Err(failed(Errno::EFBIG)) } else { Ok(text) }
    }

    /// Writes a text in it, whole or not at all.
    pub fn write(&self, name: &str, text: &str) -> Result<(), OverlayError> {
        let place = self.path.join(name);
        let failed = OverlayError::at("writing", &place);
        let dir = self.fd.as_fd();
        let part = c_path(Path::new(&format!("{name}.part-{}", std::process::id()))).map_err(&failed)?;
        let flags = nix::libc::O_WRONLY | nix::libc::O_CREAT | nix::libc::O_EXCL | nix::libc::O_NOFOLLOW;
        let file = fs::create(dir, &part, flags, 0o600, BENEATH).map_err(&failed)?;
        let mut file = std::fs::File::from(file);
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        let placed = written
            .map_err(super::io("writing", &place))
            .and_then(|()| renameat(dir, part.as_c_str(), dir, Path::new(name)).map_err(&failed));
        placed.inspect_err(|_| {
            let _ = fs::unlink(dir, &part);
        })
    }

    /// Removes what the kernel needed beside each layer while it was in use: its inner directory has mode 0, which would stop an `rm -r` of its
    /// owner. What cannot be removed stays: it is no part of what was written.
    pub fn clear_work(&self, layers: usize) {
        let here = PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()));
        for number in 0..layers {
            let work = here.join(number.to_string()).join("work");
            let _ = std::fs::set_permissions(work.join("work"), Permissions::from_mode(0o700));
            let _ = std::fs::remove_dir_all(work);
        }
    }

    /// Keeps a second commit of the same overlay away for as long as this one is open.
    pub(super) fn lock(&self) -> Result<(), OverlayError> {
        fs::try_lock(self.fd.as_fd(), true).map_err(|errno| match errno {
            Errno::EAGAIN => OverlayError::Busy(self.path.clone()),
            errno => OverlayError::at("locking", &self.path)(errno),
        })
    }

    /// Device and inode.
    pub(super) fn identity(&self) -> Result<Identity, Errno> {
        fs::stat(self.fd.as_fd(), c"").map(|about| identity(&about))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Makes a directory in it.
    pub(super) fn make_dir(&self, name: &str, mode: u32) -> Result<(), OverlayError> {
        let failed = OverlayError::at("making", &self.path);
        let name = CString::new(name).map_err(|_| failed(Errno::EINVAL))?;
        fs::mkdir(self.fd.as_fd(), &name, 0o700).map_err(&failed)?;
        fs::chmod(self.fd.as_fd(), &name, mode).map_err(&failed)
    }

    /// Opens what keeps the writes of a layer: a directory of its changes, or the one that holds the copy of a file.
    pub(super) fn layer(&self, number: usize, layer: &Layer) -> Result<OwnedFd, Errno> {
        let name = if layer.is_dir { format!("{number}/upper") } else { number.to_string() };
        fs::open(self.fd.as_fd(), &c_path(Path::new(&name))?, nix::libc::O_DIRECTORY, BENEATH)
    }
}

/// Why a directory was not opened.
pub(super) enum Why {
    /// The kernel says so.
    Errno(Errno),
    /// The rule about links says so.
    Link(String),
}

impl Why {
    fn at(self, what: &'static str, path: &Path) -> OverlayError {
        match self {
            Why::Errno(errno) => OverlayError::at(what, path)(errno),
            Why::Link(why) => OverlayError::Refused { dir: path.to_owned(), why },
        }
    }

    /// In words.
    pub(super) fn words(self) -> String {
        match self {
            Why::Errno(errno) => errno.desc().to_owned(),
            Why::Link(why) => why,
        }
    }
}

/// Opens a directory by its name, over no link that another user can have planted. `follow` says whether the last name may be a link.
pub(super) fn open_dir(path: &Path, follow: bool) -> Result<OwnedFd, Why> {
    // A new look: what was seen before may have changed since.
    let host = LiveHost::new();
    match host.path(path, follow) {
        PathFact::Dir => {}
        PathFact::Missing => return Err(Why::Errno(Errno::ENOENT)),
        PathFact::File => return Err(Why::Errno(Errno::ENOTDIR)),
        PathFact::Symlink(_) => return Err(Why::Link("it is a symbolic link; name the directory itself".to_owned())),
        PathFact::Refused(why) => return Err(Why::Link(why)),
    }
    let held = host.held(path).ok_or(Why::Errno(Errno::ENOENT))?;
    fs::open(held.fd.as_fd(), c".", nix::libc::O_PATH | nix::libc::O_DIRECTORY, BENEATH).map_err(Why::Errno)
}

/// Fails when `above` is one of the pieces or lies in one, by whatever name: then the sandbox would see what is kept, and write it.
fn outside(above: BorrowedFd<'_>, path: &Path, layers: &[Layer]) -> Result<(), OverlayError> {
    let failed = OverlayError::at("looking above", path);
    let flags = nix::libc::O_PATH | nix::libc::O_DIRECTORY;
    let mut at = fs::open(above, c".", flags, 0).map_err(&failed)?;
    for _ in 0..ABOVE_MAX {
        let here = fs::stat(at.as_fd(), c"").map(|about| identity(&about)).map_err(&failed)?;
        within(path, here, layers)?;
        let up = fs::open(at.as_fd(), c"..", flags, 0).map_err(&failed)?;
        if fs::stat(up.as_fd(), c"").map(|about| identity(&about)).map_err(&failed)? == here {
            return Ok(());
        }
        at = up;
    }
    Err(failed(Errno::ELOOP))
}

fn within(path: &Path, here: Identity, layers: &[Layer]) -> Result<(), OverlayError> {
    match layers.iter().find(|layer| layer.is_dir && layer.identity == here) {
        Some(piece) => Err(OverlayError::Within { dir: path.to_owned(), piece: piece.source.clone() }),
        None => Ok(()),
    }
}

fn own() -> u32 {
    nix::unistd::geteuid().as_raw()
}

//! Paths of the container, found and made below a descriptor of its root.
//!
//! Nothing here leaves the root, whatever links stand in it and whoever changes them meanwhile: what is there is opened in one call with the directory as the
//! root (openat2(2), `RESOLVE_IN_ROOT`), and what is missing is made from held descriptors, one name at a time, no link followed by the kernel.

use std::collections::VecDeque;
use std::ffi::{CStr, CString, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use apex_sys::{Errno, fs};
use nix::fcntl::readlinkat;
use nix::libc;

/// Links that one path may lead through, as in the kernel (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// What is to be at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A file that is no directory.
    File,
}

/// A path for the kernel, as seen from a descriptor of the root.
pub fn relative(path: &Path) -> Result<CString, Errno> {
    let mut bytes = path.as_os_str().as_bytes();
    while let [b'/', rest @ ..] = bytes {
        bytes = rest;
    }
    if bytes.is_empty() {
        return Ok(c".".to_owned());
    }
    CString::new(bytes).map_err(|_| Errno::EINVAL)
}

/// Opens what is at `path` below `root`, links followed inside it (`O_PATH`).
pub fn open(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    in_root(root, &relative(path)?, libc::O_PATH, 0)
}

/// Opens what is at `path` below `root`, when no link leads there (`O_PATH`).
pub fn open_plain(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    in_root(root, &relative(path)?, libc::O_PATH, fs::resolve::NO_SYMLINKS)
}

fn in_root(root: BorrowedFd<'_>, path: &CStr, flags: i32, more: u64) -> Result<OwnedFd, Errno> {
    /// The kernel gives up when names change while it looks at `..` (openat2(2), EAGAIN).
    const TRIES_MAX: usize = 32;
    let resolve = fs::resolve::IN_ROOT | fs::resolve::NO_MAGICLINKS | more;
    for _ in 1..TRIES_MAX {
        match fs::open(root, path, flags, resolve) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            other => return other,
        }
    }
    fs::open(root, path, flags, resolve)
}

/// A place, and whether it was there before.
#[derive(Debug)]
pub struct Place {
    /// Of the place (`O_PATH`).
    pub fd: OwnedFd,
    /// Whether it was made just now.
    pub made: bool,
}

/// Opens `path` below `root`, or makes it with what is missing on the way.
pub fn make(root: BorrowedFd<'_>, path: &Path, kind: Kind) -> Result<Place, Errno> {
    match open(root, path) {
        Ok(fd) => Ok(Place { fd, made: false }),
        Err(Errno::ENOENT) => match make_last(root, path, kind) {
            // More than the last name is missing, or it is a link that leads nowhere yet.
            Err(Errno::ENOENT | Errno::ELOOP) => Walk::start(root, path)?.finish(kind),
            other => other,
        },
        Err(errno) => Err(errno),
    }
}

/// The common case: the directory is there, and what is to be in it is not.
fn make_last(root: BorrowedFd<'_>, path: &Path, kind: Kind) -> Result<Place, Errno> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::ENOENT) };
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)?;
    let dir = open(root, dir)?;
    let made = make_name(dir.as_fd(), &name, kind)?;
    let fd = fs::open(dir.as_fd(), &name, libc::O_PATH, fs::resolve::BENEATH | fs::resolve::NO_SYMLINKS)?;
    Ok(Place { fd, made })
}

/// Makes a directory or a file in a held directory; whether it was not there.
fn make_name(dir: BorrowedFd<'_>, name: &CStr, kind: Kind) -> Result<bool, Errno> {
    let made = match kind {
        Kind::Dir => fs::mkdir(dir, name, 0o755),
        Kind::File => fs::mkfile(dir, name, 0o644),
    };
    match made {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Opens or makes the directory that holds `path`, and gives it with the last name.
pub fn parent(root: BorrowedFd<'_>, path: &Path) -> Result<(OwnedFd, CString), Errno> {
    let name = path.file_name().ok_or(Errno::EISDIR)?;
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    Ok((make(root, parent, Kind::Dir)?.fd, name))
}

/// A walk along a path, one name at a time. Every descriptor lies below the root, since no step leads up but to one that was held before.
struct Walk {
    held: Vec<OwnedFd>,
    rest: VecDeque<OsString>,
    links: usize,
}

impl Walk {
    fn start(root: BorrowedFd<'_>, path: &Path) -> Result<Walk, Errno> {
        let root = root.try_clone_to_owned().map_err(|_| Errno::EMFILE)?;
        let mut walk = Walk { held: vec![root], rest: VecDeque::new(), links: 0 };
        walk.push(path);
        Ok(walk)
    }

    /// Puts the names of `path` in front of what is left.
    fn push(&mut self, path: &Path) {
        for component in path.components().rev() {
            match component {
                Component::RootDir | Component::Prefix(_) | Component::CurDir => {}
                Component::ParentDir => self.rest.push_front("..".into()),
                Component::Normal(name) => self.rest.push_front(name.to_owned()),
            }
        }
    }

    fn finish(mut self, kind: Kind) -> Result<Place, Errno> {
        let mut made = false;
        while let Some(name) = self.rest.pop_front() {
            if name == ".." {
                if self.held.len() > 1 {
                    self.held.pop();
                }
                continue;
            }
            let name = CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)?;
            let kind = if self.rest.is_empty() { kind } else { Kind::Dir };
            made |= self.step(&name, kind)?;
        }
        let fd = self.held.pop().ok_or(Errno::ENOENT)?;
        Ok(Place { fd, made })
    }

    /// One name; whether it was made.
    fn step(&mut self, name: &CStr, kind: Kind) -> Result<bool, Errno> {
        let here = self.held.last().ok_or(Errno::ENOENT)?.as_fd();
        let (fd, made) = match look(here, name) {
            Err(Errno::ENOENT) => {
                let made = make_name(here, name, kind)?;
                (look(here, name)?, made)
            }
            other => (other?, false),
        };
        let stat = fs::stat(fd.as_fd(), c"")?;
        if stat.is(libc::S_IFLNK) {
            self.links += 1;
            if made || self.links > LINKS_MAX {
                return Err(Errno::ELOOP);
            }
            let target = readlinkat(&fd, c"")?;
            let target = Path::new(&target);
            if target.is_absolute() {
                self.held.truncate(1);
            }
            self.push(target);
            return Ok(false);
        }
        if kind == Kind::Dir && !stat.is(libc::S_IFDIR) {
            return Err(Errno::ENOTDIR);
        }
        self.held.push(fd);
        Ok(made)
    }
}

/// Opens one name, a link itself when it is one.
fn look(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    fs::open(dir, name, libc::O_PATH | libc::O_NOFOLLOW, fs::resolve::BENEATH | fs::resolve::NO_MAGICLINKS)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn root(name: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("apex-oci-place-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("root")).unwrap();
        dir
    }

    #[test]
    fn what_is_missing_is_made_inside_whatever_the_links_say() {
        let dir = root("inside");
        let top = dir.join("root");
        symlink("/absent", top.join("absolute")).unwrap();
        symlink("../../../up", top.join("relative")).unwrap();
        let held = std::fs::File::open(&top).unwrap();
        for (path, found) in
            [("/absolute/a", "absent/a"), ("/relative/b", "up/b"), ("../../../c/d", "c/d"), ("/e/../f", "f")]
        {
            let place = make(held.as_fd(), Path::new(path), Kind::Dir).unwrap();
            assert!(place.made, "{path}");
            assert!(top.join(found).is_dir(), "{path}");
        }
        let file = make(held.as_fd(), Path::new("/g/h"), Kind::File).unwrap();
        assert!(fs::stat(file.fd.as_fd(), c"").unwrap().is_regular());
        assert!(!make(held.as_fd(), Path::new("/g/h"), Kind::File).unwrap().made);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "nothing outside the root");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_ring_of_links_ends() {
        let dir = root("ring");
        let top = dir.join("root");
        symlink("two", top.join("one")).unwrap();
        symlink("one", top.join("two")).unwrap();
        let held = std::fs::File::open(&top).unwrap();
        assert_eq!(make(held.as_fd(), Path::new("one/x"), Kind::Dir).unwrap_err(), Errno::ELOOP);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

//! One directory of a cgroup hierarchy, held open: its control files are opened below it and written in one write, as the kernel wants it.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use apex_sys::fs::{self, resolve};
use apex_sys::{Errno, fs::cwd};
use nix::libc::{O_DIRECTORY, O_RDONLY, O_WRONLY};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::error::CgroupError;

/// What may be read of one file before it counts as malformed.
const FILE_BYTES_MAX: usize = 8 << 20;

/// Levels of a tree below a container's cgroup that are looked at: what is deeper was made to hurt.
const DEPTH_MAX: usize = 64;

/// Cgroups below a container's that are looked at.
const CHILDREN_MAX: usize = 100_000;

/// The longest wait between two tries to remove a directory; the waits double from 1 ms.
const REMOVE_WAIT_MAX: Duration = Duration::from_millis(100);

/// A cgroup's directory.
#[derive(Debug)]
pub(super) struct Dir {
    path: PathBuf,
    fd: OwnedFd,
}

/// A path for the kernel. A NUL inside cannot name anything.
pub(super) fn c_path(path: impl AsRef<Path>) -> Result<CString, Errno> {
    CString::new(path.as_ref().as_os_str().as_encoded_bytes()).map_err(|_| Errno::EINVAL)
}

fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    // No links: the file system of cgroups has none, so one on the way means that something else is mounted there.
    fs::open(cwd(), &c_path(path)?, O_RDONLY | O_DIRECTORY, resolve::NO_SYMLINKS)
}

impl Dir {
    pub(super) fn open(path: &Path) -> Result<Dir, Errno> {
        Ok(Dir { path: path.to_owned(), fd: open_directory(path)? })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens a control file. A name with a slash is none: `unified` comes from the bundle.
    pub(super) fn file(&self, name: &str, flags: i32) -> Result<OwnedFd, Errno> {
        fs::open(self.fd(), &c_path(name)?, flags, resolve::BENEATH | resolve::NO_SYMLINKS)
    }

    /// Writes a control file in one write.
    pub(super) fn write(&self, name: &str, value: &str) -> Result<(), Errno> {
        let file = self.file(name, O_WRONLY)?;
        fs::write(file.as_fd(), value.as_bytes()).map(drop)
    }

    /// Everything that a control file says.
    pub(super) fn read(&self, name: &str) -> Result<String, CgroupError> {
        self.file(name, O_RDONLY)
            .and_then(|file| read_whole(&file))
            .map_err(|errno| CgroupError::read(self.path.join(name), errno))
    }

    /// The same for a file that not every host has.
    pub(super) fn read_if_there(&self, name: &str) -> Result<Option<String>, CgroupError> {
        match self.file(name, O_RDONLY).and_then(|file| read_whole(&file)) {
            Ok(text) => Ok(Some(text)),
            // EOPNOTSUPP: files of pressure without PSI; ENODEV: the cgroup was just removed.
            Err(Errno::ENOENT | Errno::EOPNOTSUPP) => Ok(None),
            Err(errno) => Err(CgroupError::read(self.path.join(name), errno)),
        }
    }
}

fn read_whole(file: &OwnedFd) -> Result<String, Errno> {
    let mut bytes = Vec::new();
    let mut buffer = [0_u8; 8192];
    while bytes.len() < FILE_BYTES_MAX {
        match fs::read(file.as_fd(), &mut buffer)? {
            0 => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            length => bytes.extend_from_slice(&buffer[..length]),
        }
    }
    Err(Errno::EFBIG)
}

/// A whole file by its path, of /proc for instance.
pub(super) fn read_path(path: &Path) -> Result<String, Errno> {
    read_whole(&fs::open(cwd(), &c_path(path)?, O_RDONLY, 0)?)
}

/// Makes a directory and what is missing above it; what was made goes to `made`, outermost first. Whether the last one is new.
pub(super) fn make(path: &Path, made: &mut Vec<PathBuf>) -> Result<bool, (PathBuf, Errno)> {
    let fail = |errno| (path.to_owned(), errno);
    match fs::mkdir(cwd(), &c_path(path).map_err(fail)?, 0o755) {
        Ok(()) => {}
        Err(Errno::EEXIST) => return Ok(false),
        Err(Errno::ENOENT) => {
            let parent = path.parent().ok_or_else(|| fail(Errno::ENOENT))?;
            make(parent, made)?;
            match fs::mkdir(cwd(), &c_path(path).map_err(fail)?, 0o755) {
                Ok(()) => {}
                Err(Errno::EEXIST) => return Ok(false),
                Err(errno) => return Err(fail(errno)),
            }
        }
        Err(errno) => return Err(fail(errno)),
    }
    made.push(path.to_owned());
    Ok(true)
}

fn rmdir(path: &Path) -> Result<(), Errno> {
    unlinkat(nix::fcntl::AT_FDCWD, path, UnlinkatFlags::RemoveDir)
}

/// Removes a directory that is empty but for what its makers know.
pub(super) fn remove_empty(path: &Path) -> Result<(), Errno> {
    match rmdir(path) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Removes a cgroup and those below it. Waits until `deadline` for processes that are just dying; kills nobody.
pub(super) fn remove_tree(path: &Path, deadline: Instant) -> Result<(), CgroupError> {
    let failed = |errno: Errno| CgroupError::Remove { dir: path.to_owned(), source: errno.into() };
    let mut wait = Duration::from_millis(1);
    loop {
        match rmdir(path) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::EBUSY) => {}
            Err(errno) => return Err(failed(errno)),
        }
        // Deepest first; one that is busy makes the next round busy too, and that one counts.
        let mut below = children(path);
        below.reverse();
        let has_children = !below.is_empty();
        let gone = below.iter().filter(|child| rmdir(child).is_ok()).count();
        if has_children && gone == below.len() {
            continue;
        }
        if Instant::now() >= deadline {
            return Err(failed(Errno::EBUSY));
        }
        std::thread::sleep(wait);
        wait = (wait * 2).min(REMOVE_WAIT_MAX);
    }
}

/// The cgroups below `path`, parents before their children. One that disappears meanwhile is no longer there to be told.
pub(super) fn children(path: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    let mut next = vec![(path.to_owned(), 0)];
    while let Some((dir, depth)) = next.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries.flatten() {
            if depth < DEPTH_MAX && found.len() < CHILDREN_MAX && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.path());
                next.push((entry.path(), depth + 1));
            }
        }
    }
    found
}

/// The processes of one cgroup. 0 stands for one outside our pid namespace.
pub(super) fn procs(dir: &Path) -> Result<Vec<i32>, CgroupError> {
    let file = dir.join("cgroup.procs");
    let text = match read_path(&file) {
        Ok(text) => text,
        // Removed meanwhile, or threaded: its processes are told by the cgroup above.
        Err(Errno::ENOENT | Errno::ENODEV | Errno::EOPNOTSUPP) => return Ok(Vec::new()),
        Err(errno) => return Err(CgroupError::read(file, errno)),
    };
    text.lines().map(|line| line.parse().map_err(|_| CgroupError::malformed(file.clone(), line))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_way_out_opens_nothing() {
        let place = std::env::temp_dir().join(format!("apex-oci-dir-{}", std::process::id()));
        std::fs::create_dir_all(place.join("in")).unwrap();
        std::fs::write(place.join("outside"), "x").unwrap();
        std::os::unix::fs::symlink("../outside", place.join("in/link")).unwrap();
        let dir = Dir::open(&place.join("in")).unwrap();
        assert_eq!(dir.write("../outside", "y"), Err(Errno::EXDEV));
        assert_eq!(dir.write("link", "y"), Err(Errno::ELOOP));
        assert_eq!(dir.write("a\0b", "y"), Err(Errno::EINVAL));
        std::fs::remove_dir_all(&place).unwrap();
    }

    #[test]
    fn what_is_made_is_told_outermost_first() {
        let place = std::env::temp_dir().join(format!("apex-oci-made-{}", std::process::id()));
        let mut made = Vec::new();
        assert_eq!(make(&place.join("a/b"), &mut made), Ok(true));
        assert_eq!(made, [place.clone(), place.join("a"), place.join("a/b")]);
        assert_eq!(make(&place.join("a/b"), &mut made), Ok(false));
        assert_eq!(made.len(), 3);
        remove_tree(&place.join("a/b"), Instant::now()).unwrap();
        remove_tree(&place.join("a/b"), Instant::now()).unwrap();
        std::fs::remove_dir_all(&place).unwrap();
    }
}

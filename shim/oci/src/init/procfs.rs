//! A proc file system that is certainly one, for what must be written there: labels, parameters of the kernel, the OOM score.
//!
//! Whoever can put something else at a path of /proc gets what is written there, or has it go where they want. So a proc file system is made for the
//! purpose, which no path leads to, or where that is not allowed the one at /proc is opened, looked at, and then used by descriptor, with nothing that is
//! mounted on it and no link in it.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use apex_sys::mount::{self, attr};
use apex_sys::{Errno, fs};
use nix::libc;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::rootfs::RootfsError;

/// The number of the root of every proc file system.
const ROOT_INODE: u64 = 1;

/// No link, nothing mounted, nothing outside.
const RESOLVE: u64 =
    fs::resolve::BENEATH | fs::resolve::NO_XDEV | fs::resolve::NO_SYMLINKS | fs::resolve::NO_MAGICLINKS;

/// Such a file system.
#[derive(Debug)]
pub struct Verified {
    root: OwnedFd,
}

impl Verified {
    /// Makes one for this purpose, in which the process sees itself and what the kernel has; else checks the one at /proc.
    ///
    /// # Errors
    /// Neither can be had.
    pub fn open() -> Result<Verified, RootfsError> {
        let attributes = attr::NOSUID | attr::NODEV | attr::NOEXEC;
        match mount::new_filesystem(c"proc", &[(c"source", c"proc")], attributes) {
            Ok(root) => Ok(Verified { root }),
            // In a user namespace only those who see all of /proc may have another (mount_namespaces(7)).
            Err(Errno::EPERM) => Self::at_proc(),
            Err(source) => Err(RootfsError::Procfs { step: "mount one for this purpose", source }),
        }
    }

    /// One that this process has just made: nobody else can have mounted anything on it.
    pub(super) fn made_here(root: OwnedFd) -> Verified {
        Verified { root }
    }

    /// Checks the one at /proc.
    ///
    /// # Errors
    /// There is none, or something else stands there.
    pub fn at_proc() -> Result<Verified, RootfsError> {
        let failed = |step| move |source| RootfsError::Procfs { step, source };
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let root = fs::open(fs::cwd(), c"/proc", flags, fs::resolve::NO_SYMLINKS).map_err(failed("open /proc"))?;
        let kind = fstatfs(&root).map_err(failed("ask what is at /proc"))?.filesystem_type();
        let inode = fs::stat(root.as_fd(), c"").map_err(failed("ask what is at /proc"))?.inode;
        if kind != PROC_SUPER_MAGIC || inode != ROOT_INODE {
            return Err(failed("what is mounted at /proc is something else")(Errno::ESTALE));
        }
        Ok(Verified { root })
    }

    /// Opens a file below /proc.
    ///
    /// # Errors
    /// `ELOOP` for a link, `EXDEV` for what something is mounted over.
    pub fn file(&self, path: &Path, flags: i32) -> Result<OwnedFd, Errno> {
        let name = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| Errno::EINVAL)?;
        fs::open(self.root.as_fd(), &name, flags, RESOLVE)
    }

    /// Opens a file of this process: `attr/exec` for /proc/self/attr/exec.
    ///
    /// # Errors
    /// As above.
    pub fn own(&self, name: &str, flags: i32) -> Result<OwnedFd, Errno> {
        let pid = nix::fcntl::readlinkat(&self.root, c"self")?;
        self.file(&Path::new(&pid).join(name), flags)
    }

    /// Writes a value to a file below /proc, in one piece.
    ///
    /// # Errors
    /// The file cannot be opened, or does not take the value.
    pub fn write(&self, path: &Path, value: &str) -> Result<(), RootfsError> {
        let failed = |source| RootfsError::ProcWrite { path: path.to_owned(), value: value.to_owned(), source };
        self.file(path, libc::O_WRONLY).and_then(|file| write_whole(&file, value)).map_err(failed)
    }

    /// Writes a value to a file of this process.
    ///
    /// # Errors
    /// As above.
    pub fn write_own(&self, name: &str, value: &str) -> Result<(), RootfsError> {
        let path = Path::new(OsStr::new("self")).join(name);
        let failed = |source| RootfsError::ProcWrite { path, value: value.to_owned(), source };
        self.own(name, libc::O_WRONLY).and_then(|file| write_whole(&file, value)).map_err(failed)
    }
}

/// Files of /proc take a value in one call.
fn write_whole(file: &OwnedFd, value: &str) -> Result<(), Errno> {
    match fs::write(file.as_fd(), value.as_bytes())? {
        count if count == value.len() => Ok(()),
        _ => Err(Errno::EIO),
    }
}

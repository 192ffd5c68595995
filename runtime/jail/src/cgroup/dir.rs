//! One cgroup directory of our own: made, locked, written, removed; and those that killed runs left behind, swept.
//!
//! The lock is how a stale directory is told from a live one. The owner holds flock(2) on the directory for as long as it
//! lives, and the kernel gives the lock back even when the owner dies of SIGKILL. So whoever gets the lock of an `apex-*` directory may
//! remove it: its owner is gone, in whichever pid namespace it was. (A pid and start time in the name would need /proc of
//! the right pid namespace.) A directory that still holds processes refuses rmdir(2) anyway.

use std::fs::{File, TryLockError};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd;

use super::error::CgroupError;

/// First part of every name.
pub(super) const PREFIX: &str = "apex-";

/// A control file says less than this; what lists processes is read in rounds.
const CONTROL_BYTES_MAX: usize = 8192;

/// What may be read of a list (mountinfo of a crowded host, cgroup.procs) before it counts as malformed.
const LIST_BYTES_MAX: usize = 8 << 20;

/// Tries to remove a directory, the waits doubling from 1 ms: one second in all.
const REMOVE_ATTEMPTS_MAX: u32 = 11;

/// Siblings that one sweep looks at.
const SWEEP_LOCKS_MAX: usize = 8;

/// Entries that one sweep reads.
const SWEEP_ENTRIES_MAX: usize = 4096;

/// Younger directories are left alone: their owner may stand between mkdir and flock.
pub(super) const SWEEP_AGE_MIN: Duration = Duration::from_secs(10);

/// `apex-PID-RANDOM`: the pid is for people, the random part against collision.
pub(super) fn fresh_name() -> String {
    // The standard library's hasher keys are the one source of randomness that needs no dependency.
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    format!("{PREFIX}{}-{random:016x}", crate::host::launcher_pid())
}

/// Some bits of the random part of a name.
pub(super) fn random_part(name: &str) -> Option<usize> {
    usize::from_str_radix(name.get(name.len().checked_sub(4)?..)?, 16).ok()
}

/// A directory that this process made and locked.
#[derive(Debug)]
pub(super) struct Dir {
    path: PathBuf,
    /// The descriptor that holds the lock, through which control files are opened. `None` once removed.
    fd: Option<File>,
    /// Whether it is removed at the end.
    ours: bool,
}

impl Dir {
    /// Makes `parent/name`. An existing one is [`CgroupError::NameTaken`].
    pub(super) fn make(parent: &Path, name: &str) -> Result<Dir, CgroupError> {
        let path = parent.join(name);
        match unistd::mkdir(&path, Mode::from_bits_truncate(0o755)) {
            Ok(()) => {}
            Err(Errno::EEXIST) => return Err(CgroupError::NameTaken { path }),
            Err(errno) => {
                return Err(CgroupError::Make { path, source: errno.into() });
            }
        }
        match lock(&path) {
            Ok(Some(file)) => Ok(Dir { path, fd: Some(file), ours: true }),
            Ok(None) => Err(CgroupError::NameTaken { path }),
            Err(source) => {
                // Best effort: the error being returned says more than a second one would.
                let _ = rmdir(&path);
                Err(CgroupError::Make { path, source })
            }
        }
    }

    /// A directory that somebody else made and will remove (systemd): only read and written, neither locked nor removed.
    pub(super) fn open_foreign(path: &Path) -> Result<Dir, CgroupError> {
        open_dir(path)
            .map(|file| Dir { path: path.to_owned(), fd: Some(file), ours: false })
            .map_err(|errno| CgroupError::Read { file: path.to_owned(), source: errno.into() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn file(&self) -> &File {
        self.fd.as_ref().expect("the descriptor is taken only by remove, which consumes the directory")
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file().as_fd()
    }

    /// Whether a control file exists.
    pub(super) fn has(&self, file: &str) -> bool {
        unistd::faccessat(self.fd(), file, unistd::AccessFlags::F_OK, nix::fcntl::AtFlags::empty()).is_ok()
    }

    /// What a control file says.
    pub(super) fn read(&self, file: &str) -> Result<String, CgroupError> {
        openat(self.fd(), file, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|fd| read_record(&fd))
            .map_err(|source| CgroupError::Read { file: self.path.join(file), source })
    }

    /// A control file that somebody else will write.
    pub(super) fn open_for_writing(&self, file: &str) -> io::Result<OwnedFd> {
        Ok(openat(self.fd(), file, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?)
    }

    /// Writes a control file in one write, as the kernel wants it.
    pub(super) fn write(&self, file: &str, value: &str) -> io::Result<()> {
        let fd = openat(self.fd(), file, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        unistd::write(&fd, value.as_bytes())?;
        Ok(())
    }

    /// The same at the start of a run, whose process ends with the sandbox: the descriptor is left to that end, since closing it would
    /// cost the start a call.
    pub(super) fn write_once(&self, file: &str, value: &str) -> io::Result<()> {
        let fd = openat(self.fd(), file, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let written = unistd::write(&fd, value.as_bytes());
        std::mem::forget(fd);
        written?;
        Ok(())
    }

    /// A limit: [`Dir::write`] with its error.
    pub(super) fn limit(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        self.write(file, value).map_err(|source| CgroupError::Limit {
            file: self.path.join(file),
            value: value.to_owned(),
            source: source.into(),
        })
    }

    /// Every process inside that this process can see.
    pub(super) fn procs(&self) -> Result<Vec<i32>, CgroupError> {
        procs(&self.path)
    }

    /// Removes it. Waits, bounded, for processes that are just dying.
    pub(super) fn remove(mut self) -> Result<(), CgroupError> {
        self.unlink().map_err(|source| CgroupError::Remove { path: self.path.clone(), source })
    }

    fn unlink(&mut self) -> io::Result<()> {
        let Some(lock) = self.fd.take() else {
            return Ok(());
        };
        if !self.ours {
            return Ok(());
        }
        let mut wait = Duration::from_millis(1);
        for attempt in 1.. {
            match rmdir(&self.path) {
                Ok(()) | Err(Errno::ENOENT) => break,
                Err(Errno::EBUSY) if attempt < REMOVE_ATTEMPTS_MAX => std::thread::sleep(wait),
                Err(errno) => return Err(errno.into()),
            }
            wait *= 2;
        }
        // The directory is gone, and the lock with it; as with `write_once`, the descriptor ends with the process.
        std::mem::forget(lock);
        Ok(())
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        // On the error paths only, where nobody is left to hear of a second error; the next run sweeps what stays.
        let _ = self.unlink();
    }
}

/// Every process in the cgroup at `path`. Pid 0 stands for one outside our pid namespace; it and 1 are never ours to signal.
pub(super) fn procs(path: &Path) -> Result<Vec<i32>, CgroupError> {
    let file = path.join("cgroup.procs");
    let text = read_list(&file).map_err(|source| CgroupError::Read { file: file.clone(), source })?;
    text.lines()
        .map(|line| {
            line.parse()
                .map_err(|_| CgroupError::Malformed { file: file.clone(), text: line.chars().take(80).collect() })
        })
        .collect()
}

fn rmdir(path: &Path) -> nix::Result<()> {
    unistd::unlinkat(nix::fcntl::AT_FDCWD, path, unistd::UnlinkatFlags::RemoveDir)
}

fn open_dir(path: &Path) -> nix::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty()).map(File::from)
}

/// Opens and locks a directory. `None` when another process holds the lock or was quicker to remove it.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = match open_dir(path) {
        Ok(file) => file,
        Err(Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(source)) => Err(source),
    }
}

/// Removes the directories beside ours whose owners were killed. Runs at the end of a run, off the start-up path; one stat
/// when there is nothing beside us. Errors are nobody's business: what stays is swept next time.
pub(super) fn sweep(parent: &Path, age_min: Duration) -> usize {
    // cgroupfs counts subdirectories in st_nlink, as other file systems do.
    match nix::sys::stat::stat(parent) {
        Ok(stat) if stat.st_nlink > 2 => {}
        Ok(_) | Err(_) => return 0,
    }
    let Ok(entries) = std::fs::read_dir(parent) else {
        return 0;
    };
    let mut names: Vec<PathBuf> = entries
        .take(SWEEP_ENTRIES_MAX)
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()))
        .map(|entry| entry.path())
        .collect();
    if names.len() > SWEEP_LOCKS_MAX {
        // Beside many live sandboxes each run looks at a different few, so that all get their turn.
        let turn = std::process::id() as usize % names.len();
        names.rotate_left(turn);
    }
    names.iter().take(SWEEP_LOCKS_MAX).filter(|path| sweep_one(path, age_min)).count()
}

fn sweep_one(path: &Path, age_min: Duration) -> bool {
    let old = std::fs::symlink_metadata(path)
        .and_then(|meta| meta.modified())
        .is_ok_and(|made| made.elapsed().is_ok_and(|age| age >= age_min));
    if !old {
        return false;
    }
    match lock(path) {
        Ok(Some(_held)) => rmdir(path).is_ok(),
        Ok(None) | Err(_) => false,
    }
}

/// Reads a file that the kernel writes as one record: one read, no fstat, no read for the end.
pub(super) fn read_control(path: &Path) -> io::Result<String> {
    let fd = nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let record = read_record(&fd);
    // As with `write_once`.
    std::mem::forget(fd);
    record
}

fn read_record(fd: impl AsFd) -> io::Result<String> {
    let mut buffer = [0u8; CONTROL_BYTES_MAX];
    let length = unistd::read(fd, &mut buffer)?;
    if length == buffer.len() {
        return Err(Errno::EFBIG.into());
    }
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Reads a file of many records to its end.
pub(super) fn read_list(path: &Path) -> io::Result<String> {
    let fd = nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut bytes = Vec::new();
    let mut buffer = [0u8; 16 * 1024];
    while bytes.len() < LIST_BYTES_MAX {
        match unistd::read(&fd, &mut buffer)? {
            0 => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            length => bytes.extend_from_slice(&buffer[..length]),
        }
    }
    Err(Errno::EFBIG.into())
}

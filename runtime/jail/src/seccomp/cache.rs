//! Compiled programs, kept between starts.
//!
//! A cached program is only ever used after the proof, so what stands here cannot weaken a sandbox. The checks of owner, kind and links keep
//! apart what is ours from what is not, and bound what is read. A hit takes three system calls: open, fstat, read.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use apex_core::seccomp::bpf::{INSNS_MAX, Insn};
use nix::fcntl::{OFlag, open, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use super::compile::{INSN_SIZE, decode, encode};

/// The directory of cached programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheDir {
    path: PathBuf,
    /// Effective user id of this process: asked for once, not at each file.
    euid: u32,
}

impl CacheDir {
    /// A directory, which is made when something is written.
    pub fn at(path: PathBuf) -> CacheDir {
        CacheDir { path, euid: geteuid().as_raw() }
    }

    /// The directory of this process.
    pub fn find() -> Option<CacheDir> {
        CacheDir::locate(geteuid().as_raw(), |name| std::env::var_os(name))
    }

    /// The directory of the caller: `/run/apex/seccomp` for root, otherwise `apex/seccomp` in `$XDG_RUNTIME_DIR`, `$XDG_CACHE_HOME` or
    /// `~/.cache`. `None` when the environment names none of them by an absolute path.
    pub fn locate(euid: u32, env: impl Fn(&str) -> Option<OsString>) -> Option<CacheDir> {
        let dir = |name: &str| env(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = if euid == 0 {
            PathBuf::from("/run")
        } else {
            dir("XDG_RUNTIME_DIR")
                .or_else(|| dir("XDG_CACHE_HOME"))
                .or_else(|| dir("HOME").map(|home| home.join(".cache")))?
        };
        Some(CacheDir { path: base.join("apex/seccomp"), euid })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads a program; `None` when it is not there or not a file that we wrote.
    pub(super) fn read(&self, name: &str) -> Option<Vec<Insn>> {
        // NONBLOCK: a FIFO in its place must not hold the start up.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        // Left open for the end of the process, which comes with that of the sandbox.
        let file = ManuallyDrop::new(File::from(open(&self.path.join(name), flags, Mode::empty()).ok()?));
        let facts = file.metadata().ok()?;
        let ours = facts.is_file() && facts.uid() == self.euid && facts.nlink() == 1 && facts.mode() & 0o077 == 0;
        let size = usize::try_from(facts.len()).ok()?;
        if !ours || size == 0 || size > INSNS_MAX * INSN_SIZE {
            return None;
        }
        let mut bytes = vec![0; size];
        (&*file).read_exact(&mut bytes).ok()?;
        decode(&bytes)
    }

    /// Writes a program under a temporary name and moves it into place. Returns whether it is there now: a cache that cannot be written
    /// only costs the next start its compilation.
    pub(super) fn write(&self, name: &str, program: &[Insn]) -> bool {
        self.open_dir().is_some_and(|dir| write_in(&dir, name, program).is_some())
    }

    /// Opens the directory, made if need be; `None` when it is not ours alone.
    fn open_dir(&self) -> Option<OwnedFd> {
        // What is there already is judged below.
        let _ = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let dir = File::from(open(&self.path, flags, Mode::empty()).ok()?);
        let facts = dir.metadata().ok()?;
        (facts.uid() == self.euid && facts.mode() & 0o022 == 0).then(|| dir.into())
    }
}

fn write_in(dir: &OwnedFd, name: &str, program: &[Insn]) -> Option<()> {
    // Unique among processes that run now; what a crash left behind is replaced.
    let temporary = format!(".{name}.{}", std::process::id());
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let create = || openat(dir.as_fd(), temporary.as_str(), flags, Mode::from_bits_truncate(0o600));
    let remove = || unlinkat(dir.as_fd(), temporary.as_str(), UnlinkatFlags::NoRemoveDir);
    let file = create().or_else(|_| remove().and_then(|()| create())).ok()?;
    let written = File::from(file).write_all(&encode(program)).is_ok();
    let moved = written && renameat(dir.as_fd(), temporary.as_str(), dir.as_fd(), name).is_ok();
    if !moved {
        // Nothing more can be done about a directory that takes neither.
        let _ = remove();
        return None;
    }
    Some(())
}

//! Compiled programs, kept between containers.
//!
//! What stands in a file is loaded without being judged against the rules again, so a file counts only when nobody but this user can have
//! written it: the directory and the file belong to the effective uid, nobody else may write the one or touch the other, and the file
//! has no second name. Whoever could plant one is root (or the same user), who could as well change the runtime. Against damage there is a
//! digest over the rules' digest and the program: a torn, flipped or renamed file is as good as none.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use apex_core::seccomp::bpf::{INSNS_MAX, Insn};
use nix::fcntl::{OFlag, open, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};
use sha2::{Digest, Sha256};

use super::compile::{INSN_SIZE, decode, encode};

const DIGEST_SIZE: usize = 32;

/// The directory of cached programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheDir {
    path: PathBuf,
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

    /// `/run/apex/seccomp-oci` for root, otherwise `apex/seccomp-oci` in `$XDG_RUNTIME_DIR`; `None` without one. Root of a user namespace does
    /// not own `/run`, and is told so by the owner of the directory.
    pub fn locate(euid: u32, env: impl Fn(&str) -> Option<OsString>) -> Option<CacheDir> {
        let base = if euid == 0 {
            PathBuf::from("/run")
        } else {
            env("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute())?
        };
        Some(CacheDir { path: base.join("apex/seccomp-oci"), euid })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the program of these rules; `None` when it is not there, not ours alone, or not whole.
    pub(super) fn read(&self, rules: &[u8; DIGEST_SIZE]) -> Option<Vec<Insn>> {
        let dir = self.open_dir()?;
        // NONBLOCK: a FIFO in its place must not hold the start up.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let mut file = File::from(openat(dir.as_fd(), name(rules).as_str(), flags, Mode::empty()).ok()?);
        let facts = file.metadata().ok()?;
        let ours = facts.is_file() && facts.uid() == self.euid && facts.nlink() == 1 && facts.mode() & 0o077 == 0;
        let size = usize::try_from(facts.len()).ok()?;
        if !ours || size <= DIGEST_SIZE || size > DIGEST_SIZE + INSNS_MAX * INSN_SIZE {
            return None;
        }
        let mut bytes = vec![0; size];
        file.read_exact(&mut bytes).ok()?;
        let (seal, program) = bytes.split_at(DIGEST_SIZE);
        (seal == sealed(rules, program)).then(|| decode(program)).flatten()
    }

    /// Writes a program under a temporary name and moves it into place. Returns whether it is there now: a cache that cannot be written
    /// only costs the next start its compilation.
    pub(super) fn write(&self, rules: &[u8; DIGEST_SIZE], program: &[Insn]) -> bool {
        // What is there already is judged when it is opened.
        let _ = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path);
        self.open_dir().is_some_and(|dir| write_in(&dir, rules, program).is_some())
    }

    /// Opens the directory; `None` when it is not ours alone.
    fn open_dir(&self) -> Option<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let dir = File::from(open(&self.path, flags, Mode::empty()).ok()?);
        let facts = dir.metadata().ok()?;
        (facts.uid() == self.euid && facts.mode() & 0o077 == 0).then(|| dir.into())
    }
}

fn name(rules: &[u8; DIGEST_SIZE]) -> String {
    rules.iter().fold(String::with_capacity(2 * DIGEST_SIZE), |mut name, byte| {
        name.extend([byte >> 4, byte & 15].map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])));
        name
    })
}

fn sealed(rules: &[u8; DIGEST_SIZE], program: &[u8]) -> [u8; DIGEST_SIZE] {
    Sha256::new().chain_update(rules).chain_update(program).finalize().into()
}

fn write_in(dir: &OwnedFd, rules: &[u8; DIGEST_SIZE], program: &[Insn]) -> Option<()> {
    let name = name(rules);
    // Unique among processes that run now; what a crash left behind is replaced.
    let temporary = format!(".{name}.{}", std::process::id());
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let create = || openat(dir.as_fd(), temporary.as_str(), flags, Mode::from_bits_truncate(0o600));
    let remove = || unlinkat(dir.as_fd(), temporary.as_str(), UnlinkatFlags::NoRemoveDir);
    let file = create().or_else(|_| remove().and_then(|()| create())).ok()?;
    let program = encode(program);
    let mut bytes = Vec::with_capacity(DIGEST_SIZE + program.len());
    bytes.extend(sealed(rules, &program));
    bytes.extend(program);
    let written = File::from(file).write_all(&bytes).is_ok();
    let moved = written && renameat(dir.as_fd(), temporary.as_str(), dir.as_fd(), name.as_str()).is_ok();
    if !moved {
        // Nothing more can be done about a directory that takes neither.
        let _ = remove();
        return None;
    }
    Some(())
}

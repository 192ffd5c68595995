//! Which registers of a call hold paths, and what the call wants of them.

use crate::refusal::Access;
use crate::seccomp::Abi;

/// Whether a call brings something new into being.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Makes {
    /// It works on what is there.
    Nothing,
    /// It makes what is missing (`O_CREAT`, the target of a rename).
    IfMissing,
    /// It makes something, and fails where something is (`mkdir`, `O_EXCL`).
    New,
}

/// One path that a call names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Descriptor of the directory that a relative path starts from; `None` for the working directory.
    pub dirfd: Option<i32>,
    /// Where the path stands in the caller's memory.
    pub address: u64,
    /// What is wanted.
    pub access: Access,
    /// Whether a link at the end is followed.
    pub follow: bool,
    /// What it makes.
    pub makes: Makes,
}

impl Target {
    fn at(dirfd: Option<u64>, address: u64, access: Access) -> Target {
        // The kernel takes a descriptor as 32 bits.
        let dirfd = dirfd.map(|fd| fd as u32 as i32).filter(|fd| *fd != AT_FDCWD);
        Target { dirfd, address, access, follow: true, makes: Makes::Nothing }
    }

    fn nofollow(self) -> Target {
        Target { follow: false, ..self }
    }

    fn follow_unless(self, flags: u64) -> Target {
        Target { follow: flags & AT_SYMLINK_NOFOLLOW == 0, ..self }
    }

    fn makes(self, makes: Makes) -> Target {
        Target { makes, ..self }
    }
}

const AT_FDCWD: i32 = -100;
const AT_SYMLINK_NOFOLLOW: u64 = 0x100;
const AT_SYMLINK_FOLLOW: u64 = 0x400;

/// Flags of open(2) that x86 and arm64 share.
pub(super) mod open {
    pub const ACCESS_MODE: u64 = 0o3;
    pub const CREAT: u64 = 0o100;
    pub const EXCL: u64 = 0o200;
    pub const TRUNC: u64 = 0o1000;
    pub const PATH: u64 = 0o10_000_000;
    pub const TMPFILE: u64 = 0o20_000_000;
}

/// O_NOFOLLOW, which differs.
const fn open_nofollow(abi: Abi) -> u64 {
    match abi {
        Abi::X86_64 | Abi::I386 => 0o400_000,
        Abi::Aarch64 => 0o100_000,
    }
}

/// The address of the `struct open_how` whose first word holds the flags, for the one call that has them in memory.
pub fn needs_how(call: &str, args: &[u64; 6]) -> Option<u64> {
    (call == "openat2").then_some(args[2])
}

/// The paths of a call; empty for one that names none. `how` are the flags of openat2(2).
pub fn targets(abi: Abi, call: &str, args: &[u64; 6], how: Option<u64>) -> Vec<Target> {
    let [a, b, c, d, e, _] = *args;
    let cwd = |address, access| Target::at(None, address, access);
    let at = |access| Target::at(Some(a), b, access);
    let one = |target| vec![target];
    match call {
        "open" => one(opened(cwd(a, Access::Read), b, abi)),
        "openat" => one(opened(at(Access::Read), c, abi)),
        "openat2" => how.map(|flags| opened(at(Access::Read), flags, abi)).into_iter().collect(),
        "creat" => one(cwd(a, Access::Write).makes(Makes::IfMissing)),
        "stat" | "stat64" | "oldstat" | "access" | "statfs" | "statfs64" | "chdir" => one(cwd(a, Access::Look)),
        "lstat" | "lstat64" | "oldlstat" | "readlink" => one(cwd(a, Access::Look).nofollow()),
        "newfstatat" | "fstatat" | "fstatat64" | "faccessat2" => one(at(Access::Look).follow_unless(d)),
        "statx" => one(at(Access::Look).follow_unless(c)),
        "faccessat" => one(at(Access::Look)),
        "readlinkat" => one(at(Access::Look).nofollow()),
        "execve" => one(cwd(a, Access::Exec)),
        "execveat" => one(at(Access::Exec).follow_unless(e)),
        "chmod" | "chown" | "chown32" | "truncate" | "truncate64" | "utime" | "utimes" => one(cwd(a, Access::Write)),
        "lchown" | "lchown32" | "unlink" | "rmdir" => one(cwd(a, Access::Write).nofollow()),
        "unlinkat" => one(at(Access::Write).nofollow()),
        "fchmodat" | "futimesat" => one(at(Access::Write)),
        "fchmodat2" | "utimensat" | "utimensat_time64" => one(at(Access::Write).follow_unless(d)),
        "fchownat" => one(at(Access::Write).follow_unless(e)),
        "mkdir" | "mknod" => one(cwd(a, Access::Write).nofollow().makes(Makes::New)),
        "mkdirat" | "mknodat" => one(at(Access::Write).nofollow().makes(Makes::New)),
        "symlink" => one(cwd(b, Access::Write).nofollow().makes(Makes::New)),
        "symlinkat" => one(Target::at(Some(b), c, Access::Write).nofollow().makes(Makes::New)),
        "link" => vec![cwd(a, Access::Look).nofollow(), cwd(b, Access::Write).nofollow().makes(Makes::New)],
        "linkat" => {
            let old = Target { follow: e & AT_SYMLINK_FOLLOW != 0, ..at(Access::Look) };
            vec![old, Target::at(Some(c), d, Access::Write).nofollow().makes(Makes::New)]
        }
        "rename" => {
            vec![cwd(a, Access::Write).nofollow(), cwd(b, Access::Write).nofollow().makes(Makes::IfMissing)]
        }
        "renameat" | "renameat2" => {
            vec![at(Access::Write).nofollow(), Target::at(Some(c), d, Access::Write).nofollow().makes(Makes::IfMissing)]
        }
        _ => Vec::new(),
    }
}

fn opened(target: Target, flags: u64, abi: Abi) -> Target {
    let follow = flags & open_nofollow(abi) == 0;
    if flags & open::PATH != 0 {
        return Target { access: Access::Look, follow, ..target };
    }
    let makes = match (flags & open::CREAT != 0, flags & open::EXCL != 0) {
        (true, true) => Makes::New,
        (true, false) => Makes::IfMissing,
        (false, _) => Makes::Nothing,
    };
    let writes = flags & open::ACCESS_MODE != 0 || flags & (open::TRUNC | open::TMPFILE) != 0;
    let access = if writes { Access::Write } else { Access::Read };
    Target { access, follow, makes, ..target }
}

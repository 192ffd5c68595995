//! The namespaces of a container: which are new and which are joined, and by whom.
//!
//! Most containers are born into their new namespaces by one clone, and join others themselves. Three cases need a process in between, the
//! stage, which joins and makes the init in what it joined: a pid namespace takes only children in, a joined user namespace must be entered before
//! anything is made in it, and the offsets of a time namespace are set before its first process.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use apex_sys::{Errno, fs, process};
use oci_spec::runtime::{Linux, LinuxNamespaceType as Kind};

/// Why a namespace is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// A path to join.
    #[error("cannot open {path}, the {kind} namespace to join")]
    Open {
        /// What kind.
        kind: Kind,
        /// The path of the bundle.
        path: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
    /// Joining.
    #[error("cannot join the {kind} namespace {path}; is it one of that kind, and may this user enter it?")]
    Join {
        /// What kind.
        kind: Kind,
        /// The path of the bundle.
        path: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
    /// New ones.
    #[error("cannot make the new {0} namespace")]
    New(&'static str, #[source] Errno),
    /// Offsets of clocks.
    #[error("cannot set the offset of the clock {clock} in the new time namespace")]
    Offset {
        /// `monotonic` or `boottime`.
        clock: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// One to join.
#[derive(Debug)]
struct Join {
    kind: Kind,
    path: PathBuf,
    file: OwnedFd,
}

/// The namespaces of a container.
#[derive(Debug)]
pub struct Namespaces {
    /// `CLONE_NEW*` of the new ones.
    new: u64,
    joins: Vec<Join>,
    /// Clock, seconds, nanoseconds.
    offsets: Vec<(String, i64, u32)>,
}

impl Namespaces {
    /// Reads them and opens what is to be joined.
    ///
    /// # Errors
    /// A path cannot be opened.
    pub fn of(linux: &Linux) -> Result<Namespaces, NamespaceError> {
        let mut all = Namespaces { new: 0, joins: Vec::new(), offsets: Vec::new() };
        for namespace in linux.namespaces().iter().flatten() {
            let kind = namespace.typ();
            let Some(path) = namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty()) else {
                all.new |= kind as u64;
                continue;
            };
            let open = |source| NamespaceError::Open { kind, path: path.clone(), source };
            let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| open(Errno::EINVAL))?;
            let file = fs::open(fs::cwd(), &name, nix::libc::O_RDONLY, 0).map_err(open)?;
            // Entering the own user namespace again is an error for the kernel and nothing for the bundle.
            if kind == Kind::User && is_own_user_namespace(&file) {
                continue;
            }
            all.joins.push(Join { kind, path: path.clone(), file });
        }
        for (clock, offset) in linux.time_offsets().iter().flatten() {
            all.offsets.push((clock.clone(), offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0)));
        }
        Ok(all)
    }

    /// Whether a new one of this kind is made.
    pub fn makes(&self, kind: Kind) -> bool {
        self.new & kind as u64 != 0
    }

    /// Whether one of this kind is joined.
    pub fn joins(&self, kind: Kind) -> bool {
        self.joins.iter().any(|join| join.kind == kind)
    }

    /// Whether the container has one that is not the runtime's.
    pub fn has(&self, kind: Kind) -> bool {
        self.makes(kind) || self.joins(kind)
    }

    /// The user namespace to join.
    pub fn user_to_join(&self) -> Option<BorrowedFd<'_>> {
        self.joins.iter().find(|join| join.kind == Kind::User).map(|join| join.file.as_fd())
    }

    /// Whether a stage must stand between the runtime and the init.
    pub fn need_stage(&self) -> bool {
        let joins_outside = self.makes(Kind::User) && !self.joins.is_empty();
        self.joins(Kind::User) || self.joins(Kind::Pid) || self.makes(Kind::Time) || joins_outside
    }

    /// `CLONE_NEW*` of those into which the init is born. A cgroup namespace shows the cgroup of who makes it, so the init makes it itself, later.
    pub fn at_birth(&self) -> u64 {
        self.new & !(Kind::Cgroup as u64 | Kind::Time as u64)
    }

    /// What a stage does before it makes the init.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn stage(&self) -> Result<(), NamespaceError> {
        // What belongs to the host's user namespace must be entered before that is left; what belongs to the joined one, afterwards.
        let (users, others): (Vec<&Join>, Vec<&Join>) = self.joins.iter().partition(|join| join.kind == Kind::User);
        let later: Vec<&Join> = others.into_iter().filter(|join| enter(join).is_err()).collect();
        users.into_iter().chain(later).try_for_each(enter)?;
        if self.makes(Kind::Time) {
            process::unshare(Kind::Time as i32).map_err(|errno| NamespaceError::New("time", errno))?;
            self.offsets.iter().try_for_each(set_offset)?;
        }
        Ok(())
    }

    /// What the init does, born without a stage.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn join(&self) -> Result<(), NamespaceError> {
        self.joins.iter().try_for_each(enter)
    }

    /// Makes the cgroup namespace, for which the init must be in its cgroup.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn make_cgroup(&self) -> Result<(), NamespaceError> {
        if !self.makes(Kind::Cgroup) {
            return Ok(());
        }
        process::unshare(Kind::Cgroup as i32).map_err(|errno| NamespaceError::New("cgroup", errno))
    }
}

fn enter(join: &Join) -> Result<(), NamespaceError> {
    process::enter_namespaces(join.file.as_fd(), join.kind as i32).map_err(|source| NamespaceError::Join {
        kind: join.kind,
        path: join.path.clone(),
        source,
    })
}

fn is_own_user_namespace(file: &OwnedFd) -> bool {
    let own = fs::stat_followed(c"/proc/self/ns/user");
    let same =
        |own: fs::Stat| fs::stat(file.as_fd(), c"").map(|other| (own.device, own.inode) == (other.device, other.inode));
    own.and_then(same).unwrap_or(false)
}

fn set_offset((clock, seconds, nanoseconds): &(String, i64, u32)) -> Result<(), NamespaceError> {
    std::fs::write("/proc/self/timens_offsets", format!("{clock} {seconds} {nanoseconds}\n"))
        .map_err(|source| NamespaceError::Offset { clock: clock.clone(), source })
}

//! Looking at what a call points to: the caller's memory, and paths as the sandbox sees them.
//!
//! Everything below the sandbox's root is opened beneath a descriptor of that root (`RESOLVE_IN_ROOT`) and for its name alone (`O_PATH`),
//! so no link of the sandbox leads the launcher outside, and no FIFO or device holds it up.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use apex_core::host::LINKS_MAX;
use apex_core::observe::{self, Found, HEAD_BYTES, Target};
use apex_sys::fs::{self, Stat, resolve};
use apex_sys::process::{self, Pid};
use apex_sys::seccomp::{self, Notification};
use apex_sys::{Errno, fs::cwd};
use nix::libc;

use crate::host::{c_path, name_of};

/// Longest path that the kernel takes, its NUL included (PATH_MAX).
const PATH_BYTES_MAX: usize = 4096;
/// What the kernel writes behind the path of what has no name any more (proc_pid_fd(5)).
const DELETED: &[u8] = b" (deleted)";
/// Components of a path that are walked one by one; deeper ones are not explained.
const PARTS_MAX: usize = 256;

/// A process that waits in a call.
pub struct Caller<'c> {
    pub listener: BorrowedFd<'c>,
    pub call: &'c Notification,
}

/// What is told of a caller, as the host numbers it.
#[derive(Debug, Default)]
pub struct Process {
    pub pid: u32,
    pub ppid: u32,
    pub uid: u32,
    /// With the escapes of proc_pid_status(5) for what is no printable character.
    pub comm: String,
}

impl Caller<'_> {
    /// As the kernel numbers it out here.
    fn pid(&self) -> Pid {
        Pid::try_from(self.call.pid).unwrap_or(0)
    }

    /// Whether it still waits: if so, its pid was its own all the time.
    pub fn is_waiting(&self) -> bool {
        seccomp::id_valid(self.listener, self.call.id)
    }

    /// Its name, and its pid inside.
    pub fn who(&self) -> (String, i32) {
        let read = |name: &str| std::fs::read(format!("/proc/{}/{name}", self.pid())).unwrap_or_default();
        let comm = String::from_utf8_lossy(read("comm").trim_ascii_end()).into_owned();
        let status = read("status");
        let inner = String::from_utf8_lossy(&status)
            .lines()
            .find_map(|line| line.strip_prefix("NStgid:")?.split_whitespace().next_back()?.parse().ok());
        if self.is_waiting() { (comm, inner.unwrap_or(0)) } else { (String::new(), 0) }
    }

    /// Its process in one read of /proc/PID/status; `None` when it does not wait any more.
    pub fn describe(&self) -> Option<Process> {
        let status = std::fs::read(format!("/proc/{}/status", self.pid())).ok()?;
        let status = String::from_utf8_lossy(&status).into_owned();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let number = |name: &str| field(name)?.split_whitespace().next()?.parse().ok();
        let process = Process {
            pid: number("Tgid:")?,
            ppid: number("PPid:")?,
            uid: number("Uid:")?,
            comm: field("Name:")?.trim_start_matches('\t').to_owned(),
        };
        self.is_waiting().then_some(process)
    }

    /// Its process as a whole, of which the calling thread is a part.
    pub fn process(&self) -> Option<Pid> {
        let status = std::fs::read(format!("/proc/{}/status", self.pid())).ok()?;
        let status = String::from_utf8_lossy(&status).into_owned();
        status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())
    }

    /// `length` bytes of its memory.
    pub fn bytes(&self, address: u64, length: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; length];
        let count = process::read_memory(self.pid(), address, &mut bytes).ok()?;
        (count == length).then_some(bytes)
    }

    /// A word of its memory.
    pub fn word(&self, address: u64) -> Option<u64> {
        Some(u64::from_ne_bytes(self.bytes(address, 8)?.try_into().ok()?))
    }

    /// A path in its memory. One without an end within the kernel's limit is no path for the kernel either.
    fn path(&self, address: u64) -> Result<PathBuf, Errno> {
        let mut bytes = vec![0; PATH_BYTES_MAX];
        let count = process::read_memory(self.pid(), address, &mut bytes)?;
        let end = bytes[..count].iter().position(|byte| *byte == 0).ok_or(Errno::ENAMETOOLONG)?;
        bytes.truncate(end);
        Ok(PathBuf::from(OsString::from_vec(bytes)))
    }

    /// Where a magic link of its /proc directory leads, in the words of its own mount namespace; `None` for what has no name there.
    fn link(&self, name: &str) -> Option<PathBuf> {
        let target = std::fs::read_link(format!("/proc/{}/{name}", self.pid())).ok()?;
        let is_deleted = target.as_os_str().as_bytes().ends_with(DELETED);
        (target.is_absolute() && !is_deleted).then_some(target)
    }

    /// The directory that a relative path starts from.
    pub fn base(&self, dirfd: Option<i32>) -> Option<PathBuf> {
        match dirfd {
            None => self.link("cwd"),
            Some(number) => self.link(&format!("fd/{number}")),
        }
    }
}

/// The files of the sandbox, as its processes see them.
pub struct World {
    root: OwnedFd,
    root_stat: Stat,
    /// The command's process, and the paths that it tries to execute: its memory cannot be read by an unprivileged launcher before that,
    /// since it shares it with the init.
    starting: RefCell<(Pid, VecDeque<PathBuf>)>,
}

/// Where a path leads.
pub struct Place {
    /// Absolute, without links, as far as anything is there.
    pub path: PathBuf,
    /// What is there.
    pub found: Found,
    fd: Option<OwnedFd>,
}

impl World {
    /// The world of a process.
    pub fn of(pid: Pid) -> Result<World, Errno> {
        let root = root_of(pid)?;
        let root_stat = fs::stat(root.as_fd(), c"")?;
        Ok(World { root, root_stat, starting: RefCell::default() })
    }

    /// Expects these attempts at executing first.
    pub fn starting_with(self, pid: Pid, candidates: Vec<PathBuf>) -> World {
        World { starting: RefCell::new((pid, candidates.into())), ..self }
    }

    /// Opens a path inside for its name.
    pub fn open(&self, path: &Path, follow: bool) -> Result<OwnedFd, Errno> {
        let flags = libc::O_PATH | if follow { 0 } else { libc::O_NOFOLLOW };
        fs::open(self.root.as_fd(), &beneath(path)?, flags, resolve::IN_ROOT)
    }

    /// The path that a call names, made absolute. `None` when it cannot be read, names nothing, or starts in a world of its own.
    pub fn path(&self, caller: &Caller<'_>, target: &Target) -> Option<PathBuf> {
        let planned = self.next_candidate(caller, target);
        if planned.is_none() && !self.holds(caller) {
            return None;
        }
        let path = match (caller.path(target.address), planned) {
            (Ok(path), _) => path,
            (Err(_), Some(planned)) => planned,
            (Err(_), None) => return None,
        };
        if path.as_os_str().is_empty() {
            return None;
        }
        if path.is_absolute() {
            return Some(observe::absolute(Path::new("/"), &path));
        }
        Some(observe::absolute(&caller.base(target.dirfd)?, &path))
    }

    /// Whether the caller has the sandbox's root; one that made namespaces of its own has others.
    fn holds(&self, caller: &Caller<'_>) -> bool {
        let stat = root_of(caller.pid()).and_then(|root| fs::stat(root.as_fd(), c""));
        stat.is_ok_and(|stat| (stat.device, stat.inode) == (self.root_stat.device, self.root_stat.inode))
    }

    fn next_candidate(&self, caller: &Caller<'_>, target: &Target) -> Option<PathBuf> {
        let mut starting = self.starting.borrow_mut();
        let (pid, candidates) = &mut *starting;
        if *pid != caller.pid() {
            return None;
        }
        if target.access != apex_core::refusal::Access::Exec {
            // It became the command.
            candidates.clear();
        }
        candidates.pop_front()
    }

    /// Follows a path as the sandbox would. `None` when that cannot be told (a loop, a magic link, no permission to look).
    pub fn find(&self, path: &Path, follow: bool) -> Option<Place> {
        match self.open(path, follow) {
            Ok(fd) => {
                let about = fs::stat(fd.as_fd(), c"").ok()?;
                let real = name_of(&fd).ok()?;
                // What masks a file has no name any more, and the kernel says so behind the one that it is mounted on.
                let real = if about.links == 0 { without_end(real) } else { real };
                Some(Place { path: real, found: Found::Present { is_dir: about.is(libc::S_IFDIR) }, fd: Some(fd) })
            }
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => self.find_missing(path),
            Err(_) => None,
        }
    }

    /// Walks one component at a time up to the first that is missing.
    fn find_missing(&self, path: &Path) -> Option<Place> {
        let mut left: VecDeque<OsString> = parts(path);
        let mut real = PathBuf::from("/");
        let mut links = 0;
        while let Some(part) = left.pop_front() {
            if left.len() > PARTS_MAX {
                return None;
            }
            if part == ".." {
                real.pop();
                continue;
            }
            let next = real.join(&part);
            let fd = match self.open_plain(&next) {
                Ok(fd) => fd,
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => return Some(missing(real, part, left)),
                Err(_) => return None,
            };
            if !fs::stat(fd.as_fd(), c"").ok()?.is(libc::S_IFLNK) {
                real = next;
                continue;
            }
            links += 1;
            if links > LINKS_MAX {
                return None;
            }
            let target = PathBuf::from(nix::fcntl::readlinkat(fd.as_fd(), c"").ok()?);
            if target.is_absolute() {
                real = PathBuf::from("/");
            }
            for part in parts(&target).into_iter().rev() {
                left.push_front(part);
            }
        }
        // It came into being between the two looks.
        None
    }

    fn open_plain(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let rules = resolve::IN_ROOT | resolve::NO_MAGICLINKS;
        fs::open(self.root.as_fd(), &beneath(path)?, libc::O_PATH | libc::O_NOFOLLOW, rules)
    }
}

impl Place {
    /// The first bytes of a program. Only regular files are opened: their content is there or not, nobody can make the launcher wait for
    /// it (a lease answers with EWOULDBLOCK).
    pub fn head(&self) -> Option<Vec<u8>> {
        let fd = self.fd.as_ref()?;
        if !fs::stat(fd.as_fd(), c"").ok()?.is(libc::S_IFREG) {
            return None;
        }
        // By the descriptor: whatever the name stands for by now, this is the file that was looked at.
        let file =
            fs::open(cwd(), &fs::own_name(fd.as_fd()), libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY, 0).ok()?;
        let mut head = vec![0; HEAD_BYTES];
        let count = fs::read(file.as_fd(), &mut head).ok()?;
        head.truncate(count);
        Some(head)
    }
}

/// Whether a file system has no room left.
pub fn is_full(fd: &OwnedFd) -> bool {
    nix::sys::statfs::fstatfs(fd).is_ok_and(|stat| stat.blocks() > 0 && stat.blocks_available() == 0)
}

/// Whether the host has something under this name. The name itself is looked at, nothing is opened.
pub fn exists_outside(path: &Path) -> bool {
    c_path(path).and_then(|path| fs::stat(cwd(), &path)).is_ok()
}

fn without_end(path: PathBuf) -> PathBuf {
    match path.as_os_str().as_bytes().strip_suffix(DELETED) {
        Some(name) => PathBuf::from(OsString::from_vec(name.to_vec())),
        None => path,
    }
}

fn missing(real: PathBuf, part: OsString, left: VecDeque<OsString>) -> Place {
    let mut path = real.join(part);
    let is_last = left.is_empty();
    for part in left {
        if part == ".." {
            path.pop();
        } else {
            path.push(part);
        }
    }
    let outside = exists_outside(&path);
    let found = if is_last {
        Found::Absent { outside }
    } else {
        Found::Nowhere { outside, parent_outside: path.parent().is_some_and(exists_outside) }
    };
    Place { path, found, fd: None }
}

fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

fn root_of(pid: Pid) -> Result<OwnedFd, Errno> {
    let name = CString::new(format!("/proc/{pid}/root")).map_err(|_| Errno::EINVAL)?;
    fs::open(cwd(), &name, libc::O_PATH | libc::O_DIRECTORY, 0)
}

/// The path as seen from the root's descriptor.
fn beneath(path: &Path) -> Result<CString, Errno> {
    let rest = path.strip_prefix("/").unwrap_or(path);
    if rest.as_os_str().is_empty() { Ok(c".".to_owned()) } else { c_path(rest) }
}

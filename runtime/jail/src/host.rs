//! A look at the real host, for the planner. Every path is opened once; the descriptor is held and later used instead of the name.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::ffi::CString;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::OnceLock;

use apex_core::host::{CgroupSupport, Host, LINKS_MAX, PathFact, names_backwards};
use apex_core::plan::CgroupPlan;
use apex_core::policy::Policy;
use apex_sys::fs::{self, Stat, resolve};
use apex_sys::{Errno, prctl};
use caps::Capability;

use crate::ahead::Ahead;
use crate::cgroup::{Controller, Site};
use crate::placeholder;

/// A path of the host that was opened, and what it was then.
#[derive(Debug)]
pub struct Held {
    /// The descriptor (`O_PATH`).
    pub fd: OwnedFd,
    /// What it is.
    pub stat: Stat,
}

/// This host.
#[derive(Debug, Default)]
pub struct LiveHost {
    opened: RefCell<HashMap<(PathBuf, bool), Opened>>,
    site: RefCell<Option<Rc<Site>>>,
    cwd: OnceCell<PathBuf>,
    caller: OnceCell<(u32, u32)>,
    real: RefCell<HashMap<PathBuf, PathBuf>>,
    gives_host_ids: OnceCell<bool>,
    ahead: RefCell<Option<Ahead>>,
}

/// What came of opening a path.
type Opened = Result<Rc<Held>, Refusal>;

/// Why a path was not opened.
#[derive(Clone, Debug)]
enum Refusal {
    Missing,
    Other(String),
}

impl LiveHost {
    /// A look that has seen nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same for a caller that has looked up its working directory already.
    pub fn at(cwd: PathBuf) -> Self {
        LiveHost { cwd: OnceCell::from(cwd), ..Self::default() }
    }

    /// The descriptor of a path that the planner asked about.
    pub fn held(&self, path: &Path) -> Option<Rc<Held>> {
        let opened = self.opened.borrow();
        let found = opened.get(&(path.to_owned(), false)).or_else(|| opened.get(&(path.to_owned(), true)))?;
        found.as_ref().ok().map(Rc::clone)
    }

    /// Begins to make, beside the planning, what a start of this policy will need; for those who then launch its plan.
    pub fn make_ahead(&self, policy: &Policy) {
        if self.gives_host_ids() {
            // What fails here is tried again by the launcher, which tells why.
            *self.ahead.borrow_mut() = Ahead::of_policy(policy).ok();
        }
    }

    /// Ends what was begun: there will be no plan.
    pub fn forgo_ahead(&self) {
        drop(self.take_ahead());
    }

    pub(crate) fn take_ahead(&self) -> Option<Ahead> {
        self.ahead.borrow_mut().take()
    }

    /// Where the sandbox's cgroup can be made, as found when the planner asked.
    pub fn site(&self) -> Option<Rc<Site>> {
        self.site.borrow().clone()
    }

    /// The real path of what exists, with the rest behind it.
    fn resolve(&self, path: &Path) -> PathBuf {
        if let Ok(held) = self.open(path, true)
            && let Ok(real) = name_of(&held.fd)
        {
            return real;
        }
        match (path.parent(), path.file_name()) {
            // Missing: what holds it is asked once for all of its names. A policy may deny dozens in one home.
            (Some(parent), Some(name)) => self.real(parent).join(name),
            _ => path.to_owned(),
        }
    }

    fn open(&self, path: &Path, follow: bool) -> Result<Rc<Held>, Refusal> {
        if let Some(known) = self.opened.borrow().get(&(path.to_owned(), follow)) {
            return known.clone();
        }
        let result = open_path(path, follow).map(Rc::new);
        self.opened.borrow_mut().insert((path.to_owned(), follow), result.clone());
        result
    }
}

impl Host for LiveHost {
    fn path(&self, path: &Path, follow: bool) -> PathFact {
        // On a merged /usr most of what stands right below the root is a link: one call tells.
        if !follow
            && path.parent() == Some(Path::new("/"))
            && path != Path::new("/usr")
            && let Ok(target) = std::fs::read_link(path)
        {
            return PathFact::Symlink(target);
        }
        let held = match self.open(path, follow) {
            Ok(held) => held,
            Err(Refusal::Missing) => return PathFact::Missing,
            Err(Refusal::Other(reason)) => return PathFact::Refused(reason),
        };
        if held.stat.is(libc_mode::LINK) {
            // The link that was opened, not what may stand under its name by now.
            if !follow && let Ok(target) = nix::fcntl::readlinkat(&held.fd, "") {
                return PathFact::Symlink(target.into());
            }
            return PathFact::Refused(
                "it became a link while it was looked at; start again when it is at rest".to_owned(),
            );
        }
        if placeholder::is_placeholder(&held.stat) {
            // Another sandbox holds the name: to the plan nothing is there, and this sandbox comes to share the hold.
            return PathFact::Missing;
        }
        if held.stat.is(libc_mode::DIR) { PathFact::Dir } else { PathFact::File }
    }

    fn real(&self, path: &Path) -> PathBuf {
        if let Some(known) = self.real.borrow().get(path) {
            return known.clone();
        }
        let real = self.resolve(path);
        self.real.borrow_mut().insert(path.to_owned(), real.clone());
        real
    }

    fn names(&self, dir: &Path) -> Option<Vec<std::ffi::OsString>> {
        let entries = std::fs::read_dir(dir).ok()?;
        entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<_, _>>().ok()
    }

    fn landlock_abi(&self) -> u32 {
        prctl::landlock_abi()
    }

    fn cgroup(&self, plan: &CgroupPlan) -> CgroupSupport {
        let site = Rc::new(Site::find(&Controller::wanted(plan)));
        let support = site.support();
        *self.site.borrow_mut() = Some(site);
        support
    }

    fn has_time_namespaces(&self) -> bool {
        Path::new("/proc/self/ns/time").exists()
    }

    fn gives_host_ids(&self) -> bool {
        let needed = [Capability::CAP_SYS_ADMIN, Capability::CAP_SETUID, Capability::CAP_SETGID];
        let needed = needed.into_iter().fold(0, |mask, capability| mask | 1 << capability.index());
        let has_all = || prctl::effective_capabilities().is_ok_and(|held| held & needed == needed);
        // In a user namespace other than the first only some ids are mapped (user_namespaces(7)).
        let is_first = || {
            // One read: a map of a single line fits, and one of more lines is not the one that is looked for.
            let mut map = [0; 128];
            let count = fs::open(fs::cwd(), c"/proc/self/uid_map", nix::libc::O_RDONLY, 0)
                // Left open, as everything that the look at the host opens.
                .and_then(|file| fs::read(ManuallyDrop::new(file).as_fd(), &mut map))
                .unwrap_or(0);
            String::from_utf8_lossy(&map[..count]).split_whitespace().eq(["0", "0", "4294967295"])
        };
        *self.gives_host_ids.get_or_init(|| self.caller().0 == 0 && has_all() && is_first())
    }

    fn caller(&self) -> (u32, u32) {
        let look = || (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        *self.caller.get_or_init(look)
    }

    fn env(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn cwd(&self) -> PathBuf {
        let look = || std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        self.cwd.get_or_init(look).clone()
    }
}

/// Whether this process may load BPF programs, as far as its capabilities tell; the kernel has the last word.
pub fn may_load_programs() -> bool {
    let held = prctl::effective_capabilities().unwrap_or(0);
    let has = |capability: Capability| held & 1 << capability.index() != 0;
    has(Capability::CAP_SYS_ADMIN) || (has(Capability::CAP_BPF) && has(Capability::CAP_PERFMON))
}

/// The launcher's pid, asked for once: not for the init, which is another process with a copy of this memory.
pub(crate) fn launcher_pid() -> u32 {
    static PID: OnceLock<u32> = OnceLock::new();
    *PID.get_or_init(std::process::id)
}

/// File types of st_mode (inode(7)).
mod libc_mode {
    pub const DIR: u32 = 0o040_000;
    pub const LINK: u32 = 0o120_000;
}

/// The path as the C library wants it.
pub fn c_path(path: &Path) -> Result<CString, Errno> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)
}

/// The name that the kernel knows a descriptor by (proc_pid_fd(5)).
pub fn name_of(fd: &OwnedFd) -> Result<PathBuf, Errno> {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}

/// Opens a path, following only links that nobody but root or the caller can have planted.
fn open_path(path: &Path, follow: bool) -> Result<Held, Refusal> {
    let flags = O_PATH | if follow { 0 } else { O_NOFOLLOW };
    let name = c_path(path).map_err(|_| Refusal::Other("its name holds a NUL byte".to_owned()))?;
    // Most paths have no link at all: one call.
    let fd = match fs::open(fs::cwd(), &name, flags, resolve::NO_SYMLINKS) {
        Err(Errno::ELOOP) => open_through_links(path),
        other => other.map_err(|errno| refusal(errno, path)),
    }?;
    let stat = fs::stat(fd.as_fd(), c"").map_err(|errno| refusal(errno, path))?;
    Ok(Held { fd, stat })
}

const O_PATH: i32 = 0o10_000_000;
const O_NOFOLLOW: i32 = 0o400_000;

fn refusal(errno: Errno, path: &Path) -> Refusal {
    match errno {
        Errno::ENOENT | Errno::ENOTDIR => Refusal::Missing,
        Errno::ELOOP => {
            Refusal::Other("it leads through a link of /proc or in a circle; name the real path".to_owned())
        }
        Errno::EACCES => {
            Refusal::Other(format!("you may not look there ({}); choose a path that you can reach", path.display()))
        }
        errno => Refusal::Other(format!("it cannot be opened: {}", errno.desc())),
    }
}

/// Walks a path component by component and checks who owns each link: a link planted by another user would choose what the
/// sandbox is given.
fn open_through_links(path: &Path) -> Result<OwnedFd, Refusal> {
    let caller = nix::unistd::geteuid().as_raw();
    let mut pending = names_backwards(path);
    let mut at = PathBuf::from("/");
    let mut links = 0;
    let open = |path: &Path| {
        let name = c_path(path).map_err(|_| Refusal::Other("its name holds a NUL byte".to_owned()))?;
        fs::open(fs::cwd(), &name, O_PATH | O_NOFOLLOW, 0).map_err(|errno| refusal(errno, path))
    };
    while let Some(name) = pending.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        let fd = open(&next)?;
        let stat = fs::stat(fd.as_fd(), c"").map_err(|errno| refusal(errno, &next))?;
        if !stat.is(libc_mode::LINK) {
            at = next;
            continue;
        }
        links += 1;
        if links > LINKS_MAX {
            return Err(refusal(Errno::ELOOP, path));
        }
        if stat.uid != 0 && stat.uid != caller {
            return Err(Refusal::Other(format!(
                "{} is a symbolic link that belongs to user {}, who could make it point anywhere; name the real path",
                next.display(),
                stat.uid
            )));
        }
        let target =
            std::fs::read_link(&next).map_err(|error| Refusal::Other(format!("its link cannot be read: {error}")))?;
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        pending.extend(names_backwards(&target));
    }
    // The walk ended at a path without links; opening it so makes sure that it still is one.
    let name = c_path(&at).map_err(|_| Refusal::Missing)?;
    fs::open(fs::cwd(), &name, O_PATH, resolve::NO_SYMLINKS).map_err(|errno| refusal(errno, &at))
}

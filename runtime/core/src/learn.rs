//! From a watched run to the narrowest policy under which it passes again.
//!
//! Input: a [`Setting`], [`Event`]s in any order, and what an earlier learned policy already holds. Output: [`Learned`], and its text. Nothing
//! here opens a file: whether something exists outside is asked of an [`Outside`]. The program that is learned from chooses what it does, so
//! nothing is granted that the ceiling of the mode forbids, that a rule denies, or that holds secrets; it is listed instead.

mod calls;
mod edit;
mod keys;
mod name;
mod needs;
mod network;
mod setting;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub(crate) use calls::group_of;
pub use keys::{DENIED_MAX, Keys};
pub use needs::{GRANTS_MAX, LOOKS_MAX, Need, Right, SIBLINGS_MIN, SUBTREES_MIN, TREE_MIN, WRITES_MAX};
pub use setting::{Given, Granted, Piece, Place, Setting, Top};
pub use text::{LearnError, Previous};

use crate::event::{Errno, Event, What};
use crate::policy::normalise;
use crate::refusal::Access;

/// Paths of one kind that are kept; what comes beyond is counted.
pub const PATHS_MAX: usize = 50_000;
/// Things that were asked for and not granted, as the text lists them.
pub const ASKED_MAX: usize = 100;
/// Programs named in a reason.
pub const PROGRAMS_MAX: usize = 4;

/// What a learned policy shows of the system, and lets be executed, where it starts from nothing: no dynamic program starts without.
pub(crate) const SEEDS: [&str; 11] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/localtime",
    "/etc/nsswitch.conf",
];

/// The first of [`SEEDS`] are executable.
pub(crate) const SEEDS_EXEC: usize = 7;

/// What stands at a path of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stands {
    /// Nothing.
    Nothing,
    /// A directory.
    Dir,
    /// Something else.
    File,
    /// It was not asked or cannot be told.
    Unknown,
}

/// What a search came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    /// What was found.
    pub found: Vec<PathBuf>,
    /// Whether it ended before everything was looked at.
    pub is_cut: bool,
}

/// A look at the host. Since a run that is learned from writes to an overlay, the host afterwards is the host before.
pub trait Outside {
    /// What stands at `path`, links followed.
    fn stands(&self, path: &Path) -> Stands;

    /// What the symbolic link at `path` says; `None` for anything else.
    fn link(&self, _path: &Path) -> Option<PathBuf> {
        None
    }

    /// What lies below the directory `dir`, links not followed, by one of these names. Bounded: where it came to its end early, it says so.
    fn named_below(&self, _dir: &Path, _names: &[&str]) -> Search {
        Search::default()
    }

    /// What lies in the directory `dir`, bounded likewise.
    fn entries(&self, _dir: &Path) -> Search {
        Search::default()
    }

    /// The file that the kernel needs beside the program at `path` to start it, as the program names it (see
    /// [`crate::observe::interpreter`]).
    fn interpreter(&self, _path: &Path) -> Option<PathBuf> {
        None
    }
}

/// Nobody to ask.
#[derive(Clone, Copy, Debug)]
pub struct Unseen;

impl Outside for Unseen {
    fn stands(&self, _: &Path) -> Stands {
        Stands::Unknown
    }
}

/// Whether a learned policy may say `${CWD}`: the directory holds one thing to work at, and is no home, `/`, `/tmp` or the like.
pub(crate) fn has_own_cwd(cwd: &Path, home: Option<&Path>) -> bool {
    !name::is_shared(cwd, home)
}

/// How often something was used, and by which programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// How often.
    pub times: u64,
    /// Programs, at most [`PROGRAMS_MAX`].
    pub by: BTreeSet<String>,
}

impl Use {
    fn add(&mut self, times: u64, by: &str) {
        self.times = self.times.saturating_add(times);
        self.by.insert(by.to_owned());
        while self.by.len() > PROGRAMS_MAX {
            self.by.pop_last();
        }
    }
}

type Uses = BTreeMap<PathBuf, Use>;

/// Takes events in.
#[derive(Debug)]
pub struct Learner {
    setting: Setting,
    /// Opened for reading.
    reads: Uses,
    /// Executed.
    execs: Uses,
    /// Asked to be executed, by another name than the program's: links stand in it, and `..`.
    asked: Uses,
    /// Looked at, likewise, and whether a link at the end was followed.
    looks: BTreeMap<(PathBuf, bool), Use>,
    /// Changed where they stand.
    edits: Uses,
    /// Opened with O_CREAT: whether they were there is for the end to tell.
    creates: Uses,
    /// Names that came or went: what changes is the directory.
    names: Uses,
    /// Directories that the run made.
    made_dirs: BTreeSet<PathBuf>,
    /// Names that the run made.
    made: BTreeSet<PathBuf>,
    /// Moved or linked: both ends must lie in one mount.
    moves: BTreeSet<(PathBuf, PathBuf)>,
    network: network::Ends,
    calls: BTreeMap<String, u64>,
    has_calls: bool,
    /// Groups that arguments asked for, with the call.
    governors: BTreeMap<&'static str, Use>,
    refused_calls: BTreeMap<String, Use>,
    refused_paths: BTreeMap<(Access, PathBuf), Use>,
    /// Looked for and not found.
    missing: Uses,
    command: Option<String>,
    /// Events that told of more paths than are kept.
    left_out: u64,
}

impl Learner {
    /// A learner that has seen nothing.
    pub fn new(setting: Setting) -> Learner {
        Learner {
            setting,
            reads: Uses::new(),
            execs: Uses::new(),
            asked: Uses::new(),
            looks: BTreeMap::new(),
            edits: Uses::new(),
            creates: Uses::new(),
            names: Uses::new(),
            made_dirs: BTreeSet::new(),
            made: BTreeSet::new(),
            moves: BTreeSet::new(),
            network: network::Ends::default(),
            calls: BTreeMap::new(),
            has_calls: false,
            governors: BTreeMap::new(),
            refused_calls: BTreeMap::new(),
            refused_paths: BTreeMap::new(),
            missing: Uses::new(),
            command: None,
            left_out: 0,
        }
    }

    /// Takes one event in. The order does not matter.
    pub fn observe(&mut self, event: &Event) {
        match &event.what {
            What::Start(start) => self.command = Some(start.command.join(" ")),
            What::Calls { counts } => {
                self.has_calls = true;
                for (name, count) in counts {
                    let total = self.calls.entry(name.clone()).or_default();
                    *total = total.saturating_add(*count);
                }
            }
            What::Refused(refused) if !refused.reported => {
                self.refused_calls.entry(refused.call.clone()).or_default().add(1, &event.comm);
            }
            _ => match event.error {
                None => self.succeeded(event),
                Some(errno) => self.failed(event, errno),
            },
        }
    }

    fn succeeded(&mut self, event: &Event) {
        let by = event.comm.as_str();
        if let Some(group) = calls::governor(&event.what) {
            self.governors.entry(group).or_default().add(1, by);
        }
        match &event.what {
            What::Exec { path, asked, fileless, .. } => {
                if !fileless {
                    self.note(|own| &mut own.execs, path, by);
                }
                if let Some(asked) = asked {
                    self.ask_for(asked, by);
                }
            }
            What::Look { path, follow } => self.look(path, *follow, by),
            What::Open { path, access: Access::Exec, .. } => self.note(|own| &mut own.execs, path, by),
            What::Open { path, create: true, .. } => self.note(|own| &mut own.creates, path, by),
            What::Open { path, access: Access::Write, .. } => self.note(|own| &mut own.edits, path, by),
            What::Open { path, access: Access::Read, .. } => self.note(|own| &mut own.reads, path, by),
            // The file's own path: a link at its end is what was looked at.
            What::Open { path, access: Access::Look, .. } => self.look(path, false, by),
            What::Chmod { path, .. } | What::Chown { path, .. } => self.note(|own| &mut own.edits, path, by),
            What::Mkdir { path } => {
                self.note(|own| &mut own.names, path, by);
                self.make(path, true);
            }
            What::Symlink { path, .. } => {
                self.note(|own| &mut own.names, path, by);
                self.make(path, false);
            }
            What::Unlink { path } => self.note(|own| &mut own.names, path, by),
            What::Rename { from, to } | What::Link { from, to } => {
                self.note(|own| &mut own.names, from, by);
                self.note(|own| &mut own.names, to, by);
                self.make(to, false);
                if let (Some(from), Some(to)) = (plain(from), plain(to)) {
                    match self.moves.len() < PATHS_MAX {
                        true => drop(self.moves.insert((from, to))),
                        false => self.left_out += 1,
                    }
                }
            }
            What::Connect { address } | What::Send { address, .. } => self.reach(address, by, false),
            What::Bind { address } => self.reach(address, by, true),
            _ => {}
        }
    }

    fn reach(&mut self, address: &crate::event::Address, by: &str, is_own: bool) {
        use crate::event::Address;
        match address {
            Address::Inet(address) => self.network.used(*address, is_own, by),
            Address::Unix(path) if is_own => {
                self.note(|own| &mut own.names, path, by);
                self.make(path, false);
            }
            // A read-only mount keeps nobody from connecting.
            Address::Unix(path) => self.note(|own| &mut own.reads, path, by),
            Address::Abstract(_) | Address::Unnamed | Address::Family(_) => {}
        }
    }

    fn failed(&mut self, event: &Event, errno: Errno) {
        const ENOTDIR: Errno = Errno(20);
        const EROFS: Errno = Errno(30);
        if let What::Connect { address } | What::Send { address, .. } = &event.what
            && address.inet().is_some()
        {
            // A refused connection reached the network all the same.
            self.reach(address, &event.comm, false);
            return;
        }
        if let (Errno::ENOENT | ENOTDIR, What::Open { path, create: false, .. } | What::Exec { path, .. }) =
            (errno, &event.what)
        {
            self.note(|own| &mut own.missing, path, &event.comm);
        }
        // What is missing is no refusal: programs look in many places.
        if ![Errno::EACCES, Errno::EPERM, EROFS].contains(&errno) {
            return;
        }
        let (path, access) = match &event.what {
            What::Exec { path, .. } => (path, Access::Exec),
            What::Open { path, access, create: false, .. } => (path, *access),
            What::Open { path, .. }
            | What::Mkdir { path }
            | What::Unlink { path }
            | What::Symlink { path, .. }
            | What::Chmod { path, .. }
            | What::Chown { path, .. }
            | What::Rename { to: path, .. }
            | What::Link { to: path, .. } => (path, Access::Write),
            _ => return,
        };
        if let Some(path) = plain(path) {
            self.left_out += add(&mut self.refused_paths, (access, path), &event.comm);
        }
    }

    fn note(&mut self, uses: impl FnOnce(&mut Learner) -> &mut Uses, path: &str, by: &str) {
        let Some(path) = plain(path) else { return };
        if !is_of_the_kernel(&path) {
            self.left_out += add(uses(self), path, by);
        }
    }

    fn ask_for(&mut self, name: &str, by: &str) {
        if let Some(name) = named(name) {
            self.left_out += add(&mut self.asked, name, by);
        }
    }

    fn look(&mut self, name: &str, follow: bool, by: &str) {
        if let Some(name) = named(name) {
            self.left_out += add(&mut self.looks, (name, follow), by);
        }
    }

    fn make(&mut self, path: &str, is_dir: bool) {
        let Some(path) = plain(path) else { return };
        if self.made.len() == PATHS_MAX && !self.made.contains(&path) {
            self.left_out += 1;
            return;
        }
        if is_dir {
            self.made_dirs.insert(path.clone());
        }
        self.made.insert(path);
    }

    /// What it comes to.
    pub fn finish(self, previous: Option<&Previous>, outside: &dyn Outside) -> Learned {
        let mut needs = needs::Needs::new(&self, outside, previous);
        for (path, seen) in &self.reads {
            needs.read(path, seen);
        }
        for (path, seen) in &self.execs {
            needs.exec(path, seen);
        }
        for (path, seen) in &self.asked {
            needs.asked(path, seen);
        }
        for ((path, follow), seen) in &self.looks {
            needs.look(path, *follow, seen);
        }
        for (path, seen) in &self.edits {
            needs.edit(path, seen);
        }
        for (path, seen) in &self.creates {
            needs.create(path, seen);
        }
        for (path, seen) in &self.names {
            needs.name(path, seen);
        }
        for (from, to) in &self.moves {
            needs.move_between(from, to);
        }
        for ((access, path), seen) in &self.refused_paths {
            needs.refused(*access, path, seen);
        }
        for (path, seen) in &self.missing {
            needs.missing(path, seen);
        }
        let unseen = std::mem::take(&mut needs.unseen);
        let needs::Found { files, used, mut asked } = needs.finish();
        let keys = keys::within(&files, &used, &self.setting, outside);
        let network = self.network.need(&self.setting, previous);
        let groups = self.groups(previous, &mut asked);
        Learned {
            files,
            network,
            groups,
            asked: asked.into_iter().collect(),
            unseen,
            keys,
            runs: previous.map_or(0, |previous| previous.runs).saturating_add(1),
            command: self.command,
            left_out: self.left_out,
            setting: self.setting,
        }
    }
}

/// Counts a use of what there is room for; otherwise returns 1.
fn add<K: Ord>(uses: &mut BTreeMap<K, Use>, key: K, by: &str) -> u64 {
    if uses.len() == PATHS_MAX && !uses.contains_key(&key) {
        return 1;
    }
    uses.entry(key).or_default().add(1, by);
    0
}

/// A name as it stands, absolute and of the host: where `..` leads depends on links.
fn named(name: &str) -> Option<PathBuf> {
    plain(name).filter(|plain| !is_of_the_kernel(plain)).map(|_| PathBuf::from(name))
}

/// Absolute, without `.` and `..`, and with a name that a policy can hold.
pub(crate) fn plain(path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    path.is_absolute().then(|| normalise(path))
}

/// What the kernel provides: no grant is about it.
fn is_of_the_kernel(path: &Path) -> bool {
    ["/proc", "/sys", "/dev"].iter().any(|place| path.starts_with(place))
}

/// What was learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learned {
    setting: Setting,
    /// Files and directories, by right and path inside.
    pub files: BTreeMap<(Right, PathBuf), Need>,
    /// The network of the host.
    pub network: Option<Need>,
    /// Groups of system calls, `None` when calls were not counted.
    pub groups: Option<BTreeMap<String, Need>>,
    /// What was asked for and is not granted, with the reason.
    pub asked: Vec<(String, String)>,
    /// Paths that were looked for, are there on the host, and were not shown inside.
    pub unseen: Vec<PathBuf>,
    /// Keys that lie in what is granted.
    pub keys: Keys,
    /// Runs that it comes from.
    pub runs: u64,
    /// The command of the last run.
    pub command: Option<String>,
    /// Events that told of more paths than are kept.
    pub left_out: u64,
}

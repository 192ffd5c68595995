//! The new root, built in the sandbox's own mount namespace and then entered.
//!
//! Input: the plan and the trees. Nothing here follows a link that a grant brings along: a mount point inside another grant is
//! opened beneath the new root without links, and Apex creates nothing in a grant.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use apex_core::plan::{BindAccess, Kind, Mount, Plan};
use apex_core::policy::{ProcView, is_within};
use apex_sys::mount::{self, attr};
use apex_sys::{Errno, fs, process};

use crate::host::c_path;
use crate::layers::Layers;
use crate::step::{Failure, Step};
use crate::trees::Trees;

const O_PATH: i32 = nix::libc::O_PATH;

/// System files of /proc that say too much about the host (the OCI runtime specification masks the same).
const PROC_MASKED: [&CStr; 22] = [
    c"proc/acpi",
    c"proc/asound",
    c"proc/bus",
    c"proc/config.gz",
    c"proc/driver",
    c"proc/fs",
    c"proc/interrupts",
    c"proc/kallsyms",
    c"proc/kcore",
    c"proc/key-users",
    c"proc/keys",
    c"proc/kmsg",
    c"proc/kpagecgroup",
    c"proc/kpagecount",
    c"proc/kpageflags",
    c"proc/modules",
    c"proc/scsi",
    c"proc/sysrq-trigger",
    c"proc/sched_debug",
    c"proc/slabinfo",
    c"proc/timer_list",
    c"proc/vmallocinfo",
];

/// Device nodes that every program may expect, taken from the host's /dev: a user namespace cannot make its own.
const DEVICES: [(&CStr, &CStr); 6] = [
    (c"/dev/null", c"dev/null"),
    (c"/dev/zero", c"dev/zero"),
    (c"/dev/full", c"dev/full"),
    (c"/dev/random", c"dev/random"),
    (c"/dev/urandom", c"dev/urandom"),
    (c"/dev/tty", c"dev/tty"),
];

/// Terminals that a sandbox may have at once: the kernel has 4096 for everybody.
const PTS_MAX: &CStr = c"64";

const DEV_LINKS: [(&CStr, &CStr); 5] = [
    (c"/proc/self/fd", c"dev/fd"),
    (c"/proc/self/fd/0", c"dev/stdin"),
    (c"/proc/self/fd/1", c"dev/stdout"),
    (c"/proc/self/fd/2", c"dev/stderr"),
    (c"pts/ptmx", c"dev/ptmx"),
];

/// Builds the root, enters it and lets go of the old one.
pub fn enter(plan: &Plan, trees: &mut Trees) -> Result<(), Failure> {
    mount::make_private(c"/").map_err(Failure::at(Step::PrivateMounts, 0))?;
    let mut root = Root::create(plan, trees)?;
    let mut layers = None;
    for (index, step) in plan.mounts.iter().enumerate() {
        let tree = trees.give(index);
        match step {
            Mount::Bind { dest, access: BindAccess::Overlay, kind, exec, .. } => {
                let layers = match &mut layers {
                    Some(layers) => layers,
                    none => none.insert(Layers::start(plan, trees, root.fd.as_fd())?),
                };
                root.overlay(layers, tree, (dest, *kind, *exec)).map_err(Failure::at(Step::Mount, index))?;
            }
            step => root.put(step, tree).map_err(Failure::at(Step::Mount, index))?,
        }
    }
    if let Some(layers) = layers {
        layers.let_go(root.fd.as_fd())?;
    }
    root.seal().map_err(Failure::at(Step::SealRoot, 0))?;
    root.pivot().map_err(Failure::at(Step::EnterRoot, 0))
}

struct Root {
    fd: OwnedFd,
    /// Whether the root is a piece of the host, in which nothing may be created.
    is_host: bool,
    /// Directories that exist in the sandbox's own file systems.
    made: Vec<PathBuf>,
    /// Mount points of pieces of the host.
    grants: Vec<PathBuf>,
    /// Mount points of the sandbox's own file systems.
    own: Vec<PathBuf>,
    masks: Masks,
    /// Files that are open for writing.
    written: Vec<OwnedFd>,
    /// The mount of /dev, made read-only at the end.
    dev: Option<OwnedFd>,
}

/// Empty things that are put over what must not be seen, parked in the new /dev.
#[derive(Default)]
struct Masks {
    ready: bool,
    /// Where they stand.
    places: Vec<PathBuf>,
}

impl Root {
    fn create(plan: &Plan, trees: &mut Trees) -> Result<Root, Failure> {
        let host =
            plan.mounts.iter().position(|step| matches!(step, Mount::Bind { dest, .. } if dest == Path::new("/")));
        let fd = match host {
            Some(index) => trees.give(index).ok_or_else(|| Failure::at(Step::CreateRoot, 0)(Errno::ENOENT))?,
            None => mount::new_filesystem(c"tmpfs", &[(c"mode", c"0755")], attr::NOSUID | attr::NODEV)
                .map_err(Failure::at(Step::CreateRoot, 0))?,
        };
        // The place does not matter: the old root goes away with it.
        mount::attach(fd.as_fd(), fs::cwd(), c"/").map_err(Failure::at(Step::CreateRoot, 0))?;
        // mount(2) knows no directory but this one; the pivot wants it too.
        fs::enter(fd.as_fd()).map_err(Failure::at(Step::CreateRoot, 0))?;
        let grants = if host.is_some() { vec![PathBuf::from("/")] } else { Vec::new() };
        Ok(Root {
            fd,
            is_host: host.is_some(),
            made: Vec::new(),
            grants,
            own: Vec::new(),
            masks: Masks::default(),
            written: Vec::new(),
            dev: None,
        })
    }

    fn put(&mut self, step: &Mount, tree: Option<OwnedFd>) -> Result<(), Errno> {
        match step {
            Mount::Bind { dest, kind, .. } => {
                if dest == Path::new("/") {
                    return Ok(());
                }
                let tree = tree.ok_or(Errno::EBADF)?;
                self.attach(&tree, dest, *kind)?;
                leave(tree);
                self.grants.push(dest.clone());
                Ok(())
            }
            Mount::Symlink { dest, target } => self.symlink(dest, target),
            Mount::Dir { dest } => self.own_dir(dest),
            Mount::File { dest, content } => self.file(dest, content),
            Mount::Tmpfs { dest, size_bytes, exec, .. } => self.tmpfs(dest, *size_bytes, *exec),
            Mount::Proc { view } => self.proc(*view),
            Mount::Dev { shm_size_bytes } => self.dev(*shm_size_bytes),
            // Under a mask there is nothing left to mask.
            Mount::Hide { dest, .. } | Mount::Deny { dest, .. }
                if self.masks.places.iter().any(|place| dest.starts_with(place)) =>
            {
                Ok(())
            }
            Mount::Hide { dest, kind, .. } => self.mask(dest, *kind, true),
            Mount::Deny { dest, kind, source, pins, .. } => self.deny(dest, *kind, source, pins),
        }
    }

    /// Puts a piece of the host under a layer that takes the writes.
    fn overlay(
        &mut self,
        layers: &mut Layers,
        tree: Option<OwnedFd>,
        (dest, kind, exec): (&Path, Kind, bool),
    ) -> Result<(), Errno> {
        let tree = tree.ok_or(Errno::EBADF)?;
        match kind {
            Kind::Dir => {
                self.attach(&tree, dest, kind)?;
                let place = self.open_inside(dest)?;
                let merged = layers.merge(place.as_fd(), exec)?;
                mount::attach(merged.as_fd(), place.as_fd(), c"")?;
                leave(merged);
                leave(place);
            }
            Kind::File => {
                let copy = layers.copy(tree.as_fd(), exec)?;
                self.attach(&copy, dest, kind)?;
                leave(copy);
            }
        }
        leave(tree);
        self.grants.push(dest.to_owned());
        Ok(())
    }

    /// Whether `path` lies in a piece of the host.
    fn is_in_grant(&self, path: &Path) -> bool {
        let depth = |list: &[PathBuf]| {
            list.iter().filter(|it| is_within(path, it)).map(|it| it.as_os_str().len()).max().unwrap_or(0)
        };
        depth(&self.grants) > depth(&self.own)
    }

    fn has_made(&self, path: &Path) -> bool {
        self.made.iter().any(|made| made.as_os_str() == path.as_os_str())
    }

    /// Puts a tree at a place, which is created when it lies in the sandbox's own file systems.
    fn attach(&mut self, tree: &OwnedFd, dest: &Path, kind: Kind) -> Result<(), Errno> {
        if self.is_in_grant(dest) {
            let place = self.open_inside(dest)?;
            return mount::attach(tree.as_fd(), place.as_fd(), c"");
        }
        self.make(dest, kind)?;
        mount::attach(tree.as_fd(), self.fd.as_fd(), &relative(dest)?)
    }

    /// Opens what is there, without following any link.
    fn open_inside(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let flags = fs::resolve::IN_ROOT | fs::resolve::NO_SYMLINKS | fs::resolve::NO_MAGICLINKS;
        fs::open(self.fd.as_fd(), &relative(path)?, O_PATH, flags)
    }

    fn make(&mut self, path: &Path, kind: Kind) -> Result<(), Errno> {
        match kind {
            Kind::Dir => self.own_dir(path),
            Kind::File => {
                self.parents(path)?;
                existing_is_fine(fs::mkfile(self.fd.as_fd(), &relative(path)?, 0o444))
            }
        }
    }

    /// Creates a directory with its parents, in the sandbox's own file systems only.
    fn own_dir(&mut self, path: &Path) -> Result<(), Errno> {
        if path.as_os_str() == "/" || self.has_made(path) {
            return Ok(());
        }
        if self.is_in_grant(path) {
            return self.open_inside(path).map(drop);
        }
        self.parents(path)?;
        match fs::mkdir(self.fd.as_fd(), &relative(path)?, 0o755) {
            Ok(()) => {
                self.made.push(path.to_owned());
                Ok(())
            }
            // It may be a link of ours: what is to stand in it is put there by descriptor.
            other => existing_is_fine(other),
        }
    }

    fn parents(&mut self, path: &Path) -> Result<(), Errno> {
        path.parent().map_or(Ok(()), |parent| self.own_dir(parent))
    }

    fn symlink(&mut self, dest: &Path, target: &Path) -> Result<(), Errno> {
        if self.is_in_grant(dest) {
            // The grant shows the same link already.
            return Ok(());
        }
        self.parents(dest)?;
        existing_is_fine(fs::symlink(&c_path(target)?, self.fd.as_fd(), &relative(dest)?))
    }

    fn file(&mut self, dest: &Path, content: &str) -> Result<(), Errno> {
        self.parents(dest)?;
        let flags = nix::libc::O_WRONLY | nix::libc::O_CREAT | nix::libc::O_EXCL;
        let fd = fs::create(self.fd.as_fd(), &relative(dest)?, flags, 0o444, fs::resolve::NO_SYMLINKS)?;
        fs::write(fd.as_fd(), content.as_bytes())?;
        self.written.push(fd);
        Ok(())
    }

    fn tmpfs(&mut self, dest: &Path, size_bytes: u64, exec: bool) -> Result<(), Errno> {
        let flags = attr::NOSUID | attr::NODEV | if exec { 0 } else { attr::NOEXEC };
        self.filesystem(dest, c"tmpfs", &tmpfs_bounds(size_bytes).options(), flags)?;
        self.made.push(dest.to_owned());
        // From here on the sandbox's own file system is on top.
        self.grants.retain(|grant| !grant.starts_with(dest));
        self.own.push(dest.to_owned());
        Ok(())
    }

    /// A file system of the sandbox's own. In a directory that was made here no link can stand, so that one call will do.
    fn filesystem(
        &mut self,
        dest: &Path,
        kind: &CStr,
        options: &[(&CStr, &CStr)],
        attributes: u64,
    ) -> Result<(), Errno> {
        if !self.is_in_grant(dest) {
            self.own_dir(dest)?;
            if self.has_made(dest) {
                return mount::new_filesystem_at(kind, options, attributes, &relative(dest)?);
            }
        }
        let tree = mount::new_filesystem(kind, options, attributes)?;
        self.attach(&tree, dest, Kind::Dir)?;
        leave(tree);
        Ok(())
    }

    fn proc(&mut self, view: ProcView) -> Result<(), Errno> {
        const FLAGS: u64 = attr::NOSUID | attr::NODEV | attr::NOEXEC;
        let place = Path::new("/proc");
        match view {
            ProcView::None => {}
            ProcView::Pid => {
                let options = [(c"subset", c"pid"), (c"hidepid", c"invisible")];
                self.filesystem(place, c"proc", &options, FLAGS)?;
            }
            ProcView::Masked => {
                self.filesystem(place, c"proc", &[(c"hidepid", c"invisible")], FLAGS | attr::RDONLY)?;
            }
        }
        if view == ProcView::Masked {
            for path in PROC_MASKED {
                self.mask_proc(path)?;
            }
        }
        Ok(())
    }

    fn mask_proc(&mut self, path: &CStr) -> Result<(), Errno> {
        let kind = match fs::stat(self.fd.as_fd(), path) {
            Ok(stat) if stat.is(nix::libc::S_IFDIR) => Kind::Dir,
            Ok(_) => Kind::File,
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let tree = self.mask_tree(kind, true)?;
        mount::attach(tree.as_fd(), self.fd.as_fd(), path)
    }

    /// A /dev of its own. Comes before /proc and the masks, which are parked in it.
    fn dev(&mut self, shm_size_bytes: u64) -> Result<(), Errno> {
        const FLAGS: u64 = attr::NOSUID | attr::NOEXEC;
        let place = Path::new("/dev");
        let tree = if self.is_host {
            mount::new_filesystem(c"tmpfs", &[(c"mode", c"0755")], FLAGS)?
        } else {
            // A directory of the root, mounted onto itself for attributes of its own: one file system less to make and to destroy.
            self.own_dir(place)?;
            mount::clone_tree_with(self.fd.as_fd(), &relative(place)?, FLAGS)?
        };
        self.attach(&tree, place, Kind::Dir)?;
        self.dev = Some(tree);
        let root = self.fd.as_fd();
        for (host, name) in DEVICES {
            fs::mkfile(root, name, 0o666)?;
            mount::bind_at(host, name)?;
        }
        for (target, name) in DEV_LINKS {
            fs::symlink(target, root, name)?;
        }
        fs::mkdir(root, c"dev/pts", 0o755)?;
        let pts = [(c"max", PTS_MAX), (c"ptmxmode", c"0666"), (c"mode", c"0620")];
        mount::new_filesystem_at(c"devpts", &pts, attr::NOSUID | attr::NOEXEC, c"dev/pts")?;
        fs::mkdir(root, c"dev/shm", 0o755)?;
        let flags = attr::NOSUID | attr::NODEV | attr::NOEXEC;
        mount::new_filesystem_at(c"tmpfs", &tmpfs_bounds(shm_size_bytes).options(), flags, c"dev/shm")?;
        self.made.extend(["/dev", "/dev/pts", "/dev/shm"].map(PathBuf::from));
        // Also where the root is the host's: a place in it is made.
        self.own.push(place.to_owned());
        Ok(())
    }

    fn mask(&mut self, dest: &Path, kind: Kind, readable: bool) -> Result<(), Errno> {
        let place = self.open_inside(dest)?;
        let tree = self.mask_tree(kind, readable)?;
        mount::attach(tree.as_fd(), place.as_fd(), c"")?;
        self.masks.places.push(dest.to_owned());
        Ok(())
    }

    /// A read-only copy of one of the four empty things.
    fn mask_tree(&mut self, kind: Kind, readable: bool) -> Result<OwnedFd, Errno> {
        let root = self.fd.as_fd();
        if !self.masks.ready {
            fs::mkfile(root, c"dev/.empty", 0o444)?;
            fs::mkfile(root, c"dev/.denied", 0o000)?;
            fs::mkdir(root, c"dev/.empty.d", 0o555)?;
            fs::mkdir(root, c"dev/.denied.d", 0o000)?;
            self.masks.ready = true;
        }
        let name = match (kind, readable) {
            (Kind::File, true) => c"dev/.empty",
            (Kind::File, false) => c"dev/.denied",
            (Kind::Dir, true) => c"dev/.empty.d",
            (Kind::Dir, false) => c"dev/.denied.d",
        };
        let tree = mount::clone_tree(root, name)?;
        mount::set_attributes(tree.as_fd(), attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC, false)?;
        Ok(tree)
    }

    fn deny(&mut self, dest: &Path, kind: Option<Kind>, source: &Path, pins: &[PathBuf]) -> Result<(), Errno> {
        if source.as_os_str().is_empty() {
            // In a tmpfs of the sandbox: nothing is there yet.
            self.make(dest, Kind::File)?;
        }
        // A directory on the way is made a mount point of itself: no rename or rmdir then takes it, and the mask below it, away.
        for pin in pins {
            let place = self.open_inside(pin)?;
            let tree = mount::clone_tree(place.as_fd(), c"")?;
            mount::attach(tree.as_fd(), place.as_fd(), c"")?;
        }
        self.mask(dest, kind.unwrap_or(Kind::File), false)
    }

    /// The root and /dev are read-only from here on; what is mounted in them keeps its own attributes.
    fn seal(&mut self) -> Result<(), Errno> {
        let root = self.fd.as_fd();
        if self.masks.ready {
            // Unlinked, they live on as masks only.
            fs::unlink(root, c"dev/.empty")?;
            fs::unlink(root, c"dev/.denied")?;
            fs::rmdir(root, c"dev/.empty.d")?;
            fs::rmdir(root, c"dev/.denied.d")?;
        }
        if let Some(dev) = self.dev.take() {
            mount::set_attributes(dev.as_fd(), attr::RDONLY, false)?;
            leave(dev);
        }
        close_written(std::mem::take(&mut self.written))?;
        if self.is_host { Ok(()) } else { mount::set_attributes(root, attr::RDONLY, false) }
    }

    fn pivot(self) -> Result<(), Errno> {
        leave(self.fd);
        mount::pivot_here()?;
        // The working directory is the new root already (pivot_root(2), "pivot_root(".", ".")").
        mount::detach_here()
    }
}

/// A mount with a writer cannot be made read-only. They were opened one after another, with nothing in between that is still needed.
fn close_written(written: Vec<OwnedFd>) -> Result<(), Errno> {
    let numbers: Vec<u32> = written.into_iter().map(|fd| fd.into_raw_fd().cast_unsigned()).collect();
    let (Some(first), Some(last)) = (numbers.iter().min(), numbers.iter().max()) else { return Ok(()) };
    process::close_from(*first, *last, false)
}

/// Leaves a descriptor open until the init closes all of them in one call, instead of one call for each.
pub(crate) fn leave(fd: OwnedFd) {
    std::mem::forget(fd);
}

fn existing_is_fine(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::EEXIST) => Ok(()),
        other => other,
    }
}

/// The path as seen from the root's descriptor.
fn relative(path: &Path) -> Result<CString, Errno> {
    let rest = path.strip_prefix("/").unwrap_or(path);
    if rest.as_os_str().is_empty() { Ok(c".".to_owned()) } else { c_path(rest) }
}

/// A tmpfs with bounds on its bytes and, at one for each page, on its files: an empty file costs kernel memory too.
struct TmpfsBounds {
    size: CString,
    files: CString,
}

fn tmpfs_bounds(size_bytes: u64) -> TmpfsBounds {
    TmpfsBounds { size: number(size_bytes), files: number((size_bytes / 4096).max(1024)) }
}

impl TmpfsBounds {
    fn options(&self) -> [(&CStr, &CStr); 2] {
        [(c"size", &self.size), (c"nr_inodes", &self.files)]
    }
}

/// Such a tmpfs that is attached later.
pub(crate) fn private_tmpfs(size_bytes: u64, attributes: u64) -> Result<OwnedFd, Errno> {
    mount::new_filesystem(c"tmpfs", &tmpfs_bounds(size_bytes).options(), attributes)
}

fn number(value: u64) -> CString {
    CString::new(value.to_string()).expect("digits hold no NUL")
}

//! The container's file system: mounts, devices, masks, the change of root.
//!
//! Three steps, in this order, by the process inside: [`Rootfs::prepare`] builds the root where it lies on the host, [`Rootfs::enter`] makes it the root,
//! [`Rootfs::seal`] takes away what only building needed. Before them, outside, [`outside`] takes the trees that the process inside could not reach.
//!
//! Invariant: no path of the container is ever resolved from the host's root, and none twice: a place is opened below the root's descriptor, looked
//! at through that descriptor, and mounted upon through it. So links in the container's files, and changes of them while it starts, lead nowhere else.

mod binds;
mod cgroups;
mod copy;
mod devices;
mod error;
mod masks;
mod mounts;
mod nodes;
mod options;
pub mod outside;
pub mod place;
mod propagation;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use apex_sys::{Errno, fs, mount};
use nix::sys::stat::{Mode, umask};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::procfs::Verified;

pub use self::cgroups::{Cgroups, View};
pub use self::error::RootfsError;
pub use self::options::{Options, Propagation};
pub use self::outside::{Outside, outside};

/// What the container's file system is made from.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The configuration.
    pub spec: &'a Spec,
    /// The directory that it lies in, absolute.
    pub bundle: &'a Path,
    /// The cgroups that a mount of type cgroup shows.
    pub cgroups: &'a Cgroups,
    /// Whether the process is in a user namespace of the container's.
    pub user_namespace: bool,
    /// Whether it is in a mount namespace of the container's.
    pub mount_namespace: bool,
    /// Whether it is in a cgroup namespace of the container's.
    pub cgroup_namespace: bool,
}

impl<'a> Context<'a> {
    /// With what the configuration says about namespaces.
    pub fn new(spec: &'a Spec, bundle: &'a Path, cgroups: &'a Cgroups) -> Self {
        let has = |kind| has_namespace(spec, kind);
        Context {
            spec,
            bundle,
            cgroups,
            user_namespace: has(LinuxNamespaceType::User),
            mount_namespace: has(LinuxNamespaceType::Mount),
            cgroup_namespace: has(LinuxNamespaceType::Cgroup),
        }
    }

    fn mounts(&self) -> &'a [oci_spec::runtime::Mount] {
        self.spec.mounts().as_deref().unwrap_or_default()
    }

    /// The root's directory on the host.
    fn root_dir(&self) -> Result<PathBuf, RootfsError> {
        let root = self.spec.root().as_ref().ok_or(RootfsError::NoRoot)?;
        Ok(self.bundle.join(root.path()))
    }
}

/// Whether the configuration asks for a namespace of this kind, new or another's.
fn has_namespace(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref());
    namespaces.is_some_and(|all| all.iter().any(|namespace| namespace.typ() == kind))
}

/// The root while it is built.
#[derive(Debug)]
pub struct Rootfs<'a> {
    context: &'a Context<'a>,
    /// Of the root's mount.
    root: OwnedFd,
    propagation: propagation::Wanted,
    /// The host's null device, detached, for masks.
    null: Option<OwnedFd>,
    /// The proc file system that was made for the container.
    proc: Option<OwnedFd>,
    /// File systems that become read-only when nothing is made in them any more.
    readonly_later: Vec<(PathBuf, OwnedFd)>,
}

impl<'a> Rootfs<'a> {
    /// Builds the root where it lies: propagation, the root mounted onto itself, all mounts in order, devices and links of /dev.
    ///
    /// # Errors
    /// The first step that failed; what was mounted goes away with the mount namespace.
    pub fn prepare(context: &'a Context<'a>, mut outside: Outside) -> Result<Self, RootfsError> {
        // Modes of devices and directories are exactly those asked for.
        let mask = umask(Mode::empty());
        let prepared = Self::build(context, &mut outside);
        umask(mask);
        prepared
    }

    fn build(context: &'a Context<'a>, outside: &mut Outside) -> Result<Self, RootfsError> {
        let propagation = propagation::Wanted::of(context.spec)?;
        let root = open_root(context, propagation, outside.root.take())?;
        // While the host's /dev is still there.
        let null = if masks::are_wanted(context.spec) { Some(devices::host_null()?) } else { None };
        let mut rootfs = Rootfs { context, root, propagation, null, proc: None, readonly_later: Vec::new() };
        for (index, mount) in context.mounts().iter().enumerate() {
            rootfs.mount(mount, outside.give(index))?;
        }
        rootfs.devices(outside.nodes.take())?;
        rootfs.make_working_dir()?;
        Ok(rootfs)
    }

    /// Images need not have the directory that the program starts in.
    fn make_working_dir(&self) -> Result<(), RootfsError> {
        let Some(process) = self.context.spec.process() else { return Ok(()) };
        place::make(self.root(), process.cwd(), place::Kind::Dir)
            .map(drop)
            .map_err(|source| RootfsError::WorkingDirectory { path: process.cwd().clone(), source })
    }

    /// The root's descriptor: what is opened below it with `RESOLVE_IN_ROOT` is the container's.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// A proc file system that is certainly one: the container's own where it was made here, else another. To be had before [`Rootfs::seal`], which mounts over
    /// what must not be written.
    ///
    /// # Errors
    /// There is none to be had.
    pub fn procfs(&self) -> Result<Verified, RootfsError> {
        match self.proc.as_ref().map(OwnedFd::try_clone) {
            Some(Ok(made)) => Ok(Verified::made_here(made)),
            _ => Verified::open(),
        }
    }

    /// Makes the root the process's, and the old one unreachable.
    ///
    /// # Errors
    /// The step that failed.
    pub fn enter(&mut self, no_pivot: bool) -> Result<(), RootfsError> {
        if !self.context.mount_namespace {
            return self.change_root();
        }
        if no_pivot {
            return self.move_root();
        }
        let failed = |step| move |source| RootfsError::Enter { step, source };
        // Where mounts are shared with the host, their end must not be.
        let shared = self.propagation.is_shared();
        let old = shared.then(|| fs::open(fs::cwd(), c"/", nix::libc::O_PATH, 0));
        let old = old.transpose().map_err(failed("open the old root"))?;
        fs::enter(self.root()).map_err(failed("change to the new root"))?;
        mount::pivot_here()
            .map_err(failed("pivot_root(2) (where the host runs from its initial ramfs, use --no-pivot)"))?;
        if let Some(old) = old {
            mount::change(old.as_fd(), propagation::SLAVE.change(), true).map_err(failed("cut the old root off"))?;
        }
        mount::detach_here().map_err(failed("detach the old root"))?;
        fs::chdir(c"/").map_err(failed("change to the new root"))
    }

    /// For roots that cannot be pivoted to, such as the initial ramfs: the root moves over the old one.
    fn move_root(&mut self) -> Result<(), RootfsError> {
        let failed = |step| move |source| RootfsError::Enter { step, source };
        // What is below the old root stays in the namespace: a proc or sysfs without masks among it would let others be mounted (mount_namespaces(7)).
        let here = self.context.root_dir()?;
        masks::uncover_nothing(&here).map_err(failed("detach the proc and sysfs file systems of the old root"))?;
        fs::enter(self.root()).map_err(failed("change to the new root"))?;
        mount::attach(self.root(), fs::cwd(), c"/").map_err(failed("move the new root over the old one"))?;
        self.change_root()
    }

    fn change_root(&self) -> Result<(), RootfsError> {
        let failed = |step| move |source| RootfsError::Enter { step, source };
        fs::enter(self.root()).map_err(failed("change to the new root"))?;
        nix::unistd::chroot(".").map_err(failed("chroot(2)"))?;
        fs::chdir(c"/").map_err(failed("change to the new root"))
    }

    /// Takes away what only building needed: paths become read-only or masked, and so does the root when it is to be; its propagation is set.
    ///
    /// # Errors
    /// The step that failed. The container must not run then.
    pub fn seal(&self) -> Result<(), RootfsError> {
        let readonly = mount::Change { set: mount::attr::RDONLY, ..mount::Change::default() };
        for (path, tree) in &self.readonly_later {
            mount::change(tree.as_fd(), readonly, false)
                .map_err(|source| RootfsError::Readonly { path: path.clone(), source })?;
        }
        self.readonly_paths()?;
        self.mask_paths()?;
        if self.context.spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false) {
            if !self.context.mount_namespace {
                return Err(RootfsError::NoMountNamespace("/".into()));
            }
            mount::change(self.root(), readonly, false)
                .map_err(|source| RootfsError::Readonly { path: "/".into(), source })?;
        }
        self.propagation.apply_to_root(self.root())
    }
}

/// Changes to a directory of the container, which the process is in already. Links are followed inside `root`, but none that the kernel makes up: through
/// /proc/self/fd a directory of the host that was left open would be reached (CVE-2024-21626).
///
/// # Errors
/// It is not there, or may not be entered.
pub fn change_dir(root: BorrowedFd<'_>, path: &Path) -> Result<(), RootfsError> {
    let entered = place::open(root, path).and_then(|dir| fs::enter(dir.as_fd()));
    entered.map_err(|source| RootfsError::WorkingDirectory { path: path.to_owned(), source })
}

/// Opens the root's directory, mounted onto itself. Where its path cannot be followed from inside, as in a user namespace it may be, the tree that was taken
/// outside is put over the old root: the place does not matter to the pivot.
fn open_root(
    context: &Context<'_>,
    wanted: propagation::Wanted,
    outside: Option<OwnedFd>,
) -> Result<OwnedFd, RootfsError> {
    let path = context.root_dir()?;
    let opened = || {
        let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| Errno::EINVAL)?;
        fs::open(fs::cwd(), &name, nix::libc::O_PATH | nix::libc::O_DIRECTORY, 0)
    };
    let failed = |source| RootfsError::BindRoot { path: path.clone(), source };
    let dir = match (opened(), outside) {
        (Err(Errno::EACCES), Some(tree)) => {
            wanted.apply_to_host(&path, tree.as_fd())?;
            mount::attach(tree.as_fd(), fs::cwd(), c"/").map_err(failed)?;
            return Ok(tree);
        }
        (dir, _) => dir.map_err(|source| RootfsError::OpenRoot { path: path.clone(), source })?,
    };
    if !context.mount_namespace {
        return Ok(dir);
    }
    wanted.apply_to_host(&path, dir.as_fd())?;
    let tree = mount::clone_tree(dir.as_fd(), c"").map_err(failed)?;
    mount::attach(tree.as_fd(), dir.as_fd(), c"").map_err(failed)?;
    Ok(tree)
}

/// A path with `.`, `..` and double slashes gone, as names only tell it.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            std::path::Component::Normal(name) => clean.push(name),
            std::path::Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean
}

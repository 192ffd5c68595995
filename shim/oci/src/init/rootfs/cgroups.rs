//! Mounts of type cgroup: the container's own cgroups, in the form that the host has them.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use apex_sys::mount::{self, attr};
use apex_sys::{Errno, fs};

use super::mounts::Request;
use super::place::{self, Kind};
use super::{Rootfs, RootfsError, binds};

/// The cgroups of the container, as the host has them mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroups {
    /// Whether there is the one hierarchy of version 2 only; then there is one view.
    pub unified: bool,
    /// One for each hierarchy.
    pub views: Vec<View>,
}

/// One hierarchy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Name of its directory below /sys/fs/cgroup: `memory`, `cpu,cpuacct`, `systemd`, `unified`.
    pub name: String,
    /// Its option of mount, as in /proc/self/cgroup: `memory`, `cpu,cpuacct`, `name=systemd`; empty for version 2.
    pub controllers: String,
    /// Where it is mounted on the host.
    pub host_mount: PathBuf,
    /// The container's directory in it, on the host.
    pub host_dir: PathBuf,
    /// Further names of the directory: `cpu` and `cpuacct` for `cpu,cpuacct`.
    pub links: Vec<String>,
}

impl From<Vec<crate::cgroup::View>> for Cgroups {
    fn from(views: Vec<crate::cgroup::View>) -> Cgroups {
        let unified = views.iter().any(|view| view.is_v2);
        let view = |view: crate::cgroup::View| View {
            name: view.name,
            controllers: view.options,
            host_mount: view.host_mount,
            host_dir: view.dir,
            links: view.links,
        };
        Cgroups { unified, views: views.into_iter().map(view).collect() }
    }
}

impl Rootfs<'_> {
    pub(super) fn mount_cgroup(&mut self, request: &Request<'_>) -> Result<(), RootfsError> {
        let cgroups = self.context.cgroups;
        let place = place::make(self.root(), request.destination(), Kind::Dir).map_err(request.place_error())?;
        if let (true, Some(view)) = (cgroups.unified, cgroups.views.first()) {
            let tree = self.view(request, view)?;
            return self.attach(request, &tree, &place);
        }
        let attributes = request.options.own.set & !attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC;
        let options = [(c"source", c"tmpfs"), (c"mode", c"0755")];
        let top = mount::new_filesystem(c"tmpfs", &options, attributes).map_err(request.attach_error())?;
        self.attach(request, &top, &place)?;
        for view in &cgroups.views {
            let tree = self.view(request, view)?;
            put(top.as_fd(), view, &tree).map_err(request.attach_error())?;
            binds::set_propagation(tree.as_fd(), request.mount, &request.options)?;
        }
        if request.options.is_readonly() {
            let change = mount::Change { set: attr::RDONLY, ..mount::Change::default() };
            mount::change(top.as_fd(), change, false).map_err(request.attach_error())?;
        }
        Ok(())
    }

    /// One hierarchy, detached, with the container's cgroup as its root: by the cgroup namespace, or else by a bind of its directory.
    fn view(&self, request: &Request<'_>, view: &View) -> Result<OwnedFd, RootfsError> {
        if self.context.cgroup_namespace {
            let attributes = request.options.own.set | request.options.all.set;
            match new_hierarchy(view, attributes) {
                // Who may mount cgroups is a matter of the user namespace, and of what else is mounted: the directory will do.
                Err(Errno::EPERM | Errno::EBUSY) => {}
                other => return other.map_err(request.attach_error()),
            }
        }
        let dir =
            CString::new(view.host_dir.as_os_str().as_bytes()).map_err(|_| RootfsError::Nul(view.host_dir.clone()))?;
        let tree = mount::clone_tree(fs::cwd(), &dir).map_err(|source| RootfsError::Source {
            from: view.host_dir.clone(),
            destination: request.destination().to_owned(),
            source,
        })?;
        binds::set_attributes(tree.as_fd(), request.mount, &request.options)?;
        Ok(tree)
    }
}

fn new_hierarchy(view: &View, attributes: u64) -> Result<OwnedFd, Errno> {
    let text = |word: &str| CString::new(word).map_err(|_| Errno::EINVAL);
    if view.controllers.is_empty() {
        return mount::new_filesystem(c"cgroup2", &[(c"source", c"cgroup")], attributes);
    }
    let mut options = vec![(text("source")?, text("cgroup")?)];
    for word in view.controllers.split(',') {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        options.push((text(key)?, text(value)?));
    }
    let options: Vec<(&CStr, &CStr)> = options.iter().map(|(key, value)| (key.as_c_str(), value.as_c_str())).collect();
    mount::new_filesystem(c"cgroup", &options, attributes)
}

/// Below the fresh tmpfs, where nobody but this process has made anything.
fn put(top: BorrowedFd<'_>, view: &View, tree: &OwnedFd) -> Result<(), Errno> {
    let name = CString::new(view.name.as_str()).map_err(|_| Errno::EINVAL)?;
    fs::mkdir(top, &name, 0o755)?;
    let place = fs::open(top, &name, nix::libc::O_PATH, fs::resolve::NO_SYMLINKS | fs::resolve::BENEATH)?;
    mount::attach(tree.as_fd(), place.as_fd(), c"")?;
    for link in &view.links {
        let link = CString::new(link.as_str()).map_err(|_| Errno::EINVAL)?;
        fs::symlink(&name, top, &link)?;
    }
    Ok(())
}

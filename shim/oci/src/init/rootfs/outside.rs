//! Trees that only the one who starts the container can take: with the host's privileges, before the clone.
//!
//! The descriptors are inherited by the process inside, which attaches them.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use apex_sys::holder::Holder;
use apex_sys::mount::{self, Change};
use apex_sys::{Errno, fs};
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Mount, Spec};

use super::nodes::{self, Nodes};
use super::options::Idmap;
use super::{Options, RootfsError, binds, has_namespace, propagation};

/// The trees, one for each mount that has one, at the mount's index.
#[derive(Debug, Default)]
pub struct Outside {
    trees: Vec<Option<OwnedFd>>,
    /// The root, for when its path cannot be followed from inside.
    pub(super) root: Option<OwnedFd>,
    /// Devices that the inside could not make.
    pub(super) nodes: Option<Nodes>,
}

impl Outside {
    /// The tree of the mount at this index, for the one who attaches it.
    pub fn give(&mut self, index: usize) -> Option<OwnedFd> {
        self.trees.get_mut(index).and_then(Option::take)
    }
}

/// Takes the trees of mounts whose owners are translated; in a container with a user namespace those of all binds, since their sources may lie where only the
/// host's root may look.
///
/// # Errors
/// The mount that cannot be had.
pub fn outside(spec: &Spec, bundle: &Path) -> Result<Outside, RootfsError> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let is_user = has_namespace(spec, LinuxNamespaceType::User);
    let mut mappings = Mappings::default();
    let mut trees = Vec::with_capacity(mounts.len());
    for mount in mounts {
        let options = Options::parse(mount.options().as_deref().unwrap_or_default());
        let is_bind = binds::is_bind(mount, &options) && !options.remount;
        let idmap = wants_idmap(mount, &options);
        if idmap.is_some() && !is_bind {
            return Err(RootfsError::IdmapNotBind(mount.destination().clone()));
        }
        if !is_bind || idmap.is_none() && !is_user {
            trees.push(None);
            continue;
        }
        let tree = match binds::take(mount, &options, bundle) {
            // Who has no privileges on the host can reach no more out here than in there, and only in there may mount.
            Err(RootfsError::Source { source: Errno::EPERM, .. }) if idmap.is_none() => {
                trees.push(None);
                continue;
            }
            other => other?,
        };
        set_propagation(&tree, spec, mount.destination())?;
        if let Some(idmap) = idmap {
            let userns = mappings.namespace(mount, spec)?;
            let change = Change { userns: Some(userns.as_fd()), ..Change::default() };
            mount::change(tree.as_fd(), change, idmap == Idmap::Tree)
                .map_err(|source| RootfsError::Idmap { destination: mount.destination().clone(), source })?;
        }
        binds::set_attributes(tree.as_fd(), mount, &options)?;
        trees.push(Some(tree));
    }
    let root = if is_user { root(spec, bundle)? } else { None };
    Ok(Outside { trees, root, nodes: nodes::make(spec)? })
}

/// Who has no privileges out here has none to lose inside.
fn root(spec: &Spec, bundle: &Path) -> Result<Option<OwnedFd>, RootfsError> {
    let path = bundle.join(spec.root().as_ref().ok_or(RootfsError::NoRoot)?.path());
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| RootfsError::Nul(path.clone()))?;
    let tree = match mount::clone_tree(fs::cwd(), &name) {
        Err(Errno::EPERM) => return Ok(None),
        other => other.map_err(|source| RootfsError::OpenRoot { path: path.clone(), source })?,
    };
    set_propagation(&tree, spec, &path)?;
    Ok(Some(tree))
}

fn wants_idmap(mount: &Mount, options: &Options) -> Option<Idmap> {
    let has_mappings = mount.uid_mappings().as_ref().is_some_and(|all| !all.is_empty())
        || mount.gid_mappings().as_ref().is_some_and(|all| !all.is_empty());
    options.idmap.or(has_mappings.then_some(Idmap::One))
}

/// A copy of a shared mount is its peer: what is mounted on it would reach the host.
fn set_propagation(tree: &OwnedFd, spec: &Spec, path: &Path) -> Result<(), RootfsError> {
    let Some(copies) = propagation::Wanted::of(spec)?.of_copies() else { return Ok(()) };
    mount::change(tree.as_fd(), copies.change(), true).map_err(|source| RootfsError::Propagation {
        path: path.to_owned(),
        propagation: "a slave".to_owned(),
        source,
    })
}

/// User namespaces that have the mappings of mounts; mounts with the same ones share it.
#[derive(Default)]
struct Mappings {
    made: Vec<(String, String, OwnedFd)>,
}

impl Mappings {
    fn namespace(&mut self, mount: &Mount, spec: &Spec) -> Result<&OwnedFd, RootfsError> {
        let destination = || mount.destination().clone();
        let linux = spec.linux().as_ref();
        let own = (mount.uid_mappings().as_deref(), mount.gid_mappings().as_deref());
        let container = (
            linux.and_then(|linux| linux.uid_mappings().as_deref()),
            linux.and_then(|linux| linux.gid_mappings().as_deref()),
        );
        let is_given = |all: Option<&[LinuxIdMapping]>| all.is_some_and(|all| !all.is_empty());
        let chosen = if is_given(own.0) || is_given(own.1) { own } else { container };
        let (Some(uids), Some(gids)) = chosen else { return Err(RootfsError::IdmapNoMapping(destination())) };
        if uids.is_empty() || gids.is_empty() {
            return Err(RootfsError::IdmapNoMapping(destination()));
        }
        let (uids, gids) = (lines(uids), lines(gids));
        let known = self.made.iter().position(|(known_uids, known_gids, _)| (known_uids, known_gids) == (&uids, &gids));
        let index = match known {
            Some(index) => index,
            None => {
                let fd = make(&uids, &gids)
                    .map_err(|source| RootfsError::IdmapNamespace { destination: destination(), source })?;
                self.made.push((uids, gids, fd));
                self.made.len() - 1
            }
        };
        Ok(&self.made[index].2)
    }
}

/// As uid_map and gid_map want them (user_namespaces(7)).
fn lines(mappings: &[LinuxIdMapping]) -> String {
    mappings.iter().map(|it| format!("{} {} {}\n", it.container_id(), it.host_id(), it.size())).collect()
}

/// A user namespace with these maps, kept by the descriptor alone.
fn make(uids: &str, gids: &str) -> std::io::Result<OwnedFd> {
    let holder = Holder::start(false)?;
    let dir = format!("/proc/{}", holder.pid());
    std::fs::write(format!("{dir}/uid_map"), uids)?;
    std::fs::write(format!("{dir}/gid_map"), gids)?;
    Ok(std::fs::File::open(format!("{dir}/ns/user"))?.into())
}

//! Devices of a container with a user namespace, which can make none that work: the outside makes them, with the owners that the container's ids stand for,
//! in a file system that no directory shows, and the inside binds each to its place.
//!
//! Owners and modes are then those that were asked for, and no node of the host lends its own.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use apex_sys::mount::{self, attr};
use apex_sys::{Errno, fs};
use nix::libc;
use nix::mount::MntFlags;
use nix::sys::stat::{Mode, umask};
use oci_spec::runtime::{LinuxIdMapping, Spec};

use super::devices::Node;
use super::{RootfsError, has_namespace};

/// A file system with the nodes, and each of them with the place that it is for.
#[derive(Debug)]
pub struct Nodes {
    tree: OwnedFd,
    nodes: Vec<(PathBuf, OwnedFd)>,
}

/// Makes those of `linux.devices`; `None` where there are none, or where who starts the container may make none either: then the host's own are shown.
pub(super) fn make(spec: &Spec) -> Result<Option<Nodes>, RootfsError> {
    let Some(linux) =
        spec.linux().as_ref().filter(|_| has_namespace(spec, oci_spec::runtime::LinuxNamespaceType::User))
    else {
        return Ok(None);
    };
    let wanted: Vec<_> = linux
        .devices()
        .iter()
        .flatten()
        .map(Node::of)
        .filter(|node| node.kind != nix::sys::stat::SFlag::S_IFIFO)
        .collect();
    let (uids, gids) = (linux.uid_mappings().as_deref(), linux.gid_mappings().as_deref());
    let mut hosts = Vec::with_capacity(wanted.len());
    for node in wanted {
        // Without mappings here the namespace is joined, and only it knows.
        let (Some(uid), Some(gid)) = (on_host(uids, node.uid), on_host(gids, node.gid)) else { return Ok(None) };
        hosts.push(node.owned_by(uid, gid));
    }
    let Some(first) = hosts.first() else { return Ok(None) };
    let failed = |path: &PathBuf, source| RootfsError::Device { path: path.clone(), source };
    let tree = match mount::new_filesystem(c"tmpfs", &[(c"mode", c"0700")], attr::NOSUID | attr::NOEXEC) {
        Err(Errno::EPERM) => return Ok(None),
        other => other.map_err(|source| failed(&first.path, source))?,
    };
    let mask = umask(Mode::empty());
    let made = hosts.iter().enumerate().map(|(number, node)| {
        let name = CString::new(number.to_string()).expect("digits");
        node.make(tree.as_fd(), &name)?;
        fs::open(tree.as_fd(), &name, libc::O_PATH, fs::resolve::BENEATH | fs::resolve::NO_SYMLINKS)
    });
    let made: Vec<_> = made.collect();
    umask(mask);
    let mut nodes = Vec::with_capacity(hosts.len());
    for (node, made) in hosts.into_iter().zip(made) {
        match made {
            Err(Errno::EPERM) => return Ok(None),
            Err(source) => return Err(failed(&node.path, source)),
            Ok(file) => nodes.push((node.path, file)),
        }
    }
    Ok(Some(Nodes { tree, nodes }))
}

/// The id outside that `id` of the container stands for.
fn on_host(mappings: Option<&[LinuxIdMapping]>, id: u32) -> Option<u32> {
    mappings?.iter().find_map(|it| {
        let offset = id.checked_sub(it.container_id())?;
        if offset < it.size() { it.host_id().checked_add(offset) } else { None }
    })
}

impl Nodes {
    /// A detached bind of each, to be put in its place. For the while that this takes, `dir` is covered: only what is mounted somewhere can be bound.
    pub(super) fn binds(self, dir: BorrowedFd<'_>) -> Result<Vec<(PathBuf, OwnedFd)>, Errno> {
        mount::attach(self.tree.as_fd(), dir, c"")?;
        let binds = self.nodes.into_iter().map(|(path, file)| Ok((path, mount::clone_mount(file.as_fd(), c"")?)));
        let binds = binds.collect::<Result<Vec<_>, Errno>>();
        nix::mount::umount2(fs::own_name(self.tree.as_fd()).as_c_str(), MntFlags::MNT_DETACH)?;
        binds
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxIdMappingBuilder;

    #[test]
    fn ids_are_those_of_the_host() {
        let map = |container: u32, host: u32, size: u32| {
            LinuxIdMappingBuilder::default()
                .container_id(container)
                .host_id(host)
                .size(size)
                .build()
                .expect("a mapping")
        };
        let maps = [map(0, 100_000, 10), map(10, 5, 1), map(100, u32::MAX, 2)];
        for (id, expected) in [(0, Some(100_000)), (9, Some(100_009)), (10, Some(5)), (11, None), (101, None)] {
            assert_eq!(on_host(Some(&maps), id), expected, "{id}");
        }
        assert_eq!(on_host(None, 0), None);
    }
}

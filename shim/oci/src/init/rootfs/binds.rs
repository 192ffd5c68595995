//! Detached copies of the host's trees, with the attributes that the mount asks for.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use apex_sys::mount::{self, Change, attr};
use apex_sys::{Errno, fs};
use oci_spec::runtime::Mount;

use super::options::{Attributes, Bind};
use super::{Options, RootfsError};

/// What kind of mount it is.
pub fn is_bind(mount: &Mount, options: &Options) -> bool {
    options.bind.is_some() || matches!(mount.typ().as_deref(), Some("bind" | "rbind"))
}

/// Takes the source of a bind. Links in the host's path are followed: it is the host's word.
pub fn take(mount: &Mount, options: &Options, bundle: &Path) -> Result<OwnedFd, RootfsError> {
    let destination = mount.destination();
    let source = mount.source().as_deref().filter(|source| !source.as_os_str().is_empty());
    let path = bundle.join(source.ok_or_else(|| RootfsError::NoSource(destination.clone()))?);
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| RootfsError::Nul(path.clone()))?;
    let whole = options.bind == Some(Bind::Tree) || mount.typ().as_deref() == Some("rbind");
    let tree = if whole { mount::clone_tree(fs::cwd(), &name) } else { mount::clone_mount(fs::cwd(), &name) };
    tree.map_err(|source| RootfsError::Source { from: path, destination: destination.clone(), source })
}

/// Sets what the options ask for, and clears nothing that they do not name: a bind of what is nosuid stays so.
pub fn set_attributes(tree: BorrowedFd<'_>, mount: &Mount, options: &Options) -> Result<(), RootfsError> {
    let failed = |source| RootfsError::Attributes {
        destination: mount.destination().clone(),
        options: mount.options().as_deref().unwrap_or_default().join(","),
        source,
    };
    // First all, then its own: "rro,rw" leaves the top writable.
    for (attributes, recursive) in [(options.all, true), (options.own, false)] {
        set(tree, attributes, recursive).map_err(failed)?;
    }
    Ok(())
}

fn set(tree: BorrowedFd<'_>, attributes: Attributes, recursive: bool) -> Result<(), Errno> {
    let change = attributes.change();
    if change.is_empty() {
        return Ok(());
    }
    match mount::change(tree, change, recursive) {
        // In a user namespace what the host has set is locked (mount_namespaces(7)): it stays, and what was to be set is set.
        Err(Errno::EPERM) if change.clear != 0 => {
            let set = if change.clear & attr::ATIME != 0 { change.set & !attr::ATIME } else { change.set };
            mount::change(tree, Change { set, ..Change::default() }, recursive)
        }
        other => other,
    }
}

/// Sets the propagation that the options ask for, in their order.
pub fn set_propagation(tree: BorrowedFd<'_>, mount: &Mount, options: &Options) -> Result<(), RootfsError> {
    for propagation in &options.propagation {
        mount::change(tree.as_fd(), propagation.change(), propagation.recursive).map_err(|source| {
            RootfsError::Attributes {
                destination: mount.destination().clone(),
                options: mount.options().as_deref().unwrap_or_default().join(","),
                source,
            }
        })?;
    }
    Ok(())
}

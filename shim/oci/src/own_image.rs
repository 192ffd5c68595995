//! The runtime's own binary, out of the container's reach.
//!
//! A process that enters a container has the host's binary as its `/proc/PID/exe`. Who can open that link inside opens the host's file, and once
//! nobody executes it any more, may write to it (CVE-2019-5736). So commands that enter run from a read-only mount of the binary that exists in no
//! mount namespace: writing through the link then fails with EROFS, whoever tries.

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use apex_sys::mount::{self, attr};
use apex_sys::process::{self, CStrings};
use apex_sys::{Errno, fs};

/// Why the binary cannot be protected.
#[derive(Debug, thiserror::Error)]
pub enum OwnImageError {
    /// The binary cannot be opened.
    #[error(
        "cannot open the runtime's own binary by /proc/self/exe, to start it out of the container's reach; is /proc mounted?"
    )]
    Open(#[source] Errno),
    /// No read-only copy of it.
    #[error("cannot make a read-only copy of the runtime's own binary, without which a container could overwrite it")]
    Protect(#[source] Errno),
    /// The copy does not start.
    #[error("cannot start the read-only copy of the runtime's own binary")]
    Execute(#[source] Errno),
}

/// Starts this program again from a mount or file that cannot be written; returns when it already runs from one.
///
/// # Errors
/// The binary cannot be protected: then nothing may enter a container.
pub fn protect() -> Result<(), OwnImageError> {
    let own = fs::open(fs::cwd(), c"/proc/self/exe", libc_flags::PATH, 0).map_err(OwnImageError::Open)?;
    if is_protected(&own).map_err(OwnImageError::Open)? {
        return Ok(());
    }
    let image = read_only_mount(&own).or_else(|_| sealed_copy()).map_err(OwnImageError::Protect)?;
    let words =
        |words: Vec<OsString>| words.into_iter().filter_map(|word| CString::new(word.into_vec()).ok()).collect();
    let arguments = CStrings::new(words(std::env::args_os().collect()));
    let environment = std::env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    });
    let environment = CStrings::new(words(environment.collect()));
    Err(OwnImageError::Execute(process::exec_open(image.as_fd(), &arguments, &environment)))
}

mod libc_flags {
    /// `O_PATH`: only a reference, so nothing is opened that a device or a FIFO could hold up.
    pub const PATH: i32 = nix::libc::O_PATH;
}

fn is_protected(own: &OwnedFd) -> Result<bool, Errno> {
    if fs::is_read_only_mount(own.as_fd())? {
        return Ok(true);
    }
    // A sealed copy has no name.
    Ok(fs::seals(c"/proc/self/exe").is_some_and(|seals| seals & fs::SEAL_WRITE != 0))
}

fn read_only_mount(own: &OwnedFd) -> Result<OwnedFd, Errno> {
    mount::clone_tree_with(own.as_fd(), c"", attr::RDONLY)
}

/// For who may not mount: the image in memory, sealed against every change (memfd_create(2)).
fn sealed_copy() -> Result<OwnedFd, Errno> {
    let file = fs::open(fs::cwd(), c"/proc/self/exe", nix::libc::O_RDONLY, 0)?;
    fs::sealed_copy(c"apex-oci", file.as_fd())
}

//! Descriptors that the runtime waits for.

use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Has the runtime wait for a descriptor, which must not block.
///
/// The runtime deprecates this for types whose descriptor could change or be closed behind its back; an `OwnedFd` is closed by its drop alone.
#[expect(deprecated, reason = "the other way is `unsafe`, for types that an OwnedFd is not")]
pub fn register(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

//! Whether a network namespace is empty. It may have been filled by whoever made it, and by hooks, so the container's own process looks, when they are done.

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use super::PolicyError;

/// Fails on the first interface that is up, beside loopback. Those that are down stay so: nobody in the container may change them.
pub(super) fn check_empty() -> Result<(), PolicyError> {
    let up = |flags: InterfaceFlags| flags.contains(InterfaceFlags::IFF_UP);
    let is_loopback = |flags: InterfaceFlags| flags.contains(InterfaceFlags::IFF_LOOPBACK);
    let mut interfaces = getifaddrs().map_err(PolicyError::Interfaces)?;
    match interfaces.find(|interface| up(interface.flags) && !is_loopback(interface.flags)) {
        Some(interface) => Err(PolicyError::Interface { interface: interface.interface_name }),
        None => Ok(()),
    }
}

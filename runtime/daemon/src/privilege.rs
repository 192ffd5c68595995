//! What the daemon gives up once the warden has it.
//!
//! Root keeps its user id, since the state directory is root's, and nothing else: no capability, none to be had again by executing anything. What it still
//! can do is what its own files and sockets allow, and to ask the warden, which judges anew.

use anyhow::{Context, Result};
use apex_sys::{Errno, prctl};

/// Gives everything up. Before there are threads: each has capabilities of its own (capabilities(7)).
pub fn give_up() -> Result<()> {
    prctl::set_no_new_privs().context("giving up privileges")?;
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    for number in 0..64 {
        match prctl::drop_bounding(number) {
            Ok(()) => {}
            Err(Errno::EINVAL) => break,
            Err(errno) => return Err(errno).context("giving up privileges"),
        }
    }
    prctl::lock_securebits().context("giving up privileges")?;
    prctl::set_capabilities(0, 0).context("giving up privileges")
}

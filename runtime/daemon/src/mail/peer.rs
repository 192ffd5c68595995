//! Whether somebody who connected at a sandbox's socket is in that sandbox.
//!
//! The socket lies in the daemon's directory, which everybody may pass through: a process of the host, or another sandbox that sees the host's files, could find it. So its
//! process is looked up, and must descend from the sandbox's init. In a pid namespace everybody does, and nobody else can.

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::UnixStream;

/// Generations that are gone through.
const GENERATIONS_MAX: u32 = 512;
/// A parent that ends in the middle leaves its children to the init.
const LOOKS: u32 = 4;

/// The process at the other end, when it is in the sandbox of this init.
pub fn inside(stream: &UnixStream, init: u32) -> Option<u32> {
    // Held to the end, so that the number stays this process's.
    let (pid, _held) = match getsockopt(stream, sockopt::PeerPidfd) {
        Ok(fd) => {
            let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
            // -1 of one that has ended.
            (field(&about, "Pid:")?, Some(fd))
        }
        // Before Linux 6.5.
        Err(Errno::ENOPROTOOPT) => (u32::try_from(stream.peer_cred().ok()?.pid()?).ok()?, None),
        Err(_) => return None,
    };
    descends(pid, init).then_some(pid)
}

fn descends(pid: u32, init: u32) -> bool {
    init != 0 && (0..LOOKS).any(|_| look(pid, init) == Some(true))
}

/// `None` when somebody on the way has ended.
fn look(pid: u32, init: u32) -> Option<bool> {
    let mut at = pid;
    for _ in 0..GENERATIONS_MAX {
        if at == init {
            return Some(true);
        }
        if at <= 1 {
            return Some(false);
        }
        let status = std::fs::read_to_string(format!("/proc/{at}/status")).ok()?;
        at = field(&status, "PPid:")?;
    }
    Some(false)
}

fn field(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_descend_and_others_do_not() {
        let own = std::process::id();
        let mut child = std::process::Command::new("sleep").arg("10").spawn().unwrap();
        assert!(descends(child.id(), own));
        assert!(descends(own, own));
        assert!(!descends(own, child.id()));
        assert!(!descends(own, 0), "a sandbox that does not stand");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!descends(child.id(), own), "who has ended is nowhere");
    }
}

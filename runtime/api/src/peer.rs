//! Who is at the other end of a connection, as the kernel tells it.
//!
//! Input: an accepted connection. Output: the [`Peer`], and whether it stands inside: in a pid namespace below the server's own. What runs in a sandbox has its user's
//! id, and often sees the socket; whoever it asked would start things outside for it. So it is told apart here, and served nothing.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::UnixStream;

use crate::Peer;

/// Where somebody asks from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The server's own pid namespace, or one above it.
    Outside,
    /// One below it.
    Inside,
}

/// The peer and where it is.
///
/// # Errors
/// When the kernel does not name it, or it has ended already: nobody is there to be answered, and its number may be somebody else's soon.
pub(crate) fn find(stream: &UnixStream) -> std::io::Result<(Peer, Place)> {
    let credentials = stream.peer_cred()?;
    let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
    let about = match getsockopt(stream, sockopt::PeerPidfd) {
        Ok(fd) => about(&fd)?,
        // Before Linux 6.5. What ended since has no status.
        Err(Errno::ENOPROTOOPT) => fs::read_to_string(format!("/proc/{pid}/status"))?,
        Err(errno) => return Err(errno.into()),
    };
    let place = place(&about).ok_or_else(|| std::io::Error::other("whoever connected has ended"))?;
    Ok((Peer { uid: credentials.uid(), gid: credentials.gid(), pid }, place))
}

fn about(pidfd: &OwnedFd) -> std::io::Result<String> {
    fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))
}

/// From the numbers that a process has in each namespace, ours first (proc(5), `NSpid`).
fn place(about: &str) -> Option<Place> {
    let numbers = about.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    match numbers.split_whitespace().count() {
        0 => None,
        1 => Some(Place::Outside),
        _ => Some(Place::Inside),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn this_very_process_is_outside() {
        let (one, _other) = UnixStream::pair().unwrap();
        let (peer, place) = find(&one).unwrap();
        assert_eq!((peer.pid, place), (std::process::id(), Place::Outside));
    }

    #[test]
    fn more_numbers_are_a_namespace_below() {
        assert_eq!(place("Pid:\t7\nNSpid:\t7\n"), Some(Place::Outside));
        assert_eq!(place("Pid:\t7\nNSpid:\t7\t2\n"), Some(Place::Inside));
        assert_eq!(place("Pid:\t-1\n"), None);
        assert_eq!(place("NSpid:\n"), None);
    }
}

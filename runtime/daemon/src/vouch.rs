//! The warden's own knowledge of who asks: it believes the kernel, not the daemon.
//!
//! The daemon shows it a client's connection. The kernel names the other end (unix(7), `SO_PEERCRED`), and the warden seals that identity
//! ([`apex_core::vouch`]) with a key that no other process can read. A start needs the seal of the identity as which the keeper is to run. The key outlives the
//! warden, so what is started anew after a restart needs nobody to ask again.

use std::ffi::CStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use apex_core::vouch::{self, KEY_BYTES};
use apex_sys::{Errno, fs};
use nix::libc::{O_CREAT, O_EXCL, O_NONBLOCK, O_RDONLY, O_WRONLY, S_IFMT, S_IFREG};
use nix::sys::socket::{UnixAddr, getpeername, getsockname, getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Gid, Uid, fchown, getegid, geteuid};

/// In the state directory.
const KEY: &CStr = c"warden.key";
const KEY_MODE: u32 = 0o600;

/// Who seals.
pub struct Vouch {
    key: [u8; KEY_BYTES],
    /// The name that the daemon's listening socket was bound to.
    listener: UnixAddr,
}

impl Vouch {
    /// With the key in this directory, made when there is none that is ours alone.
    pub fn take(dir: BorrowedFd<'_>, listener: UnixAddr) -> Result<Vouch> {
        let key = match read_key(dir)? {
            Some(key) => key,
            None => make_key(dir).context("making warden.key in the state directory")?,
        };
        Ok(Vouch { key, listener })
    }

    /// Whom the kernel names as the other end of a connection to the daemon, and the seal over it.
    ///
    /// A socket that connected somewhere has credentials too, those of whoever listens there: only one that was accepted at the daemon's own socket, whose
    /// other end has no name, tells who asked the daemon.
    pub fn vouch(&self, connection: BorrowedFd<'_>) -> Result<(u32, u32, String), String> {
        let words = |what: &'static str| move |errno: Errno| format!("{what}: {}", errno.desc());
        let own: UnixAddr = getsockname(connection.as_raw_fd()).map_err(words("the connection's own name"))?;
        let other: UnixAddr = getpeername(connection.as_raw_fd()).map_err(words("the connection's other end"))?;
        if own.path() != self.listener.path() || own.as_abstract() != self.listener.as_abstract() {
            return Err("this is no connection to the daemon's socket".to_owned());
        }
        if other.path().is_some() || other.as_abstract().is_some() {
            return Err(
                "the other end of this connection has a name, as whoever listens has; a client of the daemon has none"
                    .to_owned(),
            );
        }
        let peer = getsockopt(&connection, PeerCredentials).map_err(words("who is at the other end"))?;
        Ok((peer.uid(), peer.gid(), vouch::seal(&self.key, peer.uid(), peer.gid())))
    }

    /// Whether this is the seal over that identity.
    pub fn knows(&self, uid: u32, gid: u32, token: &str) -> bool {
        vouch::is_sealed(&self.key, uid, gid, token)
    }
}

/// The key that is there. `None` when there is none, or one that others could have made or read: the directory belongs to the daemon's user, who can put there
/// what it likes, but nothing that belongs to root and root's group.
fn read_key(dir: BorrowedFd<'_>) -> Result<Option<[u8; KEY_BYTES]>> {
    let opened = match fs::open(dir, KEY, O_RDONLY | O_NONBLOCK, fs::resolve::BENEATH | fs::resolve::NO_SYMLINKS) {
        Err(Errno::ENOENT) => return Ok(None),
        Err(Errno::ELOOP | Errno::ENXIO) => None,
        other => Some(other.context("opening warden.key in the state directory")?),
    };
    if let Some(opened) = opened {
        let about = nix::sys::stat::fstat(&opened).context("looking at warden.key")?;
        let is_ours = about.st_uid == geteuid().as_raw() && about.st_gid == getegid().as_raw();
        let is_plain = about.st_mode & S_IFMT == S_IFREG && about.st_nlink == 1;
        let mut key = [0; KEY_BYTES];
        let is_whole = about.st_size == KEY_BYTES as i64;
        if is_ours && is_plain && is_whole && about.st_mode & 0o7777 == KEY_MODE {
            File::from(opened).read_exact(&mut key).context("reading warden.key")?;
            return Ok(Some(key));
        }
    }
    eprintln!(
        "apexd: the warden: warden.key was not the warden's own and is made anew; users are asked for by their next connection"
    );
    fs::unlink(dir, KEY).context("removing the old warden.key")?;
    Ok(None)
}

fn make_key(dir: BorrowedFd<'_>) -> Result<[u8; KEY_BYTES]> {
    let mut key = [0; KEY_BYTES];
    File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut key)).context("reading /dev/urandom")?;
    let file: OwnedFd = fs::create(dir, KEY, O_WRONLY | O_CREAT | O_EXCL, KEY_MODE, fs::resolve::BENEATH)?;
    // A set-group-id directory gives its own group.
    fchown(file.as_fd(), Some(Uid::effective()), Some(Gid::effective()))?;
    File::from(file).write_all(&key)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::PathBuf;

    fn dir(name: &str) -> (PathBuf, File) {
        let path = std::env::temp_dir().join(format!("apexd-vouch-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        let open = File::open(&path).unwrap();
        (path, open)
    }

    fn address(listener: &UnixListener) -> UnixAddr {
        getsockname(listener.as_raw_fd()).unwrap()
    }

    #[test]
    fn the_key_outlives_the_warden_and_a_strangers_is_not_taken() {
        let (path, open) = dir("key");
        let listener = UnixListener::bind(path.join("s")).unwrap();
        let take = || Vouch::take(open.as_fd(), address(&listener)).unwrap();
        let token = vouch::seal(&take().key, 5, 5);
        assert!(take().knows(5, 5, &token));
        let key = path.join("warden.key");
        // One that others can read is not one.
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        assert!(!take().knows(5, 5, &token));
        let token = vouch::seal(&take().key, 5, 5);
        // Nor one with a second name, under which somebody may have kept it.
        std::fs::hard_link(&key, path.join("other")).unwrap();
        assert!(!take().knows(5, 5, &token));
        std::fs::remove_file(&key).unwrap();
        std::os::unix::fs::symlink(path.join("other"), &key).unwrap();
        assert!(!take().knows(5, 5, &token));
        assert!(std::fs::symlink_metadata(&key).unwrap().is_file());
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn only_a_connection_that_the_daemon_accepted_is_vouched_for() {
        let (path, open) = dir("connection");
        let listener = UnixListener::bind(path.join("s")).unwrap();
        let vouch = Vouch::take(open.as_fd(), address(&listener)).unwrap();
        let client = UnixStream::connect(path.join("s")).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let (uid, gid, token) = vouch.vouch(accepted.as_fd()).unwrap();
        assert_eq!((uid, gid), (geteuid().as_raw(), getegid().as_raw()));
        assert!(vouch.knows(uid, gid, &token) && !vouch.knows(uid + 1, gid, &token));
        // The other end: its peer is whoever listens.
        assert!(vouch.vouch(client.as_fd()).is_err());
        let elsewhere = UnixListener::bind(path.join("t")).unwrap();
        let to_elsewhere = UnixStream::connect(path.join("t")).unwrap();
        assert!(vouch.vouch(elsewhere.accept().unwrap().0.as_fd()).is_err());
        assert!(vouch.vouch(to_elsewhere.as_fd()).is_err());
        let (one, _other) = UnixStream::pair().unwrap();
        assert!(vouch.vouch(one.as_fd()).is_err());
        assert!(vouch.vouch(File::open("/dev/null").unwrap().as_fd()).is_err());
        std::fs::remove_dir_all(path).unwrap();
    }
}

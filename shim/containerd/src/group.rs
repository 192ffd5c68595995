//! Which shim serves a container: one for each group, found by its socket.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Sockets of shims; the place that containerd's own shims use.
pub const SOCKETS: &str = "/run/containerd/s";

/// The socket of the shim for this group.
pub fn socket(address: &str, namespace: &str, group: &str) -> PathBuf {
    let mut hash = Sha256::new();
    // Apart from shims of other kinds, which take containerd, namespace and group alone.
    for part in [address, namespace, group, "apex"] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let name = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Path::new(SOCKETS).join(name)
}

/// A socket to serve on, or one that is served.
#[derive(Debug)]
pub enum Claim {
    /// Ours now.
    Mine(UnixListener),
    /// A shim of this group is there.
    Served,
}

/// Takes the socket of a group, unless a shim serves it. One that nobody listens on is left from a shim that was killed.
pub fn claim(socket: &Path) -> io::Result<Claim> {
    if let Some(parent) = socket.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o711).create(parent)?;
    }
    for _ in 0..2 {
        match UnixListener::bind(socket) {
            Ok(listener) => {
                std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
                return Ok(Claim::Mine(listener));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
        match UnixStream::connect(socket) {
            Ok(_) => return Ok(Claim::Served),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => remove(socket)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "another shim takes and leaves it"))
}

/// Removes a socket; one that is gone is well.
pub fn remove(socket: &Path) -> io::Result<()> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_group_has_a_socket_of_its_own() {
        let sockets =
            [("a", "b", "c"), ("a", "bc", ""), ("a", "b", "d"), ("x", "b", "c")].map(|(a, b, c)| socket(a, b, c));
        for (at, one) in sockets.iter().enumerate() {
            assert!(sockets.iter().skip(at + 1).all(|other| other != one));
            assert!(one.as_os_str().len() < 108, "a socket's name has room for 107 bytes");
        }
    }

    #[test]
    fn a_socket_is_taken_once_and_again_when_its_owner_is_gone() {
        let path = std::env::temp_dir().join(format!("apex-shim-socket-{}", std::process::id()));
        let Claim::Mine(listener) = claim(&path).unwrap() else { panic!("nobody else can serve it") };
        assert!(matches!(claim(&path).unwrap(), Claim::Served));
        drop(listener);
        assert!(matches!(claim(&path).unwrap(), Claim::Mine(_)));
        remove(&path).unwrap();
        remove(&path).unwrap();
    }
}

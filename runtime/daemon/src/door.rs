//! The listening socket of the API: made before privileges are given up, in a directory where the API process afterwards can make none. So its name says which
//! connections were accepted at it ([`crate::vouch`]).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Who may connect: the rules of access say who may do what.
const SOCKET_MODE: u32 = 0o666;

/// Listens. A socket file that nobody listens to any more is taken over; one that somebody does is left alone.
pub fn listen(path: &Path) -> Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("making the directory {}", dir.display()))?;
    }
    if path.exists() {
        if UnixStream::connect(path).is_ok() {
            bail!("somebody listens at {} already; choose another --socket, or end that apexd", path.display());
        }
        fs::remove_file(path).with_context(|| format!("removing the old socket {}", path.display()))?;
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listening at {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))
        .with_context(|| format!("opening {} to everybody", path.display()))?;
    listener.set_nonblocking(true).context("making the socket one that never waits")?;
    Ok(listener)
}

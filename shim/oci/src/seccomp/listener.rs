//! Hands the listener to the agent that the bundle names (runtime-spec, "The Seccomp agent").

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use apex_sys::Errno;
use oci_spec::runtime::ContainerProcessState;

use super::Listener;

/// How long an agent may let a full socket wait. The container stands still meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the agent has no listener.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// Nobody listens.
    #[error("seccomp: failed to connect with seccomp agent at {}; start what listens on `listenerPath` first", path.display())]
    Connect {
        /// Its socket.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The state is no JSON.
    #[error("seccomp: could not write the container's state as JSON for the agent")]
    State(#[source] serde_json::Error),
    /// It was not taken.
    #[error("seccomp: could not send the listener to the agent at {}", path.display())]
    Send {
        /// Its socket.
        path: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
}

/// Sends the listener, with the state of the container's process. The names of the descriptors and the metadata are filled in here.
///
/// # Errors
/// Nobody listens at the path, or it is not taken within ten seconds.
pub fn send_listener(
    listener: &Listener,
    fd: BorrowedFd<'_>,
    state: &ContainerProcessState,
) -> Result<(), ListenerError> {
    let path = || listener.path.clone();
    let mut state = state.clone();
    state.set_fds(vec![oci_spec::runtime::SECCOMP_FD_NAME.to_owned()]).set_metadata(listener.metadata.clone());
    let json = serde_json::to_vec(&state).map_err(ListenerError::State)?;
    let connect = |source| ListenerError::Connect { path: path(), source };
    let socket = UnixStream::connect(&listener.path).map_err(connect)?;
    socket.set_write_timeout(Some(PATIENCE)).map_err(connect)?;
    apex_sys::net::send(socket.as_fd(), &json, &[fd]).map_err(|source| ListenerError::Send { path: path(), source })
}

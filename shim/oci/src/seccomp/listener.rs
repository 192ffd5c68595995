//! Hands the listener to the agent that the bundle names (runtime-spec, "The Seccomp agent").

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::Listener;
use crate::state::{OCI_VERSION, State};

/// How long an agent may let a full socket wait. The container stands still meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);

/// What an empty socket takes at once, together with a descriptor.
const FIRST_BYTES_MAX: usize = 64 << 10;

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
}

impl Listener {
    /// Connects to the agent: before the container's root hides its socket.
    ///
    /// # Errors
    /// Nobody listens at the path.
    pub fn connect(&self) -> Result<OwnedFd, ListenerError> {
        let connect = |source| ListenerError::Connect { path: self.path.clone(), source };
        let socket = UnixStream::connect(&self.path).map_err(connect)?;
        socket.set_write_timeout(Some(PATIENCE)).map_err(connect)?;
        Ok(socket.into())
    }

    /// What the agent gets beside the listener (`ContainerProcessState`): the state of the container, whose pid is
    /// that of the process that loads the filter.
    pub fn message(&self, state: &State) -> Vec<u8> {
        let mut message = json!({
            "ociVersion": OCI_VERSION,
            "fds": [oci_spec::runtime::SECCOMP_FD_NAME],
            "pid": state.pid,
            "state": state,
        });
        if let Some(metadata) = &self.metadata {
            message["metadata"] = json!(metadata);
        }
        message.to_string().into_bytes()
    }
}

/// Sends the listener and the message through a connection of [`Listener::connect`]. Some calls of the message's rest may be judged by the filter already.
///
/// # Errors
/// The agent is gone, or does not take it within ten seconds.
pub fn hand_over(socket: &OwnedFd, message: &[u8], listener: BorrowedFd<'_>) -> std::io::Result<()> {
    // What fits into an empty socket goes with the descriptor whole; annotations can make the rest longer than that.
    let (first, rest) = message.split_at(message.len().min(FIRST_BYTES_MAX));
    apex_sys::net::send(socket.as_fd(), first, &[listener])?;
    if rest.is_empty() {
        return Ok(());
    }
    UnixStream::from(socket.try_clone()?).write_all(rest)
}

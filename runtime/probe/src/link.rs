//! The socket to `apex-run`: descriptor 3, one JSON value a packet ([`apex_core::watch`]).

use std::os::fd::{BorrowedFd, OwnedFd};

use apex_core::watch::{FromProbe, PACKET_BYTES_MAX, SOCKET_FD, ToProbe};
use apex_sys::{Errno, fs, net};

/// What this crate's end of the socket is called in messages.
const NAME: &str = "the socket to apex-run (descriptor 3)";

/// Why nothing can be said or heard.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// There is no descriptor 3, or it is no socket.
    #[error("{NAME}: {}; `apex-probe serve` is started by `apex-run --watch`, not by hand", .0.desc())]
    Absent(Errno),
    /// A packet could not be received.
    #[error("receiving from {NAME}: {}", .0.desc())]
    Receive(Errno),
    /// A packet could not be sent.
    #[error("sending to {NAME}: {}", .0.desc())]
    Send(Errno),
    /// A packet that is none of the protocol.
    #[error("{NAME} brought a packet that is not understood ({0}); are apex-run and apex-probe of one version?")]
    Malformed(serde_json::Error),
    /// A packet that does not belong here.
    #[error("{NAME} brought {0} out of turn; are apex-run and apex-probe of one version?")]
    OutOfTurn(&'static str),
}

/// The prober's end.
#[derive(Clone, Copy, Debug)]
pub struct Link(BorrowedFd<'static>);

impl Link {
    /// Descriptor 3, which must be there.
    pub fn take() -> Result<Link, LinkError> {
        fs::borrow(SOCKET_FD).map(Link).map_err(LinkError::Absent)
    }

    /// Another descriptor in its place.
    #[cfg(test)]
    pub fn over(fd: BorrowedFd<'static>) -> Link {
        Link(fd)
    }

    /// Waits for the next packet and what came along; `None` when `apex-run` is gone.
    pub fn hear(&self) -> Result<Option<(ToProbe, Option<OwnedFd>)>, LinkError> {
        let mut bytes = vec![0; PACKET_BYTES_MAX];
        let (count, fds) = match net::receive(self.0, &mut bytes) {
            Ok((0, _)) | Err(Errno::ECONNRESET) => return Ok(None),
            other => other.map_err(LinkError::Receive)?,
        };
        let said = serde_json::from_slice(&bytes[..count]).map_err(LinkError::Malformed)?;
        Ok(Some((said, fds.into_iter().next())))
    }

    /// Sends a packet.
    pub fn say(&self, said: &FromProbe) -> Result<(), LinkError> {
        let bytes = serde_json::to_vec(said).map_err(LinkError::Malformed)?;
        net::send(self.0, &bytes, &[]).map_err(LinkError::Send)
    }
}

/// What a packet is called in an error.
pub fn name_of(said: &ToProbe) -> &'static str {
    match said {
        ToProbe::Begin(_) => "`begin`",
        ToProbe::Sandbox { .. } => "`sandbox`",
        ToProbe::Refused { .. } => "`refused`",
        ToProbe::Lost { .. } => "`lost`",
        ToProbe::Hold { .. } => "`hold`",
        ToProbe::Cut { .. } => "`cut`",
        ToProbe::Shut { .. } => "`shut`",
        ToProbe::Costs => "`costs`",
        ToProbe::Ended => "`ended`",
    }
}

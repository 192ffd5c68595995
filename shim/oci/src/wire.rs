//! What the process outside and the init say to each other while a container is made.
//!
//! One socket that keeps message boundaries. Each message is a kind and perhaps a text. The end of either process closes its end, which the
//! other sees: an init whose creator is gone ends, and takes everything with it that is not written down yet.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use apex_sys::{Errno, net};

/// Bytes of a message: words of an error.
const BYTES_MAX: usize = 16 << 10;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// From the stage: the init was started, with this pid as the outside knows it.
    Born(i32),
    /// To the init: its ids are mapped, its cgroup is there; and its pid as the outside knows it.
    Admitted(i32),
    /// From the init: all is mounted; the hooks of the runtime's namespaces are due.
    Mounted,
    /// To the init: they have run.
    Hooked,
    /// From the init: everything is made and the program was found.
    Ready,
    /// To the init: the container is written down, it may wait for its start.
    Recorded,
    /// To a waiting init: begin.
    Go,
    /// The same, but wait when everything is sealed, until that was looked at.
    GoSlowly,
    /// From the init: everything is sealed.
    Sealed,
    /// To the init: it was looked at.
    Seen,
    /// From the init: what failed.
    Failed(String),
}

impl Message {
    fn encode(&self) -> Vec<u8> {
        match self {
            Message::Born(pid) => [b"b", &pid.to_ne_bytes()[..]].concat(),
            Message::Admitted(pid) => [b"a", &pid.to_ne_bytes()[..]].concat(),
            Message::Mounted => b"m".to_vec(),
            Message::Hooked => b"h".to_vec(),
            Message::Ready => b"r".to_vec(),
            Message::Recorded => b"w".to_vec(),
            Message::Go => b"g".to_vec(),
            Message::GoSlowly => b"G".to_vec(),
            Message::Sealed => b"s".to_vec(),
            Message::Seen => b"S".to_vec(),
            Message::Failed(words) => {
                let mut bytes = b"f".to_vec();
                bytes.extend(words.bytes().take(BYTES_MAX - 1));
                bytes
            }
        }
    }

    fn decode(bytes: &[u8]) -> Option<Message> {
        let (kind, rest) = bytes.split_first()?;
        Some(match kind {
            b'b' => Message::Born(i32::from_ne_bytes(rest.try_into().ok()?)),
            b'a' => Message::Admitted(i32::from_ne_bytes(rest.try_into().ok()?)),
            b'm' => Message::Mounted,
            b'h' => Message::Hooked,
            b'r' => Message::Ready,
            b'w' => Message::Recorded,
            b'g' => Message::Go,
            b'G' => Message::GoSlowly,
            b's' => Message::Sealed,
            b'S' => Message::Seen,
            b'f' => Message::Failed(String::from_utf8_lossy(rest).into_owned()),
            _ => return None,
        })
    }
}

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The other end was closed.
    #[error("the other process ended without a word; the kernel log may say why")]
    Closed,
    /// The socket.
    #[error("cannot talk to the other process")]
    Socket(#[from] Errno),
    /// A message that is none.
    #[error("the other process sent what is no message")]
    Garbled,
    /// What the other end reported.
    #[error("{0}")]
    Failed(String),
    /// A message out of turn.
    #[error("the other process said {0:?} out of turn")]
    Turn(Message),
}

/// One end of the conversation.
#[derive(Debug)]
pub struct Wire(OwnedFd);

impl Wire {
    /// Both ends.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn pair() -> Result<(Wire, Wire), Errno> {
        net::pair().map(|(one, other)| (Wire(one), Wire(other)))
    }

    /// An end that came from elsewhere.
    pub fn over(socket: OwnedFd) -> Wire {
        Wire(socket)
    }

    /// Says something.
    ///
    /// # Errors
    /// The other end is gone.
    pub fn say(&self, message: &Message) -> Result<(), WireError> {
        net::send(self.0.as_fd(), &message.encode(), &[]).map_err(|errno| match errno {
            Errno::EPIPE | Errno::ECONNRESET => WireError::Closed,
            other => WireError::Socket(other),
        })
    }

    /// The next message; `None` when the other end was closed.
    ///
    /// # Errors
    /// It is none.
    pub fn next(&self) -> Result<Option<Message>, WireError> {
        let mut bytes = vec![0; BYTES_MAX];
        match net::receive(self.0.as_fd(), &mut bytes) {
            Ok((0, _)) | Err(Errno::ECONNRESET) => Ok(None),
            Ok((count, _)) => Message::decode(&bytes[..count]).map(Some).ok_or(WireError::Garbled),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits for a message; a failure that is told instead is the error.
    ///
    /// # Errors
    /// Anything else came, or nothing.
    pub fn expect(&self, wanted: &Message) -> Result<(), WireError> {
        match self.next()? {
            Some(message) if message == *wanted => Ok(()),
            Some(Message::Failed(words)) => Err(WireError::Failed(words)),
            Some(other) => Err(WireError::Turn(other)),
            None => Err(WireError::Closed),
        }
    }

    /// Waits until the outside lets the init go on, and returns its pid there.
    ///
    /// # Errors
    /// As [`Wire::expect`].
    pub fn admitted(&self) -> Result<i32, WireError> {
        match self.next()? {
            Some(Message::Admitted(pid)) => Ok(pid),
            Some(other) => Err(WireError::Turn(other)),
            None => Err(WireError::Closed),
        }
    }

    /// The socket.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_comes_through() {
        let long = "x".repeat(3 * BYTES_MAX);
        let all = [
            Message::Born(7),
            Message::Admitted(8),
            Message::Mounted,
            Message::Hooked,
            Message::Ready,
            Message::Recorded,
            Message::Go,
            Message::GoSlowly,
            Message::Sealed,
            Message::Seen,
            Message::Failed("no".to_owned()),
        ];
        let (one, other) = Wire::pair().expect("a pair");
        for message in all {
            one.say(&message).expect("said");
            assert_eq!(other.next().expect("a message"), Some(message));
        }
        one.say(&Message::Failed(long)).expect("cut to size");
        assert!(matches!(other.expect(&Message::Ready), Err(WireError::Failed(words)) if words.len() == BYTES_MAX - 1));
        drop(one);
        assert!(matches!(other.expect(&Message::Ready), Err(WireError::Closed)));
        assert!(matches!(other.say(&Message::Go), Err(WireError::Closed)));
    }
}

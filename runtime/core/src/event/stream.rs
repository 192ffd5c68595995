//! What a standard stream of a program is, as far as it tells who is at its other end.

use serde::{Deserialize, Serialize};

use super::address::{AF_INET, AF_INET6, AF_UNIX};

/// The kind of a standard stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// No descriptor is open.
    Closed,
    /// A socket of IPv4 or IPv6.
    Inet,
    /// Such a socket that waits for connections, as FastCGI and socket activation hand them over.
    Listener,
    /// A UNIX socket.
    Unix,
    /// A pipe, with a name or without.
    Pipe,
    /// A terminal.
    Terminal,
    /// A regular file.
    File,
    /// /dev/null.
    Null,
    /// Something else.
    Other,
}

const SOCKET: u32 = 0o14;
const FILE: u32 = 0o10;
const DEVICE: u32 = 0o2;
const PIPE: u32 = 0o1;

impl Stream {
    /// From an inode: `mode` as in `st_mode`, major and minor number of a device, and of a socket its family and whether it listens.
    pub const fn of(mode: u32, device: (u32, u32), family: u32, listens: bool) -> Stream {
        match (mode >> 12 & 0o17, family, device) {
            (SOCKET, AF_INET | AF_INET6, _) if listens => Stream::Listener,
            (SOCKET, AF_INET | AF_INET6, _) => Stream::Inet,
            (SOCKET, AF_UNIX, _) => Stream::Unix,
            (PIPE, ..) => Stream::Pipe,
            (FILE, ..) => Stream::File,
            (DEVICE, _, (1, 3)) => Stream::Null,
            // Consoles and serial lines, /dev/tty and /dev/console, pseudo terminals (devices.txt of Linux).
            (DEVICE, _, (4 | 5 | 136..=143, _)) => Stream::Terminal,
            _ => Stream::Other,
        }
    }

    /// As in JSON and in rules.
    pub const fn name(self) -> &'static str {
        match self {
            Stream::Closed => "closed",
            Stream::Inet => "inet",
            Stream::Listener => "listener",
            Stream::Unix => "unix",
            Stream::Pipe => "pipe",
            Stream::Terminal => "terminal",
            Stream::File => "file",
            Stream::Null => "null",
            Stream::Other => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_inode() {
        for (stream, expected) in [
            (Stream::of(0o140_777, (0, 0), 2, false), "inet"),
            (Stream::of(0o140_777, (0, 0), 10, true), "listener"),
            (Stream::of(0o140_777, (0, 0), 1, true), "unix"),
            (Stream::of(0o140_777, (0, 0), 16, false), "other"),
            (Stream::of(0o010_600, (0, 0), 0, false), "pipe"),
            (Stream::of(0o100_644, (0, 0), 2, false), "file"),
            (Stream::of(0o020_666, (1, 3), 0, false), "null"),
            (Stream::of(0o020_666, (1, 8), 0, false), "other"),
            (Stream::of(0o020_620, (136, 4), 0, false), "terminal"),
            (Stream::of(0o040_755, (0, 0), 0, false), "other"),
        ] {
            assert_eq!(stream.name(), expected);
            assert_eq!(serde_json::to_value(stream).ok(), Some(expected.into()));
        }
    }
}

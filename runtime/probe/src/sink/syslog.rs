//! Lines to syslog by `/dev/log`, in the form of RFC 3164 that its readers expect there: `<PRI>TAG[PID]: MESSAGE`.
//!
//! The time is left to the reader, as section 4.3.2 allows: it knows its time zone. A finding that fits is sent as `@cee:` and its JSON, which
//! readers take apart into fields; one that does not fit is sent as a sentence, since half of a JSON is of no use.

use std::io::{self, ErrorKind, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;

use super::Outlet;
use super::journal::persist;
use super::queue::{Batch, Facts, Queue};

/// What readers take (rsyslog's default).
const MESSAGE_BYTES_MAX: usize = 8 << 10;
/// How long a reader that does not read is waited for.
const SEND_MAX: Duration = Duration::from_secs(1);
/// LOG_DAEMON (syslog(3)).
const FACILITY: u8 = 3;
/// LOG_DEBUG.
const DEBUG: u8 = 7;

/// See the module.
pub struct Syslog {
    path: PathBuf,
    socket: Socket,
}

enum Socket {
    Datagrams(UnixDatagram),
    Stream(UnixStream),
}

impl Syslog {
    /// Reaches syslog at its socket.
    pub fn open(path: &Path) -> io::Result<Syslog> {
        Ok(Syslog { path: path.to_owned(), socket: connect(path)? })
    }

    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        let sent = match &mut self.socket {
            Socket::Datagrams(socket) => socket.send(message).map(drop),
            Socket::Stream(socket) => socket.write_all(&[message, b"\0"].concat()),
        };
        let is_gone = |error: &io::Error| {
            matches!(
                error.kind(),
                ErrorKind::ConnectionRefused
                    | ErrorKind::ConnectionReset
                    | ErrorKind::NotConnected
                    | ErrorKind::BrokenPipe
            )
        };
        if sent.as_ref().is_err_and(is_gone) {
            self.socket = connect(&self.path)?;
        }
        sent
    }
}

/// Datagrams, or a stream for the readers that have one, as glibc's syslog(3) does.
fn connect(path: &Path) -> io::Result<Socket> {
    let datagrams = UnixDatagram::unbound()?;
    match datagrams.connect(path) {
        Ok(()) => {
            datagrams.set_write_timeout(Some(SEND_MAX))?;
            Ok(Socket::Datagrams(datagrams))
        }
        Err(error) if error.raw_os_error() == Some(Errno::EPROTOTYPE as i32) => {
            let stream = UnixStream::connect(path)?;
            stream.set_write_timeout(Some(SEND_MAX))?;
            Ok(Socket::Stream(stream))
        }
        Err(error) => Err(error),
    }
}

/// `None` for an event that does not fit.
fn message(line: &[u8], facts: Option<&Facts>) -> Option<Vec<u8>> {
    let priority = FACILITY * 8 + facts.map_or(DEBUG, Facts::priority);
    let mut message = format!("<{priority}>apex-probe[{}]: @cee: ", std::process::id()).into_bytes();
    if message.len() + line.len() <= MESSAGE_BYTES_MAX {
        message.extend_from_slice(line);
        return Some(message);
    }
    let words = format!("{}; the finding has {} bytes, too many for syslog", facts?.message(), line.len());
    message.truncate(message.len() - b"@cee: ".len());
    message.extend_from_slice(&words.as_bytes()[..words.floor_char_boundary(MESSAGE_BYTES_MAX - message.len())]);
    Some(message)
}

impl Outlet for Syslog {
    fn deliver(&mut self, batch: &Batch, queue: &Queue) {
        for (line, facts) in batch.lines() {
            let Some(message) = message(line, facts) else {
                queue.dropped(1, "an event is too long for syslog; what is lost is counted");
                continue;
            };
            match persist(queue, || self.send(&message)) {
                Ok(()) => queue.written(1),
                Err(error) => queue.dropped(1, &format!("cannot send: {error}; what is lost is counted")),
            }
        }
    }
}

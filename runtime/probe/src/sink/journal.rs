//! Lines to systemd-journald by its native protocol, as fields that `journalctl` can select (systemd.io/JOURNAL_NATIVE_PROTOCOL).
//!
//! A field is `NAME=value` and a newline; a value that holds a newline is `NAME`, newline, its length as 64 bits little-endian, the value,
//! newline. An entry is one datagram; one that is too large for that is sent as a sealed memfd.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

use super::Outlet;
use super::queue::{Batch, Facts, Queue};

/// How long a journal that does not read is waited for.
const SEND_MAX: Duration = Duration::from_secs(1);
/// How often an entry is tried; the journal may be about to be restarted.
const TRIES_MAX: u32 = 3;
/// Between tries.
const PAUSE: Duration = Duration::from_millis(200);
/// Marks findings for `journalctl MESSAGE_ID=...` and the journal's catalogue. Drawn once at random.
const MESSAGE_ID_FINDING: &str = "8a5f0f6b7c0e4d0fb1a46a5d54f0c2e9";

/// See the module.
pub struct Journal {
    socket: UnixDatagram,
    address: UnixAddr,
}

impl Journal {
    /// Reaches the journal at its socket.
    pub fn open(path: &Path) -> io::Result<Journal> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_MAX))?;
        // Connecting tells at the start whether somebody listens; sending names the address each time, so that a restarted journal is found.
        UnixDatagram::unbound()?.connect(path)?;
        Ok(Journal { socket, address: UnixAddr::new(path)? })
    }

    fn send(&self, entry: &[u8]) -> io::Result<()> {
        let socket = self.socket.as_raw_fd();
        let whole = sendmsg(socket, &[IoSlice::new(entry)], &[], MsgFlags::MSG_NOSIGNAL, Some(&self.address));
        match whole {
            Ok(_) => Ok(()),
            Err(Errno::EMSGSIZE | Errno::ENOBUFS) => {
                let file = sealed(entry)?;
                let descriptors = [file.as_raw_fd()];
                let rights = [ControlMessage::ScmRights(&descriptors)];
                sendmsg(socket, &[], &rights, MsgFlags::MSG_NOSIGNAL, Some(&self.address))?;
                Ok(())
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The journal reads a memfd only when nobody can change it any more.
fn sealed(entry: &[u8]) -> io::Result<OwnedFd> {
    let own = memfd_create("journal-entry", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(own);
    file.write_all(entry)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

fn field(entry: &mut Vec<u8>, name: &str, value: &[u8]) {
    entry.extend_from_slice(name.as_bytes());
    if value.contains(&b'\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

fn entry(line: &[u8], facts: Option<&Facts>) -> Vec<u8> {
    let mut entry = Vec::with_capacity(line.len() + 512);
    field(&mut entry, "SYSLOG_IDENTIFIER", b"apex-probe");
    match facts {
        Some(facts) => {
            field(&mut entry, "MESSAGE", facts.message().as_bytes());
            field(&mut entry, "MESSAGE_ID", MESSAGE_ID_FINDING.as_bytes());
            field(&mut entry, "PRIORITY", facts.priority().to_string().as_bytes());
            field(&mut entry, "APEX_SANDBOX", facts.sandbox.to_string().as_bytes());
            field(&mut entry, "APEX_DETECTOR", facts.detector.as_bytes());
            for technique in &facts.techniques {
                field(&mut entry, "APEX_TECHNIQUE", technique.as_bytes());
            }
            field(&mut entry, "APEX_FINDING", line);
        }
        None => {
            field(&mut entry, "MESSAGE", line);
            // Debug: events are many, and the journal is told so.
            field(&mut entry, "PRIORITY", b"7");
        }
    }
    entry
}

impl Outlet for Journal {
    fn deliver(&mut self, batch: &Batch, queue: &Queue) {
        for (line, facts) in batch.lines() {
            let entry = entry(line, facts);
            match persist(queue, || self.send(&entry)) {
                Ok(()) => queue.written(1),
                Err(error) => queue.dropped(1, &format!("cannot send: {error}; what is lost is counted")),
            }
        }
    }
}

/// Tries `send` a few times, as a service that is being restarted deserves.
pub fn persist(queue: &Queue, mut send: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let mut tries = 1;
    loop {
        match send() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if tries >= TRIES_MAX || queue.is_over() => return Err(error),
            Err(_) => {
                tries += 1;
                queue.pause(PAUSE);
            }
            Ok(()) => return Ok(()),
        }
    }
}

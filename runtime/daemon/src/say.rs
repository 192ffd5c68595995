//! What the daemon says about itself: entries with fields where its standard error is the journal (systemd.io/JOURNAL_NATIVE_PROTOCOL), else lines on standard error.
//!
//! The words are the same in both. Must not wait for a journal that does not read, and must not be used by the warden, which was forked before.

use std::fmt::Arguments;
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;

/// How bad it is, as syslog counts it (syslog(3)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The daemon, or a service of it, cannot go on.
    Error = 3,
    /// Something is lost or stays undone.
    Warning = 4,
    /// Worth to be seen in quiet times too.
    Notice = 5,
}

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";
/// Of one message; the rest is cut off.
const MESSAGE_BYTES_MAX: usize = 16 << 10;

static JOURNAL: OnceLock<UnixDatagram> = OnceLock::new();

/// Finds out where to. Before privileges are given up; what is said earlier are lines.
pub fn begin() {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let Ok(about) = nix::sys::stat::fstat(std::io::stderr()) else { return };
    if !is_journal(&stream, about.st_dev, about.st_ino) {
        return;
    }
    if let Ok(socket) = UnixDatagram::unbound()
        && socket.set_nonblocking(true).is_ok()
    {
        let _ = JOURNAL.set(socket);
    }
}

/// Says something: `event` is its kind in one word, which the guide lists.
pub fn line(level: Level, event: &'static str, sandbox: Option<&str>, words: Arguments<'_>) {
    let message = match sandbox {
        Some(id) => format!("sandbox {id}: {words}"),
        None => words.to_string(),
    };
    let entry = || entry(level, event, sandbox, &message);
    // A journal that is away or full loses its fields, not the words.
    if JOURNAL.get().is_none_or(|journal| journal.send_to(&entry(), SOCKET).is_err()) {
        eprintln!("apexd: {message}");
    }
}

/// A warning about a sandbox.
pub fn about(sandbox: &str, event: &'static str, words: Arguments<'_>) {
    line(Level::Warning, event, Some(sandbox), words);
}

/// Whether `JOURNAL_STREAM` names this very file (systemd.exec(5)): somebody may have led standard error elsewhere since it was set.
fn is_journal(stream: &str, device: u64, inode: u64) -> bool {
    let numbers = stream.split_once(':').and_then(|(left, right)| Some((left.parse().ok()?, right.parse().ok()?)));
    numbers == Some((device, inode))
}

fn entry(level: Level, event: &str, sandbox: Option<&str>, message: &str) -> Vec<u8> {
    let mut entry = Vec::with_capacity(message.len() + 128);
    field(&mut entry, "SYSLOG_IDENTIFIER", "apexd");
    field(&mut entry, "PRIORITY", &(level as u8).to_string());
    field(&mut entry, "APEX_EVENT", event);
    if let Some(id) = sandbox {
        field(&mut entry, "APEX_SANDBOX", id);
    }
    field(&mut entry, "MESSAGE", &message[..message.floor_char_boundary(MESSAGE_BYTES_MAX)]);
    entry
}

/// With its length where it has lines, so that none of them passes for a field.
fn field(entry: &mut Vec<u8>, name: &str, value: &str) {
    entry.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_known_by_device_and_inode() {
        let check = |stream, expected| assert_eq!(is_journal(stream, 9, 71), expected, "{stream}");
        check("9:71", true);
        for other in ["9:72", "8:71", "", "9", "9:71:1", ":", "a:b"] {
            check(other, false);
        }
    }

    #[test]
    fn an_entry_has_its_fields() {
        let text = String::from_utf8(entry(Level::Warning, "streams", Some("9c22"), "sandbox 9c22: full")).unwrap();
        assert_eq!(
            text,
            "SYSLOG_IDENTIFIER=apexd\nPRIORITY=4\nAPEX_EVENT=streams\nAPEX_SANDBOX=9c22\nMESSAGE=sandbox 9c22: full\n"
        );
    }

    #[test]
    fn lines_of_a_message_do_not_become_fields() {
        let bytes = entry(Level::Error, "end", None, "one\nPRIORITY=0");
        let expected = [b"MESSAGE\n".as_slice(), &14u64.to_le_bytes(), b"one\nPRIORITY=0\n"].concat();
        assert!(bytes.ends_with(&expected), "{}", String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn a_message_is_bounded_at_a_whole_character() {
        let bytes = entry(Level::Error, "end", None, &"ä".repeat(MESSAGE_BYTES_MAX));
        assert!(bytes.len() < MESSAGE_BYTES_MAX + 128);
        assert!(String::from_utf8(bytes).is_ok());
    }
}

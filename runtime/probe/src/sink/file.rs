//! Lines into a file or onto a standard stream.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Outlet;
use super::queue::{Batch, Queue};

/// How often a reader that does not read is waited for, a second each.
const STALLS_MAX: u32 = 5;

/// See the module.
pub struct Stream {
    file: File,
    /// Whether the last write ended inside a line.
    is_torn: bool,
}

impl Stream {
    /// Opens a file for appending. A new one is the caller's alone; a symbolic link is refused, since it could lead a privileged caller's
    /// lines to somebody else's file; a pipe without a reader is refused, as opening it would wait.
    pub fn open(path: &Path) -> io::Result<Stream> {
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).mode(0o600).custom_flags(flags.bits()).open(path)?;
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_fifo() && !kind.is_char_device() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "it is neither a file nor a pipe"));
        }
        let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
        fcntl(&file, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
        Ok(Stream { file, is_torn: false })
    }

    /// A standard stream, by a descriptor of its own.
    pub fn inherited(fd: BorrowedFd<'_>) -> io::Result<Stream> {
        Ok(Stream { file: File::from(fd.try_clone_to_owned()?), is_torn: false })
    }

    /// Writes what it can; how much, and why no more.
    fn write(&mut self, text: &[u8], queue: &Queue) -> (usize, Option<io::Error>) {
        let (mut done, mut stalls) = (0, 0);
        while done < text.len() {
            match self.file.write(&text[done..]) {
                Ok(0) => return (done, Some(ErrorKind::WriteZero.into())),
                Ok(count) => {
                    done += count;
                    stalls = 0;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A standard stream may be a terminal or pipe that somebody made non-blocking.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    stalls += 1;
                    if stalls > STALLS_MAX || queue.is_over() {
                        return (done, Some(error));
                    }
                    let _ = poll(&mut [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)], PollTimeout::from(1000u16));
                }
                Err(error) => return (done, Some(error)),
            }
        }
        (done, None)
    }
}

impl Outlet for Stream {
    fn deliver(&mut self, batch: &Batch, queue: &Queue) {
        if self.is_torn {
            // What follows half a line would be unreadable with it.
            self.is_torn = self.write(b"\n", queue).0 == 0;
            if self.is_torn {
                return queue.dropped(batch.len(), "cannot write");
            }
        }
        let (done, error) = self.write(batch.text(), queue);
        let whole = batch.text()[..done].iter().filter(|byte| **byte == b'\n').count();
        queue.written(whole);
        self.is_torn = done > 0 && batch.text()[done - 1] != b'\n';
        if let Some(error) = error {
            queue.dropped(batch.len() - whole, &format!("cannot write: {error}; make room, what is lost is counted"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;
    use std::time::Instant;

    use nix::unistd::pipe2;

    use super::super::queue::Room;
    use super::*;

    /// A pipe that is full stands for a disk that is: it takes a part of a write, ends inside a line, and has room again later.
    #[test]
    fn what_fills_up_within_a_line_tears_no_other_line() {
        let (reader, writer) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).expect("a pipe");
        let mut reader = File::from(reader);
        let mut stream = Stream { file: File::from(writer), is_torn: false };
        let queue = Queue::new("pipe".to_owned(), Room::STREAM, Arc::new(|_: &str| {}));
        let line = format!("\"{}\"\n", "x".repeat(996));
        for _ in 0..100 {
            queue.push(line.as_bytes(), None);
        }
        queue.close(Instant::now());
        stream.deliver(&queue.take().expect("lines"), &queue);
        let counts = queue.counts();
        assert!(counts.written > 0 && counts.dropped > 0 && stream.is_torn, "{counts:?}");
        let mut text = vec![0; 1 << 20];
        let first = reader.read(&mut text).expect("lines");
        queue.push(b"\"whole\"\n", None);
        stream.deliver(&queue.take().expect("a line"), &queue);
        let second = reader.read(&mut text[first..]).expect("a line");
        let text = str::from_utf8(&text[..first + second]).expect("text");
        let broken = text.lines().filter(|line| serde_json::from_str::<String>(line).is_err()).count();
        assert_eq!((broken, text.lines().last()), (1, Some("\"whole\"")));
        assert_eq!(queue.counts().written, text.lines().count() as u64 - 1);
    }
}

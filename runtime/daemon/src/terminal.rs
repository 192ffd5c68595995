//! The daemon's end of a command's streams, be they pipes or a terminal (pty(7)).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use apex_api::v1::TerminalSize;
use apex_sys::terminal;
use nix::errno::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

use crate::ready;

/// What ends the input of a program that reads lines (termios(3), VEOF).
const END_OF_INPUT: &[u8] = &[4];

/// Rows and columns; `None` for what is no size.
pub fn size(size: &TerminalSize) -> Option<(u16, u16)> {
    let number = |value: u32| u16::try_from(value).ok().filter(|value| *value > 0);
    Some((number(size.rows)?, number(size.columns)?))
}

/// The master of a terminal.
pub struct Terminal(AsyncFd<OwnedFd>);

impl Terminal {
    /// Takes it over.
    pub fn new(master: OwnedFd) -> io::Result<Arc<Terminal>> {
        terminal::set_nonblocking(master.as_fd())?;
        Ok(Arc::new(Terminal(ready::register(master)?)))
    }

    /// Gives it a size; one that is not told stays as it is.
    pub fn resize(&self, size: TerminalSize) {
        if let Some((rows, columns)) = self::size(&size) {
            // A terminal that is gone has no size.
            let _ = terminal::set_size(self.0.as_fd(), rows, columns);
        }
    }

    async fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            match nix::unistd::read(&self.0, bytes) {
                // Nobody has the other end open.
                Err(Errno::EIO) => return Ok(0),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                other => return Ok(other?),
            }
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            match nix::unistd::write(&self.0, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

/// Where a command's output comes from.
pub enum Source {
    Pipe(pipe::Receiver),
    Terminal(Arc<Terminal>),
}

impl Source {
    /// Of a pipe.
    pub fn pipe(read: OwnedFd) -> io::Result<Source> {
        Ok(Source::Pipe(pipe::Receiver::from_owned_fd(read)?))
    }

    /// Returns when there is something to be read, or the end.
    pub async fn ready(&self) -> io::Result<()> {
        match self {
            Source::Pipe(pipe) => pipe.readable().await,
            Source::Terminal(terminal) => terminal.0.readable().await.map(drop),
        }
    }

    /// The next bytes; none at the end.
    pub async fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Source::Pipe(pipe) => pipe.read(bytes).await,
            Source::Terminal(terminal) => terminal.read(bytes).await,
        }
    }
}

/// Where a command's input goes.
pub enum Sink {
    Pipe(pipe::Sender),
    Terminal(Arc<Terminal>),
}

impl Sink {
    /// Of a pipe.
    pub fn pipe(write: OwnedFd) -> io::Result<Sink> {
        Ok(Sink::Pipe(pipe::Sender::from_owned_fd(write)?))
    }

    /// All of these bytes.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Sink::Pipe(pipe) => pipe.write_all(bytes).await,
            Sink::Terminal(terminal) => terminal.write_all(bytes).await,
        }
    }

    /// Says that nothing more comes. A pipe ends by being dropped.
    pub async fn end(self) {
        if let Sink::Terminal(terminal) = self {
            let _ = terminal.write_all(END_OF_INPUT).await;
        }
    }

    /// Changes the size of a terminal.
    pub fn resize(&self, size: TerminalSize) {
        if let Sink::Terminal(terminal) = self {
            terminal.resize(size);
        }
    }
}

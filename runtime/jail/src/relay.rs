//! The caller's terminal on one side, the sandbox's on the other: bytes both ways, window size, raw mode.
//!
//! The sandbox holds only its own terminal, so neither TIOCSTI nor a change of modes reaches the caller's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use apex_sys::signal::Interest;
use apex_sys::{Errno, fs, terminal};

/// Bytes moved at a time, and held for a sandbox that does not read.
const CHUNK: usize = 16 * 1024;
/// The character that ends a line-wise input (termios(3), VEOF).
const END_OF_INPUT: u8 = 4;

/// A running relay. Dropping it gives the caller's terminal back as it was.
pub struct Relay {
    master: OwnedFd,
    input: BorrowedFd<'static>,
    output: BorrowedFd<'static>,
    /// Read from the caller, not yet taken by the sandbox.
    pending: Vec<u8>,
    input_open: bool,
    master_open: bool,
    _raw: Option<terminal::Raw<'static>>,
}

impl Relay {
    /// Begins to relay between the standard streams and the sandbox's terminal.
    pub fn start(master: OwnedFd) -> Result<Relay, Errno> {
        let (input, output) = (fs::borrow(0)?, fs::borrow(1)?);
        terminal::set_nonblocking(master.as_fd())?;
        let raw = terminal::is_terminal(input).then(|| terminal::Raw::enter(input)).transpose()?;
        let relay =
            Relay { master, input, output, pending: Vec::new(), input_open: true, master_open: true, _raw: raw };
        relay.resize()?;
        Ok(relay)
    }

    /// Gives the sandbox's terminal the size of the caller's.
    pub fn resize(&self) -> Result<(), Errno> {
        if terminal::is_terminal(self.input) { terminal::copy_size(self.input, self.master.as_fd()) } else { Ok(()) }
    }

    /// What to wait for, in the order that [`Relay::serve`] expects.
    pub fn interests(&self) -> Vec<Interest<'_>> {
        let mut interests = Vec::new();
        if self.master_open {
            interests.push(Interest { fd: self.master.as_fd(), write: false, ready: false });
        }
        if self.master_open && !self.pending.is_empty() {
            interests.push(Interest { fd: self.master.as_fd(), write: true, ready: false });
        }
        if self.input_open && self.pending.is_empty() {
            interests.push(Interest { fd: self.input, write: false, ready: false });
        }
        interests
    }

    /// Moves what can be moved, given which of [`Relay::interests`] are ready.
    pub fn serve(&mut self, ready: &[bool]) -> Result<(), Errno> {
        let mut ready = ready.iter().copied();
        let waits_for_write = self.master_open && !self.pending.is_empty();
        let waits_for_input = self.input_open && self.pending.is_empty();
        if self.master_open && ready.next() == Some(true) {
            self.show()?;
        }
        if waits_for_write && ready.next() == Some(true) {
            self.type_pending()?;
        }
        if waits_for_input && ready.next() == Some(true) {
            self.take_input()?;
        }
        Ok(())
    }

    fn show(&mut self) -> Result<(), Errno> {
        let mut bytes = [0; CHUNK];
        match fs::read(self.master.as_fd(), &mut bytes) {
            // EIO: nobody has the other end open.
            Ok(0) | Err(Errno::EIO) => {
                self.master_open = false;
                Ok(())
            }
            Ok(count) => write_all(self.output, &bytes[..count]),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn take_input(&mut self) -> Result<(), Errno> {
        let mut bytes = [0; CHUNK];
        match fs::read(self.input, &mut bytes) {
            Ok(0) => {
                self.input_open = false;
                self.pending.push(END_OF_INPUT);
            }
            Ok(count) => self.pending.extend_from_slice(&bytes[..count]),
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
            // The caller's terminal is gone; the command will get its hang-up as a signal.
            Err(_) => self.input_open = false,
        }
        self.type_pending()
    }

    fn type_pending(&mut self) -> Result<(), Errno> {
        match fs::write(self.master.as_fd(), &self.pending) {
            Ok(count) => drop(self.pending.drain(..count)),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(Errno::EIO) => self.pending.clear(),
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    /// Shows what the sandbox wrote before it ended.
    pub fn drain(mut self) {
        let mut bytes = [0; CHUNK];
        while self.master_open {
            match fs::read(self.master.as_fd(), &mut bytes) {
                Ok(count) if count > 0 => {
                    if write_all(self.output, &bytes[..count]).is_err() {
                        return;
                    }
                }
                _ => self.master_open = false,
            }
        }
    }
}

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match fs::write(fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

//! Interpreters that are started ahead and wait for what they are to run (`--warm`).
//!
//! Each is started for itself, in a sandbox of its own, and used once: nothing is shared by copying, neither memory nor a hash seed nor a position in a stream
//! of random numbers (docs/adr/0014-warm-interpreters.md). What it is to run comes over a socket, as the words of a command line.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result, bail};
use apex_jail::control;
use apex_sys::signal::{self, Interest};
use apex_sys::{fs, net};

const PYTHON: &str = include_str!("warm/python.py");
const NODE: &str = include_str!("warm/node.js");

/// The waiting side of an interpreter.
pub struct Warm {
    ours: OwnedFd,
    /// The interpreter's end, until it has it.
    its: Option<OwnedFd>,
}

impl Warm {
    /// Before the interpreter is started.
    pub fn new() -> Result<Warm> {
        let (ours, its) = net::pair().context("making a socket for the interpreter")?;
        Ok(Warm { ours, its: Some(its) })
    }

    /// The descriptor that the interpreter is to get.
    pub fn number(&self) -> i32 {
        self.its.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// The interpreter has its end.
    pub fn passed_on(&mut self) {
        self.its = None;
    }

    /// Readable when it is ready, or gone.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.ours.as_fd()
    }

    /// Whether it has said that it is ready; `None` while it has not, `false` when it never will. Does not wait.
    pub fn readiness(&self) -> Option<bool> {
        let mut end = [Interest { fd: self.fd(), write: false, ready: false }];
        match signal::poll(&mut end, Some(0)) {
            Ok(true) => Some(matches!(fs::read(self.fd(), &mut [0; 16]), Ok(1..))),
            Ok(false) => None,
            Err(_) => Some(false),
        }
    }

    /// Has it run a command line.
    pub fn run(self, arguments: &[Vec<u8>]) -> Result<(), String> {
        let words = control::words(arguments)?;
        net::try_send(self.ours.as_fd(), &words, &[]).map_err(|errno| errno.desc().to_owned())
    }
}

/// The command line by which an interpreter waits, reading from this descriptor.
pub fn waiting(command: &[OsString], fd: i32) -> Result<Vec<OsString>> {
    let program = command.first().context("there is no interpreter to be warmed")?;
    let name = program.as_bytes().rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let (flag, script) = match name {
        b"node" | b"nodejs" => ("-e", NODE),
        name if name.starts_with(b"python") => ("-c", PYTHON),
        _ => bail!(
            "{} cannot be started ahead of what it runs; python3 and node can. Leave warm out",
            apex_run::escape::os(OsStr::new(program))
        ),
    };
    Ok(vec![program.clone(), flag.into(), script.into(), fd.to_string().into()])
}

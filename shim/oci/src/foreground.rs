//! A container or a command in it that the caller waits for: signals go in, a terminal goes both ways, the exit code comes out.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context as _, Result};
use apex_jail::relay::Relay;
use apex_sys::process::{self, Ended};
use apex_sys::signal::{self, Interest, Set};
use apex_sys::{Errno, net};
use nix::libc;

/// Signals that are passed on. Those of job control stop the caller alone, and the ones of faults are the caller's own.
const PASSED: [i32; 10] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGWINCH,
    libc::SIGCONT,
    libc::SIGPIPE,
];

/// Both ends of the socket by which a terminal comes to this process.
///
/// # Errors
/// No descriptors are left.
pub fn terminal_socket() -> Result<(OwnedFd, OwnedFd)> {
    net::pair().context("cannot make the socket for the terminal")
}

/// The terminal that came through the socket.
///
/// # Errors
/// None came.
pub fn receive_terminal(socket: &OwnedFd) -> Result<OwnedFd> {
    let mut name = [0; 4096];
    let (_, files) = net::receive(socket.as_fd(), &mut name).context("cannot receive the container's terminal")?;
    files.into_iter().next().context("the container sent no terminal")
}

/// Waits for a child, serving it; the value is its exit code, 128 and the signal's number where one ended it.
///
/// # Errors
/// The kernel refuses a wait.
pub fn wait(pid: i32, pidfd: &OwnedFd, terminal: Option<OwnedFd>) -> Result<i32> {
    let set = Set::of(&PASSED);
    signal::block(&set).context("cannot hold back signals")?;
    let signals = signal::descriptor(&set).context("cannot receive signals")?;
    let mut relay = terminal.map(Relay::start).transpose().context("cannot relay the terminal")?;
    loop {
        let mut interests = vec![
            Interest { fd: pidfd.as_fd(), write: false, ready: false },
            Interest { fd: signals.as_fd(), write: false, ready: false },
        ];
        interests.extend(relay.iter().flat_map(Relay::interests));
        signal::poll(&mut interests, None).context("cannot wait for the container")?;
        let ready: Vec<bool> = interests.iter().map(|interest| interest.ready).collect();
        drop(interests);
        if let Some(relay) = &mut relay {
            relay.serve(&ready[2..]).context("cannot relay the terminal")?;
        }
        if ready[1] {
            pass(&signals, pidfd, relay.as_ref())?;
        }
        if ready[0] {
            break;
        }
    }
    let ended = process::wait(pid, 0).context("cannot wait for the container")?;
    if let Some(relay) = relay {
        relay.drain();
    }
    Ok(match ended {
        Some((_, Ended::Code(code))) => code,
        Some((_, Ended::Signal(signal))) => 128 + signal,
        None => 255,
    })
}

fn pass(signals: &OwnedFd, pidfd: &OwnedFd, relay: Option<&Relay>) -> Result<()> {
    while let Some(signal) = signal::next(signals.as_fd()).context("cannot receive signals")? {
        if let (libc::SIGWINCH, Some(relay)) = (signal, relay) {
            relay.resize().context("cannot resize the terminal")?;
            continue;
        }
        match process::pidfd_signal(pidfd.as_raw_fd(), signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(errno).context("cannot pass a signal on"),
        }
    }
    Ok(())
}

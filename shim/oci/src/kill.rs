//! `kill`: a signal to a container.

use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use apex_sys::process;
use nix::libc;
use nix::sys::signal::Signal;

use crate::state::{Entry, Record, Status};

/// How long the end of a killed container is waited for, in steps of a millisecond.
const END_TRIES_MAX: u32 = 10_000;

/// The number of a signal, by number or by name with or without `SIG`.
///
/// # Errors
/// There is no such signal.
pub fn signal(word: &str) -> Result<i32> {
    if let Ok(number) = word.parse::<i32>() {
        // 0 only asks whether somebody is there (kill(2)).
        if (0..=64).contains(&number) {
            return Ok(number);
        }
        bail!("there is no signal {number}: they go from 0 to 64");
    }
    let upper = word.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(number) = real_time(name) {
        return Ok(number);
    }
    let parsed: Option<Signal> = format!("SIG{name}").parse().ok();
    parsed.map(|signal| signal as i32).with_context(|| format!("{word:?} is no signal; signal(7) lists them"))
}

/// `RTMIN+N` and `RTMAX-N`.
fn real_time(name: &str) -> Option<i32> {
    let (base, rest) = match name.get(..5)? {
        "RTMIN" => (34, &name[5..]),
        "RTMAX" => (64, &name[5..]),
        _ => return None,
    };
    let number = if rest.is_empty() { base } else { base + rest.parse::<i32>().ok()? };
    (34..=64).contains(&number).then_some(number)
}

/// Sends a signal to the first process, or with `to_all` to every process of the container.
///
/// # Errors
/// It does not run, or the kernel refuses.
pub fn kill(entry: &Entry, signal: i32, to_all: bool) -> Result<()> {
    let record = entry.record()?;
    if to_all {
        return match &record.cgroup {
            // Also when nobody is left, as runc does: who kills all wants none to be there.
            Some(cgroup) => Ok(cgroup.kill(signal)?),
            None => bail!("container {:?} has no cgroup by which all its processes could be found", entry.id()),
        };
    }
    let Some(pidfd) = entry.process(&record) else { bail!("container {:?} is not running", entry.id()) };
    process::pidfd_signal(pidfd.as_raw_fd(), signal)
        .with_context(|| format!("cannot signal container {:?}", entry.id()))?;
    if signal == libc::SIGKILL {
        // A frozen process of cgroup v1 dies when it is thawed.
        if let Some(cgroup) = record.cgroup.as_ref().filter(|_| entry.status(&record) == Status::Paused) {
            cgroup.thaw()?;
        }
        if !record.has_own_pid_namespace {
            // Its end is not that of the others.
            return kill_all(entry, &record);
        }
    }
    Ok(())
}

/// Kills every process of a container and waits for its end.
///
/// # Errors
/// Something of it lives on.
pub fn kill_all(entry: &Entry, record: &Record) -> Result<()> {
    let first = entry.process(record);
    if let Some(pidfd) = &first {
        match process::pidfd_signal(pidfd.as_raw_fd(), libc::SIGKILL) {
            Ok(()) | Err(apex_sys::Errno::ESRCH) => {}
            Err(errno) => return Err(errno).with_context(|| format!("cannot kill container {:?}", entry.id())),
        }
    }
    if let Some(cgroup) = &record.cgroup {
        // The end of the init of a pid namespace is the end of all; a frozen one must be thawed for it.
        if cgroup.is_frozen().unwrap_or(false) {
            cgroup.thaw()?;
        }
        if !record.has_own_pid_namespace {
            cgroup.kill_all()?;
        }
    }
    for _ in 0..END_TRIES_MAX {
        if entry.process(record).is_none() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    bail!("container {:?} was killed 10 s ago and has not ended; a process of it may hang in the kernel", entry.id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        let check = |word: &str, expected: Option<i32>| assert_eq!(signal(word).ok(), expected, "{word}");
        check("9", Some(9));
        check("KILL", Some(9));
        check("SIGKILL", Some(9));
        check("sigterm", Some(15));
        check("RTMIN", Some(34));
        check("SIGRTMIN+3", Some(37));
        check("RTMAX-1", Some(63));
        check("0", Some(0));
        check("65", None);
        check("RTMAX+1", None);
        check("NOPE", None);
        check("-1", None);
        check("", None);
    }
}

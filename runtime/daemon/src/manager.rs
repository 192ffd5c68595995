//! The service manager: what it hands over at the start, and what it is told (sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3)).
//!
//! Input: the environment, and descriptors from 3 on. Output: datagrams to the manager's socket. Where there is no manager, nothing happens. All of it is for one pid, which is
//! apexd's: the warden is another process and drops it; a keeper's environment and descriptors are given one by one, so nothing of it gets there.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use apex_sys::{clock, fs, process};
use nix::sys::socket::{SockType, UnixAddr, getsockname, getsockopt, sockopt};

use crate::say::{self, Level};

/// The first descriptor that is handed over.
const FIRST: i32 = 3;
/// How long a manager that does not read is waited for.
const SEND_MAX: Duration = Duration::from_secs(2);

/// The manager, as far as there is one.
#[derive(Default)]
pub struct Manager {
    told: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
    listener: Option<UnixListener>,
}

impl Manager {
    /// Before there is a thread, and before any other descriptor is opened that could be taken for one of the manager's.
    pub fn take() -> Result<Manager> {
        let variable = |name: &str| std::env::var_os(name);
        let own = std::process::id();
        let told = match variable("NOTIFY_SOCKET") {
            Some(name) => {
                let socket = UnixDatagram::unbound().context("making a socket for the service manager")?;
                socket.set_write_timeout(Some(SEND_MAX))?;
                let address = address(&name)?;
                if address.as_abstract_name().is_some() {
                    // Landlock keeps this process from new ones of those; what stands stays. A manager that is not there is told of with the first word.
                    let _ = socket.connect_addr(&address);
                }
                Some((socket, address))
            }
            None => None,
        };
        let listener = match handed(&variable, own)? {
            0 => None,
            1 => Some(listener()?),
            more => bail!(
                "{more} sockets were handed over (LISTEN_FDS; named {}), and apexd listens at one: give its socket unit one ListenStream=",
                variable("LISTEN_FDNAMES").unwrap_or_default().to_string_lossy()
            ),
        };
        Ok(Manager { told, watchdog: watchdog(&variable, own)?, listener })
    }

    /// The socket that was handed over, to be served from; it stays open here, so that who connects later is not refused.
    pub fn listener(&self) -> Option<std::io::Result<UnixListener>> {
        self.listener.as_ref().map(UnixListener::try_clone)
    }

    /// Half of what the watchdog bears, as sd_watchdog_enabled(3) advises.
    pub fn beat_every(&self) -> Option<Duration> {
        self.watchdog.map(|within| within / 2)
    }

    /// It takes requests; `words` is what `systemctl status` shows.
    pub fn ready(&self, words: &str) {
        self.tell(&format!("READY=1\nSTATUS={}", words.replace('\n', " ")));
    }

    /// It reads its configuration anew, and says [`Manager::ready`] at the end.
    pub fn reloading(&self) {
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", clock::monotonic_ns() / 1000));
    }

    /// It lives.
    pub fn beat(&self) {
        self.tell("WATCHDOG=1");
    }

    /// It is about to end.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    fn tell(&self, words: &str) {
        if let Some((socket, address)) = &self.told
            && let Err(error) = socket.send_to_addr(words.as_bytes(), address)
        {
            say::line(
                Level::Warning,
                "manager",
                None,
                format_args!("telling the service manager {}: {error}", words.lines().next().unwrap_or_default()),
            );
        }
    }
}

/// A path, or a name in the abstract namespace with `@` for its NUL byte.
fn address(name: &OsStr) -> Result<SocketAddr> {
    let made = match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => bail!(
            "NOTIFY_SOCKET is {name:?}, neither a path nor an abstract name; start apexd without it where no service manager listens"
        ),
    };
    made.with_context(|| format!("NOTIFY_SOCKET is {name:?}"))
}

type Variable<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// A number that is there.
fn number(variable: Variable<'_>, name: &str) -> Result<Option<u64>> {
    let Some(word) = variable(name) else { return Ok(None) };
    match word.to_str().and_then(|word| word.parse().ok()) {
        Some(number) => Ok(Some(number)),
        None => bail!("{name} is {word:?}, which is no number: whatever starts apexd sets it wrongly"),
    }
}

/// How many descriptors are meant for this process: they may have been for one that started it.
fn handed(variable: Variable<'_>, own: u32) -> Result<u64> {
    if number(variable, "LISTEN_PID")? != Some(own.into()) {
        return Ok(0);
    }
    Ok(number(variable, "LISTEN_FDS")?.unwrap_or(0))
}

/// Within which time it must beat. Without a pid it is meant for whoever has the variable.
fn watchdog(variable: Variable<'_>, own: u32) -> Result<Option<Duration>> {
    if number(variable, "WATCHDOG_PID")?.is_some_and(|pid| pid != u64::from(own)) {
        return Ok(None);
    }
    Ok(number(variable, "WATCHDOG_USEC")?.filter(|time| *time > 0).map(Duration::from_micros))
}

/// Descriptor 3, which must be what it is said to be; the number is closed, so that the warden does not have it.
fn listener() -> Result<UnixListener> {
    let given = fs::borrow(FIRST).context("descriptor 3 was to be handed over (LISTEN_FDS) and is not open")?;
    let own: OwnedFd = given.try_clone_to_owned().context("taking over descriptor 3")?;
    process::close_from(FIRST as u32, FIRST as u32, false).context("closing descriptor 3")?;
    let is_stream = getsockopt(&own, sockopt::SockType).is_ok_and(|kind| kind == SockType::Stream);
    let is_listening = getsockopt(&own, sockopt::AcceptConn).is_ok_and(|listens| listens);
    if !is_stream || !is_listening || getsockname::<UnixAddr>(own.as_fd().as_raw_fd()).is_err() {
        bail!(
            "descriptor 3, which was handed over (LISTEN_FDS), is no unix stream socket that listens; its socket unit needs ListenStream=/PATH"
        );
    }
    let listener = UnixListener::from(own);
    listener.set_nonblocking(true).context("taking over descriptor 3")?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<'a>(set: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<OsString> + 'a {
        move |name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
    }

    #[test]
    fn descriptors_are_for_the_pid_that_is_named() {
        let check =
            |set: &[(&str, &str)], expected: u64| assert_eq!(handed(&with(set), 7).unwrap(), expected, "{set:?}");
        check(&[], 0);
        check(&[("LISTEN_PID", "7"), ("LISTEN_FDS", "1")], 1);
        check(&[("LISTEN_PID", "7"), ("LISTEN_FDS", "3")], 3);
        check(&[("LISTEN_PID", "8"), ("LISTEN_FDS", "1")], 0);
        check(&[("LISTEN_FDS", "1")], 0);
        check(&[("LISTEN_PID", "7")], 0);
    }

    #[test]
    fn what_is_no_number_is_an_error() {
        for set in [[("LISTEN_PID", "7"), ("LISTEN_FDS", "one")], [("LISTEN_PID", "me"), ("LISTEN_FDS", "1")]] {
            assert!(handed(&with(&set), 7).is_err(), "{set:?}");
        }
        assert!(watchdog(&with(&[("WATCHDOG_USEC", "-5")]), 7).is_err());
        assert!(watchdog(&with(&[("WATCHDOG_USEC", "")]), 7).is_err());
    }

    #[test]
    fn the_watchdog_is_for_the_pid_that_is_named_or_for_all() {
        let check = |set: &[(&str, &str)], seconds: Option<u64>| {
            assert_eq!(watchdog(&with(set), 7).unwrap(), seconds.map(Duration::from_secs), "{set:?}");
        };
        check(&[], None);
        check(&[("WATCHDOG_USEC", "30000000")], Some(30));
        check(&[("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", "7")], Some(30));
        check(&[("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", "8")], None);
        check(&[("WATCHDOG_USEC", "0")], None);
    }

    #[test]
    fn the_manager_listens_at_a_path_or_an_abstract_name() {
        assert_eq!(address(OsStr::new("/run/n")).unwrap().as_pathname(), Some("/run/n".as_ref()));
        assert_eq!(address(OsStr::new("@n")).unwrap().as_abstract_name(), Some(b"n".as_slice()));
        for word in ["", "run/n", "vsock:2:1"] {
            assert!(address(OsStr::new(word)).is_err(), "{word}");
        }
    }

    #[test]
    fn it_beats_twice_in_the_time_of_the_watchdog() {
        let manager = Manager { watchdog: Some(Duration::from_secs(30)), ..Manager::default() };
        assert_eq!(manager.beat_every(), Some(Duration::from_secs(15)));
        assert_eq!(Manager::default().beat_every(), None);
    }
}

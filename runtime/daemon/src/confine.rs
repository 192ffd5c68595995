//! The API process confines itself: Landlock over files, and the filter of [`apex_core::seccomp::daemon`]. Also without root.
//!
//! Before there is a second thread, and after everything that needs more: the socket, the lock. Only the lack of Landlock in a kernel is borne, and told; whatever
//! else fails is an error, since a daemon that thinks it is confined is worse than none.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::say::{self, Level};
use anyhow::{Context, Result};
use apex_core::seccomp::{Arch, daemon};
use apex_sys::{prctl, seccomp};
use landlock::{ABI, Access, AccessFs, AccessNet, BitFlags, Scope};

/// The ABIs whose rights are known, by number.
const ABI_KNOWN: [ABI; 7] = [ABI::Unsupported, ABI::V1, ABI::V2, ABI::V3, ABI::V4, ABI::V5, ABI::V6];

/// What the process has to do with files.
pub struct Reach {
    /// The state directory: everything but executing.
    pub state: PathBuf,
    /// A directory to take the socket out of at the end, where that is possible at all.
    pub socket_dir: Option<PathBuf>,
    /// A file of rules elsewhere than in /etc.
    pub access: Option<PathBuf>,
}

/// Puts both in force for this thread and those that it starts.
pub fn confine(reach: &Reach) -> Result<()> {
    confine_to(reach, prctl::landlock_abi())
}

fn confine_to(reach: &Reach, abi: u32) -> Result<()> {
    match abi {
        0 => say::line(
            Level::Warning,
            "confine",
            None,
            format_args!(
                "this kernel has no Landlock: files that are open to apexd's user are open to its API process"
            ),
        ),
        number => landlock(reach, ABI_KNOWN[(number as usize).min(ABI_KNOWN.len() - 1)])?,
    }
    let arch = Arch::native().context("a filter of system calls: there is none for this machine")?;
    let program = daemon::program(arch.abi(), std::process::id());
    let program: Vec<_> = program
        .into_iter()
        .map(|insn| seccomp::Filter { code: insn.code, jt: insn.jt, jf: insn.jf, k: insn.k })
        .collect();
    // Last: it refuses what the lines above need.
    seccomp::load(&program, false).map(drop).context("putting the filter of system calls in force")
}

fn landlock(reach: &Reach, abi: ABI) -> Result<()> {
    let files = AccessFs::from_all(abi);
    let read = AccessFs::ReadFile.into();
    let look = AccessFs::ReadFile | AccessFs::ReadDir;
    let keep = files & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeSym);
    let rules = prctl::landlock_ruleset(files.bits(), AccessNet::from_all(abi).bits(), Scope::from_all(abi).bits());
    let rules = rules.context("making a Landlock ruleset")?;
    let allow = |path: &Path, rights: BitFlags<AccessFs>| -> Result<()> {
        let place = open(path)?;
        prctl::landlock_allow_beneath(rules.as_fd(), place.as_fd(), (rights & files).bits())
            .with_context(|| format!("granting {} to the API process", path.display()))
    };
    allow(&reach.state, keep)?;
    // The directory and not the files of users in it: those are replaced whenever a user is added.
    allow(Path::new("/etc"), read)?;
    allow(Path::new("/proc"), look)?;
    allow(Path::new("/sys"), look)?;
    allow(Path::new("/dev/null"), AccessFs::ReadFile | AccessFs::WriteFile)?;
    allow(Path::new("/dev/urandom"), read)?;
    if let Some(dir) = &reach.socket_dir {
        allow(dir, AccessFs::RemoveFile.into())?;
    }
    // One that is not there is an error of whoever reads it, in better words.
    if let Some(path) = reach.access.as_deref().filter(|path| path.exists()) {
        allow(path, read)?;
    }
    prctl::landlock_restrict(rules.as_fd()).context("putting Landlock in force")
}

fn open(path: &Path) -> Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    let opened = File::options().read(true).custom_flags(nix::libc::O_PATH).open(path);
    opened.map(OwnedFd::from).with_context(|| format!("opening {} for a Landlock rule", path.display()))
}

/// What is in force for this process, as the kernel tells it of every thread.
pub fn in_force() -> String {
    let statuses: Vec<String> = std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("status")).ok())
        .collect();
    let all = |name: &str| values(&statuses, name);
    // Landlock is in no file of /proc; but nothing else keeps this process from listing the root.
    let landlock = match std::fs::read_dir("/") {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => "yes",
        _ => "no",
    };
    format!(
        "uid {}, capabilities {}, no_new_privs {}, seccomp {}, landlock {landlock}",
        nix::unistd::geteuid(),
        all("CapPrm"),
        all("NoNewPrivs"),
        all("Seccomp"),
    )
}

/// A field of all threads; one value where they agree.
fn values(statuses: &[String], name: &str) -> String {
    let field = |status: &String| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(|rest| rest.trim().trim_start_matches('0'))
            .map(|rest| if rest.is_empty() { "0" } else { rest }.to_owned())
    };
    let mut found: Vec<String> = statuses.iter().filter_map(field).collect();
    found.sort_unstable();
    found.dedup();
    if found.is_empty() { "unknown".to_owned() } else { found.join(" or ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::os::unix::net::{UnixListener, UnixStream};

    /// In a thread that is confined as the API process is, with a state directory; a thread confines itself alone.
    fn confined(name: &str, abi: u32, body: impl FnOnce(&Path) + Send + 'static) {
        let dir = std::env::temp_dir().join(format!("apexd-confine-{name}-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("state")).unwrap();
        let reach = Reach { state: dir.join("state"), socket_dir: None, access: None };
        let thread = std::thread::spawn(move || {
            prctl::set_no_new_privs().unwrap();
            confine_to(&reach, abi).unwrap();
            body(&reach.state);
        });
        let outcome = thread.join();
        std::fs::remove_dir_all(dir).unwrap();
        outcome.unwrap();
    }

    #[test]
    fn no_program_is_executed_and_no_network_reached() {
        confined("calls", prctl::landlock_abi(), |state| {
            let kind = |error: std::io::Error| error.raw_os_error();
            let denied = Some(nix::libc::EPERM);
            assert_eq!(kind(std::process::Command::new("/bin/true").spawn().map(drop).unwrap_err()), denied);
            assert_eq!(kind(std::net::TcpListener::bind("127.0.0.1:0").map(drop).unwrap_err()), denied);
            assert_eq!(kind(std::net::UdpSocket::bind("127.0.0.1:0").map(drop).unwrap_err()), denied);
            assert_eq!(nix::sys::signal::kill(nix::unistd::Pid::this(), None), Err(nix::errno::Errno::EPERM));
            // What it lives on is there: sockets, threads, files of its own.
            let listener = UnixListener::bind(state.join("s")).unwrap();
            UnixStream::connect(state.join("s")).unwrap();
            drop(listener);
            assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
            std::fs::write(state.join("file"), "text").unwrap();
            std::fs::rename(state.join("file"), state.join("other")).unwrap();
            assert!(std::fs::read_to_string("/etc/passwd").unwrap().contains("root"));
            assert!(std::fs::read_to_string("/proc/self/status").unwrap().contains("Seccomp"));
        });
    }

    #[test]
    fn files_elsewhere_are_out_of_reach() {
        let abi = prctl::landlock_abi();
        if abi == 0 {
            eprintln!("skipped: this kernel has no Landlock");
            return;
        }
        // Also with the rights of an older kernel.
        for abi in [abi, 1, 3] {
            confined("files", abi, |state| {
                let denied = |error: std::io::Error| error.kind() == ErrorKind::PermissionDenied;
                assert!(denied(std::fs::read_dir("/").map(drop).unwrap_err()));
                assert!(denied(std::fs::read_dir("/etc").map(drop).unwrap_err()));
                assert!(denied(std::fs::read("/bin/sh").map(drop).unwrap_err()));
                assert!(denied(std::fs::write(state.with_file_name("beside"), "").unwrap_err()));
                assert!(denied(std::fs::remove_dir(state).unwrap_err()));
                assert!(denied(File::options().write(true).open("/etc/passwd").map(drop).unwrap_err()));
                assert!(denied(File::options().write(true).open("/proc/self/comm").map(drop).unwrap_err()));
            });
        }
    }

    #[test]
    fn threads_that_differ_are_told() {
        let status = |seccomp: u32| format!("Name:\tx\nCapPrm:\t0000000000000000\nSeccomp:\t{seccomp}\n");
        assert_eq!(values(&[status(2), status(2)], "Seccomp"), "2");
        assert_eq!(values(&[status(2), status(0)], "Seccomp"), "0 or 2");
        assert_eq!(values(&[status(2)], "CapPrm"), "0");
        assert_eq!(values(&[], "Seccomp"), "unknown");
    }
}

//! Running other programs: each failure names the command line that failed.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How often a running child is asked whether it has ended.
const POLL_MS: u64 = 200;

/// The folder of the workspace: where this program was built, or the copy that `APEX_REPO` names.
pub fn root() -> PathBuf {
    if let Some(copy) = std::env::var_os("APEX_REPO") {
        return PathBuf::from(copy);
    }
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_path_buf()
}

/// The cargo that runs us, in the folder of the workspace.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Whether we run as root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Where `program` is found in PATH.
pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Runs a command with our own streams; anything but success is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", line(command)))?;
    check(command, status)
}

/// Runs a command, hands over each line of its output (both streams, in order) as it comes, and returns how it ended.
///
/// Orphans that were adopted meanwhile are reaped: the first process of a pid namespace cannot end before those of it who were entered from outside are.
///
/// Ends when the child has ended, even when a grandchild still holds the pipe: a leak must be reported, not waited for.
/// After `limit` the child's process group is killed.
pub fn stream(command: &mut Command, limit: Duration, mut each: impl FnMut(&str)) -> Result<ExitStatus> {
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let second = writer.try_clone().context("cannot duplicate a pipe")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(second)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run {}", line(command)))?;
    // The command holds the writing ends; without this the pipe would never close.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let (sender, lines) = mpsc::sync_channel(1024);
    std::thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n') {
            let Ok(line) = line else { return };
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    let deadline = Instant::now() + limit;
    loop {
        reap_orphans(child.id());
        match lines.recv_timeout(Duration::from_millis(POLL_MS)) {
            Ok(line) => each(&line),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) if child.try_wait()?.is_some() => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        if Instant::now() > deadline {
            kill_group(&mut child);
            bail!("{} did not end within {} s and was killed", line(command), limit.as_secs());
        }
    }
    child.wait().with_context(|| format!("cannot wait for {}", line(command)))
}

/// Reaps children of this process but `own`; those that live are left alone.
fn reap_orphans(own: u32) {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    for pids in children {
        for pid in pids.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()) {
            if pid.unsigned_abs() != own {
                // Alive, or somebody waited for it.
                let _ = nix::sys::wait::waitpid(Pid::from_raw(pid), Some(nix::sys::wait::WaitPidFlag::WNOHANG));
            }
        }
    }
}

fn kill_group(child: &mut Child) {
    let group = Pid::from_raw(child.id().cast_signed());
    // It may have ended in between; then there is nothing left to kill.
    let _gone = killpg(group, Signal::SIGKILL);
    let _status = child.wait();
}

fn check(command: &Command, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("{} failed: {status}", line(command));
    }
    Ok(())
}

/// The command as a person would type it.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

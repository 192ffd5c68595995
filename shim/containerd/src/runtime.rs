//! The OCI runtime, driven by its command line, which runc, crun and apex-oci share.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::bundle::{Transient, read_bounded};
use crate::io::Ends;
use crate::options::Options;
use crate::reaper::{Exit, Reaper};

/// What makes a process may wait for hooks.
const BUILD_LIMIT: Duration = Duration::from_secs(600);
/// Everything else.
const CONTROL_LIMIT: Duration = Duration::from_secs(60);
/// What a runtime may print; the pids of a container are the longest.
const OUTPUT_BYTES_MAX: usize = 4 << 20;
/// What it may log.
const LOG_BYTES_MAX: u64 = 1 << 20;
/// Of its words, what is passed on.
const WORDS_MAX: usize = 4096;

/// Why the runtime did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// It is not there or cannot be executed.
    #[error("cannot start the runtime {} to {intent}: {source}", binary.display())]
    Start {
        /// The runtime.
        binary: PathBuf,
        /// What for.
        intent: &'static str,
        /// The errno.
        source: io::Error,
    },
    /// It refused or failed.
    #[error("{} cannot {intent} {container}: {words}", binary.display())]
    Failed {
        /// The runtime.
        binary: PathBuf,
        /// What it was asked to do.
        intent: &'static str,
        /// With which container.
        container: String,
        /// What it said.
        words: String,
    },
    /// It did not end.
    #[error("{} did not {intent} {container} within {limit_s} s and was killed", binary.display())]
    Late {
        /// The runtime.
        binary: PathBuf,
        /// What it was asked to do.
        intent: &'static str,
        /// With which container.
        container: String,
        /// How long it had.
        limit_s: u64,
    },
    /// It printed what cannot be read.
    #[error("what {} printed to {intent} cannot be read: {source}", binary.display())]
    Output {
        /// The runtime.
        binary: PathBuf,
        /// What it was asked to do.
        intent: &'static str,
        /// The reason.
        source: io::Error,
    },
}

impl RuntimeError {
    /// Whether it says that there is no such container or process, in the words of runc and crun. What cannot be made is another thing:
    /// a program that is not in the image is not found either.
    pub fn says_gone(&self) -> bool {
        let RuntimeError::Failed { intent, words, .. } = self else { return false };
        let signs = ["does not exist", "no such process", "No such process", "process already finished", "not running"];
        // crun: the file of the container's state or its directory cannot be opened.
        let is_of_state = words.contains("/status") || words.contains("cannot open directory");
        let has_no_state = is_of_state && words.contains("No such file or directory");
        !["create", "start", "exec in"].contains(intent)
            && (has_no_state || signs.iter().any(|sign| words.contains(sign)))
    }
}

/// How the runtime is to make a process.
#[derive(Debug)]
pub struct Making<'a> {
    /// Where it writes the pid.
    pub pid_file: &'a Path,
    /// Where it sends the terminal.
    pub console: Option<&'a Path>,
    /// The streams, without a terminal.
    pub ends: Option<Ends>,
}

/// The runtime of one container.
#[derive(Clone, Debug)]
pub struct Runtime {
    options: Options,
    bundle: PathBuf,
    container: String,
    reaper: Arc<Reaper>,
}

struct Done {
    exit: Exit,
    output: Vec<u8>,
}

#[derive(Deserialize)]
struct LogLine {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
}

impl Runtime {
    /// For this container, whose bundle is there.
    pub fn new(options: Options, bundle: &Path, container: &str, reaper: Arc<Reaper>) -> Self {
        Runtime { options, bundle: bundle.to_path_buf(), container: container.to_owned(), reaper }
    }

    /// Makes the container; its process waits.
    pub async fn create(&self, making: Making<'_>) -> Result<(), RuntimeError> {
        let (mut command, log) = self.command();
        command.arg("create").arg("--bundle").arg(&self.bundle).arg("--pid-file").arg(making.pid_file);
        if self.options.no_pivot {
            command.arg("--no-pivot");
        }
        if self.options.no_new_keyring {
            command.arg("--no-new-keyring");
        }
        self.make(command, log, making, "create").await
    }

    /// Runs one more process in it, as a file describes.
    pub async fn exec(&self, process: &Path, making: Making<'_>) -> Result<(), RuntimeError> {
        let (mut command, log) = self.command();
        command.arg("exec").arg("--process").arg(process).arg("--pid-file").arg(making.pid_file).arg("--detach");
        if making.console.is_some() {
            command.arg("--tty");
        }
        self.make(command, log, making, "exec in").await
    }

    /// Lets the process of the container run.
    pub async fn start(&self) -> Result<(), RuntimeError> {
        self.control("start", &[], BUILD_LIMIT).await.map(drop)
    }

    /// Signals the first process, or all.
    pub async fn kill(&self, signal: u32, all: bool) -> Result<(), RuntimeError> {
        let (mut command, log) = self.command();
        command.arg("kill");
        if all {
            command.arg("--all");
        }
        command.arg(&self.container).arg(signal.to_string());
        self.finish(command, log, "kill", CONTROL_LIMIT).await.map(drop)
    }

    /// Removes what is left of it; by force also while it runs.
    pub async fn delete(&self, force: bool) -> Result<(), RuntimeError> {
        let flags: &[&str] = if force { &["--force"] } else { &[] };
        self.control("delete", flags, CONTROL_LIMIT).await.map(drop)
    }

    /// Freezes it.
    pub async fn pause(&self) -> Result<(), RuntimeError> {
        self.control("pause", &[], CONTROL_LIMIT).await.map(drop)
    }

    /// Thaws it.
    pub async fn resume(&self) -> Result<(), RuntimeError> {
        self.control("resume", &[], CONTROL_LIMIT).await.map(drop)
    }

    /// Gives it the limits of a file.
    pub async fn update(&self, resources: &Path) -> Result<(), RuntimeError> {
        let (mut command, log) = self.command();
        command.arg("update").arg("--resources").arg(resources).arg(&self.container);
        self.finish(command, log, "update", CONTROL_LIMIT).await.map(drop)
    }

    /// The pids of its processes.
    pub async fn pids(&self) -> Result<Vec<u32>, RuntimeError> {
        let output = self.control("ps", &["--format", "json"], CONTROL_LIMIT).await?;
        let unreadable = |source: serde_json::Error| self.unreadable("ps", source.into());
        // runc says null of a container without processes.
        serde_json::from_slice::<Option<Vec<u32>>>(&output).map(Option::unwrap_or_default).map_err(unreadable)
    }

    /// The call as far as all have it, and the file of its log.
    fn command(&self) -> (Command, Transient) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let log = self.bundle.join(format!(".apex-log-{}-{number}.json", std::process::id()));
        let mut command = Command::new(&self.options.binary);
        command.arg("--root").arg(&self.options.root).arg("--log").arg(&log).args(["--log-format", "json"]);
        if self.options.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        // What containerd told the shim is not for the runtime and its hooks.
        for name in ["TTRPC_ADDRESS", "GRPC_ADDRESS", "NAMESPACE", "MAX_SHIM_VERSION", "SCHED_CORE"] {
            command.env_remove(name);
        }
        command.current_dir(&self.bundle).stdin(Stdio::null());
        (command, Transient(log))
    }

    async fn control(&self, verb: &'static str, flags: &[&str], limit: Duration) -> Result<Vec<u8>, RuntimeError> {
        let (mut command, log) = self.command();
        command.arg(verb).args(flags).arg(&self.container);
        self.finish(command, log, verb, limit).await
    }

    /// Runs a command that prints, to its end.
    async fn finish(
        &self,
        mut command: Command,
        log: Transient,
        intent: &'static str,
        limit: Duration,
    ) -> Result<Vec<u8>, RuntimeError> {
        let pipe = |source| RuntimeError::Start { binary: self.options.binary.clone(), intent, source };
        let (reader, writer) = io::pipe().map_err(pipe)?;
        let errors = writer.try_clone().map_err(pipe)?;
        command.stdout(writer).stderr(errors);
        let done = self.run(command, Some(reader.into()), intent, limit).await?;
        self.judge(&done, &log.0, intent)?;
        Ok(done.output)
    }

    /// Runs a command whose streams are the container's.
    async fn make(
        &self,
        mut command: Command,
        log: Transient,
        making: Making<'_>,
        intent: &'static str,
    ) -> Result<(), RuntimeError> {
        if let Some(console) = making.console {
            command.arg("--console-socket").arg(console);
        }
        command.arg(&self.container);
        match making.ends {
            Some(ends) => command.stdin(ends.stdin).stdout(ends.stdout).stderr(ends.stderr),
            None => command.stdout(Stdio::null()).stderr(Stdio::null()),
        };
        let done = self.run(command, None, intent, BUILD_LIMIT).await?;
        self.judge(&done, &log.0, intent)
    }

    async fn run(
        &self,
        mut command: Command,
        output: Option<OwnedFd>,
        intent: &'static str,
        limit: Duration,
    ) -> Result<Done, RuntimeError> {
        log::debug!("runtime: {:?}", command.get_args().collect::<Vec<&OsStr>>());
        let start = |source| RuntimeError::Start { binary: self.options.binary.clone(), intent, source };
        let (spawned, end) = self.reaper.spawn(&mut command).map_err(start)?;
        // The streams are the child's now; an end that stays here would never end.
        drop(command);
        let whole = async {
            let reader = output.map(pipe::Receiver::from_owned_fd).transpose();
            let mut reader = reader.map_err(|source| self.unreadable(intent, source))?;
            let (exit, output) =
                follow(end, reader.as_mut()).await.map_err(|source| self.unreadable(intent, source))?;
            Ok(Done { exit, output })
        };
        match tokio::time::timeout(limit, whole).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => {
                spawned.signal(Signal::SIGKILL);
                Err(error)
            }
            Err(_) => {
                spawned.signal(Signal::SIGKILL);
                let (binary, container) = (self.options.binary.clone(), self.container.clone());
                Err(RuntimeError::Late { binary, intent, container, limit_s: limit.as_secs() })
            }
        }
    }

    fn unreadable(&self, intent: &'static str, source: io::Error) -> RuntimeError {
        RuntimeError::Output { binary: self.options.binary.clone(), intent, source }
    }

    fn judge(&self, done: &Done, log: &Path, intent: &'static str) -> Result<(), RuntimeError> {
        if done.exit.status == 0 {
            return Ok(());
        }
        let words = words(log, &done.output).unwrap_or_else(|| format!("it said nothing, exit {}", done.exit.status));
        let (binary, container) = (self.options.binary.clone(), self.container.clone());
        Err(RuntimeError::Failed { binary, intent, container, words })
    }
}

/// Reads what a process prints until it ends. A hook that it left behind may hold the pipe for ever, so its end is not waited for.
async fn follow(
    mut end: oneshot::Receiver<Exit>,
    mut reader: Option<&mut pipe::Receiver>,
) -> io::Result<(Exit, Vec<u8>)> {
    let mut output = Vec::new();
    let exit = loop {
        let Some(open) = reader.as_mut() else { break (&mut end).await };
        tokio::select! {
            biased;
            exit = &mut end => break exit,
            count = open.read_buf(&mut output) => {
                if count? == 0 {
                    reader = None;
                }
            }
        }
        if output.len() > OUTPUT_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is too long"));
        }
    };
    while let Some(open) = reader.as_mut().filter(|_| output.len() <= OUTPUT_BYTES_MAX) {
        match open.try_read_buf(&mut output) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    // The reaper lives as long as the shim.
    Ok((exit.unwrap_or_else(|_| Exit::unknown()), output))
}

/// What a runtime said last: the last error of its log, else what it printed.
fn words(log: &Path, output: &[u8]) -> Option<String> {
    let log = read_bounded(log, LOG_BYTES_MAX).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let mut lines = log.lines().rev().filter_map(|line| serde_json::from_str::<LogLine>(line).ok());
    let logged = lines.find(|line| line.level == "error" || line.level == "fatal").map(|line| line.msg);
    let printed = || String::from_utf8_lossy(output).trim().to_owned();
    let words = logged.unwrap_or_else(printed);
    (!words.is_empty()).then(|| words.chars().take(WORDS_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(log: &str, output: &str, expected: Option<&str>) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let file = Transient(std::env::temp_dir().join(format!("apex-shim-log-{}-{number}", std::process::id())));
        std::fs::write(&file.0, log).unwrap();
        assert_eq!(words(&file.0, output.as_bytes()).as_deref(), expected);
    }

    #[test]
    fn the_last_error_of_the_log_is_what_it_said() {
        let log = "{\"level\":\"error\",\"msg\":\"one\"}\n{\"level\":\"error\",\"msg\":\"two\"}\n{\"level\":\"info\",\"msg\":\"x\"}\n";
        check(log, "printed", Some("two"));
        check("not json\n", "printed\n", Some("printed"));
        check("", "", None);
    }

    #[test]
    fn a_container_that_is_gone_is_told_from_other_failures() {
        let failed_to = |intent: &'static str, words: &str| RuntimeError::Failed {
            binary: PathBuf::from("/r"),
            intent,
            container: "c".to_owned(),
            words: words.to_owned(),
        };
        let failed = |words: &str| failed_to("kill", words);
        assert!(failed("container does not exist").says_gone());
        assert!(failed("error opening file `/run/x/status`: No such file or directory").says_gone());
        assert!(!failed_to("create", "exec: \"x\": executable file not found, does not exist").says_gone());
        assert!(failed("container not running").says_gone());
        assert!(!failed("permission denied").says_gone());
    }
}

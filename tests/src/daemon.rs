//! A daemon of the test's own, driven through its command as a user would.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::sandbox::{self, Output};
use crate::{TempDir, apex_run, has_cgroup, leaks};

/// How long anything that the daemon does may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

/// The program of that name beside `apex-run`.
pub fn beside(name: &str) -> PathBuf {
    let path = apex_run().with_file_name(name);
    assert!(path.exists(), "{} is not there: build it with `cargo build -p apexd -p apex-cli`", path.display());
    path
}

/// The daemon. Dropped, it and its sandboxes are ended.
pub struct Daemon {
    dir: TempDir,
    child: Child,
    args: Vec<String>,
}

impl Daemon {
    /// Starts one.
    #[track_caller]
    pub fn start(args: &[&str]) -> Daemon {
        leaks::look_before();
        let dir = TempDir::new();
        let args: Vec<String> = args.iter().map(|word| (*word).to_owned()).collect();
        let child = spawn(&dir, &args);
        let daemon = Daemon { dir, child, args };
        daemon.until_ready();
        daemon
    }

    /// The directory that it and its test share.
    pub fn dir(&self) -> &TempDir {
        &self.dir
    }

    /// Its socket.
    pub fn socket(&self) -> String {
        self.dir.at("s")
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    #[track_caller]
    fn until_ready(&self) {
        let end = Instant::now() + PATIENCE;
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            let words = std::fs::read_to_string(self.dir.at("apexd.err")).unwrap_or_default();
            assert!(Instant::now() < end, "apexd does not listen: {words}");
            std::thread::sleep(POLL);
        }
    }

    /// Ends the daemon by SIGKILL and starts it anew. The sandboxes know nothing of it.
    #[track_caller]
    pub fn kill_and_restart(&mut self) {
        self.child.kill().expect("it is ours");
        self.restart();
    }

    /// Starts it anew once it has ended.
    #[track_caller]
    pub fn restart(&mut self) {
        sandbox::wait(&mut self.child, PATIENCE).expect("it ends");
        self.child = spawn(&self.dir, &self.args);
        self.until_ready();
    }

    /// `apex ARGS`, to be spawned.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(beside("apex"));
        command.arg("--socket").arg(self.socket()).args(args).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The same as somebody else, who may not get at the program where it was built.
    pub fn command_as(&self, uid: u32, args: &[&str]) -> Command {
        let copy = self.dir.at("apex");
        std::fs::copy(beside("apex"), &copy).expect("the directory is ours");
        let mut command = Command::new(copy);
        command.arg("--socket").arg(self.socket()).args(args).uid(uid).gid(uid).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).current_dir("/");
        command
    }

    /// Runs `apex ARGS`.
    #[track_caller]
    pub fn apex(&self, args: &[&str]) -> Output {
        sandbox::collect(self.command(args).spawn().expect("apex starts"))
    }

    /// The same, whose answer is JSON.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        self.apex(&[&["--json"], args].concat()).expect_code(0).json()
    }

    /// `apex create ARGS -- COMMAND`; the id.
    #[track_caller]
    pub fn create(&self, args: &[&str], command: &[&str]) -> String {
        let output = self.apex(&[&["create"], lenient(), args, &["--"], command].concat()).expect_code(0);
        output.out().trim().to_owned()
    }

    /// Waits until a field of a sandbox is so.
    #[track_caller]
    pub fn until(&self, id: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let sandbox = self.json(&["inspect", id]);
            if is_so(&sandbox) {
                return sandbox;
            }
            assert!(Instant::now() < end, "it does not come to be so: {sandbox:#}");
            std::thread::sleep(POLL);
        }
    }

    /// The records of the audit log.
    #[track_caller]
    pub fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir.at("state/audit.jsonl")).expect("it is there");
        text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Also when the test fails, which has its own words by then; a daemon that is gone has nobody to end its sandboxes for. Groups first: they would start others.
        if let Ok(output) = self.command(&["--json", "groups"]).output()
            && let Ok(Value::Array(groups)) = serde_json::from_slice(&output.stdout)
        {
            for group in groups {
                let _ = self.command(&["down", group["name"].as_str().unwrap_or_default()]).output();
            }
        }
        if let Ok(output) = self.command(&["--json", "ls", "--all"]).output()
            && let Ok(Value::Array(sandboxes)) = serde_json::from_slice(&output.stdout)
        {
            for sandbox in sandboxes {
                let _ = self.command(&["rm", "-f", sandbox["id"].as_str().unwrap_or_default()]).output();
            }
        }
        let _ = kill(Pid::from_raw(self.pid()), Signal::SIGTERM);
        let _ = sandbox::wait(&mut self.child, PATIENCE);
    }
}

/// What a sandbox of this user must do without.
pub fn lenient() -> &'static [&'static str] {
    if has_cgroup() { &[] } else { &["--optional", "cgroup"] }
}

#[track_caller]
fn spawn(dir: &TempDir, args: &[String]) -> Child {
    let words =
        std::fs::File::options().create(true).append(true).open(dir.at("apexd.err")).expect("the directory is ours");
    let mut command = Command::new(beside("apexd"));
    command.arg("--socket").arg(dir.at("s")).arg("--state").arg(dir.at("state")).args(args);
    command.env("APEX_RUN", apex_run()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(words);
    command.spawn().expect("apexd starts")
}

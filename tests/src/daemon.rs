//! A daemon of the test's own, driven through its command as a user would.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::sandbox::{self, Output};
use crate::{TempDir, apex_run, has_cgroup, leaks, wire};

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
        Daemon::start_in(TempDir::new(), args)
    }

    /// Starts one in a directory that the test has prepared; what it finds in `state` there is its own.
    #[track_caller]
    pub fn start_in(dir: TempDir, args: &[&str]) -> Daemon {
        leaks::look_before();
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
        // The socket stands before the sandboxes of the daemon before are taken up.
        while !self.is_ready().unwrap_or(false) {
            let words = std::fs::read_to_string(self.dir.at("apexd.err")).unwrap_or_default();
            assert!(Instant::now() < end, "apexd does not listen: {words}");
            std::thread::sleep(POLL);
        }
    }

    fn is_ready(&self) -> std::io::Result<bool> {
        let mut stream = std::os::unix::net::UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: apex\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 200"))
    }

    /// Ends the daemon by SIGKILL and starts it anew. The sandboxes know nothing of it.
    #[track_caller]
    pub fn kill_and_restart(&mut self) {
        self.child.kill().expect("it is ours");
        self.restart();
    }

    /// The same with other arguments.
    #[track_caller]
    pub fn kill_and_restart_with(&mut self, args: &[&str]) {
        self.args = args.iter().map(|word| (*word).to_owned()).collect();
        self.kill_and_restart();
    }

    /// Starts it anew once it has ended.
    #[track_caller]
    pub fn restart(&mut self) {
        sandbox::wait(&mut self.child, PATIENCE).expect("it ends");
        self.child = spawn(&self.dir, &self.args);
        self.until_ready();
    }

    /// Ends it by SIGTERM. The sandboxes go on.
    #[track_caller]
    pub fn stop(&mut self) {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).expect("it runs");
        sandbox::wait(&mut self.child, PATIENCE).expect("it ends");
    }

    /// Starts it where something is wrong: what it says, once it has given up.
    #[track_caller]
    pub fn words_of_a_failing_start(&mut self) -> String {
        let before = self.words().len();
        self.child = spawn(&self.dir, &self.args);
        let status = sandbox::wait(&mut self.child, PATIENCE).expect("it gives up");
        assert_eq!(status.code(), Some(crate::APEX_FAILED));
        self.words().split_off(before)
    }

    /// What it has said on standard error.
    pub fn words(&self) -> String {
        std::fs::read_to_string(self.dir.at("apexd.err")).unwrap_or_default()
    }

    /// Bytes of memory that it has.
    #[track_caller]
    pub fn memory_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        kib.and_then(|kib| kib.parse::<u64>().ok()).expect("it has memory") << 10
    }

    /// Asks over REST, as the user of the test: status and body.
    #[track_caller]
    pub fn rest(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let request = wire::request(method, path, body.as_bytes());
        let answer = wire::say(std::path::Path::new(&self.socket()), &request).expect("it answers");
        let status = wire::status(&answer).expect("it is HTTP/1.1");
        let text = String::from_utf8_lossy(&answer).into_owned();
        (status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
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
        if !std::path::Path::new(&copy).exists() {
            std::fs::copy(beside("apex"), &copy).expect("the directory is ours");
        }
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

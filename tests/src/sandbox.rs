//! Runs `apex-run` and never waits without end.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use crate::attack::{self, Abi, Attack};
use crate::leaks::{self, Mark};
use crate::session::Session;
use crate::temp::TempDir;
use crate::{Mode, apex_run, has_cgroup};

/// After this a run counts as hung.
const PATIENCE: Duration = Duration::from_secs(40);
/// After the end of `apex-run`, whoever still holds its output outlived the sandbox.
const EOF_PATIENCE: Duration = Duration::from_secs(10);
/// The variable inside that carries the mark.
pub const MARK_VARIABLE: &str = "APEX_TEST_MARK";
const POLL: Duration = Duration::from_millis(3);
const OUTPUT_BYTES_MAX: u64 = 64 << 20;

/// What a run of `apex-run` gave.
pub struct Output {
    /// Pid that `apex-run` had.
    pub pid: u32,
    /// Exit code; 128 + n when signal n ended `apex-run` itself.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

/// Text as text: failing tests show it.
impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Output { pid, code, .. } = self;
        f.debug_struct("Output")
            .field("pid", pid)
            .field("code", code)
            .field("stdout", &self.out())
            .field("stderr", &self.err())
            .finish()
    }
}

impl Output {
    /// Standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Standard output as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {}\n{}", self.out(), self.err()))
    }

    /// Fails the test unless the exit code is this.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code\nstdout: {}\nstderr: {}", self.out(), self.err());
        self
    }

    /// Fails the test unless Apex refused with exit code 125 and standard error names each of `words`.
    #[track_caller]
    pub fn expect_refusal(self, words: &[&str]) -> Self {
        let output = self.expect_code(crate::APEX_FAILED);
        let text = output.err();
        assert!(!text.trim().is_empty(), "a refusal without a message");
        for word in words {
            assert!(text.contains(word), "the message lacks {word:?}: {text}");
        }
        output
    }

    /// The attack program's answer to `name`.
    #[track_caller]
    pub fn answer(&self, name: &str) -> String {
        attack::verdicts(&self.out())
            .remove(name)
            .unwrap_or_else(|| panic!("no answer to {name}\nstdout: {}\nstderr: {}", self.out(), self.err()))
    }
}

/// A command line of `apex-run` in the making.
#[derive(Clone, Debug)]
pub struct Sandbox {
    args: Vec<OsString>,
    prelude: String,
    stdin: Option<Vec<u8>>,
    env: Vec<(String, String)>,
    cwd: Arc<TempDir>,
    attack: Option<Arc<Attack>>,
    mark: Mark,
}

impl Sandbox {
    /// Isolation, an empty temporary directory as working directory outside, no input. As an unprivileged user without a
    /// delegated cgroup the cgroup layer is optional, because such a machine cannot give it.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        leaks::look_before();
        let cwd = Arc::new(TempDir::new());
        let sandbox = Sandbox {
            args: Vec::new(),
            prelude: String::new(),
            stdin: None,
            env: Vec::new(),
            attack: None,
            mark: Mark(cwd.path().file_name().expect("it has a name").to_string_lossy().into_owned()),
            cwd,
        };
        let marked = format!("{MARK_VARIABLE}={}", sandbox.mark.0);
        let sandbox = sandbox.arg("--env").arg(marked);
        if has_cgroup() { sandbox } else { sandbox.arg("--optional").arg("cgroup") }
    }

    /// With the attack program at [`attack::INSIDE`]; `None` where no C compiler was there to build it.
    pub fn with_attack() -> Option<Self> {
        let attack = Attack::get()?;
        let grant = format!("{}:{}", attack.dir().display(), attack::INSIDE);
        let mut sandbox = Sandbox::new().arg("--ro").arg(grant);
        sandbox.attack = Some(attack);
        Some(sandbox)
    }

    /// `--mode`.
    pub fn mode(self, mode: Mode) -> Self {
        self.arg("--mode").arg(mode.name())
    }

    /// One argument before the command.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Several.
    pub fn args<T: Into<OsString>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// `--ro HOST:DEST`.
    pub fn ro(self, host: &str, dest: &str) -> Self {
        self.arg("--ro").arg(format!("{host}:{dest}"))
    }

    /// `--rw HOST:DEST`.
    pub fn rw(self, host: &str, dest: &str) -> Self {
        self.arg("--rw").arg(format!("{host}:{dest}"))
    }

    /// `--deny PATH`.
    pub fn deny(self, path: &str) -> Self {
        self.arg("--deny").arg(path)
    }

    /// Bytes for standard input; without it standard input is empty.
    pub fn stdin(mut self, bytes: &[u8]) -> Self {
        self.stdin = Some(bytes.to_vec());
        self
    }

    /// A variable of `apex-run`'s own environment.
    pub fn caller_env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Shell code that prepares descriptors and limits and ends in `exec "$@"` (added here): `exec 9</etc/passwd;`.
    pub fn prelude(mut self, shell: &str) -> Self {
        self.prelude = shell.to_owned();
        self
    }

    /// Fails the test when a run that has ended left anything on the host.
    #[track_caller]
    pub fn expect_nothing_left(&self, output: &Output) {
        let left = leaks::left_by(&self.mark, output.pid);
        assert!(left.is_empty(), "left behind: {left:#?}\nby a run that ended so: {output:?}");
    }

    /// What tells this sandbox's processes from others.
    pub fn mark(&self) -> &Mark {
        &self.mark
    }

    /// The caller's working directory.
    pub fn cwd(&self) -> &Path {
        self.cwd.path()
    }

    /// The command to be spawned.
    pub fn command(&self, inside: &[&str]) -> Command {
        let mut command = if self.prelude.is_empty() {
            Command::new(apex_run())
        } else {
            let mut shell = Command::new("/bin/sh");
            shell.arg("-c").arg(format!("{} exec \"$@\"", self.prelude)).arg("sh").arg(apex_run());
            shell
        };
        command.args(&self.args).arg("--").args(inside).current_dir(self.cwd.path());
        // Policies speak of the home directory, and Apex holds names in it: the tester's own is left alone.
        command.env("HOME", self.cwd.path());
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs `inside` to its end.
    #[track_caller]
    pub fn run(&self, inside: &[&str]) -> Output {
        let mut command = self.command(inside);
        command.stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        if let (Some(bytes), Some(mut pipe)) = (self.stdin.clone(), child.stdin.take()) {
            // A command that ends without reading breaks the pipe; that is its business.
            std::thread::spawn(move || pipe.write_all(&bytes));
        }
        collect(child)
    }

    /// Runs the attack program with these arguments through `abi`.
    #[track_caller]
    pub fn attack(&self, abi: Abi, args: &[&str]) -> Output {
        let mut inside = vec![abi.program(), abi.flag()];
        inside.extend_from_slice(args);
        self.run(&inside)
    }

    /// Runs one attempt natively and returns the answer.
    #[track_caller]
    pub fn attempt(&self, line: &[&str]) -> String {
        self.attack(Abi::X64, line).answer(line[0])
    }

    /// A sandbox in which attempts are made one by one.
    #[track_caller]
    pub fn session(&self) -> Session {
        Session::start(self.server(), self.clone())
    }

    /// The same, where Apex may also refuse to start it: then its words.
    pub fn session_or_refusal(&self) -> Result<Session, String> {
        Session::start_or_refusal(self.server(), self.clone())
    }

    fn server(&self) -> Child {
        let mut command = self.command(&[Abi::X64.program(), "serve"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        spawn(&mut command)
    }

    /// Starts `inside`; the caller talks to it line by line.
    #[track_caller]
    pub fn start(&self, inside: &[&str]) -> Session {
        let mut command = self.command(inside);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Session::over(spawn(&mut command), self.clone())
    }
}

#[track_caller]
fn spawn(command: &mut Command) -> Child {
    command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"))
}

/// Waits for a child and its output, both bounded.
#[track_caller]
pub fn collect(child: Child) -> Output {
    collect_within(child, PATIENCE)
}

/// The same for a child that may take longer.
#[track_caller]
pub fn collect_within(mut child: Child, patience: Duration) -> Output {
    let pid = child.id();
    let stdout = child.stdout.take().map(read_aside);
    let stderr = child.stderr.take().map(read_aside);
    let status = wait(&mut child, patience);
    let code = status.map(exit_code);
    let stdout = gather(stdout, "standard output");
    let stderr = gather(stderr, "standard error");
    let Some(code) = code else {
        panic!(
            "hung for {patience:?} and was killed\nstdout: {}\nstderr: {}",
            String::from_utf8_lossy(&stdout),
            String::from_utf8_lossy(&stderr)
        )
    };
    Output { pid, code, stdout, stderr }
}

/// 128 + n for signal n, as shells say it.
pub fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Waits that long; after it the child is killed and `None` returned.
pub fn wait(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().expect("it is our child") {
            return Some(status);
        }
        if Instant::now() > end {
            child.kill().expect("it is our child");
            child.wait().expect("it is our child");
            return None;
        }
        std::thread::sleep(POLL);
    }
}

fn read_aside(pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error counts; the receiver is gone only when the test has failed already.
        let _ = pipe.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}

#[track_caller]
fn gather(receiver: Option<Receiver<Vec<u8>>>, what: &str) -> Vec<u8> {
    let Some(receiver) = receiver else {
        return Vec::new();
    };
    receiver
        .recv_timeout(EOF_PATIENCE)
        .unwrap_or_else(|_| panic!("a process outlived the sandbox: it still holds {what}"))
}

/// A file opened for reading, for handing to a command.
pub fn open(path: impl AsRef<Path>) -> File {
    let path = path.as_ref();
    File::open(path).unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()))
}

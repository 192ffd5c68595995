//! A running sandbox that is talked to line by line, so that the host can act between two attempts.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::sandbox::{Output, Sandbox, exit_code, wait};

const PATIENCE: Duration = Duration::from_secs(30);
const LINES_MAX: usize = 100_000;

/// A running `apex-run`.
#[derive(Debug)]
pub struct Session {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    errors: Receiver<String>,
    /// Keeps the granted directories of the test alive as long as the sandbox runs.
    _sandbox: Sandbox,
}

impl Session {
    /// Over a child whose three streams are pipes.
    pub fn over(mut child: Child, sandbox: Sandbox) -> Self {
        let input = child.stdin.take();
        let lines = lines_aside(child.stdout.take().expect("piped"));
        let errors = lines_aside(child.stderr.take().expect("piped"));
        Session { child, input, lines, errors, _sandbox: sandbox }
    }

    /// Over an attack program that serves attempts; waits until it is ready.
    #[track_caller]
    pub fn start(child: Child, sandbox: Sandbox) -> Self {
        let mut session = Session::over(child, sandbox);
        let line = session.line();
        assert_eq!(line, "ready ok", "{}", session.errors());
        session
    }

    /// The same, where Apex may also refuse to start it: then its words.
    pub fn start_or_refusal(child: Child, sandbox: Sandbox) -> Result<Self, String> {
        let session = Session::over(child, sandbox);
        match session.lines.recv_timeout(PATIENCE) {
            Ok(line) if line == "ready ok" => Ok(session),
            Ok(line) => Err(line),
            Err(_) => Err(session.wait_for_end().expect_code(crate::APEX_FAILED).err()),
        }
    }

    /// The next line of standard output.
    #[track_caller]
    pub fn line(&mut self) -> String {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(error) => {
                let text = self.errors();
                panic!("no line from the sandbox ({error}); standard error: {text}")
            }
        }
    }

    /// Waits for a line on standard error that holds `words`; those before it are gone then.
    #[track_caller]
    pub fn error_line(&mut self, words: &str) -> String {
        let mut before = String::new();
        loop {
            match self.errors.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(words) => return line,
                Ok(line) => before.push_str(&line),
                Err(error) => panic!("no {words:?} on standard error ({error}): {before}"),
            }
        }
    }

    /// Waits for this very line, skipping none.
    #[track_caller]
    pub fn expect_line(&mut self, wanted: &str) {
        let line = self.line();
        assert_eq!(line, wanted, "{}", self.errors());
    }

    /// Makes one attempt; the answer without its name.
    #[track_caller]
    pub fn ask(&mut self, attempt: &str) -> String {
        self.send(&format!("{attempt}\n"));
        let line = self.line();
        let (name, answer) = line.split_once(' ').unwrap_or((line.as_str(), ""));
        assert_eq!(Some(name), attempt.split(' ').next(), "answers out of step: {line}");
        answer.to_owned()
    }

    /// Makes one attempt that must succeed; returns the detail.
    #[track_caller]
    pub fn allowed(&mut self, attempt: &str) -> String {
        let answer = self.ask(attempt);
        assert!(answer == "ok" || answer.starts_with("ok "), "{attempt}: {answer}, but it should work");
        answer.strip_prefix("ok").map(str::trim_start).unwrap_or_default().to_owned()
    }

    /// Makes one attempt that must fail with an errno; returns its name.
    #[track_caller]
    pub fn refused(&mut self, attempt: &str) -> String {
        let answer = self.ask(attempt);
        assert!(answer.starts_with('E'), "{attempt}: {answer}, but it must be refused");
        answer.split(' ').next().unwrap_or_default().to_owned()
    }

    /// Writes to standard input.
    #[track_caller]
    pub fn send(&mut self, text: &str) {
        let sent = self.input.as_mut().expect("input is open").write_all(text.as_bytes());
        if let Err(error) = sent {
            let text = self.errors();
            panic!("the sandbox reads no more ({error}); standard error: {text}");
        }
    }

    /// Pid of `apex-run`.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid fits")
    }

    /// Sends a signal to `apex-run`.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("it runs, or is not reaped yet");
    }

    /// Closes standard input and waits for the end.
    #[track_caller]
    pub fn finish(mut self) -> Output {
        self.input = None;
        self.wait_for_end()
    }

    /// Waits for an end that comes by itself.
    #[track_caller]
    pub fn wait_for_end(mut self) -> Output {
        let pid = self.child.id();
        let status = wait(&mut self.child, PATIENCE);
        let stdout: Vec<u8> = drain(&self.lines).into_bytes();
        let stderr: Vec<u8> = drain(&self.errors).into_bytes();
        let Some(status) = status else { panic!("hung for {PATIENCE:?}: {}", String::from_utf8_lossy(&stderr)) };
        if status.signal().is_some() {
            crate::leaks::sweep(pid);
        }
        Output { pid, code: exit_code(status), stdout, stderr }
    }

    fn errors(&mut self) -> String {
        self.errors.try_iter().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A failing test must not leave its sandbox behind; both calls do nothing when it has ended.
        let _ = self.child.kill();
        let ended = self.child.wait();
        if ended.is_ok_and(|status| status.signal().is_some()) {
            crate::leaks::sweep(self.child.id());
        }
    }
}

/// Lines until the writers are gone; a writer that stays is a leak, which the timeout turns into a failure of the test.
fn drain(receiver: &Receiver<String>) -> String {
    let mut text = String::new();
    for _ in 0..LINES_MAX {
        match receiver.recv_timeout(PATIENCE) {
            Ok(line) => {
                text.push_str(&line);
                text.push('\n');
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return text,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                panic!("a process outlived the sandbox and holds its output")
            }
        }
    }
    text
}

fn lines_aside(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok).take(LINES_MAX) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

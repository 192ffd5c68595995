//! Runs a command in a sandbox under the ptrace source, as the caller or as a user without privilege, and reads what it told.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use apex_core::event::{Event, What};

use crate::sandbox::{self, Output};
use crate::{TempDir, as_root};

static JOB_64: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/job64"));
static JOB_32: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/job32"));

/// A user who owns nothing; no passwd entry is needed.
/// A user id that nobody has.
pub const NOBODY: u32 = 59_999;

/// A script of which every source tells the same: it runs programs on a connection, a pipe and nothing, and tries some that cannot be executed.
pub const STREAMS_AND_FAILURES: &str = r#"
import os, socket, subprocess
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
for stdin in (client, server, subprocess.PIPE, subprocess.DEVNULL):
    subprocess.run(["/bin/true"], stdin=stdin)
subprocess.run(["/bin/sh", "-c", "exec /bin/true <&-"])
for program in ("/etc/passwd", "/tmp/absent"):
    if os.fork() == 0:
        try: os.execv(program, ["tried", "-x"])
        except OSError: os._exit(0)
    os.wait()
"#;

/// Who starts the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// Whoever runs the tests.
    Caller,
    /// Somebody without privilege.
    Nobody,
}

impl User {
    /// All that can be tried: root can become somebody else, others cannot.
    pub fn all() -> &'static [User] {
        if as_root() { &[User::Caller, User::Nobody] } else { &[User::Caller] }
    }
}

/// A run with what was told of it.
#[derive(Debug)]
pub struct Traced {
    /// Exit code and output.
    pub output: Output,
    /// Events, in the order in which they were told.
    pub events: Vec<Event>,
    /// Lines that are no event: losses.
    pub losses: Vec<String>,
}

impl Traced {
    /// What was told, without who did it.
    pub fn what(&self) -> impl Iterator<Item = &What> {
        self.events.iter().map(|event| &event.what)
    }

    /// Programs by file, in the order of their execution.
    pub fn programs(&self) -> Vec<&str> {
        self.events
            .iter()
            .filter_map(|event| match &event.what {
                What::Exec { path, .. } if event.error.is_none() => Some(path.as_str()),
                _ => None,
            })
            .collect()
    }

    /// Fails unless each process that was born or executed something ended exactly once, and nothing was told of a process before its birth
    /// or after its end.
    #[track_caller]
    pub fn expect_whole_lives(&self) {
        use std::collections::HashSet;
        let mut alive: HashSet<u32> = self.events.first().map(|event| event.pid).into_iter().collect();
        for event in &self.events {
            assert!(alive.contains(&event.pid), "{event:?} by a process that is not alive");
            match event.what {
                What::Fork { child } => assert!(alive.insert(child), "{child} was born twice"),
                What::Exit { .. } => assert!(alive.remove(&event.pid)),
                _ => {}
            }
        }
        assert!(alive.is_empty(), "no end was told of {alive:?}");
        assert!(self.losses.is_empty(), "{:?}", self.losses);
    }
}

/// Where a run writes its events, in its home.
const EVENTS: &str = "events.json";

/// The command line of `traced SCOPE ARGS -- INSIDE`, with its streams as pipes. The tracer writes its pid to `events.tracer` in `home`, and keeps the
/// sandbox frozen while `events.frozen` is there.
pub fn command(user: User, home: &TempDir, scope: &str, args: &[&str], inside: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.arg(home.at(EVENTS)).arg(scope).args(args);
    if user == User::Nobody || !as_root() {
        command.args(["--optional", "cgroup"]);
    }
    command.arg("--").args(inside).current_dir(home.path()).env("HOME", home.path());
    if user == User::Nobody {
        chown(home.path(), Some(NOBODY), Some(NOBODY)).expect("we are root");
        command.uid(NOBODY).gid(NOBODY).env_remove("XDG_RUNTIME_DIR");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs `traced SCOPE ARGS -- INSIDE`; `off` as scope runs without a tracer.
#[track_caller]
pub fn run(user: User, scope: &str, args: &[&str], inside: &[&str]) -> Traced {
    let home = TempDir::new();
    let mut command = command(user, &home, scope, args, inside);
    let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let output = sandbox::collect(child);
    let text = fs::read_to_string(home.at(EVENTS)).unwrap_or_default();
    let (mut told, mut losses) = (Vec::new(), Vec::new());
    for line in text.lines() {
        match serde_json::from_str(line) {
            Ok(event) => told.push(event),
            Err(_) => losses.push(line.to_owned()),
        }
    }
    Traced { output, events: told, losses }
}

/// The program of `tests/traced/job.c`, unpacked to a directory that lives as long as a test holds it.
#[derive(Debug)]
pub struct Job(TempDir);

impl Job {
    /// For 64 or 32 bits; `None` where no C compiler was there.
    pub fn get(bits: u32) -> Option<Job> {
        let bytes = if bits == 32 { JOB_32 } else { JOB_64 };
        if bytes.is_empty() {
            return None;
        }
        let dir = TempDir::new();
        let path = dir.path().join("job");
        fs::write(&path, bytes).expect("we own it");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("we own it");
        Some(Job(dir))
    }

    /// Its directory.
    pub fn dir(&self) -> String {
        self.0.text()
    }

    /// The path of the program, outside and inside.
    pub fn path(&self) -> String {
        self.0.at("job")
    }

    /// Runs one of its jobs, once without a tracer and once with, and fails unless both print and return the same.
    #[track_caller]
    pub fn compare(&self, user: User, args: &[&str], job: &str) -> Traced {
        let dir = self.dir();
        let args: Vec<&str> = ["--ro", &dir].into_iter().chain(args.iter().copied()).collect();
        compare(user, &args, &[&self.path(), job])
    }
}

/// Runs a command once without a tracer and once with, and fails unless both print and return the same.
#[track_caller]
pub fn compare(user: User, args: &[&str], inside: &[&str]) -> Traced {
    let plain = run(user, "off", args, inside);
    let traced = run(user, "full", args, inside);
    let words = |traced: &Traced| (traced.output.code, traced.output.out(), traced.output.err());
    assert_eq!(words(&plain), words(&traced), "{user:?} {inside:?}");
    traced
}

/// The example beside the tests.
fn program() -> PathBuf {
    let own = std::env::current_exe().expect("/proc is mounted");
    let profile = own.parent().and_then(|deps| deps.parent()).expect("test binaries lie in TARGET/PROFILE/deps");
    profile.join("examples/traced")
}

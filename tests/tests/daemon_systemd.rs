//! The daemon under a service manager, which the test plays: it binds the socket for notifications, hands a listening socket over, and asks for a reload.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use apex_tests::daemon::beside;
use apex_tests::sandbox::{self, Output};
use apex_tests::{TempDir, apex_run, leaks};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The manager, and its service.
struct Manager {
    dir: TempDir,
    notified: UnixDatagram,
    child: Option<Child>,
}

impl Manager {
    fn new() -> Manager {
        leaks::look_before();
        let dir = TempDir::new();
        let notified = UnixDatagram::bind(dir.at("notify")).expect("the directory is ours");
        notified.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
        Manager { dir, notified, child: None }
    }

    /// Starts apexd with these variables; what is handed over becomes descriptor 3 of a process whose pid is named, as a manager does it.
    fn start(&mut self, variables: &[(&str, &str)], handed: Option<OwnedFd>, args: &[&str]) {
        let words = File::create(self.dir.at("err")).expect("the directory is ours");
        let mut command = Command::new("/bin/sh");
        let script = match handed {
            Some(_) => r#"export LISTEN_PID=$$; exec "$@" 3<&0 </dev/null"#,
            None => r#"exec "$@""#,
        };
        command.args(["-c", script, "sh"]).arg(beside("apexd"));
        command.arg("--socket").arg(self.dir.at("s")).arg("--state").arg(self.dir.at("state")).args(args);
        command.env("APEX_RUN", apex_run()).env("NOTIFY_SOCKET", self.dir.at("notify")).envs(variables.iter().copied());
        command.stdin(handed.map_or_else(Stdio::null, Stdio::from)).stdout(Stdio::null()).stderr(words);
        self.child = Some(command.spawn().expect("sh starts"));
    }

    fn pid(&self) -> i32 {
        self.child.as_ref().expect("it was started").id().cast_signed()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("it runs");
    }

    /// The next notification with this line, and all of it.
    #[track_caller]
    fn told(&self, line: &str) -> String {
        let end = Instant::now() + PATIENCE;
        let mut bytes = [0; 4096];
        while Instant::now() < end {
            let count =
                self.notified.recv(&mut bytes).unwrap_or_else(|error| panic!("{line}: {error}: {}", self.words()));
            let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
            if text.lines().any(|it| it == line) {
                return text;
            }
        }
        panic!("{line} does not come: {}", self.words());
    }

    fn words(&self) -> String {
        self.dir.read("err")
    }

    #[track_caller]
    fn apex(&self, args: &[&str]) -> Output {
        let mut command = Command::new(beside("apex"));
        command.arg("--socket").arg(self.dir.at("s")).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        sandbox::collect(command.spawn().expect("apex starts"))
    }

    /// Waits for its end; the exit code.
    #[track_caller]
    fn code(&mut self) -> Option<i32> {
        let child = self.child.as_mut().expect("it was started");
        sandbox::wait(child, PATIENCE).expect("it ends").code()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn it_tells_that_it_is_ready_that_it_lives_and_that_it_stops() {
    let mut manager = Manager::new();
    manager.start(&[("WATCHDOG_USEC", "400000")], None, &[]);
    assert!(manager.told("READY=1").contains("STATUS=takes requests"));
    UnixStream::connect(manager.dir.at("s")).expect("it listens when it says so");
    for _ in 0..5 {
        manager.told("WATCHDOG=1");
    }
    manager.signal(Signal::SIGTERM);
    manager.told("STOPPING=1");
    assert_eq!(manager.code(), Some(0));
}

#[test]
fn a_watchdog_of_another_process_is_not_answered() {
    let mut manager = Manager::new();
    manager.start(&[("WATCHDOG_USEC", "50000"), ("WATCHDOG_PID", "1")], None, &[]);
    manager.told("READY=1");
    manager.notified.set_read_timeout(Some(Duration::from_millis(500))).expect("it is a socket");
    assert!(manager.notified.recv(&mut [0; 64]).is_err(), "nobody asked it for beats");
}

#[test]
fn a_socket_that_is_handed_over_is_served_and_left_open() {
    let mut manager = Manager::new();
    let path = manager.dir.at("s");
    let listener = UnixListener::bind(&path).expect("the directory is ours");
    // Before there is anybody to answer.
    let early = UnixStream::connect(&path).expect("the manager listens");
    manager.start(&[("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "apexd.socket")], Some(listener.into()), &[]);
    manager.told("READY=1");
    assert_eq!(manager.apex(&["--json", "ls"]).expect_code(0).out().trim(), "[]");
    drop(early);
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", manager.pid())).expect("it runs");
    let warden = children.split_whitespace().next().expect("the warden is its child");
    assert!(!listens(warden, &path), "the warden does not have the socket");
    assert!(listens(&manager.pid().to_string(), &path));
    manager.signal(Signal::SIGTERM);
    assert_eq!(manager.code(), Some(0), "{}", manager.words());
    assert!(std::path::Path::new(&path).exists(), "the socket is the manager's to remove");
}

/// Whether a process has the socket of this path open.
fn listens(pid: &str, path: &str) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/unix").expect("/proc is mounted");
    let line = sockets.lines().find(|line| line.ends_with(path)).expect("somebody listens");
    let inode = line.split_whitespace().nth(6).expect("its inode").to_owned();
    let name = format!("socket:[{inode}]");
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs and is ours");
    fds.flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy() == name))
}

#[test]
fn what_is_handed_over_must_be_one_socket_that_listens() {
    let check = |variables: &[(&str, &str)], handed: OwnedFd, expected: &str| {
        let mut manager = Manager::new();
        manager.start(variables, Some(handed), &[]);
        assert_eq!(manager.code(), Some(125));
        assert!(manager.words().contains(expected), "{}", manager.words());
    };
    let null = || File::open("/dev/null").expect("it is there").into();
    check(&[("LISTEN_FDS", "1")], null(), "no unix stream socket that listens");
    check(
        &[("LISTEN_FDS", "1")],
        UnixDatagram::unbound().expect("a socket").into(),
        "no unix stream socket that listens",
    );
    check(&[("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "one:two")], null(), "named one:two");
    check(&[("LISTEN_FDS", "many")], null(), "LISTEN_FDS is \"many\"");
}

#[test]
fn rules_of_access_are_read_anew_and_broken_ones_change_nothing() {
    const CLOSED: &str = "[[rule]]\nrole = \"admin\"\noperations = [\"tree\"]\nscope = \"all\"\neffect = \"deny\"\nreason = \"closed\"\n";
    let mut manager = Manager::new();
    let rules = manager.dir.at("access.toml");
    let write = |text: &str| std::fs::write(&rules, text).expect("the directory is ours");
    write("");
    manager.start(&[], None, &["--access", &rules]);
    manager.told("READY=1");
    manager.apex(&["tree"]).expect_code(0);
    let reload = || {
        manager.signal(Signal::SIGHUP);
        let begun = manager.told("RELOADING=1");
        assert!(begun.contains("MONOTONIC_USEC="), "{begun}");
        manager.told("READY=1")
    };
    write(CLOSED);
    assert!(!reload().contains("not read anew"));
    assert_eq!(manager.apex(&["tree"]).code, 125, "the new rules are in force");
    write("[[rule]]\nrole = \"nobody\"\n");
    assert!(reload().contains("not read anew"), "the status says so");
    assert_eq!(manager.apex(&["tree"]).code, 125, "the rules before stay in force");
    assert!(manager.words().contains("the rules that were in force stay so"), "{}", manager.words());
    write("");
    reload();
    manager.apex(&["tree"]).expect_code(0);
    let audit = manager.dir.read("state/audit.jsonl");
    let lines = audit.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    let outcomes: Vec<String> = lines
        .filter(|line| line["api"]["operation"] == "reload")
        .map(|line| line["unmapped"]["outcome"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(outcomes, ["allowed", "failed", "allowed"]);
    manager.signal(Signal::SIGTERM);
    assert_eq!(manager.code(), Some(0));
}

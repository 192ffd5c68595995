//! How a sandbox ends: with its command, with `apex-run`, at its wall time; always completely.

use std::fs::File;
use std::time::{Duration, Instant};

use apex_tests::attack::Abi;
use apex_tests::{Mode, Sandbox, TIME_OVER, TempDir, armed, each_mode, leaks};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;

const PATIENCE: Duration = Duration::from_secs(15);

/// A lock that a process inside holds as long as it lives.
struct Witness(TempDir);

impl Witness {
    fn new() -> Self {
        let dir = TempDir::new();
        dir.file("lock", "");
        Witness(dir)
    }

    fn grant(&self, sandbox: Sandbox) -> Sandbox {
        sandbox.rw(&self.0.text(), "/tmp/data")
    }

    fn is_held(&self) -> bool {
        let file = File::open(self.0.at("lock")).expect("it is ours");
        Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err()
    }

    /// Fails the test when the holder lives on.
    #[track_caller]
    fn expect_released(&self) {
        let end = Instant::now() + PATIENCE;
        while self.is_held() {
            assert!(Instant::now() < end, "a process of the sandbox outlived it");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The witness can see a holder: otherwise the tests below prove nothing.
#[test]
fn a_living_process_is_seen() {
    let witness = Witness::new();
    let mut session =
        witness.grant(armed!()).mode(Mode::Isolation).start(&[Abi::X64.program(), "nap", "/tmp/data/lock"]);
    session.expect_line("holding");
    assert!(witness.is_held());
    drop(session);
    witness.expect_released();
}

#[test]
fn a_daemon_dies_with_the_command() {
    each_mode(|mode| {
        let witness = Witness::new();
        let sandbox = witness.grant(armed!()).mode(mode);
        let output = sandbox.attack(Abi::X64, &["daemon", "/tmp/data/lock"]).expect_code(0);
        assert!(output.out().starts_with("holding\n"), "{}", output.out());
        witness.expect_released();
        sandbox.expect_nothing_left(&output);
    });
}

#[test]
fn everything_dies_with_a_killed_launcher() {
    each_mode(|mode| {
        for verb in ["daemon", "stubborn", "stop_self"] {
            let witness = Witness::new();
            let sandbox = witness.grant(armed!()).mode(mode);
            let mut session = sandbox.start(&[Abi::X64.program(), verb, "/tmp/data/lock", "stay"]);
            session.expect_line("holding");
            session.signal(Signal::SIGKILL);
            session.finish();
            witness.expect_released();
            // A launcher that was killed cannot remove its cgroup: a later start sweeps it. No process may be left in it.
            assert_eq!(leaks::processes(sandbox.mark()), [""; 0], "{verb}");
        }
    });
}

#[test]
fn wall_time_ends_what_resists() {
    for verb in ["nap", "stubborn", "stop_self", "daemon"] {
        let witness = Witness::new();
        let sandbox = witness.grant(armed!()).mode(Mode::Isolation).args(["--time", "1s"]);
        let output = sandbox.attack(Abi::X64, &[verb, "/tmp/data/lock", "stay"]).expect_code(TIME_OVER);
        assert!(output.err().contains("time"), "the message does not name the limit: {}", output.err());
        witness.expect_released();
        sandbox.expect_nothing_left(&output);
    }
}

/// The init belongs to the user inside, who may change its limits, priority and processors. That hurts nobody but the sandbox, which
/// still ends completely and with a word.
#[test]
fn a_crippled_init_ends_cleanly() {
    let mut session = armed!().mode(Mode::Isolation).session();
    for attempt in ["affinity_1", "renice_1"] {
        session.allowed(attempt);
    }
    session.finish().expect_code(0);
    for limits in ["--nofile=0:0", "--cpu=0:0", "--as=0:0", "--stack=0:0 --nproc=0:0 --nofile=0:0"] {
        let sandbox = Sandbox::new();
        let output = sandbox.run(&["/bin/sh", "-c", &format!("prlimit --pid 1 {limits}; exit 42")]);
        let ended = output.code == 42 || !output.err().trim().is_empty();
        assert!(ended, "{limits}: exit code {} without a word", output.code);
        sandbox.expect_nothing_left(&output);
    }
}

/// Where the caller ignores SIGCHLD, the kernel would reap the command unseen, and everybody would wait for ever.
#[test]
fn a_caller_that_ignores_the_end_of_children() {
    if let Some(reason) = apex_tests::programs::missing_program(&["python3"]) {
        apex_tests::skip!(reason);
    }
    // A shell resets it for its children.
    let ignore =
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])";
    let prelude = format!("set -- /usr/bin/python3 -c '{ignore}' \"$@\";");
    let output = Sandbox::new().prelude(&prelude).run(&["/bin/sh", "-c", "/bin/true; exit 7"]).expect_code(7);
    assert_eq!(output.err(), "");
}

/// Orphans are reaped by the init: three times as many as the limit of tasks come and go.
#[test]
fn orphans_are_reaped() {
    let output = armed!().mode(Mode::Isolation).attack(Abi::X64, &["orphans", "200"]).expect_code(0);
    assert!(output.answer("orphans").starts_with("ok"), "{}", output.out());
}

/// Launchers ended by signals of the terminal's kind take their sandbox along, too.
#[test]
fn a_terminated_launcher_ends_the_sandbox() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        let witness = Witness::new();
        let sandbox = witness.grant(armed!()).mode(Mode::Isolation);
        let mut session = sandbox.start(&[Abi::X64.program(), "nap", "/tmp/data/lock"]);
        session.expect_line("holding");
        session.signal(signal);
        let output = session.finish();
        assert_eq!(output.code, 128 + signal as i32, "{signal}: {}", output.err());
        witness.expect_released();
        sandbox.expect_nothing_left(&output);
    }
}

/// A launcher that is stopped forwards nothing; killing it must still end everything.
#[test]
fn a_stopped_launcher_can_be_killed() {
    let witness = Witness::new();
    let sandbox = witness.grant(armed!()).mode(Mode::Isolation);
    let mut session = sandbox.start(&[Abi::X64.program(), "nap", "/tmp/data/lock"]);
    session.expect_line("holding");
    session.signal(Signal::SIGSTOP);
    session.signal(Signal::SIGKILL);
    session.finish();
    witness.expect_released();
}

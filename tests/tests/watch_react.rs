//! What is done on a finding: each reaction in a real sandbox, with a program that executes a file without a name.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Stdio;
use std::time::Duration;

use apex_tests::{MEMORY_OVER, Sandbox, TIME_OVER, TempDir, as_root, each_mode, leaks};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

/// Executes a copy of `sleep` from memory, waits until somebody can have reacted, tries what a tightened sandbox may not, and ends.
const JOB: &str = r#"
import errno, os, socket, time
fd = os.memfd_create("x", 0)
os.write(fd, open("/usr/bin/sleep", "rb").read())
print("begun", flush=True)
child = os.fork()
if child == 0:
    os.execv(f"/proc/self/fd/{fd}", ["sleep", "1"])
time.sleep(1)
def attempt(name, work):
    try:
        work()
        print(name, "ok", flush=True)
    except OSError as error:
        print(name, errno.errorcode[error.errno], flush=True)
attempt("connect", lambda: socket.create_connection(("127.0.0.1", 9)))
def fork():
    if os.fork() == 0:
        os._exit(0)
attempt("fork", fork)
print("done", flush=True)
"#;

/// The options of every run here; `None` where the job cannot run.
fn watched(reaction: &str) -> Option<Sandbox> {
    let sandbox =
        Sandbox::new().args(["--profile", "python", "--env", &format!("JOB={JOB}"), "--on-finding", reaction]);
    std::path::Path::new("/usr/bin/python3").exists().then_some(sandbox)
}

/// The job does not stand in the command line, which is judged too: before it has begun.
const RUN: [&str; 3] = ["/usr/bin/python3", "-c", "import os; exec(os.environ['JOB'])"];

#[test]
fn a_warning_tells_and_leaves_the_command_alone() {
    let findings = TempDir::new();
    let Some(sandbox) = watched("warn") else { apex_tests::skip!("the program python3 is not installed") };
    let output = sandbox.args(["--findings", &findings.at("findings")]).run(&RUN).expect_code(0);
    assert!(output.out().ends_with("connect ECONNREFUSED\nfork ok\ndone\n"), "{}", output.out());
    assert!(output.err().contains("fileless-program") && output.err().contains("T1620"), "{}", output.err());
    let text = findings.read("findings");
    let finding = text.lines().find(|line| line.contains("fileless-program")).expect("it is written too");
    let finding: serde_json::Value = serde_json::from_str(finding).expect("a line is JSON");
    assert_eq!((&finding["class_uid"], &finding["severity"]), (&2004.into(), &"Critical".into()), "{finding}");
}

#[test]
fn a_finding_can_end_the_sandbox_in_every_mode() {
    if watched("kill").is_none() {
        apex_tests::skip!("the program python3 is not installed");
    }
    each_mode(|mode| {
        let sandbox = watched("kill").expect("it was there").mode(mode);
        let output = sandbox.run(&RUN).expect_code(MEMORY_OVER);
        assert!(!output.out().contains("done"), "{}", output.out());
        assert!(output.err().contains("ended because of a finding"), "{}", output.err());
        sandbox.expect_nothing_left(&output);
    });
}

#[test]
fn a_frozen_sandbox_goes_on_when_told() {
    let Some(sandbox) = watched("freeze") else { apex_tests::skip!("the program python3 is not installed") };
    let mut session = sandbox.start(&RUN);
    session.expect_line("begun");
    let words = session.error_line("frozen because of");
    assert!(words.contains(&format!("kill -CONT {}", session.pid())), "{words}");
    // Longer than the job takes.
    std::thread::sleep(Duration::from_secs(3));
    session.signal(Signal::SIGCONT);
    session.error_line("goes on");
    let output = session.wait_for_end().expect_code(0);
    assert!(output.out().ends_with("fork ok\ndone\n"), "{}", output.out());
    sandbox.expect_nothing_left(&output);
}

#[test]
fn a_frozen_sandbox_ends_at_its_wall_time() {
    let Some(sandbox) = watched("freeze") else { apex_tests::skip!("the program python3 is not installed") };
    let sandbox = sandbox.args(["--time", "6s"]);
    let output = sandbox.run(&RUN).expect_code(TIME_OVER);
    assert!(!output.out().contains("done"), "{}", output.out());
    assert!(output.err().contains("frozen because of"), "{}", output.err());
    sandbox.expect_nothing_left(&output);
}

#[test]
fn a_frozen_sandbox_can_be_ended() {
    let Some(sandbox) = watched("freeze") else { apex_tests::skip!("the program python3 is not installed") };
    let mut session = sandbox.start(&RUN);
    session.expect_line("begun");
    session.error_line("frozen because of");
    session.signal(Signal::SIGTERM);
    let output = session.wait_for_end().expect_code(128 + 15);
    assert!(!output.out().contains("done"), "{}", output.out());
    sandbox.expect_nothing_left(&output);
}

#[test]
fn tightening_never_gives_more_than_the_plan() {
    let Some(sandbox) = watched("tighten") else { apex_tests::skip!("the program python3 is not installed") };
    if !as_root() {
        apex_tests::skip!("only root has a cgroup to tighten here");
    }
    let output = sandbox.args(["--cpu", "5"]).run(&RUN).expect_code(0);
    assert!(output.err().contains("CPU cut to 5% of one core"), "{}", output.err());
}

#[test]
fn a_tightened_sandbox_gets_no_more() {
    let Some(sandbox) = watched("tighten") else { apex_tests::skip!("the program python3 is not installed") };
    let output = sandbox.run(&RUN).expect_code(0);
    if as_root() {
        assert!(output.out().ends_with("connect EPERM\nfork EAGAIN\ndone\n"), "{}\n{}", output.out(), output.err());
        assert!(output.err().contains("tightened because of"), "{}", output.err());
    } else {
        // Without a cgroup of its own and without probes there is nothing to cut, and that is said.
        assert!(output.err().contains("to be tightened because of"), "{}", output.err());
        assert!(output.err().contains("did not work"), "{}", output.err());
        assert!(output.err().contains("network, tasks and CPU stay as they are"), "{}", output.err());
    }
    sandbox.expect_nothing_left(&output);
}

/// SIGCONT wakes who is stopped by a signal, whoever sends it: timers of its own, here, and a process for another.
#[test]
fn a_frozen_sandbox_does_not_thaw_itself() {
    const JOB: &str = r#"
import os, signal, threading, time
fd = os.memfd_create("x", 0)
os.write(fd, open("/usr/bin/sleep", "rb").read())
for _ in range(3):
    other = os.getpid()
    if os.fork() == 0:
        for _ in range(300):
            time.sleep(0.01)
            os.kill(other, signal.SIGCONT)
        os._exit(0)
signal.signal(signal.SIGALRM, lambda *_: os.kill(0, signal.SIGCONT))
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
print("begun", flush=True)
child = os.fork()
if child == 0:
    os.execv(f"/proc/self/fd/{fd}", ["sleep", "1"])
for _ in range(50):
    time.sleep(0.04)
print("done", flush=True)
"#;
    if watched("freeze").is_none() {
        apex_tests::skip!("the program python3 is not installed");
    }
    let sandbox =
        Sandbox::new().args(["--profile", "python", "--env", &format!("JOB={JOB}"), "--on-finding", "freeze"]);
    let output = sandbox.args(["--time", "6s"]).run(&RUN).expect_code(TIME_OVER);
    assert!(output.err().contains("frozen because of"), "{}", output.err());
    assert!(!output.out().contains("done"), "{}\n{}", output.out(), output.err());
}

/// Fills standard error, which nobody reads, and leaves it as it was.
const FILL: &str = r#"
import fcntl, os
flags = fcntl.fcntl(2, fcntl.F_GETFL)
fcntl.fcntl(2, fcntl.F_SETFL, flags | os.O_NONBLOCK)
for size in (4096, 1):
    try:
        while True:
            os.write(2, b"x" * size)
    except BlockingIOError:
        pass
fcntl.fcntl(2, fcntl.F_SETFL, flags)
"#;

/// Runs a job in a sandbox that is to be ended, reads nothing of it until long after, and looks for what runs inside.
fn expect_ended_unread(sandbox: &Sandbox, code: i32) {
    let mut command = sandbox.command(&RUN);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.expect("apex-run starts");
    // Longer than the wall time, shorter than what the job would sleep.
    std::thread::sleep(Duration::from_secs(8));
    // Launcher and prober may wait for somebody to read; whatever ran inside must not be left.
    let launcher = format!("process {}:", child.id());
    let is_inside = |line: &String| !line.starts_with(&launcher) && !line.contains("apex-probe serve");
    let alive: Vec<_> = leaks::processes(sandbox.mark()).into_iter().filter(is_inside).collect();
    assert!(alive.is_empty(), "{alive:#?}");
    apex_tests::sandbox::collect(child).expect_code(code);
}

/// It shares standard error with the caller, who reads nothing of it here until the end: neither reaction nor wall time waits for that.
#[test]
fn a_sandbox_that_fills_standard_error_is_still_ended() {
    if watched("kill").is_none() {
        apex_tests::skip!("the program python3 is not installed");
    }
    for (reaction, code) in [("kill", MEMORY_OVER), ("freeze", TIME_OVER), ("tighten", TIME_OVER)] {
        let job = format!("{FILL}{JOB}time.sleep(60)\n");
        let args = ["--profile", "python", "--env", &format!("JOB={job}"), "--on-finding", reaction, "--time", "5s"];
        expect_ended_unread(&Sandbox::new().args(args), code);
    }
}

/// That the record's reader does not read either is to be told on standard error, which has no room for it.
#[test]
fn a_full_record_beside_a_full_standard_error_holds_no_reaction_up() {
    // Each line of the record has a target whose bytes are escaped to six times as many: several times what waits for a slow reader.
    const FLOOD: &str = r#"
for _ in range(3000):
    try:
        os.symlink("\x01" * 4000, "/proc/none")
    except OSError:
        pass
"#;
    if watched("kill").is_none() {
        apex_tests::skip!("the program python3 is not installed");
    }
    let record = TempDir::new();
    nix::unistd::mkfifo(record.at("events").as_str(), Mode::S_IRWXU).expect("a pipe");
    let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(record.at("events"));
    let job = format!("{FILL}{FLOOD}{JOB}time.sleep(60)\n");
    let args = ["--profile", "python", "--env", &format!("JOB={job}"), "--on-finding", "kill", "--time", "7s"];
    expect_ended_unread(
        &Sandbox::new().args(args).args(["--watch=full", "--events", &record.at("events")]),
        MEMORY_OVER,
    );
    drop(reader);
}

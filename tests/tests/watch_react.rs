//! What is done on a finding: each reaction in a real sandbox, with a program that executes a file without a name.

use std::time::Duration;

use apex_tests::{MEMORY_OVER, Sandbox, TIME_OVER, TempDir, as_root, each_mode, leaks};
use nix::sys::signal::Signal;

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
        leaks::expect_none(sandbox.mark(), output.pid);
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
    leaks::expect_none(sandbox.mark(), output.pid);
}

#[test]
fn a_frozen_sandbox_ends_at_its_wall_time() {
    let Some(sandbox) = watched("freeze") else { apex_tests::skip!("the program python3 is not installed") };
    let sandbox = sandbox.args(["--time", "6s"]);
    let output = sandbox.run(&RUN).expect_code(TIME_OVER);
    assert!(!output.out().contains("done"), "{}", output.out());
    assert!(output.err().contains("frozen because of"), "{}", output.err());
    leaks::expect_none(sandbox.mark(), output.pid);
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
    leaks::expect_none(sandbox.mark(), output.pid);
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
    }
    leaks::expect_none(sandbox.mark(), output.pid);
}

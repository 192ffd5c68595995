//! Filters of system calls as a `config.json` asks for them, tried inside: errnos, arguments, signals, and a listener with an agent behind it.

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use apex_sys::seccomp::{Reply, receive, send};
use apex_tests::bundle;
use apex_tests::oci::{Bundle, Receiver};
use serde_json::{Value, json};

const ARCHITECTURES: [&str; 3] = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"];

fn filter(default: &str, rules: Value) -> Value {
    json!({"defaultAction": default, "architectures": ARCHITECTURES, "syscalls": rules})
}

/// A call with these words in a container under the filter: result and errno.
#[track_caller]
fn call(filter: Value, words: &[&str]) -> String {
    let bundle = Bundle::new().set("/linux/seccomp", filter).args(&[&["inside", "call"], words].concat());
    let output = bundle.run().expect_code(0);
    bundle.expect_nothing_left();
    output.out().trim().to_owned()
}

// Numbers of x86-64.
const GETPPID: &str = "110";
const SOCKET: &str = "41";
const GETPRIORITY: &str = "140";

#[test]
fn a_rule_gives_its_errno() {
    let _bundle = bundle!();
    let rules = |action: Value| json!([{"names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": action}]);
    assert_eq!(call(filter("SCMP_ACT_ALLOW", rules(json!(38))), &[GETPPID]), "call 110 result -1 errno 38");
    assert_eq!(call(filter("SCMP_ACT_ALLOW", rules(json!(99))), &[GETPPID]), "call 110 result -1 errno 99");
    let default = json!([{"names": ["getppid"], "action": "SCMP_ACT_ERRNO"}]);
    assert_eq!(call(filter("SCMP_ACT_ALLOW", default), &[GETPPID]), "call 110 result -1 errno 1");
    assert_eq!(call(filter("SCMP_ACT_ALLOW", json!([])), &[GETPPID]), "call 110 result 0 errno 0");
}

#[test]
fn a_rule_looks_at_arguments() {
    let _bundle = bundle!();
    // Of sockets only AF_UNIX (1), and of priorities neither 5 nor what has the bit 4.
    let rules = json!([
        {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97, "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_NE"}]},
        {"names": ["getpriority"], "action": "SCMP_ACT_ERRNO", "errnoRet": 44,
            "args": [{"index": 1, "value": 4, "valueTwo": 4, "op": "SCMP_CMP_MASKED_EQ"}]},
    ]);
    let check = |words: &[&str], expected: &str| {
        let told = call(filter("SCMP_ACT_ALLOW", rules.clone()), words);
        assert!(told.contains(expected), "{words:?}: {told}, expected {expected}");
    };
    check(&[SOCKET, "2", "1", "0"], "result -1 errno 97");
    check(&[SOCKET, "1", "1", "0"], "result 3 errno 0");
    check(&[GETPRIORITY, "0", "5"], "errno 44");
    check(&[GETPRIORITY, "0", "1"], "errno 0");
}

#[test]
fn a_forbidden_call_can_kill() {
    for action in ["SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL", "SCMP_ACT_TRAP"] {
        let bundle = bundle!();
        // One that the shell does not make.
        let rules = json!([{"names": ["swapoff"], "action": action}]);
        let bundle =
            bundle.set("/linux/seccomp", filter("SCMP_ACT_ALLOW", rules)).sh("inside call 168 0; echo code $?");
        let output = bundle.run();
        // 128 and SIGSYS, 31.
        assert!(output.out().contains("code 159"), "{action}: {output:?}");
        bundle.expect_nothing_left();
    }
}

#[test]
fn a_filter_of_what_is_allowed_lets_a_container_live() {
    let names = "access arch_prctl brk close dup dup2 dup3 execve exit exit_group fcntl fstat getcwd getdents64 getegid geteuid getgid getpid getuid \
        getrandom ioctl lseek mmap mprotect munmap newfstatat open openat prlimit64 pread64 read readlink rseq rt_sigaction rt_sigprocmask \
        rt_sigreturn set_robust_list set_tid_address sigaltstack stat uname write writev futex prctl getppid wait4 vfork fork clone";
    let names: Vec<&str> = names.split_whitespace().collect();
    let rules = json!([{"names": names, "action": "SCMP_ACT_ALLOW"}, {"names": ["no_such_call_at_all"], "action": "SCMP_ACT_ALLOW"}]);
    let bundle = bundle!()
        .set("/linux/seccomp", filter("SCMP_ACT_ERRNO", rules))
        .sh("echo alive; inside call 83 0 0; inside call 110");
    let output = bundle.run().expect_code(0);
    assert_eq!(output.out(), "alive\ncall 83 result -1 errno 1\ncall 110 result 0 errno 0\n");
}

#[test]
fn exec_is_under_the_filter_too() {
    let rules = json!([{"names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77}]);
    let bundle = bundle!().set("/linux/seccomp", filter("SCMP_ACT_ALLOW", rules)).args(&["sleep", "300"]);
    bundle.up();
    let output = bundle.oci(&["exec", &bundle.id, "inside", "call", GETPPID]).expect_code(0);
    assert_eq!(output.out(), "call 110 result -1 errno 77\n");
    assert_eq!(apex_tests::oci::status_field(&bundle.pid().to_string(), "Seccomp"), "2");
}

#[test]
fn a_filter_that_is_none_is_refused() {
    let cases = [
        filter("SCMP_ACT_NONSENSE", json!([])),
        filter("SCMP_ACT_ALLOW", json!([{"names": ["getppid"], "action": "SCMP_ACT_NONSENSE"}])),
        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_ABACUS"]}),
        filter(
            "SCMP_ACT_ALLOW",
            json!([{"names": ["getppid"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 9, "value": 1, "op": "SCMP_CMP_EQ"}]}]),
        ),
        filter("SCMP_ACT_ALLOW", json!([{"names": ["getppid"], "action": "SCMP_ACT_NOTIFY"}])),
    ];
    for seccomp in cases {
        let bundle = bundle!().set("/linux/seccomp", seccomp.clone());
        let output = bundle.run().expect_code(1);
        assert!(!output.err().trim().is_empty(), "{seccomp}");
        bundle.expect_nothing_left();
    }
}

/// A bundle whose `getppid` is judged by an agent at the path.
fn notified(bundle: Bundle, path: &str) -> Bundle {
    let mut seccomp = filter("SCMP_ACT_ALLOW", json!([{"names": ["getppid"], "action": "SCMP_ACT_NOTIFY"}]));
    seccomp["listenerPath"] = json!(path);
    seccomp["listenerMetadata"] = json!("for the agent");
    bundle.set("/linux/seccomp", seccomp)
}

#[test]
fn an_agent_judges_calls() {
    let bundle = bundle!();
    let path = bundle.dir().at("agent");
    let bundle = notified(bundle, &path).args(&["inside", "call", GETPPID]);
    let receiver = Receiver::new(&path);
    let (sender, told) = mpsc::channel();
    let agent = std::thread::spawn(move || {
        let (listener, text) = receiver.take();
        let _ = sender.send(text);
        let notification = receive(listener.as_fd()).expect("a call comes");
        send(listener.as_fd(), notification.id, Reply::Return(4711)).expect("it waits");
        notification.nr
    });
    let output = bundle.run().expect_code(0);
    assert_eq!(output.out(), "call 110 result 4711 errno 0\n");
    assert_eq!(agent.join().expect("no panic"), 110);
    let state: Value = serde_json::from_str(&told.recv().expect("sent")).expect("JSON");
    assert_eq!(state["fds"], json!(["seccompFd"]), "{state}");
    assert_eq!(state["metadata"], "for the agent");
    assert_eq!(state["state"]["id"], bundle.id);
    assert!(state["pid"].as_i64().is_some_and(|pid| pid > 1), "{state}");
    bundle.expect_nothing_left();
}

#[test]
fn an_agent_that_is_not_there_is_named() {
    let bundle = bundle!();
    let path = bundle.dir().at("nobody");
    let bundle = notified(bundle, &path);
    let output = bundle.run().expect_code(1);
    assert!(output.err().contains(&path), "{}", output.err());
    bundle.expect_nothing_left();
}

/// It takes the connection and never reads: neither `start` nor `delete` may hang for longer than their bounds.
#[test]
fn an_agent_that_hangs_holds_up_nobody_for_long() {
    let bundle = bundle!();
    let path = bundle.dir().at("agent");
    let bundle = notified(bundle, &path).args(&["inside", "call", GETPPID]);
    // More than a socket takes, so that the runtime must wait for the agent.
    let bundle = bundle.set("/annotations", json!({"long": "x".repeat(2_000_000)}));
    let agent = UnixListener::bind(&path).expect("we own it");
    let (stop, stopped) = mpsc::channel::<()>();
    let hung = std::thread::spawn(move || {
        let connection = agent.accept();
        let _ = stopped.recv();
        drop(connection);
    });
    let begun = Instant::now();
    let output = bundle.run();
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.err().contains("listener"), "{}", output.err());
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    bundle.expect_nothing_left();
    stop.send(()).expect("it waits");
    hung.join().expect("no panic");
}

/// It closes the connection at once: an error with words, and not a container that seems to have started.
#[test]
fn an_agent_that_goes_away_is_told() {
    for long in [10, 2_000_000] {
        let bundle = bundle!();
        let path = bundle.dir().at("agent");
        let bundle =
            notified(bundle, &path).args(&["sleep", "300"]).set("/annotations", json!({"long": "x".repeat(long)}));
        let agent = UnixListener::bind(&path).expect("we own it");
        let gone = std::thread::spawn(move || drop(agent.accept()));
        let output = bundle.create().expect_code(1);
        gone.join().expect("no panic");
        assert!(output.err().contains("listener"), "{}", output.err());
        bundle.expect_nothing_left();
    }
}

/// A container whose call waits for an agent that never answers can be killed.
#[test]
fn a_waiting_call_does_not_keep_a_container_alive() {
    let bundle = bundle!();
    let path = bundle.dir().at("agent");
    let bundle = notified(bundle, &path).args(&["inside", "call", GETPPID]);
    let receiver = Receiver::new(&path);
    let taken = std::thread::spawn(move || receiver.take());
    bundle.up();
    let _listener = taken.join().expect("no panic");
    assert_eq!(bundle.status(), "running");
    bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
    bundle.expect_nothing_left();
}

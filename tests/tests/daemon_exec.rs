//! More commands in a sandbox of the daemon, and terminals.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use apex_tests::daemon::{Daemon, lenient};
use apex_tests::traced::NOBODY;
use apex_tests::{TempDir, as_root, sandbox, skip};

#[track_caller]
fn exec(daemon: &Daemon, id: &str, command: &[&str]) -> sandbox::Output {
    daemon.apex(&[&["exec", id, "--"], command].concat())
}

#[test]
fn a_second_command_is_in_the_same_sandbox_and_confined_like_the_first() {
    let daemon = Daemon::start(&[]);
    let look = "cat /proc/self/status | grep -E '^(Uid|Gid|Groups|NoNewPrivs|Seccomp|CapInh|CapPrm|CapEff|CapBnd|CapAmb|SigBlk|SigIgn)'; ulimit -a; pwd; env | sort; ls -l /proc/self/ns /proc/self/fd | grep -oE '(ns|[a-z]+):\\[[0-9]+\\]|^[^ ]+ .* [0-9]+ ->' | sed 's/ -> pipe.*//; /pipe:/d; s/ .*//'";
    let id = daemon.create(&[], &["/bin/sh", "-c", &format!("{look}; echo mark > /tmp/mark; sleep 300")]);
    let end = Instant::now() + Duration::from_secs(20);
    while exec(&daemon, &id, &["/bin/cat", "/tmp/mark"]).out() != "mark\n" {
        assert!(Instant::now() < end, "the first command leaves its mark");
    }
    let first = daemon.apex(&["logs", &id]).expect_code(0).out();
    let second = exec(&daemon, &id, &["/bin/sh", "-c", look]).expect_code(0).out();
    assert!(first.contains("Seccomp:\t2") && first.contains("NoNewPrivs:\t1"), "{first}");
    assert_eq!(first, second);
    // Landlock as well: what it alone refuses is refused.
    let port = "import socket; socket.socket().bind(('127.0.0.1', 8080))";
    let output = exec(&daemon, &id, &["/usr/bin/python3", "-c", port]);
    let without = daemon.apex(&[&["run"], lenient(), &["--", "/usr/bin/python3", "-c", port]].concat());
    assert_eq!((output.code, output.err()), (without.code, without.err()));
}

#[test]
fn streams_codes_and_what_is_not_there() {
    let daemon = Daemon::start(&[]);
    let id = daemon.create(&["--name", "one"], &["/bin/sleep", "300"]);
    let mut child = daemon.command(&["exec", &id, "--", "/bin/sh", "-c", "cat; echo problem >&2; exit 7"]);
    let mut child = child.stdin(Stdio::piped()).spawn().expect("apex starts");
    let bytes: Vec<u8> = (0..300_000u32).map(|number| (number % 251) as u8).collect();
    let (mut input, sent) = (child.stdin.take().expect("piped"), bytes.clone());
    let writer = std::thread::spawn(move || input.write_all(&sent));
    let output = sandbox::collect(child);
    writer.join().expect("it does not panic").expect("everything is read");
    assert!(output.stdout == bytes, "{} bytes came back of {}", output.stdout.len(), bytes.len());
    assert_eq!((output.err().as_str(), output.code), ("problem\n", 7));
    assert_eq!(exec(&daemon, "one", &["/bin/sh", "-c", "kill -9 $$"]).code, 128 + 9);
    let output = exec(&daemon, "one", &["nosuch"]);
    assert_eq!(output.code, 127);
    assert!(output.err().contains("`nosuch`"), "{output:?}");
    assert_eq!(exec(&daemon, "one", &["/etc/passwd"]).code, 126);
    let output =
        daemon.apex(&["exec", "--env", "A=b", "--workdir", "/tmp", "one", "--", "/bin/sh", "-c", "pwd; echo $A"]);
    assert_eq!(output.out(), "/tmp\nb\n");
    // Gone with its sandbox.
    let child = daemon.command(&["exec", "one", "--", "/bin/sleep", "300"]).spawn().expect("apex starts");
    std::thread::sleep(Duration::from_millis(300));
    daemon.apex(&["kill", "one"]).expect_code(0);
    let output = sandbox::collect(child);
    assert_eq!(output.code, 125);
    assert!(output.err().contains("ended before"), "{output:?}");
    let output = exec(&daemon, "one", &["/bin/true"]);
    assert!(output.code == 125 && output.err().contains("has ended"), "{output:?}");
    let of_exec = |line: &serde_json::Value| line["api"]["operation"] == "exec";
    assert!(daemon.audit().iter().filter(|line| of_exec(line)).count() >= 6);
}

#[test]
fn many_at_once_and_signals_reach_the_one_that_is_meant() {
    let daemon = Daemon::start(&[]);
    let id = daemon.create(&[], &["/bin/sleep", "300"]);
    let trap = "trap 'echo caught; exit 3' TERM; echo begun; while :; do sleep 0.05; done";
    let mut children: Vec<_> = (0..4)
        .map(|_| daemon.command(&["exec", &id, "--", "/bin/sh", "-c", trap]).spawn().expect("apex starts"))
        .collect();
    // Others come and go meanwhile.
    for number in 0..20 {
        let word = number.to_string();
        assert_eq!(exec(&daemon, &id, &["/bin/echo", &word]).expect_code(0).out(), format!("{word}\n"));
    }
    let last = children.pop().expect("there are four");
    let pid = nix::unistd::Pid::from_raw(last.id().cast_signed());
    std::thread::sleep(Duration::from_millis(500));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it runs");
    let output = sandbox::collect(last);
    assert_eq!((output.out().as_str(), output.code), ("begun\ncaught\n", 3));
    assert_eq!(daemon.json(&["inspect", &id])["state"], "running");
    daemon.apex(&["kill", &id]).expect_code(0);
    for child in children {
        assert_eq!(sandbox::collect(child).out(), "begun\n");
    }
}

#[test]
fn a_frozen_sandbox_starts_nothing_and_a_bound_holds() {
    let daemon = Daemon::start(&[]);
    let id = daemon.create(&[], &["/bin/sleep", "300"]);
    if as_root() {
        daemon.apex(&["pause", &id]).expect_code(0);
        let output = exec(&daemon, &id, &["/bin/true"]);
        assert!(output.code == 125 && output.err().contains("frozen"), "{output:?}");
        daemon.apex(&["resume", &id]).expect_code(0);
    }
    let mut children = Vec::new();
    for _ in 0..16 {
        let command = ["exec", &id, "--", "/bin/sh", "-c", "echo begun; exec sleep 300"];
        let mut child = daemon.command(&command).spawn().expect("apex starts");
        let mut word = [0; 6];
        child.stdout.as_mut().expect("piped").read_exact(&mut word).expect("it begins");
        children.push(child);
    }
    let output = exec(&daemon, &id, &["/bin/true"]);
    assert!(output.code == 125 && output.err().contains("16 commands"), "{output:?}");
    daemon.apex(&["kill", &id]).expect_code(0);
    for child in children {
        sandbox::collect(child);
    }
}

#[test]
fn a_terminal_has_a_size_and_belongs_to_the_command() {
    let daemon = Daemon::start(&[]);
    let look = "test -t 0 && test -t 1 && test -t 2 && stty size && tty";
    let output = daemon.apex(&[&["run", "--tty", "yes"], lenient(), &["--", "/bin/sh", "-c", look]].concat());
    assert_eq!(output.expect_code(0).out(), "0 0\r\n/dev/pts/0\r\n");
    let output = daemon.apex(&[&["run", "--pool", "--tty", "yes"], lenient(), &["--", "/bin/sh", "-c", look]].concat());
    assert_eq!(output.expect_code(0).out(), "0 0\r\n/dev/pts/0\r\n");
    let id = daemon.create(&[], &["/bin/sleep", "300"]);
    let inside = ["exec", "--tty", "yes", &id, "--", "/bin/sh", "-c", look];
    assert_eq!(daemon.apex(&inside).expect_code(0).out(), "0 0\r\n/dev/pts/0\r\n");
    // Within a terminal of 33 rows, as its user has it: typed to, and raw, so that the program inside decides what an interrupt is.
    let apex = format!("{} --socket {}", apex_tests::daemon::beside("apex").display(), daemon.socket());
    let body = "stty size; trap \"echo caught\" INT; echo begun; read line; echo got $line; read line";
    let lenient = lenient().join(" ");
    for line in
        [format!("{apex} run {lenient} -- /bin/sh -c '{body}'"), format!("{apex} exec {id} -- /bin/sh -c '{body}'")]
    {
        let mut script = std::process::Command::new("script");
        script.args(["-qec", &format!("stty rows 33 cols 44; {line}"), "/dev/null"]);
        let mut child = script
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("script is there");
        let mut input = child.stdin.take().expect("piped");
        std::thread::sleep(Duration::from_millis(1500));
        input.write_all(b"word\n").expect("it reads");
        std::thread::sleep(Duration::from_millis(300));
        input.write_all(b"\x03").expect("it reads");
        let output = sandbox::collect(child);
        for words in ["33 44", "got word", "caught"] {
            assert!(output.out().contains(words), "{line}: {words} is missing: {output:?}");
        }
    }
}

#[test]
fn a_terminal_outlives_the_daemon() {
    let mut daemon = Daemon::start(&[]);
    let loops = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done";
    let id = daemon.create(&["--tty", "yes"], &["/bin/sh", "-c", loops]);
    let lines = |daemon: &Daemon| daemon.apex(&["logs", &id]).expect_code(0).out().lines().count();
    let end = Instant::now() + Duration::from_secs(20);
    while lines(&daemon) < 3 {
        assert!(Instant::now() < end, "it writes");
    }
    daemon.kill_and_restart();
    let before = lines(&daemon);
    while lines(&daemon) < before + 10 {
        assert!(Instant::now() < end, "it goes on");
    }
    let log = daemon.apex(&["logs", &id]).out();
    for (index, line) in log.lines().enumerate() {
        assert_eq!(line.trim_end(), (index + 1).to_string(), "nothing is lost: {log}");
    }
}

#[test]
fn who_may_exec_is_judged() {
    if !as_root() {
        skip!("only root may ask as somebody else");
    }
    let access = TempDir::new();
    let file = access.at("access.toml");
    std::fs::write(&file, format!("[[member]]\nuid = {NOBODY}\nrole = \"developer\"\n")).expect("ours");
    let daemon = Daemon::start(&["--access", &file]);
    let own = |args: &[&str]| sandbox::collect(daemon.command_as(NOBODY, args).spawn().expect("apex starts"));
    let roots = daemon.create(&["--name", "roots"], &["/bin/sleep", "300"]);
    let output = own(&["exec", &roots, "--", "/bin/true"]);
    assert!(output.code == 125 && output.err().contains("there is no sandbox"), "{output:?}");
    let create = ["create", "--optional", "cgroup", "--name", "mine", "--", "/bin/sleep", "300"];
    own(&create).expect_code(0);
    let output = own(&["exec", "mine", "--", "/bin/true"]);
    assert!(output.code == 125 && output.err().contains("only in mode development"), "{output:?}");
    daemon.apex(&["exec", "mine", "--", "/bin/true"]).expect_code(0);
}

//! Interpreters that are started ahead of what they run.

use std::path::Path;
use std::time::{Duration, Instant};

use apex_tests::daemon::{Daemon, lenient};
use apex_tests::sandbox::Output;
use apex_tests::skip;
use serde_json::Value;

fn is_there(program: &str) -> bool {
    ["/usr/bin", "/usr/local/bin", "/bin"].iter().any(|dir| std::path::Path::new(dir).join(program).exists())
}

#[track_caller]
fn run(daemon: &Daemon, options: &[&str], command: &[&str]) -> Output {
    daemon.apex(&[&["run"], options, lenient(), &["--"], command].concat())
}

/// One that was started ahead, and the same cold, must not be told from each other by what they write and how they end.
#[track_caller]
fn same(daemon: &Daemon, profile: &str, command: &[&str]) -> Output {
    until_ready(daemon);
    let cold = run(daemon, &["--profile", profile], command);
    let hits = hits(daemon);
    let warm = run(daemon, &["--profile", profile, "--pool", "--warm"], command);
    assert_eq!((warm.out(), warm.err(), warm.code), (cold.out(), cold.err(), cold.code), "{command:?}");
    assert_eq!(self::hits(daemon), hits + 1, "it came from the pool");
    warm
}

fn hits(daemon: &Daemon) -> u64 {
    daemon
        .json(&["pool", "ls"])
        .as_array()
        .map_or(0, |pools| pools.iter().filter_map(|pool| pool["hits"].as_u64()).sum())
}

#[track_caller]
fn until_ready(daemon: &Daemon) {
    let end = Instant::now() + Duration::from_secs(60);
    let is_ready = |pool: &Value| pool["ready"].as_u64() >= Some(1);
    loop {
        let pools = daemon.json(&["pool", "ls"]);
        if pools.as_array().is_some_and(|pools| !pools.is_empty() && pools.iter().all(is_ready)) {
            return;
        }
        assert!(Instant::now() < end, "the pools do not fill: {pools:#}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn python_runs_as_if_it_were_started_for_it() {
    if !is_there("python3") {
        skip!("no python3 on this machine");
    }
    let daemon = Daemon::start(&[]);
    let python = "/usr/bin/python3";
    let set = ["pool", "set", "3", "--profile", "python", "--warm"];
    daemon.apex(&[&set, lenient(), &["--", python]].concat()).expect_code(0);
    let look = "import sys; print(sys.argv, sys.orig_argv, sys.path, __name__, sorted(globals()), sys.flags.hash_randomization)";
    same(&daemon, "python", &[python, "-c", look, "a", "", "b c"]).expect_code(0);
    same(&daemon, "python", &[python, "-c", "def f():\n  raise ValueError('x')\nf()"]).expect_code(1);
    same(&daemon, "python", &[python, "-c", "syntax error"]).expect_code(1);
    same(&daemon, "python", &[python, "-c", "import sys; sys.exit('words')"]).expect_code(1);
    same(&daemon, "python", &[python, "-c", "import os; os.kill(os.getpid(), 15)"]).expect_code(143);
    same(&daemon, "python", &[python, "-c", "raise KeyboardInterrupt"]).expect_code(130);
    same(&daemon, "python", &[python, "-c", "import atexit; atexit.register(print, 'bye'); print('hi', end='')"]);
    same(&daemon, "python", &[python, "-m", "base64", "-t"]).expect_code(0);
    same(&daemon, "python", &[python, "-m", "nosuch.module"]).expect_code(1);
    same(&daemon, "python", &[python, "/no/such/file.py"]).expect_code(2);
    // Options change how an interpreter starts.
    same(&daemon, "python", &[python, "-O", "-c", "import sys; print(sys.flags.optimize, __debug__)"]).expect_code(0);
}

#[test]
fn each_has_its_own_identity_and_randomness_and_nothing_of_the_one_before() {
    if !is_there("python3") {
        skip!("no python3 on this machine");
    }
    let daemon = Daemon::start(&[]);
    let options = ["--profile", "python", "--pool", "--warm"];
    let look = "import os, random, sys; print(hash('a'), random.random(), os.readlink('/proc/self/ns/pid'), id(object()), os.getpid(), os.path.exists('/tmp/mark')); open('/tmp/mark', 'w')";
    run(&daemon, &options, &["/usr/bin/python3", "-c", look]).expect_code(0);
    let mut seen: Vec<Vec<String>> = Vec::new();
    for _ in 0..4 {
        until_ready(&daemon);
        let output = run(&daemon, &options, &["/usr/bin/python3", "-c", look]).expect_code(0).out();
        let words: Vec<String> = output.split_whitespace().map(str::to_owned).collect();
        assert_eq!((words[4].as_str(), words[5].as_str()), ("2", "False"), "{output}");
        for other in &seen {
            // Hash seed and random numbers. The number of a namespace is given again when its sandbox is gone, so that tells nothing.
            (0..2).for_each(|at| assert_ne!(other[at], words[at], "{output}"));
        }
        let own = std::fs::read_link("/proc/self/ns/pid").expect("/proc is mounted");
        assert_ne!(Path::new(&words[2]), own, "{output}");
        seen.push(words);
    }
    assert_eq!(hits(&daemon), 4);
}

#[test]
fn node_runs_as_if_it_were_started_for_it() {
    if !is_there("node") {
        skip!("no node on this machine");
    }
    let daemon = Daemon::start(&[]);
    let options = ["--profile", "node", "--pool", "--warm"];
    run(&daemon, &options, &["node", "-e", "0"]).expect_code(0);
    same(&daemon, "node", &["node", "-e", "console.log(process.argv, process.execArgv, 1 + 1)", "a", "b"])
        .expect_code(0);
    same(&daemon, "node", &["node", "-e", "process.exitCode = 4; setTimeout(() => console.log('late'), 20)"])
        .expect_code(4);
    same(&daemon, "node", &["node", "-p", "6 * 7"]).expect_code(0);
}

#[test]
fn what_cannot_be_warmed_says_so() {
    let daemon = Daemon::start(&[]);
    let output = daemon.apex(&[&["pool", "set", "1", "--warm"], lenient(), &["--", "/bin/sh"]].concat());
    output.expect_code(0);
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let pools = daemon.json(&["pool", "ls"]);
        let words = pools[0]["error"].as_str().unwrap_or_default().to_owned();
        if words.contains("python3 and node can") {
            break;
        }
        assert!(Instant::now() < end, "{pools:#}");
        std::thread::sleep(Duration::from_millis(20));
    }
    // A request is served all the same, without.
    assert_eq!(run(&daemon, &["--pool", "--warm"], &["/bin/sh", "-c", "echo hi"]).out(), "hi\n");
}

#[test]
fn a_second_command_starts_in_one_that_was_started_ahead() {
    if !is_there("python3") {
        skip!("no python3 on this machine");
    }
    let daemon = Daemon::start(&[]);
    let python = "/usr/bin/python3";
    daemon
        .apex(&[&["pool", "set", "1", "--profile", "python", "--warm"], lenient(), &["--", python]].concat())
        .expect_code(0);
    until_ready(&daemon);
    let create = ["create", "--profile", "python", "--pool", "--warm"];
    let sleeping = ["--", python, "-c", "import time; print('on', flush=True); time.sleep(600)"];
    let id = daemon.apex(&[&create, lenient(), &sleeping].concat()).expect_code(0).out().trim().to_owned();
    assert_eq!(hits(&daemon), 1);
    // The number of the interpreter's socket is not for it, nor is anything else but its streams and the directory that is read.
    let output =
        daemon.apex(&["exec", &id, "--", python, "-c", "import os; print(sorted(os.listdir('/proc/self/fd')))"]);
    assert_eq!((output.out().as_str(), output.code), ("['0', '1', '2', '3']\n", 0), "{output:?}");
    daemon.apex(&["kill", &id]).expect_code(0);
}

/// Command lines in which this text is.
fn lines_with(text: &str) -> Vec<String> {
    let of = |entry: std::fs::DirEntry| {
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).into_owned()).filter(|line| line.contains(text))
    };
    std::fs::read_dir("/proc").expect("it is there").filter_map(|entry| of(entry.ok()?)).collect()
}

#[track_caller]
fn until_lines(text: &str, is_so: impl Fn(&[String]) -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !is_so(&lines_with(text)) {
        assert!(Instant::now() < end, "{:?}", lines_with(text));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_interpreter_that_never_gets_ready_does_not_hold_its_keeper_up() {
    let mut daemon = Daemon::start(&[]);
    let dir = daemon.dir().at("bin");
    std::fs::create_dir(&dir).expect("ours");
    // One says nothing, and lives on.
    let program = format!("{dir}/python-hangs");
    std::fs::write(&program, "#!/bin/sh\nsleep 600\n").expect("ours");
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
    let set = ["pool", "set", "1", "--ro", &dir, "--warm"];
    daemon.apex(&[&set[..], lenient(), &["--", &program]].concat()).expect_code(0);
    until_lines(&program, |lines| lines.iter().any(|line| line.starts_with("/bin/sh")));
    // Its keeper hears that nobody is left who knows of it.
    daemon.stop();
    until_lines(&program, <[String]>::is_empty);
}

#[test]
fn an_interpreter_that_gives_its_socket_up_is_ended() {
    let daemon = Daemon::start(&[]);
    let dir = daemon.dir().at("bin");
    std::fs::create_dir(&dir).expect("ours");
    let program = format!("{dir}/python-lets-go");
    let lets_go = "#!/bin/bash\nfor fd in /proc/self/fd/*; do n=${fd##*/}; if [ $n -gt 2 ]; then eval \"exec $n>&-\"; fi; done\nsleep 600\n";
    std::fs::write(&program, lets_go).expect("ours");
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
    let set = ["pool", "set", "1", "--ro", &dir, "--warm"];
    daemon.apex(&[&set[..], lenient(), &["--", &program]].concat()).expect_code(0);
    let end = Instant::now() + Duration::from_secs(30);
    while daemon.json(&["pool", "ls"])[0]["error"].as_str().is_none_or(str::is_empty) {
        assert!(Instant::now() < end, "{:#}", daemon.json(&["pool", "ls"]));
        std::thread::sleep(Duration::from_millis(20));
    }
}

//! Interpreters that are started ahead of what they run.

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
            // Hash seed, random numbers, namespace; and the heap, as far as its place is random.
            (0..3).for_each(|at| assert_ne!(other[at], words[at], "{output}"));
        }
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

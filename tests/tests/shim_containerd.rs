//! `containerd-shim-apex-v2` under a containerd of the test's own, with each runtime that is there.

use std::fs;
use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use apex_tests::containerd::{Containerd, missing, runtimes};
use apex_tests::skip;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

macro_rules! containerd {
    () => {{
        if let Some(reason) = missing() {
            skip!(reason);
        }
        Containerd::start(&runtimes()[0])
    }};
}

/// The topics of containerd's events from here on, until `topics` takes them.
struct Events(std::process::Child, String);

impl Events {
    fn listen(containerd: &Containerd) -> Self {
        let path = containerd.at("events");
        let file = fs::File::create(&path).expect("the directory is ours");
        let child = containerd.command(&["events"]).stdout(file).stderr(Stdio::null()).spawn().expect("ctr is there");
        std::thread::sleep(Duration::from_millis(500));
        Events(child, path)
    }

    /// Of tasks: topic and, of an end, its code.
    fn topics(mut self) -> Vec<String> {
        std::thread::sleep(Duration::from_millis(500));
        self.0.kill().expect("it is our child");
        self.0.wait().expect("it is our child");
        let text = fs::read_to_string(&self.1).expect("it is ours");
        text.lines().filter_map(|line| Some(line.split_once("/tasks/")?.1.split(' ').next()?.to_owned())).collect()
    }
}

/// Removes a task; `ctr` tells its code in a warning.
#[track_caller]
fn expect_removed(containerd: &Containerd, name: &str, code: i32) {
    let words = containerd.ctr(&["tasks", "rm", name]).expect_code(0).err();
    assert!(words.contains(&format!("exit code {code}\"")), "{words}");
}

#[test]
fn each_runtime_runs_a_container_and_leaves_nothing() {
    if let Some(reason) = missing() {
        skip!(reason);
    }
    for runtime in runtimes() {
        println!("runtime: {}", runtime.display());
        let containerd = Containerd::start(&runtime);
        assert_eq!(containerd.run(&["--rm"], "one", &["echo", "hello"]).expect_code(0).out(), "hello\n");
        containerd.run(&["--rm"], "two", &["sh", "-c", "echo why >&2; exit 7"]).expect_code(7);
        containerd.run(&["-d"], "three", &["sleep", "1000"]).expect_code(0);
        let exec = containerd.ctr(&["tasks", "exec", "--exec-id", "x", "three", "sh", "-c", "echo in; exit 5"]);
        assert_eq!(exec.expect_code(5).out(), "in\n");
        containerd.ctr(&["tasks", "pause", "three"]).expect_code(0);
        containerd.expect_status("three", Some("PAUSED"));
        containerd.ctr(&["tasks", "resume", "three"]).expect_code(0);
        containerd.expect_status("three", Some("RUNNING"));
        let metrics = containerd.ctr(&["tasks", "metrics", "three"]).expect_code(0).out();
        assert!(metrics.contains("pids.current") && metrics.contains("memory.usage_in_bytes"), "{metrics}");
        assert!(containerd.ctr(&["tasks", "ps", "three"]).expect_code(0).out().lines().count() == 2);
        containerd.ctr(&["tasks", "kill", "-s", "KILL", "three"]).expect_code(0);
        containerd.expect_status("three", Some("STOPPED"));
        expect_removed(&containerd, "three", 137);
        containerd.expect_nothing_left(&["one", "two", "three"]);
    }
}

#[test]
fn output_of_a_hundred_megabytes_is_whole() {
    let containerd = containerd!();
    let script = "yes 0123456789abcdef | head -c 100000000";
    // Into a file: what a client reads from the fifos depends on when the client stops to read as well.
    let file = containerd.at("output");
    containerd.run(&["-d", "--log-uri", &format!("file://{file}")], "big", &["sh", "-c", script]).expect_code(0);
    let end = Instant::now() + Duration::from_secs(60);
    let size = || std::fs::metadata(&file).map_or(0, |facts| facts.len());
    while size() < 100_000_000 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = std::fs::read(&file).expect("it is there");
    assert_eq!(output.len(), 100_000_000);
    let line = b"0123456789abcdef\n";
    assert!(output.iter().enumerate().all(|(at, byte)| *byte == line[at % line.len()]), "another byte");
    containerd.ctr(&["tasks", "rm", "-f", "big"]).expect_code(0);
    containerd.ctr(&["containers", "rm", "big"]).expect_code(0);
}

#[test]
fn input_arrives_whole_and_ends() {
    let containerd = containerd!();
    containerd.run(&["-d"], "in", &["sleep", "1000"]).expect_code(0);
    let mut command = containerd.command(&["tasks", "exec", "--exec-id", "c", "in", "wc", "-c"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("ctr is there");
    let mut stdin = child.stdin.take().expect("piped");
    // An end of input before the exec was started is one that ctr itself forgets.
    std::thread::sleep(Duration::from_millis(500));
    stdin.write_all(&vec![b'x'; 3_000_000]).expect("it is read");
    drop(stdin);
    let mut text = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut text).expect("it is text");
    child.wait().expect("it is our child");
    assert_eq!(text.trim(), "3000000");
}

#[test]
fn a_terminal_is_copied_whole() {
    let containerd = containerd!();
    let script = "test -t 0 && test -t 1 && tty >/dev/null && yes 0123456789abcdef | head -c 1700000; exit 3";
    let arguments = containerd.run_arguments(&["--rm", "-t"], "tty", &["sh", "-c", &format!("'{script}'")]);
    let line = format!("ctr -a {} {}", containerd.at("c.sock"), arguments.join(" "));
    let mut command = std::process::Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("script is there");
    // Held: at an end of its input script types one, which would be seen.
    let held = child.stdin.take();
    let output = child.wait_with_output().expect("it is our child");
    drop(held);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let bytes = output.stdout.into_iter().filter(|byte| *byte != b'\r').collect::<Vec<_>>();
    assert_eq!(bytes.len(), 1_700_000);
    assert!(bytes.chunks(17).all(|line| line == b"0123456789abcdef\n"));
    containerd.expect_nothing_left(&["tty"]);
}

#[test]
fn ten_execs_at_once_keep_their_codes_and_order() {
    let containerd = containerd!();
    containerd.run(&["-d"], "many", &["sleep", "1000"]).expect_code(0);
    let events = Events::listen(&containerd);
    std::thread::scope(|scope| {
        for number in 0..10 {
            let containerd = &containerd;
            scope.spawn(move || {
                let (id, script) = (format!("e{number}"), format!("echo {number}; exit {number}"));
                let output = containerd.ctr(&["tasks", "exec", "--exec-id", &id, "many", "sh", "-c", &script]);
                assert_eq!(output.expect_code(number).out(), format!("{number}\n"));
            });
        }
    });
    let topics = events.topics();
    let count = |name: &str| topics.iter().filter(|topic| *topic == name).count();
    assert_eq!((count("exec-added"), count("exec-started"), count("exit")), (10, 10, 10), "{topics:?}");
    // At no point have more ended than were started.
    let mut running = 0;
    for topic in &topics {
        running += i32::from(topic == "exec-started") - i32::from(topic == "exit");
        assert!(running >= 0, "{topics:?}");
    }
}

#[test]
fn events_come_in_their_order_and_tell_kills_for_memory() {
    let containerd = containerd!();
    let events = Events::listen(&containerd);
    containerd.run(&["--rm", "--memory-limit", "20000000"], "oom", &["tail", "/dev/zero"]).expect_code(137);
    assert_eq!(events.topics(), ["create", "start", "oom", "exit", "delete"]);
}

#[test]
fn a_group_shares_a_shim() {
    let containerd = containerd!();
    let flags = ["-d", "--annotation", "io.kubernetes.cri.sandbox-id=pod"];
    for name in ["p1", "p2", "p3"] {
        containerd.run(&flags, name, &["sleep", "1000"]).expect_code(0);
    }
    containerd.run(&["-d"], "alone", &["sleep", "1000"]).expect_code(0);
    assert_eq!(containerd.shims().len(), 2, "{}", containerd.log());
    for name in ["p1", "p2", "p3", "alone"] {
        containerd.ctr(&["tasks", "rm", "-f", name]);
    }
    containerd.expect_nothing_left(&["p1", "p2", "p3", "alone"]);
}

#[test]
fn processes_of_a_shared_pid_namespace_end_with_the_first() {
    if let Some(reason) = missing() {
        skip!(reason);
    }
    for runtime in runtimes() {
        println!("runtime: {}", runtime.display());
        let containerd = Containerd::start(&runtime);
        containerd.run(&["-d"], "base", &["sleep", "1000"]).expect_code(0);
        let list = containerd.ctr(&["tasks", "ps", "base"]).expect_code(0).out();
        let pid = list.lines().nth(1).and_then(|row| row.split_whitespace().next()).expect("it has a process");
        let namespace = format!("pid:/proc/{pid}/ns/pid");
        let command = ["sh", "-c", "sleep 2000 & sleep 0.3; exit 6"];
        containerd.run(&["--rm", "--with-ns", &namespace], "shared", &command).expect_code(6);
        let inside = containerd.ctr(&["tasks", "exec", "--exec-id", "x", "base", "ps"]).expect_code(0).out();
        assert!(inside.contains("sleep 1000") && !inside.contains("sleep 2000"), "{inside}\n{}", containerd.log());
        containerd.ctr(&["tasks", "rm", "-f", "base"]);
        containerd.expect_nothing_left(&["shared", "base"]);
    }
}

#[test]
fn a_killed_shim_leaves_nothing() {
    let containerd = containerd!();
    containerd.run(&["-d"], "lost", &["sleep", "1000"]).expect_code(0);
    let shims = containerd.shims();
    assert_eq!(shims.len(), 1);
    kill(Pid::from_raw(shims[0]), Signal::SIGKILL).expect("it is there");
    containerd.expect_status("lost", None);
    containerd.expect_nothing_left(&["lost"]);
}

#[test]
fn a_killed_containerd_finds_its_containers_again() {
    let mut containerd = containerd!();
    let log = containerd.at("on.log");
    let to_file = format!("file://{log}");
    let script = "while :; do echo x; sleep 0.1; done";
    containerd.run(&["-d", "--log-uri", &to_file], "on", &["sh", "-c", script]).expect_code(0);
    containerd.run(&["-d"], "ended", &["sh", "-c", "sleep 1; exit 4"]).expect_code(0);
    let mut before = 0;
    containerd.replace(|| {
        before = fs::metadata(&log).expect("it is written").len();
        std::thread::sleep(Duration::from_secs(2));
    });
    assert!(fs::metadata(&log).expect("it is written").len() > before, "the container went on");
    containerd.expect_status("on", Some("RUNNING"));
    let exec = containerd.ctr(&["tasks", "exec", "--exec-id", "x", "on", "echo", "again"]);
    assert_eq!(exec.expect_code(0).out(), "again\n");
    containerd.expect_status("ended", Some("STOPPED"));
    expect_removed(&containerd, "ended", 4);
    containerd.ctr(&["tasks", "kill", "-s", "KILL", "on"]).expect_code(0);
    containerd.expect_status("on", Some("STOPPED"));
    expect_removed(&containerd, "on", 137);
    containerd.expect_nothing_left(&["on", "ended"]);
}

#[test]
fn a_log_program_gets_both_streams_to_their_end() {
    let containerd = containerd!();
    let out = containerd.at("logged");
    let text = format!(
        "#!/bin/sh\nexec >{out}\necho \"$CONTAINER_ID $CONTAINER_NAMESPACE $*\"\nexec 5>&-\ncat <&3\ncat <&4\nsleep 0.3\necho end\n"
    );
    let uri = format!("binary://{}?a=b&c=d%20e", containerd.script("logger", &text));
    containerd.run(&["-d", "--log-uri", &uri], "told", &["sh", "-c", "echo out; echo err >&2"]).expect_code(0);
    containerd.expect_status("told", Some("STOPPED"));
    // The deletion waits for the program.
    containerd.ctr(&["tasks", "rm", "told"]).expect_code(0);
    assert_eq!(fs::read_to_string(&out).expect("it is written"), "told default a b c d e\nout\nerr\nend\n");
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    let containerd = containerd!();
    fs::write(containerd.at("shim.toml"), "BinaryNam = '/x'\n").expect("it is ours");
    let error = containerd.run(&["--rm"], "bad", &["true"]).err();
    assert!(error.contains("shim.toml") && error.contains("BinaryName"), "{error}");
    fs::write(containerd.at("shim.toml"), "BinaryName = 'not-there'\n").expect("it is ours");
    let error = containerd.run(&["--rm"], "bad", &["true"]).err();
    assert!(error.contains("not-there") && error.contains("PATH"), "{error}");
    fs::write(containerd.at("shim.toml"), "BinaryName = '/usr/sbin/runc'\n").expect("it is ours");
    let error = containerd.run(&["--rm"], "bad", &["/not/there"]).err();
    assert!(error.contains("/not/there"), "{error}");
    containerd.expect_nothing_left(&["bad"]);
}

/// A runtime that does what it is asked to and then fails, at this command.
fn failing(containerd: &Containerd, verb: &str) {
    let runtime = runtimes().remove(0);
    let runtime = runtime.display();
    let text = format!(
        "#!/bin/sh\nfor word; do\n  if [ \"$word\" = {verb} ]; then {runtime} \"$@\"; exit 1; fi\ndone\nexec {runtime} \"$@\"\n"
    );
    let path = containerd.script("failing", &text);
    fs::write(containerd.at("shim.toml"), format!("BinaryName = {path:?}\nRoot = {:?}\n", containerd.at("runtime")))
        .expect("it is ours");
}

#[test]
fn a_runtime_that_fails_at_any_command_leaves_nothing() {
    let containerd = containerd!();
    for verb in ["create", "start", "delete"] {
        failing(&containerd, verb);
        let name = format!("c-{verb}");
        let output = containerd.run(&["--rm"], &name, &["sleep", "0.2"]);
        assert!(output.err().contains(&format!("cannot {verb} {name}")), "{verb}: {output:?}");
        // Whoever was told that a deletion failed tries again.
        containerd.ctr(&["tasks", "rm", "-f", &name]);
        containerd.expect_status(&name, None);
        containerd.expect_nothing_left(&[&name]);
    }
    failing(&containerd, "exec");
    containerd.run(&["-d"], "whole", &["sleep", "1000"]).expect_code(0);
    let exec = containerd.ctr(&["tasks", "exec", "--exec-id", "x", "whole", "sleep", "0.1"]);
    assert!(exec.code != 0 && exec.err().contains("cannot exec in whole"), "{exec:?}");
    containerd.expect_status("whole", Some("RUNNING"));
    containerd.ctr(&["tasks", "rm", "-f", "whole"]);
    containerd.expect_nothing_left(&["whole"]);
}

#[test]
fn a_runtime_that_is_killed_while_it_creates_leaves_nothing() {
    let containerd = containerd!();
    let text = "#!/bin/sh\nfor word; do\n  if [ \"$word\" = create ]; then kill -9 $$; fi\ndone\nexec runc \"$@\"\n";
    let path = containerd.script("killed", text);
    fs::write(containerd.at("shim.toml"), format!("BinaryName = {path:?}\n")).expect("it is ours");
    let error = containerd.run(&["--rm"], "cut", &["true"]).err();
    assert!(error.contains("exit 137"), "{error}");
    containerd.expect_nothing_left(&["cut"]);
}

#[test]
fn a_killed_shim_of_a_group_takes_each_container_with_it() {
    let containerd = containerd!();
    let flags = ["-d", "--annotation", "io.containerd.runc.v2.group=g"];
    for name in ["g1", "g2"] {
        containerd.run(&flags, name, &["sleep", "1000"]).expect_code(0);
    }
    let shims = containerd.shims();
    assert_eq!(shims.len(), 1);
    kill(Pid::from_raw(shims[0]), Signal::SIGKILL).expect("it is there");
    for name in ["g1", "g2"] {
        containerd.expect_status(name, None);
    }
    containerd.expect_nothing_left(&["g1", "g2"]);
    // The socket of the group can be taken again.
    containerd.run(&flags, "g3", &["sleep", "1000"]).expect_code(0);
    assert_eq!(containerd.shims().len(), 1);
}

#[test]
fn fifty_containers_leave_nothing() {
    let containerd = containerd!();
    let names = (0..50).map(|number| format!("n{number}")).collect::<Vec<_>>();
    for name in &names {
        containerd.run(&["--rm"], name, &["true"]).expect_code(0);
    }
    containerd.expect_nothing_left(&names.iter().map(String::as_str).collect::<Vec<_>>());
}

//! The life of a container of `apex-oci` from outside: its states and what each of them refuses, exit codes, signals, streams, ids.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use apex_tests::bundle;
use apex_tests::oci::{Bundle, status_field};
use apex_tests::{Output, sandbox};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// A command that must fail with exit code 1 and these words.
#[track_caller]
fn refused(output: Output, words: &str) {
    let output = output.expect_code(1);
    assert!(output.err().contains(words), "the message lacks {words:?}: {}", output.err());
    assert!(!output.err().contains("panicked"), "{}", output.err());
}

/// The same of an exec, where 1 is often the program's own code.
fn refused_exec(output: Output, words: &str) {
    let output = output.expect_code(255);
    assert!(output.err().contains(words), "the message lacks {words:?}: {}", output.err());
    assert!(!output.err().contains("panicked"), "{}", output.err());
}

#[test]
fn each_state_is_told() {
    let bundle = bundle!().args(&["sleep", "300"]);
    assert_eq!(bundle.status(), "gone");
    bundle.create().expect_code(0);
    assert_eq!(bundle.status(), "created");
    bundle.must("start");
    assert_eq!(bundle.status(), "running");
    bundle.must("pause");
    assert_eq!(bundle.status(), "paused");
    bundle.must("resume");
    assert_eq!(bundle.status(), "running");
    bundle.oci(&["kill", &bundle.id, "KILL"]).expect_code(0);
    bundle.until("stopped");
    bundle.must("delete");
    assert_eq!(bundle.status(), "gone");
    bundle.expect_nothing_left();
}

#[test]
fn a_state_has_what_the_specification_names() {
    let bundle = bundle!().args(&["sleep", "300"]).set("/annotations", json!({"org.example": "a b\"c"}));
    bundle.create().expect_code(0);
    let state = bundle.state();
    assert_eq!(state["id"], bundle.id);
    assert_eq!(state["bundle"], bundle.path());
    assert_eq!(state["annotations"]["org.example"], "a b\"c");
    assert!(state["ociVersion"].as_str().expect("text").starts_with("1."), "{state}");
    let pid = bundle.pid();
    assert!(fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it lives").contains(&bundle.mark().0));
    bundle.must("start");
    assert_eq!(bundle.pid(), pid);
    assert_eq!(fs::read(format!("/proc/{pid}/cmdline")).expect("it lives"), b"sleep\x00300\x00");
}

#[test]
fn what_a_created_container_refuses() {
    let bundle = bundle!().args(&["sleep", "300"]);
    bundle.create().expect_code(0);
    refused(bundle.create(), "exists already");
    refused(bundle.oci(&["resume", &bundle.id]), "created");
    // What runs in it before the start is allowed, as with runc.
    assert_eq!(bundle.exec("echo early").expect_code(0).out(), "early\n");
    bundle.must("delete");
    bundle.expect_nothing_left();
}

#[test]
fn what_a_running_container_refuses() {
    let bundle = bundle!().args(&["sleep", "300"]);
    bundle.up();
    refused(bundle.oci(&["start", &bundle.id]), "running");
    refused(bundle.oci(&["delete", &bundle.id]), "running");
    refused(bundle.oci(&["resume", &bundle.id]), "running");
    refused(bundle.create(), "exists already");
    refused(bundle.oci(&["kill", &bundle.id, "NOPE"]), "no signal");
    bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
    bundle.expect_nothing_left();
}

#[test]
fn what_a_paused_container_refuses() {
    let bundle = bundle!().args(&["sleep", "300"]);
    bundle.up().must("pause");
    refused_exec(bundle.exec("true"), "paused");
    refused(bundle.oci(&["pause", &bundle.id]), "paused");
    refused(bundle.oci(&["start", &bundle.id]), "paused");
    refused(bundle.oci(&["delete", &bundle.id]), "paused");
    bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
    bundle.expect_nothing_left();
}

#[test]
fn a_paused_container_dies_of_kill() {
    let bundle = bundle!().args(&["sleep", "300"]);
    bundle.up().must("pause");
    bundle.oci(&["kill", &bundle.id, "KILL"]).expect_code(0);
    bundle.until("stopped");
    bundle.must("delete");
}

#[test]
fn what_a_stopped_container_refuses() {
    let bundle = bundle!();
    bundle.up().until("stopped");
    for word in ["start", "pause", "resume"] {
        refused(bundle.oci(&[word, &bundle.id]), "stopped");
    }
    refused(bundle.oci(&["kill", &bundle.id, "TERM"]), "not running");
    refused_exec(bundle.exec("true"), "not running");
    refused(bundle.oci(&["update", "--memory", "64M", &bundle.id]), "stopped");
    assert_eq!(bundle.state()["pid"], 0);
    bundle.must("delete");
    bundle.expect_nothing_left();
}

#[test]
fn what_does_not_exist_is_said() {
    let bundle = bundle!();
    for word in ["start", "state", "pause", "resume", "kill", "delete", "ps", "events"] {
        refused(bundle.oci(&[word, "nobody"]), "does not exist");
    }
    bundle.oci(&["delete", "--force", "nobody"]).expect_code(0);
}

#[test]
fn exit_codes_come_out() {
    let cases = [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137), ("kill -15 $$; sleep 9", 143)];
    for (script, code) in cases {
        // The first process of a pid namespace does not die of its own signals.
        let bundle = bundle!().args(&["sh", "-c", &format!("sh -c '{script}'; exit $?")]);
        bundle.run().expect_code(code);
        bundle.expect_nothing_left();
    }
    let bundle = bundle!().args(&["sleep", "300"]);
    bundle.up();
    bundle.exec("exit 9").expect_code(9);
    bundle.exec("kill -9 $$").expect_code(137);
}

#[test]
fn a_program_that_cannot_run_is_told() {
    let bundle = bundle!().args(&["/nowhere/to/be/found"]);
    refused(bundle.run(), "/nowhere/to/be/found");
    bundle.expect_nothing_left();
    let bundle = bundle!().args(&["/etc/passwd"]);
    refused(bundle.run(), "/etc/passwd");
    bundle.expect_nothing_left();
    let bundle = bundle!().args(&["sleep", "300"]);
    bundle.up();
    refused_exec(bundle.oci(&["exec", &bundle.id, "/nowhere"]), "/nowhere");
    assert_eq!(bundle.status(), "running");
}

#[test]
fn signals_go_in() {
    let bundle = bundle!()
        .sh("trap 'echo got usr1' USR1; trap 'echo got term; exit 3' TERM; echo ready; while :; do sleep 0.1; done");
    bundle.write();
    let (child, number) = bundle.spawn(bundle.command(&["run", "--bundle", &bundle.path(), &bundle.id]));
    let log = bundle.dir().path().join(format!("{number}.out"));
    let until = |words: &str| {
        let end = Instant::now() + Duration::from_secs(20);
        while !fs::read_to_string(&log).expect("it is there").contains(words) {
            assert!(Instant::now() < end, "no {words:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    until("ready");
    bundle.oci(&["kill", &bundle.id, "SIGUSR1"]).expect_code(0);
    until("usr1");
    // To the caller in front: it passes it on.
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).expect("it runs");
    until("got term");
    bundle.outcome(child, number).expect_code(3);
    bundle.expect_nothing_left();
}

#[test]
fn kill_all_reaches_every_process_without_a_pid_namespace() {
    let bundle = bundle!().namespace("pid", None).sh("sleep 301 & sleep 302 & wait");
    bundle.up();
    bundle.oci(&["kill", "--all", &bundle.id, "KILL"]).expect_code(0);
    bundle.until("stopped");
    bundle.must("delete");
    bundle.expect_nothing_left();
}

#[test]
fn the_end_of_the_first_process_leaves_nobody_behind() {
    for with_pid_namespace in [true, false] {
        let mut bundle = bundle!().sh("sleep 301 & sleep 302 & exit 4");
        if !with_pid_namespace {
            bundle = bundle.namespace("pid", None);
        }
        bundle.run().expect_code(4);
        bundle.expect_nothing_left();
    }
}

#[test]
fn pid_files_hold_the_pid() {
    let bundle = bundle!().args(&["sleep", "300"]);
    bundle.write();
    let file = bundle.dir().at("pid");
    bundle.oci(&["create", "--pid-file", &file, "-b", &bundle.path(), &bundle.id]).expect_code(0);
    assert_eq!(bundle.dir().read("pid"), bundle.pid().to_string());
    bundle.must("start");
    bundle.oci(&["exec", "-d", "--pid-file", &file, &bundle.id, "sleep", "303"]).expect_code(0);
    let pid = bundle.dir().read("pid");
    assert_eq!(fs::read(format!("/proc/{pid}/cmdline")).expect("it lives"), b"sleep\x00303\x00");
    assert_ne!(pid, bundle.pid().to_string());
}

#[test]
fn a_pid_file_that_cannot_be_written_fails_the_create() {
    let bundle = bundle!();
    bundle.write();
    let words = ["create", "--pid-file", "/proc/nowhere", "-b", &bundle.path(), &bundle.id];
    refused(bundle.oci(&words), "/proc/nowhere");
    bundle.expect_nothing_left();
}

#[test]
fn streams_are_exact() {
    const SIZE: usize = 50 << 20;
    let bundle = bundle!().sh("cat; echo end >&2");
    bundle.write();
    let mut command = bundle.command(&["run", "--bundle", &bundle.path(), &bundle.id]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut input = child.stdin.take().expect("piped");
    // No period that a buffer's size could hide.
    let bytes: Vec<u8> = (0..SIZE as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || input.write_all(&sent));
    let output = sandbox::collect(child).expect_code(0);
    writer.join().expect("no panic").expect("everything is read");
    assert!(output.stdout == bytes, "{} bytes came of {SIZE}, or others", output.stdout.len());
    assert_eq!(output.err(), "end\n");
}

#[test]
fn exec_has_its_own_streams() {
    let bundle = bundle!().args(&["sleep", "300"]);
    bundle.up();
    let mut command = bundle.command(&["exec", &bundle.id, "sh", "-c", "cat; echo err >&2; exit 5"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    child.stdin.take().expect("piped").write_all(b"a\0b").expect("it reads");
    let output = sandbox::collect(child).expect_code(5);
    assert_eq!((output.stdout.as_slice(), output.err().as_str()), (&b"a\0b"[..], "err\n"));
}

#[test]
fn detached_it_lives_on() {
    let bundle = bundle!().args(&["sleep", "300"]);
    bundle.run_with(&["--detach"]).expect_code(0);
    assert_eq!(bundle.status(), "running");
    assert_eq!(status_field(&bundle.pid().to_string(), "State"), "S (sleeping)");
    bundle.oci(&["delete", "-f", &bundle.id]).expect_code(0);
    bundle.expect_nothing_left();
}

#[test]
fn kept_it_is_there_after_its_end() {
    let bundle = bundle!().args(&["sh", "-c", "exit 6"]);
    bundle.run_with(&["--keep"]).expect_code(6);
    assert_eq!(bundle.status(), "stopped");
    bundle.must("delete");
}

#[test]
fn ids_are_names_and_nothing_else() {
    let mut bundle = bundle!().args(&["sleep", "300"]);
    let long = "x".repeat(255);
    for id in ["a", "A.b_c+d-e", "0", "-dash", "...", long.as_str()] {
        bundle.id = id.to_owned();
        bundle.write();
        let path = bundle.path();
        // A word that begins with a dash needs the separator.
        bundle.oci(&["create", "-b", &path, "--", id]).expect_code(0);
        let state = bundle.oci(&["state", "--", id]).expect_code(0).json();
        assert_eq!((&state["id"], &state["status"]), (&json!(id), &json!("created")));
        bundle.oci(&["delete", "--force", "--", id]).expect_code(0);
        bundle.expect_nothing_left();
    }
    let too_long = "x".repeat(256);
    for id in ["", ".", "..", "../x", "a/b", "/", "a b", "a\nb", "ä", "a\u{1b}[31m", "*", "$(id)", too_long.as_str()] {
        bundle.id = id.to_owned();
        refused(bundle.create(), "cannot be a container's id");
        for word in ["state", "start", "delete"] {
            refused(bundle.oci(&[word, id]), "cannot be a container's id");
        }
        bundle.expect_nothing_left();
    }
}

#[test]
fn of_two_creates_of_one_id_one_wins() {
    let bundle = bundle!().args(&["sleep", "300"]);
    bundle.write();
    let path = bundle.path();
    for round in 0..20 {
        let words = ["create", "--bundle", &path, &bundle.id];
        let racers = [bundle.spawn(bundle.command(&words)), bundle.spawn(bundle.command(&words))];
        let outputs = racers.map(|(child, number)| bundle.outcome(child, number));
        let codes = BTreeSet::from(outputs.each_ref().map(|output| output.code));
        assert_eq!(codes, BTreeSet::from([0, 1]), "round {round}: {outputs:?}");
        let loser = outputs.iter().find(|output| output.code == 1).expect("one of them");
        assert!(loser.err().contains("exists already"), "{}", loser.err());
        assert_eq!(bundle.status(), "created");
        bundle.exec("true").expect_code(0);
        bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
        bundle.expect_nothing_left();
    }
}

#[test]
fn starts_that_race_start_it_once() {
    let bundle = bundle!().sh("echo begun >> /tmp/begun; sleep 300");
    for _ in 0..5 {
        bundle.create().expect_code(0);
        let racers: Vec<_> = (0..3).map(|_| bundle.spawn(bundle.command(&["start", &bundle.id]))).collect();
        let codes: Vec<i32> = racers.into_iter().map(|(child, number)| bundle.outcome(child, number).code).collect();
        assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?}");
        let begun = || fs::read_to_string(bundle.rootfs().join("tmp/begun")).unwrap_or_default();
        let end = Instant::now() + Duration::from_secs(10);
        while begun().is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(begun(), "begun\n");
        bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
        fs::remove_file(bundle.rootfs().join("tmp/begun")).expect("it is there");
    }
}

/// Whoever comes late in a race says why, with words; nobody hangs, nothing stays.
#[test]
fn kills_and_deletes_race_without_harm() {
    let bundle = bundle!().args(&["sleep", "300"]);
    for _ in 0..10 {
        bundle.up();
        let id = bundle.id.as_str();
        let lines: [&[&str]; 6] = [
            &["kill", id, "KILL"],
            &["delete", "--force", id],
            &["delete", id],
            &["kill", id, "TERM"],
            &["delete", "--force", id],
            &["exec", id, "true"],
        ];
        let racers: Vec<_> = lines.iter().map(|words| bundle.spawn(bundle.command(words))).collect();
        for (child, number) in racers {
            let output = bundle.outcome(child, number);
            // The exec may have been killed with the container.
            assert!([0, 1, 137, 255].contains(&output.code), "{output:?}");
            assert!(!output.err().contains("panicked"), "{output:?}");
            assert!(![1, 255].contains(&output.code) || !output.err().trim().is_empty(), "a failure without words");
        }
        bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
        bundle.expect_nothing_left();
    }
}

#[test]
fn the_log_has_a_json_line_a_failure() {
    let bundle = bundle!().args(&["/no\"where"]);
    bundle.write();
    let log = bundle.dir().at("log");
    for _ in 0..2 {
        let words = ["--log", &log, "--log-format", "json", "run", "-b", &bundle.path(), &bundle.id];
        bundle.oci(&words).expect_code(1);
    }
    let text = bundle.dir().read("log");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 2, "{text}");
    for line in lines {
        assert_eq!(line["level"], "error");
        assert!(line["msg"].as_str().expect("text").contains("no such file"), "{line}");
        assert!(line["msg"].as_str().expect("text").contains(r"/no"), "{line}");
        assert!(line["time"].as_str().expect("text").ends_with('Z'), "{line}");
    }
}

#[test]
fn lists_have_each_container_once() {
    let bundle = bundle!().args(&["sleep", "300"]);
    assert_eq!(bundle.oci(&["list", "-q"]).expect_code(0).out(), "");
    bundle.up();
    assert_eq!(bundle.oci(&["list", "-q"]).expect_code(0).out(), format!("{}\n", bundle.id));
    let list = bundle.oci(&["list", "--format", "json"]).expect_code(0).json();
    assert_eq!(list.as_array().expect("an array").len(), 1);
    assert_eq!((&list[0]["id"], &list[0]["status"]), (&json!(bundle.id), &json!("running")));
    let table = bundle.oci(&["list"]).expect_code(0).out();
    let mut lines = table.lines();
    let head: Vec<&str> = lines.next().expect("a head").split_whitespace().collect();
    assert_eq!(head, ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
    let row: Vec<&str> = lines.next().expect("a row").split_whitespace().collect();
    assert_eq!((row[0], row[1], row[2]), (bundle.id.as_str(), bundle.pid().to_string().as_str(), "running"));
}

#[test]
fn ps_has_the_processes_inside() {
    let bundle = bundle!().sh("sleep 301 & sleep 302 & wait");
    bundle.up();
    let inside = |pid: i64| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let pids = bundle.oci(&["ps", "--format", "json", &bundle.id]).expect_code(0).json();
        let pids: Vec<i64> = pids.as_array().expect("an array").iter().filter_map(Value::as_i64).collect();
        let sleeps = pids.iter().filter(|pid| inside(**pid).starts_with(b"sleep\0")).count();
        if (pids.len(), sleeps) == (3, 2) {
            break;
        }
        assert!(Instant::now() < end, "{pids:?}");
    }
    let table = bundle.oci(&["ps", &bundle.id]).expect_code(0).out();
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.contains("sleep 302"), "{table}");
}

#[test]
fn events_tell_what_is_used() {
    let bundle = bundle!().args(&["sleep", "300"]);
    bundle.up();
    let event = bundle.oci(&["events", "--stats", &bundle.id]).expect_code(0).json();
    assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!(bundle.id)));
    let data = &event["data"];
    assert_eq!(data["pids"]["current"], 1, "{data}");
    assert!(data["memory"]["usage"]["usage"].as_u64().is_some_and(|bytes| bytes > 0), "{data}");
    assert!(data["cpu"]["usage"]["total"].as_u64().is_some_and(|ns| ns > 0), "{data}");
}

#[test]
fn events_follow_until_the_end() {
    let bundle = bundle!().args(&["sleep", "2"]);
    bundle.up();
    let output = bundle.oci(&["events", "--interval", "1s", &bundle.id]).expect_code(0);
    let lines = output.out();
    assert!((1..=4).contains(&lines.lines().count()), "{lines}");
    bundle.until("stopped");
}

#[test]
fn paused_nothing_runs() {
    let bundle = bundle!().sh("while :; do echo x >> /tmp/ticks; usleep 5000; done");
    bundle.up();
    let ticks = || fs::metadata(bundle.rootfs().join("tmp/ticks")).map_or(0, |facts| facts.len());
    let end = Instant::now() + Duration::from_secs(10);
    while ticks() == 0 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    bundle.must("pause");
    let before = ticks();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(ticks(), before, "a paused container wrote");
    assert!(before > 0);
    bundle.must("resume");
    while ticks() == before && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(ticks() > before, "a resumed container writes nothing");
}

#[test]
fn update_is_seen_in_the_cgroup() {
    let bundle = bundle!().args(&["sleep", "300"]);
    bundle.up();
    let words =
        ["update", "--memory", "67108864", "--pids-limit", "77", "--cpu-quota", "30000", "--cpu-period", "60000"];
    bundle.oci(&[&words[..], &["--cpu-shares", "200", &bundle.id]].concat()).expect_code(0);
    assert_eq!(bundle.cgroup_file("memory", "memory.limit_in_bytes"), "67108864");
    assert_eq!(bundle.cgroup_file("pids", "pids.max"), "77");
    assert_eq!(bundle.cgroup_file("cpu", "cpu.cfs_quota_us"), "30000");
    assert_eq!(bundle.cgroup_file("cpu", "cpu.cfs_period_us"), "60000");
    assert_eq!(bundle.cgroup_file("cpu", "cpu.shares"), "200");
    let file = bundle.dir().file("limits.json", r#"{"pids":{"limit":88},"memory":{"limit":134217728}}"#);
    bundle.oci(&["update", "--resources", &file, &bundle.id]).expect_code(0);
    assert_eq!(bundle.cgroup_file("pids", "pids.max"), "88");
    assert_eq!(bundle.cgroup_file("memory", "memory.limit_in_bytes"), "134217728");
    refused(bundle.oci(&["update", "--memory", "lots", &bundle.id]), "lots");
}

/// Reads until the other end is closed, a pipe's writer that outlives its command included.
fn rest(mut pipe: impl Read) -> String {
    let mut text = String::new();
    pipe.read_to_string(&mut text).expect("text");
    text
}

#[test]
fn nothing_holds_the_streams_after_the_end() {
    let bundle: Bundle = bundle!().sh("echo one; sleep 301 & echo two");
    bundle.write();
    let mut command = bundle.command(&["run", "--bundle", &bundle.path(), &bundle.id]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("starts");
    let out = rest(child.stdout.take().expect("piped"));
    assert_eq!(out, "one\ntwo\n");
    assert_eq!(sandbox::exit_code(child.wait().expect("ours")), 0);
}

/// Descriptors 3 and up as a shell opens them for the command.
#[track_caller]
fn with_descriptors(bundle: &Bundle, prelude: &str, words: &[&str]) -> Output {
    let plain = bundle.command(words);
    let mut command = std::process::Command::new("/bin/sh");
    command.args(["-c", &format!("{prelude} exec \"$@\""), "sh"]).arg(plain.get_program()).args(plain.get_args());
    command.current_dir(bundle.dir().path());
    bundle.finish(command)
}

/// Numbers of open descriptors as the program inside tells them.
fn numbers(output: &Output) -> Vec<u32> {
    let text = output.out();
    let of = |line: &str| line.strip_prefix("fd ")?.split(' ').next()?.parse().ok();
    text.lines().filter_map(of).collect()
}

#[test]
fn only_preserved_descriptors_come_in() {
    let bundle = bundle!().args(&["inside", "descriptors"]);
    bundle.write();
    let (one, two) = (bundle.dir().file("one", "1"), bundle.dir().file("two", "2"));
    let prelude = format!("exec 3<{one} 4<{two} 5<{two} 9<{one};");
    let path = bundle.path();
    let output = with_descriptors(&bundle, &prelude, &["run", "-b", &path, &bundle.id]).expect_code(0);
    assert_eq!(numbers(&output), [0, 1, 2], "{}", output.out());
    let output = with_descriptors(&bundle, &prelude, &["run", "--preserve-fds", "2", "-b", &path, &bundle.id]);
    let output = output.expect_code(0);
    assert_eq!(numbers(&output), [0, 1, 2, 3, 4], "{}", output.out());
    assert!(output.out().contains("/one") && output.out().contains("/two"), "{}", output.out());
    for count in ["4", "100000", "4294967295"] {
        let output = with_descriptors(&bundle, &prelude, &["run", "--preserve-fds", count, "-b", &path, &bundle.id]);
        refused(output, "not open");
        bundle.expect_nothing_left();
    }
}

#[test]
fn exec_has_only_preserved_descriptors() {
    let bundle = bundle!().args(&["sleep", "300"]);
    bundle.up();
    let file = bundle.dir().file("one", "1");
    let prelude = format!("exec 3<{file} 4<{file} 9<{file};");
    for (count, expected) in [("0", &[0, 1, 2][..]), ("2", &[0, 1, 2, 3, 4])] {
        let words = ["exec", "--preserve-fds", count, &bundle.id, "inside", "descriptors"];
        let output = with_descriptors(&bundle, &prelude, &words).expect_code(0);
        assert_eq!(numbers(&output), expected, "{}", output.out());
    }
    let words = ["exec", "--preserve-fds", "4294967295", &bundle.id, "true"];
    refused_exec(with_descriptors(&bundle, &prelude, &words), "not open");
}

#[test]
fn sockets_of_activation_come_first() {
    let bundle = bundle!().sh("echo $LISTEN_FDS $LISTEN_PID $LISTEN_FDNAMES; inside descriptors");
    bundle.write();
    let file = bundle.dir().file("one", "1");
    let prelude = format!("exec 3<{file} 4<{file} 5<{file} 6<{file}; export LISTEN_FDS=2 LISTEN_FDNAMES=a:b;");
    let words = ["run", "--preserve-fds", "1", "-b", &bundle.path(), &bundle.id];
    let output = with_descriptors(&bundle, &prelude, &words).expect_code(0);
    assert!(output.out().starts_with("2 1 a:b\n"), "{}", output.out());
    assert_eq!(numbers(&output), [0, 1, 2, 3, 4, 5], "{}", output.out());
    let prelude = format!("exec 3<{file}; export LISTEN_FDS=4294967295;");
    refused(with_descriptors(&bundle, &prelude, &["run", "-b", &bundle.path(), &bundle.id]), "not open");
}

/// A harness that sees nothing would let everything pass.
#[test]
fn the_harness_sees_what_is_there() {
    let bundle = bundle!().args(&["sleep", "300"]);
    bundle.up();
    let left = bundle.left().join("\n");
    for kind in ["process ", "cgroup ", "state "] {
        assert!(left.contains(kind), "no {kind}in {left}");
    }
}

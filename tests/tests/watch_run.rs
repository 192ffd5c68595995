//! `apex-run --watch`: what the record holds, that watching changes nothing of the command, and that nothing runs unwatched.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use apex_core::event::{Event, Loss, What};
use apex_core::watch::{Family, Source};
use apex_tests::{Output, Sandbox, TempDir, as_root, each_mode};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PATIENCE: Duration = Duration::from_secs(15);

/// A record of events in a directory of its own.
struct Record(TempDir);

impl Record {
    fn new() -> Self {
        Record(TempDir::new())
    }

    fn path(&self) -> String {
        self.0.at("events")
    }

    /// The events; the head and the tail must be where they belong, and the tail's count must be right.
    #[track_caller]
    fn events(&self) -> Vec<Event> {
        let text = self.0.read("events");
        let events: Vec<Event> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
            .collect();
        let (first, last) = (events.first().expect("a record has a head"), events.last().expect("and a tail"));
        assert!(matches!(first.what, What::Start(_)), "{first:?}");
        let What::End(end) = &last.what else { panic!("the record ends with {last:?}") };
        assert_eq!(end.events, events.len() as u64, "{text}");
        assert!(end.lost.is_empty(), "{end:?}");
        let sandbox = first.sandbox;
        assert!(sandbox != 0 && events.iter().all(|event| event.sandbox == sandbox), "{text}");
        events
    }
}

fn programs(events: &[Event]) -> Vec<&str> {
    events.iter().filter_map(program_of).collect()
}

fn program_of(event: &Event) -> Option<&str> {
    match &event.what {
        What::Exec { path, .. } => Some(path),
        _ => None,
    }
}

#[track_caller]
fn expect_nothing_left(sandbox: &Sandbox, output: &Output) {
    sandbox.expect_nothing_left(output);
}

#[test]
fn the_record_is_whole_in_every_mode() {
    each_mode(|mode| {
        let record = Record::new();
        let sandbox = Sandbox::new().mode(mode).args(["--watch", "--events", &record.path()]);
        let output = sandbox.run(&["/bin/sh", "-c", "/bin/echo out; /bin/echo err >&2; unshare -r /bin/true; exit 3"]);
        assert_eq!((output.code, output.out().as_str()), (3, "out\n"), "{}", output.err());
        let events = record.events();
        let What::Start(start) = &events[0].what else { panic!("{:?}", events[0]) };
        assert_eq!((start.mode.as_str(), start.command[0].as_str()), (mode.name(), "/bin/sh"));
        assert_eq!(start.sources[&Family::Refusal], Source::Listener);
        let wanted = if as_root() { Source::Probe } else { Source::Ptrace };
        assert_eq!(start.sources[&Family::Process], wanted, "{:?}", start.sources);
        let seen = programs(&events);
        assert!(seen.iter().filter(|path| path.ends_with("/echo")).count() == 2, "{seen:?}");
        let ended = |code| events.iter().any(|event| event.what == What::Exit { code: Some(code), signal: None });
        assert!(ended(3) && ended(0), "{events:?}");
        expect_nothing_left(&sandbox, &output);
    });
}

#[test]
fn a_refused_call_is_told_after_what_happened_before_it() {
    let record = Record::new();
    let output = Sandbox::new().args(["--events", &record.path()]).run(&["/bin/sh", "-c", "unshare -r /bin/true"]);
    output.expect_code(1);
    let events = record.events();
    let refused = events.iter().position(|event| matches!(&event.what, What::Refused(call) if call.call == "unshare"));
    let refused = refused.expect("the call was refused");
    let caller = &events[refused];
    assert_eq!((caller.comm.as_str(), caller.error.and_then(|error| error.name())), ("unshare", Some("EPERM")));
    let is_exec = |event: &Event| event.pid == caller.pid && matches!(event.what, What::Exec { .. });
    assert!(events[..refused].iter().any(is_exec), "the exec of the caller comes first: {events:#?}");
}

#[test]
fn explanations_and_watching_go_together() {
    let record = Record::new();
    let output = Sandbox::new()
        .args(["--watch", "--why", "--events", &record.path()])
        .run(&["/bin/sh", "-c", "unshare -r /bin/true; cat /etc/shadow"])
        .expect_code(1);
    assert!(output.err().contains("call unshare") && output.err().contains("/etc/shadow"), "{}", output.err());
    let told = |event: &Event| matches!(&event.what, What::Refused(call) if call.call == "unshare");
    assert_eq!(record.events().iter().filter(|event| told(event)).count(), 1);
}

#[test]
fn watching_passes_signals_and_streams_as_ever() {
    let record = Record::new();
    let script = "trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.05; done";
    let mut session = Sandbox::new().args(["--events", &record.path()]).start(&["/bin/sh", "-c", script]);
    session.expect_line("ready");
    session.signal(Signal::SIGTERM);
    let output = session.wait_for_end().expect_code(9);
    assert_eq!(output.out(), "caught\n");
    record.events();
    let output = Sandbox::new().arg("--watch").stdin(b"through").run(&["/bin/sh", "-c", "cat; kill -KILL $$"]);
    assert_eq!((output.code, output.out().as_str()), (137, "through"), "{}", output.err());
}

#[test]
fn the_standard_streams_are_sinks() {
    let event = |line: &str| serde_json::from_str::<Event>(line).is_ok();
    let output = Sandbox::new().args(["--events", "-"]).run(&["/bin/echo", "out"]).expect_code(0);
    let (events, own): (Vec<_>, Vec<_>) = output.out().lines().map(str::to_owned).partition(|line| event(line));
    assert_eq!((own, output.err().lines().any(event)), (vec!["out".to_owned()], false), "{}", output.out());
    assert!(events.len() >= 3, "{events:?}");
    let output = Sandbox::new().args(["--events", "stderr"]).run(&["/bin/echo", "out"]).expect_code(0);
    assert_eq!((output.out().as_str(), output.err().lines().any(event)), ("out\n", true), "{}", output.err());
}

#[test]
fn a_missing_prober_stops_the_start() {
    let output =
        Sandbox::new().arg("--watch").caller_env("APEX_PROBE", "/nowhere/apex-probe").run(&["/bin/echo", "ran"]);
    let output = output.expect_refusal(&["apex-probe", "/nowhere/apex-probe", "cargo build"]);
    assert_eq!(output.out(), "");
}

#[test]
fn a_prober_that_is_none_stops_the_start() {
    let sandbox = Sandbox::new().arg("--watch").caller_env("APEX_PROBE", "/bin/true");
    let output = sandbox.run(&["/bin/echo", "ran"]).expect_refusal(&["prober", "unwatched"]);
    assert_eq!(output.out(), "");
    expect_nothing_left(&sandbox, &output);
}

/// It lives on, so its end tells nothing: the sandbox must not wait for that end.
#[test]
fn nothing_goes_on_when_its_prober_lets_go_of_its_socket() {
    if let Some(reason) = apex_tests::programs::missing_program(&["gcc"]) {
        apex_tests::skip!(reason);
    }
    let dir = TempDir::new();
    let (prober, source) =
        (dir.at("prober"), apex_tests::programs::fixtures().expect("it is there").join("mute_prober.c"));
    let compiled = std::process::Command::new("gcc").args(["-O1", "-static", "-o", &prober]).arg(source).status();
    assert!(compiled.expect("gcc runs").success());
    let sandbox = Sandbox::new().arg("--watch").caller_env("APEX_PROBE", &prober);
    let output = sandbox.run(&["/bin/sh", "-c", "while :; do echo tick; sleep 0.1; done"]);
    let output = output.expect_refusal(&["the prober closed its socket", "unwatched"]);
    // A second watched, at most another until it is ended; it would be six and more if somebody waited for the prober.
    let ticks = output.out().lines().count();
    assert!((1..=30).contains(&ticks), "{ticks} ticks");
    expect_nothing_left(&sandbox, &output);
}

#[test]
fn a_record_that_cannot_be_written_stops_the_start() {
    let sandbox = Sandbox::new().args(["--events", "/proc/none/events"]);
    let output = sandbox.run(&["/bin/echo", "ran"]).expect_refusal(&["/proc/none/events"]);
    assert_eq!(output.out(), "");
    expect_nothing_left(&sandbox, &output);
}

/// The prober of this apex-run: its one child by that name.
fn prober_of(apex_run: i32) -> Option<Pid> {
    children_of(apex_run).into_iter().find(is_prober).map(Pid::from_raw)
}

/// The init of its sandbox: its other child.
fn init_of(apex_run: i32) -> Option<i32> {
    children_of(apex_run).into_iter().find(|pid| !is_prober(pid))
}

fn is_prober(pid: &i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with("apex-probe\0serve"))
}

fn children_of(pid: i32) -> Vec<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

#[test]
fn nothing_goes_on_when_its_prober_is_killed() {
    let sandbox = Sandbox::new().arg("--watch");
    let mut session = sandbox.start(&["/bin/sh", "-c", "echo ready; sleep 60"]);
    session.expect_line("ready");
    let prober = prober_of(session.pid()).expect("it watches");
    let start = Instant::now();
    kill(prober, Signal::SIGKILL).expect("it is ours");
    let output = session.wait_for_end().expect_refusal(&["prober", "signal 9", "unwatched"]);
    assert!(start.elapsed() < PATIENCE);
    expect_nothing_left(&sandbox, &output);
}

/// Stops a process and waits until each of its threads stands still.
fn stop(pid: Pid) {
    kill(pid, Signal::SIGSTOP).expect("it is ours");
    let is_stopped = |task: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(task.expect("it lives").path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    };
    let end = Instant::now() + PATIENCE;
    while !std::fs::read_dir(format!("/proc/{pid}/task")).expect("it lives").all(is_stopped) {
        assert!(Instant::now() < end, "it does not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A tracer that does not go on reaps nobody, so that only the wall time ends the command; probes in the kernel need nobody, and what they saw waits
/// to be written.
#[test]
fn a_stopped_prober_keeps_no_sandbox_from_its_end() {
    let record = Record::new();
    let sandbox = Sandbox::new().args(["--events", &record.path()]);
    let sandbox = if as_root() { sandbox } else { sandbox.args(["--time", "3s"]) };
    let mut session = sandbox.start(&["/bin/sh", "-c", "echo ready; read line; echo $line"]);
    session.expect_line("ready");
    let prober = prober_of(session.pid()).expect("it watches");
    stop(prober);
    session.send("on\n");
    session.expect_line("on");
    let output = if as_root() {
        kill(prober, Signal::SIGCONT).expect("it is ours");
        let output = session.wait_for_end().expect_code(0);
        assert!(programs(&record.events()).iter().any(|path| path.ends_with("sh")));
        output
    } else {
        session.wait_for_end().expect_refusal(&["did not let the sandbox end", "SIGSTOP"])
    };
    expect_nothing_left(&sandbox, &output);
}

/// A freezer of the host around one process, which not even SIGKILL ends before the thaw.
struct Freezer(PathBuf);

impl Freezer {
    const HIERARCHY: &str = "/sys/fs/cgroup/freezer";

    fn around(pid: i32) -> Freezer {
        let freezer = Freezer(format!("{}/apex-test-{}", Self::HIERARCHY, std::process::id()).into());
        std::fs::create_dir(&freezer.0).expect("root may");
        freezer.write("cgroup.procs", &pid.to_string());
        freezer.write("freezer.state", "FROZEN");
        freezer
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).expect("root may");
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("freezer.state"), "THAWED");
        let end = Instant::now() + PATIENCE;
        while std::fs::remove_dir(&self.0).is_err() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Only a tracer can be the reason that a sandbox does not end: another prober waits with the launcher, and its record is whole.
#[test]
fn a_sandbox_that_ends_late_keeps_its_prober() {
    if !as_root() || !Path::new(Freezer::HIERARCHY).join("cgroup.procs").exists() {
        apex_tests::skip!("only root has a freezer of cgroup v1");
    }
    let record = Record::new();
    let sandbox = Sandbox::new().args(["--events", &record.path(), "--time", "2s"]);
    let mut session = sandbox.start(&["/bin/sh", "-c", "echo ready; sleep 60"]);
    session.expect_line("ready");
    let freezer = Freezer::around(init_of(session.pid()).expect("it runs"));
    // The wall time, and longer than a tracer is waited for.
    std::thread::sleep(Duration::from_secs(2 + 16));
    drop(freezer);
    let output = session.wait_for_end().expect_code(apex_tests::TIME_OVER);
    record.events();
    expect_nothing_left(&sandbox, &output);
}

/// It runs with the caller's rights, so nobody else may have written it.
#[test]
fn a_prober_that_others_may_write_stops_the_start() {
    let dir = TempDir::new();
    let prober = dir.at("apex-probe");
    std::fs::copy("/bin/true", &prober).expect("it can be copied");
    std::fs::set_permissions(&prober, std::fs::Permissions::from_mode(0o777)).expect("it is ours");
    let sandbox = Sandbox::new().arg("--watch").caller_env("APEX_PROBE", &prober);
    let output = sandbox.run(&["/bin/echo", "ran"]);
    let output = output.expect_refusal(&["can be written by others", "777", &format!("chmod go-w {prober}")]);
    assert_eq!(output.out(), "");
}

/// Whether a process is there and more than a zombie: whoever adopts an orphan reaps it in its own time.
fn is_at_work(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[test]
fn the_prober_ends_with_a_killed_launcher_and_writes_what_it_saw() {
    let record = Record::new();
    let sandbox = Sandbox::new().args(["--events", &record.path()]);
    let mut session = sandbox.start(&["/bin/sh", "-c", "echo ready; sleep 60"]);
    session.expect_line("ready");
    let prober = prober_of(session.pid()).expect("it watches");
    session.signal(Signal::SIGKILL);
    let output = session.wait_for_end();
    let end = Instant::now() + PATIENCE;
    while is_at_work(prober) {
        assert!(Instant::now() < end, "the prober outlives its launcher");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(programs(&record.events()).iter().any(|path| path.ends_with("sh")));
    expect_nothing_left(&sandbox, &output);
}

#[test]
fn a_flood_of_refusals_is_counted_and_does_not_hang() {
    const CALLS: u64 = 30_000;
    let record = Record::new();
    let script = format!(
        "import ctypes\nc = ctypes.CDLL(None, use_errno=True)\nfor i in range({CALLS}): c.unshare(0x10000000)\nprint('done')"
    );
    if !std::path::Path::new("/usr/bin/python3").exists() {
        apex_tests::skip!("the program python3 is not installed");
    }
    let sandbox = Sandbox::new().args(["--profile", "python", "--events", &record.path()]);
    let output = sandbox.run(&["/usr/bin/python3", "-c", &script]).expect_code(0);
    assert_eq!(output.out(), "done\n");
    let text = record.0.read("events");
    let events: Vec<Event> = text.lines().map(|line| serde_json::from_str(line).expect("a line is an event")).collect();
    let told = |event: &&Event| matches!(&event.what, What::Refused(call) if call.call == "unshare");
    let told = events.iter().filter(told).count() as u64;
    let Some(What::End(end)) = events.last().map(|event| &event.what) else { panic!("no tail") };
    let lost = |why| end.lost.get(&why).copied().unwrap_or(0);
    assert_eq!(told + lost(Loss::QueueFull) + lost(Loss::RateLimited), CALLS, "told {told}, {end:?}");
    assert_eq!(end.events, events.len() as u64);
    expect_nothing_left(&sandbox, &output);
}

#[test]
fn plan_and_receipt_tell_of_watching() {
    let output = Sandbox::new().args(["--plan", "--watch=full"]).run(&["/bin/true"]).expect_code(0);
    assert!(output.out().contains("watched: full"), "{}", output.out());
    let output = Sandbox::new().args(["--watch", "--receipt", "-"]).run(&["/bin/true"]).expect_code(0);
    assert!(output.out().contains("watched: default"), "{}", output.out());
    let output = Sandbox::new().args(["--plan"]).run(&["/bin/true"]).expect_code(0);
    assert!(!output.out().contains("watched"), "{}", output.out());
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let check = |args: &[&str], words: &[&str]| {
        Sandbox::new().args(args).run(&["/bin/true"]).expect_refusal(words);
    };
    check(&["--watch=off", "--summary"], &["--summary", "--watch=off"]);
    check(&["--watch=some"], &["--watch", "some", "default"]);
    check(&["--events", "ftp://x"], &["--events", "ftp://x"]);
    check(&["--on-finding", "shout"], &["--on-finding", "shout"]);
    check(&["--prove", "--watch"], &["--watch", "--prove"]);
}

#[test]
fn the_summary_tells_programs_and_the_end() {
    let output = Sandbox::new().arg("--summary").run(&["/bin/sh", "-c", "/bin/echo hello; exit 4"]).expect_code(4);
    assert_eq!(output.out(), "hello\n");
    for words in ["what the sandbox did", "/echo", "exited with 4"] {
        assert!(output.err().contains(words), "{words}: {}", output.err());
    }
    if as_root() {
        // At level default the kernel measures its probes; who has none has no cost.
        assert!(output.err().contains("cost of the probes\n    "), "{}", output.err());
    }
    let output = Sandbox::new().args(["--summary", "--json"]).run(&["/bin/sh", "-c", "exit 4"]).expect_code(4);
    let account: serde_json::Value = serde_json::from_str(&output.err()).expect("JSON alone");
    assert_eq!(account["ending"], "exited with 4");
}

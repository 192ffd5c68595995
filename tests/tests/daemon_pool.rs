//! Pools of the daemon: sandboxes that are built ahead and used once each.

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use apex_tests::daemon::{Daemon, lenient};
use apex_tests::sandbox;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Runs it with `--pool` and these options.
#[track_caller]
fn pooled(daemon: &Daemon, options: &[&str], command: &[&str]) -> sandbox::Output {
    daemon.apex(&[&["run", "--pool"], lenient(), options, &["--"], command].concat())
}

/// The only pool there is, once it is so.
#[track_caller]
fn until(daemon: &Daemon, is_so: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let pools = daemon.json(&["pool", "ls"]);
        if pools[0].is_object() && is_so(&pools[0]) {
            return pools[0].clone();
        }
        assert!(Instant::now() < end, "the pools do not come to be so: {pools:#}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_full(pool: &Value) -> bool {
    pool["ready"].as_u64() >= Some(1) && pool["ready"] == pool["wanted"]
}

/// Directories of sandboxes, those on shelves included.
fn directories(daemon: &Daemon) -> usize {
    std::fs::read_dir(daemon.dir().at("state/sandboxes")).expect("it is there").count()
}

#[test]
fn the_second_run_gets_one_that_stood_ready_and_each_is_used_once() {
    let daemon = Daemon::start(&[]);
    let marked = ["/bin/sh", "-c", "ls /tmp; echo mark > /tmp/mark; readlink /proc/self/ns/pid"];
    let first = pooled(&daemon, &[], &marked).expect_code(0);
    let mut namespaces = vec![first.out()];
    for number in 1..=3u64 {
        until(&daemon, is_full);
        let output = pooled(&daemon, &[], &marked).expect_code(0);
        // Nothing of the one before is there, and it is another sandbox.
        assert!(!output.out().contains("mark") && !namespaces.contains(&output.out()), "{output:?}, {namespaces:?}");
        namespaces.push(output.out());
        let pool = until(&daemon, |_| true);
        assert_eq!((pool["hits"].as_u64(), pool["misses"].as_u64()), (Some(number), Some(1)), "{pool}");
    }
}

#[test]
fn arguments_streams_codes_names_and_labels_are_those_of_the_request() {
    let daemon = Daemon::start(&[]);
    pooled(&daemon, &[], &["/bin/sh", "-c", "true"]).expect_code(0);
    until(&daemon, is_full);
    let words = ["run", "--pool", "--name", "one", "--label", "a=b"];
    let command = [
        "--",
        "/bin/sh",
        "-c",
        "cat; for word; do echo \"<$word>\" >&2; done; exit 9",
        "sh",
        "",
        "two words",
        "\u{e9}\n",
    ];
    let mut child =
        daemon.command(&[&words, lenient(), &command].concat()).stdin(Stdio::piped()).spawn().expect("apex starts");
    let bytes: Vec<u8> = (0..200_000u32).map(|number| (number % 251) as u8).collect();
    child.stdin.take().expect("piped").write_all(&bytes).expect("it is read");
    let output = sandbox::collect(child);
    assert!(output.stdout == bytes);
    assert_eq!(output.err(), "<>\n<two words>\n<\u{e9}\n>\n");
    assert_eq!(output.code, 9);
    let record = daemon.json(&["inspect", "one"]);
    assert_eq!((record["labels"]["a"].as_str(), record["state"].as_str()), (Some("b"), Some("ended")));
    assert_eq!(until(&daemon, |_| true)["hits"].as_u64(), Some(1));
    let operations: Vec<_> = daemon.audit().iter().map(|line| line["api"]["operation"].clone()).collect();
    assert_eq!(operations.iter().filter(|operation| *operation == "run").count(), 2, "{operations:?}");
}

#[test]
fn create_without_input_takes_from_a_pool_as_well() {
    let daemon = Daemon::start(&[]);
    pooled(&daemon, &[], &["/bin/sh", "-c", "true"]).expect_code(0);
    until(&daemon, is_full);
    let id = daemon.create(&["--pool"], &["/bin/sh", "-c", "cat; echo over; sleep 300"]);
    let end = Instant::now() + Duration::from_secs(20);
    // Its input was at its end.
    while daemon.apex(&["logs", &id]).out() != "over\n" {
        assert!(Instant::now() < end, "{:?}", daemon.apex(&["logs", &id]));
    }
    assert_eq!(daemon.json(&["inspect", &id])["state"], "running");
    daemon.apex(&["kill", &id]).expect_code(0);
    assert_eq!(until(&daemon, |_| true)["hits"].as_u64(), Some(1));
}

#[test]
fn what_is_asked_for_differently_is_another_pool() {
    let daemon = Daemon::start(&[]);
    for (options, program) in [(&[][..], "/bin/true"), (&["--tmpfs", "/opt/x"], "/bin/true"), (&[], "/bin/sh")] {
        pooled(&daemon, options, &[program, "-c", ":"]).expect_code(0);
    }
    let pools = daemon.json(&["pool", "ls"]);
    assert_eq!(pools.as_array().map(Vec::len), Some(3), "{pools:#}");
}

#[test]
fn a_policy_that_changes_on_the_host_is_never_served_from_before() {
    let daemon = Daemon::start(&[]);
    let (dir, file) = (daemon.dir().at("granted"), daemon.dir().at("base.toml"));
    std::fs::create_dir(&dir).expect("ours");
    std::fs::write(format!("{dir}/f"), "seen").expect("ours");
    let policy = daemon.dir().at("policy.toml");
    std::fs::write(&policy, format!("extends = [\"{file}\"]\n")).expect("ours");
    std::fs::write(&file, format!("[filesystem]\nread = [\"{dir}\"]\n")).expect("ours");
    let (options, read) = (["--policy", policy.as_str()], format!("{dir}/f"));
    pooled(&daemon, &options, &["/bin/cat", &read]).expect_code(0);
    until(&daemon, is_full);
    assert_eq!(pooled(&daemon, &options, &["/bin/cat", &read]).expect_code(0).out(), "seen");
    until(&daemon, is_full);
    std::fs::write(&file, "").expect("ours");
    let output = pooled(&daemon, &options, &["/bin/cat", &read]);
    assert_eq!(output.code, 1, "{output:?}");
    // The shelf fills with what is right now.
    until(&daemon, is_full);
    assert_eq!(pooled(&daemon, &options, &["/bin/cat", &read]).code, 1);
}

#[test]
fn wall_time_counts_from_the_start_of_the_command() {
    let daemon = Daemon::start(&[]);
    let options = ["--time", "3s"];
    pooled(&daemon, &options, &["/bin/sh", "-c", ":"]).expect_code(0);
    until(&daemon, is_full);
    std::thread::sleep(Duration::from_millis(3500));
    pooled(&daemon, &options, &["/bin/sh", "-c", "sleep 0.1"]).expect_code(0);
    assert_eq!(until(&daemon, |_| true)["hits"].as_u64(), Some(1));
    assert_eq!(pooled(&daemon, &options, &["/bin/sh", "-c", "sleep 60"]).code, 124);
}

#[test]
fn what_cannot_be_executed_says_so_as_without_a_pool() {
    let daemon = Daemon::start(&[]);
    let script = daemon.dir().at("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").expect("ours");
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
    for _ in 0..2 {
        let output = pooled(&daemon, &[], &[&script]);
        assert_eq!(output.code, 127, "{output:?}");
        until(&daemon, is_full);
    }
    assert_eq!(pooled(&daemon, &[], &["/no/such/program"]).code, 127);
}

#[test]
fn pools_are_set_drained_and_bounded() {
    let daemon = Daemon::start(&["--pool-max", "6"]);
    let set = |size: &str, program: &str| daemon.apex(&[&["pool", "set", size], lenient(), &["--", program]].concat());
    set("5", "/bin/true").expect_code(0);
    until(&daemon, |pool| pool["ready"].as_u64() == Some(5));
    // A request finds what was set.
    pooled(&daemon, &["--rm"], &["/bin/true"]).expect_code(0);
    until(&daemon, |pool| pool["ready"].as_u64() == Some(5) && pool["hits"] == 1);
    // Only one more goes, whatever is wanted.
    set("4", "/bin/false").expect_code(0);
    let end = Instant::now() + Duration::from_secs(20);
    while directories(&daemon) < 6 {
        assert!(Instant::now() < end, "the second pool gets the sixth");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(directories(&daemon), 6);
    let output = set("7", "/bin/true");
    assert_eq!(output.code, 125);
    assert!(output.err().contains("--pool-max"), "{output:?}");
    let pools = daemon.json(&["pool", "ls"]);
    daemon.apex(&["pool", "drain", pools[0]["id"].as_str().expect("an id")]).expect_code(0);
    assert_eq!(daemon.apex(&["pool", "drain", "77"]).code, 125);
    daemon.apex(&["pool", "drain"]).expect_code(0);
    let end = Instant::now() + Duration::from_secs(20);
    while directories(&daemon) > 0 {
        assert!(Instant::now() < end, "what was drained ends");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(daemon.json(&["pool", "ls"]), serde_json::json!([]));
}

#[test]
fn a_pool_ends_with_its_daemon_however_that_ends() {
    let mut daemon = Daemon::start(&[]);
    daemon.apex(&[&["pool", "set", "4"], lenient(), &["--", "/bin/true"]].concat()).expect_code(0);
    until(&daemon, is_full);
    daemon.kill_and_restart();
    assert_eq!(directories(&daemon), 0, "what was built ahead is gone, and cleared away");
    assert_eq!(daemon.json(&["ls", "--all"]), serde_json::json!([]));
    assert_eq!(daemon.json(&["pool", "ls"]), serde_json::json!([]));
}

fn children_of(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it runs");
    text.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect()
}

/// What became of a command is not known when its keeper does not answer: it is not run a second time in another sandbox.
#[test]
fn a_command_of_which_nothing_is_heard_is_not_run_again() {
    let daemon = Daemon::start(&[]);
    let dir = daemon.dir().at("shared");
    std::fs::create_dir(&dir).expect("made");
    let count = ["/bin/sh", "-c", &format!("echo run >> {dir}/runs")];
    pooled(&daemon, &["--rw", &dir], &count).expect_code(0);
    until(&daemon, is_full);
    let keepers: Vec<_> = children_of(daemon.pid()).into_iter().flat_map(children_of).map(Pid::from_raw).collect();
    assert!(!keepers.is_empty(), "the pool is full");
    keepers.iter().for_each(|keeper| kill(*keeper, Signal::SIGSTOP).expect("it runs"));
    let output = pooled(&daemon, &["--rw", &dir], &count);
    keepers.iter().for_each(|keeper| kill(*keeper, Signal::SIGCONT).expect("it runs"));
    assert_eq!(output.code, 125, "{output:?}");
    assert!(output.err().contains("may have run the command, and it is not run again"), "{output:?}");
    let id = output.err().split("sandbox ").nth(1).and_then(|rest| rest.split(' ').next()).expect("its id").to_owned();
    daemon.until(&id, |sandbox| sandbox["state"] == "ended");
    let runs = std::fs::read_to_string(format!("{dir}/runs")).expect("it ran once at least");
    assert!(runs.lines().count() <= 2, "{runs:?}");
}

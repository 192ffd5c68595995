//! Each limit of the daemon, tried: nothing grows without an end, nothing stands still for others, and what is refused is refused with words.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use apex_tests::daemon::{Daemon, lenient};
use apex_tests::traced::NOBODY;
use apex_tests::{TempDir, as_root, sandbox, skip};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Bytes by which the daemon may grow for readers that stand still.
const GROWTH_BYTES_MAX: u64 = 48 << 20;
/// Connections of the daemon's own user at once.
const CONNECTIONS_MAX: usize = 1024;

fn is_failed_start(body: &str) -> bool {
    serde_json::from_str::<Value>(body).is_ok_and(|sandbox| sandbox["state"] == "failed")
}

fn create_body(name: &str, command: &[&str]) -> String {
    json!({"name": name, "command": command, "optional": ["cgroup"]}).to_string()
}

#[test]
fn sandboxes_are_counted_and_one_user_does_not_take_them_all() {
    let access = TempDir::new();
    let file = access.file("access.toml", &format!("[[member]]\nuid = {NOBODY}\nrole = \"developer\"\n"));
    let daemon = Daemon::start(&["--access", &file, "--max-sandboxes", "4"]);
    if as_root() {
        let args = ["create", "--optional", "cgroup", "--", "/bin/true"];
        let create = || sandbox::collect(daemon.command_as(NOBODY, &args).spawn().expect("apex starts"));
        create().expect_code(0);
        create().expect_refusal(&["you have 1 sandboxes already", "apex rm"]);
    } else {
        daemon.create(&[], &["/bin/true"]);
    }
    for _ in 0..3 {
        daemon.create(&[], &["/bin/true"]);
    }
    let (status, answer) = daemon.rest("POST", "/v1/sandboxes", &create_body("", &["/bin/true"]));
    assert_eq!(status, 429, "{answer}");
    assert!(answer.contains("there are 4 sandboxes already"), "{answer}");
    let rows = daemon.json(&["ls", "--all"]);
    assert_eq!(rows.as_array().map(Vec::len), Some(4));
    let own =
        rows.as_array().and_then(|rows| rows.last()).and_then(|row| row["id"].as_str()).expect("an id").to_owned();
    daemon.until(&own, |sandbox| sandbox["state"] != "running");
    daemon.apex(&["rm", &own]).expect_code(0);
    daemon.create(&[], &["/bin/true"]);
}

#[test]
fn connections_beyond_the_bound_are_closed_and_those_that_end_make_room() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("it is asked for");
    if hard < 2 * CONNECTIONS_MAX as u64 {
        skip!("the limit of descriptors is too low for so many connections");
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit");
    let daemon = Daemon::start(&[]);
    let connect = || {
        let stream = UnixStream::connect(daemon.socket()).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_millis(500))).expect("it is a socket");
        stream
    };
    let mut held: Vec<UnixStream> = (0..CONNECTIONS_MAX).map(|_| connect()).collect();
    let is_closed = |mut stream: UnixStream| matches!(stream.read(&mut [0]), Ok(0));
    let end = Instant::now() + Duration::from_secs(8);
    while !is_closed(connect()) {
        assert!(Instant::now() < end, "one more than {CONNECTIONS_MAX} has a place");
    }
    held.truncate(CONNECTIONS_MAX - 8);
    let end = Instant::now() + Duration::from_secs(8);
    while daemon.command(&["ls"]).output().is_ok_and(|output| !output.status.success()) {
        assert!(Instant::now() < end, "those that ended make no room");
    }
}

/// A reader of `run` holds its own command back, and nothing else; one of `logs` not even that.
#[test]
fn readers_that_stand_still_hold_up_nobody_else_and_cost_no_memory() {
    let daemon = Daemon::start(&[]);
    let endless = "yes 0123456789012345678901234567890123456789";
    let args = [&["run"], lenient(), &["--name", "still", "--", "/bin/sh", "-c", endless]].concat();
    // Nobody reads what they print.
    let mut readers: Vec<Child> = vec![daemon.command(&args).spawn().expect("apex starts")];
    daemon_has(&daemon, "still");
    let writer = "i=0; while [ $i -lt 40 ]; do head -c 1000000 /dev/zero | tr '\\0' x; i=$((i+1)); done; exit 5";
    let id = daemon.create(&["--name", "quick"], &["/bin/sh", "-c", writer]);
    for _ in 0..4 {
        readers.push(daemon.command(&["logs", "-f", "--raw", &id]).spawn().expect("apex starts"));
    }
    let ended = daemon.until(&id, |sandbox| sandbox["state"] == "ended");
    assert_eq!(ended["exit_code"], 5);
    let before = daemon.memory_bytes();
    std::thread::sleep(Duration::from_millis(1500));
    let grown = daemon.memory_bytes().saturating_sub(before);
    assert!(grown < GROWTH_BYTES_MAX, "it grew by {grown} bytes");
    assert_eq!(daemon.json(&["inspect", "still"])["state"], "running", "held back, not ended");
    let output = daemon.apex(&[&["run"], lenient(), &["--", "/bin/echo", "served"]].concat());
    assert_eq!(output.out(), "served\n");
    for mut reader in readers {
        reader.kill().expect("it is ours");
        reader.wait().expect("it is ours");
    }
}

fn daemon_has(daemon: &Daemon, name: &str) {
    let end = Instant::now() + Duration::from_secs(20);
    while daemon.apex(&["inspect", name]).code != 0 {
        assert!(Instant::now() < end, "{name} does not come to be");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Processor time of the daemon, in hundredths of a second.
fn ticks(daemon: &Daemon) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).expect("it runs");
    let fields: Vec<&str> = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect()).expect("it has fields");
    fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum()
}

/// The limit of descriptors that is in force for the daemon; its hard limit stays.
fn limit_descriptors(daemon: &Daemon, count: u64) {
    let args = ["--pid", &daemon.pid().to_string(), &format!("--nofile={count}:")];
    assert!(Command::new("prlimit").args(args).status().expect("util-linux is there").success());
}

#[test]
fn without_descriptors_it_says_so_does_not_spin_and_recovers() {
    let daemon = Daemon::start(&[]);
    let id = daemon.create(&["--name", "before"], &["/bin/sleep", "300"]);
    let open = || std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("it is ours").count() as u64;
    let (_, all) = getrlimit(Resource::RLIMIT_NOFILE).expect("it is asked for");
    // Each number of descriptors that are left meets another step of a start.
    for left in 2..14 {
        let before = open();
        limit_descriptors(&daemon, before + left);
        let (status, body) = daemon.rest("POST", "/v1/sandboxes", &create_body("", &["/bin/sleep", "300"]));
        let is_clear = status == 201
            || (body.contains("starting a sandbox") && body.to_lowercase().contains("too many open files"));
        assert!(is_clear, "{left} descriptors left: {status} {body}");
        limit_descriptors(&daemon, all);
        if status == 201 && !is_failed_start(&body) {
            let made: Value = serde_json::from_str(&body).expect("a sandbox");
            daemon.apex(&["rm", "-f", made["id"].as_str().expect("an id")]).expect_code(0);
        }
    }
    let held: Vec<UnixStream> = (0..4).map(|_| UnixStream::connect(daemon.socket()).expect("it listens")).collect();
    limit_descriptors(&daemon, open());
    let waiting: Vec<UnixStream> = (0..20).map(|_| UnixStream::connect(daemon.socket()).expect("it listens")).collect();
    let before = ticks(&daemon);
    std::thread::sleep(Duration::from_secs(2));
    let spent = ticks(&daemon) - before;
    assert!(spent < 60, "{spent} hundredths of a second of 2 s were spent on waiting for a descriptor");
    drop((held, waiting));
    limit_descriptors(&daemon, all);
    assert_eq!(daemon.json(&["inspect", &id])["state"], "running");
    let rows = daemon.json(&["ls"]);
    assert_eq!(rows.as_array().map(Vec::len), Some(1), "what could not be started is not there: {rows}");
    daemon.create(&[], &["/bin/true"]);
}

/// A file system of a few MiB in the place of the state directory; gone with the test.
struct Small(String);

impl Small {
    fn mount(dir: &TempDir, size: &str) -> Small {
        let at = dir.dir("state");
        let options = format!("size={size},mode=0711");
        mount(Some("tmpfs"), at.as_str(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .expect("we are root");
        Small(at)
    }

    /// Takes what room there is.
    fn fill(&self) {
        let mut command = Command::new("/bin/sh");
        let script = format!("cat /dev/zero > {0}/filler 2>/dev/null; echo x >> {0}/filler 2>/dev/null; true", self.0);
        assert!(command.args(["-c", &script]).stdin(Stdio::null()).status().expect("it starts").success());
    }

    fn free(&self) {
        std::fs::remove_file(format!("{}/filler", self.0)).expect("it is there");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount2(self.0.as_str(), MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_changes_nothing_unsaid_and_stops_nobody_from_ending_things() {
    if !as_root() {
        skip!("only root mounts a small file system");
    }
    let dir = TempDir::new();
    let small = Small::mount(&dir, "24M");
    let mut daemon = Daemon::start_in(dir, &[]);
    let talker = "while :; do echo 0123456789012345678901234567890123456789; done";
    let id = daemon.create(&["--name", "talker"], &["/bin/sh", "-c", talker]);
    let quiet = daemon.create(&["--name", "quiet"], &["/bin/sleep", "300"]);
    small.fill();
    // What is kept ahead for the audit log is used up as well, and whatever stands there is said to.
    let mut refused = 0;
    for number in 0..40 {
        let (status, body) =
            daemon.rest("POST", "/v1/sandboxes", &create_body(&format!("n{number}"), &["/bin/sleep", "300"]));
        assert!(matches!(status, 500 | 503), "{status} {body}");
        refused += 1;
        assert!(body.to_lowercase().contains("no space") || body.contains("disk is full"), "{body}");
    }
    assert_eq!(refused, 40);
    // Reading goes on, and nothing is there that does not run.
    let rows = daemon.json(&["ls", "--all"]);
    assert_eq!(rows.as_array().map(Vec::len), Some(2), "{rows}");
    assert_eq!(daemon.json(&["audit", "verify"])["intact"], true);
    assert_eq!(daemon.json(&["inspect", &quiet])["state"], "running");
    // Ending and freezing needs no room.
    daemon.apex(&["pause", &quiet]);
    assert_eq!(daemon.json(&["inspect", &quiet])["state"], "frozen");
    daemon.apex(&["kill", "talker"]);
    daemon.until(&id, |sandbox| sandbox["state"] != "running");
    small.free();
    daemon.create(&["--name", "after"], &["/bin/sleep", "300"]);
    // Each name is free that was refused, and each line of the log is whole.
    daemon.create(&["--name", "n7"], &["/bin/true"]);
    let log = daemon.apex(&["logs", "--raw", "--tail", "4000", &id]).expect_code(0).out();
    for line in log.lines().skip(1).filter(|line| line.len() == 40) {
        assert_eq!(line, "0123456789012345678901234567890123456789");
    }
    daemon.kill_and_restart();
    assert_eq!(daemon.json(&["audit", "verify"])["intact"], true);
    assert_eq!(daemon.json(&["inspect", &quiet])["name"], "quiet");
    let left = daemon.json(&["ls", "--all"]);
    let names: Vec<_> = left.as_array().expect("an array").iter().map(|row| row["name"].clone()).collect();
    assert_eq!(names, ["talker", "quiet", "after", "n7"], "nothing came back that was refused");
    // The daemon has its files there, and the directory goes with the daemon.
    for row in left.as_array().expect("an array") {
        daemon.apex(&["rm", "-f", row["id"].as_str().expect("an id")]).expect_code(0);
    }
    daemon.stop();
    drop(small);
}

#[test]
fn a_store_or_log_that_is_damaged_stops_the_start_with_words() {
    let mut daemon = Daemon::start(&[]);
    let id = daemon.create(&[], &["/bin/true"]);
    daemon.until(&id, |sandbox| sandbox["state"] != "running");
    daemon.stop();
    let damage = |daemon: &mut Daemon, file: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>, words: &[&str]| {
        let path = daemon.dir().at(&format!("state/{file}"));
        let kept = std::fs::read(&path).expect("it is there");
        std::fs::write(&path, change(kept.clone())).expect("it is ours");
        let said = daemon.words_of_a_failing_start();
        for word in words {
            assert!(said.contains(word), "{file}: {said}");
        }
        assert_eq!(std::fs::read(&path).expect("it is there"), change(kept.clone()), "{file} is left as it was");
        std::fs::write(&path, kept).expect("it is ours");
    };
    let noise = |bytes: Vec<u8>| bytes.iter().map(|byte| byte.wrapping_mul(31).wrapping_add(7)).collect();
    damage(&mut daemon, "apexd.db", &noise, &["apexd.db", "move it away"]);
    damage(&mut daemon, "apexd.db", &|_| b"no database at all, but a text".repeat(200), &["apexd.db", "move it away"]);
    let other_row = |bytes: Vec<u8>| {
        let text = bytes.windows(9).position(|part| part == b"\"command\"").expect("a record is in it");
        [&bytes[..text], b"#command#", &bytes[text + 9..]].concat()
    };
    damage(&mut daemon, "apexd.db", &other_row, &["apexd.db"]);
    damage(&mut daemon, "audit.jsonl", &|_| b"{\"forged\":1}\n".to_vec(), &["audit.jsonl", "moving it away"]);
    daemon.restart();
    assert_eq!(daemon.json(&["inspect", &id])["id"], id.as_str());
}

/// A client that was killed in the middle of its request leaves nothing half made.
#[test]
fn clients_that_die_in_the_middle_leave_nothing_half_made() {
    let daemon = Daemon::start(&[]);
    let args = [&["create"], lenient(), &["--", "/bin/true"]].concat();
    for number in 0..30 {
        let child = daemon.command(&args).spawn().expect("apex starts");
        std::thread::sleep(Duration::from_millis(number * 2));
        let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
        sandbox::collect(child);
    }
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let rows = daemon.json(&["ls", "--all"]);
        let is_settled = |row: &Value| row["state"] == "ended" && row["exit_code"] == 0;
        if rows.as_array().expect("an array").iter().all(is_settled) {
            break;
        }
        assert!(Instant::now() < end, "{rows}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

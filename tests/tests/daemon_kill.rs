//! The daemon or its warden killed at any instant, while several clients make, run, freeze, tighten and end sandboxes on a busy machine. After each kill nothing is
//! lost, nothing runs that nobody knows, and what is told is what the kernel says.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use apex_tests::daemon::{Daemon, lenient};
use apex_tests::wire::Dice;
use apex_tests::{as_root, leaks};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Rounds of an ordinary run; `APEX_KILL_ROUNDS` asks for more, `APEX_KILL_SEED` for other instants.
const ROUNDS: u64 = 8;
/// Who asks at once.
const CLIENTS: u64 = 4;
/// Sandboxes that each of them keeps.
const KEPT: usize = 2;
/// What was under way at the kill may take a moment.
const SETTLED_WITHIN: Duration = Duration::from_secs(25);

fn asked(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Keepers of this test, by the word that its commands carry.
fn keepers(mark: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("it is mounted").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains("--keep=") && line.contains(mark) && parent(pid).is_some_and(|above| !is_keeper(above)) {
            found.push(pid);
        }
    }
    found
}

/// An init is a clone of its keeper, with the same words.
fn is_keeper(pid: i32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains("--keep="))
}

fn parent(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// What the clients of all rounds know.
#[derive(Default)]
struct Known {
    /// Made, as the daemon has said, and never asked to be ended.
    made: BTreeSet<String>,
    names: u64,
}

/// One client, until it is over: each request may fail, since the daemon is killed meanwhile.
fn work(daemon: &Daemon, mark: &str, known: &Mutex<Known>, seed: u64, over: &AtomicBool) {
    let mut dice = Dice::new(seed);
    // A share of those of the round before.
    let before = known.lock().expect("no client panics").made.clone();
    let mut own: Vec<String> = before.into_iter().skip((seed % CLIENTS) as usize).step_by(CLIENTS as usize).collect();
    let ask = |args: &[&str]| daemon.command(args).output().expect("apex starts");
    while !over.load(Ordering::Relaxed) {
        let name = {
            let mut known = known.lock().expect("no client panics");
            known.names += 1;
            format!("n{}", known.names)
        };
        let mode = dice.of(&["isolation", "hybrid"]);
        let made = ask(&[
            &["create", "--name", &name, "--mode", mode, "--net", "none"],
            lenient(),
            &["--", "/bin/sleep", mark],
        ]
        .concat());
        if made.status.success() {
            let id = String::from_utf8_lossy(&made.stdout).trim().to_owned();
            known.lock().expect("no client panics").made.insert(id.clone());
            own.push(id);
        }
        for _ in 0..3 {
            let Some(id) = (!own.is_empty()).then(|| own[dice.below(own.len())].clone()) else { break };
            match dice.below(if as_root() { 8 } else { 4 }) {
                0 => {
                    drop(ask(&[&["run", "--rm"], lenient(), &["--", "/bin/sh", "-c", &format!("echo {mark}; exit 3")]]
                        .concat()))
                }
                1 => drop(ask(&["logs", &id])),
                2 => drop(ask(&[&["run", "--rm", "--pool"], lenient(), &["--", "/bin/sh", "-c", "exit 3"]].concat())),
                3 => drop(ask(&["exec", &id, "--", "/bin/true"])),
                4 => drop(ask(&["pause", &id])),
                5 => drop(ask(&["resume", &id])),
                6 => drop(ask(&["mode", "set", &id, dice.of(&["isolation", "hybrid"])])),
                _ => drop(ask(&["limits", "set", &id, "--memory", dice.of(&["64M", "128M", "96M"])])),
            }
        }
        while own.len() > KEPT {
            let id = own.remove(0);
            known.lock().expect("no client panics").made.remove(&id);
            ask(&["rm", "-f", &id]);
        }
    }
}

/// Two loops that do nothing, so that whatever can come in between does. Gone with the test.
struct Busy(Vec<Child>);

impl Busy {
    fn begin() -> Busy {
        let spin = || {
            Command::new("/bin/sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn().expect("it starts")
        };
        Busy((0..2).map(|_| spin()).collect())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_daemon_killed_at_any_instant_loses_nothing() {
    let rounds = asked("APEX_KILL_ROUNDS", ROUNDS);
    let mut dice = Dice::new(asked("APEX_KILL_SEED", 1));
    let mut daemon = Daemon::start(&[]);
    let mark = format!("3{:07}", std::process::id());
    let known = Mutex::new(Known::default());
    let busy = Busy::begin();
    for round in 0..rounds {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let seed = round * CLIENTS + client;
                let (daemon, mark, known, over) = (&daemon, &mark, &known, &over);
                scope.spawn(move || work(daemon, mark, known, seed, over));
            }
            // A different instant of what they do in each round.
            std::thread::sleep(Duration::from_millis(80 + dice.number() % 700));
            let victim = if round % 4 == 3 { warden(daemon.pid()) } else { daemon.pid() };
            kill(Pid::from_raw(victim), Signal::SIGKILL).expect("it runs");
            std::thread::sleep(Duration::from_millis(20));
            over.store(true, Ordering::Relaxed);
        });
        daemon.restart();
        let known = known.lock().expect("no client panics");
        check(&daemon, &mark, &known, round);
        tidy(&daemon, &known);
    }
    drop(busy);
    assert!(!known.lock().expect("no client panics").made.is_empty(), "there was something to be lost");
    nothing_is_left(&daemon, &mark);
}

fn warden(daemon: i32) -> i32 {
    let text = std::fs::read_to_string(format!("/proc/{daemon}/task/{daemon}/children")).expect("it runs");
    text.split_whitespace().next().and_then(|pid| pid.parse().ok()).expect("it has a warden")
}

/// Looks until everything is as it should be, and fails with what is not.
#[track_caller]
fn check(daemon: &Daemon, mark: &str, known: &Known, round: u64) {
    let end = Instant::now() + SETTLED_WITHIN;
    loop {
        let wrong = look(daemon, mark, known);
        if wrong.is_empty() {
            break;
        }
        assert!(Instant::now() < end, "round {round}: {wrong:#?}\n{}", daemon.words());
        std::thread::sleep(Duration::from_millis(50));
    }
    let verdict = daemon.json(&["audit", "verify"]);
    assert_eq!(verdict["intact"], true, "round {round}: {verdict}");
}

/// What is not as it should be.
fn look(daemon: &Daemon, mark: &str, known: &Known) -> Vec<String> {
    let listed = daemon.json(&["ls", "--all"]);
    let rows = listed.as_array().expect("an array");
    let mut wrong = Vec::new();
    let is_living = |row: &&Value| matches!(row["state"].as_str(), Some("running" | "frozen"));
    let text = |row: &Value, field: &str| row[field].as_str().unwrap_or_default().to_owned();
    for id in &known.made {
        match rows.iter().find(|row| row["id"] == id.as_str()) {
            None => wrong.push(format!("{id} is lost")),
            Some(row) if !is_living(&row) => wrong.push(format!("nobody ended it: {row}")),
            Some(_) => {}
        }
    }
    let mut names = BTreeSet::new();
    for row in rows {
        if !text(row, "name").is_empty() && !names.insert(text(row, "name")) {
            wrong.push(format!("two of the name {}", text(row, "name")));
        }
        if row["state"] == "creating" || row["state"] == "lost" {
            wrong.push(format!("it stays so: {row}"));
        }
    }
    let living: Vec<&Value> = rows.iter().filter(is_living).collect();
    let running = keepers(mark);
    if running.len() != living.len() {
        wrong.push(format!("keepers {running:?} and {} sandboxes: {living:?}", living.len()));
    }
    wrong.extend(living.iter().filter_map(|row| differs(row)));
    let dirs: BTreeSet<String> = std::fs::read_dir(daemon.dir().at("state/sandboxes"))
        .expect("it is there")
        .map(|entry| entry.expect("it is ours").file_name().to_string_lossy().into_owned())
        .collect();
    let ids: BTreeSet<String> = rows.iter().map(|row| text(row, "id")).collect();
    if dirs != ids {
        wrong.push(format!("directories {dirs:?} and sandboxes {ids:?}"));
    }
    wrong
}

/// What the kernel says otherwise than the daemon.
fn differs(row: &Value) -> Option<String> {
    let pid = row["pid"].as_u64()?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    if stat.is_empty() || stat.contains(") Z ") {
        return Some(format!("it does not run: {row}"));
    }
    if !as_root() {
        return None;
    }
    let is_frozen = row["state"] == "frozen";
    if leaks::is_frozen(pid)? != is_frozen {
        return Some(format!("the kernel says frozen: {}, the daemon: {row}", !is_frozen));
    }
    let memory = row["limits"]["memory_bytes"].as_u64()?;
    let in_force = leaks::memory_limit(pid)?;
    (in_force != memory).then(|| format!("the kernel says a limit of {in_force} bytes: {row}"))
}

/// Ends what nobody was told of, and what was asked to end when the daemon was killed.
#[track_caller]
fn tidy(daemon: &Daemon, known: &Known) {
    let listed = daemon.json(&["ls", "--all"]);
    let ids = listed.as_array().expect("an array").iter().filter_map(|row| row["id"].as_str());
    let others: Vec<&str> = ids.filter(|id| !known.made.contains(*id)).collect();
    if !others.is_empty() {
        daemon.apex(&[&["rm", "-f"], &others[..]].concat()).expect_code(0);
    }
}

/// Everything is ended; then there is no process, no cgroup and no file of it.
#[track_caller]
fn nothing_is_left(daemon: &Daemon, mark: &str) {
    let running = keepers(mark);
    let listed = daemon.json(&["ls", "--all"]);
    for row in listed.as_array().expect("an array") {
        daemon.apex(&["rm", "-f", row["id"].as_str().expect("an id")]).expect_code(0);
    }
    for keeper in running {
        leaks::expect_none(&leaks::Mark(mark.to_owned()), keeper.unsigned_abs());
    }
    assert_eq!(std::fs::read_dir(daemon.dir().at("state/sandboxes")).expect("it is there").count(), 0);
    assert_eq!(daemon.json(&["ls", "--all"]), serde_json::json!([]));
    assert_eq!(daemon.json(&["audit", "verify"])["intact"], true);
}

//! The daemon killed at any instant, while sandboxes are made, frozen and ended: nothing is lost, and nothing runs that nobody knows.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use apex_tests::as_root;
use apex_tests::daemon::{Daemon, lenient};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Rounds of an ordinary run; `APEX_KILL_ROUNDS` asks for more.
const ROUNDS: u32 = 10;

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

fn work(daemon: &Daemon, mark: &str, over: &AtomicBool) {
    let mut ids: Vec<String> = Vec::new();
    while !over.load(Ordering::Relaxed) {
        // Each may fail: the daemon is killed meanwhile.
        let args = [&["create"], lenient(), &["--", "/bin/sleep", mark]].concat();
        let made = daemon.command(&args).output().expect("apex starts");
        if made.status.success() {
            ids.push(String::from_utf8_lossy(&made.stdout).trim().to_owned());
        }
        if as_root()
            && let Some(id) = ids.last()
        {
            let _ = daemon.command(&["pause", id]).output();
            let _ = daemon.command(&["resume", id]).output();
        }
        if ids.len() > 2 {
            let _ = daemon.command(&["rm", "-f", &ids.remove(0)]).output();
        }
    }
}

#[test]
fn a_daemon_killed_at_any_instant_loses_nothing() {
    let rounds = std::env::var("APEX_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS);
    let mut daemon = Daemon::start(&[]);
    let mark = format!("3{:07}", std::process::id());
    let mut found = 0;
    for round in 0..rounds {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| work(&daemon, &mark, &over));
            }
            // A different instant of what they do in each round.
            std::thread::sleep(Duration::from_millis(40 + u64::from(round * 37 % 250)));
            let victim = if round % 4 == 3 { warden(daemon.pid()) } else { daemon.pid() };
            kill(Pid::from_raw(victim), Signal::SIGKILL).expect("it runs");
            std::thread::sleep(Duration::from_millis(20));
            over.store(true, Ordering::Relaxed);
        });
        daemon.restart();
        found += check(&daemon, &mark, round);
    }
    assert!(found > 0, "there was something to be lost");
    assert_eq!(daemon.json(&["audit", "verify"])["intact"], true);
}

fn warden(daemon: i32) -> i32 {
    let text = std::fs::read_to_string(format!("/proc/{daemon}/task/{daemon}/children")).expect("it runs");
    text.split_whitespace().next().and_then(|pid| pid.parse().ok()).expect("it has a warden")
}

/// Each sandbox that is said to run does, and each keeper that runs is of one of them; how many. What was under way at the kill may take a moment.
#[track_caller]
fn check(daemon: &Daemon, mark: &str, round: u32) -> usize {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let listed = daemon.json(&["ls"]);
        let rows: Vec<&Value> = listed.as_array().expect("an array").iter().collect();
        let living = rows.iter().filter(|row| matches!(row["state"].as_str(), Some("running" | "frozen"))).count();
        let inits = rows.iter().all(|row| {
            let pid = row["pid"].as_i64().unwrap_or(0);
            std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
        });
        let running = keepers(mark);
        if living == rows.len() && inits && running.len() == rows.len() {
            return rows.len();
        }
        let states: Vec<_> = rows.iter().map(|row| (&row["id"], &row["state"], &row["pid"])).collect();
        assert!(Instant::now() < end, "round {round}: keepers {running:?}, sandboxes {states:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

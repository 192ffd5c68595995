//! What many sandboxes cost, how fast they come, and how fast a dial turns among them.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::super::Bench;
use super::super::density::pss_kb;
use super::super::meter::percentile;
use super::Daemon;
use crate::leaks::children_of;

/// How long starts are made as fast as they go.
const SUSTAINED: Duration = Duration::from_secs(60);
/// Clients that ask at once.
const CLIENTS: usize = 4;
/// Sandboxes among which a dial is turned.
const DIALS: usize = 100;
/// Sandboxes that are held at once.
const MANY: usize = 1000;
/// How long nothing is asked, for the processor time of a daemon with nothing to do.
const IDLE: Duration = Duration::from_secs(5);

/// Starts from a pool for a minute by some clients, each as fast as it is answered.
pub fn sustained(daemon: &mut Daemon, request: &Value) -> Result<Value> {
    daemon.fill(request)?;
    let before_kb = daemon_kb(daemon.pid())?;
    let count = AtomicU64::new(0);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let (mut client, count) = (daemon.client.another(), &count);
                scope.spawn(move || -> Result<()> {
                    while begin.elapsed() < SUSTAINED {
                        let sandbox = client.json("POST", "/v1/sandboxes?wait=true", Some(request))?;
                        let id = sandbox["id"].as_str().context("a sandbox without an id")?.to_owned();
                        client.ask("DELETE", &format!("/v1/sandboxes/{id}"), None)?;
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        clients.into_iter().try_for_each(|client| client.join().unwrap_or_else(|_| anyhow::bail!("a client panicked")))
    })?;
    let per_s = count.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64();
    let pools = daemon.client.json("GET", "/v1/pools", None)?;
    let (hits, misses) = (&pools["pools"][0]["hits"], &pools["pools"][0]["misses"]);
    let after_kb = daemon_kb(daemon.pid())?;
    println!(
        "sustained for {} s by {CLIENTS} clients: {per_s:.0} starts a second, {hits} from the pool and {misses} without; apexd {before_kb:.0} kB before and {after_kb:.0} kB after",
        SUSTAINED.as_secs()
    );
    Ok(json!({ "per_s": per_s, "hits": hits, "misses": misses, "before_kb": before_kb, "after_kb": after_kb }))
}

/// Mode changes among a hundred sandboxes, asked to answered: by then each limit is read back.
pub fn dial(daemon: &mut Daemon, bench: &Bench) -> Result<Value> {
    let ids = hold(daemon, bench, DIALS, "hybrid")?;
    let mut samples = Vec::new();
    for mode in ["isolation", "hybrid", "isolation", "hybrid"] {
        for id in &ids {
            let begin = Instant::now();
            let answer =
                daemon.client.json("PUT", &format!("/v1/sandboxes/{id}/mode"), Some(&json!({ "mode": mode })))?;
            samples.push(begin.elapsed().as_secs_f64() * 1e3);
            anyhow::ensure!(answer["applied"] == true, "a mode was not changed: {answer}");
        }
    }
    let at = |percent| percentile(&samples, percent);
    println!("mode switch among {DIALS}, {} times, ms: p50 {:.3}, p99 {:.3}", samples.len(), at(50), at(99));
    let numbers = json!({ "p50_ms": at(50), "p99_ms": at(99), "count": samples.len() });
    release(daemon, &ids)?;
    Ok(numbers)
}

/// Many at once.
pub fn many(daemon: &mut Daemon, bench: &Bench) -> Result<Value> {
    let begin = Instant::now();
    let ids = hold(daemon, bench, MANY, "isolation")?;
    let start_s = begin.elapsed().as_secs_f64();
    let daemon_mb = daemon_kb(daemon.pid())? / 1024.0;
    let mut helpers = Vec::new();
    for id in ids.iter().step_by(10) {
        let sandbox = daemon.client.json("GET", &format!("/v1/sandboxes/{id}"), None)?;
        let init = sandbox["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).context("a pid")?;
        helpers.push(pss_kb(init) + pss_kb(parent_of(init)?));
    }
    let helpers_kb = percentile(&helpers, 50);
    let before = cpu_ticks(daemon.pid());
    std::thread::sleep(IDLE);
    // A hundredth of a second each (USER_HZ).
    let idle_percent = (cpu_ticks(daemon.pid()) - before) as f64 / IDLE.as_secs_f64();
    println!(
        "{MANY} sandboxes at once: made in {start_s:.1} s; apexd and warden {daemon_mb:.1} MB, keeper and init {helpers_kb:.0} kB a sandbox (PSS); {idle_percent:.1}% of a processor with nothing to do"
    );
    let begin = Instant::now();
    release(daemon, &ids)?;
    println!("ended and forgotten in {:.1} s", begin.elapsed().as_secs_f64());
    Ok(
        json!({ "count": MANY, "start_s": start_s, "daemon_mb": daemon_mb, "helpers_kb": helpers_kb, "idle_percent": idle_percent }),
    )
}

fn hold(daemon: &mut Daemon, bench: &Bench, count: usize, mode: &str) -> Result<Vec<String>> {
    let request = json!({
        "command": [bench.work.program("pause")], "cwd": bench.work.payload(), "mode": mode, "ro": [bench.work.payload()],
    });
    let one = |_| {
        let sandbox = daemon.client.json("POST", "/v1/sandboxes", Some(&request))?;
        anyhow::ensure!(sandbox["state"] == "running", "a sandbox does not run: {sandbox}");
        Ok(sandbox["id"].as_str().context("a sandbox without an id")?.to_owned())
    };
    (0..count).map(one).collect()
}

pub fn release(daemon: &mut Daemon, ids: &[String]) -> Result<()> {
    ids.iter().try_for_each(|id| daemon.client.ask("DELETE", &format!("/v1/sandboxes/{id}?force=true"), None).map(drop))
}

/// The daemon and its warden; keepers, which are the warden's children, are counted with their sandboxes.
fn daemon_kb(pid: u32) -> Result<f64> {
    let warden = children_of(pid)?.first().copied().context("apexd has no warden")?;
    Ok(pss_kb(pid) + pss_kb(warden))
}

fn parent_of(pid: u32) -> Result<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).context("a sandbox's init is gone")?;
    let line = text.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.and_then(|rest| rest.trim().parse().ok()).context("no parent")
}

/// User and system time, proc_pid_stat(5).
fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
    fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

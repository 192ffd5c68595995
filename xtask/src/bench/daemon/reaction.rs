//! From a finding to its being in force: how long a hostile program goes on once the prober has written what it did.
//!
//! Each sample is one sandbox: a signal has its command read secrets, the prober writes the finding, the daemon freezes the sandbox. Both ends are looked for without
//! pause: the first byte of the findings file, and `frozen 1` in the sandbox's `cgroup.events`. Times of files lag by a tick of the kernel, and it tells of changes of
//! that file at most once in 10 ms. When the event itself happened is the kernel's stamp, in the finding.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::super::Bench;
use super::super::meter::percentile;
use super::{Daemon, scale};

/// Sandboxes that are watched at once.
const WATCHED_MAX: usize = 100;
/// How long one may take to be frozen.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_micros(50);
/// A command line that names these is a finding of severity high.
const SECRETS: [&str; 3] = [".ssh/id_rsa", ".aws/credentials", ".netrc"];
/// The same, as a shell finds them: its own command line is to be none.
const FOUND_AS: &str = "/tmp/h/.s?h/id_rsa /tmp/h/.a?s/credentials /tmp/h/.ne?rc";

/// Milliseconds of one sample.
struct Sample {
    /// From the event that completed the finding, as the kernel stamped it; in whole milliseconds.
    from_event_ms: f64,
    /// From the finding.
    from_finding_ms: f64,
}

/// Measures and prints. Needs probes, hence root.
pub fn run(daemon: &mut Daemon, bench: &Bench, count: usize) -> Result<Value> {
    let home = bench.work.path().join("home");
    for name in SECRETS {
        let file = home.join(name);
        fs::create_dir_all(file.parent().context("a file in a directory")?)?;
        fs::write(file, "secret")?;
    }
    let unified = unified()?;
    let ids = watched(daemon, &home, count.clamp(1, WATCHED_MAX))?;
    let samples = ids.iter().map(|id| sample(daemon, bench, &unified, id)).collect::<Result<Vec<_>>>()?;
    scale::release(daemon, &ids)?;
    let of = |pick: fn(&Sample) -> f64| samples.iter().map(pick).collect::<Vec<_>>();
    let (events, findings) = (of(|sample| sample.from_event_ms), of(|sample| sample.from_finding_ms));
    println!(
        "finding to frozen, {} watched sandboxes, ms: p50 {:.3}, p99 {:.3}; from the event itself: p50 {:.0}, p99 {:.0}",
        samples.len(),
        percentile(&findings, 50),
        percentile(&findings, 99),
        percentile(&events, 50),
        percentile(&events, 99),
    );
    Ok(json!({
        "count": samples.len(), "p50_ms": percentile(&findings, 50), "p99_ms": percentile(&findings, 99),
        "event_p50_ms": percentile(&events, 50), "event_p99_ms": percentile(&events, 99),
    }))
}

/// Sandboxes that wait for a signal, each with a prober.
fn watched(daemon: &mut Daemon, home: &Path, count: usize) -> Result<Vec<String>> {
    // `wait` returns for a signal, a program in the foreground would hold the trap up.
    let script = format!("trap 'cat {FOUND_AS} >/dev/null' USR1; while :; do sleep 300 & wait; done");
    let request = json!({
        "command": ["/bin/sh", "-c", script], "cwd": home, "mode": "hybrid", "watch": "default", "on_finding": "freeze",
        "ro": [format!("{}:/tmp/h", home.display())],
    });
    let one = |_| {
        let sandbox = daemon.client.json("POST", "/v1/sandboxes", Some(&request))?;
        ensure!(sandbox["state"] == "running", "a watched sandbox does not run: {sandbox}");
        Ok(sandbox["id"].as_str().context("a sandbox without an id")?.to_owned())
    };
    (0..count).map(one).collect()
}

fn sample(daemon: &mut Daemon, bench: &Bench, unified: &Path, id: &str) -> Result<Sample> {
    let sandbox = daemon.client.json("GET", &format!("/v1/sandboxes/{id}"), None)?;
    let init = sandbox["pid"].as_u64().context("a sandbox without an init")?;
    let events = events_of(unified, init)?;
    let findings = bench.work.path().join("daemon/state/sandboxes").join(id).join("findings.jsonl");
    let signal = json!({ "signal": Signal::SIGUSR1 as i32 });
    daemon.client.json("POST", &format!("/v1/sandboxes/{id}/signal"), Some(&signal))?;
    let written = until("a finding", || Ok(fs::metadata(&findings)?.len() > 0))?;
    let in_force = until("frozen", || {
        let text = fs::read_to_string(&events)?;
        Ok(text.lines().any(|line| line == "frozen 1"))
    })?;
    let ms = |from: SystemTime| in_force.duration_since(from).unwrap_or_default().as_secs_f64() * 1e3;
    Ok(Sample { from_event_ms: ms(happened(&findings)?), from_finding_ms: ms(written) })
}

/// The moment at which it is so.
fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<SystemTime> {
    let end = Instant::now() + PATIENCE;
    while !is_so().with_context(|| format!("looking for {what}"))? {
        ensure!(Instant::now() < end, "no sign of {what} within {} s", PATIENCE.as_secs());
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(SystemTime::now())
}

/// When what the first finding tells of happened.
fn happened(findings: &Path) -> Result<SystemTime> {
    let text = fs::read_to_string(findings)?;
    let first: Value = serde_json::from_str(text.lines().next().context("there is no finding")?)?;
    let ms = first["time"].as_u64().context("a finding without a time")?;
    Ok(UNIX_EPOCH + Duration::from_millis(ms))
}

/// The file that says whether the sandbox of this init stands still.
fn events_of(unified: &Path, init: u64) -> Result<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{init}/cgroup")).context("a sandbox's init is gone")?;
    let inside = text.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup v2")?;
    Ok(unified.join(inside).join("cgroup.events"))
}

/// Where cgroup v2 is mounted.
fn unified() -> Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let line = text.lines().find(|line| line.contains(" - cgroup2 ")).context("cgroup v2 is not mounted")?;
    Ok(PathBuf::from(line.split(' ').nth(4).context("a mount without a place")?))
}

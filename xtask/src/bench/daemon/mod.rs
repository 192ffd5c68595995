//! The daemon: starts from a pool and of interpreters that were started ahead, beside bubblewrap's cold ones in turns; the rate that lasts; mode changes and
//! reactions to findings; memory and processor time of many sandboxes.

mod client;
mod reaction;
mod scale;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use self::client::Client;
use super::meter::percentile;
use super::peers::{self, BWRAP, Contender};
use super::{Bench, Target, targets};
use crate::build;

/// Starts of each kind unless the command line says otherwise.
pub const STARTS: usize = 300;
/// Between two starts: what a shelf has lost is built anew in it, off the path.
const PAUSE: Duration = Duration::from_millis(25);
/// Sandboxes that a pool holds here.
const SHELF: u64 = 16;
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon of the benchmark's own, ended with it.
pub struct Daemon {
    child: Child,
    pub client: Client,
}

impl Daemon {
    fn start(bench: &Bench) -> Result<Daemon> {
        build::daemon()?;
        let dir = bench.work.path().join("daemon");
        std::fs::create_dir(&dir).context("cannot make the daemon's directory")?;
        let socket = dir.join("s");
        let child = Command::new(bench.apex_run.with_file_name("apexd"))
            .arg("--socket")
            .arg(&socket)
            .arg("--state")
            .arg(dir.join("state"))
            .args(["--pool-max", "64"])
            .env("APEX_RUN", &bench.apex_run)
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start apexd")?;
        let mut daemon = Daemon { child, client: Client::new(&socket) };
        let until = Instant::now() + PATIENCE;
        while daemon.client.ask("GET", "/readyz", None).is_err() {
            ensure!(Instant::now() < until, "apexd does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(daemon)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until a pool holds what it is to hold.
    fn fill(&mut self, like: &Value) -> Result<()> {
        self.client.json("PUT", "/v1/pools", Some(&json!({ "like": like, "size": SHELF })))?;
        let until = Instant::now() + PATIENCE;
        loop {
            let pools = self.client.json("GET", "/v1/pools", None)?;
            let list = pools["pools"].as_array().cloned().unwrap_or_default();
            if !list.is_empty() && list.iter().all(|pool| pool["ready"].as_u64() >= Some(SHELF)) {
                return Ok(());
            }
            ensure!(Instant::now() < until, "the pools do not fill: {pools}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// One run from its pool, request to reaped, in milliseconds. Forgotten afterwards, unmeasured.
    fn pooled(&mut self, request: &Value) -> Result<f64> {
        let begin = Instant::now();
        let sandbox = self.client.json("POST", "/v1/sandboxes?wait=true", Some(request))?;
        let wall_ms = begin.elapsed().as_secs_f64() * 1e3;
        ensure!(sandbox["exit_code"] == 0, "a run from a pool failed: {sandbox}");
        self.forget(&sandbox)?;
        Ok(wall_ms)
    }

    pub fn forget(&mut self, sandbox: &Value) -> Result<()> {
        let id = sandbox["id"].as_str().context("a sandbox without an id")?;
        self.client.ask("DELETE", &format!("/v1/sandboxes/{id}?force=true"), None).map(drop)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let all = self.client.json("GET", "/v1/sandboxes", None).unwrap_or_default();
        for sandbox in all["sandboxes"].as_array().into_iter().flatten() {
            let _ended = self.forget(sandbox);
        }
        let _told = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.child.id().cast_signed()),
            nix::sys::signal::Signal::SIGTERM,
        );
        let _status = self.child.wait();
    }
}

/// Measures and prints; returns the numbers.
pub fn run(bench: &Bench, starts: usize) -> Result<Value> {
    let mut daemon = Daemon::start(bench)?;
    let payload = bench.work.program("true");
    let oneshot = json!({
        "command": [payload], "cwd": "/", "pool": true, "ro": [bench.work.payload()],
    });
    let python = json!({
        "command": ["/usr/bin/python3", "-c", "print(1)"], "cwd": "/", "profile": "python", "pool": true, "warm": true,
    });
    daemon.fill(&oneshot)?;
    let contenders = peers::find(bench)?;
    let bwrap = contenders.iter().find(|one| one.name == BWRAP).context("bubblewrap does not run here")?;
    let one = one_shot(&mut daemon, &oneshot, &payload, bwrap, starts)?;
    drain(&mut daemon)?;
    daemon.fill(&python)?;
    let warm = interpreters(&mut daemon, &python, bwrap, starts / 3)?;
    drain(&mut daemon)?;
    let rate = scale::sustained(&mut daemon, &oneshot)?;
    drain(&mut daemon)?;
    let dial = scale::dial(&mut daemon, bench)?;
    let reaction = reaction::run(&mut daemon, bench, starts)?;
    let many = scale::many(&mut daemon, bench)?;
    let targets = targets(&[
        Target {
            what: "pooled start, to a bare vfork and exec, p50",
            value: Some(one.pooled / one.bare),
            at_most: 5.0,
        },
        Target { what: "pooled start, to bubblewrap's, p50", value: Some(one.pooled / one.bwrap), at_most: 1.0 / 8.0 },
        Target { what: "warm print(1), to a cold one in bubblewrap, p50", value: Some(warm.0 / warm.1), at_most: 0.1 },
        Target {
            what: "seconds for 400 pooled starts, sustained",
            value: Some(400.0 / rate["per_s"].as_f64().unwrap_or(f64::NAN)),
            at_most: 1.0,
        },
        Target { what: "mode switch over 100 sandboxes, p99, ms", value: dial["p99_ms"].as_f64(), at_most: 2.0 },
        enforced(&reaction),
        Target { what: "apexd and warden with many sandboxes, MB", value: many["daemon_mb"].as_f64(), at_most: 60.0 },
        Target { what: "PSS of a sandbox's helpers, kB", value: many["helpers_kb"].as_f64(), at_most: 80.0 },
    ]);
    Ok(json!({
        "one_shot_ms": { "pooled": one.pooled, "bare": one.bare, "bwrap": one.bwrap }, "warm_ms": { "pooled": warm.0, "bwrap": warm.1 },
        "sustained": rate, "dial": dial, "reaction": reaction, "many": many, "targets": targets,
    }))
}

/// From a finding to its being in force, alone.
pub fn reaction(bench: &Bench, count: usize) -> Result<Value> {
    let mut daemon = Daemon::start(bench)?;
    let reaction = reaction::run(&mut daemon, bench, count)?;
    let targets = targets(&[enforced(&reaction)]);
    Ok(json!({ "reaction": reaction, "targets": targets }))
}

fn enforced(reaction: &Value) -> Target {
    Target { what: "finding to enforced, p99, ms", value: reaction["p99_ms"].as_f64(), at_most: 10.0 }
}

fn drain(daemon: &mut Daemon) -> Result<()> {
    daemon.client.ask("DELETE", "/v1/pools", None).map(drop)
}

/// Medians in milliseconds.
struct OneShot {
    pooled: f64,
    bare: f64,
    bwrap: f64,
}

fn one_shot(
    daemon: &mut Daemon,
    request: &Value,
    payload: &std::path::Path,
    bwrap: &Contender,
    starts: usize,
) -> Result<OneShot> {
    let (mut pooled, mut bare, mut cold) = (Vec::new(), Vec::new(), Vec::new());
    for serial in 0..starts {
        pooled.push(daemon.pooled(request)?);
        std::thread::sleep(PAUSE);
        // With nothing to be done between fork and exec the standard library takes vfork's way.
        bare.push(timed(Command::new(payload).stdin(Stdio::null()))?);
        cold.push(timed(&mut bwrap.command(serial)?)?);
    }
    println!("{starts} starts each, in turns, wall ms         p10      p50      p90");
    let row = |name: &str, samples: &[f64]| {
        let at = |percent| percentile(samples, percent);
        println!("{name:<40} {:>8.3} {:>8.3} {:>8.3}", at(10), at(50), at(90));
        at(50)
    };
    let (pooled, bare) = (row("from a pool, request to reaped", &pooled), row("bare vfork and exec", &bare));
    Ok(OneShot { pooled, bare, bwrap: row("bwrap, cold", &cold) })
}

/// Medians of a warm one and of one that is started cold by bubblewrap.
fn interpreters(daemon: &mut Daemon, request: &Value, bwrap: &Contender, starts: usize) -> Result<(f64, f64)> {
    let (mut warm, mut cold) = (Vec::new(), Vec::new());
    for serial in 0..starts {
        warm.push(daemon.pooled(request)?);
        std::thread::sleep(4 * PAUSE);
        let mut command = bwrap.command(serial)?;
        // The payload is the last word.
        let words: Vec<_> = command.get_args().map(std::ffi::OsStr::to_owned).collect();
        let mut python = Command::new(command.get_program());
        python.args(&words[..words.len() - 1]).args(["/usr/bin/python3", "-c", "print(1)"]);
        bwrap.streams(&mut python)?;
        command = python;
        cold.push(timed(&mut command)?);
    }
    let at = |samples: &[f64]| percentile(samples, 50);
    println!("python3 -c 'print(1)', p50 ms: {:.3} warm from a pool, {:.3} cold in bwrap", at(&warm), at(&cold));
    Ok((at(&warm), at(&cold)))
}

fn timed(command: &mut Command) -> Result<f64> {
    command.stdout(Stdio::null());
    let begin = Instant::now();
    let status = command.status().context("cannot start a peer")?;
    let wall_ms = begin.elapsed().as_secs_f64() * 1e3;
    if !status.success() {
        bail!("a peer failed in the middle of the run: {status}");
    }
    Ok(wall_ms)
}

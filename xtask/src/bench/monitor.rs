//! What watching costs: the rest of the host, the watched program, one system call at level full, and a flood of events.
//!
//! Watched and unwatched take turns, so both see the same machine. strace and bpftrace stand beside level full.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::meter::percentile;
use super::{Bench, Target, targets};
use crate::shell;

/// Rounds unless the command line says otherwise.
pub const ROUNDS: usize = 7;
/// Requests of one redis-benchmark and operation.
const REQUESTS: &str = "150000";
/// Programs executed by one shell loop.
const EXECS: &str = "400";
/// Turns of the loops of `ops`.
const GETPPIDS: &str = "2000000";
/// strace is two orders slower.
const GETPPIDS_STRACED: &str = "20000";
const COMPUTES: &str = "100000000";
const FLOOD_SECONDS: &str = "10";
const FLOOD_WORKERS: &str = "2";
/// A server that is not up by then will not come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A redis inside of a sandbox, with its own client: prints the client's table.
const REDIS_INSIDE: &str =
    "redis-server --port 0 --unixsocket /tmp/s --save '' --daemonize yes --logfile /tmp/l >/dev/null
i=0; until redis-cli -s /tmp/s ping >/dev/null 2>&1; do i=$((i+1)); [ $i -lt 200 ] || exit 1; sleep 0.05; done
redis-benchmark -s /tmp/s -t set,get -n \"$1\" --csv; redis-cli -s /tmp/s shutdown nosave >/dev/null 2>&1 || :";
/// Prints the nanoseconds of a loop that executes `true`.
const EXEC_LOOP: &str =
    "b=$(date +%s%N); i=0; while [ $i -lt $1 ]; do /bin/true; i=$((i+1)); done; e=$(date +%s%N); echo $((e-b))";

/// Cost of one kind of work, without and with watching: times, or rates of which more is better.
struct Pair {
    name: &'static str,
    unit: &'static str,
    is_rate: bool,
    plain: Vec<f64>,
    watched: Vec<f64>,
}

impl Pair {
    fn new(name: &'static str, unit: &'static str, is_rate: bool) -> Pair {
        Pair { name, unit, is_rate, plain: Vec::new(), watched: Vec::new() }
    }

    /// Takes both measures, the one or the other first.
    fn turn(&mut self, round: usize, mut measure: impl FnMut(bool) -> Result<f64>) -> Result<()> {
        for turn in 0..2 {
            let is_watched = (round + turn) % 2 == 1;
            let value = measure(is_watched)?;
            if is_watched { self.watched.push(value) } else { self.plain.push(value) }
        }
        Ok(())
    }

    /// What watching makes of a time (1.1: a tenth longer) or of a rate (0.9: a tenth less): the median of the rounds' ratios.
    fn ratio(&self) -> f64 {
        let ratios: Vec<f64> = self.plain.iter().zip(&self.watched).map(|(plain, watched)| watched / plain).collect();
        percentile(&ratios, 50)
    }

    /// A rate's loss as a time would show it.
    fn slowdown(&self) -> f64 {
        if self.is_rate { 1.0 / self.ratio() } else { self.ratio() }
    }

    fn print(&self) {
        let [plain, watched] = [&self.plain, &self.watched].map(|samples| percentile(samples, 50));
        println!("{:<34} {plain:>14.2} {watched:>14.2} {:>8.3}  {}", self.name, self.ratio(), self.unit);
    }

    fn json(&self) -> Value {
        json!({ "unit": self.unit, "plain": self.plain, "watched": self.watched, "ratio": self.ratio() })
    }
}

/// Measures and prints; returns the numbers.
pub fn run(bench: &Bench, rounds: usize) -> Result<Value> {
    ensure!(shell::is_root(), "watching by kernel probes needs root; run this as root");
    let mut host = Pair::new("(a) redis on the host", "requests/s", true);
    let mut compute = Pair::new("(b) compute inside", "ns", false);
    let mut redis = Pair::new("(b) redis inside", "requests/s", true);
    let mut execs = Pair::new("(b) exec loop inside", "ns a loop", false);
    let mut full = Pair::new("(c) getppid inside, level full", "ns", false);
    let server = Redis::start(bench)?;
    for round in 0..rounds {
        host.turn(round, |is_watched| beside_a_sandbox(bench, &server, is_watched))?;
        compute.turn(round, |is_watched| ops(bench, level("default", is_watched), "compute", COMPUTES))?;
        redis.turn(round, |is_watched| redis_inside(bench, is_watched))?;
        execs.turn(round, |is_watched| exec_loop(bench, is_watched))?;
        full.turn(round, |is_watched| ops(bench, level("full", is_watched), "getppid", GETPPIDS))?;
    }
    drop(server);
    println!("{rounds} rounds, unwatched and watched in turns; medians, and the median of the rounds' ratios\n");
    println!("{:<34} {:>14} {:>14} {:>8}", "", "unwatched", "watched", "ratio");
    let pairs = [&host, &compute, &redis, &execs, &full];
    pairs.iter().for_each(|pair| pair.print());
    let peers = peers(bench, percentile(&full.plain, 50))?;
    let flood = Flood::measure(bench)?;
    flood.print();
    let targets = targets(&[
        Target { what: "(a) redis on the host, unwatched to watched", value: Some(host.slowdown()), at_most: 1.0101 },
        Target { what: "(b) compute at default", value: Some(compute.slowdown()), at_most: 1.01 },
        Target { what: "(b) redis at default", value: Some(redis.slowdown()), at_most: 1.03 },
        Target { what: "(b) exec loop at default", value: Some(execs.slowdown()), at_most: 1.10 },
        Target { what: "(c) getppid at full", value: Some(full.slowdown()), at_most: 2.2 },
        Target {
            what: "(d) events neither recorded nor counted as lost",
            value: Some(flood.unaccounted()),
            at_most: 0.0,
        },
    ]);
    let table: serde_json::Map<String, Value> = pairs.iter().map(|pair| (pair.name.to_owned(), pair.json())).collect();
    Ok(json!({ "rounds": rounds, "pairs": table, "peers": peers, "flood": flood.json(), "targets": targets }))
}

fn level(name: &'static str, is_watched: bool) -> Option<&'static str> {
    is_watched.then_some(name)
}

/// `apex-run`, watching at `level` or not, with the payload shown; the command is the caller's to add.
fn sandbox(bench: &Bench, level: Option<&str>, options: &[&str]) -> Command {
    let mut command = Command::new(&bench.apex_run);
    command.args(["--profile", "shell"]);
    if let Some(level) = level {
        command.arg(format!("--watch={level}"));
    }
    command.args(options).arg("--ro").arg(bench.work.payload()).arg("--").stdin(Stdio::null());
    command
}

fn output(mut command: Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {}", shell::line(&command)))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} failed: {}\n{stderr}", shell::line(&command), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn number(text: &str, of: &str) -> Result<f64> {
    text.trim().parse().with_context(|| format!("{of} printed {text:?} where a number was due"))
}

fn ops(bench: &Bench, level: Option<&str>, op: &str, count: &str) -> Result<f64> {
    let mut command = sandbox(bench, level, &[]);
    command.arg(bench.work.program("ops")).args([op, count]).arg(bench.work.payload().join("file"));
    number(&output(command)?, "ops")
}

fn exec_loop(bench: &Bench, is_watched: bool) -> Result<f64> {
    let mut command = sandbox(bench, level("default", is_watched), &[]);
    command.args(["/bin/sh", "-c", EXEC_LOOP, "sh", EXECS]);
    number(&output(command)?, "the exec loop")
}

fn redis_inside(bench: &Bench, is_watched: bool) -> Result<f64> {
    let mut command = sandbox(bench, level("default", is_watched), &[]);
    command.args(["/bin/sh", "-c", REDIS_INSIDE, "sh", REQUESTS]);
    requests_a_second(&output(command)?)
}

/// The sum over the operations of redis-benchmark's table.
fn requests_a_second(csv: &str) -> Result<f64> {
    let rates: Vec<f64> =
        csv.lines().filter_map(|line| line.split(',').nth(1)?.trim_matches('"').parse().ok()).collect();
    ensure!(!rates.is_empty(), "redis-benchmark printed no rates: {csv:?}");
    Ok(rates.iter().sum())
}

/// The rate of a redis on the host while a sandbox lives beside it.
fn beside_a_sandbox(bench: &Bench, server: &Redis, is_watched: bool) -> Result<f64> {
    let mut command = sandbox(bench, level("default", is_watched), &[]);
    command.arg(bench.work.program("pause")).stdout(Stdio::piped());
    let mut beside = Held(command.spawn().context("cannot run apex-run")?);
    // It says that it runs with one byte.
    let stdout = beside.0.stdout.as_mut().context("the sandbox has no output")?;
    stdout.read_exact(&mut [0]).context("the sandbox beside did not come up")?;
    server.measure()
}

/// A child that is ended with its holder.
struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        // apex-run takes its sandbox with it; a server of ours has nothing to save.
        let _gone = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _status = self.0.wait();
    }
}

/// A redis on the host, on a socket of its own.
struct Redis {
    _server: Held,
    socket: PathBuf,
}

impl Redis {
    fn start(bench: &Bench) -> Result<Redis> {
        let socket = bench.work.path().join("redis.sock");
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--unixsocket"]).arg(&socket).current_dir(bench.work.path());
        let server =
            Held(command.stdout(Stdio::null()).stdin(Stdio::null()).spawn().context("cannot run redis-server")?);
        let deadline = Instant::now() + PATIENCE;
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            ensure!(Instant::now() < deadline, "redis-server did not come up within {} s", PATIENCE.as_secs());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Redis { _server: server, socket })
    }

    fn measure(&self) -> Result<f64> {
        let mut command = Command::new("redis-benchmark");
        command.arg("-s").arg(&self.socket).args(["-t", "set,get", "-n", REQUESTS, "--csv"]);
        requests_a_second(&output(command)?)
    }
}

/// What others make of a getppid: to the same loop without them.
fn peers(bench: &Bench, sandboxed_ns: f64) -> Result<Value> {
    let plain = |count: &str, tracer: &[&str]| {
        let mut words: Vec<std::ffi::OsString> = tracer.iter().map(Into::into).collect();
        words.push(bench.work.program("ops").into());
        words.extend(["getppid", count].map(Into::into));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(bench.work.payload().join("file")).stdin(Stdio::null());
        number(&output(command)?, "ops")
    };
    println!("\nthe same loop outside of a sandbox, ns for one getppid");
    let bare = plain(GETPPIDS, &[])?;
    println!("{:<34} {bare:>14.2}", "plain");
    let straced = plain(GETPPIDS_STRACED, &["strace", "-f", "-c", "-o", "/dev/null"])?;
    println!("{:<34} {straced:>14.2} {:>23.1} times", "strace -c", straced / bare);
    let bpftraced = match bpftrace() {
        Ok(_tracer) => {
            let ns = plain(GETPPIDS, &[])?;
            println!("{:<34} {ns:>14.2} {:>23.1} times", "bpftrace, raw_syscalls counted", ns / bare);
            Some(ns)
        }
        Err(reason) => {
            println!("bpftrace does not run here: {reason:#}");
            None
        }
    };
    Ok(json!({ "plain_ns": bare, "sandboxed_ns": sandboxed_ns, "strace_ns": straced, "bpftrace_ns": bpftraced }))
}

/// bpftrace counting every system call by process; returned when it is attached.
fn bpftrace() -> Result<Held> {
    let script = "BEGIN { printf(\"ready\\n\"); } tracepoint:raw_syscalls:sys_enter { @[comm] = count(); }";
    let mut command = Command::new("bpftrace");
    command.args(["-e", script]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot run bpftrace")?;
    let stdout = child.stdout.take().context("bpftrace has no output")?;
    let mut held = Held(child);
    let (sender, ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let line = BufReader::new(stdout).lines().map_while(Result::ok).find(|line| line.contains("ready"));
        let _nobody_waits = sender.send(line.is_some());
    });
    match ready.recv_timeout(PATIENCE) {
        Ok(true) => Ok(held),
        Ok(false) => {
            let mut words = String::new();
            if let Some(mut stderr) = held.0.stderr.take() {
                stderr.read_to_string(&mut words)?;
            }
            bail!("{}", words.lines().next().unwrap_or("it ended without a word"))
        }
        Err(_) => bail!("it was not ready within {} s", PATIENCE.as_secs()),
    }
}

/// As many events as two processors make, for ten seconds.
struct Flood {
    attempted: f64,
    recorded: f64,
    lost: f64,
    seconds: f64,
    by_reason: Value,
}

impl Flood {
    fn measure(bench: &Bench) -> Result<Flood> {
        // Events go to standard error, which is read here: a file of them would be a benchmark of the disk.
        let mut command = sandbox(bench, Some("full"), &["--events", "stderr"]);
        command.arg(bench.work.program("flood")).args([FLOOD_SECONDS, FLOOD_WORKERS]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot run apex-run")?;
        let stderr = BufReader::new(child.stderr.take().context("apex-run has no standard error")?);
        let mut recorded = 0_u64;
        let mut dropped = 0.0;
        let mut end = Value::Null;
        for line in stderr.split(b'\n') {
            let line = line.context("cannot read the events")?;
            if line.windows(SIGNAL.len()).any(|window| window == SIGNAL) {
                recorded += 1;
            } else if line.windows(END.len()).any(|window| window == END) {
                end = serde_json::from_slice(&line).context("the last event is not JSON")?;
            } else if line.windows(DROPPED.len()).any(|window| window == DROPPED) {
                // What the sink could not write is told in words behind the end of the record: "apex-probe: N of M lines did not get to ...".
                let text = String::from_utf8_lossy(&line);
                dropped += number(text.split_whitespace().nth(1).unwrap_or_default(), "apex-probe")?;
            }
        }
        let output = child.wait_with_output().context("cannot wait for apex-run")?;
        ensure!(output.status.success(), "the flood failed: {}", output.status);
        ensure!(!end.is_null(), "the record of the flood has no end");
        let by_reason = end["lost"].clone();
        let lost: f64 = by_reason.as_object().into_iter().flatten().filter_map(|(_, count)| count.as_f64()).sum();
        Ok(Flood {
            attempted: number(&String::from_utf8_lossy(&output.stdout), "flood")?,
            recorded: recorded as f64,
            lost: lost + dropped,
            seconds: number(FLOOD_SECONDS, "the flood")?,
            by_reason,
        })
    }

    /// More may be counted as lost than the flood made, when other events are lost with it; never less.
    fn unaccounted(&self) -> f64 {
        (self.attempted - self.recorded - self.lost).max(0.0)
    }

    fn print(&self) {
        let rate = |count: f64| count / self.seconds;
        println!("\n(d) {FLOOD_WORKERS} processes flood for {FLOOD_SECONDS} s at level full");
        println!("attempted {:>14.0}   {:>10.0} a second", self.attempted, rate(self.attempted));
        println!("recorded  {:>14.0}   {:>10.0} a second", self.recorded, rate(self.recorded));
        println!("lost      {:>14.0}   {}", self.lost, self.by_reason);
    }

    fn json(&self) -> Value {
        json!({
            "attempted": self.attempted, "recorded": self.recorded, "lost": self.by_reason,
            "seconds": self.seconds, "unaccounted": self.unaccounted(),
        })
    }
}

/// How an event of the flood shows in its line.
const SIGNAL: &[u8] = b"\"event\":\"signal\"";
/// How a sink that could not write all shows.
const DROPPED: &[u8] = b" lines did not get to ";
/// How the end of the record does.
const END: &[u8] = b"\"event\":\"end\"";

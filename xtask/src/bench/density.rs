//! Many sandboxes held at once: what each costs in memory and processes, and whether all of it comes back.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::meter::percentile;
use super::{Bench, Target, targets};
use crate::leaks::{self, Belongings, children_of};

/// Sandboxes unless the command line says otherwise.
pub const SANDBOXES: usize = 1000;
/// All must be up, and down again, within this time; on the way there only what hangs is ended.
const PATIENCE: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(20);

/// Memory and processes of one sandbox.
struct Sandbox {
    launcher_pss_kb: f64,
    init_pss_kb: f64,
    processes: usize,
}

/// What all of them together needed. Memory is per sandbox.
struct Outcome {
    count: usize,
    start_s: f64,
    end_s: f64,
    all_gone_s: f64,
    processes: f64,
    launcher_pss_kb: f64,
    init_pss_kb: f64,
    cgroup_kb: f64,
    machine_kb: f64,
    left: Vec<String>,
}

/// Measures and prints; returns the numbers.
pub fn run(bench: &Bench, count: usize) -> Result<Value> {
    nix::sys::prctl::set_child_subreaper(true).context("cannot adopt orphaned processes")?;
    let outcome = measure(bench, count)?;
    outcome.print();
    Ok(outcome.json())
}

fn measure(bench: &Bench, count: usize) -> Result<Outcome> {
    let before = Belongings::look(bench.work.path())?;
    let available_before_kb = available_kb()?;
    let mut held = Held::default();
    let begin = Instant::now();
    held.start(bench, count)?;
    let start_s = begin.elapsed().as_secs_f64();

    let taken_kb = available_before_kb.saturating_sub(available_kb()?);
    let cgroup_kb = cgroup_memory_kb(Path::new("/sys/fs/cgroup"));
    let sandboxes: Vec<Sandbox> = held.0.iter().map(|child| look(child.id())).collect::<Result<_>>()?;
    let median = |of: fn(&Sandbox) -> f64| percentile(&sandboxes.iter().map(of).collect::<Vec<_>>(), 50);

    let begin = Instant::now();
    held.end()?;
    let end_s = begin.elapsed().as_secs_f64();
    let left = leaks::settle(&before, bench.work.path())?;
    Ok(Outcome {
        count,
        start_s,
        end_s,
        all_gone_s: begin.elapsed().as_secs_f64(),
        processes: median(|one| one.processes as f64),
        launcher_pss_kb: median(|one| one.launcher_pss_kb),
        init_pss_kb: median(|one| one.init_pss_kb),
        cgroup_kb: cgroup_kb / count as f64,
        machine_kb: taken_kb as f64 / count as f64,
        left,
    })
}

impl Outcome {
    fn print(&self) {
        let rate = |seconds: f64| self.count as f64 / seconds;
        println!("{} sandboxes at once, each with a static program that waits\n", self.count);
        println!("started in   {:>9.2} s    {:>6.0} a second", self.start_s, rate(self.start_s));
        println!("ended in     {:>9.2} s    {:>6.0} a second", self.end_s, rate(self.end_s));
        println!("all gone in  {:>9.2} s    cgroups, mounts, processes and files", self.all_gone_s);
        println!("processes    {:>9.0}      a sandbox: apex-run, its init, the program", self.processes);
        println!("apex-run     {:>9.0} kB   PSS, median", self.launcher_pss_kb);
        println!("init         {:>9.0} kB   PSS, median", self.init_pss_kb);
        println!("cgroup       {:>9.0} kB   a sandbox, as the memory controller counts", self.cgroup_kb);
        println!("the machine  {:>9.0} kB   a sandbox less available", self.machine_kb);
        for thing in &self.left {
            println!("LEFT BEHIND: {thing}");
        }
    }

    fn json(&self) -> Value {
        // The program is the user's and apex-run is what the user started: what comes on top is the helper.
        let helpers = self.processes - 2.0;
        let own_kb = Some(self.init_pss_kb).filter(|kb| kb.is_finite());
        let targets = targets(&[
            Target { what: "helper processes of a sandbox", value: Some(helpers), at_most: 1.0 },
            Target { what: "PSS of the helper, kB", value: own_kb, at_most: 80.0 },
            Target { what: "things left behind", value: Some(self.left.len() as f64), at_most: 0.0 },
        ]);
        json!({
            "sandboxes": self.count, "start_s": self.start_s, "end_s": self.end_s, "all_gone_s": self.all_gone_s,
            "processes": self.processes, "launcher_pss_kb": self.launcher_pss_kb, "init_pss_kb": self.init_pss_kb,
            "cgroup_kb": self.cgroup_kb, "machine_kb": self.machine_kb, "left": self.left, "targets": targets,
        })
    }
}

/// The sandboxes; ended when the benchmark ends, however it does.
#[derive(Default)]
struct Held(Vec<Child>);

impl Held {
    /// Returns when the program in each of them has said that it runs.
    fn start(&mut self, bench: &Bench, count: usize) -> Result<()> {
        // One pipe for all: a thousand would need a thousand descriptors here.
        let (mut reader, writer) = std::io::pipe().context("cannot make a pipe")?;
        for _sandbox in 0..count {
            let mut command = Command::new(&bench.apex_run);
            command.arg("--ro").arg(bench.work.payload()).arg("--").arg(bench.work.program("pause"));
            command.stdin(Stdio::null()).stdout(writer.try_clone().context("cannot duplicate a pipe")?);
            self.0.push(command.spawn().context("cannot run apex-run")?);
        }
        // When one fails, the pipe still has other writers and would block forever: so it is read by a thread.
        drop(writer);
        let (sender, running) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 256];
            while let Ok(length @ 1..) = reader.read(&mut bytes) {
                if sender.send(length).is_err() {
                    return;
                }
            }
        });
        let deadline = Instant::now() + PATIENCE;
        let mut up = 0;
        while up < count {
            ensure!(
                Instant::now() < deadline,
                "only {up} of {count} sandboxes came up within {} s",
                PATIENCE.as_secs()
            );
            if let Ok(more) = running.recv_timeout(POLL) {
                up += more;
                continue;
            }
            // Asked only when nothing happens: a thousand questions after each start would be part of the measurement.
            for child in &mut self.0 {
                let status = child.try_wait().context("cannot ask for a sandbox")?;
                ensure!(status.is_none(), "a sandbox ended by itself: {status:?}; its words are above");
            }
        }
        Ok(())
    }

    /// Asks each to end, then waits for all.
    fn end(&mut self) -> Result<()> {
        for child in &self.0 {
            kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).context("cannot end a sandbox")?;
        }
        let deadline = Instant::now() + PATIENCE;
        for child in &mut self.0 {
            while child.try_wait().context("cannot wait for a sandbox")?.is_none() {
                ensure!(Instant::now() < deadline, "a sandbox did not end on SIGTERM within {} s", PATIENCE.as_secs());
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.0.clear();
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // What has ended already needs no ending.
            let _gone = child.kill();
            let _status = child.wait();
        }
    }
}

fn look(launcher: u32) -> Result<Sandbox> {
    let mut processes = vec![launcher];
    let mut at = 0;
    while let Some(pid) = processes.get(at) {
        processes.extend(children_of(*pid)?);
        at += 1;
    }
    let init = processes.get(1).map_or(f64::NAN, |pid| pss_kb(*pid));
    Ok(Sandbox { launcher_pss_kb: pss_kb(launcher), init_pss_kb: init, processes: processes.len() })
}

/// Its share of memory, proc_pid_smaps(5); NaN where the kernel does not tell us.
pub(super) fn pss_kb(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(f64::NAN)
}

fn available_kb() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .context("/proc/meminfo does not say what is available")
}

/// What the memory controller counts for all cgroups of ours.
fn cgroup_memory_kb(dir: &Path) -> f64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.into_iter().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let one = |dir: &Path| {
        let file =
            ["memory.usage_in_bytes", "memory.current"].iter().find_map(|name| fs::read_to_string(dir.join(name)).ok());
        file.and_then(|text| text.trim().parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
    };
    // The controller counts children with their parent, so there is no need to look beneath one of ours.
    // From a positive zero: the sum of nothing is -0.0.
    dirs.fold(0.0, |sum, entry| {
        let is_ours = entry.file_name().to_string_lossy().starts_with("apex");
        sum + if is_ours { one(&entry.path()) } else { cgroup_memory_kb(&entry.path()) }
    })
}

//! `ctr run --rm` through the shim and through containerd's own for runc, and what an idle shim takes, under a containerd of the benchmark's own.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::bench::meter::percentile;
use crate::bench::{Bench, Target};
use crate::{build, shell};

/// How long containerd may take to answer at first.
const PATIENCE: Duration = Duration::from_secs(30);
/// Containers of one group while the shim's memory is read.
const GROUP: usize = 10;
/// Both shims, by the names that containerd knows them by.
const SHIMS: [&str; 2] = ["io.containerd.apex.v2", "io.containerd.runc.v2"];

/// A containerd that ends with its value.
struct Containerd<'a> {
    bench: &'a Bench,
    child: Child,
}

/// Measures and prints; `None` where there is no containerd.
pub fn run(bench: &Bench, apex_oci: &Path, count: usize) -> Result<Option<(Value, Vec<Target>)>> {
    if shell::on_path("containerd").is_none() || shell::on_path("ctr").is_none() {
        println!("\ncontainerd is not installed: nothing is said of the shim");
        return Ok(None);
    }
    let shim = build::shim()?;
    let containerd = Containerd::start(bench, &[apex_oci, &shim])?;
    let mut wall_ms: [Vec<f64>; 2] = Default::default();
    for round in 0..count.div_ceil(2) {
        for (name, samples) in SHIMS.iter().zip(&mut wall_ms) {
            let begin = Instant::now();
            containerd.container(name, &format!("bench-{round}"), &["--rm"], "/true")?;
            samples.push(begin.elapsed().as_secs_f64() * 1e3);
        }
    }
    println!("\n{:<24} {:>9} {:>9} {:>9}", "ctr run --rm, wall ms", "p10", "p50", "p90");
    for (name, samples) in SHIMS.iter().zip(&wall_ms) {
        let p = |percent| percentile(samples, percent);
        println!("{name:<24} {:>9.1} {:>9.1} {:>9.1}", p(10), p(50), p(90));
    }
    let memory = containerd.idle_kb()?;
    println!("an idle shim with {GROUP} containers in its group: {memory} kB (PSS)");
    let [own, other] = wall_ms.each_ref().map(|samples| percentile(samples, 50));
    let targets = vec![
        Target { what: "ctr run --rm, p50, to runc's shim", value: Some(own / other), at_most: 1.0 },
        Target { what: "an idle shim with ten containers, PSS in MB", value: Some(memory as f64 / 1e3), at_most: 5.0 },
    ];
    Ok(Some((json!({ "p50_ms": { "apex": own, "runc": other }, "idle_shim_kb": memory }), targets)))
}

impl<'a> Containerd<'a> {
    fn start(bench: &'a Bench, programs: &[&Path]) -> Result<Self> {
        let dir = bench.work.path().join("containerd");
        let bin = dir.join("bin");
        fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
        for program in programs {
            let name = program.file_name().context("a program has a name")?;
            fs::copy(program, bin.join(name)).with_context(|| format!("cannot copy {}", program.display()))?;
        }
        let at = |name: &str| dir.join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n",
            at("root"),
            at("state"),
            at("sock")
        );
        fs::write(dir.join("config.toml"), config).context("cannot write containerd's configuration")?;
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
        let child = Command::new("containerd")
            .args(["--config", &at("config.toml"), "--log-level", "error"])
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run containerd")?;
        let containerd = Containerd { bench, child };
        let end = Instant::now() + PATIENCE;
        while !containerd.ctr(&["version"])?.status().context("cannot run ctr")?.success() {
            ensure!(Instant::now() < end, "containerd does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(containerd)
    }

    fn ctr(&self, words: &[&str]) -> Result<Command> {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.bench.work.path().join("containerd/sock")).args(words);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command)
    }

    fn container(&self, runtime: &str, id: &str, flags: &[&str], program: &str) -> Result<()> {
        let rootfs = self.bench.work.path().join("bundle/rootfs").display().to_string();
        let words = [&["run", "--rootfs", "--runtime", runtime], flags, &[&rootfs, id, program]].concat();
        let status = self.ctr(&words)?.status().context("cannot run ctr")?;
        ensure!(status.success(), "ctr run with {runtime} failed: {status}");
        Ok(())
    }

    /// Proportional set size of the one shim of a group, in kilobytes, a while after its last request.
    fn idle_kb(&self) -> Result<u64> {
        let ids: Vec<String> = (0..GROUP).map(|number| format!("idle-{number}")).collect();
        for id in &ids {
            let flags = ["-d", "--annotation", "io.containerd.runc.v2.group=bench"];
            self.container(SHIMS[0], id, &flags, "/pause")?;
        }
        std::thread::sleep(Duration::from_secs(1));
        let memory = shim_kb(&self.bench.work.path().join("containerd/bin"));
        for id in &ids {
            for words in [&["task", "kill", "-s", "KILL", id][..], &["task", "rm", "-f", id], &["container", "rm", id]]
            {
                // The second waits for the first; what is left of one that failed ends with containerd's directory.
                let _ = self.ctr(words)?.status();
            }
        }
        memory
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        // SIGTERM, so that it lets go of its mounts; it is ours, so the pid is no other's.
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// Of the process whose program lies in `bin` and is the shim.
fn shim_kb(bin: &Path) -> Result<u64> {
    let shim = bin.join("containerd-shim-apex-v2");
    for entry in fs::read_dir("/proc").context("cannot list /proc")? {
        let place = entry?.path();
        if fs::read_link(place.join("exe")).is_ok_and(|exe| exe == shim) {
            let text = fs::read_to_string(place.join("smaps_rollup")).context("cannot read the shim's memory")?;
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("no line Pss")?;
            return line.trim().trim_end_matches(" kB").parse().context("no number of kilobytes");
        }
    }
    bail!("no shim is running")
}

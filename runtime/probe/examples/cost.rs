//! Runs a command in a cgroup of its own, watched at a level, and prints what the probes cost: `cost LEVEL CMD...` as root.
//!
//! The command itself says how long it took; here is told how often each program ran, and for how long. At level `full` measuring would cost more than
//! what is measured, so it is done when `APEX_MEASURE` is set.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::sync_channel;

use anyhow::{Context, Result};
use apex_core::watch::Level;
use apex_probe::bpf::{Probes, Running, Sandbox};
use apex_probe::source::{Batch, QUEUE_BATCHES_MAX};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (level, command) = words.split_first().context("usage: cost off|default|full CMD...")?;
    let level = match level.as_str() {
        "full" => Level::Full,
        "default" => Level::Default,
        _ => Level::Off,
    };
    let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
    let root = root.into_iter().find(|root| Path::new(root).join("cgroup.procs").exists()).context("no cgroup v2")?;
    let cgroup = Path::new(root).join(format!("apex-cost-{}", std::process::id()));
    fs::create_dir(&cgroup)?;
    let result = measure(level, command, &cgroup);
    fs::remove_dir(&cgroup)?;
    result
}

fn measure(level: Level, command: &[String], cgroup: &Path) -> Result<()> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", "read go && exec \"$@\"", "sh"])
        .args(command)
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot start a shell")?;
    fs::write(cgroup.join("cgroup.procs"), child.id().to_string())?;
    let (to, from) = sync_channel::<Batch>(QUEUE_BATCHES_MAX);
    let (probes, sources) = Probes::load(level);
    for (family, source) in sources {
        println!("{}: {source:?}", family.name());
    }
    let sandbox = Sandbox { id: fs::metadata(cgroup)?.ino(), cgroup: OwnedFd::from(fs::File::open(cgroup)?), init: 0 };
    let running: Option<Running> = probes.map(|probes| probes.start(sandbox, to)).transpose()?;
    if let (Some(running), true) = (&running, std::env::var_os("APEX_MEASURE").is_some()) {
        running.measure()?;
    }
    let reader = std::thread::spawn(move || from.iter().fold((0, 0), count));
    std::io::Write::write_all(&mut child.stdin.take().context("it is piped")?, b"go\n")?;
    child.wait()?;
    if let Some(running) = running {
        for program in running.stats()?.into_iter().filter(|program| program.run_count > 0) {
            let each = program.run_time_ns / program.run_count;
            println!("{:<18} {:>10} runs {:>8} ns each", program.name, program.run_count, each);
        }
        running.stop();
    }
    let (events, lost) = reader.join().expect("it only counts");
    println!("{events} events, {lost} lost");
    Ok(())
}

fn count((events, lost): (usize, u64), batch: Batch) -> (usize, u64) {
    (events + batch.events.len(), lost + batch.lost.values().sum::<u64>())
}

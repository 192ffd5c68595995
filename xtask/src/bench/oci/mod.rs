//! What it costs to create, start and delete a container of a static `true`, beside crun and runc on the same bundle.
//!
//! Both refuse a host with cgroups of both versions, so the whole table runs in a mount namespace without the second.

mod shim;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::meter::{self, Source, Stretch, percentile};
use super::{Bench, Target, targets};
use crate::{build, shell};

/// Containers of each runtime unless the command line says otherwise.
pub const CONTAINERS: usize = 200;
/// Containers of one runtime in a row: few, so that all see the same machine.
const BATCH: usize = 5;
/// Name of apex-oci in the table.
const APEX: &str = "apex-oci";
/// Set in the process that runs in the mount namespace.
const INSIDE: &str = "APEX_BENCH_OCI_INSIDE";

struct Row {
    name: &'static str,
    program: PathBuf,
    create_ms: Vec<f64>,
    whole_ms: Vec<f64>,
    busy: Stretch,
    peak_kb: u64,
}

/// Starts the table again in a mount namespace of its own; returns whether this process is not there yet and the other has done the work.
pub fn elsewhere(count: Option<usize>) -> Result<bool> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(false);
    }
    if !shell::is_root() {
        bail!("the table oci makes cgroups and mounts: run it as root");
    }
    let script = "! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified; exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", script, "sh"]);
    command.arg(std::env::current_exe().context("cannot find the own program")?).args(["bench", "oci"]);
    command.args(count.map(|count| count.to_string())).env(INSIDE, "1");
    shell::run(&mut command)?;
    Ok(true)
}

/// Measures and prints; returns the numbers.
pub fn run(bench: &Bench, count: usize) -> Result<Value> {
    let bundle = bundle(bench)?;
    let apex_oci = build::apex_oci()?;
    let mut rows = Vec::new();
    for (name, program) in
        [(APEX, Some(apex_oci.clone())), ("crun", shell::on_path("crun")), ("runc", shell::on_path("runc"))]
    {
        let Some(program) = program else {
            println!("{name} is not installed");
            continue;
        };
        let row =
            Row { name, program, create_ms: Vec::new(), whole_ms: Vec::new(), busy: Stretch::default(), peak_kb: 0 };
        rows.push(row);
    }
    let source = Source::find();
    let (mut idle, mut serial) = (Stretch::default(), 0);
    for row in &mut rows {
        row.peak_kb = peak(bench, row, &bundle)?;
    }
    while rows.iter().any(|row| row.whole_ms.len() < count) {
        idle.add(meter::idle(source)?);
        for row in &mut rows {
            let batch = BATCH.min(count - row.whole_ms.len());
            let stretch = meter::metered(source, || {
                (0..batch).try_for_each(|_| {
                    serial += 1;
                    one(bench, row, &bundle, serial)
                })
            })?;
            row.busy.add(stretch);
        }
    }
    println!(
        "{count} containers each, in turns of {BATCH}; processor time of the machine from {source:?}, idle share {:.1}%\n",
        idle.share() * 100.0
    );
    let containerd = shim::run(bench, &apex_oci, count)?;
    Ok(report(&rows, idle, containerd))
}

/// The bundle of `spec` as runc writes it, with the payload and no terminal.
fn bundle(bench: &Bench) -> Result<PathBuf> {
    let bundle = bench.work.path().join("bundle");
    let rootfs = bundle.join("rootfs");
    fs::create_dir_all(&rootfs).with_context(|| format!("cannot make {}", rootfs.display()))?;
    for name in ["true", "pause"] {
        fs::copy(bench.work.program(name), rootfs.join(name)).context("cannot copy the payload")?;
    }
    shell::run(Command::new("runc").arg("spec").current_dir(&bundle))?;
    let file = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file)?)?;
    config["process"]["args"] = json!(["/true"]);
    config["process"]["terminal"] = json!(false);
    fs::write(&file, config.to_string())?;
    Ok(bundle)
}

fn command(bench: &Bench, row: &Row, words: &[&str]) -> Command {
    let mut command = Command::new(&row.program);
    command.arg("--root").arg(bench.work.path().join(row.name)).args(words);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn one(bench: &Bench, row: &mut Row, bundle: &Path, serial: usize) -> Result<()> {
    let id = format!("xtask-bench-{serial}");
    let bundle = bundle.display().to_string();
    let begin = Instant::now();
    for words in [&["create", "--bundle", &bundle, &id][..], &["start", &id], &["delete", "--force", &id]] {
        let status = command(bench, row, words).status().with_context(|| format!("cannot run {}", row.name))?;
        ensure!(status.success(), "{} {} failed in the middle of the run: {status}", row.name, words[0]);
        if words[0] == "create" {
            row.create_ms.push(begin.elapsed().as_secs_f64() * 1e3);
        }
    }
    row.whole_ms.push(begin.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

/// The largest resident memory of the three commands, in kilobytes.
fn peak(bench: &Bench, row: &Row, bundle: &Path) -> Result<u64> {
    let (id, bundle) = ("xtask-bench-peak", bundle.display().to_string());
    let file = bench.work.path().join("peak");
    let mut peak = 0;
    for words in [&["create", "--bundle", &bundle, id][..], &["start", id], &["delete", "--force", id]] {
        let measured = command(bench, row, words);
        let mut around = Command::new(bench.work.program("peak"));
        around
            .arg(&file)
            .arg(measured.get_program())
            .args(measured.get_args())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let status = around.status().context("cannot run the payload `peak`")?;
        ensure!(status.success(), "{} {} does not run here: {status}", row.name, words[0]);
        let text = fs::read_to_string(&file).context("cannot read what `peak` measured")?;
        peak = peak.max(text.trim().parse().context("`peak` wrote no number")?);
    }
    Ok(peak)
}

fn report(rows: &[Row], idle: Stretch, containerd: Option<(Value, Vec<Target>)>) -> Value {
    println!(
        "{:<10} {:>9} {:>9} {:>9} {:>11} {:>8} {:>8}",
        "wall ms", "p10", "p50", "p90", "create p10", "cpu ms", "peak kB"
    );
    let cpu = |row: &Row| row.busy.above_ms(idle) / row.whole_ms.len().max(1) as f64;
    let mut out = BTreeMap::new();
    for row in rows {
        let (p10, p50, p90) =
            (percentile(&row.whole_ms, 10), percentile(&row.whole_ms, 50), percentile(&row.whole_ms, 90));
        let create = percentile(&row.create_ms, 10);
        println!(
            "{:<10} {p10:>9.2} {p50:>9.2} {p90:>9.2} {create:>11.2} {:>8.2} {:>8}",
            row.name,
            cpu(row),
            row.peak_kb
        );
        out.insert(row.name, json!({
            "wall_ms": { "p10": p10, "p50": p50, "p90": p90 }, "create_p10_ms": create, "cpu_ms": cpu(row), "peak_kb": row.peak_kb,
            "containers": row.whole_ms.len(),
        }));
    }
    let of = |name: &str, value: &dyn Fn(&Row) -> f64| {
        let find = |name: &str| rows.iter().find(|row| row.name == name);
        find(APEX).zip(find(name)).map(|(own, other)| value(own) / value(other))
    };
    let (containerd, of_shim) = containerd.unzip();
    let mut list = vec![
        Target { what: "processor time of a container, to crun's", value: of("crun", &cpu), at_most: 0.5 },
        Target { what: "processor time of a container, to runc's", value: of("runc", &cpu), at_most: 0.2 },
        Target {
            what: "wall time p10, to crun's",
            value: of("crun", &|row| percentile(&row.whole_ms, 10)),
            at_most: 0.5,
        },
        Target { what: "peak memory, to crun's", value: of("crun", &|row| row.peak_kb as f64), at_most: 1.0 },
    ];
    list.extend(of_shim.into_iter().flatten());
    json!({ "runtimes": out, "idle_share": idle.share(), "containerd": containerd, "targets": targets(&list) })
}

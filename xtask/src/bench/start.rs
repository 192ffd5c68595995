//! How long it takes to start and end a static `true`, and what that costs the machine.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::meter::{self, Source, Stretch, percentile};
use super::peers::{self, APEX, BWRAP, Contender};
use super::{Bench, Target, targets};
use crate::shell;

/// Launches of each contender unless the command line says otherwise.
pub const LAUNCHES: usize = 300;
/// Launches of one contender in a row: few, so that all see the same machine.
const BATCH: usize = 10;

/// Above this share of one processor, what others do drowns what a launch costs.
const IDLE_SHARE_MAX: f64 = 0.25;

/// What one contender needed.
struct Row {
    name: &'static str,
    wall_ms: Vec<f64>,
    busy: Stretch,
    syscalls: Option<u64>,
}

impl Row {
    fn p(&self, percent: usize) -> f64 {
        percentile(&self.wall_ms, percent)
    }

    fn cpu_ms(&self, idle: Stretch) -> f64 {
        self.busy.above_ms(idle) / self.wall_ms.len().max(1) as f64
    }
}

/// Measures and prints; returns the numbers.
pub fn run(bench: &Bench, launches: usize) -> Result<Value> {
    let source = Source::find();
    let contenders = peers::find(bench)?;
    let mut rows: Vec<Row> = contenders
        .iter()
        .map(|who| Row { name: who.name, wall_ms: Vec::new(), busy: Stretch::default(), syscalls: None })
        .collect();
    let mut idle = Stretch::default();
    let mut serial = 1;
    while rows.iter().any(|row| row.wall_ms.len() < launches) {
        idle.add(meter::idle(source)?);
        for (contender, row) in contenders.iter().zip(&mut rows) {
            let batch = BATCH.min(launches - row.wall_ms.len());
            let stretch = meter::metered(source, || launch(contender, batch, &mut serial, &mut row.wall_ms))?;
            row.busy.add(stretch);
        }
    }
    for (contender, row) in contenders.iter().zip(&mut rows) {
        row.syscalls = count_syscalls(bench, contender, serial)?;
        serial += 1;
    }
    println!(
        "{launches} launches each, in turns of {BATCH}; processor time of the machine from {source:?}, idle share {:.1}%\n",
        idle.share() * 100.0
    );
    if idle.share() > IDLE_SHARE_MAX {
        println!("the machine is busy with other things: processor times below mean nothing, wall times little\n");
    }
    Ok(report(&rows, idle))
}

fn launch(contender: &Contender, batch: usize, serial: &mut usize, wall_ms: &mut Vec<f64>) -> Result<()> {
    for _launch in 0..batch {
        let mut command = contender.command(*serial)?;
        *serial += 1;
        let begin = Instant::now();
        let status = command.status().with_context(|| format!("cannot run {}", contender.name))?;
        wall_ms.push(begin.elapsed().as_secs_f64() * 1e3);
        ensure!(status.success(), "{} failed in the middle of the run: {status}", contender.name);
    }
    Ok(())
}

/// System calls of all processes of one launch. Counted apart: tracing costs time.
fn count_syscalls(bench: &Bench, contender: &Contender, serial: usize) -> Result<Option<u64>> {
    if shell::on_path("strace").is_none() {
        return Ok(None);
    }
    let summary = bench.work.path().join("strace");
    let traced = contender.command(serial)?;
    let mut strace = Command::new("strace");
    strace.args(["-f", "-c", "-o"]).arg(&summary).arg(traced.get_program()).args(traced.get_args());
    contender.streams(&mut strace)?;
    if !strace.status().context("cannot run strace")?.success() {
        // A setuid program may refuse to be traced.
        return Ok(None);
    }
    let text = std::fs::read_to_string(&summary).context("strace wrote no summary")?;
    let total = text.lines().rev().find(|line| line.ends_with(" total"));
    Ok(total.and_then(|line| line.split_whitespace().nth(3)?.parse().ok()))
}

fn report(rows: &[Row], idle: Stretch) -> Value {
    let find = |name: &str| rows.iter().find(|row| row.name == name);
    let (apex, bwrap) = (find(APEX), find(BWRAP));
    println!(
        "{:<12} {:>8} {:>8} {:>8} {:>9} {:>10} {:>9} {:>9}",
        "wall ms", "p10", "p50", "p90", "cpu ms", "p10/bwrap", "cpu/bwrap", "syscalls"
    );
    let mut out = BTreeMap::new();
    for row in rows {
        let ratio = |value: f64, of: fn(&Row, Stretch) -> f64| bwrap.map(|bwrap| value / of(bwrap, idle));
        let wall_ratio = ratio(row.p(10), |row, _| row.p(10));
        let cpu_ratio = ratio(row.cpu_ms(idle), Row::cpu_ms);
        let shown = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
        let syscalls = row.syscalls.map_or("-".to_owned(), |count| count.to_string());
        println!(
            "{:<12} {:>8.2} {:>8.2} {:>8.2} {:>9.2} {:>10} {:>9} {syscalls:>9}",
            row.name,
            row.p(10),
            row.p(50),
            row.p(90),
            row.cpu_ms(idle),
            shown(wall_ratio),
            shown(cpu_ratio)
        );
        out.insert(row.name, json!({
            "wall_ms": { "p10": row.p(10), "p50": row.p(50), "p90": row.p(90) }, "cpu_ms": row.cpu_ms(idle), "launches": row.wall_ms.len(),
            "wall_p10_to_bwrap": wall_ratio, "cpu_to_bwrap": cpu_ratio, "syscalls": row.syscalls,
        }));
    }
    let both = apex.zip(bwrap);
    let quiet = both.filter(|_| idle.share() <= IDLE_SHARE_MAX);
    let targets = targets(&[
        Target {
            what: "processor time of a launch, to bubblewrap's",
            value: quiet.map(|(a, b)| a.cpu_ms(idle) / b.cpu_ms(idle)),
            at_most: 0.6,
        },
        Target { what: "wall time p10, to bubblewrap's", value: both.map(|(a, b)| a.p(10) / b.p(10)), at_most: 0.5 },
        Target {
            what: "system calls of all processes",
            value: apex.and_then(|row| row.syscalls).map(|count| count as f64),
            at_most: 299.0,
        },
    ]);
    json!({ "contenders": out, "idle_share": idle.share(), "targets": targets })
}

//! What confinement costs a program that runs: one system call, one path, one file, no system call at all.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::meter::percentile;
use super::{Bench, Target, targets};

/// Rounds unless the command line says otherwise.
pub const ROUNDS: usize = 15;

/// One loop of `ops`: its name, how often it goes around, and what the product promises.
struct Op {
    name: &'static str,
    count: u64,
    at_most: f64,
    what: &'static str,
}

const OPS: [Op; 4] = [
    Op { name: "getppid", count: 2_000_000, at_most: 1.25, what: "getppid, to plain" },
    Op { name: "stat", count: 400_000, at_most: 1.1, what: "stat, to plain" },
    Op { name: "open", count: 200_000, at_most: 1.4, what: "open+read+close, to plain" },
    // Unchanged, within what two runs of the same loop differ by.
    Op { name: "compute", count: 100_000_000, at_most: 1.03, what: "compute, to plain" },
];

/// Nanoseconds of each round.
#[derive(Default)]
struct Samples {
    plain: Vec<f64>,
    confined: Vec<f64>,
}

/// Measures and prints; returns the numbers.
pub fn run(bench: &Bench, rounds: usize) -> Result<Value> {
    let mut samples: Vec<Samples> = OPS.iter().map(|_| Samples::default()).collect();
    for round in 0..rounds {
        for (op, samples) in OPS.iter().zip(&mut samples) {
            // Who goes first changes: the second may find a warmer machine.
            for turn in 0..2 {
                let is_confined = (round + turn) % 2 == 1;
                let ns = measure(bench, op, is_confined)?;
                if is_confined { samples.confined.push(ns) } else { samples.plain.push(ns) }
            }
        }
    }
    println!("{rounds} rounds, plain and confined in turns; ns for one operation\n");
    println!("{:<12} {:>10} {:>10} {:>10} {:>10} {:>8}", "", "plain p10", "plain p50", "apex p10", "apex p50", "ratio");
    let mut out = BTreeMap::new();
    let mut promises = Vec::new();
    for (op, samples) in OPS.iter().zip(&samples) {
        let [plain10, plain50] = [10, 50].map(|percent| percentile(&samples.plain, percent));
        let [apex10, apex50] = [10, 50].map(|percent| percentile(&samples.confined, percent));
        // The quickest rounds are those that nobody disturbed.
        let ratio = apex10 / plain10;
        println!("{:<12} {plain10:>10.2} {plain50:>10.2} {apex10:>10.2} {apex50:>10.2} {ratio:>8.3}", op.name);
        out.insert(op.name, json!({ "plain_ns": { "p10": plain10, "p50": plain50 }, "apex_ns": { "p10": apex10, "p50": apex50 }, "ratio": ratio }));
        promises.push(Target { what: op.what, value: Some(ratio), at_most: op.at_most });
    }
    Ok(json!({ "operations": out, "rounds": rounds, "targets": targets(&promises) }))
}

fn measure(bench: &Bench, op: &Op, is_confined: bool) -> Result<f64> {
    let program = bench.work.program("ops");
    let mut command = if is_confined {
        let mut command = Command::new(&bench.apex_run);
        command.arg("--ro").arg(bench.work.payload()).arg("--").arg(program);
        command
    } else {
        Command::new(program)
    };
    command.args([op.name, &op.count.to_string()]).arg(bench.work.payload().join("file"));
    let output = command.output().with_context(|| format!("cannot run {}", op.name))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} failed: {}\n{stderr}", op.name, output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().with_context(|| format!("{} printed {text:?} where a number was due", op.name))
}

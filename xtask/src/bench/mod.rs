//! Speed and size beside the peers, in one interleaved run. Prints tables and targets, writes JSON, asserts nothing: a busy
//! machine is no reason for a red build.

mod daemon;
mod density;
mod filter;
mod meter;
mod monitor;
mod oci;
mod peers;
mod start;
mod steady;
mod workdir;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use self::workdir::Workdir;
use crate::{build, setup, shell};

/// What all tables need.
struct Bench {
    apex_run: PathBuf,
    work: Workdir,
}

/// Runs one table or all of them. `count` is launches for `start` and `daemon`, rounds for `steady` and `monitor`, sandboxes for `density` and
/// `reaction`, which is a part of `daemon`, containers for `oci`.
pub fn run(table: &str, count: Option<usize>) -> Result<()> {
    let tables: &[&str] = match table {
        "all" => &["start", "steady", "density", "monitor", "daemon", "oci"],
        "start" | "steady" | "density" | "monitor" | "daemon" | "reaction" | "oci" => &[table],
        other => {
            bail!("no such table: {other}; there are start, steady, density, monitor, daemon, reaction, oci and all")
        }
    };
    setup::ensure(setup::Need::Bench)?;
    // The table oci starts no sandbox.
    let apex_run = if table == "oci" { PathBuf::new() } else { build::apex_run()? };
    let bench = Bench { apex_run, work: Workdir::new()? };
    for table in tables {
        if *table == "oci" && oci::elsewhere(count)? {
            continue;
        }
        let before = Machine::look()?;
        println!("\n=== {table}: {}", before.line());
        let result = match *table {
            "start" => start::run(&bench, count.unwrap_or(start::LAUNCHES))?,
            "steady" => steady::run(&bench, count.unwrap_or(steady::ROUNDS))?,
            "daemon" => daemon::run(&bench, count.unwrap_or(daemon::STARTS))?,
            "reaction" => daemon::reaction(&bench, count.unwrap_or(daemon::STARTS))?,
            "oci" => oci::run(&bench, count.unwrap_or(oci::CONTAINERS))?,
            "monitor" => monitor::run(&bench, count.unwrap_or(monitor::ROUNDS))?,
            _ => density::run(&bench, count.unwrap_or(density::SANDBOXES))?,
        };
        let after = Machine::look()?;
        println!("load when it ended: {}", after.load);
        write(table, &json!({ "table": table, "before": before.json(), "after": after.json(), "result": result }))?;
    }
    Ok(())
}

/// What the numbers depend on beside the program.
struct Machine {
    kernel: String,
    processors: usize,
    load: String,
    user: &'static str,
}

impl Machine {
    fn look() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
        Ok(Machine {
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            load: read("/proc/loadavg")?.split(' ').take(3).collect::<Vec<_>>().join(" "),
            user: if shell::is_root() { "root" } else { "an unprivileged user" },
        })
    }

    fn line(&self) -> String {
        format!("Linux {}, {} processors, as {}, load {}", self.kernel, self.processors, self.user, self.load)
    }

    fn json(&self) -> Value {
        json!({ "kernel": self.kernel, "processors": self.processors, "load": self.load, "user": self.user })
    }
}

/// One number that the product promises.
struct Target {
    what: &'static str,
    value: Option<f64>,
    at_most: f64,
}

/// Prints each target with `ok`, `SHORT` or the reason why it is unknown, and returns them for the JSON file.
fn targets(list: &[Target]) -> Value {
    println!();
    let mut out = Vec::new();
    for Target { what, value, at_most } in list {
        let (shown, verdict) = match value {
            Some(value) if value <= at_most => (format!("{value:.2}"), "ok"),
            Some(value) => (format!("{value:.2}"), "SHORT"),
            None => ("-".to_owned(), "not measured here"),
        };
        println!("target  {what:<52} {shown:>9}  at most {at_most:<7} {verdict}");
        out.push(json!({ "what": what, "value": value, "at_most": at_most, "verdict": verdict }));
    }
    Value::Array(out)
}

fn write(table: &str, value: &Value) -> Result<()> {
    let dir = build::target_dir()?.join("bench");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let file = dir.join(format!("{table}.json"));
    fs::write(&file, serde_json::to_string_pretty(value)?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    println!("written: {}", file.display());
    Ok(())
}

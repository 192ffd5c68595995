//! Records of events, as `--events` writes them: lines of one or more runs, one after the other or mixed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::Context as _;
use apex_core::baseline::{Key, Model, Observer, RunSummary, Score};
use apex_core::event::{Event, What};
use apex_core::finding::Finding;

/// Longest line that is read: an event is at most 64 arguments of 4096 bytes, each of which JSON may write as six.
const LINE_BYTES_MAX: u64 = 2 << 20;
/// Most sandboxes whose lines may be mixed.
const MIXED_MAX: usize = 64;
/// Most runs of a file.
const RUNS_MAX: usize = 256;

/// One run of a record.
pub struct Run {
    /// Its command.
    pub command: Vec<String>,
    /// Whether its end is there.
    pub is_whole: bool,
    /// Summed up.
    pub summary: RunSummary,
    /// Why it could not be judged.
    pub mute: Option<String>,
    /// The last judgement.
    pub score: Option<Score>,
    /// Alarms.
    pub findings: Vec<Finding>,
}

/// What a file holds.
#[derive(Default)]
pub struct Records {
    /// Its runs, in the order of their ends.
    pub runs: Vec<Run>,
    /// Lines that are no event. Findings are none either, but may stand in the same file.
    pub unreadable: u64,
    /// Runs beyond the limits.
    pub left_out: u64,
}

struct Open {
    command: Vec<String>,
    observer: Observer,
    findings: Vec<Finding>,
}

/// Reads a file; its runs are judged by `model`, if there is one.
pub fn read(path: &Path, model: Option<&Model>) -> anyhow::Result<Records> {
    let told = apex_core::escape::path(path);
    let file = File::open(path).with_context(|| format!("cannot read {told}"))?;
    let mut reader = BufReader::new(file);
    let mut records = Records::default();
    let mut open: HashMap<u64, Open> = HashMap::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        let count = (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
        if count.with_context(|| format!("cannot read {told}"))? == 0 {
            break;
        }
        match serde_json::from_slice::<Event>(&line) {
            Ok(event) => take(&mut records, &mut open, event, model),
            Err(_) if is_finding(&line) => {}
            Err(_) => records.unreadable += 1,
        }
    }
    for run in open.into_values() {
        records.close(run, false);
    }
    Ok(records)
}

fn take(records: &mut Records, open: &mut HashMap<u64, Open>, event: Event, model: Option<&Model>) {
    let sandbox = event.sandbox;
    if let What::Start(start) = &event.what {
        if let Some(cut) = open.remove(&sandbox) {
            records.close(cut, false);
        }
        if open.len() >= MIXED_MAX {
            records.left_out += 1;
            return;
        }
        let key = Key::of(start);
        let observer = Observer::new(model, key);
        open.insert(sandbox, Open { command: start.command.clone(), observer, findings: Vec::new() });
    }
    let is_end = matches!(event.what, What::End(_));
    match open.get_mut(&sandbox) {
        Some(run) => run.findings.extend(run.observer.observe(&event)),
        // Without its head nothing is known of the run.
        None => records.unreadable += 1,
    }
    if is_end && let Some(run) = open.remove(&sandbox) {
        records.close(run, true);
    }
}

fn is_finding(line: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(line).is_ok_and(|value| value.get("class_uid").is_some())
}

impl Records {
    fn close(&mut self, run: Open, is_whole: bool) {
        if self.runs.len() >= RUNS_MAX {
            self.left_out += 1;
            return;
        }
        let (mute, score) = (run.observer.mute(), run.observer.score(true));
        let (last, summary) = run.observer.finish();
        let findings = run.findings.into_iter().chain(last).collect();
        self.runs.push(Run { command: run.command, is_whole, summary, mute, score, findings });
    }
}

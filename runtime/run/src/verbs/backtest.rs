//! `apex-run backtest`: recorded events against another policy.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use apex_core::amount::count;
use apex_core::backtest::{Backtest, Verdicts};
use apex_core::event::Event;
use apex_core::explain;
use apex_core::refusal::Explanation;
use apex_core::watch::Family;
use apex_jail::host::LiveHost;
use apex_run::escape;
use apex_run::options::{Action, Options};
use apex_run::print::{self, Report, Style};

use crate::session::{self, Planned, code, working_directory};

/// Longest line of a record.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Lines that are told to be no events; the rest is counted.
const TOLD_MAX: u64 = 10;

/// 0 when nothing would have been refused, 1 otherwise, 125 when the record is not whole: then nobody knows about the rest.
pub fn run(options: &Options) -> Result<u8> {
    let host = LiveHost::at(working_directory()?);
    // The files stand where a command would: any command does for the plan.
    let planned = Options { command: vec!["/bin/true".into()], action: Action::Plan, ..options.clone() };
    let Planned { policy, plan, .. } = session::plan_of_nothing(&planned, &host)?;
    let mut backtest = Backtest::new(&plan);
    let mut wrong = 0;
    for file in &options.command {
        let path = Path::new(file);
        let opened = OpenOptions::new().read(true).open(path);
        let opened = opened.with_context(|| format!("opening the record {}", escape::path(path)))?;
        wrong += replay(path, &mut BufReader::new(opened), &mut backtest)?;
    }
    let verdicts = backtest.finish();
    if !verdicts.record.has_start {
        let first = options.command.first().map(Path::new).map(escape::path).unwrap_or_default();
        bail!(
            "{first} is no record of events: it does not begin with the start of a watch; `apex-run --watch=full --events FILE -- CMD` makes one"
        );
    }
    let refusals: Vec<Explanation> =
        verdicts.refusals.iter().map(|refusal| explain::explain(refusal, &plan, &policy, &session::group_of)).collect();
    let mut out = std::io::stdout().lock();
    let style = Style::new(options.json, out.is_terminal(), std::env::var_os("NO_COLOR").as_deref());
    print::print(&mut out, Report::Why(&refusals), style)
        .and_then(|()| out.flush())
        .context("writing to standard output")?;
    let mut err = std::io::stderr().lock();
    for words in limits(&verdicts, wrong) {
        let _ = writeln!(err, "apex-run: {words}");
    }
    let is_whole = wrong == 0 && verdicts.record.has_end && verdicts.record.lost == 0;
    Ok(if is_whole { u8::from(!refusals.is_empty()) } else { code::FAILED })
}

/// How much was judged, and what was not.
fn limits(verdicts: &Verdicts, wrong: u64) -> Vec<String> {
    let record = &verdicts.record;
    let mut said = vec![format!("{} replayed", count(verdicts.events, "event"))];
    if !record.unwatched.is_empty() {
        let parts =
            record.unwatched.iter().map(|(family, why)| format!("{} ({})", judged_by(*family), escape::text(why)));
        let parts: Vec<String> = parts.collect();
        let remedy = if record.could_hold_more { "; record with --watch=full" } else { "" };
        said.push(format!("not judged, since the record does not hold it: {}{remedy}", parts.join(", ")));
    }
    if record.lost > 0 {
        said.push(format!("not judged: {} that the watch lost", count(record.lost, "event")));
    }
    if wrong > 0 {
        let sum = count(wrong, "line");
        said.push(format!("{sum} of the record could not be read as events: what they would have told is not judged"));
    }
    if !record.has_end {
        said.push("the record of a run has no end: it was cut, or the run was killed or goes on".to_owned());
    }
    if verdicts.overflow > 0 {
        said.push(format!("{} not listed", count(verdicts.overflow, "further refusal")));
    }
    said
}

/// What a plan refuses on the word of a family.
const fn judged_by(family: Family) -> &'static str {
    match family {
        Family::Process => "programs",
        Family::Network => "network",
        Family::Syscall => "system calls by their group",
        Family::File | Family::Lsm => "files",
        Family::Privilege => "privileges",
        Family::Refusal => "refusals",
    }
}

/// Replays one file, a line at a time. Returns how many lines are no events.
fn replay(path: &Path, file: &mut dyn BufRead, backtest: &mut Backtest<'_>) -> Result<u64> {
    let mut wrong = 0;
    let mut number = 0_u64;
    let mut line = Vec::new();
    loop {
        line.clear();
        number += 1;
        let length = read_line(file, &mut line).with_context(|| format!("reading {}", escape::path(path)))?;
        if length == 0 {
            return Ok(wrong);
        }
        if line.iter().all(u8::is_ascii_whitespace) && length <= LINE_BYTES_MAX {
            continue;
        }
        let event: Result<Event, String> = match length {
            ..=LINE_BYTES_MAX => serde_json::from_slice(&line).map_err(|error| error.to_string()),
            _ => Err(format!("longer than {LINE_BYTES_MAX} bytes")),
        };
        match event {
            Ok(event) => backtest.replay(&event),
            Err(why) => {
                wrong += 1;
                if wrong <= TOLD_MAX {
                    let (name, why) = (escape::path(path), escape::text(&why).into_owned());
                    let _ = writeln!(std::io::stderr(), "apex-run: {name}:{number}: no event: {why}");
                }
            }
        }
    }
}

/// Reads up to the end of a line, keeps at most [`LINE_BYTES_MAX`] of it, and tells how long it was.
fn read_line(file: &mut dyn BufRead, line: &mut Vec<u8>) -> std::io::Result<usize> {
    let mut length = 0;
    loop {
        let chunk = file.fill_buf()?;
        if chunk.is_empty() {
            return Ok(length);
        }
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let part = &chunk[..end.map_or(chunk.len(), |end| end + 1)];
        let room = LINE_BYTES_MAX.saturating_sub(line.len());
        line.extend(&part[..part.len().min(room)]);
        let used = part.len();
        length += used;
        file.consume(used);
        if end.is_some() {
            return Ok(length);
        }
    }
}

//! `apex-run backtest`: recorded events against another policy.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result};
use apex_core::backtest::Backtest;
use apex_core::event::Event;
use apex_core::explain;
use apex_core::refusal::Explanation;
use apex_jail::host::LiveHost;
use apex_run::escape;
use apex_run::options::{Action, Options};
use apex_run::print::{self, Report, Style};

use crate::session::{self, Planned, working_directory};

/// Longest line of a record.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Lines that are told to be no events; the rest is counted.
const TOLD_MAX: u64 = 10;

/// 0 when nothing would have been refused, 1 otherwise.
pub fn run(options: &Options) -> Result<u8> {
    let host = LiveHost::at(working_directory()?);
    // The files stand where a command would: any command does for the plan.
    let planned = Options { command: vec!["/bin/true".into()], action: Action::Plan, ..options.clone() };
    let Planned { policy, plan, .. } = session::plan(&planned, &host)?;
    let mut backtest = Backtest::new(&plan);
    let mut wrong = 0;
    for file in &options.command {
        let path = Path::new(file);
        let opened = OpenOptions::new().read(true).open(path);
        let opened = opened.with_context(|| format!("opening the record {}", escape::path(path)))?;
        wrong += replay(path, &mut BufReader::new(opened), &mut backtest)?;
    }
    let verdicts = backtest.finish();
    let refusals: Vec<Explanation> =
        verdicts.refusals.iter().map(|refusal| explain::explain(refusal, &plan, &policy, &session::group_of)).collect();
    let mut out = std::io::stdout().lock();
    let style = Style::new(options.json, out.is_terminal(), std::env::var_os("NO_COLOR").as_deref());
    print::print(&mut out, Report::Why(&refusals), style)
        .and_then(|()| out.flush())
        .context("writing to standard output")?;
    let mut err = std::io::stderr().lock();
    let _ = writeln!(err, "apex-run: {} events replayed, {} different refusals", verdicts.events, refusals.len());
    if wrong > TOLD_MAX {
        let _ = writeln!(err, "apex-run: {} more lines are no events", wrong - TOLD_MAX);
    }
    if verdicts.overflow > 0 {
        let _ = writeln!(err, "apex-run: {} further refusals are not listed", verdicts.overflow);
    }
    Ok(u8::from(!refusals.is_empty()))
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

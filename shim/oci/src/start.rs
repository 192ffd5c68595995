//! `start`: lets the program of a created container begin.

use anyhow::{Context as _, Result, bail};
use apex_sys::net;

use crate::hooks::{self, Phase};
use crate::state::{Entry, Record, START, Status, state};
use crate::wire::{Message, Wire, WireError};

/// Starts it and runs the poststart hooks.
///
/// # Errors
/// It waits for no start, its program cannot be executed, or a hook failed; then it is killed.
pub fn start(entry: &Entry) -> Result<()> {
    entry.lock()?;
    let record = entry.record()?;
    match entry.status(&record) {
        Status::Created => {}
        Status::Stopped => bail!("cannot start container {:?}: it has stopped", entry.id()),
        status => bail!("cannot start container {:?}: it is {}", entry.id(), status.name()),
    }
    let socket = net::connect_for_messages(&entry.short_name(START)).with_context(|| {
        format!("cannot reach the process of container {:?} that waits for its start; has it been killed?", entry.id())
    })?;
    let wire = Wire::over(socket);
    wire.say(&Message::Go)?;
    let answer = begin(&wire, entry.id());
    entry.forget(START);
    if let Err(error) = answer {
        // It ends by itself; that it has, is what the next command will ask for.
        crate::kill::kill_all(entry, &record)?;
        return Err(error);
    }
    run_poststart(entry, &record)
}

/// Waits until the program is executed: then the socket closes by itself.
fn begin(wire: &Wire, id: &str) -> Result<()> {
    match wire.expect(&Message::Ready) {
        Err(WireError::Closed) => bail!("the first process of container {id:?} was killed before its program began"),
        other => other?,
    }
    match wire.next()? {
        None => Ok(()),
        Some(Message::Failed(words)) => Err(WireError::Failed(words).into()),
        Some(other) => Err(WireError::Turn(other).into()),
    }
}

fn run_poststart(entry: &Entry, record: &Record) -> Result<()> {
    let run = || hooks::run(record.hooks.as_ref(), Phase::Poststart, &state(record, Status::Running).to_json());
    let Err(error) = run() else { return Ok(()) };
    crate::kill::kill_all(entry, record)?;
    Err(error).context("the container was killed")
}

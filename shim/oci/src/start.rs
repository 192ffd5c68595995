//! `start`: lets the program of a created container begin.

use anyhow::{Context as _, Result, bail};
use apex_sys::net;

use crate::cgroup::Cgroup;
use crate::hooks::{self, Phase};
use crate::policy;
use crate::receipt::{self, Receipt, Subject};
use crate::state::{Entry, Record, START, Status, state};
use crate::wire::{Message, Wire, WireError};

/// Takes a receipt.
pub type Give<'a> = &'a mut dyn FnMut(&Receipt) -> Result<()>;

/// Starts it and runs the poststart hooks. With `receipt`, what is in force is read while the program waits, and given to it; what differs from the
/// bundle ends the container.
///
/// # Errors
/// It waits for no start, its program cannot be executed, or a hook failed; then it is killed.
pub fn start(entry: &Entry, receipt: Option<Give<'_>>) -> Result<()> {
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
    wire.say(if receipt.is_some() { &Message::GoSlowly } else { &Message::Go })?;
    let answer = begin(&wire, entry, &record, receipt);
    entry.forget(START);
    if let Err(error) = answer {
        // It ends by itself; that it has, is what the next command will ask for.
        crate::kill::kill_all(entry, &record)?;
        return Err(error);
    }
    run_poststart(entry, &record)
}

/// Waits until the program is executed: then the socket closes by itself.
fn begin(wire: &Wire, entry: &Entry, record: &Record, receipt: Option<Give<'_>>) -> Result<()> {
    match wire.expect(&Message::Ready) {
        Err(WireError::Closed) => {
            bail!("the first process of container {:?} was killed before its program began", entry.id())
        }
        other => other?,
    }
    if let Some(give) = receipt {
        wire.expect(&Message::Sealed).context(
            "the container cannot show itself for its receipt: does its filter allow sendmsg(2) and recvmsg(2)?",
        )?;
        let receipt = look(entry, record)?;
        give(&receipt)?;
        if let Some(words) = receipt.mismatch() {
            bail!("the container is not what its bundle asks for, so it was killed: {words}");
        }
        wire.say(&Message::Seen)?;
    }
    match wire.next()? {
        None => Ok(()),
        Some(Message::Failed(words)) => Err(WireError::Failed(words).into()),
        Some(other) => Err(WireError::Turn(other).into()),
    }
}

/// Reads the receipt of a sealed container.
fn look(entry: &Entry, record: &Record) -> Result<Receipt> {
    let mut spec = entry.config()?;
    let narrowing = policy::resolve(&spec, &record.bundle)?;
    if let Some(narrowing) = &narrowing {
        narrowing.narrow(&mut spec);
    }
    let cgroup = record.cgroup.as_ref().and_then(Cgroup::name);
    let subject = Subject {
        id: entry.id(),
        pid: record.pid,
        spec: &spec,
        narrowing: narrowing.as_ref(),
        cgroup: cgroup.as_deref(),
    };
    Ok(receipt::read(&subject))
}

fn run_poststart(entry: &Entry, record: &Record) -> Result<()> {
    let run = || hooks::run(record.hooks.as_ref(), Phase::Poststart, &state(record, Status::Running).to_json());
    let Err(error) = run() else { return Ok(()) };
    crate::kill::kill_all(entry, record)?;
    Err(error).context("the container was killed")
}

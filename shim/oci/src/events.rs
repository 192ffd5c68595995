//! `events`: what a container uses and when it ran out of memory, one JSON object a line, as runc prints it.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use apex_sys::signal::{Interest, poll};
use serde::Serialize;

use crate::cgroup::{Cgroup, CgroupError, OomWord, Ooms, Stats};

/// An `events` that failed.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// The cgroup.
    #[error("cannot tell what container {id} uses")]
    Cgroup {
        /// The container.
        id: String,
        /// Why.
        source: CgroupError,
    },
    /// The reader.
    #[error("cannot write an event of container {id}; is the reader gone?")]
    Write {
        /// The container.
        id: String,
        /// Why.
        source: io::Error,
    },
    /// The wait.
    #[error("cannot wait for events of container {id}")]
    Wait {
        /// The container.
        id: String,
        /// Why.
        source: io::Error,
    },
    /// No time between two events.
    #[error("an interval of zero would print without end; give --interval as 5s, or --stats for once")]
    Interval,
}

#[derive(Serialize)]
struct Event<'a> {
    r#type: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Stats>,
}

fn write(out: &mut dyn Write, event: &Event<'_>) -> Result<(), EventsError> {
    let failed = |source| EventsError::Write { id: event.id.to_owned(), source };
    serde_json::to_writer(&mut *out, event).map_err(|error| failed(error.into()))?;
    out.write_all(b"\n").and_then(|()| out.flush()).map_err(failed)
}

/// `events --stats`: one line.
pub fn once(id: &str, cgroup: &Cgroup, out: &mut dyn Write) -> Result<(), EventsError> {
    let stats = cgroup.stats().map_err(|source| EventsError::Cgroup { id: id.to_owned(), source })?;
    write(out, &Event { r#type: "stats", id, data: Some(stats) })
}

/// `events`: a line each `interval`, one at each kill for want of memory, until the container ends.
pub fn follow(id: &str, cgroup: &Cgroup, interval: Duration, out: &mut dyn Write) -> Result<(), EventsError> {
    if interval.is_zero() {
        return Err(EventsError::Interval);
    }
    let failed = |source| EventsError::Cgroup { id: id.to_owned(), source };
    let mut ooms = match cgroup.ooms() {
        Ok(ooms) => Some(ooms),
        // A host without the controller still has statistics.
        Err(CgroupError::NoController { .. }) => None,
        Err(source) => return Err(failed(source)),
    };
    let mut next = Instant::now() + interval;
    loop {
        match wait(id, ooms.as_mut(), next)? {
            OomWord::Oom => write(out, &Event { r#type: "oom", id, data: None })?,
            OomWord::Gone => return Ok(()),
            OomWord::Nothing => {}
        }
        if cgroup.is_empty().map_err(failed)? {
            return Ok(());
        }
        if Instant::now() >= next {
            match once(id, cgroup, out) {
                // It ended between the two looks.
                Err(EventsError::Cgroup { .. }) if cgroup.is_empty().map_err(failed)? => return Ok(()),
                other => other?,
            }
            next = Instant::now() + interval;
        }
    }
}

/// How long an end can go unnoticed where the kernel does not tell it.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

fn wait(id: &str, ooms: Option<&mut Ooms>, next: Instant) -> Result<OomWord, EventsError> {
    let left = next.saturating_duration_since(Instant::now()).min(LOOK_INTERVAL);
    let Some(ooms) = ooms else {
        std::thread::sleep(left);
        return Ok(OomWord::Nothing);
    };
    let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
    let mut interests = [Interest { fd: ooms.fd(), write: false, ready: false }];
    let is_ready = poll(&mut interests, Some(left_ms))
        .map_err(|errno| EventsError::Wait { id: id.to_owned(), source: errno.into() })?;
    if !is_ready {
        return Ok(OomWord::Nothing);
    }
    ooms.take().map_err(|source| EventsError::Cgroup { id: id.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let mut out = Vec::new();
        write(&mut out, &Event { r#type: "oom", id: "a\"b", data: None }).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "{\"type\":\"oom\",\"id\":\"a\\\"b\"}\n");
    }
}

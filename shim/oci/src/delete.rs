//! `delete`: what is left of a container after its end, or with `--force` before.

use anyhow::{Result, bail};

use crate::cgroup::{Cgroup, Version};
use crate::hooks::{self, Phase};
use crate::kill::kill_all;
use crate::state::{Entry, Record, StateError, Status, is_ending, state};

/// Removes a container; returns what its poststop hooks have failed with, which stops nothing.
///
/// # Errors
/// It runs and `is_forced` is not said, or something of it cannot be removed.
pub fn delete(entry: &Entry, is_forced: bool) -> Result<Vec<String>> {
    if is_forced {
        // A create that hangs in a hook holds the lock: it is the first to go.
        stop_create(entry)?;
    }
    match entry.lock() {
        // The create that was stopped has taken everything back itself.
        Err(StateError::Missing { .. }) if is_forced => return Ok(Vec::new()),
        other => other?,
    }
    let record = match entry.read() {
        Ok(Some(record)) => record,
        Ok(None) => return entry.remove().map(|()| Vec::new()).map_err(Into::into),
        Err(StateError::Damaged(..)) if is_forced => return entry.remove().map(|()| Vec::new()).map_err(Into::into),
        Err(error) => return Err(error.into()),
    };
    match entry.status(&record) {
        // Its create was killed, and its init may hang in a hook; otherwise that ends by itself.
        Status::Stopped if is_forced && record.pid == 0 => record.cgroup.iter().try_for_each(Cgroup::kill_all)?,
        Status::Stopped | Status::Creating => {}
        // As runc does: what waits for a start has not run.
        Status::Created => kill_all(entry, &record)?,
        Status::Running | Status::Paused if is_forced => kill_all(entry, &record)?,
        // Killed a moment ago, and as good as gone.
        Status::Running if is_ending(record.pid) => kill_all(entry, &record)?,
        status => bail!(
            "cannot delete container {:?}: it is {}; kill it first, or use --force",
            entry.id(),
            if status == Status::Paused { "paused" } else { "running" }
        ),
    }
    remove(entry, &record)
}

/// Ends the init of a create that is under way; the create then takes back what it made.
fn stop_create(entry: &Entry) -> Result<()> {
    let Ok(Some(record)) = entry.read() else { return Ok(()) };
    if entry.status(&record) == Status::Creating
        && let Some(cgroup) = record.cgroup.as_ref().filter(|cgroup| cgroup.version() != Version::None)
    {
        cgroup.kill(nix::libc::SIGKILL)?;
    }
    Ok(())
}

/// Removes what is left of a container whose first process has ended.
///
/// # Errors
/// Something of it cannot be removed.
pub fn remove(entry: &Entry, record: &Record) -> Result<Vec<String>> {
    if let Some(cgroup) = &record.cgroup {
        // The end of the first process of a pid namespace was that of all; of a killed create nobody knows how far it came.
        if !record.has_own_pid_namespace || record.pid == 0 {
            cgroup.kill_all()?;
        }
        cgroup.remove()?;
    }
    let failed = hooks::run_all(record.hooks.as_ref(), Phase::Poststop, &state(record, Status::Stopped).to_json());
    entry.remove()?;
    Ok(failed.iter().map(ToString::to_string).collect())
}

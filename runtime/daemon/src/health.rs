//! Health commands of group members: run in the sandbox, for their exit code alone.

use std::sync::Arc;
use std::time::Duration;

use apex_api::v1::HealthCheck;

use crate::exec;
use crate::record::Record;
use crate::sandbox::Sandbox;

/// What is usual.
const INTERVAL_MS: u64 = 10_000;
const TIMEOUT_MS: u64 = 5_000;
const RETRIES: u32 = 3;
/// Between these a command may be run, and so long it may take at most.
const INTERVAL_MS_MIN: u64 = 100;
const MS_MAX: u64 = 60 * 60 * 1000;
/// While it has not been well yet it is looked at more often, so that who depends on it need not wait for a whole interval.
const FIRST_MS: u64 = 250;

/// Whether it can be carried out.
pub fn check(health: &HealthCheck) -> Result<(), String> {
    if health.command.is_empty() {
        return Err("its health check has no command; give one".to_owned());
    }
    let is_time = |ms: u64| ms == 0 || (INTERVAL_MS_MIN..=MS_MAX).contains(&ms);
    if !is_time(health.interval_ms) || !is_time(health.timeout_ms) {
        return Err(format!("times of its health check are between {INTERVAL_MS_MIN} ms and an hour"));
    }
    Ok(())
}

fn or(given: u64, usual: u64) -> Duration {
    Duration::from_millis(if given == 0 { usual } else { given })
}

/// Looks until it is well that was not, or ill that was well or never came to be; which it is. `None` when the sandbox has ended.
pub async fn until_changed(sandbox: &Arc<Sandbox>, health: &HealthCheck, is_well: bool) -> Option<bool> {
    let (interval, timeout) = (or(health.interval_ms, INTERVAL_MS), or(health.timeout_ms, TIMEOUT_MS));
    let retries = if health.retries == 0 { RETRIES } else { health.retries };
    let mut failed = 0;
    loop {
        let pause = if is_well || failed > 0 { interval } else { interval.min(Duration::from_millis(FIRST_MS)) };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = sandbox.until(Record::is_over) => return None,
        }
        // One that stands still is not ill.
        if sandbox.record().facts.frozen {
            continue;
        }
        match exec::succeeds(sandbox, &health.command, timeout).await {
            Some(true) if !is_well => return Some(true),
            Some(true) => failed = 0,
            Some(false) => {
                failed += 1;
                if failed >= retries {
                    return Some(false);
                }
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_carried_out_is_refused() {
        let health = |command: &[&str], interval_ms, timeout_ms| HealthCheck {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            interval_ms,
            timeout_ms,
            retries: 0,
        };
        assert_eq!(check(&health(&["true"], 0, 0)), Ok(()));
        assert_eq!(check(&health(&["true"], 100, MS_MAX)), Ok(()));
        for wrong in [health(&[], 0, 0), health(&["true"], 99, 0), health(&["true"], 0, MS_MAX + 1)] {
            assert!(check(&wrong).is_err(), "{wrong:?}");
        }
    }
}

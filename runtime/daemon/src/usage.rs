//! What a sandbox uses, as its keeper tells it, in the words of the API.

use std::time::Duration;

use apex_api::v1;
use apex_core::keep::{FromKeeper, ToKeeper, Usage};

use crate::sandbox::Sandbox;

/// How long a keeper may take to tell: its user may have stopped it.
const WITHIN: Duration = Duration::from_secs(2);

/// Asks the keeper. One that is about to end, or stopped, tells nothing: a row without numbers tells no lie.
pub async fn of(sandbox: &Sandbox) -> Option<Box<Usage>> {
    match tokio::time::timeout(WITHIN, sandbox.ask(&ToKeeper::Use)).await {
        Ok(Ok(FromKeeper::Used(usage))) => Some(usage),
        Ok(_) | Err(_) => None,
    }
}

/// As the API tells it.
pub fn wire(usage: &Usage) -> v1::Usage {
    v1::Usage {
        memory_bytes: usage.memory_bytes,
        tasks: usage.tasks,
        cpu_us: usage.cpu_us,
        memory_peak_bytes: usage.memory_peak_bytes,
        memory_shared_bytes: usage.memory_shared_bytes,
        memory_limit_hits: usage.memory_limit_hits,
        oom_kills: usage.oom_kills,
        tasks_refused: usage.tasks_refused,
        cpu_periods: usage.cpu_periods,
        cpu_throttled_periods: usage.cpu_throttled_periods,
        cpu_throttled_us: usage.cpu_throttled_us,
        io_read_bytes: usage.io_read_bytes,
        io_written_bytes: usage.io_written_bytes,
        network_received_bytes: usage.network_received_bytes,
        network_sent_bytes: usage.network_sent_bytes,
    }
}

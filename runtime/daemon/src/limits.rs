//! Sandboxes that asked for something to be done at a limit: looked at once a second through their keepers, judged by [`apex_core::control`], answered by
//! [`crate::dial`]. Nobody else is looked at, and where nobody asks nothing runs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use anyhow::Result;
use apex_core::control::{OnLimits, Reached, Seen};
use apex_core::keep::Usage;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::clock::now_ms;
use crate::metrics;
use crate::record::Record;
use crate::registry::Daemon;
use crate::sandbox::Sandbox;
use crate::say;
use crate::{dial, usage};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Who is looked at.
#[derive(Default)]
pub struct Watched {
    sandboxes: Mutex<HashMap<String, Weak<Sandbox>>>,
    more: Notify,
}

impl Watched {
    /// Looks at this one from now on, if it asked for that.
    pub fn watch(&self, sandbox: &Arc<Sandbox>) {
        if !sandbox.record().on_limits.is_empty() {
            let mut sandboxes = self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner);
            sandboxes.insert(sandbox.id.clone(), Arc::downgrade(sandbox));
            self.more.notify_one();
        }
    }

    /// Those that are still there.
    fn alive(&self) -> Vec<Arc<Sandbox>> {
        let mut sandboxes = self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner);
        sandboxes.retain(|_, sandbox| sandbox.upgrade().is_some_and(|sandbox| is_looked_at(&sandbox.record())));
        sandboxes.values().filter_map(Weak::upgrade).collect()
    }
}

fn is_looked_at(record: &Record) -> bool {
    !record.is_over() && !record.on_limits.is_empty()
}

/// Looks for ever.
pub async fn look(daemon: Arc<Daemon>) -> Result<()> {
    let mut seen: HashMap<String, Seen> = HashMap::new();
    loop {
        let alive = daemon.watched.alive();
        seen.retain(|id, _| alive.iter().any(|sandbox| sandbox.id == *id));
        if alive.is_empty() {
            daemon.watched.more.notified().await;
            continue;
        }
        // All at once: a keeper that its user has stopped holds up no look at the others.
        let mut asking = JoinSet::new();
        for sandbox in alive {
            let record = sandbox.record();
            if record.is_alive() {
                asking.spawn(async move {
                    let usage = if record.facts.has_limits { usage::of(&sandbox).await } else { None };
                    (sandbox, record, usage)
                });
            }
        }
        while let Some(asked) = asking.join_next().await {
            let Ok((sandbox, record, usage)) = asked else { continue };
            let seen = seen.entry(record.id.clone()).or_insert(record.seen);
            look_at(&daemon, &sandbox, &record, (usage.as_deref(), seen));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn look_at(daemon: &Arc<Daemon>, sandbox: &Arc<Sandbox>, record: &Record, (usage, seen): (Option<&Usage>, &mut Seen)) {
    if !record.facts.has_limits {
        // Said once; nothing of it is counted.
        return note(daemon, sandbox, |record| {
            record.on_limits = OnLimits::default();
            record.limit_reached = "nothing is seen of its limits: it has no cgroup".to_owned();
        });
    }

    let Some(usage) = usage else { return };
    let reached = seen.look(usage, record.facts.limits, &record.on_limits, now_ms());
    if reached.is_empty() {
        return;
    }
    // With what was seen, so that the next daemon does not answer it again.
    let words = reached.iter().map(said).collect::<Vec<_>>().join("; ");
    note(daemon, sandbox, |record| {
        record.seen = *seen;
        record.limit_reached = words;
    });
    let (daemon, sandbox) = (Arc::clone(daemon), Arc::clone(sandbox));
    tokio::spawn(async move {
        for reached in reached {
            daemon.metrics.count(&metrics::LIMITS_HIT, &[reached.kind.name(), reached.action.name()]);
            dial::react_to_limit(&daemon, &sandbox, &reached).await;
        }
    });
}

fn note(daemon: &Daemon, sandbox: &Sandbox, change: impl FnOnce(&mut Record)) {
    if let Err(error) = sandbox.update(&daemon.store, change) {
        say::about(&sandbox.id, "limits", format_args!("{error:#}"));
    }
}

fn said(reached: &Reached) -> String {
    format!("{} ({})", reached.words, reached.action.name())
}

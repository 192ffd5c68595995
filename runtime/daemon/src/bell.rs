//! Findings as they are written: one inotify for all sandboxes that are watched.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use anyhow::{Context, Result};
use apex_core::finding::Severity;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use serde::de::IgnoredAny;
use serde_json::Value;
use tokio::io::unix::AsyncFd;

use crate::record::Record;
use crate::registry::Daemon;
use crate::sandbox::Sandbox;
use crate::{dial, metrics, ready, say};

/// Where a sandbox's prober writes its findings.
pub const FINDINGS: &str = "findings.jsonl";
/// Where it writes its events.
pub const EVENTS: &str = "events.jsonl";
/// Bytes of findings that are judged at once; what a finding holds is bounded by the prober.
const READ_BYTES_MAX: u64 = 1 << 20;
/// The last line of a record is far below.
const LAST_BYTES_MAX: u64 = 64 << 10;

/// Who is told when a file grows.
pub struct Bell {
    inotify: Inotify,
    /// A second descriptor of it, to be waited for.
    ready: AsyncFd<OwnedFd>,
    sandboxes: Mutex<HashMap<WatchDescriptor, Weak<Sandbox>>>,
    /// Those whose findings are being judged, and whether there are more since.
    under_way: Mutex<HashMap<String, bool>>,
}

impl Bell {
    /// Without anything to watch yet.
    pub fn new() -> Result<Bell> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).context("making an inotify")?;
        let ready = ready::register(inotify.as_fd().try_clone_to_owned()?)?;
        Ok(Bell { inotify, ready, sandboxes: Mutex::default(), under_way: Mutex::default() })
    }

    /// Watches the findings of a sandbox from now on.
    pub fn watch(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        let path = sandbox.dir.file(FINDINGS);
        let watch = self.inotify.add_watch(&path, AddWatchFlags::IN_MODIFY);
        let watch = watch.with_context(|| format!("watching {}", path.display()))?;
        let mut sandboxes = self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner);
        // What is gone leaves its number to nobody else; it is let go here.
        sandboxes.retain(|_, sandbox| sandbox.strong_count() > 0);
        sandboxes.insert(watch, Arc::downgrade(sandbox));
        Ok(())
    }

    /// Judges findings for ever.
    pub async fn ring(&self, daemon: &Arc<Daemon>) -> Result<()> {
        loop {
            let mut ready = self.ready.readable().await?;
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => {
                    ready.clear_ready();
                    continue;
                }
                Err(errno) => return Err(errno).context("reading the inotify"),
            };
            let mut grown: Vec<Arc<Sandbox>> = Vec::new();
            for event in events {
                let is_lost = event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
                let sandboxes = self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner);
                let of_event = sandboxes.iter().filter(|(watch, _)| is_lost || **watch == event.wd);
                grown.extend(of_event.filter_map(|(_, sandbox)| sandbox.upgrade()));
            }
            grown.sort_by(|one, other| one.id.cmp(&other.id));
            grown.dedup_by(|one, other| one.id == other.id);
            for sandbox in grown {
                self.begin(daemon, sandbox);
            }
        }
    }

    /// Each sandbox by itself: one whose user writes findings without end, or has stopped its keeper, holds up no answer to those of others.
    fn begin(&self, daemon: &Arc<Daemon>, sandbox: Arc<Sandbox>) {
        if let Some(has_more) = self.under_way().get_mut(&sandbox.id) {
            *has_more = true;
            return;
        }
        self.under_way().insert(sandbox.id.clone(), false);
        let daemon = Arc::clone(daemon);
        tokio::spawn(async move {
            loop {
                look(&daemon, &sandbox).await;
                let mut under_way = daemon.bell.under_way();
                match under_way.get_mut(&sandbox.id) {
                    Some(has_more) if *has_more => *has_more = false,
                    _ => {
                        under_way.remove(&sandbox.id);
                        return;
                    }
                }
            }
        });
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<String, bool>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Judges what is new in the findings of a sandbox.
pub async fn look(daemon: &Daemon, sandbox: &Arc<Sandbox>) {
    loop {
        let from = sandbox.record().findings_read;
        let Ok(Some((text, until))) = whole_lines(sandbox, from) else { return };
        let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
        let findings: Vec<Value> = lines.iter().filter_map(|line| serde_json::from_slice(line).ok()).collect();
        // Stored with what becomes of them: no disk is waited for before an answer.
        sandbox.change(|record| {
            let known = usize::try_from(record.findings_counted.saturating_sub(from)).unwrap_or(usize::MAX);
            let fresh = text.get(known..).unwrap_or_default().split_inclusive(|byte| *byte == b'\n');
            record.findings += fresh.filter(|line| serde_json::from_slice::<IgnoredAny>(line).is_ok()).count() as u64;
            record.findings_counted = record.findings_counted.max(until);
        });
        // Others have their turn as well.
        tokio::task::yield_now().await;
        for finding in findings {
            let rule = finding["finding_info"]["analytic"]["uid"].as_str().unwrap_or("none");
            if let Some(severity) = severity(&finding) {
                daemon.metrics.count(&metrics::FINDINGS, &[severity.name(), rule]);
                let title = finding["finding_info"]["title"].as_str().unwrap_or("a finding");
                dial::react(daemon, sandbox, severity, title).await;
            }
        }
        // Behind the answers: a daemon that ends in between leaves them to the next, and an answer that was given is no second time.
        note(daemon, sandbox, |record| record.findings_read = until);
    }
}

fn note(daemon: &Daemon, sandbox: &Sandbox, change: impl FnOnce(&mut Record)) {
    if let Err(error) = sandbox.update(&daemon.store, change) {
        say::about(&sandbox.id, "store", format_args!("{error:#}"));
    }
}

/// Counts how a sandbox ended, once it is over, and what was seen and lost of it: the last line of its record sums that up.
pub fn count_at_end(daemon: &Arc<Daemon>, sandbox: &Arc<Sandbox>) {
    let (daemon, sandbox) = (Arc::clone(daemon), Arc::clone(sandbox));
    tokio::spawn(async move {
        let record = sandbox.until(Record::is_over).await;
        // Two limits end a sandbox by themselves, whatever was asked for.
        if let kind @ ("memory" | "time") = record.ending.as_str() {
            daemon.metrics.count(&metrics::LIMITS_HIT, &[kind, "ended"]);
        }
        if record.watch == "off" {
            return;
        }
        let Some(end) = last_line(&sandbox).filter(|line| line["event"] == "end") else { return };
        daemon.metrics.add(&metrics::EVENTS, &[], end["events"].as_u64().unwrap_or(0));
        for (reason, count) in end["lost"].as_object().into_iter().flatten() {
            daemon.metrics.add(&metrics::EVENTS_LOST, &[reason], count.as_u64().unwrap_or(0));
        }
    });
}

fn last_line(sandbox: &Sandbox) -> Option<Value> {
    let mut file = std::fs::File::open(sandbox.dir.file(EVENTS)).ok()?;
    let from = file.metadata().ok()?.len().saturating_sub(LAST_BYTES_MAX);
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut bytes = Vec::new();
    file.take(LAST_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    let line = bytes.trim_ascii_end().rsplit(|byte| *byte == b'\n').next()?;
    serde_json::from_slice(line).ok()
}

fn whole_lines(sandbox: &Sandbox, from: u64) -> std::io::Result<Option<(Vec<u8>, u64)>> {
    let mut file = std::fs::File::open(sandbox.dir.file(FINDINGS))?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(READ_BYTES_MAX).read_to_end(&mut bytes)?;
    let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') else {
        // No prober writes such a line: its user did. All of it is passed over at once, whatever its size.
        let is_too_long = bytes.len() as u64 == READ_BYTES_MAX;
        return Ok(is_too_long.then_some((Vec::new(), length)));
    };
    bytes.truncate(end + 1);
    let until = from + bytes.len() as u64;
    Ok(Some((bytes, until)))
}

/// As OCSF numbers it.
fn severity(finding: &Value) -> Option<Severity> {
    Some(match finding["severity_id"].as_u64()? {
        1 => Severity::Informational,
        2 => Severity::Low,
        3 => Severity::Medium,
        4 => Severity::High,
        5.. => Severity::Critical,
        0 => return None,
    })
}

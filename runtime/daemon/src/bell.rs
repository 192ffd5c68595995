//! Findings as they are written: one inotify for all sandboxes that are watched.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use anyhow::{Context, Result};
use apex_core::finding::Severity;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use serde_json::Value;
use tokio::io::unix::AsyncFd;

use crate::registry::Daemon;
use crate::sandbox::Sandbox;
use crate::{dial, ready, say};

/// Where a sandbox's prober writes its findings.
pub const FINDINGS: &str = "findings.jsonl";
/// Where it writes its events.
pub const EVENTS: &str = "events.jsonl";
/// Bytes of findings that are judged at once; what a finding holds is bounded by the prober.
const READ_BYTES_MAX: u64 = 4 << 20;

/// Who is told when a file grows.
pub struct Bell {
    inotify: Inotify,
    /// A second descriptor of it, to be waited for.
    ready: AsyncFd<OwnedFd>,
    sandboxes: Mutex<HashMap<WatchDescriptor, Weak<Sandbox>>>,
}

impl Bell {
    /// Without anything to watch yet.
    pub fn new() -> Result<Bell> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).context("making an inotify")?;
        let ready = ready::register(inotify.as_fd().try_clone_to_owned()?)?;
        Ok(Bell { inotify, ready, sandboxes: Mutex::default() })
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
    pub async fn ring(&self, daemon: &Daemon) -> Result<()> {
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
                look(daemon, &sandbox).await;
            }
        }
    }
}

/// Judges what is new in the findings of a sandbox.
pub async fn look(daemon: &Daemon, sandbox: &Arc<Sandbox>) {
    loop {
        let from = sandbox.record().findings_read;
        let Ok(Some((text, until))) = whole_lines(sandbox, from) else { return };
        let findings: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let count = findings.len() as u64;
        let noted = sandbox.update(&daemon.store, |record| {
            record.findings += count;
            record.findings_read = until;
        });
        if let Err(error) = noted {
            say::about(&sandbox.id, "store", format_args!("{error:#}"));
        }
        for finding in findings {
            if let Some(severity) = severity(&finding) {
                let title = finding["finding_info"]["title"].as_str().unwrap_or("a finding");
                dial::react(daemon, sandbox, severity, title).await;
            }
        }
    }
}

fn whole_lines(sandbox: &Sandbox, from: u64) -> std::io::Result<Option<(String, u64)>> {
    let mut file = std::fs::File::open(sandbox.dir.file(FINDINGS))?;
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(READ_BYTES_MAX).read_to_end(&mut bytes)?;
    let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') else { return Ok(None) };
    bytes.truncate(end + 1);
    let until = from + bytes.len() as u64;
    Ok(Some((String::from_utf8_lossy(&bytes).into_owned(), until)))
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

//! The bounded queue between the pipeline and the thread of one sink.
//!
//! Lines are kept end to end in one buffer, which the thread swaps for an empty one: the pipeline pays a copy and no allocation. Findings have
//! twice the room of events, so that a flood of events does not push them out.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use apex_core::finding::{Detector, Finding, Severity};

use super::Counts;

/// Longest time that a line waits to be written while there is room.
const LINGER: Duration = Duration::from_secs(1);
/// As many bytes are handed over at once.
const EAGER_BYTES: usize = 64 << 10;

/// How much a queue holds.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Bytes.
    pub bytes: usize,
    /// Lines.
    pub lines: usize,
}

impl Room {
    /// Of a file: half a second of a very busy sandbox.
    pub const STREAM: Room = Room { bytes: 16 << 20, lines: 1 << 18 };
    /// Of what gets each line as a message.
    pub const MESSAGES: Room = Room { bytes: 4 << 20, lines: 1 << 14 };
}

/// What a sink with fields of its own wants to know of a finding beside its JSON.
#[derive(Clone, Debug)]
pub struct Facts {
    /// One line.
    pub title: String,
    /// How bad.
    pub severity: Severity,
    /// The rule's id, or `baseline`.
    pub detector: String,
    /// ATT&CK ids.
    pub techniques: Vec<String>,
    /// The sandbox.
    pub sandbox: u64,
}

impl Facts {
    /// Those of a finding.
    pub fn of(finding: &Finding) -> Facts {
        let detector = match &finding.detector {
            Detector::Rule { id, .. } => id.clone(),
            Detector::Baseline { .. } => "baseline".to_owned(),
        };
        Facts {
            title: finding.title.clone(),
            severity: finding.severity,
            detector,
            techniques: finding.techniques.clone(),
            sandbox: finding.sandbox,
        }
    }

    /// The severity in the numbers of syslog(3).
    pub fn priority(&self) -> u8 {
        match self.severity {
            Severity::Critical => 2,
            Severity::High => 3,
            Severity::Medium => 4,
            Severity::Low => 5,
            Severity::Informational => 6,
        }
    }

    /// One line for people.
    pub fn message(&self) -> String {
        let severity = apex_core::ocsf::severity_name(self.severity).to_lowercase();
        let title = super::line::plain(&self.title);
        format!("{severity}: {title} (sandbox {}, by {})", self.sandbox, super::line::plain(&self.detector))
    }
}

/// Lines that wait.
#[derive(Debug, Default)]
pub struct Batch {
    text: Vec<u8>,
    /// Where each line ends, its newline included, and what it is.
    lines: Vec<(usize, Option<Box<Facts>>)>,
}

impl Batch {
    /// All lines end to end, each with its newline.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// How many lines.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Each line without its newline; facts with a finding.
    pub fn lines(&self) -> impl Iterator<Item = (&[u8], Option<&Facts>)> {
        let starts = std::iter::once(0).chain(self.lines.iter().map(|(end, _)| *end));
        starts.zip(&self.lines).map(|(start, (end, facts))| (&self.text[start..end - 1], facts.as_deref()))
    }
}

#[derive(Debug, Default)]
struct State {
    batch: Batch,
    spare: Batch,
    hurried: bool,
    deadline: Option<Instant>,
    done: bool,
    pushed: u64,
}

/// See the module.
pub struct Queue {
    name: String,
    room: Room,
    state: Mutex<State>,
    changed: Condvar,
    written: AtomicU64,
    told: AtomicBool,
    tell: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Queue {
    /// An empty one. `name` is what people are told.
    pub fn new(name: String, room: Room, tell: Arc<dyn Fn(&str) + Send + Sync>) -> Queue {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Queue { name, room, state, changed, written: AtomicU64::new(0), told: AtomicBool::new(false), tell }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole at each instant at which a holder could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line, which ends in a newline, or counts it as dropped.
    pub fn push(&self, line: &[u8], facts: Option<Box<Facts>>) {
        let mut state = self.lock();
        let factor = if facts.is_some() { 2 } else { 1 };
        let fits = state.batch.text.len() + line.len() <= self.room.bytes * factor
            && state.batch.lines.len() < self.room.lines * factor;
        state.pushed += 1;
        if !fits {
            drop(state);
            self.trouble("it is too slow; what does not fit its queue is dropped and counted");
            return;
        }
        let was_empty = state.batch.lines.is_empty();
        let is_finding = facts.is_some();
        state.batch.text.extend_from_slice(line);
        let end = state.batch.text.len();
        state.batch.lines.push((end, facts));
        let hurried = is_finding || end >= EAGER_BYTES;
        let wakes = was_empty || (hurried && !state.hurried);
        state.hurried |= hurried;
        drop(state);
        if wakes {
            self.changed.notify_all();
        }
    }

    /// Adds a line that does not linger.
    pub fn push_at_once(&self, line: &[u8]) {
        self.push(line, None);
        self.lock().hurried = true;
        self.changed.notify_all();
    }

    /// The next lines, at the latest a second after the first of them came; `None` at the end.
    pub fn take(&self) -> Option<Batch> {
        let is_idle = |state: &mut State| state.batch.lines.is_empty() && state.deadline.is_none();
        let state = self.changed.wait_while(self.lock(), is_idle).unwrap_or_else(PoisonError::into_inner);
        let may_wait = |state: &mut State| !state.hurried && state.deadline.is_none();
        let waited = self.changed.wait_timeout_while(state, LINGER, may_wait);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.hurried = false;
        if state.batch.lines.is_empty() {
            return None;
        }
        let spare = std::mem::take(&mut state.spare);
        Some(std::mem::replace(&mut state.batch, spare))
    }

    /// Gives a batch back for its memory.
    pub fn recycle(&self, mut batch: Batch) {
        batch.text.clear();
        batch.lines.clear();
        self.lock().spare = batch;
    }

    /// No more lines come; what waits may be written until `deadline`.
    pub fn close(&self, deadline: Instant) {
        self.lock().deadline = Some(deadline);
        self.changed.notify_all();
    }

    /// Until when may be written, once it is closed.
    pub fn deadline(&self) -> Option<Instant> {
        self.lock().deadline
    }

    /// Whether the time for writing is over.
    pub fn is_over(&self) -> bool {
        self.deadline().is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Waits, but not beyond the deadline; ends early when the queue is closed meanwhile.
    pub fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut state = self.lock();
        let was_open = state.deadline.is_none();
        loop {
            let end = state.deadline.map_or(until, |deadline| deadline.min(until));
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || (was_open && state.deadline.is_some()) {
                return;
            }
            (state, _) = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The thread has ended.
    pub fn done(&self) {
        self.lock().done = true;
        self.changed.notify_all();
    }

    /// Waits for the thread; whether it has ended by a moment after the deadline.
    pub fn wait_done(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(500);
        let waited = self.changed.wait_timeout_while(self.lock(), left, |state| !state.done);
        waited.unwrap_or_else(PoisonError::into_inner).0.done
    }

    /// Accounts for lines that arrived.
    pub fn written(&self, lines: usize) {
        self.written.fetch_add(lines as u64, Ordering::Relaxed);
    }

    /// Accounts for lines that did not, and tells why, once.
    pub fn dropped(&self, lines: usize, why: &str) {
        if lines > 0 {
            self.trouble(why);
        }
    }

    /// Tells people of a trouble, once.
    pub fn trouble(&self, why: &str) {
        if !self.told.swap(true, Ordering::Relaxed) {
            (self.tell)(&format!("{}: {why}", self.name));
        }
    }

    /// What became of the lines so far; what is neither written nor known to be lost counts as dropped.
    pub fn counts(&self) -> Counts {
        let written = self.written.load(Ordering::Relaxed);
        let pushed = self.lock().pushed;
        Counts { sink: self.name.clone(), written, dropped: pushed.saturating_sub(written) }
    }
}

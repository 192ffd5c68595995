//! The thread that reads the rings.
//!
//! Input: rings and counters of all families. Output: batches of events in the order of time. It never waits for a program; when the
//! pipeline is slow it blocks, the rings fill, and the programs count what they cannot send.
//!
//! Order: programs stamp a record before they send it, so one ring is nearly in order and two are not in order at all. Records younger than
//! [`SETTLE`] are held back until the next round, when their elders of other CPUs and rings are there.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use apex_core::event::{Event, Loss, What};
use aya::maps::{MapData, RingBuf};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};

use super::decode::{asked, decode};
use super::maps::{Counter, Losses};
use crate::source::{BATCH_EVENTS_MAX, Batch, Looks};

/// After a wake-up, so that a busy sandbox costs a hundred wake-ups a second and not one for each record.
const GATHER: Duration = Duration::from_millis(10);
/// Younger records may still have elders on the way.
const SETTLE: Duration = Duration::from_millis(2);
/// Between two readings of the counters.
const TICK: Duration = Duration::from_secs(1);
/// Records taken from one ring in one round, which bounds what is held back.
const ROUND_RECORDS_MAX: usize = 64 << 10;

/// What the thread works on.
pub struct Reader {
    /// Rings of all families.
    pub rings: Vec<RingBuf<MapData>>,
    /// Counters of all families.
    pub losses: Vec<Losses>,
    /// What is counted and not recorded one by one.
    pub counters: Vec<Counter>,
    /// Names that were told of, in a run that is learned from.
    pub looks: Option<Looks>,
    /// The sandbox, for the events of the watch itself.
    pub sandbox: u64,
    /// Where batches go.
    pub to: SyncSender<Batch>,
    /// Hung up by the other side when the programs are detached.
    pub stop: OwnedFd,
}

/// The other side of the channel is gone.
struct Gone;

impl Reader {
    /// Reads until it is told to stop and the rings are empty.
    pub fn run(mut self) {
        // Nobody is left to tell when the channel is closed: the pipeline has ended first.
        let _ = self.read();
    }

    fn read(&mut self) -> Result<(), Gone> {
        let mut held = Vec::new();
        let mut lost = BTreeMap::new();
        let mut tick = Instant::now() + TICK;
        loop {
            let patience = if held.is_empty() { tick.saturating_duration_since(Instant::now()) } else { GATHER };
            let is_stopped = self.wait(true, patience) || self.wait(false, GATHER);
            let horizon = if is_stopped { u64::MAX } else { now_ns().saturating_sub(SETTLE.as_nanos() as u64) };
            let is_full = self.drain(&mut held, &mut lost);
            if is_stopped || Instant::now() >= tick {
                self.losses.iter_mut().for_each(|losses| losses.add_to(&mut lost));
                held.extend(self.count());
                tick = Instant::now() + TICK;
            }
            held.sort_by_key(|event: &Event| event.time_ns);
            let settled = held.partition_point(|event| event.time_ns <= horizon);
            self.send(held.drain(..settled), &mut lost)?;
            if is_stopped && !is_full {
                return Ok(());
            }
        }
    }

    /// Waits for records (or not) and for the end; true when it is the end.
    fn wait(&self, for_records: bool, patience: Duration) -> bool {
        let mut fds = vec![PollFd::new(self.stop.as_fd(), PollFlags::empty())];
        if for_records {
            fds.extend(self.rings.iter().map(|ring| PollFd::new(ring.as_fd(), PollFlags::POLLIN)));
        }
        // Rounded up: a rest of less than a millisecond must not become a loop without a wait.
        let timeout = PollTimeout::try_from(patience + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => unreachable!("poll of open descriptors fails for no other reason: {error}"),
        }
        fds[0].revents().is_some_and(|got| got.contains(PollFlags::POLLHUP))
    }

    /// Decodes what is there; true when there is more.
    fn drain(&mut self, held: &mut Vec<Event>, lost: &mut BTreeMap<Loss, u64>) -> bool {
        let mut is_full = false;
        for ring in &mut self.rings {
            let mut taken = 0;
            while taken < ROUND_RECORDS_MAX {
                let Some(record) = ring.next() else { break };
                match decode(&record) {
                    Ok(event) => match &mut self.looks {
                        Some(looks) => tell(looks, &record, event, held),
                        None => held.push(event),
                    },
                    Err(_) => *lost.entry(Loss::Unreadable).or_default() += 1,
                }
                taken += 1;
            }
            is_full |= taken == ROUND_RECORDS_MAX;
        }
        is_full
    }

    /// What was counted since the last time. The counters know no process.
    fn count(&mut self) -> Vec<Event> {
        let (sandbox, time_ns) = (self.sandbox, now_ns());
        let event =
            |what: What| Event { time_ns, sandbox, pid: 0, ppid: 0, uid: 0, comm: String::new(), what, error: None };
        self.counters.iter_mut().filter_map(Counter::since).map(event).collect()
    }

    fn send(&self, events: impl Iterator<Item = Event>, lost: &mut BTreeMap<Loss, u64>) -> Result<(), Gone> {
        let mut events = events.peekable();
        while events.peek().is_some() || !lost.is_empty() {
            let batch = Batch { events: events.by_ref().take(BATCH_EVENTS_MAX).collect(), lost: std::mem::take(lost) };
            self.to.send(batch).map_err(|_| Gone)?;
        }
        Ok(())
    }
}

/// Adds an event of a run that is learned from, with the name by which a file was opened. Names that were looked at come once.
fn tell(looks: &mut Looks, record: &[u8], event: Event, held: &mut Vec<Event>) {
    let look = asked(record, &event).filter(|look| looks.take(&look.what, None));
    if looks.take(&event.what, event.error) {
        let is_look = matches!(event.what, What::Look { .. });
        held.push(Event { error: event.error.filter(|_| !is_look), ..event });
    }
    held.extend(look);
}

/// The clock of the records.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("every kernel with BPF has this clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

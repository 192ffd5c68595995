//! The one door to the budget of this host: whoever makes a sandbox reserves here first ([`apex_core::budget`] decides).
//!
//! Input: claims, the host's size, its pressure (PSI, Documentation/accounting/psi.rst). Output: reservations, which give back when they are dropped. Nothing
//! here is stored: the next daemon counts anew from the records of what it takes up.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use apex_api::v1::CreateRequest;
use apex_api::{Error, Kind};
use apex_core::audit::Outcome;
use apex_core::budget::{Answer, Budget as Book, Claim, Refusal};
use apex_core::control::Limits;
use apex_core::policy::{self, Flags, Mode};
use serde_json::json;
use tokio::sync::oneshot;

use crate::ask::Asked;
use crate::clock::now_ms;
use crate::metrics;
use crate::options::Options;
use crate::record::Record;
use crate::registry::{self, Daemon};
use crate::sandbox::Sandbox;

/// How often pressure and deadlines are looked at while somebody waits.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a start may wait for room.
const WAIT_MS_MAX: u64 = 60 * 60 * 1000;
/// Where the kernel tells of stalls for want of memory.
const MEMORY_PRESSURE: &str = "/proc/pressure/memory";

/// What the host has for its sandboxes.
pub struct Budget {
    book: Mutex<State>,
    host: Limits,
    pressure_percent: Option<f64>,
}

#[derive(Default)]
struct State {
    book: Book,
    waiting: HashMap<String, oneshot::Sender<Result<(), Refusal>>>,
}

/// Numbers of the budget, for the metrics.
pub struct Figures {
    pub total: Limits,
    pub reserved: Limits,
    pub waiting: usize,
}

impl Budget {
    /// As the options say.
    pub fn new(options: &Options) -> anyhow::Result<Arc<Budget>> {
        let host = registry::host_limits();
        let total = match &options.budget {
            Some(words) => parse(words)?,
            // Limits are ceilings, which few sandboxes reach: without words there is the pressure alone.
            None => Limits::default(),
        };
        let book = Mutex::new(State { book: Book::new(total), ..State::default() });
        Ok(Arc::new(Budget { book, host, pressure_percent: options.pressure_percent }))
    }

    /// Room for a sandbox. Without a time to wait there is room or not; with one, whoever drops this future is out of the queue.
    ///
    /// # Errors
    /// Why there is none, in words for whoever asked.
    pub async fn reserve(self: &Arc<Self>, claim: Claim, wait: Option<Duration>) -> Result<Reservation, Refusal> {
        let reservation = Reservation { budget: Arc::clone(self), id: claim.id.clone() };
        let mut decided = {
            let mut state = self.locked();
            let now = now_ms();
            let until = wait.map(|wait| now.saturating_add(wait.as_millis() as u64));
            state.book.set_pressure(self.pressure());
            match state.book.ask(claim, until, now)? {
                Answer::Admitted => return Ok(reservation),
                Answer::Waits => {
                    let (to, decided) = oneshot::channel();
                    state.waiting.insert(reservation.id.clone(), to);
                    decided
                }
            }
        };
        loop {
            tokio::select! {
                // The sender goes only with its word.
                outcome = &mut decided => return match outcome {
                    Ok(Err(refusal)) => Err(refusal),
                    Ok(Ok(())) | Err(_) => Ok(reservation),
                },
                () = tokio::time::sleep(LOOK_EVERY) => self.settle(&mut self.locked()),
            }
        }
    }

    /// Whether the host is under pressure, so that nothing new is let in.
    pub fn is_short(&self) -> bool {
        self.pressure().is_some()
    }

    /// What is there already: a sandbox of the daemon before.
    pub fn hold(self: &Arc<Self>, claim: Claim) -> Reservation {
        let reservation = Reservation { budget: Arc::clone(self), id: claim.id.clone() };
        self.locked().book.hold(claim);
        reservation
    }

    /// What of limits is a claim: one that is the whole host limits nothing, and is given so that there is a dial.
    pub fn claimed(&self, limits: Limits) -> Limits {
        let below = |limit: Option<u64>, host: Option<u64>| limit.filter(|limit| host.is_none_or(|host| *limit < host));
        Limits {
            memory_bytes: below(limits.memory_bytes, self.host.memory_bytes),
            tasks: below(limits.tasks, self.host.tasks),
            cpu_percent: below(limits.cpu_percent, self.host.cpu_percent),
        }
    }

    /// How much there is, is held, and is waited for.
    pub fn figures(&self) -> Figures {
        let state = self.locked();
        Figures { total: state.book.total(), reserved: state.book.reserved(), waiting: state.book.waiting() }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, state: &mut State) {
        if state.waiting.is_empty() {
            return;
        }
        state.book.set_pressure(self.pressure());
        for (id, outcome) in state.book.settle(now_ms()) {
            if let Some(to) = state.waiting.remove(&id) {
                // Whoever gave up meanwhile gives back by itself.
                let _ = to.send(outcome);
            }
        }
    }

    /// Why nobody new is let in, in words. A kernel that does not tell (PSI is an option of its build) is taken for one without pressure.
    fn pressure(&self) -> Option<String> {
        let most = self.pressure_percent?;
        let now = stalled_percent(&std::fs::read_to_string(Path::new(MEMORY_PRESSURE)).ok()?)?;
        (now >= most).then(|| {
            format!(
                "the host is short of memory: some of its tasks stood still for it {now:.0}% of the last ten seconds, and from {most:.0}% on apexd starts nothing new ({MEMORY_PRESSURE}, --pressure)"
            )
        })
    }
}

/// Room that is held until this is dropped.
pub struct Reservation {
    budget: Arc<Budget>,
    id: String,
}

impl Reservation {
    /// Holds room for these limits from now on. Less always works.
    ///
    /// # Errors
    /// Where there is not so much; it stays as it was.
    pub fn change(&self, to: Limits) -> Result<(), Refusal> {
        let mut state = self.budget.locked();
        state.book.change(&self.id, self.budget.claimed(to))?;
        self.budget.settle(&mut state);
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.budget.locked();
        state.waiting.remove(&self.id);
        state.book.release(&self.id);
        self.budget.settle(&mut state);
    }
}

/// Has a sandbox wait for its room, if its request is ready to. A refusal is written down.
pub async fn admit(daemon: &Daemon, sandbox: &Sandbox, asked: &Asked, wait: Option<Duration>) -> Result<(), Error> {
    let record = sandbox.record();
    let claim = Claim { id: record.id.clone(), uid: record.uid, amounts: record.claim };
    let began = Instant::now();
    let outcome = tokio::select! {
        outcome = daemon.budget.reserve(claim, wait) => outcome.map_err(|refusal| refusal.to_string()),
        record = sandbox.until(Record::is_over) => Err(record.error),
    };
    if wait.is_some() {
        daemon.metrics.observe(&metrics::ROOM_SECONDS, &[], began.elapsed());
    }
    let outcome = outcome.and_then(|room| {
        sandbox.has_room(room);
        let record = sandbox.record();
        if record.is_over() { Err(record.error) } else { Ok(()) }
    });
    outcome.or_else(|words| {
        daemon.metrics.count(&metrics::STARTS, &[record.facts.born.name(), "refused"]);
        daemon.write_down(asked, &record, Outcome::Refused, &words, json!(null), json!({"claim": record.claim}))?;
        Err(Error::new(Kind::Exhausted, format!("cannot start a sandbox: {words}")))
    })
}

/// The limits that a request will have, as far as can be said before it is started: a policy that builds on files of the user is resolved by the keeper alone.
/// What the sandbox then stands with is counted instead.
pub fn claim_of(daemon: &Daemon, request: &CreateRequest, mode: Mode) -> Limits {
    let given = request.limits.clone().unwrap_or_default();
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let flags =
        Flags { memory: some(&given.memory), tasks: some(&given.tasks), cpu: some(&given.cpu), ..Flags::default() };
    let is_by_mode = request.profile.is_empty() && request.policy_toml.is_empty();
    let resolved = if is_by_mode { None } else { registry::limits_of(mode, request) };
    let limits = resolved.unwrap_or_else(|| daemon.budget.claimed(daemon.defaults(mode).limits));
    // Words that mean nothing are refused by the keeper, which says where they stand.
    flags.limits_over(limits).unwrap_or(limits)
}

/// How long a request is ready to wait.
pub fn wait_of(request: &CreateRequest) -> Result<Option<Duration>, Error> {
    let invalid = |words: String| Error::new(Kind::Invalid, words);
    if request.wait_for_room.is_empty() {
        return Ok(None);
    }
    let ms = policy::time_ms("--wait-for-room", &request.wait_for_room).map_err(|error| invalid(error.to_string()))?;
    match ms {
        Some(ms) if ms <= WAIT_MS_MAX => Ok(Some(Duration::from_millis(ms))),
        Some(_) | None => Err(invalid(format!("--wait-for-room {}: at most 1h", request.wait_for_room))),
    }
}

/// `memory=16G,tasks=unlimited,cpu=800`; what is left out is unlimited.
fn parse(words: &str) -> anyhow::Result<Limits> {
    let mut flags = Flags::default();
    for word in words.split(',') {
        let (kind, amount) = word
            .split_once('=')
            .ok_or_else(|| anyhow::anyhow!("--budget got `{word}`, which has no `=`; write memory=16G,tasks=8192"))?;
        let place = match kind {
            "memory" => &mut flags.memory,
            "tasks" => &mut flags.tasks,
            "cpu" => &mut flags.cpu,
            other => anyhow::bail!("--budget: {other:?} is not budgeted; there are memory, tasks and cpu"),
        };
        *place = Some(amount.to_owned());
    }
    flags.limits_over(Limits::default()).map_err(|error| anyhow::anyhow!("--budget: {error}"))
}

/// `some avg10=` of a pressure file.
fn stalled_percent(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split_whitespace().find_map(|word| word.strip_prefix("avg10=")).and_then(|number| number.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read_from_its_first_line() {
        let text = "some avg10=12.50 avg60=3.00 avg300=0.00 total=7\nfull avg10=1.00 avg60=0.00 avg300=0.00 total=3\n";
        assert_eq!(stalled_percent(text), Some(12.5));
        assert_eq!(stalled_percent("full avg10=1.00\n"), None);
        assert_eq!(stalled_percent("some avg10=x\n"), None);
    }

    #[test]
    fn a_budget_is_given_in_the_words_of_limits() {
        let limits = |words| parse(words).map_err(|error| error.to_string());
        assert_eq!(
            limits("memory=1G,cpu=400"),
            Ok(Limits { memory_bytes: Some(1 << 30), tasks: None, cpu_percent: Some(400) })
        );
        assert_eq!(limits("tasks=unlimited"), Ok(Limits::default()));
        for wrong in ["", "memory", "disk=1G", "memory=much", "memory=0"] {
            assert!(limits(wrong).is_err(), "{wrong}");
        }
    }
}

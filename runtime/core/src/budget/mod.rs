//! What a host has for its sandboxes, and who holds how much of it.
//!
//! Input: the budget, claims of sandboxes, changes and ends of them, the time. Output: who is admitted, who waits, who is refused and in which words.
//! A claim is the limits of a sandbox: a kind that it leaves unlimited claims nothing of that kind, since nothing could be promised to it.
//! Must not look at a host, read a clock or know a sandbox beyond its claim.
//!
//! Waiting: the oldest claim of a user comes first among that user's, so that a large one is not starved by small ones behind it. Between users nobody holds
//! up another: of those oldest claims that fit, the one of whoever holds the smallest share of the budget is admitted, and what does not fit is passed by.
//! A share is the largest of those of memory, tasks and CPU (dominant resource fairness, Ghodsi et al., NSDI 2011).

mod refusal;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::control::Limits;

pub use refusal::{Holders, Refusal, Why};

/// Claims that wait, of everybody and of one user.
pub const WAITING_MAX: usize = 1024;
/// Of one user.
pub const WAITING_OF_USER_MAX: usize = 64;
/// Parts of a whole in which shares are compared.
const SHARE_PARTS: u128 = 1_000_000;

/// What one sandbox asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The sandbox.
    pub id: String,
    /// Whose it is.
    pub uid: u32,
    /// Its limits.
    pub amounts: Limits,
}

/// What became of a claim that is not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is held from now on.
    Admitted,
    /// [`Budget::settle`] will tell.
    Waits,
}

/// A claim in the queue.
#[derive(Clone, Debug)]
struct Waiting {
    claim: Claim,
    since_ms: u64,
    until_ms: u64,
}

/// The budget, with who holds it and who waits for it.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    total: Limits,
    held: BTreeMap<String, Claim>,
    /// Oldest first.
    waiting: VecDeque<Waiting>,
    pressure: Option<String>,
}

impl Budget {
    /// Of this size; a kind that is unlimited is not counted.
    pub fn new(total: Limits) -> Budget {
        Budget { total, ..Budget::default() }
    }

    /// Its size.
    pub const fn total(&self) -> Limits {
        self.total
    }

    /// How much of each kind is held.
    pub fn reserved(&self) -> Limits {
        let of = |kind: Kind| Some(self.sum(kind, |_| true));
        Limits { memory_bytes: of(Kind::Memory), tasks: of(Kind::Tasks), cpu_percent: of(Kind::Cpu) }
    }

    /// How many claims wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Why nobody new is admitted at present, in words; `None` lets them in again.
    pub fn set_pressure(&mut self, words: Option<String>) {
        self.pressure = words;
    }

    /// Asks for room; with a time until which to wait for it.
    ///
    /// # Errors
    /// Where there is none and nothing to wait for, or no place to wait in.
    pub fn ask(&mut self, claim: Claim, until_ms: Option<u64>, now_ms: u64) -> Result<Answer, Refusal> {
        let refusal = |why| Err(Refusal { why: Box::new(why) });
        if let Some(why) = self.never(&claim) {
            return refusal(why);
        }
        let before = self.waiting.iter().filter(|waiting| waiting.claim.uid == claim.uid).count();
        let why = match before {
            0 => self.obstacle(&claim),
            _ => Some(Why::Behind { claims: before }),
        };
        let Some(why) = why else {
            self.held.insert(claim.id.clone(), claim);
            return Ok(Answer::Admitted);
        };
        let Some(until_ms) = until_ms else { return refusal(why) };
        if before >= WAITING_OF_USER_MAX || self.waiting.len() >= WAITING_MAX {
            return refusal(Why::QueueFull { claims: self.waiting.len() });
        }
        self.waiting.push_back(Waiting { claim, since_ms: now_ms, until_ms });
        Ok(Answer::Waits)
    }

    /// Notes what is there already, room or not.
    pub fn hold(&mut self, claim: Claim) {
        self.held.insert(claim.id.clone(), claim);
    }

    /// Changes what is held. Giving back always works.
    ///
    /// # Errors
    /// Where more is asked for than there is; what was held stays so. Pressure does not count: the sandbox runs already.
    pub fn change(&mut self, id: &str, to: Limits) -> Result<(), Refusal> {
        let Some(before) = self.held.get(id).cloned() else { return Ok(()) };
        let grown = Kind::ALL.into_iter().find(|kind| {
            let (old, new) = (kind.of(before.amounts).unwrap_or(0), kind.of(to).unwrap_or(0));
            new > old
                && kind
                    .of(self.total)
                    .is_some_and(|total| self.sum(*kind, |other| other.id != id).saturating_add(new) > total)
        });
        match grown {
            Some(kind) => Err(Refusal { why: Box::new(self.short(&Claim { amounts: to, ..before }, kind)) }),
            None => {
                self.held.insert(id.to_owned(), Claim { amounts: to, ..before });
                Ok(())
            }
        }
    }

    /// Gives back what a sandbox holds, or takes it out of the queue.
    pub fn release(&mut self, id: &str) {
        self.held.remove(id);
        self.waiting.retain(|waiting| waiting.claim.id != id);
    }

    /// Decides about those who wait: who holds room from now on, and whose time is over.
    pub fn settle(&mut self, now_ms: u64) -> Vec<(String, Result<(), Refusal>)> {
        let mut settled = Vec::new();
        self.admit(&mut settled);
        let (late, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|waiting| waiting.until_ms <= now_ms);
        self.waiting = waiting.into();
        for Waiting { claim, since_ms, .. } in late {
            let because = self.obstacle(&claim).unwrap_or(Why::Behind { claims: 1 });
            let why = Why::Late { waited_ms: now_ms.saturating_sub(since_ms), because: Box::new(because) };
            settled.push((claim.id, Err(Refusal { why: Box::new(why) })));
        }
        // Whoever stood behind one that is gone now.
        self.admit(&mut settled);
        settled
    }

    fn admit(&mut self, settled: &mut Vec<(String, Result<(), Refusal>)>) {
        while let Some(at) = self.next() {
            let Some(Waiting { claim, .. }) = self.waiting.remove(at) else { break };
            settled.push((claim.id.clone(), Ok(())));
            self.held.insert(claim.id.clone(), claim);
        }
    }

    /// The place of the claim that is to be admitted next.
    fn next(&self) -> Option<usize> {
        let mut seen = BTreeSet::new();
        let oldest = self.waiting.iter().enumerate().filter(|(_, waiting)| seen.insert(waiting.claim.uid));
        let fitting = oldest.filter(|(_, waiting)| self.obstacle(&waiting.claim).is_none());
        fitting.min_by_key(|(at, waiting)| (self.share(waiting.claim.uid), *at)).map(|(at, _)| at)
    }

    /// What of the budget a user holds, in [`SHARE_PARTS`].
    fn share(&self, uid: u32) -> u128 {
        let of = |kind: Kind| {
            let total = kind.of(self.total)?;
            let held = u128::from(self.sum(kind, |claim| claim.uid == uid));
            Some(held * SHARE_PARTS / u128::from(total.max(1)))
        };
        Kind::ALL.into_iter().filter_map(of).max().unwrap_or(0)
    }

    fn sum(&self, kind: Kind, is_counted: impl Fn(&Claim) -> bool) -> u64 {
        let amounts = self.held.values().filter(|claim| is_counted(claim)).filter_map(|claim| kind.of(claim.amounts));
        amounts.fold(0, u64::saturating_add)
    }

    /// Why a claim could not be met by the whole budget.
    fn never(&self, claim: &Claim) -> Option<Why> {
        Kind::ALL.into_iter().find_map(|kind| {
            let (asked, total) = (kind.of(claim.amounts)?, kind.of(self.total)?);
            (asked > total).then_some(Why::TooLarge { kind, asked, total })
        })
    }

    /// Why a claim cannot be met now.
    fn obstacle(&self, claim: &Claim) -> Option<Why> {
        if let Some(words) = &self.pressure {
            return Some(Why::Pressure { words: words.clone() });
        }
        Kind::ALL.into_iter().find_map(|kind| {
            let (asked, total) = (kind.of(claim.amounts)?, kind.of(self.total)?);
            let held = self.sum(kind, |_| true);
            (asked > 0 && held.saturating_add(asked) > total).then(|| self.short(claim, kind))
        })
    }

    fn short(&self, claim: &Claim, kind: Kind) -> Why {
        let total = kind.of(self.total).unwrap_or(0);
        let asked = kind.of(claim.amounts).unwrap_or(0);
        let others = self.held.values().filter(|other| other.id != claim.id);
        let (yours, theirs): (Vec<_>, Vec<_>) = others
            .filter_map(|other| Some((other, kind.of(other.amounts).filter(|amount| *amount > 0)?)))
            .partition(|(other, _)| other.uid == claim.uid);
        let held = self.sum(kind, |other| other.id != claim.id);
        Why::Short {
            kind,
            asked,
            free: total.saturating_sub(held),
            total,
            yours: Holders::of(&yours),
            others: Holders { largest: Vec::new(), ..Holders::of(&theirs) },
        }
    }
}

/// A kind of what is budgeted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Bytes.
    Memory,
    /// Processes and threads.
    Tasks,
    /// Percent of one core.
    Cpu,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 3] = [Kind::Memory, Kind::Tasks, Kind::Cpu];

    /// As options name it.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Memory => "memory",
            Kind::Tasks => "tasks",
            Kind::Cpu => "cpu",
        }
    }

    /// Its part of limits.
    pub const fn of(self, limits: Limits) -> Option<u64> {
        match self {
            Kind::Memory => limits.memory_bytes,
            Kind::Tasks => limits.tasks,
            Kind::Cpu => limits.cpu_percent,
        }
    }
}

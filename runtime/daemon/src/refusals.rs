//! How many refusals of one user are written down: everybody may ask, and a log that nothing bounds would let anybody fill the disk that the daemon lives on.
//!
//! Input: who was refused, and when. Output: whether this one is written, and how many before it were not, which its line then tells. Nothing is lost uncounted.

use std::collections::HashMap;

/// Refusals of one user that are written at once.
const BURST: u64 = 64;
/// Time in which one more may be written.
const REFILL_MS: u64 = 1000;
/// Users that are told apart; all further ones count as one.
const USERS_MAX: usize = 1024;

/// What each user has left.
#[derive(Default)]
pub struct Refusals {
    users: HashMap<u32, Budget>,
    further: Budget,
}

struct Budget {
    left: u64,
    /// When the last one was given back.
    since_ms: u64,
    unwritten: u64,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { left: BURST, since_ms: 0, unwritten: 0 }
    }
}

impl Budget {
    fn refill(&mut self, now_ms: u64) {
        let more = now_ms.saturating_sub(self.since_ms) / REFILL_MS;
        if more > 0 {
            self.left = self.left.saturating_add(more).min(BURST);
            self.since_ms = now_ms;
        }
    }
}

impl Refusals {
    /// How many of this user's went by unwritten since the last that was written, when this one is to be.
    pub fn take(&mut self, uid: u32, now_ms: u64) -> Option<u64> {
        if self.users.len() >= USERS_MAX && !self.users.contains_key(&uid) {
            // Who has been quiet for long begins anew.
            self.users.values_mut().for_each(|budget| budget.refill(now_ms));
            self.users.retain(|_, budget| budget.left < BURST || budget.unwritten > 0);
        }
        let has_room = self.users.len() < USERS_MAX || self.users.contains_key(&uid);
        let budget = if has_room { self.users.entry(uid).or_default() } else { &mut self.further };
        budget.refill(now_ms);
        if budget.left == 0 {
            budget.unwritten += 1;
            return None;
        }
        budget.left -= 1;
        Some(std::mem::take(&mut budget.unwritten))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_not_written() {
        let mut refusals = Refusals::default();
        let written = (0..10_000).filter(|_| refusals.take(7, 5_000).is_some()).count() as u64;
        assert_eq!(written, BURST);
        assert_eq!(refusals.take(8, 5_000), Some(0), "others are not touched");
        assert_eq!(refusals.take(7, 5_000 + REFILL_MS), Some(10_000 - BURST), "the next one tells of those");
        assert_eq!(refusals.take(7, 5_000 + REFILL_MS), None);
    }

    #[test]
    fn many_users_are_not_many_budgets() {
        let mut refusals = Refusals::default();
        let written = (0..100_000).filter(|uid| (0..3).any(|_| refusals.take(*uid, 5_000).is_some())).count();
        assert!(written <= USERS_MAX + BURST as usize, "{written}");
        assert!(refusals.users.len() <= USERS_MAX);
    }
}

//! How much of the server one user may have at once: connections, and requests under way.
//!
//! Everybody may connect, and a user may have many user ids (subuid(5)): so root and the daemon's own user have places of their own, which the others cannot take together.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Places for one kind of thing.
pub(crate) struct Seats {
    bounds: Bounds,
    taken: Mutex<Taken>,
}

/// How many there are.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    /// The user of the daemon, who has these places like root.
    pub own_uid: u32,
    pub own: usize,
    /// Of any other user.
    pub each: usize,
    /// Of all others together.
    pub others: usize,
}

impl Bounds {
    fn is_own(&self, uid: u32) -> bool {
        uid == self.own_uid || uid == 0
    }
}

#[derive(Default)]
struct Taken {
    users: HashMap<u32, usize>,
    others: usize,
}

/// One place, as long as it lasts.
pub(crate) struct Seat {
    seats: Arc<Seats>,
    uid: u32,
}

impl Seats {
    pub fn new(bounds: Bounds) -> Arc<Seats> {
        Arc::new(Seats { bounds, taken: Mutex::default() })
    }

    /// `None` when this user, or all others together, have as many as they may have.
    pub fn take(self: &Arc<Seats>, uid: u32) -> Option<Seat> {
        let Bounds { own, each, others, .. } = self.bounds;
        let mut taken = self.taken();
        let is_own = self.bounds.is_own(uid);
        let has = taken.users.get(&uid).copied().unwrap_or_default();
        if has >= if is_own { own } else { each } || (!is_own && taken.others >= others) {
            return None;
        }
        *taken.users.entry(uid).or_default() += 1;
        taken.others += usize::from(!is_own);
        drop(taken);
        Some(Seat { seats: Arc::clone(self), uid })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken();
        taken.others -= usize::from(!self.seats.bounds.is_own(self.uid));
        if let Entry::Occupied(mut count) = taken.users.entry(self.uid) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(seats: &Arc<Seats>, uid: u32, count: usize) -> Vec<Seat> {
        (0..count).filter_map(|_| seats.take(uid)).collect()
    }

    #[test]
    fn nobody_keeps_the_others_out_and_all_together_not_the_daemons_user() {
        let seats = Seats::new(Bounds { own_uid: 0, own: 3, each: 4, others: 6 });
        let mut first = take(&seats, 1, 9);
        let second = take(&seats, 2, 9);
        assert_eq!((first.len(), second.len(), take(&seats, 3, 9).len()), (4, 2, 0));
        assert_eq!(take(&seats, 0, 9).len(), 3, "whose places are its own");
        first.pop();
        assert_eq!(take(&seats, 3, 9).len(), 1);
        drop((first, second));
        assert!(seats.taken().users.is_empty(), "nothing is kept of users who left");
        assert_eq!(seats.taken().others, 0);
    }
}

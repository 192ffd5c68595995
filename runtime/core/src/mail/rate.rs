//! A bound on how many messages pass in a second. Input: the time. Output: whether one more passes.

/// What is left of a bound: at most a second's worth at once.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    a_second: i64,
    /// Thousandths of a message; below zero for what was taken ahead.
    left: i64,
    since_ms: u64,
}

impl Rate {
    /// So many in a second.
    pub const fn new(a_second: u32) -> Rate {
        let a_second = a_second as i64;
        Rate { a_second, left: a_second * 1000, since_ms: 0 }
    }

    /// Takes one. A clock that was set back gives nothing.
    pub fn take(&mut self, now_ms: u64) -> bool {
        let passed_ms = i64::try_from(now_ms.saturating_sub(self.since_ms)).unwrap_or(i64::MAX);
        let more = passed_ms.saturating_mul(self.a_second);
        self.left = self.left.saturating_add(more).min(self.a_second * 1000);
        self.since_ms = now_ms;
        let has_one = self.left >= 1000;
        if has_one {
            self.left -= 1000;
        }
        has_one
    }

    /// Takes so many that are not there yet, for work whose cost is known when it is done. They are waited for afterwards.
    pub fn owe(&mut self, count: u64) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.left = self.left.saturating_sub(count.saturating_mul(1000));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holds_so_many_and_no_more() {
        let mut rate = Rate::new(10);
        let taken = |rate: &mut Rate, now: u64| (0..100).filter(|_| rate.take(now)).count();
        assert_eq!(taken(&mut rate, 1_000_000), 10);
        assert_eq!(taken(&mut rate, 1_000_050), 0);
        assert_eq!(taken(&mut rate, 1_000_100), 1);
        assert_eq!(taken(&mut rate, 1_000_600), 5);
        assert_eq!(taken(&mut rate, 9_000_000), 10, "what was not used is not saved up");
        assert_eq!(taken(&mut rate, 1_000), 0, "set back");
        assert_eq!(taken(&mut rate, 2_000), 10);
    }

    #[test]
    fn what_was_dear_is_waited_for() {
        let mut rate = Rate::new(10);
        assert!(rate.take(1_000_000));
        rate.owe(29);
        assert!(!rate.take(1_000_000));
        assert!(!rate.take(1_002_000));
        assert!(rate.take(1_002_100));
        rate.owe(u64::MAX);
        assert!(!rate.take(9_000_000));
    }
}

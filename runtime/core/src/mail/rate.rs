//! A bound on how many messages pass in a second. Input: the time. Output: whether one more passes.

/// What is left of a bound: at most a second's worth at once.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    a_second: u64,
    /// Thousandths of a message.
    left: u64,
    since_ms: u64,
}

impl Rate {
    /// So many in a second.
    pub const fn new(a_second: u32) -> Rate {
        let a_second = a_second as u64;
        Rate { a_second, left: a_second * 1000, since_ms: 0 }
    }

    /// Takes one. A clock that was set back gives nothing.
    pub const fn take(&mut self, now_ms: u64) -> bool {
        let more = now_ms.saturating_sub(self.since_ms).saturating_mul(self.a_second);
        let left = self.left.saturating_add(more);
        let most = self.a_second * 1000;
        self.left = if left > most { most } else { left };
        self.since_ms = now_ms;
        if self.left < 1000 {
            return false;
        }
        self.left -= 1000;
        true
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
}

//! Counts over a sliding window. Input: times and digests of values; output: whether enough came together. Each window is bounded by its
//! rule's thresholds.

use std::collections::VecDeque;
use std::sync::Arc;

use super::rule::Criterion;
use crate::event::Event;
use crate::finding::EVIDENCE_MAX;

/// What was counted for one rule and one scope.
#[derive(Debug, Default)]
pub(super) struct Window {
    counters: Vec<Counter>,
    /// The last events.
    pub evidence: VecDeque<Arc<Event>>,
    /// How many events were counted since the window was last empty.
    pub counted: u64,
    /// How many others they are a share of.
    pub others: u64,
    last_ns: u64,
}

#[derive(Debug)]
enum Counter {
    /// Times of the last events.
    Events(VecDeque<u64>),
    /// Values and when each was seen last.
    Distinct(Vec<(u64, u64)>),
}

impl Window {
    /// An empty one for these thresholds.
    pub fn new(criteria: &[Criterion]) -> Self {
        let counter = |criterion: &Criterion| match criterion.field {
            None => Counter::Events(VecDeque::new()),
            Some(_) => Counter::Distinct(Vec::new()),
        };
        Window { counters: criteria.iter().map(counter).collect(), ..Window::default() }
    }

    /// Forgets what is out of date when nothing came for a whole window.
    pub fn freshen(&mut self, now_ns: u64, within_ns: u64) {
        if self.counted > 0 && now_ns.saturating_sub(self.last_ns) > within_ns {
            self.clear();
        }
    }

    /// Counts one event; `digest` gives the value of each threshold's field. True when all thresholds are reached.
    pub fn count(
        &mut self,
        event: &Arc<Event>,
        within_ns: u64,
        criteria: &[Criterion],
        digest: impl Fn(&Criterion) -> Option<u64>,
    ) -> bool {
        let now_ns = event.time_ns;
        self.freshen(now_ns, within_ns);
        self.last_ns = self.last_ns.max(now_ns);
        self.counted += 1;
        if self.evidence.len() >= EVIDENCE_MAX {
            self.evidence.pop_front();
        }
        self.evidence.push_back(Arc::clone(event));
        let since_ns = now_ns.saturating_sub(within_ns);
        let mut enough = true;
        for (counter, criterion) in self.counters.iter_mut().zip(criteria) {
            enough &= counter.add(now_ns, since_ns, criterion, &digest);
        }
        enough
    }

    /// Begins anew.
    pub fn clear(&mut self) {
        let kinds = std::mem::take(&mut self.counters).into_iter().map(|counter| match counter {
            Counter::Events(_) => Counter::Events(VecDeque::new()),
            Counter::Distinct(_) => Counter::Distinct(Vec::new()),
        });
        *self = Window { counters: kinds.collect(), ..Window::default() };
    }
}

impl Counter {
    fn add(
        &mut self,
        now_ns: u64,
        since_ns: u64,
        criterion: &Criterion,
        digest: &impl Fn(&Criterion) -> Option<u64>,
    ) -> bool {
        let enough = usize::try_from(criterion.at_least).unwrap_or(usize::MAX);
        match self {
            Counter::Events(times) => {
                if times.len() >= enough {
                    times.pop_front();
                }
                times.push_back(now_ns);
                times.len() >= enough && times.front().is_some_and(|first| *first >= since_ns)
            }
            Counter::Distinct(seen) => {
                let Some(value) = digest(criterion) else {
                    return seen.iter().filter(|(_, last)| *last >= since_ns).count() >= enough;
                };
                if let Some((_, last)) = seen.iter_mut().find(|(known, _)| *known == value) {
                    *last = now_ns;
                } else {
                    if seen.len() >= enough {
                        let oldest = seen.iter().enumerate().min_by_key(|(_, (_, last))| *last).map(|(index, _)| index);
                        seen.swap_remove(oldest.unwrap_or(0));
                    }
                    seen.push((value, now_ns));
                }
                seen.iter().filter(|(_, last)| *last >= since_ns).count() >= enough
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::What;

    fn event(time_ns: u64) -> Arc<Event> {
        let what = What::Fork { child: 1 };
        Arc::new(Event { time_ns, sandbox: 1, pid: 1, ppid: 1, uid: 0, comm: String::new(), what, error: None })
    }

    #[test]
    fn enough_events_in_time_are_enough() {
        let criteria = [Criterion { field: None, at_least: 3 }];
        let mut window = Window::new(&criteria);
        let mut add = |time| window.count(&event(time), 100, &criteria, |_| None);
        assert_eq!([0, 60, 120, 150, 155].map(&mut add), [false, false, false, true, true]);
    }

    #[test]
    fn a_value_that_comes_again_counts_once() {
        let criteria = [Criterion { field: Some(super::super::field::Field::Port), at_least: 3 }];
        let mut window = Window::new(&criteria);
        let mut add = |(time, value)| window.count(&event(time), 100, &criteria, |_| Some(value));
        assert_eq!([(0, 1), (1, 1), (2, 2), (3, 2), (4, 3)].map(&mut add), [false, false, false, false, true]);
        assert_eq!([(200, 4), (201, 5), (202, 4), (203, 6)].map(&mut add), [false, false, false, true]);
    }

    #[test]
    fn every_threshold_must_be_reached() {
        let field = Some(super::super::field::Field::Port);
        let criteria = [Criterion { field: None, at_least: 2 }, Criterion { field, at_least: 2 }];
        let mut window = Window::new(&criteria);
        let mut add = |(time, value)| window.count(&event(time), 100, &criteria, |_| Some(value));
        assert_eq!([(0, 1), (1, 1), (2, 2)].map(&mut add), [false, false, true]);
    }
}

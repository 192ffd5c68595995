//! Sequences that have begun. Input: steps that matched, with the values that they bind; output: the sequences that a step goes on. Each
//! rule has a bound of its own, so that one rule's flood takes nothing from another; the oldest go first and are counted.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::field::{Value, View, digest};
use super::rule::Step;
use crate::event::Event;
use crate::finding::EVIDENCE_MAX;

/// Sequences of one rule that may be under way.
pub(super) const SEQUENCES_MAX: usize = 4096;
/// Of these, such as wait for the same thing.
const ALIKE_MAX: usize = 64;

/// One that has begun.
#[derive(Clone, Debug)]
pub(super) struct Begun {
    serial: u64,
    values: Vec<Option<Value>>,
    /// Time of the first step.
    pub since_ns: u64,
    pub evidence: Vec<Arc<Event>>,
}

/// Those of one rule, by what they wait for.
#[derive(Debug, Default)]
pub(super) struct Sequences {
    waiting: HashMap<u64, Vec<Begun>>,
    order: VecDeque<(u64, u64)>,
    serials: u64,
    /// How many were forgotten for want of room.
    pub forgotten: u64,
}

/// Which step of which order, and whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub order: usize,
    pub step: usize,
    pub scope: u64,
}

impl Sequences {
    /// The sequences that wait for this event at this place and are not older than `within_ns`.
    pub fn reached(&self, place: Place, step: &Step, view: &View<'_>, within_ns: u64) -> Vec<Begun> {
        let Some(values) = step.agree.iter().map(|(_, field)| view.value(*field)).collect::<Option<Vec<_>>>() else {
            return Vec::new();
        };
        let Some(alike) = self.waiting.get(&key(place, values.iter().map(Some))) else { return Vec::new() };
        let agrees = |begun: &&Begun| {
            let mut wanted = step.agree.iter().zip(&values);
            view.event.time_ns.saturating_sub(begun.since_ns) <= within_ns
                && wanted.all(|((variable, _), value)| begun.values[*variable].as_ref() == Some(value))
        };
        alike.iter().filter(agrees).cloned().collect()
    }

    /// Takes a step: a new sequence, or one of `reached` that goes on. `next` is the step that it waits for then. False when a value
    /// that the step binds is not there.
    pub fn advance(
        &mut self,
        begun: Option<Begun>,
        (step, variables): (&Step, usize),
        (place, next): (Place, &Step),
        view: &View<'_>,
        event: &Arc<Event>,
    ) -> bool {
        let fresh =
            || Begun { serial: 0, values: vec![None; variables], since_ns: event.time_ns, evidence: Vec::new() };
        let mut begun = begun.unwrap_or_else(fresh);
        for (variable, field) in &step.set {
            match view.value(*field) {
                Some(value) => begun.values[*variable] = Some(value),
                None => return false,
            }
        }
        if begun.evidence.len() < EVIDENCE_MAX {
            begun.evidence.push(Arc::clone(event));
        }
        let key = key(place, next.agree.iter().map(|(variable, _)| begun.values[*variable].as_ref()));
        self.keep(key, begun);
        true
    }

    fn keep(&mut self, key: u64, mut begun: Begun) {
        let alike = self.waiting.entry(key).or_default();
        if let Some(known) = alike.iter_mut().find(|known| known.values == begun.values) {
            known.since_ns = begun.since_ns;
            known.evidence = begun.evidence;
            return;
        }
        self.serials += 1;
        begun.serial = self.serials;
        if alike.len() >= ALIKE_MAX {
            alike.remove(0);
            self.forgotten += 1;
        }
        alike.push(begun);
        self.order.push_back((key, self.serials));
        if self.order.len() > SEQUENCES_MAX {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((key, serial)) = self.order.pop_front() else { return };
        let Some(alike) = self.waiting.get_mut(&key) else { return };
        let before = alike.len();
        alike.retain(|begun| begun.serial != serial);
        self.forgotten += (before - alike.len()) as u64;
        if alike.is_empty() {
            self.waiting.remove(&key);
        }
    }
}

fn key<'v>(place: Place, values: impl Iterator<Item = Option<&'v Value>>) -> u64 {
    digest(&(place, values.collect::<Vec<_>>()))
}

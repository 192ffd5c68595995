//! The engine: rules over a stream of events. Input: one event after the other; output: findings. Time is that of the events, state is
//! bounded, and what had to be forgotten is counted. It acts on nothing.

use std::cell::OnceCell;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;

use super::Rules;
use super::field::{View, digest};
use super::kind::Kind;
use super::process::Processes;
use super::rule::{Match, Rule, Scope};
use super::sequence::{Place, Sequences};
use super::window::Window;
use crate::event::Event;
use crate::finding::{Detector, EVIDENCE_MAX, Finding};

/// Counts under way of one rule, which its sandbox may choose by the values that they are apart for; and rules that are held down.
const WINDOWS_MAX: usize = 4096;
const HOLDS_MAX: usize = 4096;

/// What was forgotten for want of room; such things can no longer be found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Living processes.
    pub processes: u64,
    /// Sequences that had begun.
    pub sequences: u64,
    /// Counts under way.
    pub windows: u64,
    /// Rules that were held down.
    pub holds: u64,
}

/// Rules at work.
#[derive(Debug)]
pub struct Engine {
    rules: Vec<Rule>,
    /// What looks at each kind of event.
    looks: Vec<Vec<Look>>,
    processes: Processes,
    sequences: Vec<Sequences>,
    windows: Vec<Limited<u64, Window>>,
    holds: Limited<(usize, u64), Hold>,
}

/// One place in one rule.
#[derive(Clone, Copy, Debug)]
enum Look {
    Step { rule: usize, order: usize, step: usize },
    Share { rule: usize },
}

/// A finding was told; what follows is counted.
#[derive(Debug)]
struct Hold {
    until_ns: u64,
    counted: u64,
}

/// A map with a bound; what came first goes first.
#[derive(Debug)]
struct Limited<K, T> {
    map: HashMap<K, T>,
    order: VecDeque<K>,
    max: usize,
    forgotten: u64,
}

impl<K: Copy + Eq + Hash, T> Limited<K, T> {
    fn new(max: usize) -> Self {
        Limited { map: HashMap::new(), order: VecDeque::new(), max, forgotten: 0 }
    }

    fn entry(&mut self, key: K, new: impl FnOnce() -> T) -> &mut T {
        if !self.map.contains_key(&key) {
            if self.map.len() >= self.max
                && let Some(oldest) = self.order.pop_front()
            {
                self.map.remove(&oldest);
                self.forgotten += 1;
            }
            self.order.push_back(key);
        }
        self.map.entry(key).or_insert_with(new)
    }
}

/// A step or a whole rule that an event completed.
struct Completion {
    rule: usize,
    evidence: Vec<Arc<Event>>,
}

impl Engine {
    /// Rules at work for a sandbox with this profile.
    pub fn new(rules: Rules, profile: Option<&str>) -> Engine {
        let mut rules = rules.into_rules();
        for rule in &mut rules {
            rule.exceptions.retain(|exception| {
                exception.profiles.is_empty() || exception.profiles.iter().any(|known| Some(known.as_str()) == profile)
            });
        }
        let mut looks = vec![Vec::new(); Kind::COUNT];
        for kind in Kind::all() {
            for (index, rule) in rules.iter().enumerate() {
                looks[kind.index()].extend(looks_of(index, rule, kind));
            }
        }
        Engine {
            sequences: rules.iter().map(|_| Sequences::default()).collect(),
            windows: rules.iter().map(|_| Limited::new(WINDOWS_MAX)).collect(),
            rules,
            looks,
            processes: Processes::default(),
            holds: Limited::new(HOLDS_MAX),
        }
    }

    /// Takes in one event. Events of one process come in the order of time.
    pub fn observe(&mut self, event: &Event) -> Vec<Finding> {
        self.processes.learn(event);
        let completions = match self.processes.get(event.pid) {
            Some(_) if event.pid != 0 => self.look(event),
            _ => Vec::new(),
        };
        let mut findings = Vec::new();
        for completion in completions {
            findings.extend(self.conclude(event, completion));
        }
        self.processes.settle(event);
        findings
    }

    /// What was forgotten so far.
    pub fn forgotten(&self) -> Forgotten {
        Forgotten {
            processes: self.processes.forgotten,
            sequences: self.sequences.iter().map(|sequences| sequences.forgotten).sum(),
            windows: self.windows.iter().map(|windows| windows.forgotten).sum(),
            holds: self.holds.forgotten,
        }
    }

    fn look(&mut self, event: &Event) -> Vec<Completion> {
        let kind = Kind::of(&event.what);
        let Some(process) = self.processes.get(event.pid) else { return Vec::new() };
        let view = View { event, kind, processes: &self.processes, process };
        // One copy for all rules that keep it, and none when no rule does.
        let kept = OnceCell::new();
        let keep = || Arc::clone(kept.get_or_init(|| Arc::new(event.clone())));
        let mut done: Vec<Completion> = Vec::new();
        for look in &self.looks[kind.index()] {
            match *look {
                Look::Share { rule: index } => {
                    let rule = &self.rules[index];
                    let Some(window) = self.windows[index].map.get_mut(&rule.window_of(&view)) else { continue };
                    if rule.share.as_ref().is_some_and(|share| any(&share.of, &view)) {
                        window.others += 1;
                    }
                }
                Look::Step { rule: index, order, step } => {
                    let rule = &self.rules[index];
                    // One event completes a rule once, whatever orders its steps have.
                    if done.last().is_some_and(|completion| completion.rule == index) {
                        continue;
                    }
                    let steps = &rule.orders[order];
                    if !any(&steps[step].matches, &view) || rule.excepts(&view) {
                        continue;
                    }
                    let place = (order, step);
                    let evidence = follow(&mut self.sequences[index], rule, place, &view, &keep);
                    let Some(evidence) = evidence else { continue };
                    let counted = if rule.criteria.is_empty() {
                        Some(evidence)
                    } else {
                        count(&mut self.windows[index], rule, &view, &keep)
                    };
                    done.extend(counted.map(|evidence| Completion { rule: index, evidence }));
                }
            }
        }
        done
    }

    fn conclude(&mut self, event: &Event, completion: Completion) -> Option<Finding> {
        let rule = &self.rules[completion.rule];
        let root = self.processes.get(event.pid).map_or(0, |process| process.root);
        let counted = completion.evidence.len() as u64;
        let key = (completion.rule, digest(&(event.sandbox, root)));
        let hold = self.holds.entry(key, || Hold { until_ns: 0, counted: 0 });
        hold.counted += counted;
        if event.time_ns < hold.until_ns {
            return None;
        }
        hold.until_ns = event.time_ns.saturating_add(rule.hold_ns);
        let count = std::mem::take(&mut hold.counted);
        Some(Finding {
            time_ns: event.time_ns,
            sandbox: event.sandbox,
            detector: Detector::Rule { id: rule.id.clone(), origin: rule.origin.to_string() },
            title: rule.title.clone(),
            explanation: rule.explanation.clone(),
            severity: rule.severity,
            techniques: rule.techniques.clone(),
            ancestry: self.processes.ancestry(event.pid),
            evidence: completion.evidence.iter().take(EVIDENCE_MAX).map(|event| Event::clone(event)).collect(),
            count,
        })
    }
}

fn any(matches: &[Match], view: &View<'_>) -> bool {
    matches.iter().any(|one| one.takes(view))
}

fn looks_of(index: usize, rule: &Rule, kind: Kind) -> Vec<Look> {
    let looks_at = |matches: &[Match]| matches.iter().any(|one| one.looks_at(kind));
    let mut looks = Vec::new();
    if rule.share.as_ref().is_some_and(|share| looks_at(&share.of)) {
        looks.push(Look::Share { rule: index });
    }
    for (order, steps) in rule.orders.iter().enumerate() {
        // The last step first: an event that is both ends what was begun before it begins anew.
        for (step, _) in steps.iter().enumerate().rev().filter(|(_, step)| looks_at(&step.matches)) {
            looks.push(Look::Step { rule: index, order, step });
        }
    }
    looks
}

/// Goes on with the sequences of a rule; the events of one that this event completed.
fn follow(
    sequences: &mut Sequences,
    rule: &Rule,
    (order, index): (usize, usize),
    view: &View<'_>,
    keep: &impl Fn() -> Arc<Event>,
) -> Option<Vec<Arc<Event>>> {
    let steps = &rule.orders[order];
    let step = &steps[index];
    if steps.len() == 1 {
        return Some(vec![keep()]);
    }
    let next = steps.get(index + 1);
    let own = rule.scope.of(view);
    if index == 0 {
        let next = next?;
        let place = Place { order, step: 1, scope: own };
        sequences.advance(None, (step, rule.variables), (place, next), view, &keep());
        return None;
    }
    let mut scopes = vec![own];
    if rule.scope == Scope::Lineage {
        scopes.extend(view.processes.ancestors(view.process).map(|process| u64::from(process.pid)));
    }
    for scope in scopes {
        for mut begun in sequences.reached(Place { order, step: index, scope }, step, view, rule.within_ns) {
            let Some(next) = next else {
                begun.evidence.push(keep());
                return Some(begun.evidence);
            };
            let place = Place { order, step: index + 1, scope: own };
            sequences.advance(Some(begun), (step, rule.variables), (place, next), view, &keep());
        }
    }
    None
}

/// Counts a completion; the events of a window that is full.
fn count(
    windows: &mut Limited<u64, Window>,
    rule: &Rule,
    view: &View<'_>,
    keep: &impl Fn() -> Arc<Event>,
) -> Option<Vec<Arc<Event>>> {
    let window = windows.entry(rule.window_of(view), || Window::new(&rule.criteria));
    let is_full = window.count(&keep(), rule.within_ns, &rule.criteria, |criterion| {
        criterion.field.and_then(|field| view.digest(field))
    });
    let is_share = rule.share.as_ref().is_none_or(|share| {
        // The event that opened the window was not among the others yet.
        let of = window.others.max(window.counted);
        window.counted * 100 >= of * share.percent
    });
    if !is_full || !is_share {
        return None;
    }
    let evidence = window.evidence.drain(..).collect();
    window.clear();
    Some(evidence)
}

//! How unusual a run is against its model, and which features make it so.

use std::collections::{BTreeMap, BTreeSet};

use super::model::Model;
use super::stats::{Spread, divergence, log, surprise};
use super::summary::{Class, RunSummary};
use crate::finding::{Moved, Severity};

/// The threshold is at least this, however calm the calibrating runs were: one new directory is no alarm.
const THRESHOLD_MIN: f64 = 3.0;
/// What a run must score above the highest of the calibrating ones. It only lowers the rate of false alarms.
const MARGIN: f64 = 1.1;
/// Least spread of the logarithm of a total: a quarter more or less is nothing.
const TOTAL_FLOOR: f64 = 0.25;
/// The same of a busiest second, which depends on the machine's load as well.
const PEAK_FLOOR: f64 = 0.5;
/// Least spread of the divergence of a mix.
const MIX_FLOOR: f64 = 0.02;
/// Least spread of the mean surprise of a transition, in nats.
const ORDER_FLOOR: f64 = 0.1;
/// Fewest calls or transitions of which a mix or an order is judged.
const MIX_MIN: u64 = 50;
/// What each transition is taken to have been seen beforehand, so that none is impossible.
const SMOOTHING: f64 = 0.5;
/// From this score on, severity is high.
const FAR: f64 = 3.0;
/// Most features that are told.
const MOVED_MAX: usize = 12;
/// Most new names that a feature tells.
const NAMED_MAX: usize = 5;

/// A judgement.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Against the threshold 1: above it is an alarm.
    pub value: f64,
    /// Which features moved, the furthest first.
    pub moved: Vec<Moved>,
    /// What an alarm would be.
    pub severity: Severity,
}

/// A model made ready to judge.
#[derive(Debug)]
pub struct Judge {
    totals: BTreeMap<String, Spread>,
    peaks: BTreeMap<String, Spread>,
    calls: BTreeMap<String, Spread>,
    /// Names of the learned runs alone: what calibrates.
    learned: BTreeMap<Class, BTreeSet<String>>,
    /// Names of all runs: what judges. Knowing more can only lower a score, so the threshold holds for it too.
    known: BTreeMap<Class, BTreeSet<String>>,
    /// How many new names of each class a run is expected to bring.
    expected: BTreeMap<Class, f64>,
    pooled: Pooled,
    mix: Spread,
    order: Spread,
    threshold: f64,
    rate: f64,
}

/// Counts of several runs as one.
#[derive(Debug, Default)]
struct Pooled {
    calls: BTreeMap<String, u64>,
    transitions: BTreeMap<String, u64>,
    /// Transitions that begin with each kind of event.
    from: BTreeMap<String, u64>,
}

/// One feature that lies above what is expected.
struct Feature {
    group: &'static str,
    name: String,
    /// In robust standard deviations, weighted.
    distance: f64,
    expected: String,
    seen: String,
}

impl Judge {
    /// The judge of a model; `None` with too few runs to alarm.
    pub fn new(model: &Model) -> Option<Judge> {
        let rate = model.false_alarms_max()?;
        let (learned, calibrating) = model.split();
        let pooled = Pooled::of(&learned);
        // Each learned run against the others: against a pool that holds itself it would look too usual.
        let rest = |index: usize| {
            let others = learned.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, run)| *run);
            Pooled::of(&others.collect::<Vec<_>>())
        };
        let rests: Vec<Pooled> = (0..learned.len()).map(rest).collect();
        let each = |measure: fn(&Pooled, &RunSummary) -> f64| -> Vec<f64> {
            rests.iter().zip(&learned).map(|(rest, run)| measure(rest, run)).collect()
        };
        let mut judge = Judge {
            totals: spreads(&learned, TOTAL_FLOOR, |run| run.tallies.iter().map(|(name, tally)| (name, tally.total))),
            peaks: spreads(&learned, PEAK_FLOOR, |run| run.tallies.iter().map(|(name, tally)| (name, tally.peak))),
            calls: spreads(&learned, TOTAL_FLOOR, |run| run.calls.iter().map(|(name, count)| (name, *count))),
            learned: names(&learned),
            known: names(&model.runs.iter().collect::<Vec<_>>()),
            expected: Class::ALL.into_iter().map(|class| (class, unseen(&learned, class))).collect(),
            mix: Spread::of(&each(Pooled::mix), MIX_FLOOR),
            order: Spread::of(&each(Pooled::order), ORDER_FLOOR),
            pooled,
            threshold: THRESHOLD_MIN,
            rate,
        };
        let scores = calibrating.iter().map(|run| size(&judge.features(run, &judge.learned, true)));
        judge.threshold = (MARGIN * scores.fold(0.0, f64::max)).max(THRESHOLD_MIN);
        Some(judge)
    }

    /// The highest probability of an alarm about a run that is like those of the model.
    pub fn false_alarms_max(&self) -> f64 {
        self.rate
    }

    /// Whether a name is one of the model's.
    pub fn knows(&self, class: Class, name: &str) -> bool {
        self.known.get(&class).is_some_and(|known| known.contains(name))
    }

    /// Judges a run, or the part of it that was seen. A part never scores above the whole.
    pub fn score(&self, run: &RunSummary, is_whole: bool) -> Score {
        let mut features = self.features(run, &self.known, is_whole);
        features.sort_by(|one, other| other.distance.total_cmp(&one.distance).then_with(|| one.name.cmp(&other.name)));
        let value = size(&features) / self.threshold;
        let is_new = |class: Class| run.of(class).any(|name| !self.knows(class, name));
        let severity = match value >= FAR || is_new(Class::Program) && is_new(Class::Peer) {
            true => Severity::High,
            false => Severity::Medium,
        };
        let sum: f64 = features.iter().map(|feature| feature.distance.powi(2)).sum();
        let moved = features.into_iter().take(MOVED_MAX).map(|feature| Moved {
            weight: feature.distance.powi(2) / sum,
            feature: feature.name,
            expected: feature.expected,
            seen: feature.seen,
        });
        Score { value, moved: moved.collect(), severity }
    }

    fn features(&self, run: &RunSummary, known: &BTreeMap<Class, BTreeSet<String>>, is_whole: bool) -> Vec<Feature> {
        let mut features = Vec::new();
        for (name, tally) in &run.tallies {
            features.extend(count("totals", &self.totals, name, tally.total, TOTAL_FLOOR, name.clone()));
            let words = format!("{name} in the busiest second");
            features.extend(count("peaks", &self.peaks, name, tally.peak, PEAK_FLOOR, words));
        }
        for (name, calls) in &run.calls {
            features.extend(count("calls", &self.calls, name, *calls, TOTAL_FLOOR, format!("calls of {name}")));
        }
        features.extend(Class::ALL.into_iter().filter_map(|class| self.novelty(run, known, class)));
        if run.overflow > 0 {
            let distance = log(run.overflow);
            let (expected, seen) = ("none".to_owned(), run.overflow.to_string());
            let name = "names beyond the limit of a summary".to_owned();
            features.push(Feature { group: "overflow", name, distance, expected, seen });
        }
        if is_whole {
            let mix = self.pooled.mix(run);
            features.extend(shape("mix of system calls", &self.mix, mix));
            features.extend(shape("order of events", &self.order, self.pooled.order(run)));
        }
        features
    }

    fn novelty(&self, run: &RunSummary, known: &BTreeMap<Class, BTreeSet<String>>, class: Class) -> Option<Feature> {
        let known = known.get(&class);
        let new: Vec<&String> = run.of(class).filter(|name| known.is_none_or(|known| !known.contains(*name))).collect();
        let mean = self.expected.get(&class).copied().unwrap_or(SMOOTHING);
        let distance = weight(class) * surprise(new.len() as u64, mean);
        (distance > 0.0).then(|| {
            let told: Vec<&str> = new.iter().take(NAMED_MAX).map(|name| name.as_str()).collect();
            let rest = new.len() - told.len();
            let rest = if rest > 0 { format!(" and {rest} more") } else { String::new() };
            Feature {
                group: class.words(),
                name: format!("new {}", class.words()),
                distance,
                expected: format!("{mean:.2} beyond the {} known", known.map_or(0, BTreeSet::len)),
                seen: format!("{}: {}{rest}", new.len(), told.join(", ")),
            }
        })
    }
}

/// What a new name of a class weighs. Programs, peers and refusals are few and mean much; directories and transitions come by chance.
fn weight(class: Class) -> f64 {
    match class {
        Class::Program | Class::Peer | Class::Refusal => 2.0,
        Class::Call => 1.5,
        Class::Place | Class::Transition => 1.0,
    }
}

/// The furthest of each group count, as legs of right angles: several groups that moved are worse than one, many alike features are not.
fn size(features: &[Feature]) -> f64 {
    let mut groups: BTreeMap<&str, f64> = BTreeMap::new();
    for feature in features {
        let furthest = groups.entry(feature.group).or_default();
        *furthest = furthest.max(feature.distance);
    }
    groups.values().fold(0.0, |sum: f64, distance| sum + distance.powi(2)).sqrt()
}

fn count(
    group: &'static str,
    spreads: &BTreeMap<String, Spread>,
    key: &str,
    count: u64,
    floor: f64,
    name: String,
) -> Option<Feature> {
    let never = scaled(Spread { median: 0.0, scale: floor });
    let spread = spreads.get(key).copied().unwrap_or(never);
    let distance = spread.above(log(count));
    (distance > 0.0).then(|| Feature {
        group,
        name,
        distance,
        expected: format!("about {:.0}", spread.median.exp_m1()),
        seen: count.to_string(),
    })
}

fn shape(name: &'static str, spread: &Spread, value: f64) -> Option<Feature> {
    let distance = spread.above(value);
    let words = |value: f64| format!("{value:.3}");
    (distance > 0.0).then(|| Feature {
        group: name,
        name: format!("{name}: distance from the model's"),
        distance,
        expected: words(spread.median),
        seen: words(value),
    })
}

fn spreads<'a, I>(runs: &[&'a RunSummary], floor: f64, counts: impl Fn(&'a RunSummary) -> I) -> BTreeMap<String, Spread>
where
    I: Iterator<Item = (&'a String, u64)>,
{
    let mut values: BTreeMap<&String, Vec<f64>> = BTreeMap::new();
    for run in runs {
        for (name, count) in counts(run) {
            values.entry(name).or_default().push(log(count));
        }
    }
    let spread = |mut values: Vec<f64>| {
        // A run without it has 0 of it.
        values.resize(runs.len(), 0.0);
        scaled(Spread::of(&values, floor))
    };
    values.into_iter().map(|(name, values)| (name.clone(), spread(values))).collect()
}

/// Small counts vary by chance: the logarithm of a Poisson count of mean m has a spread of about 1/sqrt(m), which few runs may not show.
fn scaled(spread: Spread) -> Spread {
    let chance = (1.0 + spread.median.exp_m1()).sqrt().recip();
    Spread { scale: spread.scale.max(chance), ..spread }
}

fn names(runs: &[&RunSummary]) -> BTreeMap<Class, BTreeSet<String>> {
    let all = |class: Class| runs.iter().flat_map(|run| run.of(class)).cloned().collect();
    Class::ALL.into_iter().map(|class| (class, all(class))).collect()
}

/// How many names a further run brings that none had, after Good and Turing: as many as one run alone had, for each run.
fn unseen(runs: &[&RunSummary], class: Class) -> f64 {
    let mut seen: BTreeMap<&String, u64> = BTreeMap::new();
    for name in runs.iter().flat_map(|run| run.of(class)) {
        *seen.entry(name).or_default() += 1;
    }
    let once = seen.values().filter(|count| **count == 1).count();
    (once as f64 + SMOOTHING) / (runs.len() as f64 + 1.0)
}

impl Pooled {
    fn of(runs: &[&RunSummary]) -> Pooled {
        let mut pooled = Pooled::default();
        for run in runs {
            add(&mut pooled.calls, &run.calls);
            add(&mut pooled.transitions, &run.transitions);
        }
        for (transition, count) in &pooled.transitions {
            let sum = pooled.from.entry(from(transition).to_owned()).or_default();
            *sum = sum.saturating_add(*count);
        }
        pooled
    }

    fn mix(&self, run: &RunSummary) -> f64 {
        if run.calls.values().fold(0u64, |sum, count| sum.saturating_add(*count)) < MIX_MIN {
            return 0.0;
        }
        divergence(&run.calls, &self.calls)
    }

    /// How surprising a transition of the run is on average, by the chain of the pool.
    fn order(&self, run: &RunSummary) -> f64 {
        let total: f64 = run.transitions.values().map(|count| *count as f64).sum();
        if total < MIX_MIN as f64 {
            return 0.0;
        }
        let kinds = self.from.len() as f64 + 1.0;
        let surprise = |(transition, count): (&String, &u64)| {
            let seen = self.transitions.get(transition).copied().unwrap_or(0) as f64 + SMOOTHING;
            let all = self.from.get(from(transition)).copied().unwrap_or(0) as f64 + SMOOTHING * kinds;
            *count as f64 * -(seen / all).ln()
        };
        run.transitions.iter().map(surprise).sum::<f64>() / total
    }
}

fn from(transition: &str) -> &str {
    transition.split_once('>').map_or(transition, |(from, _)| from)
}

fn add(sums: &mut BTreeMap<String, u64>, counts: &BTreeMap<String, u64>) {
    for (name, count) in counts {
        let sum = sums.entry(name.clone()).or_default();
        *sum = sum.saturating_add(*count);
    }
}

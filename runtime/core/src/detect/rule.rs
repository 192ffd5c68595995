//! A rule as the engine uses it. Input: what `compile` made of a file; output: whether an event matches.

use std::sync::Arc;

use super::field::{Field, View, digest};
use super::kind::Kind;
use super::pattern::{Numbers, Texts};
use crate::event::What;
use crate::finding::Severity;
use crate::policy::Origin;

/// One rule.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub id: String,
    pub origin: Origin,
    pub title: String,
    pub explanation: String,
    pub severity: Severity,
    pub techniques: Vec<String>,
    pub scope: Scope,
    pub within_ns: u64,
    pub hold_ns: u64,
    /// One order of the steps, or every one where the order does not matter.
    pub orders: Vec<Vec<Step>>,
    /// How many values the steps bind.
    pub variables: usize,
    /// What completions of the steps must come to; empty when one is enough.
    pub criteria: Vec<Criterion>,
    /// Completions are counted apart for each value of this field.
    pub per: Option<Field>,
    pub share: Option<Share>,
    pub exceptions: Vec<Exception>,
    /// Which bytes of its file it takes up, for its malformed cases.
    pub span: std::ops::Range<usize>,
}

/// Whose events belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// One process.
    Process,
    /// A process and those born of it: a later step may be done by a descendant of who did the first.
    Lineage,
    /// Processes that one started.
    Siblings,
    /// All that descend from one topmost process.
    Tree,
    /// The sandbox.
    Sandbox,
}

impl Scope {
    /// By the words of a rule.
    pub const NAMES: [(&'static str, Scope); 5] = [
        ("process", Scope::Process),
        ("lineage", Scope::Lineage),
        ("siblings", Scope::Siblings),
        ("tree", Scope::Tree),
        ("sandbox", Scope::Sandbox),
    ];

    /// Whose the event of this view is.
    pub fn of(self, view: &View<'_>) -> u64 {
        match self {
            Scope::Process | Scope::Lineage => u64::from(view.event.pid),
            Scope::Siblings => u64::from(view.processes.starter(view.process)),
            Scope::Tree => u64::from(view.process.root),
            Scope::Sandbox => view.event.sandbox,
        }
    }
}

/// One step of a sequence.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// Any of them.
    pub matches: Arc<[Match]>,
    /// Variables that an earlier step set: the fields must have those values.
    pub agree: Vec<(usize, Field)>,
    /// Variables that this step sets.
    pub set: Vec<(usize, Field)>,
}

/// How much it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Criterion {
    /// Distinct values of this field; completions themselves for none.
    pub field: Option<Field>,
    pub at_least: u64,
}

/// Which part of other events the counted ones must be.
#[derive(Clone, Debug)]
pub(super) struct Share {
    pub of: Arc<[Match]>,
    pub percent: u64,
}

/// Events that a rule does not look at.
#[derive(Clone, Debug)]
pub(super) struct Exception {
    /// Only for these profiles; empty for all.
    pub profiles: Vec<String>,
    pub matches: Match,
}

/// Predicates that all must hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Match {
    /// Bit per [`Kind`]; 0 for all.
    pub kinds: u64,
    pub flags: Vec<(Field, bool)>,
    pub numbers: Vec<(Field, Numbers)>,
    pub texts: Vec<(Field, Arc<Texts>)>,
    /// All of them must hold.
    pub all: Vec<Match>,
    /// One of them must hold, where there are any.
    pub any: Vec<Match>,
    /// None of them may hold.
    pub not: Vec<Match>,
    /// Whether it or one inside of it speaks of failure.
    pub asks_failure: bool,
}

impl Match {
    /// Whether events of this kind can match.
    pub const fn looks_at(&self, kind: Kind) -> bool {
        self.kinds == 0 || self.kinds & 1 << kind.index() != 0
    }

    /// Whether an event matches that a rule looks at. An exec that failed executed nothing: only who speaks of failure means it.
    pub fn takes(&self, view: &View<'_>) -> bool {
        let is_failed_exec = view.event.error.is_some() && matches!(view.event.what, What::Exec { .. });
        (self.asks_failure || !is_failed_exec) && self.holds(view)
    }

    /// Whether the event matches. What costs least is asked first.
    pub fn holds(&self, view: &View<'_>) -> bool {
        self.looks_at(view.kind)
            && self.flags.iter().all(|(field, wanted)| view.flag(*field) == Some(*wanted))
            && self.numbers.iter().all(|(field, ranges)| view.number(*field).is_some_and(|n| ranges.matches(n)))
            && self.texts.iter().all(|(field, texts)| view.any_text(*field, &mut |text| texts.matches(text)))
            && self.all.iter().all(|one| one.holds(view))
            && (self.any.is_empty() || self.any.iter().any(|one| one.holds(view)))
            && !self.not.iter().any(|one| one.holds(view))
    }
}

impl Rule {
    /// Which of its windows counts the event of this view.
    pub fn window_of(&self, view: &View<'_>) -> u64 {
        // Counted by descent would be counted by the topmost process.
        let scope = if self.scope == Scope::Lineage { Scope::Tree } else { self.scope };
        self.per.map_or(scope.of(view), |field| digest(&(scope.of(view), view.digest(field))))
    }

    /// Whether an exception takes the event out.
    pub fn excepts(&self, view: &View<'_>) -> bool {
        self.exceptions.iter().any(|exception| exception.matches.holds(view))
    }
}

impl Rule {
    /// Compiles every pattern now.
    pub fn check(&self) -> Result<(), String> {
        let steps = self.orders.iter().flatten().flat_map(|step| step.matches.iter());
        let share = self.share.iter().flat_map(|share| share.of.iter());
        let exceptions = self.exceptions.iter().map(|exception| &exception.matches);
        steps.chain(share).chain(exceptions).try_for_each(Match::check)
    }
}

impl Match {
    fn check(&self) -> Result<(), String> {
        self.texts.iter().try_for_each(|(_, texts)| texts.check())?;
        self.all.iter().chain(&self.any).chain(&self.not).try_for_each(Match::check)
    }
}

//! What is done about a finding. Input: facts, the finding's severity and title, the configured reactions; output: a planned transition, or
//! nothing where nothing more is to be done. A reaction that cannot be carried out is replaced by freezing, never by nothing.
//!
//! No flapping: what is in force already is not done again, and a sandbox that was tightened [`Reactions::flaps_max`] times is
//! not relaxed by anything automatic any more.

use serde::{Deserialize, Serialize};

use super::{Asker, Facts, Limits, ModeDefaults, Refusal, Shut, Transition, Wish, plan};
use crate::finding::Severity;
use crate::policy::Mode;

/// What is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reaction {
    /// It is told.
    #[default]
    Warn,
    /// All processes are held.
    Freeze,
    /// The network is cut off.
    CutNetwork,
    /// These switches are turned off.
    Shut(Shut),
    /// Limits are lowered to these, where they are higher.
    Tighten(Limits),
    /// The mode becomes isolation.
    Isolate,
    /// The sandbox is ended.
    Kill,
}

/// Which reaction to which severity. What is below medium is only ever told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reactions {
    /// To severity medium.
    pub medium: Reaction,
    /// To severity high.
    pub high: Reaction,
    /// To severity critical.
    pub critical: Reaction,
    /// How long nothing automatic relaxes what a finding tightened.
    pub hold_down_ms: u64,
    /// After how many tightenings that hold no longer ends by itself; 0 for never.
    pub flaps_max: u32,
}

impl Default for Reactions {
    /// Tell of everything and do nothing: whoever wants more says so.
    fn default() -> Self {
        Reactions {
            medium: Reaction::Warn,
            high: Reaction::Warn,
            critical: Reaction::Warn,
            hold_down_ms: 10 * 60 * 1000,
            flaps_max: 3,
        }
    }
}

impl Reactions {
    /// The reaction to a severity.
    pub const fn to(&self, severity: Severity) -> Reaction {
        match severity {
            Severity::Informational | Severity::Low => Reaction::Warn,
            Severity::Medium => self.medium,
            Severity::High => self.high,
            Severity::Critical => self.critical,
        }
    }
}

/// What of a finding decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    /// How bad.
    pub severity: Severity,
    /// What it is, in one line.
    pub title: &'a str,
}

/// What is to be done about a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The steps; never empty.
    pub transition: Transition,
    /// Title of the finding.
    pub because: String,
    /// Until when nothing automatic relaxes it; `u64::MAX` when that does not end by itself.
    pub hold_until_ms: u64,
    /// Why the configured reaction could not be carried out, where freezing takes its place.
    pub instead_of: Option<Refusal>,
}

/// What is to be done; `None` when it is only told, is in force already, or there is nothing to act on. A sandbox in state creating
/// can only be killed: ask again when it runs. Write down what follows with [`Facts::after_finding`].
pub fn on_finding(
    facts: &Facts,
    found: Found<'_>,
    reactions: &Reactions,
    defaults: &dyn Fn(Mode) -> ModeDefaults,
    now_ms: u64,
) -> Option<Answer> {
    let wish = match reactions.to(found.severity) {
        Reaction::Warn => return None,
        Reaction::Freeze => Wish::Freeze,
        Reaction::CutNetwork => Wish::Network { cut: true },
        // Where nothing is reported there is nothing to refuse of that.
        Reaction::Shut(shut) => {
            Wish::Shut(facts.shut.and(Shut { reported: shut.reported && facts.has_reported, ..shut }))
        }
        Reaction::Tighten(limits) => Wish::Limits(facts.limits.lowered_to(limits)),
        Reaction::Isolate => Wish::Mode(Mode::Isolation),
        Reaction::Kill => Wish::Kill,
    };
    let times = facts.tightened_times.saturating_add(1);
    let hold_until_ms = if reactions.flaps_max > 0 && times >= reactions.flaps_max {
        u64::MAX
    } else {
        now_ms.saturating_add(reactions.hold_down_ms)
    };
    answer(facts, &wish, found.title, hold_until_ms, defaults, now_ms)
}

/// A wish that nobody has to be asked for; what cannot be carried out is replaced by freezing.
pub(super) fn answer(
    facts: &Facts,
    wish: &Wish,
    because: &str,
    hold_until_ms: u64,
    defaults: &dyn Fn(Mode) -> ModeDefaults,
    now_ms: u64,
) -> Option<Answer> {
    let plan = |wish: &Wish| plan(facts, wish, &Asker::AUTOMATIC, defaults, now_ms);
    let (transition, instead_of) = match plan(wish) {
        Ok(transition) => (transition, None),
        Err(refusal) => (plan(&Wish::Freeze).ok()?, Some(refusal)),
    };
    if transition.is_empty() {
        return None;
    }
    Some(Answer { transition, because: because.to_owned(), hold_until_ms, instead_of })
}

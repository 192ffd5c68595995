//! What a sandbox was proved to refuse: each forbidden thing was attempted inside one made from the very policy.

use serde::Serialize;

use crate::layer::Layer;
use crate::policy::{IsolationLevel, Mode};
use crate::receipt::{LayerReceipt, State};

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "verdict", content = "reason")]
pub enum Verdict {
    /// The kernel refused it, as the policy says.
    Refused,
    /// It went through, although the policy forbids it.
    Allowed,
    /// The policy grants it, or the host lacks what the attempt needs; the reason is for people.
    NotApplicable(String),
}

/// One forbidden thing, attempted for real.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attempted {
    /// The layer that must refuse it.
    pub layer: Layer,
    /// What was tried.
    pub attempt: String,
    /// What must happen: an error name, or what must be seen.
    pub expected: String,
    /// What happened.
    pub got: String,
    /// The verdict.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// The outcome for one policy on one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Proof {
    /// Version of this shape.
    pub version: u32,
    /// Mode.
    pub mode: Mode,
    /// How many layers the sandbox has.
    pub level: IsolationLevel,
    /// Every attempt, in the order of the layers.
    pub attempts: Vec<Attempted>,
    /// Requested and effective, layer by layer.
    pub layers: Vec<LayerReceipt>,
    /// Whether the sandbox enforces its policy.
    pub passed: bool,
}

impl Proof {
    /// Sums up. Passed means: something was refused, nothing went through, and no layer differs from its request.
    pub fn new((mode, level): (Mode, IsolationLevel), attempts: Vec<Attempted>, layers: Vec<LayerReceipt>) -> Self {
        let refused = attempts.iter().any(|attempt| attempt.verdict == Verdict::Refused);
        let allowed = attempts.iter().any(|attempt| attempt.verdict == Verdict::Allowed);
        let mismatch = layers.iter().any(|layer| matches!(layer.state, State::Mismatch(_)));
        Proof { version: 1, mode, level, attempts, layers, passed: refused && !allowed && !mismatch }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::Requirement;

    fn attempt(verdict: Verdict) -> Attempted {
        let word = || String::from("x");
        Attempted { layer: Layer::Seccomp, attempt: word(), expected: word(), got: word(), verdict }
    }

    fn layer(state: State) -> LayerReceipt {
        LayerReceipt {
            layer: Layer::Seccomp,
            requirement: Requirement::Required,
            requested: String::new(),
            effective: String::new(),
            evidence: String::new(),
            state,
        }
    }

    #[track_caller]
    fn check(verdicts: &[Verdict], state: State, passed: bool) {
        let attempts = verdicts.iter().cloned().map(attempt).collect();
        assert_eq!(Proof::new((Mode::Isolation, IsolationLevel::Full), attempts, vec![layer(state)]).passed, passed);
    }

    #[test]
    fn passes_only_when_something_was_refused_and_nothing_went_through() {
        let skipped = || Verdict::NotApplicable("granted".to_owned());
        check(&[Verdict::Refused, skipped()], State::InForce, true);
        check(&[Verdict::Refused, Verdict::Allowed], State::InForce, false);
        check(&[skipped()], State::InForce, false);
        check(&[], State::InForce, false);
        check(&[Verdict::Refused], State::Mismatch("other".to_owned()), false);
        check(&[Verdict::Refused], State::Skipped("no".to_owned()), true);
    }
}

//! A wish to steps. Input: facts, wish, asker, defaults of the modes, time; output: steps in order, or a refusal.
//!
//! What no permission could give (the ceiling, a missing dial) is refused before the permission is asked for, so that nobody is sent for one
//! in vain. Must not look at who the asker is: that is `access`.

use serde::{Deserialize, Serialize};

use super::{Facts, Feature, Gate, Limits, ModeDefaults, Refusal, Shut, State, gate};
use crate::policy::{Mode, Network};

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wish {
    /// Another mode.
    Mode(Mode),
    /// Other limits, all of them: an absent one asks for unlimited.
    Limits(Limits),
    /// Hold all processes.
    Freeze,
    /// Let them go on.
    Thaw,
    /// Cut the network off, or give it back.
    Network {
        /// Whether it is to be cut off.
        cut: bool,
    },
    /// Refuse these calls, and no others.
    Shut(Shut),
    /// End the sandbox.
    Kill,
}

impl Wish {
    /// Its kind, in a word.
    pub const fn kind(&self) -> &'static str {
        match self {
            Wish::Mode(_) => "mode",
            Wish::Limits(_) => "limits",
            Wish::Freeze => "freeze",
            Wish::Thaw => "thaw",
            Wish::Network { .. } => "network",
            Wish::Shut(_) => "switches",
            Wish::Kill => "kill",
        }
    }

    /// What is asked for, to end the sentence "cannot ...".
    pub fn words(&self) -> String {
        match self {
            Wish::Mode(mode) => format!("switch to mode {}", mode.name()),
            Wish::Limits(limits) => format!("set limits to {limits}"),
            Wish::Freeze => "freeze the sandbox".to_owned(),
            Wish::Thaw => "thaw the sandbox".to_owned(),
            Wish::Network { cut: true } => "cut its network".to_owned(),
            Wish::Network { cut: false } => "give its network back".to_owned(),
            Wish::Shut(shut) => format!("turn its switches to {shut}"),
            Wish::Kill => "end the sandbox".to_owned(),
        }
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// Whether the asker, or the operator for whom it acts, has the permission to relax.
    pub is_operator_allowed_to_relax: bool,
    /// Whether it is a program that acts by itself, such as the daemon after a hold-down.
    pub automatic: bool,
}

impl Asker {
    /// A program that acts on findings: it tightens and cannot relax.
    pub const AUTOMATIC: Asker = Asker { is_operator_allowed_to_relax: false, automatic: true };
}

/// One act on a running sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// Write the limits of its cgroup.
    Limits {
        /// What they are now.
        from: Limits,
        /// What they are to be.
        to: Limits,
    },
    /// Turn its network dial.
    Network {
        /// Whether the network is to be cut off.
        cut: bool,
    },
    /// Refuse these calls and no others.
    Shut {
        /// What is refused now.
        from: Shut,
        /// What is to be.
        to: Shut,
    },
    /// Hold all processes.
    Freeze,
    /// Let them go on.
    Thaw,
    /// End it.
    Kill,
}

impl Step {
    /// The step that takes this one back. An end cannot be taken back.
    pub const fn inverse(self) -> Option<Step> {
        match self {
            Step::Limits { from, to } => Some(Step::Limits { from: to, to: from }),
            Step::Network { cut } => Some(Step::Network { cut: !cut }),
            Step::Shut { from, to } => Some(Step::Shut { from: to, to: from }),
            Step::Freeze => Some(Step::Thaw),
            Step::Thaw => Some(Step::Freeze),
            Step::Kill => None,
        }
    }
}

/// An allowed change. The mode is written down after the last step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    /// The mode before.
    pub from: Mode,
    /// The mode after.
    pub to: Mode,
    /// What is to be done, in this order.
    pub steps: Vec<Step>,
    /// Whether anything becomes laxer.
    pub relaxes: bool,
}

impl Transition {
    /// Whether everything is as wished already.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.from == self.to
    }

    /// The steps that take back the first `done` ones, in the order in which they are to be done.
    pub fn rollback(&self, done: usize) -> Vec<Step> {
        self.steps.iter().take(done).rev().filter_map(|step| step.inverse()).collect()
    }
}

/// How strict a mode is: 0 development, 1 hybrid, 2 isolation.
pub const fn strictness(mode: Mode) -> u8 {
    match mode {
        Mode::Development => 0,
        Mode::Hybrid => 1,
        Mode::Isolation => 2,
    }
}

/// What is to be done for `wish`. `defaults` gives what each mode has by itself; `now_ms` is on the clock of [`Facts::hold_until_ms`].
///
/// Carrying the steps out and asking again gives no steps.
pub fn plan(
    facts: &Facts,
    wish: &Wish,
    asker: &Asker,
    defaults: &dyn Fn(Mode) -> ModeDefaults,
    now_ms: u64,
) -> Result<Transition, Refusal> {
    check_state(facts, wish)?;
    let transition = match wish {
        Wish::Mode(mode) => to_mode(facts, *mode, defaults)?,
        Wish::Limits(limits) => to_limits(facts, *limits)?,
        Wish::Network { cut } => to_network(facts, *cut)?,
        Wish::Shut(shut) => to_shut(facts, *shut)?,
        Wish::Freeze => stay(facts, (!facts.is_frozen()).then_some(Step::Freeze), false),
        // Who froze by hand may thaw by hand. After a finding somebody has to have looked.
        Wish::Thaw => stay(facts, facts.is_frozen().then_some(Step::Thaw), facts.tightened_by.is_some()),
        Wish::Kill => stay(facts, Some(Step::Kill), false),
    };
    if transition.relaxes {
        check_permission(facts, wish, asker, now_ms)?;
    }
    Ok(transition)
}

fn check_state(facts: &Facts, wish: &Wish) -> Result<(), Refusal> {
    match facts.state {
        State::Running | State::Frozen => Ok(()),
        // What is half built can be ended, and nothing else.
        State::Creating if *wish == Wish::Kill => Ok(()),
        State::Creating | State::Ended | State::Failed | State::Lost => {
            Err(Refusal::NotRunning { asked: wish.words(), state: facts.state })
        }
    }
}

fn check_permission(facts: &Facts, wish: &Wish, asker: &Asker, now_ms: u64) -> Result<(), Refusal> {
    if !asker.is_operator_allowed_to_relax {
        return Err(Refusal::NotPermitted { asked: wish.words(), tightened_by: facts.tightened_by.clone() });
    }
    if asker.automatic && now_ms < facts.hold_until_ms {
        return Err(Refusal::HeldDown {
            asked: wish.words(),
            until_ms: facts.hold_until_ms,
            left_ms: facts.hold_until_ms - now_ms,
            tightened_by: facts.tightened_by.clone(),
        });
    }
    Ok(())
}

/// A transition within the mode; without a step it relaxes nothing.
fn stay(facts: &Facts, step: Option<Step>, relaxes: bool) -> Transition {
    let relaxes = relaxes && step.is_some();
    Transition { from: facts.mode, to: facts.mode, steps: step.into_iter().collect(), relaxes }
}

fn to_limits(facts: &Facts, limits: Limits) -> Result<Transition, Refusal> {
    let asked = || Wish::Limits(limits).words();
    if limits == facts.limits {
        return Ok(stay(facts, None, false));
    }
    if let Some(limit) = zero(limits) {
        return Err(Refusal::ZeroLimit { asked: asked(), limit });
    }
    if !limits.is_within(facts.limits_born) {
        return Err(Refusal::BeyondCeiling {
            asked: asked(),
            ceiling: format!("it was born with {}, which is the ceiling", facts.limits_born),
            next: "ask for no more than that, or start a new sandbox with higher limits".to_owned(),
        });
    }
    let unbounds = (limits.memory_bytes.is_none() && facts.limits.memory_bytes.is_some())
        || (limits.tasks.is_none() && facts.limits.tasks.is_some());
    if unbounds && gate(facts.mode, Feature::Unlimited) == Gate::Closed {
        return Err(Refusal::Gated { asked: asked(), feature: Feature::Unlimited, mode: facts.mode });
    }
    if !facts.has_limits {
        return Err(Refusal::NoLimits { asked: asked() });
    }
    let step = Step::Limits { from: facts.limits, to: limits };
    Ok(stay(facts, Some(step), !limits.is_within(facts.limits)))
}

/// The limit by which nothing could run, if there is one.
fn zero(limits: Limits) -> Option<&'static str> {
    let named = [("memory", limits.memory_bytes), ("tasks", limits.tasks), ("cpu", limits.cpu_percent)];
    named.into_iter().find(|(_, limit)| *limit == Some(0)).map(|(name, _)| name)
}

fn to_network(facts: &Facts, cut: bool) -> Result<Transition, Refusal> {
    let asked = || Wish::Network { cut }.words();
    match (facts.network_born, cut) {
        // There is nothing to cut.
        (Network::None, true) => return Ok(stay(facts, None, false)),
        (Network::None, false) => {
            return Err(Refusal::BeyondCeiling {
                asked: asked(),
                ceiling: "it was born without a network, and no network can be put into a sandbox that runs".to_owned(),
                next: "start a new sandbox with `--net host`".to_owned(),
            });
        }
        (Network::Host, _) if cut == facts.network_cut => return Ok(stay(facts, None, false)),
        (Network::Host, _) => {}
    }
    if !cut && gate(facts.mode, Feature::NetworkHost) == Gate::Closed {
        return Err(Refusal::Gated { asked: asked(), feature: Feature::NetworkHost, mode: facts.mode });
    }
    if !facts.has_network_dial {
        return Err(Refusal::NoDial { asked: asked() });
    }
    Ok(stay(facts, Some(Step::Network { cut }), !cut))
}

fn to_shut(facts: &Facts, shut: Shut) -> Result<Transition, Refusal> {
    if shut == facts.shut {
        return Ok(stay(facts, None, false));
    }
    if !facts.has_network_dial && shut.of_probes() != facts.shut.of_probes() {
        return Err(Refusal::NoSwitches { asked: Wish::Shut(shut).words() });
    }
    if !facts.has_reported && shut.reported {
        return Err(Refusal::NoReports { asked: Wish::Shut(shut).words() });
    }
    Ok(stay(facts, Some(Step::Shut { from: facts.shut, to: shut }), !shut.covers(facts.shut)))
}

fn to_mode(facts: &Facts, mode: Mode, defaults: &dyn Fn(Mode) -> ModeDefaults) -> Result<Transition, Refusal> {
    let asked = || Wish::Mode(mode).words();
    if mode == facts.mode {
        return Ok(stay(facts, None, false));
    }
    if strictness(mode) < strictness(facts.born) {
        return Err(Refusal::BeyondCeiling {
            asked: asked(),
            ceiling: format!(
                "it was born in mode {}, whose namespaces and filters are sealed and cannot be widened",
                facts.born.name()
            ),
            next: format!(
                "have a successor put in its place (`apex mode set ID {} --successor`), a new sandbox to which the files of the host and nothing in memory are carried over",
                mode.name()
            ),
        });
    }
    if Feature::of_level(facts.level).is_some_and(|feature| gate(mode, feature) == Gate::Closed) {
        return Err(Refusal::BeyondCeiling {
            asked: asked(),
            ceiling: format!(
                "it was born at isolation level {}, which that mode does not have, and layers cannot be put around what runs",
                facts.level
            ),
            next: format!(
                "cut its network, lower its limits or freeze it, or start a new sandbox with `--mode {}`",
                mode.name()
            ),
        });
    }
    let is_tightening = strictness(mode) > strictness(facts.mode);
    // Back in the mode that it was born in it may have again what it was born with.
    let wanted = match mode == facts.born {
        true => ModeDefaults { limits: facts.limits_born, network: facts.network_born },
        false => defaults(mode),
    };
    let mut limits = facts.limits_born.lowered_to(wanted.limits);
    if is_tightening {
        // A stricter mode never gives back what was taken by hand or by a finding.
        limits = limits.lowered_to(facts.limits);
    }
    let mut steps = Vec::new();
    steps.extend(network_step(facts, mode, wanted.network, is_tightening)?.map(|cut| Step::Network { cut }));
    if limits != facts.limits {
        if !facts.has_limits {
            return Err(Refusal::NoLimits { asked: asked() });
        }
        steps.push(Step::Limits { from: facts.limits, to: limits });
    }
    let shut = match (mode == facts.born, is_tightening) {
        (true, _) => Shut::default(),
        // Stricter modes refuse what laxer ones report.
        (false, true) => Shut { reported: facts.shut.reported || facts.has_reported, ..facts.shut },
        (false, false) => facts.shut,
    };
    if shut != facts.shut {
        steps.push(Step::Shut { from: facts.shut, to: shut });
    }
    // The network is the worst that can be open: cut it first, give it back last.
    if steps.first() == Some(&(Step::Network { cut: false })) {
        steps.reverse();
    }
    Ok(Transition { from: facts.mode, to: mode, steps, relaxes: !is_tightening })
}

/// Whether the network is to be cut or given back on the way to `mode`; `None` when it stays as it is.
fn network_step(facts: &Facts, mode: Mode, default: Network, is_tightening: bool) -> Result<Option<bool>, Refusal> {
    if facts.network_born == Network::None {
        return Ok(None);
    }
    let cut = default == Network::None || gate(mode, Feature::NetworkHost) == Gate::Closed;
    if cut == facts.network_cut || (!cut && is_tightening) {
        return Ok(None);
    }
    if !facts.has_network_dial {
        return Err(Refusal::NoDial { asked: Wish::Mode(mode).words() });
    }
    Ok(Some(cut))
}

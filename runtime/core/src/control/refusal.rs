//! Why a wish is refused. Each has words: what was tried, what stood in the way, what to do next.

use super::{Feature, State};
use crate::amount;
use crate::policy::Mode;

/// A wish that is not carried out; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There are no processes to act on.
    #[error("cannot {asked}: the sandbox is {}; {}", state.name(), next(*state))]
    NotRunning {
        /// What was asked for.
        asked: String,
        /// Where it is in its life.
        state: State,
    },
    /// More than the sandbox was born with.
    #[error("cannot {asked}: {ceiling}; {next}")]
    BeyondCeiling {
        /// What was asked for.
        asked: String,
        /// What it was born with.
        ceiling: String,
        /// What to do.
        next: String,
    },
    /// The mode it is in never has that.
    #[error("cannot {asked}: mode {} has {} closed; switch to a laxer mode first, as far as the mode that it was born in",
        mode.name(), feature.words())]
    Gated {
        /// What was asked for.
        asked: String,
        /// What is closed.
        feature: Feature,
        /// In which mode.
        mode: Mode,
    },
    /// It relaxes, and the asker has no permission for that.
    #[error(
        "cannot {asked}: that makes the sandbox laxer{}, and relaxing needs a permission that the asker lacks; \
        have somebody do it whose role allows `mode-relax`",
        after(tightened_by)
    )]
    NotPermitted {
        /// What was asked for.
        asked: String,
        /// The finding that tightened it.
        tightened_by: Option<String>,
    },
    /// It was tightened too short a time ago for an automatic relaxing.
    #[error("cannot {asked}: nothing automatic relaxes the sandbox {}{}; look at the finding, then wait or have an operator relax it",
        held(*until_ms, *left_ms), after(tightened_by))]
    HeldDown {
        /// What was asked for.
        asked: String,
        /// When the hold ends, on the clock of the facts; `u64::MAX` when it does not end by itself.
        until_ms: u64,
        /// How long that is from now.
        left_ms: u64,
        /// The finding that tightened it.
        tightened_by: Option<String>,
    },
    /// It has the host's network, and nothing by which to cut it.
    #[error(
        "cannot {asked}: the sandbox has the network of the host and no kernel probe by which to cut it; \
        create it with `--watch` where kernel probes can be loaded (`apex-run --doctor` says so), or without that network"
    )]
    NoDial {
        /// What was asked for.
        asked: String,
    },
    /// Nothing refuses calls one by one.
    #[error(
        "cannot {asked}: no kernel probe watches the sandbox, by which its calls could be refused; \
        create it with `--watch` where kernel probes can be loaded (`apex-run --doctor` says so)"
    )]
    NoSwitches {
        /// What was asked for.
        asked: String,
    },
    /// Nothing is reported that could be refused.
    #[error(
        "cannot {asked}: its policy reports no system calls, or its keeper is an earlier one; \
        leave that switch as it is, or start a new sandbox in mode development"
    )]
    NoReports {
        /// What was asked for.
        asked: String,
    },
    /// It has no cgroup with limits.
    #[error(
        "cannot {asked}: the sandbox has no cgroup whose limits could be changed; \
        create it where cgroups can be written (`apex-run --doctor` says so) and with the layer `cgroup`"
    )]
    NoLimits {
        /// What was asked for.
        asked: String,
    },
    /// Nothing runs with a limit of zero.
    #[error("cannot {asked}: nothing can run with {limit} 0; ask for at least 1, or freeze the sandbox to stop it")]
    ZeroLimit {
        /// What was asked for.
        asked: String,
        /// Which one.
        limit: &'static str,
    },
}

const fn next(state: State) -> &'static str {
    match state {
        State::Creating => "ask again when it runs, or end it",
        State::Running | State::Frozen => "ask again",
        State::Ended => "start a new one",
        State::Failed => "see why it failed, mend that and start a new one",
        State::Lost => "nothing is known of its processes any more: remove it and start a new one",
    }
}

fn after(tightened_by: &Option<String>) -> String {
    tightened_by.as_ref().map(|title| format!(" (it was tightened by the finding \"{title}\")")).unwrap_or_default()
}

fn held(until_ms: u64, left_ms: u64) -> String {
    if until_ms == u64::MAX {
        return "any more, after repeated findings".to_owned();
    }
    // Whole seconds, upwards: whoever waits that long has waited long enough.
    format!("for another {}", amount::duration(left_ms.div_ceil(1000) * 1000))
}

//! What the kernel probes of all sandboxes cost, by program, asked of each keeper when somebody wants to know.
//!
//! The kernel measures BPF programs while somebody has it do so: the probers of level `default` do, and `kernel.bpf_stats_enabled`. What a keeper tells is its user's word:
//! names are held to those that programs have, and numbers to what adds up.

use std::collections::BTreeMap;
use std::time::Duration;

use apex_core::keep::{FromKeeper, ToKeeper};
use apex_core::summary::ProbeCost;
use tokio::task::JoinSet;

use crate::registry::Daemon;

/// How long a keeper may take to tell: its user may have stopped it.
const WITHIN: Duration = Duration::from_secs(2);
/// Programs that are told apart. There are some forty.
const PROGRAMS_MAX: usize = 128;
/// Bytes of a program's name in the kernel, and some.
const NAME_BYTES_MAX: usize = 32;

/// The sums over all probers that told.
#[derive(Debug, Default)]
pub struct Costs {
    /// How many.
    pub told: u64,
    /// By family and program: runs and time.
    pub programs: BTreeMap<(&'static str, String), (u64, Duration)>,
}

/// Of all watched sandboxes that run.
pub async fn all(daemon: &Daemon) -> Costs {
    let mut asking = JoinSet::new();
    for sandbox in daemon.all() {
        let record = sandbox.record();
        if record.is_alive() && record.facts.has_network_dial {
            asking.spawn(async move {
                match tokio::time::timeout(WITHIN, sandbox.ask(&ToKeeper::Costs)).await {
                    Ok(Ok(FromKeeper::Costs { probes })) => Some(probes),
                    Ok(_) | Err(_) => None,
                }
            });
        }
    }
    let mut costs = Costs::default();
    while let Some(told) = asking.join_next().await {
        if let Ok(Some(probes)) = told {
            costs.add(probes);
        }
    }
    costs
}

impl Costs {
    fn add(&mut self, probes: Vec<ProbeCost>) {
        self.told += 1;
        for ProbeCost { name, family, run_count, run_time_ns } in probes {
            let is_name =
                name.len() <= NAME_BYTES_MAX && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            let key = (family.name(), name);
            if !is_name || (self.programs.len() >= PROGRAMS_MAX && !self.programs.contains_key(&key)) {
                continue;
            }
            let (runs, time) = self.programs.entry(key).or_default();
            *runs = runs.saturating_add(run_count);
            *time = time.saturating_add(Duration::from_nanos(run_time_ns));
        }
    }
}

#[cfg(test)]
mod tests {
    use apex_core::watch::Family;

    use super::*;

    fn cost(name: &str, run_count: u64, run_time_ns: u64) -> ProbeCost {
        ProbeCost { name: name.to_owned(), family: Family::Process, run_count, run_time_ns }
    }

    #[test]
    fn costs_add_up_by_program() {
        let mut costs = Costs::default();
        costs.add(vec![cost("on_exec", 2, 3000), cost("on_fork", 1, 5)]);
        costs.add(vec![cost("on_exec", 1, 1000), cost("on_exec", u64::MAX, 0)]);
        assert_eq!(costs.told, 2);
        assert_eq!(costs.programs[&("process", "on_exec".to_owned())], (u64::MAX, Duration::from_micros(4)));
    }

    #[test]
    fn what_a_keeper_makes_up_is_bounded() {
        let mut costs = Costs::default();
        costs.add(vec![cost("a\"b", 1, 1), cost(&"x".repeat(100), 1, 1)]);
        assert!(costs.programs.is_empty());
        costs.add((0..1000).map(|number| cost(&format!("p{number}"), 1, 1)).collect());
        assert_eq!(costs.programs.len(), PROGRAMS_MAX);
    }
}

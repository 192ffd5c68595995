//! Behaviour baselines: what earlier runs of a policy did, and whether a run does more than they did.
//!
//! Input: events. Output: a [`RunSummary`] of each run, a [`Model`] of many of them, and [`crate::finding::Finding`]s about a run that
//! deviates from its model. A model belongs to one [`Key`]: one profile and one plan.
//!
//! **How a run is judged.** Each run is summed up in counts (events of each kind, in all and in the busiest second; system calls; bytes), in sets
//! (programs, directories, peers, refused calls) and in transitions between the events of a process. A third of a model's runs, drawn by the
//! hash of their ids, are learned from: medians and median absolute deviations of the logarithms of counts, Good-Turing for how many new
//! names to expect, a smoothed Markov chain. The other runs calibrate: the threshold is the highest score that any of them got.
//!
//! **The rate of false alarms.** If a run is like those of the model (exchangeable with them), the probability that it scores above all n
//! calibrating runs is at most 1/(n+1) (split conformal prediction: Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005).
//! That is for a whole run, however often it is looked at meanwhile: what is judged while it runs can only grow (counts and sets, of which
//! only more is unusual, never less), so a partial score never exceeds the final one. What could shrink again, the mix of calls and the order
//! of events, is judged at the end alone. With fewer than [`RUNS_MIN`] runs nothing is ever alarmed.
//!
//! What this cannot do: it knows what is unusual, not what is bad. A model learned from hostile runs finds them usual.

mod judge;
mod model;
mod observer;
mod place;
mod stats;
mod summary;
#[cfg(test)]
mod tests;

pub use judge::{Judge, Score};
pub use model::{Model, ModelError, RUNS_MAX, RUNS_MIN};
pub use observer::{FINDINGS_MAX, Observer};
pub use summary::{Class, Key, RunSummary, Tally};

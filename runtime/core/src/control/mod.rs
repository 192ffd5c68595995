//! The mode controller: what may change about a sandbox while it runs, and by which steps.
//!
//! Input: what is known of the sandbox ([`Facts`]), what is asked for ([`Wish`]) and who asks ([`Asker`]). Output: a [`Transition`], whose steps
//! the daemon carries out on cgroup, freezer, network dial and switches, or a [`Refusal`] in words. [`on_finding`] is the same for a detector's alarm, [`on_limit`] for a limit that was reached.
//!
//! Tightening needs nothing and works at once. Relaxing needs a permission and stops at what the sandbox was born with: namespaces, system call
//! filter and Landlock are sealed then, so nothing here could take them back. Time is passed in. This module acts on nothing, knows no user
//! and must never let a sandbox become laxer than it was born.

mod facts;
mod finding;
mod gates;
mod limit;
mod plan;
mod refusal;
mod shut;
mod suggest;
#[cfg(test)]
mod tests;

pub use facts::{Facts, Limits, ModeDefaults, State};
pub use finding::{Answer, Found, Reaction, Reactions, on_finding};
pub use gates::{Feature, Gate, gate};
pub use limit::{AtLimit, CPU_LOOKS, OnLimits, QUIET_MS, Reached, Seen, on_limit};
pub use plan::{Asker, Step, Transition, Wish, plan, strictness};
pub use refusal::Refusal;
pub use shut::Shut;
pub use suggest::{Suggestion, Usage, suggest};

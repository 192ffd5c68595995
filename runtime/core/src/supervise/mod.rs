//! Supervision of what lives long: which members of a group run, and what becomes of the others when one of them ends.
//!
//! Input: a [`Spec`], what happens to its members, the time and a number for the jitter. Output: [`Order`]s, which the caller carries out. One machine for the
//! sandboxes of a group and for the services of the daemon. Must not read a clock, know what a member is, or let one run whose dependency does not.

mod file;
mod machine;
mod spec;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use file::{GroupFile, MemberFile, read};
pub use machine::{Found, Happened, Machine, Order, Phase, Status};
pub use spec::{Draft, Member, Spec, SpecError, check_name};

/// Most members of one group.
pub const MEMBERS_MAX: usize = 64;
/// Most restarts that an intensity can bear.
pub const RESTARTS_MAX: u32 = 1000;
/// Longest of the times of a group: a day.
pub const TIME_MS_MAX: u64 = 24 * 60 * 60 * 1000;
/// Bytes of the name of a group, and of a member.
pub const NAME_BYTES_MAX: usize = 31;

/// Who is started anew when a member ends and is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// That member.
    #[default]
    OneForOne,
    /// Every member.
    OneForAll,
    /// That member and those behind it.
    RestForOne,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Strategy; 3] = [Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne];

    /// The name in files and output.
    pub const fn name(self) -> &'static str {
        match self {
            Strategy::OneForOne => "one-for-one",
            Strategy::OneForAll => "one-for-all",
            Strategy::RestForOne => "rest-for-one",
        }
    }
}

/// When a member that has ended is started anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Not at all, nor on behalf of another.
    Never,
    /// When it ended otherwise than well.
    OnFailure,
    /// However it ended.
    #[default]
    Always,
}

impl Restart {
    /// All of them.
    pub const ALL: [Restart; 3] = [Restart::Never, Restart::OnFailure, Restart::Always];

    /// The name in files and output.
    pub const fn name(self) -> &'static str {
        match self {
            Restart::Never => "never",
            Restart::OnFailure => "on-failure",
            Restart::Always => "always",
        }
    }
}

/// How many restarts a group bears: the next one within the time fails it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intensity {
    /// Restarts; each failure counts once, however many members it takes along.
    pub restarts: u32,
    /// Within this time.
    pub within_ms: u64,
}

impl Default for Intensity {
    fn default() -> Self {
        Intensity { restarts: 5, within_ms: 60_000 }
    }
}

/// How long a restart waits: twice as long each time that a member fails again, to a bound. One that has run for longer than the bound begins anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackOff {
    /// The first time.
    pub first_ms: u64,
    /// The bound.
    pub max_ms: u64,
}

impl Default for BackOff {
    fn default() -> Self {
        BackOff { first_ms: 100, max_ms: 30_000 }
    }
}

impl BackOff {
    /// Before the restart after so many failures in a row; `jitter` in thousandths takes up to half of it away, so that what failed together does not return together.
    pub fn delay_ms(self, failures: u32, jitter: u16) -> u64 {
        let doublings = failures.saturating_sub(1).min(63);
        let whole = self.first_ms.saturating_mul(1 << doublings).min(self.max_ms);
        whole - whole / 2 * u64::from(jitter.min(1000)) / 1000
    }
}

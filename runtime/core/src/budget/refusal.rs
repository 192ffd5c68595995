//! Why there is no room, in words: what is asked for, what is free, who holds it, what to do. Sandboxes of others are counted and not named.

use std::fmt;

use super::{Claim, Kind};
use crate::amount;

/// Sandboxes that are named.
const NAMED_MAX: usize = 3;

/// A claim that is not met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What stands in the way.
    pub why: Box<Why>,
}

/// What stands in the way of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is more than the whole budget.
    TooLarge {
        /// Of this.
        kind: Kind,
        /// What it asks for.
        asked: u64,
        /// What there is at all.
        total: u64,
    },
    /// It is held by others.
    Short {
        /// Of this.
        kind: Kind,
        /// What it asks for.
        asked: u64,
        /// What is free.
        free: u64,
        /// What there is at all.
        total: u64,
        /// Sandboxes of the same user.
        yours: Holders,
        /// Those of everybody else.
        others: Holders,
    },
    /// The host is under pressure.
    Pressure {
        /// Measured how.
        words: String,
    },
    /// Older claims of the same user wait.
    Behind {
        /// How many.
        claims: usize,
    },
    /// The queue is full, or the user's part of it.
    QueueFull {
        /// Claims that wait.
        claims: usize,
    },
    /// It waited as long as it was ready to.
    Late {
        /// How long.
        waited_ms: u64,
        /// What stood in the way to the end.
        because: Box<Why>,
    },
}

/// Who holds a kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// Sandboxes.
    pub count: usize,
    /// What they hold together.
    pub amount: u64,
    /// Those that hold the most, with what they hold.
    pub largest: Vec<(String, u64)>,
}

impl Holders {
    pub(super) fn of(claims: &[(&Claim, u64)]) -> Holders {
        let mut largest: Vec<_> = claims.iter().map(|(claim, amount)| (claim.id.clone(), *amount)).collect();
        largest.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
        largest.truncate(NAMED_MAX);
        let amount = claims.iter().fold(0, |sum: u64, (_, amount)| sum.saturating_add(*amount));
        Holders { count: claims.len(), amount, largest }
    }

    fn words(&self, kind: Kind, whose: &str) -> Option<String> {
        let names: Vec<_> =
            self.largest.iter().map(|(id, amount)| format!("{id} {}", measure(kind, *amount))).collect();
        let names = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
        let held = measure(kind, self.amount);
        match self.count {
            0 => None,
            1 => Some(format!("1 sandbox of {whose} holds {held}{names}")),
            count => Some(format!("{count} sandboxes of {whose} hold {held}{names}")),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "there is no room for it: {}", self.why)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::TooLarge { kind, asked, total } => write!(
                f,
                "it asks for {} {}, and the whole budget of this host is {}; ask for less with --{0}, or give apexd more with --budget {0}=",
                kind.name(),
                measure(*kind, *asked),
                measure(*kind, *total)
            ),
            Why::Short { kind, asked, free, total, yours, others } => {
                let holders = [yours.words(*kind, "yours"), others.words(*kind, "others")];
                let holders: Vec<_> = holders.into_iter().flatten().collect();
                write!(
                    f,
                    "it asks for {} {}, and {} of {} are free; {}; wait with --wait-for-room, end a sandbox, ask for less with --{0}, or give apexd more with --budget {0}=",
                    kind.name(),
                    measure(*kind, *asked),
                    measure(*kind, *free),
                    measure(*kind, *total),
                    holders.join(" and ")
                )
            }
            Why::Pressure { words } => {
                write!(f, "{words}; wait with --wait-for-room, or end what uses the most (`apex stats`)")
            }
            Why::Behind { claims } => write!(
                f,
                "{claims} of your own starts {} for room already; wait behind with --wait-for-room",
                if *claims == 1 { "waits" } else { "wait" }
            ),
            Why::QueueFull { claims } => {
                write!(f, "and no place to wait for it, as {claims} starts wait already; try again later")
            }
            Why::Late { waited_ms, because } => {
                write!(f, "after {} of waiting {because}", amount::duration(*waited_ms))
            }
        }
    }
}

/// Rounded down to what a person reads.
fn measure(kind: Kind, amount: u64) -> String {
    match kind {
        Kind::Memory => match amount {
            bytes if bytes < 1 << 20 || bytes.is_multiple_of(1 << 30) => amount::size(bytes),
            bytes => format!("{}M", bytes >> 20),
        },
        Kind::Tasks => amount.to_string(),
        Kind::Cpu => format!("{amount}%"),
    }
}

//! A group as it is asked for, checked: names, numbers, and an order in which each member stands behind what it needs.

use serde::{Deserialize, Serialize};

use super::{BackOff, Intensity, MEMBERS_MAX, NAME_BYTES_MAX, RESTARTS_MAX, Restart, Strategy, TIME_MS_MAX};
use crate::policy::nearest;

/// A member as it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Draft {
    /// Its name within the group.
    pub name: String,
    /// When it is started anew.
    pub restart: Restart,
    /// Names of the members that must run for it to run.
    pub after: Vec<String>,
    /// Whether it counts as there only once it was said to be healthy.
    pub is_probed: bool,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name within the group.
    pub name: String,
    /// When it is started anew.
    pub restart: Restart,
    /// What must run for it to run: numbers of members before it.
    pub after: Vec<usize>,
    /// Whether it counts as there only once it was said to be healthy.
    pub is_probed: bool,
}

/// A group that was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Who is started anew with whom.
    pub strategy: Strategy,
    /// How many restarts are borne.
    pub intensity: Intensity,
    /// How long restarts wait.
    pub back_off: BackOff,
    /// Each behind what it is after, else as they were given.
    pub members: Vec<Member>,
}

/// Why a group cannot be supervised.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Nobody to supervise, or too many.
    #[error("the group has {count} members; it takes 1 to {MEMBERS_MAX}")]
    Count {
        /// How many.
        count: usize,
    },
    /// A name that is none.
    #[error(
        "{name:?} is no name of a {what}: it takes 1 to {NAME_BYTES_MAX} letters, digits, dashes and underscores, the first no dash"
    )]
    Name {
        /// "group" or "member".
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Two of one name.
    #[error("there are two members of the name {name:?}; rename one")]
    Twice {
        /// The name.
        name: String,
    },
    /// A dependency that is not there.
    #[error("member {member:?} is after {after:?}, which is no member{}", nearest.as_ref().map(|name| format!(", did you mean {name:?}?")).unwrap_or_default())]
    Unknown {
        /// Who depends.
        member: String,
        /// On whom.
        after: String,
        /// The member with the most similar name.
        nearest: Option<String>,
    },
    /// Members that wait for each other.
    #[error("members wait for each other in a circle: {}; remove one of these from `after`", chain.join(" -> "))]
    Circle {
        /// The circle, the first one also at the end.
        chain: Vec<String>,
    },
    /// A number out of its bounds.
    #[error("{what} is {value}; it takes {takes}")]
    Number {
        /// Of what.
        what: &'static str,
        /// The number.
        value: u64,
        /// What is accepted.
        takes: String,
    },
}

impl Spec {
    /// Checks and orders.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn new(
        strategy: Strategy,
        intensity: Intensity,
        back_off: BackOff,
        drafts: &[Draft],
    ) -> Result<Spec, SpecError> {
        check_numbers(intensity, back_off)?;
        if drafts.is_empty() || drafts.len() > MEMBERS_MAX {
            return Err(SpecError::Count { count: drafts.len() });
        }
        for (at, draft) in drafts.iter().enumerate() {
            check_name("member", &draft.name)?;
            if drafts[..at].iter().any(|other| other.name == draft.name) {
                return Err(SpecError::Twice { name: draft.name.clone() });
            }
        }
        let after = drafts.iter().map(|draft| numbers(draft, drafts)).collect::<Result<Vec<_>, _>>()?;
        let order = order(drafts, &after)?;
        let mut place = vec![0; drafts.len()];
        order.iter().enumerate().for_each(|(new, old)| place[*old] = new);
        let member = |old: &usize| {
            let draft = &drafts[*old];
            let after = after[*old].iter().map(|one| place[*one]).collect();
            Member { name: draft.name.clone(), restart: draft.restart, after, is_probed: draft.is_probed }
        };
        Ok(Spec { strategy, intensity, back_off, members: order.iter().map(member).collect() })
    }

    /// Whom the end of this member takes along, itself included: those that the strategy names, and all that depend on one of them.
    pub fn affected(&self, member: usize) -> Vec<bool> {
        let mut affected: Vec<bool> = (0..self.members.len())
            .map(|other| match self.strategy {
                Strategy::OneForOne => other == member,
                Strategy::OneForAll => true,
                Strategy::RestForOne => other >= member,
            })
            .collect();
        // Each stands behind what it is after, so one pass finds also those that depend through others.
        for other in 0..self.members.len() {
            if self.members[other].after.iter().any(|on| affected[*on]) {
                affected[other] = true;
            }
        }
        affected
    }

    /// All that depend on this member, directly or through others.
    pub fn dependents(&self, member: usize) -> Vec<bool> {
        let mut depends = vec![false; self.members.len()];
        for other in 0..self.members.len() {
            depends[other] = self.members[other].after.iter().any(|on| *on == member || depends[*on]);
        }
        depends
    }
}

/// Whether a name is one that a group, or a member, can have: together they are the name of a sandbox.
///
/// # Errors
/// That it is none.
pub fn check_name(what: &'static str, name: &str) -> Result<(), SpecError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let is_name = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_plain) && !name.starts_with('-');
    if is_name { Ok(()) } else { Err(SpecError::Name { what, name: name.to_owned() }) }
}

fn check_numbers(intensity: Intensity, back_off: BackOff) -> Result<(), SpecError> {
    if intensity.restarts > RESTARTS_MAX {
        let (value, takes) = (intensity.restarts.into(), format!("0 to {RESTARTS_MAX}"));
        return Err(SpecError::Number { what: "the number of restarts of the intensity", value, takes });
    }
    let times = [
        ("the time of the intensity, in ms,", intensity.within_ms),
        ("the first back-off, in ms,", back_off.first_ms),
        ("the longest back-off, in ms,", back_off.max_ms),
    ];
    for (what, value) in times {
        if !(1..=TIME_MS_MAX).contains(&value) {
            return Err(SpecError::Number { what, value, takes: format!("1 to {TIME_MS_MAX} (a day)") });
        }
    }
    if back_off.first_ms > back_off.max_ms {
        let takes = format!("at least the first one, {}", back_off.first_ms);
        return Err(SpecError::Number { what: "the longest back-off, in ms,", value: back_off.max_ms, takes });
    }
    Ok(())
}

fn numbers(draft: &Draft, drafts: &[Draft]) -> Result<Vec<usize>, SpecError> {
    let mut found = Vec::new();
    for name in &draft.after {
        let Some(number) = drafts.iter().position(|other| other.name == *name) else {
            let nearest = nearest(name, drafts.iter().map(|other| other.name.as_str()));
            return Err(SpecError::Unknown { member: draft.name.clone(), after: name.clone(), nearest });
        };
        if !found.contains(&number) {
            found.push(number);
        }
    }
    Ok(found)
}

/// The earliest that is behind all it needs comes next.
fn order(drafts: &[Draft], after: &[Vec<usize>]) -> Result<Vec<usize>, SpecError> {
    let mut order: Vec<usize> = Vec::new();
    while order.len() < drafts.len() {
        let next =
            (0..drafts.len()).find(|one| !order.contains(one) && after[*one].iter().all(|on| order.contains(on)));
        let Some(next) = next else { return Err(circle(drafts, after, &order)) };
        order.push(next);
    }
    Ok(order)
}

/// Whoever has no place waits for another that has none: following them leads into the circle.
fn circle(drafts: &[Draft], after: &[Vec<usize>], placed: &[usize]) -> SpecError {
    let mut way: Vec<usize> = (0..drafts.len()).filter(|one| !placed.contains(one)).take(1).collect();
    loop {
        let last = way.last().copied().unwrap_or_default();
        let next = after[last].iter().find(|on| !placed.contains(on)).copied().unwrap_or(last);
        if let Some(begin) = way.iter().position(|one| *one == next) {
            let chain = way[begin..].iter().chain([&next]).map(|one| drafts[*one].name.clone()).collect();
            return SpecError::Circle { chain };
        }
        way.push(next);
    }
}

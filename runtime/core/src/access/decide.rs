//! A question to a decision. Input: policy and question; output: whether it may be done, by which rule, and words. Must not depend on the order
//! of rules but for which of several equal ones is named.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{Effect, Operation, Policy, Role, Rule, Scope, Weekday};
use crate::policy::{Mode, Origin};

/// What somebody wants to do, with everything that a rule can ask about.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The asker's roles.
    pub roles: &'a BTreeSet<Role>,
    /// What is to be done.
    pub operation: Operation,
    /// Whether the sandbox is the asker's own; true for one that is to be made.
    pub owner_is_asker: bool,
    /// The sandbox's mode, that of one to be made included; `None` when it is not known.
    pub mode: Option<Mode>,
    /// The sandbox's labels. Whoever makes a sandbox chooses them.
    pub labels: &'a BTreeMap<String, String>,
    /// What the daemon's configuration calls this host's environment.
    pub environment: Option<&'a str>,
    /// Minutes since midnight.
    pub minute_of_day: u16,
    /// The day.
    pub weekday: Weekday,
}

/// The rule that decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cited {
    /// Where it stands.
    pub origin: Origin,
    /// Why it is there.
    pub reason: String,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// Whether it may be done.
    pub allowed: bool,
    /// Whether a rule wants it written down.
    pub audit: bool,
    /// The rule that decided; `None` when none allows it.
    pub rule: Option<Cited>,
    /// Why; of a refusal also what to do.
    pub words: String,
}

/// Whether it may be done: a deny wins, then any rule that allows or audits, else no.
pub fn decide(policy: &Policy, question: &Question<'_>) -> Decision {
    let matching = |effect| {
        policy.rules.iter().find(|rule| rule.effect == effect && concerns(rule, question) && holds(rule, question))
    };
    let operation = question.operation.name();
    if let Some(rule) = matching(Effect::Deny) {
        let words = format!(
            "cannot {operation}: the rule at {} denies it ({}); that rule wins over all that allow, \
             so ask an administrator whether it should be there",
            rule.origin, rule.reason
        );
        return Decision { allowed: false, audit: false, rule: Some(cited(rule)), words };
    }
    let audit = matching(Effect::Audit);
    match audit.or_else(|| matching(Effect::Allow)) {
        Some(rule) => Decision {
            allowed: true,
            audit: audit.is_some(),
            rule: Some(cited(rule)),
            words: format!("may {operation}: the rule at {} allows it ({})", rule.origin, rule.reason),
        },
        None => Decision { allowed: false, audit: false, rule: None, words: unallowed(policy, question) },
    }
}

fn cited(rule: &Rule) -> Cited {
    Cited { origin: rule.origin.clone(), reason: rule.reason.clone() }
}

/// Whether a rule is about the operation and a role of the asker. Without a role nothing is: "any" means any role.
fn concerns(rule: &Rule, question: &Question<'_>) -> bool {
    let has_role = match rule.role {
        Some(role) => question.roles.contains(&role),
        None => rule.effect == Effect::Deny || !question.roles.is_empty(),
    };
    has_role && rule.operations.contains(&question.operation)
}

fn holds(rule: &Rule, question: &Question<'_>) -> bool {
    obstacle(rule, question).is_none()
}

/// The first condition of a rule that is not met, to end the sentence "the rule ... allows it only ...".
fn obstacle(rule: &Rule, question: &Question<'_>) -> Option<String> {
    if rule.scope == Scope::Own && !question.owner_is_asker {
        return Some("for the asker's own sandboxes".to_owned());
    }
    let is_in_mode = match question.mode {
        Some(mode) => rule.modes.is_empty() || rule.modes.contains(&mode),
        // Not known: counts against the asker.
        None => rule.modes.is_empty() || rule.effect == Effect::Deny,
    };
    if !is_in_mode {
        return Some(format!("in mode {}", listed(rule.modes.iter().map(|mode| mode.name()))));
    }
    if let Some((from, until)) = rule.minutes
        && !is_between(question.minute_of_day, from, until)
    {
        return Some(format!("from {} until {}", clock(from), clock(until)));
    }
    if !rule.days.is_empty() && !rule.days.contains(&question.weekday) {
        return Some(format!("on {}", listed(rule.days.iter().map(|day| day.name()))));
    }
    if let Some(environment) = &rule.environment
        && question.environment != Some(environment)
    {
        return Some(format!("in the environment `{environment}`"));
    }
    let lacking = rule.label.iter().find(|(key, value)| question.labels.get(*key) != Some(value));
    lacking.map(|(key, value)| format!("for sandboxes with the label {key}={value}"))
}

const fn is_between(minute: u16, from: u16, until: u16) -> bool {
    if from < until { from <= minute && minute < until } else { from <= minute || minute < until }
}

fn clock(minute: u16) -> String {
    format!("{:02}:{:02}", minute / 60, minute % 60)
}

fn listed<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.collect::<Vec<_>>().join(" or ")
}

/// Words for what no rule allows: the nearest rule that nearly does, else who may, else who to ask.
fn unallowed(policy: &Policy, question: &Question<'_>) -> String {
    let operation = question.operation.name();
    if question.roles.is_empty() {
        return format!(
            "cannot {operation}: the asker has no role, and without one nothing is allowed; \
             an administrator gives one by a [[member]] in /etc/apex/access.toml"
        );
    }
    let who = listed(question.roles.iter().map(|role| role.name()));
    let opens = |rule: &&Rule| rule.effect != Effect::Deny && rule.operations.contains(&question.operation);
    let near = policy.rules.iter().filter(opens).filter(|rule| concerns(rule, question));
    if let Some((rule, only)) = near.filter_map(|rule| Some((rule, obstacle(rule, question)?))).next() {
        return format!(
            "cannot {operation}: the rule at {} allows it to role {} only {only}; \
             meet that condition or ask an administrator for a rule",
            rule.origin,
            rule.role.map_or("any", Role::name)
        );
    }
    let may: BTreeSet<&str> = policy.rules.iter().filter(opens).filter_map(|rule| rule.role.map(Role::name)).collect();
    let next = if may.is_empty() {
        "no role has such a rule: ask an administrator for one".to_owned()
    } else {
        format!("have it done by role {}, or ask an administrator for a rule", listed(may.into_iter()))
    };
    format!("cannot {operation}: no rule allows it to role {who}; {next}")
}

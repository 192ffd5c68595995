//! The text of an access policy. Input: TOML and the policy before it; output: members and rules with their lines, or an error that names file,
//! line and the nearest valid word. Must not know who exists on this host.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;

use super::{Effect, Member, Operation, Policy, Role, Rule, Scope, Weekday, Who};
use crate::policy::{Lines, Mode, PolicyError, nearest, shaped};

/// Most members of all files together.
pub const MEMBERS_MAX: usize = 10_000;
/// Most rules of all files together: each is looked at for each question.
pub const RULES_MAX: usize = 1000;

const MINUTES: u16 = 24 * 60;
/// Every operation, those to come included.
const ALL: &str = "all";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    inherit: Option<bool>,
    member: Vec<Spanned<MemberTable>>,
    rule: Vec<Spanned<RuleTable>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "the table `[[member]]`")]
struct MemberTable {
    uid: Option<u32>,
    user: Option<String>,
    group: Option<String>,
    daemon: Option<bool>,
    role: Option<Role>,
}

/// A role of a rule.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Whom {
    Any,
    Admin,
    Developer,
    Tester,
    Viewer,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "the table `[[rule]]`")]
struct RuleTable {
    role: Option<Whom>,
    operations: Vec<Spanned<String>>,
    scope: Option<Scope>,
    effect: Option<Effect>,
    modes: Option<Spanned<Vec<Mode>>>,
    from: Option<Spanned<String>>,
    until: Option<Spanned<String>>,
    days: Option<Spanned<Vec<Spanned<String>>>>,
    environment: Option<String>,
    label: BTreeMap<String, String>,
    reason: Option<String>,
}

pub(super) fn read(before: Policy, text: &str, file: &str) -> Result<Policy, PolicyError> {
    let lines = Lines::new(file.to_owned(), text);
    let file: File = shaped(text, &lines)?;
    let mut policy = if file.inherit == Some(false) { Policy::default() } else { before };
    for table in file.member {
        if policy.members.len() == MEMBERS_MAX {
            return Err(PolicyError::TooMany { at: lines.origin(&table.span()), what: "members", max: MEMBERS_MAX });
        }
        policy.members.push(member(table, &lines)?);
    }
    for table in file.rule {
        if policy.rules.len() == RULES_MAX {
            return Err(PolicyError::TooMany { at: lines.origin(&table.span()), what: "rules", max: RULES_MAX });
        }
        policy.rules.push(rule(table, &lines)?);
    }
    Ok(policy)
}

fn member(table: Spanned<MemberTable>, lines: &Lines) -> Result<Member, PolicyError> {
    let origin = lines.origin(&table.span());
    let MemberTable { uid, user, group, daemon, role } = table.into_inner();
    let daemon = daemon.unwrap_or(false).then_some(Who::Daemon);
    let named = [uid.map(Who::Uid), user.map(Who::User), group.map(Who::Group), daemon];
    let mut named = named.into_iter().flatten();
    let (Some(who), None) = (named.next(), named.next()) else {
        let message = "a member needs one of the keys `uid`, `user`, `group` and `daemon = true`, and no second one";
        return Err(PolicyError::value(&origin, message));
    };
    let Some(role) = role else { return Err(missing(&origin, "role", "one of the roles")) };
    Ok(Member { who, role, origin })
}

fn missing(at: &crate::policy::Origin, key: &str, takes: &str) -> PolicyError {
    PolicyError::value(at, format!("the key `{key}` is missing; it takes {takes}"))
}

fn rule(table: Spanned<RuleTable>, lines: &Lines) -> Result<Rule, PolicyError> {
    let origin = lines.origin(&table.span());
    let table = table.into_inner();
    let Some(whom) = table.role else { return Err(missing(&origin, "role", "a role, or \"any\"")) };
    let Some(effect) = table.effect else {
        return Err(missing(&origin, "effect", "\"allow\", \"deny\" or \"audit\""));
    };
    let Some(reason) = table.reason.filter(|reason| !reason.trim().is_empty()) else {
        return Err(missing(&origin, "reason", "a few words for whoever is refused or asks why it is allowed"));
    };
    let operations = operations(&table.operations, lines)?;
    if operations.is_empty() {
        return Err(missing(&origin, "operations", "a list of operations, or [\"all\"]"));
    }
    let modes = table.modes.map(|modes| filled("modes", modes, lines)).transpose()?.unwrap_or_default();
    let days = match table.days {
        Some(days) => filled("days", days, lines)?.iter().map(|day| weekday(day, lines)).collect::<Result<_, _>>()?,
        None => BTreeSet::new(),
    };
    let minutes = minutes(table.from.as_ref(), table.until.as_ref(), lines)?;
    // A deny that says nothing of whose is about everybody's; anything else only about the asker's own.
    let scope = table.scope.unwrap_or(if effect == Effect::Deny { Scope::All } else { Scope::Own });
    Ok(Rule {
        role: role(whom),
        operations,
        scope,
        effect,
        modes,
        minutes,
        days,
        environment: table.environment,
        label: table.label,
        reason: reason.trim().to_owned(),
        origin,
    })
}

const fn role(whom: Whom) -> Option<Role> {
    match whom {
        Whom::Any => None,
        Whom::Admin => Some(Role::Admin),
        Whom::Developer => Some(Role::Developer),
        Whom::Tester => Some(Role::Tester),
        Whom::Viewer => Some(Role::Viewer),
    }
}

/// A list that is there must hold something: an empty one could be read as "none" as well as "all".
fn filled<T>(key: &str, list: Spanned<Vec<T>>, lines: &Lines) -> Result<Vec<T>, PolicyError> {
    let span = list.span();
    let list = list.into_inner();
    if list.is_empty() {
        let message = format!("`{key}` is empty; name some, or leave the key away for all");
        return Err(PolicyError::value(&lines.origin(&span), message));
    }
    Ok(list)
}

fn operations(words: &[Spanned<String>], lines: &Lines) -> Result<BTreeSet<Operation>, PolicyError> {
    let mut found = BTreeSet::new();
    for word in words {
        let name = word.get_ref();
        match Operation::ALL.into_iter().find(|operation| operation.name() == name) {
            Some(operation) => _ = found.insert(operation),
            None if name == ALL => found.extend(Operation::ALL),
            None => {
                let known = Operation::ALL.map(Operation::name).into_iter().chain([ALL]);
                return Err(unknown(name, word.span(), known, lines));
            }
        }
    }
    Ok(found)
}

fn weekday(word: &Spanned<String>, lines: &Lines) -> Result<Weekday, PolicyError> {
    let name = word.get_ref();
    let found = Weekday::ALL.into_iter().find(|day| day.name() == name);
    found.ok_or_else(|| unknown(name, word.span(), Weekday::ALL.map(Weekday::name), lines))
}

fn unknown(
    name: &str,
    span: Range<usize>,
    known: impl IntoIterator<Item = &'static str>,
    lines: &Lines,
) -> PolicyError {
    let accepted: Vec<String> = known.into_iter().map(str::to_owned).collect();
    let nearest = nearest(name, accepted.iter().map(String::as_str));
    PolicyError::UnknownWord { at: lines.origin(&span), value: name.to_owned(), nearest, accepted }
}

fn minutes(
    from: Option<&Spanned<String>>,
    until: Option<&Spanned<String>>,
    lines: &Lines,
) -> Result<Option<(u16, u16)>, PolicyError> {
    let Some(either) = from.or(until) else { return Ok(None) };
    let from_minute = from.map(|from| minute(from, lines)).transpose()?.unwrap_or(0);
    let until_minute = until.map(|until| minute(until, lines)).transpose()?.unwrap_or(MINUTES);
    if from_minute == until_minute || from_minute == MINUTES {
        let message = "no time of the day is in between; `from` is the first minute, `until` the one after the last";
        return Err(PolicyError::value(&lines.origin(&either.span()), message));
    }
    Ok(Some((from_minute, until_minute)))
}

fn minute(text: &Spanned<String>, lines: &Lines) -> Result<u16, PolicyError> {
    let read = |text: &str| {
        let (hour, minute) = text.split_once(':')?;
        let number = |digits: &str| {
            let is_plain = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
            is_plain.then(|| digits.parse::<u16>().ok()).flatten()
        };
        let (hour, minute) = (number(hour)?, number(minute)?);
        (minute < 60 && hour * 60 + minute <= MINUTES).then_some(hour * 60 + minute)
    };
    read(text.get_ref()).ok_or_else(|| {
        let message = format!("`{}` is no time of the day; expected one from \"00:00\" to \"24:00\"", text.get_ref());
        PolicyError::value(&lines.origin(&text.span()), message)
    })
}

//! From the text of a rule file to rules. Input: TOML; output: [`Rule`]s, or the first error with file, line and nearest valid name.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::error::RuleError;
use super::field::{Field, Shape};
use super::kind::Kind;
use super::pattern::{Numbers, Texts};
use super::rule::{Criterion, Exception, Match, Rule, Scope, Share, Step};
use super::text::{Item, Reader, unknown};
use crate::finding::Severity;
use crate::policy::Lines;

/// Rules of one file.
const RULES_MAX: usize = 512;
/// Steps of one rule, and of one whose order does not matter.
const STEPS_MAX: usize = 8;
const STEPS_ANY_ORDER_MAX: usize = 3;
/// Matches inside each other.
const DEPTH_MAX: usize = 16;
/// Largest threshold: what is counted is kept.
const AT_LEAST_MAX: u64 = 10_000;
/// What a rule takes when it says nothing.
const WITHIN_NS: u64 = 60_000_000_000;
const HOLD_NS: u64 = 60_000_000_000;

/// Named lists of patterns.
pub(super) type Lists = BTreeMap<String, Vec<String>>;

/// What one file holds.
#[derive(Debug, Default)]
pub(super) struct Compiled {
    pub rules: Vec<Rule>,
    pub lists: Lists,
    /// Exceptions to rules by their id.
    pub exceptions: Vec<(String, crate::policy::Origin, Exception)>,
    /// Rules that are switched off.
    pub off: Vec<(String, crate::policy::Origin)>,
}

/// Reads one file. `known` are lists of other files.
pub(super) fn compile(lines: &Lines, text: &str, known: &Lists) -> Result<Compiled, RuleError> {
    let document = super::text::parse(lines, text)?;
    let mut top = Reader::new(&document, 0..text.len(), lines);
    let mut compiled = Compiled::default();
    drop(top.take("description").map(|item| item.words()).transpose()?);
    if let Some(lists) = top.take("lists") {
        for item in lists.table()?.entries() {
            compiled.lists.insert(item.key.to_owned(), item.list()?.into_iter().map(String::from).collect());
        }
    }
    for item in top.take("off").into_iter() {
        compiled.off.extend(item.list()?.into_iter().map(|id| (id.into_owned(), item.origin())));
    }
    let mut compiler = Compiler { lists: known, own: &compiled.lists, shared: HashMap::new() };
    let tables = top.take("rule").map(|item| item.tables()).transpose()?.unwrap_or_default();
    if tables.len() > RULES_MAX {
        return Err(top.wrong(format!("{} rules; at most {RULES_MAX} are accepted in one file", tables.len())));
    }
    let mut rules = Vec::new();
    let ends: Vec<usize> = tables.iter().skip(1).map(|next| next.span().start).chain([text.len()]).collect();
    for (table, end) in tables.into_iter().zip(ends) {
        rules.push(compiler.rule(table, end)?);
    }
    let mut exceptions = Vec::new();
    for mut table in top.take("except").map(|item| item.tables()).transpose()?.unwrap_or_default() {
        let ids = table.need("rules")?.list()?;
        let origin = table.origin();
        let exception = compiler.exception(table)?;
        exceptions.extend(ids.into_iter().map(|id| (id.into_owned(), origin.clone(), exception.clone())));
    }
    top.finish()?;
    (compiled.rules, compiled.exceptions) = (rules, exceptions);
    Ok(compiled)
}

struct Compiler<'l> {
    lists: &'l Lists,
    own: &'l Lists,
    /// Compiled lists that stand alone, so that rules share them.
    shared: HashMap<(String, bool), Arc<Texts>>,
}

impl Compiler<'_> {
    fn rule(&mut self, mut table: Reader<'_>, end: usize) -> Result<Rule, RuleError> {
        let id = table.need("id")?;
        if !id.text()?.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-')) || id.text()?.is_empty() {
            return Err(id.wrong("an `id` consists of small letters, digits and `-`"));
        }
        let techniques = table.need("techniques")?;
        let (orders, variables) = self.orders(&mut table)?;
        let criteria = table.take("at_least").map(criteria).transpose()?.unwrap_or_default();
        let per = table.take("per").map(|item| field(&item, item.text()?)).transpose()?;
        if per.is_some() && criteria.is_empty() {
            return Err(table.wrong("`per` needs `at_least`: it says what is counted apart"));
        }
        let share = table.take("share").map(|item| self.share(item)).transpose()?;
        if let (Some(_), true) = (&share, criteria.is_empty()) {
            return Err(table.wrong("`share` needs `at_least`: a single event is always all of itself"));
        }
        if share.is_some() && per.is_some() {
            return Err(table.wrong("`share` cannot stand with `per`: what it is a share of has no such value"));
        }
        let mut exceptions = Vec::new();
        for exception in table.take("except").map(|item| item.tables()).transpose()?.unwrap_or_default() {
            exceptions.push(self.exception(exception)?);
        }
        let rule = Rule {
            id: id.text()?.to_owned(),
            origin: table.origin(),
            title: table.need("title")?.words()?,
            explanation: table.need("explanation")?.words()?,
            severity: table.need("severity")?.word("severity", &SEVERITIES)?,
            techniques: techniques.list()?.iter().map(|text| technique(&techniques, text)).collect::<Result<_, _>>()?,
            scope: table.take("scope").map_or(Ok(Scope::Tree), |item| item.word("scope", &Scope::NAMES))?,
            within_ns: table.take("within").map_or(Ok(WITHIN_NS), |item| item.time_ns())?,
            hold_ns: table.take("hold").map_or(Ok(HOLD_NS), |item| item.time_ns())?,
            orders,
            variables,
            criteria,
            per,
            share,
            exceptions,
            span: table.span().start..end,
        };
        table.finish()?;
        Ok(rule)
    }

    /// The steps in every order in which they may come.
    fn orders(&mut self, table: &mut Reader<'_>) -> Result<(Vec<Vec<Step>>, usize), RuleError> {
        let any_order = table.take("order").map_or(Ok(false), |item| item.word("order", &ORDERS))?;
        let mut steps = Vec::new();
        match (table.take("match"), table.take("step")) {
            (Some(alone), None) => steps.push(Draft { matches: self.matches(alone)?, bind: Vec::new() }),
            (None, Some(item)) => {
                for mut step in item.tables()? {
                    let matches = self.matches(step.need("match")?)?;
                    let bind = step.take("bind").map(bindings).transpose()?.unwrap_or_default();
                    step.finish()?;
                    steps.push(Draft { matches, bind });
                }
            }
            _ => {
                return Err(
                    table.wrong("a rule has either `match`, for single events, or `[[rule.step]]`, for a sequence")
                );
            }
        }
        let most = if any_order { STEPS_ANY_ORDER_MAX } else { STEPS_MAX };
        if steps.is_empty() || steps.len() > most {
            return Err(table
                .wrong(format!("a rule has from 1 to {STEPS_MAX} steps, in any order at most {STEPS_ANY_ORDER_MAX}")));
        }
        let mut names: Vec<String> = Vec::new();
        for (name, _) in steps.iter().flat_map(|step| &step.bind) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        let orders = if any_order { permutations(steps.len()) } else { vec![(0..steps.len()).collect()] };
        Ok((orders.iter().map(|order| in_order(&steps, order, &names)).collect(), names.len()))
    }

    fn matches(&mut self, item: Item<'_>) -> Result<Arc<[Match]>, RuleError> {
        item.tables()?.into_iter().map(|table| self.single(&table, &[], 0)).collect()
    }

    fn single(&mut self, table: &Reader<'_>, aside: &[&str], depth: usize) -> Result<Match, RuleError> {
        if depth > DEPTH_MAX {
            return Err(table.wrong(format!("more than {DEPTH_MAX} matches inside each other")));
        }
        let mut found = Match::default();
        for item in table.entries().filter(|item| !aside.contains(&item.key)) {
            let inner = match item.key {
                "all" => Some(&mut found.all),
                "any" => Some(&mut found.any),
                "not" => Some(&mut found.not),
                _ => None,
            };
            if let Some(inner) = inner {
                let tables = item.tables()?;
                *inner = tables.iter().map(|table| self.single(table, &[], depth + 1)).collect::<Result<_, _>>()?;
                continue;
            }
            let Some(field) = Field::from_name(item.key) else {
                let names: Vec<&str> =
                    Field::ALL.iter().map(|field| field.name()).chain(["all", "any", "not"]).collect();
                return Err(unknown(table.origin_of(item.key), "field", item.key, &names));
            };
            found.asks_failure |= matches!(field, Field::Failed | Field::Error);
            match (field, field.shape()) {
                (Field::Event, _) => found.kinds = kinds(&item)?,
                (_, Shape::Flag) => found.flags.push((field, item.flag()?)),
                (_, Shape::Number) => found.numbers.push((field, numbers(&item)?)),
                (_, shape) => found.texts.push((field, self.texts(&item, shape == Shape::Path)?)),
            }
        }
        found.asks_failure |= found.all.iter().chain(&found.any).chain(&found.not).any(|inner| inner.asks_failure);
        Ok(found)
    }

    fn texts(&mut self, item: &Item<'_>, is_path: bool) -> Result<Arc<Texts>, RuleError> {
        let words = item.list()?;
        let key = match words.as_slice() {
            [word] if word.starts_with('@') => Some((word.to_string(), is_path)),
            _ => None,
        };
        if let Some(texts) = key.as_ref().and_then(|key| self.shared.get(key)) {
            return Ok(Arc::clone(texts));
        }
        let mut all: Vec<&str> = Vec::new();
        for word in &words {
            match word.strip_prefix('@') {
                Some(list) => all.extend(self.list(item, list)?.iter().map(String::as_str)),
                None => all.push(word),
            }
        }
        let texts = Texts::parse(all, is_path).map_err(|error| item.wrong(error))?;
        let texts = Arc::new(texts);
        if let Some(key) = key {
            self.shared.insert(key, Arc::clone(&texts));
        }
        Ok(texts)
    }

    fn list(&self, item: &Item<'_>, name: &str) -> Result<&Vec<String>, RuleError> {
        let names = || self.own.keys().chain(self.lists.keys()).map(String::as_str).collect::<Vec<_>>();
        let found = self.own.get(name).or_else(|| self.lists.get(name));
        found.ok_or_else(|| unknown(item.origin(), "list", name, &names()))
    }

    fn share(&mut self, item: Item<'_>) -> Result<Share, RuleError> {
        let mut table = item.table()?;
        let percent = table.need("percent")?;
        let share = Share { of: self.matches(table.need("of")?)?, percent: percent.count()? };
        if share.percent > 100 {
            return Err(percent.wrong("`percent` is at most 100"));
        }
        table.finish()?;
        Ok(share)
    }

    fn exception(&mut self, mut table: Reader<'_>) -> Result<Exception, RuleError> {
        table.need("reason")?.words()?;
        let profiles = table.take("profile").map(|item| item.list()).transpose()?.unwrap_or_default();
        let matches = self.single(&table, &["reason", "profile", "rules"], 0)?;
        Ok(Exception { profiles: profiles.into_iter().map(String::from).collect(), matches })
    }
}

const SEVERITIES: [(&str, Severity); 5] = [
    ("informational", Severity::Informational),
    ("low", Severity::Low),
    ("medium", Severity::Medium),
    ("high", Severity::High),
    ("critical", Severity::Critical),
];
const ORDERS: [(&str, bool); 2] = [("strict", false), ("any", true)];

/// A step before its place in the order is known.
struct Draft {
    matches: Arc<[Match]>,
    bind: Vec<(String, Field)>,
}

fn in_order(steps: &[Draft], order: &[usize], names: &[String]) -> Vec<Step> {
    let mut bound = vec![false; names.len()];
    let mut done = Vec::new();
    for index in order {
        let draft = &steps[*index];
        let mut step = Step { matches: Arc::clone(&draft.matches), agree: Vec::new(), set: Vec::new() };
        for (name, field) in &draft.bind {
            let Some(variable) = names.iter().position(|known| known == name) else { continue };
            let is_bound = std::mem::replace(&mut bound[variable], true);
            if is_bound { &mut step.agree } else { &mut step.set }.push((variable, *field));
        }
        done.push(step);
    }
    done
}

fn permutations(count: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for _ in 0..count {
        let longer = |order: Vec<usize>| {
            let rest: Vec<usize> = (0..count).filter(|index| !order.contains(index)).collect();
            rest.into_iter().map(move |index| order.iter().copied().chain([index]).collect())
        };
        all = all.into_iter().flat_map(longer).collect();
    }
    all
}

fn kinds(item: &Item<'_>) -> Result<u64, RuleError> {
    let mut kinds = 0;
    for name in item.list()? {
        let kind = Kind::from_name(&name)
            .ok_or_else(|| unknown(item.origin(), "event", &name, &Kind::all().map(Kind::name).collect::<Vec<_>>()))?;
        kinds |= 1 << kind.index();
    }
    Ok(kinds)
}

fn numbers(item: &Item<'_>) -> Result<Numbers, RuleError> {
    let words = item.list()?;
    Numbers::parse(words.iter().map(AsRef::as_ref)).map_err(|error| item.wrong(error))
}

fn bindings(item: Item<'_>) -> Result<Vec<(String, Field)>, RuleError> {
    item.table()?.entries().map(|item| Ok((item.key.to_owned(), field(&item, item.text()?)?))).collect()
}

fn field(item: &Item<'_>, name: &str) -> Result<Field, RuleError> {
    let names = || Field::ALL.iter().map(|field| field.name()).collect::<Vec<_>>();
    Field::from_name(name).ok_or_else(|| unknown(item.origin(), "field", name, &names()))
}

fn criteria(item: Item<'_>) -> Result<Vec<Criterion>, RuleError> {
    let table = item.table()?;
    let mut criteria = Vec::new();
    for item in table.entries() {
        let at_least = item.count()?;
        if at_least > AT_LEAST_MAX {
            return Err(item.wrong(format!("a threshold is at most {AT_LEAST_MAX}")));
        }
        let field = match item.key {
            "events" => None,
            name => Some(Field::from_name(name).ok_or_else(|| {
                let names: Vec<&str> = Field::ALL.iter().map(|field| field.name()).chain(["events"]).collect();
                unknown(table.origin_of(name), "field", name, &names)
            })?),
        };
        criteria.push(Criterion { field, at_least });
    }
    if criteria.is_empty() { Err(item.wrong("`at_least` names nothing to count")) } else { Ok(criteria) }
}

fn technique(item: &Item<'_>, text: &str) -> Result<String, RuleError> {
    let digits = |text: &str, count: usize| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_id = text.strip_prefix('T').is_some_and(|rest| match rest.split_once('.') {
        Some((whole, part)) => digits(whole, 4) && digits(part, 3),
        None => digits(rest, 4),
    });
    if is_id {
        Ok(text.to_owned())
    } else {
        Err(item.wrong(format!("`{text}` is no ATT&CK technique; expected one such as \"T1059\" or \"T1059.004\"")))
    }
}

//! Cases of rules: streams of events on which a rule must fire or stay quiet, and changes to its text that must be refused. They stand
//! beside the rules, `NAME.cases.toml` for `NAME.toml`. Input: the texts of both; output: what did not come out as it should.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Value;

use super::error::RuleError;
use super::text::{Reader, parse};
use super::{Engine, Rules};
use crate::event::Event;
use crate::finding::{Detector, Finding, Severity};
use crate::policy::{Lines, Origin};

/// Events of one case after repetition.
const EVENTS_MAX: usize = 200_000;
const STEP_NS: u64 = 1_000_000;
/// Bytes of text that a file of cases may have.
const NS_PER_S: f64 = 1e9;

/// What became of the cases of one file.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Cases that came out as they should.
    pub passed: usize,
    /// Those that did not, in words.
    pub failed: Vec<String>,
    /// Rules that lack a kind of case: id and which.
    pub lacking: Vec<String>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.failed.is_empty() && self.lacking.is_empty()
    }
}

/// Which kinds of cases a rule has.
#[derive(Default)]
struct Covered {
    fires: bool,
    quiet: bool,
    malformed: bool,
}

/// Runs the cases of one file of rules. `rules` are those of the file with its lists known; a case names the rule that it is about.
pub fn run(file: &str, text: &str, cases: (&str, &str)) -> Result<Report, RuleError> {
    let rules = Rules::parse(file, text)?;
    rules.check()?;
    let lines = Lines::new(cases.0.to_owned(), cases.1);
    let document = parse(&lines, cases.1)?;
    let mut top = Reader::new(&document, 0..cases.1.len(), &lines);
    let mut report = Report::default();
    let mut covered: BTreeMap<&str, Covered> = rules.rules.iter().map(|rule| (&*rule.id, Covered::default())).collect();
    for table in top.take("case").map(|item| item.tables()).transpose()?.unwrap_or_default() {
        let case = read_case(table, &rules)?;
        let covered = covered.get_mut(case.rule.as_str());
        match case.fires {
            true => covered.into_iter().for_each(|covered| covered.fires = true),
            false => covered.into_iter().for_each(|covered| covered.quiet = true),
        }
        report.note(play(&case, &rules));
    }
    for table in top.take("malformed").map(|item| item.tables()).transpose()?.unwrap_or_default() {
        let change = read_change(table, &rules)?;
        covered.get_mut(change.rule.as_str()).into_iter().for_each(|covered| covered.malformed = true);
        report.note(change.attempt(file, text, &rules));
    }
    top.finish()?;
    for (id, covered) in covered {
        for (is_there, kind) in [(covered.fires, "firing"), (covered.quiet, "quiet"), (covered.malformed, "malformed")]
        {
            if !is_there {
                report.lacking.push(format!("rule `{id}` has no {kind} case in {}", cases.0));
            }
        }
    }
    Ok(report)
}

impl Report {
    fn note(&mut self, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => self.passed += 1,
            Err(words) => self.failed.push(words),
        }
    }
}

struct Case {
    at: Origin,
    rule: String,
    fires: bool,
    about: String,
    profile: Option<String>,
    /// How many findings, when that matters.
    findings: Option<u64>,
    events: Vec<Event>,
}

fn read_case(mut table: Reader<'_>, rules: &Rules) -> Result<Case, RuleError> {
    let mut case = Case {
        at: table.origin(),
        rule: rule_id(&mut table, rules)?,
        fires: table.need("expect")?.word("expectation", &[("fires", true), ("quiet", false)])?,
        about: table.need("about")?.words()?,
        profile: table.take("profile").map(|item| item.words()).transpose()?,
        findings: table.take("findings").map(|item| item.count()).transpose()?,
        events: Vec::new(),
    };
    let item = table.need("events")?;
    let mut clock = Clock::default();
    for event in item.tables()? {
        let at = event.origin();
        let table = event.entries().map(|item| (item.key.to_owned(), item.plain())).collect();
        events(table, &mut clock, &mut case.events)
            .map_err(|message| RuleError::Value { at, message: format!("this is no event: {message}") })?;
        if case.events.len() > EVENTS_MAX {
            return Err(item.wrong(format!("more than {EVENTS_MAX} events")));
        }
    }
    table.finish()?;
    Ok(case)
}

fn rule_id(table: &mut Reader<'_>, rules: &Rules) -> Result<String, RuleError> {
    let item = table.need("rule")?;
    let id = item.words()?;
    if rules.rules.iter().any(|rule| rule.id == id) { Ok(id) } else { Err(rules.no_rule(item.origin(), &id)) }
}

/// When the next event is.
#[derive(Default)]
struct Clock {
    now_ns: u64,
}

/// One table of a case as events: what is not said has a default, `run` is short for an exec, `repeat` repeats with `{n}` counting.
fn events(mut table: toml::Table, clock: &mut Clock, events: &mut Vec<Event>) -> Result<(), String> {
    let repeat = match table.remove("repeat") {
        None => 1,
        Some(value) => value.as_integer().and_then(|n| usize::try_from(n).ok()).ok_or("`repeat` is no whole number")?,
    };
    if repeat > EVENTS_MAX {
        return Err(format!("`repeat` is at most {EVENTS_MAX}"));
    }
    let seconds =
        |value: Value| value.as_float().or(value.as_integer().map(|n| n as f64)).ok_or("a time is a number of seconds");
    if let Some(at) = table.remove("at").map(seconds).transpose()? {
        clock.now_ns = (at * NS_PER_S) as u64;
    }
    let every_ns = table.remove("every").map(seconds).transpose()?.map_or(STEP_NS, |every| (every * NS_PER_S) as u64);
    if let Some(run) = table.remove("run") {
        let line = run.as_str().ok_or("`run` is a text")?.to_owned();
        let args: Vec<&str> = line.split(' ').collect();
        let path = if args[0].starts_with('/') { args[0].to_owned() } else { format!("/usr/bin/{}", args[0]) };
        let args = args.iter().map(|arg| Value::String((*arg).to_owned())).collect();
        table.insert("event".to_owned(), Value::String("exec".to_owned()));
        table.entry("path").or_insert(Value::String(path));
        table.entry("args").or_insert(Value::Array(args));
    }
    let defaults = [
        ("sandbox", Value::Integer(1)),
        ("pid", Value::Integer(100)),
        ("ppid", Value::Integer(1)),
        ("uid", Value::Integer(1000)),
        ("comm", Value::String("job".to_owned())),
    ];
    for (key, value) in defaults {
        table.entry(key).or_insert(value);
    }
    for count in 0..repeat {
        clock.now_ns += every_ns;
        let mut one = table.clone();
        one.insert("time_ns".to_owned(), Value::Integer(i64::try_from(clock.now_ns).unwrap_or(i64::MAX)));
        one.iter_mut().for_each(|(_, value)| fill(value, count));
        events.push(Event::deserialize(Value::Table(one)).map_err(|error| error.to_string())?);
    }
    Ok(())
}

/// Puts the count in the place of `{n}`, `{n+100}` and `{n/8}`; a text that is nothing else becomes a number.
fn fill(value: &mut Value, count: usize) {
    match value {
        Value::String(text) if text.contains("{n") => {
            let filled = filled(text, count);
            let is_all = text.starts_with('{') && text.ends_with('}') && text.matches('{').count() == 1;
            *value = match filled.parse() {
                Ok(number) if is_all => Value::Integer(number),
                _ => Value::String(filled),
            };
        }
        Value::Array(items) => items.iter_mut().for_each(|item| fill(item, count)),
        Value::Table(table) => table.iter_mut().for_each(|(_, item)| fill(item, count)),
        _ => {}
    }
}

fn filled(text: &str, count: usize) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, (inside, after))) =
        rest.split_once("{n").and_then(|(before, tail)| Some((before, tail.split_once('}')?)))
    {
        let number = |digits: &str| digits.parse::<usize>().ok();
        let value = match inside.split_at_checked(1) {
            None => Some(count),
            Some(("+", digits)) => number(digits).map(|more| count + more),
            Some(("/", digits)) => number(digits).and_then(|by| count.checked_div(by)),
            Some(("%", digits)) => number(digits).and_then(|by| count.checked_rem(by)),
            Some(_) => None,
        };
        out.push_str(before);
        match value {
            Some(value) => out.push_str(&value.to_string()),
            None => out.push_str(&format!("{{n{inside}}}")),
        }
        rest = after;
    }
    out + rest
}

/// Feeds the events of a case to its rule alone and looks at what comes out.
fn play(case: &Case, rules: &Rules) -> Result<(), String> {
    let alone =
        Rules { rules: rules.rules.iter().filter(|rule| rule.id == case.rule).cloned().collect(), ..Rules::default() };
    let findings = findings(alone, case.profile.as_deref(), &case.events);
    let said = findings.len() as u64;
    let is_right = match case.findings {
        Some(wanted) => said == wanted && case.fires,
        None => (said > 0) == case.fires,
    };
    if is_right {
        return Ok(());
    }
    let wanted = match (case.fires, case.findings) {
        (false, _) => "none".to_owned(),
        (true, None) => "some".to_owned(),
        (true, Some(count)) => count.to_string(),
    };
    Err(format!("{}: rule `{}`, {}: {said} findings, expected {wanted}", case.at, case.rule, case.about))
}

/// What rules find in a stream.
pub fn findings(rules: Rules, profile: Option<&str>, events: &[Event]) -> Vec<Finding> {
    let mut engine = Engine::new(rules, profile);
    events.iter().flat_map(|event| engine.observe(event)).collect()
}

/// Ids of the rules that fired with at least this severity, in order, each once.
pub fn fired(findings: &[Finding], least: Severity) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    for finding in findings.iter().filter(|finding| finding.severity >= least) {
        if let Detector::Rule { id, .. } = &finding.detector
            && !ids.contains(id)
        {
            ids.push(id.clone());
        }
    }
    ids
}

/// A change to the text of a rule that must be refused.
struct Change {
    at: Origin,
    rule: String,
    replace: String,
    by: String,
    error: String,
}

fn read_change(mut table: Reader<'_>, rules: &Rules) -> Result<Change, RuleError> {
    let change = Change {
        at: table.origin(),
        rule: rule_id(&mut table, rules)?,
        replace: table.need("replace")?.text()?.to_owned(),
        by: table.need("by")?.text()?.to_owned(),
        error: table.need("error")?.words()?,
    };
    table.finish()?;
    Ok(change)
}

impl Change {
    fn attempt(&self, file: &str, text: &str, rules: &Rules) -> Result<(), String> {
        let span = rules.rules.iter().find(|rule| rule.id == self.rule).map_or(0..0, |rule| rule.span.clone());
        let own = &text[span.clone()];
        if !own.contains(&self.replace) {
            return Err(format!("{}: the text of rule `{}` does not contain {:?}", self.at, self.rule, self.replace));
        }
        let changed =
            format!("{}{}{}", &text[..span.start], own.replacen(&self.replace, &self.by, 1), &text[span.end..]);
        let change = format!("{}: rule `{}` with {:?} for {:?}", self.at, self.rule, self.by, self.replace);
        match Rules::parse(file, &changed).and_then(|rules| rules.check()) {
            Ok(()) => Err(format!("{change} is accepted; it must be refused")),
            Err(error) if error.to_string().contains(&self.error) => Ok(()),
            Err(error) => Err(format!("{change} is refused, but the message lacks {:?}: {error}", self.error)),
        }
    }
}

//! Detectors: rules over the events of sandboxes, which end in findings.
//!
//! Input: rules as TOML ([`Rules`]) and events one by one ([`Engine::observe`]). Output: [`crate::finding::Finding`]s. The language of the
//! rules is described in `docs/reference/detectors.md`. Nothing here reads a file or a clock: time is that of the events. A rule
//! concludes and never acts; what had to be forgotten is counted ([`Engine::forgotten`]).

mod built_in;
pub mod case;
mod compile;
mod dns;
mod engine;
mod error;
mod field;
mod kind;
mod pattern;
mod process;
mod rule;
mod sequence;
pub mod sigma;
mod text;
mod window;

#[cfg(test)]
mod tests;

use std::fmt::Write as _;

pub use built_in::FILES;
pub use engine::{Engine, Forgotten};
pub use error::RuleError;
pub use text::FILE_SIZE_MAX;

use crate::finding::Severity;
use crate::policy::{Lines, Origin};
use compile::{Lists, compile};
use rule::{Exception, Rule};

/// A set of rules.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    rules: Vec<Rule>,
    lists: Lists,
    exceptions: Vec<(String, Origin, Exception)>,
    off: Vec<(String, Origin)>,
}

/// What a rule says of itself.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct About<'a> {
    /// Its name.
    pub id: &'a str,
    /// Where it stands.
    pub origin: &'a Origin,
    /// One line.
    pub title: &'a str,
    /// What it means.
    pub explanation: &'a str,
    /// How bad.
    pub severity: Severity,
    /// MITRE ATT&CK techniques.
    pub techniques: &'a [String],
}

impl Rules {
    /// Those that are built in.
    pub fn built_in() -> Rules {
        let mut rules = Rules::default();
        for (name, text, _) in FILES {
            let file = Rules::parse_with(&format!("built-in {name}"), text, &rules.lists);
            let added = file.and_then(|file| rules.add(file));
            added.expect("the tests read every built-in rule");
        }
        rules
    }

    /// Reads the text of one file. Its name is for messages. The lists of the built-in rules can be used.
    pub fn parse(file: &str, text: &str) -> Result<Rules, RuleError> {
        Rules::parse_with(file, text, &built_in_lists())
    }

    fn parse_with(file: &str, text: &str, lists: &Lists) -> Result<Rules, RuleError> {
        let compiled = compile(&Lines::new(file.to_owned(), text), text, lists)?;
        let mut rules: Vec<Rule> = Vec::new();
        for rule in compiled.rules {
            if let Some(first) = rules.iter().find(|known| known.id == rule.id) {
                return Err(RuleError::Twice { at: rule.origin, id: rule.id, first: first.origin.clone() });
            }
            rules.push(rule);
        }
        Ok(Rules { rules, lists: compiled.lists, exceptions: compiled.exceptions, off: compiled.off })
    }

    /// Adds the rules of a later file: one with the id of a known rule takes its place, exceptions are added to known rules, and what
    /// the file switches off is gone.
    pub fn add(&mut self, later: Rules) -> Result<(), RuleError> {
        for rule in later.rules {
            match self.rules.iter_mut().find(|known| known.id == rule.id) {
                Some(known) => *known = rule,
                None => self.rules.push(rule),
            }
        }
        for (id, at, exception) in later.exceptions {
            match self.rules.iter_mut().find(|known| known.id == id) {
                Some(rule) => rule.exceptions.push(exception),
                None => return Err(self.no_rule(at, &id)),
            }
        }
        for (id, at) in later.off {
            match self.rules.iter().position(|known| known.id == id) {
                Some(index) => drop(self.rules.remove(index)),
                None => return Err(self.no_rule(at, &id)),
            }
        }
        self.lists.extend(later.lists);
        Ok(())
    }

    /// What each rule says of itself.
    pub fn about(&self) -> impl Iterator<Item = About<'_>> {
        self.rules.iter().map(|rule| About {
            id: &rule.id,
            origin: &rule.origin,
            title: &rule.title,
            explanation: &rule.explanation,
            severity: rule.severity,
            techniques: &rule.techniques,
        })
    }

    /// Compiles every pattern now instead of when it is first needed, to learn whether it can be.
    pub fn check(&self) -> Result<(), RuleError> {
        for rule in &self.rules {
            rule.check().map_err(|message| RuleError::Value { at: rule.origin.clone(), message })?;
        }
        Ok(())
    }

    fn no_rule(&self, at: Origin, id: &str) -> RuleError {
        text::unknown(at, "rule", id, &self.rules.iter().map(|rule| rule.id.as_str()).collect::<Vec<_>>())
    }

    fn into_rules(self) -> Vec<Rule> {
        self.rules
    }
}

fn built_in_lists() -> Lists {
    let mut lists = Lists::default();
    for (name, text, _) in FILES.iter().filter(|(name, ..)| *name == built_in::LISTS) {
        let file = compile(&Lines::new((*name).to_owned(), text), text, &Lists::default());
        lists.extend(file.expect("the tests read every built-in rule").lists);
    }
    lists
}

/// The fields of the language as a table in Markdown, for the reference.
pub fn fields_table() -> String {
    let mut table = String::from("| field | values | meaning |\n| --- | --- | --- |\n");
    for field in field::Field::ALL {
        let shape = match field.shape() {
            field::Shape::Text => "text",
            field::Shape::Path => "path",
            field::Shape::Number => "number",
            field::Shape::Flag => "true, false",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(table, "| `{}` | {shape} | {} |", field.name(), field.doc());
    }
    table
}

/// The rules as a table in Markdown, for the reference.
pub fn rules_table(rules: &Rules) -> String {
    let mut table = String::from("| rule | severity | techniques | what |\n| --- | --- | --- | --- |\n");
    for rule in rules.about() {
        let severity = format!("{:?}", rule.severity).to_lowercase();
        let _ = writeln!(table, "| `{}` | {severity} | {} | {} |", rule.id, rule.techniques.join(", "), rule.title);
    }
    table
}

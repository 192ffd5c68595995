//! Sigma rules (<https://sigmahq.io/sigma-specification/>) for Linux processes and files as rules of ours.
//!
//! Input: one rule as a [`Node`] tree (the caller reads the YAML, with bounds on size and depth). Output: the text of a rule, or why it
//! cannot be translated, with the line: nothing is left out in silence. What has no counterpart and changes no meaning is a remark.

mod condition;
mod selection;

use std::collections::BTreeMap;
use std::fmt;

use super::Rules;

/// A value of YAML and the line that it stands on.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// From 1.
    pub line: usize,
    /// What it is.
    pub value: Value,
}

/// What a [`Node`] is.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing.
    Null,
    /// A text, a number or a truth value, as written.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// Keys and values, in order.
    Map(Vec<(String, Node)>),
}

/// A rule that was translated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Its id here.
    pub id: String,
    /// A rule file.
    pub text: String,
    /// What has no counterpart here.
    pub remarks: Vec<String>,
}

/// Why a rule cannot be translated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct SigmaError {
    /// Where in the YAML.
    pub line: usize,
    /// What stands there and what is understood instead.
    pub message: String,
}

impl Node {
    fn wrong(&self, message: impl Into<String>) -> SigmaError {
        SigmaError { line: self.line, message: message.into() }
    }

    fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(known, _)| known == key).map(|(_, node)| node),
            _ => None,
        }
    }

    fn need(&self, key: &str) -> Result<&Node, SigmaError> {
        self.get(key).ok_or_else(|| self.wrong(format!("the key `{key}` is missing")))
    }

    fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// What a condition comes to: the tree of a match.
#[derive(Clone, Debug, PartialEq)]
enum Expression {
    All(Vec<Expression>),
    Any(Vec<Expression>),
    Not(Box<Expression>),
    /// A field of ours and patterns of which any matches.
    Field(&'static str, Vec<String>),
}

/// Which events a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Category {
    Process,
    File,
}

/// Keys that are read, and keys that only tell people something.
const READ: [&str; 8] = ["title", "id", "description", "logsource", "detection", "level", "tags", "status"];
const TOLD: [&str; 11] = [
    "author",
    "date",
    "modified",
    "references",
    "falsepositives",
    "related",
    "license",
    "name",
    "taxonomy",
    "fields",
    "scope",
];

/// Translates one rule.
pub fn translate(rule: &Node) -> Result<Translation, SigmaError> {
    let Value::Map(entries) = &rule.value else {
        return Err(rule.wrong("this is no Sigma rule: expected keys such as `title`, `logsource` and `detection`"));
    };
    if rule.get("correlation").is_some() {
        return Err(rule.wrong("a correlation of several rules; only single rules are translated"));
    }
    let mut remarks = Vec::new();
    for (key, _) in entries.iter().filter(|(key, _)| !READ.contains(&key.as_str()) && !TOLD.contains(&key.as_str())) {
        remarks.push(format!("`{key}` has no counterpart and is left out"));
    }
    let category = category(rule.need("logsource")?)?;
    let expression = condition::read(rule.need("detection")?, category)?;
    let title = rule.need("title")?;
    let title = title.text().ok_or_else(|| title.wrong("`title` is no text"))?.trim().to_owned();
    let id = format!("sigma-{}", slug(rule.get("id").and_then(Node::text).unwrap_or(&title)));
    let severity = severity(rule, &mut remarks)?;
    let techniques = techniques(rule, &mut remarks);
    let description = rule.get("description").and_then(Node::text).unwrap_or("Imported from a Sigma rule.");
    let mut text = String::from("[[rule]]\n");
    for (key, value) in [
        ("id", id.as_str()),
        ("title", &one_line(&title)),
        ("explanation", &one_line(description)),
        ("severity", severity),
    ] {
        text.push_str(&format!("{key} = {}\n", quoted(value)));
    }
    text.push_str(&format!(
        "techniques = [{}]\n",
        techniques.iter().map(|id| quoted(id)).collect::<Vec<_>>().join(", ")
    ));
    text.push_str(&format!("match = {}\n", matches(category, &expression)));
    // What comes out must be a rule; a pattern that the regular expressions here do not know is found now.
    let read = Rules::parse("the translation", &text).and_then(|rules| rules.check());
    read.map_err(|error| rule.wrong(format!("{error}")))?;
    Ok(Translation { id, text, remarks })
}

fn category(source: &Node) -> Result<Category, SigmaError> {
    if let Some(product) = source.get("product")
        && product.text() != Some("linux")
    {
        return Err(product.wrong(format!("`product` is {}; only rules for linux are translated", told(product))));
    }
    if let Some(service) = source.get("service") {
        return Err(service.wrong(format!(
            "a rule for the log of {}; only events of processes and files are translated",
            told(service)
        )));
    }
    let category = source.need("category")?;
    match category.text() {
        Some("process_creation") => Ok(Category::Process),
        Some("file_event" | "file_create" | "file_change") => Ok(Category::File),
        _ => {
            Err(category
                .wrong(format!("`category` is {}; process_creation and file_event are translated", told(category))))
        }
    }
}

fn severity(rule: &Node, remarks: &mut Vec<String>) -> Result<&'static str, SigmaError> {
    let Some(level) = rule.get("level") else {
        remarks.push("no `level`: severity medium".to_owned());
        return Ok("medium");
    };
    let known = ["informational", "low", "medium", "high", "critical"];
    let found = known.into_iter().find(|known| level.text() == Some(known));
    found.ok_or_else(|| level.wrong(format!("`level` is {}; expected one of {}", told(level), known.join(", "))))
}

fn techniques(rule: &Node, remarks: &mut Vec<String>) -> Vec<String> {
    let mut techniques = Vec::new();
    let Some(Node { value: Value::List(tags), .. }) = rule.get("tags") else { return techniques };
    for tag in tags.iter().filter_map(Node::text) {
        match tag.strip_prefix("attack.t") {
            Some(number) if number.starts_with(|c: char| c.is_ascii_digit()) => techniques.push(format!("T{number}")),
            // Tactics follow from techniques.
            _ if tag.starts_with("attack.") => {}
            _ => remarks.push(format!("tag `{tag}` has no counterpart and is left out")),
        }
    }
    techniques
}

/// The tables of `match`.
fn matches(category: Category, expression: &Expression) -> String {
    let inner = table(expression);
    match category {
        Category::Process => format!("{{ event = \"exec\", all = [{inner}] }}"),
        Category::File => format!(
            "[\n    {{ event = \"open\", access = \"write\", all = [{inner}] }},\n    {{ event = [\"rename\", \"link\", \"symlink\"], all = [{inner}] }},\n]"
        ),
    }
}

fn table(expression: &Expression) -> String {
    let list = |all: &[Expression]| all.iter().map(table).collect::<Vec<_>>().join(", ");
    match expression {
        Expression::All(all) => format!("{{ all = [{}] }}", list(all)),
        Expression::Any(any) => format!("{{ any = [{}] }}", list(any)),
        Expression::Not(one) => format!("{{ not = {} }}", table(one)),
        Expression::Field(field, patterns) => {
            format!(
                "{{ {field} = [{}] }}",
                patterns.iter().map(|pattern| quoted(pattern)).collect::<Vec<_>>().join(", ")
            )
        }
    }
}

/// A TOML text.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn slug(text: &str) -> String {
    let letters =
        text.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '-' });
    let slug: String = letters.collect();
    let parts: Vec<&str> = slug.split('-').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() { "rule".to_owned() } else { parts.join("-") }
}

fn told(node: &Node) -> impl fmt::Display + '_ {
    match &node.value {
        Value::Null => "empty".to_owned(),
        Value::Text(text) => format!("`{text}`"),
        Value::List(_) => "a list".to_owned(),
        Value::Map(_) => "a table".to_owned(),
    }
}

/// Selections by name.
type Selections = BTreeMap<String, Expression>;

#[cfg(test)]
mod tests;

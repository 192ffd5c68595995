//! JSON Schema (2020-12), the part that judges a message by itself. Input: the text of a schema, then messages. Output: whether one fits, and where it does not.
//!
//! The schema is a user's and the message a sandbox's, judged in a process that serves everybody: so every judgement has a bound of steps, patterns are
//! matched in linear time, and nothing is fetched. A keyword that is not known here is refused and not left out: it would let pass what its author meant to hold back.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Number, Value};

/// Bytes of the text of a schema.
pub const SCHEMA_BYTES_MAX: usize = 16 << 10;
/// Places of a schema where a value is judged.
const NODES_MAX: usize = 1024;
/// Steps of the judgement of one message: a few milliseconds.
const STEPS_MAX: u64 = 100_000;
/// How deep a judgement goes: references may lead in circles.
const DEPTH_MAX: u32 = 256;
/// Bytes of a compiled pattern.
const PATTERN_BYTES_MAX: usize = 64 << 10;
/// Bytes of text for which a pattern costs one step.
const PATTERN_STEP_BYTES: u64 = 16;

/// What says something about a schema and judges nothing.
const ANNOTATIONS: [&str; 9] =
    ["$schema", "$id", "$comment", "title", "description", "default", "examples", "deprecated", "readOnly"];

/// A schema, read.
#[derive(Clone, Debug)]
pub struct Schema {
    nodes: Vec<Node>,
}

/// Why a message does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Where in the message (RFC 6901); empty for the whole.
    pub at: String,
    /// By which keyword.
    pub keyword: &'static str,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = if self.at.is_empty() { "the message" } else { &self.at };
        match self.keyword {
            "steps" => write!(f, "judging it takes more than {STEPS_MAX} steps"),
            keyword => write!(f, "{at} does not meet `{keyword}`"),
        }
    }
}

#[derive(Clone, Debug)]
enum Node {
    /// `true` or `false`.
    All(bool),
    Tests(Vec<Test>),
}

#[derive(Clone, Debug)]
enum Test {
    Type(Vec<Kind>),
    Enum(Vec<Value>),
    Const(Value),
    Number(&'static str, f64),
    MultipleOf(f64),
    Length(&'static str, usize),
    Pattern(Regex),
    UniqueItems,
    Required(Vec<String>),
    Properties { named: BTreeMap<String, usize>, patterns: Vec<(Regex, usize)>, others: Option<usize> },
    PropertyNames(usize),
    Items { first: Vec<usize>, others: Option<usize> },
    Contains(usize),
    AllOf(Vec<usize>),
    AnyOf(Vec<usize>),
    OneOf(Vec<usize>),
    Not(usize),
    Reference(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Null,
    Boolean,
    Integer,
    Number,
    String,
    Array,
    Object,
}

impl Schema {
    /// Reads a schema.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(text: &str) -> Result<Schema, String> {
        if text.len() > SCHEMA_BYTES_MAX {
            return Err(format!("it has {} bytes; at most {SCHEMA_BYTES_MAX} go", text.len()));
        }
        let root: Value = serde_json::from_str(text).map_err(|error| format!("it is no JSON: {error}"))?;
        let mut reader = Reader { nodes: Vec::new(), definitions: BTreeMap::new() };
        // Named before anything is read: definitions may refer to each other. The root is number 0.
        reader.nodes.push(Node::All(false));
        let definitions = root.get("$defs").map(|defs| object("$defs", defs)).transpose()?;
        for name in definitions.into_iter().flat_map(Map::keys) {
            reader.definitions.insert(name.clone(), reader.nodes.len());
            reader.nodes.push(Node::All(false));
        }
        for (name, definition) in definitions.into_iter().flatten() {
            let node = reader.node(definition, false)?;
            let at = reader.definitions[name];
            reader.nodes[at] = node;
        }
        reader.nodes[0] = reader.node(&root, true)?;
        Ok(Schema { nodes: reader.nodes })
    }

    /// Judges a message: whether it fits, or where it does not, or that judging it takes too long; and the steps that it took.
    pub fn judge(&self, message: &Value) -> (Result<(), Mismatch>, u64) {
        let mut judge = Judge { nodes: &self.nodes, steps: 0, is_over: false, at: Vec::new() };
        let outcome = judge.node(0, message, 0);
        // More is not done, whatever was to come.
        (outcome, judge.steps.min(STEPS_MAX))
    }
}

struct Reader {
    nodes: Vec<Node>,
    definitions: BTreeMap<String, usize>,
}

impl Reader {
    fn add(&mut self, value: &Value) -> Result<usize, String> {
        let node = self.node(value, false)?;
        if self.nodes.len() >= NODES_MAX {
            return Err(format!("it has more than {NODES_MAX} schemas in it"));
        }
        self.nodes.push(node);
        Ok(self.nodes.len() - 1)
    }

    fn node(&mut self, value: &Value, is_root: bool) -> Result<Node, String> {
        let keywords = match value {
            Value::Bool(all) => return Ok(Node::All(*all)),
            Value::Object(keywords) => keywords,
            _ => return Err("a schema is an object, `true` or `false`".to_owned()),
        };
        let mut tests = Vec::new();
        for (keyword, value) in keywords {
            match keyword.as_str() {
                "$defs" if is_root => {}
                // Read together with others, once.
                "properties" | "patternProperties" | "additionalProperties" | "prefixItems" | "items" => {}
                annotation if ANNOTATIONS.contains(&annotation) => {}
                keyword => tests.push(self.test(keyword, value)?),
            }
        }
        tests.extend(self.properties(keywords)?);
        tests.extend(self.items(keywords)?);
        Ok(Node::Tests(tests))
    }

    fn test(&mut self, keyword: &str, value: &Value) -> Result<Test, String> {
        Ok(match keyword {
            "type" => Test::Type(kinds(value)?),
            "enum" => Test::Enum(list("enum", value)?.clone()),
            "const" => Test::Const(value.clone()),
            "minimum" => Test::Number("minimum", number(keyword, value)?),
            "maximum" => Test::Number("maximum", number(keyword, value)?),
            "exclusiveMinimum" => Test::Number("exclusiveMinimum", number(keyword, value)?),
            "exclusiveMaximum" => Test::Number("exclusiveMaximum", number(keyword, value)?),
            "multipleOf" => match number(keyword, value)? {
                divisor if divisor > 0.0 => Test::MultipleOf(divisor),
                _ => return Err("`multipleOf` is above zero".to_owned()),
            },
            "minLength" => Test::Length("minLength", count(keyword, value)?),
            "maxLength" => Test::Length("maxLength", count(keyword, value)?),
            "minItems" => Test::Length("minItems", count(keyword, value)?),
            "maxItems" => Test::Length("maxItems", count(keyword, value)?),
            "minProperties" => Test::Length("minProperties", count(keyword, value)?),
            "maxProperties" => Test::Length("maxProperties", count(keyword, value)?),
            "pattern" => Test::Pattern(pattern(text(keyword, value)?)?),
            "uniqueItems" if value == &Value::Bool(true) => Test::UniqueItems,
            "uniqueItems" if value == &Value::Bool(false) => Test::AllOf(Vec::new()),
            "required" => Test::Required(
                list(keyword, value)?
                    .iter()
                    .map(|name| Ok(text(keyword, name)?.to_owned()))
                    .collect::<Result<_, String>>()?,
            ),
            "propertyNames" => Test::PropertyNames(self.add(value)?),
            "contains" => Test::Contains(self.add(value)?),
            "allOf" => Test::AllOf(self.all(keyword, value)?),
            "anyOf" => Test::AnyOf(self.all(keyword, value)?),
            "oneOf" => Test::OneOf(self.all(keyword, value)?),
            "not" => Test::Not(self.add(value)?),
            "$ref" => Test::Reference(self.reference(text(keyword, value)?)?),
            other => {
                return Err(format!("`{}` is not known here, and what is not known is not left out", shown(other)));
            }
        })
    }

    fn all(&mut self, keyword: &str, value: &Value) -> Result<Vec<usize>, String> {
        list(keyword, value)?.iter().map(|schema| self.add(schema)).collect()
    }

    fn reference(&self, target: &str) -> Result<usize, String> {
        let found = match target.strip_prefix("#/$defs/") {
            Some(name) => self.definitions.get(name).copied(),
            None => (target == "#").then_some(0),
        };
        found.ok_or_else(|| {
            format!("`$ref` leads to `#` or to `#/$defs/NAME` of this schema, and not to `{}`", shown(target))
        })
    }

    fn properties(&mut self, keywords: &Map<String, Value>) -> Result<Option<Test>, String> {
        let all = |keyword: &str| keywords.get(keyword).map(|value| object(keyword, value)).transpose();
        let (properties, by_pattern) = (all("properties")?, all("patternProperties")?);
        let others = keywords.get("additionalProperties");
        if properties.is_none() && by_pattern.is_none() && others.is_none() {
            return Ok(None);
        }
        let mut named = BTreeMap::new();
        for (name, schema) in properties.into_iter().flatten() {
            named.insert(name.clone(), self.add(schema)?);
        }
        let mut patterns = Vec::new();
        for (text, schema) in by_pattern.into_iter().flatten() {
            patterns.push((pattern(text)?, self.add(schema)?));
        }
        let others = others.map(|schema| self.add(schema)).transpose()?;
        Ok(Some(Test::Properties { named, patterns, others }))
    }

    fn items(&mut self, keywords: &Map<String, Value>) -> Result<Option<Test>, String> {
        let (first, others) = (keywords.get("prefixItems"), keywords.get("items"));
        if first.is_none() && others.is_none() {
            return Ok(None);
        }
        let first = first.map_or(Ok(Vec::new()), |first| self.all("prefixItems", first))?;
        let others = others.map(|schema| self.add(schema)).transpose()?;
        Ok(Some(Test::Items { first, others }))
    }
}

fn shown(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_default).collect()
}

fn object<'a>(keyword: &str, value: &'a Value) -> Result<&'a Map<String, Value>, String> {
    value.as_object().ok_or_else(|| format!("`{keyword}` is an object"))
}

fn list<'a>(keyword: &str, value: &'a Value) -> Result<&'a Vec<Value>, String> {
    value.as_array().ok_or_else(|| format!("`{keyword}` is a list"))
}

fn text<'a>(keyword: &str, value: &'a Value) -> Result<&'a str, String> {
    value.as_str().ok_or_else(|| format!("`{keyword}` takes text"))
}

fn number(keyword: &str, value: &Value) -> Result<f64, String> {
    value.as_f64().ok_or_else(|| format!("`{keyword}` is a number"))
}

fn count(keyword: &str, value: &Value) -> Result<usize, String> {
    let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
    count.ok_or_else(|| format!("`{keyword}` is a whole number from 0"))
}

fn pattern(text: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(text).size_limit(PATTERN_BYTES_MAX).build();
    built.map_err(|_| format!("`{}` is no pattern that can be matched in linear time and bounded room", shown(text)))
}

fn kinds(value: &Value) -> Result<Vec<Kind>, String> {
    let kind = |value: &Value| match value.as_str() {
        Some("null") => Ok(Kind::Null),
        Some("boolean") => Ok(Kind::Boolean),
        Some("integer") => Ok(Kind::Integer),
        Some("number") => Ok(Kind::Number),
        Some("string") => Ok(Kind::String),
        Some("array") => Ok(Kind::Array),
        Some("object") => Ok(Kind::Object),
        _ => Err("`type` is null, boolean, integer, number, string, array or object, or a list of those".to_owned()),
    };
    match value {
        Value::Array(kinds) => kinds.iter().map(kind).collect(),
        one => Ok(vec![kind(one)?]),
    }
}

impl Kind {
    fn is_of(self, value: &Value) -> bool {
        match (self, value) {
            (Kind::Null, Value::Null)
            | (Kind::Boolean, Value::Bool(_))
            | (Kind::Number, Value::Number(_))
            | (Kind::String, Value::String(_))
            | (Kind::Array, Value::Array(_))
            | (Kind::Object, Value::Object(_)) => true,
            (Kind::Integer, Value::Number(number)) => is_whole(number),
            _ => false,
        }
    }
}

/// 1.0 is an integer as well.
fn is_whole(number: &Number) -> bool {
    number.is_i64() || number.is_u64() || number.as_f64().is_some_and(|number| number.fract() == 0.0)
}

/// One judgement.
struct Judge<'a> {
    nodes: &'a [Node],
    steps: u64,
    /// Once the steps are used up nothing fits, whatever a `not` makes of that.
    is_over: bool,
    at: Vec<String>,
}

impl Judge<'_> {
    fn step(&mut self, steps: u64) -> Result<(), Mismatch> {
        self.steps = self.steps.saturating_add(steps);
        self.is_over |= self.steps > STEPS_MAX;
        if self.is_over { Err(self.mismatch("steps")) } else { Ok(()) }
    }

    fn mismatch(&self, keyword: &'static str) -> Mismatch {
        let keyword = if self.is_over { "steps" } else { keyword };
        let escaped = self.at.iter().map(|step| format!("/{}", step.replace('~', "~0").replace('/', "~1")));
        Mismatch { at: escaped.collect(), keyword }
    }

    fn expect(&self, holds: bool, keyword: &'static str) -> Result<(), Mismatch> {
        if holds && !self.is_over { Ok(()) } else { Err(self.mismatch(keyword)) }
    }

    fn node(&mut self, node: usize, value: &Value, depth: u32) -> Result<(), Mismatch> {
        self.step(1)?;
        if depth > DEPTH_MAX {
            self.is_over = true;
            return Err(self.mismatch("steps"));
        }
        let nodes = self.nodes;
        match &nodes[node] {
            Node::All(all) => self.expect(*all, "false"),
            Node::Tests(tests) => tests.iter().try_for_each(|test| self.test(test, value, depth + 1)),
        }
    }

    /// Whether a value fits, with no word why not.
    fn fits(&mut self, node: usize, value: &Value, depth: u32) -> bool {
        let place = self.at.len();
        let fits = self.node(node, value, depth).is_ok();
        self.at.truncate(place);
        fits
    }

    fn test(&mut self, test: &Test, value: &Value, depth: u32) -> Result<(), Mismatch> {
        self.step(1)?;
        match (test, value) {
            (Test::Type(kinds), _) => self.expect(kinds.iter().any(|kind| kind.is_of(value)), "type"),
            (Test::Enum(values), _) => {
                self.step(values.iter().map(size).sum::<u64>() + size(value))?;
                self.expect(values.iter().any(|other| is_equal(other, value)), "enum")
            }
            (Test::Const(other), _) => {
                self.step(size(value))?;
                self.expect(is_equal(other, value), "const")
            }
            (Test::Number(keyword, bound), Value::Number(number)) => {
                let number = number.as_f64().unwrap_or(f64::NAN);
                let holds = match *keyword {
                    "minimum" => number >= *bound,
                    "maximum" => number <= *bound,
                    "exclusiveMinimum" => number > *bound,
                    _ => number < *bound,
                };
                self.expect(holds, keyword)
            }
            (Test::MultipleOf(divisor), Value::Number(number)) => {
                let quotient = number.as_f64().unwrap_or(f64::NAN) / divisor;
                self.expect(quotient.is_finite() && quotient.fract() == 0.0, "multipleOf")
            }
            (Test::Length(keyword, bound), _) => self.length(keyword, *bound, value),
            (Test::Pattern(pattern), Value::String(text)) => {
                self.step(1 + text.len() as u64 / PATTERN_STEP_BYTES)?;
                self.expect(pattern.is_match(text), "pattern")
            }
            (Test::AllOf(nodes), _) => nodes.iter().try_for_each(|node| self.node(*node, value, depth)),
            (Test::AnyOf(nodes), _) => {
                let fits = nodes.iter().any(|node| self.fits(*node, value, depth));
                self.expect(fits, "anyOf")
            }
            (Test::OneOf(nodes), _) => {
                let fitting = nodes.iter().filter(|node| self.fits(**node, value, depth)).count();
                self.expect(fitting == 1, "oneOf")
            }
            (Test::Not(node), _) => {
                let fits = self.fits(*node, value, depth);
                self.expect(!fits, "not")
            }
            (Test::Reference(node), _) => self.node(*node, value, depth),
            (_, Value::Array(items)) => self.array(test, items, depth),
            (_, Value::Object(fields)) => self.object(test, fields, depth),
            // A keyword about another kind of value says nothing of this one.
            _ => Ok(()),
        }
    }

    fn length(&mut self, keyword: &'static str, bound: usize, value: &Value) -> Result<(), Mismatch> {
        let length = match (keyword, value) {
            ("minLength" | "maxLength", Value::String(text)) => {
                self.step(text.len() as u64 / PATTERN_STEP_BYTES)?;
                text.chars().count()
            }
            ("minItems" | "maxItems", Value::Array(items)) => items.len(),
            ("minProperties" | "maxProperties", Value::Object(fields)) => fields.len(),
            _ => return Ok(()),
        };
        self.expect(if keyword.starts_with("min") { length >= bound } else { length <= bound }, keyword)
    }

    fn array(&mut self, test: &Test, items: &[Value], depth: u32) -> Result<(), Mismatch> {
        match test {
            Test::Items { first, others } => {
                for (at, item) in items.iter().enumerate() {
                    let Some(node) = first.get(at).copied().or(*others) else { break };
                    self.within(at.to_string(), node, item, depth)?;
                }
                Ok(())
            }
            Test::Contains(node) => {
                let contains = items.iter().any(|item| self.fits(*node, item, depth));
                self.expect(contains, "contains")
            }
            Test::UniqueItems => {
                // Each with each: the steps are counted before they are made.
                let pairs = (items.len() as u64).saturating_mul(items.iter().map(size).sum());
                self.step(pairs)?;
                let is_new = |(at, item)| !items[..at].iter().any(|other| is_equal(other, item));
                self.expect(items.iter().enumerate().all(is_new), "uniqueItems")
            }
            _ => Ok(()),
        }
    }

    fn object(&mut self, test: &Test, fields: &Map<String, Value>, depth: u32) -> Result<(), Mismatch> {
        match test {
            Test::Required(names) => {
                self.step(names.len() as u64)?;
                self.expect(names.iter().all(|name| fields.contains_key(name)), "required")
            }
            Test::PropertyNames(node) => {
                for name in fields.keys() {
                    self.within(name.clone(), *node, &Value::String(name.clone()), depth)?;
                }
                Ok(())
            }
            Test::Properties { named, patterns, others } => {
                for (name, value) in fields {
                    let mut is_known = false;
                    if let Some(node) = named.get(name) {
                        is_known = true;
                        self.within(name.clone(), *node, value, depth)?;
                    }
                    for (pattern, node) in patterns {
                        self.step(1 + name.len() as u64 / PATTERN_STEP_BYTES)?;
                        if pattern.is_match(name) {
                            is_known = true;
                            self.within(name.clone(), *node, value, depth)?;
                        }
                    }
                    if let Some(node) = others.filter(|_| !is_known) {
                        self.within(name.clone(), node, value, depth)?;
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn within(&mut self, step: String, node: usize, value: &Value, depth: u32) -> Result<(), Mismatch> {
        self.at.push(step);
        self.node(node, value, depth)?;
        self.at.pop();
        Ok(())
    }
}

/// Values in a value, texts by their length: what comparing it costs.
fn size(value: &Value) -> u64 {
    match value {
        Value::Array(items) => 1 + items.iter().map(size).sum::<u64>(),
        Value::Object(fields) => 1 + fields.values().map(size).sum::<u64>(),
        Value::String(text) => 1 + text.len() as u64 / PATTERN_STEP_BYTES,
        Value::Null | Value::Bool(_) | Value::Number(_) => 1,
    }
}

/// 1 and 1.0 are one number (JSON Schema, 4.2.2).
fn is_equal(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            one == other || one.as_f64() == other.as_f64() && !(both_whole(one, other))
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_equal(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(name, value)| other.get(name).is_some_and(|other| is_equal(value, other)))
        }
        (one, other) => one == other,
    }
}

/// Whole numbers are compared exactly: as floats two large ones may be one.
fn both_whole(one: &Number, other: &Number) -> bool {
    let is_exact = |number: &Number| number.is_i64() || number.is_u64();
    is_exact(one) && is_exact(other)
}

//! A TOML text with places: tables whose keys are taken one by one, so that what nobody takes is an unknown key. Input: the text of a rule or
//! case file; output: values with file and line, or an error that names both and the nearest valid key.

use std::borrow::Cow;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::RuleError;
use crate::policy::{Lines, Origin, nearest};

/// Bytes of text that one file may have.
pub const FILE_SIZE_MAX: usize = 1 << 20;

/// Parses a text; the file's name is only for messages.
pub(super) fn parse<'t>(lines: &Lines, text: &'t str) -> Result<DeTable<'t>, RuleError> {
    if text.len() > FILE_SIZE_MAX {
        return Err(RuleError::TooLarge { file: lines.source().to_owned(), bytes: text.len(), max: FILE_SIZE_MAX });
    }
    match DeTable::parse(text) {
        Ok(table) => Ok(table.into_inner()),
        Err(error) => Err(RuleError::Syntax {
            at: lines.origin(&error.span().unwrap_or(0..0)),
            message: error.message().to_owned(),
        }),
    }
}

/// A table that is being read.
pub(super) struct Reader<'a> {
    table: &'a DeTable<'a>,
    at: Range<usize>,
    lines: &'a Lines,
    asked: Vec<&'static str>,
}

impl<'a> Reader<'a> {
    /// The table at `at`.
    pub fn new(table: &'a DeTable<'a>, at: Range<usize>, lines: &'a Lines) -> Self {
        Reader { table, at, lines, asked: Vec::new() }
    }

    /// Where it stands.
    pub fn origin(&self) -> Origin {
        self.lines.origin(&self.at)
    }

    /// The whole text that it takes up, from its own header or brace to the end of its last value.
    pub fn span(&self) -> Range<usize> {
        self.at.clone()
    }

    /// An error about the table as a whole.
    pub fn wrong(&self, message: impl Into<String>) -> RuleError {
        RuleError::Value { at: self.origin(), message: message.into() }
    }

    /// The value of a key.
    pub fn take(&mut self, key: &'static str) -> Option<Item<'a>> {
        self.asked.push(key);
        self.table.get(key).map(|value| Item { key, value, lines: self.lines })
    }

    /// The value of a key that must be there.
    pub fn need(&mut self, key: &'static str) -> Result<Item<'a>, RuleError> {
        if let Some(item) = self.take(key) {
            return Ok(item);
        }
        // A key that is nearly this one says more than that this one is missing.
        let similar = self.table.keys().find(|known| nearest(known.get_ref(), [key]).is_some());
        Err(match similar.filter(|known| !self.asked.contains(&known.get_ref().as_ref())) {
            Some(known) => unknown(self.lines.origin(&known.span()), "key", known.get_ref(), &[key]),
            None => self.wrong(format!("the key `{key}` is missing")),
        })
    }

    /// All keys with their values; the caller judges the names.
    pub fn entries(&self) -> impl Iterator<Item = Item<'a>> {
        self.table.iter().map(|(key, value)| Item { key: key.get_ref(), value, lines: self.lines })
    }

    /// Where the name of a key stands.
    pub fn origin_of(&self, key: &str) -> Origin {
        let found = self.table.iter().find(|(known, _)| known.get_ref() == key);
        found.map_or_else(|| self.origin(), |(known, _)| self.lines.origin(&known.span()))
    }

    /// Complains about keys that nobody asked for.
    pub fn finish(self) -> Result<(), RuleError> {
        let stranger = self.table.keys().find(|key| !self.asked.contains(&key.get_ref().as_ref()));
        match stranger {
            None => Ok(()),
            Some(key) => Err(unknown(self.lines.origin(&key.span()), "key", key.get_ref(), &self.asked)),
        }
    }
}

/// A value that is being read.
#[derive(Clone, Copy)]
pub(super) struct Item<'a> {
    pub key: &'a str,
    value: &'a Spanned<DeValue<'a>>,
    lines: &'a Lines,
}

impl<'a> Item<'a> {
    /// Where it stands.
    pub fn origin(&self) -> Origin {
        self.lines.origin(&self.value.span())
    }

    /// An error about it.
    pub fn wrong(&self, message: impl Into<String>) -> RuleError {
        RuleError::Value { at: self.origin(), message: message.into() }
    }

    fn expected(&self, what: &str) -> RuleError {
        self.wrong(format!("`{}` is {}; expected {what}", self.key, described(self.value.get_ref())))
    }

    /// A text.
    pub fn text(&self) -> Result<&'a str, RuleError> {
        match self.value.get_ref() {
            DeValue::String(text) => Ok(text),
            _ => Err(self.expected("a text in quotes")),
        }
    }

    /// A text that says something.
    pub fn words(&self) -> Result<String, RuleError> {
        let text = self.text()?.trim();
        if text.is_empty() { Err(self.wrong(format!("`{}` says nothing", self.key))) } else { Ok(text.to_owned()) }
    }

    /// Yes or no.
    pub fn flag(&self) -> Result<bool, RuleError> {
        match self.value.get_ref() {
            DeValue::Boolean(flag) => Ok(*flag),
            _ => Err(self.expected("true or false")),
        }
    }

    /// A whole number from 1.
    pub fn count(&self) -> Result<u64, RuleError> {
        let number = match self.value.get_ref() {
            DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        number.filter(|number| *number > 0).ok_or_else(|| self.expected("a whole number from 1"))
    }

    /// A time as `"500ms"`, `"10s"`, `"5m"` or `"2h"`, in nanoseconds.
    pub fn time_ns(&self) -> Result<u64, RuleError> {
        const UNITS: [(&str, u64); 4] =
            [("ms", 1_000_000), ("s", 1_000_000_000), ("m", 60_000_000_000), ("h", 3_600_000_000_000)];
        let text = self.text()?;
        let time = UNITS.iter().find_map(|(unit, ns)| text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(*ns));
        time.filter(|time| *time > 0).ok_or_else(|| {
            self.wrong(format!("`{text}` is no time; expected one such as \"500ms\", \"10s\", \"5m\" or \"2h\""))
        })
    }

    /// One text or number, or a list of them, as written.
    pub fn list(&self) -> Result<Vec<Cow<'a, str>>, RuleError> {
        match self.value.get_ref() {
            DeValue::Array(items) => items.iter().map(|value| Item { value, ..*self }.scalar()).collect(),
            _ => Ok(vec![self.scalar()?]),
        }
    }

    fn scalar(&self) -> Result<Cow<'a, str>, RuleError> {
        match self.value.get_ref() {
            DeValue::String(text) => Ok(Cow::Borrowed(text)),
            DeValue::Integer(number) => match u64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Ok(Cow::Owned(number.to_string())),
                Err(_) => Err(self.expected("a whole number from 0")),
            },
            _ => Err(self.expected("a text, a number, or a list of them")),
        }
    }

    /// One of a set of words.
    pub fn word<T: Copy>(&self, what: &'static str, known: &[(&'static str, T)]) -> Result<T, RuleError> {
        let text = self.text()?;
        let found = known.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        found
            .ok_or_else(|| unknown(self.origin(), what, text, &known.iter().map(|(name, _)| *name).collect::<Vec<_>>()))
    }

    /// A table.
    pub fn table(&self) -> Result<Reader<'a>, RuleError> {
        match self.value.get_ref() {
            DeValue::Table(table) => Ok(Reader::new(table, self.value.span(), self.lines)),
            _ => Err(self.expected("a table")),
        }
    }

    /// One table or a list of tables.
    pub fn tables(&self) -> Result<Vec<Reader<'a>>, RuleError> {
        match self.value.get_ref() {
            DeValue::Array(items) => items.iter().map(|value| Item { value, ..*self }.table()).collect(),
            _ => Ok(vec![self.table()?]),
        }
    }

    /// As plain TOML without places.
    pub fn plain(&self) -> toml::Value {
        plain(self.value.get_ref())
    }
}

/// The error about a name that does not exist.
pub(super) fn unknown(at: Origin, what: &'static str, name: &str, accepted: &[&str]) -> RuleError {
    RuleError::Unknown {
        at,
        what,
        name: name.to_owned(),
        nearest: nearest(name, accepted.iter().copied()),
        accepted: accepted.iter().map(|name| format!("`{name}`")).collect(),
    }
}

fn plain(value: &DeValue<'_>) -> toml::Value {
    match value {
        DeValue::String(text) => toml::Value::String(text.clone().into_owned()),
        DeValue::Integer(number) => {
            toml::Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).unwrap_or(i64::MAX))
        }
        DeValue::Float(number) => toml::Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(flag) => toml::Value::Boolean(*flag),
        DeValue::Datetime(time) => toml::Value::Datetime(*time),
        DeValue::Array(items) => toml::Value::Array(items.iter().map(|item| plain(item.get_ref())).collect()),
        DeValue::Table(table) => toml::Value::Table(
            table.iter().map(|(key, value)| (key.get_ref().clone().into_owned(), plain(value.get_ref()))).collect(),
        ),
    }
}

const fn described(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

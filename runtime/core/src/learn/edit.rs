//! Edits of a policy's text that leave alone what a person wrote. Input: a document and rows; output: the document.

use std::collections::{BTreeMap, BTreeSet};

use toml_edit::{Array, DocumentMut, Item, Table, Value};

use super::LearnError;
use super::text::{key, parse};
use crate::policy::{LearnedTable, learned_table};

/// How our comments on rows begin.
pub(super) const USED: &str = "# used ";
pub(super) const WITH: &str = "# goes with ";
/// Sections in the order of a fresh file.
const SECTIONS: [&str; 7] =
    ["filesystem", "network", "syscalls", "environment", "capabilities", "resources", "learned"];

/// A file that is being brought up to date.
pub(super) struct Edit<'f> {
    pub doc: DocumentMut,
    /// What it holds of earlier runs.
    pub old: LearnedTable,
    /// Its name in errors.
    file: &'f str,
}

/// A learned row of a list.
pub(super) struct Row {
    /// What it is known by.
    pub word: String,
    pub value: Value,
    /// On a line before it.
    pub comment: Option<String>,
}

/// Gives new sections the place that they have in a fresh file, and puts `[learned]` behind everything.
fn order(doc: &mut DocumentMut) {
    let position = |table: &Table| table.position().unwrap_or_default();
    let last = doc.iter().filter_map(|(_, item)| item.as_table().map(position)).max().unwrap_or_default();
    let is_fresh = doc.iter().all(|(_, item)| item.as_table().is_none_or(|table| table.position().is_none()));
    let mut before = None;
    for (place, name) in (0..).zip(SECTIONS) {
        let Some(table) = doc.get_mut(name).and_then(Item::as_table_mut) else { continue };
        if name == "learned" {
            table.set_position(Some(last + place + 1));
        } else if is_fresh {
            table.set_position(Some(place));
        } else if table.position().is_none() {
            // Of two at one place the one that was there first stands first.
            table.set_position(before);
        }
        before = table.position().or(before);
    }
}

/// The word that a row of a list is known by: of a path, the one inside.
pub(super) fn word_of(value: &Value) -> Option<String> {
    match value {
        Value::String(word) => Some(word.value().clone()),
        Value::InlineTable(table) => {
            table.get("dest").or_else(|| table.get("path")).and_then(Value::as_str).map(str::to_owned)
        }
        _ => None,
    }
}

/// The bracket on a line of its own, unless a person put something before it.
pub(super) fn close(list: &mut Array) {
    if list.trailing().as_str().is_none_or(|text| text.trim().is_empty()) {
        list.set_trailing("\n");
    }
    list.set_trailing_comma(true);
}

pub(super) fn row(mut value: Value, comment: Option<&str>) -> Value {
    let comment = comment.map(|comment| format!("\n    {comment}")).unwrap_or_default();
    value.decor_mut().set_prefix(format!("{comment}\n    "));
    value
}

fn is_our_comment(line: &str) -> bool {
    line.is_empty() || line.starts_with(USED) || line.starts_with(WITH)
}

impl<'f> Edit<'f> {
    pub fn new(text: &str, file: &'f str) -> Result<Edit<'f>, LearnError> {
        Ok(Edit { old: learned_table(text, file)?.unwrap_or_default(), doc: parse(text, file)?, file })
    }

    /// The text.
    pub fn finish(mut self) -> String {
        order(&mut self.doc);
        self.doc.to_string()
    }

    /// Whether a line was learned, by its list and word.
    pub fn is_learned(&self, kind: &str, word: &str) -> bool {
        self.old.seen.contains_key(&key(kind, word))
    }

    pub fn shape(&self, key: &str) -> LearnError {
        LearnError::Shape { file: self.file.to_owned(), key: key.to_owned() }
    }

    pub fn table(&mut self, name: &str) -> &mut Table {
        let item = self.doc.entry(name).or_insert_with(|| Item::Table(Table::new()));
        if !item.is_table() {
            // An inline table, or dotted keys: the same in another form.
            let made = std::mem::take(item).into_table().unwrap_or_default();
            *item = Item::Table(made);
        }
        item.as_table_mut().expect("it was just made one")
    }

    pub fn list(&mut self, of: &str, name: &str) -> Result<&mut Array, LearnError> {
        let shape = self.shape(&format!("{of}.{name}"));
        let item = self.table(of).entry(name).or_insert_with(|| Item::Value(Value::Array(Array::new())));
        item.as_array_mut().ok_or(shape)
    }

    /// Says a key of which the file says nothing.
    pub fn absent(&mut self, of: &str, name: &str, value: Value) {
        let table = self.table(of);
        if !table.contains_key(name) {
            table.insert(name, Item::Value(value));
        }
    }

    /// Brings the learned rows of a list up to date, which stand as `kind` in `[learned.seen]`; rows of a person stay as they are, with their
    /// comments.
    pub fn update(&mut self, of: &str, name: &str, kind: &str, rows: Vec<Row>) -> Result<(), LearnError> {
        if rows.is_empty() && self.doc.get(of).and_then(|table| table.get(name)).is_none() {
            return Ok(());
        }
        let ours: BTreeSet<String> = self
            .old
            .seen
            .keys()
            .filter_map(|seen| Some(seen.strip_prefix(kind)?.strip_prefix(' ')?.to_owned()))
            .collect();
        let list = self.list(of, name)?;
        let old: Vec<Value> = list.iter().cloned().collect();
        list.clear();
        let mut new: BTreeMap<String, Row> = rows.into_iter().map(|row| (row.word.clone(), row)).collect();
        // What stands there by its word, learned or by hand.
        let mut known: BTreeMap<String, Row> = BTreeMap::new();
        for word in old.iter().filter_map(word_of) {
            known.extend(new.remove(&word).map(|row| (word, row)));
        }
        for value in old {
            let word = word_of(&value).unwrap_or_default();
            match (ours.contains(&word), known.remove(&word)) {
                // A person's own line about the same.
                (false, _) => list.push_formatted(value),
                (true, Some(row)) => {
                    // Among our own in the order of names, so that a file grows as it would have been written at once.
                    let later = new.split_off(&word);
                    push_all(list, std::mem::replace(&mut new, later));
                    list.push_formatted(renewed(&value, row));
                }
                (true, None) => {}
            }
        }
        push_all(list, new);
        close(list);
        Ok(())
    }
}

fn push_all(list: &mut Array, rows: BTreeMap<String, Row>) {
    for (_, Row { value, comment, .. }) in rows {
        list.push_formatted(row(value, comment.as_deref()));
    }
}

/// A learned row anew, with what a person wrote before it.
fn renewed(old: &Value, new: Row) -> Value {
    let prefix = old.decor().prefix().and_then(|raw| raw.as_str()).unwrap_or("\n    ").to_owned();
    let is_ours = prefix.lines().all(|line| is_our_comment(line.trim()));
    let mut value = row(new.value, new.comment.as_deref());
    if !is_ours {
        value.decor_mut().set_prefix(prefix);
    }
    value
}

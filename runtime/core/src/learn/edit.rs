//! Edits of a policy's text that leave alone what a person wrote. Input: a document and rows; output: the document.

use std::collections::{BTreeMap, BTreeSet};

use toml_edit::{Array, DocumentMut, Item, Table, Value};

use super::LearnError;

/// How our comments on rows begin.
pub(super) const USED: &str = "# used ";
pub(super) const WITH: &str = "# goes with ";
/// Sections in the order of a fresh file.
const SECTIONS: [&str; 7] =
    ["filesystem", "network", "syscalls", "environment", "capabilities", "resources", "learned"];

/// Gives new sections the place that they have in a fresh file, and puts `[learned]` behind everything.
pub(super) fn order(doc: &mut DocumentMut) {
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

/// Brings the learned rows of a list up to date; rows of a person stay as they are, with their comments.
pub(super) fn update(
    doc: &mut DocumentMut,
    of: &str,
    name: &str,
    rows: Vec<(String, Value, Option<String>)>,
    ours: &BTreeSet<String>,
    file: &str,
) -> Result<(), LearnError> {
    if rows.is_empty() && doc.get(of).and_then(|table| table.get(name)).is_none() {
        return Ok(());
    }
    let mut rows: BTreeMap<String, (Value, Option<String>)> =
        rows.into_iter().map(|(word, value, comment)| (word, (value, comment))).collect();
    let list = list(doc, of, name, file)?;
    let mut at = 0;
    while at < list.len() {
        let word = list.get(at).and_then(word_of).unwrap_or_default();
        match (ours.contains(&word), rows.remove(&word)) {
            // A person's own line about the same.
            (false, _) => at += 1,
            (true, Some((value, comment))) => {
                if let Some(old) = list.get_mut(at) {
                    let prefix = old.decor().prefix().and_then(|raw| raw.as_str()).unwrap_or("\n    ").to_owned();
                    let is_ours = prefix.lines().all(|line| is_our_comment(line.trim()));
                    let mut new = row(value, comment.as_deref());
                    if !is_ours {
                        new.decor_mut().set_prefix(prefix);
                    }
                    *old = new;
                }
                at += 1;
            }
            (true, None) => drop(list.remove(at)),
        }
    }
    for (word, (value, comment)) in rows {
        // Among our own in the order of names, so that a file grows as it would have been written at once.
        let is_later = |other: &Value| word_of(other).is_some_and(|other| ours.contains(&other) && other > word);
        let at = list.iter().position(is_later).unwrap_or(list.len());
        list.insert_formatted(at, row(value, comment.as_deref()));
    }
    close(list);
    Ok(())
}

pub(super) fn table<'d>(doc: &'d mut DocumentMut, name: &str) -> &'d mut Table {
    let item = doc.entry(name).or_insert_with(|| Item::Table(Table::new()));
    if !item.is_table() {
        // An inline table, or dotted keys: the same in another form.
        let made = std::mem::take(item).into_table().unwrap_or_default();
        *item = Item::Table(made);
    }
    item.as_table_mut().expect("it was just made one")
}

pub(super) fn list<'d>(
    doc: &'d mut DocumentMut,
    of: &str,
    name: &str,
    file: &str,
) -> Result<&'d mut Array, LearnError> {
    let item = table(doc, of).entry(name).or_insert_with(|| Item::Value(Value::Array(Array::new())));
    item.as_array_mut().ok_or_else(|| LearnError::Shape { file: file.to_owned(), key: format!("{of}.{name}") })
}

pub(super) fn absent(doc: &mut DocumentMut, of: &str, name: &str, value: Value) {
    let table = table(doc, of);
    if !table.contains_key(name) {
        table.insert(name, Item::Value(value));
    }
}

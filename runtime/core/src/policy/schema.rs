//! The JSON Schema of the format. Input: the types of `file` and `value`; output: text for editors and other tools.
//!
//! Types here only describe what a hand-written deserializer accepts; nothing parses with them.
#![allow(dead_code, reason = "described, never built")]

use schemars::JsonSchema;

use super::file::File;
use super::value::{PathTable, TmpfsTable};

/// A path or its table.
#[derive(JsonSchema)]
#[serde(untagged)]
pub enum PathOrTable {
    /// The path alone.
    Path(String),
    /// The path with more.
    Table(PathTable),
}

/// A tmpfs or its table.
#[derive(JsonSchema)]
#[serde(untagged)]
pub enum TmpfsOrTable {
    /// The path alone.
    Path(String),
    /// The path with its size.
    Table(TmpfsTable),
}

/// Bytes, or text with a unit (K, M, G, T: powers of 1024), or `unlimited` where that is possible.
#[derive(JsonSchema)]
#[serde(untagged)]
pub enum SizeOrNumber {
    /// Bytes.
    Number(u64),
    /// With a unit.
    Text(#[schemars(regex(pattern = r"^([0-9]+(B|[KMGT](iB)?)?|unlimited)$"))] String),
}

/// A number, or `unlimited`.
#[derive(JsonSchema)]
#[serde(untagged)]
pub enum NumberOrUnlimited {
    /// The number.
    Number(#[schemars(range(min = 1))] u64),
    /// The number as text, or no limit.
    Text(#[schemars(regex(pattern = r"^([0-9]+%?|unlimited)$"))] String),
}

/// A time with its unit, or `unlimited`.
#[derive(JsonSchema)]
#[schemars(transparent)]
pub struct Time(#[schemars(regex(pattern = r"^([0-9]+(ms|s|m|h|d)|unlimited)$"))] String);

/// The schema of a mode, profile or policy file, as JSON text that ends with a newline.
pub fn json_schema() -> String {
    let mut schema = schemars::schema_for!(File);
    schema.insert("title".to_owned(), "Apex policy".into());
    let mut text = serde_json::to_string_pretty(&schema).expect("a schema is plain JSON");
    text.push('\n');
    text
}

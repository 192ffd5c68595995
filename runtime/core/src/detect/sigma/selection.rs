//! Selections of a Sigma rule: fields with modifiers and values. Input: a node of `detection`; output: an expression over our fields.

use super::{Category, Expression, Node, SigmaError, Value, told};

/// Fields of Sigma and ours.
const PROCESS: [(&str, &str); 8] = [
    ("Image", "exe"),
    ("CommandLine", "args"),
    ("ParentImage", "parent_exe"),
    ("ParentCommandLine", "parent_args"),
    ("ProcessName", "comm"),
    ("ProcessId", "pid"),
    ("exe", "exe"),
    ("name", "comm"),
];
const FILE: [(&str, &str); 3] = [("TargetFilename", "path"), ("Image", "exe"), ("ProcessId", "pid")];
/// Whose `*` must not stop at a slash.
const PATHS: [&str; 3] = ["exe", "parent_exe", "path"];
/// Values of one selection.
const VALUES_MAX: usize = 4096;

/// How a value is compared.
#[derive(Clone, Copy, Debug, Default)]
struct Modifiers {
    place: Place,
    all: bool,
    cased: bool,
    exists: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Whole,
    Contains,
    Start,
    End,
    Regex,
}

/// One selection: a table is all of its fields, a list of tables any of them.
pub(super) fn read(name: &str, node: &Node, category: Category) -> Result<Expression, SigmaError> {
    match &node.value {
        Value::Map(entries) if !entries.is_empty() => entries
            .iter()
            .map(|(key, value)| field(key, value, category))
            .collect::<Result<_, _>>()
            .map(Expression::All),
        Value::List(items) if !items.is_empty() => {
            let any = items.iter().map(|item| match &item.value {
                Value::Map(_) => read(name, item, category),
                _ => Err(item.wrong(format!(
                    "`{name}` looks for the words {} in any field; events have no such text",
                    told(item)
                ))),
            });
            any.collect::<Result<_, _>>().map(Expression::Any)
        }
        _ => Err(node.wrong(format!("the selection `{name}` is {}; expected fields with values", told(node)))),
    }
}

fn field(key: &str, node: &Node, category: Category) -> Result<Expression, SigmaError> {
    let mut words = key.split('|');
    let name = words.next().unwrap_or_default();
    let known: &[(&str, &'static str)] = match category {
        Category::Process => &PROCESS,
        Category::File => &FILE,
    };
    let Some((_, ours)) = known.iter().find(|(theirs, _)| *theirs == name) else {
        let names: Vec<&str> = known.iter().map(|(theirs, _)| *theirs).collect();
        return Err(node.wrong(format!("the field `{name}` is not in the events; these are: {}", names.join(", "))));
    };
    let modifiers = modifiers(words, node)?;
    let values = match &node.value {
        Value::List(items) => items.iter().collect::<Vec<_>>(),
        _ => vec![node],
    };
    if values.is_empty() || values.len() > VALUES_MAX {
        return Err(node.wrong(format!("`{key}` has {} values; from 1 to {VALUES_MAX} are accepted", values.len())));
    }
    let each = values.into_iter().map(|value| one(ours, value, modifiers)).collect::<Result<Vec<_>, _>>()?;
    Ok(if modifiers.all { Expression::All(each) } else { joined(ours, each) })
}

/// Any of several patterns of one field is one list of patterns.
fn joined(field: &'static str, each: Vec<Expression>) -> Expression {
    let mut patterns = Vec::new();
    let mut others = Vec::new();
    for one in each {
        match one {
            Expression::Field(_, mut found) => patterns.append(&mut found),
            other => others.push(other),
        }
    }
    if !patterns.is_empty() {
        others.push(Expression::Field(field, patterns));
    }
    if others.len() == 1 { others.remove(0) } else { Expression::Any(others) }
}

fn modifiers<'a>(words: impl Iterator<Item = &'a str>, node: &Node) -> Result<Modifiers, SigmaError> {
    let mut modifiers = Modifiers::default();
    for word in words {
        match word {
            "contains" => modifiers.place = Place::Contains,
            "startswith" => modifiers.place = Place::Start,
            "endswith" => modifiers.place = Place::End,
            "re" => {
                modifiers.place = Place::Regex;
                modifiers.cased = true;
            }
            "i" if modifiers.place == Place::Regex => modifiers.cased = false,
            "all" => modifiers.all = true,
            "cased" => modifiers.cased = true,
            "exists" => modifiers.exists = true,
            other => {
                return Err(node.wrong(format!(
                    "the modifier `{other}` is not translated; these are: contains, startswith, endswith, re, i, all, cased, exists"
                )));
            }
        }
    }
    Ok(modifiers)
}

fn one(field: &'static str, value: &Node, modifiers: Modifiers) -> Result<Expression, SigmaError> {
    // Something, or nothing at all.
    let anything = || Expression::Field(field, vec!["re:.".to_owned()]);
    let text = match &value.value {
        Value::Null => return Ok(Expression::Not(Box::new(anything()))),
        Value::Text(text) if modifiers.exists => {
            let is_there = text == "true" || text == "yes";
            return Ok(if is_there { anything() } else { Expression::Not(Box::new(anything())) });
        }
        Value::Text(text) if field == "pid" => {
            text.parse::<u32>().map_err(|_| value.wrong(format!("`{text}` is no process id")))?;
            return Ok(Expression::Field(field, vec![text.clone()]));
        }
        Value::Text(text) => text,
        _ => return Err(value.wrong(format!("{} stands where a value is expected", told(value)))),
    };
    if modifiers.place == Place::Regex {
        return Ok(Expression::Field(field, vec![format!("re:{}{text}", if modifiers.cased { "" } else { "(?i)" })]));
    }
    let any = if PATHS.contains(&field) { "**" } else { "*" };
    let (before, after) = match modifiers.place {
        Place::Contains => (any, any),
        Place::Start => ("", any),
        Place::End => (any, ""),
        Place::Whole | Place::Regex => ("", ""),
    };
    let glob = format!("{before}{}{after}", glob(text, any));
    // A glob that begins with `i:` or `re:` is none without the prefix, which is only left out for plain ones.
    let pattern = if modifiers.cased { format!("re:{}", anchored(&glob)) } else { format!("i:{glob}") };
    Ok(Expression::Field(field, vec![pattern]))
}

/// A text of Sigma as a glob of ours: `*` and `?` stand for anything, `\` takes them as they are, all other signs are themselves.
fn glob(text: &str, any: &str) -> String {
    let mut out = String::new();
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '*' => out.push_str(any),
            '?' => out.push('?'),
            '\\' => {
                let literal = letters.next_if(|next| matches!(next, '*' | '?' | '\\')).unwrap_or('\\');
                out.push('\\');
                out.push(literal);
            }
            '[' | ']' | '{' | '}' | ',' => {
                out.push('\\');
                out.push(letter);
            }
            other => out.push(other),
        }
    }
    out
}

/// A glob of ours as a regular expression: only what [`glob`] makes.
fn anchored(glob: &str) -> String {
    let mut out = String::from("^");
    let mut letters = glob.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '*' => {
                while letters.next_if_eq(&'*').is_some() {}
                out.push_str(".*");
            }
            '?' => out.push('.'),
            '\\' => out.push_str(&regex::escape(&letters.next().unwrap_or('\\').to_string())),
            other => out.push_str(&regex::escape(&other.to_string())),
        }
    }
    out + "$"
}

//! Secrets in texts, replaced by `***`. Input: a command, a variable, a message, a JSON value; output: the same without what looks like a secret.
//! Names decide for the most part (`*TOKEN*=`, `--password`), some secrets are known by their own shape. In doubt more is masked than less; a secret that
//! stands alone and looks like any word cannot be known. Masking what is masked changes nothing.

use std::sync::LazyLock;

use regex::{Regex, RegexSet};
use serde_json::Value;

/// What stands where a secret stood.
pub const MASK: &str = "***";

/// Deepest nesting of a value that is kept.
const DEPTH_MAX: usize = 32;
/// Rounds until nothing changes; what changes still is masked as a whole.
const ROUNDS_MAX: usize = 8;

/// Names of secrets, as parts of other names.
const STRONG: &str =
    "(?:token|secret|passw(?:or)?d|passphrase|passwd|credential|api[-_]?key|access[-_]?key|private[-_]?key)";
/// Schemes of HTTP authentication.
const SCHEMES: &str = "basic|bearer|digest|negotiate|token|apikey";
/// A value as a shell reads one: quoted and plain pieces without a blank between them; a quote that is not closed reaches to the end.
const VALUE: &str = r#"(?:"(?:[^"\\]|\\(?s:.))*(?:"|\\?$)|'[^']*(?:'|$)|\\(?s:.)?|[^ \t\r\n"'\\])+"#;

/// A value of a header or of JSON, which may itself stand in quotes: it ends at a blank or a quote, or is quoted, or has escaped quotes. What
/// looks like the name of a field is part of it (`token: x-token: abc`), since it may as well be the value.
const FIELD: &str = concat!(
    r#"(?:[^ \t\r\n"']+:[ \t]+)*"#,
    r#"(?:"(?:[^"\\]|\\(?s:.))*(?:"|\\?$)|'[^']*(?:'|$)|\\+"[^"]*(?:"|$)|\\+'[^']*(?:'|$)|[^ \t\r\n"']*[^ \t\r\n"',}\])])"#
);

/// Patterns, what they become, and what they are for.
static PATTERNS: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| {
    let name = "[A-Za-z0-9_.-]*";
    [
        // Private keys, to their end or that of the text.
        ("-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----(?s:.*?)(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|$)".to_owned(), "***"),
        // --password abc; what looks like an option or a field may be the value, and the word after it too
        (format!(r#"((?:^|[ \t])--?{name}(?i-u:key|{STRONG}){name}[ \t]+)(?:(?:-{VALUE}|[^ \t\r\n"']+:)[ \t]+)*{VALUE}"#), "${1}***"),
        // AWS_SECRET_ACCESS_KEY=abc, ?token=abc, --api-key=abc
        (format!(r#"({name}(?i-u:key|{STRONG}){name}\\?["']?=){VALUE}"#), "${1}***"),
        // "password": "abc", password: abc
        (format!(r#"({name}(?i-u:{STRONG}){name}\\?["']?[ \t]*:[ \t]*){FIELD}"#), "${1}***"),
        // "authorization": "Basic abc", Authorization: Basic abc
        (format!(r#"((?i-u:authorization)\\?["']?[ \t]*[:=][ \t]*(?:(?i-u:{SCHEMES})[ \t]+)?){FIELD}"#), "${1}***"),
        // Bearer abc
        (r"((?i-u:bearer)[ \t]+)[A-Za-z0-9._~+/=-]{8,}".to_owned(), "${1}***"),
        // sshpass -p abc
        (format!(r"((?:^|[ \t/])sshpass[ \t]+-p[ \t]*){VALUE}"), "${1}***"),
        // curl -u name:abc
        (r"((?:^|[ \t])(?:-u|--user|--proxy-user)[ \t=]*[^ \t\r\n:=]+:)[^ \t\r\n]+".to_owned(), "${1}***"),
        // https://name:abc@host, and a long name alone, which is a token
        (r"([A-Za-z][A-Za-z0-9+.-]*://[^ \t\r\n/@:]*:)[^ \t\r\n]*@".to_owned(), "${1}***@"),
        (r"([A-Za-z][A-Za-z0-9+.-]*://)[^ \t\r\n/@:]{20,}@".to_owned(), "${1}***@"),
        // Keys and tokens with a shape of their own: AWS, GitHub, GitLab, Slack, sk-, JSON web tokens.
        (r"(?:AKIA|ASIA)[A-Z0-9]{16}".to_owned(), "***"),
        (r"(?:gh[pousr]_|github_pat_|glpat-|xox[abeprs]-)[A-Za-z0-9_-]{16,}".to_owned(), "***"),
        (r"(?-u:\b)sk-[A-Za-z0-9_-]{20,}".to_owned(), "***"),
        (r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*".to_owned(), "***"),
    ]
    .into_iter()
    .map(|(pattern, to)| (Regex::new(&pattern).expect("each pattern is used by a test"), to))
    .collect()
});

/// All of them at once: most texts match none, and are looked at once instead of once for each.
static ANY: LazyLock<RegexSet> = LazyLock::new(|| {
    RegexSet::new(PATTERNS.iter().map(|(pattern, _)| pattern.as_str())).expect("each of them is a pattern")
});

/// A name whose value is a secret, alone.
static SECRET_NAME: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(&format!("(?i-u:(?:^|[-_.])key(?:$|[-_.])|apikey|authorization|{STRONG})")).expect("used by a test")
});

/// A text without its secrets.
pub fn mask(text: &str) -> String {
    settled(text, once)
}

/// What a text becomes when `change` is done until it changes nothing.
fn settled(text: &str, change: impl Fn(&str) -> String) -> String {
    let mut text = text.to_owned();
    for _ in 0..ROUNDS_MAX {
        let next = change(&text);
        if next == text {
            return text;
        }
        text = next;
    }
    MASK.to_owned()
}

fn once(text: &str) -> String {
    if !ANY.is_match(text) {
        return text.to_owned();
    }
    PATTERNS.iter().fold(text.to_owned(), |text, (pattern, to)| pattern.replace_all(&text, *to).into_owned())
}

/// Words of a command, or `NAME=value` of an environment, without their secrets. A value with blanks is masked whole, and so is the word
/// after an option that takes a secret.
pub fn mask_words<S: AsRef<str>>(words: &[S]) -> Vec<String> {
    let mut is_value = false;
    let mut masked = Vec::with_capacity(words.len());
    for word in words.iter().map(AsRef::as_ref) {
        let next = if is_value { MASK.to_owned() } else { mask_word(word) };
        // A value that is itself such an option: either of the next words may be the secret.
        is_value = awaits_secret(&next) || (is_value && awaits_secret(word));
        masked.push(next);
    }
    masked
}

/// Whether the word after this one is a secret.
fn awaits_secret(word: &str) -> bool {
    word.starts_with('-') && !word.contains(['=', ' ']) && is_secret(word)
}

/// A word that is `NAME=value` has all of the value masked, blanks included.
fn mask_word(word: &str) -> String {
    settled(word, |word| match word.split_once('=') {
        Some((name, _)) if !name.contains([' ', '\t', '\n', '/']) && is_secret(name) => once(&format!("{name}={MASK}")),
        _ => once(word),
    })
}

fn is_secret(name: &str) -> bool {
    SECRET_NAME.is_match(name)
}

/// A value without its secrets: by the keys of objects, and in every text. What is nested too deep is masked.
pub fn mask_value(value: &Value) -> Value {
    masked(value, DEPTH_MAX)
}

fn masked(value: &Value, depth: usize) -> Value {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        Value::String(text) => Value::String(mask(text)),
        Value::Array(_) | Value::Object(_) if depth == 0 => Value::String(MASK.to_owned()),
        Value::Array(items) => match words(items) {
            Some(words) => mask_words(&words).into(),
            None => items.iter().map(|item| masked(item, depth - 1)).collect(),
        },
        Value::Object(members) => members
            .iter()
            .map(|(key, value)| {
                let is_text = matches!(value, Value::String(_) | Value::Array(_) | Value::Object(_));
                let value = if is_text && is_secret(key) { MASK.into() } else { masked(value, depth - 1) };
                (mask(key), value)
            })
            .collect(),
    }
}

/// The items of a list of texts, which may be a command.
fn words(items: &[Value]) -> Option<Vec<&str>> {
    items.iter().map(Value::as_str).collect()
}

/// A text of at most `bytes_max` bytes and a `…` where something is missing.
pub(super) fn cut(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max));
        text.push('…');
    }
    text
}

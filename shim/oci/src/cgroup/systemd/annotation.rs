//! `org.systemd.property.NAME` annotations: a property in GVariant's text format, as crun and runc take it.

use std::collections::HashMap;

use apex_jail::cgroup::unit::Property;

use super::super::error::CgroupError;

const PREFIX: &str = "org.systemd.property.";

/// Properties that say whose process it is or where it stands: these are not the bundle's to say.
const OURS: [&str; 6] = ["PIDs", "Slice", "Delegate", "Description", "DeviceAllow", "DevicePolicy"];

/// The properties among the annotations, by name.
pub(super) fn properties(
    annotations: Option<&HashMap<String, String>>,
) -> Result<Vec<(String, Property)>, CgroupError> {
    let mut found = Vec::new();
    for (key, value) in annotations.into_iter().flatten() {
        let Some(name) = key.strip_prefix(PREFIX) else {
            continue;
        };
        let fail = |reason| CgroupError::Annotation { key: key.clone(), value: value.clone(), reason };
        if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return Err(fail("a property's name has three letters or more"));
        }
        if OURS.contains(&name) {
            return Err(fail("this property is set by the runtime"));
        }
        let property = parse(value).ok_or_else(|| fail("its value is not in the text format of GVariant"))?;
        found.push(in_microseconds(name, property).ok_or_else(|| fail("seconds are a number that is not negative"))?);
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// Units know times as seconds in their files and as microseconds on the bus: `TimeoutStopSec` is `TimeoutStopUSec` there.
fn in_microseconds(name: &str, property: Property) -> Option<(String, Property)> {
    let stem = match name.strip_suffix("Sec") {
        Some(stem) if !stem.ends_with('U') => stem,
        Some(_) | None => return Some((name.to_owned(), property)),
    };
    let whole = |seconds: u64| seconds.checked_mul(1_000_000);
    let us = match property {
        Property::Int32(seconds) => whole(seconds.try_into().ok()?)?,
        Property::Int64(seconds) => whole(seconds.try_into().ok()?)?,
        Property::Uint32(seconds) => whole(seconds.into())?,
        Property::Uint64(seconds) => whole(seconds)?,
        Property::Double(seconds) if (0.0..1e12).contains(&seconds) => (seconds * 1e6) as u64,
        Property::Double(_)
        | Property::Text(_)
        | Property::Flag(_)
        | Property::Texts(_)
        | Property::Uint32s(_)
        | Property::Bytes(_)
        | Property::Pairs(_)
        | Property::Rates(_) => return None,
    };
    Some((format!("{stem}USec"), Property::Uint64(us)))
}

/// A value in the part of the format that properties need: text, flag, number with or without a type, list of texts.
fn parse(text: &str) -> Option<Property> {
    let text = text.trim();
    match text {
        "true" => return Some(Property::Flag(true)),
        "false" => return Some(Property::Flag(false)),
        _ => {}
    }
    if text.starts_with(['\'', '"']) {
        let (word, rest) = quoted(text)?;
        return rest.is_empty().then_some(Property::Text(word));
    }
    if let Some(list) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return texts(list).map(Property::Texts);
    }
    if let Some((kind, number)) = text.split_once(' ') {
        let number = number.trim();
        return match kind {
            "int32" => number.parse().ok().map(Property::Int32),
            "uint32" => number.parse().ok().map(Property::Uint32),
            "int64" => number.parse().ok().map(Property::Int64),
            "uint64" => number.parse().ok().map(Property::Uint64),
            "double" => number.parse().ok().map(Property::Double),
            "boolean" => number.parse().ok().map(Property::Flag),
            "string" => parse(number).filter(|property| matches!(property, Property::Text(_))),
            _ => None,
        };
    }
    if let Ok(number) = text.parse() {
        return Some(Property::Int32(number));
    }
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    if is_number && text.contains('.') { text.parse().ok().map(Property::Double) } else { None }
}

/// A text in quotes at the beginning, and what is behind it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut letters = text.char_indices();
    let (_, quote) = letters.next().filter(|(_, letter)| matches!(letter, '\'' | '"'))?;
    let mut word = String::new();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => word.push(match letters.next()?.1 {
                'n' => '\n',
                't' => '\t',
                other => other,
            }),
            end if end == quote => return Some((word, text[at + 1..].trim_start())),
            other => word.push(other),
        }
    }
    None
}

fn texts(list: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = list.trim();
    while !rest.is_empty() {
        let (word, behind) = quoted(rest)?;
        words.push(word);
        rest = match behind.strip_prefix(',') {
            Some(next) if !next.trim().is_empty() => next.trim_start(),
            Some(_) => return None,
            None if behind.is_empty() => behind,
            None => return None,
        };
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_gvariant_writes_them() {
        let text = |word: &str| Property::Text(word.to_owned());
        let check = |value: &str, expected: Option<Property>| assert_eq!(parse(value), expected, "{value}");
        check("'a b'", Some(text("a b")));
        check("\"it's\"", Some(text("it's")));
        check(r"'it\'s'", Some(text("it's")));
        check("true", Some(Property::Flag(true)));
        check("5", Some(Property::Int32(5)));
        check("uint64 5", Some(Property::Uint64(5)));
        check("int32 -5", Some(Property::Int32(-5)));
        check("1.5", Some(Property::Double(1.5)));
        check("['a', 'b']", Some(Property::Texts(vec!["a".to_owned(), "b".to_owned()])));
        check("[]", Some(Property::Texts(vec![])));
        for value in
            ["", "a", "'a", "'a' b", "['a',]", "['a' 'b']", "[1]", "uint64 -5", "uint32 4294967296", "nan", "inf"]
        {
            check(value, None);
        }
    }

    #[test]
    fn seconds_become_microseconds() {
        let check = |key: &str, value: &str, expected: Option<(&str, Property)>| {
            let annotations = HashMap::from([(format!("{PREFIX}{key}"), value.to_owned())]);
            let found = properties(Some(&annotations)).ok().map(|mut found| found.remove(0));
            assert_eq!(found, expected.map(|(name, property)| (name.to_owned(), property)), "{key} {value}");
        };
        check("TimeoutStopSec", "5", Some(("TimeoutStopUSec", Property::Uint64(5_000_000))));
        check("TimeoutStopSec", "0.5", Some(("TimeoutStopUSec", Property::Uint64(500_000))));
        check("TimeoutStopUSec", "uint64 7", Some(("TimeoutStopUSec", Property::Uint64(7))));
        check("CollectMode", "'inactive'", Some(("CollectMode", Property::Text("inactive".to_owned()))));
        check("TimeoutStopSec", "-1", None);
        check("TimeoutStopSec", "'x'", None);
        check("PIDs", "[]", None);
        check("A;b", "1", None);
        assert_eq!(properties(None).unwrap(), []);
        let other = HashMap::from([("io.kubernetes.x".to_owned(), "y".to_owned())]);
        assert_eq!(properties(Some(&other)).unwrap(), []);
    }
}

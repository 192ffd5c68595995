//! One line of JSON, safe to show in a terminal.
//!
//! serde_json writes C0 as escapes; DEL, C1 and the characters that change direction or hide would pass. Inside JSON text they can only
//! stand in a string, so each may be escaped by its number wherever it is found: the document means the same.

use std::fmt::Write as _;

use apex_core::escape::is_hostile;
use serde::Serialize;

/// Writes `value` and a newline over what `line` held.
pub fn write(line: &mut Vec<u8>, value: &impl Serialize) {
    line.clear();
    serde_json::to_writer(&mut *line, value).expect("events and findings are maps with text keys");
    let is_tame = line.iter().all(|byte| (0x20..0x7f).contains(byte));
    if !is_tame && let Ok(text) = std::str::from_utf8(line) {
        *line = escaped(text).into_bytes();
    }
    line.push(b'\n');
}

/// Words for people: the same characters as escapes, control characters among them.
pub fn plain(text: &str) -> String {
    escaped(text)
}

/// JSON on several lines, safe to show in a terminal.
pub fn tame(json: &str) -> String {
    json.split('\n').map(escaped).collect::<Vec<_>>().join("\n")
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if !is_hostile(c) {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            write!(out, "\\u{unit:04x}").expect("a string takes any text");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_is_escaped_and_means_the_same() {
        let name = "a\u{202e}b\u{1b}[2J\u{9b}\u{e0001}\u{7f}\n\"é";
        let mut line = b"old".to_vec();
        write(&mut line, &name);
        let text = String::from_utf8(line).expect("text");
        assert_eq!(text.matches('\n').count(), 1);
        assert!(!text.trim_end().chars().any(is_hostile), "{text:?}");
        assert_eq!(serde_json::from_str::<String>(&text).expect("json"), name);
        let pretty = serde_json::to_string_pretty(&[name]).expect("json");
        let tamed = tame(&pretty);
        assert!(!tamed.chars().any(|c| c != '\n' && is_hostile(c)) && tamed.lines().count() == 3, "{tamed:?}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&tamed).expect("json"), [name]);
    }
}

//! A view of Rust sources without comments and literals, good enough to find a word and to measure a function.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Complaint, read, relative};

/// Where `unsafe` may stand.
const UNSAFE_HOME: &[&str] = &["runtime/sys/", "ebpf/"];

/// Complains about `unsafe` outside its home.
pub fn stray_unsafe(root: &Path, sources: &[PathBuf]) -> Result<Vec<Complaint>> {
    let mut complaints = Vec::new();
    for source in sources {
        let name = relative(root, source);
        if UNSAFE_HOME.iter().any(|home| name.starts_with(home)) {
            continue;
        }
        for (number, line) in bare(&read(source)?).lines().enumerate() {
            if words(line).any(|(_, word)| word == "unsafe") {
                complaints.push(format!("{name}:{}: unsafe belongs in runtime/sys", number + 1));
            }
        }
    }
    Ok(complaints)
}

/// One function and how many lines it has, from `fn` to the closing brace.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    pub lines: usize,
}

/// Every function with a body in `text`.
pub fn functions(text: &str) -> Vec<Function> {
    let bare = bare(text);
    let mut found = Vec::new();
    let mut words = words(&bare).peekable();
    while let Some((start, word)) = words.next() {
        // `fn` with a name behind it; a function pointer type has none.
        let Some((after, name)) = words.peek().filter(|_| word == "fn") else {
            continue;
        };
        if !bare[start + word.len()..*after].trim().is_empty() {
            continue;
        }
        if let Some(end) = body_end(&bare, *after) {
            found.push(Function { name: (*name).to_owned(), lines: bare[start..end].matches('\n').count() + 1 });
        }
    }
    found
}

/// The end of the body that begins after `from`; `None` for a declaration, which ends at a semicolon.
fn body_end(bare: &str, from: usize) -> Option<usize> {
    let (mut braces, mut brackets) = (0_usize, 0_usize);
    for (at, byte) in bare.bytes().enumerate().skip(from) {
        match byte {
            // `[u8; 4]` among the parameters is no end.
            b'(' | b'[' => brackets += 1,
            b')' | b']' => brackets = brackets.saturating_sub(1),
            b';' if braces == 0 && brackets == 0 => return None,
            b'{' => braces += 1,
            b'}' if braces <= 1 => return (braces == 1).then_some(at),
            b'}' => braces -= 1,
            _ => {}
        }
    }
    None
}

/// The words of a text with their places.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + text[at..].find(is_word)?;
        at = text[start..].find(|c| !is_word(c)).map_or(text.len(), |length| start + length);
        Some((start, &text[start..at]))
    })
}

/// The text with comments, strings and characters blanked out; every line stays where it was.
fn bare(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = opaque(rest).unwrap_or(0);
        if length == 0 {
            // A word is taken whole, so that the `r` of `for` begins no raw string.
            let length =
                words(rest).next().filter(|(start, _)| *start == 0).map_or(first.len_utf8(), |(_, word)| word.len());
            out.push_str(&rest[..length]);
            rest = &rest[length..];
        } else {
            out.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[length..];
        }
    }
    out
}

/// The length of the comment or literal with which `text` begins.
fn opaque(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if text.starts_with("/*") {
        return Some(block_comment(text));
    }
    let unprefixed = text.strip_prefix('b').or_else(|| text.strip_prefix('c')).unwrap_or(text);
    let prefix = text.len() - unprefixed.len();
    if let Some(raw) = unprefixed.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let body = prefix + 1 + hashes + 1;
            return Some(text[body..].find(&end).map_or(text.len(), |at| body + at + end.len()));
        }
        return None;
    }
    if unprefixed.starts_with('"') {
        return Some(prefix + quoted(unprefixed, '"')?);
    }
    if let Some(inner) = unprefixed.strip_prefix('\'') {
        // 'a' and '\n' are characters; 'a without a closing quote is a lifetime.
        let mut inner = inner.chars();
        let (first, second) = (inner.next()?, inner.next());
        return if first == '\\' || second == Some('\'') { Some(prefix + quoted(unprefixed, '\'')?) } else { None };
    }
    None
}

/// Comments nest in Rust.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of a literal that begins and ends with `quote`.
fn quoted(text: &str, quote: char) -> Option<usize> {
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c == '\\' {
            chars.next();
        } else if c == quote {
            return Some(at + quote.len_utf8());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(&str, usize)]) {
        let found: Vec<_> = functions(text).into_iter().map(|function| (function.name, function.lines)).collect();
        let expected: Vec<_> = expected.iter().map(|(name, lines)| ((*name).to_owned(), *lines)).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn functions_are_measured_from_fn_to_the_closing_brace() {
        check("fn a() {\n    b();\n}\n", &[("a", 3)]);
        check("fn a(x: [u8; 4]) {}\nfn b();\n", &[("a", 1)]);
        check("type T = fn(u8) -> u8;\nfn a() { let f: fn() = b; }", &[("a", 1)]);
    }

    #[test]
    fn braces_in_literals_and_comments_do_not_count() {
        check("fn a() { let s = \"}\\\"}\"; // }\n /* } /* } */ */ let c = '}'; let r = r#\"}\"}\"#;\n}", &[("a", 3)]);
        check("fn a<'x>(s: &'x str) { let q = '\\''; let b = b'{'; }", &[("a", 1)]);
    }

    #[test]
    fn unsafe_in_a_comment_or_a_name_is_not_unsafe() {
        assert!(!words(&bare("// unsafe\nlet s = \"unsafe\"; not_unsafe();")).any(|(_, word)| word == "unsafe"));
        assert!(words(&bare("for x in y { unsafe { z() } }")).any(|(_, word)| word == "unsafe"));
    }
}

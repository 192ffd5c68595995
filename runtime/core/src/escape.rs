//! Words from elsewhere, made harmless for a terminal.
//!
//! A file name, a process name or an address that a sandbox chose may hold escape sequences that repaint the screen, set its title or
//! type into the shell. Everything that did not come from this program passes through here before a person sees it.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `text` with every character that a terminal would act on, or that would reorder or hide what is seen, written as an escape.
pub fn text(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hostile) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(
        text.chars().map(|c| if is_hostile(c) { c.escape_default().to_string() } else { c.to_string() }).collect(),
    )
}

/// The same for a word of the operating system; bytes that are not UTF-8 become `\xNN`.
pub fn os(word: &OsStr) -> Cow<'_, str> {
    if let Some(valid) = word.to_str() {
        return text(valid);
    }
    let mut out = String::new();
    for chunk in word.as_bytes().utf8_chunks() {
        out.push_str(&text(chunk.valid()));
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    Cow::Owned(out)
}

/// The same for a path.
pub fn path(path: &Path) -> Cow<'_, str> {
    os(path.as_os_str())
}

/// Control characters (C0, DEL, C1) and the invisible ones of Unicode that change direction, join, or break a line.
pub fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], expected: &str) {
        assert_eq!(os(OsStr::from_bytes(bytes)), expected);
    }

    #[test]
    fn plain_words_stay() {
        check(b"/srv/data file", "/srv/data file");
        check("/home/jos\u{e9}/\u{1f980}".as_bytes(), "/home/jos\u{e9}/\u{1f980}");
    }

    #[test]
    fn terminal_sequences_are_disarmed() {
        check(b"/tmp/\x1b]0;owned\x07", "/tmp/\\u{1b}]0;owned\\u{7}");
        check(b"a\nb\rc\td", "a\\nb\\rc\\td");
        check("\u{9b}31m".as_bytes(), "\\u{9b}31m");
        check("\u{7f}".as_bytes(), "\\u{7f}");
    }

    #[test]
    fn what_reorders_or_hides_is_shown() {
        check("a\u{202e}gpj.exe".as_bytes(), "a\\u{202e}gpj.exe");
        check("\u{200b}\u{2066}".as_bytes(), "\\u{200b}\\u{2066}");
    }

    #[test]
    fn bytes_that_are_no_text_are_shown() {
        check(b"ok\xff\x1bok", "ok\\xff\\u{1b}ok");
    }
}

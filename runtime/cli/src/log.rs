//! One stream of a command's log on its way out.
//!
//! Input: bytes as they were written, cut anywhere. Output: the same bytes, or for a terminal text in which nothing can repaint the screen or type into the
//! shell: whoever reads a log is often not who ran the command.

use std::io::{self, Write};

use apex_core::escape;

/// Longest character of UTF-8, in bytes.
const CHAR_BYTES_MAX: usize = 4;

/// Where it goes, and how.
pub struct Log<W> {
    to: W,
    /// Whether control characters are made visible.
    tame: bool,
    /// The beginning of a character whose rest is still to come.
    open: Vec<u8>,
}

impl<W: Write> Log<W> {
    pub fn new(to: W, tame: bool) -> Log<W> {
        Log { to, tame, open: Vec::new() }
    }

    /// Writes what came, but for a character that is not whole.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.tame {
            self.to.write_all(bytes)?;
            return self.to.flush();
        }
        let mut all = std::mem::take(&mut self.open);
        all.extend_from_slice(bytes);
        let whole = whole(&all);
        self.open = all.split_off(whole);
        self.to.write_all(tamed(&all).as_bytes())?;
        self.to.flush()
    }

    /// Nothing more comes: what is not whole never will be.
    pub fn end(&mut self) -> io::Result<()> {
        let open = std::mem::take(&mut self.open);
        self.to.write_all(tamed(&open).as_bytes())?;
        self.to.flush()
    }
}

/// How many of the bytes are not the beginning of something that is cut off: a character, or a line break of two.
fn whole(bytes: &[u8]) -> usize {
    if bytes.last() == Some(&b'\r') {
        return bytes.len() - 1;
    }
    let tail = bytes.len().saturating_sub(CHAR_BYTES_MAX - 1);
    let is_cut = |at: &usize| {
        let parsed = std::str::from_utf8(&bytes[*at..]);
        parsed.is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    (tail..bytes.len()).find(is_cut).unwrap_or(bytes.len())
}

/// Line breaks and tabs do what they should. A carriage return alone would write over what stands there, and is shown.
fn tamed(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        let mut chars = chunk.valid().chars().peekable();
        while let Some(c) = chars.next() {
            let is_break = c == '\r' && chars.peek() == Some(&'\n');
            if is_break || c == '\n' || c == '\t' || !escape::is_hostile(c) {
                out.push(c);
            } else {
                out.extend(c.escape_default());
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However the bytes are cut, the text is the same.
    #[track_caller]
    fn check(bytes: &[u8], expected: &str) {
        for size in 1..=bytes.len().max(1) {
            let mut log = Log::new(Vec::new(), true);
            bytes.chunks(size).for_each(|chunk| log.write(chunk).unwrap());
            log.end().unwrap();
            assert_eq!(String::from_utf8(log.to).unwrap(), expected, "in pieces of {size}");
        }
    }

    #[test]
    fn a_terminal_gets_text() {
        check(b"a\tb\r\nc\n", "a\tb\r\nc\n");
        check("jos\u{e9} \u{1f980}\n".as_bytes(), "jos\u{e9} \u{1f980}\n");
        check(b"\x1b]0;title\x07\x1b[2J", "\\u{1b}]0;title\\u{7}\\u{1b}[2J");
        check(b"right\rwrong\r", "right\\rwrong\\r");
        check("\u{9b}\u{202e}".as_bytes(), "\\u{9b}\\u{202e}");
        check(b"\xff\xf0\x9f\xa6", "\\xff\\xf0\\x9f\\xa6");
        check(b"\xf0\x9fa\xe2", "\\xf0\\x9fa\\xe2");
        check(b"", "");
    }

    #[test]
    fn a_file_gets_every_byte() {
        let mut log = Log::new(Vec::new(), false);
        log.write(b"\x1b\xff\r").unwrap();
        log.end().unwrap();
        assert_eq!(log.to, b"\x1b\xff\r");
    }
}

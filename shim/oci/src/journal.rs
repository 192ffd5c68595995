//! What the runtime tells whoever called it: on standard error, and in the file of `--log`.
//!
//! The file is how containerd, podman and others learn why a command failed: one JSON object a line with `level`, `msg` and `time`, as
//! runc writes them.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use serde_json::json;

/// The form of the lines in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `time="..." level=... msg="..."`.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Bytes of a message; a configuration can make it as long as itself.
const WORDS_BYTES_MAX: usize = 4096;

/// Words in which names of a bundle stand: cut to size, and nothing in them acts on a terminal.
fn harmless(words: &str) -> String {
    let end = words.floor_char_boundary(WORDS_BYTES_MAX);
    let mut text = apex_core::escape::text(&words[..end]).into_owned();
    if end < words.len() {
        text.push_str(&format!(" ... and {} bytes more", words.len() - end));
    }
    text
}

/// Where it goes.
#[derive(Debug, Default)]
pub struct Journal {
    file: Option<File>,
    format: Format,
    is_verbose: bool,
}

impl Journal {
    /// Opens the file, if there is one.
    ///
    /// # Errors
    /// It cannot be opened for appending.
    pub fn open(path: Option<&Path>, format: Format, is_verbose: bool) -> std::io::Result<Journal> {
        let file = path.map(|path| OpenOptions::new().create(true).append(true).open(path)).transpose()?;
        Ok(Journal { file, format, is_verbose })
    }

    /// Why the command failed.
    pub fn error(&self, words: &str) {
        let words = &harmless(words);
        // The file first: standard error may be closed, which leaves nobody to tell there.
        self.line("error", words);
        let _ = writeln!(std::io::stderr(), "apex-oci: error: {words}");
    }

    /// What went wrong without stopping the command.
    pub fn warning(&self, words: &str) {
        let words = &harmless(words);
        if self.file.is_none() {
            let _ = writeln!(std::io::stderr(), "apex-oci: warning: {words}");
        }
        self.line("warning", words);
    }

    /// What is only of interest with `--debug`.
    pub fn debug(&self, words: &str) {
        if !self.is_verbose {
            return;
        }
        if self.file.is_none() {
            let _ = writeln!(std::io::stderr(), "time={:?} level=debug msg={words:?}", crate::state::now());
        }
        self.line("debug", words);
    }

    fn line(&self, level: &str, words: &str) {
        let Some(mut file) = self.file.as_ref() else { return };
        let time = crate::state::now();
        let line = match self.format {
            Format::Json => json!({ "level": level, "msg": words, "time": time }).to_string(),
            Format::Text => format!("time={time:?} level={level} msg={words:?}"),
        };
        // One write, so that lines of several commands do not mix; a full disk must not hide the error from standard error.
        let _ = file.write_all(format!("{line}\n").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_and_harmless() {
        assert_eq!(harmless("plain \"words\""), "plain \"words\"");
        assert_eq!(harmless("a\u{1b}[31m\n"), "a\\u{1b}[31m\\n");
        let long = harmless(&"\u{e4}".repeat(WORDS_BYTES_MAX));
        assert!(long.len() < WORDS_BYTES_MAX + 40 && long.ends_with("bytes more"), "{long}");
    }
}

//! Words of a watched run that wait for its end, since standard error was full.

use apex_core::amount;

/// Of what waits.
const BYTES_MAX: usize = 64 << 10;

/// Words for which standard error had no room while the sandbox lived.
#[derive(Debug, Default)]
pub struct Unsaid {
    bytes: Vec<u8>,
    /// Lines for which there was no room here either.
    forgotten: u64,
}

impl Unsaid {
    /// Whether everything was said.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes what was not said, or counts it.
    pub fn keep(&mut self, words: &[u8]) {
        if self.bytes.len() + words.len() <= BYTES_MAX {
            self.bytes.extend_from_slice(words);
        } else {
            self.forgotten += 1;
        }
    }

    /// What is to be said when somebody listens again.
    pub fn into_words(mut self) -> Vec<u8> {
        if self.forgotten > 0 {
            let lines = amount::count(self.forgotten, "more line");
            self.bytes.extend(format!("apex-run: no room was left for {lines}: standard error was full\n").bytes());
        }
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_find_no_room_are_counted() {
        let mut unsaid = Unsaid::default();
        unsaid.keep(&[b'x'; BYTES_MAX - 4]);
        for _ in 0..2 {
            unsaid.keep(b"line\n");
        }
        unsaid.keep(b"end\n");
        let words = String::from_utf8(unsaid.into_words()).unwrap();
        assert!(words.ends_with("xend\napex-run: no room was left for 2 more lines: standard error was full\n"));
        let mut unsaid = Unsaid::default();
        unsaid.keep(b"line\n");
        assert_eq!(unsaid.into_words(), b"line\n");
    }
}

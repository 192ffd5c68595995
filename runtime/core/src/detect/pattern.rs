//! What a rule compares with: patterns for texts and ranges for numbers. Input: the words of a rule; output: something that answers
//! yes or no without allocating.
//!
//! A text pattern is a glob (`*`, `?`, `[a-z]`, `{a,b}`; `\` takes the next character as it stands), `i:GLOB` regardless of ASCII case, or
//! `re:REGEX`. In a path `*` and `?` stop at `/` and `**` does not. A glob matches the whole text, a regular expression any part of it.

use std::sync::OnceLock;

use regex::bytes::{Regex, RegexBuilder};

/// Longest pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 1024;
/// What one compiled list may take, in bytes.
const PROGRAM_BYTES_MAX: usize = 4 << 20;

/// Several patterns of which any matches.
#[derive(Clone, Debug, Default)]
pub(super) struct Texts {
    /// Without a wildcard: by far the most.
    exact: Vec<String>,
    /// All others as one expression; empty for none.
    expression: String,
    /// The same, compiled when it is first needed: most rules never meet an event that gets this far.
    compiled: OnceLock<Option<Regex>>,
}

impl Texts {
    /// From the words of a rule. `is_path` keeps `*` within a path component.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>, is_path: bool) -> Result<Texts, String> {
        let mut texts = Texts::default();
        let mut parts = Vec::new();
        for word in words {
            if word.len() > PATTERN_BYTES_MAX {
                return Err(format!("a pattern of {} bytes; at most {PATTERN_BYTES_MAX} are accepted", word.len()));
            }
            if let Some(expression) = word.strip_prefix("re:") {
                parts.push(format!("(?:{expression})"));
                compile(expression).map_err(|error| format!("`{word}` is no regular expression: {error}"))?;
            } else if let Some(glob) = word.strip_prefix("i:") {
                parts.push(format!("(?i:{})", glob_expression(glob, is_path)?));
            } else if word.contains(['*', '?', '[', '{', '\\']) {
                parts.push(glob_expression(word, is_path)?);
            } else {
                texts.exact.push(word.to_owned());
            }
        }
        texts.expression = parts.join("|");
        Ok(texts)
    }

    /// Whether any pattern matches.
    pub fn matches(&self, text: &str) -> bool {
        if self.exact.iter().any(|exact| exact == text) {
            return true;
        }
        if self.expression.is_empty() {
            return false;
        }
        let compiled = self.compiled.get_or_init(|| compile(&self.expression).ok());
        compiled.as_ref().is_some_and(|expression| expression.is_match(text.as_bytes()))
    }

    /// Compiles now, to learn whether it can be.
    pub fn check(&self) -> Result<(), String> {
        compile(&self.expression).map(drop).map_err(|error| format!("the patterns cannot be compiled: {error}"))
    }
}

fn compile(expression: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(expression).unicode(false).dot_matches_new_line(true).size_limit(PROGRAM_BYTES_MAX).build()
}

/// A glob as an anchored regular expression.
fn glob_expression(glob: &str, is_path: bool) -> Result<String, String> {
    let (any, one) = if is_path { ("[^/]*", "[^/]") } else { (".*", ".") };
    let mut out = String::from("^(?:");
    let mut letters = glob.chars().peekable();
    let mut depth = 0_usize;
    while let Some(letter) = letters.next() {
        match letter {
            '*' if letters.next_if_eq(&'*').is_some() => {
                // `**/x` is also `/x` and `x`.
                out.push_str(if is_path && letters.next_if_eq(&'/').is_some() { "(?:.*/)?" } else { ".*" });
            }
            '*' => out.push_str(any),
            '?' => out.push_str(one),
            '[' => {
                let mut is_closed = false;
                let class = letters.by_ref().take_while(|letter| {
                    is_closed = *letter == ']';
                    !is_closed
                });
                let class: String = class.collect();
                let (not, class) = match class.strip_prefix('!') {
                    Some(rest) => ("^", rest),
                    None => ("", class.as_str()),
                };
                if class.is_empty() || !is_closed {
                    return Err(format!("`{glob}`: `[` opens a set of characters that is empty or not closed by `]`"));
                }
                out.push_str(&format!(
                    "[{not}{}]",
                    class.replace('\\', "\\\\").replace('[', "\\[").replace('&', "\\&")
                ));
            }
            '{' => {
                depth += 1;
                out.push_str("(?:");
            }
            ',' if depth > 0 => out.push('|'),
            '}' if depth > 0 => {
                depth -= 1;
                out.push(')');
            }
            '\\' => {
                let next = letters.next().ok_or_else(|| format!("`{glob}`: nothing follows the `\\` at the end"))?;
                out.push_str(&regex::escape(next.encode_utf8(&mut [0; 4])));
            }
            other => out.push_str(&regex::escape(other.encode_utf8(&mut [0; 4]))),
        }
    }
    if depth > 0 {
        return Err(format!("`{glob}`: a `{{` is not closed; write `\\{{` for the character itself"));
    }
    out.push_str(")$");
    Ok(out)
}

/// Several ranges of whole numbers of which any matches.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers(Vec<(u64, u64)>);

impl Numbers {
    /// From `5`, `"5"`, `"5-9"`, `">=5"`, `">5"`, `"<=5"` or `"<5"`.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Numbers, String> {
        words.into_iter().map(range).collect::<Result<_, _>>().map(Numbers)
    }

    /// Whether any range holds it.
    pub fn matches(&self, number: u64) -> bool {
        self.0.iter().any(|(least, most)| (*least..=*most).contains(&number))
    }
}

fn range(word: &str) -> Result<(u64, u64), String> {
    let wrong = || {
        format!(
            "`{word}` is no number or range; expected 5, \"5-9\", \">=5\", \">5\", \"<=5\" or \"<5\" with whole numbers from 0"
        )
    };
    let number = |text: &str| text.trim().parse::<u64>().map_err(|_| wrong());
    let (least, most) = if let Some(rest) = word.strip_prefix(">=") {
        (number(rest)?, u64::MAX)
    } else if let Some(rest) = word.strip_prefix("<=") {
        (0, number(rest)?)
    } else if let Some(rest) = word.strip_prefix('>') {
        (number(rest)?.checked_add(1).ok_or_else(wrong)?, u64::MAX)
    } else if let Some(rest) = word.strip_prefix('<') {
        (0, number(rest)?.checked_sub(1).ok_or_else(wrong)?)
    } else if let Some((least, most)) = word.split_once('-') {
        (number(least)?, number(most)?)
    } else {
        (number(word)?, number(word)?)
    };
    if least > most { Err(wrong()) } else { Ok((least, most)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, is_path: bool, yes: &[&str], no: &[&str]) {
        let texts = Texts::parse([pattern], is_path).expect(pattern);
        texts.check().expect(pattern);
        for text in yes {
            assert!(texts.matches(text), "{pattern} should match {text}");
        }
        for text in no {
            assert!(!texts.matches(text), "{pattern} should not match {text}");
        }
    }

    #[test]
    fn globs_of_paths_stop_at_slashes() {
        check("/etc/shadow", true, &["/etc/shadow"], &["/etc/shadow-", "/x/etc/shadow"]);
        check("/home/*/.ssh/id_*", true, &["/home/a/.ssh/id_rsa"], &["/home/a/b/.ssh/id_rsa", "/home/a/.ssh/id_/x"]);
        check("**/.ssh/id_?sa", true, &["/root/.ssh/id_rsa", ".ssh/id_dsa", "/.ssh/id_rsa"], &["/root/x.ssh/id_rsa"]);
        check("/usr/**", true, &["/usr/bin/x"], &["/usrx"]);
        check("/x.[a-c]{1,22}", true, &["/x.a1", "/x.c22"], &["/x.d1", "/xxa1", "/x.a2"]);
        check("/x[!a]", true, &["/xb"], &["/xa"]);
        check(r"/a\*b", true, &["/a*b"], &["/axb", "/a/b"]);
    }

    #[test]
    fn globs_of_other_texts_match_anything() {
        check("*stratum+tcp://*", false, &["miner -o stratum+tcp://a/b"], &["stratum"]);
        check("i:*XMRig*", false, &["/opt/xmrig", "XMRIG 1"], &["xmr"]);
        check("re:-[a-z]*e[a-z]* *(/bin/)?sh", false, &["nc -ve /bin/sh", "x -e sh"], &["nc -l sh"]);
        check("{a,b}*", false, &["ax", "b"], &["c"]);
    }

    #[test]
    fn bytes_that_are_no_ascii_are_compared_as_they_are() {
        check("/tmp/ä*", true, &["/tmp/äö"], &["/tmp/a"]);
        check("/tmp/\u{fffd}?", true, &["/tmp/\u{fffd}a"], &["/tmp/a"]);
    }

    #[test]
    fn wrong_patterns_say_why() {
        for (pattern, word) in
            [("re:(", "regular"), ("/x[", "closed"), ("/x[a", "closed"), ("/x{a", "closed"), ("\\", "nothing follows")]
        {
            let error = Texts::parse([pattern], true).expect_err(pattern);
            assert!(error.contains(word), "{error}");
        }
        assert!(Texts::parse([&*"x".repeat(2000)], true).is_err());
        assert!(Texts::parse(["re:(a{1000}){1000}"], true).is_err(), "a program without bounds is refused");
    }

    #[test]
    fn ranges_hold_their_ends() {
        for (word, yes, no) in [
            ("5", &[5][..], &[4, 6][..]),
            ("5-9", &[5, 9], &[4, 10]),
            (">=5", &[5, u64::MAX], &[4]),
            (">5", &[6], &[5]),
            ("<=5", &[0, 5], &[6]),
            ("<5", &[4], &[5]),
        ] {
            let numbers = Numbers::parse([word]).expect(word);
            assert!(yes.iter().all(|n| numbers.matches(*n)) && !no.iter().any(|n| numbers.matches(*n)), "{word}");
        }
        for word in ["", "x", "9-5", "-1", "<0", ">18446744073709551615"] {
            assert!(Numbers::parse([word]).is_err(), "{word}");
        }
    }
}

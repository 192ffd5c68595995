//! Times on the command line.

use super::UsageError;

/// A duration as Go writes them: `5s`, `100ms`, `1m30s`. Milliseconds.
pub(super) fn interval(word: &str) -> Result<u64, UsageError> {
    let wrong = || UsageError::Value("--interval", word.to_owned(), "a time of more than 0, such as 100ms, 5s or 1m");
    let (mut rest, mut sum_ms) = (word, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| at + digits);
        let factor = match &rest[digits..unit] {
            "ms" => 1.0,
            "s" => 1e3,
            "m" => 60e3,
            "h" => 3600e3,
            _ => return Err(wrong()),
        };
        sum_ms += number * factor;
        rest = &rest[unit..];
    }
    // A month is more than anybody waits for.
    if (1.0..2.7e9).contains(&sum_ms) { Ok(sum_ms as u64) } else { Err(wrong()) }
}

//! Tables and sheets for people. Input: words, some of which others chose. Output: lines that a terminal takes for nothing else.

use apex_core::escape;

/// Columns under their headings; the last one is not padded.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let headings = headings.iter().map(|heading| (*heading).to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(headings).chain(rows.iter().map(|row| safe(row))).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
    let mut out = String::new();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// A name and a word to a line.
pub fn sheet(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    rows.iter().map(|(name, word)| format!("{name:width$}  {}\n", escape::text(word))).collect()
}

fn safe(row: &[String]) -> Vec<String> {
    row.iter().map(|cell| if cell.is_empty() { "-".to_owned() } else { escape::text(cell).into_owned() }).collect()
}

/// A length of time in its two largest units at most.
pub fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m{s}s"),
        (0, h, m, _) => format!("{h}h{m}m"),
        (d, h, _, _) => format!("{d}d{h}h"),
    }
}

/// Bytes with the unit of `--memory`.
pub fn bytes(count: u64) -> String {
    let units = [("G", 30), ("M", 20), ("K", 10)];
    let fitting = units.iter().find(|(_, shift)| count >> shift > 0);
    match fitting {
        Some((unit, shift)) => format!("{}.{}{unit}", count >> shift, ((count >> (shift - 10)) % 1024) * 10 / 1024),
        None => count.to_string(),
    }
}

/// A moment, in milliseconds since the epoch, as UTC.
pub fn moment(ms: u64) -> String {
    let (days, seconds) = (ms / 86_400_000, ms / 1000 % 86_400);
    // Days to a date of the Gregorian calendar, in eras of 400 years that begin in March (Howard Hinnant, chrono-compatible low-level date algorithms).
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_harmless() {
        let rows = [vec!["a".to_owned(), "x\u{1b}[2J".to_owned()], vec!["long".to_owned(), String::new()]];
        assert_eq!(table(&["ID", "NAME"], &rows), "ID    NAME\na     x\\u{1b}[2J\nlong  -\n");
        assert_eq!(sheet(&[("id", "a".to_owned()), ("name", "b\nc".to_owned())]), "id    a\nname  b\\nc\n");
    }

    #[test]
    fn amounts_are_short() {
        let spans = [(0, "0s"), (61_000, "1m1s"), (3_600_000, "1h0m"), (90_000_000, "1d1h")];
        assert!(spans.iter().all(|(ms, expected)| span(*ms) == *expected));
        let sizes = [(5, "5"), (1536, "1.5K"), (512 << 20, "512.0M"), (3 << 30, "3.0G")];
        assert!(sizes.iter().all(|(count, expected)| bytes(*count) == *expected));
    }

    #[test]
    fn moments_are_dates() {
        assert_eq!(moment(0), "1970-01-01T00:00:00Z");
        assert_eq!(moment(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(moment(1_767_225_599_000), "2025-12-31T23:59:59Z");
    }
}

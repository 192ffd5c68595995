//! Sizes and times as flags and policies take them, and counts in words.

/// The size as flags take it, in the largest unit that keeps it exact.
pub fn size(bytes: u64) -> String {
    let units = [(1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit)) {
        Some((unit, letter)) => format!("{}{letter}", bytes / unit),
        None => bytes.to_string(),
    }
}

/// The time as flags take it, in the largest unit that keeps it exact.
pub fn duration(ms: u64) -> String {
    let units = [(3_600_000, "h"), (60_000, "m"), (1000, "s")];
    match units.into_iter().find(|(unit, _)| ms >= *unit && ms.is_multiple_of(*unit)) {
        Some((unit, letter)) => format!("{}{letter}", ms / unit),
        None => format!("{ms}ms"),
    }
}

/// `1 event`, `2 events`.
pub fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_exact_unit_is_taken() {
        assert_eq!(size(512 << 20), "512M");
        assert_eq!(size(3 << 39), "1536G");
        assert_eq!(size(1000), "1000");
        assert_eq!(size(0), "0");
        assert_eq!(duration(90_000), "90s");
        assert_eq!(duration(7_200_000), "2h");
        assert_eq!(duration(1500), "1500ms");
        assert_eq!([0, 1, 2].map(|number| count(number, "event")), ["0 events", "1 event", "2 events"]);
    }
}

//! Lists of processors and memory nodes, as the kernel and the specification write them: `0-3,7`.

/// The numbers of a list, each at most `max`; `None` when it is no list.
pub fn list(text: &str, max: usize) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last > max {
            return None;
        }
        numbers.extend(first..=last);
        // A list that says the same ever again is none that a person wrote.
        if numbers.len() > (max + 1) * 2 {
            return None;
        }
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_ranges_with_bounds() {
        let check = |text: &str, expected: Option<&[usize]>| assert_eq!(list(text, 100).as_deref(), expected, "{text}");
        check("0", Some(&[0]));
        check("0-2,7", Some(&[0, 1, 2, 7]));
        check("5, 6", Some(&[5, 6]));
        check("100", Some(&[100]));
        for wrong in ["", ",", "-1", "3-1", "101", "0-9876543210", "a", "1,", "0-100,0-100,0-100"] {
            check(wrong, None);
        }
    }
}

//! Whether a text is what Prometheus reads (text format 0.0.4), as strictly as `promtool check metrics`.

use std::collections::{BTreeMap, BTreeSet};

/// One line that is no comment.
#[derive(Debug)]
struct Sample<'a> {
    name: &'a str,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Everything that is wrong with it; empty is good.
pub fn faults(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let (mut helps, mut types) = (BTreeSet::new(), BTreeMap::new());
    let (mut series, mut samples, mut current) = (BTreeSet::new(), Vec::new(), String::new());
    if !text.ends_with('\n') {
        faults.push("the last line has no end".to_owned());
    }
    for line in text.lines() {
        let words: Vec<_> = line.splitn(4, ' ').collect();
        match words.as_slice() {
            ["#", "HELP", name, help] if !help.is_empty() => {
                if !helps.insert((*name).to_owned()) {
                    faults.push(format!("{name} has two helps"));
                }
            }
            ["#", "TYPE", name, kind @ ("counter" | "gauge" | "histogram")] => {
                if types.insert((*name).to_owned(), (*kind).to_owned()).is_some() {
                    faults.push(format!("{name} has two types"));
                }
                current = (*name).to_owned();
            }
            _ => match sample(line) {
                Some(sample) => {
                    if !series.insert((sample.name.to_owned(), sample.labels.clone())) {
                        faults.push(format!("twice: {line}"));
                    }
                    if family(sample.name, &types) != Some(current.as_str()) {
                        faults.push(format!("not under its own type: {line}"));
                    }
                    samples.push(sample);
                }
                None => faults.push(format!("no sample: {line}")),
            },
        }
    }
    faults.extend(types.keys().filter(|name| !helps.contains(*name)).map(|name| format!("{name} has no help")));
    for (name, kind) in &types {
        if (kind == "counter") != name.ends_with("_total") {
            faults.push(format!("{name} is a {kind}"));
        }
        if kind == "histogram" {
            faults.extend(histogram(name, &samples));
        }
    }
    faults
}

/// The metric of a sample: of a histogram there are three.
fn family<'a>(name: &'a str, types: &BTreeMap<String, String>) -> Option<&'a str> {
    if types.contains_key(name) {
        return Some(name);
    }
    let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end))?;
    (types.get(of_histogram)? == "histogram").then_some(of_histogram)
}

/// Buckets grow, end at infinity, and there is a count as high.
fn histogram(name: &str, samples: &[Sample<'_>]) -> Vec<String> {
    let (bucket, count) = (format!("{name}_bucket"), format!("{name}_count"));
    let mut all: BTreeMap<BTreeMap<String, String>, Vec<(f64, f64)>> = BTreeMap::new();
    for sample in samples.iter().filter(|sample| sample.name == bucket) {
        let mut labels = sample.labels.clone();
        let bound = labels.remove("le").and_then(|le| le.replace("+Inf", "inf").parse().ok()).unwrap_or(f64::NAN);
        all.entry(labels).or_default().push((bound, sample.value));
    }
    let mut faults = Vec::new();
    for (labels, buckets) in all {
        let grows = buckets.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 <= two[1].1);
        let last = buckets.last().copied().unwrap_or_default();
        let total = samples.iter().find(|sample| sample.name == count && sample.labels == labels);
        if !grows || last.0 != f64::INFINITY || total.is_none_or(|total| total.value != last.1) {
            faults.push(format!("{name} {labels:?} does not add up: {buckets:?}"));
        }
    }
    faults
}

fn is_name(word: &str) -> bool {
    let is_first = |c: char| c.is_ascii_alphabetic() || c == '_';
    word.starts_with(is_first) && word.chars().all(|c| is_first(c) || c.is_ascii_digit())
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let (name, rest) = line.split_at(line.find(['{', ' '])?);
    let mut labels = BTreeMap::new();
    let value = match rest.strip_prefix('{') {
        None => rest.strip_prefix(' ')?,
        Some(mut rest) => loop {
            let (label, after) = rest.split_once("=\"")?;
            let end = end_of_value(after)?;
            if !is_name(label) || labels.insert(label.to_owned(), after[..end].to_owned()).is_some() {
                return None;
            }
            let after = &after[end + 1..];
            match after.strip_prefix(',') {
                Some(more) => rest = more,
                None => break after.strip_prefix("} ")?,
            }
        },
    };
    Some(Sample { name, labels, value: value.parse().ok()? }).filter(|sample| is_name(sample.name))
}

/// The place of the quote that ends a label's value; only `\\`, `\"` and `\n` are escapes.
fn end_of_value(text: &str) -> Option<usize> {
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some(at),
            '\\' => {
                chars.next().filter(|(_, escaped)| matches!(escaped, '\\' | '"' | 'n'))?;
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_found() {
        let good = "# HELP a_total What.\n# TYPE a_total counter\na_total{b=\"c\\\"\\\\,}\",d=\"\"} 1\na_total 2.5\n\
                    # HELP h What.\n# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 3\nh_count 2\n";
        assert_eq!(faults(good), Vec::<String>::new());
        let check = |from: &str, to: &str| {
            assert!(good.contains(from));
            assert!(!faults(&good.replacen(from, to, 1)).is_empty(), "{from} as {to}");
        };
        check("# HELP a_total What.\n", "");
        check("# TYPE a_total counter\n", "");
        check("# TYPE a_total counter", "# TYPE a_total gauge");
        check("a_total 2.5", "a_total");
        check("a_total 2.5", "a_total two");
        check("a_total 2.5", "a_total{} 2.5");
        check("a_total 2.5", "a_total{b=\"c\\\"\\\\,}\",d=\"\"} 2");
        check("a_total 2.5", "a_total{b=\"\\x\"} 2");
        check("a_total 2.5", "h_count 2.5");
        check("h_bucket{le=\"+Inf\"} 2\n", "");
        check("h_bucket{le=\"1\"} 1", "h_bucket{le=\"1\"} 3");
        check("h_count 2\n", "h_count 3\n");
        check("h_count 2\n", "h_count 2");
    }
}

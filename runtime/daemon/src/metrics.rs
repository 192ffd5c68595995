//! What the daemon counts, and how it is told: Prometheus' text format (version 0.0.4).
//!
//! A metric is a [`Family`] in [`FAMILIES`]; whoever counts says `daemon.metrics.count(&STARTS, &[...])`. What can be looked up when somebody asks is not
//! counted here but in [`crate::figures`]. The number of series is bounded: label values that come from elsewhere are cut, and beyond [`SERIES_MAX`] of a family
//! they are all `other`. Counters begin at 0 with the daemon.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Series of one family.
const SERIES_MAX: usize = 256;
/// Characters of a label's value.
const LABEL_CHARS_MAX: usize = 64;
/// Upper bounds in seconds, from a freeze to a start that waits for the prober.
const BUCKETS: [f64; 15] = [0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];

/// A metric with its labels.
#[derive(Debug)]
pub struct Family {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    is_histogram: bool,
}

/// A counter.
const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Family {
    Family { name, help, labels, is_histogram: false }
}

/// A histogram of seconds.
const fn histogram(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Family {
    Family { name, help, labels, is_histogram: true }
}

/// Result: `running`, `failed`, `refused` (no room) or `error`.
pub static STARTS: Family =
    counter("apex_starts_total", &["mode", "result"], "Starts of sandboxes that the rules of access allowed.");
pub static START_SECONDS: Family = histogram(
    "apex_start_seconds",
    &["mode"],
    "From a request to its running command, without the time that it waited for room.",
);
pub static ROOM_SECONDS: Family = histogram(
    "apex_room_wait_seconds",
    &[],
    "How long starts that were ready to wait for room did so, in vain or not.",
);
pub static FINDINGS: Family = counter("apex_findings_total", &["severity", "rule"], "Findings, as they are read.");
pub static LIMITS_HIT: Family = counter(
    "apex_limits_hit_total",
    &["resource", "action"],
    "Limits that were reached by sandboxes with --on-limit, and those that ended one.",
);
pub static EVENTS: Family = counter("apex_events_total", &[], "Events of watched sandboxes, counted when one ends.");
pub static EVENTS_LOST: Family =
    counter("apex_events_lost_total", &["reason"], "Events that were lost, counted when a sandbox ends.");
pub static TRANSITIONS: Family = counter(
    "apex_transitions_total",
    &["kind", "outcome"],
    "Changes of sandboxes that run, by what was asked for: applied, failed (and taken back) or refused.",
);
pub static TRANSITION_SECONDS: Family =
    histogram("apex_transition_seconds", &["kind"], "From the decision on a change to its last step in force.");
pub static REQUESTS: Family =
    counter("apex_api_requests_total", &["api", "method", "status"], "Requests of the API, by how they were answered.");

/// Result: `sent`, `delivered`, `redelivered`, `acknowledged`, `removed`, or `refused-` with the code that the sandbox got.
pub static MAIL: Family =
    counter("apex_mail_messages_total", &["result"], "Messages of mailboxes, by what became of them.");

/// All that is counted, in the order in which it is told.
static FAMILIES: [&Family; 11] = [
    &STARTS,
    &START_SECONDS,
    &ROOM_SECONDS,
    &FINDINGS,
    &LIMITS_HIT,
    &EVENTS,
    &EVENTS_LOST,
    &TRANSITIONS,
    &TRANSITION_SECONDS,
    &REQUESTS,
    &MAIL,
];

/// The counts.
#[derive(Default)]
pub struct Metrics {
    series: Mutex<BTreeMap<&'static str, BTreeMap<Vec<String>, Count>>>,
    /// Whose memory is told beside our own.
    pub warden: OnceLock<i32>,
}

#[derive(Clone, Default)]
struct Count {
    number: u64,
    sum: Duration,
    /// In each bucket alone; the last one is for what is above all of them.
    buckets: [u64; BUCKETS.len() + 1],
}

impl Metrics {
    /// One more.
    pub fn count(&self, family: &'static Family, labels: &[&str]) {
        self.add(family, labels, 1);
    }

    /// So many more.
    pub fn add(&self, family: &'static Family, labels: &[&str], number: u64) {
        self.change(family, labels, |count| count.number = count.number.saturating_add(number));
    }

    /// It took so long.
    pub fn observe(&self, family: &'static Family, labels: &[&str], time: Duration) {
        let bucket = BUCKETS.iter().position(|bound| time.as_secs_f64() <= *bound).unwrap_or(BUCKETS.len());
        self.change(family, labels, |count| {
            count.number += 1;
            count.sum = count.sum.saturating_add(time);
            count.buckets[bucket] += 1;
        });
    }

    fn change(&self, family: &'static Family, labels: &[&str], change: impl FnOnce(&mut Count)) {
        debug_assert_eq!(labels.len(), family.labels.len(), "{}", family.name);
        let labels: Vec<String> = labels.iter().map(|value| value.chars().take(LABEL_CHARS_MAX).collect()).collect();
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let series = series.entry(family.name).or_default();
        let is_known = series.contains_key(&labels) || series.len() < SERIES_MAX;
        let labels = if is_known { labels } else { vec!["other".to_owned(); labels.len()] };
        change(series.entry(labels).or_default());
    }

    /// Every family, those without a count included.
    pub fn tell(&self, text: &mut Text) {
        let all = self.series.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for family in FAMILIES {
            text.family(family.name, if family.is_histogram { "histogram" } else { "counter" }, family.help);
            for (values, count) in all.get(family.name).into_iter().flatten() {
                let labels: Vec<_> = family.labels.iter().copied().zip(values.iter().map(String::as_str)).collect();
                match family.is_histogram {
                    true => text.histogram(family.name, &labels, count),
                    false => text.sample(family.name, &labels, count.number),
                }
            }
        }
    }
}

/// The text as it grows.
#[derive(Default)]
pub struct Text(String);

impl Text {
    /// Begins a metric; its samples follow.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        // A String takes everything.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// One number.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    /// A metric that is one number.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], count: &Count) {
        let mut below = 0;
        for (bound, number) in BUCKETS.iter().map(f64::to_string).chain(["+Inf".to_owned()]).zip(count.buckets) {
            below += number;
            self.sample(&format!("{name}_bucket"), &[labels, &[("le", &bound)]].concat(), below);
        }
        self.sample(&format!("{name}_sum"), labels, count.sum.as_secs_f64());
        self.sample(&format!("{name}_count"), labels, count.number);
    }

    /// All of it.
    pub fn finish(self) -> String {
        self.0
    }
}

/// As the format wants it, on one line.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(metrics: &Metrics) -> String {
        let mut text = Text::default();
        metrics.tell(&mut text);
        text.finish()
    }

    #[test]
    fn counts_are_told_with_their_labels() {
        let metrics = Metrics::default();
        metrics.count(&STARTS, &["isolation", "running"]);
        metrics.add(&STARTS, &["isolation", "running"], 2);
        metrics.count(&FINDINGS, &["high", "a\"b\\c\nd"]);
        let text = told(&metrics);
        assert!(text.contains("apex_starts_total{mode=\"isolation\",result=\"running\"} 3\n"), "{text}");
        assert!(text.contains("apex_findings_total{severity=\"high\",rule=\"a\\\"b\\\\c\\nd\"} 1\n"), "{text}");
        assert!(text.contains("# TYPE apex_events_total counter\n# HELP"), "one without counts is known all the same");
    }

    #[test]
    fn a_histogram_adds_up() {
        let metrics = Metrics::default();
        for ms in [1, 3, 40_000] {
            metrics.observe(&TRANSITION_SECONDS, &["freeze"], Duration::from_millis(ms));
        }
        let text = told(&metrics);
        let check = |line: &str| assert!(text.contains(&format!("apex_transition_seconds{line}\n")), "{text}");
        check("_bucket{kind=\"freeze\",le=\"0.0005\"} 0");
        check("_bucket{kind=\"freeze\",le=\"0.001\"} 1");
        check("_bucket{kind=\"freeze\",le=\"0.005\"} 2");
        check("_bucket{kind=\"freeze\",le=\"30\"} 2");
        check("_bucket{kind=\"freeze\",le=\"+Inf\"} 3");
        check("_sum{kind=\"freeze\"} 40.004");
        check("_count{kind=\"freeze\"} 3");
    }

    #[test]
    fn series_are_bounded() {
        let metrics = Metrics::default();
        for number in 0..10 * SERIES_MAX {
            metrics.count(&FINDINGS, &["high", &format!("{number}{}", "x".repeat(1000))]);
        }
        let text = told(&metrics);
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with("apex_findings_total{")).collect();
        assert_eq!(lines.len(), SERIES_MAX + 1);
        let other = format!("apex_findings_total{{severity=\"other\",rule=\"other\"}} {}", 9 * SERIES_MAX);
        assert!(lines.contains(&other.as_str()));
        assert!(lines.iter().all(|line| line.len() < 150));
    }
}

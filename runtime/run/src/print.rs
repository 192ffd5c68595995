//! Plans, receipts, explanations, proofs and diagnoses, for people and for programs.
//!
//! Input: types of core. Output: text of at most 100 columns, or JSON with one key that names the report. What a sandbox or a host
//! chose passes through [`escape`](crate::escape) first, in both forms.

mod plan;
mod table;

use std::io::{self, Write};

use apex_core::doctor::Diagnosis;
use apex_core::plan::Plan;
use apex_core::policy::IsolationLevel;
use apex_core::prove::{Proof, Verdict};
use apex_core::receipt::{LayerReceipt, Receipt, State};
use apex_core::refusal::Explanation;
use apex_core::watch::Level;
use serde::Serialize;

use crate::escape;
use table::{Cell, Tint, wrap};

/// Columns of every text.
const WIDTH: usize = 100;
/// Kinds of refusal that a text shows; JSON has all.
const KINDS_MAX: usize = 40;

/// Anything that can be printed. The name of the variant is the key in JSON.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Report<'r> {
    /// `--plan`.
    Plan(&'r Plan),
    /// `--receipt`.
    Receipt(&'r Receipt),
    /// `--why`.
    Why(&'r [Explanation]),
    /// `--prove`.
    Proof(&'r Proof),
    /// `--doctor`.
    Doctor(&'r Diagnosis),
}

/// For whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// For programs.
    Json,
    /// For people.
    Text {
        /// Whether escape sequences for colour are written.
        colour: bool,
    },
}

impl Style {
    /// Colour needs a terminal and no `NO_COLOR` (<https://no-color.org>: set and not empty).
    pub fn new(json: bool, on_terminal: bool, no_color: Option<&std::ffi::OsStr>) -> Self {
        if json {
            return Style::Json;
        }
        Style::Text { colour: on_terminal && no_color.is_none_or(|value| value.is_empty()) }
    }
}

/// Prints one report.
///
/// # Errors
/// What `out` answers; in JSON also a path of the plan that is not UTF-8.
pub fn print(out: &mut dyn Write, report: Report<'_>, style: Style) -> io::Result<()> {
    let colour = match style {
        Style::Json => return print_json(out, report),
        Style::Text { colour } => colour,
    };
    let text = match report {
        Report::Plan(plan) => plan::text(plan),
        Report::Receipt(receipt) => receipt_text(receipt, colour),
        Report::Why(explanations) => why_text(explanations, colour),
        Report::Proof(proof) => proof_text(proof, colour),
        Report::Doctor(diagnosis) => doctor_text(diagnosis, colour),
    };
    out.write_all(text.as_bytes())
}

/// serde escapes the C0 range alone. The rest of what a terminal acts on stands inside strings only, where `\uXXXX` means the same.
fn print_json(out: &mut dyn Write, report: Report<'_>) -> io::Result<()> {
    let json = serde_json::to_string_pretty(&report)?;
    let mut safe = String::with_capacity(json.len() + 1);
    for c in json.chars() {
        if c != '\n' && escape::is_hostile(c) {
            let mut units = [0; 2];
            safe.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        } else {
            safe.push(c);
        }
    }
    safe.push('\n');
    out.write_all(safe.as_bytes())
}

fn receipt_text(receipt: &Receipt, colour: bool) -> String {
    let watched = match receipt.watch {
        Level::Off => String::new(),
        level => format!("watched: {}; the command waits for it\n", level.name()),
    };
    let mut text = format!(
        "receipt of mode {}{}: kernel {}, init pid {}\nplan {}\n{watched}\n",
        receipt.mode.name(),
        at_level(receipt.level),
        escape::text(&receipt.kernel),
        receipt.init_pid,
        escape::text(&receipt.plan_sha256)
    );
    text.push_str(&layers_table(&receipt.layers, colour));
    text.push_str(&layers_sum(&receipt.layers));
    text
}

/// Behind the mode, where it is not what everybody has.
fn at_level(level: IsolationLevel) -> String {
    if level.is_full() { String::new() } else { format!(" at isolation level {level}") }
}

fn layers_table(layers: &[LayerReceipt], colour: bool) -> String {
    let rows = layers.iter().map(|layer| {
        let state = match &layer.state {
            State::InForce => Cell::tinted("in force", Tint::Good),
            State::Skipped(reason) => Cell::tinted(&format!("skipped: {reason}"), Tint::Doubtful),
            State::Off => Cell::new("off"),
            State::LeftOut(level) => Cell::tinted(&format!("left out: level {level}"), Tint::Doubtful),
            State::Mismatch(reason) => Cell::tinted(&format!("MISMATCH: {reason}"), Tint::Bad),
        };
        [
            Cell::new(layer.layer.name()),
            Cell::new(&layer.requested),
            Cell::new(&layer.effective),
            state,
            Cell::new(&layer.evidence),
        ]
    });
    table::render(["layer", "requested", "effective", "state", "evidence"], rows, colour)
}

fn layers_sum(layers: &[LayerReceipt]) -> String {
    let count = |wanted: fn(&State) -> bool| layers.iter().filter(|layer| wanted(&layer.state)).count();
    let mismatches = count(|state| matches!(state, State::Mismatch(_)));
    let mut sum = format!(
        "\nlayers in force: {}, skipped: {}, off: {}",
        count(|state| *state == State::InForce),
        count(|state| matches!(state, State::Skipped(_))),
        count(|state| *state == State::Off)
    );
    let left_out = count(|state| matches!(state, State::LeftOut(_)));
    if left_out > 0 {
        sum.push_str(&format!(", left out by the level: {left_out}"));
    }
    if mismatches > 0 {
        sum.push_str(&format!(", NOT AS REQUESTED: {mismatches}"));
    }
    sum.push('\n');
    sum
}

fn why_text(explanations: &[Explanation], colour: bool) -> String {
    if explanations.is_empty() {
        return "nothing was refused\n".to_owned();
    }
    let groups = grouped(explanations);
    let total: u64 = groups.iter().map(|(count, _)| count).sum();
    let mut text = format!("{total} refused, {} different\n", groups.len());
    for (count, explanation) in groups.iter().take(KINDS_MAX) {
        text.push('\n');
        push_explanation(&mut text, *count, explanation, colour);
    }
    if groups.len() > KINDS_MAX {
        text.push_str(&format!("\nand {} more; --json shows all\n", groups.len() - KINDS_MAX));
    }
    text
}

/// What differs in its process only counts as one, most frequent first; equals keep their order.
fn grouped(explanations: &[Explanation]) -> Vec<(u64, &Explanation)> {
    let mut index = std::collections::HashMap::new();
    let mut groups: Vec<(u64, &Explanation)> = Vec::new();
    for explanation in explanations {
        let at = *index.entry((&explanation.tried, &explanation.because)).or_insert_with(|| {
            groups.push((0, explanation));
            groups.len() - 1
        });
        groups[at].0 = groups[at].0.saturating_add(explanation.refusal.count);
    }
    groups.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    groups
}

fn push_explanation(text: &mut String, count: u64, explanation: &Explanation, colour: bool) {
    let refusal = &explanation.refusal;
    let by = match (refusal.comm.as_str(), refusal.pid) {
        // A limit is the whole sandbox's.
        ("", _) => String::new(),
        (comm, 0) => format!("{comm}: "),
        (comm, pid) => format!("{comm}, pid {pid}: "),
    };
    let tried = format!("{} ({by}{})", explanation.tried, refusal.outcome);
    push_field(text, &format!("{count}x"), &tried, Tint::Bad.or_plain(colour));
    let layer = explanation.layer.map(|layer| format!(" [{layer}]")).unwrap_or_default();
    push_field(text, "because", &format!("{}{layer}", explanation.because), Tint::Plain);
    if let Some(rule) = &explanation.rule {
        push_field(text, "rule", &rule.to_string(), Tint::Plain);
    }
    match &explanation.change {
        // Never broken: it is there to be copied.
        Some(change) => {
            for (at, line) in change.lines().enumerate() {
                let name = if at == 0 { "change" } else { "" };
                let line = Tint::Good.or_plain(colour).paint(&escape::text(line));
                text.push_str(&format!("  {name:>7}  {line}\n"));
            }
        }
        None if explanation.layer.is_some() => push_field(text, "change", "none that is safe", Tint::Plain),
        None => {}
    }
    if let Some(caution) = &explanation.caution {
        push_field(text, "caution", caution, Tint::Doubtful.or_plain(colour));
    }
}

fn push_field(text: &mut String, name: &str, value: &str, tint: Tint) {
    for (at, line) in wrap(&escape::text(value), WIDTH - 11).iter().enumerate() {
        let name = if at == 0 { name } else { "" };
        text.push_str(&format!("  {name:>7}  {}\n", tint.paint(line)));
    }
}

fn proof_text(proof: &Proof, colour: bool) -> String {
    let mut text =
        format!("proof of mode {}{}: each was attempted inside\n\n", proof.mode.name(), at_level(proof.level));
    let rows = proof.attempts.iter().map(|attempt| {
        let verdict = match &attempt.verdict {
            Verdict::Refused => Cell::tinted("refused", Tint::Good),
            Verdict::Allowed => Cell::tinted("ALLOWED", Tint::Bad),
            Verdict::NotApplicable(reason) => Cell::tinted(&format!("not applicable: {reason}"), Tint::Doubtful),
        };
        [
            Cell::new(attempt.layer.name()),
            Cell::new(&attempt.attempt),
            Cell::new(&attempt.expected),
            Cell::new(&attempt.got),
            verdict,
        ]
    });
    text.push_str(&table::render(["layer", "attempt", "expected", "got", "verdict"], rows, colour));
    text.push('\n');
    text.push_str(&layers_table(&proof.layers, colour));
    text.push_str(&layers_sum(&proof.layers));
    let count = |wanted: fn(&Verdict) -> bool| proof.attempts.iter().filter(|attempt| wanted(&attempt.verdict)).count();
    text.push_str(&format!(
        "{}: {} refused, {} allowed, {} not applicable\n",
        if proof.passed { "passed" } else { "FAILED" },
        count(|verdict| *verdict == Verdict::Refused),
        count(|verdict| *verdict == Verdict::Allowed),
        count(|verdict| matches!(verdict, Verdict::NotApplicable(_)))
    ));
    text
}

fn doctor_text(diagnosis: &Diagnosis, colour: bool) -> String {
    let mut text = format!("kernel {}, user {}\n\n", escape::text(&diagnosis.kernel), diagnosis.uid);
    let rows = diagnosis.findings.iter().map(|finding| {
        let layer = finding.layer.map_or("", |layer| layer.name());
        let available = if finding.available { Cell::tinted("yes", Tint::Good) } else { Cell::tinted("NO", Tint::Bad) };
        [Cell::new(&finding.facility), Cell::new(layer), available, Cell::new(&finding.detail)]
    });
    text.push_str(&table::render(["facility", "layer", "here", "detail"], rows, colour));
    let remedies = diagnosis.findings.iter().filter(|finding| !finding.available);
    for (finding, remedy) in remedies.filter_map(|finding| Some((finding, finding.remedy.as_ref()?))) {
        text.push('\n');
        for line in wrap(&escape::text(&format!("{}: {remedy}", finding.facility)), WIDTH) {
            text.push_str(&line);
            text.push('\n');
        }
    }
    let missing = diagnosis.findings.iter().filter(|finding| !finding.available).count();
    text.push_str(&match (diagnosis.usable(), missing) {
        (true, 0) => "\neverything is available here\n".to_owned(),
        (true, _) => format!("\nsandboxes work here; {missing} missing (--optional LAYER goes on without a layer)\n"),
        (false, _) => "\nno sandbox can be made here: a layer is missing on which the others stand\n".to_owned(),
    });
    text
}

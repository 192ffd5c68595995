//! Models and judgements in words.

use std::fmt::Write;
use std::path::Path;

use apex_core::baseline::{Class, Model, RUNS_MIN};
use apex_core::escape;

use super::records::Run;

/// Most names of a class that are shown.
const NAMES_MAX: usize = 12;

/// Whether a model judges, and how wrong it may be.
pub fn state(model: &Model) -> String {
    match model.false_alarms_max() {
        Some(rate) => format!("a run like them is alarmed about in at most {:.1}% of cases", rate * 100.0),
        None => format!("alarms about nothing before it has {RUNS_MIN} runs"),
    }
}

/// One line.
pub fn row(name: &str, model: &Model) -> String {
    format!("{name}  {} runs, {}\n", model.runs.len(), state(model))
}

/// All of it that a person wants to know.
pub fn model(model: &Model) -> String {
    let mut out = String::new();
    let mut line = |head: &str, text: String| {
        writeln!(out, "{head:>12}  {text}").expect("a string takes any text");
    };
    line("profile", escape::text(&model.key.profile).into_owned());
    line("policy", model.key.plan_sha256.clone());
    line("runs", format!("{} kept of {} learned from", model.runs.len(), model.absorbed));
    line("judges", state(model));
    line("sha256", model.sha256.clone());
    for class in [Class::Program, Class::Peer, Class::Place, Class::Refusal] {
        names(model, class, &mut line);
    }
    let mut kinds: Vec<&String> = model.runs.iter().flat_map(|run| run.tallies.keys()).collect();
    kinds.sort();
    kinds.dedup();
    for (at, kind) in kinds.into_iter().enumerate() {
        let mut totals: Vec<u64> =
            model.runs.iter().map(|run| run.tallies.get(kind).map_or(0, |tally| tally.total)).collect();
        totals.sort_unstable();
        let (least, middle, most) = (totals[0], totals[totals.len() / 2], totals[totals.len() - 1]);
        let head = if at == 0 { "counts" } else { "" };
        line(head, format!("{kind}: {least} to {most}, half of the runs up to {middle}"));
    }
    out
}

fn names(model: &Model, class: Class, line: &mut impl FnMut(&str, String)) {
    let mut counts = std::collections::BTreeMap::<&String, usize>::new();
    for name in model.runs.iter().flat_map(|run| run.of(class)) {
        *counts.entry(name).or_default() += 1;
    }
    let mut often: Vec<(&String, usize)> = counts.into_iter().collect();
    often.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
    for (at, (name, count)) in often.iter().take(NAMES_MAX).enumerate() {
        let head = if at == 0 { class.words() } else { "" };
        line(head, format!("{} ({count} of {} runs)", escape::text(name), model.runs.len()));
    }
    if often.len() > NAMES_MAX {
        line("", format!("and {} more", often.len() - NAMES_MAX));
    }
}

/// What the model thinks of a run.
pub fn verdict(file: &Path, run: &Run) -> String {
    let command = escape::text(&run.command.join(" ")).chars().take(60).collect::<String>();
    let head = format!("{}: {command}", escape::path(file));
    let Some(score) = &run.score else {
        return format!("{head}: not judged: {}\n", run.mute.as_deref().unwrap_or("no model"));
    };
    let verdict = if run.findings.is_empty() { "usual" } else { "unusual" };
    let part = if run.is_whole { "" } else { ", and its record has no end" };
    let mut out = format!("{head}: {verdict}, {:.2} of the threshold{part}\n", score.value);
    if !run.findings.is_empty() {
        for moved in &score.moved {
            writeln!(
                out,
                "  {:>4.0}%  {}: {} (expected {})",
                moved.weight * 100.0,
                escape::text(&moved.feature),
                escape::text(&moved.seen),
                moved.expected
            )
            .expect("a string takes any text");
        }
    }
    out
}

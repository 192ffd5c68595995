//! An account as text for people: what a terminal would act on is escaped, long lists are cut with a count.

use std::fmt::Write as _;

use super::{Account, Counted};
use crate::escape;

/// Lines of one list.
const LINES_MAX: usize = 20;
/// Characters of one line.
const WIDTH_MAX: usize = 160;

impl Account {
    /// As text, each line ended.
    pub fn text(&self) -> String {
        let mut out = String::from("what the sandbox did\n");
        let command = self.command.iter().map(|word| escape::text(word)).collect::<Vec<_>>().join(" ");
        push(&mut out, 1, &format!("command    {command}"));
        let seconds = self.duration_ns as f64 / 1e9;
        let ending = self.ending.as_deref().unwrap_or("its end was not seen");
        push(&mut out, 1, &format!("ended      after {seconds:.1} s: {ending} (mode {})", self.mode));
        self.programs(&mut out);
        list(&mut out, "written", &self.written);
        list(&mut out, "made", &self.made);
        list(&mut out, "renamed", &self.renamed);
        list(&mut out, "removed", &self.removed);
        list(&mut out, "peers", &self.peers);
        list(&mut out, "bound", &self.bound);
        if self.received_bytes + self.sent_bytes > 0 {
            let (received, sent) = (bytes(self.received_bytes), bytes(self.sent_bytes));
            push(&mut out, 1, &format!("traffic    {received} received, {sent} sent"));
        }
        list(&mut out, "refused calls", &self.refused);
        list(&mut out, "not permitted", &self.denied);
        list(&mut out, "unusual", &self.unusual);
        self.findings(&mut out);
        self.gaps(&mut out);
        self.costs(&mut out);
        out
    }

    /// The tree, each program below the one that started it.
    fn programs(&self, out: &mut String) {
        if self.programs.is_empty() {
            return;
        }
        let _ = writeln!(out, "  programs ({} processes born)", self.processes);
        let mut left = LINES_MAX;
        self.children(out, None, 2, &mut left);
        let shown = LINES_MAX - left;
        let hidden = (self.programs.len() - shown) as u64 + self.programs_more;
        if hidden > 0 {
            push(out, 2, &format!("and {hidden} more"));
        }
    }

    fn children(&self, out: &mut String, parent: Option<usize>, indent: usize, left: &mut usize) {
        for (index, program) in self.programs.iter().enumerate().filter(|(_, program)| program.parent == parent) {
            if *left == 0 {
                return;
            }
            *left -= 1;
            let times = if program.count > 1 { format!(" ({} times)", program.count) } else { String::new() };
            push(out, indent, &format!("{}{times}", escape::text(&program.path)));
            // The depth of the tree is bounded where it is built.
            self.children(out, Some(index), indent + 1, left);
        }
    }

    fn findings(&self, out: &mut String) {
        if self.findings.is_empty() {
            return;
        }
        out.push_str("  findings\n");
        for (odd, count) in self.findings.iter().take(LINES_MAX) {
            let times = if *count > 1 { format!(" ({count} times)") } else { String::new() };
            push(out, 2, &format!("{}: {}{times}", odd.severity.name(), escape::text(&odd.title)));
        }
        if self.findings.len() > LINES_MAX {
            push(out, 2, &format!("and {} more", self.findings.len() - LINES_MAX));
        }
    }

    /// What this account cannot tell.
    fn gaps(&self, out: &mut String) {
        for (family, reason) in &self.unwatched {
            push(out, 1, &format!("not watched: {family}: {}", escape::text(reason)));
        }
        for (why, count) in &self.lost {
            push(out, 1, &format!("lost: {count} events ({})", why.words()));
        }
    }

    /// What watching cost.
    fn costs(&self, out: &mut String) {
        if !self.probes.is_empty() {
            out.push_str("  cost of the probes\n");
        }
        for probe in &self.probes {
            let each_ns = probe.run_time_ns / probe.run_count.max(1);
            push(
                out,
                2,
                &format!("{} ({}): {} runs, {each_ns} ns each", probe.name, probe.family.name(), probe.run_count),
            );
        }
    }
}

fn list(out: &mut String, title: &str, counted: &Counted) {
    if counted.is_empty() {
        return;
    }
    let _ = writeln!(out, "  {title}");
    // The most frequent first; the same order each time.
    let mut entries: Vec<_> = counted.counts.iter().collect();
    entries.sort_by(|one, other| other.1.cmp(one.1).then(one.0.cmp(other.0)));
    for (name, count) in entries.iter().take(LINES_MAX) {
        let times = if **count > 1 { format!(" ({count} times)") } else { String::new() };
        push(out, 2, &format!("{}{times}", escape::text(name)));
    }
    let hidden = entries.iter().skip(LINES_MAX).map(|(_, count)| **count).sum::<u64>() + counted.more;
    if hidden > 0 {
        push(out, 2, &format!("and {hidden} more"));
    }
}

fn push(out: &mut String, indent: usize, text: &str) {
    let cut = text.char_indices().nth(WIDTH_MAX).map_or(text.len(), |(at, _)| at);
    let dots = if cut < text.len() { "..." } else { "" };
    let _ = writeln!(out, "{}{}{dots}", "  ".repeat(indent), &text[..cut]);
}

/// About how much, in the largest unit that leaves a whole number before the point.
fn bytes(count: u64) -> String {
    let units = [(1_u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| count >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", count as f64 / unit as f64),
        None => format!("{count} bytes"),
    }
}

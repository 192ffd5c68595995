//! `--help`, the man page and the completions, all made from the table of options.

mod complete;
mod man;

pub use complete::completions;
pub use man::man_page;

use std::fmt::Write as _;

use crate::table::{Kind, Row, Section, TABLE};

/// Columns of the help.
const WIDTH: usize = 100;
/// Where the explanations begin.
const INDENT: usize = 24;

const SUMMARY: &str = "run any program in a sandbox that the kernel enforces, and show what is in force";
const USAGE: &str = "apex-run [OPTIONS] [--] COMMAND [ARGS...]";

/// A worked example: what it is for, and the line.
struct Example {
    purpose: &'static str,
    line: &'static str,
}

/// What the first word can be instead of a command.
const VERBS: [(&str, &str); 5] = [
    (
        "diff DIR",
        "what a run with --overlay DIR changed: + added, ~ changed, - removed, m permissions; --json for programs",
    ),
    ("commit DIR [PATH..]", "apply it, or the part at PATH, where the host has not changed since"),
    (
        "backtest EVENTS..",
        "what the policy of the options would have refused of recorded events; exit code 1 when anything",
    ),
    ("export seccomp|systemd", "the policy of the options as an OCI seccomp profile or as lines of a unit"),
    ("import seccomp FILE", "an OCI seccomp profile as a policy"),
];

const EXAMPLES: [Example; 4] = [
    Example {
        purpose: "A Python script that reads one directory and writes another, with limits",
        line: "apex-run --profile python --ro data --rw out --memory 512M --time 5m -- python3 job.py",
    },
    Example {
        purpose: "Build a source tree nobody has read, and learn what was refused",
        line: "apex-run --profile build --rw . --why -- make -j2",
    },
    Example {
        purpose: "Look before running: the plan, then a proof that this host enforces it",
        line: "apex-run --profile node --plan -- node app.js && apex-run --profile node --prove",
    },
    Example {
        purpose: "Learn the narrowest policy from a run, then run under it",
        line: "apex-run --learn job.toml -- ./job && apex-run --policy job.toml --why -- ./job",
    },
];

/// Exit codes: the code, and when.
const EXIT_CODES: [(&str, &str); 7] = [
    ("N", "the command's own"),
    ("128+N", "signal N ended the command"),
    ("124", "the wall time limit (--time) was reached"),
    ("125", "apex-run itself failed, and nothing ran or the sandbox was ended; the message says why and what to do"),
    ("126", "the command cannot be executed"),
    ("127", "the command was not found inside"),
    (
        "137",
        "the kernel killed it for memory (--memory), or a finding did (--on-finding kill); the message names which",
    ),
];

/// The text of `--help`.
pub fn help() -> String {
    let mut out = format!("apex-run: {SUMMARY}\n\nUsage: {USAGE}\n");
    for section in Section::ALL {
        let _ = write!(out, "\n{}:\n", section.title());
        for row in TABLE.iter().filter(|row| row.section == section) {
            push_entry(&mut out, &synopsis(row), &explanation(row));
        }
    }
    out.push_str("\nInstead of a command (a command of such a name runs behind --):\n");
    for (verb, meaning) in VERBS {
        push_entry(&mut out, verb, meaning);
    }
    out.push_str("\nExamples:\n");
    for example in &EXAMPLES {
        let _ = write!(out, "  # {}\n  {}\n", example.purpose, example.line);
    }
    out.push_str("\nExit codes:\n");
    for (code, meaning) in EXIT_CODES {
        push_entry(&mut out, code, meaning);
    }
    out
}

/// The text of `--version`.
pub fn version() -> String {
    format!("apex-run {}\n", env!("CARGO_PKG_VERSION"))
}

/// `-h, --help`, `--memory SIZE`.
fn synopsis(row: &Row) -> String {
    let short = row.short.map(|letter| format!("-{letter}, ")).unwrap_or_default();
    match row.kind {
        Kind::Switch(_) => format!("{short}--{}", row.long),
        Kind::Takes { name, .. } => format!("{short}--{} {name}", row.long),
        Kind::May { name, .. } => format!("{short}--{}[={name}]", row.long),
    }
}

fn explanation(row: &Row) -> String {
    if row.repeatable { format!("{} (repeatable)", row.help) } else { row.help.to_owned() }
}

fn push_entry(out: &mut String, head: &str, text: &str) {
    let mut line = format!("  {head:<width$}", width = INDENT - 2);
    if line.len() > INDENT {
        let _ = writeln!(out, "{line}");
        line = " ".repeat(INDENT);
    }
    let mut empty = true;
    for word in text.split(' ') {
        if !empty && line.len() + 1 + word.len() > WIDTH {
            let _ = writeln!(out, "{line}");
            line = " ".repeat(INDENT);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    let _ = writeln!(out, "{line}");
}

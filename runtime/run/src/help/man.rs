//! The man page, as roff (man(7)).

use std::fmt::Write as _;

use super::{EXAMPLES, EXIT_CODES, SUMMARY, VERBS, explanation};
use crate::table::{Kind, Row, Section, TABLE};

const DESCRIPTION: &str = "Resolves a mode, a profile, a policy file and the options to a plan, builds a sandbox from it, and runs \
the command in it with its standard streams, exit code and signals intact. It needs no daemon, no configuration and no root. \
What the policy asks for and the host cannot give stops the start, unless the layer is optional. \
Nothing that stands behind the first other word, or behind \\-\\-, is an option of apex-run.";

const FILES: [(&str, &str); 2] = [
    ("/etc/apex", "modes/ and profiles/ of this machine; each replaces the embedded one of its name"),
    ("~/.config/apex", "the same for one user"),
];

/// The text of `apex-run(1)`.
pub fn man_page() -> String {
    let mut out = format!(".TH APEX-RUN 1 \"\" \"apex {}\" \"User Commands\"\n", env!("CARGO_PKG_VERSION"));
    let _ = write!(out, ".SH NAME\napex-run \\- {}\n", roff(SUMMARY));
    out.push_str(".SH SYNOPSIS\n.B apex-run\n[\\fIOPTIONS\\fR] [\\fB\\-\\-\\fR] \\fICOMMAND\\fR [\\fIARGS\\fR...]\n");
    let _ = write!(out, ".SH DESCRIPTION\n{DESCRIPTION}\n.SH OPTIONS\n");
    for section in Section::ALL {
        let _ = writeln!(out, ".SS {}", section.title());
        for row in TABLE.iter().filter(|row| row.section == section) {
            let _ = write!(out, ".TP\n{}\n{}.\n", head(row), roff(&capitalized(&explanation(row))));
        }
    }
    out.push_str(".SH VERBS\nThe first word may be one of these instead of a command; a command of such a name runs behind \\-\\-.\n");
    for (verb, meaning) in VERBS {
        let _ = write!(out, ".TP\n.B {}\n{}.\n", roff(verb), roff(&capitalized(meaning)));
    }
    out.push_str(".SH EXIT STATUS\n");
    for (code, meaning) in EXIT_CODES {
        let _ = write!(out, ".TP\n.B {code}\n{}.\n", roff(&capitalized(meaning)));
    }
    out.push_str(".SH FILES\n");
    for (path, meaning) in FILES {
        let _ = write!(out, ".TP\n.I {path}\n{}.\n", roff(&capitalized(meaning)));
    }
    out.push_str(".SH EXAMPLES\n");
    for example in &EXAMPLES {
        let _ = write!(out, ".PP\n{}:\n.PP\n.nf\n.RS\n{}\n.RE\n.fi\n", roff(example.purpose), roff(example.line));
    }
    out.push_str(".SH SEE ALSO\n.BR namespaces (7),\n.BR landlock (7),\n.BR seccomp (2),\n.BR cgroups (7)\n");
    out
}

fn head(row: &Row) -> String {
    let short = row.short.map(|letter| format!("\\fB\\-{letter}\\fR, ")).unwrap_or_default();
    let long = roff(row.long);
    match row.kind {
        Kind::Switch(_) => format!("{short}\\fB\\-\\-{long}\\fR"),
        Kind::May { name, .. } => format!("{short}\\fB\\-\\-{long}\\fR[=\\fI{}\\fR]", roff(name)),
        Kind::Takes { name, .. } => format!("{short}\\fB\\-\\-{long}\\fR \\fI{}\\fR", roff(name)),
    }
}

/// A minus that can be copied, a backslash that stays one, and no line that begins as a request.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

fn capitalized(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().map(|first| first.to_uppercase().chain(rest).collect()).unwrap_or_default()
}

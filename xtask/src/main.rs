//! Everything that is not `cargo build` or `cargo test`: `cargo xtask VERB`.

mod build;
mod check;
mod setup;
mod shell;
mod test;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
usage: cargo xtask VERB

  setup    install what the demo and the tests need from apt (as root; otherwise print the line)
  check    format, lints, dependency edges, sizes, layout, links, reasons in policies
  ratchet  write down what has become shorter
  test     setup and check, then every test, as root and again as an unprivileged user
";

fn main() -> ExitCode {
    match dispatch(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(words: Vec<String>) -> Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["setup"] => setup::ensure(setup::Need::Tests),
        ["check"] => check::run(),
        ["ratchet"] => check::tighten(),
        ["test"] => test::run(),
        [] | ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(())
        }
        other => bail!("no such task: {}\n{USAGE}", other.join(" ")),
    }
}

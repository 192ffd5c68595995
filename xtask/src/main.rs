//! Everything that is not `cargo build` or `cargo test`: `cargo xtask VERB`.

mod bench;
mod build;
mod cache;
mod check;
mod demo;
mod dist;
mod ebpf;
mod leaks;
mod setup;
mod shell;
mod test;
mod tree;
mod vm;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};

const USAGE: &str = "\
usage: cargo xtask VERB

  demo     what apex-run does, on a script that first works and then tries to steal, phone out and fork without end
  setup    install what the demo and the tests need from apt (as root; otherwise print the line)
  check    format, lints, dependency edges, sizes, layout, links, reasons in policies
  ebpf [--check]
           build the BPF objects in ebpf/prebuilt, or compare them with what their sources give
  ratchet  write down what has become shorter
  test     setup and check, then every test, as root and again as an unprivileged user, at last in a virtual machine
  vm [--image-only] [FILTER]
           the tests that want a real Debian host, in one under qemu: all, or those of the programs or names with FILTER
  dist     build the Debian package in target/dist
  bench TABLE [COUNT]
           start, steady, density, monitor, daemon, reaction, oci or all: speed and size beside the peers; COUNT launches, rounds, sandboxes or containers
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
        ["demo"] => demo::run(),
        ["check"] => check::run(),
        ["ebpf"] => ebpf::build(),
        ["ebpf", "--check"] => ebpf::check(),
        ["dist"] => dist::run(),
        ["ratchet"] => check::tighten(),
        ["test"] => test::run(),
        ["vm", rest @ ..] => vm::run(rest),
        // The virtual machine's own side.
        ["vm-guest"] => vm::guest(),
        ["vm-pass", class] => vm::pass(class),
        ["bench", table] => bench::run(table, None),
        ["bench", table, count] => {
            bench::run(table, Some(count.parse().with_context(|| format!("{count} is not a number"))?))
        }
        [] | ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(())
        }
        other => bail!("no such task: {}\n{USAGE}", other.join(" ")),
    }
}

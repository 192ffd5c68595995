//! Every test that this machine can run: as the caller, when that is root again as an unprivileged user, and at last those that want
//! another kernel in a virtual machine, where one can be had.
//!
//! The last line is `N passed, N failed, N skipped`, alone. What fails the run: a test, a skip that nobody expected, anything
//! left on the machine.

pub mod skips;
pub mod tally;
pub mod user;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::skips::Class;
use self::tally::{Runner, Tally};
use crate::leaks::{self, Belongings};
use crate::vm::{self, Lane};
use crate::{build, check, setup, shell};

/// One whole run of the workspace's tests. A cold one takes minutes; this only ends what hangs.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// Sets up, checks, tests, and ends with the closing line.
pub fn run() -> Result<()> {
    setup::ensure(setup::Need::Tests)?;
    check::run()?;
    let apex_run = build::apex_run()?;
    build::daemon()?;
    build::containers()?;
    let binaries = build::tests()?;

    // Orphans of the tests become our children, so what outlives its test is found however it detached itself.
    nix::sys::prctl::set_child_subreaper(true).context("cannot adopt orphaned processes")?;
    let scratch = user::Scratch::new()?;
    let before = Belongings::look(scratch.path())?;

    let class = if shell::is_root() { Class::Root } else { Class::User };
    let mut total = Tally::new(class);
    heading(&format!("every test, as {class}"));
    workspace(&apex_run, &scratch, &mut total)?;
    let mut tallies = vec![total];
    if class == Class::Root {
        tallies.push(user::run(&apex_run, &binaries, &scratch)?);
    }

    heading("the tests that want a real host, in a virtual machine");
    let lane = vm::lane(&apex_run, &binaries);
    heading("what was left behind");
    let mut left = leaks::settle(&before, scratch.path())?;
    let said = match lane? {
        Lane::Ran(report) => {
            let said = format!("in the VM: {}", counts(&report.tallies, report.left.len()));
            left.extend(report.left);
            tallies.extend(report.tallies);
            said
        }
        Lane::NotRun(why) => format!("in the VM nothing ran: {why}"),
    };
    let surprises = skips::compare(&tallies, &shell::root().join("tests/expected-skips.toml"))?;
    println!("\n{said}");
    let left = left.into_iter().map(|thing| format!("LEFT BEHIND: {thing}"));
    close(&tallies, left.chain(surprises).collect())
}

/// Runs all tests of the workspace as we are, with nextest when it is there.
fn workspace(apex_run: &Path, scratch: &user::Scratch, tally: &mut Tally) -> Result<()> {
    for (runner, mut command) in runners() {
        // Colours would hide the lines that are counted.
        command
            .env("CARGO_TERM_COLOR", "never")
            .env("APEX_RUN", apex_run)
            .env("APEX_REPO", shell::root())
            .env("TMPDIR", scratch.dir("tmp-caller")?);
        let status = shell::stream(&mut command, LIMIT, |line| {
            println!("{line}");
            tally.read(runner, line);
        })?;
        tally.ended(&shell::line(&command), status);
    }
    Ok(())
}

/// nextest runs each test in a process of its own but knows no documentation tests; cargo test runs both.
fn runners() -> Vec<(Runner, Command)> {
    if shell::on_path("cargo-nextest").is_none() {
        let mut command = shell::cargo();
        command.args(["test", "--workspace", "--locked", "--no-fail-fast", "--", "--show-output"]);
        return vec![(Runner::Libtest, command)];
    }
    let mut nextest = shell::cargo();
    nextest.args([
        "nextest",
        "run",
        "--workspace",
        "--locked",
        "--no-fail-fast",
        "--config-file",
        "xtask/nextest.toml",
    ]);
    let mut documentation = shell::cargo();
    documentation.args(["test", "--workspace", "--locked", "--no-fail-fast", "--doc"]);
    vec![(Runner::Nextest, nextest), (Runner::Libtest, documentation)]
}

/// What is wrong, whole, where nobody must search for it; the closing line; and an error when there is anything wrong.
///
/// `wrong` is what failed the run beside its tests.
pub fn close(tallies: &[Tally], wrong: Vec<String>) -> Result<()> {
    for tally in tallies {
        for failure in &tally.failures {
            println!("\nFAILED as {}: {}", tally.class, failure.name);
            for line in &failure.words {
                println!("    {line}");
            }
        }
    }
    println!();
    for line in &wrong {
        println!("{line}\n");
    }
    // Whatever fails the run counts as a failure in the closing line: nobody should read "0 failed" above an error.
    println!("{}", counts(tallies, wrong.len()));
    let failed = wrong.len() + tallies.iter().map(|tally| tally.failed).sum::<usize>();
    if failed > 0 {
        bail!("{failed} things are wrong: tests that failed, unexpected skips, or leftovers, each named above");
    }
    Ok(())
}

fn counts(tallies: &[Tally], wrong: usize) -> String {
    let sum = |count: fn(&Tally) -> usize| tallies.iter().map(count).sum::<usize>();
    let failed = sum(|tally| tally.failed) + wrong;
    format!("{} passed, {failed} failed, {} skipped", sum(Tally::passed), sum(Tally::skipped))
}

fn heading(text: &str) {
    println!("\n=== {text}");
}

//! Counts what libtest and nextest report, from the lines they print.
//!
//! libtest and nextest know no skip at run time: such a test prints `SKIP name: reason` and passes.

use std::process::ExitStatus;

use super::skips::Class;

/// A test that could not run here, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Skip {
    /// Full name of the test.
    pub name: String,
    /// What the test said.
    pub reason: String,
}

/// Whose lines are read. nextest shows what the libtest inside printed; that must not count twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runner {
    /// `cargo test`, or a test program run by itself.
    Libtest,
    /// `cargo nextest run`.
    Nextest,
}

/// The count of one class of user.
pub struct Tally {
    /// Who ran them.
    pub class: Class,
    /// Tests that the runner calls passed, skips included.
    ran_well: usize,
    /// Tests that failed, timed out or could not be started.
    pub failed: usize,
    /// Tests that the source marks as ignored.
    pub ignored: usize,
    /// Tests that skipped themselves.
    pub skips: Vec<Skip>,
    /// Names of what failed.
    pub failures: Vec<String>,
    /// What `failed` was when the last runner ended.
    failed_before: usize,
}

impl Tally {
    /// An empty count.
    pub fn new(class: Class) -> Self {
        Tally { class, ran_well: 0, failed: 0, ignored: 0, skips: Vec::new(), failures: Vec::new(), failed_before: 0 }
    }

    /// Tests that ran and passed.
    pub fn passed(&self) -> usize {
        self.ran_well.saturating_sub(self.skips.len())
    }

    /// Tests that did not run.
    pub fn skipped(&self) -> usize {
        self.skips.len() + self.ignored
    }

    /// Takes one line of a runner's output.
    pub fn read(&mut self, runner: Runner, line: &str) {
        let line = line.trim();
        if let Some(skip) = line.strip_prefix("SKIP ").and_then(skip) {
            if !self.skips.contains(&skip) {
                self.skips.push(skip);
            }
            return;
        }
        let (counts, failure) = match runner {
            Runner::Libtest => (libtest_summary(line), libtest_failure(line)),
            Runner::Nextest => (nextest_summary(line), nextest_failure(line)),
        };
        if let Some(counts) = counts {
            self.add(counts);
        }
        // nextest names a failure where it happens and again at the end.
        self.failures.extend(failure.filter(|name| !self.failures.contains(name)));
    }

    /// Notes how a runner ended. One that fails without having counted a failure must not look green.
    pub fn ended(&mut self, runner: &str, status: ExitStatus) {
        if !status.success() && self.failed == self.failed_before {
            self.failed += 1;
            self.failures.push(format!("{runner}: {status}, although it reported no failed test"));
        }
        self.failed_before = self.failed;
    }

    fn add(&mut self, counts: &str) {
        for count in counts.split([',', ';']) {
            // nextest: "4 passed (1 slow)", "1 timed out"; libtest: "4 passed", "0 filtered out".
            let Some((number, what)) = count.trim().split_once(' ') else {
                continue;
            };
            let Ok(number) = number.parse::<usize>() else {
                continue;
            };
            match what.split(" (").next().unwrap_or(what) {
                "passed" => self.ran_well += number,
                "failed" | "timed out" | "exec failed" => self.failed += number,
                "ignored" | "skipped" => self.ignored += number,
                _ => {}
            }
        }
    }
}

fn skip(rest: &str) -> Option<Skip> {
    let (name, reason) = rest.split_once(": ")?;
    let is_name = !name.is_empty() && !name.contains(' ');
    is_name.then(|| Skip { name: name.to_owned(), reason: reason.to_owned() })
}

/// `test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s`
fn libtest_summary(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("test result: ")?;
    rest.split_once(". ").map(|(_, counts)| counts)
}

/// `Summary [   0.010s] 5 tests run: 4 passed, 1 failed, 0 skipped`
fn nextest_summary(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("Summary [")?;
    rest.split_once(" run: ").map(|(_, counts)| counts)
}

/// `test escape::ptrace ... FAILED`
fn libtest_failure(line: &str) -> Option<String> {
    let name = line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?;
    Some(name.to_owned())
}

/// `FAIL [   0.005s] (1/5) apex-tests::escape ptrace`, and the same with `TIMEOUT`, `SIGABRT` and other signals
fn nextest_failure(line: &str) -> Option<String> {
    let (word, rest) = line.split_once(" [")?;
    let is_failure = word == "FAIL" || word == "TIMEOUT" || word == "XFAIL" || word.starts_with("SIG");
    let (_, name) = rest.split_once("] ")?;
    is_failure.then(|| name.trim_start().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(runner: Runner, lines: &str, passed: usize, failed: usize, skipped: usize) -> Tally {
        let mut tally = Tally::new(Class::User);
        lines.lines().for_each(|line| tally.read(runner, line));
        assert_eq!((tally.passed(), tally.failed, tally.skipped()), (passed, failed, skipped), "{lines}");
        tally
    }

    #[test]
    fn libtest_lines_are_added_up() {
        let tally = check(
            Runner::Libtest,
            "test a::b ... ok\ntest a::c ... FAILED\n\
             test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.00s\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            5,
            1,
            1,
        );
        assert_eq!(tally.failures, ["a::c"]);
    }

    #[test]
    fn a_nextest_summary_counts_what_timed_out_as_failed() {
        let tally = check(
            Runner::Nextest,
            "        FAIL [   0.005s] (1/5) apex-tests::escape ptrace\n\
             test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 3 filtered out\n\
             Summary [   0.010s] 6 tests run: 3 passed (1 slow), 1 failed, 1 timed out, 1 exec failed, 0 skipped",
            3,
            3,
            0,
        );
        assert_eq!(tally.failures, ["(1/5) apex-tests::escape ptrace"]);
    }

    #[test]
    fn a_skip_is_not_a_pass() {
        let tally = check(
            Runner::Libtest,
            "    SKIP escape::oom: no cgroup delegation: ask the administrator\n\
             SKIP escape::oom: no cgroup delegation: ask the administrator\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
            1,
            0,
            1,
        );
        assert_eq!(tally.skips[0].reason, "no cgroup delegation: ask the administrator");
    }

    #[test]
    fn a_runner_that_dies_without_a_word_fails_the_run() {
        let mut tally = check(Runner::Libtest, "", 0, 0, 0);
        tally.ended("cargo test", std::os::unix::process::ExitStatusExt::from_raw(0x100));
        assert_eq!(tally.failed, 1);
    }
}

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

/// Lines of a failed test that are said again at the end: the whole stands where it happened.
const WORDS_MAX: usize = 60;

/// A test that failed, or a runner that did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its name, as the runner writes it.
    pub name: String,
    /// The beginning of what it said.
    pub words: Vec<String>,
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
    /// What failed.
    pub failures: Vec<Failure>,
    /// Whether the runner is at its account of what failed, and of which.
    account: Account,
    /// Failures of programs that have ended.
    told: usize,
    /// What `failed` was when the last runner ended.
    failed_before: usize,
}

/// Both runners say again at their end what failed, each failure under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Account {
    /// Tests run, or what passed is told.
    None,
    /// Failures are told.
    Begun,
    /// The failure of this index is told.
    Of(usize),
}

impl Tally {
    /// An empty count.
    pub fn new(class: Class) -> Self {
        Tally {
            class,
            ran_well: 0,
            failed: 0,
            ignored: 0,
            skips: Vec::new(),
            failures: Vec::new(),
            account: Account::None,
            told: 0,
            failed_before: 0,
        }
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
        let counts = match runner {
            Runner::Libtest => self.read_libtest(line),
            Runner::Nextest => self.read_nextest(line),
        };
        if let Some(counts) = counts {
            self.add(counts);
        }
    }

    /// Failures are taken from the account: a line of a test that runs may stand behind what one of its children wrote.
    fn read_libtest<'l>(&mut self, line: &'l str) -> Option<&'l str> {
        if let Some(counts) = libtest_summary(line) {
            self.account = Account::None;
            if counts.contains("; 0 failed;") {
                // It was a test that wrote like a runner.
                self.failures.truncate(self.told);
            }
            self.told = self.failures.len();
            return Some(counts);
        }
        // "failures:" stands above what each said, and again above their names alone.
        self.account = match (self.account, section(line)) {
            _ if line == "failures:" => Account::Begun,
            (Account::None, _) => Account::None,
            (_, Some(name)) => Account::Of(self.failure(name)),
            (Account::Of(index), None) => self.said(index, line),
            (Account::Begun, None) if line.is_empty() || line.contains(' ') => Account::Begun,
            (Account::Begun, None) => {
                self.failure(line);
                Account::Begun
            }
        };
        None
    }

    /// A failure is named where it happens and again, with all that it said, beneath the summary.
    fn read_nextest<'l>(&mut self, line: &'l str) -> Option<&'l str> {
        if let Some(counts) = nextest_summary(line) {
            self.account = Account::Begun;
            return Some(counts);
        }
        self.account = match (self.account, nextest_failure(line)) {
            (Account::None, Some(name)) => {
                self.failure(name);
                Account::None
            }
            (Account::None, None) => Account::None,
            (_, Some(name)) => Account::Of(self.failure(name)),
            (Account::Of(index), None) => self.said(index, line),
            (Account::Begun, None) => Account::Begun,
        };
        None
    }

    fn failure(&mut self, name: &str) -> usize {
        if let Some(index) = self.failures.iter().position(|failure| failure.name == name) {
            return index;
        }
        self.failures.push(Failure { name: name.to_owned(), words: Vec::new() });
        self.failures.len() - 1
    }

    fn said(&mut self, index: usize, line: &str) -> Account {
        let words = &mut self.failures[index].words;
        if words.len() < WORDS_MAX {
            words.push(line.to_owned());
        }
        Account::Of(index)
    }

    /// Notes how a runner ended. One that fails without having counted a failure must not look green.
    pub fn ended(&mut self, runner: &str, status: ExitStatus) {
        if !status.success() && self.failed == self.failed_before {
            self.failed += 1;
            self.failure(&format!("{runner}: {status}, although it reported no failed test"));
        }
        self.failed_before = self.failed;
        self.account = Account::None;
    }

    /// Counts a runner that did not come to its end.
    pub fn broken(&mut self, why: &str) {
        self.failed += 1;
        self.failure(why);
        self.account = Account::None;
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

/// `---- escape::ptrace stdout ----`
fn section(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

/// `FAIL [   0.005s] (1/5) apex-tests::escape ptrace`, and the same with `FAIL + LEAK`, `LEAK-FAIL`, `TIMEOUT`, `ABORT`, `SIGSEGV` and other
/// signals. The place in the run is no part of the name.
fn nextest_failure(line: &str) -> Option<&str> {
    const WORDS: &[&str] = &["FAIL", "LEAK-FAIL", "TIMEOUT", "XFAIL", "ABORT"];
    let (words, rest) = line.split_once(" [")?;
    let is_failure = words.split(" + ").any(|word| WORDS.contains(&word) || word.starts_with("SIG"));
    let (_, name) = rest.split_once("] ")?;
    let name = name.trim_start();
    let name = name.split_once(") ").filter(|_| name.starts_with('(')).map_or(name, |(_, name)| name);
    is_failure.then_some(name)
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

    fn failures(tally: &Tally) -> Vec<(&str, String)> {
        tally.failures.iter().map(|failure| (failure.name.as_str(), failure.words.join("|"))).collect()
    }

    #[test]
    fn libtest_lines_are_added_up() {
        let tally = check(
            Runner::Libtest,
            "test a::b ... ok\nwritten by a childtest a::c ... FAILED\ntest a::d ... FAILED\n\n\
             successes:\n\n---- a::b stdout ----\nfine\n\n\nsuccesses:\n    a::b\n\n\
             failures:\n\n---- a::c stdout ----\nbroken\n\nthread panicked\n\n\nfailures:\n    a::c\n    a::d\n\n\
             test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.00s\n\
             successes:\n\n---- wrote_like_a_runner stdout ----\nfailures:\nword\n\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            5,
            2,
            1,
        );
        assert_eq!(failures(&tally), [("a::c", "broken||thread panicked||".to_owned()), ("a::d", String::new())]);
    }

    #[test]
    fn a_nextest_summary_counts_what_timed_out_as_failed() {
        let tally = check(
            Runner::Nextest,
            "        FAIL [   0.005s] (1/6) apex-tests::escape ptrace\n  stdout ───\n    early\n\
             test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 3 filtered out\n\
             Summary [   0.010s] 6 tests run: 3 passed (1 slow), 1 failed (1 due to being leaky), 1 timed out, 1 exec failed, 0 skipped\n\
             FAIL + LEAK [   0.005s] (1/6) apex-tests::escape ptrace\n  stdout ───\n    late\n\
             TIMEOUT [ 600.000s] (2/6) apex-tests::life hangs",
            3,
            3,
            0,
        );
        let expected =
            [("apex-tests::escape ptrace", "stdout ───|late".to_owned()), ("apex-tests::life hangs", String::new())];
        assert_eq!(failures(&tally), expected);
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

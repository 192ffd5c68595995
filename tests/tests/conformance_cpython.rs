//! CPython's own regression tests under the profile `python`, test by test against the same run outside.
//!
//! A sandbox may refuse things, and some of these tests try them. Each such test stands in [`DIFFERENCES`] with the rule that refuses
//! it. A difference that is not listed fails this test, and so does one that is listed and no longer there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use apex_tests::programs::{Caller, Job};
use apex_tests::skip;

/// The Debian package `libpython3.11-testsuite`, for the system's interpreter.
const PYTHON: &str = "/usr/bin/python3";
const SUITE: &str = "/usr/lib/python3.11/test/test_os.py";

/// Workers of the test runner. They mostly wait, so there are more of them than cores.
const WORKERS: &str = "6";
/// The profile is made for one program; this is as many as there are workers, each with tests of pools and threads.
const FLAGS: [&str; 6] = ["--cpu", "200", "--tasks", "512", "--memory", "2G"];
/// Where `run.py` leaves what it found.
const OUTCOMES: &str = "outcomes.txt";
/// Fewer than this and the runner itself has a problem.
const TESTS_MIN: usize = 8000;

/// What meets the kernel, then what a program is made of.
const MODULES: &[&str] = &[
    "test_os",
    "test_posix",
    "test_subprocess",
    "test_signal",
    "test_threading",
    "test_socket",
    "test_mmap",
    "test_tempfile",
    "test_shutil",
    "test_pathlib",
    "test_posixpath",
    "test_stat",
    "test_fcntl",
    "test_select",
    "test_selectors",
    "test_poll",
    "test_epoll",
    "test_pty",
    "test_openpty",
    "test_resource",
    "test_fork1",
    "test_wait3",
    "test_wait4",
    "test_popen",
    "test_eintr",
    "test_pwd",
    "test_grp",
    "test_time",
    "test_syslog",
    "test_getpass",
    "test_platform",
    "test_locale",
    "test_readline",
    "test_sys",
    "test_gc",
    "test_faulthandler",
    "test_multiprocessing_fork",
    "test_asyncio.test_subprocess",
    "test_asyncio.test_unix_events",
    "test_asyncio.test_sock_lowlevel",
    "test_asyncio.test_streams",
    "test_ssl",
    "test_httpservers",
    "test_hashlib",
    "test_uuid",
    "test_random",
    "test_ctypes",
    "test_import",
    "test_site",
    "test_cmd_line",
    "test_venv",
    "test_io",
    "test_fileio",
    "test_glob",
    "test_zipfile",
    "test_tarfile",
    "test_lzma",
    "test_zlib",
    "test_dbm",
    "test_mailbox",
    "test_json",
    "test_re",
    "test_dict",
    "test_struct",
    "test_array",
    "test_unicode",
    "test_decimal",
    "test_datetime",
    "test_queue",
];

/// Tests that sleep for seconds, or that race a clock and so fail now and then on a busy machine.
const LEFT_OUT: &[&str] = &[
    "test_siginterrupt_off",
    "test_poll2",
    "test_with_pip",
    "test_dump_traceback_later*",
    "test_decompressor_bigmem",
    "test_*_timeout",
    "test_wait_*",
    "test_thread_safety",
    "test_*std*_deadlock",
    "test_check_hostname_idn",
    "test_echo",
    "test_interrupted_write_retry*",
    "test_many_processes",
    "NetworkConnectionBehaviourTest",
    "WithManager*",
    "WithThreads*",
    "*PollEintr*",
];

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Passed,
    Skipped,
    Failed,
    /// It did not run at all.
    Absent,
}

use Ending::{Failed, Passed, Skipped};

/// Tests that end otherwise inside, and why that is right.
struct Difference {
    /// Name of the test; `*` at the end stands for any rest.
    test: &'static str,
    outside: Ending,
    inside: Ending,
    /// Only for this caller; `None` for both.
    caller: Option<Caller>,
    reason: &'static str,
}

const DIFFERENCES: &[Difference] = &[];

impl Difference {
    fn explains(&self, test: &str, endings: [Ending; 2]) -> bool {
        let names_it = match self.test.strip_suffix('*') {
            Some(start) => test.starts_with(start),
            None => test == self.test,
        };
        names_it && endings == [self.outside, self.inside] && self.is_for(Caller::now())
    }

    fn is_for(&self, caller: Caller) -> bool {
        self.caller.is_none_or(|only| only == caller)
    }
}

/// Names with how they ended outside and inside.
type Differing = BTreeMap<String, [Ending; 2]>;

#[test]
fn cpython_passes_its_own_tests() -> Result<()> {
    if !Path::new(SUITE).exists() {
        skip!(format!("{SUITE} is missing; libpython3.11-testsuite brings it"), Ok(()));
    }
    let (tests, mut differing) = run_both(MODULES)?;
    ensure!(tests >= TESTS_MIN, "only {tests} tests ran outside");
    let news = unexplained(&differing);
    if !news.is_empty() {
        // A busy machine can fail a test of timing on one side. What the sandbox does, it does twice.
        let modules = modules_of(&news);
        let (_, again) = run_both(&modules)?;
        let was_repeated = |test: &str| modules.iter().any(|module| is_in(test, module));
        differing
            .retain(|test, endings| !news.contains(test) || !was_repeated(test) || again.get(test) == Some(endings));
    }
    report(&differing)
}

fn report(differing: &Differing) -> Result<()> {
    let mut complaints = Vec::new();
    for test in unexplained(differing) {
        let [outside, inside] = differing[&test];
        complaints.push(format!("{test}: {outside:?} outside, {inside:?} inside, and no reason is listed"));
    }
    for listed in DIFFERENCES.iter().filter(|listed| listed.is_for(Caller::now())) {
        if !differing.iter().any(|(test, endings)| listed.explains(test, *endings)) {
            complaints.push(format!("{}: listed ({}), but it does not differ any more", listed.test, listed.reason));
        }
    }
    if complaints.is_empty() {
        return Ok(());
    }
    bail!("{} complaints:\n{}", complaints.len(), complaints.join("\n"))
}

fn unexplained(differing: &Differing) -> BTreeSet<String> {
    let is_explained = |test: &str, endings| DIFFERENCES.iter().any(|listed| listed.explains(test, endings));
    let explained: Vec<&String> =
        differing.iter().filter(|(test, endings)| is_explained(test, **endings)).map(|(test, _)| test).collect();
    // A module fails with any of its tests: the line of the module is news only when no test accounts for it.
    let is_module_of = |module: &str| explained.iter().any(|test| test.starts_with(&format!("test.{module}.")));
    differing.keys().filter(|test| !explained.contains(test) && !is_module_of(test)).cloned().collect()
}

/// The modules in which these tests stand. A few tests bear the name of a base class in another file and belong to none.
fn modules_of(tests: &BTreeSet<String>) -> Vec<&'static str> {
    MODULES.iter().copied().filter(|module| tests.iter().any(|test| is_in(test, module))).collect()
}

fn is_in(test: &str, module: &str) -> bool {
    test == module
        || test
            .strip_prefix("test.")
            .and_then(|rest| rest.strip_prefix(module))
            .is_some_and(|rest| rest.starts_with('.'))
}

/// How many tests ran outside, and those that ended otherwise inside.
fn run_both(modules: &[&str]) -> Result<(usize, Differing)> {
    let argv = [&[PYTHON, "run.py", OUTCOMES, WORKERS], modules, &["--"], LEFT_OUT].concat();
    let job = Job::new("python", "cpython", &argv)?.flags(FLAGS);
    let logs = [job.outside()?, job.inside()?];
    let mut sides = Vec::new();
    for (dir, log) in [job.dir_outside(), job.dir_inside()].into_iter().zip(&logs) {
        let text =
            fs::read_to_string(dir.join(OUTCOMES)).with_context(|| format!("the runner left no outcomes: {log}"))?;
        sides.push(parse(&text)?);
    }
    // Shown by the test runner only when the test fails, and then it is what one wants to read.
    println!("outside:\n{}\ninside:\n{}", logs[0], logs[1]);
    let [outside, inside] = &sides[..] else { bail!("there are two sides") };
    let ending = |side: &BTreeMap<String, Ending>, test| side.get(test).copied().unwrap_or(Ending::Absent);
    let names: BTreeSet<&String> = outside.keys().chain(inside.keys()).collect();
    let differing = names
        .into_iter()
        .map(|test| (test.clone(), [ending(outside, test), ending(inside, test)]))
        .filter(|(_, [out, ins])| out != ins)
        .collect();
    Ok((outside.len(), differing))
}

fn parse(text: &str) -> Result<BTreeMap<String, Ending>> {
    text.lines()
        .map(|line| match line.split_once(' ') {
            Some(("passed", name)) => Ok((name.to_owned(), Passed)),
            Some(("skipped", name)) => Ok((name.to_owned(), Skipped)),
            Some(("failed", name)) => Ok((name.to_owned(), Failed)),
            _ => bail!("`{line}` is no outcome"),
        })
        .collect()
}

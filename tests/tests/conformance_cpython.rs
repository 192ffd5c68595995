//! CPython's own regression tests under the profile `python`, test by test against the same run outside.
//!
//! A sandbox may refuse things, and some of these tests try them. Each such test stands in [`DIFFERENCES`] with the rule that refuses
//! it. A difference that is not listed fails this test, and so does one that is listed and no longer there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use apex_tests::programs::{Job, has_account};
use apex_tests::skip;

/// The Debian package `libpython3.11-testsuite`, for the system's interpreter.
const PYTHON: &str = "/usr/bin/python3";
const SUITE: &str = "/usr/lib/python3.11/test/test_os.py";

/// Workers of the test runner. They mostly wait, so there are more of them than cores.
const WORKERS: &str = "8";
/// The profile is made for one program; this is as many as there are workers, each with tests of pools and threads.
const FLAGS: [&str; 8] = ["--cpu", "200", "--tasks", "512", "--memory", "2G", "--tmp-size", "1G"];
/// Where `run.py` leaves what it found.
const OUTCOMES: &str = "outcomes.txt";
/// Fewer than this and the runner itself has a problem.
const TESTS_MIN: usize = 4500;
/// For each side.
const PATIENCE: Duration = Duration::from_secs(240);

/// What meets the kernel, and what most programs are made of. The slow ones first, so that the others fill the gaps.
const MODULES: &[&str] = &[
    "test_ssl",
    "test_multiprocessing_fork",
    "test_signal",
    "test_socket",
    "test_asyncio.test_subprocess",
    "test_selectors",
    "test_subprocess",
    "test_zipfile",
    "test_threading",
    "test_tarfile",
    "test_venv",
    "test_os",
    "test_mailbox",
    "test_pathlib",
    "test_posix",
    "test_httpservers",
    "test_time",
    "test_tempfile",
    "test_select",
    "test_mmap",
    "test_shutil",
    "test_fcntl",
    "test_epoll",
    "test_pty",
    "test_resource",
    "test_fork1",
    "test_platform",
    "test_sys",
    "test_faulthandler",
    "test_asyncio.test_unix_events",
    "test_hashlib",
    "test_ctypes",
    "test_site",
    "test_fileio",
    "test_dbm",
];

/// Tests that sleep for seconds, that race a clock and so fail now and then on a busy machine, that ask how many files the caller may
/// open, or that need a short name for a socket, which it is not when the temporary directory lies deep.
const LEFT_OUT: &[&str] = &[
    "test_no_leaking",
    "TestUnixDomain",
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
    "test_alpn_protocols",
    "test_selected_alpn*",
    "test_itimer_virtual",
    "TestPostHandshakeAuth*",
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

use Ending::{Absent, Failed, Passed, Skipped};

/// Tests that end otherwise inside, and why that is right.
struct Difference {
    /// Name of the test; `*` at the end stands for any rest.
    test: &'static str,
    outside: Ending,
    inside: Ending,
    /// Only where the user outside has no account.
    stranger: bool,
    reason: &'static str,
}

const fn refused(test: &'static str, outside: Ending, inside: Ending, reason: &'static str) -> Difference {
    Difference { test, outside, inside, stranger: false, reason }
}

const fn for_stranger(test: &'static str, outside: Ending) -> Difference {
    Difference { test, outside, inside: Passed, stranger: true, reason: ACCOUNT }
}

const TMP: &str = "isolation lets nothing be executed in /tmp";
const ONE_ID: &str = "the sandbox maps one user and one group: the kernel answers EINVAL, not EPERM, about any other";
const FILE_SIZE: &str = "isolation limits the size of a file to 1G (RLIMIT_FSIZE)";
const ACCOUNT: &str = "a user whom the host does not know has an account of its own in the sandbox, unlike outside";
const SET_ID: &str = "no file or directory gets a set-id bit in a sandbox";

const DIFFERENCES: &[Difference] = &[
    refused("test_httpservers", Passed, Failed, TMP),
    refused("test.test_httpservers.CGIHTTPServerTestCase.test_accept", Passed, Absent, TMP),
    refused("test.test_httpservers.CGIHTTPServerTestCase.*", Passed, Failed, TMP),
    refused("test.test_mmap.LargeMmapTests.*", Passed, Skipped, FILE_SIZE),
    refused("test_os", Passed, Failed, ONE_ID),
    refused("test.test_os.ChownFileTests.test_chown_without_permission", Passed, Failed, ONE_ID),
    refused("test.test_os.MakedirTests.test_exist_ok_s_isgid_directory", Passed, Skipped, SET_ID),
    for_stranger("test_pathlib", Failed),
    for_stranger("test.test_pathlib.PathTest.test_group", Skipped),
    for_stranger("test.test_pathlib.PathTest.test_home", Failed),
    for_stranger("test.test_pathlib.PathTest.test_owner", Skipped),
    for_stranger("test.test_pathlib.PosixPathTest.test_expanduser", Failed),
    for_stranger("test.test_pathlib.PosixPathTest.test_group", Skipped),
    for_stranger("test.test_pathlib.PosixPathTest.test_home", Failed),
    for_stranger("test.test_pathlib.PosixPathTest.test_owner", Skipped),
    for_stranger("test_posix", Failed),
    for_stranger("test.test_posix.PosixTester.test_getgrouplist", Failed),
    for_stranger("test.test_posix.PosixTester.test_initgroups", Skipped),
    refused("test_resource", Passed, Failed, FILE_SIZE),
    refused("test.test_resource.ResourceTest.test_fsize_ismax", Passed, Failed, FILE_SIZE),
    refused("test_subprocess", Passed, Failed, TMP),
    refused("test.test_subprocess.POSIXProcessTestCase.test_args_string", Passed, Failed, TMP),
    refused("test.test_subprocess.POSIXProcessTestCase.test_call_string", Passed, Failed, TMP),
    refused("test.test_subprocess.POSIXProcessTestCase.test_group", Passed, Absent, ONE_ID),
    refused("test.test_subprocess.POSIXProcessTestCase.test_user", Passed, Absent, ONE_ID),
    refused("test_venv", Passed, Failed, TMP),
    refused("test.test_venv.BasicTest.test_executable", Passed, Failed, TMP),
    refused("test.test_venv.BasicTest.test_multiprocessing", Passed, Failed, TMP),
    refused("test.test_venv.BasicTest.test_multiprocessing_recursion", Passed, Failed, TMP),
    refused("test.test_venv.BasicTest.test_prefixes", Passed, Failed, TMP),
    refused("test.test_venv.BasicTest.test_special_chars_bash", Passed, Failed, TMP),
    refused("test.test_venv.BasicTest.test_sysconfig", Passed, Absent, TMP),
    refused("test.test_venv.BasicTest.test_zippath_from_non_installed_posix", Passed, Failed, TMP),
    refused("test.test_venv.EnsurePipTest.test_explicit_no_pip", Passed, Failed, TMP),
    refused("test.test_venv.EnsurePipTest.test_no_pip_by_default", Passed, Failed, TMP),
];

impl Difference {
    fn explains(&self, test: &str, endings: [Ending; 2]) -> bool {
        let names_it = match self.test.strip_suffix('*') {
            Some(start) => test.starts_with(start),
            None => test == self.test,
        };
        names_it && endings == [self.outside, self.inside]
    }
}

/// Names with how they ended outside and inside.
type Differing = BTreeMap<String, [Ending; 2]>;

#[test]
fn cpython_passes_its_own_tests() -> Result<()> {
    if !Path::new(SUITE).exists() {
        skip!(format!("{SUITE} is missing; libpython3.11-testsuite brings it"), Ok(()));
    }
    let has_account = has_account()?;
    let listed: Vec<&Difference> = DIFFERENCES.iter().filter(|listed| !(listed.stranger && has_account)).collect();
    let (tests, mut differing) = run_both(MODULES)?;
    ensure!(tests >= TESTS_MIN, "only {tests} tests ran outside");
    let news = unexplained(&differing, &listed);
    if !news.is_empty() {
        // A busy machine can fail a test of timing on one side. What the sandbox does, it does twice.
        let modules = modules_of(&news);
        let (_, again) = run_both(&modules)?;
        let was_repeated = |test: &str| modules.iter().any(|module| is_in(test, module));
        differing
            .retain(|test, endings| !news.contains(test) || !was_repeated(test) || again.get(test) == Some(endings));
    }
    report(&differing, &listed)
}

fn report(differing: &Differing, listed: &[&Difference]) -> Result<()> {
    let mut complaints = Vec::new();
    for test in unexplained(differing, listed) {
        let [outside, inside] = differing[&test];
        complaints.push(format!("{test}: {outside:?} outside, {inside:?} inside, and no reason is listed"));
    }
    for listed in listed {
        if !differing.iter().any(|(test, endings)| listed.explains(test, *endings)) {
            complaints.push(format!("{}: listed ({}), but it does not differ any more", listed.test, listed.reason));
        }
    }
    if complaints.is_empty() {
        return Ok(());
    }
    bail!("{} complaints:\n{}", complaints.len(), complaints.join("\n"))
}

fn unexplained(differing: &Differing, listed: &[&Difference]) -> BTreeSet<String> {
    let is_explained = |test: &str, endings| listed.iter().any(|listed| listed.explains(test, endings));
    differing.iter().filter(|(test, endings)| !is_explained(test, **endings)).map(|(test, _)| test.clone()).collect()
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
    let job = Job::new("python", "cpython", &argv)?.flags(FLAGS).patience(PATIENCE);
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

//! Programs as people run them: one job, run outside and inside a sandbox, and the two results side by side.
//!
//! Input: a directory under `tests/fixtures/` and a command line. Output: what the job left, printed and returned, once as the plain
//! user that the sandbox would make of it and once under `apex-run`. Outside there is no confinement, so a job must be our own.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::lchown;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{AccessFlags, Pid, access, geteuid};

/// The modes, by name.
pub const MODES: [&str; 3] = ["isolation", "development", "hybrid"];

/// Who a sandbox of root is inside, unless it asks for something else.
const ID_FOR_ROOT: u32 = 1000;

/// How long one run of a job may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(120);
/// After the end of a job that was killed, for what still holds its output.
const PATIENCE_AFTER: Duration = Duration::from_secs(10);

/// Outside, the same search path as the one that the modes set inside.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";

/// How a job ended and what it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// As a shell sees it: the code, or 128 and the number of the signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    fn new(output: Output) -> Self {
        let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or_default());
        Outcome {
            code,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit code {}\n--- stdout\n{}--- stderr\n{}", self.code, self.stdout, self.stderr)
    }
}

/// A job with a directory for each of its two runs. Both see theirs under the same path, so that what they print can be compared.
#[derive(Debug)]
pub struct Job {
    scratch: Scratch,
    beside: Vec<PathBuf>,
    profile: &'static str,
    flags: Vec<OsString>,
    argv: Vec<OsString>,
    patience: Duration,
}

impl Job {
    /// A job that starts with the files of `tests/fixtures/FIXTURE` and runs `argv` there under `profile`.
    pub fn new(profile: &'static str, fixture: &str, argv: &[&str]) -> Result<Self> {
        let job = Job {
            scratch: Scratch::new()?,
            beside: Vec::new(),
            profile,
            flags: Vec::new(),
            argv: argv.iter().map(OsString::from).collect(),
            patience: PATIENCE,
        };
        let files = fixtures()?.join(fixture);
        for dir in job.dirs() {
            copy_tree(&files, &dir)?;
        }
        Ok(job)
    }

    /// Adds options of `apex-run`.
    #[must_use]
    pub fn flags<S: AsRef<OsStr>>(mut self, flags: impl IntoIterator<Item = S>) -> Self {
        self.flags.extend(flags.into_iter().map(|flag| flag.as_ref().to_owned()));
        self
    }

    /// How long each of the two runs may take; one that takes longer is killed, and the test fails.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// A directory beside the job, filled by `fill` and granted for reading under its own name. It belongs to whoever
    /// runs the job: outside to the plain user, inside to the caller.
    pub fn beside(mut self, name: &str, fill: impl Fn(&Path) -> Result<()>) -> Result<Self> {
        let dir = self.scratch.path.join(name);
        fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        fill(&dir)?;
        self.flags.extend(["--ro".into(), dir.clone().into_os_string()]);
        self.beside.push(dir);
        Ok(self)
    }

    /// Puts more into both directories before the job runs.
    pub fn seed(self, fill: impl Fn(&Path) -> Result<()>) -> Result<Self> {
        for dir in self.dirs() {
            fill(&dir)?;
        }
        Ok(self)
    }

    /// Where the run outside left its files.
    pub fn dir_outside(&self) -> PathBuf {
        self.scratch.path.join("job")
    }

    /// Where the run inside left its files, as seen from outside.
    pub fn dir_inside(&self) -> PathBuf {
        self.scratch.path.join("inside")
    }

    fn dirs(&self) -> [PathBuf; 2] {
        [self.dir_outside(), self.dir_inside()]
    }

    /// Runs the job without confinement, as the user that it would be inside.
    pub fn outside(&self) -> Result<Outcome> {
        let dir = self.dir_outside();
        let mut command = Command::new(&self.argv[0]);
        command.args(&self.argv[1..]).env_clear().env("PATH", PATH).env("LANG", "C.UTF-8").env("HOME", &dir);
        command.current_dir(&dir).stdin(Stdio::null());
        if geteuid().is_root() {
            for tree in self.beside.iter().chain([&dir]) {
                give_tree(tree, ID_FOR_ROOT)?;
            }
            // The standard library also drops the supplementary groups.
            command.uid(ID_FOR_ROOT).gid(ID_FOR_ROOT);
        }
        finish(&mut command, self.patience).with_context(|| format!("running {:?} outside", self.argv[0]))
    }

    /// Runs the job under `apex-run`.
    pub fn inside(&self) -> Result<Outcome> {
        let dir = self.dir_outside();
        if geteuid().is_root() {
            for tree in &self.beside {
                give_tree(tree, 0)?;
            }
        }
        let mut grant = self.dir_inside().into_os_string();
        grant.push(":");
        grant.push(&dir);
        let mut home = OsString::from("HOME=");
        home.push(&dir);
        let mut command = Command::new(apex_run()?);
        command.args(["--profile", self.profile, "--env", "LANG=C.UTF-8"]);
        command.arg("--rw").arg(grant).arg("--workdir").arg(&dir).arg("--env").arg(home);
        if !geteuid().is_root() {
            // Limits need a delegated cgroup, which a plain user seldom has; what they refuse is tested elsewhere.
            command.args(["--optional", "cgroup"]);
        }
        command.args(&self.flags).arg("--").args(&self.argv);
        finish(command.stdin(Stdio::null()), self.patience).context("running apex-run")
    }

    /// Runs the job on both sides, requires that it does the same, and returns what that was.
    pub fn compare(&self) -> Result<Outcome> {
        let outside = self.outside()?;
        let inside = self.inside()?;
        ensure!(outside == inside, "the job differs\n=== outside: {outside}\n=== inside: {inside}");
        Ok(inside)
    }

    /// Runs the job on both sides and requires that it ends well, with `done` as its last line, and alike.
    pub fn succeeds(&self) -> Result<Outcome> {
        let outcome = self.compare()?;
        ensure!(outcome.code == 0, "the job fails on both sides: {outcome}");
        ensure!(outcome.stdout.ends_with("done\n"), "the job stopped half way: {outcome}");
        Ok(outcome)
    }
}

/// Runs a command to its end, which is brought about after `patience`.
fn finish(command: &mut Command, patience: Duration) -> Result<Outcome> {
    // A group of its own: whatever it started ends with it.
    let child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn().context("cannot start")?;
    let group = Pid::from_raw(i32::try_from(child.id())?);
    let (sender, receiver) = mpsc::channel();
    // When nobody waits any more, the test has failed already.
    std::thread::spawn(move || sender.send(child.wait_with_output()).ok());
    if let Ok(output) = receiver.recv_timeout(patience) {
        return Ok(Outcome::new(output?));
    }
    // It was there a moment ago; had it ended since, its output would have come.
    killpg(group, Signal::SIGKILL).ok();
    match receiver.recv_timeout(PATIENCE_AFTER) {
        Ok(output) => bail!("hung for {patience:?} and was killed: {}", Outcome::new(output?)),
        Err(_) => bail!("hung for {patience:?} and was killed, and something outlived it that still holds its output"),
    }
}

/// Whether the user that runs jobs outside has an account on this host. Inside, everybody has one.
pub fn has_account() -> Result<bool> {
    let uid = if geteuid().is_root() { ID_FOR_ROOT } else { geteuid().as_raw() };
    let accounts = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    Ok(accounts.lines().any(|line| line.split(':').nth(2) == Some(uid.to_string().as_str())))
}

/// The first of these programs that is missing here, as a reason to skip.
pub fn missing_program(names: &[&str]) -> Option<String> {
    let found = |name: &&&str| PATH.split(':').any(|dir| Path::new(dir).join(name).exists());
    let name = names.iter().find(|name| !found(name))?;
    Some(format!("the program {name} is not installed"))
}

/// A package of the npm registry as `npm pack` brings it, kept in the cache. `sha256` is of the tarball: a damaged or exchanged file
/// in the cache is an error, and never unpacked.
pub fn npm_tarball(package: &str, version: &str, sha256: &str) -> Result<PathBuf> {
    let name = format!("{package}-{version}.tgz");
    let kept = cache_dirs().into_iter().map(|dir| dir.join(&name)).find(|path| path.exists());
    let tarball = match kept {
        Some(path) => path,
        None => download(&name, |dir| {
            run(Command::new("npm").args(["pack", "--silent", &format!("{package}@{version}")]).current_dir(dir))
        })?,
    };
    let sum = run(Command::new("sha256sum").arg(&tarball))?;
    ensure!(
        sum.starts_with(sha256),
        "{} is not what {package} {version} was when this test was written; remove it to fetch it again",
        tarball.display()
    );
    Ok(tarball)
}

/// Fetches into a directory of its own and moves the result into the cache, so that a half-written file never stands there.
pub(crate) fn download(name: &str, fetch: impl Fn(&Path) -> Result<String>) -> Result<PathBuf> {
    let cache = writable_cache()?;
    let partial = cache.join(format!(".{name}.{}", std::process::id()));
    fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    let path = cache.join(name);
    let fetched = fetch(&partial).and_then(|_| fs::rename(partial.join(name), &path).context("nothing came"));
    fs::remove_dir_all(&partial).ok();
    fetched.with_context(|| format!("cannot fetch {name}"))?;
    Ok(path)
}

/// Where downloads are looked for, the preferred place first. The rule is that of `xtask/src/cache.rs`.
pub(crate) fn cache_dirs() -> Vec<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = variable("APEX_CACHE") {
        return vec![dir];
    }
    let own = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    [PathBuf::from("/var/cache/apex-tests")].into_iter().chain(own.map(|dir| dir.join("apex-tests"))).collect()
}

pub(crate) fn writable_cache() -> Result<PathBuf> {
    let dirs = cache_dirs();
    let is_writable = |dir: &&PathBuf| fs::create_dir_all(dir).is_ok() && access(*dir, AccessFlags::W_OK).is_ok();
    match dirs.iter().find(is_writable) {
        Some(dir) => Ok(dir.clone()),
        None => {
            bail!("none of {dirs:?} can be written; set APEX_CACHE to a directory that can")
        }
    }
}

/// Runs a tool outside that must succeed, and returns what it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let outcome =
        Outcome::new(command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?);
    ensure!(outcome.code == 0, "{command:?} fails: {outcome}");
    Ok(outcome.stdout)
}

/// Makes the static program `job` of `job.c` in `dir`.
pub fn compile_static(dir: &Path) -> Result<()> {
    let flags = ["-static", "-O1", "-pthread", "-Wall", "-Werror", "-o"];
    run(Command::new("gcc").args(flags).arg(dir.join("job")).arg(dir.join("job.c"))).map(drop)
}

/// The `apex-run` of the same build as this test.
fn apex_run() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("APEX_RUN") {
        return Ok(PathBuf::from(path));
    }
    let test = std::env::current_exe().context("cannot tell where this test stands")?;
    let path = test.ancestors().nth(2).context("this test stands at the root")?.join("apex-run");
    ensure!(path.exists(), "{} is missing; build it with `cargo build -p apex-run`", path.display());
    Ok(path)
}

/// A directory that goes away with its owner.
#[derive(Debug)]
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("apex-conformance-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Scratch { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// The directory `tests/fixtures`, where the runner says that this package stands: not where it was built, since a plain user gets a copy that
/// he may read.
pub fn fixtures() -> Result<PathBuf> {
    let package =
        std::env::var_os("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR is not set; start the tests with cargo")?;
    Ok(Path::new(&package).join("fixtures"))
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let entry = entry?;
        let dest = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &dest)?;
        } else {
            fs::copy(entry.path(), &dest).with_context(|| format!("cannot copy to {}", dest.display()))?;
        }
    }
    Ok(())
}

fn give_tree(path: &Path, id: u32) -> Result<()> {
    lchown(path, Some(id), Some(id)).with_context(|| format!("cannot give {} to {id}", path.display()))?;
    if !path.is_symlink() && path.is_dir() {
        for entry in fs::read_dir(path)? {
            give_tree(&entry?.path(), id)?;
        }
    }
    Ok(())
}

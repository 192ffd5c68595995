//! The same test programs again, as a user who owns nothing and has no privileges.
//!
//! The user needs no passwd entry, no cargo and no access to the repository: programs and files are copied to a folder that
//! everybody may read. Tests find them through `APEX_RUN`, `APEX_REPO` and the working directory.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, lchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::LIMIT;
use super::skips::Class;
use super::tally::{Runner, Tally};
use crate::build::{self, TestBinary};
use crate::{cache, shell, tree};

/// Packages whose tests say something about privileges. The others behave alike for everybody.
const PACKAGES: &[&str] = &["apex-core", "apex-sys", "apex-jail", "apex-tests"];
/// The first id that Debian gives to people; when somebody here has it, a high one that nobody has.
const UID: u32 = 1000;
const UID_OTHERWISE: std::ops::Range<u32> = 59_000..60_000;
/// The one program beside the tests that they start.
const EXAMPLE: &str = "traced";
/// root's PATH may lead into its home, where others may not look.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A folder outside the repository for everything that a run of the tests writes. Removed at the end.
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes it, readable for everybody.
    pub fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("xtask-test-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let scratch = Scratch { path };
        fs::set_permissions(&scratch.path, fs::Permissions::from_mode(0o755))?;
        Ok(scratch)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A folder in it, made when missing.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.path.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("xtask: cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Runs the test programs as the unprivileged user.
pub fn run(apex_run: &Path, binaries: &[TestBinary], scratch: &Scratch) -> Result<Tally> {
    let uid = free_uid()?;
    super::heading(&format!("the tests of {}, as uid {uid}", PACKAGES.join(", ")));
    let stage = Stage::new(apex_run, scratch, uid)?;
    let mut tally = Tally::new(Class::User);
    for binary in binaries.iter().filter(|binary| PACKAGES.contains(&binary.package.as_str())) {
        println!("\n--- {} {}", binary.package, binary.target);
        let mut command = stage.command(binary)?;
        let status = shell::stream(&mut command, LIMIT, |line| {
            println!("{line}");
            tally.read(Runner::Libtest, line);
        });
        match status {
            Ok(status) => tally.ended(&format!("{} {}", binary.package, binary.target), status),
            // One that hangs is a failure of its own; the others still run.
            Err(error) => tally.broken(&format!("{error:#}")),
        }
    }
    Ok(tally)
}

fn free_uid() -> Result<u32> {
    let passwd = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    let is_taken = |uid: u32| passwd.lines().any(|line| line.split(':').nth(2) == Some(uid.to_string().as_str()));
    std::iter::once(UID)
        .chain(UID_OTHERWISE)
        .find(|uid| !is_taken(*uid))
        .context("every user id that was tried is taken")
}

/// The copies that the user works with.
struct Stage {
    uid: u32,
    repo: PathBuf,
    bin: PathBuf,
    home: PathBuf,
    tmp: PathBuf,
    apex_run: PathBuf,
}

impl Stage {
    fn new(apex_run: &Path, scratch: &Scratch, uid: u32) -> Result<Self> {
        let (repo, bin) = (scratch.dir("repo")?, scratch.dir("bin")?);
        tree::copy_sources(&shell::root(), &repo)?;
        give(&repo, uid)?;
        let own = |name| -> Result<PathBuf> {
            let dir = scratch.dir(name)?;
            chown(&dir, Some(uid), Some(uid))?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
            Ok(dir)
        };
        let (home, tmp) = (own("home")?, own("tmp-user")?);
        let staged = bin.join("apex-run");
        fs::copy(apex_run, &staged).with_context(|| format!("cannot copy {}", apex_run.display()))?;
        for program in build::beside(apex_run) {
            let name = program.file_name().context("a program has no name")?;
            fs::copy(&program, bin.join(name)).with_context(|| format!("cannot copy {}", program.display()))?;
        }
        Ok(Stage { uid, repo, bin, home, tmp, apex_run: staged })
    }

    fn command(&self, binary: &TestBinary) -> Result<Command> {
        let name = binary.file.file_name().context("a test program has no name")?;
        let file = self.bin.join(name);
        fs::copy(&binary.file, &file).with_context(|| format!("cannot copy {}", binary.file.display()))?;
        self.stage_example(&binary.file)?;
        let root = shell::root();
        let dir = self.repo.join(binary.dir.strip_prefix(&root).context("a package lies outside the repository")?);
        // What the caller ignores (a shell in the background ignores SIGINT) the tests and their sandboxes would ignore too.
        let mut command = Command::new("env");
        command.arg("--default-signal").arg(file);
        command.arg("--show-output").env_clear().current_dir(&dir);
        command.env("PATH", PATH).env("HOME", &self.home).env("TMPDIR", &self.tmp).env("LANG", "C.UTF-8");
        command.env("CARGO_MANIFEST_DIR", &dir).env("APEX_REPO", &self.repo).env("APEX_RUN", &self.apex_run);
        command.env("RUST_BACKTRACE", "1");
        if let Some(cache) = std::env::var_os(cache::VARIABLE) {
            command.env(cache::VARIABLE, cache);
        }
        // Setting the uid as root also drops every supplementary group.
        command.gid(self.uid).uid(self.uid);
        Ok(command)
    }

    /// Where the tests look for it: `examples/` beside the folder that they lie in.
    fn stage_example(&self, test: &Path) -> Result<()> {
        let beside = |file: &Path| file.parent().and_then(Path::parent).map(|dir| dir.join("examples").join(EXAMPLE));
        let (from, to) = (beside(test), beside(&self.bin.join(EXAMPLE)));
        let (Some(from), Some(to)) = (from.filter(|from| from.exists()), to.filter(|to| !to.exists())) else {
            return Ok(());
        };
        fs::create_dir_all(to.parent().context("it lies in a folder")?)?;
        fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        Ok(())
    }
}

/// Makes everything beneath `path` the user's: property tests write the cases that failed beside their source.
fn give(path: &Path, uid: u32) -> Result<()> {
    lchown_tree(path, uid).with_context(|| format!("cannot give {} to uid {uid}", path.display()))
}

fn lchown_tree(path: &Path, uid: u32) -> std::io::Result<()> {
    lchown(path, Some(uid), Some(uid))?;
    if path.symlink_metadata()?.is_dir() {
        for entry in fs::read_dir(path)? {
            lchown_tree(&entry?.path(), uid)?;
        }
    }
    Ok(())
}

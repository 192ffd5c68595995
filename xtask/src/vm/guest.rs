//! The guest's side: root's pass, then the user's, each in a login session of its own, and a line when all is done.
//!
//! Runs inside the virtual machine only, started by its unit. Output: the lines of the tests and those of [`Said`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::payload::PACKAGE;
use super::suite::{self, Manifest, Program, Said};
use super::{VARIABLE, recipe};
use crate::leaks::{self, Belongings};
use crate::shell;
use crate::test::skips::Class;
use crate::test::user::Scratch;

/// One test program.
const PROGRAM_LIMIT: Duration = Duration::from_secs(6 * 60);
/// All of them, for one class of user.
const PASS_LIMIT: Duration = Duration::from_secs(15 * 60);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Everything, as root; then the machine is off, by the system call: a test may have left an init that serves nobody any more.
pub fn run() -> Result<()> {
    ensure!(Path::new(recipe::PAYLOAD).join("manifest.json").exists(), "this runs inside the virtual machine only");
    if let Err(error) = passes() {
        println!("xtask: {error:#}");
    }
    // What is still in the line's buffer would be lost.
    nix::sys::termios::tcdrain(std::io::stdout()).context("cannot wait for the serial line")?;
    nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_POWER_OFF).context("cannot power off")?;
    Ok(())
}

fn passes() -> Result<()> {
    shell::run(Command::new("mkswap").arg("--quiet").arg(recipe::SWAP_DEVICE))?;
    shell::run(Command::new("swapon").arg(recipe::SWAP_DEVICE))?;
    for class in suite::CLASSES {
        let user = if class == Class::VmRoot { "root" } else { recipe::USER };
        // A login shell, so that PAM opens a session as it does for everybody who logs in: the pass is in the session's scope, which
        // belongs to root, and a user manager is there.
        let mut login = Command::new("runuser");
        login.args(["--login", user, "--command"]);
        login.arg(format!("exec {}/bin/xtask vm-pass {}", recipe::PAYLOAD, suite::word(class)));
        let status = shell::stream(&mut login, PASS_LIMIT, |line| println!("{line}"))?;
        ensure!(status.success(), "{}: {status}", shell::line(&login));
    }
    println!("{}", Said::Done.line());
    Ok(())
}

/// One class's pass, inside its session.
pub fn pass(word: &str) -> Result<()> {
    let class = suite::class_of(word).with_context(|| format!("no such pass: {word}"))?;
    let payload = Path::new(recipe::PAYLOAD);
    let text = fs::read(payload.join("manifest.json")).context("cannot read the manifest")?;
    let manifest: Manifest = serde_json::from_slice(&text).context("the manifest is malformed")?;

    nix::sys::prctl::set_child_subreaper(true).context("cannot adopt orphaned processes")?;
    let scratch = Scratch::new()?;
    let tmp = scratch.dir("tmp-pass")?;
    let before = Belongings::look(scratch.path())?;
    for program in manifest.programs.iter().filter(|program| program.passes.contains(&class)) {
        println!("{}", Said::Begin(class, format!("{} {}", program.package, program.target)).line());
        let mut command = test(payload, program, manifest.filter.as_deref(), &tmp);
        println!("{}", Said::End(play(&mut command)).line());
    }
    if manifest.demo {
        println!("{}", Said::Begin(class, "xtask demo".to_owned()).line());
        println!("{}", Said::End(demo(payload, &tmp)).line());
    }
    for thing in leaks::settle(&before, scratch.path())? {
        println!("{}", Said::Left(thing).line());
    }
    Ok(())
}

/// Runs it and returns its code; what cannot be run or hangs has 1, with its reason printed.
fn play(command: &mut Command) -> i32 {
    match shell::stream(command, PROGRAM_LIMIT, |line| println!("{line}")) {
        Ok(status) => status.code().unwrap_or(1),
        Err(error) => {
            println!("{error:#}");
            1
        }
    }
}

fn test(payload: &Path, program: &Program, filter: Option<&str>, tmp: &Path) -> Command {
    let dir = payload.join(&program.dir);
    let mut command = Command::new("env");
    command.arg("--default-signal").arg(payload.join(&program.file)).arg("--show-output").args(filter);
    surround(&mut command, payload, tmp);
    command.current_dir(&dir).env("CARGO_MANIFEST_DIR", &dir);
    command
}

/// The main job, counted as one test.
fn demo(payload: &Path, tmp: &Path) -> i32 {
    let mut command = Command::new(payload.join("bin/xtask"));
    surround(command.arg("demo"), payload, tmp);
    let code = play(&mut command);
    let (verdict, result, passed) = if code == 0 { ("ok", "ok", 1) } else { ("FAILED", "FAILED", 0) };
    println!("test demo::the_main_job ... {verdict}");
    println!("test result: {result}. {passed} passed; {} failed; 0 ignored; 0 measured; 0 filtered out", 1 - passed);
    code
}

/// The variables by which tests find their things. The session's own (`XDG_RUNTIME_DIR`, `HOME`) stay.
fn surround(command: &mut Command, payload: &Path, tmp: &Path) {
    command.env("PATH", PATH).env("LANG", "C.UTF-8").env("TMPDIR", tmp).env("RUST_BACKTRACE", "1");
    command.env("APEX_DEB", payload.join(PACKAGE));
    command.env("APEX_RUN", payload.join("bin/apex-run")).env("APEX_REPO", repo(payload)).env(VARIABLE, "1");
}

fn repo(payload: &Path) -> PathBuf {
    payload.join("repo")
}

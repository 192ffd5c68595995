//! Everyday tools do under their profiles what they do without: git, tar, xz, sqlite3, openssl, a shell, a static program.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use apex_tests::programs::{Job, compile_static, missing_program, run};
use apex_tests::skip;

const SCRIPT: [&str; 2] = ["bash", "job.sh"];

#[test]
fn git_clones_commits_and_repacks() -> Result<()> {
    if let Some(reason) = missing_program(&["git"]) {
        skip!(reason, Ok(()));
    }
    Job::new("build", "git", &SCRIPT)?.succeeds().map(drop)
}

/// git refuses repositories of other users: the owner must come through as well.
#[test]
fn git_clones_from_a_directory_that_is_granted_for_reading() -> Result<()> {
    if let Some(reason) = missing_program(&["git"]) {
        skip!(reason, Ok(()));
    }
    let job = Job::new("build", "git", &["bash", "granted.sh"])?.beside("origin", make_origin)?;
    job.succeeds().map(drop)
}

fn make_origin(dir: &Path) -> Result<()> {
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=A", "-c", "user.email=a@example.org"]).args(args).current_dir(dir);
        run(command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null"))
    };
    git(&["init", "--quiet", "--initial-branch=main"])?;
    fs::write(dir.join("file"), "content\n")?;
    git(&["add", "."])?;
    git(&["commit", "--quiet", "-m", "one"])?;
    Ok(())
}

#[test]
fn tar_and_xz_keep_modes_links_and_dates() -> Result<()> {
    if let Some(reason) = missing_program(&["tar", "xz"]) {
        skip!(reason, Ok(()));
    }
    Job::new("shell", "tar", &SCRIPT)?.succeeds().map(drop)
}

#[test]
fn sqlite_keeps_a_database_whole() -> Result<()> {
    if let Some(reason) = missing_program(&["sqlite3"]) {
        skip!(reason, Ok(()));
    }
    Job::new("shell", "sqlite", &SCRIPT)?.succeeds().map(drop)
}

/// `openssl req` stopped where its configuration was not shown.
#[test]
fn openssl_makes_a_certificate() -> Result<()> {
    if let Some(reason) = missing_program(&["openssl"]) {
        skip!(reason, Ok(()));
    }
    for profile in ["shell", "build"] {
        Job::new(profile, "openssl", &SCRIPT)?.succeeds()?;
    }
    Ok(())
}

#[test]
fn shell_controls_jobs_and_traps_signals() -> Result<()> {
    Job::new("shell", "shell", &SCRIPT)?.succeeds().map(drop)
}

#[test]
fn static_program_needs_no_library() -> Result<()> {
    Job::new("static", "static", &["./job"])?.seed(compile_static)?.succeeds().map(drop)
}

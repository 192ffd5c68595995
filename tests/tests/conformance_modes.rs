//! One body under each mode: what an honest program sees does not depend on the dial.

use anyhow::{Context, Result, ensure};
use apex_tests::programs::{Job, MODES, compile_static};

#[test]
fn honest_job_is_the_same_in_each_mode() -> Result<()> {
    for mode in MODES {
        let outcome = Job::new("shell", "modes", &["sh", "job.sh"])?
            .flags(["--mode", mode])
            .compare()
            .with_context(|| format!("in mode {mode}"))?;
        ensure!(outcome.code == 128 + 15, "the job ends itself by SIGTERM, in mode {mode}: {outcome}");
        ensure!(outcome.stdout.contains("system files are read-only"), "in mode {mode}: {outcome}");
    }
    Ok(())
}

#[test]
fn static_program_is_the_same_in_each_mode() -> Result<()> {
    for mode in MODES {
        let job = Job::new("static", "static", &["./job"])?.flags(["--mode", mode]).seed(compile_static)?;
        job.succeeds().with_context(|| format!("in mode {mode}"))?;
    }
    Ok(())
}

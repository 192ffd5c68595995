//! pip installs a local wheel into a virtual environment under the profile `python`, without a network.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use apex_tests::programs::{Job, run};
use apex_tests::skip;

/// What Debian ships apart from the interpreter; `python3-venv` brings it.
const ENSUREPIP: &str = "/usr/lib/python3.11/ensurepip";

#[test]
fn pip_installs_a_local_wheel() -> Result<()> {
    if !Path::new(ENSUREPIP).exists() {
        skip!(format!("{ENSUREPIP} is missing; python3-venv brings it"), Ok(()));
    }
    let job = Job::new("python", "pip", &["sh", "job.sh"])?.seed(|dir| {
        let wheels = dir.join("wheels");
        fs::create_dir(&wheels)?;
        run(Command::new("/usr/bin/python3").arg(dir.join("wheel.py")).arg(wheels))?;
        Ok(())
    })?;
    job.succeeds().map(drop)
}

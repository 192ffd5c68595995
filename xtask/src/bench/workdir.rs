//! The folder with the payloads of a benchmark; gone when it ends.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell;

/// Holds the static programs `true`, `pause`, `ops`, `flood` and `peak`, and a small `file`.
pub struct Workdir {
    path: PathBuf,
}

impl Workdir {
    /// Makes it and compiles the programs.
    pub fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("xtask-bench-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let work = Workdir { path };
        fs::set_permissions(&work.path, fs::Permissions::from_mode(0o755))?;
        fs::create_dir(work.payload())?;
        fs::write(work.payload().join("file"), "some bytes to read\n")?;
        for program in ["true", "pause", "ops", "flood", "peak"] {
            let source = shell::root().join("xtask/bench").join(format!("{program}.c"));
            let mut gcc = Command::new("gcc");
            shell::run(gcc.args(["-O2", "-static", "-o"]).arg(work.program(program)).arg(source))?;
        }
        Ok(work)
    }

    /// The folder for what is not shown to a payload.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that every contender shows to the payload.
    pub fn payload(&self) -> PathBuf {
        self.path.join("payload")
    }

    /// One of the programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.payload().join(name)
    }
}

impl Drop for Workdir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("xtask: cannot remove {}: {error}", self.path.display());
        }
    }
}

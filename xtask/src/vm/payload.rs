//! The second disk: test programs, apex-run, this program for the guest's side, and the sources that tests read.
//!
//! Symbols for a debugger are left out: they are nine tenths of a test program, and emulation reads slowly.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::suite::{self, Manifest, Program};
use crate::build::{self, TestBinary};
use crate::{dist, shell, tree};

/// Beyond what the files take.
const SPARE_BYTES: u64 = 128 << 20;
/// A file or folder takes at least one block and an inode.
const ENTRY_BYTES: u64 = 8 << 10;
const SWAP_BYTES: u64 = 256 << 20;

/// The Debian package, below the payload.
pub const PACKAGE: &str = "apex.deb";

/// What one run writes on this side; removed with it.
pub struct Payload {
    dir: PathBuf,
}

impl Payload {
    /// Makes the disks in a folder of their own below `dir`.
    pub fn make(dir: &Path, apex_run: &Path, binaries: &[TestBinary], filter: Option<&str>) -> Result<Payload> {
        let payload = Payload { dir: dir.join(format!("run-{}", std::process::id())) };
        let stage = payload.dir.join("stage");
        fs::create_dir_all(&stage).with_context(|| format!("cannot make {}", stage.display()))?;
        fill(&stage, apex_run, binaries, filter)?;
        let mib = (size(&stage)? + SPARE_BYTES).div_ceil(1 << 20);
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-F", "-O", "^has_journal", "-L", "apex-payload", "-d"]).arg(&stage);
        shell::run(mkfs.arg(payload.disk()).arg(format!("{mib}M")))?;
        fs::remove_dir_all(&stage).with_context(|| format!("cannot remove {}", stage.display()))?;
        let swap = fs::File::create(payload.swap()).context("cannot make the disk for swap")?;
        swap.set_len(SWAP_BYTES).context("cannot make the disk for swap")?;
        Ok(payload)
    }

    /// A folder for what is thrown away.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The disk with the programs.
    pub fn disk(&self) -> PathBuf {
        self.dir.join("payload.ext4")
    }

    /// An empty disk, for swap.
    pub fn swap(&self) -> PathBuf {
        self.dir.join("swap")
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("xtask: cannot remove {}: {error}", self.dir.display());
        }
    }
}

fn fill(stage: &Path, apex_run: &Path, binaries: &[TestBinary], filter: Option<&str>) -> Result<()> {
    let (bin, repo) = (stage.join("bin"), stage.join("repo"));
    fs::create_dir(&bin)?;
    fs::create_dir(&repo)?;
    tree::copy_sources(&shell::root(), &repo)?;
    copy(apex_run, &bin.join("apex-run"))?;
    for program in build::beside(apex_run) {
        copy(&program, &bin.join(program.file_name().context("a program has no name")?))?;
    }
    // An apex-run that was given has not always the others beside it; the test of the package then says that it has none.
    if build::beside(apex_run).len() == 3 {
        let package = dist::package(apex_run, stage, dist::Pack::Quick)?;
        fs::rename(package, stage.join(PACKAGE)).context("cannot put the package in place")?;
    }
    strip(&std::env::current_exe().context("/proc is not mounted")?, &bin.join("xtask"))?;
    let chosen: Vec<&TestBinary> = binaries.iter().filter(|binary| !suite::passes(binary).is_empty()).collect();
    let programs = chosen.iter().map(|binary| program(binary)).collect::<Result<Vec<_>>>()?;
    let manifest = Manifest::new(programs, filter);
    for program in &manifest.programs {
        let binary = chosen.iter().find(|binary| binary.target == program.target && binary.package == program.package);
        strip(&binary.context("a program of the manifest was not built")?.file, &stage.join(&program.file))?;
    }
    let text = serde_json::to_vec_pretty(&manifest).context("the manifest cannot be written")?;
    fs::write(stage.join("manifest.json"), text).context("cannot write the manifest")
}

fn program(binary: &TestBinary) -> Result<Program> {
    let dir = binary.dir.strip_prefix(shell::root()).context("a package lies outside the repository")?;
    Ok(Program {
        package: binary.package.clone(),
        target: binary.target.clone(),
        passes: suite::passes(binary).to_vec(),
        file: format!("bin/{}.{}", binary.package, binary.target),
        dir: format!("repo/{}", dir.display()),
    })
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("cannot copy {}", from.display()))
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    shell::run(Command::new("strip").arg("--strip-debug").arg("-o").args([to, from]))
}

fn size(dir: &Path) -> Result<u64> {
    let mut bytes = ENTRY_BYTES;
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        let is_dir = entry.file_type()?.is_dir();
        bytes += if is_dir { size(&entry.path())? } else { ENTRY_BYTES + entry.metadata()?.len() };
    }
    Ok(bytes)
}

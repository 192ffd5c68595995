//! The Debian package: programs, units, pages, completions and guides in one file.
//!
//! Input: the release programs and what lies in `systemd` and `docs`. Output: `target/dist/apex_VERSION_ARCH.deb`, the same bytes for the same sources and
//! programs: times are those of the last commit, owners are root, names are in order. Must not install anything, and needs no root.

mod stage;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{build, setup, shell};

/// What the package is called, and what its programs have in common.
const NAME: &str = "apex";

/// `cargo xtask dist`.
pub fn run() -> Result<()> {
    setup::ensure(setup::Need::Demo)?;
    let apex_run = build::apex_run()?;
    build::daemon()?;
    let dir = build::target_dir()?.join("dist");
    let file = package(&apex_run, &dir, Pack::Small)?;
    println!("{}", file.display());
    Ok(())
}

/// How a package is packed.
#[derive(Clone, Copy)]
pub enum Pack {
    /// For people, who fetch it.
    Small,
    /// For the virtual machine, whose processor is emulated.
    Quick,
}

/// Makes the package of the programs that lie beside `apex_run`, in `dir`.
pub fn package(apex_run: &Path, dir: &Path, how: Pack) -> Result<PathBuf> {
    let about = About::look(apex_run)?;
    let tree = dir.join(format!("stage-{}", std::process::id()));
    std::fs::create_dir_all(&tree).with_context(|| format!("cannot make {}", tree.display()))?;
    let file = dir.join(format!("{NAME}_{}_{}.deb", about.version, about.arch));
    let made = stage::fill(&tree, apex_run, &about).and_then(|()| pack(&tree, &file, &about, how));
    // Also when it failed: a part of a package is of no use.
    std::fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))?;
    made.map(|()| file)
}

fn pack(tree: &Path, file: &Path, about: &About, how: Pack) -> Result<()> {
    let compression = match how {
        Pack::Small => "-Zxz",
        Pack::Quick => "-Znone",
    };
    let mut command = Command::new("dpkg-deb");
    command.args(["--root-owner-group", compression, "--build"]).arg(tree).arg(file);
    // How many threads compress shows in what they write.
    command.env("SOURCE_DATE_EPOCH", about.epoch.to_string()).env("DPKG_DEB_THREADS_MAX", "1");
    shell::run(command.stdout(std::process::Stdio::null()))
}

/// What the package says about itself.
pub struct About {
    version: String,
    arch: &'static str,
    maintainer: String,
    /// Of the last commit, in seconds; `SOURCE_DATE_EPOCH` gives another.
    epoch: u64,
}

impl About {
    fn look(apex_run: &Path) -> Result<About> {
        let output = Command::new(apex_run).arg("--version").output();
        let output = output.with_context(|| format!("cannot run {}", apex_run.display()))?;
        let words = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = words.split_whitespace().nth(1).context("apex-run --version names no version")?.to_owned();
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => bail!("no name of Debian's is known for the architecture {other}"),
        };
        let variable = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
        // The variables of Debian's own tools.
        let (name, mail) = (variable("DEBFULLNAME", "Apex developers"), variable("DEBEMAIL", "root@localhost"));
        Ok(About { version, arch, maintainer: format!("{name} <{mail}>"), epoch: epoch()? })
    }
}

fn epoch() -> Result<u64> {
    if let Ok(given) = std::env::var("SOURCE_DATE_EPOCH") {
        return given.parse().with_context(|| format!("SOURCE_DATE_EPOCH is {given:?}, which is no number"));
    }
    let output = Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(shell::root()).output();
    let text = String::from_utf8(output.context("cannot run git")?.stdout).context("git wrote no text")?;
    text.trim().parse().context(
        "git knows no commit here, whose time the files of the package would bear; set SOURCE_DATE_EPOCH (seconds since 1970)",
    )
}

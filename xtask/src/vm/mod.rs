//! A real Debian host in software emulation, for what the machine at hand refuses: cgroup v2 with every controller, a systemd
//! user manager, BPF LSM, fentry and kprobes.
//!
//! [`recipe`] says what the machine is, [`image`] makes it once and keeps it in the cache, [`payload`] carries the test programs in,
//! [`machine`] starts it and counts, [`guest`] is what runs inside, [`suite`] what is run. Needs no network beyond the image's making and
//! no privilege beyond it; must not touch the repository or leave anything but the cache and logs in the target folder.

mod guest;
mod image;
mod machine;
mod payload;
mod recipe;
mod suite;

use std::path::Path;

use anyhow::{Result, bail};

use self::image::Image;
use self::machine::Report;
use self::payload::Payload;
use crate::build::TestBinary;
use crate::test::skips;
use crate::{build, setup, shell};

pub use self::guest::{pass, run as guest};

/// Set inside the machine. A test that needs it skips itself elsewhere.
pub const VARIABLE: &str = "APEX_VM";

/// `cargo xtask vm [--image-only] [FILTER]`.
pub fn run(words: &[&str]) -> Result<()> {
    let (image_only, filter) = match words {
        [] => (false, None),
        ["--image-only"] => (true, None),
        [filter] if !filter.starts_with('-') => (false, Some(*filter)),
        other => bail!("not understood: {}; usage: cargo xtask vm [--image-only] [FILTER]", other.join(" ")),
    };
    setup::ensure(setup::Need::Vm)?;
    let image = Image::ensure()?;
    if image_only {
        return Ok(());
    }
    let apex_run = build::apex_run()?;
    build::daemon()?;
    let binaries = build::tests_for(filter)?;
    let report = start(&image, &apex_run, &binaries, filter)?;
    let surprises = skips::compare(&report.tallies, &shell::root().join("tests/expected-skips.toml"))?;
    let left = report.left.into_iter().map(|thing| format!("LEFT BEHIND: {thing}"));
    crate::test::close(&report.tallies, left.chain(surprises).collect())
}

fn start(image: &Image, apex_run: &Path, binaries: &[TestBinary], filter: Option<&str>) -> Result<Report> {
    let logs = machine::logs()?;
    let payload = Payload::make(&logs, apex_run, binaries, filter)?;
    machine::run(image, &payload, &logs)
}

/// What became of the machine in a run of all tests.
pub enum Lane {
    /// It ran.
    Ran(Report),
    /// It could not be had here, and why.
    NotRun(String),
}

/// The machine as a part of `cargo xtask test`, where its image is in the cache: making one takes the network and minutes, which nobody asked for who wants
/// the tests. That it cannot be had is an answer, that it fails is an error or a failed test.
pub fn lane(apex_run: &Path, binaries: &[TestBinary]) -> Result<Lane> {
    if !cfg!(target_arch = "x86_64") {
        return Ok(Lane::NotRun("the machine's recipe is for x86-64".to_owned()));
    }
    let Some(image) = Image::cached() else {
        return Ok(Lane::NotRun("its image is not in the cache; `cargo xtask vm` makes it".to_owned()));
    };
    match setup::ensure(setup::Need::Vm) {
        Ok(()) => start(&image, apex_run, binaries, None).map(Lane::Ran),
        Err(error) => Ok(Lane::NotRun(format!("{error:#}"))),
    }
}

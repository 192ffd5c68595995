//! configure, make and gcc build a real source tree under the profile `build`, and what comes out is the same to the byte.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use apex_tests::programs::{Job, missing_program, npm_tarball, run};
use apex_tests::skip;

/// OptiPNG with its zlib and libpng, as an npm package carries them: a shell `configure`, nine makefiles, 60 C files, own tests.
const PACKAGE: &str = "optipng-bin";
const VERSION: &str = "9.0.0";
const SHA256: &str = "afa0baae4d68530be4814b472f3cee222e1d2825b7bb1dd638acdb9165c6c4ff";
const SOURCE: &str = "package/vendor/source/optipng.tar.gz";

#[test]
fn gcc_and_make_build_a_source_tree() -> Result<()> {
    if let Some(reason) = missing_program(&["gcc", "make", "tar", "npm"]) {
        skip!(reason, Ok(()));
    }
    let tarball = match npm_tarball(PACKAGE, VERSION, SHA256) {
        Ok(tarball) => tarball,
        Err(error) => skip!(format!("no source tree: {error:#}"), Ok(())),
    };
    let job = Job::new("build", "build", &["sh", "job.sh"])?.seed(|dir| {
        run(Command::new("tar").arg("xzf").arg(&tarball).arg("-C").arg(dir).arg(SOURCE))?;
        fs::rename(dir.join(SOURCE), dir.join("source.tar.gz")).context("cannot place the source")
    })?;
    job.succeeds().map(drop)
}

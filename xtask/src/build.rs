//! What cargo builds, and where it puts it (the target folder and triple are the caller's to choose).

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::shell;

/// A test program that cargo built.
pub struct TestBinary {
    /// The package it belongs to.
    pub package: String,
    /// Its target: the library's or the integration test's name.
    pub target: String,
    /// The folder of the package; tests run there.
    pub dir: PathBuf,
    /// The program.
    pub file: PathBuf,
}

/// Builds apex-run as users get it, with apex-probe beside it, and returns its path. `APEX_RUN` names one that is there already, an
/// installed one say.
pub fn apex_run() -> Result<PathBuf> {
    if let Some(given) = given() {
        println!("taking {} for apex-run, as APEX_RUN says", given.display());
        return std::fs::canonicalize(&given)
            .with_context(|| format!("APEX_RUN names {}, which cannot be found", given.display()));
    }
    println!("building apex-run and apex-probe (release)");
    // One by one: built together, each would get the features that the other wants of what both stand on.
    program("apex-probe", "apex-probe")?;
    program("apex-run", "apex-run")
}

/// Builds the daemon and its command, which come to lie beside apex-run. Where `APEX_RUN` names one, they are what stands beside that.
pub fn daemon() -> Result<()> {
    if given().is_some() {
        return Ok(());
    }
    println!("building apexd and apex (release)");
    program("apexd", "apexd")?;
    program("apex-cli", "apex").map(drop)
}

/// Builds the OCI runtime, which comes to lie beside apex-run, and returns its path. `APEX_OCI` names one that is there already.
pub fn apex_oci() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("APEX_OCI") {
        return std::fs::canonicalize(&given)
            .with_context(|| format!("APEX_OCI names {}, which cannot be found", given.display()));
    }
    println!("building apex-oci (release)");
    program("apex-oci", "apex-oci")
}

/// Builds the shim of containerd and returns its path; `APEX_SHIM` names one that is there already.
pub fn shim() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("APEX_SHIM") {
        return std::fs::canonicalize(&given)
            .with_context(|| format!("APEX_SHIM names {}, which cannot be found", given.display()));
    }
    println!("building containerd-shim-apex-v2 (release)");
    program("containerd-shim-apex-v2", "containerd-shim-apex-v2")
}

/// Builds what runs containers, beside apex-run. Where `APEX_RUN` names one, they are what stands beside that.
pub fn containers() -> Result<()> {
    if given().is_some() {
        return Ok(());
    }
    println!("building apex-oci and containerd-shim-apex-v2 (release)");
    program("apex-oci", "apex-oci")?;
    program("containerd-shim-apex-v2", "containerd-shim-apex-v2").map(drop)
}

/// Programs beside an apex-run that tests start too: those that are there.
pub fn beside(apex_run: &Path) -> Vec<PathBuf> {
    ["apex-probe", "apexd", "apex", "apex-oci"]
        .map(|name| apex_run.with_file_name(name))
        .into_iter()
        .filter(|path| path.exists())
        .collect()
}

fn program(package: &str, name: &str) -> Result<PathBuf> {
    let messages = messages(&["build", "--release", "--package", package, "--bin", name])?;
    let file = messages.iter().find_map(|message| message["executable"].as_str());
    Ok(file.with_context(|| format!("cargo built {name} but named no executable"))?.into())
}

/// What `APEX_RUN` names.
pub fn given() -> Option<std::ffi::OsString> {
    std::env::var_os("APEX_RUN")
}

/// Builds every test of the workspace and returns the programs.
pub fn tests() -> Result<Vec<TestBinary>> {
    println!("building the tests");
    let messages = messages(&["test", "--workspace", "--no-run"])?;
    let tests = messages.iter().filter(|message| message["profile"]["test"] == true);
    tests.filter(|message| message["executable"].is_string()).map(test_binary).collect()
}

/// The same of one test program of `apex-tests` alone, where `filter` is the name of one: the others would be built for nothing.
pub fn tests_for(filter: Option<&str>) -> Result<Vec<TestBinary>> {
    match filter {
        Some(name) if shell::root().join(format!("tests/tests/{name}.rs")).is_file() => {
            println!("building the tests of {name}");
            let messages = messages(&["test", "--package", "apex-tests", "--test", name, "--no-run"])?;
            let tests = messages.iter().filter(|message| message["profile"]["test"] == true);
            tests.filter(|message| message["executable"].is_string()).map(test_binary).collect()
        }
        _ => tests(),
    }
}

/// Where cargo puts what it builds.
pub fn target_dir() -> Result<PathBuf> {
    Ok(metadata()?["target_directory"].as_str().context("cargo metadata names no target folder")?.into())
}

/// What cargo knows of the workspace's own packages.
pub fn metadata() -> Result<Value> {
    let mut command = shell::cargo();
    let output =
        command.args(["metadata", "--format-version=1", "--no-deps", "--locked"]).stderr(Stdio::inherit()).output();
    let output = output.context("cannot run cargo")?;
    if !output.status.success() {
        bail!("{} failed: {}", shell::line(&command), output.status);
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata wrote something that is not JSON")
}

fn test_binary(message: &Value) -> Result<TestBinary> {
    let text = |value: &Value| value.as_str().map(str::to_owned).context("a message of cargo lacks a field");
    let manifest = PathBuf::from(text(&message["manifest_path"])?);
    let dir = manifest.parent().context("a manifest lies in no folder")?.to_path_buf();
    let toml: toml::Table = std::fs::read_to_string(&manifest)?.parse()?;
    let package = toml["package"]["name"].as_str().context("a package has no name")?.to_owned();
    Ok(TestBinary {
        package,
        target: text(&message["target"]["name"])?,
        dir,
        file: text(&message["executable"])?.into(),
    })
}

/// Runs cargo for its messages; compiler diagnostics still reach the terminal.
fn messages(args: &[&str]) -> Result<Vec<Value>> {
    let mut command = shell::cargo();
    command.args(args).args(["--locked", "--message-format=json-render-diagnostics"]);
    let output = command.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("{} failed: {}", shell::line(&command), output.status);
    }
    let text = String::from_utf8(output.stdout).context("cargo's messages are not UTF-8")?;
    text.lines().map(|line| serde_json::from_str(line).context("cargo wrote a line that is not JSON")).collect()
}

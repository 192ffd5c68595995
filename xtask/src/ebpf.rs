//! `cargo xtask ebpf [--check]`: the BPF objects in `ebpf/prebuilt/`, from their sources.
//!
//! Users build with the objects as they are and need no clang. Who changes a source runs this with the pinned compiler; `--check` builds again
//! and compares, so that no object is in the repository that its source does not give.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell;

/// Another version of the compiler gives other bytes.
const CLANG: &str = "clang-19";
const STRIP: &str = "llvm-strip-19";
/// Hashes of the objects, as `sha256sum` writes and checks them.
const SUMS: &str = "SHA256SUMS";

/// Whether the pinned compiler is here.
pub fn has_compiler() -> bool {
    shell::on_path(CLANG).is_some() && shell::on_path(STRIP).is_some()
}

/// Builds the objects and writes them with their hashes.
pub fn build() -> Result<()> {
    let home = home();
    let built = Built::new(&home)?;
    let prebuilt = home.join("prebuilt");
    fs::create_dir_all(&prebuilt).with_context(|| format!("cannot make {}", prebuilt.display()))?;
    for old in objects(&prebuilt)? {
        fs::remove_file(prebuilt.join(&old)).with_context(|| format!("cannot remove the old {old}"))?;
    }
    for name in objects(&built.0)? {
        fs::copy(built.0.join(&name), prebuilt.join(&name)).with_context(|| format!("cannot write {name}"))?;
    }
    fs::write(prebuilt.join(SUMS), built.sums()?).with_context(|| format!("cannot write {SUMS}"))?;
    println!("ebpf: {} objects written to {}", objects(&prebuilt)?.len(), prebuilt.display());
    Ok(())
}

/// Builds the objects elsewhere and compares: the hashes with those of the build, and the objects with the hashes.
pub fn check() -> Result<()> {
    let home = home();
    let prebuilt = home.join("prebuilt");
    let written = fs::read_to_string(prebuilt.join(SUMS)).with_context(|| format!("cannot read {SUMS}"))?;
    let built = Built::new(&home)?.sums()?;
    if written != built {
        bail!(
            "ebpf/prebuilt/{SUMS} is not what the sources give with {CLANG}; run `cargo xtask ebpf`\n\
             written:\n{written}built:\n{built}"
        );
    }
    if sums(&prebuilt)? != written {
        bail!("the objects in ebpf/prebuilt are not those of {SUMS}; run `cargo xtask ebpf`");
    }
    Ok(())
}

fn home() -> PathBuf {
    shell::root().join("ebpf")
}

/// A directory with freshly built objects, gone with the value.
struct Built(PathBuf);

impl Built {
    fn new(home: &Path) -> Result<Built> {
        if !has_compiler() {
            bail!("{CLANG} and {STRIP} are needed to build the BPF objects; run `cargo xtask setup`");
        }
        let directory = std::env::temp_dir().join(format!("apex-ebpf-{}", std::process::id()));
        fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let built = Built(directory);
        for source in names(home, ".bpf.c")? {
            built.object(home, &source)?;
        }
        Ok(built)
    }

    fn object(&self, home: &Path, source: &str) -> Result<()> {
        let target = self.0.join(source.replace(".bpf.c", ".bpf.o"));
        let mut clang = Command::new(CLANG);
        clang
            .current_dir(home)
            .args(["-target", "bpfel", "-mcpu=v3", "-O2", "-g", "-Wall", "-Wextra", "-Werror"])
            // Macros of libbpf have parameters that not every program uses.
            .args(["-Wno-unused-parameter", "-fno-ident", "-D__TARGET_ARCH_x86"])
            // Line information names sources: as they are called here, wherever the repository lies.
            .arg(format!("-ffile-prefix-map={}=.", home.display()))
            .args(["-c", source, "-o"])
            .arg(&target);
        shell::run(&mut clang)?;
        // The types stay; only DWARF goes.
        shell::run(Command::new(STRIP).arg("-g").arg(&target))
    }

    fn sums(&self) -> Result<String> {
        sums(&self.0)
    }
}

impl Drop for Built {
    fn drop(&mut self) {
        // A temporary directory that cannot be removed harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn sums(directory: &Path) -> Result<String> {
    let output = Command::new("sha256sum")
        .current_dir(directory)
        .args(objects(directory)?)
        .output()
        .context("cannot run sha256sum")?;
    if !output.status.success() {
        bail!("sha256sum failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).context("sha256sum wrote no text")
}

fn objects(directory: &Path) -> Result<Vec<String>> {
    names(directory, ".bpf.o")
}

/// Files of a directory with this ending, in order.
fn names(directory: &Path, ending: &str) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    let names = entries.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
    let mut names: Vec<String> = names
        .iter()
        .filter_map(|name| OsStr::to_str(name))
        .filter(|name| name.ends_with(ending))
        .map(Into::into)
        .collect();
    names.sort();
    Ok(names)
}

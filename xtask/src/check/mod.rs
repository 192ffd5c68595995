//! What keeps the house in order: format, lints, edges between crates, sizes, links, and that every grant says why.

mod edges;
mod layout;
mod links;
mod policies;
mod ratchet;
mod source;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{ebpf, shell};

/// One thing that is wrong, as a line that says where and what to do.
type Complaint = String;

/// Runs every check and names everything that is wrong, not only the first.
pub fn run() -> Result<()> {
    let root = shell::root();
    let mut complaints = Vec::new();
    complaints.extend(layout::check(&root)?);
    complaints.extend(edges::check()?);
    let sources = sources(&root)?;
    complaints.extend(source::stray_unsafe(&root, &sources)?);
    complaints.extend(ratchet::check(&root, &sources)?);
    complaints.extend(long_programs(&root)?);
    complaints.extend(objects());
    complaints.extend(links::check(&root)?);
    complaints.extend(policies::check(&root)?);
    complaints.extend(tool(&["fmt", "--all", "--check"]));
    complaints.extend(tool(&["clippy", "--quiet", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]));
    for complaint in &complaints {
        eprintln!("check: {complaint}");
    }
    if !complaints.is_empty() {
        bail!("{} checks failed, each named above", complaints.len());
    }
    println!("check: format, lints, edges, unsafe, sizes, layout, links and policies are in order");
    Ok(())
}

/// Rewrites `xtask/ratchet.toml` to what is there now. Refuses to let anything grow.
pub fn tighten() -> Result<()> {
    let root = shell::root();
    ratchet::tighten(&root, &sources(&root)?)
}

/// Sources of BPF programs are bounded as all others are, and none is on the ratchet's list.
fn long_programs(root: &Path) -> Result<Vec<Complaint>> {
    let mut complaints = Vec::new();
    for path in [files(root, "c")?, files(root, "h")?].concat() {
        let name = relative(root, &path);
        let lines = read(&path)?.lines().count();
        if name.starts_with("ebpf/") && lines > ratchet::FILE_LINES_MAX {
            complaints.push(format!("{name} has {lines} lines, more than {}", ratchet::FILE_LINES_MAX));
        }
    }
    Ok(complaints)
}

/// The BPF objects are those of their sources. Where the compiler is not, the tests of CI see to it.
fn objects() -> Option<Complaint> {
    if !ebpf::has_compiler() {
        println!("check: the BPF objects are not compared with their sources, as clang-19 is not here");
        return None;
    }
    ebpf::check().err().map(|error| format!("{error:#}"))
}

fn tool(args: &[&str]) -> Option<Complaint> {
    shell::run(shell::cargo().args(args)).err().map(|error| format!("{error:#}"))
}

/// Every Rust source of the workspace.
fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    files(root, "rs")
}

/// Every file with this ending, in a fixed order; what git ignores and what is downloaded is left out.
fn files(root: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
            let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
            let is_foreign = [".git", "target", "node_modules"].iter().any(|name| path.ends_with(name));
            if kind.is_dir() && !is_foreign {
                dirs.push(path);
            } else if kind.is_file() && path.extension().is_some_and(|ending| ending == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// A path as it is written in complaints and in the ratchet.
fn relative<'a>(root: &Path, path: &'a Path) -> std::borrow::Cow<'a, str> {
    path.strip_prefix(root).unwrap_or(path).to_string_lossy()
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

//! The root folder holds what the design lists and nothing else.

use std::path::Path;

use anyhow::{Context, Result};

use super::Complaint;

#[rustfmt::skip]
const HOUSE: &[&str] = &[
    // The design.
    "Cargo.toml", "rust-toolchain.toml", "runtime", "shim", "ebpf", "xtask", "policies", "systemd", "tests", "docs",
    // What the tools and the people who find the repository expect in this place.
    "Cargo.lock", ".cargo", ".ci", ".git", ".gitignore", ".rustfmt.toml", ".clippy.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE",
    // Built.
    "target",
];

pub fn check(root: &Path) -> Result<Vec<Complaint>> {
    let mut complaints = Vec::new();
    for entry in std::fs::read_dir(root).with_context(|| format!("cannot list {}", root.display()))? {
        let name = entry?.file_name();
        if !HOUSE.iter().any(|known| name == *known) {
            let name = name.to_string_lossy();
            complaints.push(format!("{name} does not belong in the root folder; put it where it is used"));
        }
    }
    complaints.sort();
    Ok(complaints)
}

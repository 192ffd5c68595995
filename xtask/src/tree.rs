//! Copies of the sources, for programs that run where the repository is not.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Copies the sources, without what is built and without history.
pub fn copy_sources(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            let is_built = [".git", "target", "node_modules"].iter().any(|name| entry.file_name() == *name);
            if !is_built {
                fs::create_dir(&target).with_context(|| format!("cannot make {}", target.display()))?;
                copy_sources(&source, &target)?;
            }
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_file() {
            fs::copy(&source, &target).with_context(|| format!("cannot copy {}", source.display()))?;
        }
    }
    Ok(())
}

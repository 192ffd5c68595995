//! Where downloads and images are kept: outside the repository, so that neither `cargo clean` nor a fresh clone loses them.
//!
//! `APEX_CACHE` decides when it is set. Otherwise `/var/cache/apex-tests`, which serves every user, and where that cannot be written
//! `apex-tests` in the user's own cache (`XDG_CACHE_HOME`, else `~/.cache`). The tests follow the same rule (`tests/src/programs.rs`).

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use nix::unistd::{AccessFlags, access};

/// Names the folder, and nothing else is looked at.
pub const VARIABLE: &str = "APEX_CACHE";

/// The folders that are looked at, the preferred one first.
pub fn dirs() -> Vec<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = variable(VARIABLE) {
        return vec![dir];
    }
    let own = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    [PathBuf::from("/var/cache/apex-tests")].into_iter().chain(own.map(|dir| dir.join("apex-tests"))).collect()
}

/// The first folder that can be written, made when missing.
pub fn writable() -> Result<PathBuf> {
    let dirs = dirs();
    let is_writable =
        |dir: &&PathBuf| std::fs::create_dir_all(dir).is_ok() && access(dir.as_path(), AccessFlags::W_OK).is_ok();
    match dirs.iter().find(is_writable) {
        Some(dir) => Ok(dir.clone()),
        None => bail!("none of {dirs:?} can be written; set {VARIABLE} to a folder that can"),
    }
}

/// The first place where `name` is there.
pub fn find(name: &Path) -> Option<PathBuf> {
    dirs().into_iter().map(|dir| dir.join(name)).find(|path| path.exists())
}

//! A Debian tree with programs that people run in containers, made once by debootstrap and kept in the cache, and an image of it.
//!
//! Whoever has no tree and cannot make one is told why: the tests on it are then not run.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::programs::{cache_dirs, download, run, writable_cache};

/// The image's name.
pub const IMAGE: &str = "docker.io/library/apex-debian:1";
const NAME: &str = "debian-tree.tar";
const SUITE: &str = "bookworm";
const INCLUDE: &str = "--include=python3,libsqlite3-0,nginx-light,postgresql";
/// What no program reads.
const PRUNED: [&str; 5] = ["usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists"];

/// The tree as a tar. The first caller of a machine waits minutes for it; others at the same time wait for that.
pub fn tree() -> Result<PathBuf> {
    let cached = || cache_dirs().into_iter().map(|dir| dir.join(NAME)).find(|path| path.exists());
    if let Some(path) = cached() {
        return Ok(path);
    }
    ensure!(crate::as_root(), "only root makes one, by debootstrap");
    let lock = fs::File::create(writable_cache()?.join(format!(".{NAME}.lock"))).context("cannot make its lock")?;
    lock.lock().context("cannot lock it")?;
    match cached() {
        Some(path) => Ok(path),
        None => download(NAME, make),
    }
}

/// Makes it in `dir`. Its mounts and processes end with it.
fn make(dir: &Path) -> Result<String> {
    let tree = dir.join("tree");
    let mut debootstrap = Command::new("unshare");
    debootstrap.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    debootstrap.args(["debootstrap", "--variant=minbase", "--merged-usr", INCLUDE, SUITE]).arg(&tree).args(mirror());
    run(debootstrap.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8").env_remove("TMPDIR"))?;
    for name in PRUNED {
        let _ = fs::remove_dir_all(tree.join(name));
    }
    run(Command::new("tar").args(["--numeric-owner", "-C"]).arg(&tree).arg("-cf").arg(dir.join(NAME)).arg("."))
}

/// From where apt takes the release here; debootstrap knows one of its own.
fn mirror() -> Option<String> {
    let words = ["indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)", "Created-By: Packages"];
    let lines = run(Command::new("apt-get").args(words)).ok()?;
    let wanted = lines.lines().find(|line| line.split(' ').skip(1).eq([SUITE, "main"]))?;
    wanted.split(' ').next().map(str::to_owned)
}

/// An image of the tree in `dir`, in the form that `docker save` writes: one layer, not packed. Returns the archive.
pub fn archive(tree: &Path, dir: &Path) -> Result<PathBuf> {
    let (parts, path) = (dir.join("image"), dir.join("image.tar"));
    fs::create_dir(&parts)?;
    let sum = run(Command::new("sha256sum").arg(tree))?;
    let digest = sum.split_whitespace().next().context("sha256sum prints none")?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = serde_json::json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["/bin/sh"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]);
    fs::write(parts.join("config.json"), config.to_string())?;
    fs::write(parts.join("manifest.json"), manifest.to_string())?;
    symlink(tree, parts.join("layer.tar"))?;
    run(Command::new("tar").arg("-C").arg(&parts).arg("-chf").arg(&path).args([
        "manifest.json",
        "config.json",
        "layer.tar",
    ]))?;
    Ok(path)
}

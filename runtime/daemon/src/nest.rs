//! Where keepers live among the cgroups (`--cgroup`): in a leaf of the daemon's start, below a directory that is delegated to Apex and belongs to nobody else.
//!
//! A service manager ends what is in the cgroup of a service; keepers are in another, so that the daemon can be ended as any service is. Their sandboxes get cgroups
//! beside the leaf. Each start makes a leaf of its own: a keeper that was alone in an older one may have given controllers to its children, and the kernel lets nobody enter such
//! a cgroup any more.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// What the names of leaves begin with.
const PREFIX: &str = "keepers-";

/// The leaf, for the warden to be born into: its children are born beside it.
pub fn make(below: &Path) -> Result<OwnedFd> {
    // Only cgroup v2 has this file, and not in its root, which is delegated to nobody.
    if !below.join("cgroup.type").exists() {
        bail!(
            "--cgroup {}: that is no cgroup v2 directory below the root of the hierarchy; under systemd it is that of apex-sandboxes.service, which must run. Elsewhere leave the option out",
            below.display()
        );
    }
    clear(below);
    let leaf = below.join(format!("{PREFIX}{}", std::process::id()));
    fs::create_dir(&leaf).with_context(|| format!("making the cgroup {} for keepers", leaf.display()))?;
    let open = fs::File::open(&leaf).with_context(|| format!("opening {}", leaf.display()))?;
    Ok(open.into())
}

/// Removes leaves in which nobody is left. The kernel refuses the others.
fn clear(below: &Path) {
    let Ok(entries) = fs::read_dir(below) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_directory_that_is_no_cgroup_is_refused() {
        let error = super::make(&std::env::temp_dir()).unwrap_err();
        assert!(error.to_string().contains("no cgroup v2 directory"), "{error:#}");
    }
}

//! Which `apex-run` the warden executes. It does so as any user, so nobody but root and the daemon's own user may have a hand in it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Names one for tests.
const VARIABLE: &str = "APEX_RUN";
/// Group and others may write.
const WRITABLE: u32 = 0o022;
/// In a directory, names are their owners' (`S_ISVTX`).
const STICKY: u32 = 0o1000;

/// What `APEX_RUN` names, the one beside `apexd`, or the one that is installed. Opened, so that it stays the one that was looked at.
pub fn find() -> Result<File> {
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name("apex-run"));
    let named = std::env::var_os(VARIABLE).map(PathBuf::from);
    let candidates = [named, beside, Some("/usr/bin/apex-run".into()), Some("/usr/local/bin/apex-run".into())];
    for path in candidates.into_iter().flatten() {
        if path.is_file() {
            return open(&path);
        }
    }
    bail!("apex-run is not there: it belongs beside apexd or in /usr/bin; {VARIABLE} names another place")
}

fn open(path: &Path) -> Result<File> {
    let path = path.canonicalize().with_context(|| format!("finding {}", path.display()))?;
    let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
    let about = file.metadata().with_context(|| format!("looking at {}", path.display()))?;
    judge(&path, about.uid(), about.mode(), WRITABLE)?;
    if let Some(dir) = path.parent() {
        let about = dir.metadata().with_context(|| format!("looking at {}", dir.display()))?;
        // What is in a sticky directory is removed or renamed by its own owner alone, who was just looked at.
        let writable = if about.mode() & STICKY == 0 { WRITABLE } else { 0 };
        judge(dir, about.uid(), about.mode(), writable)?;
    }
    Ok(file)
}

fn judge(path: &Path, uid: u32, mode: u32, writable: u32) -> Result<()> {
    let own = nix::unistd::geteuid().as_raw();
    if uid != 0 && uid != own {
        bail!(
            "apexd executes {} for all its users, and uid {uid} could change it; it must belong to root or to uid {own}: chown it, or install apex-run in /usr/bin",
            path.display()
        );
    }
    if mode & writable != 0 {
        bail!(
            "apexd executes {} for all its users, and others than its owner could change it (mode {:o}); `chmod go-w {0}` takes that away",
            path.display(),
            mode & 0o7777
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_program_that_others_could_change_is_refused() {
        let dir = std::env::temp_dir().join(format!("apexd-program-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("apex-run");
        fs::write(&path, "").unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        let check = |of_dir: u32, of_file: u32, words: Option<&str>| {
            set(&dir, of_dir);
            set(&path, of_file);
            match (open(&path), words) {
                (Ok(_), None) => {}
                (Err(error), Some(words)) => assert!(error.to_string().contains(words), "{error}"),
                (outcome, words) => panic!("{of_dir:o} {of_file:o}: {outcome:?} and not {words:?}"),
            }
        };
        check(0o755, 0o755, None);
        check(0o755, 0o775, Some("mode 775"));
        check(0o755, 0o757, Some("mode 757"));
        check(0o775, 0o755, Some("mode 775"));
        check(0o1777, 0o755, None);
        // Also by a link to it, whose own directory says nothing.
        let link = std::env::temp_dir().join(format!("apexd-program-link-{}", std::process::id()));
        std::os::unix::fs::symlink(&path, &link).unwrap();
        set(&path, 0o777);
        assert!(open(&link).is_err());
        if nix::unistd::geteuid().is_root() {
            set(&path, 0o755);
            set(&dir, 0o755);
            std::os::unix::fs::chown(&path, Some(4711), None).unwrap();
            check(0o755, 0o755, Some("uid 4711 could change it"));
            std::os::unix::fs::chown(&path, Some(0), None).unwrap();
            std::os::unix::fs::chown(&dir, Some(4711), None).unwrap();
            check(0o755, 0o755, Some("uid 4711 could change it"));
        }
        fs::remove_file(link).unwrap();
        fs::remove_dir_all(dir).unwrap();
    }
}

//! Reads policy files for whoever may write a bundle's annotations, so only from places that hold policies: a path is data of a stranger, and what is wrong with a
//! file is told by its words.

use std::fs::File;
use std::io::{Error, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use apex_jail::host::c_path;
use apex_sys::fs;
use nix::libc::{O_CLOEXEC, O_DIRECTORY, O_NONBLOCK, O_PATH, O_RDONLY};
use nix::unistd::geteuid;

/// What the administrator adds.
pub(super) const SYSTEM_CONFIG: &str = "/etc/apex";
/// Largest policy file that is read, in bytes.
const BYTES_MAX: u64 = 1 << 20;

/// Directories that hold policies.
pub(super) struct Places {
    bundle: PathBuf,
    pub user: Option<PathBuf>,
}

impl Places {
    pub(super) fn of(bundle: &Path) -> Places {
        let home = || std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
        // Root's start of a container goes by what the administrator says, not by the environment of whoever calls.
        let user = (!geteuid().is_root()).then(|| home().map(|home| home.join(".config/apex"))).flatten();
        Places { bundle: bundle.to_owned(), user }
    }

    /// The text of a file; `None` when nothing is there.
    pub(super) fn load(&self, path: &Path) -> std::io::Result<Option<String>> {
        let mut places =
            [Some(Path::new(SYSTEM_CONFIG)), self.user.as_deref(), Some(&self.bundle)].into_iter().flatten();
        let Some((place, name)) = places.find_map(|place| Some((place, path.strip_prefix(place).ok()?))) else {
            return Err(Error::other(format!(
                "policies for containers lie below {SYSTEM_CONFIG} or in the bundle; move it there"
            )));
        };
        read(place, name)
    }
}

/// Reads a file below a directory. Neither it nor what lies between may be a link, and nobody but root and this user may have written it.
fn read(place: &Path, name: &Path) -> std::io::Result<Option<String>> {
    let opened = fs::open(fs::cwd(), &c_path(place)?, O_PATH | O_DIRECTORY | O_CLOEXEC, 0).and_then(|dir| {
        // NONBLOCK: a FIFO in its place must not hold the start up.
        let resolve = fs::resolve::BENEATH | fs::resolve::NO_SYMLINKS;
        fs::open(dir.as_fd(), &c_path(name)?, O_RDONLY | O_NONBLOCK | O_CLOEXEC, resolve)
    });
    let file = match opened {
        Ok(file) => File::from(file),
        Err(apex_sys::Errno::ENOENT | apex_sys::Errno::ENOTDIR) => return Ok(None),
        Err(apex_sys::Errno::ELOOP) => {
            return Err(Error::other("there is a symbolic link on the way; name the file itself"));
        }
        Err(errno) => return Err(errno.into()),
    };
    let facts = file.metadata()?;
    if !facts.is_file() {
        return Err(Error::other("not a regular file"));
    }
    let owner = facts.uid();
    if (owner != 0 && owner != geteuid().as_raw()) || facts.mode() & 0o022 != 0 {
        return Err(Error::other("others than its owner, root or this user, may write it; see chown(1) and chmod(1)"));
    }
    let mut text = String::new();
    file.take(BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > BYTES_MAX {
        return Err(Error::other("larger than 1 MiB"));
    }
    Ok(Some(text))
}

//! Names that are denied before anything exists under them.
//!
//! A mask needs something to be mounted on, so the launcher holds such a name with an empty file, and takes it away when the sandbox
//! has ended. Several sandboxes may hold one name: each keeps a shared lock on the file, and only the last one, who gets it
//! exclusively, removes it; a removal any earlier would make the kernel drop the others' masks. A launcher that was killed leaves its
//! file behind, which the next sandbox with that rule recognises by its stamp, adopts and removes.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use apex_core::host::Host;
use apex_core::plan::{Kind, Mount, Plan};
use apex_sys::Errno;
use apex_sys::fs::{self, Stat, resolve};

use crate::host::{Held, LiveHost, c_path};
use crate::step::{Failure, Step};

/// Modification time of a placeholder, in seconds: no other file has it together with no content and mode 0600.
const STAMP_S: i64 = 1;
/// The owner may write to it: then it is an ordinary file of the host, still masked, and stays.
const MODE: u32 = 0o600;
/// How often to try again when another sandbox removes the name just now.
const ATTEMPTS_MAX: u32 = 16;

/// The names held for one sandbox.
pub struct Placeholders(Vec<Placeholder>);

struct Placeholder {
    dir: Rc<Held>,
    name: CString,
    file: OwnedFd,
}

impl Placeholders {
    /// Holds every name of the plan that needs it.
    pub fn hold(plan: &Plan, host: &LiveHost) -> Result<Placeholders, Failure> {
        let mut held = Placeholders(Vec::new());
        for (index, mount) in plan.mounts.iter().enumerate() {
            if let Mount::Deny { source, kind, .. } = mount
                && !source.as_os_str().is_empty()
                && *kind != Some(Kind::Dir)
            {
                held.0.extend(hold(source, kind.is_none(), host).map_err(Failure::at(Step::Placeholder, index))?);
            }
        }
        Ok(held)
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        // Held by another sandbox, or no longer ours: it stays.
        let is_last = twice(|| fs::try_lock(self.file.as_fd(), true)).is_ok();
        if is_last && twice(|| is_same(self)).unwrap_or(false) {
            let _ = twice(|| fs::unlink(self.dir.fd.as_fd(), &self.name));
        }
    }
}

/// Tries again what failed for want of memory or the like: nobody comes after us to clean up.
fn twice<T>(attempt: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
    match attempt() {
        Err(errno) if errno != Errno::EAGAIN => attempt(),
        other => other,
    }
}

/// Whether the name still stands for the file that we hold.
fn is_same(held: &Placeholder) -> Result<bool, Errno> {
    let now = fs::stat(held.dir.fd.as_fd(), &held.name)?;
    let ours = fs::stat(held.file.as_fd(), c"")?;
    Ok((now.device, now.inode) == (ours.device, ours.inode) && is_placeholder(&now))
}

/// Whether a file is one with which a sandbox holds a name.
pub fn is_placeholder(stat: &Stat) -> bool {
    stat.is(nix::libc::S_IFREG) && stat.size == 0 && stat.mode & 0o7777 == MODE && stat.modified_s == STAMP_S
}

/// `None` when what stands there is not a placeholder: then it needs no holding.
fn hold(path: &Path, is_missing: bool, host: &LiveHost) -> Result<Option<Placeholder>, Errno> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
    let name = c_path(Path::new(name))?;
    // The planner asks about the directory only when the file is not there yet.
    host.path(parent, true);
    let Some(dir) = host.held(parent) else {
        return if is_missing { Err(Errno::ENOENT) } else { Ok(None) };
    };
    let mut may_create = is_missing;
    for _ in 0..ATTEMPTS_MAX {
        let file = match if may_create { create(&dir, &name) } else { Err(Errno::EEXIST) } {
            Ok(file) => file,
            Err(Errno::EEXIST) => {
                let stat = match fs::stat(dir.fd.as_fd(), &name) {
                    // The sandbox that held the name has ended since the planner looked.
                    Err(Errno::ENOENT) => {
                        may_create = true;
                        continue;
                    }
                    other => other?,
                };
                if !is_placeholder(&stat) {
                    return Ok(None);
                }
                open(&dir, &name)?
            }
            Err(errno) => return Err(errno),
        };
        let held = Placeholder { dir: Rc::clone(&dir), name: name.clone(), file };
        match fs::try_lock(held.file.as_fd(), false) {
            Ok(()) if is_same(&held)? => return Ok(Some(held)),
            // Its last holder is removing it at this moment.
            Ok(()) | Err(Errno::EAGAIN | Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EBUSY)
}

/// The file has its stamp before it has its name: a launcher that is killed in between leaves nothing, and one that is killed after it
/// leaves what the next one knows.
fn create(dir: &Held, name: &CString) -> Result<OwnedFd, Errno> {
    let unnamed = nix::libc::O_RDWR | nix::libc::O_TMPFILE;
    match fs::create(dir.fd.as_fd(), c".", unnamed, MODE, resolve::BENEATH) {
        Ok(file) => {
            fs::set_modified(file.as_fd(), STAMP_S)?;
            fs::link_open(file.as_fd(), dir.fd.as_fd(), name)?;
            Ok(file)
        }
        Err(Errno::EOPNOTSUPP | Errno::EISDIR) => create_named(dir, name),
        Err(errno) => Err(errno),
    }
}

/// Where the file system has no files without a name.
fn create_named(dir: &Held, name: &CString) -> Result<OwnedFd, Errno> {
    let flags = nix::libc::O_RDONLY | nix::libc::O_CREAT | nix::libc::O_EXCL | nix::libc::O_NOFOLLOW;
    let file = fs::create(dir.fd.as_fd(), name, flags, MODE, resolve::BENEATH)?;
    if let Err(errno) = fs::set_modified(file.as_fd(), STAMP_S) {
        let _ = twice(|| fs::unlink(dir.fd.as_fd(), name));
        return Err(errno);
    }
    Ok(file)
}

fn open(dir: &Held, name: &CString) -> Result<OwnedFd, Errno> {
    fs::open(dir.fd.as_fd(), name, nix::libc::O_RDONLY | nix::libc::O_NOFOLLOW, resolve::BENEATH)
}

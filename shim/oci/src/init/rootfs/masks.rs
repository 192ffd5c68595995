//! Paths that are masked or read-only, and what a root that is not pivoted to must not leave behind.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use apex_sys::mount::{self, Change, attr};
use apex_sys::{Errno, fs};
use nix::libc;
use nix::mount::{MntFlags, MsFlags};
use oci_spec::runtime::Spec;

use super::propagation::SLAVE;
use super::{Rootfs, RootfsError, place};

/// Whether any path is masked.
pub(super) fn are_wanted(spec: &Spec) -> bool {
    !masked(spec).is_empty()
}

fn masked(spec: &Spec) -> &[String] {
    spec.linux().as_ref().and_then(|linux| linux.masked_paths().as_deref()).unwrap_or_default()
}

fn readonly(spec: &Spec) -> &[String] {
    spec.linux().as_ref().and_then(|linux| linux.readonly_paths().as_deref()).unwrap_or_default()
}

impl Rootfs<'_> {
    /// Binds each path onto itself, read-only with all below.
    pub(super) fn readonly_paths(&self) -> Result<(), RootfsError> {
        for path in readonly(self.context.spec) {
            self.need_mount_namespace(path)?;
            let failed = |source| RootfsError::Readonly { path: path.into(), source };
            let place = match place::open(self.root(), Path::new(path)) {
                Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
                other => other.map_err(failed)?,
            };
            let tree = mount::clone_tree_with(place.as_fd(), c"", attr::RDONLY).map_err(failed)?;
            mount::attach(tree.as_fd(), place.as_fd(), c"").map_err(failed)?;
        }
        Ok(())
    }

    /// Puts the null device over files and one empty directory over all directories.
    pub(super) fn mask_paths(&self) -> Result<(), RootfsError> {
        let mut null = Mask::new(self.null.as_ref());
        let mut dir: Option<OwnedFd> = None;
        for path in masked(self.context.spec) {
            self.need_mount_namespace(path)?;
            let failed = |source| RootfsError::Mask { path: path.into(), source };
            let place = match place::open(self.root(), Path::new(path)) {
                Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
                other => other.map_err(failed)?,
            };
            let is_dir = fs::stat(place.as_fd(), c"").map_err(failed)?.is(libc::S_IFDIR);
            if is_dir {
                let tree = match &dir {
                    Some(first) => mount::clone_mount(first.as_fd(), c""),
                    None => empty_dir(self.label()),
                };
                let tree = tree.map_err(failed)?;
                mount::attach(tree.as_fd(), place.as_fd(), c"").map_err(failed)?;
                dir.get_or_insert(tree);
            } else {
                null.put(&place).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn need_mount_namespace(&self, path: &str) -> Result<(), RootfsError> {
        if self.context.mount_namespace { Ok(()) } else { Err(RootfsError::NoMountNamespace(path.into())) }
    }
}

/// Holds nothing, and nothing can be made in it.
fn empty_dir(label: Option<&str>) -> Result<OwnedFd, Errno> {
    let attributes = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC;
    let label = label.map(CString::new).transpose().map_err(|_| Errno::EINVAL)?;
    let mut options = vec![(c"source", c"tmpfs"), (c"nr_inodes", c"1"), (c"nr_blocks", c"1"), (c"mode", c"0755")];
    options.extend(label.as_ref().map(|label| (c"context", label.as_c_str())));
    mount::new_filesystem(c"tmpfs", &options, attributes)
}

/// The null device: the first time it is attached itself, then copies of it are, as nothing can be copied from a tree that is not attached.
struct Mask<'n> {
    null: Option<&'n OwnedFd>,
    attached: bool,
}

impl<'n> Mask<'n> {
    fn new(null: Option<&'n OwnedFd>) -> Self {
        Mask { null, attached: false }
    }

    fn put(&mut self, place: &OwnedFd) -> Result<(), Errno> {
        let null = self.null.ok_or(Errno::ENODEV)?;
        if !self.attached {
            self.attached = true;
            return mount::attach(null.as_fd(), place.as_fd(), c"");
        }
        let copy = mount::clone_mount(null.as_fd(), c"")?;
        mount::attach(copy.as_fd(), place.as_fd(), c"")
    }
}

/// Takes every proc and sysfs outside `root` out of the mount namespace, or hides it where it is locked.
pub(super) fn uncover_nothing(root: &Path) -> Result<(), Errno> {
    let table = std::fs::read("/proc/self/mountinfo").map_err(|error| errno_of(&error))?;
    let mut places: Vec<_> = table.split(|byte| *byte == b'\n').filter_map(system_mount).collect();
    places.retain(|path| !Path::new(OsStr::from_bytes(path)).starts_with(root));
    // Those above last, and /proc, by which the table was read, is needed no more.
    for path in places.iter().rev() {
        let path = CString::new(path.clone()).map_err(|_| Errno::EINVAL)?;
        match fs::open(fs::cwd(), &path, libc::O_PATH, 0) {
            // One above it is gone.
            Err(Errno::ENOENT) => continue,
            place => {
                let slave = Change { propagation: SLAVE.flag, ..Change::default() };
                mount::change(place?.as_fd(), slave, true)?;
            }
        }
        match nix::mount::umount2(path.as_c_str(), MntFlags::MNT_DETACH) {
            Err(Errno::EINVAL | Errno::EPERM) => {
                let tmpfs = Some(c"tmpfs");
                nix::mount::mount(tmpfs, path.as_c_str(), tmpfs, MsFlags::MS_RDONLY, None::<&str>)?;
            }
            other => other?,
        }
    }
    Ok(())
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// The mount point of a line of mountinfo when a proc or sysfs is there (proc_pid_mountinfo(5)).
fn system_mount(line: &[u8]) -> Option<Vec<u8>> {
    let words: Vec<_> = line.split(|byte| *byte == b' ').collect();
    let dash = words.iter().position(|word| *word == b"-")?;
    let kind = *words.get(dash + 1)?;
    (kind == b"proc" || kind == b"sysfs").then(|| unescape(words.get(4).copied().unwrap_or_default()))
}

/// Blanks, tabs, new lines and backslashes stand there in octal.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(word.len());
    let mut rest = word;
    while let [first, tail @ ..] = rest {
        let digits = tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            plain.push(byte);
            rest = &tail[3..];
        } else {
            plain.push(*first);
            rest = tail;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo_are_read_with_blanks_in_names() {
        let line = b"22 26 0:5 / /a\\040b/proc rw,nosuid shared:12 - proc proc rw";
        assert_eq!(system_mount(line), Some(b"/a b/proc".to_vec()));
        assert_eq!(system_mount(b"22 26 0:5 / /x rw - tmpfs proc rw"), None);
        assert_eq!(system_mount(b""), None);
    }
}

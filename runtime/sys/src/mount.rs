//! Mounts through descriptors: open_tree(2), move_mount(2), fsopen(2), fsconfig(2), fsmount(2), mount_setattr(2), pivot_root(2).

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::{Errno, check};

/// Attributes of a mount (`MOUNT_ATTR_*`, mount_setattr(2)).
pub mod attr {
    /// No writes.
    pub const RDONLY: u64 = 0x1;
    /// Set-user-ID bits mean nothing.
    pub const NOSUID: u64 = 0x2;
    /// Device nodes cannot be opened.
    pub const NODEV: u64 = 0x4;
    /// Nothing can be executed.
    pub const NOEXEC: u64 = 0x8;
    /// The bits that say how access times are kept: one of the three values below, cleared as a whole before one is set.
    pub const ATIME: u64 = 0x70;
    /// Access times are kept when they are older than the last change; the default.
    pub const RELATIME: u64 = 0x00;
    /// Access times are not kept.
    pub const NOATIME: u64 = 0x10;
    /// Access times are always kept.
    pub const STRICTATIME: u64 = 0x20;
    /// Access times of directories are not kept.
    pub const NODIRATIME: u64 = 0x80;
    /// Symbolic links are not followed.
    pub const NOSYMFOLLOW: u64 = 0x0020_0000;
    /// Ids are translated through a user namespace.
    pub const IDMAP: u64 = 0x0010_0000;
}

#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// What becomes of a mount (mount_setattr(2)).
#[derive(Clone, Copy, Debug, Default)]
pub struct Change<'a> {
    /// Attributes to set.
    pub set: u64,
    /// Attributes to clear, before the others are set.
    pub clear: u64,
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE` or nothing.
    pub propagation: u64,
    /// The user namespace through which owners are translated.
    pub userns: Option<BorrowedFd<'a>>,
}

impl Change<'_> {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.set == 0 && self.clear == 0 && self.propagation == 0 && self.userns.is_none()
    }
}

/// `OPEN_TREE_CLONE`, with `AT_RECURSIVE`.
const CLONE_FLAGS: i32 = 1 | libc::O_CLOEXEC | libc::AT_EMPTY_PATH | 0x8000;

fn fresh(result: Result<libc::c_long, Errno>) -> Result<OwnedFd, Errno> {
    // SAFETY: on success the kernel returned a descriptor that nobody else owns.
    result.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A detached copy of the mount tree at `path` under `dir`, submounts included (open_tree(2)).
/// With an empty `path` the copy is of `dir` itself.
pub fn clone_tree(dir: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, Errno> {
    // SAFETY: `path` is NUL-terminated and outlives the call.
    fresh(check(unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), CLONE_FLAGS) }))
}

/// A detached copy of the mount at `path` under `dir` without its submounts (open_tree(2)).
pub fn clone_mount(dir: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, Errno> {
    let flags = CLONE_FLAGS & !0x8000;
    // SAFETY: `path` is NUL-terminated and outlives the call.
    fresh(check(unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), flags) }))
}

/// A detached copy of the mount tree at `path` under `dir`, submounts included, all with the attributes `set`: in one call where the kernel has
/// open_tree_attr(2) (6.15), otherwise in two.
///
/// Private: a copy of a shared mount is its peer (mount_namespaces(7)), and what is mounted on the copy would appear on the original.
pub fn clone_tree_with(dir: BorrowedFd<'_>, path: &CStr, set: u64) -> Result<OwnedFd, Errno> {
    const OPEN_TREE_ATTR: libc::c_long = 467;
    let attributes = MountAttr { attr_set: set, propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    // SAFETY: `path` is NUL-terminated, `attributes` a valid mount_attr of the stated size; both outlive the call.
    let tree = fresh(check(unsafe {
        libc::syscall(
            OPEN_TREE_ATTR,
            dir.as_raw_fd(),
            path.as_ptr(),
            CLONE_FLAGS,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    }));
    match tree {
        // EPERM: a container's system call filter that does not know the call; the two older ones then tell the truth.
        Err(Errno::ENOSYS | Errno::EPERM) => {
            let tree = clone_tree(dir, path)?;
            mount_setattr(tree.as_fd(), attributes, true)?;
            Ok(tree)
        }
        other => other,
    }
}

/// Attaches a detached tree at `path` under `dir` (move_mount(2)). Links at the end of `path` are not followed.
pub fn attach(tree: BorrowedFd<'_>, dir: BorrowedFd<'_>, path: &CStr) -> Result<(), Errno> {
    const FROM_EMPTY: u32 = 0x4;
    const TO_EMPTY: u32 = 0x40;
    let flags = if path.is_empty() { FROM_EMPTY | TO_EMPTY } else { FROM_EMPTY };
    // SAFETY: both paths are NUL-terminated and outlive the call.
    check(unsafe {
        libc::syscall(libc::SYS_move_mount, tree.as_raw_fd(), c"".as_ptr(), dir.as_raw_fd(), path.as_ptr(), flags)
    })
    .map(drop)
}

/// Sets attributes of the mount behind `tree`, of its submounts too when `recursive` (mount_setattr(2)).
pub fn set_attributes(tree: BorrowedFd<'_>, set: u64, recursive: bool) -> Result<(), Errno> {
    mount_setattr(tree, MountAttr { attr_set: set, ..MountAttr::default() }, recursive)
}

/// Changes the mount behind `tree`, its submounts too when `recursive` (mount_setattr(2)).
pub fn change(tree: BorrowedFd<'_>, change: Change<'_>, recursive: bool) -> Result<(), Errno> {
    change_at(tree, c"", change, recursive)
}

/// The same for the mount at `path` under `dir`.
pub fn change_at(dir: BorrowedFd<'_>, path: &CStr, change: Change<'_>, recursive: bool) -> Result<(), Errno> {
    let (attr_set, userns_fd) = match change.userns {
        Some(userns) => (change.set | attr::IDMAP, userns.as_raw_fd() as u64),
        None => (change.set, 0),
    };
    let attributes = MountAttr { attr_set, attr_clr: change.clear, propagation: change.propagation, userns_fd };
    mount_setattr_at(dir, path, attributes, recursive)
}

/// Translates the owners of files of a detached tree through `userns` (mount_setattr(2), `MOUNT_ATTR_IDMAP`).
pub fn set_idmap(tree: BorrowedFd<'_>, userns: BorrowedFd<'_>) -> Result<(), Errno> {
    let attributes = MountAttr { attr_set: attr::IDMAP, userns_fd: userns.as_raw_fd() as u64, ..MountAttr::default() };
    mount_setattr(tree, attributes, false)
}

/// Cuts every mount below `path` off from what is mounted elsewhere (`MS_PRIVATE`, mount_namespaces(7)).
pub fn make_private(path: &CStr) -> Result<(), Errno> {
    let attributes = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    mount_setattr_at(crate::fs::cwd(), path, attributes, true)
}

fn mount_setattr(tree: BorrowedFd<'_>, attributes: MountAttr, recursive: bool) -> Result<(), Errno> {
    mount_setattr_at(tree, c"", attributes, recursive)
}

fn mount_setattr_at(dir: BorrowedFd<'_>, path: &CStr, attributes: MountAttr, recursive: bool) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH | if recursive { 0x8000 } else { 0 };
    // SAFETY: `path` is NUL-terminated, `attributes` a valid mount_attr of the stated size; both outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// Creates a file system and returns its detached mount (fsopen(2), fsconfig(2), fsmount(2)).
/// An option with an empty value is a flag.
///
/// The context stays open: the init closes all that building the root opened in one call, instead of one call for each.
pub fn new_filesystem(kind: &CStr, options: &[(&CStr, &CStr)], attributes: u64) -> Result<OwnedFd, Errno> {
    // SAFETY: `kind` is NUL-terminated and outlives the call.
    let context = fresh(check(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), 1) }))?; // FSOPEN_CLOEXEC
    for (key, value) in options {
        fsconfig(&context, key, value)?;
    }
    // SAFETY: FSCONFIG_CMD_CREATE takes no key and no value.
    check(unsafe {
        libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), 6, std::ptr::null::<u8>(), std::ptr::null::<u8>(), 0)
    })?;
    // SAFETY: no pointers.
    let mount = fresh(check(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1, attributes) }))?; // FSMOUNT_CLOEXEC
    std::mem::forget(context);
    Ok(mount)
}

/// Creates a file system and mounts it at `path`, seen from the working directory, in one call (mount(2)); for places where nobody but the caller can have
/// put a link. Options and attributes as for [`new_filesystem`].
pub fn new_filesystem_at(kind: &CStr, options: &[(&CStr, &CStr)], attributes: u64, path: &CStr) -> Result<(), Errno> {
    let mut data = Vec::with_capacity(64);
    for (key, value) in options {
        data.extend_from_slice(key.to_bytes());
        if !value.is_empty() {
            data.push(b'=');
            data.extend_from_slice(value.to_bytes());
        }
        data.push(b',');
    }
    data.pop();
    let data = std::ffi::CString::new(data).map_err(|_| Errno::EINVAL)?;
    let pairs = [
        (attr::RDONLY, libc::MS_RDONLY),
        (attr::NOSUID, libc::MS_NOSUID),
        (attr::NODEV, libc::MS_NODEV),
        (attr::NOEXEC, libc::MS_NOEXEC),
    ];
    if attributes & !pairs.iter().fold(0, |all, (known, _)| all | known) != 0 {
        return Err(Errno::EINVAL);
    }
    let flags = pairs.iter().filter(|(known, _)| attributes & known != 0).fold(0, |flags, (_, flag)| flags | flag);
    // SAFETY: every string is NUL-terminated and outlives the call.
    check(unsafe { libc::mount(kind.as_ptr(), path.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) }.into())
        .map(drop)
}

/// Shows what stands at `source` at `path` too, seen from the working directory (mount(2), `MS_BIND`); for places as above.
pub fn bind_at(source: &CStr, path: &CStr) -> Result<(), Errno> {
    let flags = libc::MS_BIND | libc::MS_REC;
    let none = std::ptr::null();
    // SAFETY: both paths are NUL-terminated and outlive the call; a bind takes no kind and no data.
    check(unsafe { libc::mount(source.as_ptr(), path.as_ptr(), none, flags, none.cast()) }.into()).map(drop)
}

fn fsconfig(context: &OwnedFd, key: &CStr, value: &CStr) -> Result<(), Errno> {
    let (command, value) = if value.is_empty() { (0, std::ptr::null()) } else { (1, value.as_ptr()) };
    // SAFETY: key and value are NUL-terminated and outlive the call; FSCONFIG_SET_FLAG (0) takes no value.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key.as_ptr(), value, 0) }).map(drop)
}

/// Makes the working directory the root, with the old root stacked on top of it (pivot_root(2) with `.` twice).
pub fn pivot_here() -> Result<(), Errno> {
    // SAFETY: both paths are NUL-terminated literals.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) }).map(drop)
}

/// Detaches the topmost mount at the working directory (umount2(2), `MNT_DETACH`).
pub fn detach_here() -> Result<(), Errno> {
    // SAFETY: the path is a NUL-terminated literal.
    check(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) }.into()).map(drop)
}

//! Devices and the links of /dev.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use apex_sys::mount::{self, attr};
use apex_sys::{Errno, fs};
use nix::fcntl::AtFlags;
use nix::libc;
use nix::sys::stat::{Mode, SFlag, fstat, mknodat};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};

use super::nodes::Nodes;
use super::place::{self, Kind};
use super::{Options, Rootfs, RootfsError, binds, clean};

/// Every program may expect these: name, major and minor number.
const DEFAULTS: [(&str, u64, u64); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&CStr, &CStr); 4] = [
    (c"fd", c"/proc/self/fd"),
    (c"stdin", c"/proc/self/fd/0"),
    (c"stdout", c"/proc/self/fd/1"),
    (c"stderr", c"/proc/self/fd/2"),
];

/// A device node as it is to be.
pub(super) struct Node {
    pub(super) path: PathBuf,
    pub(super) kind: SFlag,
    number: u64,
    mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Rootfs<'_> {
    /// Devices and links, unless the container has the /dev of the host. Those that were made outside come from there.
    pub(super) fn devices(&self, made: Option<Nodes>) -> Result<(), RootfsError> {
        if self.has_foreign_dev() {
            return Ok(());
        }
        let devices = self.context.spec.linux().as_ref().and_then(|linux| linux.devices().as_deref());
        let devices = devices.unwrap_or_default();
        let nodes: Vec<_> = devices.iter().map(Node::of).collect();
        let failed = |source| RootfsError::Device { path: "/dev".into(), source };
        let dev = place::make(self.root(), Path::new("/dev"), Kind::Dir).map_err(failed)?.fd;
        let mut made = made.map_or(Ok(Vec::new()), |made| made.binds(dev.as_fd())).map_err(failed)?;
        for (path, major, minor) in DEFAULTS {
            if nodes.iter().all(|node| node.path != Path::new(path)) {
                self.device(dev.as_fd(), &Node::default_at(path, major, minor), None)?;
            }
        }
        for node in &nodes {
            let bind = made.iter().position(|(path, _)| *path == node.path).map(|at| made.swap_remove(at).1);
            self.device(dev.as_fd(), node, bind)?;
        }
        links(dev.as_fd())
    }

    fn has_foreign_dev(&self) -> bool {
        if !self.context.mount_namespace {
            return true;
        }
        let last = self.context.mounts().iter().rfind(|mount| clean(mount.destination()) == Path::new("/dev"));
        last.is_some_and(|mount| binds::is_bind(mount, &Options::parse(mount.options().as_deref().unwrap_or_default())))
    }

    /// `dev` is the container's /dev, where most of them are; `bind` the node, if it was made outside.
    fn device(&self, dev: BorrowedFd<'_>, node: &Node, bind: Option<OwnedFd>) -> Result<(), RootfsError> {
        let failed = |source| RootfsError::Device { path: node.path.clone(), source };
        if let (Some(dir), Some(name)) = (node.path.parent(), node.path.file_name())
            && dir == Path::new("/dev")
        {
            let name = CString::new(name.as_bytes()).map_err(|_| RootfsError::Nul(node.path.clone()))?;
            return self.device_in(dev, &name, node, bind);
        }
        let (dir, name) = place::parent(self.root(), &node.path).map_err(failed)?;
        self.device_in(dir.as_fd(), &name, node, bind)
    }

    fn device_in(
        &self,
        dir: BorrowedFd<'_>,
        name: &CString,
        node: &Node,
        bind: Option<OwnedFd>,
    ) -> Result<(), RootfsError> {
        let failed = |source| RootfsError::Device { path: node.path.clone(), source };
        if let Some(tree) = bind {
            let place = place_of_device(dir, name).map_err(failed)?;
            return mount::attach(tree.as_fd(), place.as_fd(), c"").map_err(failed);
        }
        if !self.context.user_namespace {
            match node.make(dir, name) {
                // Some file systems, and some confinements of who starts the container, know no devices.
                Err(Errno::EPERM) => {}
                other => return other.map_err(failed),
            }
        }
        self.device_of_host(node, dir, name)
    }

    /// A user namespace can make no devices that work: the host's own node is shown, when it is the one asked for.
    fn device_of_host(&self, node: &Node, dir: BorrowedFd<'_>, name: &CString) -> Result<(), RootfsError> {
        let failed = |source| RootfsError::Device { path: node.path.clone(), source };
        if node.kind == SFlag::S_IFIFO {
            return node.make(dir, name).map_err(failed);
        }
        let tree = host_device(&node.path, node.kind, node.number)?;
        let place = place_of_device(dir, name).map_err(failed)?;
        mount::attach(tree.as_fd(), place.as_fd(), c"").map_err(failed)
    }
}

fn links(dev: BorrowedFd<'_>) -> Result<(), RootfsError> {
    for (name, target) in LINKS {
        link(dev, name, target, false)?;
    }
    // Where the kernel has no /proc/kcore the link would lead nowhere.
    if fs::stat_followed(c"/proc/kcore").is_ok() {
        link(dev, c"core", c"/proc/kcore", false)?;
    }
    link(dev, c"ptmx", c"pts/ptmx", true)
}

fn link(dev: BorrowedFd<'_>, name: &CStr, target: &CStr, replace: bool) -> Result<(), RootfsError> {
    let made = match fs::symlink(target, dev, name) {
        Err(Errno::EEXIST) if replace => fs::unlink(dev, name).and_then(|()| fs::symlink(target, dev, name)),
        Err(Errno::EEXIST) => Ok(()),
        other => other,
    };
    made.map_err(|source| RootfsError::Link { path: Path::new("/dev").join(name.to_string_lossy().as_ref()), source })
}

impl Node {
    pub(super) fn of(device: &LinuxDevice) -> Node {
        let kind = match device.typ() {
            LinuxDeviceType::B => SFlag::S_IFBLK,
            LinuxDeviceType::P => SFlag::S_IFIFO,
            LinuxDeviceType::C | LinuxDeviceType::U | LinuxDeviceType::A => SFlag::S_IFCHR,
        };
        let number = if kind == SFlag::S_IFIFO {
            0
        } else {
            libc::makedev(device.major().cast_unsigned() as u32, device.minor().cast_unsigned() as u32)
        };
        Node {
            path: clean(device.path()),
            kind,
            number,
            mode: device.file_mode().unwrap_or(0o666) & 0o7777,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
        }
    }

    pub(super) fn owned_by(self, uid: u32, gid: u32) -> Node {
        Node { uid, gid, ..self }
    }

    fn default_at(path: &str, major: u64, minor: u64) -> Node {
        let number = libc::makedev(major as u32, minor as u32);
        Node { path: path.into(), kind: SFlag::S_IFCHR, number, mode: 0o666, uid: 0, gid: 0 }
    }

    /// Makes the node. The right one that is there already stays; anything else makes room, a link too: it would lead writers astray.
    pub(super) fn make(&self, dir: BorrowedFd<'_>, name: &CString) -> Result<(), Errno> {
        let mode = Mode::from_bits_truncate(self.mode);
        let make = || mknodat(dir, name.as_c_str(), self.kind, mode, self.number);
        match make() {
            Err(Errno::EEXIST) => {
                let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
                let stat = nix::sys::stat::fstatat(dir, name.as_c_str(), flags)?;
                if is_device(&stat, self.kind, self.number) {
                    return Ok(());
                }
                fs::unlink(dir, name)?;
                make()?;
            }
            other => other?,
        }
        if (self.uid, self.gid) == (0, 0) {
            return Ok(());
        }
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        nix::unistd::fchownat(dir, name.as_c_str(), Some(self.uid.into()), Some(self.gid.into()), flags)?;
        // A change of the owner takes set-user-ID bits away.
        if self.mode & 0o6000 == 0 {
            return Ok(());
        }
        let held = fs::open(dir, name, libc::O_PATH, fs::resolve::BENEATH | fs::resolve::NO_SYMLINKS)?;
        fs::chmod(fs::cwd(), &fs::own_name(held.as_fd()), self.mode)
    }
}

/// A file for the host's node to be mounted upon; never a link.
fn place_of_device(dir: BorrowedFd<'_>, name: &CString) -> Result<OwnedFd, Errno> {
    match fs::mkfile(dir, name, 0o666) {
        Err(Errno::EEXIST) if fs::stat(dir, name)?.is(libc::S_IFLNK) => {
            fs::unlink(dir, name)?;
            fs::mkfile(dir, name, 0o666)?;
        }
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno),
    }
    // With O_NOFOLLOW a link would be opened itself (openat2(2)).
    fs::open(dir, name, libc::O_PATH, fs::resolve::BENEATH | fs::resolve::NO_SYMLINKS)
}

fn is_device(stat: &libc::stat, kind: SFlag, number: u64) -> bool {
    stat.st_mode & libc::S_IFMT == kind.bits() && (kind == SFlag::S_IFIFO || stat.st_rdev == number)
}

/// A detached bind of a device of the host, when it is the one that is meant.
fn host_device(path: &Path, kind: SFlag, number: u64) -> Result<OwnedFd, RootfsError> {
    let failed = |source| RootfsError::Device { path: path.to_owned(), source };
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| RootfsError::Nul(path.to_owned()))?;
    let held = fs::open(fs::cwd(), &name, libc::O_PATH, 0).map_err(failed)?;
    let stat = fstat(&held).map_err(failed)?;
    if !is_device(&stat, kind, number) {
        let (major, minor) = (libc::major(number).into(), libc::minor(number).into());
        return Err(RootfsError::WrongDevice { path: path.to_owned(), major, minor });
    }
    mount::clone_mount(held.as_fd(), c"").map_err(failed)
}

/// The host's null device: for masks, which must never be a file that somebody put in its place. Read-only, which a device is written through all the same,
/// but its mode and owner are not: they are the host's.
pub(super) fn host_null() -> Result<OwnedFd, RootfsError> {
    let path = Path::new("/dev/null");
    let null = host_device(path, SFlag::S_IFCHR, libc::makedev(1, 3))?;
    let set = attr::RDONLY | attr::NOSUID | attr::NOEXEC;
    let change = mount::Change { set, propagation: libc::MS_PRIVATE, ..mount::Change::default() };
    mount::change(null.as_fd(), change, false)
        .map_err(|source| RootfsError::Device { path: path.to_owned(), source })?;
    Ok(null)
}

//! Devices and the links of /dev.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use apex_sys::mount;
use apex_sys::{Errno, fs};
use nix::fcntl::AtFlags;
use nix::libc;
use nix::sys::stat::{Mode, SFlag, fstat, mknodat};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};

use super::{Options, Rootfs, RootfsError, binds, clean, place};

/// Every program may expect these: name, major and minor number.
const DEFAULTS: [(&str, u64, u64); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// A device node as it is to be.
struct Node {
    path: PathBuf,
    kind: SFlag,
    number: u64,
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Rootfs<'_> {
    /// Devices and links, unless the container has the /dev of the host.
    pub(super) fn devices(&self) -> Result<(), RootfsError> {
        if self.has_foreign_dev() {
            return Ok(());
        }
        let devices = self.context.spec.linux().as_ref().and_then(|linux| linux.devices().as_deref());
        let devices = devices.unwrap_or_default();
        let nodes: Vec<_> = devices.iter().map(Node::of).collect();
        for (path, major, minor) in DEFAULTS {
            if nodes.iter().all(|node| node.path != Path::new(path)) {
                self.device(&Node::default_at(path, major, minor))?;
            }
        }
        for node in &nodes {
            self.device(node)?;
        }
        self.links()
    }

    fn has_foreign_dev(&self) -> bool {
        if !self.context.mount_namespace {
            return true;
        }
        let last = self.context.mounts().iter().rfind(|mount| clean(mount.destination()) == Path::new("/dev"));
        last.is_some_and(|mount| binds::is_bind(mount, &Options::parse(mount.options().as_deref().unwrap_or_default())))
    }

    fn device(&self, node: &Node) -> Result<(), RootfsError> {
        let failed = |source| RootfsError::Device { path: node.path.clone(), source };
        let (dir, name) = place::parent(self.root(), &node.path).map_err(failed)?;
        if !self.context.user_namespace {
            match node.make(dir.as_fd(), &name) {
                // Some file systems, and some confinements of who starts the container, know no devices.
                Err(Errno::EPERM) => {}
                other => return other.map_err(failed),
            }
        }
        self.device_of_host(node, dir.as_fd(), &name)
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

    fn links(&self) -> Result<(), RootfsError> {
        for (path, target) in LINKS {
            self.link(path, target, false)?;
        }
        // Where the kernel has no /proc/kcore the link would lead nowhere.
        if fs::stat_followed(c"/proc/kcore").is_ok() {
            self.link("/dev/core", "/proc/kcore", false)?;
        }
        self.link("/dev/ptmx", "pts/ptmx", true)
    }

    fn link(&self, path: &str, target: &str, replace: bool) -> Result<(), RootfsError> {
        let failed = |source| RootfsError::Link { path: path.into(), source };
        let target = CString::new(target).map_err(|_| failed(Errno::EINVAL))?;
        let (dir, name) = place::parent(self.root(), Path::new(path)).map_err(failed)?;
        match fs::symlink(&target, dir.as_fd(), &name) {
            Err(Errno::EEXIST) if replace => {
                fs::unlink(dir.as_fd(), &name).map_err(failed)?;
                fs::symlink(&target, dir.as_fd(), &name).map_err(failed)
            }
            Err(Errno::EEXIST) => Ok(()),
            other => other.map_err(failed),
        }
    }
}

impl Node {
    fn of(device: &LinuxDevice) -> Node {
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

    fn default_at(path: &str, major: u64, minor: u64) -> Node {
        let number = libc::makedev(major as u32, minor as u32);
        Node { path: path.into(), kind: SFlag::S_IFCHR, number, mode: 0o666, uid: 0, gid: 0 }
    }

    /// Makes the node. The right one that is there already stays; anything else makes room, a link too: it would lead writers astray.
    fn make(&self, dir: BorrowedFd<'_>, name: &CString) -> Result<(), Errno> {
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

/// The host's null device: for masks, which must never be a file that somebody put in its place.
pub(super) fn host_null() -> Result<OwnedFd, RootfsError> {
    host_device(Path::new("/dev/null"), SFlag::S_IFCHR, libc::makedev(1, 3))
}

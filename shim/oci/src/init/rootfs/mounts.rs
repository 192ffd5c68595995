//! The mounts of the configuration, one after another.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use apex_sys::mount::{self, attr};
use apex_sys::{Errno, fs};
use nix::libc;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use oci_spec::runtime::{LinuxNamespaceType, Mount};

use super::place::{self, Kind, Place};
use super::{Options, Rootfs, RootfsError, binds, clean, copy, has_namespace};

/// The number of the root of every proc file system.
const PROC_ROOT_INODE: u64 = 1;

/// Files below /proc that may be mounted over: they count for the whole machine, and the container is to see its own share (lxcfs does that).
const PROC_OPEN: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];

/// The kernel takes no longer value of an option by fsconfig(2).
const VALUE_BYTES_MAX: usize = 255;

/// One mount of the configuration.
pub(super) struct Request<'m> {
    pub mount: &'m Mount,
    pub options: Options,
    /// The type, `bind` for binds.
    pub kind: &'m str,
}

impl<'m> Request<'m> {
    fn of(mount: &'m Mount) -> Result<Self, RootfsError> {
        let options = Options::parse(mount.options().as_deref().unwrap_or_default());
        let kind = match mount.typ().as_deref() {
            _ if binds::is_bind(mount, &options) => "bind",
            Some(kind) if !kind.is_empty() => kind,
            _ if options.remount => "none",
            _ => return Err(RootfsError::NoType(mount.destination().clone())),
        };
        Ok(Request { mount, options, kind })
    }

    pub fn destination(&self) -> &'m Path {
        self.mount.destination()
    }

    /// The name that the mount has in /proc/self/mountinfo.
    fn source(&self) -> &'m OsStr {
        self.mount.source().as_ref().map_or(OsStr::new(self.kind), |source| source.as_os_str())
    }

    pub fn attach_error(&self) -> impl Fn(Errno) -> RootfsError {
        let (kind, destination) = (self.kind.to_owned(), self.destination().to_owned());
        move |source| RootfsError::Attach { kind: kind.clone(), destination: destination.clone(), source }
    }

    pub fn place_error(&self) -> impl Fn(Errno) -> RootfsError {
        let path = self.destination().to_owned();
        move |source| RootfsError::Place { path: path.clone(), source }
    }
}

impl Rootfs<'_> {
    /// Mounts one; `tree` is its source when it was taken outside.
    pub(super) fn mount(&mut self, mount: &Mount, tree: Option<OwnedFd>) -> Result<(), RootfsError> {
        if !self.context.mount_namespace {
            return Err(RootfsError::NoMountNamespace(mount.destination().clone()));
        }
        let request = Request::of(mount)?;
        if request.options.remount {
            return self.remount(&request);
        }
        match request.kind {
            "bind" => self.bind(&request, tree),
            "cgroup" | "cgroup2" => self.mount_cgroup(&request),
            "proc" | "sysfs" => self.mount_system(&request),
            _ => self.mount_new(&request),
        }
    }

    fn bind(&mut self, request: &Request<'_>, tree: Option<OwnedFd>) -> Result<(), RootfsError> {
        let tree = match tree {
            Some(tree) => tree,
            None => {
                let tree = binds::take(request.mount, &request.options, self.context.bundle)?;
                binds::set_attributes(tree.as_fd(), request.mount, &request.options)?;
                tree
            }
        };
        let stat = fs::stat(tree.as_fd(), c"").map_err(request.place_error())?;
        let kind = if stat.is(libc::S_IFDIR) { Kind::Dir } else { Kind::File };
        let place = place::make(self.root(), request.destination(), kind).map_err(request.place_error())?;
        self.attach(request, &tree, &place)?;
        self.relabel(request, tree.as_fd())
    }

    /// proc and sysfs: on an ordinary directory only, or a link in the image could put another's files where the container's labels are written.
    fn mount_system(&mut self, request: &Request<'_>) -> Result<(), RootfsError> {
        let place = self.ordinary_dir(request)?;
        let tree = match self.create(request, None) {
            Err(RootfsError::Create { source: Errno::EPERM, .. }) if self.context.user_namespace => {
                let tree = self.host_system(request)?;
                return self.attach(request, &tree, &place);
            }
            other => other?,
        };
        self.attach(request, &tree, &place)?;
        // A proc that shows a part only, or cannot be written, is of no use to who sets the container up.
        if request.kind == "proc" && request.mount.options().as_ref().is_none_or(|options| !limits_proc(options)) {
            self.proc = Some(tree);
        }
        Ok(())
    }

    fn ordinary_dir(&self, request: &Request<'_>) -> Result<Place, RootfsError> {
        let path = request.destination();
        let not_ordinary = || RootfsError::NotOrdinary(path.to_owned(), request.kind.to_owned());
        let opened = match place::open_plain(self.root(), path) {
            Err(Errno::ENOENT) => {
                place::make(self.root(), path, Kind::Dir).map_err(request.place_error())?;
                place::open_plain(self.root(), path)
            }
            other => other,
        };
        let fd = match opened {
            Err(Errno::ELOOP | Errno::ENOTDIR) => return Err(not_ordinary()),
            other => other.map_err(request.place_error())?,
        };
        let stat = fs::stat(fd.as_fd(), c"").map_err(request.place_error())?;
        if stat.is(libc::S_IFDIR) { Ok(Place { fd, made: false }) } else { Err(not_ordinary()) }
    }

    /// In a user namespace a sysfs needs a network namespace of its own, and a proc a pid namespace; without them the container shows the host's, which is what
    /// its processes may see anyway.
    fn host_system(&self, request: &Request<'_>) -> Result<OwnedFd, RootfsError> {
        let (path, needed) = match request.kind {
            "sysfs" => (c"/sys", LinuxNamespaceType::Network),
            _ => (c"/proc", LinuxNamespaceType::Pid),
        };
        if request.kind == "proc" && has_namespace(self.context.spec, needed) {
            // The host's would show processes that are not the container's.
            return Err(request.attach_error()(Errno::EPERM));
        }
        let tree = mount::clone_tree(fs::cwd(), path).map_err(request.attach_error())?;
        binds::set_attributes(tree.as_fd(), request.mount, &request.options)?;
        Ok(tree)
    }

    fn mount_new(&mut self, request: &Request<'_>) -> Result<(), RootfsError> {
        let place = place::make(self.root(), request.destination(), Kind::Dir).map_err(request.place_error())?;
        let is_long = |word: &String| word.split_once('=').is_some_and(|(_, value)| value.len() > VALUE_BYTES_MAX);
        if request.options.data.iter().any(is_long) {
            return self.mount_long(request, &place);
        }
        let tree = self.create(request, Some(&place))?;
        if request.options.copy_up {
            copy::contents(place.fd.as_fd(), tree.as_fd())
                .map_err(|source| RootfsError::CopyUp { destination: request.destination().to_owned(), source })?;
        }
        self.attach(request, &tree, &place)?;
        if request.kind == "mqueue" {
            self.relabel(request, tree.as_fd())?;
        }
        if request.kind == "tmpfs" && request.options.is_readonly() {
            self.readonly_later.push((request.destination().to_owned(), tree));
        }
        Ok(())
    }

    /// Creates a file system, detached. What it covers says how it is to look.
    fn create(&self, request: &Request<'_>, place: Option<&Place>) -> Result<OwnedFd, RootfsError> {
        let options = &request.options;
        let mut words = self.words(request, place)?;
        let mut attributes = options.own.set | options.all.set;
        if request.kind == "tmpfs" {
            attributes &= !attr::RDONLY;
        } else if options.is_readonly() && is_stored(request.kind) {
            words.push(("ro".into(), String::new()));
        }
        loop {
            let error = match new_filesystem(request, &words, attributes) {
                Ok(tree) => return Ok(tree),
                Err(error) => error,
            };
            // A group that the user namespace does not have cannot own terminals.
            let group = words.iter().position(|(key, _)| key == "gid");
            match group.filter(|_| error == Errno::EINVAL && request.kind == "devpts" && self.context.user_namespace) {
                Some(index) => drop(words.remove(index)),
                None => return Err(create_error(request, &words, error)),
            }
        }
    }

    /// The options of the file system, as key and value.
    fn words(&self, request: &Request<'_>, place: Option<&Place>) -> Result<Vec<(String, String)>, RootfsError> {
        let options = &request.options;
        let mut words: Vec<_> = options.flags.iter().map(|(key, _)| ((*key).to_owned(), String::new())).collect();
        for word in options.data.iter().flat_map(|word| split_data(word)) {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            words.push((key.to_owned(), value.trim_matches('"').to_owned()));
        }
        if request.kind == "tmpfs"
            && words.iter().all(|(key, _)| key != "mode")
            && let Some(place) = place.filter(|place| !place.made)
        {
            // The directory looks as it did.
            let stat = fs::stat(place.fd.as_fd(), c"").map_err(request.place_error())?;
            words.push(("mode".into(), format!("{:04o}", stat.mode & 0o7777)));
        }
        if let Some(label) = self.label().filter(|_| takes_label(request.kind)) {
            words.push(("context".into(), label.to_owned()));
        }
        Ok(words)
    }

    /// `linux.mountLabel`, when there is one.
    pub(super) fn label(&self) -> Option<&str> {
        let linux = self.context.spec.linux().as_ref()?;
        linux.mount_label().as_deref().filter(|label| !label.is_empty())
    }

    /// Options that are too long for fsconfig(2), as those of an overlay of many layers are, go by mount(2). The place is still the one that is held.
    fn mount_long(&mut self, request: &Request<'_>, place: &Place) -> Result<(), RootfsError> {
        self.check_proc(request, place.fd.as_fd(), None)?;
        let words = self.words(request, Some(place))?;
        mount_by_name(request, &words, place.fd.as_fd(), 0).map_err(|source| create_error(request, &words, source))?;
        let top = place::open(self.root(), request.destination()).map_err(request.place_error())?;
        binds::set_attributes(top.as_fd(), request.mount, &request.options)?;
        binds::set_propagation(top.as_fd(), request.mount, &request.options)
    }

    /// Changes what is mounted at the destination.
    fn remount(&mut self, request: &Request<'_>) -> Result<(), RootfsError> {
        let top = place::open(self.root(), request.destination()).map_err(request.place_error())?;
        self.check_proc_options(request)?;
        if request.kind != "bind" {
            let words = self.words(request, None)?;
            mount_by_name(request, &words, top.as_fd(), libc::MS_REMOUNT)
                .map_err(|source| create_error(request, &words, source))?;
        }
        binds::set_attributes(top.as_fd(), request.mount, &request.options)?;
        binds::set_propagation(top.as_fd(), request.mount, &request.options)
    }

    /// What is mounted at /proc stays a proc file system that can be changed by nobody but by mounts of the type.
    fn check_proc_options(&self, request: &Request<'_>) -> Result<(), RootfsError> {
        let path = clean(request.destination());
        if path.starts_with("/proc") && path != Path::new("/proc") {
            return Err(RootfsError::InsideProc(request.destination().to_owned()));
        }
        Ok(())
    }

    /// Puts a tree at its place, then sets its propagation.
    pub(super) fn attach(&mut self, request: &Request<'_>, tree: &OwnedFd, place: &Place) -> Result<(), RootfsError> {
        self.check_proc(request, place.fd.as_fd(), Some(tree.as_fd()))?;
        mount::attach(tree.as_fd(), place.fd.as_fd(), c"").map_err(request.attach_error())?;
        binds::set_propagation(tree.as_fd(), request.mount, &request.options)?;
        if clean(request.destination()) == Path::new("/") {
            self.root = tree.try_clone().map_err(|_| request.attach_error()(Errno::EMFILE))?;
        }
        Ok(())
    }

    /// Refuses what would let something else stand for the truth about processes. The held place is asked, not its name alone.
    fn check_proc(
        &self,
        request: &Request<'_>,
        place: BorrowedFd<'_>,
        tree: Option<BorrowedFd<'_>>,
    ) -> Result<(), RootfsError> {
        let path = clean(request.destination());
        let refused = || Err(RootfsError::InsideProc(request.destination().to_owned()));
        if path == Path::new("/proc") {
            let is_proc = match tree {
                Some(tree) => is_proc(tree).map_err(request.place_error())?,
                None => request.kind == "proc",
            };
            let is_root = match tree {
                Some(tree) => fs::stat(tree, c"").map_err(request.place_error())?.inode == PROC_ROOT_INODE,
                None => true,
            };
            let not_proc = || Err(RootfsError::NotProc(request.destination().to_owned()));
            return if is_proc && is_root { Ok(()) } else { not_proc() };
        }
        let is_below = path.starts_with("/proc");
        if !is_below && !is_proc(place).map_err(request.place_error())? {
            return Ok(());
        }
        if PROC_OPEN.iter().any(|open| path == Path::new(open)) { Ok(()) } else { refused() }
    }

    /// Labels the top of a mount that takes no option for it.
    fn relabel(&self, request: &Request<'_>, tree: BorrowedFd<'_>) -> Result<(), RootfsError> {
        let Some(label) = self.label().filter(|_| request.kind == "mqueue") else { return Ok(()) };
        let labelled = fs::open(tree, c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)
            .and_then(|dir| fs::set_attribute(dir.as_fd(), c"security.selinux", label.as_bytes()));
        labelled.map_err(request.attach_error())
    }
}

/// Whether a descriptor lies in a proc file system.
pub(super) fn is_proc(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(fstatfs(fd)?.filesystem_type() == PROC_SUPER_MAGIC)
}

/// Several options may stand in one word, as mount(2) takes them all in one; a comma in quotation marks or behind a backslash belongs to its value.
fn split_data(word: &str) -> Vec<&str> {
    let (mut parts, mut start) = (Vec::new(), 0);
    let (mut quoted, mut escaped) = (false, false);
    for (index, byte) in word.bytes().enumerate() {
        match byte {
            b',' if !quoted && !escaped => {
                parts.push(&word[start..index]);
                start = index + 1;
            }
            b'"' if !escaped => quoted = !quoted,
            _ => {}
        }
        escaped = byte == b'\\' && !escaped;
    }
    parts.push(&word[start..]);
    parts.retain(|part| !part.is_empty());
    parts
}

fn limits_proc(options: &[String]) -> bool {
    options.iter().any(|word| matches!(word.as_str(), "ro" | "rro") || word.starts_with("subset="))
}

/// File systems that only the kernel fills have no read-only state of their own worth setting: others may use the same.
fn is_stored(kind: &str) -> bool {
    !matches!(kind, "proc" | "sysfs" | "mqueue" | "devpts" | "cgroup" | "cgroup2")
}

fn takes_label(kind: &str) -> bool {
    !matches!(kind, "proc" | "sysfs" | "mqueue" | "cgroup" | "cgroup2")
}

fn new_filesystem(request: &Request<'_>, words: &[(String, String)], attributes: u64) -> Result<OwnedFd, Errno> {
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| Errno::EINVAL);
    let kind = text(request.kind.as_bytes())?;
    let mut pairs = vec![(c"source".to_owned(), text(request.source().as_bytes())?)];
    for (key, value) in words {
        pairs.push((text(key.as_bytes())?, text(value.as_bytes())?));
    }
    let pairs: Vec<_> = pairs.iter().map(|(key, value)| (key.as_c_str(), value.as_c_str())).collect();
    mount::new_filesystem(&kind, &pairs, attributes)
}

/// mount(2) on a held place; attributes of the mount are set afterwards.
fn mount_by_name(
    request: &Request<'_>,
    words: &[(String, String)],
    place: BorrowedFd<'_>,
    flags: u64,
) -> Result<(), Errno> {
    let flags = request.options.flags.iter().fold(flags, |flags, (_, flag)| flags | flag);
    let flags = if request.options.is_readonly() && is_stored(request.kind) { flags | libc::MS_RDONLY } else { flags };
    let is_flag = |key: &str| request.options.flags.iter().any(|(known, _)| *known == key);
    let data: Vec<_> = words.iter().filter(|(key, _)| !is_flag(key)).map(word).collect();
    let name = fs::own_name(place);
    let flags = nix::mount::MsFlags::from_bits_retain(flags);
    nix::mount::mount(Some(request.source()), name.as_c_str(), Some(request.kind), flags, Some(data.join(",").as_str()))
}

fn word((key, value): &(String, String)) -> String {
    match value.as_str() {
        "" => key.clone(),
        // For mount(2), which takes them all in one.
        value if key == "context" => format!("{key}=\"{value}\""),
        value => format!("{key}={value}"),
    }
}

fn create_error(request: &Request<'_>, words: &[(String, String)], source: Errno) -> RootfsError {
    RootfsError::Create {
        kind: request.kind.to_owned(),
        destination: request.destination().to_owned(),
        options: words.iter().map(word).collect::<Vec<_>>().join(","),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_part_options_unless_they_belong_to_a_value() {
        for (word, parts) in [
            ("size=64k", &["size=64k"][..]),
            ("size=64k,mode=755", &["size=64k", "mode=755"]),
            ("context=\"a:s0:c1,c2\",uid=1", &["context=\"a:s0:c1,c2\"", "uid=1"]),
            ("lowerdir=a\\,b:c,index=off", &["lowerdir=a\\,b:c", "index=off"]),
            (",,x,", &["x"]),
        ] {
            assert_eq!(split_data(word), parts, "{word}");
        }
    }
}

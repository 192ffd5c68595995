//! What can go wrong while the container's file system is made.

use std::path::PathBuf;

use apex_sys::Errno;
use thiserror::Error;

/// A step that failed, with the object that it was about.
#[derive(Debug, Error)]
pub enum RootfsError {
    /// The configuration names no root.
    #[error("the configuration has no root.path: name the directory that is to be the container's root")]
    NoRoot,
    /// A path with a NUL byte.
    #[error("the path {0:?} holds a NUL byte: no file can have that name")]
    Nul(PathBuf),
    /// The root directory cannot be opened.
    #[error("cannot open the container's root {path:?}: see that root.path leads to a directory")]
    OpenRoot {
        /// The directory on the host.
        path: PathBuf,
        /// What the kernel says.
        source: Errno,
    },
    /// The root directory cannot be mounted onto itself.
    #[error("cannot mount the container's root {path:?} onto itself")]
    BindRoot {
        /// The directory on the host.
        path: PathBuf,
        /// What the kernel says.
        source: Errno,
    },
    /// The propagation of mounts cannot be set.
    #[error("cannot make the mount at {path:?} {propagation}")]
    Propagation {
        /// The mount.
        path: PathBuf,
        /// The propagation that was asked for.
        propagation: String,
        /// What the kernel says.
        source: Errno,
    },
    /// `linux.rootfsPropagation` has an unknown value.
    #[error(
        "linux.rootfsPropagation is {0:?}: it must be shared, slave, private or unbindable, with an r before it for all mounts below"
    )]
    UnknownPropagation(String),
    /// Without a mount namespace mounts would be the host's.
    #[error(
        "the container has no mount namespace, so {0:?} would be mounted on the host: add a mount namespace to linux.namespaces"
    )]
    NoMountNamespace(PathBuf),
    /// The mount's source cannot be had.
    #[error("cannot take {from:?} for the mount at {destination:?}")]
    Source {
        /// The source on the host.
        from: PathBuf,
        /// Where it is to stand in the container.
        destination: PathBuf,
        /// What the kernel says.
        source: Errno,
    },
    /// A bind without a source.
    #[error("the bind mount at {0:?} has no source: name the file or directory of the host that is to stand there")]
    NoSource(PathBuf),
    /// A mount without a type.
    #[error("the mount at {0:?} has neither a type nor the option bind: say what is to be mounted there")]
    NoType(PathBuf),
    /// The mount point cannot be opened or made.
    #[error("cannot open or make the mount point {path:?} in the container's root")]
    Place {
        /// The path in the container.
        path: PathBuf,
        /// What the kernel says.
        source: Errno,
    },
    /// The mount point is a link, where none may be.
    #[error("{0:?} in the container's root is a link or no directory: {1} must be mounted on ordinary directory")]
    NotOrdinary(PathBuf, String),
    /// Something else at /proc.
    #[error("{0:?} cannot be mounted because it is not of type proc: /proc tells the truth about processes")]
    NotProc(PathBuf),
    /// A mount inside /proc.
    #[error(
        "{0:?} cannot be mounted because it is inside /proc, where only some files that count for the whole machine may be"
    )]
    InsideProc(PathBuf),
    /// The file system cannot be created.
    #[error("cannot create a file system of type {kind} for {destination:?} with the options {options:?}")]
    Create {
        /// Its type.
        kind: String,
        /// Where it is to stand in the container.
        destination: PathBuf,
        /// Its options.
        options: String,
        /// What the kernel says.
        source: Errno,
    },
    /// The tree cannot be attached.
    #[error("cannot mount {kind} at {destination:?} in the container")]
    Attach {
        /// Type of the mount.
        kind: String,
        /// Where it is to stand in the container.
        destination: PathBuf,
        /// What the kernel says.
        source: Errno,
    },
    /// The attributes of a mount cannot be set.
    #[error("cannot set the options {options:?} of the mount at {destination:?}")]
    Attributes {
        /// Where it stands in the container.
        destination: PathBuf,
        /// The options of the mount.
        options: String,
        /// What the kernel says.
        source: Errno,
    },
    /// A mount with translated owners is no bind.
    #[error(
        "the mount at {0:?} has uidMappings, gidMappings or the option idmap, and is no bind mount: only those can have them"
    )]
    IdmapNotBind(PathBuf),
    /// No mapping is known.
    #[error(
        "the mount at {0:?} asks for translated owners, and neither it nor the container has both uidMappings and gidMappings"
    )]
    IdmapNoMapping(PathBuf),
    /// The mapping cannot be made.
    #[error("cannot make a user namespace with the mappings of the mount at {destination:?}")]
    IdmapNamespace {
        /// Where it is to stand in the container.
        destination: PathBuf,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// The mapping cannot be applied.
    #[error(
        "cannot translate the owners of the mount at {destination:?}: see that the file system of its source can be idmapped"
    )]
    Idmap {
        /// Where it is to stand in the container.
        destination: PathBuf,
        /// What the kernel says.
        source: Errno,
    },
    /// The content of a directory cannot be copied into the tmpfs over it.
    #[error("cannot copy what is at {destination:?} into the tmpfs over it")]
    CopyUp {
        /// Where the tmpfs is to stand in the container.
        destination: PathBuf,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// The working directory cannot be had.
    #[error("cannot change to the working directory {path:?} in the container")]
    WorkingDirectory {
        /// The path in the container.
        path: PathBuf,
        /// What the kernel says.
        source: Errno,
    },
    /// A device cannot be made.
    #[error("cannot make the device {path:?} in the container")]
    Device {
        /// The path in the container.
        path: PathBuf,
        /// What the kernel says.
        source: Errno,
    },
    /// The host's file is not the device that was asked for.
    #[error("{path:?} of the host is not the device {major}:{minor} that the container is to have")]
    WrongDevice {
        /// The path on the host.
        path: PathBuf,
        /// The number asked for.
        major: u64,
        /// The number asked for.
        minor: u64,
    },
    /// A link of /dev cannot be made.
    #[error("cannot make the link {path:?} in the container")]
    Link {
        /// The path in the container.
        path: PathBuf,
        /// What the kernel says.
        source: Errno,
    },
    /// A path cannot be masked.
    #[error("cannot mask {path:?} in the container")]
    Mask {
        /// The path in the container.
        path: PathBuf,
        /// What the kernel says.
        source: Errno,
    },
    /// A path cannot be made read-only.
    #[error("cannot make {path:?} in the container read-only")]
    Readonly {
        /// The path in the container.
        path: PathBuf,
        /// What the kernel says.
        source: Errno,
    },
    /// The root cannot be entered.
    #[error("cannot enter the container's root: {step}")]
    Enter {
        /// What was tried.
        step: &'static str,
        /// What the kernel says.
        source: Errno,
    },
    /// /proc is not what it should be.
    #[error("cannot get at a proc file system that nothing stands over: {step}")]
    Procfs {
        /// What was tried.
        step: &'static str,
        /// What the kernel says.
        source: Errno,
    },
    /// A file of /proc cannot be written.
    #[error("cannot write {value:?} to {path:?} of the proc file system")]
    ProcWrite {
        /// Path below /proc.
        path: PathBuf,
        /// What was to be written.
        value: String,
        /// What the kernel says.
        source: Errno,
    },
    /// A parameter of the kernel that is not the container's own.
    #[error("the parameter {name:?} in linux.sysctl belongs to the host: {why}")]
    Sysctl {
        /// Its name.
        name: String,
        /// What stands in the way.
        why: &'static str,
    },
    /// The terminal cannot be made.
    #[error("cannot give the container a terminal: {step}")]
    Console {
        /// What was tried.
        step: &'static str,
        /// What the kernel says.
        source: Errno,
    },
}

//! The directory that keeps the layers of an overlay: made before the run, looked through after it, applied when somebody asks.
//!
//! Input: a plan, or a directory and its manifest. Output: a [`Manifest`] with the changes, and the deeds of a commit. The layers were
//! written by the sandbox: every name is opened beneath a descriptor without following links.

mod apply;
mod look;

use std::ffi::CString;
use std::fs::{DirBuilder, Permissions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use apex_core::host::{Host, PathFact};
use apex_core::overlay::{Layer, Manifest, Moment, VERSION};
use apex_core::plan::{BindAccess, Kind, Mount, OverlayPlan, Plan};
use apex_core::policy::Policy;
use apex_sys::{Errno, fs};

pub use apply::{Deed, apply};
pub use look::look;

use crate::host::{LiveHost, c_path};
use crate::layers::top_mode;

/// Why the directory of an overlay cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// It holds something already.
    #[error("{}: not empty; name a new directory for the overlay, or remove this one", .0.display())]
    NotEmpty(PathBuf),
    /// It lies in what it would overlay.
    #[error("{}: it lies in {}, which is overlaid; name a directory outside of it", .dir.display(), .piece.display())]
    Within {
        /// The directory.
        dir: PathBuf,
        /// The overlaid piece.
        piece: PathBuf,
    },
    /// It belongs to somebody else.
    #[error("{}: belongs to user {owner}, who could change what is kept there; name a directory of your own", .dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Making or opening something.
    #[error("{what} {}: {}", .path.display(), .errno.desc())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The errno.
        errno: Errno,
    },
}

impl OverlayError {
    fn at<'p>(what: &'static str, path: &'p Path) -> impl Fn(Errno) -> OverlayError + 'p {
        move |errno| OverlayError::File { what, path: path.to_owned(), errno }
    }
}

/// Makes the directory and its layers; `None` for a plan that keeps none.
pub fn prepare(plan: &Plan, policy: &Policy, host: &LiveHost) -> Result<Option<Manifest>, OverlayError> {
    let Some(OverlayPlan::Kept { dir, .. }) = &plan.overlay else { return Ok(None) };
    let layers: Vec<Layer> = plan.mounts.iter().filter_map(layer).collect();
    make_own(dir)?;
    if let Some(piece) = layers.iter().find(|layer| dir.starts_with(host.real(&layer.source))) {
        let _ = std::fs::remove_dir(dir);
        return Err(OverlayError::Within { dir: dir.clone(), piece: piece.source.clone() });
    }
    let own = plan.identity.caller_uid;
    for (number, layer) in layers.iter().enumerate() {
        let place = dir.join(number.to_string());
        make_dir(&place, 0o700)?;
        if layer.is_dir {
            let source = c_path(&layer.source).map_err(OverlayError::at("naming", &layer.source))?;
            let lower = fs::open(fs::cwd(), &source, nix::libc::O_PATH, 0)
                .and_then(|fd| fs::stat(fd.as_fd(), c""))
                .map_err(OverlayError::at("looking at", &layer.source))?;
            make_dir(&place.join("upper"), top_mode(lower, own))?;
            make_dir(&place.join("work"), 0o700)?;
        }
    }
    // The planner never asks about it, and whoever takes its tree wants it held.
    if let PathFact::Refused(_) | PathFact::Missing | PathFact::File = host.path(dir, true) {
        return Err(OverlayError::at("opening", dir)(Errno::ENOTDIR));
    }
    let about = std::fs::metadata(dir).map_err(io("looking at", dir))?;
    let denied = policy.filesystem.deny.iter().map(|grant| grant.path.clone()).collect();
    let started = Moment { s: about.ctime(), ns: about.ctime_nsec() };
    Ok(Some(Manifest { version: VERSION, started, layers, denied, changes: None, more: 0 }))
}

/// Removes what the kernel needed beside each layer while it was in use: its inner directory has mode 0, which would stop an `rm -r` of its owner.
/// What cannot be removed stays: it is no part of what was written.
pub fn clear_work(dir: &Path, layers: usize) {
    for number in 0..layers {
        let work = dir.join(number.to_string()).join("work");
        let _ = std::fs::set_permissions(work.join("work"), Permissions::from_mode(0o700));
        let _ = std::fs::remove_dir_all(work);
    }
}

fn layer(mount: &Mount) -> Option<Layer> {
    match mount {
        Mount::Bind { source, dest, access: BindAccess::Overlay, kind, .. } => {
            Some(Layer { source: source.clone(), dest: dest.clone(), is_dir: *kind == Kind::Dir })
        }
        _ => None,
    }
}

fn make_own(dir: &Path) -> Result<(), OverlayError> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io("making", dir)(error)),
    }
    let about = std::fs::symlink_metadata(dir).map_err(io("looking at", dir))?;
    let own = nix::unistd::geteuid().as_raw();
    if about.uid() != own {
        return Err(OverlayError::Foreign { dir: dir.to_owned(), owner: about.uid() });
    }
    if std::fs::read_dir(dir).map_err(io("listing", dir))?.next().is_some() {
        return Err(OverlayError::NotEmpty(dir.to_owned()));
    }
    // Nobody else looks at what the sandbox wrote, and the start of the run shows in the time stamp.
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)).map_err(io("closing", dir))
}

fn make_dir(dir: &Path, mode: u32) -> Result<(), OverlayError> {
    DirBuilder::new().mode(0o700).create(dir).map_err(io("making", dir))?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode)).map_err(io("making", dir))
}

fn io<'p>(what: &'static str, path: &'p Path) -> impl Fn(std::io::Error) -> OverlayError + 'p {
    move |error| OverlayError::File {
        what,
        path: path.to_owned(),
        errno: error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
    }
}

/// Opens a directory by its name.
fn open_dir(path: &Path) -> Result<OwnedFd, Errno> {
    fs::open(fs::cwd(), &c_path(path)?, nix::libc::O_DIRECTORY, 0)
}

/// How names below a directory are resolved: never out of it, never over a link.
const BENEATH: u64 = fs::resolve::BENEATH | fs::resolve::NO_SYMLINKS | fs::resolve::NO_MAGICLINKS;

/// A path below a descriptor.
fn below(path: &Path) -> Result<CString, Errno> {
    if path.as_os_str().is_empty() { Ok(c".".to_owned()) } else { c_path(path) }
}

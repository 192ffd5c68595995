//! The directory that keeps the layers of an overlay: made before the run, looked through after it, applied when somebody asks.
//!
//! Input: a plan, or a directory and its manifest. Output: a [`Manifest`] with the changes, and the deeds of a commit. The layers were
//! written by the sandbox: every name is opened beneath a descriptor without following links.

mod apply;
mod keep;
mod look;
mod piece;
mod store;

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use apex_core::host::{self, Host, PathFact};
use apex_core::overlay::{Identity, Layer, Manifest, Moment, VERSION};
use apex_core::plan::{BindAccess, Kind, Mount, OverlayPlan, Plan};
use apex_core::policy::Policy;
use apex_sys::{Errno, fs};

pub use apply::{Deed, apply};
pub use look::look;
pub use store::Store;

use crate::host::{LiveHost, c_path, name_of};
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
    #[error("{}: belongs to user {owner}, who could change what is kept there; use a directory of your own, or let that user do it", .dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Others may write it.
    #[error("{}: others than its owner may write it, so what it says cannot be believed", .0.display())]
    Open(PathBuf),
    /// It is reached over a link of another user, or is one.
    #[error("{}: {why}", .dir.display())]
    Refused {
        /// The directory.
        dir: PathBuf,
        /// Why.
        why: String,
    },
    /// Another commit of it runs.
    #[error("{}: another commit applies it at this moment", .0.display())]
    Busy(PathBuf),
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
pub fn prepare(plan: &Plan, policy: &Policy, host: &LiveHost) -> Result<Option<(Store, Manifest)>, OverlayError> {
    let Some(OverlayPlan::Kept { dir, .. }) = &plan.overlay else { return Ok(None) };
    let overlaid = |mount: &Mount| match mount {
        Mount::Bind { source, dest, access: BindAccess::Overlay, kind, .. } => {
            Some(layer(source, dest, *kind == Kind::Dir, host))
        }
        _ => None,
    };
    let layers = plan.mounts.iter().filter_map(overlaid).collect::<Result<Vec<Layer>, _>>()?;
    let store = Store::make(dir, &layers)?;
    for (number, layer) in layers.iter().enumerate() {
        store.make_dir(&number.to_string(), 0o700)?;
        if layer.is_dir {
            let lower = held(host, &layer.source)?;
            store.make_dir(&format!("{number}/upper"), top_mode(lower, plan.identity.caller_uid))?;
            store.make_dir(&format!("{number}/work"), 0o700)?;
        }
    }
    // The planner never asks about it, and whoever takes its tree wants it held: the one that was made, not what a name leads to by now.
    if host.path(dir, true) != PathFact::Dir || store.identity().ok() != Some(identity(&held(host, dir)?)) {
        return Err(OverlayError::at("opening", dir)(Errno::ESTALE));
    }
    let about = nix::sys::stat::fstat(store.fd()).map_err(OverlayError::at("looking at", dir))?;
    // The next run goes by the policy's own files, and by the modes and profiles of the user.
    let sources = policy.sources.iter().map(Path::new).filter(|source| source.is_absolute());
    let sources = sources.chain(policy.config.iter().map(PathBuf::as_path));
    let rules = policy.filesystem.deny.iter().map(|grant| grant.path.as_path());
    let mut denied: Vec<PathBuf> = rules.chain(sources).flat_map(|path| spellings(path, host)).collect();
    denied.sort();
    denied.dedup();
    let started = Moment { s: about.st_ctime, ns: about.st_ctime_nsec };
    let manifest = Manifest { version: VERSION, started, layers, denied, changes: None, more: 0, unseen: Vec::new() };
    Ok(Some((store, manifest)))
}

/// An overlaid piece as the planner opened it.
fn layer(source: &Path, dest: &Path, is_dir: bool, host: &LiveHost) -> Result<Layer, OverlayError> {
    let failed = OverlayError::at("looking at", source);
    let held = host.held(source).ok_or_else(|| failed(Errno::ENOENT))?;
    let real = name_of(&held.fd).map_err(&failed)?;
    let identity = if is_dir { identity(&held.stat) } else { holder_of(&real, &held.stat).map_err(&failed)? };
    Ok(Layer { source: source.to_owned(), dest: dest.to_owned(), is_dir, real, identity })
}

/// The directory that holds a file by this name.
fn holder_of(real: &Path, file: &fs::Stat) -> Result<Identity, Errno> {
    let (Some(above), Some(name)) = (real.parent(), real.file_name()) else { return Err(Errno::EINVAL) };
    let dir = store::open_dir(above, true).map_err(|_| Errno::ESTALE)?;
    if identity(&fs::stat(dir.as_fd(), &c_path(Path::new(name))?)?) != identity(file) {
        return Err(Errno::ESTALE);
    }
    fs::stat(dir.as_fd(), c"").map(|about| identity(&about))
}

fn held(host: &LiveHost, path: &Path) -> Result<fs::Stat, OverlayError> {
    host.held(path).map(|held| held.stat).ok_or_else(|| OverlayError::at("looking at", path)(Errno::ENOENT))
}

fn identity(stat: &fs::Stat) -> Identity {
    Identity { device: stat.device, inode: stat.inode }
}

/// A path, what it is after each link on its way, and where it leads in the end: a change of any of them is a change of what it names.
fn spellings(path: &Path, live: &LiveHost) -> Vec<PathBuf> {
    let links = host::links(path, |place| std::fs::read_link(place).ok());
    [path.to_owned(), live.real(path)].into_iter().chain(links.into_iter().map(|link| link.leads_to)).collect()
}

fn io<'p>(what: &'static str, path: &'p Path) -> impl Fn(std::io::Error) -> OverlayError + 'p {
    move |error| OverlayError::File {
        what,
        path: path.to_owned(),
        errno: error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
    }
}

/// How names below a directory are resolved: never out of it, never over a link.
const BENEATH: u64 = fs::resolve::BENEATH | fs::resolve::NO_SYMLINKS | fs::resolve::NO_MAGICLINKS;

/// Opens a file to be read, over no link and without waiting for whoever would write to a FIFO.
fn open_file(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    fs::open(dir, name, nix::libc::O_RDONLY | nix::libc::O_NONBLOCK | nix::libc::O_NOFOLLOW, BENEATH)
}

/// A path below a descriptor.
fn below(path: &Path) -> Result<CString, Errno> {
    if path.as_os_str().is_empty() { Ok(c".".to_owned()) } else { c_path(path) }
}

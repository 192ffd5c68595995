//! The root of a container from the mounts of the request, and its end.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// mount(2) takes one page of options, its end included.
const DATA_BYTES_MAX: usize = 4095;
/// Mounts that may lie on one another; more is a loop.
const LAYERS_MAX: usize = 128;

/// Why a root is not mounted or not unmounted.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// The directory.
    #[error("cannot {intent} {}, where the root is to be: {source}", path.display())]
    Target {
        /// What was tried.
        intent: &'static str,
        /// The directory.
        path: PathBuf,
        /// The errno.
        source: io::Error,
    },
    /// A mount.
    #[error("cannot mount {kind} {from} on {}: {source}", target.display())]
    Mount {
        /// Its type.
        kind: String,
        /// What is mounted.
        from: String,
        /// Where.
        target: PathBuf,
        /// The errno.
        source: io::Error,
    },
    /// Something containerd is to do before.
    #[error("mount option {option} of the root is not supported; mount it before, or use another snapshotter")]
    Unsupported {
        /// The option.
        option: String,
    },
    /// Too long, also when shortened.
    #[error("the options of an overlay have {0} bytes and mount(2) takes 4095; use fewer layers")]
    TooLong(usize),
    /// The end.
    #[error("cannot unmount {}: {source}", path.display())]
    Unmount {
        /// The root.
        path: PathBuf,
        /// The errno.
        source: io::Error,
    },
}

/// Mounts all of them on one directory, one above the other. On failure none stays.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<(), RootfsError> {
    if mounts.is_empty() {
        return Ok(());
    }
    match std::fs::create_dir(target) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(RootfsError::Target { intent: "make", path: target.to_path_buf(), source: error });
        }
        _ => {}
    }
    let mounted = mounts.iter().try_for_each(|mount| mount_one(mount, target));
    if mounted.is_err()
        && let Err(error) = unmount_all(target)
    {
        log::warn!("{error}");
    }
    mounted
}

/// Takes away whatever is mounted on a directory; nothing there, and no directory, is well.
pub fn unmount_all(target: &Path) -> Result<(), RootfsError> {
    for _ in 0..LAYERS_MAX {
        match umount2(target, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINTR) => {}
            Err(Errno::EINVAL | Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            Err(errno) => return Err(RootfsError::Unmount { path: target.to_path_buf(), source: errno.into() }),
        }
    }
    let source = io::Error::new(io::ErrorKind::ResourceBusy, "more is mounted there than can be");
    Err(RootfsError::Unmount { path: target.to_path_buf(), source })
}

/// What the words of a mount mean.
#[derive(Debug, PartialEq, Eq)]
struct Words {
    flags: MsFlags,
    propagation: MsFlags,
    data: Vec<String>,
}

fn mount_one(request: &Mount, target: &Path) -> Result<(), RootfsError> {
    let words = read_words(&request.options)?;
    let failed = |errno: Errno| RootfsError::Mount {
        kind: request.type_.clone(),
        from: request.source.clone(),
        target: target.to_path_buf(),
        source: errno.into(),
    };
    let kind = if request.type_ == "bind" { None } else { Some(request.type_.as_str()) };
    let is_bind = words.flags.contains(MsFlags::MS_BIND) || kind.is_none();
    let flags = if kind.is_none() { words.flags | MsFlags::MS_BIND } else { words.flags };
    let length = words.data.iter().map(|word| word.len() + 1).sum::<usize>();
    if kind == Some("overlay") && length > DATA_BYTES_MAX {
        mount_shortened(&request.source, flags, &words.data, target, failed)?;
    } else {
        let data = words.data.join(",");
        let (path, _held) = held(target)?;
        mount(Some(request.source.as_str()), &path, kind, flags, Some(data.as_str())).map_err(failed)?;
    }
    let attributes = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if is_bind && flags.intersects(attributes) {
        // The attributes of a bind mount are looked at in a second call only (mount(2)).
        let (path, _held) = held(target)?;
        let again = (flags - MsFlags::MS_REC) | MsFlags::MS_REMOUNT;
        mount(None::<&str>, &path, None::<&str>, again, None::<&str>).map_err(failed)?;
    }
    if !words.propagation.is_empty() {
        let (path, _held) = held(target)?;
        mount(None::<&str>, &path, None::<&str>, words.propagation, None::<&str>).map_err(failed)?;
    }
    Ok(())
}

/// The directory, held by a descriptor: its last name is no link, and cannot become one between check and mount.
fn held(target: &Path) -> Result<(PathBuf, OwnedFd), RootfsError> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW);
    let opened = options.open(target).map_err(|source| {
        let path = target.to_path_buf();
        RootfsError::Target { intent: "open", path, source }
    })?;
    let fd = OwnedFd::from(opened);
    Ok((PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())), fd))
}

/// An overlay with more layers than one page names: the names are those within the directory that all have in common.
fn mount_shortened(
    source: &str,
    flags: MsFlags,
    data: &[String],
    target: &Path,
    failed: impl Fn(Errno) -> RootfsError,
) -> Result<(), RootfsError> {
    let (place, data) = shorten(data);
    if data.len() > DATA_BYTES_MAX || place.as_os_str().is_empty() {
        return Err(RootfsError::TooLong(data.len()));
    }
    let (path, _held) = held(target)?;
    let back = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(".");
    let back =
        back.map_err(|error| RootfsError::Target { intent: "leave", path: PathBuf::from("."), source: error })?;
    // This process has one thread, which does nothing else before it is back.
    nix::unistd::chdir(&place).map_err(&failed)?;
    let mounted = mount(Some(source), &path, Some("overlay"), flags, Some(data.as_str())).map_err(&failed);
    nix::unistd::fchdir(&back).map_err(&failed)?;
    mounted
}

/// The directory that all lower layers have in common, and the options with names within it.
fn shorten(data: &[String]) -> (PathBuf, String) {
    let lower = data.iter().find_map(|word| word.strip_prefix("lowerdir=")).unwrap_or_default();
    let layers = lower.split(':').map(Path::new).collect::<Vec<_>>();
    let parents = layers.iter().filter_map(|layer| layer.parent());
    let place = parents.fold(None, |common: Option<PathBuf>, parent| {
        Some(match common {
            None => parent.to_path_buf(),
            Some(common) => {
                common.components().zip(parent.components()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect()
            }
        })
    });
    let place = place.unwrap_or_default();
    let within = |layer: &&Path| layer.strip_prefix(&place).unwrap_or(layer).to_string_lossy().into_owned();
    let lower = layers.iter().map(within).collect::<Vec<_>>().join(":");
    let words = data.iter().map(|word| match word.starts_with("lowerdir=") {
        true => format!("lowerdir={lower}"),
        false => word.clone(),
    });
    (place, words.collect::<Vec<_>>().join(","))
}

fn read_words(options: &[String]) -> Result<Words, RootfsError> {
    let mut words = Words { flags: MsFlags::empty(), propagation: MsFlags::empty(), data: Vec::new() };
    for option in options {
        match flag(option) {
            Some((flags, true)) => words.flags |= flags,
            Some((flags, false)) => words.flags -= flags,
            None => match propagation(option) {
                Some(flags) => words.propagation = flags,
                None => words.data.push(supported(option)?),
            },
        }
    }
    Ok(words)
}

fn supported(option: &str) -> Result<String, RootfsError> {
    let needs_help =
        option == "loop" || ["uidmap=", "gidmap=", "X-containerd."].iter().any(|start| option.starts_with(start));
    if needs_help { Err(RootfsError::Unsupported { option: option.to_owned() }) } else { Ok(option.to_owned()) }
}

/// What a word sets, or takes back.
fn flag(word: &str) -> Option<(MsFlags, bool)> {
    Some(match word {
        "ro" => (MsFlags::MS_RDONLY, true),
        "rw" => (MsFlags::MS_RDONLY, false),
        "nosuid" => (MsFlags::MS_NOSUID, true),
        "suid" => (MsFlags::MS_NOSUID, false),
        "nodev" => (MsFlags::MS_NODEV, true),
        "dev" => (MsFlags::MS_NODEV, false),
        "noexec" => (MsFlags::MS_NOEXEC, true),
        "exec" => (MsFlags::MS_NOEXEC, false),
        "sync" => (MsFlags::MS_SYNCHRONOUS, true),
        "async" => (MsFlags::MS_SYNCHRONOUS, false),
        "dirsync" => (MsFlags::MS_DIRSYNC, true),
        "noatime" => (MsFlags::MS_NOATIME, true),
        "atime" => (MsFlags::MS_NOATIME, false),
        "nodiratime" => (MsFlags::MS_NODIRATIME, true),
        "diratime" => (MsFlags::MS_NODIRATIME, false),
        "relatime" => (MsFlags::MS_RELATIME, true),
        "norelatime" => (MsFlags::MS_RELATIME, false),
        "strictatime" => (MsFlags::MS_STRICTATIME, true),
        "nostrictatime" => (MsFlags::MS_STRICTATIME, false),
        "bind" => (MsFlags::MS_BIND, true),
        "rbind" => (MsFlags::MS_BIND.union(MsFlags::MS_REC), true),
        "remount" => (MsFlags::MS_REMOUNT, true),
        "defaults" => (MsFlags::empty(), true),
        _ => return None,
    })
}

fn propagation(word: &str) -> Option<MsFlags> {
    let (word, rest) = word.strip_prefix('r').map_or((word, MsFlags::empty()), |word| (word, MsFlags::MS_REC));
    Some(
        rest | match word {
            "private" => MsFlags::MS_PRIVATE,
            "shared" => MsFlags::MS_SHARED,
            "slave" => MsFlags::MS_SLAVE,
            "unbindable" => MsFlags::MS_UNBINDABLE,
            _ => return None,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn words_are_flags_propagation_or_data() {
        let words = read_words(&owned(&["rbind", "ro", "rprivate", "lowerdir=/a:/b", "nosuid", "suid"])).unwrap();
        assert_eq!(words.flags, MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY);
        assert_eq!(words.propagation, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
        assert_eq!(words.data, ["lowerdir=/a:/b"]);
    }

    #[test]
    fn what_needs_more_than_a_mount_is_refused() {
        for word in ["loop", "uidmap=0:1:2", "gidmap=0:1:2"] {
            assert!(matches!(read_words(&owned(&[word])), Err(RootfsError::Unsupported { .. })), "{word}");
        }
    }

    #[test]
    fn layers_are_named_within_what_they_share() {
        let data = owned(&["workdir=/s/9/work", "lowerdir=/s/10/fs:/s/11/fs", "upperdir=/s/9/fs"]);
        let (place, data) = shorten(&data);
        assert_eq!(place, Path::new("/s"));
        assert_eq!(data, "workdir=/s/9/work,lowerdir=10/fs:11/fs,upperdir=/s/9/fs");
    }
}

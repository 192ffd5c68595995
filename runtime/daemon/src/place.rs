//! The directory of the daemon: one daemon to a directory.
//!
//! `apexd.lock`, `apexd.db` (see [`crate::store`]), `audit.jsonl`, and `sandboxes/ID/` with the keeper's socket, how it ended, what the command wrote, and what was
//! seen of it. A directory that others could write is refused: whoever reaches a keeper's socket commands the sandbox.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};

/// Between two looks at a keeper that may be ending.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Others may pass through, since a keeper may be somebody else's process, and see nothing.
const DIR_MODE: u32 = 0o711;

/// The locked directory.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    _lock: File,
}

impl Place {
    /// Makes the directory when it is not there, and locks it for as long as this process lives.
    pub fn take(path: &Path) -> Result<Place> {
        make_dir(path)?;
        let path = path.canonicalize().with_context(|| format!("finding {}", path.display()))?;
        let about = fs::metadata(&path).with_context(|| format!("looking at {}", path.display()))?;
        judge(&path, about.uid(), about.mode(), nix::unistd::geteuid().as_raw())?;
        make_dir(&path.join("sandboxes"))?;
        let lock = lock(&path.join("apexd.lock"), &path)?;
        Ok(Place { path, _lock: lock })
    }

    /// A file of the daemon.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The directory of a sandbox.
    pub fn sandbox(&self, id: &str) -> Dir {
        Dir { path: self.path.join("sandboxes").join(id) }
    }

    /// Names of the sandboxes that have a directory.
    pub fn sandboxes(&self) -> Result<Vec<String>> {
        let dir = self.path.join("sandboxes");
        let entries = fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }
}

/// Whether a state directory is its daemon's alone.
pub fn judge(path: &Path, uid: u32, mode: u32, own: u32) -> Result<()> {
    if uid != own || mode & 0o022 != 0 {
        bail!(
            "the state directory {} belongs to uid {uid} and has mode {:o}; it must be that of apexd's user (uid {own}) and writable by nobody else",
            path.display(),
            mode & 0o7777
        );
    }
    Ok(())
}

/// One daemon to a directory, as long as this is held.
pub fn lock(name: &Path, dir: &Path) -> Result<File> {
    let lock = File::options().create(true).append(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW).open(name);
    let lock = lock.with_context(|| format!("opening {}", name.display()))?;
    if lock.try_lock().is_err() {
        bail!("another apexd has {} already; give each its own --state", dir.display());
    }
    Ok(lock)
}

/// Makes a directory of ours.
pub fn make_dir(path: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(DIR_MODE).create(path);
    made.with_context(|| format!("making the directory {}", path.display()))
}

/// The directory of one sandbox.
#[derive(Clone, Debug)]
pub struct Dir {
    path: PathBuf,
}

impl Dir {
    /// Makes it.
    pub fn make(&self) -> Result<()> {
        make_dir(&self.path)
    }

    /// Removes it with all that is in it.
    pub fn remove(&self) -> std::io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A file for the keeper's user, to whom the warden gives it; the daemon, as its group, still reads it.
    pub fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.file(name);
        let write = || -> std::io::Result<()> {
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
            // Our umask would take the group's part.
            file.set_permissions(Permissions::from_mode(0o640))?;
            file.write_all(content.as_bytes())
        };
        write().with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// The directory itself.
    pub fn open(&self) -> Result<OwnedFd> {
        File::open(&self.path).map(OwnedFd::from).with_context(|| format!("opening {}", self.path.display()))
    }

    /// The keeper's listening socket. Its name goes through the open directory: a socket's path holds 107 bytes (unix(7)), a state directory's more.
    pub fn listen(&self) -> Result<OwnedFd> {
        let (dir, address) = self.address()?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let made = || -> nix::Result<OwnedFd> {
            let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
            bind(listener.as_raw_fd(), &address)?;
            listen(&listener, Backlog::new(4)?)?;
            Ok(listener)
        };
        let listener = made().with_context(|| format!("making the keeper's socket in {}", self.path.display()))?;
        drop(dir);
        Ok(listener)
    }

    /// Where the sandbox finds the socket for its messages. The directory is what it sees, so that the next daemon can put another socket there.
    pub fn mail(&self) -> PathBuf {
        self.file("mail")
    }

    /// Makes that socket, in the place of one that is there. Everybody may connect; who is served is looked at then.
    pub fn listen_for_mail(&self) -> Result<UnixListener> {
        let path = self.mail();
        let made = || -> std::io::Result<UnixListener> {
            fs::DirBuilder::new().recursive(true).mode(DIR_MODE).create(&path)?;
            let dir = File::open(&path)?;
            let name = format!("/proc/self/fd/{}/socket", dir.as_raw_fd());
            match fs::remove_file(&name) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(&name)?;
            fs::set_permissions(&name, Permissions::from_mode(0o666))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        made().with_context(|| format!("making the socket for messages in {}", path.display()))
    }

    /// Removes it.
    pub fn remove_mail(&self) -> std::io::Result<()> {
        match fs::remove_dir_all(self.mail()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// A connection to the keeper.
    pub fn connect(&self) -> Result<OwnedFd> {
        let (_dir, address) = self.address()?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let made = || -> nix::Result<OwnedFd> {
            let stream = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
            connect(stream.as_raw_fd(), &address)?;
            Ok(stream)
        };
        made().with_context(|| format!("connecting to the keeper of {}", self.path.display()))
    }

    /// Whether a keeper still listens after this time.
    pub async fn is_listened_to(&self, within: Duration) -> bool {
        let until = Instant::now() + within;
        while self.connect().is_ok() {
            if Instant::now() > until {
                return true;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        false
    }

    fn address(&self) -> Result<(File, UnixAddr)> {
        let dir = File::open(&self.path).with_context(|| format!("opening {}", self.path.display()))?;
        let name = format!("/proc/self/fd/{}/keeper.sock", dir.as_fd().as_raw_fd());
        Ok((dir, UnixAddr::new(name.as_str())?))
    }
}

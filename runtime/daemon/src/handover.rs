//! The state directory before privileges are given up: made, looked at, and handed to the daemon's own user once, when it is still root's.
//!
//! Once only: what belongs to the daemon's user is not walked again by root, so that nothing which that user puts there is ever given away. While it is root's, only
//! root could put something there; all the same no link is followed, and a file with a second name is refused.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use apex_sys::fs;
use nix::libc::{O_DIRECTORY, O_NOFOLLOW, O_PATH, O_RDONLY, S_IFDIR, S_IFLNK};
use nix::unistd::{Gid, Uid, fchown, fchownat};

use crate::place;
use crate::privilege::User;

/// What stays the warden's.
const KEPT: &[u8] = b"warden.key";
/// The directory, `sandboxes`, one of each sandbox, its `mail`; nothing lies deeper.
const DEPTH_MAX: u32 = 4;

/// The directory, open, as the process that is to become `user` will find it.
pub fn prepare(path: &Path, user: Option<&User>) -> Result<File> {
    place::make_dir(path)?;
    let opened = File::options().read(true).custom_flags(O_DIRECTORY).open(path);
    let dir = opened.with_context(|| format!("opening the state directory {}", path.display()))?;
    let about = fs::stat(dir.as_fd(), c"")?;
    if let Some(user) = user
        && about.uid != user.uid
    {
        place::judge(path, about.uid, about.mode, nix::unistd::geteuid().as_raw())?;
        let _lock = place::lock(&path.join("apexd.lock"), path)?;
        hand_over(dir.as_fd(), user, DEPTH_MAX)
            .with_context(|| format!("handing the state directory {} to user {}", path.display(), user.name))?;
        // Last: as long as it is root's, nobody else has written there, and an end in the middle is followed by another walk.
        fchown(&dir, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))?;
    }
    Ok(dir)
}

fn hand_over(dir: BorrowedFd<'_>, user: &User, depth: u32) -> Result<()> {
    if depth == 0 {
        bail!("there are directories deeper than any that apexd makes; move them away");
    }
    for entry in std::fs::read_dir(format!("/proc/self/fd/{}", dir.as_raw_fd()))? {
        let name = entry?.file_name();
        if name.as_bytes() == KEPT {
            continue;
        }
        give(dir, name.as_bytes(), user, depth).with_context(|| name.to_string_lossy().into_owned())?;
    }
    Ok(())
}

fn give(dir: BorrowedFd<'_>, name: &[u8], user: &User, depth: u32) -> Result<()> {
    let name = std::ffi::CString::new(name)?;
    let strictly = fs::resolve::BENEATH | fs::resolve::NO_SYMLINKS;
    let place = fs::open(dir, &name, O_PATH | O_NOFOLLOW, strictly)?;
    let about = fs::stat(place.as_fd(), c"")?;
    if about.is(S_IFLNK) {
        bail!("it is a symbolic link, which apexd never makes; remove it");
    }
    if about.is(S_IFDIR) {
        let inner = fs::open(dir, &name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, strictly)?;
        hand_over(inner.as_fd(), user, depth - 1)?;
    } else if about.links != 1 {
        bail!("it has {} names, and one of them may be somebody else's; remove the others", about.links);
    }
    // What belongs to the user of a sandbox stays that user's, and is read through the group.
    let uid = (about.uid == nix::unistd::geteuid().as_raw()).then(|| Uid::from_raw(user.uid));
    fchownat(place.as_fd(), c"", uid, Some(Gid::from_raw(user.gid)), nix::fcntl::AtFlags::AT_EMPTY_PATH)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, chown, symlink};
    use std::path::PathBuf;

    const USER: u32 = 4711;

    fn user() -> User {
        User { name: "somebody".to_owned(), uid: USER, gid: USER }
    }

    /// As an older daemon of root left it.
    fn state(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("apexd-handover-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        let sandbox = path.join("sandboxes/0123");
        std::fs::create_dir_all(sandbox.join("mail")).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        for file in [
            "apexd.db",
            "warden.key",
            "sandboxes/0123/result.json",
            "sandboxes/0123/policy.toml",
            "sandboxes/0123/mail/socket",
        ] {
            std::fs::write(path.join(file), "text").unwrap();
        }
        path
    }

    fn owner(path: PathBuf) -> (u32, u32) {
        let about = std::fs::symlink_metadata(path).unwrap();
        (about.uid(), about.gid())
    }

    #[test]
    fn everything_is_handed_over_once() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root gives files away");
            return;
        }
        let path = state("once");
        chown(path.join("sandboxes/0123/policy.toml"), Some(1000), None).unwrap();
        prepare(&path, Some(&user())).unwrap();
        for file in
            ["", "apexd.db", "sandboxes", "sandboxes/0123", "sandboxes/0123/result.json", "sandboxes/0123/mail/socket"]
        {
            assert_eq!(owner(path.join(file)), (USER, USER), "{file}");
        }
        assert_eq!(owner(path.join("warden.key")), (0, 0));
        assert_eq!(owner(path.join("sandboxes/0123/policy.toml")), (1000, USER));
        // From now on it is the user's, and root gives nothing away there any more.
        std::fs::write(path.join("planted"), "").unwrap();
        prepare(&path, Some(&user())).unwrap();
        assert_eq!(owner(path.join("planted")), (0, 0));
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn links_are_refused() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root gives files away");
            return;
        }
        let path = state("links");
        let outside = path.with_extension("outside");
        std::fs::write(&outside, "").unwrap();
        symlink(&outside, path.join("sandboxes/0123/findings.jsonl")).unwrap();
        let error = prepare(&path, Some(&user())).unwrap_err();
        assert!(format!("{error:#}").contains("symbolic link"), "{error:#}");
        std::fs::remove_file(path.join("sandboxes/0123/findings.jsonl")).unwrap();
        std::fs::hard_link(&outside, path.join("sandboxes/0123/findings.jsonl")).unwrap();
        let error = prepare(&path, Some(&user())).unwrap_err();
        assert!(format!("{error:#}").contains("2 names"), "{error:#}");
        assert_eq!((owner(outside.clone()), owner(path.clone())), ((0, 0), (0, 0)));
        std::fs::remove_file(outside).unwrap();
        std::fs::remove_dir_all(path).unwrap();
    }
}

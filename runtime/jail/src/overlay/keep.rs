//! What a file of the host keeps when another takes its place: access list and extended attributes, and owner and group where the caller may give them.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use apex_sys::{Errno, fs};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{Gid, Uid, fchown};

use crate::layers::PERMISSIONS;

/// The access list of a file (acl(5)). The group bits of the mode are its mask then, and no right of the group.
const ACCESS_LIST: &CStr = c"system.posix_acl_access";
/// Bytes of a list of names, and of a value (xattr(7)).
const BYTES_MAX: usize = 64 << 10;

/// Gives a new file the permissions `mode`, and what `old`, whose place it takes, has beside its content. Set-user-id bits never pass.
pub(super) fn keep(old: Option<BorrowedFd<'_>>, new: &OwnedFd, mode: u32) -> Result<(), String> {
    let mut mode = mode & PERMISSIONS;
    if let Some(old) = old {
        let has_list = value(old, ACCESS_LIST).map_err(lost(ACCESS_LIST))?.is_some();
        if !keep_owner(old, new).map_err(|errno| errno.desc().to_owned())? {
            if has_list {
                return Err("its group cannot be kept, for which its access list speaks".to_owned());
            }
            // What its group could do, another group must not.
            mode &= !0o070 | (mode & 0o007) << 3;
        }
        keep_attributes(old, new.as_fd())?;
    }
    // After the owner, whose change clears bits, and after the list, whose mask it sets.
    fchmod(new, Mode::from_bits_truncate(mode)).map_err(|errno| errno.desc().to_owned())
}

/// Whether the group is kept. The owner is kept by root alone: what anybody else commits is their own.
fn keep_owner(old: BorrowedFd<'_>, new: &OwnedFd) -> Result<bool, Errno> {
    let (was, is) = (fstat(old)?, fstat(new)?);
    let group = Some(Gid::from_raw(was.st_gid));
    if (was.st_uid, was.st_gid) == (is.st_uid, is.st_gid) {
        return Ok(true);
    }
    if fchown(new, Some(Uid::from_raw(was.st_uid)), group).is_err() && was.st_gid != is.st_gid {
        return Ok(fchown(new, None, group).is_ok());
    }
    Ok(true)
}

fn keep_attributes(old: BorrowedFd<'_>, new: BorrowedFd<'_>) -> Result<(), String> {
    let had = names(old).map_err(|errno| format!("its extended attributes cannot be read: {}", errno.desc()))?;
    for name in had.iter().map(CString::as_c_str).filter(|name| is_kept(name)) {
        let wanted = value(old, name).map_err(lost(name))?;
        if let Some(wanted) = wanted.filter(|wanted| value(new, name).ok().flatten().as_ref() != Some(wanted)) {
            fs::set_attribute(new, name, &wanted).map_err(lost(name))?;
        }
    }
    // A directory gives its list to what is made in it.
    if !had.iter().any(|name| name.as_c_str() == ACCESS_LIST)
        && value(new, ACCESS_LIST).is_ok_and(|list| list.is_some())
    {
        fs::remove_attribute(new, ACCESS_LIST).map_err(lost(ACCESS_LIST))?;
    }
    Ok(())
}

/// Not what speaks for the old content (capabilities of a program, its measured hash), nor what a file system notes for itself.
fn is_kept(name: &CStr) -> bool {
    let name = name.to_bytes();
    let is_of_content = [&b"security.capability"[..], b"security.ima", b"security.evm"].contains(&name);
    !is_of_content && !name.starts_with(b"trusted.") && !name.starts_with(b"user.overlay.")
}

fn names(file: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut bytes = vec![0; BYTES_MAX];
    let count = match fs::attributes(file, &mut bytes) {
        Err(Errno::EOPNOTSUPP) => 0,
        other => other?,
    };
    let names = bytes[..count].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.filter_map(|name| CString::new(name).ok()).collect())
}

fn value(file: BorrowedFd<'_>, name: &CStr) -> Result<Option<Vec<u8>>, Errno> {
    let mut bytes = vec![0; BYTES_MAX];
    match fs::attribute(file, name, &mut bytes) {
        Ok(count) => {
            bytes.truncate(count);
            Ok(Some(bytes))
        }
        Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn lost(name: &CStr) -> impl Fn(Errno) -> String {
    let name = name.to_string_lossy().into_owned();
    move |errno| format!("its attribute {name} cannot be kept: {}", errno.desc())
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions, Permissions};
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};

    use super::*;

    fn file(name: &str, mode: u32) -> (std::path::PathBuf, File) {
        let path = std::env::temp_dir().join(format!("apex-keep-{}-{name}", std::process::id()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path).unwrap();
        file.set_permissions(Permissions::from_mode(mode)).unwrap();
        (path, file)
    }

    #[test]
    fn set_user_id_bits_and_notes_of_file_systems_do_not_pass_notes_of_people_do() {
        let ((old_path, old), (new_path, new)) = (file("old", 0o640), file("new", 0o600));
        for name in [c"user.note", c"user.overlay.note"] {
            fs::set_attribute(old.as_fd(), name, b"word").unwrap();
        }
        let new = OwnedFd::from(new);
        let kept = keep(Some(old.as_fd()), &new, 0o4750);
        let mode = std::fs::metadata(&new_path).unwrap().mode() & 0o7777;
        std::fs::remove_file(old_path).unwrap();
        std::fs::remove_file(new_path).unwrap();
        assert_eq!((kept, mode), (Ok(()), 0o750));
        assert_eq!(value(new.as_fd(), c"user.note"), Ok(Some(b"word".to_vec())));
        assert_eq!(value(new.as_fd(), c"user.overlay.note"), Ok(None));
    }

    /// A directory gives its list to what is made in it; the file whose place it takes had none.
    #[test]
    fn a_list_that_the_old_file_did_not_have_goes() {
        let entry =
            |tag: u16, right: u16, id: u32| [&tag.to_le_bytes()[..], &right.to_le_bytes(), &id.to_le_bytes()].concat();
        let none = u32::MAX;
        let list: Vec<u8> = [
            vec![2, 0, 0, 0],
            entry(1, 6, none),
            entry(2, 6, 1234),
            entry(4, 0, none),
            entry(16, 6, none),
            entry(32, 0, none),
        ]
        .concat();
        let ((old_path, old), (new_path, new)) = (file("plain", 0o640), file("listed", 0o600));
        fs::set_attribute(new.as_fd(), ACCESS_LIST, &list).unwrap();
        let new = OwnedFd::from(new);
        let kept = keep(Some(old.as_fd()), &new, 0o640);
        std::fs::remove_file(old_path).unwrap();
        std::fs::remove_file(new_path).unwrap();
        assert_eq!((kept, value(new.as_fd(), ACCESS_LIST)), (Ok(()), Ok(None)));
    }
}

//! The container's file system by the kernel's own table: how much of it can be written, and what is masked.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use apex_sys::{Errno, fs};
use nix::libc::{O_CLOEXEC, O_DIRECTORY, O_PATH};

use super::{Line, Subject, text};

/// One line of mountinfo.
struct Mount {
    place: String,
    is_read_only: bool,
}

pub(super) fn lines(subject: &Subject<'_>) -> Vec<Line> {
    let evidence = format!("/proc/{}/mountinfo", subject.pid);
    let table: Vec<Mount> = text(&evidence).lines().filter_map(parse).collect();
    let writable = table.iter().filter(|mount| !mount.is_read_only).count();
    let mut lines = vec![Line::off("mounts", format!("{} mounts, {writable} writable", table.len()), evidence.clone())];
    if subject.spec.root().as_ref().is_some_and(|root| root.readonly() == Some(true)) {
        let agrees = top(&table, "/").is_some_and(|root| root.is_read_only);
        let effective = if agrees { "read-only" } else { "writable" };
        lines.push(Line::new("root", "read-only".to_owned(), effective.to_owned(), evidence.clone(), agrees));
    }
    let Some(linux) = subject.spec.linux() else { return lines };
    let root = open_root(subject);
    let masked = linux.masked_paths().as_deref().unwrap_or_default();
    lines.extend(kept("masked paths", masked, &table, &evidence, root.as_ref(), false));
    let read_only = linux.readonly_paths().as_deref().unwrap_or_default();
    lines.extend(kept("read-only paths", read_only, &table, &evidence, root.as_ref(), true));
    lines
}

/// Whether each path that exists has a mount of its own; a read-only one where that is the point.
fn kept(
    what: &str,
    paths: &[String],
    table: &[Mount],
    evidence: &str,
    root: Option<&OwnedFd>,
    read_only: bool,
) -> Option<Line> {
    if paths.is_empty() {
        return None;
    }
    let is_kept = |path: &str| match top(table, path) {
        Some(mount) => !read_only || mount.is_read_only,
        // What is not there needs no mount.
        None => is_missing(root, path),
    };
    let open: Vec<&str> = paths.iter().map(String::as_str).filter(|path| !is_kept(path)).collect();
    let there = paths.iter().filter(|path| top(table, path).is_some()).count();
    let mut effective = format!("{there} of {} have a mount", paths.len());
    if !open.is_empty() {
        effective += &format!(", and nothing is over {}", open.join(" "));
    }
    Some(Line::new(what, format!("{} paths", paths.len()), effective, evidence.to_owned(), open.is_empty()))
}

/// The uppermost mount at a place: the last one of the table.
fn top<'a>(table: &'a [Mount], place: &str) -> Option<&'a Mount> {
    table.iter().rev().find(|mount| mount.place == place)
}

fn open_root(subject: &Subject<'_>) -> Option<OwnedFd> {
    let path = CString::new(format!("/proc/{}/root", subject.pid)).ok()?;
    fs::open(fs::cwd(), &path, O_PATH | O_DIRECTORY | O_CLOEXEC, 0).ok()
}

/// Inside the container's root alone. What cannot be looked at counts as there.
fn is_missing(root: Option<&OwnedFd>, path: &str) -> bool {
    let Some(root) = root else { return false };
    let Ok(path) = CString::new(Path::new(path).as_os_str().as_bytes()) else { return false };
    let opened = fs::open(root.as_fd(), &path, O_PATH | O_CLOEXEC, fs::resolve::IN_ROOT | fs::resolve::NO_MAGICLINKS);
    matches!(opened, Err(Errno::ENOENT | Errno::ENOTDIR))
}

/// Fields of a line: id, parent, device, root, place, options, ... (proc_pid_mountinfo(5)).
fn parse(line: &str) -> Option<Mount> {
    let mut fields = line.split(' ').skip(4);
    let place = unescape(fields.next()?);
    let is_read_only = fields.next()?.split(',').any(|option| option == "ro");
    // The super block is read-only for all that show it.
    let of_super = line.rsplit(' ').next()?.split(',').any(|option| option == "ro");
    Some(Mount { place, is_read_only: is_read_only || of_super })
}

/// Space, tab, newline and backslash are written in octal.
fn unescape(word: &str) -> String {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_table_is_a_place_and_whether_it_can_be_written() {
        let line = r"36 35 98:0 /mnt1 /mnt\0402\134x rw,noatime master:1 - ext3 /dev/root ro,errors=continue";
        let mount = parse(line).unwrap();
        assert_eq!((mount.place.as_str(), mount.is_read_only), (r"/mnt 2\x", true));
        let line = "36 35 98:0 / /a rw - tmpfs tmpfs rw,size=1k";
        assert!(!parse(line).unwrap().is_read_only);
        assert!(parse("36 35").is_none());
    }

    #[test]
    fn the_uppermost_mount_counts() {
        let mount = |read_only| Mount { place: "/a".to_owned(), is_read_only: read_only };
        assert!(top(&[mount(false), mount(true)], "/a").unwrap().is_read_only);
        assert!(top(&[mount(true)], "/b").is_none());
    }
}

//! Names that will be others at the next run, and places that are never granted as a whole. Input: paths; output: whether to cut them.

use std::path::{Component, Path, PathBuf};

/// Directories that hold other things than those of one program: nothing is generalised to them, and no tree is granted at them.
const SHARED: &[&str] = &[
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/home",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/usr/local",
    "/usr/sbin",
    "/usr/share",
    "/var",
    "/var/cache",
    "/var/lib",
    "/var/log",
    "/var/run",
    "/var/spool",
    "/var/tmp",
];
/// Trees in which not even a part is granted as a tree, file by file only.
const SHARED_TREES: &[&str] = &["/proc", "/sys", "/dev"];

/// Whether nothing may be granted as a tree at `path`.
pub fn is_shared(path: &Path, home: Option<&Path>) -> bool {
    let is_home = |path: &Path| {
        path.strip_prefix("/home").is_ok_and(|rest| rest.components().count() <= 1)
            || home.is_some_and(|home| home.starts_with(path))
    };
    SHARED.iter().any(|shared| path == Path::new(shared))
        || SHARED_TREES.iter().any(|tree| path.starts_with(tree))
        || is_home(path)
}

/// The first name of a path that will change: what lies before it, and the path up to it.
pub fn cut(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut before = PathBuf::new();
    for part in path.components() {
        let through = before.join(part);
        if let Component::Normal(name) = part
            && name.to_str().is_some_and(changes)
        {
            return Some((before, through));
        }
        before = through;
    }
    None
}

/// Whether a name holds a version, a random suffix, a hash, or the number of a process.
pub fn changes(name: &str) -> bool {
    has_version(name) || has_hash(name) || has_number(name) || has_random_suffix(name)
}

/// Three numbers joined by dots (`3.11.2`), two behind a dash (`tool-1.4`), or a number behind `.so.`.
fn has_version(name: &str) -> bool {
    let dotted = |text: &str| text.split(|c: char| !c.is_ascii_digit() && c != '.').any(|run| numbers(run) >= 3);
    let dashed = || {
        name.rsplit_once('-').is_some_and(|(stem, version)| {
            let version = version.trim_start_matches('v');
            !stem.is_empty() && numbers(version) == 2 && version.bytes().all(|b| b.is_ascii_digit() || b == b'.')
        })
    };
    let library = || name.split_once(".so.").is_some_and(|(_, rest)| rest.starts_with(|c: char| c.is_ascii_digit()));
    dotted(name) || dashed() || library()
}

fn numbers(run: &str) -> usize {
    let parts: Vec<&str> = run.split('.').filter(|part| !part.is_empty()).collect();
    parts.len()
}

/// Twelve hexadecimal digits or more in a row, digits and letters among them (hashes, UUIDs).
fn has_hash(name: &str) -> bool {
    const DIGITS_MIN: usize = 12;
    let plain: String = name.chars().filter(|c| *c != '-').collect();
    plain.split(|c: char| !c.is_ascii_hexdigit()).any(|run| {
        run.len() >= DIGITS_MIN
            && run.bytes().any(|b| b.is_ascii_digit())
            && run.bytes().any(|b| b.is_ascii_alphabetic())
    })
}

/// A number of four digits or more that is no year: the number of a process, a date, a counter.
fn has_number(name: &str) -> bool {
    name.split(|c: char| !c.is_ascii_digit()).any(|run| {
        run.len() > 4 || run.len() == 4 && !run.parse::<u32>().is_ok_and(|year| (1900..2100).contains(&year))
    })
}

/// `tmp` or a dot or dash, and six to twelve characters such as mkstemp(3) and Python's tempfile make: letters of both cases, or digits
/// between letters.
fn has_random_suffix(name: &str) -> bool {
    let suffix = name
        .strip_prefix("tmp")
        .map(|rest| rest.trim_start_matches(['.', '-', '_']))
        .or_else(|| name.rsplit_once(['.', '-', '_']).map(|(_, suffix)| suffix))
        .filter(|suffix| {
            (6..=12).contains(&suffix.len()) && suffix.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        });
    suffix.is_some_and(|suffix| {
        let inner = &suffix.as_bytes()[1..];
        let lower = suffix.bytes().any(|b| b.is_ascii_lowercase());
        let upper_inside = inner.iter().any(u8::is_ascii_uppercase);
        let digit_inside = suffix.bytes().take(suffix.len() - 1).any(|b| b.is_ascii_digit());
        let is_mixed = lower && upper_inside && suffix.bytes().any(|b| b.is_ascii_digit());
        let is_temporary = name.starts_with("tmp") || name.starts_with('.');
        is_mixed || is_temporary && lower && (digit_inside || upper_inside)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_change() {
        for name in [
            "3.11.2",
            "lib-1.2.3.so",
            "libz.so.1",
            "tool-1.4",
            "tmpab12cd_x",
            "tmp.8fGh2k",
            ".cache.Ab12Cd",
            "job-48213.lock",
            "d41d8cd98f00b204e9800998ecf8427e",
            "0b5f9a2e-3c4d-4e5f-8a9b-0c1d2e3f4a5b",
            "core.20240131",
            "cc8fGh2kX.A1b2C3",
        ] {
            assert!(changes(name), "{name}");
        }
    }

    #[test]
    fn names_that_stay() {
        for name in [
            "python3.11",
            "data.json",
            "x86_64-linux-gnu",
            "report-2024.txt",
            "lib.so",
            "README.md",
            "node_modules",
            "base64",
            "utf8",
            "deadbeef",
            "tmpfiles",
            "a.out",
            "main.o",
            "index.html",
            "vmlinux.h",
            "setup.cfg",
            "CMakeLists.txt",
            ".gitconfig",
            ".gitignore",
        ] {
            assert!(!changes(name), "{name}");
        }
    }

    #[test]
    fn a_path_is_cut_at_the_first() {
        let cut = cut(Path::new("/srv/app/tool-1.2.3/lib-4.5.6.so"));
        assert_eq!(cut, Some((PathBuf::from("/srv/app"), PathBuf::from("/srv/app/tool-1.2.3"))));
    }

    #[test]
    fn shared_places_are_known() {
        let home = Some(Path::new("/data/homes/jo"));
        for path in
            ["/", "/home", "/home/ann", "/data/homes", "/data/homes/jo", "/etc", "/proc/sys", "/dev/shm", "/usr"]
        {
            assert!(is_shared(Path::new(path), home), "{path}");
        }
        for path in ["/home/ann/work", "/data/homes/jo/x", "/etc/nginx", "/srv/www"] {
            assert!(!is_shared(Path::new(path), home), "{path}");
        }
    }
}

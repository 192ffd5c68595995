//! What a run left in the layers of its overlay, as data: the jail looks and applies, `apex-run` prints.
//!
//! Names in it were chosen by the sandbox. They are kept byte for byte, since they are applied; who prints them makes them harmless.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Version of the shape of [`Manifest`].
pub const VERSION: u32 = 1;
/// Name of the manifest in the directory of the overlay.
pub const MANIFEST: &str = "apex-overlay.json";
/// Changes that are listed; a run that makes more is cut, and says so.
pub const CHANGES_MAX: usize = 200_000;

/// What stands beside the layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// When the run began, by the clock of the file system.
    pub started: Moment,
    /// The overlaid pieces of the host; layer N lies in `N/`.
    pub layers: Vec<Layer>,
    /// Paths of the host that a rule denies: nothing is applied there.
    #[serde(with = "paths")]
    pub denied: Vec<PathBuf>,
    /// What was changed; `None` while the run lasts, or when it was killed.
    pub changes: Option<Vec<Change>>,
    /// Changes beyond [`CHANGES_MAX`].
    #[serde(default)]
    pub more: u64,
}

/// One overlaid piece.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Path on the host.
    #[serde(with = "path")]
    pub source: PathBuf,
    /// Path inside.
    #[serde(with = "path")]
    pub dest: PathBuf,
    /// Whether it is a directory; of a file there is a copy.
    pub is_dir: bool,
}

/// A time stamp of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment {
    /// Seconds since 1970.
    pub s: i64,
    /// Nanoseconds.
    pub ns: i64,
}

/// What identifies the state of a file of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// What it is.
    pub kind: FileKind,
    /// Inode.
    pub inode: u64,
    /// Permission bits.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// Last change of the content.
    pub modified: Moment,
    /// Last change of anything.
    pub changed: Moment,
}

/// Kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Link,
    /// FIFO, socket or device: listed and never applied.
    Other,
}

/// How something changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// It was not there.
    Added,
    /// Its content is another.
    Changed,
    /// It is gone.
    Removed,
    /// Its permissions are others.
    Mode,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Number of the layer.
    pub layer: usize,
    /// Path below the piece; empty for a piece that is a file.
    #[serde(with = "path")]
    pub path: PathBuf,
    /// How it changed.
    pub change: ChangeKind,
    /// What it is now, or was when it is gone.
    pub kind: FileKind,
    /// Permission bits now.
    pub mode: u32,
    /// Bytes now.
    pub size: u64,
    /// Where a link leads.
    #[serde(default, with = "maybe_path", skip_serializing_if = "Option::is_none")]
    pub target: Option<PathBuf>,
    /// The file of the host at the end of the run; `None` when there was none.
    pub before: Option<Stamp>,
}

impl Manifest {
    /// The path of the host that a change is about.
    pub fn place(&self, change: &Change) -> PathBuf {
        let source = self.layers.get(change.layer).map(|layer| layer.source.as_path()).unwrap_or(Path::new(""));
        if change.path.as_os_str().is_empty() { source.to_owned() } else { source.join(&change.path) }
    }

    /// Whether a rule denies the place.
    pub fn denies(&self, place: &Path) -> bool {
        self.denied.iter().any(|denied| place.starts_with(denied))
    }
}

impl Change {
    /// Why the host's file must not be replaced, when it is `now`.
    pub fn stale(&self, now: Option<&Stamp>, started: Moment) -> Option<&'static str> {
        match (&self.before, now) {
            (None, None) => None,
            (None, Some(_)) => Some("it came into being on the host since"),
            (Some(_), None) => Some("it is gone from the host since"),
            // What lies in a directory is judged by itself.
            (Some(before), Some(now)) if before.kind == FileKind::Dir && now.kind == FileKind::Dir => None,
            (Some(before), Some(_)) if before.changed > started => Some("it changed on the host during the run"),
            (Some(before), Some(now)) if before != now => Some("it changed on the host since"),
            (Some(_), Some(_)) => None,
        }
    }
}

/// Bytes as text: what is no plain UTF-8, and the backslash, as `\xNN`.
fn encode(path: &Path) -> String {
    let mut out = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        out.push_str(&chunk.valid().replace('\\', "\\x5c"));
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

fn decode(text: &str) -> Option<PathBuf> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, after)) = rest.split_once('\\') {
        bytes.extend(plain.as_bytes());
        let digits = after.strip_prefix('x')?.get(..2)?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &after[3..];
    }
    bytes.extend(rest.as_bytes());
    Some(PathBuf::from(OsString::from_vec(bytes)))
}

fn parse<'de, D: Deserializer<'de>>(text: &str) -> Result<PathBuf, D::Error> {
    decode(text).ok_or_else(|| serde::de::Error::custom(format!("`{text}` is no path")))
}

mod path {
    use super::*;

    pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&encode(path))
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        parse::<D>(&String::deserialize(deserializer)?)
    }
}

mod maybe_path {
    use super::*;

    pub fn serialize<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
        path.as_deref().map(encode).serialize(serializer)
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
        Option::<String>::deserialize(deserializer)?.map(|text| parse::<D>(&text)).transpose()
    }
}

mod paths {
    use super::*;

    pub fn serialize<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(paths.iter().map(|path| encode(path)))
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
        Vec::<String>::deserialize(deserializer)?.iter().map(|text| parse::<D>(text)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_comes_back() {
        for bytes in [&b"a/b"[..], b"\xff\xfe/x", b"back\\x5cslash\\", "gr\u{fc}n\n\u{1b}[31m".as_bytes(), b""] {
            let path = PathBuf::from(OsString::from_vec(bytes.to_vec()));
            assert_eq!(decode(&encode(&path)), Some(path), "{bytes:?}");
        }
        for text in ["\\", "\\x", "\\xg0", "\\y00"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }

    #[test]
    fn a_file_that_changed_on_the_host_is_stale() {
        let at = |s| Moment { s, ns: 0 };
        let stamp = Stamp { kind: FileKind::File, inode: 1, mode: 0o644, size: 3, modified: at(5), changed: at(5) };
        let change = |before| Change {
            layer: 0,
            path: "x".into(),
            change: ChangeKind::Changed,
            kind: FileKind::File,
            mode: 0o644,
            size: 4,
            target: None,
            before,
        };
        let old = change(Some(stamp));
        assert_eq!(old.stale(Some(&stamp), at(10)), None);
        assert!(old.stale(Some(&Stamp { size: 4, ..stamp }), at(10)).is_some());
        assert!(old.stale(Some(&Stamp { inode: 2, ..stamp }), at(10)).is_some());
        assert!(old.stale(None, at(10)).is_some());
        assert!(old.stale(Some(&stamp), at(4)).is_some(), "it changed while the run lasted");
        assert_eq!(change(None).stale(None, at(10)), None);
        assert!(change(None).stale(Some(&stamp), at(10)).is_some());
    }
}

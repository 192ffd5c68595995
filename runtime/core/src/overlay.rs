//! What a run left in the layers of its overlay, as data: the jail looks and applies, `apex-run` prints.
//!
//! Names in it were chosen by the sandbox. They are kept byte for byte, since they are applied; who prints them makes them harmless.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Version of the shape of [`Manifest`].
pub const VERSION: u32 = 2;
/// Name of the manifest in the directory of the overlay.
pub const MANIFEST: &str = "apex-overlay.json";
/// Changes that are listed; a run that makes more is cut, and says so.
pub const CHANGES_MAX: usize = 200_000;
/// Places that could not be looked at and are listed.
pub const UNSEEN_MAX: usize = 100;

/// What stands beside the layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// When the run began, by the clock of the file system.
    pub started: Moment,
    /// The overlaid pieces of the host; layer N lies in `N/`.
    pub layers: Vec<Layer>,
    /// Paths of the host that a rule denies, and the files of the policy, each as it was named, as every link on its way spells it, and link-free: nothing is applied there.
    #[serde(with = "paths")]
    pub denied: Vec<PathBuf>,
    /// What was changed; `None` while the run lasts, or when it was killed.
    pub changes: Option<Vec<Change>>,
    /// Changes beyond [`CHANGES_MAX`], and places beyond [`UNSEEN_MAX`].
    #[serde(default)]
    pub more: u64,
    /// What could not be looked at: whether anything changed there nobody knows.
    #[serde(default)]
    pub unseen: Vec<Unseen>,
}

/// A place that could not be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unseen {
    /// Number of the layer.
    pub layer: usize,
    /// Path below the piece.
    #[serde(with = "path")]
    pub path: PathBuf,
    /// Why.
    pub why: String,
}

/// What tells a directory of the host from every other while the host is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Device.
    pub device: u64,
    /// Inode.
    pub inode: u64,
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
    /// The path on the host without links, as the run found it.
    #[serde(with = "path")]
    pub real: PathBuf,
    /// The directory that the run was given; of a file the one that held it. Whatever else stands under its name is not looked at or changed.
    pub identity: Identity,
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
    /// Inode of the directory of the host that held its name at the end of the run; `None` when there was none.
    pub holder: Option<u64>,
    /// Whether a directory on the way was made, moved or got other permissions on the host during the run: the layer may be about another.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moved: bool,
}

impl Manifest {
    /// The path of the host that a change is about, as the grant spells it.
    pub fn place(&self, change: &Change) -> PathBuf {
        self.place_of(change.layer, &change.path)
    }

    /// The path of the host that lies at `path` below a piece, as the grant spells it.
    pub fn place_of(&self, layer: usize, path: &Path) -> PathBuf {
        join(self.layers.get(layer).map_or(Path::new(""), |layer| &layer.source), path)
    }

    /// Whether a rule denies the place of a change, however it is spelled.
    pub fn denies(&self, change: &Change) -> bool {
        self.spellings(change).iter().any(|place| self.denied.iter().any(|denied| place.starts_with(denied)))
    }

    /// Whether a denied path leads over the place of a change: a link there would lead it elsewhere.
    pub fn leads_to_denied(&self, change: &Change) -> bool {
        self.spellings(change).iter().any(|place| self.denied.iter().any(|denied| denied.starts_with(place)))
    }

    fn spellings(&self, change: &Change) -> [PathBuf; 2] {
        let real = self.layers.get(change.layer).map_or(Path::new(""), |layer| &layer.real);
        [self.place(change), join(real, &change.path)]
    }
}

fn join(piece: &Path, path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() { piece.to_owned() } else { piece.join(path) }
}

impl Change {
    /// Why the host's file must not be replaced, when it is `now` and lies in the directory `holder`.
    pub fn stale(&self, now: Option<&Stamp>, holder: u64, started: Moment) -> Option<&'static str> {
        if self.moved {
            return Some(
                "a directory on the way to it was made, moved or got other permissions on the host during the run",
            );
        }
        // One that the run made is there since a moment ago.
        if self.holder.is_some_and(|old| old != holder) {
            return Some("the directory that holds it is another on the host since");
        }
        match (&self.before, now) {
            (None, None) => None,
            (None, Some(_)) => Some("it came into being on the host since"),
            (Some(_), None) => Some("it is gone from the host since"),
            // What lies in a directory is judged by itself, and changes its time stamps.
            (Some(before), Some(now)) if before.kind == FileKind::Dir && now.kind == FileKind::Dir => {
                let is_same = (before.inode, before.mode) == (now.inode, now.mode);
                (self.change == ChangeKind::Mode && !is_same).then_some("its permissions changed on the host since")
            }
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
            holder: Some(7),
            moved: false,
        };
        let old = change(Some(stamp));
        assert_eq!(old.stale(Some(&stamp), 7, at(10)), None);
        assert!(old.stale(Some(&Stamp { size: 4, ..stamp }), 7, at(10)).is_some());
        assert!(old.stale(Some(&Stamp { inode: 2, ..stamp }), 7, at(10)).is_some());
        assert!(old.stale(None, 7, at(10)).is_some());
        assert!(old.stale(Some(&stamp), 7, at(4)).is_some(), "it changed while the run lasted");
        assert_eq!(change(None).stale(None, 7, at(10)), None);
        assert!(change(None).stale(Some(&stamp), 7, at(10)).is_some());
        assert!(old.stale(Some(&stamp), 8, at(10)).is_some(), "another directory under the same name");
        assert!(change(None).stale(None, 8, at(10)).is_some());
        assert_eq!(Change { holder: None, ..change(None) }.stale(None, 8, at(10)), None, "the commit made it");
        assert!(Change { moved: true, ..old }.stale(Some(&stamp), 7, at(10)).is_some());
    }

    #[test]
    fn the_permissions_of_a_directory_are_judged_its_time_stamps_are_not() {
        let at = |s| Moment { s, ns: 0 };
        let stamp = Stamp { kind: FileKind::Dir, inode: 1, mode: 0o755, size: 3, modified: at(5), changed: at(5) };
        let change = Change {
            layer: 0,
            path: "x".into(),
            change: ChangeKind::Mode,
            kind: FileKind::Dir,
            mode: 0o700,
            size: 3,
            target: None,
            before: Some(stamp),
            holder: Some(7),
            moved: false,
        };
        let filled = Stamp { size: 9, modified: at(20), changed: at(20), ..stamp };
        assert_eq!(change.stale(Some(&filled), 7, at(10)), None);
        assert!(change.stale(Some(&Stamp { mode: 0o711, ..filled }), 7, at(10)).is_some());
        assert!(change.stale(Some(&Stamp { inode: 2, ..filled }), 7, at(10)).is_some());
    }

    #[test]
    fn a_denied_place_is_known_by_every_spelling() {
        let identity = Identity { device: 1, inode: 1 };
        let layer = Layer { source: "/lnk".into(), dest: "/x".into(), is_dir: true, real: "/real".into(), identity };
        let change = |path: &str| Change {
            layer: 0,
            path: path.into(),
            change: ChangeKind::Added,
            kind: FileKind::Link,
            mode: 0o777,
            size: 1,
            target: None,
            before: None,
            holder: None,
            moved: false,
        };
        let manifest = |denied: &str| Manifest {
            version: VERSION,
            started: Moment { s: 0, ns: 0 },
            layers: vec![layer.clone()],
            denied: vec![denied.into()],
            changes: None,
            more: 0,
            unseen: Vec::new(),
        };
        for denied in ["/lnk/a/b", "/real/a/b"] {
            let manifest = manifest(denied);
            assert!(manifest.denies(&change("a/b")) && manifest.denies(&change("a/b/c")), "{denied}");
            assert!(!manifest.denies(&change("a")) && !manifest.denies(&change("a/bc")), "{denied}");
            assert!(manifest.leads_to_denied(&change("a")) && !manifest.leads_to_denied(&change("c")), "{denied}");
        }
    }
}

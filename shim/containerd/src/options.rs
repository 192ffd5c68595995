//! How the runtime is driven: the options of a request, as containerd has them for runc, or a file of our own for CRI.
//!
//! CRI of containerd knows the options of runc's shims only; for all others it passes the path of a file (`ConfigPath`) or, since 1.7, its
//! text. The file is TOML with the same names.

use std::path::{Path, PathBuf};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{self, CodedInputStream, Message};
use containerd_shim_protos::shim::oci;
use serde::{Deserialize, Serialize};

use crate::bundle;

/// The runtime that is driven when nothing else is said.
pub const RUNTIME: &str = "apex-oci";
/// Where it keeps its state, in a directory for each namespace of containerd.
const ROOT: &str = "/run/containerd/apex";
/// What the shim notes in the bundle, for whoever deletes the container after it.
const NOTE: &str = "apex-shim.json";
/// A file of options is at most this long.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Options that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// Another shim's.
    #[error(
        "options of type {0} are not known; use containerd.runc.v1.Options, or ConfigPath with the path of a TOML file"
    )]
    Type(String),
    /// Bytes that are no message.
    #[error("cannot read the options of the request: {0}")]
    Message(#[from] protobuf::Error),
    /// The file.
    #[error("cannot read the options in {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The errno.
        source: std::io::Error,
    },
    /// Its text.
    #[error("the options in {place} cannot be used: {source}")]
    Text {
        /// The file, or the configuration of containerd.
        place: String,
        /// Line and reason.
        source: Box<toml::de::Error>,
    },
    /// No runtime.
    #[error("the runtime {0} is neither beside this shim nor in PATH; install it or name it by BinaryName")]
    NoRuntime(String),
    /// The note in the bundle.
    #[error("cannot {intent} the note {}: {source}", path.display())]
    Note {
        /// Read or write.
        intent: &'static str,
        /// The note.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
}

/// The options, resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// The runtime's binary.
    pub binary: PathBuf,
    /// Its `--root`.
    pub root: PathBuf,
    /// Cgroups by systemd.
    pub systemd_cgroup: bool,
    /// `--no-pivot`.
    pub no_pivot: bool,
    /// `--no-new-keyring`.
    pub no_new_keyring: bool,
    /// A cgroup for the shim.
    pub shim_cgroup: String,
    /// Owner of the pipes of a log program.
    pub io_uid: u32,
    /// Their group.
    pub io_gid: u32,
}

/// The same as they are written; names are those of containerd's own options.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "PascalCase")]
struct Written {
    binary_name: String,
    root: String,
    systemd_cgroup: bool,
    no_pivot_root: bool,
    no_new_keyring: bool,
    shim_cgroup: String,
    io_uid: u32,
    io_gid: u32,
}

impl Options {
    /// Those of a request, for a container of this namespace.
    pub fn of_request(options: Option<&Any>, namespace: &str) -> Result<Self, OptionsError> {
        let written = options.map_or_else(|| Ok(Written::default()), Written::of_any)?;
        let root = if written.root.is_empty() { ROOT } else { &written.root };
        Ok(Options {
            binary: find_runtime(&written.binary_name)?,
            root: Path::new(root).join(namespace),
            systemd_cgroup: written.systemd_cgroup,
            no_pivot: written.no_pivot_root,
            no_new_keyring: written.no_new_keyring,
            shim_cgroup: written.shim_cgroup,
            io_uid: written.io_uid,
            io_gid: written.io_gid,
        })
    }

    /// Notes them in a bundle.
    pub fn note(&self, bundle: &Path) -> Result<(), OptionsError> {
        let path = bundle.join(NOTE);
        let written = serde_json::to_vec(self).map_err(std::io::Error::from);
        written.and_then(|bytes| bundle::write_whole(&path, &bytes)).map_err(|source| OptionsError::Note {
            intent: "write",
            path,
            source,
        })
    }

    /// Reads the note of a bundle; none when no container was ever created there.
    pub fn noted(bundle: &Path) -> Result<Option<Self>, OptionsError> {
        let path = bundle.join(NOTE);
        match bundle::read_bounded(&path, FILE_BYTES_MAX) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|source| OptionsError::Note {
                intent: "read",
                path,
                source: source.into(),
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(OptionsError::Note { intent: "read", path, source }),
        }
    }
}

impl Written {
    fn of_any(any: &Any) -> Result<Self, OptionsError> {
        let kind = any.type_url.rsplit('/').next().unwrap_or_default();
        match kind {
            "" if any.value.is_empty() => Ok(Written::default()),
            "containerd.runc.v1.Options" => Ok(oci::Options::parse_from_bytes(&any.value)?.into()),
            "runtimeoptions.v1.Options" | "cri.runtimeoptions.v1alpha1.Options" => Self::of_file(&any.value),
            other => Err(OptionsError::Type(other.to_owned())),
        }
    }

    /// `runtimeoptions.v1.Options`: 1 is the type, 2 the path of a file, 3 its text.
    fn of_file(bytes: &[u8]) -> Result<Self, OptionsError> {
        let (mut path, mut body) = (String::new(), Vec::new());
        let mut stream = CodedInputStream::from_bytes(bytes);
        while let Some(tag) = stream.read_raw_tag_or_eof()? {
            match tag {
                18 => path = stream.read_string()?,
                26 => body = stream.read_bytes()?,
                _ => protobuf::rt::skip_field_for_tag(tag, &mut stream)?,
            }
        }
        if body.is_empty() && !path.is_empty() {
            let file = PathBuf::from(&path);
            body = bundle::read_bounded(&file, FILE_BYTES_MAX)
                .map_err(|source| OptionsError::File { path: file, source })?;
        }
        let place = if path.is_empty() { "the configuration of containerd".to_owned() } else { path };
        Self::of_toml(&body).map_err(|source| OptionsError::Text { place, source: Box::new(source) })
    }

    fn of_toml(bytes: &[u8]) -> Result<Self, toml::de::Error> {
        toml::from_slice(bytes)
    }
}

impl From<oci::Options> for Written {
    fn from(options: oci::Options) -> Self {
        Written {
            binary_name: options.binary_name,
            root: options.root,
            systemd_cgroup: options.systemd_cgroup,
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            shim_cgroup: options.shim_cgroup,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
        }
    }
}

/// A path as it is; a name, or ours when there is none, beside this shim's own binary, else in PATH.
fn find_runtime(name: &str) -> Result<PathBuf, OptionsError> {
    let own = std::env::current_exe().unwrap_or_default();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let beside = own.parent().filter(|_| name.is_empty() || name == RUNTIME).map(Path::to_path_buf);
    let name = if name.is_empty() { RUNTIME } else { name };
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    let places = beside.into_iter().chain(std::env::split_paths(&path));
    let mut candidates = places.filter(|place| place.is_absolute()).map(|place| place.join(name));
    candidates.find(|candidate| candidate.is_file()).ok_or_else(|| OptionsError::NoRuntime(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(kind: &str, value: Vec<u8>) -> Any {
        Any { type_url: kind.to_owned(), value, ..Any::default() }
    }

    #[test]
    fn options_of_runc_are_taken() {
        let mut message = oci::Options::new();
        message.binary_name = "/usr/sbin/runc".to_owned();
        message.root = "/run/x".to_owned();
        message.systemd_cgroup = true;
        let any = any("containerd.runc.v1.Options", message.write_to_bytes().unwrap());
        let options = Options::of_request(Some(&any), "ns").unwrap();
        assert_eq!(options.binary, Path::new("/usr/sbin/runc"));
        assert_eq!(options.root, Path::new("/run/x/ns"));
        assert!(options.systemd_cgroup && !options.no_pivot);
    }

    #[test]
    fn a_text_of_options_is_taken_and_unknown_names_refused() {
        let message = |text: &str| {
            let mut bytes = vec![10, 1, b'x', 26, text.len() as u8];
            bytes.extend(text.as_bytes());
            any("runtimeoptions.v1.Options", bytes)
        };
        let written = Written::of_any(&message("BinaryName = '/b'\nIoUid = 5")).unwrap();
        assert_eq!((written.binary_name.as_str(), written.io_uid), ("/b", 5));
        let error = Written::of_any(&message("BinaryNames = '/b'")).unwrap_err().to_string();
        assert!(error.contains("BinaryNames") && error.contains("BinaryName"), "{error}");
    }

    #[test]
    fn the_file_that_is_shipped_is_read() {
        let written = Written::of_toml(include_bytes!("../../kubernetes/shim.toml")).unwrap();
        assert_eq!(written.binary_name, RUNTIME);
    }

    #[test]
    fn options_of_another_shim_are_refused() {
        let error = Written::of_any(&any("x.y.Options", vec![1])).unwrap_err();
        assert!(matches!(error, OptionsError::Type(kind) if kind == "x.y.Options"));
    }
}

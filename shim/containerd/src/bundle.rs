//! The directory of a container: what containerd put there and what the shim notes for its own successors.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::Error;

/// A configuration is at most this long; what is longer is not one.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// The parts of config.json that concern the shim.
#[derive(Debug, Default, Deserialize)]
pub struct Spec {
    /// Labels of the container.
    #[serde(default)]
    pub annotations: HashMap<String, String>,
    #[serde(default)]
    linux: Linux,
}

#[derive(Debug, Default, Deserialize)]
struct Linux {
    #[serde(default)]
    namespaces: Vec<Namespace>,
}

#[derive(Debug, Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

impl Spec {
    /// Reads config.json of a bundle.
    pub fn read(bundle: &Path) -> Result<Self, Error> {
        let path = bundle.join("config.json");
        let bytes = read_bounded(&path, CONFIG_BYTES_MAX).map_err(|source| Error::file("read", &path, source))?;
        serde_json::from_slice(&bytes).map_err(|source| Error::Json { path, source })
    }

    /// Whether the kernel ends all processes of the container with the first: only in a pid namespace of its own.
    pub fn dies_as_one(&self) -> bool {
        self.linux.namespaces.iter().any(|namespace| namespace.kind == "pid" && namespace.path.is_empty())
    }

    /// Containers of one group share a shim: a pod of Kubernetes, or whoever says so.
    pub fn group(&self) -> Option<&str> {
        let keys = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];
        let found = keys.iter().find_map(|key| self.annotations.get(*key));
        found.map(String::as_str).filter(|group| !group.is_empty())
    }
}

/// Reads a file that may not be longer than this.
pub fn read_bounded(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        let message = format!("it is longer than {bytes_max} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}

/// Writes a file whole or not at all: readers see the old one or the new one.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}", std::process::id()));
    std::fs::write(&beside, bytes).and_then(|()| std::fs::rename(&beside, path)).inspect_err(|_| {
        // It may not have been made at all.
        let _ = std::fs::remove_file(&beside);
    })
}

/// The pid that a runtime wrote.
pub fn read_pid(path: &Path) -> Result<i32, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::file("read", path, source))?;
    let pid = text.trim().parse::<i32>().ok().filter(|pid| *pid > 0);
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "it holds no pid");
    pid.ok_or_else(|| Error::file("read", path, malformed()))
}

/// A file that is gone when this is.
#[derive(Debug)]
pub struct Transient(pub PathBuf);

impl Drop for Transient {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("cannot remove {}: {error}", self.0.display());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn only_an_own_pid_namespace_dies_as_one() {
        assert!(spec(r#"{"linux":{"namespaces":[{"type":"pid"}]}}"#).dies_as_one());
        assert!(!spec(r#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/7/ns/pid"}]}}"#).dies_as_one());
        assert!(!spec(r#"{"linux":{"namespaces":[{"type":"mount"}]}}"#).dies_as_one());
        assert!(!spec("{}").dies_as_one());
    }

    #[test]
    fn a_pod_is_a_group() {
        assert_eq!(spec(r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"p"}}"#).group(), Some("p"));
        let both = r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"p","io.containerd.runc.v2.group":"g"}}"#;
        assert_eq!(spec(both).group(), Some("g"));
        assert_eq!(spec(r#"{"annotations":{"io.containerd.runc.v2.group":""}}"#).group(), None);
    }
}

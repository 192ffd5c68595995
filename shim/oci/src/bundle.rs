//! An OCI bundle: its directory, and its `config.json` read, parsed and checked before anything is done.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Capability, Linux, LinuxNamespaceType, Process, Spec};

use serde_json::{Value, json};

use crate::hooks;
use crate::init::memory_policy;
use crate::numbers;

/// Bytes of a `config.json`; those of real bundles have some ten thousand.
const CONFIG_BYTES_MAX: u64 = 16 << 20;
/// The kernel knows 8192 processors at most (`NR_CPUS`).
pub const CPU_MAX: usize = 8191;

/// What is wrong with a bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The directory.
    #[error("cannot find the bundle {0}; --bundle names a directory with a config.json")]
    Directory(PathBuf, #[source] std::io::Error),
    /// The file.
    #[error("cannot read {0}; `apex-oci spec` writes one to begin with")]
    Read(PathBuf, #[source] std::io::Error),
    /// The file is too large to be one.
    #[error("{0} has more than 16 MiB, which no configuration needs")]
    Size(PathBuf),
    /// The file's text.
    #[error("{0} is not a configuration of runtime-spec 1.x")]
    Parse(PathBuf, #[source] serde_json::Error),
    /// The version of the specification.
    #[error("ociVersion {0:?} is not supported: it must be a version 1.x.y of the OCI runtime specification")]
    Version(String),
    /// A property that must be there.
    #[error("config.json has no {0}, which a container on Linux needs")]
    Lacks(&'static str),
    /// A property that cannot be honoured.
    #[error("config.json: {key}: {problem}")]
    Property {
        /// Where it stands.
        key: String,
        /// What is wrong with it and what can be done.
        problem: String,
    },
}

fn property(key: impl Into<String>, problem: impl Into<String>) -> BundleError {
    BundleError::Property { key: key.into(), problem: problem.into() }
}

/// A bundle whose configuration was checked.
#[derive(Debug)]
pub struct Bundle {
    /// Its directory, absolute.
    pub path: PathBuf,
    /// Its root file system, absolute.
    pub rootfs: PathBuf,
    /// Its configuration.
    pub spec: Spec,
    /// The text of the configuration.
    pub text: Vec<u8>,
    /// What of it is passed over.
    pub notes: Vec<String>,
}

impl Bundle {
    /// Reads the bundle in a directory.
    ///
    /// # Errors
    /// It is none, or asks for what cannot be.
    pub fn load(dir: &Path, config: Option<&Path>) -> Result<Bundle, BundleError> {
        let path = std::fs::canonicalize(dir).map_err(|error| BundleError::Directory(dir.to_path_buf(), error))?;
        let file = config.map_or_else(|| path.join("config.json"), Path::to_path_buf);
        let text = read(&file)?;
        let (spec, notes): (Spec, _) = parse(&text).map_err(|error| BundleError::Parse(file, error))?;
        check(&spec)?;
        let root = spec.root().as_ref().ok_or(BundleError::Lacks("root"))?;
        let rootfs = path.join(root.path());
        let is_dir = std::fs::metadata(&rootfs).map(|facts| facts.is_dir());
        match is_dir {
            Ok(true) => {}
            Ok(false) => return Err(property("root.path", format!("{} is not a directory", rootfs.display()))),
            Err(error) => return Err(property("root.path", format!("cannot find {}: {error}", rootfs.display()))),
        }
        Ok(Bundle { path, rootfs, spec, text, notes })
    }

    /// The section `linux`, which [`Bundle::load`] has found.
    pub fn linux(&self) -> &Linux {
        self.spec.linux().as_ref().expect("checked when it was loaded")
    }

    /// The section `process`, which [`Bundle::load`] has found.
    pub fn process(&self) -> &Process {
        self.spec.process().as_ref().expect("checked when it was loaded")
    }
}

/// Parses a configuration, or a process. What the specification lets a runtime pass over with a warning is passed over: capabilities that no
/// kernel knows. A process without `user` is root's.
///
/// # Errors
/// The text is none.
pub fn parse<T: serde::de::DeserializeOwned>(text: &[u8]) -> Result<(T, Vec<String>), serde_json::Error> {
    let strict = match serde_json::from_slice(text) {
        Ok(parsed) => return Ok((parsed, Vec::new())),
        Err(error) => error,
    };
    // Anything else that is wrong, a key that stands twice for one, would be lost on the way below.
    let words = strict.to_string();
    if !["missing field `user`", "no variant for "].iter().any(|tolerable| words.starts_with(tolerable)) {
        return Err(strict);
    }
    let Ok(mut value) = serde_json::from_slice::<Value>(text) else { return Err(strict) };
    let mut unknown = Vec::new();
    let process = if value.get("process").is_some() { &mut value["process"] } else { &mut value };
    if let Some(process) = process.as_object_mut() {
        process.entry("user").or_insert_with(|| json!({ "uid": 0, "gid": 0 }));
        for (_, names) in process.get_mut("capabilities").and_then(Value::as_object_mut).into_iter().flatten() {
            let Some(names) = names.as_array_mut() else { continue };
            names.retain(|name| {
                let is_known = serde_json::from_value::<Capability>(name.clone()).is_ok();
                if !is_known && !unknown.contains(name) {
                    unknown.push(name.clone());
                }
                is_known
            });
        }
    }
    let names = unknown.iter().map(|name| name.as_str().map_or_else(|| name.to_string(), str::to_owned));
    // In the words of runc, which its callers know.
    let note = format!("ignoring unknown or unavailable capabilities: [{}]", names.collect::<Vec<_>>().join(" "));
    let notes = if unknown.is_empty() { Vec::new() } else { vec![note] };
    // By its text again: to read the specification from a value is as much code as from a text. The strict error tells line and column.
    serde_json::from_slice(value.to_string().as_bytes()).map(|parsed| (parsed, notes)).map_err(|_| strict)
}

fn read(file: &Path) -> Result<Vec<u8>, BundleError> {
    let fail = |error| BundleError::Read(file.to_path_buf(), error);
    let mut text = Vec::with_capacity(16 << 10);
    // A FIFO without a writer would otherwise be waited for without end.
    let opened = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(file).map_err(fail)?;
    if !opened.metadata().map_err(fail)?.is_file() {
        return Err(fail(std::io::Error::other("it is not a regular file")));
    }
    opened.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut text).map_err(fail)?;
    if text.len() as u64 > CONFIG_BYTES_MAX {
        return Err(BundleError::Size(file.to_path_buf()));
    }
    Ok(text)
}

fn check(spec: &Spec) -> Result<(), BundleError> {
    check_version(spec.version())?;
    let linux = spec.linux().as_ref().ok_or(BundleError::Lacks("linux"))?;
    check_process(spec.process().as_ref().ok_or(BundleError::Lacks("process"))?, "process")?;
    check_namespaces(linux)?;
    check_needs(spec, linux)?;
    check_hooks(spec)?;
    if spec.vm().is_some() {
        return Err(property("vm", "this runtime starts no virtual machines; remove the section"));
    }
    if linux.intel_rdt().is_some() {
        return Err(property("linux.intelRdt", "resource control by resctrl is not supported; remove the section"));
    }
    if let Some(Err(error)) = linux.memory_policy().as_ref().map(memory_policy::nodes) {
        return Err(property("linux.memoryPolicy", error.to_string()));
    }
    if linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()) {
        return Err(property("linux.netDevices", "moving network devices is not supported; set them up in a hook"));
    }
    Ok(())
}

fn check_version(version: &str) -> Result<(), BundleError> {
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<Option<u64>> = core.split('.').map(|part| part.parse().ok()).collect();
    match numbers[..] {
        [Some(1), Some(_), Some(_)] => Ok(()),
        _ => Err(BundleError::Version(version.to_owned())),
    }
}

/// Checks a process; `exec` checks its own with it.
///
/// # Errors
/// It has no program, or a directory that is not absolute.
pub fn check_process(process: &Process, key: &str) -> Result<(), BundleError> {
    let args = process.args().as_deref().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(property(format!("{key}.args"), "names no program; the first argument is what is executed"));
    }
    if !process.cwd().is_absolute() {
        let cwd = process.cwd().display();
        return Err(property(format!("{key}.cwd"), format!("{cwd:?} is not an absolute path in the container")));
    }
    for text in args.iter().chain(process.env().iter().flatten()) {
        if text.contains('\0') {
            return Err(property(key, format!("{text:?} holds a NUL byte, which no argument or variable can")));
        }
    }
    if let Some(affinity) = process.exec_cpu_affinity() {
        for text in [affinity.initial(), affinity.cpu_affinity_final()].into_iter().flatten() {
            if !text.is_empty() && numbers::list(text, CPU_MAX).is_none() {
                let problem = format!("{text:?} is no list of processors of 0 to {CPU_MAX}, such as 0-3,7");
                return Err(property(format!("{key}.execCPUAffinity"), problem));
            }
        }
    }
    let mut seen = HashSet::new();
    for limit in process.rlimits().iter().flatten() {
        if !seen.insert(limit.typ().to_string()) {
            return Err(property(format!("{key}.rlimits"), format!("{} stands there twice", limit.typ())));
        }
        if limit.soft() > limit.hard() {
            let problem =
                format!("{}: the soft limit {} is above the hard {}", limit.typ(), limit.soft(), limit.hard());
            return Err(property(format!("{key}.rlimits"), problem));
        }
    }
    Ok(())
}

fn check_namespaces(linux: &Linux) -> Result<(), BundleError> {
    let mut seen = HashSet::new();
    for namespace in linux.namespaces().iter().flatten() {
        if !seen.insert(namespace.typ()) {
            return Err(property("linux.namespaces", format!("{} stands there twice", namespace.typ())));
        }
        if let Some(path) = namespace.path()
            && !path.is_absolute()
        {
            let problem = format!("the path {:?} of {} is not absolute", path.display(), namespace.typ());
            return Err(property("linux.namespaces", problem));
        }
    }
    Ok(())
}

/// What a bundle can ask for only together with a namespace.
fn check_needs(spec: &Spec, linux: &Linux) -> Result<(), BundleError> {
    let has = |kind| has_namespace(linux, kind);
    let is_listed = |paths: &Option<Vec<String>>| paths.as_ref().is_some_and(|paths| !paths.is_empty());
    let needs = [
        (is_listed(linux.masked_paths()), "linux.maskedPaths", LinuxNamespaceType::Mount),
        (is_listed(linux.readonly_paths()), "linux.readonlyPaths", LinuxNamespaceType::Mount),
        (spec.hostname().as_ref().is_some_and(|name| !name.is_empty()), "hostname", LinuxNamespaceType::Uts),
        (spec.domainname().as_ref().is_some_and(|name| !name.is_empty()), "domainname", LinuxNamespaceType::Uts),
        (
            linux.time_offsets().as_ref().is_some_and(|all| !all.is_empty()),
            "linux.timeOffsets",
            LinuxNamespaceType::Time,
        ),
    ];
    for (is_there, key, kind) in needs {
        if is_there && !has(kind) {
            return Err(property(
                key,
                format!("would change the host: it needs a namespace of type {kind:?}").to_lowercase(),
            ));
        }
    }
    let is_mapped = |maps: &Option<Vec<_>>| maps.as_ref().is_some_and(|maps| !maps.is_empty());
    let (uids, gids) = (is_mapped(linux.uid_mappings()), is_mapped(linux.gid_mappings()));
    let is_new =
        linux.namespaces().iter().flatten().any(|one| one.typ() == LinuxNamespaceType::User && one.path().is_none());
    match (is_new, uids && gids, uids || gids) {
        (true, false, _) => Err(property(
            "linux.uidMappings and linux.gidMappings",
            "a new user namespace needs both, otherwise nobody in it has an id",
        )),
        (false, _, true) if !has(LinuxNamespaceType::User) => Err(property(
            "linux.uidMappings and linux.gidMappings",
            "stand there without a namespace of type user, in which alone they hold",
        )),
        _ => Ok(()),
    }
}

/// Whether the container has a namespace of this kind, new or joined.
pub fn has_namespace(linux: &Linux, kind: LinuxNamespaceType) -> bool {
    linux.namespaces().iter().flatten().any(|namespace| namespace.typ() == kind)
}

fn check_hooks(spec: &Spec) -> Result<(), BundleError> {
    use hooks::Phase::{CreateContainer, CreateRuntime, Poststart, Poststop, Prestart, StartContainer};
    for phase in [Prestart, CreateRuntime, CreateContainer, StartContainer, Poststart, Poststop] {
        for hook in hooks::of(spec.hooks().as_ref(), phase) {
            let key = || format!("hooks.{}", phase.name());
            if !hook.path().is_absolute() {
                return Err(property(key(), format!("the path {:?} is not absolute", hook.path().display())));
            }
            if hook.timeout().is_some_and(|seconds| seconds <= 0) {
                return Err(property(key(), "a timeout must be more than 0 seconds"));
            }
        }
    }
    Ok(())
}

/// An absolute path without `.` and `..`, which go no further up than the root.
pub fn lexical(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_text(change: &str, expected: Option<&str>) {
        let base = r#"{"ociVersion":"1.0.2","root":{"path":"r"},"process":{"user":{"uid":0,"gid":0},"args":["true"],"cwd":"/"},
            "linux":{"namespaces":[{"type":"mount"},{"type":"pid"}]}}"#;
        let mut value: serde_json::Value = serde_json::from_str(base).expect("valid");
        let change: serde_json::Value = serde_json::from_str(change).expect("valid");
        for (pointer, new) in change.as_object().expect("an object") {
            let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
            let parent = value.pointer_mut(parent).expect("its place").as_object_mut().expect("an object");
            parent.insert(name.to_owned(), new.clone());
        }
        let spec = serde_json::from_value(value).expect("a spec");
        match (check(&spec).map_err(|error| error.to_string()), expected) {
            (Ok(()), None) => {}
            (Err(words), Some(part)) => assert!(words.contains(part), "{words}"),
            (result, _) => panic!("{change}: {result:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_place() {
        check_text("{}", None);
        check_text(r#"{"/ociVersion":"2.0.0"}"#, Some("2.0.0"));
        check_text(r#"{"/ociVersion":"1.0"}"#, Some("1.0"));
        check_text(r#"{"/ociVersion":"1.2.0-rc.1+dev"}"#, None);
        check_text(r#"{"/process/args":[]}"#, Some("process.args"));
        check_text(r#"{"/process/args":["a\u0000b"]}"#, Some("NUL"));
        check_text(r#"{"/process/cwd":"tmp"}"#, Some("process.cwd"));
        check_text(r#"{"/hostname":"x"}"#, Some("hostname"));
        check_text(r#"{"/linux/namespaces":[{"type":"pid"},{"type":"pid"}]}"#, Some("twice"));
        check_text(r#"{"/linux/namespaces":[{"type":"pid","path":"x"}]}"#, Some("not absolute"));
        check_text(r#"{"/linux/namespaces":[{"type":"user"}]}"#, Some("needs both"));
        check_text(r#"{"/linux/namespaces":[],"/linux/maskedPaths":["/proc/kcore"]}"#, Some("maskedPaths"));
        check_text(r#"{"/linux/intelRdt":{"closID":"x"}}"#, Some("resctrl"));
        check_text(r#"{"/linux/uidMappings":[{"hostID":0,"containerID":0,"size":1}]}"#, Some("without a namespace"));
        check_text(r#"{"/hooks":{"prestart":[{"path":"x"}]}}"#, Some("hooks.prestart"));
        check_text(r#"{"/hooks":{"poststop":[{"path":"/x","timeout":-1}]}}"#, Some("timeout"));
        let twice = r#"{"/process/rlimits":[{"type":"RLIMIT_CORE","hard":1,"soft":1},{"type":"RLIMIT_CORE","hard":1,"soft":1}]}"#;
        check_text(twice, Some("twice"));
    }

    #[test]
    fn what_may_be_passed_over_is_and_the_rest_is_not() {
        let with = |process: &str| format!(r#"{{"ociVersion":"1.0.2","process":{process}}}"#);
        let (spec, notes) = parse::<Spec>(
            with(r#"{"args":["a"],"cwd":"/","capabilities":{"bounding":["CAP_KILL","CAP_NOPE"]}}"#).as_bytes(),
        )
        .expect("tolerable");
        assert_eq!(notes, ["ignoring unknown or unavailable capabilities: [CAP_NOPE]"]);
        assert_eq!(spec.process().as_ref().expect("a process").user().uid(), 0);
        let error = parse::<Spec>(with(r#"{"args":7,"cwd":"/"}"#).as_bytes()).expect_err("no list");
        assert!(error.to_string().contains("line 1"), "{error}");
        let (process, _) = parse::<Process>(br#"{"args":["a"],"cwd":"/"}"#).expect("a process alone");
        assert_eq!(process.args().as_ref().expect("arguments").len(), 1);
    }

    #[test]
    fn paths_do_not_leave_the_root() {
        let check = |path: &str, expected: &str| assert_eq!(lexical(Path::new(path)), Path::new(expected));
        check("/a/../../b", "/b");
        check("a/./b", "/a/b");
        check("/..", "/");
    }
}

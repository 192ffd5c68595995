//! Parameters of the kernel (`linux.sysctl`): those only that belong to a namespace which the container does not share with the host.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::procfs::Verified;
use super::rootfs::RootfsError;

/// Parameters of IPC namespaces (ipc_namespaces(7)).
const IPC: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shm_rmid_forced",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
];

/// Refuses what belongs to the host. Outside, before anything is made.
///
/// # Errors
/// The parameter, and why it cannot be set.
pub fn validate(spec: &Spec) -> Result<(), RootfsError> {
    let Some(parameters) = parameters(spec) else { return Ok(()) };
    for name in parameters.keys() {
        let refused = |why| Err(RootfsError::Sysctl { name: name.clone(), why });
        let Some(path) = path_of(name) else { return refused("it is no name of a parameter") };
        match owner(&path) {
            Err(why) => return refused(why),
            Ok((kind, why)) if !has_own(spec, kind) => return refused(why),
            Ok(_) => {}
        }
    }
    Ok(())
}

/// Sets them, through a proc file system that is certainly one. Inside, in the container's namespaces.
///
/// # Errors
/// The parameter that cannot be set; those before it, in the order of their names, are.
pub fn apply(spec: &Spec, proc: &Verified) -> Result<(), RootfsError> {
    let Some(parameters) = parameters(spec) else { return Ok(()) };
    let mut sorted: Vec<_> = parameters.iter().collect();
    sorted.sort();
    for (name, value) in sorted {
        let path = path_of(name)
            .ok_or_else(|| RootfsError::Sysctl { name: name.clone(), why: "it is no name of a parameter" })?;
        proc.write(&Path::new("sys").join(path), value)?;
    }
    Ok(())
}

fn parameters(spec: &Spec) -> Option<&HashMap<String, String>> {
    spec.linux().as_ref()?.sysctl().as_ref().filter(|all| !all.is_empty())
}

/// The file of a parameter below /proc/sys. As sysctl(8) has it, the first separator tells which one separates: in `net.ipv4.conf.eth0/1.forwarding` a slash
/// stands for a dot in a name, in `net/ipv4/conf/eth0.1/forwarding` dots are dots.
fn path_of(name: &str) -> Option<PathBuf> {
    let path = match name.find(['.', '/']).map(|index| name.as_bytes()[index]) {
        Some(b'/') => name.to_owned(),
        _ => name
            .chars()
            .map(|it| {
                if it == '.' {
                    '/'
                } else if it == '/' {
                    '.'
                } else {
                    it
                }
            })
            .collect(),
    };
    let is_name = |part: &str| !part.is_empty() && part != "." && part != "..";
    (path.contains('/') && !path.contains('\0') && path.split('/').all(is_name)).then(|| path.into())
}

/// The namespace that a parameter belongs to, and what is wrong where the container has none of its own.
fn owner(path: &Path) -> Result<(LinuxNamespaceType, &'static str), &'static str> {
    if path.starts_with("net") {
        return Ok((LinuxNamespaceType::Network, "the container has no network namespace of its own: add one"));
    }
    if path.starts_with("fs/mqueue") || IPC.iter().any(|known| path == Path::new(known)) {
        return Ok((LinuxNamespaceType::Ipc, "the container has no IPC namespace of its own: add one"));
    }
    if path.starts_with("user") {
        return Ok((LinuxNamespaceType::User, "the container has no user namespace of its own: add one"));
    }
    match path.to_str() {
        Some("kernel/domainname") => {
            Ok((LinuxNamespaceType::Uts, "the container has no UTS namespace of its own: add one"))
        }
        Some("kernel/hostname") => Err("the host name is set by hostname: use that"),
        _ => Err("it is in no namespace: set it on the host"),
    }
}

/// Whether the container has a namespace of this kind that is not the one of this process.
fn has_own(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    let Some(namespace) = namespaces.iter().find(|namespace| namespace.typ() == kind) else { return false };
    let Some(path) = namespace.path() else { return true };
    let file = match kind {
        LinuxNamespaceType::Network => "net",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::Uts => "uts",
        _ => "user",
    };
    let identity = |path: &Path| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path).map(|found| (found.dev(), found.ino()))
    };
    // What cannot be told apart may be the host's.
    match (identity(path), identity(&Path::new("/proc/self/ns").join(file))) {
        (Ok(theirs), Ok(ours)) => theirs != ours,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(namespaces: &str, name: &str) -> Spec {
        let text =
            format!(r#"{{"ociVersion":"1.2.0","linux":{{"namespaces":[{namespaces}],"sysctl":{{"{name}":"1"}}}}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn names_have_two_forms() {
        for (name, path) in [
            ("net.ipv4.ip_forward", Some("net/ipv4/ip_forward")),
            ("net/ipv4/conf/eth0.1/forwarding", Some("net/ipv4/conf/eth0.1/forwarding")),
            ("net.ipv4.conf.eth0/1.forwarding", Some("net/ipv4/conf/eth0.1/forwarding")),
            ("net/../kernel/core_pattern", None),
            ("net./..kernel", None),
            ("kernel", None),
            ("", None),
            ("/net/x", None),
        ] {
            assert_eq!(path_of(name).as_deref(), path.map(Path::new), "{name}");
        }
    }

    #[test]
    fn what_belongs_to_the_host_is_refused() {
        let all = r#"{"type":"network"},{"type":"ipc"},{"type":"uts"}"#;
        for name in
            ["net.ipv4.ip_forward", "kernel.shmmax", "fs.mqueue.msg_max", "kernel.domainname", "net/core/somaxconn"]
        {
            validate(&spec(all, name)).unwrap();
            validate(&spec("", name)).unwrap_err();
            validate(&spec(
                r#"{"type":"network","path":"/proc/self/ns/net"},{"type":"ipc","path":"/proc/1/ns/nothing"}"#,
                name,
            ))
            .unwrap_err();
        }
        for name in ["kernel.core_pattern", "kernel.hostname", "vm.swappiness", "netx.y", "user.max_user_namespaces"] {
            validate(&spec(all, name)).unwrap_err();
        }
    }
}

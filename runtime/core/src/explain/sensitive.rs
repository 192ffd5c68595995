//! Places whose grant would hand out the host, or the user's identity. No change is ever offered for them.

use std::path::Path;

/// Why nothing should grant `path`, when so.
pub(super) fn reason(path: &Path) -> Option<&'static str> {
    if let Some((_, why)) = SYSTEM.iter().find(|(place, _)| path.starts_with(place)) {
        return Some(why);
    }
    if SYSTEM.iter().any(|(place, _)| Path::new(place).starts_with(path))
        || WIDE.iter().any(|wide| path == Path::new(wide))
    {
        return Some("secrets of the host lie beneath it");
    }
    if is_home(path) {
        return Some("it is a home as a whole, with its keys and credentials");
    }
    kept(path)
}

/// Why a path holds a secret, for learning: the caller's own home is not one as a whole, even where it is root's.
pub(crate) fn secret(path: &Path, home: Option<&Path>) -> Option<&'static str> {
    let is_own = |place: &str| home.is_some_and(|home| home.starts_with(place) && path.starts_with(home));
    if let Some((_, why)) = SYSTEM.iter().find(|(place, _)| path.starts_with(place) && !is_own(place)) {
        return Some(why);
    }
    kept(path).or_else(|| socket(path))
}

/// Names that hold secrets, or lead to who commands the host, wherever they stand.
pub(crate) fn kept_names() -> impl Iterator<Item = (&'static str, &'static str)> {
    HOME.iter().copied().chain(SOCKETS.iter().map(|name| (*name, COMMANDS)))
}

fn kept(path: &Path) -> Option<&'static str> {
    let holds = |name| HOME.iter().find(|(secret, _)| *secret == name);
    names(path).find_map(holds).filter(|_| !is_public(path)).map(|(_, why)| *why)
}

/// Why nothing should talk to a socket, when so.
pub(super) fn socket(path: &Path) -> Option<&'static str> {
    names(path).any(|name| SOCKETS.contains(&name)).then_some(COMMANDS)
}

fn names(path: &Path) -> impl Iterator<Item = &str> {
    path.components().filter_map(|part| part.as_os_str().to_str())
}

/// `/home` and `/home/NAME`.
fn is_home(path: &Path) -> bool {
    path.strip_prefix("/home").is_ok_and(|rest| rest.components().count() <= 1)
}

/// Parts of `~/.ssh` that hold no secret.
pub(crate) fn is_public(path: &Path) -> bool {
    let known_hosts = path.file_name().is_some_and(|name| name == "known_hosts");
    known_hosts || path.extension().is_some_and(|extension| extension == "pub")
}

const SYSTEM: &[(&str, &str)] = &[
    ("/etc/shadow", "it holds the password hashes of the host"),
    ("/etc/gshadow", "it holds the password hashes of the host"),
    ("/etc/sudoers", "it decides who becomes root"),
    ("/etc/sudoers.d", "it decides who becomes root"),
    ("/etc/ssh", "it holds the host's own keys"),
    ("/etc/ssl/private", "it holds private keys"),
    ("/root", "it is root's home, with root's keys and history"),
    ("/proc/sys", "it tunes the kernel of the host"),
    ("/proc/sysrq-trigger", "it can stop the host"),
    ("/proc/kcore", "it is the host's memory"),
    ("/proc/kallsyms", "it tells where the kernel lies in memory"),
    ("/proc/keys", "it lists the host's keys"),
    ("/sys/kernel", "it steers the kernel of the host"),
    ("/sys/fs/bpf", "it holds the kernel programs of the host"),
    ("/sys/fs/cgroup", "it holds the limits, those of this sandbox included"),
    ("/dev/mem", "it is the host's memory"),
    ("/dev/kmem", "it is the host's memory"),
    ("/dev/port", "it is the host's hardware"),
    ("/dev/kmsg", "it is the kernel's log"),
    ("/boot", "it holds the kernel that the host starts"),
    ("/run/dbus", "services on the system bus act for the whole host"),
    ("/run/systemd", "services of the host are steered through it"),
    ("/var/run/dbus", "services on the system bus act for the whole host"),
];

/// Directories that are granted piece by piece.
const WIDE: &[&str] = &["/var/run", "/var", "/proc", "/run/user"];

const COMMANDS: &str = "whoever talks to this socket commands the host";
const SOCKETS: &[&str] = &["docker.sock", "containerd.sock", "podman.sock", "crio.sock", "libvirt-sock"];

const HOME: &[(&str, &str)] = &[
    (".ssh", "it holds private keys"),
    (".gnupg", "it holds private keys"),
    (".aws", "it holds credentials of a cloud account"),
    (".azure", "it holds credentials of a cloud account"),
    ("gcloud", "it holds credentials of a cloud account"),
    (".kube", "it holds credentials of clusters"),
    (".docker", "it holds credentials of registries"),
    (".netrc", "it holds passwords"),
    (".pgpass", "it holds passwords"),
    (".git-credentials", "it holds passwords"),
    (".pypirc", "it holds upload credentials"),
    (".password-store", "it holds passwords"),
    (".mozilla", "it holds sessions and passwords of a browser"),
    (".bash_history", "it holds what was typed, passwords included"),
    (".zsh_history", "it holds what was typed, passwords included"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, sensitive: bool) {
        assert_eq!(reason(Path::new(path)).is_some(), sensitive, "{path}");
    }

    #[test]
    fn secrets_are_known_wherever_a_home_lies() {
        check("/home/jo/.ssh/id_ed25519", true);
        check("/srv/homes/jo/.aws", true);
        check("/root/notes", true);
        check("/etc/shadow", true);
        check("/proc/sys/kernel/core_pattern", true);
    }

    #[test]
    fn what_holds_secrets_is_sensitive_too() {
        check("/", true);
        check("/etc", true);
        check("/home/jo", true);
        assert!(socket(Path::new("/home/jo/run/docker.sock")).is_some());
    }

    #[test]
    fn other_places_are_not() {
        assert_eq!(socket(Path::new("/etc/docker.socket")), None);
        check("/home/jo/.ssh/known_hosts", false);
        check("/home/jo/.ssh/id_ed25519.pub", false);
        check("/home/jo/project/ssh.c", false);
        check("/etc/shadowy", false);
        check("/etc/hosts", false);
    }
}

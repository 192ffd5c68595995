//! Tests of the whole way from text to policy.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::*;

/// The names in policies/syscalls.toml that the built-in files use, and the refused ones.
pub(super) const GROUPS: &[&str] = &[
    "base",
    "files",
    "dirs",
    "time",
    "signals",
    "threads",
    "process",
    "ipc",
    "sockets",
    "polling",
    "terminal",
    "identity-read",
    "scheduling",
    "memory-advice",
    "random",
    "xattr",
    "system-info",
    "fs-change",
    "io-uring",
    "userfaultfd",
    "bpf",
    "perf",
    "keyrings",
    "ptrace",
    "namespaces",
    "mount",
    "module",
    "reboot",
    "clock-set",
    "swap",
    "privilege",
    "rare-sockets",
    "numa",
    "handles",
    "obsolete",
    "kernel-log",
    "setuid-bits",
    "terminal-injection",
    "quota",
    "fanotify",
    "pidfd-steal",
    "admin",
];

/// Files by path.
#[derive(Default)]
struct Files(BTreeMap<PathBuf, String>);

impl Sources for Files {
    fn load(&mut self, path: &Path) -> io::Result<Option<String>> {
        Ok(self.0.get(path).cloned())
    }
}

fn inputs() -> Inputs<'static> {
    Inputs {
        mode: None,
        profile: None,
        policy_file: None,
        flags: Flags::default(),
        home: Some(PathBuf::from("/home/u")),
        cwd: PathBuf::from("/work/job"),
        tmpdir: None,
        system_config: Some(PathBuf::from("/etc/apex")),
        user_config: Some(PathBuf::from("/home/u/.config/apex")),
        groups: GROUPS,
    }
}

fn files(list: &[(&str, &str)]) -> Files {
    Files(
        list.iter()
            .map(|(path, text)| (PathBuf::from(path), (*text).to_owned()))
            .collect(),
    )
}

#[test]
fn every_built_in_resolves() {
    for mode in [Mode::Isolation, Mode::Hybrid, Mode::Development] {
        for profile in std::iter::once(None).chain(PROFILES.iter().map(|(name, _)| Some(*name))) {
            let inputs = Inputs {
                mode: Some(mode),
                profile: profile.map(str::to_owned),
                ..inputs()
            };
            let policy = resolve(&inputs, &mut Files::default())
                .unwrap_or_else(|error| panic!("{mode:?} {profile:?}: {error}"));
            assert_eq!(policy.mode, mode);
        }
    }
}

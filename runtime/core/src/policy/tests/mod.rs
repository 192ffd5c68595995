//! Tests of the whole way from text to policy.

mod errors;
mod level;
mod properties;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::*;
use crate::layer::{Layer, Requirement};

/// The names in policies/syscalls.toml that the built-in files use, and the refused ones.
const GROUPS: &[&str] = &[
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
    "identity-set",
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
    "core-dumps",
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
        cwd: PathBuf::from("/job/job"),
        tmpdir: None,
        system_config: Some(PathBuf::from("/etc/apex")),
        user_config: Some(PathBuf::from("/home/u/.config/apex")),
        groups: GROUPS,
    }
}

fn files(list: &[(&str, &str)]) -> Files {
    Files(list.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect())
}

#[test]
fn every_built_in_resolves() {
    for mode in [Mode::Isolation, Mode::Hybrid, Mode::Development] {
        for profile in std::iter::once(None).chain(PROFILES.iter().map(|(name, _)| Some(*name))) {
            let inputs = Inputs { mode: Some(mode), profile: profile.map(str::to_owned), ..inputs() };
            let policy =
                resolve(&inputs, &mut Files::default()).unwrap_or_else(|error| panic!("{mode:?} {profile:?}: {error}"));
            assert_eq!(policy.mode, mode);
        }
    }
}

fn with_policy(text: &str) -> Policy {
    let inputs = Inputs { policy_file: Some(PathBuf::from("p.toml")), ..inputs() };
    resolve(&inputs, &mut files(&[("/job/job/p.toml", text)])).unwrap_or_else(|error| panic!("{error}"))
}

fn with_flags(flags: Flags) -> Policy {
    resolve(&Inputs { flags, ..inputs() }, &mut files(&[])).unwrap_or_else(|error| panic!("{error}"))
}

fn find<'a>(grants: &'a [Grant], dest: &str) -> Option<&'a Grant> {
    grants.iter().find(|grant| grant.dest == Path::new(dest))
}

#[test]
fn isolation_is_the_default_and_strict() {
    let policy = resolve(&inputs(), &mut files(&[])).unwrap();
    assert_eq!(policy.mode, Mode::Isolation);
    assert_eq!(policy.sources, ["modes/isolation.toml"]);
    assert_eq!(policy.network, Network::None);
    assert_eq!(policy.filesystem.proc, ProcView::Pid);
    assert!(policy.filesystem.write.is_empty() && policy.capabilities.is_empty());
    assert_eq!(policy.resources.memory_bytes, Some(512 << 20));
    assert_eq!(policy.resources.swap_bytes, Some(0));
    assert_eq!(policy.resources.wall_time_ms, Some(3_600_000));
    let usr = find(&policy.filesystem.read, "/usr").unwrap();
    assert_eq!(usr.origin, Origin { source: "modes/isolation.toml".to_owned(), line: 6 });
}

#[test]
fn every_built_in_rule_has_a_reason() {
    for mode in [Mode::Isolation, Mode::Hybrid, Mode::Development] {
        for (profile, _) in PROFILES {
            let inputs = Inputs { mode: Some(mode), profile: Some(profile.to_owned()), ..inputs() };
            let filesystem = resolve(&inputs, &mut files(&[])).unwrap().filesystem;
            for rules in [filesystem.read, filesystem.write, filesystem.exec, filesystem.hide, filesystem.deny] {
                assert!(rules.iter().all(|rule| rule.reason != "no reason given"), "{mode:?} {profile}");
            }
        }
    }
}

#[test]
fn a_policy_names_its_mode_and_the_flag_wins() {
    assert_eq!(with_policy("mode = \"hybrid\"").mode, Mode::Hybrid);
    let inputs = Inputs { mode: Some(Mode::Development), policy_file: Some(PathBuf::from("p.toml")), ..inputs() };
    let policy = resolve(&inputs, &mut files(&[("/job/job/p.toml", "mode = \"hybrid\"")])).unwrap();
    assert_eq!(policy.mode, Mode::Development);
}

#[test]
fn later_rules_win_on_the_same_place() {
    let policy = with_policy(
        "[filesystem]\nwrite = [\"/srv/a\", \"/tmp\"]\nread = [{ path = \"/srv/hosts\", dest = \"/etc/localtime\" }]",
    );
    assert!(policy.filesystem.tmpfs.is_empty(), "the host's /tmp takes the place of the private one");
    assert_eq!(find(&policy.filesystem.read, "/etc/localtime").unwrap().path, Path::new("/srv/hosts"));
    let policy = with_policy("mode = \"development\"\n[filesystem]\nread = [\"${CWD}\"]");
    assert!(find(&policy.filesystem.write, "/job/job").is_none());
}

#[test]
fn inherit_false_forgets_grants_and_keeps_refusals() {
    let policy = with_policy("mode = \"development\"\n[filesystem]\ninherit = false\nread = [\"./x\"]");
    let paths: Vec<_> = policy.filesystem.read.iter().map(|grant| grant.path.clone()).collect();
    assert_eq!(paths, [PathBuf::from("/job/job/x")]);
    assert!(
        policy.filesystem.write.is_empty() && policy.filesystem.exec.is_empty() && policy.filesystem.tmpfs.is_empty()
    );
    assert!(policy.filesystem.deny.iter().any(|rule| rule.path == Path::new("/home/u/.ssh")));
}

#[test]
fn flags_come_last() {
    let flags = Flags {
        ro: vec!["lib:/opt/lib".into(), "../data".into()],
        rw: vec!["/srv/out".into()],
        tmpfs: vec!["/scratch:8M".into()],
        deny: vec!["/srv/out/.git".into()],
        env: vec!["A=b=c".to_owned()],
        pass_env: vec!["HOME".to_owned()],
        uid: Some("0".to_owned()),
        memory: Some("1G".to_owned()),
        cpu: Some("50".to_owned()),
        time: Some("5s".to_owned()),
        tty: Some("no".to_owned()),
        optional: vec!["seccomp".to_owned()],
        ..Flags::default()
    };
    let policy = with_flags(flags);
    let lib = find(&policy.filesystem.read, "/opt/lib").unwrap();
    assert_eq!((lib.path.as_path(), lib.origin.to_string()), (Path::new("/job/job/lib"), "--ro".to_owned()));
    assert!(
        find(&policy.filesystem.exec, "/opt/lib").is_some() && find(&policy.filesystem.read, "/job/data").is_some()
    );
    assert!(
        find(&policy.filesystem.write, "/srv/out").is_some()
            && find(&policy.filesystem.deny, "/srv/out/.git").is_some()
    );
    assert_eq!(policy.filesystem.tmpfs.last().unwrap().size_bytes, Some(8 << 20));
    assert_eq!(policy.environment.set["A"], "b=c");
    assert!(policy.environment.pass.contains(&"HOME".to_owned()) && !policy.environment.set.contains_key("HOME"));
    assert_eq!(
        (policy.identity.uid, policy.resources.cpu_percent, policy.resources.wall_time_ms),
        (Some(0), Some(50), Some(5000))
    );
    assert_eq!(policy.tty, Tty::No);
    assert_eq!(policy.layers[&Layer::Seccomp], Requirement::Optional);
    assert_eq!(policy.sources.last().unwrap(), "flags");
}

#[test]
fn profiles_raise_limits_and_never_lower_them() {
    let build = |mode| {
        let inputs = Inputs { mode: Some(mode), profile: Some("build".to_owned()), ..inputs() };
        resolve(&inputs, &mut files(&[])).unwrap().resources
    };
    assert_eq!(build(Mode::Isolation).memory_bytes, Some(4 << 30));
    assert_eq!(build(Mode::Isolation).wall_time_ms, Some(3_600_000));
    assert_eq!(build(Mode::Development).memory_bytes, None);
    assert_eq!(
        with_policy("extends = [\"profile:build\"]\nresources.memory = \"1M\"").resources.memory_bytes,
        Some(1 << 20)
    );
}

#[test]
fn the_static_profile_shows_nothing_of_the_host() {
    let inputs = Inputs { profile: Some("static".to_owned()), ..inputs() };
    let policy = resolve(&inputs, &mut files(&[])).unwrap();
    assert!(policy.filesystem.read.is_empty() && policy.filesystem.exec.is_empty());
    assert_eq!(policy.filesystem.proc, ProcView::None);
}

#[test]
fn configured_files_replace_built_in_ones() {
    let list = [
        ("/etc/apex/profiles/python.toml", "identity.hostname = \"etc\""),
        ("/home/u/.config/apex/profiles/python.toml", "identity.hostname = \"home\""),
        ("/etc/apex/profiles/own.toml", "extends = [\"profile:static\", \"more.toml\"]"),
        ("/etc/apex/profiles/more.toml", "identity.hostname = \"more\""),
    ];
    let with =
        |profile: &str| resolve(&Inputs { profile: Some(profile.to_owned()), ..inputs() }, &mut files(&list)).unwrap();
    assert_eq!(with("python").identity.hostname, "home");
    assert_eq!(with("own").identity.hostname, "more");
    assert_eq!(
        with("own").sources,
        ["modes/isolation.toml", "profiles/static.toml", "/etc/apex/profiles/more.toml", "/etc/apex/profiles/own.toml"]
    );
}

#[test]
fn an_administrators_ceiling_holds_over_the_users_mode() {
    const USER: &str = "/home/u/.config/apex/modes/isolation.toml";
    const SYSTEM: &str = "/etc/apex/modes/isolation.toml";
    let limits = "[resources]\nmemory = 1\nswap = 0\ntasks = 1\nopen_files = 1\nfile_size = 1\n";
    let loose = format!("network.access = \"host\"\n{limits}[ceiling]\nnetwork = \"host\"\nfinite = []\n");
    let with = |list: &[(&str, &str)]| resolve(&inputs(), &mut files(list));

    // The built-in ceiling holds over the user, too; the administrator may replace it.
    assert!(matches!(with(&[(USER, &loose)]), Err(PolicyError::Ceiling { .. })));
    assert_eq!(with(&[(SYSTEM, &loose)]).unwrap().network, Network::Host);
    assert_eq!(with(&[(SYSTEM, &loose), (USER, &loose)]).unwrap().network, Network::Host);
    let strict = format!("{limits}[filesystem]\ndeny = [\"/srv/secret\"]\n[ceiling]\ngrant_forbidden = [\"/srv\"]\n");
    assert!(matches!(with(&[(SYSTEM, &strict), (USER, &loose)]), Err(PolicyError::Ceiling { .. })));
    let policy = with(&[(SYSTEM, &strict), (USER, limits)]).unwrap();
    assert_eq!(policy.filesystem.deny[0].origin.to_string(), format!("{SYSTEM}:8"));
    let grants = format!("{limits}[filesystem]\nread = [\"/srv/x\"]\n");
    assert!(matches!(with(&[(SYSTEM, &strict), (USER, &grants)]), Err(PolicyError::Ceiling { .. })));
}

#[test]
fn bounds_hold() {
    let mut chain = Files::default();
    for at in 0..=DEPTH_MAX {
        chain.0.insert(PathBuf::from(format!("/job/job/{at}.toml")), format!("extends = [\"{}.toml\"]", at + 1));
    }
    let inputs = Inputs { policy_file: Some(PathBuf::from("0.toml")), ..inputs() };
    assert!(matches!(resolve(&inputs, &mut chain), Err(PolicyError::TooMany { .. })));
    let wide: Vec<String> = (0..=FILES_MAX).map(|at| format!("w{at}.toml")).collect();
    let mut files = Files(wide.iter().map(|name| (Path::new("/job/job").join(name), String::new())).collect());
    files.0.insert(PathBuf::from("/job/job/0.toml"), format!("extends = {wide:?}"));
    assert!(matches!(resolve(&inputs, &mut files), Err(PolicyError::TooMany { .. })));
    let paths: Vec<String> = (0..=PATH_RULES_MAX).map(|at| format!("/srv/{at}")).collect();
    files.0.insert(PathBuf::from("/job/job/0.toml"), format!("filesystem.read = {paths:?}"));
    assert!(matches!(resolve(&inputs, &mut files), Err(PolicyError::TooMany { .. })));
    files.0.insert(PathBuf::from("/job/job/0.toml"), "#".repeat(FILE_SIZE_MAX + 1));
    assert!(matches!(resolve(&inputs, &mut files), Err(PolicyError::TooLarge { .. })));
}

#[test]
fn an_unreadable_override_is_an_error() {
    let mut sources = |_: &Path| Err(io::Error::from(io::ErrorKind::PermissionDenied));
    assert!(matches!(resolve(&inputs(), &mut sources), Err(PolicyError::Unreadable { .. })));
}

/// What two files say of a mailbox must both allow it, whichever comes first.
#[test]
fn no_layer_widens_a_mailbox() {
    let base = "[[mailboxes]]\nname = \"a\"\nsend = true\nreceive = true\nmax_size = \"1K\"\nreason = \"base\"\n";
    let own = "extends = [\"./base.toml\"]\n[[mailboxes]]\nname = \"a\"\nsend = true\nrate = 5\nmax_size = \"2K\"\n[[mailboxes]]\nname = \"b\"\nreceive = true\n";
    let list = [("/job/job/p.toml", own), ("/job/job/base.toml", base)];
    let inputs = Inputs { policy_file: Some(PathBuf::from("p.toml")), ..inputs() };
    let rules = resolve(&inputs, &mut files(&list)).unwrap().mailboxes;
    let told: Vec<_> = rules.iter().map(|rule| (rule.name.as_str(), rule.send, rule.receive, rule.max_bytes)).collect();
    assert_eq!(told, [("a", true, false, 1024), ("b", false, true, 64 << 10)]);
    assert_eq!((rules[0].rate, rules[1].rate, rules[0].control), (5, 100, crate::mail::Control::Filtered));
    assert!(with_policy("").mailboxes.is_empty(), "there are none by default");
}

/// Neither a mode of the user nor one of the administrator makes the control laxer; both can make it stricter.
#[test]
fn modes_make_mailboxes_stricter_only() {
    let open = "mode = \"hybrid\"\n[[mailboxes]]\nname = \"a\"\nsend = true\ncontrol = \"open\"\n";
    let monitored = open.replace("open", "monitored");
    let check = |mode: &str, policy: &str, allowed: bool| {
        for place in ["/etc/apex/modes/hybrid.toml", "/home/u/.config/apex/modes/hybrid.toml"] {
            let mode = format!("[resources]\nmemory = \"1G\"\ntasks = 10\n{mode}");
            let list = [("/job/job/p.toml", policy), (place, mode.as_str())];
            let inputs = Inputs { policy_file: Some(PathBuf::from("p.toml")), ..inputs() };
            assert_eq!(resolve(&inputs, &mut files(&list)).is_ok(), allowed, "{place}: {mode} {policy}");
        }
    };
    check("[ceiling]\nmailboxes = \"open\"", open, false);
    check("[ceiling]\nmailboxes = \"open\"", &monitored, true);
    check("[ceiling]\nmailboxes = \"filtered\"", &monitored, false);
    check("", &monitored, true);
}

/// Every `toml` block of the reference is a policy that resolves; the one that shows a ceiling is a mode.
#[test]
fn the_examples_of_the_reference_resolve() {
    let text = include_str!("../../../../../docs/reference/policy.md");
    let mut count = 0;
    for block in text.split("```toml\n").skip(1) {
        let example = block.split("```").next().unwrap();
        let list = [("/job/job/p.toml", example), ("/job/job/base.toml", "")];
        let result = if example.contains("[ceiling]") {
            resolve(&inputs(), &mut files(&[("/etc/apex/modes/isolation.toml", example)]))
        } else {
            resolve(&Inputs { policy_file: Some(PathBuf::from("p.toml")), ..inputs() }, &mut files(&list))
        };
        result.unwrap_or_else(|error| panic!("{error}\n{example}"));
        count += 1;
    }
    assert!(count >= 3, "only {count} examples");
}

/// `cargo test -p apex-core --features schema` compares; with `APEX_BLESS=1` it writes.
#[cfg(feature = "schema")]
#[test]
fn the_published_schema_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/policy.schema.json");
    if std::env::var_os("APEX_BLESS").is_some() {
        std::fs::write(&path, json_schema()).unwrap();
    }
    let published = std::fs::read_to_string(&path).unwrap();
    assert!(published == json_schema(), "{} is stale: run this test with APEX_BLESS=1", path.display());
}

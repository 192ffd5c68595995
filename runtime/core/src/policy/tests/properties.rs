//! What must hold for every policy: the ceiling, the denials, the order, and a parser that survives any text.

use proptest::prelude::*;

use super::*;
use crate::layer::{Layer, Requirement};

const PATHS: &[&str] = &[
    "/",
    "/usr",
    "/usr/bin",
    "/etc",
    "/etc/hosts",
    "/proc",
    "/proc/self/root",
    "/sys",
    "/dev/kvm",
    "/boot",
    "/run/x.sock",
    "/home/u",
    "/home/u/x",
    "/srv",
    "~",
    "${CWD}",
    "/tmp",
    "/opt",
    "rel",
    "/var/run",
];
const WORDS: &[(&str, &[&str])] = &[
    ("[network]\naccess = ", &["none", "host"]),
    ("[syscalls]\ndefault = ", &["deny", "report", "allow"]),
    ("[resources]\nmemory = ", &["1M", "8G", "unlimited"]),
    ("[resources]\ntasks = ", &["1", "100000", "unlimited"]),
    ("[terminal]\ntty = ", &["auto", "no"]),
];

fn path_list() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(PATHS), 0..3).prop_map(|paths| format!("{paths:?}"))
}

/// A policy file in which at most one kind of rule asks for anything at all: of many that may be refused, one always is.
fn layer() -> impl Strategy<Value = String> {
    let lists = (path_list(), path_list(), path_list(), path_list(), any::<bool>());
    let groups = prop::collection::vec(prop::sample::select(GROUPS), 0..3);
    let layer = (
        prop::sample::select(Layer::ALL.map(Layer::name).to_vec()),
        prop::sample::select(vec!["required", "optional", "off"]),
    );
    let word = (0..WORDS.len(), any::<prop::sample::Index>());
    (0..8_u8, lists, groups, layer, word).prop_map(
        |(kind, (read, write, exec, deny, inherit), groups, (layer, requirement), (key, word))| {
            let refusals = format!("[filesystem]\ndeny = {deny}\ninherit = {inherit}\n");
            let (key, words) = WORDS[key];
            let asked = match kind {
                0 => format!("read = {read}\n"),
                1 => format!("write = {write}\n"),
                2 => format!("exec = {exec}\n"),
                3 => format!("read = {read}\nwrite = {write}\nexec = {exec}\n"),
                4 => format!("[syscalls]\nallow = {groups:?}\n"),
                5 => format!("[layers]\n{layer} = \"{requirement}\"\n"),
                6 => "[capabilities]\nkeep = [\"CAP_NET_RAW\"]\n".to_owned(),
                _ => format!("{key}\"{}\"\n", words[word.index(words.len())]),
            };
            format!("{refusals}{asked}")
        },
    )
}

fn is_within(path: &Path, roots: &[&str]) -> bool {
    roots.iter().any(|root| path.starts_with(root) || Path::new(root).starts_with(path))
}

/// What isolation promises, written out once more and by hand.
fn assert_isolated(policy: &Policy) {
    assert_eq!(policy.network, Network::None);
    assert_eq!(policy.syscalls.default, SyscallDefault::Deny);
    assert!(!policy.syscalls.compat);
    assert!(policy.capabilities.is_empty());
    assert!(policy.resources.memory_bytes.is_some() && policy.resources.tasks.is_some());
    for group in [
        "io-uring",
        "userfaultfd",
        "bpf",
        "perf",
        "keyrings",
        "ptrace",
        "namespaces",
        "mount",
        "privilege",
        "rare-sockets",
    ] {
        assert!(!policy.syscalls.allow.contains_key(group), "{group}");
    }
    for grant in policy.filesystem.read.iter().chain(&policy.filesystem.write).chain(&policy.filesystem.exec) {
        assert!(
            !is_within(&grant.path, &["/proc", "/sys", "/dev", "/boot", "/run", "/var/run"]),
            "{}",
            grant.path.display()
        );
    }
    for grant in &policy.filesystem.write {
        assert!(!is_within(&grant.path, &["/usr", "/etc", "/bin", "/lib"]), "{}", grant.path.display());
    }
    assert_eq!(policy.layers.len(), Layer::ALL.len());
    for (layer, requirement) in &policy.layers {
        let may_lack = matches!(layer, Layer::Cgroup | Layer::Cgroupns | Layer::Timens);
        assert!(*requirement == Requirement::Required || may_lack && *requirement == Requirement::Optional, "{layer}");
    }
}

proptest! {
    #[test]
    fn no_layers_lift_the_ceiling_of_isolation(layers in prop::collection::vec(layer(), 1..4), flag in path_list()) {
        let mut list = Files::default();
        let last = layers.len() - 1;
        for (at, text) in layers.iter().enumerate() {
            let extends = if at == 0 { String::new() } else { format!("extends = [\"{}.toml\"]\n", at - 1) };
            list.0.insert(PathBuf::from(format!("/job/job/{at}.toml")), format!("{extends}{text}"));
        }
        let ro = flag.split('"').skip(1).step_by(2).map(Into::into).collect();
        let flags = Flags { ro, ..Flags::default() };
        let inputs = Inputs { policy_file: Some(PathBuf::from(format!("{last}.toml"))), flags, ..inputs() };
        if let Ok(policy) = resolve(&inputs, &mut list) {
            assert_isolated(&policy);
        }
    }

    #[test]
    fn one_rule_at_a_time(which in 0..WORDS.len(), word in any::<prop::sample::Index>(), profile in prop::sample::select(PROFILES.map(|(name, _)| name).to_vec())) {
        let (key, words) = WORDS[which];
        let text = format!("{key}\"{}\"", words[word.index(words.len())]);
        let inputs = Inputs { profile: Some(profile.to_owned()), policy_file: Some(PathBuf::from("p.toml")), ..inputs() };
        if let Ok(policy) = resolve(&inputs, &mut files(&[("/job/job/p.toml", &text)])) {
            assert_isolated(&policy);
        }
    }

    #[test]
    fn a_denial_never_vanishes(first in path_list(), later in layer(), mode in prop::sample::select(vec!["development", "hybrid", "isolation"])) {
        let base = format!("mode = \"{mode}\"\n[filesystem]\ndeny = {first}\nhide = {first}\n[syscalls]\ndeny = [\"files\"]");
        let with = |text: &str| {
            let list = [("/job/job/base.toml", base.as_str()), ("/job/job/p.toml", text)];
            resolve(&Inputs { policy_file: Some(PathBuf::from("p.toml")), ..inputs() }, &mut files(&list))
        };
        let alone = with("extends = [\"base.toml\"]").expect("denials are always allowed");
        if let Ok(both) = with(&format!("extends = [\"base.toml\"]\n{later}")) {
            for rule in &alone.filesystem.deny {
                prop_assert!(both.filesystem.deny.contains(rule));
            }
            for rule in &alone.filesystem.hide {
                prop_assert!(both.filesystem.hide.contains(rule));
            }
            prop_assert!(both.syscalls.deny.contains_key("files"));
        }
    }

    #[test]
    fn parents_come_first_and_each_once(links in prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..3), 1..7)) {
        let mut list = Files::default();
        // A file extends only files of lower number: no circle.
        let parents: Vec<Vec<usize>> =
            links.iter().enumerate().map(|(at, links)| links.iter().filter(|_| at > 0).map(|link| link.index(at)).collect()).collect();
        for (at, parents) in parents.iter().enumerate() {
            let extends: Vec<String> = parents.iter().map(|parent| format!("f{parent}.toml")).collect();
            list.0.insert(PathBuf::from(format!("/job/job/f{at}.toml")), format!("extends = {extends:?}\nidentity.hostname = \"f{at}\""));
        }
        let last = parents.len() - 1;
        let inputs = Inputs { policy_file: Some(PathBuf::from(format!("f{last}.toml"))), ..inputs() };
        let policy = resolve(&inputs, &mut list).expect("no circle");
        let place = |at: usize| policy.sources.iter().position(|source| *source == format!("/job/job/f{at}.toml"));
        for (at, parents) in parents.iter().enumerate() {
            if let Some(own) = place(at) {
                prop_assert!(parents.iter().all(|parent| place(*parent).is_some_and(|place| place < own)));
            }
        }
        let mut unique = policy.sources.clone();
        unique.sort();
        unique.dedup();
        prop_assert_eq!(unique.len(), policy.sources.len());
        prop_assert_eq!(policy.identity.hostname, format!("f{last}"));
    }

    #[test]
    fn any_text_is_parsed_or_refused(text in "\\PC{0,200}") {
        survives(&text);
    }

    #[test]
    fn almost_toml_is_parsed_or_refused(layer in layer(), at in any::<prop::sample::Index>(), insert in "[\\[\\]{}=\",.#\n0-9a-z~$/\0é]{0,6}") {
        let mut at = at.index(layer.len());
        while !layer.is_char_boundary(at) {
            at -= 1;
        }
        survives(&format!("{}{insert}{}", &layer[..at], &layer[at..]));
    }
}

/// Either result will do; a panic would fail the test, and so would an error without a place.
fn survives(text: &str) {
    let inputs = Inputs { policy_file: Some(PathBuf::from("p.toml")), ..inputs() };
    if let Err(error) = resolve(&inputs, &mut files(&[("/job/job/p.toml", text)])) {
        assert!(error.to_string().contains("p.toml"), "{error}");
    }
}

/// Texts that hurt parsers before: the seeds of the fuzz target.
#[test]
fn the_seeds_are_parsed_or_refused() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/seeds/policy");
    let mut count = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        survives(&String::from_utf8_lossy(&bytes));
        count += 1;
    }
    assert!(count >= 10, "only {count} seeds in {}", dir.display());
    survives(&"[".repeat(100_000));
    survives(&format!("a = {}", "[".repeat(10_000)));
    survives(&format!("a{} = 1", ".a".repeat(10_000)));
}

//! Records in, models out, and what becomes of files that are not what they should be.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use apex_core::baseline::{Key, RUNS_MIN};
use apex_core::event::{Event, Start, What};
use apex_core::watch::Level;

use super::*;

struct Temp(PathBuf);

impl Temp {
    fn new(name: &str) -> Temp {
        let path = std::env::temp_dir().join(format!("apex-model-{}-{name}", std::process::id()));
        fs::create_dir(&path).expect("a new directory");
        Temp(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn event(sandbox: u64, pid: u32, what: What) -> Event {
    Event { time_ns: 5_000_000_000, sandbox, pid, ppid: 1, uid: 0, comm: "job".to_owned(), what, error: None }
}

/// The lines of one run, which is the `at`th.
fn lines(at: u64, programs: &[&str], ends: bool) -> Vec<String> {
    let start = Start {
        version: 1,
        wall_time_ns: 1_700_000_000_000_000_000 + at,
        mode: "isolation".to_owned(),
        profile: Some("shell".to_owned()),
        plan_sha256: "ab".repeat(32),
        command: vec!["sh".to_owned()],
        level: Level::Default,
        sources: Default::default(),
    };
    let exec = |path: &&str| event(at, 3, What::program((*path).to_owned(), Vec::new(), false));
    let mut events = vec![event(at, 0, What::Start(Box::new(start)))];
    events.extend(programs.iter().map(exec));
    if ends {
        events.push(event(at, 0, What::End(Box::default())));
    }
    events.iter().map(|event| serde_json::to_string(event).expect("representable")).collect()
}

fn usual(at: u64) -> Vec<String> {
    lines(at, &["/bin/sh", "/bin/ls"], true)
}

fn key() -> Key {
    Key { profile: "shell".to_owned(), plan_sha256: "ab".repeat(32) }
}

fn record(path: &Path, runs: u64) {
    let text: Vec<String> = (0..runs).flat_map(usual).collect();
    fs::write(path, text.join("\n") + "\n").expect("written");
}

fn words(words: &[&Path]) -> Vec<OsString> {
    words.iter().map(|word| word.as_os_str().to_owned()).collect()
}

fn go(verb: &str, rest: &[&Path]) -> anyhow::Result<u8> {
    let mut all = vec![OsString::from(verb)];
    all.extend(words(rest));
    run(all)
}

#[test]
fn a_model_is_trained_and_tells_usual_from_unusual() {
    let temp = Temp::new("train");
    let (events, model, odd) = (temp.path("events"), temp.path("model"), temp.path("odd"));
    record(&events, 20);
    assert_eq!(go("train", &[Path::new("-o"), &model, &events]).expect("trained"), 0);
    assert_eq!(fs::metadata(&model).expect("there").permissions().mode() & 0o777, 0o600);
    assert_eq!(go("score", &[&model, &events]).expect("judged"), 0);
    fs::write(&odd, lines(99, &["/bin/sh", "/usr/bin/nc"], true).join("\n")).expect("written");
    assert_eq!(go("score", &[&model, &odd]).expect("judged"), UNUSUAL);
    assert_eq!(go("show", &[&model]).expect("shown"), 0);
    let left = fs::read_dir(&temp.0).expect("listed").count();
    assert_eq!(left, 3, "nothing beside the files");
}

#[test]
fn mixed_torn_and_foreign_lines_cost_no_run() {
    let temp = Temp::new("mixed");
    let events = temp.path("events");
    let (one, two) = (usual(1), usual(2));
    let mixed: Vec<String> = one.iter().zip(&two).flat_map(|(one, two)| [one.clone(), two.clone()]).collect();
    let cut = lines(3, &["/bin/sh"], false);
    let junk = ["{\"time_ns\":5,".to_owned(), "{\"class_uid\":2004}".to_owned(), "x".repeat(3 << 20)];
    let text = [&mixed[..], &cut, &junk].concat().join("\n");
    fs::write(&events, text).expect("written");
    let read = records::read(&events, None).expect("readable");
    assert_eq!(read.runs.iter().filter(|run| run.is_whole).count(), 2);
    assert_eq!(read.runs.len(), 3);
    // The torn line, and the long one in two pieces.
    assert_eq!(read.unreadable, 3);
    assert_eq!(whole_runs(&events).expect("readable").len(), 2);
}

#[test]
fn a_store_keeps_adds_lists_and_forgets() {
    let temp = Temp::new("store");
    let store = Store::at(temp.path("a/b"));
    assert_eq!(store.load(&key()).expect("nothing is fine"), None);
    assert_eq!(store.names().expect("nothing is fine"), Vec::<String>::new());
    let events = temp.path("events");
    record(&events, RUNS_MIN as u64);
    let runs = whole_runs(&events).expect("readable");
    for run in &runs {
        store.absorb(&key(), &[run]).expect("written");
    }
    let model = store.load(&key()).expect("whole").expect("there");
    assert_eq!(model, Model::learn(&runs).expect("one key"));
    let dir = fs::metadata(temp.path("a/b")).expect("there");
    assert_eq!(dir.permissions().mode() & 0o777, 0o700);
    let name = store::name(&key());
    assert!(name.starts_with("shell-") && store::is_name(&name), "{name}");
    assert_eq!(store.names().expect("listed"), std::slice::from_ref(&name));
    assert!(store.remove(&name).expect("removed"));
    assert!(!store.remove(&name).expect("gone already"));
}

#[test]
fn names_of_policies_differ_and_lead_nowhere_else() {
    let hostile = Key { profile: "../../etc/x\n".to_owned(), ..key() };
    let name = store::name(&hostile);
    assert!(store::is_name(&name) && !name.contains(['/', '.']), "{name}");
    let alike = Key { profile: ".._../etc/x\n".to_owned(), ..key() };
    assert_ne!(store::name(&alike), name);
    for word in ["", "../x-0123456789abcdef", "x", "x-0123456789abcdeg", "x-0123456789abcdef.json"] {
        assert!(!store::is_name(word), "{word}");
    }
}

#[test]
fn a_changed_foreign_or_malformed_model_is_refused_with_words() {
    let temp = Temp::new("refused");
    let (events, path) = (temp.path("events"), temp.path("model"));
    record(&events, 3);
    go("train", &[Path::new("-o"), &path, &events]).expect("trained");
    let text = fs::read_to_string(&path).expect("there");
    let refused = |text: &str, mode: u32, expected: &str| {
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("own");
        let error = format!("{:#}", store::read(&path).expect_err("refused"));
        assert!(error.contains(expected), "{error}");
    };
    refused(&text.replacen("/bin/ls", "/bin/nc", 1), 0o600, "changed after it was learned");
    refused(&text.replacen("\"version\":1", "\"version\":9", 1), 0o600, "version 9");
    refused(&text[..text.len() / 2], 0o600, "no model");
    refused("", 0o600, "no model");
    refused(&text.replacen("{", "{\"more\":1,", 1), 0o600, "no model");
    refused(&text, 0o622, "not trusted");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("own");
    assert!(store::read(&path).expect("as it was written").is_some());
    std::os::unix::fs::symlink(&path, temp.path("link")).expect("a link");
    assert!(store::read(&temp.path("link")).is_err());
}

#[test]
fn what_cannot_be_learned_from_is_said() {
    let temp = Temp::new("nothing");
    let events = temp.path("events");
    fs::write(&events, lines(1, &["/bin/sh"], false).join("\n")).expect("written");
    let error = go("train", &[Path::new("-o"), &temp.path("m"), &events]).expect_err("no whole run");
    assert!(error.to_string().contains("whole run"), "{error}");
    record(&events, 3);
    go("train", &[Path::new("-o"), &temp.path("m"), &events]).expect("trained");
    let error = go("score", &[&temp.path("m"), &events]).expect_err("too few");
    assert!(error.to_string().contains("3 of the 15 runs"), "{error}");
    for wrong in [&["x"][..], &["train"], &["show"], &["reset", "../x"], &["list", "x"], &["train", "-x", "y"]] {
        assert!(run(wrong.iter().map(OsString::from).collect()).is_err(), "{wrong:?}");
    }
}

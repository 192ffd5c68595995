//! `--prove` and `--doctor`: they say what the kernel does on this machine, pass where the policy holds, and leave nothing behind.
//!
//! `UPDATE_SNAPSHOTS=1` rewrites the snapshots.

use std::process::{Command, Stdio};

use apex_tests::sandbox::collect;
use apex_tests::{
    APEX_FAILED, Mode, Output, TempDir, apex_run, each_mode, has_cgroup, has_scopes, leaks, skip, snapshot,
};
use serde_json::Value;

/// A run of `apex-run` without a command, in a directory that no mode covers.
struct Run {
    home: TempDir,
    args: Vec<String>,
}

impl Run {
    fn new(args: &[&str]) -> Run {
        let mut args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        if !has_cgroup() && !args.contains(&"--doctor".to_owned()) {
            args.extend(["--optional", "cgroup"].map(str::to_owned));
        }
        Run { home: TempDir::new(), args }
    }

    fn prove(mode: Mode) -> Run {
        Run::new(&["--mode", mode.name(), "--prove", "--json"])
    }

    fn arg(mut self, arg: &str) -> Run {
        self.args.push(arg.to_owned());
        self
    }

    /// Fails the test when something is left behind.
    #[track_caller]
    fn run(&self) -> Output {
        let mark = self.home.path().file_name().expect("it has a name").to_string_lossy().into_owned();
        let child = Command::new(apex_run())
            .args(&self.args)
            .current_dir(self.home.path())
            .env("HOME", self.home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("apex-run starts");
        let output = collect(child);
        leaks::expect_none(&leaks::Mark(mark), output.pid);
        let left: Vec<_> = std::fs::read_dir(self.home.path()).expect("it is there").flatten().collect();
        assert!(left.iter().all(|entry| entry.file_name() == ".cache"), "left behind: {left:?}");
        output
    }
}

fn attempts(output: &Output) -> Vec<Value> {
    output.json()["proof"]["attempts"].as_array().expect("attempts").clone()
}

fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

#[track_caller]
fn find<'a>(attempts: &'a [Value], name: &str) -> &'a Value {
    attempts
        .iter()
        .find(|attempt| word(attempt, "attempt") == name)
        .unwrap_or_else(|| panic!("no attempt {name:?} among {attempts:#?}"))
}

#[test]
fn every_mode_passes() {
    each_mode(|mode| {
        let output = Run::prove(mode).run().expect_code(0);
        let proof = &output.json()["proof"];
        assert_eq!(proof["passed"], true);
        assert_eq!(proof["mode"], mode.name());
        assert!(attempts(&output).iter().all(|attempt| word(attempt, "verdict") != "allowed"));
    });
}

#[test]
fn isolation_tries_everything_that_it_forbids() {
    let output = Run::prove(Mode::Isolation).run().expect_code(0);
    let attempts = attempts(&output);
    for layer in ["userns", "pidns", "mountns", "netns", "utsns", "rlimits", "capabilities", "no-new-privs", "seccomp"]
    {
        let refused = attempts
            .iter()
            .filter(|attempt| word(attempt, "layer") == layer && word(attempt, "verdict") == "refused")
            .count();
        assert!(refused > 0, "nothing was tried of {layer}");
    }
    for name in ["mount()", "bpf(BPF_PROG_LOAD)", "getpid() by int 0x80", "getpid() by its x32 number"] {
        if name.contains("x") && !cfg!(target_arch = "x86_64") {
            continue;
        }
        assert_eq!(word(find(&attempts, name), "verdict"), "refused", "{name}");
    }
    assert_eq!(word(find(&attempts, "execute what was written to /tmp"), "got"), "EACCES");
    assert_eq!(word(find(&attempts, "map what was written to /tmp as code"), "got"), "EPERM");
    assert_eq!(word(find(&attempts, "create a file in /usr"), "got"), "EROFS");
}

#[test]
fn limits_are_exceeded_for_real() {
    if !has_cgroup() {
        skip!("no delegated cgroup for an unprivileged user");
    }
    let output = Run::prove(Mode::Isolation).arg("--memory").arg("64M").arg("--tasks").arg("20").run().expect_code(0);
    let attempts = attempts(&output);
    assert_eq!(word(find(&attempts, "start more than 20 processes"), "got"), "EAGAIN");
    let memory = find(&attempts, "use 67108864 bytes of memory and a tenth more");
    // A tmpfs as large as the memory limit is not filled: the kernel would end the wrong process.
    assert_eq!(word(memory, "got"), "SIGKILL");
    let tmpfs = find(&attempts, "write more than 67108864 bytes to /tmp");
    assert_eq!(word(tmpfs, "verdict"), "not-applicable");
}

#[test]
fn what_a_policy_grants_is_not_applicable() {
    let policy = TempDir::new();
    let path = policy.path().join("weak.toml");
    std::fs::write(&path, "[syscalls]\nallow = [\"io-uring\"]\n").expect("writable");
    let weak = Run::prove(Mode::Hybrid).arg("--policy").arg(&path.to_string_lossy());
    let attempts = attempts(&weak.run().expect_code(0));
    let attempt = find(&attempts, "io_uring_setup()");
    assert_eq!(word(attempt, "verdict"), "not-applicable");
    assert!(word(attempt, "reason").contains("`io-uring`"), "{attempt}");
    assert_eq!(word(find(&attempts, "bpf(BPF_PROG_LOAD)"), "verdict"), "refused");
}

#[test]
fn what_a_policy_denies_is_tried() {
    let home = TempDir::new();
    let secret = home.path().join("secret");
    std::fs::write(&secret, "x").expect("writable");
    let (dir, secret) = (home.path().to_string_lossy(), secret.to_string_lossy());
    let run = Run::prove(Mode::Hybrid).arg("--rw").arg(&dir).arg("--deny").arg(&secret);
    let attempts = attempts(&run.run().expect_code(0));
    assert_eq!(word(find(&attempts, &format!("read {secret}, which is denied")), "got"), "EACCES");
    assert_eq!(word(find(&attempts, &format!("rename {secret}, which is denied")), "verdict"), "refused");
}

#[test]
fn a_proof_that_is_cut_short_proves_nothing() {
    let output = Run::prove(Mode::Isolation).arg("--time").arg("1ms").run().expect_code(APEX_FAILED);
    assert!(output.err().contains("the proof was not finished"), "{}", output.err());
}

/// The receipt's line is the answer to an attempt of the sealed process.
#[test]
fn the_receipt_shows_the_answer_of_landlock() {
    let output = Run::prove(Mode::Isolation).run().expect_code(0);
    if !has_scopes() {
        skip!("the kernel's Landlock has no scopes");
    }
    let json = output.json();
    let layers = json["proof"]["layers"].as_array().expect("layers");
    let landlock = layers.iter().find(|layer| word(layer, "layer") == "landlock").expect("it is there");
    assert!(word(landlock, "effective").ends_with("EPERM"), "{landlock}");
}

#[test]
fn hybrid_and_development_are_as_they_were() {
    if !has_scopes() {
        skip!("the kernel's Landlock has no scopes");
    }
    for mode in [Mode::Hybrid, Mode::Development] {
        let output = Run::prove(mode).run();
        snapshot::check(&format!("prove-{}.txt", mode.name()), &normalised(&attempts(&output)));
    }
}

#[test]
fn text_says_the_same_as_json() {
    let run = Run::new(&["--mode", "isolation", "--prove"]);
    let text = run.run().expect_code(0).out();
    assert!(text.starts_with("proof of mode isolation"), "{text}");
    assert!(text.lines().last().is_some_and(|line| line.starts_with("passed: ")), "{text}");
}

#[test]
fn the_doctor_finds_what_the_tests_use() {
    let output = Run::new(&["--doctor", "--json"]).run().expect_code(0);
    let json = output.json();
    let findings = json["doctor"]["findings"].as_array().expect("findings");
    let finding = |name: &str| {
        findings.iter().find(|finding| word(finding, "facility") == name).unwrap_or_else(|| panic!("no {name}"))
    };
    for name in
        ["userns", "mountns", "pidns", "capabilities", "no-new-privs", "new mount API", "fresh procfs", "clone3"]
    {
        assert_eq!(finding(name)["available"], true, "{name}");
    }
    for name in ["cgroup", "timens", "seccomp listener", "killable notifications", "idmapped mounts", "private devpts"]
    {
        assert!(finding(name)["available"].is_boolean(), "{name}");
    }
    if finding("cgroup")["available"] == false {
        assert!(!word(finding("cgroup"), "remedy").is_empty(), "a missing cgroup without a remedy");
    }
    let text = Run::new(&["--doctor"]).run().expect_code(0).out();
    assert!(text.contains("userns"), "{text}");
}

/// What does not depend on the machine: which files exist, who runs the test and what is delegated are left out, numbers stand as N.
fn normalised(attempts: &[Value]) -> String {
    let mut text = String::new();
    for attempt in attempts.iter().filter(|attempt| !["mountns", "cgroup"].contains(&word(attempt, "layer"))) {
        let mut line = format!(
            "{}: {}: {} ({})",
            word(attempt, "layer"),
            word(attempt, "attempt"),
            word(attempt, "verdict"),
            word(attempt, "expected")
        );
        if let Some(reason) = attempt["reason"].as_str() {
            line.push_str(&format!(": {reason}"));
        }
        if line.contains("start more than") || line.contains("processes without end") {
            continue;
        }
        push_without_numbers(&mut text, &line);
    }
    text
}

/// Digits that are a word of their own; `i386` and `x32` stay.
fn push_without_numbers(text: &mut String, line: &str) {
    let words: Vec<&str> = line
        .split(' ')
        .map(|word| if !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit()) { "N" } else { word })
        .collect();
    text.push_str(&words.join(" "));
    text.push('\n');
}

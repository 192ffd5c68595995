//! Hooks of all six phases: their order, what they are told, where they run, and what remains when one fails: nothing.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use apex_tests::bundle;
use apex_tests::oci::Bundle;
use serde_json::{Value, json};

const PHASES: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A hook that is a shell's script; `startContainer` has the shell of the container.
fn shell(script: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]})
}

/// A hook of each phase that writes its state to a file of its own, a number that grows before it.
fn recording(bundle: Bundle) -> Bundle {
    let dir = bundle.dir().dir("hooks");
    let inside = bundle.dir().dir("bundle/rootfs/hooks");
    let mut bundle = bundle;
    for phase in PHASES {
        let dir = if phase == "startContainer" { "/hooks" } else { dir.as_str() };
        let script = |number: u32| {
            format!(
                "cat > {dir}/{phase}-{number}; readlink /proc/self/ns/mnt /proc/self/ns/pid > {dir}/ns-{phase}-{number}; \
                readlink /proc/self/ns/mnt >> {dir}/ns-{phase}-{number}; date +%s%N > {dir}/at-{phase}-{number}"
            )
        };
        bundle = bundle.set(&format!("/hooks/{phase}"), json!([shell(&script(0)), shell(&script(1))]));
    }
    let _ = inside;
    bundle
}

/// What a hook wrote.
#[track_caller]
fn wrote(bundle: &Bundle, phase: &str, name: &str) -> String {
    let dir = if phase == "startContainer" { "bundle/rootfs/hooks" } else { "hooks" };
    bundle.dir().read(&format!("{dir}/{name}"))
}

#[test]
fn each_phase_is_told_the_state() {
    let bundle = recording(bundle!().args(&["sleep", "300"])).set("/annotations", json!({"a": "b"}));
    bundle.create().expect_code(0);
    let pid = bundle.pid();
    assert!(!bundle.rootfs().join("hooks/startContainer-0").exists(), "startContainer ran at the create");
    bundle.must("start");
    bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
    let statuses = ["creating", "creating", "creating", "created", "running", "stopped"];
    for (phase, status) in PHASES.iter().zip(statuses) {
        for number in 0..2 {
            let text = wrote(&bundle, phase, &format!("{phase}-{number}"));
            let state: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{phase}: {error}: {text}"));
            assert_eq!(state["status"], status, "{phase}");
            assert_eq!((&state["id"], &state["bundle"]), (&json!(bundle.id), &json!(bundle.path())), "{phase}");
            assert_eq!(state["annotations"]["a"], "b", "{phase}");
            if status != "stopped" {
                assert_eq!(state["pid"], pid, "{phase}: the pid is not the one that the host sees");
            }
        }
    }
    bundle.expect_nothing_left();
}

#[test]
fn the_order_is_that_of_the_specification() {
    let bundle = bundle!();
    let log = bundle.dir().file("log", "");
    let mut bundle = bundle;
    // Bound into the container, so that all write to one file.
    bundle = bundle
        .push("/mounts", json!({"destination": "/log", "type": "bind", "source": log, "options": ["bind", "rw"]}))
        .sh("echo program >> /log; sleep 0.3");
    for phase in PHASES {
        let log = if phase == "startContainer" { "/log" } else { log.as_str() };
        let hooks = [0, 1].map(|number| shell(&format!("echo {phase}-{number} >> {log}")));
        bundle = bundle.set(&format!("/hooks/{phase}"), json!(hooks));
    }
    bundle.run().expect_code(0);
    let text = bundle.dir().read("log");
    let lines: Vec<&str> = text.lines().filter(|line| *line != "program").collect();
    let expected: Vec<String> =
        PHASES.iter().flat_map(|phase| [0, 1].map(|number| format!("{phase}-{number}"))).collect();
    assert_eq!(lines, expected, "{text}");
    // The program and poststart run side by side; everything before start comes before it.
    let place = |word: &str| text.lines().position(|line| line == word).unwrap_or_else(|| panic!("no {word}: {text}"));
    assert!(place("program") > place("startContainer-1") && place("program") < place("poststop-0"), "{text}");
}

#[test]
fn each_phase_runs_in_its_namespaces() {
    let bundle = bundle!().args(&["sleep", "300"]);
    let dir = bundle.dir().dir("hooks");
    let mut bundle = bundle;
    for phase in PHASES {
        let dir = if phase == "startContainer" { "/tmp" } else { dir.as_str() };
        bundle = bundle
            .set(&format!("/hooks/{phase}"), json!([shell(&format!("readlink /proc/self/ns/mnt > {dir}/ns-{phase}"))]));
    }
    bundle.up();
    let link =
        |who: &str| fs::read_link(format!("/proc/{who}/ns/mnt")).expect("it lives").to_string_lossy().into_owned();
    let (host, container) = (link("self"), link(&bundle.pid().to_string()));
    bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
    for phase in PHASES {
        let file = if phase == "startContainer" { "bundle/rootfs/tmp/ns-".to_owned() } else { "hooks/ns-".to_owned() };
        let seen = bundle.dir().read(&format!("{file}{phase}"));
        let is_inside = ["createContainer", "startContainer"].contains(&phase);
        assert_eq!(seen.trim(), if is_inside { &container } else { &host }, "{phase}");
    }
}

/// The program of a container whose hook failed before it must not have run.
#[test]
fn a_hook_that_fails_leaves_nothing() {
    for phase in &PHASES[..3] {
        let bundle =
            bundle!().sh("touch /tmp/ran").set(&format!("/hooks/{phase}"), json!([shell("echo broken >&2; exit 7")]));
        let down = bundle.dir().at("down");
        let taken_down = format!("grep -q stopped && touch {down}");
        let bundle = bundle.set("/hooks/poststop", json!([shell(&taken_down)]));
        let output = bundle.create().expect_code(1);
        assert!(Path::new(&down).exists(), "what hooks set up before a failing {phase} was not taken down");
        assert!(output.err().contains(phase) && output.err().contains("exit code 7"), "{}", output.err());
        assert!(output.err().contains("broken"), "{}", output.err());
        assert_eq!(bundle.status(), "gone", "{phase}");
        bundle.expect_nothing_left();
        assert!(!bundle.rootfs().join("tmp/ran").exists());
        // The id and the cgroup are free again.
        let bundle = bundle.without("/hooks");
        bundle.run().expect_code(0);
        bundle.expect_nothing_left();
    }
}

#[test]
fn a_failing_start_hook_ends_the_container() {
    let bundle = bundle!().sh("touch /tmp/ran").set("/hooks/startContainer", json!([shell("exit 7")]));
    bundle.create().expect_code(0);
    let output = bundle.oci(&["start", &bundle.id]).expect_code(1);
    assert!(output.err().contains("startContainer") && output.err().contains("exit code 7"), "{}", output.err());
    bundle.until("stopped");
    assert!(!bundle.rootfs().join("tmp/ran").exists());
    bundle.must("delete");
    bundle.expect_nothing_left();
}

#[test]
fn a_failing_poststart_hook_ends_the_container() {
    let bundle = bundle!().args(&["sleep", "300"]).set("/hooks/poststart", json!([shell("exit 7")]));
    bundle.create().expect_code(0);
    let output = bundle.oci(&["start", &bundle.id]).expect_code(1);
    assert!(output.err().contains("poststart"), "{}", output.err());
    bundle.until("stopped");
    bundle.must("delete");
    bundle.expect_nothing_left();
}

#[test]
fn a_failing_poststop_hook_hinders_nothing() {
    let bundle = bundle!();
    let marker = bundle.dir().at("second");
    let bundle = bundle.set("/hooks/poststop", json!([shell("exit 7"), shell(&format!("touch {marker}"))]));
    bundle.up().until("stopped");
    let output = bundle.must("delete");
    assert!(output.err().contains("poststop") && output.err().contains("exit code 7"), "{}", output.err());
    assert!(bundle.dir().path().join("second").exists(), "the hook after the one that failed did not run");
    bundle.expect_nothing_left();
}

#[test]
fn a_hook_that_is_not_there_is_named() {
    let bundle = bundle!().set("/hooks/createRuntime", json!([{"path": "/no/such/hook"}]));
    let output = bundle.create().expect_code(1);
    assert!(output.err().contains("/no/such/hook"), "{}", output.err());
    bundle.expect_nothing_left();
}

/// Each hangs in another way: asleep, deaf to its input, loud without a reader, and with a child that holds its pipes.
#[test]
fn a_hook_that_does_not_end_is_killed_in_time() {
    let scripts =
        ["exec sleep 300", "trap '' TERM; while :; do sleep 1; done", "exec 0<&-; exec sleep 300", "sleep 300 & wait"];
    for (phase, script) in PHASES[..4].iter().zip(scripts) {
        let mut hook = shell(script);
        hook["timeout"] = json!(1);
        let bundle = bundle!().set(&format!("/hooks/{phase}"), json!([hook]));
        let begun = Instant::now();
        let output = bundle.run().expect_code(1);
        assert!(output.err().contains(phase) && output.err().contains("timeout"), "{}", output.err());
        assert!(begun.elapsed() < Duration::from_secs(8), "{phase}: {:?}", begun.elapsed());
        // The children of a hook that runs on the host are its own business, so only what is of the container is looked at.
        bundle.expect_nothing_left();
    }
}

/// A state longer than a pipe takes, for a hook that does not read it.
#[test]
fn a_hook_need_not_read_a_long_state() {
    let mut hook = shell("exec sleep 300");
    hook["timeout"] = json!(1);
    let bundle =
        bundle!().set("/annotations", json!({"long": "x".repeat(300_000)})).set("/hooks/createRuntime", json!([hook]));
    let begun = Instant::now();
    let output = bundle.run().expect_code(1);
    assert!(output.err().contains("timeout"), "{}", output.err());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    bundle.expect_nothing_left();
}

/// More on standard error than a pipe holds.
#[test]
fn a_hook_may_be_loud() {
    let loud = shell("head -c 1000000 /dev/zero | tr '\\0' x >&2; exit 0");
    let bundle = bundle!().set("/hooks/createRuntime", json!([loud]));
    bundle.run().expect_code(0);
    bundle.expect_nothing_left();
}

#[test]
fn hooks_of_the_host_have_no_way_in_to_the_runtime() {
    let bundle = bundle!();
    let file = bundle.dir().at("descriptors");
    let bundle = bundle.set("/hooks/createRuntime", json!([shell(&format!("exec ls -l /proc/self/fd > {file}"))]));
    bundle.run().expect_code(0);
    let text = bundle.dir().read("descriptors");
    // Its three streams, and the directory that is listed.
    let numbers: Vec<&str> =
        text.lines().filter_map(|line| line.split(" -> ").next()?.split(' ').next_back()).collect();
    assert_eq!(numbers[1..], ["0", "1", "2", "3"], "{text}");
    assert!(text.lines().last().is_some_and(|line| line.contains("/fd")), "{text}");
}

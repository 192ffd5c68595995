//! What lies in `shim/kubernetes` is what Kubernetes and containerd take.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use apex_tests::containerd::{Containerd, IMAGE, missing, runtimes};
use apex_tests::{TempDir, skip};
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../shim/kubernetes")
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"))
}

/// A package of PyPI in a directory of the test's own, or nothing where it cannot be had.
fn package(dir: &TempDir, name: &str) -> Option<String> {
    let place = dir.at("python");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", &place, name]);
    run(&mut pip).status.success().then_some(place)
}

fn validate(place: &str, file: &Path) -> Output {
    let program = Path::new(place).join("bin/kubernetes-validate");
    run(Command::new("python3").arg(program).arg("--strict").arg(file).env("PYTHONPATH", place))
}

#[test]
fn manifests_are_valid() {
    let dir = TempDir::new();
    let Some(place) = package(&dir, "kubernetes-validate") else {
        skip!("kubernetes-validate cannot be had from PyPI")
    };
    for name in ["runtimeclass.yaml", "installer.yaml"] {
        let output = validate(&place, &folder().join(name));
        let words = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && words.contains("passed"), "{name}: {words}");
    }
    // The validator finds what is wrong.
    let text = std::fs::read_to_string(folder().join("installer.yaml")).expect("it is there");
    let broken = dir.file("broken.yaml", &text.replace("hostPID: true", "hostPIDs: true"));
    assert!(!validate(&place, Path::new(&broken)).status.success(), "an unknown field passes");
}

#[test]
fn the_drop_in_is_what_containerd_reads() {
    let file = folder().join("containerd.toml");
    let Ok(output) = Command::new("containerd").arg("-c").arg(&file).args(["config", "dump"]).output() else {
        skip!("containerd is not installed");
    };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains(r#"runtime_type = "io.containerd.apex.v2""#), "{text}");
    assert!(text.contains(r#"ConfigPath = "/etc/apex/shim.toml""#), "{text}");
}

/// One line that the pod's script said.
fn line(reader: &mut impl BufRead) -> Value {
    let mut text = String::new();
    reader.read_line(&mut text).expect("it is text");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("the script ended early ({error}): {text}"))
}

/// Makes a pod of three containers, whose pid namespaces are their own (1) or the pod's (0).
fn pod(containerd: &Containerd, python: &str, pid_mode: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/cri/pod.py");
    let logs = containerd.at(&format!("logs-{pid_mode}"));
    let mut command = Command::new("python3");
    command.arg(script).args([&containerd.at("c.sock"), IMAGE, &logs, pid_mode]).env("PYTHONPATH", python);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python is there");
    let mut said = BufReader::new(child.stdout.take().expect("piped"));
    let ends = line(&mut said);
    assert_eq!((&ends["two"]["code"], &ends["two"]["state"]), (&3.into(), &2.into()), "{ends}");
    assert_eq!((&ends["hungry"]["code"], &ends["hungry"]["reason"]), (&137.into(), &"OOMKilled".into()), "{ends}");
    let exec = &line(&mut said)["exec"];
    assert_eq!((&exec["code"], &exec["err"]), (&4.into(), &"why\n".into()), "{exec}");
    let processes = exec["out"].as_str().expect("it is text");
    assert_eq!(processes.contains("sleep 100000"), pid_mode == "0", "{processes}");
    assert!(processes.contains("sleep 1000\n") && !processes.contains("sleep 2000"), "{processes}");
    assert!(line(&mut said)["memory"].as_u64().is_some_and(|bytes| bytes > 0));
    assert_eq!(line(&mut said)["ready"], true);
    assert_eq!(containerd.shims().len(), 1, "one shim serves the pod");
    let log = std::fs::read_to_string(format!("{logs}/two.log")).expect("containerd writes it");
    assert!(log.contains("stdout F out\n") && log.contains("stderr F err\n"), "{log}");
    // An end of input is what it waits for.
    drop(child.stdin.take());
    assert_eq!(line(&mut said)["one"]["state"], 2);
    assert_eq!(line(&mut said)["gone"], true);
    assert!(child.wait().expect("it is our child").success());
}

#[test]
fn pods_run_through_cri() {
    if let Some(reason) = missing() {
        skip!(reason);
    }
    let dir = TempDir::new();
    let Some(python) = package(&dir, "grpcio") else { skip!("grpcio cannot be had from PyPI") };
    let containerd = Containerd::start_cri(&runtimes()[0]);
    for pid_mode in ["1", "0"] {
        pod(&containerd, &python, pid_mode);
        containerd.expect_nothing_left(&[]);
    }
    // The kubelet's own part.
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let _ = std::fs::remove_dir(hierarchy.path().join("apex-cri-test"));
    }
}

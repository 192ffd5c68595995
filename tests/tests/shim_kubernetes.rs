//! What lies in `shim/kubernetes` is what Kubernetes and containerd take.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use apex_tests::{TempDir, skip};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../shim/kubernetes")
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"))
}

/// `kubernetes-validate` of PyPI in a directory of the test's own, or nothing where it cannot be had.
fn validator(dir: &TempDir) -> Option<String> {
    let place = dir.at("python");
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--target",
        &place,
        "kubernetes-validate",
    ]);
    run(&mut pip).status.success().then_some(place)
}

fn validate(place: &str, file: &Path) -> Output {
    let program = Path::new(place).join("bin/kubernetes-validate");
    run(Command::new("python3").arg(program).arg("--strict").arg(file).env("PYTHONPATH", place))
}

#[test]
fn manifests_are_valid() {
    let dir = TempDir::new();
    let Some(place) = validator(&dir) else { skip!("kubernetes-validate cannot be had from PyPI") };
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

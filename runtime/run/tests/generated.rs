//! Texts made from the table of options are committed; this fails when they are stale. `UPDATE_SNAPSHOTS=1` rewrites them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use apex_run::help;
use apex_run::options::Shell;

#[track_caller]
fn check_file(path: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == text, "{} is stale: run the tests once with UPDATE_SNAPSHOTS=1", path.display());
}

#[test]
fn help_is_as_committed_and_fits_a_terminal() {
    let text = help::help();
    assert!(text.lines().all(|line| line.len() <= 100));
    check_file("runtime/run/tests/snapshots/help.txt", &text);
}

#[test]
fn man_page_is_as_committed() {
    check_file("docs/reference/apex-run.1", &help::man_page());
}

#[test]
fn completions_are_as_committed() {
    check_file("docs/reference/completions/apex-run.bash", &help::completions(Shell::Bash));
    check_file("docs/reference/completions/_apex-run", &help::completions(Shell::Zsh));
    check_file("docs/reference/completions/apex-run.fish", &help::completions(Shell::Fish));
}

/// Bash is on every machine that the project's tests run on; the other shells are checked where they are.
#[test]
fn shells_accept_their_completions() {
    for (shell, program, file) in [
        (Shell::Bash, "bash", "apex-run.bash"),
        (Shell::Zsh, "zsh", "_apex-run"),
        (Shell::Fish, "fish", "apex-run.fish"),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/completions").join(file);
        match Command::new(program).arg("-n").arg(&path).output() {
            Ok(output) => assert!(output.status.success(), "{shell:?}: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => println!("skipped {shell:?}: {program}: {error}"),
        }
    }
}

#[test]
fn bash_completes_options_and_their_values() {
    let complete = |words: &str| -> Option<Vec<String>> {
        let script = format!(
            "{}\nCOMP_WORDS=(apex-run {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _apex_run; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            help::completions(Shell::Bash)
        );
        let output = Command::new("bash").args(["--norc", "-c", &script]).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    };
    let Some(modes) = complete("--mode ''") else {
        println!("skipped: there is no bash");
        return;
    };
    assert_eq!(modes, ["isolation", "development", "hybrid"]);
    assert_eq!(complete("--mem").unwrap(), ["--memory"]);
    assert_eq!(complete("--why --net h").unwrap(), ["host"]);
    // Behind the command nothing is ours.
    assert!(!complete("--ro /x ls --mem").unwrap().contains(&"--memory".to_owned()));
}

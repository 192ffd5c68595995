//! `--why`: each kind of refusal is provoked for real, and its explanation compared word for word.
//!
//! Only the block of the thing that was provoked is compared, pids and directories of the test replaced: what else a host's shell looks
//! for while it starts is not ours. The quiet case checks that nothing is told where nothing was refused.

use std::os::unix::fs::PermissionsExt;

use apex_tests::{Mode, NOT_FOUND, Output, Sandbox, TempDir, has_cgroup};

/// The explanations of a run, each as its lines.
fn blocks(output: &Output) -> Vec<String> {
    output.err().split("\n\n").skip(1).map(|block| block.trim_end().to_owned()).collect()
}

/// `pid 7` and `12x` differ from run to run.
fn normalised(block: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    for line in block.lines() {
        let mut line = line.to_owned();
        if let Some(at) = line.find(", pid ") {
            let end = line[at + 6..].find(':').map_or(line.len(), |end| at + 6 + end);
            line.replace_range(at + 6..end, "N");
        }
        words.push(line);
    }
    words.join("\n")
}

/// Fails unless one explanation reads like `expected`, in which each line of it is given without indentation.
#[track_caller]
fn check(output: &Output, expected: &str) {
    let found: Vec<String> = blocks(output).iter().map(|block| normalised(block)).collect();
    let wanted: Vec<&str> = expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let is_same = |block: &String| {
        let lines: Vec<String> =
            block.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        lines == wanted
    };
    assert!(found.iter().any(is_same), "no such explanation:\n{expected}\namong:\n{}", found.join("\n\n"));
}

fn why() -> Sandbox {
    Sandbox::new().arg("--why")
}

/// Runs a script of which only `apex-run` says something on standard error.
#[track_caller]
fn sh(sandbox: &Sandbox, script: &str) -> Output {
    sandbox.run(&["/bin/sh", "-c", &format!("exec 2>/dev/null; {script}")])
}

#[test]
fn nothing_refused_is_one_quiet_line() {
    let output = why().run(&["/bin/true"]).expect_code(0);
    assert_eq!(output.err(), "nothing was refused\n");
}

/// Probes that fail outside just the same must not fill the report.
#[test]
fn an_interpreter_that_looks_for_many_files_stays_quiet() {
    let output =
        sh(&why(), "for i in 1 2 3 4 5 6 7 8 9; do cat /usr/lib/no-such-$i /nowhere/$i; done; no-such-command");
    assert_eq!(output.err(), "nothing was refused\n");
}

#[test]
fn a_path_that_exists_outside_only() {
    let dir = TempDir::new();
    let file = dir.file("words", "x");
    // Everything below /tmp is hidden by the private /tmp.
    let output = sh(&why(), &format!("cat {file}"));
    check(
        &output,
        &format!(
            "1x read {file} (cat, pid N: ENOENT)
             because it exists outside, but /tmp is a private directory that starts empty [mountns]
             rule modes/isolation.toml:{}
             change --ro {file}",
            tmpfs_line()
        ),
    );
}

/// Where `tmpfs = ["/tmp"]` stands: the file may grow above it.
fn tmpfs_line() -> usize {
    // Not where it was built: the tests may run from a copy.
    let package = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned());
    let mode = format!("{package}/../policies/modes/isolation.toml");
    let text = std::fs::read_to_string(mode).expect("it is part of the repository");
    1 + text.lines().position(|line| line.starts_with("tmpfs")).expect("isolation has a private /tmp")
}

#[test]
fn a_relative_path_is_shown_as_absolute() {
    let output = sh(&why(), "cd /etc; cat ./../etc/shells");
    check(
        &output,
        "1x read /etc/shells (cat, pid N: ENOENT)
         because it exists outside, no rule grants it [mountns]
         change --ro /etc/shells",
    );
}

#[test]
fn a_write_to_what_is_read_only() {
    let dir = TempDir::new();
    dir.file("in/x", "x");
    let sandbox = why().ro(&dir.at("in"), "/data");
    let output = sh(&sandbox, "echo y > /data/y");
    check(
        &output,
        &format!(
            "1x write to /data/y (sh, pid N: EROFS)
             because it is granted for reading only [mountns]
             rule --ro
             change --rw {}:/data
             caution what is written there reaches the host",
            dir.at("in")
        ),
    );
}

#[test]
fn a_denied_path() {
    let dir = TempDir::new();
    dir.file("in/keys/id", "secret");
    let keys = dir.at("in/keys");
    let sandbox = why().ro(&dir.at("in"), "/data").deny(&keys);
    let output = sh(&sandbox, "cat /data/keys/id");
    let found = blocks(&output).join("\n");
    assert!(found.contains("read /data/keys/id (cat, pid"), "{found}");
    assert!(found.contains("a rule denies"), "{found}");
    assert!(!found.contains("--ro"), "no grant is offered for a denied path: {found}");
}

/// A mask of a file has no name of its own.
#[test]
fn a_denied_file() {
    let dir = TempDir::new();
    dir.file("in/id", "secret");
    let sandbox = why().ro(&dir.at("in"), "/data").deny(&dir.at("in/id"));
    let found = blocks(&sh(&sandbox, "cat /data/id")).join("\n");
    assert!(found.contains("read /data/id (cat, pid") && found.contains("a rule denies"), "{found}");
}

#[test]
fn execution_from_the_private_tmp() {
    let output = sh(&why(), "cp /bin/true /tmp/t; /tmp/t");
    let found = blocks(&output).join("\n");
    assert!(found.contains("execute /tmp/t (sh, pid"), "{found}");
    assert!(found.contains("nothing is executed in the private directory /tmp [mountns]"), "{found}");
}

#[test]
fn refused_calls_name_their_group() {
    let output = sh(&why(), "unshare -U true; mount -t tmpfs none /tmp");
    let found = blocks(&output).join("\n");
    assert!(found.contains("call unshare ("), "{found}");
    assert!(found.contains("group `namespaces`"), "{found}");
}

#[test]
fn an_address_without_a_network() {
    if which("python3").is_none() {
        apex_tests::skip!("no python3 on this host");
    }
    let script = "import socket\nfor kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):\n  try: socket.socket(socket.AF_INET, kind).connect(('192.0.2.1', 80))\n  except OSError: pass";
    let output = why().run(&["python3", "-c", script]).expect_code(0);
    let found = blocks(&output).join("\n");
    assert!(found.contains("connect inet:192.0.2.1:80 (python3, pid"), "{found}");
    assert!(found.contains("the sandbox has an empty network of its own (network `none`) [netns]"), "{found}");
}

/// A loader or interpreter that is missing makes exec answer ENOENT for a program that is there.
#[test]
fn the_missing_interpreter_of_the_command_is_named_although_nothing_ran() {
    let dir = TempDir::new();
    let program = dir.file("in/job", "#!/opt/no/such/interpreter\n");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("we own it");
    let output = why().ro(&dir.at("in"), "/data").run(&["/data/job"]).expect_code(NOT_FOUND);
    let found = blocks(&output).join("\n");
    assert!(found.contains("execute /opt/no/such/interpreter ("), "{}", output.err());
}

#[test]
fn a_command_that_is_nowhere() {
    let output = why().run(&["/opt/no/such/command"]).expect_code(NOT_FOUND);
    let found = blocks(&output).join("\n");
    assert!(found.contains("execute /opt/no/such/command ("), "{}", output.err());
    assert!(found.contains("it does not exist on the host either"), "{}", output.err());
}

#[test]
fn the_limit_of_tasks() {
    if !has_cgroup() {
        apex_tests::skip!("no delegated cgroup");
    }
    let sandbox = why().args(["--tasks", "6"]);
    let output = sh(&sandbox, "for i in 1 2 3 4 5 6 7 8 9; do sleep 1 & done; wait");
    let found = blocks(&output).join("\n");
    assert!(found.contains("go beyond 6 of tasks (EAGAIN)"), "{}", output.err());
}

#[test]
fn a_full_private_directory() {
    let output = sh(&why().args(["--tmp-size", "1M"]), "head -c 2000000 /dev/zero > /tmp/big; :");
    let found = blocks(&output).join("\n");
    assert!(found.contains("go beyond 1M in /tmp of tmpfs (ENOSPC)"), "{}", output.err());
}

/// Names come from the sandbox: they must neither repaint the terminal nor make lines of their own.
#[test]
fn hostile_names_are_disarmed() {
    let dir = TempDir::new();
    let name = "x\u{1b}]0;owned\u{7}\nfake";
    std::fs::write(dir.path().join(name), "x").expect("we own it");
    let path = dir.path().join(name);
    let output = why().run(&["/bin/sh", "-c", "exec 2>/dev/null; cat \"$1\"", "sh", path.to_str().expect("UTF-8")]);
    let text = output.err();
    assert!(text.contains("x\\u{1b}]0;owned\\u{7}\\nfake"), "{text}");
    assert!(!text.contains('\u{1b}') && !text.contains("\nfake"), "{text}");
}

#[test]
fn json_has_every_refusal() {
    let output = sh(&why().arg("--json"), "cat /etc/shells; cat /etc/shells");
    let json: serde_json::Value = serde_json::from_str(&output.err()).expect("standard error is one JSON document");
    let refusals = json["why"].as_array().expect("a list");
    let shells = refusals.iter().find(|refusal| refusal["path"] == "/etc/shells").expect("it was refused");
    assert_eq!(shells["count"], 2);
    assert_eq!(shells["outcome"], "ENOENT");
    assert_eq!(shells["exists_inside"], false);
    assert_eq!(shells["exists_outside"], true);
    assert_eq!(shells["change"], "--ro /etc/shells");
}

/// The look must never hold up the launcher: a FIFO without a writer, a loop of links, a path without end.
#[test]
fn hostile_paths_do_not_hold_up_the_launcher() {
    let script = "cd /tmp; mkfifo f; ln -s l l; ln -s /proc/self/fd/0 m; cat l; /tmp/f; /tmp/l; stat f l m; \
                  long=$(head -c 5000 /dev/zero | tr '\\0' a); cat $long /$long; echo done";
    let output = sh(&why(), script).expect_code(0);
    assert_eq!(output.out().lines().last(), Some("done"));
}

/// A process that names thousands of things costs bounded memory, and the rest is counted.
#[test]
fn a_flood_of_refusals_is_counted() {
    let script = "i=0; while [ $i -lt 1100 ]; do echo > /usr/x$i; i=$((i+1)); done";
    let output = sh(&why().arg("--json"), script);
    let json: serde_json::Value = serde_json::from_str(&output.err()).expect("standard error is one JSON document");
    let refusals = json["why"].as_array().expect("a list");
    assert_eq!(refusals.len(), 1025);
    assert_eq!(refusals[1024]["resource"], "different refusals kept");
}

/// In development what a stricter mode would refuse is carried out, and told.
#[test]
fn development_reports_what_it_lets_through() {
    let output = sh(&why().mode(Mode::Development), "unshare -U true && echo carried out");
    assert_eq!(output.out(), "carried out\n");
    let found = blocks(&output).join("\n");
    assert!(found.contains("call unshare ("), "{}", output.err());
    assert!(found.contains(": reported)"), "{}", output.err());
}

#[test]
fn development_is_silent_without_why() {
    let output = Sandbox::new().mode(Mode::Development).run(&["/bin/sh", "-c", "unshare -U true && echo carried out"]);
    assert_eq!((output.out().as_str(), output.err().as_str()), ("carried out\n", ""));
}

fn which(name: &str) -> Option<std::path::PathBuf> {
    ["/usr/bin", "/bin"].iter().map(|dir| std::path::Path::new(dir).join(name)).find(|path| path.exists())
}

//! Isolation levels in the daemon: who may ask for less than full, what runs then, and what is told of it.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use apex_tests::daemon::{Daemon, lenient};
use apex_tests::traced::NOBODY;
use apex_tests::{TempDir, as_root, has_partial, sandbox, skip};

const STATUS: &str =
    "grep -E '^(Uid|Seccomp:|NoNewPrivs|CapEff)' /proc/self/status; readlink /proc/self/ns/mnt /proc/self/ns/pid";

fn create(daemon: &Daemon, level: &str, command: &[&str]) -> String {
    daemon.create(&["--mode", "development", "--level", level], command)
}

#[test]
fn each_level_runs_and_is_told() {
    if !has_partial() {
        skip!("the kernel's Landlock does not judge truncating");
    }
    let daemon = Daemon::start(&[]);
    for level in ["full", "partial", "none"] {
        // A second command cannot have the listener that development's reports go to, where the keeper is not root's.
        let mode = if as_root() || level == "none" { "development" } else { "hybrid" };
        let command = format!("{STATUS}; echo end; sleep 300");
        let id = daemon.create(&["--mode", mode, "--level", level], &["/bin/sh", "-c", &command]);
        assert_eq!(daemon.json(&["inspect", &id])["level"], level);
        let list = daemon.json(&["ls"]);
        let rows = list.as_array().or_else(|| list["sandboxes"].as_array()).expect("a list");
        assert!(rows.iter().any(|row| row["id"] == id.as_str() && row["level"] == level), "{list:#}");
        let shown = format!("{mode} ({level})");
        assert_eq!(daemon.apex(&["ls"]).out().contains(&shown), level != "full");
        // A second command is confined as the first is.
        let end = Instant::now() + Duration::from_secs(20);
        let first = loop {
            let text = daemon.apex(&["logs", &id]).expect_code(0).out();
            if let Some(text) = text.strip_suffix("end\n") {
                break text.to_owned();
            }
            assert!(Instant::now() < end, "the first command tells: {text}");
            std::thread::sleep(Duration::from_millis(20));
        };
        let second = daemon.apex(&["exec", &id, "--", "/bin/sh", "-c", STATUS]).expect_code(0).out();
        assert_eq!(first, second);
        let filter = if level == "none" { "Seccomp:\t0" } else { "Seccomp:\t2" };
        assert!(first.contains(filter) && first.contains("NoNewPrivs:\t1"), "{level}: {first}");
        let host = std::fs::read_link("/proc/self/ns/mnt").expect("/proc is there").display().to_string();
        assert_eq!(first.contains(&host), level != "full", "{level}: {first}");
        daemon.apex(&["kill", &id]).expect_code(0);
    }
    let said = |line: &serde_json::Value| line.to_string().contains("\"level\":\"none\"");
    assert!(daemon.audit().iter().any(said), "the level is written down");
}

#[test]
fn what_a_mode_or_the_words_do_not_allow_is_refused() {
    if !has_partial() {
        skip!("the kernel's Landlock does not judge truncating");
    }
    let daemon = Daemon::start(&[]);
    let run = |args: &[&str]| daemon.apex(&[&["run"], lenient(), args, &["--", "/bin/true"]].concat());
    for (mode, level) in [("isolation", "partial"), ("isolation", "none"), ("hybrid", "none")] {
        let output = run(&["--mode", mode, "--level", level]);
        assert!(output.code == 125 && output.err().contains("the least is"), "{mode} {level}: {output:?}");
    }
    run(&["--mode", "hybrid", "--level", "partial"]).expect_code(0);
    let output = run(&["--mode", "development", "--level", "none", "--tmpfs", "/cache"]);
    assert!(output.code == 125 && output.err().contains("--tmpfs"), "{output:?}");
    let body = r#"{"mode":"development","level":"little","command":["/bin/true"]}"#;
    let (status, text) = daemon.rest("POST", "/v1/sandboxes", body);
    assert!(status == 400 && text.contains("no isolation level"), "{status} {text}");
}

/// A sandbox of less than every layer cannot become one of a mode that promises them all.
#[test]
fn a_mode_that_promises_every_layer_is_not_for_it() {
    if !has_partial() {
        skip!("the kernel's Landlock does not judge truncating");
    }
    let daemon = Daemon::start(&[]);
    for level in ["partial", "none"] {
        let id = create(&daemon, level, &["/bin/sleep", "300"]);
        let output = daemon.apex(&["mode", "set", &id, "isolation"]);
        assert!(output.code != 0 && output.err().contains(&format!("isolation level {level}")), "{output:?}");
        assert_eq!(daemon.json(&["inspect", &id])["mode"], "development");
        daemon.apex(&["kill", &id]).expect_code(0);
    }
}

/// In a directory of its own, as `/` cannot be written in any mode.
fn as_nobody(daemon: &Daemon, dir: &TempDir, args: &[&str]) -> sandbox::Output {
    let words = [&["run", "--mode", "development"], args, &["--optional", "cgroup", "--", "/bin/true"]].concat();
    sandbox::collect(daemon.command_as(NOBODY, &words).current_dir(dir.path()).spawn().expect("apex starts"))
}

#[test]
fn less_than_full_takes_a_permission_of_its_own() {
    if !has_partial() {
        skip!("the kernel's Landlock does not judge truncating");
    }
    if !as_root() {
        skip!("only root may ask as somebody else");
    }
    let access = TempDir::new();
    let member = format!("[[member]]\nuid = {NOBODY}\nrole = \"developer\"\n");
    let rule = |operation: &str| {
        format!(
            "[[rule]]\nrole = \"developer\"\noperations = [\"{operation}\"]\nscope = \"own\"\neffect = \"audit\"\nreason = \"trusted\"\n"
        )
    };
    let policy = access.file("policy.toml", "level = \"partial\"\n");
    std::fs::set_permissions(access.path(), PermissionsExt::from_mode(0o755)).expect("it is ours");
    for (allowed, partial, none) in [("", false, false), ("level-partial", true, false), ("level-none", false, true)] {
        let more = if allowed.is_empty() { String::new() } else { rule(allowed) };
        let file = access.file(&format!("access-{allowed}.toml"), &format!("{member}{more}"));
        let daemon = Daemon::start(&["--access", &file]);
        as_nobody(&daemon, &access, &[]).expect_code(0);
        for (level, may) in [("partial", partial), ("none", none)] {
            let output = as_nobody(&daemon, &access, &["--level", level]);
            if may {
                output.expect_code(0);
            } else {
                let operation = format!("level-{level}");
                assert!(output.code == 125 && output.err().contains(&operation), "{allowed}: {output:?}");
            }
        }
        // What a policy says is judged as what an option says.
        let output = as_nobody(&daemon, &access, &["--policy", &policy]);
        assert_eq!(output.code == 0, partial, "{allowed}: {output:?}");
    }
}

/// Names around what is denied are granted one by one: a sandbox that was built before one came is not served.
#[test]
fn a_pool_at_partial_has_the_names_that_came_since() {
    if !has_partial() {
        skip!("the kernel's Landlock does not judge truncating");
    }
    let daemon = Daemon::start(&[]);
    let dir = TempDir::new();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("it is ours");
    dir.file("secret", "secret");
    let (grant, deny) = (format!("--ro={}", dir.text()), format!("--deny={}", dir.at("secret")));
    for number in 0..4 {
        let path = dir.file(&number.to_string(), "words");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).expect("it is ours");
        let words = ["run", "--mode=hybrid", "--level=partial", "--pool", &grant, &deny];
        let command = format!("cat {path} && ! cat {}", dir.at("secret"));
        let output = daemon.apex(&[&words[..], lenient(), &["--", "/bin/sh", "-c", &command]].concat());
        assert_eq!((output.code, output.out().as_str()), (0, "words"), "{number}: {output:?}");
        // Time for the shelf to be filled.
        std::thread::sleep(Duration::from_millis(300));
    }
}

#[test]
fn a_pool_is_of_one_level() {
    if !has_partial() {
        skip!("the kernel's Landlock does not judge truncating");
    }
    let daemon = Daemon::start(&[]);
    let run = |level: &str| {
        let words = ["run", "--mode", "development", "--level", level, "--pool"];
        let command = ["--", "/bin/sh", "-c", "grep Seccomp: /proc/self/status"];
        daemon.apex(&[&words[..], lenient(), &command].concat()).expect_code(0).out()
    };
    for _ in 0..3 {
        for (level, expected) in [("none", "Seccomp:\t0\n"), ("partial", "Seccomp:\t2\n"), ("full", "Seccomp:\t2\n")] {
            assert_eq!(run(level), expected, "{level}");
        }
    }
}

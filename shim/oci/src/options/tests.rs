use super::*;

fn line(words: &str) -> Result<(Global, Command), String> {
    parse(words.split_whitespace().map(OsString::from)).map_err(|error| error.to_string())
}

fn check(words: &str, expected: &str) {
    let found = line(words).map_or_else(|words| words, |(_, command)| format!("{command:?}"));
    assert!(found.contains(expected), "{words}: {found}");
}

#[test]
fn the_words_of_callers_are_understood() {
    check(
        "--root /r --log /l --log-format json --systemd-cgroup create --bundle /b --pid-file /p c1",
        "Create(Make { id: \"c1\"",
    );
    check("run -f /x.json c1", "config: Some(\"/x.json\")");
    // That is its name anyway, in whatever directory the bundle is.
    check("run --config config.json -b /b c1", "config: None");
    check("run -d -b /b --preserve-fds 2 --keep x", "preserved: 2, is_detached: true, is_kept: true");
    check("exec --process /p.json -d --pid-file /pid c1", "is_detached: true");
    check("exec -t -u 5:6 -e A=b -g 7 c1 ls -la", r#"command: ["ls", "-la"]"#);
    check("exec c1 -- ls", r#"command: ["ls"]"#);
    check("kill --all c1 KILL", "to_all: true");
    check("kill c1", "TERM");
    check("delete --force c1", "is_forced: true");
    check("list -f json -q", "Json");
    check("events --interval 1m30s c1", "interval_ms: 90000");
    check("events --interval 100ms c1", "interval_ms: 100,");
    check("update --memory 1M --pids-limit=7 c1", r#"pids_limit: Some("7")"#);
    check("--version", "Version");
}

#[test]
fn what_is_no_command_line_is_told() {
    check("", "no command");
    check("crate x", "perhaps \"create\"");
    check("create", "needs the id");
    check("create a b", "unexpected argument");
    check("create --nope a", "invalid option");
    check("run --preserve-fds x a", "is not a number");
    check("exec c1", "needs a command");
    check("exec -u root c1 ls", "UID:GID");
    check("checkpoint c1", "saves and restores no process");
    check("events --interval 0s c1", "more than 0");
    check("events --interval 5 c1", "more than 0");
    check("features x", "unexpected argument");
}

#[test]
fn the_log_s_options_stand_before_the_command() {
    let (global, _) = line("--log /l --log-format json --root /r state x").expect("valid");
    assert_eq!((global.log_format, global.root), (Format::Json, Some("/r".into())));
    assert!(line("--log-format xml state x").is_err());
    let manager = |words: &str| line(words).map(|(global, _)| (global.systemd_cgroup, global.is_without_cgroup));
    assert_eq!(manager("--cgroup-manager=disabled state x"), Ok((false, true)));
    assert_eq!(manager("--cgroup-manager systemd state x"), Ok((true, false)));
    assert!(manager("--cgroup-manager none state x").is_err());
}

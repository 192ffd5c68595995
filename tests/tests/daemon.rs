//! The daemon, through its command and its REST interface.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use apex_tests::daemon::{Daemon, lenient};
use apex_tests::traced::NOBODY;
use apex_tests::{as_root, has_cgroup, sandbox, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn pid_of(sandbox: &Value) -> i32 {
    sandbox["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a pid")
}

/// Whether a process is there and no zombie.
fn lives(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn run_carries_streams_and_the_exit_code() {
    let daemon = Daemon::start(&[]);
    let args = [&["run"], lenient(), &["--", "/bin/sh", "-c", "cat; echo problem >&2; exit 7"]].concat();
    let mut child = daemon.command(&args).stdin(Stdio::piped()).spawn().expect("apex starts");
    let mut input = child.stdin.take().expect("piped");
    // More than a pipe holds, and no text.
    let bytes: Vec<u8> = (0..300_000u32).map(|number| (number % 251) as u8).collect();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || input.write_all(&sent));
    let output = sandbox::collect(child);
    writer.join().expect("it does not panic").expect("everything is read");
    assert!(output.stdout == bytes, "{} bytes came back of {}", output.stdout.len(), bytes.len());
    assert_eq!(output.err(), "problem\n");
    assert_eq!(output.code, 7);
    // By a signal of its own, as apex-run tells it.
    let args = [&["run"], lenient(), &["--", "/bin/sh", "-c", "kill -TERM $$"]].concat();
    assert_eq!(daemon.apex(&args).code, 128 + 15);
}

#[test]
fn what_cannot_start_says_why() {
    let daemon = Daemon::start(&[]);
    let output = daemon.apex(&[&["run"], lenient(), &["--", "/no/such/program"]].concat());
    assert_eq!(output.code, 127, "{output:?}");
    let output = daemon.apex(&[&["run", "--ro", "/no/such/dir"], lenient(), &["--", "/bin/true"]].concat());
    assert_eq!(output.code, 125, "{output:?}");
    assert!(output.err().contains("/no/such/dir"), "{output:?}");
    let output = daemon.apex(&["inspect", "nobody"]);
    assert_eq!(output.code, 125);
    assert!(output.err().contains("there is no sandbox \"nobody\""), "{output:?}");
}

#[test]
fn a_sandbox_lives_from_create_to_rm() {
    let daemon = Daemon::start(&[]);
    let id = daemon.create(&["--name", "sleeper"], &["/bin/sleep", "300"]);
    let listed = daemon.json(&["ls"]);
    let row =
        listed.as_array().and_then(|rows| rows.iter().find(|row| row["id"] == id.as_str())).expect("it is listed");
    assert_eq!(
        (row["name"].as_str(), row["mode"].as_str(), row["state"].as_str()),
        (Some("sleeper"), Some("isolation"), Some("running"))
    );
    let pid = pid_of(row);
    assert!(lives(pid));
    let again = daemon.apex(&[&["create", "--name", "sleeper"], lenient(), &["--", "/bin/true"]].concat());
    assert_eq!(again.code, 125);
    assert!(again.err().contains("\"sleeper\" already"), "{again:?}");
    if as_root() {
        daemon.apex(&["pause", "sleeper"]).expect_code(0);
        assert_eq!(daemon.json(&["inspect", &id])["state"], "frozen");
        daemon.apex(&["resume", &id[..6]]).expect_code(0);
        assert_eq!(daemon.json(&["inspect", &id])["state"], "running");
    }
    assert_eq!(daemon.apex(&["rm", &id]).code, 125, "one that runs is not removed by the way");
    daemon.apex(&["signal", &id, "TERM"]).expect_code(0);
    let ended = daemon.until(&id, |sandbox| sandbox["state"] == "ended");
    assert_eq!((ended["exit_code"].as_i64(), ended["ending"].as_str()), (Some(143), Some("signal 15")));
    assert!(!lives(pid));
    daemon.apex(&["rm", &id]).expect_code(0);
    assert_eq!(daemon.json(&["ls", "--all"]), serde_json::json!([]));
    assert_eq!(std::fs::read_dir(daemon.dir().at("state/sandboxes")).expect("it is there").count(), 0);
    let operations: Vec<_> = daemon.audit().iter().map(|line| line["api"]["operation"].clone()).collect();
    for operation in ["create", "signal", "remove"] {
        assert!(operations.iter().any(|done| done == operation), "{operation} is not in {operations:?}");
    }
}

#[test]
fn a_killed_daemon_finds_its_sandboxes_again() {
    let mut daemon = Daemon::start(&[]);
    let id = daemon.create(&[], &["/bin/sh", "-c", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done"]);
    let pid = pid_of(&daemon.json(&["inspect", &id]));
    let begun = |log: &str| log.lines().count() > 3;
    let log = || daemon.apex(&["logs", &id]).expect_code(0).out();
    while !begun(&log()) {}
    for by_warden in [false, true, false] {
        if by_warden {
            let warden = children_of(daemon.pid());
            assert_eq!(warden.len(), 1, "the warden is its only child");
            kill(Pid::from_raw(warden[0]), Signal::SIGKILL).expect("it runs");
            // Without its warden the daemon cannot start anything: it ends and says so.
            daemon.restart();
        } else {
            daemon.kill_and_restart();
        }
        let found = daemon.json(&["inspect", &id]);
        assert_eq!((found["state"].as_str(), pid_of(&found)), (Some("running"), pid));
        assert!(lives(pid));
    }
    let before = daemon.apex(&["logs", &id]).out().lines().count();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while daemon.apex(&["logs", &id]).out().lines().count() <= before {
        assert!(std::time::Instant::now() < end, "its log goes on");
    }
    let log = daemon.apex(&["logs", &id]).out();
    for (index, line) in log.lines().enumerate() {
        assert_eq!(line, (index + 1).to_string(), "nothing that it wrote is lost");
    }
    daemon.apex(&["kill", &id]).expect_code(0);
    assert!(!lives(pid));
    assert_eq!(daemon.json(&["inspect", &id])["state"], "ended");
}

fn children_of(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it runs");
    text.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect()
}

#[test]
fn an_end_while_the_daemon_is_away_is_told_later() {
    let mut daemon = Daemon::start(&[]);
    let go = daemon.dir().at("go");
    let grant = daemon.dir().dir("grant");
    let wait = "while [ ! -e /tmp/g/go ]; do sleep 0.02; done; exit 9";
    let id = daemon.create(&["--ro", &format!("{grant}:/tmp/g")], &["/bin/sh", "-c", wait]);
    drop(go);
    kill(Pid::from_raw(daemon.pid()), Signal::SIGKILL).expect("it runs");
    std::fs::write(format!("{grant}/go"), "").expect("it is ours");
    std::thread::sleep(std::time::Duration::from_millis(500));
    daemon.restart();
    let ended = daemon.until(&id, |sandbox| sandbox["state"] != "running");
    assert_eq!((ended["state"].as_str(), ended["exit_code"].as_i64()), (Some("ended"), Some(9)));
}

#[test]
fn a_sandbox_whose_keeper_is_killed_is_lost_and_said_to_be() {
    let daemon = Daemon::start(&[]);
    let id = daemon.create(&[], &["/bin/sleep", "300"]);
    let init = pid_of(&daemon.json(&["inspect", &id]));
    let status = std::fs::read_to_string(format!("/proc/{init}/status")).expect("it runs");
    let keeper = status.lines().find_map(|line| line.strip_prefix("PPid:")).and_then(|pid| pid.trim().parse().ok());
    let keeper: i32 = keeper.expect("it has a parent");
    kill(Pid::from_raw(keeper), Signal::SIGKILL).expect("it runs");
    let lost = daemon.until(&id, |sandbox| sandbox["state"] == "lost");
    assert!(lost["error"].as_str().is_some_and(|words| words.contains("keeper")), "{lost}");
    apex_tests::leaks::sweep(keeper.unsigned_abs());
    assert!(!lives(init));
}

#[test]
fn a_mode_is_tightened_while_it_runs_and_relaxed_up_to_its_ceiling() {
    if !has_cgroup() || !as_root() {
        skip!("no delegated cgroup for an unprivileged user");
    }
    let daemon = Daemon::start(&[]);
    let id = daemon.create(&["--mode", "hybrid", "--memory", "1G", "--net", "none"], &["/bin/sleep", "300"]);
    let born = daemon.json(&["inspect", &id]);
    let tightened = daemon.json(&["mode", "set", &id, "isolation", "--reason", "test"]);
    assert_eq!((tightened["applied"].as_bool(), tightened["to"].as_str()), (Some(true), Some("isolation")));
    let now = daemon.json(&["inspect", &id]);
    let memory = |sandbox: &Value| sandbox["limits"]["memory_bytes"].as_u64().expect("limited");
    assert!(memory(&now) < memory(&born), "{now}");
    assert_eq!(limit_in_force(pid_of(&now)), memory(&now), "the kernel says so");
    daemon.json(&["mode", "set", &id, "hybrid"]);
    assert_eq!(daemon.json(&["inspect", &id])["mode"], "hybrid");
    let beyond = daemon.apex(&["--json", "mode", "set", &id, "development"]);
    assert_eq!(beyond.code, 125, "{beyond:?}");
    assert_eq!(beyond.json()["successor_needed"], true, "{beyond:?}");
    let limited = daemon.apex(&["limits", "set", &id, "--memory", "64M"]);
    limited.expect_code(0);
    assert_eq!(limit_in_force(pid_of(&now)), 64 << 20);
    assert_eq!(daemon.apex(&["limits", "set", &id, "--memory", "2G"]).code, 125, "beyond what it was born with");
}

/// The memory limit of a process, as its cgroup says it.
fn limit_in_force(pid: i32) -> u64 {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it runs");
    let of = |name: &str| {
        groups.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            (controllers == name).then(|| path.to_owned())
        })
    };
    let text = match of("memory") {
        Some(path) => std::fs::read_to_string(format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes")),
        None => std::fs::read_to_string(format!("/sys/fs/cgroup{}/memory.max", of("").expect("v2"))),
    };
    text.expect("it is limited").trim().parse().expect("a number")
}

#[test]
fn a_hostile_program_is_frozen_shown_and_released() {
    if !as_root() {
        skip!("only root loads probes and has a freezer for every sandbox");
    }
    let daemon = Daemon::start(&[]);
    // Reads the keys of others: a sweep, in the words of the detectors.
    let home = daemon.dir().dir("home");
    for name in [".ssh/id_rsa", ".aws/credentials", ".netrc", ".docker/config.json", ".kube/config", ".pgpass"] {
        daemon.dir().file(&format!("home/{name}"), "secret");
    }
    let sweep = "sleep 0.5; cd /tmp/h; cat .ssh/id_rsa .aws/credentials .netrc .docker/config.json .kube/config .pgpass >/dev/null 2>&1; \
                 cat /etc/shadow /root/.ssh/id_rsa >/dev/null 2>&1; sleep 300";
    let id = daemon.create(
        &["--mode", "hybrid", "--watch", "--on-finding", "freeze", "--ro", &format!("{home}:/tmp/h")],
        &["/bin/sh", "-c", sweep],
    );
    let frozen = daemon.until(&id, |sandbox| sandbox["state"] == "frozen");
    assert!(!frozen["tightened_by"].as_str().unwrap_or_default().is_empty(), "{frozen}");
    let findings = daemon.json(&["findings", &id]);
    assert!(findings.as_array().is_some_and(|list| !list.is_empty()), "{findings}");
    assert_eq!(findings[0]["class_uid"], 2004);
    daemon.apex(&["resume", &id]).expect_code(0);
    let released = daemon.json(&["inspect", &id]);
    assert_eq!((released["state"].as_str(), released["tightened_by"].as_str()), (Some("running"), Some("")));
    let audit = daemon.audit();
    let of_finding = audit.iter().find(|line| line.to_string().contains("finding: "));
    assert!(of_finding.is_some_and(|line| line["api"]["operation"] == "mode-tighten"), "{audit:?}");
    assert!(audit.iter().any(|line| line["api"]["operation"] == "resume"));
    assert_eq!(daemon.json(&["audit", "verify"])["intact"], true);
}

#[test]
fn a_changed_audit_log_is_noticed() {
    let daemon = Daemon::start(&[]);
    daemon.create(&[], &["/bin/true"]);
    daemon.create(&[], &["/bin/true"]);
    let path = daemon.dir().at("state/audit.jsonl");
    let text = std::fs::read_to_string(&path).expect("it is there");
    std::fs::write(&path, text.replacen("/bin/true", "/bin/cat!", 1)).expect("it is ours");
    let verdict = daemon.apex(&["--json", "audit", "verify"]);
    assert_eq!(verdict.json()["intact"], false, "{verdict:?}");
    assert_eq!(verdict.code, 125);
}

#[test]
fn whoever_has_no_role_gets_nothing_and_is_written_down() {
    if !as_root() {
        skip!("only root may ask as somebody else");
    }
    let daemon = Daemon::start(&[]);
    let id = daemon.create(&[], &["/bin/sleep", "300"]);
    let as_nobody = |args: &[&str]| sandbox::collect(daemon.command_as(NOBODY, args).spawn().expect("apex starts"));
    for args in
        [&["create", "--", "/bin/true"][..], &["kill", &id], &["inspect", &id], &["mode", "set", &id, "isolation"]]
    {
        let output = as_nobody(args);
        assert_eq!(output.code, 125, "{args:?}: {output:?}");
    }
    assert_eq!(as_nobody(&["--json", "ls"]).json(), serde_json::json!([]));
    assert_eq!(daemon.json(&["inspect", &id])["state"], "running");
    let nobody = NOBODY.to_string();
    let refused = daemon.audit().into_iter().filter(|line| line["actor"]["user"]["uid"] == nobody.as_str()).count();
    assert!(refused >= 4, "{:?}", daemon.audit());
}

#[test]
fn rest_says_the_same() {
    let daemon = Daemon::start(&[]);
    let id = daemon.create(&["--name", "seen"], &["/bin/sleep", "300"]);
    let ask = |request: &str| {
        let mut stream = UnixStream::connect(daemon.socket()).expect("it listens");
        stream.write_all(format!("{request}\r\nHost: apex\r\nConnection: close\r\n\r\n").as_bytes()).expect("it reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("it answers");
        text
    };
    assert!(ask("GET /healthz HTTP/1.1").starts_with("HTTP/1.1 200"));
    assert!(ask("GET /readyz HTTP/1.1").starts_with("HTTP/1.1 200"));
    let listed = ask("GET /v1/sandboxes HTTP/1.1");
    assert!(listed.contains(&id) && listed.contains("\"seen\""), "{listed}");
    assert!(ask("GET /v1/sandboxes/none HTTP/1.1").starts_with("HTTP/1.1 404"));
    assert!(ask("GET /metrics HTTP/1.1").contains("apex_sandboxes{mode=\"isolation\",state=\"running\"} 1"));
    assert!(ask(&format!("POST /v1/sandboxes/{id}/kill HTTP/1.1\r\nContent-Length: 0")).starts_with("HTTP/1.1 200"));
    assert_eq!(daemon.json(&["inspect", &id])["state"], "ended");
}

/// The rules of access judge a mode: neither a policy nor what it extends may bring another one in.
#[test]
fn a_policy_gives_no_other_mode_than_was_judged() {
    if !as_root() {
        skip!("only root may ask as somebody else");
    }
    let access = apex_tests::TempDir::new();
    let file = access.file("access.toml", &format!("[[member]]\nuid = {NOBODY}\nrole = \"tester\"\n"));
    let daemon = Daemon::start(&["--access", &file]);
    let wide = daemon.dir().file("wide.toml", "mode = \"development\"\n");
    let through = daemon.dir().file("through.toml", &format!("extends = [{wide:?}]\n"));
    let create = |policy: &str| {
        let args = ["create", "--optional", "cgroup", "--policy", policy, "--", "/bin/sleep", "300"];
        sandbox::collect(daemon.command_as(NOBODY, &args).spawn().expect("apex starts"))
    };
    let refused = create(&wide);
    assert_eq!(refused.code, 125, "{refused:?}");
    let id = create(&through).expect_code(0).out().trim().to_owned();
    let made = daemon.json(&["inspect", &id]);
    assert_eq!((made["mode"].as_str(), made["born_mode"].as_str()), (Some("isolation"), Some("isolation")));
    assert_eq!(made["uid"], NOBODY);
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid_of(&made))).expect("it runs");
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).expect("it has ids");
    assert!(uids.split_whitespace().all(|uid| uid == NOBODY.to_string()), "{uids}");
}

/// The prober of somebody else's sandbox is that user's process, and the daemon without capabilities reads what it writes.
#[test]
fn findings_about_the_sandbox_of_a_user_are_answered() {
    if !as_root() {
        skip!("only root may ask as somebody else");
    }
    let access = apex_tests::TempDir::new();
    let file = access.file("access.toml", &format!("[[member]]\nuid = {NOBODY}\nrole = \"developer\"\n"));
    let daemon = Daemon::start(&["--access", &file]);
    let home = daemon.dir().dir("home");
    for name in [".ssh/id_rsa", ".aws/credentials", ".netrc", ".docker/config.json", ".kube/config", ".pgpass"] {
        daemon.dir().file(&format!("home/{name}"), "secret");
    }
    let sweep = "cd /tmp/h; cat .ssh/id_rsa .aws/credentials .netrc .docker/config.json .kube/config .pgpass >/dev/null; sleep 300";
    let args = [
        "create",
        "--optional",
        "cgroup",
        "--watch",
        "--on-finding",
        "freeze",
        "--ro",
        &format!("{home}:/tmp/h"),
        "--",
        "/bin/sh",
        "-c",
        sweep,
    ];
    let id = sandbox::collect(daemon.command_as(NOBODY, &args).spawn().expect("apex starts")).expect_code(0);
    let frozen = daemon.until(id.out().trim(), |sandbox| sandbox["state"] == "frozen");
    assert!(frozen["findings"].as_u64() > Some(0), "{frozen}");
}

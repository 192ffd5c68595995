//! `apex` as people start it, against a daemon that runs plain processes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod daemon;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Output, Stdio};

use daemon::Daemon;
use serde_json::{Value, json};

fn apex(daemon: &Daemon, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_apex"));
    command.arg("--socket").arg(&daemon.socket).args(words);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn output(daemon: &Daemon, words: &[&str]) -> Output {
    apex(daemon, words).output().unwrap()
}

#[track_caller]
fn check(daemon: &Daemon, words: &[&str], code: i32, stdout: &str, stderr: &str) {
    let output = output(daemon, words);
    let said = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!((output.status.code(), said.0.as_ref(), said.1.as_ref()), (Some(code), stdout, stderr), "{words:?}");
}

fn read_json(daemon: &Daemon, words: &[&str]) -> Value {
    serde_json::from_slice(&output(daemon, words).stdout).unwrap()
}

fn signal(child: &Child, name: &str) {
    let order = format!("kill -{name} {}", child.id());
    assert!(Command::new("sh").arg("-c").arg(order).status().unwrap().success());
}

#[test]
fn every_byte_goes_in_and_comes_back() {
    let daemon = Daemon::start("bytes");
    // Every value of a byte, in an order that no chunk repeats.
    let bytes: Vec<u8> = (0..3_000_017_u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u8).collect();
    let mut child = apex(&daemon, &["run", "--", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout == bytes, "{} bytes came back", output.stdout.len());
}

#[test]
fn the_exit_code_is_the_commands_or_125() {
    let daemon = Daemon::start("codes");
    check(&daemon, &["run", "sh", "-c", "echo out; echo err >&2; exit 7"], 7, "out\n", "err\n");
    check(&daemon, &["run", "--", "sh", "-c", "kill -KILL $$"], 137, "", "");
    check(&daemon, &["run", "fail"], 125, "", "apex: no room for it\n");
    check(&daemon, &["run", "broken"], 125, "", "apex: the jail\\u{1b}broke\n");
    let nowhere = Command::new(env!("CARGO_BIN_EXE_apex")).args(["--socket", "/nowhere/s", "ls"]).output().unwrap();
    let words = String::from_utf8(nowhere.stderr).unwrap();
    assert_eq!(nowhere.status.code(), Some(125));
    assert!(
        words.starts_with("apex: connecting to apexd at /nowhere/s: ") && words.contains("is it running?"),
        "{words}"
    );
    let misread = output(&daemon, &["run", "--bogus", "ls"]);
    assert_eq!(misread.status.code(), Some(125));
    assert!(misread.stderr.starts_with(b"apex: unexpected argument '--bogus'"));
}

#[test]
fn an_open_standard_input_holds_nobody_back() {
    let daemon = Daemon::start("stdin");
    let mut child = apex(&daemon, &["run", "true"]).stdin(Stdio::piped()).spawn().unwrap();
    let stdin = child.stdin.take().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    drop(stdin);
}

#[test]
fn signals_reach_the_command_also_when_it_reads_nothing() {
    let daemon = Daemon::start("signals");
    let script = "trap 'exit 9' USR1; echo ready; while :; do sleep 0.05; done";
    for (script, name, code) in [(script, "USR1", 9), ("echo ready; exec sleep 60", "TERM", 143)] {
        let zero = std::fs::File::open("/dev/zero").unwrap();
        let mut child = apex(&daemon, &["run", "sh", "-c", script]).stdin(zero).spawn().unwrap();
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        // Time for standard input to fill whatever is in between.
        std::thread::sleep(std::time::Duration::from_millis(300));
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(code), "{name}");
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_command() {
    let daemon = Daemon::start("pipe");
    let mut child = apex(&daemon, &["run", "yes"]).spawn().unwrap();
    let mut some = [0; 100];
    child.stdout.as_mut().unwrap().read_exact(&mut some).unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(141));
}

#[test]
fn who_looks_on_and_goes_away_ends_nothing() {
    let daemon = Daemon::start("attach");
    check(&daemon, &["create", "--name", "spared", "x"], 0, "sb1\n", "");
    let mut child = apex(&daemon, &["attach", "spared"]).spawn().unwrap();
    let mut some = [0; 100];
    child.stdout.as_mut().unwrap().read_exact(&mut some).unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(141));
    assert_eq!(read_json(&daemon, &["inspect", "spared", "--json"])["state"], "running");
}

#[test]
fn what_is_asked_for_is_what_was_typed() {
    let daemon = Daemon::start("request");
    let dir = std::fs::canonicalize(daemon.socket.parent().unwrap()).unwrap();
    std::fs::write(dir.join("p.toml"), "mode = \"hybrid\"\n").unwrap();
    let words: Vec<&str> = "--json create --mode isolation --level partial --policy p.toml --profile shell --name n --ro a:/b --rw /c --tmpfs /t:1M --deny d --optional netns --net none --env K=V=W --workdir /w --memory 1G --cpu 50 --tasks 9 --time 5s --watch --on-finding isolate --label a=b=c --pool --warm --tty yes --wait-for-room 30s --on-limit memory=freeze --on-limit cpu=warn -- ls --json"
        .split(' ')
        .collect();

    let output = apex(&daemon, &words).current_dir(&dir).output().unwrap();
    let sandbox: Value = serde_json::from_slice(&output.stdout).unwrap();
    let request: Value = serde_json::from_str(sandbox["ending"].as_str().unwrap()).unwrap();
    let dir = dir.to_str().unwrap();
    let expected = json!({
        "name": "n", "mode": "isolation", "level": "partial", "profile": "shell", "policy_toml": "mode = \"hybrid\"\n",
        "command": ["ls", "--json"], "env": ["K=V=W"], "cwd": dir, "ro": [format!("{dir}/a:/b")], "rw": ["/c"],
        "tmpfs": ["/t:1M"], "deny": [format!("{dir}/d")], "optional": ["netns"], "net": "none",
        "limits": { "memory": "1G", "tasks": "9", "cpu": "50", "time": "5s" }, "watch": "default",
        "on_finding": "isolate", "labels": { "a": "b=c" }, "workdir": "/w", "pool": true, "warm": true, "tty": true, "size": null,
        "wait_for_room": "30s", "on_limit": ["memory=freeze", "cpu=warn"],
    });
    assert_eq!(request, expected);
    check(&daemon, &["create", "ls"], 0, "sb2\n", "");
    check(&daemon, &["create", "--label", "x", "ls"], 125, "", "apex: --label got `x`, which has no `=`; write K=V\n");
}

#[test]
fn sandboxes_are_listed_and_removed() {
    let daemon = Daemon::start("list");
    assert_eq!(read_json(&daemon, &["ls", "--json"]), json!([]));
    check(&daemon, &["create", "--name", "x\u{1b}]0;y\u{7}", "sleep", "9"], 0, "sb1\n", "");
    let listed = read_json(&daemon, &["ls", "--json"]);
    let only = &listed[0];
    let fields = json!([only["id"], only["name"], only["mode"], only["state"], only["pid"]]);
    assert_eq!(fields, json!(["sb1", "x\u{1b}]0;y\u{7}", "hybrid", "running", 4711]));
    let table = String::from_utf8(output(&daemon, &["ls"]).stdout).unwrap();
    assert!(table.contains("x\\u{1b}]0;y\\u{7}") && !table.contains('\u{1b}'), "{table}");
    let sheet = String::from_utf8(output(&daemon, &["inspect", "sb1"]).stdout).unwrap();
    assert!(sheet.contains("pid       4711\n") && !sheet.contains('\u{1b}'), "{sheet}");
    check(&daemon, &["run", "--rm", "true"], 0, "", "");
    check(&daemon, &["rm", "-f", "none", "sb1"], 125, "", "apex: none: there is no sandbox none\n");
    assert_eq!(read_json(&daemon, &["ls", "-a", "--json"]), json!([]));
}

#[test]
fn the_other_verbs_answer() {
    let daemon = Daemon::start("verbs");
    check(&daemon, &["create", "--name", "one", "true"], 0, "sb1\n", "");
    check(&daemon, &["wait", "one"], 0, "3\n", "");
    check(&daemon, &["mode", "get", "one"], 0, "hybrid\n", "");
    check(&daemon, &["mode", "set", "one", "isolation"], 0, "hybrid -> isolation\n  done      limits\n", "");
    let carried = "hybrid -> development\n  done      limits\n  carried   files\n  left      memory\n";
    check(&daemon, &["mode", "set", "one", "development", "--successor"], 0, carried, "");
    let refused = "apex: not applied: above the ceiling; it takes a new sandbox\n";
    check(&daemon, &["mode", "set", "one", "development"], 125, "hybrid -> development\n  done      limits\n", refused);
    check(&daemon, &["limits", "set", "one", "--memory", "1G"], 0, " -> 1G\n", "");
    check(&daemon, &["limits", "switch", "one", "connect=off", "bind=on"], 0, " -> connect=off,bind=on\n", "");
    for words in [&["pause", "one"][..], &["resume", "one"], &["kill", "one", "sb1"]] {
        check(&daemon, words, 0, "", "");
    }
    check(
        &daemon,
        &["signal", "one", "NONE"],
        125,
        "",
        "apex: there is no signal `NONE`; write its number or its name, such as TERM\n",
    );
    let logs = output(&daemon, &["logs", "one"]);
    assert_eq!((logs.stdout.as_slice(), logs.stderr.as_slice()), (b"\x00\xffout".as_slice(), b"err".as_slice()));
    check(&daemon, &["events", "one", "-f"], 0, "{\"n\":1}\n{\"n\":\"\\u009b\"}\n", "");
    assert_eq!(read_json(&daemon, &["findings", "one", "--json"])[0]["severity_id"], 5);
    check(&daemon, &["events", "one", "--json"], 0, "[\n{\"n\":1},\n{\"n\":\"\\u009b\"}\n]\n", "");
    assert_eq!(read_json(&daemon, &["audit", "tail", "-n", "2", "--json"]), json!([{ "a": 1 }, { "a": 2 }]));
    assert_eq!(read_json(&daemon, &["audit", "tail", "-n", "0", "--json"]), json!([]));
    let table = "TIME                  SEVERITY  TECHNIQUE  FINDING\n1970-01-01T00:00:00Z  critical  -          reads secrets\n";
    check(&daemon, &["findings", "one"], 0, table, "");
    check(&daemon, &["tree"], 0, "apexd\n|-- api  running\n`-- audit  running\n", "");
    let groups = "GROUP  STATE  MEMBER  STATE    SANDBOX  RESTARTS  WORDS\nshop   up     web     running  -        2         -\n";
    check(&daemon, &["groups"], 0, groups, "");
    assert_eq!(read_json(&daemon, &["groups", "--json"])[0]["name"], "shop");
    assert_eq!(output(&daemon, &["stats"]).status.code(), Some(0));
    check(&daemon, &["version"], 0, concat!("apex ", env!("CARGO_PKG_VERSION"), "\n"), "");
    check(&daemon, &["audit", "tail", "-n", "1"], 0, "{\"a\":1}\n", "");
    check(&daemon, &["audit", "verify"], 125, "", "apex: the audit log is broken: record 7\n");
    check(&daemon, &["attach", "two"], 125, "", "apex: there is no sandbox two\n");
}

#[test]
fn stats_are_told_again_until_somebody_is_tired_of_it() {
    let daemon = Daemon::start("stats");
    let mut child = apex(&daemon, &["stats", "--watch", "--json"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(line["sandboxes"][0]["id"], "sb1");
    }
    signal(&child, "INT");
    child.wait().unwrap();
}

#[test]
fn a_policy_is_checked_without_a_daemon() {
    let dir = std::env::temp_dir().join(format!("apex-cli-policy-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let run = |text: &str| {
        let path = dir.join("p.toml");
        std::fs::write(&path, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_apex")).args(["policy", "check"]).arg(path).output().unwrap();
        let words = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(words).unwrap())
    };
    let (code, words) = run("mode = \"hybrid\"\n");
    assert!(code == Some(0) && words.starts_with("accepted: mode hybrid, from "), "{words}");
    let (code, words) = run("[filesystem]\nred = []\n");
    assert!(
        code == Some(125) && words.starts_with("apex: ") && words.contains("p.toml:2: unknown key `red`"),
        "{words}"
    );
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn messages_are_json_unless_they_are_called_text() {
    let daemon = Daemon::start("mail");
    let table = "NAME  UID  MESSAGES  HELD  BYTES  SANDBOXES\njobs  0    3         1     20     -\n";
    check(&daemon, &["mail", "ls"], 0, table, "");
    check(&daemon, &["mail", "send", "--user", "ann", "jobs", "{\"a\": [1]}"], 125, "", "apex: ann/jobs {\"a\":[1]}\n");
    check(&daemon, &["mail", "send", "jobs", "-1"], 125, "", "apex: /jobs -1\n");
    check(&daemon, &["mail", "send", "--text", "jobs", "say \"a\""], 125, "", "apex: /jobs \"say \\\"a\\\"\"\n");
    let wrong = "apex: the message is no JSON; quote it for the shell, or give --text to send it as text: expected value at line 1 column 1\n";
    check(&daemon, &["mail", "send", "jobs", "hello"], 125, "", wrong);
    let mut child = apex(&daemon, &["mail", "send", "jobs"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b" {\n \"b\": null } ").unwrap();
    assert_eq!(String::from_utf8_lossy(&child.wait_with_output().unwrap().stderr), "apex: /jobs {\"b\":null}\n");
    // What a terminal would act on is none of that.
    check(&daemon, &["mail", "receive", "jobs"], 0, "{\"b\":\"\\u009b2J\"}\n", "");
    check(&daemon, &["mail", "receive", "--keep", "others"], 0, "{\"b\":\"\\u009b2J\"}\n", "");
    assert_eq!(
        output(&daemon, &["mail", "receive", "others"]).status.code(),
        Some(125),
        "it is printed and not acknowledged"
    );
    check(&daemon, &["mail", "receive", "empty"], 125, "", "apex: there is no message in empty that nobody has\n");
    check(&daemon, &["mail", "rm", "jobs"], 0, "", "");
}

//! Mailboxes of the daemon: messages between sandboxes and the host, what keeps them apart, and what a sandbox tries against them.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use apex_tests::daemon::{Daemon, lenient};
use apex_tests::traced::NOBODY;
use apex_tests::{Output, TempDir, apex_run, as_root, has_cgroup, sandbox, skip};
use serde_json::{Value, json};

/// Says each of its arguments over one connection, and prints the answers.
const TALK: &str = r#"
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(90)
s.connect(os.environ["APEX_MAIL"])
f = s.makefile("rwb")
for line in sys.argv[1:]:
    f.write(line.encode() + b"\n")
    f.flush()
    sys.stdout.write(f.readline().decode())
"#;

/// Connects, and begins anew when the daemon goes away in the middle.
const TENACIOUS: &str = r#"
import json, os, socket, sys, time
def ask(request):
    global f
    while True:
        try:
            if f is None:
                s = socket.socket(socket.AF_UNIX)
                s.settimeout(90)
                s.connect(os.environ["APEX_MAIL"])
                f = s.makefile("rwb")
            f.write(json.dumps(request).encode() + b"\n")
            f.flush()
            answer = f.readline()
            if answer:
                return json.loads(answer)
        except OSError:
            pass
        f = None
        time.sleep(0.02)
f = None
"#;

fn policy(mailboxes: &str) -> (TempDir, String) {
    let dir = TempDir::new();
    let file = dir.file("policy.toml", mailboxes);
    (dir, file)
}

const BOTH: &str = "[[mailboxes]]\nname = \"jobs\"\nsend = true\nreceive = true\nreason = \"test\"\n";

/// A sandbox that does nothing by itself; its id.
#[track_caller]
fn idle(daemon: &Daemon, mailboxes: &str, args: &[&str]) -> String {
    let (_dir, file) = policy(mailboxes);
    daemon.create(&[&["--policy", &file], args].concat(), &["/bin/sleep", "300"])
}

#[track_caller]
fn run_inside(daemon: &Daemon, id: &str, program: &str, words: &[&str]) -> Output {
    daemon.apex(&[&["exec", id, "--", "/usr/bin/python3", "-c", program], words].concat())
}

#[track_caller]
fn answers(output: &Output) -> Vec<Value> {
    output.out().lines().map(|line| serde_json::from_str(line).expect("an answer is JSON")).collect()
}

/// What a sandbox is answered, over one connection.
#[track_caller]
fn talk(daemon: &Daemon, id: &str, lines: &[&str]) -> Vec<Value> {
    let output = run_inside(daemon, id, TALK, lines).expect_code(0);
    let answers = answers(&output);
    assert_eq!(answers.len(), lines.len(), "{output:?}");
    answers
}

#[track_caller]
fn code(answer: &Value) -> &str {
    answer["error"]["code"].as_str().unwrap_or_else(|| panic!("it is refused: {answer}"))
}

/// Records of the audit log about mailboxes: operation, outcome, and what they say.
fn written(daemon: &Daemon) -> Vec<(String, String, Value)> {
    let of = |line: &Value| {
        let operation = line["api"]["operation"].as_str()?.to_owned();
        let outcome = line["unmapped"]["outcome"].as_str()?.to_owned();
        operation.starts_with("mail-").then(|| (operation, outcome, line["unmapped"]["after"].clone()))
    };
    daemon.audit().iter().filter_map(of).collect()
}

#[test]
fn sandboxes_and_the_host_exchange_messages() {
    let daemon = Daemon::start(&[]);
    let one = idle(&daemon, BOTH, &["--name", "host"]);
    let other = idle(&daemon, BOTH, &[]);
    let sent = talk(&daemon, &one, &[r#"{"send":"jobs","body":{"from":"host","n":[1,null,"ä"]}}"#]);
    let id = sent[0]["id"].as_u64().expect("it is kept");
    let got = talk(
        &daemon,
        &other,
        &[r#"{"receive":"jobs","wait":"5s"}"#, &format!(r#"{{"acknowledge":{id}}}"#), r#"{"receive":"jobs"}"#],
    );
    assert_eq!(got[0]["body"], json!({"from": "host", "n": [1, null, "ä"]}));
    // The sandbox whose socket it came in by, whatever that calls itself.
    assert_eq!((got[0]["from"].as_str(), got[0]["name"].as_str()), (Some(one.as_str()), Some("host")));
    assert_eq!((got[0]["id"].as_u64(), got[0]["attempt"].as_u64()), (Some(id), Some(1)));
    assert_eq!(got[1..], [json!({"acknowledged": id}), json!({"none": true})]);
    // From the host and back.
    daemon.apex(&["mail", "send", "jobs", r#"{"task": 7}"#]).expect_code(0);
    let got = talk(&daemon, &other, &[r#"{"receive":"jobs"}"#, r#"{"send":"jobs","body":"done"}"#]);
    assert_eq!((&got[0]["from"], &got[0]["body"]), (&json!("host"), &json!({"task": 7})));
    let waiting = daemon.command(&["mail", "receive", "jobs", "--wait", "20s"]).spawn().expect("apex starts");
    assert_eq!(
        sandbox::collect(waiting).expect_code(0).out(),
        "{\"task\":7}\n",
        "it was not acknowledged, and is the older one"
    );
    assert_eq!(daemon.apex(&["mail", "receive", "jobs"]).expect_code(0).out(), "\"done\"\n");
    assert_eq!(daemon.apex(&["mail", "receive", "jobs"]).code, 125);
    let listed = daemon.json(&["mail", "ls"]);
    assert_eq!((&listed[0]["name"], &listed[0]["messages"]), (&json!("jobs"), &json!(0)));
    assert_eq!(listed[0]["sandboxes"].as_array().map(Vec::len), Some(2));
    let metrics = daemon.rest("GET", "/metrics", "").1;
    assert!(metrics.contains("apex_mail_messages_total{result=\"sent\"} 3\n"), "{metrics}");
    assert!(metrics.contains("apex_mail_messages 0\n"), "{metrics}");
}

#[test]
fn rest_carries_the_values_themselves() {
    let daemon = Daemon::start(&[]);
    let (status, sent) = daemon.rest("POST", "/v1/mailboxes/jobs/send", r#"{"body":{"a":[1]}}"#);
    assert_eq!(status, 201, "{sent}");
    let (status, got) = daemon.rest("POST", "/v1/mailboxes/jobs/receive?wait_ms=5000", "");
    let got: Value = serde_json::from_str(&got).expect("JSON");
    assert_eq!((status, &got["message"]["body"]), (200, &json!({"a": [1]})));
    let done = json!({"id": got["message"]["id"]}).to_string();
    assert_eq!(daemon.rest("POST", "/v1/mailboxes/jobs/acknowledge", &done).0, 204);
    assert_eq!(daemon.rest("POST", "/v1/mailboxes/jobs/acknowledge", &done).0, 409);
    let (status, got) = daemon.rest("POST", "/v1/mailboxes/jobs/receive", "");
    assert_eq!((status, got.as_str()), (200, r#"{"message":null}"#));
    assert_eq!(daemon.rest("POST", "/v1/mailboxes/a%20b/send", r#"{"body":1}"#).0, 400);
    assert_eq!(daemon.rest("DELETE", "/v1/mailboxes/jobs", "").0, 204);
}

#[test]
fn what_is_not_acknowledged_is_given_again() {
    let daemon = Daemon::start(&[]);
    let id = idle(&daemon, BOTH, &[]);
    daemon.apex(&["mail", "send", "jobs", "1"]).expect_code(0);
    let first = talk(&daemon, &id, &[r#"{"receive":"jobs"}"#, r#"{"receive":"jobs"}"#]);
    assert_eq!((&first[0]["body"], &first[1]), (&json!(1), &json!({"none": true})), "one has it at a time");
    let number = first[0]["id"].as_u64().expect("a number");
    // Its connection is gone.
    let second = talk(&daemon, &id, &[r#"{"receive":"jobs"}"#]);
    assert_eq!((&second[0]["id"], &second[0]["attempt"]), (&json!(number), &json!(2)));
    let late = talk(&daemon, &id, &[&format!(r#"{{"acknowledge":{number}}}"#)]);
    assert_eq!(code(&late[0]), "not-held");
    daemon.apex(&["mail", "receive", "jobs", "--keep"]).expect_code(0);
    assert_eq!(talk(&daemon, &id, &[r#"{"receive":"jobs"}"#])[0], json!({"none": true}), "the host has it");
    // For 30 s.
    let begun = Instant::now();
    assert_eq!(talk(&daemon, &id, &[r#"{"receive":"jobs","wait":"50s"}"#])[0]["body"], json!(1));
    assert!(begun.elapsed() > Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn nothing_that_was_answered_is_lost_when_apexd_is_killed() {
    let mut daemon = Daemon::start(&[]);
    const COUNT: u64 = 300;
    let (_dir, file) = policy(BOTH);
    let python = ["/usr/bin/python3", "-u", "-c"];
    let produce = format!(
        "{TENACIOUS}\nfor n in range({COUNT}):\n    while 'id' not in (a := ask({{'send': 'jobs', 'body': n}})):\n        time.sleep(0.05)\n    print(n)\n"
    );
    let producer = daemon.create(&["--policy", &file], &[&python[..], &[&produce]].concat());
    let consume = format!(
        "{TENACIOUS}\nwhile True:\n    m = ask({{'receive': 'jobs', 'wait': '5s'}})\n    if 'body' in m:\n        print(m['body'])\n        ask({{'acknowledge': m['id']}})\n"
    );
    let consumer = daemon.create(&["--policy", &file], &[&python[..], &[&consume]].concat());
    let read = |daemon: &Daemon, id: &str| -> BTreeSet<u64> {
        let out = daemon.apex(&["logs", id]).out();
        out.lines().filter_map(|line| line.parse().ok()).collect()
    };
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(700));
        daemon.kill_and_restart();
    }
    let end = Instant::now() + Duration::from_secs(60);
    let all: BTreeSet<u64> = (0..COUNT).collect();
    while read(&daemon, &producer) != all || read(&daemon, &consumer) != all {
        let (sent, got) = (read(&daemon, &producer), read(&daemon, &consumer));
        let lost: Vec<_> = sent.difference(&got).collect();
        assert!(Instant::now() < end, "{} sent, {} received, without {lost:?}", sent.len(), got.len());
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_filter_holds_back_what_is_too_large_too_fast_or_of_another_shape() {
    let daemon = Daemon::start(&[]);
    let filtered = r#"
[[mailboxes]]
name = "jobs"
send = true
control = "filtered"
max_size = 100
rate = 3
schema = '{"type": "object", "required": ["url"], "properties": {"url": {"type": "string", "pattern": "^https://"}}, "additionalProperties": false}'
"#;
    let id = idle(&daemon, filtered, &[]);
    let long = format!(r#"{{"send":"jobs","body":{{"url":"https://{}"}}}}"#, "x".repeat(100));
    let good = r#"{"send":"jobs","body":{"url":"https://a"}}"#;
    let answers = talk(
        &daemon,
        &id,
        &[
            good,
            &long,
            r#"{"send":"jobs","body":{"url":"http://a"}}"#,
            r#"{"send":"jobs","body":{"url":"https://a","x":1}}"#,
        ],
    );
    assert!(answers[0]["id"].is_u64(), "{answers:?}");
    assert_eq!(answers[1..].iter().map(code).collect::<Vec<_>>(), ["too-large", "schema", "schema"]);
    assert!(answers[2]["error"]["message"].as_str().is_some_and(|words| words.contains("/url")), "{}", answers[2]);
    std::thread::sleep(Duration::from_millis(1100));
    let mut flood = vec![good; 10];
    flood.push(r#"{"receive":"jobs"}"#);
    let answers = talk(&daemon, &id, &flood);
    let passed = answers.iter().filter(|answer| answer["id"].is_u64()).count();
    assert!((1..=6).contains(&passed), "three a second: {answers:?}");
    assert!(answers[..10].iter().any(|answer| answer["error"]["code"] == "too-fast"), "{answers:?}");
    assert_eq!(code(&answers[10]), "denied", "it may send alone");
    let refused: Vec<_> = written(&daemon).into_iter().filter(|(_, outcome, _)| outcome == "refused").collect();
    assert!(refused.len() >= 5, "{refused:?}");
    assert!(refused.iter().any(|(operation, ..)| operation == "mail-receive"), "{refused:?}");
    // What passes is not written down: it is filtered, not monitored.
    assert!(written(&daemon).iter().all(|(_, outcome, _)| outcome == "refused"));
}

#[test]
fn a_monitored_mailbox_has_each_message_written_down() {
    let daemon = Daemon::start(&[]);
    let monitored = BOTH.replace("reason", "control = \"monitored\"\nreason");
    let id = idle(&daemon, &monitored, &["--mode", "hybrid"]);
    let lines = [
        r#"{"send":"jobs","body":"the text"}"#,
        r#"{"send":"jobs","body":{"password":"hunter2hunter2"}}"#,
        r#"{"receive":"jobs"}"#,
    ];
    talk(&daemon, &id, &lines);
    let written = written(&daemon);
    let ways: Vec<_> = written.iter().map(|(operation, outcome, _)| (operation.as_str(), outcome.as_str())).collect();
    assert_eq!(ways, [("mail-send", "allowed"), ("mail-send", "allowed"), ("mail-receive", "allowed")]);
    let first = &written[0].2;
    // printf '"the text"' | sha256sum
    assert_eq!(first["sha256"], "726baeaabf7e91a435da987274055f585b4558a5a049304c563d224c7996cecf", "{first}");
    assert_eq!(
        (&first["mailbox"], &first["bytes"], &first["begins"]),
        (&json!("jobs"), &json!(10), &json!("\"the text\""))
    );
    assert!(!daemon.audit().iter().any(|line| line.to_string().contains("hunter2")), "secrets are masked");
}

#[test]
fn modes_bound_the_control_and_still_do_when_they_change() {
    let daemon = Daemon::start(&[]);
    for (mode, control, allowed) in [
        ("isolation", "open", false),
        ("isolation", "monitored", false),
        ("isolation", "filtered", true),
        ("hybrid", "open", false),
        ("hybrid", "monitored", true),
        ("development", "open", true),
    ] {
        let (_dir, file) = policy(&BOTH.replace("reason", &format!("control = \"{control}\"\nreason")));
        let args = [&["run"], lenient(), &["--mode", mode, "--policy", &file, "--", "/bin/true"]].concat();
        let output = daemon.apex(&args);
        assert_eq!(output.code == 0, allowed, "{mode} {control}: {output:?}");
        assert!(allowed || output.err().contains("laxest control"), "{output:?}");
    }
    let open = BOTH.replace("reason", "control = \"open\"\nreason");
    let (_dir, file) = policy(&open);
    let line = r#"{"send":"jobs","body":1}"#;
    let python = ["--", "/usr/bin/python3", "-c", TALK, line];
    let args = [&["run"], lenient(), &["--mode", "development", "--policy", &file], &python].concat();
    assert!(answers(&daemon.apex(&args).expect_code(0))[0]["id"].is_u64());
    assert!(written(&daemon).is_empty(), "an open mailbox leaves no trace");
}

#[test]
fn a_sandbox_that_is_turned_to_a_stricter_mode_is_held_to_it() {
    if !has_cgroup() {
        skip!("no delegated cgroup for an unprivileged user");
    }
    let daemon = Daemon::start(&[]);
    let rule = "control = \"monitored\"\nmax_size = 10\nreason";
    let id = idle(&daemon, &BOTH.replace("reason", rule), &["--mode", "hybrid"]);
    let lines = [r#"{"send":"jobs","body":1}"#, r#"{"send":"jobs","body":"more than ten"}"#];
    let outcomes = || -> Vec<String> { written(&daemon).into_iter().map(|(_, outcome, _)| outcome).collect() };
    assert_eq!(code(&talk(&daemon, &id, &lines)[1]), "too-large");
    assert_eq!(outcomes(), ["allowed"], "what a monitored mailbox refuses is told alone");
    daemon.apex(&["mode", "set", &id, "isolation"]).expect_code(0);
    talk(&daemon, &id, &lines);
    assert_eq!(outcomes(), ["allowed", "allowed", "refused"], "filtered as well, and still monitored");
}

#[test]
fn what_a_policy_does_not_name_is_not_there() {
    let daemon = Daemon::start(&[]);
    let id = idle(&daemon, BOTH, &[]);
    idle(&daemon, &BOTH.replace("jobs", "secrets"), &[]);
    daemon.apex(&["mail", "send", "secrets", "1"]).expect_code(0);
    let lines = [
        r#"{"receive":"secrets"}"#,
        r#"{"send":"secrets","body":1}"#,
        r#"{"receive":"../secrets"}"#,
        r#"{"receive":""}"#,
    ];
    for answer in talk(&daemon, &id, &lines) {
        assert_eq!(code(&answer), "denied");
    }
    // Who names no mailbox has no socket, and nothing that names one.
    let plain = daemon.create(&[], &["/bin/sleep", "300"]);
    let output = daemon.apex(&["exec", &plain, "--", "/bin/sh", "-c", "ls /dev/mail; echo \"<$APEX_MAIL>\""]);
    assert_eq!(output.out(), "<>\n");
    assert!(!std::path::Path::new(&daemon.dir().at(&format!("state/sandboxes/{plain}/mail"))).exists());
    // Neither has who has ended.
    daemon.apex(&["kill", &id]).expect_code(0);
    let end = Instant::now() + Duration::from_secs(10);
    while std::path::Path::new(&daemon.dir().at(&format!("state/sandboxes/{id}/mail"))).exists() {
        assert!(Instant::now() < end, "the socket goes with its sandbox");
        std::thread::sleep(Duration::from_millis(10));
    }
    // Without a daemon there are none.
    let (_dir, file) = policy(BOTH);
    let output = std::process::Command::new(apex_run())
        .args(lenient())
        .args(["--policy", &file, "--", "/bin/true"])
        .output()
        .expect("it starts");
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("only apexd has mailboxes"), "{output:?}");
}

#[test]
fn a_sandbox_of_a_pool_and_one_that_is_taken_up_have_theirs() {
    let mut daemon = Daemon::start(&[]);
    let (_dir, file) = policy(BOTH);
    for number in 0..3 {
        let line = format!(r#"{{"send":"jobs","body":{number}}}"#);
        let args =
            [&["run", "--pool", "--policy", &file], lenient(), &["--", "/usr/bin/python3", "-c", TALK, &line]].concat();
        let output = daemon.apex(&args).expect_code(0);
        assert!(answers(&output)[0]["id"].is_u64(), "{output:?}");
        std::thread::sleep(Duration::from_millis(300));
    }
    let id = idle(&daemon, BOTH, &[]);
    daemon.kill_and_restart();
    assert_eq!(talk(&daemon, &id, &[r#"{"receive":"jobs"}"#])[0]["body"], json!(0));
    assert_eq!(daemon.json(&["inspect", &id])["mailboxes"][0]["name"], "jobs");
}

#[test]
fn a_full_mailbox_refuses_and_an_emptied_one_takes() {
    let daemon = Daemon::start(&[]);
    let id = idle(&daemon, &BOTH.replace("reason", "rate = 1000\nreason"), &[]);
    let fill = format!(
        "{TENACIOUS}\nn = 0\nwhile True:\n    a = ask({{'send': 'jobs', 'body': n}})\n    if 'id' in a:\n        n += 1\n    elif a['error']['code'] == 'too-fast':\n        time.sleep(0.05)\n    else:\n        break\nprint(json.dumps([n, a]))\n"
    );
    let output = run_inside(&daemon, &id, &fill, &[]).expect_code(0);
    let told = &answers(&output)[0];
    assert_eq!((&told[0], code(&told[1])), (&json!(1000), "full"));
    let output = daemon.apex(&["mail", "send", "jobs", "1"]);
    assert!(output.code == 125 && output.err().contains("full"), "{output:?}");
    daemon.apex(&["mail", "send", "others", "1"]).expect_code(0);
    daemon.apex(&["mail", "rm", "jobs"]).expect_code(0);
    daemon.apex(&["mail", "send", "jobs", "2"]).expect_code(0);
    assert_eq!(talk(&daemon, &id, &[r#"{"receive":"jobs"}"#])[0]["body"], json!(2));
    let output = daemon.apex(&["mail", "send", "jobs", &format!("\"{}\"", "x".repeat(70_000))]);
    assert!(output.code == 125 && output.err().contains("65536"), "{output:?}");
}

/// The state directory can be passed through, so the socket can be reached from outside by who knows the id.
#[test]
fn a_socket_serves_its_own_sandbox_alone() {
    let daemon = Daemon::start(&[]);
    let id = idle(&daemon, BOTH, &[]);
    daemon.apex(&["mail", "send", "jobs", "1"]).expect_code(0);
    let path = daemon.dir().at(&format!("state/sandboxes/{id}/mail/socket"));
    let mut stream = UnixStream::connect(&path).expect("everybody may connect");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time");
    let _ = stream.write_all(b"{\"receive\":\"jobs\"}\n");
    let mut said = String::new();
    let _ = stream.read_to_string(&mut said);
    assert!(said.contains("denied") && !said.contains("body"), "{said}");
    // Another sandbox of the same user that sees the host's files.
    let state = daemon.dir().at("state");
    let other = idle(&daemon, &BOTH.replace("jobs", "others"), &["--ro", &state]);
    let theft = format!(
        "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect({path:?})\ntry:\n    s.sendall(b'{{\"receive\":\"jobs\"}}\\n')\nexcept BrokenPipeError:\n    pass\nprint(s.recv(1000).decode())\n"
    );
    let output = run_inside(&daemon, &other, &theft, &[]);
    assert!(!output.out().contains("body"), "{output:?}");
    assert!(output.out().contains("denied") || output.err().contains("PermissionError"), "{output:?}");
    assert_eq!(talk(&daemon, &id, &[r#"{"receive":"jobs"}"#])[0]["body"], json!(1), "its own still can");
}

#[test]
fn users_do_not_share_mailboxes() {
    if !as_root() {
        skip!("only root may ask as somebody else");
    }
    let dir = TempDir::new();
    let access = dir.file("access.toml", &format!("[[member]]\nuid = {NOBODY}\nrole = \"developer\"\n"));
    let daemon = Daemon::start(&["--access", &access]);
    let as_nobody = |args: &[&str]| sandbox::collect(daemon.command_as(NOBODY, args).spawn().expect("apex starts"));
    let file = daemon.dir().file("p.toml", BOTH);
    daemon.apex(&["mail", "send", "jobs", "\"of root\""]).expect_code(0);
    let line = r#"{"receive":"jobs"}"#;
    let run = ["run", "--optional", "cgroup", "--policy", &file, "--", "/usr/bin/python3", "-c", TALK];
    let output = as_nobody(&[&run[..], &[line, r#"{"send":"jobs","body":"of nobody"}"#]].concat()).expect_code(0);
    assert_eq!(answers(&output)[0], json!({"none": true}));
    let output = as_nobody(&["mail", "receive", "--user", "0", "jobs"]);
    assert!(output.code == 125 && output.err().contains("cannot mail-receive"), "{output:?}");
    let output = as_nobody(&["mail", "send", "--user", "root", "jobs", "1"]);
    assert!(output.code == 125 && output.err().contains("cannot mail-send"), "{output:?}");
    assert_eq!(as_nobody(&["mail", "rm", "--user", "root", "jobs"]).code, 125);
    let listed = as_nobody(&["--json", "mail", "ls"]).expect_code(0).json();
    let uids: Vec<_> = listed.as_array().expect("a list").iter().map(|mailbox| mailbox["uid"].clone()).collect();
    assert_eq!(uids, [json!(NOBODY)]);
    let user = NOBODY.to_string();
    assert_eq!(daemon.apex(&["mail", "receive", "--user", &user, "jobs"]).expect_code(0).out(), "\"of nobody\"\n");
    assert_eq!(daemon.apex(&["mail", "receive", "jobs"]).expect_code(0).out(), "\"of root\"\n");
}

#[test]
fn lines_that_are_none_are_refused() {
    let daemon = Daemon::start(&[]);
    let id = idle(&daemon, BOTH, &[]);
    let hostile = r#"
import os, socket, sys, time
def connect():
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(60)
    s.connect(os.environ["APEX_MAIL"])
    return s
def say(data):
    s = connect()
    try:
        s.sendall(data)
    except OSError:
        pass
    got = b""
    try:
        while b"\n" not in got:
            more = s.recv(65536)
            if not more: break
            got += more
    except OSError:
        pass
    print(got.decode().strip() or "{\"closed\":true}")
say(b"{\"send\":\"jobs\",\"body\":\"" + b"x" * 3000000)
say(b"[" * 100000 + b"\n")
say(b"{\"send\":\"jobs\",\"body\":" + b"[" * 200 + b"]" * 200 + b"}\n")
say(bytes(byte for byte in range(256) if byte != 10) * 100 + b"\n")
say(b"\xff\xfe{}\n")
say(b"{\"send\":\"jobs\",\"body\":1e999999}\n")
"#;
    let output = run_inside(&daemon, &id, hostile, &[]).expect_code(0);
    let told = answers(&output);
    assert_eq!(told.len(), 6, "{output:?}");
    assert_eq!(code(&told[0]), "too-long");
    assert!(told[1..].iter().all(|answer| code(answer) == "bad-request"), "{told:?}");
}

/// Bytes by which the daemon may grow, whatever a sandbox says to it.
const GROWTH_BYTES_MAX: u64 = 32 << 20;

#[test]
fn a_greedy_program_holds_up_itself_alone() {
    let daemon = Daemon::start(&[]);
    let id = idle(&daemon, BOTH, &[]);
    let other = idle(&daemon, BOTH, &[]);
    let before = daemon.memory_bytes();
    // Each takes what it can get: all connections, half lines, and answers that are never read.
    let greedy = r#"
import os, socket, threading, time
held = []
for number in range(200):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(1)
    try:
        s.connect(os.environ["APEX_MAIL"])
        s.sendall(b"{\"receive\":\"none\"}\n" * 3000 if number % 2 else b"{\"send\":\"jobs\",\"body\":\"" + b"y" * 100000)
    except OSError:
        pass
    held.append(s)
print("begun", flush=True)
time.sleep(300)
"#;
    let mut child =
        daemon.command(&["exec", &id, "--", "/usr/bin/python3", "-c", greedy]).spawn().expect("apex starts");
    let mut word = [0; 6];
    child.stdout.as_mut().expect("piped").read_exact(&mut word).expect("it begins");
    let begun = Instant::now();
    let answers = talk(&daemon, &other, &[r#"{"send":"jobs","body":1}"#, r#"{"receive":"jobs"}"#]);
    assert_eq!(answers[1]["body"], json!(1));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(daemon.memory_bytes() < before + GROWTH_BYTES_MAX, "{before} became {}", daemon.memory_bytes());
    // Its own: the seats come back, since nobody may take for ever over a line or an answer.
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let output = run_inside(&daemon, &id, TALK, &[r#"{"receive":"jobs"}"#]);
        if output.code == 0 && output.out().contains("body") {
            break;
        }
        assert!(Instant::now() < end, "{output:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
    daemon.apex(&["kill", &id]).expect_code(0);
    sandbox::collect(child);
}

#[test]
fn a_schema_that_would_take_for_ever_does_not() {
    let daemon = Daemon::start(&[]);
    let endless = BOTH.replace("reason", "schema = '{\"anyOf\": [{\"$ref\": \"#\"}, {\"$ref\": \"#\"}]}'\nreason");
    let id = idle(&daemon, &endless, &[]);
    let begun = Instant::now();
    let answers = talk(&daemon, &id, &[r#"{"send":"jobs","body":1}"#; 5]);
    assert!(answers.iter().all(|answer| code(answer) == "schema"), "{answers:?}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    for schema in [r#"{"format": "uri"}"#, "{", r#"{"$ref": "file:///etc/shadow"}"#] {
        let (_dir, file) = policy(&BOTH.replace("reason", &format!("schema = '{schema}'\nreason")));
        let output = daemon.apex(&[&["run"], lenient(), &["--policy", &file, "--", "/bin/true"]].concat());
        assert!(output.code == 125 && output.err().contains("the schema of mailbox `jobs`"), "{output:?}");
    }
}

//! What a user of the daemon can do to others, to root and to the daemon itself through it: nothing. Each way that was tried is a test.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use apex_tests::daemon::{Daemon, beside, lenient};
use apex_tests::traced::NOBODY;
use apex_tests::{Output, TempDir, as_root, sandbox, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Bytes by which the daemon may grow on a request, whatever is asked for.
const GROWTH_BYTES_MAX: u64 = 64 << 20;

/// A daemon of root that has given a role to somebody.
fn daemon_for(role: &str) -> (Daemon, TempDir) {
    let access = TempDir::new();
    let file = access.file("access.toml", &format!("[[member]]\nuid = {NOBODY}\nrole = \"{role}\"\n"));
    (Daemon::start(&["--access", &file]), access)
}

#[track_caller]
fn as_nobody(daemon: &Daemon, args: &[&str]) -> Output {
    sandbox::collect(daemon.command_as(NOBODY, args).spawn().expect("apex starts"))
}

/// A sandbox of somebody's; its id.
#[track_caller]
fn of_nobody(daemon: &Daemon, args: &[&str]) -> String {
    let args = [&["create", "--optional", "cgroup"], args].concat();
    as_nobody(daemon, &args).expect_code(0).out().trim().to_owned()
}

/// Runs a shell as somebody, outside.
#[track_caller]
fn shell_of_nobody(script: &str) {
    let mut command = Command::new("/bin/sh");
    let status = command.args(["-c", script]).uid(NOBODY).gid(NOBODY).current_dir("/").status().expect("it starts");
    assert!(status.success(), "{script}");
}

fn keeper_of(daemon: &Daemon, id: &str) -> Pid {
    let init = daemon.json(&["inspect", id])["pid"].as_u64().expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{init}/status")).expect("it runs");
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("it has one");
    Pid::from_raw(parent.trim().parse().expect("a pid"))
}

/// The files of events and findings belong to the sandbox's user, who can make them as large as a file gets.
#[test]
fn a_line_without_end_is_not_taken_into_memory() {
    if !as_root() {
        skip!("only root may ask as somebody else");
    }
    let (daemon, _access) = daemon_for("developer");
    let id = of_nobody(&daemon, &["--watch", "--on-finding", "warn", "--", "/bin/sleep", "300"]);
    // One that a program with monstrous arguments could have brought about is cut, and hides nothing behind it.
    let events = daemon.dir().at(&format!("state/sandboxes/{id}/events.jsonl"));
    shell_of_nobody(&format!(
        "(printf '{{\"a\":\"'; head -c 900000 /dev/zero | tr '\\0' x; echo '\"}}'; echo '{{\"last\":1}}') >> {events}"
    ));
    let told = as_nobody(&daemon, &["events", &id]).expect_code(0).out();
    let told: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let cut = told.iter().position(|line| line["cut"] == 900_009).expect("it is told as cut");
    assert!(told[cut..].iter().any(|line| line["last"] == 1), "{told:?}");
    let before = daemon.memory_bytes();
    for file in ["events", "findings"] {
        let path = daemon.dir().at(&format!("state/sandboxes/{id}/{file}.jsonl"));
        shell_of_nobody(&format!("truncate -s 3G {path} && echo >> {path}"));
        let output = as_nobody(&daemon, &[file, &id]);
        assert_eq!(output.code, 125, "{output:?}");
        assert!(output.err().contains("longer than any"), "{output:?}");
    }
    assert!(daemon.memory_bytes() < before + GROWTH_BYTES_MAX, "{} became {}", before, daemon.memory_bytes());
}

/// Whoever stops the keeper of their own sandbox and writes findings about it keeps the daemon waiting for answers: not at the cost of others.
#[test]
fn a_stopped_keeper_holds_up_no_answer_to_the_findings_of_others() {
    if !as_root() {
        skip!("only root may ask as somebody else");
    }
    let (daemon, _access) = daemon_for("developer");
    let watched = ["--watch", "--on-finding", "freeze"];
    let stopped = of_nobody(&daemon, &[&watched[..], &["--", "/bin/sleep", "300"]].concat());
    let other = daemon.create(&[&watched[..], &["--mode", "hybrid"]].concat(), &["/bin/sleep", "300"]);
    let keeper = keeper_of(&daemon, &stopped);
    kill(keeper, Signal::SIGSTOP).expect("it runs");
    let finding = json!({"severity_id": 5, "finding_info": {"title": "made up"}}).to_string();
    let file = |id: &str| daemon.dir().at(&format!("state/sandboxes/{id}/findings.jsonl"));
    shell_of_nobody(&format!("for n in 1 2 3 4; do echo '{finding}' >> {}; done", file(&stopped)));
    std::thread::sleep(Duration::from_millis(300));
    let begun = Instant::now();
    let append = std::fs::File::options().append(true).open(file(&other)).expect("it is there");
    std::io::Write::write_all(&mut &append, format!("{finding}\n").as_bytes()).expect("we are root");
    daemon.until(&other, |sandbox| sandbox["state"] == "frozen");
    let waited = begun.elapsed();
    kill(keeper, Signal::SIGCONT).expect("it runs");
    assert!(waited < Duration::from_secs(10), "it was answered after {waited:?}");
}

/// Nor do stopped keepers hold up the start of the next daemon, nor a request about other sandboxes.
#[test]
fn stopped_keepers_hold_up_no_restart() {
    if !as_root() {
        skip!("only root may ask as somebody else");
    }
    let (mut daemon, _access) = daemon_for("developer");
    let other = daemon.create(&[], &["/bin/sleep", "300"]);
    let ids: Vec<String> = (0..4).map(|_| of_nobody(&daemon, &["--", "/bin/sleep", "300"])).collect();
    let keepers: Vec<Pid> = ids.iter().map(|id| keeper_of(&daemon, id)).collect();
    keepers.iter().for_each(|keeper| kill(*keeper, Signal::SIGSTOP).expect("it runs"));
    let begun = Instant::now();
    daemon.kill_and_restart();
    let waited = begun.elapsed();
    let begun = Instant::now();
    let rows = daemon.json(&["stats"]);
    assert!(rows.to_string().contains(&other), "{rows}");
    assert!(begun.elapsed() < Duration::from_secs(6), "numbers came after {:?}", begun.elapsed());
    daemon.apex(&["kill", &other]).expect_code(0);
    keepers.iter().for_each(|keeper| kill(*keeper, Signal::SIGCONT).expect("it runs"));
    assert!(waited < Duration::from_secs(12), "it was there after {waited:?}");
    for id in &ids {
        daemon.until(id, |sandbox| sandbox["state"] == "running");
    }
}

/// What runs in a sandbox has its user's id, and the daemon does what that user says: outside.
#[test]
fn nobody_asks_from_inside_a_sandbox() {
    let daemon = Daemon::start(&[]);
    let socket = daemon.dir().text();
    let apex = beside("apex");
    let apex = apex.to_str().expect("a path of a test");
    let args = ["--mode", "hybrid", "--ro", &format!("{socket}:/tmp/d"), "--ro", &format!("{apex}:/tmp/apex")];
    let inside = |words: &[&str]| {
        let command = [&["run"], lenient(), &args[..], &["--"], words].concat();
        daemon.apex(&command)
    };
    let seen = inside(&["/bin/sh", "-c", "test -S /tmp/d/s && echo seen"]);
    assert_eq!(seen.out(), "seen\n", "the socket is there, or nothing is tested: {seen:?}");
    for words in [&["ls"][..], &["create", "--", "/bin/true"], &["tree"]] {
        let output = inside(&[&["/tmp/apex", "--socket", "/tmp/d/s"], words].concat());
        assert_eq!(output.code, 125, "{output:?}");
        assert!(output.err().contains("inside a sandbox"), "{output:?}");
    }
}

#[test]
fn refusals_without_end_do_not_fill_the_disk() {
    if !as_root() {
        skip!("only root may ask as somebody else");
    }
    let daemon = Daemon::start(&[]);
    let id = daemon.create(&[], &["/bin/sleep", "300"]);
    daemon.command_as(NOBODY, &["ls"]).output().expect("apex is copied");
    let apex = daemon.dir().at("apex");
    let socket = daemon.socket();
    let flood =
        format!("n=0; while [ $n -lt 150 ]; do {apex} --socket {socket} kill {id} 2>/dev/null; n=$((n+1)); done; true");
    shell_of_nobody(&flood);
    let nobody = NOBODY.to_string();
    let written = || {
        let lines = daemon.audit().into_iter().filter(|line| line["actor"]["user"]["uid"] == nobody.as_str());
        lines.collect::<Vec<Value>>()
    };
    let count = written().len();
    assert!((64..120).contains(&count), "{count} of 150 refusals are written down");
    std::thread::sleep(Duration::from_millis(1100));
    shell_of_nobody(&format!("{apex} --socket {socket} kill {id} 2>/dev/null; true"));
    let last = written().pop().expect("some are written").to_string();
    assert!(last.contains("refusals of this user before"), "{last}");
    assert_eq!(daemon.json(&["inspect", &id])["state"], "running");
    assert_eq!(daemon.json(&["audit", "verify"])["intact"], true);
}

/// By no word of theirs, not by a beginning of the id either, is there a difference between somebody else's sandbox and none.
#[test]
fn sandboxes_of_others_are_not_there() {
    if !as_root() {
        skip!("only root may ask as somebody else");
    }
    let (daemon, _access) = daemon_for("developer");
    let ids =
        [daemon.create(&["--name", "secret"], &["/bin/sleep", "300"]), daemon.create(&[], &["/bin/sleep", "300"])];
    let own = of_nobody(&daemon, &["--name", "own", "--", "/bin/sleep", "300"]);
    let told = |word: &str, verb: &[&str]| {
        let args: Vec<&str> = verb.iter().map(|part| if *part == "ID" { word } else { part }).collect();
        let output = as_nobody(&daemon, &args);
        assert_eq!(output.code, 125, "{args:?}: {output:?}");
        output.err().replace(word, "ID")
    };
    let verbs = [
        &["inspect", "ID"][..],
        &["attach", "ID"],
        &["logs", "ID"],
        &["events", "ID"],
        &["findings", "ID"],
        &["wait", "ID"],
        &["kill", "ID"],
        &["rm", "-f", "ID"],
        &["pause", "ID"],
        &["resume", "ID"],
        &["signal", "ID", "KILL"],
        &["mode", "set", "ID", "isolation"],
        &["mode", "set", "ID", "development"],
        &["limits", "set", "ID", "--memory", "1M"],
    ];
    for verb in verbs {
        let of_none = told("ffffffffffff", verb);
        assert!(of_none.contains("there is no sandbox"), "{of_none}");
        for word in [ids[0].as_str(), &ids[0][..11], "secret"] {
            assert_eq!(told(word, verb), of_none, "{verb:?}");
        }
    }
    // One letter that begins ids of several others, or of others and the own one.
    for letter in "0123456789abcdef".chars().map(String::from) {
        let output = as_nobody(&daemon, &["--json", "inspect", &letter]);
        match own.starts_with(&letter) {
            true => assert_eq!(output.json()["id"], own.as_str()),
            false => assert!(output.err().contains("there is no sandbox"), "{output:?}"),
        }
    }
    for id in &ids {
        assert_eq!(daemon.json(&["inspect", id])["state"], "running");
    }
    let listed = as_nobody(&daemon, &["--json", "ls", "--all"]).json();
    assert!(listed.as_array().is_some_and(|rows| rows.len() == 1 && rows[0]["id"] == own.as_str()), "{listed}");
}

/// Whatever a client writes into the texts that are kept, a line of the log is one record, and a terminal shows no commands.
#[test]
fn texts_of_clients_forge_no_record_and_command_no_terminal() {
    let daemon = Daemon::start(&[]);
    let forged = "x\n{\"metadata\":{\"sequence\":1}}\r\n\u{1b}]0;owned\u{7}\u{202e}\u{2028}";
    let command = ["/bin/sh", "-c", "sleep 300", forged];
    let id = daemon.create(&["--label", &format!("a={forged}"), "--mode", "hybrid", "--net", "none"], &command);
    let _ = daemon.apex(&["mode", "set", &id, "isolation", "--reason", forged]);
    let body = json!({"command": ["/bin/true"], "name": forged}).to_string();
    assert_eq!(daemon.rest("POST", "/v1/sandboxes", &body).0, 400);
    daemon.apex(&["kill", &id]).expect_code(0);
    let lines = daemon.audit();
    for (at, line) in lines.iter().enumerate() {
        assert_eq!(line["metadata"]["sequence"], at + 1, "{line}");
    }
    assert_eq!(daemon.json(&["audit", "verify"])["records"], lines.len());
    for args in [&["ls", "--all"][..], &["inspect", &id], &["audit", "tail"], &["logs", &id]] {
        let shown = daemon.apex(args).out();
        assert!(!shown.contains(['\u{1b}', '\u{7}', '\u{202e}', '\r']), "{args:?}: {shown:?}");
    }
}

/// A policy is read by the keeper, which is the asker's process.
#[test]
fn a_policy_reads_no_file_that_its_user_could_not() {
    if !as_root() {
        skip!("only root may ask as somebody else");
    }
    let (daemon, _access) = daemon_for("developer");
    let secret = daemon.dir().file("secret.toml", "hunter2 = \"hunter2\"\n");
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
    let link = daemon.dir().at("link.toml");
    std::os::unix::fs::symlink(&secret, &link).expect("the directory is ours");
    for path in [secret.as_str(), &link, "/etc/shadow", "/root/none.toml"] {
        let policy = daemon.dir().file("policy.toml", &format!("extends = [{path:?}]\n"));
        let output = as_nobody(&daemon, &["create", "--optional", "cgroup", "--policy", &policy, "--", "/bin/true"]);
        assert_eq!(output.code, 125, "{path}: {output:?}");
        let id = output.out().trim().to_owned();
        let log = as_nobody(&daemon, &["logs", &id]);
        let told = format!("{output:?} {log:?} {}", daemon.json(&["inspect", &id]));
        assert!(!told.contains("hunter2") && !told.contains("root:"), "{told}");
    }
    // Nor is it started in a directory that its user may not enter.
    let args = ["create", "--optional", "cgroup", "--workdir", "/root", "--", "/bin/true"];
    let output = as_nobody(&daemon, &args);
    assert_eq!(output.code, 125, "{output:?}");
}

#[test]
fn ids_and_names_are_no_paths() {
    let daemon = Daemon::start(&[]);
    let outside = daemon.dir().file("state/outside", "kept");
    for name in ["..", "../outside", "/etc/passwd", "a/b", "a\0b", "-x", "a b", "\u{e9}", &"x".repeat(65)] {
        let body = json!({"command": ["/bin/true"], "name": name}).to_string();
        let (status, answer) = daemon.rest("POST", "/v1/sandboxes", &body);
        // Two dots are a name as good as any: it leads nowhere.
        assert_eq!(status, if name == ".." { 201 } else { 400 }, "{name:?}: {answer}");
    }
    for id in ["..%2foutside", "%2e%2e%2foutside", "..%2f..%2fs", "%00", "%ff", "x%0d%0aX:%20y"] {
        for (method, path) in [("GET", ""), ("GET", "/logs"), ("GET", "/events"), ("DELETE", "?force")] {
            let (status, answer) = daemon.rest(method, &format!("/v1/sandboxes/{id}{path}"), "");
            assert!(matches!(status, 400 | 404), "{method} {id}{path}: {status} {answer}");
        }
    }
    assert_eq!(std::fs::read_to_string(outside).expect("it is there"), "kept");
}

/// What still lives with a sandbox when it is forgotten must not write its row anew.
#[test]
fn a_forgotten_sandbox_does_not_come_back() {
    let mut daemon = Daemon::start(&[]);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..6 {
                    let id = daemon.create(&[], &["/bin/sleep", "300"]);
                    let other = daemon.command(&["kill", &id]).spawn().expect("apex starts");
                    daemon.apex(&["rm", "-f", &id]).expect_code(0);
                    sandbox::collect(other);
                }
            });
        }
    });
    daemon.kill_and_restart();
    assert_eq!(daemon.json(&["ls", "--all"]), json!([]));
    assert_eq!(std::fs::read_dir(daemon.dir().at("state/sandboxes")).expect("it is there").count(), 0);
}

/// The state directory belongs to the daemon's user: others see names and sockets of no sandbox, and reach no keeper.
#[test]
fn the_state_directory_is_closed_to_others() {
    if !as_root() {
        skip!("only root may ask as somebody else");
    }
    let (daemon, _access) = daemon_for("developer");
    let id = daemon.create(&["--watch", "--mode", "hybrid"], &["/bin/sleep", "300"]);
    let own = of_nobody(&daemon, &["--", "/bin/sleep", "300"]);
    let state = daemon.dir().at("state");
    for path in ["", "/sandboxes", "/apexd.db", "/audit.jsonl", "/apexd.lock"] {
        shell_of_nobody(&format!(
            "! cat {state}{path} 2>/dev/null && ! ls {state}{path}/ 2>/dev/null && ! touch {state}{path}/x 2>/dev/null"
        ));
    }
    for of in [&id, &own] {
        let dir = format!("{state}/sandboxes/{of}");
        shell_of_nobody(&format!(
            "! ls {dir} 2>/dev/null && ! touch {dir}/x 2>/dev/null && ! ln -s /etc/passwd {dir}/l 2>/dev/null"
        ));
        shell_of_nobody(&format!("! rm -f {dir}/result.json 2>/dev/null && ! cat {dir}/stdout.log 2>/dev/null"));
        let socket = std::fs::metadata(format!("{dir}/keeper.sock")).expect("it is there");
        assert_eq!(socket.permissions().mode() & 0o022, 0, "whoever may write there commands the sandbox");
    }
    shell_of_nobody(&format!("! cat {state}/sandboxes/{id}/events.jsonl 2>/dev/null"));
}

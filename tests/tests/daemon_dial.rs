//! The finer dials of a sandbox that runs: its switches, its successor, what watching costs.

use std::net::TcpListener;

use apex_tests::daemon::Daemon;
use apex_tests::{as_root, sandbox, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Attempts one call of each kind in the sandbox and tells which were refused.
const ATTEMPTS: &str = r#"
import socket, sys
port = int(sys.argv[1])
def connect():
    socket.create_connection(("127.0.0.1", port)).close()
def bind():
    socket.socket().bind(("127.0.0.1", 0))
def sendmsg():
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))
refused = []
for call in [connect, bind, sendmsg]:
    try:
        call()
    except PermissionError:
        refused.append(call.__name__)
print(" ".join(refused) or "none")
"#;

#[test]
fn switches_of_a_sandbox_are_turned_while_it_runs() {
    if !as_root() {
        skip!("only root loads probes");
    }
    let daemon = Daemon::start(&[]);
    let server = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let port = server.local_addr().expect("bound").port().to_string();
    let args = ["--mode", "hybrid", "--profile", "python", "--net", "host", "--watch", "--name", "web"];
    let id = daemon.create(&args, &["/bin/sleep", "300"]);
    let refused = || {
        let attempts = daemon.apex(&["exec", &id, "--", "/usr/bin/python3", "-c", ATTEMPTS, &port]).expect_code(0);
        attempts.out().trim().to_owned()
    };
    assert_eq!(refused(), "none");
    let turned = daemon.json(&["limits", "switch", &id, "connect=off", "sendmsg=off", "--reason", "looks odd"]);
    assert_eq!(turned["applied"], true, "{turned}");
    assert_eq!(turned["steps"][0]["what"], "switches: connect, sendmsg off", "{turned}");
    assert_eq!(refused(), "connect sendmsg");
    let inspected = daemon.json(&["inspect", &id]);
    assert_eq!(inspected["switched_off"], serde_json::json!(["connect", "sendmsg"]));
    assert_eq!(inspected["network"], "host");
    daemon.apex(&["limits", "switch", &id, "connect=on", "sendmsg=on", "bind=off"]).expect_code(0);
    assert_eq!(refused(), "bind");
    // With the mode that it was born in it has again what it was born with.
    daemon.apex(&["mode", "set", &id, "isolation"]).expect_code(0);
    assert_eq!(daemon.json(&["inspect", &id])["switched_off"], serde_json::json!(["bind"]));
    daemon.apex(&["mode", "set", &id, "hybrid"]).expect_code(0);
    assert_eq!(refused(), "none");
    daemon.apex(&["limits", "switch", &id, "disk=off"]).expect_code(125);
    let audit = daemon.audit();
    let line = audit.iter().find(|line| line.to_string().contains("looks odd")).expect("it is written down");
    assert!(line.to_string().contains("\"connect\":true"), "{line}");
}

/// The dials of a sandbox stand as they were when its daemon is another one.
#[test]
fn switches_outlive_the_daemon() {
    if !as_root() {
        skip!("only root loads probes");
    }
    let mut daemon = Daemon::start(&[]);
    let args = ["--mode", "hybrid", "--profile", "python", "--net", "host", "--watch"];
    let id = daemon.create(&args, &["/bin/sleep", "300"]);
    daemon.apex(&["limits", "switch", &id, "connect=off"]).expect_code(0);
    // The cut and the switches are one entry of the kernel's: neither takes the other back.
    daemon.apex(&["mode", "set", &id, "isolation"]).expect_code(0);
    daemon.kill_and_restart();
    daemon.apex(&["limits", "switch", &id, "connect=on"]).expect_code(0);
    let inspected = daemon.json(&["inspect", &id]);
    assert_eq!(
        (inspected["network"].as_str(), inspected["switched_off"].as_array().map(Vec::len)),
        (Some("cut"), Some(0))
    );
    let attempts = daemon.apex(&["exec", &id, "--", "/usr/bin/python3", "-c", ATTEMPTS, "9"]).expect_code(0);
    assert_eq!(attempts.out().trim(), "connect bind sendmsg");
}

#[test]
fn a_finding_turns_every_switch_off() {
    if !as_root() {
        skip!("only root loads probes");
    }
    let daemon = Daemon::start(&[]);
    let names = "/tmp/h/.ssh/id_rsa /tmp/h/.aws/credentials /tmp/h/.netrc";
    let args = ["--mode", "hybrid", "--watch", "--on-finding", "shut", "--tmpfs", "/tmp/h"];
    let id = daemon.create(&args, &["/bin/sh", "-c", &format!("/bin/cat {names}; exec sleep 300")]);
    let shut = daemon.until(&id, |sandbox| sandbox["switched_off"].as_array().is_some_and(|list| list.len() == 4));
    assert_eq!(shut["state"], "running");
    assert!(!shut["tightened_by"].as_str().unwrap_or_default().is_empty(), "{shut}");
}

/// Beyond its ceiling a sandbox gets a successor: the same request in a wider mode, under its name, with what is the host's.
#[test]
fn a_successor_takes_the_place_of_a_sandbox() {
    if !as_root() {
        skip!("only root has a freezer for every sandbox");
    }
    let mut daemon = Daemon::start(&[]);
    let job = daemon.dir().dir("job");
    let args = [
        "--name",
        "web",
        "--label",
        "team=core",
        "--rw",
        &job,
        "--env",
        "WORD=kept",
        "--cpu",
        "50%",
        "--workdir",
        &job,
    ];
    let script = "echo $WORD >> said; echo x >> /tmp/private; wc -l < /tmp/private; exec sleep 300";
    let old = daemon.create(&[&args[..], &["--mode", "isolation"]].concat(), &["/bin/sh", "-c", script]);
    let refused = daemon.apex(&["mode", "set", "web", "hybrid"]);
    assert!(refused.code == 125 && refused.err().contains("--successor"), "{refused:?}");
    let answer = daemon.json(&["mode", "set", "web", "hybrid", "--successor", "--reason", "it needs more"]);
    assert_eq!((answer["applied"].as_bool(), answer["to"].as_str()), (Some(true), Some("hybrid")), "{answer:#}");
    assert!(answer["carried_over"].to_string().contains("working directory"), "{answer:#}");
    assert!(answer["left_behind"].to_string().contains("memory"), "{answer:#}");
    let new = answer["successor"].as_str().expect("it has one").to_owned();
    let (before, after) = (daemon.json(&["inspect", &old]), daemon.json(&["inspect", "web"]));
    assert_eq!((before["state"].as_str(), before["successor"].as_str()), (Some("ended"), Some(new.as_str())));
    assert_eq!((after["id"].as_str(), after["predecessor"].as_str()), (Some(new.as_str()), Some(old.as_str())));
    assert_eq!((after["born_mode"].as_str(), after["state"].as_str()), (Some("hybrid"), Some("running")));
    assert_eq!((after["labels"]["team"].as_str(), after["limits"]["cpu_percent"].as_u64()), (Some("core"), Some(50)));
    let said = std::fs::read_to_string(format!("{job}/said")).expect("both wrote it");
    assert_eq!(said, "kept\nkept\n");
    assert_eq!(daemon.apex(&["logs", "web"]).expect_code(0).out(), "1\n", "its /tmp is a new one");
    let audit = daemon.audit();
    let line = audit.iter().find(|line| line.to_string().contains("it needs more")).expect("it is written down");
    assert!(
        line.to_string().contains(&format!("\"successor\":\"{new}\"")) && line["api"]["operation"] == "mode-relax",
        "{line}"
    );
    // A successor has successors too, also of another daemon.
    daemon.kill_and_restart();
    let answer = daemon.json(&["mode", "set", "web", "development", "--successor"]);
    assert_eq!(answer["applied"], true, "{answer:#}");
    assert_eq!(daemon.json(&["inspect", "web"])["predecessor"], new.as_str());
}

/// One that does not come to be leaves nothing, and the sandbox goes on as it was.
#[test]
fn a_successor_that_cannot_be_made_is_taken_back() {
    if !as_root() {
        skip!("only root has a freezer for every sandbox");
    }
    let daemon = Daemon::start(&[]);
    let job = daemon.dir().dir("job");
    let old = daemon.create(&["--name", "web", "--ro", &job], &["/bin/sleep", "300"]);
    std::fs::remove_dir(&job).expect("it is ours");
    let answer = daemon.apex(&["--json", "mode", "set", "web", "hybrid", "--successor"]);
    assert_eq!(answer.code, 125, "{answer:?}");
    let answer = answer.json();
    assert_eq!((answer["applied"].as_bool(), answer["successor"].as_str()), (Some(false), Some("")), "{answer:#}");
    assert!(answer["words"].as_str().unwrap_or_default().contains("job"), "{answer:#}");
    assert!(answer["steps"].to_string().contains("thaw the predecessor"), "{answer:#}");
    let all = daemon.json(&["ls", "--all"]);
    assert_eq!(all.as_array().map(Vec::len), Some(1), "{all:#}");
    let left = daemon.json(&["inspect", "web"]);
    assert_eq!((left["id"].as_str(), left["state"].as_str()), (Some(old.as_str()), Some("running")));
    assert_eq!((left["successor"].as_str(), left["mode"].as_str()), (Some(""), Some("isolation")));
    assert!(daemon.audit().iter().any(|line| line.to_string().contains("start the successor")));
}

/// Whoever may relax and may not create in that mode gets no successor, and nobody gets one that runs as somebody else.
#[test]
fn a_successor_is_judged_as_a_new_sandbox() {
    if !as_root() {
        skip!("only root may ask as somebody else");
    }
    const NOBODY: u32 = 65534;
    let access = apex_tests::TempDir::new();
    let rules = format!(
        "[[member]]\nuid = {NOBODY}\nrole = \"developer\"\n[[rule]]\nrole = \"developer\"\noperations = [\"create\"]\nscope = \"own\"\neffect = \"deny\"\nmodes = [\"development\"]\nreason = \"not here\"\n"
    );
    let file = access.file("access.toml", &rules);
    let daemon = Daemon::start(&["--access", &file]);
    let as_nobody = |args: &[&str]| sandbox::collect(daemon.command_as(NOBODY, args).spawn().expect("apex starts"));
    let made = as_nobody(&["create", "--optional", "cgroup", "--watch", "--", "/bin/sleep", "300"]).expect_code(0);
    let id = made.out().trim().to_owned();
    let refused = as_nobody(&["mode", "set", &id, "development", "--successor"]);
    assert_eq!(refused.code, 125, "{refused:?}");
    assert!(daemon.audit().iter().any(|line| line["api"]["operation"] == "create" && line["status_id"] == 2));
    let by_root = daemon.apex(&["mode", "set", &id, "hybrid", "--successor"]);
    assert!(by_root.code == 125 && by_root.err().contains("another user's"), "{by_root:?}");
    assert_eq!(daemon.json(&["inspect", &id])["state"], "running");
}

/// Tells, at each change, whether a call is carried out that mode development reports: userfaultfd(2), for faults of user space.
const REPORTED: &str = r#"
import ctypes, os, time
libc, before = ctypes.CDLL(None, use_errno=True), None
while True:
    fd = libc.syscall(323, 1)
    now = "done" if fd >= 0 else "refused" if ctypes.get_errno() == 1 else "failed"
    if fd >= 0:
        os.close(fd)
    if now != before:
        print(now, flush=True)
        before = now
    time.sleep(0.02)
"#;

/// A call that is carried out and reported is refused while it runs, by its own switch and by a stricter mode, without any probe.
#[test]
fn reported_calls_of_a_sandbox_that_runs_are_refused() {
    let daemon = Daemon::start(&[]);
    let job = daemon.dir().dir("job");
    let id = daemon.create(
        &["--mode", "development", "--net", "none", "--rw", &job, "--workdir", &job],
        &["/usr/bin/python3", "-c", REPORTED],
    );
    let until_told = |expected: &str| {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            let told = daemon.apex(&["logs", &id]).expect_code(0).out().replace('\n', " ");
            if told.trim() == expected {
                return;
            }
            assert!(std::time::Instant::now() < end, "it told {told:?}, not {expected:?}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };
    until_told("done");
    daemon.apex(&["limits", "switch", &id, "reported=off"]).expect_code(0);
    until_told("done refused");
    assert_eq!(daemon.json(&["inspect", &id])["switched_off"], serde_json::json!(["reported"]));
    daemon.apex(&["limits", "switch", &id, "reported=on"]).expect_code(0);
    until_told("done refused done");
    if !as_root() {
        skip!("only root has a cgroup with limits for the mode");
    }
    let stricter = daemon.json(&["mode", "set", &id, "isolation"]);
    assert!(stricter["steps"].to_string().contains("switches: reported off"), "{stricter}");
    until_told("done refused done refused");
    daemon.apex(&["mode", "set", &id, "development"]).expect_code(0);
    until_told("done refused done refused done");
    // One whose policy reports nothing says so.
    let strict = daemon.create(&[], &["/bin/sleep", "300"]);
    let refused = daemon.apex(&["limits", "switch", &strict, "reported=off"]).expect_code(125);
    assert!(refused.err().contains("reports no system calls"), "{refused:?}");
}

#[test]
fn what_each_probe_costs_is_told_when_asked_for() {
    if !as_root() {
        skip!("only root loads probes");
    }
    let daemon = Daemon::start(&[]);
    let watched = ["--mode", "hybrid", "--watch"];
    let ids = [0, 1].map(|_| daemon.create(&watched, &["/bin/sh", "-c", "while :; do /bin/true; sleep 0.05; done"]));
    daemon.create(&["--mode", "hybrid"], &["/bin/sleep", "300"]);
    let metrics = |path: &str| {
        let (status, text) = daemon.rest("GET", path, "");
        assert_eq!(status, 200, "{text}");
        text
    };
    assert!(!metrics("/metrics").contains("apex_probe"), "nobody asked");
    // The programs of a process see every birth, so each prober has some by now.
    let text = metrics("/metrics?probes");
    assert!(text.contains("apex_probes_asked 2\n"), "{text}");
    let value = |name: &str| {
        let line =
            text.lines().find(|line| line.starts_with(&format!("{name}{{family=\"process\",program=\"on_exec\"}}")));
        let value = line.and_then(|line| line.rsplit(' ').next()).and_then(|value| value.parse::<f64>().ok());
        value.unwrap_or_else(|| panic!("no {name} of on_exec in {text}"))
    };
    let (runs, seconds) = (value("apex_probe_runs"), value("apex_probe_seconds"));
    assert!(runs >= 2.0 && seconds > 0.0 && seconds / runs < 0.01, "{runs} runs took {seconds} s");
    // A sandbox without a prober is not asked, one that stands still is.
    daemon.apex(&["pause", &ids[0]]).expect_code(0);
    assert!(metrics("/metrics?probes=true").contains("apex_probes_asked 2\n"));
}

/// A prober that somebody has stopped costs whoever asks for figures a moment, and its sandbox nothing: an answer that comes too late is no word out of turn.
#[test]
fn a_stopped_prober_tells_no_costs_and_its_sandbox_goes_on() {
    if !as_root() {
        skip!("only root loads probes");
    }
    let daemon = Daemon::start(&[]);
    let id = daemon.create(&["--mode", "hybrid", "--watch"], &["/bin/sleep", "300"]);
    let init = daemon.json(&["inspect", &id])["pid"].as_i64().expect("it runs");
    let prober = sibling(i32::try_from(init).expect("a pid"), "apex-probe");
    let signal = |signal| kill(Pid::from_raw(prober), signal).expect("it is ours");
    let asked = || daemon.rest("GET", "/metrics?probes", "").1;
    signal(Signal::SIGSTOP);
    assert!(asked().contains("apex_probes_asked 0\n"));
    signal(Signal::SIGCONT);
    // The late answer comes, and then one that is asked for anew.
    daemon.apex(&["limits", "switch", &id, "bind=off"]).expect_code(0);
    assert!(asked().contains("apex_probes_asked 1\n"));
    assert_eq!(daemon.json(&["inspect", &id])["state"], "running");
}

/// The process of that name beside this one, below the same parent.
fn sibling(pid: i32, name: &str) -> i32 {
    let parent = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse::<i32>().ok())
    };
    let above = parent(pid).expect("it has one");
    let processes = std::fs::read_dir("/proc").expect("it is there").flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_named =
        |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name);
    pids.find(|pid| parent(*pid) == Some(above) && is_named(*pid)).unwrap_or_else(|| panic!("no {name} below {above}"))
}

#[test]
fn without_probes_a_switch_is_refused_with_its_remedy() {
    let daemon = Daemon::start(&[]);
    let id = daemon.create(&[], &["/bin/sleep", "300"]);
    let refused = daemon.apex(&["limits", "switch", &id, "connect=off"]).expect_code(125);
    assert!(refused.err().contains("--watch"), "{refused:?}");
}

//! The daemon under its own rules: as whom it runs, what the kernel says is in force for it, and that everything works so.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use apex_tests::daemon::{Daemon, beside, lenient};
use apex_tests::traced::NOBODY;
use apex_tests::{TempDir, apex_run, as_root, sandbox, skip};

/// A user that every host has, and whom no test is.
const OWN_USER: &str = "nobody";

fn own_uid() -> u32 {
    let passwd = std::fs::read_to_string("/etc/passwd").expect("every host has it");
    let entry = passwd.lines().find(|line| line.starts_with("nobody:")).expect("every host has nobody");
    entry.split(':').nth(2).and_then(|uid| uid.parse().ok()).expect("a number")
}

/// A field of a status file of /proc.
#[track_caller]
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{name} is not in {status}")).trim().to_owned()
}

fn statuses(pid: i32) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let paths = threads.map(|thread| thread.expect("it runs").path().join("status"));
    // A thread may end in between.
    paths.filter_map(|path| std::fs::read_to_string(path).ok()).collect()
}

fn warden_of(daemon: &Daemon) -> i32 {
    let (pid, task) = (daemon.pid(), daemon.pid());
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{task}/children")).expect("it runs");
    text.trim().parse().expect("the warden is its only child")
}

#[track_caller]
fn check_confined(daemon: &Daemon, uid: u32) {
    // Its threads have been at work by then.
    daemon.apex(&["ls"]).expect_code(0);
    let statuses = statuses(daemon.pid());
    assert!(statuses.len() > 2, "it has threads");
    for status in statuses {
        assert_eq!(field(&status, "NoNewPrivs"), "1");
        assert_eq!(field(&status, "Seccomp"), "2", "a filter");
        for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
            assert_eq!(field(&status, set).trim_start_matches('0'), "", "{set}");
        }
        assert_eq!(field(&status, "Uid"), [uid.to_string().as_str(); 4].join("\t"));
        if uid != 0 && as_root() {
            assert_eq!(field(&status, "Groups"), "");
        }
    }
    let tree = daemon.json(&["tree"]);
    let own = tree["services"].as_array().and_then(|all| all.iter().find(|row| row["name"] == "apexd"));
    let words = own.and_then(|row| row["words"].as_str()).expect("it tells of itself").to_owned();
    assert!(words.contains(&format!("uid {uid}, capabilities 0, no_new_privs 1, seccomp 2")), "{words}");
    let has_landlock = std::fs::read_to_string("/sys/kernel/security/lsm").map(|list| list.contains("landlock"));
    if has_landlock.unwrap_or(true) {
        assert!(words.contains("landlock yes"), "{words}");
    }
}

#[test]
fn the_kernel_says_that_the_api_process_is_confined() {
    let own = nix::unistd::geteuid().as_raw();
    if as_root() {
        // Whether or not the host has the user that is taken by itself.
        check_confined(&Daemon::start(&["--user", "root"]), own);
        check_confined(&Daemon::start(&["--user", OWN_USER]), own_uid());
    } else {
        check_confined(&Daemon::start(&[]), own);
    }
}

#[test]
fn the_warden_has_what_it_needs_and_no_more() {
    if !as_root() {
        skip!("the warden of an ordinary user has no privileges");
    }
    let daemon = Daemon::start(&["--user", OWN_USER]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", warden_of(&daemon))).expect("it runs");
    assert_eq!(field(&status, "Uid"), "0\t0\t0\t0");
    let set = |name: &str| u64::from_str_radix(&field(&status, name), 16).expect("a set");
    // Chown, DAC override and search, setgid, setuid.
    assert_eq!(set("CapEff") & !0b1100_0111, 0, "{status}");
    // Nothing that it executes loads modules, sets the clock, reboots, or has raw I/O.
    for capability in [16, 17, 22, 25] {
        assert_eq!(set("CapBnd") & 1 << capability, 0, "{status}");
    }
}

#[test]
fn a_user_of_its_own_keeps_sandboxes_of_root_and_of_others() {
    if !as_root() {
        skip!("only root becomes another user");
    }
    let access = TempDir::new();
    let file = access.file("access.toml", &format!("[[member]]\nuid = {NOBODY}\nrole = \"tester\"\n"));
    let mut daemon = Daemon::start(&["--user", OWN_USER, "--access", &file]);
    let said = daemon.apex(&[&["run"], lenient(), &["--", "/bin/echo", "hi"]].concat()).expect_code(0);
    assert_eq!(said.out(), "hi\n");
    let id = daemon.create(&["--watch"], &["/bin/sh", "-c", "echo begun; sleep 300"]);
    let as_other = |daemon: &Daemon, args: &[&str]| {
        sandbox::collect(daemon.command_as(NOBODY, args).spawn().expect("apex starts"))
    };
    let args = ["run", "--optional", "cgroup", "--", "/usr/bin/id", "-u"];
    as_other(&daemon, &args).expect_code(0);
    // Everything but what the keepers' users write is the daemon's, and the key is root's.
    let owner = |name: &str| std::fs::metadata(daemon.dir().at(name)).expect("it is there").uid();
    for name in [
        "state",
        "state/apexd.db",
        "state/audit.jsonl",
        "state/sandboxes",
        &format!("state/sandboxes/{id}/keeper.sock"),
    ] {
        assert_eq!(owner(name), own_uid(), "{name}");
    }
    let key = std::fs::metadata(daemon.dir().at("state/warden.key")).expect("it is there");
    assert_eq!((key.uid(), key.gid(), key.permissions().mode() & 0o7777), (0, 0, 0o600));
    daemon.kill_and_restart();
    assert_eq!(daemon.json(&["inspect", &id])["state"], "running");
    assert_eq!(daemon.apex(&["logs", &id]).expect_code(0).out(), "begun\n");
    as_other(&daemon, &args).expect_code(0);
    daemon.apex(&["rm", "-f", &id]).expect_code(0);
    assert_eq!(daemon.json(&["audit", "verify"])["intact"], true);
}

#[test]
fn a_state_directory_of_root_is_handed_over_with_what_runs() {
    if !as_root() {
        skip!("only root becomes another user");
    }
    let mut daemon = Daemon::start(&["--user", "root"]);
    let id = daemon.create(&[], &["/bin/sleep", "300"]);
    daemon.kill_and_restart_with(&["--user", OWN_USER]);
    check_confined(&daemon, own_uid());
    assert_eq!(daemon.json(&["inspect", &id])["state"], "running");
    assert_eq!(std::fs::metadata(daemon.dir().at("state")).expect("it is there").uid(), own_uid());
    daemon.apex(&["kill", &id]).expect_code(0);
    daemon.apex(&["rm", &id]).expect_code(0);
}

#[test]
fn an_ordinary_users_daemon_is_confined_too() {
    if !as_root() {
        skip!("the other tests run as an ordinary user already");
    }
    let dir = TempDir::new();
    for (name, from) in [("apexd", beside("apexd")), ("apex-run", apex_run())] {
        std::fs::copy(from, dir.at(name)).expect("the directory is ours");
    }
    let home = dir.dir("home");
    std::os::unix::fs::chown(&home, Some(NOBODY), Some(NOBODY)).expect("we are root");
    let socket = format!("{home}/s");
    let mut child = Command::new(dir.at("apexd"))
        .args(["--socket", &socket, "--state", &format!("{home}/state")])
        .env_remove("APEX_RUN")
        .uid(NOBODY)
        .gid(NOBODY)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("apexd starts");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        assert!(std::time::Instant::now() < end, "it listens");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    std::fs::copy(beside("apex"), dir.at("apex")).expect("the directory is ours");
    let mut apex = Command::new(dir.at("apex"));
    apex.args(["--socket", &socket, "run", "--optional", "cgroup", "--", "/bin/echo", "hi"]).uid(NOBODY).gid(NOBODY);
    let apex = apex.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = sandbox::collect(apex.spawn().expect("apex starts"));
    let statuses = statuses(child.id().cast_signed());
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
    assert_eq!((output.code, output.out().as_str()), (0, "hi\n"), "{output:?}");
    for status in statuses {
        assert_eq!((field(&status, "NoNewPrivs"), field(&status, "Seccomp")), ("1".to_owned(), "2".to_owned()));
    }
}

#[test]
fn a_launcher_that_others_could_change_is_not_executed() {
    let dir = TempDir::new();
    let program = dir.at("apex-run");
    std::fs::copy(apex_run(), &program).expect("the directory is ours");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o777)).expect("it is ours");
    let output = Command::new(beside("apexd"))
        .args(["--socket", &dir.at("s"), "--state", &dir.at("state")])
        .env("APEX_RUN", &program)
        .stdin(Stdio::null())
        .output()
        .expect("apexd starts");
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{words}");
    assert!(words.contains("others than its owner could change it (mode 777)"), "{words}");
}

#[test]
fn a_user_that_is_not_there_is_an_error() {
    let dir = TempDir::new();
    let output = Command::new(beside("apexd"))
        .args(["--socket", &dir.at("s"), "--state", &dir.at("state"), "--user", "nosuchuser"])
        .stdin(Stdio::null())
        .output()
        .expect("apexd starts");
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--user nosuchuser"), "{output:?}");
}

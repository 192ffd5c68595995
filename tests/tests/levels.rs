//! Isolation levels: what each has and leaves out, attempted from inside, and that all of them die whole.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use apex_tests::{Mode, Sandbox, TempDir, as_root, has_partial, leaks, skip};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;

const PATIENCE: Duration = Duration::from_secs(15);
/// Those that this kernel can give.
fn levels() -> Vec<&'static str> {
    let mut levels = vec!["full", "partial", "none"];
    levels.retain(|level| *level != "partial" || has_partial());
    levels
}

/// Layers that a level leaves out.
const WITHOUT_MOUNTS: [&str; 5] = ["mountns", "ipcns", "utsns", "cgroupns", "timens"];
const UNCONFINED: [&str; 3] = ["netns", "landlock", "seccomp"];

/// The working directory, which development lets be written, is not the home, which holds what it denies.
fn at(level: &str, mode: Mode) -> Sandbox {
    Sandbox::new().caller_env("HOME", "/nonexistent").mode(mode).arg("--level").arg(level)
}

fn left_out(level: &str) -> Vec<&'static str> {
    match level {
        "full" => Vec::new(),
        "partial" => WITHOUT_MOUNTS.to_vec(),
        _ => WITHOUT_MOUNTS.into_iter().chain(UNCONFINED).collect(),
    }
}

/// A directory that everybody may use: a sandbox of root owns nothing of the host where its own tree is not translated.
fn open_to_all() -> TempDir {
    let dir = TempDir::new();
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).expect("it is ours");
    dir
}

fn file(dir: &TempDir, name: &str, content: &str) -> String {
    let path = dir.file(name, content);
    std::fs::set_permissions(&path, Permissions::from_mode(0o666)).expect("it is ours");
    path
}

fn namespace(kind: &str) -> String {
    std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("/proc is there").display().to_string()
}

#[test]
fn the_kernel_says_what_is_there_and_what_is_not() {
    for level in levels() {
        let look = "cat /proc/self/status; for kind in mnt net ipc uts pid user; do readlink /proc/self/ns/$kind; done";
        let sandbox = at(level, Mode::Development);
        let text = sandbox.run(&["/bin/sh", "-c", look]).expect_code(0).out();
        let filtered = if level == "none" { "Seccomp:\t0" } else { "Seccomp:\t2" };
        for line in [filtered, "NoNewPrivs:\t1", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"] {
            assert!(text.contains(line), "{level}: {line} is not in {text}");
        }
        for (kind, is_shared) in [("mnt", true), ("ipc", true), ("uts", true), ("pid", false), ("user", false)] {
            let is_shared = is_shared && level != "full";
            assert_eq!(text.contains(&namespace(kind)), is_shared, "{level}: {kind} in {text}");
        }
        assert!(text.contains(&namespace("net")), "{level}: development has the host's network: {text}");
    }
}

#[test]
fn receipts_plans_and_proofs_tell_what_a_level_leaves_out() {
    for level in levels() {
        let json = |option: &[&str]| {
            at(level, Mode::Development).arg("--json").args(option.iter().copied()).run(&["true"]).expect_code(0).json()
        };
        let receipt = &json(&["--receipt", "-"])["receipt"];
        assert_eq!(receipt["level"], level);
        let proof = &json(&["--prove"])["proof"];
        assert_eq!((&proof["level"], &proof["passed"]), (&level.into(), &true.into()), "{proof:#}");
        let plan = &json(&["--plan"])["plan"];
        assert_eq!(plan["level"], level);
        for layers in [&receipt["layers"], &proof["layers"]] {
            let layers = layers.as_array().expect("a list");
            let found: Vec<&str> = layers
                .iter()
                .filter(|layer| layer["state"] == "left-out" && layer["reason"] == level)
                .map(|layer| layer["layer"].as_str().expect("a name"))
                .collect();
            let mut expected = left_out(level);
            expected.sort_unstable();
            let mut found = found;
            found.sort_unstable();
            assert_eq!(found, expected, "{level}");
            assert!(layers.iter().all(|layer| layer["state"] != "mismatch"), "{layers:#?}");
        }
        for layer in left_out(level) {
            assert_eq!(plan["layers"][layer], "off", "{level}: {layer}");
        }
    }
}

/// What Landlock and the filter keep without any mount, and what they give.
#[test]
fn partial_keeps_what_is_denied_and_gives_what_is_granted() {
    if !has_partial() {
        skip!("the kernel's Landlock does not judge truncating");
    }
    let dir = open_to_all();
    std::fs::set_permissions(dir.dir("data"), Permissions::from_mode(0o777)).expect("it is ours");
    for name in ["data/secret", "data/open", "work"] {
        std::fs::set_permissions(dir.dir(name), Permissions::from_mode(0o777)).expect("it is ours");
    }
    for name in ["data/secret/key", "data/open/text", "data/top", "outside"] {
        file(&dir, name, "words");
    }
    std::os::unix::fs::symlink(dir.at("data/secret/key"), dir.at("work/link")).expect("it is ours");
    let secret = dir.at("data/secret");
    let sandbox = |mode| {
        let sandbox = at("partial", mode).arg("--ro").arg(dir.at("data")).arg("--rw").arg(dir.at("work"));
        sandbox.arg("--workdir").arg(dir.text())
    };
    let tries = [
        ("read what is granted", "cat data/open/text data/top", true),
        ("list what is granted", "ls data/open", true),
        ("write what is granted", "echo x > work/new && cat work/new && rm work/new", true),
        ("read what is denied", "cat data/secret/key", false),
        ("list what is denied", "ls data/secret", false),
        ("list what holds it", "ls data", false),
        ("read it over a link", "cat work/link", false),
        ("read it over /proc", &format!("cat /proc/self/root{secret}/key"), false),
        ("read it from within", "cd data/secret && cat key", false),
        ("link it elsewhere", "ln data/secret/key work/hard && cat work/hard", false),
        ("move it elsewhere", "mv data/secret/key work/moved", false),
        ("remove it", "rm -f data/secret/key", false),
        ("write what is read-only", "echo x > data/top", false),
        ("cut what is read-only", "truncate -s 0 data/top", false),
        ("make a file beside", "touch data/new", false),
        ("write where nothing is granted", "echo x > outside", false),
        ("write to /tmp", "touch /tmp/apex-levels", false),
        ("write to the kernel", "echo 0 > /proc/self/oom_score_adj", false),
        ("open a terminal of the host", "cat < /dev/ptmx", false),
        ("use /dev/null", "echo x > /dev/null", true),
    ];
    for mode in [Mode::Hybrid, Mode::Development] {
        for (name, script, works) in &tries {
            let output = sandbox(mode).deny(&secret).run(&["timeout", "5", "sh", "-c", script]);
            assert_eq!(output.code == 0, *works, "{name} in {}: {output:?}", mode.name());
        }
        // Without the deny the same is given: the attempts above can succeed.
        sandbox(mode).run(&["sh", "-c", "cat data/secret/key work/link && ls data data/secret"]).expect_code(0);
    }
    assert_eq!(std::fs::read_to_string(dir.at("data/top")).expect("it is there"), "words");
    assert!(!std::path::Path::new(&dir.at("data/new")).exists());
}

/// A name that comes after the start is in no rule, under the name that is denied as under any other.
#[test]
fn a_denied_name_that_comes_later_is_refused_at_partial() {
    if !has_partial() {
        skip!("the kernel's Landlock does not judge truncating");
    }
    let dir = open_to_all();
    file(&dir, "text", "words");
    let sandbox = at("partial", Mode::Development).arg("--ro").arg(dir.text()).deny(&dir.at("later"));
    let script = format!("cat {0}/text; echo ready; read go; cat {0}/later", dir.text());
    let mut session = sandbox.start(&["/bin/sh", "-c", &script]);
    assert_eq!(session.line(), "wordsready");
    file(&dir, "later", "secret");
    session.send("go\n");
    let output = session.finish();
    assert!(output.code != 0 && !output.out().contains("secret"), "{output:?}");
}

/// More rules than the init may have descriptors.
#[test]
fn a_denied_name_among_many_leaves_the_others() {
    if !has_partial() {
        skip!("the kernel's Landlock does not judge truncating");
    }
    let dir = open_to_all();
    for number in 0..1500 {
        file(&dir, &number.to_string(), "words");
    }
    let sandbox =
        at("partial", Mode::Hybrid).arg("--ro").arg(dir.text()).deny(&dir.at("7")).arg("--workdir").arg(dir.text());
    let output = sandbox.run(&["/bin/sh", "-c", "ulimit -n; cat 6 1499; cat 7"]);
    assert!(output.code != 0 && output.out().ends_with("wordswords"), "{output:?}");
}

/// What root may reach and nobody else is in no rule, and keeps nothing from starting.
#[test]
fn root_starts_where_its_sandbox_may_not_look() {
    if !has_partial() {
        skip!("the kernel's Landlock does not judge truncating");
    }
    let sandbox = at("partial", Mode::Development);
    std::fs::set_permissions(sandbox.cwd(), Permissions::from_mode(0o700)).expect("it is ours");
    let output = sandbox.run(&["/bin/pwd"]).expect_code(0);
    let expected = if as_root() { "/".to_owned() } else { sandbox.cwd().display().to_string() };
    assert_eq!(output.out().trim(), expected);
}

/// A service of the host is not reached by its socket's name, which no rule of files keeps anybody from.
#[test]
fn partial_has_no_sockets_with_names() {
    if !has_partial() {
        skip!("the kernel's Landlock does not judge truncating");
    }
    let dir = open_to_all();
    let path = dir.at("service");
    let listener = UnixListener::bind(&path).expect("it is ours");
    std::fs::set_permissions(&path, Permissions::from_mode(0o777)).expect("it is ours");
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("somebody comes");
        stream.write_all(b"served").expect("it reads");
    });
    let connect = format!(
        "import socket\na, b = socket.socketpair()\nsocket.socket().close()\ns = socket.socket(socket.AF_UNIX)\ns.connect('{path}')\nprint(s.recv(6).decode())"
    );
    let run = |level: &str| at(level, Mode::Development).run(&["/usr/bin/python3", "-c", &connect]);
    let output = run("partial");
    assert!(output.code == 1 && output.err().contains("[Errno 97]"), "{output:?}");
    assert_eq!(run("none").expect_code(0).out(), "served\n");
    server.join().expect("it does not panic");
}

#[test]
fn the_network_is_the_policys_at_partial() {
    if !has_partial() {
        skip!("the kernel's Landlock does not judge truncating");
    }
    let interfaces = "sed 1,2d /proc/self/net/dev | grep -vc '^ *lo:'";
    let output = at("partial", Mode::Hybrid).run(&["/bin/sh", "-c", interfaces]);
    assert_eq!(output.out(), "0\n", "hybrid has no network: {output:?}");
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback is up");
    let port = server.local_addr().expect("it listens").port();
    let connect = format!("exec 3<>/dev/tcp/127.0.0.1/{port}");
    let run = |net: &str| at("partial", Mode::Hybrid).arg("--net").arg(net).run(&["/bin/bash", "-c", &connect]);
    assert_ne!(run("none").code, 0);
    run("host").expect_code(0);
}

#[test]
fn none_is_what_its_user_may_and_root_is_nobody_there() {
    let dir = open_to_all();
    let own = dir.file("own", "words");
    std::fs::set_permissions(&own, Permissions::from_mode(0o600)).expect("it is ours");
    let output = at("none", Mode::Development).run(&["/bin/sh", "-c", &format!("cat {own}; echo $$; id -u")]);
    let text = output.out();
    if as_root() {
        assert_eq!(text, "2\n1000\n", "{output:?}");
        // Nor what only root may change, whatever the program believes to be.
        for script in [
            "echo x >> /etc/passwd",
            "echo x > /proc/sys/kernel/domainname",
            "cat /etc/shadow",
            "mount -t tmpfs x /mnt",
        ] {
            let output = at("none", Mode::Development).arg("--uid").arg("0").run(&["/bin/sh", "-c", script]);
            assert_ne!(output.code, 0, "{script}: {output:?}");
        }
    } else {
        assert_eq!(text, format!("words2\n{}\n", nix::unistd::geteuid()), "{output:?}");
    }
}

/// The launcher's parent has the same user, and another user namespace.
#[test]
fn processes_of_the_host_are_seen_and_not_touched() {
    let pid = std::process::id();
    for level in levels().into_iter().filter(|level| *level != "full") {
        let run = |script: &str| at(level, Mode::Development).run(&["/bin/sh", "-c", &format!("{script} 2>&1")]);
        run(&format!("test -d /proc/{pid}")).expect_code(0);
        for script in ["kill -0", "cat /proc/N/environ", "cat /proc/N/mem", "cat /proc/N/maps", "ls /proc/N/cwd/"] {
            let script =
                if script == "kill -0" { format!("kill -0 {pid}") } else { script.replace('N', &pid.to_string()) };
            let output = run(&script);
            assert_ne!(output.code, 0, "{level}: {script}: {output:?}");
        }
    }
}

/// Somebody who left its parent, its session and its terminal, and holds a lock that shows whether it lives.
fn holder(dir: &TempDir, rest: &str) -> String {
    let lock = file(dir, "lock", "");
    format!("(setsid flock {lock} sh -c 'trap \"\" TERM INT HUP; echo holding; sleep 300' &); {rest}")
}

fn is_held(dir: &TempDir) -> bool {
    let file = std::fs::File::open(dir.at("lock")).expect("it is ours");
    Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err()
}

#[track_caller]
fn expect_released(dir: &TempDir, level: &str) {
    let end = Instant::now() + PATIENCE;
    while is_held(dir) {
        assert!(Instant::now() < end, "{level}: a process of the sandbox outlived it");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn holding(level: &str, dir: &TempDir) -> Sandbox {
    let sandbox = at(level, Mode::Development);
    if level == "none" { sandbox } else { sandbox.arg("--rw").arg(dir.text()) }
}

#[test]
fn everything_dies_with_a_killed_launcher_at_each_level() {
    for level in levels() {
        let dir = open_to_all();
        let sandbox = holding(level, &dir);
        let mut session = sandbox.start(&["/bin/sh", "-c", &holder(&dir, "sleep 300")]);
        session.expect_line("holding");
        assert!(is_held(&dir), "{level}");
        session.signal(Signal::SIGKILL);
        session.finish();
        expect_released(&dir, level);
        assert_eq!(leaks::processes(sandbox.mark()), [""; 0], "{level}");
    }
}

#[test]
fn a_daemon_dies_with_the_command_at_each_level() {
    for level in levels() {
        let dir = open_to_all();
        let sandbox = holding(level, &dir);
        let output = sandbox.run(&["/bin/sh", "-c", &holder(&dir, "sleep 0.5; exit 7")]).expect_code(7);
        assert_eq!(output.out(), "holding\n", "{level}: {output:?}");
        expect_released(&dir, level);
        sandbox.expect_nothing_left(&output);
    }
}

#[test]
fn a_terminal_and_the_wall_time_are_there_at_each_level() {
    for level in levels() {
        let output = at(level, Mode::Development).arg("--tty").arg("yes").run(&["/usr/bin/tty"]).expect_code(0);
        assert!(output.out().starts_with("/dev/pts/"), "{level}: {output:?}");
        let output = at(level, Mode::Development).arg("--time").arg("300ms").run(&["sleep", "60"]);
        assert_eq!(output.code, apex_tests::TIME_OVER, "{level}: {output:?}");
    }
}

#[test]
fn modes_have_their_least_level() {
    if !has_partial() {
        skip!("the kernel's Landlock does not judge truncating");
    }
    for (mode, level) in [(Mode::Isolation, "partial"), (Mode::Isolation, "none"), (Mode::Hybrid, "none")] {
        let asked = format!("isolation level {level}");
        at(level, mode).run(&["true"]).expect_refusal(&["--level", &asked, "the least is", mode.name()]);
    }
    for (mode, level) in [(Mode::Isolation, "full"), (Mode::Hybrid, "partial"), (Mode::Development, "none")] {
        at(level, mode).run(&["true"]).expect_code(0);
    }
    at("little", Mode::Development).run(&["true"]).expect_refusal(&["--level", "full, partial, none"]);
}

#[test]
fn what_a_level_cannot_keep_is_refused_with_words() {
    let dir = open_to_all();
    file(&dir, "in", "");
    let (path, inner) = (dir.text(), dir.at("in"));
    let moved = format!("{path}:/elsewhere");
    let tries: &[(&[&str], &[&str])] = &[
        (&["--tmpfs", "/cache"], &["partial", "none"]),
        (&["--tmp-size", "1M"], &["partial", "none"]),
        (&["--hostname", "other"], &["partial", "none"]),
        (&["--ro", &moved], &["partial", "none"]),
        (&["--overlay", &path], &["partial", "none"]),
        (&["--learn", &inner], &["partial", "none"]),
        (&["--rw", &path, "--deny", &inner], &["partial", "none"]),
        (&["--ro", &path], &["none"]),
        (&["--deny", &path], &["none"]),
        (&["--net", "none"], &["none"]),
        (&["--why"], &["none"]),
    ];
    for (options, levels) in tries {
        for level in *levels {
            let output = at(level, Mode::Development).args(options.iter().copied()).run(&["true"]);
            output.expect_refusal(&[options[0], "level"]);
        }
    }
}

#[test]
fn policies_say_a_level_and_later_ones_only_more() {
    if !has_partial() {
        skip!("the kernel's Landlock does not judge truncating");
    }
    let dir = TempDir::new();
    let policy = |name: &str, text: &str| dir.file(name, &format!("mode = \"development\"\n{text}"));
    let run = |file: &str, flags: &[&str]| {
        Sandbox::new()
            .caller_env("HOME", "/nonexistent")
            .arg("--policy")
            .arg(file)
            .args(flags.iter().copied())
            .arg("--json")
            .arg("--plan")
            .run(&["true"])
    };
    let partial = policy("partial.toml", "level = \"partial\"\n");
    assert_eq!(run(&partial, &[]).expect_code(0).json()["plan"]["level"], "partial");
    assert_eq!(run(&partial, &["--level", "full"]).expect_code(0).json()["plan"]["level"], "full");
    run(&partial, &["--level", "none"]).expect_refusal(&["--level", "partial.toml:2 says partial"]);
    let required = policy("required.toml", "level = \"none\"\n[layers]\nseccomp = \"required\"\n");
    run(&required, &[]).expect_refusal(&["required.toml:4", "seccomp", "level none"]);
    let off = policy("off.toml", "level = \"partial\"\n[layers]\nlandlock = \"off\"\n");
    run(&off, &[]).expect_refusal(&["off.toml:4", "landlock", "stands on that layer"]);
    let narrow = policy("narrow.toml", "level = \"partial\"\n[syscalls]\ndeny = [\"sockets\"]\n");
    run(&narrow, &[]).expect_code(0);
    let said = policy("said.toml", "level = \"none\"\n[syscalls]\ndeny = [\"sockets\"]\n");
    run(&said, &[]).expect_refusal(&["said.toml:4", "`sockets`"]);
}

#[test]
fn refusals_at_partial_are_explained_by_the_rules() {
    if !has_partial() {
        skip!("the kernel's Landlock does not judge truncating");
    }
    let dir = open_to_all();
    let sandbox = at("partial", Mode::Development).arg("--ro").arg(dir.text()).arg("--why");
    let script = format!("touch {}/new; exit 0", dir.text());
    let text = sandbox.run(&["/bin/sh", "-c", &script]).expect_code(0).err();
    assert!(text.contains("no rule grants writing there [landlock]"), "{text}");
    assert!(!text.contains("mountns"), "{text}");
    let quiet = at("partial", Mode::Development).arg("--why").run(&["/bin/sh", "-c", "cat /etc/passwd > /dev/null"]);
    assert_eq!(quiet.expect_code(0).err(), "nothing was refused\n");
}

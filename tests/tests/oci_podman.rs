//! podman and buildah run their containers with `apex-oci`, and get what they ask for.

use std::process::Stdio;
use std::time::{Duration, Instant};

use apex_tests::podman::{IMAGE, Podman, missing};
use apex_tests::{leaks, skip};

const PROGRAMS: [&str; 4] = ["podman", "conmon", "busybox", "tar"];
const PATIENCE: Duration = Duration::from_secs(20);

macro_rules! engine {
    ($start:expr, $programs:expr) => {{
        if let Some(reason) = missing(&[&PROGRAMS[..], &$programs[..]].concat()) {
            skip!(reason);
        }
        $start
    }};
    () => {
        engine!(Podman::new(), [])
    };
}

/// Looks until it is so.
#[track_caller]
fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn codes_and_words_of_an_end_come_back() {
    let podman = engine!();
    assert_eq!(podman.container(&[], &["echo", "hello"]).expect_code(0).out(), "hello\n");
    let output = podman.container(&[], &["sh", "-c", "echo why >&2; exit 7"]).expect_code(7);
    assert_eq!((output.out().as_str(), output.err().as_str()), ("", "why\n"));
    let output = podman.container(&[], &["/nowhere"]).expect_code(127);
    assert!(output.err().contains("\"/nowhere\": no such file"), "{}", output.err());
    assert!(podman.container(&[], &["nowhere"]).expect_code(127).err().contains("not found in $PATH"));
    assert!(podman.container(&[], &["/etc/passwd"]).expect_code(126).err().contains("permission denied"));
    podman.container(&["--init"], &["sh", "-c", "kill -9 $$"]).expect_code(137);
    let loops = (0..8).map(|_| podman.container(&[], &["true"]).code);
    assert_eq!(loops.sum::<i32>(), 0);
}

#[test]
fn streams_are_whole_and_a_terminal_is_one() {
    let podman = engine!(Podman::new(), ["script"]);
    let mut command = podman.command(&["run", "-i", "--rm", "--network=none", "--cgroup-parent"]);
    command.args([podman.cgroup_parent(), IMAGE, "sh", "-c", "wc -c; yes 0123456789abcde | head -c 8000000"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("podman is there");
    let mut stdin = child.stdin.take().expect("piped");
    std::io::Write::write_all(&mut stdin, &vec![b'x'; 3_000_000]).expect("it is read");
    drop(stdin);
    let output = child.wait_with_output().expect("it is our child");
    let (count, rest) = output.stdout.split_at(8);
    assert_eq!(count, b"3000000\n");
    assert_eq!(rest.len(), 8_000_000);
    assert!(rest.chunks(16).all(|line| line == b"0123456789abcde\n"));

    let inside = "tty; test -t 0 && test -t 1 && test -t 2; stty size; exit 6";
    let line = format!("{:?}", podman.command(&["run", "-it", "--rm", "--network=none", "--cgroup-parent"]));
    let line = format!("stty rows 33 cols 77; {line} {} {IMAGE} sh -c 'sleep 1; {inside}'", podman.cgroup_parent());
    let output = std::process::Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output();
    let output = output.expect("script is there");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(6), "{text}");
    assert!(text.contains("/dev/pts/0") && text.contains("33 77"), "{text}");
}

#[test]
fn what_a_container_may_is_as_asked() {
    let podman = engine!();
    let asks = |flags: &[&str], script: &str| podman.container(flags, &["sh", "-c", script]);
    let status = "grep -E '^(CapEff|Seccomp|NoNewPrivs):' /proc/self/status | cut -f2 | tr '\\n' ' '";
    assert_eq!(asks(&[], status).out(), "00000000a80425fb 0 2 ");
    assert_eq!(asks(&["--cap-drop=all", "--security-opt=no-new-privileges"], status).out(), "0000000000000000 1 2 ");
    assert_eq!(asks(&["--cap-drop=all", "--security-opt=seccomp=unconfined"], status).out(), "0000000000000000 0 0 ");
    assert_eq!(asks(&["--user=1000:1000", "--group-add=2000"], "id -u; id -G").out(), "1000\n1000 2000\n");
    // The default profile lets nobody make namespaces who may not do everything; without it the capability decides.
    let names = "unshare -u true 2>/dev/null; echo $?";
    assert_eq!(asks(&["--cap-drop=all"], names).out(), "1\n");
    assert_eq!(asks(&["--cap-add=sys_admin"], names).out(), "0\n");
    let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":95}]}"#;
    let profile = format!("--security-opt=seccomp={}", podman.file("profile.json", profile));
    let output = asks(&[&profile], "mkdir /tmp/x || touch /tmp/y").expect_code(0);
    assert!(output.err().contains("not supported"), "{}", output.err());

    let output = asks(&["--read-only"], "touch /x; touch /tmp/x && echo tmp").expect_code(0);
    assert_eq!((output.out().as_str(), output.err().contains("Read-only")), ("tmp\n", true));
    let volume = format!("{}:/v:ro", podman.at("root/etc"));
    assert!(asks(&["-v", &volume], "cat /v/group; touch /v/x").expect_code(1).out().contains("user"));
    let flags =
        ["--tmpfs=/t:size=1m", "--shm-size=2m", "--hostname=hh", "--sysctl=net.ipv4.ip_forward=1", "--umask=077"];
    let script = "df -k /t /dev/shm | awk 'NR > 1 {print $2}'; hostname; cat /proc/sys/net/ipv4/ip_forward; umask";
    assert_eq!(asks(&flags, script).out(), "1024\n2048\nhh\n1\n0077\n");
    let map =
        asks(&["--uidmap=0:100000:1000", "--gidmap=0:100000:1000"], "id -u; cat /proc/self/uid_map; ls -ldn /etc");
    let map = map.expect_code(0).out().split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(map[..4], ["0", "0", "100000", "1000"]);
    assert_eq!(map[6..8], ["0", "0"], "files belong to root inside: {map:?}");
}

#[test]
fn limits_hold() {
    let podman = engine!();
    let output = podman.container(&["--memory=24m"], &["sh", "-c", "tail /dev/zero"]);
    assert_eq!(output.code, 137, "{}", output.err());
    podman.start("held", &["--memory=64m", "--pids-limit=7", "--cpus=0.5", "--cpuset-cpus=0"], &["sleep", "1000"]);
    let pid = podman.inspect("held", ".State.Pid").parse().expect("a pid");
    assert_eq!(leaks::memory_limit(pid), Some(64 << 20));
    assert_eq!(podman.exec("held", &["grep", "Cpus_allowed_list", "/proc/self/status"]), "Cpus_allowed_list:\t0\n");
    let forks = "for i in 1 2 3 4 5 6 7 8 9; do sleep 30 >/dev/null 2>&1 & done; wait";
    let output = podman.run(&["exec", "held", "sh", "-c", forks]);
    assert!(output.err().contains("fork"), "{} {}", output.code, output.err());
    // The sleepers are still there.
    let output = podman.run(&["exec", "held", "true"]);
    assert!(output.err().contains("limit of tasks"), "{} {}", output.code, output.err());
    let stats = podman.run(&["stats", "--no-stream", "--format", "{{.MemLimit}}", "held"]).expect_code(0).out();
    assert_eq!(stats.trim(), (64 << 20).to_string());
    podman.run(&["rm", "-f", "-t", "0", "held"]).expect_code(0);
    // Who asks for no cgroup is in the caller's; a create that fails leaves nothing there either.
    podman.run(&["run", "--rm", "--network=none", "--cgroups=disabled", IMAGE, "/nowhere"]).expect_code(127);
    let own = std::fs::read_to_string("/proc/self/cgroup").expect("it is mounted");
    let bare = ["run", "--rm", "--network=none", "--cgroups=disabled", IMAGE, "cat", "/proc/self/cgroup"];
    let bare = podman.run(&bare).expect_code(0).out();
    assert!(bare.lines().filter(|line| !line.starts_with("0:")).all(|line| own.contains(line)), "{bare}\n{own}");
}

#[test]
fn a_container_lives_through_the_commands_of_its_life() {
    let podman = engine!();
    let script = "trap 'echo term; exit 9' TERM; echo started; while :; do sleep 0.1; done";
    let health = ["--health-cmd=test -e /tmp/ok", "--health-interval=disable"];
    podman.start("a", &health, &["sh", "-c", script]);
    until("started in its log", || podman.run(&["logs", "a"]).out() == "started\n");
    assert_eq!(podman.run(&["exec", "a", "sh", "-c", "echo in; exit 4"]).expect_code(4).out(), "in\n");
    let who =
        podman.run(&["exec", "-u", "1000:1000", "-w", "/tmp", "-e", "X=y", "a", "sh", "-c", "id -u; pwd; echo $X"]);
    assert_eq!(who.expect_code(0).out(), "1000\n/tmp\ny\n");
    podman.run(&["exec", "a", "/nowhere"]).expect_code(127);
    podman.run(&["exec", "a", "/etc/passwd"]).expect_code(126);
    podman.run(&["exec", "-d", "a", "sh", "-c", "echo x > /tmp/detached"]).expect_code(0);
    until("the detached wrote", || podman.run(&["exec", "a", "cat", "/tmp/detached"]).out() == "x\n");
    podman.run(&["healthcheck", "run", "a"]).expect_code(1);
    podman.exec("a", &["touch", "/tmp/ok"]);
    podman.run(&["healthcheck", "run", "a"]).expect_code(0);
    let top = podman.run(&["top", "a", "pid", "comm"]).expect_code(0).out();
    assert!(top.lines().any(|line| line.split_whitespace().eq(["1", "sh"])), "{top}");

    let pid = podman.inspect("a", ".State.Pid").parse().expect("a pid");
    podman.run(&["pause", "a"]).expect_code(0);
    assert_eq!((podman.inspect("a", ".State.Status").as_str(), leaks::is_frozen(pid)), ("paused", Some(true)));
    podman.run(&["unpause", "a"]).expect_code(0);
    assert_eq!(leaks::is_frozen(pid), Some(false));
    let copy = podman.file("copied", "from outside\n");
    podman.run(&["cp", &copy, "a:/tmp/copied"]).expect_code(0);
    assert_eq!(podman.exec("a", &["cat", "/tmp/copied"]), "from outside\n");

    podman.run(&["stop", "-t", "10", "a"]).expect_code(0);
    assert_eq!(podman.inspect("a", ".State.ExitCode"), "9");
    assert_eq!(podman.run(&["logs", "a"]).out(), "started\nterm\n");
    podman.run(&["start", "a"]).expect_code(0);
    podman.run(&["kill", "-s", "KILL", "a"]).expect_code(0);
    podman.run(&["wait", "a"]).expect_code(0);
    assert_eq!(podman.inspect("a", ".State.ExitCode"), "137");
    podman.run(&["restart", "-t", "1", "a"]).expect_code(0);
    podman.exec("a", &["true"]);
    podman.run(&["rm", "-f", "-t", "0", "a"]).expect_code(0);
    assert_eq!(podman.run(&["ps", "-aq"]).expect_code(0).out(), "");
}

#[test]
fn a_pod_shares_its_namespaces() {
    let podman = engine!();
    let flags = ["--network=none", "--infra-image", IMAGE, "--infra-command=sleep 1000", "--share=net,ipc,uts,pid"];
    let create = [&["pod", "create", "--name=p", "--cgroup-parent", podman.cgroup_parent()], &flags[..]].concat();
    podman.run(&create).expect_code(0);
    podman.start("p1", &["--pod", "p"], &["sleep", "1001"]);
    let script =
        "hostname; ps | grep -c 'sleep 100[01]$'; for n in net ipc uts pid mnt; do readlink /proc/self/ns/$n; done";
    let second = podman.container(&["--pod", "p"], &["sh", "-c", script]).expect_code(0).out();
    let second = second.lines().collect::<Vec<_>>();
    assert_eq!(second[..2], ["p", "2"]);
    for (namespace, is_shared) in second[2..].iter().zip([true, true, true, true, false]) {
        let name = namespace.split(':').next().expect("it has a name");
        let first = podman.exec("p1", &["readlink", &format!("/proc/self/ns/{name}")]);
        assert_eq!(first.trim() == *namespace, is_shared, "{first} {namespace}");
    }
    podman.run(&["pod", "pause", "p"]).expect_code(0);
    assert_eq!(podman.inspect("p1", ".State.Status"), "paused");
    podman.run(&["pod", "unpause", "p"]).expect_code(0);
    podman.run(&["pod", "stop", "-t", "1", "p"]).expect_code(0);
    podman.run(&["pod", "rm", "-f", "p"]).expect_code(0);
}

#[test]
fn a_user_without_root_has_containers() {
    let podman = engine!(Podman::rootless(), ["newuidmap", "setpriv", "unshare"]);
    let script = "id -u; awk '{print $1, $2}' /proc/self/uid_map; grep '^Seccomp:' /proc/self/status | cut -f2";
    let output = podman.container(&[], &["sh", "-c", script]).expect_code(0);
    assert_eq!(output.out(), "0\n0 7001\n1 300000\n2\n");
    assert_eq!(podman.container(&["--user=1000"], &["id", "-u"]).expect_code(0).out(), "1000\n");
    assert_eq!(podman.container(&["--userns=keep-id"], &["id", "-u"]).expect_code(0).out(), "7001\n");
    podman.container(&[], &["sh", "-c", "exit 7"]).expect_code(7);
    podman.container(&[], &["nowhere"]).expect_code(127);
    let output = podman.container(&["--read-only", "--cap-drop=all"], &["touch", "/x"]).expect_code(1);
    assert!(output.err().contains("Read-only"), "{}", output.err());
    podman.start("a", &[], &["sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.1; done"]);
    assert_eq!(podman.run(&["exec", "-u", "5", "a", "sh", "-c", "id -u; exit 3"]).expect_code(3).out(), "5\n");
    podman.run(&["stop", "-t", "10", "a"]).expect_code(0);
    assert_eq!(podman.inspect("a", ".State.ExitCode"), "9");
    podman.run(&["rm", "a"]).expect_code(0);
}

#[test]
fn buildah_builds_an_image() {
    let podman = engine!(Podman::new(), ["buildah"]);
    let text = format!(
        "FROM {IMAGE}\nENV A=b\nCOPY group /copied\nRUN echo $A > /built && id -u > /who\nUSER 1000:1000\n\
         RUN id -u; touch /nope || echo refused\nRUN --mount=type=tmpfs,target=/tt df /tt\nUSER 0\nCMD [\"cat\", \"/built\", \"/who\"]\n"
    );
    let file = podman.file("Containerfile", &text);
    let build = |arguments: &[&str]| podman.buildah(arguments).output().expect("buildah is there");
    let output = build(&["bud", "--no-cache", "-f", &file, "-t", "localhost/built:1", &podman.at("root/etc")]);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    assert!(out.contains("1000\n") && out.contains("refused"), "{out}");
    assert_eq!(podman.container_of("localhost/built:1", &["--rm"], &[]).expect_code(0).out(), "b\n0\n");

    let file = podman.file("failing", &format!("FROM {IMAGE}\nRUN exit 9\n"));
    assert_eq!(build(&["bud", "-f", &file, &podman.at("root/etc")]).status.code(), Some(9));
    assert!(build(&["from", "--name", "w", IMAGE]).status.success());
    assert_eq!(build(&["run", "w", "echo", "hello"]).stdout, b"hello\n");
    assert_eq!(build(&["run", "w", "sh", "-c", "exit 5"]).status.code(), Some(5));
    assert!(build(&["rm", "w"]).status.success());
}

#[test]
fn a_policy_is_asked_for_by_annotation() {
    let podman = engine!();
    let mode = |mode: &str, script: &str| {
        let annotation = format!("--annotation=dev.apex.mode={mode}");
        podman.container(&[&annotation, "--workdir=/tmp"], &["sh", "-c", script])
    };
    let script = "touch /tmp/x && echo own; touch /root/x || echo refused; grep NoNewPrivs /proc/self/status | cut -f2";
    assert_eq!(mode("isolation", script).expect_code(0).out(), "own\nrefused\n1\n");
    let output = mode("nonsense", "true").expect_code(126);
    assert!(output.err().contains("`nonsense` is not isolation, development or hybrid"), "{}", output.err());
}

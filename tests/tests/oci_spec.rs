//! What a `config.json` asks for, read back inside a real container: namespaces, names, users, limits, capabilities, terminals.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use apex_tests::bundle;
use apex_tests::oci::{Bundle, Receiver, make_rootfs, status_field};
use serde_json::json;

/// What the program of a bundle writes.
#[track_caller]
fn told(bundle: &Bundle) -> String {
    let output = bundle.run().expect_code(0);
    bundle.expect_nothing_left();
    output.out()
}

fn namespace_of(who: &str, name: &str) -> String {
    fs::read_link(format!("/proc/{who}/ns/{name}")).expect("it lives").to_string_lossy().into_owned()
}

const KINDS: [(&str, &str); 7] = [
    ("pid", "pid"),
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("mount", "mnt"),
    ("cgroup", "cgroup"),
    ("time", "time"),
];

#[test]
fn namespaces_are_new_where_they_are_asked_for() {
    let mut bundle = bundle!().args(&["sleep", "300"]);
    for kind in ["cgroup", "time"] {
        bundle = bundle.namespace(kind, Some(json!({"type": kind})));
    }
    bundle.up();
    let pid = bundle.pid().to_string();
    for (kind, name) in KINDS {
        assert_ne!(namespace_of(&pid, name), namespace_of("self", name), "{kind}");
    }
    assert_eq!(namespace_of(&pid, "user"), namespace_of("self", "user"));
}

#[test]
fn without_a_namespace_the_hosts_is_shared() {
    for (kind, name) in KINDS.iter().filter(|(kind, _)| !["mount", "cgroup", "time"].contains(kind)) {
        let mut bundle = bundle!().args(&["sleep", "300"]).namespace(kind, None);
        if *kind == "uts" {
            bundle = bundle.without("/hostname");
        }
        bundle.up();
        assert_eq!(namespace_of(&bundle.pid().to_string(), name), namespace_of("self", name), "{kind}");
        bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
    }
}

/// A process of the test in new namespaces, ended on drop.
struct Holder(Child);

impl Holder {
    fn new(flags: &[&str]) -> Holder {
        let mut command = Command::new("unshare");
        command.args(flags).args(["--fork", "--kill-child", "sh", "-c", "echo up; exec sleep 300"]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("util-linux is there");
        let mut byte = [0];
        child.stdout.as_mut().expect("piped").read_exact(&mut byte).expect("it says that it is up");
        Holder(child)
    }

    /// The pid of the child in the namespaces.
    fn pid(&self) -> String {
        let path = format!("/proc/{0}/task/{0}/children", self.0.id());
        fs::read_to_string(path).expect("it lives").trim().to_owned()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn namespaces_are_joined_by_their_paths() {
    let bundle = bundle!().args(&["sleep", "300"]).without("/hostname");
    let holder = Holder::new(&["--pid", "--net", "--ipc", "--uts", "--cgroup", "--time"]);
    let pid = holder.pid();
    let kinds =
        [("pid", "pid"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("cgroup", "cgroup"), ("time", "time")];
    let mut bundle = bundle;
    for (kind, name) in kinds {
        bundle = bundle.namespace(kind, Some(json!({"type": kind, "path": format!("/proc/{pid}/ns/{name}")})));
    }
    bundle.up();
    let own = bundle.pid().to_string();
    for (kind, name) in kinds {
        assert_eq!(namespace_of(&own, name), namespace_of(&pid, name), "{kind}");
    }
    let inside = bundle.exec("readlink /proc/self/ns/net; readlink /proc/self/ns/uts").expect_code(0).out();
    assert_eq!(inside, format!("{}\n{}\n", namespace_of(&pid, "net"), namespace_of(&pid, "uts")));
    bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
    bundle.expect_nothing_left();
}

#[test]
fn a_path_that_is_no_such_namespace_is_refused() {
    let bundle = bundle!();
    let file = bundle.dir().file("plain", "");
    for path in ["/nowhere", file.as_str(), "/proc/self/ns/net"] {
        let bundle = bundle!().namespace("ipc", Some(json!({"type": "ipc", "path": path})));
        let output = bundle.run().expect_code(1);
        assert!(output.err().contains("ipc"), "{}", output.err());
        bundle.expect_nothing_left();
    }
}

#[test]
fn clocks_are_offset() {
    let offsets = json!({"monotonic": {"secs": 1_000_000, "nanosecs": 5}, "boottime": {"secs": 2_000_000}});
    let bundle = bundle!().namespace("time", Some(json!({"type": "time"}))).set("/linux/timeOffsets", offsets);
    let text = told(&bundle.args(&["inside", "clocks"]));
    let numbers: Vec<i64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let own = fs::read_to_string("/proc/uptime").expect("/proc is mounted");
    let uptime: f64 = own.split(' ').next().and_then(|word| word.parse().ok()).expect("a number");
    assert!((numbers[0] - uptime as i64 - 1_000_000).abs() < 60, "{text}");
    assert!((numbers[1] - uptime as i64 - 2_000_000).abs() < 60, "{text}");
}

/// A user namespace whose root is nobody outside.
fn in_user_namespace(bundle: Bundle) -> Bundle {
    let map = json!([{"containerID": 0, "hostID": 200_000, "size": 65_536}]);
    let top = bundle.rootfs();
    // The root must be searchable for who is nobody here, and its files its own.
    chown_tree(&top, 200_000);
    bundle
        .namespace("user", Some(json!({"type": "user"})))
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map)
}

fn chown_tree(path: &Path, id: u32) {
    std::os::unix::fs::lchown(path, Some(id), Some(id)).expect("root may");
    if path.is_dir() && !path.is_symlink() {
        fs::read_dir(path).expect("a directory").flatten().for_each(|entry| chown_tree(&entry.path(), id));
    }
}

#[test]
fn a_user_namespace_maps_ids() {
    let bundle = bundle!().sh("id -u; cat /proc/self/uid_map; touch /tmp/mine; stat -c %u /tmp/mine");
    let bundle = in_user_namespace(bundle);
    let text = told(&bundle);
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "200000", "65536", "0"]);
    assert_eq!(fs::metadata(bundle.rootfs().join("tmp/mine")).expect("it is there").uid(), 200_000);
    let bundle = bundle.args(&["sleep", "300"]);
    bundle.up();
    assert_eq!(fs::metadata(format!("/proc/{}", bundle.pid())).expect("it lives").uid(), 200_000);
    let output = bundle.exec("id -u; id -g; echo x > /proc/sys/kernel/hostname").out();
    assert!(output.starts_with("0\n0\n"), "{output}");
}

#[test]
fn several_ranges_of_ids_are_mapped() {
    let map =
        json!([{"containerID": 0, "hostID": 200_000, "size": 10}, {"containerID": 1000, "hostID": 300_000, "size": 5}]);
    let bundle = in_user_namespace(bundle!())
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map)
        .set("/process/user", json!({"uid": 1003, "gid": 1004}))
        .sh("id -u; id -g; cat /proc/self/gid_map");
    let text = told(&bundle);
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words, ["1003", "1004", "0", "200000", "10", "1000", "300000", "5"]);
}

#[test]
fn users_groups_and_the_umask_are_set() {
    let user = json!({"uid": 1000, "gid": 1001, "umask": 0o077, "additionalGids": [5, 70_000]});
    let bundle = bundle!().set("/process/user", user);
    let bundle = bundle.sh("grep -E '^(Uid|Gid|Groups|Umask):' /proc/self/status");
    let text = told(&bundle).replace(['\t', ' '], " ");
    for line in ["Uid: 1000 1000 1000 1000", "Gid: 1001 1001 1001 1001", "Groups: 5 70000", "Umask: 0077"] {
        assert!(text.contains(line), "{line:?} is not in {text}");
    }
}

#[test]
fn all_five_sets_of_capabilities_are_as_asked() {
    let sets = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_NET_BIND_SERVICE"],
        "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
        "effective": ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"],
        "inheritable": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
        "ambient": ["CAP_NET_BIND_SERVICE"],
    });
    let bundle = bundle!().set("/process/capabilities", sets).set("/process/user", json!({"uid": 1000, "gid": 1000}));
    let text = told(&bundle.sh("grep ^Cap /proc/self/status"));
    // A program without file capabilities keeps of permitted and effective what is ambient (capabilities(7)).
    for (name, mask) in [("CapInh", 0x420), ("CapPrm", 0x400), ("CapEff", 0x400), ("CapBnd", 0x4a1), ("CapAmb", 0x400)]
    {
        assert!(text.contains(&format!("{name}:\t{mask:016x}")), "{name} is not {mask:x}: {text}");
    }
}

#[test]
fn root_has_what_is_permitted_and_no_more() {
    let sets = json!({"bounding": ["CAP_CHOWN", "CAP_KILL"], "permitted": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_CHOWN", "CAP_KILL"]});
    let text = told(&bundle!().set("/process/capabilities", sets).sh("grep ^Cap /proc/self/status"));
    for (name, mask) in [("CapInh", 0), ("CapPrm", 0x21), ("CapEff", 0x21), ("CapBnd", 0x21), ("CapAmb", 0)] {
        assert!(text.contains(&format!("{name}:\t{mask:016x}")), "{name} is not {mask:x}: {text}");
    }
}

#[test]
fn without_capabilities_there_are_none() {
    let text = told(&bundle!().without("/process/capabilities").sh("grep ^Cap /proc/self/status"));
    assert_eq!(text.lines().count(), 5);
    assert!(text.lines().all(|line| line.ends_with(&"0".repeat(16))), "{text}");
}

#[test]
fn no_new_privileges_is_set_or_not() {
    for (wanted, line) in [(true, "NoNewPrivs:\t1"), (false, "NoNewPrivs:\t0")] {
        let bundle = bundle!().set("/process/noNewPrivileges", json!(wanted)).sh("grep NoNew /proc/self/status");
        assert_eq!(told(&bundle).trim(), line);
    }
}

#[test]
fn limits_of_the_process_are_set() {
    let limits = json!([
        {"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_STACK", "soft": 1_048_576, "hard": 2_097_152},
        {"type": "RLIMIT_CPU", "soft": 50, "hard": 60},
    ]);
    let text = told(&bundle!().set("/process/rlimits", limits).args(&["cat", "/proc/self/limits"]));
    let row = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}: {text}"));
        line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(row("Max open files"), ["77", "99"]);
    assert_eq!(row("Max core file size"), ["0", "0"]);
    assert_eq!(row("Max stack size"), ["1048576", "2097152"]);
    assert_eq!(row("Max cpu time"), ["50", "60"]);
}

#[test]
fn the_score_of_memory_is_set() {
    let bundle = bundle!().set("/process/oomScoreAdj", json!(345)).args(&["cat", "/proc/self/oom_score_adj"]);
    assert_eq!(told(&bundle), "345\n");
}

#[test]
fn names_and_parameters_of_the_kernel_are_set() {
    let bundle = bundle!()
        .set("/hostname", json!("a-host"))
        .set("/domainname", json!("a.domain"))
        .set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1", "kernel.shmmni": "123", "fs.mqueue.msg_max": "20"}));
    let bundle = bundle.sh("hostname; cat /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni /proc/sys/fs/mqueue/msg_max");
    assert_eq!(told(&bundle), "a-host\na.domain\n1\n123\n20\n");
    let host = fs::read_to_string("/proc/sys/kernel/shmmni").expect("/proc is mounted");
    assert_ne!(host.trim(), "123");
}

#[test]
fn parameters_of_the_host_are_refused() {
    for name in
        ["kernel.panic", "vm.overcommit_memory", "kernel.core_pattern", "../../etc/passwd", "net/../kernel/panic"]
    {
        let bundle = bundle!().set(&format!("/linux/sysctl/{}", name.replace('/', ".")), json!("1"));
        let mut bundle = bundle;
        bundle.config["linux"]["sysctl"] = json!({name: "1"});
        let output = bundle.run().expect_code(1);
        assert!(output.err().contains("sysctl"), "{}", output.err());
        bundle.expect_nothing_left();
    }
    let bundle = bundle!().namespace("network", None).set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}));
    bundle.run().expect_code(1);
}

#[test]
fn scheduling_is_set() {
    let bundle = bundle!()
        .mighty()
        .set("/process/scheduler", json!({"policy": "SCHED_BATCH", "nice": 7}))
        .set("/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 6}))
        .set("/linux/personality", json!({"domain": "LINUX32"}))
        .args(&["inside", "scheduling"]);
    // SCHED_BATCH is 3; a priority of input and output is its class (2) shifted by 13 and its level; PER_LINUX32 is 8.
    assert_eq!(told(&bundle), format!("policy 3 priority 0 nice 7 io {} personality 8\n", (2 << 13) | 6));
}

#[test]
fn a_real_time_policy_is_set() {
    let bundle = bundle!().mighty().set("/process/scheduler", json!({"policy": "SCHED_FIFO", "priority": 3}));
    let bundle = bundle.args(&["inside", "scheduling"]);
    let output = bundle.run();
    // A cgroup of version 1 without real-time runtime refuses it; then that is said.
    match output.code {
        0 => assert!(output.out().starts_with("policy 1 priority 3 "), "{}", output.out()),
        _ => assert!(output.err().contains("schedul"), "{}", output.err()),
    }
}

#[test]
fn the_working_directory_is_made_or_entered() {
    for cwd in ["/tmp", "/made/by/the/runtime"] {
        let bundle = bundle!().set("/process/cwd", json!(cwd)).args(&["pwd"]);
        assert_eq!(told(&bundle).trim(), cwd);
    }
    let bundle = bundle!().set("/process/cwd", json!("/etc/passwd")).args(&["pwd"]);
    let output = bundle.run().expect_code(1);
    assert!(output.err().contains("/etc/passwd"), "{}", output.err());
}

#[test]
fn the_environment_is_the_bundles() {
    let bundle = bundle!().set("/process/env", json!(["PATH=/bin", "A=b c", "B=", "A=d"])).args(&["/bin/env"]);
    let text = told(&bundle);
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert!(lines.contains(&"A=d") && lines.contains(&"B=") && lines.contains(&"PATH=/bin"), "{text}");
    // Nothing of the caller's; HOME is what runc adds.
    assert!(
        lines.iter().all(|line| ["A=", "B=", "PATH=", "HOME="].iter().any(|name| line.starts_with(name))),
        "{text}"
    );
    let bundle = bundle.without("/process/env").args(&["/bin/env"]);
    assert!(told(&bundle).lines().all(|line| line.starts_with("HOME=") || line.starts_with("PATH=")));
}

#[test]
fn a_terminal_comes_through_the_socket() {
    let bundle = bundle!()
        .set("/process/terminal", json!(true))
        .set("/process/consoleSize", json!({"height": 33, "width": 101}))
        .sh("stty size; tty; test -t 0 && test -t 1 && test -t 2 && echo terminals; read line; echo got $line");
    bundle.write();
    let path = bundle.dir().at("console");
    let receiver = Receiver::new(&path);
    let words = ["create", "-b", &bundle.path(), "--console-socket", &path, &bundle.id];
    let (child, number) = bundle.spawn(bundle.command(&words));
    let (master, _) = receiver.take();
    bundle.outcome(child, number).expect_code(0);
    bundle.must("start");
    let mut master = fs::File::from(master);
    master.write_all(b"typed\n").expect("a terminal takes what is typed");
    let mut text = String::new();
    // The end is an error of a terminal without a process.
    let _ = master.read_to_string(&mut text);
    for words in ["33 101", "/dev/pts/0", "terminals", "got typed"] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
    bundle.until("stopped");
    bundle.must("delete");
}

#[test]
fn exec_has_a_terminal_of_its_own() {
    let bundle = bundle!().args(&["sleep", "300"]);
    bundle.up();
    let path = bundle.dir().at("console");
    let receiver = Receiver::new(&path);
    let words =
        ["exec", "-t", "-d", "--console-socket", &path, &bundle.id, "sh", "-c", "tty; test -t 0 && echo yes; id -u"];
    let (child, number) = bundle.spawn(bundle.command(&words));
    let (master, _) = receiver.take();
    bundle.outcome(child, number).expect_code(0);
    let mut text = String::new();
    let _ = fs::File::from(master).read_to_string(&mut text);
    assert!(text.contains("/dev/pts/") && text.contains("yes") && text.contains('0'), "{text}");
}

#[test]
fn a_terminal_without_a_place_to_go_is_refused() {
    let bundle = bundle!().set("/process/terminal", json!(true));
    let output = bundle.create().expect_code(1);
    assert!(output.err().contains("console-socket"), "{}", output.err());
    let bundle = bundle!();
    bundle.write();
    let path = bundle.dir().at("console");
    let _receiver = Receiver::new(&path);
    let output = bundle.oci(&["create", "-b", &bundle.path(), "--console-socket", &path, &bundle.id]).expect_code(1);
    assert!(output.err().contains("process.terminal"), "{}", output.err());
    bundle.expect_nothing_left();
}

#[test]
fn exec_takes_a_process_from_a_file() {
    let bundle = bundle!().args(&["sleep", "300"]);
    bundle.up();
    let process = json!({
        "args": ["sh", "-c", "id -u; id -G; pwd; echo $X; grep -E 'CapEff|NoNew' /proc/self/status; cat /proc/self/oom_score_adj"],
        "cwd": "/tmp", "env": ["PATH=/bin", "X=y"], "user": {"uid": 0, "gid": 3, "additionalGids": [9]},
        "capabilities": {"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"]},
        "noNewPrivileges": true, "oomScoreAdj": 222,
    });
    let file = bundle.dir().file("process.json", &process.to_string());
    let text = bundle.oci(&["exec", "--process", &file, &bundle.id]).expect_code(0).out();
    assert_eq!(text, "0\n3 9\n/tmp\ny\nCapEff:\t0000000000000020\nNoNewPrivs:\t1\n222\n");
    let words = ["exec", "-u", "1000:1000", "-g", "44", "-e", "Z=1", "--cwd", "/home", &bundle.id, "sh", "-c"];
    let output = bundle.oci(&[&words[..], &["id -u; id -G; pwd; echo $Z"]].concat()).expect_code(0);
    assert_eq!(output.out(), "1000\n1000 44\n/home\n1\n");
}

#[test]
fn a_second_container_joins_the_first_ones_namespaces() {
    let first = bundle!().args(&["sleep", "300"]);
    first.up();
    let pid = first.pid();
    let mut second = bundle!().args(&["sleep", "300"]).without("/hostname");
    for (kind, name) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid")] {
        second = second.namespace(kind, Some(json!({"type": kind, "path": format!("/proc/{pid}/ns/{name}")})));
    }
    second.up();
    let seen = second.exec("ps | grep -c 'sleep 300'; hostname").expect_code(0).out();
    assert!(seen.ends_with("apex\n"), "{seen}");
    // The end of the first is that of the pid namespace, and so of the second.
    first.oci(&["delete", "--force", &first.id]).expect_code(0);
    second.until("stopped");
    second.must("delete");
    second.expect_nothing_left();
}

#[test]
fn a_root_elsewhere_is_used() {
    let bundle = bundle!().args(&["cat", "/marker"]);
    let elsewhere = bundle.dir().path().join("elsewhere");
    make_rootfs(&elsewhere);
    fs::write(elsewhere.join("marker"), "here\n").expect("we own it");
    fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o755)).expect("we own it");
    let bundle = bundle.set("/root/path", json!(elsewhere));
    assert_eq!(told(&bundle), "here\n");
}

#[test]
fn the_first_process_is_the_programs_own() {
    let bundle = bundle!().args(&["sleep", "300"]);
    bundle.up();
    let pid = bundle.pid().to_string();
    assert_eq!(status_field(&pid, "Name"), "sleep");
    assert_eq!(status_field(&pid, "NSpid").split_whitespace().last(), Some("1"));
    assert_eq!(status_field(&pid, "SigBlk"), "0".repeat(16));
    // What the caller ignores stays ignored, but not what the runtime itself does: SIGPIPE.
    let ignored = |pid: &str| u64::from_str_radix(&status_field(pid, "SigIgn"), 16).expect("a mask");
    let pipe = 1 << (nix::libc::SIGPIPE - 1);
    assert_eq!(ignored(&pid), ignored("self") & !pipe);
}

//! Refusals and how they are explained, at least one of each kind.

use std::collections::BTreeMap;
use std::path::PathBuf;

use apex_core::explain::{Group, explain};
use apex_core::layer::Layer;
use apex_core::plan::*;
use apex_core::policy::*;
use apex_core::refusal::{Access, Attempt, Explanation, Refusal};

fn origin(line: u32) -> Origin {
    Origin { source: "job.toml".to_owned(), line }
}

fn rule(path: &str, line: u32) -> Grant {
    Grant { path: path.into(), dest: path.into(), reason: String::new(), optional: false, origin: origin(line) }
}

fn policy() -> Policy {
    Policy {
        mode: Mode::Isolation,
        level: apex_core::policy::IsolationLevel::Full,
        sources: vec![],
        config: vec![],
        filesystem: Filesystem {
            read: vec![],
            write: vec![],
            names: vec![],
            exec: vec![],
            hide: vec![rule("/srv/app/hidden", 8)],
            deny: vec![rule("/srv/app/secret", 9)],
            tmpfs: vec![],
            proc: ProcView::Pid,
        },
        network: Network::None,
        syscalls: Syscalls {
            default: SyscallDefault::Deny,
            allow: BTreeMap::from([("process".to_owned(), origin(20))]),
            deny: BTreeMap::from([("debug".to_owned(), origin(21))]),
            compat: false,
        },
        capabilities: vec![],
        resources: Resources {
            memory_bytes: Some(512 << 20),
            swap_bytes: None,
            cpu_percent: None,
            tasks: Some(64),
            open_files: None,
            file_size_bytes: None,
            tmp_size_bytes: 64 << 20,
            wall_time_ms: Some(90_000),
        },
        environment: Environment { pass: vec![], set: BTreeMap::new() },
        identity: Identity { uid: None, gid: None, hostname: "apex".to_owned() },
        tty: Tty::No,
        mailboxes: vec![],
        layers: BTreeMap::new(),
    }
}

fn bind(source: &str, dest: &str, access: BindAccess, exec: bool, line: u32) -> Mount {
    let (source, dest) = (source.into(), dest.into());
    Mount::Bind {
        source,
        dest,
        access,
        exec,
        kind: Kind::Dir,
        idmap: false,
        reason: String::new(),
        origin: origin(line),
    }
}

fn plan() -> Plan {
    Plan {
        version: 1,
        mode: Mode::Isolation,
        level: apex_core::policy::IsolationLevel::Full,
        given_up: Vec::new(),
        withheld: Vec::new(),
        sources: vec![],
        layers: BTreeMap::new(),
        skipped: BTreeMap::new(),
        cgroup: Some(CgroupPlan {
            memory_bytes: Some(512 << 20),
            swap_bytes: None,
            cpu_percent: None,
            tasks: Some(64),
        }),
        identity: IdentityPlan {
            uid: 1000,
            gid: 1000,
            caller_uid: 1000,
            caller_gid: 1000,
            own_host_ids: false,
            hostname: "apex".to_owned(),
        },
        network: Network::None,
        mounts: vec![
            bind("/usr", "/usr", BindAccess::Read, true, 1),
            bind("/srv/app", "/srv/app", BindAccess::Read, true, 2),
            bind("/home/jo/out", "/out", BindAccess::Write, false, 3),
            bind("/home/jo/in", "/in", BindAccess::Read, true, 4),
            Mount::Tmpfs { dest: "/tmp".into(), size_bytes: 64 << 20, exec: false, origin: origin(5) },
            Mount::Proc { view: ProcView::Pid },
            Mount::Dev { shm_size_bytes: 1 << 20 },
            Mount::File { dest: "/etc/passwd".into(), content: String::new() },
        ],
        rlimits: vec![Rlimit { name: "nofile", value: 1024 }, Rlimit { name: "fsize", value: 1 << 30 }],
        capabilities: vec![],
        landlock: None,
        seccomp: None,
        mailboxes: Vec::new(),
        record: true,
        watch: apex_core::watch::Level::Off,
        overlay: None,
        command: CommandPlan { candidates: vec![], argv: vec![], env: vec![], workdir: vec![PathBuf::from("/")] },
        wall_time_ms: Some(90_000),
        tty: false,
        fds: vec![],
    }
}

fn group_of(name: &str) -> Option<Group> {
    use Mode::{Development, Hybrid, Isolation};
    let (group, reason, modes) = match name {
        "clone" => ("process", "starts processes", vec![Isolation]),
        "ptrace" => ("debug", "looks into processes", vec![Development]),
        "keyctl" => ("keyring", "keys outlive the sandbox", vec![Isolation, Hybrid]),
        "bpf" => ("bpf", "programs in the kernel", vec![Development]),
        "reboot" => ("machine", "stops the host", vec![]),
        _ => return None,
    };
    Some(Group { name: group.to_owned(), reason: reason.to_owned(), modes })
}

fn explained(attempt: Attempt, outcome: &str, plan: &Plan) -> Explanation {
    let refusal = Refusal { attempt, comm: "x".to_owned(), pid: 2, count: 1, outcome: outcome.to_owned() };
    explain(&refusal, plan, &policy(), &group_of)
}

/// Expected: layer, because, rule, change and caution; `-` stands for what is absent.
#[track_caller]
fn check_outcome(attempt: Attempt, outcome: &str, expected: [&str; 5]) {
    let got = explained(attempt, outcome, &plan());
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let layer = got.layer.map(|layer| layer.name().to_owned());
    let rule = got.rule.map(|rule| rule.to_string());
    assert_eq!([or_dash(layer), got.because, or_dash(rule), or_dash(got.change), or_dash(got.caution)], expected);
}

#[track_caller]
fn check(attempt: Attempt, expected: [&str; 5]) {
    check_outcome(attempt, "EACCES", expected);
}

fn path(access: Access, path: &str, exists_inside: bool, exists_outside: bool) -> Attempt {
    Attempt::Path { path: path.into(), access, exists_inside, exists_outside }
}

fn syscall(name: &str, abi: &str) -> Attempt {
    Attempt::Syscall { name: name.to_owned(), abi: abi.to_owned(), args: [0; 6] }
}

fn address(address: &str) -> Attempt {
    Attempt::Address { call: "connect".to_owned(), address: address.to_owned() }
}

fn limit(resource: &str) -> Attempt {
    Attempt::Limit { resource: resource.to_owned(), limit: "L".to_owned() }
}

const OUTSIDE: &str = "it exists outside, no rule grants it";

#[test]
fn a_path_that_is_not_there() {
    check(path(Access::Read, "/opt/data/x", false, true), ["mountns", OUTSIDE, "-", "--ro /opt/data/x", "-"]);
    check(path(Access::Write, "/opt/data/x", false, true), ["mountns", OUTSIDE, "-", "--rw /opt/data/x", "-"]);
    check(
        path(Access::Exec, "/usr/bin/no", false, false),
        ["-", "it does not exist on the host either", "-", "-", "-"],
    );
    let because = "it exists outside, but /tmp is a private directory that starts empty";
    check(path(Access::Read, "/tmp/a.csv", false, true), ["mountns", because, "job.toml:5", "--ro /tmp/a.csv", "-"]);
    check(
        path(Access::Read, "/opt/v/site-packages/yaml/a.py", false, true),
        [
            "mountns",
            OUTSIDE,
            "-",
            "--ro /opt/v/site-packages/yaml/a.py",
            "when more of the package is missing, grant /opt/v/site-packages/yaml as a whole",
        ],
    );
}

#[test]
fn a_denied_or_hidden_path() {
    check(
        path(Access::Read, "/srv/app/secret/key", true, true),
        [
            "mountns",
            "a rule denies /srv/app/secret",
            "job.toml:9",
            "-",
            "a deny is deliberate and wins over every grant; if it is wrong, remove the rule at job.toml:9",
        ],
    );
    check(
        path(Access::Read, "/srv/app/hidden/a", false, true),
        [
            "mountns",
            "a rule shows /srv/app/hidden as empty",
            "job.toml:8",
            "-",
            "hiding is deliberate; if it is wrong, remove the rule at job.toml:8",
        ],
    );
}

#[test]
fn a_write_where_reading_is_granted() {
    let because = "it is granted for reading only";
    let host = "what is written there reaches the host";
    check(
        path(Access::Write, "/srv/app/log", true, true),
        ["mountns", because, "job.toml:2", "--rw /srv/app/log", host],
    );
    let change = "--rw '/home/jo/in/new file':'/in/new file'";
    check(path(Access::Write, "/in/new file", true, false), ["mountns", because, "job.toml:4", change, host]);
    let caution = "the host's own programs live there: let the program write elsewhere, or into a copy";
    check(path(Access::Write, "/usr/lib/x", true, true), ["mountns", because, "job.toml:1", "-", caution]);
    let because = "it is a small read-only file that Apex made";
    check(path(Access::Write, "/etc/passwd", true, true), ["mountns", because, "-", "-", "-"]);
}

/// `--rw` needs something on the host to show: for a file that does not exist yet, that is its directory.
#[test]
fn a_new_file_needs_its_directory() {
    check(
        path(Access::Write, "/srv/app/cache/new", false, false),
        [
            "mountns",
            "it is granted for reading only",
            "job.toml:2",
            "--rw /srv/app/cache",
            "what is written there reaches the host",
        ],
    );
}

#[test]
fn a_new_file_never_opens_a_home() {
    let mut plan = plan();
    plan.mounts.push(bind("/home/jo", "/home/jo", BindAccess::Read, true, 6));
    let got = explained(path(Access::Write, "/home/jo/new", false, false), "EROFS", &plan);
    assert_eq!(got.change, None);
}

#[test]
fn a_write_where_nothing_is_granted() {
    let because = "no rule grants the place; the root directory itself is read-only";
    let gone = "what is written there is gone afterwards; --rw keeps it on the host";
    check(path(Access::Write, "/data/cache/x", false, false), ["mountns", because, "-", "--tmpfs /data/cache", gone]);
    let caution = "let the program write to /tmp or to a directory granted with --rw";
    check(path(Access::Write, "/x", false, false), ["mountns", because, "-", "-", caution]);
    check_outcome(
        path(Access::Write, "/tmp/big", true, false),
        "ENOSPC",
        [
            "mountns",
            "the private directory /tmp is full (64M)",
            "job.toml:5",
            "--tmpfs /tmp:128M",
            "it counts as memory: --memory may have to follow",
        ],
    );
}

#[test]
fn an_execution() {
    check(
        path(Access::Exec, "/out/tool", true, false),
        [
            "mountns",
            "it is granted without execution",
            "job.toml:3",
            "--ro /home/jo/out/tool:/out/tool",
            "the file becomes executable and read-only inside",
        ],
    );
    check(
        path(Access::Exec, "/tmp/a.out", true, false),
        [
            "mountns",
            "nothing is executed in the private directory /tmp",
            "job.toml:5",
            "--policy FILE, with in FILE:\n[filesystem]\nexec = [\"/tmp\"]",
            "whatever the program writes or downloads there could then be run",
        ],
    );
}

#[test]
fn permissions_of_the_host_are_not_ours() {
    let because = "the rules grant reading: its own owner and mode on the host refuse it";
    check(path(Access::Read, "/srv/app/private", true, true), ["-", because, "job.toml:2", "-", "-"]);
}

#[test]
fn landlock_is_named_when_it_refused() {
    let landlock = LandlockPlan { abi: 4, rules: vec![], tcp_refused: true, scoped: true };
    let plan = Plan { landlock: Some(landlock), ..plan() };
    let got = explained(path(Access::Read, "/srv/app/a", true, true), "EACCES", &plan);
    assert_eq!(got.layer, Some(Layer::Landlock));
}

#[test]
fn nothing_is_offered_for_a_sensitive_path() {
    let copy =
        |why: &str| format!("no change is offered, since {why}; give the program a copy of the part that it needs");
    let ssh = path(Access::Read, "/home/jo/.ssh/id_rsa", false, true);
    check(ssh, ["mountns", OUTSIDE, "-", "-", &copy("it holds private keys")]);
    let because = "the socket is not inside: no rule grants it";
    let why = "no change is offered, since whoever talks to this socket commands the host";
    check(address("unix:/var/run/docker.sock"), ["mountns", because, "-", "-", why]);
    let shadow = path(Access::Read, "/srv/app/../../etc/shadow", false, true);
    check(shadow, ["mountns", OUTSIDE, "-", "-", &copy("it holds the password hashes of the host")]);
    let because = "/proc shows the sandbox's own processes only";
    let caution = "policies can show system files of /proc with `proc = \"masked\"` in [filesystem]";
    check(path(Access::Write, "/proc/sys/kernel/core_pattern", false, true), ["mountns", because, "-", "-", caution]);
}

/// A grant of a directory hands out what lies beneath it.
#[test]
fn a_directory_that_holds_secrets_is_sensitive_too() {
    for directory in ["/", "/etc", "/home/jo", "/home", "/run", "/sys", "/dev", "/var/run"] {
        let got = explained(path(Access::Read, directory, false, true), "ENOENT", &plan());
        assert_eq!(got.change, None, "{directory}");
    }
}

#[test]
fn a_hostile_name_cannot_become_another_command() {
    let change = "--ro '/opt/x; rm -rf '\\''$HOME'\\'''";
    check(path(Access::Read, "/opt/x; rm -rf '$HOME'", false, true), ["mountns", OUTSIDE, "-", change, "-"]);
    let caution = "its name is no plain text: look at it before granting it";
    check(path(Access::Read, "/opt/x\n--rw /", false, true), ["mountns", OUTSIDE, "-", "-", caution]);
    let change = "--policy FILE, with in FILE:\n[filesystem]\nread = [{ path = \"/opt/a:/b\", dest = \"/opt/a:/b\" }]";
    check(path(Access::Read, "/opt/a:/b", false, true), ["mountns", OUTSIDE, "-", change, "-"]);
}

#[test]
fn a_system_call() {
    check(
        syscall("keyctl", "x86_64"),
        [
            "seccomp",
            "group `keyring` (keys outlive the sandbox) is not granted",
            "-",
            "--policy FILE, with in FILE:\n[syscalls]\nallow = [\"keyring\"]",
            "it opens every call of the group",
        ],
    );
    check(
        syscall("bpf", "x86_64"),
        [
            "seccomp",
            "group `bpf` (programs in the kernel) is not granted, and the ceiling of mode isolation forbids it",
            "-",
            "-",
            "--mode development could grant it, and is wider in everything else too",
        ],
    );
    check(
        syscall("reboot", "x86_64"),
        [
            "seccomp",
            "group `machine` (stops the host) is not granted, and the ceiling of mode isolation forbids it",
            "-",
            "-",
            "no mode can grant it",
        ],
    );
    check(
        syscall("ptrace", "x86_64"),
        [
            "seccomp",
            "group `debug` (looks into processes) is denied",
            "job.toml:21",
            "-",
            "a deny is deliberate and wins over every grant; if it is wrong, remove the rule at job.toml:21",
        ],
    );
    check(
        syscall("clone", "x86_64"),
        [
            "seccomp",
            "group `process` is granted, but not `clone` with these arguments",
            "job.toml:20",
            "-",
            "what the arguments ask for leads out of the sandbox; no policy grants it",
        ],
    );
    check(
        syscall("999", "x86_64"),
        [
            "seccomp",
            "no group holds `999`: it is answered as a kernel answers that does not have it",
            "-",
            "-",
            "programs fall back on an older call; when this one does not, no policy can grant it",
        ],
    );
}

#[test]
fn a_system_call_of_another_abi() {
    check(
        syscall("keyctl", "i386"),
        [
            "seccomp",
            "32-bit programs are off: every i386 call is refused",
            "-",
            "-",
            "the ceiling of mode isolation forbids them; --mode hybrid could grant them, and is wider in everything else too",
        ],
    );
    let because = "the x32 ABI is refused as a whole, in every mode";
    check(syscall("getpid", "x32"), ["seccomp", because, "-", "-", "build the program for x86-64"]);
}

#[test]
fn an_address() {
    let because = "the sandbox has an empty network of its own (network `none`)";
    let caution = "mode hybrid is wider in other things too; it opens everything that the host can reach, services on its loopback included";
    check(address("inet:192.0.2.1:80"), ["netns", because, "-", "--mode hybrid --net host", caution]);
    let caution = "this is the metadata service of cloud hosts, which hands out the host's credentials";
    check(address("inet:169.254.169.254:80"), ["netns", because, "-", "-", caution]);
    let because = "abstract sockets of the host stay outside";
    let caution = "a socket with a path can be shared instead, with --rw PATH";
    check(address("abstract:@x"), ["netns", because, "-", "-", caution]);
    let because = "a rule grants its place: nobody listens there, or its own permissions refuse";
    check(address("unix:/srv/app/db.sock"), ["-", because, "job.toml:2", "-", "-"]);
}

#[test]
fn a_limit() {
    let because = |what: &str| format!("the limit of {what} (L) was reached");
    let caution = "private directories in memory count too";
    check(limit("memory"), ["cgroup", &because("memory"), "-", "--memory 1G", caution]);
    let caution = "a program that forks without end looks the same: see first what it starts";
    check(limit("tasks"), ["cgroup", &because("processes and threads"), "-", "--tasks 128", caution]);
    check(limit("wall-time"), ["-", &because("life time"), "-", "--time 3m", "-"]);
    let caution = "it counts as memory: --memory may have to follow";
    check(limit("tmpfs"), ["mountns", &because("a private directory in memory"), "-", "--tmp-size 128M", caution]);
    check(limit("open-files"), ["rlimits", &because("open descriptors of one process"), "-", "--nofile 2048", "-"]);
    let change = "--policy FILE, with in FILE:\n[resources]\nfile_size = \"2G\"";
    check(limit("file-size"), ["rlimits", &because("the size of one file"), "-", change, "-"]);
}

#[test]
fn what_was_let_through_is_said() {
    let because = "it does not exist on the host either (this mode let it through and recorded it)";
    check_outcome(path(Access::Read, "/nope", false, false), "reported", ["-", because, "-", "-", "-"]);
}

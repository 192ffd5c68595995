use super::*;
use crate::plan::{CommandPlan, IdentityPlan, Kind, LandlockPlan};
use crate::policy::{Mode, Network, Origin};
use crate::seccomp::Abi;

fn bind(dest: &str, access: BindAccess, exec: bool) -> Mount {
    Mount::Bind {
        source: dest.into(),
        dest: dest.into(),
        access,
        exec,
        kind: Kind::Dir,
        idmap: false,
        reason: String::new(),
        origin: Origin::flag("--ro"),
    }
}

fn deny(dest: &str, kind: Option<Kind>) -> Mount {
    Mount::Deny { dest: dest.into(), source: dest.into(), kind, pins: Vec::new(), origin: Origin::flag("--deny") }
}

fn plan() -> Plan {
    let mounts = vec![
        Mount::Dir { dest: "/".into() },
        bind("/usr", BindAccess::Read, true),
        bind("/job", BindAccess::Write, false),
        deny("/job/keys", Some(Kind::Dir)),
        deny("/job/later", None),
        Mount::Hide { dest: "/job/hidden".into(), kind: Kind::Dir, origin: Origin::flag("hide") },
        Mount::Tmpfs { dest: "/tmp".into(), size_bytes: 1 << 20, exec: false, origin: Origin::flag("--tmpfs") },
    ];
    let rule =
        |path: &str, write, exec| LandlockRule { path: path.into(), list: true, read: true, write, exec, ioctl: false };
    Plan {
        version: 1,
        mode: Mode::Isolation,
        level: crate::policy::IsolationLevel::Full,
        given_up: Vec::new(),
        withheld: Vec::new(),
        sources: Vec::new(),
        layers: Default::default(),
        skipped: Default::default(),
        cgroup: None,
        identity: IdentityPlan {
            uid: 1,
            gid: 1,
            caller_uid: 1,
            caller_gid: 1,
            own_host_ids: false,
            hostname: String::new(),
        },
        network: Network::None,
        mounts,
        rlimits: Vec::new(),
        capabilities: Vec::new(),
        landlock: Some(LandlockPlan {
            abi: 6,
            rules: vec![
                rule("/usr/bin", false, true),
                rule("/usr", false, false),
                rule("/job", true, false),
                rule("/tmp", true, false),
            ],
            tcp_refused: true,
            scoped: true,
        }),
        seccomp: None,
        mailboxes: Vec::new(),
        record: true,
        watch: crate::watch::Level::Off,
        command: CommandPlan { candidates: Vec::new(), argv: Vec::new(), env: Vec::new(), workdir: Vec::new() },
        overlay: None,
        wall_time_ms: None,
        tty: false,
        fds: Vec::new(),
    }
}

const FILE: Found = Found::Present { is_dir: false };
const DIR: Found = Found::Present { is_dir: true };
const ABSENT: Found = Found::Absent { outside: false };
const OUTSIDE: Found = Found::Absent { outside: true };

#[track_caller]
fn check(path: &str, access: Access, makes: Makes, found: &Found, expected: Option<Obstacle>) {
    assert_eq!(
        obstacle(&plan(), Path::new(path), access, makes, found),
        expected,
        "{path} {access:?} {makes:?} {found:?}"
    );
}

#[test]
fn what_is_granted_is_quiet() {
    check("/usr/lib/x.so", Access::Read, Makes::Nothing, &FILE, None);
    check("/usr/bin/x", Access::Exec, Makes::Nothing, &FILE, None);
    check("/job/x", Access::Write, Makes::IfMissing, &ABSENT, None);
    check("/tmp/x", Access::Write, Makes::New, &ABSENT, None);
    check("/job", Access::Read, Makes::Nothing, &DIR, None);
}

#[test]
fn probes_of_what_nobody_has_are_quiet() {
    check("/usr/lib/python3/x.so", Access::Read, Makes::Nothing, &ABSENT, None);
    check("/home/me/x", Access::Look, Makes::Nothing, &Found::Nowhere { outside: false, parent_outside: true }, None);
    check("/etc/locale.alias", Access::Read, Makes::Nothing, &OUTSIDE, None);
}

#[test]
fn what_is_outside_only_is_missing() {
    check("/etc/hostname", Access::Read, Makes::Nothing, &OUTSIDE, Some(Obstacle::Missing));
    check("/tmp/x", Access::Look, Makes::Nothing, &OUTSIDE, Some(Obstacle::Missing));
    let nowhere = Found::Nowhere { outside: false, parent_outside: true };
    check("/home/me/x", Access::Write, Makes::IfMissing, &nowhere, Some(Obstacle::Missing));
    let nowhere = Found::Nowhere { outside: false, parent_outside: false };
    check("/home/me/x", Access::Write, Makes::IfMissing, &nowhere, None);
}

#[test]
fn what_is_read_only_refuses_writes_but_not_what_exists_already() {
    check("/usr/x", Access::Write, Makes::IfMissing, &ABSENT, Some(Obstacle::ReadOnly));
    check("/usr/bin/x", Access::Write, Makes::Nothing, &FILE, Some(Obstacle::ReadOnly));
    check("/newdir", Access::Write, Makes::New, &ABSENT, Some(Obstacle::ReadOnly));
    // `mkdir -p` asks for every directory on the way.
    check("/usr/lib", Access::Write, Makes::New, &DIR, None);
}

#[test]
fn execution_needs_the_mount_and_landlock() {
    check("/tmp/x", Access::Exec, Makes::Nothing, &FILE, Some(Obstacle::NoExec));
    check("/job/x", Access::Exec, Makes::Nothing, &FILE, Some(Obstacle::NoExec));
    check("/usr/share/x", Access::Exec, Makes::Nothing, &FILE, Some(Obstacle::Landlock));
}

#[test]
fn masks_refuse_what_reaches_into_them() {
    check("/job/keys/id", Access::Read, Makes::Nothing, &ABSENT, Some(Obstacle::Denied));
    check("/job/keys", Access::Read, Makes::Nothing, &DIR, Some(Obstacle::Denied));
    check("/job/keys", Access::Look, Makes::Nothing, &DIR, None);
    check("/job/hidden/x", Access::Look, Makes::Nothing, &OUTSIDE, Some(Obstacle::Hidden));
    // A name that is held although nobody has it.
    check("/job/later/x", Access::Look, Makes::Nothing, &ABSENT, None);
    check("/job/later/x", Access::Write, Makes::IfMissing, &ABSENT, Some(Obstacle::Denied));
}

#[test]
fn processes_are_never_compared_with_those_outside() {
    for path in ["/proc/self/maps", "/proc/1/root", "/proc/thread-self/x", "/dev/fd/3", "/dev/stdin"] {
        check(path, Access::Read, Makes::Nothing, &OUTSIDE, None);
    }
    check("/proc/meminfo", Access::Read, Makes::Nothing, &OUTSIDE, Some(Obstacle::Missing));
}

#[track_caller]
fn check_call(call: &str, args: [u64; 6], expected: &[(Option<i32>, u64, Access, bool, Makes)]) {
    let got: Vec<_> = targets(Abi::X86_64, call, &args, None)
        .into_iter()
        .map(|t| (t.dirfd, t.address, t.access, t.follow, t.makes))
        .collect();
    assert_eq!(got, expected, "{call}");
}

#[test]
fn calls_are_read_from_their_registers() {
    const CWD: u64 = -100i32 as u32 as u64;
    check_call("openat", [CWD, 7, 0, 0, 0, 0], &[(None, 7, Access::Read, true, Makes::Nothing)]);
    check_call("openat", [4, 7, 0o100 | 1, 0, 0, 0], &[(Some(4), 7, Access::Write, true, Makes::IfMissing)]);
    check_call("openat", [u64::MAX - 99, 7, 0o10_000_000, 0, 0, 0], &[(None, 7, Access::Look, true, Makes::Nothing)]);
    check_call("open", [7, 0o400_300 | 2, 0, 0, 0, 0], &[(None, 7, Access::Write, false, Makes::New)]);
    check_call("newfstatat", [CWD, 7, 0, 0x100, 0, 0], &[(None, 7, Access::Look, false, Makes::Nothing)]);
    check_call("execve", [7, 0, 0, 0, 0, 0], &[(None, 7, Access::Exec, true, Makes::Nothing)]);
    check_call(
        "renameat2",
        [CWD, 7, 5, 8, 0, 0],
        &[(None, 7, Access::Write, false, Makes::Nothing), (Some(5), 8, Access::Write, false, Makes::IfMissing)],
    );
    check_call("symlinkat", [1, 5, 9, 0, 0, 0], &[(Some(5), 9, Access::Write, false, Makes::New)]);
    check_call("read", [1, 2, 3, 0, 0, 0], &[]);
    assert_eq!(targets(Abi::X86_64, "openat2", &[CWD, 7, 9, 24, 0, 0], None), []);
    assert_eq!(needs_how("openat2", &[CWD, 7, 9, 24, 0, 0]), Some(9));
}

/// Every call that the filter hands over for its path is read here; connect and bind have addresses instead.
#[test]
fn every_call_with_a_path_is_known() {
    for abi in [Abi::X86_64, Abi::I386, Abi::Aarch64] {
        for nr in 0..600 {
            let Some(name) = abi.call_name(nr).filter(|_| crate::seccomp::groups::names_path(abi, nr)) else {
                continue;
            };
            let is_address = matches!(name, "connect" | "bind");
            assert_eq!(targets(abi, name, &[0; 6], Some(0)).is_empty(), is_address, "{name}");
        }
    }
}

#[test]
fn interpreters_are_found() {
    let name = |head: &[u8]| interpreter(head).map(|path| path.to_string_lossy().into_owned());
    assert_eq!(name(b"#!/usr/bin/python3 -I\nprint()"), Some("/usr/bin/python3".to_owned()));
    assert_eq!(name(b"#! \t/bin/sh\n"), Some("/bin/sh".to_owned()));
    assert_eq!(name(b"#!python\n"), None);
    assert_eq!(name(b"#!"), None);
    assert_eq!(name(b""), None);
    let mut elf = vec![0; 200];
    elf[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
    (elf[32], elf[54], elf[56]) = (64, 56, 1);
    (elf[64], elf[72], elf[96]) = (3, 130, 8);
    elf[130..138].copy_from_slice(b"/lib/ld\0");
    assert_eq!(name(&elf), Some("/lib/ld".to_owned()));
    // Numbers that point outside of the file, or around the address space.
    elf[72..80].fill(0xff);
    assert_eq!(name(&elf), None);
    elf[32..40].fill(0xff);
    assert_eq!(name(&elf), None);
    assert_eq!(name(&elf[..20]), None);
}

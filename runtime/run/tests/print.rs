//! Reports as people and programs see them, as snapshots. `UPDATE_SNAPSHOTS=1` rewrites them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use apex_core::doctor::{Diagnosis, Finding};
use apex_core::layer::{Layer, Requirement};
use apex_core::plan::*;
use apex_core::policy::{IsolationLevel, Mode, Network, Origin, ProcView};
use apex_core::prove::{Attempted, Proof, Verdict};
use apex_core::receipt::{LayerReceipt, Receipt, State};
use apex_core::refusal::{Access, Attempt, Explanation, Refusal};
use apex_run::print::{Report, Style, print};

const PLAIN: Style = Style::Text { colour: false };

fn printed(report: Report<'_>, style: Style) -> String {
    let mut out = Vec::new();
    print(&mut out, report, style).unwrap();
    String::from_utf8(out).unwrap()
}

#[track_caller]
fn check(name: &str, report: Report<'_>) {
    let text = printed(report, PLAIN);
    for line in text.lines() {
        assert!(line.chars().count() <= 100 || line.starts_with("   change"), "too wide: {line}");
    }
    check_file(&format!("{name}.txt"), &text);
    check_file(&format!("{name}.json"), &printed(report, Style::Json));
}

#[track_caller]
fn check_file(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(name);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == text, "{} differs; UPDATE_SNAPSHOTS=1 rewrites it. Now:\n{text}", path.display());
}

fn origin(line: u32) -> Origin {
    Origin { source: "modes/isolation.toml".to_owned(), line }
}

fn mounts() -> Vec<Mount> {
    vec![
        Mount::Bind {
            source: "/usr".into(),
            dest: "/usr".into(),
            access: BindAccess::Read,
            exec: true,
            kind: Kind::Dir,
            idmap: false,
            reason: "programs and libraries".to_owned(),
            origin: origin(12),
        },
        Mount::Symlink { dest: "/bin".into(), target: "usr/bin".into() },
        Mount::Bind {
            source: "/home/jo/projects/a rather long name of a directory/out".into(),
            dest: "/out".into(),
            access: BindAccess::Write,
            exec: false,
            kind: Kind::Dir,
            idmap: true,
            reason: "asked for on the command line".to_owned(),
            origin: Origin::flag("--rw"),
        },
        Mount::Dir { dest: "/run".into() },
        Mount::File { dest: "/etc/passwd".into(), content: "user:x:1000:1000::/:/bin/sh\n".to_owned() },
        Mount::Tmpfs { dest: "/tmp".into(), size_bytes: 64 << 20, exec: false, origin: origin(30) },
        Mount::Proc { view: ProcView::Pid },
        Mount::Dev { shm_size_bytes: 16 << 20 },
        Mount::Hide { dest: "/usr/src".into(), kind: Kind::Dir, origin: origin(40) },
        Mount::Deny {
            dest: "/out/.git".into(),
            source: "/home/jo/out/.git".into(),
            kind: None,
            pins: vec![],
            origin: Origin::flag("--deny"),
        },
    ]
}

fn plan() -> Plan {
    let mut layers: BTreeMap<_, _> = Layer::ALL.into_iter().map(|layer| (layer, Requirement::Required)).collect();
    layers.insert(Layer::Timens, Requirement::Off);
    layers.insert(Layer::Cgroupns, Requirement::Optional);
    Plan {
        version: 1,
        mode: Mode::Isolation,
        level: IsolationLevel::Full,
        given_up: Vec::new(),
        withheld: Vec::new(),
        sources: vec!["modes/isolation.toml".to_owned(), "flags".to_owned()],
        layers,
        skipped: BTreeMap::from([(Layer::Cgroupns, "the kernel has no cgroup namespaces".to_owned())]),
        cgroup: Some(CgroupPlan {
            memory_bytes: Some(512 << 20),
            swap_bytes: Some(0),
            cpu_percent: Some(150),
            tasks: Some(64),
        }),
        identity: IdentityPlan {
            uid: 1000,
            gid: 1000,
            caller_uid: 0,
            caller_gid: 0,
            own_host_ids: true,
            hostname: "apex".to_owned(),
        },
        network: Network::None,
        mounts: mounts(),
        rlimits: vec![Rlimit { name: "nofile", value: 1024 }, Rlimit { name: "core", value: 0 }],
        capabilities: vec![],
        landlock: Some(LandlockPlan {
            abi: 7,
            rules: vec![LandlockRule {
                path: "/usr".into(),
                list: true,
                read: true,
                write: false,
                exec: true,
                ioctl: false,
            }],
            tcp_refused: true,
            scoped: true,
        }),
        seccomp: None,
        mailboxes: Vec::new(),
        record: false,
        watch: apex_core::watch::Level::Off,
        overlay: None,
        command: CommandPlan {
            candidates: vec!["/usr/bin/ls".into(), "/bin/ls".into()],
            argv: vec!["ls".into(), "-l".into(), "two words".into()],
            env: vec!["PATH=/usr/bin:/bin".into()],
            workdir: vec!["/out".into(), "/".into()],
        },
        wall_time_ms: Some(300_000),
        tty: false,
        fds: vec![5],
    }
}

fn layer(layer: Layer, effective: &str, state: State) -> LayerReceipt {
    LayerReceipt {
        layer,
        requirement: Requirement::Required,
        requested: "a filter of 310 decisions".to_owned(),
        effective: effective.to_owned(),
        evidence: "/proc/4711/status".to_owned(),
        state,
    }
}

fn layers() -> Vec<LayerReceipt> {
    vec![
        layer(Layer::Cgroup, "none", State::Skipped("no cgroup of this user is delegated".to_owned())),
        layer(Layer::Timens, "host", State::Off),
        layer(Layer::Seccomp, "Seccomp: 2, 1 filter, and a probing call was answered with EPERM", State::InForce),
    ]
}

fn explanation(path: &OsStr, comm: &str, count: u64) -> Explanation {
    Explanation {
        refusal: Refusal {
            attempt: Attempt::Path {
                path: path.into(),
                access: Access::Read,
                exists_inside: false,
                exists_outside: true,
            },
            comm: comm.to_owned(),
            pid: 2,
            count,
            outcome: "ENOENT".to_owned(),
        },
        tried: format!("read {}", Path::new(path).display()),
        layer: Some(Layer::Mountns),
        because: "it exists outside, no rule grants it".to_owned(),
        rule: None,
        change: Some(format!("--ro '{}'", Path::new(path).display())),
        caution: None,
    }
}

#[test]
fn plans() {
    check("plan", Report::Plan(&plan()));
}

/// As the planner makes it: nothing is mounted, and what the level leaves out is off.
fn partial() -> Plan {
    let level = IsolationLevel::Partial;
    let mut plan = plan();
    plan.layers.retain(|layer, _| !level.leaves_out(*layer));
    plan.layers
        .extend(Layer::ALL.into_iter().filter(|layer| level.leaves_out(*layer)).map(|layer| (layer, Requirement::Off)));
    plan.skipped.clear();
    Plan {
        mode: Mode::Development,
        level,
        given_up: vec!["a private /tmp (modes/development.toml:40)".to_owned()],
        withheld: vec!["/home/jo/.ssh".into()],
        mounts: Vec::new(),
        ..plan
    }
}

#[test]
fn plans_at_a_level() {
    check("plan-partial", Report::Plan(&partial()));
}

#[test]
fn receipts_at_a_level() {
    let left_out = State::LeftOut(IsolationLevel::None);
    let mut layers = layers();
    layers[2] = layer(Layer::Seccomp, "0 filters, all of them the caller's", left_out);
    let receipt = Receipt { mode: Mode::Development, level: IsolationLevel::None, layers, ..receipt() };
    check("receipt-none", Report::Receipt(&receipt));
}

#[test]
fn receipts() {
    check("receipt", Report::Receipt(&receipt()));
}

fn receipt() -> Receipt {
    Receipt {
        version: 1,
        kernel: "6.18.0".to_owned(),
        mode: Mode::Isolation,
        level: IsolationLevel::Full,
        plan_sha256: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".to_owned(),
        init_pid: 4711,
        watch: apex_core::watch::Level::Off,
        layers: layers(),
    }
}

#[test]
fn explanations() {
    let rare = explanation(OsStr::new("/opt/rare"), "python3", 1);
    let often = explanation(OsStr::new("/opt/often"), "python3", 5);
    let also_often = explanation(OsStr::new("/opt/often"), "sh", 2);
    let keyring = Explanation {
        refusal: Refusal {
            attempt: Attempt::Syscall { name: "keyctl".to_owned(), abi: "x86_64".to_owned(), args: [0; 6] },
            comm: "job".to_owned(),
            pid: 0,
            count: 3,
            outcome: "EPERM".to_owned(),
        },
        tried: "call keyctl (x86_64)".to_owned(),
        layer: Some(Layer::Seccomp),
        because: "group `keyring` (keys outlive the sandbox) is not granted".to_owned(),
        rule: Some(origin(3)),
        change: Some("--policy FILE, with in FILE:\n[syscalls]\nallow = [\"keyring\"]".to_owned()),
        caution: Some("it opens every call of the group".to_owned()),
    };
    let none =
        Explanation { change: None, caution: Some("x ".repeat(80)), ..explanation(OsStr::new("/etc/shadow"), "sh", 1) };
    check("why", Report::Why(&[rare, often, also_often, keyring, none]));
}

#[test]
fn a_run_without_refusals_is_quiet() {
    assert_eq!(printed(Report::Why(&[]), PLAIN), "nothing was refused\n");
    assert_eq!(printed(Report::Why(&[]), Style::Json), "{\n  \"why\": []\n}\n");
}

#[test]
fn proofs() {
    let attempt = |layer, attempt: &str, got: &str, verdict| Attempted {
        layer,
        attempt: attempt.to_owned(),
        expected: "EPERM".to_owned(),
        got: got.to_owned(),
        verdict,
    };
    let attempts = vec![
        attempt(Layer::Seccomp, "bpf(BPF_PROG_LOAD)", "EPERM", Verdict::Refused),
        attempt(Layer::Netns, "connect to 192.0.2.1:80", "success", Verdict::Allowed),
        attempt(Layer::Landlock, "bind TCP port 80", "-", Verdict::NotApplicable("the policy grants it".to_owned())),
    ];
    check("proof", Report::Proof(&Proof::new((Mode::Hybrid, IsolationLevel::Full), attempts, layers())));
}

#[test]
fn diagnoses() {
    let finding = |layer, facility: &str, available, detail: &str, remedy: Option<&str>| Finding {
        layer,
        facility: facility.to_owned(),
        available,
        detail: detail.to_owned(),
        remedy: remedy.map(str::to_owned),
    };
    let findings = vec![
        finding(Some(Layer::Userns), "userns", true, "made one", None),
        finding(None, "new mount API", true, "open_tree(2), mount_setattr(2)", None),
        finding(
            Some(Layer::Cgroup),
            "delegated cgroup",
            false,
            "no user manager of systemd answers on the bus",
            Some("log in through systemd (loginctl enable-linger USER), or start with --optional cgroup"),
        ),
    ];
    check("doctor", Report::Doctor(&Diagnosis { version: 1, kernel: "6.18.0".to_owned(), uid: 1000, findings }));
}

#[test]
fn a_sandbox_cannot_write_to_the_terminal_through_a_name() {
    let name = OsStr::from_bytes(b"/tmp/\x1b]0;owned\x07\x1b[2J\xc2\x9b31m\xff\xe2\x80\xae");
    let hostile = [explanation(name, "\u{1b}[31mx\r\n", 1)];
    for style in [PLAIN, Style::Json] {
        let text = printed(Report::Why(&hostile), style);
        let raw = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
        assert!(!text.contains(raw), "{text:?}");
    }
    let json: serde_json::Value = serde_json::from_str(&printed(Report::Why(&hostile), Style::Json)).unwrap();
    assert_eq!(json["why"][0]["comm"], "\u{1b}[31mx\r\n");
}

#[test]
fn colour_needs_a_terminal_and_consent() {
    assert_eq!(Style::new(false, true, None), Style::Text { colour: true });
    assert_eq!(Style::new(false, true, Some(OsStr::new(""))), Style::Text { colour: true });
    assert_eq!(Style::new(false, true, Some(OsStr::new("1"))), PLAIN);
    assert_eq!(Style::new(false, false, None), PLAIN);
    assert_eq!(Style::new(true, true, None), Style::Json);
    let coloured = printed(Report::Why(&[explanation(OsStr::new("/x"), "sh", 1)]), Style::Text { colour: true });
    assert!(coloured.contains("\u{1b}[32m--ro '/x'\u{1b}[0m"), "{coloured:?}");
}

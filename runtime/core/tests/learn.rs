//! Learned policies: they cover what was seen, keep below the ceiling, and do not depend on order. The text merges and keeps a person's lines.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "learn/looks.rs"]
mod looks;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use apex_core::backtest::Backtest;
use apex_core::event::{Errno, Event, What};
use apex_core::host::{CgroupSupport, Host, PathFact};
use apex_core::learn::{Learned, Learner, Outside, Place, Previous, Right, Setting, Stands};
use apex_core::plan::{CgroupPlan, Plan, Request};
use apex_core::planner;
use apex_core::policy::{Flags, Inputs, Mode, Policy, PolicyError, resolve, resolve_for_learning};
use apex_core::refusal::{Access, Attempt};
use apex_core::seccomp::groups;
use proptest::prelude::*;

const HOME: &str = "/home/u";
const CWD: &str = "/home/u/project";

const FILES: &[&str] = &[
    "/usr/bin/true",
    "/usr/bin/python3",
    "/usr/lib/x86_64-linux-gnu/libc.so.6",
    "/etc/ld.so.cache",
    "/etc/mime.types",
    "/etc/shadow",
    "/etc/passwd",
    "/etc/nginx/nginx.conf",
    "/etc/nginx/conf.d/a.conf",
    "/etc/ssh/key",
    "/opt/tool-1.2.3/bin/t",
    "/opt/tool-1.2.3/lib/t.so",
    "/srv/www/index.html",
    "/srv/www/a-1.2.3.html",
    "/var/lib/app/db",
    "/var/lib/app/journal",
    "/var/log/app.log",
    "/var/log/app/access.log",
    "/var/cache/app/4711/x",
    "/home/u/.ssh/id",
    "/home/u/.gitconfig",
    "/home/u/other/secret.txt",
    "/home/u/project/main.py",
    "/home/u/project/run.sh",
    "/home/u/project/lib-1.2.3.so",
    "/home/u/project/tool-1.4/bin/x",
    "/home/u/project/data/a0",
    "/home/u/project/data/a1",
    "/home/u/project/data/a2",
    "/home/u/project/data/a3",
    "/home/u/project/data/a4",
    "/home/u/project/data/a5",
    "/home/u/project/data/a6",
    "/home/u/project/data/a7",
    "/home/u/project/data/a8",
    "/home/u/project/.ssh/key",
    "/home/u/project/build/x.o",
    "/home/u/project/build/y.o",
    "/home/u/project/out/z.o",
];
/// Names that the host does not have.
const NEW: &[&str] = &[
    "/home/u/project/new.txt",
    "/home/u/project/build/new.o",
    "/home/u/project/made",
    "/var/lib/app/tmpab12cd",
    "/var/lib/new",
    "/tmp/x",
    "/tmp/y",
    "/var/tmp/t",
    "/etc/new.conf",
    "/home/u/new",
    "/srv/www/new.html",
];

/// Links, and what they say.
const LINKS: &[(&str, &str)] = &[
    ("/home/u/project/current", "data"),
    ("/home/u/project/second", "current/../build"),
    ("/home/u/project/latest", "/home/u/project/current/a0"),
    ("/home/u/project/turns", "turns"),
    ("/home/u/project/key", ".ssh/key"),
];
/// Scripts, and the interpreters that they name.
const SCRIPTS: &[(&str, &str)] =
    &[("/home/u/project/run.sh", "/home/u/project/latest"), ("/home/u/project/data/a0", "/usr/bin/python3")];

struct World;

impl World {
    fn fact(path: &Path) -> PathFact {
        if FILES.iter().any(|file| Path::new(file) == path) {
            return PathFact::File;
        }
        let dirs = ["/tmp", "/var/tmp", "/home/u/project", "/run", "/proc", "/dev"];
        let is_dir = FILES.iter().chain(&dirs).any(|file| Path::new(file).starts_with(path));
        if is_dir { PathFact::Dir } else { PathFact::Missing }
    }
}

impl Outside for World {
    fn stands(&self, path: &Path) -> Stands {
        match World::fact(path) {
            PathFact::Missing => Stands::Nothing,
            PathFact::Dir => Stands::Dir,
            _ => Stands::File,
        }
    }

    fn link(&self, path: &Path) -> Option<PathBuf> {
        LINKS.iter().find(|(link, _)| Path::new(link) == path).map(|(_, target)| target.into())
    }

    fn interpreter(&self, path: &Path) -> Option<PathBuf> {
        SCRIPTS.iter().find(|(script, _)| Path::new(script) == path).map(|(_, interpreter)| interpreter.into())
    }
}

impl Host for World {
    fn path(&self, path: &Path, _follow: bool) -> PathFact {
        World::fact(path)
    }
    fn real(&self, path: &Path) -> PathBuf {
        path.to_owned()
    }
    fn landlock_abi(&self) -> u32 {
        6
    }
    fn cgroup(&self, _: &CgroupPlan) -> CgroupSupport {
        CgroupSupport::V1 { controllers: vec!["memory".into(), "pids".into(), "cpu".into()] }
    }
    fn has_time_namespaces(&self) -> bool {
        true
    }
    fn gives_host_ids(&self) -> bool {
        false
    }
    fn caller(&self) -> (u32, u32) {
        (1000, 1000)
    }
    fn env(&self, _: &str) -> Option<String> {
        None
    }
    fn cwd(&self) -> PathBuf {
        CWD.into()
    }
}

fn inputs(mode: Option<Mode>, groups: &[&'static str]) -> Inputs<'static> {
    Inputs {
        mode,
        profile: None,
        policy_file: None,
        flags: Flags::default(),
        home: Some(HOME.into()),
        cwd: CWD.into(),
        tmpdir: None,
        system_config: None,
        user_config: None,
        groups: Vec::leak(groups.to_vec()),
    }
}

fn all_groups() -> Vec<&'static str> {
    groups::iter().map(|group| group.name).collect()
}

fn setting(mode: Mode, net: bool) -> Setting {
    let mut with = inputs(Some(mode), &all_groups());
    let base = resolve(&with, &mut |_: &Path| Ok(None)).unwrap();
    with.flags.net = net.then(|| "host".to_owned());
    let (run, bounds) = resolve_for_learning(&with, &mut |_: &Path| Ok(None)).unwrap();
    let place = Place { profile: None, home: Some(HOME.into()), cwd: CWD.into() };
    Setting::new(place, &base, &run, bounds)
}

fn with_flags(mode: Mode, flags: Flags) -> Setting {
    let mut with = inputs(Some(mode), &all_groups());
    let base = resolve(&with, &mut |_: &Path| Ok(None)).unwrap();
    with.flags = flags;
    let (run, bounds) = resolve_for_learning(&with, &mut |_: &Path| Ok(None)).unwrap();
    Setting::new(Place { profile: None, home: Some(HOME.into()), cwd: CWD.into() }, &base, &run, bounds)
}

fn event(what: What) -> Event {
    Event { time_ns: 1, sandbox: 1, pid: 2, ppid: 1, uid: 1000, comm: "job".to_owned(), what, error: None }
}

fn open(path: &str, access: Access, create: bool) -> Event {
    event(What::Open { path: path.to_owned(), access, create, truncate: false })
}

fn exec(path: &str) -> Event {
    event(What::Exec {
        path: path.to_owned(),
        args: vec![path.to_owned()],
        asked: None,
        cut: false,
        fileless: false,
        stdin: None,
    })
}

fn calls(names: &[&str]) -> Event {
    event(What::Calls { counts: names.iter().map(|name| ((*name).to_owned(), 3)).collect() })
}

fn learn(setting: &Setting, events: &[Event], previous: Option<&Previous>) -> Learned {
    let mut learner = Learner::new(setting.clone());
    for event in events {
        learner.observe(event);
    }
    learner.finish(previous, &World)
}

/// The policy that a learned text makes, in its own mode.
fn policy_of(text: &str) -> Policy {
    policy_at(text, CWD).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn policy_at(text: &str, cwd: &str) -> Result<Policy, PolicyError> {
    let with = Inputs { policy_file: Some("/p/learned.toml".into()), cwd: cwd.into(), ..inputs(None, &all_groups()) };
    let load = |path: &Path| Ok((path == Path::new("/p/learned.toml")).then(|| text.to_owned()));
    resolve(&with, &mut { load })
}

fn plan_of(policy: &Policy) -> Plan {
    let request = Request {
        argv: vec!["/usr/bin/true".into()],
        workdir: None,
        fds: vec![],
        on_terminal: false,
        record: false,
        watch: apex_core::watch::Level::Off,
    };
    planner::build(policy, &request, &World).unwrap()
}

fn refused(plan: &Plan, events: &[Event]) -> Vec<Attempt> {
    let mut backtest = Backtest::new(plan);
    for event in events {
        backtest.replay(event);
    }
    backtest.finish().refusals.into_iter().map(|refusal| refusal.attempt).collect()
}

fn granted(learned: &Learned) -> Vec<(Right, String)> {
    learned.files.keys().map(|(right, path)| (*right, path.display().to_string())).collect()
}

#[track_caller]
fn check(mode: Mode, events: &[Event], expected: &[(Right, &str)]) -> Learned {
    let learned = learn(&setting(mode, false), events, None);
    let expected: Vec<(Right, String)> = expected.iter().map(|(right, path)| (*right, (*path).to_owned())).collect();
    assert_eq!(granted(&learned), expected, "asked: {:?}", learned.asked);
    learned
}

#[test]
fn what_the_mode_gives_is_not_repeated() {
    let events = [
        exec("/usr/bin/python3"),
        open("/usr/lib/x86_64-linux-gnu/libc.so.6", Access::Read, false),
        open("/tmp/x", Access::Write, true),
        open("/etc/passwd", Access::Read, false),
        open("/proc/self/maps", Access::Read, false),
    ];
    check(Mode::Isolation, &events, &[]);
}

#[test]
fn a_file_is_granted_and_many_are_their_directory() {
    let read = |name: &str| open(&format!("{CWD}/data/{name}"), Access::Read, false);
    check(Mode::Isolation, &[read("a0")], &[(Right::Read, "/home/u/project/data/a0")]);
    let many: Vec<Event> = (0..8).map(|n| read(&format!("a{n}"))).collect();
    check(Mode::Isolation, &many, &[(Right::Read, "/home/u/project/data")]);
}

#[test]
fn names_that_change_are_granted_through_their_directory() {
    let events = [
        open("/home/u/project/lib-1.2.3.so", Access::Read, false),
        open("/opt/tool-1.2.3/lib/t.so", Access::Read, false),
        open("/srv/www/a-1.2.3.html", Access::Read, false),
    ];
    check(
        Mode::Isolation,
        &events,
        &[
            (Right::Read, "/home/u/project"),
            (Right::Read, "/opt/tool-1.2.3"),
            (Right::Read, "/srv/www"),
            (Right::Exec, "/home/u/project"),
            (Right::Exec, "/opt/tool-1.2.3"),
        ],
    );
}

#[test]
fn what_is_made_needs_its_directory_and_what_is_changed_itself() {
    let events = [
        open("/home/u/project/build/new.o", Access::Write, true),
        open("/home/u/project/build/new.o", Access::Read, false),
        open("/var/lib/app/db", Access::Write, true),
        event(What::Mkdir { path: "/home/u/project/out/a".into() }),
        open("/home/u/project/out/a/b", Access::Write, true),
    ];
    let out = (Right::Write, "/home/u/project/out");
    check(Mode::Isolation, &events, &[(Right::Write, "/home/u/project/build"), out, (Right::Write, "/var/lib/app/db")]);
}

#[test]
fn what_is_moved_needs_one_directory_around_both_ends() {
    let events =
        [event(What::Rename { from: "/home/u/project/build/x.o".into(), to: "/home/u/project/out/x.o".into() })];
    check(Mode::Isolation, &events, &[(Right::Write, "/home/u/project")]);
}

#[test]
fn secrets_and_shared_places_are_listed_instead() {
    let events = [
        open("/home/u/project/.ssh/key", Access::Read, false),
        open("/etc/shadow", Access::Read, false),
        open("/etc/new.conf", Access::Write, true),
        open("/var/lib/new", Access::Write, true),
        event(What::Unlink { path: "/var/log/app.log".into() }),
    ];
    let learned = check(Mode::Isolation, &events, &[]);
    let asked: Vec<&str> = learned.asked.iter().map(|(what, _)| what.as_str()).collect();
    assert_eq!(
        asked,
        [
            "make /etc/new.conf",
            "make /var/lib/new",
            "make /var/log/app.log",
            "read /etc/shadow",
            "read /home/u/project/.ssh/key"
        ]
    );
}

fn look(path: &str, follow: bool) -> Event {
    event(What::Look { path: path.to_owned(), follow })
}

fn asked(path: &str, asked: &str) -> Event {
    let (path, asked) = (path.to_owned(), Some(asked.to_owned()));
    event(What::Exec { path, args: vec![], asked, cut: false, fileless: false, stdin: None })
}

#[test]
fn missing_files_are_no_needs() {
    let missing = Event { error: Some(Errno::ENOENT), ..open("/home/u/project/none", Access::Read, false) };
    let learned = check(Mode::Isolation, &[missing], &[]);
    assert!(learned.asked.is_empty());
}

/// A run that failed for want of a file of the host learned nothing of it.
#[test]
fn what_is_missing_inside_and_there_outside_is_told() {
    let missing = |path: &str| Event { error: Some(Errno::ENOENT), ..open(path, Access::Read, false) };
    let events =
        ["/home/u/other/secret.txt", "/home/u/.ssh/id", "/home/u/nowhere", "/home/u/project/none"].map(missing);
    let learned = check(Mode::Isolation, &events, &[]);
    assert_eq!(learned.unseen, [PathBuf::from("/home/u/other/secret.txt")]);
    let text = learned.to_toml(None).unwrap();
    let line = "# asked for and not granted: read /home/u/other/secret.txt (it is there outside and was not shown inside; --ro shows it; 1 time by job)";
    assert!(text.contains(line) && text.contains("read /home/u/.ssh/id (") && !text.contains("none"), "{text}");
}

#[test]
fn calls_become_their_groups_and_nothing_else_stays() {
    let learned = check(Mode::Isolation, &[calls(&["read", "openat", "getrandom", "bpf", "clone"])], &[]);
    let text = learned.to_toml(None).unwrap();
    let policy = policy_of(&text);
    let allowed: Vec<&str> = policy.syscalls.allow.keys().map(String::as_str).collect();
    let used = ["base", "files", "random", "threads"];
    let companions = ["identity-read", "memory-advice", "polling", "scheduling", "signals", "system-info", "time"];
    let expected: BTreeSet<&str> = used.into_iter().chain(companions).collect();
    assert_eq!(allowed, expected.into_iter().collect::<Vec<_>>());
    assert!(
        text.contains("    # goes with `threads`: it reaches nothing outside of the sandbox\n    \"signals\""),
        "{text}"
    );
    assert!(text.contains("# asked for and not granted: system call bpf (group bpf) (3 times)"), "{text}");
}

#[test]
fn companions_come_with_threads_and_children_alone_and_stay_out_when_removed() {
    let setting = setting(Mode::Isolation, false);
    let text = learn(&setting, &[calls(&["read"])], None).to_toml(None).unwrap();
    assert!(!text.contains("\"signals\"") && text.contains("\"time\""), "{text}");
    let without = text.replace("    \"time\",\n", "");
    assert_ne!(without, text);
    let previous = Previous::read(&without, "p.toml", &setting).unwrap();
    let merged = learn(&setting, &[calls(&["read", "clock_nanosleep", "wait4"])], Some(&previous))
        .to_toml(Some((&without, "p.toml")))
        .unwrap();
    assert!(!policy_of(&merged).syscalls.allow.contains_key("time"), "{merged}");
    assert!(merged.contains("clock_nanosleep (group time) (its line was removed by hand"), "{merged}");
    assert!(merged.contains("goes with `process`"), "{merged}");
}

/// The larger of two counts was told for what lies in one directory.
#[test]
fn runs_of_what_was_joined_are_counted() {
    let setting = setting(Mode::Isolation, false);
    let read = |n: usize| open(&format!("{CWD}/data/a{n}"), Access::Read, false);
    let first: Vec<Event> = (0..4).map(read).collect();
    let text = learn(&setting, &first, None).to_toml(None).unwrap();
    let previous = Previous::read(&text, "p.toml", &setting).unwrap();
    let second: Vec<Event> = (4..8).map(read).collect();
    let merged = learn(&setting, &second, Some(&previous)).to_toml(Some((&text, "p.toml"))).unwrap();
    assert!(merged.contains("read by job, 8 times in 2 of 2 runs"), "{merged}");
}

#[test]
fn without_counts_calls_are_left_to_the_mode() {
    let text = check(Mode::Isolation, &[], &[]).to_toml(None).unwrap();
    assert!(!text.contains("[syscalls]"), "{text}");
}

#[test]
fn the_network_is_granted_where_it_was_there_and_used() {
    let peer = [event(What::Connect { address: "inet:192.0.2.1:443".parse().unwrap() })];
    for (mode, has, events, expected) in [
        (Mode::Hybrid, true, &peer[..], Some("host")),
        (Mode::Hybrid, true, &[][..], None),
        (Mode::Hybrid, false, &peer[..], None),
        (Mode::Development, true, &[][..], Some("none")),
    ] {
        let text = learn(&setting(mode, has), events, None).to_toml(None).unwrap();
        let access = text.lines().find_map(|line| line.strip_prefix("access = \"")?.split('"').next());
        assert_eq!(access, expected, "{text}");
    }
}

#[test]
fn a_mode_that_reads_everything_starts_bare() {
    let learned =
        learn(&setting(Mode::Development, true), &[open("/home/u/other/secret.txt", Access::Read, false)], None);
    let text = learned.to_toml(None).unwrap();
    let plan = plan_of(&policy_of(&text));
    assert!(
        refused(&plan, &[open("/home/u/other/secret.txt", Access::Read, false), exec("/usr/bin/python3")]).is_empty()
    );
    assert_eq!(refused(&plan, &[open("/home/u/.gitconfig", Access::Read, false)]).len(), 1, "{text}");
}

#[test]
fn runs_merge_and_a_persons_lines_stay() {
    let setting = setting(Mode::Isolation, false);
    let first = learn(&setting, &[open("/home/u/project/data/a0", Access::Read, false), calls(&["read"])], None);
    let text = first.to_toml(None).unwrap();
    let edited =
        text.replace("read = [", "read = [\n    # by hand: the weights\n    \"/srv/www\", # mine") + "# a last word\n";
    let previous = Previous::read(&edited, "p.toml", &setting).unwrap();
    let events = [
        open("/home/u/project/data/a1", Access::Read, false),
        open("/srv/www/index.html", Access::Read, false),
        calls(&["openat"]),
    ];
    let second = learn(&setting, &events, Some(&previous));
    let merged = second.to_toml(Some((&edited, "p.toml"))).unwrap();
    for line in [
        "# by hand: the weights",
        "\"/srv/www\", # mine",
        "# a last word",
        "data/a0",
        "data/a1",
        "runs = 2",
        "\"files\"",
    ] {
        assert!(merged.contains(line), "{line}\n{merged}");
    }
    assert!(!merged.contains("index.html"), "a person's line gives it: {merged}");
    let plan = plan_of(&policy_of(&merged));
    assert!(refused(&plan, &events).is_empty());
}

#[test]
fn a_line_removed_by_hand_stays_out() {
    let setting = setting(Mode::Isolation, false);
    let events = [open("/home/u/project/data/a0", Access::Read, false)];
    let text = learn(&setting, &events, None).to_toml(None).unwrap();
    let without: String = text
        .lines()
        .filter(|line| !line.contains("{ path = \"${CWD}/data/a0\""))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_ne!(without, text);
    let previous = Previous::read(&without, "p.toml", &setting).unwrap();
    let merged = learn(&setting, &events, Some(&previous)).to_toml(Some((&without, "p.toml"))).unwrap();
    assert!(policy_of(&merged).filesystem.read.iter().all(|grant| !grant.path.ends_with("a0")), "{merged}");
    assert!(merged.contains("its line was removed by hand"), "{merged}");
}

#[test]
fn names_of_the_sandbox_cannot_write_policy() {
    let hostile = Event {
        comm: "x\"]\n[network]\naccess=\"host".to_owned(),
        ..open("/home/u/project/main.py", Access::Read, false)
    };
    let refused =
        Event { error: Some(Errno::EACCES), ..open("/srv/\n[network]\naccess = \"host\"", Access::Read, false) };
    let text = learn(&setting(Mode::Hybrid, false), &[hostile, refused, calls(&["read"])], None).to_toml(None).unwrap();
    assert_eq!(policy_of(&text).network, apex_core::policy::Network::None, "{text}");
}

#[test]
fn a_broken_file_is_not_overwritten() {
    let setting = setting(Mode::Isolation, false);
    for text in ["[filesystem]\nraed = []", "mode = ", "[learned]\nversion = 9"] {
        assert!(Previous::read(text, "p.toml", &setting).is_err(), "{text}");
    }
}

/// Learned in a project, it granted `~/.ssh` to a run that started in the home directory.
#[test]
fn a_learned_policy_carries_the_denies_of_its_run() {
    let flags = Flags { deny: vec!["data/a0".into()], ..Flags::default() };
    let setting = with_flags(Mode::Isolation, flags);
    let events = [open("/home/u/project/lib-1.2.3.so", Access::Read, false)];
    let text = learn(&setting, &events, None).to_toml(None).unwrap();
    assert!(text.contains("extends = [\"profile:secrets\"]"), "{text}");
    let denied: BTreeSet<PathBuf> = policy_of(&text).filesystem.deny.into_iter().map(|deny| deny.path).collect();
    for path in ["/home/u/.ssh", "/etc/shadow", "/home/u/project/data/a0"] {
        assert!(denied.contains(Path::new(path)), "{path}\n{text}");
    }
    let masks = |text: &str| {
        let plan = plan_of(&policy_of(text));
        plan.mounts.iter().filter(|mount| matches!(mount, apex_core::plan::Mount::Deny { .. })).count()
    };
    assert_eq!(masks(&text), 0, "what no grant shows costs no mount\n{text}");
    assert_eq!(masks(&text.replace("read = [", "read = [\n    \"${CWD}\",")), 1, "{text}");
    // Taken out by hand, it stays out; the denies of the run are asked for anew.
    let less = text.replace("\"profile:secrets\"", "");
    let previous = Previous::read(&less, "p.toml", &setting).unwrap();
    let merged = learn(&setting, &events, Some(&previous)).to_toml(Some((&less, "p.toml"))).unwrap();
    assert!(!merged.contains("profile:secrets") && merged.matches("data/a0").count() == 1, "{merged}");
}

#[test]
fn a_learned_cwd_is_no_shared_place() {
    let text =
        learn(&setting(Mode::Isolation, false), &[open("/home/u/project/lib-1.2.3.so", Access::Read, false)], None)
            .to_toml(None)
            .unwrap();
    assert!(text.contains("\"${CWD}\""), "{text}");
    for cwd in [HOME, "/", "/tmp", "/home"] {
        let error = policy_at(&text, cwd).unwrap_err().to_string();
        assert!(error.contains("/p/learned.toml:") && error.contains("start in the directory of the work"), "{error}");
    }
    policy_at(&text, "/srv/www").unwrap();
    // In the home itself nothing is learned as `${CWD}`.
    let mut home = setting(Mode::Isolation, false);
    home.cwd = HOME.into();
    let text = learn(&home, &[open("/home/u/project/main.py", Access::Read, false)], None).to_toml(None).unwrap();
    assert!(text.contains("\"~/project/main.py\"") && !text.contains("${CWD}"), "{text}");
    policy_at(&text, "/").unwrap();
}

#[test]
fn runs_of_another_mode_or_profile_are_not_merged() {
    #[track_caller]
    fn check(file: (Mode, Option<&str>), run: (Mode, Option<&str>), expected: Option<&str>) {
        let of = |(mode, profile): (Mode, Option<&str>)| Setting {
            profile: profile.map(str::to_owned),
            ..setting(mode, false)
        };
        let text = learn(&of(file), &[], None).to_toml(None).unwrap();
        let found = Previous::read(&text, "p.toml", &of(run)).err();
        assert_eq!(found.as_ref().map(ToString::to_string).as_deref(), expected);
        assert!(found.is_none_or(|error| std::error::Error::source(&error).is_none()));
    }
    let (isolation, hybrid) = (Mode::Isolation, Mode::Hybrid);
    check((isolation, None), (isolation, None), None);
    check((isolation, Some("python")), (isolation, Some("python")), None);
    let words = "p.toml: learned in isolation, this run is hybrid; learn into another file";
    check((isolation, None), (hybrid, None), Some(words));
    let words = "p.toml: learned with profile python, this run has profile node; learn into another file";
    check((isolation, Some("python")), (isolation, Some("node")), Some(words));
    let words = "p.toml: learned without a profile, this run has profile node; learn into another file";
    check((isolation, None), (isolation, Some("node")), Some(words));
    let text = learn(&Setting { profile: Some("python".to_owned()), ..setting(isolation, false) }, &[], None);
    let text = text.to_toml(None).unwrap();
    assert_eq!(Previous::profile(&text, "p.toml").unwrap().as_deref(), Some("python"));
}

#[test]
fn a_broken_file_is_told_once() {
    let error = Previous::read("[filesystem]\nraed = []", "p.toml", &setting(Mode::Isolation, false)).unwrap_err();
    assert!(std::error::Error::source(&error).is_none() && error.to_string().contains("unknown key `raed`"), "{error}");
}

#[test]
fn a_merged_file_reads_like_a_fresh_one() {
    let setting = setting(Mode::Development, true);
    let first = [open("/srv/www/index.html", Access::Read, false), calls(&["read"])];
    let text = learn(&setting, &first, None).to_toml(None).unwrap();
    assert!(text.contains("tmpfs = [\n    \"/tmp\",\n]"), "{text}");
    let text =
        format!("{text}\n# mine\n[identity]\nhostname = \"own\"\n").replace("[network]\naccess = \"none\"\n", "");
    let previous = Previous::read(&text, "p.toml", &setting).unwrap();
    let second = [open("/home/u/other/secret.txt", Access::Read, false), calls(&["getdents64", "pipe2"])];
    let merged = learn(&setting, &second, Some(&previous)).to_toml(Some((&text, "p.toml"))).unwrap();
    let heads: Vec<&str> = merged.lines().filter(|line| line.starts_with('[')).collect();
    assert_eq!(
        heads,
        ["[filesystem]", "[network]", "[syscalls]", "[identity]", "[learned]", "[learned.seen]"],
        "{merged}"
    );
    let (_, calls) = merged.split_once("allow = [").unwrap();
    let groups: Vec<&str> =
        calls.split(']').next().unwrap().lines().map(str::trim).filter(|line| line.starts_with('"')).collect();
    assert!(groups.is_sorted() && groups.len() > 6, "{merged}");
}

#[test]
fn a_directory_that_was_listed_is_told_so() {
    let list = open("/home/u/project/data", Access::Read, false);
    let setting = setting(Mode::Isolation, false);
    let text = |events: &[Event], old: Option<&str>| {
        let previous = old.map(|old| Previous::read(old, "p.toml", &setting).unwrap());
        learn(&setting, events, previous.as_ref()).to_toml(old.map(|old| (old, "p.toml"))).unwrap()
    };
    let once = text(std::slice::from_ref(&list), None);
    assert!(once.contains("reason = \"listed by job, once in 1 of 1 runs\""), "{once}");
    assert!(text(std::slice::from_ref(&list), Some(&once)).contains("\"listed by job, 2 times in 2 of 2 runs\""));
    let inner = open("/home/u/project/data/a0", Access::Read, false);
    assert!(text(&[list, inner.clone()], None).contains("\"read by job, once in 1 of 1 runs\""));
    assert!(text(&[inner], Some(&once)).contains("\"read by job, once in 2 of 2 runs\""));
}

#[test]
fn what_stays_within_the_run_needs_no_network() {
    let connect = |to: &str| event(What::Connect { address: to.parse().unwrap() });
    let bind = |own: &str| event(What::Bind { address: own.parse().unwrap() });
    #[track_caller]
    fn check(events: &[Event], expected: Option<&str>) {
        let text = learn(&setting(Mode::Hybrid, true), events, None).to_toml(None).unwrap();
        let line = text.lines().find(|line| line.starts_with("access = "));
        assert_eq!(line.map(|line| line.split(": ").last().unwrap()), expected, "{text}");
    }
    check(&[bind("inet:127.0.0.1:8099"), connect("inet:127.0.0.1:8099")], None);
    check(&[bind("inet:0.0.0.0:0")], None);
    check(&[connect("inet:127.0.0.1:8099")], Some("inet:127.0.0.1:8099"));
    check(&[bind("inet:127.0.0.1:8099")], Some("inet:127.0.0.1:8099"));
    check(&[bind("inet:0.0.0.0:80"), connect("inet:127.0.0.1:80")], Some("inet:0.0.0.0:80"));
    check(
        &[bind("inet:0.0.0.0:0"), connect("inet:192.0.2.1:53"), connect("inet:192.0.2.7:40001")],
        Some("inet:192.0.2.1:53, inet:192.0.2.7"),
    );
    let many: Vec<Event> = (1..9).map(|n| connect(&format!("inet:192.0.2.{n}:443"))).collect();
    let text = learn(&setting(Mode::Hybrid, true), &many, None).to_toml(None).unwrap();
    assert!(text.contains("inet:192.0.2.6:443, …\n"), "{text}");
    let text = learn(&setting(Mode::Hybrid, false), &many, None).to_toml(None).unwrap();
    assert!(!text.contains("access"), "{text}");
}

#[test]
fn a_command_of_several_lines_is_described_on_one() {
    let start = |text: &str| {
        event(What::Start(Box::new(apex_core::event::Start {
            version: 1,
            wall_time_ns: 0,
            mode: "isolation".to_owned(),
            profile: None,
            plan_sha256: String::new(),
            command: vec!["sh".to_owned(), "-c".to_owned(), text.to_owned()],
            level: apex_core::watch::Level::Full,
            sources: BTreeMap::new(),
        })))
    };
    let text =
        learn(&setting(Mode::Isolation, false), &[start("\n  echo a\n\n  echo b\n")], None).to_toml(None).unwrap();
    assert!(text.contains("description = \"learned from sh -c; echo a; echo b\""), "{text}");
}

fn any_event() -> impl Strategy<Value = Event> {
    let old = prop::sample::select(FILES);
    let new = prop::sample::select(NEW);
    let any = prop_oneof![4 => old.clone(), 1 => new.clone()];
    prop_oneof![
        6 => old.prop_map(|path| open(path, Access::Read, false)),
        2 => any.clone().prop_map(|path| open(path, Access::Write, true)),
        1 => prop::sample::select(FILES).prop_map(|path| open(path, Access::Write, false)),
        1 => prop::sample::select(FILES).prop_map(exec),
        1 => prop::sample::select(FILES).prop_map(|path| look(path, true)),
        1 => prop::sample::select(LINKS).prop_map(|(link, _)| look(&format!("{link}/a0"), true)),
        1 => new.prop_map(|path| event(What::Mkdir { path: path.into() })),
        1 => any.clone().prop_map(|path| event(What::Unlink { path: path.into() })),
        1 => (any.clone(), any).prop_map(|(from, to)| event(What::Rename { from: from.into(), to: to.into() })),
        1 => prop::sample::subsequence(vec!["read", "openat", "getrandom", "socket", "mount", "io_uring_setup", "kill", "mbind"], 1..4).prop_map(|names| calls(&names)),
    ]
}

fn any_mode() -> impl Strategy<Value = Mode> {
    prop::sample::select(vec![Mode::Isolation, Mode::Hybrid, Mode::Development])
}

/// Whether a refusal was told in the learned text as something that is not granted.
fn is_told(attempt: &Attempt, learned: &Learned) -> bool {
    let told = |text: &str| learned.asked.iter().any(|(what, _)| what.split(' ').any(|word| word == text));
    match attempt {
        Attempt::Path { path, .. } => {
            // What is made beneath a directory that cannot be made is told by that directory, what moves by either end.
            path.ancestors().any(|path| told(&path.display().to_string()))
        }
        Attempt::Syscall { name, .. } => told(name),
        Attempt::Address { .. } | Attempt::Limit { .. } => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_learned_policy_covers_its_run(mode in any_mode(), events in prop::collection::vec(any_event(), 0..40)) {
        // Files that one event removes or replaces are no longer what another one found: such records say two things at once.
        let setting = setting(mode, false);
        let learned = learn(&setting, &events, None);
        let text = learned.to_toml(None).unwrap();
        let plan = plan_of(&policy_of(&text));
        for attempt in refused(&plan, &events) {
            prop_assert!(is_told(&attempt, &learned), "{attempt:?}\n{text}\n{events:#?}");
        }
    }

    #[test]
    fn order_does_not_matter(mode in any_mode(), events in prop::collection::vec(any_event(), 0..30), seed in any::<u64>()) {
        let setting = setting(mode, false);
        let mut shuffled = events.clone();
        let mut state = seed | 1;
        for at in (1..shuffled.len()).rev() {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            shuffled.swap(at, (state >> 33) as usize % (at + 1));
        }
        let text = |events: &[Event]| learn(&setting, events, None).to_toml(None).unwrap();
        prop_assert_eq!(text(&events), text(&shuffled));
    }

    #[test]
    fn learning_the_same_again_grants_the_same(mode in any_mode(), events in prop::collection::vec(any_event(), 0..30)) {
        let setting = setting(mode, false);
        let first = learn(&setting, &events, None);
        let text = first.to_toml(None).unwrap();
        let previous = Previous::read(&text, "p.toml", &setting).unwrap();
        let second = learn(&setting, &events, Some(&previous));
        prop_assert_eq!(granted(&first), granted(&second));
        let merged = second.to_toml(Some((&text, "p.toml"))).unwrap();
        let grants = |text: &str| {
            let policy = policy_of(text);
            let paths = |grants: &[apex_core::policy::Grant]| grants.iter().map(|grant| grant.dest.clone()).collect::<BTreeSet<_>>();
            let files = &policy.filesystem;
            (paths(&files.read), paths(&files.write), paths(&files.exec), policy.syscalls.allow.into_keys().collect::<Vec<_>>())
        };
        prop_assert_eq!(grants(&text), grants(&merged));
    }

    #[test]
    fn no_run_lifts_the_ceiling(mode in any_mode(), events in prop::collection::vec(any_event(), 0..40)) {
        let setting = setting(mode, false);
        let learned = learn(&setting, &events, None);
        // The resolution holds the text against the ceiling and fails otherwise.
        let policy = policy_of(&learned.to_toml(None).unwrap());
        prop_assert_eq!(policy.mode, mode);
        let seen: BTreeMap<PathBuf, ()> = FILES.iter().chain(NEW).copied().chain(LINKS.iter().map(|(link, _)| *link)).map(|path| (PathBuf::from(path), ())).collect();
        for (_, path) in learned.files.keys() {
            prop_assert!(seen.keys().any(|seen| seen.starts_with(path)), "{} was not seen", path.display());
            let wide = ["/", "/home", HOME, "/etc", "/opt", "/srv", "/var", "/var/lib", "/var/log", "/usr"];
            prop_assert!(!wide.iter().any(|wide| Path::new(wide) == path) , "{}", path.display());
            let secret = ["/etc/shadow", "/etc/ssh", "/home/u/.ssh", "/home/u/project/.ssh"];
            prop_assert!(!secret.iter().any(|secret| path.starts_with(secret)), "{}", path.display());
        }
    }
}

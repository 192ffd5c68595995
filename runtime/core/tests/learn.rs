//! Learned policies: they cover what was seen, keep below the ceiling, and do not depend on order. The text merges and keeps a person's lines.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "learn/files.rs"]
mod files;
#[path = "learn/keys.rs"]
mod keys;
#[path = "learn/looks.rs"]
mod looks;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use apex_core::backtest::Backtest;
use apex_core::event::{Errno, Event, What};
use apex_core::host::{CgroupSupport, Host, PathFact};
use apex_core::learn::{ASKED_MAX, Learned, Learner, Outside, Place, Previous, Right, Setting, Stands};
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
    fn names(&self, _: &Path) -> Option<Vec<std::ffi::OsString>> {
        None
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
    with_flags(mode, Flags { net: net.then(|| "host".to_owned()), ..Flags::default() })
}

fn with_flags(mode: Mode, flags: Flags) -> Setting {
    let mut with = inputs(Some(mode), &all_groups());
    let base = resolve(&with, &mut |_: &Path| Ok(None)).unwrap();
    with.flags = flags;
    let (run, bounds) = resolve_for_learning(&with, &mut |_: &Path| Ok(None)).unwrap();
    Setting::new(Place { profile: None, home: Some(HOME.into()), cwd: CWD.into(), config: vec![] }, &base, &run, bounds)
}

fn event(what: What) -> Event {
    Event { time_ns: 1, sandbox: 1, pid: 2, ppid: 1, uid: 1000, comm: "job".to_owned(), what, error: None }
}

fn open(path: &str, access: Access, create: bool) -> Event {
    event(What::Open { path: path.to_owned(), access, create, truncate: false })
}

fn exec(path: &str) -> Event {
    event(What::program(path.to_owned(), vec![path.to_owned()], false))
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
        mail: None,
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
    let (args, stdin, stdin_pipe, stdout_pipe) = (vec![], None, None, None);
    event(What::Exec { path, args, asked, cut: false, fileless: false, stdin, stdin_pipe, stdout_pipe })
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

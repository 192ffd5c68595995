//! Names as they were asked for: links on the way, scripts, and what was only looked at.

use apex_core::learn::{GRANTS_MAX, LOOKS_MAX};
use apex_core::plan::Mount;

use super::*;

#[test]
fn links_on_the_way_are_names_and_their_end_is_granted_by_itself() {
    let file = (Right::Read, "/home/u/project/data/a0");
    let link = (Right::Name, "/home/u/project/current");
    let opened = open("/home/u/project/data/a0", Access::Read, false);
    check(Mode::Isolation, &[opened.clone(), look("/home/u/project/current/a0", true)], &[file, link]);
    let latest = (Right::Name, "/home/u/project/latest");
    check(Mode::Isolation, &[opened, look("/home/u/project/latest", true)], &[file, link, latest]);
    // The link itself, and `..` behind a link: what stands beside where it leads.
    check(Mode::Isolation, &[look("/home/u/project/latest", false)], &[latest]);
    let built = (Right::Read, "/home/u/project/build/x.o");
    let second = (Right::Name, "/home/u/project/second");
    // What is left by `..` has to be there.
    let left = (Right::Name, "/home/u/project/data");
    check(Mode::Isolation, &[look("/home/u/project/second/x.o", true)], &[built, link, left, second]);
    check(Mode::Isolation, &[look("/home/u/project/data/../build/x.o", true)], &[built, left]);
    // A directory that is granted shows its links.
    let tree = open("/home/u/project", Access::Read, false);
    check(Mode::Isolation, &[tree, look("/home/u/project/current/a0", true)], &[(Right::Read, "/home/u/project")]);
}

#[test]
fn a_circle_of_links_ends() {
    check(Mode::Isolation, &[look("/home/u/project/turns", true)], &[(Right::Name, "/home/u/project/turns")]);
}

#[test]
fn what_is_looked_at_is_granted_narrowly() {
    let text = check(
        Mode::Isolation,
        &[look("/home/u/project/data/a0", true), look("/home/u/project/build", true)],
        &[(Right::Read, "/home/u/project/data/a0"), (Right::Name, "/home/u/project/build")],
    );
    let text = text.to_toml(None).unwrap();
    assert!(text.contains("\"looked at by job, once in 1 of 1 runs\""), "{text}");
    let plan = plan_of(&policy_of(&text));
    assert!(plan.mounts.iter().any(|mount| matches!(mount, Mount::Dir { dest } if dest.ends_with("build"))));
    assert_eq!(refused(&plan, &[open("/home/u/project/build/x.o", Access::Read, false)]).len(), 1, "{text}");
    // Many looks are not their directory, where many reads are, and no name is cut.
    let many: Vec<Event> = (0..9).map(|n| look(&format!("/home/u/project/data/a{n}"), true)).collect();
    let learned = learn(&setting(Mode::Isolation, false), &many, None);
    assert_eq!(granted(&learned).len(), 9);
    check(Mode::Isolation, &[look("/opt/tool-1.2.3/bin/t", true)], &[(Right::Read, "/opt/tool-1.2.3/bin/t")]);
}

#[test]
fn looks_give_no_secrets_and_nothing_of_the_kernel() {
    let events = [
        look("/etc/shadow", true),
        look("/home/u/project/.ssh/key", true),
        look("/home/u/project/key", true),
        look("/proc/self/exe", false),
        look("/dev/null", true),
        look("/sys/kernel", true),
        look("/etc/passwd", true),
        look("/home/u/project/none", true),
        look("/home/u/project/main.py\u{1b}", true),
    ];
    let learned = check(Mode::Isolation, &events, &[(Right::Name, "/home/u/project/key")]);
    let asked: Vec<&str> = learned.asked.iter().map(|(what, _)| what.as_str()).collect();
    assert_eq!(asked, ["look at /etc/shadow", "look at /home/u/project/.ssh/key"]);
}

#[test]
fn a_file_that_was_looked_at_first_and_read_later_is_read() {
    let setting = setting(Mode::Isolation, false);
    let text = learn(&setting, &[look("/home/u/project/main.py", true)], None).to_toml(None).unwrap();
    let previous = Previous::read(&text, "p.toml", &setting).unwrap();
    let again = learn(&setting, &[look("/home/u/project/main.py", true)], Some(&previous));
    let text = again.to_toml(Some((&text, "p.toml"))).unwrap();
    assert!(text.contains("looked at by job, 2 times in 2 of 2 runs"), "{text}");
    let previous = Previous::read(&text, "p.toml", &setting).unwrap();
    let read = learn(&setting, &[open("/home/u/project/main.py", Access::Read, false)], Some(&previous));
    let text = read.to_toml(Some((&text, "p.toml"))).unwrap();
    assert!(text.contains("\"read by job, 3 times in 3 of 3 runs\"") && !text.contains("looked"), "{text}");
}

/// A host that has whatever is asked for.
struct Full;

impl Outside for Full {
    fn stands(&self, path: &Path) -> Stands {
        if path.to_str().is_some_and(|path| path.ends_with(".d")) { Stands::Dir } else { Stands::File }
    }
}

fn learn_full(events: impl IntoIterator<Item = Event>) -> Learned {
    let mut learner = Learner::new(setting(Mode::Isolation, false));
    events.into_iter().for_each(|event| learner.observe(&event));
    learner.finish(None, &Full)
}

/// Each in a directory of its own, which nothing joins.
fn scattered(n: usize) -> String {
    format!("/srv/r{}x{}/f", n % 100, n / 100)
}

#[test]
fn a_policy_has_room_for_so_many_looks() {
    let learned = learn_full((0..LOOKS_MAX + 5).map(|n| look(&scattered(n), true)));
    assert_eq!(learned.files.len(), LOOKS_MAX);
    assert_eq!(learned.asked, [("look at more files".to_owned(), "5 beyond 256".to_owned())]);
    // Names had no limit.
    let learned = learn_full((0..LOOKS_MAX + 5).map(|n| look(&format!("/home/u/project/data/b{n}.d"), true)));
    assert_eq!(learned.files.len(), LOOKS_MAX);
    assert_eq!(learned.asked, [("show more names".to_owned(), "5 beyond 256".to_owned())]);
    // A directory was left out for a file in it for which there was no room either.
    let files = (0..LOOKS_MAX).map(|n| look(&scattered(n), true));
    let late = ["/srv/z.d", "/srv/z.d/file"].map(|path| look(path, true));
    let learned = learn_full(files.chain(late));
    assert!(granted(&learned).contains(&(Right::Name, "/srv/z.d".to_owned())));
}

/// `git commit -a` took the files for which there was no room for deleted.
#[test]
fn directories_make_room_for_looks() {
    let file = |n: usize| look(&format!("/home/u/project/d{}.d/{n}", n % 20), true);
    let learned = learn_full((0..LOOKS_MAX + 5).map(file));
    let dir = (Right::Read, PathBuf::from("/home/u/project/d0.d"));
    assert!(learned.files.keys().all(|key| *key == dir || !key.1.starts_with(&dir.1)), "{:?}", granted(&learned));
    assert_eq!(learned.files.len(), LOOKS_MAX + 5 - 14 + 1);
    assert_eq!(learned.asked, []);
    let text = learned.to_toml(None).unwrap();
    assert!(text.contains("\"${CWD}/d0.d\", reason = \"listed by job, 14 times in 1 of 1 runs\""), "{text}");
    // No more than that, when it is learned again.
    let setting = setting(Mode::Isolation, false);
    let mut again = Learner::new(setting.clone());
    (0..LOOKS_MAX + 5).for_each(|n| again.observe(&file(n)));
    let again = again.finish(Some(&Previous::read(&text, "p.toml", &setting).unwrap()), &Full);
    assert_eq!(granted(&again), granted(&learned));
    assert!(
        again.to_toml(Some((&text, "p.toml"))).unwrap().contains("reason = \"listed by job, 14 times in 2 of 2 runs\"")
    );
    let learned = learn_full((0..2000).map(file));
    assert_eq!(granted(&learned), [(Right::Read, CWD.to_owned())]);
}

/// Each of them was compared with each: the prober was ended before it was through, and the lesson was lost.
#[test]
fn many_paths_take_no_longer_each() {
    const LOOKS: usize = 30_000;
    const MANY: usize = 6_000;
    let looks = (0..LOOKS).map(|n| look(&format!("/home/u/project/d{}/f{n}", n % 500), true));
    let names = (0..MANY).map(|n| look(&format!("/home/u/project/n{n}.d"), true));
    // Nothing joins files of /srv.
    let reads = (0..MANY).map(|n| open(&scattered(n), Access::Read, false));
    let refused = |n: usize| Event { error: Some(Errno::EACCES), ..open(&format!("/opt/x{n}"), Access::Read, false) };
    let learned = learn_full(looks.chain(names).chain(reads).chain((0..MANY).map(refused)));
    // The working directory besides.
    let more = format!("{} beyond {GRANTS_MAX}", MANY + 1 - GRANTS_MAX);
    assert_eq!(learned.files.len(), GRANTS_MAX);
    assert!(learned.asked.contains(&("read in more places".to_owned(), more)));
}

/// A policy with more rules than one may have could not be used, nor be learned into again.
#[test]
fn what_is_learned_is_never_more_than_a_policy_may_hold() {
    let at = |place: &str, n: usize| format!("{place}/r{}x{}/f", n % 100, n / 100);
    let of = |n: usize| {
        [
            open(&at("/srv", n), Access::Read, false),
            exec(&at("/opt", n)),
            look(&at("/etc", n), true),
            look(&format!("/etc/n{n}.d"), true),
            open(&at("/var/lib", n), Access::Write, false),
        ]
    };
    let learned = learn_full((0..2000).flat_map(of));
    assert_eq!(learned.asked.len(), 5, "{:?}", learned.asked);
    let text = learned.to_toml(None).unwrap();
    policy_of(&text);
}

/// What was told by its own path too counted twice.
#[test]
fn an_execution_through_a_link_counts_once() {
    let run = asked("/home/u/project/data/a0", "/home/u/project/latest");
    let learned = learn(&setting(Mode::Isolation, false), &[run.clone(), run], None);
    let times = |right: Right, path: &str| learned.files.get(&(right, path.into())).map(|need| need.seen.times);
    assert_eq!(times(Right::Exec, "/home/u/project/data/a0"), Some(2));
    assert_eq!(times(Right::Read, "/home/u/project/data/a0"), Some(2));
    assert_eq!(times(Right::Name, "/home/u/project/latest"), Some(2));
    assert_eq!(learned.left_out, 0);
}

#[test]
fn a_script_is_executed_and_read_and_so_is_a_script_that_interprets_it() {
    check(
        Mode::Isolation,
        &[asked("/usr/bin/python3", "/home/u/project/./run.sh")],
        &[
            (Right::Read, "/home/u/project/data/a0"),
            (Right::Read, "/home/u/project/run.sh"),
            (Right::Exec, "/home/u/project/data/a0"),
            (Right::Exec, "/home/u/project/run.sh"),
            (Right::Name, "/home/u/project/current"),
            (Right::Name, "/home/u/project/latest"),
        ],
    );
    // By its descriptor alone, or by a name of the kernel's.
    check(Mode::Isolation, &[asked("/usr/bin/python3", "/dev/fd/3"), asked("/usr/bin/python3", "")], &[]);
}

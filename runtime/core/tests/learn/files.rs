//! The file that is written: what merges, whose lines stay, what it tells, which directories it is for.

use super::*;

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

/// Nothing below it was granted any more.
#[test]
fn a_name_removed_by_hand_is_that_name_alone() {
    let setting = setting(Mode::Isolation, false);
    let name = look("/home/u/project/build", true);
    let text = learn(&setting, std::slice::from_ref(&name), None).to_toml(None).unwrap();
    let without: String =
        text.lines().filter(|line| !line.contains("{ path =")).map(|line| format!("{line}\n")).collect();
    assert_ne!(without, text);
    let previous = Previous::read(&without, "p.toml", &setting).unwrap();
    let learned =
        learn(&setting, &[name.clone(), open("/home/u/project/build/x.o", Access::Read, false)], Some(&previous));
    assert_eq!(granted(&learned), [(Right::Read, "/home/u/project/build/x.o".to_owned())], "{:?}", learned.asked);
    let again = learn(&setting, &[name], Some(&previous));
    assert_eq!(granted(&again), []);
    assert!(again.to_toml(None).unwrap().contains("look at /home/u/project/build (its line was removed by hand; "));
}

/// Each merge added another count of them.
#[test]
fn things_that_are_not_granted_are_counted_once() {
    let setting = setting(Mode::Isolation, false);
    let refused =
        |n: usize| Event { error: Some(Errno::EACCES), ..open(&format!("/srv/x{n:03}"), Access::Read, false) };
    let events: Vec<Event> = (0..ASKED_MAX + 5).map(refused).collect();
    let mut text = learn(&setting, &events, None).to_toml(None).unwrap();
    for _ in 0..2 {
        let previous = Previous::read(&text, "p.toml", &setting).unwrap();
        text = learn(&setting, &events, Some(&previous)).to_toml(Some((&text, "p.toml"))).unwrap();
    }
    assert_eq!(text.matches("# asked for and not granted: ").count(), ASKED_MAX + 1, "{text}");
    assert!(text.ends_with("# asked for and not granted: 5 other things\n"), "{text}");
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
    check((isolation, Some("secrets")), (isolation, Some("secrets")), None);
    let words = "p.toml: learned with profile python, this run has profile secrets; learn into another file";
    check((isolation, Some("python")), (isolation, Some("secrets")), Some(words));
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

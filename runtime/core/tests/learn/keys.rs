//! Keys that lie in what is granted, and what of the run is not copied.

use apex_core::learn::{DENIED_MAX, Search};

use super::*;

/// A host of these files alone.
struct Tree {
    files: Vec<PathBuf>,
    is_cut: bool,
}

impl Tree {
    /// Eight files that become the grant of `dir`, and `more` below it.
    fn new(dir: &str, more: &[&str]) -> Tree {
        let files = (0..8).map(|n| format!("f{n}")).chain(more.iter().map(|&name| name.to_owned()));
        Tree { files: files.map(|name| Path::new(dir).join(name)).collect(), is_cut: false }
    }

    fn search(&self, is_wanted: impl Fn(&Path) -> bool) -> Search {
        let all = self.files.iter().flat_map(|file| file.ancestors()).filter(|path| is_wanted(path));
        let found: BTreeSet<PathBuf> = all.map(Path::to_owned).collect();
        Search { found: found.into_iter().collect(), is_cut: self.is_cut }
    }
}

impl Outside for Tree {
    fn stands(&self, path: &Path) -> Stands {
        match self.files.iter().find(|file| file.starts_with(path)) {
            Some(file) if file == path => Stands::File,
            Some(_) => Stands::Dir,
            None => Stands::Nothing,
        }
    }

    fn named_below(&self, dir: &Path, names: &[&str]) -> Search {
        let is_named = |path: &Path| path.file_name().is_some_and(|name| names.iter().any(|known| name == *known));
        self.search(|path| path.starts_with(dir) && path != dir && is_named(path))
    }

    fn entries(&self, dir: &Path) -> Search {
        self.search(|path| path.parent() == Some(dir))
    }
}

/// What is learned where eight files of `inside` are read, and `more` of it.
fn learn_tree(setting: &Setting, tree: &Tree, inside: &str, more: &[Event]) -> Learned {
    let mut learner = Learner::new(setting.clone());
    let reads = (0..8).map(|n| open(&format!("{inside}/f{n}"), Access::Read, false));
    reads.chain(more.iter().cloned()).for_each(|event| learner.observe(&event));
    learner.finish(None, tree)
}

#[track_caller]
fn expect_denied(learned: &Learned, expected: &[&str]) {
    let denied: Vec<&str> = learned.keys.denied.keys().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(denied, expected);
    let text = learned.to_toml(None).unwrap();
    let policy = policy_of(&text);
    for path in expected {
        assert!(policy.filesystem.deny.iter().any(|deny| deny.path == Path::new(path)), "{path}\n{text}");
    }
}

/// They were looked for at the path inside, where the host has other things or nothing.
#[test]
fn a_piece_under_another_name_is_looked_at_where_it_lies() {
    let setting = with_flags(Mode::Isolation, Flags { ro: vec!["/home/u/other:/data".into()], ..Flags::default() });
    let tree = Tree::new("/home/u/other", &[".netrc", "sub/.ssh/id"]);
    let learned = learn_tree(&setting, &tree, "/data", &[look("/data/sub/.ssh", true)]);
    assert!(granted(&learned).contains(&(Right::Read, "/data".to_owned())), "{:?}", learned.asked);
    expect_denied(&learned, &["/home/u/other/.netrc", "/home/u/other/sub/.ssh"]);
}

#[test]
fn sockets_that_command_the_host_are_denied() {
    let dir = "/home/u/project/data";
    let learned = learn_tree(&setting(Mode::Isolation, false), &Tree::new(dir, &["run/docker.sock"]), dir, &[]);
    expect_denied(&learned, &["/home/u/project/data/run/docker.sock"]);
}

/// The whole directory was denied: what was learned of it was refused, and a grant in it stopped the start.
#[test]
fn keys_beside_what_was_used_are_denied_one_by_one() {
    let dir = "/home/u/project/data";
    let tree = Tree::new(dir, &[".ssh/id", ".ssh/id.pub", ".ssh/known_hosts", ".ssh/old/id", ".aws/key"]);
    let used = [
        open(&format!("{dir}/.ssh/id.pub"), Access::Read, false),
        open(&format!("{dir}/.ssh/known_hosts"), Access::Write, false),
    ];
    let learned = learn_tree(&setting(Mode::Isolation, false), &tree, dir, &used);
    let wanted = (Right::Write, "/home/u/project/data/.ssh/known_hosts".to_owned());
    assert!(granted(&learned).contains(&wanted), "{:?}", learned.asked);
    let keys = [".aws", ".ssh/id", ".ssh/old"].map(|name| format!("{dir}/{name}"));
    expect_denied(&learned, &keys.each_ref().map(String::as_str));
}

#[test]
fn a_search_that_was_cut_is_told() {
    let dir = "/home/u/project/data";
    let setting = setting(Mode::Isolation, false);
    let tree = Tree { is_cut: true, ..Tree::new(dir, &[]) };
    let text = learn_tree(&setting, &tree, dir, &[]).to_toml(None).unwrap();
    let line = format!("# not searched to its end for keys; deny by hand what must stay hidden: {dir}\n");
    assert!(text.contains(&line), "{text}");
    // Told of the last run alone.
    let whole = learn_tree(&setting, &Tree::new(dir, &[]), dir, &[]);
    let merged = whole.to_toml(Some((&text, "p.toml"))).unwrap();
    assert!(!merged.contains("not searched"), "{merged}");
}

#[test]
fn keys_beyond_what_a_policy_may_deny_are_told() {
    let dir = "/home/u/project/data";
    let keys: Vec<String> = (0..1500).map(|n| format!("k{n}/.netrc")).collect();
    let tree = Tree::new(dir, &keys.iter().map(String::as_str).collect::<Vec<_>>());
    let learned = learn_tree(&setting(Mode::Isolation, false), &tree, dir, &[]);
    assert_eq!(learned.keys.denied.len(), DENIED_MAX);
    assert!(learned.keys.unsearched.contains(Path::new(dir)));
    policy_of(&learned.to_toml(None).unwrap());
}

/// A grant below what the file denies stops the start.
#[test]
fn what_the_file_denies_is_not_granted_anew() {
    let setting = setting(Mode::Isolation, false);
    let text = "[filesystem]\ndeny = [{ path = \"${CWD}/data\", reason = \"mine\" }]\n";
    let previous = Previous::read(text, "p.toml", &setting).unwrap();
    let learned = learn(&setting, &[open("/home/u/project/data/a0", Access::Read, false)], Some(&previous));
    let text = learned.to_toml(Some((text, "p.toml"))).unwrap();
    assert!(text.contains("read /home/u/project/data/a0 (the file denies it; "), "{text}");
    plan_of(&policy_of(&text));
}

/// The file granted what it denied, and could not be used.
#[test]
fn what_is_denied_later_is_granted_no_more() {
    let events = [open("/home/u/project/data/a0", Access::Read, false)];
    let other = open("/home/u/project/main.py", Access::Read, false);
    let free = setting(Mode::Isolation, false);
    let text = learn(&free, &events, None).to_toml(None).unwrap();
    let flags = Flags { deny: vec!["data".into()], ..Flags::default() };
    let by_hand = text.replace("[filesystem]\n", "[filesystem]\ndeny = [\"${CWD}/data\"]\n");
    for (text, setting) in [(text, with_flags(Mode::Isolation, flags)), (by_hand, free)] {
        let previous = Previous::read(&text, "p.toml", &setting).unwrap();
        let merged =
            learn(&setting, std::slice::from_ref(&other), Some(&previous)).to_toml(Some((&text, "p.toml"))).unwrap();
        assert!(merged.contains("/data\"") && !merged.contains("data/a0"), "{merged}");
        plan_of(&policy_of(&merged));
    }
}

/// A learned policy is read by others, and values given to a run may be secrets.
#[test]
fn values_of_variables_are_not_copied() {
    let flags = Flags { env: vec!["TOKEN=s3cret".to_owned()], pass_env: vec!["CC".to_owned()], ..Flags::default() };
    let setting = with_flags(Mode::Isolation, flags);
    assert!(!serde_json::to_string(&setting).unwrap().contains("s3cret"));
    let text = learn(&setting, &[], None).to_toml(None).unwrap();
    assert!(!text.contains("s3cret") && text.contains("let it be passed: TOKEN\n"), "{text}");
    let pass = policy_of(&text).environment.pass;
    assert!(["CC", "TOKEN"].iter().all(|name| pass.iter().any(|known| known == name)), "{text}");
}

/// Whatever lies in a directory `profiles` was taken for the list of secrets that every learned policy stands on.
#[test]
fn another_file_by_the_name_of_the_secrets_is_none() {
    #[track_caller]
    fn check(config: Option<&str>, expected: &[&str]) {
        let config = config.map(PathBuf::from);
        let file = PathBuf::from("/srv/profiles/secrets.toml");
        let load = |path: &Path| Ok((path == file).then(|| "[filesystem]\ndeny = [\"/srv/www\"]\n".to_owned()));
        let mut with = Inputs { user_config: config.clone(), ..inputs(None, &all_groups()) };
        let base = resolve(&with, &mut { load }).unwrap();
        with.policy_file = config.is_none().then(|| file.clone());
        let (run, bounds) = resolve_for_learning(&with, &mut { load }).unwrap();
        let place = Place { profile: None, home: None, cwd: CWD.into(), config: config.into_iter().collect() };
        let denied = Setting::new(place, &base, &run, bounds).given.deny;
        assert_eq!(denied, expected.iter().map(PathBuf::from).collect::<Vec<_>>());
    }
    check(None, &["/srv/www"]);
    check(Some("/srv"), &[]);
}

//! Plans for an invented host: where a program is found and starts, and what denied names become.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use apex_core::host::{CgroupSupport, Host, PathFact, links};
use apex_core::plan::{BindAccess, CgroupPlan, Kind, Mount, Plan, Request};
use apex_core::planner::{self, PlanError};
use apex_core::policy::{Flags, Inputs, Mode, resolve};

const HOME: &str = "/home/ann";

/// Files and directories; the directories above them are there too.
struct Invented {
    cwd: PathBuf,
    paths: BTreeMap<PathBuf, PathFact>,
    /// Where apexd listens for messages.
    mail: Option<PathBuf>,
}

impl Invented {
    fn new(cwd: &str, files: &[&str]) -> Self {
        let mut paths = BTreeMap::new();
        let system = ["/usr/bin/true", "/usr/share/zoneinfo/UTC"];
        for file in system.iter().chain(files) {
            paths.insert(PathBuf::from(file), PathFact::File);
        }
        let dirs = paths.keys().flat_map(|path| path.ancestors().skip(1)).chain(Path::new(cwd).ancestors());
        let dirs: Vec<PathBuf> = dirs.map(Path::to_owned).collect();
        paths.extend(dirs.into_iter().map(|dir| (dir, PathFact::Dir)));
        paths.insert("/etc/localtime".into(), PathFact::Symlink("/usr/share/zoneinfo/UTC".into()));
        Invented { cwd: cwd.into(), paths, mail: None }
    }

    fn plan(&self, mode: Mode, home: &str, flags: Flags, argv: &str, workdir: Option<&str>) -> Result<Plan, PlanError> {
        self.plan_of(Inputs { flags, ..self.inputs(mode, home) }, "", argv, workdir)
    }

    /// With a policy file that says nothing.
    fn plan_by(&self, policy: &str, flags: Flags) -> Result<Plan, PlanError> {
        let inputs = Inputs { policy_file: Some(policy.into()), flags, ..self.inputs(Mode::Isolation, HOME) };
        self.plan_of(inputs, "", "true", None)
    }

    /// With a policy file.
    fn plan_with(&self, text: &str) -> Result<Plan, PlanError> {
        let inputs = Inputs { policy_file: Some("/p.toml".into()), ..self.inputs(Mode::Isolation, HOME) };
        self.plan_of(inputs, text, "true", None)
    }

    fn inputs(&self, mode: Mode, home: &str) -> Inputs<'static> {
        let groups: Vec<&str> = apex_core::seccomp::groups::iter().map(|group| group.name).collect();
        Inputs {
            mode: Some(mode),
            profile: None,
            policy_file: None,
            flags: Flags::default(),
            home: Some(home.into()),
            cwd: self.cwd.clone(),
            tmpdir: None,
            system_config: None,
            user_config: None,
            groups: Vec::leak(groups),
        }
    }

    fn plan_of(&self, inputs: Inputs<'_>, text: &str, argv: &str, workdir: Option<&str>) -> Result<Plan, PlanError> {
        let load = |path: &Path| Ok((Some(path) == inputs.policy_file.as_deref()).then(|| text.to_owned()));
        let policy = resolve(&inputs, &mut { load }).unwrap();
        let request = Request {
            argv: vec![argv.into()],
            workdir: workdir.map(PathBuf::from),
            fds: Vec::new(),
            on_terminal: false,
            record: false,
            watch: apex_core::watch::Level::Off,
            mail: self.mail.clone(),
        };
        planner::build(&policy, &request, self)
    }
}

impl Host for Invented {
    fn path(&self, path: &Path, _follow: bool) -> PathFact {
        self.paths.get(path).cloned().unwrap_or(PathFact::Missing)
    }
    fn real(&self, path: &Path) -> PathBuf {
        let target = |place: &Path| match self.paths.get(place) {
            Some(PathFact::Symlink(target)) => Some(target.clone()),
            _ => None,
        };
        links(path, target).pop().map_or(path.to_owned(), |link| link.leads_to)
    }
    fn names(&self, dir: &Path) -> Option<Vec<OsString>> {
        let names = self.paths.keys().filter(|path| path.parent() == Some(dir)).filter_map(|path| path.file_name());
        Some(names.map(OsString::from).collect())
    }
    fn landlock_abi(&self) -> u32 {
        6
    }
    fn cgroup(&self, _plan: &CgroupPlan) -> CgroupSupport {
        CgroupSupport::V1 { controllers: vec!["memory".into(), "pids".into(), "cpu".into()] }
    }
    fn has_time_namespaces(&self) -> bool {
        true
    }
    fn gives_host_ids(&self) -> bool {
        self.caller().0 == 0
    }

    fn caller(&self) -> (u32, u32) {
        (1001, 1001)
    }
    fn env(&self, name: &str) -> Option<String> {
        (name == "PATH").then(|| "/usr/bin".to_owned())
    }
    fn cwd(&self) -> PathBuf {
        self.cwd.clone()
    }
}

fn ro(path: &str) -> Flags {
    Flags { ro: vec![path.into()], ..Flags::default() }
}

fn rw(path: &str) -> Flags {
    Flags { rw: vec![path.into()], ..Flags::default() }
}

fn denied(plan: &Plan) -> Vec<(String, Option<Kind>, Vec<PathBuf>)> {
    let mask = |mount: &Mount| match mount {
        Mount::Deny { dest, kind, pins, .. } => Some((dest.display().to_string(), *kind, pins.clone())),
        _ => None,
    };
    plan.mounts.iter().filter_map(mask).collect()
}

#[test]
fn a_command_starts_in_the_directory_that_leads_to_a_grant() {
    let host = Invented::new("/home/ann/job", &["/home/ann/job/data"]);
    let plan = host.plan(Mode::Isolation, HOME, ro("/home/ann/job/data"), "true", None).unwrap();
    assert_eq!(plan.command.workdir[0], Path::new("/home/ann/job"));
    let plan = host.plan(Mode::Isolation, HOME, Flags::default(), "true", None).unwrap();
    assert_eq!(plan.command.workdir[0], Path::new("/tmp"));
}

/// The host has a file of the same name where the sandbox shows another tree: that file must not come in.
#[test]
fn a_relative_command_is_found_from_where_it_starts() {
    let host = Invented::new(HOME, &["/srv/tool/run", "/job/run"]);
    let plan = host.plan(Mode::Isolation, HOME, rw("/srv/tool:/job"), "./run", Some("/job")).unwrap();
    assert_eq!(plan.command.candidates, [PathBuf::from("/job/run")]);
    let shown = |mount: &Mount| matches!(mount, Mount::Bind { source, .. } if source == Path::new("/job/run"));
    assert!(!plan.mounts.iter().any(shown), "{:?}", plan.mounts);
    assert_eq!(plan.command.argv, [OsString::from("./run")]);
}

#[test]
fn a_deny_outweighs_the_conveniences_of_the_mode() {
    let host = Invented::new(HOME, &[]);
    let flags = Flags { deny: vec!["/usr/share".into()], ..Flags::default() };
    let plan = host.plan(Mode::Isolation, HOME, flags, "true", None).unwrap();
    assert!(denied(&plan).iter().any(|(dest, ..)| dest == "/usr/share"));
    assert!(
        !plan.mounts.iter().any(|mount| matches!(mount, Mount::Symlink { dest, .. } if dest.ends_with("localtime")))
    );
}

/// The home directory lies in the private /tmp, beside the working directory: the mask must not cover the latter.
#[test]
fn a_denied_name_in_tmp_leaves_the_way_to_grants_open() {
    let host = Invented::new("/tmp/run/repo", &[]);
    let plan = host.plan(Mode::Development, "/tmp/run/home", Flags::default(), "true", None).unwrap();
    let masks = denied(&plan);
    assert!(masks.iter().any(|(dest, ..)| dest == "/tmp/run/home"), "{masks:?}");
    assert!(!masks.iter().any(|(dest, ..)| dest == "/tmp/run"), "{masks:?}");
    let pins = masks.iter().flat_map(|(.., pins)| pins).filter(|pin| *pin == Path::new("/tmp/run")).count();
    assert_eq!(pins, 1, "a directory on the way is pinned once: {masks:?}");
}

/// With a file another sandbox holds `~/.config`, under which a name is denied.
#[test]
fn a_file_in_the_way_of_a_denied_name_is_denied_itself() {
    let host = Invented::new("/srv/job", &["/home/ann/.config"]);
    let plan = host.plan(Mode::Development, HOME, Flags::default(), "true", None).unwrap();
    let mask = denied(&plan).into_iter().find(|(dest, ..)| dest.starts_with("/home/ann/.config")).unwrap();
    assert_eq!(mask, ("/home/ann/.config".to_owned(), Some(Kind::File), Vec::new()));
}

/// An empty network of its own has nobody to reach, and servers on its loopback are ordinary work.
#[test]
fn loopback_of_an_own_network_is_open() {
    let plan = Invented::new(HOME, &[]).plan(Mode::Isolation, HOME, Flags::default(), "true", None).unwrap();
    assert!(plan.landlock.is_some_and(|landlock| !landlock.tcp_refused));
}

/// Each bind that stands there because of the policy's own file.
fn kept(plan: &Plan) -> Vec<(String, bool, BindAccess)> {
    let bind = |mount: &Mount| match mount {
        Mount::Bind { source, dest, access, origin, .. } if origin.source == "the policy" => {
            assert_eq!(source, dest);
            Some((dest.display().to_string(), mount == plan.mounts.last().unwrap(), *access))
        }
        _ => None,
    };
    plan.mounts.iter().filter_map(bind).collect()
}

#[test]
fn a_policy_is_read_only_where_its_command_may_write() {
    let policy = "/home/ann/job/conf/apex/p.toml";
    let host = Invented::new("/home/ann/job", &["/home/ann/job/data", policy]);
    let check = |flags: Flags, expected: &[(&str, bool, BindAccess)]| {
        let plan = host.plan_by(policy, flags).unwrap();
        let expected: Vec<_> =
            expected.iter().map(|(path, last, access)| ((*path).to_owned(), *last, *access)).collect();
        assert_eq!(kept(&plan), expected);
    };
    check(
        rw("/home/ann/job"),
        &[
            ("/home/ann/job/conf", false, BindAccess::Write),
            ("/home/ann/job/conf/apex", false, BindAccess::Write),
            (policy, true, BindAccess::Read),
        ],
    );
    check(rw(policy), &[(policy, true, BindAccess::Read)]);
    check(rw("/home/ann/job/data"), &[]);
    check(ro("/home/ann/job"), &[]);
}

/// The link itself, one in the middle of a chain, and one for a directory on the way.
#[test]
fn a_policy_behind_a_link_that_its_command_could_replace_is_refused() {
    let mut host = Invented::new("/home/ann/job", &["/home/ann/job/data", "/home/ann/safe/p.toml", "/etc/x"]);
    for (link, target) in [
        ("/home/ann/job/p.toml", "/home/ann/safe/p.toml"),
        ("/etc/p.toml", "/home/ann/job/p.toml"),
        ("/home/ann/job/conf", "/home/ann/safe"),
    ] {
        host.paths.insert(link.into(), PathFact::Symlink(target.into()));
    }
    for (policy, link) in [
        ("/home/ann/job/p.toml", "/home/ann/job/p.toml"),
        ("/etc/p.toml", "/home/ann/job/p.toml"),
        ("/home/ann/job/conf/p.toml", "/home/ann/job/conf"),
    ] {
        let plan = |flags| host.plan_by(policy, flags);
        let refused = plan(rw("/home/ann/job")).map(|_| ()).unwrap_err().to_string();
        let words = format!("{policy}: {link} is a symbolic link");
        assert!(refused.starts_with(&words) && refused.ends_with("name /home/ann/safe/p.toml itself"), "{refused}");
        assert_eq!(kept(&plan(rw("/home/ann/job/data")).unwrap()), []);
    }
}

/// The directory of the policy is a mount point already: nothing above it is pinned for a deny.
#[test]
fn a_denied_directory_of_the_policy_needs_no_pins() {
    let policy = "/home/ann/job/conf/p.toml";
    let host = Invented::new("/home/ann/job", &[policy]);
    let flags = Flags { deny: vec!["/home/ann/job/conf".into()], ..rw("/home/ann/job") };
    let masks = denied(&host.plan_by(policy, flags).unwrap());
    let mask = masks.iter().find(|(dest, ..)| dest == "/home/ann/job/conf");
    assert_eq!(mask.map(|(_, kind, pins)| (*kind, pins.clone())), Some((Some(Kind::Dir), Vec::new())), "{masks:?}");
}

/// What is there is read-only; what is not cannot come into being.
#[test]
fn the_users_modes_and_profiles_are_not_written() {
    let config = "/home/ann/.config/apex";
    let plan = |mode, file: &str, flags| {
        let host = Invented::new("/home/ann/job", &["/home/ann/job/data", "/etc/x", file]);
        let (system_config, user_config) = (Some("/etc/apex".into()), Some(config.into()));
        let inputs = Inputs { system_config, user_config, flags, ..host.inputs(mode, HOME) };
        host.plan_of(inputs, "", "true", None).unwrap()
    };
    let there = plan(Mode::Isolation, "/home/ann/.config/apex/modes/hybrid.toml", rw(HOME));
    let expected =
        [("/home/ann/.config".to_owned(), false, BindAccess::Write), (config.to_owned(), true, BindAccess::Read)];
    assert_eq!((kept(&there), denied(&there)), (expected.to_vec(), Vec::new()));
    let missing = |mode, flags| plan(mode, "/home/ann/.config/other", flags);
    let held = missing(Mode::Isolation, rw(HOME));
    let pins = vec![PathBuf::from("/home/ann/.config")];
    assert_eq!((kept(&held), denied(&held)), (Vec::new(), vec![(config.to_owned(), None, pins)]));
    for elsewhere in [rw("/home/ann/job"), ro(HOME)].map(|flags| missing(Mode::Isolation, flags)) {
        assert_eq!((kept(&elsewhere), denied(&elsewhere)), (Vec::new(), Vec::new()));
    }
    let system = denied(&missing(Mode::Development, rw("/etc")));
    assert!(!system.iter().any(|(dest, ..)| dest == "/etc/apex"), "{system:?}");
}

/// Development shows the whole host, but /tmp is the sandbox's own there.
#[test]
fn a_grant_below_a_private_directory_is_not_covered_by_the_root() {
    let host = Invented::new("/home/ann/job", &["/tmp/job/data", "/home/ann/job/data"]);
    let count = |path: &str| {
        let plan = host.plan(Mode::Development, HOME, ro(path), "true", None).unwrap();
        plan.mounts.iter().filter(|mount| matches!(mount, Mount::Bind { dest, .. } if dest == Path::new(path))).count()
    };
    assert_eq!((count("/tmp/job"), count("/home/ann/job")), (1, 0));
}

#[test]
fn a_name_is_a_link_or_an_empty_directory_and_gives_nothing_more() {
    let mut host = Invented::new(HOME, &["/srv/a/b/x", "/srv/a/file", "/opt/t/x"]);
    for (link, target) in [("/srv/a/l", "b/x"), ("/srv/way", "/etc"), ("/opt/t/l", "x")] {
        host.paths.insert(link.into(), PathFact::Symlink(target.into()));
    }
    let row = |path: &str| format!("{{ path = \"{path}\", optional = true }}, ");
    let names = ["/srv/a/l", "/srv/a/b", "/srv/a/file", "/srv/none", "/srv/way", "/opt/t/l", "/etc"].map(row);
    let text = format!(
        "[filesystem]\nread = [\"/opt/t\", {{ path = \"/srv/a/file\", dest = \"/srv/way/file\" }}]\nnames = [{}]\n",
        names.concat()
    );
    let plan = host.plan_with(&text).unwrap();
    let link = |mount: &Mount| match mount {
        Mount::Symlink { dest, target } => Some((dest.clone(), target.clone())),
        _ => None,
    };
    let links: Vec<_> =
        plan.mounts.iter().filter_map(link).filter(|(dest, _)| dest.parent() != Some(Path::new("/"))).collect();
    // Not where a grant shows it, and not where something is mounted below: that would be made through the link.
    assert_eq!(
        links,
        [
            (PathBuf::from("/etc/localtime"), PathBuf::from("/usr/share/zoneinfo/UTC")),
            ("/srv/a/l".into(), "b/x".into())
        ]
    );
    let dirs: Vec<_> = plan.mounts.iter().filter(|mount| matches!(mount, Mount::Dir { .. })).collect();
    assert_eq!(dirs, [&Mount::Dir { dest: "/srv/a/b".into() }]);
    let rules = &plan.landlock.unwrap().rules;
    assert!(rules.iter().all(|rule| !rule.path.starts_with("/srv/a")), "{rules:?}");
}

#[test]
fn a_denied_name_and_the_name_of_a_file_are_refused() {
    let host = Invented::new(HOME, &["/srv/a/file"]);
    let denied = host.plan_with("[filesystem]\nnames = [\"/srv/a\"]\ndeny = [\"/srv\"]\n");
    assert!(matches!(denied, Err(PlanError::Denied { .. })), "{denied:?}");
    let file = host.plan_with("[filesystem]\nnames = [\"/srv/a/file\"]\n");
    assert!(matches!(file, Err(PlanError::RefusedPath { .. })), "{file:?}");
}

fn at(level: &str, flags: Flags) -> Flags {
    Flags { level: Some(level.to_owned()), ..flags }
}

/// The path of each rule with what it gives.
fn given(plan: &Plan) -> BTreeMap<String, String> {
    let rules = plan.landlock.as_ref().map_or(&[][..], |landlock| &landlock.rules);
    let rights = |rule: &apex_core::plan::LandlockRule| {
        let flags = [(rule.list, 'l'), (rule.read, 'r'), (rule.write, 'w'), (rule.exec, 'x'), (rule.ioctl, 'i')];
        flags.into_iter().filter(|(on, _)| *on).map(|(_, letter)| letter).collect()
    };
    rules.iter().map(|rule| (rule.path.display().to_string(), rights(rule))).collect()
}

#[test]
fn the_hosts_tree_is_granted_around_what_is_denied() {
    let files = ["/home/ann/.ssh/id", "/home/ann/notes", "/home/ann/job/x", "/srv/data", "/dev/sda", "/proc/version"];
    let host = Invented::new("/home/ann/job", &files);
    let plan = host.plan(Mode::Development, HOME, at("partial", Flags::default()), "true", None).unwrap();
    assert_eq!((plan.mounts.len(), plan.withheld.clone()), (0, vec![PathBuf::from("/home/ann/.ssh")]));
    let rules = given(&plan);
    let of = |path: &str| rules.get(path).map(String::as_str);
    assert_eq!(of("/home/ann/notes"), Some("lrx"));
    assert_eq!(of("/home/ann/job"), Some("lrwx"));
    assert_eq!((of("/usr"), of("/srv"), of("/proc")), (Some("lrx"), Some("lrx"), Some("lrx")));
    assert_eq!((of("/dev/null"), of("/dev/sda"), of("/dev")), (Some("lrwi"), None, None));
    for denied in ["/", "/home", "/home/ann", "/home/ann/.ssh", "/home/ann/.ssh/id"] {
        assert_eq!(of(denied), None, "{denied}");
    }
    for layer in apex_core::layer::Layer::ALL {
        assert_eq!(plan.has(layer), !apex_core::policy::IsolationLevel::Partial.leaves_out(layer), "{layer}");
    }
}

#[test]
fn what_is_not_there_yet_is_in_no_rule_either() {
    let host = Invented::new("/job", &["/srv/data/one", "/srv/data/two"]);
    let flags = Flags { deny: vec!["/srv/data/later/key".into()], ..ro("/srv/data") };
    let plan = host.plan(Mode::Hybrid, HOME, at("partial", flags), "true", None).unwrap();
    let rules = given(&plan);
    assert!(rules.contains_key("/srv/data/one") && rules.contains_key("/srv/data/two"), "{rules:?}");
    assert!(!rules.contains_key("/srv/data"), "{rules:?}");
}

#[test]
fn what_landlock_cannot_say_is_refused() {
    let host = Invented::new("/job", &["/srv/data/key", "/job/x"]);
    let plan = |flags: Flags| host.plan(Mode::Development, HOME, at("partial", flags), "true", None);
    let flags = Flags { deny: vec!["/srv/data/key".into()], ..rw("/srv/data") };
    assert!(matches!(plan(flags), Err(PlanError::Inexpressible { .. })));
    let flags = Flags { deny: vec!["/srv".into()], ..ro("/srv/data") };
    assert!(matches!(plan(flags), Err(PlanError::Denied { .. })));
    // What the next run goes by is not for this one to write, and no mount can keep it.
    let inputs = Inputs {
        policy_file: Some("/job/p.toml".into()),
        flags: at("partial", Flags::default()),
        ..host.inputs(Mode::Development, HOME)
    };
    assert!(matches!(host.plan_of(inputs, "", "true", None), Err(PlanError::Inexpressible { .. })));
    let none = host.plan(Mode::Development, HOME, at("none", Flags::default()), "true", None).unwrap();
    assert!(none.landlock.is_none() && none.seccomp.is_none() && none.mounts.is_empty());
    assert!(none.given_up.iter().any(|words| words.starts_with("/home/ann/.ssh is denied")), "{:?}", none.given_up);
}

#[test]
fn nothing_opens_a_socket_with_a_name_at_partial() {
    use apex_core::seccomp::{Abi, Verdict};
    let host = Invented::new("/job", &["/job/x"]);
    let table = |level: &str| {
        host.plan(Mode::Development, HOME, at(level, Flags::default()), "true", None).unwrap().seccomp.unwrap()
    };
    let (full, partial) = (table("full"), table("partial"));
    let judge = |table: &apex_core::seccomp::Table, abi: Abi, call: &str, args: [u64; 6]| {
        table.judge(abi, abi.call_number(call).unwrap(), &args)
    };
    const INET: [u64; 6] = [2, 1, 0, 0, 0, 0];
    for abi in full.abis().collect::<Vec<_>>() {
        assert_eq!(judge(&full, abi, "socket", [1, 1, 0, 0, 0, 0]), Verdict::Allow);
        for family in [1, 1 << 32 | 1, 17, 38] {
            let verdict = judge(&partial, abi, "socket", [family, 1, 0, 0, 0, 0]);
            assert_eq!(verdict, Verdict::Refuse(97), "{family} of {abi:?}");
        }
        assert_eq!(judge(&partial, abi, "socket", INET), Verdict::Allow);
        assert_eq!(judge(&partial, abi, "socketpair", [1, 1, 0, 0, 0, 0]), Verdict::Allow);
        assert!(matches!(judge(&partial, abi, "io_uring_setup", [0; 6]), Verdict::Refuse(_)));
        if abi.call_number("socketcall").is_some() {
            assert!(matches!(judge(&partial, abi, "socketcall", [1, 0, 0, 0, 0, 0]), Verdict::Refuse(_)));
        }
    }
}

#[test]
fn mailboxes_need_apexd_and_have_its_socket_in_dev() {
    const POLICY: &str =
        "[[mailboxes]]\nname = \"jobs\"\nsend = true\n[environment]\nset = { APEX_MAIL = \"elsewhere\" }\n";
    let mut host = Invented::new(HOME, &["/state/mail/socket", "/srv/x"]);
    assert_eq!(host.plan_with(POLICY), Err(PlanError::NoMail { name: "jobs".to_owned() }));
    host.mail = Some("/state/mail".into());
    let plan = host.plan_with(POLICY).unwrap();
    let is_mail = |mount: &&Mount| matches!(mount, Mount::Bind { source, .. } if source == Path::new("/state/mail"));
    let Some(Mount::Bind { dest, access, exec, idmap, .. }) = plan.mounts.iter().find(is_mail) else {
        panic!("{:?}", plan.mounts)
    };
    assert_eq!((dest.as_path(), *access, *exec, *idmap), (Path::new("/dev/mail"), BindAccess::Read, false, false));
    let variables: Vec<_> = plan.command.env.iter().filter(|pair| pair.to_string_lossy().contains("MAIL")).collect();
    assert_eq!(variables, ["APEX_MAIL=/dev/mail/socket"]);
    assert_eq!(plan.mailboxes.len(), 1);
    let plan = host.plan_with("").unwrap();
    assert!(!plan.mounts.iter().any(|mount| is_mail(&mount)), "nothing is shown that nobody asked for");
    host.mail = Some("/state/none".into());
    assert!(matches!(host.plan_with(POLICY), Err(PlanError::RefusedPath { .. })));
}

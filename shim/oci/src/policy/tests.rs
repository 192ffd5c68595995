//! Bundles are narrowed as data; what the init puts on itself is tried in a child that stands in a tree of its own.

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};

use apex_sys::process::{self, Ended};
use apex_sys::{Errno, prctl, probe};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::*;

/// A bundle in a directory of its own, which is gone with it.
struct Bundle {
    dir: PathBuf,
    spec: serde_json::Value,
}

impl Bundle {
    fn new(name: &str, annotations: &[(&str, &str)]) -> Bundle {
        let dir = std::env::temp_dir().join(format!("apex-oci-policy-{name}-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let mut spec = crate::spec::config();
        for (name, value) in annotations {
            spec["annotations"][*name] = (*value).into();
        }
        Bundle { dir, spec }
    }

    /// With a policy file in it.
    fn with_policy(name: &str, text: &str) -> Bundle {
        let mut bundle = Bundle::new(name, &[]);
        let path = bundle.dir.join("policy.toml");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        bundle.spec["annotations"][POLICY] = path.to_str().unwrap().into();
        bundle
    }

    fn spec(&self) -> Spec {
        serde_json::from_value(self.spec.clone()).unwrap()
    }

    fn resolve(&self) -> Result<Option<Narrowing>, PolicyError> {
        resolve(&self.spec(), &self.dir)
    }

    fn narrowed(&self) -> serde_json::Value {
        let mut spec = self.spec();
        self.resolve().unwrap().unwrap().narrow(&mut spec);
        serde_json::to_value(spec).unwrap()
    }

    #[track_caller]
    fn check_refused(&self, words: &str) {
        let error = self.resolve().expect_err("it is refused");
        let text =
            format!("{error}: {}", std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default());
        assert!(text.contains(words), "{text}");
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn a_bundle_without_our_annotations_is_left_alone() {
    assert!(Bundle::new("none", &[("org.example", "x")]).resolve().unwrap().is_none());
    assert!(Bundle::new("off", &[(WATCH, "off")]).resolve().unwrap().is_none());
}

#[test]
fn annotations_that_cannot_be_honoured_stop_the_create() {
    Bundle::new("misspelt", &[("dev.apex.mod", "isolation")]).check_refused("known are dev.apex.mode");
    Bundle::new("mode", &[(MODE, "strict")]).check_refused("isolation, development or hybrid");
    Bundle::new("watch", &[(WATCH, "default")]).check_refused("apexd");
    Bundle::new("watches", &[(WATCH, "on")]).check_refused("off, default or full");
    Bundle::new("relative", &[(POLICY, "a/b.toml")]).check_refused("absolute path");
    Bundle::new("profile", &[(POLICY, "pyton")]).check_refused("pyton");
    let mut host = Bundle::new("host", &[(MODE, "isolation")]);
    host.spec["linux"]["namespaces"] = serde_json::json!([{"type": "mount"}, {"type": "pid"}]);
    host.check_refused("no network namespace of its own");
    let mut level = Bundle::with_policy("level", "mode = \"development\"\nlevel = \"none\"\n");
    level.spec["process"]["cwd"] = "/work".into();
    level.spec["annotations"][MODE] = "development".into();
    level.check_refused("isolation level");
    // The container starts in `/`, which is no place to work in.
    let everything = "[filesystem]\nread = [{ path = \"${CWD}\", reason = \"x\" }]\n";
    Bundle::with_policy("everything", everything).check_refused("the container starts in `/`");
    Bundle::with_policy("time", "[resources]\nwall_time = \"5s\"\n").check_refused("`wall_time`");
    let moved = "[filesystem]\nread = [{ path = \"/srv\", dest = \"/data\", reason = \"x\" }]\n";
    Bundle::with_policy("moved", moved).check_refused("remove `dest`");
}

#[test]
fn the_example_of_the_guide_resolves() {
    let guide = include_str!("../../../../docs/guides/container-policies.md");
    let example = guide.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let mut bundle = Bundle::with_policy("guide", example);
    bundle.spec["annotations"][MODE] = "hybrid".into();
    bundle.spec["linux"]["namespaces"] = serde_json::json!([{"type": "mount"}]);
    assert_eq!(bundle.resolve().unwrap().unwrap().mode(), Mode::Hybrid);
}

#[test]
fn policies_of_strangers_are_not_read() {
    Bundle::new("shadow", &[(POLICY, "/etc/shadow")]).check_refused("below /etc/apex or in the bundle");
    let bundle = Bundle::with_policy("writable", "mode = \"isolation\"\n");
    let path = bundle.dir.join("policy.toml");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    bundle.check_refused("may write it");
    let bundle = Bundle::with_policy("linked", "");
    let path = bundle.dir.join("policy.toml");
    fs::remove_file(&path).unwrap();
    symlink("/etc/shadow", &path).unwrap();
    bundle.check_refused("symbolic link");
    let mut bundle = Bundle::with_policy("dots", "");
    bundle.spec["annotations"][POLICY] = format!("{}/../../etc/shadow", bundle.dir.display()).into();
    bundle.check_refused("below /etc/apex or in the bundle");
    let extends = Bundle::with_policy("extends", "extends = [\"/etc/shadow\"]\n");
    extends.check_refused("below /etc/apex or in the bundle");
}

#[test]
fn limits_are_the_smaller_and_capabilities_what_both_give() {
    let policy = "[resources]\nmemory = \"256M\"\ncpu = 50\ntasks = 32\nopen_files = 100\n";
    let mut bundle = Bundle::with_policy("limits", policy);
    bundle.spec["process"]["rlimits"] = serde_json::json!([{"type": "RLIMIT_NOFILE", "hard": 4096, "soft": 50}]);
    bundle.spec["linux"]["resources"] = serde_json::json!({
        "memory": {"limit": 1_i64 << 30, "swap": -1}, "cpu": {"quota": 20000, "period": 50000}, "pids": {"limit": 10}
    });
    let spec = bundle.narrowed();
    let resources = &spec["linux"]["resources"];
    assert_eq!(resources["memory"]["limit"], 256 << 20);
    // No swap on top of it: the mode's.
    assert_eq!(resources["memory"]["swap"], 256 << 20);
    assert_eq!(resources["cpu"]["quota"], 20000);
    assert_eq!(resources["pids"]["limit"], 10);
    let process = &spec["process"];
    assert_eq!(process["noNewPrivileges"], true);
    let nofile = serde_json::json!({"type": "RLIMIT_NOFILE", "hard": 100, "soft": 50});
    assert!(process["rlimits"].as_array().unwrap().contains(&nofile), "{process}");
    for set in ["bounding", "effective", "permitted"] {
        assert_eq!(process["capabilities"][set], serde_json::json!([]), "{set}");
    }
    bundle.spec["linux"]["resources"] = serde_json::json!({});
    let spec = bundle.narrowed();
    assert_eq!(spec["linux"]["resources"]["cpu"], serde_json::json!({"quota": 50000, "period": 100_000}));
    assert_eq!(spec["linux"]["resources"]["pids"]["limit"], 32);
}

#[test]
fn what_a_mode_has_by_default_and_nobody_holds_is_told() {
    let narrowing = Bundle::new("told", &[(MODE, "isolation")]).resolve().unwrap().unwrap();
    assert!(narrowing.given_up()[0].contains("wall_time"), "{:?}", narrowing.given_up());
    assert_eq!(narrowing.mode(), Mode::Isolation);
    let narrowing = Bundle::new("told-root", &[(MODE, "development")]).resolve().unwrap().unwrap();
    assert!(narrowing.given_up().iter().any(|words| words.contains("working directory")), "{:?}", narrowing.given_up());
}

/// A tree that the child makes its root: the system's programs, and data of which a part is denied, also under another name.
fn tree(dir: &Path) -> PathBuf {
    let root = dir.join("rootfs");
    for made in ["proc", "usr", "lib", "lib64", "bin", "etc", "data/inner", "tmp", "other"] {
        fs::create_dir_all(root.join(made)).unwrap();
    }
    for (name, text) in
        [("data/open", "o"), ("data/secret", "s"), ("data/inner/deep", "d"), ("etc/shadow", "x"), ("other/file", "f")]
    {
        fs::write(root.join(name), text).unwrap();
    }
    symlink("/data", root.join("alias")).unwrap();
    root
}

/// Enters the tree in namespaces of its own, where nothing of it outlives the process.
fn enter(root: &Path) -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
    for shown in ["usr", "lib", "lib64", "bin"] {
        mount(Some(&Path::new("/").join(shown)), &root.join(shown), none, MsFlags::MS_BIND, none)?;
    }
    mount(Some("proc"), &root.join("proc"), Some("proc"), MsFlags::empty(), none)?;
    nix::unistd::chroot(root)?;
    nix::unistd::chdir("/")
}

/// What a child says that narrows itself in the tree and then does `work`: its exit code.
fn narrowed_child(bundle: &Bundle, before: &dyn Fn(), work: &dyn Fn(&probe::Probing) -> i32) -> i32 {
    let root = tree(&bundle.dir);
    let narrowing = bundle.resolve().unwrap().unwrap();
    let pid = probe::spawn(&mut |probing| {
        before();
        if enter(&root).is_err() {
            return 100;
        }
        let prepared = match narrowing.prepare(Path::new("/usr/bin/true")) {
            Ok(prepared) => prepared,
            Err(PolicyError::NoProc) => return 101,
            Err(_) => return 102,
        };
        if prctl::set_no_new_privs().and_then(|()| prepared.enforce()).is_err() {
            return 103;
        }
        work(probing)
    });
    match process::wait(pid.unwrap(), 0).unwrap().unwrap().1 {
        Ended::Code(code) => code,
        Ended::Signal(signal) => 200 + signal,
    }
}

/// The number of the first expectation that is not met; 0 when all are.
fn first_wrong(checks: &[bool]) -> i32 {
    checks.iter().position(|met| !met).map_or(0, |at| i32::try_from(at).unwrap() + 1)
}

fn can_read(path: &str) -> bool {
    fs::read(path).is_ok()
}

fn is_refused(path: &str) -> bool {
    fs::read(path).is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

const FILES: &str = r#"
mode = "hybrid"
[filesystem]
read = [{ path = "/data", reason = "the test" }]
deny = [{ path = "/alias/secret", reason = "the test" }]
"#;

#[test]
fn the_containers_tree_is_narrowed_to_what_the_policy_grants() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let mut bundle = Bundle::with_policy("tree", FILES);
    bundle.spec["process"]["cwd"] = "/data".into();
    let code = narrowed_child(&bundle, &|| {}, &|probing| {
        let mount = probe::Call { entry: probe::Entry::Native, nr: 165, args: [0; 6] };
        first_wrong(&[
            can_read("/data/open"),
            can_read("/data/inner/deep"),
            // Denied by a name that leads over a link, and refused by each of its names.
            is_refused("/data/secret"),
            is_refused("/alias/secret"),
            is_refused("/etc/shadow"),
            is_refused("/other/file"),
            fs::write("/data/new", "x").is_err(),
            fs::write("/tmp/new", "x").is_ok(),
            std::process::Command::new("/usr/bin/true").status().is_ok_and(|status| status.success()),
            probing.call(&mount) == Err(Errno::EPERM),
        ])
    });
    assert_eq!(code, 0);
}

#[test]
fn development_reads_the_container_and_writes_what_is_its_work() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let mut bundle = Bundle::new("development", &[(MODE, "development")]);
    let code = narrowed_child(&bundle, &|| {}, &|_| {
        first_wrong(&[can_read("/other/file"), is_refused("/etc/shadow"), fs::write("/data/new", "x").is_err()])
    });
    assert_eq!(code, 0);
    fs::remove_dir_all(bundle.dir.join("rootfs")).unwrap();
    bundle.spec["process"]["cwd"] = "/data".into();
    let code = narrowed_child(&bundle, &|| {}, &|_| {
        first_wrong(&[fs::write("/data/new", "x").is_ok(), fs::write("/other/new", "x").is_err()])
    });
    assert_eq!(code, 0);
}

#[test]
fn a_stream_that_is_a_file_elsewhere_can_be_opened_anew() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let bundle = Bundle::new("stream", &[(MODE, "isolation")]);
    let (log, pipe) = (bundle.dir.join("log"), bundle.dir.join("pipe"));
    fs::write(&log, "").unwrap();
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // Standard output is a file of the host, standard input a FIFO there, and standard error a pipe.
    let (reader, writer) = std::io::pipe().unwrap();
    let log = fs::OpenOptions::new().append(true).open(&log).unwrap();
    let fifo = fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let place = || {
        let placed = [(fifo.as_fd(), 0), (log.as_fd(), 1), (writer.as_fd(), 2)];
        assert!(placed.into_iter().all(|(fd, number)| apex_sys::fs::place(fd, number).is_ok()));
    };
    let code = narrowed_child(&bundle, &place, &|_| {
        let write = |number: u32| {
            let path = format!("/proc/self/fd/{number}");
            fs::OpenOptions::new().append(true).open(path).and_then(|mut file| file.write_all(b"x")).is_ok()
        };
        let fifo = fs::OpenOptions::new().read(true).write(true).open("/proc/self/fd/0").is_ok();
        first_wrong(&[write(1), write(2), fifo])
    });
    drop(reader);
    assert_eq!(code, 0);
}

#[test]
fn a_denied_path_over_a_link_of_somebody_else_is_not_taken() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let bundle = Bundle::with_policy("foreign", FILES);
    let alias = bundle.dir.join("rootfs/alias");
    let give_away = || std::os::unix::fs::lchown(&alias, Some(1234), None).unwrap();
    assert_eq!(narrowed_child(&bundle, &give_away, &|_| 0), 102);
}

#[test]
fn a_program_in_a_place_that_is_not_granted_is_not_executed() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let bundle = Bundle::new("exec", &[(MODE, "isolation")]);
    let code = narrowed_child(&bundle, &|| {}, &|_| {
        let copied = fs::copy("/usr/bin/true", "/tmp/true").is_ok();
        let refused = std::process::Command::new("/tmp/true").status();
        first_wrong(&[copied, refused.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)])
    });
    assert_eq!(code, 0);
}

#[test]
fn a_namespace_with_a_network_is_no_empty_one() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let pid = probe::spawn(&mut |_| {
        if unshare(CloneFlags::CLONE_NEWNET).is_err() || network::check_empty().is_err() {
            return 100;
        }
        let ip =
            |words: &str| std::process::Command::new("ip").args(words.split(' ')).status().is_ok_and(|s| s.success());
        if !ip("link add v0 type veth peer name v1") {
            return 0;
        }
        let down = network::check_empty().is_ok();
        let up = ip("link set v0 up");
        let refused = matches!(network::check_empty(), Err(PolicyError::Interface { interface }) if interface == "v0");
        first_wrong(&[down, up, refused])
    });
    assert_eq!(process::wait(pid.unwrap(), 0).unwrap().unwrap().1, Ended::Code(0));
}

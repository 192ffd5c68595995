//! podman and buildah with storage and settings of the test's own and `apex-oci` for their runtime, and the machine as it was afterwards.
//!
//! Everything lies in one temporary directory: images, states, the runtime's `--root`, and the names of the cgroups. What a container leaves
//! behind fails the test when the engine is dropped.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::oci::apex_oci;
use crate::sandbox::{Output, collect, collect_within};
use crate::temp::TempDir;

/// The image made of busybox.
pub const IMAGE: &str = "localhost/apex-busybox:1";
/// What keeps an engine's word, such as conmon, ends a moment after it.
const PATIENCE: Duration = Duration::from_secs(10);
/// An image of hundreds of megabytes is unpacked in this.
const PATIENCE_FOR_IMAGES: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(50);
/// What podman 4 leaves itself of tasks, and so can give.
const TASKS_MAX: u64 = 32 << 10;
/// Of the user without root: an id that nobody has, and the ids that are given to it.
const USER: u32 = 7001;
const SUBORDINATE: &str = "apexuser:300000:65536\n";

/// Why these programs cannot run here, or nothing.
pub fn missing(programs: &[&str]) -> Option<String> {
    if !crate::as_root() {
        return Some("only root has an engine of its own here".to_owned());
    }
    crate::programs::missing_program(programs)
}

/// Whom the engine runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    Root,
    /// A user with subordinate ids, which only its own mount namespace knows of.
    User,
}

/// The engine. Dropped, it removes its containers, and fails the test when anything is left.
#[derive(Debug)]
pub struct Podman {
    dir: TempDir,
    caller: Caller,
    driver: &'static str,
    runtime: String,
    state: String,
    cgroup_parent: String,
}

impl Podman {
    /// As root, with the image of busybox.
    pub fn new() -> Self {
        let podman = Podman::prepare(Caller::Root, "vfs");
        podman.import_busybox();
        podman
    }

    /// As root, without an image, where layers are shared instead of copied if the file system below can do that.
    pub fn for_large_images() -> Self {
        let podman = Podman::prepare(Caller::Root, "overlay");
        match podman.run(&["info"]).code {
            0 => podman,
            _ => Podman::prepare(Caller::Root, "vfs"),
        }
    }

    /// As a user without root that has subordinate ids, with the image of busybox.
    pub fn rootless() -> Self {
        let podman = Podman::prepare(Caller::User, "vfs");
        podman.import_busybox();
        podman
    }

    fn prepare(caller: Caller, driver: &'static str) -> Self {
        // podman takes no long name for its state.
        let dir = TempDir::short();
        let name = dir.path().file_name().expect("it has one").to_string_lossy().into_owned();
        let limit = |resource| getrlimit(resource).expect("it can be asked").1;
        // podman's own defaults are more than a caller without CAP_SYS_RESOURCE may give, and it lowers its own limit of tasks first.
        let (files, tasks) = (limit(Resource::RLIMIT_NOFILE), limit(Resource::RLIMIT_NPROC).min(TASKS_MAX));
        dir.file(
            "containers.conf",
            &format!(
                "[containers]\ndefault_ulimits = [\"nofile={files}:{files}\", \"nproc={tasks}:{tasks}\"]\n\
                 [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime_supports_nocgroup = [\"apex\"]\n\
                 [engine.runtimes]\napex = [{:?}]\n",
                dir.at("apex-oci")
            ),
        );
        // A user may not look into the directory where it was built; and what ends a container knows of no `--runtime-flag`.
        fs::copy(apex_oci(), dir.at("real-apex-oci")).expect("the directory is ours");
        let state = if caller == Caller::Root { dir.at("state") } else { dir.at("run/state") };
        let runtime =
            dir.file("apex-oci", &format!("#!/bin/sh\nexec {} --root {state} \"$@\"\n", dir.at("real-apex-oci")));
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).expect("it is ours");
        let podman = Podman { caller, driver, runtime, state, cgroup_parent: format!("/{name}"), dir };
        if caller == Caller::User {
            podman.make_user();
        }
        podman
    }

    /// Files that stand over those of /etc, and directories of its own.
    fn make_user(&self) {
        for (name, own) in [("passwd", "apexuser:x:7001:7001::/:/bin/sh\n"), ("group", "apexuser:x:7001:\n")] {
            let text = fs::read_to_string(Path::new("/etc").join(name)).expect("there are users");
            self.dir.file(&format!("etc/{name}"), &format!("{text}{own}"));
        }
        for name in ["subuid", "subgid"] {
            self.dir.file(&format!("etc/{name}"), SUBORDINATE);
            // What is not there cannot be covered.
            let path = Path::new("/etc").join(name);
            assert!(path.exists(), "{} is not there: the package uidmap brings it", path.display());
        }
        for name in ["storage", "run", "tmp", "home"] {
            let path = self.dir.dir(name);
            chown(&path, Some(USER), Some(USER)).expect("we are root");
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).expect("we are root");
        }
    }

    fn import_busybox(&self) {
        let root = self.busybox_root();
        let tar = self.dir.at("busybox.tar");
        crate::programs::run(Command::new("tar").args(["-C", &root, "-cf", &tar, "."])).expect("tar is there");
        self.run(&["import", "-q", &tar, IMAGE]).expect_code(0);
    }

    /// A directory with busybox under all its names.
    pub fn busybox_root(&self) -> String {
        let root = self.dir.dir("root");
        for name in ["bin", "etc", "tmp", "proc", "dev", "sys", "root", "var"] {
            self.dir.dir(&format!("root/{name}"));
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = std::env::split_paths(&path).map(|place| place.join("busybox")).find(|path| path.exists());
        fs::copy(own.expect("looked for before"), format!("{root}/bin/busybox")).expect("it is ours");
        let applets = crate::programs::run(Command::new("busybox").arg("--list")).expect("busybox is there");
        for applet in applets.lines().filter(|applet| *applet != "busybox") {
            symlink("busybox", format!("{root}/bin/{applet}")).expect("it is ours");
        }
        self.dir.file("root/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n");
        self.dir.file("root/etc/group", "root:x:0:\nuser:x:1000:\n");
        root
    }

    /// A path of the test's own.
    pub fn at(&self, name: &str) -> String {
        self.dir.at(name)
    }

    /// Writes a file of the test's own and returns its path.
    pub fn file(&self, name: &str, text: &str) -> String {
        self.dir.file(name, text)
    }

    /// The cgroup below which containers are.
    pub fn cgroup_parent(&self) -> &str {
        &self.cgroup_parent
    }

    /// `podman` with these arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.engine("podman");
        command.args(["--tmpdir", &self.at("tmp"), "--cgroup-manager=cgroupfs", "--events-backend=file"]);
        // By its name, so that settings of the runtime can be found.
        command.args(["--runtime", "apex"]).args(arguments);
        command
    }

    /// `buildah` with these arguments.
    pub fn buildah(&self, arguments: &[&str]) -> Command {
        let mut command = self.engine("buildah");
        command.env("BUILDAH_RUNTIME", &self.runtime).args(arguments);
        command
    }

    /// Either program, with the storage and settings of the test's own.
    fn engine(&self, program: &str) -> Command {
        let mut command = match self.caller {
            Caller::Root => Command::new(program),
            Caller::User => self.as_user(program),
        };
        command.env("CONTAINERS_CONF", self.at("containers.conf")).stdin(Stdio::null());
        // conmon marks a kill for memory by a file where it was started.
        command.current_dir(self.dir.path());
        command.args(["--root", &self.at("storage"), "--runroot", &self.at("run"), "--storage-driver", self.driver]);
        command
    }

    /// In a mount namespace of its own in which the user exists, and has neither root's environment nor its groups.
    fn as_user(&self, program: &str) -> Command {
        let script = r#"for name in passwd group subuid subgid; do mount --bind "$1/etc/$name" "/etc/$name" || exit 99; done
            cd "$1/home" && shift && exec setpriv --reuid 7001 --regid 7001 --clear-groups "$@""#;
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "sh", "-c", script, "sh", &self.dir.text(), program]);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.at("home")).env("XDG_RUNTIME_DIR", self.at("run"));
        command
    }

    /// Runs `podman` to its end.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Output {
        finish(self.command(arguments))
    }

    /// The same for what takes as long as an image is large.
    #[track_caller]
    pub fn run_long(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("podman is there");
        collect_within(child, PATIENCE_FOR_IMAGES)
    }

    /// Runs a container to its end: `flags`, then the image of busybox and `inside`.
    #[track_caller]
    pub fn container(&self, flags: &[&str], inside: &[&str]) -> Output {
        self.container_of(IMAGE, &[&["--rm"], flags].concat(), inside)
    }

    /// Starts one that stays until it ends or is stopped.
    #[track_caller]
    pub fn start(&self, name: &str, flags: &[&str], inside: &[&str]) {
        self.container_of(IMAGE, &[&["-d", "--name", name], flags].concat(), inside).expect_code(0);
    }

    /// The same with another image.
    #[track_caller]
    pub fn container_of(&self, image: &str, flags: &[&str], inside: &[&str]) -> Output {
        let is_in_pod = flags.contains(&"--pod");
        let own: &[&str] = match (self.caller, is_in_pod) {
            (Caller::Root, false) => &["--cgroup-parent", &self.cgroup_parent, "--network=none"],
            (Caller::User, false) => &["--network=none"],
            (_, true) => &[],
        };
        self.run_long(&[&["run"], own, flags, &[image], inside].concat())
    }

    /// A field of what podman knows of a container.
    #[track_caller]
    pub fn inspect(&self, name: &str, field: &str) -> String {
        self.run(&["inspect", "-f", &format!("{{{{{field}}}}}"), name]).expect_code(0).out().trim().to_owned()
    }

    /// Standard output of a command in a container, which must succeed.
    #[track_caller]
    pub fn exec(&self, name: &str, inside: &[&str]) -> String {
        self.run(&[&["exec", name], inside].concat()).expect_code(0).out()
    }

    /// What is there of containers.
    fn left(&self) -> Vec<String> {
        let states = fs::read_dir(&self.state).into_iter().flatten().flatten();
        let mut left = states.map(|entry| format!("state {}", entry.path().display())).collect::<Vec<_>>();
        left.extend(self.processes().iter().map(|(pid, line)| format!("process {pid}: {line}")));
        let inner = [self.at("storage/overlay/"), self.at("storage/vfs/"), self.at("run/"), self.at("root")];
        left.extend(self.mounts().into_iter().filter(|point| inner.iter().any(|dir| point.starts_with(dir))));
        left.extend(self.cgroups().iter().map(|path| format!("cgroup {}", path.display())));
        left
    }

    /// Processes that name the directory. The one that keeps the user's namespaces between two commands is podman's.
    fn processes(&self) -> Vec<(i32, String)> {
        let own = self.dir.text();
        let entries = fs::read_dir("/proc").expect("it is mounted").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let line = |pid: i32| {
            let text = String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).ok()?).replace('\0', " ");
            (text.contains(&own) && pid != nix::unistd::getpid().as_raw()).then_some((pid, text))
        };
        pids.filter_map(line).collect()
    }

    /// Where something is mounted below the directory, the last first.
    fn mounts(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/self/mountinfo").expect("it is mounted");
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        points.filter(|point| point.starts_with(&self.dir.text())).map(str::to_owned).rev().collect()
    }

    /// Directories of containers below the parent or a pod's, in every hierarchy. Those of pods are podman's own, which forgets them where it
    /// has made none itself.
    fn cgroups(&self) -> Vec<PathBuf> {
        let is_container =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libpod-"));
        let all = self.cgroup_parents().into_iter().flat_map(|parent| directories_below(&parent));
        all.filter(is_container).collect()
    }

    fn cgroup_parents(&self) -> BTreeSet<PathBuf> {
        let table = fs::read_to_string("/proc/self/mountinfo").expect("it is mounted");
        let is_cgroup = |line: &&str| line.contains(" - cgroup ") || line.contains(" - cgroup2 ");
        let points = table.lines().filter(is_cgroup).filter_map(|line| line.split(' ').nth(4));
        points
            .map(|point| PathBuf::from(format!("{point}{}", self.cgroup_parent)))
            .filter(|path| path.exists())
            .collect()
    }

    /// Ends what keeps the user's namespaces between two commands.
    fn end_pause(&self) {
        let _ = finish(self.command(&["system", "migrate"]));
        let text = fs::read_to_string(self.at("run/libpod/tmp/pause.pid"))
            .or_else(|_| fs::read_to_string(self.at("tmp/pause.pid")));
        if let Some(pid) = text.ok().and_then(|text| text.trim().parse().ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

impl Default for Podman {
    fn default() -> Self {
        Podman::new()
    }
}

/// The deepest first.
fn directories_below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let inner = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path());
    inner.flat_map(|path| directories_below(&path).into_iter().chain([path])).collect()
}

#[track_caller]
fn finish(mut command: Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    collect(child.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}")))
}

impl Drop for Podman {
    fn drop(&mut self) {
        let is_failing = std::thread::panicking();
        self.run(&["pod", "rm", "-af", "-t", "0"]);
        self.run(&["rm", "-af", "-t", "0"]);
        if self.caller == Caller::User {
            self.end_pause();
        }
        let end = Instant::now() + PATIENCE;
        let mut left = self.left();
        while !left.is_empty() && Instant::now() < end {
            std::thread::sleep(POLL);
            left = self.left();
        }
        for (pid, _) in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        for point in self.mounts() {
            let _ = umount2(point.as_str(), MntFlags::MNT_DETACH);
        }
        for parent in self.cgroup_parents() {
            for dir in directories_below(&parent).into_iter().chain([parent]) {
                let _ = fs::remove_dir(dir);
            }
        }
        assert!(is_failing || left.is_empty(), "left behind: {left:#?}");
    }
}

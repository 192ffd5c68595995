//! A containerd of the test's own with the shim on its PATH, an image made from busybox, and the machine as it was afterwards.
//!
//! It runs in a mount namespace of its own without the v2 hierarchy that some hosts mount beside v1: containerd 1.6 takes that for a host
//! of v2 alone. The runtimes are those that are there: apex-oci beside the test, and runc and crun of the host.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::apex_run;
use crate::sandbox::{Output, collect};
use crate::temp::TempDir;

/// The image.
pub const IMAGE: &str = "docker.io/library/apex-busybox:1";
/// How long containerd or one request may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
const PROGRAMS: [&str; 6] = ["containerd", "ctr", "umoci", "skopeo", "busybox", "runc"];

/// Why it cannot run here, or nothing.
pub fn missing() -> Option<String> {
    if !crate::as_root() {
        return Some("containerd needs root".to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |name: &&str| std::env::split_paths(&path).any(|place| place.join(name).exists());
    let gone = PROGRAMS.iter().find(|name| !is_there(name))?;
    Some(format!("{gone} is not installed"))
}

/// Runtimes that answer: each must do whatever a test asks.
pub fn runtimes() -> Vec<PathBuf> {
    let given = std::env::var_os("APEX_OCI").map_or_else(|| apex_run().with_file_name("apex-oci"), PathBuf::from);
    let all = [given, PathBuf::from("/usr/sbin/runc"), PathBuf::from("/usr/bin/crun")];
    let answers = |path: &PathBuf| {
        Command::new(path)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
    };
    assert!(answers(&all[0]), "{} does not answer: build it with `cargo build -p apex-oci`", all[0].display());
    let there = all.into_iter().filter(answers).collect::<Vec<_>>();
    println!("runtimes: {there:?}");
    there
}

/// It runs from here until it is dropped.
#[derive(Debug)]
pub struct Containerd {
    dir: TempDir,
    child: Child,
}

impl Containerd {
    /// Starts one, whose containers are run by this runtime.
    pub fn start(runtime: &Path) -> Self {
        Self::start_with(runtime, "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n", "")
    }

    /// The same as a node of Kubernetes has it, for pods of the handler `apex`.
    pub fn start_cri(runtime: &Path) -> Self {
        let cri = "[plugins.\"io.containerd.grpc.v1.cri\"";
        let plugin = format!(
            "{cri}]\nrestrict_oom_score_adj = true\nsandbox_image = {IMAGE:?}\n\
             {cri}.containerd]\ndefault_runtime_name = \"apex\"\n\
             {cri}.containerd.runtimes.apex]\nruntime_type = \"io.containerd.apex.v2\"\n\
             {cri}.containerd.runtimes.apex.options]\nConfigPath = \"DIR/shim.toml\"\n"
        );
        let containerd = Self::start_with(runtime, "", &plugin);
        containerd.ctr(&["-n", "k8s.io", "images", "import", &containerd.at("image.tar")]).expect_code(0);
        containerd
    }

    fn start_with(runtime: &Path, head: &str, plugins: &str) -> Self {
        let dir = TempDir::new();
        fs::create_dir(dir.at("bin")).expect("the directory is ours");
        let shim = apex_run().with_file_name("containerd-shim-apex-v2");
        fs::copy(&shim, dir.at("bin/containerd-shim-apex-v2")).unwrap_or_else(|error| {
            panic!("cannot take {} ({error}): cargo build -p containerd-shim-apex-v2", shim.display())
        });
        dir.file("shim.toml", &format!("BinaryName = {:?}\nRoot = {:?}\n", runtime.display(), dir.at("runtime")));
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n{head}[grpc]\naddress = {:?}\n[debug]\nlevel = \"debug\"\n{}",
            dir.at("root"),
            dir.at("state"),
            dir.at("c.sock"),
            plugins.replace("DIR", &dir.text()),
        );
        dir.file("config.toml", &config);
        let child = launch(&dir);
        let containerd = Containerd { dir, child };
        containerd.wait_until_ready();
        containerd.import();
        containerd
    }

    fn wait_until_ready(&self) {
        let end = Instant::now() + PATIENCE;
        while self.ctr(&["version"]).code != 0 {
            assert!(Instant::now() < end, "containerd does not answer: {}", self.log());
            std::thread::sleep(POLL);
        }
    }

    fn import(&self) {
        let dir = &self.dir;
        let busybox = dir.at("bundle/rootfs/bin/busybox");
        let run = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).current_dir(dir.path()).output();
            let output = output.unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
            assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        run("umoci", &["init", "--layout", "oci"]);
        run("umoci", &["new", "--image", "oci:bb"]);
        run("umoci", &["unpack", "--image", "oci:bb", "bundle"]);
        for name in ["bin", "etc", "tmp", "proc", "dev", "sys", "root"] {
            dir.dir(&format!("bundle/rootfs/{name}"));
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = std::env::split_paths(&path).map(|place| place.join("busybox")).find(|path| path.exists());
        fs::copy(own.expect("looked for before"), &busybox).expect("the directory is ours");
        for applet in run("busybox", &["--list"]).lines().filter(|applet| *applet != "busybox") {
            std::os::unix::fs::symlink("busybox", dir.at(&format!("bundle/rootfs/bin/{applet}"))).expect("it is ours");
        }
        dir.file("bundle/rootfs/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n");
        run("umoci", &["repack", "--image", "oci:bb", "bundle"]);
        // What a pod's first container runs; all others are given a command.
        run("umoci", &["config", "--image", "oci:bb", "--config.cmd", "/bin/sleep", "--config.cmd", "100000"]);
        run("skopeo", &["copy", "-q", "oci:oci:bb", &format!("oci-archive:image.tar:{IMAGE}")]);
        self.ctr(&["images", "import", &self.dir.at("image.tar")]).expect_code(0);
    }

    /// What containerd and its shims logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.at("log")).unwrap_or_default()
    }

    /// A path of the test's own.
    pub fn at(&self, name: &str) -> String {
        self.dir.at(name)
    }

    /// Writes a program of the test's own and returns its path.
    pub fn script(&self, name: &str, text: &str) -> String {
        let path = self.dir.file(name, text);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
        path
    }

    /// `ctr` with these arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.args(["-a", &self.at("c.sock")]).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs `ctr` to its end.
    #[track_caller]
    pub fn ctr(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        collect(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("ctr is there"))
    }

    /// `ctr run` of the image through the shim; `flags` come before the name of the container.
    pub fn run_arguments<'a>(&'a self, flags: &[&'a str], name: &'a str, command: &[&'a str]) -> Vec<String> {
        let (config, fifos) = (self.at("shim.toml"), self.at("fifos"));
        let last = [IMAGE, name];
        let first =
            ["run", "--runtime", "io.containerd.apex.v2", "--runtime-config-path", &config, "--fifo-dir", &fifos];
        let words = first.iter().chain(flags).chain(&last).chain(command);
        words.map(|word| (*word).to_owned()).collect()
    }

    /// Runs it.
    #[track_caller]
    pub fn run(&self, flags: &[&str], name: &str, command: &[&str]) -> Output {
        let arguments = self.run_arguments(flags, name, command);
        self.ctr(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Where a container stands, in containerd's word; nothing when it is none.
    pub fn status(&self, name: &str) -> Option<String> {
        let list = self.ctr(&["tasks", "ls"]).expect_code(0).out();
        let row = list.lines().find(|line| line.split_whitespace().next() == Some(name))?;
        row.split_whitespace().nth(2).map(str::to_owned)
    }

    /// Waits until it stands there.
    #[track_caller]
    pub fn expect_status(&self, name: &str, expected: Option<&str>) {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.status(name);
            if status.as_deref() == expected {
                return;
            }
            assert!(Instant::now() < end, "{name} is {status:?}, not {expected:?}: {}", self.log());
            std::thread::sleep(POLL);
        }
    }

    /// Pids of the shims of this containerd.
    pub fn shims(&self) -> Vec<i32> {
        let socket = self.at("c.sock");
        let is_shim = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            line.contains("containerd-shim-apex-v2\0") && line.contains(&socket)
        };
        let entries = fs::read_dir("/proc").expect("it is mounted").flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_shim).collect()
    }

    /// Kills containerd as the kernel does when memory is short, and starts another in its place.
    pub fn replace(&mut self, between: impl FnOnce()) {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
        between();
        self.child = launch(&self.dir);
        self.wait_until_ready();
    }

    /// What is there of containers: shims, mounts, cgroups, sockets of terminals, state of the runtime. It goes within the time given.
    #[track_caller]
    pub fn expect_nothing_left(&self, names: &[&str]) {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let left = self.left(names);
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "left behind: {left:#?}\n{}", self.log());
            std::thread::sleep(POLL);
        }
    }

    fn left(&self, names: &[&str]) -> Vec<String> {
        let mut left = self.shims().iter().map(|pid| format!("shim {pid}")).collect::<Vec<_>>();
        let mounts = fs::read_to_string(format!("/proc/{}/mounts", self.child.id())).unwrap_or_default();
        let state = self.at("state");
        left.extend(mounts.lines().filter(|line| line.contains(&state)).map(|line| format!("mount {line}")));
        for name in names {
            let runtime = self.dir.path().join("runtime/default").join(name);
            left.extend(runtime.exists().then(|| format!("state {}", runtime.display())));
            for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
                let place = hierarchy.path().join("default").join(name);
                left.extend(place.exists().then(|| format!("cgroup {}", place.display())));
            }
        }
        left
    }
}

/// With its output in a file, and nothing of the test's open in it.
fn launch(dir: &TempDir) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.at("log")).expect("the directory is ours");
    let script = r#"if [ -e /sys/fs/cgroup/memory ] && [ -e /sys/fs/cgroup/unified ]; then umount /sys/fs/cgroup/unified; fi
        PATH="$1/bin:$PATH" exec containerd -c "$1/config.toml""#;
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", script, "sh", &dir.text()]);
    let errors = log.try_clone().expect("it is open");
    command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().expect("unshare is there")
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("containerd's log:\n{}", self.log());
        }
        let list = self.ctr(&["tasks", "ls", "-q"]).out();
        for name in list.lines() {
            self.ctr(&["tasks", "rm", "-f", name]);
        }
        for pid in self.shims() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        // Its own end takes the mount namespace with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

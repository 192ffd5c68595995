//! OCI bundles for `apex-oci`, judged from outside: a root of busybox, a configuration that begins with the program's own `spec`, an id, a
//! directory of states and a cgroup that no other test has. Whatever a test leaves behind fails it when its bundle is dropped.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::leaks::{self, Mark};
use crate::sandbox::{self, MARK_VARIABLE, Output};
use crate::temp::TempDir;

/// After this a command counts as hung: its own waits are of ten seconds.
pub const PATIENCE: Duration = Duration::from_secs(40);
/// What is there after this stays.
const LEAK_PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);
/// Where the machine has a static busybox.
const BUSYBOX: &str = "/bin/busybox";
static INSIDE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inside64"));
/// The C program of `tests/oci` in each root.
pub const INSIDE_PATH: &str = "/bin/inside";
/// Programs of busybox by their names.
const APPLETS: &str = "sh cat echo ls id sleep true false env stat mount umount test [ kill ps head tail dd mkdir rmdir rm ln cp mv touch chmod \
    chown hostname dnsdomainname uname grep sed awk cut tr sort wc readlink stty tty mknod nice od seq expr md5sum sha256sum usleep nohup \
    sysctl date find xargs yes timeout dmesg printf pwd ip nc whoami chroot df du unshare nsenter setsid renice pidof";

/// The binary under test: `$APEX_OCI`, else `apex-oci` beside `$APEX_RUN`, else that in the target directory that this test was built in.
pub fn apex_oci() -> PathBuf {
    if let Some(path) = std::env::var_os("APEX_OCI") {
        return PathBuf::from(path);
    }
    let path = match std::env::var_os("APEX_RUN") {
        Some(apex_run) => PathBuf::from(apex_run).with_file_name("apex-oci"),
        None => {
            let own = std::env::current_exe().expect("/proc is mounted");
            own.parent().and_then(Path::parent).expect("test binaries lie in TARGET/PROFILE/deps").join("apex-oci")
        }
    };
    assert!(path.exists(), "{} is not there: build it with `cargo build -p apex-oci`, or set APEX_OCI", path.display());
    path
}

/// Why there can be no containers of root here; `None` when there can.
pub fn obstacle() -> Option<&'static str> {
    if !crate::as_root() {
        return Some("only root makes containers without a user namespace");
    }
    obstacle_of_programs()
}

/// Why there can be no bundles here at all.
pub fn obstacle_of_programs() -> Option<&'static str> {
    match (Path::new(BUSYBOX).exists(), INSIDE.is_empty()) {
        (false, _) => Some("no static busybox"),
        (_, true) => Some("no C compiler with static libraries to build the program inside"),
        _ => None,
    }
}

/// A bundle; ends the test with a skip where there can be none.
#[macro_export]
macro_rules! bundle {
    () => {
        match $crate::oci::obstacle() {
            None => $crate::oci::Bundle::new(),
            Some(reason) => $crate::skip!(reason),
        }
    };
}

/// A bundle and what is made of it.
#[derive(Debug)]
pub struct Bundle {
    dir: TempDir,
    /// Its `config.json`, written before each command that reads it.
    pub config: Value,
    /// The id of its container.
    pub id: String,
    binary: PathBuf,
    mark: Mark,
    commands: AtomicU32,
    mounts: HashSet<String>,
}

fn template() -> Value {
    static TEMPLATE: OnceLock<Value> = OnceLock::new();
    let make = || {
        let dir = TempDir::new();
        let status = Command::new(apex_oci()).args(["spec", "--bundle", &dir.text()]).status();
        assert!(status.expect("apex-oci starts").success(), "apex-oci spec failed");
        serde_json::from_str(&dir.read("config.json")).expect("JSON")
    };
    TEMPLATE.get_or_init(make).clone()
}

/// The directories and programs of a root; returns nothing, as everything stands by its name.
pub fn make_rootfs(root: &Path) {
    for name in ["bin", "dev", "etc", "proc", "sys", "tmp", "root", "home", "var", "run", "mnt"] {
        fs::create_dir_all(root.join(name)).expect("we own it");
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("we own it");
    fs::copy(BUSYBOX, root.join("bin/busybox")).expect("there is a busybox");
    for name in APPLETS.split_whitespace() {
        symlink("busybox", root.join("bin").join(name)).expect("we own it");
    }
    let inside = root.join(&INSIDE_PATH[1..]);
    fs::write(&inside, INSIDE).expect("we own it");
    fs::set_permissions(&inside, fs::Permissions::from_mode(0o755)).expect("we own it");
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n")
        .expect("we own it");
    fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n").expect("we own it");
}

impl Bundle {
    /// A bundle whose program is `true`.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Bundle {
        let dir = TempDir::new();
        let mark = dir.path().file_name().expect("it has a name").to_string_lossy().into_owned();
        make_rootfs(&dir.path().join("bundle/rootfs"));
        let mut config = template();
        config["process"]["terminal"] = json!(false);
        config["root"]["readonly"] = json!(false);
        config["linux"]["cgroupsPath"] = json!(format!("/{mark}"));
        let env = config["process"]["env"].as_array_mut().expect("spec writes an environment");
        env.push(json!(format!("{MARK_VARIABLE}={mark}")));
        let mounts = leaks::mount_table().into_iter().collect();
        let id = mark.clone();
        let bundle =
            Bundle { dir, config, id, binary: apex_oci(), mark: Mark(mark), commands: AtomicU32::new(0), mounts };
        bundle.args(&["true"])
    }

    /// `process.args`.
    pub fn args(mut self, words: &[&str]) -> Self {
        self.config["process"]["args"] = json!(words);
        self
    }

    /// A shell's script as the program.
    pub fn sh(self, script: &str) -> Self {
        self.args(&["sh", "-c", script])
    }

    /// Sets a property by its JSON pointer; objects on the way are made.
    pub fn set(mut self, pointer: &str, value: Value) -> Self {
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
        let mut at = &mut self.config;
        for part in parent.split('/').skip(1) {
            at = match part.parse::<usize>() {
                Ok(number) if at.is_array() => &mut at[number],
                _ => &mut at[part],
            };
        }
        match name.parse::<usize>() {
            Ok(number) if at.is_array() => at[number] = value,
            _ => at[name] = value,
        }
        self
    }

    /// Appends to an array by its JSON pointer.
    pub fn push(mut self, pointer: &str, value: Value) -> Self {
        let there = self.config.pointer_mut(pointer).and_then(Value::as_array_mut);
        match there {
            Some(array) => array.push(value),
            None => return self.set(pointer, json!([value])),
        }
        self
    }

    /// Takes a property away.
    pub fn without(mut self, pointer: &str) -> Self {
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
        let parent = self.config.pointer_mut(parent).and_then(Value::as_object_mut);
        parent.expect("an object").remove(name);
        self
    }

    /// Without the namespace of that type, or with another in its place.
    pub fn namespace(mut self, kind: &str, new: Option<Value>) -> Self {
        let all = self.config["linux"]["namespaces"].as_array_mut().expect("spec writes namespaces");
        all.retain(|one| one["type"] != kind);
        all.extend(new);
        self
    }

    /// Every capability in every set, and no `noNewPrivileges`: root as it is outside.
    pub fn mighty(self) -> Self {
        let own = status_field("self", "CapPrm");
        let own = u64::from_str_radix(&own, 16).expect("capabilities are a number");
        let names = CAPABILITIES.iter().enumerate().filter(|(number, _)| own & (1 << number) != 0);
        let all = json!(names.map(|(_, name)| format!("CAP_{name}")).collect::<Vec<_>>());
        let sets = json!({"bounding": all, "effective": all, "permitted": all, "inheritable": all, "ambient": all});
        self.set("/process/capabilities", sets).set("/process/noNewPrivileges", json!(false))
    }

    /// Runs a copy of `apex-oci` that belongs to this test alone, so that an attack that succeeds hurts nobody else.
    pub fn own_binary(mut self) -> Self {
        let path = self.dir.path().join("apex-oci");
        fs::copy(&self.binary, &path).expect("we own it");
        self.binary = path;
        self
    }

    /// The program under test.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// The directory of this test.
    pub fn dir(&self) -> &TempDir {
        &self.dir
    }

    /// The root of the container.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.path().join("bundle/rootfs")
    }

    /// The directory of states.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The directory of the bundle.
    pub fn path(&self) -> String {
        self.dir.at("bundle")
    }

    /// What marks this test's processes, mounts and cgroups.
    pub fn mark(&self) -> &Mark {
        &self.mark
    }

    /// The cgroup's directory in a hierarchy of version 1.
    pub fn cgroup(&self, controller: &str) -> PathBuf {
        Path::new("/sys/fs/cgroup").join(controller).join(&self.mark.0)
    }

    /// A file of the cgroup, trimmed.
    #[track_caller]
    pub fn cgroup_file(&self, controller: &str, name: &str) -> String {
        let path = self.cgroup(controller).join(name);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        text.trim().to_owned()
    }

    /// Writes the configuration.
    pub fn write(&self) {
        let text = serde_json::to_vec(&self.config).expect("JSON");
        fs::write(self.dir.path().join("bundle/config.json"), text).expect("we own it");
    }

    /// A command line of the program, with this test's directory of states.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--root").arg(self.root()).args(words).current_dir(self.dir.path());
        command
    }

    /// Runs a command to its end. What it starts may live on: its output goes to files.
    #[track_caller]
    pub fn oci(&self, words: &[&str]) -> Output {
        self.finish(self.command(words))
    }

    /// The same for a command that was prepared.
    #[track_caller]
    pub fn finish(&self, command: Command) -> Output {
        let (child, number) = self.spawn(command);
        self.outcome(child, number)
    }

    /// Starts a command whose output goes to files of that number.
    #[track_caller]
    pub fn spawn(&self, mut command: Command) -> (Child, u32) {
        let number = self.commands.fetch_add(1, Ordering::Relaxed);
        let file = |kind: &str| File::create(self.dir.path().join(format!("{number}.{kind}"))).expect("we own it");
        let child = command.stdin(Stdio::null()).stdout(file("out")).stderr(file("err")).spawn();
        (child.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}")), number)
    }

    /// What became of a command.
    #[track_caller]
    pub fn outcome(&self, mut child: Child, number: u32) -> Output {
        let pid = child.id();
        let status = sandbox::wait(&mut child, PATIENCE);
        let read = |kind: &str| fs::read(self.dir.path().join(format!("{number}.{kind}"))).unwrap_or_default();
        let (stdout, stderr) = (read("out"), read("err"));
        let Some(status) = status else { panic!("hung for {PATIENCE:?}: {}", String::from_utf8_lossy(&stderr)) };
        Output { pid, code: sandbox::exit_code(status), stdout, stderr }
    }

    /// `run`, waited for.
    #[track_caller]
    pub fn run(&self) -> Output {
        self.run_with(&[])
    }

    /// `run` with options.
    #[track_caller]
    pub fn run_with(&self, options: &[&str]) -> Output {
        self.write();
        let path = self.path();
        self.oci(&[&["run", "--bundle", &path], options, &[&self.id]].concat())
    }

    /// `create`.
    #[track_caller]
    pub fn create(&self) -> Output {
        self.write();
        self.oci(&["create", "--bundle", &self.path(), &self.id])
    }

    /// `create` and `start`, both of which must work.
    #[track_caller]
    pub fn up(&self) -> &Self {
        self.create().expect_code(0);
        self.oci(&["start", &self.id]).expect_code(0);
        self
    }

    /// `exec` of a shell's script.
    #[track_caller]
    pub fn exec(&self, script: &str) -> Output {
        self.oci(&["exec", &self.id, "sh", "-c", script])
    }

    /// A command with the id as its only argument, which must work.
    #[track_caller]
    pub fn must(&self, word: &str) -> Output {
        self.oci(&[word, &self.id]).expect_code(0)
    }

    /// `state`.
    #[track_caller]
    pub fn state(&self) -> Value {
        self.must("state").json()
    }

    /// The status that `state` tells; `gone` when there is no container.
    #[track_caller]
    pub fn status(&self) -> String {
        let output = self.oci(&["state", &self.id]);
        if output.code != 0 { "gone".to_owned() } else { output.json()["status"].as_str().expect("text").to_owned() }
    }

    /// The pid of its first process.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        let state = self.state();
        state["pid"].as_i64().and_then(|pid| pid.try_into().ok()).unwrap_or_else(|| panic!("no pid: {state}"))
    }

    /// Waits for a status.
    #[track_caller]
    pub fn until(&self, status: &str) {
        let end = Instant::now() + PATIENCE;
        while self.status() != status {
            assert!(Instant::now() < end, "it does not become {status}: it is {}", self.status());
            std::thread::sleep(POLL);
        }
    }

    /// Fails the test when the container that is gone left anything.
    #[track_caller]
    pub fn expect_nothing_left(&self) {
        let left = self.left();
        assert!(left.is_empty(), "left behind: {left:#?}");
    }

    /// What is still there after a while.
    pub fn left(&self) -> Vec<String> {
        let end = Instant::now() + LEAK_PATIENCE;
        loop {
            let left = self.left_now();
            if left.is_empty() || Instant::now() > end {
                return left;
            }
            std::thread::sleep(POLL);
        }
    }

    fn left_now(&self) -> Vec<String> {
        let mut left = leaks::processes(&self.mark);
        let cgroups = leaks::cgroups_named(&self.mark.0);
        left.extend(cgroups.iter().map(|path| format!("cgroup {}", path.display())));
        left.extend(leaks::mounts(&self.mark).into_iter().filter(|line| !self.mounts.contains(line)));
        let ids = fs::read_dir(self.root()).into_iter().flatten().flatten();
        left.extend(ids.map(|entry| format!("state {}", entry.path().display())));
        left
    }

    /// Ends what can be found, by other means than the program's.
    fn sweep(&self) {
        for line in leaks::processes(&self.mark) {
            let pid = line.split([' ', ':']).nth(1).and_then(|word| word.parse().ok());
            // Gone already, perhaps.
            pid.map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).ok());
        }
        let end = Instant::now() + LEAK_PATIENCE;
        while Instant::now() < end {
            let mut cgroups = leaks::cgroups_named(&self.mark.0);
            if cgroups.is_empty() {
                return;
            }
            cgroups.sort_by_key(|path| std::cmp::Reverse(path.as_os_str().len()));
            for path in &cgroups {
                // One that is frozen or whose processes are not gone yet stays for the next round.
                let _ = fs::write(path.join("freezer.state"), "THAWED");
                let _ = fs::remove_dir(path);
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.root()).into_iter().flatten().flatten() {
            let id = entry.file_name().to_string_lossy().into_owned();
            let mut command = self.command(&["delete", "--force", &id]);
            let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            child.ok().and_then(|mut child| sandbox::wait(&mut child, PATIENCE));
        }
        let left = self.left();
        self.sweep();
        // A test that fails already keeps its own message.
        assert!(std::thread::panicking() || left.is_empty(), "left behind: {left:#?}");
    }
}

/// A socket that gets descriptors from the runtime: a console's, a listener's of seccomp.
#[derive(Debug)]
pub struct Receiver(UnixListener);

impl Receiver {
    /// Listens at a path.
    #[track_caller]
    pub fn new(path: &str) -> Receiver {
        Receiver(UnixListener::bind(path).unwrap_or_else(|error| panic!("{path}: {error}")))
    }

    /// The first descriptor of the next connection, and the text that came with it.
    #[track_caller]
    pub fn take(&self) -> (OwnedFd, String) {
        self.0.set_nonblocking(true).expect("a socket of ours");
        let end = Instant::now() + PATIENCE;
        let stream = loop {
            match self.0.accept() {
                Ok((stream, _)) => break stream,
                Err(error) => assert!(Instant::now() < end, "nobody connects: {error}"),
            }
            std::thread::sleep(POLL);
        };
        let mut bytes = vec![0; 64 << 10];
        stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(PATIENCE))).expect("a socket of ours");
        let (count, files) = apex_sys::net::receive(stream.as_fd(), &mut bytes).expect("something is sent");
        let mut text = String::from_utf8_lossy(&bytes[..count]).into_owned();
        let file = files.into_iter().next().unwrap_or_else(|| panic!("no descriptor came with {text:?}"));
        (&stream).take(1 << 20).read_to_string(&mut text).expect("the sender closes it");
        (file, text)
    }
}

/// A field of a process's status (proc_pid_status(5)).
#[track_caller]
pub fn status_field(pid: &str, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

/// Their names in the order of the kernel's numbers (capabilities(7)).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

//! What happens to `apex-oci` at the wrong moment: a target exchanged while it is mounted on, a command killed, a disk, descriptors or processes that
//! run out, a container that multiplies while it is deleted. Nothing on the host is touched, nothing is left.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use apex_tests::oci::Bundle;
use apex_tests::{bundle, leaks};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

/// Exchanges two names all the time, until it is dropped.
struct Racer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Racer {
    fn new(one: PathBuf, other: PathBuf) -> Racer {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let body = move || {
            let mut count = 0;
            while !seen.load(Ordering::Relaxed) {
                renameat2(AT_FDCWD, &one, AT_FDCWD, &other, RenameFlags::RENAME_EXCHANGE).expect("both are there");
                count += 1;
            }
            count
        };
        Racer { stop, thread: Some(std::thread::spawn(body)) }
    }
}

impl Drop for Racer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let count = self.thread.take().map(|thread| thread.join());
        if !std::thread::panicking() {
            assert!(matches!(count, Some(Ok(1000..))), "too few exchanges to be a race: {count:?}");
        }
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .expect("it is there")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// CVE-2021-30465 and its like: a directory on the way to a mount target becomes a link to the host in between.
#[test]
fn a_target_exchanged_while_starting_reaches_nothing_outside() {
    let bundle = bundle!();
    let outside = PathBuf::from(bundle.dir().dir("outside"));
    bundle.dir().file("outside/victim", "host");
    let source = bundle.dir().file("source/file", "bound");
    let root = bundle.rootfs();
    fs::create_dir(root.join("way")).expect("we own it");
    symlink(&outside, root.join("link")).expect("we own it");
    let mut bundle = bundle.args(&["true"]);
    for at in ["/way/a/b", "/way/victim", "/way/c"] {
        bundle =
            bundle.push("/mounts", json!({"destination": at, "type": "bind", "source": source, "options": ["bind"]}));
    }
    bundle = bundle
        .push("/mounts", json!({"destination": "/way/d/e", "type": "tmpfs", "source": "tmpfs"}))
        .set("/linux/maskedPaths", json!(["/way/victim", "/way/c"]))
        .set("/linux/readonlyPaths", json!(["/way", "/way/d"]))
        .push("/linux/devices", json!({"path": "/way/device", "type": "c", "major": 1, "minor": 3}))
        .set("/process/cwd", json!("/way/made/inside"));
    let racer = Racer::new(root.join("way"), root.join("link"));
    let mut codes = [0, 0];
    for _ in 0..40 {
        let output = bundle.run();
        assert!(output.code == 0 || !output.err().trim().is_empty(), "{output:?}");
        assert!(!output.err().contains("panicked"), "{output:?}");
        codes[usize::from(output.code != 0)] += 1;
        assert_eq!(names(&outside), ["victim"], "something was made on the host: {output:?}");
        bundle.expect_nothing_left();
    }
    drop(racer);
    assert_eq!(bundle.dir().read("outside/victim"), "host");
    println!("{codes:?} started and did not");
}

/// CVE-2025-52881: what is masked or made read-only is exchanged, so that a mount or a write lands elsewhere.
#[test]
fn a_masked_path_exchanged_while_starting_shows_nothing() {
    let bundle = bundle!();
    let root = bundle.rootfs();
    fs::create_dir_all(root.join("secret")).expect("we own it");
    fs::write(root.join("secret/file"), "secret").expect("we own it");
    fs::create_dir(root.join("decoy")).expect("we own it");
    let pattern = fs::read("/proc/sys/kernel/core_pattern").expect("/proc is mounted");
    symlink("/proc/sys/kernel", root.join("link")).expect("we own it");
    let bundle = bundle
        .set("/linux/maskedPaths", json!(["/link", "/decoy", "/proc/kcore"]))
        .set("/linux/readonlyPaths", json!(["/secret", "/proc/sys"]))
        .sh("echo x > /proc/sys/kernel/core_pattern && echo WRITTEN; mount | grep -c ' /proc/sys '; stat -c %F /proc/kcore");
    let racer = Racer::new(root.join("decoy"), root.join("link"));
    for _ in 0..25 {
        let output = bundle.run();
        assert!(!output.out().contains("WRITTEN"), "{output:?}");
        if output.code == 0 {
            assert_eq!(output.out(), "1\ncharacter special file\n", "{output:?}");
        }
        bundle.expect_nothing_left();
    }
    drop(racer);
    assert_eq!(fs::read("/proc/sys/kernel/core_pattern").expect("/proc is mounted"), pattern);
}

/// The image's `/dev` changes while devices and links are made in it.
#[test]
fn a_dev_exchanged_while_starting_reaches_nothing_outside() {
    let mut bundle = bundle!();
    let outside = PathBuf::from(bundle.dir().dir("outside"));
    let root = bundle.rootfs();
    symlink(&outside, root.join("link")).expect("we own it");
    let mounts = bundle.config["mounts"].as_array_mut().expect("an array");
    mounts.retain(|mount| !mount["destination"].as_str().is_some_and(|at| at.starts_with("/dev")));
    let racer = Racer::new(root.join("dev"), root.join("link"));
    for _ in 0..25 {
        let output = bundle.run();
        assert!(output.code == 0 || !output.err().trim().is_empty(), "{output:?}");
        assert!(names(&outside).is_empty(), "made on the host: {:?}: {output:?}", names(&outside));
        bundle.expect_nothing_left();
    }
    drop(racer);
}

/// A generator of moments; its seed is told by a test that fails.
struct Moments(u64);

impl Moments {
    fn new() -> Moments {
        let seed = std::env::var("APEX_SEED").ok().and_then(|word| word.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) | 1);
        println!("APEX_SEED={seed}");
        Moments(seed)
    }

    /// Below that.
    fn below(&mut self, limit: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let limit = u64::try_from(limit.as_micros()).expect("short").max(1);
        Duration::from_micros(self.0 % limit)
    }
}

/// Kills a command at that moment; whether it was still there.
fn kill_at(bundle: &Bundle, words: &[&str], moment: Duration) -> bool {
    let (mut child, _) = bundle.spawn(bundle.command(words));
    std::thread::sleep(moment);
    let was_there = child.try_wait().expect("ours").is_none();
    let _ = child.kill();
    child.wait().expect("ours");
    was_there
}

/// How long the command takes, so that moments fall into it.
fn time_of(bundle: &Bundle, words: &[&str]) -> Duration {
    let begun = Instant::now();
    bundle.oci(words).expect_code(0);
    begun.elapsed()
}

#[test]
fn a_create_killed_at_any_moment_leaves_what_delete_removes() {
    let bundle = bundle!().args(&["sleep", "300"]);
    bundle.write();
    let path = bundle.path();
    let create = ["create", "-b", &path, &bundle.id];
    let time = time_of(&bundle, &create);
    bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
    let (mut moments, mut killed) = (Moments::new(), 0);
    for round in 0..50 {
        let moment = moments.below(time);
        killed += u32::from(kill_at(&bundle, &create, moment));
        let output = bundle.oci(&["delete", "--force", &bundle.id]);
        assert_eq!(output.code, 0, "round {round} at {moment:?} of {time:?}: {output:?}");
        let left = bundle.left();
        assert!(left.is_empty(), "round {round} at {moment:?} of {time:?}: {left:#?}");
    }
    assert!(killed > 10, "only {killed} of 50 were killed on the way");
    // Nothing that was left hinders another.
    bundle.up();
    bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
}

/// The init of a killed create sees that nobody waits for it any more, and goes.
#[test]
fn an_init_whose_create_was_killed_ends_by_itself() {
    let bundle = bundle!().args(&["sleep", "300"]);
    bundle.write();
    let path = bundle.path();
    let create = ["create", "-b", &path, &bundle.id];
    let time = time_of(&bundle, &create);
    bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
    let mut moments = Moments::new();
    for round in 0..15 {
        kill_at(&bundle, &create, moments.below(time));
        let end = Instant::now() + Duration::from_secs(5);
        while bundle.status() != "created" && !leaks::processes(bundle.mark()).is_empty() {
            assert!(Instant::now() < end, "round {round}: {:?}", leaks::processes(bundle.mark()));
            std::thread::sleep(Duration::from_millis(5));
        }
        bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
        bundle.expect_nothing_left();
    }
}

/// A hook that hangs holds up its create; both killed, they are gone. One on the host is its author's, and outlives the runtime: the test ends it.
#[test]
fn a_create_killed_in_a_hook_that_hangs_is_deleted() {
    for phase in ["createRuntime", "createContainer"] {
        let bundle = bundle!();
        let file = bundle.dir().at("hook");
        let script = format!("echo $$ > {file}; exec sleep 304");
        let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}]);
        let bundle = bundle.set(&format!("/hooks/{phase}"), hook);
        bundle.write();
        kill_at(&bundle, &["create", "-b", &bundle.path(), &bundle.id], Duration::from_millis(600));
        if phase == "createRuntime" {
            let pid = bundle.dir().read("hook").trim().parse().expect("a pid");
            kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it hangs");
        }
        bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
        bundle.expect_nothing_left();
    }
}

/// The same while its create still waits for the hook.
#[test]
fn a_create_that_hangs_in_a_hook_is_deleted() {
    let hook = json!([{"path": "/bin/sleep", "args": ["sleep", "304"]}]);
    let bundle = bundle!().set("/hooks/createContainer", hook);
    bundle.write();
    let (child, number) = bundle.spawn(bundle.command(&["create", "-b", &bundle.path(), &bundle.id]));
    std::thread::sleep(Duration::from_millis(400));
    bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
    bundle.outcome(child, number).expect_code(1);
    bundle.expect_nothing_left();
}

/// Without a `delete` between: the id of a killed create is taken again, or the words say what to do.
#[test]
fn an_id_of_a_killed_create_can_be_had_again() {
    let bundle = bundle!().args(&["sleep", "300"]);
    bundle.write();
    let path = bundle.path();
    let create = ["create", "-b", &path, &bundle.id];
    let time = time_of(&bundle, &create);
    bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
    let mut moments = Moments::new();
    for round in 0..15 {
        kill_at(&bundle, &create, moments.below(time));
        let output = bundle.oci(&create);
        assert!(output.code == 0 || output.err().contains("exists already"), "round {round}: {output:?}");
        bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
        bundle.expect_nothing_left();
    }
}

#[test]
fn other_commands_killed_leave_a_container_that_can_be_deleted() {
    let bundle = bundle!().args(&["sleep", "300"]);
    let path = bundle.path();
    let mut moments = Moments::new();
    let lines: [&[&str]; 5] = [
        &["start", &bundle.id],
        &["exec", &bundle.id, "sleep", "1"],
        &["delete", "--force", &bundle.id],
        &["kill", &bundle.id, "KILL"],
        &["pause", &bundle.id],
    ];
    for words in lines {
        for _ in 0..6 {
            bundle.create().expect_code(0);
            if words[0] != "start" {
                bundle.must("start");
            }
            kill_at(&bundle, words, moments.below(Duration::from_millis(30)));
            bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
            let left = bundle.left();
            assert!(left.is_empty(), "after a killed {words:?}: {left:#?}");
        }
    }
    for _ in 0..6 {
        kill_at(&bundle, &["run", "-b", &path, &bundle.id], moments.below(Duration::from_millis(80)));
        bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
        bundle.expect_nothing_left();
    }
}

/// The same for the first process, which anyone may kill.
#[test]
fn an_init_killed_while_it_is_made_is_told() {
    let bundle = bundle!().args(&["sleep", "300"]);
    for _ in 0..10 {
        bundle.create().expect_code(0);
        let pid = bundle.pid();
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it waits");
        let output = bundle.oci(&["start", &bundle.id]).expect_code(1);
        assert!(!output.err().trim().is_empty());
        bundle.oci(&["delete", &bundle.id]).expect_code(0);
        bundle.expect_nothing_left();
    }
}

/// Runs a script with a small file system of its own as the directory of states, in a mount namespace of its own.
#[track_caller]
fn on_small_disk(bundle: &Bundle, options: &str, script: &str) -> apex_tests::Output {
    bundle.write();
    fs::create_dir_all(bundle.root()).expect("we own it");
    let script = format!("mount -t tmpfs -o {options} none \"$ROOT\" && {script}");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    command.env("ROOT", bundle.root()).env("OCI", bundle.binary()).env("ID", &bundle.id).env("BUNDLE", bundle.path());
    bundle.finish(command)
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    let script = "$OCI --root \"$ROOT\" create -b \"$BUNDLE\" \"$ID\"; code=$?; \
        [ $code = 0 ] && $OCI --root \"$ROOT\" delete --force \"$ID\"; ls -A \"$ROOT\"; exit $code";
    let mut failed = 0;
    let annotation = "x".repeat(30_000);
    let bundle = bundle!().set("/annotations", json!({"long": annotation}));
    let sizes =
        (1..=24).map(|pages| format!("size={}k", pages * 4)).chain((1..=6).map(|count| format!("nr_inodes={count}")));
    for options in sizes {
        let output = on_small_disk(&bundle, &options, script);
        assert!([0, 1].contains(&output.code), "{options}: {output:?}");
        assert_eq!(output.out(), "", "{options}: something is left in the directory of states: {output:?}");
        if output.code == 1 {
            failed += 1;
            assert!(output.err().contains("space") || output.err().contains("cannot"), "{options}: {output:?}");
        }
        bundle.expect_nothing_left();
    }
    assert!(failed > 5, "the disk was hardly ever full: {failed}");
}

/// A start on a disk that has become full still starts or says why; the container can be deleted.
#[test]
fn a_disk_that_fills_up_does_not_keep_a_container_alive() {
    let script = "$OCI --root \"$ROOT\" create -b \"$BUNDLE\" \"$ID\" || exit 9; cat /dev/zero > \"$ROOT/fill\" 2>/dev/null; \
        $OCI --root \"$ROOT\" start \"$ID\"; echo start $?; $OCI --root \"$ROOT\" exec \"$ID\" true; echo exec $?; \
        rm \"$ROOT/fill\"; cat /dev/zero > \"$ROOT/fill\" 2>/dev/null; $OCI --root \"$ROOT\" delete --force \"$ID\"; echo delete $?; rm \"$ROOT/fill\"; ls -A \"$ROOT\"";
    let bundle = bundle!().args(&["sleep", "300"]);
    let output = on_small_disk(&bundle, "size=256k", script);
    assert_eq!(output.out(), "start 0\nexec 0\ndelete 0\n", "{output:?}");
    bundle.expect_nothing_left();
}

#[test]
fn descriptors_that_run_out_are_told_and_leave_nothing() {
    let bundle = bundle!();
    bundle.write();
    let mut codes = [0, 0];
    for limit in (3..30).chain([34, 40, 64, 128, 256]) {
        let line = format!("ulimit -Sn {limit}; exec \"$OCI\" --root \"$ROOT\" run -b \"$BUNDLE\" \"$ID\"");
        let mut command = Command::new("sh");
        command.args(["-c", &line]).env("ROOT", bundle.root()).env("OCI", bundle.binary()).env("ID", &bundle.id);
        command.env("BUNDLE", bundle.path());
        let output = bundle.finish(command);
        assert!([0, 1].contains(&output.code), "{limit}: {output:?}");
        assert!(!output.err().contains("panicked"), "{limit}: {output:?}");
        assert!(output.code == 0 || !output.err().trim().is_empty(), "{limit}: {output:?}");
        codes[usize::from(output.code != 0)] += 1;
        // What cannot be taken back without descriptors is left to this.
        bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
        let left = bundle.left();
        assert!(left.is_empty(), "{limit}: {left:#?}");
    }
    assert!(codes[0] > 0 && codes[1] > 0, "{codes:?}");
}

#[test]
fn processes_that_run_out_are_told() {
    if !Path::new("/sys/fs/cgroup/pids/cgroup.procs").exists() {
        apex_tests::skip!("no hierarchy of version 1 with the controller pids");
    }
    let bundle = bundle!().set("/linux/resources/pids", json!({"limit": 1})).args(&["sleep", "300"]);
    bundle.up();
    let output = bundle.exec("true");
    // An exec may be let in beyond the limit by moving into the cgroup, but nothing more can be forked there.
    assert!(output.code == 0 || !output.err().trim().is_empty(), "{output:?}");
    bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
    bundle.expect_nothing_left();
}

#[test]
fn a_container_that_multiplies_is_deleted() {
    if !Path::new("/sys/fs/cgroup/pids/cgroup.procs").exists() {
        apex_tests::skip!("no hierarchy of version 1 with the controller pids");
    }
    for with_pid_namespace in [true, false] {
        let mut bundle = bundle!().set("/linux/resources/pids", json!({"limit": 150})).args(&["inside", "bomb"]);
        if !with_pid_namespace {
            bundle = bundle.namespace("pid", None);
        }
        bundle.up();
        std::thread::sleep(Duration::from_millis(300));
        let begun = Instant::now();
        bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        bundle.expect_nothing_left();
    }
}

/// Two bundles by one name, exchanged all the time: each container is whole, of one of them.
#[test]
fn a_bundle_exchanged_while_starting_is_one_or_the_other() {
    let bundle = bundle!().args(&["cat", "/marker"]);
    bundle.write();
    let (one, other) = (bundle.dir().path().join("bundle"), bundle.dir().path().join("other"));
    let status = Command::new("cp").args(["-a"]).arg(&one).arg(&other).status().expect("coreutils are there");
    assert!(status.success());
    fs::write(one.join("rootfs/marker"), "one\n").expect("we own it");
    fs::write(other.join("rootfs/marker"), "other\n").expect("we own it");
    let racer = Racer::new(one, other);
    let path = bundle.path();
    for _ in 0..20 {
        let output = bundle.oci(&["run", "-b", &path, &bundle.id]);
        let is_whole = ["one\n", "other\n"].contains(&output.out().as_str());
        assert!(output.code == 0 && is_whole || output.code == 1 && !output.err().trim().is_empty(), "{output:?}");
        bundle.expect_nothing_left();
    }
    drop(racer);
}

//! What a hostile image or a hostile container does to `apex-oci` and to the host through it: nothing. Each way that was tried on runc from 2019
//! to 2025 is a test.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use apex_tests::bundle;
use apex_tests::oci::{Bundle, Receiver};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

/// A bundle with its own copy of the program, and what that copy holds.
fn with_own_binary(bundle: Bundle) -> (Bundle, Vec<u8>) {
    let bundle = bundle.own_binary();
    let bytes = fs::read(bundle.binary()).expect("we own it");
    (bundle, bytes)
}

#[track_caller]
fn expect_unchanged(bundle: &Bundle, bytes: &[u8]) {
    let now = fs::read(bundle.binary()).expect("it is still there");
    assert!(now == bytes, "the runtime's binary was changed");
    assert_eq!(fs::metadata(bundle.binary()).expect("it is there").permissions().mode() & 0o777, 0o755);
}

/// Waits until the attacker in the container has written that; what it wrote.
#[track_caller]
fn until_told(bundle: &Bundle, number: u32, words: &str) -> String {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let told = bundle.dir().read(&format!("{number}.out"));
        if told.contains(words) {
            return told;
        }
        assert!(Instant::now() < end, "the attacker does not say {words:?}: {told}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The attacker, started. Nobody waits for it: whoever did would execute the image that it wants to write to.
#[track_caller]
fn lurker(bundle: &Bundle, seconds: u32) -> u32 {
    let words = ["exec", "--detach", &bundle.id, "inside", "lurk", &seconds.to_string()];
    let (child, number) = bundle.spawn(bundle.command(&words));
    bundle.outcome(child, number).expect_code(0);
    until_told(bundle, number, "lurking");
    number
}

/// Programs of the container.
const HARMLESS: &[&[&str]] = &[&["true"], &["sh", "-c", "exit 3"], &["/no/such/program"]];
/// Those that make the runtime's own image the program: by its link and by a script that names it.
const OWN_IMAGE: &[&[&str]] =
    &[&["true"], &["/proc/self/exe", "features"], &["evil"], &["/proc/self/exe", "exec", "x", "y"]];

/// Who enters is attacked all the while; the attacker's words.
#[track_caller]
fn enter_under_attack(bundle: &Bundle, programs: &[&[&str]]) -> String {
    let script = bundle.rootfs().join("bin/evil");
    fs::write(&script, "#!/proc/self/exe\n").expect("we own it");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("we own it");
    bundle.up();
    let number = lurker(bundle, 4);
    let begun = Instant::now();
    let mut rounds = 0;
    while begun.elapsed() < Duration::from_secs(4) {
        for words in programs {
            // Whatever becomes of it: an attacker may end it.
            bundle.oci(&[&["exec", &bundle.id], *words].concat());
            rounds += 1;
        }
    }
    assert!(rounds > 8, "too few to be an attack: {rounds}");
    until_told(bundle, number, "saw ")
}

/// CVE-2019-5736: with every capability of the host's root an attacker may read the entering process, but not write to its binary.
#[test]
fn the_runtimes_binary_is_not_overwritten() {
    let (bundle, bytes) = with_own_binary(bundle!().mighty().args(&["sleep", "300"]));
    let told = enter_under_attack(&bundle, OWN_IMAGE);
    assert!(!told.contains("OVERWRITTEN"), "{told}");
    // It did come close: without having met the runtime, the test would say nothing.
    assert!(told.contains("READABLE"), "the attacker never saw the runtime: {told}");
    expect_unchanged(&bundle, &bytes);
    bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
    bundle.expect_nothing_left();
}

/// Without CAP_SYS_PTRACE it must not look at it at all: its memory holds the host's descriptors and secrets.
#[test]
fn who_enters_cannot_be_looked_into() {
    let (bundle, bytes) = with_own_binary(bundle!().args(&["sleep", "300"]));
    let told = enter_under_attack(&bundle, HARMLESS);
    for word in ["OVERWRITTEN", "READABLE", "MEMORY", "TRACED"] {
        assert!(!told.contains(word), "{told}");
    }
    expect_unchanged(&bundle, &bytes);
}

/// Root of a user namespace has CAP_SYS_PTRACE in it; who enters is not its own.
#[test]
fn who_enters_a_user_namespace_cannot_be_looked_into() {
    let map = json!([{"containerID": 0, "hostID": 200_000, "size": 65_536}]);
    let bundle = bundle!()
        .mighty()
        .namespace("user", Some(json!({"type": "user"})))
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map)
        .args(&["sleep", "300"]);
    let (bundle, bytes) = with_own_binary(bundle);
    let told = enter_under_attack(&bundle, HARMLESS);
    for word in ["OVERWRITTEN", "READABLE", "MEMORY", "TRACED"] {
        assert!(!told.contains(word), "{told}");
    }
    expect_unchanged(&bundle, &bytes);
}

/// A created container's first process is the runtime until the start, and commands may run beside it.
#[test]
fn a_container_that_waits_cannot_be_looked_into() {
    for is_mighty in [true, false] {
        let bundle = bundle!().args(&["sleep", "300"]);
        let (bundle, bytes) = with_own_binary(if is_mighty { bundle.mighty() } else { bundle });
        bundle.create().expect_code(0);
        let number = lurker(&bundle, 1);
        let told = until_told(&bundle, number, "saw ");
        assert!(!told.contains("OVERWRITTEN"), "{told}");
        assert!(is_mighty || !told.contains("MEMORY") && !told.contains("TRACED"), "{told}");
        assert_eq!(is_mighty, told.contains("READABLE"), "{told}");
        expect_unchanged(&bundle, &bytes);
        bundle.must("delete");
        bundle.expect_nothing_left();
    }
}

/// A second container of a pod that shares its pid namespace is seen by the first while it is made.
#[test]
fn a_container_that_is_made_cannot_be_looked_into_by_its_neighbour() {
    let first = bundle!().args(&["sleep", "300"]);
    first.up();
    let pids = json!({"type": "pid", "path": format!("/proc/{}/ns/pid", first.pid())});
    let number = lurker(&first, 4);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        let second = bundle!().namespace("pid", Some(pids.clone()));
        second.run().expect_code(0);
    }
    let told = until_told(&first, number, "saw ");
    for word in ["OVERWRITTEN", "READABLE", "MEMORY", "TRACED"] {
        assert!(!told.contains(word), "{told}");
    }
}

/// The first program is the runtime's own binary, which writes to itself.
#[test]
fn an_entry_point_that_is_the_runtime_changes_nothing() {
    for args in [&["/proc/self/exe", "features"][..], &["evil"], &["/proc/1/exe", "--version"]] {
        let bundle = bundle!().mighty().args(args);
        let script = bundle.rootfs().join("bin/evil");
        fs::write(&script, "#!/proc/self/exe\n").expect("we own it");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("we own it");
        let (bundle, bytes) = with_own_binary(bundle);
        let output = bundle.run();
        assert!([0, 1].contains(&output.code), "{output:?}");
        expect_unchanged(&bundle, &bytes);
        bundle.expect_nothing_left();
    }
}

/// CVE-2024-21626: a working directory that is a descriptor of the runtime's.
#[test]
fn a_working_directory_by_a_descriptor_stays_inside() {
    let bundle = bundle!();
    let marker = bundle.dir().file("marker", "host");
    let up = "../".repeat(20);
    let script = format!("cat ./{up}{marker} && echo ESCAPED; ls ./{up}work/main 2>/dev/null && echo ESCAPED; true");
    for number in 0..24 {
        for at in [format!("/proc/self/fd/{number}"), format!("/proc/self/fd/{number}/../../..")] {
            let bundle = bundle!().sh(&script).set("/process/cwd", json!(at));
            let output = bundle.run();
            assert!(!output.out().contains("ESCAPED"), "{at}: {output:?}");
            assert!(output.code == 0 || !output.err().trim().is_empty(), "{at}: {output:?}");
        }
    }
    let bundle = bundle.args(&["sleep", "300"]);
    bundle.up();
    for number in 0..24 {
        let at = format!("/proc/self/fd/{number}");
        let output = bundle.oci(&["exec", "--cwd", &at, &bundle.id, "sh", "-c", &script]);
        assert!(!output.out().contains("ESCAPED"), "{at}: {output:?}");
    }
    // The image can hide it behind a link.
    symlink("/proc/self/fd/7", bundle.rootfs().join("work")).expect("we own it");
    let output = bundle.oci(&["exec", "--cwd", "/work", &bundle.id, "sh", "-c", &script]);
    assert!(!output.out().contains("ESCAPED"), "{output:?}");
}

/// No descriptor of the runtime or of its caller comes in, also not by the directory of the first process.
#[test]
fn no_descriptor_leaks() {
    let bundle = bundle!().args(&["inside", "descriptors"]);
    let told = bundle.run().expect_code(0).out();
    assert_eq!(told.lines().count(), 3, "{told}");
    assert!(!told.contains("cgroup") && !told.contains("socket:"), "{told}");
    let bundle = bundle.args(&["sleep", "300"]);
    bundle.up();
    let open = || fs::read_dir(format!("/proc/{}/fd", bundle.pid())).expect("it lives").count();
    assert_eq!(open(), 3);
    let told = bundle.oci(&["exec", &bundle.id, "inside", "descriptors"]).expect_code(0).out();
    assert_eq!(told.lines().count(), 3, "{told}");
    assert_eq!(open(), 3);
}

/// CVE-2019-19921 and its like: a `/proc` of the image's own would take the writes of labels and limits.
#[test]
fn a_proc_that_is_a_link_is_refused_or_real() {
    for name in ["proc", "sys"] {
        for target in ["/tmp/fake", "../../../../../../../../tmp", "/etc"] {
            let bundle = bundle!().sh(&format!("stat -f -c %T /{name}; readlink /{name}"));
            let path = bundle.rootfs().join(name);
            fs::remove_dir(&path).expect("we own it");
            symlink(target, &path).expect("we own it");
            fs::create_dir(bundle.rootfs().join("tmp/fake")).expect("we own it");
            let output = bundle.run();
            assert_eq!(output.code, 1, "/{name} is a link to {target} and that is taken: {output:?}");
            assert!(output.err().contains(&format!("/{name}")), "{}", output.err());
            bundle.expect_nothing_left();
        }
    }
}

/// Everything below a directory: what it is, whose, and what it holds.
fn snapshot(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("it is there").flatten() {
        let facts = entry.metadata().expect("it is there");
        found.push(format!("{:?} {:o} {} {}", entry.file_name(), facts.mode(), facts.uid(), facts.len()));
        if facts.is_dir() {
            found.extend(snapshot(&entry.path()));
        }
    }
    found.sort();
    found
}

#[test]
fn links_at_every_mount_target_reach_nothing_outside() {
    let targets =
        ["proc", "dev", "dev/pts", "dev/shm", "dev/mqueue", "sys", "sys/fs/cgroup", "data", "data/deep/er", "file"];
    for target in targets {
        for is_absolute in [true, false] {
            let mut bundle = bundle!();
            let outside = bundle.dir().dir("outside");
            bundle.dir().file("outside/victim", "host");
            let source = bundle.dir().file("source/file", "bound");
            let before = snapshot(Path::new(&outside));
            // Without what would be mounted above it, the link is the image's.
            let mounts = bundle.config["mounts"].as_array_mut().expect("an array");
            mounts.retain(|mount| {
                !format!("/{target}").starts_with(&format!("{}/", mount["destination"].as_str().expect("text")))
            });
            let bundle = bundle
                .push("/mounts", json!({"destination": "/data/deep/er", "type": "tmpfs", "source": "tmpfs"}))
                .push("/mounts", json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs"}))
                .push("/mounts", json!({"destination": "/file", "type": "bind", "source": source, "options": ["bind"]}))
                .sh("for d in /proc /dev /sys /data /file; do echo x > $d/x; done 2>/dev/null; true");
            let path = bundle.rootfs().join(target);
            fs::create_dir_all(path.parent().expect("it has one")).expect("we own it");
            let _ = fs::remove_dir(&path);
            let climbing = format!("{}{outside}", "../".repeat(20));
            symlink(if is_absolute { outside.as_str() } else { climbing.as_str() }, &path).expect("we own it");
            let output = bundle.run();
            assert!(output.code == 0 || !output.err().trim().is_empty(), "{target}: {output:?}");
            assert_eq!(snapshot(Path::new(&outside)), before, "{target}: the host was changed: {output:?}");
            bundle.expect_nothing_left();
        }
    }
}

/// Without a `/dev` of its own the container's is the image's.
fn with_the_images_dev(mut bundle: Bundle) -> Bundle {
    let mounts = bundle.config["mounts"].as_array_mut().expect("an array");
    mounts.retain(|mount| !mount["destination"].as_str().is_some_and(|at| at.starts_with("/dev")));
    bundle
}

/// CVE-2025-31133: a masked file is covered with what the image calls `/dev/null`.
#[test]
fn a_null_device_that_is_none_does_not_unmask() {
    for target in ["/proc/sys/kernel/core_pattern", "/etc/passwd", "/outside"] {
        let bundle = with_the_images_dev(bundle!().mighty());
        fs::write(bundle.rootfs().join("secret"), "secret").expect("we own it");
        symlink(target, bundle.rootfs().join("dev/null")).expect("we own it");
        let before = fs::read("/proc/sys/kernel/core_pattern").expect("/proc is mounted");
        let bundle = bundle
            .set("/linux/maskedPaths", json!(["/secret", "/proc/kcore"]))
            .sh("cat /secret; echo '|evil' > /secret; stat -c %F /secret; stat -c %F /proc/kcore");
        let output = bundle.run();
        if output.code == 0 {
            assert_eq!(output.out(), "character special file\ncharacter special file\n", "{target}");
        } else {
            assert!(!output.err().trim().is_empty());
        }
        assert_eq!(fs::read("/proc/sys/kernel/core_pattern").expect("/proc is mounted"), before);
        bundle.expect_nothing_left();
    }
}

/// CVE-2025-52565: the terminal is bound to what the image calls `/dev/console`.
#[test]
fn a_console_that_is_a_link_reaches_nothing() {
    for in_dev in [true, false] {
        let bundle = bundle!();
        let victim = bundle.dir().file("victim", "host");
        let bundle = if in_dev { bundle } else { with_the_images_dev(bundle) };
        symlink(&victim, bundle.rootfs().join("dev/console")).expect("we own it");
        symlink("/proc/sysrq-trigger", bundle.rootfs().join("dev/ptmx")).expect("we own it");
        let bundle =
            bundle.set("/process/terminal", json!(true)).sh("echo evil > /dev/console; stat -c %F /dev/console");
        bundle.write();
        let path = bundle.dir().at("console");
        let receiver = Receiver::new(&path);
        let taken = std::thread::spawn(move || std::panic::catch_unwind(|| receiver.take()));
        let output = bundle.oci(&["run", "-b", &bundle.path(), "--console-socket", &path, &bundle.id]);
        assert!(output.code == 0 || !output.err().trim().is_empty(), "{output:?}");
        assert_eq!(bundle.dir().read("victim"), "host");
        bundle.expect_nothing_left();
        // Refused before, nobody connects: then the thread ends by itself, later.
        if output.code == 0 {
            taken.join().expect("no panic").expect("a terminal came");
        }
    }
}

/// Puts something in the place of a file.
type Prepare = fn(&Path);

/// Without HOME in the environment, the image's list of users is asked for it.
#[test]
fn a_hostile_list_of_users_is_no_trap() {
    let prepare: [(&str, Prepare); 5] = [
        ("fifo", |path| mkfifo(path, Mode::from_bits_truncate(0o644)).expect("we own it")),
        ("huge", |path| fs::File::create(path).and_then(|file| file.set_len(1 << 40)).expect("sparse")),
        ("endless", |path| symlink("/dev/zero", path).expect("we own it")),
        ("of the host", |path| symlink("../../../../../../../../etc/passwd", path).expect("we own it")),
        ("directory", |path| fs::create_dir(path).expect("we own it")),
    ];
    for (name, make) in prepare {
        let bundle = bundle!().sh("echo home $HOME");
        for file in ["etc/passwd", "etc/group"] {
            fs::remove_file(bundle.rootfs().join(file)).expect("we own it");
            make(&bundle.rootfs().join(file));
        }
        let begun = Instant::now();
        let output = bundle.run();
        assert!(begun.elapsed() < Duration::from_secs(15), "{name}: {:?}", begun.elapsed());
        assert!(output.code == 0 || !output.err().trim().is_empty(), "{name}: {output:?}");
        bundle.expect_nothing_left();
    }
}

#[test]
fn a_root_that_is_a_link_is_where_it_leads() {
    let bundle = bundle!().sh("cat /marker; ls /");
    let real = bundle.dir().path().join("real");
    fs::rename(bundle.rootfs(), &real).expect("we own it");
    fs::write(real.join("marker"), "real\n").expect("we own it");
    symlink(&real, bundle.rootfs()).expect("we own it");
    let output = bundle.run();
    match output.code {
        0 => assert!(output.out().starts_with("real\n"), "{output:?}"),
        _ => assert!(output.err().contains("rootfs"), "{output:?}"),
    }
    bundle.expect_nothing_left();
}

/// The files by which a container of cgroup v1 would become the host (`release_agent`), and its limits.
#[test]
fn cgroups_give_no_way_out() {
    let script = "mount -t cgroup -o memory none /mnt && echo ESCAPED; mount -t cgroup2 none /mnt && echo ESCAPED; \
        unshare -m true && echo ESCAPED; \
        for f in /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/*/notify_on_release /sys/fs/cgroup/*/cgroup.procs \
            /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/devices/devices.allow; do echo 1 > $f && echo ESCAPED $f; done; \
        mkdir /sys/fs/cgroup/memory/x && echo ESCAPED; ls /sys/fs/cgroup/memory/../../.. | head -3; echo done";
    let output = bundle!().sh(script).run().expect_code(0);
    assert!(!output.out().contains("ESCAPED") && output.out().contains("done"), "{output:?}");
    let map = json!([{"containerID": 0, "hostID": 200_000, "size": 65_536}]);
    let bundle = bundle!()
        .mighty()
        .namespace("user", Some(json!({"type": "user"})))
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map)
        .sh(&script
            .replace("unshare -m true && echo ESCAPED; ", "")
            .replace("mount -t cgroup2 none /mnt && echo ESCAPED; ", ""));
    let output = bundle.run().expect_code(0);
    assert!(!output.out().contains("ESCAPED") && output.out().contains("done"), "{output:?}");
}

/// What the kernel tells of the host stays hidden also to a root of all capabilities but that of mounting.
#[test]
fn a_container_cannot_unmask() {
    let script = "umount /proc/kcore && echo ESCAPED; mount -o remount,rw /proc/sys && echo ESCAPED; echo 1 > /proc/sys/kernel/sysrq && echo ESCAPED; \
        echo b > /proc/sysrq-trigger && echo ESCAPED; mount -t proc proc /mnt && echo ESCAPED; cat /sys/firmware/* 2>/dev/null | head -c 10; echo done";
    let output = bundle!().sh(script).run().expect_code(0);
    assert_eq!(output.out(), "done\n", "{output:?}");
}

/// Devices that the image has prepared in the place of the container's own.
#[test]
fn devices_in_the_place_of_others_are_replaced_or_refused() {
    let make: [fn(&Path); 3] = [
        |path| fs::create_dir(path).expect("we own it"),
        |path| fs::write(path, "file").expect("we own it"),
        |path| symlink("/proc/sys/kernel/core_pattern", path).expect("we own it"),
    ];
    for make in make {
        let bundle = with_the_images_dev(bundle!());
        for name in ["zero", "full", "tty", "urandom", "random", "fd", "stdin"] {
            make(&bundle.rootfs().join("dev").join(name));
        }
        let output = bundle.sh("stat -c %F /dev/zero /dev/full").run();
        match output.code {
            0 => assert_eq!(output.out(), "character special file\n".repeat(2)),
            _ => assert!(output.err().contains("/dev"), "{output:?}"),
        }
    }
}

/// The state that others read must not be forged by an annotation.
#[test]
fn annotations_cannot_forge_a_state() {
    let evil: Value = json!({"x": "\",\"pid\":1,\"y\":\"", "a\nb": "\u{1b}[31m"});
    let bundle = bundle!().set("/annotations", evil.clone()).args(&["sleep", "300"]);
    bundle.up();
    let state = bundle.state();
    assert_eq!(state["annotations"], evil);
    assert!(state["pid"].as_i64().is_some_and(|pid| pid > 1), "{state}");
}

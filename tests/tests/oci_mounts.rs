//! The file system that a `config.json` asks for, looked at from inside: mounts and their options, propagation, mapped ids, devices, masks.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use apex_tests::bundle;
use apex_tests::oci::Bundle;
use serde_json::{Value, json};

#[track_caller]
fn told(bundle: &Bundle) -> String {
    let output = bundle.run().expect_code(0);
    bundle.expect_nothing_left();
    output.out()
}

/// The options of a mount point inside, of the mount and of its file system.
#[track_caller]
fn options(bundle: &Bundle, at: &str) -> (Vec<String>, Vec<String>) {
    let text = bundle.exec("cat /proc/self/mountinfo").expect_code(0).out();
    let line = text.lines().rfind(|line| line.split(' ').nth(4) == Some(at));
    let line = line.unwrap_or_else(|| panic!("{at} is no mount point: {text}"));
    let words = |word: Option<&str>| word.unwrap_or_default().split(',').map(str::to_owned).collect();
    (words(line.split(' ').nth(5)), words(line.split(' ').next_back()))
}

fn tmpfs(at: &str, options: &[&str]) -> Value {
    json!({"destination": at, "type": "tmpfs", "source": "tmpfs", "options": options})
}

fn bind(source: &str, at: &str, options: &[&str]) -> Value {
    json!({"destination": at, "type": "bind", "source": source, "options": options})
}

#[test]
fn options_of_a_mount_hold() {
    let bundle = bundle!()
        .args(&["sleep", "300"])
        .push("/mounts", tmpfs("/mnt", &["nosuid", "nodev", "noexec", "ro", "noatime", "size=1m", "mode=711"]))
        .push("/mounts", tmpfs("/home", &["relatime", "nr_inodes=50"]));
    bundle.up();
    let (own, of_fs) = options(&bundle, "/mnt");
    for option in ["nosuid", "nodev", "noexec", "ro", "noatime"] {
        assert!(own.iter().any(|one| one == option), "{option} is not in {own:?}");
    }
    assert!(of_fs.contains(&"size=1024k".to_owned()) && of_fs.contains(&"mode=711".to_owned()), "{of_fs:?}");
    let (own, of_fs) = options(&bundle, "/home");
    assert!(own.contains(&"rw".to_owned()) && own.contains(&"relatime".to_owned()), "{own:?}");
    assert!(of_fs.contains(&"nr_inodes=50".to_owned()), "{of_fs:?}");
    bundle.exec("touch /mnt/x").expect_code(1);
    bundle.exec("touch /home/x").expect_code(0);
}

#[test]
fn an_option_nobody_knows_is_refused() {
    for options in [&["nonsense"][..], &["size=plenty"], &["nosuid", "mode=999999"]] {
        let bundle = bundle!().push("/mounts", tmpfs("/mnt", options));
        let output = bundle.run().expect_code(1);
        assert!(output.err().contains("/mnt"), "{}", output.err());
        bundle.expect_nothing_left();
    }
}

#[test]
fn a_bind_mount_can_be_read_only_as_a_whole() {
    let bundle = bundle!();
    bundle.dir().file("data/sub/file", "inside\n");
    let source = bundle.dir().at("data");
    let bundle = bundle
        .args(&["sleep", "300"])
        .push("/mounts", bind(&source, "/a", &["rbind", "ro"]))
        .push("/mounts", bind(&source, "/b", &["bind", "rro"]))
        .push("/mounts", bind(&source, "/c", &["bind", "nosuid", "nodev"]))
        .push("/mounts", bind(&format!("{source}/sub/file"), "/d/e/file", &["bind", "ro"]));
    bundle.up();
    bundle.exec("cat /a/sub/file /b/sub/file /c/sub/file /d/e/file").expect_code(0);
    bundle.exec("touch /a/x").expect_code(1);
    bundle.exec("touch /b/sub/x").expect_code(1);
    bundle.exec("echo x > /d/e/file").expect_code(1);
    bundle.exec("touch /c/x").expect_code(0);
    assert!(bundle.dir().path().join("data/x").exists());
    let (own, _) = options(&bundle, "/c");
    assert!(own.contains(&"nosuid".to_owned()) && own.contains(&"nodev".to_owned()), "{own:?}");
}

#[test]
fn a_source_that_is_not_there_is_named() {
    let bundle = bundle!().push("/mounts", bind("/no/such/source", "/a", &["bind"]));
    let output = bundle.run().expect_code(1);
    assert!(output.err().contains("/no/such/source"), "{}", output.err());
    bundle.expect_nothing_left();
}

#[test]
fn propagation_is_as_asked() {
    for (word, expected) in [("private", ""), ("shared", "shared:"), ("slave", ""), ("unbindable", "unbindable")] {
        let bundle = bundle!().args(&["cat", "/proc/self/mountinfo"]).push("/mounts", tmpfs("/mnt", &[word]));
        let text = told(&bundle);
        let line = text.lines().find(|line| line.split(' ').nth(4) == Some("/mnt")).expect("it is mounted");
        let tags: Vec<&str> = line.split(' ').skip(6).take_while(|word| *word != "-").collect();
        let fits = if expected.is_empty() { tags.is_empty() } else { tags.iter().any(|tag| tag.starts_with(expected)) };
        assert!(fits, "{word}: {line}");
    }
}

#[test]
fn the_root_propagates_as_asked() {
    for (word, tag) in [("private", None), ("shared", Some("shared:")), ("unbindable", Some("unbindable"))] {
        let bundle = bundle!().set("/linux/rootfsPropagation", json!(word)).args(&["cat", "/proc/self/mountinfo"]);
        let text = told(&bundle);
        let line = text.lines().find(|line| line.split(' ').nth(4) == Some("/")).expect("the root");
        let tags: Vec<&str> = line.split(' ').skip(6).take_while(|word| *word != "-").collect();
        match tag {
            None => assert!(tags.is_empty(), "{word}: {line}"),
            Some(tag) => assert!(tags.iter().any(|one| one.starts_with(tag)), "{word}: {line}"),
        }
    }
}

#[test]
fn nothing_that_is_mounted_inside_reaches_the_host() {
    let bundle = bundle!().mighty().sh("mount -t tmpfs none /mnt && grep -c ' /mnt ' /proc/self/mountinfo");
    assert_eq!(told(&bundle).trim(), "1");
}

#[test]
fn ids_of_a_mount_are_mapped() {
    let bundle = bundle!();
    bundle.dir().file("data/file", "");
    let source = bundle.dir().at("data");
    std::os::unix::fs::chown(format!("{source}/file"), Some(1000), Some(1001)).expect("root may");
    let mut mount = bind(&source, "/mnt", &["bind"]);
    mount["uidMappings"] = json!([{"containerID": 1000, "hostID": 5000, "size": 1}]);
    mount["gidMappings"] = json!([{"containerID": 1001, "hostID": 5001, "size": 1}]);
    let bundle = bundle.push("/mounts", mount).args(&["stat", "-c", "%u %g", "/mnt/file"]);
    let output = bundle.run();
    // The file systems that can are the kernel's choice; tmpfs and ext4 are among them.
    assert_eq!((output.code, output.out().trim()), (0, "5000 5001"), "{}", output.err());
    assert_eq!(fs::metadata(format!("{source}/file")).expect("it is there").uid(), 1000);
}

#[test]
fn the_usual_devices_are_there() {
    let script = "for d in null zero full random urandom tty; do stat -c '%n %t:%T %a' /dev/$d; done; for l in fd stdin ptmx; do readlink /dev/$l; done; \
        echo x > /dev/null; head -c 3 /dev/zero | od -An -tx1; ls -l /dev/shm /dev/mqueue > /dev/null; [ ! -e /dev/console ] && echo none";
    let text = told(&bundle!().sh(script));
    for line in
        ["/dev/null 1:3 666", "/dev/zero 1:5 666", "/dev/full 1:7 666", "/dev/tty 5:0 666", "/proc/self/fd", "00 00 00"]
    {
        assert!(text.contains(line), "{line:?} is not in {text}");
    }
}

#[test]
fn devices_of_the_bundle_are_made_and_allowed() {
    let device =
        json!({"path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 7, "gid": 8});
    let pipe = json!({"path": "/dev/sub/pipe", "type": "p", "fileMode": 0o600});
    let bundle = bundle!()
        .set("/process/user", json!({"uid": 7, "gid": 8}))
        .push("/linux/devices", device)
        .push("/linux/devices", pipe)
        .push("/linux/resources/devices", json!({"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rw"}))
        .sh(
            "stat -c '%t:%T %a %u:%g' /dev/mine; test -p /dev/sub/pipe && echo pipe; head -c 1 /dev/mine | od -An -tx1",
        );
    assert_eq!(told(&bundle), "1:5 640 7:8\npipe\n 00\n");
}

/// Making a node is allowed, as with runc; opening it is what the cgroup judges.
#[test]
fn other_devices_are_refused_by_the_cgroup() {
    let script = "for d in 'mem c 1 1' 'kmsg c 1 11' 'loop b 7 0' 'fuse c 10 229' 'tun c 10 200'; do set -- $d; \
        mknod /tmp/$1 $2 $3 $4; (: < /tmp/$1) && echo opened $1; (: > /tmp/$1) && echo opened $1; done; echo done";
    let output = bundle!().mighty().sh(script).run();
    // The tunnel's device is one that runc gives, and so is this.
    let opened: Vec<String> = output.out().lines().filter(|line| !line.ends_with("tun")).map(str::to_owned).collect();
    assert_eq!(opened, ["done"], "{output:?}");
    assert!(output.err().contains("Operation not permitted"), "{output:?}");
}

#[test]
fn a_read_only_root_is_one() {
    let bundle = bundle!()
        .set("/root/readonly", json!(true))
        .sh("touch /x || touch /etc/x || echo none; touch /dev/shm/x && echo shm");
    assert_eq!(told(&bundle), "none\nshm\n");
    assert!(!bundle.rootfs().join("x").exists());
}

#[test]
fn masked_paths_show_nothing() {
    let bundle = bundle!();
    bundle.dir().file("bundle/rootfs/secret/file", "secret");
    bundle.dir().file("bundle/rootfs/etc/key", "secret");
    let bundle = bundle
        .mighty()
        .set("/linux/maskedPaths", json!(["/secret", "/etc/key", "/proc/kcore", "/not/there"]))
        .sh("ls -A /secret; cat /etc/key; head -c 1 /proc/kcore; touch /secret/x 2>&1; echo x > /etc/key; cat /etc/key; ls -d /not 2>&1");
    let output = bundle.run();
    let text = output.out();
    assert!(!text.contains("secret\n") && text.contains("Read-only file system"), "{text}");
    assert!(text.contains("/not: No such file"), "{text}");
    assert_eq!(fs::read_to_string(bundle.rootfs().join("etc/key")).expect("it is there"), "secret");
    bundle.expect_nothing_left();
}

#[test]
fn read_only_paths_can_be_read() {
    let bundle = bundle!();
    bundle.dir().file("bundle/rootfs/data/file", "text\n");
    let bundle = bundle
        .mighty()
        .set("/linux/readonlyPaths", json!(["/data", "/proc/sys", "/not/there"]))
        .sh("cat /data/file; touch /data/x 2>&1; echo 1 > /proc/sys/kernel/panic");
    let output = bundle.run();
    assert!(output.out().starts_with("text\n") && output.out().contains("Read-only file system"), "{}", output.out());
    assert!(!bundle.rootfs().join("data/x").exists());
}

#[test]
fn links_at_destinations_stay_inside() {
    let bundle = bundle!();
    let outside = bundle.dir().dir("outside");
    let root = bundle.rootfs();
    symlink(&outside, root.join("absolute")).expect("we own it");
    symlink("../../../../../../../../tmp", root.join("up")).expect("we own it");
    let bundle = bundle
        .push("/mounts", tmpfs("/absolute/made", &[]))
        .push("/mounts", tmpfs("/up/made", &[]))
        .sh("grep -c made /proc/self/mountinfo");
    let output = bundle.run();
    assert_eq!(fs::read_dir(&outside).expect("it is there").count(), 0, "a mount point was made outside: {output:?}");
    // Either it is resolved inside the root, or refused with words.
    match output.code {
        0 => assert_eq!(output.out().trim(), "2"),
        _ => assert!(output.err().contains("made"), "{}", output.err()),
    }
    bundle.expect_nothing_left();
}

#[test]
fn a_destination_is_made_with_its_parents() {
    let bundle = bundle!().push("/mounts", tmpfs("/a/b/c", &["mode=700"])).sh("stat -c %a /a /a/b /a/b/c");
    assert_eq!(told(&bundle), "755\n755\n700\n");
}

#[test]
fn a_tmpfs_can_begin_with_what_lies_below() {
    let bundle = bundle!();
    bundle.dir().file("bundle/rootfs/data/sub/file", "text\n");
    fs::set_permissions(bundle.rootfs().join("data/sub"), fs::Permissions::from_mode(0o750)).expect("we own it");
    let bundle = bundle
        .push("/mounts", tmpfs("/data", &["tmpcopyup"]))
        .sh("cat /data/sub/file; stat -c %a /data/sub; echo new > /data/sub/file; stat -f -c %T /data");
    let text = told(&bundle);
    assert!(text.starts_with("text\n750\n") && text.contains("tmpfs"), "{text}");
    assert_eq!(fs::read_to_string(bundle.rootfs().join("data/sub/file")).expect("it is there"), "text\n");
}

#[test]
fn the_cgroups_inside_are_its_own() {
    let bundle = bundle!().sh("cat /sys/fs/cgroup/pids/cgroup.procs; ls /sys/fs/cgroup; touch /sys/fs/cgroup/pids/x; mkdir /sys/fs/cgroup/pids/x || echo none");
    let text = told(&bundle);
    assert!(text.starts_with("1\n") && text.contains("memory") && text.trim().ends_with("none"), "{text}");
}

#[test]
fn labels_need_a_host_that_has_them() {
    if fs::read_dir("/sys/fs/selinux").is_ok_and(|mut entries| entries.next().is_some()) {
        apex_tests::skip!("this host has SELinux");
    }
    let bundle = bundle!().set("/process/apparmorProfile", json!("no-such-profile"));
    let output = bundle.run();
    // Never without a word in force where it was asked for.
    assert!(output.code == 1 && output.err().to_lowercase().contains("apparmor"), "{output:?}");
    bundle.expect_nothing_left();
}

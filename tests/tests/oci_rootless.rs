//! Containers of a user without privileges: a user namespace with the own id as root's, no cgroup, no network of its own.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use apex_tests::oci::{Bundle, obstacle_of_programs};
use apex_tests::traced::NOBODY;
use apex_tests::{Output, as_root, skip};
use serde_json::{Value, json};

/// Who makes the container: somebody without privileges, also when the tests run as root.
fn somebody() -> (u32, u32) {
    if as_root() { (NOBODY, NOBODY) } else { (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()) }
}

fn own_tree(path: &Path, id: u32) {
    std::os::unix::fs::lchown(path, Some(id), Some(id)).expect("root may");
    if path.is_dir() && !path.is_symlink() {
        fs::read_dir(path).expect("a directory").flatten().for_each(|entry| own_tree(&entry.path(), id));
    }
}

/// A bundle of that user's, with what `spec --rootless` writes for it.
fn bundle() -> Bundle {
    let bundle = Bundle::new().own_binary();
    let (uid, gid) = somebody();
    let plain = bundle.dir().dir("plain");
    fs::create_dir_all(bundle.root()).expect("we own it");
    if as_root() {
        own_tree(bundle.dir().path(), uid);
    }
    let mut command = Command::new(bundle.binary());
    command.args(["spec", "--rootless", "--bundle", &plain]);
    finish(&bundle, command).expect_code(0);
    let mut config: Value = serde_json::from_str(&bundle.dir().read("plain/config.json")).expect("JSON");
    assert_eq!(config["linux"]["uidMappings"], json!([{"containerID": 0, "hostID": uid, "size": 1}]));
    assert_eq!(config["linux"]["gidMappings"], json!([{"containerID": 0, "hostID": gid, "size": 1}]));
    config["process"]["terminal"] = json!(false);
    config["process"]["env"] = bundle.config["process"]["env"].clone();
    let mut bundle = bundle;
    bundle.config = config;
    bundle
}

#[track_caller]
fn finish(bundle: &Bundle, mut command: Command) -> Output {
    if as_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.env("XDG_RUNTIME_DIR", bundle.dir().path());
    bundle.finish(command)
}

#[track_caller]
fn oci(bundle: &Bundle, words: &[&str]) -> Output {
    finish(bundle, bundle.command(words))
}

/// Ends a test where there can be no such container.
macro_rules! bundle {
    () => {
        match obstacle_of_programs() {
            None => bundle(),
            Some(reason) => skip!(reason),
        }
    };
}

#[test]
fn it_runs_as_root_of_its_own() {
    let bundle = bundle!().sh("id -u; cat /proc/self/uid_map; hostname; touch /tmp/mine && stat -c %u /tmp/mine");
    bundle.write();
    let output = oci(&bundle, &["run", "-b", &bundle.path(), &bundle.id]);
    // The root is read-only in what `spec` writes.
    let words = output.out();
    let (uid, _) = somebody();
    let lines: Vec<&str> = words.split_whitespace().collect();
    assert_eq!(lines, ["0", "0", &uid.to_string(), "1", "apex"], "{output:?}");
    assert!(output.err().contains("Read-only file system"), "{output:?}");
    bundle.expect_nothing_left();
}

#[test]
fn it_lives_through_all_states() {
    let bundle = bundle!().args(&["sleep", "300"]);
    bundle.write();
    let id = bundle.id.clone();
    oci(&bundle, &["create", "-b", &bundle.path(), &id]).expect_code(0);
    oci(&bundle, &["start", &id]).expect_code(0);
    let state = oci(&bundle, &["state", &id]).expect_code(0).json();
    assert_eq!(state["status"], "running");
    let output = oci(&bundle, &["exec", &id, "sh", "-c", "id -u; exit 4"]).expect_code(4);
    assert_eq!(output.out(), "0\n");
    oci(&bundle, &["kill", &id, "KILL"]).expect_code(0);
    oci(&bundle, &["delete", "--force", &id]).expect_code(0);
    bundle.expect_nothing_left();
}

#[test]
fn it_gives_nothing_that_the_user_does_not_have() {
    let secret = "/etc/shadow";
    let script = "cat /host-etc/shadow && echo ESCAPED; mount -t tmpfs none /tmp && echo MOUNTED; \
        echo 1 > /proc/sys/kernel/panic && echo ESCAPED; mknod /tmp/mem c 1 1 && echo ESCAPED; echo done";
    let bundle = bundle!().sh(script);
    let mount = json!({"destination": "/host-etc", "type": "bind", "source": "/etc", "options": ["rbind", "ro"]});
    let bundle = bundle.push("/mounts", mount).set("/root/readonly", json!(false));
    bundle.write();
    let output = oci(&bundle, &["run", "-b", &bundle.path(), &bundle.id]).expect_code(0);
    assert!(!output.out().contains("ESCAPED") && output.out().contains("done"), "{secret}: {output:?}");
    bundle.expect_nothing_left();
}

#[test]
fn limits_without_a_cgroup_are_refused_with_words() {
    let bundle = bundle!().set("/linux/resources", json!({"memory": {"limit": 33_554_432}}));
    bundle.write();
    let output = oci(&bundle, &["run", "-b", &bundle.path(), &bundle.id]);
    if as_root() || output.code != 0 {
        assert_eq!(output.code, 1, "{output:?}");
        assert!(output.err().contains("cgroup"), "{output:?}");
    }
    bundle.expect_nothing_left();
}

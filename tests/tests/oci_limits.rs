//! Resources of a container on cgroup v1: what the files of its cgroup hold, and that the kernel keeps the limits.

use std::fs;
use std::path::Path;

use apex_tests::bundle;
use apex_tests::oci::Bundle;
use apex_tests::skip;
use serde_json::{Value, json};

/// Whether a hierarchy of version 1 is there.
fn has(controller: &str) -> bool {
    Path::new("/sys/fs/cgroup").join(controller).join("cgroup.procs").exists()
}

/// Ends the test where a controller of version 1 is missing.
macro_rules! needs {
    ($($controller:literal),+) => {
        $(if !has($controller) {
            skip!(concat!("no hierarchy of version 1 with the controller ", $controller));
        })+
    };
}

#[track_caller]
fn check(section: &str, limits: Value, controller: &str, files: &[(&str, &str)]) {
    let bundle = Bundle::new().args(&["sleep", "300"]).set(&format!("/linux/resources/{section}"), limits);
    bundle.up();
    for (name, expected) in files {
        assert_eq!(bundle.cgroup_file(controller, name), *expected, "{name}");
    }
    bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
    bundle.expect_nothing_left();
}

#[test]
fn limits_stand_in_the_files() {
    needs!("memory", "pids", "cpu", "cpuset", "blkio");
    let _bundle = bundle!();
    let memory = json!({"limit": 67_108_864, "reservation": 33_554_432, "swappiness": 10});
    let files = [
        ("memory.limit_in_bytes", "67108864"),
        ("memory.soft_limit_in_bytes", "33554432"),
        ("memory.swappiness", "10"),
    ];
    check("memory", memory, "memory", &files);
    check("pids", json!({"limit": 33}), "pids", &[("pids.max", "33")]);
    check("pids", json!({"limit": -1}), "pids", &[("pids.max", "max")]);
    let cpu = json!({"shares": 300, "quota": 25_000, "period": 50_000});
    check("cpu", cpu, "cpu", &[("cpu.shares", "300"), ("cpu.cfs_quota_us", "25000"), ("cpu.cfs_period_us", "50000")]);
    check("cpu", json!({"cpus": "0", "mems": "0"}), "cpuset", &[("cpuset.cpus", "0"), ("cpuset.mems", "0")]);
}

#[test]
fn too_much_memory_kills() {
    needs!("memory");
    let bundle = bundle!()
        .set("/linux/resources/memory", json!({"limit": 33_554_432, "swap": 33_554_432}))
        .args(&["inside", "eat", "200"]);
    let output = bundle.run().expect_code(137);
    assert!(!output.out().contains("ate"), "{}", output.out());
    bundle.expect_nothing_left();
    let bundle = bundle.args(&["inside", "eat", "8"]);
    assert_eq!(bundle.run().expect_code(0).out(), "ate 8\n");
}

#[test]
fn out_of_memory_is_an_event() {
    needs!("memory");
    let bundle = bundle!()
        .set("/linux/resources/memory", json!({"limit": 33_554_432, "swap": 33_554_432}))
        .sh("while [ ! -e /tmp/go ]; do usleep 10000; done; inside eat 200; sleep 2");
    bundle.up();
    let (child, number) = bundle.spawn(bundle.command(&["events", "--interval", "1s", &bundle.id]));
    let file = bundle.dir().path().join(format!("{number}.out"));
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    // Its first line tells that it listens.
    while fs::metadata(&file).map_or(0, |facts| facts.len()) == 0 {
        assert!(std::time::Instant::now() < end, "no event");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    fs::write(bundle.rootfs().join("tmp/go"), "").expect("we own it");
    let output = bundle.outcome(child, number).expect_code(0);
    assert!(output.out().lines().any(|line| line.contains(r#""type":"oom""#)), "{}", output.out());
}

#[test]
fn too_many_processes_are_refused() {
    needs!("pids");
    let bundle = bundle!().set("/linux/resources/pids", json!({"limit": 10})).args(&["inside", "fork", "50"]);
    let output = bundle.run().expect_code(0);
    // The program itself is one of ten; EAGAIN is 11.
    assert_eq!(output.out(), "forked 9 errno 11\n");
    bundle.expect_nothing_left();
}

#[test]
fn an_exec_is_under_the_limits_too() {
    needs!("pids");
    let bundle = bundle!().set("/linux/resources/pids", json!({"limit": 10})).args(&["sleep", "300"]);
    bundle.up();
    let output = bundle.oci(&["exec", &bundle.id, "inside", "fork", "50"]).expect_code(0);
    assert_eq!(output.out(), "forked 8 errno 11\n");
}

#[test]
fn a_limit_that_is_none_fails_and_leaves_nothing() {
    needs!("memory", "cpu", "cpuset");
    let _bundle = bundle!();
    let cases = [
        ("cpu", json!({"cpus": "4000-5000"}), "cpus"),
        ("cpu", json!({"quota": 1, "period": 1}), "cfs"),
        ("hugepageLimits", json!([{"pageSize": "3MB", "limit": 1}]), "3MB"),
    ];
    for (section, limits, words) in cases {
        let bundle = Bundle::new().set(&format!("/linux/resources/{section}"), limits);
        let output = bundle.create().expect_code(1);
        assert!(output.err().contains(words), "the message lacks {words:?}: {}", output.err());
        bundle.expect_nothing_left();
    }
}

#[test]
fn paths_of_cgroups_stay_below_the_root() {
    for path in ["/../../escaped", "../escaped", "/a/../../../escaped"] {
        let bundle = bundle!();
        let named = format!("{path}-{}", bundle.mark().0);
        let bundle = bundle.set("/linux/cgroupsPath", json!(named));
        let output = bundle.run();
        assert!(output.code == 1 || output.code == 0, "{output:?}");
        let outside = Path::new("/sys/fs").join(format!("escaped-{}", bundle.mark().0));
        assert!(!outside.exists() && !Path::new("/sys/fs/cgroup").join(outside.file_name().expect("a name")).exists());
        bundle.expect_nothing_left();
    }
}

#[test]
fn two_containers_do_not_share_a_cgroup_unnoticed() {
    let first = bundle!().args(&["sleep", "300"]);
    first.up();
    let second = bundle!().args(&["sleep", "300"]).set("/linux/cgroupsPath", json!(format!("/{}", first.mark().0)));
    let output = second.create();
    if output.code == 0 {
        // As with runc it may be shared: then the end of one must not be that of the other.
        second.oci(&["delete", "--force", &second.id]);
        assert_eq!(first.status(), "running", "the end of a container was that of another: {output:?}");
    } else {
        assert!(output.err().contains("cgroup"), "{}", output.err());
    }
    assert_eq!(first.status(), "running");
    first.exec("true").expect_code(0);
    first.oci(&["delete", "--force", &first.id]).expect_code(0);
}

//! What the public conformance suites found in `apex-oci`, each as a test of its own (docs/reference/oci-conformance.md).

use std::fs;

use apex_tests::bundle;
use serde_json::json;

/// Bytes of the field of a process's status that bears the name.
fn field(text: &str, name: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
    line.trim().to_owned()
}

#[test]
fn an_exec_goes_into_another_cgroup_of_each_hierarchy() {
    let bundle = bundle!().args(&["sleep", "300"]);
    bundle.up();
    for (controller, name) in [("memory", "one"), ("pids", "two")] {
        fs::create_dir(bundle.cgroup(controller).join(name)).expect("root makes cgroups");
    }
    let words = ["exec", "--cgroup", "memory:one", "--cgroup", "pids:/two", &bundle.id, "cat", "/proc/self/cgroup"];
    let output = bundle.oci(&words).expect_code(0);
    let text = output.out();
    let found: Vec<_> = text.lines().filter(|line| line.ends_with("/one") || line.ends_with("/two")).collect();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().any(|line| line.contains("memory") && line.ends_with("/one")), "{found:?}");
    assert!(found.iter().any(|line| line.contains("pids") && line.ends_with("/two")), "{found:?}");
    let refused = |cgroup: &str, words: &str| {
        let output = bundle.oci(&["exec", "--cgroup", cgroup, &bundle.id, "true"]).expect_code(255);
        assert!(output.err().contains(words), "{cgroup}: {}", output.err());
    };
    refused("..", " .. is not a sub cgroup path");
    refused("memory:one/../..", " .. is not a sub cgroup path");
    refused("nonexistent", "/nonexistent/cgroup.procs: no such file");
    refused("whaaat:/", "unknown controller");
    bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
    bundle.expect_nothing_left();
}

#[test]
fn an_exec_runs_on_the_processors_of_its_affinity() {
    let bundle =
        bundle!().args(&["sleep", "300"]).set("/process/execCPUAffinity", json!({"initial": "0", "final": "0"}));
    bundle.up();
    let output = bundle.exec("grep Cpus_allowed_list /proc/self/status").expect_code(0);
    assert_eq!(field(&output.out(), "Cpus_allowed_list:"), "0");
    // It is not for the first process.
    let first = fs::read_to_string(format!("/proc/{}/status", bundle.pid())).expect("it lives");
    let own = fs::read_to_string("/proc/self/status").expect("mounted");
    assert_eq!(field(&first, "Cpus_allowed_list:"), field(&own, "Cpus_allowed_list:"));
    let process = |affinity: &str| {
        let path = bundle.dir().at("process.json");
        fs::write(&path, format!(r#"{{"args":["/bin/true"],"cwd":"/","execCPUAffinity":{affinity}}}"#))
            .expect("we own it");
        bundle.oci(&["exec", "--process", &path, &bundle.id])
    };
    process(r#"{"initial":"0"}"#).expect_code(0);
    process("{}").expect_code(0);
    for wrong in [r#"{"final":"3-1"}"#, r#"{"initial":"0-9999999"}"#, r#"{"final":"8191"}"#] {
        assert!(process(wrong).expect_code(255).err().contains("processors"), "{wrong}");
    }
    bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
    bundle.expect_nothing_left();
}

#[test]
fn memory_comes_from_the_nodes_of_the_policy() {
    let policy = json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]});
    let bundle = bundle!().args(&["head", "-n", "1", "/proc/self/numa_maps"]).set("/linux/memoryPolicy", policy);
    let text = bundle.run().expect_code(0).out();
    assert!(text.contains("bind=static:0"), "{text}");
    for (policy, words) in [
        (json!({"mode": "MPOL_BIND", "nodes": "0-9876543210"}), "is no list of memory nodes"),
        (json!({"mode": "MPOL_DEFAULT", "nodes": "0"}), "cannot set linux.memoryPolicy"),
    ] {
        let bundle = bundle!().set("/linux/memoryPolicy", policy);
        let output = bundle.run().expect_code(1);
        assert!(output.err().contains(words), "{}", output.err());
        bundle.expect_nothing_left();
    }
}

#[test]
fn who_was_just_killed_or_failed_to_start_can_be_deleted() {
    for _ in 0..10 {
        let bundle = bundle!().args(&["sleep", "300"]);
        bundle.up();
        bundle.oci(&["kill", &bundle.id, "KILL"]).expect_code(0);
        bundle.must("delete");
        bundle.expect_nothing_left();
        let hook = json!({"path": "/bin/false"});
        let bundle = bundle!().push("/hooks/startContainer", hook);
        bundle.create().expect_code(0);
        let output = bundle.oci(&["start", &bundle.id]).expect_code(1);
        assert!(output.err().contains("error running hook startContainer 0"), "{}", output.err());
        assert_eq!(bundle.status(), "stopped");
        bundle.must("delete");
        bundle.expect_nothing_left();
    }
}

#[test]
fn a_signal_to_all_of_a_stopped_container_is_no_error() {
    let bundle = bundle!();
    bundle.up();
    bundle.until("stopped");
    bundle.oci(&["kill", "--all", &bundle.id, "0"]).expect_code(0);
    let output = bundle.oci(&["kill", &bundle.id, "0"]).expect_code(1);
    assert!(output.err().contains("is not running"), "{}", output.err());
    bundle.must("delete");
}

#[test]
fn capabilities_that_nobody_knows_are_passed_over() {
    let bundle = bundle!().args(&["sleep", "300"]).set("/process/capabilities", json!({}));
    bundle.up();
    let script = ["exec", "--cap", "CAP_UNKNOWN", "--cap", "CAP_KILL", &bundle.id, "cat", "/proc/self/status"];
    let output = bundle.oci(&script).expect_code(0);
    assert_eq!(field(&output.out(), "CapEff:"), "0000000000000020");
    assert!(output.err().contains("unknown capability \"CAP_UNKNOWN\""), "{}", output.err());
    bundle.oci(&["delete", "--force", &bundle.id]).expect_code(0);
}

#[test]
fn another_configuration_than_the_bundle_s_own() {
    let bundle = bundle!().args(&["false"]);
    bundle.write();
    let mut other = bundle.config.clone();
    other["process"]["args"] = json!(["echo", "of the other"]);
    let path = bundle.dir().at("other.json");
    fs::write(&path, other.to_string()).expect("we own it");
    let words = ["run", "--bundle", &bundle.path(), "--config", &path, &bundle.id];
    assert_eq!(bundle.oci(&words).expect_code(0).out(), "of the other\n");
    // Seen from the caller's directory, not from the bundle.
    let output = bundle.oci(&["run", "--bundle", &bundle.path(), "--config", "other.json", &bundle.id]);
    assert_eq!(output.expect_code(0).out(), "of the other\n");
    bundle.expect_nothing_left();
}

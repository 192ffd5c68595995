//! What only a host with pure cgroup v2, every controller, swap and a systemd user manager can show: `cargo xtask vm`.
//!
//! As root the sandbox's cgroup is made by Apex itself and entered by the clone; as the user it is a scope of the user manager.

use apex_tests::attack::Abi;
use apex_tests::{MEMORY_OVER, Mode, Sandbox, TempDir, armed, as_root, has_cgroup, leaks, vm_only};
use serde_json::Value;

/// The receipt of a run, which must end well.
fn receipt(sandbox: &Sandbox, inside: &[&str]) -> Value {
    let dir = TempDir::new();
    let file = dir.at("receipt");
    sandbox.clone().args(["--json", "--receipt", &file]).run(inside).expect_code(0);
    serde_json::from_str(&dir.read("receipt")).expect("JSON")
}

fn layer<'a>(receipt: &'a Value, name: &str) -> &'a Value {
    let layers = receipt["receipt"]["layers"].as_array().expect("layers");
    layers.iter().find(|layer| layer["layer"] == name).unwrap_or_else(|| panic!("no {name} in {receipt}"))
}

/// The host is what it is meant to be; the other tests would prove nothing on another.
#[test]
fn the_host_has_what_it_is_there_for() {
    vm_only!();
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").expect("cgroup v2 stands alone");
    for wanted in ["cpu", "memory", "pids", "io"] {
        assert!(controllers.split_whitespace().any(|it| it == wanted), "no {wanted} among {controllers}");
    }
    assert!(std::path::Path::new("/sys/kernel/btf/vmlinux").exists(), "no BTF");
    let swaps = std::fs::read_to_string("/proc/swaps").expect("/proc is mounted");
    assert!(swaps.lines().count() > 1, "no swap: {swaps}");
    // An unprivileged user may not read the list of security modules.
    if as_root() {
        let modules = std::fs::read_to_string("/sys/kernel/security/lsm").expect("securityfs is mounted");
        assert!(modules.split(',').any(|it| it.trim() == "bpf"), "{modules}");
    }
    assert!(has_cgroup(), "no cgroup is delegated");
}

#[test]
fn the_doctor_finds_every_layer() {
    vm_only!();
    let output = std::process::Command::new(apex_tests::apex_run()).args(["--doctor", "--json"]).output();
    let output = output.expect("apex-run starts");
    let doctor: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let findings = doctor["doctor"]["findings"].as_array().expect("findings");
    assert!(findings.len() > 10, "{doctor}");
    // Its kernel is too old for that one (Landlock ABI 2).
    let known = |finding: &Value| finding["facility"] == "isolation level partial";
    let missing: Vec<&Value> =
        findings.iter().filter(|finding| finding["available"] == false && !known(finding)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

/// Every limit at once, in the words of the kernel's own files.
#[test]
fn the_receipt_reads_version_2_back() {
    vm_only!();
    let sandbox = Sandbox::new().args(["--memory", "64M", "--tasks", "20", "--cpu", "50"]);
    let receipt = receipt(&sandbox, &["/usr/bin/true"]);
    let cgroup = layer(&receipt, "cgroup");
    assert_eq!((&cgroup["requirement"], &cgroup["state"]), (&"required".into(), &"in-force".into()), "{cgroup}");
    let words = cgroup["effective"].as_str().expect("words");
    let version = if as_root() { "v2: " } else { "systemd: " };
    assert!(words.starts_with(version), "{words}");
    for wanted in ["memory-bytes 67108864", "swap-bytes 0", "tasks 20", "cpu-percent 50", "process inside"] {
        assert!(words.contains(wanted), "no {wanted} in {words}");
    }
}

#[test]
fn memory_goes_to_swap_only_where_it_may() {
    vm_only!();
    let dir = TempDir::new();
    let policy = dir.file("policy.toml", "[resources]\nmemory = \"48M\"\nswap = \"96M\"\n");
    let sandbox = armed!().mode(Mode::Isolation);
    let use_64_mib = ["memory_here", "67108864"];
    sandbox.clone().args(["--policy", &policy]).attack(Abi::X64, &use_64_mib).expect_code(0);
    let output = sandbox.args(["--memory", "48M"]).attack(Abi::X64, &use_64_mib).expect_code(MEMORY_OVER);
    assert!(output.err().contains("memory"), "{}", output.err());
}

/// Not measured by a clock: the kernel counts the periods in which the sandbox was stopped at its quota.
#[test]
fn the_processor_quota_is_in_force() {
    vm_only!();
    let script = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; echo worked; read end";
    let mut session = Sandbox::new().args(["--cpu", "10"]).start(&["/bin/sh", "-c", script]);
    session.expect_line("worked");
    let pid = session.pid().unsigned_abs();
    let found = leaks::cgroups(pid);
    let [cgroup] = found.as_slice() else { panic!("one cgroup for one sandbox: {found:?}") };
    let dir = cgroup.strip_prefix("cgroup ").expect("its kind stands first");
    let read = |file: &str| std::fs::read_to_string(format!("{dir}/{file}")).expect("it lives");
    assert_eq!(read("cpu.max"), "10000 100000\n");
    let counts = read("cpu.stat");
    let throttled = counts.lines().find_map(|line| line.strip_prefix("nr_throttled ")?.parse::<u64>().ok());
    assert!(throttled.is_some_and(|periods| periods > 0), "{counts}");
    session.send("end\n");
    session.finish().expect_code(0);
    leaks::expect_none(&leaks::Mark(dir.to_owned()), pid);
}

//! `--plan` and `--receipt` of one policy, as text and as JSON, with what depends on the machine, the user and the run taken out.
//!
//! `UPDATE_SNAPSHOTS=1` rewrites the snapshots.

use apex_tests::{Mode, Sandbox, TempDir, has_cgroup, skip, snapshot};
use serde_json::Value;

/// A policy that touches every section and no path that only some hosts have.
const POLICY: &str = r#"
description = "a job with one input and one output"
extends = ["profile:static"]
[filesystem]
read = [{ path = "./in", dest = "/data/in", reason = "the input" }]
write = [{ path = "./out", dest = "/data/out", reason = "the output" }]
deny = ["./out/secret"]
[resources]
memory = "64M"
swap = "0"
tasks = 16
open_files = 128
wall_time = "30s"
[environment]
set = { MODE = "test" }
[identity]
uid = 1000
gid = 1000
hostname = "job"
"#;

struct Job(TempDir);

impl Job {
    fn new() -> Job {
        let dir = TempDir::new();
        dir.dir("in");
        dir.dir("out");
        dir.file("job.toml", POLICY);
        Job(dir)
    }

    fn sandbox(&self) -> Sandbox {
        Sandbox::new().mode(Mode::Isolation).arg("--policy").arg(self.0.at("job.toml"))
    }

    /// Paths of this run, its marks, and numbers that the kernel gave out.
    fn normalised(&self, text: &str) -> String {
        let text = text.replace(&self.0.text(), "DIR");
        text.lines().map(without_run).collect::<Vec<_>>().join("\n") + "\n"
    }
}

/// Pids, namespace numbers, hashes and the mark of the harness change with every run.
fn without_run(line: &str) -> String {
    let is_digit = |character: char| character.is_ascii_hexdigit();
    let mut out = String::new();
    let mut rest = line;
    while let Some(start) = rest.find(is_digit) {
        let end = rest[start..].find(|character| !is_digit(character)).map_or(rest.len(), |length| start + length);
        let word = &rest[start..end];
        out.push_str(&rest[..start]);
        let is_number = word.len() >= 4 && word.bytes().all(|byte| byte.is_ascii_digit()) && word != "1000";
        out.push_str(if is_number || word.len() == 64 { "N" } else { word });
        rest = &rest[end..];
    }
    out + rest
}

/// The plan as JSON without what this host and user decide.
fn portable(mut plan: Value) -> Value {
    let fields = plan.as_object_mut().expect("an object");
    for host in ["cgroup", "skipped", "layers", "seccomp"] {
        fields.remove(host);
    }
    if let Some(landlock) = fields.get_mut("landlock").and_then(Value::as_object_mut) {
        landlock.remove("abi");
    }
    if let Some(identity) = fields.get_mut("identity").and_then(Value::as_object_mut) {
        identity.retain(|key, _| ["uid", "gid", "hostname"].contains(&key.as_str()));
    }
    // A temporary directory below the private /tmp has a deny of its own there.
    if let Some(mounts) = fields.get_mut("mounts").and_then(Value::as_array_mut) {
        mounts.retain(|mount| mount["step"] != "deny" || mount["source"] != "");
    }
    // Without a cgroup the limit of the process is the only one on tasks, and has no room to let the cgroup answer first.
    if let Some(rlimits) = fields.get_mut("rlimits").and_then(Value::as_array_mut) {
        rlimits.retain(|limit| limit["name"] != "nproc");
    }
    for mount in fields.get_mut("mounts").and_then(Value::as_array_mut).into_iter().flatten() {
        mount.as_object_mut().expect("an object").remove("idmap");
    }
    if let Some(env) =
        fields.get_mut("command").and_then(|command| command.get_mut("env")).and_then(Value::as_array_mut)
    {
        env.retain(|pair| pair.as_str().is_some_and(|pair| pair.starts_with("MODE=") || pair.starts_with("PATH=")));
    }
    plan
}

#[test]
fn a_plan_as_json() {
    let job = Job::new();
    let output = job.sandbox().args(["--plan", "--json"]).run(&["/data/in/program"]).expect_code(0);
    let plan = portable(output.json()["plan"].clone());
    if plan["landlock"]["scoped"] != true {
        skip!("the kernel's Landlock has no scopes");
    }
    let text = serde_json::to_string_pretty(&plan).expect("JSON");
    snapshot::check("plan.json", &job.normalised(&text));
}

#[test]
fn a_plan_starts_nothing() {
    let job = Job::new();
    job.sandbox().arg("--plan").run(&["/data/in/program"]).expect_code(0);
    assert!(!std::path::Path::new(&job.0.at("out/secret")).exists(), "a plan holds no names");
}

/// Layer, requirement and state of each line, and that the kernel's answer is more than the request said again.
#[test]
fn a_receipt_comes_from_the_kernel() {
    let job = Job::new();
    let receipt = job.0.at("receipt.json");
    let run =
        job.sandbox().args(["--json", "--receipt", receipt.as_str(), "--ro", "/usr", "--ro", "/lib", "--ro", "/lib64"]);
    run.run(&["/usr/bin/true"]).expect_code(0);
    let receipt: Value = serde_json::from_str(&job.0.read("receipt.json")).expect("JSON");
    let layers = receipt["receipt"]["layers"].as_array().expect("layers").clone();
    let mut text = String::new();
    for line in &layers {
        let word = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let depends = word("layer") == "cgroup" && !has_cgroup();
        let state = if depends { "in-force".to_owned() } else { word("state") };
        text.push_str(&format!("{}: {state}\n", word("layer")));
        if state == "in-force" && !depends {
            assert!(!word("effective").is_empty() && !word("evidence").is_empty(), "{line}");
        }
    }
    snapshot::check("receipt.txt", &text);
}

//! A detection against the schema: what it requires is there, what it does not know is not.

use std::collections::BTreeMap;

use serde_json::Value;

use super::*;
use crate::event::{Address, Errno, Refused, What};
use crate::finding::Process as Ancestor;
use crate::refusal::Access;
use crate::watch::Level;

/// An object of the schema.
struct Shape {
    /// Its name.
    name: &'static str,
    /// Attributes that must be there.
    required: &'static [&'static str],
    /// Of these one must be there; empty for no such rule.
    one_of: &'static [&'static str],
    /// Attributes that are plain values.
    plain: &'static [&'static str],
    /// Attributes that are objects, or lists of them, and which.
    inner: &'static [(&'static str, &'static str)],
}

/// What OCSF 1.8.0 says of the objects that Apex writes: `requirement: required` and `constraints: at_least_one`, inherited ones included, from
/// `events/base_event.json`, `events/findings/finding.json`, `events/findings/detection_finding.json` and `objects/*.json` of
/// github.com/ocsf/ocsf-schema at v1.8.0; attributes of profiles that Apex does not claim are left out.
#[rustfmt::skip]
const SHAPES: &[Shape] = &[
    Shape { name: "detection_finding",
        required: &["activity_id", "category_uid", "class_uid", "finding_info", "metadata", "severity_id", "time", "type_uid"],
        one_of: &[],
        plain: &["activity_id", "activity_name", "category_uid", "category_name", "class_uid", "class_name", "type_uid", "type_name", "time",
            "start_time", "end_time", "severity_id", "severity", "status_id", "status", "is_alert", "message", "count", "unmapped"],
        inner: &[("metadata", "metadata"), ("device", "device"), ("finding_info", "finding_info"), ("anomaly_analyses", "anomaly_analysis"),
            ("evidences", "evidences"), ("resources", "resource_details")] },
    Shape { name: "metadata", required: &["product", "version"], one_of: &[], plain: &["version", "uid", "log_name"], inner: &[("product", "product")] },
    Shape { name: "product", required: &[], one_of: &[], plain: &["name", "vendor_name", "uid", "version"], inner: &[] },
    Shape { name: "device", required: &["type_id"], one_of: &[], plain: &["type_id", "hostname"], inner: &[("os", "os")] },
    Shape { name: "os", required: &["name", "type_id"], one_of: &[], plain: &["name", "type_id", "kernel_release"], inner: &[] },
    Shape { name: "finding_info", required: &["uid"], one_of: &[],
        plain: &["uid", "title", "desc", "types", "first_seen_time", "last_seen_time", "created_time", "related_events_count"],
        inner: &[("analytic", "analytic"), ("attacks", "attack")] },
    Shape { name: "analytic", required: &["type_id"], one_of: &[], plain: &["type_id", "type", "uid", "name", "desc", "algorithm"], inner: &[] },
    Shape { name: "attack", required: &[], one_of: &["tactic", "technique", "sub_technique"], plain: &["version"],
        inner: &[("tactic", "tactic"), ("technique", "tactic"), ("sub_technique", "tactic")] },
    Shape { name: "tactic", required: &[], one_of: &[], plain: &["uid", "name", "src_url"], inner: &[] },
    Shape { name: "anomaly_analysis", required: &["analysis_targets", "anomalies"], one_of: &[], plain: &[],
        inner: &[("analysis_targets", "analysis_target"), ("anomalies", "anomaly"), ("baselines", "anomaly")] },
    Shape { name: "analysis_target", required: &["name"], one_of: &[], plain: &["name", "type"], inner: &[] },
    Shape { name: "anomaly", required: &["observation_parameter", "observations"], one_of: &[], plain: &["observation_parameter"],
        inner: &[("observations", "observation")] },
    Shape { name: "observation", required: &["value"], one_of: &[], plain: &["value"], inner: &[] },
    Shape { name: "evidences", required: &[],
        one_of: &["actor", "api", "connection_info", "data", "database", "databucket", "device", "dst_endpoint", "email", "file", "process",
            "query", "resources", "src_endpoint", "url", "user", "job", "script"],
        plain: &["name", "data"],
        inner: &[("process", "process"), ("file", "file"), ("src_endpoint", "network_endpoint"), ("dst_endpoint", "network_endpoint"),
            ("connection_info", "network_connection_info"), ("api", "api")] },
    Shape { name: "process", required: &[], one_of: &["pid", "uid", "cpid"], plain: &["pid", "name", "cmd_line"],
        inner: &[("file", "file"), ("user", "user"), ("parent_process", "process")] },
    Shape { name: "user", required: &[], one_of: &["account", "name", "uid"], plain: &["uid"], inner: &[] },
    Shape { name: "file", required: &["name", "type_id"], one_of: &[], plain: &["name", "path", "type_id"], inner: &[] },
    Shape { name: "network_endpoint", required: &[],
        one_of: &["ip", "uid", "name", "hostname", "svc_name", "instance_uid", "interface_uid", "interface_name", "domain"],
        plain: &["ip", "port", "name"], inner: &[] },
    Shape { name: "network_connection_info", required: &["direction_id"], one_of: &[], plain: &["direction_id", "protocol_ver_id"], inner: &[] },
    Shape { name: "api", required: &["operation"], one_of: &[], plain: &["operation"], inner: &[("response", "response")] },
    Shape { name: "response", required: &[], one_of: &[], plain: &["code", "error"], inner: &[] },
    Shape { name: "resource_details", required: &[], one_of: &[], plain: &["uid", "name", "type", "role_id", "role", "labels"], inner: &[] },
];

fn shape(name: &str) -> &'static Shape {
    SHAPES.iter().find(|shape| shape.name == name).expect("each inner object has a shape")
}

/// What is wrong with `value` as an object `name`; nothing when it follows the schema.
fn faults(name: &str, value: &Value) -> Vec<String> {
    let Some(object) = value.as_object() else { return vec![format!("{name} is no object: {value}")] };
    let shape = shape(name);
    let mut faults = Vec::new();
    faults.extend(
        shape.required.iter().filter(|key| !object.contains_key(**key)).map(|key| format!("{name} has no {key}")),
    );
    if !shape.one_of.is_empty() && !shape.one_of.iter().any(|key| object.contains_key(*key)) {
        faults.push(format!("{name} has none of {:?}", shape.one_of));
    }
    for (key, value) in object {
        if value.is_null() {
            faults.push(format!("{name}.{key} is null"));
        }
        match shape.inner.iter().find(|(inner, _)| inner == key) {
            Some((_, inner)) => match value.as_array() {
                Some(list) => faults.extend(list.iter().flat_map(|value| self::faults(inner, value))),
                None => faults.extend(self::faults(inner, value)),
            },
            None if shape.plain.contains(&key.as_str()) => {}
            None => faults.push(format!("{name} knows no {key}")),
        }
    }
    faults
}

fn start() -> Start {
    Start {
        version: 1,
        wall_time_ns: 1_700_000_000_000_000_000,
        mode: "isolation".to_owned(),
        profile: Some("python".to_owned()),
        plan_sha256: "ab".repeat(32),
        command: vec!["python3".to_owned(), "job.py".to_owned()],
        level: Level::Full,
        sources: BTreeMap::new(),
    }
}

fn event(what: What, error: Option<Errno>) -> Event {
    Event { time_ns: 2_000_000, sandbox: 77, pid: 12, ppid: 11, uid: 1000, comm: "sh".to_owned(), what, error }
}

fn path() -> String {
    "/data/x".to_owned()
}

/// One event of each kind that is evidence, with and without an error.
fn events() -> Vec<Event> {
    let inet = || "inet:192.0.2.1:443".parse::<Address>().expect("an address");
    let call = || "setuid".to_owned();
    let refused = Refused { call: "mount".to_owned(), abi: "x86_64".to_owned(), args: [0; 6], reported: false };
    let whats = [
        What::Fork { child: 13 },
        What::program("/bin/sh".to_owned(), vec!["sh".to_owned()], false),
        What::Exit { code: Some(0), signal: None },
        What::Socket { family: 2, kind: 1, protocol: 0 },
        What::Connect { address: inet() },
        What::Connect { address: Address::Unix("/run/x".to_owned()) },
        What::Send { address: "inet6:[::1]:53".parse().expect("an address"), bytes: 9 },
        What::Bind { address: Address::Unnamed },
        What::Traffic { received_bytes: 1, sent_bytes: 2 },
        What::Open { path: path(), access: Access::Read, create: false, truncate: false },
        What::Mkdir { path: "/".to_owned() },
        What::Rename { from: path(), to: path() },
        What::Symlink { target: path(), path: path() },
        What::Chmod { path: path(), mode: 0o4755 },
        What::SetIds { call: call(), id: 0 },
        What::Capset { effective: 1 },
        What::Memfd { name: "x".to_owned() },
        What::Mount { call: "mount".to_owned(), target: String::new() },
        What::Call { name: "keyctl".to_owned(), args: [1; 6] },
        What::Calls { counts: BTreeMap::from([("read".to_owned(), 4)]) },
        What::Refused(Box::new(refused)),
    ];
    let plain = whats.iter().map(|what| event(what.clone(), None));
    plain.chain(whats.iter().map(|what| event(what.clone(), Some(Errno::EACCES)))).collect()
}

fn ancestor(pid: u32, ppid: u32) -> Ancestor {
    let args = vec!["sh".to_owned(), "-c".to_owned(), "x".to_owned()];
    Ancestor { pid, ppid, uid: 1000, comm: "sh".to_owned(), exe: "/usr/bin/dash".to_owned(), args }
}

fn finding(evidence: Vec<Event>, detector: Detector) -> Finding {
    Finding {
        time_ns: 3_000_000,
        sandbox: 77,
        detector,
        title: "A reverse shell".to_owned(),
        explanation: "A shell talks to another host.".to_owned(),
        severity: Severity::High,
        techniques: vec!["T1059.004".to_owned(), "ours-1".to_owned()],
        ancestry: vec![ancestor(12, 11), ancestor(11, 10)],
        evidence,
        count: 40,
    }
}

fn rule() -> Detector {
    Detector::Rule { id: "reverse-shell".to_owned(), origin: "built-in shells.toml".to_owned() }
}

fn json(finding: &Finding) -> Value {
    let context = Context::new(&start(), 1_000_000);
    serde_json::to_value(detection(finding, &context)).expect("representable")
}

#[test]
fn every_kind_of_evidence_follows_the_schema() {
    for event in events() {
        let value = json(&finding(vec![event.clone()], rule()));
        assert_eq!(faults("detection_finding", &value), Vec::<String>::new(), "{event:?}");
    }
}

#[test]
fn the_check_itself_finds_what_is_missing_or_unknown() {
    let mut value = json(&finding(Vec::new(), rule()));
    let object = value.as_object_mut().expect("an object");
    object.remove("time");
    object.insert("tiem".to_owned(), Value::from(1));
    object["metadata"]["product"] = Value::Null;
    let found = faults("detection_finding", &value).join("; ");
    for fault in ["no time", "no tiem", "product is no object"] {
        assert!(found.contains(fault), "{fault} not in {found}");
    }
}

#[test]
fn class_time_and_severity_are_those_of_the_schema() {
    let value = json(&finding(events(), rule()));
    assert_eq!((&value["class_uid"], &value["type_uid"]), (&Value::from(2004), &Value::from(200401)));
    // 2 ms after the start of the record, in milliseconds of the wall clock.
    assert_eq!(value["time"], Value::from(1_700_000_000_002_i64));
    assert_eq!(value["severity_id"], Value::from(4));
    assert_eq!(value["metadata"]["version"], "1.8.0");
    assert_eq!(value["count"], Value::from(40));
    assert_eq!(value["evidences"].as_array().map(Vec::len), Some(crate::finding::EVIDENCE_MAX));
}

#[test]
fn the_ancestry_is_a_chain_of_parents() {
    let value = json(&finding(events(), rule()));
    let process = &value["evidences"][0]["process"];
    assert_eq!(process["cmd_line"], "sh -c x");
    assert_eq!(process["parent_process"]["pid"], 11);
    assert_eq!(process["parent_process"]["parent_process"]["pid"], 10);
    assert!(value["evidences"][1]["process"]["parent_process"]["parent_process"].is_null(), "told once");
    // Without an event of that process the chain is told all the same.
    let alone = json(&finding(Vec::new(), rule()));
    assert_eq!(alone["evidences"][0]["process"]["parent_process"]["pid"], 11);
}

#[test]
fn a_technique_has_its_names_and_another_word_stays_unmapped() {
    let value = json(&finding(Vec::new(), rule()));
    let attacks = value["finding_info"]["attacks"].as_array().expect("a list");
    assert_eq!(attacks.len(), 1);
    assert_eq!(attacks[0]["sub_technique"]["name"], "Unix Shell");
    assert_eq!(value["unmapped"]["techniques"][1], "ours-1");
}

#[test]
fn a_baseline_tells_what_it_expected_and_saw() {
    let moved = Moved {
        feature: "rate of connect".to_owned(),
        expected: "at most 2".to_owned(),
        seen: "90".to_owned(),
        weight: 1.0,
    };
    let baseline = Detector::Baseline { model: "cd".repeat(32), score: 4.5, moved: vec![moved] };
    let value = json(&finding(events(), baseline));
    assert_eq!(faults("detection_finding", &value), Vec::<String>::new());
    assert_eq!(value["finding_info"]["analytic"]["type_id"], 3);
    let analysis = &value["anomaly_analyses"][0];
    assert_eq!(analysis["anomalies"][0]["observations"][0]["value"], "90");
    assert_eq!(analysis["baselines"][0]["observations"][0]["value"], "at most 2");
}

#[test]
fn the_id_is_the_same_for_the_same_and_differs_for_others() {
    let id = |finding: &Finding| json(finding)["finding_info"]["uid"].clone();
    let first = finding(Vec::new(), rule());
    assert_eq!(id(&first), id(&first.clone()));
    assert_ne!(id(&first), id(&Finding { time_ns: 4, ..first.clone() }));
    assert_ne!(id(&first), id(&Finding { sandbox: 4, ..first.clone() }));
    assert_ne!(id(&first), id(&Finding { title: "Other".to_owned(), ..first.clone() }));
}

#[test]
fn size_stays_bounded_for_hostile_arguments() {
    let long = Ancestor { args: vec!["\u{e9}".repeat(2048); 64], ..ancestor(12, 11) };
    let args = vec!["x".repeat(4096); 64];
    let exec = event(What::program(path(), args, false), None);
    let full = Finding { ancestry: vec![long; 200], ..finding(vec![exec; 200], rule()) };
    assert_eq!(json(&full)["evidences"][0]["data"]["cut"], true);
    let text = serde_json::to_string(&json(&full)).expect("representable");
    assert!(text.len() < 128 << 10, "{} bytes", text.len());
}

#[test]
fn a_clock_at_its_ends_does_not_overflow() {
    for wall in [0, u64::MAX] {
        for time in [0, u64::MAX] {
            let context = Context::new(&Start { wall_time_ns: wall, ..start() }, time);
            let late = Finding { time_ns: u64::MAX, ..finding(events(), rule()) };
            assert!(detection(&late, &context).time >= detection(&late, &context).start_time);
        }
    }
}

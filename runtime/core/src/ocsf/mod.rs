//! A [`Finding`] as a Detection Finding of the Open Cybersecurity Schema Framework (class 2004), for the tools that read such.
//!
//! Input: a finding and a [`Context`], which tells what a finding does not repeat: the wall clock, the run, the host. Output:
//! [`Detection`], which serde writes as one JSON object. Source of names and numbers: the schema of OCSF 1.8.0
//! (github.com/ocsf/ocsf-schema, `events/findings/detection_finding.json` and what it extends and includes). What has no place there stands
//! in `unmapped`, and each event is repeated whole in its evidence's `data`: nothing of a finding is lost.
//!
//! This module judges nothing and leaves nothing out but what a bound cuts; a cut is said (`count`, `…` at the end of a text).

mod attack;
mod evidence;
mod shape;
#[cfg(test)]
mod tests;

use sha2::{Digest, Sha256};

pub use shape::*;

use crate::event::{Event, Start};
use crate::finding::{Detector, Finding, Moved, Severity};

/// Version of the schema that [`Detection`] follows.
pub const SCHEMA_VERSION: &str = "1.8.0";
/// Detection Finding.
pub const CLASS_UID: u32 = 2004;

/// Findings.
const CATEGORY_UID: u32 = 2;
/// Create: each finding is told once.
const ACTIVITY_UID: u32 = 1;
/// Linux (`os.type_id`).
const OS_LINUX: u32 = 200;
/// Unknown (`device.type_id`): a server, a laptop or a virtual machine look alike from here.
const DEVICE_UNKNOWN: u32 = 0;
/// Affected (`resource_details.role_id`).
const ROLE_AFFECTED: u32 = 3;
/// Most features of a baseline that are repeated as anomalies.
const MOVED_MAX: usize = 32;

/// What a finding does not say itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Context {
    /// What is added to `time_ns` of an event for the wall clock (nanoseconds since 1970 UTC).
    pub clock_offset_ns: i64,
    /// Mode of the run.
    pub mode: String,
    /// Its profile.
    pub profile: Option<String>,
    /// SHA-256 of its plan.
    pub plan_sha256: String,
    /// Its command.
    pub command: Vec<String>,
    /// The host's name, where it is to be told.
    pub hostname: Option<String>,
    /// Release of its kernel.
    pub kernel_release: Option<String>,
}

impl Context {
    /// The context of a run whose head `start` was told at `time_ns`.
    pub fn new(start: &Start, time_ns: u64) -> Context {
        let offset = i128::from(start.wall_time_ns) - i128::from(time_ns);
        Context {
            clock_offset_ns: i64::try_from(offset).unwrap_or(if offset < 0 { i64::MIN } else { i64::MAX }),
            mode: start.mode.clone(),
            profile: start.profile.clone(),
            plan_sha256: start.plan_sha256.clone(),
            command: start.command.clone(),
            hostname: None,
            kernel_release: None,
        }
    }

    /// The context of a run by its first event; `None` when that is no [`crate::event::What::Start`].
    pub fn of(event: &Event) -> Option<Context> {
        match &event.what {
            crate::event::What::Start(start) => Some(Context::new(start, event.time_ns)),
            _ => None,
        }
    }

    /// Milliseconds since 1970 UTC of an event's time.
    fn wall_ms(&self, time_ns: u64) -> i64 {
        let wall = i128::from(time_ns) + i128::from(self.clock_offset_ns);
        i64::try_from(wall.div_euclid(1_000_000)).unwrap_or(i64::MAX)
    }
}

/// The finding in OCSF's shape.
pub fn detection(finding: &Finding, context: &Context) -> Detection {
    let uid = uid(finding, context);
    let time = context.wall_ms(finding.time_ns);
    let times = || finding.evidence.iter().map(|event| context.wall_ms(event.time_ns)).chain([time]);
    let (first, last) = (times().min().unwrap_or(time), times().max().unwrap_or(time));
    Detection {
        activity_id: ACTIVITY_UID,
        activity_name: "Create",
        category_uid: CATEGORY_UID,
        category_name: "Findings",
        class_uid: CLASS_UID,
        class_name: "Detection Finding",
        type_uid: u64::from(CLASS_UID) * 100 + u64::from(ACTIVITY_UID),
        type_name: "Detection Finding: Create",
        time,
        start_time: first,
        end_time: last,
        severity_id: severity_id(finding.severity),
        severity: severity_name(finding.severity),
        status_id: 1,
        status: "New",
        is_alert: finding.severity >= Severity::Medium,
        message: finding.title.clone(),
        count: finding.count,
        metadata: metadata(uid.clone()),
        device: device(context),
        finding_info: info(finding, uid, first, last),
        anomaly_analyses: analyses(finding),
        evidences: evidence::all(finding),
        resources: vec![resource(finding, context)],
        unmapped: unmapped(finding, context),
    }
}

/// The same for one finding, however often it is told: a receiver can drop what it already has.
fn uid(finding: &Finding, context: &Context) -> String {
    let mut hash = Sha256::new();
    let detector = match &finding.detector {
        Detector::Rule { id, .. } => id,
        Detector::Baseline { model, .. } => model,
    };
    // The wall clock keeps sandboxes of two boots apart, whose ids and times since boot may be the same.
    let wall = i128::from(finding.time_ns) + i128::from(context.clock_offset_ns);
    for part in [context.plan_sha256.as_bytes(), detector.as_bytes(), finding.title.as_bytes(), &wall.to_le_bytes()] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.update(finding.sandbox.to_le_bytes());
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// `severity_id` of OCSF.
pub const fn severity_id(severity: Severity) -> u32 {
    match severity {
        Severity::Informational => 1,
        Severity::Low => 2,
        Severity::Medium => 3,
        Severity::High => 4,
        Severity::Critical => 5,
    }
}

/// The caption of a severity.
pub const fn severity_name(severity: Severity) -> &'static str {
    match severity {
        Severity::Informational => "Informational",
        Severity::Low => "Low",
        Severity::Medium => "Medium",
        Severity::High => "High",
        Severity::Critical => "Critical",
    }
}

fn metadata(uid: String) -> Metadata {
    let product =
        Product { name: "Apex", vendor_name: "Apex", uid: "apex-probe", version: env!("CARGO_PKG_VERSION").to_owned() };
    Metadata { version: SCHEMA_VERSION, product, uid, log_name: "findings" }
}

fn device(context: &Context) -> Device {
    Device {
        type_id: DEVICE_UNKNOWN,
        hostname: context.hostname.clone(),
        os: Os { name: "Linux", type_id: OS_LINUX, kernel_release: context.kernel_release.clone() },
    }
}

fn info(finding: &Finding, uid: String, first: i64, last: i64) -> FindingInfo {
    let (analytic, kind) = match &finding.detector {
        Detector::Rule { id, origin } => {
            let rule = Analytic {
                type_id: 1,
                kind: "Rule",
                uid: id.clone(),
                name: id.clone(),
                desc: origin.clone(),
                algorithm: None,
            };
            (rule, "detection rule")
        }
        Detector::Baseline { model, score, .. } => {
            let learned = Analytic {
                type_id: 3,
                kind: "Statistical",
                uid: model.clone(),
                name: "behaviour baseline".to_owned(),
                desc: format!("learned from earlier runs of this policy; score {score:.2} against the threshold 1"),
                algorithm: Some("conformal prediction over robust deviations"),
            };
            (learned, "behaviour baseline")
        }
    };
    FindingInfo {
        uid,
        title: finding.title.clone(),
        desc: finding.explanation.clone(),
        types: vec![kind],
        analytic,
        attacks: finding.techniques.iter().filter_map(|id| attack::attack(id)).collect(),
        first_seen_time: first,
        last_seen_time: last,
        created_time: last,
        related_events_count: finding.count,
    }
}

fn analyses(finding: &Finding) -> Vec<AnomalyAnalysis> {
    let Detector::Baseline { moved, .. } = &finding.detector else { return Vec::new() };
    if moved.is_empty() {
        return Vec::new();
    }
    let told = &moved[..moved.len().min(MOVED_MAX)];
    let observed = |value: fn(&Moved) -> &String| {
        told.iter()
            .map(|moved| Observed {
                observation_parameter: moved.feature.clone(),
                observations: vec![Observation { value: value(moved).clone() }],
            })
            .collect()
    };
    vec![AnomalyAnalysis {
        analysis_targets: vec![AnalysisTarget { name: format!("sandbox {}", finding.sandbox), kind: "sandbox" }],
        anomalies: observed(|moved| &moved.seen),
        baselines: observed(|moved| &moved.expected),
    }]
}

fn resource(finding: &Finding, context: &Context) -> Resource {
    let mut labels = vec![format!("mode={}", context.mode)];
    labels.extend(context.profile.iter().map(|profile| format!("profile={profile}")));
    labels.push(format!("plan_sha256={}", context.plan_sha256));
    Resource {
        uid: finding.sandbox.to_string(),
        name: format!("sandbox {}", finding.sandbox),
        kind: "Apex sandbox",
        role_id: ROLE_AFFECTED,
        role: "Affected",
        labels,
    }
}

fn unmapped(finding: &Finding, context: &Context) -> Unmapped {
    Unmapped {
        sandbox: finding.sandbox,
        time_ns: finding.time_ns,
        mode: context.mode.clone(),
        profile: context.profile.clone(),
        plan_sha256: context.plan_sha256.clone(),
        command: evidence::words(&context.command),
        detector: finding.detector.clone(),
        // Those that are no technique of ATT&CK to us still reach the reader.
        techniques: finding.techniques.clone(),
    }
}

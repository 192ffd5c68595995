//! The objects of OCSF 1.8.0 that a [`Detection`] is made of, each with the attributes that Apex can fill. Names are the schema's.

use serde::Serialize;

use crate::event::Event;
use crate::finding::Detector;

/// `detection_finding`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Detection {
    /// 1: a finding was created.
    pub activity_id: u32,
    /// `Create`.
    pub activity_name: &'static str,
    /// 2.
    pub category_uid: u32,
    /// `Findings`.
    pub category_name: &'static str,
    /// 2004.
    pub class_uid: u32,
    /// `Detection Finding`.
    pub class_name: &'static str,
    /// Class and activity: 200401.
    pub type_uid: u64,
    /// `Detection Finding: Create`.
    pub type_name: &'static str,
    /// When, in milliseconds since 1970 UTC.
    pub time: i64,
    /// Of the oldest event.
    pub start_time: i64,
    /// Of the newest.
    pub end_time: i64,
    /// 1 to 5.
    pub severity_id: u32,
    /// Its caption.
    pub severity: &'static str,
    /// 1: new.
    pub status_id: u32,
    /// `New`.
    pub status: &'static str,
    /// Severity medium or above.
    pub is_alert: bool,
    /// The title.
    pub message: String,
    /// How many events it rests on.
    pub count: u64,
    /// Of this record.
    pub metadata: Metadata,
    /// The host.
    pub device: Device,
    /// What was found.
    pub finding_info: FindingInfo,
    /// What a baseline expected and saw.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub anomaly_analyses: Vec<AnomalyAnalysis>,
    /// The events.
    pub evidences: Vec<Evidence>,
    /// The sandbox.
    pub resources: Vec<Resource>,
    /// What has no place in OCSF.
    pub unmapped: Unmapped,
}

/// `metadata`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metadata {
    /// Of the schema.
    pub version: &'static str,
    /// Who made the record.
    pub product: Product,
    /// Of this finding, the same each time that it is sent.
    pub uid: String,
    /// `findings`.
    pub log_name: &'static str,
}

/// `product`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Product {
    /// `Apex`.
    pub name: &'static str,
    /// `Apex`.
    pub vendor_name: &'static str,
    /// `apex-probe`.
    pub uid: &'static str,
    /// Of Apex.
    pub version: String,
}

/// `device`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Device {
    /// 0: unknown.
    pub type_id: u32,
    /// The host's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Its system.
    pub os: Os,
}

/// `os`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Os {
    /// `Linux`.
    pub name: &'static str,
    /// 200.
    pub type_id: u32,
    /// Release of the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_release: Option<String>,
}

/// `finding_info`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FindingInfo {
    /// As [`Metadata::uid`].
    pub uid: String,
    /// One line.
    pub title: String,
    /// The explanation.
    pub desc: String,
    /// `detection rule` or `behaviour baseline`.
    pub types: Vec<&'static str>,
    /// What drew the conclusion.
    pub analytic: Analytic,
    /// MITRE ATT&CK.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attacks: Vec<Attack>,
    /// Of the oldest event, in milliseconds.
    pub first_seen_time: i64,
    /// Of the newest.
    pub last_seen_time: i64,
    /// When it was concluded.
    pub created_time: i64,
    /// How many events it rests on.
    pub related_events_count: u64,
}

/// `analytic`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Analytic {
    /// 1 rule, 3 statistical.
    pub type_id: u32,
    /// Its caption.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The rule's id or the model's hash.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// Where the rule stands, or how unusual it was.
    pub desc: String,
    /// Of a model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<&'static str>,
}

/// `attack`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Attack {
    /// Version of ATT&CK that the names are from.
    pub version: &'static str,
    /// What it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tactic: Option<Named>,
    /// How it is done.
    pub technique: Named,
    /// How exactly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub_technique: Option<Named>,
}

/// `tactic`, `technique` and `sub_technique`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Named {
    /// Its id.
    pub uid: String,
    /// Its name, where known here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'static str>,
    /// Its page.
    pub src_url: String,
}

/// `anomaly_analysis`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AnomalyAnalysis {
    /// The sandbox.
    pub analysis_targets: Vec<AnalysisTarget>,
    /// What was seen.
    pub anomalies: Vec<Observed>,
    /// What was expected.
    pub baselines: Vec<Observed>,
}

/// `analysis_target`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AnalysisTarget {
    /// Its name.
    pub name: String,
    /// `sandbox`.
    #[serde(rename = "type")]
    pub kind: &'static str,
}

/// `anomaly` and `baseline`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Observed {
    /// The feature.
    pub observation_parameter: String,
    /// Its value in words.
    pub observations: Vec<Observation>,
}

/// `observation`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Observation {
    /// In words.
    pub value: String,
}

/// `evidences`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evidence {
    /// The kind of event.
    pub name: String,
    /// Who did it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// To which file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<File>,
    /// The own end of a socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src_endpoint: Option<Endpoint>,
    /// The other end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst_endpoint: Option<Endpoint>,
    /// How they are connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_info: Option<Connection>,
    /// By which system call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<Api>,
    /// The event as `--events` writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Event>,
}

/// `process`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Process {
    /// As the host numbers it.
    pub pid: u32,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its arguments as one line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd_line: Option<String>,
    /// Its program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<File>,
    /// Whose it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// The process that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_process: Option<Box<Process>>,
}

/// `user`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct User {
    /// User id as the host numbers it.
    pub uid: String,
}

/// `file`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct File {
    /// Its last name.
    pub name: String,
    /// Inside the sandbox.
    pub path: String,
    /// 0 unknown, 2 folder, 5 socket, 7 symbolic link, 8 executable.
    pub type_id: u32,
}

/// `network_endpoint`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Endpoint {
    /// IP address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// Port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The name of a UNIX socket, or the number of another family.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// `network_connection_info`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Connection {
    /// 0 unknown, 2 outbound, 4 local.
    pub direction_id: u32,
    /// 4, 6, or 99 for no internet protocol.
    pub protocol_ver_id: u32,
}

/// `api`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Api {
    /// Name of the system call.
    pub operation: String,
    /// What the kernel answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<Response>,
}

/// `response`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Response {
    /// Number of the error.
    pub code: i32,
    /// Its name.
    pub error: String,
}

/// `resource_details`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Resource {
    /// The sandbox's id.
    pub uid: String,
    /// In words.
    pub name: String,
    /// `Apex sandbox`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// 3: affected.
    pub role_id: u32,
    /// Its caption.
    pub role: &'static str,
    /// Mode, profile, plan.
    pub labels: Vec<String>,
}

/// What has no place in OCSF.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Unmapped {
    /// The sandbox's id.
    pub sandbox: u64,
    /// Nanoseconds since boot.
    pub time_ns: u64,
    /// Mode.
    pub mode: String,
    /// Profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// SHA-256 of the plan.
    pub plan_sha256: String,
    /// The command as given.
    pub command: String,
    /// The detector, with all that a baseline has to say.
    pub detector: Detector,
    /// ATT&CK techniques as the detector gave them.
    pub techniques: Vec<String>,
}

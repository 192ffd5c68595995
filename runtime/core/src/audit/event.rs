//! A record in OCSF's shape. Input: a record, its number and the hash before it; output: a value that serde writes with `prev_sha256` as its last
//! key. Names and numbers are the schema's. Must not let a text through unmasked or without a bound.

use serde::Serialize;
use serde_json::Value;

use super::mask::{cut, mask_value};
use super::{Outcome, Record, mask};
use crate::access::{Operation, Role};
use crate::ocsf::{Product, SCHEMA_VERSION, User};

/// API Activity.
pub const CLASS_UID: u32 = 6003;

/// Application Activity.
const CATEGORY_UID: u32 = 6;
/// Target (`resource_details.role_id`).
const ROLE_TARGET: u32 = 1;
/// Most bytes of a text.
const TEXT_BYTES_MAX: usize = 2048;
/// Most bytes of `before` and of `after` as JSON.
const VALUE_BYTES_MAX: usize = 16 << 10;

/// `api_activity`.
#[derive(Debug, Serialize)]
pub(super) struct Activity {
    activity_id: u32,
    activity_name: &'static str,
    category_uid: u32,
    category_name: &'static str,
    class_uid: u32,
    class_name: &'static str,
    type_uid: u32,
    type_name: String,
    time: u64,
    severity_id: u32,
    severity: &'static str,
    status_id: u32,
    status: &'static str,
    status_detail: String,
    message: String,
    metadata: Metadata,
    actor: ActorObject,
    src_endpoint: Endpoint,
    api: Api,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    resources: Vec<Resource>,
    unmapped: Unmapped,
}

/// `metadata`.
#[derive(Debug, Serialize)]
struct Metadata {
    version: &'static str,
    product: Product,
    log_name: &'static str,
    sequence: u64,
}

/// `actor`.
#[derive(Debug, Serialize)]
struct ActorObject {
    user: User,
    process: Process,
}

/// `process`.
#[derive(Debug, Serialize)]
struct Process {
    pid: u32,
}

/// `network_endpoint`. A UNIX socket has no address.
#[derive(Debug, Serialize)]
struct Endpoint {
    name: &'static str,
}

/// `api`.
#[derive(Debug, Serialize)]
struct Api {
    operation: &'static str,
    service: Service,
}

/// `service`.
#[derive(Debug, Serialize)]
struct Service {
    name: &'static str,
}

/// `resource_details`.
#[derive(Debug, Serialize)]
struct Resource {
    uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    role_id: u32,
    role: &'static str,
}

/// What has no place in OCSF. The hash before stands last.
#[derive(Debug, Serialize)]
struct Unmapped {
    outcome: Outcome,
    roles: Vec<Role>,
    before: Value,
    after: Value,
    prev_sha256: String,
}

pub(super) fn activity(record: &Record, sequence: u64, prev_sha256: &str) -> Activity {
    let (activity_id, activity_name) = kind(record.operation);
    let (status_id, status) = match record.outcome {
        Outcome::Allowed => (1, "Success"),
        Outcome::Refused | Outcome::Failed => (2, "Failure"),
    };
    // A refusal is worth a look, and what was allowed and failed left something half done.
    let (severity_id, severity) = match record.outcome {
        Outcome::Allowed => (1, "Informational"),
        Outcome::Refused => (2, "Low"),
        Outcome::Failed => (3, "Medium"),
    };
    let operation = record.operation.name();
    Activity {
        activity_id,
        activity_name,
        category_uid: CATEGORY_UID,
        category_name: "Application Activity",
        class_uid: CLASS_UID,
        class_name: "API Activity",
        type_uid: CLASS_UID * 100 + activity_id,
        type_name: format!("API Activity: {activity_name}"),
        time: record.time_ms,
        severity_id,
        severity,
        status_id,
        status,
        status_detail: text(&record.reason),
        message: format!("{operation} by uid {}: {}", record.actor.uid, record.outcome.name()),
        metadata: metadata(sequence),
        actor: ActorObject {
            user: User { uid: record.actor.uid.to_string() },
            process: Process { pid: record.actor.pid },
        },
        src_endpoint: Endpoint { name: "local" },
        api: Api { operation, service: Service { name: "apexd" } },
        resources: resource(record).into_iter().collect(),
        unmapped: Unmapped {
            outcome: record.outcome,
            roles: record.actor.roles.iter().copied().take(Role::ALL.len()).collect(),
            before: value(&record.before),
            after: value(&record.after),
            prev_sha256: prev_sha256.to_owned(),
        },
    }
}

fn metadata(sequence: u64) -> Metadata {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let product = Product { name: "Apex", vendor_name: "Apex", uid: "apexd", version };
    Metadata { version: SCHEMA_VERSION, product, log_name: "audit", sequence }
}

fn resource(record: &Record) -> Option<Resource> {
    let target = &record.target;
    (!target.id.is_empty() || !target.name.is_empty()).then(|| Resource {
        uid: text(&target.id),
        name: text(&target.name),
        kind: if matches!(record.operation, Operation::Up | Operation::Down | Operation::Groups) {
            "Apex group"
        } else {
            "Apex sandbox"
        },
        role_id: ROLE_TARGET,
        role: "Target",
    })
}

/// Whether an operation changes nothing.
pub const fn only_reads(operation: Operation) -> bool {
    kind(operation).0 == READ
}

const READ: u32 = 2;

/// `activity_id` and its caption.
const fn kind(operation: Operation) -> (u32, &'static str) {
    match operation {
        Operation::Create | Operation::LevelPartial | Operation::LevelNone | Operation::Up | Operation::MailSend => {
            (1, "Create")
        }
        Operation::Inspect
        | Operation::List
        | Operation::Logs
        | Operation::Events
        | Operation::Findings
        | Operation::Audit
        | Operation::Stats
        | Operation::Tree
        | Operation::Metrics
        | Operation::Groups
        | Operation::MailList => (READ, "Read"),
        Operation::Run
        | Operation::Exec
        | Operation::Attach
        | Operation::ModeTighten
        | Operation::ModeRelax
        | Operation::Limits
        | Operation::Pause
        | Operation::Resume
        | Operation::Signal
        | Operation::MailReceive
        | Operation::Reload => (3, "Update"),
        Operation::Kill | Operation::Remove | Operation::Down | Operation::MailRemove => (4, "Delete"),
    }
}

fn text(text: &str) -> String {
    // Cut first, by far enough that no secret of the part that stays loses its end: masking takes time.
    cut(mask(&cut(text.to_owned(), 8 * TEXT_BYTES_MAX)), TEXT_BYTES_MAX)
}

/// A value of bounded size. One that is too large keeps its beginning, as text.
fn value(value: &Value) -> Value {
    let masked = mask_value(value);
    let text = masked.to_string();
    if text.len() <= VALUE_BYTES_MAX {
        return masked;
    }
    serde_json::json!({ "bytes": text.len(), "beginning": cut(text, TEXT_BYTES_MAX) })
}

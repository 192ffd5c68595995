//! What was really put in force, layer by layer, read back from the kernel.

use serde::Serialize;

use crate::layer::{Layer, Requirement};
use crate::policy::{IsolationLevel, Mode};
use crate::watch::Level;

/// How a layer ended up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state", content = "reason")]
pub enum State {
    /// The kernel confirms it.
    InForce,
    /// Optional, and this host could not give it.
    Skipped(String),
    /// The policy does not ask for it.
    Off,
    /// The sandbox's isolation level does not have it.
    LeftOut(IsolationLevel),
    /// The kernel's answer differs from the request: the sandbox was not started.
    Mismatch(String),
}

/// One layer, requested and effective side by side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayerReceipt {
    /// The layer.
    pub layer: Layer,
    /// What the policy says when the host cannot give it.
    pub requirement: Requirement,
    /// What the plan asks for.
    pub requested: String,
    /// What the kernel answered.
    pub effective: String,
    /// Where the answer was read: `/proc/PID/status`, a probing system call, a cgroup file.
    pub evidence: String,
    /// The verdict.
    #[serde(flatten)]
    pub state: State,
}

/// The receipt of one sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Receipt {
    /// Version of this shape.
    pub version: u32,
    /// Kernel release.
    pub kernel: String,
    /// Mode.
    pub mode: Mode,
    /// How many layers the sandbox has.
    pub level: IsolationLevel,
    /// SHA-256 of the plan, in hexadecimal.
    pub plan_sha256: String,
    /// Process id of the sandbox's init on the host.
    pub init_pid: i32,
    /// How much is watched: the command does not start before that is so.
    #[serde(skip_serializing_if = "Level::is_off")]
    pub watch: Level,
    /// Every layer, in the order it was put in force.
    pub layers: Vec<LayerReceipt>,
}

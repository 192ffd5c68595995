//! Which layers a host and a user can have, found out by looking and trying; nothing is started.

use serde::Serialize;

use crate::layer::Layer;

/// One layer, or a facility that makes a layer better or possible.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The layer it serves; `None` for what serves several.
    pub layer: Option<Layer>,
    /// Its name: that of the layer, or `new mount API`, `seccomp listener`, `delegated cgroup`.
    pub facility: String,
    /// Whether it can be had.
    pub available: bool,
    /// What was seen: a version, a path, the error.
    pub detail: String,
    /// What to do when it cannot be had and something can be done.
    pub remedy: Option<String>,
}

/// Everything found on one host for one user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// Version of this shape.
    pub version: u32,
    /// Kernel release.
    pub kernel: String,
    /// Effective user id of the caller.
    pub uid: u32,
    /// The findings, in the order of the layers.
    pub findings: Vec<Finding>,
}

impl Diagnosis {
    /// Whether a sandbox can exist here at all: every foundation that was looked at is there.
    pub fn usable(&self) -> bool {
        self.findings.iter().all(|finding| finding.available || !finding.layer.is_some_and(Layer::is_foundation))
    }
}

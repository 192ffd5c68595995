//! `linux.memoryPolicy` (runtime-spec 1.3): which memory nodes the container's pages come from (set_mempolicy(2)). It outlives exec and is inherited.

use apex_sys::{Errno, schedule};
use oci_spec::runtime::{LinuxMemoryPolicy, MemoryPolicyFlagType as Flag, MemoryPolicyModeType as Mode};

use crate::numbers;

/// The kernel's largest number of nodes (`MAX_NUMNODES`) is 1024.
const NODE_MAX: usize = 1023;

/// A policy that does not hold.
#[derive(Debug, thiserror::Error)]
pub enum MemoryPolicyError {
    /// The nodes are no list.
    #[error("linux.memoryPolicy.nodes: {0:?} is no list of memory nodes of 0 to {NODE_MAX}, such as 0-3,7")]
    Nodes(String),
    /// The kernel refuses.
    #[error(
        "cannot set linux.memoryPolicy ({mode}, nodes {nodes:?}); does the machine have these nodes, and the mode these flags?"
    )]
    Set {
        /// `MPOL_*`.
        mode: String,
        /// As in the configuration.
        nodes: String,
        /// Why.
        source: Errno,
    },
}

/// The nodes of a policy; none where it names none.
///
/// # Errors
/// They are no list.
pub fn nodes(policy: &LinuxMemoryPolicy) -> Result<Vec<usize>, MemoryPolicyError> {
    match policy.nodes().as_deref().filter(|text| !text.is_empty()) {
        None => Ok(Vec::new()),
        Some(text) => numbers::list(text, NODE_MAX).ok_or_else(|| MemoryPolicyError::Nodes(text.to_owned())),
    }
}

/// Makes it that of the calling thread.
///
/// # Errors
/// The kernel refuses it.
pub fn apply(policy: &LinuxMemoryPolicy) -> Result<(), MemoryPolicyError> {
    let mode = match policy.mode() {
        Mode::MpolDefault => 0,
        Mode::MpolPreferred => 1,
        Mode::MpolBind => 2,
        Mode::MpolInterleave => 3,
        Mode::MpolLocal => 4,
        Mode::MpolPreferredMany => 5,
        Mode::MpolWeightedInterleave => 6,
    };
    let flags = policy.flags().iter().flatten().map(|flag| match flag {
        Flag::MpolFNumaBalancing => 1 << 13,
        Flag::MpolFRelativeNodes => 1 << 14,
        Flag::MpolFStaticNodes => 1 << 15,
    });
    let mode = flags.fold(mode, |all, flag| all | flag);
    schedule::set_memory_policy(mode, &nodes(policy)?).map_err(|source| MemoryPolicyError::Set {
        mode: policy.mode().to_string(),
        nodes: policy.nodes().clone().unwrap_or_default(),
        source,
    })
}

//! What every source of events has in common.
//!
//! A source is a thread that sends [`Batch`]es into a bounded channel. The kernel's probes must not wait for a reader: their source blocks on
//! a full channel, the ring buffer behind it fills, and the kernel's side counts what is lost. The ptrace source blocks as well, and
//! with it the sandbox: nothing is lost, it is only slower.

use std::collections::BTreeMap;

use apex_core::event::{Event, Loss};

/// Batches that may wait between a source and the pipeline.
pub const QUEUE_BATCHES_MAX: usize = 64;
/// Events of one batch at most.
pub const BATCH_EVENTS_MAX: usize = 512;

/// What a source sends.
#[derive(Debug, Default)]
pub struct Batch {
    /// Events, in the order in which they were read. Each source keeps the order of time within a process.
    pub events: Vec<Event>,
    /// Lost since the batch before.
    pub lost: BTreeMap<Loss, u64>,
}

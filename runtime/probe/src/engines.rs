//! Everything that concludes from events.

use anyhow::Result;
use apex_core::event::Event;
use apex_core::finding::Finding;
use apex_core::watch::Begin;

/// The engines of one sandbox.
pub struct Engines {}

impl Engines {
    /// Reads what they need.
    pub fn new(_begin: &Begin) -> Result<Engines> {
        Ok(Engines {})
    }

    /// What they conclude from an event.
    pub fn observe(&mut self, _event: &Event) -> Vec<Finding> {
        Vec::new()
    }
}

//! The container's cgroup: v1 hierarchies, v2 by files, v2 or v1 by systemd.

use serde::{Deserialize, Serialize};
/// placeholder
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Cgroup {}
impl Cgroup {
    /// placeholder
    pub fn is_frozen(&self) -> Result<bool, apex_sys::Errno> {
        Ok(false)
    }
}

//! The wall clock in the units of the API, and chance.

/// Milliseconds since the epoch.
pub fn now_ms() -> u64 {
    apex_sys::clock::wall_ns() / 1_000_000
}

/// Thousandths for the jitter of a back-off. From the kernel's random numbers, through the standard library's hasher keys.
pub fn jitter() -> u16 {
    use std::hash::{BuildHasher, Hasher};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    u16::try_from(random % 1001).unwrap_or(0)
}

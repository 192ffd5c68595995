//! The wall clock, in the units of the API.

/// Milliseconds since the epoch.
pub fn now_ms() -> u64 {
    apex_sys::clock::wall_ns() / 1_000_000
}

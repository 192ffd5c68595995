//! How a process is scheduled: sched_setattr(2), sched_setaffinity(2), ioprio_set(2), personality(2); and
//! where its memory is, which the kernel keeps beside (set_mempolicy(2)).

use crate::{Errno, check};

/// The argument block of sched_setattr(2), without clamps of utilisation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Attributes {
    /// Bytes of the block; [`set_attributes`] fills it in.
    pub size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value, for the ordinary policies.
    pub nice: i32,
    /// Priority, for the real-time policies.
    pub priority: u32,
    /// Nanoseconds of work in a period, for `SCHED_DEADLINE`.
    pub runtime_ns: u64,
    /// Nanoseconds within which it must be done.
    pub deadline_ns: u64,
    /// Nanoseconds of a period.
    pub period_ns: u64,
}

/// Schedules the calling thread so.
pub fn set_attributes(mut attributes: Attributes) -> Result<(), Errno> {
    attributes.size = size_of::<Attributes>() as u32;
    // SAFETY: the block has the stated size and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) }).map(drop)
}

/// Lets the calling thread run on these processors alone (sched_setaffinity(2)).
pub fn set_affinity(processors: &[usize]) -> Result<(), Errno> {
    let last = processors.iter().max().copied().unwrap_or(0);
    let mut mask = vec![0_u64; last / 64 + 1];
    for processor in processors {
        mask[processor / 64] |= 1 << (processor % 64);
    }
    // SAFETY: pointer and size describe `mask`, which outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(&mask[..]), mask.as_ptr()) }).map(drop)
}

/// Takes the calling thread's memory from these nodes, as `mode` (`MPOL_*` with `MPOL_F_*`) has it (set_mempolicy(2)).
pub fn set_memory_policy(mode: u32, nodes: &[usize]) -> Result<(), Errno> {
    let words = nodes.iter().max().map_or(0, |last| last / 64 + 1);
    let mut mask = vec![0_u64; words];
    for node in nodes {
        mask[node / 64] |= 1 << (node % 64);
    }
    // The kernel reads one bit less than it is told.
    let (pointer, bits) = if mask.is_empty() { (std::ptr::null(), 0) } else { (mask.as_ptr(), words * 64 + 1) };
    // SAFETY: `pointer` is null with no bits, or that of `mask`, which outlives the call and holds `bits - 1` bits.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode as libc::c_int, pointer, bits) }).map(drop)
}

/// Sets the class and priority of the calling process's input and output (ioprio_set(2)).
pub fn set_io_priority(class: u32, priority: u32) -> Result<(), Errno> {
    const WHO_PROCESS: libc::c_int = 1;
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, class << 13 | priority) }).map(drop)
}

/// Sets the execution domain of the calling process (personality(2)).
pub fn set_personality(persona: u64) -> Result<(), Errno> {
    // SAFETY: an integer.
    check(unsafe { libc::personality(persona) }.into()).map(drop)
}

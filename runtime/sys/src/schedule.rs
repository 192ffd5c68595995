//! How a process is scheduled: sched_setattr(2), sched_setaffinity(2), ioprio_set(2), personality(2).

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

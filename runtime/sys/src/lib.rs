//! `apex-sys`: thin wrappers around system calls, and all of the `unsafe` of the runtime.
//!
//! One file per kernel facility, one system call per wrapper. This crate knows no type of Apex and decides nothing.

pub mod bpf;
pub mod clock;
pub mod entry;
pub mod fs;
pub mod holder;
pub mod limits;
pub mod memory;
pub mod mount;
pub mod net;
pub mod prctl;
pub mod probe;
pub mod process;
pub mod ptrace;
pub mod schedule;
pub mod seccomp;
pub mod signal;
pub mod terminal;

pub use nix::errno::Errno;

/// Turns the result of a raw system call into a value or the errno.
fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result < 0 { Err(Errno::last()) } else { Ok(result) }
}

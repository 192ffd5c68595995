//! eBPF programs that guard the devices of a cgroup: bpf(2).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::{Errno, check};

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
const F_ALLOW_MULTI: u32 = 1 << 1;

/// One instruction (the kernel's `struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register in the low half, source register in the high one.
    pub registers: u8,
    /// Distance of a jump, or offset of a load.
    pub offset: i16,
    /// Constant.
    pub immediate: i32,
}

/// The part of `union bpf_attr` that PROG_LOAD reads.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

/// The part of `union bpf_attr` that PROG_ATTACH reads.
#[repr(C)]
struct AttachAttributes {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Loads a program that is asked at each use of a device (bpf(2), `BPF_PROG_LOAD`); the verifier writes to `log`, when there is one, what it saw.
/// `EPERM` without CAP_BPF or CAP_SYS_ADMIN in the first user namespace.
pub fn load_device_program(instructions: &[Instruction], log: &mut [u8]) -> Result<OwnedFd, Errno> {
    let attributes = LoadAttributes {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: (!log.is_empty()).into(),
        log_size: log.len() as u32,
        log_buf: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
        prog_name: *b"apex_devices\0\0\0\0",
        ..LoadAttributes::default()
    };
    // SAFETY: `attributes` has the stated size; what its addresses point to, the instructions, a static string and the log, outlives the call, and
    // the kernel writes to the log alone, within the length given.
    let fd =
        check(unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attributes, size_of::<LoadAttributes>()) })?;
    // SAFETY: a fresh descriptor from the kernel.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Ties a device program to a v2 cgroup for as long as that lives (bpf(2), `BPF_PROG_ATTACH`). Beside others: a device must please all of them.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Errno> {
    let attributes = AttachAttributes {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: CGROUP_DEVICE,
        attach_flags: F_ALLOW_MULTI,
    };
    // SAFETY: `attributes` has the stated size and outlives the call, which follows no address in it.
    check(unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attributes, size_of::<AttachAttributes>()) })
        .map(drop)
}

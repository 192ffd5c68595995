//! Limits of one process (setrlimit(2)).

use crate::{Errno, check};

/// The resources that the jail limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Open descriptors.
    Nofile,
    /// Size of a file, in bytes.
    Fsize,
    /// Processes of the user.
    Nproc,
    /// Size of a core dump, in bytes.
    Core,
    /// Locked memory, in bytes.
    Memlock,
}

/// Sets the soft and the hard limit to `value` (prlimit(2)). A hard limit below it stays: only the privileged may raise one.
pub fn set(resource: Resource, value: u64) -> Result<u64, Errno> {
    let resource = match resource {
        Resource::Nofile => libc::RLIMIT_NOFILE,
        Resource::Fsize => libc::RLIMIT_FSIZE,
        Resource::Nproc => libc::RLIMIT_NPROC,
        Resource::Core => libc::RLIMIT_CORE,
        Resource::Memlock => libc::RLIMIT_MEMLOCK,
    };
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: `limit` outlives the call.
    match check(unsafe { libc::setrlimit(resource, &raw const limit) }.into()) {
        Ok(_) => Ok(value),
        Err(Errno::EPERM) => lower_to_hard(resource),
        Err(errno) => Err(errno),
    }
}

/// The hard limit is already tighter than what is asked for: make it the soft limit too.
fn lower_to_hard(resource: libc::__rlimit_resource_t) -> Result<u64, Errno> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives the call.
    check(unsafe { libc::getrlimit(resource, &raw mut limit) }.into())?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` outlives the call.
    check(unsafe { libc::setrlimit(resource, &raw const limit) }.into())?;
    Ok(limit.rlim_max)
}

/// Sets a limit of any process, by the kernel's number of the resource; 0 is the caller (prlimit(2)).
pub fn set_of(pid: crate::process::Pid, resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` outlives the call; the old limit is not asked for.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, &raw const limit, std::ptr::null_mut::<u8>()) })
        .map(drop)
}

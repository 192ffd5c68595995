//! Properties of a process: prctl(2) and capset(2).

use crate::{Errno, check};

fn prctl(option: i32, argument: libc::c_ulong) -> Result<libc::c_long, Errno> {
    // SAFETY: the options used in this file take integers only.
    check(unsafe { libc::syscall(libc::SYS_prctl, option, argument, 0, 0, 0) })
}

/// No exec grants privileges any more, for ever (PR_SET_NO_NEW_PRIVS(2const)).
pub fn set_no_new_privs() -> Result<(), Errno> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map(drop)
}

/// Whether no_new_privs is set (PR_GET_NO_NEW_PRIVS(2const)).
pub fn no_new_privs() -> bool {
    prctl(libc::PR_GET_NO_NEW_PRIVS, 0) == Ok(1)
}

/// Tries to unset no_new_privs, which the kernel refuses with `EINVAL`.
pub fn clear_no_new_privs() -> Result<(), Errno> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 0).map(drop)
}

/// Whether a capability is in the bounding set (PR_CAPBSET_READ(2const)); what the kernel does not know is not.
pub fn is_bounding(capability: u32) -> bool {
    prctl(libc::PR_CAPBSET_READ, capability.into()) == Ok(1)
}

/// The signal that the process gets when its parent ends (PR_SET_PDEATHSIG(2const)). A change of ids clears it.
pub fn set_parent_death_signal(signal: i32) -> Result<(), Errno> {
    prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong).map(drop)
}

/// Whether others of the same user may look into the process (PR_SET_DUMPABLE(2const)).
pub fn set_dumpable(dumpable: bool) -> Result<(), Errno> {
    prctl(libc::PR_SET_DUMPABLE, dumpable.into()).map(drop)
}

/// Removes one capability from the bounding set (PR_CAPBSET_DROP(2const)); `EINVAL` ends the list that the kernel knows.
pub fn drop_bounding(capability: u32) -> Result<(), Errno> {
    prctl(libc::PR_CAPBSET_DROP, capability.into()).map(drop)
}

/// Locks the rule that user id 0 means nothing (PR_SET_SECUREBITS(2const)): NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE, each with its lock.
pub fn lock_securebits() -> Result<(), Errno> {
    const NOROOT: libc::c_ulong = 0b11;
    const NO_SETUID_FIXUP: libc::c_ulong = 0b11 << 2;
    const NO_AMBIENT_RAISE: libc::c_ulong = 0b11 << 6;
    prctl(libc::PR_SET_SECUREBITS, NOROOT | NO_SETUID_FIXUP | NO_AMBIENT_RAISE).map(drop)
}

/// Sets the name shown in /proc/PID/comm (PR_SET_NAME(2const)).
pub fn set_name(name: &std::ffi::CStr) -> Result<(), Errno> {
    // SAFETY: `name` is NUL-terminated; the kernel reads at most 16 bytes of it.
    check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) }).map(drop)
}

/// Whether the kernel has Landlock, and which ABI (landlock_create_ruleset(2), `LANDLOCK_CREATE_RULESET_VERSION`).
pub fn landlock_abi() -> u32 {
    // SAFETY: with the version flag the call takes no memory.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, 1) };
    u32::try_from(abi).unwrap_or(0)
}

/// Makes a ruleset that handles these rights (landlock_create_ruleset(2)). A right that the kernel does not know is an error.
pub fn landlock_ruleset(files: u64, network: u64, scoped: u64) -> Result<std::os::fd::OwnedFd, Errno> {
    use std::os::fd::FromRawFd;
    let attributes = [files, network, scoped];
    // SAFETY: landlock_ruleset_attr is these three words; the array outlives the call.
    let fd = check(unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, attributes.as_ptr(), size_of_val(&attributes), 0)
    })?;
    // SAFETY: a fresh descriptor from the kernel.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd as i32) })
}

/// The capabilities in the effective set of this process, one bit each (capget(2)).
pub fn effective_capabilities() -> Result<u64, Errno> {
    let header: [u32; 2] = [0x2008_0522, 0]; // _LINUX_CAPABILITY_VERSION_3, this process
    let mut data = [0_u32; 6];
    // SAFETY: version 3 fills two sets of three words each; both arrays outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) })?;
    Ok(u64::from(data[0]) | u64::from(data[3]) << 32)
}

/// Adds the rights `allowed` beneath `place` to a ruleset (landlock_add_rule(2)). `EINVAL` when a right is none that its kind of file
/// can have.
pub fn landlock_allow_beneath(
    ruleset: std::os::fd::BorrowedFd<'_>,
    place: std::os::fd::BorrowedFd<'_>,
    allowed: u64,
) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    #[repr(C, packed)]
    struct PathBeneath {
        allowed_access: u64,
        parent_fd: i32,
    }
    const PATH_BENEATH: libc::c_long = 1;
    let rule = PathBeneath { allowed_access: allowed, parent_fd: place.as_raw_fd() };
    // SAFETY: `rule` is a valid landlock_path_beneath_attr and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), PATH_BENEATH, &raw const rule, 0) })
        .map(drop)
}

/// Puts a Landlock ruleset in force for this thread, for ever (landlock_restrict_self(2)).
pub fn landlock_restrict(ruleset: std::os::fd::BorrowedFd<'_>) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) }).map(drop)
}

/// Makes the effective and permitted sets `held` and the inheritable one `inheritable`, one bit a capability (capset(2)).
pub fn set_capabilities(held: u64, inheritable: u64) -> Result<(), Errno> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let header = Header { version: 0x2008_0522, pid: 0 }; // _LINUX_CAPABILITY_VERSION_3
    let (low, high) = (held as u32, (held >> 32) as u32);
    let data = [low, low, inheritable as u32, high, high, (inheritable >> 32) as u32];
    // SAFETY: version 3 takes a header and two sets of three words each; both outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// Lets a capability that is permitted and inheritable survive exec (PR_CAP_AMBIENT(2const), `PR_CAP_AMBIENT_RAISE`).
pub fn raise_ambient(capability: u32) -> Result<(), Errno> {
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, capability, 0, 0) })
        .map(drop)
}

/// The capabilities of a process, one bit each (capabilities(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// In force.
    pub effective: u64,
    /// That may be put in force.
    pub permitted: u64,
    /// That a program with such file capabilities gets.
    pub inheritable: u64,
}

/// Makes the three sets those (capset(2)).
pub fn set_capability_sets(sets: Capabilities) -> Result<(), Errno> {
    let header: [u32; 2] = [0x2008_0522, 0]; // _LINUX_CAPABILITY_VERSION_3, this process
    let Capabilities { effective, permitted, inheritable } = sets;
    let low = [effective as u32, permitted as u32, inheritable as u32];
    let high = [(effective >> 32) as u32, (permitted >> 32) as u32, (inheritable >> 32) as u32];
    let data = [low, high];
    // SAFETY: version 3 takes a header and two sets of three words each; both outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) }).map(drop)
}

/// Keeps the permitted capabilities when the user changes, or no longer (PR_SET_KEEPCAPS(2const)).
pub fn set_keep_capabilities(kept: bool) -> Result<(), Errno> {
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_KEEPCAPS, u64::from(kept), 0, 0, 0) }).map(drop)
}

/// Empties the ambient set (PR_CAP_AMBIENT(2const), `PR_CAP_AMBIENT_CLEAR_ALL`).
pub fn clear_ambient() -> Result<(), Errno> {
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) })
        .map(drop)
}

/// Whether a capability is in the bounding set; `None` for one that the kernel does not know (PR_CAPBSET_READ(2const)).
pub fn bounding(capability: u32) -> Option<bool> {
    // SAFETY: integers only.
    match unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(capability), 0, 0, 0) } {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

/// The capabilities in the permitted set of this process, one bit each (capget(2)).
pub fn permitted_capabilities() -> Result<u64, Errno> {
    let header: [u32; 2] = [0x2008_0522, 0]; // _LINUX_CAPABILITY_VERSION_3, this process
    let mut data = [0_u32; 6];
    // SAFETY: version 3 fills two sets of three words each; both arrays outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) })?;
    Ok(u64::from(data[1]) | u64::from(data[4]) << 32)
}

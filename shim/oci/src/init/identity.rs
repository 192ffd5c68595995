//! Who the program is: ids, capabilities, labels, limits, scheduling. The order is the kernel's: what needs a privilege comes before that is given up.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use apex_sys::prctl::{self, Capabilities};
use apex_sys::schedule::{self, Attributes};
use apex_sys::{Errno, fs, limits, process};
use oci_spec::runtime::{
    Capabilities as Names, Capability, IOPriorityClass, LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, PosixRlimit, PosixRlimitType, Process, Scheduler,
};

/// Groups that an error names.
const GROUPS_TOLD_MAX: usize = 16;

/// Why the program cannot be who it shall be.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A step that takes no name.
    #[error("cannot {0}")]
    Step(&'static str, #[source] Errno),
    /// A limit.
    #[error("cannot set {name} to {soft} (soft) and {hard} (hard){}", if *source == Errno::EPERM { "; raising a hard limit needs CAP_SYS_RESOURCE" } else { "" })]
    Limit {
        /// `RLIMIT_*`.
        name: String,
        /// As asked for.
        soft: u64,
        /// As asked for.
        hard: u64,
        /// The kernel's answer.
        source: Errno,
    },
    /// An id without a mapping.
    #[error("cannot become {what} {id}; has the container's user namespace a mapping for it?")]
    Id {
        /// `user`, `group` or `additional groups`.
        what: &'static str,
        /// The id.
        id: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// A capability.
    #[error("cannot raise {0} in the ambient set; it must be permitted and inheritable as well")]
    Ambient(String, #[source] Errno),
    /// A label.
    #[error("cannot set the {module} label {label:?}; {module} is not in force on this host, or does not know it")]
    Label {
        /// `AppArmor` or `SELinux`.
        module: &'static str,
        /// The label of the bundle.
        label: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The score.
    #[error("cannot set oom_score_adj to {0}; lowering it needs CAP_SYS_RESOURCE")]
    OomScore(i32, #[source] std::io::Error),
}

fn step(what: &'static str) -> impl FnOnce(Errno) -> IdentityError {
    move |errno| IdentityError::Step(what, errno)
}

/// Sets the limits of a process; 0 is the caller.
///
/// # Errors
/// The kernel refuses one.
pub fn limit(pid: i32, wanted: Option<&Vec<PosixRlimit>>) -> Result<(), IdentityError> {
    for one in wanted.into_iter().flatten() {
        let (soft, hard) = (one.soft(), one.hard());
        limits::set_of(pid, resource(one.typ()), soft, hard).map_err(|source| IdentityError::Limit {
            name: one.typ().to_string(),
            soft,
            hard,
            source,
        })?;
    }
    Ok(())
}

/// The kernel's number of a limit (getrlimit(2)).
fn resource(kind: PosixRlimitType) -> u32 {
    use nix::libc;
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

/// Sets the score by which the kernel chooses whom to kill for memory; `pid` as the caller's /proc has it.
///
/// # Errors
/// The kernel refuses it.
pub fn set_oom_score(pid: &str, score: Option<i32>) -> Result<(), IdentityError> {
    let Some(score) = score else { return Ok(()) };
    std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string())
        .map_err(|error| IdentityError::OomScore(score, error))
}

/// The files of /proc into which labels are written, opened while /proc is still the host's: the container's may be anything.
#[derive(Debug, Default)]
pub struct Labels {
    apparmor: Option<(String, OwnedFd)>,
    selinux: Option<(String, OwnedFd)>,
}

impl Labels {
    /// Opens them, if the process has labels.
    ///
    /// # Errors
    /// The host has no such module.
    pub fn open(process: &Process) -> Result<Labels, IdentityError> {
        let label = |label: &Option<String>| label.clone().filter(|label| !label.is_empty());
        let open = |module, label: String, paths: &[&CStr]| {
            let mut files = paths.iter().map(|path| fs::open(fs::cwd(), path, nix::libc::O_WRONLY, 0));
            let file = files.find(Result::is_ok).unwrap_or(Err(Errno::ENOENT));
            let source = |errno: Errno| std::io::Error::from_raw_os_error(errno as i32);
            file.map(|file| (label.clone(), file)).map_err(|errno| IdentityError::Label {
                module,
                label,
                source: source(errno),
            })
        };
        let apparmor = label(process.apparmor_profile()).filter(|label| label != "unconfined" || has_apparmor());
        let apparmor = apparmor.map(|label| open("AppArmor", label, &[c"/proc/thread-self/attr/apparmor/exec"]));
        let selinux =
            label(process.selinux_label()).map(|label| open("SELinux", label, &[c"/proc/thread-self/attr/exec"]));
        Ok(Labels { apparmor: apparmor.transpose()?, selinux: selinux.transpose()? })
    }

    /// Writes them: they hold from the next exec on.
    ///
    /// # Errors
    /// The kernel does not know a label.
    pub fn write(&self) -> Result<(), IdentityError> {
        let write = |module, label: &str, file: &OwnedFd, text: String| {
            let source = |errno: Errno| std::io::Error::from_raw_os_error(errno as i32);
            let written = fs::write(file.as_fd(), text.as_bytes()).map(drop);
            written.map_err(|errno| IdentityError::Label { module, label: label.to_owned(), source: source(errno) })
        };
        if let Some((label, file)) = &self.apparmor {
            write("AppArmor", label, file, format!("exec {label}"))?;
        }
        if let Some((label, file)) = &self.selinux {
            write("SELinux", label, file, label.clone())?;
        }
        Ok(())
    }
}

fn has_apparmor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"))
}

/// Scheduling, input and output priority, execution domain.
///
/// # Errors
/// The kernel refuses one.
pub fn schedule(process: &Process, personality: Option<&LinuxPersonality>) -> Result<(), IdentityError> {
    if let Some(scheduler) = process.scheduler() {
        schedule::set_attributes(attributes(scheduler)).map_err(step("set process.scheduler"))?;
    }
    if let Some(wanted) = process.io_priority() {
        let class = match wanted.class() {
            IOPriorityClass::IoprioClassRt => 1,
            IOPriorityClass::IoprioClassBe => 2,
            IOPriorityClass::IoprioClassIdle => 3,
        };
        let priority = u32::try_from(wanted.priority()).map_err(|_| step("set process.ioPriority")(Errno::EINVAL))?;
        schedule::set_io_priority(class, priority).map_err(step("set process.ioPriority"))?;
    }
    if let Some(personality) = personality {
        if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
            return Err(step("set linux.personality: flags are not supported")(Errno::EINVAL));
        }
        let domain = match personality.domain() {
            LinuxPersonalityDomain::PerLinux => 0,
            LinuxPersonalityDomain::PerLinux32 => 8,
        };
        schedule::set_personality(domain).map_err(step("set linux.personality"))?;
    }
    Ok(())
}

fn attributes(wanted: &Scheduler) -> Attributes {
    let policy = match wanted.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let flags = wanted.flags().iter().flatten().map(|flag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    });
    Attributes {
        size: 0,
        policy,
        flags: flags.fold(0, |all, flag| all | flag),
        nice: wanted.nice().unwrap_or(0),
        priority: wanted.priority().and_then(|priority| u32::try_from(priority).ok()).unwrap_or(0),
        runtime_ns: wanted.runtime().unwrap_or(0),
        deadline_ns: wanted.deadline().unwrap_or(0),
        period_ns: wanted.period().unwrap_or(0),
    }
}

/// The capabilities of a process, as sets of bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    /// Limits what any exec can bring.
    pub bounding: u64,
    /// In force.
    pub effective: u64,
    /// May be put in force.
    pub permitted: u64,
    /// Survive an exec together with those of the file.
    pub inheritable: u64,
    /// Survive an exec.
    pub ambient: u64,
}

const SYS_ADMIN: u32 = 21;

impl Sets {
    /// Those of a process; without the section it has none.
    pub fn of(process: &Process) -> Sets {
        let Some(sets) = process.capabilities() else { return Sets::default() };
        let bits = |names: &Option<Names>| names.iter().flatten().fold(0, |bits, name| bits | 1 << number(*name));
        Sets {
            bounding: bits(sets.bounding()),
            effective: bits(sets.effective()),
            permitted: bits(sets.permitted()),
            inheritable: bits(sets.inheritable()),
            ambient: bits(sets.ambient()),
        }
    }

    fn cut(self, known: u64) -> Sets {
        Sets {
            bounding: self.bounding & known,
            effective: self.effective & known,
            permitted: self.permitted & known,
            inheritable: self.inheritable & known,
            ambient: self.ambient & known,
        }
    }
}

/// The kernel's number of a capability (capability.h).
fn number(name: Capability) -> u32 {
    const ORDER: [Capability; 41] = [
        Capability::Chown,
        Capability::DacOverride,
        Capability::DacReadSearch,
        Capability::Fowner,
        Capability::Fsetid,
        Capability::Kill,
        Capability::Setgid,
        Capability::Setuid,
        Capability::Setpcap,
        Capability::LinuxImmutable,
        Capability::NetBindService,
        Capability::NetBroadcast,
        Capability::NetAdmin,
        Capability::NetRaw,
        Capability::IpcLock,
        Capability::IpcOwner,
        Capability::SysModule,
        Capability::SysRawio,
        Capability::SysChroot,
        Capability::SysPtrace,
        Capability::SysPacct,
        Capability::SysAdmin,
        Capability::SysBoot,
        Capability::SysNice,
        Capability::SysResource,
        Capability::SysTime,
        Capability::SysTtyConfig,
        Capability::Mknod,
        Capability::Lease,
        Capability::AuditWrite,
        Capability::AuditControl,
        Capability::Setfcap,
        Capability::MacOverride,
        Capability::MacAdmin,
        Capability::Syslog,
        Capability::WakeAlarm,
        Capability::BlockSuspend,
        Capability::AuditRead,
        Capability::Perfmon,
        Capability::Bpf,
        Capability::CheckpointRestore,
    ];
    let at = ORDER.iter().position(|known| *known == name).expect("every name of the specification is in the table");
    at as u32
}

/// Becomes the user with the capabilities of `wanted`, for good. With `keeps_admin`, CAP_SYS_ADMIN stays permitted, not effective, until the exec:
/// a filter of system calls needs it where no_new_privs is not set. The bounding set, which has lost it, takes it away at the exec.
///
/// # Errors
/// The kernel refuses a step.
pub fn become_user(process: &Process, wanted: Sets, keeps_admin: bool) -> Result<(), IdentityError> {
    let (mut all, mut held) = (0_u64, 0_u64);
    for number in 0..64 {
        let Some(is_held) = prctl::bounding(number) else { break };
        all |= 1 << number;
        held |= u64::from(is_held) << number;
    }
    let wanted = wanted.cut(all);
    for number in (0..64).filter(|number| held & !wanted.bounding & 1 << number != 0) {
        prctl::drop_bounding(number).map_err(step("drop a capability from the bounding set"))?;
    }
    set_ids(process)?;
    let own = prctl::permitted_capabilities().map_err(step("read the capabilities of this process"))?;
    let admin = if keeps_admin { 1 << SYS_ADMIN } else { 0 };
    let sets = Capabilities {
        effective: wanted.effective & own,
        permitted: (wanted.permitted | admin) & own,
        inheritable: wanted.inheritable & own,
    };
    prctl::set_capability_sets(sets).map_err(step("set the capabilities of process.capabilities"))?;
    prctl::clear_ambient().map_err(step("empty the ambient capabilities"))?;
    // The kernel holds none that is not permitted and inheritable too; configurations name such, and other runtimes pass them over.
    let ambient = wanted.ambient & sets.permitted & sets.inheritable;
    for number in (0..64).filter(|number| ambient & 1 << number != 0) {
        prctl::raise_ambient(number).map_err(|errno| IdentityError::Ambient(format!("capability {number}"), errno))?;
    }
    Ok(())
}

fn set_ids(process: &Process) -> Result<(), IdentityError> {
    let user = process.user();
    prctl::set_keep_capabilities(true).map_err(step("keep the capabilities over the change of the user"))?;
    let groups = user.additional_gids().as_deref().unwrap_or_default();
    match process::set_groups(groups) {
        // A user namespace that an unprivileged user mapped has setgroups(2) switched off: then nothing can be added, and nothing taken away.
        Err(Errno::EPERM) if groups.is_empty() => {}
        other => other.map_err(|source| {
            let mut id = groups.iter().take(GROUPS_TOLD_MAX).map(u32::to_string).collect::<Vec<_>>().join(", ");
            if groups.len() > GROUPS_TOLD_MAX {
                id.push_str(&format!(" and {} more", groups.len() - GROUPS_TOLD_MAX));
            }
            IdentityError::Id { what: "additional groups", id, source }
        })?,
    }
    let (gid, uid) = (user.gid(), user.uid());
    process::set_gid(gid).map_err(|source| IdentityError::Id { what: "group", id: gid.to_string(), source })?;
    process::set_uid(uid).map_err(|source| IdentityError::Id { what: "user", id: uid.to_string(), source })?;
    prctl::set_keep_capabilities(false).map_err(step("end keeping the capabilities"))
}

/// Puts CAP_SYS_ADMIN in force again, which [`become_user`] has kept.
///
/// # Errors
/// It was not kept.
pub fn raise_admin(sets: Sets) -> Result<(), Errno> {
    let own = prctl::permitted_capabilities()?;
    let admin = 1 << SYS_ADMIN;
    if own & admin == 0 {
        return Err(Errno::EPERM);
    }
    prctl::set_capability_sets(Capabilities {
        effective: (sets.effective | admin) & own,
        permitted: own,
        inheritable: sets.inheritable & own,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_have_the_kernel_s_numbers() {
        let check = |name, expected| assert_eq!(number(name), expected);
        check(Capability::Chown, 0);
        check(Capability::NetAdmin, 12);
        check(Capability::SysAdmin, SYS_ADMIN);
        check(Capability::Mknod, 27);
        check(Capability::CheckpointRestore, 40);
    }
}

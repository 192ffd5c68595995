//! The words of `linux.seccomp`: parsed once, so that only rules that can be carried out get further.

use apex_core::seccomp::bpf;
use apex_sys::seccomp::{
    FLAG_LOG, FLAG_NEW_LISTENER, FLAG_SPEC_ALLOW, FLAG_TSYNC, FLAG_WAIT_KILLABLE_RECV, knows_flags,
};
use libseccomp::{ScmpAction, ScmpArch};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSyscall,
};
use sha2::{Digest, Sha256};

/// To be raised when the same rules come to mean another program.
const FORMAT: &str = "apex-oci-seccomp-1";
/// The highest errno that a filter can answer (linux/err.h); the kernel cuts higher ones.
const ERRNO_MAX: u32 = 4095;
/// Arguments that a call has.
const ARGS_MAX: usize = 6;
/// The calls by which the init hands the listener out. They cannot wait for whoever has not got it yet.
const HANDSHAKE: [&str; 2] = ["write", "sendmsg"];

/// Why there is no program.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// An errno for an action that answers none.
    #[error("seccomp: {place} gives an errno for {action}, which answers none; remove the errno or use SCMP_ACT_ERRNO")]
    ErrnoUnused {
        /// Where.
        place: String,
        /// The action.
        action: LinuxSeccompAction,
    },
    /// An errno that no call can return.
    #[error("seccomp: {place} answers errno {errno}, and the highest is {max}")]
    ErrnoTooHigh {
        /// Where.
        place: String,
        /// What it says.
        errno: u32,
        /// What is possible.
        max: u32,
    },
    /// An argument that no call has.
    #[error("seccomp: a rule for {call} judges argument {index}; calls have arguments 0 to 5")]
    NoSuchArgument {
        /// The call.
        call: String,
        /// What the rule says.
        index: usize,
    },
    /// A rule without a call.
    #[error("seccomp: an entry of `syscalls` has an empty name, which is no system call")]
    EmptyName,
    /// A rule that the kernel may need and that nobody can compile.
    #[error(
        "seccomp: the rule for {0} judges arguments of a call that is newer than libseccomp, and what it refuses would be allowed without it; refuse the call whole"
    )]
    LaterWithArguments(String),
    /// Everything is to be notified.
    #[error("seccomp: SCMP_ACT_NOTIFY cannot be the default action: the init could not hand the listener out")]
    NotifyDefault,
    /// The handshake would be notified.
    #[error(
        "seccomp: SCMP_ACT_NOTIFY cannot be used for the {0} syscall: the init hands the listener out before anyone can answer"
    )]
    NotifyHandshake(&'static str),
    /// Nobody to ask.
    #[error("seccomp: SCMP_ACT_NOTIFY needs `listenerPath`, the socket of the agent that answers")]
    NoListener,
    /// Words for nobody.
    #[error("seccomp: `listenerMetadata` needs `listenerPath`, the socket of the agent that it is for")]
    MetadataWithoutListener,
    /// A flag that this kernel does not have.
    #[error("seccomp: this kernel does not know the flag {0}; remove it from `flags` or run on a newer kernel")]
    Flag(LinuxSeccompFilterFlag),
    /// An architecture that this libseccomp does not have.
    #[error("seccomp: the architecture {arch} cannot be part of this filter; remove it from `architectures`")]
    Architecture {
        /// The architecture.
        arch: Arch,
        /// libseccomp's answer.
        source: libseccomp::error::SeccompError,
    },
    /// libseccomp refused a rule.
    #[error("seccomp: libseccomp refused the rule for {call}")]
    Rule {
        /// The call.
        call: String,
        /// Its answer.
        source: libseccomp::error::SeccompError,
    },
    /// libseccomp refused something else.
    #[error("seccomp: libseccomp could not compile the filter ({step})")]
    Compile {
        /// What was asked of it.
        step: &'static str,
        /// Its answer.
        source: libseccomp::error::SeccompError,
    },
    /// The compiled program could not be taken over.
    #[error("seccomp: the compiled filter could not be taken over from libseccomp")]
    Export(#[source] std::io::Error),
    /// The compiled program is of a kind that is not understood here.
    #[error("seccomp: libseccomp's program has an instruction at {0} that is not understood; please report it")]
    NotUnderstood(usize),
    /// The program that would be loaded does not answer what libseccomp's does.
    #[error(
        "seccomp: the shortened filter would answer call {nr} of architecture {arch:#x} otherwise than libseccomp's and was not loaded; please report it"
    )]
    Proof {
        /// `AUDIT_ARCH_*`.
        arch: u32,
        /// The call.
        nr: u32,
    },
    /// The program is too long for the kernel.
    #[error("seccomp: the filter has {0} instructions, more than the kernel takes; use fewer rules or architectures")]
    TooLong(usize),
}

/// One rule: calls, what they answer, and when.
pub(super) struct Rule<'a> {
    /// Its calls.
    pub names: &'a [String],
    /// The answer.
    pub action: u32,
    /// When; always if empty.
    pub args: &'a [LinuxSeccompArg],
}

/// What a filter is compiled from, all of it checked.
pub(super) struct Rules<'a> {
    /// The answer to what no rule names, as a `SECCOMP_RET_*`.
    pub default: u32,
    /// Architectures beside the native one.
    pub archs: &'a [Arch],
    /// The rules that do not answer the default, in order.
    pub rules: Vec<Rule<'a>>,
    /// Every name in the profile, also where it answers the default: what its author had heard of.
    pub named: Vec<&'a str>,
}

/// Reads the rules of a bundle.
pub(super) fn rules(seccomp: &LinuxSeccomp) -> Result<Rules<'_>, SeccompError> {
    let place = || "`defaultErrnoRet`".to_owned();
    let default = action(seccomp.default_action(), seccomp.default_errno_ret(), place)?;
    if default == bpf::RET_USER_NOTIF {
        return Err(SeccompError::NotifyDefault);
    }
    if seccomp.listener_metadata().is_some() && seccomp.listener_path().is_none() {
        return Err(SeccompError::MetadataWithoutListener);
    }
    let mut rules = Vec::new();
    let mut named = Vec::new();
    for entry in seccomp.syscalls().as_deref().unwrap_or_default() {
        let rule = rule(entry)?;
        named.extend(rule.names.iter().map(String::as_str));
        // It changes nothing, and libseccomp refuses it.
        if rule.action != default {
            rules.push(rule);
        }
    }
    Ok(Rules { default, archs: seccomp.architectures().as_deref().unwrap_or_default(), rules, named })
}

fn rule(entry: &LinuxSyscall) -> Result<Rule<'_>, SeccompError> {
    let first = || entry.names().first().cloned().unwrap_or_default();
    let place = || format!("the rule for {}", first());
    let action = action(entry.action(), entry.errno_ret(), place)?;
    let args = entry.args().as_deref().unwrap_or_default();
    if entry.names().iter().any(String::is_empty) {
        return Err(SeccompError::EmptyName);
    }
    if let Some(arg) = args.iter().find(|arg| arg.index() >= ARGS_MAX) {
        return Err(SeccompError::NoSuchArgument { call: first(), index: arg.index() });
    }
    if action == bpf::RET_USER_NOTIF
        && let Some(call) = HANDSHAKE.into_iter().find(|call| entry.names().iter().any(|name| name == call))
    {
        return Err(SeccompError::NotifyHandshake(call));
    }
    Ok(Rule { names: entry.names(), action, args })
}

/// The kernel's word for an action.
fn action(action: LinuxSeccompAction, errno: Option<u32>, place: impl Fn() -> String) -> Result<u32, SeccompError> {
    let max = match action {
        LinuxSeccompAction::ScmpActErrno => ERRNO_MAX,
        LinuxSeccompAction::ScmpActTrace => u32::from(u16::MAX),
        LinuxSeccompAction::ScmpActKill
        | LinuxSeccompAction::ScmpActKillThread
        | LinuxSeccompAction::ScmpActKillProcess
        | LinuxSeccompAction::ScmpActTrap
        | LinuxSeccompAction::ScmpActNotify
        | LinuxSeccompAction::ScmpActLog
        | LinuxSeccompAction::ScmpActAllow => {
            return match errno {
                Some(_) => Err(SeccompError::ErrnoUnused { place: place(), action }),
                None => Ok(action.as_u32(None)),
            };
        }
    };
    match errno {
        Some(errno) if errno > max => Err(SeccompError::ErrnoTooHigh { place: place(), errno, max }),
        // EPERM when nothing is said.
        errno => Ok(action.as_u32(errno)),
    }
}

/// The flags for the kernel. What the bundle does not ask for is not set.
pub(super) fn flags(seccomp: &LinuxSeccomp) -> Result<u64, SeccompError> {
    let mut flags = 0;
    for flag in seccomp.flags().as_deref().unwrap_or_default() {
        if !knows(*flag) {
            return Err(SeccompError::Flag(*flag));
        }
        flags |= flag_bit(*flag);
    }
    Ok(flags)
}

/// Whether this kernel has a flag.
pub fn knows(flag: LinuxSeccompFilterFlag) -> bool {
    match flag {
        // It goes with a listener only.
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => knows_flags(flag_bit(flag) | FLAG_NEW_LISTENER),
        LinuxSeccompFilterFlag::SeccompFilterFlagLog
        | LinuxSeccompFilterFlag::SeccompFilterFlagTsync
        | LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => knows_flags(flag_bit(flag)),
    }
}

fn flag_bit(flag: LinuxSeccompFilterFlag) -> u64 {
    match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => FLAG_LOG,
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => FLAG_TSYNC,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => FLAG_WAIT_KILLABLE_RECV,
    }
}

/// libseccomp's word for an architecture.
pub(super) fn arch(arch: Arch) -> ScmpArch {
    match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

/// libseccomp's word for an action of the kernel's.
pub(super) fn scmp_action(action: u32) -> ScmpAction {
    let data = action & 0xffff;
    match action & 0xffff_0000 {
        0x8000_0000 => ScmpAction::KillProcess,
        0x0003_0000 => ScmpAction::Trap,
        bpf::RET_ERRNO => ScmpAction::Errno(i32::try_from(data).unwrap_or(1)),
        bpf::RET_TRACE => ScmpAction::Trace(u16::try_from(data).unwrap_or(1)),
        bpf::RET_USER_NOTIF => ScmpAction::Notify,
        0x7ffc_0000 => ScmpAction::Log,
        bpf::RET_ALLOW => ScmpAction::Allow,
        // What else there is kills, as it does in the kernel.
        _ => ScmpAction::KillThread,
    }
}

/// How much an action lets through, the least first: the order in which the kernel prefers them when filters differ (seccomp(2)).
pub(super) fn leniency(action: u32) -> i32 {
    // The kernel compares them as signed numbers.
    (action & 0xffff_0000).cast_signed()
}

/// The name of a program in the cache: all that it is compiled from.
pub(super) fn digest(rules: &Rules<'_>, version: &str) -> [u8; 32] {
    let mut bytes = Vec::with_capacity(8192);
    let word = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend(text.len().to_ne_bytes());
        bytes.extend(text.as_bytes());
    };
    for text in [FORMAT, version, std::env::consts::ARCH] {
        word(&mut bytes, text);
    }
    bytes.extend(rules.default.to_ne_bytes());
    bytes.extend(rules.archs.len().to_ne_bytes());
    bytes.extend(rules.archs.iter().flat_map(|arch| (*arch as u32).to_ne_bytes()));
    for rule in &rules.rules {
        bytes.extend(rule.action.to_ne_bytes());
        bytes.extend(rule.args.len().to_ne_bytes());
        for arg in rule.args {
            let second = arg.value_two();
            let numbers =
                [arg.index() as u64, arg.value(), second.unwrap_or(0), second.is_some().into(), arg.op() as u64];
            bytes.extend(numbers.into_iter().flat_map(u64::to_ne_bytes));
        }
        bytes.extend(rule.names.len().to_ne_bytes());
        for name in rule.names {
            word(&mut bytes, name);
        }
    }
    for name in &rules.named {
        word(&mut bytes, name);
    }
    Sha256::digest(&bytes).into()
}

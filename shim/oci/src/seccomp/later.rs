//! Calls that the profile, or libseccomp, is too old to know.
//!
//! A C library tries a new call first and falls back to an older one on ENOSYS alone. A profile that refuses by default answers it EPERM
//! because nobody had heard of the call when the profile was written, and the program gives up. So, as in runc, a number above the newest call that the
//! profile names answers ENOSYS, which is no less a refusal. And where libseccomp is older than the profile, which it answers by leaving a rule
//! out, the rule is kept by the number that Apex knows: a refusal of a new call must not get lost.

use apex_core::seccomp::bpf::{RET_ALLOW, RET_ERRNO, RET_TRACE};
use apex_core::seccomp::{Abi, Arch as Machine, ENOSYS, X32_BIT};
use libseccomp::{ScmpArch, ScmpSyscall};
use oci_spec::runtime::Arch;

use super::words::{self, Rule, Rules, SeccompError};

/// `SECCOMP_RET_LOG`.
const RET_LOG: u32 = 0x7ffc_0000;
/// x32 numbers end here.
const X32_END: u32 = 0x8000_0000;

/// What is answered before libseccomp's program is asked.
pub(super) struct Later {
    targets: Vec<Target>,
    /// `AUDIT_ARCH_*`, number, answer.
    named: Vec<(u32, u32, u32)>,
    default: u32,
    answers_enosys: bool,
}

/// An architecture of the filter.
struct Target {
    scmp: ScmpArch,
    abi: Option<Abi>,
    audit_arch: u32,
    /// Of its numbers: the first, and the last.
    range: (u32, u32),
    /// The highest number that the profile names.
    newest: Option<u32>,
}

impl Later {
    /// What the names of the profile say.
    pub(super) fn new(rules: &Rules<'_>) -> Later {
        let native = Machine::native().map(|machine| match machine {
            Machine::X86_64 => Arch::ScmpArchX86_64,
            Machine::Aarch64 => Arch::ScmpArchAarch64,
        });
        let mut archs: Vec<Arch> = native.into_iter().collect();
        for arch in rules.archs.iter().filter(|arch| **arch != Arch::ScmpArchNative) {
            if !archs.contains(arch) {
                archs.push(*arch);
            }
        }
        // A lenient default needs no fallback, and a tracer answers for calls itself; ENOSYS says so already.
        let lenient = [RET_ALLOW, RET_LOG, RET_TRACE].contains(&(rules.default & 0xffff_0000));
        let answers_enosys = !lenient && rules.default != RET_ERRNO | u32::from(ENOSYS);
        let mut later = Later {
            targets: archs.into_iter().map(target).collect(),
            named: Vec::new(),
            default: rules.default,
            answers_enosys,
        };
        if answers_enosys {
            rules.named.iter().for_each(|name| later.notice(name));
        }
        later
    }

    fn notice(&mut self, name: &str) {
        for target in &mut self.targets {
            target.newest = target.newest.max(target.number(name));
        }
    }

    /// Takes a rule for a call that libseccomp does not know. Returns whether anyone does.
    pub(super) fn add(&mut self, rule: &Rule<'_>, name: &str) -> Result<bool, SeccompError> {
        let numbers = self.targets.iter().filter_map(|target| Some((target.audit_arch, target.number(name)?)));
        let numbers: Vec<_> = numbers.collect();
        if numbers.is_empty() {
            return Ok(false);
        }
        if rule.args.is_empty() {
            for (arch, nr) in numbers {
                // Of two rules for a call the first counts, as in libseccomp.
                if !self.named.iter().any(|known| (known.0, known.1) == (arch, nr)) {
                    self.named.push((arch, nr, rule.action));
                }
            }
            return Ok(true);
        }
        if words::leniency(rule.action) < words::leniency(self.default) {
            return Err(SeccompError::LaterWithArguments(name.to_owned()));
        }
        // What it would let through is refused by default.
        Ok(true)
    }

    /// The answer to a call; `None` where libseccomp's program has it.
    pub(super) fn answer(&self, arch: u32, nr: u32) -> Option<u32> {
        if let Some((.., answer)) = self.named.iter().find(|known| (known.0, known.1) == (arch, nr)) {
            return Some(*answer);
        }
        let is_later = |target: &Target| {
            let (first, last) = target.range;
            target.audit_arch == arch && (first..=last).contains(&nr) && target.newest.is_some_and(|newest| nr > newest)
        };
        (self.answers_enosys && self.targets.iter().any(is_later)).then_some(RET_ERRNO | u32::from(ENOSYS))
    }

    /// Numbers at which the answer may change.
    pub(super) fn borders(&self) -> Vec<u32> {
        let named = self.named.iter().flat_map(|(_, nr, _)| [*nr, nr.saturating_add(1)]);
        let ranges = self.targets.iter().flat_map(|target| [target.range.0, target.range.1.saturating_add(1)]);
        let newest = self.targets.iter().filter_map(|target| target.newest?.checked_add(1));
        named.chain(ranges).chain(newest).collect()
    }
}

impl Target {
    /// The number of a call, by libseccomp or by Apex. Negative ones are libseccomp's own, of calls that this architecture does not have.
    fn number(&self, name: &str) -> Option<u32> {
        if let Ok(call) = ScmpSyscall::from_name_by_arch(name, self.scmp) {
            return u32::try_from(i32::from(call)).ok();
        }
        // x32 shares the numbers of all calls since 2011, so of any that libseccomp does not know.
        self.abi?.call_number(name).map(|nr| nr | self.range.0)
    }
}

fn target(arch: Arch) -> Target {
    let (abi, audit_arch, range) = match arch {
        Arch::ScmpArchX86_64 => (Some(Abi::X86_64), Abi::X86_64.audit_arch(), (0, X32_BIT - 1)),
        // The kernel gives both the same name, and tells them apart by a bit of the number.
        Arch::ScmpArchX32 => (Some(Abi::X86_64), Abi::X86_64.audit_arch(), (X32_BIT, X32_END - 1)),
        Arch::ScmpArchX86 => (Some(Abi::I386), Abi::I386.audit_arch(), (0, u32::MAX)),
        Arch::ScmpArchAarch64 => (Some(Abi::Aarch64), Abi::Aarch64.audit_arch(), (0, u32::MAX)),
        // The numbers of the enum are the kernel's.
        other => (None, other as u32, (0, u32::MAX)),
    };
    Target { scmp: words::arch(arch), abi, audit_arch, range, newest: None }
}

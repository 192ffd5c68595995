//! What each system call of each ABI is answered with.
//!
//! Input: the system call section of a policy. Output: a [`Table`], which is the decision itself; the jail has it compiled to classic BPF,
//! and [`verify`] proves that a program means the table before anything loads it. [`groups`] holds what `policies/syscalls.toml` says.

pub mod bpf;
pub mod daemon;
mod generated;
pub mod groups;
pub mod rules;
mod table;
pub mod trace;
mod verify;

#[cfg(test)]
mod generate;

pub use rules::{Answer, ArgRules, Cases, Condition};
pub use table::{Decision, Notify, Table, TableError, Verdict};
pub use verify::{Mismatch, verify};

/// The table of a policy on this machine. With `record`, refusals and path calls go to the listener (`--why`).
///
/// # Errors
/// Those of [`Table::build`], and a machine for which there is no table.
pub fn table(policy: &crate::policy::Syscalls, notify: Notify) -> Result<Table, TableError> {
    Table::build(policy, Arch::native().ok_or(TableError::NoArch)?, notify)
}

/// No error: the call is not carried out, and its caller is told that it was. For what programs do to be safe and give up without, where
/// the sandbox is as safe already.
pub const DONE: u16 = 0;
/// "Not permitted": what a refused call answers unless its group says otherwise.
pub const EPERM: u16 = 1;
/// "No such call": for calls that the table does not know and for foreign ABIs, so that C libraries fall back to an older call.
pub const ENOSYS: u16 = 38;
/// "No such address family": for sockets of refused families.
pub const EAFNOSUPPORT: u16 = 97;

/// From this bit on, x86-64 numbers belong to the x32 ABI, which no table grants.
pub const X32_BIT: u32 = 0x4000_0000;

/// The machine that a table is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// x86-64.
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl Arch {
    /// The machine that this was built for; `None` where Apex has no table.
    pub const fn native() -> Option<Arch> {
        if cfg!(target_arch = "x86_64") {
            Some(Arch::X86_64)
        } else if cfg!(target_arch = "aarch64") {
            Some(Arch::Aarch64)
        } else {
            None
        }
    }

    /// The ABI of 64-bit programs.
    pub const fn abi(self) -> Abi {
        match self {
            Arch::X86_64 => Abi::X86_64,
            Arch::Aarch64 => Abi::Aarch64,
        }
    }

    /// The ABI of 32-bit programs, when Apex has a table of it.
    pub const fn compat_abi(self) -> Option<Abi> {
        match self {
            Arch::X86_64 => Some(Abi::I386),
            Arch::Aarch64 => None,
        }
    }
}

/// A system call ABI as seccomp names it (`seccomp_data.arch`, linux/audit.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    /// 64-bit calls on x86-64; x32 has the same name, with [`X32_BIT`] in the number.
    X86_64,
    /// 32-bit calls on x86: `int 0x80`, `sysenter`.
    I386,
    /// 64-bit Arm.
    Aarch64,
}

impl Abi {
    /// `AUDIT_ARCH_*`.
    pub const fn audit_arch(self) -> u32 {
        match self {
            Abi::X86_64 => 0xC000_003E,
            Abi::I386 => 0x4000_0003,
            Abi::Aarch64 => 0xC000_00B7,
        }
    }

    /// The ABI of a notification.
    pub const fn from_audit_arch(arch: u32) -> Option<Abi> {
        match arch {
            0xC000_003E => Some(Abi::X86_64),
            0x4000_0003 => Some(Abi::I386),
            0xC000_00B7 => Some(Abi::Aarch64),
            _ => None,
        }
    }

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Abi::X86_64 => "x86_64",
            Abi::I386 => "i386",
            Abi::Aarch64 => "aarch64",
        }
    }

    /// The name of a call.
    pub fn call_name(self, nr: u32) -> Option<&'static str> {
        let nr = usize::try_from(nr).ok()?;
        let name = match self {
            Abi::X86_64 => syscalls::x86_64::Sysno::new(nr).map(|call| call.name()),
            Abi::I386 => syscalls::x86::Sysno::new(nr).map(|call| call.name()),
            Abi::Aarch64 => syscalls::aarch64::Sysno::new(nr).map(|call| call.name()),
        };
        // i386 has a call named like a keyword of Rust.
        name.map(|name| name.strip_prefix("r#").unwrap_or(name))
    }

    /// The number of a call.
    pub fn call_number(self, name: &str) -> Option<u32> {
        let name = if name == "break" { "r#break" } else { name };
        let id = match self {
            Abi::X86_64 => name.parse::<syscalls::x86_64::Sysno>().ok()?.id(),
            Abi::I386 => name.parse::<syscalls::x86::Sysno>().ok()?.id(),
            Abi::Aarch64 => name.parse::<syscalls::aarch64::Sysno>().ok()?.id(),
        };
        u32::try_from(id).ok()
    }

    /// What the generated tables say about each number.
    pub(crate) const fn calls(self) -> &'static [u8] {
        match self {
            Abi::X86_64 => generated::X86_64,
            Abi::I386 => generated::I386,
            Abi::Aarch64 => generated::AARCH64,
        }
    }

    /// Calls that are judged by their arguments.
    pub(crate) const fn judged(self) -> &'static [(u16, rules::Rule)] {
        match self {
            Abi::X86_64 => generated::X86_64_RULES,
            Abi::I386 => generated::I386_RULES,
            Abi::Aarch64 => generated::AARCH64_RULES,
        }
    }
}

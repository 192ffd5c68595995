//! Has libseccomp make a program of the rules.

use std::io::{Read, Seek};

use apex_core::seccomp::bpf::{self, Insn};
use libseccomp::{ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall, ScmpVersion};
use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::{LinuxSeccompArg, LinuxSeccompOperator};

use super::later::Later;
use super::words::{self, Rule, Rules, SeccompError};

/// Tree-shaped lookup (seccomp_attr_set(3), SCMP_FLTATR_CTL_OPTIMIZE).
const OPTIMIZE_TREE: u32 = 2;
/// The level of libseccomp's API at which it knows every action (seccomp_api_get(3)). It would otherwise ask the kernel under whatever filter this
/// process runs. Here it only writes a program: what the kernel then does not take, it refuses at the load.
const API_LEVEL: u32 = 5;

/// The version of libseccomp, which is part of a cached program's name.
pub(super) fn version() -> String {
    ScmpVersion::current().map_or_else(|_| "unknown".to_owned(), |version| version.to_string())
}

/// Compiles the rules; with the names that nobody knows.
pub(super) fn compile(rules: &Rules<'_>) -> Result<(Vec<Insn>, Vec<String>), SeccompError> {
    let (whole, later, skipped) = join(rules)?;
    let program = super::fold::fold(&whole, &later)?;
    if program.len() > bpf::INSNS_MAX {
        return Err(SeccompError::TooLong(program.len()));
    }
    Ok((program, skipped))
}

/// libseccomp's program, what is answered before it, and the names that nobody knows.
pub(super) fn join(rules: &Rules<'_>) -> Result<(Vec<Insn>, Later, Vec<String>), SeccompError> {
    libseccomp::set_api(API_LEVEL).map_err(at("raising the level of its interface"))?;
    let mut filter = ScmpFilterContext::new(words::scmp_action(rules.default)).map_err(at("making a filter"))?;
    filter.set_ctl_optimize(OPTIMIZE_TREE).map_err(at("asking for a tree"))?;
    for arch in rules.archs {
        let added = filter.add_arch(words::arch(*arch));
        added.map_err(|source| SeccompError::Architecture { arch: *arch, source })?;
    }
    let mut later = Later::new(rules);
    let mut skipped = Vec::new();
    for rule in &rules.rules {
        for name in rule.names {
            // The number of a call that another architecture alone has is negative, and libseccomp takes it.
            match ScmpSyscall::from_name(name) {
                Ok(call) => add(&mut filter, rule, name, call)?,
                Err(_) if later.add(rule, name)? => {}
                Err(_) => skipped.push(name.clone()),
            }
        }
    }
    Ok((export(&filter)?, later, skipped))
}

fn add(filter: &mut ScmpFilterContext, rule: &Rule<'_>, name: &str, call: ScmpSyscall) -> Result<(), SeccompError> {
    let action = words::scmp_action(rule.action);
    let mut add = |compares: &[ScmpArgCompare]| {
        let added = filter.add_rule_conditional(action, call, compares);
        added.map(drop).map_err(|source| SeccompError::Rule { call: name.to_owned(), source })
    };
    let compares: Vec<_> = rule.args.iter().map(compare).collect();
    if !repeats(rule.args) {
        return add(&compares);
    }
    // libseccomp takes one comparison of each argument in a rule. As in runc, a rule with more of them is one rule for each comparison.
    compares.iter().try_for_each(|one| add(std::slice::from_ref(one)))
}

/// Whether an argument is compared twice.
fn repeats(args: &[LinuxSeccompArg]) -> bool {
    args.iter().enumerate().any(|(at, arg)| args[..at].iter().any(|before| before.index() == arg.index()))
}

fn compare(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    let index = u32::try_from(arg.index()).expect("an argument's index was checked");
    let (op, datum) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        // The first value is the mask, the second what is left of the argument under it.
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (ScmpCompareOp::MaskedEqual(arg.value()), arg.value_two().unwrap_or(0))
        }
    };
    ScmpArgCompare::new(index, op, datum)
}

fn export(filter: &ScmpFilterContext) -> Result<Vec<Insn>, SeccompError> {
    let file =
        memfd_create(c"apex-seccomp", MFdFlags::MFD_CLOEXEC).map_err(|errno| SeccompError::Export(errno.into()))?;
    filter.export_bpf(&file).map_err(at("exporting the program"))?;
    let mut file = std::fs::File::from(file);
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map_err(SeccompError::Export)?;
    // Longer than a kernel takes is no failure yet: it gets shorter.
    decode(&bytes).ok_or(SeccompError::TooLong(bytes.len() / INSN_SIZE))
}

/// Bytes of an instruction.
pub(super) const INSN_SIZE: usize = 8;

/// Reads instructions; `None` when the bytes are no whole number of them.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<Insn>> {
    if !bytes.len().is_multiple_of(INSN_SIZE) {
        return None;
    }
    let insns = bytes.chunks_exact(INSN_SIZE).map(|insn| Insn {
        code: u16::from_ne_bytes([insn[0], insn[1]]),
        jt: insn[2],
        jf: insn[3],
        k: u32::from_ne_bytes([insn[4], insn[5], insn[6], insn[7]]),
    });
    Some(insns.collect())
}

/// Writes instructions.
pub(super) fn encode(program: &[Insn]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * INSN_SIZE);
    for insn in program {
        bytes.extend(insn.code.to_ne_bytes());
        bytes.extend([insn.jt, insn.jf]);
        bytes.extend(insn.k.to_ne_bytes());
    }
    bytes
}

fn at(step: &'static str) -> impl FnOnce(libseccomp::error::SeccompError) -> SeccompError {
    move |source| SeccompError::Compile { step, source }
}

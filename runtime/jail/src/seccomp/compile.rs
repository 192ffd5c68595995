//! Has libseccomp compile a table, piece by piece, and links the pieces.
//!
//! libseccomp has one default answer to a filter, while the answer to a socket family that no rule names differs from the answer to a call
//! that no rule names. Two stacked filters would do, but only one of them could have a listener. So each answer that rules about arguments
//! fall back to gets a filter of its own, as do further cases that a call is judged by, and the linker turns the main filter's leaf for such a call into a jump to it. The result is one
//! program, in which only calls that are judged by their arguments run past the first lookup, and the kernel's table of calls that are
//! always allowed covers the rest.
//!
//! libseccomp also translates numbers by name for every ABI but the native one, and 2.5.4 knows no call above 450. Each ABI is therefore
//! compiled as if it were the native one, by number, and the linker puts the right ABI into the comparison. Nothing of this is taken on
//! trust: the linked program is proved against the table.

use std::io::{Read, Seek};

use apex_core::seccomp::bpf::{self, Insn};
use apex_core::seccomp::{Abi, Answer, Arch, ArgRules, Cases, Condition, Decision, ENOSYS, Table};
use libseccomp::{ScmpAction, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall, ScmpVersion};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::SeccompError;
use super::fold::fold;

/// Marks, as values of SCMP_ACT_TRACE, which no table answers: what the linker replaces.
const MARK_NOTIFY: u16 = 1;
const MARK_FOREIGN: u16 = 2;
const MARK_FALLBACK: u16 = 16;
const MARK_SECOND: u16 = 128;
/// `SECCOMP_RET_TRACE`, the action of the marks.
const RET_TRACE: u32 = 0x7ff0_0000;
/// Tree-shaped lookup (seccomp_attr_set(3), SCMP_FLTATR_CTL_OPTIMIZE).
const OPTIMIZE_TREE: u32 = 2;

/// The version of libseccomp, which is part of a cached program's name.
pub fn version() -> String {
    ScmpVersion::current().map_or_else(|_| "unknown".to_owned(), |version| version.to_string())
}

/// Compiles a table.
pub fn compile(table: &Table) -> Result<Vec<Insn>, SeccompError> {
    let mut program = Vec::new();
    let mut foreign: Vec<usize> = Vec::new();
    for abi in table.abis() {
        // What the ABI before did not recognise comes here.
        let start = program.len();
        for at in foreign.drain(..) {
            program[at] = jump(at, start);
        }
        foreign = append_abi(&mut program, table, abi)?;
    }
    for at in foreign {
        program[at] = answer(Answer::Errno(ENOSYS));
    }
    if program.len() > bpf::INSNS_MAX {
        return Err(SeccompError::TooLong(program.len()));
    }
    Ok(program)
}

/// What is answered to a call none of whose cases holds: by further cases, or always the same.
type Fallback = (Option<(Cases, Answer)>, Answer);

/// Appends the filters of one ABI; returns the leaves for calls of other ABIs.
fn append_abi(program: &mut Vec<Insn>, table: &Table, abi: Abi) -> Result<Vec<usize>, SeccompError> {
    let mut fallbacks: Vec<Fallback> = Vec::new();
    let main = compile_main(table, abi, &mut fallbacks)?;
    let main_start = program.len();
    program.extend(main);
    let (mut firsts, mut seconds) = (Vec::new(), Vec::new());
    for (fallback, mark) in fallbacks.iter().zip(MARK_SECOND..) {
        firsts.push(program.len());
        program.extend(compile_rules(table, abi, *fallback, mark)?);
    }
    for fallback in &fallbacks {
        seconds.push(program.len());
        if let (Some(second), otherwise) = fallback {
            program.extend(compile_second(table, abi, *second, *otherwise)?);
        }
    }
    let mut foreign = Vec::new();
    for (at, insn) in program.iter_mut().enumerate().skip(main_start) {
        let Some(mark) = mark_of(*insn) else { continue };
        match mark {
            MARK_NOTIFY => *insn = answer(Answer::Notify),
            MARK_FOREIGN => foreign.push(at),
            other if other >= MARK_SECOND => *insn = jump(at, seconds[usize::from(other - MARK_SECOND)]),
            other => *insn = jump(at, firsts[usize::from(other - MARK_FALLBACK)]),
        }
    }
    Ok(foreign)
}

/// The filter that looks calls up by number. Fills in the answers that rules about arguments fall back to.
fn compile_main(table: &Table, abi: Abi, fallbacks: &mut Vec<Fallback>) -> Result<Vec<Insn>, SeccompError> {
    let default = Answer::Errno(ENOSYS);
    let mut filter = new_filter(action(default), ScmpAction::Trace(MARK_FOREIGN))?;
    for nr in 0..table.numbers(abi) {
        let action = match table.decide(abi, nr) {
            Decision::Errno(ENOSYS) => continue,
            Decision::Allow => action(Answer::Allow),
            Decision::Errno(errno) => action(Answer::Errno(errno)),
            Decision::Notify => action(Answer::Notify),
            Decision::Args(rules) => {
                let fallback = (rules.second, rules.otherwise);
                let index = fallbacks.iter().position(|known| *known == fallback).unwrap_or_else(|| {
                    fallbacks.push(fallback);
                    fallbacks.len() - 1
                });
                ScmpAction::Trace(MARK_FALLBACK + u16::try_from(index).expect("a handful of answers"))
            }
        };
        filter.add_rule_exact(action, call(nr)).map_err(at("adding a call"))?;
    }
    let whole = export(&filter, abi)?;
    Ok(fold(&whole, abi).unwrap_or(whole))
}

/// The filter of all calls whose arguments decide and whose answer is otherwise `fallback`; `mark` leads to the further cases of it.
fn compile_rules(table: &Table, abi: Abi, fallback: Fallback, mark: u16) -> Result<Vec<Insn>, SeccompError> {
    let otherwise = if fallback.0.is_some() { ScmpAction::Trace(mark) } else { action(fallback.1) };
    let mut filter = new_filter(otherwise, action(Answer::Errno(ENOSYS)))?;
    for (nr, rules) in judged(table, abi).filter(|(_, rules)| (rules.second, rules.otherwise) == fallback) {
        add_cases(&mut filter, nr, rules.cases, rules.matched)?;
    }
    export(&filter, abi)
}

/// The filter of the further cases of such calls.
fn compile_second(
    table: &Table,
    abi: Abi,
    second: (Cases, Answer),
    otherwise: Answer,
) -> Result<Vec<Insn>, SeccompError> {
    let mut filter = new_filter(action(otherwise), action(Answer::Errno(ENOSYS)))?;
    let same = |rules: &ArgRules| (rules.second, rules.otherwise) == (Some(second), otherwise);
    for (nr, _) in judged(table, abi).filter(|(_, rules)| same(rules)) {
        add_cases(&mut filter, nr, second.0, second.1)?;
    }
    export(&filter, abi)
}

fn judged(table: &Table, abi: Abi) -> impl Iterator<Item = (u32, ArgRules)> {
    (0..table.numbers(abi)).filter_map(move |nr| match table.decide(abi, nr) {
        Decision::Args(rules) => Some((nr, rules)),
        Decision::Allow | Decision::Errno(_) | Decision::Notify => None,
    })
}

fn add_cases(filter: &mut ScmpFilterContext, nr: u32, cases: Cases, answer: Answer) -> Result<(), SeccompError> {
    for case in cases {
        let conditions: Vec<ScmpArgCompare> = case.iter().map(comparison).collect();
        filter
            .add_rule_conditional_exact(action(answer), call(nr), &conditions)
            .map_err(at("adding a rule about arguments"))?;
    }
    Ok(())
}

fn new_filter(default: ScmpAction, foreign: ScmpAction) -> Result<ScmpFilterContext, SeccompError> {
    let mut filter = ScmpFilterContext::new(default).map_err(at("making a filter"))?;
    filter.set_act_badarch(foreign).map_err(at("setting the answer to other ABIs"))?;
    filter.set_ctl_optimize(OPTIMIZE_TREE).map_err(at("asking for a tree, which needs libseccomp 2.5"))?;
    Ok(filter)
}

fn comparison(condition: &Condition) -> ScmpArgCompare {
    ScmpArgCompare::new(u32::from(condition.arg), ScmpCompareOp::MaskedEqual(condition.mask), condition.value)
}

fn call(nr: u32) -> ScmpSyscall {
    ScmpSyscall::from(i32::try_from(nr).expect("a table has some hundred numbers"))
}

fn action(answer: Answer) -> ScmpAction {
    match answer {
        Answer::Allow => ScmpAction::Allow,
        Answer::Errno(errno) => ScmpAction::Errno(i32::from(errno)),
        // libseccomp takes NOTIFY only where it sees the running kernel offer it, and what it sees depends on filters that are in force.
        Answer::Notify => ScmpAction::Trace(MARK_NOTIFY),
    }
}

/// Takes the instructions over and puts the right ABI into the comparison.
fn export(filter: &ScmpFilterContext, abi: Abi) -> Result<Vec<Insn>, SeccompError> {
    let file =
        memfd_create(c"apex-seccomp", MFdFlags::MFD_CLOEXEC).map_err(|errno| SeccompError::Export(errno.into()))?;
    filter.export_bpf(&file).map_err(at("exporting the program"))?;
    let mut file = std::fs::File::from(file);
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map_err(SeccompError::Export)?;
    let mut program = decode(&bytes).ok_or(SeccompError::TooLong(bytes.len() / INSN_SIZE))?;
    let native = Arch::native().map(|arch| arch.abi().audit_arch());
    for at in 1..program.len() {
        let loads_abi = program[at - 1].code == bpf::LD_W_ABS && program[at - 1].k == bpf::OFFSET_ARCH;
        if loads_abi && program[at].code == bpf::JEQ_K && Some(program[at].k) == native {
            program[at].k = abi.audit_arch();
        }
    }
    Ok(program)
}

/// Bytes of an instruction.
pub const INSN_SIZE: usize = 8;

/// Reads instructions; `None` when the bytes are no whole number of them, or more than a kernel takes.
pub fn decode(bytes: &[u8]) -> Option<Vec<Insn>> {
    if !bytes.len().is_multiple_of(INSN_SIZE) || bytes.len() / INSN_SIZE > bpf::INSNS_MAX {
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
pub fn encode(program: &[Insn]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * INSN_SIZE);
    for insn in program {
        bytes.extend(insn.code.to_ne_bytes());
        bytes.extend([insn.jt, insn.jf]);
        bytes.extend(insn.k.to_ne_bytes());
    }
    bytes
}

fn mark_of(insn: Insn) -> Option<u16> {
    let is_mark = insn.code == bpf::RET_K && insn.k & 0xffff_0000 == RET_TRACE;
    is_mark.then_some((insn.k & 0xffff) as u16)
}

fn answer(answer: Answer) -> Insn {
    Insn { code: bpf::RET_K, jt: 0, jf: 0, k: answer.action() }
}

/// A jump from one place to a later one.
fn jump(from: usize, to: usize) -> Insn {
    Insn {
        code: bpf::JA,
        jt: 0,
        jf: 0,
        k: u32::try_from(to - from - 1).expect("a program has some thousand instructions"),
    }
}

fn at(step: &'static str) -> impl FnOnce(libseccomp::error::SeccompError) -> SeccompError {
    move |source| SeccompError::Compile { step, source }
}

//! Folds a lookup by number: neighbours with one answer become one interval, and the tree asks for intervals instead of numbers.
//!
//! libseccomp compares with each number that a rule names, also where hundreds in a row get one answer. What a program costs when it is loaded (the kernel
//! checks, converts and compiles it, and runs it once for each number) goes by its length, so a start pays for each comparison that decides nothing.
//! Input: a program of libseccomp that looks at ABI and number alone. Output: a shorter one that answers the same, or nothing where it is of
//! another kind. Like everything about the filter the result is proved against the table afterwards.

use apex_core::seccomp::Abi;
use apex_core::seccomp::bpf::{self, Insn};

/// What a jump leads to.
#[derive(Clone, Copy)]
enum Target {
    /// A comparison, by its place among them.
    Comparison(usize),
    /// An answer, by its place among them.
    Answer(usize),
}

/// `number >= first`, and where it leads to when it is not and when it is.
struct Comparison {
    first: u32,
    below: Target,
    above: Target,
}

/// The shorter program; `None` when `program` is not understood, or its tree too wide for the reach of a conditional jump.
pub fn fold(program: &[Insn], abi: Abi) -> Option<Vec<Insn>> {
    let foreign = look_up(program, !abi.audit_arch(), 0)?;
    let mut answers: Vec<u32> = Vec::new();
    let mut intervals: Vec<(u32, usize)> = Vec::new();
    for first in borders(program) {
        let answer = look_up(program, abi.audit_arch(), first)?;
        let answer = answers.iter().position(|known| *known == answer).unwrap_or_else(|| {
            answers.push(answer);
            answers.len() - 1
        });
        if intervals.last().is_none_or(|(_, last)| *last != answer) {
            intervals.push((first, answer));
        }
    }
    let mut tree = Vec::with_capacity(intervals.len());
    grow(&mut tree, &intervals);
    let mut folded = vec![
        insn(bpf::LD_W_ABS, 0, 0, bpf::OFFSET_ARCH),
        insn(bpf::JEQ_K, 1, 0, abi.audit_arch()),
        insn(bpf::RET_K, 0, 0, foreign),
        insn(bpf::LD_W_ABS, 0, 0, bpf::OFFSET_NR),
    ];
    for (at, comparison) in tree.iter().enumerate() {
        let distance = |target| {
            let to = match target {
                Target::Comparison(index) => index,
                Target::Answer(index) => tree.len() + index,
            };
            u8::try_from(to - at - 1).ok()
        };
        folded.push(insn(bpf::JGE_K, distance(comparison.above)?, distance(comparison.below)?, comparison.first));
    }
    folded.extend(answers.into_iter().map(|answer| insn(bpf::RET_K, 0, 0, answer)));
    Some(folded)
}

/// Numbers at which the answer may change: those that are compared with, and the next ones.
fn borders(program: &[Insn]) -> Vec<u32> {
    let compared = program.iter().filter(|insn| matches!(insn.code, bpf::JEQ_K | bpf::JGT_K | bpf::JGE_K));
    let mut borders: Vec<u32> =
        compared.flat_map(|insn| [Some(insn.k), insn.k.checked_add(1)]).flatten().chain([0]).collect();
    borders.sort_unstable();
    borders.dedup();
    borders
}

/// What the program answers. Jumps lead forward only, so it ends.
fn look_up(program: &[Insn], arch: u32, nr: u32) -> Option<u32> {
    let (mut pc, mut accumulator) = (0, 0);
    loop {
        let insn = program.get(pc)?;
        let holds = match insn.code {
            bpf::LD_W_ABS => {
                accumulator = match insn.k {
                    bpf::OFFSET_ARCH => arch,
                    bpf::OFFSET_NR => nr,
                    _ => return None,
                };
                pc += 1;
                continue;
            }
            bpf::JA => {
                pc += 1 + insn.k as usize;
                continue;
            }
            bpf::JEQ_K => accumulator == insn.k,
            bpf::JGT_K => accumulator > insn.k,
            bpf::JGE_K => accumulator >= insn.k,
            bpf::RET_K => return Some(insn.k),
            _ => return None,
        };
        pc += 1 + usize::from(if holds { insn.jt } else { insn.jf });
    }
}

/// Puts the comparisons that tell the intervals apart into the tree, each before those that it leads to.
fn grow(tree: &mut Vec<Comparison>, intervals: &[(u32, usize)]) -> Target {
    let (below, above) = intervals.split_at(intervals.len() / 2);
    let [(first, answer), ..] = above else { return Target::Answer(0) };
    if below.is_empty() {
        return Target::Answer(*answer);
    }
    let at = tree.len();
    tree.push(Comparison { first: *first, below: Target::Answer(0), above: Target::Answer(0) });
    tree[at].below = grow(tree, below);
    tree[at].above = grow(tree, above);
    Target::Comparison(at)
}

fn insn(code: u16, jt: u8, jf: u8, k: u32) -> Insn {
    Insn { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RET_A: u32 = 0x7fff_0000;
    const RET_B: u32 = 0x0005_0001;
    const RET_FOREIGN: u32 = 0x7ff0_0002;

    /// A chain of comparisons as a compiler without any thrift would make it.
    fn chain(numbers: &[(u32, u32)], otherwise: u32) -> Vec<Insn> {
        let mut program = vec![
            insn(bpf::LD_W_ABS, 0, 0, bpf::OFFSET_ARCH),
            insn(bpf::JEQ_K, 1, 0, Abi::X86_64.audit_arch()),
            insn(bpf::RET_K, 0, 0, RET_FOREIGN),
            insn(bpf::LD_W_ABS, 0, 0, bpf::OFFSET_NR),
        ];
        for (number, answer) in numbers {
            program.extend([insn(bpf::JEQ_K, 0, 1, *number), insn(bpf::RET_K, 0, 0, *answer)]);
        }
        program.push(insn(bpf::RET_K, 0, 0, otherwise));
        program
    }

    #[track_caller]
    fn check(program: &[Insn], comparisons: usize) {
        let folded = fold(program, Abi::X86_64).expect("it is understood");
        let edges = [0x3fff_ffff, 0x4000_0000, 0x7fff_ffff, 0x8000_0000, u32::MAX - 1, u32::MAX];
        for nr in (0..600).chain(edges) {
            for arch in [Abi::X86_64.audit_arch(), Abi::I386.audit_arch(), 0, u32::MAX] {
                assert_eq!(look_up(&folded, arch, nr), look_up(program, arch, nr), "{arch:#x} {nr:#x}");
            }
        }
        assert_eq!(folded.iter().filter(|insn| insn.code == bpf::JGE_K).count(), comparisons);
    }

    #[test]
    fn neighbours_with_one_answer_are_one_interval() {
        let all: Vec<_> = (0..300).map(|number| (number, RET_A)).collect();
        check(&chain(&all, RET_B), 1);
        let every_second: Vec<_> = (0..100).map(|number| (2 * number, RET_A)).collect();
        check(&chain(&every_second, RET_B), 199);
        check(&chain(&[(5, RET_A), (u32::MAX, RET_A)], RET_B), 3);
        check(&chain(&[], RET_A), 0);
    }

    #[test]
    fn what_looks_at_arguments_is_left_alone() {
        let mut program = chain(&[(5, RET_A)], RET_B);
        program[3].k = bpf::OFFSET_ARGS;
        assert_eq!(fold(&program, Abi::X86_64), None);
        program.truncate(3);
        assert_eq!(fold(&program, Abi::X86_64), None);
    }

    #[test]
    fn a_tree_that_jumps_do_not_reach_across_is_left_alone() {
        let scattered: Vec<_> = (0..400).map(|number| (3 * number, RET_A)).collect();
        assert_eq!(fold(&chain(&scattered, RET_B), Abi::X86_64), None);
    }
}

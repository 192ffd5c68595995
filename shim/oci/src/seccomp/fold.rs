//! Makes libseccomp's program short, joins what is answered before it, and proves that the result answers the same.
//!
//! libseccomp compares with each number that a rule names, for each architecture, also where hundreds in a row get one answer; loading and running a
//! program goes by its length. Here neighbours with one answer become one interval in a tree for each architecture. The parts that
//! look at arguments are libseccomp's own, copied. The proof walks both programs for every interval and compares answer with answer
//! and argument code with argument code, instruction by instruction, so an error in the folding is an error and not a hole.

use std::collections::HashSet;

use apex_core::seccomp::bpf::{self, Insn};

use super::later::Later;
use super::words::SeccompError;

/// How far back a conditional jump may lead, with room for the jumps that are put between.
const REACH: usize = 250;

/// Where a call leads to by its architecture and number alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaf {
    /// This answer.
    Answer(u32),
    /// The instruction that loads the first argument.
    Arguments(usize),
}

/// The folded program.
pub(super) fn fold(whole: &[Insn], later: &Later) -> Result<Vec<Insn>, SeccompError> {
    let borders = borders(whole, later);
    let archs = archs(whole);
    let mut entries = Vec::new();
    let mut trees = Vec::new();
    for arch in &archs {
        let mut intervals: Vec<(u32, Leaf)> = Vec::new();
        for first in &borders {
            let leaf = joined(whole, later, *arch, *first)?;
            if let Leaf::Arguments(at) = leaf {
                entries.push(at);
            }
            if intervals.last().is_none_or(|(_, last)| *last != leaf) {
                intervals.push((*first, leaf));
            }
        }
        trees.push(intervals);
    }
    let foreign = leaf(whole, foreign(&archs), 0)?;
    let mut writer = Writer::new(whole, entries);
    let mut starts = Vec::new();
    for intervals in &trees {
        let start = writer.tree(intervals);
        writer.jump_to(start);
        starts.push(writer.push(bpf::LD_W_ABS, 0, 0, bpf::OFFSET_NR));
    }
    let otherwise = writer.leaf(foreign);
    writer.jump_to(otherwise);
    // The first architecture, libseccomp's first question, comes first.
    for (arch, start) in archs.iter().zip(&starts).rev() {
        writer.far_jump(*start);
        writer.push(bpf::JEQ_K, 0, 1, *arch);
    }
    writer.push(bpf::LD_W_ABS, 0, 0, bpf::OFFSET_ARCH);
    let folded = writer.finish();
    prove(whole, later, &folded, &borders)?;
    Ok(folded)
}

/// Fails unless both answer the same, for every architecture that either asks for, and one that none does.
fn prove(whole: &[Insn], later: &Later, folded: &[Insn], borders: &[u32]) -> Result<(), SeccompError> {
    let mut numbers: Vec<u32> = borders.iter().copied().chain(compared(folded)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut known = archs(whole);
    known.extend(archs(folded));
    known.push(foreign(&known));
    let mut same = HashSet::new();
    for arch in known {
        for nr in &numbers {
            let equal = match (joined(whole, later, arch, *nr)?, leaf(folded, arch, *nr)?) {
                (Leaf::Answer(ours), Leaf::Answer(theirs)) => ours == theirs,
                (Leaf::Arguments(ours), Leaf::Arguments(theirs)) => is_same(whole, ours, folded, theirs, &mut same),
                (Leaf::Answer(_), Leaf::Arguments(_)) | (Leaf::Arguments(_), Leaf::Answer(_)) => false,
            };
            if !equal {
                return Err(SeccompError::Proof { arch, nr: *nr });
            }
        }
    }
    Ok(())
}

/// Whether two pieces of code do the same, instruction by instruction. `same` holds the pairs that were compared.
fn is_same(a: &[Insn], a_at: usize, b: &[Insn], b_at: usize, same: &mut HashSet<(usize, usize)>) -> bool {
    let mut open = vec![(a_at, b_at)];
    while let Some(pair) = open.pop() {
        let (Some(left), Some(right)) = (a.get(pair.0), b.get(pair.1)) else { return false };
        if left.code != right.code {
            return false;
        }
        if !same.insert(pair) {
            continue;
        }
        let lefts = followers(*left, pair.0);
        let rights = followers(*right, pair.1);
        // An unconditional jump's operand is where it leads to.
        if lefts.len() != rights.len() || (left.code != bpf::JA && left.k != right.k) {
            return false;
        }
        open.extend(lefts.into_iter().zip(rights));
    }
    true
}

/// Where it goes on after an instruction: nowhere after an answer.
fn followers(insn: Insn, at: usize) -> Vec<usize> {
    match insn.code {
        bpf::RET_K => Vec::new(),
        bpf::JA => vec![at + 1 + insn.k as usize],
        bpf::JEQ_K | bpf::JGT_K | bpf::JGE_K | bpf::JSET_K => {
            vec![at + 1 + usize::from(insn.jt), at + 1 + usize::from(insn.jf)]
        }
        _ => vec![at + 1],
    }
}

/// Where a call leads to, with what is answered before libseccomp's program.
fn joined(whole: &[Insn], later: &Later, arch: u32, nr: u32) -> Result<Leaf, SeccompError> {
    later.answer(arch, nr).map_or_else(|| leaf(whole, arch, nr), |answer| Ok(Leaf::Answer(answer)))
}

/// Where a call leads to in a program. Jumps lead forward only, so it ends.
fn leaf(program: &[Insn], arch: u32, nr: u32) -> Result<Leaf, SeccompError> {
    let (mut pc, mut accumulator) = (0, 0);
    loop {
        let insn = program.get(pc).ok_or(SeccompError::NotUnderstood(pc))?;
        let holds = match insn.code {
            bpf::LD_W_ABS if insn.k == bpf::OFFSET_ARCH => {
                accumulator = arch;
                pc += 1;
                continue;
            }
            bpf::LD_W_ABS if insn.k == bpf::OFFSET_NR => {
                accumulator = nr;
                pc += 1;
                continue;
            }
            bpf::LD_W_ABS if insn.k >= bpf::OFFSET_ARGS => return Ok(Leaf::Arguments(pc)),
            bpf::RET_K => return Ok(Leaf::Answer(insn.k)),
            bpf::JA => {
                pc += 1 + insn.k as usize;
                continue;
            }
            bpf::JEQ_K => accumulator == insn.k,
            bpf::JGT_K => accumulator > insn.k,
            bpf::JGE_K => accumulator >= insn.k,
            _ => return Err(SeccompError::NotUnderstood(pc)),
        };
        pc += 1 + usize::from(if holds { insn.jt } else { insn.jf });
    }
}

/// Numbers at which the answer may change.
fn borders(whole: &[Insn], later: &Later) -> Vec<u32> {
    let mut borders: Vec<u32> = compared(whole).chain(later.borders()).chain([0]).collect();
    borders.sort_unstable();
    borders.dedup();
    borders
}

/// What a program compares with, and the next numbers.
fn compared(program: &[Insn]) -> impl Iterator<Item = u32> {
    let compared = program.iter().filter(|insn| matches!(insn.code, bpf::JEQ_K | bpf::JGT_K | bpf::JGE_K));
    compared.flat_map(|insn| [Some(insn.k), insn.k.checked_add(1)]).flatten()
}

/// The architectures that a program asks for: comparisons that follow the load of the architecture, and those that these lead to.
fn archs(program: &[Insn]) -> Vec<u32> {
    let mut archs = Vec::new();
    let mut loaded = vec![false; program.len() + 1];
    for (at, insn) in program.iter().enumerate() {
        match insn.code {
            bpf::LD_W_ABS => loaded[at + 1] |= insn.k == bpf::OFFSET_ARCH,
            bpf::JEQ_K | bpf::JGT_K | bpf::JGE_K | bpf::JA if loaded[at] => {
                if insn.code == bpf::JEQ_K && !archs.contains(&insn.k) {
                    archs.push(insn.k);
                }
                for next in followers(*insn, at) {
                    if let Some(loaded) = loaded.get_mut(next) {
                        *loaded = true;
                    }
                }
            }
            _ => {}
        }
    }
    archs
}

/// An architecture that is none of these.
fn foreign(archs: &[u32]) -> u32 {
    (0..).find(|arch| !archs.contains(arch)).expect("a program compares with a handful")
}

/// Writes a program from its end: what a jump leads to is there before the jump. Places count from the end.
struct Writer {
    reversed: Vec<Insn>,
    /// The copied code of arguments: place in libseccomp's program, place here.
    copied: Vec<(usize, usize)>,
    /// Where a leaf was written last.
    leaves: Vec<(Leaf, usize)>,
}

impl Writer {
    /// Begins with all that can be reached from the entries.
    fn new(whole: &[Insn], mut open: Vec<usize>) -> Writer {
        let mut reached = HashSet::new();
        while let Some(at) = open.pop() {
            if at < whole.len() && reached.insert(at) {
                open.extend(followers(whole[at], at));
            }
        }
        let mut reached: Vec<usize> = reached.into_iter().collect();
        reached.sort_unstable();
        let mut writer = Writer { reversed: Vec::new(), copied: Vec::new(), leaves: Vec::new() };
        // Jumps only get shorter, since what lies between stays in order.
        for at in reached.into_iter().rev() {
            let insn = whole[at];
            let place = match insn.code {
                bpf::JA => {
                    let target = writer.copy_of(at + 1 + insn.k as usize);
                    writer.far_jump(target)
                }
                bpf::JEQ_K | bpf::JGT_K | bpf::JGE_K | bpf::JSET_K => {
                    let [jt, jf] = [insn.jt, insn.jf].map(|jump| writer.copy_of(at + 1 + usize::from(jump)));
                    writer.branch(insn.code, insn.k, jt, jf)
                }
                _ => writer.push(insn.code, insn.jt, insn.jf, insn.k),
            };
            writer.copied.push((at, place));
        }
        writer
    }

    fn copy_of(&self, at: usize) -> usize {
        // Written before, as jumps lead forward; the proof would notice anything else.
        self.copied.iter().rev().find(|(from, _)| *from == at).map_or(0, |(_, place)| *place)
    }

    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> usize {
        self.reversed.push(Insn { code, jt, jf, k });
        self.reversed.len() - 1
    }

    /// Instructions between the next one and a place.
    fn distance(&self, place: usize) -> usize {
        self.reversed.len() - place - 1
    }

    fn far_jump(&mut self, place: usize) -> usize {
        let distance = u32::try_from(self.distance(place)).expect("a program has some thousand instructions");
        self.push(bpf::JA, 0, 0, distance)
    }

    /// A jump to a place, unless it is the next one.
    fn jump_to(&mut self, place: usize) {
        if self.distance(place) != 0 {
            self.far_jump(place);
        }
    }

    /// The place, or that of a jump to it which is within reach.
    fn near(&mut self, place: usize) -> usize {
        if self.distance(place) <= REACH { place } else { self.far_jump(place) }
    }

    fn branch(&mut self, code: u16, k: u32, holds: usize, fails: usize) -> usize {
        let (holds, fails) = (self.near(holds), self.near(fails));
        let jump = |place| u8::try_from(self.distance(place)).expect("both are within reach");
        let (jt, jf) = (jump(holds), jump(fails));
        self.push(code, jt, jf, k)
    }

    /// The place of a leaf within reach, written where there is none.
    fn leaf(&mut self, leaf: Leaf) -> usize {
        let known = self.leaves.iter().position(|(known, _)| *known == leaf);
        if let Some(at) = known
            && self.distance(self.leaves[at].1) <= REACH
        {
            return self.leaves[at].1;
        }
        let place = match leaf {
            Leaf::Answer(answer) => self.push(bpf::RET_K, 0, 0, answer),
            Leaf::Arguments(at) => {
                let place = self.copy_of(at);
                self.near(place)
            }
        };
        match known {
            Some(at) => self.leaves[at].1 = place,
            None => self.leaves.push((leaf, place)),
        }
        place
    }

    /// The tree over intervals; there is always one.
    fn tree(&mut self, intervals: &[(u32, Leaf)]) -> usize {
        if let [(_, leaf)] = intervals {
            return self.leaf(*leaf);
        }
        let (below, above) = intervals.split_at(intervals.len() / 2);
        let first = above[0].0;
        let above = self.tree(above);
        let below = self.tree(below);
        self.branch(bpf::JGE_K, first, above, below)
    }

    fn finish(mut self) -> Vec<Insn> {
        self.reversed.reverse();
        self.reversed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::{compile, words};

    /// libseccomp's program and the folded one, of a profile with arguments and two ABIs.
    fn programs() -> (Vec<Insn>, Later, Vec<Insn>) {
        let seccomp = serde_json::from_str(
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86"], "syscalls": [
            {"names": ["read", "write", "close", "getpid", "mseal"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["personality"], "action": "SCMP_ACT_LOG",
                "args": [{"index": 0, "value": 4294967296, "op": "SCMP_CMP_GT"}, {"index": 2, "value": 8, "op": "SCMP_CMP_EQ"}]}]}"#,
        );
        let seccomp = seccomp.unwrap();
        let rules = words::rules(&seccomp).unwrap();
        let (whole, later, _) = compile::join(&rules).unwrap();
        let folded = fold(&whole, &later).unwrap();
        (whole, later, folded)
    }

    #[test]
    fn a_program_that_answers_otherwise_is_not_taken() {
        let (whole, later, folded) = programs();
        let borders = borders(&whole, &later);
        assert!(prove(&whole, &later, &folded, &borders).is_ok());
        for at in 0..folded.len() {
            // Which of two ways to one answer a jump takes may not matter; what is compared and answered does.
            if folded[at].code == bpf::JA {
                continue;
            }
            for changed in [folded[at].k ^ 1, folded[at].k.wrapping_add(0x1_0000)] {
                let mut spoilt = folded.clone();
                spoilt[at].k = changed;
                assert!(prove(&whole, &later, &spoilt, &borders).is_err(), "instruction {at} with {changed:#x}");
            }
            if folded[at].code != bpf::RET_K && folded[at].jt != folded[at].jf {
                let mut spoilt = folded.clone();
                (spoilt[at].jt, spoilt[at].jf) = (spoilt[at].jf, spoilt[at].jt);
                assert!(prove(&whole, &later, &spoilt, &borders).is_err(), "instruction {at} the other way round");
            }
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let (mut whole, later, _) = programs();
        whole.insert(0, Insn { code: 0x61, jt: 0, jf: 0, k: 0 });
        assert!(matches!(fold(&whole, &later), Err(SeccompError::NotUnderstood(0))));
    }

    #[test]
    fn jumps_reach_across_a_wide_tree() {
        let names: Vec<_> =
            (0..450).filter(|nr| nr % 2 == 0).filter_map(|nr| apex_core::seccomp::Abi::X86_64.call_name(nr)).collect();
        let rule = |errno: usize, name: &str| {
            format!(r#"{{"names": ["{name}"], "action": "SCMP_ACT_ERRNO", "errnoRet": {errno}}}"#)
        };
        // Each call has an answer of its own, so no two share a leaf.
        let rules: Vec<_> = names.iter().enumerate().map(|(at, name)| rule(at + 1, name)).collect();
        let json = format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{}]}}"#, rules.join(","));
        let seccomp = serde_json::from_str(&json).unwrap();
        let rules = words::rules(&seccomp).unwrap();
        let (whole, later, _) = compile::join(&rules).unwrap();
        assert!(fold(&whole, &later).unwrap().len() > 500);
    }

    /// A repeatable source of choices (the multiplier is Knuth's).
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(self.0 >> 33).unwrap() % bound
        }

        fn pick<'a>(&mut self, words: &[&'a str]) -> &'a str {
            words[self.below(words.len())]
        }
    }

    fn random_profile(dice: &mut Dice) -> serde_json::Value {
        const ACTIONS: [&str; 7] = [
            "SCMP_ACT_KILL",
            "SCMP_ACT_KILL_PROCESS",
            "SCMP_ACT_TRAP",
            "SCMP_ACT_ERRNO",
            "SCMP_ACT_TRACE",
            "SCMP_ACT_LOG",
            "SCMP_ACT_ALLOW",
        ];
        const OPS: [&str; 7] = ["EQ", "NE", "LT", "LE", "GT", "GE", "MASKED_EQ"];
        const VALUES: [u64; 6] = [0, 1, 0x7fff_ffff, 0x1_0000_0000, 0x8000_0000_0000_0000, u64::MAX];
        let mut syscalls = Vec::new();
        let mut seen = HashSet::new();
        for _ in 0..dice.below(20) {
            let count = 1 + dice.below(12);
            let names: Vec<_> = (0..count)
                .filter_map(|_| apex_core::seccomp::Abi::I386.call_name(u32::try_from(dice.below(460)).unwrap()))
                // Two rules for a call whose actions differ may contradict each other, which libseccomp refuses.
                .filter(|name| seen.insert(*name))
                .collect();
            let args: Vec<_> = (0..dice.below(4))
                .map(|_| {
                    let op = format!("SCMP_CMP_{}", dice.pick(&OPS));
                    let (value, second) = (VALUES[dice.below(6)], VALUES[dice.below(6)]);
                    serde_json::json!({"index": dice.below(6), "op": op, "value": value, "valueTwo": second})
                })
                .collect();
            syscalls.push(serde_json::json!({"names": names, "action": dice.pick(&ACTIONS), "args": args}));
        }
        let archs = &["SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"][..dice.below(5)];
        serde_json::json!({"defaultAction": dice.pick(&ACTIONS), "architectures": archs, "syscalls": syscalls})
    }

    /// The proof is part of each, and the kernel takes what comes of it.
    #[test]
    fn whatever_a_profile_says_is_folded_or_refused_with_words() {
        let mut dice = Dice(1);
        let mut folded = 0;
        for round in 0..150 {
            let profile = random_profile(&mut dice);
            let seccomp = serde_json::from_value(profile.clone()).unwrap();
            match words::rules(&seccomp).and_then(|rules| compile::compile(&rules)) {
                Ok((program, _)) => {
                    folded += usize::from(program.len() > 3);
                    let filter: Vec<_> = program.iter().map(crate::seccomp::instruction).collect();
                    // Fails when the kernel does not take it.
                    apex_sys::probe::try_calls(&filter, &[]).unwrap();
                }
                Err(SeccompError::LaterWithArguments(_) | SeccompError::Rule { .. }) => {}
                Err(error) => panic!("round {round}: {error}: {profile}"),
            }
        }
        assert!(folded > 100, "{folded}");
    }
}

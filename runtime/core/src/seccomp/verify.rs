//! Proof that a seccomp program means a table.
//!
//! Input: instructions from anywhere, a cache file included. Output: nothing, or the first place where the program may differ. The walk is
//! symbolic: it goes through the program once for each ABI that the table knows and once for all others, carrying the interval of call
//! numbers that can get there and, once the number is a single one, which comparisons of arguments held. Each leaf must be the table's answer
//! for every input that reaches it.
//!
//! The walk errs on the side of refusal. An instruction, a comparison or an argument that the table gives no reason for is a mismatch, so a
//! planted program has nowhere to hide a magic value. Jumps only go forward and steps are counted, so the walk ends.

use super::bpf::{self, Insn};
use super::rules::{Answer, ArgRules, Cases};
use super::{Abi, Decision, ENOSYS, Table};

/// Steps after which a program counts as not understood; the ones that libseccomp makes need some thousand.
const STEPS_MAX: u32 = 200_000;
/// Comparisons of one call's arguments that the walk keeps apart.
const ATOMS_MAX: usize = 32;

/// Where a program differs from its table, or cannot be shown not to.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Empty, or longer than a kernel takes.
    #[error("a program of {0} instructions cannot be loaded")]
    Length(usize),
    /// It runs over its end.
    #[error("instruction {at} is beyond the end")]
    Overrun {
        /// Index of the instruction.
        at: usize,
    },
    /// It has an instruction that the table gives no reason for.
    #[error("instruction {at} {what}")]
    Unexplained {
        /// Index of the instruction.
        at: usize,
        /// What it does.
        what: &'static str,
    },
    /// It answers something else than the table.
    #[error("instruction {at} answers {found:#x} to {abi} call {nr}, for which the table says otherwise")]
    Answer {
        /// Index of the instruction.
        at: usize,
        /// Name of the ABI.
        abi: &'static str,
        /// Number of a call that differs.
        nr: u32,
        /// The answer.
        found: u32,
    },
    /// It branches too much.
    #[error("it has too many paths")]
    Paths,
}

/// Proves that `program` gives the table's answer to every call of every ABI with every argument.
///
/// # Errors
/// The first place where it does not, or where that cannot be shown.
pub fn verify(program: &[Insn], table: &Table) -> Result<(), Mismatch> {
    if program.is_empty() || program.len() > bpf::INSNS_MAX {
        return Err(Mismatch::Length(program.len()));
    }
    let mut walk = Walk { program, table, abi: None, steps: 0, pending: Vec::with_capacity(64), latest: None };
    walk.run(None)?;
    for abi in table.abis() {
        walk.run(Some(abi))?;
    }
    Ok(())
}

/// What the accumulator holds.
#[derive(Clone, Copy, Debug)]
enum Accumulator {
    /// Zero: the kernel starts with it, but no program that was made for a table relies on it.
    Unset,
    Abi,
    Number,
    /// Half an argument (0 is the low half of the first), of which `mask` is kept.
    Word {
        word: u8,
        mask: u32,
    },
}

/// A place in the program, and what is known of the inputs that get there.
#[derive(Clone, Copy)]
struct State {
    pc: usize,
    accumulator: Accumulator,
    /// Call numbers, both ends included; never empty.
    first: u32,
    last: u32,
    facts: Facts,
}

/// Which comparisons held, by their place in [`Atoms`].
#[derive(Clone, Copy, Default)]
struct Facts {
    known: u32,
    held: u32,
}

/// `word & mask == value`, on half an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Atom {
    word: u8,
    mask: u32,
    value: u32,
}

struct Walk<'a> {
    program: &'a [Insn],
    table: &'a Table,
    /// `None` stands for every ABI that the table does not know.
    abi: Option<Abi>,
    steps: u32,
    pending: Vec<State>,
    /// The comparisons of the call that was looked at last: the walk stays with a call for many steps, and working them out takes longer than one.
    latest: Option<(u32, Atoms)>,
}

impl Walk<'_> {
    fn run(&mut self, abi: Option<Abi>) -> Result<(), Mismatch> {
        self.abi = abi;
        self.latest = None;
        self.pending.push(State {
            pc: 0,
            accumulator: Accumulator::Unset,
            first: 0,
            last: u32::MAX,
            facts: Facts::default(),
        });
        while let Some(state) = self.pending.pop() {
            self.follow(state)?;
        }
        Ok(())
    }

    /// Follows one path to its leaf, and leaves the other side of each branch for later.
    fn follow(&mut self, mut state: State) -> Result<(), Mismatch> {
        loop {
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return Err(Mismatch::Paths);
            }
            let at = state.pc;
            let insn = *self.program.get(at).ok_or(Mismatch::Overrun { at })?;
            state.pc += 1;
            match insn.code {
                bpf::LD_W_ABS => state.accumulator = load(insn.k, at)?,
                bpf::AND_K => match &mut state.accumulator {
                    Accumulator::Word { mask, .. } => *mask &= insn.k,
                    _ => return Err(unexplained(at, "masks something else than an argument")),
                },
                bpf::JA => state.pc = state.pc.saturating_add(insn.k as usize),
                bpf::JEQ_K | bpf::JGT_K | bpf::JGE_K | bpf::JSET_K => self.branch(&mut state, insn, at)?,
                bpf::RET_K => return self.leaf(&state, insn.k, at),
                _ => return Err(unexplained(at, "is of a kind that no table needs")),
            }
        }
    }

    fn branch(&mut self, state: &mut State, insn: Insn, at: usize) -> Result<(), Mismatch> {
        match state.accumulator {
            Accumulator::Unset => Err(unexplained(at, "compares before anything is loaded")),
            Accumulator::Abi => {
                let taken = self.compare_abi(insn, at)?;
                state.jump(insn, taken);
                Ok(())
            }
            Accumulator::Number => self.compare_number(state, insn, at),
            Accumulator::Word { word, mask } => self.compare_word(state, insn, at, word, mask),
        }
    }

    fn compare_abi(&self, insn: Insn, at: usize) -> Result<bool, Mismatch> {
        let known = self.table.abis().any(|abi| abi.audit_arch() == insn.k);
        if insn.code != bpf::JEQ_K || !known {
            return Err(unexplained(at, "compares the ABI with one that the table does not have"));
        }
        Ok(self.abi.is_some_and(|abi| abi.audit_arch() == insn.k))
    }

    /// Splits the interval of numbers at the operand.
    fn compare_number(&mut self, state: &mut State, insn: Insn, at: usize) -> Result<(), Mismatch> {
        let (first, last, k) = (state.first, state.last, insn.k);
        let threshold = match insn.code {
            bpf::JEQ_K => {
                if k < first || k > last {
                    state.jump(insn, false);
                    return Ok(());
                }
                if k > first {
                    self.put_off(state, insn, false, (first, k - 1));
                }
                if k < last {
                    self.put_off(state, insn, false, (k + 1, last));
                }
                (state.first, state.last) = (k, k);
                state.jump(insn, true);
                return Ok(());
            }
            // The lowest number for which the comparison holds; none does above the highest number.
            bpf::JGE_K => Some(k),
            bpf::JGT_K => k.checked_add(1),
            _ => return Err(unexplained(at, "looks at single bits of the call number")),
        };
        match threshold {
            Some(threshold) if threshold <= first => state.jump(insn, true),
            Some(threshold) if threshold <= last => {
                self.put_off(state, insn, true, (threshold, last));
                state.last = threshold - 1;
                state.jump(insn, false);
            }
            _ => state.jump(insn, false),
        }
        Ok(())
    }

    fn put_off(&mut self, state: &State, insn: Insn, taken: bool, (first, last): (u32, u32)) {
        let mut other = State { first, last, ..*state };
        other.jump(insn, taken);
        self.pending.push(other);
    }

    fn compare_word(&mut self, state: &mut State, insn: Insn, at: usize, word: u8, mask: u32) -> Result<(), Mismatch> {
        // "Any of these bits is set" is the contrary of "these bits are zero".
        let (atom, taken_when) = match insn.code {
            bpf::JEQ_K => (Atom { word, mask, value: insn.k }, true),
            bpf::JSET_K => (Atom { word, mask: mask & insn.k, value: 0 }, false),
            _ => return Err(unexplained(at, "orders arguments by size")),
        };
        let atoms = self.atoms(state).ok_or(unexplained(at, "looks at an argument that the table does not judge"))?;
        let (truth, index) = (atoms.truth(atom, state.facts), atoms.index(atom));
        if let Some(truth) = truth {
            state.jump(insn, truth == taken_when);
            return Ok(());
        }
        let index = index.ok_or(unexplained(at, "compares an argument in a way that the table does not"))?;
        let mut other = *state;
        other.facts.learn(index, false);
        other.jump(insn, !taken_when);
        self.pending.push(other);
        state.facts.learn(index, true);
        state.jump(insn, taken_when);
        Ok(())
    }

    /// The comparisons that the table makes for the one call of this state.
    fn atoms(&mut self, state: &State) -> Option<&Atoms> {
        match self.abi {
            Some(abi) if state.first == state.last => match self.table.decide(abi, state.first) {
                Decision::Args(rules) => self.atoms_of(state.first, &rules),
                Decision::Allow | Decision::Errno(_) | Decision::Notify => None,
            },
            _ => None,
        }
    }

    fn atoms_of(&mut self, nr: u32, rules: &ArgRules) -> Option<&Atoms> {
        if self.latest.as_ref().is_none_or(|(latest, _)| *latest != nr) {
            self.latest = Some((nr, Atoms::of(rules)?));
        }
        self.latest.as_ref().map(|(_, atoms)| atoms)
    }

    fn leaf(&mut self, state: &State, found: u32, at: usize) -> Result<(), Mismatch> {
        let Some(abi) = self.abi else {
            // Numbers mean nothing in an ABI without entries.
            let right = found == Answer::Errno(ENOSYS).action();
            return if right { Ok(()) } else { Err(Mismatch::Answer { at, abi: "foreign", nr: state.first, found }) };
        };
        // One number beyond the entries stands for all of them.
        let last = state.last.min(self.table.numbers(abi).max(state.first));
        for nr in state.first..=last {
            let wanted = match self.table.decide(abi, nr) {
                Decision::Allow => Some(Answer::Allow),
                Decision::Errno(errno) => Some(Answer::Errno(errno)),
                Decision::Notify => Some(Answer::Notify),
                Decision::Args(rules) if state.first == state.last => {
                    self.atoms_of(nr, &rules).and_then(|atoms| atoms.answer(&rules, state.facts))
                }
                Decision::Args(_) => None,
            };
            if wanted.map(Answer::action) != Some(found) {
                return Err(Mismatch::Answer { at, abi: abi.name(), nr, found });
            }
        }
        Ok(())
    }
}

impl State {
    fn jump(&mut self, insn: Insn, taken: bool) {
        self.pc += usize::from(if taken { insn.jt } else { insn.jf });
    }
}

impl Facts {
    fn learn(&mut self, index: usize, held: bool) {
        self.known |= 1 << index;
        self.held |= u32::from(held) << index;
    }
}

/// The distinct comparisons of a call's cases.
struct Atoms {
    list: [Atom; ATOMS_MAX],
    len: usize,
}

impl Atoms {
    /// `None` when there are more than the walk keeps apart.
    fn of(rules: &ArgRules) -> Option<Atoms> {
        let mut atoms = Atoms { list: [Atom { word: 0, mask: 0, value: 0 }; ATOMS_MAX], len: 0 };
        for atom in rules.all_cases().flat_map(case_atoms) {
            if atoms.index(atom).is_none() {
                *atoms.list.get_mut(atoms.len)? = atom;
                atoms.len += 1;
            }
        }
        Some(atoms)
    }

    fn index(&self, atom: Atom) -> Option<usize> {
        self.list[..self.len].iter().position(|known| *known == atom)
    }

    /// Whether a comparison holds, as far as the facts tell.
    fn truth(&self, atom: Atom, facts: Facts) -> Option<bool> {
        if atom.value & !atom.mask != 0 {
            return Some(false);
        }
        if atom.mask == 0 {
            return Some(true);
        }
        if let Some(index) = self.index(atom)
            && facts.known & (1 << index) != 0
        {
            return Some(facts.held & (1 << index) != 0);
        }
        let held = self.list[..self.len].iter().enumerate().filter(|(index, _)| facts.held & (1 << index) != 0);
        for (_, other) in held.filter(|(_, other)| other.word == atom.word) {
            if (other.value ^ atom.value) & other.mask & atom.mask != 0 {
                return Some(false);
            }
            if other.mask & atom.mask == atom.mask {
                return Some(true);
            }
        }
        None
    }

    /// What the rules say, as far as the facts tell.
    fn answer(&self, rules: &ArgRules, facts: Facts) -> Option<Answer> {
        match rules.second {
            _ if self.any_case(rules.cases, facts)? => Some(rules.matched),
            Some((cases, answer)) if self.any_case(cases, facts)? => Some(answer),
            _ => Some(rules.otherwise),
        }
    }

    /// Whether any case holds, as far as the facts tell.
    fn any_case(&self, cases: Cases, facts: Facts) -> Option<bool> {
        let mut open = false;
        for case in cases {
            let mut holds = Some(true);
            for atom in case_atoms(case) {
                match self.truth(atom, facts) {
                    Some(true) => {}
                    Some(false) => {
                        holds = Some(false);
                        break;
                    }
                    None => holds = None,
                }
            }
            match holds {
                Some(true) => return Some(true),
                Some(false) => {}
                None => open = true,
            }
        }
        if open { None } else { Some(false) }
    }
}

/// A condition on 64 bits is two comparisons of 32, of which one that keeps no bit always holds.
fn case_atoms(case: &'static [super::Condition]) -> impl Iterator<Item = Atom> {
    let halves = case.iter().flat_map(|condition| {
        [0u8, 1].map(|half| {
            let word = |value: u64| (value >> (32 * half)) as u32;
            Atom { word: 2 * condition.arg + half, mask: word(condition.mask), value: word(condition.value) }
        })
    });
    halves.filter(|atom| atom.mask != 0)
}

fn load(offset: u32, at: usize) -> Result<Accumulator, Mismatch> {
    match offset {
        bpf::OFFSET_NR => Ok(Accumulator::Number),
        bpf::OFFSET_ARCH => Ok(Accumulator::Abi),
        bpf::OFFSET_ARGS..bpf::DATA_SIZE if offset.is_multiple_of(4) => {
            let word = u8::try_from((offset - bpf::OFFSET_ARGS) / 4).expect("twelve words");
            Ok(Accumulator::Word { word, mask: u32::MAX })
        }
        _ => Err(unexplained(at, "loads something else than number, ABI and arguments")),
    }
}

fn unexplained(at: usize, what: &'static str) -> Mismatch {
    Mismatch::Unexplained { at, what }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::policy::{Origin, SyscallDefault, Syscalls};
    use crate::seccomp::{Arch, Notify};

    fn table() -> Table {
        // Without it the calls of base that are judged are two, of which the list below knows one.
        let allow = BTreeMap::from([("core-dumps".to_owned(), Origin::flag("--test"))]);
        let policy = Syscalls { default: SyscallDefault::Deny, allow, deny: BTreeMap::new(), compat: false };
        Table::build(&policy, Arch::X86_64, Notify::default()).unwrap()
    }

    fn insn(code: u16, jt: u8, jf: u8, k: u32) -> Insn {
        Insn { code, jt, jf, k }
    }

    /// The table as a plain list of comparisons, each with its own answer.
    fn listed(table: &Table) -> Vec<Insn> {
        let refuse = insn(bpf::RET_K, 0, 0, Answer::Errno(ENOSYS).action());
        let mut program = vec![insn(bpf::LD_W_ABS, 0, 0, 4), insn(bpf::JEQ_K, 1, 0, Abi::X86_64.audit_arch()), refuse];
        program.push(insn(bpf::LD_W_ABS, 0, 0, 0));
        for nr in 0..table.numbers(Abi::X86_64) {
            let answer = match table.decide(Abi::X86_64, nr) {
                Decision::Allow => Answer::Allow,
                Decision::Errno(errno) => Answer::Errno(errno),
                Decision::Notify => Answer::Notify,
                Decision::Args(rules) => {
                    // Of base, only prctl is judged; two bad values of its first argument.
                    program.push(insn(bpf::JEQ_K, 0, 5, nr));
                    program.push(insn(bpf::LD_W_ABS, 0, 0, 16));
                    program.push(insn(bpf::JEQ_K, 1, 0, 35));
                    program.push(insn(bpf::JEQ_K, 0, 1, 28));
                    program.push(insn(bpf::RET_K, 0, 0, rules.matched.action()));
                    program.push(insn(bpf::RET_K, 0, 0, rules.otherwise.action()));
                    continue;
                }
            };
            program.push(insn(bpf::JEQ_K, 0, 1, nr));
            program.push(insn(bpf::RET_K, 0, 0, answer.action()));
        }
        program.push(refuse);
        program
    }

    #[test]
    fn a_plain_list_is_proved() {
        assert_eq!(verify(&listed(&table()), &table()), Ok(()));
    }

    #[test]
    fn a_magic_argument_has_nowhere_to_hide() {
        let mut program = listed(&table());
        let end = program.len() - 1;
        // An unknown call with a magic argument is carried out.
        program.truncate(end);
        program.extend([
            insn(bpf::LD_W_ABS, 0, 0, 24),
            insn(bpf::JEQ_K, 0, 1, 0xc0de),
            insn(bpf::RET_K, 0, 0, bpf::RET_ALLOW),
            insn(bpf::RET_K, 0, 0, Answer::Errno(ENOSYS).action()),
        ]);
        assert!(matches!(verify(&program, &table()), Err(Mismatch::Unexplained { .. })));
    }

    #[test]
    fn x32_numbers_and_foreign_abis_are_looked_at() {
        let mut program = listed(&table());
        let end = program.len() - 1;
        program.splice(end..end, [insn(bpf::JEQ_K, 0, 1, 0x4000_0000), insn(bpf::RET_K, 0, 0, bpf::RET_ALLOW)]);
        assert!(matches!(verify(&program, &table()), Err(Mismatch::Answer { nr: 0x4000_0000, .. })));
        let mut program = listed(&table());
        program[2].k = bpf::RET_ALLOW;
        assert!(matches!(verify(&program, &table()), Err(Mismatch::Answer { abi: "foreign", .. })));
    }

    #[test]
    fn programs_that_cannot_be_loaded_are_refused() {
        assert_eq!(verify(&[], &table()), Err(Mismatch::Length(0)));
        let endless = [insn(bpf::LD_W_ABS, 0, 0, 4), insn(bpf::JA, 0, 0, u32::MAX)];
        assert!(matches!(verify(&endless, &table()), Err(Mismatch::Overrun { .. })));
        assert!(verify(&[insn(bpf::RET_K, 0, 0, bpf::RET_ALLOW)], &table()).is_err());
        assert!(verify(&[insn(bpf::LD_W_ABS, 0, 0, 8)], &table()).is_err());
    }

    proptest! {
        /// Whatever bytes a cache file holds, the proof ends and does not panic.
        #[test]
        fn any_program_gets_an_answer(words in prop::collection::vec((0u16..8, 0u8..6, 0u8..6, 0u32..80), 1..64)) {
            let codes = [bpf::LD_W_ABS, bpf::AND_K, bpf::JA, bpf::JEQ_K, bpf::JGT_K, bpf::JGE_K, bpf::JSET_K, bpf::RET_K];
            let program: Vec<Insn> =
                words.into_iter().map(|(code, jt, jf, k)| insn(codes[usize::from(code)], jt, jf, k)).collect();
            prop_assert!(verify(&program, &table()).is_err());
        }
    }
}

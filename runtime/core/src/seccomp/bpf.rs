//! Words of classic BPF as seccomp uses it (linux/filter.h, linux/seccomp.h).

/// One instruction: `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    /// Operation.
    pub code: u16,
    /// Instructions skipped when the comparison holds.
    pub jt: u8,
    /// Instructions skipped when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// The most instructions that a kernel takes (`BPF_MAXINSNS`).
pub const INSNS_MAX: usize = 4096;

/// `A = data[k]`, a 32-bit word of `struct seccomp_data`.
pub const LD_W_ABS: u16 = 0x20;
/// `A &= k`.
pub const AND_K: u16 = 0x54;
/// Jump `k` further.
pub const JA: u16 = 0x05;
/// Jump when `A == k`.
pub const JEQ_K: u16 = 0x15;
/// Jump when `A > k`.
pub const JGT_K: u16 = 0x25;
/// Jump when `A >= k`.
pub const JGE_K: u16 = 0x35;
/// Jump when `A & k != 0`.
pub const JSET_K: u16 = 0x45;
/// Answer `k`.
pub const RET_K: u16 = 0x06;

/// Offset of the call number.
pub const OFFSET_NR: u32 = 0;
/// Offset of the ABI.
pub const OFFSET_ARCH: u32 = 4;
/// Offset of the arguments: six of 64 bits, low word first on the architectures that have a table.
pub const OFFSET_ARGS: u32 = 16;
/// Size of `struct seccomp_data`.
pub const DATA_SIZE: u32 = 64;

/// Carry the call out.
pub const RET_ALLOW: u32 = 0x7fff_0000;
/// Ask the listener.
pub const RET_USER_NOTIF: u32 = 0x7fc0_0000;
/// Refuse with the errno in the low 16 bits.
pub const RET_ERRNO: u32 = 0x0005_0000;
/// Stop for the tracer; ENOSYS without one.
pub const RET_TRACE: u32 = 0x7ff0_0000;

/// What a program answers for a call, as the kernel would run it.
#[cfg(test)]
pub(crate) fn run(program: &[Insn], arch: u32, nr: u32, args: &[u64; 6]) -> u32 {
    let (mut pc, mut a) = (0usize, 0u32);
    loop {
        let insn = program[pc];
        pc += 1;
        let jump = |taken: bool| usize::from(if taken { insn.jt } else { insn.jf });
        match insn.code {
            LD_W_ABS => {
                a = match insn.k {
                    OFFSET_NR => nr,
                    OFFSET_ARCH => arch,
                    offset => {
                        let word = (offset - OFFSET_ARGS) / 4;
                        (args[word as usize / 2] >> (32 * (word % 2))) as u32
                    }
                }
            }
            AND_K => a &= insn.k,
            JA => pc += insn.k as usize,
            JEQ_K => pc += jump(a == insn.k),
            JGT_K => pc += jump(a > insn.k),
            JGE_K => pc += jump(a >= insn.k),
            JSET_K => pc += jump(a & insn.k != 0),
            RET_K => return insn.k,
            other => panic!("operation {other:#x}"),
        }
    }
}

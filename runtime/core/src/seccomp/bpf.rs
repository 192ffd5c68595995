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

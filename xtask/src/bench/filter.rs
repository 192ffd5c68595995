//! A system call filter of about 300 rules for bubblewrap, as libseccomp would write it: one comparison after another.
//!
//! Raw instructions of classic BPF (linux/filter.h), because xtask must build before libseccomp is installed.

const LOAD_WORD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0x8000_0000;
/// `SECCOMP_RET_ERRNO` with EPERM.
const REFUSE: u32 = 0x0005_0001;

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;

/// Numbers from 0 that get a rule each. Everything that a static C program calls on x86-64 lies below.
const ALLOWED: std::ops::Range<u32> = 0..335;
/// Every tenth number above this is left out, so that the filter refuses something and counts about 300 rules.
const LEFT_OUT_FROM: u32 = 100;
/// How many comparisons can reach one return: a jump spans at most 255 instructions.
const REACH: usize = 200;

/// The program, as bubblewrap reads it from a descriptor.
pub fn program() -> Vec<u8> {
    let numbers: Vec<u32> = ALLOWED.filter(|number| !is_left_out(*number)).collect();
    let mut code = Vec::new();
    put(&mut code, LOAD_WORD, 0, 0, ARCHITECTURE);
    put(&mut code, JUMP_IF_EQUAL, 1, 0, AUDIT_ARCH);
    put(&mut code, RETURN, 0, 0, KILL);
    put(&mut code, LOAD_WORD, 0, 0, NUMBER);
    for chunk in numbers.chunks(REACH) {
        for (at, number) in chunk.iter().enumerate() {
            // Over the rest of the chunk and over the jump behind it, to its return.
            let distance = u8::try_from(chunk.len() - at).unwrap_or(u8::MAX);
            put(&mut code, JUMP_IF_EQUAL, distance, 0, *number);
        }
        put(&mut code, JUMP, 0, 0, 1);
        put(&mut code, RETURN, 0, 0, ALLOW);
    }
    put(&mut code, RETURN, 0, 0, REFUSE);
    code
}

fn is_left_out(number: u32) -> bool {
    number > LEFT_OUT_FROM && number % 10 == 1 && number != EXIT_GROUP
}

/// x86-64's number of the call with which every C program ends.
const EXIT_GROUP: u32 = 231;

/// One `struct sock_filter`.
fn put(code: &mut Vec<u8>, operation: u16, if_true: u8, if_false: u8, operand: u32) {
    code.extend(operation.to_ne_bytes());
    code.extend([if_true, if_false]);
    code.extend(operand.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_has_about_three_hundred_rules() {
        let instructions = program().len() / 8;
        assert!((300..=330).contains(&instructions), "{instructions}");
    }
}

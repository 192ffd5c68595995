//! The device rules of a container as an eBPF program, which cgroup v2 asks at each open and mknod of a device.
//!
//! The last rule about a device counts, so the program goes through them from the end: one that allows takes its ways of access off
//! those still to be judged and is content when none is left; one that denies ends it when one of its ways is still there. Behind all of them stands "no".

use std::os::fd::AsFd;

use apex_sys::bpf::{self, Instruction};

use super::devices::{Access, Devices, Rule};
use super::dir::Dir;
use super::error::CgroupError;

/// Bytes for what the verifier says.
const LOG_BYTES: usize = 16 * 1024;

// Operations (the kernel's Documentation/bpf/standardization/instruction-set.rst): class, operation and source in one byte.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb4;
const MOVE_REGISTER: u8 = 0xbc;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_IF_NOT: u8 = 0x56;
const JUMP_IF: u8 = 0x16;
const EXIT: u8 = 0x95;

// Registers.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const LEFT: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

// `struct bpf_cgroup_dev_ctx`: access and kind in one word, major, minor.
const KIND_BLOCK: i32 = 1;
const KIND_CHAR: i32 = 2;

fn one(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: to | from << 4, offset, immediate }
}

/// Whether everything is allowed, for which no program is needed.
pub(super) fn is_idle(rules: &[Rule]) -> bool {
    rules.iter().all(|rule| match rule {
        Rule::All { allow } | Rule::Some { allow, .. } => *allow,
    }) && matches!(rules.first(), Some(Rule::All { allow: true }))
}

/// The program for `rules`.
pub(super) fn assemble(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        one(LOAD_WORD, KIND, CONTEXT, 0, 0),
        one(MOVE_REGISTER, LEFT, KIND, 0, 0),
        one(AND, KIND, 0, 0, 0xffff),
        one(SHIFT_RIGHT, LEFT, 0, 0, 16),
        one(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        one(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        match *rule {
            Rule::All { allow } => {
                program.extend(answer(allow));
                return program;
            }
            Rule::Some { devices, access, allow } => push_rule(&mut program, devices, access, allow),
        }
    }
    program.extend(answer(false));
    program
}

fn answer(allow: bool) -> [Instruction; 2] {
    [one(MOVE, ANSWER, 0, 0, allow.into()), one(EXIT, 0, 0, 0, 0)]
}

fn push_rule(program: &mut Vec<Instruction>, devices: Devices, access: Access, allow: bool) {
    let kind = if devices.is_block { KIND_BLOCK } else { KIND_CHAR };
    // What does not fit a device number of the kernel fits no device: the comparison is then with -1, which none has.
    let number = |number: u32| i32::try_from(number).unwrap_or(-1);
    let mut body = vec![one(JUMP_IF_NOT, KIND, 0, 0, kind)];
    body.extend(devices.major.map(|major| one(JUMP_IF_NOT, MAJOR, 0, 0, number(major))));
    body.extend(devices.minor.map(|minor| one(JUMP_IF_NOT, MINOR, 0, 0, number(minor))));
    if allow {
        body.push(one(AND, LEFT, 0, 0, i32::from(!access.0 & Access::ALL.0)));
        body.push(one(JUMP_IF_NOT, LEFT, 0, 0, 0));
    } else {
        body.push(one(MOVE_REGISTER, ANSWER, LEFT, 0, 0));
        body.push(one(AND, ANSWER, 0, 0, access.0.into()));
        body.push(one(JUMP_IF, ANSWER, 0, 0, 0));
    }
    body.extend(answer(allow));
    let length = body.len();
    for (at, instruction) in body.iter_mut().enumerate() {
        if matches!(instruction.code, JUMP_IF | JUMP_IF_NOT) {
            // A rule has at most eight instructions.
            instruction.offset = (length - at - 1) as i16;
        }
    }
    program.extend(body);
}

/// Loads the program and ties it to a v2 cgroup.
pub(super) fn set(dir: &Dir, rules: &[Rule]) -> Result<(), CgroupError> {
    if is_idle(rules) {
        return Ok(());
    }
    let program = assemble(rules);
    // The verifier writes only when somebody listens, and then slowly: the log is asked for after a refusal.
    let loaded = bpf::load_device_program(&program, &mut []).or_else(|_| {
        let mut log = vec![0; LOG_BYTES];
        bpf::load_device_program(&program, &mut log).map_err(|errno| {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            let log = String::from_utf8_lossy(&log[..end]).trim().to_owned();
            CgroupError::DeviceProgram {
                log: if log.is_empty() { "nothing".to_owned() } else { log },
                source: errno.into(),
            }
        })
    })?;
    bpf::attach_device_program(dir.fd(), loaded.as_fd())
        .map_err(|errno| CgroupError::DeviceAttach { dir: dir.path().to_owned(), source: errno.into() })
}

#[cfg(test)]
mod tests {
    use super::super::devices::{rules, tests::given};
    use super::*;

    /// What the kernel would do: only the operations above.
    fn run(program: &[Instruction], is_block: bool, access: u8, major: u32, minor: u32) -> bool {
        let context = [u32::from(access) << 16 | if is_block { 1 } else { 2 }, major, minor];
        let mut registers = [0_u32; 6];
        let mut at = 0;
        loop {
            let Instruction { code, registers: pair, offset, immediate } = program[at];
            let (to, from) = (usize::from(pair & 15), usize::from(pair >> 4));
            let immediate = immediate as u32;
            at += 1;
            match code {
                LOAD_WORD => registers[to] = context[offset as usize / 4],
                MOVE => registers[to] = immediate,
                MOVE_REGISTER => registers[to] = registers[from],
                AND => registers[to] &= immediate,
                SHIFT_RIGHT => registers[to] >>= immediate,
                JUMP_IF_NOT if registers[to] != immediate => at += offset as usize,
                JUMP_IF if registers[to] == immediate => at += offset as usize,
                JUMP_IF_NOT | JUMP_IF => {}
                EXIT => return registers[0] == 1,
                other => panic!("operation {other:#x}"),
            }
        }
    }

    const MKNOD: u8 = 1;
    const READ: u8 = 2;
    const WRITE: u8 = 4;

    #[test]
    fn the_last_rule_counts() {
        let json = r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"b","major":8,"access":"rw"},
            {"allow":false,"type":"b","major":8,"minor":1,"access":"w"},{"allow":true,"type":"c","major":1,"minor":3,"access":"r"}]"#;
        let program = assemble(&rules(&given(json)).unwrap());
        let check = |is_block, access, major, minor, expected| {
            assert_eq!(run(&program, is_block, access, major, minor), expected, "{is_block} {access} {major}:{minor}");
        };
        check(true, READ | WRITE, 8, 0, true);
        check(true, READ, 8, 1, true);
        check(true, WRITE, 8, 1, false);
        check(true, READ | WRITE, 8, 1, false);
        check(true, MKNOD, 8, 1, true);
        check(true, MKNOD | READ, 8, 0, true);
        check(true, READ, 9, 0, false);
        check(false, READ, 8, 0, false);
        check(false, READ | WRITE | MKNOD, 1, 3, true);
        check(false, READ, 1, 1, false);
        check(false, READ, 136, 77, true);
    }

    #[test]
    fn everything_needs_no_program() {
        let check = |json: &str, expected| assert_eq!(is_idle(&rules(&given(json)).unwrap()), expected, "{json}");
        check(r#"[{"allow":true,"type":"a","access":"rwm"}]"#, true);
        check(r#"[{"allow":false,"access":"rwm"},{"allow":true,"access":"rwm"}]"#, true);
        check(r#"[{"allow":true},{"allow":false,"type":"b","access":"w"}]"#, false);
        check("[]", false);
    }
}

//! The running kernel's types, without those that nobody asks for.
//!
//! `/sys/kernel/btf/vmlinux` holds some hundred thousand types and aya builds each as a value of its own: 40 ms before the first program
//! is loaded. Here a small BTF is written with the structures that the programs name and what their members are, pointers pointing at
//! nothing. Tracepoints and hooks keep their numbers, because the kernel is told them by number; the gaps are filled with empty declarations.
//!
//! Input: the kernel's BTF. Output: BTF. It must not trust what it reads.

use std::collections::{BTreeMap, HashMap};

/// Structures that the programs in `ebpf/` name, in order. A missing one makes a load fail, which the live tests see.
const NAMED: &[&str] = &[
    "cgroup",
    "cgroup_subsys_state",
    "cred",
    "css_set",
    "dentry",
    "fdtable",
    "file",
    "files_struct",
    "fs_struct",
    "inode",
    "kernfs_node",
    "linux_binprm",
    "mm_struct",
    "mount",
    "path",
    "pid",
    "pt_regs",
    "qstr",
    "signal_struct",
    "sock",
    "sock_common",
    "sockaddr",
    "socket",
    "super_block",
    "task_struct",
    "thread_info",
    "upid",
    "vfsmount",
    "vm_area_struct",
];

/// Tracepoints that the programs are attached to, as their types are called, in order.
const TRACEPOINTS: &[&str] = &[
    "btf_trace_sched_process_exec",
    "btf_trace_sched_process_exit",
    "btf_trace_sched_process_fork",
    "btf_trace_sys_exit",
];

/// Hooks of the security module, as their functions are called, in order.
#[rustfmt::skip]
const HOOKS: &[&str] = &[
    "bpf_lsm_bpf",
    "bpf_lsm_bprm_check_security",
    "bpf_lsm_file_mprotect",
    "bpf_lsm_file_open",
    "bpf_lsm_path_chmod",
    "bpf_lsm_path_chown",
    "bpf_lsm_path_link",
    "bpf_lsm_path_mkdir",
    "bpf_lsm_path_rename",
    "bpf_lsm_path_rmdir",
    "bpf_lsm_path_symlink",
    "bpf_lsm_path_truncate",
    "bpf_lsm_path_unlink",
    "bpf_lsm_ptrace_access_check",
    "bpf_lsm_sb_mount",
    "bpf_lsm_socket_bind",
    "bpf_lsm_socket_connect",
    "bpf_lsm_task_fix_setuid",
    "bpf_lsm_userns_create",
];

const MAGIC: u16 = 0xeb9f;
const HEADER_BYTES: usize = 24;
const TYPE_BYTES: usize = 12;
const MEMBER_BYTES: usize = 12;
/// Kept types at most; the structures above have some hundred.
const KEPT_MAX: usize = 64 << 10;
/// Highest number of a tracepoint's or hook's type, which bounds the filling of gaps.
const NUMBER_MAX: u32 = 4 << 20;

const INT: u32 = 1;
const POINTER: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FORWARD: u32 = 7;
const TYPEDEF: u32 = 8;
const FUNCTION: u32 = 12;

/// What is no BTF.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// Too short, another byte order, or sections out of bounds.
    #[error("it has no valid header")]
    Header,
    /// A type of a kind that is not known here.
    #[error("type {number} is of the unknown kind {kind}")]
    Kind {
        /// Number of the type.
        number: u32,
        /// Its kind.
        kind: u32,
    },
    /// A type reaches past the end of its section.
    #[error("type {number} is cut off")]
    Cut {
        /// Number of the type.
        number: u32,
    },
    /// A type refers to one that is not there, or there are too many.
    #[error("there is no type {number} where one is referred to")]
    Missing {
        /// Its number.
        number: u32,
    },
}

/// A BTF with the structures and tracepoints that the programs need.
pub fn trim(data: &[u8]) -> Result<Vec<u8>, BtfError> {
    let types = Types::parse(data)?;
    let mut small = Small::default();
    let mut structures = Vec::new();
    for number in 1..=types.offsets.len() as u32 {
        let kind = types.get(number)?;
        if kind.kind == STRUCT && types.is_one_of(kind.name, NAMED) {
            structures.push(number);
            continue;
        }
        let is_hooked = (kind.kind == TYPEDEF && types.is_one_of(kind.name, TRACEPOINTS))
            || (kind.kind == FUNCTION && types.is_one_of(kind.name, HOOKS));
        if is_hooked && number < NUMBER_MAX {
            let name = small.name(&types, kind.name);
            small.types.insert(number, entry(name, kind.info, 0));
        }
    }
    for number in structures {
        small.want(number);
    }
    while let Some((old, new)) = small.waiting.pop() {
        let bytes = small.copy(&types, old)?;
        small.types.insert(new, bytes);
        if small.numbers.len() > KEPT_MAX {
            return Err(BtfError::Missing { number: old });
        }
    }
    Ok(small.write())
}

/// One type of the kernel.
struct Type {
    name: u32,
    kind: u32,
    info: u32,
    last: u32,
    /// Where what follows the fixed part begins and ends.
    extra: (usize, usize),
}

/// The kernel's types.
struct Types<'a> {
    bytes: &'a [u8],
    strings: &'a [u8],
    /// Where each begins; the first has the number 1.
    offsets: Vec<u32>,
}

impl<'a> Types<'a> {
    fn parse(data: &'a [u8]) -> Result<Types<'a>, BtfError> {
        let field = |at| word(data, at).map(|word| word as usize).ok_or(BtfError::Header);
        let magic = data.get(..2).map(|it| u16::from_le_bytes([it[0], it[1]]));
        let header = field(4)?;
        if magic != Some(MAGIC) || header < HEADER_BYTES {
            return Err(BtfError::Header);
        }
        let section = |at: usize, len: usize| {
            let start = header.checked_add(at).ok_or(BtfError::Header)?;
            data.get(start..start.checked_add(len).ok_or(BtfError::Header)?).ok_or(BtfError::Header)
        };
        let (bytes, strings) = (section(field(8)?, field(12)?)?, section(field(16)?, field(20)?)?);
        let mut types = Types { bytes, strings, offsets: Vec::with_capacity(bytes.len() / 24) };
        let mut at = 0;
        while at < bytes.len() {
            let number = types.offsets.len() as u32 + 1;
            // Sections of a valid header fit into 32 bits.
            types.offsets.push(at as u32);
            at = types.get(number)?.extra.1;
        }
        Ok(types)
    }

    fn get(&self, number: u32) -> Result<Type, BtfError> {
        let index = number.checked_sub(1).ok_or(BtfError::Missing { number })? as usize;
        let at = *self.offsets.get(index).ok_or(BtfError::Missing { number })? as usize;
        let cut = BtfError::Cut { number };
        let Some(fixed) = self.bytes.get(at..at + TYPE_BYTES) else { return Err(cut) };
        let part = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        let (name, info, last) = (part(0), part(4), part(8));
        let (kind, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        let extra_bytes = match kind {
            // int, var, declaration tag
            INT | 14 | 17 => 4,
            ARRAY => 12,
            // struct, union, data section, enum64
            STRUCT | UNION | 15 | 19 => MEMBER_BYTES * members,
            // enum, function prototype
            ENUM | 13 => 8 * members,
            // pointer, forward, typedef, volatile, const, restrict, function, float, type tag
            POINTER | FORWARD..=FUNCTION | 16 | 18 => 0,
            _ => return Err(BtfError::Kind { number, kind }),
        };
        let end = at + TYPE_BYTES + extra_bytes;
        if end > self.bytes.len() {
            return Err(cut);
        }
        Ok(Type { name, kind, info, last, extra: (at + TYPE_BYTES, end) })
    }

    fn text(&self, name: u32) -> &'a [u8] {
        let rest = self.strings.get(name as usize..).unwrap_or_default();
        &rest[..rest.iter().position(|byte| *byte == 0).unwrap_or(0)]
    }

    fn is_one_of(&self, name: u32, names: &[&str]) -> bool {
        // Longer than any of ours is none of ours.
        let rest = self.strings.get(name as usize..).unwrap_or_default();
        let end = rest.iter().take(32).position(|byte| *byte == 0);
        end.is_some_and(|end| names.binary_search_by(|known| known.as_bytes().cmp(&rest[..end])).is_ok())
    }
}

/// The BTF in the making.
struct Small {
    /// New number of an old one.
    numbers: HashMap<u32, u32>,
    /// Types by new number.
    types: BTreeMap<u32, Vec<u8>>,
    /// Old and new numbers of types that are still to be copied.
    waiting: Vec<(u32, u32)>,
    next: u32,
    strings: Vec<u8>,
}

impl Default for Small {
    fn default() -> Self {
        let (numbers, types) = (HashMap::new(), BTreeMap::new());
        Small { numbers, types, waiting: Vec::new(), next: 1, strings: vec![0] }
    }
}

impl Small {
    /// The new number of a type that is needed.
    fn want(&mut self, old: u32) -> u32 {
        if old == 0 {
            return 0;
        }
        if let Some(new) = self.numbers.get(&old) {
            return *new;
        }
        // Numbers of tracepoints and hooks are taken.
        while self.types.contains_key(&self.next) {
            self.next += 1;
        }
        let new = self.next;
        self.next += 1;
        self.numbers.insert(old, new);
        self.waiting.push((old, new));
        new
    }

    fn name(&mut self, types: &Types<'_>, name: u32) -> u32 {
        let text = types.text(name);
        if text.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend_from_slice(text);
        self.strings.push(0);
        at
    }

    /// A type with its references renumbered. What cannot matter to an offset is left empty.
    fn copy(&mut self, types: &Types<'_>, number: u32) -> Result<Vec<u8>, BtfError> {
        let old = types.get(number)?;
        let extra = &types.bytes[old.extra.0..old.extra.1];
        let part = |at| word(extra, at).ok_or(BtfError::Cut { number });
        Ok(match old.kind {
            INT => {
                let mut bytes = entry(0, old.info, old.last);
                bytes.extend_from_slice(extra);
                bytes
            }
            POINTER => entry(0, old.info, 0),
            ARRAY => {
                let mut bytes = entry(0, old.info, 0);
                for word in [self.want(part(0)?), self.want(part(4)?), part(8)?] {
                    bytes.extend_from_slice(&word.to_le_bytes());
                }
                bytes
            }
            STRUCT | UNION if old.name == 0 || types.is_one_of(old.name, NAMED) => {
                let mut bytes = entry(self.name(types, old.name), old.info, old.last);
                for member in extra.chunks_exact(MEMBER_BYTES) {
                    let part = |at| word(member, at).ok_or(BtfError::Cut { number });
                    for word in [self.name(types, part(0)?), self.want(part(4)?), part(8)?] {
                        bytes.extend_from_slice(&word.to_le_bytes());
                    }
                }
                bytes
            }
            // Without its values it still has its size.
            ENUM => entry(0, ENUM << 24, old.last),
            // typedef, volatile, const, restrict, type tag
            TYPEDEF..=11 | 18 => {
                let name = self.name(types, old.name);
                entry(name, old.info, self.want(old.last))
            }
            _ => filler(),
        })
    }

    fn write(self) -> Vec<u8> {
        let last = self.types.last_key_value().map_or(0, |(number, _)| *number);
        let mut types = Vec::with_capacity(last as usize * TYPE_BYTES * 2);
        for number in 1..=last {
            match self.types.get(&number) {
                Some(bytes) => types.extend_from_slice(bytes),
                None => types.extend_from_slice(&filler()),
            }
        }
        write(&types, &self.strings)
    }
}

fn write(types: &[u8], strings: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + types.len() + strings.len());
    out.extend_from_slice(&MAGIC.to_le_bytes());
    out.extend_from_slice(&[1, 0]);
    for word in [HEADER_BYTES, 0, types.len(), types.len(), strings.len()] {
        // Less than was read, which fits into 32 bits, and bounded fillings.
        out.extend_from_slice(&(word as u32).to_le_bytes());
    }
    out.extend_from_slice(types);
    out.extend_from_slice(strings);
    out
}

fn entry(name: u32, info: u32, last: u32) -> Vec<u8> {
    [name, info, last].iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A declaration without a body.
fn filler() -> Vec<u8> {
    entry(0, FORWARD << 24, 0)
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// Offset and size in bytes of a member of a structure in an object's BTF, for the tests of shared layouts.
#[cfg(test)]
pub fn member(data: &[u8], structure: &str, field: &str) -> Option<(usize, usize)> {
    let types = Types::parse(data).ok()?;
    let whole = (1..=types.offsets.len() as u32)
        .filter_map(|number| types.get(number).ok())
        .find(|kind| matches!(kind.kind, STRUCT | UNION) && types.text(kind.name) == structure.as_bytes())?;
    let members = &types.bytes[whole.extra.0..whole.extra.1];
    let member = members
        .chunks_exact(MEMBER_BYTES)
        .find(|member| word(member, 0).is_some_and(|name| types.text(name) == field.as_bytes()))?;
    Some((word(member, 8)? as usize / 8, size(&types, word(member, 4)?)?))
}

/// Size in bytes of a structure in an object's BTF, likewise.
#[cfg(test)]
pub fn size_of_structure(data: &[u8], structure: &str) -> Option<usize> {
    let types = Types::parse(data).ok()?;
    (1..=types.offsets.len() as u32)
        .find(|number| {
            let kind = types.get(*number).ok();
            kind.is_some_and(|kind| {
                matches!(kind.kind, STRUCT | UNION) && types.text(kind.name) == structure.as_bytes()
            })
        })
        .and_then(|number| size(&types, number))
}

#[cfg(test)]
fn size(types: &Types<'_>, number: u32) -> Option<usize> {
    let kind = types.get(number).ok()?;
    match kind.kind {
        POINTER => Some(8),
        TYPEDEF..=11 | 18 => size(types, kind.last),
        ARRAY => Some(size(types, word(types.bytes, kind.extra.0)?)? * word(types.bytes, kind.extra.0 + 8)? as usize),
        _ => Some(kind.last as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRINGS: &[u8] = b"\0file\0page\0btf_trace_sys_exit\0f_inode\0";
    const FILE: u32 = 1;
    const PAGE: u32 = 6;
    const SYS_EXIT: u32 = 11;
    const F_INODE: u32 = 30;

    fn member(name: u32, of: u32) -> Vec<u8> {
        entry(name, of, 64)
    }

    #[test]
    fn names_are_in_order() {
        assert!(NAMED.is_sorted() && TRACEPOINTS.is_sorted() && HOOKS.is_sorted(), "binary search needs them so");
        assert!(NAMED.iter().chain(TRACEPOINTS).chain(HOOKS).all(|name| name.len() < 32));
    }

    #[test]
    fn a_named_structure_is_kept_with_what_its_members_are() {
        let types = [
            entry(PAGE, STRUCT << 24 | 1, 8),
            member(F_INODE, 2),
            entry(0, POINTER << 24, 1),
            entry(SYS_EXIT, TYPEDEF << 24, 2),
            entry(FILE, STRUCT << 24 | 2, 16),
            member(F_INODE, 2),
            member(0, 1),
        ];
        let small = trim(&write(&types.concat(), STRINGS)).expect("valid");
        let small = Types::parse(&small).expect("own output");
        // The structure, then what it is made of: a pointer to nothing and another structure without members. The tracepoint stays 3.
        let file = small.get(1).expect("first");
        assert_eq!((small.text(file.name), file.last), (b"file".as_slice(), 16));
        assert_eq!(small.text(small.get(3).expect("third").name), b"btf_trace_sys_exit");
        let kinds: Vec<u32> = (1..=4).map(|number| small.get(number).expect("there").kind).collect();
        assert_eq!(kinds, [STRUCT, POINTER, TYPEDEF, FORWARD]);
        assert_eq!(small.get(2).expect("second").last, 0);
        assert_eq!(word(small.bytes, file.extra.0 + 4), Some(2));
        assert_eq!(small.text(word(small.bytes, file.extra.0).expect("a member")), b"f_inode");
    }

    #[test]
    fn what_is_no_btf_is_refused() {
        let btf = |types: &[u8]| write(types, b"\0file\0");
        assert_eq!(trim(b""), Err(BtfError::Header));
        assert_eq!(trim(&[0; 64]), Err(BtfError::Header));
        assert_eq!(trim(&btf(&entry(0, 30 << 24, 0))), Err(BtfError::Kind { number: 1, kind: 30 }));
        assert_eq!(trim(&btf(&entry(0, STRUCT << 24 | 9, 0))), Err(BtfError::Cut { number: 1 }));
        assert_eq!(trim(&btf(&[0; 5])), Err(BtfError::Cut { number: 1 }));
        let astray = [entry(1, STRUCT << 24 | 1, 8), member(0, 9)].concat();
        assert_eq!(trim(&btf(&astray)), Err(BtfError::Missing { number: 9 }));
        let mut long = btf(&entry(0, 2 << 24, 4));
        long[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(trim(&long), Err(BtfError::Header));
    }

    #[test]
    fn a_structure_that_contains_itself_ends() {
        let types = [entry(FILE, STRUCT << 24 | 1, 8), member(0, 1)].concat();
        assert!(trim(&write(&types, STRINGS)).is_ok());
    }

    #[test]
    fn the_running_kernels_types_are_trimmed_and_readable() {
        // Only kernels with CONFIG_DEBUG_INFO_BTF have it; the others cannot load the programs either.
        let Ok(data) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };
        let trimmed = trim(&data).expect("the kernel's own BTF is valid");
        assert!(trimmed.len() < data.len() / 4, "{} of {} bytes", trimmed.len(), data.len());
        aya::Btf::parse(&trimmed, aya::Endianness::default()).expect("aya reads it");
    }
}

//! The running kernel's types, without those that nobody asks for.
//!
//! `/sys/kernel/btf/vmlinux` holds some hundred thousand types and aya builds each as a value of its own: 40 ms before the first program
//! is loaded. Here the structures that no program names are replaced by empty declarations, in one pass and without a change of any
//! type's number, so that what refers to numbers stays true. Input: the kernel's BTF. Output: BTF. It must not trust what it reads.

/// Structures and unions that the programs in `ebpf/` name, in order. A missing one makes a load fail, which the live tests see.
const NAMED: &[&str] = &[
    "cred",
    "dentry",
    "fdtable",
    "file",
    "files_struct",
    "fs_struct",
    "inode",
    "linux_binprm",
    "mm_struct",
    "mount",
    "path",
    "pid",
    "pt_regs",
    "qstr",
    "signal_struct",
    "super_block",
    "task_struct",
    "thread_info",
    "upid",
    "vfsmount",
];

const MAGIC: u16 = 0xeb9f;
const HEADER_BYTES: usize = 24;
const TYPE_BYTES: usize = 12;
/// A declaration without a body (BTF_KIND_FWD).
const FORWARD: u32 = 7 << 24;

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
}

/// The same BTF with every named structure outside of [`NAMED`] emptied.
pub fn trim(data: &[u8]) -> Result<Vec<u8>, BtfError> {
    let header = Header::parse(data)?;
    let (types, strings) = (header.types(data)?, header.strings(data)?);
    let mut kept = Vec::with_capacity(types.len() / 2);
    let mut at = 0;
    let mut number = 0;
    while at < types.len() {
        number += 1;
        let kind = Type::parse(types, at, number)?;
        let end = at + TYPE_BYTES + kind.extra_bytes;
        let whole = types.get(at..end).ok_or(BtfError::Cut { number })?;
        if kind.is_structure && kind.name != 0 && !is_wanted(strings, kind.name) {
            kept.extend_from_slice(&0u32.to_le_bytes());
            kept.extend_from_slice(&FORWARD.to_le_bytes());
            kept.extend_from_slice(&0u32.to_le_bytes());
        } else {
            kept.extend_from_slice(whole);
        }
        at = end;
    }
    Ok(header.with(&kept, strings))
}

struct Header {
    bytes: usize,
    types: (usize, usize),
    strings: (usize, usize),
}

impl Header {
    fn parse(data: &[u8]) -> Result<Header, BtfError> {
        let word = |at| word(data, at).map(|word| word as usize).ok_or(BtfError::Header);
        let magic = data.get(..2).map(|it| u16::from_le_bytes([it[0], it[1]]));
        let bytes = word(4)?;
        if magic != Some(MAGIC) || bytes < HEADER_BYTES {
            return Err(BtfError::Header);
        }
        Ok(Header { bytes, types: (word(8)?, word(12)?), strings: (word(16)?, word(20)?) })
    }

    fn section<'a>(&self, data: &'a [u8], (at, len): (usize, usize)) -> Result<&'a [u8], BtfError> {
        let start = self.bytes.checked_add(at).ok_or(BtfError::Header)?;
        let end = start.checked_add(len).ok_or(BtfError::Header)?;
        data.get(start..end).ok_or(BtfError::Header)
    }

    fn types<'a>(&self, data: &'a [u8]) -> Result<&'a [u8], BtfError> {
        self.section(data, self.types)
    }

    fn strings<'a>(&self, data: &'a [u8]) -> Result<&'a [u8], BtfError> {
        self.section(data, self.strings)
    }

    /// A BTF of these sections.
    fn with(&self, types: &[u8], strings: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + types.len() + strings.len());
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&[1, 0]);
        for word in [HEADER_BYTES, 0, types.len(), types.len(), strings.len()] {
            // Sections of a valid header fit into 32 bits, and trimming makes nothing longer.
            out.extend_from_slice(&(word as u32).to_le_bytes());
        }
        out.extend_from_slice(types);
        out.extend_from_slice(strings);
        out
    }
}

struct Type {
    name: u32,
    is_structure: bool,
    extra_bytes: usize,
}

impl Type {
    fn parse(types: &[u8], at: usize, number: u32) -> Result<Type, BtfError> {
        let name = word(types, at).ok_or(BtfError::Cut { number })?;
        let info = word(types, at + 4).ok_or(BtfError::Cut { number })?;
        let (kind, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        let extra_bytes = match kind {
            // int, var, declaration tag
            1 | 14 | 17 => 4,
            // array
            3 => 12,
            // struct, union, data section, enum64
            4 | 5 | 15 | 19 => 12 * members,
            // enum, function prototype
            6 | 13 => 8 * members,
            // pointer, forward, typedef, volatile, const, restrict, function, float, type tag
            2 | 7..=12 | 16 | 18 => 0,
            _ => return Err(BtfError::Kind { number, kind }),
        };
        Ok(Type { name, is_structure: matches!(kind, 4 | 5), extra_bytes })
    }
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

fn is_wanted(strings: &[u8], name: u32) -> bool {
    let rest = strings.get(name as usize..).unwrap_or_default();
    // Longer than any of ours is none of ours.
    let end = rest.iter().take(24).position(|byte| *byte == 0);
    end.is_some_and(|end| NAMED.binary_search_by(|known| known.as_bytes().cmp(&rest[..end])).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typ(name: u32, kind: u32, members: u32, last: u32) -> Vec<u8> {
        [name, kind << 24 | members, last].iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn btf(types: &[u8], strings: &[u8]) -> Vec<u8> {
        Header { bytes: HEADER_BYTES, types: (0, 0), strings: (0, 0) }.with(types, strings)
    }

    #[test]
    fn names_are_in_order() {
        assert!(NAMED.is_sorted(), "binary search needs them so");
    }

    #[test]
    fn a_structure_that_nobody_names_is_emptied_and_numbers_stay() {
        let strings = b"\0file\0page\0";
        let member: Vec<u8> = [1u32, 2, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
        let types =
            [typ(1, 4, 1, 8), member.clone(), typ(6, 4, 1, 8), member.clone(), typ(0, 5, 1, 8), member].concat();
        let trimmed = trim(&btf(&types, strings)).expect("valid");
        let expected = [&types[..24], &typ(0, 7, 0, 0), &types[48..]].concat();
        assert_eq!(trimmed, btf(&expected, strings));
    }

    #[test]
    fn what_is_no_btf_is_refused() {
        assert_eq!(trim(b""), Err(BtfError::Header));
        assert_eq!(trim(&[0; 64]), Err(BtfError::Header));
        assert_eq!(trim(&btf(&typ(0, 30, 0, 0), b"\0")), Err(BtfError::Kind { number: 1, kind: 30 }));
        assert_eq!(trim(&btf(&typ(0, 4, 9, 0), b"\0")), Err(BtfError::Cut { number: 1 }));
        assert_eq!(trim(&btf(&[0; 5], b"\0")), Err(BtfError::Cut { number: 1 }));
        let mut long = btf(&typ(0, 1, 0, 4), b"\0");
        long[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(trim(&long), Err(BtfError::Header));
    }

    #[test]
    fn the_running_kernels_types_are_trimmed_and_readable() {
        // Only kernels with CONFIG_DEBUG_INFO_BTF have it; the others cannot load the programs either.
        let Ok(data) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };
        let trimmed = trim(&data).expect("the kernel's own BTF is valid");
        assert!(trimmed.len() < data.len());
        aya::Btf::parse(&trimmed, aya::Endianness::default()).expect("aya reads it");
    }
}

//! The file that the kernel needs beside a program to start it: the interpreter of a script, the loader of a dynamic program.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Bytes of a program that are enough to find it, as linkers lay programs out.
pub const HEAD_BYTES: usize = 4096;

/// Program headers that are looked at; real programs have about a dozen.
const HEADERS_MAX: usize = 64;
const PT_INTERP: u32 = 3;

/// Finds it in the first bytes of a program. The bytes may be hostile: whatever they say, the answer is a name or nothing.
pub fn interpreter(head: &[u8]) -> Option<&Path> {
    let name = match head {
        [b'#', b'!', rest @ ..] => script(rest)?,
        [0x7f, b'E', b'L', b'F', class, 1, ..] => elf(head, *class == 2)?,
        _ => return None,
    };
    let path = Path::new(OsStr::from_bytes(name));
    path.is_absolute().then_some(path)
}

fn script(line: &[u8]) -> Option<&[u8]> {
    let end = line.iter().position(|byte| *byte == b'\n').unwrap_or(line.len());
    line[..end].trim_ascii_start().split(|byte| byte.is_ascii_whitespace() || *byte == 0).next()
}

/// elf(5): where the program headers are, their size and number, then the one that names the loader.
fn elf(head: &[u8], is_64: bool) -> Option<&[u8]> {
    let (offset, size, count) = if is_64 {
        (word(head, 32, 8)?, word(head, 54, 2)?, word(head, 56, 2)?)
    } else {
        (word(head, 28, 4)?, word(head, 42, 2)?, word(head, 44, 2)?)
    };
    for index in 0..count.min(HEADERS_MAX) {
        let at = index.checked_mul(size)?.checked_add(offset)?;
        if word(head, at, 4)? != PT_INTERP as usize {
            continue;
        }
        let (place, length) = if is_64 {
            (word(head, at.checked_add(8)?, 8)?, word(head, at.checked_add(32)?, 8)?)
        } else {
            (word(head, at.checked_add(4)?, 4)?, word(head, at.checked_add(16)?, 4)?)
        };
        let text = head.get(place..place.checked_add(length)?)?;
        return text.split(|byte| *byte == 0).next();
    }
    None
}

/// A little-endian number of `size` bytes.
fn word(head: &[u8], at: usize, size: usize) -> Option<usize> {
    let bytes = head.get(at..at.checked_add(size)?)?;
    let value = bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    usize::try_from(value).ok()
}

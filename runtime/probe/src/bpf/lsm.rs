//! What a hook of the security module saw.
//!
//! Input: a record of `ebpf/lsm.bpf.c`. Output: what the process did, or tried when the record has an error. The kernel knows the files
//! themselves here, so paths are those of files and not words of the caller.

use apex_core::event::What;
use apex_core::refusal::Access;

use super::decode::bounded;
use super::meaning::{address, opened};
use super::record::{Malformed, Record, lsm_body};

/// `__FMODE_EXEC`: the kernel opens a program.
const FOR_EXEC: u64 = 0x20;
const CLONE_NEWUSER: u64 = 0x1000_0000;

/// Reads a record of a hook.
pub fn what(record: &Record<'_>) -> Result<What, Malformed> {
    let words = record.body_bytes(lsm_body::words);
    let word = |at: usize| u64::from_le_bytes(words[at..at + 8].try_into().expect("eight of sixteen bytes"));
    let (first, second) = (word(0), word(8));
    let path = |index| bounded(record.text(index).to_text());
    Ok(match record.body(lsm_body::hook) {
        1 if first & FOR_EXEC != 0 => {
            What::Open { path: path(0), access: Access::Exec, create: false, truncate: false }
        }
        1 => opened(path(0), first),
        2 => What::Open { path: path(0), access: Access::Exec, create: false, truncate: false },
        3 => What::Mkdir { path: path(0) },
        4 => What::Unlink { path: path(0) },
        5 => What::Open { path: path(0), access: Access::Write, create: false, truncate: true },
        6 => What::Chmod { path: path(0), mode: first as u32 & 0o7777 },
        7 => What::Chown { path: path(0), owner: first as u32, group: second as u32 },
        8 => What::Symlink { target: path(1), path: path(0) },
        9 => What::Rename { from: path(0), to: path(1) },
        10 => What::Link { from: path(0), to: path(1) },
        11 => What::Connect { address: address(record.text(0).bytes()) },
        12 => What::Bind { address: address(record.text(0).bytes()) },
        13 => What::Ptrace { call: "ptrace".to_owned(), request: 0, target: first as u32 },
        14 => What::SetIds { call: "setuid".to_owned(), id: first as u32 },
        15 => What::Bpf { command: first as u32 },
        16 => What::Mount { call: "mount".to_owned(), target: path(0) },
        17 => What::Namespace { call: "unshare".to_owned(), flags: CLONE_NEWUSER },
        18 => What::Executable { call: "mprotect".to_owned(), address: first, length: second, writable: false },
        other => return Err(Malformed::Hook(other)),
    })
}

#[cfg(test)]
mod tests {
    use super::super::decode::decode;
    use super::super::record::{NAMES, RAW, bytes_of};
    use super::*;

    fn check(hook: u32, words: [u32; 2], texts: &[(u8, &[u8])], expected: What) {
        let body = [hook, 0, words[0], 0, words[1], 0];
        assert_eq!(decode(&bytes_of(30, &body, texts)).expect("well formed").what, expected, "hook {hook}");
    }

    #[test]
    fn hooks() {
        let file: &[(u8, &[u8])] = &[(NAMES, b"f\0tmp\0")];
        let path = || "/tmp/f".to_owned();
        let open = |access, create, truncate| What::Open { path: path(), access, create, truncate };
        check(1, [0o1101, 0], file, open(Access::Write, true, true));
        check(1, [0x20, 0], file, open(Access::Exec, false, false));
        check(2, [0, 0], file, open(Access::Exec, false, false));
        check(4, [0, 0], file, What::Unlink { path: path() });
        check(7, [5, 6], file, What::Chown { path: path(), owner: 5, group: 6 });
        let two: &[(u8, &[u8])] = &[(NAMES, b"f\0tmp\0"), (NAMES, b"g\0")];
        check(9, [0, 0], two, What::Rename { from: path(), to: "/g".to_owned() });
        let link: &[(u8, &[u8])] = &[(NAMES, b"f\0tmp\0"), (RAW, b"../x\0")];
        check(8, [0, 0], link, What::Symlink { target: "../x".to_owned(), path: path() });
        check(
            18,
            [4096, 8192],
            &[],
            What::Executable { call: "mprotect".to_owned(), address: 4096, length: 8192, writable: false },
        );
    }

    #[test]
    fn an_unknown_hook_is_refused() {
        assert_eq!(decode(&bytes_of(30, &[99], &[])), Err(Malformed::Hook(99)));
    }
}

//! What a recorded system call means.
//!
//! Input: a record with a call's arguments and operands. Output: what the process did. Paths are made absolute here: the caller's words after
//! the directory that they are relative to, `.` and `..` taken away without looking at any link.

use apex_core::event::{Address, What};
use apex_core::observe::{needs_how, targets};
use apex_core::refusal::Access;
use apex_core::seccomp::Abi;

use super::calls;
use super::decode::{bounded, named, words};
use super::record::{Malformed, Record, Text, call_body, header};

const O_ACCMODE: u64 = 0o3;
const O_CREAT: u64 = 0o100;
const O_TRUNC: u64 = 0o1000;
const O_PATH: u64 = 0o10_000_000;
/// O_TMPFILE without O_DIRECTORY, which it includes.
const O_TMPFILE: u64 = 0o20_000_000;
const PROT_WRITE: u64 = 2;

/// A call with its operands in words.
struct Call<'a> {
    abi: Abi,
    name: &'static str,
    args: [u64; 6],
    record: &'a Record<'a>,
}

/// Reads a record of a system call.
pub fn what(record: &Record<'_>) -> Result<What, Malformed> {
    let call = call(record)?;
    Ok(call.file().or_else(|| call.network()).unwrap_or_else(|| call.privilege()))
}

/// The name that a call opened, as it was asked for; only where the record has the file beside it.
pub fn asked(record: &Record<'_>) -> Option<What> {
    let is_opened = record.text(0).is_some() && record.text(1).is_some() && record.head(header::error) == 0;
    let path = named(record.text(0), record.text(3)).filter(|_| is_opened)?;
    Some(What::Look { path, follow: call(record).ok()?.follows() })
}

fn call<'a>(record: &'a Record<'a>) -> Result<Call<'a>, Malformed> {
    let index = record.head(header::call);
    let (abi, name) = calls::name_of(u32::from(index)).ok_or(Malformed::Call(index))?;
    if calls::row_of(name).is_none() {
        return Err(Malformed::Call(index));
    }
    let bytes = record.body_bytes(call_body::args);
    let mut args = [0; 6];
    for (arg, bytes) in args.iter_mut().zip(bytes.chunks_exact(8)) {
        *arg = u64::from_le_bytes(bytes.try_into().expect("chunks of eight"));
    }
    Ok(Call { abi, name, args, record })
}

impl Call<'_> {
    fn file(&self) -> Option<What> {
        Some(match self.name {
            "open" => self.open(self.args[1]),
            "openat" => self.open(self.args[2]),
            "openat2" => self.open(word64(self.words(1).bytes())),
            "creat" => self.open(O_CREAT | O_TRUNC | 1),
            "mkdir" | "mkdirat" => What::Mkdir { path: self.path(0) },
            "rename" | "renameat" | "renameat2" => What::Rename { from: self.path(0), to: self.path(1) },
            "unlink" | "unlinkat" | "rmdir" => What::Unlink { path: self.path(0) },
            "link" | "linkat" => What::Link { from: self.path(0), to: self.path(1) },
            "symlink" | "symlinkat" => What::Symlink { target: bounded(self.words(0).to_text()), path: self.path(1) },
            "chmod" | "fchmod" => What::Chmod { path: self.path(0), mode: self.args[1] as u32 & 0o7777 },
            "fchmodat" | "fchmodat2" => What::Chmod { path: self.path(0), mode: self.args[2] as u32 & 0o7777 },
            "chown" | "chown32" | "lchown" | "lchown32" | "fchown" | "fchown32" => self.chown(1),
            "fchownat" => self.chown(2),
            "truncate" | "truncate64" | "ftruncate" | "ftruncate64" => {
                What::Open { path: self.path(0), access: Access::Write, create: false, truncate: true }
            }
            // What the words started from is gone; they lead to where it is now.
            "chdir" if !self.words(0).bytes().starts_with(b"/") => {
                What::Look { path: bounded(self.record.text(1).to_text()), follow: false }
            }
            name if calls::LOOKS.iter().any(|row| row.name == name) => What::Look {
                path: named(self.words(0), self.record.text(1)).unwrap_or_default(),
                follow: self.follows(),
            },
            _ => return None,
        })
    }

    /// Whether a link at the end of its first path is followed.
    fn follows(&self) -> bool {
        let how = needs_how(self.name, &self.args).map(|_| word64(self.words(1).bytes()));
        targets(self.abi, self.name, &self.args, how).first().is_none_or(|target| target.follow)
    }

    fn network(&self) -> Option<What> {
        Some(match self.name {
            // The type carries flags in its upper bits.
            "socket" => What::Socket {
                family: self.args[0] as u32,
                kind: self.args[1] as u32 & 0xf,
                protocol: self.args[2] as u32,
            },
            "connect" => What::Connect { address: address(self.words(0).bytes()) },
            "bind" => What::Bind { address: address(self.words(0).bytes()) },
            _ => return None,
        })
    }

    fn privilege(&self) -> What {
        let call = self.name.to_owned();
        let args = self.args;
        match self.name {
            "execve" | "execveat" => {
                let (args, cut) = words(&self.words(1));
                What::program(self.path(0), args, cut)
            }
            "setuid" | "setgid" | "setreuid" | "setregid" | "setresuid" | "setresgid" | "setfsuid" | "setfsgid"
            | "setgroups" | "setuid32" | "setgid32" | "setreuid32" | "setregid32" | "setresuid32" | "setresgid32"
            | "setfsuid32" | "setfsgid32" | "setgroups32" => What::SetIds { call, id: args[0] as u32 },
            "capset" => What::Capset { effective: effective(self.words(0).bytes()) },
            "unshare" | "clone" => What::Namespace { call, flags: args[0] & u64::from(calls::NAMESPACES) },
            "setns" => What::Namespace { call, flags: args[1] & u64::from(calls::NAMESPACES) },
            "clone3" => What::Namespace { call, flags: word64(self.words(0).bytes()) & u64::from(calls::NAMESPACES) },
            "ptrace" => What::Ptrace { call, request: args[0], target: args[1] as u32 },
            "process_vm_readv" | "process_vm_writev" => What::Ptrace { call, request: 0, target: args[0] as u32 },
            "bpf" => What::Bpf { command: args[0] as u32 },
            "init_module" | "finit_module" | "delete_module" | "kexec_load" | "kexec_file_load" => {
                What::Module { call }
            }
            "memfd_create" => What::Memfd { name: bounded(self.words(0).to_text()) },
            "mmap" | "mmap2" | "mprotect" | "pkey_mprotect" => {
                What::Executable { call, address: args[0], length: args[1], writable: args[2] & PROT_WRITE != 0 }
            }
            "mount" | "umount" | "umount2" | "pivot_root" | "chroot" | "open_tree" | "move_mount" | "mount_setattr" => {
                What::Mount { call, target: self.path(0) }
            }
            "fsopen" | "fsmount" => What::Mount { call, target: bounded(self.words(0).to_text()) },
            "kill" | "tkill" | "rt_sigqueueinfo" => What::Signal { target: args[0] as i32, signal: args[1] as i32 },
            "tgkill" => What::Signal { target: args[0] as i32, signal: args[2] as i32 },
            // The descriptor says nothing to a reader: no process has the pid 0.
            "pidfd_send_signal" => What::Signal { target: 0, signal: args[1] as i32 },
            _ => What::Call { name: call, args },
        }
    }

    fn open(&self, flags: u64) -> What {
        let own = self.record.text(1);
        // The words come along where they may lead there over links.
        let is_opened = self.record.head(header::error) == 0 && own.is_some();
        opened(if is_opened { bounded(own.to_text()) } else { self.path(0) }, flags)
    }

    fn chown(&self, first: usize) -> What {
        What::Chown { path: self.path(0), owner: self.args[first] as u32, group: self.args[first + 1] as u32 }
    }

    /// What the caller gave as operand.
    fn words(&self, operand: usize) -> Text<'_> {
        self.record.text(2 * operand)
    }

    fn path(&self, operand: usize) -> String {
        let (directory, words) = (self.record.text(2 * operand + 1), self.words(operand));
        if !words.is_some() {
            // The file itself, as the kernel knows it.
            return if directory.is_some() { bounded(directory.to_text()) } else { String::new() };
        }
        let words = words.to_text();
        if words.starts_with('/') || !directory.is_some() {
            return bounded(plain(&words));
        }
        bounded(plain(&format!("{}/{words}", directory.to_text())))
    }
}

/// An open with these flags (open(2)).
pub fn opened(path: String, flags: u64) -> What {
    let access = match flags & O_ACCMODE {
        _ if flags & O_PATH != 0 => Access::Look,
        0 => Access::Read,
        _ => Access::Write,
    };
    What::Open { path, access, create: flags & (O_CREAT | O_TMPFILE) != 0, truncate: flags & O_TRUNC != 0 }
}

/// Without `.`, `..` and doubled slashes.
fn plain(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let is_absolute = path.starts_with('/');
    let joined = parts.join("/");
    if is_absolute { format!("/{joined}") } else { joined }
}

fn word64(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// The effective set of `struct __user_cap_data_struct[2]`.
fn effective(bytes: &[u8]) -> u64 {
    let word = |at: usize| bytes.get(at..at + 4).map_or(0, |it| u32::from_le_bytes([it[0], it[1], it[2], it[3]]));
    u64::from(word(0)) | u64::from(word(12)) << 32
}

/// A `struct sockaddr`; unnamed where the record has none.
pub fn address(bytes: &[u8]) -> Address {
    Address::from_bytes(bytes).unwrap_or(Address::Unnamed)
}

#[cfg(test)]
mod tests {
    use apex_core::seccomp::Abi;

    use super::super::decode::decode;
    use super::super::record::{NAMES, RAW, bytes_of_call};
    use super::*;

    fn read(abi: Abi, name: &str, args: [u64; 6], texts: &[(u8, &[u8])]) -> What {
        let number = abi.call_number(name).expect("a call") as u16;
        let index = if abi == Abi::I386 { 512 + number } else { number };
        // Readers think of a directory first; the record has it last.
        let pairs = texts.chunks(2).flat_map(|pair| [pair.get(1).copied().unwrap_or(NONE), pair[0]]);
        decode(&bytes_of_call(index, args, &pairs.collect::<Vec<_>>())).expect("well formed").what
    }

    fn check(name: &str, args: [u64; 6], texts: &[(u8, &[u8])], expected: What) {
        assert_eq!(read(Abi::X86_64, name, args, texts), expected, "{name}");
    }

    fn open(path: &str, access: Access, create: bool, truncate: bool) -> What {
        What::Open { path: path.to_owned(), access, create, truncate }
    }

    const NONE: (u8, &[u8]) = (0, b"");

    #[test]
    fn opens() {
        let etc: &[(u8, &[u8])] = &[(NAMES, b"passwd\0etc\0")];
        check("open", [0; 6], etc, open("/etc/passwd", Access::Read, false, false));
        check("openat", [0, 0, 0o1101, 0, 0, 0], etc, open("/etc/passwd", Access::Write, true, true));
        check("openat", [0, 0, O_PATH, 0, 0, 0], etc, open("/etc/passwd", Access::Look, false, false));
        check("creat", [0; 6], etc, open("/etc/passwd", Access::Write, true, true));
        let how = [0o102u64.to_le_bytes(), [0; 8], [0; 8]].concat();
        let texts: &[(u8, &[u8])] = &[(NAMES, b"x\0"), NONE, NONE, (RAW, &how)];
        check("openat2", [0; 6], texts, open("/x", Access::Write, true, false));
    }

    #[test]
    fn names_are_made_absolute() {
        let texts: &[(u8, &[u8])] = &[(NAMES, b"home\0"), (RAW, b"../etc/./shadow\0")];
        check("mkdirat", [0; 6], texts, What::Mkdir { path: "/etc/shadow".to_owned() });
        let texts: &[(u8, &[u8])] = &[NONE, (RAW, b"/a//b\0"), (NAMES, b""), (RAW, b"c\0")];
        check("rename", [0; 6], texts, What::Rename { from: "/a/b".to_owned(), to: "/c".to_owned() });
        let texts: &[(u8, &[u8])] = &[NONE, (RAW, b"../target\0"), (NAMES, b"tmp\0"), (RAW, b"link\0")];
        let symlink = What::Symlink { target: "../target".to_owned(), path: "/tmp/link".to_owned() };
        check("symlinkat", [0; 6], texts, symlink);
        // An empty name with AT_EMPTY_PATH is the directory's descriptor itself.
        let texts: &[(u8, &[u8])] = &[(NAMES, b"f\0tmp\0"), (RAW, b"\0")];
        let chown = What::Chown { path: "/tmp/f".to_owned(), owner: 5, group: u32::MAX };
        check("fchownat", [0, 0, 5, u64::from(u32::MAX), 0, 0], texts, chown);
    }

    #[test]
    fn what_was_opened_over_links_is_told_by_both_names() {
        let number = |name| Abi::X86_64.call_number(name).expect("a call") as u16;
        let look = |path: &str, follow| Some(What::Look { path: path.to_owned(), follow });
        for (flags, words, start, expected) in [
            (0u64, "../l/./x\0", "w\0srv\0", look("/srv/w/../l/x", true)),
            (0, "/l/x\0", "", look("/l/x", true)),
            (O_PATH | 0o400_000, "l\0", "", look("/l", false)),
            // By its own name.
            (0, "/r/x\0", "", None),
        ] {
            let start = if start.is_empty() { NONE } else { (NAMES, start.as_bytes()) };
            let texts = [(RAW, words.as_bytes()), (NAMES, b"x\0r\0".as_slice()), NONE, start];
            let record = bytes_of_call(number("openat"), [0, 0, flags, 0, 0, 0], &texts);
            let event = decode(&record).expect("well formed");
            assert!(matches!(&event.what, What::Open { path, .. } if path == "/r/x"), "{event:?}");
            assert_eq!(super::super::decode::asked(&record, &event).map(|look| look.what), expected, "{words}");
        }
    }

    #[test]
    fn looks_are_told_as_they_were_asked_for() {
        let look = |path: &str, follow| What::Look { path: path.to_owned(), follow };
        let texts: &[(u8, &[u8])] = &[(NAMES, b"w\0srv\0"), (RAW, b"../l/x\0")];
        check("newfstatat", [0; 6], texts, look("/srv/w/../l/x", true));
        check("newfstatat", [0, 0, 0, 0x100, 0, 0], texts, look("/srv/w/../l/x", false));
        check("readlinkat", [0; 6], texts, look("/srv/w/../l/x", false));
        // Its end is all that is left of a relative one.
        check("chdir", [0; 6], &[(NAMES, b"r\0"), (RAW, b"l\0")], look("/r", false));
        check("chdir", [0; 6], &[NONE, (RAW, b"/l\0")], look("/l", true));
    }

    #[test]
    fn a_name_that_could_not_be_read_is_empty() {
        check("unlink", [0; 6], &[NONE, (RAW | 0x40, b"")], What::Unlink { path: String::new() });
    }

    #[test]
    fn addresses() {
        let unix = |bytes: &[u8]| [&[1, 0], bytes].concat();
        let connect = |address| What::Connect { address };
        check("connect", [0; 6], &[NONE, (RAW, &unix(b"/run/x\0\0"))], connect(Address::Unix("/run/x".to_owned())));
        check("connect", [0; 6], &[NONE, (RAW, &unix(b"\0bus"))], connect(Address::Abstract("bus".to_owned())));
        check("connect", [0; 6], &[NONE, (RAW, &unix(b""))], connect(Address::Unnamed));
        check("connect", [0; 6], &[NONE, (RAW | 0x40, b"")], connect(Address::Unnamed));
        check("bind", [0; 6], &[NONE, (RAW, &[16, 0, 1])], What::Bind { address: Address::Family(16) });
        check("socket", [1, 0o2_000_001, 0, 0, 0, 0], &[], What::Socket { family: 1, kind: 1, protocol: 0 });
    }

    #[test]
    fn privileges() {
        let call = |name: &str| name.to_owned();
        let exec = What::program("/tmp/a".to_owned(), vec!["a".to_owned(), "-x".to_owned()], true);
        check("execveat", [0; 6], &[(NAMES, b"tmp\0"), (RAW, b"a\0"), NONE, (RAW | 0x40, b"a\0-x\0")], exec);
        check("setresuid", [7, 8, 9, 0, 0, 0], &[], What::SetIds { call: call("setresuid"), id: 7 });
        let sets = [1u32, 0, 0, 2, 0, 0].map(u32::to_le_bytes).concat();
        check("capset", [0; 6], &[NONE, (RAW, &sets)], What::Capset { effective: 1 | 2 << 32 });
        let user = 0x1000_0000u64;
        check("clone", [user | 17, 0, 0, 0, 0, 0], &[], What::Namespace { call: call("clone"), flags: user });
        let clone3: &[(u8, &[u8])] = &[NONE, (RAW, &user.to_le_bytes())];
        check("clone3", [0; 6], clone3, What::Namespace { call: call("clone3"), flags: user });
        check("memfd_create", [0; 6], &[NONE, (RAW, b"code\0")], What::Memfd { name: "code".to_owned() });
        let memory = What::Executable { call: call("mmap"), address: 0, length: 4096, writable: true };
        check("mmap", [0, 4096, 7, 0x22, 0, 0], &[], memory);
        check("tgkill", [5, 6, 9, 0, 0, 0], &[], What::Signal { target: 5, signal: 9 });
        check("kill", [u64::from(u32::MAX), 15, 0, 0, 0, 0], &[], What::Signal { target: -1, signal: 15 });
        check("keyctl", [1, 2, 3, 4, 5, 6], &[], What::Call { name: call("keyctl"), args: [1, 2, 3, 4, 5, 6] });
    }

    #[test]
    fn calls_of_32_bit_programs_are_read_by_their_own_numbers() {
        let texts: &[(u8, &[u8])] = &[(NAMES, b"f\0")];
        assert_eq!(read(Abi::I386, "open", [0, 0o1101, 0, 0, 0, 0], texts), open("/f", Access::Write, true, true));
        let ids = What::SetIds { call: "setuid32".to_owned(), id: 3 };
        assert_eq!(read(Abi::I386, "setuid32", [3, 0, 0, 0, 0, 0], &[]), ids);
    }

    #[test]
    fn a_call_that_nobody_asked_for_is_refused() {
        for index in [39, 511, 5000] {
            assert_eq!(decode(&bytes_of_call(index, [0; 6], &[])), Err(Malformed::Call(index)));
        }
    }

    #[test]
    fn every_row_has_a_meaning() {
        for row in calls::ROWS.iter().chain(calls::LOOKS) {
            for index in row.indices() {
                let record = bytes_of_call(index as u16, [0; 6], &[]);
                assert!(decode(&record).is_ok(), "{}", row.name);
            }
        }
    }
}

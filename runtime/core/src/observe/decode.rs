//! What a system call does, from its registers and the memory of its caller.
//!
//! Input: name, ABI and argument registers of a call whose caller is stopped, and a [`Caller`] to read from. Output: events. Pure, so that
//! every source that sees registers tells the same. The caller's other threads can change the memory before the kernel reads it: what
//! comes out describes, and must never be turned into an answer.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::absolute;
use super::call::{Target, needs_how, targets};
use super::dns;
use crate::event::{Address, TEXT_BYTES_MAX, What};
use crate::policy::normalise;
use crate::refusal::Access;
use crate::seccomp::Abi;
use crate::seccomp::trace::{CHOSEN, LOOKS, NEW_NAMESPACES};

/// Longest socket address that the kernel takes (`struct sockaddr_storage`).
const ADDRESS_BYTES_MAX: u32 = 128;
/// Datagrams of one sendmmsg(2) that are looked at.
const DATAGRAMS_MAX: u64 = 16;
/// Parts of one message that are looked at.
const PARTS_MAX: u64 = 8;
/// Arguments, and bytes of one, of a program that is to be executed: as many as the kernel's probes look at.
const EXEC_ARGS_MAX: usize = 32;
const EXEC_ARG_BYTES_MAX: usize = 255;
/// The bits of a mode that chmod(2) sets.
const MODE: u32 = 0o7777;
/// CLONE_NEWTIME, which clone(2) has no bit for.
const NEW_TIME: u64 = 0x80;

/// A call that is about to be carried out.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// ABI that it came by.
    pub abi: Abi,
    /// Its name in that ABI.
    pub name: &'a str,
    /// Its argument registers.
    pub args: [u64; 6],
}

/// The caller of a call, stopped.
pub trait Caller {
    /// Exactly `length` bytes of its memory.
    fn bytes(&mut self, address: u64, length: usize) -> Option<Vec<u8>>;
    /// Bytes of its memory up to a NUL, which does not come along; `None` without one within the kernel's limit on paths.
    fn text(&mut self, address: u64) -> Option<Vec<u8>>;
    /// The file of a descriptor as the caller's root names it; `None` as descriptor for the working directory.
    fn file(&mut self, fd: Option<i32>) -> Option<PathBuf>;
    /// The process that a pidfd of its refers to, as it numbers it.
    fn process_of(&mut self, pidfd: i32) -> Option<i32>;
    /// Its own pid, as it numbers it.
    fn own_pid(&mut self) -> Option<i32>;
    /// What a socket of its is connected to, and whether that is a stream.
    fn peer(&mut self, fd: i32) -> Option<(Address, bool)>;
}

/// The caller's memory or descriptors did not give what the call names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

type Decoded = Result<Option<What>, Unreadable>;

/// Appends what a call does to `events`; nothing for a call that is no event.
///
/// # Errors
/// What the call names could not be read.
pub fn decode(call: &Call<'_>, caller: &mut dyn Caller, events: &mut Vec<What>) -> Result<(), Unreadable> {
    match call.name {
        "socketcall" => {
            let Some(inner) = socketcall(call, caller)? else { return Ok(()) };
            decode(&inner, caller, events)
        }
        "sendto" => sendto(call, caller, events),
        "sendmsg" => datagram(call, caller, call.args[1], events),
        "sendmmsg" => sendmmsg(call, caller, events),
        _ => {
            events.extend(one(call, caller)?);
            Ok(())
        }
    }
}

/// The name that a call looks at or opens, as it was asked for; nothing for other calls, and for a descriptor's own file.
pub fn look(call: &Call<'_>, caller: &mut dyn Caller) -> Decoded {
    let opens = matches!(call.name, "open" | "openat" | "openat2" | "creat");
    if !opens && !LOOKS.contains(&call.name) {
        return Ok(None);
    }
    let how = match needs_how(call.name, &call.args) {
        Some(address) => Some(words_at(caller, address, 8, 1)?[0]),
        None => None,
    };
    let Some(target) = targets(call.abi, call.name, &call.args, how).into_iter().next() else { return Ok(None) };
    let name = caller.text(target.address).ok_or(Unreadable)?;
    if name.is_empty() {
        return Ok(None);
    }
    let base = if name.starts_with(b"/") { None } else { caller.file(target.dirfd) };
    Ok(Some(What::Look { path: asked(base.as_deref(), &name), follow: target.follow }))
}

/// A name as it was asked for, made absolute: links are not followed in it, and where `..` leads depends on them.
pub fn asked(base: Option<&Path>, name: &[u8]) -> String {
    let base = base.unwrap_or(Path::new("/"));
    cut(&absolute(base, Path::new(OsStr::from_bytes(name))))
}

/// Puts in what only the result tells. `value` is what the call returned.
pub fn complete(what: &mut What, value: u64) {
    if let What::Executable { call, address, .. } = what
        && call.starts_with("mmap")
    {
        *address = value;
    }
}

fn one(call: &Call<'_>, caller: &mut dyn Caller) -> Decoded {
    let [a, b, c, ..] = call.args;
    let name = || call.name.to_owned();
    Ok(Some(match call.name {
        "execve" => execution(call.abi, caller, (None, a), b),
        "execveat" => execution(call.abi, caller, (descriptor(a), b), c),
        "socket" => What::Socket { family: a as u32, kind: b as u32 & 0xf, protocol: c as u32 },
        "connect" => What::Connect { address: address(caller, b, c)? },
        "bind" => What::Bind { address: address(caller, b, c)? },
        "ptrace" => What::Ptrace { call: name(), request: a, target: b as u32 },
        "process_vm_readv" | "process_vm_writev" => What::Ptrace { call: name(), request: 0, target: a as u32 },
        "bpf" => What::Bpf { command: a as u32 },
        "init_module" | "finit_module" | "delete_module" | "kexec_load" | "kexec_file_load" => {
            What::Module { call: name() }
        }
        "memfd_create" => What::Memfd { name: words(&caller.text(a).ok_or(Unreadable)?) },
        "capset" => What::Capset { effective: effective(caller, a, b)? },
        "clone" | "clone3" | "unshare" | "setns" => return namespace(call, caller),
        "mmap" | "mmap2" | "mprotect" | "pkey_mprotect" => return executable(call, caller),
        "kill" | "tkill" | "tgkill" | "pidfd_send_signal" | "rt_sigqueueinfo" | "rt_tgsigqueueinfo" => {
            return Ok(signal(call, caller));
        }
        other if is_set_ids(other) => What::SetIds { call: name(), id: a as u32 },
        other if is_mount(other) => What::Mount { call: name(), target: mount_target(call, caller)? },
        other if CHOSEN.contains(&other) => What::Call { name: name(), args: call.args },
        _ => return file(call, caller),
    }))
}

/// A program that is to be executed. What cannot be read is left out: the call will fail for it, or the caller may not be read because it is
/// about to become the sandbox's command.
fn execution(abi: Abi, caller: &mut dyn Caller, (dirfd, name): (Option<i32>, u64), argv: u64) -> What {
    let path = path(caller, dirfd, name).unwrap_or_default();
    let word = word_bytes(abi);
    let (mut args, mut cut) = (Vec::new(), false);
    for index in 0..=EXEC_ARGS_MAX {
        let pointer = words_at(caller, argv.wrapping_add(index as u64 * word), word, 1);
        let Some(at) = pointer.ok().map(|got| got[0]).filter(|at| *at != 0) else { break };
        let text = if index < EXEC_ARGS_MAX { caller.text(at) } else { None };
        let Some(text) = text else {
            cut = true;
            break;
        };
        args.push(words(&text[..text.len().min(EXEC_ARG_BYTES_MAX)]));
        cut |= text.len() > EXEC_ARG_BYTES_MAX;
    }
    What::program(path, args, cut)
}

fn is_set_ids(name: &str) -> bool {
    let name = name.strip_suffix("32").unwrap_or(name);
    matches!(
        name,
        "setuid"
            | "setgid"
            | "setreuid"
            | "setregid"
            | "setresuid"
            | "setresgid"
            | "setfsuid"
            | "setfsgid"
            | "setgroups"
    )
}

fn is_mount(name: &str) -> bool {
    matches!(
        name,
        "mount"
            | "chroot"
            | "umount"
            | "umount2"
            | "move_mount"
            | "open_tree"
            | "fsmount"
            | "fsopen"
            | "mount_setattr"
            | "pivot_root"
    )
}

fn mount_target(call: &Call<'_>, caller: &mut dyn Caller) -> Result<String, Unreadable> {
    let [a, b, c, d, ..] = call.args;
    match call.name {
        "mount" => path(caller, None, b),
        "umount" | "umount2" | "pivot_root" | "chroot" => path(caller, None, a),
        "move_mount" => path(caller, descriptor(c), d),
        "open_tree" | "mount_setattr" => path(caller, descriptor(a), b),
        "fsopen" => Ok(words(&caller.text(a).ok_or(Unreadable)?)),
        _ => Ok(String::new()),
    }
}

/// The system call behind i386's one call for all of sockets (linux/net.h), with its arguments from memory.
fn socketcall<'a>(call: &Call<'_>, caller: &mut dyn Caller) -> Result<Option<Call<'a>>, Unreadable> {
    let (name, count) = match call.args[0] {
        1 => ("socket", 3),
        2 => ("bind", 3),
        3 => ("connect", 3),
        // send(2): without an address.
        9 => ("sendto", 4),
        11 => ("sendto", 6),
        16 => ("sendmsg", 3),
        20 => ("sendmmsg", 4),
        _ => return Ok(None),
    };
    let mut args = [0; 6];
    for (slot, word) in args.iter_mut().zip(words_at(caller, call.args[1], 4, count)?) {
        *slot = word;
    }
    Ok(Some(Call { abi: call.abi, name, args }))
}

fn sendto(call: &Call<'_>, caller: &mut dyn Caller, events: &mut Vec<What>) -> Result<(), Unreadable> {
    let [fd, at, bytes, _, name, length] = call.args;
    let to = if name == 0 { None } else { Some(address(caller, name, length)?) };
    let payload = if may_ask(to.as_ref()) { caller.bytes(at, room(bytes)) } else { None }.unwrap_or_default();
    sent(caller, Sent { fd, to, bytes, payload }, events);
    Ok(())
}

/// What goes out.
struct Sent {
    fd: u64,
    /// Without an address the socket's own peer gets it, which connect named.
    to: Option<Address>,
    bytes: u64,
    /// Its beginning, where it may be a question; empty where it cannot be read, which the call will fail for.
    payload: Vec<u8>,
}

/// Whether what goes there may be a question to a name server: each part of it costs a read of the caller's memory.
fn may_ask(to: Option<&Address>) -> bool {
    to.is_none_or(is_server)
}

fn is_server(address: &Address) -> bool {
    address.inet().is_some_and(|(_, port)| port == dns::PORT)
}

/// A datagram to an address, and a question to a name server wherever it goes. Whoever a connected socket belongs to is only asked for what is a
/// question: most of what is sent is none.
fn sent(caller: &mut dyn Caller, sent: Sent, events: &mut Vec<What>) {
    let Sent { fd, to, bytes, payload } = sent;
    let is_question = || [false, true].into_iter().any(|tcp| dns::question(&payload, tcp).is_some());
    let server = match &to {
        Some(address) => Some((address.clone(), false)),
        None if is_question() => caller.peer(fd as u32 as i32),
        None => None,
    };
    if let Some(address) = to {
        let datagram = What::Send { address, bytes };
        if events.last() != Some(&datagram) {
            events.push(datagram);
        }
    }
    if let Some((address, tcp)) = server
        && is_server(&address)
    {
        events.push(dns::event(address, bytes, &payload, tcp));
    }
}

fn room(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX).min(dns::PAYLOAD_BYTES_MAX)
}

/// A `struct msghdr`: where its name stands, how long it is, and its parts.
fn datagram(call: &Call<'_>, caller: &mut dyn Caller, header: u64, events: &mut Vec<What>) -> Result<(), Unreadable> {
    let word = word_bytes(call.abi);
    let words = words_at(caller, header, word, 4)?;
    let [name, length, parts, count] = words[..] else { return Err(Unreadable) };
    // The length has 32 bits and is padded where words have 64.
    let to = if name == 0 { None } else { Some(address(caller, name, u64::from(length as u32))?) };
    let parts = words_at(caller, parts, word, 2 * count.min(PARTS_MAX) as usize).unwrap_or_default();
    let bytes = parts.chunks_exact(2).fold(0u64, |bytes, part| bytes.saturating_add(part[1]));
    let mut payload = Vec::new();
    for part in parts.chunks_exact(2).filter(|_| may_ask(to.as_ref())) {
        let wanted = room(part[1]).min(dns::PAYLOAD_BYTES_MAX - payload.len());
        if wanted > 0 {
            payload.extend(caller.bytes(part[0], wanted).unwrap_or_default());
        }
    }
    sent(caller, Sent { fd: call.args[0], to, bytes, payload }, events);
    Ok(())
}

fn sendmmsg(call: &Call<'_>, caller: &mut dyn Caller, events: &mut Vec<What>) -> Result<(), Unreadable> {
    // `struct mmsghdr` is seven words and a count.
    let size = 8 * word_bytes(call.abi);
    let count = u64::from(call.args[2] as u32).min(DATAGRAMS_MAX);
    (0..count).try_for_each(|index| datagram(call, caller, call.args[1].wrapping_add(index * size), events))
}

fn namespace(call: &Call<'_>, caller: &mut dyn Caller) -> Decoded {
    let [a, b, ..] = call.args;
    let all = u64::from(NEW_NAMESPACES) | NEW_TIME;
    let flags = match call.name {
        // Its low byte is a signal.
        "clone" => a & u64::from(NEW_NAMESPACES),
        "clone3" => words_at(caller, a, 8, 1)?[0] & all,
        "unshare" => a & all,
        _ => return Ok(Some(What::Namespace { call: call.name.to_owned(), flags: b & all })),
    };
    Ok((flags != 0).then(|| What::Namespace { call: call.name.to_owned(), flags }))
}

fn executable(call: &Call<'_>, caller: &mut dyn Caller) -> Decoded {
    const WRITE: u64 = 2;
    const EXEC: u64 = 4;
    const ANONYMOUS: u64 = 0x20;
    let mut args = call.args;
    // i386's first mmap has its arguments in memory.
    if call.name == "mmap" && call.abi == Abi::I386 {
        for (slot, word) in args.iter_mut().zip(words_at(caller, call.args[0], 4, 6)?) {
            *slot = word;
        }
    }
    let [address, length, protection, flags, ..] = args;
    let is_map = call.name.starts_with("mmap");
    let becomes = protection & EXEC != 0 && (!is_map || flags & ANONYMOUS != 0);
    let writable = protection & WRITE != 0;
    Ok(becomes.then(|| What::Executable { call: call.name.to_owned(), address, length, writable }))
}

/// A signal to another process; one to oneself is no event.
fn signal(call: &Call<'_>, caller: &mut dyn Caller) -> Option<What> {
    let [a, b, c, ..] = call.args.map(|word| word as u32 as i32);
    let (target, signal) = match call.name {
        "tgkill" | "rt_tgsigqueueinfo" => (a, c),
        "pidfd_send_signal" => (caller.process_of(a).unwrap_or(0), b),
        _ => (a, b),
    };
    // 0 asks whether the process is there.
    (signal != 0 && caller.own_pid() != Some(target)).then_some(What::Signal { target, signal })
}

fn effective(caller: &mut dyn Caller, header: u64, data: u64) -> Result<u64, Unreadable> {
    /// `_LINUX_CAPABILITY_VERSION_1`, whose sets have 32 bits.
    const NARROW: u64 = 0x1998_0330;
    let version = words_at(caller, header, 4, 1)?[0];
    if version == NARROW {
        return Ok(words_at(caller, data, 4, 1)?[0]);
    }
    let sets = words_at(caller, data, 4, 4)?;
    Ok(sets[0] | sets[3] << 32)
}

fn file(call: &Call<'_>, caller: &mut dyn Caller) -> Decoded {
    let [a, b, c, d, ..] = call.args;
    match call.name {
        "fchmod" => return Ok(Some(What::Chmod { path: opened(caller, a)?, mode: b as u32 & MODE })),
        "ftruncate" | "ftruncate64" => {
            let path = opened(caller, a)?;
            return Ok(Some(What::Open { path, access: Access::Write, create: false, truncate: true }));
        }
        "fchown" | "fchown32" => {
            return Ok(Some(What::Chown { path: opened(caller, a)?, owner: b as u32, group: c as u32 }));
        }
        _ => {}
    }
    let how = match needs_how(call.name, &call.args) {
        Some(address) => Some(words_at(caller, address, 8, 1)?[0]),
        None => None,
    };
    let named = targets(call.abi, call.name, &call.args, how);
    let Some(first) = named.first() else { return Ok(None) };
    let second = named.get(1);
    let mut path_of = |target: &Target| path(caller, target.dirfd, target.address);
    let word = |value: u64| value as u32;
    Ok(Some(match (call.name, second) {
        ("open" | "creat" | "openat" | "openat2", _) => {
            let flags = flags_of(call, how);
            What::Open {
                path: path_of(first)?,
                access: first.access,
                create: flags & (super::call::open::CREAT | super::call::open::TMPFILE) != 0,
                truncate: flags & super::call::open::TRUNC != 0,
            }
        }
        ("truncate" | "truncate64", _) => {
            What::Open { path: path_of(first)?, access: Access::Write, create: false, truncate: true }
        }
        ("mkdir" | "mkdirat", _) => What::Mkdir { path: path_of(first)? },
        ("unlink" | "unlinkat" | "rmdir", _) => What::Unlink { path: path_of(first)? },
        ("rename" | "renameat" | "renameat2", Some(second)) => {
            What::Rename { from: path_of(first)?, to: path_of(second)? }
        }
        ("link" | "linkat", Some(second)) => What::Link { from: path_of(first)?, to: path_of(second)? },
        ("symlink" | "symlinkat", _) => {
            let path = path_of(first)?;
            What::Symlink { target: words(&caller.text(a).ok_or(Unreadable)?), path }
        }
        ("chmod", _) => What::Chmod { path: path_of(first)?, mode: word(b) & MODE },
        ("fchmodat" | "fchmodat2", _) => What::Chmod { path: path_of(first)?, mode: word(c) & MODE },
        ("fchownat", _) => What::Chown { path: path_of(first)?, owner: word(c), group: word(d) },
        ("chown" | "chown32" | "lchown" | "lchown32", _) => {
            What::Chown { path: path_of(first)?, owner: word(b), group: word(c) }
        }
        _ => return Ok(None),
    }))
}

fn flags_of(call: &Call<'_>, how: Option<u64>) -> u64 {
    match call.name {
        "open" => call.args[1],
        "openat" => call.args[2],
        "creat" => super::call::open::CREAT | super::call::open::TRUNC,
        _ => how.unwrap_or(0),
    }
}

/// The path at an address, absolute where it can be told from where it starts.
fn path(caller: &mut dyn Caller, dirfd: Option<i32>, address: u64) -> Result<String, Unreadable> {
    let text = caller.text(address).ok_or(Unreadable)?;
    let named = Path::new(OsStr::from_bytes(&text));
    if named.is_absolute() {
        return Ok(cut(&normalise(named)));
    }
    let base = caller.file(dirfd);
    Ok(match base {
        Some(base) if text.is_empty() => cut(&base),
        Some(base) => cut(&normalise(&Path::new("/").join(base).join(named))),
        None => words(&text),
    })
}

fn opened(caller: &mut dyn Caller, fd: u64) -> Result<String, Unreadable> {
    caller.file(Some(fd as u32 as i32)).map(|path| cut(&path)).ok_or(Unreadable)
}

fn descriptor(register: u64) -> Option<i32> {
    const AT_FDCWD: i32 = -100;
    Some(register as u32 as i32).filter(|fd| *fd != AT_FDCWD)
}

fn address(caller: &mut dyn Caller, at: u64, length: u64) -> Result<Address, Unreadable> {
    let length = (length as u32).min(ADDRESS_BYTES_MAX) as usize;
    if length == 0 {
        return Ok(Address::Unnamed);
    }
    Address::from_bytes(&caller.bytes(at, length).ok_or(Unreadable)?).ok_or(Unreadable)
}

fn word_bytes(abi: Abi) -> u64 {
    match abi {
        Abi::X86_64 | Abi::Aarch64 => 8,
        Abi::I386 => 4,
    }
}

fn words_at(caller: &mut dyn Caller, address: u64, size: u64, count: usize) -> Result<Vec<u64>, Unreadable> {
    let size = size as usize;
    let bytes = caller.bytes(address, size * count).ok_or(Unreadable)?;
    let word = |part: &[u8]| part.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
    Ok(bytes.chunks_exact(size).map(word).collect())
}

/// A path as the words of an event.
pub fn cut(path: &Path) -> String {
    words(path.as_os_str().as_bytes())
}

/// Bytes as the words of an event: no longer than [`TEXT_BYTES_MAX`], and U+FFFD for what is no UTF-8.
pub fn words(bytes: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(&bytes[..bytes.len().min(TEXT_BYTES_MAX)]).into_owned();
    // A replaced byte is three.
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests;

//! What /proc and the memory of a stopped thread tell about it.
//!
//! Everything read is bounded. A process is stopped while it is looked at, but its siblings are not: what comes out describes.

use std::fs::{self, File, Metadata};
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use apex_core::event::{ARGS_MAX, Address, Stream, What};
use apex_core::observe::decode::{self, Caller, cut, words};
use apex_sys::net;
use apex_sys::process::{self, Pid};
use nix::libc;

/// Longest path that the kernel takes, its NUL included (PATH_MAX).
const PATH_BYTES_MAX: usize = 4096;
const PAGE_BYTES: u64 = 4096;
/// Most bytes of a command line that are read.
const CMDLINE_BYTES_MAX: u64 = 128 << 10;
/// Most bytes of an auxiliary vector: some twenty pairs of words.
const AUXV_BYTES_MAX: u64 = 4096;
/// What the kernel appends to the name of a file that has none any more.
const DELETED: &[u8] = b" (deleted)";

/// Who a process is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Pid of the process that the thread belongs to.
    pub process: Pid,
    /// Its parent.
    pub parent: Pid,
    /// Real user id as the host numbers it.
    pub uid: u32,
    /// Name.
    pub comm: String,
    /// Its pid as it numbers it itself.
    pub own_pid: i32,
}

/// Looks up a thread; `None` when it is gone.
pub fn identity(thread: Pid) -> Option<Identity> {
    let bytes = fs::read(format!("/proc/{thread}/status")).ok()?;
    parse(&String::from_utf8_lossy(&bytes))
}

fn parse(status: &str) -> Option<Identity> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let process = field("Tgid")?.parse().ok()?;
    Some(Identity {
        process,
        parent: field("PPid")?.parse().ok()?,
        uid: field("Uid")?.split_whitespace().next()?.parse().ok()?,
        comm: unescape(status.lines().next()?.strip_prefix("Name:")?.strip_prefix('\t')?),
        own_pid: field("NStgid").and_then(|list| list.split_whitespace().next_back()?.parse().ok()).unwrap_or(process),
    })
}

/// The kernel writes a newline and a backslash in a name as two characters.
fn unescape(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    let mut left = name.chars();
    while let Some(letter) = left.next() {
        match letter {
            '\\' => match left.next() {
                Some('n') => text.push('\n'),
                other => text.extend(other),
            },
            _ => text.push(letter),
        }
    }
    text
}

/// The program that a process has just begun to execute; `None` when it is gone.
pub fn program(pid: Pid) -> Option<What> {
    let link = format!("/proc/{pid}/exe");
    let path = fs::read_link(&link).ok()?;
    // A file without any name left: memfd, O_TMPFILE, removed. Its name alone could be made to look like that.
    let fileless = fs::metadata(&link).is_ok_and(|about| about.nlink() == 0);
    let name = path.as_os_str().as_bytes();
    let name = if fileless { name.strip_suffix(DELETED).unwrap_or(name) } else { name };
    let (args, cut) = arguments(pid);
    let path = words(name);
    let asked = asked(pid).filter(|asked| *asked != path);
    let (input, output) = (look_at_stream(pid, 0), look_at_stream(pid, 1));
    let stdin = match &input {
        Ok(about) => Some(stdin(pid, about)),
        Err(error) => (error.kind() == ErrorKind::NotFound).then_some(Stream::Closed),
    };
    let pipe = |about: std::io::Result<Metadata>| about.ok().filter(|it| it.file_type().is_fifo()).map(|it| it.ino());
    let (stdin_pipe, stdout_pipe) = (pipe(input), pipe(output));
    Some(What::Exec { path, args, asked, cut, fileless, stdin, stdin_pipe, stdout_pipe })
}

fn look_at_stream(pid: Pid, number: u8) -> std::io::Result<Metadata> {
    fs::metadata(format!("/proc/{pid}/fd/{number}"))
}

fn stdin(pid: Pid, about: &Metadata) -> Stream {
    let socket = socket(pid, 0);
    let ask = |name| socket.as_ref().and_then(|socket| net::option(socket.as_fd(), name).ok());
    let family = ask(libc::SO_DOMAIN).and_then(|family| u32::try_from(family).ok()).unwrap_or(0);
    let device = (libc::major(about.rdev()), libc::minor(about.rdev()));
    Stream::of(about.mode(), device, family, ask(libc::SO_ACCEPTCONN) == Some(1))
}

/// The file as it was asked to be executed: the kernel leaves the name of the call with the new program (AT_EXECFN, getauxval(3)).
fn asked(pid: Pid) -> Option<String> {
    const AT_EXECFN: u64 = 31;
    let mut vector = Vec::new();
    File::open(format!("/proc/{pid}/auxv")).ok()?.take(AUXV_BYTES_MAX).read_to_end(&mut vector).ok()?;
    let find = |width: usize| {
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        let mut pairs = vector.chunks_exact(2 * width).map(|pair| (word(&pair[..width]), word(&pair[width..])));
        pairs.find(|(key, _)| *key == AT_EXECFN).map(|(_, value)| value)
    };
    // Words are as wide as the program's; the halves of wide ones name nothing of this number.
    let address = find(8).or_else(|| find(4))?;
    let mut caller = Stopped { thread: pid, own_pid: pid };
    let name = caller.text(address)?;
    // What was executed by its descriptor has no other name.
    let descriptor = name.strip_prefix(b"/dev/fd/").and_then(|fd| std::str::from_utf8(fd).ok()?.parse().ok());
    match descriptor {
        Some(fd) => opened(pid, fd),
        None if name.starts_with(b"/") => Some(decode::asked(None, &name)),
        None => Some(decode::asked(Some(&caller.file(None)?), &name)),
    }
}

fn arguments(pid: Pid) -> (Vec<String>, bool) {
    let mut bytes = Vec::new();
    let read = File::open(format!("/proc/{pid}/cmdline"))
        .and_then(|file| file.take(CMDLINE_BYTES_MAX).read_to_end(&mut bytes));
    let is_whole = read.is_ok() && (bytes.len() as u64) < CMDLINE_BYTES_MAX;
    let list = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
    if list.is_empty() && bytes.is_empty() {
        return (Vec::new(), !is_whole);
    }
    let mut parts = list.split(|byte| *byte == 0);
    let args: Vec<&[u8]> = parts.by_ref().take(ARGS_MAX).collect();
    let is_cut = !is_whole || parts.next().is_some() || args.iter().any(|arg| words(arg).len() < arg.len());
    (args.into_iter().map(words).collect(), is_cut)
}

/// The file that a descriptor of a thread stands for, if it has a name.
pub fn opened(thread: Pid, fd: i64) -> Option<String> {
    link(thread, &format!("fd/{fd}")).map(|path| cut(&path))
}

/// A copy of a socket of a thread. It is held for a moment only: were the thread to close its own meanwhile, the end of the connection would be
/// ours to wait for.
fn socket(thread: Pid, fd: i32) -> Option<OwnedFd> {
    let target = fs::read_link(format!("/proc/{thread}/fd/{fd}")).ok()?;
    if !target.as_os_str().as_bytes().starts_with(b"socket:") {
        return None;
    }
    // A thread that is not the first of its process has no pidfd of its own; all share their descriptors.
    let process = identity(thread)?.process;
    let pidfd = process::pidfd_open(process).ok()?;
    process::pidfd_getfd(pidfd.as_fd(), fd).ok()
}

/// Where a magic link of a thread leads, in the words of its own mount namespace.
fn link(thread: Pid, name: &str) -> Option<PathBuf> {
    let target = fs::read_link(format!("/proc/{thread}/{name}")).ok()?;
    let is_named = target.is_absolute() && !target.as_os_str().as_bytes().ends_with(DELETED);
    is_named.then_some(target)
}

/// A thread that is stopped before a call.
pub struct Stopped {
    /// It.
    pub thread: Pid,
    /// Its process as it numbers itself.
    pub own_pid: i32,
}

impl Caller for Stopped {
    fn bytes(&mut self, address: u64, length: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; length];
        let count = process::read_memory(self.thread, address, &mut bytes).ok()?;
        (count == length).then_some(bytes)
    }

    fn text(&mut self, address: u64) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        while text.len() < PATH_BYTES_MAX {
            let from = address.checked_add(text.len() as u64)?;
            // To the end of the page: what is beyond may not be there.
            let room = (PAGE_BYTES - from % PAGE_BYTES) as usize;
            let part = self.bytes(from, room.min(PATH_BYTES_MAX - text.len()))?;
            if let Some(end) = part.iter().position(|byte| *byte == 0) {
                text.extend(&part[..end]);
                return Some(text);
            }
            text.extend(part);
        }
        None
    }

    fn file(&mut self, fd: Option<i32>) -> Option<PathBuf> {
        match fd {
            None => link(self.thread, "cwd"),
            Some(number) => link(self.thread, &format!("fd/{number}")),
        }
    }

    fn process_of(&mut self, pidfd: i32) -> Option<i32> {
        let info = fs::read_to_string(Path::new("/proc").join(format!("{}/fdinfo/{pidfd}", self.thread))).ok()?;
        let line = info.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        line.split_whitespace().next_back()?.parse().ok()
    }

    fn own_pid(&mut self) -> Option<i32> {
        Some(self.own_pid)
    }

    fn peer(&mut self, fd: i32) -> Option<(Address, bool)> {
        let socket = socket(self.thread, fd)?;
        let address = Address::from_bytes(&net::peer(socket.as_fd()).ok()?)?;
        let is_stream = net::option(socket.as_fd(), libc::SO_TYPE) == Ok(libc::SOCK_STREAM);
        Some((address, is_stream))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_whatever_the_name() {
        let status = "Name:\ta\\nTgid:\\\\b\nUmask:\t0022\nTgid:\t41\nNgid:\t0\nPid:\t42\nPPid:\t7\nUid:\t1000\t0\t0\t0\nNStgid:\t41\t2\n";
        let identity = parse(status).unwrap();
        assert_eq!(identity.comm, "a\nTgid:\\b");
        assert_eq!((identity.process, identity.parent, identity.uid, identity.own_pid), (41, 7, 1000, 2));
        assert_eq!(parse("Name:\tx\n"), None);
    }

    #[test]
    fn the_own_process_is_found_with_its_program() {
        let own = std::process::id() as Pid;
        assert_eq!(identity(own).unwrap().process, own);
        let Some(What::Exec { path, args, fileless, .. }) = program(own) else { panic!("it runs") };
        assert_eq!(Path::new(&path), std::env::current_exe().unwrap());
        assert!(!fileless && !args.is_empty());
        assert_eq!(identity(0), None);
    }

    #[test]
    fn memory_is_read_up_to_a_nul_or_not_at_all() {
        let mut caller = Stopped { thread: std::process::id() as Pid, own_pid: 1 };
        let text = b"/etc/passwd\0rest";
        assert_eq!(caller.text(text.as_ptr() as u64).as_deref(), Some(&b"/etc/passwd"[..]));
        let endless = vec![b'a'; 3 * PATH_BYTES_MAX];
        assert_eq!(caller.text(endless.as_ptr() as u64), None);
        assert_eq!(caller.text(0), None);
        assert_eq!(caller.bytes(u64::MAX - 3, 8), None);
    }
}

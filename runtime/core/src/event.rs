//! What was seen of a running sandbox: one [`Event`] for one thing that one of its processes did.
//!
//! Whatever the source (kernel probes, ptrace, the listener of the system call filter), the event is the same: detectors, learning,
//! summaries and `--events` know nothing of sources. An event is one line of JSON; such lines are read back by `backtest`.
//!
//! Names in an event were chosen by the sandbox. Bytes that are no UTF-8 become U+FFFD, texts are cut at [`TEXT_BYTES_MAX`] and lists at
//! [`ARGS_MAX`]: an event describes, it never identifies a file for enforcement.

mod address;
mod errno;
#[cfg(test)]
mod reference;
mod stream;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use address::Address;
pub use errno::Errno;
pub use stream::Stream;

use crate::refusal::Access;
use crate::watch::{Family, Level, Source};

/// Longest text in an event, in bytes.
pub const TEXT_BYTES_MAX: usize = 4096;
/// Most arguments of an exec that are kept.
pub const ARGS_MAX: usize = 64;

/// One thing that happened in a sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Nanoseconds since boot (CLOCK_BOOTTIME); [`What::Start`] tells the wall clock of one of them.
    pub time_ns: u64,
    /// The sandbox: id of its cgroup where it has one of its own, else the pid of its init.
    pub sandbox: u64,
    /// Process (thread group) that did it, as the host numbers it. 0 for events of the watch itself.
    pub pid: u32,
    /// Its parent.
    pub ppid: u32,
    /// Its user id as the host numbers it.
    pub uid: u32,
    /// Its name (`/proc/PID/comm`).
    pub comm: String,
    /// What it did.
    #[serde(flatten)]
    pub what: What,
    /// The error that it got; `None` when it succeeded or when the source sees the attempt alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Errno>,
}

/// What a process did. Paths are those inside the sandbox, absolute where the source could tell the directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum What {
    /// The watch began. The first line of a record.
    Start(Box<Start>),
    /// The watch ended. The last line of a record.
    End(Box<End>),

    /// A child was born (fork, vfork, clone without CLONE_THREAD).
    Fork {
        /// Its pid.
        child: u32,
    },
    /// A program was executed, or was to be: then `error` says why it was not.
    Exec {
        /// The program's file, links followed; what the caller named when it failed.
        path: String,
        /// Arguments, the first included.
        args: Vec<String>,
        /// The file as it was asked to be executed, where that is not the program's own path: a script, or a name that leads over links.
        /// Links are not followed in it, and `..` stays.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        asked: Option<String>,
        /// Whether arguments were cut.
        #[serde(default, skip_serializing_if = "is_false")]
        cut: bool,
        /// Whether the file has no name any more or never had one (memfd, O_TMPFILE, deleted).
        #[serde(default, skip_serializing_if = "is_false")]
        fileless: bool,
        /// Its standard input: `closed`, `inet`, `listener` (a socket that waits for connections), `unix`, `pipe`, `terminal`, `file`, `null` or
        /// `other`. Not told when it failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stdin: Option<Stream>,
        /// The inode of the pipe that its standard input is: who writes into it has the same as `stdout_pipe`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stdin_pipe: Option<u64>,
        /// The inode of the pipe that its standard output is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stdout_pipe: Option<u64>,
    },
    /// The last thread of a process ended.
    Exit {
        /// Code, when it exited.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<i32>,
        /// Signal, when one ended it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
    },

    /// A socket was made (socket(2)).
    Socket {
        /// AF_*.
        family: u32,
        /// SOCK_* without flags.
        kind: u32,
        /// Protocol number.
        protocol: u32,
    },
    /// connect(2), or the first datagram to an address without one.
    Connect {
        /// The other end.
        address: Address,
    },
    /// A datagram to an address (sendto, sendmsg).
    Send {
        /// The other end.
        address: Address,
        /// Bytes, where the source knows them.
        #[serde(default, skip_serializing_if = "is_zero")]
        bytes: u64,
    },
    /// A packet to port 53, the port of name servers. Retransmissions are packets of their own.
    Dns {
        /// The server.
        address: Address,
        /// Bytes of the message, without the packet's headers.
        bytes: u64,
        /// The name asked for; empty when the packet holds no question that can be read. Bytes that are no printable ASCII stand
        /// as `\DDD`, a dot within a label as `\.` (RFC 1035, 5.1).
        #[serde(default, skip_serializing_if = "String::is_empty")]
        qname: String,
        /// What is asked about it (1 A, 16 TXT, 28 AAAA ...); 0 without a readable question.
        #[serde(default, skip_serializing_if = "is_zero")]
        qtype: u64,
        /// Whether it went over TCP.
        #[serde(default, skip_serializing_if = "is_false")]
        tcp: bool,
    },
    /// bind(2).
    Bind {
        /// The own end.
        address: Address,
    },
    /// Bytes on the network since the last such event, of the whole sandbox.
    Traffic {
        /// Received.
        received_bytes: u64,
        /// Sent.
        sent_bytes: u64,
    },

    /// A file was opened or created.
    Open {
        /// The file.
        path: String,
        /// What for. `look` is O_PATH.
        access: Access,
        /// Whether O_CREAT was given. An open for reading and writing counts as one for writing.
        #[serde(default, skip_serializing_if = "is_false")]
        create: bool,
        /// Whether O_TRUNC was given (or truncate(2)).
        #[serde(default, skip_serializing_if = "is_false")]
        truncate: bool,
    },
    /// A name was looked at (stat, access, readlink, chdir and their kin), or led over links to a file that was opened. Only successes, each name
    /// once, and only in a run that is learned from.
    Look {
        /// The name as it was asked for: links are not followed in it, and `..` stays.
        path: String,
        /// Whether a link at its end was followed.
        follow: bool,
    },
    /// A directory was made.
    Mkdir {
        /// The directory.
        path: String,
    },
    /// A name was moved.
    Rename {
        /// Old name.
        from: String,
        /// New name.
        to: String,
    },
    /// A name was removed (unlink, rmdir).
    Unlink {
        /// The name.
        path: String,
    },
    /// A second name was made (link).
    Link {
        /// The file.
        from: String,
        /// Its new name.
        to: String,
    },
    /// A symbolic link was made.
    Symlink {
        /// What it says.
        target: String,
        /// Where it stands.
        path: String,
    },
    /// Permissions were changed.
    Chmod {
        /// The file.
        path: String,
        /// New bits, as in st_mode.
        mode: u32,
    },
    /// The owner was changed.
    Chown {
        /// The file.
        path: String,
        /// User id as the caller gave it; 4294967295 leaves it.
        owner: u32,
        /// Group id likewise.
        group: u32,
    },

    /// Ids were changed (setuid and its kin).
    SetIds {
        /// Name of the call.
        call: String,
        /// Its first argument.
        id: u32,
    },
    /// Capabilities were changed.
    Capset {
        /// Effective set asked for, as a mask.
        effective: u64,
    },
    /// Namespaces were made or entered (unshare, setns, clone with such flags).
    Namespace {
        /// Name of the call.
        call: String,
        /// CLONE_NEW* flags.
        flags: u64,
    },
    /// Another process was traced, or its memory was read or written.
    Ptrace {
        /// Name of the call (`ptrace`, `process_vm_readv`, `process_vm_writev`).
        call: String,
        /// PTRACE_* request; 0 for the other calls.
        request: u64,
        /// The pid that the caller named, as it numbers it.
        target: u32,
    },
    /// bpf(2).
    Bpf {
        /// BPF_* command.
        command: u32,
    },
    /// A kernel module or another kernel was to be loaded or removed.
    Module {
        /// Name of the call.
        call: String,
    },
    /// A file without a name was made (memfd_create).
    Memfd {
        /// The name given to it.
        name: String,
    },
    /// Memory became executable (mprotect, mmap of anonymous memory, pkey_mprotect).
    Executable {
        /// Name of the call.
        call: String,
        /// Address.
        address: u64,
        /// Bytes.
        length: u64,
        /// Whether it is writable as well.
        writable: bool,
    },
    /// Something was mounted, moved or unmounted.
    Mount {
        /// Name of the call.
        call: String,
        /// Target, where the call names one.
        target: String,
    },
    /// A signal was sent to another process (kill, tkill, tgkill, pidfd_send_signal).
    Signal {
        /// The pid that the caller named, as it numbers it.
        target: i32,
        /// The signal.
        signal: i32,
    },
    /// A system call of the chosen few that has no shape of its own.
    Call {
        /// Its name.
        name: String,
        /// Its argument registers.
        args: [u64; 6],
    },
    /// How often each system call was made since the last such event, by the whole sandbox. `count` of nothing else.
    Calls {
        /// By name.
        counts: BTreeMap<String, u64>,
    },
    /// A layer refused something; `error` says with what.
    Refused(Box<Refused>),
    /// Events that were not recorded, since the last such event.
    Lost {
        /// Why and how many.
        counts: BTreeMap<Loss, u64>,
    },
}

/// What the listener of the system call filter saw refused or reported.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    /// Name of the call, or `number N`.
    pub call: String,
    /// ABI that it came by.
    pub abi: String,
    /// Its argument registers.
    pub args: [u64; 6],
    /// Whether it was carried out all the same (the policy only reports it).
    #[serde(default, skip_serializing_if = "is_false")]
    pub reported: bool,
}

/// Why an event was not recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// The ring buffer between kernel and reader was full.
    RingFull,
    /// The sandbox made more events than its rate limit lets through.
    RateLimited,
    /// A queue of the reader was full.
    QueueFull,
    /// The record could not be read (memory of the caller gone, malformed).
    Unreadable,
}

impl Loss {
    /// In words.
    pub const fn words(self) -> &'static str {
        match self {
            Loss::RingFull => "the buffer between kernel and prober was full",
            Loss::RateLimited => "beyond the sandbox's rate limit",
            Loss::QueueFull => "a queue was full",
            Loss::Unreadable => "they could not be read",
        }
    }
}

/// The head of a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// Version of the shape of events, [`VERSION`].
    pub version: u32,
    /// Wall clock (nanoseconds since 1970 UTC) at the event's `time_ns`.
    pub wall_time_ns: u64,
    /// Mode.
    pub mode: String,
    /// Profile, when one was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// SHA-256 of the plan.
    pub plan_sha256: String,
    /// The command as given.
    pub command: Vec<String>,
    /// Level asked for.
    pub level: Level,
    /// Where each family's events come from; a family that is not watched says why.
    pub sources: BTreeMap<Family, Source>,
}

/// The tail of a record.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// Events recorded, the first and this one included.
    pub events: u64,
    /// Events lost, by reason, over the whole run.
    pub lost: BTreeMap<Loss, u64>,
    /// Findings.
    pub findings: u64,
}

/// Version of the shape of events.
pub const VERSION: u32 = 1;

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

impl What {
    /// A program of which only its name and its arguments are known.
    pub const fn program(path: String, args: Vec<String>, cut: bool) -> What {
        let (asked, fileless, stdin, stdin_pipe, stdout_pipe) = (None, false, None, None, None);
        What::Exec { path, args, asked, cut, fileless, stdin, stdin_pipe, stdout_pipe }
    }

    /// The kind, as the key `event` of its line tells it.
    pub const fn name(&self) -> &'static str {
        match self {
            What::Start(_) => "start",
            What::End(_) => "end",
            What::Fork { .. } => "fork",
            What::Exec { .. } => "exec",
            What::Exit { .. } => "exit",
            What::Socket { .. } => "socket",
            What::Connect { .. } => "connect",
            What::Send { .. } => "send",
            What::Dns { .. } => "dns",
            What::Bind { .. } => "bind",
            What::Traffic { .. } => "traffic",
            What::Open { .. } => "open",
            What::Look { .. } => "look",
            What::Mkdir { .. } => "mkdir",
            What::Rename { .. } => "rename",
            What::Unlink { .. } => "unlink",
            What::Link { .. } => "link",
            What::Symlink { .. } => "symlink",
            What::Chmod { .. } => "chmod",
            What::Chown { .. } => "chown",
            What::SetIds { .. } => "set-ids",
            What::Capset { .. } => "capset",
            What::Namespace { .. } => "namespace",
            What::Ptrace { .. } => "ptrace",
            What::Bpf { .. } => "bpf",
            What::Module { .. } => "module",
            What::Memfd { .. } => "memfd",
            What::Executable { .. } => "executable",
            What::Mount { .. } => "mount",
            What::Signal { .. } => "signal",
            What::Call { .. } => "call",
            What::Calls { .. } => "calls",
            What::Refused(_) => "refused",
            What::Lost { .. } => "lost",
        }
    }
}

impl Event {
    /// Whether it must not be dropped while there is any room: births, programs, ends, and the watch's own words.
    pub fn is_essential(&self) -> bool {
        match self.what {
            What::Exec { .. } => self.error.is_none(),
            What::Fork { .. } | What::Exit { .. } | What::Start(_) | What::End(_) | What::Lost { .. } => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(what: What) -> Event {
        Event { time_ns: 5, sandbox: 77, pid: 12, ppid: 11, uid: 1000, comm: "job".to_owned(), what, error: None }
    }

    #[test]
    fn an_event_is_one_flat_line_and_comes_back() {
        let open =
            event(What::Open { path: "/etc/passwd".to_owned(), access: Access::Read, create: false, truncate: false });
        let open = Event { error: Some(Errno::EACCES), ..open };
        let line = serde_json::to_string(&open).expect("an event is representable");
        assert_eq!(
            line,
            r#"{"time_ns":5,"sandbox":77,"pid":12,"ppid":11,"uid":1000,"comm":"job","event":"open","path":"/etc/passwd","access":"read","error":"EACCES"}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&line).expect("own output is readable"), open);
    }

    #[test]
    fn boxed_shapes_are_flat_too() {
        let refused = event(What::Refused(Box::new(Refused {
            call: "mount".to_owned(),
            abi: "x86_64".to_owned(),
            args: [0; 6],
            reported: false,
        })));
        let line = serde_json::to_string(&refused).expect("an event is representable");
        assert!(line.contains(r#""event":"refused","call":"mount""#), "{line}");
        assert_eq!(serde_json::from_str::<Event>(&line).expect("own output is readable"), refused);
    }

    #[test]
    fn maps_with_enum_keys_come_back() {
        let lost = event(What::Lost { counts: BTreeMap::from([(Loss::RingFull, 3)]) });
        let line = serde_json::to_string(&lost).expect("an event is representable");
        assert!(line.contains(r#""counts":{"ring-full":3}"#), "{line}");
        assert_eq!(serde_json::from_str::<Event>(&line).expect("own output is readable"), lost);
    }
}

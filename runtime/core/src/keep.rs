//! What the daemon and the keeper of a sandbox say to each other.
//!
//! A keeper is an `apex-run` with `--keep`: the process that holds one sandbox, for as long as that lives, whatever becomes of the daemon. It
//! gets a listening `SOCK_SEQPACKET` socket and serves one connection at a time, a new one in place of the old. Each packet is one JSON value,
//! [`ToKeeper`] one way and [`FromKeeper`] the other, of at most [`PACKET_BYTES_MAX`] bytes. Every request gets exactly one answer, in order: [`FromKeeper::Done`],
//! [`FromKeeper::Refused`], [`FromKeeper::Used`], [`FromKeeper::Costs`] or [`FromKeeper::Streams`]. [`FromKeeper::Terminal`] and [`FromKeeper::SpawnedEnded`] come unasked; so does
//! [`FromKeeper::Standing`], at the start of a connection or as soon as it
//! is so, and [`FromKeeper::Ended`] as the last word, which is written to the keeper's result file as well: a daemon that was away reads it there.
//!
//! With `--defer` the command's process waits, sealed, until [`ToKeeper::Start`] brings its arguments. Until then the sandbox belongs to whoever had it
//! made: the loss of its connection, which was made before the keeper was, ends it.

use serde::{Deserialize, Serialize};

use crate::control::{Limits, Shut};
use crate::summary::ProbeCost;

/// Largest packet.
pub const PACKET_BYTES_MAX: usize = 128 << 10;

/// The daemon to the keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub enum ToKeeper {
    /// Hand out the descriptors that you hold for me: the ends of the command's streams.
    Streams,
    /// Start the command that was put off.
    Start {
        /// Its arguments, its name the first.
        arguments: Vec<String>,
        /// Rows and columns of its terminal, where it has one.
        size: Option<(u16, u16)>,
        /// What of the descriptors to let go first, as [`ToKeeper::LetGo`] says.
        let_go: Vec<usize>,
    },
    /// Pass a signal to the command.
    Signal {
        /// Its number.
        number: i32,
    },
    /// Stop every process, or let them go on.
    Freeze {
        /// Whether they are to stand still.
        frozen: bool,
    },
    /// Change limits.
    Limit {
        /// To these; what is absent is unlimited from now on.
        limits: Limits,
    },
    /// Cut the network off, or give it back.
    Cut {
        /// Whether it is to be cut.
        cut: bool,
    },
    /// Refuse these calls from now on, and no others.
    Shut {
        /// Which.
        shut: Shut,
    },
    /// Close one of the descriptors that you hold for me: a pipe has its end only when nobody keeps it open.
    LetGo {
        /// Its place in the order in which they were handed over, from 0.
        index: usize,
    },
    /// Start one more command. Its three standard streams come along.
    Spawn {
        /// What it is called from now on.
        number: i32,
        /// Its arguments, its name the first.
        arguments: Vec<String>,
        /// Variables, `K=V`, beside and instead of those that the sandbox's command got.
        environment: Vec<String>,
        /// Where it starts, instead of where the command did.
        workdir: Option<String>,
        /// Whether it gets a terminal instead of the streams.
        terminal: bool,
        /// Its rows and columns.
        size: Option<(u16, u16)>,
    },
    /// Pass a signal to one of those.
    SignalSpawned {
        /// Which.
        number: i32,
        /// The signal.
        signal: i32,
    },
    /// End the sandbox.
    Kill,
    /// Tell what it uses.
    Use,
    /// Tell what each kernel probe has cost that watches it.
    Costs,
}

/// The keeper to the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub enum FromKeeper {
    /// Every layer is in force, and the command starts now, or has started, or waits for its arguments.
    Standing(Standing),
    /// It is done.
    Done {
        /// What, in words.
        words: String,
    },
    /// It is not.
    Refused {
        /// What stood in the way.
        words: String,
    },
    /// What the sandbox uses.
    Used(Box<Usage>),
    /// What its probes have cost; none where there are none, or the kernel does not measure.
    Costs {
        /// Those that ran.
        probes: Vec<ProbeCost>,
    },
    /// The descriptors come along that are still held, in the order in which they were handed over.
    Streams {
        /// Of each that was handed over, whether it is held.
        open: Vec<bool>,
    },
    /// A terminal: its other end comes along.
    Terminal {
        /// Of which command that was started later; `None` for the sandbox's own.
        spawned: Option<i32>,
    },
    /// A command that was started later has ended.
    SpawnedEnded {
        /// Which.
        number: i32,
        /// Its exit code, 128 + n for signal n.
        code: u8,
        /// In words: `exited`, `signal 9`, `failed`.
        how: String,
        /// Why it was never executed.
        words: Option<String>,
    },
    /// The sandbox is gone, or never came to be.
    Ended(Ended),
}

/// A sandbox that stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Pid of its init, as the host numbers it.
    pub init: u32,
    /// What it was planned with: no dial goes beyond.
    pub limits: Limits,
    /// Whether it has a cgroup through which limits can be changed.
    pub has_limits: bool,
    /// Whether it has the host's network.
    pub has_network: bool,
    /// Whether kernel probes watch it, which can cut its network off.
    pub has_network_dial: bool,
    /// Whether its policy has system calls that are carried out and reported; an earlier keeper does not tell.
    #[serde(default)]
    pub has_reported: bool,
    /// Whether it can be frozen.
    pub has_freezer: bool,
    /// Mode of its policy.
    pub mode: String,
    /// Mailboxes of its policy; keepers of an earlier version have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mailboxes: Vec<crate::mail::Rule>,
}

/// What a sandbox uses at this moment, and what it met since its start; `None` for what this host does not count, or a keeper of an earlier version does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub tasks: Option<u64>,
    /// Microseconds of CPU since its start.
    pub cpu_us: Option<u64>,
    /// Most bytes that were ever used at once.
    pub memory_peak_bytes: Option<u64>,
    /// Of the memory, bytes in private directories and in what processes share: it does not go with a process.
    pub memory_shared_bytes: Option<u64>,
    /// How often the kernel had to reclaim, or refuse, because the limit of memory was reached.
    pub memory_limit_hits: Option<u64>,
    /// Processes that the kernel killed because of it.
    pub oom_kills: Option<u64>,
    /// Forks and clones refused because the limit of tasks was reached.
    pub tasks_refused: Option<u64>,
    /// Periods in which CPU time was asked for under a limit, and of those the ones in which it ran out.
    pub cpu_periods: Option<u64>,
    /// See there.
    pub cpu_throttled_periods: Option<u64>,
    /// Microseconds that processes waited for the next period, all processors together.
    pub cpu_throttled_us: Option<u64>,
    /// Bytes from storage since its start.
    pub io_read_bytes: Option<u64>,
    /// Bytes to storage.
    pub io_written_bytes: Option<u64>,
    /// Bytes that came in over a network of its own, its loopback included; `None` with the network of the host.
    pub network_received_bytes: Option<u64>,
    /// Bytes that went out.
    pub network_sent_bytes: Option<u64>,
}

/// How a sandbox ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Exit code of `apex-run`, as it is without a daemon.
    pub code: u8,
    /// In words: `exited`, `signal 9`, `time`, `memory`, `finding`, `failed`.
    pub how: String,
    /// What went wrong, when Apex failed.
    pub words: Option<String>,
    /// Nanoseconds since the epoch.
    pub time_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_back_from_their_text() {
        let check = |said: FromKeeper| {
            let text = serde_json::to_string(&said).expect("representable");
            assert!(text.len() < PACKET_BYTES_MAX);
            assert_eq!(serde_json::from_str::<FromKeeper>(&text).expect("own text"), said);
        };
        check(FromKeeper::Standing(Standing {
            init: 7,
            limits: Limits { memory_bytes: Some(1), tasks: None, cpu_percent: Some(100) },
            has_limits: true,
            has_network: false,
            has_network_dial: false,
            has_reported: true,
            has_freezer: true,
            mode: "isolation".to_owned(),
            mailboxes: Vec::new(),
        }));
        check(FromKeeper::Ended(Ended { code: 137, how: "memory".to_owned(), words: None, time_ns: 5 }));
        let said = ToKeeper::Limit { limits: Limits { tasks: Some(3), ..Limits::default() } };
        let text = serde_json::to_string(&said).expect("representable");
        assert_eq!(text, r#"{"say":"limit","limits":{"memory_bytes":null,"tasks":3,"cpu_percent":null}}"#);
        assert_eq!(serde_json::from_str::<ToKeeper>(&text).expect("own text"), said);
        let strange = r#"{"say":"limit","limits":{"disk":1}}"#;
        assert!(serde_json::from_str::<ToKeeper>(strange).is_err(), "what is not understood is not half done");
    }
}

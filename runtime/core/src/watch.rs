//! Watching a sandbox: what can be asked for, where it comes from, and what `apex-run` and the prober say to each other.
//!
//! The prober (`apex-probe`) is a process of its own beside the sandbox. It is started by `apex-run --watch` with one end of a
//! `SOCK_SEQPACKET` pair as descriptor [`SOCKET_FD`]. Each packet is one JSON value, [`ToProbe`] one way and [`FromProbe`] the other, of at
//! most [`PACKET_BYTES_MAX`] bytes. Order: `Begin`, `Prepared`, `Sandbox`, `Watching`, then `Refused` and `Act` as they come, `Ended`, `Done`.
//! Between `Sandbox` and `Watching` the command's process waits, sealed: nothing of it runs before it is watched.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::control::Shut;
use crate::event::{Errno, Loss, Refused, Start};
use crate::finding::Severity;
use crate::learn::Setting;
use crate::summary::ProbeCost;

/// The prober's descriptor of the socket.
pub const SOCKET_FD: i32 = 3;
/// Largest packet.
pub const PACKET_BYTES_MAX: usize = 64 << 10;

/// How much is watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing.
    #[default]
    Off,
    /// What can be had without a hook on every system call of the host.
    Default,
    /// All families.
    Full,
}

impl Level {
    /// Whether nothing is watched.
    pub fn is_off(&self) -> bool {
        *self == Level::Off
    }

    /// The name in output.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Off => "off",
            Level::Default => "default",
            Level::Full => "full",
        }
    }
}

/// A family of hooks, loaded and reported on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Births, programs, ends.
    Process,
    /// Sockets, connections, bytes.
    Network,
    /// Every system call, counted.
    Syscall,
    /// Files and names.
    File,
    /// Linux security module hooks: files and privilege with enforcement.
    Lsm,
    /// Ids, capabilities, namespaces, tracing, executable memory.
    Privilege,
    /// What the system call filter refused.
    Refusal,
}

impl Family {
    /// All of them.
    pub const ALL: [Family; 7] = [
        Family::Process,
        Family::Network,
        Family::Syscall,
        Family::File,
        Family::Lsm,
        Family::Privilege,
        Family::Refusal,
    ];

    /// The name in output.
    pub const fn name(self) -> &'static str {
        match self {
            Family::Process => "process",
            Family::Network => "network",
            Family::Syscall => "syscall",
            Family::File => "file",
            Family::Lsm => "lsm",
            Family::Privilege => "privilege",
            Family::Refusal => "refusal",
        }
    }
}

/// Where a family's events come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "kebab-case")]
pub enum Source {
    /// BPF programs in the kernel.
    Probe,
    /// ptrace, with a filter that stops at the calls of interest.
    Ptrace,
    /// The listener of the system call filter.
    Listener,
    /// Not watched.
    Missing {
        /// Why, and what to do.
        reason: String,
    },
}

/// What is done on a finding of severity high or above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reaction {
    /// It is told.
    #[default]
    Warn,
    /// Every process of the sandbox is stopped until somebody thaws or ends it.
    Freeze,
    /// The sandbox is ended.
    Kill,
    /// Network and resources are cut to what it has.
    Tighten,
}

impl Reaction {
    /// The name in output and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Reaction::Warn => "warn",
            Reaction::Freeze => "freeze",
            Reaction::Kill => "kill",
            Reaction::Tighten => "tighten",
        }
    }

    /// The least severity that is reacted to.
    pub const LEAST: Severity = Severity::High;
}

/// What is done with the baseline of a run's profile and policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Baseline {
    /// The run is neither judged nor learned from.
    Off,
    /// It is judged.
    Alert,
    /// It is judged, if there is enough to judge by, and learned from.
    Learn,
}

/// Where events and findings go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sink {
    /// A file, appended to; made with mode 0600 when it is not there.
    File(String),
    /// Standard output, between what the command writes there.
    Stdout,
    /// Standard error.
    Stderr,
    /// systemd-journald.
    Journald,
    /// syslog(3), by `/dev/log`.
    Syslog,
    /// An HTTP(S) URL that gets each line by POST.
    Webhook(String),
}

/// What the prober is asked to do with a sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Begin {
    /// The head of the record but for `time_ns`'s clock and `sources`, which the prober fills in.
    pub start: Start,
    /// Where events go; none keeps them from being written.
    pub events: Vec<Sink>,
    /// Where findings go, beside a line on standard error each.
    pub findings: Vec<Sink>,
    /// What is done on a finding.
    pub on_finding: Reaction,
    /// Whether a readable account is printed at the end, on standard error.
    pub summary: bool,
    /// Whether that account is JSON.
    pub json: bool,
    /// Where a learned policy is written.
    pub learn: Option<Learn>,
    /// Directories with rules of the administrator and the user, beside the built-in ones.
    pub rules: Vec<String>,
    /// Whether there is a system call filter whose listener tells of refusals.
    pub has_listener: bool,
    /// Whether that listener gets every call with a path or an address (`--why`), which then no tracer sees.
    #[serde(default)]
    pub record: bool,
    /// What was asked for of the baseline; without, the run is judged if there is one.
    #[serde(default)]
    pub baseline: Option<Baseline>,
    /// Whether the caller may load BPF programs as far as `apex-run` can tell; without, ptrace is the source.
    pub may_probe: bool,
}

/// A run that is learned from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learn {
    /// The policy file to write, or to merge into when it is there; absolute.
    pub file: String,
    /// What the run has, and what its learned policy will stand on.
    pub setting: Box<Setting>,
}

/// `apex-run` to the prober.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub enum ToProbe {
    /// The first packet, before the sandbox is built: load what will be needed.
    Begin(Box<Begin>),
    /// The sandbox stands and its command waits: attach. Descriptors that come along: the cgroup v2 directory, where it has one of its own.
    Sandbox {
        /// Its id; see [`crate::event::Event::sandbox`].
        id: u64,
        /// Whether `id` is that of a cgroup of its own and the descriptor came along.
        has_cgroup: bool,
        /// Pid of the init, as the host numbers it.
        init: u32,
        /// Pid of the process that becomes the command.
        command: u32,
        /// Whether the filter that stops for ptrace is in force.
        traced: bool,
    },
    /// The filter's listener refused or reported a call.
    Refused {
        /// Nanoseconds since boot.
        time_ns: u64,
        /// The caller, as the host numbers it; 0 when it was gone before it could be looked at.
        pid: u32,
        /// Its parent.
        ppid: u32,
        /// Its user id, as the host numbers it.
        uid: u32,
        /// Its name.
        comm: String,
        /// The call.
        refused: Box<Refused>,
        /// What it was answered; `None` when it was let through.
        error: Option<Errno>,
    },
    /// Refusals that were not forwarded.
    Lost {
        /// How many.
        count: u64,
    },
    /// Stop every process of the sandbox, or let them go on: where it has no cgroup, only its tracer can hold them.
    Hold {
        /// Whether they are to stand still.
        frozen: bool,
    },
    /// Refuse every packet of the sandbox, or let them pass again, and whatever else a finding had tightened with them. Answered by [`FromProbe::Turned`].
    Cut {
        /// Whether they are refused.
        cut: bool,
    },
    /// Refuse these calls of the sandbox, and no others. Answered by [`FromProbe::Turned`].
    Shut {
        /// Which.
        shut: Shut,
    },
    /// Tell what the probes have cost. Answered by [`FromProbe::Costs`].
    Costs,
    /// The sandbox is gone: write down what is left and finish.
    Ended,
}

/// The prober to `apex-run`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub enum FromProbe {
    /// It is ready for a sandbox.
    Prepared {
        /// Where each family's events will come from.
        sources: BTreeMap<Family, Source>,
        /// Whether a cgroup v2 directory of its own is needed.
        wants_cgroup: bool,
        /// Whether the filter that stops for ptrace is needed.
        wants_trace: bool,
    },
    /// Every source is on: the command may start.
    Watching,
    /// A finding asks for this.
    Act {
        /// What.
        reaction: Reaction,
        /// Title of the finding.
        because: String,
    },
    /// The answer to [`ToProbe::Cut`] and [`ToProbe::Shut`].
    Turned {
        /// Why it was not done.
        error: Option<String>,
    },
    /// What the probes have cost.
    Costs {
        /// Those that ran, as far as the kernel measures.
        probes: Vec<ProbeCost>,
    },
    /// Everything is written.
    Done {
        /// Findings of severity high or above.
        alarms: u64,
        /// Events lost, by reason.
        lost: BTreeMap<Loss, u64>,
    },
    /// It cannot go on. The sandbox is ended: what was to be watched does not run unwatched.
    Failed {
        /// What was tried, what stood in the way, what to do.
        words: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_back_from_their_text() {
        let prepared = FromProbe::Prepared {
            sources: BTreeMap::from([
                (Family::Process, Source::Probe),
                (Family::Lsm, Source::Missing { reason: "this kernel has no BPF LSM".to_owned() }),
            ]),
            wants_cgroup: true,
            wants_trace: false,
        };
        let text = serde_json::to_string(&prepared).expect("representable");
        assert_eq!(serde_json::from_str::<FromProbe>(&text).expect("own text"), prepared);
        let refused = ToProbe::Refused {
            time_ns: 1,
            pid: 2,
            ppid: 1,
            uid: 0,
            comm: "job".to_owned(),
            refused: Box::new(Refused {
                call: "mount".to_owned(),
                abi: "x86_64".to_owned(),
                args: [0; 6],
                reported: false,
            }),
            error: Some(Errno::EPERM),
        };
        let text = serde_json::to_string(&refused).expect("representable");
        assert_eq!(serde_json::from_str::<ToProbe>(&text).expect("own text"), refused);
    }
}

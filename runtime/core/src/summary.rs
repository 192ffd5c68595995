//! A readable account of what a sandbox did, from its events.
//!
//! Input: events in the order in which they were read, and findings. Output: an [`Account`], as text for people or for serialising. Memory is
//! bounded whatever the sandbox does: what does not fit is counted. Names in it were chosen by the sandbox: the text escapes them.

#[cfg(test)]
mod tests;
mod text;

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::event::{Event, Loss, Refused, Start, What};
use crate::finding::{Finding, Severity};
use crate::refusal::Access;
use crate::watch::{Family, Source};

/// Different things of one kind that are kept.
const KINDS_MAX: usize = 512;
/// Living processes that are followed.
const PROCESSES_MAX: usize = 4096;
/// Programs in the tree.
const PROGRAMS_MAX: usize = 512;
/// How deep the tree grows; deeper programs are counted with the last one.
const DEPTH_MAX: usize = 24;

/// How often each of some things was seen, with a bound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// By name.
    pub counts: BTreeMap<String, u64>,
    /// Times that something was seen for which there was no room.
    #[serde(skip_serializing_if = "is_zero")]
    pub more: u64,
}

impl Counted {
    fn add(&mut self, name: String) {
        let has_room = self.counts.len() < KINDS_MAX;
        match self.counts.get_mut(&name) {
            Some(count) => *count += 1,
            None if has_room => drop(self.counts.insert(name, 1)),
            None => self.more += 1,
        }
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty() && self.more == 0
    }
}

/// A program, and those that it started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Program {
    /// Its file.
    pub path: String,
    /// How often it was started from there.
    pub count: u64,
    /// Index of the program that started it.
    pub parent: Option<usize>,
}

/// A finding that was told, without its evidence.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Odd {
    /// How bad.
    pub severity: Severity,
    /// What.
    pub title: String,
}

/// What a sandbox did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Account {
    /// The command as given.
    pub command: Vec<String>,
    /// Mode.
    pub mode: String,
    /// Families that were not watched, and why.
    pub unwatched: BTreeMap<String, String>,
    /// Where the others came from.
    pub sources: BTreeMap<String, Source>,
    /// Nanoseconds from the first event to the last.
    pub duration_ns: u64,
    /// Every program that was started; a parent stands before its children.
    pub programs: Vec<Program>,
    /// Starts of programs for which there was no room.
    pub programs_more: u64,
    /// Processes that were born.
    pub processes: u64,
    /// Files opened for writing, or made.
    pub written: Counted,
    /// Directories and links that were made.
    pub made: Counted,
    /// Names that were removed.
    pub removed: Counted,
    /// Names that were moved: `OLD -> NEW`.
    pub renamed: Counted,
    /// Other ends: connected to, or sent to.
    pub peers: Counted,
    /// Own ends.
    pub bound: Counted,
    /// Bytes on the network.
    pub received_bytes: u64,
    /// Bytes on the network.
    pub sent_bytes: u64,
    /// System calls that the filter refused, by call and answer.
    pub refused: Counted,
    /// Opens, connections and the like that failed for want of permission.
    pub denied: Counted,
    /// Calls that ordinary programs seldom make.
    pub unusual: Counted,
    /// Findings, the worst first.
    pub findings: Vec<(Odd, u64)>,
    /// Events that were lost, by reason.
    pub lost: BTreeMap<Loss, u64>,
    /// How the command ended, when that was seen.
    pub ending: Option<String>,
    /// Events that the account rests on.
    pub events: u64,
    /// What the kernel's probes cost, where it measured that.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<ProbeCost>,
}

/// What one probe cost, whichever process of the host met it (`bpf_prog_info` of bpf(2)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeCost {
    /// Name of the program.
    pub name: String,
    /// Its family.
    pub family: Family,
    /// How often it ran.
    pub run_count: u64,
    /// Nanoseconds of CPU in all.
    pub run_time_ns: u64,
}

/// The account in the making.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    account: Account,
    first_ns: Option<u64>,
    /// Which program each living process runs, and how deep in the tree that stands.
    runs: HashMap<u32, (usize, usize)>,
    /// The process of the command.
    command: Option<u32>,
    findings: BTreeMap<Odd, u64>,
}

impl Summary {
    /// Takes one event.
    pub fn observe(&mut self, event: &Event) {
        let first = *self.first_ns.get_or_insert(event.time_ns);
        let account = &mut self.account;
        account.duration_ns = account.duration_ns.max(event.time_ns.saturating_sub(first));
        account.events += 1;
        let is_denied = event.error.is_some_and(|error| matches!(error.name(), Some("EPERM" | "EACCES" | "EROFS")));
        match &event.what {
            What::Start(start) => self.head(start),
            What::End(_) => {}
            What::Fork { child } => self.fork(event.pid, *child),
            What::Exec { path, fileless, .. } if event.error.is_none() => {
                if *fileless {
                    self.account.unusual.add(format!("program without a file: {path}"));
                }
                self.exec(event.pid, path);
            }
            What::Exit { code, signal } => self.exit(event.pid, *code, *signal),
            What::Refused(refused) => self.refused(refused, event),
            What::Lost { counts } => {
                for (why, count) in counts {
                    *self.account.lost.entry(*why).or_default() += count;
                }
            }
            What::Traffic { received_bytes, sent_bytes } => {
                account.received_bytes += received_bytes;
                account.sent_bytes += sent_bytes;
            }
            what if is_denied => {
                if let Some(words) = attempt(what) {
                    account.denied.add(words);
                }
                self.unusual(what);
            }
            what => {
                if event.error.is_none() {
                    self.done(what);
                }
                self.unusual(what);
            }
        }
    }

    /// Takes what the probes cost.
    pub fn cost(&mut self, probes: Vec<ProbeCost>) {
        self.account.probes = probes;
    }

    /// Takes a finding.
    pub fn found(&mut self, finding: &Finding) {
        let odd = Odd { severity: finding.severity, title: finding.title.clone() };
        if self.findings.len() < KINDS_MAX || self.findings.contains_key(&odd) {
            *self.findings.entry(odd).or_default() += 1;
        }
    }

    /// The account as it stands.
    pub fn account(&self) -> Account {
        let findings = self.findings.iter().rev().map(|(odd, count)| (odd.clone(), *count)).collect();
        Account { findings, ..self.account.clone() }
    }

    fn head(&mut self, start: &Start) {
        self.account.command = start.command.clone();
        self.account.mode = start.mode.clone();
        for (family, source) in &start.sources {
            let name = Family::name(*family).to_owned();
            match source {
                Source::Missing { reason } => drop(self.account.unwatched.insert(name, reason.clone())),
                source => drop(self.account.sources.insert(name, source.clone())),
            }
        }
    }

    fn fork(&mut self, parent: u32, child: u32) {
        self.account.processes += 1;
        if let Some(program) = self.runs.get(&parent).copied()
            && self.runs.len() < PROCESSES_MAX
        {
            self.runs.insert(child, program);
        }
    }

    fn exec(&mut self, pid: u32, path: &str) {
        self.command.get_or_insert(pid);
        let from = self.runs.get(&pid).copied();
        let (parent, depth) = match from {
            Some((index, depth)) if depth + 1 >= DEPTH_MAX => (self.account.programs[index].parent, depth),
            Some((index, depth)) => (Some(index), depth + 1),
            None => (None, 0),
        };
        let programs = &mut self.account.programs;
        let known = programs.iter().position(|program| program.parent == parent && program.path == path);
        let index = match known {
            Some(index) => index,
            None if programs.len() < PROGRAMS_MAX => {
                programs.push(Program { path: path.to_owned(), count: 0, parent });
                programs.len() - 1
            }
            None => {
                self.account.programs_more += 1;
                return;
            }
        };
        programs[index].count += 1;
        if self.runs.len() < PROCESSES_MAX || self.runs.contains_key(&pid) {
            self.runs.insert(pid, (index, depth));
        }
    }

    fn exit(&mut self, pid: u32, code: Option<i32>, signal: Option<i32>) {
        self.runs.remove(&pid);
        if self.command == Some(pid) {
            self.account.ending = match (code, signal) {
                (_, Some(signal)) => Some(format!("ended by signal {signal}")),
                (Some(code), None) => Some(format!("exited with {code}")),
                (None, None) => None,
            };
        }
    }

    fn refused(&mut self, refused: &Refused, event: &Event) {
        let outcome = match (refused.reported, event.error) {
            (true, _) => "reported".to_owned(),
            (false, Some(error)) => error.to_string(),
            (false, None) => "refused".to_owned(),
        };
        self.account.refused.add(format!("{} ({}): {outcome}", refused.call, refused.abi));
    }

    /// Something that succeeded, as far as the source can tell.
    fn done(&mut self, what: &What) {
        let account = &mut self.account;
        match what {
            What::Open { path, access: Access::Write, .. } => account.written.add(path.clone()),
            What::Open { path, create: true, .. } => account.written.add(path.clone()),
            What::Mkdir { path } => account.made.add(format!("{path}/")),
            What::Symlink { target, path } => account.made.add(format!("{path} -> {target}")),
            What::Link { from, to } => account.made.add(format!("{to} = {from}")),
            What::Rename { from, to } => account.renamed.add(format!("{from} -> {to}")),
            What::Unlink { path } => account.removed.add(path.clone()),
            What::Connect { address } => account.peers.add(address.to_string()),
            What::Send { address, .. } => account.peers.add(address.to_string()),
            What::Bind { address } => account.bound.add(address.to_string()),
            _ => {}
        }
    }

    /// Whether it worked or not.
    fn unusual(&mut self, what: &What) {
        let words = match what {
            What::SetIds { call, id } => format!("{call} to {id}"),
            What::Namespace { call, .. } => format!("{call} (namespaces)"),
            What::Ptrace { call, .. } => call.clone(),
            What::Bpf { .. } => "bpf".to_owned(),
            What::Module { call } => call.clone(),
            What::Memfd { name } => format!("memfd_create {name}"),
            What::Executable { call, writable: true, .. } => format!("{call}: memory both writable and executable"),
            What::Mount { call, target } => format!("{call} {target}"),
            What::Chmod { path, mode } if mode & 0o6000 != 0 => format!("chmod {mode:o} {path}"),
            What::Call { name, .. } => name.clone(),
            _ => return,
        };
        self.account.unusual.add(words);
    }
}

/// Words for something that was not permitted.
fn attempt(what: &What) -> Option<String> {
    Some(match what {
        What::Open { path, access: Access::Write, .. } => format!("write {path}"),
        What::Open { path, .. } => format!("open {path}"),
        What::Exec { path, .. } => format!("execute {path}"),
        What::Mkdir { path } => format!("make {path}"),
        What::Rename { from, to } => format!("move {from} to {to}"),
        What::Unlink { path } => format!("remove {path}"),
        What::Link { to, .. } => format!("link {to}"),
        What::Symlink { path, .. } => format!("link {path}"),
        What::Chmod { path, .. } | What::Chown { path, .. } => format!("change {path}"),
        What::Connect { address } | What::Send { address, .. } => format!("connect to {address}"),
        What::Bind { address } => format!("bind {address}"),
        What::Socket { family, .. } => format!("socket of family {family}"),
        What::Signal { target, signal } => format!("signal {signal} to {target}"),
        _ => return None,
    })
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

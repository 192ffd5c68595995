//! Recorded events against another plan: what it would have refused.
//!
//! Input: a [`Plan`] and [`Event`]s in the order of the record. Output: [`Refusal`]s, for [`crate::explain::explain`]. It is a forecast: a path
//! is judged by the mounts and Landlock rules of the plan, a call by its group, an address by the network. What failed in the record is
//! not held against the plan, and what the program would have done after the first refusal nobody knows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::event::{Address, Event, Refused, Start, What};
use crate::learn::{group_of, plain};
use crate::observe::{self, Found, Makes, Obstacle};
use crate::plan::{Mount, Plan};
use crate::policy::Network;
use crate::refusal::{Access, Attempt, Refusal};
use crate::seccomp::{Abi, Verdict};
use crate::watch::{Family, Level, Source};

/// Different things that are listed; more are counted.
pub const ATTEMPTS_MAX: usize = 10_000;
/// Names made by the record that are kept in mind.
pub const MADE_MAX: usize = 100_000;
/// Links of the plan that are followed in one path.
const LINKS_MAX: usize = 8;

/// One replay.
#[derive(Debug)]
pub struct Backtest<'p> {
    plan: &'p Plan,
    found: BTreeMap<Attempt, Refusal>,
    /// Names that the record made: where the plan has a private directory they are there too.
    made: BTreeSet<PathBuf>,
    ports: BTreeSet<u16>,
    has_any_port: bool,
    /// Loopback peers, judged at the end: whose they were shows when every server is known.
    loopback: BTreeMap<Attempt, Refusal>,
    /// Calls that the record's own policy refused as well.
    refused_before: BTreeSet<String>,
    /// Sandboxes whose watch has begun and not ended; a record may mix several.
    open: BTreeSet<u64>,
    /// Whether a watch began anew before it had ended.
    was_cut: bool,
    events: u64,
    overflow: u64,
    record: Record,
}

/// What is known of the record itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Whether it began with the start of a watch.
    pub has_start: bool,
    /// Whether every watch in it came to its end.
    pub has_end: bool,
    /// Whether a watch in it was below level full.
    pub could_hold_more: bool,
    /// Events that the watch lost.
    pub lost: u64,
    /// Families that decide about what a plan refuses and were not watched, with the reason: nothing of them was judged.
    pub unwatched: BTreeMap<Family, String>,
}

/// What a replay came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdicts {
    /// What would have been refused, in the order of kind and name.
    pub refusals: Vec<Refusal>,
    /// Events that were replayed, those that no plan refuses included.
    pub events: u64,
    /// Refusals beyond [`ATTEMPTS_MAX`] different ones.
    pub overflow: u64,
    /// What the record says about itself.
    pub record: Record,
}

impl<'p> Backtest<'p> {
    /// A replay against `plan`.
    pub fn new(plan: &'p Plan) -> Self {
        Backtest {
            plan,
            found: BTreeMap::new(),
            made: BTreeSet::new(),
            ports: BTreeSet::new(),
            has_any_port: false,
            loopback: BTreeMap::new(),
            refused_before: BTreeSet::new(),
            open: BTreeSet::new(),
            was_cut: false,
            events: 0,
            overflow: 0,
            record: Record::default(),
        }
    }

    /// Judges the next event of the record.
    pub fn replay(&mut self, event: &Event) {
        self.events += 1;
        match &event.what {
            What::Start(start) => return self.start(event.sandbox, start),
            What::End(end) => {
                self.open.remove(&event.sandbox);
                self.record.lost = end.lost.values().fold(self.record.lost, |sum, lost| sum.saturating_add(*lost));
                return;
            }
            What::Refused(refused) => return self.refused(event, refused),
            What::Calls { counts } => {
                for (name, count) in counts {
                    self.call(event, name, *count);
                }
                return;
            }
            // A refused connection reached the network all the same.
            What::Connect { address } | What::Send { address, .. } => return self.connect(event, address),
            _ if event.error.is_some() => return,
            _ => {}
        }
        match &event.what {
            What::Exec { path, fileless: false, .. } => self.path(event, path, Access::Exec, Makes::Nothing),
            What::Open { path, access, create, .. } => {
                let (access, makes) =
                    if *create { (Access::Write, Makes::IfMissing) } else { (*access, Makes::Nothing) };
                self.path(event, path, access, makes);
            }
            What::Chmod { path, .. } | What::Chown { path, .. } => {
                self.path(event, path, Access::Write, Makes::Nothing);
            }
            What::Mkdir { path } | What::Symlink { path, .. } | What::Unlink { path } => self.name(event, path),
            What::Rename { from, to } | What::Link { from, to } => {
                self.name(event, from);
                self.name(event, to);
                self.one_mount(event, from, to);
            }
            What::Bind { address } => self.bind(event, address),
            What::Namespace { call, flags } => self.call_with(event, call, [*flags, 0, 0, 0, 0, 0]),
            What::Socket { family, kind, protocol } => {
                self.call_with(event, "socket", [u64::from(*family), u64::from(*kind), u64::from(*protocol), 0, 0, 0]);
            }
            What::Call { name, args } => self.call_with(event, name, *args),
            What::SetIds { call, .. }
            | What::Ptrace { call, .. }
            | What::Module { call }
            | What::Executable { call, .. }
            | What::Mount { call, .. } => self.call(event, call, 1),
            What::Bpf { .. } => self.call(event, "bpf", 1),
            What::Memfd { .. } => self.call(event, "memfd_create", 1),
            What::Capset { .. } => self.call(event, "capset", 1),
            _ => {}
        }
    }

    fn start(&mut self, sandbox: u64, start: &Start) {
        self.record.has_start |= self.events == 1;
        self.was_cut |= !self.open.insert(sandbox);
        self.record.could_hold_more |= start.level < Level::Full;
        for family in [Family::Process, Family::Network, Family::Syscall, Family::File, Family::Privilege] {
            let why = match start.sources.get(&family) {
                Some(Source::Probe | Source::Ptrace | Source::Listener) => continue,
                Some(Source::Missing { reason }) => reason.as_str(),
                None => "the record does not say where it came from",
            };
            self.record.unwatched.entry(family).or_insert_with(|| why.to_owned());
        }
    }

    /// What it came to.
    pub fn finish(mut self) -> Verdicts {
        for (attempt, refusal) in std::mem::take(&mut self.loopback) {
            let port = |address: &str| address.parse::<Address>().ok()?.inet().map(|(_, port)| port);
            let own = match &attempt {
                Attempt::Address { address, .. } => port(address).is_some_and(|port| self.ports.contains(&port)),
                _ => false,
            };
            if !own && !self.has_any_port {
                self.found.insert(attempt, refusal);
            }
        }
        self.record.has_end = self.record.has_start && self.open.is_empty() && !self.was_cut;
        let before = &self.refused_before;
        self.found.retain(|attempt, _| !matches!(attempt, Attempt::Syscall { name, .. } if before.contains(name)));
        Verdicts {
            refusals: self.found.into_values().collect(),
            events: self.events,
            overflow: self.overflow,
            record: self.record,
        }
    }

    fn refused(&mut self, event: &Event, refused: &Refused) {
        if refused.reported {
            self.call_with(event, &refused.call, refused.args);
        } else {
            self.refused_before.insert(refused.call.clone());
        }
    }

    fn path(&mut self, event: &Event, path: &str, access: Access, makes: Makes) {
        let Some(path) = plain(path) else { return };
        let path = self.follow(&path);
        if !is_kernels(&path) {
            let found = self.found_at(&path, makes);
            let obstacle = observe::obstacle(self.plan, &path, access, makes, &found);
            self.meet(event, &path, access, &found, obstacle);
        }
        if makes != Makes::Nothing {
            self.make(path);
        }
    }

    /// A name that comes or goes: its directory must be writable.
    fn name(&mut self, event: &Event, path: &str) {
        let Some(path) = plain(path) else { return };
        let path = self.follow(&path);
        let place = path.parent().unwrap_or(&path);
        if !is_kernels(&path) {
            let found = self.found_at(place, Makes::Nothing);
            let masked = Found::Present { is_dir: false };
            let obstacle = observe::obstacle(self.plan, place, Access::Write, Makes::Nothing, &found)
                .or_else(|| observe::obstacle(self.plan, &path, Access::Write, Makes::Nothing, &masked))
                // A mount point cannot be removed, moved or replaced.
                .or_else(|| self.is_mount_point(&path).then_some(Obstacle::ReadOnly));
            self.meet(event, &path, Access::Write, &found, obstacle);
        }
        self.make(path);
    }

    fn is_mount_point(&self, path: &Path) -> bool {
        let own = |mount: &&Mount| matches!(mount, Mount::Bind { .. } | Mount::Tmpfs { .. });
        self.plan.mounts.iter().filter(own).any(|mount| crate::planner::mount_dest(mount) == path)
    }

    /// No name moves from one mount to another.
    fn one_mount(&mut self, event: &Event, from: &str, to: &str) {
        let (Some(from), Some(to)) = (plain(from), plain(to)) else { return };
        let mount = |path: &Path| {
            let place = self.follow(path.parent().unwrap_or(path));
            observe::deepest(self.plan, &place).map(crate::planner::mount_dest)
        };
        if mount(&from) != mount(&to) {
            let found = Found::Present { is_dir: false };
            self.meet(event, &to, Access::Write, &found, Some(Obstacle::ReadOnly));
        }
    }

    fn make(&mut self, path: PathBuf) {
        if self.made.len() < MADE_MAX {
            self.made.insert(path);
        }
    }

    /// Through the links that the plan puts into the root.
    fn follow(&self, path: &Path) -> PathBuf {
        let mut path = path.to_owned();
        for _ in 0..LINKS_MAX {
            let link = self.plan.mounts.iter().find_map(|mount| match mount {
                Mount::Symlink { dest, target } => {
                    let rest = path.strip_prefix(dest).ok()?;
                    Some(dest.parent().unwrap_or(dest).join(target).join(rest))
                }
                _ => None,
            });
            match link.and_then(|link| plain(link.to_str()?)) {
                Some(next) => path = next,
                None => break,
            }
        }
        path
    }

    /// What the plan would show at a path that was there in the record.
    fn found_at(&self, path: &Path, makes: Makes) -> Found {
        let present = |is_dir| Found::Present { is_dir };
        let leads_on = self.plan.mounts.iter().any(|mount| crate::planner::mount_dest(mount).starts_with(path));
        if self.made.contains(path) || leads_on {
            return present(leads_on);
        }
        let is_there = |path: &Path| match observe::deepest(self.plan, path) {
            Some(Mount::Tmpfs { dest, .. }) => dest == path || self.made.contains(path),
            Some(Mount::Dir { dest }) => dest == path,
            Some(_) => true,
            None => false,
        };
        if is_there(path) {
            return present(false);
        }
        let outside = makes == Makes::Nothing;
        match path.parent() {
            Some(parent) if is_there(parent) || self.made.contains(parent) => Found::Absent { outside },
            _ => Found::Nowhere { outside, parent_outside: true },
        }
    }

    fn meet(&mut self, event: &Event, path: &Path, access: Access, found: &Found, obstacle: Option<Obstacle>) {
        if let Some(obstacle) = obstacle {
            let attempt = Attempt::Path {
                path: path.to_owned(),
                access,
                exists_inside: found.inside(),
                exists_outside: found.outside(),
            };
            self.record(event, attempt, obstacle.outcome(), 1);
        }
    }

    fn connect(&mut self, event: &Event, address: &Address) {
        if let Address::Unix(path) = address {
            if event.error.is_none() {
                self.path(event, path, Access::Look, Makes::Nothing);
            }
            return;
        }
        let Some((ip, _)) = address.inet() else { return };
        if self.plan.network == Network::Host {
            return;
        }
        let call = if matches!(event.what, What::Connect { .. }) { "connect" } else { "sendto" };
        let attempt = Attempt::Address { call: call.to_owned(), address: address.to_string() };
        if ip.is_loopback() || ip.is_unspecified() {
            if event.error.is_none() && self.loopback.len() < ATTEMPTS_MAX {
                count(&mut self.loopback, event, attempt, "ECONNREFUSED", 1);
            }
            return;
        }
        self.record(event, attempt, "ENETUNREACH", 1);
    }

    fn bind(&mut self, event: &Event, address: &Address) {
        match address {
            Address::Unix(path) => self.name(event, path),
            _ => match address.inet() {
                Some((_, 0)) => self.has_any_port = true,
                Some((_, port)) => drop(self.ports.insert(port)),
                None => {}
            },
        }
    }

    fn call(&mut self, event: &Event, name: &str, times: u64) {
        let (Some(table), Some(group)) = (&self.plan.seccomp, group_of(name)) else { return };
        if table.refused().contains(&group) {
            let attempt =
                Attempt::Syscall { name: name.to_owned(), abi: table.arch().abi().name().to_owned(), args: [0; 6] };
            self.record(event, attempt, "EPERM", times);
        }
    }

    fn call_with(&mut self, event: &Event, name: &str, args: [u64; 6]) {
        let Some(table) = &self.plan.seccomp else { return };
        let abi: Abi = table.arch().abi();
        let Some(number) = abi.call_number(name) else { return };
        if let Verdict::Refuse(_) = table.judge(abi, number, &args) {
            let attempt = Attempt::Syscall { name: name.to_owned(), abi: abi.name().to_owned(), args };
            self.record(event, attempt, "EPERM", 1);
        }
    }

    fn record(&mut self, event: &Event, attempt: Attempt, outcome: &str, times: u64) {
        if self.found.len() >= ATTEMPTS_MAX && !self.found.contains_key(&attempt) {
            self.overflow += 1;
            return;
        }
        count(&mut self.found, event, attempt, outcome, times);
    }
}

fn count(list: &mut BTreeMap<Attempt, Refusal>, event: &Event, attempt: Attempt, outcome: &str, times: u64) {
    let refusal = list.entry(attempt.clone()).or_insert_with(|| Refusal {
        attempt,
        comm: event.comm.clone(),
        pid: i32::try_from(event.pid).unwrap_or(0),
        count: 0,
        outcome: outcome.to_owned(),
    });
    refusal.count = refusal.count.saturating_add(times);
}

/// Every sandbox has its own of these.
fn is_kernels(path: &Path) -> bool {
    ["/proc", "/dev", "/sys"].iter().any(|place| path.starts_with(place))
}

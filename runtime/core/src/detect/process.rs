//! The processes of the sandboxes, as their events tell of them: who bore whom, what each runs, who lives. Input: events; output: ancestry
//! and counts. Bounded: the longest ended are forgotten first, then the longest known, and both are counted.

use std::collections::{BTreeMap, HashMap};

use super::field::name_of;
use crate::event::{Event, What};
use crate::finding::{self, ANCESTRY_MAX};

/// Processes that are known at a time.
pub(super) const PROCESSES_MAX: usize = 16_384;
/// Of these, ended ones that are kept for the ancestry of their children.
const ENDED_MAX: usize = 4096;
/// Parents that a rule looks at.
pub(super) const PARENTS_MAX: usize = 8;
/// Longest line of joined arguments, in bytes.
const LINE_BYTES_MAX: usize = 16 << 10;
/// Programs that are many, by their first argument.
const MANY: [&str; 2] = ["busybox", "toybox"];
/// Programs that start another, wait for it, and do nothing else.
const WAITERS: [&str; 3] = ["timeout", "setsid", "time"];
/// Deepest nesting that is counted.
const NESTING_MAX: u64 = 32;

/// One process.
#[derive(Clone, Debug, Default)]
pub(super) struct Process {
    pub pid: u32,
    pub ppid: u32,
    pub uid: u32,
    pub comm: String,
    /// The program's file; its parent's until it executes one. Empty when no exec was seen.
    pub exe: String,
    pub args: Vec<String>,
    /// The arguments joined by blanks.
    pub line: String,
    /// The topmost process known above it.
    pub root: u32,
    /// Whether it, or one that it was born of, has taken a port of its own.
    pub serves: bool,
    sandbox: u64,
    is_clone: bool,
    has_ended: bool,
    /// Place in the order of age.
    stamp: u64,
}

impl Process {
    /// The names that its program goes by.
    pub fn programs(&self) -> impl Iterator<Item = &str> {
        let file = if self.exe.is_empty() { self.comm.as_str() } else { name_of(&self.exe) };
        let started_as = self.args.first().map(|arg| name_of(arg).trim_start_matches('-'));
        [Some(file), started_as.filter(|name| *name != file)].into_iter().flatten()
    }

    /// The name of the first argument that is no option.
    pub fn script(&self) -> Option<&str> {
        self.args.iter().skip(1).find(|arg| !arg.starts_with('-')).map(|arg| name_of(arg))
    }

    fn told(&self) -> finding::Process {
        finding::Process {
            pid: self.pid,
            ppid: self.ppid,
            uid: self.uid,
            comm: self.comm.clone(),
            exe: self.exe.clone(),
            args: self.args.clone(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Population {
    alive: u64,
    clones: u64,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Processes {
    by_pid: HashMap<u32, Process>,
    /// Ended and living ones by age.
    ended: BTreeMap<u64, u32>,
    living: BTreeMap<u64, u32>,
    population: HashMap<u64, Population>,
    stamps: u64,
    /// How many were forgotten for want of room while they lived.
    pub forgotten: u64,
}

impl Processes {
    /// Takes in what an event says of processes; its process is known afterwards.
    pub fn learn(&mut self, event: &Event) {
        if event.pid == 0 {
            return;
        }
        self.know(event);
        match &event.what {
            What::Fork { child } => self.fork(event, *child),
            What::Exec { path, args, .. } if event.error.is_none() => self.exec(event.pid, path, args),
            What::Bind { address } if event.error.is_none() && address.inet().is_some() => {
                self.by_pid.entry(event.pid).and_modify(|process| process.serves = true);
            }
            _ => {}
        }
    }

    /// What follows after the rules have seen the event.
    pub fn settle(&mut self, event: &Event) {
        match &event.what {
            What::Exit { .. } => self.end(event.pid),
            What::End(_) => {
                self.population.remove(&event.sandbox);
            }
            _ => {}
        }
    }

    /// One that is known.
    pub fn get(&self, pid: u32) -> Option<&Process> {
        self.by_pid.get(&pid)
    }

    /// Its parent, where it is known.
    pub fn parent(&self, process: &Process) -> Option<&Process> {
        self.by_pid.get(&process.ppid).filter(|parent| parent.pid != process.pid && parent.sandbox == process.sandbox)
    }

    /// Its parents, the nearest first.
    pub fn ancestors<'a>(&'a self, process: &'a Process) -> impl Iterator<Item = &'a Process> {
        std::iter::successors(self.parent(process), |process| self.parent(process)).take(PARENTS_MAX)
    }

    /// The process and its parents, for a finding.
    pub fn ancestry(&self, pid: u32) -> Vec<finding::Process> {
        let chain = std::iter::successors(self.get(pid), |process| self.parent(process));
        chain.take(ANCESTRY_MAX).map(Process::told).collect()
    }

    /// Living processes of a sandbox.
    pub fn alive(&self, sandbox: u64) -> u64 {
        self.population.get(&sandbox).map_or(0, |population| population.alive)
    }

    /// Living processes of a sandbox that never executed a program.
    pub fn clones(&self, sandbox: u64) -> u64 {
        self.population.get(&sandbox).map_or(0, |population| population.clones)
    }

    /// Who started it: its parent, or what started that where the parent only waits for a program that it was given (`timeout 5 nc ...`).
    pub fn starter(&self, process: &Process) -> u32 {
        let parents = std::iter::once(process).chain(self.ancestors(process));
        let own =
            parents.take_while(|one| one.pid == process.pid || one.programs().any(|name| WAITERS.contains(&name)));
        own.last().map_or(process.ppid, |last| last.ppid)
    }

    /// How many parents in a row run the same program with the same arguments.
    pub fn nesting(&self, process: &Process) -> u64 {
        let chain = std::iter::successors(self.parent(process), |process| self.parent(process));
        let alike = chain.take_while(|parent| parent.exe == process.exe && parent.args == process.args);
        alike.take(NESTING_MAX as usize).count() as u64
    }

    fn know(&mut self, event: &Event) {
        if let Some(known) = self.by_pid.get_mut(&event.pid).filter(|known| !known.has_ended) {
            if known.comm != event.comm {
                known.comm.clone_from(&event.comm);
            }
            known.uid = event.uid;
            // An orphan's parent changes to the init; where it came from says more.
            if known.ppid == 0 {
                known.ppid = event.ppid;
            }
            return;
        }
        if matches!(event.what, What::Exit { .. }) && self.by_pid.contains_key(&event.pid) {
            return;
        }
        // Its birth was not seen: what it runs may be what its parent runs, but nobody knows.
        let process = Process { pid: event.pid, ppid: event.ppid, ..self.born(event, event.ppid) };
        self.insert(Process { exe: String::new(), args: Vec::new(), line: String::new(), is_clone: false, ..process });
    }

    fn fork(&mut self, event: &Event, child: u32) {
        // The child's own first event can come before the one of its birth.
        if self.by_pid.get(&child).is_some_and(|known| !known.has_ended && known.ppid == event.pid) {
            return;
        }
        let process = Process { pid: child, ppid: event.pid, ..self.born(event, event.pid) };
        self.insert(process);
    }

    /// A child of `parent` as it is in its first moment.
    fn born(&self, event: &Event, parent: u32) -> Process {
        let parent = self.by_pid.get(&parent).filter(|parent| parent.sandbox == event.sandbox);
        let mut process = parent.cloned().unwrap_or_default();
        process.root = parent.map_or(0, |parent| parent.root);
        process.comm.clone_from(&event.comm);
        process.uid = event.uid;
        process.sandbox = event.sandbox;
        process.is_clone = true;
        process.has_ended = false;
        process
    }

    fn exec(&mut self, pid: u32, path: &str, args: &[String]) {
        let Some(process) = self.by_pid.get_mut(&pid) else { return };
        let args = applet(path, args);
        process.exe = path.to_owned();
        process.args = args.to_vec();
        process.line = line(args);
        if std::mem::take(&mut process.is_clone) {
            let sandbox = process.sandbox;
            self.count(sandbox, |population| population.clones = population.clones.saturating_sub(1));
        }
    }

    fn insert(&mut self, mut process: Process) {
        self.remove(process.pid);
        if self.by_pid.len() >= PROCESSES_MAX {
            self.forget_oldest();
        }
        self.stamps += 1;
        process.stamp = self.stamps;
        if process.root == 0 {
            process.root = process.pid;
        }
        let is_clone = process.is_clone;
        self.count(process.sandbox, |population| {
            population.alive += 1;
            population.clones += u64::from(is_clone);
        });
        self.living.insert(process.stamp, process.pid);
        self.by_pid.insert(process.pid, process);
    }

    fn end(&mut self, pid: u32) {
        let Some(process) = self.by_pid.get_mut(&pid).filter(|process| !process.has_ended) else { return };
        process.has_ended = true;
        let (stamp, sandbox, is_clone) = (process.stamp, process.sandbox, process.is_clone);
        self.living.remove(&stamp);
        self.ended.insert(stamp, pid);
        self.leave(sandbox, is_clone);
        if self.ended.len() > ENDED_MAX
            && let Some((_, oldest)) = self.ended.pop_first()
        {
            self.by_pid.remove(&oldest);
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, pid)) = self.ended.first_key_value() {
            self.remove(*pid);
        } else if let Some((_, pid)) = self.living.first_key_value() {
            self.remove(*pid);
            self.forgotten += 1;
        }
    }

    fn remove(&mut self, pid: u32) {
        let Some(process) = self.by_pid.remove(&pid) else { return };
        if process.has_ended {
            self.ended.remove(&process.stamp);
        } else {
            self.living.remove(&process.stamp);
            self.leave(process.sandbox, process.is_clone);
        }
    }

    fn leave(&mut self, sandbox: u64, is_clone: bool) {
        self.count(sandbox, |population| {
            population.alive = population.alive.saturating_sub(1);
            population.clones = population.clones.saturating_sub(u64::from(is_clone));
        });
    }

    fn count(&mut self, sandbox: u64, change: impl FnOnce(&mut Population)) {
        let population = self.population.entry(sandbox).or_default();
        change(population);
        if population.alive == 0 {
            self.population.remove(&sandbox);
        }
    }
}

/// The arguments of a program that is many: `busybox nc -l` is `nc -l`, so that rules which name a program hold for it as well.
fn applet<'a>(path: &str, mut args: &'a [String]) -> &'a [String] {
    if MANY.contains(&name_of(path)) {
        while let [first, second, ..] = args
            && MANY.contains(&name_of(first))
            && !second.starts_with('-')
        {
            args = &args[1..];
        }
    }
    args
}

/// Arguments as one line, cut at a bound.
fn line(args: &[String]) -> String {
    let mut line = String::with_capacity(args.iter().map(|arg| arg.len() + 1).sum::<usize>().min(LINE_BYTES_MAX));
    for (index, arg) in args.iter().enumerate() {
        if index > 0 {
            line.push(' ');
        }
        let room = LINE_BYTES_MAX.saturating_sub(line.len());
        line.push_str(&arg[..arg.floor_char_boundary(room.min(arg.len()))]);
        if room <= arg.len() {
            break;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(pid: u32, ppid: u32, what: What) -> Event {
        Event { time_ns: 1, sandbox: 7, pid, ppid, uid: 0, comm: "x".to_owned(), what, error: None }
    }

    fn feed(processes: &mut Processes, events: &[Event]) {
        for event in events {
            processes.learn(event);
            processes.settle(event);
        }
    }

    fn exec(pid: u32, ppid: u32, path: &str) -> Event {
        event(pid, ppid, What::program(path.to_owned(), vec![path.to_owned()], false))
    }

    #[test]
    fn a_child_runs_what_its_parent_runs_until_it_executes() {
        let mut processes = Processes::default();
        feed(&mut processes, &[exec(10, 1, "/bin/sh"), event(10, 1, What::Fork { child: 11 })]);
        assert_eq!(processes.get(11).map(|child| child.exe.as_str()), Some("/bin/sh"));
        assert_eq!((processes.alive(7), processes.clones(7)), (2, 1));
        feed(&mut processes, &[exec(11, 10, "/bin/ls")]);
        assert_eq!(processes.clones(7), 0);
        let ancestry = processes.ancestry(11);
        assert_eq!(ancestry.iter().map(|p| p.exe.as_str()).collect::<Vec<_>>(), ["/bin/ls", "/bin/sh"]);
        assert_eq!(processes.get(11).map(|child| child.root), Some(10));
    }

    #[test]
    fn an_ended_parent_stays_in_the_ancestry() {
        let mut processes = Processes::default();
        feed(&mut processes, &[exec(10, 1, "/bin/sh"), event(10, 1, What::Fork { child: 11 })]);
        feed(&mut processes, &[event(10, 1, What::Exit { code: Some(0), signal: None })]);
        feed(&mut processes, &[exec(11, 1, "/bin/ls")]);
        assert_eq!(processes.ancestry(11).len(), 2);
        assert_eq!(processes.alive(7), 1);
    }

    #[test]
    fn a_used_pid_begins_anew() {
        let mut processes = Processes::default();
        feed(&mut processes, &[exec(10, 1, "/bin/a"), event(10, 1, What::Exit { code: Some(0), signal: None })]);
        feed(&mut processes, &[event(20, 1, What::Fork { child: 10 })]);
        assert_eq!(processes.get(10).map(|process| process.exe.as_str()), Some(""));
        assert_eq!(processes.alive(7), 2);
    }

    #[test]
    fn processes_without_end_are_bounded_and_counted() {
        let mut processes = Processes::default();
        for child in 2..(PROCESSES_MAX as u32 + 100) {
            feed(&mut processes, &[event(1, 0, What::Fork { child })]);
        }
        assert!(processes.by_pid.len() <= PROCESSES_MAX);
        assert!(processes.forgotten > 0);
        assert_eq!(processes.living.len(), processes.by_pid.len());
    }

    #[test]
    fn an_applet_is_known_by_its_own_name_and_arguments() {
        let check = |path: &str, args: &[&str], names: &[&str], line: &str| {
            let mut processes = Processes::default();
            let args = args.iter().map(|arg| (*arg).to_owned()).collect();
            let what = What::program(path.to_owned(), args, false);
            feed(&mut processes, &[event(10, 1, what)]);
            let process = processes.get(10).expect("it is known");
            assert_eq!((process.programs().collect::<Vec<_>>().as_slice(), process.line.as_str()), (names, line));
        };
        check("/usr/bin/busybox", &["busybox", "sh"], &["busybox", "sh"], "sh");
        check("/bin/toybox", &["/bin/toybox", "nc", "-l"], &["toybox", "nc"], "nc -l");
        check("/bin/busybox", &["busybox", "busybox", "ash", "-i"], &["busybox", "ash"], "ash -i");
        check("/bin/busybox", &["/bin/sh", "nc"], &["busybox", "sh"], "/bin/sh nc");
        check("/bin/busybox", &["busybox", "--list"], &["busybox"], "busybox --list");
        check("/bin/echo", &["busybox", "nc"], &["echo", "busybox"], "busybox nc");
    }

    #[test]
    fn a_program_under_a_waiting_one_was_started_by_what_started_that() {
        let mut processes = Processes::default();
        feed(&mut processes, &[exec(10, 1, "/bin/sh"), event(10, 1, What::Fork { child: 11 })]);
        feed(&mut processes, &[exec(11, 10, "/usr/bin/timeout"), event(11, 10, What::Fork { child: 12 })]);
        feed(&mut processes, &[exec(12, 11, "/bin/nc")]);
        let starter = |pid: u32| processes.starter(processes.get(pid).expect("it is known"));
        assert_eq!((starter(10), starter(11), starter(12)), (1, 10, 10));
    }

    #[test]
    fn a_port_of_its_own_is_known_of_a_process_and_its_children() {
        let mut processes = Processes::default();
        let bind = |address: &str| event(10, 1, What::Bind { address: address.parse().expect("an address") });
        let serves = |processes: &Processes, pid: u32| processes.get(pid).map(|process| process.serves);
        feed(&mut processes, &[exec(10, 1, "/bin/a"), bind("unix:/run/x"), event(10, 1, What::Fork { child: 11 })]);
        assert_eq!(serves(&processes, 10), Some(false));
        feed(
            &mut processes,
            &[bind("inet:127.0.0.1:0"), event(10, 1, What::Fork { child: 12 }), exec(12, 10, "/bin/b")],
        );
        assert_eq!([10, 11, 12].map(|pid| serves(&processes, pid)), [Some(true), Some(false), Some(true)]);
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        let args = vec!["ä".repeat(LINE_BYTES_MAX), "b".to_owned()];
        assert!(line(&args).len() <= LINE_BYTES_MAX);
        assert_eq!(line(&["a".to_owned(), "b c".to_owned()]), "a b c");
    }
}

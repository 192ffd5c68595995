//! The launcher's end of the listener to which the system call filter hands calls (seccomp_unotify(2)): for `--why`, and for policies
//! that let calls through and report them.
//!
//! Input: notified calls. Output: an answer to each, and a [`Record`] of what was refused. A refused call is answered from its registers,
//! which the kernel copied. A path or an address stands in the caller's memory, which the caller can change at any time: such a call is
//! looked at and *always* handed back to the kernel, whatever the look found. The look is for words to people; mounts, Landlock and the
//! network namespace decide. Nothing here may ever turn what was read from memory into an answer (DESIGN.md, invariant 5).
//!
//! Callers are hostile: everything read is bounded, nothing that they name is opened for more than its name (`O_PATH`) unless it is a
//! regular file, and what belonged to a caller counts only if the call still waits afterwards.

mod address;
mod look;
mod record;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use apex_core::amount;
use apex_core::event;
use apex_core::observe::{self, Makes};
use apex_core::plan::{Mount, Plan};
use apex_core::refusal::{Access, Attempt, Refusal};
use apex_core::seccomp::{Abi, ENOSYS, EPERM, Verdict};
use apex_sys::Errno;
use apex_sys::process::{self, Pid};
use apex_sys::seccomp::{self, Notification, Reply, Waiting};

use crate::watch::{Told, Watcher};
use look::{Caller, World};
use record::Record;

/// Calls that one round serves: a flood of them must not keep the launcher from signals and from the wall time.
const BATCH_MAX: u32 = 64;

/// The listener of one sandbox.
pub struct Listener {
    /// `None` once nobody is left who could call.
    fd: Option<OwnedFd>,
    plan: Plan,
    /// What is needed to look at paths; `None` when nothing is recorded.
    watch: Option<Watch>,
}

/// What a recording listener has.
struct Watch {
    world: World,
    record: Record,
    /// Private directories in memory, held so that they can be asked whether they are full after everybody is gone.
    tmpfs: Vec<(OwnedFd, String)>,
    sockets: address::Sockets,
}

impl Listener {
    /// Takes the listener out of the command's process, which waits: descriptor `number` of `pid`. `None` when there is none.
    pub fn take(plan: &Plan, pid: Pid, number: i32) -> Result<Option<Listener>, Errno> {
        if number < 0 {
            return Ok(None);
        }
        seccomp::check_sizes()?;
        let fd = process::pidfd_getfd(process::pidfd_open(pid)?.as_fd(), number)?;
        let watch = if plan.record { Some(Watch::start(plan, pid)?) } else { None };
        Ok(Some(Listener { fd: Some(fd), plan: plan.clone(), watch }))
    }

    /// The descriptor to wait for; `None` once nobody is left.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// Whether it has a record to show at the end.
    pub fn is_recording(&self) -> bool {
        self.watch.is_some()
    }

    /// Answers what waits, a bounded number of calls, and tells a watcher what was refused; `refuses` says whether that goes for what the policy only reports as well.
    /// Never blocks.
    pub fn serve(&mut self, mut watcher: Option<&mut (dyn Watcher + '_)>, refuses: bool) {
        for _ in 0..BATCH_MAX {
            let Some(fd) = &self.fd else { return };
            match seccomp::waiting(fd.as_fd()) {
                Ok(Waiting::Call) => {}
                Ok(Waiting::Nothing) | Err(_) => return,
                Ok(Waiting::Nobody) => {
                    self.fd = None;
                    return;
                }
            }
            // ENOENT: the caller was killed between the look and the take. The next one may be there.
            let Ok(call) = seccomp::receive(fd.as_fd()) else { continue };
            if let Some(watcher) = &mut watcher
                && let Some(told) = told(&self.plan, fd.as_fd(), &call, refuses)
            {
                watcher.refused(told);
            }
            let reply = answer(&self.plan, self.watch.as_mut(), fd.as_fd(), &call, refuses);
            // ENOENT: the caller was killed meanwhile.
            let _ = seccomp::send(fd.as_fd(), call.id, reply);
        }
    }

    /// What was refused, the most frequent first within each kind of attempt.
    pub fn into_refusals(self) -> Vec<Refusal> {
        self.watch.map(Watch::finish).unwrap_or_default()
    }
}

/// Decides from the registers alone. What is looked at beside that goes into the record only.
fn answer(
    plan: &Plan,
    watch: Option<&mut Watch>,
    listener: BorrowedFd<'_>,
    call: &Notification,
    refuses: bool,
) -> Reply {
    let unknown = Reply::Refuse(i32::from(ENOSYS));
    let (Some(table), Some(abi), Ok(number)) =
        (plan.seccomp.as_ref(), Abi::from_audit_arch(call.arch), u32::try_from(call.nr))
    else {
        return unknown;
    };
    let verdict = in_force(table.judge(abi, number, &call.args), refuses);
    if let Some(watch) = watch {
        let caller = Caller { listener, call };
        let name = abi.call_name(number);
        match (verdict, name) {
            (Verdict::Allow, Some(name)) => watch.observe(plan, &caller, abi, name),
            (Verdict::Allow, None) => {}
            (Verdict::Refuse(errno), _) => {
                let outcome = format!("{:?}", Errno::from_raw(i32::from(errno)));
                watch.record_call(&caller, abi, number, &outcome);
            }
            (Verdict::Report, _) => watch.record_call(&caller, abi, number, "reported"),
        }
    }
    match verdict {
        Verdict::Refuse(errno) => Reply::Refuse(i32::from(errno)),
        Verdict::Allow | Verdict::Report => Reply::Continue,
    }
}

/// The dial only ever refuses: what was refused is never let through by it.
fn in_force(verdict: Verdict, refuses: bool) -> Verdict {
    match verdict {
        Verdict::Report if refuses => Verdict::Refuse(EPERM),
        other @ (Verdict::Allow | Verdict::Refuse(_) | Verdict::Report) => other,
    }
}

/// What a watcher is told about a call: those that are refused or reported. The caller still waits, so its /proc is its own.
fn told(plan: &Plan, listener: BorrowedFd<'_>, call: &Notification, refuses: bool) -> Option<Told> {
    let abi = Abi::from_audit_arch(call.arch)?;
    let number = u32::try_from(call.nr).ok()?;
    let error = match in_force(plan.seccomp.as_ref()?.judge(abi, number, &call.args), refuses) {
        Verdict::Allow => return None,
        Verdict::Refuse(errno) => Some(event::Errno(errno.into())),
        Verdict::Report => None,
    };
    let name = abi.call_name(number).map_or_else(|| format!("number {number}"), str::to_owned);
    let refused = event::Refused { call: name, abi: abi.name().to_owned(), args: call.args, reported: error.is_none() };
    let process = Caller { listener, call }.describe().unwrap_or_default();
    Some(Told { pid: process.pid, ppid: process.ppid, uid: process.uid, comm: process.comm, refused, error })
}

impl Watch {
    /// The process waits before it becomes the command, so what is read through its pid is the sandbox's.
    fn start(plan: &Plan, pid: Pid) -> Result<Watch, Errno> {
        let world = World::of(pid)?;
        let tmpfs = plan.mounts.iter().filter_map(|mount| match mount {
            Mount::Tmpfs { dest, size_bytes, .. } => {
                let limit = format!("{} in {}", amount::size(*size_bytes), dest.display());
                Some((world.open(dest, true).ok()?, limit))
            }
            _ => None,
        });
        let tmpfs = tmpfs.collect();
        let candidates = plan.command.candidates.clone();
        Ok(Watch {
            tmpfs,
            world: world.starting_with(pid, candidates),
            record: Record::default(),
            sockets: address::Sockets::default(),
        })
    }

    fn finish(self) -> Vec<Refusal> {
        let mut refusals = self.record.finish();
        // Full when everybody was gone: who made room again before that did not fail for good.
        for (_, limit) in self.tmpfs.iter().filter(|(fd, _)| look::is_full(fd)) {
            refusals.push(Refusal {
                attempt: Attempt::Limit { resource: "tmpfs".to_owned(), limit: limit.clone() },
                comm: String::new(),
                pid: 0,
                count: 1,
                outcome: "ENOSPC".to_owned(),
            });
        }
        refusals
    }

    fn record_call(&mut self, caller: &Caller<'_>, abi: Abi, number: u32, outcome: &str) {
        let name = abi.call_name(number).map_or_else(|| format!("number {number}"), str::to_owned);
        let attempt = Attempt::Syscall { name, abi: abi.name().to_owned(), args: caller.call.args };
        self.record.add(attempt, outcome, || caller.who());
    }

    /// Looks at a call that is carried out in any case.
    fn observe(&mut self, plan: &Plan, caller: &Caller<'_>, abi: Abi, name: &str) {
        let refusals = match name {
            "connect" | "bind" => {
                address::look(plan, &self.world, &mut self.sockets, caller, name).into_iter().collect()
            }
            _ => self.observe_paths(plan, caller, abi, name),
        };
        // What was read through the pid was the caller's only if the caller is still there.
        if !refusals.is_empty() && caller.is_waiting() {
            for (attempt, outcome) in refusals {
                self.record.add(attempt, outcome, || caller.who());
            }
        }
    }

    fn observe_paths(
        &mut self,
        plan: &Plan,
        caller: &Caller<'_>,
        abi: Abi,
        name: &str,
    ) -> Vec<(Attempt, &'static str)> {
        let args = &caller.call.args;
        let how = observe::needs_how(name, args).and_then(|address| caller.word(address));
        let mut refusals = Vec::new();
        for target in observe::targets(abi, name, args, how) {
            let Some(path) = self.world.path(caller, &target) else { continue };
            if observe::is_own_process(&path) {
                continue;
            }
            let Some(place) = self.world.find(&path, target.follow) else { continue };
            let refusal = self.judge(plan, &place, target.access, target.makes).or_else(|| {
                let is_exec = target.access == Access::Exec;
                (is_exec && is_command(plan, &path, &place))
                    .then(|| (attempt(&path, Access::Exec, &place.found), "ENOENT"))
            });
            let is_refused = refusal.is_some();
            refusals.extend(refusal);
            if target.access == Access::Exec && !is_refused {
                refusals.extend(self.interpreter(plan, &place));
            }
        }
        refusals
    }

    fn judge(&self, plan: &Plan, place: &look::Place, access: Access, makes: Makes) -> Option<(Attempt, &'static str)> {
        let obstacle = observe::obstacle(plan, &place.path, access, makes, &place.found)?;
        Some((attempt(&place.path, access, &place.found), obstacle.outcome()))
    }

    /// A program that is there fails with ENOENT all the same when what starts it is not.
    fn interpreter(&self, plan: &Plan, program: &look::Place) -> Option<(Attempt, &'static str)> {
        let head = program.head()?;
        let interpreter = observe::interpreter(&head)?;
        let place = self.world.find(interpreter, true)?;
        if place.found.inside() {
            return self.judge(plan, &place, Access::Exec, Makes::Nothing);
        }
        // Also when it is missing outside too: this is what the program fails for.
        Some((attempt(&place.path, Access::Exec, &place.found), "ENOENT"))
    }
}

/// Whether the one file that the whole run is about is not there: told even if it is nowhere.
fn is_command(plan: &Plan, path: &Path, place: &look::Place) -> bool {
    matches!(plan.command.candidates.as_slice(), [only] if only == path) && !place.found.inside()
}

fn attempt(path: &Path, access: Access, found: &observe::Found) -> Attempt {
    Attempt::Path { path: path.to_owned(), access, exists_inside: found.inside(), exists_outside: found.outside() }
}

//! Fault injection from outside: runs a command under ptrace(2) and makes one chosen system call of one of its processes fail.
//!
//! A call is named by the process that makes it, in order of creation (`apex-run` is 0, the init 1, the command's process 2),
//! and by its place among that process's calls. The command itself is left alone once it has been executed.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// After this a traced run counts as hung and all its processes are killed.
const PATIENCE: Duration = Duration::from_secs(15);

/// One system call: which process, the how-manieth of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Order of creation.
    pub process: usize,
    /// From 0.
    pub index: usize,
}

/// A failure to inject.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Which call.
    pub place: Place,
    /// What it fails with.
    pub errno: Errno,
}

/// What a traced run did.
#[derive(Debug, Default)]
pub struct Traced {
    /// Exit code of the first process; 128 + n for a signal; `None` when it hung.
    pub code: Option<i32>,
    /// Number of each call of each process, in order.
    pub calls: BTreeMap<usize, Vec<i64>>,
    /// Number of the call that was made to fail.
    pub injected: Option<i64>,
    /// Whether the command was executed.
    pub executed: bool,
    /// Pid of the first process.
    pub pid: u32,
    /// How many calls each process had made when the command was executed: what comes later is the watching and the end.
    pub start: BTreeMap<usize, usize>,
}

#[derive(Debug, Default)]
struct Tracee {
    order: usize,
    inside_call: bool,
    failing: bool,
    /// The argument that was changed: a system call preserves its register.
    argument: Option<u64>,
    /// Calls are counted and may fail.
    watched: bool,
}

struct Tracer {
    fault: Option<Fault>,
    tracees: BTreeMap<i32, Tracee>,
    /// Shared with the watchdog.
    alive: Arc<Mutex<Vec<i32>>>,
    executions: u32,
    born: usize,
    result: Traced,
}

/// Runs `program ARGS` with its output in `stderr`, failing one call when `fault` says so.
#[track_caller]
pub fn run(command: &Command, stderr: &Path, fault: Option<Fault>) -> Traced {
    let first = start(command, stderr);
    let alive = Arc::new(Mutex::new(vec![first.as_raw()]));
    let (done, watchdog) = mpsc::channel::<()>();
    let watched = Arc::clone(&alive);
    let guard = std::thread::spawn(move || {
        let hung = watchdog.recv_timeout(PATIENCE).is_err();
        if hung {
            for pid in watched.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                // Not reaped yet, so the number is still its own.
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
        }
        hung
    });
    let mut tracer =
        Tracer { fault, tracees: BTreeMap::new(), alive, executions: 0, born: 1, result: Traced::default() };
    tracer.result.pid = first.as_raw().unsigned_abs();
    tracer.tracees.insert(first.as_raw(), Tracee { order: 0, ..Tracee::default() });
    tracer.follow(first);
    // The watchdog may have gone already; then it fired.
    let _ = done.send(());
    if guard.join().expect("the watchdog does not panic") {
        tracer.result.code = None;
    }
    tracer.result
}

/// A shell that stops itself, is seized, and then becomes the command: so no code runs between fork and exec here.
#[track_caller]
#[allow(clippy::zombie_processes, reason = "the tracer's loop waits for it, by its pid")]
fn start(command: &Command, stderr: &Path) -> Pid {
    let output = File::create(stderr).unwrap_or_else(|error| panic!("{}: {error}", stderr.display()));
    let again = output.try_clone().expect("a file can be duplicated");
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "kill -STOP $$; exec \"$@\"", "sh"]).arg(command.get_program()).args(command.get_args());
    if let Some(dir) = command.get_current_dir() {
        shell.current_dir(dir);
    }
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            shell.env(name, value);
        }
    }
    let child = shell.stdin(Stdio::null()).stdout(output).stderr(again).spawn().expect("/bin/sh starts");
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid fits"));
    let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).expect("it is our child");
    assert!(matches!(stopped, WaitStatus::Stopped(..)), "{stopped:?}");
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(pid, options).expect("it is our child");
    kill(pid, Signal::SIGCONT).expect("it is our child");
    pid
}

impl Tracer {
    /// Until every tracee is gone. `__WNOTHREAD`: other threads of the test have children of their own.
    fn follow(&mut self, first: Pid) {
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            let status = match waitpid(Pid::from_raw(-1), Some(flags)) {
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                Err(Errno::ECHILD) => return,
                Err(errno) => panic!("waiting for tracees: {errno}"),
            };
            match status {
                WaitStatus::Exited(pid, code) => self.gone(pid, first, code),
                WaitStatus::Signaled(pid, signal, _) => self.gone(pid, first, 128 + signal as i32),
                WaitStatus::PtraceSyscall(pid) => self.at_call(pid),
                WaitStatus::PtraceEvent(pid, _, event) => self.at_event(pid, event),
                WaitStatus::Stopped(pid, signal) => self.resume(pid, Some(signal)),
                WaitStatus::Continued(_) | WaitStatus::StillAlive => {}
            }
        }
    }

    fn gone(&mut self, pid: Pid, first: Pid, code: i32) {
        self.tracees.remove(&pid.as_raw());
        self.alive.lock().unwrap_or_else(PoisonError::into_inner).retain(|it| *it != pid.as_raw());
        if pid == first {
            self.result.code = Some(code);
        }
    }

    /// A tracee may be killed at any moment; then the next wait says so and the error here means nothing.
    fn resume(&self, pid: Pid, signal: Option<Signal>) {
        let watched = self.tracees.get(&pid.as_raw()).is_some_and(|tracee| tracee.watched);
        let _ = if watched || self.executions == 0 { ptrace::syscall(pid, signal) } else { ptrace::cont(pid, signal) };
    }

    fn at_event(&mut self, pid: Pid, event: i32) {
        match event {
            libc::PTRACE_EVENT_EXEC => self.at_exec(pid),
            libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => {
                if let Ok(child) = ptrace::getevent(pid) {
                    self.born(i32::try_from(child).expect("a pid fits"), pid.as_raw());
                }
            }
            _ => self.born(pid.as_raw(), 0),
        }
        self.resume(pid, None);
    }

    /// The child's first stop and the parent's event come in either order.
    fn born(&mut self, child: i32, parent: i32) {
        if self.tracees.contains_key(&child) {
            return;
        }
        let of_command = self.tracees.get(&parent).is_some_and(|tracee| !tracee.watched);
        self.alive.lock().unwrap_or_else(PoisonError::into_inner).push(child);
        self.tracees.insert(child, Tracee { order: self.born, watched: !of_command, ..Tracee::default() });
        self.born += 1;
    }

    /// The shell becoming `apex-run`, then the sandbox's process becoming the command.
    fn at_exec(&mut self, pid: Pid) {
        self.executions += 1;
        let first = self.executions == 1;
        if !first && !self.result.executed {
            self.result.executed = true;
            self.result.start = self.result.calls.iter().map(|(process, calls)| (*process, calls.len())).collect();
        }
        if let Some(tracee) = self.tracees.get_mut(&pid.as_raw()) {
            tracee.watched = first;
            // The stop at the end of execve is still to come.
            tracee.inside_call = true;
        }
    }

    fn at_call(&mut self, pid: Pid) {
        if let Some(tracee) = self.tracees.get_mut(&pid.as_raw()) {
            tracee.inside_call = !tracee.inside_call;
            if tracee.watched {
                let fault = self.fault;
                // The tracee may have been killed while it was stopped: nothing to fail then.
                let _ = at_watched_call(pid, tracee, fault, &mut self.result);
            }
        }
        self.resume(pid, None);
    }
}

fn at_watched_call(pid: Pid, tracee: &mut Tracee, fault: Option<Fault>, result: &mut Traced) -> nix::Result<()> {
    if !tracee.inside_call {
        if let Some(argument) = tracee.argument.take() {
            let mut registers = ptrace::getregs(pid)?;
            registers.rdi = argument;
            ptrace::setregs(pid, registers)?;
        }
        if std::mem::take(&mut tracee.failing) {
            let mut registers = ptrace::getregs(pid)?;
            let errno = fault.map_or(0, |fault| fault.errno as i64);
            registers.rax = (-errno).cast_unsigned();
            ptrace::setregs(pid, registers)?;
        }
        return Ok(());
    }
    let mut registers = ptrace::getregs(pid)?;
    let number = registers.orig_rax.cast_signed();
    let calls = result.calls.entry(tracee.order).or_default();
    let place = Place { process: tracee.order, index: calls.len() };
    calls.push(number);
    if fault.is_some_and(|fault| fault.place == place) {
        result.injected = Some(number);
        tracee.failing = true;
        match number {
            // A descriptor is gone whatever close answers (close(2)): another behaviour would only test the tracer.
            libc::SYS_close => return Ok(()),
            // No errno from this one: when the kernel refuses, it answers the break as it was, as it does to 0 (brk(2)).
            libc::SYS_brk => {
                tracee.failing = false;
                tracee.argument = Some(registers.rdi);
                registers.rdi = 0;
                return ptrace::setregs(pid, registers);
            }
            _ => {}
        }
        // No such call: the kernel does nothing, and the answer is written at the exit stop.
        registers.orig_rax = u64::MAX;
        ptrace::setregs(pid, registers)?;
    }
    Ok(())
}

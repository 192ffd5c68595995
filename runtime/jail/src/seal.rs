//! From the init's child to the command: everything that is sealed for ever, last of all the system call filter, then exec.
//!
//! The child shares the init's memory (vfork), so what it needs is made ready before: here nothing allocates, logs or locks. A
//! failure goes to the launcher through the socket.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use apex_core::plan::{CommandPlan, LandlockPlan, Plan};
use apex_core::seccomp::Table;
use apex_sys::limits::{self, Resource};
use apex_sys::process::CStrings;
use apex_sys::signal::{self, Set};
use apex_sys::{Errno, fs, net, prctl, process, terminal};

use crate::host::c_path;
use crate::seccomp::{self, Program};
use crate::step::{Failure, Step};
use crate::wire::{Domain, End, Order, Report};

/// Bytes of the arguments that come when the command is to start, and their number.
pub const ARGUMENT_BYTES_MAX: usize = 128 << 10;
pub const ARGUMENTS_MAX: usize = 4096;

/// What runs once everything is sealed.
pub enum Payload<'a> {
    /// The command of the plan.
    Command,
    /// A function of Apex itself (`--prove`).
    Function {
        /// Its value is the exit code.
        run: &'a mut dyn FnMut() -> i32,
        /// The one descriptor above 2 that it keeps.
        answers: BorrowedFd<'a>,
    },
}

/// The command's process, made ready.
pub struct Seal<'a> {
    pub socket: &'a End,
    pub ruleset: Option<OwnedFd>,
    pub program: Option<&'a Program>,
    /// Whether refused calls go to a listener.
    pub listen: bool,
    /// Whether the launcher reads the receipt, or has the sandbox watched, before the command starts.
    pub pause: bool,
    /// Whether the command's arguments come when it is to start.
    defer: bool,
    /// The filter that stops at the calls of interest, when a tracer watches.
    pub tracing: Option<Program>,
    /// Whether it is one more command: its failure is not the sandbox's, and it gets these streams instead of the init's.
    pub spawned: Option<[OwnedFd; 3]>,
    /// The sandbox's end of the terminal.
    pub terminal: Option<OwnedFd>,
    /// Which of the three streams become the terminal.
    pub streams_on_terminal: [bool; 3],
    pub mask: Set,
    pub fds: &'a [i32],
    candidates: Vec<CString>,
    workdirs: Vec<CString>,
    argv: CStrings,
    env: CStrings,
    rlimits: Vec<(Resource, u64)>,
    probe: Option<DomainProbe>,
}

/// What only the Landlock domain refuses: tried before the filter is loaded, which could refuse it too.
#[derive(Clone, Copy)]
enum DomainProbe {
    /// A signal to the init, which has the same user and stands outside the domain (ABI 6).
    Signal,
    /// A TCP port (ABI 4).
    TcpBind,
}

impl DomainProbe {
    fn of(landlock: &LandlockPlan) -> Option<DomainProbe> {
        if landlock.scoped {
            return Some(DomainProbe::Signal);
        }
        landlock.tcp_refused.then_some(DomainProbe::TcpBind)
    }

    fn attempt(self) -> Domain {
        let result = match self {
            DomainProbe::Signal => process::kill(1, 0),
            DomainProbe::TcpBind => net::try_tcp_bind(),
        };
        result.map_or_else(Domain::Refused, |()| Domain::Open)
    }
}

impl<'a> Seal<'a> {
    /// Turns the plan's words into what the kernel takes.
    pub fn prepare(plan: &'a Plan, command: &CommandPlan, socket: &'a End, mask: Set) -> Result<Seal<'a>, Failure> {
        let words = |list: &[std::ffi::OsString]| {
            list.iter()
                .map(|word| CString::new(word.as_bytes()))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|_| Errno::EINVAL)
        };
        let paths = |list: &[std::path::PathBuf]| list.iter().map(|path| c_path(path)).collect::<Result<Vec<_>, _>>();
        let exec = Failure::at(Step::Exec, 0);
        let rlimits = plan.rlimits.iter().enumerate().map(|(index, limit)| {
            resource(limit.name)
                .map(|resource| (resource, limit.value))
                .ok_or_else(|| Failure::at(Step::SetRlimit, index)(Errno::EINVAL))
        });
        Ok(Seal {
            socket,
            ruleset: None,
            program: None,
            listen: plan.seccomp.as_ref().is_some_and(Table::needs_listener),
            pause: false,
            defer: false,
            tracing: None,
            spawned: None,
            terminal: None,
            streams_on_terminal: [false; 3],
            mask,
            fds: &plan.fds,
            candidates: paths(&command.candidates).map_err(&exec)?,
            workdirs: paths(&command.workdir).map_err(Failure::at(Step::EnterWorkdir, 0))?,
            argv: CStrings::new(words(&command.argv).map_err(&exec)?),
            env: CStrings::new(words(&command.env).map_err(&exec)?),
            rlimits: rlimits.collect::<Result<_, _>>()?,
            probe: plan.landlock.as_ref().and_then(DomainProbe::of),
        })
    }

    /// Has the arguments come when the command is to start.
    pub fn defer(&mut self) {
        self.defer = true;
        self.argv = CStrings::with_room(ARGUMENT_BYTES_MAX, ARGUMENTS_MAX);
    }

    /// Whether the launcher has something to do between the sealing and the command.
    pub fn waits(&self) -> bool {
        self.pause || self.tracing.is_some() || (self.listen && self.program.is_some())
    }

    /// Runs in the command's process. Returns the exit code of a process that did not become the command.
    pub fn run(&mut self, payload: &mut Payload<'_>) -> i32 {
        let failure = match self.seal() {
            Ok(()) => match payload {
                Payload::Command => self.exec(),
                Payload::Function { run, .. } => return run(),
            },
            Err(failure) => failure,
        };
        let report = if self.spawned.is_some() { Report::SpawnFailed(failure) } else { Report::Failed(failure) };
        // The launcher turns the report into words and the exit code; without it the code below is the best left.
        let _ = self.socket.write_report(report);
        if failure.step == Step::Exec && failure.errno == Errno::ENOENT { 127 } else { 125 }
    }

    /// The order matters: the session before the filter may refuse setsid, Landlock before seccomp since the filter need not allow
    /// it, the descriptors last but one because reports still need the socket.
    fn seal(&mut self) -> Result<(), Failure> {
        process::new_session().map_err(Failure::at(Step::NewSession, 0))?;
        for (number, stream) in self.spawned.iter().flatten().enumerate() {
            fs::place(stream.as_fd(), number as i32).map_err(Failure::at(Step::ArrangeDescriptors, 0))?;
        }
        self.take_terminal()?;
        self.enter_workdir()?;
        self.set_rlimits()?;
        self.reset_signals()?;
        self.arrange_descriptors()?;
        if let Some(ruleset) = &self.ruleset {
            prctl::landlock_restrict(ruleset.as_fd()).map_err(Failure::at(Step::SealLandlock, 0))?;
        }
        // Only a receipt wants to know.
        let domain = self.probe.filter(|_| self.pause).map_or(Domain::Unprobed, DomainProbe::attempt);
        self.seal_seccomp(domain)
    }

    fn take_terminal(&self) -> Result<(), Failure> {
        let Some(terminal) = &self.terminal else { return Ok(()) };
        terminal::set_controlling(terminal.as_fd()).map_err(Failure::at(Step::OpenTerminal, 0))?;
        for (number, is_terminal) in self.streams_on_terminal.iter().enumerate() {
            if *is_terminal {
                fs::place(terminal.as_fd(), number as i32).map_err(Failure::at(Step::OpenTerminal, number))?;
            }
        }
        Ok(())
    }

    fn enter_workdir(&self) -> Result<(), Failure> {
        let mut last = Errno::ENOENT;
        for dir in &self.workdirs {
            match fs::chdir(dir) {
                Ok(()) => return Ok(()),
                Err(errno) => last = errno,
            }
        }
        Err(Failure { step: Step::EnterWorkdir, index: 0, errno: last })
    }

    fn set_rlimits(&self) -> Result<(), Failure> {
        for (index, (resource, value)) in self.rlimits.iter().enumerate() {
            limits::set(*resource, *value).map_err(Failure::at(Step::SetRlimit, index))?;
        }
        Ok(())
    }

    fn reset_signals(&self) -> Result<(), Failure> {
        signal::set_mask(&self.mask).map_err(Failure::at(Step::ArrangeDescriptors, 0))
    }

    /// Nothing above 2 survives exec but what was asked for by number.
    fn arrange_descriptors(&self) -> Result<(), Failure> {
        process::close_from(3, u32::MAX, true).map_err(Failure::at(Step::ArrangeDescriptors, 0))?;
        for number in self.fds {
            fs::set_inherited(*number, true).map_err(Failure::at(Step::ArrangeDescriptors, 0))?;
        }
        Ok(())
    }

    /// The tracer's filter first: the policy's may refuse seccomp(2). Until the tracer is there, what it stops at answers ENOSYS; nothing
    /// below is among it.
    fn seal_seccomp(&mut self, domain: Domain) -> Result<(), Failure> {
        if let Some(tracing) = &self.tracing {
            seccomp::load(tracing, false).map_err(Failure::at(Step::SealSeccomp, 0))?;
        }
        let Some(program) = self.program else {
            return self.wait(-1, domain);
        };
        let listener = seccomp::load(program, self.listen).map_err(Failure::at(Step::SealSeccomp, 0))?;
        self.wait(listener.as_ref().map_or(-1, AsRawFd::as_raw_fd), domain)
    }

    /// Lets the launcher read the receipt and take the listener. Uses only calls that every filter allows (read, write: see `base`).
    fn wait(&mut self, listener: i32, domain: Domain) -> Result<(), Failure> {
        if !self.waits() {
            return Ok(());
        }
        let pid = std::process::id() as i32;
        let failed = Failure::at(Step::Handshake, 0);
        self.socket.write_report(Report::Sealed { pid, listener, domain }).map_err(&failed)?;
        if self.defer {
            self.socket.read_expect(Order::GoWith).map_err(&failed)?;
            let socket = self.socket;
            self.argv.fill(|room| socket.read_words(room)).map_err(&failed)?;
        } else {
            self.socket.read_expect(Order::Go).map_err(&failed)?;
        }
        prctl::set_dumpable(false).map_err(Failure::at(Step::BindLife, 0))
    }

    fn exec(&self) -> Failure {
        let mut last = Errno::ENOENT;
        for path in &self.candidates {
            last = process::exec(path, &self.argv, &self.env);
        }
        Failure { step: Step::Exec, index: 0, errno: last }
    }
}

fn resource(name: &str) -> Option<Resource> {
    match name {
        "core" => Some(Resource::Core),
        "nofile" => Some(Resource::Nofile),
        "fsize" => Some(Resource::Fsize),
        "nproc" => Some(Resource::Nproc),
        "memlock" => Some(Resource::Memlock),
        _ => None,
    }
}

//! Pid 1 of the sandbox: builds the world inside, starts the command, reaps, passes signals on, and takes everything with it when it ends.
//!
//! It is a clone of the launcher with one thread, so it may allocate. Everything of the sandbox dies with it: the kernel kills a pid
//! namespace whose init is gone (pid_namespaces(7)), and the init itself dies with the launcher.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use apex_core::layer::Layer;
use apex_core::plan::{CommandPlan, Plan};
use apex_core::policy::Network;
use apex_core::seccomp::trace::Scope;
use apex_sys::process::{self, ChildStack, Ended, Pid};
use apex_sys::signal::{self, Interest, Set};
use apex_sys::{Errno, fs, memory, net, prctl, terminal};
use caps::Capability;

use crate::control::Defers;
use crate::host::LiveHost;
use crate::seal::{Payload, Seal};
use crate::seccomp::{self, Program};
use crate::step::{Failure, Step};
use crate::streams::Streams;
use crate::trees::Trees;
use crate::wire::{End, Order, Report};
use crate::{landlock, root, spawn, streams, supervise};

/// What the init is born with.
pub struct Init<'a, 'p> {
    pub plan: &'a Plan,
    pub host: &'a LiveHost,
    pub socket: End,
    /// Trees that the launcher took; `None` when the init must take them itself.
    pub trees: Option<Trees>,
    /// Whether it was born into a network namespace that was made ahead, loopback up.
    pub has_network: bool,
    pub program: Option<&'a Program>,
    pub pause: bool,
    /// Whether the command is put off; `None` where nobody keeps the sandbox, who could ask for more commands.
    pub defers: Option<Defers>,
    /// The Landlock rules, for those.
    pub ruleset: Option<OwnedFd>,
    pub streams: &'a Streams,
    pub streams_on_terminal: [bool; 3],
    /// The signal mask that the command gets.
    pub mask: Set,
    pub payload: Payload<'p>,
}

impl Init<'_, '_> {
    /// Never returns: the process is the sandbox's.
    pub fn run(mut self) -> ! {
        let code = match self.start().and_then(|child| self.watch(child)) {
            Ok(()) => 0,
            Err(failure) => {
                // When the launcher is gone there is nobody left to tell.
                let _ = self.socket.report(Report::Failed(failure), None);
                125
            }
        };
        process::exit_now(code)
    }

    fn start(&mut self) -> Result<Pid, Failure> {
        self.await_order(Order::Mapped)?;
        self.become_user()?;
        self.bind_life()?;
        let mut trees = self.take_trees()?;
        self.name_host()?;
        self.raise_loopback()?;
        if self.plan.has(Layer::Mountns) {
            root::enter(self.plan, &mut trees)?;
        }
        std::mem::forget(trees);
        self.let_go_of_host()?;
        let terminal = if self.plan.tty { Some(self.open_terminal()?) } else { None };
        let ruleset = self.make_ruleset()?;
        let (trace, doors) = self.await_attached()?;
        self.enter_cgroup(doors)?;
        self.enter_cgroup_namespace()?;
        self.drop_capabilities()?;
        prctl::set_no_new_privs().map_err(Failure::at(Step::NoNewPrivs, 0))?;
        self.spawn(terminal, ruleset, trace)
    }

    fn await_order(&self, order: Order) -> Result<(), Failure> {
        self.socket.expect(order).map_err(Failure::at(Step::Handshake, 0))
    }

    /// Returns what the command is to stop at for a tracer, which the prober may have decided only now, and the files by which to enter a v1 cgroup.
    fn await_attached(&self) -> Result<(Option<Scope>, Vec<OwnedFd>), Failure> {
        let failed = Failure::at(Step::Handshake, 0);
        match self.socket.next_order_with().map_err(&failed)? {
            Some((Order::Attached { trace, doors: count }, doors)) if doors.len() == usize::from(count) => {
                Ok((trace, doors))
            }
            Some(_) => Err(failed(Errno::EBADMSG)),
            None => Err(failed(Errno::EPIPE)),
        }
    }

    /// Before anything is created: files of the sandbox's own file systems belong to its user. The capabilities of the new
    /// user namespace survive: only its user 0 turning into another would lose them (capabilities(7)).
    fn become_user(&self) -> Result<(), Failure> {
        let identity = &self.plan.identity;
        let failed = Failure::at(Step::BecomeUser, 0);
        process::set_gid(identity.gid).map_err(&failed)?;
        if identity.own_host_ids {
            process::clear_groups().map_err(&failed)?;
        }
        process::set_uid(identity.uid).map_err(&failed)
    }

    /// After the ids have changed, which clears the setting.
    fn bind_life(&self) -> Result<(), Failure> {
        let failed = Failure::at(Step::BindLife, 0);
        process::new_session().map_err(&failed)?;
        prctl::set_parent_death_signal(nix::libc::SIGKILL).map_err(&failed)
    }

    fn take_trees(&mut self) -> Result<Trees, Failure> {
        match self.trees.take() {
            Some(trees) => Ok(trees),
            None => Trees::take(self.plan, self.host, true, None),
        }
    }

    fn name_host(&self) -> Result<(), Failure> {
        if !self.plan.has(Layer::Utsns) {
            return Ok(());
        }
        process::set_hostname(self.plan.identity.hostname.as_bytes()).map_err(Failure::at(Step::SetHostname, 0))
    }

    fn raise_loopback(&self) -> Result<(), Failure> {
        match self.plan.network {
            Network::None if self.has_network => Ok(()),
            Network::None => net::loopback_up().map_err(Failure::at(Step::Loopback, 0)),
            Network::Host => Ok(()),
        }
    }

    /// What the launcher held of the host and what building the root opened is closed at once, in two calls around the socket.
    fn let_go_of_host(&self) -> Result<(), Failure> {
        let answers = match &self.payload {
            Payload::Command => None,
            Payload::Function { answers, .. } => Some(answers.as_raw_fd()),
        };
        let own = [self.socket.0.as_raw_fd()].into_iter().chain(answers);
        let keep: Vec<i32> = self.streams.passed.iter().copied().chain(own).collect();
        streams::close_others(3, &keep).map_err(Failure::at(Step::EnterRoot, 0))
    }

    /// A terminal of the sandbox's own devpts; its master goes to the launcher.
    fn open_terminal(&self) -> Result<OwnedFd, Failure> {
        let failed = Failure::at(Step::OpenTerminal, 0);
        let flags = nix::libc::O_RDWR | nix::libc::O_NOCTTY;
        // The host's own devpts has its multiplexer for everybody elsewhere.
        let multiplexer = if self.plan.has(Layer::Mountns) { c"/dev/pts/ptmx" } else { c"/dev/ptmx" };
        let master = fs::open(fs::cwd(), multiplexer, flags, 0).map_err(&failed)?;
        let number = terminal::unlock(&master).map_err(&failed)?;
        let name = std::ffi::CString::new(format!("/dev/pts/{number}")).expect("digits hold no NUL");
        let end = fs::open(fs::cwd(), &name, flags, 0).map_err(&failed)?;
        // Before the command can ask for it.
        if let Ok(stdin) = fs::borrow(0)
            && self.streams_on_terminal[0]
            && terminal::is_terminal(stdin)
        {
            terminal::copy_size(stdin, master.as_fd()).map_err(&failed)?;
        }
        self.socket.report(Report::Terminal, Some(&master)).map_err(&failed)?;
        Ok(end)
    }

    fn make_ruleset(&self) -> Result<Option<OwnedFd>, Failure> {
        let is_own_root = self.plan.has(Layer::Mountns);
        let ruleset = |plan| landlock::ruleset(plan, &self.streams.files, is_own_root);
        self.plan.landlock.as_ref().map(ruleset).transpose()
    }

    /// Through the files that the launcher opened, where the cgroup is one of v1; elsewhere the launcher has done it.
    fn enter_cgroup(&self, doors: Vec<OwnedFd>) -> Result<(), Failure> {
        for door in doors {
            fs::write(door.as_fd(), b"0").map_err(Failure::at(Step::AttachCgroup, 0))?;
            // Left open until the init closes all that is not its own; the command's process gets none of it.
            std::mem::forget(door);
        }
        Ok(())
    }

    /// After the cgroup was joined: the namespace's root is the cgroup that one is in when entering it (cgroup_namespaces(7)).
    fn enter_cgroup_namespace(&self) -> Result<(), Failure> {
        if !self.plan.has(Layer::Cgroupns) {
            return Ok(());
        }
        process::unshare(nix::libc::CLONE_NEWCGROUP).map_err(Failure::at(Step::CgroupNamespace, 0))
    }

    /// The last thing that needs capabilities of the user namespace is done: from here on there are none, not even to regain.
    fn drop_capabilities(&self) -> Result<(), Failure> {
        let failed = Failure::at(Step::DropCapabilities, 0);
        let kept = kept(&self.plan.capabilities).ok_or_else(|| failed(Errno::EINVAL))?;
        for number in 0..64 {
            if kept & (1 << number) != 0 {
                continue;
            }
            match prctl::drop_bounding(number) {
                Ok(()) => {}
                Err(Errno::EINVAL) => break,
                Err(errno) => return Err(failed(errno)),
            }
        }
        if kept == 0 {
            prctl::lock_securebits().map_err(&failed)?;
            return prctl::set_capabilities(0, 0).map_err(&failed);
        }
        // Locking the bits below takes CAP_SETPCAP itself.
        prctl::set_capabilities(kept | 1 << Capability::CAP_SETPCAP.index(), kept).map_err(&failed)?;
        for number in (0..64).filter(|number| kept & (1 << number) != 0) {
            prctl::raise_ambient(number).map_err(&failed)?;
        }
        prctl::lock_securebits().map_err(&failed)?;
        prctl::set_capabilities(kept, kept).map_err(&failed)
    }

    fn spawn(
        &mut self,
        terminal: Option<OwnedFd>,
        ruleset: Option<OwnedFd>,
        trace: Option<Scope>,
    ) -> Result<Pid, Failure> {
        let failed = Failure::at(Step::Spawn, 0);
        // Its descriptors are closed with all others when the command runs, and its memory lives as long as the init.
        let command = &self.plan.command;
        let mut seal = ManuallyDrop::new(Seal::prepare(self.plan, command, &self.socket, self.mask)?);
        if self.defers.is_some() {
            let copy = |ruleset: &OwnedFd| fs::copy_from(ruleset.as_fd(), 3).map_err(&failed);
            self.ruleset = ruleset.as_ref().map(copy).transpose()?;
        }
        seal.ruleset = ruleset;
        seal.program = self.program;
        seal.pause = self.pause;
        if self.defers == Some(Defers::Sealed) {
            seal.defer();
        }
        seal.tracing = trace.map(|scope| seccomp::tracing(self.plan.seccomp.as_ref(), scope));
        seal.terminal = terminal;
        seal.streams_on_terminal = self.streams_on_terminal;
        // Nobody inside may look into pid 1, which still is the runtime's own binary. The launcher must, while it reads the receipt or
        // takes the listener; the command's process, which shares this memory, then does it after that.
        if !seal.waits() {
            prctl::set_dumpable(false).map_err(&failed)?;
        } else if trace.is_some() {
            // A change of ids took it away, and a tracer without CAP_SYS_PTRACE on the host needs it (ptrace(2), access mode checking).
            prctl::set_dumpable(true).map_err(&failed)?;
        }
        match self.payload {
            Payload::Command => {
                let mut stack = ChildStack::new();
                let payload = &mut self.payload;
                process::vfork(&mut stack, &mut || seal.run(payload)).map_err(failed)
            }
            Payload::Function { .. } => spawn_function(&mut seal, &mut self.payload),
        }
    }

    /// Until the command has ended. Whoever is left then is killed by the kernel when this process exits.
    fn watch(&mut self, child: Pid) -> Result<(), Failure> {
        let failed = Failure::at(Step::Supervise, 0);
        self.let_go_of_streams();
        // Closed by the end of the process, which comes with the end of this function.
        let signals = ManuallyDrop::new(signal::descriptor(&Set::of(&[nix::libc::SIGCHLD])).map_err(&failed)?);
        let mut patience_ms = Some(supervise::GIVE_BACK_MS);
        let mut spawned: Vec<(Pid, i32)> = Vec::new();
        loop {
            let mut interests = [
                Interest { fd: signals.as_fd(), write: false, ready: false },
                Interest { fd: self.socket.0.as_fd(), write: false, ready: false },
            ];
            if !signal::poll(&mut interests, patience_ms).map_err(&failed)? {
                memory::give_back();
                patience_ms = None;
                continue;
            }
            if interests[0].ready {
                // Taken away before the look: whoever ends after it makes it ready again. Who ended earlier did, as the signal is blocked.
                signal::next(signals.as_fd()).map_err(&failed)?;
                let mut over = None;
                while let Some((pid, ended)) = reap().map_err(&failed)? {
                    if pid == child {
                        over = Some(ended);
                    }
                    if let Some(at) = spawned.iter().position(|(one, _)| *one == pid) {
                        let (_, number) = spawned.swap_remove(at);
                        self.socket.report(Report::SpawnedEnded { number, ended }, None).map_err(&failed)?;
                    }
                }
                if let Some(ended) = over {
                    // Orphans are the init's children: without any there is nobody else.
                    let alone =
                        self.defers.is_some() && matches!(process::wait(-1, nix::libc::WNOHANG), Err(Errno::ECHILD));
                    return self.socket.report(Report::Ended { ended, alone }, None).map_err(&failed);
                }
            }
            if interests[1].ready {
                let Some((order, fds)) = self.socket.next_order_with().map_err(&failed)? else {
                    // The launcher is gone.
                    return Ok(());
                };
                match order {
                    Order::Signal(number) => pass_on(child, number),
                    Order::Spawn { number, terminal } => {
                        let pid = self.spawn_another(fds, terminal)?;
                        patience_ms = Some(supervise::GIVE_BACK_MS);
                        spawned.extend(pid.map(|pid| (pid, number)));
                        self.socket.report(Report::Spawned { number }, None).map_err(&failed)?;
                    }
                    Order::SignalSpawned { number, signal } => {
                        let called = spawned.iter().find(|(_, one)| *one == number);
                        called.inspect(|(pid, _)| pass_on(*pid, signal));
                    }
                    Order::Mapped | Order::Attached { .. } | Order::Go | Order::GoWith => {}
                }
            }
        }
    }

    /// Starts what the next message says. A failure is told and is not the sandbox's: `None`.
    fn spawn_another(&mut self, streams: Vec<OwnedFd>, terminal: Option<(u16, u16)>) -> Result<Option<Pid>, Failure> {
        let mut bytes = vec![0; spawn::BYTES_MAX];
        let count = self.socket.read_words(&mut bytes).map_err(Failure::at(Step::Handshake, 0))?;
        let started = spawn::decode(&bytes[..count])
            .map_err(Failure::at(Step::Handshake, 0))
            .and_then(|command| self.seal_another(&command, streams, terminal));
        match started {
            Ok(pid) => Ok(Some(pid)),
            Err(failure) => {
                self.socket.report(Report::SpawnFailed(failure), None).map_err(Failure::at(Step::Handshake, 0))?;
                Ok(None)
            }
        }
    }

    fn seal_another(
        &mut self,
        command: &CommandPlan,
        streams: Vec<OwnedFd>,
        terminal: Option<(u16, u16)>,
    ) -> Result<Pid, Failure> {
        // The numbers below are its own standard streams, which the init has closed.
        let aside =
            |stream: &OwnedFd| fs::copy_from(stream.as_fd(), 3).map_err(Failure::at(Step::ArrangeDescriptors, 0));
        let moved = streams.iter().map(aside).collect::<Result<Vec<OwnedFd>, _>>()?;
        drop(streams);
        let spawned = moved.try_into().map_err(|_| Failure::at(Step::ArrangeDescriptors, 0)(Errno::EBADF))?;
        // Likewise: what is opened here takes the lowest numbers.
        let size = terminal;
        let terminal = size.map(|_| self.open_terminal()).transpose()?;
        if let (Some(end), Some((rows, columns))) = (&terminal, size) {
            terminal::set_size(end.as_fd(), rows, columns).map_err(Failure::at(Step::OpenTerminal, 0))?;
        }
        let terminal = terminal.as_ref().map(aside).transpose()?;
        let mut seal = Seal::prepare(self.plan, command, &self.socket, self.mask)?;
        // Numbers of the first command: the init has closed them, and what stands there now is not for a program.
        seal.fds = &[];
        seal.streams_on_terminal = [terminal.is_some(); 3];
        (seal.terminal, seal.spawned) = (terminal, Some(spawned));
        let copy = |ruleset: &OwnedFd| fs::copy_from(ruleset.as_fd(), 3).map_err(Failure::at(Step::Spawn, 0));
        seal.ruleset = self.ruleset.as_ref().map(copy).transpose()?;
        seal.program = self.program;
        let mut stack = ChildStack::new();
        let mut payload = Payload::Command;
        process::vfork(&mut stack, &mut || seal.run(&mut payload)).map_err(Failure::at(Step::Spawn, 0))
    }

    /// A pipe that the command closes must be closed: the init keeps no copy of its streams, nor of anything else but the socket and what more commands need.
    fn let_go_of_streams(&self) {
        let ruleset = self.ruleset.as_ref().map(AsRawFd::as_raw_fd);
        let kept: Vec<i32> = ruleset.into_iter().chain([self.socket.0.as_raw_fd()]).collect();
        let _ = streams::close_others(0, &kept);
    }
}

/// The function runs on beside the init, so it needs memory of its own. Until it begins, the launcher's orders are for its process,
/// which shares the socket: the init must not take one away.
fn spawn_function(seal: &mut Seal<'_>, payload: &mut Payload<'_>) -> Result<Pid, Failure> {
    let failed = Failure::at(Step::Spawn, 0);
    let pipe = std::io::pipe().map_err(|error| failed(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)));
    let (begun, beginning) = pipe?;
    match process::clone_into(0, None).map_err(&failed)? {
        process::Side::Child => {
            let Payload::Function { run, answers } = payload else { return Err(failed(Errno::EINVAL)) };
            let mut beginning = Some(beginning);
            let mut run = || {
                beginning.take();
                run()
            };
            process::exit_now(seal.run(&mut Payload::Function { run: &mut run, answers: *answers }))
        }
        process::Side::Parent { pid, .. } => {
            drop(beginning);
            prctl::set_dumpable(false).map_err(&failed)?;
            // Nothing is ever written: the end comes when the function begins or its process is gone.
            fs::read(begun.as_fd(), &mut [0]).map_err(&failed)?;
            Ok(pid)
        }
    }
}

fn reap() -> Result<Option<(Pid, Ended)>, Errno> {
    match process::wait(-1, nix::libc::WNOHANG) {
        Err(Errno::ECHILD) => Ok(None),
        other => other,
    }
}

/// What a terminal would send to a whole group goes to the command's group, the rest to the command alone.
fn pass_on(child: Pid, number: i32) {
    use nix::libc::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGSTOP, SIGTSTP, SIGWINCH};
    let to_group = matches!(number, SIGINT | SIGQUIT | SIGHUP | SIGTSTP | SIGSTOP | SIGCONT | SIGWINCH);
    // A command that has just ended is no error: its end is already on the way.
    let _ = process::kill(if to_group { -child } else { child }, number);
}

/// The bits of capabilities by name.
pub fn kept(names: &[String]) -> Option<u64> {
    names
        .iter()
        .try_fold(0, |mask, name| name.parse::<Capability>().ok().map(|capability| mask | 1 << capability.index()))
}

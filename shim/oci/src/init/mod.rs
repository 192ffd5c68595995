//! The process inside, from its birth to the exec of the container's program.
//!
//! It is a copy of the runtime's process (clone3(2) without shared memory), so it has everything that was read and opened outside, and may allocate. What
//! it must not do is to take a path of the container for one of the host, or to go on when a step failed: the failure is told and the
//! process ends, and with it all that it had made.

pub mod console;
pub mod identity;
pub mod memory_policy;
pub mod namespaces;
pub mod procfs;
pub mod program;
pub mod rootfs;
pub mod sysctl;

use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use apex_sys::{Errno, fs, net, prctl, process};
use nix::sys::stat::{Mode, umask};
use oci_spec::runtime::{LinuxNamespaceType as Kind, Process, Spec};

use crate::cgroup::Doors;
use crate::hooks::{self, Phase};
use crate::policy::{Narrowing, Prepared};
use crate::seccomp::{Compiled, hand_over};
use crate::state::{self, Record, State, Status};
use crate::wire::{Message, Wire};

use identity::{Labels, Sets};
use namespaces::Namespaces;
use program::Program;
use rootfs::{Context, Rootfs};

/// What is told to a program by its environment and descriptors beyond the bundle.
#[derive(Clone, Debug, Default)]
pub struct Inheritance {
    /// Descriptors from 3 on that the caller's `--preserve-fds` passes on.
    pub preserved: u32,
    /// Variables: those of socket activation (sd_listen_fds(3)).
    pub variables: Vec<String>,
}

/// What the process needs to become the program, in a container that is made or in one that runs.
#[derive(Debug)]
pub struct Sealing<'a> {
    /// Who and what it is.
    pub process: &'a Process,
    /// The configuration of the container.
    pub spec: &'a Spec,
    /// Its filter of system calls.
    pub seccomp: Option<&'a Compiled>,
    /// What a policy takes away beside.
    pub narrowing: Option<&'a Narrowing>,
    /// The socket for the filter's listener, connected outside.
    pub seccomp_socket: Option<OwnedFd>,
    /// What else the program gets.
    pub inheritance: &'a Inheritance,
}

/// Everything that the process inside has from outside.
#[derive(Debug)]
pub struct Inside<'a> {
    /// The last steps.
    pub sealing: Sealing<'a>,
    /// The container as it will be written down; its pid is not known here.
    pub record: &'a Record,
    /// The directory of the bundle.
    pub bundle: &'a Path,
    /// New and joined ones.
    pub namespaces: &'a Namespaces,
    /// Whether a stage has joined them.
    pub is_staged: bool,
    /// The way into the cgroup, if it is entered from inside.
    pub doors: Option<Doors>,
    /// What a mount of type cgroup shows.
    pub cgroups: &'a rootfs::Cgroups,
    /// Trees that were taken outside.
    pub trees: rootfs::Outside,
    /// Whether the limits and the score are set by the outside, which alone may.
    pub is_limited_outside: bool,
    /// Whether the outside must do something before anything else happens.
    pub awaits_admission: bool,
    /// Whether the root is changed by moving a mount.
    pub no_pivot: bool,
    /// Whether the caller's session keyring is kept.
    pub keeps_keyring: bool,
    /// Descriptors of the outside that must not be held here too: its lock of the container, which would last as long as the container, and its end of
    /// the conversation, whose end would not be seen here when the outside is killed.
    pub outside: [RawFd; 2],
    /// The conversation with the outside.
    pub wire: Wire,
    /// The socket on which the start is awaited.
    pub start: OwnedFd,
    /// Where the terminal's master goes.
    pub console: Option<OwnedFd>,
}

/// Makes the container and becomes its program. Returns only the exit code of a failure, which has been told.
pub fn run(inside: Inside<'_>) -> i32 {
    if inside.outside.into_iter().try_for_each(forget).is_err() {
        return 1;
    }
    let wire = Wire::over(match inside.wire.socket().try_clone_to_owned() {
        Ok(socket) => socket,
        Err(_) => return 1,
    });
    let told = match make(inside) {
        Ok(never) => never,
        Err((error, None)) => wire.say(&Message::Failed(format!("{error:#}"))),
        Err((error, Some(starter))) => starter.say(&Message::Failed(format!("{error:#}"))),
    };
    // Nobody is left to tell.
    drop(told);
    1
}

/// Closes a descriptor that belongs to the outside, of which this process is a copy that never returns to it.
///
/// # Errors
/// The kernel refuses.
pub fn forget(number: RawFd) -> Result<(), Errno> {
    process::close_from(number.unsigned_abs(), number.unsigned_abs(), false)
}

/// An error and, once it is known, who asked for the start and is told.
type Failure = (anyhow::Error, Option<Wire>);

fn make(inside: Inside<'_>) -> Result<Result<(), crate::wire::WireError>, Failure> {
    let early = |error| (error, None);
    let pid = enter_container(&inside).map_err(early)?;
    let own = Record { pid, ..inside.record.clone() };
    let state = |status| state::state(&own, status);
    let Inside {
        sealing,
        bundle,
        cgroups,
        trees,
        no_pivot,
        wire,
        start,
        console,
        keeps_keyring,
        record,
        is_limited_outside,
        ..
    } = inside;
    let labels = Labels::open(sealing.process).map_err(|error| early(error.into()))?;
    if !keeps_keyring {
        join_keyring(record).map_err(early)?;
    }
    let context = Context::new(sealing.spec, bundle, cgroups);
    let mut root = Rootfs::prepare(&context, trees).map_err(|error| early(error.into()))?;
    // Hooks of the container's author find the files of its root by relative paths, as with runc.
    fs::enter(root.root()).context("cannot change to the container's root").map_err(early)?;
    run_hooks(sealing.spec, &wire, &state(Status::Creating).to_json()).map_err(early)?;
    root.enter(no_pivot).map_err(|error| early(error.into()))?;
    if let Some(socket) = console {
        let console = console::console(&root).map_err(|error| early(error.into()))?;
        take_terminal(sealing.process, &console, &socket).map_err(early)?;
    }
    set_parameters(sealing.spec, &root).map_err(early)?;
    root.seal().map_err(|error| early(error.into()))?;
    drop(root);
    if !is_limited_outside {
        // Not before: what was opened until here counts too.
        identity::limit(0, sealing.process.rlimits().as_ref()).map_err(|error| early(error.into()))?;
    }
    let (program, rules) = sealing.become_user(&labels).map_err(early)?;
    sealing.seal_early(rules.as_ref(), || state(Status::Creating)).map_err(early)?;
    wire.say(&Message::Ready).map_err(|error| early(error.into()))?;
    wire.expect(&Message::Recorded).map_err(|error| early(error.into()))?;
    drop(wire);
    let (starter, is_looked_at) = await_start(start).map_err(early)?;
    let begins = || Ok(starter.say(&Message::Ready)?);
    let error = sealing.finish(&program, rules.as_ref(), begins, || {
        if is_looked_at {
            let shown = starter.say(&Message::Sealed).and_then(|()| starter.expect(&Message::Seen));
            shown.context("cannot wait for the receipt: does the filter allow sendmsg(2) and recvmsg(2)?")?;
        }
        let created = state(Status::Created).to_json();
        let environment = program::environment(sealing.process, &sealing.inheritance.variables);
        hooks::run_inside(sealing.spec.hooks().as_ref(), &created, &environment).map_err(Into::into)
    });
    Err((error, Some(starter)))
}

/// Into the cgroup and the namespaces. Returns the pid outside, if somebody will want to know it, otherwise 0.
fn enter_container(inside: &Inside<'_>) -> Result<i32> {
    let Inside { namespaces, sealing, wire, .. } = inside;
    if let Some(doors) = &inside.doors {
        doors.walk_in().context("cannot enter the container's cgroup")?;
    }
    let pid = match inside.awaits_admission {
        true => wire.admitted().context("the outside did not admit the container")?,
        false => 0,
    };
    if !inside.is_limited_outside {
        identity::set_oom_score("self", sealing.process.oom_score_adj())?;
    }
    if !namespaces.has(Kind::User) {
        hide()?;
    }
    if !inside.is_staged {
        namespaces.join()?;
    }
    if namespaces.has(Kind::User) {
        become_root_inside()?;
    }
    namespaces.make_cgroup()?;
    process::new_session().context("cannot start a session")?;
    if namespaces.makes(Kind::Network) {
        net::loopback_up().context("cannot bring up the loopback device of the new network namespace")?;
    }
    name_host(sealing.spec)?;
    Ok(pid)
}

/// In a new user namespace the process has capabilities but nobody's id; what it makes shall belong to the container's root.
fn become_root_inside() -> Result<()> {
    let why =
        "cannot become root of the user namespace; do linux.uidMappings and linux.gidMappings map container id 0?";
    match process::set_groups(&[]) {
        // Switched off where an unprivileged user mapped.
        Ok(()) | Err(Errno::EPERM) => {}
        Err(errno) => return Err(errno).context(why),
    }
    process::set_gid(0).and_then(|()| process::set_uid(0)).context(why)?;
    // Not before: as long as its ids are not mapped, the outside must be able to write to its files in /proc.
    hide()
}

/// Until the program is executed, processes of the same id that share the container's pid namespace, such as an exec before the start, must neither
/// read this one's memory nor trace it.
///
/// # Errors
/// The kernel refuses.
pub fn hide() -> Result<()> {
    prctl::set_dumpable(false).context("cannot hide the runtime's memory from the container")
}

fn name_host(spec: &Spec) -> Result<()> {
    let given = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
    if let Some(name) = given(spec.hostname()) {
        process::set_hostname(name.as_bytes()).with_context(|| format!("cannot set the host name {name:?}"))?;
    }
    if let Some(name) = given(spec.domainname()) {
        process::set_domainname(name.as_bytes()).with_context(|| format!("cannot set the domain name {name:?}"))?;
    }
    Ok(())
}

/// Whether hooks of the init will be told its pid.
pub fn wants_pid(spec: &Spec) -> bool {
    [Phase::CreateContainer, Phase::StartContainer]
        .iter()
        .any(|phase| !hooks::of(spec.hooks().as_ref(), *phase).is_empty())
}

/// Keys of whoever called the runtime are not the container's.
fn join_keyring(record: &Record) -> Result<()> {
    let name = std::ffi::CString::new(format!("_ses.{}", record.id)).unwrap_or_default();
    match process::new_session_keyring(&name) {
        // A kernel without keys, or a filter of the outer container that refuses the call: then there is no keyring to leave.
        Ok(()) | Err(Errno::ENOSYS | Errno::EPERM) => Ok(()),
        Err(errno) => Err(errno).context("cannot leave the caller's session keyring; --no-new-keyring keeps it"),
    }
}

/// The hooks before the change of root, of which the outside runs the first two kinds.
fn run_hooks(spec: &Spec, wire: &Wire, state: &str) -> Result<()> {
    let hooks = spec.hooks().as_ref();
    let is_outside = |phase| !hooks::of(hooks, phase).is_empty();
    if is_outside(Phase::Prestart) || is_outside(Phase::CreateRuntime) {
        wire.say(&Message::Mounted)?;
        wire.expect(&Message::Hooked)?;
    }
    hooks::run(hooks, Phase::CreateContainer, state)?;
    Ok(())
}

fn set_parameters(spec: &Spec, root: &Rootfs<'_>) -> Result<()> {
    let is_wanted = spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref()).is_some_and(|all| !all.is_empty());
    if is_wanted {
        sysctl::apply(spec, &root.procfs()?)?;
    }
    Ok(())
}

/// Makes a terminal of the container the process's own; its other end goes to the caller.
///
/// # Errors
/// The kernel refuses, or the socket's other end is gone.
pub fn take_terminal(process: &Process, console: &console::Console, socket: &OwnedFd) -> Result<()> {
    if let Some(size) = process.console_size() {
        let cells = |count: u64| u16::try_from(count).unwrap_or(u16::MAX);
        apex_sys::terminal::set_size(console.slave.as_fd(), cells(size.height()), cells(size.width()))
            .context("cannot give the terminal the size of process.consoleSize")?;
    }
    net::send(socket.as_fd(), b"/dev/ptmx", &[console.master.as_fd()])
        .context("cannot send the terminal through the console socket")?;
    for number in 0..3 {
        fs::place(console.slave.as_fd(), number).context("cannot make the terminal a standard stream")?;
    }
    apex_sys::terminal::set_controlling(console.slave.as_fd()).context("cannot make the terminal the controlling one")
}

/// Waits until somebody starts the container; says who, and whether they want to look at it before the program.
fn await_start(socket: OwnedFd) -> Result<(Wire, bool)> {
    loop {
        let starter = Wire::over(net::accept_blocking(socket.as_fd()).context("cannot wait for the start")?);
        // Who came and went without a word is no start.
        if let Ok(Some(message @ (Message::Go | Message::GoSlowly))) = starter.next() {
            return Ok((starter, message == Message::GoSlowly));
        }
    }
}

impl Sealing<'_> {
    /// Gives up everything that the program shall not have, but what the last steps need. Returns the program, found as the user, and the rules of
    /// the policy for it.
    ///
    /// # Errors
    /// A step that failed.
    pub fn become_user(&self, labels: &Labels) -> Result<(Program, Option<Prepared<'_>>)> {
        let process = self.process;
        let linux = self.spec.linux().as_ref();
        identity::schedule(process, linux.and_then(|linux| linux.personality().as_ref()))?;
        if let Some(policy) = linux.and_then(|linux| linux.memory_policy().as_ref()) {
            memory_policy::apply(policy)?;
        }
        own_streams(process);
        if process.no_new_privileges().unwrap_or(false) {
            prctl::set_no_new_privs().context("cannot set no_new_privs")?;
        }
        labels.write()?;
        let entered = program::enter_directory(process.cwd());
        let rules = self.narrowing.map(|narrowing| self.prepare(narrowing)).transpose()?;
        identity::become_user(process, Sets::of(process), self.needs_admin())?;
        if entered.is_err() {
            // A directory that only the user may enter.
            program::enter_directory(process.cwd())?;
        }
        let mask = process.user().umask().unwrap_or(0o022);
        umask(Mode::from_bits_truncate(mask));
        Ok((Program::find(process, &self.inheritance.variables)?, rules))
    }

    /// Makes the rules of the policy while every file can be looked at.
    fn prepare<'n>(&self, narrowing: &'n Narrowing) -> Result<Prepared<'n>> {
        let program = Program::find(self.process, &self.inheritance.variables)?;
        let path = std::path::absolute(program.path()).context("cannot tell the program's absolute path")?;
        Ok(narrowing.prepare(&path)?)
    }

    /// A filter without no_new_privs needs CAP_SYS_ADMIN.
    fn needs_admin(&self) -> bool {
        self.seccomp.is_some() && !self.process.no_new_privileges().unwrap_or(false)
    }

    /// With a listener the filter is loaded before the container is ready: who creates it waits for the listener. Its agent then judges the few calls
    /// that are left of this process, too.
    ///
    /// # Errors
    /// The kernel or the agent refuses.
    pub fn seal_early(&self, rules: Option<&Prepared<'_>>, state: impl FnOnce() -> State) -> Result<()> {
        if self.has_listener() { self.seal(rules, Some(state())) } else { Ok(()) }
    }

    fn has_listener(&self) -> bool {
        self.seccomp.is_some_and(|filter| filter.listener().is_some())
    }

    /// The last steps, then the hooks, to which they apply as well, then the program. Returns only on failure.
    pub fn finish(
        &self,
        program: &Program,
        rules: Option<&Prepared<'_>>,
        begins: impl FnOnce() -> Result<()>,
        hooks: impl FnOnce() -> Result<()>,
    ) -> anyhow::Error {
        // Before the filter, which need not allow to say anything: from here on the end of the conversation means that the program began.
        let sealed = || if self.has_listener() { Ok(()) } else { self.seal(rules, None) };
        if let Err(error) = begins().and_then(|()| sealed()).and_then(|()| hooks()) {
            return error;
        }
        // Ignored while hooks are written to; where the filter refuses even this, the program is no less confined.
        let _ = apex_sys::signal::by_default(nix::libc::SIGPIPE);
        program.exec().into()
    }

    /// Descriptors and the filter. `state` is what a listener is told of the container.
    fn seal(&self, rules: Option<&Prepared<'_>>, state: Option<State>) -> Result<()> {
        process::close_from(self.inheritance.preserved.saturating_add(3), u32::MAX, true)
            .context("cannot close the runtime's descriptors")?;
        if let Some(rules) = rules {
            rules.enforce().context("cannot put the policy in force")?;
        }
        let Some(filter) = self.seccomp else { return Ok(()) };
        if self.needs_admin() {
            identity::raise_admin(Sets::of(self.process)).context(
                "a filter of system calls without process.noNewPrivileges needs CAP_SYS_ADMIN; set noNewPrivileges",
            )?;
        }
        let message = match (filter.listener(), state) {
            (Some(listener), Some(state)) => Some(listener.message(&state)),
            _ => None,
        };
        let listener = filter.load().context("cannot load the filter of system calls")?;
        match (listener, &self.seccomp_socket, message) {
            (None, _, _) => Ok(()),
            (Some(listener), Some(socket), Some(message)) => hand_over(socket, &message, listener.as_fd())
                .context("cannot hand the filter's listener over to linux.seccomp.listenerPath"),
            (Some(_), _, _) => bail!("the filter has a listener and linux.seccomp.listenerPath names no socket for it"),
        }
    }
}

/// The streams belong to the program's user, so that it can open them again by /dev/stdout and its like.
fn own_streams(process: &Process) {
    let uid = process.user().uid();
    for number in 0..3 {
        let Ok(facts) = fs::stat_number(number) else { continue };
        let is_null = facts.is(nix::libc::S_IFCHR) && !apex_sys::terminal::is_terminal(fs::borrow_known(number));
        if facts.uid != uid && !is_null {
            // A file system without owners, or a stream of somebody else's: then it stays as it is.
            let _ = nix::unistd::fchown(fs::borrow_known(number), Some(uid.into()), None);
        }
    }
}

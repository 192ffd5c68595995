//! The prober from the side of `apex-run`: finds it, starts it, and speaks [`apex_core::watch`] with it over descriptor 3.
//!
//! Input: options and plan. Output: a [`Watcher`] for the jail. The prober is a process of its own, so that `apex-run` stays small and
//! whoever parses what a hostile program wrote is not the process that holds the sandbox. Every wait for it is bounded, and whatever is
//! wrong with it is an error: what is to be watched does not run unwatched.

use std::collections::VecDeque;
use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use apex_core::control::Shut;
use apex_core::event::{ARGS_MAX, Start, TEXT_BYTES_MAX, VERSION};
use apex_core::plan::Plan;
use apex_core::seccomp::trace::Scope;
use apex_core::summary::ProbeCost;
use apex_core::watch::{Begin, FromProbe, Learn, PACKET_BYTES_MAX, Reaction, SOCKET_FD, Sink, ToProbe};
use apex_jail::watch::{Act, Needs, Standing, Told, Watcher};
use apex_run::escape;
use apex_run::options::Options;
use apex_run::unsaid::Unsaid;
use apex_sys::process::{self, CStrings, Ended, Pid, Side};
use apex_sys::signal::{self, Interest};
use apex_sys::{Errno, clock, fs, net};

/// Where it is installed when it does not stand beside `apex-run`.
const INSTALLED: &str = "/usr/libexec/apex/apex-probe";
/// Names one for tests.
const VARIABLE: &str = "APEX_PROBE";
/// Variables of the caller that it gets.
const PASSED: [&str; 7] =
    ["HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "TMPDIR", "NO_COLOR", "SSL_CERT_FILE", "SSL_CERT_DIR"];
/// How long loading and attaching may take; a busy emulated machine needs seconds.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long telling of costs may take: the sandbox is supervised by whoever waits, and nothing hangs on the figures.
const COSTS_WITHIN: Duration = Duration::from_secs(1);
/// How long the rest of the record may take once the sandbox is gone.
const DONE_WITHIN: Duration = Duration::from_secs(60);
/// How long it may take to end after its last word.
const END_WITHIN: Duration = Duration::from_secs(5);
/// For what it may still have said or how it ended, before the sandbox is ended too.
const WORDS_WITHIN: Duration = Duration::from_millis(500);
/// As signal(7) numbers it.
const SIGKILL: i32 = 9;
/// What a record keeps of the command line, in bytes: a packet holds it with every byte escaped.
const COMMAND_BYTES_MAX: usize = 8 << 10;
/// Whom else than their owner may write the prober's program (inode(7)).
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The prober of one run.
pub struct Prober {
    program: OwnedFd,
    begin: Begin,
    alive: Option<Alive>,
    /// Refusals that did not fit into the socket and have not been told of yet.
    lost: u64,
    /// The finding for which the sandbox was ended.
    caught: Option<String>,
    /// What it asked for while the answer to something else was awaited.
    acts: VecDeque<Act>,
    /// It was killed, since it did not let the sandbox end.
    abandoned: bool,
    unsaid: Unsaid,
}

/// Its process.
struct Alive {
    pid: Pid,
    pidfd: OwnedFd,
    socket: OwnedFd,
}

impl Prober {
    /// Finds the program, so that its absence is told before anything is built.
    pub fn new(options: &Options, plan: &Plan, rules: Vec<PathBuf>) -> anyhow::Result<Prober> {
        let text = |word: &std::ffi::OsString| word.to_string_lossy().into_owned();
        let rules = rules.into_iter().map(|dir| dir.to_string_lossy().into_owned());
        let begin = Begin {
            start: Start {
                version: VERSION,
                wall_time_ns: clock::wall_ns(),
                mode: plan.mode.name().to_owned(),
                profile: options.profile.clone(),
                plan_sha256: plan.digest(),
                command: cut(plan.command.argv.iter().map(text).collect()),
                level: plan.watch,
                sources: Default::default(),
            },
            events: options.events.clone(),
            findings: options.findings.clone(),
            on_finding: options.on_finding.unwrap_or_default(),
            summary: options.summary,
            json: options.json,
            learn: None,
            rules: rules.collect(),
            has_listener: plan.seccomp.is_some(),
            record: options.why,
            baseline: options.baseline,
            may_probe: apex_jail::host::may_load_programs(),
        };
        Ok(Prober {
            program: find(plan.identity.caller_uid)?,
            begin,
            alive: None,
            lost: 0,
            caught: None,
            acts: VecDeque::new(),
            abandoned: false,
            unsaid: Unsaid::default(),
        })
    }

    /// Has a policy learned from what is seen.
    pub fn learning(mut self, learn: Option<Learn>) -> Prober {
        self.begin.learn = learn;
        self
    }

    /// The finding for which the sandbox was ended.
    pub fn caught(&self) -> Option<&str> {
        self.caught.as_deref()
    }

    /// After the sandbox: has the record written to its end.
    pub fn finish(mut self) -> Result<(), String> {
        if self.alive.is_none() {
            return Ok(());
        }
        if self.abandoned {
            return Err(
                "the prober did not let the sandbox end, as one that somebody stopped (SIGSTOP), and was killed"
                    .to_owned(),
            );
        }
        self.tell_lost(DONE_WITHIN)?;
        self.send(&ToProbe::Ended, None, DONE_WITHIN)?;
        let deadline = Instant::now() + DONE_WITHIN;
        loop {
            match self.receive_by(deadline, DONE_WITHIN)? {
                FromProbe::Done { .. } => break,
                FromProbe::Failed { words } => return Err(escape::text(&words).into_owned()),
                // Asked for while the end was already on its way.
                FromProbe::Act { .. }
                | FromProbe::Prepared { .. }
                | FromProbe::Watching
                | FromProbe::Turned { .. }
                | FromProbe::Costs { .. } => {}
            }
        }
        self.reap(END_WITHIN);
        Ok(())
    }

    /// Without waiting: standard error may be full, the sandbox may have filled it, and its wall time runs on. What finds no room is said at the end.
    fn say(&mut self, words: &str) {
        let line = format!("apex-run: {words}\n");
        let written = match self.unsaid.is_empty() {
            true => fs::write_at_once(std::io::stderr().as_fd(), line.as_bytes()).unwrap_or(0),
            false => 0,
        };
        self.unsaid.keep(&line.as_bytes()[written..]);
    }

    fn alive(&self) -> Result<&Alive, String> {
        self.alive.as_ref().ok_or_else(|| "the prober is not running".to_owned())
    }

    fn send(&mut self, said: &ToProbe, fd: Option<BorrowedFd<'_>>, within: Duration) -> Result<(), String> {
        let bytes = packet(said)?;
        let deadline = Instant::now() + within;
        let socket = self.alive()?.socket.as_fd();
        loop {
            match net::try_send(socket, &bytes, fd.as_slice()) {
                Ok(()) => return Ok(()),
                Err(Errno::EAGAIN) => wait_for(socket, true, deadline).map_err(|_| slow(within))?,
                Err(_) => return Err(self.death()),
            }
        }
    }

    fn receive(&mut self, within: Duration) -> Result<FromProbe, String> {
        self.receive_by(Instant::now() + within, within)
    }

    /// `within` is what is told when nothing came by then.
    fn receive_by(&mut self, deadline: Instant, within: Duration) -> Result<FromProbe, String> {
        let socket = self.alive()?.socket.as_fd();
        wait_for(socket, false, deadline).map_err(|_| slow(within))?;
        let mut bytes = vec![0; PACKET_BYTES_MAX];
        match net::receive(socket, &mut bytes) {
            Ok((0, _)) | Err(_) => Err(self.death()),
            Ok((count, _)) => serde_json::from_slice(&bytes[..count]).map_err(|error| {
                let error = error.to_string();
                let error = escape::text(&error);
                format!("the prober said what apex-run does not understand ({error}); are both of one version?")
            }),
        }
    }

    /// Counts what was not told, as soon as there is room for the count.
    fn tell_lost(&mut self, within: Duration) -> Result<(), String> {
        if self.lost > 0 {
            self.send(&ToProbe::Lost { count: self.lost }, None, within)?;
            self.lost = 0;
        }
        Ok(())
    }

    /// Words for a prober that is gone. What it said last counts more than how it ended.
    fn death(&mut self) -> String {
        if let Some(words) = self.last_words() {
            return words;
        }
        // Nobody waits here for one that lives and has only let go of its socket: the sandbox would run on meanwhile.
        let has_ended = self
            .alive
            .as_ref()
            .is_some_and(|alive| wait_for(alive.pidfd.as_fd(), false, Instant::now() + WORDS_WITHIN).is_ok());
        match has_ended.then(|| self.reap(Duration::ZERO)).flatten() {
            Some(Ended::Signal(number)) => format!("the prober was ended by signal {number}"),
            Some(Ended::Code(code)) => format!("the prober ended with code {code} before the sandbox did"),
            None => "the prober closed its socket".to_owned(),
        }
    }

    fn last_words(&self) -> Option<String> {
        let socket = self.alive.as_ref()?.socket.as_fd();
        let mut bytes = vec![0; PACKET_BYTES_MAX];
        let deadline = Instant::now() + WORDS_WITHIN;
        while wait_for(socket, false, deadline).is_ok()
            && let Ok((count @ 1.., _)) = net::receive(socket, &mut bytes)
        {
            if let Ok(FromProbe::Failed { words }) = serde_json::from_slice(&bytes[..count]) {
                return Some(escape::text(&words).into_owned());
            }
        }
        None
    }

    /// Waits for its end, and brings it about after `within`.
    fn reap(&mut self, within: Duration) -> Option<Ended> {
        let alive = self.alive.take()?;
        // For it the launcher is gone from here on.
        drop(alive.socket);
        if wait_for(alive.pidfd.as_fd(), false, Instant::now() + within).is_err() {
            let _ = process::pidfd_signal(alive.pidfd.as_raw_fd(), SIGKILL);
        }
        process::wait(alive.pid, 0).ok().flatten().map(|(_, ended)| ended)
    }

    /// Has a dial turned, and waits for it.
    fn turn(&mut self, said: &ToProbe) -> Result<(), String> {
        match self.asked(said, READY_WITHIN)? {
            FromProbe::Turned { error: None } => Ok(()),
            FromProbe::Turned { error: Some(words) } => Err(escape::text(&words).into_owned()),
            other => Err(out_of_turn(other)),
        }
    }

    /// Asks, and waits for the answer.
    fn asked(&mut self, said: &ToProbe, within: Duration) -> Result<FromProbe, String> {
        self.send(said, None, within)?;
        let deadline = Instant::now() + within;
        loop {
            match self.receive_by(deadline, within)? {
                // Said before it heard us. As many as it says; each is served by the next round of the supervision.
                FromProbe::Act { reaction, because } => self.acts.push_back(Act { reaction, because }),
                // Too late for whoever asked.
                FromProbe::Costs { .. } if *said != ToProbe::Costs => {}
                answer => return Ok(answer),
            }
        }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        // The sandbox is gone. A closed standard error leaves nobody to tell.
        let _ = std::io::stderr().write_all(&std::mem::take(&mut self.unsaid).into_words());
        // After an error: it writes what it has and ends, since its socket is closed.
        self.reap(END_WITHIN);
    }
}

impl Watcher for Prober {
    fn begin(&mut self) -> Result<(), String> {
        let failed = |errno: Errno| format!("starting the prober: {}", errno.desc());
        let (outer, inner) = net::pair().map_err(failed)?;
        match process::clone_into(0, None).map_err(failed)? {
            Side::Child => {
                let begin = &self.begin;
                let writes_out = begin.events.iter().chain(&begin.findings).any(|sink| *sink == Sink::Stdout);
                let errno = become_prober(&self.program, &inner, writes_out);
                let _ = writeln!(std::io::stderr(), "apex-run: executing the prober: {}", errno.desc());
                process::exit_now(125)
            }
            Side::Parent { pid, pidfd } => self.alive = Some(Alive { pid, pidfd, socket: outer }),
        }
        let begin = ToProbe::Begin(Box::new(self.begin.clone()));
        self.send(&begin, None, READY_WITHIN)
    }

    fn prepared(&mut self) -> Result<Needs, String> {
        match self.receive(READY_WITHIN)? {
            FromProbe::Prepared { wants_cgroup, wants_trace, .. } => {
                let trace = Scope::of_run(&self.begin).filter(|_| wants_trace);
                Ok(Needs { cgroup: wants_cgroup, trace })
            }
            other => Err(out_of_turn(other)),
        }
    }

    fn attach(&mut self, standing: &Standing<'_>) -> Result<(), String> {
        let sandbox = ToProbe::Sandbox {
            id: standing.id,
            has_cgroup: standing.cgroup.is_some(),
            init: standing.init.unsigned_abs(),
            command: standing.command.unsigned_abs(),
            traced: standing.traced,
        };
        self.send(&sandbox, standing.cgroup, READY_WITHIN)?;
        match self.receive(READY_WITHIN)? {
            FromProbe::Watching => Ok(()),
            other => Err(out_of_turn(other)),
        }
    }

    fn refused(&mut self, told: Told) {
        let said = ToProbe::Refused {
            time_ns: clock::since_boot_ns(),
            pid: told.pid,
            ppid: told.ppid,
            uid: told.uid,
            comm: told.comm,
            refused: Box::new(told.refused),
            error: told.error,
        };
        let Some(alive) = &self.alive else { return };
        let socket = alive.socket.as_fd();
        let tell = |said: &ToProbe| packet(said).is_ok_and(|bytes| net::try_send(socket, &bytes, &[]).is_ok());
        // In this order: the count is of what came before.
        if self.lost > 0 && tell(&ToProbe::Lost { count: self.lost }) {
            self.lost = 0;
        }
        if self.lost > 0 || !tell(&said) {
            self.lost += 1;
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.alive.as_ref().map(|alive| alive.socket.as_fd())
    }

    fn next(&mut self) -> Result<Option<Act>, String> {
        let act = match self.acts.pop_front() {
            Some(act) => act,
            None => match self.receive(READY_WITHIN)? {
                FromProbe::Act { reaction, because } => Act { reaction, because },
                // Nobody waits for it any more.
                FromProbe::Costs { .. } => return Ok(None),
                other => return Err(out_of_turn(other)),
            },
        };
        if act.reaction == Reaction::Kill {
            self.caught = Some(act.because.clone());
        }
        Ok(Some(act))
    }

    fn has_more(&self) -> bool {
        !self.acts.is_empty()
    }

    fn cut(&mut self, cut: bool) -> Result<(), String> {
        self.turn(&ToProbe::Cut { cut })
    }

    fn shut(&mut self, shut: Shut) -> Result<(), String> {
        self.turn(&ToProbe::Shut { shut })
    }

    fn costs(&mut self) -> Result<Vec<ProbeCost>, String> {
        match self.asked(&ToProbe::Costs, COSTS_WITHIN)? {
            FromProbe::Costs { probes } => Ok(probes),
            other => Err(out_of_turn(other)),
        }
    }

    fn acted(&mut self, act: &Act, outcome: Result<&str, &str>) {
        let because = escape::text(&act.because);
        let own = std::process::id();
        match (act.reaction, outcome) {
            (Reaction::Freeze, Ok(done)) => self.say(&format!(
                "frozen because of `{because}`: {done}; `kill -CONT {own}` lets it go on, `kill {own}` ends it"
            )),
            (reaction, Ok(done)) => self.say(&format!("{} because of `{because}`: {done}", done_of(reaction))),
            (reaction, Err(words)) => {
                self.say(&format!("to be {} because of `{because}`, which did not work: {words}", done_of(reaction)));
            }
        }
    }

    fn thawed(&mut self) {
        self.say("the sandbox goes on");
    }

    fn hold(&mut self, frozen: bool) -> Result<(), String> {
        self.send(&ToProbe::Hold { frozen }, None, READY_WITHIN)
    }

    fn abandon(&mut self) {
        self.abandoned = true;
        if let Some(alive) = &self.alive {
            let _ = process::pidfd_signal(alive.pidfd.as_raw_fd(), SIGKILL);
        }
    }
}

/// In the child: the socket as descriptor 3, nothing of the caller's but standard error and, for a sink there, standard output, a session of its
/// own, so that what a terminal sends does not reach it. Returns why it did not work.
fn become_prober(program: &OwnedFd, socket: &OwnedFd, writes_out: bool) -> Errno {
    let arrange = || -> Result<OwnedFd, Errno> {
        process::new_session()?;
        // A copy that the socket does not overwrite.
        let program = fs::copy_from(program.as_fd(), SOCKET_FD + 1)?;
        let null = fs::open(fs::cwd(), c"/dev/null", 2, 0)?;
        fs::place(null.as_fd(), 0)?;
        if !writes_out {
            // Whoever waits for the end of the command's output waits for the command alone.
            fs::place(null.as_fd(), 1)?;
        }
        fs::place(socket.as_fd(), SOCKET_FD)?;
        process::close_from(SOCKET_FD.unsigned_abs(), u32::MAX, true)?;
        fs::set_inherited(SOCKET_FD, true)?;
        Ok(program)
    };
    let words = |list: &[&str]| CStrings::new(list.iter().filter_map(|word| CString::new(*word).ok()).collect());
    match arrange() {
        Ok(program) => process::exec_open(program.as_fd(), &words(&["apex-probe", "serve"]), &environment()),
        Err(errno) => errno,
    }
}

fn environment() -> CStrings {
    let passed = std::env::vars_os().filter(|(name, _)| PASSED.iter().any(|passed| name == passed));
    let variable = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok()
    };
    CStrings::new(passed.filter_map(variable).collect())
}

/// Opens the prober's program; its name is not used again.
fn find(caller_uid: u32) -> anyhow::Result<OwnedFd> {
    let beside = || std::fs::read_link("/proc/self/exe").ok().map(|own| own.with_file_name("apex-probe"));
    let candidates: Vec<PathBuf> = match std::env::var_os(VARIABLE) {
        Some(named) => vec![PathBuf::from(named)],
        None => beside().into_iter().chain([PathBuf::from(INSTALLED)]).collect(),
    };
    for path in &candidates {
        match open_program(path) {
            Ok(program) => {
                let about = fs::stat(program.as_fd(), c"")
                    .map_err(|errno| anyhow::anyhow!("looking at the prober {}: {}", path.display(), errno.desc()))?;
                if let Some(why) = distrust(&about, caller_uid, path) {
                    anyhow::bail!("the prober {} would run with your rights, but {why}", path.display());
                }
                return Ok(program);
            }
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) => anyhow::bail!("opening the prober {}: {}", path.display(), errno.desc()),
        }
    }
    let names: Vec<String> = candidates.iter().map(|path| path.display().to_string()).collect();
    anyhow::bail!(
        "watching needs the program apex-probe, which is not there ({}); build it with `cargo build --release -p apex-probe` and put \
         it beside apex-run, or install it as {INSTALLED}; or leave --watch and its options out",
        names.join(", ")
    )
}

/// Why a program does not get the caller's rights: somebody else could have put it there.
fn distrust(about: &fs::Stat, caller_uid: u32, path: &Path) -> Option<String> {
    if ![0, caller_uid].contains(&about.uid) {
        let uid = about.uid;
        return Some(format!("it belongs to user {uid}; install one of your own or root's"));
    }
    let mode = about.mode & 0o7777;
    let path = path.display();
    (mode & WRITABLE_BY_OTHERS != 0).then(|| {
        format!("it can be written by others (mode {mode:o}); `chmod go-w {path}` if it is what you installed")
    })
}

fn open_program(path: &Path) -> Result<OwnedFd, Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    fs::open(fs::cwd(), &path, 0, 0)
}

/// As much of a command line as an event keeps and a packet holds.
fn cut(words: Vec<String>) -> Vec<String> {
    let mut left = COMMAND_BYTES_MAX;
    let fits = |word: &String| {
        left = left.saturating_sub(word.len());
        left > 0
    };
    let short = |word: String| match word.char_indices().find(|(at, c)| at + c.len_utf8() > TEXT_BYTES_MAX) {
        Some((at, _)) => word[..at].to_owned(),
        None => word,
    };
    words.into_iter().take(ARGS_MAX).map(short).take_while(fits).collect()
}

fn packet(said: &ToProbe) -> Result<Vec<u8>, String> {
    let bytes =
        serde_json::to_vec(said).map_err(|error| format!("putting a message to the prober together: {error}"))?;
    match bytes.len() {
        ..=PACKET_BYTES_MAX => Ok(bytes),
        count => Err(format!(
            "a message to the prober has {count} bytes, more than {PACKET_BYTES_MAX}; give fewer sinks and shorter names"
        )),
    }
}

/// Waits until the descriptor is ready; an error when it is not in time.
fn wait_for(fd: BorrowedFd<'_>, write: bool, deadline: Instant) -> Result<(), Errno> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Errno::ETIMEDOUT);
        }
        let ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
        if signal::poll(&mut [Interest { fd, write, ready: false }], Some(ms))? {
            return Ok(());
        }
    }
}

fn slow(within: Duration) -> String {
    format!("the prober did not answer within {} s", within.as_secs())
}

fn out_of_turn(said: FromProbe) -> String {
    match said {
        FromProbe::Failed { words } => escape::text(&words).into_owned(),
        other => {
            let said = format!("{other:?}");
            format!("the prober said {} out of turn; are apex-run and apex-probe of one version?", escape::text(&said))
        }
    }
}

/// What a sandbox is after a reaction.
const fn done_of(reaction: Reaction) -> &'static str {
    match reaction {
        Reaction::Warn => "warned of",
        Reaction::Freeze => "frozen",
        Reaction::Kill => "ended",
        Reaction::Tighten => "tightened",
    }
}

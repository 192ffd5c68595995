//! Hooks (runtime-spec, "POSIX-platform Hooks"): programs of the bundle's author, run at fixed points with the state on standard input.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use apex_sys::signal::{Interest, poll};
use apex_sys::{Errno, fs, memory, process, terminal};
use oci_spec::runtime::{Hook, Hooks};

/// Bytes of a hook's output that an error repeats.
const OUTPUT_BYTES_MAX: usize = 4096;
/// Blocks that are read of it at once: between them its end and its timeout are looked at.
const READS_MAX: usize = 64;

/// When hooks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Deprecated, like `createRuntime` and before it.
    Prestart,
    /// In the runtime's namespaces, before the root is changed.
    CreateRuntime,
    /// In the container's namespaces, before the root is changed.
    CreateContainer,
    /// In the container, before its program.
    StartContainer,
    /// In the runtime's namespaces, after its program was executed.
    Poststart,
    /// In the runtime's namespaces, after the container was deleted.
    Poststop,
}

impl Phase {
    /// As `config.json` names it.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Prestart => "prestart",
            Phase::CreateRuntime => "createRuntime",
            Phase::CreateContainer => "createContainer",
            Phase::StartContainer => "startContainer",
            Phase::Poststart => "poststart",
            Phase::Poststop => "poststop",
        }
    }
}

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It cannot be executed.
    #[error("cannot execute the {} hook {number} ({path})", phase.name())]
    Execute {
        /// When.
        phase: Phase,
        /// Which of them, from 0.
        number: usize,
        /// Its program.
        path: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// It ended with something else than 0.
    #[error("error running hook {} {number} ({path}): {ended}{output}", phase.name())]
    Failed {
        /// When.
        phase: Phase,
        /// Which of them, from 0.
        number: usize,
        /// Its program.
        path: String,
        /// How it ended.
        ended: String,
        /// What it wrote to standard error.
        output: String,
    },
    /// It did not end in time and was killed.
    #[error("the {} hook {number} ({path}) did not end within its timeout of {seconds} s and was killed", phase.name())]
    Timeout {
        /// When.
        phase: Phase,
        /// Which of them, from 0.
        number: usize,
        /// Its program.
        path: String,
        /// The timeout of the bundle.
        seconds: i64,
    },
}

/// The hooks of a phase.
pub fn of(hooks: Option<&Hooks>, phase: Phase) -> &[Hook] {
    let Some(hooks) = hooks else { return &[] };
    #[allow(deprecated, reason = "bundles still have them, and the specification wants them run")]
    let list = match phase {
        Phase::Prestart => hooks.prestart(),
        Phase::CreateRuntime => hooks.create_runtime(),
        Phase::CreateContainer => hooks.create_container(),
        Phase::StartContainer => hooks.start_container(),
        Phase::Poststart => hooks.poststart(),
        Phase::Poststop => hooks.poststop(),
    };
    list.as_deref().unwrap_or_default()
}

/// Runs the hooks of a phase in their order, each with `state` (JSON) on standard input, until one fails.
///
/// # Errors
/// The first that fails.
pub fn run(hooks: Option<&Hooks>, phase: Phase, state: &str) -> Result<(), HookError> {
    of(hooks, phase).iter().enumerate().try_for_each(|(number, hook)| run_one(hook, phase, number, state, None))
}

/// Runs the `startContainer` hooks, which without a list of variables have those of the program.
///
/// # Errors
/// The first that fails.
pub fn run_inside(hooks: Option<&Hooks>, state: &str, environment: &[String]) -> Result<(), HookError> {
    let phase = Phase::StartContainer;
    let mut all = of(hooks, phase).iter().enumerate();
    all.try_for_each(|(number, hook)| run_one(hook, phase, number, state, Some(environment)))
}

/// Runs all hooks of a phase, whatever becomes of the ones before, and returns what failed.
pub fn run_all(hooks: Option<&Hooks>, phase: Phase, state: &str) -> Vec<HookError> {
    let each = of(hooks, phase).iter().enumerate();
    each.filter_map(|(number, hook)| run_one(hook, phase, number, state, None).err()).collect()
}

fn run_one(
    hook: &Hook,
    phase: Phase,
    number: usize,
    state: &str,
    environment: Option<&[String]>,
) -> Result<(), HookError> {
    let path = hook.path().display().to_string();
    let failed = |source| HookError::Execute { phase, number, path: path.clone(), source };
    let mut child = input(state).and_then(|input| command(hook, environment).stdin(input).spawn()).map_err(failed)?;
    let mut words = Words { pipe: child.stderr.take(), bytes: Vec::new() };
    let waited = wait(&mut child, hook.timeout(), &mut words);
    if !matches!(waited, Ok(Some(_))) {
        // It has not ended: its time is over, or it cannot be waited for.
        let _ = child.kill();
        let _ = child.wait();
    }
    let Some(status) = waited.map_err(failed)? else {
        return Err(HookError::Timeout { phase, number, path, seconds: hook.timeout().unwrap_or_default() });
    };
    if status.success() {
        return Ok(());
    }
    Err(HookError::Failed { phase, number, path, ended: describe(status), output: words.told() })
}

/// The state as a file: a pipe would be full, or broken, before a hook that does not read it.
fn input(state: &str) -> std::io::Result<File> {
    let mut file = File::from(memory::file(c"state")?);
    file.write_all(state.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

/// A hook without a list of variables has those of who runs it.
fn command(hook: &Hook, environment: Option<&[String]>) -> Command {
    let mut command = Command::new(hook.path());
    let mut arguments = hook.args().as_deref().unwrap_or_default().iter();
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments);
    let given = hook.env().as_deref().or(environment);
    if given.is_some() {
        command.env_clear();
    }
    for pair in given.unwrap_or_default() {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        command.env(name, value);
    }
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Waits for the hook, at most its timeout, and hears it meanwhile; `None` when the time is over.
fn wait(child: &mut Child, timeout_s: Option<i64>, words: &mut Words) -> std::io::Result<Option<ExitStatus>> {
    let deadline =
        timeout_s.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds.try_into().ok()?)));
    // By a descriptor: a signal of the child's end would need a handler, which the container would inherit.
    let end = process::pidfd_open(child.id().cast_signed())?;
    words.pipe.as_ref().map_or(Ok(()), |pipe| terminal::set_nonblocking(pipe.as_fd()))?;
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left_ms = left.map(|left| u64::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u64::MAX));
        let mut interests = vec![Interest { fd: end.as_fd(), write: false, ready: false }];
        interests.extend(words.pipe.iter().map(|pipe| Interest { fd: pipe.as_fd(), write: false, ready: false }));
        poll(&mut interests, left_ms)?;
        let has_ended = interests[0].ready;
        words.hear();
        if has_ended {
            return child.wait().map(Some);
        }
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(None);
        }
    }
}

/// What a hook writes to standard error: all of it is read, so that it does not wait for room, and the beginning is kept.
struct Words {
    pipe: Option<ChildStderr>,
    bytes: Vec<u8>,
}

impl Words {
    /// Takes what is there now; its children may hold the pipe open for longer.
    fn hear(&mut self) {
        let mut block = [0; 4096];
        for _ in 0..READS_MAX {
            let Some(pipe) = &self.pipe else { return };
            match fs::read(pipe.as_fd(), &mut block) {
                Ok(count @ 1..) => {
                    let kept = count.min(OUTPUT_BYTES_MAX - self.bytes.len());
                    self.bytes.extend_from_slice(&block[..kept]);
                }
                Err(Errno::EAGAIN | Errno::EINTR) => return,
                Ok(_) | Err(_) => self.pipe = None,
            }
        }
    }

    /// The words of an error.
    fn told(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        match text.trim() {
            "" => String::new(),
            text => format!("; it wrote: {}", apex_core::escape::text(text)),
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        // What a filter of system calls did is worth its words.
        (None, Some(nix::libc::SIGSYS)) => format!("killed by signal {} (bad system call)", nix::libc::SIGSYS),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "no exit code".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{HookBuilder, HooksBuilder};

    fn shell(script: &str, timeout: Option<i64>) -> Hook {
        let args = vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()];
        let hook = HookBuilder::default().path("/bin/sh").args(args).build().expect("a hook");
        let mut hook = hook;
        hook.set_timeout(timeout);
        hook
    }

    fn check(script: &str, timeout: Option<i64>, expected: Option<&str>) {
        let hooks = HooksBuilder::default().poststart(vec![shell(script, timeout)]).build().expect("hooks");
        let result = run(Some(&hooks), Phase::Poststart, r#"{"id":"x"}"#).map_err(|error| error.to_string());
        match (result, expected) {
            (Ok(()), None) => {}
            (Err(words), Some(part)) => assert!(words.contains(part), "{words}"),
            (result, expected) => panic!("{script}: {result:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn a_hook_gets_the_state_and_its_failure_is_told() {
        check(r#"grep -q '"id":"x"'"#, None, None);
        check("exit 3", None, Some("exit code 3"));
        check("echo broken >&2; exit 1", None, Some("it wrote: broken"));
        check("kill -9 $$", None, Some("killed by signal 9"));
        check(
            "kill -SYS $$",
            None,
            Some("error running hook poststart 0 (/bin/sh): killed by signal 31 (bad system call)"),
        );
        check("sleep 60", Some(1), Some("did not end within its timeout of 1 s"));
        check("exit 0", Some(30), None);
        check("head -c 300000 /dev/zero >&2", None, None);
        check("head -c 300000 /dev/zero >&2; sleep 60", Some(1), Some("did not end within"));
    }
}

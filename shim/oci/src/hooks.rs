//! Hooks (runtime-spec, "POSIX-platform Hooks"): programs of the bundle's author, run at fixed points with the state on standard input.

use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use oci_spec::runtime::{Hook, Hooks};

/// Bytes of a hook's output that an error repeats.
const OUTPUT_BYTES_MAX: usize = 4096;

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
    #[error("the {} hook {number} ({path}) failed: {ended}{output}", phase.name())]
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
    let mut child = command(hook, environment).spawn().map_err(failed)?;
    let Some(status) = wait(&mut child, state.as_bytes(), hook.timeout()).map_err(failed)? else {
        return Err(HookError::Timeout { phase, number, path, seconds: hook.timeout().unwrap_or_default() });
    };
    if status.success() {
        return Ok(());
    }
    let ended = describe(status);
    let output = output(&mut child);
    Err(HookError::Failed { phase, number, path, ended, output })
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
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Gives the hook its input, which it need not read, and waits for it, at most its timeout; `None` when that is over and the hook was killed.
fn wait(child: &mut Child, input: &[u8], timeout_s: Option<i64>) -> std::io::Result<Option<ExitStatus>> {
    let mut pipe = child.stdin.take();
    let mut left = input;
    if let Some(pipe) = &pipe {
        apex_sys::terminal::set_nonblocking(pipe.as_fd())?;
    }
    let seconds = timeout_s.and_then(|seconds| u64::try_from(seconds).ok());
    let deadline = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    // A signal of the child's end would need a handler, which the container would inherit.
    let mut pause = Duration::from_micros(200);
    loop {
        left = feed(&mut pipe, left);
        if pipe.is_none() && deadline.is_none() {
            return child.wait().map(Some);
        }
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Writes what the pipe takes and closes it behind the last byte, or when nobody reads; returns the rest.
fn feed<'a>(pipe: &mut Option<ChildStdin>, mut left: &'a [u8]) -> &'a [u8] {
    while let Some(open) = pipe {
        match open.write(left) {
            Ok(count) => left = &left[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => return left,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => left = &[],
        }
        if left.is_empty() {
            *pipe = None;
        }
    }
    left
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "no exit code".to_owned(),
    }
}

/// What it wrote; its children may hold the pipe open, so only what is there is read.
fn output(child: &mut Child) -> String {
    let Some(stderr) = child.stderr.take() else { return String::new() };
    let mut bytes = vec![0; OUTPUT_BYTES_MAX];
    let readable = apex_sys::terminal::set_nonblocking(stderr.as_fd());
    let count = readable.and_then(|()| apex_sys::fs::read(stderr.as_fd(), &mut bytes)).unwrap_or(0);
    let text = String::from_utf8_lossy(&bytes[..count]);
    let text = text.trim();
    if text.is_empty() { String::new() } else { format!("; it wrote: {}", apex_core::escape::text(text)) }
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
        check("sleep 60", Some(1), Some("did not end within its timeout of 1 s"));
        check("exit 0", Some(30), None);
        // Nobody reads.
        check("exec <&-; sleep 0.1", None, None);
        check("exec <&-; exit 4", Some(30), Some("exit code 4"));
    }
}

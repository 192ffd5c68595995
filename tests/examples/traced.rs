//! `traced EVENTS SCOPE ARGS...`: runs `apex-run ARGS...` under the ptrace source and appends its events to a file as lines of JSON.
//!
//! SCOPE is `default`, `full`, `every`, or `off`, which runs the same without a tracer. The tracer is a process of its own beside the sandbox, as
//! the prober is.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::sync_channel;

use anyhow::{Context, Result, bail};
use apex_core::plan::{Plan, Request};
use apex_core::planner;
use apex_core::policy::{self, Inputs};
use apex_core::seccomp::groups;
use apex_core::seccomp::trace::Scope;
use apex_core::watch::Level;
use apex_jail::host::LiveHost;
use apex_jail::launch::{self, Ending, Options, Payload};
use apex_jail::streams::Streams;
use apex_jail::watch::{Act, Needs, Standing, Told, Watcher};
use apex_probe::ptrace::{self, Target};
use apex_probe::source::QUEUE_BATCHES_MAX;

fn main() -> ExitCode {
    let mut words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let result = if words.first().is_some_and(|word| word == "tracer") {
        trace(&words[1..])
    } else if words.len() < 3 {
        Err(anyhow::anyhow!("usage: traced EVENTS SCOPE ARGS..."))
    } else {
        let rest = words.split_off(2);
        run(&words, rest)
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("traced: {error:#}");
            ExitCode::from(125)
        }
    }
}

fn scope(word: &OsString) -> Result<Option<Scope>> {
    Ok(match word.to_str() {
        Some("default") => Some(Scope::Default),
        Some("full") => Some(Scope::Full),
        Some("every") => Some(Scope::Every),
        Some("off") => None,
        _ => bail!("{word:?} is no scope"),
    })
}

/// The tracer: gets the pids on standard input, says `watching` on standard output, ends with its input.
fn trace(words: &[OsString]) -> Result<u8> {
    let (file, scope) = (File::create(&words[0])?, scope(&words[1])?.context("off has no tracer")?);
    let mut input = BufReader::new(std::io::stdin());
    let mut line = String::new();
    input.read_line(&mut line)?;
    let mut pids = line.split_whitespace().map(str::parse::<u32>);
    let (Some(Ok(init)), Some(Ok(command))) = (pids.next(), pids.next()) else { return Ok(0) };
    let (to, from) = sync_channel(QUEUE_BATCHES_MAX);
    let running = ptrace::start(Target { sandbox: u64::from(init), init, command, scope }, to)?;
    let writer = std::thread::spawn(move || -> std::io::Result<()> {
        let mut file = std::io::BufWriter::new(file);
        for batch in from {
            for event in batch.events {
                writeln!(file, "{}", serde_json::to_string(&event).expect("an event is representable"))?;
            }
            for (loss, count) in batch.lost {
                writeln!(file, "{}", serde_json::json!({"event": "lost", "loss": loss, "count": count}))?;
            }
        }
        file.flush()
    });
    // Frozen and thawed by a stranger, as by an act of the prober: by files that come and go.
    let (frozen, words) = (PathBuf::from(&words[0]).with_extension("frozen"), words[0].clone());
    let ended = &std::sync::atomic::AtomicBool::new(false);
    let tracer = &running;
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(move || freeze_while(&frozen, tracer, ended));
        println!("watching");
        std::fs::write(PathBuf::from(words).with_extension("tracer"), std::process::id().to_string())?;
        let ending = input.read_line(&mut line);
        ended.store(true, std::sync::atomic::Ordering::SeqCst);
        ending?;
        Ok(())
    })?;
    running.stop()?;
    writer.join().expect("it does not panic")?;
    Ok(0)
}

/// Keeps the sandbox frozen while the file is there.
fn freeze_while(file: &Path, running: &ptrace::Running, ended: &std::sync::atomic::AtomicBool) {
    let mut is_frozen = false;
    while !ended.load(std::sync::atomic::Ordering::SeqCst) {
        if file.exists() != is_frozen {
            is_frozen = !is_frozen;
            running.ask(is_frozen);
            let until = std::time::Instant::now() + ptrace::PATIENCE;
            while !running.has_obeyed() {
                assert!(std::time::Instant::now() < until, "the tracer obeys");
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            let word = if is_frozen { "frozen" } else { "thawed" };
            std::fs::write(file.with_extension("state"), word).expect("the directory is ours");
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

fn run(words: &[OsString], args: Vec<OsString>) -> Result<u8> {
    let options = apex_run::options::parse(args)?;
    let streams = Streams::settle(&options.fds, &[])?;
    let scope = scope(&words[1])?;
    let mut tracer = scope.map(|scope| start_tracer(words, scope)).transpose()?;
    let host = LiveHost::at(std::env::current_dir()?);
    let plan = plan(&options, scope, &host)?;
    let watcher = tracer.as_mut().map(|tracer| tracer as &mut dyn Watcher);
    let outcome = launch::run(
        &plan,
        &host,
        Options { receipt: None, watcher, control: None, streams: &streams, payload: Payload::Command },
    )?;
    if let Some(mut tracer) = tracer {
        drop(tracer.0.stdin.take());
        tracer.0.wait()?;
    }
    Ok(match outcome.ending {
        Ending::Code(code) => u8::try_from(code & 0xff)?,
        Ending::Signal(signal) | Ending::Vanished(signal) => u8::try_from(128 + signal)?,
        Ending::TimedOut | Ending::Caught => 124,
        Ending::OutOfMemory => 137,
    })
}

/// The process of the tracer, as the jail's watcher.
struct Tracer(Child, Scope);

impl Watcher for Tracer {
    fn begin(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn prepared(&mut self) -> Result<Needs, String> {
        Ok(Needs { cgroup: false, trace: Some(self.1) })
    }

    fn attach(&mut self, standing: &Standing<'_>) -> Result<(), String> {
        hand_over(&mut self.0, standing.init, standing.command).map_err(|error| format!("{error:#}"))
    }

    fn refused(&mut self, _: Told) {}

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn next(&mut self) -> Result<Option<Act>, String> {
        Ok(None)
    }

    fn has_more(&self) -> bool {
        false
    }

    fn acted(&mut self, _: &Act, _: Result<&str, &str>) {}

    fn cut(&mut self, _: bool) -> Result<(), String> {
        Err("a tracer cuts nothing off".to_owned())
    }

    fn shut(&mut self, _: apex_core::control::Shut) -> Result<(), String> {
        Err("a tracer cuts nothing off".to_owned())
    }

    fn costs(&mut self) -> Result<Vec<apex_core::summary::ProbeCost>, String> {
        Ok(Vec::new())
    }

    fn thawed(&mut self) {}

    /// Nothing is found here, so nobody asks for it.
    fn hold(&mut self, _: bool) -> Result<(), String> {
        Err("this tracer is held by files".to_owned())
    }

    fn abandon(&mut self) {
        // When it has ended by itself already, that is what was wanted.
        let _ = self.0.kill();
    }
}

fn start_tracer(words: &[OsString], scope: Scope) -> Result<Tracer> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("tracer").args(words).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().map(|child| Tracer(child, scope)).context("starting the tracer")
}

fn hand_over(tracer: &mut Child, init: i32, command: i32) -> Result<()> {
    let input = tracer.stdin.as_mut().context("it is piped")?;
    writeln!(input, "{init} {command}")?;
    let mut said = [0; 9];
    let output = tracer.stdout.as_mut().context("it is piped")?;
    output.read_exact(&mut said).context("the tracer did not attach")?;
    if &said == b"watching\n" { Ok(()) } else { bail!("the tracer said {said:?}") }
}

fn plan(options: &apex_run::options::Options, scope: Option<Scope>, host: &LiveHost) -> Result<Plan> {
    use apex_core::host::Host;
    let groups: Vec<&str> = groups::iter().map(|group| group.name).collect();
    let inputs = Inputs {
        mode: options.mode,
        profile: options.profile.clone(),
        policy_file: options.policy.clone(),
        flags: options.flags(),
        home: std::env::var_os("HOME").map(PathBuf::from),
        cwd: host.cwd(),
        tmpdir: std::env::var_os("TMPDIR").map(PathBuf::from),
        system_config: None,
        user_config: None,
        groups: &groups,
    };
    let policy = policy::resolve(&inputs, &mut load)?;
    let request = Request {
        argv: options.command.clone(),
        workdir: options.workdir.clone(),
        fds: options.fds.clone(),
        on_terminal: false,
        record: options.why,
        watch: match scope {
            None => Level::Off,
            Some(Scope::Default) => Level::Default,
            Some(Scope::Full | Scope::Every) => Level::Full,
        },
        mail: None,
    };
    Ok(planner::build(&policy, &request, host)?)
}

fn load(path: &Path) -> std::io::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

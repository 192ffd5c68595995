//! One more command in a sandbox that runs: its streams go to whoever asked for it, and are kept nowhere.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use apex_api::v1::run_input::Input as Asked;
use apex_api::v1::run_output::Output;
use apex_api::v1::{ExecEnded, ExecRequest, ExecStarted, RunInput, RunOutput};
use apex_api::{Error, Kind, Peer, Streamed};
use apex_core::access::Operation;
use apex_core::audit::{Outcome, mask_words};
use apex_core::keep::ToKeeper;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::registry::Daemon;
use crate::sandbox::{Sandbox, Spawned};
use crate::service::WAITING_MAX;
use crate::terminal::{self, Sink, Source, Terminal};

/// Bytes that are taken from a stream at once.
const READ_BYTES: usize = 64 << 10;
/// Bytes of a command with its variables: as JSON they fit a packet to the keeper, however they are escaped.
const WORD_BYTES_MAX: usize = 20 << 10;
/// How long the terminal of a command that was started may take.
const TERMINAL_WITHIN: Duration = Duration::from_secs(5);
/// How long the output of a command that has ended may still come: a process that it left behind can hold the stream open for ever.
const DRAIN_WITHIN: Duration = Duration::from_millis(100);

/// Starts it, and answers with its streams.
pub async fn exec(
    daemon: Arc<Daemon>,
    peer: Peer,
    request: ExecRequest,
    input: Streamed<RunInput>,
) -> Result<Streamed<RunOutput>, Error> {
    let sandbox = daemon.find_for(peer, &request.id)?;
    let record = sandbox.record();
    let asked = daemon.judge_about(peer, &request.id, &record, Operation::Exec, None)?;
    if request.command.is_empty() {
        return Err(Error::new(Kind::Invalid, "there is no command; give one"));
    }
    let words = request.command.iter().chain(&request.env).chain([&request.workdir]);
    if words.clone().any(|word| word.contains('\0')) {
        return Err(Error::new(Kind::Invalid, "a word holds a NUL byte, which no word of a command line can"));
    }
    if words.map(String::len).sum::<usize>() > WORD_BYTES_MAX {
        let words = format!("command and environment come to more than {WORD_BYTES_MAX} bytes");
        return Err(Error::new(Kind::Invalid, words));
    }
    if record.is_over() {
        return Err(Error::new(Kind::Conflict, format!("sandbox {} has ended; nothing more runs in it", sandbox.id)));
    }
    let started = start(&sandbox, &request).await;
    let outcome = if started.is_ok() { Outcome::Allowed } else { Outcome::Failed };
    let reason = started.as_ref().err().map(|error| error.words.clone()).unwrap_or_default();
    let after = json!({"command": mask_words(&request.command)});
    let written = daemon.write_down(&asked, &record, outcome, &reason, json!(null), after);
    let Running { spawned, sink, out, err } = started?;
    if let Err(error) = written {
        // Nothing runs unrecorded.
        let _ = sandbox.ask(&ToKeeper::SignalSpawned { number: spawned.number, signal: nix::libc::SIGKILL }).await;
        return Err(error);
    }
    let (to, from) = mpsc::channel(WAITING_MAX);
    tokio::spawn(feed(Arc::clone(&sandbox), spawned.number, input, sink));
    tokio::spawn(tell(sandbox, spawned, out, err, to));
    Ok(Box::pin(ReceiverStream::new(from)))
}

/// Runs a command for its exit code alone; what it writes is read and dropped. One that takes too long is ended, and has failed. `None` when others
/// took every place, which says nothing of the sandbox.
pub async fn succeeds(sandbox: &Arc<Sandbox>, command: &[String], within: Duration) -> Option<bool> {
    let request = ExecRequest { command: command.to_vec(), ..Default::default() };
    let Running { spawned, sink, mut out, err } = match start(sandbox, &request).await {
        Ok(running) => running,
        Err(error) => return (error.kind != Kind::Exhausted).then_some(false),
    };
    drop(sink);
    let number = spawned.number;
    let drain = async {
        let (mut bytes, mut other) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
        let err = async {
            if let Some(mut err) = err {
                while let Ok(1..) = err.read(&mut other).await {}
            }
        };
        tokio::join!(async { while let Ok(1..) = out.read(&mut bytes).await {} }, err);
        std::future::pending::<()>().await;
    };
    let succeeded = tokio::select! {
        ended = spawned.ended => ended.is_ok_and(|ended| ended.code == 0 && ended.words.is_none()),
        () = drain => false,
        () = tokio::time::sleep(within) => {
            let _ = sandbox.ask(&ToKeeper::SignalSpawned { number, signal: nix::libc::SIGKILL }).await;
            false
        }
    };
    Some(succeeded)
}

/// A command that was started.
struct Running {
    spawned: Spawned,
    sink: Sink,
    out: Source,
    err: Option<Source>,
}

async fn start(sandbox: &Arc<Sandbox>, request: &ExecRequest) -> Result<Running, Error> {
    let internal = |error: std::io::Error| Error::new(Kind::Internal, format!("starting a command: {error}"));
    let pipe = || std::io::pipe().map(|(read, write)| (OwnedFd::from(read), OwnedFd::from(write))).map_err(internal);
    let ((stdin, to), (out, stdout), (err, stderr)) = (pipe()?, pipe()?, pipe()?);
    // Before anything is started: what fails afterwards leaves a command that nobody hears.
    let (to, out, err) = (Sink::pipe(to), Source::pipe(out), Source::pipe(err));
    let (sink, out, err) = (to.map_err(internal)?, out.map_err(internal)?, err.map_err(internal)?);
    let mut spawned = sandbox.spawned()?;
    let said = ToKeeper::Spawn {
        number: spawned.number,
        arguments: request.command.clone(),
        environment: request.env.clone(),
        workdir: Some(request.workdir.clone()).filter(|dir| !dir.is_empty()),
        terminal: request.tty,
        size: request.size.as_ref().and_then(terminal::size),
    };
    let answer = sandbox.ask_with(&said, &[stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]).await;
    answer.map_err(|words| {
        sandbox.not_spawned(spawned.number);
        Error::new(Kind::Conflict, format!("starting a command in {}: {words}", sandbox.id))
    })?;
    if !request.tty {
        return Ok(Running { spawned, sink, out, err: Some(err) });
    }
    // It came before the answer, by another way.
    let master = tokio::time::timeout(TERMINAL_WITHIN, &mut spawned.terminal).await;
    let terminal = match master {
        Ok(Ok(master)) => Terminal::new(master).map_err(internal),
        Ok(Err(_)) | Err(_) => Err(Error::new(Kind::Internal, "its keeper gave no terminal for the command")),
    };
    let terminal = match terminal {
        Ok(terminal) => terminal,
        Err(error) => {
            let _ = sandbox.ask(&ToKeeper::SignalSpawned { number: spawned.number, signal: nix::libc::SIGKILL }).await;
            return Err(error);
        }
    };
    Ok(Running { spawned, sink: Sink::Terminal(Arc::clone(&terminal)), out: Source::Terminal(terminal), err: None })
}

/// What the client sends. A client that is gone leaves the command alone, with its input at its end; a terminal's command gets a hang-up, as everywhere.
async fn feed(sandbox: Arc<Sandbox>, number: i32, mut input: Streamed<RunInput>, sink: Sink) {
    let mut sink = Some(sink);
    while let Some(Ok(RunInput { input })) = input.next().await {
        match (input, sink.as_mut()) {
            (Some(Asked::Stdin(bytes)), Some(open)) => {
                let written = open.write_all(&bytes).await;
                sink = sink.filter(|_| written.is_ok());
            }
            (Some(Asked::Resize(size)), Some(open)) => open.resize(size),
            (Some(Asked::CloseStdin(_)), Some(_)) => {
                if let Some(sink) = sink.take() {
                    sink.end().await;
                }
            }
            (Some(Asked::Signal(signal)), _) if (1..=64).contains(&signal) => {
                let _ = sandbox.ask(&ToKeeper::SignalSpawned { number, signal }).await;
            }
            _ => {}
        }
    }
    let is_terminal = matches!(sink, Some(Sink::Terminal(_)));
    drop(sink);
    if is_terminal {
        let _ = sandbox.ask(&ToKeeper::SignalSpawned { number, signal: nix::libc::SIGHUP }).await;
    }
}

async fn tell(
    sandbox: Arc<Sandbox>,
    spawned: Spawned,
    out: Source,
    err: Option<Source>,
    to: mpsc::Sender<Result<RunOutput, Error>>,
) {
    let say = |output| Ok(RunOutput { output: Some(output) });
    let started = ExecStarted { sandbox: Some(sandbox.record().wire()), number: spawned.number };
    if to.send(say(Output::ExecStarted(started))).await.is_err() {
        return;
    }
    let streams = async {
        let err = async {
            if let Some(err) = err {
                copy(err, &to, Output::Stderr).await;
            }
        };
        tokio::join!(copy(out, &to, Output::Stdout), err);
    };
    tokio::pin!(streams);
    let mut ended = spawned.ended;
    let ended = tokio::select! {
        ended = &mut ended => {
            let _ = tokio::time::timeout(DRAIN_WITHIN, &mut streams).await;
            ended
        }
        () = &mut streams => ended.await,
    };
    let last = match ended {
        Ok(ended) => say(Output::ExecEnded(ExecEnded {
            exit_code: ended.code.into(),
            ending: ended.how,
            error: ended.words.unwrap_or_default(),
        })),
        Err(_) => Err(Error::new(
            Kind::Conflict,
            format!("sandbox {} ended before the command did, and the command with it", sandbox.id),
        )),
    };
    let _ = to.send(last).await;
}

async fn copy(mut from: Source, to: &mpsc::Sender<Result<RunOutput, Error>>, wrap: fn(Vec<u8>) -> Output) {
    let mut bytes = vec![0; READ_BYTES];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let output = RunOutput { output: Some(wrap(bytes[..count].to_vec())) };
        if to.send(Ok(output)).await.is_err() {
            return;
        }
    }
}

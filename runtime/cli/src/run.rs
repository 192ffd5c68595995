//! `apex run` and `apex attach`: the command's streams and signals, carried to apexd and back without a byte lost.
//!
//! Input: this process' standard input and signals. Output: the command's standard output and error, and how it ended. What one side does not read the other holds
//! back: nothing is kept here beyond a few chunks.

use std::io::ErrorKind;

use anyhow::{Context, Result, anyhow, bail};
use apex_api::v1::run_input::Input;
use apex_api::v1::run_output::Output;
use apex_api::v1::{
    CreateRequest, Empty, ExecEnded, ExecRequest, RunInput, RunOutput, Sandbox, SandboxRef, SignalRequest,
};
use apex_api::{Error, Kind};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::terminal;
use crate::verbs::Client;

/// Bytes of standard input that travel together.
const CHUNK_BYTES: usize = 32 << 10;
/// Chunks that wait for the connection.
const CHUNKS_MAX: usize = 8;

/// Signals that are the command's business rather than ours.
const FORWARDED: [SignalKind; 6] = [
    SignalKind::interrupt(),
    SignalKind::terminate(),
    SignalKind::hangup(),
    SignalKind::quit(),
    SignalKind::user_defined1(),
    SignalKind::user_defined2(),
];

/// Two connections: streams that nobody reads fill the window of a whole connection (RFC 9113, 5.2), and a signal must get through all the same.
pub struct Lines {
    /// For the streams.
    pub streams: Client,
    /// For everything else.
    pub aside: Client,
}

/// Runs a command; returns its sandbox as it ended.
pub async fn run(lines: &Lines, mut request: CreateRequest) -> Result<Sandbox> {
    request.size = request.tty.then(terminal::size).flatten();
    let tty = request.tty;
    sandbox(carry(lines, Input::Create(request), tty).await?)
}

/// Connects to a sandbox that runs; returns it as it ended.
pub async fn attach(lines: &Lines, id: String) -> Result<Sandbox> {
    sandbox(carry(lines, Input::Attach(SandboxRef { id }), false).await?)
}

/// Runs one more command in a sandbox; returns how it ended.
pub async fn exec(lines: &Lines, mut request: ExecRequest) -> Result<ExecEnded> {
    request.size = request.tty.then(terminal::size).flatten();
    let tty = request.tty;
    match carry(lines, Input::Exec(request), tty).await? {
        Last::Exec(ended) => Ok(ended),
        Last::Sandbox(_) => bail!("apexd told of a sandbox's end instead of the command's"),
    }
}

fn sandbox(last: Last) -> Result<Sandbox> {
    match last {
        Last::Sandbox(sandbox) => Ok(*sandbox),
        Last::Exec(_) => bail!("apexd told of another command's end"),
    }
}

/// How it ended.
enum Last {
    Sandbox(Box<Sandbox>),
    Exec(ExecEnded),
}

/// Whom signals are for.
#[derive(Clone, Debug, Default)]
struct Target {
    id: String,
    exec: i32,
}

async fn carry(lines: &Lines, first: Input, tty: bool) -> Result<Last> {
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    let (known, id) = watch::channel(Target::default());
    // Before the command runs: a signal that comes in between waits until there is somebody to give it to.
    forward_signals(&lines.aside, &id)?;
    let attaching = matches!(first, Input::Attach(_));
    if let Input::Attach(sandbox) = &first {
        known.send_replace(Target { id: sandbox.id.clone(), exec: 0 });
    }
    let executing = matches!(first, Input::Exec(_));
    sender.try_send(RunInput { input: Some(first) }).context("asking apexd")?;
    let input = ReceiverStream::new(receiver);
    let mut asked = lines.streams.clone();
    let output = match (attaching, executing) {
        (true, _) => asked.attach(input).await,
        (_, true) => asked.exec(input).await,
        _ => asked.run(input).await,
    };
    let output = output.map_err(Error::from)?.into_inner();
    // Restored when this returns, however it does.
    let _raw = if tty { terminal::Raw::enter()? } else { None };
    let resizing = if tty { Some(tokio::spawn(follow_size(sender.clone()))) } else { None };
    // The sender stays until the end: a stream that ends is a client that went away.
    let reading = tokio::spawn(read_in(tokio::io::stdin(), sender.clone()));
    let ended = write_out(&lines.aside, output, &known, attaching).await;
    reading.abort();
    resizing.inspect(tokio::task::JoinHandle::abort);
    drop(sender);
    ended.map_err(|error| match id.borrow().id.as_str() {
        "" => error,
        id => error.context(format!("following sandbox {id}, which `apex inspect {id}` shows")),
    })
}

/// Tells of each new size of the terminal.
async fn follow_size(sender: mpsc::Sender<RunInput>) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    while changes.recv().await.is_some() {
        if let Some(size) = terminal::size()
            && sender.send(RunInput { input: Some(Input::Resize(size)) }).await.is_err()
        {
            return;
        }
    }
}

fn forward_signals(client: &Client, id: &watch::Receiver<Target>) -> Result<()> {
    for kind in FORWARDED {
        let mut stream = signal(kind).context("listening for signals")?;
        let (client, mut id) = (client.clone(), id.clone());
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                let id = tokio::select! {
                    known = id.wait_for(|target| !target.id.is_empty()) => known.map(|target| target.clone()),
                    // A second one while there is nobody to give the first to: somebody is tired of waiting.
                    _ = stream.recv() => {
                        crate::tell("interrupted before the command had begun; `apex ls` tells whether it does");
                        std::process::exit(i32::from(crate::FAILED))
                    }
                };
                let Ok(id) = id else { return };
                send_signal(client.clone(), id, kind.as_raw_value()).await;
            }
        });
    }
    Ok(())
}

/// By a call of its own, on the connection aside: between the bytes of standard input it would wait until the command reads them.
async fn send_signal(mut client: Client, Target { id, exec }: Target, signal: i32) {
    let outcome = client.signal(SignalRequest { id, signal, exec }).await.map_err(Error::from);
    if let Err(error) = outcome {
        // One that has just ended needs no signal any more.
        if !matches!(error.kind, Kind::NotFound | Kind::Conflict) {
            crate::tell(&format!("forwarding signal {signal}: {error}"));
        }
    }
}

/// Standard input to its end, then word of the end.
async fn read_in(mut input: impl AsyncRead + Unpin, sender: mpsc::Sender<RunInput>) {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let message = match input.read(&mut chunk).await {
            // What cannot be read has no more bytes: a closed descriptor, a terminal that went away.
            Ok(0) | Err(_) => Input::CloseStdin(Empty {}),
            Ok(count) => Input::Stdin(chunk[..count].to_vec()),
        };
        let is_last = matches!(message, Input::CloseStdin(_));
        if sender.send(RunInput { input: Some(message) }).await.is_err() || is_last {
            return;
        }
    }
}

async fn write_out(
    client: &Client,
    mut output: Streaming<RunOutput>,
    id: &watch::Sender<Target>,
    attaching: bool,
) -> Result<Last> {
    let mut stdout = Outlet::new("standard output", tokio::io::stdout());
    let mut stderr = Outlet::new("standard error", tokio::io::stderr());
    while let Some(message) = output.message().await.map_err(Error::from)? {
        let broke = match message.output {
            Some(Output::Started(sandbox)) => {
                id.send_replace(Target { id: sandbox.id, exec: 0 });
                false
            }
            Some(Output::Stdout(bytes)) => stdout.write(&bytes).await,
            Some(Output::Stderr(bytes)) => stderr.write(&bytes).await,
            Some(Output::Ended(sandbox)) => {
                stdout.close()?;
                stderr.close()?;
                return Ok(Last::Sandbox(Box::new(sandbox)));
            }
            Some(Output::ExecStarted(started)) => {
                let id_of = started.sandbox.map(|sandbox| sandbox.id).unwrap_or_default();
                id.send_replace(Target { id: id_of, exec: started.number });
                false
            }
            Some(Output::ExecEnded(ended)) => {
                stdout.close()?;
                stderr.close()?;
                return Ok(Last::Exec(ended));
            }
            None => false,
        };
        if broke && attaching {
            // Who only looks on goes away alone.
            stdout.fail()?;
            stderr.fail()?;
        } else if broke {
            // As if the command had written there itself. Not waited for: its streams must go on meanwhile.
            let id = id.borrow().clone();
            tokio::spawn(send_signal(client.clone(), id, SignalKind::pipe().as_raw_value()));
        }
    }
    Err(anyhow!("apexd broke off without a word how the command ended"))
}

/// One of the two ways out. Once it is broken the rest is dropped, so that the command is not held back.
struct Outlet<W> {
    name: &'static str,
    to: W,
    broken: Option<std::io::Error>,
}

impl<W: AsyncWrite + Unpin> Outlet<W> {
    fn new(name: &'static str, to: W) -> Self {
        Outlet { name, to, broken: None }
    }

    /// Whether this write broke it.
    async fn write(&mut self, bytes: &[u8]) -> bool {
        if self.broken.is_some() {
            return false;
        }
        let written = match self.to.write_all(bytes).await {
            Ok(()) => self.to.flush().await,
            failed => failed,
        };
        self.broken = written.err();
        self.broken.is_some()
    }

    /// The error, if it is broken.
    fn fail(&mut self) -> Result<()> {
        self.broken.take().map_or(Ok(()), Err).with_context(|| format!("writing to {}", self.name))
    }

    /// A reader that went away is the command's affair, and its exit code tells; anything else lost what somebody waits for.
    fn close(self) -> Result<()> {
        match self.broken {
            Some(error) if error.kind() != ErrorKind::BrokenPipe => {
                Err(error).with_context(|| format!("writing what the command wrote to {}", self.name))
            }
            _ => Ok(()),
        }
    }
}

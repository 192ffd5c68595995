//! `apex run` and `apex attach`: the command's streams and signals, carried to apexd and back without a byte lost.
//!
//! Input: this process' standard input and signals. Output: the command's standard output and error, and how it ended. What one side does not read the other holds
//! back: nothing is kept here beyond a few chunks.

use std::io::ErrorKind;

use anyhow::{Context, Result, anyhow};
use apex_api::v1::run_input::Input;
use apex_api::v1::run_output::Output;
use apex_api::v1::{CreateRequest, Empty, RunInput, RunOutput, Sandbox, SandboxRef, SignalRequest};
use apex_api::{Error, Kind};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

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
pub async fn run(lines: &Lines, request: CreateRequest) -> Result<Sandbox> {
    carry(lines, Input::Create(request)).await
}

/// Connects to a sandbox that runs; returns it as it ended.
pub async fn attach(lines: &Lines, id: String) -> Result<Sandbox> {
    carry(lines, Input::Attach(SandboxRef { id })).await
}

async fn carry(lines: &Lines, first: Input) -> Result<Sandbox> {
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    let (known, id) = watch::channel(String::new());
    // Before the command runs: a signal that comes in between waits until there is somebody to give it to.
    forward_signals(&lines.aside, &id)?;
    let attaching = matches!(first, Input::Attach(_));
    if let Input::Attach(sandbox) = &first {
        known.send_replace(sandbox.id.clone());
    }
    sender.try_send(RunInput { input: Some(first) }).context("asking apexd")?;
    let input = ReceiverStream::new(receiver);
    let mut asked = lines.streams.clone();
    let output = if attaching { asked.attach(input).await } else { asked.run(input).await };
    let output = output.map_err(Error::from)?.into_inner();
    // The sender stays until the end: a stream that ends is a client that went away.
    let reading = tokio::spawn(read_in(tokio::io::stdin(), sender.clone()));
    let ended = write_out(&lines.aside, output, &known, attaching).await;
    reading.abort();
    drop(sender);
    ended.map_err(|error| match id.borrow().as_str() {
        "" => error,
        id => error.context(format!("following sandbox {id}, which `apex inspect {id}` shows")),
    })
}

fn forward_signals(client: &Client, id: &watch::Receiver<String>) -> Result<()> {
    for kind in FORWARDED {
        let mut stream = signal(kind).context("listening for signals")?;
        let (client, mut id) = (client.clone(), id.clone());
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                let id = tokio::select! {
                    known = id.wait_for(|id| !id.is_empty()) => known.map(|id| id.clone()),
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
async fn send_signal(mut client: Client, id: String, signal: i32) {
    let outcome = client.signal(SignalRequest { id, signal }).await.map_err(Error::from);
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
    id: &watch::Sender<String>,
    attaching: bool,
) -> Result<Sandbox> {
    let mut stdout = Outlet::new("standard output", tokio::io::stdout());
    let mut stderr = Outlet::new("standard error", tokio::io::stderr());
    while let Some(message) = output.message().await.map_err(Error::from)? {
        let broke = match message.output {
            Some(Output::Started(sandbox)) => {
                id.send_replace(sandbox.id);
                false
            }
            Some(Output::Stdout(bytes)) => stdout.write(&bytes).await,
            Some(Output::Stderr(bytes)) => stderr.write(&bytes).await,
            Some(Output::Ended(sandbox)) => {
                stdout.close()?;
                stderr.close()?;
                return Ok(sandbox);
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

//! Streams of the API: a command with its streams, logs, and lines of files that grow.

use std::io::{ErrorKind, SeekFrom};
use std::sync::Arc;

use apex_api::v1::run_input::Input as Asked;
use apex_api::v1::run_output::Output;
use apex_api::v1::{JsonLine, LogChunk, RunInput, RunOutput};
use apex_api::{Error, Kind, Peer, Streamed};
use apex_core::access::Operation;
use apex_core::audit::Outcome;
use apex_core::keep::ToKeeper;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, BufReader};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::exec;
use crate::log::{Follower, Log};
use crate::record::Record;
use crate::registry::Daemon;
use crate::sandbox::Sandbox;
use crate::service::WAITING_MAX;
use crate::start::{self, Input};

/// Between two looks at a file that may have grown, where nobody tells of it.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(100);

/// Bytes of a line of events or findings; of a longer one its beginning is told.
const LINE_BYTES_MAX: u64 = 256 << 10;
const SHOWN_BYTES: usize = 16 << 10;
/// Bytes of its end: more than a prober ever writes.
const PASSED_BYTES_MAX: u64 = 4 << 20;

/// A command with its streams, from its beginning or from now on.
pub async fn run(daemon: Arc<Daemon>, peer: Peer, mut input: Streamed<RunInput>) -> Result<Streamed<RunOutput>, Error> {
    let first = input.next().await.transpose()?.and_then(|first| first.input);
    let (sandbox, offsets) = match first {
        Some(Asked::Create(request)) => {
            (start::start(&daemon, peer, &request, Operation::Run, Input::Client).await?, (0, 0))
        }
        Some(Asked::Attach(named)) => {
            let sandbox = daemon.find_for(peer, &named.id)?;
            let record = sandbox.record();
            let asked = daemon.judge_about(peer, &named.id, &record, Operation::Attach, None)?;
            daemon.write_down(&asked, &record, Outcome::Allowed, "", json!(null), json!(null))?;
            let ends = (sandbox.out.extent().borrow().end, sandbox.err.extent().borrow().end);
            (sandbox, ends)
        }
        Some(Asked::Exec(request)) => return exec::exec(daemon, peer, request, input).await,
        Some(_) | None => {
            return Err(Error::new(
                Kind::Invalid,
                "the first message says what is to be run, or attached to, or executed",
            ));
        }
    };
    let (to, from) = mpsc::channel(WAITING_MAX);
    // Before anything is told: a follower holds what is written from its offset on.
    let out = Follower::new(&sandbox.out, offsets.0);
    let err = Follower::new(&sandbox.err, offsets.1);
    let may_signal = daemon.may(peer, Operation::Signal, &sandbox.record());
    tokio::spawn(feed(Arc::clone(&sandbox), input, may_signal));
    tokio::spawn(tell(sandbox, out, err, to));
    Ok(Box::pin(ReceiverStream::new(from)))
}

/// What the client sends. A client that is gone leaves the sandbox alone, with its standard input at its end.
async fn feed(sandbox: Arc<Sandbox>, mut input: Streamed<RunInput>, may_signal: bool) {
    while let Some(Ok(RunInput { input })) = input.next().await {
        match input {
            Some(Asked::Stdin(bytes)) => {
                let mut stdin = sandbox.stdin.lock().await;
                // A command that reads no more is no reason to end: its output goes on.
                let is_gone = match stdin.as_mut() {
                    Some(pipe) => pipe.write_all(&bytes).await.is_err(),
                    None => false,
                };
                drop(stdin);
                if is_gone {
                    sandbox.close_stdin().await;
                }
            }
            Some(Asked::CloseStdin(_)) => sandbox.close_stdin().await,
            // As `Signal` alone: whoever may not, or asks for none, is not heard. One that has just ended is no error.
            Some(Asked::Signal(number)) if may_signal && (1..=64).contains(&number) => {
                let _ = sandbox.ask(&ToKeeper::Signal { number }).await;
            }
            Some(Asked::Resize(size)) => {
                sandbox.stdin.lock().await.as_ref().inspect(|stdin| stdin.resize(size));
            }
            Some(Asked::Signal(_)) => {}
            Some(Asked::Create(_) | Asked::Attach(_) | Asked::Exec(_)) | None => {}
        }
    }
    sandbox.close_stdin().await;
}

async fn tell(sandbox: Arc<Sandbox>, out: Follower, err: Follower, to: mpsc::Sender<Result<RunOutput, Error>>) {
    let say = |output| Ok(RunOutput { output: Some(output) });
    if to.send(say(Output::Started(sandbox.record().wire()))).await.is_err() {
        return;
    }
    let both = tokio::join!(copy(out, &to, Output::Stdout), copy(err, &to, Output::Stderr));
    if let Some(error) = both.0.err().or(both.1.err()) {
        let words = format!("reading what sandbox {} wrote: {error}", sandbox.id);
        let _ = to.send(Err(Error::new(Kind::Internal, words))).await;
        return;
    }
    // A client that is gone is no reason to wait.
    tokio::select! {
        record = sandbox.until(Record::is_over) => {
            let _ = to.send(say(Output::Ended(record.wire()))).await;
        }
        () = to.closed() => {}
    }
}

async fn copy(
    mut follower: Follower,
    to: &mpsc::Sender<Result<RunOutput, Error>>,
    wrap: fn(Vec<u8>) -> Output,
) -> std::io::Result<()> {
    loop {
        let bytes = tokio::select! {
            bytes = follower.next() => bytes?,
            () = to.closed() => return Ok(()),
        };
        if bytes.is_empty() || to.send(Ok(RunOutput { output: Some(wrap(bytes)) })).await.is_err() {
            return Ok(());
        }
    }
}

/// What a command wrote, as far as it is kept. Whoever reads logs holds nobody up.
pub fn logs(sandbox: &Arc<Sandbox>, follow: bool, tail_bytes: u64) -> Streamed<LogChunk> {
    let (to, from) = mpsc::channel(WAITING_MAX);
    for (log, stream) in [(&sandbox.out, "stdout"), (&sandbox.err, "stderr")] {
        tokio::spawn(read(Arc::clone(log), stream, follow, tail_bytes, to.clone()));
    }
    Box::pin(ReceiverStream::new(from))
}

async fn read(
    log: Arc<Log>,
    stream: &'static str,
    follow: bool,
    tail_bytes: u64,
    to: mpsc::Sender<Result<LogChunk, Error>>,
) {
    let mut extents = log.extent();
    let end = extents.borrow().end;
    let mut offset = if tail_bytes == 0 { 0 } else { end.saturating_sub(tail_bytes) };
    loop {
        let extent = *extents.borrow_and_update();
        let said = match log.read(offset) {
            Ok((_, bytes)) if bytes.is_empty() => {
                if !follow || extent.is_closed {
                    return;
                }
                tokio::select! {
                    changed = extents.changed() => if changed.is_err() { return },
                    () = to.closed() => return,
                }
                continue;
            }
            Ok((next, data)) => {
                offset = next;
                Ok(LogChunk { stream: stream.to_owned(), data })
            }
            Err(error) => Err(Error::new(Kind::Internal, format!("reading the log: {error}"))),
        };
        let is_last = said.is_err();
        if to.send(said).await.is_err() || is_last {
            return;
        }
    }
}

/// The lines of one of a sandbox's files, and with `follow` those that are added until it is over.
pub fn lines(sandbox: Arc<Sandbox>, file: &'static str, follow: bool) -> Streamed<JsonLine> {
    let (to, from) = mpsc::channel(1);
    tokio::spawn(async move {
        let (mut offset, mut looked_at) = (0, None);
        loop {
            // Asked before reading: what is written before the end is read after this.
            let is_over = sandbox.record().is_over();
            // A line without an end is not read again and again until there is more of it.
            let length = tokio::fs::metadata(sandbox.dir.file(file)).await.map(|about| about.len()).ok();
            let has_more = length != looked_at || is_over || length.is_none();
            looked_at = length;
            let read = if has_more { whole_lines(&sandbox, file, offset, &to).await } else { Ok(offset) };
            match read {
                Ok(next) => offset = next,
                // Nothing is watched, so nothing was written.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    // The file belongs to the sandbox's user: what is wrong in it is no failure of ours.
                    let kind = if error.kind() == ErrorKind::InvalidData { Kind::Conflict } else { Kind::Internal };
                    let _ = to.send(Err(Error::new(kind, format!("reading {file}: {error}")))).await;
                    return;
                }
            }
            if !follow || is_over || to.is_closed() {
                return;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    });
    Box::pin(ReceiverStream::new(from))
}

async fn whole_lines(
    sandbox: &Sandbox,
    name: &str,
    mut offset: u64,
    to: &mpsc::Sender<Result<JsonLine, Error>>,
) -> std::io::Result<u64> {
    let mut file = tokio::fs::File::open(sandbox.dir.file(name)).await?;
    file.seek(SeekFrom::Start(offset)).await?;
    let mut reader = BufReader::new(file);
    loop {
        let mut line = Vec::new();
        // Bounded: its owner may have made it as large as it likes.
        let count = (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await? as u64;
        let mut whole = count;
        if count == LINE_BYTES_MAX && line.last() != Some(&b'\n') {
            // A program with monstrous arguments has one; its end is passed over, so that it hides no line behind it.
            let passed = pass_over(&mut reader).await?;
            let Some(passed) = passed else { return Ok(offset) };
            whole += passed;
            line =
                serde_json::to_vec(&json!({"cut": whole, "beginning": String::from_utf8_lossy(&line[..SHOWN_BYTES])}))?;
        } else if line.pop() != Some(b'\n') {
            // A line that is still being written is read when it is whole.
            return Ok(offset);
        }
        offset += whole;
        let json = String::from_utf8_lossy(&line).into_owned();
        if to.send(Ok(JsonLine { json })).await.is_err() {
            return Ok(offset);
        }
    }
}

/// To the end of a line: how many bytes that was, or `None` while it has none yet.
async fn pass_over(reader: &mut BufReader<tokio::fs::File>) -> std::io::Result<Option<u64>> {
    let mut passed = 0;
    loop {
        let bytes = reader.fill_buf().await?;
        let (count, is_end) = match bytes.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (bytes.len(), false),
        };
        reader.consume(count);
        passed += count as u64;
        match (is_end, count) {
            (true, _) => return Ok(Some(passed)),
            (false, 0) => return Ok(None),
            _ if passed > PASSED_BYTES_MAX => {
                let words = "a line that is longer than any that a prober writes; whose file it is wrote there";
                return Err(std::io::Error::new(ErrorKind::InvalidData, words));
            }
            _ => {}
        }
    }
}

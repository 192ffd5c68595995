//! Terminals: the runtime sends one end of a pseudoterminal over a socket, and the shim copies between it and containerd's fifos.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::libc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::bundle::Transient;
use crate::group::SOCKETS;
use crate::io::{Place, Places, Setting, StreamError, open_file, open_input, open_output, watched};
use crate::logger::LogProgram;

/// How long the terminal may be on its way when the runtime has ended.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(5);
/// How long what a process wrote last may wait for a reader that takes nothing at all.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// What is copied at once; a terminal gives less.
const BLOCK_BYTES: usize = 16 << 10;

/// Where the runtime sends the terminal.
#[derive(Debug)]
pub struct ConsoleSocket {
    listener: UnixListener,
    file: Transient,
}

impl ConsoleSocket {
    /// Listens at a name that nobody else has, in a directory that is root's.
    pub fn bind() -> Result<Self, StreamError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(SOCKETS).join(format!("tty-{}-{number}", std::process::id()));
        // A name of an earlier process with this pid.
        let _ = std::fs::remove_file(&path);
        let bound = UnixListener::bind(&path);
        let listener = bound.map_err(|source| StreamError::Terminal { intent: "listen for", source })?;
        Ok(ConsoleSocket { listener, file: Transient(path) })
    }

    /// The name for the runtime.
    pub fn path(&self) -> &Path {
        &self.file.0
    }

    /// The terminal; call it when the runtime has ended well.
    pub async fn receive(self) -> Result<OwnedFd, StreamError> {
        let received = tokio::time::timeout(ARRIVAL_LIMIT, self.take()).await;
        let late = |_| io::Error::new(ErrorKind::TimedOut, "the runtime sent none over --console-socket");
        received.map_err(late).flatten().map_err(|source| StreamError::Terminal { intent: "receive", source })
    }

    async fn take(&self) -> io::Result<OwnedFd> {
        let (stream, _) = self.listener.accept().await?;
        // The message is the name of the terminal, which does not matter.
        let mut name = [0; 4096];
        let receive = || Ok(apex_sys::net::receive(stream.as_fd(), &mut name)?);
        let (_, fds) = stream.async_io(Interest::READABLE, receive).await?;
        let mut terminals = fds.into_iter().filter(|fd| apex_sys::terminal::is_terminal(fd.as_fd()));
        terminals.next().ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "what the runtime sent is no terminal"))
    }
}

/// Where a terminal's output goes.
#[derive(Debug)]
enum Sink {
    Null,
    File(File),
    /// A fifo or pipe; the other end is kept so that it does not break.
    Pipe {
        writer: AsyncFd<OwnedFd>,
        _reader: Option<OwnedFd>,
    },
}

/// A terminal that is copied.
#[derive(Debug)]
pub struct Console {
    master: Arc<AsyncFd<OwnedFd>>,
    output: JoinHandle<()>,
    input: Option<JoinHandle<()>>,
    kept_input: Option<OwnedFd>,
    ended: watch::Sender<bool>,
    copied: Arc<AtomicU64>,
    program: Option<LogProgram>,
}

impl Console {
    /// Copies from here on.
    pub async fn start(master: OwnedFd, places: &Places, setting: &Setting<'_>) -> Result<Self, StreamError> {
        let terminal = |intent| move |source: io::Error| StreamError::Terminal { intent, source };
        let master = Arc::new(watched(master).map_err(terminal("watch"))?);
        let (sink, program) = sink(&places.stdout, setting).await?;
        let (ended, has_ended) = watch::channel(false);
        let (mut input, mut kept_input) = (None, None);
        if let Place::Fifo(path) = Place::parse(&places.stdin)? {
            let (reader, writer) = open_input(&path).map_err(terminal("open the input of"))?;
            let reader = watched(reader).map_err(terminal("watch the input of"))?;
            input = Some(tokio::spawn(copy_input(reader, Arc::clone(&master))));
            kept_input = Some(writer);
        }
        let copied = Arc::default();
        let output = tokio::spawn(copy_output(Arc::clone(&master), sink, has_ended, Arc::clone(&copied)));
        Ok(Console { master, output, input, kept_input, ended, copied, program })
    }

    /// Sets the size in characters.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        Ok(apex_sys::terminal::set_size(self.master.get_ref().as_fd(), rows, columns)?)
    }

    /// Containerd gives no more input.
    pub fn close_input(&mut self) {
        self.kept_input = None;
    }

    /// The process has ended: what it wrote goes out, as long as somebody takes it; then the terminal is closed.
    pub async fn finish(mut self) {
        self.ended.send_replace(true);
        loop {
            let before = self.copied.load(Ordering::Relaxed);
            if tokio::time::timeout(DRAIN_LIMIT, &mut self.output).await.is_ok() {
                break;
            }
            if self.copied.load(Ordering::Relaxed) == before {
                log::warn!("output of a terminal is lost: nobody reads it");
                self.output.abort();
                break;
            }
        }
        if let Some(input) = self.input.take() {
            input.abort();
        }
        if let Some(program) = self.program.take() {
            program.finish().await;
        }
    }
}

async fn sink(place: &str, setting: &Setting<'_>) -> Result<(Sink, Option<LogProgram>), StreamError> {
    let failed = |source| StreamError::Terminal { intent: "open the output of", source };
    match Place::parse(place)? {
        Place::Null => Ok((Sink::Null, None)),
        Place::File(path) => open_file(&path).map(|file| (Sink::File(file.into()), None)).map_err(failed),
        Place::Fifo(path) => {
            let (reader, writer) = open_output(&path).map_err(failed)?;
            Ok((Sink::Pipe { writer: watched(writer).map_err(failed)?, _reader: Some(reader) }, None))
        }
        Place::Program(program) => {
            let (log, stdout, _) = LogProgram::start(program, setting).await?;
            Ok((Sink::Pipe { writer: watched(stdout).map_err(failed)?, _reader: None }, Some(log)))
        }
    }
}

/// Until the terminal is closed inside, or the process has ended and nothing is left. Counts what went out.
async fn copy_output(
    master: Arc<AsyncFd<OwnedFd>>,
    sink: Sink,
    mut has_ended: watch::Receiver<bool>,
    out: Arc<AtomicU64>,
) {
    let mut block = vec![0; BLOCK_BYTES];
    let mut is_last = false;
    loop {
        let read = if is_last {
            nix::unistd::read(master.get_ref(), &mut block).map_err(io::Error::from)
        } else {
            tokio::select! {
                read = master.async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, &mut block)?)) => read,
                _ = has_ended.changed() => {
                    is_last = true;
                    continue;
                }
            }
        };
        let count = match read {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => {
                // EIO: all ends inside are closed. EAGAIN comes only in the last round, and says that nothing is left.
                if ![Some(libc::EIO), Some(libc::EAGAIN)].contains(&error.raw_os_error()) {
                    log::warn!("a terminal cannot be read: {error}");
                }
                return;
            }
        };
        if count == 0 {
            return;
        }
        if let Err(error) = sink.write(&block[..count]).await {
            log::warn!("output of a terminal is lost: {error}");
            return;
        }
        out.fetch_add(count as u64, Ordering::Relaxed);
    }
}

async fn copy_input(reader: AsyncFd<OwnedFd>, master: Arc<AsyncFd<OwnedFd>>) {
    let mut block = vec![0; 4096];
    loop {
        match reader.async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, &mut block)?)).await {
            Ok(0) => return,
            Ok(count) => {
                if write_all(&master, &block[..count]).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                log::warn!("the input of a terminal cannot be read: {error}");
                return;
            }
        }
    }
}

async fn write_all(fd: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = fd.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, bytes)?)).await?;
        bytes = &bytes[count..];
    }
    Ok(())
}

impl Sink {
    async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Sink::Null => Ok(()),
            Sink::File(file) => (&*file).write_all(bytes),
            Sink::Pipe { writer, .. } => write_all(writer, bytes).await,
        }
    }
}

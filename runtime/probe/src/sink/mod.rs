//! Where events and findings go: files, standard output and error, the journal, syslog, webhooks ([`apex_core::watch::Sink`]).
//!
//! Input: events and findings. Output: one line of JSON each, an event as it is and a finding as an OCSF Detection Finding. Each sink has a
//! thread and a bounded queue of its own, so none makes the pipeline or another sink wait: a full disk, a dead receiver or a slow network costs
//! lines, and each lost line is counted. Trouble is told once for each sink; a URL is never told whole, as it may hold a secret.

mod file;
mod journal;
mod line;
mod queue;
mod syslog;
#[cfg(test)]
mod tests;
mod webhook;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use apex_core::event::Event;
use apex_core::finding::Finding;
use apex_core::ocsf::{self, Context};
use apex_core::watch::Sink;
use nix::sys::signal::SigSet;

pub use line::tame as tame_json;

use crate::privilege;
use queue::{Facts, Queue, Room};

/// How long [`Sinks::finish`] waits for the slowest sink.
const FINISH: Duration = Duration::from_secs(5);
/// The same for words to people, of whom some never read.
const WORDS_FINISH: Duration = Duration::from_secs(2);

/// A sink that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The file.
    #[error("cannot write to {path}; name a file in a directory that you may write to, and no symbolic link")]
    File {
        /// As it was given.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Standard output or standard error.
    #[error("{name} cannot be written to; name a file instead")]
    Stream {
        /// Which.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The journal or syslog.
    #[error("cannot reach {what} at {path}; start it, or name another sink")]
    Local {
        /// Which.
        what: &'static str,
        /// Its socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The URL of a webhook; it is not repeated, as it may hold a secret.
    #[error("the webhook {why}; give it as https://HOST/PATH")]
    Url {
        /// What is wrong with it.
        why: &'static str,
    },
    /// HTTPS without anybody to vouch for the other end.
    #[error("this host has no certificate authorities, so no HTTPS receiver can be trusted; install ca-certificates")]
    Authorities,
    /// The thread of a sink.
    #[error("cannot start a thread for a sink; raise the limit on processes")]
    Thread(#[source] io::Error),
}

/// What became of the lines of one sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// The sink, without secrets.
    pub sink: String,
    /// Lines that it took.
    pub written: u64,
    /// Lines that it did not.
    pub dropped: u64,
}

/// What a sink stands on that tests and unusual hosts have elsewhere.
#[derive(Clone)]
pub struct Surroundings {
    /// Socket of systemd-journald.
    pub journal: PathBuf,
    /// Socket of syslog.
    pub syslog: PathBuf,
    /// Gets each trouble of a sink, once for each sink, also from within [`Sinks::event`]: it must not wait. Nobody is told by default.
    pub tell: Arc<dyn Fn(&str) + Send + Sync>,
    /// How long the end may take.
    pub finish: Duration,
    /// The first pause before a webhook is tried again; each later one is twice as long.
    pub pause: Duration,
}

impl Default for Surroundings {
    fn default() -> Surroundings {
        Surroundings {
            journal: PathBuf::from("/run/systemd/journal/socket"),
            syslog: PathBuf::from("/dev/log"),
            tell: Arc::new(|_| ()),
            finish: FINISH,
            pause: webhook::PAUSE_FIRST,
        }
    }
}

/// Takes the batches of one sink.
trait Outlet: Send {
    /// Hands the lines on and accounts for each of them with [`Queue::written`] or [`Queue::dropped`].
    fn deliver(&mut self, batch: &queue::Batch, queue: &Queue);
}

struct Running {
    queue: Arc<Queue>,
    thread: JoinHandle<()>,
}

/// Open sinks.
pub struct Sinks {
    running: Vec<Running>,
    line: Vec<u8>,
    finish: Duration,
}

impl Sinks {
    /// Opens each; an empty list is fine.
    pub fn open(sinks: &[Sink], surroundings: &Surroundings) -> Result<Sinks, SinkError> {
        let mut open = Sinks { running: Vec::new(), line: Vec::new(), finish: surroundings.finish };
        for sink in sinks {
            // On failure `open` is dropped: threads of the sinks before find their queue closed and end.
            let (name, room, outlet) = outlet(sink, surroundings)?;
            let queue = Arc::new(Queue::new(name, room, Arc::clone(&surroundings.tell)));
            let thread = start(outlet, Arc::clone(&queue)).map_err(SinkError::Thread)?;
            open.running.push(Running { queue, thread });
        }
        Ok(open)
    }

    /// Standard error, for words to people. What does not fit or cannot be written is lost without a word, since there is nowhere to say it.
    pub fn words() -> Result<Sinks, SinkError> {
        let silent = Surroundings { finish: WORDS_FINISH, ..Surroundings::default() };
        // Whoever closed it wants to be told nothing.
        Sinks::open(&[Sink::Stderr], &silent).or_else(|error| match error {
            SinkError::Stream { .. } => Sinks::open(&[], &silent),
            other => Err(other),
        })
    }

    /// Tells people by these sinks what is wrong with others, without waiting: standard error may be as full as they are.
    pub fn teller(&self) -> Arc<dyn Fn(&str) + Send + Sync> {
        let queues: Vec<_> = self.running.iter().map(|running| Arc::clone(&running.queue)).collect();
        Arc::new(move |words| {
            let line = format!("apex-probe: {words}\n");
            queues.iter().for_each(|queue| queue.push_at_once(line.as_bytes()));
        })
    }

    /// Whether nothing is written anywhere.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Writes an event. Never waits.
    pub fn event(&mut self, event: &Event) {
        if self.is_empty() {
            return;
        }
        line::write(&mut self.line, event);
        for running in &self.running {
            running.queue.push(&self.line, None);
        }
    }

    /// Writes a finding, at once. Never waits.
    pub fn finding(&mut self, finding: &Finding, context: &Context) {
        if self.is_empty() {
            return;
        }
        line::write(&mut self.line, &ocsf::detection(finding, context));
        for running in &self.running {
            running.queue.push(&self.line, Some(Box::new(Facts::of(finding))));
        }
    }

    /// Writes a line for people, at once. Never waits.
    pub fn line(&mut self, words: &str) {
        self.line.clear();
        self.line.extend_from_slice(words.as_bytes());
        self.line.push(b'\n');
        for running in &self.running {
            running.queue.push_at_once(&self.line);
        }
    }

    /// Writes what is left, for a few seconds at most, and tells what became of all of it.
    pub fn finish(mut self) -> Vec<Counts> {
        let deadline = Instant::now() + self.finish;
        let running = std::mem::take(&mut self.running);
        for running in &running {
            running.queue.close(deadline);
        }
        running.into_iter().map(|running| running.end(deadline)).collect()
    }
}

impl Drop for Sinks {
    fn drop(&mut self) {
        for running in &self.running {
            running.queue.close(Instant::now());
        }
    }
}

impl Running {
    fn end(self, deadline: Instant) -> Counts {
        // A sink that hangs in a call of the kernel beyond its deadline is left behind; its thread ends with the process.
        if self.queue.wait_done(deadline) && self.thread.join().is_err() {
            self.queue.trouble("its thread failed");
        }
        self.queue.counts()
    }
}

fn inherited(name: &'static str, fd: BorrowedFd<'_>) -> Result<(String, Room, Box<dyn Outlet>), SinkError> {
    let stream = file::Stream::inherited(fd).map_err(|source| SinkError::Stream { name, source })?;
    Ok((name.to_owned(), Room::STREAM, Box::new(stream)))
}

fn outlet(sink: &Sink, surroundings: &Surroundings) -> Result<(String, Room, Box<dyn Outlet>), SinkError> {
    Ok(match sink {
        Sink::File(path) => {
            let file = file::Stream::open(Path::new(path));
            let file = file.map_err(|source| SinkError::File { path: path.clone(), source })?;
            (path.clone(), Room::STREAM, Box::new(file))
        }
        Sink::Stdout => inherited("standard output", io::stdout().as_fd())?,
        Sink::Stderr => inherited("standard error", io::stderr().as_fd())?,
        Sink::Journald => {
            let path = &surroundings.journal;
            let journal = journal::Journal::open(path);
            let journal =
                journal.map_err(|source| SinkError::Local { what: "systemd-journald", path: path.clone(), source })?;
            ("the journal".to_owned(), Room::MESSAGES, Box::new(journal))
        }
        Sink::Syslog => {
            let path = &surroundings.syslog;
            let syslog = syslog::Syslog::open(path);
            let syslog = syslog.map_err(|source| SinkError::Local { what: "syslog", path: path.clone(), source })?;
            ("syslog".to_owned(), Room::MESSAGES, Box::new(syslog))
        }
        Sink::Webhook(url) => {
            let webhook = webhook::Webhook::open(url, surroundings.pause)?;
            (webhook.name().to_owned(), Room::MESSAGES, Box::new(webhook))
        }
    })
}

fn start(mut outlet: Box<dyn Outlet>, queue: Arc<Queue>) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("sink".to_owned()).spawn(move || {
        // Signals are the main thread's; and a write beyond RLIMIT_FSIZE sends one to the writer that would end the process.
        let _ = SigSet::all().thread_block();
        privilege::give_up_or_panic();
        while let Some(batch) = queue.take() {
            outlet.deliver(&batch, &queue);
            queue.recycle(batch);
        }
        queue.done();
    })
}

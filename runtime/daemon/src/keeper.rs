//! The daemon's end of a keeper's socket ([`apex_core::keep`]).
//!
//! One request after the other, each with its answer. What the keeper says unasked goes to whoever lives with the sandbox. A keeper that does not answer is
//! an error of the request, never a wait without end.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apex_core::keep::{Ended, FromKeeper, PACKET_BYTES_MAX, Standing, ToKeeper};
use apex_sys::{Errno, net};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use crate::place::Dir;
use crate::ready;
use crate::say::{self, Level};

/// How long an answer may take: a freeze waits for the kernel, a cut for the prober.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// What a keeper says unasked: it stands, it has ended.
const TOLD_MAX: usize = 8;

thread_local! {
    /// Room for a packet: for the time of one look, whoever's it is.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; PACKET_BYTES_MAX]);
}

/// What a keeper says unasked.
#[derive(Debug)]
pub enum Told {
    Standing(Standing),
    Ended(Ended),
    Terminal {
        spawned: Option<i32>,
        master: OwnedFd,
    },
    SpawnedEnded {
        number: i32,
        ended: SpawnedEnd,
    },
    /// The connection is gone.
    Gone,
}

/// How a command that was started later ended.
#[derive(Debug)]
pub struct SpawnedEnd {
    pub code: u8,
    pub how: String,
    /// Why it was never executed.
    pub words: Option<String>,
}

/// An answer, and what came along.
#[derive(Debug)]
pub struct Answer {
    pub said: FromKeeper,
    pub fds: Vec<OwnedFd>,
}

/// Why a request was not answered with what it asked for.
#[derive(Debug)]
pub enum NotDone {
    /// The keeper refused it, or never got it: nothing was done.
    Refused(String),
    /// It was sent, and what became of it was not heard.
    Unheard(String),
}

impl From<NotDone> for String {
    fn from(not_done: NotDone) -> String {
        match not_done {
            NotDone::Refused(words) | NotDone::Unheard(words) => words,
        }
    }
}

/// A connection to a keeper.
pub struct Keeper {
    socket: AsyncFd<OwnedFd>,
    waiting: Mutex<VecDeque<oneshot::Sender<Answer>>>,
    turn: tokio::sync::Mutex<()>,
}

/// One packet. `None` for the end, and for what is not understood.
fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<Option<Answer>, Errno> {
    let (count, fds) = net::receive(socket, bytes)?;
    if count == 0 {
        return Ok(None);
    }
    match serde_json::from_slice(&bytes[..count]) {
        Ok(said) => Ok(Some(Answer { said, fds })),
        Err(error) => {
            let words =
                format_args!("a keeper said what is not understood ({error}); are apexd and apex-run of one version?");
            say::line(Level::Warning, "keeper", None, words);
            Ok(None)
        }
    }
}

impl Keeper {
    /// Connects, and has what it says unasked sent.
    pub fn connect(dir: &Dir) -> anyhow::Result<(Arc<Keeper>, mpsc::Receiver<Told>)> {
        Ok(Keeper::over(dir.connect()?)?)
    }

    /// The same over a connection that was made before: it takes no descriptor.
    pub fn over(connection: OwnedFd) -> std::io::Result<(Arc<Keeper>, mpsc::Receiver<Told>)> {
        let socket = ready::register(connection)?;
        let keeper = Arc::new(Keeper { socket, waiting: Mutex::default(), turn: tokio::sync::Mutex::default() });
        let (to, told) = mpsc::channel(TOLD_MAX);
        tokio::spawn(Arc::clone(&keeper).listen(to));
        Ok((keeper, told))
    }

    async fn listen(self: Arc<Self>, to: mpsc::Sender<Told>) {
        let mut has_stood = false;
        while let Some(Answer { said, fds }) = self.hear().await {
            let told = match said {
                // Once is what a keeper does; one that its user has taken over must not keep us busy.
                FromKeeper::Standing(_) if std::mem::replace(&mut has_stood, true) => break,
                FromKeeper::Standing(standing) => Told::Standing(standing),
                FromKeeper::Ended(ended) => Told::Ended(ended),
                FromKeeper::SpawnedEnded { number, code, how, words } => {
                    Told::SpawnedEnded { number, ended: SpawnedEnd { code, how, words } }
                }
                FromKeeper::Terminal { spawned } => match fds.into_iter().next() {
                    Some(master) => Told::Terminal { spawned, master },
                    None => continue,
                },
                said => {
                    let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    // An answer that nobody asked for: likewise.
                    let Some(waiting) = waiting else { break };
                    // Whoever asked may have given up.
                    let _ = waiting.send(Answer { said, fds });
                    continue;
                }
            };
            if to.send(told).await.is_err() {
                return;
            }
        }
        // Nobody is answered any more.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let _ = to.send(Told::Gone).await;
    }

    async fn hear(&self) -> Option<Answer> {
        loop {
            let mut ready = self.socket.readable().await.ok()?;
            match BUFFER.with_borrow_mut(|bytes| receive(self.socket.as_fd(), bytes)) {
                Ok(heard) => return heard,
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(_) => return None,
            }
        }
    }

    /// Asks, and waits for the answer.
    pub async fn ask(&self, said: &ToKeeper) -> Result<Answer, NotDone> {
        self.ask_with(said, &[]).await
    }

    /// The same with descriptors.
    pub async fn ask_with(&self, said: &ToKeeper, fds: &[BorrowedFd<'_>]) -> Result<Answer, NotDone> {
        let bytes = serde_json::to_vec(said).expect("plain values are representable");
        let (to, answer) = oneshot::channel();
        {
            let _turn = self.turn.lock().await;
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(to);
            let sent = tokio::time::timeout(ANSWER_WITHIN, self.send(&bytes, fds)).await;
            if !matches!(sent, Ok(Ok(()))) {
                self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_back();
                return Err(NotDone::Refused("its keeper takes no requests; it may be stopped or gone".to_owned()));
            }
        }
        match tokio::time::timeout(ANSWER_WITHIN, answer).await {
            Ok(Ok(Answer { said: FromKeeper::Refused { words }, .. })) => Err(NotDone::Refused(words)),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(NotDone::Unheard("its keeper is gone".to_owned())),
            Err(_) => Err(NotDone::Unheard(format!("its keeper did not answer within {} s", ANSWER_WITHIN.as_secs()))),
        }
    }

    async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        loop {
            let mut ready = self.socket.writable().await?;
            match net::try_send(self.socket.as_fd(), bytes, fds) {
                Ok(()) => return Ok(()),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

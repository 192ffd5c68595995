//! The daemon's end of the warden's socket.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apex_sys::{Errno, net};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use crate::ready;
use crate::say::{self, Level};
use crate::tokens::Tokens;
use crate::warden::{FromWarden, PACKET_BYTES_MAX, Packet, ToWarden};

/// How long a fork may take on a busy machine.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// What the warden tells unasked.
#[derive(Debug)]
pub enum News {
    /// The keeper of a sandbox has ended with this code.
    Ended { id: String, code: i32 },
    /// The warden is gone.
    Gone,
}

/// Why no keeper was started, as far as that is known.
#[derive(Debug)]
pub enum NotStarted {
    /// The warden said so, or was never asked.
    Refused(String),
    /// It did not say.
    Unheard(String),
}

impl std::fmt::Display for NotStarted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (NotStarted::Refused(words) | NotStarted::Unheard(words)) = self;
        f.write_str(words)
    }
}

/// Who asks the warden.
pub struct Errands {
    socket: AsyncFd<OwnedFd>,
    waiting: Mutex<HashMap<String, oneshot::Sender<Result<FromWarden, String>>>>,
    turn: tokio::sync::Mutex<()>,
    tokens: Tokens,
}

impl Errands {
    /// Over this socket; news go to the channel.
    pub fn new(socket: OwnedFd, tokens: Tokens, news: mpsc::Sender<News>) -> std::io::Result<Arc<Errands>> {
        nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        let errands = Arc::new(Errands {
            socket: ready::register(socket)?,
            waiting: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            tokens,
        });
        tokio::spawn(Arc::clone(&errands).listen(news));
        Ok(errands)
    }

    /// Has a keeper started as a user who has asked before; its pid.
    pub async fn start(&self, request: &ToWarden, fds: &[BorrowedFd<'_>]) -> Result<i32, NotStarted> {
        let (uid, gid) = (request.uid, request.gid);
        let token = self.tokens.of(uid, gid).ok_or_else(|| {
            NotStarted::Refused(format!("the warden has seen no connection of uid {uid} and gid {gid}"))
        })?;
        match self.ask(&request.id, &Packet::Start { request: request.clone(), token }, fds).await? {
            FromWarden::Started { pid, .. } => Ok(pid),
            other => Err(NotStarted::Unheard(format!("the warden answered {other:?}"))),
        }
    }

    /// Shows the warden who has connected, once for each user and group. What it says is needed by a start, and missed there.
    pub async fn show(&self, uid: u32, gid: u32, connection: BorrowedFd<'_>) {
        static QUESTIONS: AtomicU64 = AtomicU64::new(0);
        if self.tokens.is_fresh(uid, gid) {
            return;
        }
        let id = format!("question {}", QUESTIONS.fetch_add(1, Ordering::Relaxed));
        match self.ask(&id, &Packet::Vouch { id: id.clone() }, &[connection]).await {
            Ok(FromWarden::Vouched { uid, gid, token, .. }) => self.tokens.note(uid, gid, token),
            Ok(other) => {
                say::line(Level::Warning, "peer", None, format_args!("who uid {uid} is: the warden answered {other:?}"))
            }
            Err(words) => say::line(Level::Warning, "peer", None, format_args!("who uid {uid} is: {words}")),
        }
    }

    async fn ask(&self, id: &str, packet: &Packet, fds: &[BorrowedFd<'_>]) -> Result<FromWarden, NotStarted> {
        let bytes = serde_json::to_vec(packet).map_err(|error| NotStarted::Refused(error.to_string()))?;
        if bytes.len() > PACKET_BYTES_MAX {
            return Err(NotStarted::Refused(format!(
                "its command, environment and options come to {} bytes; at most {PACKET_BYTES_MAX} go",
                bytes.len()
            )));
        }
        let (to, answer) = oneshot::channel();
        self.waiting().insert(id.to_owned(), to);
        let sent = {
            let _turn = self.turn.lock().await;
            tokio::time::timeout(ANSWER_WITHIN, self.send(&bytes, fds)).await
        };
        let outcome = match sent {
            Ok(Ok(())) => match tokio::time::timeout(ANSWER_WITHIN, answer).await {
                Ok(Ok(outcome)) => outcome.map_err(NotStarted::Refused),
                Ok(Err(_)) => Err(NotStarted::Unheard("the warden is gone".to_owned())),
                Err(_) => Err(NotStarted::Unheard("the warden did not answer".to_owned())),
            },
            Ok(Err(error)) => Err(NotStarted::Unheard(format!("asking the warden: {error}"))),
            Err(_) => Err(NotStarted::Unheard("the warden takes no requests".to_owned())),
        };
        self.waiting().remove(id);
        outcome
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<String, oneshot::Sender<Result<FromWarden, String>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
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

    async fn listen(self: Arc<Self>, news: mpsc::Sender<News>) {
        while let Some(said) = self.hear().await {
            match said {
                FromWarden::Started { ref id, .. } | FromWarden::Vouched { ref id, .. } => {
                    self.answer(&id.clone(), Ok(said));
                }
                FromWarden::Refused { id, words } => self.answer(&id, Err(words)),
                FromWarden::Ended { id, code } => {
                    let _ = news.send(News::Ended { id, code }).await;
                }
            }
        }
        self.waiting().clear();
        let _ = news.send(News::Gone).await;
    }

    fn answer(&self, id: &str, outcome: Result<FromWarden, String>) {
        let waiting = self.waiting().remove(id);
        // Whoever asked may have given up.
        let _ = waiting.map(|waiting| waiting.send(outcome));
    }

    async fn hear(&self) -> Option<FromWarden> {
        let mut bytes = vec![0; PACKET_BYTES_MAX];
        loop {
            let mut ready = self.socket.readable().await.ok()?;
            match net::receive(self.socket.as_fd(), &mut bytes) {
                Ok((0, _)) => return None,
                Ok((count, _)) => return serde_json::from_slice(&bytes[..count]).ok(),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(_) => return None,
            }
        }
    }
}

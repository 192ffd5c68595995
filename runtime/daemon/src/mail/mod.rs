//! Mailboxes of the daemon: messages kept, given, and done with. [`door`] serves sandboxes, [`host`] the API; what may pass is [`apex_core::mail`]'s to say.
//!
//! One lock over what lies where and the file it lies in: a message that somebody was told of is on disk, and one that is on disk is in the list.

pub mod door;
pub mod host;
mod letters;
mod line;
mod peer;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use anyhow::Result;
use apex_core::mail::{Bounds, Full, Given, Letter, Lost, Post, Seen, Who};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::clock::now_ms;
use letters::{Letters, Stored};

/// How long somebody may have a message without acknowledging it.
pub const LEASE: Duration = Duration::from_secs(30);
/// How long one request may wait for a message.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

/// A message that is given.
pub struct Message {
    pub given: Given,
    pub body: String,
}

/// Who sends what.
pub struct Sending<'a> {
    pub uid: u32,
    pub mailbox: &'a str,
    /// Id of the sandbox, or `host`; and its name.
    pub from: &'a str,
    pub name: &'a str,
    /// JSON without blanks.
    pub body: &'a str,
}

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error(transparent)]
    Full(#[from] Full),
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error("{0:#}")]
    Disk(#[from] anyhow::Error),
}

/// All mailboxes.
pub struct Office(Mutex<Inner>);

struct Inner {
    post: Post,
    letters: Letters,
    /// Leases are counted from here, by a clock that nobody sets.
    began: Instant,
    /// Who waits for something in a mailbox.
    waiting: HashMap<(u32, String), Weak<Notify>>,
}

impl Office {
    /// With what was there.
    pub fn open(path: &Path) -> Result<Office> {
        let letters = Letters::open(path)?;
        let mut post = Post::new(Bounds::default());
        for Stored { uid, mailbox, letter } in letters.all()? {
            post.put(uid, &mailbox, letter);
        }
        Ok(Office(Mutex::new(Inner { post, letters, began: Instant::now(), waiting: HashMap::new() })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is room for a message.
    pub fn room(&self, uid: u32, mailbox: &str, bytes: u64) -> Result<(), Full> {
        self.inner().post.room(uid, mailbox, bytes)
    }

    /// Keeps a message; its number.
    pub fn send(&self, sending: &Sending<'_>) -> Result<u64, Failed> {
        let Sending { uid, mailbox, from, name, body } = *sending;
        let bytes = body.len() as u64;
        let mut inner = self.inner();
        inner.post.room(uid, mailbox, bytes)?;
        let at_ms = now_ms();
        let id = inner.post.number(at_ms);
        let letter = Letter { id, from: from.to_owned(), name: name.to_owned(), at_ms, bytes };
        inner.letters.put(uid, mailbox, &letter, body)?;
        inner.post.put(uid, mailbox, letter);
        inner.ring(uid, mailbox);
        Ok(id)
    }

    /// The next message, waited for as long as that.
    pub async fn receive(&self, uid: u32, mailbox: &str, who: Who, wait: Duration) -> Result<Option<Message>, Failed> {
        let end = Instant::now() + wait.min(WAIT_MAX);
        let bell = self.inner().bell(uid, mailbox);
        loop {
            // Before the look: what comes in between is heard.
            let mut rung = std::pin::pin!(bell.notified());
            rung.as_mut().enable();
            let due = match self.inner().take(uid, mailbox, who)? {
                Ok(message) => return Ok(Some(message)),
                Err(due) => due,
            };
            if Instant::now() >= end {
                return Ok(None);
            }
            let again = due.map_or(end, |due| end.min(Instant::now() + due));
            tokio::select! {
                () = rung => {}
                () = tokio::time::sleep_until(again) => {}
            }
        }
    }

    /// Somebody is done with a message; its mailbox.
    pub fn acknowledge(&self, uid: u32, id: u64, who: Who) -> Result<String, Failed> {
        let mut inner = self.inner();
        let mailbox = inner.post.held(uid, id, who)?.to_owned();
        inner.letters.remove(id)?;
        inner.post.done(uid, &mailbox, id);
        Ok(mailbox)
    }

    /// Somebody has gone away, and these were not acknowledged.
    pub fn let_go(&self, uid: u32, held: &[(String, u64)], who: Who) {
        let mut inner = self.inner();
        for (mailbox, id) in held {
            inner.post.let_go(uid, mailbox, *id, who);
            inner.ring(uid, mailbox);
        }
    }

    /// Empties a mailbox: how many messages were in it.
    pub fn empty(&self, uid: u32, mailbox: &str) -> Result<u64> {
        let mut inner = self.inner();
        inner.letters.empty(uid, mailbox)?;
        Ok(inner.post.empty(uid, mailbox))
    }

    /// Those with something in them.
    pub fn seen(&self) -> Vec<Seen> {
        self.inner().post.seen()
    }

    /// Messages, and the bytes for which they count.
    pub fn total(&self) -> (u64, u64) {
        self.inner().post.total()
    }
}

impl Inner {
    /// A message, or in how much time one that somebody has is due.
    fn take(&mut self, uid: u32, mailbox: &str, who: Who) -> Result<Result<Message, Option<Duration>>> {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let lease = u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX);
        let Some(given) = self.post.take(uid, mailbox, who, now.saturating_add(lease), now) else {
            let due = self.post.due_ms(uid, mailbox);
            return Ok(Err(due.map(|due| Duration::from_millis(due.saturating_sub(now).max(1)))));
        };
        match self.letters.body(given.letter.id) {
            Ok(body) => Ok(Ok(Message { given, body })),
            Err(error) => {
                self.post.let_go(uid, mailbox, given.letter.id, who);
                Err(error)
            }
        }
    }

    fn bell(&mut self, uid: u32, mailbox: &str) -> Arc<Notify> {
        self.waiting.retain(|_, bell| bell.strong_count() > 0);
        let place = self.waiting.entry((uid, mailbox.to_owned())).or_default();
        place.upgrade().unwrap_or_else(|| {
            let bell = Arc::new(Notify::new());
            *place = Arc::downgrade(&bell);
            bell
        })
    }

    fn ring(&self, uid: u32, mailbox: &str) {
        if let Some(bell) = self.waiting.get(&(uid, mailbox.to_owned())).and_then(Weak::upgrade) {
            bell.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(office: &Office, uid: u32, body: &str) -> u64 {
        office.send(&Sending { uid, mailbox: "jobs", from: "0123", name: "", body }).unwrap()
    }

    async fn receive(office: &Office, uid: u32) -> Option<(u64, String)> {
        let message = office.receive(uid, "jobs", Who::Host, Duration::ZERO).await.unwrap();
        message.map(|message| (message.given.letter.id, message.body))
    }

    /// As the next daemon finds it: what was acknowledged is gone, what was only held is not.
    #[tokio::test]
    async fn what_was_kept_is_there_for_the_next() {
        let dir = std::env::temp_dir().join(format!("apexd-mail-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("mail.db");
        let office = Office::open(&path).unwrap();
        let ids = [send(&office, 7, "\"ä\""), send(&office, 7, "2"), send(&office, 8, "3")];
        assert_eq!(receive(&office, 7).await, Some((ids[0], "\"ä\"".to_owned())));
        assert_eq!(receive(&office, 7).await, Some((ids[1], "2".to_owned())));
        assert_eq!(office.acknowledge(7, ids[1], Who::Host).unwrap(), "jobs");
        drop(office);
        let office = Office::open(&path).unwrap();
        assert_eq!(office.seen().iter().map(|seen| (seen.uid, seen.bytes)).collect::<Vec<_>>(), [(7, 4), (8, 1)]);
        assert_eq!(receive(&office, 7).await, Some((ids[0], "\"ä\"".to_owned())));
        assert_eq!(receive(&office, 7).await, None);
        assert_eq!(office.empty(8, "jobs").unwrap(), 1);
        drop(office);
        assert_eq!(Office::open(&path).unwrap().total().0, 1);
        std::fs::write(&path, "no database").unwrap();
        for side in ["mail.db-wal", "mail.db-shm"] {
            let _ = std::fs::remove_file(dir.join(side));
        }
        let error = Office::open(&path).err().unwrap();
        assert!(format!("{error:#}").contains("move it away"), "{error:#}");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn whoever_waits_is_woken_by_what_comes() {
        let dir = std::env::temp_dir().join(format!("apexd-mail-wait-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let office = Arc::new(Office::open(&dir.join("mail.db")).unwrap());
        let waiting = Arc::clone(&office);
        let wait = Duration::from_secs(20);
        let waiting = tokio::spawn(async move { waiting.receive(7, "jobs", Who::Connection(1), wait).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        let id = send(&office, 7, "1");
        let message = tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap().unwrap().unwrap();
        assert_eq!(message.given.letter.id, id);
        office.let_go(7, &[("jobs".to_owned(), id)], Who::Connection(1));
        assert_eq!(receive(&office, 7).await, Some((id, "1".to_owned())));
        drop(office);
        std::fs::remove_dir_all(dir).unwrap();
    }
}

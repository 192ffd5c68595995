//! What lies in which mailbox, and who has been given what. Input: messages that were stored, who asks, the time. Output: whether there is room, which message is given,
//! whether one is done with.
//!
//! A message is given to one receiver at a time, until that one acknowledges it, goes away, or has had it for too long; then it is given again. Mailboxes belong
//! to a user, and nothing here gets from one user to another.

use std::collections::BTreeMap;

use serde::Serialize;

/// What a message counts for beside its body.
const LETTER_BYTES: u64 = 256;

/// How much there may be.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Messages in one mailbox.
    pub box_count: u64,
    /// Bytes in one mailbox.
    pub box_bytes: u64,
    /// Mailboxes of one user that are not empty.
    pub user_boxes: usize,
    /// Messages of one user.
    pub user_count: u64,
    /// Bytes of one user.
    pub user_bytes: u64,
    /// Messages of all.
    pub count: u64,
    /// Bytes of all.
    pub bytes: u64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            box_count: 1000,
            box_bytes: 4 << 20,
            user_boxes: 256,
            user_count: 10_000,
            user_bytes: 16 << 20,
            count: 50_000,
            bytes: 128 << 20,
        }
    }
}

/// A message, without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Greater than that of every message before; microseconds since the epoch, or a little more.
    pub id: u64,
    /// Id of the sandbox, or `host`, which is none.
    pub from: String,
    /// Name of the sandbox; empty for none.
    pub name: String,
    /// When it was sent, in milliseconds since the epoch.
    pub at_ms: u64,
    /// Bytes of its body.
    pub bytes: u64,
}

/// Who was given a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Somebody who asked over the API.
    Host,
    /// A connection from a sandbox, by a number that no other has.
    Connection(u64),
}

/// A message, given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Which.
    pub letter: Letter,
    /// How often it was given, this time included, as far as this process knows.
    pub attempt: u32,
}

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// In this mailbox.
    #[error("the mailbox is full; receive from it, or remove it")]
    Mailbox,
    /// In those of the user.
    #[error("the mailboxes of this user are full; receive from them, or remove some")]
    User,
    /// In all.
    #[error("there is no room for more messages on this host")]
    All,
}

/// That it is not there, or somebody else has it by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("you do not hold this message: it was acknowledged, given to somebody else, or never given to you")]
pub struct Lost;

/// A mailbox, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Whose.
    pub uid: u32,
    /// Its name.
    pub name: String,
    /// Messages.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
    /// Messages that somebody has and did not acknowledge.
    pub held: u64,
}

/// All mailboxes with something in them.
#[derive(Debug, Default)]
pub struct Post {
    bounds: Bounds,
    users: BTreeMap<u32, User>,
    sum: Sum,
    last_id: u64,
}

#[derive(Debug, Default)]
struct User {
    boxes: BTreeMap<String, Queue>,
    sum: Sum,
}

#[derive(Debug, Default)]
struct Queue {
    letters: BTreeMap<u64, Entry>,
    sum: Sum,
}

#[derive(Debug)]
struct Entry {
    letter: Letter,
    held: Option<(Who, u64)>,
    attempts: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    count: u64,
    bytes: u64,
}

impl Sum {
    const fn with(self, bytes: u64) -> Sum {
        Sum { count: self.count.saturating_add(1), bytes: self.bytes.saturating_add(bytes + LETTER_BYTES) }
    }

    const fn without(self, bytes: u64) -> Sum {
        Sum { count: self.count.saturating_sub(1), bytes: self.bytes.saturating_sub(bytes + LETTER_BYTES) }
    }
}

impl Post {
    /// With other bounds than the usual ones.
    pub fn new(bounds: Bounds) -> Post {
        Post { bounds, ..Post::default() }
    }

    /// Whether a message of this size has room.
    ///
    /// # Errors
    /// Where there is none.
    pub fn room(&self, uid: u32, name: &str, bytes: u64) -> Result<(), Full> {
        let bounds = &self.bounds;
        let user = self.users.get(&uid);
        let queue = user.and_then(|user| user.boxes.get(name));
        let in_box = queue.map_or(Sum::default(), |queue| queue.sum).with(bytes);
        if in_box.count > bounds.box_count || in_box.bytes > bounds.box_bytes {
            return Err(Full::Mailbox);
        }
        let of_user = user.map_or(Sum::default(), |user| user.sum).with(bytes);
        let has_box = queue.is_some() || user.map_or(0, |user| user.boxes.len()) < bounds.user_boxes;
        if of_user.count > bounds.user_count || of_user.bytes > bounds.user_bytes || !has_box {
            return Err(Full::User);
        }
        let all = self.sum.with(bytes);
        if all.count > bounds.count || all.bytes > bounds.bytes {
            return Err(Full::All);
        }
        Ok(())
    }

    /// A number for the next message. A clock that was set back repeats none of those that are here.
    pub fn number(&mut self, now_ms: u64) -> u64 {
        self.last_id = (self.last_id + 1).max(now_ms.saturating_mul(1000));
        self.last_id
    }

    /// Puts a message into a mailbox; one that was stored is put there whatever the bounds are by now.
    pub fn put(&mut self, uid: u32, name: &str, letter: Letter) {
        self.last_id = self.last_id.max(letter.id);
        let user = self.users.entry(uid).or_default();
        let queue = user.boxes.entry(name.to_owned()).or_default();
        for sum in [&mut queue.sum, &mut user.sum, &mut self.sum] {
            *sum = sum.with(letter.bytes);
        }
        queue.letters.insert(letter.id, Entry { letter, held: None, attempts: 0 });
    }

    /// Gives the oldest message that nobody has.
    pub fn take(&mut self, uid: u32, name: &str, who: Who, until_ms: u64, now_ms: u64) -> Option<Given> {
        let queue = self.users.get_mut(&uid)?.boxes.get_mut(name)?;
        let entry = queue.letters.values_mut().find(|entry| entry.is_free(now_ms))?;
        entry.held = Some((who, until_ms));
        entry.attempts = entry.attempts.saturating_add(1);
        Some(Given { letter: entry.letter.clone(), attempt: entry.attempts })
    }

    /// When somebody will have had a message of a mailbox for too long, the first of them.
    pub fn due_ms(&self, uid: u32, name: &str) -> Option<u64> {
        let queue = self.users.get(&uid)?.boxes.get(name)?;
        queue.letters.values().filter_map(|entry| entry.held.map(|(_, until_ms)| until_ms)).min()
    }

    /// The mailbox of a message that somebody has. Who had it for too long still has it until it is given to somebody else.
    ///
    /// # Errors
    /// Somebody else has it, or nobody.
    pub fn held(&self, uid: u32, id: u64, who: Who) -> Result<&str, Lost> {
        let boxes = self.users.get(&uid).into_iter().flat_map(|user| &user.boxes);
        let mut holding = boxes.filter(|(_, queue)| {
            queue.letters.get(&id).is_some_and(|entry| entry.held.is_some_and(|(holder, _)| holder == who))
        });
        holding.next().map(|(name, _)| name.as_str()).ok_or(Lost)
    }

    /// Takes a message out.
    pub fn done(&mut self, uid: u32, name: &str, id: u64) {
        let Some(user) = self.users.get_mut(&uid) else { return };
        let Some(queue) = user.boxes.get_mut(name) else { return };
        let Some(entry) = queue.letters.remove(&id) else { return };
        for sum in [&mut queue.sum, &mut user.sum, &mut self.sum] {
            *sum = sum.without(entry.letter.bytes);
        }
        if queue.letters.is_empty() {
            user.boxes.remove(name);
        }
        if user.boxes.is_empty() {
            self.users.remove(&uid);
        }
    }

    /// Somebody has a message no more, and did not acknowledge it.
    pub fn let_go(&mut self, uid: u32, name: &str, id: u64, who: Who) {
        let queue = self.users.get_mut(&uid).and_then(|user| user.boxes.get_mut(name));
        if let Some(entry) = queue.and_then(|queue| queue.letters.get_mut(&id))
            && entry.held.is_some_and(|(holder, _)| holder == who)
        {
            entry.held = None;
        }
    }

    /// Empties a mailbox: how many messages were in it.
    pub fn empty(&mut self, uid: u32, name: &str) -> u64 {
        let queue = self.users.get(&uid).and_then(|user| user.boxes.get(name));
        let ids: Vec<u64> = queue.into_iter().flat_map(|queue| queue.letters.keys().copied()).collect();
        ids.iter().for_each(|id| self.done(uid, name, *id));
        ids.len() as u64
    }

    /// What there is.
    pub fn seen(&self) -> Vec<Seen> {
        let of = |uid: u32, (name, queue): (&String, &Queue)| Seen {
            uid,
            name: name.clone(),
            count: queue.sum.count,
            bytes: queue.letters.values().map(|entry| entry.letter.bytes).sum(),
            held: queue.letters.values().filter(|entry| entry.held.is_some()).count() as u64,
        };
        self.users.iter().flat_map(|(uid, user)| user.boxes.iter().map(move |queue| of(*uid, queue))).collect()
    }

    /// How many messages there are, and for how many bytes they count.
    pub const fn total(&self) -> (u64, u64) {
        (self.sum.count, self.sum.bytes)
    }
}

impl Entry {
    fn is_free(&self, now_ms: u64) -> bool {
        self.held.is_none_or(|(_, until_ms)| until_ms <= now_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: u32 = 1000;
    const BOB: u32 = 1001;
    const ONE: Who = Who::Connection(1);
    const TWO: Who = Who::Connection(2);

    fn send(post: &mut Post, uid: u32, name: &str, bytes: u64) -> Result<u64, Full> {
        post.room(uid, name, bytes)?;
        let id = post.number(5);
        post.put(uid, name, Letter { id, from: "a".to_owned(), name: String::new(), at_ms: 5, bytes });
        Ok(id)
    }

    fn take(post: &mut Post, uid: u32, who: Who, now: u64) -> Option<u64> {
        post.take(uid, "jobs", who, now + 30, now).map(|given| given.letter.id)
    }

    #[test]
    fn a_message_is_given_in_order_and_to_one_at_a_time() {
        let mut post = Post::default();
        let sent: Vec<u64> = (0..3).map(|_| send(&mut post, ANN, "jobs", 1).unwrap()).collect();
        assert!(sent.is_sorted());
        assert_eq!(take(&mut post, ANN, ONE, 100), Some(sent[0]));
        assert_eq!(take(&mut post, ANN, TWO, 100), Some(sent[1]));
        assert_eq!(take(&mut post, BOB, TWO, 100), None, "another user's mailbox of that name is another");
        assert_eq!(post.held(ANN, sent[0], TWO), Err(Lost));
        assert_eq!(post.held(BOB, sent[0], ONE), Err(Lost));
        assert_eq!(post.held(ANN, sent[2], ONE), Err(Lost), "nobody has it");
        assert_eq!(post.held(ANN, sent[0], ONE), Ok("jobs"));
        post.done(ANN, "jobs", sent[0]);
        assert_eq!(post.held(ANN, sent[0], ONE), Err(Lost));
        assert_eq!(post.seen()[0], Seen { uid: ANN, name: "jobs".to_owned(), count: 2, bytes: 2, held: 1 });
        assert_eq!(post.empty(ANN, "jobs"), 2);
        assert_eq!((post.seen(), post.total()), (Vec::new(), (0, 0)), "an empty mailbox is none");
    }

    #[test]
    fn what_is_not_acknowledged_is_given_again() {
        let mut post = Post::default();
        let id = send(&mut post, ANN, "jobs", 1).unwrap();
        assert_eq!(take(&mut post, ANN, ONE, 100), Some(id));
        assert_eq!(post.due_ms(ANN, "jobs"), Some(130));
        assert_eq!(take(&mut post, ANN, TWO, 129), None);
        assert_eq!(post.held(ANN, id, ONE), Ok("jobs"));
        let given = post.take(ANN, "jobs", TWO, 160, 130).unwrap();
        assert_eq!((given.letter.id, given.attempt), (id, 2));
        assert_eq!(post.held(ANN, id, ONE), Err(Lost), "the late one is told");
        post.let_go(ANN, "jobs", id, ONE);
        assert_eq!(take(&mut post, ANN, ONE, 140), None, "only who has it lets it go");
        post.let_go(ANN, "jobs", id, TWO);
        assert_eq!(post.due_ms(ANN, "jobs"), None);
        assert_eq!(take(&mut post, ANN, Who::Host, 140), Some(id));
    }

    #[test]
    fn what_is_full_is_told() {
        let bounds = Bounds {
            box_count: 3,
            box_bytes: 2100,
            user_boxes: 2,
            user_count: 5,
            user_bytes: 4000,
            count: 6,
            bytes: 9000,
        };
        let mut post = Post::new(bounds);
        for _ in 0..3 {
            send(&mut post, ANN, "a", 0).unwrap();
        }
        assert_eq!(send(&mut post, ANN, "a", 0), Err(Full::Mailbox));
        assert_eq!(send(&mut post, ANN, "b", 2000), Err(Full::Mailbox));
        let id = send(&mut post, ANN, "b", 0).unwrap();
        assert_eq!(send(&mut post, ANN, "c", 0), Err(Full::User), "a third mailbox");
        send(&mut post, ANN, "b", 0).unwrap();
        assert_eq!(send(&mut post, ANN, "b", 0), Err(Full::User), "a sixth message");
        send(&mut post, BOB, "a", 0).unwrap();
        assert_eq!(send(&mut post, BOB, "a", 0), Err(Full::All));
        post.done(ANN, "b", id);
        send(&mut post, BOB, "a", 0).unwrap();
        post.empty(ANN, "a");
        post.empty(ANN, "b");
        post.empty(BOB, "a");
        assert_eq!(post.total(), (0, 0));
        for bytes in [1000, 500] {
            send(&mut post, ANN, "a", bytes).unwrap();
            send(&mut post, ANN, "b", bytes).unwrap_or_default();
        }
        assert_eq!(
            send(&mut post, ANN, "a", 0),
            Err(Full::Mailbox),
            "bytes, each message with what it costs beside its body"
        );
    }

    #[test]
    fn numbers_grow_whatever_the_clock_does() {
        let mut post = Post::default();
        let first = post.number(1000);
        assert_eq!(first, 1_000_000);
        assert_eq!(post.number(10), first + 1);
        post.put(ANN, "a", Letter { id: first + 50, from: String::new(), name: String::new(), at_ms: 0, bytes: 0 });
        assert_eq!(post.number(10), first + 51, "of those that were stored none is used again");
    }
}

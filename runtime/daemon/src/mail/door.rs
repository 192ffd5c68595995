//! The sockets in sandboxes. Input: connections of programs that nobody trusts. Output: messages into and out of the mailboxes that the sandbox's policy names.
//!
//! Which socket a connection came in at is which sandbox it is; what it says of itself counts for nothing. Everything that it can make grow has a bound: connections, bytes of a
//! line, the time for one, requests in a second, messages that it holds, the time in which it must read an answer.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener as Listener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apex_api::Peer;
use apex_core::access::Operation;
use apex_core::audit::Outcome;
use apex_core::control::State;
use apex_core::mail::{self, Control, Full, Lost, Rate, Rule, Schema, Who};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::line::{self, LINE_BYTES_MAX, Refusal, Request, refusal};
use super::{Failed, Message, Sending, WAIT_MAX, host, peer};
use crate::ask::Asked;
use crate::clock::now_ms;
use crate::metrics;
use crate::record::Record;
use crate::registry::Daemon;
use crate::sandbox::Sandbox;
use crate::say;

/// Connections of one sandbox, and of all.
const CONNECTIONS_MAX: usize = 8;
const ALL_CONNECTIONS_MAX: usize = 1024;
/// How long a line may take from its first byte to its last.
const LINE_WITHIN: Duration = Duration::from_secs(10);
/// How long an answer may wait for its reader.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Requests of one sandbox in a second; who asks more waits. What costs more counts for more: each 4 KiB, each thousand steps of a schema, a connection.
const REQUESTS_A_SECOND: u32 = 2000;
const BYTES_OF_ONE: u64 = 4096;
const STEPS_OF_ONE: u64 = 1000;
const COST_OF_CONNECTION: u64 = 4;
const REQUEST_PAUSE: Duration = Duration::from_millis(10);
/// Messages that one connection may hold without acknowledging them.
const HELD_MAX: usize = 64;
/// Between two looks whether somebody who waits is still there.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Pause when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all sockets have in common.
pub struct Doors {
    seats: Arc<Semaphore>,
    numbers: AtomicU64,
}

impl Default for Doors {
    fn default() -> Doors {
        Doors { seats: Arc::new(Semaphore::new(ALL_CONNECTIONS_MAX)), numbers: AtomicU64::new(1) }
    }
}

/// One sandbox's mailboxes.
struct Place {
    daemon: Arc<Daemon>,
    sandbox: Arc<Sandbox>,
    boxes: HashMap<String, Mailbox>,
    requests: Mutex<Rate>,
    seats: Arc<Semaphore>,
}

struct Mailbox {
    rule: Rule,
    schema: Option<Schema>,
    rate: Mutex<Rate>,
}

/// Serves a sandbox from its start to its end. The socket is there already, where it is a new sandbox: its command may connect as soon as it runs.
pub fn open(daemon: &Arc<Daemon>, sandbox: &Arc<Sandbox>) {
    let (daemon, sandbox) = (Arc::clone(daemon), Arc::clone(sandbox));
    tokio::spawn(async move {
        if let Err(error) = live(&daemon, &sandbox).await {
            say::about(&sandbox.id, "mail", format_args!("its mailboxes: {error:#}"));
        }
        // Whoever is still inside finds nobody there.
        if let Err(error) = sandbox.dir.remove_mail() {
            say::about(&sandbox.id, "mail", format_args!("removing its socket: {error}"));
        }
    });
}

async fn live(daemon: &Arc<Daemon>, sandbox: &Arc<Sandbox>) -> anyhow::Result<()> {
    let listener = match sandbox.take_mail() {
        Some(listener) => listener,
        None => sandbox.dir.listen_for_mail()?,
    };
    let record = sandbox.until(|record| record.facts.state != State::Creating).await;
    if record.is_over() || record.mailboxes.is_empty() {
        return Ok(());
    }
    let place = Place::new(daemon, sandbox, &record.mailboxes).map_err(anyhow::Error::msg)?;
    serve(&Arc::new(place), listener).await
}

impl Place {
    /// The rules came from a process of the sandbox's user, and are checked anew.
    fn new(daemon: &Arc<Daemon>, sandbox: &Arc<Sandbox>, rules: &[Rule]) -> Result<Place, String> {
        mail::check(rules)?;
        let mut boxes = HashMap::new();
        for rule in rules {
            let schema = rule.schema.as_deref().map(Schema::read).transpose()?;
            let rate = Mutex::new(Rate::new(rule.rate));
            boxes.insert(rule.name.clone(), Mailbox { rule: rule.clone(), schema, rate });
        }
        Ok(Place {
            daemon: Arc::clone(daemon),
            sandbox: Arc::clone(sandbox),
            boxes,
            requests: Mutex::new(Rate::new(REQUESTS_A_SECOND)),
            seats: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        })
    }
}

impl Place {
    /// Who asks too much waits.
    async fn pace(&self) {
        while !locked(&self.requests).take(now_ms()) {
            tokio::time::sleep(REQUEST_PAUSE).await;
        }
    }

    fn owe(&self, count: u64) {
        locked(&self.requests).owe(count);
    }
}

async fn serve(place: &Arc<Place>, listener: Listener) -> anyhow::Result<()> {
    let listener = UnixListener::from_std(listener)?;
    let mut over = std::pin::pin!(place.sandbox.until(Record::is_over));
    // Dropped at the end, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            _ = &mut over => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        place.pace().await;
        place.owe(COST_OF_CONNECTION);
        let seats =
            (Arc::clone(&place.seats).try_acquire_owned(), Arc::clone(&place.daemon.doors.seats).try_acquire_owned());
        let place = Arc::clone(place);
        connections.spawn(async move {
            let outcome = match seats {
                (Ok(_one), Ok(_of_all)) => converse(&place, stream).await,
                _ => {
                    let words = format!(
                        "{CONNECTIONS_MAX} connections of this sandbox, or those that the host has, are in use"
                    );
                    turn_away(stream, &refusal("busy", words)).await
                }
            };
            // How a connection ends is the sandbox's business: nobody is left to tell.
            let _ = outcome;
        });
    }
}

async fn turn_away(stream: UnixStream, refusal: &Refusal) -> std::io::Result<()> {
    let (_, mut to) = stream.into_split();
    answer(&mut to, &refusal.told()).await
}

/// To what a mailbox is held.
#[derive(Clone, Copy)]
struct Held {
    is_monitored: bool,
    is_filtered: bool,
}

/// One connection, and what it holds.
struct Talk<'a> {
    place: &'a Place,
    pid: u32,
    number: u64,
    held: Vec<(String, u64)>,
}

impl Drop for Talk<'_> {
    /// Also when the task is dropped in the middle.
    fn drop(&mut self) {
        self.place.daemon.mail.let_go(self.place.sandbox.uid, &self.held, Who::Connection(self.number));
    }
}

async fn converse(place: &Place, stream: UnixStream) -> std::io::Result<()> {
    let record = place.sandbox.record();
    let Some(pid) = peer::inside(&stream, record.pid) else {
        place.daemon.metrics.count(&metrics::MAIL, &["refused-outside"]);
        return turn_away(stream, &refusal("denied", "this socket is for the programs of its sandbox alone")).await;
    };
    let number = place.daemon.doors.numbers.fetch_add(1, Ordering::Relaxed);
    let mut talk = Talk { place, pid, number, held: Vec::new() };
    let (from, mut to) = stream.into_split();
    let mut from = BufReader::new(from);
    loop {
        let said = match next_line(&mut from).await? {
            Said::Nothing => return Ok(()),
            Said::Line(line) => {
                place.pace().await;
                place.owe(line.len() as u64 / BYTES_OF_ONE);
                talk.follow(&line, to.as_ref()).await
            }
            Said::TooLong => {
                let words = format!(
                    "a line has more than {LINE_BYTES_MAX} bytes, or took more than {} s",
                    LINE_WITHIN.as_secs()
                );
                return answer(&mut to, &refusal("too-long", words).told()).await;
            }
        };
        answer(&mut to, &said).await?;
    }
}

enum Said {
    Line(Vec<u8>),
    TooLong,
    Nothing,
}

/// A line without its end; what comes behind the last one is one as well. Room is taken as bytes come.
async fn next_line(from: &mut BufReader<OwnedReadHalf>) -> std::io::Result<Said> {
    if from.fill_buf().await?.is_empty() {
        return Ok(Said::Nothing);
    }
    let read = async {
        let mut line = Vec::new();
        loop {
            let bytes = from.fill_buf().await?;
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let count = end.unwrap_or(bytes.len());
            if line.len() + count > LINE_BYTES_MAX {
                return Ok(Said::TooLong);
            }
            line.extend_from_slice(&bytes[..count]);
            let is_over = end.is_some() || bytes.is_empty();
            from.consume(count + usize::from(end.is_some()));
            if is_over {
                return Ok(Said::Line(line));
            }
        }
    };
    timeout(LINE_WITHIN, read).await.unwrap_or(Ok(Said::TooLong))
}

async fn answer(to: &mut OwnedWriteHalf, said: &Value) -> std::io::Result<()> {
    let line = format!("{said}\n");
    timeout(ANSWER_WITHIN, to.write_all(line.as_bytes())).await?
}

/// Nobody reads there any more: both ends are closed.
fn is_gone(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|_| fds[0].revents().is_some_and(|events| events.intersects(gone)))
}

impl Talk<'_> {
    async fn follow(&mut self, line: &[u8], stream: &UnixStream) -> Value {
        let told = match line::read(line) {
            Ok(Request::Send { mailbox, body }) => self.send(&mailbox, &body).await.map(|id| json!({"id": id})),
            Ok(Request::Receive { mailbox, wait }) => self.receive(&mailbox, wait, stream).await,
            Ok(Request::Acknowledge { id }) => self.acknowledge(id),
            Err(refusal) => Err(refusal),
        };
        told.unwrap_or_else(|refusal| {
            self.place.daemon.metrics.count(&metrics::MAIL, &[&format!("refused-{}", refusal.code)]);
            refusal.told()
        })
    }

    /// What the policy says of a mailbox, for the way that is asked for.
    fn mailbox(&self, name: &str, may: fn(&Rule) -> bool, operation: Operation) -> Result<&Mailbox, Refusal> {
        if let Some(found) = self.place.boxes.get(name).filter(|mailbox| may(&mailbox.rule)) {
            return Ok(found);
        }
        let shown: String = name.chars().take(mail::NAME_BYTES_MAX).collect();
        let verb = if operation == Operation::MailSend { "send to" } else { "receive from" };
        let words = format!("the policy of this sandbox does not let it {verb} mailbox {shown:?}");
        self.write_down(operation, Outcome::Refused, &words, json!({"mailbox": shown}))?;
        Err(refusal("denied", words))
    }

    /// A sandbox that was turned to a stricter mode is held to that one; what was to be written down still is.
    fn control(&self, mailbox: &Mailbox) -> Held {
        let own = mailbox.rule.control;
        let control = own.max(Control::of(self.place.sandbox.record().facts.mode));
        let is_monitored = [own, control].contains(&Control::Monitored);
        Held { is_monitored, is_filtered: control == Control::Filtered }
    }

    async fn send(&self, name: &str, body: &Value) -> Result<u64, Refusal> {
        let mailbox = self.mailbox(name, |rule| rule.send, Operation::MailSend)?;
        let control = self.control(mailbox);
        let text = body.to_string();
        if let Err(refusal) = self.judge(mailbox, body, &text) {
            if control.is_filtered {
                self.write_down(Operation::MailSend, Outcome::Refused, &refusal.words, host::about(name, &text))?;
            }
            return Err(refusal);
        }
        let (daemon, sandbox) = (&self.place.daemon, &self.place.sandbox);
        let record = sandbox.record();
        if control.is_monitored {
            daemon.mail.room(sandbox.uid, name, text.len() as u64).map_err(Failed::from)?;
            // Before it is to be had: nothing passes unwritten.
            self.write_down(
                Operation::MailSend,
                Outcome::Allowed,
                "the mailbox is monitored",
                host::about(name, &text),
            )?;
        }
        let sending = Sending { uid: sandbox.uid, mailbox: name, from: &sandbox.id, name: &record.name, body: &text };
        let sent = daemon.mail.send(&sending);
        if let (Err(failed), true) = (&sent, control.is_monitored) {
            self.write_down(Operation::MailSend, Outcome::Failed, &failed.to_string(), json!({"mailbox": name}))?;
        }
        let id = sent?;
        daemon.metrics.count(&metrics::MAIL, &["sent"]);
        Ok(id)
    }

    /// Size, rate and schema, in the order of what they cost.
    fn judge(&self, mailbox: &Mailbox, body: &Value, text: &str) -> Result<(), Refusal> {
        let rule = &mailbox.rule;
        if text.len() as u64 > rule.max_bytes {
            let words = format!("the message has {} bytes; mailbox {} takes {}", text.len(), rule.name, rule.max_bytes);
            return Err(refusal("too-large", words));
        }
        if !locked(&mailbox.rate).take(now_ms()) {
            let words = format!("mailbox {} takes {} messages a second; send it later", rule.name, rule.rate);
            return Err(refusal("too-fast", words));
        }
        let Some(schema) = &mailbox.schema else { return Ok(()) };
        let (outcome, steps) = schema.judge(body);
        self.place.owe(steps / STEPS_OF_ONE);
        outcome.map_err(|mismatch| refusal("schema", format!("{mismatch} of the schema of mailbox {}", rule.name)))
    }

    async fn receive(&mut self, name: &str, wait: Duration, stream: &UnixStream) -> Result<Value, Refusal> {
        let control = self.control(self.mailbox(name, |rule| rule.receive, Operation::MailReceive)?);
        if self.held.len() >= HELD_MAX {
            let words = format!("{HELD_MAX} messages of this connection are not acknowledged; acknowledge them first");
            return Err(refusal("not-acknowledged", words));
        }
        let Some(message) = self.wait(name, wait, stream).await? else { return Ok(json!({"none": true})) };
        let id = message.given.letter.id;
        self.held.push((name.to_owned(), id));
        self.place.owe(message.body.len() as u64 / BYTES_OF_ONE);
        if control.is_monitored {
            let told = host::about(name, &message.body);
            self.write_down(Operation::MailReceive, Outcome::Allowed, "the mailbox is monitored", told)?;
        }
        host::count_given(&self.place.daemon, &message);
        line::message(&message).map_err(|error| refusal("internal", error.to_string()))
    }

    /// In pieces, so that one who goes away while it waits is noticed.
    async fn wait(&self, name: &str, wait: Duration, stream: &UnixStream) -> Result<Option<Message>, Refusal> {
        let (office, uid, who) = (&self.place.daemon.mail, self.place.sandbox.uid, Who::Connection(self.number));
        let mut left = wait.min(WAIT_MAX);
        loop {
            let piece = left.min(LOOK_EVERY);
            let message = office.receive(uid, name, who, piece).await?;
            left = left.saturating_sub(piece);
            if message.is_some() || left.is_zero() || is_gone(stream) {
                return Ok(message);
            }
        }
    }

    fn acknowledge(&mut self, id: u64) -> Result<Value, Refusal> {
        let daemon = &self.place.daemon;
        let done = daemon.mail.acknowledge(self.place.sandbox.uid, id, Who::Connection(self.number));
        // Who lost it does not hold it either.
        if !matches!(done, Err(Failed::Disk(_))) {
            self.held.retain(|(_, held)| *held != id);
        }
        done?;
        daemon.metrics.count(&metrics::MAIL, &["acknowledged"]);
        Ok(json!({"acknowledged": id}))
    }

    fn write_down(&self, operation: Operation, outcome: Outcome, words: &str, after: Value) -> Result<(), Refusal> {
        let record = self.place.sandbox.record();
        let peer = Peer { uid: record.uid, gid: 0, pid: self.pid };
        let asked = Asked { operation, peer, roles: Default::default(), reason: String::new() };
        let written = self.place.daemon.write_down(&asked, &record, outcome, words, json!(null), after);
        written.map_err(|error| refusal("unavailable", error.words))
    }
}

fn locked(rate: &Mutex<Rate>) -> std::sync::MutexGuard<'_, Rate> {
    rate.lock().unwrap_or_else(PoisonError::into_inner)
}

impl From<Failed> for Refusal {
    fn from(failed: Failed) -> Refusal {
        let code = match &failed {
            Failed::Full(Full::Mailbox | Full::User | Full::All) => "full",
            Failed::Lost(Lost) => "not-held",
            Failed::Disk(_) => "unavailable",
        };
        refusal(code, failed.to_string())
    }
}

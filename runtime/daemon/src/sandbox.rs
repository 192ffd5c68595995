//! One sandbox as the daemon lives with it: record, keeper, logs.

use std::collections::HashMap;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use apex_api::v1::CreateRequest;
use apex_api::{Error, Kind};
use apex_core::control::{Limits, State};
use apex_core::keep::{Ended, FromKeeper, PACKET_BYTES_MAX, Standing, ToKeeper};
use apex_core::policy::Network;
use tokio::sync::{mpsc, oneshot, watch};

use crate::budget::Reservation;
use crate::clock::now_ms;
use crate::keeper::{Keeper, NotDone, SpawnedEnd, Told};
use crate::log::Log;
use crate::place::Dir;
use crate::record::Record;
use crate::registry::Daemon;
use crate::say;
use crate::store::Store;
use crate::streams;
use crate::terminal::{Sink, Source, Terminal};

/// How long the warden's word about a keeper's end is waited for.
const CODE_WITHIN: Duration = Duration::from_secs(2);
/// Bytes of how a keeper ended: what fits a packet to us, twice.
const RESULT_BYTES_MAX: u64 = 2 * PACKET_BYTES_MAX as u64;
/// Connections to one keeper that may break.
const CONNECTIONS_MAX: u32 = 16;
/// Exit code of what Apex failed at.
const FAILED: i32 = 125;
/// What a keeper holds for the daemon, in this order.
pub const STDIN: usize = 0;

/// Commands that run in a sandbox beside its own.
const SPAWNED_MAX: usize = 16;

/// Whom to tell of one more command.
struct Slot {
    ended: oneshot::Sender<SpawnedEnd>,
    terminal: Option<oneshot::Sender<OwnedFd>>,
}

/// One more command, for whoever asked for it.
pub struct Spawned {
    pub number: i32,
    pub ended: oneshot::Receiver<SpawnedEnd>,
    pub terminal: oneshot::Receiver<OwnedFd>,
}

/// One sandbox.
pub struct Sandbox {
    pub id: String,
    /// Whose it is.
    pub uid: u32,
    pub dir: Dir,
    record: Mutex<Record>,
    storing: Mutex<()>,
    changed: watch::Sender<u64>,
    keeper: Mutex<Option<Arc<Keeper>>>,
    /// What it wrote.
    pub out: Arc<Log>,
    pub err: Arc<Log>,
    /// Where its standard input is written to, until that is closed.
    pub stdin: tokio::sync::Mutex<Option<Sink>>,
    /// Held by whoever changes it: one transition at a time.
    pub turn: tokio::sync::Mutex<()>,
    /// Whether its keeper is gone, and with it all that the sandbox was.
    gone: watch::Sender<bool>,
    /// Exit code of its keeper.
    code: watch::Sender<Option<i32>>,
    /// Whether it is in the store: those of a pool are not, until they are used.
    is_kept: AtomicBool,
    has_terminal: AtomicBool,
    spawned: Mutex<HashMap<i32, Slot>>,
    numbers: AtomicI32,
    standing: OnceLock<Standing>,
    /// What it is made from, until the store has it.
    made_from: Mutex<Option<String>>,
    /// Its part of the budget, as long as it lives.
    room: Mutex<Option<Reservation>>,
    /// Where its messages come in, until somebody serves them.
    mail: Mutex<Option<UnixListener>>,
}

impl Sandbox {
    /// With its files in this directory.
    pub fn new(record: Record, dir: Dir) -> Arc<Sandbox> {
        Arc::new(Sandbox {
            id: record.id.clone(),
            uid: record.uid,
            out: Arc::new(Log::open(dir.file("stdout.log"))),
            err: Arc::new(Log::open(dir.file("stderr.log"))),
            dir,
            record: Mutex::new(record),
            storing: Mutex::default(),
            changed: watch::Sender::new(0),
            keeper: Mutex::default(),
            stdin: tokio::sync::Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            gone: watch::Sender::new(false),
            code: watch::Sender::new(None),
            is_kept: AtomicBool::new(true),
            has_terminal: AtomicBool::new(false),
            spawned: Mutex::default(),
            numbers: AtomicI32::new(1),
            standing: OnceLock::new(),
            made_from: Mutex::default(),
            room: Mutex::default(),
            mail: Mutex::default(),
        })
    }

    /// One of a pool, of which the store knows nothing yet.
    pub fn unkept(record: Record, daemon: &Daemon) -> Arc<Sandbox> {
        let dir = daemon.place.sandbox(&record.id);
        let sandbox = Sandbox::new(record, dir);
        sandbox.is_kept.store(false, Ordering::Relaxed);
        sandbox
    }

    /// Gives it the record that it has from now on.
    pub fn adopt(&self, record: Record) {
        *self.locked() = record;
    }

    /// Says what it is made from, before it is first stored: a successor is made from the same.
    pub fn is_made_from(&self, request: &CreateRequest) {
        let text = serde_json::to_string(request).expect("plain values are representable");
        *self.made_from.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }

    /// Stores it, from now on.
    pub fn keep(&self, store: &Store) -> anyhow::Result<()> {
        self.is_kept.store(true, Ordering::Relaxed);
        self.update(store, |_| ())
    }

    /// Whether the store knows it.
    pub fn is_kept(&self) -> bool {
        self.is_kept.load(Ordering::Relaxed)
    }

    /// What its keeper said of it when it stood.
    pub fn standing(&self) -> Option<Standing> {
        self.standing.get().cloned()
    }

    fn locked(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of the record.
    pub fn record(&self) -> Record {
        self.locked().clone()
    }

    /// Changes the record, which the store learns with the next update.
    pub fn change(&self, change: impl FnOnce(&mut Record)) {
        change(&mut self.locked());
        self.changed.send_modify(|count| *count += 1);
    }

    /// Changes the record, here and in the store. What the store does not take is in force all the same, and said.
    pub fn update(&self, store: &Store, change: impl FnOnce(&mut Record)) -> anyhow::Result<()> {
        // So that they are stored in this order; whoever only reads does not wait for the store.
        let _storing = self.storing.lock().unwrap_or_else(PoisonError::into_inner);
        let record = {
            let mut record = self.locked();
            change(&mut record);
            record.clone()
        };
        self.changed.send_modify(|count| *count += 1);
        if !self.is_kept() {
            return Ok(());
        }
        let mut made_from = self.made_from.lock().unwrap_or_else(PoisonError::into_inner);
        store.put(&record, made_from.as_deref())?;
        *made_from = None;
        Ok(())
    }

    /// Takes it out of the store, for good.
    pub fn forget(&self, store: &Store) -> anyhow::Result<()> {
        // Whoever still lives with it must not bring its row back.
        let _storing = self.storing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_kept() {
            store.forget(&self.id)?;
            self.is_kept.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    fn note(&self, store: &Store, change: impl FnOnce(&mut Record)) {
        if let Err(error) = self.update(store, change) {
            say::about(&self.id, "store", format_args!("{error:#}"));
        }
    }

    /// It has room in the budget, until it is over.
    pub fn has_room(&self, room: Reservation) {
        *self.room.lock().unwrap_or_else(PoisonError::into_inner) = Some(room);
    }

    /// Holds room for these limits from now on; less always works.
    pub fn room_for(&self, limits: Limits) -> Result<(), String> {
        let room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = room.as_ref().map(|room| room.change(limits));
        changed.unwrap_or(Ok(())).map_err(|refusal| refusal.to_string())
    }

    /// Ends its waiting for room; `false` when it does not wait.
    pub fn give_up(&self, store: &Store) -> bool {
        // Held meanwhile: it does not get room in between.
        let room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = room.is_none() && self.record().facts.state == State::Creating;
        if waits {
            self.note(store, |record| {
                record.facts.state = State::Failed;
                record.error = "it was ended while it waited for room".to_owned();
                record.ended_ms = now_ms();
            });
        }
        waits
    }

    /// Listens for its messages, before its command could send any.
    pub fn listen_for_mail(&self) -> anyhow::Result<()> {
        *self.mail.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.dir.listen_for_mail()?);
        Ok(())
    }

    /// Where its messages come in, once.
    pub fn take_mail(&self) -> Option<UnixListener> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn give_back(&self) {
        *self.room.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Tells of changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Waits until the record is so.
    pub async fn until(&self, is_so: impl Fn(&Record) -> bool) -> Record {
        let mut changes = self.changes();
        loop {
            changes.borrow_and_update();
            let record = self.record();
            if is_so(&record) {
                return record;
            }
            // The sender lives as long as this value.
            let _ = changes.changed().await;
        }
    }

    /// Waits until nothing is left of it, for a sandbox that is over and lived with.
    pub async fn until_gone(&self) {
        let has_keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if has_keeper {
            // The sender lives as long as this value.
            let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
        }
    }

    /// The warden saw the keeper end.
    pub fn keeper_ended(&self, code: i32) {
        self.code.send_replace(Some(code));
    }

    /// Asks the keeper.
    pub async fn ask(&self, said: &ToKeeper) -> Result<FromKeeper, String> {
        self.ask_with(said, &[]).await
    }

    /// The same with descriptors.
    pub async fn ask_with(&self, said: &ToKeeper, fds: &[BorrowedFd<'_>]) -> Result<FromKeeper, String> {
        Ok(self.ask_surely(said, fds).await?)
    }

    /// The same for what must not be done twice: the error tells whether it may have been done.
    pub async fn ask_surely(&self, said: &ToKeeper, fds: &[BorrowedFd<'_>]) -> Result<FromKeeper, NotDone> {
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let refused = |words: String| NotDone::Refused(words);
        let keeper = keeper.ok_or_else(|| refused("its keeper is not connected".to_owned()))?;
        // To its end, also when whoever asked goes away in the middle: answers are told apart by their order alone.
        let said = said.clone();
        let fds: Result<Vec<OwnedFd>, _> = fds.iter().map(BorrowedFd::try_clone_to_owned).collect();
        let fds = fds.map_err(|error| refused(error.to_string()))?;
        let answer = tokio::spawn(async move {
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            keeper.ask_with(&said, &fds).await
        });
        let answer = answer.await.map_err(|error| NotDone::Unheard(format!("asking its keeper: {error}")))?;
        answer.map(|answer| answer.said)
    }

    /// It was not started.
    pub fn not_spawned(&self, number: i32) {
        self.slots().remove(&number);
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<i32, Slot>> {
        self.spawned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for one more command, and what will be told of it.
    pub fn spawned(&self) -> Result<Spawned, Error> {
        let mut slots = self.slots();
        if slots.len() >= SPAWNED_MAX {
            let words =
                format!("{SPAWNED_MAX} commands run in {} beside its own already; wait for one to end", self.id);
            return Err(Error::new(Kind::Exhausted, words));
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let ((ended, its_end), (terminal, its_terminal)) = (oneshot::channel(), oneshot::channel());
        slots.insert(number, Slot { ended, terminal: Some(terminal) });
        Ok(Spawned { number, ended: its_end, terminal: its_terminal })
    }

    /// Connects to the keeper, and lives with it from now on.
    pub fn live(self: &Arc<Self>, store: &Arc<Store>) -> anyhow::Result<Arc<Keeper>> {
        self.live_over(self.dir.connect()?, store)
    }

    /// The same over a connection that was made before.
    pub fn live_over(self: &Arc<Self>, connection: OwnedFd, store: &Arc<Store>) -> anyhow::Result<Arc<Keeper>> {
        let (keeper, told) = Keeper::over(connection)?;
        *self.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&keeper));
        tokio::spawn(Arc::clone(self).listen(Arc::clone(store), told));
        Ok(keeper)
    }

    /// Takes the command's streams over from a daemon that is gone. Standard input is closed: whoever wrote there is gone as well.
    pub async fn take_streams(&self, keeper: &Keeper) -> Result<(), String> {
        let answer = keeper.ask(&ToKeeper::Streams).await?;
        let FromKeeper::Streams { open } = answer.said else { return Err("its keeper gave no streams".to_owned()) };
        let mut fds = answer.fds.into_iter();
        let ends: Vec<Option<OwnedFd>> =
            open.into_iter().map(|is_open| if is_open { fds.next() } else { None }).collect();
        let mut ends = ends.into_iter();
        let (stdin, out, err) = (ends.next().flatten(), ends.next().flatten(), ends.next().flatten());
        if let Some(master) = ends.next().flatten() {
            self.take_terminal(master).await.map_err(|error| error.to_string())?;
            return match err {
                Some(err) => self.pump(err, &self.err, "standard error").map_err(|error| error.to_string()),
                None => {
                    self.err.close();
                    Ok(())
                }
            };
        }
        if stdin.is_some() {
            drop(stdin);
            keeper.ask(&ToKeeper::LetGo { index: STDIN }).await?;
        }
        for (end, log, what) in [(out, &self.out, "standard output"), (err, &self.err, "standard error")] {
            match end {
                Some(end) => self.pump(end, log, what).map_err(|error| error.to_string())?,
                None => log.close(),
            }
        }
        Ok(())
    }

    /// The command's terminal takes the place of its streams.
    async fn take_terminal(&self, master: OwnedFd) -> std::io::Result<()> {
        let terminal = Terminal::new(master)?;
        self.has_terminal.store(true, Ordering::Relaxed);
        *self.stdin.lock().await = Some(Sink::Terminal(Arc::clone(&terminal)));
        let what = format!("the terminal of sandbox {}", self.id);
        streams::pump(Source::Terminal(terminal), Arc::clone(&self.out), what);
        Ok(())
    }

    /// Keeps what comes out of a pipe.
    pub fn pump(&self, end: OwnedFd, log: &Arc<Log>, what: &str) -> std::io::Result<()> {
        streams::pump(Source::pipe(end)?, Arc::clone(log), format!("the {what} of sandbox {}", self.id));
        Ok(())
    }

    /// Closes standard input.
    pub async fn close_stdin(&self) {
        if self.end_stdin().await {
            // A keeper that is gone holds nothing.
            let _ = self.ask(&ToKeeper::LetGo { index: STDIN }).await;
        }
    }

    /// Ends what is written to it, where there is such a thing; the keeper still holds it open.
    pub async fn end_stdin(&self) -> bool {
        let sink = self.stdin.lock().await.take();
        match sink {
            Some(sink) => sink.end().await,
            None => return false,
        }
        true
    }

    async fn listen(self: Arc<Self>, store: Arc<Store>, mut told: mpsc::Receiver<Told>) {
        let mut lost = 0;
        loop {
            match told.recv().await {
                Some(Told::Standing(standing)) => {
                    let _ = self.standing.set(standing.clone());
                    self.stands(&store, &standing).await;
                }
                Some(Told::Terminal { spawned: None, master }) => {
                    if let Err(error) = self.take_terminal(master).await {
                        say::about(&self.id, "terminal", format_args!("its terminal: {error}"));
                    }
                }
                Some(Told::Terminal { spawned: Some(number), master }) => {
                    let to = self.slots().get_mut(&number).and_then(|slot| slot.terminal.take());
                    let _ = to.map(|to| to.send(master));
                }
                Some(Told::SpawnedEnded { number, ended }) => {
                    let slot = self.slots().remove(&number);
                    let _ = slot.map(|slot| slot.ended.send(ended));
                }
                // Its keeper may still be taking it down.
                Some(Told::Ended(ended)) => self.ended(&store, ended),
                Some(Told::Gone) | None if self.record().is_over() => {
                    *self.keeper.lock().unwrap_or_else(PoisonError::into_inner) = None;
                    self.gone.send_replace(true);
                    return;
                }
                Some(Told::Gone) | None => match self.found_again(&mut lost) {
                    Some(again) => told = again,
                    None => {
                        self.vanished(&store).await;
                        self.gone.send_replace(true);
                        return;
                    }
                },
            }
        }
    }

    /// What it stands with may be more than its request told: a policy may build on files that only the keeper reads. Without a cgroup it is held to nothing, and
    /// what it asked for counts on.
    async fn stands(&self, store: &Store, standing: &Standing) {
        if self.record().facts.state == State::Creating
            && standing.has_limits
            && let Err(words) = self.room_for(standing.limits)
        {
            self.note(store, |record| record.error = words);
            // Its end is told by the keeper; one that does not answer is gone.
            let _ = self.ask(&ToKeeper::Kill).await;
            return;
        }
        self.note(store, |record| stands(record, standing));
    }

    /// A connection that broke may have left the keeper alive: while it listens, the sandbox is there.
    fn found_again(&self, lost: &mut u32) -> Option<mpsc::Receiver<Told>> {
        *lost += 1;
        if *lost > CONNECTIONS_MAX {
            return None;
        }
        let (keeper, told) = Keeper::connect(&self.dir).ok()?;
        *self.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeper);
        Some(told)
    }

    /// The keeper said how it ended.
    fn ended(&self, store: &Store, ended: Ended) {
        self.note(store, |record| {
            // What was ended for want of room has its words already, and never ran for whoever asked.
            let had_no_room = record.facts.state == State::Creating && !record.error.is_empty();
            let has_failed = ended.how == "failed" || had_no_room;
            record.facts.state = if has_failed { State::Failed } else { State::Ended };
            record.facts.frozen = false;
            record.exit_code = Some(if had_no_room { FAILED } else { ended.code.into() });
            record.ending = ended.how;
            if !had_no_room {
                record.error = ended.words.unwrap_or_default();
            }
            record.ended_ms = ended.time_ns / 1_000_000;
        });
        self.slots().clear();
        self.give_back();
        if self.record().tty && !self.has_terminal.load(Ordering::Relaxed) {
            self.out.close();
        }
    }

    /// The keeper is gone: it may have written how it ended, or left it to its exit code.
    pub async fn vanished(&self, store: &Store) {
        if let Some(ended) = self.result() {
            return self.ended(store, ended);
        }
        let mut code = self.code.subscribe();
        let code = tokio::time::timeout(CODE_WITHIN, code.wait_for(Option::is_some)).await;
        let code = code.ok().and_then(|code| code.ok().and_then(|code| *code));
        if let Some(ended) = self.result() {
            return self.ended(store, ended);
        }
        self.note(store, |record| {
            let has_begun = record.facts.state != State::Creating;
            record.facts.state = if has_begun { State::Lost } else { State::Failed };
            record.facts.frozen = false;
            record.exit_code = code;
            record.ended_ms = now_ms();
            record.error = match code {
                Some(code) if has_begun => format!("its keeper was ended (code {code}), and the sandbox with it"),
                Some(code) => {
                    format!("apex-run ended with code {code} before the command ran; its words are in the log")
                }
                None if has_begun => "its keeper is gone, and the sandbox with it".to_owned(),
                None => "it was never started: apexd ended in the middle".to_owned(),
            };
        });
        self.out.close();
        self.err.close();
        self.slots().clear();
        self.give_back();
        *self.keeper.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn result(&self) -> Option<Ended> {
        let file = std::fs::File::open(self.dir.file("result.json")).ok()?;
        // The keeper holds it open to write to, and may be its user's puppet: what is larger than any result is none.
        let mut text = Vec::new();
        file.take(RESULT_BYTES_MAX).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

/// What a keeper tells of a sandbox is taken once: later the record knows what was changed since.
pub fn stands(record: &mut Record, standing: &Standing) {
    record.pid = standing.init;
    if record.facts.state != State::Creating {
        return;
    }
    // Not the mode: it was judged, and the keeper was told it. What another user's process says of itself widens nothing.
    let facts = &mut record.facts;
    facts.network_born = if standing.has_network { Network::Host } else { Network::None };
    facts.has_network_dial = standing.has_network_dial;
    facts.has_reported = standing.has_reported;
    facts.has_limits = standing.has_limits;
    (facts.limits_born, facts.limits) = (standing.limits, standing.limits);
    facts.state = State::Running;
    record.mailboxes = standing.mailboxes.clone();
    record.started_ms = now_ms();
}

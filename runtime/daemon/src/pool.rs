//! Sandboxes that are built ahead, up to the point of exec, and used once each.
//!
//! A shelf holds those that differ in nothing but the arguments of their program: same user, same options, same program, same working directory. The first
//! request for one makes it and gets a sandbox of its own, as without a pool; later ones take from it. It grows with what is asked of it, within bounds for
//! one shelf and for all, and is given up when nobody asks any more. A sandbox on a shelf has no record: it belongs to this process and ends with it.
//! One that would be made otherwise now (another policy file, another file bound) says so when it is to start, and its whole shelf is drained.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use apex_api::v1::{self, CreateRequest};
use apex_api::{Error, Kind, Peer};
use apex_core::budget::Claim;
use apex_core::control::State;
use apex_core::keep::{Standing, ToKeeper};
use apex_core::policy::Mode;
use tokio::sync::Notify;

use crate::budget;
use crate::clock::now_ms;
use crate::keeper::NotDone;
use crate::record::Record;
use crate::registry::Daemon;
use crate::sandbox::{self, STDIN, Sandbox};
use crate::say::{self, Level};
use crate::start::{self, Input};
use crate::terminal;

/// What a shelf begins with, and what one may come to by demand.
const WANTED_FIRST: usize = 2;
const WANTED_MAX: usize = 32;
/// Shelves.
const SHELVES_MAX: usize = 64;
/// Sandboxes that are built at once.
const BUILDERS: usize = 2;
/// A shelf from which nothing was taken for so long wants half as many; one that wants none is given up.
const IDLE: Duration = Duration::from_secs(60);
/// Between two looks for idle shelves.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long the keeper of one that could not be built may take to hear that it is to end.
const KILL_WITHIN: Duration = Duration::from_secs(2);
/// A command that was just started has the processors to itself, until it ends or for so long: what takes its sandbox's place is built afterwards.
const HEAD_START: Duration = Duration::from_millis(10);
/// After a sandbox could not be built.
const BACK_OFF: Duration = Duration::from_secs(5);

/// What sandboxes on one shelf have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    uid: u32,
    gid: u32,
    mode: &'static str,
    request: Vec<u8>,
}

/// One sandbox on a shelf.
struct Ready {
    sandbox: Arc<Sandbox>,
    standing: Standing,
}

struct Shelf {
    number: u64,
    peer: Peer,
    mode: Mode,
    /// Without what differs from use to use.
    request: CreateRequest,
    ready: VecDeque<Ready>,
    building: usize,
    wanted: usize,
    /// What an operator asked for: fewer are not kept.
    floor: usize,
    used: Instant,
    hits: u64,
    misses: u64,
    /// Why the last one was not built, and when.
    failed: Option<(String, Instant)>,
}

/// All shelves.
pub struct Pool {
    max: usize,
    shelves: Mutex<HashMap<Key, Shelf>>,
    /// Rung when a shelf may lack some.
    lack: Notify,
    numbers: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// How a taken sandbox came to its command.
pub enum Taken {
    /// It runs.
    Started(Arc<Sandbox>),
    /// There was none; one is made for the next time.
    Missed,
}

impl Pool {
    /// Of at most so many sandboxes.
    pub fn new(max: usize) -> Pool {
        Pool {
            max,
            shelves: Mutex::default(),
            lack: Notify::new(),
            numbers: 1.into(),
            hits: 0.into(),
            misses: 0.into(),
        }
    }

    fn shelves(&self) -> MutexGuard<'_, HashMap<Key, Shelf>> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first that still stands; those before it are dead. Makes the shelf when there is none.
    fn take(&self, key: &Key, peer: Peer, mode: Mode, request: &CreateRequest, dead: &mut Vec<Ready>) -> Option<Ready> {
        let mut shelves = self.shelves();
        if !shelves.contains_key(key) {
            if shelves.len() >= SHELVES_MAX && !make_room(&mut shelves) {
                return None;
            }
            shelves.insert(key.clone(), self.shelf(peer, mode, request.clone(), 0));
        }
        let shelf = shelves.get_mut(key)?;
        shelf.used = Instant::now();
        let standing = shelf.ready.iter().position(|ready| !ready.sandbox.record().is_over());
        dead.extend(shelf.ready.drain(..standing.unwrap_or(shelf.ready.len())));
        let ready = shelf.ready.pop_front();
        match ready {
            Some(_) => {
                shelf.hits += 1;
                self.hits.fetch_add(1, Ordering::Relaxed);
            }
            None => {
                shelf.misses += 1;
                self.misses.fetch_add(1, Ordering::Relaxed);
                self.lack.notify_one();
            }
        }
        if shelf.ready.is_empty() {
            // It was asked for more than it held.
            shelf.wanted = (shelf.wanted * 2).clamp(WANTED_FIRST, WANTED_MAX);
        }
        ready
    }

    fn shelf(&self, peer: Peer, mode: Mode, request: CreateRequest, floor: usize) -> Shelf {
        Shelf {
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
            peer,
            mode,
            request,
            ready: VecDeque::new(),
            building: 0,
            wanted: floor,
            floor,
            used: Instant::now(),
            hits: 0,
            misses: 0,
            failed: None,
        }
    }

    /// The next that is to be built, counted as under way.
    fn next(&self) -> Option<(Key, Peer, Mode, CreateRequest)> {
        let mut shelves = self.shelves();
        let all: usize = shelves.values().map(|shelf| shelf.ready.len() + shelf.building).sum();
        if all >= self.max {
            return None;
        }
        let lacks = |shelf: &&mut Shelf| {
            let waits = shelf.failed.as_ref().is_some_and(|(_, when)| when.elapsed() < BACK_OFF);
            shelf.ready.len() + shelf.building < shelf.wanted && !waits
        };
        let (key, shelf) = shelves
            .iter_mut()
            .map(|(key, shelf)| (key.clone(), shelf))
            .filter(|(_, shelf)| lacks(shelf))
            .min_by_key(|(_, shelf)| shelf.ready.len() + shelf.building)?;
        shelf.building += 1;
        Some((key, shelf.peer, shelf.mode, shelf.request.clone()))
    }

    /// Puts one on its shelf, or says why there is none. What nobody wants any more comes back.
    fn built(&self, key: &Key, outcome: Result<Ready, String>) -> Option<Ready> {
        let mut shelves = self.shelves();
        let Some(shelf) = shelves.get_mut(key) else { return outcome.ok() };
        // Drained and made anew meanwhile, it counts from zero.
        shelf.building = shelf.building.saturating_sub(1);
        match outcome {
            Ok(ready) => {
                shelf.failed = None;
                if shelf.ready.len() >= shelf.wanted {
                    return Some(ready);
                }
                shelf.ready.push_back(ready);
            }
            Err(words) => shelf.failed = Some((words, Instant::now())),
        }
        None
    }

    /// Takes everything off one shelf, which is then filled anew.
    fn clear(&self, key: &Key) -> Vec<Ready> {
        let mut shelves = self.shelves();
        shelves.get_mut(key).map(|shelf| shelf.ready.drain(..).collect()).unwrap_or_default()
    }

    /// What is to be ended since nobody asks for it.
    fn idle(&self) -> Vec<Ready> {
        let mut shelves = self.shelves();
        let mut over = Vec::new();
        for shelf in shelves.values_mut().filter(|shelf| shelf.used.elapsed() >= IDLE) {
            shelf.used = Instant::now();
            shelf.wanted = (shelf.wanted / 2).max(shelf.floor);
            while shelf.ready.len() > shelf.wanted {
                over.extend(shelf.ready.pop_back());
            }
        }
        shelves.retain(|_, shelf| shelf.wanted > 0 || shelf.building > 0 || shelf.used.elapsed() < IDLE / 2);
        over
    }

    /// How many are ready; hits and misses since the start.
    pub fn counts(&self) -> (u64, u64, u64) {
        let ready = self.shelves().values().map(|shelf| shelf.ready.len() as u64).sum();
        (ready, self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }
}

/// Gives up the shelf that was used least recently and holds nothing.
fn make_room(shelves: &mut HashMap<Key, Shelf>) -> bool {
    let empty = shelves.iter().filter(|(_, shelf)| shelf.ready.is_empty() && shelf.building == 0);
    let Some(key) = empty.min_by_key(|(_, shelf)| shelf.used).map(|(key, _)| key.clone()) else { return false };
    shelves.remove(&key).is_some()
}

impl Shelf {
    fn wire(&self) -> v1::Pool {
        v1::Pool {
            id: self.number.to_string(),
            uid: self.peer.uid,
            mode: self.mode.name().to_owned(),
            profile: self.request.profile.clone(),
            program: self.request.command.first().cloned().unwrap_or_default(),
            ready: self.ready.len() as u64,
            building: self.building as u64,
            wanted: self.wanted as u64,
            hits: self.hits,
            misses: self.misses,
            error: self.failed.as_ref().map(|(words, _)| words.clone()).unwrap_or_default(),
        }
    }

    /// For questions of who may do what: nobody's sandbox yet, but somebody's shelf.
    fn record(&self) -> Record {
        Record::new(String::new(), self.peer.uid, self.mode, 0)
    }
}

/// What requests for the same shelf have in common.
fn common(request: &CreateRequest) -> CreateRequest {
    let mut common = request.clone();
    common.name.clear();
    common.labels.clear();
    common.on_finding.clear();
    common.on_limit.clear();
    common.wait_for_room.clear();
    common.size = None;
    common.pool = true;
    common.command.truncate(1);
    // As `start` reads them.
    if common.watch.is_empty() {
        common.watch = if request.on_finding.is_empty() { "off" } else { "default" }.to_owned();
    }
    common
}

fn key(peer: Peer, mode: Mode, common: &CreateRequest) -> Key {
    Key {
        uid: peer.uid,
        gid: peer.gid,
        mode: mode.name(),
        request: serde_json::to_vec(common).expect("plain values are representable"),
    }
}

/// Starts the request's command in a sandbox that stands ready, whose record becomes `record`. `admit` is asked before anything is started.
pub async fn take(
    daemon: &Arc<Daemon>,
    peer: Peer,
    request: &CreateRequest,
    record: &Record,
    input: Input,
    admit: impl Fn(&Arc<Sandbox>) -> Result<(), Error>,
) -> Result<Taken, Error> {
    let mode = record.facts.born;
    let common = common(request);
    let key = key(peer, mode, &common);
    loop {
        let mut dead = Vec::new();
        let ready = daemon.pool.take(&key, peer, mode, &common, &mut dead);
        discard(daemon, dead);
        let Some(ready) = ready else { return Ok(Taken::Missed) };
        let Ready { sandbox, standing } = ready;
        let mut own = record.clone();
        own.id = sandbox.id.clone();
        own.created_ms = now_ms();
        own.claim = sandbox.record().claim;
        sandbox::stands(&mut own, &standing);
        sandbox.adopt(own);
        sandbox.is_made_from(request);
        if let Err(error) = admit(&sandbox) {
            discard(daemon, vec![Ready { sandbox, standing }]);
            return Err(error);
        }
        // Stored before it starts: whoever finds the record without a keeper knows that the command may have run.
        let begun = match sandbox.keep(&daemon.store) {
            Ok(()) => {
                let size = request.size.as_ref().and_then(terminal::size);
                let let_go = if input == Input::None && sandbox.end_stdin().await { vec![STDIN] } else { Vec::new() };
                sandbox.ask_surely(&ToKeeper::Start { arguments: request.command.clone(), size, let_go }, &[]).await
            }
            Err(error) => Err(NotDone::Refused(format!("{error:#}"))),
        };
        match begun {
            Ok(_) => {
                // What is done at its limits is the request's, and not known when it was built.
                daemon.watched.watch(&sandbox);
                replace_behind(daemon, &sandbox);
                return Ok(Taken::Started(sandbox));
            }
            Err(NotDone::Unheard(words)) if may_have_run(&sandbox).await => {
                let words = format!(
                    "sandbox {} may have run the command, and it is not run again: {words}; `apex inspect` and `apex logs` tell more",
                    sandbox.id
                );
                return Err(Error::new(Kind::Internal, words));
            }
            // It ended, or is not what would be made now; neither are its neighbours.
            Err(_) => {
                let _ = daemon.forget(&sandbox);
                let neighbours = daemon.pool.clear(&key);
                discard(daemon, [Ready { sandbox, standing }].into_iter().chain(neighbours).collect());
            }
        }
    }
}

/// Whether a keeper that did not answer may have started the command: it answers before it says that its sandbox has ended, so one that said that has not.
async fn may_have_run(sandbox: &Arc<Sandbox>) -> bool {
    let ended = async {
        let _ = sandbox.ask(&ToKeeper::Kill).await;
        sandbox.until(Record::is_over).await
    };
    match tokio::time::timeout(KILL_WITHIN, ended).await {
        Ok(record) => record.facts.state == State::Lost,
        Err(_) => true,
    }
}

/// Has the shelves looked at when a command that was just started had its head start.
fn replace_behind(daemon: &Arc<Daemon>, sandbox: &Arc<Sandbox>) {
    let (daemon, sandbox) = (Arc::clone(daemon), Arc::clone(sandbox));
    tokio::spawn(async move {
        let _over = tokio::time::timeout(HEAD_START, sandbox.until(Record::is_over)).await;
        daemon.pool.lack.notify_one();
    });
}

/// Ends sandboxes that were never used.
fn discard(daemon: &Arc<Daemon>, unused: Vec<Ready>) {
    for Ready { sandbox, .. } in unused {
        let daemon = Arc::clone(daemon);
        tokio::spawn(async move {
            let _ = sandbox.ask(&ToKeeper::Kill).await;
            sandbox.until(Record::is_over).await;
            sandbox.until_gone().await;
            if let Err(error) = daemon.forget(&sandbox) {
                say::line(Level::Warning, "pool", None, format_args!("a sandbox of a pool: {error:#}"));
            }
        });
    }
}

/// Keeps the shelves filled for ever.
pub async fn fill(daemon: Arc<Daemon>) -> Result<()> {
    let builders = Arc::new(tokio::sync::Semaphore::new(BUILDERS));
    loop {
        let Ok(permit) = Arc::clone(&builders).acquire_owned().await else { return Ok(()) };
        match daemon.pool.next() {
            Some((key, peer, mode, request)) => {
                let daemon = Arc::clone(&daemon);
                tokio::spawn(async move {
                    let outcome = build(&daemon, peer, mode, &request).await;
                    let over = daemon.pool.built(&key, outcome);
                    discard(&daemon, over.into_iter().collect());
                    drop(permit);
                    daemon.pool.lack.notify_one();
                });
            }
            None => {
                drop(permit);
                let _ = tokio::time::timeout(LOOK_EVERY, daemon.pool.lack.notified()).await;
                discard(&daemon, daemon.pool.idle());
            }
        }
    }
}

async fn build(daemon: &Arc<Daemon>, peer: Peer, mode: Mode, request: &CreateRequest) -> Result<Ready, String> {
    let mut record = Record::new(start::fresh_id(), peer.uid, mode, now_ms());
    record.facts.level = start::level_of(request).map_err(|error| error.words)?;
    record.command = request.command.clone();
    record.watch = request.watch.clone();
    record.claim = budget::claim_of(daemon, request, mode);
    let claim = Claim { id: record.id.clone(), uid: record.uid, amounts: record.claim };
    let room = daemon.budget.reserve(claim, None).await.map_err(|refusal| refusal.to_string())?;
    record.tty = request.tty;
    let sandbox = Sandbox::unkept(record, daemon);
    sandbox.has_room(room);
    let stands = match start::begin_deferred(daemon, peer, request, &sandbox).await {
        Ok(()) => sandbox.stands_within(start::READY_WITHIN).await,
        Err(error) => Err(error.words),
    };
    match stands {
        Ok(standing) => Ok(Ready { sandbox, standing }),
        Err(words) => {
            // It may stand half built.
            let _ = tokio::time::timeout(KILL_WITHIN, sandbox.ask(&ToKeeper::Kill)).await;
            daemon.discard(&sandbox);
            Err(words)
        }
    }
}

/// The shelves that the peer may see.
pub fn list(daemon: &Daemon, may: impl Fn(&Record) -> bool) -> Vec<v1::Pool> {
    let shelves = daemon.pool.shelves();
    let mut pools: Vec<_> = shelves.values().filter(|shelf| may(&shelf.record())).map(Shelf::wire).collect();
    drop(shelves);
    pools.sort_by_key(|pool| pool.id.parse::<u64>().unwrap_or_default());
    pools
}

/// Has a shelf hold so many from now on.
pub fn set(daemon: &Daemon, peer: Peer, request: &CreateRequest, size: u64) -> Result<v1::Pool, Error> {
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if size > daemon.pool.max {
        let words = format!(
            "{size} sandboxes are more than the {} that all pools together may hold (apexd --pool-max)",
            daemon.pool.max
        );
        return Err(Error::new(Kind::Exhausted, words));
    }
    let mode = start::mode_of(daemon, request)?;
    let common = common(request);
    let key = key(peer, mode, &common);
    let mut shelves = daemon.pool.shelves();
    if !shelves.contains_key(&key) && shelves.len() >= SHELVES_MAX && !make_room(&mut shelves) {
        return Err(Error::new(Kind::Exhausted, format!("there are {SHELVES_MAX} pools already; drain one")));
    }
    let shelf = shelves.entry(key).or_insert_with(|| daemon.pool.shelf(peer, mode, common, size));
    (shelf.floor, shelf.wanted, shelf.used) = (size, size, Instant::now());
    let wire = shelf.wire();
    drop(shelves);
    daemon.pool.lack.notify_one();
    Ok(wire)
}

/// Gives up a shelf, if it is still there.
pub fn drain(daemon: &Arc<Daemon>, id: &str) -> Option<v1::Pool> {
    let mut shelves = daemon.pool.shelves();
    let key = shelves.iter().find(|(_, shelf)| shelf.number.to_string() == id).map(|(key, _)| key.clone())?;
    let drained = shelves.remove(&key)?;
    drop(shelves);
    let pool = drained.wire();
    discard(daemon, drained.ready.into());
    Some(pool)
}

impl Sandbox {
    /// Waits until it stands, and says why it does not.
    async fn stands_within(&self, within: Duration) -> Result<Standing, String> {
        let is_decided = |record: &Record| record.facts.state != State::Creating;
        let Ok(record) = tokio::time::timeout(within, self.until(is_decided)).await else {
            return Err(format!("it did not stand within {} s", within.as_secs()));
        };
        match self.standing() {
            Some(standing) if !record.is_over() => Ok(standing),
            _ => Err(if record.error.is_empty() { format!("it ended: {}", record.ending) } else { record.error }),
        }
    }
}

//! One sandbox as the daemon lives with it: record, keeper, logs.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use apex_core::control::State;
use apex_core::keep::{Ended, FromKeeper, Standing, ToKeeper};
use apex_core::policy::Network;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

use crate::clock::now_ms;
use crate::keeper::{Keeper, Told};
use crate::log::Log;
use crate::options;
use crate::place::Dir;
use crate::record::Record;
use crate::say;
use crate::store::Store;
use crate::streams;

/// How long the warden's word about a keeper's end is waited for.
const CODE_WITHIN: Duration = Duration::from_secs(2);
/// Connections to one keeper that may break.
const CONNECTIONS_MAX: u32 = 16;
/// What a keeper holds for the daemon, in this order.
pub const STDIN: usize = 0;

/// One sandbox.
pub struct Sandbox {
    pub id: String,
    pub dir: Dir,
    record: Mutex<Record>,
    changed: watch::Sender<u64>,
    keeper: Mutex<Option<Arc<Keeper>>>,
    /// What it wrote.
    pub out: Arc<Log>,
    pub err: Arc<Log>,
    /// Where its standard input is written to, until that is closed.
    pub stdin: tokio::sync::Mutex<Option<pipe::Sender>>,
    /// Held by whoever changes it: one transition at a time.
    pub turn: tokio::sync::Mutex<()>,
    /// Exit code of its keeper.
    code: watch::Sender<Option<i32>>,
}

impl Sandbox {
    /// With its files in this directory.
    pub fn new(record: Record, dir: Dir) -> Arc<Sandbox> {
        Arc::new(Sandbox {
            id: record.id.clone(),
            out: Arc::new(Log::open(dir.file("stdout.log"))),
            err: Arc::new(Log::open(dir.file("stderr.log"))),
            dir,
            record: Mutex::new(record),
            changed: watch::Sender::new(0),
            keeper: Mutex::default(),
            stdin: tokio::sync::Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            code: watch::Sender::new(None),
        })
    }

    fn locked(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of the record.
    pub fn record(&self) -> Record {
        self.locked().clone()
    }

    /// Changes the record, here and in the store. What the store does not take is in force all the same, and said.
    pub fn update(&self, store: &Store, change: impl FnOnce(&mut Record)) -> anyhow::Result<()> {
        let stored = {
            let mut record = self.locked();
            change(&mut record);
            store.put(&record)
        };
        self.changed.send_modify(|count| *count += 1);
        stored
    }

    fn note(&self, store: &Store, change: impl FnOnce(&mut Record)) {
        if let Err(error) = self.update(store, change) {
            say::about(&self.id, "store", format_args!("{error:#}"));
        }
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

    /// The warden saw the keeper end.
    pub fn keeper_ended(&self, code: i32) {
        self.code.send_replace(Some(code));
    }

    /// Asks the keeper.
    pub async fn ask(&self, said: &ToKeeper) -> Result<FromKeeper, String> {
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let keeper = keeper.ok_or("its keeper is not connected")?;
        keeper.ask(said).await.map(|answer| answer.said)
    }

    /// Connects to the keeper, and lives with it from now on.
    pub fn live(self: &Arc<Self>, store: &Arc<Store>) -> anyhow::Result<Arc<Keeper>> {
        let (keeper, told) = Keeper::connect(&self.dir)?;
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

    /// Keeps what comes out of a pipe.
    pub fn pump(&self, end: OwnedFd, log: &Arc<Log>, what: &str) -> std::io::Result<()> {
        streams::pump(end, Arc::clone(log), format!("the {what} of sandbox {}", self.id))
    }

    /// Closes standard input.
    pub async fn close_stdin(&self) {
        if self.stdin.lock().await.take().is_some() {
            // A keeper that is gone holds nothing.
            let _ = self.ask(&ToKeeper::LetGo { index: STDIN }).await;
        }
    }

    async fn listen(self: Arc<Self>, store: Arc<Store>, mut told: mpsc::Receiver<Told>) {
        let mut lost = 0;
        loop {
            match told.recv().await {
                Some(Told::Standing(standing)) => self.note(&store, |record| stands(record, &standing)),
                Some(Told::Ended(ended)) => return self.ended(&store, ended),
                Some(Told::Gone) | None => match self.found_again(&mut lost) {
                    Some(again) => told = again,
                    None => return self.vanished(&store).await,
                },
            }
        }
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
            record.facts.state = if ended.how == "failed" { State::Failed } else { State::Ended };
            record.facts.frozen = false;
            record.exit_code = Some(ended.code.into());
            record.ending = ended.how;
            record.error = ended.words.unwrap_or_default();
            record.ended_ms = ended.time_ns / 1_000_000;
        });
        *self.keeper.lock().unwrap_or_else(PoisonError::into_inner) = None;
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
        *self.keeper.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn result(&self) -> Option<Ended> {
        let text = std::fs::read(self.dir.file("result.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

/// What a keeper tells of a sandbox is taken once: later the record knows what was changed since.
fn stands(record: &mut Record, standing: &Standing) {
    record.pid = standing.init;
    if record.facts.state != State::Creating {
        return;
    }
    let facts = &mut record.facts;
    if let Ok(mode) = options::mode(&standing.mode) {
        (facts.born, facts.mode) = (mode, mode);
    }
    facts.network_born = if standing.has_network { Network::Host } else { Network::None };
    facts.has_network_dial = standing.has_network_dial;
    facts.has_limits = standing.has_limits;
    (facts.limits_born, facts.limits) = (standing.limits, standing.limits);
    facts.state = State::Running;
    record.started_ms = now_ms();
}

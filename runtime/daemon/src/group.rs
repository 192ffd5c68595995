//! One group: what was asked for, what becomes of it, and the loop that asks `apex-core` what is to be done and has it done.
//!
//! What is decided is stored before it is done. So a daemon that died knows what it had begun, and a look at the sandboxes tells how far it came.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use apex_api::v1::{self, CreateRequest};
use apex_core::access::Operation;
use apex_core::amount;
use apex_core::audit::Outcome;
use apex_core::supervise::{Found, Happened, Machine, Order, Phase, Status};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::ask;
use crate::clock::{jitter, now_ms};
use crate::health;
use crate::member::{self, how};
use crate::registry::Daemon;
use crate::say::{self, Level};

/// What was asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Asked {
    pub name: String,
    /// Whose it is.
    pub uid: u32,
    pub gid: u32,
    pub created_ms: u64,
    /// In the machine's order.
    pub members: Vec<AskedMember>,
}

/// A member as it was asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AskedMember {
    pub sandbox: CreateRequest,
    pub stop_within_ms: u64,
    #[serde(default)]
    pub health: Option<v1::HealthCheck>,
}

/// What became of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    pub machine: Machine,
    /// Why it failed.
    pub words: String,
    pub members: Vec<StateOfMember>,
}

/// What became of a member.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StateOfMember {
    /// Id of the sandbox that was last started.
    pub sandbox: String,
    /// How it last ended.
    pub words: String,
}

/// A group.
pub struct Group {
    pub asked: Asked,
    state: Mutex<State>,
    /// Counts changes; `None` once it is forgotten.
    changed: watch::Sender<Option<u64>>,
    /// Held while a member is being started, so that nobody looks for it meanwhile.
    pub starting: Vec<Arc<tokio::sync::Mutex<()>>>,
}

/// What a task of a group tells.
enum News {
    /// A start came to its end: the sandbox, or why there is none.
    Begun { member: usize, outcome: Result<String, String> },
    /// A sandbox ended.
    Ended { member: usize, sandbox: String, well: bool, words: String },
    /// A health command told that it is well now, or ill; nothing more when the sandbox has ended.
    Health { member: usize, sandbox: String, well: Option<bool> },
}

impl Group {
    /// One of which nothing runs yet, or that was stored.
    pub fn new(asked: Asked, state: State) -> Arc<Group> {
        let starting = asked.members.iter().map(|_| Arc::default()).collect();
        Arc::new(Group { asked, state: Mutex::new(state), changed: watch::Sender::new(Some(0)), starting })
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of what became of it.
    pub fn state(&self) -> State {
        self.locked().clone()
    }

    /// Name of a member.
    pub fn member_name(&self, member: usize) -> String {
        self.locked().machine.spec().members[member].name.clone()
    }

    /// Changes what became of it, here and in the store. What the store does not take is in force all the same, and said.
    pub fn change<T>(&self, daemon: &Daemon, change: impl FnOnce(&mut State) -> T) -> T {
        let (done, stored) = {
            let mut state = self.locked();
            let done = change(&mut state);
            (done, daemon.store.put_group_state(&self.asked.name, &state))
        };
        if let Err(error) = stored {
            say::line(Level::Warning, "group", None, format_args!("group {}: {error:#}", self.asked.name));
        }
        self.changed.send_modify(|count| *count = count.map(|count| count.wrapping_add(1)));
        done
    }

    /// Tells whoever waits that there is nothing more to come.
    pub fn forgotten(&self) {
        self.changed.send_replace(None);
    }

    /// Returns when it was forgotten.
    pub async fn until_forgotten(&self) {
        // The sender lives as long as this value.
        let _ = self.changed.subscribe().wait_for(Option::is_none).await;
    }

    /// As the API tells it.
    pub fn wire(&self) -> v1::Group {
        let state = self.state();
        let (machine, spec) = (&state.machine, state.machine.spec());
        let word = match (machine.status(), machine.is_over()) {
            (Status::Up, false) => "up",
            (Status::Up | Status::Down, true) => "ended",
            (Status::Failed { .. }, _) => "failed",
            (Status::Down, false) => "stopping",
        };
        v1::Group {
            name: self.asked.name.clone(),
            strategy: spec.strategy.name().to_owned(),
            state: word.to_owned(),
            uid: self.asked.uid,
            created_ms: self.asked.created_ms,
            restarts_borne: spec.intensity.restarts,
            within_ms: spec.intensity.within_ms,
            words: state.words.clone(),
            members: (0..spec.members.len()).map(|member| wire_member(&state, member)).collect(),
        }
    }
}

fn wire_member(state: &State, member: usize) -> v1::MemberState {
    let (machine, spec) = (&state.machine, state.machine.spec());
    let known = &spec.members[member];
    let names = |numbers: &[usize]| numbers.iter().map(|on| spec.members[*on].name.clone()).collect::<Vec<_>>();
    let missing: Vec<usize> = known.after.iter().copied().filter(|on| machine.phase(*on) != Phase::Running).collect();
    let words = if machine.phase(member) == Phase::Waiting && !missing.is_empty() {
        format!("waits for {}", names(&missing).join(", "))
    } else {
        state.members[member].words.clone()
    };
    v1::MemberState {
        name: known.name.clone(),
        state: machine.phase(member).name().to_owned(),
        sandbox: state.members[member].sandbox.clone(),
        restarts: machine.restarts(member),
        restart: known.restart.name().to_owned(),
        after: names(&known.after),
        due_ms: machine.due_ms(member).unwrap_or_default(),
        words,
    }
}

/// Until it was told to end and all of it is gone.
pub async fn live(daemon: Arc<Daemon>, group: Arc<Group>) -> Result<()> {
    let mut changes = group.changed.subscribe();
    let mut tasks: JoinSet<News> = JoinSet::new();
    take_up(&daemon, &group, &mut tasks).await;
    loop {
        changes.borrow_and_update();
        let orders = decide(&daemon, &group);
        for order in orders {
            carry_out(&daemon, &group, order, &mut tasks);
        }
        let machine = group.state().machine;
        if machine.status() == Status::Down && machine.is_over() {
            return Ok(());
        }
        // What was decided is a change as well, and the next round finds nothing to do.
        let now = now_ms();
        let wait = machine.next_ms(now).map(|next_ms| Duration::from_millis(next_ms - now));
        tokio::select! {
            Some(news) = tasks.join_next() => hear(&daemon, &group, news?, &mut tasks),
            _ = changes.changed() => {}
            () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
        }
    }
}

/// What is to be done now, stored. Nothing is stored where nothing is to be done.
fn decide(daemon: &Daemon, group: &Group) -> Vec<Order> {
    let mut ahead = group.state().machine;
    let orders = ahead.orders(now_ms());
    if orders.is_empty() { orders } else { group.change(daemon, |state| state.machine.orders(now_ms())) }
}

fn carry_out(daemon: &Arc<Daemon>, group: &Arc<Group>, order: Order, tasks: &mut JoinSet<News>) {
    match order {
        Order::Start(member) => {
            // To its end, also when whoever supervises is started anew meanwhile.
            let start = tokio::spawn(member::start(Arc::clone(daemon), Arc::clone(group), member));
            tasks.spawn(async move {
                let outcome = start.await.unwrap_or_else(|error| Err(format!("its start came to no end: {error}")));
                News::Begun { member, outcome }
            });
        }
        Order::Stop(member) => {
            tokio::spawn(member::stop(Arc::clone(daemon), Arc::clone(group), member));
        }
    }
}

fn hear(daemon: &Arc<Daemon>, group: &Arc<Group>, news: News, tasks: &mut JoinSet<News>) {
    match news {
        News::Begun { member, outcome: Ok(id) } => {
            let is_over = daemon.get(&id).is_none_or(|sandbox| sandbox.record().is_over());
            group.change(daemon, |state| {
                state.members[member].sandbox = id.clone();
                // One that could not be built never ran: nobody who depends on it is to be started.
                if !is_over {
                    state.machine.take(Happened::Started(member), now_ms(), jitter());
                }
            });
            if !is_over {
                probe(daemon, group, (member, &id), false, tasks);
            }
            watch(daemon, member, id, tasks);
            member::clear_away(daemon, group, member);
        }
        News::Begun { member, outcome: Err(words) } => ended(daemon, group, member, false, words),
        News::Health { well: None, .. } => {}
        News::Health { member, sandbox, well: Some(well) } => {
            if group.state().members[member].sandbox == sandbox {
                let happened = if well { Happened::Healthy(member) } else { Happened::Unhealthy(member) };
                group.change(daemon, |state| {
                    if !well {
                        "its health command failed".clone_into(&mut state.members[member].words);
                    }
                    state.machine.take(happened, now_ms(), jitter());
                });
                // One that is ill is ended, and its successor is looked at anew.
                if well {
                    probe(daemon, group, (member, &sandbox), true, tasks);
                }
            }
        }
        News::Ended { member, sandbox, well, words } => {
            // Not one that has a successor already.
            if group.state().members[member].sandbox == sandbox {
                ended(daemon, group, member, well, words);
            }
        }
    }
}

/// Takes an end in; where it was one too many for the group, that is written down.
fn ended(daemon: &Daemon, group: &Group, member: usize, well: bool, words: String) {
    let failed = group.change(daemon, |state| {
        let before = state.machine.status();
        state.members[member].words.clone_from(&words);
        state.machine.take(Happened::Ended { member, well }, now_ms(), jitter());
        let has_failed = before == Status::Up && matches!(state.machine.status(), Status::Failed { .. });
        has_failed.then(|| {
            let (name, intensity) = (&state.machine.spec().members[member].name, state.machine.spec().intensity);
            let within = amount::duration(intensity.within_ms);
            let most = format!("more than {} restarts within {within} are not borne", intensity.restarts);
            state.words = format!("{most}; {name} last ended so: {words}");
            state.words.clone()
        })
    });
    if let Some(words) = failed {
        say::line(Level::Warning, "group", None, format_args!("group {}: {words}", group.asked.name));
        let asked = ask::Asked::by_itself(Operation::Down);
        let (name, owner) = (&group.asked.name, group.asked.uid);
        if let Err(error) = daemon.write_down_group(&asked, name, owner, Outcome::Failed, &words, json!(null)) {
            say::line(Level::Warning, "group", None, format_args!("group {name}: {error}"));
        }
    }
}

/// Has it looked after, where it has a health command, until what that tells changes.
fn probe(
    daemon: &Arc<Daemon>,
    group: &Arc<Group>,
    (member, id): (usize, &str),
    is_well: bool,
    tasks: &mut JoinSet<News>,
) {
    let Some(health) = group.asked.members[member].health.clone() else { return };
    let Some(sandbox) = daemon.get(id) else { return };
    tasks.spawn(async move {
        let well = health::until_changed(&sandbox, &health, is_well).await;
        News::Health { member, sandbox: sandbox.id.clone(), well }
    });
}

fn watch(daemon: &Arc<Daemon>, member: usize, id: String, tasks: &mut JoinSet<News>) {
    let found = daemon.get(&id);
    tasks.spawn(async move {
        let Some(sandbox) = found else {
            return News::Ended { member, sandbox: id, well: false, words: "it was removed".to_owned() };
        };
        let record = sandbox.until(crate::record::Record::is_over).await;
        News::Ended { member, sandbox: id, well: member::is_well(&record), words: how(&record) }
    });
}

/// Looks what is there, after a daemon or a supervisor that was away.
async fn take_up(daemon: &Arc<Daemon>, group: &Arc<Group>, tasks: &mut JoinSet<News>) {
    for member in 0..group.asked.members.len() {
        // A start that is still under way is waited for: it ends by itself.
        let _starting = group.starting[member].lock().await;
        let state = group.state();
        let known = &state.members[member].sandbox;
        let phase = state.machine.phase(member);
        let newest = member::all(daemon, group, member).pop();
        let (found, id) = match newest {
            Some(sandbox) if !sandbox.record().is_over() => (Found::Living, sandbox.id.clone()),
            Some(sandbox) if sandbox.id != *known || phase != Phase::Starting => {
                (Found::Ended { well: member::is_well(&sandbox.record()) }, sandbox.id.clone())
            }
            Some(_) | None => (Found::Nothing, known.clone()),
        };
        let words = daemon.get(&id).map(|sandbox| how(&sandbox.record())).unwrap_or_default();
        if found == Found::Living {
            watch(daemon, member, id.clone(), tasks);
            probe(daemon, group, (member, &id), false, tasks);
        }
        if id != *known {
            group.change(daemon, |state| state.members[member].sandbox = id);
        }
        resume(daemon, group, member, found, words);
    }
}

fn resume(daemon: &Daemon, group: &Group, member: usize, found: Found, words: String) {
    let phase = group.state().machine.phase(member);
    match found {
        // As if it had been heard.
        Found::Ended { well } if phase.is_live() => ended(daemon, group, member, well, words),
        Found::Nothing if matches!(phase, Phase::Running | Phase::Stopping) => {
            ended(daemon, group, member, false, "it was removed".to_owned());
        }
        Found::Living | Found::Nothing | Found::Ended { .. } => {
            group.change(daemon, |state| state.machine.resume(member, found, now_ms(), jitter()));
        }
    }
}

/// Groups by name.
pub type ByName = HashMap<String, Arc<Group>>;

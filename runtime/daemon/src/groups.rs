//! All groups: taken up at the start, made, ended, told, and the service that lives with them.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result};
use apex_api::v1::{self, GroupMember, UpRequest};
use apex_api::{Error, Kind, Peer};
use apex_core::access::Operation;
use apex_core::audit::{Outcome, mask_words};
use apex_core::supervise::{BackOff, Draft, Intensity, Machine, Restart, Spec, Strategy, check_name};
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::clock::now_ms;
use crate::group::{self, Asked, AskedMember, ByName, Group, State, StateOfMember};
use crate::health;
use crate::member;
use crate::registry::Daemon;
use crate::say::{self, Level};
use crate::start;
use crate::store::Store;

/// Groups that one daemon has.
const GROUPS_MAX: usize = 256;
/// Bytes of what is asked for, as it is stored.
const ASKED_BYTES_MAX: usize = 256 << 10;
/// Time to end, when nothing is said, and at most.
const STOP_WITHIN_MS: u64 = 10_000;
const STOP_WITHIN_MS_MAX: u64 = 60 * 60 * 1000;

/// Between two looks for members that wait for room while their group is brought down.
const GIVE_UP_EVERY: Duration = Duration::from_millis(100);

/// The groups.
#[derive(Default)]
pub struct Groups {
    by_name: RwLock<ByName>,
    /// Wakes the service.
    added: Notify,
}

impl Groups {
    /// Those of the daemon before.
    pub fn take_up(&self, store: &Store) -> Result<()> {
        let mut by_name = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        for (asked, state) in store.groups()? {
            by_name.insert(asked.name.clone(), Group::new(asked, state));
        }
        Ok(())
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<Arc<Group>> {
        let by_name = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = by_name.values().cloned().collect();
        all.sort_by(|one, other| one.asked.name.cmp(&other.asked.name));
        all
    }

    fn find(&self, name: &str) -> Result<Arc<Group>, Error> {
        let by_name = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        by_name.get(name).cloned().ok_or_else(|| nobody(name))
    }

    /// Written down and stored before it is known to anybody.
    fn add(
        &self,
        store: &Store,
        asked: Asked,
        state: State,
        write_down: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Arc<Group>, Error> {
        let mut by_name = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        if by_name.contains_key(&asked.name) {
            let words = format!("there is a group {0:?} already; `apex down {0}` ends it", asked.name);
            return Err(Error::new(Kind::Conflict, words));
        }
        if by_name.len() >= GROUPS_MAX {
            let words = format!("there are {GROUPS_MAX} groups already; `apex down` ends one");
            return Err(Error::new(Kind::Exhausted, words));
        }
        write_down()?;
        store.put_group(&asked, &state).map_err(|error| Error::new(Kind::Internal, format!("{error:#}")))?;
        let group = Group::new(asked, state);
        by_name.insert(group.asked.name.clone(), Arc::clone(&group));
        self.added.notify_one();
        Ok(group)
    }

    /// One that the store does not let go of is found to have ended by the next daemon, and forgotten then.
    fn forget(&self, store: &Store, group: &Group) {
        if let Err(error) = store.forget_group(&group.asked.name) {
            say::line(Level::Warning, "group", None, format_args!("group {}: {error:#}", group.asked.name));
        }
        self.by_name.write().unwrap_or_else(PoisonError::into_inner).remove(&group.asked.name);
        group.forgotten();
    }
}

fn nobody(name: &str) -> Error {
    Error::new(Kind::NotFound, format!("there is no group {name:?}; `apex groups` lists those there are"))
}

fn invalid(words: impl ToString) -> Error {
    Error::new(Kind::Invalid, words.to_string())
}

/// The service: lives with every group. One that breaks off ends it, and all are looked at anew.
pub async fn live(daemon: Arc<Daemon>) -> Result<()> {
    let mut lives: JoinSet<Result<Arc<Group>>> = JoinSet::new();
    let mut known: HashSet<String> = HashSet::new();
    loop {
        for group in daemon.groups.all() {
            if known.insert(group.asked.name.clone()) {
                let daemon = Arc::clone(&daemon);
                lives.spawn(async move {
                    group::live(daemon, Arc::clone(&group)).await?;
                    Ok(group)
                });
            }
        }
        tokio::select! {
            Some(over) = lives.join_next() => {
                let group = over.context("supervising a group")??;
                known.remove(&group.asked.name);
                daemon.groups.forget(&daemon.store, &group);
            }
            () = daemon.groups.added.notified() => {}
        }
    }
}

/// Those that somebody may see.
pub fn visible(daemon: &Daemon, peer: Peer) -> Vec<v1::Group> {
    let all = daemon.groups.all().into_iter();
    all.filter(|group| daemon.may_group(peer, Operation::Groups, group.asked.uid)).map(|group| group.wire()).collect()
}

/// Makes one: judged as a whole and member by member, written down, stored; its service starts it.
pub fn up(daemon: &Daemon, peer: Peer, request: UpRequest) -> Result<v1::Group, Error> {
    check_name("group", &request.name).map_err(invalid)?;
    let asked = daemon.judge_group(peer, Operation::Up, peer.uid, &request.name)?;
    let spec = spec(&request)?;
    let members = spec.members.iter().map(|member| {
        let given = request.members.iter().find(|given| given.name == member.name);
        given.ok_or_else(|| invalid("a member is missing")).and_then(|given| one(daemon, peer, &request.name, given))
    });
    let members = members.collect::<Result<Vec<_>, _>>()?;
    let wanted = Asked { name: request.name, uid: peer.uid, gid: peer.gid, created_ms: now_ms(), members };
    let bytes = serde_json::to_vec(&wanted).map_or(usize::MAX, |text| text.len());
    if bytes > ASKED_BYTES_MAX {
        return Err(invalid(format!("the group has {bytes} bytes as JSON; at most {ASKED_BYTES_MAX} are kept")));
    }
    let state = State {
        members: vec![StateOfMember::default(); spec.members.len()],
        machine: Machine::new(spec),
        words: String::new(),
    };
    let state = with_predecessors(daemon, &wanted, state);
    let after = json!({
        "strategy": state.machine.spec().strategy,
        "members": wanted.members.iter().map(|member| json!({"name": member.sandbox.name, "command": mask_words(&member.sandbox.command)})).collect::<Vec<_>>(),
    });
    let name = wanted.name.clone();
    let write_down = || daemon.write_down_group(&asked, &name, peer.uid, Outcome::Allowed, "", after);
    let group = daemon.groups.add(&daemon.store, wanted, state, write_down)?;
    Ok(group.wire())
}

fn spec(request: &UpRequest) -> Result<Spec, Error> {
    let word = |what: &str, word: &str, known: &[&str]| {
        invalid(format!("{word:?} is no {what}; there are {}", known.join(", ")))
    };
    let strategy = match request.strategy.as_str() {
        "" => Strategy::default(),
        name => Strategy::ALL
            .into_iter()
            .find(|strategy| strategy.name() == name)
            .ok_or_else(|| word("strategy", name, &Strategy::ALL.map(Strategy::name)))?,
    };
    let draft = |member: &GroupMember| {
        let restart = match member.restart.as_str() {
            "" => Restart::default(),
            name => Restart::ALL
                .into_iter()
                .find(|restart| restart.name() == name)
                .ok_or_else(|| word("restart", name, &Restart::ALL.map(Restart::name)))?,
        };
        Ok(Draft {
            name: member.name.clone(),
            restart,
            after: member.after.clone(),
            is_probed: member.health.is_some(),
        })
    };
    let drafts = request.members.iter().map(draft).collect::<Result<Vec<_>, Error>>()?;
    let or = |given: u64, usual: u64| if given == 0 { usual } else { given };
    let (bears, waits) = (Intensity::default(), BackOff::default());
    let intensity = Intensity {
        restarts: request.restarts.unwrap_or(bears.restarts),
        within_ms: or(request.within_ms, bears.within_ms),
    };
    let first_ms = or(request.back_off_first_ms, waits.first_ms);
    let back_off = BackOff { first_ms, max_ms: or(request.back_off_max_ms, waits.max_ms.max(first_ms)) };
    Spec::new(strategy, intensity, back_off, &drafts).map_err(invalid)
}

/// A member, judged as the sandbox that it will be.
fn one(daemon: &Daemon, peer: Peer, group: &str, given: &GroupMember) -> Result<AskedMember, Error> {
    let about = |words: String| format!("member {:?}: {words}", given.name);
    let mut sandbox = given.sandbox.clone().unwrap_or_default();
    if !sandbox.name.is_empty() {
        return Err(invalid(about("its sandbox is named by the group and itself; leave its name out".to_owned())));
    }
    if sandbox.pool || sandbox.warm {
        return Err(invalid(about(
            "its sandbox is started by the group, not taken from a pool; leave pool and warm out".to_owned(),
        )));
    }
    if given.stop_within_ms > STOP_WITHIN_MS_MAX {
        return Err(invalid(about(format!("it has {} ms to end, at most {STOP_WITHIN_MS_MAX}", given.stop_within_ms))));
    }
    if let Some(health) = &given.health
        && let Err(words) = health::check(health)
    {
        return Err(invalid(about(words)));
    }
    sandbox.name = format!("{group}.{}", given.name);
    let record =
        start::record_of(daemon, peer, &sandbox).map_err(|error| Error::new(error.kind, about(error.words)))?;
    daemon
        .judge_making(peer, Operation::Create, &record)
        .map_err(|error| Error::new(error.kind, about(error.words)))?;
    let stop_within_ms = if given.stop_within_ms == 0 { STOP_WITHIN_MS } else { given.stop_within_ms };
    Ok(AskedMember { sandbox, stop_within_ms, health: given.health.clone() })
}

/// A group that had this name and owner before left sandboxes, which have ended: what is started now comes behind them.
fn with_predecessors(daemon: &Daemon, asked: &Asked, state: State) -> State {
    let group = Group::new(asked.clone(), state);
    let mut state = group.state();
    for (at, known) in state.members.iter_mut().enumerate() {
        let last = member::all(daemon, &group, at).pop();
        known.sandbox = last.map(|sandbox| sandbox.id.clone()).unwrap_or_default();
    }
    state
}

/// Ends one, and returns when it is gone and forgotten.
pub async fn down(daemon: &Daemon, peer: Peer, name: &str) -> Result<v1::Group, Error> {
    let group = daemon.groups.find(name)?;
    let owner = group.asked.uid;
    let asked = daemon.judge_group(peer, Operation::Down, owner, name).map_err(|error| {
        // To whoever may not see it, it is not there.
        if daemon.may_group(peer, Operation::Groups, owner) { error } else { nobody(name) }
    })?;
    daemon.write_down_group(&asked, name, owner, Outcome::Allowed, "", json!(null))?;
    group.change(daemon, |state| state.machine.end());
    // A member that waits for room would wait on; one that is being started may begin to.
    while tokio::time::timeout(GIVE_UP_EVERY, group.until_forgotten()).await.is_err() {
        let members = (0..group.asked.members.len()).flat_map(|member| member::all(daemon, &group, member));
        for sandbox in members {
            sandbox.give_up(&daemon.store);
        }
    }
    Ok(group.wire())
}

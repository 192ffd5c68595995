//! The daemon: everything that its services share, and the sandboxes by id.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result};
use apex_api::v1::CreateRequest;
use apex_api::{Error, Kind};
use apex_core::access::Policy;
use apex_core::budget::Claim;
use apex_core::control::{Limits, ModeDefaults, State};
use apex_core::policy::{self, Inputs, Mode};
use apex_core::seccomp::groups;
use tokio::task::JoinSet;

use crate::audit::Audit;
use crate::bell::{self, Bell};
use crate::budget::Budget;
use crate::crew::Services;
use crate::errand::Errands;
use crate::groups::Groups;
use crate::limits::Watched;
use crate::mail::{Office, door};
use crate::manager::Manager;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::place::Place;
use crate::pool::Pool;
use crate::record::Record;
use crate::refusals::Refusals;
use crate::sandbox::Sandbox;
use crate::say;
use crate::settle::settle;
use crate::store::Store;

/// How long the sandboxes of pools may take to end behind their daemon.
const ORPHAN_WITHIN: Duration = Duration::from_secs(3);
/// How long the sandboxes of the daemon before are waited for.
const TAKEN_UP_WITHIN: Duration = Duration::from_secs(5);
/// What the administrator adds to the rules of access.
const ACCESS: &str = "/etc/apex/access.toml";

/// The daemon.
pub struct Daemon {
    pub options: Options,
    pub place: Place,
    pub store: Arc<Store>,
    pub audit: Audit,
    access: RwLock<Arc<Policy>>,
    pub manager: Manager,
    pub errands: Arc<Errands>,
    pub bell: Bell,
    pub pool: Pool,
    pub refusals: Mutex<Refusals>,
    pub budget: Arc<Budget>,
    pub metrics: Metrics,
    pub watched: Watched,
    pub services: Arc<Services>,
    pub groups: Groups,
    pub mail: Office,
    pub doors: door::Doors,
    defaults: HashMap<&'static str, ModeDefaults>,
    sandboxes: RwLock<HashMap<String, Arc<Sandbox>>>,
}

impl Daemon {
    /// With what is stored, and with the keepers that still live.
    pub async fn open(options: &Options, place: Place, errands: Arc<Errands>, manager: Manager) -> Result<Arc<Daemon>> {
        let daemon = Arc::new(Daemon {
            store: Arc::new(Store::open(&place.file("apexd.db"))?),
            audit: Audit::open(&place.file("audit.jsonl"))?,
            access: RwLock::new(Arc::new(access(options)?)),
            manager,
            errands,
            bell: Bell::new()?,
            pool: Pool::new(options.pool_max),
            refusals: Mutex::default(),
            budget: Budget::new(options)?,
            metrics: Metrics::default(),
            watched: Watched::default(),
            services: Arc::default(),
            groups: Groups::default(),
            mail: Office::open(&place.file("mail.db"))?,
            doors: door::Doors::default(),
            defaults: [Mode::Isolation, Mode::Hybrid, Mode::Development]
                .into_iter()
                .map(|mode| Ok((mode.name(), mode_defaults(mode)?)))
                .collect::<Result<_>>()?,
            sandboxes: RwLock::default(),
            options: options.clone(),
            place,
        });
        daemon.take_up().await?;
        daemon.groups.take_up(&daemon.store)?;
        Ok(daemon)
    }

    /// Takes up every sandbox of the daemon before, and clears away what it left half made.
    async fn take_up(self: &Arc<Self>) -> Result<()> {
        let mut taking = JoinSet::new();
        for record in self.store.all()? {
            let dir = self.place.sandbox(&record.id);
            let is_over = record.is_over();
            let claim = Claim { id: record.id.clone(), uid: record.uid, amounts: self.held(&record) };
            let sandbox = Sandbox::new(record, dir);
            self.insert(&sandbox);
            if is_over {
                sandbox.out.close();
                sandbox.err.close();
                continue;
            }
            sandbox.has_room(self.budget.hold(claim));
            self.watched.watch(&sandbox);
            bell::count_at_end(self, &sandbox);
            let daemon = Arc::clone(self);
            taking.spawn(async move { daemon.take_up_one(&sandbox).await });
        }
        // All at once, and those that take long are not waited for: a keeper that its user has stopped must not keep the daemon from the others.
        let _ = tokio::time::timeout(TAKEN_UP_WITHIN, async { while taking.join_next().await.is_some() {} }).await;
        taking.detach_all();
        for id in self.place.sandboxes()? {
            if self.get(&id).is_none() {
                if self.place.sandbox(&id).is_listened_to(ORPHAN_WITHIN).await {
                    say::about(
                        &id,
                        "stranger",
                        format_args!(
                            "it runs and no record knows it: is apexd.db another one? Its keeper is an apex-run --keep; end it to end the sandbox"
                        ),
                    );
                    continue;
                }
                // Made, and never stored: no keeper was started for it.
                self.place
                    .sandbox(&id)
                    .remove()
                    .with_context(|| format!("clearing away the half made sandbox {id}"))?;
            }
        }
        Ok(())
    }

    async fn take_up_one(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let Ok(keeper) = sandbox.live(&self.store) else { return sandbox.vanished(&self.store).await };
        door::open(self, sandbox);
        if let Err(words) = sandbox.take_streams(&keeper).await {
            say::about(&sandbox.id, "take-up", format_args!("taking up its streams: {words}"));
        }
        settle(self, sandbox).await;
        if sandbox.record().watch != "off" {
            if let Err(error) = self.bell.watch(sandbox) {
                say::about(&sandbox.id, "take-up", format_args!("{error:#}; its findings are not answered"));
            }
            bell::look(self, sandbox).await;
        }
    }

    /// Who may do what, as it is in force now.
    pub fn access(&self) -> Arc<Policy> {
        Arc::clone(&self.access.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts others in force.
    pub fn set_access(&self, policy: Policy) {
        *self.access.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }

    /// What a mode gives by itself.
    pub fn defaults(&self, mode: Mode) -> ModeDefaults {
        // Every mode is there since the start.
        self.defaults[mode.name()]
    }

    /// What a sandbox of the daemon before holds of the budget: before it stood, and without a cgroup, that is known from its request alone.
    fn held(&self, record: &Record) -> Limits {
        let stands = record.facts.state != State::Creating && record.facts.has_limits;
        if stands { self.budget.claimed(record.facts.limits) } else { record.claim }
    }

    fn insert(&self, sandbox: &Arc<Sandbox>) {
        let mut sandboxes = self.sandboxes.write().unwrap_or_else(PoisonError::into_inner);
        sandboxes.insert(sandbox.id.clone(), Arc::clone(sandbox));
    }

    /// Adds a sandbox, if there is room and its name is free.
    pub fn add(&self, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        let mut sandboxes = self.sandboxes.write().unwrap_or_else(PoisonError::into_inner);
        let most = self.options.sandboxes_max;
        if sandboxes.len() >= most {
            let words = format!("there are {most} sandboxes already; `apex rm` removes those that have ended");
            return Err(Error::new(Kind::Exhausted, words));
        }
        let record = sandbox.record();
        let (name, uid) = (&record.name, record.uid);
        // Nobody but root and the daemon's own user keeps the others out.
        let is_trusted = uid == 0 || uid == nix::unistd::geteuid().as_raw();
        let most = if is_trusted { most } else { (most / 4).max(1) };
        if sandboxes.values().filter(|other| other.uid == uid).count() >= most {
            let words = format!("you have {most} sandboxes already; `apex rm` removes those that have ended");
            return Err(Error::new(Kind::Exhausted, words));
        }
        let holds = |other: &Arc<Sandbox>| {
            let other = other.record();
            other.name == *name && !record.succeeds(&other)
        };
        if !name.is_empty() && sandboxes.values().any(holds) {
            let words = format!("there is a sandbox of the name {name:?} already; choose another, or remove that one");
            return Err(Error::new(Kind::Conflict, words));
        }
        sandboxes.insert(sandbox.id.clone(), Arc::clone(sandbox));
        Ok(())
    }

    /// Forgets a sandbox that is over, with its files.
    pub fn forget(&self, sandbox: &Sandbox) -> Result<()> {
        // In this order: a directory without a record is cleared away at the next start, a record without a directory would be a riddle.
        sandbox.forget(&self.store)?;
        self.sandboxes.write().unwrap_or_else(PoisonError::into_inner).remove(&sandbox.id);
        sandbox.dir.remove().with_context(|| format!("removing the files of sandbox {}", sandbox.id))
    }

    /// Forgets one that never ran, also where the store does not let go: it is then told as failed by the next daemon.
    pub fn discard(&self, sandbox: &Sandbox) {
        if let Err(error) = self.forget(sandbox) {
            say::about(&sandbox.id, "forget", format_args!("{error:#}"));
            self.sandboxes.write().unwrap_or_else(PoisonError::into_inner).remove(&sandbox.id);
            let _ = sandbox.dir.remove();
        }
    }

    /// Every sandbox, oldest first.
    pub fn all(&self) -> Vec<Arc<Sandbox>> {
        let sandboxes = self.sandboxes.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = sandboxes.values().cloned().collect();
        drop(sandboxes);
        all.sort_by_key(|sandbox| (sandbox.record().created_ms, sandbox.id.clone()));
        all
    }

    /// By its whole id, which no name stands in for.
    pub fn get(&self, id: &str) -> Option<Arc<Sandbox>> {
        self.sandboxes.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// By id, by name, or by an unambiguous beginning of the id.
    pub fn find(&self, word: &str) -> Result<Arc<Sandbox>, Error> {
        self.find_among(word, &|_| true)
    }

    /// The same among those that somebody sees: the others are not there, and make no beginning ambiguous.
    pub fn find_among(&self, word: &str, is_seen: &dyn Fn(&Record) -> bool) -> Result<Arc<Sandbox>, Error> {
        let sandboxes = self.sandboxes.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(sandbox) = sandboxes.get(word).filter(|sandbox| is_seen(&sandbox.record())) {
            return Ok(Arc::clone(sandbox));
        }
        let of = |fits: &dyn Fn(&Sandbox) -> bool| -> Vec<Arc<Sandbox>> {
            let fitting = sandboxes.values().filter(|sandbox| !word.is_empty() && fits(sandbox));
            fitting.filter(|sandbox| is_seen(&sandbox.record())).cloned().collect()
        };
        let named = of(&|sandbox| sandbox.record().name == word);
        // Predecessors of a member have its name too.
        let named = named.into_iter().max_by_key(|sandbox| (!sandbox.record().is_over(), sandbox.record().created_ms));
        if let Some(sandbox) = named {
            return Ok(sandbox);
        }
        match of(&|sandbox| sandbox.id.starts_with(word)).as_slice() {
            [sandbox] => Ok(Arc::clone(sandbox)),
            [] => Err(nobody(word)),
            several => Err(Error::new(
                Kind::Invalid,
                format!("{} sandboxes begin with {word:?}; give more of the id", several.len()),
            )),
        }
    }
}

/// That there is no such sandbox.
pub fn nobody(word: &str) -> Error {
    Error::new(Kind::NotFound, format!("there is no sandbox {word:?}; `apex ls --all` lists those there are"))
}

/// The rules of access as they are written now.
pub fn access(options: &Options) -> Result<Policy> {
    let policy = Policy::built_in().map_err(|error| anyhow::anyhow!("the built-in rules of access: {error}"))?;
    let (path, is_asked_for) = match &options.access {
        Some(path) => (path.clone(), true),
        None => (ACCESS.into(), false),
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => policy.with(&text, &path.to_string_lossy()).map_err(|error| anyhow::anyhow!("{error}")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !is_asked_for => Ok(policy),
        Err(error) => Err(error).with_context(|| format!("reading the rules of access {}", path.display())),
    }
}

/// Resolved from the mode alone; what it leaves unlimited gets this host as its bound, so that there is something to be lowered and given back.
fn mode_defaults(mode: Mode) -> Result<ModeDefaults> {
    let policy = resolved(mode, &CreateRequest::default());
    let policy = policy.map_err(|error| anyhow::anyhow!("resolving mode {}: {error}", mode.name()))?;
    let mut defaults = ModeDefaults::from(&policy);
    let host = host_limits();
    defaults.limits = Limits {
        memory_bytes: defaults.limits.memory_bytes.or(host.memory_bytes),
        tasks: defaults.limits.tasks.or(host.tasks),
        cpu_percent: defaults.limits.cpu_percent.or(host.cpu_percent),
    };
    Ok(defaults)
}

/// The limits of a request by profile and policy, where no file is needed to say so.
pub fn limits_of(mode: Mode, request: &CreateRequest) -> Option<Limits> {
    resolved(mode, request).ok().map(|policy| Limits::from(&policy.resources))
}

/// Of the request's mode, profile and policy text alone: no file of anybody is read.
fn resolved(mode: Mode, request: &CreateRequest) -> Result<policy::Policy, policy::PolicyError> {
    const TEXT: &str = "/nonexistent/policy.toml";
    let groups: Vec<&str> = groups::iter().map(|group| group.name).collect();
    let inputs = Inputs {
        mode: Some(mode),
        profile: Some(request.profile.clone()).filter(|name| !name.is_empty()),
        policy_file: (!request.policy_toml.is_empty()).then(|| TEXT.into()),
        flags: policy::Flags::default(),
        user_config: None,
        // Of nobody: only limits and network are asked for.
        home: Some("/nonexistent".into()),
        cwd: "/nonexistent/job".into(),
        tmpdir: None,
        system_config: None,
        groups: &groups,
    };
    policy::resolve(&inputs, &mut |path: &std::path::Path| {
        Ok((path == std::path::Path::new(TEXT)).then(|| request.policy_toml.clone()))
    })
}

/// Tasks of a sandbox for which nobody set a limit.
const TASKS: u64 = 16_384;

/// All memory and all processors.
pub fn host_limits() -> Limits {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let processors = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    Limits { memory_bytes: kib.map(|kib| kib * 1024), tasks: Some(TASKS), cpu_percent: Some(100 * processors) }
}

//! The daemon: everything that its services share, and the sandboxes by id.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, Result};
use apex_api::{Error, Kind};
use apex_core::access::Policy;
use apex_core::control::{Limits, ModeDefaults, State};
use apex_core::policy::{self, Inputs, Mode};
use apex_core::seccomp::groups;

use crate::audit::Audit;
use crate::bell::{self, Bell};
use crate::errand::Errands;
use crate::manager::Manager;
use crate::options::Options;
use crate::place::Place;
use crate::sandbox::Sandbox;
use crate::say;
use crate::store::Store;
use crate::tree::Services;

/// Sandboxes that one daemon has, those that have ended included.
pub const SANDBOXES_MAX: usize = 4096;
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
    pub services: Services,
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
            services: Services::default(),
            defaults: [Mode::Isolation, Mode::Hybrid, Mode::Development]
                .into_iter()
                .map(|mode| Ok((mode.name(), mode_defaults(mode)?)))
                .collect::<Result<_>>()?,
            sandboxes: RwLock::default(),
            options: options.clone(),
            place,
        });
        daemon.take_up().await?;
        Ok(daemon)
    }

    /// Takes up every sandbox of the daemon before, and clears away what it left half made.
    async fn take_up(self: &Arc<Self>) -> Result<()> {
        let records = self.store.all()?;
        for record in records {
            let dir = self.place.sandbox(&record.id);
            let is_over = record.is_over();
            let is_watched = record.watch != "off";
            let sandbox = Sandbox::new(record, dir);
            self.insert(&sandbox);
            if is_over {
                sandbox.out.close();
                sandbox.err.close();
                continue;
            }
            match sandbox.live(&self.store) {
                Ok(keeper) => {
                    if let Err(words) = sandbox.take_streams(&keeper).await {
                        say::about(&sandbox.id, "streams", format_args!("taking up its streams: {words}"));
                    }
                    if is_watched {
                        self.bell.watch(&sandbox)?;
                        bell::look(self, &sandbox).await;
                    }
                }
                Err(_) => sandbox.vanished(&self.store).await,
            }
        }
        for id in self.place.sandboxes()? {
            if self.sandboxes.read().unwrap_or_else(PoisonError::into_inner).get(&id).is_none() {
                if self.place.sandbox(&id).connect().is_ok() {
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

    fn insert(&self, sandbox: &Arc<Sandbox>) {
        let mut sandboxes = self.sandboxes.write().unwrap_or_else(PoisonError::into_inner);
        sandboxes.insert(sandbox.id.clone(), Arc::clone(sandbox));
    }

    /// Adds a sandbox, if there is room and its name is free.
    pub fn add(&self, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        let mut sandboxes = self.sandboxes.write().unwrap_or_else(PoisonError::into_inner);
        if sandboxes.len() >= SANDBOXES_MAX {
            let words = format!("there are {SANDBOXES_MAX} sandboxes already; `apex rm` removes those that have ended");
            return Err(Error::new(Kind::Exhausted, words));
        }
        let name = sandbox.record().name;
        if !name.is_empty() && sandboxes.values().any(|other| other.record().name == name) {
            let words = format!("there is a sandbox of the name {name:?} already; choose another, or remove that one");
            return Err(Error::new(Kind::Conflict, words));
        }
        sandboxes.insert(sandbox.id.clone(), Arc::clone(sandbox));
        Ok(())
    }

    /// Forgets a sandbox that is over, with its files.
    pub fn forget(&self, sandbox: &Sandbox) -> Result<()> {
        // In this order: a directory without a record is cleared away at the next start, a record without a directory would be a riddle.
        self.store.forget(&sandbox.id)?;
        self.sandboxes.write().unwrap_or_else(PoisonError::into_inner).remove(&sandbox.id);
        sandbox.dir.remove().with_context(|| format!("removing the files of sandbox {}", sandbox.id))
    }

    /// Every sandbox, oldest first.
    pub fn all(&self) -> Vec<Arc<Sandbox>> {
        let sandboxes = self.sandboxes.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = sandboxes.values().cloned().collect();
        drop(sandboxes);
        all.sort_by_key(|sandbox| (sandbox.record().created_ms, sandbox.id.clone()));
        all
    }

    /// By id, by name, or by an unambiguous beginning of the id.
    pub fn find(&self, word: &str) -> Result<Arc<Sandbox>, Error> {
        let sandboxes = self.sandboxes.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(sandbox) = sandboxes.get(word) {
            return Ok(Arc::clone(sandbox));
        }
        let named: Vec<_> =
            sandboxes.values().filter(|sandbox| !word.is_empty() && sandbox.record().name == word).collect();
        let begun: Vec<_> =
            sandboxes.values().filter(|sandbox| !word.is_empty() && sandbox.id.starts_with(word)).collect();
        match (named.first(), begun.as_slice()) {
            (Some(sandbox), _) => Ok(Arc::clone(sandbox)),
            (None, [sandbox]) => Ok(Arc::clone(sandbox)),
            (None, []) => Err(nobody(word)),
            (None, several) => Err(Error::new(
                Kind::Invalid,
                format!("{} sandboxes begin with {word:?}; give more of the id", several.len()),
            )),
        }
    }

    /// How many there are in each state.
    pub fn by_state(&self) -> HashMap<(&'static str, State), u64> {
        let mut counts = HashMap::new();
        for sandbox in self.all() {
            let facts = sandbox.record().facts;
            *counts.entry((facts.mode.name(), facts.state)).or_default() += 1;
        }
        counts
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
    let groups: Vec<&str> = groups::iter().map(|group| group.name).collect();
    let inputs = Inputs {
        mode: Some(mode),
        profile: None,
        policy_file: None,
        flags: policy::Flags::default(),
        user_config: None,
        // Of nobody: only limits and network are asked for.
        home: Some("/nonexistent".into()),
        cwd: "/nonexistent/job".into(),
        tmpdir: None,
        system_config: None,
        groups: &groups,
    };
    let policy = policy::resolve(&inputs, &mut |_: &std::path::Path| Ok(None));
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

/// Tasks of a sandbox for which nobody set a limit.
const TASKS: u64 = 16_384;

/// All memory and all processors.
fn host_limits() -> Limits {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let processors = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    Limits { memory_bytes: kib.map(|kib| kib * 1024), tasks: Some(TASKS), cpu_percent: Some(100 * processors) }
}

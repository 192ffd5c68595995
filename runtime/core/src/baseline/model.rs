//! The runs that a baseline was learned from. Nothing else is kept: every statistic is worked out from them, so a model can be added to and
//! checked, and the order in which runs came is of no account.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::summary::{Class, Key, NAMES_MAX, RunSummary, Tally};

/// Version of the shape of a model.
pub const VERSION: u32 = 1;
/// Most runs that a model keeps: of more, those with the lowest ids, which is a fair draw as ids are hashes.
pub const RUNS_MAX: usize = 64;
/// Fewest runs with which anything is alarmed; ten of them calibrate.
pub const RUNS_MIN: usize = 15;
/// Kinds of events and of bytes.
const TALLIES_MAX: usize = 64;
/// Transitions between them.
const TRANSITIONS_MAX: usize = 8192;
/// Longest name.
const NAME_MAX: usize = super::place::NAME_BYTES_MAX + 16;

/// What was learned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// [`VERSION`].
    pub version: u32,
    /// Whose behaviour.
    pub key: Key,
    /// The runs, by id.
    pub runs: Vec<RunSummary>,
    /// Runs that were absorbed, those included that are not kept.
    pub absorbed: u64,
    /// SHA-256 of all of the above, as [`Model::digest`] makes it.
    pub sha256: String,
}

/// A model that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// Of another version of Apex.
    #[error("the model has version {0}, this program reads version {VERSION}; reset it and learn again")]
    Version(u32),
    /// The hash does not fit the content.
    #[error(
        "the model was changed after it was learned: its content has SHA-256 {found}, it says {said}; reset it and learn again"
    )]
    Changed {
        /// What it says.
        said: String,
        /// What it has.
        found: String,
    },
    /// Something beyond its bound or out of order.
    #[error("the model is malformed: {0}; reset it and learn again")]
    Malformed(&'static str),
    /// Another profile or policy.
    #[error(
        "the run is of profile {run} with another policy than the model's, of profile {model}; each policy has a model of its own"
    )]
    OtherKey {
        /// Of the run.
        run: String,
        /// Of the model.
        model: String,
    },
}

impl Model {
    /// An empty one.
    pub fn new(key: Key) -> Model {
        let model = Model { version: VERSION, key, runs: Vec::new(), absorbed: 0, sha256: String::new() };
        model.sealed()
    }

    /// One of these runs. Their order does not matter.
    pub fn learn(runs: &[RunSummary]) -> Result<Model, ModelError> {
        let first = runs.first().ok_or(ModelError::Malformed("there is no run to learn from"))?;
        let mut model = Model::new(first.key.clone());
        for run in runs {
            model.absorb(run.clone())?;
        }
        Ok(model)
    }

    /// Adds a run; one that is in it already changes nothing.
    pub fn absorb(&mut self, run: RunSummary) -> Result<(), ModelError> {
        if run.key != self.key {
            return Err(ModelError::OtherKey { run: run.key.profile, model: self.key.profile.clone() });
        }
        check_run(&run)?;
        if let Err(at) = self.runs.binary_search_by(|known| known.id.cmp(&run.id)) {
            self.runs.insert(at, run);
            self.runs.truncate(RUNS_MAX);
            self.absorbed += 1;
            self.sha256 = self.digest();
        }
        Ok(())
    }

    /// The model, if it is whole, of this version, within its bounds, and unchanged since it was learned.
    pub fn checked(self) -> Result<Model, ModelError> {
        if self.version != VERSION {
            return Err(ModelError::Version(self.version));
        }
        let found = self.digest();
        if found != self.sha256 {
            return Err(ModelError::Changed { said: self.sha256.chars().take(64).collect(), found });
        }
        if self.runs.len() > RUNS_MAX || self.absorbed < self.runs.len() as u64 {
            return Err(ModelError::Malformed("it has more runs than a model keeps"));
        }
        if !self.runs.is_sorted_by(|one, next| one.id < next.id) {
            return Err(ModelError::Malformed("its runs are not in order"));
        }
        for run in &self.runs {
            if run.key != self.key {
                return Err(ModelError::Malformed("a run is of another policy"));
            }
            check_run(run)?;
        }
        Ok(self)
    }

    /// The runs that are learned from, and those that calibrate. Ids are hashes of when a run was, not of what it did: the draw is blind.
    pub fn split(&self) -> (Vec<&RunSummary>, Vec<&RunSummary>) {
        let mut learned = Vec::new();
        let mut calibrating = Vec::new();
        for (index, run) in self.runs.iter().enumerate() {
            if index % 3 == 0 { learned.push(run) } else { calibrating.push(run) }
        }
        (learned, calibrating)
    }

    /// The highest probability of an alarm about a run that is like those of the model; `None` with too few runs to alarm at all.
    pub fn false_alarms_max(&self) -> Option<f64> {
        let (_, calibrating) = self.split();
        (self.runs.len() >= RUNS_MIN).then(|| 1.0 / (calibrating.len() as f64 + 1.0))
    }

    /// SHA-256 over every value but the hash itself, each with its length before it, so that no two models have the same bytes.
    pub fn digest(&self) -> String {
        let mut canon = Canon(Sha256::new());
        canon.text("apex-baseline");
        canon.number(u64::from(self.version));
        canon.key(&self.key);
        canon.number(self.absorbed);
        canon.number(self.runs.len() as u64);
        for run in &self.runs {
            canon.run(run);
        }
        canon.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn sealed(mut self) -> Model {
        self.sha256 = self.digest();
        self
    }
}

fn check_run(run: &RunSummary) -> Result<(), ModelError> {
    let names_fit = |class: &Class| {
        !matches!(class, Class::Call | Class::Transition)
            && run.names.get(class).is_none_or(|names| names.len() <= NAMES_MAX)
    };
    let longest = Class::ALL.iter().flat_map(|class| run.of(*class)).chain(run.tallies.keys()).map(String::len).max();
    let limits = [
        (run.id.len() == 32 && run.id.bytes().all(|byte| byte.is_ascii_hexdigit()), "the id of a run is no hash"),
        (run.tallies.len() <= TALLIES_MAX, "a run has too many kinds of events"),
        (
            run.tallies.values().all(|Tally { total, peak }| peak <= total),
            "a second of a run has more than the whole run",
        ),
        (run.calls.len() <= NAMES_MAX, "a run has too many system calls"),
        (run.transitions.len() <= TRANSITIONS_MAX, "a run has too many transitions"),
        (run.names.keys().all(names_fit), "a run has too many names"),
        (longest.unwrap_or(0) <= NAME_MAX, "a name is too long"),
    ];
    match limits.into_iter().find(|(holds, _)| !holds) {
        Some((_, why)) => Err(ModelError::Malformed(why)),
        None => Ok(()),
    }
}

/// Writes values so that each begins where the one before ends and nowhere else.
struct Canon(Sha256);

impl Canon {
    fn number(&mut self, number: u64) {
        self.0.update(number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text.as_bytes());
    }

    fn key(&mut self, key: &Key) {
        self.text(&key.profile);
        self.text(&key.plan_sha256);
    }

    fn run(&mut self, run: &RunSummary) {
        self.text(&run.id);
        self.key(&run.key);
        self.number(run.tallies.len() as u64);
        for (name, tally) in &run.tallies {
            self.text(name);
            self.number(tally.total);
            self.number(tally.peak);
        }
        for counts in [&run.calls, &run.transitions] {
            self.number(counts.len() as u64);
            for (name, count) in counts {
                self.text(name);
                self.number(*count);
            }
        }
        self.number(run.names.len() as u64);
        for (class, names) in &run.names {
            self.text(class.words());
            self.number(names.len() as u64);
            names.iter().for_each(|name| self.text(name));
        }
        self.number(run.overflow);
    }
}

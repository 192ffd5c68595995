//! The baseline of a run that is being watched.
//!
//! Without `--baseline` a run is judged when there is a model of its profile and plan, and nothing is said when there is none. A model that is
//! refused stops the start: who changed it may want the run not to be judged.

use anyhow::{Context as _, Result};
use apex_core::baseline::{Key, Observer};
use apex_core::event::Event;
use apex_core::finding::{Detector, Finding};
use apex_core::watch::{Baseline, Begin, Reaction};

use super::show;
use super::store::{self, Store};

/// See the module.
pub struct Watched {
    observer: Observer,
    /// Where the run is learned into.
    learns: Option<(Store, Key)>,
    /// Whether another engine found the run hostile.
    is_tainted: bool,
}

impl Watched {
    /// Finds the model of a run; `None` when there is nothing to do.
    pub fn open(begin: &Begin) -> Result<Option<Watched>> {
        if begin.baseline == Some(Baseline::Off) {
            return Ok(None);
        }
        let store = match Store::of_caller() {
            // Nobody asked: a caller without a home has no baselines.
            Err(_) if begin.baseline.is_none() => return Ok(None),
            store => store?,
        };
        let key = Key::of(&begin.start);
        let model =
            store.load(&key).context("cannot judge the run by its baseline; `--baseline off` runs it without")?;
        let learns = begin.baseline == Some(Baseline::Learn);
        if model.is_none() && begin.baseline.is_none() {
            return Ok(None);
        }
        if learns {
            store.make()?;
        }
        let observer = Observer::new(model.as_ref(), key.clone());
        if begin.baseline == Some(Baseline::Alert)
            && let Some(why) = observer.mute()
        {
            eprintln!("apex-probe: the run is not judged: {why}; `--baseline learn` learns from it");
        }
        Ok(Some(Watched { observer, learns: learns.then_some((store, key)), is_tainted: false }))
    }

    /// Takes an event.
    pub fn observe(&mut self, event: &Event) -> Vec<Finding> {
        self.observer.observe(event)
    }

    /// Takes the time.
    pub fn tick(&mut self, now_ns: u64) -> Vec<Finding> {
        self.observer.tick(now_ns)
    }

    /// Takes what another engine found: a hostile run is not one to learn from.
    pub fn found(&mut self, finding: &Finding) {
        let is_rule = matches!(finding.detector, Detector::Rule { .. });
        self.is_tainted |= is_rule && finding.severity >= Reaction::LEAST;
    }

    /// The last judgement, and what became of the lesson.
    pub fn finish(self) -> (Vec<Finding>, Option<String>) {
        let (findings, summary) = self.observer.finish();
        let words = self.learns.map(|(store, key)| {
            let name = store::name(&key);
            if self.is_tainted {
                return format!("baseline {name}: a run with such findings is not learned from");
            }
            match store.absorb(&key, &[&summary]) {
                Ok(model) => format!("baseline {name}: {} runs; {}", model.runs.len(), show::state(&model)),
                Err(error) => format!("baseline {name}: the run is not learned from: {error:#}"),
            }
        });
        (findings, words)
    }
}

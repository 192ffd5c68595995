//! Judges a run while it goes on, and sums it up for learning.

use std::collections::HashMap;

use super::judge::{Judge, Score};
use super::model::{Model, RUNS_MIN};
use super::summary::{Class, Key, Recorder, RunSummary};
use crate::event::{Event, What};
use crate::finding::{ANCESTRY_MAX, Detector, EVIDENCE_MAX, Finding, Process, Severity};

/// Most findings about one run: the first alarm, and later ones that are much worse.
pub const FINDINGS_MAX: u32 = 8;
/// How often a run is judged at most.
const JUDGE_NS: u64 = 1_000_000_000;
/// The same when something new of weight was seen.
const JUDGE_SOON_NS: u64 = 100_000_000;
/// How much worse a run must become to be told again.
const WORSE: f64 = 2.0;
/// Most processes whose program is remembered for the ancestry.
const PROCESSES_MAX: usize = 4096;

/// See the module.
#[derive(Debug)]
pub struct Observer {
    recorder: Recorder,
    judge: Option<Judge>,
    /// Content hash of the model, and how many runs it has.
    model: Option<(String, usize)>,
    judged_ns: u64,
    is_stale: bool,
    told: Option<(f64, Severity)>,
    findings: u32,
    /// The first events that brought something new, and the last event of all.
    evidence: Vec<Event>,
    last: Option<Event>,
    events: u64,
    processes: HashMap<u32, Process>,
}

impl Observer {
    /// Of a run of `key`. It is judged by `model`, if that is of the same key and has enough runs; else it is only summed up.
    pub fn new(model: Option<&Model>, key: Key) -> Observer {
        let model = model.filter(|model| model.key == key);
        Observer {
            judge: model.and_then(Judge::new),
            model: model.map(|model| (model.sha256.clone(), model.runs.len())),
            recorder: Recorder::new(key),
            judged_ns: 0,
            is_stale: false,
            told: None,
            findings: 0,
            evidence: Vec::new(),
            last: None,
            events: 0,
            processes: HashMap::new(),
        }
    }

    /// Why the run is not judged; `None` when it is.
    pub fn mute(&self) -> Option<String> {
        match (&self.judge, &self.model) {
            (Some(_), _) => None,
            (None, Some((_, runs))) => Some(format!(
                "the baseline of this policy has {runs} of the {RUNS_MIN} runs that it needs to judge another"
            )),
            (None, None) => Some("there is no baseline of this profile and policy".to_owned()),
        }
    }

    /// Takes an event; findings when the run has become unusual, or much more so.
    pub fn observe(&mut self, event: &Event) -> Vec<Finding> {
        self.recorder.observe(event);
        if self.judge.is_none() {
            self.recorder.fresh();
            return Vec::new();
        }
        self.events += 1;
        self.remember(event);
        let is_new = self.note_new(event);
        if event.pid != 0 {
            self.last = Some(event.clone());
        }
        self.is_stale = true;
        let wait = if is_new { JUDGE_SOON_NS } else { JUDGE_NS };
        if event.time_ns.saturating_sub(self.judged_ns) < wait {
            return Vec::new();
        }
        self.judge_at(event.time_ns, false)
    }

    /// Judges what came since the last time, when no event comes by itself: `now_ns` is the time since boot.
    pub fn tick(&mut self, now_ns: u64) -> Vec<Finding> {
        if !self.is_stale || now_ns.saturating_sub(self.judged_ns) < JUDGE_NS {
            return Vec::new();
        }
        self.judge_at(now_ns, false)
    }

    /// The end of the run: the last judgement, and the run for a model.
    pub fn finish(mut self) -> (Vec<Finding>, RunSummary) {
        let now_ns = self.last.as_ref().map_or(self.judged_ns, |event| event.time_ns);
        let findings = self.judge_at(now_ns, true);
        (findings, self.recorder.summary())
    }

    /// The score of the run so far; `None` when it is not judged.
    pub fn score(&self, is_whole: bool) -> Option<Score> {
        self.judge.as_ref().map(|judge| judge.score(&self.recorder.summary(), is_whole))
    }

    fn judge_at(&mut self, now_ns: u64, is_whole: bool) -> Vec<Finding> {
        self.judged_ns = now_ns;
        self.is_stale = false;
        let Some(score) = self.score(is_whole) else { return Vec::new() };
        let is_worse = match self.told {
            None => score.value > 1.0,
            Some((value, severity)) => score.value > value * WORSE || score.severity > severity && score.value > 1.0,
        };
        if !is_worse || self.findings >= FINDINGS_MAX {
            return Vec::new();
        }
        self.told = Some((score.value, score.severity));
        self.findings += 1;
        vec![self.finding(now_ns, score)]
    }

    fn finding(&self, now_ns: u64, score: Score) -> Finding {
        let furthest: Vec<&str> = score.moved.iter().take(3).map(|moved| moved.feature.as_str()).collect();
        let rate = self.judge.as_ref().map_or(1.0, Judge::false_alarms_max);
        let runs = self.model.as_ref().map_or(0, |(_, runs)| *runs);
        let explanation = format!(
            "This run differs from the {runs} that the baseline of its profile and policy keeps: it scores {:.1} times the threshold. \
             A run that is like them is told in at most {:.1}% of cases. What moved, the furthest first: {}.",
            score.value,
            rate * 100.0,
            score
                .moved
                .iter()
                .take(5)
                .map(|moved| format!("{} ({})", moved.feature, moved.seen))
                .collect::<Vec<_>>()
                .join("; "),
        );
        let mut evidence = self.evidence.clone();
        evidence.extend(self.last.iter().filter(|last| !self.evidence.contains(last)).cloned());
        evidence.truncate(EVIDENCE_MAX);
        // The last thing that was new is what the run is told for.
        let doer = self.evidence.last().or(self.last.as_ref()).map(|event| event.pid);
        Finding {
            time_ns: now_ns,
            sandbox: self.last.as_ref().map_or(0, |event| event.sandbox),
            detector: Detector::Baseline {
                model: self.model.as_ref().map(|(hash, _)| hash.clone()).unwrap_or_default(),
                score: score.value,
                moved: score.moved.clone(),
            },
            title: format!("Unusual for this policy: {}", furthest.join(", ")),
            explanation,
            severity: score.severity,
            techniques: Vec::new(),
            ancestry: doer.map(|pid| self.ancestry(pid)).unwrap_or_default(),
            evidence,
            count: self.events,
        }
    }

    /// Keeps the event if it brought a name that the model does not have; whether it is one to judge soon.
    fn note_new(&mut self, event: &Event) -> bool {
        let Some(judge) = &self.judge else { return false };
        let fresh = self.recorder.fresh();
        let mut new =
            fresh.iter().filter(|(class, name)| !judge.knows(*class, name)).map(|(class, _)| *class).peekable();
        // A slot stays free for the last event.
        if new.peek().is_some() && self.evidence.len() < EVIDENCE_MAX - 1 && event.pid != 0 {
            self.evidence.push(event.clone());
        }
        new.any(|class| !matches!(class, Class::Place | Class::Transition))
    }

    fn remember(&mut self, event: &Event) {
        match &event.what {
            What::Exec { path, args, .. } if event.error.is_none() => {
                if self.processes.len() >= PROCESSES_MAX && !self.processes.contains_key(&event.pid) {
                    return;
                }
                let process = Process {
                    pid: event.pid,
                    ppid: event.ppid,
                    uid: event.uid,
                    comm: event.comm.clone(),
                    exe: path.clone(),
                    args: args.iter().take(16).map(|arg| arg.chars().take(256).collect()).collect(),
                };
                self.processes.insert(event.pid, process);
            }
            What::Fork { child } if self.processes.len() < PROCESSES_MAX => {
                // Until it executes something else it runs what its parent runs.
                if let Some(parent) = self.processes.get(&event.pid) {
                    let born = Process { pid: *child, ppid: event.pid, ..parent.clone() };
                    self.processes.insert(*child, born);
                }
            }
            What::Exit { .. } if self.processes.len() > PROCESSES_MAX / 2 => {
                self.processes.remove(&event.pid);
            }
            _ => {}
        }
    }

    fn ancestry(&self, pid: u32) -> Vec<Process> {
        let mut ancestry = Vec::new();
        let mut next = pid;
        while let Some(process) = self.processes.get(&next) {
            let is_known = ancestry.iter().any(|known: &Process| known.pid == process.pid);
            if is_known || ancestry.len() >= ANCESTRY_MAX {
                break;
            }
            next = process.ppid;
            ancestry.push(process.clone());
        }
        ancestry
    }
}

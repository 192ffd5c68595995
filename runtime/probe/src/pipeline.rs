//! From events to a record, findings, a summary and wishes: everything that is done with what was seen.
//!
//! Input: events in the order in which they were read. Output: lines in the sinks, a line on standard error for each finding, what is to be
//! done about it, and the closing counts. It acts on nothing and touches no process of the sandbox.

use std::collections::BTreeMap;
use std::io::Write;

use apex_core::escape;
use apex_core::event::{End, Event, Loss, Start, What};
use apex_core::finding::{Detector, Finding};
use apex_core::ocsf::Context;
use apex_core::summary::{ProbeCost, Summary};
use apex_core::watch::{Begin, Family, FromProbe, Reaction, Source};
use apex_sys::clock;

use crate::engines::Engines;
use crate::lesson::Lesson;
use crate::sink::{self, SinkError, Sinks, Surroundings};

/// Refusals that one sandbox may have recorded in a second, and at once.
const REFUSALS_A_SECOND: u64 = 2000;
/// A frozen sandbox that somebody let go on is not frozen again for this long.
const FREEZE_AGAIN_NS: u64 = 10_000_000_000;

/// What is done with events.
pub struct Pipeline {
    head: Start,
    sandbox: u64,
    /// Standard error, for people.
    words: Sinks,
    events: Sinks,
    findings: Sinks,
    engines: Engines,
    lesson: Option<Lesson>,
    context: Context,
    summary: Option<(Summary, bool)>,
    on_finding: Reaction,
    /// When the reaction was last asked for.
    reacted_ns: Option<u64>,
    bucket: Bucket,
    recorded: u64,
    found: u64,
    alarms: u64,
    lost: BTreeMap<Loss, u64>,
    /// Lost, and not yet in an event.
    untold: BTreeMap<Loss, u64>,
}

impl Pipeline {
    /// Opens everything that is written to, before anything is built.
    pub fn open(begin: &Begin, engines: Engines, lesson: Option<Lesson>) -> Result<Pipeline, SinkError> {
        let words = Sinks::words()?;
        let surroundings = Surroundings { tell: words.teller(), ..Surroundings::default() };
        Ok(Pipeline {
            head: begin.start.clone(),
            sandbox: 0,
            words,
            events: Sinks::open(&begin.events, &surroundings)?,
            findings: Sinks::open(&begin.findings, &surroundings)?,
            engines,
            lesson,
            context: Context::new(&begin.start, clock::since_boot_ns()),
            summary: begin.summary.then(|| (Summary::default(), begin.json)),
            on_finding: begin.on_finding,
            reacted_ns: None,
            bucket: Bucket::default(),
            recorded: 0,
            found: 0,
            alarms: 0,
            lost: BTreeMap::new(),
            untold: BTreeMap::new(),
        })
    }

    /// Where each family's events come from.
    pub fn sources(&mut self, sources: BTreeMap<Family, Source>) {
        self.head.sources = sources;
    }

    /// Which sandbox it is.
    pub fn sandbox(&mut self, id: u64) {
        self.sandbox = id;
    }

    /// Its id.
    pub fn sandbox_id(&self) -> u64 {
        self.sandbox
    }

    /// The head of the record.
    pub fn start(&mut self) {
        // Both clocks at the same moment.
        self.head.wall_time_ns = clock::wall_ns();
        let head = self.own(What::Start(Box::new(self.head.clone())));
        self.context = Context::new(&self.head, head.time_ns);
        self.record(&head);
    }

    /// Whether one more refusal is recorded now; those that are not are counted.
    pub fn admits_refusal(&mut self, now_ns: u64) -> bool {
        let admitted = self.bucket.take(now_ns);
        if !admitted {
            self.count_lost(Loss::RateLimited, 1);
        }
        admitted
    }

    /// Counts what a source lost.
    pub fn lost(&mut self, lost: &BTreeMap<Loss, u64>) {
        for (why, count) in lost {
            self.count_lost(*why, *count);
        }
    }

    fn count_lost(&mut self, why: Loss, count: u64) {
        *self.lost.entry(why).or_default() += count;
        *self.untold.entry(why).or_default() += count;
    }

    /// Takes one event; what is to be done about it, and the finding behind it.
    pub fn observe(&mut self, event: Event) -> Option<(Reaction, String)> {
        self.tell_lost();
        self.record(&event)
    }

    /// Takes the time that passes without an event; what is to be done.
    pub fn tick(&mut self) -> Option<(Reaction, String)> {
        let mut wish = None;
        for finding in self.engines.tick(clock::since_boot_ns()) {
            wish = self.found(&finding).or(wish);
        }
        wish
    }

    /// The tail of the record, the summary, and the prober's last word. The sinks get a few seconds for what they still hold.
    pub fn finish(mut self) -> FromProbe {
        self.tell_lost();
        let (last, words) = self.engines.finish();
        for finding in &last {
            self.found(finding);
        }
        if let Some(words) = words {
            self.tell(&words);
        }
        let end = End { events: self.recorded + 1, lost: self.lost.clone(), findings: self.found };
        let end = self.own(What::End(Box::new(end)));
        self.record(&end);
        // For who asked for an account: a busy run forgets as it should, and a line about that at each end would be noise.
        if let Some(words) = self.engines.forgotten().filter(|_| self.summary.is_some()) {
            self.tell(&words);
        }
        let mut dropped = 0;
        for counts in self.events.finish().into_iter().chain(self.findings.finish()) {
            dropped += counts.dropped;
            if counts.dropped > 0 {
                let all = counts.written + counts.dropped;
                self.words
                    .line(&format!("apex-probe: {} of {all} lines did not get to {}", counts.dropped, counts.sink));
            }
        }
        if dropped > 0 {
            *self.lost.entry(Loss::QueueFull).or_default() += dropped;
        }
        let lesson = self.lesson.take().map(Lesson::finish);
        if let Some(Ok(words)) = &lesson {
            words.iter().for_each(|words| self.words.line(&format!("apex-probe: {words}")));
        }
        // Before the account, which comes last. Nobody is left who could be told that words were lost.
        self.words.finish();
        if let Some((summary, as_json)) = &self.summary {
            let account = summary.account();
            let text = match as_json {
                true => {
                    let text = serde_json::to_string_pretty(&account);
                    text.map_or_else(|error| error.to_string(), |text| sink::tame_json(&text) + "\n")
                }
                false => account.text(),
            };
            // A closed standard error leaves nobody to read it.
            let _ = std::io::stderr().lock().write_all(text.as_bytes());
        }
        if let Some(Err(error)) = lesson {
            return FromProbe::Failed { words: format!("{error:#}") };
        }
        FromProbe::Done { alarms: self.alarms, lost: self.lost }
    }

    /// Losses have their place among the events: before the first one that came after them.
    fn tell_lost(&mut self) {
        if !self.untold.is_empty() {
            let counts = std::mem::take(&mut self.untold);
            let lost = self.own(What::Lost { counts });
            self.record(&lost);
        }
    }

    /// An event of the watch itself.
    fn own(&self, what: What) -> Event {
        let (time_ns, sandbox) = (clock::since_boot_ns(), self.sandbox);
        Event { time_ns, sandbox, pid: 0, ppid: 0, uid: 0, comm: String::new(), what, error: None }
    }

    fn record(&mut self, event: &Event) -> Option<(Reaction, String)> {
        self.recorded += 1;
        self.events.event(event);
        if let Some((summary, _)) = &mut self.summary {
            summary.observe(event);
        }
        if let Some(lesson) = &mut self.lesson {
            lesson.observe(event);
        }
        let mut wish = None;
        for finding in self.engines.observe(event) {
            wish = self.found(&finding).or(wish);
        }
        wish
    }

    /// Tells people, without waiting for them: standard error may be full, and the sandbox may have filled it.
    fn tell(&mut self, words: &str) {
        self.words.line(&format!("apex-probe: {words}"));
    }

    /// Takes what the probes have cost, for the account.
    pub fn cost(&mut self, probes: Vec<ProbeCost>) {
        if let Some((summary, _)) = &mut self.summary {
            summary.cost(probes);
        }
    }

    fn found(&mut self, finding: &Finding) -> Option<(Reaction, String)> {
        self.found += 1;
        self.findings.finding(finding, &self.context);
        if let Some((summary, _)) = &mut self.summary {
            summary.found(finding);
        }
        self.tell(&line(finding));
        if finding.severity < Reaction::LEAST {
            return None;
        }
        self.alarms += 1;
        self.react(finding.time_ns).then(|| (self.on_finding, finding.title.clone()))
    }

    /// Whether to ask for the reaction now: once, but for a freeze, which somebody may have lifted since.
    fn react(&mut self, now_ns: u64) -> bool {
        let pause_ns = match self.on_finding {
            Reaction::Warn => return false,
            Reaction::Freeze => FREEZE_AGAIN_NS,
            Reaction::Kill | Reaction::Tighten => u64::MAX,
        };
        let is_due = self.reacted_ns.is_none_or(|last| now_ns.saturating_sub(last) >= pause_ns);
        if is_due {
            self.reacted_ns = Some(now_ns);
        }
        is_due
    }
}

/// `high: TITLE; comm (pid 12) [rule ID, T1059]`. The process chose its name.
fn line(finding: &Finding) -> String {
    let who =
        finding.ancestry.first().map(|process| format!("; {} (pid {})", escape::text(&process.comm), process.pid));
    let what = match &finding.detector {
        Detector::Rule { id, .. } => format!("rule {}", escape::text(id)),
        Detector::Baseline { score, .. } => format!("baseline, score {score:.1}"),
    };
    let techniques = finding.techniques.iter().map(|technique| format!(", {}", escape::text(technique)));
    let (severity, title) = (finding.severity.name(), escape::text(&finding.title));
    format!("{severity}: {title}{} [{what}{}]", who.unwrap_or_default(), techniques.collect::<String>())
}

/// Lets so many through in a second.
#[derive(Debug, Default)]
struct Bucket {
    second: u64,
    used: u64,
}

impl Bucket {
    fn take(&mut self, now_ns: u64) -> bool {
        let second = now_ns / 1_000_000_000;
        if second != self.second {
            *self = Bucket { second, used: 0 };
        }
        self.used += 1;
        self.used <= REFUSALS_A_SECOND
    }
}

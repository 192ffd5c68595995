//! What is done when a sandbox reaches a limit. Input: what it used at two looks, its limits, what was asked for; output: which limits it reached, and a
//! planned transition or nothing. Must not ask a sandbox: whoever looks does.
//!
//! Reached is: memory, when the kernel counted a charge that did not fit or killed for it, or when the peak came to the limit (cgroup v1 does not always count);
//! tasks, when a fork was refused; CPU, when the quota ran out in half of the periods of [`CPU_LOOKS`] looks in a row: to run out now and then is what it is for.
//! Wall time is not here: its end is the sandbox's.
//!
//! No flapping: after a kind was answered it is left alone for [`QUIET_MS`].

use serde::{Deserialize, Serialize};

use super::finding::answer;
use super::{Answer, Facts, Limits, ModeDefaults, Wish};
use crate::amount;
use crate::budget::Kind;
use crate::keep::Usage;

/// Looks in a row at which the CPU quota must have run out.
pub const CPU_LOOKS: u32 = 5;
/// How long a kind is left alone after it was answered.
pub const QUIET_MS: u64 = 60_000;
/// What throttling leaves at least, in percent of one core.
const CPU_PERCENT_MIN: u64 = 10;
/// What a sandbox without a limit of CPU is throttled from.
const CPU_PERCENT_UNLIMITED: u64 = 100;

/// What is done at a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AtLimit {
    /// It is told.
    Warn,
    /// It gets half of the CPU time that it has.
    Throttle,
    /// All processes are held.
    Freeze,
    /// The sandbox is ended.
    Terminate,
}

impl AtLimit {
    const ALL: [AtLimit; 4] = [AtLimit::Warn, AtLimit::Throttle, AtLimit::Freeze, AtLimit::Terminate];

    /// As options name it.
    pub const fn name(self) -> &'static str {
        match self {
            AtLimit::Warn => "warn",
            AtLimit::Throttle => "throttle",
            AtLimit::Freeze => "freeze",
            AtLimit::Terminate => "terminate",
        }
    }
}

/// What is done at which limit; nothing by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OnLimits {
    /// At that of memory.
    pub memory: Option<AtLimit>,
    /// At that of tasks.
    pub tasks: Option<AtLimit>,
    /// At that of CPU.
    pub cpu: Option<AtLimit>,
}

impl OnLimits {
    /// Of words such as `memory=freeze`.
    ///
    /// # Errors
    /// What is not understood, with what is.
    pub fn parse(words: &[String]) -> Result<OnLimits, String> {
        let mut on = OnLimits::default();
        for word in words {
            let (kind, action) = word.split_once('=').ok_or(format!("`{word}` has no `=`; write memory=freeze"))?;
            let found = AtLimit::ALL.into_iter().find(|at| at.name() == action);
            let action =
                found.ok_or(format!("{action:?} is no action; there are warn, throttle, freeze and terminate"))?;
            let place = match kind {
                "memory" => &mut on.memory,
                "tasks" => &mut on.tasks,
                "cpu" => &mut on.cpu,
                "time" => return Err("the wall time ends a sandbox by itself: there is nothing to choose".to_owned()),
                other => return Err(format!("{other:?} is no limit with an action; there are memory, tasks and cpu")),
            };
            if place.replace(action).is_some() {
                return Err(format!("{kind} is given twice"));
            }
        }
        Ok(on)
    }

    /// Whether anything is asked for.
    pub fn is_empty(&self) -> bool {
        *self == OnLimits::default()
    }

    const fn at(&self, kind: Kind) -> Option<AtLimit> {
        match kind {
            Kind::Memory => self.memory,
            Kind::Tasks => self.tasks,
            Kind::Cpu => self.cpu,
        }
    }
}

/// What earlier looks saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Seen {
    memory_limit_hits: u64,
    oom_kills: u64,
    memory_peak_bytes: u64,
    tasks_refused: u64,
    cpu_periods: u64,
    cpu_throttled_periods: u64,
    /// Looks in a row at which the quota had run out.
    cpu_looks: u32,
    /// Until when each kind is left alone, in the order of [`Kind::ALL`].
    quiet_until_ms: [u64; 3],
}

/// A limit that was reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Which.
    pub kind: Kind,
    /// What is asked for.
    pub action: AtLimit,
    /// In words: which limit, and how it shows.
    pub words: String,
}

impl Seen {
    /// What was reached since the look before; each kind at most once in [`QUIET_MS`].
    pub fn look(&mut self, usage: &Usage, limits: Limits, on: &OnLimits, now_ms: u64) -> Vec<Reached> {
        let found = [self.memory(usage, limits), self.tasks(usage), self.cpu(usage)];
        let mut reached = Vec::new();
        for (at, (kind, how)) in Kind::ALL.into_iter().zip(found).enumerate() {
            let (Some(how), Some(action), Some(limit)) = (how, on.at(kind), kind.of(limits)) else { continue };
            if now_ms >= self.quiet_until_ms[at] {
                self.quiet_until_ms[at] = now_ms.saturating_add(QUIET_MS);
                let limit = match kind {
                    Kind::Memory => amount::size(limit),
                    Kind::Tasks => limit.to_string(),
                    Kind::Cpu => format!("{limit}%"),
                };
                reached.push(Reached {
                    kind,
                    action,
                    words: format!("limit of {} {limit} reached: {how}", kind.name()),
                });
            }
        }
        reached
    }

    fn memory(&mut self, usage: &Usage, limits: Limits) -> Option<String> {
        let killed = grown(&mut self.oom_kills, usage.oom_kills);
        let hit = grown(&mut self.memory_limit_hits, usage.memory_limit_hits);
        let limit = limits.memory_bytes.unwrap_or(u64::MAX);
        // One from before the limit was lowered says nothing.
        let before = self.memory_peak_bytes;
        let is_new_peak = grown(&mut self.memory_peak_bytes, usage.memory_peak_bytes) > 0
            && before < limit
            && self.memory_peak_bytes >= limit;
        match (killed, hit, is_new_peak) {
            (1.., _, _) => Some(format!("the kernel killed {}", amount::count(killed, "time"))),
            (0, 1.., _) => Some(format!("memory was refused or reclaimed {}", amount::count(hit, "time"))),
            (0, 0, true) => Some("the peak came to it".to_owned()),
            (0, 0, false) => None,
        }
    }

    fn tasks(&mut self, usage: &Usage) -> Option<String> {
        let refused = grown(&mut self.tasks_refused, usage.tasks_refused);
        (refused > 0).then(|| format!("a task was refused {}", amount::count(refused, "time")))
    }

    fn cpu(&mut self, usage: &Usage) -> Option<String> {
        let periods = grown(&mut self.cpu_periods, usage.cpu_periods);
        let throttled = grown(&mut self.cpu_throttled_periods, usage.cpu_throttled_periods);
        let ran_out = periods > 0 && throttled.saturating_mul(2) >= periods;
        self.cpu_looks = if ran_out { self.cpu_looks.saturating_add(1) } else { 0 };
        (self.cpu_looks >= CPU_LOOKS)
            .then(|| format!("it ran out in {throttled} of the last {periods} periods, and so before"))
    }
}

/// How much a counter grew. What is not counted does not grow.
fn grown(before: &mut u64, now: Option<u64>) -> u64 {
    let grown = now.unwrap_or(*before).saturating_sub(*before);
    *before += grown;
    grown
}

/// What is to be done about a limit that was reached; `None` when it is only told, or in force already. Held down as after a finding: write down what follows with
/// [`Facts::after_finding`].
pub fn on_limit(
    facts: &Facts,
    reached: &Reached,
    hold_down_ms: u64,
    defaults: &dyn Fn(crate::policy::Mode) -> ModeDefaults,
    now_ms: u64,
) -> Option<Answer> {
    let wish = match reached.action {
        AtLimit::Warn => return None,
        AtLimit::Throttle => {
            let now = facts.limits.cpu_percent.unwrap_or(CPU_PERCENT_UNLIMITED);
            let half = Limits { cpu_percent: Some((now / 2).max(CPU_PERCENT_MIN)), ..Limits::default() };
            Wish::Limits(facts.limits.lowered_to(half))
        }
        AtLimit::Freeze => Wish::Freeze,
        AtLimit::Terminate => Wish::Kill,
    };
    answer(facts, &wish, &reached.words, now_ms.saturating_add(hold_down_ms), defaults, now_ms)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::control::{Shut, State};
    use crate::policy::{Mode, Network};

    const M: u64 = 1 << 20;
    const LIMITS: Limits = Limits { memory_bytes: Some(64 * M), tasks: Some(8), cpu_percent: Some(50) };

    fn all(action: AtLimit) -> OnLimits {
        OnLimits { memory: Some(action), tasks: Some(action), cpu: Some(action) }
    }

    fn words(reached: &[Reached]) -> Vec<&str> {
        reached.iter().map(|one| one.words.as_str()).collect()
    }

    #[test]
    fn words_are_actions() {
        let parse = |words: &[&str]| OnLimits::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        let on = parse(&["memory=freeze", "cpu=warn"]).expect("both are known");
        assert_eq!((on.memory, on.tasks, on.cpu), (Some(AtLimit::Freeze), None, Some(AtLimit::Warn)));
        assert!(parse(&[]).is_ok_and(|on| on.is_empty()));
        for wrong in [&["memory"][..], &["memory=stop"], &["disk=warn"], &["time=warn"], &["cpu=warn", "cpu=warn"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_the_kernel_counted_is_reached() {
        let (mut seen, on) = (Seen::default(), all(AtLimit::Warn));
        let mut usage = Usage { memory_peak_bytes: Some(10 * M), tasks_refused: Some(0), ..Usage::default() };
        assert!(seen.look(&usage, LIMITS, &on, 0).is_empty());
        usage.tasks_refused = Some(3);
        usage.memory_peak_bytes = Some(64 * M);
        assert_eq!(
            words(&seen.look(&usage, LIMITS, &on, 1)),
            [
                "limit of memory 64M reached: the peak came to it",
                "limit of tasks 8 reached: a task was refused 3 times"
            ]
        );
        usage.oom_kills = Some(1);
        assert!(seen.look(&usage, LIMITS, &on, 2).is_empty(), "it is quiet for a while");
        usage.oom_kills = Some(2);
        assert_eq!(
            words(&seen.look(&usage, LIMITS, &on, QUIET_MS + 1)),
            ["limit of memory 64M reached: the kernel killed 1 time"]
        );
    }

    #[test]
    fn a_peak_from_before_a_limit_was_lowered_says_nothing() {
        let (mut seen, on) = (Seen::default(), all(AtLimit::Warn));
        let usage = Usage { memory_peak_bytes: Some(40 * M), ..Usage::default() };
        assert!(seen.look(&usage, LIMITS, &on, 0).is_empty());
        let lowered = Limits { memory_bytes: Some(32 * M), ..LIMITS };
        assert!(seen.look(&usage, lowered, &on, 1).is_empty());
        let more = Usage { memory_peak_bytes: Some(41 * M), ..Usage::default() };
        assert!(seen.look(&more, lowered, &on, 2).is_empty());
    }

    #[test]
    fn a_quota_that_runs_out_now_and_then_is_no_matter() {
        let (mut seen, on) = (Seen::default(), all(AtLimit::Warn));
        let mut at = 0;
        let mut look = |throttled: u64, seen: &mut Seen| {
            at += 1;
            let before = seen.cpu_throttled_periods;
            let usage = Usage {
                cpu_periods: Some(10 * at),
                cpu_throttled_periods: Some(before + throttled),
                ..Usage::default()
            };
            seen.look(&usage, LIMITS, &on, at * 1000).len()
        };
        for _ in 0..10 {
            assert_eq!((look(9, &mut seen), look(1, &mut seen)), (0, 0));
        }
        let found: Vec<_> = (0..CPU_LOOKS).map(|_| look(9, &mut seen)).collect();
        assert_eq!(found, [0, 0, 0, 0, 1]);
        assert_eq!(look(9, &mut seen), 0, "once");
    }

    #[test]
    fn nothing_is_reached_that_is_not_asked_for_or_not_limited() {
        let usage = Usage { oom_kills: Some(1), tasks_refused: Some(1), ..Usage::default() };
        let only = OnLimits { tasks: Some(AtLimit::Freeze), ..OnLimits::default() };
        assert_eq!(Seen::default().look(&usage, LIMITS, &only, 0).len(), 1);
        assert!(Seen::default().look(&usage, Limits::default(), &all(AtLimit::Warn), 0).is_empty());
        assert!(Seen::default().look(&Usage::default(), LIMITS, &all(AtLimit::Warn), 0).is_empty());
    }

    fn facts() -> Facts {
        Facts {
            born: Mode::Isolation,
            mode: Mode::Isolation,
            level: crate::policy::IsolationLevel::Full,
            network_born: Network::None,
            network_cut: false,
            shut: Shut::default(),
            has_network_dial: false,
            has_reported: false,
            limits_born: LIMITS,
            limits: LIMITS,
            has_limits: true,
            frozen: false,
            tightened_by: None,
            hold_until_ms: 0,
            tightened_times: 0,
            state: State::Running,
        }
    }

    fn answered(facts: &Facts, action: AtLimit) -> Option<Answer> {
        let reached = Reached { kind: Kind::Memory, action, words: "because".to_owned() };
        let defaults = |_| ModeDefaults { limits: LIMITS, network: Network::None };
        on_limit(facts, &reached, 1000, &defaults, 5)
    }

    #[test]
    fn each_action_is_its_step() {
        use crate::control::Step;
        let steps = |facts: &Facts, action| answered(facts, action).map(|answer| answer.transition.steps);
        let running = facts();
        assert_eq!(steps(&running, AtLimit::Warn), None);
        assert_eq!(steps(&running, AtLimit::Freeze), Some(vec![Step::Freeze]));
        assert_eq!(steps(&running, AtLimit::Terminate), Some(vec![Step::Kill]));
        let half = Limits { cpu_percent: Some(25), ..LIMITS };
        assert_eq!(steps(&running, AtLimit::Throttle), Some(vec![Step::Limits { from: LIMITS, to: half }]));
        let answer = answered(&running, AtLimit::Throttle).expect("it has a step");
        let after = running.after_finding(&answer);
        assert_eq!((after.limits, after.hold_until_ms, after.tightened_by.as_deref()), (half, 1005, Some("because")));
        let least = Facts { limits: Limits { cpu_percent: Some(CPU_PERCENT_MIN), ..LIMITS }, ..facts() };
        assert_eq!(steps(&least, AtLimit::Throttle), None);
    }

    proptest! {
        /// Whatever is counted, whatever is asked for: no answer makes anything laxer, and each kind is quiet for its time.
        #[test]
        fn no_answer_relaxes(looks in proptest::collection::vec((0..9u64, 0..9u64, 0..9u64, 0..90 * M, 0..40_000u64), 1..40)) {
            let (mut seen, mut now_ms, mut usage) = (Seen::default(), 0, Usage::default());
            let mut last = [None::<u64>; 3];
            for (kills, refused, throttled, peak, pass_ms) in looks {
                now_ms += pass_ms;
                let more = |count: Option<u64>, by: u64| Some(count.unwrap_or(0) + by);
                usage.oom_kills = more(usage.oom_kills, kills);
                usage.tasks_refused = more(usage.tasks_refused, refused);
                usage.cpu_periods = more(usage.cpu_periods, 9);
                usage.cpu_throttled_periods = more(usage.cpu_throttled_periods, throttled);
                usage.memory_peak_bytes = usage.memory_peak_bytes.max(Some(peak));
                for reached in seen.look(&usage, LIMITS, &all(AtLimit::Throttle), now_ms) {
                    let place = &mut last[reached.kind as usize];
                    prop_assert!(place.is_none_or(|before| now_ms - before >= QUIET_MS));
                    *place = Some(now_ms);
                    for action in AtLimit::ALL {
                        let answer = answered(&facts(), action);
                        prop_assert!(answer.is_none_or(|answer| !answer.transition.relaxes));
                    }
                }
            }
        }
    }
}

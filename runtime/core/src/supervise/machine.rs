//! The state machine: what happened in, orders out.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{Restart, Spec};

/// What the caller is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Start this member, and tell [`Happened::Started`] or [`Happened::Ended`].
    Start(usize),
    /// End this member, and tell [`Happened::Ended`].
    Stop(usize),
}

/// What happened to a member. What does not fit to what is known of it is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// It runs.
    Started(usize),
    /// It has ended, or could not be started.
    Ended {
        /// Which.
        member: usize,
        /// Whether it ended well.
        well: bool,
    },
    /// It was found to do its work.
    Healthy(usize),
    /// It was found not to, so often that it counts as failed.
    Unhealthy(usize),
}

/// What is found of a member by a caller that was away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It runs.
    Living,
    /// The one that was last started has ended.
    Ended {
        /// Whether it ended well.
        well: bool,
    },
    /// It was not started since the last order to.
    Nothing,
}

/// Where a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It is to run: when its time has come, and what it is after runs.
    Waiting,
    /// It was ordered to start.
    Starting,
    /// It runs.
    Running,
    /// It was ordered to stop.
    Stopping,
    /// It has ended for good, well.
    Done,
    /// It has ended for good, otherwise than well.
    Failed,
    /// It was ended for good, with the group or on behalf of another.
    Stopped,
}

impl Phase {
    /// The name in output.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Waiting => "waiting",
            Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::Stopping => "stopping",
            Phase::Done => "done",
            Phase::Failed => "failed",
            Phase::Stopped => "stopped",
        }
    }

    /// Whether there is something of it that could run.
    pub const fn is_live(self) -> bool {
        matches!(self, Phase::Starting | Phase::Running | Phase::Stopping)
    }

    const fn is_over(self) -> bool {
        matches!(self, Phase::Done | Phase::Failed | Phase::Stopped)
    }
}

/// Where a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Its members are kept running.
    Up,
    /// It was told to end.
    Down,
    /// Its members failed more often than it bears. Nothing brings it back but somebody who asks.
    Failed {
        /// Whose failure was one too many.
        member: usize,
    },
}

/// What is known of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    phase: Phase,
    /// It is ended as soon as nobody who depends on it is left.
    doomed: bool,
    /// It is doomed for its own failing.
    unhealthy: bool,
    /// It does its work, as far as it is looked at.
    ready: bool,
    since_ms: u64,
    /// Before this it is not started.
    due_ms: u64,
    /// In a row.
    failures: u32,
    restarts: u32,
}

/// A group that is supervised. It can be stored at any time, and goes on with [`Machine::resume`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    spec: Spec,
    status: Status,
    /// When there were restarts, oldest first; no more than the intensity bears.
    restarts: VecDeque<u64>,
    places: Vec<Place>,
}

impl Machine {
    /// Nothing runs yet: [`Machine::orders`] says what is to be started.
    pub fn new(spec: Spec) -> Machine {
        let place = Place {
            phase: Phase::Waiting,
            doomed: false,
            unhealthy: false,
            ready: false,
            since_ms: 0,
            due_ms: 0,
            failures: 0,
            restarts: 0,
        };
        let places = vec![place; spec.members.len()];
        Machine { spec, status: Status::Up, restarts: VecDeque::new(), places }
    }

    /// What it supervises.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Where the group is.
    pub fn status(&self) -> Status {
        self.status
    }

    /// Where a member is.
    pub fn phase(&self, member: usize) -> Phase {
        self.places[member].phase
    }

    /// How often a member was to be started anew.
    pub fn restarts(&self, member: usize) -> u32 {
        self.places[member].restarts
    }

    /// When a member that waits is due.
    pub fn due_ms(&self, member: usize) -> Option<u64> {
        let place = &self.places[member];
        (place.phase == Phase::Waiting && place.due_ms > 0).then_some(place.due_ms)
    }

    /// Whether nothing runs, and nothing will by itself.
    pub fn is_over(&self) -> bool {
        (0..self.places.len()).all(|member| self.phase(member).is_over() || !self.may_come(member))
    }

    /// Whether a member lives or could come to: what it is after could as well.
    fn may_come(&self, member: usize) -> bool {
        let phase = self.phase(member);
        phase.is_live()
            || (phase == Phase::Waiting && self.spec.members[member].after.iter().all(|on| self.may_come(*on)))
    }

    /// When there is something to be done if nothing happens until then.
    pub fn next_ms(&self, now_ms: u64) -> Option<u64> {
        let due = self.places.iter().filter(|place| place.phase == Phase::Waiting && place.due_ms > now_ms);
        due.map(|place| place.due_ms).min().filter(|_| self.status == Status::Up)
    }

    /// Takes in what happened. `jitter` in thousandths.
    pub fn take(&mut self, happened: Happened, now_ms: u64, jitter: u16) {
        match happened {
            Happened::Started(member) => {
                let place = &mut self.places[member];
                if place.phase == Phase::Starting {
                    (place.phase, place.since_ms) = (Phase::Running, now_ms);
                    place.ready = !self.spec.members[member].is_probed;
                }
            }
            Happened::Healthy(member) => {
                let place = &mut self.places[member];
                place.ready |= place.phase == Phase::Running;
            }
            Happened::Unhealthy(member) => {
                let place = &mut self.places[member];
                if place.phase == Phase::Running && !place.doomed {
                    place.unhealthy = true;
                    self.fail(member, now_ms, jitter);
                }
            }
            Happened::Ended { member, well } => self.ended(member, well, now_ms, jitter),
        }
    }

    /// Ends the group.
    pub fn end(&mut self) {
        self.status = Status::Down;
        self.doom_all();
    }

    /// What is found of a member after an absence, instead of what happened meanwhile.
    pub fn resume(&mut self, member: usize, found: Found, now_ms: u64, jitter: u16) {
        let phase = self.phase(member);
        match found {
            Found::Living => {
                if phase == Phase::Starting {
                    self.take(Happened::Started(member), now_ms, jitter);
                } else if phase != Phase::Running {
                    // Ordered to stop, or not to be there at all.
                    (self.places[member].phase, self.places[member].doomed) = (Phase::Running, true);
                }
            }
            Found::Nothing if phase == Phase::Starting => {
                let is_up = self.status == Status::Up && !self.places[member].doomed;
                self.places[member].phase = if is_up { Phase::Waiting } else { self.phase_when_stopped(member) };
                self.places[member].doomed = false;
            }
            Found::Nothing => self.ended(member, false, now_ms, jitter),
            Found::Ended { well } => self.ended(member, well, now_ms, jitter),
        }
    }

    /// What is to be done now: those that are to end, last ones first, then those that are to start, first ones first.
    pub fn orders(&mut self, now_ms: u64) -> Vec<Order> {
        let mut orders = Vec::new();
        for member in (0..self.places.len()).rev() {
            let place = &self.places[member];
            // What is being started is ended when it stands.
            if place.doomed && place.phase == Phase::Running && !self.has_live(&self.spec.dependents(member)) {
                (self.places[member].phase, self.places[member].doomed) = (Phase::Stopping, false);
                orders.push(Order::Stop(member));
            }
        }
        for member in 0..self.places.len() {
            // A clock that was set back must not let anything wait for longer than it would have.
            let latest = now_ms.saturating_add(self.spec.back_off.max_ms);
            self.places[member].due_ms = self.places[member].due_ms.min(latest);
            if self.is_to_start(member, now_ms) {
                let place = &mut self.places[member];
                (place.phase, place.ready, place.unhealthy) = (Phase::Starting, false, false);
                orders.push(Order::Start(member));
            }
        }
        orders
    }

    fn is_to_start(&self, member: usize, now_ms: u64) -> bool {
        let place = &self.places[member];
        let runs = |on: &usize| {
            let on = &self.places[*on];
            on.phase == Phase::Running && on.ready && !on.doomed
        };
        // Whom it takes along when it fails must be gone before it comes back.
        let leaves = |(other, is_affected): (usize, bool)| {
            let other = &self.places[other];
            is_affected && (other.doomed || other.phase == Phase::Stopping)
        };
        self.status == Status::Up
            && place.phase == Phase::Waiting
            && place.due_ms <= now_ms
            && self.spec.members[member].after.iter().all(runs)
            && !self.spec.affected(member).into_iter().enumerate().any(leaves)
    }

    fn has_live(&self, members: &[bool]) -> bool {
        members.iter().zip(&self.places).any(|(is_meant, place)| *is_meant && place.phase.is_live())
    }

    fn phase_when_stopped(&self, member: usize) -> Phase {
        let goes_on = self.status == Status::Up && self.spec.members[member].restart != Restart::Never;
        match (goes_on, self.places[member].unhealthy) {
            (true, _) => Phase::Waiting,
            (false, true) => Phase::Failed,
            (false, false) => Phase::Stopped,
        }
    }

    fn ended(&mut self, member: usize, well: bool, now_ms: u64, jitter: u16) {
        let place = self.places[member];
        if !place.phase.is_live() {
            return;
        }
        // Ordered to, or about to be: it counts as the failure that it was ordered for.
        if place.phase == Phase::Stopping || place.doomed {
            self.places[member].phase = self.phase_when_stopped(member);
            self.places[member].doomed = false;
            return;
        }
        let is_to_return = match self.spec.members[member].restart {
            Restart::Never => false,
            Restart::OnFailure => !well,
            Restart::Always => true,
        };
        if is_to_return {
            self.places[member].phase = Phase::Waiting;
            self.fail(member, now_ms, jitter);
        } else {
            self.places[member].phase = if well { Phase::Done } else { Phase::Failed };
            self.doom(&self.spec.dependents(member), 0);
        }
    }

    /// A failure: answered by restarts, if the member has any and it is not one too many.
    fn fail(&mut self, member: usize, now_ms: u64, jitter: u16) {
        if self.spec.members[member].restart == Restart::Never {
            let mut affected = self.spec.dependents(member);
            affected[member] = true;
            return self.doom(&affected, 0);
        }
        let intensity = self.spec.intensity;
        // By the distance: a clock that was set back makes those from a time to come count, or be forgotten, as soon as others would be.
        self.restarts.retain(|then| now_ms.abs_diff(*then) < intensity.within_ms);
        if self.restarts.len() >= intensity.restarts as usize {
            self.status = Status::Failed { member };
            self.doom_all();
            if !self.phase(member).is_live() {
                self.places[member].phase = Phase::Failed;
            }
            return;
        }
        self.restarts.push_back(now_ms);
        let place = &mut self.places[member];
        let has_lasted = place.since_ms > 0 && now_ms.saturating_sub(place.since_ms) > self.spec.back_off.max_ms;
        place.failures = if has_lasted { 1 } else { place.failures.saturating_add(1) };
        place.since_ms = 0;
        let due_ms = now_ms.saturating_add(self.spec.back_off.delay_ms(place.failures, jitter));
        if !place.phase.is_live() {
            place.due_ms = due_ms;
            place.restarts = place.restarts.saturating_add(1);
        }
        self.doom(&self.spec.affected(member), due_ms);
    }

    /// Those that live are to end; those that are to return do so at this time.
    fn doom(&mut self, members: &[bool], due_ms: u64) {
        for (member, is_meant) in members.iter().enumerate() {
            let never = self.spec.members[member].restart == Restart::Never;
            let place = &mut self.places[member];
            if !is_meant || place.phase.is_over() {
                continue;
            }
            place.due_ms = place.due_ms.max(due_ms);
            if matches!(place.phase, Phase::Starting | Phase::Running) && !place.doomed {
                place.doomed = true;
                if due_ms > 0 && !never {
                    place.restarts = place.restarts.saturating_add(1);
                }
            }
        }
    }

    fn doom_all(&mut self) {
        for place in &mut self.places {
            match place.phase {
                Phase::Starting | Phase::Running => place.doomed = true,
                Phase::Waiting => place.phase = Phase::Stopped,
                Phase::Stopping | Phase::Done | Phase::Failed | Phase::Stopped => {}
            }
        }
    }
}

//! Services of the daemon under [`apex_core::supervise`]: the machine decides, this starts and aborts tasks.
//!
//! A service is a future that is made anew for each start. One that is stopped is dropped at its next wait, so whatever must be done to its end is not done in it.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use apex_api::v1::ServiceState;
use apex_core::amount;
use apex_core::supervise::{
    BackOff, Draft, Happened, Intensity, Machine, Order, Phase, Restart, Spec, Status, Strategy,
};
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::Instant;

use crate::clock::jitter;
use crate::say::{self, Level};

/// The work of a service, begun.
pub type Work = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// A service.
pub struct Service {
    pub name: &'static str,
    pub restart: Restart,
    pub after: &'static [&'static str],
    /// What is said of it while it runs.
    pub words: String,
    pub begin: Box<dyn Fn() -> Work + Send + Sync>,
}

impl Service {
    /// One that is started anew when it fails.
    pub fn new<F>(name: &'static str, begin: impl Fn() -> F + Send + Sync + 'static) -> Service
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let begin = Box::new(move || -> Work { Box::pin(begin()) });
        Service { name, restart: Restart::OnFailure, after: &[], words: String::new(), begin }
    }
}

/// How a crew is supervised.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// What it is part of; empty for the daemon itself.
    pub under: &'static str,
    pub strategy: Strategy,
    pub intensity: Intensity,
    pub back_off: BackOff,
}

/// What is known of the services.
#[derive(Default)]
pub struct Services(Mutex<BTreeMap<&'static str, ServiceState>>);

impl Services {
    fn note(&self, name: &'static str, state: ServiceState) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, state);
    }

    /// All of them.
    pub fn states(&self) -> Vec<ServiceState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// Keeps services running; returns when all have ended, or one more often than is borne.
pub async fn supervise(known: Arc<Services>, rules: Rules, services: Vec<Service>) -> Result<()> {
    let draft = |service: &Service| Draft {
        name: service.name.to_owned(),
        restart: service.restart,
        after: service.after.iter().map(|on| (*on).to_owned()).collect(),
        is_probed: false,
    };
    let drafts: Vec<Draft> = services.iter().map(draft).collect();
    let spec = Spec::new(rules.strategy, rules.intensity, rules.back_off, &drafts).context("the daemon's services")?;
    let in_order =
        spec.members.iter().filter_map(|member| services.iter().position(|service| service.name == member.name));
    let order: Vec<usize> = in_order.collect();
    let errors = services.iter().map(|_| None).collect();
    let crew = Crew {
        known,
        rules,
        machine: Machine::new(spec),
        services,
        order,
        tasks: JoinSet::new(),
        running: HashMap::new(),
        errors,
        began: Instant::now(),
    };
    crew.live().await
}

struct Crew {
    known: Arc<Services>,
    rules: Rules,
    machine: Machine,
    services: Vec<Service>,
    /// The service of each member of the machine.
    order: Vec<usize>,
    tasks: JoinSet<Result<()>>,
    running: HashMap<Id, (usize, AbortHandle)>,
    /// What a member last failed of.
    errors: Vec<Option<String>>,
    began: Instant,
}

impl Crew {
    async fn live(mut self) -> Result<()> {
        loop {
            self.follow_orders();
            self.tell();
            if self.machine.is_over() {
                return self.outcome();
            }
            let now_ms = self.now_ms();
            let wait = self.machine.next_ms(now_ms).map(|next_ms| Duration::from_millis(next_ms - now_ms));
            tokio::select! {
                Some(joined) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.ended(joined),
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
                // Neither something that runs nor something that is to come: then it is over.
                else => {}
            }
        }
    }

    /// From 1, by a clock that nobody sets.
    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    fn service(&self, member: usize) -> &Service {
        &self.services[self.order[member]]
    }

    fn follow_orders(&mut self) {
        loop {
            let now_ms = self.now_ms();
            let orders = self.machine.orders(now_ms);
            if orders.is_empty() {
                return;
            }
            for order in orders {
                match order {
                    Order::Start(member) => {
                        let work = (self.service(member).begin)();
                        let handle = self.tasks.spawn(work);
                        self.running.insert(handle.id(), (member, handle));
                        self.machine.take(Happened::Started(member), now_ms, 0);
                    }
                    Order::Stop(stopped) => {
                        self.running
                            .values()
                            .filter(|(member, _)| *member == stopped)
                            .for_each(|(_, handle)| handle.abort());
                    }
                }
            }
        }
    }

    fn ended(&mut self, joined: Result<(Id, Result<()>), tokio::task::JoinError>) {
        let (id, outcome) = match joined {
            Ok((id, outcome)) => (id, outcome),
            Err(error) if error.is_cancelled() => (error.id(), Err(anyhow!("it was stopped"))),
            Err(error) => (error.id(), Err(anyhow!("it broke off: {error}"))),
        };
        let Some((member, _)) = self.running.remove(&id) else { return };
        if let Err(error) = &outcome
            && self.machine.phase(member) == Phase::Running
        {
            say::line(Level::Error, "service", None, format_args!("service {}: {error:#}", self.service(member).name));
            self.errors[member] = Some(format!("{error:#}"));
        }
        self.machine.take(Happened::Ended { member, well: outcome.is_ok() }, self.now_ms(), jitter());
    }

    fn tell(&self) {
        for member in 0..self.order.len() {
            let service = self.service(member);
            let is_one_too_many =
                matches!(self.machine.status(), Status::Failed { member: failed } if failed == member);
            let (state, words) = match self.machine.phase(member) {
                _ if is_one_too_many => ("failed", self.errors[member].clone()),
                Phase::Starting | Phase::Running => ("running", Some(service.words.clone())),
                Phase::Waiting | Phase::Stopping => ("restarting", self.errors[member].clone()),
                Phase::Failed => ("failed", self.errors[member].clone()),
                Phase::Done | Phase::Stopped => ("ended", None),
            };
            let state = ServiceState {
                name: service.name.to_owned(),
                state: state.to_owned(),
                restarts: self.machine.restarts(member),
                words: words.unwrap_or_default(),
                under: self.rules.under.to_owned(),
                strategy: self.rules.strategy.name().to_owned(),
            };
            self.known.note(service.name, state);
        }
    }

    /// Once it is over.
    fn outcome(&self) -> Result<()> {
        let error = |member: usize| anyhow!("{}", self.errors[member].clone().unwrap_or_default());
        if let Status::Failed { member } = self.machine.status() {
            let (intensity, name) = (self.rules.intensity, self.service(member).name);
            let words = format!(
                "service {name} ended and more than {} restarts within {} are not borne",
                intensity.restarts,
                amount::duration(intensity.within_ms)
            );
            return Err(error(member)).context(words);
        }
        match (0..self.order.len()).find(|member| self.machine.phase(*member) == Phase::Failed) {
            Some(member) => Err(error(member)).with_context(|| format!("service {}", self.service(member).name)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const RULES: Rules = Rules {
        under: "",
        strategy: Strategy::RestForOne,
        intensity: Intensity { restarts: 2, within_ms: 60_000 },
        back_off: BackOff { first_ms: 1, max_ms: 2 },
    };

    /// A service that counts its beginnings and fails so often; then it ends well, if it is to, or stays.
    fn counted(name: &'static str, count: &Arc<AtomicU32>, failures: u32, ends: bool) -> Service {
        let count = Arc::clone(count);
        Service::new(name, move || {
            let begun = count.fetch_add(1, Ordering::SeqCst);
            async move {
                if begun < failures {
                    // So that those behind it are there.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    anyhow::bail!("number {begun}");
                }
                if !ends {
                    std::future::pending::<()>().await;
                }
                Ok(())
            }
        })
    }

    fn counters() -> [Arc<AtomicU32>; 3] {
        Default::default()
    }

    fn read(counts: &[Arc<AtomicU32>; 3]) -> [u32; 3] {
        counts.each_ref().map(|count| count.load(Ordering::SeqCst))
    }

    #[tokio::test]
    async fn a_service_that_fails_takes_along_those_behind_it() {
        let counts = counters();
        let known = Arc::new(Services::default());
        let [a, b, c] = &counts;
        let crew = vec![counted("a", a, 0, false), counted("b", b, 1, false), counted("c", c, 0, false)];
        let task = tokio::spawn(supervise(Arc::clone(&known), RULES, crew));
        for _ in 0..500 {
            if read(&counts) == [1, 2, 2] && known.states().iter().all(|state| state.state == "running") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(read(&counts), [1, 2, 2]);
        let restarts: Vec<u32> = known.states().iter().map(|state| state.restarts).collect();
        assert_eq!(restarts, [0, 1, 1]);
        assert!(known.states().iter().all(|state| state.strategy == "rest-for-one"));
        task.abort();
    }

    #[tokio::test]
    async fn one_failure_too_many_ends_the_crew_with_its_words() {
        let counts = counters();
        let known = Arc::new(Services::default());
        let [a, b, _] = &counts;
        let crew = vec![counted("a", a, 0, false), counted("b", b, 99, false)];
        let error = supervise(Arc::clone(&known), RULES, crew).await.expect_err("it fails");
        let words = format!("{error:#}");
        assert!(
            words.contains("service b ended and more than 2 restarts within 1m") && words.contains("number 2"),
            "{words}"
        );
        assert_eq!(read(&counts), [1, 3, 0]);
        let states: Vec<String> = known.states().into_iter().map(|state| state.state).collect();
        assert_eq!(states, ["ended", "failed"]);
    }

    #[tokio::test]
    async fn the_end_of_what_cannot_be_had_again_is_the_end_of_all() {
        let counts = counters();
        let [a, b, c] = &counts;
        let mut crew = vec![counted("a", a, 1, false), counted("b", b, 0, false)];
        crew[0].restart = Restart::Never;
        crew[1].after = &["a"];
        let error = supervise(Arc::default(), RULES, crew).await.expect_err("it fails");
        assert_eq!(format!("{error:#}"), "service a: number 0");
        assert_eq!(read(&counts), [1, 1, 0]);
        supervise(Arc::default(), RULES, vec![counted("c", c, 0, true)]).await.expect("it ended well");
    }

    #[tokio::test]
    async fn a_service_that_panics_is_started_anew() {
        let count = Arc::new(AtomicU32::new(0));
        let begun = Arc::clone(&count);
        let service = Service::new("a", move || {
            let number = begun.fetch_add(1, Ordering::SeqCst);
            async move {
                assert!(number > 0, "as the test wants it");
                Ok(())
            }
        });
        supervise(Arc::default(), RULES, vec![service]).await.expect("the second one ends well");
        assert_eq!(count.load(Ordering::SeqCst), 2);
    }
}

use std::collections::BTreeSet;

use proptest::prelude::{
    Just, ProptestConfig, TestCaseError, any, prop, prop_assert, prop_assert_eq, prop_assume, prop_oneof, proptest,
};
use proptest::strategy::Strategy as _;

use super::*;

fn draft(name: &str, restart: Restart, after: &[&str]) -> Draft {
    Draft { name: name.to_owned(), restart, after: after.iter().map(|on| (*on).to_owned()).collect(), is_probed: false }
}

fn spec(strategy: Strategy, restarts: u32, drafts: &[Draft]) -> Spec {
    let (intensity, back_off) = (Intensity { restarts, within_ms: 10_000 }, BackOff { first_ms: 100, max_ms: 1_000 });
    Spec::new(strategy, intensity, back_off, drafts).unwrap()
}

/// Members as they really are, doing at once what is ordered.
struct World {
    machine: Machine,
    now_ms: u64,
    lives: Vec<bool>,
    /// Everything that was ordered, in order.
    orders: Vec<Order>,
}

impl World {
    fn new(spec: Spec) -> World {
        let lives = vec![false; spec.members.len()];
        World { machine: Machine::new(spec), now_ms: 1_000_000, lives, orders: Vec::new() }
    }

    /// Carries out what is ordered until there is nothing left, then waits for what is due.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let orders = self.machine.orders(self.now_ms);
            if orders.is_empty() {
                match self.machine.next_ms(self.now_ms) {
                    Some(next_ms) => self.now_ms = next_ms,
                    None => return,
                }
            }
            for order in orders {
                self.carry_out(order);
            }
        }
        panic!("it never comes to rest: {:?}", self.machine);
    }

    fn carry_out(&mut self, order: Order) {
        self.orders.push(order);
        match order {
            Order::Start(member) => {
                self.check_start(member);
                self.lives[member] = true;
                self.machine.take(Happened::Started(member), self.now_ms, 0);
                self.machine.take(Happened::Healthy(member), self.now_ms, 0);
            }
            Order::Stop(member) => self.end(member, false),
        }
    }

    fn check_start(&self, member: usize) {
        assert!(!self.lives[member], "{member} is started and lives");
        let spec = self.machine.spec();
        let lives = spec.members[member].after.iter().all(|on| self.lives[*on]);
        assert!(lives, "{member} is started without what it is after: {:?}", self.machine);
    }

    fn end(&mut self, member: usize, well: bool) {
        self.lives[member] = false;
        self.machine.take(Happened::Ended { member, well }, self.now_ms, 0);
    }

    fn started(&self) -> Vec<usize> {
        self.orders
            .iter()
            .filter_map(|order| if let Order::Start(member) = order { Some(*member) } else { None })
            .collect()
    }

    fn stopped(&self) -> Vec<usize> {
        self.orders
            .iter()
            .filter_map(|order| if let Order::Stop(member) = order { Some(*member) } else { None })
            .collect()
    }
}

/// A member fails in a group that runs; these are stopped, and these are started, in this order.
#[track_caller]
fn check(strategy: Strategy, drafts: &[Draft], failing: usize, stopped: &[usize], started: &[usize]) {
    let mut world = World::new(spec(strategy, 5, drafts));
    world.settle();
    world.orders.clear();
    world.end(failing, false);
    world.settle();
    assert_eq!((world.stopped(), world.started()), (stopped.to_vec(), started.to_vec()));
}

fn three() -> [Draft; 3] {
    [draft("a", Restart::Always, &[]), draft("b", Restart::Always, &[]), draft("c", Restart::Always, &[])]
}

#[test]
fn each_strategy_takes_along_whom_it_names() {
    check(Strategy::OneForOne, &three(), 1, &[], &[1]);
    check(Strategy::RestForOne, &three(), 1, &[2], &[1, 2]);
    check(Strategy::RestForOne, &three(), 2, &[], &[2]);
    check(Strategy::OneForAll, &three(), 1, &[2, 0], &[0, 1, 2]);
}

#[test]
fn who_depends_goes_along_whatever_the_strategy() {
    let chain = [
        draft("db", Restart::Always, &[]),
        draft("other", Restart::Always, &[]),
        draft("web", Restart::Always, &["db"]),
        draft("log", Restart::Always, &["web"]),
    ];
    check(Strategy::OneForOne, &chain, 0, &[3, 2], &[0, 2, 3]);
    check(Strategy::OneForOne, &chain, 2, &[3], &[2, 3]);
    check(Strategy::OneForOne, &chain, 1, &[], &[1]);
}

#[test]
fn never_is_never() {
    let drafts =
        [draft("a", Restart::Always, &[]), draft("b", Restart::Never, &[]), draft("c", Restart::Always, &["b"])];
    check(Strategy::OneForAll, &drafts, 0, &[2, 1], &[0]);
    check(Strategy::OneForOne, &drafts, 1, &[2], &[]);
    let mut world = World::new(spec(Strategy::OneForOne, 5, &drafts));
    world.settle();
    world.end(1, true);
    world.settle();
    assert_eq!((world.machine.phase(1), world.machine.phase(2)), (Phase::Done, Phase::Waiting));
    assert!(!world.machine.is_over(), "another one runs");
    world.machine.end();
    world.settle();
    assert!(world.machine.is_over());
}

#[test]
fn an_end_that_was_well_is_no_failure_to_who_restarts_on_failure() {
    for (well, started) in [(true, vec![]), (false, vec![0])] {
        let mut world = World::new(spec(Strategy::OneForOne, 5, &[draft("a", Restart::OnFailure, &[])]));
        world.settle();
        world.orders.clear();
        world.end(0, well);
        world.settle();
        assert_eq!(world.started(), started);
        assert_eq!(world.machine.is_over(), well);
    }
}

#[test]
fn back_off_doubles_to_its_bound_and_begins_anew_after_a_good_time() {
    let back_off = BackOff { first_ms: 100, max_ms: 1_000 };
    let delays: Vec<u64> = [1, 2, 3, 4, 5, 99, u32::MAX].into_iter().map(|n| back_off.delay_ms(n, 0)).collect();
    assert_eq!(delays, [100, 200, 400, 800, 1_000, 1_000, 1_000]);
    assert_eq!((back_off.delay_ms(1, 1000), back_off.delay_ms(1, 500), back_off.delay_ms(1, u16::MAX)), (50, 75, 50));
    let mut world = World::new(spec(Strategy::OneForOne, 5, &three()));
    world.settle();
    let delay = |world: &mut World, lasted_ms: u64| {
        world.now_ms += lasted_ms;
        let before = world.now_ms;
        world.end(0, false);
        world.settle();
        world.now_ms - before
    };
    assert_eq!((delay(&mut world, 0), delay(&mut world, 0), delay(&mut world, 5_000)), (100, 200, 100));
}

#[test]
fn one_restart_too_many_fails_the_group_for_good() {
    let mut world = World::new(spec(Strategy::OneForOne, 2, &three()));
    world.settle();
    for _ in 0..2 {
        world.end(1, false);
        world.settle();
    }
    assert_eq!((world.machine.status(), world.machine.restarts(1)), (Status::Up, 2));
    world.orders.clear();
    world.end(1, false);
    world.settle();
    assert_eq!(world.machine.status(), Status::Failed { member: 1 });
    assert_eq!((world.stopped(), world.started()), (vec![2, 0], vec![]));
    assert_eq!(world.machine.phase(1), Phase::Failed);
    world.now_ms += 1_000_000;
    world.settle();
    assert!(world.started().is_empty() && world.machine.is_over());
}

#[test]
fn failures_that_are_long_ago_do_not_count() {
    let mut world = World::new(spec(Strategy::OneForOne, 2, &three()));
    for _ in 0..20 {
        world.settle();
        world.end(1, false);
        world.now_ms += 6_000;
    }
    assert_eq!(world.machine.status(), Status::Up);
}

#[test]
fn who_is_not_healthy_is_not_there_and_one_that_falls_ill_is_started_anew() {
    let mut drafts = three();
    drafts[0].is_probed = true;
    drafts[1].after = vec!["a".to_owned()];
    let mut machine = Machine::new(spec(Strategy::OneForOne, 5, &drafts));
    assert_eq!(machine.orders(1), [Order::Start(0), Order::Start(2)]);
    machine.take(Happened::Started(0), 1, 0);
    machine.take(Happened::Started(2), 1, 0);
    assert_eq!(machine.orders(1), [], "b waits for the health of a");
    machine.take(Happened::Healthy(0), 2, 0);
    assert_eq!(machine.orders(2), [Order::Start(1)]);
    machine.take(Happened::Started(1), 2, 0);
    machine.take(Happened::Unhealthy(0), 3, 0);
    assert_eq!(machine.orders(3), [Order::Stop(1)], "who depends on it goes first");
    machine.take(Happened::Ended { member: 1, well: false }, 4, 0);
    assert_eq!(machine.orders(4), [Order::Stop(0)]);
    machine.take(Happened::Ended { member: 0, well: true }, 5, 0);
    assert_eq!((machine.orders(5), machine.next_ms(5)), (vec![], Some(103)));
    assert_eq!(machine.orders(103), [Order::Start(0)]);
    assert_eq!((machine.restarts(0), machine.restarts(1), machine.restarts(2)), (1, 1, 0));
}

#[test]
fn a_clock_that_is_set_back_delays_nothing_for_long() {
    let mut world = World::new(spec(Strategy::OneForOne, 5, &three()));
    world.settle();
    world.end(0, false);
    world.now_ms = 5_000;
    world.machine.orders(world.now_ms);
    assert!(world.machine.next_ms(world.now_ms).is_some_and(|due| due <= 6_000));
    world.settle();
    assert!(world.lives[0]);
}

#[test]
fn members_stand_behind_what_they_need_else_as_they_were_given() {
    let drafts =
        [draft("c", Restart::Always, &["b"]), draft("a", Restart::Always, &[]), draft("b", Restart::Always, &["a"])];
    let spec = spec(Strategy::OneForOne, 5, &drafts);
    let names: Vec<_> = spec.members.iter().map(|member| member.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!((spec.members[1].after.clone(), spec.members[2].after.clone()), (vec![0], vec![1]));
}

#[test]
fn what_is_no_group_is_refused_in_words() {
    let refused = |drafts: &[Draft]| {
        let made = Spec::new(Strategy::OneForOne, Intensity::default(), BackOff::default(), drafts);
        made.expect_err("it is refused").to_string()
    };
    let one = |name: &str, after: &[&str]| draft(name, Restart::Always, after);
    assert!(refused(&[]).contains("1 to 64"));
    assert!(refused(&[one("a b", &[])]).contains("no name of a member"));
    assert!(refused(&[one("-a", &[])]).contains("the first no dash"));
    assert!(refused(&[one("a", &[]), one("a", &[])]).contains("rename one"));
    assert!(refused(&[one("web", &["dbb"]), one("db", &[])]).contains("did you mean \"db\""));
    let circle = refused(&[one("x", &["a"]), one("a", &["b"]), one("b", &["a"])]);
    assert!(circle.contains("a -> b -> a"), "{circle}");
    assert!(refused(&[one("a", &["a"])]).contains("a -> a"));
    let numbers = Spec::new(Strategy::OneForOne, Intensity::default(), BackOff { first_ms: 9, max_ms: 8 }, &three());
    assert!(numbers.unwrap_err().to_string().contains("at least the first one, 9"));
}

#[test]
fn a_file_says_what_the_api_takes() {
    let text = r#"
[group]
name = "shop"
strategy = "rest-for-one"
intensity = { restarts = 3, within = "30s" }
back_off = { first = "50ms" }

[[member]]
name = "db"
command = ["/usr/bin/redis-server"]
mode = "hybrid"
stop_within = "5s"
env = { A = "b" }
limits = { memory = "256M", tasks = 32 }

[[member]]
name = "web"
command = ["/bin/web", "--port", "80"]
after = ["db"]
restart = "on-failure"
"#;
    let group = read(text, "g.toml").unwrap();
    assert_eq!((group.name.as_str(), group.strategy), ("shop", Strategy::RestForOne));
    assert_eq!(group.intensity, Intensity { restarts: 3, within_ms: 30_000 });
    assert_eq!(group.back_off, BackOff { first_ms: 50, max_ms: 30_000 });
    let db = &group.members[0];
    assert_eq!((db.mode.as_str(), db.stop_within.0, db.limits.tasks.0.as_str()), ("hybrid", Some(5_000), "32"));
    assert_eq!((group.members[1].restart, group.members[1].after.clone()), (Restart::OnFailure, vec!["db".to_owned()]));
}

#[test]
fn a_wrong_file_is_refused_with_its_line() {
    #[track_caller]
    fn check(text: &str, words: &[&str]) {
        let error = read(text, "g.toml").expect_err("it is refused").to_string();
        for word in words {
            assert!(error.contains(word), "{error}");
        }
    }
    let member = "[[member]]\nname = \"a\"\ncommand = [\"/bin/true\"]\n";
    check(member, &["g.toml:1", "`[group]` is missing"]);
    check("[group]\n", &["g.toml:1", "`name` is missing"]);
    check("[group]\nname = \"g\"\nstrategie = \"one-for-one\"\n", &["g.toml:3", "did you mean `strategy`"]);
    check("[group]\nname = \"g\"\nstrategy = \"one-for-al\"\n", &["g.toml:3", "did you mean `one-for-all`"]);
    check(&format!("[group]\nname = \"g\"\n{member}commnd = []\n"), &["g.toml:6", "did you mean `command`"]);
    check(&format!("[group]\nname = \"g\"\n{member}after = [\"b\"]\n"), &["g.toml:3", "no member"]);
    check(&format!("[group]\nname = \"g\"\n{member}{member}"), &["g.toml:6", "two members"]);
    check("[group]\nname = \"g\"\n[[member]]\nname = \"a\"\n", &["g.toml:3", "`command` is missing"]);
    check(
        &format!("[group]\nname = \"g\"\nback_off = {{ max = \"unlimited\" }}\n{member}"),
        &["g.toml:3", "no time here"],
    );
    check(&format!("[group]\nname = \"g\"\nintensity = {{ within = 30 }}\n{member}"), &["g.toml:3", "with its unit"]);
    check("[group]\nname = \"g\"\n", &["g.toml:1", "1 to 64"]);
    check(&format!("[group]\nname = \"a/b\"\n{member}"), &["g.toml:1", "no name of a group"]);
}

fn some_spec() -> impl proptest::strategy::Strategy<Value = Spec> {
    let members = prop::collection::vec(
        (prop::sample::select(Restart::ALL.to_vec()), prop::collection::vec(any::<prop::sample::Index>(), 0..3)),
        1..7,
    );
    (prop::sample::select(Strategy::ALL.to_vec()), members, 0_u32..6).prop_map(|(strategy, members, restarts)| {
        let name = |at: usize| format!("m{at}");
        let drafts: Vec<Draft> = members
            .iter()
            .enumerate()
            .map(|(at, (restart, after))| {
                let after = if at == 0 { Vec::new() } else { after.iter().map(|on| name(on.index(at))).collect() };
                Draft { name: name(at), restart: *restart, after, is_probed: false }
            })
            .collect();
        spec(strategy, restarts, &drafts)
    })
}

/// What a world does next.
#[derive(Clone, Debug)]
enum Move {
    /// One of the orders that wait is carried out.
    Obey(prop::sample::Index),
    /// Something that was to be stopped is gone.
    Gone(prop::sample::Index),
    Ends(prop::sample::Index, bool),
    Ill(prop::sample::Index),
    Passes(u64),
    /// The supervisor dies and goes on with what it stored.
    Dies,
}

fn some_moves() -> impl proptest::strategy::Strategy<Value = Vec<Move>> {
    let index = any::<prop::sample::Index>;
    prop::collection::vec(
        prop_oneof![
            6 => index().prop_map(Move::Obey),
            4 => index().prop_map(Move::Gone),
            3 => (index(), any::<bool>()).prop_map(|(index, well)| Move::Ends(index, well)),
            1 => index().prop_map(Move::Ill),
            3 => (0_u64..4_000).prop_map(Move::Passes),
            1 => Just(Move::Dies),
        ],
        1..80,
    )
}

/// A world in which orders take their time.
struct Slow {
    machine: Machine,
    now_ms: u64,
    lives: Vec<bool>,
    leaving: Vec<bool>,
    to_start: Vec<usize>,
    failures: Vec<u64>,
}

impl Slow {
    fn new(spec: Spec) -> Slow {
        let count = spec.members.len();
        Slow {
            machine: Machine::new(spec),
            now_ms: 1_000_000,
            lives: vec![false; count],
            leaving: vec![false; count],
            to_start: Vec::new(),
            failures: Vec::new(),
        }
    }

    fn step(&mut self, next: &Move) -> Result<(), TestCaseError> {
        let living: Vec<usize> = (0..self.lives.len()).filter(|member| self.lives[*member]).collect();
        let leaving: Vec<usize> = living.iter().copied().filter(|member| self.leaving[*member]).collect();
        match next {
            Move::Obey(index) if !self.to_start.is_empty() => {
                let member = self.to_start.remove(index.index(self.to_start.len()));
                self.lives[member] = true;
                self.machine.take(Happened::Started(member), self.now_ms, 500);
            }
            Move::Gone(index) if !leaving.is_empty() => self.gone(*index.get(&leaving), false),
            Move::Ends(index, well) if !living.is_empty() => self.gone(*index.get(&living), *well),
            Move::Ill(index) if !living.is_empty() => {
                self.note_failure(|machine, now| machine.take(Happened::Unhealthy(*index.get(&living)), now, 500));
            }
            Move::Passes(ms) => self.now_ms += ms,
            Move::Dies => self.die(),
            Move::Obey(_) | Move::Gone(_) | Move::Ends(..) | Move::Ill(_) => {}
        }
        self.look()
    }

    fn gone(&mut self, member: usize, well: bool) {
        (self.lives[member], self.leaving[member]) = (false, false);
        self.note_failure(|machine, now| machine.take(Happened::Ended { member, well }, now, 500));
    }

    /// Restarts as the machine counts them, for the intensity.
    fn note_failure(&mut self, act: impl FnOnce(&mut Machine, u64)) {
        let count = |machine: &Machine| (0..machine.spec().members.len()).map(|one| machine.restarts(one)).sum::<u32>();
        let before = count(&self.machine);
        act(&mut self.machine, self.now_ms);
        if count(&self.machine) > before {
            self.failures.push(self.now_ms);
        }
    }

    /// A start that was ordered may have been carried out or not; who lived may have ended meanwhile.
    fn die(&mut self) {
        let text = serde_json::to_string(&self.machine).unwrap();
        self.machine = serde_json::from_str(&text).unwrap();
        for member in 0..self.lives.len() {
            let found = if self.lives[member] { Found::Living } else { Found::Nothing };
            self.leaving[member] = false;
            self.note_failure(|machine, now| machine.resume(member, found, now, 500));
        }
        self.to_start.clear();
    }

    fn look(&mut self) -> Result<(), TestCaseError> {
        let is_failed = matches!(self.machine.status(), Status::Failed { .. });
        for order in self.machine.orders(self.now_ms) {
            match order {
                Order::Start(member) => {
                    prop_assert!(!is_failed, "a failed group starts nothing");
                    prop_assert!(!self.lives[member] && !self.to_start.contains(&member));
                    let after = self.machine.spec().members[member].after.clone();
                    prop_assert!(
                        after.iter().all(|on| self.lives[*on] && !self.leaving[*on]),
                        "{member}: {:?}",
                        self.machine
                    );
                    self.to_start.push(member);
                }
                Order::Stop(member) => {
                    prop_assert!(self.lives[member]);
                    let depends = self.machine.spec().dependents(member);
                    let first = (0..self.lives.len()).any(|other| depends[other] && self.lives[other]);
                    prop_assert!(!first, "who depends on {member} goes first");
                    self.leaving[member] = true;
                }
            }
        }
        self.check_dependencies()?;
        let intensity = self.machine.spec().intensity;
        let recent = self.failures.iter().filter(|then| self.now_ms - **then < intensity.within_ms).count();
        prop_assert!(recent <= intensity.restarts as usize, "{recent} restarts within the time");
        Ok(())
    }

    /// Who lives without what it is after is on its way out: told to go, or to be told when it stands and those that depend on it are gone.
    fn check_dependencies(&self) -> Result<(), TestCaseError> {
        for member in 0..self.lives.len() {
            let after = &self.machine.spec().members[member].after;
            if self.lives[member] && !self.leaving[member] && after.iter().any(|on| !self.lives[*on]) {
                let waits = self.machine.spec().dependents(member);
                let is_held =
                    (0..waits.len()).any(|other| waits[other] && (self.lives[other] || self.to_start.contains(&other)));
                prop_assert!(is_held, "{member} runs on: {:?}", self.machine);
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn nobody_runs_without_what_it_is_after_and_the_intensity_holds(spec in some_spec(), moves in some_moves()) {
        let mut slow = Slow::new(spec);
        slow.look()?;
        for next in &moves {
            slow.step(next)?;
        }
    }

    /// Whatever went before, a group that is left alone comes to rest with everybody running who can, or with nobody.
    #[test]
    fn what_is_left_alone_comes_to_rest(spec in some_spec(), moves in some_moves(), first in any::<prop::sample::Index>()) {
        let mut slow = Slow::new(spec);
        slow.look()?;
        for next in &moves {
            slow.step(next)?;
        }

        for _ in 0..400 {
            slow.step(&Move::Gone(first))?;
            slow.step(&Move::Obey(first))?;
            slow.step(&Move::Passes(100))?;
        }
        let machine = &slow.machine;
        for member in 0..slow.lives.len() {
            let needs = &machine.spec().members[member].after;
            let may = needs.iter().all(|on| slow.lives[*on]);
            let phase = machine.phase(member);
            let is_right = match phase {
                Phase::Running => slow.lives[member] && may,
                Phase::Waiting => !slow.lives[member] && !may,
                Phase::Done | Phase::Failed | Phase::Stopped => !slow.lives[member],
                Phase::Starting | Phase::Stopping => false,
            };
            prop_assert!(is_right, "{member} is {phase:?}: {machine:?}");
            prop_assert!(machine.status() == Status::Up || !slow.lives[member]);
        }
    }

    #[test]
    fn a_failure_restarts_exactly_whom_the_strategy_names_in_order(spec in some_spec(), which in any::<prop::sample::Index>()) {
        prop_assume!(spec.intensity.restarts > 0);
        let mut world = World::new(spec.clone());
        world.settle();
        world.orders.clear();
        let failing = which.index(spec.members.len());
        world.end(failing, false);
        world.settle();
        let (restarted, stopped) = expected(&spec, failing);
        let (started, has_needs) = (world.started(), spec.members.iter().any(|member| !member.after.is_empty()));
        // With needs, the order is that in which they are met, which each start is checked for.
        let is_ordered = has_needs || started.is_sorted();
        prop_assert!(is_ordered, "{started:?}");
        let once: BTreeSet<usize> = started.iter().copied().collect();
        prop_assert_eq!((started.len(), once), (restarted.len(), restarted));
        let told: BTreeSet<usize> = world.stopped().into_iter().collect();
        prop_assert_eq!(told, stopped);
    }
}

/// By the words of the guide, not by the machine: whom the strategy names, all that depend on them, less those that never return and those that need one of these.
fn expected(spec: &Spec, failing: usize) -> (BTreeSet<usize>, BTreeSet<usize>) {
    let count = spec.members.len();
    let needs = |one: usize, on: &BTreeSet<usize>| spec.members[one].after.iter().any(|after| on.contains(after));
    let returns = spec.members[failing].restart != Restart::Never;
    let mut taken: BTreeSet<usize> = match spec.strategy {
        _ if !returns => [failing].into(),
        Strategy::OneForOne => [failing].into(),
        Strategy::OneForAll => (0..count).collect(),
        Strategy::RestForOne => (failing..count).collect(),
    };
    let mut lost: BTreeSet<usize> = BTreeSet::new();
    for _ in 0..count {
        taken.extend((0..count).filter(|one| needs(*one, &taken)).collect::<Vec<_>>());
        lost.extend(
            taken
                .iter()
                .copied()
                .filter(|one| spec.members[*one].restart == Restart::Never || needs(*one, &lost))
                .collect::<Vec<_>>(),
        );
    }
    let restarted = taken.iter().copied().filter(|one| !lost.contains(one)).collect();
    taken.remove(&failing);
    (restarted, taken)
}

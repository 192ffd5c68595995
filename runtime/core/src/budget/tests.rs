use proptest::prelude::*;

use super::*;

const G: u64 = 1 << 30;

fn claim(id: &str, uid: u32, memory_bytes: u64) -> Claim {
    Claim { id: id.to_owned(), uid, amounts: Limits { memory_bytes: Some(memory_bytes), ..Limits::default() } }
}

fn budget(memory_bytes: u64) -> Budget {
    Budget::new(Limits { memory_bytes: Some(memory_bytes), tasks: Some(100), cpu_percent: None })
}

fn words(refused: Result<Answer, Refusal>) -> String {
    refused.expect_err("it is refused").to_string()
}

#[test]
fn what_fits_is_admitted_and_what_does_not_is_told_who_holds_it() {
    let mut budget = budget(4 * G);
    assert_eq!(budget.ask(claim("a", 1, 2 * G), None, 0), Ok(Answer::Admitted));
    assert_eq!(budget.ask(claim("b", 2, G), None, 0), Ok(Answer::Admitted));
    assert_eq!(
        words(budget.ask(claim("c", 1, 2 * G), None, 0)),
        "there is no room for it: it asks for memory 2G, and 1G of 4G are free; 1 sandbox of yours holds 2G (a 2G) and 1 sandbox of others holds 1G; \
         wait with --wait-for-room, end a sandbox, ask for less with --memory, or give apexd more with --budget memory="
    );
    assert!(words(budget.ask(claim("d", 1, 5 * G), Some(10), 0)).contains("the whole budget of this host is 4G"));
    budget.release("a");
    assert_eq!(budget.ask(claim("c", 1, 2 * G), None, 0), Ok(Answer::Admitted));
}

#[test]
fn what_is_unlimited_claims_nothing() {
    let mut budget = budget(G);
    for id in ["a", "b", "c"] {
        let claim = Claim { id: id.to_owned(), uid: 1, amounts: Limits::default() };
        assert_eq!(budget.ask(claim, None, 0), Ok(Answer::Admitted));
    }
    assert_eq!(budget.reserved().memory_bytes, Some(0));
    // And a kind that is not budgeted is not counted.
    let greedy = Limits { cpu_percent: Some(u64::MAX), ..Limits::default() };
    assert_eq!(budget.ask(Claim { id: "d".to_owned(), uid: 1, amounts: greedy }, None, 0), Ok(Answer::Admitted));
}

#[test]
fn whoever_waits_is_admitted_in_order_or_refused_in_time() {
    let mut budget = budget(2 * G);
    budget.hold(claim("a", 1, 2 * G));
    assert_eq!(budget.ask(claim("b", 1, 2 * G), Some(100), 0), Ok(Answer::Waits));
    assert_eq!(budget.ask(claim("c", 1, G), Some(50), 0), Ok(Answer::Waits));
    assert!(budget.settle(10).is_empty());
    let late = budget.settle(50);
    assert_eq!(late.len(), 1);
    assert!(late[0].1.as_ref().is_err_and(|refusal| refusal.to_string().contains("after 50ms of waiting")), "{late:?}");
    budget.release("a");
    assert_eq!(budget.settle(60), [("b".to_owned(), Ok(()))]);
}

#[test]
fn a_small_claim_does_not_pass_an_older_one_of_its_user_but_of_another() {
    let mut budget = budget(2 * G);
    budget.hold(claim("a", 1, G));
    assert_eq!(budget.ask(claim("large", 1, 2 * G), Some(100), 0), Ok(Answer::Waits));
    assert_eq!(budget.ask(claim("small", 1, G / 2), Some(100), 0), Ok(Answer::Waits));
    assert!(words(budget.ask(claim("now", 1, G / 2), None, 0)).contains("2 of your own starts wait for room"));
    assert_eq!(budget.ask(claim("other", 2, G / 2), Some(100), 0), Ok(Answer::Admitted));
}

#[test]
fn whoever_holds_the_smallest_share_comes_first() {
    let mut budget = budget(4 * G);
    budget.hold(claim("a", 1, G));
    budget.hold(claim("b", 1, G));
    budget.hold(claim("c", 2, 2 * G));
    assert_eq!(budget.ask(claim("one", 1, 2 * G), Some(100), 0), Ok(Answer::Waits));
    assert_eq!(budget.ask(claim("three", 3, 2 * G), Some(100), 1), Ok(Answer::Waits));
    budget.release("c");
    assert_eq!(budget.settle(2), [("three".to_owned(), Ok(()))]);
}

#[test]
fn pressure_keeps_new_ones_out_and_lets_those_that_wait_in_later() {
    let mut budget = budget(4 * G);
    budget.set_pressure(Some("memory is short".to_owned()));
    assert!(words(budget.ask(claim("a", 1, G), None, 0)).contains("memory is short"));
    assert_eq!(budget.ask(claim("b", 1, G), Some(100), 0), Ok(Answer::Waits));
    assert!(budget.settle(1).is_empty());
    budget.set_pressure(None);
    assert_eq!(budget.settle(2), [("b".to_owned(), Ok(()))]);
}

#[test]
fn what_is_given_back_is_free_and_what_is_taken_again_needs_room() {
    let mut budget = budget(2 * G);
    budget.hold(claim("a", 1, 2 * G));
    budget.change("a", claim("a", 1, G).amounts).expect("giving back works");
    assert_eq!(budget.ask(claim("b", 1, G), None, 0), Ok(Answer::Admitted));
    let refused = budget.change("a", claim("a", 1, 2 * G).amounts).expect_err("b has it");
    assert!(refused.to_string().contains("(b 1G)"), "{refused}");
    assert_eq!(budget.reserved().memory_bytes, Some(2 * G));
}

#[test]
fn the_queue_is_bounded() {
    let mut budget = budget(G);
    budget.hold(claim("a", 1, G));
    for uid in 0..1000u32 {
        for at in 0..=WAITING_OF_USER_MAX {
            let answer = budget.ask(claim(&format!("{uid}-{at}"), uid, G), Some(100), 0);
            let has_place = at < WAITING_OF_USER_MAX && budget.waiting() <= WAITING_MAX;
            assert!(answer.is_ok() == has_place || budget.waiting() == WAITING_MAX, "{uid} {at}: {answer:?}");
        }
    }
    assert_eq!(budget.waiting(), WAITING_MAX);
}

#[derive(Clone, Debug)]
enum Act {
    Ask { uid: u32, amounts: Limits, wait_ms: Option<u64> },
    Release(usize),
    Change(usize, Limits),
    Pressure(bool),
    Pass(u64),
}

fn amounts() -> impl Strategy<Value = Limits> {
    let some = |most: u64| proptest::option::of(0..most);
    (some(6), some(60), some(300)).prop_map(|(memory_bytes, tasks, cpu_percent)| Limits {
        memory_bytes,
        tasks,
        cpu_percent,
    })
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0..4u32, amounts(), proptest::option::of(0..50u64))
            .prop_map(|(uid, amounts, wait_ms)| Act::Ask { uid, amounts, wait_ms }),
        3 => any::<usize>().prop_map(Act::Release),
        1 => (any::<usize>(), amounts()).prop_map(|(at, amounts)| Act::Change(at, amounts)),
        1 => any::<bool>().prop_map(Act::Pressure),
        2 => (0..40u64).prop_map(Act::Pass),
    ]
}

/// What holds after every act, and after those who wait were decided about.
fn check(budget: &Budget, now_ms: u64) {
    for kind in Kind::ALL {
        if let Some(total) = kind.of(budget.total()) {
            assert!(kind.of(budget.reserved()).unwrap_or(0) <= total, "more of {} is held than there is", kind.name());
        }
    }
    let mut seen = BTreeSet::new();
    for waiting in &budget.waiting {
        assert!(waiting.until_ms > now_ms, "nobody waits longer than asked");
        assert!(!budget.held.contains_key(&waiting.claim.id), "nobody holds and waits");
        let is_oldest = seen.insert(waiting.claim.uid);
        assert!(!is_oldest || budget.obstacle(&waiting.claim).is_some(), "nobody waits for what is there");
    }
}

proptest! {
    #[test]
    fn whatever_happens_nothing_is_promised_twice(acts in proptest::collection::vec(act(), 1..80)) {
        let total = Limits { memory_bytes: Some(10), tasks: Some(100), cpu_percent: None };
        let (mut budget, mut now_ms) = (Budget::new(total), 0);
        // Every claim that was asked for, and whether it is over: refused, given up or given back.
        let mut open: Vec<String> = Vec::new();
        for (number, act) in acts.into_iter().enumerate() {
            let pick = |at: usize, open: &Vec<String>| open.get(at % open.len().max(1)).cloned();
            match act {
                Act::Ask { uid, amounts, wait_ms } => {
                    let id = number.to_string();
                    let claim = Claim { id: id.clone(), uid, amounts };
                    if budget.ask(claim, wait_ms.map(|ms| now_ms + ms), now_ms).is_ok() {
                        open.push(id);
                    }
                }
                Act::Release(at) => if let Some(id) = pick(at, &open) {
                    budget.release(&id);
                    open.retain(|other| *other != id);
                },
                Act::Change(at, to) => if let Some(id) = pick(at, &open) {
                    // A refusal leaves everything as it was, which the check sees.
                    let _ = budget.change(&id, to);
                },
                Act::Pressure(is_high) => budget.set_pressure(is_high.then(|| "pressure".to_owned())),
                Act::Pass(ms) => now_ms += ms,
            }
            let order: Vec<_> = budget.waiting.iter().map(|waiting| (waiting.claim.uid, waiting.claim.id.clone())).collect();
            for (id, outcome) in budget.settle(now_ms) {
                if outcome.is_err() {
                    open.retain(|other| *other != id);
                } else {
                    let at = order.iter().position(|(_, other)| *other == id).expect("it waited");
                    let older = order[..at].iter().filter(|(uid, _)| *uid == order[at].0);
                    prop_assert!(older.clone().all(|(_, id)| !budget.waiting.iter().any(|waiting| waiting.claim.id == *id)), "passed by");
                }
            }
            check(&budget, now_ms);
            let known: BTreeSet<_> = budget.held.keys().chain(budget.waiting.iter().map(|waiting| &waiting.claim.id)).cloned().collect();
            prop_assert_eq!(known, open.iter().cloned().collect::<BTreeSet<_>>(), "nothing is lost, nothing left");
        }
    }
}

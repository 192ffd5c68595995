//! The text, the built-in rules, decisions one by one, then for any rules.

use proptest::prelude::*;

use super::*;

fn built_in() -> Policy {
    Policy::built_in().expect("the embedded text reads")
}

fn with(text: &str) -> Policy {
    built_in().with(text, "a.toml").unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn wrong(text: &str, words: &[&str]) {
    let error = Policy::default().with(text, "a.toml").expect_err("is to be refused").to_string();
    for part in words {
        assert!(error.contains(part), "{error}\nlacks {part}");
    }
}

struct Ask {
    roles: BTreeSet<Role>,
    labels: BTreeMap<String, String>,
    environment: Option<&'static str>,
    own: bool,
    mode: Option<Mode>,
    minute: u16,
    weekday: Weekday,
}

fn own(role: Role, mode: Mode) -> Ask {
    Ask {
        roles: BTreeSet::from([role]),
        labels: BTreeMap::new(),
        environment: None,
        own: true,
        mode: Some(mode),
        minute: 12 * 60,
        weekday: Weekday::Wed,
    }
}

fn others(role: Role, mode: Mode) -> Ask {
    Ask { own: false, ..own(role, mode) }
}

impl Ask {
    fn of(&self, policy: &Policy, operation: Operation) -> Decision {
        decide(
            policy,
            &Question {
                roles: &self.roles,
                operation,
                owner_is_asker: self.own,
                mode: self.mode,
                labels: &self.labels,
                environment: self.environment,
                minute_of_day: self.minute,
                weekday: self.weekday,
            },
        )
    }

    fn may(&self, policy: &Policy, operation: Operation) -> bool {
        self.of(policy, operation).allowed
    }
}

const WITH_CONDITIONS: &str = r#"
[[rule]]
role = "tester"
operations = ["audit"]
scope = "all"
effect = "allow"
modes = ["hybrid"]
from = "08:00"
until = "18:00"
days = ["mon", "wed"]
environment = "ci"
label = { team = "core" }
reason = "tests of the trail"
"#;

#[test]
fn less_than_the_full_level_is_for_nobody_but_administrators() {
    let policy = built_in();
    for operation in [Operation::LevelPartial, Operation::LevelNone] {
        for role in [Role::Developer, Role::Tester, Role::Viewer] {
            for mode in [Mode::Isolation, Mode::Hybrid, Mode::Development] {
                assert!(!own(role, mode).may(&policy, operation), "{role:?} {operation:?}");
            }
        }
        assert!(own(Role::Admin, Mode::Development).may(&policy, operation));
    }
    let rule = "[[rule]]\nrole = \"developer\"\noperations = [\"level-partial\"]\nscope = \"own\"\neffect = \"audit\"\nmodes = [\"hybrid\"]\nreason = \"x\"";
    let policy = with(rule);
    assert!(own(Role::Developer, Mode::Hybrid).may(&policy, Operation::LevelPartial));
    assert!(!own(Role::Developer, Mode::Development).may(&policy, Operation::LevelPartial));
    assert!(!own(Role::Developer, Mode::Hybrid).may(&policy, Operation::LevelNone));
}

#[test]
fn strangers_may_nothing_and_are_told_whom_to_ask() {
    let policy = built_in();
    let roles = policy.roles(&Caller { uid: 1000, user: Some("ann"), groups: &[], is_daemon: false });
    assert!(roles.is_empty());
    let ask = Ask { roles, ..own(Role::Viewer, Mode::Hybrid) };
    for operation in Operation::ALL {
        let decision = ask.of(&policy, operation);
        assert!(!decision.allowed && decision.rule.is_none());
        assert!(decision.words.contains("[[member]]"), "{}", decision.words);
    }
}

#[test]
fn root_and_the_user_of_the_daemon_are_admin() {
    let policy = built_in();
    let caller = Caller { uid: 0, user: Some("root"), groups: &[], is_daemon: false };
    assert_eq!(policy.roles(&caller), BTreeSet::from([Role::Admin]));
    assert_eq!(policy.roles(&Caller { uid: 990, is_daemon: true, ..caller }), BTreeSet::from([Role::Admin]));
    assert!(Operation::ALL.iter().all(|operation| others(Role::Admin, Mode::Isolation).may(&policy, *operation)));
}

#[test]
fn members_are_known_by_uid_name_and_group() {
    let policy = with(
        "[[member]]\nuid = 1000\nrole = \"developer\"\n[[member]]\nuser = \"ann\"\nrole = \"tester\"\n\
         [[member]]\ngroup = \"apex\"\nrole = \"viewer\"",
    );
    let groups = ["users".to_owned(), "apex".to_owned()];
    let roles = |uid, user, groups| policy.roles(&Caller { uid, user, groups, is_daemon: false });
    assert_eq!(roles(1000, Some("bob"), &[]), BTreeSet::from([Role::Developer]));
    assert_eq!(roles(1001, Some("ann"), &groups), BTreeSet::from([Role::Tester, Role::Viewer]));
    assert_eq!(roles(1002, None, &[]), BTreeSet::new());
}

/// Rows: operations; columns: own sandbox of a developer, a tester, a viewer.
#[test]
fn the_built_in_roles() {
    let policy = built_in();
    let check = |operations: &[Operation], mode: Mode, expected: [bool; 3]| {
        for operation in operations {
            let found =
                [Role::Developer, Role::Tester, Role::Viewer].map(|role| own(role, mode).may(&policy, *operation));
            assert_eq!(found, expected, "{} in {}", operation.name(), mode.name());
        }
        let stray = operations.iter().find(|operation| others(Role::Developer, mode).may(&policy, **operation));
        assert_eq!(stray, None, "nobody's but one's own");
    };
    use Operation::*;
    check(&[Inspect, List, Logs, Events, Findings, Stats, Tree], Mode::Hybrid, [true, true, true]);
    check(&[ModeTighten, Pause, Resume, Signal, Kill, Remove], Mode::Hybrid, [true, true, false]);
    check(&[Create, Run], Mode::Hybrid, [true, true, false]);
    check(&[Create, Run], Mode::Development, [true, false, false]);
    check(&[Limits, ModeRelax], Mode::Isolation, [true, false, false]);
    check(&[Exec, Attach], Mode::Development, [true, false, false]);
    check(&[Exec, Attach], Mode::Isolation, [false, false, false]);
    check(&[Audit, Metrics], Mode::Development, [false, false, false]);
    assert!(own(Role::Developer, Mode::Hybrid).of(&policy, Exec).audit);
    assert!(!own(Role::Developer, Mode::Development).of(&policy, Exec).audit);
}

#[test]
fn a_deny_wins_and_names_its_rule() {
    let text = "\n[[rule]]\nrole = \"any\"\noperations = [\"exec\"]\neffect = \"deny\"\nreason = \"release week\"";
    let decision = own(Role::Admin, Mode::Development).of(&with(text), Operation::Exec);
    assert!(!decision.allowed);
    let cited = decision.rule.expect("names it");
    assert_eq!((cited.origin.to_string().as_str(), cited.reason.as_str()), ("a.toml:2", "release week"));
    assert!(decision.words.contains("a.toml:2") && decision.words.contains("release week"), "{}", decision.words);
}

#[test]
fn each_condition_must_hold_and_is_named_when_it_does_not() {
    let policy = with(WITH_CONDITIONS);
    let good = || Ask {
        labels: BTreeMap::from([("team".to_owned(), "core".to_owned())]),
        environment: Some("ci"),
        ..others(Role::Tester, Mode::Hybrid)
    };
    assert!(good().may(&policy, Operation::Audit));
    assert!(Ask { minute: 8 * 60, ..good() }.may(&policy, Operation::Audit));
    let check = |ask: Ask, words: &str| {
        let decision = ask.of(&policy, Operation::Audit);
        assert!(!decision.allowed && decision.words.contains(words), "{}\nlacks {words}", decision.words);
    };
    check(Ask { mode: Some(Mode::Isolation), ..good() }, "only in mode hybrid");
    check(Ask { mode: None, ..good() }, "only in mode hybrid");
    check(Ask { minute: 18 * 60, ..good() }, "only from 08:00 until 18:00");
    check(Ask { weekday: Weekday::Sun, ..good() }, "only on mon or wed");
    check(Ask { environment: None, ..good() }, "only in the environment `ci`");
    check(Ask { labels: BTreeMap::new(), ..good() }, "only for sandboxes with the label team=core");
    check(others(Role::Viewer, Mode::Hybrid), "have it done by role admin or tester");
    let lacking = others(Role::Viewer, Mode::Hybrid).of(&policy, Operation::Logs);
    assert!(lacking.words.contains("only for the asker's own sandboxes"), "{}", lacking.words);
}

#[test]
fn a_deny_about_a_mode_holds_where_the_mode_is_not_known() {
    let text = "[[rule]]\nrole = \"admin\"\noperations = [\"exec\"]\neffect = \"deny\"\nmodes = [\"isolation\"]\nreason = \"r\"";
    let policy = with(text);
    assert!(!Ask { mode: None, ..own(Role::Admin, Mode::Hybrid) }.may(&policy, Operation::Exec));
    assert!(own(Role::Admin, Mode::Hybrid).may(&policy, Operation::Exec));
}

#[test]
fn a_time_may_reach_over_midnight() {
    let rule = "role = \"tester\"\noperations = [\"audit\"]\neffect = \"allow\"\nreason = \"night\"";
    let policy = with(&format!("[[rule]]\n{rule}\nfrom = \"22:00\"\nuntil = \"06:00\""));
    let at = |minute| Ask { minute, ..own(Role::Tester, Mode::Hybrid) }.may(&policy, Operation::Audit);
    assert_eq!([21 * 60 + 59, 22 * 60, 0, 6 * 60 - 1, 6 * 60].map(at), [false, true, true, true, false]);
    let policy = with(&format!("[[rule]]\n{rule}\nfrom = \"22:00\""));
    let at = |minute| Ask { minute, ..own(Role::Tester, Mode::Hybrid) }.may(&policy, Operation::Audit);
    assert_eq!([0, 24 * 60 - 1].map(at), [false, true]);
}

#[test]
fn a_file_adds_unless_it_inherits_nothing() {
    assert!(with("").members.len() == built_in().members.len());
    assert_eq!(with("inherit = false"), Policy::default());
}

#[test]
fn what_is_no_policy_is_refused_with_line_and_nearest_word() {
    let rule = |lines: &str| {
        format!("[[rule]]\nrole = \"tester\"\noperations = [\"run\"]\neffect = \"allow\"\nreason = \"r\"\n{lines}")
    };
    wrong("[[member]]\nuid = 1\nrole = \"develper\"", &["a.toml:3", "did you mean `developer`?"]);
    wrong("[[member]]\nuid = 1\nrol = \"admin\"", &["a.toml:3", "did you mean `role`?"]);
    wrong("[[membr]]", &["a.toml:1", "did you mean `member`?"]);
    wrong("\n[[member]]\nrole = \"admin\"", &["a.toml:2", "`uid`, `user`, `group`"]);
    wrong("[[member]]\nuid = 1\nuser = \"ann\"\nrole = \"admin\"", &["no second one"]);
    wrong("[[member]]\nuid = -1\nrole = \"admin\"", &["a.toml:2", "an id from 0"]);
    wrong("[[member]]\nuid = 1", &["the key `role` is missing"]);
    wrong("[[rule]]\nrole = \"any\"\neffect = \"allow\"\nreason = \"r\"", &["`operations` is missing"]);
    wrong("[[rule]]\nrole = \"any\"\noperations = [\"run\"]\neffect = \"allow\"", &["`reason` is missing"]);
    wrong(
        "[[rule]]\nrole = \"any\"\noperations = [\n\"run\",\n\"kil\"]\neffect = \"deny\"\nreason = \"r\"",
        &["a.toml:5", "did you mean `kill`?"],
    );
    wrong(&rule("days = [\"moon\"]"), &["a.toml:6", "did you mean `mon`?"]);
    wrong(&rule("days = []"), &["a.toml:6", "`days` is empty"]);
    wrong(&rule("modes = []"), &["`modes` is empty"]);
    wrong(&rule("modes = [\"hibrid\"]"), &["did you mean `hybrid`?"]);
    for time in ["8:00", "24:01", "12:60", "noon", "+1:00"] {
        wrong(&rule(&format!("from = \"{time}\"")), &["a.toml:6", "no time of the day"]);
    }
    wrong(&rule("from = \"08:00\"\nuntil = \"08:00\""), &["no time of the day is in between"]);
    wrong("[[rule]\n", &["not valid TOML"]);
    let many = "[[member]]\nuid = 1\nrole = \"viewer\"\n".repeat(MEMBERS_MAX + 1);
    wrong(&many, &["more than 10000 members"]);
}

#[test]
fn the_examples_of_the_guide_read() {
    let text = include_str!("../../../../docs/guides/permissions.md");
    let mut count = 0;
    for block in text.split("```toml\n").skip(1) {
        let example = block.split("```").next().expect("split gives one");
        built_in().with(example, "example").unwrap_or_else(|error| panic!("{error}\n{example}"));
        count += 1;
    }
    assert!(count >= 3, "only {count} examples");
    let refusal = own(Role::Developer, Mode::Isolation).of(&built_in(), Operation::Exec).words;
    assert!(text.contains(&refusal), "the guide shows another refusal than this: {refusal}");
    for name in Operation::ALL.map(Operation::name).into_iter().chain(Role::ALL.map(Role::name)) {
        assert!(text.contains(&format!("`{name}`")), "the guide says nothing of {name}");
    }
}

#[test]
fn a_wall_time_has_a_day_and_a_minute() {
    assert_eq!(moment(0, 0), (0, Weekday::Thu));
    assert_eq!(moment(0, 3600), (60, Weekday::Thu));
    assert_eq!(moment(0, -3600), (23 * 60, Weekday::Wed));
    // 29 February 2024, 23:59:59 UTC.
    assert_eq!(moment(1_709_251_199_999, 0), (24 * 60 - 1, Weekday::Thu));
}

fn one<T: Copy + std::fmt::Debug + 'static>(of: &'static [T]) -> impl Strategy<Value = T> {
    prop::sample::select(of)
}

const MODES: &[Mode] = &[Mode::Isolation, Mode::Hybrid, Mode::Development];
const OPERATIONS: &[Operation] = &[Operation::Run, Operation::Exec, Operation::ModeRelax];

prop_compose! {
    fn a_rule(effects: &'static [Effect])(
        role in prop::option::of(one(&Role::ALL)),
        operations in prop::collection::btree_set(one(OPERATIONS), 1..3),
        scope in one(&[Scope::Own, Scope::All]),
        effect in one(effects),
        modes in prop::collection::vec(one(MODES), 0..2),
        minutes in prop::option::of((0_u16..1440, 0_u16..1440)),
        days in prop::collection::btree_set(one(&Weekday::ALL), 0..2),
        labelled in any::<bool>(),
        environment in prop::option::of(one(&["ci", "prod"])),
    ) -> Rule {
        let label = if labelled { BTreeMap::from([("team".to_owned(), "core".to_owned())]) } else { BTreeMap::new() };
        let origin = crate::policy::Origin::flag("test");
        let environment = environment.map(str::to_owned);
        Rule { role, operations, scope, effect, modes, minutes, days, environment, label, reason: "r".to_owned(), origin }
    }
}

prop_compose! {
    fn an_ask()(
        roles in prop::collection::btree_set(one(&Role::ALL), 0..3),
        own in any::<bool>(),
        mode in prop::option::of(one(MODES)),
        minute in 0_u16..1440,
        weekday in one(&Weekday::ALL),
        labelled in any::<bool>(),
        environment in prop::option::of(one(&["ci", "prod"])),
    ) -> Ask {
        let labels = if labelled { BTreeMap::from([("team".to_owned(), "core".to_owned())]) } else { BTreeMap::new() };
        Ask { roles, labels, environment, own, mode, minute, weekday }
    }
}

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} own {} {:?} at {} {:?}", self.roles, self.own, self.mode, self.minute, self.weekday)
    }
}

const EFFECTS: &[Effect] = &[Effect::Allow, Effect::Deny, Effect::Audit];

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    prop::collection::vec(a_rule(EFFECTS), 0..6)
}

proptest! {
    #[test]
    fn one_more_allow_takes_nothing_away(mut rules in rules(), more in a_rule(&[Effect::Allow, Effect::Audit]), ask in an_ask(), at in any::<prop::sample::Index>()) {
        let before = Policy { members: Vec::new(), rules: rules.clone() };
        rules.insert(at.index(rules.len() + 1), more);
        let after = Policy { members: Vec::new(), rules };
        for operation in OPERATIONS {
            let (before, after) = (ask.of(&before, *operation), ask.of(&after, *operation));
            prop_assert!(!before.allowed || after.allowed);
            prop_assert!(!before.audit || after.audit, "nor is less written down");
        }
    }

    #[test]
    fn one_more_deny_gives_nothing(mut rules in rules(), more in a_rule(&[Effect::Deny]), ask in an_ask(), at in any::<prop::sample::Index>()) {
        let before = Policy { members: Vec::new(), rules: rules.clone() };
        rules.insert(at.index(rules.len() + 1), more);
        let after = Policy { members: Vec::new(), rules };
        for operation in OPERATIONS {
            prop_assert!(ask.may(&before, *operation) || !ask.may(&after, *operation));
        }
    }

    #[test]
    fn a_deny_that_is_met_always_wins(mut rules in rules(), ask in an_ask(), at in any::<prop::sample::Index>()) {
        let deny = Rule {
            role: None, operations: OPERATIONS.iter().copied().collect(), scope: Scope::All, effect: Effect::Deny, modes: Vec::new(),
            minutes: None, days: BTreeSet::new(), environment: None, label: BTreeMap::new(), reason: "no".to_owned(),
            origin: crate::policy::Origin::flag("test"),
        };
        rules.insert(at.index(rules.len() + 1), deny);
        let policy = Policy { members: Vec::new(), rules };
        for operation in OPERATIONS {
            prop_assert!(!ask.may(&policy, *operation));
        }
    }

    #[test]
    fn without_a_rule_nothing_is_allowed(ask in an_ask(), rules in rules(), operation in one(&Operation::ALL)) {
        prop_assert!(!ask.may(&Policy::default(), operation));
        let strangers = Ask { roles: BTreeSet::new(), ..ask };
        prop_assert!(!strangers.may(&Policy { members: Vec::new(), rules }, operation), "nor without a role");
    }

    #[test]
    fn order_decides_nothing(mut rules in rules(), ask in an_ask()) {
        let forward = Policy { members: Vec::new(), rules: rules.clone() };
        rules.reverse();
        let backward = Policy { members: Vec::new(), rules };
        for operation in OPERATIONS {
            let (one, other) = (ask.of(&forward, *operation), ask.of(&backward, *operation));
            prop_assert_eq!((one.allowed, one.audit), (other.allowed, other.audit));
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,200}") {
        _ = Policy::default().with(&text, "a.toml");
    }

    #[test]
    fn a_refusal_says_what_and_what_to_do(rules in rules(), ask in an_ask(), operation in one(&Operation::ALL)) {
        let decision = ask.of(&Policy { members: Vec::new(), rules }, operation);
        let tried = format!("cannot {}: ", operation.name());
        prop_assert!(decision.allowed || decision.words.starts_with(&tried));
        prop_assert!(decision.allowed || decision.words.contains("administrator"), "{}", decision.words);
    }
}

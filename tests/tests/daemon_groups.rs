//! Groups of sandboxes that the daemon keeps running.

use std::time::{Duration, Instant};

use apex_tests::daemon::Daemon;
use apex_tests::traced::NOBODY;
use apex_tests::{as_root, has_cgroup, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How long a group may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);
/// Rounds of an ordinary run; `APEX_KILL_ROUNDS` asks for more.
const ROUNDS: u32 = 10;
const SLEEP: &str = "\"/bin/sleep\", \"1000\"";

/// A file with a group; a member is its name, its command and further lines.
fn file(daemon: &Daemon, head: &str, members: &[(&str, &str, &str)]) -> String {
    let path = daemon.dir().at("group.toml");
    let optional = if has_cgroup() { "" } else { "optional = [\"cgroup\"]\n" };
    let member = |(name, command, more): &(&str, &str, &str)| {
        format!("\n[[member]]\nname = \"{name}\"\ncommand = [{command}]\n{optional}{more}\n")
    };
    let text = format!("[group]\nname = \"g\"\nback_off = {{ first = \"50ms\", max = \"200ms\" }}\n{head}\n");
    let text = text + &members.iter().map(member).collect::<String>();
    std::fs::write(&path, text).expect("the directory is ours");
    path
}

#[track_caller]
fn up(daemon: &Daemon, head: &str, members: &[(&str, &str, &str)]) {
    daemon.apex(&["up", &file(daemon, head, members)]).expect_code(0);
}

#[track_caller]
fn group(daemon: &Daemon) -> Value {
    daemon.json(&["groups"]).as_array().and_then(|groups| groups.first()).cloned().expect("there is one")
}

/// Waits until the group is so.
#[track_caller]
fn until(daemon: &Daemon, is_so: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let group = group(daemon);
        if is_so(&group) {
            return group;
        }
        assert!(Instant::now() < end, "it does not come to be so: {group:#}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn members(group: &Value) -> Vec<&Value> {
    group["members"].as_array().map(|members| members.iter().collect()).unwrap_or_default()
}

fn all_run(group: &Value) -> bool {
    members(group).iter().all(|member| member["state"] == "running")
}

fn ids(group: &Value) -> Vec<String> {
    members(group).iter().map(|member| member["sandbox"].as_str().unwrap_or_default().to_owned()).collect()
}

/// One of three members that run is killed; these come back as others, and the rest stay as they are.
#[track_caller]
fn check(strategy: &str, killed: &str, changed: [bool; 3]) {
    let daemon = Daemon::start(&[]);
    let three = [("a", SLEEP, ""), ("b", SLEEP, ""), ("c", SLEEP, "")];
    up(&daemon, &format!("strategy = \"{strategy}\""), &three);
    let before = ids(&until(&daemon, all_run));
    daemon.apex(&["kill", &format!("g.{killed}")]).expect_code(0);
    let at = before.iter().position(|id| daemon.json(&["inspect", id])["state"] == "ended").expect("it was killed");
    let after = until(&daemon, |group| all_run(group) && ids(group)[at] != before[at]);
    let differs: Vec<bool> = before.iter().zip(ids(&after)).map(|(before, after)| *before != after).collect();
    assert_eq!(differs, changed, "{after:#}");
    for (before, after) in before.iter().zip(ids(&after)).filter(|(before, after)| *before != after) {
        let successor = daemon.json(&["inspect", &after]);
        assert_eq!(successor["predecessor"], before.as_str());
        assert_eq!(daemon.json(&["inspect", before])["name"], successor["name"], "the name stays");
    }
}

#[test]
fn one_for_one_restarts_the_one() {
    check("one-for-one", "b", [false, true, false]);
}

#[test]
fn rest_for_one_restarts_those_behind_as_well() {
    check("rest-for-one", "b", [false, true, true]);
}

#[test]
fn one_for_all_restarts_all() {
    check("one-for-all", "c", [true, true, true]);
}

#[test]
fn who_depends_starts_later_and_goes_earlier() {
    let daemon = Daemon::start(&[]);
    // Stands before what it is after.
    up(&daemon, "", &[("web", SLEEP, "after = [\"db\"]"), ("db", SLEEP, "")]);
    let before = until(&daemon, all_run);
    let names: Vec<_> = members(&before).iter().map(|member| member["name"].clone()).collect();
    assert_eq!(names, ["db", "web"]);
    let started = |name: &str| daemon.json(&["inspect", name])["started_ms"].as_u64().expect("a time");
    assert!(started("g.db") <= started("g.web"));
    daemon.apex(&["kill", "g.db"]).expect_code(0);
    let after = until(&daemon, |group| all_run(group) && ids(group)[0] != ids(&before)[0]);
    assert_ne!(ids(&after)[1], ids(&before)[1], "it cannot stay without the other");
    assert!(started("g.db") <= started("g.web"));
    let old = daemon.json(&["inspect", &ids(&before)[1]]);
    assert!(old["ended_ms"].as_u64() <= Some(started("g.db")), "it is gone before the other comes back");
}

#[test]
fn the_intensity_fails_a_group_and_it_stays_so() {
    let daemon = Daemon::start(&[]);
    let failing = "\"/bin/sh\", \"-c\", \"echo once; exit 3\"";
    up(&daemon, "intensity = { restarts = 5, within = \"1h\" }", &[("calm", SLEEP, ""), ("ill", failing, "")]);
    let over = |group: &Value| group["state"] == "failed" && members(group)[0]["state"] == "stopped";
    let failed = until(&daemon, over);
    let ill = members(&failed)[1];
    assert_eq!((ill["state"].as_str(), ill["restarts"].as_u64()), (Some("failed"), Some(5)), "{failed:#}");
    assert!(failed["words"].as_str().is_some_and(|words| words.contains("exited, code 3")), "{failed:#}");
    let kept = daemon.json(&["ls", "--all"]);
    let of_ill = kept.as_array().expect("an array").iter().filter(|row| row["name"] == "g.ill").count();
    assert_eq!(of_ill, 4, "the last one and three before it: {kept:#}");
    assert_eq!(daemon.apex(&["logs", "g.ill"]).out(), "once\n");
    std::thread::sleep(Duration::from_millis(500));
    assert!(over(&group(&daemon)));
    let starts = daemon.audit().iter().filter(|line| line["api"]["operation"] == "create").count();
    assert_eq!(starts, 1 + 6, "each start is written down");
    let again = daemon.apex(&["up", &daemon.dir().at("group.toml")]);
    assert!(again.code == 125 && again.err().contains("`apex down g` ends it"), "{again:?}");
    daemon.apex(&["down", "g"]).expect_code(0);
    assert_eq!(daemon.json(&["groups"]), serde_json::json!([]));
    // The same name again comes behind those that were left.
    up(&daemon, "", &[("calm", SLEEP, "")]);
    let calm = &ids(&until(&daemon, all_run))[0];
    assert_ne!(daemon.json(&["inspect", calm])["predecessor"], "");
    assert_eq!(daemon.json(&["audit", "verify"])["intact"], true);
}

/// It is well while the file is there: who depends on it waits for that, and it is started anew when that is gone.
#[test]
fn a_member_counts_once_it_is_well_and_is_started_anew_when_it_is_ill() {
    let daemon = Daemon::start(&[]);
    let health = "health = { command = [\"/bin/test\", \"-e\", \"/tmp/well\"], interval = \"200ms\", retries = 2 }";
    let slow = "\"/bin/sh\", \"-c\", \"sleep 1; touch /tmp/well; sleep 1000\"";
    // Two may fail in a row, which a second of not yet being well would: the first one looks for longer.
    let patient = health.replace("retries = 2", "retries = 30");
    up(
        &daemon,
        "intensity = { restarts = 5, within = \"60s\" }",
        &[("a", slow, &patient), ("b", SLEEP, "after = [\"a\"]")],
    );
    let begun = until(&daemon, |group| !ids(group)[0].is_empty());
    assert_eq!(ids(&begun)[1], "", "b waits until a is well: {begun:#}");
    let before = ids(&until(&daemon, all_run));
    let made = |id: &str| daemon.json(&["inspect", id])["started_ms"].as_u64().expect("a number");
    assert!(made(&before[1]) >= made(&before[0]) + 900, "b was started only when a was well");
    daemon.apex(&["exec", "g.a", "--", "/bin/rm", "/tmp/well"]).expect_code(0);
    // Ill, it goes, and who depends on it goes along.
    let after = until(&daemon, |group| all_run(group) && ids(group)[0] != before[0] && ids(group)[1] != before[1]);
    assert_eq!(members(&after)[0]["restarts"], 1, "{after:#}");
    daemon.apex(&["down", "g"]).expect_code(0);
}

#[test]
fn restart_policies_are_kept_to() {
    let daemon = Daemon::start(&[]);
    let well = "\"/bin/true\"";
    let ill = "\"/bin/false\"";
    up(
        &daemon,
        "",
        &[
            ("once", ill, "restart = \"never\""),
            ("done", well, "restart = \"on-failure\""),
            ("behind", SLEEP, "after = [\"once\"]"),
        ],
    );
    let rest = until(&daemon, |group| group["state"] == "ended");
    let states: Vec<_> =
        members(&rest).iter().map(|member| (&member["name"], &member["state"], &member["restarts"])).collect();
    let is = |at: usize, name: &str, state: &str| {
        assert!(states[at].0 == name && states[at].1 == state && states[at].2 == 0, "{states:?}");
    };
    is(0, "once", "failed");
    is(1, "done", "done");
    is(2, "behind", "waiting");
}

#[test]
fn who_does_not_end_when_asked_is_ended() {
    let daemon = Daemon::start(&[]);
    let deaf = "\"/bin/sh\", \"-c\", \"trap '' TERM; while :; do sleep 0.1; done\"";
    up(&daemon, "", &[("deaf", deaf, "stop_within = \"300ms\"")]);
    let id = ids(&until(&daemon, all_run))[0].clone();
    daemon.apex(&["down", "g"]).expect_code(0);
    assert_eq!(daemon.json(&["inspect", &id])["state"], "ended");
    let operations: Vec<_> = daemon.audit().iter().map(|line| line["api"]["operation"].clone()).collect();
    assert!(operations.ends_with(&["down".into(), "signal".into(), "kill".into()]), "{operations:?}");
}

#[test]
fn a_wrong_file_is_refused_with_its_line_and_the_nearest_key() {
    let daemon = Daemon::start(&[]);
    let refused = daemon.apex(&["up", &file(&daemon, "strategi = \"one-for-all\"", &[("a", SLEEP, "")])]);
    assert!(
        refused.code == 125 && refused.err().contains("group.toml:4") && refused.err().contains("`strategy`"),
        "{refused:?}"
    );
    let refused = daemon.apex(&["up", &file(&daemon, "", &[("a", SLEEP, "mode = \"cosy\"")])]);
    assert!(
        refused.code == 125 && refused.err().contains("member \"a\"") && refused.err().contains("cosy"),
        "{refused:?}"
    );
    let refused = daemon.apex(&["down", "nobody"]);
    assert!(refused.code == 125 && refused.err().contains("there is no group \"nobody\""), "{refused:?}");
    assert_eq!(daemon.json(&["groups"]), serde_json::json!([]));
}

#[test]
fn a_member_that_waits_for_room_does_not_hold_up_the_end_of_its_group() {
    let daemon = Daemon::start(&["--budget", "tasks=100"]);
    let few = "limits = { tasks = 90 }\nwait_for_room = \"30m\"";
    up(&daemon, "", &[("a", SLEEP, few), ("b", SLEEP, few)]);
    until(&daemon, |group| members(group).iter().filter(|member| member["state"] == "running").count() == 1);
    let begun = Instant::now();
    daemon.apex(&["down", "g"]).expect_code(0);
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    assert_eq!(daemon.json(&["ls"]), serde_json::json!([]));
}

#[test]
fn members_are_not_taken_from_pools() {
    let daemon = Daemon::start(&[]);
    let member = serde_json::json!({"name": "a", "sandbox": {"command": ["/bin/true"], "pool": true}});
    let (status, words) =
        daemon.rest("POST", "/v1/groups", &serde_json::json!({"name": "g", "members": [member]}).to_string());
    assert!(status == 400 && words.contains("leave pool and warm out"), "{status} {words}");
}

#[test]
fn groups_of_others_are_not_seen_and_strangers_have_none() {
    if !as_root() {
        skip!("only root has others' groups");
    }
    let daemon = Daemon::start(&[]);
    up(&daemon, "", &[("a", SLEEP, "")]);
    until(&daemon, all_run);
    let path = daemon.dir().at("group.toml");
    let as_nobody =
        |args: &[&str]| apex_tests::sandbox::collect(daemon.command_as(NOBODY, args).spawn().expect("apex starts"));
    assert_eq!(as_nobody(&["--json", "groups"]).expect_code(0).json(), serde_json::json!([]));
    let refused = as_nobody(&["down", "g"]);
    assert!(refused.code == 125 && refused.err().contains("there is no group"), "{refused:?}");
    let refused = as_nobody(&["up", &path]);
    assert!(refused.code == 125 && refused.err().contains("cannot up"), "{refused:?}");
    assert!(all_run(&group(&daemon)), "it runs on");
}

#[test]
fn what_a_finding_ended_is_not_started_anew() {
    if !as_root() {
        skip!("only root loads probes");
    }
    let daemon = Daemon::start(&[]);
    let home = daemon.dir().dir("home");
    let names = [".ssh/id_rsa", ".aws/credentials", ".netrc", ".docker/config.json", ".kube/config", ".pgpass"];
    for name in names {
        daemon.dir().file(&format!("home/{name}"), "secret");
    }
    let sweep =
        format!("\"/bin/sh\", \"-c\", \"sleep 0.5; cd /tmp/h; cat {} > /dev/null; sleep 300\"", names.join(" "));
    let watched = format!("mode = \"hybrid\"\nwatch = \"default\"\non_finding = \"kill\"\nro = [\"{home}:/tmp/h\"]");
    up(&daemon, "intensity = { restarts = 2, within = \"1h\" }", &[("thief", sweep.as_str(), watched.as_str())]);
    let failed = until(&daemon, |group| group["state"] == "failed");
    assert!(failed["words"].as_str().is_some_and(|words| words.contains("tightened by a finding")), "{failed:#}");
    let starts = daemon.json(&["ls", "--all"]);
    assert_eq!(starts.as_array().map(Vec::len), Some(1), "there was one, and no other: {starts:#}");
}

#[test]
fn a_supervisor_killed_at_any_instant_goes_on() {
    let rounds = std::env::var("APEX_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS);
    let mut daemon = Daemon::start(&[]);
    // Something is always about to be started or ended: one ends by itself all the time, which takes another along.
    let short = "\"/bin/sh\", \"-c\", \"sleep 0.1\"";
    let three = [("calm", SLEEP, ""), ("short", short, ""), ("behind", SLEEP, "after = [\"short\"]")];
    up(&daemon, "intensity = { restarts = 1000, within = \"1s\" }", &three);
    let calm = ids(&until(&daemon, |group| members(group)[0]["state"] == "running"))[0].clone();
    let mut restarts = 0;
    for round in 0..rounds {
        std::thread::sleep(Duration::from_millis(10 + u64::from(round * 37 % 250)));
        kill(Pid::from_raw(daemon.pid()), Signal::SIGKILL).expect("it runs");
        daemon.restart();
        let seen = until(&daemon, |group| members(group)[1]["restarts"].as_u64() > Some(restarts));
        restarts = members(&seen)[1]["restarts"].as_u64().unwrap_or(0);
        assert_eq!(
            (seen["state"].as_str(), ids(&seen)[0].as_str()),
            (Some("up"), calm.as_str()),
            "round {round}: {seen:#}"
        );
        let rows = daemon.json(&["ls"]);
        for name in ["g.calm", "g.short", "g.behind"] {
            let living = rows.as_array().expect("an array").iter().filter(|row| row["name"] == name).count();
            assert!(living <= 1, "round {round}: {living} of {name}: {rows:#}");
        }
    }
    // Everything that there was is gone when it is told to be, also with the daemon killed meanwhile.
    let mut down = daemon.command(&["down", "g"]).spawn().expect("apex starts");
    std::thread::sleep(Duration::from_millis(5));
    kill(Pid::from_raw(daemon.pid()), Signal::SIGKILL).expect("it runs");
    daemon.restart();
    let _ = down.wait();
    let _ = daemon.apex(&["down", "g"]);
    let end = Instant::now() + PATIENCE;
    while daemon.json(&["ls"]) != serde_json::json!([]) || daemon.json(&["groups"]) != serde_json::json!([]) {
        assert!(Instant::now() < end, "{:#} {:#}", daemon.json(&["groups"]), daemon.json(&["ls"]));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(daemon.json(&["audit", "verify"])["intact"], true);
}

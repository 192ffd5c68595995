//! The daemon's budget, what its sandboxes use, what is done at a limit, and its metrics.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::{Duration, Instant};

use apex_tests::daemon::{Daemon, lenient};
use apex_tests::{as_root, has_cgroup, leaks, sandbox, skip};

/// How long anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn get(daemon: &Daemon, path: &str) -> String {
    let mut stream = UnixStream::connect(daemon.socket()).expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: apex\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    text
}

fn metrics(daemon: &Daemon) -> String {
    let text = get(daemon, "/metrics");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    text.split_once("\r\n\r\n").expect("a head and a body").1.to_owned()
}

/// The number of one series, 0 where it is not there.
fn metric(daemon: &Daemon, series: &str) -> f64 {
    let text = metrics(daemon);
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0.0, |number| number.parse().expect("a number"))
}

#[track_caller]
fn until_metric(daemon: &Daemon, series: &str, is_so: impl Fn(f64) -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so(metric(daemon, series)) {
        assert!(Instant::now() < end, "{series} is {}", metric(daemon, series));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn sleeper<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["create"], lenient(), args, &["--", "/bin/sleep", "300"]].concat()
}

fn begin(daemon: &Daemon, args: &[&str]) -> Child {
    daemon.command(&sleeper(args)).spawn().expect("apex starts")
}

#[test]
fn what_does_not_fit_is_refused_and_told_who_holds_it() {
    let daemon = Daemon::start(&["--budget", "memory=700M"]);
    let id = daemon.create(&["--memory", "400M"], &["/bin/sleep", "300"]);
    let refused = daemon.apex(&sleeper(&["--memory", "400M"]));
    assert_eq!(refused.code, 125, "{refused:?}");
    for word in ["asks for memory 400M", "300M of 700M are free", &id, "--wait-for-room", "--memory", "--budget"] {
        assert!(refused.err().contains(word), "{word}: {refused:?}");
    }
    let never = daemon.apex(&sleeper(&["--memory", "701M", "--wait-for-room", "1m"]));
    assert!(never.code == 125 && never.err().contains("the whole budget"), "{never:?}");
    assert_eq!(daemon.json(&["ls"]).as_array().map(Vec::len), Some(1), "what was refused is not there");
    let refusals = daemon.audit().into_iter().filter(|line| line.to_string().contains("no room")).count();
    assert_eq!(refusals, 2, "{:?}", daemon.audit());
    daemon.apex(&["kill", &id]).expect_code(0);
    daemon.create(&["--memory", "400M"], &["/bin/sleep", "300"]);
    assert_eq!(metric(&daemon, "apex_budget_reserved{resource=\"memory\"}"), f64::from(400 << 20));
    assert_eq!(metric(&daemon, "apex_starts_total{mode=\"isolation\",result=\"refused\"}"), 2.0);
    assert_eq!(metric(&daemon, "apex_starts_total{mode=\"isolation\",result=\"running\"}"), 2.0);
}

#[test]
fn a_start_waits_for_room_until_it_is_there_or_its_time_is_over() {
    let daemon = Daemon::start(&["--budget", "memory=700M"]);
    let id = daemon.create(&["--memory", "400M"], &["/bin/sleep", "300"]);
    let waiting = begin(&daemon, &["--memory", "400M", "--wait-for-room", "5m"]);
    until_metric(&daemon, "apex_budget_waiting", |count| count == 1.0);
    // A smaller one of the same user does not pass it by, but is not waited for either.
    let behind = daemon.apex(&sleeper(&["--memory", "200M"]));
    assert!(behind.code == 125 && behind.err().contains("1 of your own starts waits"), "{behind:?}");
    let late = daemon.apex(&sleeper(&["--memory", "400M", "--wait-for-room", "300ms"]));
    assert!(late.code == 125 && late.err().contains("of waiting"), "{late:?}");
    daemon.apex(&["kill", &id]).expect_code(0);
    let output = sandbox::collect(waiting).expect_code(0);
    assert_eq!(daemon.json(&["inspect", output.out().trim()])["state"], "running");
    assert_eq!(metric(&daemon, "apex_budget_waiting"), 0.0);
}

#[test]
fn a_start_that_waits_can_be_ended() {
    let daemon = Daemon::start(&["--budget", "memory=700M"]);
    daemon.create(&["--memory", "400M"], &["/bin/sleep", "300"]);
    let waiting = begin(&daemon, &["--memory", "400M", "--name", "later", "--wait-for-room", "5m"]);
    until_metric(&daemon, "apex_budget_waiting", |count| count == 1.0);
    assert_eq!(daemon.json(&["inspect", "later"])["state"], "creating");
    daemon.apex(&["kill", "later"]).expect_code(0);
    let output = sandbox::collect(waiting);
    assert!(output.code == 125 && output.err().contains("ended while it waited"), "{output:?}");
    assert_eq!(metric(&daemon, "apex_budget_waiting"), 0.0);
    assert_eq!(metric(&daemon, "apex_budget_reserved{resource=\"memory\"}"), f64::from(400 << 20));
}

#[test]
fn the_next_daemon_counts_what_it_takes_up() {
    let mut daemon = Daemon::start(&["--budget", "memory=700M"]);
    let id = daemon.create(&["--memory", "400M"], &["/bin/sleep", "300"]);
    daemon.kill_and_restart();
    assert_eq!(metric(&daemon, "apex_budget_reserved{resource=\"memory\"}"), f64::from(400 << 20));
    let refused = daemon.apex(&sleeper(&["--memory", "400M"]));
    assert!(refused.code == 125 && refused.err().contains(&id), "{refused:?}");
    daemon.apex(&["kill", &id]).expect_code(0);
    daemon.create(&["--memory", "400M"], &["/bin/sleep", "300"]);
}

#[test]
fn lowered_limits_make_room_which_is_then_not_there_to_be_taken_back() {
    if !as_root() {
        skip!("only root has limits that can be changed here");
    }
    let daemon = Daemon::start(&["--budget", "memory=700M"]);
    let first = daemon.create(&["--memory", "400M"], &["/bin/sleep", "300"]);
    daemon.apex(&["limits", "set", &first, "--memory", "100M"]).expect_code(0);
    let second = daemon.create(&["--memory", "500M"], &["/bin/sleep", "300"]);
    let refused = daemon.apex(&["limits", "set", &first, "--memory", "400M"]);
    assert!(refused.code == 125 && refused.err().contains(&second), "{refused:?}");
    assert_eq!(daemon.json(&["inspect", &first])["limits"]["memory_bytes"], 100 << 20);
    daemon.apex(&["kill", &second]).expect_code(0);
    daemon.apex(&["limits", "set", &first, "--memory", "400M"]).expect_code(0);
}

/// The daemon does not read what a policy builds on: what the sandbox stands with is what counts.
#[test]
fn a_policy_does_not_bring_more_than_there_is_room_for() {
    if !has_cgroup() {
        skip!("no delegated cgroup for an unprivileged user");
    }
    let daemon = Daemon::start(&["--budget", "memory=2560M"]);
    let wide = daemon.dir().file("wide.toml", "[resources]\nmemory = \"3G\"\n");
    let through = daemon.dir().file("through.toml", &format!("extends = [{wide:?}]\n"));
    let output = daemon.apex(&sleeper(&["--mode", "hybrid", "--policy", &through]));
    assert!(output.code == 125 && output.err().contains("no room"), "{output:?}");
    until_metric(&daemon, "apex_budget_reserved{resource=\"memory\"}", |bytes| bytes == 0.0);
    let states = daemon.json(&["ls", "--all"]);
    assert!(states.as_array().is_some_and(|rows| rows.iter().all(|row| row["state"] == "failed")), "{states}");
}

#[test]
fn under_pressure_nothing_new_is_started() {
    if std::fs::read_to_string("/proc/pressure/memory").is_err() {
        skip!("this kernel does not tell of pressure");
    }
    // From nothing at all on.
    let daemon = Daemon::start(&["--pressure", "0"]);
    let refused = daemon.apex(&sleeper(&[]));
    assert!(refused.code == 125 && refused.err().contains("short of memory"), "{refused:?}");
    let late = daemon.apex(&sleeper(&["--wait-for-room", "200ms"]));
    assert!(late.code == 125 && late.err().contains("of waiting the host is short of memory"), "{late:?}");
}

/// A number of what a sandbox uses, 0 where it is not told.
fn used(sandbox: &serde_json::Value, field: &str) -> u64 {
    sandbox["usage"][field].as_u64().unwrap_or(0)
}

#[test]
fn what_a_sandbox_uses_is_told() {
    if !as_root() {
        skip!("no delegated cgroup for an unprivileged user");
    }
    let daemon = Daemon::start(&[]);
    let out = daemon.dir().dir("out");
    let work = format!(
        "dd if=/dev/zero of=/tmp/x bs=1M count=20 2>/dev/null; dd if=/dev/zero of={out}/f bs=1M count=8 conv=fsync 2>/dev/null; \
         for n in 1 2 3; do echo hello >/dev/udp/127.0.0.1/9; done; while :; do :; done"
    );
    let args = ["--memory", "128M", "--cpu", "30", "--rw", &out];
    let id = daemon.create(&args, &["/bin/bash", "-c", &work]);
    let told = daemon.until(&id, |sandbox| used(sandbox, "cpu_us") > 0 && used(sandbox, "cpu_throttled_us") > 0);
    let told = if used(&told, "network_sent_bytes") > 0 {
        told
    } else {
        daemon.until(&id, |sandbox| used(sandbox, "network_sent_bytes") > 0)
    };
    assert!(used(&told, "memory_peak_bytes") >= 20 << 20, "{told:#}");
    assert!(used(&told, "memory_peak_bytes") >= used(&told, "memory_bytes"), "{told:#}");
    assert!(used(&told, "memory_shared_bytes") >= 20 << 20, "a private directory is memory: {told:#}");
    assert!(used(&told, "io_written_bytes") >= 8 << 20, "{told:#}");
    assert!(used(&told, "network_received_bytes") > 0, "{told:#}");
    assert!(used(&told, "cpu_periods") >= used(&told, "cpu_throttled_periods"), "{told:#}");
    assert_eq!((used(&told, "oom_kills"), used(&told, "tasks_refused")), (0, 0), "{told:#}");
    let table = daemon.apex(&["stats"]).expect_code(0);
    assert!(table.out().contains("THROTTLED") && table.out().contains(&id), "{table:?}");
    // The network of the host is everybody's: what of it is this sandbox's is not known.
    let id = daemon.create(&["--mode", "hybrid", "--net", "host"], &["/bin/sleep", "300"]);
    let told = daemon.json(&["inspect", &id]);
    assert!(told["usage"]["tasks"].as_u64() > Some(0) && told["usage"]["network_sent_bytes"].is_null(), "{told:#}");
    daemon.apex(&["kill", &id]).expect_code(0);
    assert!(daemon.json(&["inspect", &id])["usage"].is_null(), "what is over uses nothing");
}

#[test]
fn limits_that_were_met_are_counted() {
    if !as_root() {
        skip!("no delegated cgroup for an unprivileged user");
    }
    let daemon = Daemon::start(&[]);
    let id = daemon.create(&["--tasks", "6"], &["/bin/sh", "-c", FORKS]);
    daemon.until(&id, |sandbox| used(sandbox, "tasks_refused") > 0);
    let table = daemon.apex(&["stats"]).expect_code(0);
    assert!(table.out().contains("tasks 1"), "{table:?}");
    let id = daemon.create(&["--memory", "32M"], &["/bin/sh", "-c", EATS]);
    let told = daemon.until(&id, |sandbox| used(sandbox, "oom_kills") > 0);
    // Or not counted: cgroup v1, where the limit with swap is the same.
    assert!(told["usage"]["memory_limit_hits"].as_u64() != Some(0), "{told:#}");
    assert_eq!(used(&told, "memory_peak_bytes"), 32 << 20, "{told:#}");
}

/// What eats more memory than it may have, and then sleeps.
const EATS: &str = "(head -c 200M /dev/zero | tail) 2>/dev/null; exec sleep 300";
/// What starts more tasks than it may have, and then sleeps.
const FORKS: &str = "(n=0; while [ $n -lt 20 ]; do sleep 300 & n=$((n+1)); done) 2>/dev/null; exec sleep 300";

#[test]
fn a_sandbox_at_its_limit_of_memory_is_frozen_and_can_be_released() {
    if !as_root() {
        skip!("no delegated cgroup for an unprivileged user");
    }
    let daemon = Daemon::start(&[]);
    let args = ["--memory", "48M", "--on-limit", "memory=freeze"];
    let id = daemon.create(&args, &["/bin/sh", "-c", EATS]);
    let frozen = daemon.until(&id, |sandbox| sandbox["state"] == "frozen");
    for field in ["tightened_by", "limit_reached"] {
        assert!(
            frozen[field].as_str().is_some_and(|words| words.contains("limit of memory 48M reached")),
            "{frozen:#}"
        );
    }
    let audit = daemon.audit();
    let line = audit.iter().find(|line| line.to_string().contains("limit: limit of memory"));
    assert!(line.is_some_and(|line| line["api"]["operation"] == "limits"), "{audit:?}");
    assert_eq!(metric(&daemon, "apex_limits_hit_total{resource=\"memory\",action=\"freeze\"}"), 1.0);
    daemon.apex(&["resume", &id]).expect_code(0);
    let released = daemon.json(&["inspect", &id]);
    assert_eq!((released["state"].as_str(), released["tightened_by"].as_str()), (Some("running"), Some("")));
}

#[test]
fn a_sandbox_at_its_limit_of_tasks_is_ended() {
    if !as_root() {
        skip!("no delegated cgroup for an unprivileged user");
    }
    let daemon = Daemon::start(&[]);
    let args = ["--tasks", "6", "--on-limit", "tasks=terminate"];
    let id = daemon.create(&args, &["/bin/sh", "-c", FORKS]);
    let ended = daemon.until(&id, |sandbox| sandbox["state"] == "ended");
    assert!(ended["limit_reached"].as_str().is_some_and(|words| words.contains("(terminate)")), "{ended:#}");
    // One that was built ahead, before anybody said what is to be done, likewise.
    daemon.apex(&["pool", "set", "1", "--tasks", "6", "--", "/bin/sh"]).expect_code(0);
    let end = Instant::now() + PATIENCE;
    while daemon.json(&["pool", "ls"])[0]["ready"] != 1 {
        assert!(Instant::now() < end, "the pool fills");
        std::thread::sleep(Duration::from_millis(20));
    }
    let id = daemon.create(&[&["--pool"], &args[..]].concat(), &["/bin/sh", "-c", FORKS]);
    assert_eq!(daemon.json(&["pool", "ls"])[0]["hits"], 1, "it came from the pool");
    let ended = daemon.until(&id, |sandbox| sandbox["state"] == "ended");
    assert!(ended["limit_reached"].as_str().is_some_and(|words| words.contains("(terminate)")), "{ended:#}");
}

#[test]
fn a_sandbox_that_always_wants_more_cpu_is_throttled() {
    if !as_root() {
        skip!("no delegated cgroup for an unprivileged user");
    }
    let daemon = Daemon::start(&[]);
    let args = ["--cpu", "20", "--on-limit", "cpu=throttle"];
    let id = daemon.create(&args, &["/bin/sh", "-c", "while :; do :; done"]);
    let told = daemon.until(&id, |sandbox| sandbox["limits"]["cpu_percent"] == 10);
    assert_eq!(told["limits_born"]["cpu_percent"], 20, "{told:#}");
    assert_eq!(told["state"], "running");
}

#[test]
fn a_limit_that_is_only_told_is_told_once_by_whatever_daemon() {
    if !as_root() {
        skip!("no delegated cgroup for an unprivileged user");
    }
    let mut daemon = Daemon::start(&[]);
    let args = ["--memory", "48M", "--on-limit", "memory=warn"];
    let id = daemon.create(&args, &["/bin/sh", "-c", EATS]);
    let warned = daemon.until(&id, |sandbox| sandbox["limit_reached"] != "");
    assert_eq!(warned["state"], "running", "{warned:#}");
    daemon.kill_and_restart();
    // Longer than two looks.
    std::thread::sleep(Duration::from_millis(2500));
    let told = daemon.audit().into_iter().filter(|line| line.to_string().contains("limit of memory")).count();
    assert_eq!(told, 1, "{:?}", daemon.audit());
    assert_eq!(daemon.json(&["inspect", &id])["state"], "running");
}

#[test]
fn what_is_no_action_at_a_limit_is_refused() {
    let daemon = Daemon::start(&[]);
    for (words, expected) in [("time=warn", "ends a sandbox by itself"), ("memory=stop", "there are warn, throttle")] {
        let refused = daemon.apex(&sleeper(&["--on-limit", words]));
        assert!(refused.code == 125 && refused.err().contains(expected), "{refused:?}");
    }
    if !as_root() {
        // Nothing is seen without a cgroup, and that is said.
        let id = daemon.create(&["--on-limit", "memory=warn"], &["/bin/sleep", "300"]);
        daemon.until(&id, |sandbox| sandbox["limit_reached"].as_str().is_some_and(|words| words.contains("no cgroup")));
    }
}

#[test]
fn metrics_are_what_prometheus_reads() {
    let daemon = Daemon::start(&["--budget", "memory=2G"]);
    let id = daemon.create(&["--name", "one"], &["/bin/sleep", "300"]);
    daemon.apex(&sleeper(&["--memory", "3G"]));
    daemon.apex(&[&["create", "--ro", "/no/such/dir"], lenient(), &["--", "/bin/true"]].concat());
    daemon.apex(&["inspect", "nobody"]);
    get(&daemon, "/nothing/here/{with=\"braces\"}");
    get(&daemon, "/v1/sandboxes/none");
    daemon.apex(&["kill", &id]).expect_code(0);
    let text = metrics(&daemon);
    assert_eq!(apex_tests::prometheus::faults(&text), Vec::<String>::new(), "{text}");
    let check = |series: &str, expected: f64| assert_eq!(metric(&daemon, series), expected, "{series} in {text}");
    check("apex_starts_total{mode=\"isolation\",result=\"running\"}", 1.0);
    check("apex_starts_total{mode=\"isolation\",result=\"refused\"}", 1.0);
    check("apex_starts_total{mode=\"isolation\",result=\"failed\"}", 1.0);
    check("apex_start_seconds_count{mode=\"isolation\"}", 1.0);
    check("apex_transitions_total{kind=\"kill\",outcome=\"applied\"}", 1.0);
    check("apex_transition_seconds_bucket{kind=\"kill\",le=\"+Inf\"}", 1.0);
    check("apex_api_requests_total{api=\"grpc\",method=\"Inspect\",status=\"not-found\"}", 1.0);
    check("apex_api_requests_total{api=\"grpc\",method=\"Create\",status=\"exhausted\"}", 1.0);
    check("apex_api_requests_total{api=\"rest\",method=\"other\",status=\"not-found\"}", 1.0);
    assert!(!text.contains("braces"), "a stranger's words are no labels: {text}");
    for process in ["apexd", "warden"] {
        let bytes = metric(&daemon, &format!("apex_process_resident_bytes{{process=\"{process}\"}}"));
        assert!((100e3..1e9).contains(&bytes), "{process}: {bytes}");
    }
}

#[test]
fn what_was_seen_and_concluded_is_counted() {
    if !as_root() {
        skip!("only root loads probes");
    }
    let daemon = Daemon::start(&[]);
    let home = daemon.dir().dir("home");
    for name in [".ssh/id_rsa", ".aws/credentials", ".netrc", ".docker/config.json", ".kube/config", ".pgpass"] {
        daemon.dir().file(&format!("home/{name}"), "secret");
    }
    let sweep = "cd /tmp/h; cat .ssh/id_rsa .aws/credentials .netrc .docker/config.json .kube/config .pgpass >/dev/null; sleep 300";
    let args = ["--watch", "--on-finding", "freeze", "--ro", &format!("{home}:/tmp/h")];
    let id = daemon.create(&args, &["/bin/sh", "-c", sweep]);
    daemon.until(&id, |sandbox| sandbox["state"] == "frozen");
    assert_eq!(metric(&daemon, "apex_transitions_total{kind=\"finding\",outcome=\"applied\"}"), 1.0);
    daemon.apex(&["kill", &id]).expect_code(0);
    until_metric(&daemon, "apex_events_total", |count| count > 0.0);
    let text = metrics(&daemon);
    assert!(text.contains("apex_findings_total{severity=\"high\",rule=\""), "{text}");
    assert_eq!(apex_tests::prometheus::faults(&text), Vec::<String>::new(), "{text}");
}

/// The launcher of a sandbox: the cgroups bear its pid.
fn keeper(sandbox: &serde_json::Value) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", sandbox["pid"])).expect("it runs");
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("it has a parent");
    parent.trim().parse().expect("a number")
}

#[test]
fn what_ends_leaves_nothing_and_touches_nobody() {
    if !as_root() {
        skip!("no delegated cgroup for an unprivileged user");
    }
    let daemon = Daemon::start(&[]);
    let start = |args: &[&str], command: &[&str]| {
        let id = daemon.create(args, command);
        let keeper = keeper(&daemon.json(&["inspect", &id]));
        assert!(!leaks::cgroups(keeper).is_empty(), "it has cgroups");
        (id, keeper)
    };
    let sleep = ["/bin/sleep", "300"];
    let bystander = start(&[], &sleep);
    let before = leaks::cgroups(bystander.1);
    let by_hand = start(&[], &sleep);
    let by_limit =
        start(&["--tasks", "6", "--on-limit", "tasks=terminate"], &["/bin/sh", "-c", &format!("sleep 1; {FORKS}")]);
    let by_itself = start(&[], &["/bin/sleep", "1"]);
    daemon.apex(&["kill", &by_hand.0]).expect_code(0);
    for (id, keeper) in [by_hand, by_limit, by_itself] {
        daemon.until(&id, |sandbox| sandbox["state"] == "ended");
        let end = Instant::now() + PATIENCE;
        while !leaks::cgroups(keeper).is_empty() || std::fs::exists(format!("/proc/{keeper}")).unwrap_or(true) {
            assert!(Instant::now() < end, "left behind: {:?}", leaks::cgroups(keeper));
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon.apex(&["rm", &id]).expect_code(0);
    }
    assert_eq!(leaks::cgroups(bystander.1), before);
    assert_eq!(daemon.json(&["inspect", &bystander.0])["state"], "running");
    assert_eq!(metric(&daemon, "apex_budget_reserved{resource=\"memory\"}"), f64::from(512 << 20));
    assert_eq!(std::fs::read_dir(daemon.dir().at("state/sandboxes")).expect("it is there").count(), 1);
}

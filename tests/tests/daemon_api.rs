//! The real daemon hears what the server in memory hears in `runtime/api/tests/fuzz.rs`: broken and hostile clients. `APEX_FUZZ_SEED` and `APEX_FUZZ_CASES`
//! ask for others and more.

use std::path::Path;

use apex_tests::daemon::Daemon;
use apex_tests::wire::{self, Dice};
use serde_json::Value;

/// Cases of each kind in an ordinary run; many of them start a sandbox.
const CASES: u64 = 300;
/// Bytes by which the daemon may grow meanwhile: what the allocator keeps, and the sandboxes that were made.
const GROWTH_BYTES_MAX: u64 = 64 << 20;

fn asked(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn descriptors(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("it runs").count()
}

/// Cases of one kind; afterwards it is the same daemon, which has grown by nothing and lost nothing.
fn cases(case: impl Fn(&Path, &mut Dice, u64)) {
    let daemon = Daemon::start(&[]);
    let keeps = daemon.create(&["--name", "keeps"], &["/bin/sleep", "300"]);
    let socket = daemon.socket();
    let seed = asked("APEX_FUZZ_SEED", 1);
    let mut before = (0, 0);
    for at in 0..asked("APEX_FUZZ_CASES", CASES) {
        if at == 50 {
            before = (daemon.memory_bytes(), descriptors(&daemon));
        }
        let seed = seed << 32 | at;
        case(Path::new(&socket), &mut Dice::new(seed), seed);
        if at % 50 == 0 {
            assert_eq!(daemon.rest("GET", "/readyz", "").0, 200, "after case {seed}");
        }
    }
    let rows = daemon.json(&["ls"]);
    let running: Vec<&Value> = rows.as_array().expect("an array").iter().collect();
    assert!(running.iter().any(|row| row["id"] == keeps.as_str()), "{rows}");
    // What still runs has its descriptors.
    let room = 8 * running.len();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while descriptors(&daemon) > before.1 + room {
        assert!(std::time::Instant::now() < end, "{} descriptors became {}", before.1, descriptors(&daemon));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let grown = daemon.memory_bytes().saturating_sub(before.0);
    assert!(grown < GROWTH_BYTES_MAX, "it grew by {grown} bytes");
    assert!(!daemon.words().contains("panicked"), "{}", daemon.words());
    assert_eq!(daemon.json(&["audit", "verify"])["intact"], true);
    let services = daemon.json(&["tree"]);
    let restarts = services["services"].as_array().map(|all| all.iter().filter(|one| one["restarts"] != 0).count());
    assert_eq!(restarts, Some(0), "{services}");
}

#[test]
fn json_of_every_wrong_shape_is_refused_with_words() {
    cases(|socket, dice, seed| {
        // Half of them make something: most fields are there.
        let (method, route) = if dice.below(2) == 0 { wire::ROUTES[0] } else { dice.of(&wire::ROUTES) };
        let (path, body) = (wire::path(dice, route), wire::body(dice));
        let answer = wire::say(socket, &wire::request(method, &path, &body)).unwrap_or_else(|| panic!("{seed}: hangs"));
        let text = String::from_utf8_lossy(&answer).into_owned();
        let status = wire::status(&answer).unwrap_or_else(|| panic!("{seed}: no status: {text}"));
        assert!((200..500).contains(&status), "{seed}: {method} {path}: {text}");
        if let Some((_, body)) = text.split_once("\r\n\r\n").filter(|(_, body)| status >= 400 && !body.is_empty()) {
            let told: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{seed}: {error}: {text}"));
            assert!(!told["error"]["message"].as_str().unwrap_or_default().is_empty(), "{seed}: {text}");
        }
    });
}

#[test]
fn broken_http1_is_answered_or_hung_up_on() {
    cases(|socket, dice, seed| {
        let answer = wire::say(socket, &wire::http1(dice)).unwrap_or_else(|| panic!("{seed}: hangs"));
        let status = wire::status(&answer).unwrap_or(400);
        assert!(status < 500, "{seed}: {}", String::from_utf8_lossy(&answer));
    });
}

#[test]
fn broken_http2_is_answered_or_hung_up_on() {
    cases(|socket, dice, seed| {
        let bytes = wire::http2(dice);
        assert!(wire::say(socket, &bytes).is_some(), "{seed}: hangs");
    });
}

//! What `--deny` does to the host: two sandboxes at once, a killed one, and nothing left.

use std::fs;
use std::time::{Duration, Instant};

use apex_tests::{Mode, TempDir, armed, leaks};
use nix::sys::signal::Signal;

const SECRET: &str = "the secret";
const PATIENCE: Duration = Duration::from_secs(10);

/// What the directory holds once the sandbox has had time to go.
fn settled(dir: &TempDir, wanted: &[&str]) -> Vec<String> {
    let end = Instant::now() + PATIENCE;
    loop {
        let listing = dir.listing();
        if listing == wanted || Instant::now() > end {
            return listing;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The first to end must not take the placeholder from the second, and the second leaves nothing.
#[test]
fn two_sandboxes_with_the_same_deny() {
    for first_to_end in [0, 1] {
        let dir = TempDir::new();
        let sandbox = || {
            Some(
                apex_tests::Sandbox::with_attack()?
                    .mode(Mode::Isolation)
                    .rw(&dir.text(), "/tmp/data")
                    .deny(&dir.at("secret")),
            )
        };
        let (Some(one), Some(two)) = (sandbox(), sandbox()) else {
            apex_tests::skip!("no C compiler with static libraries to build the attack program")
        };
        let mut sessions = vec![one.session(), two.session()];
        for session in &mut sessions {
            session.refused("create /tmp/data/secret");
        }
        sessions.remove(first_to_end).finish().expect_code(0);
        let mut rest = sessions.remove(0);
        for way in ["create", "mkdir", "read"] {
            rest.refused(&format!("{way} /tmp/data/secret"));
        }
        rest.finish().expect_code(0);
        assert_eq!(dir.listing(), [""; 0], "something was left on the host");
    }
}

/// Killed with a placeholder in place: a later sandbox, or the kernel, takes it away; a file with content never is.
#[test]
fn a_killed_run_leaves_no_placeholder_for_ever() {
    let dir = TempDir::new();
    let sandbox = armed!().mode(Mode::Isolation).rw(&dir.text(), "/tmp/data").deny(&dir.at("secret"));
    let mut session = sandbox.session();
    session.refused("create /tmp/data/secret");
    let pid = session.pid().unsigned_abs();
    session.signal(Signal::SIGKILL);
    let output = session.finish();
    assert_eq!(output.code, 128 + 9);
    leaks::expect_none(sandbox.mark(), pid);
    let again = sandbox.attempt(&["create", "/tmp/data/secret"]);
    assert!(again.starts_with('E'), "{again}");
    assert_eq!(settled(&dir, &[]), [""; 0], "a killed run left its placeholder, and the next run did not take it away");
}

/// A file that the host wrote into the placeholder's name is the host's.
#[test]
fn a_file_of_the_host_is_never_removed() {
    let dir = TempDir::new();
    let sandbox = armed!().mode(Mode::Isolation).rw(&dir.text(), "/tmp/data").deny(&dir.at("secret"));
    let mut session = sandbox.session();
    session.refused("read /tmp/data/secret");
    fs::write(dir.at("secret"), SECRET).expect("the host may use the name");
    session.signal(Signal::SIGKILL);
    session.finish();
    sandbox.attempt(&["read", "/tmp/data/secret"]);
    assert_eq!(dir.read("secret"), SECRET);
    // An empty file of the host is the host's too.
    fs::remove_file(dir.at("secret")).expect("it is ours");
    fs::write(dir.at("secret"), "").expect("it is ours");
    sandbox.attempt(&["read", "/tmp/data/secret"]);
    assert_eq!(dir.listing(), ["secret"], "an empty file of the host was taken for a placeholder");
}

/// Where the caller may not make a placeholder, the start is refused rather than the rule forgotten.
#[test]
fn a_placeholder_that_cannot_be_made() {
    if apex_tests::as_root() {
        apex_tests::skip!("root may make a placeholder anywhere");
    }
    let output = armed!().mode(Mode::Isolation).ro("/usr", "/tmp/data").deny("/usr/apex-none").run(&[
        "/tmp/attack/attack64",
        "exit",
        "0",
    ]);
    if output.code == 0 {
        // Nobody inside can create it either, and it is not there.
        assert!(!fs::exists("/usr/apex-none").unwrap_or(true));
    } else {
        output.expect_refusal(&["/usr/apex-none"]);
    }
}

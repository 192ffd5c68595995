//! A crash inside starts nothing outside: a core_pattern with a pipe would run its handler as root on the host.

use std::os::unix::fs::PermissionsExt as _;

use apex_tests::{Mode, Sandbox, TempDir, as_root, skip};

const PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// What crashes here, by the name that the kernel hands to the handler: the pattern is the whole machine's, and what else crashes meanwhile is not of this test.
const CRASHER: &str = "apex-crasher";
/// Does as it is told, says when that has moved the soft limit, and crashes.
const CRASH: &str = "#!/bin/bash
before=$(prlimit --core --raw --noheadings --output SOFT)
eval \"$1\"
[ $(prlimit --core --raw --noheadings --output SOFT) = $before ] || echo moved
kill -SEGV $$
";

/// A core limit of 0 asks for the handler; each way of setting it, and one process doing it to another. Who sets its own is told that it is done: gpg and ssh-agent
/// give up otherwise.
const LOWERINGS: [&str; 5] = [
    "true",
    "ulimit -c 0 || exit 3",
    "ulimit -S -c 0 || exit 3",
    "prlimit --core=0:0 --pid $$ 2>/dev/null && exit 4",
    "(prlimit --core=0 --pid $PPID) 2>/dev/null && exit 4",
];

/// Puts the machine's own pattern back, whatever happens to the test.
struct Pattern(String);

impl Pattern {
    fn set(handler: &str) -> Pattern {
        let old = std::fs::read_to_string(PATTERN).expect("readable");
        std::fs::write(PATTERN, format!("|{handler} %p %e\n")).expect("root may set it");
        Pattern(old)
    }
}

impl Drop for Pattern {
    fn drop(&mut self) {
        std::fs::write(PATTERN, &self.0).expect("root may set it");
    }
}

#[test]
fn a_crash_inside_starts_no_handler_outside() {
    if !as_root() {
        skip!("only root sets core_pattern");
    }
    let dir = TempDir::new();
    let seen = dir.at("seen");
    let script = |name: &str, text: &str| {
        let path = dir.file(name, text);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("ours");
        path
    };
    let crasher = script(CRASHER, CRASH);
    let handler =
        script("handler", &format!("#!/bin/sh\ncat >/dev/null\n[ \"$2\" != {CRASHER} ] || echo \"$1\" >>{seen}\n"));
    let _pattern = Pattern::set(&handler);
    let handled = || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        std::fs::read_to_string(&seen).unwrap_or_default()
    };
    // The handler works: a crash outside starts it.
    let outside = std::process::Command::new(&crasher).arg("ulimit -c 0").status().expect("it is there");
    assert!(!outside.success());
    let before = handled();
    assert_ne!(before, "", "no handler for a crash outside");
    for mode in Mode::ALL {
        for lowering in LOWERINGS {
            let run = Sandbox::new().mode(mode).ro(&crasher, &crasher).run(&[&crasher, lowering]);
            assert_eq!(run.expect_code(128 + 11).out(), "", "{mode:?}: {lowering}");
            assert_eq!(handled(), before, "a crash inside started the host's handler: {mode:?}: {lowering}");
        }
    }
}

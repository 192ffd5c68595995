//! A crash inside starts nothing outside: a core_pattern with a pipe would run its handler as root on the host.

use apex_tests::{Sandbox, TempDir, as_root, skip};

const PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// What crashes here, by the name that the kernel hands to the handler: the pattern is the whole machine's, and what else crashes meanwhile is not of this test.
const CRASHER: &str = "apex-crasher";
const CRASH: &str = "printf apex-crasher >/proc/$$/comm; kill -SEGV $$";

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
    let handler =
        dir.file("handler", &format!("#!/bin/sh\ncat >/dev/null\n[ \"$2\" != {CRASHER} ] || echo \"$1\" >>{seen}\n"));
    std::fs::set_permissions(&handler, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
    let _pattern = Pattern::set(&handler);
    // The handler works: a crash outside starts it.
    let outside =
        std::process::Command::new("/bin/sh").args(["-c", &format!("ulimit -c 0; {CRASH}")]).status().expect("sh");
    assert!(!outside.success());
    let wait = || std::thread::sleep(std::time::Duration::from_millis(300));
    wait();
    let before = std::fs::read_to_string(&seen).expect("the handler ran for a crash outside");
    Sandbox::new().run(&["/bin/sh", "-c", CRASH]).expect_code(128 + 11);
    wait();
    assert_eq!(
        std::fs::read_to_string(&seen).expect("it is there"),
        before,
        "a crash inside started the host's handler"
    );
}

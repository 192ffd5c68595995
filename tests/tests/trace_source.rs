//! Events of real programs by the ptrace source, as root and as a user without privilege.

use apex_core::event::{Errno, What};
use apex_core::refusal::Access;
use apex_tests::traced::{User, run};

#[test]
fn births_programs_ends_and_files_are_told() {
    for user in User::all() {
        println!("{user:?}");
        let script =
            "cat /etc/passwd >/dev/null; echo x >/tmp/a; mv /tmp/a /tmp/b; rm /tmp/b; (exit 3); cat /etc/none; exit 7";
        let traced = run(*user, "full", &[], &["/bin/sh", "-c", script]);
        assert_eq!(traced.output.code, 7, "{}", traced.output.err());
        traced.expect_whole_lives();
        assert_eq!(traced.programs(), ["/usr/bin/dash", "/usr/bin/cat", "/usr/bin/mv", "/usr/bin/rm", "/usr/bin/cat"]);
        let ends: Vec<_> = traced.what().filter(|what| matches!(what, What::Exit { .. })).collect();
        let end = |code| What::Exit { code: Some(code), signal: None };
        assert_eq!(ends, [&end(0), &end(0), &end(0), &end(3), &end(1), &end(7)]);
        let open =
            |path: &str, access, create, truncate| What::Open { path: path.to_owned(), access, create, truncate };
        for wanted in [
            open("/etc/passwd", Access::Read, false, false),
            open("/tmp/a", Access::Write, true, true),
            What::Rename { from: "/tmp/a".to_owned(), to: "/tmp/b".to_owned() },
            What::Unlink { path: "/tmp/b".to_owned() },
        ] {
            let found = traced.events.iter().find(|event| event.what == wanted);
            let found = found.unwrap_or_else(|| panic!("{wanted:?} was not told"));
            assert_eq!(found.error, None);
            assert_eq!(found.sandbox, u64::from(traced.events[0].ppid));
        }
        let missing = open("/etc/none", Access::Read, false, false);
        let missing = traced.events.iter().find(|event| event.what == missing).expect("attempts are told");
        assert_eq!((missing.error, missing.comm.as_str()), (Some(Errno::ENOENT), "cat"));
    }
}

#[test]
fn a_signal_that_ends_the_command_is_told_and_passed_on() {
    for user in User::all() {
        let traced = run(*user, "default", &[], &["/bin/sh", "-c", "kill -TERM $$"]);
        assert_eq!(traced.output.code, 128 + 15, "{}", traced.output.err());
        traced.expect_whole_lives();
        let last = traced.what().last().expect("there are events");
        assert_eq!(*last, What::Exit { code: None, signal: Some(15) });
    }
}

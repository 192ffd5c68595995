//! The same bodies under each mode, by the daemon and by `apex-run`: a mode means the same whoever starts the sandbox.

use apex_tests::daemon::Daemon;
use apex_tests::modes::Stage;
use apex_tests::{Output, apex_run, each_mode, sandbox, skip};
use std::process::{Command, Stdio};

#[test]
fn a_mode_lets_a_sandbox_of_the_daemon_do_what_it_declares() {
    let Some(stage) = Stage::set() else { skip!("no C compiler with static libraries to build the attack program") };
    let daemon = Daemon::start(&[]);
    each_mode(|mode| {
        let words = stage.words(mode);
        let words: Vec<&str> = ["run"].into_iter().chain(words.iter().map(String::as_str)).collect();
        stage.check(mode, &daemon.apex(&words));
    });
}

#[test]
fn a_mode_lets_a_sandbox_of_apex_run_do_the_same() {
    let Some(stage) = Stage::set() else { skip!("no C compiler with static libraries to build the attack program") };
    each_mode(|mode| {
        let mut command = Command::new(apex_run());
        command.args(stage.words(mode)).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output: Output = sandbox::collect(command.spawn().expect("apex-run starts"));
        stage.check(mode, &output);
    });
}

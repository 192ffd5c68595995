//! A terminal of the sandbox's own: under `--tty yes` and on a terminal; nothing is typed into the caller's.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use apex_tests::attack::Abi;
use apex_tests::sandbox::{exit_code, wait};
use apex_tests::{Mode, Sandbox, armed};
use nix::pty::{OpenptyResult, Winsize, openpty};

const PATIENCE: Duration = Duration::from_secs(30);
const SIZE: Winsize = Winsize { ws_row: 33, ws_col: 111, ws_xpixel: 0, ws_ypixel: 0 };

/// Runs `inside` with a terminal that the test made as its three streams and as its controlling terminal. Once `marker` is
/// shown, `typed` is typed. Returns the exit code, and what the terminal showed.
fn on_terminal(sandbox: &Sandbox, inside: &[&str], marker: &str, typed: &str) -> (i32, String) {
    let OpenptyResult { master, slave } = openpty(&SIZE, None).expect("the host has terminals");
    let plain = sandbox.command(inside);
    let mut command = Command::new("setsid");
    command.args(["--ctty", "--wait"]).arg(plain.get_program()).args(plain.get_args());
    command.current_dir(sandbox.cwd()).env("HOME", sandbox.cwd());
    let end = || Stdio::from(slave.try_clone().expect("it can be duplicated"));
    let mut child = command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("setsid starts");
    drop(command);
    drop(slave);
    let shown = watch(File::from(master), marker.to_owned(), typed.to_owned());
    let status = wait(&mut child, PATIENCE);
    let text = shown.recv_timeout(PATIENCE).expect("the terminal was let go of");
    (exit_code(status.unwrap_or_else(|| panic!("it hung: {text}"))), text)
}

/// Reads until the last holder of the other end is gone (EIO), and types once the marker was seen.
fn watch(mut master: File, marker: String, typed: String) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let mut block = [0; 4096];
        let mut is_typed = typed.is_empty();
        while let Ok(got @ 1..) = master.read(&mut block) {
            text.push_str(&String::from_utf8_lossy(&block[..got]).replace('\r', ""));
            if !is_typed && text.contains(&marker) {
                is_typed = true;
                master.write_all(typed.as_bytes()).expect("a terminal takes what is typed");
            }
        }
        // Nobody listens any more when the test has failed already.
        let _ = sender.send(text);
    });
    receiver
}

#[test]
fn a_terminal_of_its_own() {
    let sandbox = armed!().mode(Mode::Isolation).args(["--tty", "yes"]);
    let (code, shown) = on_terminal(&sandbox, &[Abi::X64.program(), "terminal"], "", "");
    assert_eq!(code, 0, "{shown}");
    for part in ["in=1 out=1 err=1", "rows=33 cols=111", "leader=1 session=1 foreground=1", "name=/dev/pts/"] {
        assert!(shown.contains(part), "{part} is missing: {shown}");
    }
}

#[test]
fn a_terminal_is_given_by_itself_on_a_terminal() {
    let sandbox = armed!().mode(Mode::Isolation);
    let (code, shown) = on_terminal(&sandbox, &[Abi::X64.program(), "terminal"], "", "");
    assert_eq!(code, 0, "{shown}");
    assert!(shown.contains("in=1 out=1 err=1") && shown.contains("session=1"), "{shown}");
}

/// Without one asked for and without one outside, there is none, and none can be taken.
#[test]
fn no_terminal_without_one() {
    let answer = armed!().mode(Mode::Isolation).attempt(&["terminal"]);
    assert!(answer.contains("in=0 out=0 err=0"), "{answer}");
    let answer = armed!().mode(Mode::Isolation).attempt(&["read", "/dev/tty"]);
    assert!(answer.starts_with('E'), "{answer}");
}

#[test]
fn typed_lines_arrive() {
    let sandbox = armed!().mode(Mode::Isolation).args(["--tty", "yes"]);
    let (code, shown) = on_terminal(&sandbox, &[Abi::X64.program(), "serve"], "ready ok", "whoami\n\u{4}");
    assert_eq!(code, 0, "{shown}");
    assert!(shown.contains("whoami ok pid="), "{shown}");
}

#[test]
fn the_interrupt_key_ends_the_command() {
    let sandbox = armed!().mode(Mode::Isolation).args(["--tty", "yes"]);
    let (code, shown) = on_terminal(&sandbox, &[Abi::X64.program(), "nap", "/tmp/lock"], "holding", "\u{3}");
    assert_eq!(code, 128 + 2, "{shown}");
}

/// Typing into the caller's terminal: by both calls, with and without rubbish in the upper half of the argument, through both
/// numberings, with a terminal of its own and without.
#[test]
fn nothing_is_typed_into_the_callers_terminal() {
    for mode in [Mode::Isolation, Mode::Hybrid] {
        for tty in ["yes", "no"] {
            let sandbox = armed!().mode(mode).args(["--tty", tty]);
            let (code, shown) = on_terminal(&sandbox, &[Abi::X64.program(), "group", "tty"], "", "");
            assert_eq!(code, 0, "{shown}");
            for line in shown.lines().filter(|line| line.starts_with("tio")) {
                let answer = line.split(' ').nth(1).unwrap_or_default();
                assert!(answer.starts_with('E') || answer == "n/a", "{} --tty {tty}: {line}", mode.name());
            }
            assert!(shown.contains("tiocsti "), "{shown}");
        }
    }
}

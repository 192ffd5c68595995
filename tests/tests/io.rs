//! Standard streams, descriptors, environment, exit codes and signals pass through a sandbox unchanged, and nothing else does.

use std::fs;
use std::io::Read;
use std::process::Stdio;

use apex_tests::attack::Abi;
use apex_tests::sandbox::{MARK_VARIABLE, collect};
use apex_tests::{APEX_FAILED, CANNOT_EXECUTE, Mode, NOT_FOUND, TempDir, armed, each_mode};
use nix::sys::signal::Signal;

const SOME_MIB: usize = 5 << 20;
/// What the attack program exits with when it cannot write.
const WRITE_FAILED: i32 = 5;

#[test]
fn only_the_standard_descriptors() {
    each_mode(|mode| {
        let sandbox = armed!().mode(mode).prelude("exec 4</etc/passwd 5<&0 8</ 9</;");
        let output = sandbox.attack(Abi::X64, &["fds"]).expect_code(0);
        assert_eq!(output.answer("fds").trim_end(), "ok 0 1 2");
    });
}

#[test]
fn exactly_the_descriptors_that_were_asked_for() {
    let sandbox = armed!().mode(Mode::Isolation).args(["--fd", "9"]).prelude("exec 5</etc/passwd 8</ 9</etc/passwd;");
    assert_eq!(sandbox.attempt(&["fds"]).trim_end(), "ok 0 1 2 9");
    let two = armed!().args(["--fd", "9", "--fd", "4"]).prelude("exec 4</etc/passwd 7</ 9</etc/passwd;");
    assert_eq!(two.attempt(&["fds"]).trim_end(), "ok 0 1 2 4 9");
}

/// With a directory as a descriptor the command could walk the host from there.
#[test]
fn directories_are_not_taken_as_descriptors() {
    for (prelude, args) in [("exec 0</etc;", [].as_slice()), ("exec 9</etc;", ["--fd", "9"].as_slice())] {
        let output = armed!().args(args.iter().copied()).prelude(prelude).attack(Abi::X64, &["fds"]);
        output.expect_refusal(&["director"]);
    }
}

#[test]
fn a_descriptor_that_is_not_open_is_refused() {
    armed!().args(["--fd", "77"]).attack(Abi::X64, &["fds"]).expect_refusal(&["77", "not open"]);
    for bad in ["-1", "x", "99999999999"] {
        let output = armed!().arg(format!("--fd={bad}")).attack(Abi::X64, &["fds"]);
        assert_eq!(output.code, APEX_FAILED, "--fd={bad}");
    }
}

/// A closed standard input stays closed, or is empty; in no case does something else take its number.
#[test]
fn closed_streams() {
    for (prelude, wanted) in [("exec 0<&-;", "0"), ("exec 0<&- 2>&-;", "02")] {
        let output = armed!().prelude(prelude).attack(Abi::X64, &["fds"]).expect_code(0);
        let shown = output.answer("fds");
        assert!(!shown.contains('3'), "{shown}");
        if wanted == "0" {
            assert_eq!(armed!().prelude(prelude).attack(Abi::X64, &["cat"]).stdout, b"");
        }
    }
    armed!().prelude("exec 1>&-;").attack(Abi::X64, &["exit", "3"]).expect_code(3);
}

#[test]
fn binary_input_and_output_are_unchanged() {
    let bytes: Vec<u8> = (0..SOME_MIB).map(|at| (at * 7 + at / 251) as u8).collect();
    each_mode(|mode| {
        let output = armed!().mode(mode).stdin(&bytes).attack(Abi::X64, &["cat"]).expect_code(0);
        assert!(output.stdout == bytes, "{} bytes came back of {}", output.stdout.len(), bytes.len());
    });
}

#[test]
fn files_as_streams() {
    let dir = TempDir::new();
    let input = dir.file("in", "from a file");
    let sandbox = armed!().prelude(&format!("exec <{input} >{} ;", dir.at("out")));
    sandbox.attack(Abi::X64, &["cat"]).expect_code(0);
    assert_eq!(dir.read("out"), "from a file");
}

/// Like `| head -1`: the reader goes, the writer gets SIGPIPE.
#[test]
fn a_broken_pipe_ends_the_writer() {
    let sandbox = armed!().mode(Mode::Isolation);
    let mut command = sandbox.command(&[Abi::X64.program(), "yes", "1000000000"]);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("apex-run starts");
    let mut some = [0; 10];
    let mut pipe = child.stdout.take().expect("piped");
    pipe.read_exact(&mut some).expect("it writes");
    drop(pipe);
    assert_eq!(collect(child).code, 128 + Signal::SIGPIPE as i32);
}

#[test]
fn a_large_output_is_complete() {
    let output = armed!().attack(Abi::X64, &["yes", "20000000"]).expect_code(0);
    assert_eq!(output.stdout.len(), 20_000_000);
}

#[test]
fn only_the_listed_environment() {
    for mode in [Mode::Isolation, Mode::Hybrid] {
        let sandbox = armed!()
            .mode(mode)
            .caller_env("AWS_SECRET_ACCESS_KEY", "secret")
            .caller_env("SSH_AUTH_SOCK", "/run/agent")
            .caller_env("LD_PRELOAD_NOT", "x")
            .caller_env("LANG", "C.UTF-8")
            .caller_env("PASSED", "yes")
            .args(["--pass-env", "PASSED", "--env", "SET=1=2"]);
        let text = sandbox.attack(Abi::X64, &["env"]).expect_code(0).out();
        let names: Vec<&str> = text.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
        for name in ["AWS_SECRET_ACCESS_KEY", "SSH_AUTH_SOCK", "LD_PRELOAD_NOT"] {
            assert!(!names.contains(&name), "{name} went in: {text}");
        }
        for line in ["PASSED=yes", "SET=1=2", "LANG=C.UTF-8", "HOME=/tmp"] {
            assert!(text.lines().any(|it| it == line), "{line} is missing: {text}");
        }
        assert!(names.contains(&MARK_VARIABLE));
    }
}

#[test]
fn exit_codes_of_the_command() {
    each_mode(|mode| {
        for code in [0, 1, 42, 124, 125, 126, 127, 255] {
            armed!().mode(mode).attack(Abi::X64, &["exit", &code.to_string()]).expect_code(code);
        }
    });
}

#[test]
fn signals_that_end_the_command() {
    for signal in [
        Signal::SIGHUP,
        Signal::SIGKILL,
        Signal::SIGTERM,
        Signal::SIGSEGV,
        Signal::SIGABRT,
        Signal::SIGSYS,
        Signal::SIGUSR1,
    ] {
        let number = (signal as i32).to_string();
        armed!().attack(Abi::X64, &["raise", &number]).expect_code(128 + signal as i32);
    }
}

#[test]
fn commands_that_cannot_start() {
    let dir = TempDir::new();
    dir.file("plain", "no program");
    let sandbox = armed!().mode(Mode::Isolation).ro(&dir.text(), "/tmp/data");
    for missing in ["/none", "none-such-command", "/usr/none", "/tmp/data/none"] {
        let output = sandbox.run(&[missing]).expect_code(NOT_FOUND);
        assert!(output.err().contains(missing), "the message does not name it: {}", output.err());
    }
    for refused in ["/tmp/data/plain", "/tmp/data", "/etc/ld.so.cache"] {
        let output = sandbox.run(&[refused]).expect_code(CANNOT_EXECUTE);
        assert!(output.err().contains(refused), "the message does not name it: {}", output.err());
    }
}

#[test]
fn signals_to_the_launcher_reach_the_command() {
    each_mode(|mode| {
        let mut session =
            armed!().mode(mode).start(&[Abi::X64.program(), "wait_signal", "10", "12", "2", "1", "3", "28", "15"]);
        session.expect_line("waiting");
        for signal in
            [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGTERM]
        {
            session.signal(signal);
            session.expect_line(&format!("signal {}", signal as i32));
        }
        session.finish().expect_code(0);
    });
}

/// What the caller ignores stays ignored, as under env(1) and nohup(1): the command sees the broken pipe as an error.
#[test]
fn a_signal_that_the_caller_ignores() {
    let sandbox = armed!().mode(Mode::Isolation).prelude("trap '' PIPE;");
    let mut command = sandbox.command(&[Abi::X64.program(), "yes", "1000000000"]);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("apex-run starts");
    drop(child.stdout.take());
    assert_eq!(collect(child).code, WRITE_FAILED);
}

/// The working directory inside is one that exists there; asking for one that does not is an error.
#[test]
fn working_directories() {
    let dir = TempDir::new();
    let output = armed!().ro(&dir.text(), "/tmp/data").args(["--workdir", "/tmp/data"]).run(&[
        "/tmp/attack/attack64",
        "readlink",
        "/proc/self/cwd",
    ]);
    assert_eq!(output.expect_code(0).answer("readlink"), "ok /tmp/data");
    armed!().args(["--workdir", "/none"]).attack(Abi::X64, &["fds"]).expect_refusal(&["/none"]);
}

/// The caller's own files are untouched by a run that fails.
#[test]
fn nothing_is_left_by_a_refused_start() {
    let sandbox = armed!().args(["--workdir", "/none"]);
    let output = sandbox.attack(Abi::X64, &["fds"]);
    sandbox.expect_nothing_left(&output);
    assert_eq!(fs::read_dir(sandbox.cwd()).expect("it is ours").count(), 0);
}

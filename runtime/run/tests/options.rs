//! Command lines, and what they mean.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use apex_core::layer::Layer;
use apex_core::policy::{Flags, Mode, Network, Tty};
use apex_core::watch::{self, Level};
use apex_run::options::{Action, Options, Shell, Sink, parse};

#[track_caller]
fn check(args: &[&str], expected: Options) {
    assert_eq!(parse(args), Ok(expected), "{args:?}");
}

#[track_caller]
fn check_error(args: &[&str], expected: &str) {
    assert_eq!(parse(args).expect_err("it must be refused").to_string(), expected, "{args:?}");
}

fn run(command: &[&str]) -> Options {
    Options { command: command.iter().map(OsString::from).collect(), ..Options::default() }
}

#[test]
fn the_command_starts_at_the_first_other_word() {
    check(&["ls", "-l"], run(&["ls", "-l"]));
    check(&["--", "ls", "--mode", "x"], run(&["ls", "--mode", "x"]));
    check(&["ls", "--", "-l"], run(&["ls", "--", "-l"]));
    check(&["--", "--help"], run(&["--help"]));
    check(&["--", "--", "x"], run(&["--", "x"]));
    check(
        &["--mode", "hybrid", "ls", "--mode", "x"],
        Options { mode: Some(Mode::Hybrid), ..run(&["ls", "--mode", "x"]) },
    );
}

#[test]
fn a_policy_is_not_learned_into_standard_output() {
    check_error(
        &["--learn", "-", "x"],
        "--learn got `-`, which is no file; name the file that the policy is written to and merged into",
    );
}

#[test]
fn repeated_values_keep_their_order() {
    let words = |words: &[&str]| words.iter().map(OsString::from).collect();
    check(
        &["--ro", "/b", "--ro=/a:/x", "--rw", "rel", "--deny", "/k", "--deny=/j", "--tmpfs", "/t:8M", "true"],
        Options {
            ro: words(&["/b", "/a:/x"]),
            rw: words(&["rel"]),
            deny: words(&["/k", "/j"]),
            tmpfs: words(&["/t:8M"]),
            ..run(&["true"])
        },
    );
}

#[test]
fn what_shapes_the_policy_reaches_its_flags() {
    let args =
        ["--ro=/a:/x", "--net=host", "--env=A=b=c", "--uid=7", "--tty=no", "--optional=cgroup", "--time=9s", "x"];
    let flags = parse(args).unwrap().flags();
    let expected = Flags {
        ro: vec!["/a:/x".into()],
        net: Some("host".to_owned()),
        env: vec!["A=b=c".to_owned()],
        uid: Some("7".to_owned()),
        tty: Some("no".to_owned()),
        optional: vec!["cgroup".to_owned()],
        time: Some("9s".to_owned()),
        ..Flags::default()
    };
    assert_eq!(flags, expected);
}

#[test]
fn every_other_option_lands_in_its_field() {
    let args = "--mode development --profile python --policy p.toml --optional landlock --optional cgroup --net host \
        --env A=1 --env B==x --env C= --pass-env TERM --workdir /w --uid 7 --gid 8 --hostname box --fd 3 --fd 9 --tty no \
        --memory 1G --cpu 50 --tasks 9 --nofile 64 --tmp-size 8M --time 10s --receipt - --why --json true";
    let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let expected = Options {
        json: true,
        why: true,
        receipt: Some(Sink::Stdout),
        mode: Some(Mode::Development),
        profile: Some("python".to_owned()),
        policy: Some("p.toml".into()),
        optional: vec![Layer::Landlock, Layer::Cgroup],
        net: Some(Network::Host),
        env: vec![variable("A", "1"), variable("B", "=x"), variable("C", "")],
        pass_env: vec!["TERM".to_owned()],
        workdir: Some("/w".into()),
        uid: Some(7),
        gid: Some(8),
        hostname: Some("box".to_owned()),
        fds: vec![3, 9],
        tty: Some(Tty::No),
        memory: Some("1G".to_owned()),
        cpu: Some("50".to_owned()),
        tasks: Some("9".to_owned()),
        nofile: Some("64".to_owned()),
        tmp_size: Some("8M".to_owned()),
        time: Some("10s".to_owned()),
        ..run(&["true"])
    };
    check(&args.split_whitespace().collect::<Vec<_>>(), expected);
}

#[test]
fn actions() {
    let action = |action| Options { action, ..Options::default() };
    check(&["--plan", "true"], Options { action: Action::Plan, ..run(&["true"]) });
    check(&["--prove"], action(Action::Prove));
    check(&["--doctor", "--json"], Options { json: true, ..action(Action::Doctor) });
    check(&["--completions", "zsh"], action(Action::Completions(Shell::Zsh)));
    check(&["-V"], action(Action::Version));
    check(&["--help", "--nonsense"], action(Action::Help));
    check(&["--plan", "-h"], action(Action::Help));
    check(&["--receipt", "r.json", "true"], Options { receipt: Some(Sink::File("r.json".into())), ..run(&["true"]) });
}

#[test]
fn paths_need_not_be_text() {
    let odd = OsString::from_vec(b"/a\xff:/b\xfe".to_vec());
    let options = parse([OsString::from("--ro"), odd.clone(), OsString::from("true")]).unwrap();
    assert_eq!(options.ro, [odd]);
}

#[test]
fn unknown_words_name_the_nearest() {
    let dash = "(put `--` before a command that begins with a dash)";
    check_error(&["--memroy", "1G", "x"], &format!("unknown option `--memroy`; the nearest is `--memory` {dash}"));
    check_error(&["--qqq", "x"], &format!("unknown option `--qqq`; `apex-run --help` lists all {dash}"));
    check_error(&["-x", "y"], &format!("unknown option `-x`; `apex-run --help` lists all {dash}"));
    check_error(
        &["--mode", "isolated", "x"],
        "--mode does not know `isolated`; the nearest is `isolation` of isolation, development, hybrid",
    );
    check_error(&["--net", "bridge", "x"], "--net does not know `bridge`; it is one of none, host");
}

#[test]
fn a_missing_value_is_noticed() {
    check_error(&["--memory"], "--memory needs a value: --memory SIZE");
    check_error(&["--ro", "--rw", "/x"], "--ro needs a value, but `--rw` follows it; write --ro=--rw if that is meant");
    check_error(&["--mode", "--", "x"], "--mode needs a value, but `--` follows it; write --mode=-- if that is meant");
    check_error(&["--plan=yes", "x"], "--plan takes no value, but `yes` was given; remove `=yes`");
}

#[test]
fn a_missing_command_says_what_to_do_next() {
    let expected =
        "no command was given; put it behind the options: apex-run --profile shell -- ls -l (or see --help, --doctor)";
    check_error(&[], expected);
    check_error(&["--mode", "isolation", "--"], expected);
    check_error(&["--plan"], expected);
    check_error(&["--", ""], "the command is an empty word; put the name or the path of a program there");
}

#[test]
fn contradictions_are_refused() {
    check_error(&["--mode=hybrid", "--mode=hybrid", "x"], "--mode was given twice; keep one of them");
    check_error(
        &["--plan", "--prove", "x"],
        "--plan and --prove each do something of their own; run them one after the other",
    );
    check_error(
        &["--plan", "--why", "x"],
        "--why reports on a command that runs, and --plan runs none; leave one of them out",
    );
}

#[test]
fn bad_values_are_refused() {
    check_error(
        &["--env", "PATH", "x"],
        "--env got `PATH`, which has no `=`; write NAME=VALUE, or use --pass-env NAME to pass the caller's value",
    );
    check_error(
        &["--pass-env", "A=b", "x"],
        "--pass-env got `A=b`, which holds a `=`; write the name alone, or use --env NAME=VALUE to set it",
    );
    check_error(&["--fd", "2", "x"], "--fd got `2`, which is passed in any case; leave the option out");
    check_error(
        &["--uid", "root", "x"],
        "--uid got `root`, which is not a number in range; write a whole number, without a sign",
    );
    check_error(&["--ro", "", "x"], "--ro got ``, which is empty; name a file or a directory");
    check_error(
        &["--optional", "userns", "x"],
        "--optional got `userns`, which no sandbox can do without; leave it out; `apex-run --doctor` says how this host can give the layer",
    );
}

#[test]
fn an_error_shows_no_raw_control_characters() {
    let error = parse(["--mode", "\u{1b}[2J", "x"]).unwrap_err().to_string();
    assert!(!error.contains('\u{1b}'), "{error:?}");
    let error = parse(["--\u{1b}[2J", "x"]).unwrap_err().to_string();
    assert!(!error.contains('\u{1b}'), "{error:?}");
}

#[test]
fn watching_takes_its_level_behind_an_equals_sign_or_none() {
    check(&["--watch", "ls"], Options { watch: Some(Level::Default), ..run(&["ls"]) });
    check(&["--watch=full", "ls"], Options { watch: Some(Level::Full), ..run(&["ls"]) });
    // Not a value: the command.
    check(&["--watch", "full"], Options { watch: Some(Level::Default), ..run(&["full"]) });
    check_error(&["--watch=ful", "ls"], "--watch does not know `ful`; the nearest is `full` of off, default, full");
}

#[test]
fn what_needs_watching_implies_it() {
    let level = |args: &[&str]| parse(args).expect("a good command line").level();
    assert_eq!(level(&["ls"]), Level::Off);
    for option in [["--events", "f"], ["--findings", "-"], ["--on-finding", "kill"], ["--baseline", "learn"]] {
        assert_eq!(level(&[option[0], option[1], "ls"]), Level::Default, "{option:?}");
    }
    assert_eq!(level(&["--summary", "--watch=full", "ls"]), Level::Full);
    check_error(
        &["--watch=off", "--events", "f", "ls"],
        "--events needs watching, and --watch=off turns it off; leave one of them out",
    );
    check_error(
        &["--doctor", "--summary"],
        "--summary reports on a command that runs, and --doctor runs none; leave one of them out",
    );
}

#[test]
fn sinks_are_told_apart() {
    let options = parse([
        "--events",
        "f",
        "--events",
        "-",
        "--events",
        "stderr",
        "--events",
        "journald",
        "--findings",
        "https://h/p",
        "ls",
    ]);
    let options = options.expect("a good command line");
    let streams = [watch::Sink::Stdout, watch::Sink::Stderr];
    assert_eq!(options.events[1..3], streams);
    assert_eq!((&options.events[0], &options.events[3]), (&watch::Sink::File("f".to_owned()), &watch::Sink::Journald));
    assert_eq!(options.findings, [watch::Sink::Webhook("https://h/p".to_owned())]);
    check_error(
        &["--events", "ftp://x", "ls"],
        "--events got `ftp://x`, which is an address that nothing can be sent to; give a file, -, stderr, journald, syslog or an https:// address",
    );
}

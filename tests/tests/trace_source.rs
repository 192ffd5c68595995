//! Events of real programs by the ptrace source, as root and as a user without privilege.

use std::time::{Duration, Instant};

use apex_core::event::{Errno, Event, Stream, What};
use apex_core::refusal::Access;
use apex_tests::TempDir;
use apex_tests::traced::{self, Job, STREAMS_AND_FAILURES, User, compare, run};

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

/// Runs a job with and without a tracer as every user, and fails unless each process has a whole life in what was told.
#[track_caller]
fn faithful(job: &str, said: &str) {
    let Some(program) = Job::get(64) else { apex_tests::skip!("no C compiler with static libraries") };
    for user in User::all() {
        let traced = program.compare(*user, &["--tasks", "400"], job);
        assert_eq!(traced.output.out(), said, "{user:?}");
        traced.expect_whole_lives();
    }
}

#[test]
fn threads_are_followed_and_not_told_as_births() {
    faithful("threads", "32 threads\n");
}

#[test]
fn a_thread_that_is_not_the_first_executes() {
    faithful("exec-from-thread", "from a thread\n");
}

#[test]
fn the_first_thread_ends_before_the_others() {
    faithful("leader-ends-first", "the last thread\n");
}

#[test]
fn handlers_interrupt_as_they_do_without_a_tracer() {
    faithful("interrupted", "alarms interrupt\n");
}

#[test]
fn real_time_signals_keep_their_value() {
    faithful("real-time", "queued 4711\n");
}

#[test]
fn the_programs_own_traps_are_its_own() {
    faithful("traps", "traps 2\n");
}

#[test]
fn stops_and_continuations_reach_parent_and_child() {
    faithful("stops", "stopped 1 by 19\ncontinued 1\nstopped 1 by 20\nended 1 by 15\n");
}

#[test]
fn vfork_and_two_hundred_short_processes_go_through() {
    faithful("vforks", "20 programs\n");
    faithful("storm", "200 ended, 100 with 1\n");
}

#[test]
fn calls_that_wait_can_be_interrupted_and_killed() {
    faithful("waits", "open EINTR\nended 1 by 9\n");
}

#[test]
fn nothing_is_born_beside_the_tracer() {
    let Some(program) = Job::get(64) else { apex_tests::skip!("no C compiler with static libraries") };
    for user in User::all() {
        let traced = run(*user, "default", &["--ro", &program.dir()], &[&program.path(), "untraced"]);
        assert_eq!(traced.output.out(), "clone EINVAL\nclone3 ENOSYS\n", "{}", traced.output.err());
        traced.expect_whole_lives();
    }
}

#[test]
fn a_traced_program_cannot_be_traced_again() {
    let Some(program) = Job::get(64) else { apex_tests::skip!("no C compiler with static libraries") };
    let grant = format!("{}:/mnt", program.dir());
    let traced = run(User::Caller, "default", &["--mode", "development", "--ro", &grant], &["/mnt/job", "traces"]);
    assert_eq!(traced.output.out(), "traceme EPERM\n", "{}", traced.output.err());
}

#[test]
fn network_and_privilege_are_told_with_what_they_name() {
    let Some(program) = Job::get(64) else { apex_tests::skip!("no C compiler with static libraries") };
    for user in User::all() {
        let traced = program.compare(*user, &[], "network");
        let socket = |family, kind| What::Socket { family, kind, protocol: 0 };
        let address = |text: &str| text.parse().expect("an address");
        let name_server = || address("inet:127.0.0.1:53");
        let (bytes, tcp) = (33, false);
        let question =
            || What::Dns { address: name_server(), bytes, qname: "www.example.org".to_owned(), qtype: 16, tcp };
        let wanted = [
            socket(2, 2),
            socket(10, 1),
            socket(2, 1),
            What::Send { address: name_server(), bytes: 5 },
            What::Dns { address: name_server(), bytes: 5, qname: String::new(), qtype: 0, tcp },
            What::Send { address: address("inet:127.0.0.1:54"), bytes: 2 },
            What::Send { address: address("inet:127.0.0.1:55"), bytes: 2 },
            socket(2, 2),
            What::Connect { address: name_server() },
            question(),
            What::Send { address: name_server(), bytes },
            question(),
            What::Connect { address: address("inet6:[::1]:443") },
            What::Bind { address: address("inet:127.0.0.1:8080") },
        ];
        assert!(traced.what().filter(|what| wanted.contains(what)).eq(&wanted), "{:#?}", traced.events);

        let traced = program.compare(*user, &[], "privilege");
        let names: Vec<String> = traced.events.iter().map(in_short).collect();
        for wanted in [
            "job memfd hidden",
            "job executable mprotect 4096 false",
            "job executable mmap 4096 true",
            "job set-ids setuid",
            "job signal 1 28",
            "renamed memfd again",
        ] {
            assert!(names.iter().any(|name| name == wanted), "{wanted} was not told: {names:#?}");
        }
    }
}

fn in_short(event: &Event) -> String {
    let what = match &event.what {
        What::Memfd { name } => format!("memfd {name}"),
        What::Executable { call, length, writable, address } => {
            assert_ne!(*address, 0);
            format!("executable {call} {length} {writable}")
        }
        What::SetIds { call, .. } => format!("set-ids {call}"),
        What::Signal { target, signal } => format!("signal {target} {signal}"),
        other => format!("{other:?}"),
    };
    format!("{} {what}", event.comm)
}

#[test]
fn a_program_without_a_file_is_told_as_such() {
    let Some(program) = Job::get(64) else { apex_tests::skip!("no C compiler with static libraries") };
    for user in User::all() {
        let traced = program.compare(*user, &[], "from-memory");
        assert_eq!(traced.output.out(), "from memory\n");
        let args = vec!["ghost".to_owned(), "said".to_owned()];
        let told = traced.what().any(|what| match what {
            What::Exec { path, args: got, cut: false, fileless: true, .. } => path == "/memfd:hidden" && *got == args,
            _ => false,
        });
        assert!(told, "{:#?}", traced.events);
    }
}

#[test]
fn programs_of_32_bits_are_told_alike() {
    let Some(program) = Job::get(32) else { apex_tests::skip!("no C compiler with 32-bit static libraries") };
    let policy = TempDir::new();
    let policy = (policy.file("compat.toml", "[syscalls]\ncompat = true\n"), policy);
    let args = ["--mode", "hybrid", "--policy", &policy.0, "--tasks", "400"];
    for user in User::all() {
        for job in ["threads", "exec-from-thread", "real-time", "stops", "vforks", "storm", "waits"] {
            program.compare(*user, &args, job).expect_whole_lives();
        }
        let traced = program.compare(*user, &args, "privilege");
        assert!(
            traced.events.iter().any(|event| in_short(event) == "job executable mmap2 4096 true"),
            "{:#?}",
            traced.events
        );
    }
}

#[test]
fn real_programs_do_the_same_under_trace() {
    let python = "import subprocess, concurrent.futures as f, multiprocessing as m\n\
                  pool = f.ThreadPoolExecutor(8)\n\
                  print(sum(pool.map(lambda i: len(subprocess.check_output(['/bin/echo', str(i)])), range(60))))\n\
                  with m.get_context('fork').Pool(4) as p: print(sum(p.map(abs, range(-100, 0))))\n";
    let shell = "for i in 1 2 3; do seq 1000 | sort -r | head -3 | tr '\\n' ' '; done; sleep 5 & \
                 kill -STOP $!; kill -CONT $!; kill $!; wait; trap 'echo usr1' USR1; kill -USR1 $$; \
                 trap 'echo child' CHLD; /bin/true; echo done";
    let gcc = "cd /tmp; printf '#include <stdio.h>\\nint main(void) { puts(\"built\"); return 0; }\\n' >a.c; gcc -pipe -O1 a.c -o a && cp a b && ls a b";
    // A terminal of its own, job control on, a stop from the keyboard.
    let terminal = "import os, pty, sys, time\n\
                    pid, fd = pty.fork()\n\
                    if pid == 0: os.execv('/bin/bash', ['bash', '--norc', '--noprofile', '-i'])\n\
                    def until(word):\n    text = b''\n    while word not in text: text += os.read(fd, 1024)\n\
                    os.write(fd, b'PS1=; echo be\"gin\"\\n'); until(b'begin\\r')\n\
                    os.write(fd, b'cat\\n'); time.sleep(0.3); os.write(fd, b'\\x1a'); until(b'Stopped')\n\
                    os.write(fd, b'fg >/dev/null\\n'); time.sleep(0.3); os.write(fd, b'\\x04')\n\
                    os.write(fd, b'echo en\"d\"; exit 3\\n'); until(b'end\\r')\n\
                    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n";
    for user in User::all() {
        let jobs: [(&str, &[&str]); 4] = [
            ("python", &["/usr/bin/python3", "-c", python]),
            ("shell", &["/bin/bash", "-c", shell]),
            ("build", &["/bin/sh", "-c", gcc]),
            ("python", &["/usr/bin/python3", "-c", terminal]),
        ];
        for (profile, job) in jobs {
            if !std::path::Path::new(job[0]).exists() {
                apex_tests::skip!(format!("{} is not installed", job[0]));
            }
            let traced = compare(*user, &["--profile", profile], job);
            assert!(traced.output.code == 0, "{user:?} {profile}: {}", traced.output.err());
            traced.expect_whole_lives();
        }
    }
}

/// A sandbox that counts, under a tracer that the test can freeze and kill.
struct Ticking {
    child: std::process::Child,
    lines: std::sync::mpsc::Receiver<String>,
    home: TempDir,
    _program: Job,
}

impl Ticking {
    fn start() -> Option<Ticking> {
        use std::io::BufRead;
        let (program, home) = (Job::get(64)?, TempDir::new());
        let mut command =
            traced::command(User::Caller, &home, "default", &["--ro", &program.dir()], &[&program.path(), "ticks"]);
        let mut child = command.spawn().expect("it is built");
        let output = std::io::BufReader::new(child.stdout.take().expect("piped"));
        let (to, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| to.send(line)));
        let ticking = Ticking { child, lines, home, _program: program };
        ticking.next_line();
        Some(ticking)
    }

    #[track_caller]
    fn next_line(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(20)).expect("it counts")
    }

    /// Waits until the tracer has written this word.
    #[track_caller]
    fn until(&self, file: &str, word: &str) -> String {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let text = std::fs::read_to_string(self.home.at(file)).unwrap_or_default();
            if text.contains(word) && !text.is_empty() {
                return text;
            }
            assert!(Instant::now() < end, "no {word} in {file}: {text}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it counts for a while.
    fn counts(&self) -> bool {
        while self.lines.try_recv().is_ok() {}
        self.lines.recv_timeout(Duration::from_millis(400)).is_ok()
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        // It has ended already unless the test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // It was the launcher: what it could not remove is removed here.
        apex_tests::leaks::sweep(self.child.id());
    }
}

#[test]
fn a_frozen_sandbox_stands_still_until_it_is_thawed() {
    let Some(mut ticking) = Ticking::start() else { apex_tests::skip!("no C compiler with static libraries") };
    ticking.home.file("events.frozen", "");
    ticking.until("events.state", "frozen");
    // What was on its way.
    std::thread::sleep(Duration::from_millis(100));
    assert!(!ticking.counts());
    std::fs::remove_file(ticking.home.at("events.frozen")).expect("it is there");
    ticking.until("events.state", "thawed");
    assert!(ticking.counts());
    // It can be ended from outside, frozen or not.
    ticking.home.file("events.frozen", "");
    ticking.until("events.state", "frozen");
    let pid = nix::unistd::Pid::from_raw(ticking.child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("it runs");
    let end = Instant::now() + Duration::from_secs(10);
    while ticking.child.try_wait().expect("it is ours").is_none() {
        assert!(Instant::now() < end, "it does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_tracer_that_dies_takes_the_sandbox_with_it() {
    let Some(mut ticking) = Ticking::start() else { apex_tests::skip!("no C compiler with static libraries") };
    let tracer: i32 = ticking.until("events.tracer", "").parse().expect("a pid");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(tracer), nix::sys::signal::Signal::SIGKILL).expect("it runs");
    let end = Instant::now() + Duration::from_secs(10);
    let status = loop {
        if let Some(status) = ticking.child.try_wait().expect("it is ours") {
            break status;
        }
        assert!(Instant::now() < end, "the sandbox outlives its tracer");
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(apex_tests::sandbox::exit_code(status), 128 + 9);
}

#[test]
fn every_call_beyond_the_base_is_counted_for_learning() {
    for user in User::all() {
        let traced = run(*user, "every", &[], &["/bin/sh", "-c", "cat /etc/passwd >/dev/null; umask; cd /usr; pwd"]);
        assert_eq!(traced.output.code, 0, "{}", traced.output.err());
        let counts = traced.what().filter_map(|what| match what {
            What::Calls { counts } => Some(counts),
            _ => None,
        });
        let names: std::collections::BTreeSet<&str> =
            counts.flat_map(|counts| counts.keys().map(String::as_str)).collect();
        for name in ["openat", "newfstatat", "wait4", "umask", "chdir", "getcwd"] {
            assert!(names.contains(name), "{name} was not counted: {names:?}");
        }
        assert!(!names.contains("read") && !names.contains("execve"), "{names:?}");
        assert_eq!(traced.programs(), ["/usr/bin/dash", "/usr/bin/cat"]);
    }
}

#[test]
fn standard_input_and_failed_executions_are_told() {
    for user in User::all() {
        let traced = run(*user, "full", &["--profile", "python"], &["/usr/bin/python3", "-c", STREAMS_AND_FAILURES]);
        assert_eq!(traced.output.code, 0, "{}", traced.output.err());
        let of_true = |event: &Event| match &event.what {
            What::Exec { path, stdin, .. } if path.ends_with("/true") && event.error.is_none() => *stdin,
            _ => None,
        };
        let inputs: Vec<Stream> = traced.events.iter().filter_map(of_true).collect();
        let wanted = [Stream::Inet, Stream::Listener, Stream::Pipe, Stream::Null, Stream::Closed];
        assert_eq!(inputs, wanted, "{:#?}", traced.events);
        let failed: Vec<_> = traced
            .events
            .iter()
            .filter_map(|event| match &event.what {
                What::Exec { path, args, .. } if event.error.is_some() => {
                    Some((path.as_str(), args.join(" "), event.error))
                }
                _ => None,
            })
            .collect();
        let args = || "tried -x".to_owned();
        let wanted = [("/etc/passwd", args(), Some(Errno::EACCES)), ("/tmp/absent", args(), Some(Errno::ENOENT))];
        assert_eq!(failed, wanted, "{user:?}");
    }
}

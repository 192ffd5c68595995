//! Births, programs and ends, as the kernel's probes see them: live, with programs in a cgroup of the test's own.

use std::process::Command;

use apex_core::event::{Errno, Stream, What};
use apex_core::watch::{Family, Level, Source};
use apex_probe::bpf::Probes;
use apex_tests::traced::STREAMS_AND_FAILURES;
use apex_tests::watched::{Cgroup, Recorded, channel};

macro_rules! cgroup {
    () => {
        match Cgroup::new() {
            Some(cgroup) => cgroup,
            None => apex_tests::skip!("no cgroup v2 directory that we may write to"),
        }
    };
}

fn load() -> Probes {
    let (probes, sources) = Probes::load(Level::Default);
    assert_eq!(sources.get(&Family::Process), Some(&Source::Probe));
    probes.expect("the process family is there")
}

#[test]
fn births_programs_and_ends_are_told_in_order() {
    let cgroup = cgroup!();
    let job = cgroup.shell("/bin/echo one 'two words' ''; /bin/false; exit 7");
    let shell = job.pid();
    let (to, from) = channel();
    let running = load().start(cgroup.sandbox(0), to).expect("root may attach");
    // Beside the sandbox, in nobody's cgroup.
    let stranger = Command::new("/bin/true").spawn().expect("true").wait_with_output();
    assert!(stranger.is_ok());
    assert_eq!(job.go(), Some(7));
    let recorded = Recorded::collect(running, from);

    assert!(recorded.lost.is_empty(), "{:?}", recorded.lost);
    assert!(recorded.events.iter().all(|event| event.sandbox == cgroup.id()));
    assert!(recorded.events.is_sorted_by_key(|event| event.time_ns), "{:#?}", recorded.events);
    let programs: Vec<(&str, Vec<&str>)> = recorded
        .whats()
        .filter_map(|what| match what {
            What::Exec { path, args, cut: false, fileless: false, .. } => {
                Some((path.rsplit('/').next().unwrap_or(path), args.iter().map(String::as_str).collect()))
            }
            _ => None,
        })
        .collect();
    assert_eq!(programs.len(), 3, "{programs:?}");
    assert_eq!(programs[1], ("echo", vec!["/bin/echo", "one", "two words", ""]));
    assert_eq!(programs[2], ("false", vec!["/bin/false"]));
    let echo = recorded.find(|what| matches!(what, What::Exec { path, .. } if path.ends_with("/echo")));
    assert_eq!((echo.ppid, echo.uid), (shell, 0));
    assert_eq!(echo.comm, "echo");
    let born = recorded.find(|what| matches!(what, What::Fork { child } if *child == echo.pid));
    assert_eq!(born.pid, shell);
    assert!(born.time_ns < echo.time_ns);
    let ends: Vec<(bool, i32)> = recorded
        .events
        .iter()
        .filter_map(|event| match event.what {
            What::Exit { code: Some(code), signal: None } => Some((event.pid == shell, code)),
            _ => None,
        })
        .collect();
    assert_eq!(ends, [(false, 0), (false, 1), (true, 7)]);
    // Other families may be there as well, as the kernel grants.
    let own = |what: &&What| matches!(what, What::Fork { .. } | What::Exec { .. } | What::Exit { .. });
    assert_eq!(recorded.whats().filter(own).count(), 3 + 2 + 3, "{:#?}", recorded.events);
}

fn run(level: Level) -> Option<Recorded> {
    let cgroup = Cgroup::new()?;
    let job = cgroup.run(&["/usr/bin/python3", "-c", STREAMS_AND_FAILURES]);
    let (to, from) = channel();
    let running = Probes::load(level).0.expect("families").start(cgroup.sandbox(0), to).expect("root may attach");
    assert_eq!(job.go(), Some(0));
    let recorded = Recorded::collect(running, from);
    assert!(recorded.lost.is_empty(), "{:?}", recorded.lost);
    Some(recorded)
}

#[test]
fn standard_input_is_told() {
    let Some(recorded) = run(Level::Default) else {
        apex_tests::skip!("no cgroup v2 directory that we may write to");
    };
    let inputs: Vec<Stream> = recorded
        .whats()
        .filter_map(|what| match what {
            What::Exec { path, stdin, .. } if path.ends_with("/true") => *stdin,
            _ => None,
        })
        .collect();
    let wanted = [Stream::Inet, Stream::Listener, Stream::Pipe, Stream::Null, Stream::Closed];
    assert_eq!(inputs, wanted, "{:#?}", recorded.events);
}

#[test]
fn failed_executions_are_told_at_level_full() {
    let Some(recorded) = run(Level::Full) else {
        apex_tests::skip!("no cgroup v2 directory that we may write to");
    };
    let failed: Vec<_> = recorded
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
    assert_eq!(failed, wanted, "{:#?}", recorded.events);
}

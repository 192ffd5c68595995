//! Whom the probes watch, what they say when they cannot, what a flood does to them, and that nothing of them stays.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use apex_core::event::{Loss, What};
use apex_core::watch::{Family, Level, Source};
use apex_probe::bpf::{ProbeError, Probes, Sandbox};
use apex_tests::watched::{Cgroup, Recorded, channel};
use apex_tests::{TempDir, as_root, skip};

macro_rules! cgroup {
    () => {
        match Cgroup::new() {
            Some(cgroup) => cgroup,
            None => skip!("no cgroup v2 directory that we may write to"),
        }
    };
}

fn programs(recorded: &Recorded) -> BTreeSet<String> {
    recorded
        .whats()
        .filter_map(|what| match what {
            What::Exec { path, .. } => path.rsplit('/').next().map(str::to_owned),
            _ => None,
        })
        .collect()
}

#[test]
fn nested_cgroups_belong_to_the_sandbox_and_neighbours_do_not() {
    let cgroup = cgroup!();
    let (nested, beside) = (cgroup.nested("a"), cgroup!());
    let deeper = nested.nested("b");
    let (to, from) = channel();
    let probes = Probes::load(Level::Full).0.expect("families");
    let inside = deeper.run(&["/bin/true"]);
    let outside = beside.run(&["/bin/false"]);
    let running = probes.start(cgroup.sandbox(0), to).expect("root may attach");
    assert_eq!((inside.go(), outside.go()), (Some(0), Some(1)));
    let recorded = Recorded::collect(running, from);
    assert_eq!(programs(&recorded), BTreeSet::from(["true".to_owned()]));
    assert!(recorded.events.iter().all(|event| event.sandbox == cgroup.id()), "{:#?}", recorded.events);
}

#[test]
fn the_init_is_left_out_and_its_children_are_not() {
    let cgroup = cgroup!();
    let init = cgroup.shell("/bin/true; exit 3");
    let pid = init.pid();
    let (to, from) = channel();
    let probes = Probes::load(Level::Full).0.expect("families");
    let running = probes.start(cgroup.sandbox(pid), to).expect("root may attach");
    assert_eq!(init.go(), Some(3));
    let recorded = Recorded::collect(running, from);
    assert!(programs(&recorded).contains("true"));
    assert!(recorded.events.iter().all(|event| event.pid != pid), "{:#?}", recorded.events);
}

#[test]
fn another_directory_than_the_sandboxs_is_refused() {
    let cgroup = cgroup!();
    let probes = Probes::load(Level::Default).0.expect("families");
    let wrong = Sandbox { id: cgroup.id() + 1, ..cgroup.sandbox(0) };
    match probes.start(wrong, channel().0) {
        Err(ProbeError::Replaced { expected, found }) => assert_eq!(expected, found + 1),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_program_that_has_no_name_is_told_as_such() {
    let cgroup = cgroup!();
    let script = "import os\nfd = os.memfd_create('hidden', 0)\nos.write(fd, open('/bin/true', 'rb').read())\n\
                  os.execv('/proc/self/fd/%d' % fd, ['harmless'])";
    let job = cgroup.run(&["/usr/bin/python3", "-c", script]);
    let (to, from) = channel();
    let running =
        Probes::load(Level::Default).0.expect("families").start(cgroup.sandbox(0), to).expect("root may attach");
    assert_eq!(job.go(), Some(0));
    let recorded = Recorded::collect(running, from);
    let exec = recorded.find(|what| matches!(what, What::Exec { fileless: true, .. }));
    let What::Exec { path, args, .. } = &exec.what else { unreachable!("found as one") };
    assert_eq!((path.as_str(), args.as_slice()), ("/memfd:hidden", ["harmless".to_owned()].as_slice()));
}

#[test]
fn a_refused_family_says_why_and_takes_no_other_along() {
    if !as_root() {
        skip!("only root may load probes");
    }
    let (probes, sources) = Probes::load(Level::Default);
    assert_eq!(sources.get(&Family::Process), Some(&Source::Probe));
    match sources.get(&Family::Syscall) {
        Some(Source::Missing { reason }) => assert!(reason.contains("level full"), "{reason}"),
        other => panic!("a hook on every call at level default: {other:?}"),
    }
    // The kernel under test decides; either way the others are there.
    match sources.get(&Family::Lsm) {
        Some(Source::Probe) => {}
        Some(Source::Missing { reason }) => {
            assert!(reason.contains("permit") || reason.contains("lsm="), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert!(probes.is_some());
}

#[test]
fn without_privilege_every_family_says_what_is_missing() {
    if as_root() {
        skip!("root may load probes");
    }
    let (probes, sources) = Probes::load(Level::Full);
    assert!(probes.is_none());
    for (family, source) in sources {
        match source {
            Source::Missing { reason } => assert!(!reason.is_empty(), "{family:?}"),
            other => panic!("{family:?}: {other:?}"),
        }
    }
}

/// Two threads, half a million refused calls each as fast as they can.
const FLOOD: &str = "#include <pthread.h>\n#include <unistd.h>\n\
    static void *run(void *n) { for (int i = 0; i < 500000; i++) unlink(\"/nowhere/at/all\"); return n; }\n\
    int main(void) { pthread_t t; pthread_create(&t, 0, run, 0); run(0); return pthread_join(t, 0); }\n";

#[test]
fn in_a_flood_every_lost_event_is_counted() {
    let cgroup = cgroup!();
    let directory = TempDir::new();
    let (source, program) = (directory.file("flood.c", FLOOD), directory.at("flood"));
    let built = Command::new("gcc").args(["-O1", "-pthread", "-static", "-o", &program, &source]).output();
    if !built.is_ok_and(|output| output.status.success()) {
        skip!("no C compiler with static libraries");
    }
    let job = cgroup.run(&[&program]);
    let (to, from) = channel();
    let running = Probes::load(Level::Full).0.expect("families").start(cgroup.sandbox(0), to).expect("root may attach");
    running.measure().expect("root may");
    let collector = Recorded::in_background(from);
    let began = Instant::now();
    assert_eq!(job.go(), Some(0));
    let elapsed = began.elapsed();
    let stats = running.stats().expect("our own programs");
    running.stop();
    let recorded = collector.join().expect("it only collects");

    let recorded_calls = recorded.whats().filter(|what| matches!(what, What::Unlink { .. })).count() as u64;
    let lost: u64 = recorded.lost.values().sum();
    println!("1000000 calls in {elapsed:?}: {recorded_calls} recorded, lost {:?}", recorded.lost);
    assert_eq!(recorded_calls + lost, 1_000_000, "{:?}", recorded.lost);
    let is_known = |loss: &Loss| matches!(loss, Loss::RateLimited | Loss::RingFull);
    assert!(recorded.lost.keys().all(is_known), "{:?}", recorded.lost);
    // What is essential came through.
    recorded.find(|what| matches!(what, What::Exec { path, .. } if path.ends_with("/flood")));
    recorded.find(|what| matches!(what, What::Exit { code: Some(0), .. }));
    let hook = stats.iter().find(|program| program.name == "on_call").expect("it was attached");
    assert!(hook.run_count >= 1_000_000 && hook.run_time_ns > 0, "{hook:?}");
}

/// Ids of the BPF objects that this process holds, with what bpftool calls their kind.
fn held() -> BTreeSet<(&'static str, String)> {
    let mut held = BTreeSet::new();
    for entry in fs::read_dir("/proc/self/fdinfo").expect("/proc is mounted").flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        for line in text.lines() {
            let Some((key, id)) = line.split_once(':') else { continue };
            let kind = match key {
                "prog_id" if !text.contains("link_id") => "prog",
                "map_id" => "map",
                "link_id" => "link",
                _ => continue,
            };
            held.insert((kind, id.trim().to_owned()));
        }
    }
    held
}

fn exists(kind: &str, id: &str) -> bool {
    Command::new("/usr/sbin/bpftool")
        .args([kind, "show", "id", id])
        .output()
        .expect("setup installs it")
        .status
        .success()
}

/// Alone in its process: libtest's other tests load probes as well.
#[test]
fn nothing_stays_in_the_kernel() {
    const ALONE: &str = "APEX_TEST_ALONE";
    let cgroup = cgroup!();
    if std::env::var_os(ALONE).is_none() {
        let own = std::env::current_exe().expect("/proc is mounted");
        let output = Command::new(own)
            .args(["--exact", "nothing_stays_in_the_kernel", "--nocapture"])
            .env(ALONE, "1")
            .output()
            .expect("it is this program");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let (to, _from) = channel();
    let running = Probes::load(Level::Full).0.expect("families").start(cgroup.sandbox(0), to).expect("root may attach");
    let held = held();
    for kind in ["prog", "map", "link"] {
        assert!(held.iter().any(|(held, id)| *held == kind && exists(kind, id)), "no {kind} among {held:?}");
    }
    running.stop();
    // The kernel frees them after a grace period.
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let left: Vec<_> = held.iter().filter(|(kind, id)| exists(kind, id)).collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < until, "still there: {left:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

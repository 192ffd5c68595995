//! Real limits on real processes. The same bodies run on v1 and v2, whichever the host gives to `Site::find`.

use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::*;

/// One at a time: each looks for directories that bear this process's pid.
pub(super) static TURN: Mutex<()> = Mutex::new(());

const NONE: CgroupPlan = CgroupPlan { memory_bytes: None, swap_bytes: None, cpu_percent: None, tasks: None };

const ALL: CgroupPlan =
    CgroupPlan { memory_bytes: Some(64 << 20), swap_bytes: Some(0), cpu_percent: Some(20), tasks: Some(16) };

pub(super) fn skip(name: &str, reason: &str) {
    println!("SKIP {name}: {reason}");
}

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A host where every limit can be had, or the reason to skip.
fn site(name: &str) -> Option<Site> {
    let site = Site::find(&Controller::ALL);
    match site.support() {
        CgroupSupport::V1 { controllers } | CgroupSupport::V2 { controllers, .. }
            if controllers.len() == Controller::ALL.len() =>
        {
            Some(site)
        }
        CgroupSupport::V1 { controllers } | CgroupSupport::V2 { controllers, .. } => {
            skip(name, &format!("only these controllers can be had: {controllers:?}"));
            None
        }
        CgroupSupport::SystemdUser => {
            skip(name, "needs a cgroup that this user may write");
            None
        }
        CgroupSupport::Missing { reason, .. } => {
            skip(name, &format!("needs a cgroup that this user may write: {reason}"));
            None
        }
    }
}

/// Directories in which this process makes cgroups.
fn parents(site: &Site) -> Vec<PathBuf> {
    match &site.place {
        Place::V1(hierarchies) => hierarchies.iter().map(|one| one.parent.clone()).collect(),
        Place::V2(parent) => vec![parent.dir.clone()],
        Place::SystemdUser { .. } | Place::Missing { .. } => Vec::new(),
    }
}

fn leftovers(site: &Site) -> Vec<PathBuf> {
    let ours = format!("{}{}-", dir::PREFIX, std::process::id());
    parents(site)
        .iter()
        .flat_map(|parent| std::fs::read_dir(parent).unwrap())
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&ours))
        .map(|entry| entry.path())
        .collect()
}

/// A shell that waits for a line before it runs `script`, as the sandbox's init waits for its go.
pub(super) fn waiting_shell(script: &str) -> Child {
    Command::new("/bin/sh")
        .args(["-c", &format!("read go; {script}")])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

pub(super) fn pid_of(child: &Child) -> i32 {
    i32::try_from(child.id()).unwrap()
}

pub(super) fn go(child: &mut Child) {
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
}

/// Runs `script` under `plan` to its end; what is left of it is killed.
fn run(site: &Site, plan: &CgroupPlan, script: &str) -> (std::process::ExitStatus, Outcome) {
    let mut cgroup = Cgroup::create(plan, site).unwrap();
    let mut child = waiting_shell(script);
    cgroup.attach(pid_of(&child)).unwrap();
    assert_eq!(cgroup.effective(pid_of(&child)).unwrap().mismatch(), None);
    go(&mut child);
    let status = child.wait().unwrap();
    cgroup.kill_all().unwrap();
    let outcome = cgroup.outcome().unwrap();
    cgroup.remove().unwrap();
    assert_eq!(leftovers(site), Vec::<PathBuf>::new());
    (status, outcome)
}

#[test]
fn tasks_above_the_limit_are_refused() {
    let _turn = turn();
    let Some(site) = site("cgroup::tests::tasks_above_the_limit_are_refused") else {
        return;
    };
    let plan = CgroupPlan { tasks: Some(3), ..NONE };
    let (status, outcome) = run(&site, &plan, "for i in 1 2 3 4 5 6; do sleep 60 & done; exit 0");
    assert!(!status.success(), "the shell could fork six times under a limit of three: {status}");
    assert!(outcome.tasks_refused.unwrap() > 0, "{outcome:?}");
}

#[test]
fn memory_above_the_limit_is_an_oom_kill() {
    let _turn = turn();
    let Some(site) = site("cgroup::tests::memory_above_the_limit_is_an_oom_kill") else {
        return;
    };
    let plan = CgroupPlan { memory_bytes: Some(16 << 20), swap_bytes: Some(0), ..NONE };
    let (status, outcome) = run(&site, &plan, "exec tail /dev/zero");
    assert_eq!(status.signal(), Some(9), "{status}");
    assert!(outcome.oom_kills.unwrap() > 0, "{outcome:?}");
    // Newer kernels charge in batches and may let the peak stand a little above the limit.
    if let Some(peak) = outcome.peak_memory_bytes {
        assert!((8 << 20..=17 << 20).contains(&peak), "{outcome:?}");
    }
}

#[test]
fn cpu_above_the_quota_is_throttled() {
    let _turn = turn();
    let Some(site) = site("cgroup::tests::cpu_above_the_quota_is_throttled") else {
        return;
    };
    let plan = CgroupPlan { cpu_percent: Some(20), ..NONE };
    let (status, outcome) = run(&site, &plan, "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done");
    assert!(status.success());
    assert!(outcome.throttled_periods.unwrap() > 0, "{outcome:?}");
    assert!(outcome.throttled_us.unwrap() > 0, "{outcome:?}");
}

#[test]
fn limits_are_read_back_with_their_files() {
    let _turn = turn();
    let Some(site) = site("cgroup::tests::limits_are_read_back_with_their_files") else {
        return;
    };
    let mut cgroup = Cgroup::create(&ALL, &site).unwrap();
    let mut child = waiting_shell("exit 0");
    let before = cgroup.effective(pid_of(&child)).unwrap();
    assert!(!before.member);
    assert!(before.mismatch().unwrap().starts_with("the process is not in its cgroup"));
    cgroup.attach(pid_of(&child)).unwrap();
    let effective = cgroup.effective(pid_of(&child)).unwrap();
    assert_eq!(effective.mismatch(), None);
    let mut values: Vec<_> = effective.limits.iter().map(|limit| (limit.resource, limit.value)).collect();
    values.sort_unstable();
    assert_eq!(
        values,
        [("cpu-percent", Some(20)), ("memory-bytes", Some(64 << 20)), ("swap-bytes", Some(0)), ("tasks", Some(16)),]
    );
    assert!(effective.limits.iter().all(|limit| limit.file.exists()), "{effective:?}");
    go(&mut child);
    child.wait().unwrap();
    cgroup.remove().unwrap();
    assert_eq!(leftovers(&site), Vec::<PathBuf>::new());
}

#[test]
fn a_plan_without_limits_still_measures() {
    let _turn = turn();
    let Some(site) = site("cgroup::tests::a_plan_without_limits_still_measures") else {
        return;
    };
    let (status, outcome) = run(&site, &NONE, "exit 3");
    assert_eq!(status.code(), Some(3));
    assert_eq!(outcome.oom_kills, Some(0), "{outcome:?}");
}

#[test]
fn kill_all_ends_a_fork_bomb() {
    let _turn = turn();
    let Some(site) = site("cgroup::tests::kill_all_ends_a_fork_bomb") else {
        return;
    };
    let mut cgroup = Cgroup::create(&CgroupPlan { tasks: Some(32), ..NONE }, &site).unwrap();
    let mut child = waiting_shell("f() { f & f & }; while :; do f; done");
    cgroup.attach(pid_of(&child)).unwrap();
    go(&mut child);
    cgroup.kill_all().unwrap();
    assert!(!child.wait().unwrap().success());
    cgroup.remove().unwrap();
    assert_eq!(leftovers(&site), Vec::<PathBuf>::new());
}

#[test]
fn a_dropped_cgroup_is_removed() {
    let _turn = turn();
    let Some(site) = site("cgroup::tests::a_dropped_cgroup_is_removed") else {
        return;
    };
    let cgroup = Cgroup::create(&ALL, &site).unwrap();
    assert!(!leftovers(&site).is_empty());
    drop(cgroup);
    assert_eq!(leftovers(&site), Vec::<PathBuf>::new());
}

#[test]
fn a_limit_that_the_kernel_refuses_leaves_nothing() {
    let _turn = turn();
    let Some(site) = site("cgroup::tests::a_limit_that_the_kernel_refuses_leaves_nothing") else {
        return;
    };
    let check = |plan: CgroupPlan, file: &str| {
        match Cgroup::create(&plan, &site).map(|cgroup| cgroup.name().to_owned()) {
            Err(CgroupError::Limit { file: refused, .. }) => {
                assert!(refused.to_string_lossy().contains(file), "{refused:?}");
            }
            other => panic!("{plan:?} gave {other:?}"),
        }
        assert_eq!(leftovers(&site), Vec::<PathBuf>::new(), "{plan:?}");
    };
    check(CgroupPlan { tasks: Some(u64::MAX), ..ALL }, "pids.max");
    check(CgroupPlan { cpu_percent: Some(0), ..ALL }, "cpu.");
}

#[test]
fn a_failure_in_each_hierarchy_leaves_nothing() {
    let _turn = turn();
    let name = "cgroup::tests::a_failure_in_each_hierarchy_leaves_nothing";
    let Some(site) = site(name) else { return };
    let Place::V1(hierarchies) = &site.place else {
        return skip(name, "cgroup v2 has one hierarchy");
    };
    for step in 0..hierarchies.len() {
        let mut broken = hierarchies.clone();
        broken[step].parent = PathBuf::from("/nonexistent");
        let place = Place::V1(broken);
        let made = Cgroup::create(&ALL, &Site { place }).map(|cgroup| cgroup.name().to_owned());
        assert!(matches!(made, Err(CgroupError::Make { .. })), "step {step} gave {made:?}");
        assert_eq!(leftovers(&site), Vec::<PathBuf>::new(), "step {step}");
    }
}

#[test]
fn an_existing_directory_is_never_adopted() {
    let _turn = turn();
    let Some(site) = site("cgroup::tests::an_existing_directory_is_never_adopted") else {
        return;
    };
    let name = dir::fresh_name();
    let parent = &parents(&site)[0];
    let first = dir::Dir::make(parent, &name).unwrap();
    let second = dir::Dir::make(parent, &name).map(|dir| dir.path().to_owned());
    assert!(matches!(second, Err(CgroupError::NameTaken { .. })), "{second:?}");
    assert!(first.path().is_dir());
    first.remove().unwrap();
    assert_eq!(leftovers(&site), Vec::<PathBuf>::new());
}

#[test]
fn a_sweep_takes_what_nobody_holds_and_nothing_else() {
    let _turn = turn();
    let Some(site) = site("cgroup::tests::a_sweep_takes_what_nobody_holds_and_nothing_else") else {
        return;
    };
    // A cgroup of our own to sweep in, since a sweep looks at only a few of many siblings.
    let outer = dir::Dir::make(&parents(&site)[0], &dir::fresh_name()).unwrap();
    let live = dir::Dir::make(outer.path(), &dir::fresh_name()).unwrap();
    let stale = outer.path().join(dir::fresh_name());
    let foreign = outer.path().join("foreign");
    std::fs::create_dir(&stale).unwrap();
    std::fs::create_dir(&foreign).unwrap();
    assert_eq!(dir::sweep(outer.path(), Duration::from_secs(3600)), 0, "too young");
    assert_eq!(dir::sweep(outer.path(), Duration::ZERO), 1);
    assert!(live.path().is_dir() && foreign.is_dir() && !stale.exists());
    std::fs::remove_dir(&foreign).unwrap();
    live.remove().unwrap();
    outer.remove().unwrap();
    assert_eq!(leftovers(&site), Vec::<PathBuf>::new());
}

#[test]
fn a_sweep_leaves_processes_alone() {
    let _turn = turn();
    let Some(site) = site("cgroup::tests::a_sweep_leaves_processes_alone") else {
        return;
    };
    let outer = dir::Dir::make(&parents(&site)[0], &dir::fresh_name()).unwrap();
    let stale = outer.path().join(dir::fresh_name());
    std::fs::create_dir(&stale).unwrap();
    let mut child = waiting_shell("exit 0");
    std::fs::write(stale.join("cgroup.procs"), child.id().to_string()).unwrap();
    assert_eq!(dir::sweep(outer.path(), Duration::ZERO), 0);
    go(&mut child);
    child.wait().unwrap();
    assert_eq!(dir::sweep(outer.path(), Duration::ZERO), 1);
    outer.remove().unwrap();
    assert_eq!(leftovers(&site), Vec::<PathBuf>::new());
}

/// A v2 directory of ours, with or without controllers.
fn v2_site(name: &str) -> Option<Site> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mountinfo
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .and_then(|line| line.split(' ').nth(4))
        .map(PathBuf::from);
    let Some(mount) = mount else {
        skip(name, "no cgroup v2 is mounted");
        return None;
    };
    let own = effective::path_v2(std::process::id().cast_signed()).unwrap();
    let dir = mount.join(own.trim_start_matches('/'));
    let dir = PathBuf::from(dir.to_string_lossy().trim_end_matches('/'));
    let Some(parent) = v2::find_parent(&mount, &dir, &own, &[]) else {
        skip(name, "needs a cgroup v2 directory that this user may write");
        return None;
    };
    Some(Site { place: Place::V2(parent) })
}

#[test]
fn v2_is_entered_by_the_clone_and_left_by_one_write() {
    let _turn = turn();
    let Some(site) = v2_site("cgroup::tests::v2_is_entered_by_the_clone_and_left_by_one_write") else {
        return;
    };
    let cgroup = Cgroup::create(&NONE, &site).unwrap();
    let (pid, _pidfd) = match apex_sys::process::clone_into(0, cgroup.clone_into_fd()).unwrap() {
        apex_sys::process::Side::Parent { pid, pidfd } => (pid, pidfd),
        // The test process has threads, so nothing but waiting for the kill is safe here.
        apex_sys::process::Side::Child => loop {
            nix::unistd::pause();
        },
    };
    assert_eq!(cgroup.effective(pid).unwrap().mismatch(), None);
    cgroup.freeze(true).unwrap();
    cgroup.freeze(false).unwrap();
    cgroup.kill_all().unwrap();
    let ended = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None).unwrap();
    assert!(
        matches!(ended, nix::sys::wait::WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGKILL, _)),
        "{ended:?}"
    );
    cgroup.outcome().unwrap();
    cgroup.remove().unwrap();
    assert_eq!(leftovers(&site), Vec::<PathBuf>::new());
}

#[test]
fn v2_freezes_and_thaws() {
    let _turn = turn();
    let Some(site) = v2_site("cgroup::tests::v2_freezes_and_thaws") else {
        return;
    };
    let mut cgroup = Cgroup::create(&NONE, &site).unwrap();
    let mut child = waiting_shell("exit 0");
    cgroup.attach(pid_of(&child)).unwrap();
    cgroup.freeze(true).unwrap();
    let events = parents(&site)[0].join(cgroup.name()).join("cgroup.events");
    let frozen = || std::fs::read_to_string(&events).unwrap().contains("frozen 1");
    while !frozen() {
        std::thread::sleep(Duration::from_millis(1));
    }
    go(&mut child);
    assert!(child.try_wait().unwrap().is_none(), "a frozen shell must not answer");
    cgroup.freeze(false).unwrap();
    assert!(child.wait().unwrap().success());
    cgroup.remove().unwrap();
    assert_eq!(leftovers(&site), Vec::<PathBuf>::new());
}

const AS_NOBODY: &str = "APEX_TEST_AS_NOBODY";

#[test]
fn an_unprivileged_user_is_told_what_is_missing() {
    let name = "cgroup::tests::an_unprivileged_user_is_told_what_is_missing";
    if std::env::var_os(AS_NOBODY).is_none() && nix::unistd::geteuid().is_root() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(AS_NOBODY, "1")
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .gid(65534)
            .uid(65534)
            .output();
        match output {
            Ok(output) => assert!(
                output.status.success(),
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ),
            Err(error) => skip(name, &format!("uid 65534 cannot execute this test: {error}")),
        }
        return;
    }
    match support(&Controller::ALL) {
        CgroupSupport::Missing { reason, remedy } => {
            assert!(reason.contains("not delegated") || reason.contains("enabled"), "{reason}");
            assert!(remedy.contains("--optional cgroup"), "{remedy}");
            assert!(remedy.contains("systemd-run --user") || remedy.contains("delegate"), "{remedy}");
            let refused = Cgroup::create(&ALL, &Site::find(&Controller::ALL)).map(|_| ());
            assert!(matches!(refused, Err(CgroupError::Unavailable { .. })), "{refused:?}");
        }
        other if std::env::var_os(AS_NOBODY).is_some() => panic!("nobody was given {other:?}"),
        other => skip(name, &format!("this user has a delegated cgroup: {other:?}")),
    }
}

#[test]
fn a_missing_controller_is_named() {
    let place = Place::V1(Vec::new());
    let error = Cgroup::create(&ALL, &Site { place }).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("memory, pids, cpu"), "{error}");
}

#[test]
fn names_do_not_repeat() {
    let names: std::collections::BTreeSet<String> = (0..1000).map(|_| dir::fresh_name()).collect();
    assert_eq!(names.len(), 1000);
    assert!(names.iter().all(|name| Path::new(name).components().count() == 1));
}

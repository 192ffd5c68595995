//! The module against the kernel: as root, in cgroups of a fresh name, which are removed whatever happens.

use std::ffi::CString;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use apex_sys::process::{self, CStrings, Ended, Side};
use nix::libc::{SIGKILL, SIGTERM};

use super::limits::tests::resources;
use super::oom::OomWord;
use super::*;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Whether the tests of this file can be made: what they need is root and a hierarchy.
fn is_root() -> bool {
    nix::unistd::geteuid().is_root() && host::look().is_ok()
}

fn is_v1() -> bool {
    is_root() && !host::is_unified(&host::look().unwrap())
}

/// A cgroup that is emptied and removed in the end.
struct Guard {
    cgroup: Cgroup,
    top: PathBuf,
}

fn fresh() -> PathBuf {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    PathBuf::from(format!("/apex-oci-test-{}-{number}", std::process::id()))
}

fn wanted<'a>(path: &'a Path, resources: &'a LinuxResources) -> Wanted<'a> {
    Wanted {
        id: "test",
        path: Some(path),
        systemd: false,
        resources: Some(resources),
        is_rootless: false,
        annotations: None,
    }
}

impl Guard {
    fn make(json: &str) -> Guard {
        let top = fresh();
        let resources = resources(json);
        let cgroup = Cgroup::make(&wanted(&top.join("c"), &resources)).unwrap();
        assert_eq!(cgroup.notes(), [] as [&str; 0]);
        Guard { cgroup, top }
    }

    fn read(&self, controller: &str, file: &str) -> String {
        let path = self.cgroup.paths()[controller].join(file);
        std::fs::read_to_string(path).unwrap().trim().to_owned()
    }

    /// Starts a shell inside, which entered as a container's first process does.
    fn start(&self, script: &str) -> Child {
        enter(&self.cgroup.doors().unwrap(), script)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let killed = self.cgroup.kill_all();
        let removed = self.cgroup.remove();
        remove_tops(&self.top);
        if !std::thread::panicking() {
            killed.unwrap();
            removed.unwrap();
        }
    }
}

/// The directories above a container's are not its own and stay; here they are the test's.
fn remove_tops(top: &Path) {
    for hierarchy in host::look().unwrap() {
        let _ = std::fs::remove_dir(hierarchy.point.join(top.strip_prefix("/").unwrap()));
    }
}

struct Child {
    pid: i32,
}

fn enter(doors: &Doors, script: &str) -> Child {
    let words = |words: &[&str]| CStrings::new(words.iter().map(|word| CString::new(*word).unwrap()).collect());
    let (argv, env) = (words(&["sh", "-c", script]), words(&["PATH=/usr/bin:/bin"]));
    let (mut reader, writer) = std::io::pipe().unwrap();
    // Only calls without memory or locks follow in the child: this process has threads.
    match process::clone_into(0, doors.birth()).unwrap() {
        Side::Child => {
            if doors.walk_in().is_err() {
                process::exit_now(101);
            }
            process::exec(c"/bin/sh", &argv, &env);
            process::exit_now(102)
        }
        Side::Parent { pid, .. } => {
            drop(writer);
            // Its end closes at the exec: the child is inside.
            assert_eq!(std::io::Read::read(&mut reader, &mut [0]).unwrap(), 0);
            Child { pid }
        }
    }
}

impl Child {
    fn wait(self) -> Ended {
        let (_, ended) = process::wait(self.pid, 0).unwrap().unwrap();
        std::mem::forget(self);
        ended
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = process::kill(self.pid, SIGKILL);
        let _ = process::wait(self.pid, 0);
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn limits_stand_in_the_files_of_v1() {
    if !is_v1() {
        return;
    }
    let guard = Guard::make(
        r#"{"memory":{"limit":33554432,"swap":67108864,"reservation":16777216,"swappiness":7,"disableOOMKiller":true,"kernelTCP":4194304},
            "cpu":{"shares":333,"quota":40000,"period":80000,"burst":1000,"cpus":"0","mems":"0"},"pids":{"limit":17},
            "blockIO":{"weight":77},
            "devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":229,"access":"rw"}]}"#,
    );
    let check = |controller, file, expected: &str| assert_eq!(guard.read(controller, file), expected, "{file}");
    check("memory", "memory.limit_in_bytes", "33554432");
    check("memory", "memory.memsw.limit_in_bytes", "67108864");
    check("memory", "memory.soft_limit_in_bytes", "16777216");
    check("memory", "memory.swappiness", "7");
    check("memory", "memory.kmem.tcp.limit_in_bytes", "4194304");
    assert!(guard.read("memory", "memory.oom_control").starts_with("oom_kill_disable 1"));
    check("cpu", "cpu.shares", "333");
    check("cpu", "cpu.cfs_quota_us", "40000");
    check("cpu", "cpu.cfs_period_us", "80000");
    check("cpu", "cpu.cfs_burst_us", "1000");
    check("cpuset", "cpuset.cpus", "0");
    check("cpuset", "cpuset.mems", "0");
    check("pids", "pids.max", "17");
    check("blkio", "blkio.bfq.weight", "77");
    let devices = guard.read("devices", "devices.list");
    assert!(devices.contains("c 10:229 rw") && devices.contains("c 1:3 rwm") && !devices.contains("a *"), "{devices}");

    let update =
        r#"{"memory":{"limit":134217728,"swap":134217728},"cpu":{"quota":1500,"period":2000},"pids":{"limit":-1}}"#;
    guard.cgroup.limit(&resources(update)).unwrap();
    check("memory", "memory.limit_in_bytes", "134217728");
    check("memory", "memory.memsw.limit_in_bytes", "134217728");
    check("pids", "pids.max", "max");
    check("cpu", "cpu.cfs_quota_us", "1500");
    check("cpu", "cpu.cfs_period_us", "2000");
}

/// Where v2 has a controller at all; on this project's machines that is hugetlb, in a mount namespace that shows v2 alone.
#[test]
fn limits_stand_in_the_files_of_v2() {
    if !is_root() || is_v1() {
        return;
    }
    let path = fresh();
    let resources = resources(
        r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}],"unified":{"cgroup.max.descendants":"7","hugetlb.1GB.max":"0"}}"#,
    );
    let cgroup = Cgroup::make(&wanted(&path, &resources)).unwrap();
    let read = |file: &str| std::fs::read_to_string(cgroup.paths()[""].join(file)).map(|text| text.trim().to_owned());
    let seen = ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max", "hugetlb.1GB.max", "cgroup.max.descendants"].map(read);
    cgroup.remove().unwrap();
    let seen = seen.map(Result::unwrap);
    assert_eq!(seen, ["4194304", "4194304", "0", "7"]);
}

#[test]
fn the_first_process_enters_every_hierarchy() {
    if !is_root() {
        return;
    }
    let guard = Guard::make("{}");
    let child = guard.start("exec sleep 60");
    let told = std::fs::read_to_string(format!("/proc/{}/cgroup", child.pid)).unwrap();
    let entered = told.lines().filter(|line| line.ends_with(guard.top.join("c").to_str().unwrap())).count();
    assert_eq!(entered, guard.cgroup.places.len(), "{told}");
    assert_eq!(guard.cgroup.pids().unwrap(), [child.pid]);
    assert!(!guard.cgroup.is_empty().unwrap());
    guard.cgroup.kill_all().unwrap();
    assert_eq!(child.wait(), Ended::Signal(SIGKILL));
    assert!(guard.cgroup.is_empty().unwrap());
}

#[test]
fn a_later_command_works_from_the_state_file() {
    if !is_root() {
        return;
    }
    let guard = Guard::make("{}");
    let child = guard.start("exec sleep 60");
    let state = serde_json::to_string(&guard.cgroup).unwrap();
    let cgroup: Cgroup = serde_json::from_str(&state).unwrap();
    assert_eq!(cgroup.pids().unwrap(), [child.pid]);
    assert_eq!(cgroup.paths(), guard.cgroup.paths());
    let second = enter(&cgroup.doors().unwrap(), "exec sleep 60");
    assert_eq!(cgroup.pids().unwrap().len(), 2);
    cgroup.kill(SIGTERM).unwrap();
    assert_eq!((child.wait(), second.wait()), (Ended::Signal(SIGTERM), Ended::Signal(SIGTERM)));
    assert!(!cgroup.is_frozen().unwrap());
}

#[test]
fn memory_runs_out_for_real() {
    if !is_v1() {
        return;
    }
    let guard = Guard::make(r#"{"memory":{"limit":8388608,"swap":8388608}}"#);
    let mut ooms = guard.cgroup.ooms().unwrap();
    assert_eq!(ooms.take().unwrap(), OomWord::Nothing);
    let child = guard.start("exec tail /dev/zero");
    assert_eq!(child.wait(), Ended::Signal(SIGKILL));
    assert_eq!(guard.cgroup.oom_kills().unwrap(), 1);
    assert_eq!(ooms.take().unwrap(), OomWord::Oom);
    let stats = guard.cgroup.stats().unwrap();
    assert_eq!((stats.memory.usage.limit, stats.memory.usage.max), (8_388_608, 8_388_608));
}

#[test]
fn tasks_run_out_for_real() {
    if !is_v1() {
        return;
    }
    let guard = Guard::make(r#"{"pids":{"limit":3}}"#);
    let child = guard.start("sleep 60 & sleep 60 & sleep 60 & wait");
    assert_eq!(child.wait(), Ended::Code(2), "dash cannot fork the third");
    let stats = guard.cgroup.stats().unwrap();
    assert_eq!((stats.pids.current, stats.pids.limit), (2, 3));
}

#[test]
fn processor_time_is_withheld_for_real() {
    if !is_v1() {
        return;
    }
    let guard = Guard::make(r#"{"cpu":{"quota":2000,"period":20000}}"#);
    let child = guard.start("while :; do :; done");
    until("no period was throttled", || guard.cgroup.stats().unwrap().cpu.throttling.throttled_periods > 3);
    let start = Instant::now();
    let before = guard.cgroup.stats().unwrap().cpu.usage.total;
    std::thread::sleep(Duration::from_millis(300));
    let used = guard.cgroup.stats().unwrap().cpu.usage.total - before;
    let share = used as f64 / start.elapsed().as_nanos() as f64;
    assert!(share > 0.0 && share < 0.25, "a tenth of a processor was allowed, {share} was had");
    drop(child);
}

#[test]
fn freezing_stops_and_killing_reaches_the_frozen() {
    if !is_root() {
        return;
    }
    let guard = Guard::make("{}");
    let child = guard.start("sleep 60 & while :; do :; done");
    until("no second process", || guard.cgroup.pids().unwrap().len() == 2);
    guard.cgroup.freeze().unwrap();
    assert!(guard.cgroup.is_frozen().unwrap());
    if is_v1() {
        let before = guard.cgroup.stats().unwrap().cpu.usage.total;
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(guard.cgroup.stats().unwrap().cpu.usage.total, before);
    }
    guard.cgroup.thaw().unwrap();
    assert!(!guard.cgroup.is_frozen().unwrap());
    guard.cgroup.freeze().unwrap();
    guard.cgroup.kill_all().unwrap();
    assert_eq!(child.wait(), Ended::Signal(SIGKILL));
}

#[test]
fn a_fork_bomb_is_killed() {
    if !is_root() {
        return;
    }
    let guard = Guard::make("{}");
    // Each generation starts its successor and ends: a list of processes is old when it is read.
    let child = guard.start("f() { (sleep 0.001; f) & }; f; f; f; wait; sleep 60");
    until("no fork", || guard.cgroup.pids().unwrap().len() > 2);
    guard.cgroup.kill_all().unwrap();
    assert_eq!(child.wait(), Ended::Signal(SIGKILL));
    assert!(guard.cgroup.is_empty().unwrap());
}

#[test]
fn what_the_container_made_below_goes_too() {
    if !is_root() {
        return;
    }
    let guard = Guard::make("{}");
    for dir in guard.cgroup.paths().values() {
        std::fs::create_dir_all(dir.join("a/b")).unwrap();
        std::fs::create_dir_all(dir.join("c")).unwrap();
    }
    let child = guard.start("exec sleep 60");
    let below = guard.cgroup.attach(child.pid, &[SubPath::parse("a/b").unwrap()]);
    // A cpuset without processors takes nobody.
    let expected_error = guard.cgroup.paths().contains_key("cpuset");
    assert_eq!(below.is_err(), expected_error, "{below:?}");
    guard.cgroup.kill_all().unwrap();
    child.wait();
    guard.cgroup.remove().unwrap();
    assert!(guard.cgroup.paths().values().all(|dir| !dir.exists()));
    // A second time is no failure, nor is any look at what is gone.
    guard.cgroup.remove().unwrap();
    assert!(guard.cgroup.is_empty().unwrap() && !guard.cgroup.is_frozen().unwrap());
}

#[test]
fn fresh_cpusets_on_the_way_down_have_processors() {
    if !is_v1() {
        return;
    }
    let top = fresh();
    let nothing = resources("{}");
    let cgroup = Cgroup::make(&wanted(&top.join("a/b"), &nothing)).unwrap();
    let cpuset = &cgroup.paths()["cpuset"];
    let read = |dir: &Path| std::fs::read_to_string(dir.join("cpuset.cpus")).unwrap();
    let expected = read(Path::new(&cgroup.place_of("cpuset").unwrap().point));
    let seen = [read(cpuset), read(cpuset.parent().unwrap())];
    cgroup.remove().unwrap();
    remove_tops(&top.join("a"));
    remove_tops(&top);
    assert_eq!(seen, [expected.clone(), expected]);
}

#[test]
fn a_cgroup_in_use_is_not_removed() {
    if !is_root() {
        return;
    }
    let guard = Guard::make("{}");
    let child = guard.start("exec sleep 60");
    let error = guard.cgroup.remove().unwrap_err().to_string();
    assert!(error.contains("processes are still in it"), "{error}");
    drop(child);
}

#[test]
fn a_limit_that_fails_leaves_nothing() {
    if !is_v1() {
        return;
    }
    let top = fresh();
    for json in [
        r#"{"pids":{"limit":5},"hugepageLimits":[{"pageSize":"2MB","limit":5}]}"#,
        r#"{"network":{"classID":5}}"#,
        r#"{"rdma":{"mlx5_1":{"hcaHandles":3}}}"#,
        r#"{"cpu":{"cpus":"99"}}"#,
        r#"{"cpu":{"quota":5,"period":9}}"#,
        r#"{"blockIO":{"leafWeight":300}}"#,
        r#"{"unified":{"memory.max":"5"}}"#,
        r#"{"devices":[{"allow":true,"type":"p","access":"r"}]}"#,
    ] {
        let resources = resources(json);
        let error = Cgroup::make(&wanted(&top.join("c"), &resources)).unwrap_err();
        assert!(!error.to_string().is_empty(), "{json}");
        for hierarchy in host::look().unwrap() {
            let left = hierarchy.point.join(top.strip_prefix("/").unwrap());
            assert!(!left.exists(), "{json} left {}", left.display());
        }
    }
}

#[test]
fn a_frozen_cgroup_is_refused_and_one_in_use_is_noted() {
    if !is_root() {
        return;
    }
    let guard = Guard::make("{}");
    let nothing = resources("{}");
    let path = guard.top.join("c");
    let child = guard.start("exec sleep 60");
    let again = Cgroup::make(&wanted(&path, &nothing)).unwrap();
    assert!(again.notes()[0].contains("container's cgroup is not empty: 1 process(es) found"), "{:?}", again.notes());
    guard.cgroup.freeze().unwrap();
    let error = Cgroup::make(&wanted(&path, &nothing)).unwrap_err();
    assert!(matches!(error, CgroupError::Frozen { .. }), "{error}");
    assert!(guard.cgroup.paths().values().all(|dir| dir.exists()));
    // The frozen do not die on v1.
    guard.cgroup.thaw().unwrap();
    drop(child);
}

#[test]
fn a_rootless_container_without_limits_has_no_cgroup() {
    let nothing = resources(r#"{"devices":[{"allow":false,"access":"rwm"}]}"#);
    let wanted = Wanted {
        id: "rootless",
        path: None,
        systemd: false,
        resources: Some(&nothing),
        is_rootless: true,
        annotations: None,
    };
    let cgroup = Cgroup::make(&wanted).unwrap();
    assert_eq!((cgroup.version(), cgroup.paths().len(), cgroup.views().len()), (Version::None, 0, 0));
    assert!(cgroup.doors().unwrap().birth().is_none());
    assert!(matches!(cgroup.limit(&resources(r#"{"pids":{"limit":5}}"#)), Err(CgroupError::None { .. })));
    assert!(matches!(cgroup.pids(), Err(CgroupError::None { .. })));
    // A create that failed takes back what it made, also when that is nothing.
    cgroup.kill_all().unwrap();
    cgroup.remove().unwrap();
}

#[test]
fn limits_are_not_dropped_where_no_cgroup_is_wanted() {
    let limited = resources(r#"{"memory":{"limit":1048576}}"#);
    let error = Cgroup::none(&wanted(Path::new("/unused"), &limited)).unwrap_err();
    assert!(matches!(error, CgroupError::None { verb: "be limited" }), "{error}");
    let free = resources(r#"{"devices":[{"allow":false,"access":"rwm"}]}"#);
    assert_eq!(Cgroup::none(&wanted(Path::new("/unused"), &free)).unwrap().version(), Version::None);
}

#[test]
fn devices_are_denied_by_the_program() {
    if !is_root() {
        return;
    }
    let guard = Guard::make(r#"{"devices":[{"allow":true,"type":"a","access":"rwm"}]}"#);
    let Some(place) = guard.cgroup.v2() else {
        return;
    };
    let script = "head -c1 /dev/zero >/dev/null || exit 3; head -c1 /dev/urandom >/dev/null || exit 4; exit 5";
    assert_eq!(guard.start(script).wait(), Ended::Code(5));
    let json = r#"[{"allow":true},{"allow":false,"type":"c","major":1,"minor":9,"access":"r"}]"#;
    let mut rules = devices::rules(&devices::tests::given(json)).unwrap();
    // Without the devices that every container has, behind which nothing is denied of these.
    rules.truncate(2);
    device_program::set(place.open().unwrap(), &rules).unwrap();
    assert_eq!(guard.start(script).wait(), Ended::Code(4));
}

/// The rest of a path of the state file is the container's own, wherever the machine's cgroup of the caller is.
#[test]
fn views_tell_mounts_and_links() {
    let place = |names: &[&str], point: &str| Place {
        names: names.iter().map(|&name| name.to_owned()).collect(),
        point: PathBuf::from(point),
        dir: Path::new(point).join("c"),
        open: OnceCell::new(),
    };
    let check = |place: Place, name: &str, links: &[&str], options: &str| {
        let view = view(&place);
        assert_eq!((view.name.as_str(), view.options.as_str()), (name, options));
        assert_eq!(view.links, links);
    };
    check(place(&["cpu", "cpuacct"], "/s/cpu,cpuacct"), "cpu,cpuacct", &["cpu", "cpuacct"], "cpu,cpuacct");
    check(place(&["memory"], "/s/memory"), "memory", &[], "memory");
    check(place(&["name=systemd"], "/s/systemd"), "systemd", &[], "none,name=systemd");
    check(place(&[], "/s"), "s", &[], "");
}

#[test]
fn events_tell_use_and_ooms_until_the_end() {
    if !is_v1() {
        return;
    }
    let guard = Guard::make(r#"{"memory":{"limit":8388608,"swap":8388608}}"#);
    let child = guard.start("tail /dev/zero; sleep 0.3; exit 0");
    let mut out = Vec::new();
    std::thread::scope(|scope| {
        // An ended process is reaped, or it stays in the list of its cgroup.
        scope.spawn(move || child.wait());
        crate::events::follow("c1", &guard.cgroup, Duration::from_millis(20), &mut out).unwrap();
    });
    let lines = String::from_utf8(out).unwrap();
    let events: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(events.iter().any(|event| event["type"] == "oom" && event["id"] == "c1"), "{lines}");
    let stats = events.iter().find(|event| event["type"] == "stats").unwrap();
    assert_eq!(stats["data"]["memory"]["usage"]["limit"], 8_388_608);
    assert!(stats["data"]["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
}

#[test]
fn ps_shows_the_container_alone() {
    if !is_root() {
        return;
    }
    let guard = Guard::make("{}");
    let child = guard.start("exec sleep 60");
    let table = crate::ps::table(&guard.cgroup.pids().unwrap(), &[]).unwrap();
    assert!(table.lines().count() == 2 && table.contains("sleep 60"), "{table}");
    drop(child);
}

/// Only here: a descriptor of a directory for those who look at [`Doors::birth`].
#[test]
fn a_container_is_born_into_v2() {
    if !is_root() {
        return;
    }
    let guard = Guard::make("{}");
    let doors = guard.cgroup.doors().unwrap();
    let birth: Option<BorrowedFd<'_>> = doors.birth();
    assert_eq!(birth.is_some(), guard.cgroup.v2().is_some());
}

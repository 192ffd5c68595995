//! The Debian package on a real host: installed, upgraded and removed with a sandbox that lives; the service restarted, reloaded, killed and watched. `cargo xtask vm`.

use std::process::Command;
use std::time::{Duration, Instant};

use apex_tests::{TempDir, as_root, skip, vm_only};
use serde_json::Value;

/// Emulation is slow.
const PATIENCE: Duration = Duration::from_secs(90);
const SANDBOXES: &str = "/sys/fs/cgroup/system.slice/apex-sandboxes.service";
const RULES: &str = "/etc/apex/access.toml";
/// Gives the ordinary user of the machine a role.
const MEMBER: &str = "[[member]]\nuid = 1000\nrole = \"viewer\"\n";

/// Runs a command line, which must end well; what it printed.
#[track_caller]
fn sh(line: &str) -> String {
    let (code, text) = try_sh(line);
    assert_eq!(code, Some(0), "{line}: {text}");
    text
}

fn try_sh(line: &str) -> (Option<i32>, String) {
    let output = Command::new("/bin/sh").args(["-c", &format!("exec 2>&1; {line}")]).output().expect("sh starts");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what} does not come: {}", try_sh("journalctl -b -n 60 --no-pager").1);
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn property(unit: &str, name: &str) -> String {
    sh(&format!("systemctl show --value -p {name} {unit}"))
}

#[track_caller]
fn inspect(sandbox: &str) -> Value {
    serde_json::from_str(&sh(&format!("apex --json inspect {sandbox}"))).expect("JSON")
}

/// The sandbox goes on as the process that it was, and the daemon knows it.
#[track_caller]
fn goes_on(pid: i64) {
    let sandbox = inspect("sleeper");
    assert_eq!((sandbox["state"].as_str(), sandbox["pid"].as_i64()), (Some("running"), Some(pid)), "{sandbox}");
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
}

fn main_pid() -> String {
    property("apexd.service", "MainPID")
}

/// Until another process is the daemon, and takes requests.
#[track_caller]
fn another_than(pid: &str) {
    until("another apexd", || {
        let now = main_pid();
        now != "0" && now != pid && property("apexd.service", "ActiveState") == "active"
    });
}

/// One test, since there is one host: the parts build on each other.
#[test]
fn a_service_from_its_installation_to_its_purge() {
    vm_only!();
    if !as_root() {
        skip!("only root installs packages");
    }
    let package = std::env::var("APEX_DEB").expect("the machine names it");
    assert!(std::path::Path::new(&package).exists(), "{package} was not built");
    sh(&format!("dpkg --install {package}"));
    installed();
    sh("cd /srv && apex create --name sleeper --mode hybrid -- /bin/sleep 3000");
    let pid = inspect("sleeper")["pid"].as_i64().expect("it runs");
    cgroups(pid);
    restarts(pid);
    reloads();
    watched(pid);
    upgraded(&package, pid);
    removed(pid);
}

fn installed() {
    assert_eq!(property("apexd.service", "ActiveState"), "active");
    assert_eq!(property("apexd.socket", "ActiveState"), "active");
    assert_eq!(property("apexd.service", "StatusText"), "takes requests");
    assert_eq!(sh("systemctl is-enabled apexd.service apexd.socket"), "enabled\nenabled");
    assert_eq!(sh("stat -c '%a %U' /run/apex/apexd.sock /run/apex"), "666 root\n755 root");
    assert_eq!(sh("stat -c %a /var/lib/apex"), "711");
    assert_eq!(sh("apex --json ls"), "[]");
    let verdict = sh("systemd-analyze verify --man=no apexd.service apexd.socket apex-sandboxes.service");
    assert_eq!(verdict, "", "systemd has something to say about the units");
    println!("{}", sh("systemd-analyze security --no-pager apexd.service | tail -n 1"));
    assert_eq!(sh("dpkg --verify apex"), "");
    // Without a manual: programs, pages and completions are where they are looked for.
    sh(
        "test -s /usr/share/man/man8/apexd.8.gz -a -s /usr/share/bash-completion/completions/apex -a -x /usr/libexec/apex/apex-probe",
    );
    sh("getent passwd apexd");
}

fn cgroups(pid: i64) {
    let sandbox = sh(&format!("sed -n s/^0:://p /proc/{pid}/cgroup"));
    assert!(sandbox.contains("/apex-sandboxes.service/"), "{sandbox}");
    assert_ne!(sh(&format!("cat /sys/fs/cgroup{sandbox}/memory.max")), "max", "its limits are in force");
    let own = sh(&format!("sed -n s/^0:://p /proc/{}/cgroup", main_pid()));
    assert_eq!(own, "/system.slice/apexd.service");
    assert_eq!(sh("cat /sys/fs/cgroup/system.slice/apexd.service/cgroup.procs"), main_pid(), "nobody else is in it");
    assert_eq!(sh(&format!("cat {SANDBOXES}/cgroup.procs")), "", "its processes are in leaves");
}

fn restarts(pid: i64) {
    let before = main_pid();
    sh("systemctl restart apexd.service");
    assert_ne!(main_pid(), before);
    goes_on(pid);
    // Whoever connects while it is stopped starts it.
    sh("systemctl stop apexd.service");
    assert_eq!(property("apexd.service", "ActiveState"), "inactive");
    assert_eq!(sh("find /sys/fs/cgroup/system.slice/apexd.service -name cgroup.procs 2>/dev/null | xargs -r cat"), "");
    goes_on(pid);
    assert_eq!(property("apexd.service", "ActiveState"), "active");
    let before = main_pid();
    sh(&format!("kill -KILL {before}"));
    // Nobody is refused meanwhile: the socket is systemd's.
    goes_on(pid);
    another_than(&before);
    // Of the keeper, of the warden, and perhaps of the warden that was just about to end.
    let leaves: u32 = sh(&format!("ls -d {SANDBOXES}/keepers-* | wc -l")).parse().expect("a number");
    assert!((2..=3).contains(&leaves), "{leaves}: empty ones are removed");
}

fn reloads() {
    const AS_USER: &str = "runuser -u apex -- env APEX_SOCKET=/run/apex/apexd.sock apex tree";
    assert_ne!(try_sh(AS_USER).0, Some(0), "a stranger has no role");
    std::fs::write(RULES, MEMBER).expect("we are root");
    let before = main_pid();
    sh("systemctl reload apexd.service");
    until("the new rules", || try_sh(AS_USER).0 == Some(0));
    std::fs::write(RULES, "[[member]]\nuid = \"all\"\n").expect("we are root");
    sh("systemctl reload apexd.service");
    until("the word of the broken rules", || property("apexd.service", "StatusText").contains("not read anew"));
    sh(AS_USER);
    assert_eq!(main_pid(), before, "a reload is no restart");
    let said = sh("journalctl -b --no-pager -o json APEX_EVENT=reload PRIORITY=3");
    let entry: Value = serde_json::from_str(said.lines().last().expect("an entry")).expect("JSON");
    assert_eq!((entry["SYSLOG_IDENTIFIER"].as_str(), entry["_PID"].as_str()), (Some("apexd"), Some(before.as_str())));
    assert_eq!(entry["_SYSTEMD_UNIT"], "apexd.service");
    std::fs::write(RULES, MEMBER).expect("we are root");
    sh("systemctl reload apexd.service");
    sh("apex audit verify");
}

/// One that hangs is ended by the watchdog, and another takes over.
fn watched(pid: i64) {
    assert_eq!(property("apexd.service", "WatchdogUSec"), "30s");
    sh("mkdir -p /run/systemd/system/apexd.service.d");
    std::fs::write("/run/systemd/system/apexd.service.d/test.conf", "[Service]\nWatchdogSec=6\nLimitCORE=0\n")
        .expect("we are root");
    sh("systemctl daemon-reload; systemctl restart apexd.service");
    let before = main_pid();
    std::thread::sleep(Duration::from_secs(15));
    assert_eq!(main_pid(), before, "one that beats is left alone");
    sh(&format!("kill -STOP {before}"));
    another_than(&before);
    assert!(sh("journalctl -b --no-pager -u apexd.service").contains("Watchdog timeout"));
    goes_on(pid);
    sh("rm -r /run/systemd/system/apexd.service.d; systemctl daemon-reload; systemctl restart apexd.service");
    goes_on(pid);
}

fn upgraded(package: &str, pid: i64) {
    let dir = TempDir::new();
    let (tree, newer) = (dir.at("tree"), dir.at("newer.deb"));
    sh(&format!("dpkg-deb -R {package} {tree}; sed -i 's/^Version: .*/&+1/' {tree}/DEBIAN/control"));
    sh(&format!("dpkg-deb --root-owner-group -Znone --build {tree} {newer}"));
    let before = main_pid();
    // Somebody asks all the while.
    let asking = std::thread::spawn(|| {
        (0..20).all(|_| {
            std::thread::sleep(Duration::from_millis(100));
            try_sh("apex ls").0 == Some(0)
        })
    });
    sh(&format!("dpkg --install {newer}"));
    assert_ne!(main_pid(), before, "the new one runs");
    assert!(sh("dpkg-query -W -f '${Version}' apex").ends_with("+1"));
    goes_on(pid);
    assert!(asking.join().expect("it does not panic"), "nobody was refused");
}

fn removed(pid: i64) {
    sh("dpkg --remove apex");
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "its sandboxes end with the program");
    assert_eq!(try_sh("pgrep -x 'apexd|apex-run'").1, "");
    assert!(!std::path::Path::new(SANDBOXES).exists());
    assert!(!std::path::Path::new("/run/apex/apexd.sock").exists());
    sh("test -s /var/lib/apex/audit.jsonl -a -s /etc/apex/access.toml");
    sh("dpkg --purge apex");
    for path in ["/var/lib/apex", "/etc/apex", "/run/apex", "/usr/libexec/apex"] {
        assert!(!std::path::Path::new(path).exists(), "{path} is left");
    }
    assert_eq!(sh("systemctl list-unit-files --no-legend 'apex*' | grep -v apex-tests || true"), "");
}

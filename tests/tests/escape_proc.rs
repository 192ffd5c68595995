//! Other processes: of the host, of another sandbox, and Apex's own init, which is pid 1 inside.

use std::fs;
use std::process::{Child, Command, Stdio};

use apex_tests::attack::Abi;
use apex_tests::{Mode, TempDir, armed, each_mode};

/// A process of the host that a sandbox tries to hurt; ended with the test.
struct Victim(Child);

impl Victim {
    fn new() -> Self {
        Victim(Command::new("sleep").arg("300").stdin(Stdio::null()).spawn().expect("sleep starts"))
    }

    #[track_caller]
    fn expect_unharmed(&mut self) {
        let ended = self.0.try_wait().expect("it is our child");
        assert!(ended.is_none(), "a process of the host was ended from inside: {ended:?}");
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("it runs");
        assert!(!status.contains("State:\tT"), "a process of the host was stopped from inside");
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // It may have been ended by the failure under test.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn processes_of_the_host_cannot_be_signalled() {
    each_mode(|mode| {
        let mut victim = Victim::new();
        let pid = victim.0.id();
        let mut session = armed!().mode(mode).session();
        for call in ["kill", "tgkill", "pidfd_send_signal", "sigqueue", "kill_group"] {
            for signal in [0, 9, 15, 19] {
                session.refused(&format!("{call} {pid} {signal}"));
            }
        }
        session.refused(&format!("vm_readv_1 {pid}"));
        session.refused(&format!("ptrace_seize_1 {pid}"));
        session.refused(&format!("pidfd_getfd_1 {pid}"));
        session.refused(&format!("prlimit_1 {pid}"));
        session.refused(&format!("renice_1 {pid}"));
        session.refused(&format!("affinity_1 {pid}"));
        session.refused(&format!("kcmp_1 {pid}"));
        session.finish().expect_code(0);
        victim.expect_unharmed();
    });
}

/// `apex-run` itself, and the test that started it, are processes of the host too.
#[test]
fn the_launcher_cannot_be_signalled() {
    each_mode(|mode| {
        let mut session = armed!().mode(mode).session();
        for pid in [i64::from(session.pid()), i64::from(std::process::id())] {
            session.refused(&format!("kill {pid} 0"));
            session.refused(&format!("kill_group {pid} 0"));
        }
        session.finish().expect_code(0);
    });
}

#[test]
fn init_survives_every_signal_from_inside() {
    each_mode(|mode| {
        for signal in ["9", "19", "15", "1", "2", "11", "20", "31", "34"] {
            let output = armed!().mode(mode).attack(Abi::X64, &["signal_init", signal]).expect_code(0);
            assert!(output.out().starts_with("alive\n"), "signal {signal}: {}", output.out());
        }
    });
}

/// All that kill(-1) reaches is the sandbox; its end is an ordinary one.
#[test]
fn killing_everything_ends_only_the_sandbox() {
    let mut victim = Victim::new();
    each_mode(|mode| {
        armed!().mode(mode).attack(Abi::X64, &["kill_all", "9"]).expect_code(0);
        armed!().mode(mode).attack(Abi::X64, &["kill_all", "19"]).expect_code(0);
    });
    victim.expect_unharmed();
}

#[test]
fn init_gives_nothing_away() {
    each_mode(|mode| {
        let mut session = armed!().mode(mode).session();
        for name in [
            "mem",
            "environ",
            "maps",
            "exe",
            "root",
            "cwd",
            "fd",
            "fdinfo",
            "ns_mnt",
            "fd_any",
            "exe_name",
            "root_name",
        ] {
            session.refused(&format!("proc1_{name}"));
        }
        session.refused("initroot_read /etc/passwd");
        session.refused("initcwd_read /etc/passwd");
        session.finish().expect_code(0);
    });
}

/// Only its own tree is in /proc: pid 1, the command, and what the command starts.
#[test]
fn only_own_processes_are_seen() {
    each_mode(|mode| {
        let _victim = Victim::new();
        let mut session = armed!().mode(mode).session();
        let shown = session.allowed("list /proc");
        let pids = shown.split(' ').filter_map(|name| name.parse::<u32>().ok()).filter(|pid| *pid > 50).count();
        assert_eq!(pids, 0, "{shown}");
        assert!(session.allowed("whoami").contains("sid=2"), "the command leads its own session");
        session.finish().expect_code(0);
    });
}

/// Two sandboxes of one user do not reach each other, by pid, by path or by abstract socket.
#[test]
fn sandboxes_do_not_reach_each_other() {
    let shared = TempDir::new();
    let mut one = armed!().mode(Mode::Isolation).rw(&shared.text(), "/tmp/data").session();
    let mut two = armed!().mode(Mode::Isolation).session();
    one.allowed("create /tmp/mine");
    two.refused("read /tmp/mine");
    one.allowed("unix_bind /tmp/data/sock");
    two.refused("unix_path /tmp/data/sock");
    one.finish().expect_code(0);
    two.finish().expect_code(0);
}

/// The runtime's binary cannot be written through /proc, neither while the sandbox runs nor by a descriptor kept for later.
#[test]
fn the_runtimes_binary_cannot_be_written() {
    let before = fs::read(apex_tests::apex_run()).expect("it is ours");
    each_mode(|mode| {
        let mut session = armed!().mode(mode).session();
        for path in ["/proc/1/exe", "/proc/self/exe"] {
            session.refused(&format!("write {path}"));
            session.refused(&format!("reopen_write {path}"));
            session.refused(&format!("reopen_opath {path}"));
            session.refused(&format!("openat2_write {path}"));
        }
        session.refused("read /proc/1/exe");
        session.refused("reopen_read /proc/1/exe");
        session.finish().expect_code(0);
    });
    assert!(fs::read(apex_tests::apex_run()).expect("it is ours") == before, "apex-run was changed");
}

//! Files, privileges and system calls at level `full`, live.

use std::collections::BTreeMap;
use std::process::Command;

use apex_core::event::{Address, Errno, Event, What};
use apex_core::refusal::Access;
use apex_core::watch::{Family, Level, Source};
use apex_probe::bpf::Probes;
use apex_tests::TempDir;
use apex_tests::watched::{Cgroup, Recorded, channel};

/// Runs a python script in a watched cgroup, with `argv[1]` a directory of its own.
fn watch(cgroup: &Cgroup, directory: &TempDir, script: &str) -> Recorded {
    let (probes, sources) = Probes::load(Level::Full);
    for family in [Family::Process, Family::Network, Family::Syscall, Family::File, Family::Privilege] {
        assert_eq!(sources.get(&family), Some(&Source::Probe), "{family:?}");
    }
    let job = cgroup.run(&["/usr/bin/python3", "-c", script, &directory.text()]);
    let (to, from) = channel();
    let running = probes.expect("families").start(cgroup.sandbox(0), to).expect("root may attach");
    assert_eq!(job.go(), Some(0));
    let recorded = Recorded::collect(running, from);
    assert!(recorded.lost.is_empty(), "{:?}", recorded.lost);
    assert!(recorded.events.iter().all(|event| event.sandbox == cgroup.id()));
    recorded
}

fn told(recorded: &Recorded, what: &What) -> Event {
    recorded.find(|seen| seen == what).clone()
}

macro_rules! cgroup {
    () => {
        match Cgroup::new() {
            Some(cgroup) => cgroup,
            None => apex_tests::skip!("no cgroup v2 directory that we may write to"),
        }
    };
}

#[test]
fn files_and_names_are_told_with_their_paths() {
    let cgroup = cgroup!();
    let directory = TempDir::new();
    directory.file("real/file", "text");
    std::os::unix::fs::symlink("real", directory.path().join("link")).expect("we own it");
    let recorded = watch(
        &cgroup,
        &directory,
        r#"
import os, sys
os.chdir(sys.argv[1])
os.close(os.open("link/file", os.O_RDONLY))
os.close(os.open("new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640))
try: os.open("link/missing", os.O_RDWR)
except FileNotFoundError: pass
here = os.open(".", os.O_PATH)
os.mkdir("sub", dir_fd=here)
os.rename("new", "sub/../renamed")
os.link("renamed", sys.argv[1] + "/second")
os.symlink("../far", "sub/symbolic")
os.chmod("renamed", 0o4755)
fd = os.open("renamed", os.O_RDWR); os.fchmod(fd, 0o600); os.fchown(fd, 5, -1); os.ftruncate(fd, 3)
os.truncate("renamed", 0)
os.chown("second", -1, 7)
os.unlink("second"); os.unlink("sub/symbolic"); os.rmdir("sub")
"#,
    );
    let at = |name: &str| directory.at(name);
    let open = |path: String, access, create, truncate| What::Open { path, access, create, truncate };
    // What was really opened, not the link that led there.
    let read = told(&recorded, &open(at("real/file"), Access::Read, false, false));
    assert_eq!((read.error, read.comm.as_str(), read.uid), (None, "python3", 0));
    told(&recorded, &open(at("new"), Access::Write, true, true));
    let missing = told(&recorded, &open(at("link/missing"), Access::Write, false, false));
    assert_eq!(missing.error, Some(Errno::ENOENT));
    told(&recorded, &open(directory.text(), Access::Look, false, false));
    told(&recorded, &What::Mkdir { path: at("sub") });
    told(&recorded, &What::Rename { from: at("new"), to: at("renamed") });
    told(&recorded, &What::Link { from: at("renamed"), to: at("second") });
    told(&recorded, &What::Symlink { target: "../far".to_owned(), path: at("sub/symbolic") });
    told(&recorded, &What::Chmod { path: at("renamed"), mode: 0o4755 });
    told(&recorded, &What::Chmod { path: at("renamed"), mode: 0o600 });
    told(&recorded, &What::Chown { path: at("renamed"), owner: 5, group: u32::MAX });
    told(&recorded, &What::Chown { path: at("second"), owner: u32::MAX, group: 7 });
    told(&recorded, &open(at("renamed"), Access::Write, false, true));
    for name in ["second", "sub/symbolic", "sub"] {
        told(&recorded, &What::Unlink { path: at(name) });
    }
}

#[test]
fn privileges_are_told() {
    let cgroup = cgroup!();
    let directory = TempDir::new();
    let recorded = watch(
        &cgroup,
        &directory,
        r#"
import ctypes, mmap, os, signal, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
os.memfd_create("payload")
mmap.mmap(-1, 8192, prot=mmap.PROT_READ | mmap.PROT_EXEC | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
child = os.fork()
if child == 0:
    signal.pause()
libc.ptrace(16, child, 0, 0)
os.kill(child, signal.SIGKILL); os.waitpid(child, 0)
os.kill(os.getpid(), 0)
libc.unshare(0x04000000)
libc.syscall(321, 99, 0, 0)
libc.syscall(176, b"nosuchmodule", 0)
libc.mount(b"none", b"/nowhere", b"tmpfs", 0, 0)
libc.syscall(250, 0xdead, 1, 2, 3, 4)
s = socket.socket(socket.AF_UNIX); s.connect_ex("/nowhere/socket")
s = socket.socket(socket.AF_UNIX); s.bind("\0apex-probe-test")
os.setgid(5); os.setuid(6)
"#,
    );
    told(&recorded, &What::Memfd { name: "payload".to_owned() });
    recorded.find(|what| matches!(what, What::Executable { call, length: 8192, writable: true, .. } if call == "mmap"));
    let child = recorded.find(|what| matches!(what, What::Exit { signal: Some(9), .. })).pid;
    told(&recorded, &What::Ptrace { call: "ptrace".to_owned(), request: 16, target: child });
    let kill = told(&recorded, &What::Signal { target: child as i32, signal: 9 });
    assert_eq!(kill.error, None);
    let own = recorded.whats().filter(|what| matches!(what, What::Signal { .. })).count();
    assert_eq!(own, 1, "a signal to itself is none to another process");
    told(&recorded, &What::Namespace { call: "unshare".to_owned(), flags: 0x0400_0000 });
    assert!(told(&recorded, &What::Bpf { command: 99 }).error.is_some());
    told(&recorded, &What::Module { call: "delete_module".to_owned() });
    let mount = told(&recorded, &What::Mount { call: "mount".to_owned(), target: "/nowhere".to_owned() });
    assert_eq!(mount.error, Some(Errno::ENOENT));
    recorded.find(|what| matches!(what, What::Call { name, args: [0xdead, 1, 2, 3, 4, _] } if name == "keyctl"));
    told(&recorded, &What::Connect { address: Address::Unix("/nowhere/socket".to_owned()) });
    told(&recorded, &What::Bind { address: Address::Abstract("apex-probe-test".to_owned()) });
    recorded.find(|what| matches!(what, What::Socket { family: 1, kind: 1, .. }));
    told(&recorded, &What::SetIds { call: "setgid".to_owned(), id: 5 });
    let setuid = told(&recorded, &What::SetIds { call: "setuid".to_owned(), id: 6 });
    assert_eq!(setuid.uid, 6, "the record is made when the call has ended");
}

#[test]
fn calls_are_counted_exactly_and_per_abi() {
    let cgroup = cgroup!();
    let directory = TempDir::new();
    let recorded = watch(
        &cgroup,
        &directory,
        "import ctypes\nlibc = ctypes.CDLL(None)\nfor _ in range(5000): libc.syscall(110)\nlibc.syscall(400)\n",
    );
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for what in recorded.whats() {
        if let What::Calls { counts: seen } = what {
            seen.iter().for_each(|(name, count)| *counts.entry(name).or_default() += count);
        }
    }
    assert_eq!(counts.get("getppid"), Some(&5000), "{counts:?}");
    assert_eq!(counts.get("number 400"), Some(&1), "{counts:?}");
    assert!(counts.keys().all(|name| !name.starts_with("i386:")), "{counts:?}");
}

#[test]
fn calls_of_a_32_bit_program_are_not_misread() {
    let cgroup = cgroup!();
    let directory = TempDir::new();
    let source = directory.file(
        "mini.c",
        "#include <fcntl.h>\n#include <unistd.h>\n#include <sys/stat.h>\n\
         int main(int c, char **v) { (void)c; chdir(v[1]); int i; for (i = 0; i < 77; i++) getppid(); \
         mkdir(\"made\", 0700); return open(\"mini.c\", O_RDONLY) < 0; }\n",
    );
    let program = directory.at("mini");
    let built = Command::new("gcc").args(["-m32", "-static", "-o", &program, &source]).output();
    if !built.is_ok_and(|output| output.status.success()) {
        apex_tests::skip!("no C compiler with static libraries for 32 bits");
    }
    let job = cgroup.run(&[&program, &directory.text()]);
    let (to, from) = channel();
    let probes = Probes::load(Level::Full).0.expect("families");
    let running = probes.start(cgroup.sandbox(0), to).expect("root may attach");
    assert_eq!(job.go(), Some(0));
    let recorded = Recorded::collect(running, from);
    recorded.find(|what| matches!(what, What::Calls { counts } if counts.get("i386:getppid") == Some(&77)));
    let path = source;
    told(&recorded, &What::Open { path, access: Access::Read, create: false, truncate: false });
    told(&recorded, &What::Mkdir { path: directory.at("made") });
}

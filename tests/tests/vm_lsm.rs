//! The hooks of the security module `bpf`: what they tell at level `default`, and what they refuse. Only in the virtual machine.

use apex_core::event::{Address, Errno, What};
use apex_core::refusal::Access;
use apex_core::watch::{Family, Level, Source};
use apex_probe::bpf::{Deny, Probes};
use apex_tests::watched::{Cgroup, Recorded, channel};
use apex_tests::{TempDir, as_root, in_vm, skip};

fn load() -> Probes {
    let (probes, sources) = Probes::load(Level::Default);
    for family in [Family::Lsm, Family::File, Family::Privilege] {
        assert_eq!(sources.get(&family), Some(&Source::Probe), "{family:?}");
    }
    probes.expect("families")
}

const TOLD: &str = r#"
import ctypes, os, socket, sys
os.chdir(sys.argv[1])
os.close(os.open("new", os.O_WRONLY | os.O_CREAT, 0o640))
os.mkdir("sub"); os.rename("new", "sub/moved"); os.link("sub/moved", "second"); os.symlink("../far", "symbolic")
os.chmod("second", 0o600); os.chown("second", 5, 6); os.truncate("second", 0); os.unlink("second"); os.unlink("symbolic")
s = socket.socket(socket.AF_UNIX); s.bind("\0apex-lsm-test")
ctypes.CDLL(None).unshare(0x10000000)
"#;

#[test]
fn files_and_privileges_are_told_without_a_hook_on_every_call() {
    if !in_vm() || !as_root() {
        skip!("BPF LSM is tested in the virtual machine");
    }
    let cgroup = Cgroup::new().expect("the machine has cgroup v2");
    let directory = TempDir::new();
    let job = cgroup.run(&["/usr/bin/python3", "-c", TOLD, &directory.text()]);
    let (to, from) = channel();
    let running = load().start(cgroup.sandbox(0), to).expect("root may attach");
    let hooks = running.stats().expect("our own programs").into_iter().filter(|program| program.family == Family::Lsm);
    let hooks: Vec<&str> = hooks.map(|program| program.name).collect();
    assert_eq!(hooks.len(), 19, "this kernel has all of them: {hooks:?}");
    assert_eq!(job.go(), Some(0));
    let recorded = Recorded::collect(running, from);
    let at = |name: &str| directory.at(name);
    for expected in [
        What::Open { path: at("new"), access: Access::Write, create: true, truncate: false },
        What::Mkdir { path: at("sub") },
        What::Rename { from: at("new"), to: at("sub/moved") },
        What::Link { from: at("sub/moved"), to: at("second") },
        What::Symlink { target: "../far".to_owned(), path: at("symbolic") },
        What::Chmod { path: at("second"), mode: 0o600 },
        What::Chown { path: at("second"), owner: 5, group: 6 },
        What::Open { path: at("second"), access: Access::Write, create: false, truncate: true },
        What::Unlink { path: at("second") },
        What::Bind { address: Address::Abstract("apex-lsm-test".to_owned()) },
        What::Namespace { call: "unshare".to_owned(), flags: 0x1000_0000 },
    ] {
        recorded.find(|what| *what == expected);
    }
}

const DENIED: &str = r#"
import ctypes, os, socket, subprocess, sys
os.chdir(sys.argv[1])
child = subprocess.Popen(["/bin/sleep", "30"])
def attempt(action):
    try:
        action()
        return "done"
    except PermissionError:
        return "refused"
def trace():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(0x4206, child.pid, 0, 0) != 0:
        raise PermissionError if ctypes.get_errno() == 1 else OSError
    libc.ptrace(17, child.pid, 0, 0)
attempts = [
    lambda: open("written", "a").close(),
    lambda: os.mkdir("made"),
    lambda: socket.socket(socket.AF_UNIX).bind("\0apex-lsm-denied"),
    lambda: subprocess.run(["/bin/true"]),
    trace,
]
open("read", "w").close()
before = [attempt(action) for action in attempts[:1]]
open("ready", "w").close()
sys.stdin.readline()
after = [attempt(action) for action in attempts]
readable = attempt(lambda: open("read").close())
child.kill()
wrong = [before != ["done"], readable != "done"] + [answer != "refused" for answer in after]
sys.exit(sum(1 << place for place, it in enumerate(wrong) if it))
"#;

#[test]
fn what_the_dial_denies_is_refused_at_once() {
    if !in_vm() || !as_root() {
        skip!("BPF LSM is tested in the virtual machine");
    }
    let cgroup = Cgroup::new().expect("the machine has cgroup v2");
    let directory = TempDir::new();
    let mut job = cgroup.run(&["/usr/bin/python3", "-c", DENIED, &directory.text()]);
    let (to, from) = channel();
    let running = load().start(cgroup.sandbox(0), to).expect("root may attach");
    job.start_with_input();
    job.wait_for(&directory.path().join("ready"));
    running.deny(&[Deny::Network, Deny::Exec, Deny::Write, Deny::Ptrace]).expect("the maps are ours");
    job.tell("go on");
    assert_eq!(job.end(), Some(0), "a bit for each answer that is wrong");
    let recorded = Recorded::collect(running, from);
    let refused = recorded.events.iter().filter(|event| event.error == Some(Errno::EPERM)).count();
    assert!(refused >= 5, "{:#?}", recorded.events);
}

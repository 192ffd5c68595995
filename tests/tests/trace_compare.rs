//! The same program under the kernel's probes and under ptrace: the same things are told.

use std::collections::BTreeSet;

use apex_core::event::{Event, What};
use apex_core::watch::Level;
use apex_probe::bpf::Probes;
use apex_tests::TempDir;
use apex_tests::traced::{User, run};
use apex_tests::watched::{Cgroup, Recorded, channel};

const SCRIPT: &str = r#"
import os, socket, subprocess, sys
os.chdir(sys.argv[1])
os.close(os.open("old", os.O_RDONLY))
os.close(os.open("new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640))
try: os.open("missing", os.O_RDWR)
except FileNotFoundError: pass
here = os.open(".", os.O_PATH)
os.mkdir("sub", dir_fd=here)
os.rename("new", "sub/../renamed")
os.symlink("renamed", "link")
os.link("renamed", "second")
os.chmod("renamed", 0o600)
os.truncate("renamed", 0)
os.unlink("link")
os.unlink("second")
os.unlink("renamed")
os.rmdir("sub")
os.close(os.memfd_create("hidden"))
os.setuid(os.getuid())
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.bind(("127.0.0.1", 0))
one.sendto(b"x", ("127.0.0.1", 9))
two = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
two.settimeout(1)
try: two.connect(("::1", 9))
except OSError: pass
three = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
try: three.connect("none")
except OSError: pass
subprocess.run(["/bin/true"])
subprocess.run(["/bin/sh", "-c", "exit 3"])
"#;

/// What was told since python began, as words, without what differs from run to run or lies outside the script.
fn told(events: &[Event], directory: &str) -> BTreeSet<String> {
    let is_python = |event: &Event| matches!(&event.what, What::Exec { path, .. } if path.contains("python"));
    let begin = events.iter().position(is_python).expect("python was told");
    let inside = |path: &str| path.starts_with(directory);
    let mut told = BTreeSet::new();
    for event in &events[begin..] {
        let what = match event.what.clone() {
            What::Open { path, .. } | What::Mkdir { path } | What::Unlink { path } | What::Chmod { path, .. }
                if !inside(&path) =>
            {
                continue;
            }
            What::Rename { from, .. } | What::Link { from, .. } if !inside(&from) => continue,
            // Memory of the interpreter, ids of the processes, counts.
            What::Executable { .. } | What::Calls { .. } | What::Traffic { .. } | What::Signal { .. } => continue,
            What::Fork { .. } => What::Fork { child: 0 },
            // The family of protocols has one for each kind.
            What::Socket { family, kind, .. } => What::Socket { family, kind, protocol: 0 },
            // The id of whoever runs it.
            What::SetIds { call, .. } => What::SetIds { call, id: 0 },
            // Each run got its own input from here.
            What::Exec { path, args, asked, cut, fileless, .. } => {
                What::Exec { path, args, asked, cut, fileless, stdin: None, stdin_pipe: None, stdout_pipe: None }
            }
            // Only one of the sources sees how much.
            What::Send { address, .. } => What::Send { address, bytes: 0 },
            other => other,
        };
        told.insert(format!("{} {what:?} {:?}", event.comm, event.error));
    }
    told
}

#[test]
fn both_sources_tell_the_same_of_one_program() {
    let Some(cgroup) = Cgroup::new() else { apex_tests::skip!("no cgroup v2 directory that we may write to") };
    if !apex_tests::as_root() {
        apex_tests::skip!("probes are loaded by root");
    }
    let directory = TempDir::new();
    directory.file("old", "text");
    let path = directory.text();
    let (probes, _) = Probes::load(Level::Full);
    let job = cgroup.run(&["/usr/bin/python3", "-c", SCRIPT, &path]);
    let (to, from) = channel();
    let running = probes.expect("families").start(cgroup.sandbox(0), to).expect("root may attach");
    assert_eq!(job.go(), Some(0));
    let probed = Recorded::collect(running, from);

    std::os::unix::fs::chown(directory.path(), Some(0), Some(0)).expect("it is ours");
    let args = ["--profile", "python", "--rw", &path];
    let traced = run(User::Caller, "full", &args, &["/usr/bin/python3", "-c", SCRIPT, &path]);
    assert_eq!(traced.output.code, 0, "{}", traced.output.err());

    let (probed, traced) = (told(&probed.events, &path), told(&traced.events, &path));
    let only = |one: &BTreeSet<String>, other: &BTreeSet<String>| one.difference(other).cloned().collect::<Vec<_>>();
    let (by_probes, by_ptrace) = (only(&probed, &traced), only(&traced, &probed));
    assert!(by_probes.is_empty() && by_ptrace.is_empty(), "probes alone: {by_probes:#?}\nptrace alone: {by_ptrace:#?}");
    assert!(probed.len() > 20, "{probed:#?}");
}

//! What a run left on the machine: cgroups, mounts, network namespaces, processes, temporary files.
//!
//! A network namespace lives as long as a process, a bind mount or an open descriptor holds it, so looking at our descendants,
//! at the mounts and at /run/netns finds each one.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// The kernel takes mounts and cgroups away a little after the last process; this long is enough on a busy machine.
const SETTLE: Duration = Duration::from_secs(10);
/// How often the machine is looked at meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How often orphans of orphans are looked for.
const GENERATIONS_MAX: usize = 16;
/// Deeper than any cgroup that Apex makes.
const CGROUP_DEPTH_MAX: usize = 6;

/// What is on the machine, each thing as a line that a person understands.
#[derive(Debug)]
pub struct Belongings(BTreeSet<String>);

impl Belongings {
    /// Looks at the machine; `scratch` is the run's own folder, in which each `tmp-*` serves as a TMPDIR.
    pub fn look(scratch: &Path) -> Result<Self> {
        let mut found = BTreeSet::new();
        cgroups(Path::new("/sys/fs/cgroup"), 0, &mut found);
        mounts(&mut found)?;
        named_like_ours(&std::env::temp_dir(), &mut found);
        for entry in fs::read_dir(scratch).with_context(|| format!("cannot list {}", scratch.display()))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("tmp-") {
                named_like_ours(&entry.path(), &mut found);
            }
        }
        names(Path::new("/run/netns"), "network namespace", &mut found);
        descendants(&mut found)?;
        Ok(Belongings(found))
    }

    /// What is here now and was not `before`.
    fn new_since(self, before: &Belongings) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

/// What is there that was not before, once the kernel has had time to clean up. Processes among it are ended.
pub fn settle(before: &Belongings, scratch: &Path) -> Result<Vec<String>> {
    let deadline = Instant::now() + SETTLE;
    loop {
        reap();
        let left = Belongings::look(scratch)?.new_since(before);
        if left.is_empty() {
            return Ok(left);
        }
        if Instant::now() > deadline {
            end_children()?;
            return Ok(left);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn cgroups(dir: &Path, depth: usize, found: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    // file_type does not follow links: /sys/fs/cgroup may hold `cpu -> cpu,cpuacct`.
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        if entry.file_name().to_string_lossy().starts_with("apex") {
            found.insert(format!("cgroup {}", entry.path().display()));
        }
        if depth < CGROUP_DEPTH_MAX {
            cgroups(&entry.path(), depth + 1, found);
        }
    }
}

fn mounts(found: &mut BTreeSet<String>) -> Result<()> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    for line in text.lines() {
        // proc_pid_mountinfo(5): the fifth field is the mount point, the type follows the separator.
        let place = line.split(' ').nth(4).unwrap_or(line);
        let kind = line.split_once(" - ").map_or("", |(_, rest)| rest);
        found.insert(format!("mount {place} ({kind})"));
    }
    Ok(())
}

fn named_like_ours(dir: &Path, found: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.trim_start_matches('.').starts_with("apex") {
            found.insert(format!("temporary file {}", entry.path().display()));
        }
    }
}

fn names(dir: &Path, what: &str, found: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    found.extend(entries.flatten().map(|entry| format!("{what} {}", entry.path().display())));
}

fn descendants(found: &mut BTreeSet<String>) -> Result<()> {
    let mut wanted = children_of(std::process::id())?;
    while let Some(pid) = wanted.pop() {
        // One that ends while we look has left nothing.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        let Some((head, tail)) = stat.rsplit_once(") ") else {
            continue;
        };
        if tail.starts_with('Z') {
            continue;
        }
        let netns = fs::read_link(format!("/proc/{pid}/ns/net")).unwrap_or_default();
        let name = head.split_once('(').map_or("?", |(_, name)| name);
        found.insert(format!("process {pid} ({name}) in {}", netns.display()));
        wanted.extend(children_of(pid).unwrap_or_default());
    }
    Ok(())
}

/// Direct children of a process, of all its threads.
pub fn children_of(pid: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("cannot list the threads of a process")? {
        let text = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        children.extend(text.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    Ok(children)
}

/// Collects the orphans that have ended; those still alive stay for the report.
fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            return;
        }
    }
}

/// They have been reported; a machine that runs tests every day must not fill up with them.
fn end_children() -> Result<()> {
    for _generation in 0..GENERATIONS_MAX {
        let children = children_of(std::process::id())?;
        if children.is_empty() {
            return Ok(());
        }
        for pid in children {
            // It may have ended in between. Its own children become ours and are found in the next round.
            let _gone = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
        std::thread::sleep(LOOK_AGAIN);
        reap();
    }
    Ok(())
}

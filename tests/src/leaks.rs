//! What one sandbox left on the host: processes, cgroups, mounts, files. Each sandbox carries a mark, so that tests that run at
//! the same time do not accuse each other.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A killed sandbox may need the kernel's workers to go; what is there after this stays.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
const CGROUP_DEPTH_MAX: u32 = 6;

/// The mark of one sandbox: it stands on the command line of `apex-run` (and so of the init, its clone) and in the environment of
/// the command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark(pub String);

/// Whatever of this sandbox is still there once `PATIENCE` is over; empty is good.
pub fn left_by(mark: &Mark, apex_pid: u32) -> Vec<String> {
    let end = Instant::now() + PATIENCE;
    loop {
        let mut found = processes(mark);
        found.extend(cgroups(apex_pid));
        found.extend(mounts(mark));
        if found.is_empty() || Instant::now() > end {
            return found;
        }
        std::thread::sleep(POLL);
    }
}

/// Fails the test when something is left.
#[track_caller]
pub fn expect_none(mark: &Mark, apex_pid: u32) {
    let left = left_by(mark, apex_pid);
    assert!(left.is_empty(), "left behind: {left:#?}");
}

/// Processes with the mark, zombies not counted: they belong to whoever must wait for them.
pub fn processes(mark: &Mark) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == std::process::id() {
            continue;
        }
        let dir = entry.path();
        let holds = |file: &str| fs::read(dir.join(file)).is_ok_and(|bytes| contains(&bytes, mark.0.as_bytes()));
        if holds("cmdline") || holds("environ") {
            let status = fs::read_to_string(dir.join("status")).unwrap_or_default();
            if !status.contains("State:\tZ") && !status.is_empty() {
                let line = fs::read(dir.join("cmdline")).unwrap_or_default();
                found.push(format!("process {pid}: {}", String::from_utf8_lossy(&line).replace('\0', " ")));
            }
        }
    }
    found
}

/// Directories of Apex that were there before this test program made any: a run that was killed long ago left them, and pids come again.
static STALE: OnceLock<Vec<PathBuf>> = OnceLock::new();

/// Looks at what is there already. Before the first sandbox.
pub fn look_before() {
    STALE.get_or_init(|| {
        let mut found = Vec::new();
        below(Path::new("/sys/fs/cgroup"), "apex-", CGROUP_DEPTH_MAX, &mut found);
        found
    });
}

/// Directories `apex-PID-*` in any cgroup hierarchy.
pub fn cgroups(apex_pid: u32) -> Vec<String> {
    let mut found = Vec::new();
    below(Path::new("/sys/fs/cgroup"), &format!("apex-{apex_pid}-"), CGROUP_DEPTH_MAX, &mut found);
    let is_stale = |path: &PathBuf| STALE.get().is_some_and(|stale| stale.contains(path));
    found.iter().filter(|path| !is_stale(path)).map(|path| format!("cgroup {}", path.display())).collect()
}

/// Removes what a launcher that was killed could not: its cgroups. A later start of Apex would sweep them; a test must not leave
/// them to chance. One that cannot be removed still holds a process.
#[track_caller]
pub fn sweep(apex_pid: u32) {
    let end = Instant::now() + PATIENCE;
    let mut found = Vec::new();
    below(Path::new("/sys/fs/cgroup"), &format!("apex-{apex_pid}-"), CGROUP_DEPTH_MAX, &mut found);
    for path in found {
        while let Err(error) = fs::remove_dir(&path) {
            if error.kind() == std::io::ErrorKind::NotFound {
                break;
            }
            if Instant::now() > end {
                // A test that fails already keeps its own message.
                assert!(std::thread::panicking(), "{} of a killed launcher cannot be removed: {error}", path.display());
                break;
            }
            std::thread::sleep(POLL);
        }
    }
}

/// The files of that name in the cgroups of a process, of whatever hierarchy of either version; what they hold.
fn in_cgroups(pid: u64, controller: &str, name: &str) -> Vec<String> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let mounts = match controllers {
            "" => vec!["/sys/fs/cgroup".to_owned(), "/sys/fs/cgroup/unified".to_owned()],
            _ if controllers.split(',').any(|own| own == controller) => vec![format!("/sys/fs/cgroup/{controllers}")],
            _ => continue,
        };
        found.extend(mounts.iter().filter_map(|mount| fs::read_to_string(format!("{mount}{path}/{name}")).ok()));
    }
    found
}

/// Whether the kernel holds a process by a freezer; `None` where it has none.
pub fn is_frozen(pid: u64) -> Option<bool> {
    let mut states = in_cgroups(pid, "freezer", "freezer.state");
    states.extend(in_cgroups(pid, "freezer", "cgroup.freeze"));
    let is_held = |state: &String| matches!(state.trim(), "FROZEN" | "FREEZING" | "1");
    (!states.is_empty()).then(|| states.iter().any(is_held))
}

/// The memory limit of a process, in bytes; `None` for none.
pub fn memory_limit(pid: u64) -> Option<u64> {
    let mut limits = in_cgroups(pid, "memory", "memory.limit_in_bytes");
    limits.extend(in_cgroups(pid, "memory", "memory.max"));
    limits.first()?.trim().parse().ok()
}

/// Directories of any cgroup hierarchy whose name begins so, none in another.
pub fn cgroups_named(prefix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    below(Path::new("/sys/fs/cgroup"), prefix, CGROUP_DEPTH_MAX, &mut found);
    found
}

fn below(dir: &Path, prefix: &str, depth: u32, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        } else if depth > 0 {
            below(&entry.path(), prefix, depth - 1, found);
        }
    }
}

/// Mounts of the host that name the mark: grants of a marked sandbox lie in directories whose names hold it.
pub fn mounts(mark: &Mark) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter(|line| line.contains(&mark.0)).map(|line| format!("mount {line}")).collect()
}

/// The mount table of the host, to be compared before and after.
pub fn mount_table() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    text.lines().map(str::to_owned).collect()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

//! What a sandbox uses: its cgroups first, then what the kernel tells of its processes and of its network namespace in /proc.
//!
//! Input: a sandbox that runs. Output: [`Usage`]. Reads files of the kernel that hold numbers alone, never one of the sandbox. What cannot be read, as by a
//! launcher without the right to look at another's process (proc(5), PTRACE_MODE_READ), is not known, and no error.

use apex_core::keep::Usage;
use apex_core::layer::Layer;
use apex_core::policy::Network;

use crate::supervise::Running;

/// Processes whose I/O is added up; of more it is not known.
const PROCESSES_MAX: usize = 256;

/// What it uses at this moment.
pub(crate) fn of(running: &Running<'_>) -> Result<Usage, crate::cgroup::CgroupError> {
    let cgroup = running.cgroup.as_ref();
    let mut usage = cgroup.map(|cgroup| cgroup.usage()).transpose()?.unwrap_or_default();
    if usage.cpu_us.is_none()
        && let Some(beside) = &running.beside
    {
        usage.cpu_us = beside.cpu_us()?;
    }
    if usage.io_read_bytes.is_none() {
        let io = cgroup.and_then(|cgroup| io_of(&cgroup.members().ok()?));
        (usage.io_read_bytes, usage.io_written_bytes) = (io.map(|io| io.0), io.map(|io| io.1));
    }
    if running.plan.network == Network::None && running.plan.has(Layer::Netns) {
        let text = std::fs::read_to_string(format!("/proc/{}/net/dev", running.init)).ok();
        let bytes = text.as_deref().map(transferred);
        (usage.network_received_bytes, usage.network_sent_bytes) = (bytes.map(|both| both.0), bytes.map(|both| both.1));
    }
    Ok(usage)
}

/// Read and written. A process that was waited for is counted in whoever waited (wait_task_zombie adds its `ioac` to the parent's), up to the init, which waits
/// for all; of one whose parent ignores SIGCHLD nothing is left.
fn io_of(processes: &[i32]) -> Option<(u64, u64)> {
    if processes.len() > PROCESSES_MAX {
        return None;
    }
    let mut sum = (0u64, 0u64);
    for pid in processes {
        match std::fs::read_to_string(format!("/proc/{pid}/io")) {
            Ok(text) => {
                sum = (
                    sum.0.saturating_add(keyed(&text, "read_bytes: ")?),
                    sum.1.saturating_add(keyed(&text, "write_bytes: ")?),
                )
            }
            // It ended meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => {}
            Err(_) => return None,
        }
    }
    Some(sum)
}

fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}

/// Received and sent, over all interfaces: two lines of headings, then `name: bytes packets errs drop fifo frame compressed multicast bytes ...`.
fn transferred(text: &str) -> (u64, u64) {
    let of = |line: &str| {
        let mut numbers = line.split_once(':')?.1.split_whitespace().map(|word| word.parse::<u64>().ok());
        Some((numbers.next()??, numbers.nth(7)??))
    };
    text.lines()
        .skip(2)
        .filter_map(of)
        .fold((0, 0), |sum, one| (sum.0.saturating_add(one.0), sum.1.saturating_add(one.1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_summed_up() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
                    face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
                    lo:    1000      10    0    0    0     0          0         0     2000      10    0    0    0     0       0          0\n  \
                    eth0: 5 1 0 0 0 0 0 0 7 1 0 0 0 0 0 0\n";
        assert_eq!(transferred(text), (1005, 2007));
        assert_eq!(transferred(""), (0, 0));
    }

    #[test]
    fn our_own_io_can_be_read() {
        let own = i32::try_from(std::process::id()).expect("a pid");
        assert!(io_of(&[own]).is_some());
        assert_eq!(io_of(&[own; PROCESSES_MAX + 1]), None);
    }
}

//! Kills for memory: the kernel counts them, and tells when to look.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;

use crate::cgroup::Cgroup;
use crate::io::watched;

/// Between a notice of v1, which comes before the kill, and its count.
const COUNT_PAUSE: Duration = Duration::from_millis(50);
/// How often it is looked for.
const COUNT_TRIES: u32 = 10;

/// The count of a container.
#[derive(Debug)]
pub struct OomCount {
    file: PathBuf,
    seen: AtomicU64,
}

impl OomCount {
    /// None where memory is not counted.
    pub fn of(cgroup: &Cgroup) -> Option<Self> {
        let v1 = cgroup.v1.get("memory").map(|place| place.join("memory.oom_control"));
        let file = v1.or_else(|| cgroup.v2.as_ref().map(|place| place.join("memory.events")))?;
        Some(OomCount { file, seen: AtomicU64::new(0) })
    }

    /// Whether there were kills since this was asked last. A cgroup that is gone has none.
    pub fn has_more(&self) -> bool {
        let count = std::fs::read_to_string(&self.file).ok().and_then(|text| kills(&text));
        count.is_some_and(|count| self.seen.swap(count, Ordering::Relaxed) < count)
    }

    /// Waits for signs until the cgroup is gone, and calls back for kills.
    pub async fn watch(&self, on_kill: impl Fn()) -> io::Result<()> {
        if self.file.ends_with("memory.events") { self.watch_v2(on_kill).await } else { self.watch_v1(on_kill).await }
    }

    async fn watch_v1(&self, on_kill: impl Fn()) -> io::Result<()> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let control = File::open(&self.file)?;
        let words = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
        std::fs::write(self.file.with_file_name("cgroup.event_control"), words)?;
        drop(control);
        let event = watched(event.into())?;
        let mut count = [0; 8];
        loop {
            event.async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, &mut count)?)).await?;
            // The end of the cgroup is told the same way.
            if !self.file.exists() {
                return Ok(());
            }
            for _ in 0..COUNT_TRIES {
                if self.has_more() {
                    on_kill();
                    break;
                }
                tokio::time::sleep(COUNT_PAUSE).await;
            }
        }
    }

    async fn watch_v2(&self, on_kill: impl Fn()) -> io::Result<()> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        inotify.add_watch::<Path>(&self.file, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_DELETE_SELF)?;
        let inotify = watched(inotify.into())?;
        // What the events are does not matter: the file says it.
        let mut events = [0; 4096];
        loop {
            inotify.async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, &mut events)?)).await?;
            if self.has_more() {
                on_kill();
            }
            if !self.file.exists() {
                return Ok(());
            }
        }
    }
}

/// The number after `oom_kill`, in either version's file.
fn kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_counted_in_both_versions() {
        assert_eq!(kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
        assert_eq!(kills("low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n"), Some(1));
        assert_eq!(kills("oom_kill_disable 0\n"), None);
    }
}

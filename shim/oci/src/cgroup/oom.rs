//! Kills for want of memory: their number, and word of each as it happens.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use apex_sys::Errno;
use nix::libc::O_RDONLY;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::dir::Dir;
use super::error::CgroupError;
use super::{Cgroup, Version};

/// Word of kills: a descriptor that becomes readable, and [`Ooms::take`] that says whether it was one.
#[derive(Debug)]
pub struct Ooms {
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// v1: an event of `memory.oom_control`; that file must stay open.
    Event { event: EventFd, _control: OwnedFd, dir: std::sync::Arc<Dir> },
    /// v2: a change of `memory.events`.
    Watch { inotify: Inotify, dir: std::sync::Arc<Dir>, seen: u64 },
}

/// What came since the last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OomWord {
    /// Out of memory happened.
    Oom,
    /// Something else, or nothing.
    Nothing,
    /// The cgroup is gone: no more will come.
    Gone,
}

impl Cgroup {
    fn memory_dir(&self) -> Result<&std::sync::Arc<Dir>, CgroupError> {
        match self.place_of("memory") {
            Some(place) => place.open(),
            None if self.version == Version::None => Err(CgroupError::None { verb: "run out of memory of its own" }),
            None => Err(CgroupError::NoController {
                controller: "memory".to_owned(),
                file: "memory.oom_control".to_owned(),
                value: String::new(),
            }),
        }
    }

    /// Processes that were killed for want of memory so far. 0 without a controller that would count them.
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        let Some(place) = self.place_of("memory") else {
            return Ok(0);
        };
        kills(place.open()?, place.is_v2())
    }

    /// Watches from now on.
    pub fn ooms(&self) -> Result<Ooms, CgroupError> {
        let dir = self.memory_dir()?;
        let failed = |errno: Errno| CgroupError::Watch { dir: dir.path().to_owned(), source: errno.into() };
        let source = match self.version {
            Version::V2 => {
                let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(failed)?;
                let watched = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_DELETE_SELF;
                inotify.add_watch(&dir.path().join("memory.events"), watched).map_err(failed)?;
                // The number of processes is told here too, and `populated 0` is how the end shows.
                inotify.add_watch(&dir.path().join("cgroup.events"), watched).map_err(failed)?;
                Source::Watch { inotify, dir: dir.clone(), seen: kills(dir, true)? }
            }
            Version::V1 | Version::None => {
                let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
                let event = EventFd::from_value_and_flags(0, flags).map_err(failed)?;
                let control = dir.file("memory.oom_control", O_RDONLY).map_err(failed)?;
                let order = format!("{} {}", event.as_fd().as_raw_fd(), control.as_raw_fd());
                dir.write("cgroup.event_control", &order).map_err(failed)?;
                Source::Event { event, _control: control, dir: dir.clone() }
            }
        };
        Ok(Ooms { source })
    }
}

impl Ooms {
    /// Readable when there is something to [`Ooms::take`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        match &self.source {
            Source::Event { event, .. } => event.as_fd(),
            Source::Watch { inotify, .. } => inotify.as_fd(),
        }
    }

    /// What came since the last time; does not wait.
    pub fn take(&mut self) -> Result<OomWord, CgroupError> {
        match &mut self.source {
            Source::Event { event, dir, .. } => {
                match event.read() {
                    Ok(_) => {}
                    Err(Errno::EAGAIN) => return Ok(OomWord::Nothing),
                    Err(errno) => return Err(CgroupError::read(dir.path().join("memory.oom_control"), errno)),
                }
                // The end of the cgroup is an event too.
                let gone = dir.read_if_there("cgroup.procs").ok().flatten().is_none();
                Ok(if gone { OomWord::Gone } else { OomWord::Oom })
            }
            Source::Watch { inotify, dir, seen } => {
                match inotify.read_events() {
                    Ok(events) if events.iter().any(|event| event.mask.contains(AddWatchFlags::IN_DELETE_SELF)) => {
                        return Ok(OomWord::Gone);
                    }
                    Ok(_) => {}
                    Err(Errno::EAGAIN) => return Ok(OomWord::Nothing),
                    Err(errno) => return Err(CgroupError::read(dir.path().join("memory.events"), errno)),
                }
                let Ok(now) = kills(dir, true) else {
                    return Ok(OomWord::Gone);
                };
                let word = if now > *seen { OomWord::Oom } else { OomWord::Nothing };
                *seen = now;
                Ok(word)
            }
        }
    }
}

/// `oom_kill` of the file that counts it; kernels before 4.13 do not.
fn kills(dir: &Dir, is_v2: bool) -> Result<u64, CgroupError> {
    let file = if is_v2 { "memory.events" } else { "memory.oom_control" };
    let Some(text) = dir.read_if_there(file)? else {
        return Ok(0);
    };
    match text.lines().find_map(|line| line.strip_prefix("oom_kill ")) {
        Some(number) => number.trim().parse().map_err(|_| CgroupError::malformed(dir.path().join(file), number)),
        None => Ok(0),
    }
}

//! Whoever ends below this process: a subreaper learns of each once, and in any order with what it was told about them.
//!
//! The pid of a container's process is known only when the runtime that made it has ended; the process may have ended before that.
//! So ends of unknown pids are kept while anybody is about to learn a pid, and a claim finds them.

use std::collections::{HashMap, VecDeque};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::sync::oneshot;

/// Ends that are kept for claims; a container without a pid namespace of its own can leave many orphans at once.
const KEPT_MAX: usize = 65_536;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its code, or 128 and the signal.
    pub status: u32,
    /// When it was reaped.
    pub at: SystemTime,
}

impl Exit {
    /// What is said of a process whose end nobody saw.
    pub fn unknown() -> Self {
        Exit { status: 255, at: SystemTime::now() }
    }
}

/// All ends, and who waits for which.
#[derive(Debug, Default)]
pub struct Reaper {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<i32, oneshot::Sender<Exit>>,
    kept: VecDeque<Kept>,
    births: usize,
    reaped: u64,
}

#[derive(Debug)]
struct Kept {
    pid: i32,
    exit: Exit,
    number: u64,
}

/// From before a process is made until its pid is claimed.
#[derive(Debug)]
pub struct Birth {
    reaper: Arc<Reaper>,
    first: u64,
}

impl Reaper {
    /// Nobody is known.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that a process is about to be made; call it before.
    pub fn expect(self: &Arc<Self>) -> Birth {
        let mut state = self.lock();
        state.births += 1;
        Birth { reaper: Arc::clone(self), first: state.reaped }
    }

    /// Starts a program of our own; its end comes through the channel.
    pub fn spawn(self: &Arc<Self>, command: &mut Command) -> std::io::Result<(Spawned, oneshot::Receiver<Exit>)> {
        let birth = self.expect();
        let child = command.spawn()?;
        let pid = child.id().cast_signed();
        Ok((Spawned { child }, birth.claim(pid)))
    }

    /// Reaps whoever has ended (waitpid(2)); call it on each SIGCHLD, which stands for any number of ends.
    pub fn reap(&self) {
        loop {
            let (pid, status) = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code.cast_unsigned()),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + (signal as i32).cast_unsigned()),
                Err(Errno::EINTR) => continue,
                // Nobody has ended, or nobody is left.
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                // Stops are not asked for.
                Ok(_) => continue,
            };
            self.ended(pid.as_raw(), Exit { status: status & 0xff, at: SystemTime::now() });
        }
    }

    fn ended(&self, pid: i32, exit: Exit) {
        let mut state = self.lock();
        state.reaped += 1;
        if let Some(waiter) = state.waiting.remove(&pid) {
            // Whoever gave up waiting does not need to know.
            let _ = waiter.send(exit);
        } else if state.births > 0 {
            if state.kept.len() == KEPT_MAX {
                state.kept.pop_front();
            }
            let number = state.reaped;
            state.kept.push_back(Kept { pid, exit, number });
        }
    }
}

impl Birth {
    /// Where the end of the process arrives, also when it has ended by now.
    pub fn claim(self, pid: i32) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.reaper.lock();
        // Only ends since this birth: the pid may have been somebody else's before.
        match state.kept.iter().rposition(|kept| kept.pid == pid && kept.number > self.first) {
            Some(at) => {
                if let Some(kept) = state.kept.remove(at) {
                    let _ = sender.send(kept.exit);
                }
            }
            None => drop(state.waiting.insert(pid, sender)),
        }
        drop(state);
        receiver
    }
}

impl Drop for Birth {
    fn drop(&mut self) {
        let mut state = self.reaper.lock();
        state.births -= 1;
        if state.births == 0 {
            state.kept = VecDeque::new();
        }
    }
}

/// A program of our own. It is not waited for here, which is the reaper's.
#[derive(Debug)]
pub struct Spawned {
    /// Its streams.
    pub child: std::process::Child,
}

impl Spawned {
    /// Sends a signal; only before its end arrived, as the pid is another's afterwards.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        if let Err(errno) = nix::sys::signal::kill(pid, signal) {
            log::debug!("cannot send {signal} to process {pid}: {errno}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(status: u32) -> Exit {
        Exit { status, at: SystemTime::UNIX_EPOCH }
    }

    #[test]
    fn an_end_before_the_claim_is_not_lost() {
        let reaper = Reaper::new();
        let birth = reaper.expect();
        reaper.ended(7, exit(3));
        assert_eq!(birth.claim(7).try_recv(), Ok(exit(3)));
        assert!(reaper.lock().kept.is_empty());
    }

    #[test]
    fn an_end_after_the_claim_arrives() {
        let reaper = Reaper::new();
        let mut receiver = reaper.expect().claim(7);
        assert!(receiver.try_recv().is_err());
        reaper.ended(7, exit(4));
        assert_eq!(receiver.try_recv(), Ok(exit(4)));
    }

    #[test]
    fn an_end_from_before_the_birth_is_of_another() {
        let reaper = Reaper::new();
        let other = reaper.expect();
        reaper.ended(7, exit(1));
        let mut receiver = reaper.expect().claim(7);
        assert!(receiver.try_recv().is_err());
        drop(other);
    }

    #[test]
    fn what_nobody_expects_is_not_kept() {
        let reaper = Reaper::new();
        reaper.ended(7, exit(1));
        assert!(reaper.lock().kept.is_empty());
    }

    #[test]
    fn ends_that_are_kept_are_bounded() {
        let reaper = Reaper::new();
        let birth = reaper.expect();
        for pid in 0..=KEPT_MAX as i32 {
            reaper.ended(pid, exit(0));
        }
        assert_eq!(reaper.lock().kept.len(), KEPT_MAX);
        drop(birth);
    }
}

//! Attempts at processes: those of the host, and the init of the sandbox.

use std::fs::File;

use apex_core::layer::Layer;
use apex_sys::Errno;
use apex_sys::probe::{Call, Entry};
use apex_sys::process::{self, Pid};

use super::network::Outside;
use super::{Got, Trials};

/// Numbers that every sandbox has too: the init and the process that makes the attempts.
const OWN_PIDS: Pid = 2;

impl Trials<'_> {
    pub(super) fn processes(&mut self, outside: &Outside) {
        self.host_processes(outside.pid);
        self.init_memory();
        self.init_signal();
        self.init_trace();
        self.cgroup_paths();
    }

    fn host_processes(&mut self, pid: Pid) {
        let gone = [Got::Errno(Errno::ESRCH)];
        if pid <= OWN_PIDS {
            return self.skip(Layer::Pidns, "signal the launcher", &gone, "its number is one that the sandbox has too");
        }
        let expected = self.or_filter(&[Errno::ESRCH], &["kill"]);
        self.attempt(Layer::Pidns, "signal the launcher", &expected, move |_| {
            // The number of a process in here by chance: nothing of the host can be meant by it.
            if std::process::id() == pid.unsigned_abs() {
                return Got::Errno(Errno::ESRCH);
            }
            Got::of(process::kill(pid, 0))
        });
        let expected = self.or_filter(&[Errno::ENOENT], &["openat"]);
        let attempt = "look at the launcher in /proc";
        if !self.plan.level.is_full() {
            return self.skip(Layer::Pidns, attempt, &expected, "the host's own /proc shows every process by name");
        }
        self.attempt(Layer::Pidns, attempt, &expected, move |_| {
            if std::process::id() == pid.unsigned_abs() {
                return Got::Errno(Errno::ENOENT);
            }
            Got::of_io(File::open(format!("/proc/{pid}/status")))
        });
    }

    /// The init is the runtime's own binary with the runtime's own memory.
    fn init_memory(&mut self) {
        let expected = self.or_filter(&[Errno::EACCES, Errno::EPERM, Errno::ENOENT], &["openat"]);
        for name in ["mem", "environ", "maps"] {
            self.attempt(Layer::Mountns, format!("read /proc/1/{name}"), &expected, move |_| {
                Got::of_io(File::open(format!("/proc/1/{name}")))
            });
        }
        let expected = self.or_filter(&[Errno::EACCES, Errno::EPERM, Errno::ENOENT], &["readlink"]);
        for name in ["root", "exe", "cwd", "fd/3"] {
            self.attempt(Layer::Mountns, format!("follow /proc/1/{name}"), &expected, move |_| {
                Got::of_io(std::fs::metadata(format!("/proc/1/{name}")))
            });
        }
    }

    fn init_signal(&mut self) {
        let expected = self.or_filter(&[Errno::EPERM], &["kill"]);
        let attempt = "signal pid 1, which stands outside the domain";
        match &self.plan.landlock {
            Some(landlock) if landlock.scoped => {
                self.attempt(Layer::Landlock, attempt, &expected, |_| Got::of(process::kill(1, 0)));
            }
            _ => self.skip(Layer::Landlock, attempt, &expected, "this kernel's Landlock has no scopes (ABI 6)"),
        }
    }

    /// Refused by the filter, the domain, or because the init lets nobody of its own user look: whichever the policy leaves.
    fn init_trace(&mut self) {
        let expected = self.or_filter(&[Errno::EPERM], &["process_vm_readv"]);
        self.attempt(Layer::Pidns, "read the memory of pid 1", &expected, |probing| {
            let mut buffer = [0u8; 8];
            let local = [buffer.as_mut_ptr() as u64, 8];
            // The first page of any program: what stands there does not matter, permission is looked at first.
            let remote = [0x1000u64, 8];
            let args = [1, local.as_ptr() as u64, 1, remote.as_ptr() as u64, 1, 0];
            let nr = nix::libc::SYS_process_vm_readv as u32;
            Got::of(probing.call(&Call { entry: Entry::Native, nr, args }))
        });
        let expected = self.or_filter(&[Errno::EPERM], &["ptrace"]);
        self.attempt(Layer::Pidns, "trace pid 1", &expected, |probing| {
            let args = [nix::libc::PTRACE_ATTACH.into(), 1, 0, 0, 0, 0];
            let nr = nix::libc::SYS_ptrace as u32;
            Got::of(probing.call(&Call { entry: Entry::Native, nr, args }))
        });
    }

    /// With a namespace of its own every path begins at the sandbox's cgroup.
    fn cgroup_paths(&mut self) {
        let mut expected = self.or_filter(&[Errno::ENOENT], &["openat"]);
        expected.insert(0, Got::Seen(0));
        self.attempt(Layer::Cgroupns, "see a cgroup above one's own", &expected, |_| {
            match std::fs::read_to_string("/proc/self/cgroup") {
                Err(error) => Got::of_io::<()>(Err(error)),
                Ok(text) => {
                    let above = text.lines().filter(|line| line.splitn(3, ':').nth(2) != Some("/")).count();
                    Got::Seen(u32::try_from(above).unwrap_or(u32::MAX))
                }
            }
        });
    }
}

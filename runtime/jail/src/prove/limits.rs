//! Attempts to have more than the limits give: processes, memory, open files, file size, room in a tmpfs.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use apex_core::layer::Layer;
use apex_core::plan::Mount;
use apex_sys::Errno;
use apex_sys::probe::{self, Call, Entry, Probing};
use apex_sys::process::{self, Pid};
use apex_sys::signal::{self, Set};

use super::{Got, Trials};

/// A memory limit above this is not tried: filling it would be felt by the host.
const MEMORY_BYTES_MAX: u64 = 1 << 30;
/// The same for a tmpfs.
const TMPFS_BYTES_MAX: u64 = 256 << 20;
/// More processes than this are not started, and more files not opened.
const TASKS_MAX: u64 = 4096;
const FILES_MAX: u64 = 65_536;
/// How far beyond a limit is tried.
const BEYOND: u64 = 16;
const PAGE_BYTES: usize = 4096;
const MEBIBYTE: usize = 1 << 20;

impl Trials<'_> {
    pub(super) fn limits(&mut self) {
        self.tasks();
        self.memory();
        for mount in &self.plan.mounts {
            if let Mount::Tmpfs { dest, size_bytes, .. } = mount {
                self.tmpfs(dest, *size_bytes);
            }
        }
        self.open_files();
        self.file_size();
        self.raise();
        self.lower_core();
    }

    fn limit(&self, name: &str) -> Option<u64> {
        self.plan.rlimits.iter().find(|limit| limit.name == name).map(|limit| limit.value)
    }

    fn tasks(&mut self) {
        let in_cgroup = self.plan.cgroup.as_ref().and_then(|limits| limits.tasks);
        let in_rlimit = self.limit("nproc");
        let layer = if in_cgroup.is_none() && in_rlimit.is_some() { Layer::Rlimits } else { Layer::Cgroup };
        let expected = self.or_filter(&[Errno::EAGAIN], &["clone", "fork"]);
        match in_cgroup.or(in_rlimit) {
            None => self.skip(layer, "start processes without end", &expected, "the policy sets no limit of tasks"),
            Some(limit) if limit > TASKS_MAX => {
                let reason = format!("the limit of {limit} tasks is more than a proof starts");
                self.skip(layer, "start processes without end", &expected, reason);
            }
            Some(limit) => self.attempt(layer, format!("start more than {limit} processes"), &expected, move |_| {
                start_processes(limit + BEYOND)
            }),
        }
    }

    fn memory(&mut self) {
        let killed = [Got::Signal(nix::libc::SIGKILL)];
        let attempt = "use memory beyond the limit";
        let limits = self.plan.cgroup.as_ref();
        let Some(limit) = limits.and_then(|limits| limits.memory_bytes) else {
            return self.skip(Layer::Cgroup, attempt, &killed, "the policy sets no limit of memory");
        };
        let Some(total) = limits.and_then(|limits| limits.swap_bytes).and_then(|swap| limit.checked_add(swap)) else {
            return self.skip(
                Layer::Cgroup,
                attempt,
                &killed,
                "the policy sets no limit of swap, which would be filled first",
            );
        };
        if total > MEMORY_BYTES_MAX {
            let reason = format!("{total} bytes would be felt by the host");
            return self.skip(Layer::Cgroup, attempt, &killed, reason);
        }
        let attempt = format!("use {} bytes of memory and a tenth more", total);
        self.attempt(Layer::Cgroup, attempt, &killed, move |_| use_memory(total + total / 10));
    }

    fn tmpfs(&mut self, dest: &Path, size_bytes: u64) {
        let attempt = format!("write more than {size_bytes} bytes to {}", dest.display());
        let expected = self.or_filter(&[Errno::ENOSPC], &["openat"]);
        let memory = self.plan.cgroup.as_ref().and_then(|limits| limits.memory_bytes);
        let reason = if size_bytes > TMPFS_BYTES_MAX {
            Some("so much would be felt by the host")
        } else if memory.is_some_and(|memory| memory <= size_bytes + size_bytes / 4) {
            Some("the memory limit ends the process first")
        } else if self.limit("fsize").is_some_and(|limit| limit <= size_bytes) {
            Some("the limit of a file's size is reached first")
        } else {
            None
        };
        match reason {
            Some(reason) => self.skip(Layer::Mountns, attempt, &expected, reason),
            None => {
                let dir = dest.to_owned();
                self.attempt(Layer::Mountns, attempt, &expected, move |_| fill(&dir, size_bytes));
            }
        }
    }

    fn open_files(&mut self) {
        let expected = [Got::Errno(Errno::EMFILE)];
        match self.limit("nofile") {
            None => self.skip(Layer::Rlimits, "open files without end", &expected, "the policy sets no limit"),
            Some(limit) if limit > FILES_MAX => {
                let reason = format!("the limit of {limit} files is more than a proof opens");
                self.skip(Layer::Rlimits, "open files without end", &expected, reason);
            }
            Some(limit) => {
                let attempt = format!("open more than {limit} files");
                self.attempt(Layer::Rlimits, attempt, &expected, move |_| open_files(limit + BEYOND));
            }
        }
    }

    fn file_size(&mut self) {
        let expected = [Got::Errno(Errno::EFBIG)];
        match (self.limit("fsize"), self.writable().cloned()) {
            (None, _) => self.skip(Layer::Rlimits, "make a file without end", &expected, "the policy sets no limit"),
            (_, None) => {
                self.skip(Layer::Rlimits, "make a file without end", &expected, "the sandbox can write nowhere");
            }
            (Some(limit), Some(dir)) => {
                let attempt = format!("write beyond byte {limit} of a file");
                self.attempt(Layer::Rlimits, attempt, &expected, move |_| write_at(&dir, limit));
            }
        }
    }

    /// The hard limits are as low as the soft ones.
    fn raise(&mut self) {
        let raised: Vec<(&'static str, u64)> =
            self.plan.rlimits.iter().filter_map(|limit| Some((limit.name, resource_number(limit.name)?))).collect();
        for (name, number) in raised {
            let attempt = format!("lift the limit `{name}`");
            let mut expected = vec![Got::Errno(Errno::EPERM)];
            // The filter says that it was done.
            expected.extend((number == CORE).then_some(Got::Kept));
            self.attempt(Layer::Rlimits, attempt, &expected, move |probing| set(probing, number, u64::MAX));
        }
    }

    /// 0, for which the kernel starts a core handler, is lower than the limit: the filter alone keeps a process from it.
    fn lower_core(&mut self) {
        let attempt = "set the limit `core` to 0";
        let Some(table) = &self.plan.seccomp else {
            return self.skip(Layer::Seccomp, attempt, &[Got::Kept], "the plan has no filter");
        };
        if table.allowed().contains(&"core-dumps") {
            return self.skip(Layer::Seccomp, attempt, &[Got::Kept], "the policy grants `core-dumps`");
        }
        self.attempt(Layer::Seccomp, attempt, &[Got::Kept], |probing| set(probing, CORE, 0));
    }
}

/// RLIMIT_CORE.
const CORE: u64 = 4;

/// Numbers of setrlimit(2).
fn resource_number(name: &str) -> Option<u64> {
    Some(match name {
        "fsize" => 1,
        "core" => CORE,
        "nproc" => 6,
        "nofile" => 7,
        "memlock" => 8,
        _ => return None,
    })
}

/// Sets the soft and the hard limit.
fn set(probing: &Probing, resource: u64, limit: u64) -> Got {
    let wanted = [limit; 2];
    let mut found = [0; 2];
    let nr = nix::libc::SYS_prlimit64 as u32;
    let prlimit = |new: *const u64, old: *mut u64| {
        probing.call(&Call { entry: Entry::Native, nr, args: [0, resource, new as u64, old as u64, 0, 0] })
    };
    match prlimit(wanted.as_ptr(), std::ptr::null_mut()).and_then(|_| prlimit(std::ptr::null(), found.as_mut_ptr())) {
        Ok(_) if found != wanted => Got::Kept,
        result => Got::of(result),
    }
}

/// Starts up to `count` processes that only wait, and ends them again.
fn start_processes(count: u64) -> Got {
    let mut children: Vec<Pid> = Vec::new();
    let mut got = Got::Done;
    for _ in 0..count {
        let waits = &mut |_: &Probing| loop {
            nix::unistd::pause();
        };
        match probe::spawn(waits) {
            Ok(pid) => children.push(pid),
            Err(errno) => {
                got = Got::Errno(errno);
                break;
            }
        }
    }
    for child in &children {
        let _ = process::kill(*child, nix::libc::SIGKILL);
    }
    for child in &children {
        let _ = process::wait(*child, 0);
    }
    got
}

fn use_memory(bytes: u64) -> Got {
    let mut held: Vec<Vec<u8>> = Vec::new();
    for _ in 0..bytes.div_ceil(MEBIBYTE as u64) {
        let mut block = vec![0u8; MEBIBYTE];
        // A page is charged when it is first written.
        for at in (0..block.len()).step_by(PAGE_BYTES) {
            block[at] = 1;
        }
        held.push(std::hint::black_box(block));
    }
    Got::Done
}

fn open_files(count: u64) -> Got {
    let mut held: Vec<OwnedFd> = Vec::new();
    let (first, _other) = match std::io::pipe() {
        Ok(ends) => ends,
        Err(error) => return Got::of_io::<()>(Err(error)),
    };
    for _ in 0..count {
        match first.try_clone() {
            Ok(more) => held.push(more.into()),
            Err(error) => return Got::of_io::<()>(Err(error)),
        }
    }
    Got::Done
}

/// A file in `dir` that is there while `work` runs.
fn with_file(dir: &Path, work: impl FnOnce(&mut File) -> std::io::Result<()>) -> Got {
    let path: PathBuf = dir.join(format!(".apex-prove-{}", std::process::id()));
    let mut file = match OpenOptions::new().write(true).create_new(true).open(&path) {
        Ok(file) => file,
        Err(error) => return Got::of_io::<()>(Err(error)),
    };
    let result = work(&mut file);
    let _ = std::fs::remove_file(&path);
    Got::of_io(result)
}

fn fill(dir: &Path, size_bytes: u64) -> Got {
    let block = vec![1u8; MEBIBYTE];
    with_file(dir, |file| (0..=size_bytes / MEBIBYTE as u64 + 1).try_for_each(|_| file.write_all(&block)))
}

/// One byte beyond the limit; nothing is in front of it, so it takes no room.
fn write_at(dir: &Path, offset: u64) -> Got {
    if let Err(errno) = signal::block(&Set::of(&[nix::libc::SIGXFSZ])) {
        return Got::Errno(errno);
    }
    with_file(dir, |file| file.write_all_at(b"x", offset))
}

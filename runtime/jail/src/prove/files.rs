//! Attempts at files: writing what is read-only, reading what is denied or hidden, executing what was written, rules without a mount.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use apex_core::layer::Layer;
use apex_core::plan::{BindAccess, Kind, LandlockPlan, LandlockRule, Mount};
use apex_core::planner::mount_dest;
use apex_sys::Errno;
use apex_sys::probe::{Call, Entry, Probing};
use apex_sys::process::{self, CStrings};

use super::{Got, Trials};
use crate::host::c_path;

/// Rules of the host's own tree at which a write is tried.
const RULES_TRIED_MAX: usize = 64;

/// What the kernel answers a write where a mount or a rule forbids it.
const NO_WRITE: [Errno; 2] = [Errno::EROFS, Errno::EACCES];

impl<'a> Trials<'a> {
    pub(super) fn files(&mut self) {
        let plan = self.plan;
        for (index, mount) in plan.mounts.iter().enumerate() {
            let dest = mount_dest(mount);
            if let Some(cover) = self.cover(index, dest) {
                self.skip(
                    Layer::Mountns,
                    format!("reach {}", dest.display()),
                    &[],
                    format!("{} is mounted over it", cover.display()),
                );
                continue;
            }
            match mount {
                Mount::Bind { access: BindAccess::Read, kind, exec, .. } => {
                    self.read_only(dest, *kind);
                    if !exec && *kind == Kind::File {
                        self.map(dest);
                    }
                }
                Mount::Bind {
                    access: BindAccess::Write | BindAccess::Overlay, kind: Kind::Dir, exec: false, ..
                }
                | Mount::Tmpfs { exec: false, .. } => self.no_exec(dest),
                Mount::Bind { exec: true, .. } | Mount::Tmpfs { exec: true, .. } => {
                    let attempt = format!("execute what was written to {}", dest.display());
                    self.skip(
                        Layer::Mountns,
                        attempt,
                        &[Got::Errno(Errno::EACCES)],
                        "the policy lets files execute there",
                    );
                }
                Mount::Deny { .. } => self.deny(dest),
                Mount::Hide { kind, .. } => self.hide(dest, *kind),
                Mount::Dev { .. } => {
                    self.read_only(dest, Kind::Dir);
                    self.no_exec(Path::new("/dev/shm"));
                }
                Mount::Proc { .. } => self.proc_sys(),
                Mount::Bind { .. } | Mount::Symlink { .. } | Mount::Dir { .. } | Mount::File { .. } => {}
            }
        }
        if !plan.level.is_full() {
            return self.rules_alone();
        }
        if !plan.mounts.iter().any(|mount| mount_dest(mount) == Path::new("/")) {
            self.read_only(Path::new("/"), Kind::Dir);
        }
        self.rules_without_mounts();
    }

    /// A directory of the sandbox's own in which it can write.
    pub(super) fn writable(&self) -> Option<&'a PathBuf> {
        self.plan.mounts.iter().enumerate().find_map(|(index, mount)| match mount {
            Mount::Tmpfs { dest, .. } if self.cover(index, dest).is_none() => Some(dest),
            _ => None,
        })
    }

    /// The later mount that hides the place of an earlier one.
    fn cover(&self, index: usize, dest: &Path) -> Option<&'a Path> {
        self.plan.mounts.iter().skip(index + 1).map(mount_dest).find(|later| dest.starts_with(later))
    }

    fn read_only(&mut self, dest: &Path, kind: Kind) {
        let expected = self.or_filter(&NO_WRITE, &["openat"]);
        match kind {
            Kind::Dir => {
                let path = dest.join(".apex-prove");
                self.attempt(Layer::Mountns, format!("create a file in {}", dest.display()), &expected, move |_| {
                    create(&path)
                });
            }
            Kind::File => {
                let path = dest.to_owned();
                self.attempt(Layer::Mountns, format!("open {} for writing", dest.display()), &expected, move |_| {
                    Got::of_io(OpenOptions::new().write(true).open(&path))
                });
            }
        }
    }

    fn deny(&mut self, dest: &Path) {
        let path = dest.to_owned();
        let expected = self.or_filter(&[Errno::EACCES], &["openat"]);
        self.attempt(Layer::Mountns, format!("read {}, which is denied", dest.display()), &expected, move |_| {
            Got::of_io(File::open(&path))
        });
        let expected =
            self.or_filter(&[Errno::EACCES, Errno::EBUSY, Errno::EROFS, Errno::EPERM, Errno::EXDEV], &["rename"]);
        let path = dest.to_owned();
        self.attempt(Layer::Mountns, format!("rename {}, which is denied", dest.display()), &expected, move |_| {
            let mut moved = path.clone().into_os_string();
            moved.push(".apex-prove");
            let result = std::fs::rename(&path, &moved);
            if result.is_ok() {
                let _ = std::fs::rename(&moved, &path);
            }
            Got::of_io(result)
        });
    }

    fn hide(&mut self, dest: &Path, kind: Kind) {
        let mut expected = self.or_filter(&[Errno::EACCES], &["openat"]);
        expected.insert(0, Got::Seen(0));
        let path = dest.to_owned();
        self.attempt(Layer::Mountns, format!("see in {}, which is hidden", dest.display()), &expected, move |_| {
            let seen = match kind {
                Kind::Dir => std::fs::read_dir(&path).map(Iterator::count),
                Kind::File => std::fs::read(&path).map(|bytes| bytes.len()),
            };
            seen.map_or_else(
                |error| Got::of_io::<()>(Err(error)),
                |count| Got::Seen(u32::try_from(count).unwrap_or(u32::MAX)),
            )
        });
    }

    /// What is written here must neither be executed nor be mapped as code.
    fn no_exec(&mut self, dest: &Path) {
        let dir = dest.to_owned();
        let expected = self.or_filter(&[Errno::EACCES], &["execve", "openat"]);
        self.attempt(Layer::Mountns, format!("execute what was written to {}", dest.display()), &expected, move |_| {
            with_program(&dir, |path| Got::Errno(execute(path)))
        });
        let dir = dest.to_owned();
        let expected = self.or_filter(&[Errno::EPERM], &["mmap", "openat"]);
        let attempt = format!("map what was written to {} as code", dest.display());
        self.attempt(Layer::Mountns, attempt, &expected, move |probing| {
            with_program(&dir, |path| map_executable(probing, path))
        });
    }

    fn map(&mut self, dest: &Path) {
        let path = dest.to_owned();
        let expected = self.or_filter(&[Errno::EPERM, Errno::EACCES], &["mmap", "openat"]);
        self.attempt(Layer::Mountns, format!("map {} as code", dest.display()), &expected, move |probing| {
            map_executable(probing, &path)
        });
    }

    fn proc_sys(&mut self) {
        let expected = self.or_filter(&[Errno::ENOENT, Errno::EROFS, Errno::EACCES, Errno::EPERM], &["openat"]);
        for path in ["/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger"] {
            self.attempt(Layer::Mountns, format!("open {path} for writing"), &expected, move |_| {
                Got::of_io(OpenOptions::new().write(true).open(path))
            });
        }
    }

    /// Where nothing is mounted: what is denied, and what is granted for less than writing.
    fn rules_alone(&mut self) {
        let expected = [Got::Errno(Errno::EACCES)];
        let plan = self.plan;
        for path in &plan.withheld {
            self.attempt(
                Layer::Landlock,
                format!("open {}, which no rule gives", path.display()),
                &expected,
                move |_| Got::of_io(File::open(path)),
            );
        }
        let rules = plan.landlock.as_ref().map_or(&[][..], |landlock| &landlock.rules);
        if !rules.iter().any(|rule| rule.read && rule.path == Path::new("/")) {
            self.attempt(Layer::Landlock, "list /, which no rule gives", &expected, |_| {
                Got::of_io(std::fs::read_dir("/"))
            });
        }
        let read_only = rules.iter().filter(|rule| {
            rule.read
                && !rules.iter().any(|other| other.write && rule.path.starts_with(&other.path))
                && rule.path != Path::new("/proc")
                && rule.path.is_dir()
        });
        for rule in read_only.take(RULES_TRIED_MAX) {
            let path = rule.path.join(".apex-prove");
            let expected = [Got::Errno(Errno::EACCES), Got::Errno(Errno::EROFS)];
            let attempt = format!("create a file in {}", rule.path.display());
            self.attempt(Layer::Landlock, attempt, &expected, move |_| create(&path));
        }
        if plan.landlock.is_none() {
            self.skip(Layer::Landlock, "open what no rule grants", &expected, "the plan has no rules");
        }
    }

    /// Where a mount shows more than a rule grants, only Landlock stands in the way.
    fn rules_without_mounts(&mut self) {
        let expected = [Got::Errno(Errno::EACCES)];
        let attempt = "open what a mount shows and no rule grants";
        let Some(landlock) = &self.plan.landlock else {
            return self.skip(Layer::Landlock, attempt, &expected, "the plan has no rules");
        };
        let mut found = false;
        for mount in &self.plan.mounts {
            let Mount::Bind { dest, access, .. } = mount else { continue };
            if *access != BindAccess::Read && !granted(landlock, dest, |rule| rule.write) {
                found = true;
                let path = dest.join(".apex-prove");
                self.attempt(Layer::Landlock, format!("create a file in {}", dest.display()), &expected, move |_| {
                    create(&path)
                });
            }
            if !granted(landlock, dest, |rule| rule.read) {
                found = true;
                let path = dest.clone();
                self.attempt(Layer::Landlock, format!("read {}", dest.display()), &expected, move |_| {
                    Got::of_io(File::open(&path))
                });
            }
        }
        if !found {
            self.skip(Layer::Landlock, attempt, &expected, "every mount shows what a rule grants");
        }
    }
}

fn granted(landlock: &LandlockPlan, path: &Path, right: impl Fn(&LandlockRule) -> bool) -> bool {
    landlock.rules.iter().any(|rule| right(rule) && path.starts_with(&rule.path))
}

/// Creates a file that was not there. Where that went through it is taken away again.
fn create(path: &Path) -> Got {
    let result = OpenOptions::new().write(true).create_new(true).open(path);
    if result.is_ok() {
        let _ = std::fs::remove_file(path);
    }
    Got::of_io(result)
}

/// Writes a file that may be executed by its mode, and takes it away afterwards.
fn with_program(dir: &Path, work: impl FnOnce(&Path) -> Got) -> Got {
    let path = dir.join(format!(".apex-prove-{}", std::process::id()));
    // No kernel executes this: what gets as far as looking into it answers ENOEXEC, which is not the answer expected.
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o700)
        .open(&path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, b"no program\n"));
    if let Err(error) = written {
        return Got::of_io::<()>(Err(error));
    }
    let got = work(&path);
    let _ = std::fs::remove_file(&path);
    got
}

fn execute(path: &Path) -> Errno {
    let Ok(name) = c_path(path) else { return Errno::EINVAL };
    let none = CStrings::new(Vec::new());
    process::exec(&name, &CStrings::new(vec![CString::from(c"proof")]), &none)
}

/// mmap(2) of a page, `PROT_READ | PROT_EXEC`, `MAP_PRIVATE`.
fn map_executable(probing: &Probing, path: &Path) -> Got {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => return Got::of_io::<()>(Err(error)),
    };
    let Ok(fd) = u64::try_from(file.as_raw_fd()) else { return Got::Errno(Errno::EBADF) };
    let args = [0, 4096, (nix::libc::PROT_READ | nix::libc::PROT_EXEC) as u64, nix::libc::MAP_PRIVATE as u64, fd, 0];
    let nr = nix::libc::SYS_mmap as u32;
    Got::of(probing.call(&Call { entry: Entry::Native, nr, args }))
}

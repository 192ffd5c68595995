//! The ways into a container's cgroup.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use apex_sys::fs::{self, cwd, resolve};
use apex_sys::{Errno, fs::write};
use nix::libc::{O_DIRECTORY, O_RDONLY, O_WRONLY};

use super::dir::c_path;
use super::error::CgroupError;
use super::host::{self, clean};
use super::{Cgroup, Place};

/// Ways in, opened by one who may use them: the kernel judges an entry by who opened the file, so the one that enters needs no rights.
///
/// Both parts are needed: the clone with [`Doors::birth`], and [`Doors::walk_in`] by the child.
#[derive(Debug)]
pub struct Doors {
    birth: Option<OwnedFd>,
    files: Vec<OwnedFd>,
}

impl Doors {
    /// v2: the directory to clone into (`CLONE_INTO_CGROUP`).
    pub fn birth(&self) -> Option<BorrowedFd<'_>> {
        self.birth.as_ref().map(AsFd::as_fd)
    }

    /// v1: puts the calling process in, which must have one thread. Allocates nothing and takes no lock but the kernel's on cgroups.
    pub fn walk_in(&self) -> Result<(), CgroupError> {
        for (at, file) in self.files.iter().enumerate() {
            write(file.as_fd(), b"0").map_err(|errno| CgroupError::Enter {
                number: at + 1,
                count: self.files.len(),
                source: errno.into(),
            })?;
        }
        Ok(())
    }
}

/// A cgroup below the container's own: `PATH` in every hierarchy, or `CONTROLLER[,CONTROLLER]:PATH` (`exec --cgroup`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubPath {
    controllers: Vec<String>,
    below: PathBuf,
}

impl SubPath {
    /// Reads what the command line has.
    pub fn parse(text: &str) -> Result<SubPath, CgroupError> {
        let (controllers, path) = text.split_once(':').unwrap_or(("", text));
        if path.contains('\0') || path.contains('\n') {
            let reason = "no cgroup has a line break or a NUL in its name";
            return Err(CgroupError::SubPath { path: text.to_owned(), reason });
        }
        if Path::new(path).components().any(|part| part == std::path::Component::ParentDir) {
            let reason = "a path with .. is not a sub cgroup path: it leads out of the container's cgroup";
            return Err(CgroupError::SubPath { path: text.to_owned(), reason });
        }
        let controllers = controllers.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        Ok(SubPath { controllers, below: clean(Path::new(path)) })
    }
}

impl Place {
    /// The directory that is meant by the last of `subs` that means this one, or the container's own.
    fn below(&self, subs: &[SubPath]) -> PathBuf {
        let is_meant =
            |sub: &&SubPath| sub.controllers.is_empty() || self.names.iter().any(|name| sub.controllers.contains(name));
        match subs.iter().rfind(is_meant) {
            Some(sub) => self.dir.join(&sub.below),
            None => self.dir.clone(),
        }
    }
}

fn open(path: &Path, flags: i32) -> Result<OwnedFd, CgroupError> {
    c_path(path).and_then(|c_path| fs::open(cwd(), &c_path, flags, resolve::NO_SYMLINKS)).map_err(|errno| match errno {
        Errno::ENOENT if flags & O_DIRECTORY != 0 => CgroupError::NoDoor { dir: path.to_owned() },
        Errno::ENOENT => CgroupError::NoDoor { dir: path.parent().unwrap_or(path).to_owned() },
        errno => CgroupError::Door { file: path.to_owned(), source: errno.into() },
    })
}

impl Cgroup {
    /// Opens the ways in, before the clone.
    pub fn doors(&self) -> Result<Doors, CgroupError> {
        self.doors_below(&[])
    }

    /// The same below the container's own cgroup, or in some hierarchies.
    pub fn doors_below(&self, subs: &[SubPath]) -> Result<Doors, CgroupError> {
        let mut doors = Doors { birth: None, files: Vec::with_capacity(self.places.len()) };
        if self.pending.is_some() {
            // systemd will move it in.
            return Ok(doors);
        }
        subs.iter().try_for_each(|sub| self.check_controllers(sub))?;
        for place in &self.places {
            let dir = place.below(subs);
            if place.is_v2() {
                doors.birth = Some(open(&dir, O_RDONLY | O_DIRECTORY)?);
            } else {
                doors.files.push(open(&dir.join("tasks"), O_WRONLY)?);
            }
        }
        Ok(doors)
    }

    /// For an exec into a container that handed controllers down to cgroups of its own: v2 then takes nobody into the one above them (`EBUSY` from the
    /// clone), so the way leads to where `pid`, the container's first process, is by now.
    pub fn doors_beside(&self, pid: i32) -> Result<Doors, CgroupError> {
        let mut doors = self.doors()?;
        if let Some(place) = self.v2() {
            doors.birth = Some(open(&self.beside(place, pid)?, O_RDONLY | O_DIRECTORY)?);
        }
        Ok(doors)
    }

    /// The v2 directory that `pid` is in, which must be the container's or one below.
    fn beside(&self, place: &Place, pid: i32) -> Result<PathBuf, CgroupError> {
        let path = host::path_v2(pid)?;
        let dir = place.point.join(clean(Path::new(&path)));
        if dir.starts_with(&place.dir) && !path.split('/').any(|part| part == "..") {
            return Ok(dir);
        }
        Err(CgroupError::Attach { pid, dir, source: Errno::EXDEV.into() })
    }

    fn check_controllers(&self, sub: &SubPath) -> Result<(), CgroupError> {
        let is_known = |name: &String| self.places.iter().any(|place| place.names.contains(name));
        match sub.controllers.iter().find(|name| !is_known(name)) {
            Some(name) => {
                let reason = "unknown controller in this container";
                Err(CgroupError::SubPath { path: name.clone(), reason })
            }
            None => Ok(()),
        }
    }

    /// Puts a process in from outside, with all its threads, optionally below the container's own cgroup. On v1 this waits for an RCU period.
    pub fn attach(&self, pid: i32, subs: &[SubPath]) -> Result<(), CgroupError> {
        subs.iter().try_for_each(|sub| self.check_controllers(sub))?;
        for place in &self.places {
            attach_to(&place.below(subs), pid)?;
        }
        Ok(())
    }
}

/// Puts `pid` into one directory.
pub(super) fn attach_to(dir: &Path, pid: i32) -> Result<(), CgroupError> {
    let file = open(&dir.join("cgroup.procs"), O_WRONLY)?;
    write(file.as_fd(), pid.to_string().as_bytes()).map(drop).map_err(|errno| CgroupError::Attach {
        pid,
        dir: dir.to_owned(),
        source: errno.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sub_path_stays_below() {
        let check = |text: &str, controllers: &[&str], below: &str| {
            let expected = SubPath {
                controllers: controllers.iter().map(|&name| name.to_owned()).collect(),
                below: PathBuf::from(below),
            };
            assert_eq!(SubPath::parse(text).unwrap(), expected, "{text}");
        };
        check("a", &[], "a");
        check("/a/b", &[], "a/b");
        check("cpu,memory:/a", &["cpu", "memory"], "a");
        check("/", &[], "");
        for out in ["..", "../../a", "cpu:a/../../b", "a\nb"] {
            assert!(SubPath::parse(out).is_err(), "{out}");
        }
    }
}

//! Landlock rules: the second opinion on the file system, in force even where a mount would let something through.

use std::path::{Path, PathBuf};

use super::covers;
use crate::plan::{BindAccess, Kind, LandlockRule, Mount};
use crate::policy::Grant;

/// Few rules, each at a directory: a rule near the file ends the kernel's walk to the root early.
pub(super) fn landlock(mounts: &[Mount], exec: &[Grant]) -> Vec<LandlockRule> {
    let mut rules: Vec<LandlockRule> = vec![rule("/").list()];
    let binds: Vec<&Path> = mounts.iter().filter_map(bind_dir).collect();
    for mount in mounts {
        let new = match mount {
            Mount::Bind { dest, access, kind, exec: is_exec, origin, .. } => {
                let mut rule = rule(place(dest, *kind, *access, &binds)).read();
                if *access != BindAccess::Read {
                    rule = rule.write();
                }
                // The command's own file is named by no exec rule.
                rule.exec = *is_exec && origin.source == "the command";
                if rule.exec {
                    rule.path.clone_from(dest);
                }
                rule
            }
            Mount::Tmpfs { dest, .. } => rule(dest).read().write(),
            Mount::File { dest, .. } => rule(place(dest, Kind::File, BindAccess::Read, &binds)).read(),
            Mount::Proc { .. } => rule("/proc").read().write(),
            Mount::Dev { .. } => rule("/dev").read().write().ioctl(),
            Mount::Symlink { .. } | Mount::Dir { .. } | Mount::Hide { .. } | Mount::Deny { .. } => continue,
        };
        add(&mut rules, new);
    }
    for place in exec.iter().flat_map(|grant| executable_places(mounts, &grant.dest)) {
        let mut new = rule(place).read();
        new.exec = true;
        add(&mut rules, new);
    }
    rules
}

/// Where a rule on `path` takes effect: at the path itself when it lies in a mount, else at every mount that lies below it.
fn executable_places<'a>(mounts: &'a [Mount], path: &'a Path) -> Vec<&'a Path> {
    if mounts.iter().any(|mount| is_executable_at(mount, path)) {
        return vec![path];
    }
    mounts.iter().filter_map(bind_dir).filter(|dir| covers(path, dir)).collect()
}

fn rule(path: impl Into<PathBuf>) -> LandlockRule {
    LandlockRule { path: path.into(), list: false, read: false, write: false, exec: false, ioctl: false }
}

impl LandlockRule {
    fn list(self) -> Self {
        LandlockRule { list: true, ..self }
    }
    fn read(self) -> Self {
        LandlockRule { list: true, read: true, ..self }
    }
    fn write(self) -> Self {
        LandlockRule { write: true, ..self }
    }
    fn ioctl(self) -> Self {
        LandlockRule { ioctl: true, ..self }
    }

    fn gives(&self, other: &LandlockRule) -> bool {
        covers(&self.path, &other.path)
            && (self.list || !other.list)
            && (self.read || !other.read)
            && (self.write || !other.write)
            && (self.exec || !other.exec)
            && (self.ioctl || !other.ioctl)
    }
}

/// Unites rights at the same path and leaves out what a wider rule already gives.
fn add(rules: &mut Vec<LandlockRule>, new: LandlockRule) {
    if rules.iter().any(|rule| rule.gives(&new)) {
        return;
    }
    match rules.iter_mut().find(|rule| rule.path == new.path) {
        Some(same) => {
            same.list |= new.list;
            same.read |= new.read;
            same.write |= new.write;
            same.exec |= new.exec;
            same.ioctl |= new.ioctl;
        }
        None => rules.push(new),
    }
}

fn bind_dir(mount: &Mount) -> Option<&Path> {
    match mount {
        Mount::Bind { dest, kind: Kind::Dir, .. } | Mount::Tmpfs { dest, .. } => Some(dest),
        _ => None,
    }
}

/// A single readable file in a directory that only the sandbox's root has is granted through that directory, which holds
/// nothing but granted things: one rule for all of /etc instead of one for each file.
fn place<'a>(dest: &'a Path, kind: Kind, access: BindAccess, binds: &[&Path]) -> &'a Path {
    let parent = dest.parent().unwrap_or(dest);
    let is_own = parent != Path::new("/") && !binds.iter().any(|bind| covers(bind, parent));
    if is_own && access == BindAccess::Read && (kind == Kind::File || parent == Path::new("/etc")) {
        parent
    } else {
        dest
    }
}

fn is_executable_at(mount: &Mount, path: &Path) -> bool {
    match mount {
        Mount::Bind { dest, exec: true, .. } | Mount::Tmpfs { dest, exec: true, .. } => covers(dest, path),
        _ => false,
    }
}

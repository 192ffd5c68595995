//! What an observed system call is about, and whether the plan stands in its way.
//!
//! Input: the name and the registers of a call, and what the jail found at its paths. Output: the paths it names with what it wants of
//! them, and the obstacle that it will meet. All of it is for words to people after the run: the call has been handed to the kernel
//! whatever is said here, and the sandbox may have changed its memory in between. Never use it to allow or refuse anything.

mod call;
pub mod decode;
pub mod dns;
mod interpreter;

use std::path::{Component, Path, PathBuf};

pub use call::{Makes, Target, needs_how, targets};
pub use interpreter::{HEAD_BYTES, interpreter};

use crate::plan::{BindAccess, LandlockRule, Mount, Plan};
use crate::refusal::Access;

/// Files that C libraries look for in every program and do without in nearly all: told each time, they would drown what matters.
const PROBED: [&str; 3] = ["/etc/locale.alias", "/etc/ld.so.preload", "/etc/gai.conf"];

/// What of the plan a call runs into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// A denied path, or below one.
    Denied,
    /// A path that is shown as empty, or below one.
    Hidden,
    /// Mounted read-only.
    ReadOnly,
    /// Mounted without execution.
    NoExec,
    /// No Landlock rule grants it.
    Landlock,
    /// It is not inside, but outside.
    Missing,
}

impl Obstacle {
    /// What the kernel is expected to answer; the call itself is never held up to see.
    pub const fn outcome(self) -> &'static str {
        match self {
            Obstacle::Denied | Obstacle::NoExec | Obstacle::Landlock => "EACCES",
            Obstacle::Hidden => "shown empty",
            Obstacle::ReadOnly => "EROFS",
            Obstacle::Missing => "ENOENT",
        }
    }
}

/// What the jail found where a call points to, links followed as the call does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Something.
    Present {
        /// Whether it is a directory.
        is_dir: bool,
    },
    /// Nothing, but the directory for it.
    Absent {
        /// Whether the host has something under this name.
        outside: bool,
    },
    /// Not even the directory for it.
    Nowhere {
        /// Whether the host has something under this name.
        outside: bool,
        /// Whether the host has its directory.
        parent_outside: bool,
    },
}

impl Found {
    /// Whether it exists inside.
    pub const fn inside(&self) -> bool {
        matches!(self, Found::Present { .. })
    }

    /// Whether it exists outside, as far as that was asked: for what exists inside it never matters.
    pub const fn outside(&self) -> bool {
        match self {
            Found::Present { .. } => true,
            Found::Absent { outside } | Found::Nowhere { outside, .. } => *outside,
        }
    }
}

/// What stands in the way of `access` to `path`, which is resolved: absolute, free of links and of `..`.
///
/// Only likely refusals are told. A file that is missing on both sides is no refusal: programs probe for such by the hundred.
pub fn obstacle(plan: &Plan, path: &Path, access: Access, makes: Makes, found: &Found) -> Option<Obstacle> {
    if is_own_process(path) || (access != Access::Write && PROBED.iter().any(|probed| path == Path::new(probed))) {
        return None;
    }
    if !plan.level.is_full() {
        return by_rules(plan, path, access, makes, found);
    }
    let reaches_in = access != Access::Look || !found.inside();
    if reaches_in && let Some(obstacle) = masked(plan, path, access, found) {
        return Some(obstacle);
    }
    match (found, makes) {
        // "It exists already" is the answer of the kernel before it looks at anything else.
        (Found::Present { .. }, Makes::New) => None,
        (Found::Present { is_dir }, Makes::Nothing | Makes::IfMissing) => refused(plan, path, access, *is_dir),
        (Found::Absent { outside: true } | Found::Nowhere { outside: true, .. }, Makes::Nothing) => {
            Some(Obstacle::Missing)
        }
        (Found::Absent { .. } | Found::Nowhere { .. }, Makes::Nothing) => None,
        (Found::Absent { .. }, Makes::New | Makes::IfMissing) => refused(plan, path, Access::Write, false),
        (Found::Nowhere { parent_outside, .. }, Makes::New | Makes::IfMissing) => {
            parent_outside.then_some(Obstacle::Missing)
        }
    }
}

/// Where the host's own tree shows there is only Landlock, which does not judge who merely looks.
fn by_rules(plan: &Plan, path: &Path, access: Access, makes: Makes, found: &Found) -> Option<Obstacle> {
    let landlock = plan.landlock.as_ref()?;
    let wanted = match (found, makes) {
        (Found::Present { .. }, Makes::New) | (Found::Nowhere { .. }, _) => return None,
        (Found::Present { .. }, Makes::Nothing | Makes::IfMissing) => access,
        (Found::Absent { .. }, Makes::Nothing) => return None,
        (Found::Absent { .. }, Makes::New | Makes::IfMissing) => Access::Write,
    };
    let right: fn(&LandlockRule) -> bool = match wanted {
        Access::Look => return None,
        Access::Read => |rule| rule.read,
        Access::Write => |rule| rule.write,
        Access::Exec => |rule| rule.exec,
    };
    let is_granted = landlock.rules.iter().any(|rule| right(rule) && path.starts_with(&rule.path));
    let is_withheld = plan.withheld.iter().any(|withheld| path.starts_with(withheld));
    (!is_granted).then_some(if is_withheld { Obstacle::Denied } else { Obstacle::Landlock })
}

/// A path that names the caller itself, or a process by a number that means another one out here.
pub fn is_own_process(path: &Path) -> bool {
    let mut parts = path.components().skip(1);
    let (first, second) = (parts.next(), parts.next());
    let (Some(Component::Normal(first)), Some(Component::Normal(second))) = (first, second) else { return false };
    let is_number = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    match (first.to_str(), second.to_str()) {
        (Some("proc"), Some(second)) => matches!(second, "self" | "thread-self") || is_number(second),
        (Some("dev"), Some(second)) => matches!(second, "fd" | "stdin" | "stdout" | "stderr"),
        _ => false,
    }
}

/// The deepest mask over a path, unless something is mounted on top of it further down.
fn masked(plan: &Plan, path: &Path, access: Access, found: &Found) -> Option<Obstacle> {
    match deepest(plan, path)? {
        // A placeholder for a name that the host does not have either: who only looks misses nothing.
        Mount::Deny { kind: None, .. } if matches!(access, Access::Look | Access::Read) && !found.outside() => None,
        Mount::Deny { .. } => Some(Obstacle::Denied),
        Mount::Hide { .. } => Some(Obstacle::Hidden),
        _ => None,
    }
}

fn refused(plan: &Plan, path: &Path, access: Access, is_dir: bool) -> Option<Obstacle> {
    let right: fn(&LandlockRule) -> bool = match access {
        // Landlock does not know of looking.
        Access::Look => return None,
        Access::Read if is_dir => |rule| rule.list,
        Access::Read => |rule| rule.read,
        Access::Write => |rule| rule.write,
        Access::Exec => |rule| rule.exec,
    };
    let by_mount = match (deepest(plan, path), access) {
        (Some(Mount::Bind { access: BindAccess::Read, .. }), Access::Write) => Some(Obstacle::ReadOnly),
        (Some(Mount::Bind { exec: false, .. } | Mount::Tmpfs { exec: false, .. }), Access::Exec) => {
            Some(Obstacle::NoExec)
        }
        (Some(Mount::Proc { .. } | Mount::Dev { .. }), Access::Exec) => Some(Obstacle::NoExec),
        (Some(Mount::Dir { .. } | Mount::File { .. }) | None, Access::Write) => Some(Obstacle::ReadOnly),
        // What of /proc and /dev can be written is the kernel's to say, file by file.
        _ => None,
    };
    by_mount.or_else(|| {
        let rules = &plan.landlock.as_ref()?.rules;
        let is_special = matches!(deepest(plan, path), Some(Mount::Proc { .. } | Mount::Dev { .. }));
        let granted = rules.iter().any(|rule| path.starts_with(&rule.path) && right(rule));
        (!granted && !is_special).then_some(Obstacle::Landlock)
    })
}

/// The mount that a path ends up in: the deepest, the last one of equals.
pub(crate) fn deepest<'p>(plan: &'p Plan, path: &Path) -> Option<&'p Mount> {
    let covers = |mount: &&Mount| match mount {
        Mount::Symlink { .. } => false,
        mount => path.starts_with(crate::planner::mount_dest(mount)),
    };
    plan.mounts.iter().filter(covers).max_by_key(|mount| crate::planner::mount_dest(mount).components().count())
}

/// `path` seen from `base`, with `.` taken out. `..` stays: where it leads depends on links.
pub fn absolute(base: &Path, path: &Path) -> PathBuf {
    base.join(path).components().filter(|part| *part != Component::CurDir).collect()
}

#[cfg(test)]
mod tests;

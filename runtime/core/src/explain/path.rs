//! Why a path was refused: missing, denied, hidden, read-only, not executable, or refused by its own permissions.

use std::path::{Component, Path, PathBuf};

use super::{Answer, deliberate, sensitive, snippet};
use crate::amount::size;
use crate::layer::Layer;
use crate::plan::{BindAccess, LandlockRule, Mount, Plan};
use crate::policy::{Grant, Origin, Policy, normalise};
use crate::refusal::Access;

/// A refused path, as the jail saw it.
pub(super) struct Seen<'s> {
    pub path: &'s Path,
    pub access: Access,
    pub exists_inside: bool,
    pub exists_outside: bool,
    pub outcome: &'s str,
}

pub(super) fn explain(seen: &Seen<'_>, plan: &Plan, policy: &Policy) -> Answer {
    let path = normalise(seen.path);
    let answer = explain_normal(&path, seen, plan, policy);
    let answer = guard(answer, &path);
    if seen.path.components().any(|part| part == Component::ParentDir) && answer.change.is_some() {
        return answer.caution("the program named it with `..`: check where that leads");
    }
    answer
}

/// A socket with a path.
pub(super) fn explain_socket(path: &Path, plan: &Plan) -> Answer {
    let path = normalise(path);
    let answer = match covering(&path, plan) {
        Some(Cover::Bind { origin, .. }) => {
            Answer::new(None, "a rule grants its place: nobody listens there, or its own permissions refuse")
                .rule(origin)
        }
        _ => Answer::new(Some(Layer::Mountns), "the socket is not inside: no rule grants it")
            .change(grant("--rw", &path, &path))
            .caution("who listens there works outside of the sandbox, for whatever the program asks"),
    };
    guard(answer, &path)
}

fn explain_normal(path: &Path, seen: &Seen<'_>, plan: &Plan, policy: &Policy) -> Answer {
    let filesystem = &policy.filesystem;
    // Where nothing is mounted, Landlock keeps what a mask keeps elsewhere.
    let keeper = if plan.level.is_full() { Layer::Mountns } else { Layer::Landlock };
    if let Some(rule) = covers(&filesystem.deny, path) {
        return Answer::new(Some(keeper), format!("a rule denies {}", rule.dest.display()))
            .rule(&rule.origin)
            .caution(&deliberate(&rule.origin));
    }
    if let Some(rule) = covers(&filesystem.hide, path) {
        return Answer::new(Some(keeper), format!("a rule shows {} as empty", rule.dest.display()))
            .rule(&rule.origin)
            .caution(&format!("hiding is deliberate; if it is wrong, remove the rule at {}", rule.origin));
    }
    if let Some((dest, origin)) = held(path, plan) {
        let because =
            format!("a rule denies a path below {}, which the host does not have: the name is held", dest.display());
        return Answer::new(Some(Layer::Mountns), because)
            .rule(origin)
            .caution("create that directory on the host, then only the denied path itself is refused");
    }
    if !plan.level.is_full() {
        return explain_host_tree(path, seen, plan);
    }
    match (seen.exists_inside, seen.exists_outside, seen.access) {
        (true, _, _) => explain_present(path, seen, plan),
        (false, true, _) => explain_hidden(path, seen.access, plan),
        // What is written need not exist: its directory decides.
        (false, false, Access::Write) => explain_write(path, seen.outcome, seen.exists_inside, plan),
        (false, false, Access::Look | Access::Read | Access::Exec) => {
            Answer::new(None, "it does not exist on the host either")
        }
    }
}

/// In the host's own tree.
fn explain_host_tree(path: &Path, seen: &Seen<'_>, plan: &Plan) -> Answer {
    let landlock = Some(Layer::Landlock);
    if seen.access != Access::Write && plan.withheld.iter().any(|withheld| withheld.starts_with(path)) {
        return Answer::new(
            landlock,
            "something below it is denied, so it has no rule as a whole and cannot be listed",
        );
    }
    if ["/dev", "/proc", "/sys"].iter().any(|own| path.starts_with(own)) {
        return Answer::new(landlock, "no rule grants it at this isolation level")
            .caution("it is the kernel's, or a device: it leads past every rule on files");
    }
    let parent = path.parent().filter(|parent| parent.parent().is_some());
    match (seen.access, parent) {
        (Access::Write, _) if is_system(path) => Answer::new(landlock, "no rule grants writing there"),
        (Access::Write, Some(parent)) if !seen.exists_inside => {
            Answer::new(landlock, "no rule grants writing there").change(grant("--rw", parent, parent))
        }
        (Access::Write, _) => Answer::new(landlock, "no rule grants writing there").change(grant("--rw", path, path)),
        (Access::Look | Access::Read | Access::Exec, _) => {
            Answer::new(landlock, "no rule grants it").change(grant("--ro", path, path))
        }
    }
}

/// The mask over a path, where it stands for a rule about a longer one: nothing below it exists yet.
fn held<'p>(path: &Path, plan: &'p Plan) -> Option<(&'p Path, &'p Origin)> {
    plan.mounts.iter().find_map(|mount| match mount {
        Mount::Deny { dest, origin, .. } if path.starts_with(dest) => Some((dest.as_path(), origin)),
        _ => None,
    })
}

/// It exists outside and not inside.
fn explain_hidden(path: &Path, access: Access, plan: &Plan) -> Answer {
    let flag = if access == Access::Write { "--rw" } else { "--ro" };
    match covering(path, plan) {
        Some(Cover::Proc) => {
            return Answer::new(Some(Layer::Mountns), "/proc shows the sandbox's own processes only")
                .caution("policies can show system files of /proc with `proc = \"masked\"` in [filesystem]");
        }
        Some(Cover::Dev) => {
            return Answer::new(
                Some(Layer::Mountns),
                "/dev holds null, zero, full, random, urandom, tty and a private devpts only",
            )
            .caution("a device leads to the hardware, past every rule on files");
        }
        Some(Cover::Tmpfs { dest, origin, .. }) => {
            let because = format!("it exists outside, but {} is a private directory that starts empty", dest.display());
            return Answer::new(Some(Layer::Mountns), because).rule(origin).change(grant(flag, path, path));
        }
        Some(Cover::Bind { .. } | Cover::Made) | None => {}
    }
    let answer =
        Answer::new(Some(Layer::Mountns), "it exists outside, no rule grants it").change(grant(flag, path, path));
    match package_root(path) {
        Some(root) => {
            answer.caution(&format!("when more of the package is missing, grant {} as a whole", root.display()))
        }
        None => answer,
    }
}

/// It exists inside.
fn explain_present(path: &Path, seen: &Seen<'_>, plan: &Plan) -> Answer {
    match seen.access {
        Access::Write => explain_write(path, seen.outcome, seen.exists_inside, plan),
        Access::Exec => explain_exec(path, plan),
        Access::Look | Access::Read => match covering(path, plan) {
            Some(Cover::Proc) => {
                Answer::new(Some(Layer::Mountns), "it is masked, or belongs to a process of another user")
            }
            cover => explain_granted(path, cover, plan, |rule| rule.read, "reading"),
        },
    }
}

fn explain_write(path: &Path, outcome: &str, exists: bool, plan: &Plan) -> Answer {
    let mountns = Some(Layer::Mountns);
    match covering(path, plan) {
        Some(Cover::Bind { source, origin, writable: false, .. }) => {
            let answer = Answer::new(mountns, "it is granted for reading only").rule(origin);
            if is_system(&source) {
                return answer
                    .caution("the host's own programs live there: let the program write elsewhere, or into a copy");
            }
            // What does not exist yet cannot be bound: its directory is the smallest thing that can.
            let (source, dest) = match (exists, source.parent(), path.parent()) {
                (false, Some(source), Some(dest)) => (source, dest),
                _ => (source.as_path(), path),
            };
            let answer = answer.change(grant("--rw", source, dest)).caution("what is written there reaches the host");
            guard(answer, source)
        }
        Some(Cover::Tmpfs { dest, size_bytes, origin, .. }) if outcome == "ENOSPC" => {
            let next = size(size_bytes.saturating_mul(2));
            Answer::new(mountns, format!("the private directory {} is full ({})", dest.display(), size(size_bytes)))
                .rule(origin)
                .change(format!("--tmpfs {}:{next}", quoted(dest)))
                .caution("it counts as memory: --memory may have to follow")
        }
        Some(Cover::Made) => Answer::new(mountns, "it is a small read-only file that Apex made"),
        Some(Cover::Proc) => Answer::new(mountns, "/proc is the kernel's; what matters in it is read-only"),
        Some(Cover::Dev) => Answer::new(mountns, "/dev takes no new files"),
        cover @ Some(Cover::Bind { .. } | Cover::Tmpfs { .. }) => {
            explain_granted(path, cover, plan, |rule| rule.write, "writing")
        }
        None => explain_no_place(path),
    }
}

/// Nothing is mounted where it would be written.
fn explain_no_place(path: &Path) -> Answer {
    let answer = Answer::new(Some(Layer::Mountns), "no rule grants the place; the root directory itself is read-only");
    match path.parent().filter(|parent| parent.parent().is_some()) {
        Some(parent) if !is_system(parent) => answer
            .change(format!("--tmpfs {}", quoted(parent)))
            .caution("what is written there is gone afterwards; --rw keeps it on the host"),
        Some(_) | None => answer.caution("let the program write to /tmp or to a directory granted with --rw"),
    }
}

fn explain_exec(path: &Path, plan: &Plan) -> Answer {
    match covering(path, plan) {
        Some(Cover::Bind { source, origin, exec: false, .. }) => {
            Answer::new(Some(Layer::Mountns), "it is granted without execution")
                .rule(origin)
                .change(grant("--ro", &source, path))
                .caution("the file becomes executable and read-only inside")
        }
        Some(Cover::Tmpfs { dest, origin, exec: false, .. }) => Answer::new(
            Some(Layer::Mountns),
            format!("nothing is executed in the private directory {}", dest.display()),
        )
        .rule(origin)
        .change(snippet("filesystem", &format!("exec = [{:?}]", dest.to_string_lossy())))
        .caution("whatever the program writes or downloads there could then be run"),
        cover => explain_granted(path, cover, plan, |rule| rule.exec, "execution"),
    }
}

/// The mounts grant it: what is left is Landlock, and the owner and mode of the file.
fn explain_granted(
    path: &Path,
    cover: Option<Cover<'_>>,
    plan: &Plan,
    right: fn(&LandlockRule) -> bool,
    what: &str,
) -> Answer {
    let origin = cover.as_ref().and_then(Cover::origin);
    let landlock = plan.landlock.as_ref().map(|landlock| &landlock.rules);
    let refused = landlock.is_some_and(|rules| !rules.iter().any(|rule| path.starts_with(&rule.path) && right(rule)));
    let answer = if refused {
        Answer::new(Some(Layer::Landlock), format!("no Landlock rule grants {what} there"))
    } else {
        Answer::new(None, format!("the rules grant {what}: its own owner and mode on the host refuse it"))
    };
    match origin {
        Some(origin) => answer.rule(origin),
        None => answer,
    }
}

/// Takes the change back where nothing safe can be offered.
fn guard(answer: Answer, path: &Path) -> Answer {
    if answer.change.is_none() {
        return answer;
    }
    if let Some(why) = sensitive::socket(path) {
        return Answer { change: None, caution: None, ..answer }.caution(&format!("no change is offered, since {why}"));
    }
    if let Some(why) = sensitive::reason(path) {
        return Answer { change: None, caution: None, ..answer }
            .caution(&format!("no change is offered, since {why}; give the program a copy of the part that it needs"));
    }
    // A name like this in a line to copy could say something else than it seems to.
    if path.to_str().is_none_or(|text| text.chars().any(char::is_control)) {
        return Answer { change: None, ..answer }.caution("its name is no plain text: look at it before granting it");
    }
    answer
}

/// What lies over a path inside: the deepest step of the plan, the last one of equals.
#[derive(Debug)]
enum Cover<'p> {
    Bind { source: PathBuf, origin: &'p Origin, writable: bool, exec: bool },
    Tmpfs { dest: &'p Path, size_bytes: u64, exec: bool, origin: &'p Origin },
    Proc,
    Dev,
    Made,
}

impl<'p> Cover<'p> {
    fn origin(&self) -> Option<&'p Origin> {
        match self {
            Cover::Bind { origin, .. } | Cover::Tmpfs { origin, .. } => Some(origin),
            Cover::Proc | Cover::Dev | Cover::Made => None,
        }
    }
}

fn covering<'p>(path: &Path, plan: &'p Plan) -> Option<Cover<'p>> {
    let mut best: Option<(usize, Cover<'p>)> = None;
    for mount in &plan.mounts {
        let Some((dest, cover)) = cover_of(mount, path) else {
            continue;
        };
        let depth = dest.components().count();
        if best.as_ref().is_none_or(|(deepest, _)| depth >= *deepest) {
            best = Some((depth, cover));
        }
    }
    best.map(|(_, cover)| cover)
}

fn cover_of<'p>(mount: &'p Mount, path: &Path) -> Option<(&'p Path, Cover<'p>)> {
    let (dest, cover): (&Path, Cover<'p>) = match mount {
        Mount::Bind { source, dest, access, exec, origin, .. } => {
            let rest = path.strip_prefix(dest).ok()?;
            let source = if rest.as_os_str().is_empty() { source.clone() } else { source.join(rest) };
            (dest, Cover::Bind { source, origin, writable: *access != BindAccess::Read, exec: *exec })
        }
        Mount::Tmpfs { dest, size_bytes, exec, origin } => {
            (dest, Cover::Tmpfs { dest, size_bytes: *size_bytes, exec: *exec, origin })
        }
        Mount::File { dest, .. } => (dest, Cover::Made),
        Mount::Proc { .. } => (Path::new("/proc"), Cover::Proc),
        Mount::Dev { .. } => (Path::new("/dev"), Cover::Dev),
        // Links lead elsewhere, bare directories lie on the read-only root, and hidden and denied places are judged by their rule.
        Mount::Symlink { .. } | Mount::Dir { .. } | Mount::Hide { .. } | Mount::Deny { .. } => {
            return None;
        }
    };
    path.starts_with(dest).then_some((dest, cover))
}

fn covers<'p>(rules: &'p [Grant], path: &Path) -> Option<&'p Grant> {
    rules.iter().find(|rule| path.starts_with(&rule.dest) || path.starts_with(&rule.path))
}

/// The flag that grants one path, or the rule for a name that flags cannot carry.
fn grant(flag: &str, source: &Path, dest: &Path) -> String {
    let text = source.to_string_lossy();
    if text.contains(':') || dest.to_string_lossy().contains(':') {
        let key = if flag == "--rw" { "write" } else { "read" };
        return snippet("filesystem", &format!("{key} = [{{ path = {text:?}, dest = {:?} }}]", dest.to_string_lossy()));
    }
    if source == dest {
        format!("{flag} {}", quoted(source))
    } else {
        format!("{flag} {}:{}", quoted(source), quoted(dest))
    }
}

/// One word of a shell, whatever the name holds.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%,".contains(c);
    if text.chars().all(plain) { text.into_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

fn is_system(path: &Path) -> bool {
    let places = [
        "/usr",
        "/bin",
        "/sbin",
        "/lib",
        "/lib32",
        "/lib64",
        "/etc",
        "/boot",
        "/sys",
        "/proc",
        "/dev",
        "/var/lib",
        "/nix/store",
    ];
    places.iter().any(|place| path.starts_with(place))
}

/// The directory of the package that a file belongs to: what stands behind `node_modules`, `site-packages` and their like.
fn package_root(path: &Path) -> Option<PathBuf> {
    let homes = ["node_modules", "site-packages", "dist-packages", "vendor", "gems"];
    let mut root = PathBuf::new();
    let mut parts = path.components();
    while let Some(part) = parts.next() {
        root.push(part);
        if homes.iter().any(|home| part.as_os_str() == *home) {
            root.push(parts.next()?);
            return (root != path).then_some(root);
        }
    }
    None
}

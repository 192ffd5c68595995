//! What is put into the new root, and in which order.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::command::View;
use super::{PlanError, builtin_dirs, covers, is_system, shown};
use crate::host::{Host, Link, PathFact, links};
use crate::plan::{BindAccess, Kind, Mount};
use crate::policy::{Filesystem, Grant, Origin, Policy, ProcView};

/// Why a policy is not written from inside.
const KEPT: &str = "what a run goes by is not for its command to write";

/// Files that a root of a sandbox has of its own, where the policy does not show the host's: accounts, groups, hosts.
pub(crate) const MADE_FILES: [&str; 3] = ["/etc/passwd", "/etc/group", "/etc/hosts"];

/// Collects the mounts of a sandbox.
pub(super) struct Mounts<'a> {
    filesystem: &'a Filesystem,
    /// What the policy was made of; what has an absolute path is a file of the host.
    sources: &'a [String],
    /// Where other runs look for what they go by.
    config: &'a [PathBuf],
    /// Those of `config` that are not there and whose names the command could take.
    missing: Vec<Grant>,
    host: &'a dyn Host,
    tmp_size_bytes: u64,
    own_host_ids: bool,
    /// What a writable grant becomes.
    write: BindAccess,
    list: Vec<Mount>,
}

impl<'a> Mounts<'a> {
    pub(super) fn new(policy: &'a Policy, host: &'a dyn Host, own_host_ids: bool, on_overlay: bool) -> Self {
        Mounts {
            filesystem: &policy.filesystem,
            sources: &policy.sources,
            config: &policy.config,
            missing: Vec::new(),
            host,
            tmp_size_bytes: policy.resources.tmp_size_bytes,
            own_host_ids,
            write: if on_overlay { BindAccess::Overlay } else { BindAccess::Write },
            list: Vec::with_capacity(32),
        }
    }

    /// Everything but the masks, which need the command's own file to be there first.
    pub(super) fn collect(mut self) -> Result<Self, PlanError> {
        let filesystem = self.filesystem;
        for grant in &filesystem.write {
            self.grant(grant, self.write)?;
        }
        for grant in &filesystem.read {
            self.grant(grant, BindAccess::Read)?;
        }
        for tmpfs in &filesystem.tmpfs {
            let exec = self.may_exec(&tmpfs.dest);
            let size_bytes = tmpfs.size_bytes.unwrap_or(self.tmp_size_bytes);
            self.list.push(Mount::Tmpfs { dest: tmpfs.dest.clone(), size_bytes, exec, origin: tmpfs.origin.clone() });
        }
        self.split_executable();
        self.keep_policy()?;
        self.add_names()?;
        Ok(self)
    }

    /// The directory with apexd's socket. Never with translated owners: the kernel lets nobody write to, and so connect to, what belongs to somebody that the mount has no number
    /// for (`HAS_UNMAPPED_ID` in fs/namei.c), and it belongs to apexd's user.
    pub(super) fn add_mail(&mut self, source: &Path) -> Result<(), PlanError> {
        let (dest, origin) = (PathBuf::from(super::MAIL_DIR), Origin::flag("--mail"));
        let reason = "messages, as the policy's mailboxes allow them".to_owned();
        let refused = |reason: &str| PlanError::RefusedPath {
            path: shown(source),
            origin: origin.clone(),
            reason: reason.to_owned(),
        };
        if self.list.iter().any(|mount| covers(&dest, self::dest(mount))) {
            return Err(refused("the policy puts something else at /dev/mail; take that away"));
        }
        match self.host.path(source, true) {
            PathFact::Dir => {}
            _ => {
                return Err(refused(
                    "it is no directory that this user can reach; is the state directory of apexd open to pass through?",
                ));
            }
        }
        let (access, kind) = (BindAccess::Read, Kind::Dir);
        self.list.push(Mount::Bind {
            source: source.to_owned(),
            dest,
            access,
            exec: false,
            kind,
            idmap: false,
            reason,
            origin,
        });
        Ok(())
    }

    /// A policy often lies where the command works, and must not be written by what it confines: the next run goes by it, and by the modes and profiles
    /// of the user. Where one of those directories is missing, its name is held.
    fn keep_policy(&mut self) -> Result<(), PlanError> {
        if !self.list.iter().any(is_writable) {
            return Ok(());
        }
        for file in self.sources.iter().map(Path::new).filter(|source| source.is_absolute()) {
            self.refuse_replaceable(file)?;
            let kept = self.kept(file, Kind::File);
            self.list.extend(kept);
        }
        for dir in self.config {
            match self.host.path(dir, true) {
                // Who lets a command write to /etc has lost more than a mode, and few could hold a name there.
                PathFact::Missing if is_system(dir) => {}
                PathFact::Missing => self.missing.push(Grant {
                    path: dir.clone(),
                    dest: dir.clone(),
                    reason: KEPT.to_owned(),
                    optional: false,
                    origin: Origin::flag("the policy"),
                }),
                PathFact::Dir => {
                    let kept = self.kept(dir, Kind::Dir);
                    self.list.extend(kept);
                }
                // Nothing is found below it, as it is.
                PathFact::File | PathFact::Symlink(_) | PathFact::Refused(_) => {}
            }
        }
        Ok(())
    }

    /// Wherever it shows in a writable bind it gets a read-only one of its own, and the directories on the way become mount points, so that no rename
    /// moves it away.
    fn kept(&self, path: &Path, kind: Kind) -> Vec<Mount> {
        let mut kept = Vec::new();
        for (inside, outside, holder) in self.appearances(path) {
            let Mount::Bind { dest, access: BindAccess::Write, exec, idmap, .. } = holder else { continue };
            let bind = |source: &Path, dest: PathBuf, access, kind| {
                // The question has the host open it, so that it can be bound.
                self.host.path(source, true);
                let (source, reason, origin) = (source.to_owned(), KEPT.to_owned(), Origin::flag("the policy"));
                Mount::Bind { source, dest, access, exec: *exec, kind, idmap: *idmap, reason, origin }
            };
            let pins = ancestors_between(dest, &inside).into_iter().rev().zip(outside.ancestors().skip(1));
            kept.extend(pins.map(|(pin, source)| bind(source, pin, BindAccess::Write, Kind::Dir)));
            kept.push(bind(&outside, inside, BindAccess::Read, kind));
        }
        kept
    }

    /// Names without what is behind them, outermost first.
    fn add_names(&mut self) -> Result<(), PlanError> {
        let mut names: Vec<&Grant> = self.filesystem.names.iter().collect();
        names.sort_by_key(|name| name.dest.components().count());
        for name in names {
            // By its own name: where a link leads to grants itself or is not inside.
            if let Some(deny) = self.filesystem.deny.iter().find(|deny| covers(&deny.path, &name.path)) {
                let (path, grant, deny) = (shown(&name.path), name.origin.clone(), deny.origin.clone());
                return Err(PlanError::Denied { path, grant, deny });
            }
            // A piece of the host above shows the name by itself. What is mounted below stands in a directory: were a link there, making its
            // place would follow the link out of the new root.
            let stands = |mount: &Mount| {
                !matches!(mount, Mount::Tmpfs { .. } | Mount::Dir { .. }) && covers(dest(mount), &name.dest)
                    || covers(&name.dest, dest(mount))
            };
            if is_made(&name.dest) || self.list.iter().any(stands) {
                continue;
            }
            let dest = name.dest.clone();
            match self.host.path(&name.path, false) {
                PathFact::Symlink(target) => self.list.push(Mount::Symlink { dest, target }),
                PathFact::Dir => self.list.push(Mount::Dir { dest }),
                PathFact::Missing if name.optional => {}
                PathFact::Missing => return Err(missing(name)),
                // Behind the name of a file there is nothing but its content, which `read` gives.
                PathFact::File | PathFact::Refused(_) if name.optional => {}
                PathFact::File => {
                    let reason = "it is a file, whose name alone is nothing; put it in `read`".to_owned();
                    return Err(refused(name, reason));
                }
                PathFact::Refused(reason) => return Err(refused(name, reason)),
            }
        }
        Ok(())
    }

    /// A link cannot be bound, so one on the way to the policy that the command could replace would lead the next run elsewhere.
    fn refuse_replaceable(&self, file: &Path) -> Result<(), PlanError> {
        let real = self.host.real(file);
        if real == file {
            return Ok(());
        }
        let target = |place: &Path| match self.host.path(place, false) {
            PathFact::Symlink(target) => Some(target),
            PathFact::Missing | PathFact::Dir | PathFact::File | PathFact::Refused(_) => None,
        };
        let is_replaceable = |link: &Link| {
            let holder = link.place.parent().unwrap_or(Path::new("/"));
            self.appearances(holder).iter().any(|(.., mount)| is_writable(mount))
        };
        match links(file, target).into_iter().find(is_replaceable) {
            Some(Link { place, .. }) => {
                Err(PlanError::ReplaceablePolicy { path: shown(file), link: shown(&place), real: shown(&real) })
            }
            None => Ok(()),
        }
    }

    /// Adds a grant unless a wider one already gives the same.
    fn grant(&mut self, grant: &Grant, access: BindAccess) -> Result<(), PlanError> {
        match self.refuse_denied(grant) {
            // A convenience of the mode: nobody can take it out there, and nothing is lost by obeying the deny.
            Err(_) if grant.optional && grant.origin.is_embedded() => return Ok(()),
            other => other?,
        }
        if access == BindAccess::Overlay && grant.dest == Path::new("/") {
            let reason = "no overlay can stand on the whole root; grant the directories that are written".to_owned();
            return Err(refused(grant, reason));
        }
        let follow = !grant.origin.is_embedded();
        let kind = match self.host.path(&grant.path, follow) {
            PathFact::Dir => Kind::Dir,
            PathFact::File => Kind::File,
            PathFact::Missing if grant.optional => return Ok(()),
            PathFact::Symlink(target) => {
                self.list.push(Mount::Symlink { dest: grant.dest.clone(), target });
                return Ok(());
            }
            PathFact::Missing => return Err(missing(grant)),
            PathFact::Refused(reason) => return Err(refused(grant, reason)),
        };
        self.bind(grant, access, kind);
        Ok(())
    }

    fn bind(&mut self, grant: &Grant, access: BindAccess, kind: Kind) {
        let exec = self.may_exec(&grant.dest);
        let wanted = (grant.path.as_path(), grant.dest.as_path(), access, exec);
        if self.list.iter().any(|mount| gives(mount, wanted) && !self.is_buried(dest(mount), &grant.dest)) {
            return;
        }
        self.list.push(Mount::Bind {
            source: grant.path.clone(),
            dest: grant.dest.clone(),
            access,
            exec,
            kind,
            idmap: self.own_host_ids && !is_system(&grant.path),
            reason: grant.reason.clone(),
            origin: grant.origin.clone(),
        });
    }

    /// Whether a private directory lies between a bind and a place below it, which then does not show.
    fn is_buried(&self, bind: &Path, place: &Path) -> bool {
        self.filesystem.tmpfs.iter().any(|tmpfs| covers(bind, &tmpfs.dest) && covers(&tmpfs.dest, place))
    }

    fn refuse_denied(&self, grant: &Grant) -> Result<(), PlanError> {
        for deny in &self.filesystem.deny {
            if covers(&deny.path, &grant.path) || covers(&deny.path, &self.host.real(&grant.path)) {
                return Err(PlanError::Denied {
                    path: shown(&grant.path),
                    grant: grant.origin.clone(),
                    deny: deny.origin.clone(),
                });
            }
        }
        Ok(())
    }

    /// A mount can be executable or not as a whole, and Landlock does not judge mmap: what lies below gets a mount of its own.
    fn may_exec(&self, dest: &Path) -> bool {
        self.filesystem.exec.iter().any(|exec| covers(&exec.dest, dest))
    }

    /// Gives each executable path within a bind that is not executable a bind of its own.
    fn split_executable(&mut self) {
        for grant in &self.filesystem.exec {
            let Some(Mount::Bind { source, dest, access, exec: false, idmap, .. }) = self.top(&grant.dest) else {
                continue;
            };
            let Ok(rest) = grant.dest.strip_prefix(dest) else { continue };
            let source = source.join(rest);
            let kind = match self.host.path(&source, true) {
                PathFact::Dir => Kind::Dir,
                PathFact::File => Kind::File,
                PathFact::Missing | PathFact::Symlink(_) | PathFact::Refused(_) => continue,
            };
            self.list.push(Mount::Bind {
                source,
                dest: grant.dest.clone(),
                access: *access,
                exec: true,
                kind,
                idmap: *idmap,
                reason: grant.reason.clone(),
                origin: grant.origin.clone(),
            });
        }
    }

    /// Adds what every root needs, puts parents before children and masks last.
    pub(super) fn finish(mut self, identity: &crate::plan::IdentityPlan) -> Result<Vec<Mount>, PlanError> {
        self.add_accounts(identity);
        // Stable: rules of the same depth keep their order.
        self.list.sort_by_key(|mount| dest(mount).components().count());
        // /dev before /proc: the jail parks its masks there.
        let after_root = usize::from(self.list.first().is_some_and(|mount| dest(mount) == Path::new("/")));
        self.list.insert(after_root, Mount::Dev { shm_size_bytes: self.tmp_size_bytes });
        if self.filesystem.proc != ProcView::None {
            self.list.insert(after_root + 1, Mount::Proc { view: self.filesystem.proc });
        }
        let masks = self.masks()?;
        self.list.extend(masks);
        Ok(self.list)
    }

    /// Small files that programs look themselves and `localhost` up in. They name nobody and nothing of the host; where the policy
    /// shows the host's own, those stand.
    fn add_accounts(&mut self, identity: &crate::plan::IdentityPlan) {
        if !self.list.iter().any(|mount| covers(Path::new("/etc"), dest(mount))) {
            return;
        }
        let (uid, gid) = (identity.uid, identity.gid);
        let user = |name: &str, id: u32| (id != uid).then(|| format!("{name}:x:{id}:{id}::/:/usr/sbin/nologin\n"));
        let passwd =
            [user("root", 0), Some(format!("sandbox:x:{uid}:{gid}:sandbox:/tmp:/bin/sh\n")), user("nobody", 65534)];
        let group = |name: &str, id: u32| (id != gid).then(|| format!("{name}:x:{id}:\n"));
        let groups = [group("root", 0), Some(format!("sandbox:x:{gid}:\n")), group("nogroup", 65534)];
        let hosts = format!("127.0.0.1 localhost {}\n::1 localhost\n", identity.hostname);
        let files = [passwd.into_iter().flatten().collect::<String>(), groups.into_iter().flatten().collect(), hosts];
        for (file, content) in MADE_FILES.into_iter().zip(files) {
            let dest = PathBuf::from(file);
            if !self.shows(&dest) {
                self.list.push(Mount::File { dest, content });
            }
        }
    }

    fn masks(&self) -> Result<Vec<Mount>, PlanError> {
        let mut masks = Vec::new();
        for hide in &self.filesystem.hide {
            for (inside, outside, _) in self.appearances(&hide.path) {
                let kind = match self.host.path(&outside, true) {
                    PathFact::Dir => Kind::Dir,
                    PathFact::File => Kind::File,
                    PathFact::Missing | PathFact::Symlink(_) | PathFact::Refused(_) => continue,
                };
                masks.push(Mount::Hide { dest: inside, kind, origin: hide.origin.clone() });
            }
        }
        let mut pinned = BTreeSet::new();
        let own = self.missing.iter().map(|missing| (missing, true));
        for (deny, is_own) in self.filesystem.deny.iter().map(|deny| (deny, false)).chain(own) {
            for (inside, outside, holder) in self.appearances(&deny.path) {
                if is_own && !is_writable(holder) {
                    continue;
                }
                let mut mask = self.deny(&deny.origin, inside, outside, holder)?;
                // A name that a mode denies and the sandbox cannot create needs no file on the host to hold it.
                let is_on_overlay = matches!(holder, Mount::Bind { access: BindAccess::Overlay, .. });
                let needs_hold = !(is_read_only(holder) || is_on_overlay) || !deny.origin.is_embedded();
                if matches!(mask, Mount::Deny { kind: None, .. }) && !needs_hold {
                    continue;
                }
                // Below a denied path nothing is left to be denied, and several missing names may have one missing directory.
                let is_denied = |other: &Mount| matches!(other, Mount::Deny { .. }) && covers(dest(other), dest(&mask));
                if masks.iter().any(is_denied) {
                    continue;
                }
                if let Mount::Deny { pins, .. } = &mut mask {
                    // A pin copies every mount below it: once is enough.
                    pins.retain(|pin| pinned.insert(pin.clone()));
                }
                masks.push(mask);
            }
        }
        Ok(masks)
    }

    /// Every place inside where a path of the host shows, through whichever bind.
    fn appearances(&self, path: &Path) -> Vec<(PathBuf, PathBuf, &Mount)> {
        // Links lead to the real path, which is masked; a mask cannot be mounted on a link itself.
        let real = self.host.real(path);
        let mut found: Vec<(PathBuf, PathBuf, &Mount)> = Vec::new();
        for mount in &self.list {
            let (inside, outside) = match mount {
                Mount::Bind { source, dest, .. } => {
                    let Ok(rest) = real.strip_prefix(self.host.real(source)) else { continue };
                    (join(dest, rest), join(source, rest))
                }
                Mount::Tmpfs { dest, .. } if covers(dest, path) && dest != path => (path.to_owned(), PathBuf::new()),
                _ => continue,
            };
            let is_top = self.top(&inside).is_some_and(|top| std::ptr::eq(top, mount));
            if is_top && found.iter().all(|(known, ..)| *known != inside) {
                found.push((inside, outside, mount));
            }
        }
        found
    }

    /// The mount that a path inside ends up in.
    fn top(&self, path: &Path) -> Option<&Mount> {
        self.list.iter().filter(|mount| covers(dest(mount), path)).max_by_key(|mount| dest(mount).components().count())
    }

    fn deny(&self, origin: &Origin, inside: PathBuf, outside: PathBuf, holder: &Mount) -> Result<Mount, PlanError> {
        let base = dest(holder);
        let mut inside = inside;
        let mut outside = outside;
        let mut kind;
        if outside.as_os_str().is_empty() {
            // In a fresh tmpfs only the way to other mounts exists: the first component that is none holds the name.
            inside = self.first_free(base, &inside);
            kind = self.leads_to_mount(&inside).then_some(Kind::Dir);
        } else {
            kind = self.kind_at(&outside);
            // Nothing there: the first missing component holds the name, so that nothing can come into being below it.
            while kind.is_none() && inside.parent() != Some(base) {
                let (Some(up_inside), Some(up_outside)) = (inside.parent(), outside.parent()) else { break };
                kind = self.kind_at(up_outside);
                if kind == Some(Kind::Dir) {
                    kind = None;
                    break;
                }
                // A file in the way is often the one with which another sandbox holds the name. It is denied like a missing one.
                (inside, outside) = (up_inside.to_owned(), up_outside.to_owned());
            }
        }
        let pins = if is_read_only(holder) { Vec::new() } else { ancestors_between(base, &inside) };
        Ok(Mount::Deny { dest: inside, source: outside, kind, pins, origin: origin.clone() })
    }

    /// The shortest path below `base` towards `path` on which no mount lies; `path` itself when there is none.
    fn first_free(&self, base: &Path, path: &Path) -> PathBuf {
        let mut way: Vec<&Path> = path.ancestors().take_while(|ancestor| *ancestor != base).collect();
        way.reverse();
        way.into_iter().find(|step| !self.leads_to_mount(step)).unwrap_or(path).to_owned()
    }

    fn leads_to_mount(&self, path: &Path) -> bool {
        self.list.iter().any(|mount| covers(path, dest(mount)))
    }

    fn kind_at(&self, path: &Path) -> Option<Kind> {
        match self.host.path(path, true) {
            PathFact::Dir => Some(Kind::Dir),
            PathFact::File | PathFact::Symlink(_) | PathFact::Refused(_) => Some(Kind::File),
            PathFact::Missing => None,
        }
    }
}

impl View for Mounts<'_> {
    fn shows(&self, path: &Path) -> bool {
        self.list.iter().any(|mount| match mount {
            Mount::Bind { source, dest, .. } => source == dest && covers(dest, path),
            Mount::Symlink { dest, .. } => covers(dest, path),
            _ => false,
        })
    }

    fn binds(&self, path: &Path) -> bool {
        self.list.iter().any(|mount| match mount {
            Mount::Bind { dest, .. } | Mount::Symlink { dest, .. } => covers(dest, path),
            _ => false,
        })
    }

    /// The way to what is granted is there too.
    fn has(&self, path: &Path) -> bool {
        let leads_to = |mount: &Mount| dest(mount) != path && covers(path, dest(mount));
        self.list.iter().any(|mount| {
            leads_to(mount)
                || match mount {
                    Mount::Bind { source, dest, .. } => path.strip_prefix(dest).is_ok_and(|rest| {
                        rest.as_os_str().is_empty() || self.host.path(&source.join(rest), true) == PathFact::Dir
                    }),
                    Mount::Symlink { dest, .. } => dest == path,
                    Mount::Dir { dest } | Mount::Tmpfs { dest, .. } => dest == path,
                    Mount::File { .. }
                    | Mount::Proc { .. }
                    | Mount::Dev { .. }
                    | Mount::Hide { .. }
                    | Mount::Deny { .. } => false,
                }
        }) || builtin_dirs().iter().any(|dir| dir == path)
    }

    fn grant_command(&mut self, file: &Path) -> Result<(), PlanError> {
        let grant = Grant {
            path: file.to_owned(),
            dest: file.to_owned(),
            reason: "the command itself".to_owned(),
            optional: false,
            origin: Origin::flag("the command"),
        };
        self.refuse_denied(&grant)?;
        self.list.push(Mount::Bind {
            source: grant.path,
            dest: grant.dest,
            access: BindAccess::Read,
            exec: true,
            kind: Kind::File,
            idmap: self.own_host_ids && !is_system(file),
            reason: grant.reason,
            origin: grant.origin,
        });
        Ok(())
    }
}

fn missing(grant: &Grant) -> PlanError {
    PlanError::MissingPath { path: shown(&grant.path), origin: grant.origin.clone() }
}

fn refused(grant: &Grant, reason: String) -> PlanError {
    PlanError::RefusedPath { path: shown(&grant.path), origin: grant.origin.clone(), reason }
}

/// Whether the sandbox's own root has, or leads to, something else at a path.
fn is_made(path: &Path) -> bool {
    MADE_FILES.iter().any(|file| covers(path, Path::new(file)))
        || ["/dev", "/proc"].iter().any(|dir| covers(Path::new(dir), path))
}

/// Whether an existing mount already gives what is wanted, at the same place and from the same source.
fn gives(mount: &Mount, (path, dest, access, exec): (&Path, &Path, BindAccess, bool)) -> bool {
    let Mount::Bind { source, dest: have_dest, access: have, exec: have_exec, .. } = mount else { return false };
    let (Ok(rest), Ok(have_rest)) = (path.strip_prefix(source), dest.strip_prefix(have_dest)) else { return false };
    rest == have_rest
        && (*have == access || access == BindAccess::Read && rest.as_os_str().is_empty())
        && *have_exec == exec
}

/// The place of a mount inside.
pub(super) fn dest(mount: &Mount) -> &Path {
    match mount {
        Mount::Bind { dest, .. }
        | Mount::Symlink { dest, .. }
        | Mount::Dir { dest }
        | Mount::File { dest, .. }
        | Mount::Tmpfs { dest, .. }
        | Mount::Hide { dest, .. }
        | Mount::Deny { dest, .. } => dest,
        Mount::Proc { .. } => Path::new("/proc"),
        Mount::Dev { .. } => Path::new("/dev"),
    }
}

fn is_writable(mount: &Mount) -> bool {
    matches!(mount, Mount::Bind { access: BindAccess::Write, .. })
}

fn is_read_only(mount: &Mount) -> bool {
    matches!(mount, Mount::Bind { access: BindAccess::Read, .. })
}

/// `base.join("")` would end in a slash.
fn join(base: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() { base.to_owned() } else { base.join(rest) }
}

/// The directories strictly between a mount point and a path below it, outermost first.
fn ancestors_between(base: &Path, path: &Path) -> Vec<PathBuf> {
    let is_between = |ancestor: &&Path| *ancestor != base && covers(base, ancestor);
    let mut between: Vec<PathBuf> = path.ancestors().skip(1).take_while(is_between).map(Path::to_owned).collect();
    between.reverse();
    between
}

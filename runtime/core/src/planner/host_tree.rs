//! The host's own tree under Landlock alone: what isolation level partial has instead of a root of its own.
//!
//! Input: the policy's rules about files and the host. Output: Landlock rules by real paths. Landlock grants and takes nothing out, so a readable
//! grant that holds what is denied or hidden becomes rules for everything around it: its directories on the way cannot be listed, and names that
//! come later are refused. In a writable grant that cannot be said, as what is made there would be in no rule: such a policy is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::command::View;
use super::{PlanError, covers, is_system, shown};
use crate::host::{Host, PathFact};
use crate::plan::LandlockRule;
use crate::policy::{Grant, IsolationLevel, Origin, Policy, ProcView};

/// Devices that every program may expect. The rest of the host's /dev, terminals of its user among it, belongs to no grant that is wider than /dev.
const DEVICES: [&str; 6] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

/// Rules of one plan. Each costs the start a few system calls.
const RULES_MAX: usize = 4096;

/// What the rules are made from.
pub(super) struct HostTree<'a> {
    policy: &'a Policy,
    host: &'a dyn Host,
    /// The command's own file, where no rule covers it.
    command: Option<PathBuf>,
}

/// A path that no rule may give.
struct Hole {
    path: PathBuf,
    origin: Origin,
    kind: HoleKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum HoleKind {
    /// Granting it is an error.
    Denied,
    /// Granting it grants nothing.
    Hidden,
    /// Part of no wider grant.
    Apart,
}

/// What a rule gives.
#[derive(Clone, Copy, Default)]
struct Rights {
    read: bool,
    write: bool,
    exec: bool,
    ioctl: bool,
}

const READ: Rights = Rights { read: true, write: false, exec: false, ioctl: false };
const WRITE: Rights = Rights { write: true, ..READ };
const EXEC: Rights = Rights { read: false, write: false, exec: true, ioctl: false };

#[derive(Default)]
struct Rules(BTreeMap<PathBuf, Rights>);

impl Rules {
    fn add(&mut self, path: PathBuf, rights: Rights) {
        let known = self.0.entry(path).or_default();
        known.read |= rights.read;
        known.write |= rights.write;
        known.exec |= rights.exec;
        known.ioctl |= rights.ioctl;
    }
}

impl<'a> HostTree<'a> {
    pub(super) fn new(policy: &'a Policy, host: &'a dyn Host) -> Self {
        HostTree { policy, host, command: None }
    }

    /// Nothing at level none, which has no Landlock.
    pub(super) fn rules(self) -> Result<Vec<LandlockRule>, PlanError> {
        if self.policy.level == IsolationLevel::None {
            return Ok(Vec::new());
        }
        let files = &self.policy.filesystem;
        let holes = self.holes();
        let mut rules = Rules::default();
        for grant in &files.write {
            self.grant(&mut rules, &holes, grant, WRITE)?;
        }
        for grant in &files.read {
            self.grant(&mut rules, &holes, grant, READ)?;
        }
        for grant in &files.exec {
            // Where nothing is there is nothing to execute.
            if self.host.path(&grant.path, true) != PathFact::Missing {
                self.grant(&mut rules, &holes, grant, EXEC)?;
            }
        }
        for device in DEVICES {
            rules.add(PathBuf::from(device), Rights { ioctl: true, ..WRITE });
        }
        if files.proc != ProcView::None {
            rules.add(PathBuf::from("/proc"), READ);
        }
        if let Some(file) = self.command {
            rules.add(self.host.real(&file), Rights { exec: true, ..READ });
        }
        Ok(rules.0.into_iter().map(|(path, rights)| rule(path, rights)).collect())
    }

    /// What is denied and hidden, and what a run goes by, which its command must not write.
    fn holes(&self) -> Vec<Hole> {
        let files = &self.policy.filesystem;
        let hole =
            |path: &Path, origin: &Origin, kind| Hole { path: self.host.real(path), origin: origin.clone(), kind };
        let denied = files.deny.iter().map(|deny| hole(&deny.path, &deny.origin, HoleKind::Denied));
        let hidden = files.hide.iter().map(|hide| hole(&hide.path, &hide.origin, HoleKind::Hidden));
        let devices = hole(Path::new("/dev"), &Origin::flag("the host"), HoleKind::Apart);
        denied.chain(hidden).chain([devices]).collect()
    }

    /// What of the denied and hidden is there, and lies in no other such path.
    pub(super) fn withheld(&self) -> Vec<PathBuf> {
        if self.policy.level == IsolationLevel::None {
            return Vec::new();
        }
        let holes = self.holes();
        let is_inner = |path: &Path| holes.iter().any(|hole| hole.path != path && covers(&hole.path, path));
        let there = holes.iter().filter(|hole| hole.kind != HoleKind::Apart && !is_inner(&hole.path));
        let mut paths: Vec<PathBuf> = there.map(|hole| hole.path.clone()).collect();
        paths.retain(|path| self.host.path(path, true) != PathFact::Missing);
        paths.sort();
        paths.dedup();
        paths
    }

    /// Files and directories of the policy itself.
    fn policy_files(&self) -> impl Iterator<Item = &Path> {
        let sources = self.policy.sources.iter().map(Path::new).filter(|source| source.is_absolute());
        let is_kept = |dir: &&Path| self.host.path(dir, true) != PathFact::Missing || !is_system(dir);
        sources.chain(self.policy.config.iter().map(PathBuf::as_path).filter(is_kept))
    }

    fn grant(&self, rules: &mut Rules, holes: &[Hole], grant: &Grant, rights: Rights) -> Result<(), PlanError> {
        let is_default = grant.origin.is_embedded();
        let real = self.host.real(&grant.path);
        for hole in holes.iter().filter(|hole| hole.kind != HoleKind::Apart) {
            if !covers(&hole.path, &real) {
                continue;
            }
            if hole.kind == HoleKind::Hidden || (grant.optional && is_default) {
                return Ok(());
            }
            let (path, grant, deny) = (shown(&grant.path), grant.origin.clone(), hole.origin.clone());
            return Err(PlanError::Denied { path, grant, deny });
        }
        match self.host.path(&grant.path, !is_default) {
            PathFact::Dir | PathFact::File => {}
            // Landlock judges where a link leads, and that is for a rule of its own.
            PathFact::Symlink(_) => return Ok(()),
            PathFact::Missing if grant.optional => return Ok(()),
            PathFact::Missing => {
                return Err(PlanError::MissingPath { path: shown(&grant.path), origin: grant.origin.clone() });
            }
            PathFact::Refused(reason) => {
                let (path, origin) = (shown(&grant.path), grant.origin.clone());
                return Err(PlanError::RefusedPath { path, origin, reason });
            }
        }
        let inner: Vec<&Hole> = holes.iter().filter(|hole| hole.path != real && covers(&real, &hole.path)).collect();
        if rights.write {
            self.check_writable(grant, &real, &inner)?;
        }
        // What a mode denies and nobody has, nobody inside can make.
        let is_there =
            |hole: &&Hole| !hole.origin.is_embedded() || self.host.path(&hole.path, true) != PathFact::Missing;
        let inner: Vec<&Hole> = inner.into_iter().filter(is_there).collect();
        self.spread(rules, &real, &inner, (rights, grant))
    }

    /// Whether a grant can be written without a hole in it.
    fn check_writable(&self, grant: &Grant, real: &Path, inner: &[&Hole]) -> Result<(), PlanError> {
        let policy = self.policy_files().find(|file| covers(real, &self.host.real(file)));
        let policy = policy.map(|file| (shown(file), Origin::flag("the policy")));
        let hole = inner.first().map(|hole| (shown(&hole.path), hole.origin.clone()));
        match hole.or(policy) {
            Some((path, deny)) => Err(PlanError::Inexpressible { path, grant: grant.origin.clone(), deny }),
            None => Ok(()),
        }
    }

    /// Gives `path` but for the holes beneath it.
    fn spread(
        &self,
        rules: &mut Rules,
        path: &Path,
        holes: &[&Hole],
        (rights, grant): (Rights, &Grant),
    ) -> Result<(), PlanError> {
        let mut pending = vec![path.to_owned()];
        while let Some(path) = pending.pop() {
            if holes.iter().any(|hole| covers(&hole.path, &path)) {
                continue;
            }
            if !holes.iter().any(|hole| covers(&path, &hole.path)) {
                rules.add(path, rights);
                if rules.0.len() > RULES_MAX {
                    let (path, origin) = (shown(&grant.path), grant.origin.clone());
                    return Err(PlanError::TooManyNames { path, max: RULES_MAX, origin });
                }
                continue;
            }
            // What cannot be listed is not given.
            let names = self.host.names(&path).unwrap_or_default();
            pending.extend(names.iter().map(|name| path.join(name)));
        }
        Ok(())
    }

    /// Whether a rule covers a path, before what is denied is taken out.
    fn is_granted(&self, path: &Path) -> bool {
        let files = &self.policy.filesystem;
        let real = self.host.real(path);
        self.policy.level == IsolationLevel::None
            || files.read.iter().chain(&files.write).any(|grant| covers(&self.host.real(&grant.path), &real))
    }
}

impl View for HostTree<'_> {
    fn shows(&self, path: &Path) -> bool {
        self.is_granted(path)
    }

    fn binds(&self, path: &Path) -> bool {
        self.is_granted(path)
    }

    /// Landlock does not judge where a process stands.
    fn has(&self, path: &Path) -> bool {
        self.host.path(path, true) == PathFact::Dir
    }

    fn grant_command(&mut self, file: &Path) -> Result<(), PlanError> {
        let real = self.host.real(file);
        if let Some(deny) = self.policy.filesystem.deny.iter().find(|deny| covers(&self.host.real(&deny.path), &real)) {
            let (path, grant) = (shown(file), Origin::flag("the command"));
            return Err(PlanError::Denied { path, grant, deny: deny.origin.clone() });
        }
        self.command = Some(file.to_owned());
        Ok(())
    }
}

fn rule(path: PathBuf, rights: Rights) -> LandlockRule {
    let Rights { read, write, exec, ioctl } = rights;
    LandlockRule { path, list: read, read, write, exec, ioctl }
}

/// What the policy says by default and the level has no layer for.
pub(super) fn given_up(policy: &Policy) -> Vec<String> {
    if policy.level.is_full() {
        return Vec::new();
    }
    let files = &policy.filesystem;
    let mut words: Vec<String> =
        files.tmpfs.iter().map(|tmpfs| format!("a private {} ({})", tmpfs.dest.display(), tmpfs.origin)).collect();
    if files.proc != ProcView::None {
        words.push("a /proc of its own".to_owned());
    }
    if policy.level == IsolationLevel::None {
        let said = |what: &'static str, rules: &'static str| {
            move |rule: &Grant| format!("{} {what} ({rules} {})", rule.path.display(), rule.origin)
        };
        words.extend(files.deny.iter().map(said("is denied", "by")));
        words.extend(files.hide.iter().map(said("is hidden", "by")));
    }
    words
}

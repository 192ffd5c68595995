//! An Apex policy on top of a bundle, asked for by annotations. It only takes away: the container has what the bundle gives it and the policy lets it keep.
//!
//! Input: the annotations `dev.apex.*` of a bundle. Output: a [`Narrowing`], which the parent applies to the bundle ([`Narrowing::narrow`]) and the init
//! to itself ([`Narrowing::prepare`] in the container's tree, [`Prepared::enforce`] before the bundle's own filter).
//!
//! What the policy says of paths means the container's own paths. Namespaces, mounts, ids, environment and terminal stay the bundle's. What the
//! mode has by default and nothing here can hold is left out and told in [`Narrowing::given_up`]; the same from the policy itself is refused.

mod annotations;
mod narrow;
mod network;
mod seal;
mod source;

use std::path::{Path, PathBuf};

use apex_core::layer::{Layer, Requirement};
use apex_core::policy::{self as core, Inputs, IsolationLevel, Mode, Network, Policy};
use apex_core::seccomp::{Notify, TableError, groups};
use apex_jail::seccomp::{CacheDir, Program};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

pub use annotations::{MODE, POLICY, WATCH};
pub use seal::Prepared;

use annotations::Asked;

/// Why a policy cannot be honoured. The container is not made then.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// An annotation that means nothing.
    #[error("annotation {name}: there is none of this name, and what it asks for would not be held; known are {}", annotations::NAMES.join(", "))]
    UnknownAnnotation {
        /// Its name.
        name: String,
    },
    /// A value that means nothing.
    #[error("annotation {name}: `{value}` is not {wanted}")]
    Value {
        /// The annotation.
        name: &'static str,
        /// What it says.
        value: String,
        /// What it can say.
        wanted: &'static str,
    },
    /// Watching needs somebody who stays.
    #[error(
        "annotation {WATCH}: containers are watched by apexd, not by this runtime, which does not stay; remove the annotation or set it to off"
    )]
    Watch,
    /// The policy itself is wrong.
    #[error("annotation {POLICY}: the policy does not resolve")]
    Resolve(#[from] core::PolicyError),
    /// It asks for no confinement.
    #[error(
        "annotation {POLICY}: isolation level none confines nothing, and a container is confined; take the level out of the policy"
    )]
    Level,
    /// Something that nobody here can do.
    #[error("annotation {POLICY}: {what} cannot be had in a container of this runtime; {remedy}")]
    Unsupported {
        /// What the policy says.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A path that is shown under another name.
    #[error(
        "annotation {POLICY}: {origin} shows {} as {}; in a container its mounts decide what is shown where, so remove `dest`",
        path.display(), dest.display()
    )]
    Moved {
        /// The path.
        path: PathBuf,
        /// Where the rule wants it.
        dest: PathBuf,
        /// The rule.
        origin: core::Origin,
    },
    /// No network is asked for, and the host's is there.
    #[error(
        "the policy gives no network, and the bundle has no network namespace of its own; add one to the bundle, or `network = \"host\"` to the policy, which leaves the bundle's network as it is"
    )]
    HostNetwork,
    /// No network is asked for, and the namespace has one.
    #[error(
        "the policy gives no network, and the container's network namespace has {interface}; leave it empty, or say `network = \"host\"` in the policy, which leaves the bundle's network as it is"
    )]
    Interface {
        /// Its name.
        interface: String,
    },
    /// The kernel did not tell.
    #[error("the policy gives no network, and the interfaces of the container could not be listed")]
    Interfaces(#[source] apex_sys::Errno),
    /// The filter cannot be made.
    #[error("annotation {POLICY}: the system calls of the policy")]
    Syscalls(#[from] TableError),
    /// The filter cannot be compiled.
    #[error("annotation {POLICY}: the system call filter of the policy")]
    Seccomp(#[from] apex_jail::seccomp::SeccompError),
    /// The kernel has no Landlock that can stand alone.
    #[error(
        "the policy's rules about files need Landlock ABI {needed} (Linux 6.2), and this kernel has {found}; boot one that has it, with landlock in lsm="
    )]
    Landlock {
        /// What is needed.
        needed: u32,
        /// What is there.
        found: u32,
    },
    /// What is denied could not be found.
    #[error(
        "the policy denies paths, and without a procfs at /proc of the container their links cannot be followed; add the mount to the bundle"
    )]
    NoProc,
    /// The rules do not fit the container's tree.
    #[error("the policy does not fit the container's files")]
    Plan(#[from] apex_core::planner::PlanError),
    /// The kernel refused a rule.
    #[error("making the Landlock rule for {}", rule.display())]
    Rule {
        /// Its path.
        rule: PathBuf,
        /// The kernel's answer.
        source: apex_sys::Errno,
    },
}

/// A policy that was resolved for a bundle.
#[derive(Debug)]
pub struct Narrowing {
    policy: Policy,
    program: Option<Program>,
    scoped: bool,
    given_up: Vec<String>,
}

/// Resolves the policy that a bundle's annotations ask for; `None` when they ask for none. `bundle` is the bundle's directory.
///
/// Policy files are read by this process, which is often root, for whoever writes annotations. So they are only read where the administrator (or
/// the runtime's user) and the maker of the bundle put them: below `/etc/apex`, the user's `~/.config/apex`, or in the bundle.
///
/// # Errors
/// Whatever cannot be honoured.
pub fn resolve(spec: &Spec, bundle: &Path) -> Result<Option<Narrowing>, PolicyError> {
    let Some(asked) = annotations::read(spec)? else { return Ok(None) };
    let policy = policy_of(&asked, spec, bundle)?;
    let given_up = check(&policy, &asked, spec, bundle)?;
    let is_off = |layer| policy.layers.get(&layer) == Some(&Requirement::Off);
    let program = if is_off(Layer::Seccomp) {
        None
    } else {
        let table = apex_core::seccomp::table(&policy.syscalls, Notify::default())?;
        Some(apex_jail::seccomp::program(&table, CacheDir::find().as_ref())?)
    };
    let scoped = !has(spec, LinuxNamespaceType::Pid) || !has(spec, LinuxNamespaceType::Network);
    Ok(Some(Narrowing { policy: in_container(policy), program, scoped, given_up }))
}

fn policy_of(asked: &Asked, spec: &Spec, bundle: &Path) -> Result<Policy, PolicyError> {
    let groups: Vec<&str> = groups::iter().map(|group| group.name).collect();
    let dirs = source::Places::of(bundle);
    let inputs = Inputs {
        mode: asked.mode,
        profile: asked.profile.clone(),
        policy_file: asked.file.clone(),
        flags: core::Flags::default(),
        home: Some(home(spec)),
        cwd: workdir(spec),
        tmpdir: None,
        system_config: Some(PathBuf::from(source::SYSTEM_CONFIG)),
        user_config: dirs.user.clone(),
        groups: &groups,
    };
    Ok(core::resolve(&inputs, &mut |path: &Path| dirs.load(path))?)
}

/// Stands for the working directory of a container that starts in `/`: what a mode gives of "the work at hand" is not meant to be everything.
const NO_WORKDIR: &str = "/.apex-no-workdir";

fn workdir(spec: &Spec) -> PathBuf {
    let cwd = spec.process().as_ref().map(|process| without_dots(process.cwd()));
    cwd.filter(|cwd| cwd != Path::new("/")).unwrap_or_else(|| PathBuf::from(NO_WORKDIR))
}

/// Without `.`, `..` and slashes that mean nothing, by the letters alone.
fn without_dots(path: &Path) -> PathBuf {
    apex_core::host::names_backwards(path).into_iter().rev().fold(PathBuf::from("/"), |mut normal, name| {
        if name == ".." {
            normal.pop();
        } else {
            normal.push(name);
        }
        normal
    })
}

/// The home of the container's user, as far as the bundle tells.
fn home(spec: &Spec) -> PathBuf {
    let process = spec.process().as_ref();
    let env = process.and_then(|process| process.env().as_deref()).unwrap_or_default();
    let named = env.iter().rev().find_map(|pair| pair.strip_prefix("HOME=")).map(PathBuf::from);
    let is_root = process.is_none_or(|process| process.user().uid() == 0);
    named.filter(|home| home.is_absolute()).unwrap_or_else(|| PathBuf::from(if is_root { "/root" } else { "/home" }))
}

/// Refuses what cannot be held; the words say what of the mode's defaults is left out.
fn check(policy: &Policy, asked: &Asked, spec: &Spec, bundle: &Path) -> Result<Vec<String>, PolicyError> {
    if policy.level == IsolationLevel::None {
        return Err(PolicyError::Level);
    }
    if !policy.mailboxes.is_empty() {
        let remedy = "take `[[mailboxes]]` out: apexd has them";
        return Err(PolicyError::Unsupported { what: "a mailbox", remedy });
    }
    let files = &policy.filesystem;
    if let Some(moved) = files.read.iter().chain(&files.write).chain(&files.exec).find(|grant| grant.path != grant.dest)
    {
        let (path, dest, origin) = (moved.path.clone(), moved.dest.clone(), moved.origin.clone());
        return Err(PolicyError::Moved { path, dest, origin });
    }
    let by_mode = |grant: &&core::Grant| grant.origin.source.starts_with("modes/");
    let here = |grant: &&core::Grant| grant.path.starts_with(NO_WORKDIR);
    let all = || files.read.iter().chain(&files.write).chain(&files.exec).filter(here);
    if all().any(|grant| !by_mode(&grant)) {
        let remedy = "the container starts in `/`, so name the directory itself, or have the bundle start in it";
        return Err(PolicyError::Unsupported { what: "`${CWD}`", remedy });
    }
    if policy.network == Network::None && !has(spec, LinuxNamespaceType::Network) {
        return Err(PolicyError::HostNetwork);
    }
    let mut given_up = Vec::new();
    if all().next().is_some() {
        given_up.push("the mode's grants of the working directory, which is `/`".to_owned());
    }
    if policy.resources.wall_time_ms.is_some() {
        // No process of the runtime stays that could end the container. What the mode alone says is a default.
        let plain = Asked { mode: Some(policy.mode), ..Asked::default() };
        let plain = policy_of(&plain, spec, bundle)?;
        if plain.resources.wall_time_ms != policy.resources.wall_time_ms || asked.profile.is_some() {
            let remedy = "take `wall_time` out: whoever starts the container ends it";
            return Err(PolicyError::Unsupported { what: "`wall_time`", remedy });
        }
        given_up.push("the end after the mode's `wall_time`".to_owned());
    }
    Ok(given_up)
}

/// The policy as it reads in a container's tree: private directories are the container's own of the same name, and so are the places that a container's
/// /dev has for shared memory, queues and terminals. Its files on the host mean nothing in there.
fn in_container(mut policy: Policy) -> Policy {
    policy.level = IsolationLevel::Partial;
    policy.sources.clear();
    policy.config.clear();
    for grants in [&mut policy.filesystem.read, &mut policy.filesystem.write, &mut policy.filesystem.exec] {
        grants.retain(|grant| !grant.path.starts_with(NO_WORKDIR));
        // A container need not have every directory of a host; what a file of its own names must be there.
        for grant in grants
            .iter_mut()
            .filter(|grant| ["modes/", "profiles/"].iter().any(|built_in| grant.origin.source.starts_with(built_in)))
        {
            grant.optional = true;
        }
    }
    let private = policy.filesystem.tmpfs.iter().map(|tmpfs| (tmpfs.dest.clone(), tmpfs.origin.clone()));
    let devices = ["/dev/shm", "/dev/mqueue", "/dev/pts", "/dev/console"];
    let devices = devices.map(|path| (PathBuf::from(path), core::Origin::flag("the container")));
    let grants: Vec<_> = private.chain(devices).map(|(path, origin)| own(path, origin)).collect();
    policy.filesystem.write.extend(grants);
    policy
}

fn own(path: PathBuf, origin: core::Origin) -> core::Grant {
    let reason = "the container's own".to_owned();
    core::Grant { dest: path.clone(), path, reason, optional: true, origin }
}

/// Whether the bundle has a namespace of a kind, made or joined.
fn has(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    namespaces.iter().any(|namespace| namespace.typ() == kind)
}

impl Narrowing {
    /// The mode.
    pub fn mode(&self) -> Mode {
        self.policy.mode
    }

    /// Whether it has a system call filter.
    pub fn filters(&self) -> bool {
        self.program.is_some()
    }

    /// What the mode has by default and nothing here holds.
    pub fn given_up(&self) -> &[String] {
        &self.given_up
    }
}

#[cfg(test)]
mod tests;

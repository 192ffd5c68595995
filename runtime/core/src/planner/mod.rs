//! From a policy to a plan. Pure: it asks a [`Host`] and opens nothing itself.
//!
//! Input: a [`Policy`], a [`Request`], a [`Host`]. Output: a [`Plan`], or a [`PlanError`] that names the rule which cannot be met.

pub mod command;
mod host_tree;
mod mounts;
mod rules;

pub(crate) use mounts::MADE_FILES;

/// The Landlock ABI from which on there are scopes, the newest that a plan makes something of.
pub const LANDLOCK_SCOPES: u32 = 6;

/// The Landlock ABI from which on truncating is judged: without it the rules cannot stand alone, as at isolation level partial.
pub const LANDLOCK_ALONE: u32 = 3;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::host::{CgroupSupport, Host, PathFact};
use crate::layer::{Layer, Requirement};
use crate::plan::{
    CgroupPlan, CommandPlan, IdentityPlan, LandlockPlan, LandlockRule, Mount, OverlayPlan, Plan, Request, Rlimit,
};
use crate::policy::{IsolationLevel, Mode, Network, Origin, Policy, Resources, Tty, is_within};
use crate::seccomp::{self, Notify};
use crate::watch::Level;

/// Where the directory with apexd's socket for messages is put: in the sandbox's own /dev, which every mode has. A mode may hide /run/apex.
pub const MAIL_DIR: &str = "/dev/mail";
/// The variable that names the socket, and its value.
pub const MAIL_VARIABLE: (&str, &str) = ("APEX_MAIL", "/dev/mail/socket");

/// Version of the shape of [`Plan`].
pub const PLAN_VERSION: u32 = 1;

/// User and group inside for a caller who is root: an ordinary one, so that programs do not believe they may do what root may.
const UNPRIVILEGED_ID: u32 = 1000;

/// Why a policy cannot be met on this host.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// A granted path does not exist.
    #[error(
        "{path}: granted by {origin}, but it does not exist; create it, correct the rule, or mark it `optional = true`"
    )]
    MissingPath {
        /// The path.
        path: String,
        /// The rule.
        origin: Origin,
    },
    /// The policy is reached over a link that the command could replace.
    #[error(
        "{path}: {link} is a symbolic link in a directory where the command may write, so the policy could be another one at the next run; name {real} itself"
    )]
    ReplaceablePolicy {
        /// The policy.
        path: String,
        /// The link.
        link: String,
        /// Where it leads.
        real: String,
    },
    /// A granted path must not or cannot be used.
    #[error("{path}: granted by {origin}, but {reason}")]
    RefusedPath {
        /// The path.
        path: String,
        /// The rule.
        origin: Origin,
        /// What stands in the way and what to do.
        reason: String,
    },
    /// A path that is kept from the sandbox cannot be followed to where it leads, so what lies there would not be kept.
    #[error("{path}: kept from the sandbox by {origin}, but {reason}")]
    Unfollowed {
        /// The path.
        path: String,
        /// The rule.
        origin: Origin,
        /// What stands in the way and what to do.
        reason: String,
    },
    /// One rule grants what another denies.
    #[error("{path}: granted by {grant}, but {deny} denies it, and a deny always wins; remove one of the two rules")]
    Denied {
        /// The path.
        path: String,
        /// The granting rule.
        grant: Origin,
        /// The denying rule.
        deny: Origin,
    },
    /// A required layer is not to be had.
    #[error("layer {layer}: {reason}; {remedy}")]
    MissingLayer {
        /// The layer.
        layer: Layer,
        /// What stands in the way.
        reason: String,
        /// What to do.
        remedy: String,
    },
    /// The command is nowhere (exit 127).
    #[error(
        "{name}: command not found in PATH ({path}); give its full path, or grant the directory that holds it with --ro"
    )]
    CommandNotFound {
        /// Its name.
        name: String,
        /// The PATH that was searched.
        path: String,
    },
    /// One rule denies what another grants, and Landlock, which stands alone, cannot take it out.
    #[error(
        "{path}: {deny} keeps it from the sandbox, but {grant} makes what is around it writable, and at isolation level partial there is only Landlock, whose rules grant and take nothing out; grant for writing, or start in, a directory that does not hold it, or take `--level full`"
    )]
    Inexpressible {
        /// The path.
        path: String,
        /// The granting rule.
        grant: Origin,
        /// The rule that keeps it.
        deny: Origin,
    },
    /// A plan of the level cannot have this.
    #[error("--{option}: isolation level {level} has {why}; leave one of the two out")]
    NotAtLevel {
        /// The option.
        option: &'static str,
        /// The level.
        level: IsolationLevel,
        /// What is missing.
        why: &'static str,
    },
    /// Names around what is denied come to more rules than a plan can sensibly have.
    #[error(
        "{path}: around what is denied in it lie more than {max} names, each of which takes a rule at isolation level partial; grant less of it ({origin}), or take `--level full`"
    )]
    TooManyNames {
        /// The path.
        path: String,
        /// The bound.
        max: usize,
        /// The rule.
        origin: Origin,
    },
    /// No command was given.
    #[error("no command given; write it after the options: apex-run [OPTIONS] -- CMD [ARGS]")]
    NoCommand,
    /// The system calls that the policy asks for cannot be had.
    #[error(transparent)]
    Syscalls(#[from] seccomp::TableError),
    /// There are mailboxes, and nobody who has them.
    #[error(
        "the policy names mailbox `{name}`, and only apexd has mailboxes; start the sandbox with `apex run`, or take `[[mailboxes]]` out"
    )]
    NoMail {
        /// The first one.
        name: String,
    },
    /// The working directory asked for is not in the sandbox.
    #[error(
        "{path}: working directory is not in the sandbox; grant it with --ro or --rw, or choose another with --workdir"
    )]
    WorkdirNotGranted {
        /// The path.
        path: String,
    },
}

/// Resolves a policy against a host.
pub fn build(policy: &Policy, request: &Request, host: &dyn Host) -> Result<Plan, PlanError> {
    build_with(policy, request, host, None)
}

/// The same with every writable piece of the host under a layer that takes the writes: in `dir` when one is named, otherwise in memory.
pub fn build_on_overlay(
    policy: &Policy,
    request: &Request,
    host: &dyn Host,
    dir: Option<PathBuf>,
) -> Result<Plan, PlanError> {
    // What is written counts as memory of the sandbox, so the limit of its memory bounds it; without one the size of a tmpfs does.
    let size_bytes = policy.resources.memory_bytes.unwrap_or(OVERLAY_BYTES_DEFAULT);
    let overlay = match dir {
        None => OverlayPlan::Discarded { size_bytes },
        Some(dir) => OverlayPlan::Kept { idmap: host.gives_host_ids(), dir },
    };
    build_with(policy, request, host, Some(overlay))
}

/// Size of a layer in memory where the policy does not limit memory.
const OVERLAY_BYTES_DEFAULT: u64 = 4 << 30;

fn build_with(
    policy: &Policy,
    request: &Request,
    host: &dyn Host,
    overlay: Option<OverlayPlan>,
) -> Result<Plan, PlanError> {
    let mut layers = Layers::of(policy);
    check_level(policy, request, overlay.as_ref())?;
    let identity = identity(policy, host);
    let cgroup = cgroup(&policy.resources, &mut layers, host)?;
    let abi = landlock_abi(&mut layers, policy.level, host)?;
    timens(&mut layers, host)?;
    let env = command::environment(&policy.environment, host);
    let Tree { mounts, rules, withheld, command } = match policy.level {
        IsolationLevel::Full => own_tree(policy, request, host, env, (&identity, overlay.is_some()))?,
        IsolationLevel::Partial | IsolationLevel::None => host_tree(policy, request, host, env)?,
    };
    let wants_seccomp = layers.asked(Layer::Seccomp);
    Ok(Plan {
        version: PLAN_VERSION,
        mode: policy.mode,
        level: policy.level,
        given_up: host_tree::given_up(policy),
        withheld,
        sources: policy.sources.clone(),
        network: if layers.asked(Layer::Netns) { policy.network } else { Network::Host },
        rlimits: rlimits(&policy.resources, &layers, abi, cgroup.as_ref()),
        cgroup,
        capabilities: policy.capabilities.clone(),
        landlock: (abi > 0).then(|| LandlockPlan {
            abi,
            rules,
            // In an empty network of its own there is nobody to reach, and servers on its loopback are ordinary work.
            tcp_refused: policy.network == Network::None && abi >= 4 && !layers.asked(Layer::Netns),
            scoped: abi >= LANDLOCK_SCOPES,
        }),
        seccomp: wants_seccomp.then(|| filter(policy, request)).transpose()?,
        record: request.record,
        watch: request.watch,
        overlay,
        wall_time_ms: policy.resources.wall_time_ms,
        tty: match policy.tty {
            Tty::Auto => request.on_terminal,
            Tty::Yes => true,
            Tty::No => false,
        },
        fds: request.fds.clone(),
        mailboxes: policy.mailboxes.clone(),
        layers: layers.required,
        skipped: layers.skipped,
        identity,
        mounts,
        command,
    })
}

/// Options of a run that a level has nothing for.
fn check_level(policy: &Policy, request: &Request, overlay: Option<&OverlayPlan>) -> Result<(), PlanError> {
    let level = policy.level;
    let refuse = |option, why| Err(PlanError::NotAtLevel { option, level, why });
    match level {
        IsolationLevel::Partial | IsolationLevel::None if overlay.is_some() => {
            refuse("overlay", "the host's own tree, and no layer on top of it")
        }
        IsolationLevel::Partial | IsolationLevel::None if !policy.mailboxes.is_empty() => {
            refuse("mailboxes", "no place of its own where their socket could be")
        }
        IsolationLevel::None if request.record => refuse("why", "no filter that could tell what was refused"),
        IsolationLevel::Full | IsolationLevel::Partial | IsolationLevel::None => Ok(()),
    }
}

/// What a sandbox sees of files, and what runs there.
struct Tree {
    mounts: Vec<Mount>,
    withheld: Vec<PathBuf>,
    rules: Vec<LandlockRule>,
    command: CommandPlan,
}

/// A root of its own.
fn own_tree(
    policy: &Policy,
    request: &Request,
    host: &dyn Host,
    mut env: Vec<OsString>,
    (identity, on_overlay): (&IdentityPlan, bool),
) -> Result<Tree, PlanError> {
    let mut mounts = mounts::Mounts::new(policy, host, identity.own_host_ids, on_overlay).collect()?;
    if let Some(dir) = mail_dir(policy, request)? {
        mounts.add_mail(dir)?;
        command::set(&mut env, MAIL_VARIABLE);
    }
    let command = command::locate(request, &env, &mut mounts, host)?;
    let command = command::finish(command, request, env, &mounts, host)?;
    let mounts = mounts.finish(identity)?;
    let rules = rules::landlock(&mounts, &policy.filesystem.exec);
    Ok(Tree { mounts, withheld: Vec::new(), rules, command })
}

/// The host's own.
fn host_tree(policy: &Policy, request: &Request, host: &dyn Host, env: Vec<OsString>) -> Result<Tree, PlanError> {
    let mut tree = host_tree::HostTree::new(policy, host);
    let command = command::locate(request, &env, &mut tree, host)?;
    let command = command::finish(command, request, env, &tree, host)?;
    let withheld = tree.withheld();
    Ok(Tree { mounts: Vec::new(), withheld, rules: tree.rules()?, command })
}

/// Landlock rules of a policy over a tree that somebody else made and that the caller stands in, a container's: what the policy says of paths means the
/// paths of that tree. `program` is the real path of the file that will be executed; where no rule grants it, it is granted by itself.
///
/// # Errors
/// A rule that cannot be met in the tree, or that Landlock cannot say.
pub fn tree_rules(policy: &Policy, program: &Path, host: &dyn Host) -> Result<Vec<LandlockRule>, PlanError> {
    let files = &policy.filesystem;
    for kept in files.deny.iter().chain(&files.hide) {
        if let PathFact::Refused(reason) = host.path(&kept.path, true) {
            return Err(PlanError::Unfollowed { path: shown(&kept.path), origin: kept.origin.clone(), reason });
        }
    }
    let mut tree = host_tree::HostTree::new(policy, host);
    if !command::View::binds(&tree, program) {
        command::View::grant_command(&mut tree, program)?;
    }
    tree.rules()
}

fn filter(policy: &Policy, request: &Request) -> Result<seccomp::Table, seccomp::TableError> {
    let table = seccomp::table(&policy.syscalls, notify(request))?;
    Ok(if policy.level.is_full() { table } else { table.without_unix_sockets() })
}

/// Where apexd listens, of a policy with mailboxes.
fn mail_dir<'a>(policy: &Policy, request: &'a Request) -> Result<Option<&'a Path>, PlanError> {
    match (policy.mailboxes.first(), &request.mail) {
        (None, _) => Ok(None),
        (Some(_), Some(dir)) => Ok(Some(dir)),
        (Some(rule), None) => Err(PlanError::NoMail { name: rule.name.clone() }),
    }
}

/// What the system call filter tells its listener.
fn notify(request: &Request) -> Notify {
    match (request.record, request.watch) {
        (true, _) => Notify::RECORD,
        (false, Level::Off) => Notify::default(),
        (false, Level::Default | Level::Full) => Notify::WATCH,
    }
}

/// Requirements, and what had to be left out.
struct Layers {
    required: BTreeMap<Layer, Requirement>,
    skipped: BTreeMap<Layer, String>,
}

impl Layers {
    /// What the level leaves out is not asked for; what is required all the same was refused with the policy.
    fn of(policy: &Policy) -> Layers {
        let mut required = policy.layers.clone();
        for (layer, requirement) in &mut required {
            if policy.level.leaves_out(*layer) {
                *requirement = Requirement::Off;
            }
        }
        Layers { required, skipped: BTreeMap::new() }
    }

    fn asked(&self, layer: Layer) -> bool {
        self.required.get(&layer) != Some(&Requirement::Off) && !self.skipped.contains_key(&layer)
    }

    /// Records that the host lacks a layer, or fails when it is required.
    fn lacks(&mut self, layer: Layer, reason: String, remedy: String) -> Result<(), PlanError> {
        if self.required.get(&layer) == Some(&Requirement::Optional) {
            self.skipped.insert(layer, reason);
            return Ok(());
        }
        let remedy = if remedy.contains("--optional") {
            remedy
        } else {
            format!("{remedy}, or give it up knowingly with `--optional {layer}`")
        };
        Err(PlanError::MissingLayer { layer, reason, remedy })
    }
}

fn identity(policy: &Policy, host: &dyn Host) -> IdentityPlan {
    let (caller_uid, caller_gid) = host.caller();
    // A sandbox that root starts has host ids that own nothing; what is granted is idmapped. In development it still sees its
    // files as the caller does.
    let own_host_ids = host.gives_host_ids();
    // Without idmapped trees nothing of root's belongs to it, so it is not to believe to be root either.
    let is_own = own_host_ids && (policy.mode != Mode::Development || !policy.level.is_full());
    let default = |caller| if is_own { UNPRIVILEGED_ID } else { caller };
    IdentityPlan {
        uid: policy.identity.uid.unwrap_or_else(|| default(caller_uid)),
        gid: policy.identity.gid.unwrap_or_else(|| default(caller_gid)),
        caller_uid,
        caller_gid,
        own_host_ids,
        hostname: policy.identity.hostname.clone(),
    }
}

fn cgroup(resources: &Resources, layers: &mut Layers, host: &dyn Host) -> Result<Option<CgroupPlan>, PlanError> {
    let plan = CgroupPlan {
        memory_bytes: resources.memory_bytes,
        swap_bytes: resources.swap_bytes,
        cpu_percent: resources.cpu_percent,
        tasks: resources.tasks,
    };
    let wants_limit = plan.memory_bytes.is_some() || plan.cpu_percent.is_some() || plan.tasks.is_some();
    if !wants_limit || !layers.asked(Layer::Cgroup) {
        return Ok(None);
    }
    match host.cgroup(&plan) {
        CgroupSupport::Missing { reason, remedy } => {
            layers.lacks(Layer::Cgroup, reason, remedy)?;
            Ok(None)
        }
        CgroupSupport::V2 { .. } | CgroupSupport::V1 { .. } | CgroupSupport::SystemdUser => Ok(Some(plan)),
    }
}

fn landlock_abi(layers: &mut Layers, level: IsolationLevel, host: &dyn Host) -> Result<u32, PlanError> {
    if !layers.asked(Layer::Landlock) {
        return Ok(0);
    }
    let abi = host.landlock_abi();
    if level == IsolationLevel::Partial && abi < LANDLOCK_ALONE {
        // It stands alone: what it does not judge nobody does.
        layers.required.insert(Layer::Landlock, Requirement::Required);
        let reason =
            format!("isolation level partial stands on ABI {LANDLOCK_ALONE} or newer, and the kernel has {abi}");
        layers.lacks(
            Layer::Landlock,
            reason,
            "boot Linux 6.2 or newer with `lsm=landlock,...`, or take `--level full` (--optional does not help)"
                .to_owned(),
        )?;
    }
    if abi == 0 {
        let reason = "the kernel has no Landlock (built without it, or not in its lsm= list)".to_owned();
        layers.lacks(Layer::Landlock, reason, "boot Linux 5.13 or newer with `lsm=landlock,...`".to_owned())?;
    }
    Ok(abi)
}

fn timens(layers: &mut Layers, host: &dyn Host) -> Result<(), PlanError> {
    if layers.required.get(&Layer::Timens) != Some(&Requirement::Optional) {
        return Ok(());
    }
    match host.has_time_namespaces() {
        true => Ok(()),
        false => layers.lacks(Layer::Timens, "the kernel has no time namespaces".to_owned(), String::new()),
    }
}

fn rlimits(resources: &Resources, layers: &Layers, abi: u32, cgroup: Option<&CgroupPlan>) -> Vec<Rlimit> {
    if !layers.asked(Layer::Rlimits) {
        return Vec::new();
    }
    // One byte, not none: a core_pattern that begins with a pipe starts its handler, as root on the host, whatever the limit is, unless
    // the limit is exactly 1 (core(5), and do_coredump in fs/coredump.c). To a file nothing is written either way.
    let mut limits = vec![Rlimit { name: "core", value: 1 }];
    let mut push = |name, value: Option<u64>| limits.extend(value.map(|value| Rlimit { name, value }));
    push("nofile", resources.open_files);
    push("fsize", resources.file_size_bytes);
    // RLIMIT_NPROC counts per user namespace since Linux 5.14 (user_namespaces(7)); before, it would count every process of the
    // caller. Landlock ABI 2 (5.19) tells the two apart without another system call.
    // One more than the cgroup lets through: the cgroup counts what it refuses, which is how `--why` knows of it.
    let spare = u64::from(cgroup.is_some_and(|limits| limits.tasks.is_some()));
    push("nproc", resources.tasks.filter(|_| abi >= 2).map(|tasks| tasks.saturating_add(spare)));
    limits
}

/// The place of a mount inside the sandbox.
pub fn mount_dest(mount: &crate::plan::Mount) -> &std::path::Path {
    mounts::dest(mount)
}

/// Whether `inner` is `outer` or lies below it.
fn covers(outer: &std::path::Path, inner: &std::path::Path) -> bool {
    is_within(inner, outer)
}

fn shown(path: &std::path::Path) -> String {
    path.display().to_string()
}

/// Paths whose content is the same for every user of the host; owners are never translated there.
fn is_system(path: &std::path::Path) -> bool {
    const SYSTEM: [&str; 9] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt"];
    SYSTEM.iter().any(|system| is_within(path, std::path::Path::new(system)))
}

/// Directories that come with every root of the sandbox itself.
fn builtin_dirs() -> [PathBuf; 3] {
    ["/dev", "/proc", "/"].map(PathBuf::from)
}

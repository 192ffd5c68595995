//! What each process of the daemon gives up, once there are two.
//!
//! The API process becomes a user of its own, where there is one for it, and keeps no capability; none is to be had again by executing anything. What it still can do is
//! what its own files and sockets allow, what [`crate::confine`] leaves of that, and to ask the warden, which judges anew. The warden keeps what it needs to
//! start a keeper as somebody else, and, to be had by executing as root, what keepers of root need.

use anyhow::{Context, Result, bail};
use apex_sys::{Errno, prctl, process};

use crate::who;

/// Who is taken where nobody is named.
pub const USER: &str = "apexd";

/// Capabilities by their numbers (linux/capability.h).
const CHOWN: u32 = 0;
const DAC_OVERRIDE: u32 = 1;
const DAC_READ_SEARCH: u32 = 2;
const FOWNER: u32 = 3;
const FSETID: u32 = 4;
const KILL: u32 = 5;
const SETGID: u32 = 6;
const SETUID: u32 = 7;
const SETPCAP: u32 = 8;
const NET_ADMIN: u32 = 12;
const SYS_CHROOT: u32 = 18;
const SYS_PTRACE: u32 = 19;
const SYS_ADMIN: u32 = 21;
const SYS_NICE: u32 = 23;
const SYS_RESOURCE: u32 = 24;
const MKNOD: u32 = 27;
const SETFCAP: u32 = 31;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

/// The warden's own: to give files, to enter a working directory, to become the user.
const OF_WARDEN: &[u32] = &[CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, SETGID, SETUID];
/// What a keeper of root, its prober and whatever they build need of the host: namespaces, mounts, idmaps, cgroups, limits, probes, the tracer. What a policy lets a command
/// keep is of the sandbox's user namespace and not from here.
const OF_KEEPERS: &[u32] = &[
    CHOWN,
    DAC_OVERRIDE,
    DAC_READ_SEARCH,
    FOWNER,
    FSETID,
    KILL,
    SETGID,
    SETUID,
    SETPCAP,
    NET_ADMIN,
    SYS_CHROOT,
    SYS_PTRACE,
    SYS_ADMIN,
    SYS_NICE,
    SYS_RESOURCE,
    MKNOD,
    SETFCAP,
    PERFMON,
    BPF,
];

/// A user for the API process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

/// Whom the API process becomes: who is named, or `apexd` where the host has that user. `None` when it stays who it is.
pub fn choose(named: Option<&str>) -> Result<Option<User>> {
    let own = nix::unistd::geteuid().as_raw();
    let name = named.unwrap_or(USER);
    let found = who::named(name);
    if own != 0 {
        // Without root nobody becomes anybody; that nobody has to is no error.
        return match (named, found) {
            (Some(_), Some((uid, _))) if uid == own => Ok(None),
            (Some(name), _) => {
                bail!("--user {name}: only root becomes another user; start apexd as root, or as {name}")
            }
            (None, _) => Ok(None),
        };
    }
    match (named, found) {
        (_, Some((0, _))) => Ok(None),
        (_, Some((_, 0))) => bail!("user {name} has the group of root, with which it would not be a user of its own"),
        (_, Some((uid, gid))) => Ok(Some(User { name: name.to_owned(), uid, gid })),
        (Some(name), None) => bail!("--user {name}: /etc/passwd has no such user; `useradd --system {name}` makes it"),
        (None, None) => {
            eprintln!(
                "apexd: there is no user {USER}: the API process keeps user id 0, without capabilities; `useradd --system --user-group {USER}` makes one, --user names another"
            );
            Ok(None)
        }
    }
}

/// The API process gives everything up. Before there are threads: each has ids and capabilities of its own (capabilities(7)).
pub fn give_up(user: Option<&User>) -> Result<()> {
    let failed = "giving up privileges";
    prctl::set_no_new_privs().context(failed)?;
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bound(&[]).context(failed)?;
    prctl::lock_securebits().context(failed)?;
    if let Some(user) = user {
        let become_user = || -> Result<(), Errno> {
            process::clear_groups()?;
            process::set_gid(user.gid)?;
            process::set_uid(user.uid)
        };
        become_user().with_context(|| format!("becoming user {}", user.name))?;
    }
    // Not by the change of ids: the securebits keep them over it.
    prctl::set_capabilities(0, 0).context(failed)
}

/// The warden keeps what it needs. Without no_new_privs: a keeper of root gets its capabilities by being executed, one of a user what the kernel gives that user.
pub fn narrow_warden() -> Result<(), Errno> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bound(OF_KEEPERS)?;
    let own = OF_WARDEN.iter().fold(0, |all, number| all | 1 << number);
    // A container may have taken some away already.
    prctl::set_capabilities(prctl::effective_capabilities()? & own, 0)
}

/// Leaves only these in the bounding set.
fn bound(kept: &[u32]) -> Result<(), Errno> {
    for number in (0..64).filter(|number| !kept.contains(number)) {
        match prctl::drop_bounding(number) {
            Ok(()) => {}
            Err(Errno::EINVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

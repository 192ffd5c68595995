//! Ids of a new user namespace (user_namespaces(7)).

use std::process::{Command, Stdio};

use oci_spec::runtime::{Linux, LinuxIdMapping};

/// Why ids are not mapped.
#[derive(Debug, thiserror::Error)]
pub enum IdsError {
    /// The kernel refused.
    #[error("cannot write {file} with the mappings of linux.{key}; may this user map those ids?")]
    Write {
        /// The file in /proc.
        file: String,
        /// Of the configuration.
        key: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The privileged programs of shadow are missing or failed.
    #[error(
        "cannot map more than the own id of an unprivileged user by {program}: {problem}; /etc/subuid and /etc/subgid say which ids may be mapped"
    )]
    Helper {
        /// `newuidmap` or `newgidmap`.
        program: &'static str,
        /// What it said.
        problem: String,
    },
}

/// Maps the ids of the configuration in the user namespace of `pid`.
///
/// # Errors
/// The kernel or, for unprivileged users, newuidmap(1) refuses.
pub fn map(linux: &Linux, pid: i32) -> Result<(), IdsError> {
    let uids = linux.uid_mappings().as_deref().unwrap_or_default();
    let gids = linux.gid_mappings().as_deref().unwrap_or_default();
    let is_root = nix::unistd::geteuid().is_root();
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    if is_root || is_own(uids, uid) {
        write(pid, "uid_map", "uidMappings", &text(uids))?;
    } else {
        by_helper("newuidmap", pid, uids)?;
    }
    if !is_root && is_own(gids, gid) {
        // The kernel's condition for an unprivileged mapping of groups.
        write(pid, "setgroups", "gidMappings", "deny")?;
    }
    if is_root || is_own(gids, gid) {
        write(pid, "gid_map", "gidMappings", &text(gids))
    } else {
        by_helper("newgidmap", pid, gids)
    }
}

/// Whether it is the one mapping that an unprivileged user may make.
fn is_own(mappings: &[LinuxIdMapping], id: u32) -> bool {
    matches!(mappings, [one] if one.host_id() == id && one.size() == 1)
}

fn text(mappings: &[LinuxIdMapping]) -> String {
    mappings.iter().map(|one| format!("{} {} {}\n", one.container_id(), one.host_id(), one.size())).collect()
}

fn write(pid: i32, name: &str, key: &'static str, text: &str) -> Result<(), IdsError> {
    let file = format!("/proc/{pid}/{name}");
    std::fs::write(&file, text).map_err(|source| IdsError::Write { file, key, source })
}

fn by_helper(program: &'static str, pid: i32, mappings: &[LinuxIdMapping]) -> Result<(), IdsError> {
    let numbers = mappings.iter().flat_map(|one| [one.container_id(), one.host_id(), one.size()]);
    let mut command = Command::new(program);
    command.arg(pid.to_string()).args(numbers.map(|number| number.to_string())).stdin(Stdio::null());
    let failed = |problem: String| IdsError::Helper { program, problem };
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

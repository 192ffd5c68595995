//! Hardening lines of a systemd unit (systemd.exec(5), systemd.resource-control(5)) for a plan. What they cannot say stands in comments.

use std::path::Path;

use crate::plan::{BindAccess, Mount, Plan};
use crate::policy::{Network, Policy, ProcView};
use crate::seccomp::{Abi, Decision};

/// The drop-in.
pub fn unit(plan: &Plan, policy: &Policy) -> String {
    let mut lines = Lines::default();
    lines.note("Hardening as in the policy; for a drop-in of a service (systemctl edit NAME).");
    lines.note("Not sayable in a unit: Landlock rules, paths that are denied before they exist, conditions on the arguments of calls,");
    lines.note("a clock of its own; refused calls answer EPERM throughout.");
    lines.0.push_str("[Service]\n");
    lines.set("NoNewPrivileges", "yes");
    privileges(&mut lines, plan);
    kernel(&mut lines, policy);
    files(&mut lines, plan, policy);
    network(&mut lines, plan);
    calls(&mut lines, plan);
    limits(&mut lines, plan);
    environment(&mut lines, plan, policy);
    lines.0
}

#[derive(Default)]
struct Lines(String);

impl Lines {
    fn set(&mut self, key: &str, value: impl AsRef<str>) {
        self.0.push_str(key);
        self.0.push('=');
        self.0.push_str(value.as_ref());
        self.0.push('\n');
    }

    fn note(&mut self, text: impl AsRef<str>) {
        let text: String = text.as_ref().chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        self.0.push_str("# ");
        self.0.push_str(&text);
        self.0.push('\n');
    }
}

fn privileges(lines: &mut Lines, plan: &Plan) {
    lines.set("CapabilityBoundingSet", plan.capabilities.join(" "));
    lines.set("AmbientCapabilities", "");
    lines.set("PrivateUsers", if plan.capabilities.is_empty() { "yes" } else { "no" });
    if !plan.capabilities.is_empty() {
        lines.note("capabilities hold inside a user namespace in Apex, and on the host here: think twice");
    }
    lines.note(format!("User= is yours to choose: Apex runs it as {} inside a user namespace", plan.identity.uid));
}

fn kernel(lines: &mut Lines, policy: &Policy) {
    for key in [
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectControlGroups",
        "ProtectClock",
        "ProtectHostname",
        "PrivateDevices",
        "PrivateIPC",
        "LockPersonality",
        "RestrictSUIDSGID",
        "RestrictRealtime",
    ] {
        lines.set(key, "yes");
    }
    lines.set("KeyringMode", "private");
    let may_namespaces = policy.syscalls.allow.contains_key("namespaces");
    lines.set("RestrictNamespaces", if may_namespaces { "no" } else { "yes" });
    match policy.filesystem.proc {
        ProcView::Pid => {
            lines.set("ProtectProc", "invisible");
            lines.set("ProcSubset", "pid");
        }
        ProcView::Masked => lines.set("ProtectProc", "invisible"),
        ProcView::None => {
            lines.set("ProtectProc", "invisible");
            lines.set("ProcSubset", "pid");
            lines.note("no /proc at all cannot be said");
        }
    }
}

fn files(lines: &mut Lines, plan: &Plan, policy: &Policy) {
    lines.set("ProtectSystem", "strict");
    lines.note("nothing of the host but what follows");
    lines.set("TemporaryFileSystem", "/:ro");
    for mount in &plan.mounts {
        match mount {
            Mount::Bind { source, dest, access: BindAccess::Read, .. } => {
                bind(lines, "BindReadOnlyPaths", source, dest)
            }
            Mount::Bind { source, dest, access: BindAccess::Write | BindAccess::Overlay, .. } => {
                bind(lines, "BindPaths", source, dest);
                if let Some(dest) = word(dest) {
                    lines.set("ReadWritePaths", dest);
                }
            }
            // It leads into something that is bound: shown by its own name.
            Mount::Symlink { dest, .. } => bind(lines, "BindReadOnlyPaths", dest, dest),
            Mount::Tmpfs { dest, .. } if dest == Path::new("/tmp") => lines.set("PrivateTmp", "yes"),
            Mount::Tmpfs { dest, size_bytes, exec, .. } => {
                let exec = if *exec { "" } else { ",noexec" };
                match word(dest) {
                    Some(dest) => lines.set("TemporaryFileSystem", format!("{dest}:rw,size={size_bytes}{exec}")),
                    None => lines.note("a private directory whose name a unit cannot hold was left out"),
                }
            }
            Mount::Hide { dest, .. } | Mount::Deny { dest, .. } => {
                if let Some(dest) = word(dest) {
                    lines.set("InaccessiblePaths", format!("-{dest}"));
                }
            }
            Mount::File { dest, .. } => {
                lines.note(format!(
                    "{} is made by Apex; the service sees the host's, where it is bound",
                    dest.display()
                ));
            }
            Mount::Dir { .. } | Mount::Proc { .. } | Mount::Dev { .. } => {}
        }
    }
    lines.set("NoExecPaths", "/");
    for grant in &policy.filesystem.exec {
        if let Some(dest) = word(&grant.dest) {
            lines.set("ExecPaths", format!("-{dest}"));
        }
    }
}

fn bind(lines: &mut Lines, key: &str, source: &Path, dest: &Path) {
    match (word(source), word(dest)) {
        (Some(source), Some(dest)) if source == dest => lines.set(key, format!("-{source}")),
        (Some(source), Some(dest)) => lines.set(key, format!("-{source}:{dest}")),
        _ => lines.note("a path whose name a unit cannot hold was left out"),
    }
}

/// A path as a unit writes it: percents doubled, quotes and backslashes escaped, colons kept from being separators. `None` for names that no
/// line can hold.
fn word(path: &Path) -> Option<String> {
    let text = path.to_str()?;
    if text.chars().any(char::is_control) {
        return None;
    }
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '%' => out.push_str("%%"),
            ':' => out.push_str("\\:"),
            '\\' | '"' | '\'' | ' ' | ';' | '$' => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    Some(out)
}

fn network(lines: &mut Lines, plan: &Plan) {
    if plan.network == Network::None {
        lines.set("PrivateNetwork", "yes");
    }
    let allowed = plan.seccomp.as_ref().map(|table| table.allowed());
    match allowed {
        Some(groups) if !groups.contains(&"sockets") => lines.set("RestrictAddressFamilies", "none"),
        Some(groups) if groups.contains(&"rare-sockets") => lines.note("rare families of sockets are allowed"),
        _ => lines.set("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6 AF_NETLINK"),
    }
}

fn calls(lines: &mut Lines, plan: &Plan) {
    let Some(table) = &plan.seccomp else {
        lines.note("the policy filters no system calls");
        return;
    };
    let abi = table.arch().abi();
    let has_compat = table.abis().any(|other| other == Abi::I386);
    lines.set("SystemCallArchitectures", if has_compat { "native x86" } else { "native" });
    let names: Vec<&str> = (0..table.numbers(abi))
        .filter(|nr| !matches!(table.decide(abi, *nr), Decision::Errno(_)))
        .filter_map(|nr| abi.call_name(nr))
        .collect();
    for part in names.chunks(10) {
        lines.set("SystemCallFilter", part.join(" "));
    }
    lines.set("SystemCallErrorNumber", "EPERM");
}

fn limits(lines: &mut Lines, plan: &Plan) {
    if let Some(limits) = &plan.cgroup {
        let mut set = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                lines.set(key, value);
            }
        };
        set("MemoryMax", limits.memory_bytes.map(|bytes| bytes.to_string()));
        set("MemorySwapMax", limits.swap_bytes.map(|bytes| bytes.to_string()));
        set("CPUQuota", limits.cpu_percent.map(|percent| format!("{percent}%")));
        set("TasksMax", limits.tasks.map(|tasks| tasks.to_string()));
    }
    for limit in &plan.rlimits {
        let key = match limit.name {
            "nofile" => "LimitNOFILE",
            "fsize" => "LimitFSIZE",
            "core" => "LimitCORE",
            "memlock" => "LimitMEMLOCK",
            // Of all processes of the user on the host here: TasksMax says what is meant.
            _ => continue,
        };
        lines.set(key, limit.value.to_string());
    }
    if let Some(ms) = plan.wall_time_ms {
        lines.set("RuntimeMaxSec", format!("{ms}ms"));
    }
}

fn environment(lines: &mut Lines, plan: &Plan, policy: &Policy) {
    for name in &policy.environment.pass {
        lines.set("PassEnvironment", name);
    }
    for (name, value) in &policy.environment.set {
        let value: String = value
            .chars()
            .map(|c| match c {
                '%' => "%%".to_owned(),
                '\\' | '"' => format!("\\{c}"),
                c if c.is_control() => format!("\\x{:02x}", u32::from(c)),
                c => c.to_string(),
            })
            .collect();
        lines.set("Environment", format!("\"{name}={value}\""));
    }
    if let Some(dir) = plan.command.workdir.first().and_then(|dir| word(dir)) {
        lines.set("WorkingDirectory", format!("-{dir}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_become_other_words() {
        let check =
            |path: &str, expected: Option<&str>| assert_eq!(word(Path::new(path)).as_deref(), expected, "{path}");
        check("/srv/a b", Some("/srv/a\\x20b"));
        check("/srv/100%:x", Some("/srv/100%%\\:x"));
        check("/srv/\n[Service]", None);
        check("/srv/\"q\"", Some("/srv/\\x22q\\x22"));
    }
}

//! The layers of confinement, each of which a policy requires, makes optional or turns off.

use serde::{Deserialize, Serialize};

/// One layer that the kernel enforces on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// User namespace (user_namespaces(7)).
    Userns,
    /// Mount namespace and the new root (mount_namespaces(7)).
    Mountns,
    /// Process namespace (pid_namespaces(7)).
    Pidns,
    /// Network namespace (network_namespaces(7)).
    Netns,
    /// System V and POSIX IPC namespace (ipc_namespaces(7)).
    Ipcns,
    /// Host name namespace (uts_namespaces(7)).
    Utsns,
    /// Cgroup namespace (cgroup_namespaces(7)).
    Cgroupns,
    /// Clock offset namespace (time_namespaces(7)).
    Timens,
    /// Every capability set empty, bounding set included (capabilities(7)).
    Capabilities,
    /// `no_new_privs` (PR_SET_NO_NEW_PRIVS(2const)).
    NoNewPrivs,
    /// System call filter (seccomp(2)).
    Seccomp,
    /// File system, TCP and scope rules (landlock(7)).
    Landlock,
    /// Limits of memory, CPU and tasks (cgroups(7)).
    Cgroup,
    /// Limits of one process (setrlimit(2)).
    Rlimits,
}

impl Layer {
    /// Every layer, in the order in which it is put in force.
    pub const ALL: [Layer; 14] = [
        Layer::Cgroup,
        Layer::Userns,
        Layer::Pidns,
        Layer::Mountns,
        Layer::Netns,
        Layer::Ipcns,
        Layer::Utsns,
        Layer::Cgroupns,
        Layer::Timens,
        Layer::Rlimits,
        Layer::Capabilities,
        Layer::NoNewPrivs,
        Layer::Landlock,
        Layer::Seccomp,
    ];

    /// The name in policies, flags and receipts.
    pub const fn name(self) -> &'static str {
        match self {
            Layer::Userns => "userns",
            Layer::Mountns => "mountns",
            Layer::Pidns => "pidns",
            Layer::Netns => "netns",
            Layer::Ipcns => "ipcns",
            Layer::Utsns => "utsns",
            Layer::Cgroupns => "cgroupns",
            Layer::Timens => "timens",
            Layer::Capabilities => "capabilities",
            Layer::NoNewPrivs => "no-new-privs",
            Layer::Seccomp => "seccomp",
            Layer::Landlock => "landlock",
            Layer::Cgroup => "cgroup",
            Layer::Rlimits => "rlimits",
        }
    }

    /// Whether a sandbox can exist at all without it: the others stand on these.
    pub const fn is_foundation(self) -> bool {
        matches!(self, Layer::Userns | Layer::Mountns | Layer::Pidns | Layer::Capabilities | Layer::NoNewPrivs)
    }
}

impl std::fmt::Display for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What to do when the host cannot give a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Requirement {
    /// The start fails (exit 125).
    Required,
    /// The start goes on and the receipt shows the skip with its reason.
    Optional,
    /// Not asked for.
    Off,
}

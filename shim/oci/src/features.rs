//! What this runtime knows, as runtime-spec 1.2 has it told (features.md). Of the host it asks the kernel for seccomp's flags alone.

use std::collections::HashMap;

use oci_spec::runtime::{
    Apparmor, Arch, Cgroup, Features, IDMap, IntelRdt, LinuxFeature, LinuxNamespaceType, LinuxSeccompAction,
    LinuxSeccompFilterFlag, LinuxSeccompOperator, MountExtensions, NetDevices, Seccomp, Selinux,
};

/// Versions of runtime-spec whose bundles are read.
pub const SPEC_VERSIONS: (&str, &str) = ("1.0.0", "1.2.1");

/// Hooks, in the order in which they run.
pub const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// Options of a mount that are no option of its file system.
pub const MOUNT_OPTIONS: [&str; 62] = [
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "idmap",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];

/// Capabilities of Linux up to 5.9, by number (linux/capability.h).
pub const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Annotations by which a bundle asks for more than the specification has.
pub const ANNOTATIONS: [&str; 1] = ["dev.apex."];

/// Every flag of seccomp(2) that a bundle may name.
const FLAGS: [LinuxSeccompFilterFlag; 4] = [
    LinuxSeccompFilterFlag::SeccompFilterFlagTsync,
    LinuxSeccompFilterFlag::SeccompFilterFlagLog,
    LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow,
    LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv,
];

/// All of it.
pub fn features() -> Features {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let mut features = Features::default();
    features
        .set_oci_version_min(SPEC_VERSIONS.0.to_owned())
        .set_oci_version_max(SPEC_VERSIONS.1.to_owned())
        .set_hooks(Some(words(&HOOKS)))
        .set_mount_options(Some(words(&MOUNT_OPTIONS)))
        .set_linux(Some(linux()))
        .set_annotations(Some(annotations()));
    features
}

fn linux() -> LinuxFeature {
    let namespaces = vec![
        LinuxNamespaceType::Cgroup,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Network,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Time,
        LinuxNamespaceType::User,
        LinuxNamespaceType::Uts,
    ];
    let mut cgroup = Cgroup::default();
    cgroup
        .set_v1(Some(true))
        .set_v2(Some(true))
        .set_systemd(Some(true))
        .set_systemd_user(Some(true))
        .set_rdma(Some(true));
    let (mut apparmor, mut selinux) = (Apparmor::default(), Selinux::default());
    apparmor.set_enabled(Some(true));
    selinux.set_enabled(Some(true));
    let mut intel_rdt = IntelRdt::default();
    intel_rdt.set_enabled(Some(false));
    let (mut idmap, mut extensions) = (IDMap::default(), MountExtensions::default());
    idmap.set_enabled(Some(true));
    extensions.set_idmap(Some(idmap));
    let mut devices = NetDevices::default();
    devices.set_enabled(Some(false));
    let mut linux = LinuxFeature::default();
    linux
        .set_namespaces(Some(namespaces))
        .set_capabilities(Some(CAPABILITIES.iter().map(|name| (*name).to_owned()).collect()))
        .set_cgroup(Some(cgroup))
        .set_seccomp(Some(seccomp()))
        .set_apparmor(Some(apparmor))
        .set_selinux(Some(selinux))
        .set_intel_rdt(Some(intel_rdt))
        .set_mount_extensions(Some(extensions))
        .set_net_devices(Some(devices));
    linux
}

fn seccomp() -> Seccomp {
    let actions = vec![
        LinuxSeccompAction::ScmpActAllow,
        LinuxSeccompAction::ScmpActErrno,
        LinuxSeccompAction::ScmpActKill,
        LinuxSeccompAction::ScmpActKillProcess,
        LinuxSeccompAction::ScmpActKillThread,
        LinuxSeccompAction::ScmpActLog,
        LinuxSeccompAction::ScmpActNotify,
        LinuxSeccompAction::ScmpActTrace,
        LinuxSeccompAction::ScmpActTrap,
    ];
    let operators = [
        LinuxSeccompOperator::ScmpCmpEq,
        LinuxSeccompOperator::ScmpCmpGe,
        LinuxSeccompOperator::ScmpCmpGt,
        LinuxSeccompOperator::ScmpCmpLe,
        LinuxSeccompOperator::ScmpCmpLt,
        LinuxSeccompOperator::ScmpCmpMaskedEq,
        LinuxSeccompOperator::ScmpCmpNe,
    ];
    let known = FLAGS.iter().map(ToString::to_string).collect();
    let supported = FLAGS.iter().filter(|flag| crate::seccomp::knows(**flag)).map(ToString::to_string).collect();
    let mut seccomp = Seccomp::default();
    seccomp
        .set_enabled(Some(true))
        .set_actions(Some(actions))
        .set_operators(Some(operators.iter().map(ToString::to_string).collect()))
        .set_archs(Some(archs()))
        .set_known_flags(Some(known))
        .set_supported_flags(Some(supported));
    seccomp
}

/// Architectures that the libseccomp this was built with can put into a filter.
fn archs() -> Vec<Arch> {
    const ARCHS: [Arch; 20] = [
        Arch::ScmpArchAarch64,
        Arch::ScmpArchArm,
        Arch::ScmpArchMips,
        Arch::ScmpArchMips64,
        Arch::ScmpArchMips64n32,
        Arch::ScmpArchMipsel,
        Arch::ScmpArchMipsel64,
        Arch::ScmpArchMipsel64n32,
        Arch::ScmpArchParisc,
        Arch::ScmpArchParisc64,
        Arch::ScmpArchPpc,
        Arch::ScmpArchPpc64,
        Arch::ScmpArchPpc64le,
        Arch::ScmpArchRiscv64,
        Arch::ScmpArchS390,
        Arch::ScmpArchS390x,
        Arch::ScmpArchX32,
        Arch::ScmpArchX86,
        Arch::ScmpArchX86_64,
        Arch::ScmpArchLoongarch64,
    ];
    ARCHS.into_iter().filter(|arch| crate::seccomp::has_arch(*arch)).collect()
}

fn annotations() -> HashMap<String, String> {
    let pairs = [
        ("io.github.seccomp.libseccomp.version".to_owned(), crate::seccomp::version()),
        ("dev.apex.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("org.opencontainers.runc.checkpoint.enabled".to_owned(), "false".to_owned()),
    ];
    pairs.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_json_by_the_names_of_the_specification() {
        let told = serde_json::to_value(features()).unwrap();
        assert_eq!(told["ociVersionMin"], "1.0.0");
        assert_eq!(told["hooks"][0], "prestart");
        let linux = &told["linux"];
        assert_eq!(
            linux["namespaces"],
            serde_json::json!(["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"])
        );
        assert_eq!(linux["capabilities"].as_array().unwrap().len(), 41);
        assert_eq!(linux["cgroup"]["systemdUser"], true);
        assert_eq!(linux["intelRdt"]["enabled"], false);
        assert_eq!(linux["mountExtensions"]["idmap"]["enabled"], true);
        let seccomp = &linux["seccomp"];
        assert_eq!(seccomp["actions"].as_array().unwrap().len(), 9);
        assert!(seccomp["operators"].as_array().unwrap().contains(&"SCMP_CMP_MASKED_EQ".into()));
        assert!(seccomp["archs"].as_array().unwrap().contains(&"SCMP_ARCH_X86_64".into()));
        assert_eq!(seccomp["knownFlags"].as_array().unwrap().len(), 4);
        assert!(seccomp["supportedFlags"].as_array().unwrap().contains(&"SECCOMP_FILTER_FLAG_LOG".into()));
        assert!(told["annotations"]["io.github.seccomp.libseccomp.version"].as_str().unwrap().starts_with('2'));
    }

    #[test]
    fn no_mount_option_is_told_twice() {
        let mut options = MOUNT_OPTIONS.to_vec();
        options.sort_unstable();
        options.dedup();
        assert_eq!(options.len(), MOUNT_OPTIONS.len());
    }
}

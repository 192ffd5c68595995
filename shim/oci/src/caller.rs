//! Who calls: root of the machine, or somebody who has less.
//!
//! Engines that run without root start the runtime as root of a user namespace. Its uid is 0 there, but no cgroup, no directory in `/run` and no
//! device of the machine is its own.

use std::sync::OnceLock;

/// Whether the caller is not root of the machine: another user, or root of a user namespace.
pub fn is_rootless() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        // A map that cannot be read is that of a kernel without user namespaces, or of a machine without /proc, which later steps tell.
        !nix::unistd::geteuid().is_root()
            || std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !is_whole(&map))
    })
}

/// Whether a map is that of the machine's own namespace: every uid is itself (user_namespaces(7)).
fn is_whole(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_map_is_the_machine_s() {
        assert!(is_whole("         0          0 4294967295\n"));
        assert!(!is_whole("         0       1000          1\n         1     100000      65536\n"));
        assert!(!is_whole("         0          0          1\n"));
        assert!(!is_whole(""));
    }
}

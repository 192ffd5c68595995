//! The container's cgroup: v1 hierarchies, v2 by files, v2 or v1 by systemd.

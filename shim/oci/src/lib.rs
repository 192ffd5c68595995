//! `apex-oci`: an OCI bundle (runtime-spec 1.2) to a confined container, by the command line that runc and crun have.
//!
//! One command is one process; nothing stays but the container itself, its cgroup and its directory below `--root`. What the container
//! is stands in [`bundle`], what is known of it between commands in [`state`]; [`init`] is the process inside, up to its exec.

pub mod cgroup;
pub mod command;
pub mod init;
pub mod seccomp;

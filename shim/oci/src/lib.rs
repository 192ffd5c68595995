//! `apex-oci`: an OCI bundle (runtime-spec 1.2) to a confined container, by the command line that runc and crun have.
//!
//! One command is one process; nothing stays but the container itself, its cgroup and its directory below `--root`. What the container
//! is stands in [`bundle`], what is known of it between commands in [`state`]; [`create`] is the work outside, [`init`] that of the
//! process inside, up to its exec, and [`wire`] what the two say to each other.

pub mod bundle;
pub mod caller;
pub mod cgroup;
pub mod command;
pub mod create;
pub mod delete;
pub mod events;
pub mod exec;
pub mod features;
pub mod foreground;
pub mod hooks;
pub mod init;
pub mod journal;
pub mod kill;
pub mod numbers;
pub mod options;
pub mod own_image;
pub mod policy;
pub mod ps;
pub mod receipt;
pub mod seccomp;
pub mod spec;
pub mod start;
pub mod state;
pub mod update;
pub mod wire;

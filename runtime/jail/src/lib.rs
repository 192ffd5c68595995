//! `apex-jail` carries out a plan and reports what the kernel says about it.

mod ahead;
pub mod cgroup;
pub mod control;
pub mod doctor;
mod guard;
pub mod host;
mod init;
pub mod landlock;
pub mod launch;
mod layers;
mod listen;
pub mod overlay;
mod placeholder;
pub mod prove;
mod readback;
pub mod relay;
mod root;
mod seal;
pub mod seccomp;
pub mod spawn;
pub mod step;
pub mod streams;
mod supervise;
mod trees;
mod usage;
pub mod watch;
mod wire;

//! `apex-jail` acts and never decides: it carries out a [`Plan`](apex_core::plan::Plan) and returns what the kernel says about it.
//!
//! Three processes: the launcher (this process, outside), the init (pid 1 inside), the command. See `docs/ARCHITECTURE.md`.

pub mod host;
mod init;
mod landlock;
pub mod launch;
mod relay;
mod root;
mod seal;
pub mod step;
mod supervise;
mod trees;
mod wire;

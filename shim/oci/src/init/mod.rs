//! The process inside, from its birth to the exec of the container's program.

pub mod rootfs;

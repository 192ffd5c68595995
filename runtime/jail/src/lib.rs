//! `apex-jail` carries out a plan and reports what the kernel says about it.

pub mod cgroup;

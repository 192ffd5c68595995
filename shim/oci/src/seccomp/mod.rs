//! The container's system call filter.

//! System call filters (seccomp(2)).

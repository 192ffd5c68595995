//! A policy in the words of others, and theirs as a policy. Input: a plan or a profile; output: text or a typed value. What cannot be
//! said in the other language is told, never left out in silence.

pub mod oci;
pub mod systemd;

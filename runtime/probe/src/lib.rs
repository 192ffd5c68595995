//! `apex-probe` watches a sandbox: events from the kernel's probes or from ptrace, detectors over them, and where it all goes.
//!
//! Input: a sandbox named over a socket ([`apex_core::watch`]). Output: events, findings, a summary, a learned policy. It decides nothing
//! about the sandbox: detectors and learning are `apex-core`'s, and what a finding leads to is done by who started the sandbox.
#![forbid(unsafe_code)]

pub mod bpf;
pub mod doctor;
pub mod engines;
pub mod lesson;
pub mod link;
pub mod model;
pub mod pipeline;
pub mod privilege;
pub mod ptrace;
pub mod rules;
pub mod serve;
pub mod sink;
pub mod source;
pub mod sources;
mod yaml;

//! `apex-core` decides and never acts.
//!
//! Input: policy text, flags and facts about the host. Output: a [`plan::Plan`], and words for what the jail found.
//! This crate does no I/O, reads no clock, starts no thread and holds no `unsafe`.
#![forbid(unsafe_code)]

pub mod access;
pub mod amount;
pub mod audit;
pub mod backtest;
pub mod baseline;
pub mod budget;
pub mod control;
pub mod detect;
pub mod doctor;
pub mod escape;
pub mod event;
pub mod explain;
pub mod export;
pub mod finding;
pub mod host;
pub mod keep;
pub mod layer;
pub mod learn;
pub mod mail;
pub mod observe;
pub mod ocsf;
pub mod overlay;
pub mod plan;
pub mod planner;
pub mod policy;
pub mod prove;
pub mod receipt;
pub mod refusal;
pub mod seccomp;
pub mod summary;
pub mod supervise;
pub mod vouch;
pub mod watch;

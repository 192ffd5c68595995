//! `apex-probe doctor`: which families of events this host and user can have, and from where.

use std::ffi::OsString;
use std::io::Write;

use anyhow::{Result, bail};
use apex_core::seccomp::trace::Scope;
use apex_core::watch::{Level, Source};
use caps::{CapSet, Capability};
use serde_json::json;

use crate::sources::{self, Listener, Wish};

/// The verb.
pub fn run(arguments: Vec<OsString>) -> Result<u8> {
    let as_json = match arguments.as_slice() {
        [] => false,
        [only] if only == "--json" => true,
        _ => bail!("`doctor` takes nothing but --json"),
    };
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    let may_probe = has(Capability::CAP_SYS_ADMIN) || (has(Capability::CAP_BPF) && has(Capability::CAP_PERFMON));
    // Loading attaches nothing: what the kernel verified is gone when it is dropped.
    let wish =
        Wish { level: Level::Full, scope: Some(Scope::Full), may_probe, listener: Listener::Refusals, learns: false };
    let chosen = sources::choose(wish).sources;
    let mut out = std::io::stdout().lock();
    if as_json {
        writeln!(out, "{:#}", json!({ "level": Level::Full, "may_probe": may_probe, "sources": chosen }))?;
    } else {
        for (family, source) in &chosen {
            let words = match source {
                Source::Probe => "by a probe in the kernel",
                Source::Ptrace => "by ptrace: slower, and the program can notice",
                Source::Listener => "by the listener of the system call filter",
                Source::Missing { reason } => &format!("missing: {reason}"),
            };
            writeln!(out, "{:<10}{words}", family.name())?;
        }
    }
    let is_blind = chosen.values().all(|source| matches!(source, Source::Missing { .. } | Source::Listener));
    Ok(if is_blind { 1 } else { 0 })
}

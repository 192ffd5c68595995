//! Metrics that are looked up when somebody asks: what there is now. Counts are in [`crate::metrics`].

use std::collections::BTreeMap;

use apex_core::budget::Kind;
use apex_core::control::{Limits, State};

use crate::costs::Costs;
use crate::metrics::Text;
use crate::registry::Daemon;

/// All metrics, in Prometheus' text format.
pub fn text(daemon: &Daemon, costs: Option<&Costs>) -> String {
    let mut text = Text::default();
    sandboxes(daemon, &mut text);
    budget(daemon, &mut text);
    pool(daemon, &mut text);
    mail(daemon, &mut text);
    services(daemon, &mut text);
    memory(daemon, &mut text);
    if let Some(costs) = costs {
        probes(costs, &mut text);
    }
    daemon.metrics.tell(&mut text);
    text.finish()
}

fn sandboxes(daemon: &Daemon, text: &mut Text) {
    let (mut counts, mut findings, mut tightened) = (BTreeMap::new(), 0, 0);
    for sandbox in daemon.all() {
        let record = sandbox.record();
        let facts = record.facts;
        *counts.entry((facts.mode.name(), facts.state.name())).or_insert(0u64) += 1;
        findings += record.findings;
        let is_alive = matches!(facts.state, State::Running | State::Frozen);
        tightened += u64::from(is_alive && facts.tightened_by.is_some());
    }
    text.family("apex_sandboxes", "gauge", "Sandboxes by mode and state.");
    for ((mode, state), count) in counts {
        text.sample("apex_sandboxes", &[("mode", mode), ("state", state)], count);
    }
    text.gauge("apex_findings", "Findings about the sandboxes that there are.", findings);
    text.gauge("apex_tightened_sandboxes", "Sandboxes that a finding tightened.", tightened);
}

fn budget(daemon: &Daemon, text: &mut Text) {
    let figures = daemon.budget.figures();
    let of = |limits: Limits| Kind::ALL.map(|kind| (kind.name(), kind.of(limits)));
    let both = [
        (
            "apex_budget_size",
            "What sandboxes may have together; memory in bytes, CPU in percent of one core.",
            figures.total,
        ),
        ("apex_budget_reserved", "What sandboxes hold of it.", figures.reserved),
    ];
    for (name, help, limits) in both {
        text.family(name, "gauge", help);
        for (kind, amount) in of(limits) {
            if let Some(amount) = amount {
                text.sample(name, &[("resource", kind)], amount);
            }
        }
    }
    text.gauge("apex_budget_waiting", "Starts that wait for room.", figures.waiting);
}

fn pool(daemon: &Daemon, text: &mut Text) {
    let (ready, hits, misses) = daemon.pool.counts();
    text.gauge("apex_pool_ready", "Sandboxes that were built ahead and wait.", ready);
    let counters = [
        ("apex_pool_hits_total", "Requests that got a sandbox from a pool.", hits),
        ("apex_pool_misses_total", "Requests for one that had to wait for a new one.", misses),
    ];
    for (name, help, count) in counters {
        text.family(name, "counter", help);
        text.sample(name, &[], count);
    }
}

fn mail(daemon: &Daemon, text: &mut Text) {
    let (messages, bytes) = daemon.mail.total();
    text.gauge("apex_mail_messages", "Messages that lie in mailboxes.", messages);
    text.gauge("apex_mail_bytes", "Bytes for which they count.", bytes);
}

fn services(daemon: &Daemon, text: &mut Text) {
    text.family("apex_service_restarts_total", "counter", "Restarts of the daemon's services.");
    for service in daemon.services.states() {
        text.sample("apex_service_restarts_total", &[("service", &service.name)], service.restarts);
    }
}

fn memory(daemon: &Daemon, text: &mut Text) {
    text.family("apex_process_resident_bytes", "gauge", "Memory of the daemon's processes, keepers not counted.");
    let warden = daemon.metrics.warden.get().map(|pid| ("warden", format!("/proc/{pid}/statm")));
    for (process, file) in [Some(("apexd", "/proc/self/statm".to_owned())), warden].into_iter().flatten() {
        if let Some(bytes) = resident_bytes(&file) {
            text.sample("apex_process_resident_bytes", &[("process", process)], bytes);
        }
    }
}

fn probes(costs: &Costs, text: &mut Text) {
    text.gauge(
        "apex_probes_asked",
        "Probers of sandboxes that run now which told what their programs cost.",
        costs.told,
    );
    let families = [
        ("apex_probe_runs", "How often programs of those probers ran that the kernel measures."),
        ("apex_probe_seconds", "Time of the processor that they took."),
    ];
    for (at, (name, help)) in families.into_iter().enumerate() {
        text.family(name, "gauge", help);
        for ((family, program), (runs, time)) in &costs.programs {
            let labels = [("family", *family), ("program", program.as_str())];
            match at {
                0 => text.sample(name, &labels, runs),
                _ => text.sample(name, &labels, time.as_secs_f64()),
            }
        }
    }
}

/// The second field of statm, in pages (proc(5)).
fn resident_bytes(file: &str) -> Option<u64> {
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten()?;
    let pages: u64 = std::fs::read_to_string(file).ok()?.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * u64::try_from(page).ok()?)
}

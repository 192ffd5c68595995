//! The part of a narrowing that is said in the bundle's own words: the smaller of two limits, and what both give of capabilities.

use std::collections::HashSet;

use apex_core::policy::{Network, Resources};
use oci_spec::runtime::{
    Capabilities, Capability, LinuxCapabilities, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources, PosixRlimit,
    PosixRlimitBuilder, PosixRlimitType, Process, Spec,
};

use super::Narrowing;

/// The period of a quota where the bundle has none, in microseconds.
const PERIOD_US: u64 = 100_000;

impl Narrowing {
    /// Takes away from a bundle what the policy does not give.
    pub fn narrow(&self, spec: &mut Spec) {
        if let Some(process) = spec.process_mut() {
            self.narrow_process(process);
        }
        let mut linux = spec.linux().clone().unwrap_or_default();
        let mut resources = linux.resources().clone().unwrap_or_default();
        narrow_resources(&mut resources, &self.policy.resources);
        linux.set_resources(Some(resources));
        spec.set_linux(Some(linux));
    }

    /// The same for the process of an exec.
    pub fn narrow_process(&self, process: &mut Process) {
        // Landlock and filters need it, and no file of the container may give back what is taken here.
        process.set_no_new_privileges(Some(true));
        let kept = self.capabilities();
        // A bundle without the word holds none.
        let mut capabilities = process.capabilities().clone().unwrap_or_else(without_capabilities);
        narrow_capabilities(&mut capabilities, &kept);
        process.set_capabilities(Some(capabilities));
        let mut rlimits = process.rlimits().clone().unwrap_or_default();
        for (kind, value) in [
            (PosixRlimitType::RlimitNofile, self.policy.resources.open_files),
            (PosixRlimitType::RlimitFsize, self.policy.resources.file_size_bytes),
        ] {
            if let Some(value) = value {
                narrow_rlimit(&mut rlimits, kind, value);
            }
        }
        process.set_rlimits(Some(rlimits));
    }

    /// What the policy keeps. Without a network nobody may make one.
    fn capabilities(&self) -> Capabilities {
        let mut kept: Capabilities = self
            .policy
            .capabilities
            .iter()
            .filter_map(|name| serde_json::from_value(name.as_str().into()).ok())
            .collect();
        if self.policy.network == Network::None {
            kept.remove(&Capability::NetAdmin);
        }
        kept
    }
}

fn narrow_capabilities(held: &mut LinuxCapabilities, kept: &Capabilities) {
    let both = |held: &Option<Capabilities>| {
        held.as_ref().map(|held| held.intersection(kept).copied().collect::<HashSet<Capability>>())
    };
    let (bounding, effective, permitted) = (both(held.bounding()), both(held.effective()), both(held.permitted()));
    let (inheritable, ambient) = (both(held.inheritable()), both(held.ambient()));
    held.set_bounding(bounding)
        .set_effective(effective)
        .set_permitted(permitted)
        .set_inheritable(inheritable)
        .set_ambient(ambient);
}

fn without_capabilities() -> LinuxCapabilities {
    let none = || Some(Capabilities::new());
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(none())
        .set_effective(none())
        .set_permitted(none())
        .set_inheritable(none())
        .set_ambient(none());
    capabilities
}

fn narrow_rlimit(rlimits: &mut Vec<PosixRlimit>, kind: PosixRlimitType, value: u64) {
    let known = rlimits.iter().filter(|rlimit| rlimit.typ() == kind);
    // Of several the strictest.
    let soft = known.clone().map(PosixRlimit::soft).fold(value, u64::min);
    let hard = known.map(PosixRlimit::hard).fold(value, u64::min);
    rlimits.retain(|rlimit| rlimit.typ() != kind);
    let made = PosixRlimitBuilder::default().typ(kind).soft(soft.min(hard)).hard(hard).build();
    rlimits.push(made.expect("every part of it is there"));
}

fn narrow_resources(resources: &mut LinuxResources, policy: &Resources) {
    if let Some(bytes) = policy.memory_bytes {
        let mut memory = resources.memory().unwrap_or_default();
        narrow_memory(&mut memory, signed(bytes), policy.swap_bytes.map(signed));
        resources.set_memory(Some(memory));
    }
    if let Some(percent) = policy.cpu_percent {
        let mut cpu = resources.cpu().clone().unwrap_or_default();
        narrow_cpu(&mut cpu, percent);
        resources.set_cpu(Some(cpu));
    }
    if let Some(tasks) = policy.tasks {
        let mut pids: LinuxPids = resources.pids().unwrap_or_default();
        pids.set_limit(smaller(Some(pids.limit()).filter(|limit| *limit > 0), signed(tasks)));
        resources.set_pids(Some(pids));
    }
}

/// `swap` of a bundle counts memory and swap together.
fn narrow_memory(memory: &mut LinuxMemory, bytes: i64, swap: Option<i64>) {
    let limit = smaller(memory.limit(), bytes);
    memory.set_limit(Some(limit));
    if let Some(swap) = swap {
        memory.set_swap(Some(smaller(memory.swap(), limit.saturating_add(swap))));
    } else if memory.swap().is_some_and(|both| (0..limit).contains(&both)) {
        // Less than the memory is no limit that a kernel takes.
        memory.set_swap(Some(limit));
    }
    if memory.reservation().is_some_and(|reservation| reservation > limit) {
        memory.set_reservation(Some(limit));
    }
}

fn narrow_cpu(cpu: &mut LinuxCpu, percent: u32) {
    let period = cpu.period().filter(|period| *period > 0).unwrap_or(PERIOD_US);
    let quota = signed(period.saturating_mul(percent.into()) / 100).max(1000);
    let quota = smaller(cpu.quota(), quota);
    cpu.set_period(Some(period)).set_quota(Some(quota));
    // A burst is at most the quota (cgroups(7)).
    if cpu.burst().is_some_and(|burst| signed(burst) > quota) {
        cpu.set_burst(u64::try_from(quota).ok());
    }
}

/// Zero or less means no limit.
fn smaller(bundle: Option<i64>, policy: i64) -> i64 {
    bundle.filter(|limit| *limit > 0).map_or(policy, |limit| limit.min(policy))
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

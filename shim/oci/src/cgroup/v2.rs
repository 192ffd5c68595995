//! `linux.resources` in the files of cgroup v2 (the kernel's Documentation/admin-guide/cgroup-v2), in the conversions that runc and crun share.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

use super::error::CgroupError;
use super::limits::{check_page_size, rdma, shares, swappiness, throttles, weight, weight_value};
use super::step::{Step, Write};

/// The steps that set `resources`; what v2 has no word for goes to `notes`.
pub(super) fn steps(resources: &LinuxResources, notes: &mut Vec<String>) -> Result<Vec<Step>, CgroupError> {
    let mut steps = Vec::new();
    if let Some(limit) = resources.pids().map(|pids| pids.limit()).filter(|limit| *limit != 0) {
        steps.push(Write::new("pids", "pids.max", max_or(limit)).into());
    }
    if let Some(memory) = resources.memory() {
        push_memory(&mut steps, memory, notes)?;
    }
    if let Some(block) = resources.block_io() {
        push_block(&mut steps, block, notes)?;
    }
    if let Some(cpu) = resources.cpu() {
        push_cpu(&mut steps, cpu, notes)?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let size = check_page_size(limit.page_size())?;
        let value = max_or(limit.limit());
        steps.push(Write::new("hugetlb", format!("hugetlb.{size}.max"), &value).into());
        steps.push(Write::new("hugetlb", format!("hugetlb.{size}.rsvd.max"), &value).optional().into());
    }
    for line in rdma(resources) {
        steps.push(Write::new("rdma", "rdma.max", line).into());
    }
    if resources.network().as_ref().is_some_and(|network| network.class_id().is_some_and(|class| class != 0)) {
        notes.push("linux.resources.network has no counterpart on cgroup v2 and is left out".to_owned());
    }
    // Last: what is written raw is meant to win.
    push_unified(&mut steps, resources)?;
    Ok(steps)
}

/// v2 says `max` for no limit.
fn max_or(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

fn push_memory(steps: &mut Vec<Step>, memory: &LinuxMemory, notes: &mut Vec<String>) -> Result<(), CgroupError> {
    let limit = memory.limit().filter(|limit| *limit != 0);
    let swap = swap_alone(memory)?;
    if let Some(swap) = swap {
        // No limit on swap is what a kernel that counts none does.
        let write = Write::new("memory", "memory.swap.max", max_or(swap));
        steps.push(if swap < 0 { write.optional() } else { write }.into());
    }
    if let (Some(limit), Some(true)) = (limit, memory.check_before_update()) {
        steps.push(Step::Usage { controller: "memory".to_owned(), file: "memory.current", limit });
    }
    if let Some(limit) = limit {
        steps.push(Write::new("memory", "memory.max", max_or(limit)).into());
    }
    if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
        steps.push(Write::new("memory", "memory.low", max_or(reservation)).into());
    }
    swappiness(memory)?;
    let absent = [
        (memory.kernel().is_some_and(|value| value != 0), "kernel"),
        (memory.kernel_tcp().is_some_and(|value| value != 0), "kernelTCP"),
        (memory.swappiness().is_some(), "swappiness"),
        (memory.disable_oom_killer() == Some(true), "disableOOMKiller"),
        (memory.use_hierarchy() == Some(false), "useHierarchy"),
    ];
    for (_, field) in absent.into_iter().filter(|(is_given, _)| *is_given) {
        notes.push(format!("linux.resources.memory.{field} has no counterpart on cgroup v2 and is left out"));
    }
    Ok(())
}

/// The specification counts memory and swap together, v2 swap alone.
pub(super) fn swap_alone(memory: &LinuxMemory) -> Result<Option<i64>, CgroupError> {
    let limit = memory.limit().unwrap_or(0);
    let invalid = |reason| CgroupError::invalid("memory.swap", memory.swap().unwrap_or(0), reason);
    match memory.swap().filter(|swap| *swap != 0) {
        None if limit == -1 => Ok(Some(-1)),
        None => Ok(None),
        Some(-1) => Ok(Some(-1)),
        Some(sum) if sum < 0 => Err(invalid("it is -1 for no limit, or a number of bytes")),
        Some(_) if limit <= 0 => Err(invalid("it counts memory and swap together, so memory.limit must be given too")),
        Some(sum) if sum < limit => {
            Err(invalid("it counts memory and swap together, so it cannot be below memory.limit"))
        }
        Some(sum) => Ok(Some(sum - limit)),
    }
}

/// From the 2..262144 of shares to the 1..10000 of a weight, linearly.
pub(super) fn cpu_weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// From the 10..1000 of blkio to the 1..10000 of io.weight, linearly.
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight) - 10) * 9999 / 990
}

/// `cpu.max`: quota and period; one alone leaves the other as it is, or as a fresh cgroup has it.
fn cpu_max(cpu: &LinuxCpu) -> Option<String> {
    let period = cpu.period().filter(|period| *period != 0);
    match (cpu.quota().filter(|quota| *quota != 0), period) {
        (None, None) => None,
        (Some(quota), None) => Some(max_or(quota)),
        (quota, Some(period)) => Some(format!("{} {period}", max_or(quota.unwrap_or(-1)))),
    }
}

fn push_cpu(steps: &mut Vec<Step>, cpu: &LinuxCpu, notes: &mut Vec<String>) -> Result<(), CgroupError> {
    if let Some(shares) = shares(cpu)? {
        steps.push(Write::new("cpu", "cpu.weight", cpu_weight(shares)).into());
    }
    if let Some(max) = cpu_max(cpu) {
        steps.push(Write::new("cpu", "cpu.max", max).into());
    }
    if let Some(burst) = cpu.burst() {
        steps.push(Write::new("cpu", "cpu.max.burst", burst).into());
    }
    if let Some(idle) = cpu.idle() {
        steps.push(Write::new("cpu", "cpu.idle", idle).into());
    }
    if cpu.realtime_runtime().is_some_and(|value| value != 0) || cpu.realtime_period().is_some_and(|value| value != 0) {
        notes.push("linux.resources.cpu.realtime* has no counterpart on cgroup v2 and is left out".to_owned());
    }
    for (file, value) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            steps.push(Write::new("cpuset", file, value).into());
        }
    }
    Ok(())
}

fn push_block(steps: &mut Vec<Step>, block: &LinuxBlockIo, notes: &mut Vec<String>) -> Result<(), CgroupError> {
    if let Some(value) = weight("weight", block.weight())? {
        // BFQ kept the range of v1; io.weight is that of the cost model.
        steps.push(Step::Else(
            Write::new("io", "io.bfq.weight", value),
            Write::new("io", "io.weight", io_weight(value)),
        ));
    }
    for device in block.weight_device().iter().flatten() {
        if let Some(value) = weight_value(device, "weight", device.weight())? {
            steps.push(Write::new("io", "io.bfq.weight", value).into());
        }
    }
    let leaves = block.weight_device().iter().flatten().any(|device| device.leaf_weight().is_some_and(|it| it != 0));
    if leaves || block.leaf_weight().is_some_and(|weight| weight != 0) {
        notes.push("linux.resources.blockIO.leafWeight has no counterpart on cgroup v2 and is left out".to_owned());
    }
    for (kind, device) in throttles(block) {
        // 0 lifts a throttle on v1, where v2 says so in a word.
        let rate = if device.rate() == 0 { "max".to_owned() } else { device.rate().to_string() };
        let value = format!("{}:{} {}={rate}", device.major(), device.minor(), kind.v2);
        steps.push(Write::new("io", "io.max", value).into());
    }
    Ok(())
}

fn push_unified(steps: &mut Vec<Step>, resources: &LinuxResources) -> Result<(), CgroupError> {
    let mut files: Vec<(&String, &String)> = resources.unified().iter().flatten().collect();
    files.sort();
    for (file, value) in files {
        let invalid = |reason| Err(CgroupError::invalid("unified", file, reason));
        if file.contains('/') || file.contains('\0') {
            return invalid("it is the name of a file in the cgroup, without a slash");
        }
        let Some((controller, _)) = file.split_once('.') else {
            return invalid("a file of a controller has a dot in its name, such as memory.high");
        };
        // One line a write, as for io.max.
        for line in value.lines().filter(|line| !line.is_empty()) {
            steps.push(Write::new(controller, file.as_str(), line).into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::limits::tests::resources;
    use super::*;

    fn check(json: &str, expected: &[(&str, &str)]) {
        let steps = steps(&resources(json), &mut Vec::new()).unwrap();
        let seen: Vec<(String, String)> = steps.iter().map(Step::words).collect();
        let seen: Vec<(&str, &str)> = seen.iter().map(|(file, value)| (file.as_str(), value.as_str())).collect();
        assert_eq!(seen, expected, "{json}");
    }

    #[test]
    fn memory() {
        check(
            r#"{"memory":{"limit":100,"swap":150,"reservation":50,"checkBeforeUpdate":true}}"#,
            &[("memory.swap.max", "50"), ("memory.current", "100"), ("memory.max", "100"), ("memory.low", "50")],
        );
        check(r#"{"memory":{"limit":100,"swap":100}}"#, &[("memory.swap.max", "0"), ("memory.max", "100")]);
        check(r#"{"memory":{"limit":-1}}"#, &[("memory.swap.max", "max"), ("memory.max", "max")]);
        check(r#"{"memory":{"limit":100,"swap":-1}}"#, &[("memory.swap.max", "max"), ("memory.max", "100")]);
        for (json, words) in [
            (r#"{"memory":{"swap":5}}"#, "memory.limit must be given too"),
            (r#"{"memory":{"limit":6,"swap":5}}"#, "cannot be below memory.limit"),
            (r#"{"memory":{"limit":6,"swap":-2}}"#, "it is -1 for no limit"),
        ] {
            let error = steps(&resources(json), &mut Vec::new()).unwrap_err().to_string();
            assert!(error.contains(words), "{json}: {error}");
        }
    }

    #[test]
    fn shares_and_weights() {
        for (shares, weight) in [(2, 1), (1024, 39), (262_144, 10_000)] {
            assert_eq!(cpu_weight(shares), weight, "{shares}");
        }
        for (blkio, weight) in [(10, 1), (500, 4950), (1000, 10_000)] {
            assert_eq!(io_weight(blkio), weight, "{blkio}");
        }
    }

    #[test]
    fn cpu() {
        check(
            r#"{"cpu":{"shares":1024,"quota":5000,"period":10000,"burst":3,"idle":1,"cpus":"0","mems":"0"}}"#,
            &[
                ("cpu.weight", "39"),
                ("cpu.max", "5000 10000"),
                ("cpu.max.burst", "3"),
                ("cpu.idle", "1"),
                ("cpuset.cpus", "0"),
                ("cpuset.mems", "0"),
            ],
        );
        check(r#"{"cpu":{"quota":-1}}"#, &[("cpu.max", "max")]);
        check(r#"{"cpu":{"quota":5000}}"#, &[("cpu.max", "5000")]);
        check(r#"{"cpu":{"period":5000}}"#, &[("cpu.max", "max 5000")]);
    }

    #[test]
    fn the_others() {
        check(r#"{"pids":{"limit":-1}}"#, &[("pids.max", "max")]);
        check(
            r#"{"blockIO":{"weight":10,"weightDevice":[{"major":8,"minor":0,"weight":30}],
                "throttleReadBpsDevice":[{"major":8,"minor":1,"rate":5}],"throttleWriteIOPSDevice":[{"major":8,"minor":2,"rate":0}]}}"#,
            &[
                ("io.bfq.weight", "10"),
                ("io.bfq.weight", "8:0 30"),
                ("io.max", "8:1 rbps=5"),
                ("io.max", "8:2 wiops=max"),
            ],
        );
        check(
            r#"{"hugepageLimits":[{"pageSize":"2MB","limit":5}],"unified":{"memory.high":"7","io.max":"8:0 rbps=1\n8:1 rbps=2"}}"#,
            &[
                ("hugetlb.2MB.max", "5"),
                ("hugetlb.2MB.rsvd.max", "5"),
                ("io.max", "8:0 rbps=1"),
                ("io.max", "8:1 rbps=2"),
                ("memory.high", "7"),
            ],
        );
        for file in ["../cgroup.procs", "a/b.c", "tasks"] {
            let json = format!(r#"{{"unified":{{"{file}":"1"}}}}"#);
            assert!(steps(&resources(&json), &mut Vec::new()).is_err(), "{file}");
        }
    }

    #[test]
    fn what_v2_does_not_have_is_noted() {
        let mut notes = Vec::new();
        let json = r#"{"memory":{"kernel":1,"kernelTCP":1,"swappiness":1,"disableOOMKiller":true},"cpu":{"realtimePeriod":1},
            "blockIO":{"leafWeight":10},"network":{"classID":1}}"#;
        assert_eq!(steps(&resources(json), &mut notes).unwrap(), []);
        assert_eq!(notes.len(), 7, "{notes:?}");
    }
}

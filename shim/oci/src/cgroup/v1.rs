//! `linux.resources` in the files of cgroup v1 (the kernel's Documentation/admin-guide/cgroup-v1).
//!
//! As with runc, 0 stands for "not given" where the kernel could not mean it, and -1 for no limit.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxNetwork, LinuxResources};

use super::error::CgroupError;
use super::limits::{check_page_size, rdma, shares, swappiness, throttles, weight, weight_value};
use super::step::{Step, Write};

/// The steps that set `resources`; what every host ignores goes to `notes`.
pub(super) fn steps(resources: &LinuxResources, notes: &mut Vec<String>) -> Result<Vec<Step>, CgroupError> {
    if resources.unified().as_ref().is_some_and(|unified| !unified.is_empty()) {
        return Err(CgroupError::UnifiedOnV1);
    }
    let mut steps = Vec::new();
    if let Some(memory) = resources.memory() {
        push_memory(&mut steps, memory, notes)?;
    }
    if let Some(cpu) = resources.cpu() {
        push_cpu(&mut steps, cpu)?;
    }
    if let Some(limit) = resources.pids().map(|pids| pids.limit()).filter(|limit| *limit != 0) {
        let value = if limit > 0 { limit.to_string() } else { "max".to_owned() };
        steps.push(Write::new("pids", "pids.max", value).into());
    }
    if let Some(block) = resources.block_io() {
        push_block(&mut steps, block)?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        push_hugepages(&mut steps, limit)?;
    }
    if let Some(network) = resources.network() {
        push_network(&mut steps, network);
    }
    for line in rdma(resources) {
        steps.push(Write::new("rdma", "rdma.max", line).into());
    }
    Ok(steps)
}

fn push_memory(steps: &mut Vec<Step>, memory: &LinuxMemory, notes: &mut Vec<String>) -> Result<(), CgroupError> {
    let limit = memory.limit().filter(|limit| *limit != 0);
    let swap = memory.swap().filter(|swap| *swap != 0);
    // Without a limit on memory, the sum of both has none that the kernel could compare with.
    let swap = if limit == Some(-1) && swap.is_none() { Some(-1) } else { swap };
    if let (Some(limit), Some(true)) = (limit, memory.check_before_update()) {
        steps.push(Step::Usage { controller: "memory".to_owned(), file: "memory.usage_in_bytes", limit });
    }
    let limit_step = limit.map(|limit| Write::new("memory", "memory.limit_in_bytes", limit));
    let swap_step = swap.map(|sum| {
        let write = Write::new("memory", "memory.memsw.limit_in_bytes", sum);
        // No limit on swap is what a kernel that counts none does.
        if sum == -1 { write.optional() } else { write }
    });
    match (limit_step, swap_step) {
        (Some(limit), Some(swap)) => steps.push(Step::Pair(limit, swap)),
        (limit, swap) => steps.extend(limit.into_iter().chain(swap).map(Step::from)),
    }
    if let Some(kernel) = memory.kernel().filter(|kernel| *kernel != 0) {
        notes.push("linux.resources.memory.kernel has no effect on kernels since 5.16".to_owned());
        steps.push(Write::new("memory", "memory.kmem.limit_in_bytes", kernel).optional().into());
    }
    if let Some(tcp) = memory.kernel_tcp().filter(|tcp| *tcp != 0) {
        steps.push(Write::new("memory", "memory.kmem.tcp.limit_in_bytes", tcp).optional().into());
    }
    if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
        steps.push(Write::new("memory", "memory.soft_limit_in_bytes", reservation).into());
    }
    if memory.disable_oom_killer() == Some(true) {
        steps.push(Write::new("memory", "memory.oom_control", 1).into());
    }
    if let Some(value) = swappiness(memory)? {
        steps.push(Write::new("memory", "memory.swappiness", value).into());
    }
    if memory.use_hierarchy() == Some(false) {
        notes.push("linux.resources.memory.useHierarchy is always true on kernels since 5.11".to_owned());
    }
    Ok(())
}

fn push_cpu(steps: &mut Vec<Step>, cpu: &LinuxCpu) -> Result<(), CgroupError> {
    if let Some(value) = shares(cpu)? {
        steps.push(Write::new("cpu", "cpu.shares", value).into());
    }
    let period = cpu.period().filter(|period| *period != 0);
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period_step = period.map(|period| Write::new("cpu", "cpu.cfs_period_us", period));
    let quota_step = quota.map(|quota| Write::new("cpu", "cpu.cfs_quota_us", quota));
    match (period_step, quota_step) {
        (Some(period), Some(quota)) => steps.push(Step::Pair(period, quota)),
        (period, quota) => steps.extend(period.into_iter().chain(quota).map(Step::from)),
    }
    if let Some(burst) = cpu.burst() {
        steps.push(Write::new("cpu", "cpu.cfs_burst_us", burst).into());
    }
    let rt_period = cpu.realtime_period().filter(|period| *period != 0);
    let rt_runtime = cpu.realtime_runtime().filter(|runtime| *runtime != 0);
    let rt_period = rt_period.map(|period| Write::new("cpu", "cpu.rt_period_us", period));
    let rt_runtime = rt_runtime.map(|runtime| Write::new("cpu", "cpu.rt_runtime_us", runtime));
    match (rt_period, rt_runtime) {
        (Some(period), Some(runtime)) => steps.push(Step::Pair(period, runtime)),
        (period, runtime) => steps.extend(period.into_iter().chain(runtime).map(Step::from)),
    }
    if let Some(idle) = cpu.idle() {
        steps.push(Write::new("cpu", "cpu.idle", idle).into());
    }
    for (file, value) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            steps.push(Write::new("cpuset", file, value).into());
        }
    }
    Ok(())
}

fn push_block(steps: &mut Vec<Step>, block: &LinuxBlockIo) -> Result<(), CgroupError> {
    let blkio = |file: &str, value: String| Write::new("blkio", file, value);
    if let Some(value) = weight("weight", block.weight())? {
        steps.push(blkio("blkio.weight", value.to_string()).or("blkio.bfq.weight").into());
    }
    if let Some(value) = weight("leafWeight", block.leaf_weight())? {
        steps.push(blkio("blkio.leaf_weight", value.to_string()).into());
    }
    for device in block.weight_device().iter().flatten() {
        if let Some(value) = weight_value(device, "weight", device.weight())? {
            steps.push(blkio("blkio.weight_device", value).or("blkio.bfq.weight_device").into());
        }
        if let Some(value) = weight_value(device, "leafWeight", device.leaf_weight())? {
            steps.push(blkio("blkio.leaf_weight_device", value).into());
        }
    }
    for (kind, device) in throttles(block) {
        let value = format!("{}:{} {}", device.major(), device.minor(), device.rate());
        steps.push(blkio(&format!("blkio.throttle.{}_device", kind.v1), value).into());
    }
    Ok(())
}

fn push_hugepages(steps: &mut Vec<Step>, limit: &LinuxHugepageLimit) -> Result<(), CgroupError> {
    let size = check_page_size(limit.page_size())?;
    steps.push(Write::new("hugetlb", format!("hugetlb.{size}.limit_in_bytes"), limit.limit()).into());
    // Reservations are counted since 5.7; without it a container could reserve what it may not use.
    let reserved = format!("hugetlb.{size}.rsvd.limit_in_bytes");
    steps.push(Write::new("hugetlb", reserved, limit.limit()).optional().into());
    Ok(())
}

fn push_network(steps: &mut Vec<Step>, network: &LinuxNetwork) {
    if let Some(class) = network.class_id().filter(|class| *class != 0) {
        steps.push(Write::new("net_cls", "net_cls.classid", class).into());
    }
    for priority in network.priorities().iter().flatten() {
        let value = format!("{} {}", priority.name(), priority.priority());
        steps.push(Write::new("net_prio", "net_prio.ifpriomap", value).into());
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::tests::resources;
    use super::*;

    fn check(json: &str, expected: &[(&str, &str)]) {
        let mut notes = Vec::new();
        let steps = steps(&resources(json), &mut notes).unwrap();
        let mut seen: Vec<(String, String)> = Vec::new();
        for step in &steps {
            match step {
                Step::Pair(first, second) | Step::Else(first, second) => {
                    seen.extend([first, second].map(|write| (write.files.join("|"), write.value.clone())));
                }
                Step::Write(write) => seen.push((write.files.join("|"), write.value.clone())),
                Step::Usage { file, limit, .. } => seen.push((format!("{file}?"), limit.to_string())),
            }
        }
        let seen: Vec<(&str, &str)> = seen.iter().map(|(file, value)| (file.as_str(), value.as_str())).collect();
        assert_eq!(seen, expected, "{json}");
    }

    #[test]
    fn memory() {
        check(
            r#"{"memory":{"limit":1048576,"swap":2097152,"reservation":4096,"kernel":1,"kernelTCP":2,"swappiness":0,"disableOOMKiller":true,"checkBeforeUpdate":true}}"#,
            &[
                ("memory.usage_in_bytes?", "1048576"),
                ("memory.limit_in_bytes", "1048576"),
                ("memory.memsw.limit_in_bytes", "2097152"),
                ("memory.kmem.limit_in_bytes", "1"),
                ("memory.kmem.tcp.limit_in_bytes", "2"),
                ("memory.soft_limit_in_bytes", "4096"),
                ("memory.oom_control", "1"),
                ("memory.swappiness", "0"),
            ],
        );
        check(r#"{"memory":{"limit":-1}}"#, &[("memory.limit_in_bytes", "-1"), ("memory.memsw.limit_in_bytes", "-1")]);
        check(r#"{"memory":{"limit":0,"swap":0,"disableOOMKiller":false,"useHierarchy":true}}"#, &[]);
    }

    #[test]
    fn cpu() {
        check(
            r#"{"cpu":{"shares":2,"quota":-1,"period":50000,"burst":7,"realtimeRuntime":1,"realtimePeriod":2,"cpus":"0-1","mems":"0","idle":1}}"#,
            &[
                ("cpu.shares", "2"),
                ("cpu.cfs_period_us", "50000"),
                ("cpu.cfs_quota_us", "-1"),
                ("cpu.cfs_burst_us", "7"),
                ("cpu.rt_period_us", "2"),
                ("cpu.rt_runtime_us", "1"),
                ("cpu.idle", "1"),
                ("cpuset.cpus", "0-1"),
                ("cpuset.mems", "0"),
            ],
        );
        check(r#"{"cpu":{"shares":0,"quota":0,"period":0,"cpus":"","mems":""}}"#, &[]);
    }

    #[test]
    fn the_others() {
        check(r#"{"pids":{"limit":-1}}"#, &[("pids.max", "max")]);
        check(r#"{"pids":{"limit":9}}"#, &[("pids.max", "9")]);
        check(r#"{"pids":{"limit":0}}"#, &[]);
        check(
            r#"{"blockIO":{"weight":10,"leafWeight":20,"weightDevice":[{"major":8,"minor":0,"weight":30,"leafWeight":40}],
                "throttleReadBpsDevice":[{"major":8,"minor":1,"rate":5}],"throttleWriteIOPSDevice":[{"major":8,"minor":2,"rate":6}]}}"#,
            &[
                ("blkio.weight|blkio.bfq.weight", "10"),
                ("blkio.leaf_weight", "20"),
                ("blkio.weight_device|blkio.bfq.weight_device", "8:0 30"),
                ("blkio.leaf_weight_device", "8:0 40"),
                ("blkio.throttle.read_bps_device", "8:1 5"),
                ("blkio.throttle.write_iops_device", "8:2 6"),
            ],
        );
        check(
            r#"{"hugepageLimits":[{"pageSize":"2MB","limit":5}],"network":{"classID":1,"priorities":[{"name":"lo","priority":3}]},
                "rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":4}}}"#,
            &[
                ("hugetlb.2MB.limit_in_bytes", "5"),
                ("hugetlb.2MB.rsvd.limit_in_bytes", "5"),
                ("net_cls.classid", "1"),
                ("net_prio.ifpriomap", "lo 3"),
                ("rdma.max", "mlx5_1 hca_handle=3 hca_object=4"),
            ],
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let check = |json: &str, words: &str| {
            let error = steps(&resources(json), &mut Vec::new()).unwrap_err().to_string();
            assert!(error.contains(words), "{json}: {error}");
        };
        check(r#"{"memory":{"swappiness":101}}"#, "linux.resources.memory.swappiness is 101");
        check(r#"{"cpu":{"shares":1}}"#, "the minimum allowed cpu-shares is 2");
        check(r#"{"cpu":{"shares":262145}}"#, "the maximum allowed cpu-shares is 262144");
        check(r#"{"blockIO":{"weight":9}}"#, "linux.resources.blockIO.weight is 9");
        check(r#"{"hugepageLimits":[{"pageSize":"../x","limit":5}]}"#, "hugepageLimits.pageSize is ../x");
        check(r#"{"unified":{"memory.max":"1"}}"#, "cannot be used on cgroup v1");
    }
}

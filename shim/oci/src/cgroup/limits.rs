//! What both versions say alike of `linux.resources`: ranges, devices, page sizes.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice, LinuxWeightDevice};

use super::error::CgroupError;

/// The kernel clamps without a word what is outside (`MIN_SHARES` and `MAX_SHARES` in its scheduler).
pub(super) fn shares(cpu: &LinuxCpu) -> Result<Option<u64>, CgroupError> {
    match cpu.shares() {
        None | Some(0) => Ok(None),
        Some(1) => Err(CgroupError::invalid("cpu.shares", 1, "the minimum allowed cpu-shares is 2")),
        Some(shares) if shares > 262_144 => {
            Err(CgroupError::invalid("cpu.shares", shares, "the maximum allowed cpu-shares is 262144"))
        }
        Some(shares) => Ok(Some(shares)),
    }
}

/// From 0 to 100.
pub(super) fn swappiness(memory: &LinuxMemory) -> Result<Option<u64>, CgroupError> {
    match memory.swappiness() {
        Some(value) if value > 100 => {
            Err(CgroupError::invalid("memory.swappiness", value, "it goes from 0 (never) to 100 (eagerly)"))
        }
        value => Ok(value),
    }
}

/// A weight of block I/O; 0 stands for none.
pub(super) fn weight(field: &str, value: Option<u16>) -> Result<Option<u16>, CgroupError> {
    match value {
        None | Some(0) => Ok(None),
        Some(10..=1000) => Ok(value),
        Some(other) => Err(CgroupError::invalid(format!("blockIO.{field}"), other, "a weight is from 10 to 1000")),
    }
}

/// `major:minor weight`.
pub(super) fn weight_value(
    device: &LinuxWeightDevice,
    field: &str,
    value: Option<u16>,
) -> Result<Option<String>, CgroupError> {
    let value = weight(&format!("weightDevice.{field}"), value)?;
    Ok(value.map(|value| format!("{}:{} {value}", device.major(), device.minor())))
}

/// One of the four throttles.
pub(super) struct Throttle {
    /// In the name of v1's file.
    pub(super) v1: &'static str,
    /// The key in v2's io.max.
    pub(super) v2: &'static str,
}

/// Every throttled device, with what of it is throttled.
pub(super) fn throttles(block: &LinuxBlockIo) -> Vec<(Throttle, &LinuxThrottleDevice)> {
    let lists = [
        ("read_bps", "rbps", block.throttle_read_bps_device()),
        ("write_bps", "wbps", block.throttle_write_bps_device()),
        ("read_iops", "riops", block.throttle_read_iops_device()),
        ("write_iops", "wiops", block.throttle_write_iops_device()),
    ];
    lists
        .into_iter()
        .flat_map(|(v1, v2, devices)| devices.iter().flatten().map(move |device| (Throttle { v1, v2 }, device)))
        .collect()
}

/// A size as the kernel names it (`64KB`, `2MB`, `1GB`): it becomes a part of a file's name.
pub(super) fn check_page_size(size: &str) -> Result<&str, CgroupError> {
    let is_size = |unit: &str| {
        let number = size.strip_suffix(unit);
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    if ["KB", "MB", "GB"].into_iter().any(is_size) {
        return Ok(size);
    }
    Err(CgroupError::invalid("hugepageLimits.pageSize", size, "it is a number and KB, MB or GB, such as 2MB"))
}

/// The lines of `rdma.max`.
pub(super) fn rdma(resources: &LinuxResources) -> Vec<String> {
    let mut lines: Vec<String> = resources
        .rdma()
        .iter()
        .flatten()
        .map(|(device, limit)| {
            let handles = limit.hca_handles().map(|handles| format!(" hca_handle={handles}"));
            let objects = limit.hca_objects().map(|objects| format!(" hca_object={objects}"));
            format!("{device}{}{}", handles.unwrap_or_default(), objects.unwrap_or_default())
        })
        .collect();
    lines.sort();
    lines
}

/// Whether anything is limited: devices are not counted, which a rootless container leaves to the kernel's permissions.
pub(super) fn is_limited(resources: &LinuxResources) -> bool {
    let memory = resources.memory().is_some_and(|memory| memory != LinuxMemory::default());
    let cpu = resources.cpu().as_ref().is_some_and(|cpu| *cpu != LinuxCpu::default());
    let pids = resources.pids().is_some_and(|pids| pids.limit() != 0);
    let block = resources.block_io().as_ref().is_some_and(|block| *block != LinuxBlockIo::default());
    let pages = resources.hugepage_limits().as_ref().is_some_and(|limits| !limits.is_empty());
    let rdma = resources.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty());
    let unified = resources.unified().as_ref().is_some_and(|unified| !unified.is_empty());
    let network = resources.network().as_ref().is_some_and(|network| {
        network.class_id().is_some_and(|class| class != 0)
            || network.priorities().as_ref().is_some_and(|priorities| !priorities.is_empty())
    });
    memory || cpu || pids || block || pages || rdma || unified || network
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn resources(json: &str) -> LinuxResources {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn only_what_limits_counts() {
        let check = |json: &str, expected: bool| assert_eq!(is_limited(&resources(json)), expected, "{json}");
        check("{}", false);
        check(r#"{"devices":[{"allow":false,"access":"rwm"}],"memory":{},"cpu":{},"network":{}}"#, false);
        check(r#"{"pids":{"limit":0},"hugepageLimits":[],"unified":{}}"#, false);
        check(r#"{"pids":{"limit":5}}"#, true);
        check(r#"{"memory":{"limit":5}}"#, true);
        check(r#"{"cpu":{"cpus":"0"}}"#, true);
        check(r#"{"unified":{"memory.max":"1"}}"#, true);
    }

    #[test]
    fn a_page_size_cannot_be_a_path() {
        for size in ["2MB", "64KB", "1GB"] {
            assert_eq!(check_page_size(size).unwrap(), size);
        }
        for size in ["", "MB", "2M", "2mb", "a/2MB", "-2MB", "2MB "] {
            assert!(check_page_size(size).is_err(), "{size}");
        }
    }
}

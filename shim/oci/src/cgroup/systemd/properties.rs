//! The properties of a container's scope (org.freedesktop.systemd1(5), systemd.resource-control(5)).

use std::path::Path;

use apex_jail::cgroup::unit::Property;
use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::super::error::CgroupError;
use super::super::{Version, Wanted, devices, dir, stats, v2};
use super::name::Triple;
use super::{Properties, annotation};

/// "No limit", for systemd.
const INFINITY: u64 = u64::MAX;

/// Microseconds of the period that a quota is counted in, when none is given.
const PERIOD_US: u64 = 100_000;

/// Quotas go in steps of this many microseconds a second: a hundredth of one processor.
const QUOTA_STEP_US: u64 = 10_000;

/// Everything but the pid.
pub(super) fn of(
    triple: &Triple,
    wanted: &Wanted<'_>,
    resources: &LinuxResources,
    version: Version,
) -> Result<Properties, CgroupError> {
    let text = |word: &str| Property::Text(word.to_owned());
    let mut properties = vec![
        ("Description".to_owned(), text(&format!("Apex container {}", wanted.id))),
        ("DefaultDependencies".to_owned(), Property::Flag(false)),
        // A scope that ended by an OOM kill would otherwise stay as `failed` until somebody resets it.
        ("CollectMode".to_owned(), text("inactive-or-failed")),
    ];
    if triple.is_slice() {
        properties.push(("Wants".to_owned(), Property::Texts(vec![triple.slice.clone()])));
    } else {
        properties.push(("Slice".to_owned(), text(&triple.slice)));
        properties.push(("Delegate".to_owned(), Property::Flag(true)));
    }
    let io = if version == Version::V2 { "IOAccounting" } else { "BlockIOAccounting" };
    for name in ["MemoryAccounting", "CPUAccounting", "TasksAccounting", io] {
        properties.push((name.to_owned(), Property::Flag(true)));
    }
    push_limits(&mut properties, resources, version);
    if version == Version::V1 && !wanted.is_rootless {
        push_devices(&mut properties, resources)?;
    }
    for (name, property) in annotation::properties(wanted.annotations)? {
        properties.retain(|(known, _)| *known != name);
        properties.push((name, property));
    }
    Ok(properties)
}

fn amount(value: i64) -> Property {
    // Negative stands for no limit.
    Property::Uint64(u64::try_from(value).unwrap_or(INFINITY))
}

/// The limits that systemd knows too.
pub(super) fn push_limits(properties: &mut Properties, resources: &LinuxResources, version: Version) {
    if let Some(memory) = resources.memory() {
        push_memory(properties, memory, version);
    }
    if let Some(cpu) = resources.cpu() {
        push_cpu(properties, cpu, version);
    }
    if let Some(limit) = resources.pids().map(|pids| pids.limit()).filter(|limit| *limit != 0) {
        properties.push(("TasksMax".to_owned(), amount(limit)));
    }
}

fn push_memory(properties: &mut Properties, memory: &LinuxMemory, version: Version) {
    let limit = memory.limit().filter(|limit| *limit != 0);
    if version != Version::V2 {
        properties.extend(limit.map(|limit| ("MemoryLimit".to_owned(), amount(limit))));
        return;
    }
    properties.extend(limit.map(|limit| ("MemoryMax".to_owned(), amount(limit))));
    let reservation = memory.reservation().filter(|reservation| *reservation != 0);
    properties.extend(reservation.map(|reservation| ("MemoryLow".to_owned(), amount(reservation))));
    // What contradicts itself was refused before.
    if let Ok(Some(swap)) = v2::swap_alone(memory) {
        properties.push(("MemorySwapMax".to_owned(), amount(swap)));
    }
}

fn push_cpu(properties: &mut Properties, cpu: &LinuxCpu, version: Version) {
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        properties.push(match version {
            Version::V2 => ("CPUWeight".to_owned(), Property::Uint64(v2::cpu_weight(shares))),
            Version::V1 | Version::None => ("CPUShares".to_owned(), Property::Uint64(shares)),
        });
    }
    let period = cpu.period().filter(|period| *period != 0);
    properties.extend(period.map(|period| ("CPUQuotaPeriodUSec".to_owned(), Property::Uint64(period))));
    if let Some(quota) = cpu.quota().filter(|quota| *quota != 0) {
        let us = per_second(quota, period.unwrap_or(PERIOD_US));
        properties.push(("CPUQuotaPerSecUSec".to_owned(), Property::Uint64(us)));
    }
    if version == Version::V2 {
        for (name, list) in [("AllowedCPUs", cpu.cpus()), ("AllowedMemoryNodes", cpu.mems())] {
            let bits = list.as_deref().filter(|list| !list.is_empty()).and_then(bits);
            properties.extend(bits.map(|bits| (name.to_owned(), Property::Bytes(bits))));
        }
    }
}

/// Microseconds a second, never less than asked for.
fn per_second(quota_us: i64, period_us: u64) -> u64 {
    match u64::try_from(quota_us) {
        Ok(quota) => {
            let us = u128::from(quota) * 1_000_000 / u128::from(period_us.max(1));
            u64::try_from(us).unwrap_or(INFINITY - QUOTA_STEP_US).next_multiple_of(QUOTA_STEP_US)
        }
        Err(_) => INFINITY,
    }
}

/// A list of processors as a set of bits, the lowest first.
fn bits(list: &str) -> Option<Vec<u8>> {
    let numbers = stats::range_list(list)?;
    let highest = numbers.iter().max()?;
    let mut bytes = vec![0; usize::from(*highest) / 8 + 1];
    for number in &numbers {
        bytes[usize::from(*number) / 8] |= 1 << (number % 8);
    }
    Some(bytes)
}

/// v1: without these the manager would open the devices again when it reloads.
fn push_devices(properties: &mut Properties, resources: &LinuxResources) -> Result<(), CgroupError> {
    let rules = devices::rules(resources.devices().as_deref().unwrap_or_default())?;
    let policy = |word: &str| ("DevicePolicy".to_owned(), Property::Text(word.to_owned()));
    match devices::allowed(&rules)? {
        None => properties.push(policy("auto")),
        Some(allowed) => {
            let known = dir::read_path(Path::new("/proc/devices")).unwrap_or_default();
            let pairs = allowed.iter().filter_map(|(devices, access)| allow(*devices, access, &known)).collect();
            properties.push(policy("strict"));
            properties.push(("DeviceAllow".to_owned(), Property::Pairs(pairs)));
        }
    }
    Ok(())
}

/// A rule in systemd's words: a node by its numbers, or a group of /proc/devices. What has no words there stays denied.
fn allow(devices: devices::Devices, access: &str, known: &str) -> Option<(String, String)> {
    let kind = if devices.is_block { "block" } else { "char" };
    let node = match (devices.major, devices.minor) {
        (None, _) => format!("{kind}-*"),
        (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
        (Some(major), None) => format!("{kind}-{}", group(known, devices.is_block, major)?),
    };
    Some((node, access.to_owned()))
}

/// The name of a major number in /proc/devices (proc(5)).
fn group(known: &str, is_block: bool, major: u32) -> Option<&str> {
    let heading = if is_block { "Block devices:" } else { "Character devices:" };
    let lines = known.lines().skip_while(|line| *line != heading).skip(1).take_while(|line| !line.is_empty());
    lines.map(str::trim).find_map(|line| {
        let (number, name) = line.split_once(' ')?;
        (number.parse() == Ok(major)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::limits::tests::resources;
    use super::*;

    fn limits(json: &str, version: Version) -> Properties {
        let mut properties = Properties::new();
        push_limits(&mut properties, &resources(json), version);
        properties
    }

    #[test]
    fn limits_become_properties() {
        let json = r#"{"memory":{"limit":100,"swap":150,"reservation":-1},"cpu":{"shares":1024,"quota":5000,"period":10000,"cpus":"0-1,9","mems":"0"},"pids":{"limit":7}}"#;
        let number = |name: &str, number| (name.to_owned(), Property::Uint64(number));
        let v2 = [
            number("MemoryMax", 100),
            number("MemoryLow", INFINITY),
            number("MemorySwapMax", 50),
            number("CPUWeight", 39),
            number("CPUQuotaPeriodUSec", 10_000),
            number("CPUQuotaPerSecUSec", 500_000),
            ("AllowedCPUs".to_owned(), Property::Bytes(vec![3, 2])),
            ("AllowedMemoryNodes".to_owned(), Property::Bytes(vec![1])),
            number("TasksMax", 7),
        ];
        assert_eq!(limits(json, Version::V2), v2);
        let v1 = [
            number("MemoryLimit", 100),
            number("CPUShares", 1024),
            number("CPUQuotaPeriodUSec", 10_000),
            number("CPUQuotaPerSecUSec", 500_000),
            number("TasksMax", 7),
        ];
        assert_eq!(limits(json, Version::V1), v1);
        assert_eq!(limits("{}", Version::V2), []);
    }

    #[test]
    fn quotas_are_rounded_up() {
        for (quota, period, expected) in [(1000, 100_000, 10_000), (1001, 100_000, 20_000), (-1, 1, INFINITY)] {
            assert_eq!(per_second(quota, period), expected, "{quota} {period}");
        }
    }

    #[test]
    fn devices_have_the_words_of_systemd() {
        let known = "Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  8 sd\n136 other\n";
        let device = |is_block, major, minor| devices::Devices { is_block, major, minor };
        let check = |device, expected: Option<&str>| {
            let pair = allow(device, "rw", known);
            assert_eq!(pair.as_ref().map(|(node, _)| node.as_str()), expected, "{device:?}");
        };
        check(device(false, None, None), Some("char-*"));
        check(device(false, Some(136), None), Some("char-pts"));
        check(device(true, Some(8), None), Some("block-sd"));
        check(device(true, Some(8), Some(1)), Some("/dev/block/8:1"));
        check(device(true, Some(9), None), None);
    }
}

//! What a container uses, in the words and the JSON of runc's `events`.

use std::collections::BTreeMap;

use serde::Serialize;

use super::dir::Dir;
use super::error::CgroupError;
use super::{Cgroup, Version};

/// Nanoseconds in a tick of `cpuacct.stat` (USER_HZ is 100 on every architecture that Linux still has).
const TICK_NS: u64 = 10_000_000;

/// A file that says "no limit" where others have a number.
const UNLIMITED: u64 = u64::MAX;

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Everything that is counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    /// Processor time.
    pub cpu: Cpu,
    /// Processors and memory nodes (v1).
    pub cpuset: CpuSet,
    /// Memory.
    pub memory: Memory,
    /// Tasks.
    pub pids: Pids,
    /// Block devices.
    pub blkio: Blkio,
    /// Huge pages, by size.
    pub hugetlb: BTreeMap<String, Hugetlb>,
    /// Cache allocation, which is not supported: empty.
    pub intel_rdt: BTreeMap<String, String>,
    /// Not counted by a cgroup: none.
    pub network_interfaces: Option<Vec<String>>,
}

/// Processor time and throttling.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cpu {
    /// Time used.
    pub usage: CpuUsage,
    /// Time withheld.
    pub throttling: Throttling,
}

/// Processor time in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CpuUsage {
    /// In all.
    #[serde(skip_serializing_if = "is_zero")]
    pub total: u64,
    /// By processor (v1).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    /// In the kernel, by processor (v1).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_kernel: Vec<u64>,
    /// Outside of it, by processor (v1).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_user: Vec<u64>,
    /// In the kernel.
    pub kernel: u64,
    /// Outside of it.
    pub user: u64,
}

/// What a quota withheld.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    /// Periods counted.
    #[serde(skip_serializing_if = "is_zero")]
    pub periods: u64,
    /// Those in which it ran out.
    #[serde(skip_serializing_if = "is_zero")]
    pub throttled_periods: u64,
    /// Nanoseconds withheld.
    #[serde(skip_serializing_if = "is_zero")]
    pub throttled_time: u64,
}

/// The cpuset of v1.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CpuSet {
    /// Processors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u16>,
    /// `cpuset.cpu_exclusive`
    pub cpu_exclusive: u64,
    /// Memory nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mems: Vec<u16>,
    /// `cpuset.mem_hardwall`
    pub mem_hardwall: u64,
    /// `cpuset.mem_exclusive`
    pub mem_exclusive: u64,
    /// `cpuset.memory_migrate`
    pub memory_migrate: u64,
    /// `cpuset.memory_spread_page`
    pub memory_spread_page: u64,
    /// `cpuset.memory_spread_slab`
    pub memory_spread_slab: u64,
    /// `cpuset.memory_pressure`
    pub memory_pressure: u64,
    /// `cpuset.sched_load_balance`
    pub sched_load_balance: u64,
    /// `cpuset.sched_relax_domain_level`
    pub sched_relax_domain_level: i64,
}

/// Memory in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    /// Page cache.
    #[serde(skip_serializing_if = "is_zero")]
    pub cache: u64,
    /// Memory.
    pub usage: MemoryEntry,
    /// Memory and swap together.
    pub swap: MemoryEntry,
    /// Memory of the kernel (v1).
    pub kernel: MemoryEntry,
    /// Buffers of TCP (v1).
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: MemoryEntry,
    /// `memory.stat`
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub raw: BTreeMap<String, u64>,
}

/// One kind of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct MemoryEntry {
    /// The most there may be.
    pub limit: u64,
    /// What there is.
    #[serde(skip_serializing_if = "is_zero")]
    pub usage: u64,
    /// What there was at most.
    #[serde(skip_serializing_if = "is_zero")]
    pub max: u64,
    /// How often the limit stood in the way.
    pub failcnt: u64,
}

/// Tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Pids {
    /// Now.
    #[serde(skip_serializing_if = "is_zero")]
    pub current: u64,
    /// At most; 0 for no limit.
    #[serde(skip_serializing_if = "is_zero")]
    pub limit: u64,
}

/// Huge pages of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Hugetlb {
    /// Bytes now.
    #[serde(skip_serializing_if = "is_zero")]
    pub usage: u64,
    /// Bytes at most so far (v1).
    #[serde(skip_serializing_if = "is_zero")]
    pub max: u64,
    /// Refusals.
    pub failcnt: u64,
}

/// Block I/O: the tables of the blkio controller, empty where the kernel does not keep them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Blkio {
    /// Bytes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_bytes_recursive: Vec<BlkioEntry>,
    /// Operations.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_serviced_recursive: Vec<BlkioEntry>,
    /// Waiting operations.
    #[serde(rename = "ioQueueRecursive", skip_serializing_if = "Vec::is_empty")]
    pub io_queued_recursive: Vec<BlkioEntry>,
    /// Nanoseconds of service.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_time_recursive: Vec<BlkioEntry>,
    /// Nanoseconds of waiting.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_wait_time_recursive: Vec<BlkioEntry>,
    /// Merged operations.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_merged_recursive: Vec<BlkioEntry>,
    /// Milliseconds on the device.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_time_recursive: Vec<BlkioEntry>,
    /// Sectors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sectors_recursive: Vec<BlkioEntry>,
}

/// A number for one device and one kind of operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlkioEntry {
    /// Major number.
    #[serde(skip_serializing_if = "is_zero")]
    pub major: u64,
    /// Minor number.
    #[serde(skip_serializing_if = "is_zero")]
    pub minor: u64,
    /// `Read`, `Write` and so on.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub op: String,
    /// The number.
    #[serde(skip_serializing_if = "is_zero")]
    pub value: u64,
}

impl Cgroup {
    /// What the container uses now. Controllers that are not there count nothing.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        let mut stats = Stats::default();
        match self.version {
            Version::None => return Err(CgroupError::None { verb: "tell what it uses" }),
            Version::V2 => {
                if let Some(place) = self.v2() {
                    v2(&mut stats, place.open()?)?;
                }
            }
            Version::V1 => {
                for place in &self.places {
                    for name in &place.names {
                        v1(&mut stats, name, place.open()?)?;
                    }
                }
            }
        }
        Ok(stats)
    }
}

fn v1(stats: &mut Stats, controller: &str, dir: &Dir) -> Result<(), CgroupError> {
    match controller {
        "cpu" => {
            let stat = keyed(dir, "cpu.stat")?;
            stats.cpu.throttling = Throttling {
                periods: value(&stat, "nr_periods"),
                throttled_periods: value(&stat, "nr_throttled"),
                throttled_time: value(&stat, "throttled_time"),
            };
        }
        "cpuacct" => stats.cpu.usage = cpuacct(dir)?,
        "cpuset" => stats.cpuset = cpuset(dir)?,
        "memory" => stats.memory = memory_v1(dir)?,
        "pids" => stats.pids = pids(dir)?,
        "blkio" => stats.blkio = blkio_v1(dir)?,
        "hugetlb" => stats.hugetlb = hugetlb(dir, false)?,
        // The others count nothing.
        _ => {}
    }
    Ok(())
}

fn v2(stats: &mut Stats, dir: &Dir) -> Result<(), CgroupError> {
    let stat = keyed(dir, "cpu.stat")?;
    let ns = |key: &str| value(&stat, key).saturating_mul(1000);
    stats.cpu.usage =
        CpuUsage { total: ns("usage_usec"), kernel: ns("system_usec"), user: ns("user_usec"), ..CpuUsage::default() };
    stats.cpu.throttling = Throttling {
        periods: value(&stat, "nr_periods"),
        throttled_periods: value(&stat, "nr_throttled"),
        throttled_time: ns("throttled_usec"),
    };
    stats.memory = memory_v2(dir)?;
    stats.pids = pids(dir)?;
    stats.blkio = dir.read_if_there("io.stat")?.map(|text| io_stat(&text)).unwrap_or_default();
    stats.hugetlb = hugetlb(dir, true)?;
    Ok(())
}

/// A file of one number or `max`; `None` when the host does not have it.
fn number(dir: &Dir, file: &str) -> Result<Option<u64>, CgroupError> {
    let Some(text) = dir.read_if_there(file)? else {
        return Ok(None);
    };
    let text = text.trim();
    if text == "max" {
        return Ok(Some(UNLIMITED));
    }
    text.parse().map(Some).map_err(|_| CgroupError::malformed(dir.path().join(file), text))
}

/// A file of lines with a key and a number; empty when the host does not have it.
fn keyed(dir: &Dir, file: &str) -> Result<BTreeMap<String, u64>, CgroupError> {
    let text = dir.read_if_there(file)?.unwrap_or_default();
    let parse = |line: &str| {
        let (key, number) = line.split_once(' ')?;
        Some((key.to_owned(), number.trim().parse().ok()?))
    };
    text.lines().map(|line| parse(line).ok_or_else(|| CgroupError::malformed(dir.path().join(file), line))).collect()
}

fn value(map: &BTreeMap<String, u64>, key: &str) -> u64 {
    map.get(key).copied().unwrap_or(0)
}

fn cpuacct(dir: &Dir) -> Result<CpuUsage, CgroupError> {
    let stat = keyed(dir, "cpuacct.stat")?;
    let mut usage = CpuUsage {
        total: number(dir, "cpuacct.usage")?.unwrap_or(0),
        user: value(&stat, "user").saturating_mul(TICK_NS),
        kernel: value(&stat, "system").saturating_mul(TICK_NS),
        ..CpuUsage::default()
    };
    let words = |text: String| -> Vec<u64> { text.split_whitespace().filter_map(|word| word.parse().ok()).collect() };
    usage.percpu = dir.read_if_there("cpuacct.usage_percpu")?.map(words).unwrap_or_default();
    // Lines of processor, user and system below a heading.
    for line in dir.read_if_there("cpuacct.usage_all")?.unwrap_or_default().lines().skip(1) {
        if let [_, user, kernel] = words(line.to_owned())[..] {
            usage.percpu_user.push(user);
            usage.percpu_kernel.push(kernel);
        }
    }
    Ok(usage)
}

fn cpuset(dir: &Dir) -> Result<CpuSet, CgroupError> {
    let list = |file: &str| -> Result<Vec<u16>, CgroupError> {
        let text = dir.read_if_there(file)?.unwrap_or_default();
        range_list(text.trim()).ok_or_else(|| CgroupError::malformed(dir.path().join(file), &text))
    };
    let one = |file: &str| -> Result<u64, CgroupError> { Ok(number(dir, file)?.unwrap_or(0)) };
    let level = dir.read_if_there("cpuset.sched_relax_domain_level")?.unwrap_or_default();
    Ok(CpuSet {
        cpus: list("cpuset.cpus")?,
        cpu_exclusive: one("cpuset.cpu_exclusive")?,
        mems: list("cpuset.mems")?,
        mem_hardwall: one("cpuset.mem_hardwall")?,
        mem_exclusive: one("cpuset.mem_exclusive")?,
        memory_migrate: one("cpuset.memory_migrate")?,
        memory_spread_page: one("cpuset.memory_spread_page")?,
        memory_spread_slab: one("cpuset.memory_spread_slab")?,
        memory_pressure: one("cpuset.memory_pressure")?,
        sched_load_balance: one("cpuset.sched_load_balance")?,
        sched_relax_domain_level: level.trim().parse().unwrap_or(-1),
    })
}

/// `0-2,7` (cpuset(7), "List format").
pub(super) fn range_list(text: &str) -> Option<Vec<u16>> {
    let mut numbers = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range = first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?;
        if range.is_empty() {
            return None;
        }
        numbers.extend(range);
    }
    Some(numbers)
}

fn memory_v1(dir: &Dir) -> Result<Memory, CgroupError> {
    let raw = keyed(dir, "memory.stat")?;
    let entry = |part: &str| -> Result<MemoryEntry, CgroupError> {
        let read =
            |file: &str| -> Result<u64, CgroupError> { Ok(number(dir, &format!("memory.{part}{file}"))?.unwrap_or(0)) };
        Ok(MemoryEntry {
            limit: read("limit_in_bytes")?,
            usage: read("usage_in_bytes")?,
            max: read("max_usage_in_bytes")?,
            failcnt: read("failcnt")?,
        })
    };
    Ok(Memory {
        cache: value(&raw, "cache"),
        usage: entry("")?,
        swap: entry("memsw.")?,
        kernel: entry("kmem.")?,
        kernel_tcp: entry("kmem.tcp.")?,
        raw,
    })
}

fn memory_v2(dir: &Dir) -> Result<Memory, CgroupError> {
    let raw = keyed(dir, "memory.stat")?;
    let entry = |part: &str| -> Result<MemoryEntry, CgroupError> {
        let read =
            |file: &str| -> Result<u64, CgroupError> { Ok(number(dir, &format!("memory.{part}{file}"))?.unwrap_or(0)) };
        Ok(MemoryEntry { limit: read("max")?, usage: read("current")?, max: read("peak")?, failcnt: 0 })
    };
    let mut usage = entry("")?;
    usage.failcnt = value(&keyed(dir, "memory.events")?, "max");
    let swap = entry("swap.")?;
    // v1 counts both together, and so do those who read this.
    let both = MemoryEntry {
        limit: usage.limit.saturating_add(swap.limit),
        usage: usage.usage.saturating_add(swap.usage),
        max: 0,
        failcnt: 0,
    };
    Ok(Memory { cache: value(&raw, "file"), usage, swap: both, raw, ..Memory::default() })
}

fn pids(dir: &Dir) -> Result<Pids, CgroupError> {
    let limit = number(dir, "pids.max")?.filter(|limit| *limit != UNLIMITED);
    Ok(Pids { current: number(dir, "pids.current")?.unwrap_or(0), limit: limit.unwrap_or(0) })
}

/// Tables of the first scheduler that fills one: BFQ, else the throttle, which counts whatever there is.
fn blkio_v1(dir: &Dir) -> Result<Blkio, CgroupError> {
    let table = |names: &[&str]| -> Result<Vec<BlkioEntry>, CgroupError> {
        for name in names {
            let text = dir.read_if_there(&format!("blkio.{name}"))?.unwrap_or_default();
            let entries: Vec<BlkioEntry> = text.lines().filter_map(blkio_line).collect();
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
        Ok(Vec::new())
    };
    Ok(Blkio {
        io_service_bytes_recursive: table(&[
            "bfq.io_service_bytes_recursive",
            "io_service_bytes_recursive",
            "throttle.io_service_bytes_recursive",
        ])?,
        io_serviced_recursive: table(&[
            "bfq.io_serviced_recursive",
            "io_serviced_recursive",
            "throttle.io_serviced_recursive",
        ])?,
        io_queued_recursive: table(&["bfq.io_queued_recursive", "io_queued_recursive"])?,
        io_service_time_recursive: table(&["bfq.io_service_time_recursive", "io_service_time_recursive"])?,
        io_wait_time_recursive: table(&["bfq.io_wait_time_recursive", "io_wait_time_recursive"])?,
        io_merged_recursive: table(&["bfq.io_merged_recursive", "io_merged_recursive"])?,
        io_time_recursive: table(&["bfq.time_recursive", "time_recursive"])?,
        sectors_recursive: table(&["bfq.sectors_recursive", "sectors_recursive"])?,
    })
}

/// `8:0 Read 4096`, or `8:0 12`; the sum at the end of a table is no entry.
fn blkio_line(line: &str) -> Option<BlkioEntry> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let (op, number) = match (words.next()?, words.next()) {
        (op, Some(number)) => (op, number),
        (number, None) => ("", number),
    };
    Some(BlkioEntry {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        op: op.to_owned(),
        value: number.parse().ok()?,
    })
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`, in the tables of v1.
fn io_stat(text: &str) -> Blkio {
    let mut blkio = Blkio::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else {
            continue;
        };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else {
            continue;
        };
        for (key, number) in words.filter_map(|word| word.split_once('=')) {
            let (is_bytes, op) = match key {
                "rbytes" => (true, "Read"),
                "wbytes" => (true, "Write"),
                "dbytes" => (true, "Discard"),
                "rios" => (false, "Read"),
                "wios" => (false, "Write"),
                "dios" => (false, "Discard"),
                // The cost model has more, which v1 has no table for.
                _ => continue,
            };
            let entry = BlkioEntry { major, minor, op: op.to_owned(), value: number.parse().unwrap_or(0) };
            let table = if is_bytes { &mut blkio.io_service_bytes_recursive } else { &mut blkio.io_serviced_recursive };
            table.push(entry);
        }
    }
    blkio
}

/// Sizes are told by the names of the files.
fn hugetlb(dir: &Dir, is_v2: bool) -> Result<BTreeMap<String, Hugetlb>, CgroupError> {
    let mut found = BTreeMap::new();
    let ending = if is_v2 { ".current" } else { ".usage_in_bytes" };
    let names = std::fs::read_dir(dir.path()).map_err(|source| CgroupError::read(dir.path().to_owned(), source))?;
    for name in names.flatten().map(|entry| entry.file_name()) {
        let name = name.to_string_lossy();
        let size = name.strip_prefix("hugetlb.").and_then(|rest| rest.strip_suffix(ending));
        let Some(size) = size.filter(|size| !size.contains('.')) else {
            continue;
        };
        let usage = number(dir, &name)?.unwrap_or(0);
        let (max, failcnt) = match is_v2 {
            true => (0, value(&keyed(dir, &format!("hugetlb.{size}.events"))?, "max")),
            false => {
                let read = |what: &str| number(dir, &format!("hugetlb.{size}.{what}"));
                (read("max_usage_in_bytes")?.unwrap_or(0), read("failcnt")?.unwrap_or(0))
            }
        };
        found.insert(size.to_owned(), Hugetlb { usage, max, failcnt });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors() {
        let check = |text: &str, expected: Option<Vec<u16>>| assert_eq!(range_list(text), expected, "{text}");
        check("", Some(vec![]));
        check("0-2,7", Some(vec![0, 1, 2, 7]));
        check("3", Some(vec![3]));
        check("2-0", None);
        check("a", None);
    }

    #[test]
    fn tables_of_block_devices() {
        let entry = |op: &str, value| BlkioEntry { major: 8, minor: 1, op: op.to_owned(), value };
        assert_eq!(blkio_line("8:1 Read 4096"), Some(entry("Read", 4096)));
        assert_eq!(blkio_line("8:1 12"), Some(entry("", 12)));
        assert_eq!(blkio_line("Total 4096"), None);
        let blkio = io_stat("8:1 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0 cost.usage=7\nmalformed\n");
        assert_eq!(blkio.io_service_bytes_recursive, [entry("Read", 1), entry("Write", 2), entry("Discard", 0)]);
        assert_eq!(blkio.io_serviced_recursive, [entry("Read", 3), entry("Write", 4), entry("Discard", 0)]);
    }

    #[test]
    fn the_json_is_that_of_runc() {
        let json = serde_json::to_value(Stats::default()).unwrap();
        let expected = serde_json::json!({
            "cpu": {"usage": {"kernel": 0, "user": 0}, "throttling": {}},
            "cpuset": {"cpu_exclusive": 0, "mem_hardwall": 0, "mem_exclusive": 0, "memory_migrate": 0, "memory_spread_page": 0,
                "memory_spread_slab": 0, "memory_pressure": 0, "sched_load_balance": 0, "sched_relax_domain_level": 0},
            "memory": {"usage": {"limit": 0, "failcnt": 0}, "swap": {"limit": 0, "failcnt": 0},
                "kernel": {"limit": 0, "failcnt": 0}, "kernelTCP": {"limit": 0, "failcnt": 0}},
            "pids": {}, "blkio": {}, "hugetlb": {}, "intel_rdt": {}, "network_interfaces": null
        });
        assert_eq!(json, expected);
    }
}

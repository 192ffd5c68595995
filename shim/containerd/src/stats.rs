//! What the cgroups of a container count, in the messages of containerd for v1 and v2.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;

use crate::cgroup::Cgroup;
use crate::events::any;

/// Reads all counters that are there.
pub fn read(cgroup: &Cgroup) -> io::Result<Any> {
    if let Some(place) = &cgroup.v2 {
        // A container that is gone is told by this.
        std::fs::metadata(place)?;
        return Ok(any(&read_v2(place)));
    }
    let Some(place) = cgroup.v1.values().next() else {
        return Err(io::Error::new(io::ErrorKind::NotFound, "its cgroups are not mounted here"));
    };
    std::fs::metadata(place)?;
    Ok(any(&read_v1(cgroup)))
}

/// One file of a cgroup; what is not there, because a controller or a kernel lacks it, counts as nothing.
fn text(place: &Path, name: &str) -> String {
    std::fs::read_to_string(place.join(name)).unwrap_or_default()
}

fn number(place: &Path, name: &str) -> u64 {
    parse(text(place, name).trim())
}

/// A number; `max` is the largest there is.
fn parse(text: &str) -> u64 {
    if text == "max" { u64::MAX } else { text.parse().unwrap_or(0) }
}

/// A file of lines with a name and a number.
struct Table(HashMap<String, u64>);

impl Table {
    fn read(place: &Path, name: &str) -> Self {
        let text = text(place, name);
        let pairs = text.lines().filter_map(|line| line.split_once(' '));
        Table(pairs.map(|(name, value)| (name.to_owned(), parse(value.trim()))).collect())
    }

    fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }
}

fn read_v1(cgroup: &Cgroup) -> v1::Metrics {
    let mut metrics = v1::Metrics::new();
    let place = |controller: &str| cgroup.v1.get(controller);
    if let Some(place) = place("pids") {
        let (current, limit) = (number(place, "pids.current"), limit_of_pids(place));
        metrics.pids = MessageField::some(v1::PidsStat { current, limit, ..Default::default() });
    }
    metrics.cpu = MessageField::some(cpu_v1(place("cpuacct").map(|p| &**p), place("cpu").map(|p| &**p)));
    if let Some(place) = place("memory") {
        metrics.memory = MessageField::some(memory_v1(place));
        let table = Table::read(place, "memory.oom_control");
        metrics.memory_oom_control = MessageField::some(v1::MemoryOomControl {
            oom_kill_disable: table.get("oom_kill_disable"),
            under_oom: table.get("under_oom"),
            oom_kill: table.get("oom_kill"),
            ..Default::default()
        });
    }
    if let Some(place) = place("blkio") {
        metrics.blkio = MessageField::some(blkio_v1(place));
    }
    if let Some(place) = place("hugetlb") {
        metrics.hugetlb = hugetlb_sizes(place, ".usage_in_bytes").iter().map(|size| hugetlb_v1(place, size)).collect();
    }
    metrics
}

/// No limit is told as zero.
fn limit_of_pids(place: &Path) -> u64 {
    match number(place, "pids.max") {
        u64::MAX => 0,
        limit => limit,
    }
}

fn cpu_v1(account: Option<&Path>, cpu: Option<&Path>) -> v1::CPUStat {
    let mut stat = v1::CPUStat::new();
    if let Some(place) = account {
        let per_cpu = text(place, "cpuacct.usage_percpu").split_whitespace().map(parse).collect();
        stat.usage = MessageField::some(v1::CPUUsage {
            total: number(place, "cpuacct.usage"),
            kernel: number(place, "cpuacct.usage_sys"),
            user: number(place, "cpuacct.usage_user"),
            per_cpu,
            ..Default::default()
        });
    }
    if let Some(place) = cpu {
        let table = Table::read(place, "cpu.stat");
        stat.throttling = MessageField::some(v1::Throttle {
            periods: table.get("nr_periods"),
            throttled_periods: table.get("nr_throttled"),
            throttled_time: table.get("throttled_time"),
            ..Default::default()
        });
    }
    stat
}

fn memory_v1(place: &Path) -> v1::MemoryStat {
    let table = Table::read(place, "memory.stat");
    let get = |name: &str| table.get(name);
    let entry = |kind: &str| {
        let file = |what: &str| number(place, &format!("memory.{kind}{what}"));
        let (usage, max) = (file("usage_in_bytes"), file("max_usage_in_bytes"));
        let (failcnt, limit) = (file("failcnt"), file("limit_in_bytes"));
        MessageField::some(v1::MemoryEntry { usage, max, failcnt, limit, ..Default::default() })
    };
    v1::MemoryStat {
        cache: get("cache"),
        rss: get("rss"),
        rss_huge: get("rss_huge"),
        mapped_file: get("mapped_file"),
        dirty: get("dirty"),
        writeback: get("writeback"),
        pg_pg_in: get("pgpgin"),
        pg_pg_out: get("pgpgout"),
        pg_fault: get("pgfault"),
        pg_maj_fault: get("pgmajfault"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        hierarchical_memory_limit: get("hierarchical_memory_limit"),
        hierarchical_swap_limit: get("hierarchical_memsw_limit"),
        total_cache: get("total_cache"),
        total_rss: get("total_rss"),
        total_rss_huge: get("total_rss_huge"),
        total_mapped_file: get("total_mapped_file"),
        total_dirty: get("total_dirty"),
        total_writeback: get("total_writeback"),
        total_pg_pg_in: get("total_pgpgin"),
        total_pg_pg_out: get("total_pgpgout"),
        total_pg_fault: get("total_pgfault"),
        total_pg_maj_fault: get("total_pgmajfault"),
        total_inactive_anon: get("total_inactive_anon"),
        total_active_anon: get("total_active_anon"),
        total_inactive_file: get("total_inactive_file"),
        total_active_file: get("total_active_file"),
        total_unevictable: get("total_unevictable"),
        usage: entry(""),
        swap: entry("memsw."),
        kernel: entry("kmem."),
        kernel_tcp: entry("kmem.tcp."),
        ..Default::default()
    }
}

fn blkio_v1(place: &Path) -> v1::BlkIOStat {
    let bytes = entries_v1(&text(place, "blkio.throttle.io_service_bytes_recursive"));
    let served = entries_v1(&text(place, "blkio.throttle.io_serviced_recursive"));
    v1::BlkIOStat { io_service_bytes_recursive: bytes, io_serviced_recursive: served, ..Default::default() }
}

/// Lines `major:minor op number`; the sum at the end has no device.
fn entries_v1(text: &str) -> Vec<v1::BlkIOEntry> {
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let (device, op, value) = (words.next()?, words.next()?, words.next()?);
        let (major, minor) = device.split_once(':')?;
        let (major, minor) = (parse(major), parse(minor));
        Some(v1::BlkIOEntry { op: op.to_owned(), major, minor, value: parse(value), ..Default::default() })
    };
    text.lines().filter_map(entry).collect()
}

/// The sizes of huge pages that a cgroup counts, as they stand in the names of its files.
fn hugetlb_sizes(place: &Path, ending: &str) -> Vec<String> {
    let names = std::fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let size = |name: std::ffi::OsString| {
        let size = name.to_str()?.strip_prefix("hugetlb.")?.strip_suffix(ending)?;
        (!size.contains('.')).then(|| size.to_owned())
    };
    let mut sizes = names.filter_map(size).collect::<Vec<_>>();
    sizes.sort();
    sizes
}

fn hugetlb_v1(place: &Path, size: &str) -> v1::HugetlbStat {
    let file = |what: &str| number(place, &format!("hugetlb.{size}.{what}"));
    let (usage, max, failcnt) = (file("usage_in_bytes"), file("max_usage_in_bytes"), file("failcnt"));
    v1::HugetlbStat { usage, max, failcnt, pagesize: size.to_owned(), ..Default::default() }
}

fn read_v2(place: &Path) -> v2::Metrics {
    let mut metrics = v2::Metrics::new();
    let (current, limit) = (number(place, "pids.current"), limit_of_pids(place));
    metrics.pids = MessageField::some(v2::PidsStat { current, limit, ..Default::default() });
    let table = Table::read(place, "cpu.stat");
    metrics.cpu = MessageField::some(v2::CPUStat {
        usage_usec: table.get("usage_usec"),
        user_usec: table.get("user_usec"),
        system_usec: table.get("system_usec"),
        nr_periods: table.get("nr_periods"),
        nr_throttled: table.get("nr_throttled"),
        throttled_usec: table.get("throttled_usec"),
        nr_bursts: table.get("nr_bursts"),
        burst_usec: table.get("burst_usec"),
        ..Default::default()
    });
    metrics.memory = MessageField::some(memory_v2(place));
    let table = Table::read(place, "memory.events");
    metrics.memory_events = MessageField::some(v2::MemoryEvents {
        low: table.get("low"),
        high: table.get("high"),
        max: table.get("max"),
        oom: table.get("oom"),
        oom_kill: table.get("oom_kill"),
        ..Default::default()
    });
    let usage = entries_v2(&text(place, "io.stat"));
    metrics.io = MessageField::some(v2::IOStat { usage, ..Default::default() });
    metrics.hugetlb = hugetlb_sizes(place, ".current").iter().map(|size| hugetlb_v2(place, size)).collect();
    metrics
}

fn memory_v2(place: &Path) -> v2::MemoryStat {
    let table = Table::read(place, "memory.stat");
    let get = |name: &str| table.get(name);
    v2::MemoryStat {
        anon: get("anon"),
        file: get("file"),
        kernel_stack: get("kernel_stack"),
        slab: get("slab"),
        sock: get("sock"),
        shmem: get("shmem"),
        file_mapped: get("file_mapped"),
        file_dirty: get("file_dirty"),
        file_writeback: get("file_writeback"),
        anon_thp: get("anon_thp"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        slab_reclaimable: get("slab_reclaimable"),
        slab_unreclaimable: get("slab_unreclaimable"),
        pgfault: get("pgfault"),
        pgmajfault: get("pgmajfault"),
        workingset_refault: get("workingset_refault_anon") + get("workingset_refault_file"),
        workingset_activate: get("workingset_activate_anon") + get("workingset_activate_file"),
        workingset_nodereclaim: get("workingset_nodereclaim"),
        pgrefill: get("pgrefill"),
        pgscan: get("pgscan"),
        pgsteal: get("pgsteal"),
        pgactivate: get("pgactivate"),
        pgdeactivate: get("pgdeactivate"),
        pglazyfree: get("pglazyfree"),
        pglazyfreed: get("pglazyfreed"),
        thp_fault_alloc: get("thp_fault_alloc"),
        thp_collapse_alloc: get("thp_collapse_alloc"),
        usage: number(place, "memory.current"),
        usage_limit: number(place, "memory.max"),
        swap_usage: number(place, "memory.swap.current"),
        swap_limit: number(place, "memory.swap.max"),
        max_usage: number(place, "memory.peak"),
        swap_max_usage: number(place, "memory.swap.peak"),
        ..Default::default()
    }
}

/// Lines `major:minor name=number ...`.
fn entries_v2(text: &str) -> Vec<v2::IOEntry> {
    let entry = |line: &str| {
        let (device, counters) = line.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        let mut entry = v2::IOEntry { major: parse(major), minor: parse(minor), ..Default::default() };
        for (name, value) in counters.split_whitespace().filter_map(|word| word.split_once('=')) {
            match name {
                "rbytes" => entry.rbytes = parse(value),
                "wbytes" => entry.wbytes = parse(value),
                "rios" => entry.rios = parse(value),
                "wios" => entry.wios = parse(value),
                _ => {}
            }
        }
        Some(entry)
    };
    text.lines().filter_map(entry).collect()
}

fn hugetlb_v2(place: &Path, size: &str) -> v2::HugeTlbStat {
    let file = |what: &str| number(place, &format!("hugetlb.{size}.{what}"));
    let (current, max) = (file("current"), file("max"));
    v2::HugeTlbStat { current, max, pagesize: size.to_owned(), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_from_both_versions() {
        let entries = entries_v1("8:0 Read 100\n8:0 Write 5\nTotal 105\n");
        assert_eq!(entries.len(), 2);
        assert_eq!((entries[0].major, entries[0].op.as_str(), entries[0].value), (8, "Read", 100));
        let entries = entries_v2("8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n");
        assert_eq!((entries[0].minor, entries[0].wbytes, entries[0].rios), (16, 2, 3));
    }

    #[test]
    fn a_message_carries_its_full_name() {
        assert_eq!(any(&v1::Metrics::new()).type_url, "io.containerd.cgroups.v1.Metrics");
        assert_eq!(any(&v2::Metrics::new()).type_url, "io.containerd.cgroups.v2.Metrics");
    }

    #[test]
    fn no_limit_is_the_largest_number() {
        assert_eq!((parse("max"), parse("17"), parse("")), (u64::MAX, 17, 0));
    }
}

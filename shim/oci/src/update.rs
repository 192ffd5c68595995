//! `update`: new limits for a container that lives, from the command line or from a file.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value};

use crate::cgroup::{Cgroup, CgroupError};

/// A file of resources is a few hundred bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// An `update` that failed.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// A value that is none.
    #[error("--{flag} {value:?} is no {kind}")]
    Value {
        /// The flag.
        flag: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        kind: &'static str,
    },
    /// The file.
    #[error("cannot read the resources in {file}", file = file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its content.
    #[error("the resources in {file} are not those of the runtime specification", file = file.display())]
    Parse {
        /// The file.
        file: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// Cache allocation.
    #[error("--{flag} is not supported: apex-oci does not allocate caches or memory bandwidth (intelRdt)")]
    Rdt {
        /// The flag.
        flag: &'static str,
    },
    /// The cgroup.
    #[error("cannot update container {id}")]
    Limit {
        /// The container.
        id: String,
        /// Why.
        source: CgroupError,
    },
}

/// The command line of `update`, each value as it was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `--resources`, `-r`: a file, or `-`. Then nothing else counts.
    pub resources: Option<PathBuf>,
    /// `--memory`
    pub memory: Option<String>,
    /// `--memory-swap`
    pub memory_swap: Option<String>,
    /// `--memory-reservation`
    pub memory_reservation: Option<String>,
    /// `--kernel-memory`, which has no effect any more.
    pub kernel_memory: Option<String>,
    /// `--kernel-memory-tcp`
    pub kernel_memory_tcp: Option<String>,
    /// `--cpu-share` (runc), `--cpu-shares` (crun)
    pub cpu_shares: Option<String>,
    /// `--cpu-quota`
    pub cpu_quota: Option<String>,
    /// `--cpu-period`
    pub cpu_period: Option<String>,
    /// `--cpu-burst`
    pub cpu_burst: Option<String>,
    /// `--cpu-idle`
    pub cpu_idle: Option<String>,
    /// `--cpu-rt-runtime`
    pub cpu_rt_runtime: Option<String>,
    /// `--cpu-rt-period`
    pub cpu_rt_period: Option<String>,
    /// `--cpuset-cpus`
    pub cpuset_cpus: Option<String>,
    /// `--cpuset-mems`
    pub cpuset_mems: Option<String>,
    /// `--pids-limit`
    pub pids_limit: Option<String>,
    /// `--blkio-weight`
    pub blkio_weight: Option<String>,
    /// `--l3-cache-schema`
    pub l3_cache_schema: Option<String>,
    /// `--mem-bw-schema`
    pub mem_bw_schema: Option<String>,
}

/// What the command line asks for; `input` stands for `-`.
pub fn resources(options: &Options, input: &mut dyn Read) -> Result<LinuxResources, UpdateError> {
    if options.l3_cache_schema.is_some() {
        return Err(UpdateError::Rdt { flag: "l3-cache-schema" });
    }
    if options.mem_bw_schema.is_some() {
        return Err(UpdateError::Rdt { flag: "mem-bw-schema" });
    }
    match &options.resources {
        Some(file) if file == Path::new("-") => parse(Path::new("the standard input"), input),
        Some(file) => {
            let mut open =
                std::fs::File::open(file).map_err(|source| UpdateError::Read { file: file.clone(), source })?;
            parse(file, &mut open)
        }
        None => from_flags(options),
    }
}

fn parse(file: &Path, input: &mut dyn Read) -> Result<LinuxResources, UpdateError> {
    let mut text = Vec::new();
    input
        .take(FILE_BYTES_MAX)
        .read_to_end(&mut text)
        .map_err(|source| UpdateError::Read { file: file.to_owned(), source })?;
    serde_json::from_slice(&text).map_err(|source| UpdateError::Parse { file: file.to_owned(), source })
}

/// The same document that a file would have, so that both ways end in one.
fn from_flags(options: &Options) -> Result<LinuxResources, UpdateError> {
    let mut memory = Map::new();
    for (flag, key, value) in [
        ("memory", "limit", &options.memory),
        ("memory-swap", "swap", &options.memory_swap),
        ("memory-reservation", "reservation", &options.memory_reservation),
        ("kernel-memory", "kernel", &options.kernel_memory),
        ("kernel-memory-tcp", "kernelTCP", &options.kernel_memory_tcp),
    ] {
        if let Some(value) = value {
            memory.insert(key.to_owned(), bytes(flag, value)?.into());
        }
    }
    let mut cpu = Map::new();
    for (flag, key, value) in [
        ("cpu-quota", "quota", &options.cpu_quota),
        ("cpu-rt-runtime", "realtimeRuntime", &options.cpu_rt_runtime),
        ("cpu-idle", "idle", &options.cpu_idle),
    ] {
        if let Some(value) = value {
            cpu.insert(key.to_owned(), whole::<i64>(flag, value)?.into());
        }
    }
    for (flag, key, value) in [
        ("cpu-share", "shares", &options.cpu_shares),
        ("cpu-period", "period", &options.cpu_period),
        ("cpu-burst", "burst", &options.cpu_burst),
        ("cpu-rt-period", "realtimePeriod", &options.cpu_rt_period),
    ] {
        if let Some(value) = value {
            cpu.insert(key.to_owned(), whole::<u64>(flag, value)?.into());
        }
    }
    for (key, value) in [("cpus", &options.cpuset_cpus), ("mems", &options.cpuset_mems)] {
        if let Some(value) = value {
            cpu.insert(key.to_owned(), value.as_str().into());
        }
    }
    let mut whole_map = Map::new();
    if let Some(limit) = &options.pids_limit {
        let limit = Value::from(whole::<i64>("pids-limit", limit)?);
        whole_map.insert("pids".to_owned(), Map::from_iter([("limit".to_owned(), limit)]).into());
    }
    if let Some(weight) = &options.blkio_weight {
        let weight = Value::from(whole::<u16>("blkio-weight", weight)?);
        whole_map.insert("blockIO".to_owned(), Map::from_iter([("weight".to_owned(), weight)]).into());
    }
    whole_map.insert("memory".to_owned(), memory.into());
    whole_map.insert("cpu".to_owned(), cpu.into());
    serde_json::from_slice(Value::from(whole_map).to_string().as_bytes())
        .map_err(|source| UpdateError::Parse { file: PathBuf::from("the command line"), source })
}

fn whole<T: std::str::FromStr>(flag: &'static str, value: &str) -> Result<T, UpdateError> {
    value.parse().map_err(|_| UpdateError::Value { flag, value: value.to_owned(), kind: "whole number in range" })
}

/// A number of bytes: -1 for no limit; with k, m, g, t or p (and b or ib behind) as powers of 1024.
fn bytes(flag: &'static str, value: &str) -> Result<i64, UpdateError> {
    let fail =
        || UpdateError::Value { flag, value: value.to_owned(), kind: "number of bytes, such as 268435456, 256m or -1" };
    if value == "-1" {
        return Ok(-1);
    }
    let lower = value.trim().to_ascii_lowercase();
    let end = lower.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(end);
    let power = match unit.trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return Err(fail()),
    };
    let factor = 1024_i64.pow(power);
    if let Ok(whole) = number.parse::<i64>() {
        return whole.checked_mul(factor).ok_or_else(fail);
    }
    // As runc reads it: half a gigabyte is 0.5g.
    let scaled = number.parse::<f64>().map_err(|_| fail())? * factor as f64;
    if scaled.is_finite() && scaled >= 0.0 && scaled < i64::MAX as f64 { Ok(scaled as i64) } else { Err(fail()) }
}

/// Sets the limits.
pub fn update(id: &str, cgroup: &Cgroup, resources: &LinuxResources) -> Result<(), UpdateError> {
    cgroup.limit(resources).map_err(|source| UpdateError::Limit { id: id.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units() {
        let check = |text: &str, expected: Option<i64>| assert_eq!(bytes("memory", text).ok(), expected, "{text}");
        check("-1", Some(-1));
        check("0", Some(0));
        check("33554432", Some(33_554_432));
        check("32m", Some(33_554_432));
        check("32MiB", Some(33_554_432));
        check("1G", Some(1 << 30));
        check("0.5g", Some(1 << 29));
        check("", None);
        check("-2", None);
        check("32x", None);
        check("9999999p", None);
        check("1e5", None);
        check("m", None);
    }

    #[test]
    fn flags_and_files_say_the_same() {
        let options = Options {
            memory: Some("32m".to_owned()),
            memory_swap: Some("-1".to_owned()),
            cpu_quota: Some("-1".to_owned()),
            cpu_shares: Some("100".to_owned()),
            cpuset_cpus: Some("0-1".to_owned()),
            pids_limit: Some("-1".to_owned()),
            blkio_weight: Some("500".to_owned()),
            ..Options::default()
        };
        let file = r#"{"memory":{"limit":33554432,"swap":-1},"cpu":{"quota":-1,"shares":100,"cpus":"0-1"},
            "pids":{"limit":-1},"blockIO":{"weight":500}}"#;
        let from_file = Options { resources: Some(PathBuf::from("-")), ..Options::default() };
        let empty: &mut dyn Read = &mut io::empty();
        assert_eq!(resources(&options, empty).unwrap(), resources(&from_file, &mut file.as_bytes()).unwrap());
    }

    #[test]
    fn nonsense_is_named() {
        let check = |options: Options, words: &str| {
            let error = resources(&options, &mut "{".as_bytes()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        check(
            Options { cpu_period: Some("-1".to_owned()), ..Options::default() },
            "--cpu-period \"-1\" is no whole number",
        );
        check(Options { blkio_weight: Some("70000".to_owned()), ..Options::default() }, "--blkio-weight");
        check(
            Options { mem_bw_schema: Some("x".to_owned()), ..Options::default() },
            "--mem-bw-schema is not supported",
        );
        check(Options { resources: Some(PathBuf::from("-")), ..Options::default() }, "the standard input are not");
        check(
            Options { resources: Some(PathBuf::from("/none")), ..Options::default() },
            "cannot read the resources in /none",
        );
    }
}

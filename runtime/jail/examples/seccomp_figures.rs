//! Prints what the filter of the isolation policy costs: the figures of docs/adr/0002-seccomp-cache-and-proof.md.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use apex_core::policy::{Origin, SyscallDefault, Syscalls};
use apex_core::seccomp::bpf::Insn;
use apex_core::seccomp::{Notify, Table, table, verify};
use apex_jail::seccomp::{CacheDir, load, program};

const GROUPS: &str = "files dirs fs-change time signals threads process ipc sockets polling terminal identity-read scheduling \
                      memory-advice random xattr system-info";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for compat in [false, true] {
        measure(compat)?;
    }
    let calls = || {
        let own = std::process::id() as i32;
        let pid = Some(nix::unistd::Pid::from_raw(own));
        (p10(2000, nix::unistd::getppid), p10(2000, || nix::unistd::getpgid(pid)), p10(2000, open_null))
    };
    let plain = calls();
    nix::sys::prctl::set_no_new_privs()?;
    let program = program(&policy_table(false)?, None)?;
    let start = Instant::now();
    load(&program, false)?;
    println!("load {:?}", start.elapsed());
    println!("getppid, getpgid, open+close: plain {plain:?}, filtered {:?}", calls());
    Ok(())
}

fn measure(compat: bool) -> Result<(), Box<dyn std::error::Error>> {
    let table = policy_table(compat)?;
    let dir = std::env::temp_dir().join(format!("apex-figures-{}", std::process::id()));
    let cache = CacheDir::at(dir.join("seccomp"));
    let fresh = program(&table, Some(&cache))?;
    let insns: Vec<Insn> = fresh.filter().iter().map(|f| Insn { code: f.code, jt: f.jt, jf: f.jf, k: f.k }).collect();
    println!("compat {compat}: {} instructions", insns.len());
    println!("  build table {:?}", p10(200, || policy_table(compat)));
    println!("  name        {:?}", p10(200, || table.digest("x")));
    println!("  proof       {:?}", p10(200, || verify(&insns, &table)));
    println!("  cache hit   {:?}", p10(200, || program(&table, Some(&cache))));
    println!("  compile     {:?}", p10(20, || program(&table, None)));
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

fn policy_table(compat: bool) -> Result<Table, apex_core::seccomp::TableError> {
    let allow: BTreeMap<_, _> = GROUPS.split(' ').map(|name| (name.to_owned(), Origin::flag("example"))).collect();
    table(&Syscalls { default: SyscallDefault::Deny, allow, deny: BTreeMap::new(), compat }, Notify::default())
}

fn open_null() -> std::io::Result<std::fs::File> {
    std::fs::File::open("/dev/null")
}

/// The 10th percentile of some runs.
fn p10<T>(runs: usize, mut run: impl FnMut() -> T) -> Duration {
    let mut times: Vec<Duration> = (0..runs)
        .map(|_| {
            let start = Instant::now();
            std::hint::black_box(run());
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[runs / 10]
}

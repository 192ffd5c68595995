//! Compiles `attack/*.c`, `traced/*.c` and `oci/*.c` once, for 64 and for 32 bits, so that each test binary carries the programs it sends into a
//! sandbox or a container.
//!
//! A machine without a (32-bit) C compiler gets an empty file, and the tests that need it are skipped with a reason.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=attack");
    println!("cargo:rerun-if-changed=traced");
    println!("cargo:rerun-if-changed=oci");
    println!("cargo:rerun-if-env-changed=CC");
    let x86 = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|it| it == "x86_64");
    let out = env::var("OUT_DIR").map_err(io::Error::other)?;
    for (folder, name) in [("attack", "attack"), ("traced", "job"), ("oci", "inside")] {
        let sources = sources(folder)?;
        for width in ["64", "32"] {
            let target = Path::new(&out).join(format!("{name}{width}"));
            if !x86 || !compile(&sources, &format!("-m{width}"), &target) {
                println!(
                    "cargo:warning={name}{width} was not built: no C compiler with static libraries for {width} bits"
                );
                fs::write(&target, b"")?;
            }
        }
    }
    Ok(())
}

fn sources(folder: &str) -> io::Result<Vec<PathBuf>> {
    let mut sources = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|it| it == "c") {
            sources.push(path);
        }
    }
    sources.sort();
    Ok(sources)
}

/// No PIE, so that static data lies below 4 GiB for int 0x80; no red zone, since that path pushes.
fn compile(sources: &[PathBuf], width: &str, target: &Path) -> bool {
    let compiler = env::var("CC").unwrap_or_else(|_| "gcc".to_owned());
    Command::new(compiler)
        .args([width, "-static", "-no-pie", "-O1", "-g0", "-s", "-mno-red-zone", "-pthread", "-Wall", "-Wextra", "-o"])
        .arg(target)
        .args(sources)
        .status()
        .is_ok_and(|status| status.success())
}

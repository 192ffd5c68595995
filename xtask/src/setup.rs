//! What apt must give before anything can be built, shown, tested or measured.
//!
//! Each package is asked for by the thing that is used (a program, an archive), not by its name in a package database: who
//! brought node from elsewhere needs no second one. Only what is missing is installed.

use std::process::Command;

use anyhow::{Result, bail};

use crate::shell;

/// What somebody is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Run the demo with an apex-run that is there already.
    Job,
    /// Build apex-run and run the demo.
    Demo,
    /// Run every test.
    Tests,
    /// Measure against the peers.
    Bench,
    /// Run the tests in the virtual machine.
    Vm,
}

impl Need {
    /// Whether who needs this needs `other` as well.
    fn includes(self, other: Need) -> bool {
        let before: &[Need] = match self {
            Need::Job => &[],
            Need::Demo => &[Need::Job],
            Need::Tests => &[Need::Job, Need::Demo],
            Need::Bench | Need::Vm => &[Need::Job, Need::Demo, Need::Tests],
        };
        self == other || before.contains(&other)
    }
}

/// How to see whether a package is there.
enum Sign {
    /// A program in PATH.
    Program(&'static str),
    /// A file that gcc finds among its libraries, with these flags.
    Archive(&'static str, &'static [&'static str]),
    /// A file or directory.
    Path(&'static str),
}

struct Package {
    name: &'static str,
    need: Need,
    sign: Sign,
}

const fn program(name: &'static str, need: Need, program: &'static str) -> Package {
    Package { name, need, sign: Sign::Program(program) }
}

/// gcc stands first: the signs of the libraries ask it.
const PACKAGES: &[Package] = &[
    program("gcc", Need::Demo, "gcc"),
    Package { name: "libc6-dev", need: Need::Demo, sign: Sign::Archive("libc.a", &[]) },
    Package { name: "libseccomp-dev", need: Need::Demo, sign: Sign::Archive("libseccomp.a", &[]) },
    Package { name: "python3", need: Need::Job, sign: Sign::Path("/usr/bin/python3") },
    Package { name: "python3-pip", need: Need::Tests, sign: Sign::Path("/usr/lib/python3/dist-packages/pip") },
    Package {
        name: "python3-setuptools",
        need: Need::Tests,
        sign: Sign::Path("/usr/lib/python3/dist-packages/setuptools"),
    },
    Package { name: "python3-wheel", need: Need::Tests, sign: Sign::Path("/usr/lib/python3/dist-packages/wheel") },
    Package { name: "python3-venv", need: Need::Tests, sign: Sign::Path("/usr/lib/python3.11/ensurepip") },
    Package {
        name: "libpython3.11-testsuite",
        need: Need::Tests,
        sign: Sign::Path("/usr/lib/python3.11/test/test_os.py"),
    },
    program("make", Need::Tests, "make"),
    program("git", Need::Tests, "git"),
    program("tar", Need::Tests, "tar"),
    program("xz-utils", Need::Tests, "xz"),
    program("sqlite3", Need::Tests, "sqlite3"),
    program("openssl", Need::Tests, "openssl"),
    program("nodejs", Need::Tests, "node"),
    program("npm", Need::Tests, "npm"),
    program("strace", Need::Tests, "strace"),
    // Programs of the detectors' corpus.
    program("perl", Need::Tests, "perl"),
    program("curl", Need::Tests, "curl"),
    program("openssl", Need::Tests, "openssl"),
    program("openssh-client", Need::Tests, "ssh-keygen"),
    program("bzip2", Need::Tests, "bzip2"),
    program("nginx-light", Need::Tests, "nginx"),
    program("busybox-static", Need::Tests, "busybox"),
    // Containers are run by a containerd of the test's own.
    program("containerd", Need::Tests, "containerd"),
    program("runc", Need::Tests, "runc"),
    program("umoci", Need::Tests, "umoci"),
    program("skopeo", Need::Tests, "skopeo"),
    // podman and buildah run theirs with apex-oci; a user without root takes ids by newuidmap, which catatonit keeps between two commands.
    program("podman", Need::Tests, "podman"),
    program("buildah", Need::Tests, "buildah"),
    program("uidmap", Need::Tests, "newuidmap"),
    program("catatonit", Need::Tests, "catatonit"),
    // The tree of their Debian image, and the virtual machine's.
    program("debootstrap", Need::Tests, "debootstrap"),
    // The BPF objects are compared with what their sources give.
    program("clang-19", Need::Tests, "clang-19"),
    program("llvm-19", Need::Tests, "llvm-strip-19"),
    Package { name: "libbpf-dev", need: Need::Tests, sign: Sign::Path("/usr/include/bpf/bpf_helpers.h") },
    Package { name: "bpftool", need: Need::Tests, sign: Sign::Path("/usr/sbin/bpftool") },
    // Attacks through the 32-bit ABI are 32-bit programs.
    #[cfg(target_arch = "x86_64")]
    Package { name: "gcc-multilib", need: Need::Tests, sign: Sign::Archive("libc.a", &["-m32"]) },
    program("bubblewrap", Need::Bench, "bwrap"),
    program("firejail", Need::Bench, "firejail"),
    program("crun", Need::Bench, "crun"),
    program("redis-server", Need::Bench, "redis-server"),
    program("redis-tools", Need::Bench, "redis-benchmark"),
    program("bpftrace", Need::Bench, "bpftrace"),
    program("qemu-system-x86", Need::Vm, "qemu-system-x86_64"),
    program("e2fsprogs", Need::Vm, "mkfs.ext4"),
];

/// Installs what is missing when we are root; otherwise says which line does.
pub fn ensure(need: Need) -> Result<()> {
    let missing = missing(need);
    if missing.is_empty() {
        return Ok(());
    }
    let install = format!("apt-get install -y --no-install-recommends {}", missing.join(" "));
    if !shell::is_root() {
        bail!(
            "missing: {}\nonly root can install them; run this, then the same task again:\n\n    sudo {install}\n",
            missing.join(", ")
        );
    }
    if shell::on_path("apt-get").is_none() {
        bail!(
            "missing: {}\nthere is no apt-get here; install what carries these Debian names on this system",
            missing.join(", ")
        );
    }
    println!("setup: {install}");
    shell::run(apt_get().arg("update").arg("-qq"))?;
    shell::run(apt_get().args(["install", "-y", "-qq", "--no-install-recommends"]).args(&missing))?;
    let still = self::missing(need);
    if !still.is_empty() {
        bail!(
            "apt-get installed {} but what they should bring is still not found; look at its output above",
            still.join(", ")
        );
    }
    Ok(())
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn missing(need: Need) -> Vec<&'static str> {
    PACKAGES
        .iter()
        .filter(|package| need.includes(package.need) && !present(&package.sign))
        .map(|package| package.name)
        .collect()
}

fn present(sign: &Sign) -> bool {
    match sign {
        Sign::Program(program) => shell::on_path(program).is_some(),
        Sign::Path(path) => std::path::Path::new(path).exists(),
        // gcc answers the bare name when it finds nothing.
        Sign::Archive(file, flags) => Command::new("gcc")
            .args(*flags)
            .arg(format!("-print-file-name={file}"))
            .output()
            .is_ok_and(|output| output.stdout.starts_with(b"/")),
    }
}

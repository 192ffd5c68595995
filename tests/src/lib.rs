//! The shared harness of everything that crosses crates: finds `apex-run`, runs it with a hard bound on time, sends the attack
//! program into the sandbox, and looks afterwards for what was left behind.
//!
//! Input: `$APEX_RUN`, or the binary beside the test in the target directory. Nothing here knows how Apex works inside: it is
//! judged by its command line and by what the kernel shows. Panics are the way to fail, as in every test.
#![allow(clippy::missing_panics_doc)]

pub mod attack;
pub mod containerd;
pub mod daemon;
pub mod debian;
pub mod leaks;
pub mod modes;
pub mod oci;
pub mod podman;
pub mod programs;
pub mod prometheus;
pub mod sandbox;
pub mod session;
pub mod snapshot;
pub mod temp;
pub mod trace;
pub mod traced;
pub mod watched;
pub mod wire;

use std::path::PathBuf;
use std::sync::OnceLock;

pub use attack::{Abi, Attack};
pub use sandbox::{Output, Sandbox};
pub use session::Session;
pub use temp::TempDir;

/// Exit code of `apex-run` when Apex itself failed.
pub const APEX_FAILED: i32 = 125;
/// Exit code when the command cannot be executed.
pub const CANNOT_EXECUTE: i32 = 126;
/// Exit code when the command is not found.
pub const NOT_FOUND: i32 = 127;
/// Exit code when the wall time is over.
pub const TIME_OVER: i32 = 124;
/// Exit code when the kernel killed the command for memory.
pub const MEMORY_OVER: i32 = 137;

/// A mode of Apex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Everything on.
    Isolation,
    /// Readable host.
    Development,
    /// Between the two.
    Hybrid,
}

impl Mode {
    /// All three.
    pub const ALL: [Mode; 3] = [Mode::Isolation, Mode::Development, Mode::Hybrid];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Isolation => "isolation",
            Mode::Development => "development",
            Mode::Hybrid => "hybrid",
        }
    }
}

/// Runs one test body under each mode; a failure's captured output ends with the mode it failed in.
pub fn each_mode(body: impl Fn(Mode)) {
    for mode in Mode::ALL {
        println!("mode: {}", mode.name());
        body(mode);
    }
}

/// Whether the tests run as root; the suite is run a second time as an unprivileged user.
pub fn as_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether the caller can have a cgroup: always as root, else where systemd or root delegates one. Asked of the host by a start.
pub fn has_cgroup() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    let start = || {
        let mut command = std::process::Command::new(apex_run());
        let status =
            command.args(["--mode", "isolation", "--", "/usr/bin/true"]).stderr(std::process::Stdio::null()).status();
        status.expect("apex-run starts").success()
    };
    as_root() || *ANSWER.get_or_init(start)
}

/// Whether the kernel's Landlock keeps signals and abstract sockets inside (ABI 6, Linux 6.12), as `--doctor` tells.
pub fn has_scopes() -> bool {
    landlock_abi().is_some_and(|abi| abi >= 6)
}

/// Whether it judges truncating (ABI 3, Linux 6.2), on which isolation level partial stands.
pub fn has_partial() -> bool {
    landlock_abi().is_some_and(|abi| abi >= 3)
}

fn landlock_abi() -> Option<u64> {
    let output = std::process::Command::new(apex_run()).args(["--doctor", "--json"]).output().expect("apex-run starts");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let findings = json["doctor"]["findings"].as_array().expect("findings");
    let landlock = findings.iter().find(|finding| finding["facility"] == "landlock");
    landlock.and_then(|finding| {
        finding["detail"].as_str()?.strip_prefix("ABI ")?.split(',').next()?.trim().parse::<u64>().ok()
    })
}

/// Whether this is the virtual machine of `cargo xtask vm`.
pub fn in_vm() -> bool {
    std::env::var_os("APEX_VM").is_some_and(|value| value == "1")
}

/// The binary under test: `$APEX_RUN`, else `apex-run` in the target directory that this test was built in.
pub fn apex_run() -> PathBuf {
    if let Some(path) = std::env::var_os("APEX_RUN") {
        return PathBuf::from(path);
    }
    let own = std::env::current_exe().expect("/proc is mounted");
    let profile = own.parent().and_then(|deps| deps.parent()).expect("test binaries lie in TARGET/PROFILE/deps");
    let path = profile.join("apex-run");
    assert!(path.exists(), "{} is not there: build it with `cargo build -p apex-run`, or set APEX_RUN", path.display());
    path
}

/// Ends a test that cannot run here: `skip!("no delegated cgroup")`, or `skip!("...", Ok(()))` where the test returns something.
///
/// Prints the line that `cargo xtask test` counts and compares with `tests/expected-skips.toml`.
#[macro_export]
macro_rules! skip {
    ($reason:expr) => {
        $crate::skip!($reason, ())
    };
    ($reason:expr, $result:expr) => {{
        fn here() {}
        println!("SKIP {}: {}", $crate::name_of(&here), $reason);
        return $result;
    }};
}

/// Ends a test that needs the kernel or the init of the virtual machine with a skip everywhere else.
#[macro_export]
macro_rules! vm_only {
    () => {
        if !$crate::in_vm() {
            $crate::skip!("needs the VM: cargo xtask vm");
        }
    };
}

/// A sandbox with the attack program inside; ends the test with a skip where no C compiler was there to build it.
#[macro_export]
macro_rules! armed {
    () => {
        match $crate::Sandbox::with_attack() {
            Some(sandbox) => sandbox,
            None => {
                $crate::skip!("no C compiler with static libraries to build the attack program")
            }
        }
    };
}

/// The full name of the test in which `here` is defined. Runners that use one thread per process give that thread no useful name.
pub fn name_of<T>(here: &T) -> String {
    let _ = here;
    let path = std::any::type_name::<T>();
    path.trim_end_matches("::here").replace("::{{closure}}", "")
}

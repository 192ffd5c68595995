//! The attack program (`tests/attack/*.c`, compiled by `build.rs`): its variants, its table of attempts, and its answers.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use crate::temp::TempDir;

static PROGRAM_64: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/attack64"));
static PROGRAM_32: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/attack32"));

/// Where the attack program lies inside a sandbox.
pub const INSIDE: &str = "/tmp/attack";

/// By which door system calls enter the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    /// 64-bit code, `syscall`.
    X64,
    /// 64-bit code with the x32 bit in the number.
    X32,
    /// 64-bit code, `int 0x80` with i386 numbers.
    Int80,
    /// A 32-bit program.
    I386,
}

impl Abi {
    /// All four.
    pub const ALL: [Abi; 4] = [Abi::X64, Abi::X32, Abi::Int80, Abi::I386];

    /// Name of the program inside [`INSIDE`].
    pub const fn program(self) -> &'static str {
        match self {
            Abi::I386 => "/tmp/attack/attack32",
            Abi::X64 | Abi::X32 | Abi::Int80 => "/tmp/attack/attack64",
        }
    }

    /// Its `--abi` argument.
    pub const fn flag(self) -> &'static str {
        match self {
            Abi::X64 | Abi::I386 => "--abi=native",
            Abi::X32 => "--abi=x32",
            Abi::Int80 => "--abi=int80",
        }
    }
}

/// The programs, unpacked to a directory that lives as long as a test holds it.
#[derive(Debug)]
pub struct Attack(TempDir);

static SHARED: Mutex<Weak<Attack>> = Mutex::new(Weak::new());

impl Attack {
    /// Unpacks them, once for all tests that run at the same time; `None` when no C compiler was there.
    pub fn get() -> Option<Arc<Attack>> {
        if PROGRAM_64.is_empty() {
            return None;
        }
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(attack) = shared.upgrade() {
            return Some(attack);
        }
        let dir = TempDir::new();
        for (name, bytes) in [("attack64", PROGRAM_64), ("attack32", PROGRAM_32)] {
            if bytes.is_empty() {
                continue;
            }
            let path = dir.path().join(name);
            fs::write(&path, bytes).expect("we own it");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("we own it");
        }
        let attack = Arc::new(Attack(dir));
        *shared = Arc::downgrade(&attack);
        Some(attack)
    }

    /// Their directory on the host.
    pub fn dir(&self) -> &Path {
        self.0.path()
    }

    /// Whether there is a 32-bit one.
    pub fn has_32() -> bool {
        !PROGRAM_32.is_empty()
    }

    /// Runs the program outside any sandbox.
    pub fn outside(&self, abi: Abi, args: &[&str]) -> String {
        let name = abi.program().rsplit('/').next().expect("a path has a last part");
        let output = Command::new(self.dir().join(name))
            .args([abi.flag(), "--outside"])
            .args(args)
            .output()
            .unwrap_or_else(|error| panic!("cannot run {name}: {error}"));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Whether this kernel serves the ABI at all.
    pub fn kernel_serves(&self, abi: Abi) -> bool {
        self.outside(abi, &["has-abi"]).trim() == "yes"
    }
}

/// One attempt of the program's table.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Its name.
    pub name: String,
    /// Its group.
    pub group: String,
    flags: Vec<String>,
}

impl Attempt {
    /// Whether the table gives it this flag: `always`, `strict`, `root`, `inside`, `abis`, `rare`.
    pub fn is(&self, flag: &str) -> bool {
        self.flags.iter().any(|it| it == flag)
    }
}

/// The table of attempts, as the program prints it.
pub fn table() -> &'static [Attempt] {
    static TABLE: OnceLock<Vec<Attempt>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let Some(attack) = Attack::get() else {
            return Vec::new();
        };
        let text = attack.outside(Abi::X64, &["list"]);
        text.lines()
            .filter_map(|line| {
                let mut words = line.split(' ').map(str::to_owned);
                Some(Attempt { name: words.next()?, group: words.next()?, flags: words.collect() })
            })
            .collect()
    })
}

/// Answers by name: `NAME VERDICT DETAIL` a line.
pub fn verdicts(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, rest)| (name.to_owned(), rest.to_owned()))
        .collect()
}

/// The first word of an answer.
pub fn word(answer: &str) -> &str {
    answer.split(' ').next().unwrap_or(answer)
}

//! What runs in the virtual machine, and how the two sides speak of it.

use serde::{Deserialize, Serialize};

use crate::build::TestBinary;
use crate::test::skips::Class;

/// Both passes, in their order.
pub const CLASSES: [Class; 2] = [Class::VmRoot, Class::VmUser];

/// Test programs that run there, by package and target. Every `vm_*` of the package `apex-tests` comes on top.
///
/// Emulation is slow: left out is what says nothing about the kernel (`apex-core`, `apex-run`'s words) and what compares real programs
/// inside and outside (`conformance_*`).
const PROGRAMS: &[(&str, &str)] = &[
    ("apex-sys", "apex_sys"),
    ("apex-jail", "apex_jail"),
    ("apex-tests", "core_dump"),
    ("apex-tests", "deny"),
    ("apex-tests", "deny_host"),
    ("apex-tests", "escape_exec"),
    ("apex-tests", "escape_fs"),
    ("apex-tests", "escape_net"),
    ("apex-tests", "escape_proc"),
    ("apex-tests", "escape_syscalls"),
    ("apex-tests", "hostile"),
    ("apex-tests", "io"),
    ("apex-tests", "life"),
    ("apex-tests", "limits"),
    ("apex-tests", "plan"),
    ("apex-tests", "prove"),
    ("apex-tests", "tty"),
    ("apex-tests", "unconfined"),
    ("apex-tests", "why"),
];

/// The demo, which is no test program but the main job.
const DEMO: &str = "demo";

/// Whether this test program runs in the machine.
pub fn has(binary: &TestBinary) -> bool {
    let own = binary.package == "apex-tests" && binary.target.starts_with("vm_");
    own || PROGRAMS.contains(&(binary.package.as_str(), binary.target.as_str()))
}

/// What the machine is asked to do; lies beside the programs as `manifest.json`.
#[derive(Serialize, Deserialize)]
pub struct Manifest {
    /// In the order in which they run.
    pub programs: Vec<Program>,
    /// Passed to each program: only tests whose name has it.
    pub filter: Option<String>,
    /// Whether the demo runs at the end of each pass.
    pub demo: bool,
}

/// One test program, with paths below the payload.
#[derive(Serialize, Deserialize)]
pub struct Program {
    /// Its package.
    pub package: String,
    /// Its target.
    pub target: String,
    /// The program.
    pub file: String,
    /// The folder of its package.
    pub dir: String,
}

impl Manifest {
    /// What `filter` leaves: the test programs that bear it in their name, or in all programs the tests that do.
    pub fn new(programs: Vec<Program>, filter: Option<&str>) -> Manifest {
        let Some(filter) = filter else {
            return Manifest { programs, filter: None, demo: true };
        };
        if DEMO.contains(filter) {
            return Manifest { programs: Vec::new(), filter: None, demo: true };
        }
        let is_target = programs.iter().any(|program| program.target.contains(filter));
        if is_target {
            let programs = programs.into_iter().filter(|program| program.target.contains(filter)).collect();
            return Manifest { programs, filter: None, demo: false };
        }
        Manifest { programs, filter: Some(filter.to_owned()), demo: false }
    }
}

/// What the guest says about itself, each a line between those of the tests.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// A program starts, in this pass.
    Begin(Class, String),
    /// It ended with this code.
    End(i32),
    /// Something was there after the pass that had not been before.
    Left(String),
    /// Everything ran.
    Done,
}

const MARK: &str = "@apex-vm ";

impl Said {
    /// The line.
    pub fn line(&self) -> String {
        match self {
            Said::Begin(class, what) => format!("{MARK}begin {} {what}", word(*class)),
            Said::End(code) => format!("{MARK}end {code}"),
            Said::Left(thing) => format!("{MARK}left {thing}"),
            Said::Done => format!("{MARK}done"),
        }
    }

    /// Reads a line; `None` is what a test said.
    pub fn read(line: &str) -> Option<Said> {
        let rest = line.trim().strip_prefix(MARK)?;
        let (verb, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        match verb {
            "begin" => {
                let (class, what) = rest.split_once(' ')?;
                Some(Said::Begin(class_of(class)?, what.to_owned()))
            }
            "end" => Some(Said::End(rest.parse().ok()?)),
            "left" => Some(Said::Left(rest.to_owned())),
            "done" => Some(Said::Done),
            _ => None,
        }
    }
}

/// A pass in one word.
pub fn word(class: Class) -> &'static str {
    match class {
        Class::Root => "root",
        Class::User => "user",
        Class::VmRoot => "vm-root",
        Class::VmUser => "vm-user",
    }
}

/// The pass of a word.
pub fn class_of(word: &str) -> Option<Class> {
    CLASSES.into_iter().find(|class| self::word(*class) == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_were_written() {
        for said in [
            Said::Begin(Class::VmUser, "apex-tests limits".to_owned()),
            Said::End(101),
            Said::Left("cgroup /sys/fs/cgroup/apex-1".to_owned()),
            Said::Done,
        ] {
            assert_eq!(Said::read(&format!("{}\r", said.line())), Some(said));
        }
        for line in ["test a ... ok", "@apex-vm begin root x", "@apex-vm end", "@apex-vm sing", "x @apex-vm done"] {
            assert_eq!(Said::read(line), None, "{line}");
        }
    }

    #[test]
    fn a_filter_takes_programs_first_and_tests_otherwise() {
        let program = |target: &str| Program {
            package: "apex-tests".to_owned(),
            target: target.to_owned(),
            file: String::new(),
            dir: String::new(),
        };
        let check = |filter, targets: &[&str], passed_on: Option<&str>, demo| {
            let manifest = Manifest::new(vec![program("limits"), program("life")], filter);
            let found: Vec<_> = manifest.programs.iter().map(|program| program.target.as_str()).collect();
            assert_eq!((found.as_slice(), manifest.filter.as_deref(), manifest.demo), (targets, passed_on, demo));
        };
        check(None, &["limits", "life"], None, true);
        check(Some("limits"), &["limits"], None, false);
        check(Some("fork_bomb"), &["limits", "life"], Some("fork_bomb"), false);
        check(Some("demo"), &[], None, true);
    }
}

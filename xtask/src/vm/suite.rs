//! What runs in the virtual machine, and how the two sides speak of it.

use serde::{Deserialize, Serialize};

use crate::build::TestBinary;
use crate::test::skips::Class;

/// Both passes, in their order.
pub const CLASSES: [Class; 2] = [Class::VmRoot, Class::VmUser];

/// Test programs that run there, by package and target, and in which passes. Every `vm_*` of the package `apex-tests` comes on top.
///
/// Emulation is slow. Left out is what says nothing about the kernel (`apex-core`, the words of `apex-run`), what compares real programs
/// inside and outside (`conformance_*`), and what starts hundreds of sandboxes (`fault`). The user's pass has what differs with a
/// user manager: each of its starts waits for that.
const PROGRAMS: &[(&str, &str, &[Class])] = &[
    ("apex-sys", "apex_sys", &CLASSES),
    ("apex-jail", "apex_jail", &CLASSES),
    ("apex-tests", "core_dump", ROOT),
    ("apex-tests", "daemon", ROOT),
    ("apex-tests", "deny", ROOT),
    ("apex-tests", "deny_host", ROOT),
    ("apex-tests", "escape_exec", ROOT),
    ("apex-tests", "escape_fs", ROOT),
    ("apex-tests", "escape_net", ROOT),
    ("apex-tests", "escape_proc", &CLASSES),
    ("apex-tests", "escape_syscalls", ROOT),
    ("apex-tests", "hostile", ROOT),
    ("apex-tests", "io", ROOT),
    ("apex-tests", "life", &CLASSES),
    ("apex-tests", "limits", &CLASSES),
    ("apex-tests", "plan", &CLASSES),
    // The oldest kernel that the probes are made for.
    ("apex-tests", "probe_full", ROOT),
    ("apex-tests", "probe_network", ROOT),
    ("apex-tests", "probe_process", ROOT),
    ("apex-tests", "prove", &CLASSES),
    ("apex-tests", "tty", ROOT),
    ("apex-tests", "unconfined", ROOT),
    ("apex-tests", "why", ROOT),
];
const ROOT: &[Class] = &[Class::VmRoot];

/// The demo, which is no test program but the main job.
const DEMO: &str = "demo";

/// The passes in which this test program runs; none when it does not run in the machine.
pub fn passes(binary: &TestBinary) -> &'static [Class] {
    let wanted = (binary.package.as_str(), binary.target.as_str());
    match PROGRAMS.iter().find(|(package, target, _)| (*package, *target) == wanted) {
        Some((.., passes)) => passes,
        None if binary.package == "apex-tests" && binary.target.starts_with("vm_") => &CLASSES,
        None => &[],
    }
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
    /// The passes in which it runs.
    pub passes: Vec<Class>,
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
            passes: CLASSES.to_vec(),
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

//! qemu: one start of the machine, from power-on to power-off, and what came over its second serial line.
//!
//! Bounded in time; on the limit qemu is killed by its process group. Everything both lines said is kept in two log files.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::image::Image;
use super::payload::Payload;
use super::recipe;
use super::suite::{self, Said};
use crate::shell;
use crate::test::skips::Class;
use crate::test::tally::{Runner, Tally};

/// Power-on to power-off.
const LIMIT: Duration = Duration::from_secs(20 * 60);
const MEMORY_MIB: u32 = 1536;
const CORES_MAX: usize = 4;
/// Software emulation runs everywhere; a host whose KVM is real may say `kvm`.
const ACCELERATOR_VARIABLE: &str = "APEX_VM_ACCEL";
const CONSOLE_LINES_SHOWN: usize = 25;

/// What one start of the machine brought.
pub struct Report {
    /// The counts of the passes.
    pub tallies: Vec<Tally>,
    /// What the passes left behind in the machine.
    pub left: Vec<String>,
}

/// Starts the machine and reads what it says until it is off. `logs` is where its words are kept.
pub fn run(image: &Image, payload: &Payload, logs: &Path) -> Result<Report> {
    let (words, console) = (logs.join("tests.log"), logs.join("console.log"));
    let mut log = BufWriter::new(File::create(&words).with_context(|| format!("cannot write {}", words.display()))?);
    println!("starting the machine; its words go to {} and {}", words.display(), console.display());
    let begun = Instant::now();
    let mut reader = Reader::new(|line| println!("{line}"));
    let mut command = qemu(image, payload, &console);
    let ended = shell::stream(&mut command, LIMIT, |line| {
        // A full disk must not end the tests; the lines are on the terminal as well.
        let _ = writeln!(log, "{line}");
        reader.take(line);
    });
    log.flush().with_context(|| format!("cannot write {}", words.display()))?;
    match ended {
        Ok(status) if !status.success() => reader.trouble(format!("qemu: {status}")),
        Ok(_) => {}
        Err(error) => reader.trouble(format!("{error:#}")),
    }
    if !reader.is_done {
        reader.trouble("the machine went off before its tests were done".to_owned());
        show_end(&console);
    }
    println!("the machine was on for {} s", begun.elapsed().as_secs());
    Ok(Report { tallies: reader.tallies, left: reader.left })
}

fn qemu(image: &Image, payload: &Payload, console: &Path) -> Command {
    let cores = std::thread::available_parallelism().map_or(1, usize::from).min(CORES_MAX);
    let accelerator = std::env::var(ACCELERATOR_VARIABLE).unwrap_or_else(|_| "tcg,thread=multi".to_owned());
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", &accelerator, "-M", "q35", "-cpu", "Nehalem", "-smp", &cores.to_string()]);
    command.args(["-m", &MEMORY_MIB.to_string(), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command
        .arg("-kernel")
        .arg(image.kernel())
        .arg("-initrd")
        .arg(image.initrd())
        .args(["-append", recipe::KERNEL_LINE]);
    command.arg("-serial").arg(option("file:", console, "")).args(["-serial", "stdio"]);
    for disk in [image.disk(), payload.disk(), payload.swap()] {
        command.arg("-drive").arg(option("file=", &disk, ",format=raw,if=virtio,snapshot=on"));
    }
    command.args(["-device", "virtio-rng-pci"]);
    // Where the writes go that are thrown away.
    command.env("TMPDIR", payload.dir());
    command
}

/// A path within an option of qemu, where a comma is written twice.
fn option(before: &str, path: &Path, after: &str) -> String {
    format!("{before}{}{after}", path.display().to_string().replace(',', ",,"))
}

fn show_end(console: &Path) {
    let bytes = std::fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    println!("the end of its console:");
    for line in &lines[lines.len().saturating_sub(CONSOLE_LINES_SHOWN)..] {
        println!("  {}", line.trim_end());
    }
}

/// Sorts what comes over the line.
struct Reader {
    /// Gets each line that a person should see. Not print itself: whoever counts the lines of xtask's own tests would take what they feed in for skips.
    show: fn(&str),
    tallies: Vec<Tally>,
    left: Vec<String>,
    current: Option<(Class, String, Instant)>,
    is_done: bool,
}

impl Reader {
    fn new(show: fn(&str)) -> Reader {
        let tallies = suite::CLASSES.into_iter().map(Tally::new).collect();
        Reader { show, tallies, left: Vec::new(), current: None, is_done: false }
    }

    fn tally(&mut self, class: Class) -> &mut Tally {
        let at = self.tallies.iter().position(|tally| tally.class == class);
        &mut self.tallies[at.expect("there is a tally for each class that a line can name")]
    }

    fn take(&mut self, line: &str) {
        let line = line.trim_end();
        match Said::read(line) {
            Some(Said::Begin(class, what)) => {
                (self.show)(&format!("\n--- {what}, as {class}"));
                self.current = Some((class, what, Instant::now()));
            }
            Some(Said::End(code)) => {
                if let Some((class, what, begun)) = self.current.take() {
                    (self.show)(&format!("--- {what}: code {code} after {} s", begun.elapsed().as_secs()));
                    // As wait(2) gives it for an exit with this code.
                    self.tally(class).ended(&what, ExitStatus::from_raw((code & 0xff) << 8));
                }
            }
            Some(Said::Left(thing)) => {
                (self.show)(&format!("LEFT BEHIND in the machine: {thing}"));
                self.left.push(thing);
            }
            Some(Said::Done) => self.is_done = true,
            None => {
                (self.show)(line);
                if let Some((class, ..)) = self.current {
                    self.tally(class).read(Runner::Libtest, line);
                }
            }
        }
    }

    /// Something that is wrong with the machine, counted as a failure of the pass that was on, or else of the first.
    fn trouble(&mut self, what: String) {
        let (class, what) = match self.current.take() {
            Some((class, program, _)) => (class, format!("{program}: {what}")),
            None => (Class::VmRoot, what),
        };
        self.tally(class).broken(&what);
    }
}

/// Where the logs lie.
pub fn logs() -> Result<PathBuf> {
    let dir = crate::build::target_dir()?.join("vm");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &[&str]) -> Reader {
        let mut reader = Reader::new(|_| ());
        lines.iter().for_each(|line| reader.take(line));
        reader
    }

    #[test]
    fn results_belong_to_the_pass_that_is_on() {
        let reader = check(&[
            "@apex-vm begin vm-root apex-tests limits\r",
            "SKIP limits::a: no reason\r",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s\r",
            "@apex-vm end 0\r",
            "@apex-vm begin vm-user apex-tests limits\r",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s\r",
            "@apex-vm end 101\r",
            "@apex-vm left cgroup x\r",
            "@apex-vm done\r",
        ]);
        let counts: Vec<_> =
            reader.tallies.iter().map(|tally| (tally.passed(), tally.failed, tally.skipped())).collect();
        assert_eq!(counts, [(2, 0, 1), (1, 2, 0)]);
        assert_eq!((reader.left.len(), reader.is_done), (1, true));
    }

    #[test]
    fn a_machine_that_stops_in_the_middle_has_failed() {
        let mut reader = check(&["@apex-vm begin vm-user apex-tests life"]);
        assert!(!reader.is_done);
        reader.trouble("it went off".to_owned());
        let names: Vec<_> = reader.tallies[1].failures.iter().map(|failure| failure.name.as_str()).collect();
        assert_eq!(names, ["apex-tests life: it went off"]);
    }

    #[test]
    fn a_program_that_dies_without_a_word_has_failed() {
        let reader = check(&["@apex-vm begin vm-root apex-tests life", "@apex-vm end 134", "@apex-vm done"]);
        assert_eq!(reader.tallies[0].failed, 1);
    }
}
